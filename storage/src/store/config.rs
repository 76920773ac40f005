//! Limits and locations of a store.

use std::{path::PathBuf, time::Duration};

/// Limits and locations of a store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Its directory: `node.redb`, `journal.redb`, `chunks/<id>.redb`.
    pub dir: PathBuf,
    /// Committed rows of a chunk are flushed when they take this many bytes in memory.
    pub flush_bytes: usize,
    /// Committed rows are flushed when they are this old.
    pub flush_age: Duration,
    /// Decoded and encoded rows in memory, over which writers wait.
    pub memory_bytes: usize,
    /// Free bytes of the disk below which nothing more is taken in. Reads and flushes go on.
    pub space_reserve_bytes: u64,
    /// Encoded parts of segments that were read, kept for the next reader.
    pub cache_bytes: usize,
    /// Headers of segments, kept for the next reader, whether the file is open or not.
    pub directory_bytes: usize,
    /// Chunk files that stay open when nobody reads them.
    pub open_files_max: usize,
    /// How fast all files are verified in the background; zero for never.
    pub scrub_bytes_per_second: u64,
    /// How long deleted rows stay, for scans at snapshots from before the delete.
    pub version_age: Duration,
    /// Whether flushes, merges and the scrub happen by themselves, and not only when they are called for. Without it
    /// decisions, too, reach the disk only with what somebody waits for, so that the calls alone decide what is written.
    pub background: bool,
}

impl StoreConfig {
    /// The usual limits in `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            flush_bytes: 16 << 20,
            flush_age: Duration::from_secs(60),
            memory_bytes: 256 << 20,
            space_reserve_bytes: 512 << 20,
            cache_bytes: 64 << 20,
            directory_bytes: 64 << 20,
            open_files_max: 128,
            scrub_bytes_per_second: 32 << 20,
            version_age: Duration::from_secs(60),
            background: true,
        }
    }
}
