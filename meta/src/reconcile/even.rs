//! Evening out: which replicas to move so that data nodes hold and take about equally much.
//!
//! A replica weighs its share of all bytes plus its share of all rows written now; a node, the sum of its replicas. The
//! heaviest node gives to the lightest, as long as that brings both nearer to the mean. Moves that are under way count
//! as done, so that several can be, and none is made twice.

use std::collections::{BTreeMap, BTreeSet};

use hypertide_proto::ids::{ChunkId, NodeId};

use super::plan::{Reason, Scene, Wish};
use crate::catalog::{Chunk, ChunkState, DataNode};

/// Parts of a whole that weights are counted in.
const WHOLE: u64 = 1 << 32;
/// Nodes are left alone while the heaviest and the lightest differ by no more percent of the mean.
const TOLERATED_PERCENT: u64 = 15;
/// Less than this on all nodes together is not worth a move.
const BYTES_MIN: u64 = 1 << 20;
/// Moves under way at once.
const MOVES_MAX: usize = 4;

/// What each data node weighs.
pub(super) fn loads(scene: &Scene<'_>) -> BTreeMap<NodeId, u64> {
    Weights::of(scene).loads(scene)
}

/// The moves that even nodes out most, as far as they are worth it.
pub(super) fn moves(scene: &Scene<'_>) -> Vec<Wish> {
    let weights = Weights::of(scene);
    let mut loads = weights.loads(scene);
    let mut moving: BTreeSet<ChunkId> = scene.running.keys().map(|(chunk, _)| *chunk).collect();
    let mut wishes = Vec::new();
    if weights.bytes < BYTES_MIN {
        return wishes;
    }
    for _ in scene.running.len()..MOVES_MAX {
        let Some((chunk, from, to)) = next(scene, (&weights, &loads), &moving) else { break };
        let weight = weights.replica(chunk.id);
        let load = loads.entry(from).or_default();
        *load = load.saturating_sub(weight);
        *loads.entry(to.id()).or_default() += weight;
        moving.insert(chunk.id);
        wishes.push(Wish { chunk: chunk.id, target: to.rid, reason: Reason::Rebalance });
    }
    wishes
}

/// The one move that helps most.
fn next<'a>(
    scene: &Scene<'a>,
    (weights, loads): (&Weights, &BTreeMap<NodeId, u64>),
    moving: &BTreeSet<ChunkId>,
) -> Option<(&'a Chunk, NodeId, &'a DataNode)> {
    let weigh = |node: &DataNode| loads.get(&node.id()).copied().unwrap_or(0);
    let serving = |node: &&DataNode| node.takes_new_chunks();
    let nodes: Vec<&DataNode> = scene.catalog.data_nodes().filter(serving).collect();
    let total: u64 = nodes.iter().map(|node| weigh(node)).sum();
    let mean = total.checked_div(nodes.len() as u64)?;
    let heavy = *nodes.iter().max_by_key(|node| (weigh(node), node.id()))?;
    let light = *nodes.iter().min_by_key(|node| (weigh(node), node.id()))?;
    let gap = weigh(heavy).saturating_sub(weigh(light));
    if gap <= mean / 100 * TOLERATED_PERCENT {
        return None;
    }
    let fits = |chunk: &&Chunk| {
        let table = scene.catalog.table(chunk.table).and_then(|table| table.hypertable());
        let held = chunk.in_sync.contains(&heavy.rid) && chunk.joining.is_empty();
        let free = chunk.members().all(|rid| rid.node != light.id())
            && !moving.contains(&chunk.id)
            && !scene.failed.contains(&(chunk.id, light.id()));
        let weight = weights.replica(chunk.id);
        // Half the gap at most, or the two would change places.
        let helps = weight > 0 && weight <= gap / 2;
        let taken = table.is_some_and(|made| scene.catalog.takes_chunks_of(made, light));
        chunk.state != ChunkState::Damaged && held && free && helps && taken
    };
    let chunks = scene.catalog.chunks().filter(fits);
    let best = chunks.max_by_key(|chunk| (weights.replica(chunk.id), chunk.id))?;
    Some((best, heavy.id(), light))
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

    fn replica(&self, chunk: ChunkId) -> u64 {
        let bytes = self.chunks.get(&chunk).copied().unwrap_or(0);
        let rows = self.hot.get(&chunk).copied().unwrap_or(0);
        share(bytes, self.bytes) + share(rows, self.rows)
    }

    /// The nodes' weights, once the copies that are under way are made, each in the place of another replica.
    fn loads(&self, scene: &Scene<'_>) -> BTreeMap<NodeId, u64> {
        let mut loads: BTreeMap<NodeId, u64> =
            scene.catalog.data_nodes().map(|node| (node.id(), 0)).collect();
        for chunk in scene.catalog.chunks() {
            let weight = self.replica(chunk.id);
            for rid in &chunk.in_sync {
                *loads.entry(rid.node).or_default() += weight;
            }
        }
        for (id, target) in scene.running.keys() {
            let Some(chunk) = scene.catalog.chunk(*id) else { continue };
            if chunk.in_sync.iter().any(|rid| rid.node == *target) {
                continue;
            }
            let weight = self.replica(*id);
            // Whoever gives the bytes, the replica that goes is that of the heaviest.
            let holders = chunk.in_sync.iter().map(|rid| rid.node);
            let goes = holders.max_by_key(|node| (loads.get(node).copied(), *node));
            if let Some(load) = goes.and_then(|node| loads.get_mut(&node)) {
                *load = load.saturating_sub(weight);
            }
            *loads.entry(*target).or_default() += weight;
        }
        loads
    }
}

fn share(part: u64, whole: u64) -> u64 {
    let share = u128::from(part) * u128::from(WHOLE) / u128::from(whole.max(1));
    u64::try_from(share).unwrap_or(WHOLE)
}
