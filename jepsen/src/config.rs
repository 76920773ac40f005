//! What a run is: everything that its operations, faults and limits follow from. Kept as `config.json`.

use serde::{Deserialize, Serialize};

use crate::{
    nemesis::plan::Kind,
    workload::rows::{Source, Times},
};

/// Memory for queries of a node, in MiB.
pub(crate) const MEMORY_MIB: u64 = 256;

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Config {
    /// The workload's name.
    pub(crate) workload: String,
    /// Kinds of faults.
    pub(crate) faults: Vec<Kind>,
    /// Seed of operations and faults.
    pub(crate) seed: u64,
    /// Seconds of load under faults.
    pub(crate) seconds: u64,
    /// Access nodes.
    pub(crate) access: u8,
    /// Data nodes.
    pub(crate) data: u8,
    /// Clients at one time.
    pub(crate) clients: u64,
    /// Mean pause of a client between two statements, in milliseconds.
    pub(crate) pause_ms: u64,
    /// What limits of time are multiplied with, for a slow machine or a debug build. Invariants have no such factor.
    pub(crate) slack: f64,
    /// The binary under test, and what it says of its version.
    pub(crate) binary: String,
    /// Its version.
    pub(crate) version: String,
    /// Where the times of rows lie.
    pub(crate) times: Times,
    /// The planted bug that the binary is to show, if it holds any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) planted: Option<String>,
    /// Whether nodes are on loopback addresses though they could have namespaces.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) loopback: bool,
    /// Whether backups are made all the time, and restored in the end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) backup: bool,
    /// How much faster than usual faults follow on each other.
    #[serde(default = "one")]
    pub(crate) rate: f64,
}

const fn one() -> f64 {
    1.0
}

impl Config {
    /// What rows follow from.
    pub(crate) const fn source(&self) -> Source {
        Source { seed: self.seed, times: self.times }
    }

    /// Replicas of every chunk.
    pub(crate) fn replication(&self) -> u8 {
        self.data.min(2)
    }

    /// A limit for this machine, in microseconds.
    pub(crate) fn limit_us(&self, seconds: u64) -> u64 {
        (std::time::Duration::from_secs(seconds).mul_f64(self.slack))
            .as_micros()
            .try_into()
            .unwrap_or(u64::MAX)
    }
}
