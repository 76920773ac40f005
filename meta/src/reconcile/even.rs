//! Evening out: which replica to move so that data nodes hold and take about equally much.
//!
//! A replica weighs its share of all bytes plus its share of all rows written now; a node, the sum of its replicas. The
//! heaviest node gives to the lightest, as long as that brings both nearer to the mean. Each round moves one replica, so
//! that the next sees what came of it.

use std::collections::BTreeMap;

use hypertide_proto::ids::{ChunkId, NodeId};

use super::plan::{Reason, Scene, SeenNode, Wish};
use crate::catalog::{Chunk, ChunkState, DataNode};

/// Parts of a whole that weights are counted in.
const WHOLE: u64 = 1 << 32;
/// Nodes are left alone while the heaviest and the lightest differ by no more percent of the mean.
const TOLERATED_PERCENT: u64 = 15;
/// Less than this on all nodes together is not worth a move.
const BYTES_MIN: u64 = 1 << 20;

/// Bytes that a node reported.
fn bytes_of(seen: &BTreeMap<NodeId, SeenNode>, node: NodeId) -> u64 {
    let chunks = seen.get(&node).into_iter().flat_map(|node| node.chunks.values());
    chunks.map(|chunk| chunk.bytes).sum()
}

/// What each data node weighs.
pub(super) fn loads(scene: &Scene<'_>) -> BTreeMap<NodeId, u64> {
    let weights = Weights::of(scene);
    let nodes = scene.catalog.data_nodes();
    nodes.map(|node| (node.id(), weights.node(scene, node.id()))).collect()
}

/// The move that evens nodes out most, if one is worth it.
pub(super) fn moves(scene: &Scene<'_>) -> Option<Wish> {
    let weights = Weights::of(scene);
    let serving = |node: &&DataNode| node.takes_new_chunks();
    let nodes: Vec<&DataNode> = scene.catalog.data_nodes().filter(serving).collect();
    let weigh = |node: &DataNode| weights.node(scene, node.id());
    let total: u64 = nodes.iter().map(|node| weigh(node)).sum();
    let mean = total.checked_div(nodes.len() as u64)?;
    let heavy = nodes.iter().max_by_key(|node| (weigh(node), node.id()))?;
    let light = nodes.iter().min_by_key(|node| (weigh(node), node.id()))?;
    let gap = weigh(heavy).saturating_sub(weigh(light));
    if weights.bytes < BYTES_MIN || gap <= mean / 100 * TOLERATED_PERCENT {
        return None;
    }
    let fits = |chunk: &&Chunk| {
        let table = scene.catalog.table(chunk.table).and_then(|table| table.hypertable());
        let held = chunk.in_sync.contains(&heavy.rid) && chunk.joining.is_empty();
        let free = chunk.members().all(|rid| rid.node != light.id());
        let weight = weights.replica(scene, chunk.id, heavy.id());
        // Half the gap at most, or the two would change places.
        let helps = weight > 0 && weight <= gap / 2;
        let attached = table.is_some_and(|made| made.data_nodes.contains(&light.id()));
        chunk.state != ChunkState::Damaged && held && free && helps && attached
    };
    let chunks = scene.catalog.chunks().filter(fits);
    let best =
        chunks.max_by_key(|chunk| (weights.replica(scene, chunk.id, heavy.id()), chunk.id))?;
    Some(Wish { chunk: best.id, target: light.rid, reason: Reason::Rebalance })
}

/// The wholes that weights are shares of.
struct Weights {
    bytes: u64,
    rows: u64,
}

impl Weights {
    fn of(scene: &Scene<'_>) -> Self {
        let bytes = scene.seen.keys().map(|node| bytes_of(scene.seen, *node)).sum();
        let copies =
            |id: &ChunkId| scene.catalog.chunk(*id).map_or(0, |chunk| chunk.in_sync.len() as u64);
        let rows = scene.hot.iter().map(|(id, rows)| rows * copies(id)).sum();
        Self { bytes, rows }
    }

    fn replica(&self, scene: &Scene<'_>, chunk: ChunkId, node: NodeId) -> u64 {
        let seen = scene.seen.get(&node).and_then(|seen| seen.chunks.get(&chunk));
        let rows = scene.hot.get(&chunk).copied().unwrap_or(0);
        share(seen.map_or(0, |seen| seen.bytes), self.bytes) + share(rows, self.rows)
    }

    fn node(&self, scene: &Scene<'_>, node: NodeId) -> u64 {
        let hot = scene.hot.iter().filter_map(|(id, rows)| {
            let chunk = scene.catalog.chunk(*id)?;
            chunk.in_sync.iter().any(|rid| rid.node == node).then_some(*rows)
        });
        share(bytes_of(scene.seen, node), self.bytes) + share(hot.sum(), self.rows)
    }
}

fn share(part: u64, whole: u64) -> u64 {
    let share = u128::from(part) * u128::from(WHOLE) / u128::from(whole.max(1));
    u64::try_from(share).unwrap_or(WHOLE)
}
