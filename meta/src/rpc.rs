//! The Meta service: what other access nodes, data nodes and tools ask of an access node.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hypertide_proto::{
    error::{Code, RpcError},
    ids::{AccessId, ChunkId, ClusterId, Csn, DiskId, Rid, TxnId},
    wire::{
        check_cluster,
        meta::{
            ChangeMemberReply, ChangeMemberRequest, Definitions, HeartbeatReply, HeartbeatRequest,
            IdentityReply, IdentityRequest, InitReply, InitRequest, JoinReply, JoinRequest,
            Member as WireMember, ProposeReply, ProposeRequest, ReadBarrierReply,
            ReadBarrierRequest, RegisterReply, RegisterRequest, ResolveReply, ResolveRequest,
            StatusReply, StatusRequest, StillOpenReply, StillOpenRequest, meta_server::Meta,
        },
        required, types,
    },
};
use tonic::{Request, Response, Status};

use crate::{
    Error,
    catalog::{Command, Outcome},
    commit::{Failure, Origin, UNIT_COMMANDS_MAX},
    node::{CatalogWriter, Image, Member, MetaNode},
    once::Once,
    raft::{decode, encode},
};

/// Longest wait for the log on behalf of a data node.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest deadline of a proposal that another node may ask for.
const PROPOSE_TIMEOUT_MAX: Duration = Duration::from_secs(30);
/// A transaction that is pending for this long and not under way at its access node is aborted when a data node asks
/// for it.
const OPEN_MAX: Duration = Duration::from_secs(30);
/// How long an access node has to say that a transaction of its is under way.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);

/// The service of one node.
#[derive(Debug)]
pub(crate) struct MetaService {
    node: Arc<MetaNode>,
    proposals: Once,
}

impl From<Error> for RpcError {
    fn from(error: Error) -> Self {
        match error {
            Error::Unavailable(message) => Self::new(Code::Unavailable, message),
            Error::Unknown(message) => Self::new(Code::DeadlineExceeded, message),
            Error::Identity(message) => Self::new(Code::WrongNode, message),
            Error::Storage(message) => Self::new(Code::Internal, message),
            Error::Rpc(error) => error,
        }
    }
}

impl MetaService {
    pub(crate) fn new(node: Arc<MetaNode>) -> Self {
        Self { node, proposals: Once::default() }
    }

    /// The node as a member of the cluster that a message names.
    fn member(&self, cluster: &[u8]) -> Result<&Member, RpcError> {
        let member = self.node.member()?;
        check_cluster(cluster, member.leader.group().cluster())?;
        Ok(member)
    }

    fn cluster(&self) -> Result<ClusterId, RpcError> {
        Ok(self.node.member()?.leader.group().cluster())
    }

    fn access_nodes(image: &Image) -> Vec<WireMember> {
        let nodes = image.catalog.access_nodes();
        nodes.map(|node| WireMember { access: node.id.0, rpc: node.rpc.clone() }).collect()
    }

    async fn put(&self, request: ProposeRequest) -> Result<ProposeReply, RpcError> {
        let member = self.member(&request.cluster)?;
        if request.commands.is_empty() || request.commands.len() > UNIT_COMMANDS_MAX {
            let message = format_args!("a proposal has 1 to {UNIT_COMMANDS_MAX} commands");
            return Err(RpcError::new(Code::TooLarge, message));
        }
        let name: [u8; 16] = request.name.as_ref().try_into().map_err(|_| {
            RpcError::new(Code::Invalid, "field name of a proposal does not have 16 bytes")
        })?;
        if !self.proposals.first(u128::from_le_bytes(name), Instant::now()) {
            // What became of the first is not known here: the sender must not take it for refused.
            return Err(RpcError::new(Code::Stale, "the proposal came before"));
        }
        let commands: Result<Vec<Command>, _> =
            request.commands.iter().map(|command| decode(command)).collect();
        let commands = commands.map_err(|error| RpcError::new(Code::Version, error))?;
        let within = Duration::from_millis(request.deadline_ms.into()).min(PROPOSE_TIMEOUT_MAX);
        let origin = if request.forwarded { Origin::Final } else { Origin::Passed };
        let written = member.committer.submit(commands, origin, Instant::now() + within).await;
        let (index, answers) = written.map_err(|failure| match failure {
            Failure::NotApplied(reason) => RpcError::new(Code::NotLeader, reason),
            Failure::Unknown(reason) => RpcError::new(Code::DeadlineExceeded, reason),
        })?;
        let answers: Result<Vec<Bytes>, _> =
            answers.iter().map(|answer| encode(answer).map(Bytes::from)).collect();
        // Applied all the same: the sender must take it for unknown, not for refused.
        let answers = answers.map_err(|error| RpcError::new(Code::Internal, error))?;
        Ok(ProposeReply { index, answers })
    }

    async fn enter(&self, request: RegisterRequest) -> Result<RegisterReply, RpcError> {
        let cluster = self.cluster()?;
        if !request.cluster.is_empty() {
            check_cluster(&request.cluster, cluster)?;
        }
        let disk = DiskId::from_slice(&request.disk)
            .ok_or_else(|| RpcError::new(Code::Invalid, "field disk does not have 16 bytes"))?;
        let was = request.rid.map(Rid::from).filter(|rid| *rid != Rid::default());
        let deadline = Instant::now() + REGISTER_TIMEOUT;
        let rid = crate::enter::admit(&self.node, (was, disk), &request, deadline).await?;
        let (name, rpc, http) = (request.name.clone(), request.rpc.clone(), request.http.clone());
        let command = Command::RegisterData { rid, name, disk, rpc, http };
        let (index, answer) = self.node.propose(command, deadline).await?;
        let data = match answer {
            Ok(Outcome::Data(data)) => data,
            Ok(other) => {
                let message = format_args!("registering a data node gave {other:?}");
                return Err(RpcError::new(Code::Internal, message));
            }
            Err(reject) => return Err(RpcError::new(Code::WrongNode, reject)),
        };
        let image = self.node.applied(index, deadline).await?;
        let kept = match was {
            Some(was) if was != data.rid => crate::enter::kept(&image.catalog, data.rid, &request),
            _ => Vec::new(),
        };
        Ok(RegisterReply {
            cluster: Bytes::copy_from_slice(&cluster.0),
            rid: Some(data.rid.into()),
            name: data.name,
            access: Self::access_nodes(&image),
            csn: image.snapshot().0,
            kept: kept.into_iter().map(|chunk| chunk.0).collect(),
        })
    }

    async fn hear(&self, request: HeartbeatRequest) -> Result<HeartbeatReply, RpcError> {
        let member = self.member(&request.cluster)?;
        let rid = Rid::from(required(request.rid, "rid")?);
        let mut image = self.node.image();
        if image.catalog.data_node(rid.node).is_none_or(|node| node.rid != rid) {
            // It may have registered at another node a moment ago.
            image = self.node.barrier(Instant::now() + HEARTBEAT_TIMEOUT).await?;
        }
        if image.catalog.data_node(rid.node).is_none_or(|node| node.rid != rid) {
            return Err(RpcError::new(
                Code::Stale,
                format_args!("data node {rid} is not registered"),
            ));
        }
        let kept = request.definitions_hash;
        let resync = !self.node.fleet().hear(rid, request);
        let leader = member.leader.view().leader;
        let (dropped, dropped_csn) = self.dropped(rid).await;
        Ok(HeartbeatReply {
            resync,
            access: Self::access_nodes(&image),
            leader: leader.unwrap_or(AccessId(0)).0,
            dropped: dropped.into_iter().map(|chunk| chunk.0).collect(),
            dropped_csn: dropped_csn.0,
            definitions: self.definitions(member, &image, kept),
        })
    }

    /// The definitions for a data node that keeps others. By the leader only, whose catalog is the newest.
    fn definitions(&self, member: &Member, image: &Image, kept: u64) -> Option<Definitions> {
        if !member.leader.here() {
            return None;
        }
        let latest = self.node.definitions().of(image);
        (latest.hash != kept).then(|| latest.to_wire())
    }

    /// Chunks that the node reported and that it is not to hold, for sure: the node can only hold a chunk that was made
    /// before, so that a catalog as of a barrier after its report knows it, unless it was dropped or the replica
    /// removed. A copy that is under way is known to the node itself, which keeps it. Also a snapshot from which on the
    /// catalog has none of them there.
    async fn dropped(&self, rid: Rid) -> (Vec<ChunkId>, Csn) {
        let fleet = self.node.fleet();
        let strange = fleet.strange(rid, &self.node.image().catalog);
        if strange.is_empty() {
            return (strange, Csn(0));
        }
        let Ok(image) = self.node.barrier(Instant::now() + HEARTBEAT_TIMEOUT).await else {
            return (Vec::new(), Csn(0));
        };
        let still = fleet.strange(rid, &image.catalog);
        let dropped: Vec<ChunkId> = strange.into_iter().filter(|id| still.contains(id)).collect();
        fleet.forget(rid.node, &dropped);
        (dropped, image.snapshot())
    }

    async fn decide(&self, request: ResolveRequest) -> Result<ResolveReply, RpcError> {
        self.member(&request.cluster)?;
        let deadline = Instant::now() + RESOLVE_TIMEOUT;
        let image = self.node.barrier(deadline).await?;
        let (mut decisions, mut overdue) = (Vec::new(), Vec::new());
        for pending in request.pending {
            let txn = TxnId::from(required(pending.txn, "pending.txn")?);
            match image.catalog.fate(txn) {
                Some(decision) => decisions.push(types::Decision::from(decision)),
                None if Duration::from_millis(pending.age_ms.into()) > OPEN_MAX => {
                    overdue.push(txn)
                }
                None => {}
            }
        }
        let open = self.still_open(&request.cluster, &image, &overdue).await;
        let dead = overdue.into_iter().filter(|txn| !open.contains(txn));
        let aborts = dead.map(|txn| self.abort(txn, deadline));
        decisions.extend(futures::future::join_all(aborts).await.into_iter().flatten());
        Ok(ResolveReply { decisions })
    }

    /// Those of these transactions that their access nodes say are under way. A node that does not answer is taken for
    /// dead.
    async fn still_open(&self, cluster: &Bytes, image: &Image, txns: &[TxnId]) -> BTreeSet<TxnId> {
        let mut by_node: BTreeMap<AccessId, Vec<TxnId>> = BTreeMap::new();
        for txn in txns {
            by_node.entry(txn.access).or_default().push(*txn);
        }
        let asked = by_node.into_iter().map(async |(access, txns)| {
            if access == self.node.id() {
                return self.node.still_open(txns);
            }
            let Some(node) = image.catalog.access_node(access) else { return Vec::new() };
            self.ask_open(&node.rpc, cluster.clone(), txns).await.unwrap_or_else(|error| {
                tracing::info!("ask {access} whether its transactions are under way: {error}");
                Vec::new()
            })
        });
        futures::future::join_all(asked).await.into_iter().flatten().collect()
    }

    async fn ask_open(
        &self,
        rpc: &str,
        cluster: Bytes,
        txns: Vec<TxnId>,
    ) -> Result<Vec<TxnId>, RpcError> {
        let mut client = self.node.config().channels.meta(rpc)?;
        let txns = txns.into_iter().map(types::TxnId::from).collect();
        let asked = client.still_open(StillOpenRequest { cluster, txns });
        let answer = tokio::time::timeout(OPEN_TIMEOUT, asked)
            .await
            .map_err(|_| RpcError::new(Code::DeadlineExceeded, "it does not answer in time"))?;
        Ok(answer?.into_inner().open.into_iter().map(TxnId::from).collect())
    }

    /// Ends a transaction that nobody seems to finish; what the log says then is its fate.
    async fn abort(&self, txn: TxnId, deadline: Instant) -> Option<types::Decision> {
        let (index, _) = self.node.propose(Command::Abort { txn }, deadline).await.ok()?;
        let image = self.node.applied(index, deadline).await.ok()?;
        image.catalog.fate(txn).map(types::Decision::from)
    }
}

#[tonic::async_trait]
impl Meta for MetaService {
    async fn identity(
        &self,
        request: Request<IdentityRequest>,
    ) -> Result<Response<IdentityReply>, Status> {
        let config = self.node.config();
        let cluster = self.node.formed().map(|formed| Bytes::copy_from_slice(&formed.cluster.0));
        let asker = AccessId(request.into_inner().asker);
        let image = self.node.image();
        let asker = image.catalog.access_node(asker);
        Ok(Response::new(IdentityReply {
            access: config.id.0,
            cluster: cluster.unwrap_or_default(),
            rpc: config.rpc.clone(),
            pg: config.pg.clone(),
            flight: config.flight.clone(),
            http: config.http.clone(),
            pid: std::process::id(),
            knows_asker: asker.is_some(),
            asker_removed: asker.is_some_and(|known| known.retired),
        }))
    }

    async fn init(&self, request: Request<InitRequest>) -> Result<Response<InitReply>, Status> {
        let formed = crate::init::accept(&self.node, request.into_inner()).await?;
        Ok(Response::new(InitReply { formed }))
    }

    async fn propose(
        &self,
        request: Request<ProposeRequest>,
    ) -> Result<Response<ProposeReply>, Status> {
        Ok(Response::new(self.put(request.into_inner()).await?))
    }

    async fn read_barrier(
        &self,
        request: Request<ReadBarrierRequest>,
    ) -> Result<Response<ReadBarrierReply>, Status> {
        let member = self.member(&request.into_inner().cluster)?;
        let (index, term) = member.barrier.leading().await?;
        Ok(Response::new(ReadBarrierReply { index, term }))
    }

    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterReply>, Status> {
        Ok(Response::new(self.enter(request.into_inner()).await?))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatReply>, Status> {
        Ok(Response::new(self.hear(request.into_inner()).await?))
    }

    async fn resolve(
        &self,
        request: Request<ResolveRequest>,
    ) -> Result<Response<ResolveReply>, Status> {
        Ok(Response::new(self.decide(request.into_inner()).await?))
    }

    async fn still_open(
        &self,
        request: Request<StillOpenRequest>,
    ) -> Result<Response<StillOpenReply>, Status> {
        let request = request.into_inner();
        self.member(&request.cluster)?;
        let txns = request.txns.into_iter().map(TxnId::from).collect();
        let open = self.node.still_open(txns).into_iter().map(types::TxnId::from).collect();
        Ok(Response::new(StillOpenReply { open }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let joined = crate::members::accept(&self.node, request.into_inner()).await?;
        Ok(Response::new(JoinReply { joined }))
    }

    async fn change_member(
        &self,
        request: Request<ChangeMemberRequest>,
    ) -> Result<Response<ChangeMemberReply>, Status> {
        let request = request.into_inner();
        self.member(&request.cluster)?;
        Ok(Response::new(crate::members::change(&self.node, request).await?))
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusReply>, Status> {
        let reply = if request.into_inner().forwarded {
            crate::status::own(&self.node).await
        } else {
            self.node.status().await
        };
        Ok(Response::new(reply))
    }
}
