//! What transactions have reserved in a chunk, and how long the rows of deletes stay.
//!
//! What a commit reserved is kept, so that a transaction which does not know of it is refused. What is not kept any more
//! lies at or below [`Replica::known`].

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::array::RecordBatch;
use hypertide_proto::ids::{ChunkId, Csn};

use super::{Commit, Replica, Replicas, Rows};
use crate::{Error, Tombstone, store::memory::Charge, tables::PartKey};

/// Commits of a chunk whose reservations are kept, and places in all of them.
const RESERVED_MAX: usize = 4096;
const RESERVED_PLACES_MAX: usize = 1 << 20;

/// Why a reservation is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Contention {
    /// A commit has changed the same: only a later snapshot helps.
    Committed(String),
    /// Another transaction is about to; it may still be aborted.
    Pending(String),
}

impl Replicas {
    /// Why what a tombstone reserves cannot be: another transaction, which it does not know of, has it.
    ///
    /// Rows that came after its snapshot do not count: it does not touch them.
    pub(crate) fn contention(&self, key: PartKey, tombstone: &Tombstone) -> Option<Contention> {
        let replica = self.chunks.get(&key.chunk)?;
        let snapshot = tombstone.snapshot;
        let later = replica.reserved.range(snapshot.next()..);
        let mut later = later.flat_map(|(csn, all)| all.iter().map(move |other| (*csn, other)));
        let crossed = later.find(|(_, other)| tombstone.meets(other.touched.as_deref()));
        let crossed = crossed.map(|(csn, _)| csn);
        if let Some(last) = crossed.or(Some(replica.known).filter(|known| *known > snapshot)) {
            let what = format!("commit {last} changed the same after {snapshot}");
            return Some(Contention::Committed(what));
        }
        let others = self.pending.iter().filter(|(txn, _)| **txn != key.txn);
        for (txn, pending) in others {
            let parts = pending.parts.range((key.chunk, 0)..=(key.chunk, u32::MAX));
            let mut held = parts.filter_map(|(_, rows)| rows.tombstone.as_ref());
            if held.any(|other| tombstone.meets(other.touched.as_deref())) {
                return Some(Contention::Pending(format!("{txn} is about to change the same")));
            }
        }
        None
    }

    /// Deletes of a chunk that its rows still wait for.
    pub(crate) fn delete_count(&self, chunk: ChunkId) -> u64 {
        let Some(replica) = self.chunks.get(&chunk) else { return 0 };
        let recent = replica.commits.values().flat_map(Commit::deletes).count() as u64;
        replica.stored.deletes + recent
    }

    /// The commit up to which all deletes of a chunk are older than `age`; those from before `opened` count from there.
    pub(crate) fn deletes_aged(
        &self,
        chunk: ChunkId,
        age: Duration,
        (opened, now): (Instant, Instant),
    ) -> Csn {
        let Some(replica) = self.chunks.get(&chunk) else { return Csn(0) };
        let young =
            |at: &Option<Instant>| now.saturating_duration_since(at.unwrap_or(opened)) < age;
        let first = replica.deleted_at.iter().find(|(_, at)| young(at));
        first.map_or(Csn(u64::MAX), |(csn, _)| Csn(csn.0.saturating_sub(1)))
    }

    /// Chunks whose segments hold rows of deletes that are old enough to take them out: all of them, or one for twice
    /// as long, so that a chunk which is deleted from all the time is not written anew all the time. Deletes after
    /// `held`, the oldest snapshot that somebody reads by, are not.
    pub(crate) fn with_deletes(
        &self,
        age: Duration,
        held: Csn,
        times: (Instant, Instant),
    ) -> Vec<ChunkId> {
        let (opened, now) = times;
        let old = |(csn, at): (&Csn, &Option<Instant>)| {
            let since = now.saturating_duration_since(at.unwrap_or(opened));
            *csn <= held && since >= age * 2
        };
        let waiting = |(_, replica): &(&ChunkId, &Replica)| {
            let whole = replica.damaged.is_none() && replica.suspect.is_none();
            replica.stored.deletes > 0 && whole && replica.removed.is_none()
        };
        let due = |(chunk, replica): &(&ChunkId, &Replica)| {
            let all_seen = replica.deleted_at.keys().all(|csn| *csn <= held);
            all_seen && self.deletes_aged(**chunk, age, times) == Csn(u64::MAX)
                || replica.deleted_at.iter().any(old)
        };
        self.chunks.iter().filter(waiting).filter(due).map(|(chunk, _)| *chunk).collect()
    }
}

/// The last of the commits that reserved something; 0 when none did.
pub(crate) fn last_reserved(commits: &[Commit]) -> Csn {
    let reserving = |commit: &&Commit| commit.parts.iter().any(|rows| rows.tombstone.is_some());
    commits.iter().filter(reserving).map(|commit| commit.csn).max().unwrap_or_default()
}

/// Parts of one transaction in the order of their numbers, without the rows that its own later deletes take.
pub(crate) fn without_own(mut parts: Vec<Arc<Rows>>) -> Result<Vec<Arc<Rows>>, Error> {
    for at in 0..parts.len() {
        let (before, rest) = parts.split_at_mut(at);
        let taking = rest.first().and_then(|rows| rows.tombstone.as_ref());
        let Some(taking) = taking.filter(|tombstone| tombstone.takes_rows()) else { continue };
        for rows in before.iter_mut().filter(|rows| !rows.batches.is_empty()) {
            let batches = taking.leave_own(rows.batches.clone())?;
            if batches.iter().map(RecordBatch::num_rows).sum::<usize>() as u64 != rows.count() {
                let Rows { key, epoch, hash, .. } = **rows;
                // What is left is a copy, and smaller: the memory is counted for no more than what came.
                let (tombstone, charge) = (None, Charge::default());
                *rows = Arc::new(Rows { key, epoch, hash, batches, tombstone, charge });
            }
        }
    }
    Ok(parts)
}

impl Replica {
    /// Remembers what a commit reserved.
    pub(super) fn reserve(&mut self, csn: Csn, parts: &[Arc<Rows>]) {
        let tombstones = parts.iter().filter_map(|rows| rows.tombstone.as_ref());
        let reserving = |tombstone: &Tombstone| {
            Tombstone::reserving(tombstone.snapshot, tombstone.touched.clone())
        };
        let reserved: Vec<Tombstone> = tombstones.map(reserving).collect();
        if reserved.is_empty() || csn <= self.known {
            return;
        }
        self.reserved_places += places(&reserved);
        self.reserved.insert(csn, reserved);
        while (self.reserved.len() > RESERVED_MAX || self.reserved_places > RESERVED_PLACES_MAX)
            && let Some((oldest, gone)) = self.reserved.pop_first()
        {
            self.reserved_places -= places(&gone);
            self.known = self.known.max(oldest);
        }
    }

    /// Notes that what commits up to there reserved is not known here.
    pub(super) fn forget_reserved(&mut self, csn: Csn) {
        self.known = self.known.max(csn);
        let later = self.reserved.split_off(&self.known.next());
        let gone = std::mem::replace(&mut self.reserved, later);
        self.reserved_places -= gone.values().map(|all| places(all)).sum::<usize>();
    }
}

/// Places that tombstones reserve one by one.
fn places(all: &[Tombstone]) -> usize {
    all.iter().map(|one| one.touched.as_ref().map_or(0, Vec::len)).sum()
}
