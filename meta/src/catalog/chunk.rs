//! Chunks and their replicas.

use std::fmt;

use hypertide_proto::{
    ids::{ChunkId, Csn, Epoch, Generation, NodeId, Rid, TableId},
    time::TimeRange,
};
use serde::{Deserialize, Serialize};

use super::{Asked, Catalog, Compressed, Loss, Outcome, Reject, apply::Step, index::Corner};

/// The product of one slice per dimension: the unit of placement.
///
/// - `in_sync` is not empty unless the chunk is [`ChunkState::Damaged`].
/// - No node stands twice in `in_sync` and `joining` together, nor twice in `left`, nor in `in_sync` and `left`.
/// - Who joined or left did so at a commit there was.
/// - Open chunks of one table do not overlap, and neither do closed ones unless their boxes are the same and their
///   generations differ.
/// - Time slices of one table are equal or have no point in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Identity; never reused.
    pub id: ChunkId,
    /// The table.
    pub table: TableId,
    /// Name, such as `_dist_hyper_1_1_chunk`.
    pub name: String,
    /// One slice per dimension, in the dimensions' order; none for a reference table.
    pub slices: Vec<TimeRange>,
    /// The n-th chunk of this box.
    pub generation: Generation,
    /// Whether it takes rows.
    pub state: ChunkState,
    /// Fencing number.
    pub epoch: Epoch,
    /// Replicas whose acknowledgement every commit needs.
    pub in_sync: Vec<Rid>,
    /// Replicas that catch up; commits need them too.
    pub joining: Vec<Joiner>,
    /// Replicas that left, with the last commit then; of a damaged chunk also those that lost some of its commits, with the
    /// last they hold.
    pub left: Vec<(Rid, Csn)>,
    /// Last commit.
    pub last_csn: Csn,
    /// Running hash over the commits, by [`hypertide_proto::decision::chain_after`].
    pub chain: u128,
    /// Rows committed.
    pub rows: u64,
    /// When it was made: milliseconds since the Unix epoch, by the leader's clock.
    pub created_ms: u64,
    /// How it was compressed last; `None` when it never was, or was decompressed since.
    pub compressed: Option<Compressed>,
    /// What was asked of its compression last; `None` when nothing ever was.
    pub asked: Option<Asked>,
    /// Commits that an operator gave up. No replica that holds one of them is of use.
    pub lost: Vec<Loss>,
}

/// A replica that catches up. Every commit since it started needs it, so that it holds all that came after
/// `csn` once it has what came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joiner {
    /// The replica.
    pub rid: Rid,
    /// The chunk's last commit when it started.
    pub csn: Csn,
    /// The chunk's running hash then.
    pub chain: u128,
}

/// A place in a chunk's commits that a replica proves to hold durably, with all before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The chunk.
    pub chunk: ChunkId,
    /// The last commit.
    pub csn: Csn,
    /// The running hash over the commits up to it, as the replica computed it.
    pub chain: u128,
}

/// Whether a chunk takes rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkState {
    /// It may be appended to.
    Open,
    /// It never changes again.
    Sealed,
    /// Its last in-sync disk is gone. It waits until an operator takes one of those that left for all there is.
    Damaged,
}

impl Chunk {
    /// Its slice of time; all of time for a reference table's.
    #[must_use]
    pub fn time(&self) -> TimeRange {
        self.slices.first().copied().unwrap_or(TimeRange::ALL)
    }

    /// Its slice of the first hash dimension; all hashes when there is none.
    pub(crate) fn placing(&self) -> TimeRange {
        self.slices.get(1).copied().unwrap_or(TimeRange::ALL)
    }

    /// Whether its box holds a point of as many coordinates as it has slices.
    #[must_use]
    pub fn holds(&self, point: &[i64]) -> bool {
        self.slices.len() == point.len()
            && self.slices.iter().zip(point).all(|(slice, at)| slice.contains(*at))
    }

    /// Replicas in sync and those joining.
    pub fn members(&self) -> impl Iterator<Item = Rid> {
        self.in_sync.iter().copied().chain(self.joining.iter().map(|joiner| joiner.rid))
    }

    /// Replicas whose acknowledgement a commit needs: all members. One that joins has to miss nothing from then on.
    pub fn write_set(&self) -> impl Iterator<Item = Rid> {
        let members = self.members();
        #[cfg(feature = "bug_ignore_joining")]
        let members = members.filter(|rid| {
            !hypertide_proto::planted::shown("bug_ignore_joining") || self.in_sync.contains(rid)
        });
        members
    }

    /// Replicas that left and have missed no commit since: any of them may stand in for the last in-sync disk.
    pub fn complete_left(&self) -> impl Iterator<Item = Rid> {
        let complete = self.left.iter().filter(|(_, csn)| *csn == self.last_csn);
        complete.map(|(rid, _)| *rid)
    }

    /// Whether rows were committed since the chunk was compressed.
    #[must_use]
    pub fn partially_compressed(&self) -> bool {
        self.compressed.is_some_and(|compressed| compressed.csn < self.last_csn)
    }

    /// Nodes of the members.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.members().map(|rid| rid.node)
    }

    /// Where its box begins.
    pub(crate) fn corner(&self) -> Corner {
        (self.table, self.time().start(), self.placing().start(), self.id)
    }
}

impl fmt::Display for ChunkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Sealed => "sealed",
            Self::Damaged => "damaged",
        })
    }
}

impl fmt::Display for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, table, name, generation, state, epoch, .. } = self;
        write!(f, "chunk {id} {table} {name} {generation} {state} {epoch}")?;
        self.slices.iter().try_for_each(|slice| write!(f, " {slice}"))?;
        write!(f, " in_sync={}", super::display::list(&self.in_sync))?;
        self.joining.iter().try_for_each(|at| write!(f, " joining={}@{}", at.rid, at.csn))?;
        self.left.iter().try_for_each(|(rid, csn)| write!(f, " left={rid}@{csn}"))?;
        write!(f, " last={} rows={}", self.last_csn, self.rows)?;
        self.lost.iter().try_for_each(|loss| write!(f, " lost={loss}"))?;
        self.asked.iter().try_for_each(|asked| write!(f, " {asked}"))?;
        self.compressed.iter().try_for_each(|compressed| write!(f, " {compressed}"))
    }
}

impl Catalog {
    /// Drops chunks of a table. Those that are gone, or another table's, are not in the outcome: the retry of a
    /// command whose answer was lost drops nothing more.
    pub(crate) fn drop_chunks(
        &mut self,
        table: TableId,
        chunks: &[ChunkId],
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        self.existing(table)?;
        let of_table = |id: &ChunkId| self.chunk(*id).is_some_and(|chunk| chunk.table == table);
        let mut dropped: Vec<ChunkId> = chunks.iter().copied().filter(of_table).collect();
        dropped.sort_unstable();
        dropped.dedup();
        self.remove_chunks(&dropped, step);
        Ok(Outcome::Dropped(dropped))
    }

    pub(crate) fn remove_chunks(&mut self, ids: &[ChunkId], step: &mut Step) {
        ids.iter().for_each(|id| self.remove_chunk(*id, step));
    }
}
