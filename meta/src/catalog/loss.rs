//! What an operator decides about a chunk of which no disk holds every commit any more.
//!
//! A chunk is damaged when the last disk that held all of it is gone. What other disks hold of it is a beginning of its
//! commits; no rule may take that for the whole, and the chunk is refused to readers. Only an operator can say that the
//! beginning is what there is from now on: one replica is taken as it stands, and what it lacks is lost for good.
//!
//! - The commits that are lost are named, as a range of commit numbers, and stay with the chunk: their numbers never come
//!   again, so that a replica that holds one of them is known to be of another history, whenever it comes back.
//! - Nobody is told any more that they were commits of this chunk. Parts of them that wait somewhere for the ones before
//!   would otherwise follow the last commit that is left.
//! - The replica is the only one then. Others, in whatever state, are made anew from it.
//! - Ids of writes stay: of a write that is lost in part, the rest would come twice.

use std::fmt;

use hypertide_proto::{
    decision::Fate,
    ids::{ChunkId, Csn, Rid, TxnId},
};
use serde::{Deserialize, Serialize};

use super::{
    Asked, Catalog, Chunk, ChunkState, Decided, Held, Outcome, Reject, RowKey, Tail, apply::Step,
};

/// Commits of a chunk that are lost: those after the first number, up to and with the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// The last commit that is left.
    pub after: Csn,
    /// The last that is lost.
    pub up_to: Csn,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {}]", self.after, self.up_to)
    }
}

impl Chunk {
    /// Whether the replica is a member, or left.
    pub(crate) fn knows(&self, rid: Rid) -> bool {
        self.has_member(rid) || self.left.iter().any(|(left, _)| *left == rid)
    }

    /// Whether a place may be one in its commits, as far as the catalog can tell.
    fn may_hold(&self, held: &Held) -> bool {
        let none = (held.csn == Csn(0)) == (held.chain == 0);
        none && (held.csn < self.last_csn || self.ends_at(held))
    }
}

impl Catalog {
    /// Notes what a disk that was reset still holds of a chunk that it is not in sync of: all of it, so that it may return,
    /// or a part of what nobody holds whole, which is not to be put aside before an operator has decided.
    pub(crate) fn note_rest(&mut self, rid: Rid, held: &Held, step: &mut Step) {
        let Some(chunk) = self.chunks.get(&held.chunk) else { return };
        let of_use = chunk.state == ChunkState::Damaged || chunk.ends_at(held);
        if of_use && !chunk.knows(rid) && held.csn > Csn(0) && chunk.may_hold(held) {
            let mut chunk = chunk.clone();
            chunk.left.push((rid, held.csn));
            self.put_chunk(chunk, step);
        }
    }

    /// Takes what a replica holds of a damaged chunk for all there is.
    pub(crate) fn accept_loss(
        &mut self,
        rid: Rid,
        (held, rows): (&Held, u64),
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        self.current_node(rid)?;
        let chunk = self.existing_chunk(held.chunk)?;
        if chunk.state != ChunkState::Damaged {
            let message = format!("chunk \"{}\" is {}, not damaged", chunk.name, chunk.state);
            return Err(Reject::Replica(message));
        }
        if !chunk.left.iter().any(|(left, _)| *left == rid) || !chunk.may_hold(held) {
            let message = format!("{rid} holds nothing of chunk \"{}\" to go on with", chunk.name);
            return Err(Reject::Replica(message));
        }
        let loss = Loss { after: held.csn, up_to: chunk.last_csn };
        let mut chunk = chunk.clone();
        (chunk.in_sync, chunk.joining, chunk.left) = (vec![rid], Vec::new(), Vec::new());
        (chunk.last_csn, chunk.chain, chunk.rows) = (held.csn, held.chain, rows);
        // Its box may have an open chunk in a later generation by now.
        (chunk.state, chunk.epoch) = (ChunkState::Sealed, chunk.epoch.next());
        chunk.compressed = chunk.compressed.filter(|compressed| compressed.csn <= held.csn);
        chunk.asked = chunk.asked.map(|asked| {
            let up_to = asked.up_to.map(|csn| csn.min(held.csn));
            Asked { up_to, ..asked }
        });
        chunk.lost.extend((loss.after < loss.up_to).then_some(loss));
        let id = chunk.id;
        self.release(id, loss.up_to);
        self.unlink(id, loss.after, step);
        self.put_chunk(chunk, step);
        let applied = [(rid, held.csn)].into_iter().collect();
        self.tails.insert(id, Tail { applied, floor: held.csn });
        step.changes.touch(RowKey::Tail(id));
        Ok(Outcome::LossAccepted { chunk: id, loss })
    }

    /// Takes the chunk out of decisions about commits after `after`.
    fn unlink(&mut self, chunk: ChunkId, after: Csn, step: &mut Step) {
        let names = |decided: &Decided| match &decided.fate {
            Fate::Committed { csn, links } => {
                *csn > after && links.iter().any(|link| link.chunk == chunk)
            }
            Fate::Aborted => false,
        };
        let lost = self.decided.iter().filter(|(_, decided)| names(decided));
        let lost: Vec<(TxnId, Decided)> = lost.map(|(txn, at)| (*txn, at.clone())).collect();
        for (txn, mut decided) in lost {
            if let Fate::Committed { links, .. } = &mut decided.fate {
                links.retain(|link| link.chunk != chunk);
            }
            self.decided.insert(txn, decided);
            step.changes.touch(RowKey::Decided(txn));
        }
    }
}
