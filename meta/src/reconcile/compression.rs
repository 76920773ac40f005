//! Which replicas are not compressed as their chunks are asked to be.
//!
//! The statement that asks sees to it itself and has some time alone. What is left then was away, joined since, or lost
//! its statement. A replica that is not in sync waits until it is: what it copies may be compressed already.

use std::collections::BTreeMap;

use hypertide_proto::ids::{NodeId, Rid};

use super::plan::{Action, Scene, SeenChunk, SeenCompression};
use crate::catalog::{Asked, Chunk};

/// Replicas of a node that are rewritten at once.
const REWRITES_PER_NODE: usize = 1;
/// How long a statement that asks has alone, in milliseconds of log time.
pub(super) const ALONE_MS: u64 = 10_000;

/// What is to be done about all chunks.
pub(super) fn actions(scene: &Scene<'_>) -> Vec<Action> {
    let mut load: BTreeMap<NodeId, usize> = BTreeMap::new();
    for ((_, node), under_way) in scene.compressing {
        *load.entry(*node).or_default() += usize::from(*under_way);
    }
    let mut actions = Vec::new();
    for chunk in scene.catalog.chunks() {
        let Some(asked) = chunk.asked else { continue };
        if scene.now_ms.saturating_sub(asked.at_ms) < ALONE_MS {
            continue;
        }
        let replicas: Vec<(Rid, Option<SeenChunk>)> =
            chunk.in_sync.iter().map(|rid| (*rid, seen(scene, chunk, *rid))).collect();
        for (rid, seen) in &replicas {
            let busy = load.entry(rid.node).or_default();
            let known = scene.compressing.contains_key(&(chunk.id, rid.node));
            let lacks = seen.is_some_and(|seen| !follows(asked, seen.compression));
            if lacks && !known && *busy < REWRITES_PER_NODE {
                *busy += 1;
                actions.push(Action::Compress { chunk: chunk.id, rid: *rid });
            }
        }
        actions.extend(note(chunk, asked, &replicas));
    }
    actions
}

/// The replica as its node reported it, if that serves.
fn seen(scene: &Scene<'_>, chunk: &Chunk, rid: Rid) -> Option<SeenChunk> {
    let serves = scene.catalog.data_node(rid.node).is_some_and(|node| node.serves());
    let node = scene.seen.get(&rid.node).filter(|seen| serves && seen.rid == rid)?;
    node.chunks.get(&chunk.id).filter(|_| !node.damaged.contains(&chunk.id)).copied()
}

/// Whether a replica is as asked.
fn follows(asked: Asked, seen: Option<SeenCompression>) -> bool {
    match (asked.up_to, seen) {
        (None, seen) => seen.is_none(),
        (Some(csn), seen) => seen.is_some_and(|seen| seen.csn >= csn),
    }
}

/// What the catalog does not know of yet: that all replicas are compressed.
fn note(chunk: &Chunk, asked: Asked, replicas: &[(Rid, Option<SeenChunk>)]) -> Option<Action> {
    let up_to = asked.up_to?;
    if chunk.compressed.is_some_and(|known| known.csn >= up_to) {
        return None;
    }
    let all: Option<Vec<SeenCompression>> = replicas
        .iter()
        .map(|(_, seen)| seen.and_then(|seen| seen.compression))
        .map(|seen| seen.filter(|seen| seen.csn >= up_to))
        .collect();
    let seen = all?.into_iter().min_by_key(|seen| seen.csn)?;
    Some(Action::NoteCompressed { chunk: chunk.id, seen })
}
