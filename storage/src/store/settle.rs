//! A chunk of which no disk held every commit: the replica that goes on as it stands, and those that are of no use then.

use std::sync::PoisonError;

use hypertide_proto::ids::{ChunkId, Csn, Epoch};

use super::{ChunkStore, flush};
use crate::{Error, tables::Point};

impl ChunkStore {
    /// Takes the replica of a chunk as it stands, and says where it ends; `None` when nothing of it is here. What is not
    /// applied is forgotten, durably: parts whose decision is not known, and commits that wait for one that is lost. It is
    /// no member of its chunk in `epoch`, so that no part that was sent until then is counted on; should it be one since,
    /// and this be late, what came for that stays. Blocking.
    pub(crate) fn settle(&self, chunk: ChunkId, epoch: Epoch) -> Result<Option<Point>, Error> {
        // What is decided, and its decision only queued for the journal, is applied then.
        self.flush(&[chunk])?;
        let inner = &self.inner;
        let _writing = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let (applied, removed) = {
            let mut replicas = inner.replicas();
            if let Some(what) = replicas.wrong(chunk) {
                return Err(Error::Damaged { chunk, what: what.to_owned() });
            }
            let gone = flush::released(replicas.settle(chunk, epoch)).collect();
            let applied = replicas.standing(chunk).map(|standing| standing.applied);
            // Under the lock: nothing that comes from now on is ahead of it in the queue.
            (applied, inner.journal.submit(gone))
        };
        inner.wait_for(removed)?;
        Ok(applied)
    }

    /// Makes way for a history of a chunk in which these commits are given up, each range after its first number up to
    /// its second. A replica that has applied any of them goes whole, since what is applied is never taken back. Blocking.
    pub(crate) fn give_up(&self, chunk: ChunkId, lost: &[(Csn, Csn)]) -> Result<(), Error> {
        let inner = &self.inner;
        inner.check_open()?;
        if lost.is_empty() {
            return Ok(());
        }
        let _writing = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let standing = inner.replicas().standing(chunk);
        let Some(applied) = standing.map(|standing| standing.applied.csn) else { return Ok(()) };
        let holds = |range: &&(Csn, Csn)| range.0 < applied && applied <= range.1;
        if let Some((_, up_to)) = lost.iter().find(holds) {
            tracing::warn!(
                "the replica of chunk {chunk} holds commits that were given up: it goes"
            );
            return inner.unlink(&[(chunk, up_to.next())]);
        }
        let mut replicas = inner.replicas();
        let gone = lost.iter().map(|range| replicas.give_up(chunk, *range));
        let gone: Vec<_> = gone.flat_map(flush::released).collect();
        let removed = inner.journal.submit(gone);
        drop(replicas);
        inner.wait_for(removed)
    }
}
