//! The replicated catalog: a value, changed only by [`Catalog::apply`].
//!
//! What it holds are rows ([`RowKey`]), one a noun: a table, a chunk, a node, a decided transaction, a write id. The
//! rest (`index.rs`) follows from the rows and is rebuilt from them. A command is checked in full before anything is
//! written, so that a [`Reject`] leaves the catalog as it was; [`Catalog::check`] states every invariant.
//!
//! There is no clock, no randomness and no hash order in here: every access node that applies the same log has the same
//! catalog and the same rows, byte for byte.

mod access;
mod alter;
mod apply;
mod attach;
mod block;
mod boxes;
mod check;
mod chunk;
mod clock;
mod command;
mod commit;
mod compression;
mod data;
mod dimension;
mod display;
mod hypertable;
mod index;
mod job;
mod kept;
mod loss;
mod order;
pub mod rebuild;
mod replica;
mod retention;
mod row;
mod standing;
mod table;
#[cfg(test)]
mod tests;
mod txn;

pub use access::AccessNode;
pub use alter::TableChange;
pub use attach::{Detach, Notice};
pub use block::Block;
pub use check::Broken;
pub use chunk::{Chunk, ChunkState, Held, Joiner};
pub use clock::JUMP_MAX_MS;
pub use command::{Command, CommitPart, CommitRecord, HypertableSpec, Outcome, Reject};
pub use compression::{Asked, Compressed, Compression, OrderBy};
pub use data::{DataNode, Health, NodeState};
pub use dimension::{Dimension, Rule};
pub use hypertable::{DEFAULT_CHUNK_SCHEMA, Hypertable, default_min_in_sync};
pub use job::{Job, Policy, Schedule, Span};
pub use kept::ChunkOrigin;
pub use loss::Loss;
pub use order::{Order, Rebalancing};
pub use row::{Changes, RowError, RowKey};
pub use standing::Standings;
pub use table::{DEFAULT_SCHEMA, Table, TableKind};
pub use txn::{Decided, Tail, Write};

use std::collections::BTreeMap;

use hypertide_proto::ids::{
    AccessId, Boot, ChunkId, Csn, DimensionId, JobId, NodeId, Rid, TableId, TxnId, WriteId,
};
use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};

use self::index::Index;

/// The catalog. Cloning is cheap: the maps share their structure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    pub(crate) counters: Counters,
    pub(crate) tables: OrdMap<TableId, Table>,
    pub(crate) chunks: OrdMap<ChunkId, Chunk>,
    pub(crate) tails: OrdMap<ChunkId, Tail>,
    pub(crate) orders: OrdMap<(ChunkId, NodeId), Order>,
    pub(crate) jobs: OrdMap<JobId, Job>,
    pub(crate) data_nodes: OrdMap<NodeId, DataNode>,
    pub(crate) access_nodes: OrdMap<AccessId, AccessNode>,
    /// Sequence numbers of transactions that were decided and forgotten: first to last of a run.
    pub(crate) ended: OrdMap<(AccessId, Boot, u64), u64>,
    pub(crate) decided: OrdMap<TxnId, Decided>,
    pub(crate) writes: OrdMap<WriteId, Write>,
    pub(crate) index: Index,
}

/// What the catalog has one of: log time, the ids that were last given, none of which is ever given again, and settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counters {
    /// Log time in milliseconds since the Unix epoch: the latest that any leader put into the log.
    pub(crate) time_ms: u64,
    pub(crate) table: TableId,
    pub(crate) dimension: DimensionId,
    pub(crate) chunk: ChunkId,
    pub(crate) node: NodeId,
    pub(crate) job: JobId,
    /// What the clocks of access nodes show that find log time too far behind.
    pub(crate) clocks: BTreeMap<AccessId, u64>,
    pub(crate) rebalancing: Rebalancing,
}

impl Catalog {
    /// Log time: milliseconds since the Unix epoch by the leaders' clocks, and never less than before.
    #[must_use]
    pub fn time_ms(&self) -> u64 {
        self.counters.time_ms
    }

    /// The table of that name in that schema.
    #[must_use]
    pub fn table_named(&self, schema: &str, name: &str) -> Option<&Table> {
        let id = self.index.names.get(&(schema.to_owned(), name.to_owned()))?;
        self.tables.get(id)
    }

    /// The table.
    #[must_use]
    pub fn table(&self, id: TableId) -> Option<&Table> {
        self.tables.get(&id)
    }

    /// All tables, in order of their ids.
    pub fn tables(&self) -> impl Iterator<Item = &Table> {
        self.tables.values()
    }

    /// The chunk.
    #[must_use]
    pub fn chunk(&self, id: ChunkId) -> Option<&Chunk> {
        self.chunks.get(&id)
    }

    /// All chunks, in order of their ids.
    pub fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.chunks.values()
    }

    /// Replicas of a table's chunks on a node.
    #[must_use]
    pub fn replicas(&self, table: TableId, node: NodeId) -> u64 {
        self.index.replicas.get(&(table, node)).copied().unwrap_or(0)
    }

    /// The last commit of a chunk that a replica reported durable, as far as the log knows.
    #[must_use]
    pub fn applied(&self, chunk: ChunkId, rid: Rid) -> Option<Csn> {
        self.tails.get(&chunk)?.applied.get(&rid).copied()
    }

    /// The chunks of a table, in order of their ids.
    pub fn chunks_of(&self, table: TableId) -> impl Iterator<Item = &Chunk> {
        let ids = self.index.table_chunks.get(&table).into_iter().flat_map(OrdSet::iter);
        ids.filter_map(|id| self.chunks.get(id))
    }

    /// The data node.
    #[must_use]
    pub fn data_node(&self, id: NodeId) -> Option<&DataNode> {
        self.data_nodes.get(&id)
    }

    /// The data node of that name.
    #[must_use]
    pub fn data_node_named(&self, name: &str) -> Option<&DataNode> {
        self.data_nodes.values().find(|node| node.name == name)
    }

    /// All data nodes, in order of their ids.
    pub fn data_nodes(&self) -> impl Iterator<Item = &DataNode> {
        self.data_nodes.values()
    }

    /// The access node, also when it was removed.
    #[must_use]
    pub fn access_node(&self, id: AccessId) -> Option<&AccessNode> {
        self.access_nodes.get(&id)
    }

    /// The access nodes of the cluster, in order of their ids, without those that were removed.
    pub fn access_nodes(&self) -> impl Iterator<Item = &AccessNode> {
        self.access_nodes.values().filter(|node| !node.retired)
    }
}
