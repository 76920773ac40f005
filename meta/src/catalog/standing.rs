//! How well chunks are replicated: what they should have against what the catalog counts as theirs.

use hypertide_proto::ids::ChunkId;

use super::{Catalog, Chunk, ChunkState, DataNode, Table, TableKind};

/// Numbers of chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standings {
    /// All.
    pub total: u64,
    /// With all the replicas that they should have.
    pub in_sync: u64,
    /// With fewer.
    pub under_replicated: u64,
    /// With a replica that catches up.
    pub joining: u64,
    /// Of which no replica is complete any more, or one has wrong bytes.
    pub damaged: u64,
    /// Of which no replica in sync serves.
    pub unavailable: u64,
}

impl Catalog {
    /// Replicas that the chunks of a table should have.
    #[must_use]
    pub fn replicas_wanted(&self, table: &Table) -> usize {
        match &table.kind {
            TableKind::Reference => self.data_nodes().filter(|node| self.joins_here(node)).count(),
            TableKind::Hypertable(made) => {
                usize::from(made.replication_factor).min(made.data_nodes.len())
            }
        }
    }

    /// Whether reference tables are wanted on the node: there are rows to join them with, or there may be.
    fn joins_here(&self, node: &DataNode) -> bool {
        let of_hypertables =
            |table: &Table| table.hypertable().is_some() && self.replicas(table.id, node.id()) > 0;
        !node.draining || self.tables().any(of_hypertables)
    }

    /// Counts all chunks. `wrong` tells of which chunks a replica was found to have wrong bytes.
    #[must_use]
    pub fn standings(&self, wrong: impl Fn(ChunkId) -> bool) -> Standings {
        let mut sum = Standings::default();
        for table in self.tables() {
            let wanted = self.replicas_wanted(table);
            for chunk in self.chunks_of(table.id) {
                sum.add(chunk, wanted, wrong(chunk.id));
                let serves = |node: &DataNode| node.serves();
                let mut nodes = chunk.in_sync.iter().map(|rid| self.data_node(rid.node));
                sum.unavailable += u64::from(!nodes.any(|node| node.is_some_and(serves)));
            }
        }
        sum
    }
}

impl Standings {
    fn add(&mut self, chunk: &Chunk, wanted: usize, wrong: bool) {
        let whole = chunk.in_sync.len() >= wanted;
        self.total += 1;
        self.in_sync += u64::from(whole);
        self.under_replicated += u64::from(!whole);
        self.joining += u64::from(!chunk.joining.is_empty());
        self.damaged += u64::from(wrong || chunk.state == ChunkState::Damaged);
    }
}
