//! Chunks that lose all of their disks at once, and the operator who takes what is left of one for all there is.
//!
//! The operator does what `hypertide_accept_loss` does, step by step, so that anything may come between: asks the nodes
//! that left the chunk how much they hold, lets the one that holds most settle there, and makes that the chunk's end.

use hypertide_meta::catalog::{Chunk, ChunkState, Command, Held, Loss};
use hypertide_proto::ids::{ChunkId, Csn, Epoch, Rid};

use crate::cluster::{ACCESS, At, Bug, Cluster, Event, FAULTS_MS};

/// Pause between two looks at the damaged chunks, at most.
const OPERATE_MS: u64 = 1_000;
/// Longest that a step of the operator is on its way, now and then.
const LATE_MS: u64 = 3_000;
/// Pause between two looks for a chunk that can be ruined.
const RUIN_MS: u64 = 20;
/// How long a ruined node is away: not long, so that others still are.
const RUINED_MS: u64 = 300;
/// Commits on a replica that is worth being lost.
const WORTH: usize = 3;

/// What an operator is about to take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taking {
    access: usize,
    chunk: ChunkId,
    epoch: Epoch,
    rid: Rid,
}

impl Cluster {
    /// Whether an operator gave up a commit.
    pub(crate) fn gave_up(&self, chunk: ChunkId, csn: Csn) -> bool {
        let within = |loss: &Loss| loss.after < csn && csn <= loss.up_to;
        self.catalog.chunk(chunk).is_some_and(|chunk| chunk.lost.iter().any(within))
    }

    /// Loses every disk that is in sync of some chunk, as soon as there is one of which another disk holds a part.
    pub(crate) fn ruin(&mut self) {
        if self.now >= FAULTS_MS {
            return;
        }
        let Some(chunk) = self.catalog.chunks().find(|chunk| self.may_ruin(chunk)).cloned() else {
            return self.after(RUIN_MS, Event::Ruin);
        };
        self.say(|| format!("ruin {chunk}"));
        self.totals.ruined += 1;
        let here = |(rid, _): &(Rid, Csn)| self.awake(At::Data(Self::node_of(*rid)));
        // Those that are away and come back with more than what was taken have to be made anew.
        let of_four = if chunk.left.iter().any(here) { 1 } else { 3 };
        let keeps = self.below(4) < of_four;
        for rid in chunk.in_sync {
            let node = Self::node_of(rid);
            self.wiped.insert(rid);
            if keeps {
                // It holds less than those that left, if they hold anything.
                let left = chunk.left.iter().map(|(_, csn)| *csn).max().unwrap_or(chunk.last_csn);
                let held = self.data[node].replicas.get(&chunk.id).into_iter().flatten();
                let since = held.filter(|one| one.csn >= left).count();
                let gone = since + self.below(2) as usize;
                self.data[node].lose_journal(|of| if of == chunk.id { gone } else { 0 });
            } else {
                self.data[node].wipe();
            }
            self.stop_data(node, RUINED_MS);
        }
    }

    /// Whether a chunk has something to lose, and one that left it and has missed a commit.
    fn may_ruin(&self, chunk: &Chunk) -> bool {
        let behind = |(rid, csn): &(Rid, Csn)| {
            let data = &self.data[Self::node_of(*rid)];
            let held = data.replicas.get(&chunk.id).map_or(0, Vec::len);
            *csn < chunk.last_csn && data.rid == Some(*rid) && held >= WORTH
        };
        let whole = |rid: &Rid| self.runs_as(*rid);
        chunk.state != ChunkState::Damaged
            && chunk.in_sync.iter().all(whole)
            && chunk.left.iter().any(behind)
    }

    /// Looks for a damaged chunk, and asks those that left it how much they hold.
    pub(crate) fn operate(&mut self) {
        let pause = 1 + self.below(OPERATE_MS);
        self.after(pause, Event::Operate);
        let damaged = self.catalog.chunks().filter(|chunk| chunk.state == ChunkState::Damaged);
        let damaged: Vec<Chunk> = damaged.cloned().collect();
        if damaged.is_empty() || self.below(2) == 0 {
            return;
        }
        let chunk = &damaged[self.below(damaged.len() as u64) as usize];
        let access = self.below(ACCESS as u64) as usize;
        // The catalog is one as of a barrier.
        let informed = self.leader.is_some_and(|leader| {
            self.leads(leader) && self.connected(At::Access(access), At::Access(leader))
        });
        let left = chunk.left.iter().map(|(rid, _)| *rid);
        let holders = left.filter(|rid| informed && self.answers(access, (*rid, chunk.id)));
        let most = holders.max_by_key(|rid| self.data[Self::node_of(*rid)].point(chunk.id));
        let Some(rid) = most else { return };
        let (id, epoch) = (chunk.id, chunk.epoch);
        let delay = self.step_delay();
        self.after(delay, Event::Settle(Taking { access, chunk: id, epoch, rid }));
    }

    fn step_delay(&mut self) -> u64 {
        if self.below(4) == 0 { 1 + self.below(LATE_MS) } else { self.delay() }
    }

    /// Whether there is a replica on the disk that is registered: one may have left before it got anything.
    pub(crate) fn may_take(&self, rid: Rid, chunk: ChunkId) -> bool {
        let data = &self.data[Self::node_of(rid)];
        self.runs_as(rid) && data.has_any(chunk)
    }

    fn answers(&self, access: usize, (rid, chunk): (Rid, ChunkId)) -> bool {
        let (node, data) = (Self::node_of(rid), &self.data[Self::node_of(rid)]);
        let serves = data.serves && self.may_take(rid, chunk);
        serves && self.connected(At::Access(access), At::Data(node))
    }

    /// The node that is to go on stays where it is, and says where that is.
    pub(crate) fn settle(&mut self, taking: Taking) {
        let Taking { access, chunk, epoch, rid } = taking;
        if !self.answers(access, (rid, chunk)) {
            return;
        }
        self.say(|| format!("{rid} settles {chunk}"));
        let keeps = self.bug == Some(Bug::KeepsWaiting);
        let data = &mut self.data[Self::node_of(rid)];
        if !keeps {
            self.totals.forgotten += data.settle(chunk, epoch);
        }
        let (csn, chain) = data.point(chunk);
        let rows = data.replicas.get(&chunk).map_or(0, Vec::len) as u64;
        let delay = self.step_delay();
        self.after(delay, Event::Accept(taking, Held { chunk, csn, chain }, rows));
    }

    /// Makes what the node holds the end of the chunk.
    pub(crate) fn accept(&mut self, taking: Taking, held: Held, rows: u64) {
        let command = Command::AcceptLoss { rid: taking.rid, held, rows };
        // Without an answer the operator looks again.
        let _ = self.propose(taking.access, &command);
    }

    pub(crate) fn note_loss(&mut self, chunk: ChunkId, loss: Loss) {
        let within = |(of, _, csn): &&(ChunkId, _, Csn)| {
            *of == chunk && loss.after < *csn && *csn <= loss.up_to
        };
        let commits = self.writes.iter().flat_map(|write| &write.commits);
        self.totals.lost += commits.filter(within).count() as u64;
        self.totals.accepted += 1;
        self.totals.damaged += u64::from(self.totals.ruined == 0);
        self.note_holders(chunk);
    }

    /// A node that is to hold a replica lets go of what was given up.
    pub(crate) fn make_way(&mut self, chunk: ChunkId, node: usize) {
        let lost = self.catalog.chunk(chunk).map(|chunk| chunk.lost.clone()).unwrap_or_default();
        if self.bug != Some(Bug::KeepsLost) && self.data[node].give_up(chunk, &lost) {
            self.say(|| format!("d{} makes {chunk} anew", node + 1));
            self.totals.anew += 1;
        }
    }
}
