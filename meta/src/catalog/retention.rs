//! Forgetting: decisions that every replica has, and write ids that are old.
//!
//! A committed transaction goes through three states:
//!
//! ```text
//! retained   a replica of one of its chunks may still have to learn of it
//! settled    every such replica has it durably; kept a while, so that a coordinator whose answer was lost can ask again
//! ended      only its sequence number is known, as part of a run
//! ```
//!
//! The runs are what makes forgetting safe. A record of an ended transaction may still be on its way, sent by a
//! coordinator that was stopped for an hour and woke up: applied again, its rows would be there twice, or, when the
//! transaction was aborted, without the batches that data nodes threw away. No time limit excludes that;
//! the sequence numbers do. They cost little, because transactions of one boot end in about the order they begin in.

use hypertide_proto::ids::{AccessId, Boot, ChunkId, Csn, Rid, TxnId};

use super::{Catalog, Chunk, Outcome, Reject, RowKey, Tail, apply::Step};

/// How long a settled decision is kept, in milliseconds of log time: longer than any coordinator tries.
pub(crate) const SETTLED_KEPT_MS: u64 = 2 * 60 * 1000;
/// How long a write id is kept, in milliseconds of log time.
pub(crate) const WRITE_KEPT_MS: u64 = 24 * 60 * 60 * 1000;
/// As many write ids are kept however old they are. Tests cannot wait for a million.
pub(crate) const WRITES_KEPT_MIN: usize = if cfg!(test) { 3 } else { 1_000_000 };
/// Most that one command forgets of each kind, so that none takes long. Above one, so that forgetting catches up.
const FORGOTTEN_PER_STEP: usize = 64;
/// Most runs of ended transactions; beyond, the lowest gap of a boot is closed, and a transaction in it is refused.
const RUNS_MAX: usize = if cfg!(test) { 4 } else { 65_536 };

impl Catalog {
    /// Notes what a data node has durably, and lets go of what every member then has.
    pub(crate) fn progress(
        &mut self,
        rid: Rid,
        applied: &[(ChunkId, Csn)],
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        self.current_node(rid)?;
        applied.iter().for_each(|at| self.note_applied(rid, *at, step));
        Ok(Outcome::Done)
    }

    /// Notes up to where a replica has a chunk's commits durably.
    pub(crate) fn note_applied(&mut self, rid: Rid, (id, csn): (ChunkId, Csn), step: &mut Step) {
        // A chunk that was dropped, or that the node has left, has no use for the report.
        let Some(chunk) = self.chunks.get(&id) else { return };
        if !learners(chunk).any(|learner| learner == rid) {
            return;
        }
        let mut tail = self.tails.get(&id).cloned().unwrap_or_default();
        let reported = tail.applied.entry(rid).or_default();
        *reported = csn.min(chunk.last_csn).max(*reported);
        self.put_tail(id, tail, step);
    }

    /// Lets go of what only replicas that went had to learn of.
    pub(crate) fn refloor(&mut self, id: ChunkId, step: &mut Step) {
        if let Some(tail) = self.tails.get(&id).cloned() {
            self.put_tail(id, tail, step);
        }
    }

    /// Replaces a chunk's tail, reduced to those that learn of its commits.
    fn put_tail(&mut self, id: ChunkId, mut tail: Tail, step: &mut Step) {
        let Some(chunk) = self.chunks.get(&id) else { return };
        tail.applied.retain(|other, _| learners(chunk).any(|learner| learner == *other));
        let floor = floor(chunk, |learner| tail.applied.get(&learner).copied());
        tail.floor = tail.floor.max(floor);
        if self.tails.get(&id) != Some(&tail) {
            self.release(id, tail.floor);
            self.tails.insert(id, tail);
            step.changes.touch(RowKey::Tail(id));
        }
    }

    /// Lets go of the chunk's commits up to and with `floor`.
    pub(crate) fn release(&mut self, chunk: ChunkId, floor: Csn) {
        let range = (chunk, Csn(0))..=(chunk, floor);
        let released: Vec<(ChunkId, Csn)> =
            self.index.retained.range(range).map(|(key, _)| *key).collect();
        for key in released {
            let Some(txn) = self.index.retained.remove(&key) else { continue };
            match self.index.waiting.get_mut(&txn) {
                Some(chunks) if *chunks > 1 => *chunks -= 1,
                _ => self.settle(txn),
            }
        }
    }

    fn settle(&mut self, txn: TxnId) {
        self.index.waiting.remove(&txn);
        if let Some(decided) = self.decided.get(&txn) {
            self.index.settled.insert((decided.at_ms, txn));
        }
    }

    /// Forgets some of what is old.
    pub(crate) fn sweep(&mut self, step: &mut Step) {
        let before = step.at_ms.saturating_sub(SETTLED_KEPT_MS);
        let old = self.index.settled.iter().take_while(|(at_ms, _)| *at_ms < before);
        let old: Vec<(u64, TxnId)> = old.take(FORGOTTEN_PER_STEP).copied().collect();
        for settled in old {
            self.index.settled.remove(&settled);
            self.forget(settled.1, step);
        }
        self.sweep_writes(step);
    }

    fn sweep_writes(&mut self, step: &mut Step) {
        let before = step.at_ms.saturating_sub(WRITE_KEPT_MS);
        let spare = self.writes.len().saturating_sub(WRITES_KEPT_MIN).min(FORGOTTEN_PER_STEP);
        let old = self.index.writes.iter().take_while(|(at_ms, _)| *at_ms < before);
        let old: Vec<_> = old.take(spare).copied().collect();
        for write in old {
            self.index.writes.remove(&write);
            self.writes.remove(&write.1);
            step.changes.touch(RowKey::Write(write.1));
        }
    }

    /// Forgets a decision; while its boot lives, its number is kept as ended.
    fn forget(&mut self, txn: TxnId, step: &mut Step) {
        self.decided.remove(&txn);
        step.changes.touch(RowKey::Decided(txn));
        if self.live(txn) {
            self.end(txn, step);
            self.bound_runs(txn, step);
        }
    }

    /// Whether the transaction was decided and forgotten.
    pub(crate) fn has_ended(&self, txn: TxnId) -> bool {
        let TxnId { access, boot, seq } = txn;
        let run = self.ended.range((access, boot, 0)..=(access, boot, seq)).next_back();
        run.is_some_and(|(_, last)| seq <= *last)
    }

    /// Adds the number to the runs, joining it with its neighbours.
    fn end(&mut self, txn: TxnId, step: &mut Step) {
        // A gap may have been closed over it while it was kept.
        if self.has_ended(txn) {
            return;
        }
        let TxnId { access, boot, seq } = txn;
        let (mut first, mut last) = (seq, seq);
        let before = self.ended.range((access, boot, 0)..(access, boot, seq)).next_back();
        if let Some(((_, _, start), _)) = before.filter(|(_, end)| **end + 1 == seq) {
            first = *start;
        }
        if let Some(next) = seq.checked_add(1)
            && let Some(end) = self.ended.get(&(access, boot, next))
        {
            last = *end;
            self.ended.remove(&(access, boot, next));
            step.changes.touch(RowKey::Ended(access, boot, next));
        }
        self.ended.insert((access, boot, first), last);
        step.changes.touch(RowKey::Ended(access, boot, first));
    }

    /// Closes the lowest gap of the boot when there are too many runs.
    fn bound_runs(&mut self, txn: TxnId, step: &mut Step) {
        if self.ended.len() <= RUNS_MAX {
            return;
        }
        let TxnId { access, boot, .. } = txn;
        let mut runs = self.ended.range((access, boot, 0)..=(access, boot, u64::MAX));
        let lowest = runs.next().map(|(key, _)| *key);
        let second = runs.next().map(|(key, last)| (*key, *last));
        if let (Some(lowest), Some((second, last))) = (lowest, second) {
            self.ended.remove(&second);
            self.ended.insert(lowest, last);
            step.changes.touch(RowKey::Ended(second.0, second.1, second.2));
            step.changes.touch(RowKey::Ended(lowest.0, lowest.1, lowest.2));
        }
    }

    /// Drops the runs of an access node's earlier boots.
    pub(crate) fn forget_ended_before(&mut self, access: AccessId, boot: Boot, step: &mut Step) {
        let old = self.ended.range((access, Boot(0), 0)..(access, boot, 0));
        let old: Vec<(AccessId, Boot, u64)> = old.map(|(key, _)| *key).collect();
        for key in old {
            self.ended.remove(&key);
            step.changes.touch(RowKey::Ended(key.0, key.1, key.2));
        }
    }
}

/// Replicas that must be able to learn of every commit they hold as pending: the members, and those that left complete,
/// which may be in sync again without a copy.
fn learners(chunk: &Chunk) -> impl Iterator<Item = Rid> {
    chunk.members().chain(chunk.complete_left())
}

/// The last commit that every learner has; none when the chunk has no replicas.
fn floor(chunk: &Chunk, applied: impl Fn(Rid) -> Option<Csn>) -> Csn {
    learners(chunk).map(|rid| applied(rid).unwrap_or_default()).min().unwrap_or_default()
}
