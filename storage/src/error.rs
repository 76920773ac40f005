//! Errors of the chunk store.

use hypertide_proto::{
    error::{Code, RpcError},
    ids::{ChunkId, Csn, TxnId},
};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk or the store's files failed.
    #[error("{action}: {source}")]
    Disk {
        /// What was done, a verb phrase.
        action: String,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Stored bytes are wrong.
    #[error("chunk {chunk}: {what}")]
    Damaged {
        /// The chunk.
        chunk: ChunkId,
        /// Segment, column and offset, and what is wrong there.
        what: String,
    },
    /// What was sent is malformed.
    #[error("{0}")]
    Invalid(String),
    /// A part came again with other bytes.
    #[error("part {number} of {txn} for chunk {chunk} was prepared before with other bytes")]
    Conflict {
        /// The transaction.
        txn: TxnId,
        /// The chunk.
        chunk: ChunkId,
        /// The part.
        number: u32,
    },
    /// Another transaction is about to change the same. It may still be aborted.
    #[error("chunk {chunk}: {what}")]
    Reserved {
        /// The chunk.
        chunk: ChunkId,
        /// What the other one does.
        what: String,
    },
    /// A commit changed the same that this transaction does not know of.
    #[error("chunk {chunk}: {what}")]
    Contended {
        /// The chunk.
        chunk: ChunkId,
        /// What the other one did.
        what: String,
    },
    /// Rows that the snapshot would see were deleted, and are gone.
    #[error("chunk {chunk} can be read from commit {horizon} on, not at {snapshot}")]
    SnapshotTooOld {
        /// The chunk.
        chunk: ChunkId,
        /// The first snapshot that can be read.
        horizon: Csn,
        /// The one asked for.
        snapshot: Csn,
    },
    /// At the snapshot asked for the catalog has no replica of the chunk here.
    #[error("chunk {0} was removed from this node")]
    Removed(ChunkId),
    /// As much is in memory as may be, there is no file handle, or another does the same now. It passes.
    #[error("{0}")]
    Overloaded(String),
    /// The disk is full.
    #[error("{0}")]
    DiskFull(String),
    /// The directory belongs to another node or cluster, is of a newer format, or in use.
    #[error("{0}")]
    Identity(String),
    /// The store is closed, or was poisoned by a failed fsync.
    #[error("the chunk store is closed: {0}")]
    Closed(String),
    /// Another node refused.
    #[error(transparent)]
    Rpc(#[from] RpcError),
}

impl From<Error> for RpcError {
    fn from(error: Error) -> Self {
        let code = match &error {
            // Another replica may do, and this one again when its disk does.
            Error::Disk { .. } => Code::Unavailable,
            Error::Damaged { .. } => Code::Damaged,
            Error::Invalid(_) | Error::Conflict { .. } => Code::Invalid,
            Error::Reserved { .. } => Code::Reserved,
            Error::Contended { .. } => Code::Contended,
            Error::Removed(_) => Code::Stale,
            Error::SnapshotTooOld { .. } => Code::SnapshotTooOld,
            Error::Overloaded(_) => Code::Overloaded,
            Error::DiskFull(_) => Code::DiskFull,
            Error::Identity(_) => Code::WrongNode,
            Error::Closed(_) => Code::Unavailable,
            Error::Rpc(error) => return error.clone(),
        };
        Self::new(code, error)
    }
}
