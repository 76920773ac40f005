//! What the checkers look at: the run, its history, its faults, and what was found when all was over.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::restore::Backups;
use crate::{config::Config, history::Op, nemesis::plan::Record};

/// A chunk as one access node's catalog has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct CatalogChunk {
    /// Its number.
    pub(crate) id: u64,
    /// Its name.
    pub(crate) name: String,
    /// Its hypertable.
    pub(crate) table: String,
    /// The nodes that hold it.
    pub(crate) nodes: Vec<String>,
}

/// A replica as its data node has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Replica {
    /// The chunk's number.
    pub(crate) chunk: u64,
    /// The data node.
    pub(crate) node: String,
    /// Rows in segments and in memory; of deleted ones each node lets go in its own time.
    pub(crate) rows: u64,
    /// Rows that a snapshot sees, as the product's own check counted them.
    #[serde(default)]
    pub(crate) visible: Option<u64>,
    /// What that check found wrong with it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) problem: String,
    /// The last commit that it has.
    pub(crate) csn: u64,
    /// Running hash over the commits.
    pub(crate) chain: Vec<u8>,
    /// What was found wrong in its file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) faults: Vec<String>,
}

/// A line of a node's log that is worth a look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Complaint {
    /// The node.
    pub(crate) node: String,
    /// The line.
    pub(crate) line: String,
}

/// What was found when all was over. Kept as `closing.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Closing {
    /// When every fault was healed; the load went on after it.
    pub(crate) healed_us: u64,
    /// When the clients were told to stop.
    pub(crate) stopped_us: u64,
    /// When nobody asked anything any more; the nodes ran on for some seconds.
    #[serde(default)]
    pub(crate) idle_us: Option<u64>,
    /// When every chunk had its replicas again, if it came to that.
    pub(crate) restored_us: Option<u64>,
    /// Why it did not.
    #[serde(default)]
    pub(crate) not_restored: String,
    /// Chunks by access node.
    pub(crate) catalogs: BTreeMap<String, Vec<CatalogChunk>>,
    /// What the data nodes hold.
    pub(crate) replicas: Vec<Replica>,
    /// Panics, errors and warnings in the logs: the first of each node.
    pub(crate) complaints: Vec<Complaint>,
    /// Lines of logs that speak of damage found.
    pub(crate) damage_lines: u64,
    /// Nodes that did not end when asked to.
    pub(crate) unstoppable: Vec<String>,
    /// What could not be looked at.
    pub(crate) missing: Vec<String>,
    /// Backups that were made during the run, and what of them was restored.
    #[serde(default)]
    pub(crate) backups: Backups,
    /// Why there were no network namespaces, when there were none.
    #[serde(default)]
    pub(crate) loopback: String,
}

/// What the process of a node used at one moment. Kept in `metrics.csv`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    /// The node.
    pub(crate) node: String,
    /// When.
    pub(crate) at_us: u64,
    /// Id of the process: another one after every start.
    pub(crate) pid: u64,
    /// Resident memory.
    pub(crate) rss_kib: u64,
    /// Open descriptors.
    pub(crate) files: u64,
}

/// All of it.
#[derive(Clone, Debug)]
pub(crate) struct Evidence {
    /// The run.
    pub(crate) config: Config,
    /// Operations, in order of their ends.
    pub(crate) ops: Vec<Op>,
    /// Faults, in order of their ends.
    pub(crate) faults: Vec<Record>,
    /// The end.
    pub(crate) closing: Closing,
    /// What the nodes used, in order of time.
    pub(crate) usage: Vec<Usage>,
}
