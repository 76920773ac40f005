//! The end of a transaction: its record is proposed until the log has said what became of it.

use std::time::{Duration, Instant};

use hypertide_meta::{
    Error as MetaError,
    catalog::{Command, CommitPart, CommitRecord, Outcome, Reject},
};
use hypertide_proto::{decision::Decision, ids::ChunkId};

use super::{Committed, RETRY_DELAY, Share, WriteTag, Writer, contended};
use crate::{Error, measures};

/// Time that the log has to say what became of a transaction whose commit got no answer.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time that what was committed with a delete waits until all data nodes know it.
const TELL_TIMEOUT: Duration = Duration::from_secs(1);

impl Writer {
    /// Commits. After an error the transaction is aborted, unless the error says that its outcome is unknown.
    pub(crate) async fn commit(
        mut self,
        write: Option<WriteTag>,
        deadline: Instant,
    ) -> Result<Committed, Error> {
        if self.shares.is_empty() && write.is_none() {
            self.ended = true;
            return Ok(Committed::Empty);
        }
        loop {
            let result = self.propose(write, deadline).await;
            let Err(error) = result else { return result };
            match self.closed.take() {
                _ if self.unsure => return self.settle(error).await,
                // What was reserved in it cannot be reserved elsewhere: the statement has to look again.
                Some(chunk) if self.reserves() => {
                    let what = format_args!("chunk {chunk} was closed meanwhile");
                    return Err(contended(what));
                }
                Some(chunk) if Instant::now() < deadline => {
                    self = self.past(chunk, deadline).await?;
                }
                _ => return Err(error),
            }
        }
    }

    /// A writer of the same rows after a chunk was closed: those of the chunk go to the one that takes its place.
    ///
    /// The transaction is a new one, and the old one is aborted: the data nodes hold parts of it for the closed chunk.
    async fn past(self, closed: ChunkId, deadline: Instant) -> Result<Self, Error> {
        let mut next = Self::again(&self.engine, &self.kept());
        drop(self);
        let Some(share) = next.shares.remove(&closed) else {
            return Err(Reject::ChunkClosed(closed).into());
        };
        let point = share.chunk.slices.iter().map(|slice| slice.start()).collect();
        let command = Command::EnsureChunks { table: share.table.id, points: vec![point] };
        let (_, answer) = next.engine.catalog.propose(command, deadline).await?;
        let chunk = match answer? {
            Outcome::Chunks(chunks) => chunks.into_iter().next(),
            _ => None,
        };
        let chunk = chunk.ok_or_else(|| Error::of("XX000", "the catalog gave no chunk"))?;
        for place in next.found.values_mut().filter(|place| **place == closed) {
            *place = chunk.id;
        }
        match next.shares.get_mut(&chunk.id) {
            Some(other) => {
                other.rows += share.rows;
                other.parts.extend(share.parts);
            }
            None => drop(next.shares.insert(chunk.id, Share { chunk, ..share })),
        }
        Ok(next)
    }

    /// Proposes the commit until the log has answered.
    async fn propose(
        &mut self,
        write: Option<WriteTag>,
        deadline: Instant,
    ) -> Result<Committed, Error> {
        loop {
            self.flush(deadline).await?;
            #[cfg(feature = "bug_no_dedupe")]
            let write = write.filter(|_| !hypertide_proto::planted::shown("bug_no_dedupe"));
            let record = self.record(write);
            crate::shield::raise();
            #[cfg(feature = "bug_reply_before_apply")]
            if hypertide_proto::planted::shown("bug_reply_before_apply") {
                let engine = Arc::clone(&self.engine);
                let commit = Command::Commit(record);
                tokio::spawn(async move { engine.catalog.propose(commit, deadline).await });
                self.ended = true;
                let rows = self.shares.values().map(|share| share.rows).sum();
                return Ok(Committed::Before(rows));
            }
            let proposal = self.engine.catalog.propose(Command::Commit(record), deadline).await;
            match proposal {
                // A proposal whose answer was lost may have committed it in an earlier entry than this answer's.
                Ok((_, Ok(Outcome::Committed { csn, decision }))) => {
                    return Ok(self.committed(csn.index(), decision, deadline).await);
                }
                Ok((_, Ok(Outcome::Duplicate { rows, .. }))) => return Ok(Committed::Before(rows)),
                Ok((_, Ok(_))) => return Err(Error::of("40001", "the transaction was aborted")),
                Ok((_, Err(Reject::Uncovered(chunk)))) => {
                    self.learn(*chunk);
                    self.check_epochs()?;
                }
                Ok((_, Err(Reject::ChunkClosed(chunk)))) => {
                    self.closed = Some(chunk);
                    return Err(Reject::ChunkClosed(chunk).into());
                }
                Ok((_, Err(reject))) => return Err(reject.into()),
                Err(error) => {
                    self.unsure |= matches!(error, MetaError::Unknown(_));
                    if Instant::now() + RETRY_DELAY >= deadline {
                        return Err(error.into());
                    }
                    // Proposing again is harmless: the first in the log wins.
                    tokio::time::sleep(RETRY_DELAY).await;
                }
            }
        }
    }

    async fn committed(&mut self, index: u64, decision: Decision, deadline: Instant) -> Committed {
        self.ended = true;
        measures::rows_written(self.shares.values().map(|share| share.rows).sum());
        let told = self.tell(decision);
        if self.reserves() {
            // The next statement is likely to reserve the same, and would be held up.
            tokio::time::timeout(TELL_TIMEOUT, told).await.ok();
        }
        // The commit stands, whether or not the catalog here has caught up with it.
        self.engine.catalog.applied(index, deadline).await.ok();
        Committed::Now(index)
    }

    /// After a proposal whose answer got lost, and an error since: an abort in the log makes the outcome certain,
    /// since the first of the two wins.
    async fn settle(&mut self, error: Error) -> Result<Committed, Error> {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        let abort = Command::Abort { txn: self.txn.id() };
        match self.engine.catalog.propose(abort, deadline).await {
            Ok((_, Ok(Outcome::Committed { csn, decision }))) => {
                Ok(self.committed(csn.index(), decision, deadline).await)
            }
            Ok((_, Ok(_))) if error.state.0 == "08007" => {
                let message = "the transaction was aborted: the log did not answer in time";
                Err(Error::of("57P03", message))
            }
            Ok((_, Ok(_))) => Err(error),
            Ok((_, Err(reject))) => Err(self.unknown(&reject)),
            Err(lost) => Err(self.unknown(&lost)),
        }
    }

    fn unknown(&self, why: &dyn std::fmt::Display) -> Error {
        let message = format_args!("transaction resolution unknown: {why}");
        let detail = format_args!("Transaction {} may have been committed.", self.txn.id());
        Error::of("08007", message).with_detail(detail)
    }

    fn record(&self, write: Option<WriteTag>) -> CommitRecord {
        let part = |share: &Share| CommitPart {
            chunk: share.chunk.id,
            epoch: share.keyed.unwrap_or(share.chunk.epoch),
            acks: share.covered(),
            hash: hypertide_storage::part_hash(share.parts.iter().map(|part| part.hash)),
            rows: share.rows,
            table_version: share.table.version,
            keyed: share.keyed.is_some(),
        };
        CommitRecord { txn: self.txn.id(), write, parts: self.shares.values().map(part).collect() }
    }
}
