//! Errors of the catalog's machinery; refusals are [`crate::catalog::Reject`].

use hypertide_proto::error::{Retry, RpcError};

/// What can go wrong besides a refusal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No leader could be reached in time; nothing was done.
    #[error("no access node leads: {0}")]
    Unavailable(String),
    /// The command was sent and no answer came: it may or may not be applied.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// The directory belongs to another node or cluster, is of a newer format, or in use.
    #[error("{0}")]
    Identity(String),
    /// The disk failed; the node must stop.
    #[error("{0}")]
    Storage(String),
    /// Another node refused.
    #[error(transparent)]
    Rpc(#[from] RpcError),
}

impl Error {
    /// What a caller may do about it.
    #[must_use]
    pub const fn retry(&self) -> Retry {
        match self {
            Self::Unavailable(_) => Retry::OtherNode,
            Self::Unknown(_) | Self::Identity(_) | Self::Storage(_) => Retry::Never,
            Self::Rpc(error) => error.retry(),
        }
    }
}
