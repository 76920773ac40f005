//! Access nodes that come and go, and data nodes that fall silent and come back, over real gRPC and Raft.

mod harness;

use std::time::{Duration, Instant};

use harness::{Cluster, create_table, fast, soon, tables};
use hypertide_meta::{
    CatalogWriter, Error,
    catalog::{Chunk, Command, CommitPart, CommitRecord, Health, Outcome},
};
use hypertide_proto::{
    client::Channels,
    ids::{AccessId, ChunkId, ClusterId, Rid},
    wire::meta::{ChunkProgress, HeartbeatRequest, RegisterReply, RegisterRequest},
};

const HEARTBEAT_PAUSE: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread")]
async fn an_access_node_is_added_and_a_lost_one_replaced() {
    let mut cluster = Cluster::start(3, fast()).await;
    cluster.form().await;
    create_table(cluster.node(1), "before").await.expect("the cluster works");
    let (id, address) = cluster.start_another().await;
    // Any node passes the question on to the leader.
    let follower = cluster.follower().await;
    let added = cluster.node(follower).meta.add_access(AccessId(id), &address, soon()).await;
    let added = added.expect("it catches up");
    assert_eq!(added.voters, [1, 2, 3, 4].map(AccessId));
    assert!(added.notice.expect("an even number").contains("odd number"));
    let again = cluster.node(1).meta.add_access(AccessId(id), &address, soon()).await;
    assert_eq!(again.expect("it is one already").voters.len(), 4);
    cluster.node(id).meta.ready().await.expect("it registers by itself");
    let image = cluster.node(id).meta.barrier(soon()).await.expect("a barrier at the new node");
    assert_eq!(tables(&image), ["before"]);

    // One is lost for good; the others go on, and its id is never taken back.
    let lost = cluster.follower().await;
    cluster.halt(lost).await;
    let other = cluster.leader().await;
    let removed = cluster.node(other).meta.remove_access(AccessId(lost), soon()).await;
    let removed = removed.expect("three of four are there");
    assert_eq!(removed.voters.len(), 3);
    assert_eq!(removed.notice, None);
    let image = cluster.node(id).meta.barrier(soon()).await.expect("a barrier");
    assert!(image.catalog.access_nodes().all(|node| node.id != AccessId(lost)));
    let back = cluster.node(other).meta.add_access(AccessId(lost), &address, soon()).await;
    assert!(back.expect_err("retired").to_string().contains("another id"));

    // The new one votes: with it, one more may fail.
    let gone = cluster.leader().await;
    cluster.halt(gone).await;
    let left = cluster.leader().await;
    create_table(cluster.node(left), "after").await.expect("two of three suffice");
    cluster.restart(id).await;
    let image = cluster.node(id).meta.barrier(soon()).await.expect("it comes back as a member");
    assert_eq!(tables(&image), ["before", "after"]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_access_node_that_was_removed_learns_of_it_and_ends() {
    let mut cluster = Cluster::start(3, fast()).await;
    cluster.form().await;
    let gone = cluster.follower().await;
    let leader = cluster.leader().await;
    cluster.node(leader).meta.remove_access(AccessId(gone), soon()).await.expect("three are there");
    let failed = tokio::time::timeout_at(soon().into(), cluster.node(gone).meta.failed()).await;
    let failed = failed.expect("it asks the others").to_string();
    assert_eq!(failed, format!("access node a{gone} was removed from the cluster"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_access_node_and_strangers_are_refused() {
    let mut cluster = Cluster::start(1, fast()).await;
    cluster.form().await;
    let node = cluster.node(1);
    let last = node.meta.remove_access(AccessId(1), soon()).await.expect_err("the last one");
    assert!(last.to_string().contains("the last one"), "{last}");
    let address = cluster.address(1);
    let wrong = node.meta.add_access(AccessId(7), &address, soon()).await.expect_err("it is a1");
    assert!(wrong.to_string().contains("is a1, not a7"), "{wrong}");
    cluster.stop().await;
}

/// A data node that only registers and sends heartbeats.
struct Pulse {
    cluster: ClusterId,
    reply: RegisterReply,
    disk: u8,
    held: Option<Chunk>,
}

impl Pulse {
    async fn register(cluster: &Cluster, name: &str, disk: u8) -> Result<Self, Error> {
        let mut client = Channels::default().meta(&cluster.address(1))?;
        let request = RegisterRequest {
            name: name.to_owned(),
            disk: vec![disk; 16].into(),
            // Nobody listens there: probes are not answered.
            rpc: "127.0.0.1:1".to_owned(),
            ..RegisterRequest::default()
        };
        let reply =
            client.register(request).await.map_err(hypertide_proto::error::RpcError::from)?;
        let reply = reply.into_inner();
        let id = hypertide_proto::wire::cluster(&reply.cluster)?;
        Ok(Self { cluster: id, reply, disk, held: None })
    }

    fn rid(&self) -> Rid {
        self.reply.rid.expect("registered").into()
    }

    async fn beat(&self, cluster: &Cluster) {
        let held = self.held.iter().map(|chunk| ChunkProgress {
            chunk: chunk.id.0,
            applied_csn: chunk.last_csn.0,
            chain: chunk.chain.to_be_bytes().to_vec().into(),
            ..ChunkProgress::default()
        });
        let heartbeat = HeartbeatRequest {
            cluster: self.cluster.0.to_vec().into(),
            rid: self.reply.rid,
            disk: vec![self.disk; 16].into(),
            progress: held.collect(),
            full: true,
            ..HeartbeatRequest::default()
        };
        let mut client = Channels::default().meta(&cluster.address(1)).expect("an address");
        client.heartbeat(heartbeat).await.expect("heard");
    }
}

/// Beats until the catalog is as wanted.
async fn beat_until(
    cluster: &Cluster,
    beating: &[&Pulse],
    wanted: impl Fn(&Chunk, &[Health]) -> bool,
) {
    let deadline = soon();
    loop {
        for pulse in beating {
            pulse.beat(cluster).await;
        }
        let image = cluster.node(1).meta.image();
        let health: Vec<Health> = image.catalog.data_nodes().map(|node| node.health).collect();
        let chunk = image.catalog.chunk(ChunkId(1)).expect("made");
        if wanted(chunk, &health) {
            return;
        }
        assert!(Instant::now() < deadline, "{chunk} {health:?}");
        tokio::time::sleep(HEARTBEAT_PAUSE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_data_node_leaves_the_write_set_and_returns_by_itself() {
    let mut cluster = Cluster::start(1, fast()).await;
    cluster.form().await;
    let mut one = Pulse::register(&cluster, "d1", 1).await.expect("new");
    let mut two = Pulse::register(&cluster, "d2", 2).await.expect("new");
    create_table(cluster.node(1), "r").await.expect("the cluster works");
    let meta = &cluster.node(1).meta;
    let table = meta.image().catalog.table_named("public", "r").expect("made").id;
    let ensure = Command::EnsureChunks { table, points: vec![Vec::new()] };
    let (_, made) = meta.propose(ensure, soon()).await.expect("proposed");
    let Ok(Outcome::Chunks(chunks)) = made else { panic!("{made:?}") };
    assert_eq!(chunks[0].in_sync, [one.rid(), two.rid()]);
    let part = CommitPart {
        chunk: chunks[0].id,
        epoch: chunks[0].epoch,
        acks: chunks[0].in_sync.clone(),
        hash: 5,
        rows: 1,
        table_version: 1,
        keyed: false,
    };
    let record = CommitRecord { txn: meta.begin().id(), write: None, parts: vec![part] };
    let (index, _) = meta.propose(Command::Commit(record), soon()).await.expect("proposed");
    let image = meta.applied(index, soon()).await.expect("applied");
    let held = image.catalog.chunk(chunks[0].id).cloned();
    (one.held, two.held) = (held.clone(), held);

    beat_until(&cluster, &[&one, &two], |chunk, health| {
        chunk.in_sync.len() == 2 && health == [Health::Up, Health::Up]
    })
    .await;
    beat_until(&cluster, &[&one], |_, health| health[1] != Health::Up).await;
    beat_until(&cluster, &[&one], |chunk, health| {
        chunk.in_sync == [one.rid()] && health[1] == Health::Down
    })
    .await;
    let status = meta.status().await;
    let state =
        |name: &str| status.nodes.iter().find(|node| node.name == name).map(|at| at.state.clone());
    assert_eq!((state("d1"), state("d2")), (Some("up".to_owned()), Some("down".to_owned())));
    // It holds the last commit, so that nothing is copied.
    beat_until(&cluster, &[&one, &two], |chunk, health| {
        chunk.in_sync.len() == 2 && health[1] == Health::Up
    })
    .await;

    // Another disk under the name of a node that lives is refused; when it is silent, it takes its place.
    let deadline = soon();
    let wiped = loop {
        match Pulse::register(&cluster, "d2", 9).await {
            Ok(wiped) => break wiped,
            Err(error) => assert!(error.to_string().contains("heard of"), "{error}"),
        }
        one.beat(&cluster).await;
        assert!(Instant::now() < deadline);
        tokio::time::sleep(HEARTBEAT_PAUSE).await;
    };
    assert_eq!(wiped.rid(), Rid { incarnation: two.rid().incarnation.next(), ..two.rid() });
    beat_until(&cluster, &[&one], |chunk, _| chunk.in_sync == [one.rid()]).await;
    cluster.stop().await;
}
