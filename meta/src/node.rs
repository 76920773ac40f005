//! An access node's catalog: Raft, its state machine, its services.

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use hypertide_proto::{
    client::{Channels, MESSAGE_BYTES_MAX},
    ids::{AccessId, Boot, ClusterId, Csn, TxnId},
    wire::meta::{StatusReply, meta_server::MetaServer, raft_server::RaftServer},
};
use tokio::{sync::watch, task::AbortHandle};

use crate::{
    Error,
    barrier::Barrier,
    catalog::{Catalog, Command, Outcome, Reject},
    commit::Committer,
    definitions::Latest,
    fleet::Fleet,
    leader::Leader,
    open::{OpenTxn, OpenTxns},
    raft::{Formed, Group, LogStore, RaftService, Setup, Watchdog},
    reconcile::{Jobs, plan::DEAD_AFTER_MS},
    rpc::MetaService,
};

/// A disk operation that takes this long is warned of.
const DISK_WARN: Duration = Duration::from_secs(5);
/// A disk operation that takes this long ends the node: a leader whose disk is gone must not go on leading.
const DISK_FATAL: Duration = Duration::from_secs(10);
const DISK_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Longest wait for one step of registering.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);
const REGISTER_PAUSE: Duration = Duration::from_millis(100);
/// Longest wait for the files to be closed when the node stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// The catalog at an applied index.
#[derive(Clone, Debug)]
pub struct Image {
    /// Raft index that is applied.
    pub applied: u64,
    /// The catalog there.
    pub catalog: Catalog,
}

impl Image {
    /// The snapshot that sees all that is committed in this image.
    #[must_use]
    pub fn snapshot(&self) -> Csn {
        Csn::snapshot(self.applied)
    }
}

/// The answer of the log to one command.
pub type Answer = Result<Outcome, Reject>;

/// The door through which the rest of an access node reads and changes the catalog.
#[async_trait]
pub trait CatalogWriter: fmt::Debug + Send + Sync {
    /// The cluster; `None` before the node was taken into one.
    fn cluster(&self) -> Option<ClusterId>;
    /// The image last applied here, however old.
    fn image(&self) -> Arc<Image>;
    /// An image that holds all that was acknowledged anywhere before the call.
    async fn barrier(&self, deadline: Instant) -> Result<Arc<Image>, Error>;
    /// Waits until the image here holds the entry at `index`.
    async fn applied(&self, index: u64, deadline: Instant) -> Result<Arc<Image>, Error>;
    /// Puts a command into the log and gives the answer with the index of its entry.
    /// [`Error::Unknown`] when it may or may not have been applied.
    async fn propose(&self, command: Command, deadline: Instant) -> Result<(u64, Answer), Error>;
    /// A new transaction of this access node and boot, open until what is given is dropped.
    fn begin(&self) -> OpenTxn;
    /// Address under which data nodes reach this access node.
    fn rpc(&self) -> String;
    /// The cluster as the leader sees it, or else as this node does.
    async fn status(&self) -> StatusReply;
}

/// How to start an access node's catalog.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its Raft id, from `--id`.
    pub id: AccessId,
    /// Its directory: `raft.redb`, `catalog.*.redb`, `CURRENT`, raft snapshots.
    pub dir: PathBuf,
    /// Addresses as others reach them; already bound.
    pub rpc: String,
    /// PostgreSQL.
    pub pg: String,
    /// Flight SQL.
    pub flight: String,
    /// HTTP.
    pub http: String,
    /// Channels to other nodes.
    pub channels: Channels,
}

/// What of Raft may be set otherwise, for tests.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Pause between two heartbeats of the leader; elections follow it.
    pub heartbeat_ms: u64,
    /// Entries between two raft snapshots.
    pub snapshot_entries: u64,
    /// Entries kept in the log behind a raft snapshot.
    pub kept_entries: u64,
    /// How long a dead data node is waited for before its replicas are copied elsewhere.
    pub dead_after_ms: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            heartbeat_ms: 200,
            snapshot_entries: 20_000,
            kept_entries: 2_000,
            dead_after_ms: DEAD_AFTER_MS,
        }
    }
}

/// What a node has once it belongs to a group.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) leader: Arc<Leader>,
    pub(crate) committer: Committer,
    pub(crate) barrier: Barrier,
}

/// A running access node's catalog.
pub struct MetaNode {
    config: Config,
    tuning: Tuning,
    log: Mutex<Option<LogStore>>,
    images: watch::Sender<Arc<Image>>,
    group: watch::Sender<Option<Arc<Group>>>,
    member: OnceLock<Member>,
    boot: watch::Sender<Option<Boot>>,
    seq: AtomicU64,
    open: OpenTxns,
    failure: watch::Sender<Option<String>>,
    fleet: Fleet,
    definitions: Latest,
    jobs: Mutex<Jobs>,
    started: Instant,
    /// Held while the node is taken into a group.
    forming: tokio::sync::Mutex<()>,
    /// Held while an access node comes or goes.
    changing: tokio::sync::Mutex<()>,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl fmt::Debug for MetaNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetaNode").field("id", &self.config.id).finish_non_exhaustive()
    }
}

impl MetaNode {
    /// Opens the directory and starts; a node that belongs to a cluster takes part in it at once.
    pub async fn start(config: Config) -> Result<Arc<Self>, Error> {
        Self::start_tuned(config, Tuning::default()).await
    }

    /// Like [`Self::start`], with other settings of Raft.
    pub async fn start_tuned(config: Config, tuning: Tuning) -> Result<Arc<Self>, Error> {
        let (dir, id) = (config.dir.clone(), config.id);
        let opened = tokio::task::spawn_blocking(move || LogStore::open(&dir, id)).await;
        let log = opened.map_err(|error| Error::Storage(error.to_string()))??;
        let formed = log.formed().map_err(|error| Error::Storage(error.to_string()))?;
        let image = Image { applied: 0, catalog: Catalog::default() };
        let node = Arc::new(Self {
            config,
            tuning,
            log: Mutex::new(Some(log)),
            images: watch::Sender::new(Arc::new(image)),
            group: watch::Sender::new(None),
            member: OnceLock::new(),
            boot: watch::Sender::new(None),
            seq: AtomicU64::new(0),
            open: OpenTxns::default(),
            failure: watch::Sender::new(None),
            fleet: Fleet::default(),
            definitions: Latest::default(),
            jobs: Mutex::default(),
            started: Instant::now(),
            forming: tokio::sync::Mutex::new(()),
            changing: tokio::sync::Mutex::new(()),
            tasks: Mutex::new(Vec::new()),
        });
        if let Some(formed) = formed {
            node.join(formed).await?;
        }
        Ok(node)
    }

    /// The services to serve on the rpc address: add them to a tonic server.
    pub fn routes(self: &Arc<Self>) -> tonic::service::Routes {
        let meta = MetaServer::new(MetaService::new(Arc::clone(self)))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let raft = RaftService::new(self.id(), self.config.dir.clone(), self.group.subscribe());
        let raft = RaftServer::new(raft)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let mut routes = tonic::service::Routes::builder();
        routes.add_service(meta).add_service(raft);
        routes.routes()
    }

    /// Waits until the node is a member of a formed cluster, has registered its boot and can serve a barrier.
    pub async fn ready(&self) -> Result<(), Error> {
        let mut boot = self.boot.subscribe();
        tokio::select! {
            registered = boot.wait_for(Option::is_some) => {
                let stopped = |_| Error::Unavailable("this access node stops".to_owned());
                registered.map(drop).map_err(stopped)
            }
            failure = self.failed() => Err(failure),
        }
    }

    /// Resolves only when the node has failed for good and the process must end.
    pub async fn failed(&self) -> Error {
        let mut failure = self.failure.subscribe();
        let reason = failure.wait_for(Option::is_some).await.map(|reason| reason.clone());
        match reason {
            Ok(reason) => Error::Storage(reason.unwrap_or_default()),
            // The sender is part of `self`.
            Err(_) => std::future::pending().await,
        }
    }

    /// Stops taking part, after what is under way; when it returns, the files are closed.
    pub async fn shutdown(&self) {
        let _forming = self.forming.lock().await;
        for task in self.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
        let group = self.group.send_replace(None);
        if let Some(group) = &group {
            group.shutdown().await;
        }
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner).take();
        let log = log.map(LogStore::open_elsewhere);
        let open = || {
            log.as_ref().is_some_and(|open| open())
                || group.as_ref().is_some_and(|group| group.catalog_open())
        };
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        while open() && Instant::now() < deadline {
            tokio::time::sleep(CLOSE_CHECK_INTERVAL).await;
        }
    }

    /// Ends the node for good: its process is to say why, and to end.
    pub(crate) fn fail(&self, why: String) {
        self.failure.send_replace(Some(why));
    }

    pub(crate) fn id(&self) -> AccessId {
        self.config.id
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    pub(crate) fn definitions(&self) -> &Latest {
        &self.definitions
    }

    pub(crate) fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// Copies that this node has begun as the leader.
    pub(crate) fn jobs(&self) -> std::sync::MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the node has been running.
    pub(crate) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Those of these transactions that are under way here.
    pub(crate) fn still_open(&self, txns: Vec<TxnId>) -> Vec<TxnId> {
        self.open.of(txns)
    }

    /// What the node has as a member of its group.
    pub(crate) fn member(&self) -> Result<&Member, Error> {
        self.member.get().ok_or_else(|| {
            Error::Unavailable(format!("access node {} belongs to no cluster yet", self.id()))
        })
    }

    /// The group the node was taken into, whether or not it takes part in it by now.
    pub(crate) fn formed(&self) -> Option<Formed> {
        let running = self.group.borrow().as_ref().map(|group| group.formed().clone());
        running.or_else(|| self.log().ok()?.formed().ok().flatten())
    }

    /// Takes the node into a group for the first time. The caller holds [`Self::lock_forming`].
    pub(crate) async fn form(self: &Arc<Self>, formed: Formed) -> Result<(), Error> {
        self.log()?.set_formed(&formed).await.map_err(|error| Error::Storage(error.to_string()))?;
        self.join(formed).await
    }

    pub(crate) async fn lock_forming(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.forming.lock().await
    }

    pub(crate) fn changing(&self) -> &tokio::sync::Mutex<()> {
        &self.changing
    }

    fn log(&self) -> Result<LogStore, Error> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner).clone();
        log.ok_or_else(|| Error::Unavailable("this access node stops".to_owned()))
    }

    /// Starts Raft in the group that the directory names.
    async fn join(self: &Arc<Self>, formed: Formed) -> Result<(), Error> {
        let log = self.log()?;
        let watchdog = log.watchdog();
        let setup = Setup {
            id: self.id(),
            dir: self.config.dir.clone(),
            formed,
            log,
            images: self.images.clone(),
            channels: self.config.channels.clone(),
            tuning: self.tuning,
        };
        let group = Arc::new(Group::start(setup).await?);
        self.group.send_replace(Some(Arc::clone(&group)));
        group.initialize().await?;
        let leader = Arc::new(Leader::new(
            self.id(),
            Arc::clone(&group),
            self.config.channels.clone(),
            self.images.subscribe(),
        ));
        let member = Member {
            committer: Committer::start(Arc::clone(&leader)),
            barrier: Barrier::start(Arc::clone(&leader)),
            leader,
        };
        if self.member.set(member).is_err() {
            return Err(Error::Storage("raft was started twice".to_owned()));
        }
        let failure = self.failure.clone();
        self.spawn(async move { drop(failure.send_replace(Some(group.failed().await))) });
        self.spawn(watch_disk(Arc::downgrade(self), watchdog));
        self.spawn(keep_registered(Arc::downgrade(self)));
        self.spawn(crate::fleet::report_progress(Arc::downgrade(self)));
        self.spawn(crate::reconcile::run::run(Arc::downgrade(self)));
        self.spawn(crate::members::keep(Arc::downgrade(self)));
        self.spawn(crate::relays::follow(Arc::downgrade(self)));
        Ok(())
    }

    /// Runs a task until the node is shut down.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let handle = tokio::spawn(task).abort_handle();
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|task| !task.is_finished());
        tasks.push(handle);
    }

    /// Registers this start of the node; gives its boot.
    async fn register(&self) -> Result<Boot, Error> {
        let deadline = Instant::now() + REGISTER_TIMEOUT;
        let Config { id, rpc, pg, flight, http, .. } = self.config.clone();
        let command = Command::RegisterAccess { id, rpc, pg, flight, http };
        let (index, answer) = self.propose(command, deadline).await?;
        self.applied(index, deadline).await?;
        match answer {
            Ok(Outcome::Boot(boot)) => Ok(boot),
            other => Err(Error::Unavailable(format!("{id} could not register: {other:?}"))),
        }
    }
}

/// Registers the node, and again whenever a later boot of it turns up in the catalog: a registration whose answer was
/// lost may have been applied after the one that was answered, and fences this process until it takes a boot after that.
async fn keep_registered(node: std::sync::Weak<MetaNode>) {
    loop {
        let Some(node) = node.upgrade() else { return };
        match node.register().await {
            Ok(boot) => {
                node.boot.send_replace(Some(boot));
                tracing::info!(id = %node.id(), %boot, "registered");
                let (own, mut images) = (node.id(), node.images.subscribe());
                drop(node);
                let fenced = |image: &Arc<Image>| {
                    image.catalog.access_node(own).is_some_and(|node| node.boot > boot)
                };
                if images.wait_for(fenced).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::info!(id = %node.id(), %error, "not registered yet");
                drop(node);
                tokio::time::sleep(REGISTER_PAUSE).await;
            }
        }
    }
}

/// Ends the node when its disk does not answer.
async fn watch_disk(node: std::sync::Weak<MetaNode>, log: Arc<Watchdog>) {
    let mut warned = false;
    loop {
        tokio::time::sleep(DISK_CHECK_INTERVAL).await;
        let Some(node) = node.upgrade() else { return };
        let catalog = node.group.borrow().as_ref().and_then(|group| group.disk_waiting());
        let waiting = log.waiting().max(catalog).unwrap_or_default();
        if waiting >= DISK_FATAL {
            let reason = format!("the disk has not answered for {} s", waiting.as_secs());
            node.failure.send_replace(Some(reason));
            return;
        }
        if waiting >= DISK_WARN && !warned {
            tracing::warn!(id = %node.id(), ?waiting, "the disk does not answer");
        }
        warned = waiting >= DISK_WARN;
    }
}

/// Waits until an image holds the entry at `index`.
pub(crate) async fn wait_applied(
    images: &watch::Receiver<Arc<Image>>,
    index: u64,
    deadline: Instant,
) -> Result<Arc<Image>, Error> {
    let mut images = images.clone();
    let until = tokio::time::Instant::from_std(deadline);
    let holds = images.wait_for(|image| image.applied >= index);
    match tokio::time::timeout_at(until, holds).await {
        Ok(Ok(image)) => Ok(Arc::clone(&image)),
        Ok(Err(_)) => Err(Error::Unavailable("this access node stops".to_owned())),
        Err(_) => Err(Error::Unavailable(format!("entry {index} is not applied here yet"))),
    }
}

#[async_trait]
impl CatalogWriter for MetaNode {
    fn cluster(&self) -> Option<ClusterId> {
        self.group.borrow().as_ref().map(|group| group.cluster())
    }

    fn image(&self) -> Arc<Image> {
        Arc::clone(&self.images.borrow())
    }

    async fn barrier(&self, deadline: Instant) -> Result<Arc<Image>, Error> {
        let index = self.member()?.barrier.index(deadline).await?;
        self.applied(index, deadline).await
    }

    async fn applied(&self, index: u64, deadline: Instant) -> Result<Arc<Image>, Error> {
        wait_applied(&self.images.subscribe(), index, deadline).await
    }

    async fn propose(&self, command: Command, deadline: Instant) -> Result<(u64, Answer), Error> {
        self.member()?.committer.propose(command, deadline).await
    }

    fn begin(&self) -> OpenTxn {
        let boot = self.boot.borrow().unwrap_or_default();
        let seq = self.seq.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.open(TxnId { access: self.id(), boot, seq })
    }

    fn rpc(&self) -> String {
        self.config.rpc.clone()
    }

    async fn status(&self) -> StatusReply {
        crate::status::ask(self).await
    }
}
