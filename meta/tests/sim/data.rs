//! Data nodes: what is on their disks, and how they take part.

use std::collections::{BTreeMap, BTreeSet};

use hypertide_meta::catalog::{Command, DataNode, Held, Loss, Outcome};
use hypertide_proto::{
    decision::{Fate, chain_after},
    ids::{ChunkId, Csn, Epoch, Rid, TxnId},
};

use crate::cluster::{ACCESS, At, Cluster, Event};

const HEARTBEAT_MS: u64 = 500;
const RESOLVE_MS: u64 = 1_000;
/// A batch that waits for this long makes an access node end its transaction.
const OPEN_MAX_MS: u64 = 30_000;
/// A chunk that was copied is not dropped for so long: the catalog may be about to list the replica.
const KEPT_MS: u64 = 30_000;

/// A committed batch on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Committed {
    pub(crate) csn: Csn,
    pub(crate) txn: TxnId,
    pub(crate) chain: u128,
}

/// A batch that waits for its decision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub(crate) hash: u128,
    pub(crate) at: u64,
    /// That of the chunk when it was sent.
    pub(crate) epoch: Epoch,
}

/// A batch that is decided, and waits for the commit before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    batch: Pending,
    txn: TxnId,
    prev: Csn,
}

#[derive(Clone, Debug)]
pub(crate) struct Data {
    node: usize,
    pub(crate) disk: u8,
    pub(crate) up: bool,
    pub(crate) paused: bool,
    pub(crate) slow_until: u64,
    /// As the disk remembers it.
    pub(crate) rid: Option<Rid>,
    /// Whether it has registered since it started.
    pub(crate) serves: bool,
    pub(crate) pending: BTreeMap<(TxnId, ChunkId), Pending>,
    pub(crate) waiting: BTreeMap<(ChunkId, Csn), Waiting>,
    pub(crate) replicas: BTreeMap<ChunkId, Vec<Committed>>,
    pub(crate) copied: BTreeMap<ChunkId, u64>,
}

impl Data {
    pub(crate) fn new(node: usize) -> Self {
        Self {
            node,
            disk: 1,
            up: true,
            paused: false,
            slow_until: 0,
            rid: None,
            serves: false,
            pending: BTreeMap::new(),
            waiting: BTreeMap::new(),
            replicas: BTreeMap::new(),
            copied: BTreeMap::new(),
        }
    }

    pub(crate) fn stop(&mut self) {
        (self.up, self.serves) = (false, false);
    }

    pub(crate) fn wipe(&mut self) {
        let disk = self.disk + 1;
        *self = Self { disk, ..Self::new(self.node) };
        self.stop();
    }

    /// Loses the journal, with all that waits and the last commits of some replicas: `lost` says how many of one.
    pub(crate) fn lose_journal(&mut self, mut lost: impl FnMut(ChunkId) -> usize) {
        self.disk += 1;
        self.pending.clear();
        self.waiting.clear();
        for (chunk, replica) in &mut self.replicas {
            replica.truncate(replica.len().saturating_sub(lost(*chunk)));
        }
        self.stop();
    }

    /// Puts aside all but these chunks.
    fn put_aside(&mut self, kept: &BTreeSet<ChunkId>) {
        self.pending.retain(|(_, chunk), _| kept.contains(chunk));
        self.waiting.retain(|(chunk, _), _| kept.contains(chunk));
        self.replicas.retain(|chunk, _| kept.contains(chunk));
        self.copied.clear();
    }

    /// Where its replica of a chunk ends.
    pub(crate) fn point(&self, chunk: ChunkId) -> (Csn, u128) {
        let last = self.replicas.get(&chunk).and_then(|replica| replica.last());
        last.map_or((Csn(0), 0), |last| (last.csn, last.chain))
    }

    /// Whether every commit of the chunk is on the disk, as committed or as pending.
    pub(crate) fn holds_all(&self, chunk: ChunkId, commits: &[(TxnId, Csn)]) -> bool {
        let replica = self.replicas.get(&chunk).map_or(&[][..], Vec::as_slice);
        let place = |csn: &Csn| replica.binary_search_by_key(csn, |committed| committed.csn);
        commits.iter().all(|(txn, csn)| {
            place(csn).is_ok()
                || self.pending.contains_key(&(*txn, chunk))
                || self.waiting.contains_key(&(chunk, *csn))
        })
    }

    fn waiting(&self, chunk: ChunkId) -> impl Iterator<Item = (Csn, Waiting)> {
        let all = self.waiting.range((chunk, Csn(0))..=(chunk, Csn(u64::MAX)));
        all.map(|((_, csn), one)| (*csn, *one))
    }

    /// Whether a commit of the chunk is here, be it one that waits.
    pub(crate) fn has_any(&self, chunk: ChunkId) -> bool {
        self.replicas.contains_key(&chunk) || self.waiting(chunk).next().is_some()
    }

    /// Whether it knows the transaction as committed in the chunk.
    pub(crate) fn has_committed(&self, chunk: ChunkId, txn: TxnId) -> bool {
        let mut applied = self.replicas.get(&chunk).into_iter().flatten();
        applied.any(|one| one.txn == txn) || self.waiting(chunk).any(|(_, one)| one.txn == txn)
    }

    /// Notes that a pending batch is a commit, which is applied once the one before is there.
    fn decide(&mut self, (txn, chunk): (TxnId, ChunkId), (prev, csn): (Csn, Csn)) {
        let Some(batch) = self.pending.remove(&(txn, chunk)) else { return };
        self.waiting.insert((chunk, csn), Waiting { batch, txn, prev });
        self.advance(chunk);
    }

    /// Applies what waits for nothing any more.
    pub(crate) fn advance(&mut self, chunk: ChunkId) {
        loop {
            let (last, chain) = self.point(chunk);
            let Some((csn, next)) = self.waiting(chunk).next() else { return };
            let Waiting { batch, txn, prev } = next;
            // Up to the last a copy brought it.
            if csn > last {
                if prev != last {
                    return;
                }
                let chain = chain_after(chain, csn, batch.hash);
                self.replicas.entry(chunk).or_default().push(Committed { csn, txn, chain });
            }
            self.waiting.remove(&(chunk, csn));
        }
    }

    /// Takes the replica of a chunk as it stands: what was sent until an epoch and is not applied is forgotten. How
    /// many parts that is.
    pub(crate) fn settle(&mut self, chunk: ChunkId, epoch: Epoch) -> u64 {
        let before = self.pending.len() + self.waiting.len();
        self.pending.retain(|(_, of), batch| *of != chunk || batch.epoch > epoch);
        self.waiting.retain(|(of, _), one| *of != chunk || one.batch.epoch > epoch);
        (before - self.pending.len() - self.waiting.len()) as u64
    }

    /// Makes way for a history in which these commits are given up. Whether the replica held one and goes whole, as
    /// what is applied is never taken back.
    pub(crate) fn give_up(&mut self, chunk: ChunkId, lost: &[Loss]) -> bool {
        let within = |csn: Csn| lost.iter().any(|loss| loss.after < csn && csn <= loss.up_to);
        self.waiting.retain(|(of, csn), _| *of != chunk || !within(*csn));
        let goes = within(self.point(chunk).0);
        if goes {
            self.replicas.remove(&chunk);
            self.waiting.retain(|(of, _), _| *of != chunk);
            self.pending.retain(|(_, of), _| *of != chunk);
        }
        goes
    }
}

impl Cluster {
    fn reachable_access(&self, node: usize) -> Option<usize> {
        (0..ACCESS).find(|access| self.connected(At::Access(*access), At::Data(node)))
    }

    /// Registers a data node, with a new incarnation when its disk is not the one that is known.
    pub(crate) fn register(&mut self, node: usize) {
        if !self.data[node].up || self.data[node].serves {
            return;
        }
        let Some(rid) = self.enter(node) else {
            return self.after(300, Event::Register(node));
        };
        let counted = self.catalog.chunks().filter(|chunk| {
            chunk.in_sync.contains(&rid) || chunk.left.iter().any(|(left, _)| *left == rid)
        });
        let kept: BTreeSet<ChunkId> = counted.map(|chunk| chunk.id).collect();
        let data = &mut self.data[node];
        if data.rid != Some(rid) {
            self.totals.kept +=
                kept.iter().filter(|chunk| data.replicas.contains_key(chunk)).count() as u64;
            data.put_aside(&kept);
        }
        (data.rid, data.serves) = (Some(rid), true);
    }

    fn enter(&mut self, node: usize) -> Option<Rid> {
        let access = self.reachable_access(node)?;
        let (name, disk) = (format!("d{}", node + 1), Self::disk_id(node, self.data[node].disk));
        let mut rid = self.data[node].rid;
        let known = self.catalog.data_node_named(&name).cloned();
        // Also when it did not hear of the number it was given.
        let replaced =
            |known: &DataNode| known.disk != disk || rid.is_some_and(|rid| rid != known.rid);
        if let Some(known) = known.filter(replaced) {
            let held = self.data[node].replicas.keys().map(|chunk| {
                let (csn, chain) = self.data[node].point(*chunk);
                Held { chunk: *chunk, csn, chain }
            });
            // One without an identity proves nothing.
            let held = held.filter(|_| rid.is_some()).collect();
            let reset = Command::NodeReset { rid: known.rid, disk, held };
            let Ok(Ok(Outcome::Data(data))) = self.propose(access, &reset) else { return None };
            self.go_on(known.rid, data.rid);
            rid = Some(data.rid);
        }
        let (rpc, http) = (name.clone(), String::new());
        let command = Command::RegisterData { rid, name, disk, rpc, http };
        match self.propose(access, &command) {
            Ok(Ok(Outcome::Data(data))) => Some(data.rid),
            _ => None,
        }
    }

    /// The disk that held the last commit of some chunks is the same one under its next number.
    fn go_on(&mut self, old: Rid, new: Rid) {
        for chunk in self.catalog.chunks().filter(|chunk| chunk.in_sync.contains(&new)) {
            let held = self.last_in_sync.get_mut(&chunk.id).into_iter().flatten();
            held.filter(|rid| **rid == old).for_each(|rid| *rid = new);
        }
    }

    /// Tells every access node that it lives and what it holds, and drops what the catalog does not list.
    pub(crate) fn heartbeat(&mut self, node: usize) {
        self.after(HEARTBEAT_MS, Event::Heartbeat(node));
        let data = &self.data[node];
        if !data.up || data.paused || !data.serves {
            return;
        }
        for access in 0..ACCESS {
            if self.connected(At::Access(access), At::Data(node)) {
                self.hear(access, node);
            }
        }
        // The answers come from a catalog as of a barrier.
        let barrier = (0..ACCESS).any(|access| {
            self.connected(At::Access(access), At::Data(node)) && self.leader == Some(access)
        });
        if barrier {
            self.drop_strange(node);
        }
    }

    fn drop_strange(&mut self, node: usize) {
        let (now, data) = (self.now, &self.data[node]);
        let rid = data.rid.expect("it serves");
        let listed = |id: &ChunkId| {
            self.catalog.chunk(*id).is_some_and(|chunk| {
                let left = chunk.left.iter().any(|(left, _)| *left == rid);
                left || chunk.members().any(|member| member == rid)
            })
        };
        let busy = |id: &ChunkId| {
            let lately = data.copied.get(id).is_some_and(|at| now < at + KEPT_MS);
            let open = |txn: TxnId| self.catalog.fate(txn).is_none();
            lately || data.pending.keys().any(|(txn, chunk)| chunk == id && open(*txn))
        };
        let held = data.replicas.keys().chain(data.pending.keys().map(|(_, chunk)| chunk));
        let held = held.chain(data.waiting.keys().map(|(chunk, _)| chunk));
        let strange: BTreeSet<ChunkId> =
            held.filter(|id| !listed(id) && !busy(id)).copied().collect();
        for chunk in strange {
            self.say(|| format!("{rid} drops {chunk}"));
            self.data[node].replicas.remove(&chunk);
            self.data[node].pending.retain(|(_, of), _| *of != chunk);
            self.data[node].waiting.retain(|(of, _), _| *of != chunk);
        }
    }

    /// Asks what became of pending batches.
    pub(crate) fn resolve(&mut self, node: usize) {
        self.after(RESOLVE_MS, Event::Resolve(node));
        let data = &self.data[node];
        let any = !data.pending.is_empty() || !data.waiting.is_empty();
        let asks = data.up && !data.paused && data.serves && any;
        let leader = self
            .leader
            .filter(|leader| asks && self.connected(At::Access(*leader), At::Data(node)));
        let Some(leader) = leader else { return };
        let pending: Vec<(TxnId, ChunkId, u64)> =
            data.pending.iter().map(|((txn, chunk), batch)| (*txn, *chunk, batch.at)).collect();
        for (txn, chunk, at) in pending {
            let mut fate = self.catalog.fate(txn);
            if fate.is_none() && self.now > at + OPEN_MAX_MS {
                let _ = self.propose(leader, &Command::Abort { txn });
                fate = self.catalog.fate(txn);
            }
            match fate.map(|decision| decision.fate) {
                Some(Fate::Committed { csn, links }) => {
                    let link = links.iter().find(|link| link.chunk == chunk);
                    match link {
                        Some(link) => {
                            self.data[node].decide((txn, chunk), (link.prev, csn));
                        }
                        // It was committed in another chunk, after this one was closed, or is given up.
                        None => self.forget(node, txn, chunk),
                    }
                }
                Some(Fate::Aborted) => self.forget(node, txn, chunk),
                None => {}
            }
        }
        self.report_progress(node, leader);
    }

    fn forget(&mut self, node: usize, txn: TxnId, chunk: ChunkId) {
        self.data[node].pending.remove(&(txn, chunk));
    }

    fn report_progress(&mut self, node: usize, leader: usize) {
        let data = &self.data[node];
        let Some(rid) = data.rid else { return };
        let applied = data.replicas.keys().map(|chunk| (*chunk, data.point(*chunk).0)).collect();
        let _ = self.propose(leader, &Command::Progress { rid, applied });
    }

    pub(crate) fn node_of(rid: Rid) -> usize {
        rid.node.0 as usize - 1
    }
}
