//! Reads every chunk file once a day, slowly, so that rot is found while another replica is whole.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use hypertide_proto::ids::ChunkId;

use super::{
    Inner,
    check::{Pace, check},
};
use crate::Error;

/// How long a file that was found whole is believed.
const PERIOD: Duration = Duration::from_secs(24 * 3600);
/// How often it is looked whether a file is due.
const TICK: Duration = Duration::from_secs(1);

/// What was found wrong, and how much was looked at, since the store was opened.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    faults: AtomicU64,
    damaged_reads: AtomicU64,
    scrubbed_files: AtomicU64,
    scrubbed_bytes: AtomicU64,
}

/// The state of the counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IntegrityStats {
    /// Faults that checks and the scrub found.
    pub faults: u64,
    /// Reads and writes that met wrong bytes.
    pub damaged_reads: u64,
    /// Files that the scrub went through.
    pub scrubbed_files: u64,
    /// Bytes that the scrub verified.
    pub scrubbed_bytes: u64,
}

impl Counters {
    pub(super) fn faults(&self, count: usize) {
        self.faults.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(super) fn damaged_read(&self) {
        self.damaged_reads.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn stats(&self) -> IntegrityStats {
        IntegrityStats {
            faults: self.faults.load(Ordering::Relaxed),
            damaged_reads: self.damaged_reads.load(Ordering::Relaxed),
            scrubbed_files: self.scrubbed_files.load(Ordering::Relaxed),
            scrubbed_bytes: self.scrubbed_bytes.load(Ordering::Relaxed),
        }
    }
}

/// Scrubs until told to stop.
pub(super) fn run_background(inner: &Inner) {
    if inner.config.scrub_bytes_per_second == 0 {
        return;
    }
    // Not from the first chunk after every start: a node that starts often would never come to the last ones.
    let mut next = ChunkId(u64::from(std::process::id()).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut done: BTreeMap<ChunkId, Instant> = BTreeMap::new();
    while inner.stop.wait(TICK) && inner.poison.reason().is_none() {
        done.retain(|_, at| at.elapsed() < PERIOD);
        let files = inner.node.manifests();
        let due = |chunk: &&ChunkId| !done.contains_key(chunk);
        let later = files.range(next..).map(|(chunk, _)| chunk).find(due);
        let Some(chunk) = later.or_else(|| files.keys().find(due)).copied() else { continue };
        next = ChunkId(chunk.0.wrapping_add(1));
        match scrub(inner, chunk) {
            Ok(()) => drop(done.insert(chunk, Instant::now())),
            Err(error) => {
                tracing::warn!("scrub chunk {chunk}: {error}");
                done.insert(chunk, Instant::now());
            }
        }
    }
}

/// Verifies the file of a chunk at the rate that is allowed.
fn scrub(inner: &Inner, chunk: ChunkId) -> Result<(), Error> {
    let rate = inner.config.scrub_bytes_per_second;
    let mut read = |bytes: u64| {
        inner.counters.scrubbed_bytes.fetch_add(bytes, Ordering::Relaxed);
        inner.stop.wait(Duration::from_micros(bytes.saturating_mul(1_000_000) / rate))
    };
    check(inner, chunk, Pace { thorough: false, read: &mut read })?;
    inner.counters.scrubbed_files.fetch_add(1, Ordering::Relaxed);
    Ok(())
}
