//! Nodes as they run: listeners first, then the node over its directory, then what it serves.
//!
//! A node is bound, then run. Binding fails when a port stays in use for a second, and writes the node's `endpoints.json`.
//! Running returns when the node was told to stop and has, or with the reason for which it could not go on.

use std::{path::PathBuf, process, sync::Arc, time::Duration};

use anyhow::Context;
use hypertide_meta::MetaNode;
use hypertide_proto::client::{
    CONNECTION_WINDOW_BYTES, Channels, FRAME_BYTES_MAX, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT,
    STREAM_WINDOW_BYTES,
};
use hypertide_query::{
    Engine, EngineConfig, FragmentService,
    server::{serve_flight, serve_pg},
};
use hypertide_storage::{DataNode, NodeConfig, StoreConfig};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinError, JoinSet},
    time::timeout,
};
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};

use crate::{
    endpoints::{Endpoints, Node, Role, make_dir},
    gauges,
    http::{self, Health, ReadGauges},
    listen::{self, Wish},
    relay::relaying,
};

/// How long requests under way may go on after the node was told to stop.
const DRAIN_LIMIT: Duration = Duration::from_secs(6);
/// How long the connections of other nodes may take to end after that.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// What an access node is started with.
#[derive(Clone, Debug)]
pub(crate) struct AccessSettings {
    /// Raft id, from 1.
    pub(crate) id: u64,
    /// Directory.
    pub(crate) dir: PathBuf,
    /// Address of the PostgreSQL endpoint.
    pub(crate) pg: String,
    /// Address of the Flight SQL endpoint.
    pub(crate) flight: String,
    /// Addresses that both roles have.
    pub(crate) shared: SharedSettings,
}

/// What a data node is started with.
#[derive(Clone, Debug)]
pub(crate) struct DataSettings {
    /// Directory.
    pub(crate) dir: PathBuf,
    /// Name; empty lets the catalog choose.
    pub(crate) name: String,
    /// Addresses of access nodes; empty waits to be adopted.
    pub(crate) access: Vec<String>,
    /// Addresses that both roles have.
    pub(crate) shared: SharedSettings,
}

/// Settings of both roles.
#[derive(Clone, Debug)]
pub(crate) struct SharedSettings {
    /// Address of the internal gRPC endpoint.
    pub(crate) rpc: String,
    /// Address of the HTTP endpoint.
    pub(crate) http: String,
    /// Host under which others reach the node.
    pub(crate) advertise: Option<String>,
    /// Memory for queries, and on a data node as much again for rows not flushed yet.
    pub(crate) memory_bytes: usize,
}

/// An access node whose ports are bound.
#[derive(Debug)]
pub(crate) struct BoundAccess {
    settings: AccessSettings,
    /// Where it is reached.
    pub(crate) endpoint: Node,
    health: Arc<Health>,
    pg: TcpListener,
    flight: TcpListener,
    rpc: TcpListener,
    http: TcpListener,
}

impl BoundAccess {
    /// Binds the ports and writes `endpoints.json`.
    pub(crate) async fn bind(mut settings: AccessSettings) -> anyhow::Result<Self> {
        settings.dir = make_dir(&settings.dir)?;
        let earlier = earlier(&settings.dir);
        let bind = async |what, address, earlier: Option<&String>| {
            let advertise = settings.shared.advertise.as_deref();
            let earlier = earlier.map(String::as_str);
            listen::bind(Wish { what, address, earlier, advertise }).await
        };
        let before = earlier.as_ref();
        let pg = bind("PostgreSQL", &settings.pg, before.and_then(|n| n.pg.as_ref())).await?;
        let flight = bind("Flight SQL", &settings.flight, before.and_then(|n| n.flight.as_ref()));
        let flight = flight.await?;
        let rpc = bind("internal gRPC", &settings.shared.rpc, before.map(|n| &n.rpc)).await?;
        let http = bind("HTTP", &settings.shared.http, before.map(|n| &n.http)).await?;
        let endpoint = Node {
            name: format!("a{}", settings.id),
            role: Role::Access,
            pid: process::id(),
            pg: Some(pg.address),
            flight: Some(flight.address),
            rpc: rpc.address,
            http: http.address,
            dir: settings.dir.clone(),
        };
        let health = Health::new(endpoint.name.clone(), endpoint.role.name());
        let (pg, flight) = (pg.listener, flight.listener);
        let (rpc, http) = (rpc.listener, http.listener);
        Ok(Self { settings, endpoint, health, pg, flight, rpc, http })
    }

    /// Serves until `shutdown` turns true; `served` is told when SQL is.
    pub(crate) async fn run(
        self,
        shutdown: watch::Receiver<bool>,
        served: impl FnOnce(&Node) + Send,
    ) -> anyhow::Result<()> {
        let Self { settings, endpoint, health, pg, flight, rpc, http } = self;
        let channels = Channels::default();
        let node = start_meta(&settings, &endpoint, &channels).await?;
        publish(&endpoint)?;
        let gauges: ReadGauges = {
            let (name, node) = (endpoint.name.clone(), Arc::clone(&node));
            Arc::new(move || gauges::of_access(&name, &node))
        };
        let state = (Arc::clone(&health), gauges);
        let routes = relaying(node.routes(), &node, &channels);
        let mut servers = Servers::start((rpc, routes), (http, state));
        let serve_sql = async {
            if !ready(node.ready(), shutdown.clone()).await? {
                return Ok(());
            }
            let memory_bytes = settings.shared.memory_bytes;
            let config = EngineConfig { memory_bytes, ..EngineConfig::default() };
            let catalog = Arc::clone(&node);
            let engine = Engine::new(catalog, channels, config).context("start the SQL engine")?;
            health.set_ready(true);
            tracing::info!(pg = endpoint.pg, flight = endpoint.flight, "sql is served");
            served(&endpoint);
            tokio::try_join!(
                async {
                    serve_pg(pg, Arc::clone(&engine), shutdown.clone())
                        .await
                        .context("serve PostgreSQL")
                },
                async {
                    serve_flight(flight, Arc::clone(&engine), shutdown.clone())
                        .await
                        .context("serve Flight SQL")
                },
            )?;
            Ok(())
        };
        let failed = async { anyhow::Error::new(node.failed().await) };
        let outcome = servers.run(serve_sql, failed, shutdown.clone()).await;
        health.set_ready(false);
        servers.close().await;
        node.shutdown().await;
        outcome
    }
}

async fn start_meta(
    settings: &AccessSettings,
    endpoint: &Node,
    channels: &Channels,
) -> anyhow::Result<Arc<MetaNode>> {
    let config = hypertide_meta::Config {
        id: hypertide_proto::ids::AccessId(settings.id),
        dir: settings.dir.clone(),
        rpc: endpoint.rpc.clone(),
        pg: endpoint.pg.clone().unwrap_or_default(),
        flight: endpoint.flight.clone().unwrap_or_default(),
        http: endpoint.http.clone(),
        channels: channels.clone(),
    };
    let started = MetaNode::start(config).await;
    started.with_context(|| format!("start access node in {}", settings.dir.display()))
}

/// A data node whose ports are bound.
#[derive(Debug)]
pub(crate) struct BoundData {
    settings: DataSettings,
    /// Where it is reached.
    pub(crate) endpoint: Node,
    health: Arc<Health>,
    rpc: TcpListener,
    http: TcpListener,
}

impl BoundData {
    /// Binds the ports and writes `endpoints.json`.
    pub(crate) async fn bind(mut settings: DataSettings) -> anyhow::Result<Self> {
        settings.dir = make_dir(&settings.dir)?;
        let earlier = earlier(&settings.dir);
        let bind = async |what, address, earlier: Option<&str>| {
            let advertise = settings.shared.advertise.as_deref();
            listen::bind(Wish { what, address, earlier, advertise }).await
        };
        let before = earlier.as_ref();
        let rpc =
            bind("internal gRPC", &settings.shared.rpc, before.map(|n| n.rpc.as_str())).await?;
        let http = bind("HTTP", &settings.shared.http, before.map(|n| n.http.as_str())).await?;
        let endpoint = Node {
            name: settings.name.clone(),
            role: Role::Data,
            pid: process::id(),
            pg: None,
            flight: None,
            rpc: rpc.address,
            http: http.address,
            dir: settings.dir.clone(),
        };
        let health = Health::new(endpoint.name.clone(), endpoint.role.name());
        Ok(Self { settings, endpoint, health, rpc: rpc.listener, http: http.listener })
    }

    /// Serves until `shutdown` turns true; `served` is told when chunks are.
    pub(crate) async fn run(
        self,
        shutdown: watch::Receiver<bool>,
        served: impl FnOnce(&Node) + Send,
    ) -> anyhow::Result<()> {
        let Self { settings, endpoint, health, rpc, http } = self;
        let channels = Channels::default();
        let node = start_data(&settings, &endpoint, &channels).await?;
        publish(&endpoint)?;
        let memory_bytes = settings.shared.memory_bytes;
        let fragments = FragmentService::new(Arc::clone(&node), channels, memory_bytes);
        let fragments = fragments.context("start the fragment service")?;
        let routes = merged(node.routes(), fragments.routes());
        let gauges: ReadGauges = {
            let node = Arc::clone(&node);
            Arc::new(move || gauges::of_data(&node))
        };
        let mut servers = Servers::start((rpc, routes), (http, (Arc::clone(&health), gauges)));
        let stopped = shutdown.clone();
        let serve_chunks = async {
            if !ready(node.ready(), stopped.clone()).await? {
                return Ok(());
            }
            health.set_ready(true);
            let name = node.membership().map(|membership| membership.name).unwrap_or_default();
            tracing::info!(name, rpc = endpoint.rpc, "chunks are served");
            served(&endpoint);
            stopping(stopped).await;
            Ok(())
        };
        let failed = async { anyhow::Error::new(node.failed().await) };
        let outcome = servers.run(serve_chunks, failed, shutdown).await;
        health.set_ready(false);
        servers.close().await;
        node.shutdown().await;
        outcome
    }
}

async fn start_data(
    settings: &DataSettings,
    endpoint: &Node,
    channels: &Channels,
) -> anyhow::Result<Arc<DataNode>> {
    let config = NodeConfig {
        store: StoreConfig {
            memory_bytes: settings.shared.memory_bytes,
            ..StoreConfig::new(settings.dir.clone())
        },
        name: settings.name.clone(),
        access: settings.access.clone(),
        rpc: endpoint.rpc.clone(),
        http: endpoint.http.clone(),
        channels: channels.clone(),
    };
    let started = DataNode::start(config).await;
    started.with_context(|| format!("start data node in {}", settings.dir.display()))
}

/// Where the node of this directory was reached in its last run. A file that cannot be read is replaced.
fn earlier(dir: &std::path::Path) -> Option<Node> {
    let endpoints = Endpoints::read(dir).inspect_err(|error| tracing::warn!("{error:#}"));
    endpoints.ok().flatten()?.nodes.pop()
}

/// Writes the node's own `endpoints.json`; called once the node holds the lock of its directory.
fn publish(endpoint: &Node) -> anyhow::Result<()> {
    Endpoints { nodes: vec![endpoint.clone()] }.write(&endpoint.dir)
}

/// The services of both on one port.
fn merged(node: Routes, fragments: Routes) -> Routes {
    let fragments = fragments.into_axum_router().reset_fallback();
    Routes::from(node.into_axum_router().merge(fragments))
}

async fn serve_rpc(
    listener: TcpListener,
    routes: Routes,
    shutdown: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .add_routes(routes)
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            stopping(shutdown),
        )
        .await
        .context("serve internal gRPC")
}

/// Resolves when the node is told to stop, or nobody is left who could.
pub(crate) async fn stopping(mut shutdown: watch::Receiver<bool>) {
    // An error means that the sender is gone: the process is about to end.
    drop(shutdown.wait_for(|stop| *stop).await);
}

/// Waits until the node is part of a cluster and serves; false when it is told to stop before.
async fn ready<E: std::error::Error + Send + Sync + 'static>(
    ready: impl Future<Output = Result<(), E>>,
    shutdown: watch::Receiver<bool>,
) -> anyhow::Result<bool> {
    tokio::select! {
        ready = ready => ready.context("join the cluster").map(|()| true),
        () = stopping(shutdown) => Ok(false),
    }
}

/// What a node serves besides its main work, until `close` is told.
#[derive(Debug)]
struct Servers {
    tasks: JoinSet<anyhow::Result<()>>,
    close: watch::Sender<bool>,
}

impl Servers {
    /// Starts the internal gRPC and HTTP servers.
    fn start(rpc: (TcpListener, Routes), http: (TcpListener, (Arc<Health>, ReadGauges))) -> Self {
        let (close, closing) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_rpc(rpc.0, rpc.1, closing.clone()));
        tasks.spawn(http::serve(http.0, http.1, closing));
        Self { tasks, close }
    }

    /// Waits for the end of `main`, for at most the drain limit after the order to stop; earlier for a failure.
    async fn run(
        &mut self,
        main: impl Future<Output = anyhow::Result<()>>,
        failed: impl Future<Output = anyhow::Error>,
        shutdown: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let overdue = async {
            stopping(shutdown).await;
            tokio::time::sleep(DRAIN_LIMIT).await;
        };
        tokio::select! {
            outcome = main => outcome,
            error = failed => Err(error),
            Some(ended) = self.tasks.join_next() => flatten(ended),
            () = overdue => {
                tracing::warn!("statements were still under way at the end");
                Ok(())
            }
        }
    }

    /// Stops the servers after what is under way, which other nodes may have waited for until now.
    async fn close(mut self) {
        self.close.send_replace(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(CLOSE_LIMIT, all).await.is_err() {
            tracing::debug!("connections of other nodes were still open at the end");
        }
    }
}

fn flatten(ended: Result<anyhow::Result<()>, JoinError>) -> anyhow::Result<()> {
    ended.context("a server task was aborted")?
}
