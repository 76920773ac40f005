//! Replicas that catch up with each other, over real gRPC.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use hypertide_proto::{
    client::Channels,
    error::{Code, RpcError},
    ids::{ChunkId, Rid},
    wire::storage::{CatchUpReply, CatchUpRequest, LostCommits, SettleRequest},
};
use hypertide_storage::{ChunkReport, DataNode};
use tempfile::TempDir;

mod support;
use support::*;
#[path = "support/cluster.rs"]
mod cluster;
use cluster::*;

const CHUNK: u64 = 5;

/// A data node and where it lies.
struct Node {
    node: Arc<DataNode>,
    rpc: String,
    dir: TempDir,
}

impl Node {
    async fn start(access: &Access) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (node, rpc) = data_node(dir.path(), "", &[access]).await;
        node.ready().await.unwrap();
        Self { node, rpc, dir }
    }

    async fn restart(self, access: &Access) -> Self {
        self.node.shutdown().await;
        let Self { node, dir, .. } = self;
        drop(node);
        let (node, rpc) = data_node(dir.path(), "", &[access]).await;
        node.ready().await.unwrap();
        Self { node, rpc, dir }
    }

    fn rid(&self) -> Rid {
        self.node.membership().unwrap().rid
    }

    fn report(&self) -> ChunkReport {
        self.node.store().report(&[ChunkId(CHUNK)]).first().copied().unwrap_or_default()
    }

    /// Writes a transaction, and waits until it counts as applied.
    async fn write(&self, seq: u64, link: (u64, u64), rows: &[Row]) {
        self.prepare(seq, rows).await;
        self.decide(seq, link).await;
    }

    async fn prepare(&self, seq: u64, rows: &[Row]) {
        self.node.store().prepare(txn(seq), vec![part(CHUNK, 0, rows)]).await.unwrap();
    }

    async fn decide(&self, seq: u64, (csn, prev): (u64, u64)) {
        self.node.store().decide(&[commit(seq, csn, &[(CHUNK, prev)])]).unwrap();
        until("the commit is applied", || self.report().applied_csn.0 >= csn).await;
    }

    fn flush(&self) {
        self.node.store().flush(&[]).unwrap();
    }

    fn rows(&self, snapshot: u64) -> Vec<Row> {
        read(self.node.store(), request(CHUNK, snapshot)).unwrap()
    }

    /// Files that are not chunks.
    fn unfinished(&self) -> usize {
        unfinished(self.dir.path())
    }

    async fn catch_up(&self, request: CatchUpRequest) -> Result<CatchUpReply, RpcError> {
        let mut client = Channels::default().storage(&self.rpc).unwrap();
        Ok(client.catch_up(request).await?.into_inner())
    }

    fn request(&self, source: &Self) -> CatchUpRequest {
        CatchUpRequest {
            cluster: CLUSTER.0.to_vec().into(),
            rid: Some(self.rid().into()),
            spec: wire_part(part(CHUNK, 0, &[])).spec,
            epoch: 1,
            source: source.rpc.clone(),
            source_rid: Some(source.rid().into()),
            deadline_ms: 30_000,
            ..CatchUpRequest::default()
        }
    }
}

fn unfinished(dir: &Path) -> usize {
    let files = std::fs::read_dir(dir.join("chunks")).unwrap();
    files.filter(|file| file.as_ref().unwrap().path().extension().unwrap() != "redb").count()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn same(one: &Node, other: &Node) {
    let (one_report, other_report) = (one.report(), other.report());
    assert_eq!(one_report.applied_csn, other_report.applied_csn);
    assert_eq!(one_report.chain, other_report.chain);
    assert_eq!(one_report.rows, other_report.rows);
    for snapshot in [10, 20, 25, 30, u64::MAX >> 1] {
        assert_eq!(one.rows(snapshot), other.rows(snapshot), "at {snapshot}");
    }
}

/// Rows that hardly compress.
fn noise(seed: u64, count: i64) -> Vec<Row> {
    let mut random = Random(seed);
    let mut row = |i| {
        let reading = f64::from_bits(random.next() >> 2);
        (seed as i64 * 10_000_000 + i, format!("d{}", random.below(9)), Some(reading))
    };
    (0..count).map(&mut row).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_node_gets_a_whole_copy_that_lasts() {
    let access = access_node().await;
    let (source, target) = (Node::start(&access).await, Node::start(&access).await);
    source.write(1, (10, 0), &rows_of(1, 3000)).await;
    source.flush();
    source.write(2, (20, 10), &rows_of(2, 500)).await;
    source.flush();
    source.write(3, (30, 20), &rows_of(3, 70)).await;
    let point = source.report();
    let request = CatchUpRequest { to_csn: 20, ..target.request(&source) };
    let reply = target.catch_up(request).await.unwrap();
    assert!(reply.whole && reply.bytes > 1000, "{reply:?}");
    assert_eq!((reply.applied_csn, reply.reached_csn, reply.rows), (20, 30, 3570));
    assert_eq!(reply.reached_chain.to_vec(), point.chain.to_be_bytes());
    assert_ne!(reply.chain, reply.reached_chain);
    assert_eq!(reply.rid, Some(target.rid().into()));
    same(&source, &target);
    // Once more: nothing is to be done.
    let again =
        CatchUpRequest { to_csn: 30, chain: reply.reached_chain, ..target.request(&source) };
    let again = target.catch_up(again).await.unwrap();
    assert!(!again.whole && again.bytes == 0 && again.rows == 0, "{again:?}");
    // Nor when the place is not known: the source says that it is the last.
    let again = target.catch_up(target.request(&source)).await.unwrap();
    assert!(!again.whole && again.bytes < 200 && again.rows == 0, "{again:?}");
    let target = target.restart(&access).await;
    same(&source, &target);
    assert_eq!(target.unfinished(), 0);
    // It goes on as any replica does, and is itself a source, also of a delta.
    let third = Node::start(&access).await;
    for node in [&source, &target] {
        node.write(4, (40, 30), &rows_of(4, 9)).await;
    }
    same(&source, &target);
    assert!(third.catch_up(third.request(&target)).await.unwrap().whole);
    same(&third, &target);
    let stats = target.node.transfers();
    assert_eq!((stats.whole, stats.deltas, stats.running), (0, 0, 0), "it was restarted since");
    assert!(stats.bytes_out > 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_missed_commits_gets_only_those() {
    let access = access_node().await;
    let (source, target) = (Node::start(&access).await, Node::start(&access).await);
    for node in [&source, &target] {
        node.write(1, (10, 0), &noise(1, 40_000)).await;
    }
    target.flush();
    // Missed commits lie in segments of their own, in one that is merged with what is known, and in memory.
    source.write(2, (20, 10), &noise(2, 300)).await;
    source.flush();
    for seq in 3..=13 {
        source.write(seq, (seq * 10, seq * 10 - 10), &noise(seq, 40)).await;
        source.flush();
    }
    source.write(14, (140, 130), &noise(14, 25)).await;
    let third = Node::start(&access).await;
    let whole = third.catch_up(third.request(&source)).await.unwrap();
    assert!(whole.whole);
    let delta = target.catch_up(target.request(&source)).await.unwrap();
    assert!(!delta.whole);
    assert_eq!((delta.commits, delta.rows, delta.applied_csn), (13, 765, 140));
    assert!(delta.bytes * 10 < whole.bytes, "delta {} whole {}", delta.bytes, whole.bytes);
    println!("a delta of 765 rows took {} bytes, the whole chunk {}", delta.bytes, whole.bytes);
    same(&source, &target);
    same(&source, &third);
    assert_eq!(target.node.transfers().deltas, 1);
    let target = target.restart(&access).await;
    same(&source, &target);
    // A node that was brought up by a delta can pass one on.
    source.write(15, (150, 140), &noise(15, 10)).await;
    target.write(15, (150, 140), &noise(15, 10)).await;
    let delta = third.catch_up(third.request(&target)).await.unwrap();
    assert_eq!((delta.whole, delta.commits), (false, 1));
    same(&third, &source);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_is_told_by_its_chain_and_replaced() {
    let access = access_node().await;
    let (source, target) = (Node::start(&access).await, Node::start(&access).await);
    for node in [&source, &target] {
        node.write(1, (10, 0), &rows_of(1, 100)).await;
    }
    source.write(2, (20, 10), &rows_of(2, 50)).await;
    source.write(3, (30, 20), &rows_of(3, 50)).await;
    target.write(2, (20, 10), &rows_of(9, 50)).await;
    target.flush();
    let reply = target.catch_up(target.request(&source)).await.unwrap();
    assert!(reply.whole);
    same(&source, &target);
    let target = target.restart(&access).await;
    same(&source, &target);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_not_what_the_catalog_says_is_refused() {
    let access = access_node().await;
    let (source, target) = (Node::start(&access).await, Node::start(&access).await);
    source.write(1, (10, 0), &rows_of(1, 100)).await;
    let wrong = CatchUpRequest { to_csn: 10, chain: vec![1; 16].into(), ..target.request(&source) };
    let refused = target.catch_up(wrong).await.unwrap_err();
    assert_eq!(refused.code, Code::Damaged, "{refused}");
    assert!(refused.message.contains("its chain at 10 is"), "{refused}");
    let other = CatchUpRequest { source_rid: Some(target.rid().into()), ..target.request(&source) };
    let refused = target.catch_up(other).await.unwrap_err();
    assert!(refused.message.contains("this data node is n3i1"), "{refused}");
    // A commit that never comes is not waited for longer than the deadline.
    let ahead = CatchUpRequest { to_csn: 99, deadline_ms: 200, ..target.request(&source) };
    let refused = target.catch_up(ahead).await.unwrap_err();
    assert!(matches!(refused.code, Code::Unavailable | Code::DeadlineExceeded), "{refused}");
    let stale = CatchUpRequest { epoch: 0, ..target.request(&source) };
    assert_eq!(target.catch_up(stale).await.unwrap_err().code, Code::Stale);
    assert_eq!(target.report(), ChunkReport::default());
    assert_eq!(target.node.transfers().failed, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_without_commits_is_caught_up_at_once() {
    let access = access_node().await;
    let (source, target) = (Node::start(&access).await, Node::start(&access).await);
    let reply = target.catch_up(target.request(&source)).await.unwrap();
    assert_eq!((reply.whole, reply.applied_csn, reply.rows), (false, 0, 0));
    assert_eq!(reply.chain.to_vec(), [0; 16]);
}

/// A data node in a runtime of its own, which can be ended as a process is.
struct Victim {
    runtime: tokio::runtime::Runtime,
    node: Node,
}

impl Victim {
    fn start(access: &Access) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let node = runtime.block_on(Node::start(access));
        Self { runtime, node }
    }

    /// Ends its connections, answers nothing any more.
    fn kill(self) -> Node {
        self.runtime.shutdown_background();
        self.node
    }
}

/// A chunk of so many bytes that a paced copy of it is under way for long.
async fn fill(node: &Node) {
    node.write(1, (10, 0), &noise(1, 25_000)).await;
    node.flush();
    node.write(2, (20, 10), &noise(2, 25_000)).await;
    node.flush();
}

const SLOW: u64 = 50_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_dies_leaves_the_target_as_it_was() {
    let access = access_node().await;
    let (for_source, target) = (access.clone(), Node::start(&access).await);
    let victim = tokio::task::spawn_blocking(move || Victim::start(&for_source)).await.unwrap();
    fill(&victim.node).await;
    target.write(1, (10, 0), &rows_of(7, 30)).await;
    let before = (target.report(), target.rows(99));
    let request = CatchUpRequest { bytes_per_second: SLOW, ..target.request(&victim.node) };
    let (dir, copying) = (target.dir.path().to_owned(), target.catch_up(request));
    let killed = async move {
        until("the copy is under way", || unfinished(&dir) == 1).await;
        victim.kill()
    };
    let (failed, source) = tokio::join!(copying, killed);
    let failed = failed.unwrap_err();
    assert_eq!(failed.code, Code::Unavailable, "{failed}");
    assert_eq!((target.report(), target.rows(99)), before);
    assert_eq!(target.unfinished(), 0);
    // The fork is replaced as soon as there is a source again.
    let source = source.restart(&access).await;
    let reply = target.catch_up(target.request(&source)).await.unwrap();
    assert!(reply.whole);
    same(&source, &target);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_restarts_in_the_middle_begins_again() {
    let access = access_node().await;
    let source = Node::start(&access).await;
    fill(&source).await;
    let target = Node::start(&access).await;
    let request = CatchUpRequest { bytes_per_second: SLOW, ..target.request(&source) };
    let mut client = Channels::default().storage(&target.rpc).unwrap();
    let copying = tokio::spawn(async move { client.catch_up(request).await });
    until("the copy is under way", || target.unfinished() == 1).await;
    // The one that asks goes away, as the leader does that dies: the copy ends.
    copying.abort();
    until("what was begun is gone", || target.unfinished() == 0).await;
    // What a process leaves that was killed: a file that nothing names.
    std::fs::write(target.dir.path().join("chunks/5.0123456789abcdef.copy"), b"half").unwrap();
    let target = target.restart(&access).await;
    assert_eq!(target.unfinished(), 0);
    assert_eq!(target.report(), ChunkReport::default());
    assert!(target.catch_up(target.request(&source)).await.unwrap().whole);
    same(&source, &target);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_joins_while_writes_go_on() {
    let access = access_node().await;
    let (source, target) = (Node::start(&access).await, Node::start(&access).await);
    for seq in 1..=5 {
        source.write(seq, (seq * 10, seq * 10 - 10), &rows_of(seq as i64, 50)).await;
        if seq == 3 {
            source.flush();
        }
    }
    // The bulk, without a lock on anything.
    assert!(target.catch_up(target.request(&source)).await.unwrap().whole);
    source.write(6, (60, 50), &rows_of(6, 50)).await;
    // From here on every commit needs the joining replica, too; it learns of them before it can apply them.
    let join = source.report();
    assert_eq!(join.applied_csn.0, 60);
    for seq in 7..=9 {
        target.prepare(seq, &rows_of(seq as i64, 50)).await;
        source.write(seq, (seq * 10, seq * 10 - 10), &rows_of(seq as i64, 50)).await;
        target.node.store().decide(&[commit(seq, seq * 10, &[(CHUNK, seq * 10 - 10)])]).unwrap();
    }
    // One is prepared on both, and decided while the join is finished.
    target.prepare(10, &rows_of(10, 50)).await;
    source.prepare(10, &rows_of(10, 50)).await;
    assert_eq!(target.report().applied_csn.0, 50);
    let request = CatchUpRequest {
        to_csn: 60,
        chain: join.chain.to_be_bytes().to_vec().into(),
        epoch: 2,
        ..target.request(&source)
    };
    let reply = target.catch_up(request).await.unwrap();
    assert!(!reply.whole);
    assert_eq!((reply.applied_csn, reply.reached_csn), (60, 90));
    assert_eq!(reply.chain.to_vec(), join.chain.to_be_bytes());
    for node in [&source, &target] {
        node.decide(10, (100, 90)).await;
    }
    same(&source, &target);
    assert!(target.node.store().pending(&[]).is_empty());
    let target = target.restart(&access).await;
    same(&source, &target);
    // What the copy brought is gone from the journal, and comes in no second time.
    target.prepare(9, &rows_of(9, 50)).await;
    target.node.store().decide(&[commit(9, 90, &[(CHUNK, 80)])]).unwrap();
    same(&source, &target);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_part_whose_commit_comes_with_the_copy_is_settled_by_it() {
    let access = access_node().await;
    let (source, target) = (Node::start(&access).await, Node::start(&access).await);
    for node in [&source, &target] {
        node.write(1, (10, 0), &rows_of(1, 50)).await;
        node.prepare(2, &rows_of(2, 50)).await;
    }
    // The target left before it heard of the decision, which nobody keeps for it.
    source.decide(2, (20, 10)).await;
    assert_eq!(target.node.store().pending(&[]).len(), 1);
    assert!(!target.catch_up(target.request(&source)).await.unwrap().whole);
    assert!(target.node.store().pending(&[]).is_empty());
    same(&source, &target);
    let target = target.restart(&access).await;
    assert!(target.node.store().pending(&[]).is_empty());
    same(&source, &target);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_replica_is_rebuilt_and_counts_as_whole_again() {
    let access = access_node().await;
    let (source, target) = (Node::start(&access).await, Node::start(&access).await);
    for node in [&source, &target] {
        node.write(1, (10, 0), &rows_of(1, 5000)).await;
        node.flush();
    }
    let Node { node, dir, .. } = target;
    node.shutdown().await;
    drop(node);
    let path = dir.path().join("chunks/5.redb");
    let mut bytes = std::fs::read(&path).unwrap();
    for at in (0..bytes.len()).step_by(97) {
        bytes[at] ^= 0xff;
    }
    std::fs::write(&path, bytes).unwrap();
    let (node, rpc) = data_node(dir.path(), "", &[&access]).await;
    node.ready().await.unwrap();
    let target = Node { node, rpc, dir };
    assert!(read(target.node.store(), request(CHUNK, 99)).is_err());
    access
        .until("the damage is told", |script| {
            script.heartbeats.iter().any(|beat| beat.damaged == [CHUNK])
        })
        .await;
    // It is no source for others.
    let refused = source.catch_up(source.request(&target)).await.unwrap_err();
    assert_eq!(refused.code, Code::Damaged, "{refused}");
    assert!(target.catch_up(target.request(&source)).await.unwrap().whole);
    assert!(target.node.store().damaged().is_empty());
    same(&source, &target);
    for node in [&source, &target] {
        node.write(2, (20, 10), &rows_of(2, 5)).await;
    }
    same(&source, &target);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_two_copies_come_in_at_once() {
    let access = access_node().await;
    let (source, target) = (Node::start(&access).await, Node::start(&access).await);
    for chunk in [5, 6, 7] {
        let rows = noise(chunk, 20_000);
        let parts = vec![part(chunk, 0, &rows)];
        source.node.store().prepare(txn(chunk), parts).await.unwrap();
        source.node.store().decide(&[commit(chunk, 10, &[(chunk, 0)])]).unwrap();
    }
    source.flush();
    let slow = |chunk: u64| CatchUpRequest {
        spec: wire_part(part(chunk, 0, &[])).spec,
        bytes_per_second: SLOW,
        ..target.request(&source)
    };
    let mut copies = Vec::new();
    for (chunk, running) in [(5, 1), (6, 2)] {
        let (request, mut client) =
            (slow(chunk), Channels::default().storage(&target.rpc).unwrap());
        copies.push(tokio::spawn(async move { client.catch_up(request).await }));
        until("the copy is under way", || target.node.transfers().running == running).await;
    }
    let refused = target.catch_up(slow(7)).await.unwrap_err();
    assert_eq!(refused.code, Code::Overloaded, "{refused}");
    copies.iter().for_each(tokio::task::JoinHandle::abort);
    until("both ended", || target.node.transfers().running == 0).await;
    let request = CatchUpRequest { bytes_per_second: 0, ..slow(7) };
    until("the source has room", || source.node.transfers().bytes_out > 0).await;
    assert!(target.catch_up(request).await.unwrap().whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lost_a_part_is_not_caught_up_before_its_fate_is_known() {
    let access = access_node().await;
    let (source, target) = (Node::start(&access).await, Node::start(&access).await);
    for node in [&source, &target] {
        node.write(1, (10, 0), &rows_of(1, 50)).await;
        node.prepare(2, &rows_of(2, 50)).await;
    }
    source.decide(2, (20, 10)).await;
    // The acknowledged part of the second transaction is damaged in the journal, behind the node's back.
    let Node { node, dir, .. } = target;
    node.shutdown().await;
    drop(node);
    let path = dir.path().join("journal.redb");
    let (mut bytes, payload) =
        (std::fs::read(&path).unwrap(), part(CHUNK, 0, &rows_of(2, 50)).payload);
    let found: Vec<usize> = bytes
        .windows(payload.len())
        .enumerate()
        .filter(|(_, window)| *window == payload)
        .map(|(at, _)| at)
        .collect();
    assert!(!found.is_empty());
    found.into_iter().for_each(|at| bytes[at] ^= 1);
    std::fs::write(&path, bytes).unwrap();
    let (node, rpc) = data_node(dir.path(), "", &[&access]).await;
    node.ready().await.unwrap();
    let target = Node { node, rpc, dir };
    assert_eq!(target.node.store().damaged(), [ChunkId(CHUNK)]);
    let refused = target.catch_up(target.request(&source)).await.unwrap_err();
    assert_eq!(refused.code, Code::Unavailable);
    assert!(refused.message.contains("lost a part"), "{refused}");
    // It asks about the transaction until it is told.
    access.with(|script| script.decisions = vec![commit(2, 20, &[(CHUNK, 10)]).into()]);
    until("the fate is known", || target.node.store().pending(&[]).is_empty()).await;
    // The chunk stays damaged over restarts, or it would pass for one that has the commit.
    let target = target.restart(&access).await;
    assert_eq!(target.node.store().damaged(), [ChunkId(CHUNK)]);
    assert!(target.node.store().pending(&[]).is_empty());
    assert!(target.catch_up(target.request(&source)).await.unwrap().whole);
    same(&source, &target);
    assert!(target.node.store().damaged().is_empty());
    let target = target.restart(&access).await;
    same(&source, &target);
    assert!(target.node.store().damaged().is_empty());
}

/// Where the commits of the chunk are, as the catalog has it.
struct Log {
    seq: u64,
    last: u64,
    joining: bool,
}

/// Commits once, on the source and, when it joins, on the target, which is told late, never, or out of order.
async fn commit_once(log: &mut Log, (source, target): (&Node, &Node), access: &Access) {
    log.seq += 1;
    let (seq, prev) = (log.seq, std::mem::replace(&mut log.last, log.seq * 10));
    let rows = rows_of(seq as i64, 1 + seq as i64 * 7 % 90);
    let decision = commit(seq, seq * 10, &[(CHUNK, prev)]);
    if log.joining {
        target.prepare(seq, &rows).await;
    }
    source.prepare(seq, &rows).await;
    access.with(|script| script.decisions.push(decision.clone().into()));
    source.node.store().decide(std::slice::from_ref(&decision)).unwrap();
    if log.joining && seq % 16 != 0 {
        target.node.store().decide(&[decision]).unwrap();
    }
    match seq % 23 {
        5 => source.flush(),
        11 if log.joining => target.flush(),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_join_again_and_again_under_a_stream_of_writes() {
    let access = access_node().await;
    let (source, target) = (Node::start(&access).await, Node::start(&access).await);
    let nodes = Arc::new((source, target));
    let log = Arc::new(tokio::sync::Mutex::new(Log { seq: 0, last: 0, joining: false }));
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let writer = tokio::spawn({
        let (nodes, log, access) = (Arc::clone(&nodes), Arc::clone(&log), access.clone());
        async move {
            while !*stopped.borrow() {
                commit_once(&mut *log.lock().await, (&nodes.0, &nodes.1), &access).await;
                tokio::task::yield_now().await;
            }
        }
    });
    let (source, target) = (&nodes.0, &nodes.1);
    let mut kinds = Vec::new();
    for round in 0..4 {
        until("there is something to copy", || {
            source.report().applied_csn > target.report().applied_csn
        })
        .await;
        let bulk = CatchUpRequest { epoch: 2 * round, ..target.request(source) };
        let bulk = target.catch_up(bulk).await.unwrap();
        kinds.push(bulk.whole);
        let join = {
            let mut log = log.lock().await;
            log.joining = true;
            until("the source has all", || source.report().applied_csn.0 == log.last).await;
            source.report()
        };
        let chain = join.chain.to_be_bytes().to_vec();
        let to = join.applied_csn.0;
        let request = CatchUpRequest {
            to_csn: to,
            chain: chain.clone().into(),
            epoch: 2 * round + 1,
            ..target.request(source)
        };
        let proof = target.catch_up(request).await.unwrap();
        assert_eq!((proof.applied_csn, proof.chain.to_vec()), (to, chain));
        // In sync, for a while, then out again without what it has not heard of.
        let until_seq = log.lock().await.seq + 20;
        until("it took part in some", || target.report().applied_csn.0 > until_seq * 10).await;
        log.lock().await.joining = false;
    }
    // The last time it stays.
    let bulk = CatchUpRequest { epoch: 99, ..target.request(source) };
    target.catch_up(bulk).await.unwrap();
    stop.send_replace(true);
    writer.await.unwrap();
    let last = log.lock().await.last;
    until("the source has all", || source.report().applied_csn.0 == last).await;
    let last_request = CatchUpRequest { to_csn: last, epoch: 99, ..target.request(source) };
    let reply = target.catch_up(last_request).await;
    assert_eq!(reply.unwrap().applied_csn, last);
    same(source, target);
    assert_eq!(source.rows(last / 20 * 10), target.rows(last / 20 * 10));
    assert!(kinds[0] && kinds[1..].iter().all(|whole| !whole), "{kinds:?}");
    until("nothing stays pending", || target.node.store().pending(&[]).is_empty()).await;
    assert!(target.node.store().damaged().is_empty() && source.node.store().damaged().is_empty());
}

#[tokio::test]
async fn a_replica_is_taken_as_it_stands() {
    let access = access_node().await;
    let node = Node::start(&access).await;
    node.write(1, (10, 0), &noise(1, 30)).await;
    let left = node.rows(99);
    // The commit between is lost; one waits for it, and another for its decision.
    node.prepare(3, &noise(3, 30)).await;
    node.node.store().decide(&[commit(3, 30, &[(CHUNK, 20)])]).unwrap();
    node.prepare(4, &noise(4, 30)).await;
    assert_eq!(node.rows(99).len(), 60, "what is committed is seen");
    let settle = SettleRequest {
        cluster: CLUSTER.0.to_vec().into(),
        rid: Some(node.rid().into()),
        chunk: CHUNK,
        epoch: 1,
    };
    let mut client = Channels::default().storage(&node.rpc).unwrap();
    for _ in 0..2 {
        let point = client.settle(settle.clone()).await.unwrap().into_inner().point.unwrap();
        assert_eq!((point.csn, point.rows), (10, 30));
        assert_eq!(point.chain, node.report().chain.to_be_bytes().to_vec());
        assert_eq!(node.rows(99), left);
        assert!(node.node.store().pending(&[]).is_empty());
    }
    let node = node.restart(&access).await;
    assert_eq!(node.rows(99), left);
    assert_eq!(node.report().applied_csn.0, 10);
    // A decision that does not name the chunk any more leaves nothing of the part.
    node.prepare(5, &noise(5, 30)).await;
    node.node.store().decide(&[commit(5, 50, &[])]).unwrap();
    assert_eq!(node.rows(99), left);
    assert!(node.node.store().pending(&[]).is_empty());
    let none = SettleRequest { chunk: CHUNK + 1, ..settle };
    let mut client = Channels::default().storage(&node.rpc).unwrap();
    let none = SettleRequest { rid: Some(node.rid().into()), ..none };
    assert_eq!(client.settle(none).await.unwrap().into_inner().point, None);
}

#[tokio::test]
async fn what_holds_commits_that_were_given_up_goes() {
    let access = access_node().await;
    let source = Node::start(&access).await;
    source.write(1, (10, 0), &noise(1, 30)).await;
    source.flush();
    let lost = vec![LostCommits { after_csn: 10, up_to_csn: 30 }];
    // One that has more than is left, in its file; and one that waits for a commit that is given up, too.
    let further = Node::start(&access).await;
    further.write(1, (10, 0), &noise(1, 30)).await;
    further.write(2, (20, 10), &noise(2, 30)).await;
    further.flush();
    let waiting = Node::start(&access).await;
    waiting.write(1, (10, 0), &noise(1, 30)).await;
    waiting.prepare(3, &noise(3, 30)).await;
    waiting.node.store().decide(&[commit(3, 30, &[(CHUNK, 20)])]).unwrap();
    for (target, whole) in [(&further, true), (&waiting, false)] {
        let refused = target.catch_up(target.request(&source)).await;
        assert!(refused.is_err() || target.rows(99) != source.rows(99), "it does not help alone");
        let request = CatchUpRequest { lost: lost.clone(), ..target.request(&source) };
        let reply = target.catch_up(request).await.unwrap();
        assert_eq!((reply.reached_csn, reply.whole), (10, whole));
        same(target, &source);
    }
    // Later commits follow.
    for node in [&source, &further, &waiting] {
        node.write(4, (40, 10), &noise(4, 30)).await;
    }
    same(&further, &source);
    same(&waiting, &source);
}
