//! Evening out: which replicas to move so that data nodes hold about equally many bytes and take about equally many rows.
//!
//! Bytes come first, and chunks that nobody writes to are moved for them; then rows, without making bytes uneven again:
//! a chunk that is written to and is large changes places with one that is not. Moves that are under way count as done,
//! so that several can be, and none is made twice. A move names the replica that is to go ([`Wish::source`]): what is
//! too much is judged by the same weights otherwise, and would not always be the same.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use hypertide_proto::ids::{ChunkId, NodeId};

use super::plan::{Reason, Scene, Wish};
use crate::catalog::{Chunk, ChunkState, DataNode};

/// Parts of a whole that weights are counted in.
const WHOLE: u64 = 1 << 32;
/// Nodes are left alone while the heaviest and the lightest differ by no more percent of the mean: in bytes, and in rows,
/// which come and go.
const BYTES_PERCENT: u64 = 15;
const ROWS_PERCENT: u64 = 25;
/// Less than this on all nodes together is not worth a move.
const BYTES_MIN: u64 = 1 << 20;
/// Moves under way at once.
const MOVES_MAX: usize = 4;

/// What each data node weighs: its share of all bytes and of all rows written now.
pub(super) fn loads(scene: &Scene<'_>) -> BTreeMap<NodeId, u64> {
    let weights = Weights::of(scene);
    let (bytes, rows) = (weights.loads(scene, Kind::Bytes), weights.loads(scene, Kind::Rows));
    bytes.0.iter().map(|(node, load)| (*node, load + rows.of(*node))).collect()
}

/// The moves that even nodes out most, as far as they are worth it.
pub(super) fn moves(scene: &Scene<'_>) -> Vec<Wish> {
    let weights = Weights::of(scene);
    if weights.bytes < BYTES_MIN {
        return Vec::new();
    }
    let mut round = Round {
        scene,
        bytes: weights.loads(scene, Kind::Bytes),
        rows: weights.loads(scene, Kind::Rows),
        weights,
        moving: scene.running.keys().map(|(chunk, _)| *chunk).collect(),
        wishes: Vec::new(),
    };
    while scene.running.len() + round.wishes.len() < MOVES_MAX {
        if !round.even_bytes() && !round.even_rows() {
            break;
        }
    }
    round.wishes
}

/// What is weighed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bytes,
    Rows,
}

/// What nodes weigh, those that chunks may be moved between.
#[derive(Clone, Debug, Default)]
struct Loads(BTreeMap<NodeId, u64>);

impl Loads {
    fn of(&self, node: NodeId) -> u64 {
        self.0.get(&node).copied().unwrap_or(0)
    }

    fn shift(&mut self, weight: u64, from: NodeId, to: NodeId) {
        let load = self.0.entry(from).or_default();
        *load = load.saturating_sub(weight);
        *self.0.entry(to).or_default() += weight;
    }
}

/// Moves that are thought of in one plan.
struct Round<'a> {
    scene: &'a Scene<'a>,
    weights: Weights,
    bytes: Loads,
    rows: Loads,
    moving: BTreeSet<ChunkId>,
    wishes: Vec<Wish>,
}

impl Round<'_> {
    /// Thinks of a move for the sake of bytes; whether there is one.
    fn even_bytes(&mut self) -> bool {
        let Some((heavy, light, gap)) = self.uneven(&self.bytes, BYTES_PERCENT) else {
            return false;
        };
        let best = self.candidates(heavy, light).filter(|chunk| {
            let weight = self.weights.weigh(Kind::Bytes, chunk.id);
            // Half the gap at most, or the two would change places.
            weight > 0 && weight <= gap / 2
        });
        // A chunk that is written to stays where it is for the sake of rows, if another one does.
        let best = best.max_by_key(|chunk| {
            let (rows, bytes) = self.weights.both(chunk.id);
            (rows == 0, bytes, Reverse(rows), chunk.id)
        });
        let best = best.map(|chunk| chunk.id);
        best.is_some_and(|chunk| self.wish(chunk, heavy, light))
    }

    /// Thinks of a move for the sake of rows, and of another one back when it makes bytes uneven; whether there is one.
    fn even_rows(&mut self) -> bool {
        let Some((heavy, light, gap)) = self.uneven(&self.rows, ROWS_PERCENT) else { return false };
        let best = self.candidates(heavy, light).filter(|chunk| {
            let weight = self.weights.weigh(Kind::Rows, chunk.id);
            weight > 0 && weight <= gap / 2
        });
        let best = best.max_by_key(|chunk| (self.weights.weigh(Kind::Rows, chunk.id), chunk.id));
        let Some(best) = best.map(|chunk| chunk.id) else { return false };
        let weight = self.weights.weigh(Kind::Bytes, best);
        let mut after = self.bytes.clone();
        after.shift(weight, heavy, light);
        if self.spread(&after)
            <= self.spread(&self.bytes).max(self.tolerated(&self.bytes, BYTES_PERCENT))
        {
            return self.wish(best, heavy, light);
        }
        // One of about as many bytes, that is hardly written to, goes the other way.
        let rows = self.weights.weigh(Kind::Rows, best);
        let back = self.candidates(light, heavy).filter(|chunk| {
            let (its_rows, its_bytes) = self.weights.both(chunk.id);
            let mut swapped = after.clone();
            swapped.shift(its_bytes, light, heavy);
            let limit = self.spread(&self.bytes).max(self.tolerated(&self.bytes, BYTES_PERCENT));
            its_rows <= rows / 4 && self.spread(&swapped) <= limit
        });
        let back = back.min_by_key(|chunk| {
            let (its_rows, its_bytes) = self.weights.both(chunk.id);
            (its_bytes.abs_diff(weight), its_rows, chunk.id)
        });
        let Some(back) = back.map(|chunk| chunk.id) else { return false };
        self.wish(best, heavy, light) && self.wish(back, light, heavy)
    }

    /// The heaviest and the lightest node and by how much they differ, when that is too much.
    fn uneven(&self, loads: &Loads, percent: u64) -> Option<(NodeId, NodeId, u64)> {
        let nodes = || self.nodes().map(|node| (loads.of(node.id()), node.id()));
        let (heavy, light) = (nodes().max()?, nodes().min()?);
        let gap = heavy.0 - light.0;
        (gap > self.tolerated(loads, percent)).then_some((heavy.1, light.1, gap))
    }

    fn spread(&self, loads: &Loads) -> u64 {
        let nodes = || self.nodes().map(|node| loads.of(node.id()));
        nodes().max().unwrap_or(0) - nodes().min().unwrap_or(0)
    }

    fn tolerated(&self, loads: &Loads, percent: u64) -> u64 {
        let total: u64 = self.nodes().map(|node| loads.of(node.id())).sum();
        let mean = total.checked_div(self.nodes().count() as u64).unwrap_or(0);
        mean / 100 * percent
    }

    /// Nodes that chunks may be moved between.
    fn nodes(&self) -> impl Iterator<Item = &DataNode> {
        self.scene.catalog.data_nodes().filter(|node| node.takes_new_chunks())
    }

    /// Chunks of which the replica on `from` could be on `to` instead.
    fn candidates(&self, from: NodeId, to: NodeId) -> impl Iterator<Item = &Chunk> {
        let catalog = self.scene.catalog;
        let fits = move |chunk: &&Chunk| {
            let table = catalog.table(chunk.table).and_then(|table| table.hypertable());
            let target = catalog.data_node(to);
            let taken = table
                .zip(target)
                .is_some_and(|(made, target)| catalog.takes_chunks_of(made, target));
            let held = chunk.in_sync.iter().any(|rid| rid.node == from);
            let free = chunk.joining.is_empty()
                && chunk.members().all(|rid| rid.node != to)
                && !self.moving.contains(&chunk.id)
                && !self.scene.failed.contains(&(chunk.id, to));
            chunk.state != ChunkState::Damaged && held && free && taken
        };
        catalog.chunks().filter(fits)
    }

    fn wish(&mut self, chunk: ChunkId, from: NodeId, to: NodeId) -> bool {
        let rid = |node| self.scene.catalog.data_node(node).map(|node| node.rid);
        let (Some(target), source) = (rid(to), rid(from)) else { return false };
        let (rows, bytes) = self.weights.both(chunk);
        self.bytes.shift(bytes, from, to);
        self.rows.shift(rows, from, to);
        self.moving.insert(chunk);
        self.wishes.push(Wish { chunk, target, reason: Reason::Rebalance, source });
        true
    }
}

/// What replicas weigh, and the wholes that the weights are shares of.
struct Weights {
    /// Bytes of one replica of a chunk: what the fullest reported, for one that was just made has reported nothing.
    chunks: BTreeMap<ChunkId, u64>,
    /// Rows a second of the chunks that are written to.
    hot: BTreeMap<ChunkId, u64>,
    /// Of all replicas in sync.
    bytes: u64,
    rows: u64,
}

impl Weights {
    fn of(scene: &Scene<'_>) -> Self {
        let mut chunks: BTreeMap<ChunkId, u64> = BTreeMap::new();
        for (id, seen) in scene.seen.values().flat_map(|node| &node.chunks) {
            let bytes = chunks.entry(*id).or_default();
            *bytes = seen.bytes.max(*bytes);
        }
        let copies =
            |id: &ChunkId| scene.catalog.chunk(*id).map_or(0, |chunk| chunk.in_sync.len() as u64);
        let bytes = chunks.iter().map(|(id, bytes)| bytes * copies(id)).sum();
        let rows = scene.hot.iter().map(|(id, rows)| rows * copies(id)).sum();
        Self { chunks, hot: scene.hot.clone(), bytes, rows }
    }

    /// Rows and bytes of one replica.
    fn both(&self, chunk: ChunkId) -> (u64, u64) {
        (self.weigh(Kind::Rows, chunk), self.weigh(Kind::Bytes, chunk))
    }

    fn weigh(&self, kind: Kind, chunk: ChunkId) -> u64 {
        let (weights, whole) = match kind {
            Kind::Bytes => (&self.chunks, self.bytes),
            Kind::Rows => (&self.hot, self.rows),
        };
        share(weights.get(&chunk).copied().unwrap_or(0), whole)
    }

    /// The nodes' weights, once the copies that are under way are made, each in the place of its source.
    fn loads(&self, scene: &Scene<'_>, kind: Kind) -> Loads {
        let nodes = scene.catalog.data_nodes().map(|node| (node.id(), 0));
        let mut loads = Loads(nodes.collect());
        for chunk in scene.catalog.chunks() {
            let weight = self.weigh(kind, chunk.id);
            let goes = scene.leaving.get(&chunk.id);
            for rid in chunk.in_sync.iter().filter(|rid| Some(&rid.node) != goes) {
                *loads.0.entry(rid.node).or_default() += weight;
            }
        }
        for ((id, target), source) in scene.running {
            let Some(chunk) = scene.catalog.chunk(*id) else { continue };
            if chunk.in_sync.iter().all(|rid| rid.node != *target) {
                loads.shift(self.weigh(kind, *id), *source, *target);
            }
        }
        loads
    }
}

fn share(part: u64, whole: u64) -> u64 {
    let share = u128::from(part) * u128::from(WHOLE) / u128::from(whole.max(1));
    u64::try_from(share).unwrap_or(WHOLE)
}
