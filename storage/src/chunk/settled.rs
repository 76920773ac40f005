//! What a replica lets go of when an operator has decided about its chunk: what it has not applied.

use std::sync::Arc;

use hypertide_proto::ids::{ChunkId, Csn, Epoch};

use super::{Commit, Released, Replicas, Rows, of_chunk};

impl Replicas {
    /// Forgets all of a chunk that is not applied, of parts that were sent in this epoch or before: those that wait for their
    /// decision, and commits that wait for others.
    pub(crate) fn settle(&mut self, chunk: ChunkId, epoch: Epoch) -> Released {
        let old = |rows: &Arc<Rows>| rows.epoch <= epoch;
        let all = (Csn(0), Csn(u64::MAX));
        let mut released = self.forget(chunk, all, |commit| commit.parts.iter().all(old));
        for pending in self.pending.values_mut() {
            let parts = pending.parts.extract_if(of_chunk(chunk), |_, rows| old(rows));
            released.parts.extend(parts.map(|(_, rows)| rows.key));
        }
        self.pending.retain(|_, pending| !pending.parts.is_empty());
        released
    }

    /// Forgets the commits after the first number, up to the second, which are not applied.
    pub(crate) fn give_up(&mut self, chunk: ChunkId, lost: (Csn, Csn)) -> Released {
        self.forget(chunk, lost, |_| true)
    }

    fn forget(
        &mut self,
        chunk: ChunkId,
        (after, up_to): (Csn, Csn),
        goes: impl Fn(&Commit) -> bool,
    ) -> Released {
        let Some(replica) = self.chunks.get_mut(&chunk) else { return Released::default() };
        let after = after.max(replica.applied.csn);
        if up_to <= after {
            return Released::default();
        }
        let gone = replica.commits.extract_if(after.next()..=up_to, |_, commit| goes(commit));
        let gone: Vec<Commit> = gone.map(|(_, commit)| commit).collect();
        for commit in &gone {
            replica.deleted_at.remove(&commit.csn);
            replica.forget_reserved(commit.csn);
        }
        self.release(chunk, gone.into_iter())
    }
}
