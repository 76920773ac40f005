//! The replicas of a data node in memory, as a value: pending parts, committed rows, and how far each chunk is.
//!
//! ```text
//! part      absent --prepare--> pending --commit--> committed --flush--> in a segment
//!                               pending --abort--> absent
//! ```
//!
//! - A transaction is visible as soon as its commit is known, and counts as applied only when its decision is on
//!   disk, every earlier commit of the chunk is applied, and its `prev` is the last of them. So `applied` only moves
//!   forward, without a gap, and what it says is durable.
//! - `flushed <= applied`: only applied commits go into segments, so that one number tells which are there.
//! - A commit at or before `applied` is never taken in again, however late a repeated prepare comes.
//! - A part that was acknowledged and lost keeps its transaction pending until its fate is known: the acknowledgement
//!   may count until then, so that the replica must not pass for whole. If it was committed, the journal keeps the part
//!   and the decision until the commit came from another replica: every start finds the chunk damaged until then.
//! - The chain is the same on every replica that applied the same commits.
//! - A replica that the catalog has no more stays as it is for older snapshots, and is reported no more (`chunk/removed.rs`).
//! - Of two transactions that reserve the same, and of which neither knows the other, every replica that has seen both
//!   refuses one. What was reserved by commits that came in an earlier run, or from another replica, is not known in
//!   detail: a transaction that does not know them is refused whatever it reserves.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::array::RecordBatch;
use hypertide_proto::{
    decision::{ChunkLink, Decision, Fate, chain_after},
    ids::{ChunkId, Csn, Epoch, TxnId},
};
use xxhash_rust::xxh3::Xxh3;

use crate::{
    ChunkReport, ChunkSpec, ChunkState, Tombstone,
    store::memory::Charge,
    tables::{CommitRow, Compressed, PartKey, Point},
    tombstone::Delete,
};

mod removed;
mod reserved;
mod settled;

pub(crate) use removed::Presence;
use removed::Removed;
pub(crate) use reserved::{Contention, last_reserved, without_own};

/// The hash of a transaction's rows for one chunk: xxh3-128 over the big-endian hashes of its parts in order of number.
#[must_use]
pub fn part_hash(hashes: impl Iterator<Item = u128>) -> u128 {
    let mut hash = Xxh3::new();
    hashes.for_each(|part| hash.update(&part.to_be_bytes()));
    hash.digest128()
}

/// Decoded rows of a part.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) key: PartKey,
    /// The epoch that its sender knew.
    pub(crate) epoch: Epoch,
    pub(crate) hash: u128,
    pub(crate) batches: Vec<RecordBatch>,
    /// A delete instead of rows.
    pub(crate) tombstone: Option<Tombstone>,
    /// Held as long as the rows are in memory.
    pub(crate) charge: Charge,
}

impl Rows {
    fn count(&self) -> u64 {
        self.batches.iter().map(|batch| batch.num_rows() as u64).sum()
    }
}

#[derive(Debug)]
struct Pending {
    parts: BTreeMap<(ChunkId, u32), Arc<Rows>>,
    since: Instant,
}

/// A committed transaction's rows in one chunk.
#[derive(Clone, Debug)]
pub(crate) struct Commit {
    pub(crate) csn: Csn,
    pub(crate) parts: Vec<Arc<Rows>>,
    txn: TxnId,
    /// The chunk's commit before this one; `None` when the decision did not name the chunk.
    prev: Option<Csn>,
    hash: u128,
    rows: u64,
    bytes: usize,
    durable: bool,
    since: Instant,
}

/// What a chunk's file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) flushed: Point,
    pub(crate) segments: u64,
    pub(crate) bytes: u64,
    /// Rows that deletes took out of the segments.
    pub(crate) removed: u64,
    /// Snapshots before it cannot be read any more.
    pub(crate) horizon: Csn,
    /// The last commit that deleted.
    pub(crate) deleted: Csn,
    /// Deletes that its segments still hold rows of.
    pub(crate) deletes: u64,
    pub(crate) compressed: Option<Compressed>,
}

#[derive(Debug, Default)]
struct Replica {
    spec: Option<ChunkSpec>,
    stored: Stored,
    applied: Point,
    commits: BTreeMap<Csn, Commit>,
    /// When deletes came, those of the file before all in this run.
    deleted_at: BTreeMap<Csn, Option<Instant>>,
    /// What commits after `known` reserved: of those up to it nothing is known here any more.
    reserved: BTreeMap<Csn, Vec<Tombstone>>,
    reserved_places: usize,
    known: Csn,
    /// Why the whole replica cannot be used.
    damaged: Option<String>,
    /// A scan met wrong bytes; what else there is may still be read.
    suspect: Option<String>,
    /// The catalog has it no more.
    removed: Option<Removed>,
}

/// How a part that came stands to what is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is new.
    New,
    /// It is here already.
    Known,
    /// Other bytes came under its name before.
    Conflict,
}

/// What a decision did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decided {
    /// No part of the transaction is pending.
    Unknown,
    /// Its parts are gone.
    Aborted {
        /// To be removed from the journal.
        removed: Vec<PartKey>,
    },
    /// Its rows are visible.
    Committed {
        /// Parts that came again after the commit was applied; to be removed from the journal.
        removed: Vec<PartKey>,
        /// Whether the decision must be journaled.
        kept: bool,
    },
}

/// Journal rows that are of no use any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Released {
    pub(crate) parts: Vec<PartKey>,
    pub(crate) decisions: Vec<TxnId>,
}

/// What is to be written to a segment.
#[derive(Clone, Debug)]
pub(crate) struct FlushPlan {
    pub(crate) spec: ChunkSpec,
    pub(crate) commits: Vec<Commit>,
    /// How far the chunk is flushed afterwards.
    pub(crate) to: Point,
}

/// How a replica stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    /// Known after a part came, or from the file of the chunk.
    pub(crate) spec: Option<ChunkSpec>,
    pub(crate) stored: Stored,
    pub(crate) applied: Point,
    /// Applied commits that are not in a segment.
    pub(crate) recent: Vec<Commit>,
    /// Some of its bytes are wrong.
    pub(crate) damaged: bool,
    /// A part of an open transaction was acknowledged and is lost.
    pub(crate) lost: bool,
}

/// What came from another replica and is in the chunk's file now.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) spec: ChunkSpec,
    pub(crate) stored: Stored,
    /// All that the file held before is gone.
    pub(crate) whole: bool,
    /// Transactions whose commits came.
    pub(crate) txns: BTreeSet<TxnId>,
    pub(crate) at: Instant,
}

/// What a scan sees in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// Rows with the commit that brought them; the last of all for those that are pending.
    pub(crate) recent: Vec<(Csn, Arc<Rows>)>,
    /// Deletes among them.
    pub(crate) deletes: Vec<Tombstone>,
    pub(crate) stored: Stored,
    pub(crate) presence: Presence,
}

/// All replicas of a data node.
#[derive(Debug, Default)]
pub(crate) struct Replicas {
    chunks: BTreeMap<ChunkId, Replica>,
    pending: BTreeMap<TxnId, Pending>,
    /// Parts in the journal that have wrong bytes, of transactions whose fate is not known.
    lost: BTreeMap<TxnId, BTreeSet<PartKey>>,
    /// Parts of commits of which a part is lost: not here, and kept in the journal as evidence.
    gone: BTreeMap<ChunkId, BTreeMap<PartKey, Csn>>,
    /// Chunks of committed transactions whose parts are still in the journal.
    journaled: BTreeMap<TxnId, BTreeSet<ChunkId>>,
}

impl Replicas {
    /// Takes in what a chunk's file holds.
    pub(crate) fn restore(&mut self, chunk: ChunkId, stored: Stored) {
        let replica = self.chunks.entry(chunk).or_default();
        replica.stored = stored;
        replica.applied = stored.flushed;
        replica.forget_reserved(stored.deleted);
        if stored.deletes > 0 {
            replica.deleted_at.insert(stored.deleted, None);
        }
    }

    /// How a part stands to what is known.
    pub(crate) fn admit(&self, key: PartKey, hash: u128) -> Admission {
        let pending = self.pending.get(&key.txn);
        let pending = pending.and_then(|pending| pending.parts.get(&(key.chunk, key.number)));
        let known = pending.map(|rows| rows.hash).or_else(|| self.committed_hash(key));
        match known {
            None => Admission::New,
            Some(known) if known == hash => Admission::Known,
            Some(_) => Admission::Conflict,
        }
    }

    fn committed_hash(&self, key: PartKey) -> Option<u128> {
        if !self.journaled.get(&key.txn)?.contains(&key.chunk) {
            return None;
        }
        let commits = self.chunks.get(&key.chunk)?.commits.values();
        let mut parts = commits.filter(|commit| commit.txn == key.txn).flat_map(|c| &c.parts);
        parts.find(|rows| rows.key == key).map(|rows| rows.hash)
    }

    /// Adds a part that [`Replicas::admit`] found new.
    pub(crate) fn prepare(&mut self, spec: ChunkSpec, rows: Arc<Rows>, now: Instant) {
        let key = rows.key;
        self.chunks.entry(key.chunk).or_default().spec = Some(spec);
        let pending = self.pending.entry(key.txn);
        let pending = pending.or_insert_with(|| Pending { parts: BTreeMap::new(), since: now });
        pending.parts.insert((key.chunk, key.number), rows);
    }

    /// Notes that a part in the journal has wrong bytes.
    pub(crate) fn lose(&mut self, key: PartKey, what: &str) {
        self.mark_damaged(key.chunk, what);
        self.lost.entry(key.txn).or_default().insert(key);
    }

    /// Takes in what the log decided. `durable` says that the decision is on disk already.
    pub(crate) fn decide(&mut self, decision: &Decision, durable: bool, now: Instant) -> Decided {
        let pending = self.pending.remove(&decision.txn);
        let lost = self.lost.remove(&decision.txn);
        if pending.is_none() && lost.is_none() {
            return Decided::Unknown;
        }
        let parts = pending.map(|pending| pending.parts).unwrap_or_default();
        let lost = lost.unwrap_or_default();
        let Fate::Committed { csn, links } = &decision.fate else {
            let removed = lost.into_iter().chain(parts.values().map(|rows| rows.key)).collect();
            return Decided::Aborted { removed };
        };
        let mut by_chunk: BTreeMap<ChunkId, (Vec<Arc<Rows>>, Vec<PartKey>)> = BTreeMap::new();
        for ((chunk, _), rows) in parts {
            by_chunk.entry(chunk).or_default().0.push(rows);
        }
        for key in lost {
            by_chunk.entry(key.chunk).or_default().1.push(key);
        }
        let (mut removed, mut kept) = (Vec::new(), false);
        for (chunk, (parts, lost)) in by_chunk {
            let replica = self.chunks.entry(chunk).or_default();
            let keys = parts.iter().map(|rows| rows.key).chain(lost.iter().copied());
            let prev = prev_of(links, chunk);
            // Without a link it is no commit of this chunk: it went to another one, or was given up here.
            let other = prev.is_none();
            if other || *csn <= replica.applied.csn || replica.commits.contains_key(csn) {
                removed.extend(keys);
                continue;
            }
            kept = true;
            self.journaled.entry(decision.txn).or_default().insert(chunk);
            if !lost.is_empty() {
                self.gone.entry(chunk).or_default().extend(keys.map(|key| (key, *csn)));
                continue;
            }
            replica.reserve(*csn, &parts);
            let parts = match without_own(parts.clone()) {
                Ok(parts) => parts,
                Err(error) => {
                    let what = format!("commit {csn} cannot delete from itself: {error}");
                    replica.damaged.get_or_insert(what);
                    parts
                }
            };
            let commit = Commit::new(decision.txn, (*csn, prev), parts, now);
            if commit.deletes().next().is_some() {
                replica.deleted_at.insert(*csn, Some(now));
            }
            replica.commits.insert(*csn, Commit { durable, ..commit });
            replica.advance();
        }
        Decided::Committed { removed, kept }
    }

    /// Notes that the decisions of these transactions are on disk.
    pub(crate) fn decisions_durable(&mut self, txns: &[TxnId]) {
        for txn in txns {
            for chunk in self.journaled.get(txn).into_iter().flatten() {
                let Some(replica) = self.chunks.get_mut(chunk) else { continue };
                let commits = replica.commits.values_mut();
                commits
                    .filter(|commit| commit.txn == *txn)
                    .for_each(|commit| commit.durable = true);
                replica.advance();
            }
        }
    }

    /// Transactions with pending rows in any of these chunks (all chunks when empty), with the age of each.
    pub(crate) fn pending(&self, chunks: &[ChunkId], now: Instant) -> Vec<(TxnId, Duration)> {
        let concerned = |pending: &Pending| {
            chunks.is_empty() || pending.parts.keys().any(|(chunk, _)| chunks.contains(chunk))
        };
        let found = self.pending.iter().filter(|(_, pending)| concerned(pending));
        let found =
            found.map(|(txn, pending)| (*txn, now.saturating_duration_since(pending.since)));
        let mut found: BTreeMap<TxnId, Duration> = found.collect();
        for (txn, keys) in &self.lost {
            if chunks.is_empty() || keys.iter().any(|key| chunks.contains(&key.chunk)) {
                // It is from before the start, and as old as can be.
                found.insert(*txn, Duration::MAX);
            }
        }
        found.into_iter().collect()
    }

    /// Commits of the chunk that may go into a segment; `None` when there are none.
    pub(crate) fn plan_flush(&self, chunk: ChunkId) -> Option<FlushPlan> {
        let replica = self.chunks.get(&chunk)?;
        if replica.damaged.is_some() {
            return None;
        }
        let commits: Vec<Commit> = replica
            .commits
            .range(..=replica.applied.csn)
            .map(|(_, commit)| commit.clone())
            .collect();
        let spec = replica.spec.clone()?;
        (!commits.is_empty()).then_some(FlushPlan { spec, commits, to: replica.applied })
    }

    /// Chunks whose applied commits take at least `bytes`, or are older than `age`; largest first.
    pub(crate) fn due(&self, bytes: usize, age: Duration, now: Instant) -> Vec<ChunkId> {
        let mut due = Vec::new();
        for (chunk, replica) in &self.chunks {
            let ready = || replica.commits.range(..=replica.applied.csn).map(|(_, commit)| commit);
            let size: usize = ready().map(|commit| commit.bytes).sum();
            let old = ready().any(|commit| now.saturating_duration_since(commit.since) >= age);
            if ready().next().is_some() && (size >= bytes || old) && replica.damaged.is_none() {
                due.push((std::cmp::Reverse(size), *chunk));
            }
        }
        due.sort_unstable();
        due.into_iter().map(|(_, chunk)| chunk).collect()
    }

    /// Chunks with more than `segments` segments, and how many each has.
    pub(crate) fn crowded(&self, segments: u64) -> BTreeMap<ChunkId, u64> {
        let count = |replica: &Replica| replica.stored.segments;
        let stays = |replica: &Replica| replica.damaged.is_none() && replica.removed.is_none();
        let crowded =
            self.chunks.iter().filter(|(_, replica)| count(replica) > segments && stays(replica));
        crowded.map(|(chunk, replica)| (*chunk, count(replica))).collect()
    }

    /// Notes that commits up to `stored.flushed` are in segments, and forgets them here.
    pub(crate) fn flushed(&mut self, chunk: ChunkId, stored: Stored) -> Released {
        let Some(replica) = self.chunks.get_mut(&chunk) else { return Released::default() };
        assert!(stored.flushed.csn <= replica.applied.csn, "only applied commits are flushed");
        replica.stored = stored;
        let later = replica.commits.split_off(&stored.flushed.csn.next());
        let gone = std::mem::replace(&mut replica.commits, later);
        self.release(chunk, gone.into_values())
    }

    /// Notes that the chunk's segments were written anew.
    pub(crate) fn rewritten(&mut self, chunk: ChunkId, stored: Stored) {
        if let Some(replica) = self.chunks.get_mut(&chunk) {
            assert_eq!(stored.flushed, replica.stored.flushed, "a rewrite takes in no commit");
            replica.stored = stored;
            replica.deleted_at = replica.deleted_at.split_off(&stored.horizon.next());
        }
    }

    /// What the chunk's rows are, when a part of it came in this run.
    pub(crate) fn spec(&self, chunk: ChunkId) -> Option<ChunkSpec> {
        self.chunks.get(&chunk)?.spec.clone()
    }

    /// Takes over what a file turned out to hold when it was opened, unless it was flushed to since.
    pub(crate) fn recount(&mut self, chunk: ChunkId, stored: Stored) {
        let Some(replica) = self.chunks.get_mut(&chunk) else { return };
        if stored.flushed == replica.stored.flushed {
            replica.stored = stored;
        } else if stored.flushed.csn > replica.applied.csn && replica.commits.is_empty() {
            // The manifest was behind, and the journal has let go of what the file holds.
            self.restore(chunk, stored);
        }
    }

    /// How a replica stands; `None` when nothing of the chunk is here.
    pub(crate) fn standing(&self, chunk: ChunkId) -> Option<Standing> {
        let replica = self.chunks.get(&chunk)?;
        let applied = replica.applied;
        Some(Standing {
            spec: replica.spec.clone(),
            stored: replica.stored,
            applied,
            recent: replica.commits.range(..=applied.csn).map(|(_, c)| c.clone()).collect(),
            damaged: replica.wrong(),
            lost: self.lost.values().flatten().any(|key| key.chunk == chunk),
        })
    }

    /// Takes in what came from another replica, and forgets here what it holds. Commits after it go on from there.
    pub(crate) fn arrived(&mut self, chunk: ChunkId, arrival: Arrival) -> Released {
        let Arrival { spec, stored, whole, txns, at } = arrival;
        let replica = self.chunks.entry(chunk).or_default();
        let before = replica.stored.flushed.csn;
        assert!(before <= stored.flushed.csn, "what is in a file is not taken back");
        replica.spec = Some(spec);
        if stored.deletes > 0 && stored.deleted > replica.stored.deleted {
            // How old they are is not known here: their rows stay as if they came now.
            replica.deleted_at.insert(stored.deleted, Some(at));
        }
        replica.forget_reserved(stored.deleted);
        replica.stored = stored;
        replica.applied = stored.flushed;
        if whole {
            (replica.damaged, replica.suspect) = (None, None);
        }
        let later = replica.commits.split_off(&stored.flushed.csn.next());
        let gone = std::mem::replace(&mut replica.commits, later);
        replica.advance();
        let mut released = self.release(chunk, gone.into_values());
        self.release_gone(chunk, stored.flushed.csn, &mut released);
        for txn in txns {
            let Some(pending) = self.pending.get_mut(&txn) else { continue };
            let parts = pending.parts.extract_if(of_chunk(chunk), |_, _| true);
            released.parts.extend(parts.map(|(_, rows)| rows.key));
        }
        self.pending.retain(|_, pending| !pending.parts.is_empty());
        released
    }

    /// Chunks of which anything is here.
    pub(crate) fn chunks(&self) -> Vec<ChunkId> {
        self.chunks.keys().copied().collect()
    }

    /// Forgets a chunk.
    pub(crate) fn remove(&mut self, chunk: ChunkId) -> Released {
        let gone = self.chunks.remove(&chunk).map(|replica| replica.commits).unwrap_or_default();
        let mut released = self.release(chunk, gone.into_values());
        self.release_gone(chunk, Csn(u64::MAX), &mut released);
        for pending in self.pending.values_mut() {
            let parts = pending.parts.extract_if(of_chunk(chunk), |_, _| true);
            released.parts.extend(parts.map(|(_, rows)| rows.key));
        }
        self.pending.retain(|_, pending| !pending.parts.is_empty());
        for keys in self.lost.values_mut() {
            let gone = keys.extract_if(.., |key| key.chunk == chunk);
            released.parts.extend(gone);
        }
        self.lost.retain(|_, keys| !keys.is_empty());
        released
    }

    fn release(&mut self, chunk: ChunkId, commits: impl Iterator<Item = Commit>) -> Released {
        let mut released = Released::default();
        for commit in commits {
            released.parts.extend(commit.parts.iter().map(|rows| rows.key));
            self.release_decision(commit.txn, chunk, &mut released);
        }
        released
    }

    /// Lets go of the evidence of lost commits up to `to`.
    fn release_gone(&mut self, chunk: ChunkId, to: Csn, released: &mut Released) {
        let Some(mut gone) = self.gone.remove(&chunk) else { return };
        let over: Vec<PartKey> = gone.extract_if(.., |_, csn| *csn <= to).map(|(k, _)| k).collect();
        for key in over {
            released.parts.push(key);
            self.release_decision(key.txn, chunk, released);
        }
        if !gone.is_empty() {
            self.gone.insert(chunk, gone);
        }
    }

    fn release_decision(&mut self, txn: TxnId, chunk: ChunkId, released: &mut Released) {
        if let Some(chunks) = self.journaled.get_mut(&txn) {
            chunks.remove(&chunk);
            if chunks.is_empty() {
                self.journaled.remove(&txn);
                released.decisions.push(txn);
            }
        }
    }

    /// What a scan sees: rows committed up to `snapshot`, and the pending ones of `own`.
    pub(crate) fn view(&self, chunk: ChunkId, snapshot: Csn, own: Option<TxnId>) -> View {
        let Some(replica) = self.chunks.get(&chunk) else { return View::default() };
        let committed = replica.commits.range(..=snapshot);
        let committed =
            committed.flat_map(|(csn, commit)| commit.parts.iter().map(move |rows| (*csn, rows)));
        let own = own.and_then(|txn| self.pending.get(&txn)).into_iter();
        let own = own.flat_map(|pending| pending.parts.range(of_chunk(chunk)));
        let all = committed.chain(own.map(|(_, rows)| (Csn(u64::MAX), rows)));
        let all: Vec<(Csn, Arc<Rows>)> = all.map(|(csn, rows)| (csn, Arc::clone(rows))).collect();
        let deletes = all.iter().filter_map(|(_, rows)| rows.tombstone.clone()).collect();
        View { recent: all, deletes, stored: replica.stored, presence: replica.presence() }
    }

    /// Marks a chunk's bytes as wrong; the first reason stays.
    pub(crate) fn mark_damaged(&mut self, chunk: ChunkId, what: &str) {
        let replica = self.chunks.entry(chunk).or_default();
        replica.damaged.get_or_insert_with(|| what.to_owned());
    }

    /// Notes that a scan met wrong bytes.
    pub(crate) fn mark_suspect(&mut self, chunk: ChunkId, what: &str) {
        if let Some(replica) = self.chunks.get_mut(&chunk) {
            replica.suspect.get_or_insert_with(|| what.to_owned());
        }
    }

    /// What is wrong with the chunk, though other parts of it may still be read.
    pub(crate) fn wrong(&self, chunk: ChunkId) -> Option<&str> {
        let replica = self.chunks.get(&chunk)?;
        replica.damaged.as_deref().or(replica.suspect.as_deref())
    }

    /// Why the chunk cannot be used.
    pub(crate) fn damage(&self, chunk: ChunkId) -> Option<&str> {
        self.chunks.get(&chunk)?.damaged.as_deref()
    }

    /// Chunks with wrong bytes.
    pub(crate) fn damaged(&self) -> Vec<ChunkId> {
        let damaged =
            self.chunks.iter().filter(|(_, replica)| replica.wrong() && replica.removed.is_none());
        damaged.map(|(chunk, _)| *chunk).collect()
    }

    /// What is held of these chunks (all when empty), as far as the catalog has it.
    pub(crate) fn report(&self, chunks: &[ChunkId]) -> Vec<ChunkReport> {
        let report = |(chunk, replica): (&ChunkId, &Replica)| {
            replica.removed.is_none().then(|| replica.report(*chunk))
        };
        if chunks.is_empty() {
            return self.chunks.iter().filter_map(report).collect();
        }
        let known = chunks.iter().filter_map(|chunk| Some((chunk, self.chunks.get(chunk)?)));
        known.filter_map(report).collect()
    }

    /// The invariants of the head of this file.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (chunk, replica) in &self.chunks {
            if replica.stored.flushed.csn > replica.applied.csn {
                return Err(format!("chunk {chunk} is flushed further than applied"));
            }
            if let Some((csn, _)) = replica.commits.range(..=replica.stored.flushed.csn).next() {
                return Err(format!("chunk {chunk} holds commit {csn} in memory and in a segment"));
            }
            for commit in replica.commits.values() {
                if !self.journaled.get(&commit.txn).is_some_and(|chunks| chunks.contains(chunk)) {
                    return Err(format!(
                        "{} of chunk {chunk} is not known as journaled",
                        commit.txn
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Keys of a chunk's parts within a transaction.
fn of_chunk(chunk: ChunkId) -> RangeInclusive<(ChunkId, u32)> {
    (chunk, 0)..=(chunk, u32::MAX)
}

fn prev_of(links: &[ChunkLink], chunk: ChunkId) -> Option<Csn> {
    links.iter().find(|link| link.chunk == chunk).map(|link| link.prev)
}

impl Commit {
    /// The deletes among its parts.
    pub(crate) fn deletes(&self) -> impl Iterator<Item = Delete> {
        let tombstones = self.parts.iter().filter_map(|rows| rows.tombstone.as_ref());
        let taking = tombstones.filter(|tombstone| tombstone.takes_rows());
        taking.map(|tombstone| Delete { csn: self.csn, tombstone: tombstone.without_places() })
    }

    fn new(txn: TxnId, at: (Csn, Option<Csn>), parts: Vec<Arc<Rows>>, since: Instant) -> Self {
        Self {
            csn: at.0,
            txn,
            prev: at.1,
            hash: part_hash(parts.iter().map(|rows| rows.hash)),
            rows: parts.iter().map(|rows| rows.count()).sum(),
            bytes: parts.iter().map(|rows| rows.charge.bytes()).sum(),
            parts,
            durable: false,
            since,
        }
    }

    /// What is remembered of it when its rows are in a segment.
    pub(crate) fn row(&self) -> CommitRow {
        CommitRow { csn: self.csn, txn: self.txn, hash: self.hash, rows: self.rows }
    }
}

impl Replica {
    /// Whether some of its bytes are wrong.
    fn wrong(&self) -> bool {
        self.damaged.is_some() || self.suspect.is_some()
    }

    /// Applies commits as long as the next one is durable and follows the last applied.
    fn advance(&mut self) {
        use std::ops::Bound::{Excluded, Unbounded};
        while let Some((csn, next)) =
            self.commits.range((Excluded(self.applied.csn), Unbounded)).next()
        {
            if next.prev.is_some_and(|prev| prev < self.applied.csn) {
                let applied = self.applied.csn;
                let what = format!("commit {csn} does not follow {applied}, the last applied");
                self.damaged.get_or_insert(what);
            }
            if !next.durable || next.prev != Some(self.applied.csn) {
                return;
            }
            self.applied = Point {
                csn: *csn,
                chain: chain_after(self.applied.chain, *csn, next.hash),
                rows: self.applied.rows + next.rows,
            };
        }
    }

    fn report(&self, chunk: ChunkId) -> ChunkReport {
        let recent_rows: u64 = self.commits.values().map(|commit| commit.rows).sum();
        let stored_rows = self.stored.flushed.rows - self.stored.removed;
        let state = match self.stored.compressed {
            None => ChunkState::Plain,
            Some(compressed) if compressed.rows == stored_rows && recent_rows == 0 => {
                ChunkState::Compressed
            }
            Some(_) => ChunkState::Partial,
        };
        ChunkReport {
            chunk,
            rows: stored_rows + recent_rows,
            state,
            compressed_csn: match state {
                ChunkState::Compressed => self.applied.csn,
                _ => self.stored.compressed.map_or(Csn(0), |compressed| compressed.csn),
            },
            before_bytes: self.stored.compressed.map_or(0, |compressed| compressed.before),
            after_bytes: self.stored.compressed.map_or(0, |compressed| compressed.after),
            segment_bytes: self.stored.bytes,
            segments: self.stored.segments,
            recent_rows,
            applied_csn: self.applied.csn,
            chain: self.applied.chain,
        }
    }
}

#[cfg(test)]
mod tests {
    use hypertide_proto::ids::{AccessId, Boot, TableId};

    use super::*;

    const CHUNK: ChunkId = ChunkId(7);

    fn txn(seq: u64) -> TxnId {
        TxnId { access: AccessId(1), boot: Boot(1), seq }
    }

    fn prepare(replicas: &mut Replicas, seq: u64, hash: u128) -> PartKey {
        let key = PartKey { txn: txn(seq), chunk: CHUNK, number: 0 };
        assert_eq!(replicas.admit(key, hash), Admission::New);
        let spec = ChunkSpec {
            chunk: CHUNK,
            table: TableId(1),
            time_column: None,
            order_columns: Vec::new(),
            origin: Vec::new(),
        };
        let charge = Charge::default();
        let epoch = Epoch(0);
        let rows = Rows { key, epoch, hash, batches: Vec::new(), tombstone: None, charge };
        replicas.prepare(spec, Arc::new(rows), Instant::now());
        key
    }

    fn commit(seq: u64, csn: u64, prev: u64) -> Decision {
        let links = vec![ChunkLink { chunk: CHUNK, prev: Csn(prev) }];
        Decision { txn: txn(seq), fate: Fate::Committed { csn: Csn(csn), links } }
    }

    fn applied(replicas: &Replicas) -> (u64, u128) {
        let report = replicas.report(&[CHUNK])[0];
        (report.applied_csn.0, report.chain)
    }

    #[test]
    fn commits_in_any_order_give_one_chain() {
        let mut chains = BTreeSet::new();
        let orders = [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]];
        for order in orders {
            let mut replicas = Replicas::default();
            for seq in 1..=3 {
                prepare(&mut replicas, seq, seq.into());
            }
            for seq in order {
                let decision = commit(seq, seq * 10, (seq - 1) * 10);
                replicas.decide(&decision, true, Instant::now());
                // Visible at once, gap or not.
                assert_eq!(replicas.view(CHUNK, Csn(seq * 10), None).recent.len(), {
                    let taken = order.iter().take_while(|other| **other != seq);
                    taken.filter(|other| **other < seq).count() + 1
                });
                assert_eq!(replicas.check(), Ok(()));
            }
            assert_eq!(applied(&replicas).0, 30);
            chains.insert(applied(&replicas).1);
        }
        assert_eq!(chains.len(), 1);
    }

    #[test]
    fn a_commit_counts_as_applied_only_when_its_decision_is_durable() {
        let mut replicas = Replicas::default();
        prepare(&mut replicas, 1, 1);
        replicas.decide(&commit(1, 10, 0), false, Instant::now());
        assert_eq!(applied(&replicas).0, 0);
        assert!(replicas.plan_flush(CHUNK).is_none());
        replicas.decisions_durable(&[txn(1)]);
        let chain = chain_after(0, Csn(10), part_hash([1].into_iter()));
        assert_eq!(applied(&replicas), (10, chain));
    }

    #[test]
    fn a_late_repeat_of_a_flushed_part_is_not_taken_in_again() {
        let mut replicas = Replicas::default();
        let key = prepare(&mut replicas, 1, 1);
        replicas.decide(&commit(1, 10, 0), true, Instant::now());
        assert_eq!(replicas.admit(key, 1), Admission::Known);
        assert_eq!(replicas.admit(key, 2), Admission::Conflict);
        let to = replicas.plan_flush(CHUNK).expect("there is a commit").to;
        let stored = Stored { flushed: to, segments: 1, bytes: 1, ..Stored::default() };
        let released = replicas.flushed(CHUNK, stored);
        assert_eq!(released, Released { parts: vec![key], decisions: vec![txn(1)] });
        // The same part once more: pending, until the log is asked.
        prepare(&mut replicas, 1, 1);
        assert_eq!(replicas.pending(&[], Instant::now()).len(), 1);
        let again = replicas.decide(&commit(1, 10, 0), false, Instant::now());
        assert_eq!(again, Decided::Committed { removed: vec![key], kept: false });
        assert!(replicas.view(CHUNK, Csn(99), None).recent.is_empty());
        assert_eq!(replicas.check(), Ok(()));
    }

    #[test]
    fn a_commit_into_the_past_marks_the_chunk() {
        let mut replicas = Replicas::default();
        prepare(&mut replicas, 1, 1);
        prepare(&mut replicas, 2, 2);
        replicas.decide(&commit(1, 10, 0), true, Instant::now());
        assert_eq!(replicas.damage(CHUNK), None);
        replicas.decide(&commit(2, 20, 5), true, Instant::now());
        assert!(replicas.damage(CHUNK).is_some_and(|what| what.contains("does not follow 10")));
    }

    #[test]
    fn own_rows_are_seen_and_aborted_ones_go() {
        let mut replicas = Replicas::default();
        let key = prepare(&mut replicas, 1, 1);
        assert_eq!(replicas.view(CHUNK, Csn(0), Some(txn(1))).recent.len(), 1);
        assert_eq!(replicas.view(CHUNK, Csn(0), Some(txn(2))).recent.len(), 0);
        let decision = Decision { txn: txn(1), fate: Fate::Aborted };
        let decided = replicas.decide(&decision, false, Instant::now());
        assert_eq!(decided, Decided::Aborted { removed: vec![key] });
        assert_eq!(replicas.decide(&decision, false, Instant::now()), Decided::Unknown);
        assert!(replicas.view(CHUNK, Csn(0), Some(txn(1))).recent.is_empty());
    }

    #[test]
    fn a_lost_part_keeps_its_transaction_open_until_it_is_decided() {
        let mut replicas = Replicas::default();
        let kept = prepare(&mut replicas, 1, 1);
        let lost = PartKey { number: 1, ..kept };
        replicas.lose(lost, "wrong bytes");
        replicas.lose(PartKey { txn: txn(2), ..lost }, "wrong bytes");
        let pending = |replicas: &Replicas, chunk| {
            let pending = replicas.pending(&[chunk], Instant::now());
            pending.into_iter().map(|(txn, _)| txn.seq).collect::<Vec<_>>()
        };
        assert_eq!(pending(&replicas, CHUNK), [1, 2]);
        assert!(pending(&replicas, ChunkId(8)).is_empty());
        assert!(replicas.standing(CHUNK).is_some_and(|standing| standing.lost));
        let aborted = Decision { txn: txn(2), fate: Fate::Aborted };
        let decided = replicas.decide(&aborted, false, Instant::now());
        let removed = vec![PartKey { txn: txn(2), ..lost }];
        assert_eq!(decided, Decided::Aborted { removed });
        // A commit without one of its parts is none: it stays evidence until it comes from another replica.
        let decided = replicas.decide(&commit(1, 10, 0), true, Instant::now());
        assert_eq!(decided, Decided::Committed { removed: vec![], kept: true });
        assert_eq!(applied(&replicas).0, 0);
        assert!(replicas.view(CHUNK, Csn(99), None).recent.is_empty());
        assert!(replicas.standing(CHUNK).is_some_and(|standing| !standing.lost));
        assert_eq!(replicas.check(), Ok(()));
        let spec = ChunkSpec {
            chunk: CHUNK,
            table: TableId(1),
            time_column: None,
            order_columns: Vec::new(),
            origin: Vec::new(),
        };
        let arrival = |csn| {
            let flushed = Point { csn: Csn(csn), chain: 1, rows: 1 };
            let stored = Stored { flushed, segments: 1, bytes: 1, ..Stored::default() };
            Arrival {
                spec: spec.clone(),
                stored,
                whole: true,
                txns: BTreeSet::new(),
                at: Instant::now(),
            }
        };
        assert_eq!(replicas.arrived(CHUNK, arrival(5)), Released::default());
        let expected = Released { parts: vec![kept, lost], decisions: vec![txn(1)] };
        assert_eq!(replicas.arrived(CHUNK, arrival(10)), expected);
        assert!(replicas.damaged().is_empty());
        replicas.lose(PartKey { txn: txn(3), ..lost }, "wrong bytes");
        let released = replicas.remove(CHUNK);
        assert_eq!(released.parts, [PartKey { txn: txn(3), ..lost }]);
        assert!(pending(&replicas, CHUNK).is_empty());
    }

    #[test]
    fn removing_a_chunk_releases_all_of_it() {
        let mut replicas = Replicas::default();
        let first = prepare(&mut replicas, 1, 1);
        let second = prepare(&mut replicas, 2, 2);
        replicas.decide(&commit(1, 10, 0), true, Instant::now());
        let released = replicas.remove(CHUNK);
        assert_eq!(released, Released { parts: vec![first, second], decisions: vec![txn(1)] });
        assert!(replicas.report(&[]).is_empty());
        assert!(replicas.pending(&[], Instant::now()).is_empty());
    }

    #[test]
    fn hashes_are_pinned() {
        // Other crates compute the same: changing these breaks every running cluster.
        assert_eq!(part_hash([1, 2].into_iter()), 0x4383_336a_530c_1643_aa86_cf9c_7161_68f7);
    }
}
