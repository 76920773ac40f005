//! The leader's rounds, with the product's detector and planner; copies are steps of their own.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use hypertide_meta::{
    catalog::{Command, DataNode, Health, Held, Outcome},
    reconcile::{
        detect::{HEARD_WITHIN, Sign, judge},
        plan::{Action, Scene, SeenChunk, SeenNode, plan},
    },
};
use hypertide_proto::ids::{ChunkId, Csn, NodeId, Rid};

use crate::cluster::{At, Cluster, Event};

const ROUND_MS: u64 = 250;
/// How long a dead node is waited for before its replicas are copied.
const DEAD_AFTER_MS: u64 = 15_000;
const RETRY_MS: u64 = 1_000;
const HOT_MS: u64 = 3_000;

/// The last that an access node heard of a data node.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    at: u64,
    steady: u64,
    seen: SeenNode,
}

/// What the leader remembers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leadership {
    since: u64,
    round: u64,
    jobs: BTreeMap<(ChunkId, NodeId), Job>,
    failed: BTreeMap<(ChunkId, NodeId), u64>,
    rows: BTreeMap<ChunkId, (u64, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Job {
    source: Rid,
    target: Rid,
    joining: Option<(Csn, u64)>,
}

impl Leadership {
    pub(crate) fn at(since: u64) -> Self {
        Self { since, ..Self::default() }
    }
}

impl Cluster {
    pub(crate) fn hear(&mut self, access: usize, node: usize) {
        let data = &self.data[node];
        let rid = data.rid.expect("it serves");
        let seen = |chunk: &ChunkId| {
            let (csn, chain) = data.point(*chunk);
            (*chunk, SeenChunk { csn, chain, bytes: 10 << 20, ..SeenChunk::default() })
        };
        let chunks = data.replicas.keys().map(seen).collect();
        let seen = SeenNode { rid, chunks, damaged: BTreeSet::new() };
        let (now, heard) = (self.now, &mut self.access[access].heard);
        let before = heard.get(&rid.node).filter(|before| before.seen.rid == rid);
        let within = HEARD_WITHIN.as_millis() as u64;
        let steady = before.filter(|before| now - before.at <= within).map(|before| before.steady);
        heard.insert(rid.node, Heard { at: now, steady: steady.unwrap_or(now), seen });
    }

    /// One round of the leader.
    pub(crate) fn round(&mut self) {
        self.after(ROUND_MS, Event::Round);
        self.watch_leader();
        let Some(leader) = self.leader else { return };
        let nodes: Vec<DataNode> = self.catalog.data_nodes().cloned().collect();
        for node in &nodes {
            self.judge_node(leader, node);
        }
        self.leadership.round += 1;
        if self.leadership.round.is_multiple_of(2) {
            self.plan_and_run(leader);
        }
    }

    fn judge_node(&mut self, leader: usize, node: &DataNode) {
        let heard = self.access[leader].heard.get(&node.id());
        let heard = heard.filter(|heard| heard.seen.rid == node.rid);
        let since = self.leadership.since;
        let (at, steady) = heard.map_or((since, since), |heard| (heard.at, heard.steady));
        let up = node.health == Health::Up;
        let at = if up { at.max(since) } else { at };
        let at = if heard.is_none() && !up { 0 } else { at };
        // A node that has just registered has not had time for a heartbeat.
        let up_for = self.now.saturating_sub(node.health_since_ms);
        let silent = self.now - at;
        let silent = if up { silent.min(up_for) } else { silent };
        let answers = self.connected(At::Access(leader), At::Data(Self::node_of(node.rid)));
        let sign = Sign {
            health: node.health,
            silent: Duration::from_millis(silent),
            steady: Duration::from_millis(at.saturating_sub(steady)),
            answered: (node.health == Health::Suspect).then_some(answers),
        };
        let health = judge(sign);
        if health != node.health {
            let _ = self.propose(leader, &Command::SetHealth { rid: node.rid, health });
        }
    }

    fn plan_and_run(&mut self, leader: usize) {
        let now = self.now;
        for chunk in self.catalog.chunks() {
            let rows = self.leadership.rows.entry(chunk.id).or_insert((0, 0));
            if rows.0 != chunk.rows {
                *rows = (chunk.rows, now);
            }
        }
        self.leadership.failed.retain(|_, until| *until > now);
        let recent = self.leadership.rows.iter().filter(|(_, (_, at))| now < at + HOT_MS);
        let hot: BTreeMap<ChunkId, u64> = recent.map(|(id, _)| (*id, 1)).collect();
        let heard = &self.access[leader].heard;
        let seen = heard.iter().map(|(id, heard)| (*id, heard.seen.clone())).collect();
        let running = self.leadership.jobs.iter().map(|(key, job)| (*key, job.source.node));
        let running = running.collect();
        let failed = self.leadership.failed.keys().copied().collect();
        let actions = plan(&Scene {
            catalog: &self.catalog,
            seen: &seen,
            running: &running,
            failed: &failed,
            compressing: &BTreeMap::new(),
            leaving: &BTreeMap::new(),
            hot: &hot,
            now_ms: now,
            dead_after_ms: DEAD_AFTER_MS,
        });
        for action in actions {
            self.perform(leader, action);
        }
    }

    fn perform(&mut self, leader: usize, action: Action) {
        let command = match action {
            Action::Shrink { rid, chunks } => Command::Shrink { rid, chunks },
            Action::Return { rid, held } => Command::Return { rid, held },
            Action::Remove { chunk, rid, .. } => Command::RemoveReplica { chunk, rid },
            Action::Seal { chunk, epoch } => Command::Seal { chunk, epoch },
            Action::Done { operation } => Command::CancelOrder { operation },
            // Nobody asks for it here.
            Action::Compress { .. } | Action::NoteCompressed { .. } => return,
            Action::Join { chunk, target, source, .. } => {
                let job = Job { source, target, joining: None };
                self.leadership.jobs.insert((chunk, target.node), job);
                let delay = self.delay();
                return self.after(delay, Event::Copy(chunk, target.node));
            }
        };
        let _ = self.propose(leader, &command);
    }

    /// The next step of a copy.
    pub(crate) fn copy(&mut self, chunk: ChunkId, node: NodeId) {
        let (Some(leader), Some(job)) =
            (self.leader, self.leadership.jobs.get(&(chunk, node)).copied())
        else {
            return;
        };
        match self.copy_step(leader, chunk, job) {
            Some(true) => {
                self.leadership.jobs.remove(&(chunk, node));
            }
            Some(false) => {
                let delay = self.delay() * 5;
                self.after(delay, Event::Copy(chunk, node));
            }
            None => {
                if job.joining.is_some() {
                    let drop_join = Command::DropJoin { chunk, rid: job.target };
                    let _ = self.propose(leader, &drop_join);
                }
                self.leadership.jobs.remove(&(chunk, node));
                self.leadership.failed.insert((chunk, node), self.now + RETRY_MS);
            }
        }
    }

    /// Whether the copy is done; `None` when it failed.
    fn copy_step(&mut self, leader: usize, chunk: ChunkId, job: Job) -> Option<bool> {
        let (target, source) = (Self::node_of(job.target), Self::node_of(job.source));
        let reachable = self.connected(At::Access(leader), At::Data(target))
            && self.connected(At::Data(target), At::Data(source));
        let same = self.data[target].rid == Some(job.target)
            && self.data[source].rid == Some(job.source)
            && self.data[target].serves
            && self.data[source].serves;
        if !reachable || !same {
            return None;
        }
        let row = self.catalog.chunk(chunk)?.clone();
        let begun = row.joining.iter().any(|joiner| joiner.rid == job.target);
        if begun && job.joining.is_none() {
            self.propose(leader, &Command::DropJoin { chunk, rid: job.target }).ok()?.ok()?;
        }
        self.catch_up(chunk, target, source);
        let Some((place, since)) = job.joining else {
            return self.join(leader, chunk, job);
        };
        let replica = self.data[target].replicas.get(&chunk).cloned().unwrap_or_default();
        let at = replica.iter().find(|committed| committed.csn == place);
        let chain = match (at, place) {
            (Some(at), _) => at.chain,
            (None, Csn(0)) => 0,
            // The source has not heard of that commit yet.
            (None, _) if self.now < since + 5_000 => return Some(false),
            (None, _) => return None,
        };
        let held = Held { chunk, csn: place, chain };
        let finish = Command::FinishJoin { rid: job.target, held };
        self.propose(leader, &finish).ok()?.ok()?;
        Some(true)
    }

    fn join(&mut self, leader: usize, chunk: ChunkId, job: Job) -> Option<bool> {
        let (csn, chain) = self.data[Self::node_of(job.target)].point(chunk);
        let rid = job.target;
        if self.catalog.chunk(chunk)?.last_csn == csn {
            let command = Command::Return { rid, held: vec![Held { chunk, csn, chain }] };
            let outcome = self.propose(leader, &command).ok()?.ok()?;
            if outcome == Outcome::Changed(vec![chunk]) {
                return Some(true);
            }
        }
        let outcome = self.propose(leader, &Command::StartJoin { chunk, rid }).ok()?.ok()?;
        let Outcome::Chunks(chunks) = outcome else { return None };
        let joiner = chunks.first()?.joining.iter().find(|joiner| joiner.rid == rid)?;
        let joining = Some((joiner.csn, self.now));
        self.leadership.jobs.insert((chunk, rid.node), Job { joining, ..job });
        Some(false)
    }

    /// The target takes what the source has and it lacks, or everything when its own history is another.
    fn catch_up(&mut self, chunk: ChunkId, target: usize, source: usize) {
        self.make_way(chunk, target);
        let theirs = self.data[source].replicas.get(&chunk).cloned().unwrap_or_default();
        let (now, data) = (self.now, &mut self.data[target]);
        data.copied.insert(chunk, now);
        let own = data.replicas.entry(chunk).or_default();
        if own.starts_with(&theirs) {
            return;
        }
        *own = theirs;
        let held: BTreeSet<_> = own.iter().map(|committed| committed.txn).collect();
        data.pending.retain(|(txn, of), _| *of != chunk || !held.contains(txn));
        data.advance(chunk);
    }
}
