//! The chunk store of Hypertide: columnar, compressed, crash-safe, and the data node around it.
//!
//! Rows come as parts of transactions ([`batch`]), are journaled (`journal`) and wait in memory (`chunk`) for the log's
//! decision. Committed rows are seen by scans (`scan`) at once, and are flushed to segments ([`segment`]) in one redb
//! file a chunk (`store`), which `compact` keeps few. `node` registers the store with a cluster, keeps it informed,
//! serves it (`rpc`), and brings replicas up from those of other nodes (`store/transfer`). [`Remains`] reads a directory
//! without a node, when the catalog is to be made anew.
//!
//! - What was answered is on disk; what is on disk survives the process, whenever it ends.
//! - Every byte that is read back is verified first. Damage stays with the chunk it is found in.
//! - A row is visible at a snapshot exactly when its commit number is at most that, in memory or in a segment.
//!
//! It knows nothing of SQL, of the catalog, or of which replicas a chunk has elsewhere.

pub mod batch;
mod chunk;
mod codec;
mod compact;
mod error;
mod exact;
#[cfg(test)]
mod fuzz;
mod journal;
mod node;
mod remains;
mod rpc;
#[cfg(test)]
mod samples;
mod scan;
pub mod segment;
mod store;
mod summary;
mod tables;
mod tombstone;

pub use chunk::part_hash;
pub use error::Error;
pub use hypertide_proto::schema::OLDER_ROWS_KEY;
pub use node::{DataNode, Membership, NodeConfig, TransferStats};
pub use remains::{RemainingReplica, Remains};
pub use scan::{
    Answer, Asked, ColumnAnswer, Latest, LatestBy, Scan, ScanRequest, ScanStats, Seen, Top,
};
pub use store::{
    ChunkReport, ChunkSpec, ChunkState, ChunkStore, Part, StoreConfig,
    cache::CacheStats,
    check::{CheckReport, Fault},
    contain::quiet_contained_panics,
    disk::{Disk, FileDisk},
    order::{CompressionSpec, OrderBy},
    scrub::IntegrityStats,
};
pub use summary::{ChunkSummary, ColumnSummary};
pub use tombstone::{Listed, TOMBSTONE_BYTES_MAX, Tombstone};
