//! Replicas: who leaves a chunk's write set, who joins it, and what a lost disk leaves behind.
//!
//! ```text
//! none --start join--> joining --finish join--> in sync --shrink--> left --start join--> joining ...
//!      --return, holding every commit-------->         --remove--> none
//! any  --reset of the disk--> none, or what it was under the next incarnation
//! ```
//!
//! Why a replica may come in: it holds every commit up to a place, by the running hash, and every commit after that
//! place asked for it. `start join` fixes the place, `finish join` takes the proof; `return` does both at once for a
//! replica that holds the last commit already, since none can come in between within one command.
//!
//! Why one may go: while another replica in sync remains. Only the loss of a disk takes the last one, and then a replica
//! that left without missing a commit since stands in; failing that the chunk is damaged, and nothing poses as it.
//!
//! Why a reset may keep a replica in sync: the disk proves, by the running hash, that it holds the chunk's last commit, and
//! with it every one before. What it held beside is batches that nobody decided yet, and those it may have lost. None of
//! their acknowledgements counts any more: they name the incarnation before, and those of keyed parts an epoch before,
//! too. Their coordinators prepare them again under the new one, and what the lost journal had reserved is reserved anew
//! or refused. A chunk without commits is held by any disk. A replica that had left, or was joining, and holds the last
//! commit is one that left complete. Of a chunk that a reset leaves damaged the disk stays known with what it holds, for
//! an operator to decide about (`catalog/loss.rs`).

use std::collections::BTreeMap;

use hypertide_proto::ids::{ChunkId, Csn, DiskId, Epoch, Rid};

use super::{
    Catalog, Chunk, ChunkState, DataNode, Health, Held, Joiner, Outcome, Reject, RowKey,
    apply::Step,
};

impl Chunk {
    /// Whether the replica is in sync or joining.
    #[must_use]
    pub fn has_member(&self, rid: Rid) -> bool {
        self.members().any(|member| member == rid)
    }

    /// Takes the disk off all lists. Whether it was a member.
    fn take_off(&mut self, rid: Rid) -> bool {
        let was = self.has_member(rid);
        self.in_sync.retain(|other| *other != rid);
        self.joining.retain(|joiner| joiner.rid != rid);
        self.left.retain(|(other, _)| *other != rid);
        was
    }

    fn enter(&mut self, rid: Rid) {
        self.take_off(rid);
        self.in_sync.push(rid);
        if self.state == ChunkState::Damaged {
            // Its box may have an open chunk in a later generation by now.
            self.state = ChunkState::Sealed;
        }
    }

    /// After its last in-sync disk is gone: one that left complete stands in, or the chunk is damaged.
    fn mend(&mut self) {
        if !self.in_sync.is_empty() || self.state == ChunkState::Damaged {
            return;
        }
        let complete = self.complete_left().next();
        match complete {
            Some(rid) => self.enter(rid),
            None => self.state = ChunkState::Damaged,
        }
    }

    /// Whether `held` is the chunk's last commit.
    pub(crate) fn ends_at(&self, held: &Held) -> bool {
        (held.csn, held.chain) == (self.last_csn, self.chain)
    }
}

impl Catalog {
    /// Takes a disk out of the write set of chunks. A chunk that it alone is in sync of, or that it is no member of, is
    /// left as it is; the outcome names the others.
    pub(crate) fn shrink(
        &mut self,
        rid: Rid,
        chunks: &[ChunkId],
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let mut changed = Vec::new();
        for id in chunks {
            let Some(chunk) = self.chunks.get(id) else { continue };
            let in_sync = chunk.in_sync.contains(&rid);
            if !chunk.has_member(rid) || (in_sync && chunk.in_sync.len() == 1) {
                continue;
            }
            let mut chunk = chunk.clone();
            // What a joiner left before it began to join stays known.
            let before = chunk.left.iter().find(|(other, _)| *other == rid).copied();
            chunk.take_off(rid);
            chunk.left.extend(if in_sync { Some((rid, chunk.last_csn)) } else { before });
            chunk.epoch = chunk.epoch.next();
            changed.push(*id);
            self.put_replicas(chunk, step);
        }
        Ok(Outcome::Changed(changed))
    }

    /// Takes back replicas that hold every commit of their chunks; the outcome names the chunks for which that is so.
    pub(crate) fn return_replicas(
        &mut self,
        rid: Rid,
        held: &[Held],
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        self.current_node(rid)?;
        let mut changed = Vec::new();
        for held in held {
            let Some(chunk) = self.chunks.get(&held.chunk) else { continue };
            // Of a damaged chunk nothing is known to be complete but who left complete, or joined.
            let open = chunk.state != ChunkState::Damaged;
            if !open || !chunk.ends_at(held) || chunk.nodes().any(|node| node == rid.node) {
                continue;
            }
            let mut chunk = chunk.clone();
            chunk.enter(rid);
            chunk.epoch = chunk.epoch.next();
            changed.push(chunk.id);
            self.put_replicas(chunk, step);
        }
        Ok(Outcome::Changed(changed))
    }

    /// Lets a replica take part in every commit from here on.
    pub(crate) fn start_join(
        &mut self,
        id: ChunkId,
        rid: Rid,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        self.current_node(rid)?;
        let chunk = self.existing_chunk(id)?;
        if chunk.has_member(rid) {
            return Ok(Outcome::Chunks(vec![chunk.clone()]));
        }
        if chunk.state == ChunkState::Damaged || chunk.nodes().any(|node| node == rid.node) {
            return Err(Reject::Replica(format!("{rid} cannot join {chunk}")));
        }
        let mut chunk = chunk.clone();
        chunk.joining.push(Joiner { rid, csn: chunk.last_csn, chain: chunk.chain });
        chunk.epoch = chunk.epoch.next();
        self.put_replicas(chunk.clone(), step);
        Ok(Outcome::Chunks(vec![chunk]))
    }

    /// Gives up a join.
    pub(crate) fn drop_join(
        &mut self,
        id: ChunkId,
        rid: Rid,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let mut chunk = self.existing_chunk(id)?.clone();
        if chunk.joining.iter().all(|joiner| joiner.rid != rid) {
            return Ok(Outcome::Changed(Vec::new()));
        }
        chunk.joining.retain(|joiner| joiner.rid != rid);
        chunk.epoch = chunk.epoch.next();
        self.put_replicas(chunk, step);
        Ok(Outcome::Changed(vec![id]))
    }

    /// Counts a joining replica as in sync, now that it holds what came before it joined.
    ///
    /// The epoch stays: acknowledgements asked for since the start of the join are its own already.
    pub(crate) fn finish_join(
        &mut self,
        rid: Rid,
        held: &Held,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        self.current_node(rid)?;
        let chunk = self.existing_chunk(held.chunk)?;
        if chunk.in_sync.contains(&rid) {
            return Ok(Outcome::Changed(Vec::new()));
        }
        let Some(joiner) = chunk.joining.iter().find(|joiner| joiner.rid == rid) else {
            return Err(Reject::Replica(format!("{rid} does not join chunk {}", chunk.id)));
        };
        let from_start = (held.csn, held.chain) == (joiner.csn, joiner.chain);
        if !from_start && !chunk.ends_at(held) {
            let Held { csn, chain, .. } = held;
            return Err(Reject::Replica(format!(
                "{rid} holds chunk {} up to {csn} with chain {chain:x}, which is not its history at {}",
                chunk.id, joiner.csn
            )));
        }
        let mut chunk = chunk.clone();
        chunk.enter(rid);
        self.put_replicas(chunk, step);
        Ok(Outcome::Changed(vec![held.chunk]))
    }

    /// Takes a replica off a chunk for good: it is not to stand in for another later.
    pub(crate) fn remove_replica(
        &mut self,
        id: ChunkId,
        rid: Rid,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let chunk = self.existing_chunk(id)?;
        if chunk.in_sync == [rid] {
            return Err(Reject::LastReplica(id));
        }
        let (member, left) = (chunk.has_member(rid), chunk.left.iter().any(|left| left.0 == rid));
        if !member && !left {
            return Ok(Outcome::Changed(Vec::new()));
        }
        let mut chunk = chunk.clone();
        if chunk.take_off(rid) {
            chunk.epoch = chunk.epoch.next();
        }
        self.put_replicas(chunk, step);
        Ok(Outcome::Changed(vec![id]))
    }

    /// Closes an open chunk, so that the next row of its box makes a new generation.
    pub(crate) fn seal(
        &mut self,
        id: ChunkId,
        expected: Epoch,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let chunk = self.existing_chunk(id)?;
        if chunk.state == ChunkState::Sealed {
            return Ok(Outcome::Changed(Vec::new()));
        }
        if chunk.state == ChunkState::Damaged {
            return Err(Reject::ChunkClosed(id));
        }
        if chunk.epoch != expected {
            return Err(Reject::StaleEpoch { chunk: id, current: chunk.epoch, given: expected });
        }
        let mut chunk = chunk.clone();
        chunk.state = ChunkState::Sealed;
        chunk.epoch = chunk.epoch.next();
        self.put_replicas(chunk, step);
        Ok(Outcome::Changed(vec![id]))
    }

    /// Gives a data node's disk the next incarnation, which takes the place of the one before in the chunks that it
    /// proves to hold, and takes the one before off all others.
    pub(crate) fn reset_node(
        &mut self,
        rid: Rid,
        (disk, held): (DiskId, &[Held]),
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let node = self.current_node(rid)?;
        let taken = |other: &&DataNode| other.disk == disk && other.id() != rid.node;
        if let Some(other) = self.data_nodes.values().find(taken) {
            let message = format!("disk {disk} is that of data node \"{}\"", other.name);
            return Err(Reject::Identity(message));
        }
        let mut node = node.clone();
        node.rid.incarnation = node.rid.incarnation.next();
        (node.disk, node.health, node.health_since_ms) = (disk, Health::Up, step.at_ms);
        self.data_nodes.insert(rid.node, node.clone());
        step.changes.touch(RowKey::Data(rid.node));
        self.keep_held(rid, (node.rid, held), step);
        let knows = |held: &&Held| self.chunks.get(&held.chunk).is_some_and(|at| at.knows(rid));
        let rest: Vec<Held> = held.iter().filter(knows).copied().collect();
        self.forget_disk(rid, step);
        rest.iter().for_each(|held| self.note_rest(node.rid, held, step));
        Ok(Outcome::Data(node))
    }

    /// Lets the next incarnation of a disk stand for the one before wherever that was in sync and every commit is held.
    fn keep_held(&mut self, old: Rid, (new, held): (Rid, &[Held]), step: &mut Step) {
        let held: BTreeMap<ChunkId, &Held> = held.iter().map(|held| (held.chunk, held)).collect();
        let proven = |chunk: &&Chunk| {
            let ends = held.get(&chunk.id).is_some_and(|held| chunk.ends_at(held));
            chunk.in_sync.contains(&old) && (ends || chunk.last_csn == Csn(0))
        };
        let chunks: Vec<Chunk> = self.chunks.values().filter(proven).cloned().collect();
        for mut chunk in chunks {
            let (id, last) = (chunk.id, chunk.last_csn);
            chunk.in_sync.iter_mut().filter(|rid| **rid == old).for_each(|rid| *rid = new);
            chunk.epoch = chunk.epoch.next();
            self.put_replicas(chunk, step);
            if last > Csn(0) {
                // The proof is a report of what is durable, too: a disk that is turned back once more is told by it.
                self.note_applied(new, (id, last), step);
            }
        }
    }

    /// Takes a disk that will never come back off every chunk.
    pub(crate) fn forget_disk(&mut self, rid: Rid, step: &mut Step) {
        let known = self.chunks.values().filter(|chunk| chunk.knows(rid));
        let chunks: Vec<Chunk> = known.cloned().collect();
        for mut chunk in chunks {
            if chunk.take_off(rid) {
                chunk.epoch = chunk.epoch.next();
            }
            chunk.mend();
            self.put_replicas(chunk, step);
        }
    }

    pub(crate) fn existing_chunk(&self, id: ChunkId) -> Result<&Chunk, Reject> {
        self.chunks.get(&id).ok_or(Reject::UnknownChunk(id))
    }

    /// The node that has this very disk, or the refusal that names it.
    pub(crate) fn current_node(&self, rid: Rid) -> Result<&DataNode, Reject> {
        let node = self.data_nodes.get(&rid.node).filter(|node| node.rid == rid);
        node.ok_or_else(|| {
            Reject::Identity(format!("disk {rid} is not the one that is registered"))
        })
    }

    /// Replaces a chunk whose replicas changed, and lets go of commits that only a replica that went had to learn of.
    fn put_replicas(&mut self, chunk: Chunk, step: &mut Step) {
        let id = chunk.id;
        self.put_chunk(chunk, step);
        self.refloor(id, step);
    }
}
