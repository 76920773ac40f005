//! What `/metrics` tells of the state of a node, read when it is asked for. Counts of statements and of fragments are kept
//! where these run.

use std::time::Duration;

use hypertide_meta::{CatalogWriter, MetaNode};
use hypertide_storage::{ChunkReport, DataNode};
use metrics::{counter, describe_counter, describe_gauge, gauge};

/// Names, and what they mean.
const GAUGES: [(&str, &str); 19] = [
    ("hypertide_raft_leader", "1 when this access node leads its group"),
    ("hypertide_raft_term", "Raft term"),
    ("hypertide_catalog_applied_index", "Last entry of the log that the catalog has"),
    ("hypertide_chunks_total", "Chunks in the catalog"),
    ("hypertide_chunks_under_replicated", "Chunks with fewer replicas in sync than wanted"),
    ("hypertide_chunks_unavailable", "Chunks of which no replica can be read"),
    ("hypertide_chunks_joining", "Chunks of which a replica catches up"),
    ("hypertide_serving", "1 when the node serves"),
    ("hypertide_replicas", "Replicas of chunks on this data node"),
    ("hypertide_replicas_damaged", "Replicas of which stored bytes were found wrong"),
    ("hypertide_rows", "Committed rows"),
    ("hypertide_rows_in_memory", "Committed rows that are in no segment yet"),
    ("hypertide_segment_bytes", "Encoded bytes of all segments"),
    ("hypertide_memory_rows_bytes", "Memory that rows take which are in no segment yet"),
    ("hypertide_cache_bytes", "Memory that blocks of segments take"),
    ("hypertide_disk_free_bytes", "Free bytes of the disk"),
    ("hypertide_open_files", "Chunk files that are open"),
    (
        "hypertide_pending_transactions",
        "Transactions that are prepared and neither committed nor aborted",
    ),
    ("hypertide_pending_oldest_seconds", "Age of the oldest of them"),
];
const COUNTERS: [(&str, &str); 6] = [
    ("hypertide_cache_hits_total", "Blocks that were found in memory"),
    ("hypertide_cache_misses_total", "Blocks that were read from disk"),
    ("hypertide_integrity_faults_total", "Faults that checks and the scrub found"),
    ("hypertide_integrity_damaged_reads_total", "Reads and writes that met wrong bytes"),
    ("hypertide_scrubbed_files_total", "Files that the scrub went through"),
    ("hypertide_scrubbed_bytes_total", "Bytes that the scrub verified"),
];

/// Tells the recorder what the gauges mean.
pub(crate) fn describe() {
    for (name, meaning) in GAUGES {
        describe_gauge!(name, meaning);
    }
    for (name, meaning) in COUNTERS {
        describe_counter!(name, meaning);
    }
}

/// Reads the gauges of an access node. One that is in no group yet has none.
pub(crate) fn of_access(name: &str, node: &MetaNode) {
    let set = |gauge: &'static str, value: f64| gauge!(gauge, "node" => name.to_owned()).set(value);
    let Some(place) = node.place() else { return };
    set("hypertide_raft_leader", f64::from(u8::from(place.leads)));
    set("hypertide_raft_term", place.term as f64);
    set("hypertide_catalog_applied_index", place.applied as f64);
    let chunks = node.image().catalog.standings(|_| false);
    set("hypertide_chunks_total", chunks.total as f64);
    set("hypertide_chunks_under_replicated", chunks.under_replicated as f64);
    set("hypertide_chunks_unavailable", chunks.unavailable as f64);
    set("hypertide_chunks_joining", chunks.joining as f64);
}

/// Reads the gauges of a data node, under the name that it has in its cluster.
pub(crate) fn of_data(node: &DataNode) {
    let Some(name) = node.membership().map(|membership| membership.name) else { return };
    let set = |gauge: &'static str, value: f64| gauge!(gauge, "node" => name.clone()).set(value);
    let count = |counter: &'static str, value: u64| {
        counter!(counter, "node" => name.clone()).absolute(value);
    };
    let store = node.store();
    set("hypertide_serving", f64::from(u8::from(node.serving())));
    let replicas = store.report(&[]);
    let sum = |of: fn(&ChunkReport) -> u64| replicas.iter().map(of).sum::<u64>() as f64;
    set("hypertide_replicas", replicas.len() as f64);
    set("hypertide_replicas_damaged", store.damaged().len() as f64);
    set("hypertide_rows", sum(|replica| replica.rows));
    set("hypertide_rows_in_memory", sum(|replica| replica.recent_rows));
    set("hypertide_segment_bytes", sum(|replica| replica.segment_bytes));
    set("hypertide_memory_rows_bytes", store.memory_used() as f64);
    set("hypertide_open_files", store.open_files() as f64);
    // A disk that cannot be asked shows up in health and log.
    if let Ok(free) = store.free_bytes() {
        set("hypertide_disk_free_bytes", free as f64);
    }
    let pending = store.pending(&[]);
    let oldest = pending.iter().map(|(_, age)| *age).max().unwrap_or(Duration::ZERO);
    set("hypertide_pending_transactions", pending.len() as f64);
    set("hypertide_pending_oldest_seconds", oldest.as_secs_f64());
    let cache = store.cache_stats();
    set("hypertide_cache_bytes", cache.bytes as f64);
    count("hypertide_cache_hits_total", cache.hits);
    count("hypertide_cache_misses_total", cache.misses);
    let integrity = store.integrity_stats();
    count("hypertide_integrity_faults_total", integrity.faults);
    count("hypertide_integrity_damaged_reads_total", integrity.damaged_reads);
    count("hypertide_scrubbed_files_total", integrity.scrubbed_files);
    count("hypertide_scrubbed_bytes_total", integrity.scrubbed_bytes);
}
