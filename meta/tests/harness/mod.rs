//! Starts, stops and restarts access nodes in this process.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use hypertide_meta::{
    CatalogWriter, Config, Error, Image, MetaNode, Tuning, catalog::Command, init_cluster,
};
use hypertide_proto::{
    client::Channels,
    ids::{AccessId, ClusterId},
    schema::TableSchema,
};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;

/// Longest wait for anything: the machine may be busy with other tests.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for calls under way when a server stops.
const HANG_UP: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

pub(crate) fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// Raft as in production, but for where a test wants otherwise.
pub(crate) fn fast() -> Tuning {
    Tuning { heartbeat_ms: 150, ..Tuning::default() }
}

pub(crate) fn config(id: AccessId, dir: &Path, rpc: &str) -> Config {
    let none = || "127.0.0.1:1".to_owned();
    Config {
        id,
        dir: dir.to_owned(),
        rpc: rpc.to_owned(),
        pg: none(),
        flight: none(),
        http: none(),
        channels: Channels::default(),
    }
}

/// A running node.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) meta: Arc<MetaNode>,
    server: Arc<Server>,
}

/// The gRPC server of a node.
struct Server {
    stop: Notify,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Server {
    fn start(meta: &Arc<MetaNode>, listener: TcpListener) -> Arc<Self> {
        let server = Arc::new(Self { stop: Notify::new(), task: Mutex::new(None) });
        let routes = tonic::transport::Server::builder().add_routes(meta.routes());
        let (incoming, own) = (TcpListenerStream::new(listener), Arc::clone(&server));
        let serving = async move {
            let stopped = routes.serve_with_incoming_shutdown(incoming, own.stop.notified());
            stopped.await.expect("it serves until it is stopped");
        };
        *server.task.lock().expect("no panic") = Some(tokio::spawn(serving));
        server
    }

    /// Hangs up on everyone, as the end of a process does.
    async fn stop(&self) {
        self.stop.notify_one();
        let task = self.task.lock().expect("no panic").take();
        if let Some(task) = task {
            let abort = task.abort_handle();
            if tokio::time::timeout(HANG_UP, task).await.is_err() {
                abort.abort();
            }
        }
    }
}

impl Node {
    async fn start(id: u64, dir: &Path, listener: TcpListener, tuning: Tuning) -> Self {
        let rpc = listener.local_addr().expect("bound").to_string();
        let config = config(AccessId(id), dir, &rpc);
        let meta = MetaNode::start_tuned(config, tuning).await;
        let meta = meta.unwrap_or_else(|error| panic!("a{id} does not start: {error}"));
        let server = Server::start(&meta, listener);
        Self { meta, server }
    }
}

/// Access nodes `a1` to `aN`.
pub(crate) struct Cluster {
    root: TempDir,
    tuning: Tuning,
    addresses: BTreeMap<u64, String>,
    nodes: BTreeMap<u64, Node>,
}

impl Cluster {
    /// Starts empty nodes.
    pub(crate) async fn start(count: u64, tuning: Tuning) -> Self {
        let root = TempDir::new().expect("a temporary directory");
        let mut cluster = Self { root, tuning, addresses: BTreeMap::new(), nodes: BTreeMap::new() };
        for id in 1..=count {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let address = listener.local_addr().expect("bound").to_string();
            cluster.addresses.insert(id, address);
            let node = Node::start(id, &cluster.dir(id), listener, tuning).await;
            cluster.nodes.insert(id, node);
        }
        cluster
    }

    /// Starts one more empty node, of the next id; gives the id and its address.
    pub(crate) async fn start_another(&mut self) -> (u64, String) {
        let id = self.addresses.keys().max().map_or(1, |last| last + 1);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        self.addresses.insert(id, address.clone());
        let node = Node::start(id, &self.dir(id), listener, self.tuning).await;
        self.nodes.insert(id, node);
        (id, address)
    }

    /// Forms the cluster and waits until every node serves.
    pub(crate) async fn form(&mut self) -> ClusterId {
        let formed = init_cluster(&Channels::default(), &self.addresses(), soon()).await;
        let id = formed.expect("empty nodes form a cluster");
        for node in self.nodes.values() {
            tokio::time::timeout(PATIENCE, node.meta.ready()).await.expect("soon").expect("ready");
        }
        id
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.addresses.values().cloned().collect()
    }

    /// Where a node is.
    pub(crate) fn address(&self, id: u64) -> String {
        self.addresses.get(&id).expect("a node of the cluster").clone()
    }

    /// The directory of a node.
    pub(crate) fn dir(&self, id: u64) -> PathBuf {
        self.root.path().join(format!("a{id}"))
    }

    pub(crate) fn node(&self, id: u64) -> &Node {
        self.nodes.get(&id).expect("the node runs")
    }

    /// The leader that the running nodes agree on.
    pub(crate) async fn leader(&self) -> u64 {
        let deadline = soon();
        loop {
            for node in self.nodes.values() {
                let status = node.meta.status().await;
                let leader = status.leader.strip_prefix('a').and_then(|id| id.parse().ok());
                if let Some(leader) = leader.filter(|id| self.nodes.contains_key(id)) {
                    return leader;
                }
            }
            assert!(Instant::now() < deadline, "no node leads");
            tokio::time::sleep(PAUSE).await;
        }
    }

    pub(crate) async fn follower(&self) -> u64 {
        let leader = self.leader().await;
        *self.nodes.keys().find(|id| **id != leader).expect("more than one node")
    }

    /// Stops a node.
    pub(crate) async fn halt(&mut self, id: u64) {
        if let Some(node) = self.nodes.remove(&id) {
            // Raft first: a server that still answers calls would otherwise go on voting while it hangs up.
            node.meta.shutdown().await;
            node.server.stop().await;
        }
    }

    /// Starts a node again, at the same address.
    pub(crate) async fn restart(&mut self, id: u64) {
        self.halt(id).await;
        let deadline = soon();
        let address = self.addresses.get(&id).expect("a node of the cluster").clone();
        let listener = loop {
            match TcpListener::bind(&address).await {
                Ok(listener) => break listener,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(PAUSE).await;
        };
        let node = Node::start(id, &self.dir(id), listener, self.tuning).await;
        self.nodes.insert(id, node);
    }

    pub(crate) fn wipe(&self, id: u64) {
        std::fs::remove_dir_all(self.dir(id)).expect("removed");
    }

    /// Waits until a node has a published raft snapshot on disk.
    pub(crate) async fn wait_for_snapshot(&self, id: u64) {
        let deadline = soon();
        loop {
            let files = std::fs::read_dir(self.dir(id)).expect("a directory");
            let names = files.filter_map(|file| file.ok()?.file_name().into_string().ok());
            if names.into_iter().any(|name| name.ends_with(".snap")) {
                return;
            }
            assert!(Instant::now() < deadline, "a{id} makes no snapshot");
            tokio::time::sleep(PAUSE).await;
        }
    }

    pub(crate) async fn stop(&mut self) {
        for id in self.addresses.clone().into_keys() {
            self.halt(id).await;
        }
    }
}

pub(crate) fn table_command(name: &str) -> Command {
    Command::CreateTable {
        schema: "public".to_owned(),
        name: name.to_owned(),
        owner: "hypertide".to_owned(),
        columns: TableSchema::default(),
        if_not_exists: true,
    }
}

/// Makes a table, again if it is not known whether it was made: it is named once only.
pub(crate) async fn create_table(node: &Node, name: &str) -> Result<u64, Error> {
    let deadline = soon();
    loop {
        match node.meta.propose(table_command(name), deadline).await {
            Ok((index, answer)) => {
                answer.expect("the table is new or there already");
                return Ok(index);
            }
            Err(Error::Unknown(_)) if Instant::now() < deadline => {}
            Err(error) => return Err(error),
        }
    }
}

/// Names of the tables, in order of their ids.
pub(crate) fn tables(image: &Image) -> Vec<String> {
    image.catalog.tables().map(|table| table.name.clone()).collect()
}
