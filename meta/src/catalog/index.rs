//! What follows from the rows: kept beside them for speed, rebuilt from them on a start.

use hypertide_proto::{
    decision::Fate,
    ids::{ChunkId, Csn, NodeId, TableId, TxnId, WriteId},
};
use imbl::{OrdMap, OrdSet};

use super::{Catalog, Chunk, Decided, RowKey, Table, apply::Step};

/// Where a chunk's box begins: its table, its time slice, the slice of its first hash dimension.
pub(crate) type Corner = (TableId, i64, i64, ChunkId);

/// Maps that follow from the rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    /// Tables by schema and name.
    pub(crate) names: OrdMap<(String, String), TableId>,
    /// Chunks by table.
    pub(crate) table_chunks: OrdMap<TableId, OrdSet<ChunkId>>,
    /// Chunks by where their boxes begin.
    pub(crate) corners: OrdSet<Corner>,
    /// Replicas of a table's chunks on a node.
    pub(crate) replicas: OrdMap<(TableId, NodeId), u64>,
    /// Commits that a replica of the chunk may still have to learn of.
    pub(crate) retained: OrdMap<(ChunkId, Csn), TxnId>,
    /// How many chunks still retain a committed transaction.
    pub(crate) waiting: OrdMap<TxnId, u64>,
    /// Decided transactions that no chunk retains, by the time of the decision.
    pub(crate) settled: OrdSet<(u64, TxnId)>,
    /// Write ids by time.
    pub(crate) writes: OrdSet<(u64, WriteId)>,
}

impl Index {
    /// The index of the catalog's rows.
    pub(crate) fn of(catalog: &Catalog) -> Self {
        let mut index = Self::default();
        catalog.tables.values().for_each(|table| index.add_table(table));
        catalog.chunks.values().for_each(|chunk| index.add_chunk(chunk));
        for (txn, decided) in &catalog.decided {
            // A chunk that is gone, or whose replicas all have the commit, retains nothing.
            let retains = |chunk: ChunkId, csn: Csn| {
                let floor = catalog.tails.get(&chunk).map_or(Csn(0), |tail| tail.floor);
                catalog.chunks.contains_key(&chunk) && csn > floor
            };
            index.add_decided(*txn, decided, retains);
        }
        for (id, write) in &catalog.writes {
            index.writes.insert((write.at_ms, *id));
        }
        index
    }

    fn add_table(&mut self, table: &Table) {
        self.names.insert((table.schema.clone(), table.name.clone()), table.id);
    }

    fn add_chunk(&mut self, chunk: &Chunk) {
        self.table_chunks.entry(chunk.table).or_default().insert(chunk.id);
        self.corners.insert(chunk.corner());
        for node in chunk.nodes() {
            *self.replicas.entry((chunk.table, node)).or_insert(0) += 1;
        }
    }

    fn remove_chunk(&mut self, chunk: &Chunk) {
        if let Some(ids) = self.table_chunks.get_mut(&chunk.table) {
            ids.remove(&chunk.id);
            if ids.is_empty() {
                self.table_chunks.remove(&chunk.table);
            }
        }
        self.corners.remove(&chunk.corner());
        for node in chunk.nodes() {
            let key = (chunk.table, node);
            match self.replicas.get_mut(&key) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.replicas.remove(&key)),
            }
        }
    }

    /// Adds a decided transaction; `retains` tells whether a chunk retains its commit.
    pub(crate) fn add_decided(
        &mut self,
        txn: TxnId,
        decided: &Decided,
        retains: impl Fn(ChunkId, Csn) -> bool,
    ) {
        let mut chunks = 0;
        if let Fate::Committed { csn, links } = &decided.fate {
            for link in links.iter().filter(|link| retains(link.chunk, *csn)) {
                self.retained.insert((link.chunk, *csn), txn);
                chunks += 1;
            }
        }
        if chunks > 0 {
            self.waiting.insert(txn, chunks);
        } else {
            self.settled.insert((decided.at_ms, txn));
        }
    }
}

/// Writes of rows that the index follows: nothing else writes those maps.
impl Catalog {
    pub(crate) fn put_table(&mut self, table: Table, step: &mut Step) {
        step.changes.touch(RowKey::Table(table.id));
        if let Some(old) = self.tables.get(&table.id) {
            self.index.names.remove(&(old.schema.clone(), old.name.clone()));
        }
        self.index.add_table(&table);
        self.tables.insert(table.id, table);
    }

    pub(crate) fn remove_table(&mut self, id: TableId, step: &mut Step) {
        if let Some(table) = self.tables.remove(&id) {
            step.changes.touch(RowKey::Table(id));
            self.index.names.remove(&(table.schema, table.name));
        }
    }

    /// Adds a chunk, or replaces it.
    pub(crate) fn put_chunk(&mut self, chunk: Chunk, step: &mut Step) {
        step.changes.touch(RowKey::Chunk(chunk.id));
        if let Some(old) = self.chunks.get(&chunk.id) {
            self.index.remove_chunk(old);
        }
        self.index.add_chunk(&chunk);
        self.chunks.insert(chunk.id, chunk);
    }

    /// Removes a chunk with its tail, and lets go of the commits it retains.
    pub(crate) fn remove_chunk(&mut self, id: ChunkId, step: &mut Step) {
        let Some(chunk) = self.chunks.remove(&id) else { return };
        step.changes.touch(RowKey::Chunk(id));
        self.index.remove_chunk(&chunk);
        self.release(id, chunk.last_csn);
        if self.tails.remove(&id).is_some() {
            step.changes.touch(RowKey::Tail(id));
        }
        let orders = self.orders.range((id, NodeId(0))..=(id, NodeId(u64::MAX)));
        let orders: Vec<(ChunkId, NodeId)> = orders.map(|(key, _)| *key).collect();
        orders.into_iter().for_each(|key| self.remove_order(key, step));
    }
}
