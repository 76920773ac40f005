//! A data node: the chunk store, its place in the cluster, its services.
//!
//! ```text
//! waiting --Adopt--> registering --reply--> resolving --one full answer--> serving
//!    \--(addresses are known)--^  ^  \--refusal--> refused                     /
//!                                 \---------(its incarnation is not known)----/
//! ```
//!
//! - Of a disk that comes back under a new incarnation counts only what it proved to hold whole: its other chunks are
//!   put aside before the node takes part under it (`node/registration.rs`).
//! - The identity is on disk before anything is served under it, and never changes to another cluster.
//! - Rows are taken in only after every transaction that was pending at the start has been asked about: from then on
//!   the node has missed no commit that it acknowledged.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hypertide_proto::{
    client::{AccessNodes, Channels},
    decision::Decision,
    error::{Code, RpcError},
    ids::{ClusterId, Rid, TxnId},
    wire,
};
use tokio::{sync::watch, task::JoinHandle};

use crate::{ChunkStore, Error, StoreConfig, rpc, tables::Member};

mod heartbeat;
mod registration;
mod sending;
pub(crate) mod transfers;

pub use transfers::TransferStats;

type AccessClient = wire::meta::meta_client::MetaClient<tonic::transport::Channel>;

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often pending transactions are asked about, and how old they are then.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(1);
const RESOLVE_AGE: Duration = Duration::from_secs(1);
/// Transactions in one question.
const RESOLVE_MAX: usize = 10_000;
/// Pause before a failed registration is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How long an adoption may take.
const ADOPT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the background may take to end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// How to start a data node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The store.
    pub store: StoreConfig,
    /// Name wanted; empty lets the catalog give the next free one.
    pub name: String,
    /// Addresses of the access nodes; empty waits until an access node adopts this one.
    pub access: Vec<String>,
    /// Address of its own gRPC as others reach it; already bound.
    pub rpc: String,
    /// Address of its own HTTP.
    pub http: String,
    /// Channels to other nodes.
    pub channels: Channels,
}

/// Its place in a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node and the incarnation of its disk.
    pub rid: Rid,
    /// Its name.
    pub name: String,
}

/// How far the node is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// No access node is known.
    Waiting,
    /// It asks to be a member; the cluster that adopted it, if one did, and the name wanted.
    Registering(Option<ClusterId>, String),
    /// It asks about pending transactions.
    Resolving,
    Serving,
    /// The cluster does not take it.
    Refused(String),
}

/// A running data node.
#[derive(Debug)]
pub struct DataNode {
    store: Arc<ChunkStore>,
    access: AccessNodes,
    channels: Channels,
    addresses: (String, String),
    phase: watch::Sender<Phase>,
    stop: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
    transfers: transfers::Transfers,
}

impl DataNode {
    /// Opens the store; registration and heartbeats go on in the background.
    pub async fn start(config: NodeConfig) -> Result<Arc<Self>, Error> {
        let NodeConfig { store, name, access, rpc, http, channels } = config;
        let dir = store.dir.display().to_string();
        let store = tokio::task::spawn_blocking(move || ChunkStore::open(store)).await;
        let store = store.map_err(|error| Error::Disk {
            action: format!("open data directory {dir}"),
            source: error.into(),
        })??;
        let identity = store.identity();
        if let Some(member) = &identity.member
            && !name.is_empty()
            && name != member.name
        {
            let owner = &member.name;
            let text = format!("data directory {dir} belongs to data node {owner}, not to {name}");
            return Err(Error::Identity(text));
        }
        let known = if access.is_empty() { identity.access } else { access };
        let phase = match known.is_empty() {
            true => Phase::Waiting,
            false => Phase::Registering(None, name),
        };
        let node = Arc::new(Self {
            store,
            access: AccessNodes::new(channels.clone(), known),
            channels,
            addresses: (rpc, http),
            phase: watch::Sender::new(phase),
            stop: watch::Sender::new(false),
            task: Mutex::default(),
            transfers: transfers::Transfers::default(),
        });
        let task = tokio::spawn(Arc::clone(&node).run());
        *node.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        Ok(node)
    }

    /// The services to serve on the rpc address.
    #[must_use]
    pub fn routes(self: &Arc<Self>) -> tonic::service::Routes {
        rpc::routes(Arc::clone(self))
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<ChunkStore> {
        &self.store
    }

    /// Its place in the cluster, once it has one.
    #[must_use]
    pub fn membership(&self) -> Option<Membership> {
        let Member { cluster, rid, name } = self.store.identity().member?;
        Some(Membership { cluster, rid, name })
    }

    /// Whether it takes rows in.
    #[must_use]
    pub fn serving(&self) -> bool {
        *self.phase.borrow() == Phase::Serving
    }

    /// Waits until the node is registered, its pending transactions are resolved, and it serves.
    pub async fn ready(&self) -> Result<(), Error> {
        let mut phase = self.phase.subscribe();
        let over = |phase: &Phase| matches!(phase, Phase::Serving | Phase::Refused(_));
        let reached = phase.wait_for(over).await.map(|phase| phase.clone());
        match reached {
            Ok(Phase::Refused(why)) => Err(Error::Identity(why)),
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Closed("it was shut down".into())),
        }
    }

    /// Resolves only when the node has failed for good (a failed fsync, a refusal by the cluster) and the process
    /// must end.
    pub async fn failed(&self) -> Error {
        let mut phase = self.phase.subscribe();
        let refused = async {
            let refused = |phase: &Phase| matches!(phase, Phase::Refused(_));
            let reached = phase.wait_for(refused).await.map(|phase| phase.clone());
            match reached {
                Ok(phase) => phase,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            error = self.store.failed() => error,
            phase = refused => match phase {
                Phase::Refused(why) => Error::Identity(why),
                _ => Error::Closed("it was shut down".into()),
            },
        }
    }

    /// Stops the background work and closes the store.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut task) = task
            && tokio::time::timeout(SHUTDOWN_TIMEOUT, &mut task).await.is_err()
        {
            task.abort();
        }
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, self.transfers.ended()).await.is_err() {
            tracing::warn!("a copy of a chunk is still being sent");
        }
        let store = Arc::clone(&self.store);
        if tokio::task::spawn_blocking(move || store.close()).await.is_err() {
            tracing::error!("closing the chunk store panicked");
        }
    }

    /// Joins the cluster of an access node. False when it is a member of it already.
    pub(crate) async fn adopt(
        &self,
        cluster: ClusterId,
        name: String,
        access: Vec<String>,
    ) -> Result<(bool, Rid), RpcError> {
        if access.is_empty() {
            return Err(RpcError::new(Code::Invalid, "field access names no access node"));
        }
        let known = self.membership();
        if known.is_none() {
            self.access.learn(access);
            self.phase.send_if_modified(|phase| {
                let waiting = *phase == Phase::Waiting;
                if waiting {
                    *phase = Phase::Registering(Some(cluster), name);
                }
                waiting
            });
        }
        let mut phase = self.phase.subscribe();
        let settled = |phase: &Phase| !matches!(phase, Phase::Registering(..));
        let settled = tokio::time::timeout(ADOPT_TIMEOUT, phase.wait_for(settled)).await;
        if let Ok(Ok(phase)) = &settled
            && let Phase::Refused(why) = &**phase
        {
            return Err(RpcError::new(Code::WrongNode, why));
        }
        drop(settled);
        let member = self.membership().ok_or_else(|| {
            RpcError::new(Code::DeadlineExceeded, "this data node was not registered in time")
        })?;
        wire::check_cluster(&cluster.0, member.cluster)?;
        Ok((known.is_none(), member.rid))
    }

    async fn run(self: Arc<Self>) {
        let mut stop = self.stop.subscribe();
        tokio::select! {
            () = self.live() => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }

    async fn live(&self) {
        let mut phase = self.phase.subscribe();
        let wanted = |phase: &Phase| matches!(phase, Phase::Registering(..));
        let (mut adopter, mut name) = match phase.wait_for(wanted).await.map(|phase| phase.clone())
        {
            Ok(Phase::Registering(adopter, name)) => (adopter, name),
            _ => return,
        };
        loop {
            if let Err(error) = self.register(adopter, &name).await {
                tracing::error!("this data node cannot join the cluster: {error}");
                self.phase.send_replace(Phase::Refused(error.to_string()));
                return;
            }
            self.phase.send_replace(Phase::Resolving);
            let resolving = async {
                self.resolve_all().await;
                self.phase.send_replace(Phase::Serving);
                self.keep_resolving().await;
            };
            tokio::select! {
                () = resolving => {}
                () = heartbeat::run(self) => {}
            }
            // The cluster does not count on this disk as it is any more: it must not take part under its old number.
            tracing::warn!("the cluster does not know this disk's incarnation, register again");
            (adopter, name) = (None, String::new());
            self.phase.send_replace(Phase::Registering(adopter, name.clone()));
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn save(&self, identity: crate::tables::Identity) -> Result<(), Error> {
        let store = Arc::clone(&self.store);
        let saved = tokio::task::spawn_blocking(move || store.save_identity(identity)).await;
        saved.map_err(|error| Error::Disk {
            action: "save the identity".into(),
            source: error.into(),
        })?
    }

    /// Asks about all that was pending at the start until everything was answered once.
    async fn resolve_all(&self) {
        while let Err(error) = self.resolve(Duration::ZERO).await {
            tracing::info!("resolve pending transactions: {error}");
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Asks about what stays pending, so that no batch waits for a coordinator that died.
    async fn keep_resolving(&self) {
        let mut tick = tokio::time::interval(RESOLVE_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if let Err(error) = self.resolve(RESOLVE_AGE).await {
                tracing::debug!("resolve pending transactions: {error}");
            }
        }
    }

    async fn resolve(&self, age: Duration) -> Result<(), Error> {
        let Some(member) = self.membership() else { return Ok(()) };
        let mut pending = self.store.pending(&[]);
        pending.retain(|(_, pending)| *pending >= age);
        for pending in pending.chunks(RESOLVE_MAX) {
            let wire_pending = |(txn, age): &(TxnId, Duration)| wire::meta::PendingTxn {
                txn: Some((*txn).into()),
                age_ms: u32::try_from(age.as_millis()).unwrap_or(u32::MAX),
            };
            let request = wire::meta::ResolveRequest {
                cluster: member.cluster.0.to_vec().into(),
                pending: pending.iter().map(wire_pending).collect(),
            };
            let deadline = Instant::now() + RESOLVE_TIMEOUT;
            let reply = self.access.ask(deadline, move |mut client: AccessClient| {
                let request = request.clone();
                async move { client.resolve(request).await.map(tonic::Response::into_inner) }
            });
            let decisions = reply.await?.decisions.into_iter().map(Decision::try_from);
            self.store.decide(&decisions.collect::<Result<Vec<_>, _>>()?)?;
        }
        Ok(())
    }
}
