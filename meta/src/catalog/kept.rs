//! What data nodes keep of the catalog: enough of it to make it anew from their directories when no access node is left.
//!
//! - *Definitions*: the tables, nodes and jobs there are. Every data node has a copy, which follows the catalog.
//! - *ChunkOrigin*: where a chunk belongs, which never changes. It lies beside the chunk's rows.
//!
//! Everything else of the catalog follows from the chunks themselves (`rebuild.rs`), or belongs to transactions that end
//! with the access nodes.

use hypertide_proto::{
    ids::{ChunkId, Generation, TableId},
    time::TimeRange,
};
use serde::{Deserialize, Serialize};

use super::{
    Catalog, Chunk, Counters, RowKey, Table, TableKind,
    row::{RowError, decode, encode},
};

/// Where a chunk belongs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkOrigin {
    /// The table.
    pub table: TableId,
    /// Name.
    pub name: String,
    /// One slice per dimension.
    pub slices: Vec<TimeRange>,
    /// The n-th chunk of its box.
    pub generation: Generation,
    /// When it was made: milliseconds since the Unix epoch, by the leader's clock.
    pub created_ms: u64,
}

impl ChunkOrigin {
    /// Of a chunk.
    #[must_use]
    pub fn of(chunk: &Chunk) -> Self {
        let Chunk { table, name, slices, generation, created_ms, .. } = chunk;
        let (name, slices) = (name.clone(), slices.clone());
        Self { table: *table, name, slices, generation: *generation, created_ms: *created_ms }
    }

    /// The bytes that data nodes keep.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// The origin in these bytes; `None` when they are none.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        decode(bytes).ok()
    }
}

impl Catalog {
    /// The definitions, as bytes: rows in order of their keys.
    #[must_use]
    pub fn definitions(&self) -> Vec<u8> {
        let tables = self.tables.iter().map(|(id, table)| (*id, table.of_definitions())).collect();
        let kept = Self { counters: self.counters.of_definitions(), tables, ..self.clone() };
        let keys = kept.row_keys().filter(is_definition);
        let rows = keys.filter_map(|key| Some((key.to_bytes(), kept.row(&key)?)));
        encode(&rows.collect::<Vec<_>>())
    }

    /// The catalog of these definitions, without a chunk.
    pub fn from_definitions(bytes: &[u8]) -> Result<Self, RowError> {
        let rows = decode::<Vec<(Vec<u8>, Vec<u8>)>>(bytes)
            .map_err(|error| RowError { key: String::new(), reason: error.to_string() })?;
        Self::from_rows(rows)
    }

    /// Whether the definitions of two catalogs are the same, for sure. Takes no time that grows with the catalogs.
    #[must_use]
    pub fn shares_definitions(&self, other: &Self) -> bool {
        self.tables.ptr_eq(&other.tables)
            && self.jobs.ptr_eq(&other.jobs)
            && self.data_nodes.ptr_eq(&other.data_nodes)
            && self.access_nodes.ptr_eq(&other.access_nodes)
            && self.counters.of_definitions() == other.counters.of_definitions()
    }
}

impl Table {
    /// Without the number of chunks that were named, which each new one changes: their names are with the chunks.
    fn of_definitions(&self) -> Self {
        let mut table = self.clone();
        if let TableKind::Hypertable(made) = &mut table.kind {
            made.next_chunk = 1;
        }
        table
    }
}

impl Counters {
    /// Without what changes all the time.
    fn of_definitions(&self) -> Self {
        Self { time_ms: 0, chunk: ChunkId(0), clocks: Default::default(), ..self.clone() }
    }
}

fn is_definition(key: &RowKey) -> bool {
    match key {
        RowKey::Counters
        | RowKey::Table(_)
        | RowKey::Data(_)
        | RowKey::Access(_)
        | RowKey::Job(_) => true,
        RowKey::Chunk(_)
        | RowKey::Tail(_)
        | RowKey::Ended(..)
        | RowKey::Decided(_)
        | RowKey::Write(_)
        | RowKey::Order(..) => false,
    }
}
