//! What the data nodes reported last, in memory only; at the leader also the way of their progress into the log.

use std::{
    collections::BTreeMap,
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
    pid: u32,
    chunks: BTreeMap<ChunkId, ChunkProgress>,
    /// What of the progress was put into the log.
    logged: BTreeMap<ChunkId, Csn>,
}

/// The last that was heard of a data node, in sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) up: bool,
    pub(crate) pid: u32,
    pub(crate) chunks: u64,
    pub(crate) bytes: u64,
    pub(crate) rows: u64,
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
        let fresh = || Heard { rid, at, pid: 0, chunks: BTreeMap::new(), logged: BTreeMap::new() };
        if !known {
            nodes.remove(&rid.node);
        }
        let heard = nodes.entry(rid.node).or_insert_with(fresh);
        if heartbeat.full {
            heard.chunks.clear();
        }
        (heard.at, heard.pid) = (at, heartbeat.pid);
        for progress in heartbeat.progress {
            heard.chunks.insert(ChunkId(progress.chunk), progress);
        }
        true
    }

    /// Chunks that a node reported and this catalog does not know.
    pub(crate) fn strange(&self, node: NodeId, catalog: &Catalog) -> Vec<ChunkId> {
        let nodes = self.lock();
        let chunks = nodes.get(&node).into_iter().flat_map(|heard| heard.chunks.keys());
        chunks.copied().filter(|id| catalog.chunk(*id).is_none()).collect()
    }

    /// Forgets chunks that a node is told to remove.
    pub(crate) fn forget(&self, node: NodeId, chunks: &[ChunkId]) {
        if let Some(heard) = self.lock().get_mut(&node) {
            for chunk in chunks {
                heard.chunks.remove(chunk);
                heard.logged.remove(chunk);
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
        }
    }

    /// The progress that is not in the log yet, in commands of bounded size.
    fn unlogged(&self, catalog: &Catalog) -> Vec<(Rid, Vec<(ChunkId, Csn)>)> {
        let nodes = self.lock();
        let mut commands = Vec::new();
        for heard in nodes.values() {
            let news = heard.chunks.iter().filter_map(|(id, progress)| {
                let csn = Csn(progress.applied_csn);
                let logged = heard.logged.get(id).copied().unwrap_or_default();
                (csn > logged && catalog.chunk(*id).is_some()).then_some((*id, csn))
            });
            let news: Vec<(ChunkId, Csn)> = news.collect();
            commands.extend(news.chunks(PROGRESS_CHUNKS).map(|part| (heard.rid, part.to_vec())));
        }
        commands
    }

    fn logged(&self, rid: Rid, applied: &[(ChunkId, Csn)]) {
        if let Some(heard) = self.lock().get_mut(&rid.node).filter(|heard| heard.rid == rid) {
            heard.logged.extend(applied.iter().copied());
        }
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
            let command = Command::Progress { rid, applied: applied.clone() };
            // What did not get through is tried again in the next round.
            if node.propose(command, Instant::now() + PROGRESS_INTERVAL).await.is_ok() {
                node.fleet().logged(rid, &applied);
            }
        }
    }
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
        let summary = Summary { up: true, pid: 42, chunks: 3, bytes: 300, rows: 30 };
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
        assert_eq!(fleet.strange(NodeId(1), &catalog), [ChunkId(1)]);
        assert!(fleet.unlogged(&catalog).is_empty());
        fleet.forget(NodeId(1), &[ChunkId(1)]);
        assert!(fleet.strange(NodeId(1), &catalog).is_empty());
    }
}
