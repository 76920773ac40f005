//! Access nodes in one process, with real gRPC and real disks: forming, forwarding, failover, restart, snapshots.

mod harness;

use std::time::Instant;

use harness::{Cluster, Node, create_table, fast, soon, table_command, tables};
use hypertide_meta::{
    CatalogWriter, Error, MetaNode, Tuning,
    catalog::{Command, Outcome},
    init_cluster,
};
use hypertide_proto::{
    client::Channels,
    error::{Code, RpcError},
    ids::{AccessId, Boot},
    wire::meta::{IdentityRequest, ProposeRequest},
};

#[tokio::test(flavor = "multi_thread")]
async fn one_node_is_a_cluster() {
    let mut cluster = Cluster::start(1, fast()).await;
    cluster.form().await;
    create_table(cluster.node(1), "alone").await.expect("a leader takes commands");
    cluster.restart(1).await;
    cluster.node(1).meta.ready().await.expect("it comes back by itself");
    let image = cluster.node(1).meta.barrier(soon()).await.expect("it leads again");
    assert_eq!(tables(&image), ["alone"]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_from_any_node_is_seen_at_every_node() {
    let mut cluster = Cluster::start(3, fast()).await;
    cluster.form().await;
    for id in 1..=3 {
        create_table(cluster.node(id), &format!("from_{id}")).await.expect("any node takes it");
        for reader in 1..=3 {
            let image = cluster.node(reader).meta.barrier(soon()).await.expect("a barrier");
            assert!(tables(&image).contains(&format!("from_{id}")), "{id} seen from {reader}");
        }
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_that_comes_twice_is_carried_out_once() {
    let mut cluster = Cluster::start(1, fast()).await;
    cluster.form().await;
    let node = cluster.node(1);
    let id = node.meta.cluster().expect("it is formed");
    let mut client = Channels::default().meta(&cluster.address(1)).expect("an address");
    let request = ProposeRequest {
        cluster: id.0.to_vec().into(),
        commands: vec![rmp_serde::to_vec_named(&table_command("late")).expect("encodes").into()],
        deadline_ms: 5_000,
        forwarded: true,
        name: vec![7; 16].into(),
    };
    client.propose(request.clone()).await.expect("the table is made");
    let image = node.meta.barrier(soon()).await.expect("a barrier");
    let made = image.catalog.tables().map(|table| table.id).collect();
    let (_, answer) =
        node.meta.propose(Command::DropTables { tables: made }, soon()).await.expect("a leader");
    answer.expect("the table is dropped");
    // A copy that was late must not make the table again, nor look as if it had been refused.
    let late = client.propose(request.clone()).await.expect_err("it came before");
    assert_eq!(RpcError::from(late).code, Code::Stale);
    let image = node.meta.barrier(soon()).await.expect("a barrier");
    assert!(tables(&image).is_empty());
    client.propose(ProposeRequest { name: vec![8; 16].into(), ..request }).await.expect("another");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_commands_are_grouped_and_all_answered() {
    let mut cluster = Cluster::start(3, fast()).await;
    cluster.form().await;
    let before = cluster.node(1).meta.barrier(soon()).await.expect("a barrier").applied;
    let mut proposals = tokio::task::JoinSet::new();
    for number in 0..300 {
        let node = cluster.node(1 + number % 3).clone();
        proposals.spawn(async move { create_table(&node, &format!("t{number}")).await });
    }
    let results = proposals.join_all().await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let image = cluster.node(2).meta.barrier(soon()).await.expect("a barrier");
    assert_eq!(tables(&image).len(), 300);
    assert!(image.applied - before < 300, "{} entries for 300 commands", image.applied - before);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_takes_over_from_a_stopped_leader() {
    let mut cluster = Cluster::start(3, fast()).await;
    cluster.form().await;
    create_table(cluster.node(1), "before").await.expect("the cluster works");
    let old = cluster.leader().await;
    cluster.halt(old).await;
    let left: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    for id in &left {
        create_table(cluster.node(*id), &format!("after_{id}"))
            .await
            .expect("two of three suffice");
    }
    assert_ne!(cluster.leader().await, old);
    // The old leader comes back with an old catalog, and its barrier waits for the new one.
    cluster.restart(old).await;
    let image = cluster.node(old).meta.barrier(soon()).await.expect("it joins again");
    assert_eq!(tables(&image).len(), 3);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minority_says_so_in_time() {
    let mut cluster = Cluster::start(3, fast()).await;
    cluster.form().await;
    for id in [2, 3] {
        cluster.halt(id).await;
    }
    let deadline = Instant::now() + std::time::Duration::from_millis(1_500);
    let barrier = cluster.node(1).meta.barrier(deadline).await;
    assert!(matches!(barrier, Err(Error::Unavailable(_))), "{barrier:?}");
    let command = harness::table_command("nowhere");
    let proposed = cluster.node(1).meta.propose(command, deadline).await;
    assert!(matches!(proposed, Err(Error::Unavailable(_) | Error::Unknown(_))), "{proposed:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_restart_from_disk() {
    let mut cluster = Cluster::start(3, fast()).await;
    cluster.form().await;
    for number in 0..20 {
        create_table(cluster.node(1 + number % 3), &format!("t{number}")).await.expect("it works");
    }
    let boots: Vec<Boot> = (1..=3).map(|id| cluster.node(id).meta.begin().id().boot).collect();
    for id in 1..=3 {
        cluster.halt(id).await;
    }
    for id in 1..=3 {
        cluster.restart(id).await;
    }
    for id in 1..=3 {
        cluster.node(id).meta.ready().await.expect("a majority is back");
        let image = cluster.node(id).meta.barrier(soon()).await.expect("a barrier");
        assert_eq!(tables(&image).len(), 20);
        let boot = cluster.node(id).meta.begin().id().boot;
        assert!(boot > boots[id as usize - 1], "a boot is never given twice");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lagged_takes_a_snapshot() {
    let tuning = Tuning { snapshot_entries: 20, kept_entries: 1, ..fast() };
    let mut cluster = Cluster::start(3, tuning).await;
    cluster.form().await;
    cluster.halt(3).await;
    for number in 0..80 {
        create_table(cluster.node(1), &format!("t{number}")).await.expect("two of three suffice");
    }
    for id in 1..=2 {
        cluster.wait_for_snapshot(id).await;
    }
    cluster.restart(3).await;
    let image = cluster.node(3).meta.barrier(soon()).await.expect("it catches up");
    assert_eq!(tables(&image).len(), 80);
    cluster.wait_for_snapshot(3).await;
    let same = cluster.node(1).meta.applied(image.applied, soon()).await.expect("applied there");
    if same.applied == image.applied {
        assert!(same.catalog == image.catalog, "the installed catalog is the leader's");
    }
    // What was installed survives a restart.
    cluster.restart(3).await;
    let image = cluster.node(3).meta.barrier(soon()).await.expect("it comes back");
    assert_eq!(tables(&image).len(), 80);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forming_again_changes_nothing_and_other_clusters_are_refused() {
    let mut cluster = Cluster::start(3, fast()).await;
    let id = cluster.form().await;
    let addresses = cluster.addresses();
    let again = init_cluster(&Channels::default(), &addresses, soon()).await;
    assert_eq!(again.expect("it is formed already"), id);
    let part = init_cluster(&Channels::default(), &addresses[..2], soon()).await;
    let message = part.expect_err("the members differ").to_string();
    assert!(message.contains("consists of a1, a2, a3"), "{message}");

    let mut other = Cluster::start(1, fast()).await;
    other.form().await;
    let mixed = [addresses[0].clone(), other.addresses()[0].clone()];
    let message = init_cluster(&Channels::default(), &mixed, soon()).await.expect_err("two a1");
    assert!(message.to_string().contains("access node a1"), "{message}");
    cluster.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_forming_is_finished() {
    use hypertide_proto::wire::meta::{InitRequest, Member};
    let mut cluster = Cluster::start(3, fast()).await;
    let addresses = cluster.addresses();
    let member = |(id, rpc): (u64, &String)| Member { access: id, rpc: rpc.clone() };
    let members: Vec<Member> = (1..).zip(&addresses).map(member).collect();
    let request = InitRequest { cluster: vec![9; 16].into(), members };
    let mut client = Channels::default().meta(&addresses[1]).expect("an address");
    assert!(client.init(request.clone()).await.expect("taken in").into_inner().formed);
    assert!(!client.init(request).await.expect("taken in before").into_inner().formed);
    let id = init_cluster(&Channels::default(), &addresses, soon()).await.expect("finished");
    assert_eq!(id.0, [9; 16]);
    for id in 1..=3 {
        cluster.node(id).meta.ready().await.expect("formed");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_voter_is_not_taken_back() {
    let mut cluster = Cluster::start(3, fast()).await;
    cluster.form().await;
    cluster.halt(3).await;
    cluster.wipe(3);
    cluster.restart(3).await;
    assert_eq!(cluster.node(3).meta.cluster(), None, "an empty node starts no raft by itself");
    let refused = init_cluster(&Channels::default(), &cluster.addresses(), soon()).await;
    let message = refused.expect_err("it lost its votes").to_string();
    assert!(message.contains("lost its directory"), "{message}");
    create_table(cluster.node(1), "still").await.expect("the other two go on");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_are_refused_in_words() {
    let mut cluster = Cluster::start(1, fast()).await;
    cluster.form().await;
    let dir = cluster.dir(1);
    let start = async |id: u64| {
        let config = harness::config(AccessId(id), &dir, "127.0.0.1:1");
        MetaNode::start(config).await.expect_err("refused").to_string()
    };
    assert!(start(1).await.contains("is in use by another process"));
    cluster.halt(1).await;
    let message = start(2).await;
    assert!(message.contains("belongs to node a1, not to a2"), "{message}");
    let node = std::fs::read(dir.join("NODE")).expect("read");
    std::fs::write(dir.join("NODE"), "format 99\nnode 1\n").expect("written");
    let message = start(1).await;
    assert!(message.contains("has format 99"), "{message}");
    std::fs::write(dir.join("NODE"), node).expect("written");
    std::fs::remove_file(dir.join("raft.redb")).expect("removed");
    let message = start(1).await;
    assert!(message.contains("the raft log of a1") && message.contains("is lost"), "{message}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_for_other_nodes_are_refused() {
    use hypertide_proto::{
        error::{Code, RpcError},
        wire::meta::RaftRequest,
    };
    let mut cluster = Cluster::start(1, fast()).await;
    let mut client = Channels::default().raft(&cluster.addresses()[0]).expect("an address");
    let message = |cluster: [u8; 16], to| RaftRequest {
        cluster: cluster.to_vec().into(),
        from: 9,
        to,
        body: Vec::new().into(),
    };
    let before = client.vote(message([1; 16], 1)).await.expect_err("no cluster yet");
    assert_eq!(RpcError::from(before).code, Code::Unavailable);
    let id = cluster.form().await;
    let foreign = client.vote(message([1; 16], 1)).await.expect_err("another cluster");
    assert_eq!(RpcError::from(foreign).code, Code::WrongNode);
    let astray = client.vote(message(id.0, 2)).await.expect_err("another node");
    assert_eq!(RpcError::from(astray).code, Code::WrongNode);
    let garbage = client.append(message(id.0, 1)).await.expect_err("no message of raft");
    assert_eq!(RpcError::from(garbage).code, Code::Version);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_nodes_register_and_are_seen() {
    use hypertide_proto::wire::meta::{ChunkProgress, HeartbeatRequest, RegisterRequest};
    let mut cluster = Cluster::start(3, fast()).await;
    let id = cluster.form().await;
    let follower = cluster.follower().await;
    let address = &cluster.addresses()[follower as usize - 1];
    let mut client = Channels::default().meta(address).expect("an address");
    let request = RegisterRequest {
        disk: vec![5; 16].into(),
        rpc: "127.0.0.1:5464".to_owned(),
        http: "127.0.0.1:5484".to_owned(),
        ..Default::default()
    };
    let reply = client.register(request).await.expect("a follower takes it").into_inner();
    assert_eq!(reply.cluster[..], id.0);
    assert_eq!(reply.name, "d1");
    assert_eq!(reply.access.len(), 3);

    let heartbeat = |full| HeartbeatRequest {
        cluster: reply.cluster.clone(),
        rid: reply.rid,
        disk: vec![5; 16].into(),
        progress: vec![ChunkProgress { chunk: 77, bytes: 5, ..Default::default() }],
        full,
        pid: 4711,
        ..Default::default()
    };
    let first = client.heartbeat(heartbeat(false)).await.expect("heard").into_inner();
    assert!(first.resync, "a stranger must report in full");
    let full = client.heartbeat(heartbeat(true)).await.expect("heard").into_inner();
    assert!(!full.resync);
    assert_eq!(full.dropped, [77], "no such chunk was ever made");
    assert_ne!(full.leader, 0);

    let leader = cluster.leader().await;
    let mut at_leader =
        Channels::default().meta(&cluster.addresses()[leader as usize - 1]).expect("an address");
    at_leader.heartbeat(heartbeat(true)).await.expect("heard");
    let status = cluster.node(follower).meta.status().await;
    assert_eq!(status.leader, format!("a{leader}"));
    let states: Vec<(String, String)> =
        status.nodes.iter().map(|node| (node.name.clone(), node.state.clone())).collect();
    let up = ["a1", "a2", "a3", "d1"].map(|name| (name.to_owned(), "up".to_owned()));
    assert_eq!(states, up);
    assert_eq!(status.nodes[3].pid, 4711);
    assert_eq!(status.nodes[0].pid, std::process::id());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn overdue_transactions_that_nobody_goes_on_with_are_aborted_on_request() {
    use hypertide_proto::{
        ids::TxnId,
        wire::meta::{PendingTxn, ResolveRequest},
    };
    let mut cluster = Cluster::start(3, fast()).await;
    let id = cluster.form().await;
    for node in 1..=3 {
        cluster.node(node).meta.ready().await.expect("it is registered");
    }
    let own = &cluster.node(1).meta;
    let (young, left) = (own.begin().id(), own.begin().id());
    // Under way, at the node that is asked and at another.
    let (here, there) = (own.begin(), cluster.node(2).meta.begin());
    let pending = |txn: TxnId, age_ms| PendingTxn { txn: Some(txn.into()), age_ms };
    let mut client = Channels::default().meta(&cluster.addresses()[0]).expect("an address");
    let mut resolve = async |pending: Vec<PendingTxn>| {
        let request = ResolveRequest { cluster: id.0.to_vec().into(), pending };
        client.resolve(request).await.expect("answered").into_inner().decisions
    };
    let decisions = resolve(vec![
        pending(young, 1_000),
        pending(left, 31_000),
        pending(here.id(), 3_600_000),
        pending(there.id(), 3_600_000),
    ])
    .await;
    assert_eq!(decisions.len(), 1, "the others are open");
    assert_eq!((decisions[0].txn, decisions[0].csn), (Some(left.into()), 0));
    let (_, again) = own.propose(Command::Abort { txn: left }, soon()).await.expect("applied");
    assert_eq!(again, Ok(Outcome::Aborted));
    // The other node dies, and with it what was under way there.
    let dead = there.id();
    cluster.halt(2).await;
    let decisions = resolve(vec![pending(here.id(), 31_000), pending(dead, 31_000)]).await;
    assert_eq!(decisions.len(), 1);
    assert_eq!((decisions[0].txn, decisions[0].csn), (Some(dead.into()), 0));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_node_says_who_it_is() {
    let mut cluster = Cluster::start(1, fast()).await;
    let mut client = Channels::default().meta(&cluster.addresses()[0]).expect("an address");
    let identity = client.identity(IdentityRequest { asker: 0 }).await.expect("answered");
    let identity = identity.into_inner();
    assert_eq!((identity.access, identity.cluster.len()), (1, 0));
    let node: &Node = cluster.node(1);
    assert!(matches!(node.meta.barrier(soon()).await, Err(Error::Unavailable(_))));
    cluster.stop().await;
}
