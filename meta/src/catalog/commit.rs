//! Commit and abort: the safety core.
//!
//! A commit counts because the log orders it with every change of a chunk's replicas: at this place in the log the
//! acknowledgements cover all members of now, whatever the coordinator believed them to be. Batches of class A,
//! appends, need no equality of epochs.
//!
//! Keyed parts need it. Two of them may hold reservations of one key at two replicas that were never members together,
//! and each is covered when its turn comes; acknowledgements of one epoch come from one set, in which each replica saw
//! both.
//!
//! A sealed chunk takes no row any more, and still loses some: a keyed part without rows, of deletes alone, is committed
//! to it under the same rule. Its replicas are kept and caught up like those of an open one, by commits.

use hypertide_proto::{
    decision::{ChunkLink, Decision, Fate, chain_after},
    ids::{ChunkId, TxnId, WriteId},
};

use super::{
    Catalog, Chunk, ChunkState, CommitPart, CommitRecord, Decided, Outcome, Reject, RowKey, Write,
    apply::Step,
};

impl Catalog {
    /// Commits a transaction, or says how it was decided before.
    pub(crate) fn commit(
        &mut self,
        record: &CommitRecord,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let txn = record.txn;
        let before = self.decided.get(&txn).map(|decided| &decided.fate);
        if let Some(fate @ Fate::Committed { .. }) = before {
            return Ok(answer(txn, fate));
        }
        let (aborted, open) = (before.is_some(), before.is_none() && self.may_commit(txn));
        // A boot that was never given could commit later what is refused here for good.
        if !self.live(txn) && !self.fenced(txn) {
            return Err(Reject::Fenced(txn));
        }
        // Before the abort that a duplicate leaves behind, so that one proposed again has its first answer again.
        if let Some(first) = self.seen_write(record)? {
            let outcome = Outcome::Duplicate { csn: first.csn, rows: first.rows };
            if open {
                self.decide(txn, Fate::Aborted, step);
            }
            return Ok(outcome);
        }
        if aborted {
            return Ok(Outcome::Aborted);
        }
        if !open {
            return Err(Reject::Fenced(txn));
        }
        check_order(&record.parts)?;
        record.parts.iter().try_for_each(|part| self.check_part(part))?;

        let links = record.parts.iter().map(|part| self.append(part, step)).collect();
        let fate = Fate::Committed { csn: step.csn, links };
        self.decide(txn, fate.clone(), step);
        if let Some((id, hash)) = record.write {
            let rows = record.parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.rows));
            self.put_write(id, Write { csn: step.csn, rows, hash, at_ms: step.at_ms }, step);
        }
        Ok(answer(txn, &fate))
    }

    /// Ends a transaction without effect, or says that it was committed.
    ///
    /// The record of the abort is what makes it final while the boot lives. A fenced transaction needs none: a new
    /// boot is never taken back.
    pub(crate) fn abort(&mut self, txn: TxnId, step: &mut Step) -> Result<Outcome, Reject> {
        if let Some(decided) = self.decided.get(&txn) {
            return Ok(answer(txn, &decided.fate));
        }
        if self.fenced(txn) {
            return Ok(Outcome::Aborted);
        }
        // An ended transaction may have been committed: to call it aborted could be a lie to its coordinator.
        if !self.may_commit(txn) {
            return Err(Reject::Fenced(txn));
        }
        self.decide(txn, Fate::Aborted, step);
        Ok(Outcome::Aborted)
    }

    /// Whether an undecided transaction may still be: its boot lives, and it was not decided and forgotten.
    fn may_commit(&self, txn: TxnId) -> bool {
        self.live(txn) && !self.has_ended(txn)
    }

    /// The commit of the same write, if its id was used before.
    fn seen_write(&self, record: &CommitRecord) -> Result<Option<&Write>, Reject> {
        let Some((id, hash)) = record.write else { return Ok(None) };
        match self.writes.get(&id) {
            Some(write) if write.hash != hash => Err(Reject::WriteIdReused(id)),
            write => Ok(write),
        }
    }

    fn check_part(&self, part: &CommitPart) -> Result<(), Reject> {
        let chunk = self.chunks.get(&part.chunk).ok_or(Reject::ChunkClosed(part.chunk))?;
        let takes = match chunk.state {
            ChunkState::Open => true,
            ChunkState::Sealed => part.keyed && part.rows == 0,
            ChunkState::Damaged => false,
        };
        if !takes {
            return Err(Reject::ChunkClosed(chunk.id));
        }
        let table = self.existing(chunk.table)?;
        if !(table.oldest..=table.version).contains(&part.table_version) {
            return Err(Reject::StaleSchema(table.id));
        }
        let wanted = table.hypertable().map_or(1, |made| made.min_in_sync);
        if chunk.in_sync.len() < usize::from(wanted) {
            let in_sync = u16::try_from(chunk.in_sync.len()).unwrap_or(u16::MAX);
            return Err(Reject::TooFewInSync { chunk: chunk.id, in_sync, wanted });
        }
        // Rids are compared whole: a disk that was replaced cannot speak for the one that is listed.
        let stale = part.keyed && part.epoch != chunk.epoch;
        #[cfg(feature = "bug_epoch_rule_off")]
        let stale = stale && !hypertide_proto::planted::shown("bug_epoch_rule_off");
        #[cfg(feature = "bug_accept_stale_acks")]
        if hypertide_proto::planted::shown("bug_accept_stale_acks") {
            return Ok(());
        }
        if stale || chunk.write_set().any(|rid| !part.acks.contains(&rid)) {
            return Err(Reject::Uncovered(Box::new(chunk.clone())));
        }
        Ok(())
    }

    /// Makes a checked part the last commit of its chunk.
    fn append(&mut self, part: &CommitPart, step: &mut Step) -> ChunkLink {
        let chunk: &mut Chunk = self.chunks.get_mut(&part.chunk).expect("the part was checked");
        let prev = chunk.last_csn;
        assert!(prev < step.csn, "commit {} after {prev} in chunk {}", step.csn, chunk.id);
        chunk.last_csn = step.csn;
        chunk.chain = chain_after(chunk.chain, step.csn, part.hash);
        chunk.rows = chunk.rows.saturating_add(part.rows);
        step.changes.touch(RowKey::Chunk(chunk.id));
        ChunkLink { chunk: chunk.id, prev }
    }

    fn decide(&mut self, txn: TxnId, fate: Fate, step: &mut Step) {
        let decided = Decided { fate, at_ms: step.at_ms };
        // A fresh commit is above every floor: each of its chunks retains it.
        self.index.add_decided(txn, &decided, |_, _| true);
        self.decided.insert(txn, decided);
        step.changes.touch(RowKey::Decided(txn));
    }

    fn put_write(&mut self, id: WriteId, write: Write, step: &mut Step) {
        self.index.writes.insert((write.at_ms, id));
        self.writes.insert(id, write);
        step.changes.touch(RowKey::Write(id));
    }
}

fn answer(txn: TxnId, fate: &Fate) -> Outcome {
    match fate {
        Fate::Aborted => Outcome::Aborted,
        Fate::Committed { csn, .. } => {
            Outcome::Committed { csn: *csn, decision: Decision { txn, fate: fate.clone() } }
        }
    }
}

/// Parts come in order of chunk ids, each chunk once.
fn check_order(parts: &[CommitPart]) -> Result<(), Reject> {
    let ids: Vec<ChunkId> = parts.iter().map(|part| part.chunk).collect();
    if ids.is_sorted_by(|one, other| one < other) {
        return Ok(());
    }
    Err(Reject::InvalidDimension("parts of a commit are not in order of chunk ids".to_owned()))
}
