//! Data nodes over real gRPC against access nodes that are scripted.
#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing, unreachable_pub)]

use std::{
    collections::BTreeMap,
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
        storage::PrepareRequest,
        types,
    },
};
use hypertide_storage::{DataNode, NodeConfig, Part};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::support::{config, txn};

pub const CLUSTER: ClusterId = ClusterId([7; 16]);
/// The first disk that registers.
pub const RID: Rid = Rid { node: NodeId(3), incarnation: Incarnation(1) };
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What the scripted access node was told, and what it answers.
#[derive(Default)]
pub struct Script {
    pub address: String,
    pub registered: Vec<RegisterRequest>,
    pub heartbeats: Vec<HeartbeatRequest>,
    pub resolved: Vec<ResolveRequest>,
    pub decisions: Vec<types::Decision>,
    pub dropped: Vec<u64>,
    pub refusal: Option<String>,
    /// Chunks that a disk under a new incarnation is to keep.
    pub kept: Vec<u64>,
    /// Disks that registered. Nodes are numbered from 3 on.
    pub rids: BTreeMap<Vec<u8>, Rid>,
}

impl Script {
    /// Takes all disks for new ones.
    pub fn distrust(&mut self) {
        self.rids.values_mut().for_each(|rid| rid.incarnation = rid.incarnation.next());
    }

    /// The node of a disk; one that says to be a node with another disk gets the next incarnation.
    fn rid(&mut self, disk: &[u8], claimed: Option<Rid>) -> Rid {
        let node = NodeId(RID.node.0 + self.rids.len() as u64);
        let fresh = Rid { node, incarnation: Incarnation(1) };
        let next = |rid: Rid| Rid { incarnation: rid.incarnation.next(), ..rid };
        *self.rids.entry(disk.to_vec()).or_insert_with(|| claimed.map_or(fresh, next))
    }
}

#[derive(Clone, Default)]
pub struct Access(Arc<Mutex<Script>>);

impl Access {
    pub fn with<T>(&self, work: impl FnOnce(&mut Script) -> T) -> T {
        work(&mut self.0.lock().unwrap())
    }

    /// Waits until the script satisfies a condition.
    pub async fn until(&self, what: &str, condition: impl Fn(&Script) -> bool) {
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

    async fn join(&self, _: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        unexpected()
    }

    async fn change_member(
        &self,
        _: Request<ChangeMemberRequest>,
    ) -> Result<Response<ChangeMemberReply>, Status> {
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
            let request = request.into_inner();
            let rid = script.rid(&request.disk, request.rid.map(Rid::from));
            script.registered.push(request);
            if let Some(refusal) = &script.refusal {
                return Err(RpcError::new(Code::WrongNode, refusal).into());
            }
            let access = vec![Member { access: 1, rpc: script.address.clone() }];
            let name = format!("d{}", rid.node.0);
            let cluster = CLUSTER.0.to_vec().into();
            Ok(Response::new(RegisterReply {
                cluster,
                rid: Some(rid.into()),
                name,
                access,
                csn: 100,
                kept: script.kept.clone(),
            }))
        })
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatReply>, Status> {
        self.with(|script| {
            let request = request.into_inner();
            if script.rids.get(request.disk.as_ref()).map(|rid| (*rid).into()) != request.rid {
                return Err(RpcError::new(Code::Stale, "this disk is not registered").into());
            }
            script.heartbeats.push(request);
            let access = vec![Member { access: 1, rpc: script.address.clone() }];
            let dropped = script.dropped.clone();
            Ok(Response::new(HeartbeatReply {
                resync: false,
                access,
                leader: 1,
                dropped,
                dropped_csn: 1_000,
                definitions: None,
            }))
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

    async fn still_open(
        &self,
        _: Request<StillOpenRequest>,
    ) -> Result<Response<StillOpenReply>, Status> {
        unexpected()
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        unexpected()
    }
}

pub async fn access_node() -> Access {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let access = Access::default();
    access.with(|script| script.address = listener.local_addr().unwrap().to_string());
    let server = tonic::transport::Server::builder().add_service(MetaServer::new(access.clone()));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    access
}

pub async fn data_node(dir: &Path, name: &str, access: &[&Access]) -> (Arc<DataNode>, String) {
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

pub fn wire_part(part: Part) -> wire::storage::Part {
    wire::storage::Part {
        spec: Some(wire::storage::ChunkSpec {
            chunk: part.spec.chunk.0,
            table: part.spec.table.0,
            time_column: part.spec.time_column.unwrap_or_default(),
            order_columns: part.spec.order_columns,
            origin: part.spec.origin.into(),
        }),
        epoch: part.epoch.0,
        part: part.number,
        rows: part.rows,
        hash: part.hash.to_be_bytes().to_vec().into(),
        payload: part.payload,
        decoded_bytes: part.decoded_bytes,
    }
}

pub fn prepare_request(seq: u64, parts: Vec<Part>) -> PrepareRequest {
    PrepareRequest {
        cluster: CLUSTER.0.to_vec().into(),
        txn: Some(txn(seq).into()),
        rid: Some(RID.into()),
        parts: parts.into_iter().map(wire_part).collect(),
        deadline_ms: 10_000,
    }
}
