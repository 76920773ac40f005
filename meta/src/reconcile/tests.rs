//! The planner against an executor that does at once what it is told: each rule alone, and that all comes to rest.

use std::collections::{BTreeMap, BTreeSet};

use hypertide_proto::{
    ids::{AccessId, Boot, ChunkId, Csn, DiskId, NodeId, Rid, TableId, TxnId},
    schema::{Column, ColumnType, TableSchema},
};

use super::{
    compression::ALONE_MS,
    plan::{Action, DEAD_AFTER_MS, Reason, Scene, SeenChunk, SeenCompression, SeenNode, plan},
};
use crate::catalog::{
    Catalog, Changes, Chunk, Command, CommitPart, CommitRecord, Compression, Health, Held,
    HypertableSpec, Order, Outcome, Rebalancing,
};

const BYTES: u64 = 10 << 20;

/// A cluster whose copies take no time.
struct Bench {
    catalog: Catalog,
    seen: BTreeMap<NodeId, SeenNode>,
    running: BTreeMap<(ChunkId, NodeId), NodeId>,
    failed: BTreeSet<(ChunkId, NodeId)>,
    leaving: BTreeMap<ChunkId, NodeId>,
    hot: BTreeMap<ChunkId, u64>,
    compressing: BTreeMap<(ChunkId, NodeId), bool>,
    compressed: BTreeMap<(ChunkId, NodeId), SeenCompression>,
    now_ms: u64,
    csn: u64,
}

impl Bench {
    /// Nodes `d1` and on; hypertable `t1` with chunks of `replicas`, each with one commit.
    fn new(nodes: u64, chunks: i64, replicas: u16) -> Self {
        let mut bench = Self {
            catalog: Catalog::default(),
            seen: BTreeMap::new(),
            running: BTreeMap::new(),
            failed: BTreeSet::new(),
            compressing: BTreeMap::new(),
            compressed: BTreeMap::new(),
            leaving: BTreeMap::new(),
            hot: BTreeMap::new(),
            now_ms: 1_000,
            csn: 0,
        };
        let at = || "host:1".to_owned();
        let id = AccessId(1);
        bench.apply(&Command::RegisterAccess { id, rpc: at(), pg: at(), flight: at(), http: at() });
        for _ in 0..nodes {
            bench.add_node();
        }
        let time = Column::new("time", ColumnType::BigInt);
        bench.apply(&Command::CreateTable {
            schema: "public".to_owned(),
            name: "t".to_owned(),
            owner: "ann".to_owned(),
            columns: TableSchema::of(vec![time]),
            if_not_exists: false,
        });
        let spec = HypertableSpec {
            distributed: true,
            time_column: "time".to_owned(),
            interval: 10,
            space: None,
            replication_factor: replicas,
            data_nodes: None,
            chunk_schema: None,
            chunk_prefix: None,
        };
        let table = TableId(1);
        bench.apply(&Command::CreateHypertable { table, spec, if_not_exists: false });
        for slice in 0..chunks {
            bench.apply(&Command::EnsureChunks { table, points: vec![vec![slice * 10]] });
            bench.commit(ChunkId(slice as u64 + 1));
        }
        bench
    }

    fn apply(&mut self, command: &Command) -> Outcome {
        self.csn += 1;
        let (csn, changes) = (Csn(self.csn), &mut Changes::default());
        let outcome = self.catalog.apply(command, csn, self.now_ms, changes);
        outcome.unwrap_or_else(|reject| panic!("{command}: {reject}"))
    }

    fn add_node(&mut self) -> Rid {
        let (rpc, http) = ("host:1".to_owned(), String::new());
        let disk = DiskId([self.seen.len() as u8 + 1; 16]);
        let name = String::new();
        let command = Command::RegisterData { rid: None, name, disk, rpc, http };
        let Outcome::Data(node) = self.apply(&command) else { panic!("a data node") };
        self.seen.insert(node.id(), SeenNode { rid: node.rid, ..SeenNode::default() });
        node.rid
    }

    fn chunk(&self, id: u64) -> &Chunk {
        self.catalog.chunk(ChunkId(id)).expect("a chunk")
    }

    fn rid(&self, node: u64) -> Rid {
        self.catalog.data_node(NodeId(node)).expect("a node").rid
    }

    /// Commits a row on all members, which have it at once.
    fn commit(&mut self, id: ChunkId) {
        let chunk = self.catalog.chunk(id).expect("a chunk").clone();
        let part = CommitPart {
            chunk: id,
            epoch: chunk.epoch,
            acks: chunk.members().collect(),
            hash: 7,
            rows: 1,
            table_version: 2,
            keyed: false,
        };
        let txn = TxnId { access: AccessId(1), boot: Boot(1), seq: self.csn };
        self.apply(&Command::Commit(CommitRecord { txn, write: None, parts: vec![part] }));
        chunk.members().for_each(|rid| self.hold(id, rid));
    }

    /// The node reports the chunk as the catalog has it.
    fn hold(&mut self, id: ChunkId, rid: Rid) {
        let chunk = self.catalog.chunk(id).expect("a chunk");
        let compression = self.compressed.get(&(id, rid.node)).copied();
        let (csn, chain) = (chunk.last_csn, chunk.chain);
        let others = self.seen.values().filter_map(|node| node.chunks.get(&id));
        let bytes = others.map(|at| at.bytes).max().unwrap_or(BYTES);
        let at = SeenChunk { csn, chain, bytes, compression };
        self.seen.get_mut(&rid.node).expect("seen").chunks.insert(id, at);
    }

    fn health(&mut self, node: u64, health: Health) {
        let rid = self.rid(node);
        self.apply(&Command::SetHealth { rid, health });
    }

    fn plan(&self) -> Vec<Action> {
        plan(&Scene {
            catalog: &self.catalog,
            seen: &self.seen,
            running: &self.running,
            failed: &self.failed,
            compressing: &self.compressing,
            leaving: &self.leaving,
            hot: &self.hot,
            now_ms: self.now_ms,
            dead_after_ms: DEAD_AFTER_MS,
        })
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Shrink { rid, chunks } => drop(self.apply(&Command::Shrink { rid, chunks })),
            Action::Return { rid, held } => drop(self.apply(&Command::Return { rid, held })),
            Action::Remove { chunk, rid, .. } => {
                self.apply(&Command::RemoveReplica { chunk, rid });
                let seen = self.seen.get_mut(&rid.node).expect("seen");
                seen.chunks.remove(&chunk);
                seen.damaged.remove(&chunk);
                self.leaving.remove(&chunk);
            }
            Action::Seal { chunk, epoch } => drop(self.apply(&Command::Seal { chunk, epoch })),
            Action::Done { operation } => drop(self.apply(&Command::CancelOrder { operation })),
            Action::Compress { chunk, rid } => {
                let key = (chunk, rid.node);
                match self.catalog.chunk(chunk).and_then(|row| row.asked?.up_to) {
                    None => drop(self.compressed.remove(&key)),
                    Some(csn) => {
                        self.compressed.insert(key, SeenCompression { csn, bytes: (100, 10) });
                    }
                }
                self.hold(chunk, rid);
            }
            Action::NoteCompressed { chunk, seen: SeenCompression { csn, bytes } } => {
                self.apply(&Command::SetChunkCompressed { chunk, bytes, csn });
            }
            Action::Join { chunk, target, source, reason } => {
                if reason == Reason::Rebalance {
                    self.leaving.insert(chunk, source.node);
                }
                let row = self.catalog.chunk(chunk).expect("a chunk");
                let held = Held { chunk, csn: row.last_csn, chain: row.chain };
                self.apply(&Command::Return { rid: target, held: vec![held] });
                self.hold(chunk, target);
            }
        }
    }

    /// Plans and performs until there is nothing to do; gives the number of copies.
    fn rest(&mut self) -> usize {
        let mut copies = 0;
        for _ in 0..500 {
            let actions = self.plan();
            if actions.is_empty() {
                self.catalog.check().expect("sound");
                return copies;
            }
            for action in actions {
                copies += usize::from(matches!(action, Action::Join { .. }));
                self.perform(action);
            }
        }
        panic!("it does not come to rest: {:?}", self.plan());
    }
}

#[test]
fn nothing_is_done_about_a_sound_cluster() {
    assert_eq!(Bench::new(3, 6, 2).plan(), []);
}

#[test]
fn replicas_are_brought_to_the_compression_that_is_asked_for() {
    let mut bench = Bench::new(2, 2, 2);
    let table = bench.chunk(1).table;
    let compression = Some(Compression::default());
    bench.apply(&Command::SetCompression { table, compression });
    let chunks = vec![ChunkId(1), ChunkId(2)];
    bench.apply(&Command::AskCompression { chunks: chunks.clone(), compress: true });
    assert_eq!(bench.plan(), [], "the statement has time alone");
    bench.now_ms += ALONE_MS;
    let of = |bench: &Bench, chunk, node| Action::Compress { chunk, rid: bench.rid(node) };
    let first = [of(&bench, ChunkId(1), 1), of(&bench, ChunkId(1), 2)];
    assert_eq!(bench.plan(), first, "one a node");
    bench.compressing.insert((ChunkId(1), NodeId(1)), false);
    let next = [of(&bench, ChunkId(1), 2), of(&bench, ChunkId(2), 1)];
    assert_eq!(bench.plan(), next, "what failed waits");
    bench.compressing.clear();
    bench.rest();
    assert_eq!(bench.chunk(2).compressed.expect("noted").csn, bench.chunk(2).last_csn);
    bench.commit(ChunkId(1));
    assert_eq!(bench.plan(), [], "later rows are not asked for");
    bench.apply(&Command::AskCompression { chunks, compress: false });
    assert_eq!(bench.chunk(1).compressed, None);
    bench.now_ms += ALONE_MS;
    bench.rest();
    assert!(bench.compressed.is_empty());
}

#[test]
fn dead_disks_leave_write_sets_unless_nobody_else_serves() {
    let mut bench = Bench::new(2, 1, 2);
    bench.health(1, Health::Suspect);
    assert_eq!(bench.plan(), [], "a suspect is only avoided");
    bench.health(1, Health::Down);
    let rid = bench.rid(1);
    assert_eq!(bench.plan(), [Action::Shrink { rid, chunks: vec![ChunkId(1)] }]);
    bench.health(2, Health::Suspect);
    assert_eq!(bench.plan(), [], "the other one may be gone, too");
}

#[test]
fn a_node_that_comes_back_returns_at_once_or_catches_up() {
    let mut bench = Bench::new(2, 2, 2);
    bench.health(1, Health::Down);
    bench.rest();
    bench.commit(ChunkId(1));
    bench.health(1, Health::Up);
    let (rid, source) = (bench.rid(1), bench.rid(2));
    let (csn, chain) = (bench.chunk(2).last_csn, bench.chunk(2).chain);
    let held = vec![Held { chunk: ChunkId(2), csn, chain }];
    let join = Action::Join { chunk: ChunkId(1), target: rid, source, reason: Reason::Return };
    assert_eq!(bench.plan(), [Action::Return { rid, held }, join]);
    // A copy that is under way, or failed a moment ago, is left alone.
    bench.running.insert((ChunkId(1), rid.node), source.node);
    assert!(!bench.plan().iter().any(|action| matches!(action, Action::Join { .. })));
    bench.running.clear();
    bench.failed.insert((ChunkId(1), rid.node));
    assert!(!bench.plan().iter().any(|action| matches!(action, Action::Join { .. })));
    bench.failed.clear();
    assert_eq!(bench.rest(), 1);
    assert_eq!(bench.chunk(1).in_sync.len(), 2);
}

#[test]
fn a_dead_node_is_waited_for_and_then_replaced() {
    let mut bench = Bench::new(3, 3, 2);
    let held = bench.catalog.replicas(TableId(1), NodeId(1)) as usize;
    bench.health(1, Health::Down);
    assert_eq!(bench.rest(), 0, "it may come back any moment");
    bench.now_ms += DEAD_AFTER_MS;
    assert_eq!(bench.rest(), held);
    assert!(bench.catalog.chunks().all(|chunk| chunk.in_sync.len() == 2 && chunk.left.is_empty()));
    // It comes back when nobody needs its replicas any more.
    bench.health(1, Health::Up);
    bench.seen.get_mut(&NodeId(1)).expect("seen").chunks.clear();
    bench.catalog.check().expect("sound");
    let moves = bench.rest();
    assert!(moves > 0, "what it lost is evened out again");
}

#[test]
fn a_hot_chunk_gets_a_new_generation_when_enough_nodes_are_healthy() {
    let mut bench = Bench::new(3, 2, 2);
    let dead = bench.chunk(1).in_sync[0].node.0;
    bench.health(dead, Health::Down);
    bench.hot.insert(ChunkId(1), 100);
    bench.rest();
    assert_eq!(bench.chunk(1).state.to_string(), "sealed");
    assert_eq!(bench.chunk(2).state.to_string(), "open", "nobody writes to it");
    let mut small = Bench::new(2, 1, 2);
    small.health(1, Health::Down);
    small.hot.insert(ChunkId(1), 100);
    small.rest();
    assert_eq!(small.chunk(1).state.to_string(), "open", "a new one would have no more replicas");
    // No replica serves: rows go on in a new chunk.
    let mut alone = Bench::new(2, 1, 1);
    let only = alone.chunk(1).in_sync[0].node.0;
    alone.health(only, Health::Down);
    alone.hot.insert(ChunkId(1), 100);
    alone.rest();
    assert_eq!(alone.chunk(1).state.to_string(), "sealed");
    assert_eq!(alone.chunk(1).in_sync.len(), 1, "never replaced by nothing");
}

#[test]
fn a_damaged_replica_is_rebuilt_from_a_good_one() {
    let mut bench = Bench::new(3, 1, 2);
    let (bad, good) = (bench.chunk(1).in_sync[0], bench.chunk(1).in_sync[1]);
    bench.seen.get_mut(&bad.node).expect("seen").damaged.insert(ChunkId(1));
    let demoted = Action::Remove { chunk: ChunkId(1), rid: bad, damaged: true };
    assert!(bench.plan().contains(&demoted));
    assert_eq!(bench.rest(), 1);
    assert!(bench.chunk(1).in_sync.contains(&good));
    // A wrong chain is damage as well; the last good replica is never taken off.
    let both = bench.chunk(1).in_sync.clone();
    for rid in &both {
        let seen = bench.seen.get_mut(&rid.node).expect("seen");
        seen.chunks.get_mut(&ChunkId(1)).expect("held").chain ^= 1;
    }
    assert_eq!(bench.plan(), []);
}

#[test]
fn a_drained_node_ends_up_empty() {
    for replicas in 1..3 {
        let mut bench = Bench::new(4, 8, replicas);
        let held = bench.catalog.replicas(TableId(1), NodeId(2));
        bench.apply(&Command::SetDraining { node: "d2".to_owned(), draining: true });
        assert!(bench.rest() >= held as usize);
        let node = bench.catalog.data_node(NodeId(2)).expect("a node");
        assert_eq!(bench.catalog.node_state(node).to_string(), "drained");
        let whole = |chunk: &Chunk| chunk.in_sync.len() == usize::from(replicas);
        assert!(bench.catalog.chunks().all(whole));
    }
}

#[test]
fn a_new_node_gets_its_share_and_rebalancing_can_be_paused() {
    let mut bench = Bench::new(3, 24, 2);
    bench.add_node();
    let mut paused = bench.catalog.rebalancing().clone();
    paused.enabled = false;
    bench.apply(&Command::SetRebalancing(paused.clone()));
    assert_eq!(bench.plan(), []);
    paused.enabled = true;
    bench.apply(&Command::SetRebalancing(paused));
    let moves = bench.rest();
    let counts: Vec<u64> =
        (1..5).map(|node| bench.catalog.replicas(TableId(1), NodeId(node))).collect();
    let (most, least) = (counts.iter().max().expect("4"), counts.iter().min().expect("4"));
    assert!(most * 100 <= least * 120, "{counts:?}");
    assert!(moves <= 14, "{moves} moves for a share of 12");
}

#[test]
fn load_is_evened_out_like_bytes() {
    let mut bench = Bench::new(2, 8, 1);
    // All that is written now lies on one node.
    let hot: Vec<ChunkId> = bench
        .catalog
        .chunks()
        .filter(|chunk| chunk.in_sync[0].node == NodeId(1))
        .map(|chunk| chunk.id)
        .collect();
    bench.hot = hot.iter().map(|chunk| (*chunk, 1_000)).collect();
    bench.rest();
    let on =
        |node: u64| hot.iter().filter(|id| bench.chunk(id.0).in_sync[0].node.0 == node).count();
    assert!(on(1) > 0 && on(2) > 0, "{} and {}", on(1), on(2));
}

#[test]
fn bytes_are_evened_out_though_rows_are_written_elsewhere() {
    // What is written now is small and lies in chunks of its own.
    let mut bench = Bench::new(3, 30, 2);
    let hot: Vec<ChunkId> = (1..=15).map(ChunkId).collect();
    bench.hot = hot.iter().map(|chunk| (*chunk, 1_000)).collect();
    for node in bench.seen.values_mut() {
        for (chunk, at) in &mut node.chunks {
            at.bytes = if hot.contains(chunk) { 1_000 } else { BYTES };
        }
    }
    bench.add_node();
    let copies = bench.rest();
    let held = |node: u64, cold: bool| {
        let chunks = bench.catalog.chunks().filter(|chunk| hot.contains(&chunk.id) != cold);
        chunks.filter(|chunk| chunk.in_sync.iter().any(|rid| rid.node.0 == node)).count()
    };
    let (cold, warm): (Vec<usize>, Vec<usize>) =
        (1..=4).map(|node| (held(node, true), held(node, false))).unzip();
    assert!(cold.iter().all(|count| (7..=8).contains(count)), "{cold:?}");
    assert!(warm.iter().all(|count| (7..=8).contains(count)), "{warm:?}");
    assert!(copies <= 20, "{copies} copies for a share of 15");
}

#[test]
fn orders_are_carried_out_and_copies_stay() {
    let mut bench = Bench::new(3, 2, 1);
    let paused = Rebalancing { enabled: false, ..Rebalancing::default() };
    bench.apply(&Command::SetRebalancing(paused));
    let source = bench.chunk(1).in_sync[0].node;
    let free = |bench: &Bench, id: u64| {
        let held = bench.chunk(id).in_sync[0].node;
        (1..4).map(NodeId).find(|node| *node != held).expect("another")
    };
    let target = free(&bench, 1);
    let order = |operation: &str, chunk, target, source| {
        let operation = operation.to_owned();
        Command::OrderCopy(Order { operation, chunk, target, source, at_ms: 0 })
    };
    bench.apply(&order("move", ChunkId(1), target, Some(source)));
    let copy = free(&bench, 2);
    bench.apply(&order("copy", ChunkId(2), copy, None));
    bench.rest();
    assert_eq!(bench.chunk(1).in_sync, [bench.rid(target.0)]);
    assert_eq!(bench.chunk(2).in_sync.len(), 2, "it was asked for");
    assert_eq!(bench.catalog.orders().count(), 1, "the move is done, the copy is kept");
    bench.apply(&Command::CancelOrder { operation: "copy".to_owned() });
    bench.rest();
    assert_eq!(bench.chunk(2).in_sync.len(), 1);
}

#[test]
fn no_node_has_more_than_two_copies_under_way() {
    let mut bench = Bench::new(3, 30, 2);
    bench.apply(&Command::SetDraining { node: "d1".to_owned(), draining: true });
    let mut load: BTreeMap<NodeId, usize> = BTreeMap::new();
    for action in bench.plan() {
        if let Action::Join { target, source, .. } = action {
            *load.entry(target.node).or_default() += 1;
            *load.entry(source.node).or_default() += 1;
        }
    }
    assert!(!load.is_empty() && load.values().all(|count| *count <= 2), "{load:?}");
}

#[test]
fn more_replicas_are_made_and_fewer_kept_when_the_factor_changes() {
    let mut bench = Bench::new(4, 6, 1);
    let factor = |factor| Command::SetReplicationFactor { table: TableId(1), factor };
    bench.apply(&factor(3));
    assert!(bench.rest() >= 12);
    assert!(bench.catalog.chunks().all(|chunk| chunk.in_sync.len() == 3));
    bench.apply(&factor(2));
    bench.rest();
    assert!(bench.catalog.chunks().all(|chunk| chunk.in_sync.len() == 2));
}
