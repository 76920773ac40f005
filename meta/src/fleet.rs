//! What the data nodes reported last, in memory only; at the leader also the way of their progress into the log.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use hypertide_proto::{
    ids::{ChunkId, Csn, NodeId, Rid},
    wire::meta::{ChunkProgress, HeartbeatRequest},
};

use crate::{
    catalog::{Catalog, Command},
    node::{CatalogWriter, MetaNode},
    reconcile::{
        detect::HEARD_WITHIN,
        plan::{SeenChunk, SeenCompression, SeenNode},
    },
};

/// A data node that was not heard of for this long is down.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Pause between two rounds of progress into the log.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);
/// Chunks of one progress command.
const PROGRESS_CHUNKS: usize = 4_096;

/// The data nodes that were heard of.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    nodes: Mutex<BTreeMap<NodeId, Heard>>,
}

/// The last that was heard of a data node.
#[derive(Debug)]
struct Heard {
    rid: Rid,
    at: Instant,
    /// Since when it has been heard of without a pause.
    steady: Instant,
    pid: u32,
    chunks: BTreeMap<ChunkId, ChunkProgress>,
    damaged: BTreeSet<ChunkId>,
    free_bytes: u64,
}

/// The last that was heard of a data node, in sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) up: bool,
    pub(crate) pid: u32,
    pub(crate) chunks: u64,
    pub(crate) bytes: u64,
    pub(crate) rows: u64,
    pub(crate) free_bytes: u64,
}

impl Fleet {
    /// Takes a heartbeat in. False when only a full report would make sense of it.
    pub(crate) fn hear(&self, rid: Rid, heartbeat: HeartbeatRequest) -> bool {
        let mut nodes = self.lock();
        let known = nodes.get(&rid.node).is_some_and(|heard| heard.rid == rid);
        if !known && !heartbeat.full {
            return false;
        }
        let at = Instant::now();
        let fresh = || Heard {
            rid,
            at,
            steady: at,
            pid: 0,
            chunks: BTreeMap::new(),
            damaged: BTreeSet::new(),
            free_bytes: 0,
        };
        if !known {
            nodes.remove(&rid.node);
        }
        let heard = nodes.entry(rid.node).or_insert_with(fresh);
        if heartbeat.full {
            heard.chunks.clear();
        }
        if at.duration_since(heard.at) > HEARD_WITHIN {
            heard.steady = at;
        }
        (heard.at, heard.pid, heard.free_bytes) = (at, heartbeat.pid, heartbeat.free_bytes);
        heard.damaged = heartbeat.damaged.into_iter().map(ChunkId).collect();
        for progress in heartbeat.progress {
            heard.chunks.insert(ChunkId(progress.chunk), progress);
        }
        true
    }

    /// Chunks that a node reported and that this catalog has no use for on its disk. A replica that left is of use: it may
    /// come back.
    pub(crate) fn strange(&self, rid: Rid, catalog: &Catalog) -> Vec<ChunkId> {
        let nodes = self.lock();
        let heard = nodes.get(&rid.node).filter(|heard| heard.rid == rid);
        let chunks = heard.into_iter().flat_map(|heard| heard.chunks.keys());
        chunks.copied().filter(|id| !wanted(catalog, *id, rid)).collect()
    }

    /// Forgets chunks that a node is told to remove.
    pub(crate) fn forget(&self, node: NodeId, chunks: &[ChunkId]) {
        if let Some(heard) = self.lock().get_mut(&node) {
            for chunk in chunks {
                heard.chunks.remove(chunk);
            }
        }
    }

    /// What was heard of the disk.
    pub(crate) fn summary(&self, rid: Rid) -> Summary {
        let nodes = self.lock();
        let Some(heard) = nodes.get(&rid.node).filter(|heard| heard.rid == rid) else {
            return Summary::default();
        };
        Summary {
            up: heard.at.elapsed() < SILENCE_MAX,
            pid: heard.pid,
            chunks: heard.chunks.len() as u64,
            bytes: heard.chunks.values().map(|progress| progress.bytes).sum(),
            rows: heard.chunks.values().map(|progress| progress.rows).sum(),
            free_bytes: heard.free_bytes,
        }
    }

    /// How long the disk has been silent, and for how long it was heard of without a pause before. Silence is counted from
    /// `since` at most, when given: before that nobody here listened, which is no reason to suspect a node, nor to
    /// take it for one that is back.
    pub(crate) fn silence(&self, rid: Rid, since: Option<Instant>) -> (Duration, Duration) {
        let nodes = self.lock();
        let heard = nodes.get(&rid.node).filter(|heard| heard.rid == rid);
        let last = heard.map(|heard| heard.at).max(since);
        let silent = last.map_or(Duration::MAX, |last| last.elapsed());
        (silent, heard.map_or(Duration::ZERO, |heard| heard.at.duration_since(heard.steady)))
    }

    /// Whether the disk was heard of lately.
    pub(crate) fn hears(&self, rid: Rid) -> bool {
        let nodes = self.lock();
        let heard = nodes.get(&rid.node).filter(|heard| heard.rid == rid);
        heard.is_some_and(|heard| heard.at.elapsed() < SILENCE_MAX)
    }

    /// What every node reported last.
    pub(crate) fn seen(&self) -> BTreeMap<NodeId, SeenNode> {
        let nodes = self.lock();
        let seen = nodes.iter().map(|(id, heard)| {
            let chunks = heard.chunks.iter().map(|(id, progress)| (*id, seen_chunk(progress)));
            let (rid, damaged) = (heard.rid, heard.damaged.clone());
            (*id, SeenNode { rid, chunks: chunks.collect(), damaged })
        });
        seen.collect()
    }

    /// Replicas that were reported to have wrong bytes.
    pub(crate) fn damaged(&self) -> Vec<(ChunkId, Rid)> {
        let nodes = self.lock();
        let of = |heard: &Heard| {
            let rid = heard.rid;
            heard.damaged.iter().map(move |chunk| (*chunk, rid)).collect::<Vec<_>>()
        };
        nodes.values().flat_map(of).collect()
    }

    /// The progress that is not in the log yet, in commands of bounded size.
    fn unlogged(&self, catalog: &Catalog) -> Vec<(Rid, Vec<(ChunkId, Csn)>)> {
        let nodes = self.lock();
        let mut commands = Vec::new();
        for heard in nodes.values() {
            let news = heard.chunks.iter().filter_map(|(id, progress)| {
                // Compared with the log itself: who returns to a chunk must be noted again.
                let chunk = catalog.chunk(*id)?;
                let csn = Csn(progress.applied_csn).min(chunk.last_csn);
                let learns =
                    chunk.members().chain(chunk.complete_left()).any(|rid| rid == heard.rid);
                let logged = catalog.applied(*id, heard.rid).unwrap_or_default();
                (learns && csn > logged).then_some((*id, csn))
            });
            let news: Vec<(ChunkId, Csn)> = news.collect();
            commands.extend(news.chunks(PROGRESS_CHUNKS).map(|part| (heard.rid, part.to_vec())));
        }
        commands
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Heard>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// At the leader, puts into the log what data nodes have made durable, so that the catalog can forget decisions.
pub(crate) async fn report_progress(node: Weak<MetaNode>) {
    loop {
        tokio::time::sleep(PROGRESS_INTERVAL).await;
        let Some(node) = node.upgrade() else { return };
        if !node.member().is_ok_and(|member| member.leader.here()) {
            continue;
        }
        for (rid, applied) in node.fleet().unlogged(&node.image().catalog) {
            let command = Command::Progress { rid, applied };
            // What did not get through is tried again in the next round.
            drop(node.propose(command, Instant::now() + PROGRESS_INTERVAL).await);
        }
    }
}

/// Whether the catalog wants a chunk on a disk, or may.
fn wanted(catalog: &Catalog, id: ChunkId, rid: Rid) -> bool {
    let left = |chunk: &crate::catalog::Chunk| chunk.left.iter().any(|(left, _)| *left == rid);
    catalog.chunk(id).is_some_and(|chunk| chunk.has_member(rid) || left(chunk))
}

/// A report as a value.
pub(crate) fn seen_chunk(progress: &ChunkProgress) -> SeenChunk {
    let chain = progress.chain.as_ref().try_into().map_or(0, u128::from_be_bytes);
    let compression = progress
        .compression
        .as_ref()
        .map(|of| SeenCompression { csn: Csn(of.csn), bytes: (of.before_bytes, of.after_bytes) });
    SeenChunk { csn: Csn(progress.applied_csn), chain, bytes: progress.bytes, compression }
}

#[cfg(test)]
mod tests {
    use hypertide_proto::ids::Incarnation;

    use super::*;

    fn heartbeat(full: bool, progress: &[(u64, u64)]) -> HeartbeatRequest {
        let progress = progress.iter().map(|&(chunk, applied_csn)| ChunkProgress {
            chunk,
            applied_csn,
            rows: 10,
            bytes: 100,
            ..ChunkProgress::default()
        });
        HeartbeatRequest { full, pid: 42, progress: progress.collect(), ..Default::default() }
    }

    fn rid(incarnation: u64) -> Rid {
        Rid { node: NodeId(1), incarnation: Incarnation(incarnation) }
    }

    #[test]
    fn a_stranger_must_report_in_full_first() {
        let fleet = Fleet::default();
        assert!(!fleet.hear(rid(1), heartbeat(false, &[(1, 5)])));
        assert_eq!(fleet.summary(rid(1)), Summary::default());
        assert!(fleet.hear(rid(1), heartbeat(true, &[(1, 5), (2, 6)])));
        assert!(fleet.hear(rid(1), heartbeat(false, &[(3, 7)])));
        let summary = Summary { up: true, pid: 42, chunks: 3, bytes: 300, rows: 30, free_bytes: 0 };
        assert_eq!(fleet.summary(rid(1)), summary);
    }

    #[test]
    fn another_disk_of_the_node_starts_anew() {
        let fleet = Fleet::default();
        assert!(fleet.hear(rid(1), heartbeat(true, &[(1, 5)])));
        assert!(!fleet.hear(rid(2), heartbeat(false, &[])));
        assert!(fleet.hear(rid(2), heartbeat(true, &[])));
        assert_eq!(fleet.summary(rid(2)).chunks, 0);
        assert!(!fleet.summary(rid(1)).up);
    }

    #[test]
    fn unknown_chunks_are_strange_until_forgotten() {
        let fleet = Fleet::default();
        assert!(fleet.hear(rid(1), heartbeat(true, &[(1, 5)])));
        let catalog = Catalog::default();
        assert_eq!(fleet.strange(rid(1), &catalog), [ChunkId(1)]);
        assert!(fleet.unlogged(&catalog).is_empty());
        fleet.forget(NodeId(1), &[ChunkId(1)]);
        assert!(fleet.strange(rid(1), &catalog).is_empty());
    }
}
