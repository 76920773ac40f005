//! A data node over real gRPC against access nodes that are scripted.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use hypertide_proto::{
    client::Channels,
    error::{Code, RpcError},
    ids::{ClusterId, Incarnation, Rid},
    wire::{
        meta::HeartbeatRequest,
        storage::{AdoptRequest, ChunksRequest, DecideRequest},
    },
};
use hypertide_storage::{DataNode, Error, Membership, NodeConfig};

mod support;
use support::*;
#[path = "support/cluster.rs"]
mod cluster;
use cluster::*;

#[tokio::test]
async fn a_node_registers_serves_and_reports_its_progress() {
    let dir = tempfile::tempdir().unwrap();
    let access = access_node().await;
    let (node, rpc) = data_node(dir.path(), "", &[&access]).await;
    node.ready().await.unwrap();
    let expected = Membership { cluster: CLUSTER, rid: RID, name: "d3".into() };
    assert_eq!(node.membership(), Some(expected.clone()));
    let mut client = Channels::default().storage(&rpc).unwrap();
    let rows = rows_of(1, 10);
    client.prepare(prepare_request(1, vec![part(5, 0, &rows)])).await.unwrap();
    let decisions = vec![commit(1, 70, &[(5, 0)]).into()];
    let cluster = CLUSTER.0.to_vec();
    client.decide(DecideRequest { cluster: cluster.clone().into(), decisions }).await.unwrap();
    assert_eq!(read(node.store(), request(5, 70)).unwrap().len(), 10);
    access
        .until("progress is reported", |script| {
            let progress = script.heartbeats.iter().flat_map(|beat| &beat.progress);
            progress.into_iter().any(|chunk| (chunk.applied_csn, chunk.rows) == (70, 10))
        })
        .await;
    access.with(|script| {
        assert!(script.heartbeats[0].full);
        assert_eq!(script.heartbeats[0].pid, std::process::id());
        assert!(script.heartbeats[0].free_bytes > 0);
        script.heartbeats.clear();
    });
    // What was acknowledged is not sent again.
    access.until("more heartbeats", |script| script.heartbeats.len() >= 3).await;
    access
        .with(|script| assert!(script.heartbeats[1..].iter().all(|beat| beat.progress.is_empty())));
    let chunks = ChunksRequest { cluster: cluster.into(), chunks: vec![5] };
    let chunks = client.chunks(chunks).await.unwrap().into_inner().chunks;
    assert_eq!((chunks[0].rows, chunks[0].recent_rows), (10, 10));
    access.with(|script| script.dropped = vec![5, 6]);
    let deadline = Instant::now() + PATIENCE;
    while !node.store().report(&[]).is_empty() {
        assert!(Instant::now() < deadline, "the chunk is not dropped");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node.shutdown().await;
    // The next start needs no address: the directory knows them.
    let (node, _) = data_node(dir.path(), "", &[]).await;
    node.ready().await.unwrap();
    assert_eq!(node.membership(), Some(expected));
    let again = access.with(|script| script.registered.last().unwrap().clone());
    assert_eq!(again.rid, Some(RID.into()));
    assert_eq!(again.cluster.to_vec(), CLUSTER.0.to_vec());
    node.shutdown().await;
}

#[tokio::test]
async fn pending_transactions_are_resolved_before_rows_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let access = access_node().await;
    let (node, rpc) = data_node(dir.path(), "d3", &[&access]).await;
    node.ready().await.unwrap();
    let mut client = Channels::default().storage(&rpc).unwrap();
    for seq in [1, 2, 3] {
        let rows = rows_of(seq as i64, 4);
        client.prepare(prepare_request(seq, vec![part(5, 0, &rows)])).await.unwrap();
    }
    node.shutdown().await;
    drop(node);
    access.with(|script| {
        script.resolved.clear();
        script.decisions = vec![commit(1, 70, &[(5, 0)]).into(), abort(2).into()];
    });
    let (node, _) = data_node(dir.path(), "d3", &[&access]).await;
    node.ready().await.unwrap();
    assert_eq!(read(node.store(), request(5, 99)).unwrap().len(), 4);
    let pending: Vec<u64> = node.store().pending(&[]).iter().map(|(txn, _)| txn.seq).collect();
    assert_eq!(pending, [3]);
    access.with(|script| assert_eq!(script.resolved[0].pending.len(), 3));
    // What stays open is asked about again.
    access.with(|script| script.decisions = vec![commit(3, 80, &[(5, 70)]).into()]);
    let deadline = Instant::now() + PATIENCE;
    while !node.store().pending(&[]).is_empty() {
        assert!(Instant::now() < deadline, "the last transaction is not resolved");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(read(node.store(), request(5, 99)).unwrap().len(), 8);
    node.shutdown().await;
}

#[tokio::test]
async fn a_waiting_node_is_adopted_once() {
    let dir = tempfile::tempdir().unwrap();
    let access = access_node().await;
    let (node, rpc) = data_node(dir.path(), "", &[]).await;
    let mut client = Channels::default().storage(&rpc).unwrap();
    let early = client.prepare(prepare_request(1, Vec::new())).await.unwrap_err();
    assert_eq!(RpcError::from(early).code, Code::Unavailable);
    let address = access.with(|script| script.address.clone());
    let request = |cluster: ClusterId| AdoptRequest {
        cluster: cluster.0.to_vec().into(),
        name: "d3".into(),
        access: vec![address.clone()],
    };
    let reply = client.adopt(request(CLUSTER)).await.unwrap().into_inner();
    assert_eq!((reply.adopted, reply.rid), (true, Some(RID.into())));
    node.ready().await.unwrap();
    let reply = client.adopt(request(CLUSTER)).await.unwrap().into_inner();
    assert!(!reply.adopted);
    let refused = client.adopt(request(ClusterId([8; 16]))).await.unwrap_err();
    assert!(refused.message().contains("this node belongs to cluster 0707"), "{refused}");
    access.with(|script| assert_eq!(script.registered[0].name, "d3"));
    node.shutdown().await;
}

#[tokio::test]
async fn refusals_and_wrong_addressees_are_told_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let access = access_node().await;
    let (node, rpc) = data_node(dir.path(), "d3", &[&access]).await;
    node.ready().await.unwrap();
    let mut client = Channels::default().storage(&rpc).unwrap();
    let mut wrong = prepare_request(1, Vec::new());
    wrong.rid = Some(Rid { incarnation: Incarnation(2), ..RID }.into());
    let refused = client.prepare(wrong).await.unwrap_err();
    assert!(refused.message().contains("this data node is n3i1, the request is for n3i2"));
    let mut foreign = prepare_request(1, Vec::new());
    foreign.cluster = vec![8; 16].into();
    assert!(client.prepare(foreign).await.is_err());
    let mut bad = prepare_request(1, vec![part(5, 0, &rows_of(1, 2))]);
    bad.parts[0].hash = vec![1].into();
    let refused = client.prepare(bad).await.unwrap_err();
    assert_eq!(RpcError::from(refused).code, Code::Invalid);
    node.shutdown().await;
    drop(node);
    let store = config(dir.path());
    let (name, access_address) = ("d4".to_owned(), access.with(|script| script.address.clone()));
    let other = NodeConfig {
        store,
        name,
        access: vec![access_address],
        rpc,
        http: String::new(),
        channels: Channels::default(),
    };
    let refused = DataNode::start(other).await.unwrap_err();
    assert!(refused.to_string().contains("belongs to data node d3, not to d4"), "{refused}");
    access.with(|script| script.refusal = Some("data node d3 was removed".into()));
    let (node, _) = data_node(dir.path(), "d3", &[&access]).await;
    let refused = node.ready().await.unwrap_err();
    assert!(
        matches!(&refused, Error::Identity(why) if why.contains("d3 was removed")),
        "{refused}"
    );
    assert!(node.failed().await.to_string().contains("d3 was removed"));
    node.shutdown().await;
}

#[tokio::test]
async fn a_disk_under_a_new_incarnation_serves_nothing_of_before() {
    let dir = tempfile::tempdir().unwrap();
    let access = access_node().await;
    let (node, rpc) = data_node(dir.path(), "d3", &[&access]).await;
    node.ready().await.unwrap();
    for (seq, chunk) in [(1, 5), (2, 6)] {
        let parts = vec![part(chunk, 0, &rows_of(seq, 20))];
        node.store().prepare(txn(seq as u64), parts).await.unwrap();
    }
    node.store().decide(&[commit(1, 70, &[(5, 0)])]).unwrap();
    node.store().flush(&[]).unwrap();
    node.shutdown().await;
    drop(node);
    // It was rolled back, say: what it tells of itself at its registration gives it away.
    access.with(Script::distrust);
    let (node, _) = data_node(dir.path(), "d3", &[&access]).await;
    node.ready().await.unwrap();
    let told = access.with(|script| script.registered.last().unwrap().clone());
    let told: Vec<_> = told.progress.iter().map(|p| (p.chunk, p.applied_csn, p.rows)).collect();
    assert_eq!(told, [(5, 70, 20), (6, 0, 0)]);
    let second = Rid { incarnation: Incarnation(2), ..RID };
    assert_eq!(node.membership().unwrap().rid, second);
    assert!(node.store().report(&[]).is_empty());
    assert!(node.store().pending(&[]).is_empty());
    // Whoever asks by an older snapshot asks for what was here.
    let refused = read(node.store(), request(5, 99)).unwrap_err();
    assert!(matches!(refused, Error::SnapshotTooOld { .. }), "{refused}");
    assert!(read(node.store(), request(5, 100)).unwrap().is_empty());
    assert!(dir.path().join("aside").join("n3i1").join("5.redb").exists());
    // Also while it runs: it stops taking part until it has registered anew.
    node.store().prepare(txn(3), vec![part(5, 0, &rows_of(3, 20))]).await.unwrap();
    access.with(Script::distrust);
    let third = Rid { incarnation: Incarnation(3), ..RID };
    let deadline = Instant::now() + PATIENCE;
    while node.membership().unwrap().rid != third || !node.serving() {
        assert!(Instant::now() < deadline, "it does not register again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(node.store().report(&[]).is_empty());
    let mut client = Channels::default().storage(&rpc).unwrap();
    let late = client.prepare(prepare_request(4, Vec::new())).await.unwrap_err();
    assert!(!late.message().is_empty());
    let anew = |beat: &HeartbeatRequest| beat.full && beat.rid == Some(third.into());
    access.until("it tells all anew", |script| script.heartbeats.iter().any(anew)).await;
    node.shutdown().await;
    // Nothing of it is in the way of the next start.
    drop(node);
    let (node, _) = data_node(dir.path(), "", &[&access]).await;
    node.ready().await.unwrap();
    assert_eq!(node.membership().unwrap().rid, third);
    node.shutdown().await;
}

#[tokio::test]
async fn a_node_whose_journal_is_lost_registers_as_another_disk() {
    let dir = tempfile::tempdir().unwrap();
    let access = access_node().await;
    let (node, _) = data_node(dir.path(), "d3", &[&access]).await;
    node.ready().await.unwrap();
    node.store().prepare(txn(1), vec![part(5, 0, &rows_of(1, 20))]).await.unwrap();
    node.store().decide(&[commit(1, 70, &[(5, 0)])]).unwrap();
    node.store().flush(&[]).unwrap();
    node.store().prepare(txn(2), vec![part(5, 0, &rows_of(2, 20))]).await.unwrap();
    node.shutdown().await;
    drop(node);
    let journal = dir.path().join("journal.redb");
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes[..512].fill(7);
    std::fs::write(&journal, &bytes).unwrap();
    let (node, rpc) = data_node(dir.path(), "d3", &[&access]).await;
    node.ready().await.unwrap();
    assert_eq!(node.membership().unwrap().rid, Rid { incarnation: Incarnation(2), ..RID });
    let (first, second) = access.with(|script| {
        let told = |at: usize| script.registered[at].clone();
        (told(0), told(script.registered.len() - 1))
    });
    assert_ne!(first.disk, second.disk);
    assert_eq!(second.rid, Some(RID.into()), "it says who it was");
    assert!(node.store().report(&[]).is_empty() && node.store().pending(&[]).is_empty());
    let aside: Vec<String> = std::fs::read_dir(dir.path().join("aside/n3i1"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(aside.contains(&"5.redb".to_owned()), "{aside:?}");
    let kept = aside.iter().find(|name| name.starts_with("journal-")).unwrap();
    assert_eq!(std::fs::read(dir.path().join("aside/n3i1").join(kept)).unwrap(), bytes);
    // What the old disk acknowledged counts no more, and nobody is answered under its number.
    let mut client = Channels::default().storage(&rpc).unwrap();
    let late = client.prepare(prepare_request(2, Vec::new())).await.unwrap_err();
    assert!(late.message().contains("this data node is n3i2"), "{}", late.message());
    node.shutdown().await;
}

/// A node with flushed rows in chunk 5 up to the commit 70, and in chunk 6 up to 80.
async fn node_with_two_chunks(dir: &Path, access: &Access) -> Arc<DataNode> {
    let (node, _) = data_node(dir, "d3", &[access]).await;
    node.ready().await.unwrap();
    for (seq, chunk, csn) in [(1, 5, 70), (2, 6, 80)] {
        let parts = vec![part(chunk, 0, &rows_of(seq, 20))];
        node.store().prepare(txn(seq as u64), parts).await.unwrap();
        node.store().decide(&[commit(seq as u64, csn, &[(chunk, 0)])]).unwrap();
    }
    node.store().flush(&[]).unwrap();
    node
}

#[tokio::test]
async fn a_disk_under_a_new_incarnation_keeps_what_it_proved_to_hold() {
    let dir = tempfile::tempdir().unwrap();
    let access = access_node().await;
    let node = node_with_two_chunks(dir.path(), &access).await;
    for (seq, chunk) in [(3, 5), (4, 6)] {
        let parts = vec![part(chunk, 0, &rows_of(seq, 20))];
        node.store().prepare(txn(seq as u64), parts).await.unwrap();
    }
    node.shutdown().await;
    drop(node);
    access.with(|script| {
        script.distrust();
        script.kept = vec![5];
    });
    let (node, rpc) = data_node(dir.path(), "d3", &[&access]).await;
    node.ready().await.unwrap();
    let second = Rid { incarnation: Incarnation(2), ..RID };
    assert_eq!(node.membership().unwrap().rid, second);
    let held: Vec<u64> = node.store().report(&[]).iter().map(|report| report.chunk.0).collect();
    assert_eq!(held, [5]);
    // Also for statements that began before.
    assert_eq!(read(node.store(), request(5, 70)).unwrap().len(), 20);
    let refused = read(node.store(), request(6, 99)).unwrap_err();
    assert!(matches!(refused, Error::SnapshotTooOld { .. }), "{refused}");
    let aside = dir.path().join("aside").join("n3i1");
    assert!(aside.join("6.redb").exists() && !aside.join("5.redb").exists());
    // A part that waited is acknowledged anew, by the number of now, and its commit is the next one.
    let pending: Vec<u64> = node.store().pending(&[]).iter().map(|(txn, _)| txn.seq).collect();
    assert_eq!(pending, [3]);
    let again = prepare_request(3, vec![part(5, 0, &rows_of(3, 20))]);
    let mut client = Channels::default().storage(&rpc).unwrap();
    client.prepare(again.clone()).await.unwrap_err();
    let again =
        hypertide_proto::wire::storage::PrepareRequest { rid: Some(second.into()), ..again };
    client.prepare(again).await.unwrap();
    node.store().decide(&[commit(3, 90, &[(5, 70)])]).unwrap();
    node.store().flush(&[]).unwrap();
    assert_eq!(node.store().report(&[])[0].applied_csn.0, 90);
    // A stop before the new number is on disk repeats the registration, with the same end.
    access.with(Script::distrust);
    node.shutdown().await;
    drop(node);
    let (node, _) = data_node(dir.path(), "d3", &[&access]).await;
    node.ready().await.unwrap();
    assert_eq!(read(node.store(), request(5, 99)).unwrap().len(), 40);
    node.shutdown().await;
}

#[tokio::test]
async fn a_node_whose_journal_is_lost_tells_what_its_files_hold() {
    let dir = tempfile::tempdir().unwrap();
    let access = access_node().await;
    let node = node_with_two_chunks(dir.path(), &access).await;
    let before = node.store().report(&[]);
    node.store().prepare(txn(3), vec![part(6, 0, &rows_of(3, 20))]).await.unwrap();
    node.store().decide(&[commit(3, 90, &[(6, 80)])]).unwrap();
    node.shutdown().await;
    drop(node);
    std::fs::write(dir.path().join("journal.redb"), [7; 512]).unwrap();
    access.with(|script| script.kept = vec![5]);
    let (node, _) = data_node(dir.path(), "d3", &[&access]).await;
    node.ready().await.unwrap();
    let told = access.with(|script| script.registered.last().unwrap().clone());
    let told: Vec<_> = told.progress.iter().map(|p| (p.chunk, p.applied_csn)).collect();
    assert_eq!(told, [(5, 70), (6, 80)], "the last commit of the other was in the journal only");
    assert_eq!(node.store().report(&[]), before[..1]);
    assert_eq!(read(node.store(), request(5, 99)).unwrap().len(), 20);
    node.shutdown().await;
}

#[tokio::test]
async fn a_dropped_chunk_stays_while_a_part_of_it_is_pending() {
    let dir = tempfile::tempdir().unwrap();
    let access = access_node().await;
    let (node, _) = data_node(dir.path(), "d3", &[&access]).await;
    node.ready().await.unwrap();
    for chunk in [5, 6] {
        node.store().prepare(txn(chunk), vec![part(chunk, 0, &rows_of(1, 9))]).await.unwrap();
    }
    node.store().decide(&[commit(5, 70, &[(5, 0)])]).unwrap();
    access.with(|script| {
        script.dropped = vec![5, 6];
        script.heartbeats.clear();
    });
    let chunks = |node: &DataNode| -> Vec<u64> {
        node.store().report(&[]).iter().map(|report| report.chunk.0).collect()
    };
    let deadline = Instant::now() + PATIENCE;
    while chunks(&node) != [6] {
        assert!(Instant::now() < deadline, "the other chunk is not dropped");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The one that stays is told again, so that an answer as of now decides.
    access.with(|script| script.heartbeats.clear());
    let again = |beat: &HeartbeatRequest| !beat.full && beat.progress.iter().any(|p| p.chunk == 6);
    access.until("it is told again", |script| script.heartbeats.iter().any(again)).await;
    assert_eq!(chunks(&node), [6]);
    access.with(|script| script.decisions = vec![abort(6).into()]);
    let deadline = Instant::now() + PATIENCE;
    while !chunks(&node).is_empty() {
        assert!(Instant::now() < deadline, "the chunk is not dropped");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node.shutdown().await;
}
