//! What openraft is told about our types, and how they are serialised.

use std::io;

use openraft::{BasicNode, declare_raft_types};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::snapshot::SnapshotFile;
use crate::{catalog::Command, node::Answer};

declare_raft_types!(
    /// The types that our Raft group is made of.
    pub(crate) TypeConfig:
        D = Proposal,
        R = Vec<Answer>,
        NodeId = u64,
        Node = BasicNode,
        SnapshotData = SnapshotFile,
);

pub(super) type Entry = openraft::Entry<TypeConfig>;
pub(super) type LogId = openraft::LogId<u64>;
pub(super) type Vote = openraft::Vote<u64>;
pub(super) type Membership = openraft::StoredMembership<u64, BasicNode>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<u64, BasicNode>;
pub(super) type StorageError = openraft::StorageError<u64>;

/// The commands that one log entry holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proposal {
    /// The leader's clock: milliseconds since the Unix epoch.
    pub(crate) time_ms: u64,
    /// In the order they are applied; the n-th has the n-th commit number of the entry.
    pub(crate) commands: Vec<Command>,
}

/// Serialises a value for the disk or the wire.
pub(crate) fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    rmp_serde::to_vec_named(value).map_err(io::Error::other)
}

/// The value in `bytes`, which [`encode`] made.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    rmp_serde::from_slice(bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}
