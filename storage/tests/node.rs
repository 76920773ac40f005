//! A data node over real gRPC against access nodes that are scripted.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use hypertide_proto::{
    client::Channels,
    error::{Code, RpcError},
    ids::{ClusterId, Incarnation, NodeId, Rid},
    wire::{
        self,
        meta::{
            meta_server::{Meta, MetaServer},
            *,
        },
        storage::{AdoptRequest, ChunksRequest, DecideRequest, PrepareRequest},
        types,
    },
};
use hypertide_storage::{DataNode, Error, Membership, NodeConfig, Part};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

mod support;
use support::*;

const CLUSTER: ClusterId = ClusterId([7; 16]);
const RID: Rid = Rid { node: NodeId(3), incarnation: Incarnation(1) };
const PATIENCE: Duration = Duration::from_secs(30);

/// What the scripted access node was told, and what it answers.
#[derive(Default)]
struct Script {
    address: String,
    registered: Vec<RegisterRequest>,
    heartbeats: Vec<HeartbeatRequest>,
    resolved: Vec<ResolveRequest>,
    decisions: Vec<types::Decision>,
    dropped: Vec<u64>,
    refusal: Option<String>,
}

#[derive(Clone, Default)]
struct Access(Arc<Mutex<Script>>);

impl Access {
    fn with<T>(&self, work: impl FnOnce(&mut Script) -> T) -> T {
        work(&mut self.0.lock().unwrap())
    }

    /// Waits until the script satisfies a condition.
    async fn until(&self, what: &str, condition: impl Fn(&Script) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !self.with(|script| condition(script)) {
            assert!(Instant::now() < deadline, "waited in vain: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn unexpected<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("a data node does not ask this"))
}

#[tonic::async_trait]
impl Meta for Access {
    async fn identity(
        &self,
        _: Request<IdentityRequest>,
    ) -> Result<Response<IdentityReply>, Status> {
        unexpected()
    }

    async fn init(&self, _: Request<InitRequest>) -> Result<Response<InitReply>, Status> {
        unexpected()
    }

    async fn propose(&self, _: Request<ProposeRequest>) -> Result<Response<ProposeReply>, Status> {
        unexpected()
    }

    async fn read_barrier(
        &self,
        _: Request<ReadBarrierRequest>,
    ) -> Result<Response<ReadBarrierReply>, Status> {
        unexpected()
    }

    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterReply>, Status> {
        self.with(|script| {
            script.registered.push(request.into_inner());
            if let Some(refusal) = &script.refusal {
                return Err(RpcError::new(Code::WrongNode, refusal).into());
            }
            let access = vec![Member { access: 1, rpc: script.address.clone() }];
            let name = "d3".to_owned();
            let cluster = CLUSTER.0.to_vec().into();
            Ok(Response::new(RegisterReply { cluster, rid: Some(RID.into()), name, access }))
        })
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatReply>, Status> {
        self.with(|script| {
            script.heartbeats.push(request.into_inner());
            let access = vec![Member { access: 1, rpc: script.address.clone() }];
            let dropped = script.dropped.clone();
            Ok(Response::new(HeartbeatReply { resync: false, access, leader: 1, dropped }))
        })
    }

    async fn resolve(
        &self,
        request: Request<ResolveRequest>,
    ) -> Result<Response<ResolveReply>, Status> {
        self.with(|script| {
            script.resolved.push(request.into_inner());
            Ok(Response::new(ResolveReply { decisions: script.decisions.clone() }))
        })
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        unexpected()
    }
}

async fn access_node() -> Access {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let access = Access::default();
    access.with(|script| script.address = listener.local_addr().unwrap().to_string());
    let server = tonic::transport::Server::builder().add_service(MetaServer::new(access.clone()));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    access
}

async fn data_node(dir: &Path, name: &str, access: &[&Access]) -> (Arc<DataNode>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rpc = listener.local_addr().unwrap().to_string();
    let config = NodeConfig {
        store: config(dir),
        name: name.to_owned(),
        access: access.iter().map(|access| access.with(|script| script.address.clone())).collect(),
        rpc: rpc.clone(),
        http: "127.0.0.1:1".into(),
        channels: Channels::default(),
    };
    let node = DataNode::start(config).await.unwrap();
    let server = tonic::transport::Server::builder().add_routes(node.routes());
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (node, rpc)
}

fn wire_part(part: Part) -> wire::storage::Part {
    wire::storage::Part {
        spec: Some(wire::storage::ChunkSpec {
            chunk: part.spec.chunk.0,
            table: part.spec.table.0,
            time_column: part.spec.time_column.unwrap_or_default(),
            order_columns: part.spec.order_columns,
        }),
        epoch: part.epoch.0,
        part: part.number,
        rows: part.rows,
        hash: part.hash.to_be_bytes().to_vec().into(),
        payload: part.payload,
        decoded_bytes: part.decoded_bytes,
    }
}

fn prepare_request(seq: u64, parts: Vec<Part>) -> PrepareRequest {
    PrepareRequest {
        cluster: CLUSTER.0.to_vec().into(),
        txn: Some(txn(seq).into()),
        rid: Some(RID.into()),
        parts: parts.into_iter().map(wire_part).collect(),
        deadline_ms: 10_000,
    }
}

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
