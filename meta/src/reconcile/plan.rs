//! Wanted against seen: what is to be done about the replicas of all chunks, as values.
//!
//! Every action is safe to do twice or late: the catalog checks each command where it stands in the log. What is chosen
//! here only decides how soon all is well, never what is true.
//!
//! In order of urgency: replicas on dead disks leave the write set; damaged ones are demoted; those that missed nothing
//! return; hot chunks that lack replicas get a new generation on healthy nodes; then copies are made, for nodes that
//! came back, for chunks with too few replicas, for orders, for nodes that are drained, and to even nodes out;
//! what is too much is removed at last. Beside that, replicas are brought to the compression that is asked for.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
};

use hypertide_proto::ids::{ChunkId, Csn, Epoch, NodeId, Rid};

use super::{compression, even};
use crate::{
    catalog::{Catalog, Chunk, ChunkState, DataNode, Health, Held, Order, Table, TableKind},
    placement::{self, Candidate},
};

/// Copies that a node gives or takes at once.
pub const COPIES_PER_NODE: usize = 2;
/// Chunks that one command names.
const CHUNKS_PER_COMMAND: usize = 4_096;
/// Chunks that are sealed in one round: those that are written to now are few.
const SEALS_PER_ROUND: usize = 64;
/// How long a dead node's replicas are waited for before they are copied elsewhere, in milliseconds of log time.
pub const DEAD_AFTER_MS: u64 = 5 * 60 * 1000;

/// What a data node reported last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenNode {
    /// The disk that reported.
    pub rid: Rid,
    /// Its chunks.
    pub chunks: BTreeMap<ChunkId, SeenChunk>,
    /// Those of which stored bytes were found wrong.
    pub damaged: BTreeSet<ChunkId>,
}

/// A replica as its node reported it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeenChunk {
    /// Every commit up to this one is durable there.
    pub csn: Csn,
    /// The running hash there.
    pub chain: u128,
    /// Bytes on disk.
    pub bytes: u64,
    /// What is compressed there; `None` for nothing.
    pub compression: Option<SeenCompression>,
}

/// What a node has compressed of a chunk, as it reported it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeenCompression {
    /// All rows up to this commit are compressed.
    pub csn: Csn,
    /// Encoded bytes of the compressed rows before, and now.
    pub bytes: (u64, u64),
}

/// What a plan is made of.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// What is wanted.
    pub catalog: &'a Catalog,
    /// What is there, by node.
    pub seen: &'a BTreeMap<NodeId, SeenNode>,
    /// Copies under way, with the node that gives.
    pub running: &'a BTreeMap<(ChunkId, NodeId), NodeId>,
    /// Copies that failed a moment ago.
    pub failed: &'a BTreeSet<(ChunkId, NodeId)>,
    /// Chunks that are being compressed, or the like, and where; and those for which that failed a moment ago.
    pub compressing: &'a BTreeMap<(ChunkId, NodeId), bool>,
    /// Replicas that are to go now that a move has put another in their place.
    pub leaving: &'a BTreeMap<ChunkId, NodeId>,
    /// Rows a second of the chunks that are written to.
    pub hot: &'a BTreeMap<ChunkId, u64>,
    /// The leader's clock.
    pub now_ms: u64,
    /// How long a dead node is waited for.
    pub dead_after_ms: u64,
}

/// Why a copy is made; the more urgent the less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A replica that was away catches up.
    Return,
    /// The chunk has too few replicas.
    Repair,
    /// An operator ordered it.
    Order,
    /// A replica's node is drained.
    Drain,
    /// Nodes are evened out.
    Rebalance,
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Take a dead disk out of write sets.
    Shrink {
        /// The disk.
        rid: Rid,
        /// The chunks.
        chunks: Vec<ChunkId>,
    },
    /// Take back replicas that missed nothing.
    Return {
        /// Their disk.
        rid: Rid,
        /// What it holds.
        held: Vec<Held>,
    },
    /// Take a replica off a chunk.
    Remove {
        /// The chunk.
        chunk: ChunkId,
        /// The replica's disk.
        rid: Rid,
        /// Whether its bytes are wrong, and it is not one too many.
        damaged: bool,
    },
    /// Close a chunk, so that its rows go to a new generation.
    Seal {
        /// The chunk.
        chunk: ChunkId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// Bring a replica to a node.
    Join {
        /// The chunk.
        chunk: ChunkId,
        /// The disk that gets it.
        target: Rid,
        /// The disk that gives it.
        source: Rid,
        /// Why.
        reason: Reason,
    },
    /// Bring a replica to the compression that is asked for.
    Compress {
        /// The chunk.
        chunk: ChunkId,
        /// The replica's disk.
        rid: Rid,
    },
    /// Note that all replicas of a chunk are compressed.
    NoteCompressed {
        /// The chunk.
        chunk: ChunkId,
        /// The last commit that is compressed on all, and the bytes of one before and after.
        seen: SeenCompression,
    },
    /// An order was carried out.
    Done {
        /// Its name.
        operation: String,
    },
}

/// What is to be done.
#[must_use]
pub fn plan(scene: &Scene<'_>) -> Vec<Action> {
    let planner = Planner { scene: *scene, dead: dead_nodes(scene), loads: OnceCell::new() };
    let (mut actions, mut joins) = (planner.shrinks(), Vec::new());
    let (mut returns, mut seals) = (BTreeMap::<Rid, Vec<Held>>::new(), 0);
    for chunk in scene.catalog.chunks().filter(|chunk| chunk.state != ChunkState::Damaged) {
        let Some(table) = scene.catalog.table(chunk.table) else { continue };
        if planner.at_rest(chunk, table) {
            continue;
        }
        actions.extend(planner.demotions(chunk));
        if seals < SEALS_PER_ROUND && planner.seals(chunk, table) {
            seals += 1;
            actions.push(Action::Seal { chunk: chunk.id, epoch: chunk.epoch });
        }
        let complete = planner.complete(chunk, table);
        for (rid, held) in &complete {
            returns.entry(*rid).or_default().push(*held);
        }
        if complete.is_empty() {
            joins.extend(planner.joins(chunk, table));
            actions.extend(planner.excess(chunk, table));
        }
    }
    for (rid, held) in returns {
        let parts = held.chunks(CHUNKS_PER_COMMAND);
        actions.extend(parts.map(|part| Action::Return { rid, held: part.to_vec() }));
    }
    for order in scene.catalog.orders() {
        planner.order(order, &mut actions, &mut joins);
    }
    // What is one too many is removed first: until then it is not known who will hold what.
    let settled = !actions.iter().any(|action| matches!(action, Action::Remove { .. }));
    if joins.is_empty() && settled && scene.catalog.rebalancing().enabled {
        joins.extend(even::moves(scene));
    }
    actions.extend(planner.admit(joins));
    actions.extend(compression::actions(scene));
    actions
}

/// A copy that should be made, before it is known who gives it and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) chunk: ChunkId,
    pub(super) target: Rid,
    pub(super) reason: Reason,
    /// The replica to copy from; the least busy one when none is named.
    pub(super) source: Option<Rid>,
}

/// Nodes that do not serve, and whether they have not for so long that nobody waits for them.
fn dead_nodes(scene: &Scene<'_>) -> BTreeMap<NodeId, bool> {
    let away = scene.catalog.data_nodes().filter(|node| !node.serves());
    let long = |node: &DataNode| {
        let down = node.health == Health::Down;
        down && scene.now_ms.saturating_sub(node.health_since_ms) >= scene.dead_after_ms
    };
    away.map(|node| (node.id(), long(node))).collect()
}

struct Planner<'a> {
    scene: Scene<'a>,
    /// Nodes that do not serve; true when they are waited for no more.
    dead: BTreeMap<NodeId, bool>,
    /// What each node weighs, once somebody asks.
    loads: OnceCell<BTreeMap<NodeId, u64>>,
}

impl Planner<'_> {
    fn serves(&self, node: NodeId) -> bool {
        !self.dead.contains_key(&node) && self.scene.catalog.data_node(node).is_some()
    }

    fn node(&self, id: NodeId) -> Option<&DataNode> {
        self.scene.catalog.data_node(id)
    }

    fn draining(&self, node: NodeId) -> bool {
        self.node(node).is_some_and(|node| node.draining)
    }

    /// Whether nothing can be wrong with the chunk, which is so for nearly all of them.
    fn at_rest(&self, chunk: &Chunk, table: &Table) -> bool {
        let sound = |rid: &Rid| {
            self.serves(rid.node) && !self.draining(rid.node) && !self.damaged(chunk, *rid)
        };
        chunk.joining.is_empty()
            && chunk.left.is_empty()
            && chunk.in_sync.iter().all(sound)
            && chunk.in_sync.len() == self.wanted(table)
    }

    /// Replicas that the chunks of a table should have.
    fn wanted(&self, table: &Table) -> usize {
        self.scene.catalog.replicas_wanted(table)
    }

    fn damaged(&self, chunk: &Chunk, rid: Rid) -> bool {
        let Some(seen) = self.scene.seen.get(&rid.node).filter(|seen| seen.rid == rid) else {
            return false;
        };
        // At one commit there is one chain, however old the report is.
        let differs = |at: &SeenChunk| at.csn == chunk.last_csn && at.chain != chunk.chain;
        seen.damaged.contains(&chunk.id) || seen.chunks.get(&chunk.id).is_some_and(differs)
    }

    /// Replicas in sync that can be read and copied.
    fn sound<'c>(&'c self, chunk: &'c Chunk) -> impl Iterator<Item = Rid> + 'c {
        let sound = |rid: &Rid| self.serves(rid.node) && !self.damaged(chunk, *rid);
        chunk.in_sync.iter().copied().filter(sound)
    }

    /// Dead disks leave the write sets in which another one serves: without one, the chunk cannot be written anyway.
    fn shrinks(&self) -> Vec<Action> {
        let gone = |node: &&DataNode| node.unavailable || node.health == Health::Down;
        let mut actions = Vec::new();
        for node in self.scene.catalog.data_nodes().filter(gone) {
            let rid = node.rid;
            let goes = |chunk: &&Chunk| {
                let joins = chunk.joining.iter().any(|joiner| joiner.rid == rid);
                let in_sync = chunk.in_sync.contains(&rid);
                joins || (in_sync && chunk.in_sync.iter().any(|other| self.serves(other.node)))
            };
            let chunks = self.scene.catalog.chunks().filter(goes).map(|chunk| chunk.id);
            let chunks: Vec<ChunkId> = chunks.collect();
            let parts = chunks.chunks(CHUNKS_PER_COMMAND);
            actions.extend(parts.map(|part| Action::Shrink { rid, chunks: part.to_vec() }));
        }
        actions
    }

    fn demotions(&self, chunk: &Chunk) -> Option<Action> {
        let damaged = chunk.in_sync.iter().copied().find(|rid| self.damaged(chunk, *rid))?;
        self.sound(chunk).next()?;
        Some(Action::Remove { chunk: chunk.id, rid: damaged, damaged: true })
    }

    /// Whether the chunk is written to, lacks a replica for as long as a dead node is waited for, and would have all of
    /// them in a new generation.
    fn seals(&self, chunk: &Chunk, table: &Table) -> bool {
        let Some(made) = table.hypertable() else { return false };
        let hot = chunk.state == ChunkState::Open && self.scene.hot.contains_key(&chunk.id);
        if !hot || self.sound(chunk).count() >= self.wanted(table) {
            return false;
        }
        let takes = |node: &&DataNode| self.scene.catalog.takes_chunks_of(made, node);
        let takers = self.scene.catalog.data_nodes().filter(takes).count();
        let unavailable = self.sound(chunk).next().is_none();
        let awaited = chunk.left.iter().any(|(rid, _)| !self.serves(rid.node));
        let dead = |rid: &Rid| self.node(rid.node).is_some_and(|node| node.health == Health::Down);
        let all_dead = chunk.in_sync.iter().all(dead);
        (unavailable && all_dead && takers > 0) || (awaited && takers >= self.wanted(table))
    }

    /// Replicas that left and hold the last commit: they may return as they are.
    fn complete(&self, chunk: &Chunk, table: &Table) -> Vec<(Rid, Held)> {
        let lacking = self.wanted(table).saturating_sub(chunk.members().count());
        let returns = chunk.left.iter().filter_map(|(rid, _)| {
            let seen = self.scene.seen.get(&rid.node).filter(|seen| seen.rid == *rid)?;
            let at = seen.chunks.get(&chunk.id)?;
            let held = Held { chunk: chunk.id, csn: at.csn, chain: at.chain };
            let ends = (at.csn, at.chain) == (chunk.last_csn, chunk.chain);
            let fit =
                self.serves(rid.node) && !chunk.has_member(*rid) && !self.damaged(chunk, *rid);
            (ends && fit).then_some((*rid, held))
        });
        returns.take(lacking).collect()
    }

    /// Copies that the chunk needs.
    fn joins(&self, chunk: &Chunk, table: &Table) -> Vec<Wish> {
        let wish =
            |target: Rid, reason: Reason| Wish { chunk: chunk.id, target, reason, source: None };
        // A join whose leader went away is begun anew.
        let begun = chunk.joining.iter().filter(|joiner| self.serves(joiner.rid.node));
        let mut wishes: Vec<Wish> = begun.map(|joiner| wish(joiner.rid, Reason::Return)).collect();
        let staying = chunk.members().filter(|rid| !self.draining(rid.node)).count();
        let mut lacking = self.wanted(table).saturating_sub(staying);
        let away = |rid: Rid| !chunk.has_member(rid);
        for (rid, _) in chunk.left.iter().filter(|(rid, _)| away(*rid)) {
            match self.dead.get(&rid.node) {
                // It is waited for.
                Some(false) => lacking = lacking.saturating_sub(1),
                Some(true) => {}
                None if lacking > 0 && !self.draining(rid.node) => {
                    lacking -= 1;
                    wishes.push(wish(*rid, Reason::Return));
                }
                None => {}
            }
        }
        let drains = chunk.in_sync.iter().any(|rid| self.draining(rid.node));
        let reason = if drains { Reason::Drain } else { Reason::Repair };
        let targets = self.targets(chunk, table, &wishes, lacking);
        wishes.extend(targets.into_iter().map(|target| wish(target, reason)));
        wishes
    }

    /// Nodes for new replicas: those of the chunk's bucket first, then those with the fewest replicas of the table.
    fn targets(&self, chunk: &Chunk, table: &Table, wishes: &[Wish], count: usize) -> Vec<Rid> {
        if count == 0 {
            return Vec::new();
        }
        let attached = |node: &DataNode| match &table.kind {
            TableKind::Reference => self.serves(node.id()) && !node.draining,
            TableKind::Hypertable(made) => self.scene.catalog.takes_chunks_of(made, node),
        };
        let free = |node: &&DataNode| {
            let wished = wishes.iter().any(|wish| wish.target.node == node.id());
            attached(node) && !wished && chunk.members().all(|rid| rid.node != node.id())
        };
        let replicas = |node| self.scene.catalog.replicas(table.id, node);
        let candidates: Vec<Candidate> = self
            .scene
            .catalog
            .data_nodes()
            .filter(free)
            .map(|node| Candidate { node: node.id(), replicas: replicas(node.id()) })
            .collect();
        let hash = chunk.slices.get(1).map(|slice| slice.start().max(0));
        let bucket = table.hypertable().map_or(&[][..], |made| made.bucket_nodes(hash));
        let factor = u16::try_from(count).unwrap_or(u16::MAX);
        let chosen = placement::choose(bucket, &candidates, factor);
        chosen.into_iter().filter_map(|id| self.node(id)).map(|node| node.rid).collect()
    }

    /// One replica too many, or a trace of one that is not needed any more.
    fn excess(&self, chunk: &Chunk, table: &Table) -> Option<Action> {
        let id = chunk.id;
        let remove = |rid: Rid| Some(Action::Remove { chunk: id, rid, damaged: false });
        let ordered = |order: &&Order| order.chunk == id;
        let busy = self.scene.running.keys().any(|(running, _)| *running == id);
        if busy || !chunk.joining.is_empty() || self.scene.catalog.orders().any(|o| ordered(&o)) {
            return None;
        }
        let (wanted, sound) = (self.wanted(table), self.sound(chunk).count());
        let staying = self.sound(chunk).filter(|rid| !self.draining(rid.node)).count();
        // While its node is away it costs nothing, and may yet be the only one that holds everything.
        let needless = |rid: &Rid| self.dead.get(&rid.node).is_none_or(|long| *long);
        let trace = chunk.left.iter().map(|(rid, _)| *rid).find(needless);
        if sound >= wanted
            && staying >= wanted.min(1)
            && let Some(rid) = trace
        {
            return remove(rid);
        }
        if sound <= wanted || sound < 2 {
            return None;
        }
        let made = table.hypertable();
        let hash = chunk.slices.get(1).map(|slice| slice.start().max(0));
        let bucket = made.map_or(&[][..], |made| made.bucket_nodes(hash));
        let detached = |rid: &Rid| made.is_some_and(|made| !made.data_nodes.contains(&rid.node));
        let loads = self.loads.get_or_init(|| even::loads(&self.scene));
        let load = |rid: &Rid| loads.get(&rid.node).copied().unwrap_or(0);
        let worst = self.sound(chunk).max_by_key(|rid| {
            let leaves = self.draining(rid.node) || detached(rid);
            let moved = self.scene.leaving.get(&id) == Some(&rid.node);
            (leaves, moved, load(rid), !bucket.contains(&rid.node), rid.node)
        });
        worst.and_then(remove)
    }

    /// The next step of an order.
    fn order(&self, order: &Order, actions: &mut Vec<Action>, wishes: &mut Vec<Wish>) {
        let (Some(chunk), Some(target)) =
            (self.scene.catalog.chunk(order.chunk), self.node(order.target))
        else {
            return;
        };
        let source = order.source.and_then(|source| self.node(source)).map(|node| node.rid);
        if !chunk.in_sync.contains(&target.rid) {
            let (chunk, target) = (chunk.id, target.rid);
            let wish = Wish { chunk, target, reason: Reason::Order, source: None };
            if self.serves(target.node) && wishes.iter().all(|other| !other.same(&wish)) {
                wishes.push(wish);
            }
        } else if let Some(source) = source {
            let there = chunk.in_sync.contains(&source);
            actions.push(if there {
                Action::Remove { chunk: chunk.id, rid: source, damaged: false }
            } else {
                Action::Done { operation: order.operation.clone() }
            });
        }
    }

    /// Gives each wish a source, the most urgent and hottest first, as long as no node has too much to do.
    fn admit(&self, mut wishes: Vec<Wish>) -> Vec<Action> {
        let heat = |chunk: &ChunkId| self.scene.hot.get(chunk).copied().unwrap_or(0);
        wishes.sort_by_key(|wish| (wish.reason, std::cmp::Reverse(heat(&wish.chunk)), wish.chunk));
        let mut load: BTreeMap<NodeId, usize> = BTreeMap::new();
        for ((_, target), source) in self.scene.running {
            *load.entry(*target).or_default() += 1;
            *load.entry(*source).or_default() += 1;
        }
        let mut actions = Vec::new();
        for Wish { chunk, target, reason, source: wanted } in wishes {
            let key = (chunk, target.node);
            let under_way =
                self.scene.running.contains_key(&key) || self.scene.failed.contains(&key);
            let busy = |node: NodeId| load.get(&node).copied().unwrap_or(0);
            if under_way || busy(target.node) >= COPIES_PER_NODE {
                continue;
            }
            let Some(row) = self.scene.catalog.chunk(chunk) else { continue };
            let sources = self.sound(row).filter(|rid| rid.node != target.node);
            let source = sources.min_by_key(|rid| (Some(*rid) != wanted, busy(rid.node), rid.node));
            let Some(source) = source else {
                continue;
            };
            if busy(source.node) >= COPIES_PER_NODE {
                continue;
            }
            *load.entry(target.node).or_default() += 1;
            *load.entry(source.node).or_default() += 1;
            actions.push(Action::Join { chunk, target, source, reason });
        }
        actions
    }
}

impl Wish {
    fn same(&self, other: &Self) -> bool {
        (self.chunk, self.target) == (other.chunk, other.target)
    }
}
