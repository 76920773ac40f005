//! Runs the golden scripts of SQL against a whole cluster in this process: one access node with Raft on disk, three
//! data nodes, real gRPC between them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::array::RecordBatch;
use bytes::Bytes;
use futures::TryStreamExt as _;
use hypertide_meta::{CatalogWriter, Config, MetaNode, init_cluster};
use hypertide_proto::{client::Channels, ids::AccessId};
use hypertide_storage::{DataNode, NodeConfig, StoreConfig};
use tempfile::TempDir;
use tokio::{net::TcpListener, runtime::Runtime, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;

use crate::{
    CopyLines, CopyOut, Engine, EngineConfig, Error, FragmentService, Reply, Session,
    sql::text::TextColumn,
};

/// Longest wait for anything: the machine may be busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);
const MEMORY_BYTES: usize = 256 << 20;

/// A cluster, and the runtime that it lives on.
pub(crate) struct Cluster {
    runtime: Runtime,
    pub(crate) engine: Arc<Engine>,
    root: TempDir,
    servers: Vec<JoinHandle<()>>,
    access: String,
    nodes: Vec<Arc<DataNode>>,
    channels: Channels,
}

impl Cluster {
    /// Starts a cluster with data nodes `dn1`, `dn2` …
    pub(crate) fn start(data_nodes: usize) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let root = TempDir::new().expect("a temporary directory");
        let channels = Channels::default();
        let (meta, server, access) = runtime.block_on(access_node(&root, &channels));
        let catalog: Arc<dyn CatalogWriter> = meta;
        let engine =
            Engine::new(catalog, channels.clone(), EngineConfig::default()).expect("an engine");
        let servers = vec![server];
        let mut cluster =
            Self { runtime, engine, root, servers, access, nodes: Vec::new(), channels };
        for number in 1..=data_nodes {
            let access = vec![cluster.access.clone()];
            let (node, _) = cluster.start_node(&format!("dn{number}"), access);
            let ready = async { tokio::time::timeout(PATIENCE, node.ready()).await };
            cluster.runtime.block_on(ready).expect("soon").expect("it registers");
        }
        cluster
    }

    /// Starts a data node; gives it with its address. Without `access` it waits to be taken in.
    pub(crate) fn start_node(
        &mut self,
        name: &str,
        access: Vec<String>,
    ) -> (Arc<DataNode>, String) {
        let dir = self.root.path().join(format!("data{}", self.nodes.len() + 1));
        let channels = self.channels.clone();
        let (node, server, address) = self.runtime.block_on(data_node(name, dir, access, channels));
        self.nodes.push(Arc::clone(&node));
        self.servers.push(server);
        (node, address)
    }

    /// A session.
    pub(crate) fn session(&self) -> Session {
        Session::new(Arc::clone(&self.engine), "postgres")
    }

    /// Writes what data nodes have in memory to their segments.
    pub(crate) fn flush(&self) {
        for node in &self.nodes {
            let store = Arc::clone(node.store());
            store.flush(&[]).expect("it flushes");
        }
    }

    /// Runs a future on the cluster's runtime.
    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Runs a text and gives what it prints, notices and errors included. ` <<< ` and what follows are data for COPY.
    pub(crate) fn run(&self, session: &mut Session, sql: &str) -> String {
        let (sql, data) = match sql.split_once(" <<< ") {
            Some((sql, data)) => (sql, data.replace("\\n", "\n").replace("\\t", "\t")),
            None => (sql, String::new()),
        };
        let result = self.block_on(run(session, sql, data));
        let mut out = String::new();
        for notice in session.take_notices() {
            out.push_str(&format!("{} {}: {}\n", notice.severity, notice.state.0, notice.message));
            if let Some(hint) = notice.hint {
                out.push_str(&format!("  hint: {hint}\n"));
            }
        }
        match result {
            Ok(text) => out.push_str(&text),
            Err(error) => out.push_str(&shown(&error)),
        }
        out
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.servers.iter().for_each(JoinHandle::abort);
    }
}

fn shown(error: &Error) -> String {
    let mut out = format!("ERROR {}: {}\n", error.state.0, error.message);
    for (what, text) in
        [("detail", &error.detail), ("hint", &error.hint), ("context", &error.context)]
    {
        if let Some(text) = text {
            out.push_str(&format!("  {what}: {text}\n"));
        }
    }
    if let Some(position) = error.position {
        out.push_str(&format!("  position: {position}\n"));
    }
    out
}

/// Runs one statement and gives its rows as lines, then its tag.
async fn run(session: &mut Session, sql: &str, data: String) -> Result<String, Error> {
    let prepared = session.prepare(sql, &[]).await?;
    let style = session.settings.text_style();
    match session.execute(&prepared, Vec::new()).await? {
        Reply::Empty => Ok("(nothing)\n".to_owned()),
        Reply::Done(tag) => Ok(format!("{tag}\n")),
        Reply::Rows { schema, stream, tag, counted } => {
            let names: Vec<&str> =
                schema.fields().iter().map(|field| field.name().as_str()).collect();
            let mut out = format!("{}\n", names.join("|"));
            let batches: Result<Vec<RecordBatch>, _> = stream.try_collect().await;
            let batches = batches.inspect_err(|_| session.fail())?;
            let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
            for batch in &batches {
                let columns: Vec<TextColumn> =
                    batch.columns().iter().map(|column| TextColumn::new(column, style)).collect();
                for row in 0..batch.num_rows() {
                    let values = columns.iter().map(|column| {
                        let mut text = Vec::new();
                        match column.write(row, &mut text) {
                            true => String::from_utf8(text).expect("text is UTF-8"),
                            false => "NULL".to_owned(),
                        }
                    });
                    out.push_str(&format!("{}\n", values.collect::<Vec<_>>().join("|")));
                }
            }
            match counted {
                true => out.push_str(&format!("{tag} {rows}\n")),
                false => out.push_str(&format!("{tag}\n")),
            }
            Ok(out)
        }
        Reply::CopyIn(mut copy) => {
            for piece in data.as_bytes().chunks(7) {
                if let Err(error) = copy.data(Bytes::copy_from_slice(piece)).await {
                    session.abort_copy(copy).await;
                    return Err(error);
                }
            }
            session.finish_copy(copy).await.map(|tag| format!("{tag}\n"))
        }
        Reply::CopyOut { rows: CopyOut::Lines { header, rows }, .. } => {
            let pieces: Vec<CopyLines> = rows.try_collect().await?;
            let rows: Vec<&[u8]> = pieces.iter().flat_map(CopyLines::rows).collect();
            let text = [header.unwrap_or_default(), rows.concat()].concat();
            Ok(format!("{}COPY {}\n", String::from_utf8_lossy(&text), rows.len()))
        }
        Reply::CopyOut { rows: CopyOut::Binary(_), .. } => {
            Err(Error::unsupported("binary COPY in a script"))
        }
    }
}

async fn access_node(
    root: &TempDir,
    channels: &Channels,
) -> (Arc<MetaNode>, JoinHandle<()>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let rpc = listener.local_addr().expect("bound").to_string();
    let nowhere = || "127.0.0.1:1".to_owned();
    let meta = MetaNode::start(Config {
        id: AccessId(1),
        dir: root.path().join("access1"),
        rpc: rpc.clone(),
        pg: nowhere(),
        flight: nowhere(),
        http: nowhere(),
        channels: channels.clone(),
    });
    let meta = meta.await.expect("it starts");
    let server = serve(listener, meta.routes());
    let deadline = Instant::now() + PATIENCE;
    init_cluster(channels, std::slice::from_ref(&rpc), deadline).await.expect("it forms a cluster");
    tokio::time::timeout(PATIENCE, meta.ready()).await.expect("soon").expect("ready");
    (meta, server, rpc)
}

async fn data_node(
    name: &str,
    dir: std::path::PathBuf,
    access: Vec<String>,
    channels: Channels,
) -> (Arc<DataNode>, JoinHandle<()>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let rpc = listener.local_addr().expect("bound").to_string();
    let store = StoreConfig {
        flush_bytes: 1 << 20,
        flush_age: Duration::from_secs(1),
        memory_bytes: MEMORY_BYTES,
        space_reserve_bytes: 0,
        ..StoreConfig::new(dir)
    };
    let config = NodeConfig {
        store,
        name: name.to_owned(),
        access,
        rpc: rpc.clone(),
        http: "127.0.0.1:1".to_owned(),
        channels: channels.clone(),
    };
    let node = DataNode::start(config).await.expect("it starts");
    let fragments =
        FragmentService::new(Arc::clone(&node), channels, MEMORY_BYTES).expect("a service");
    let routes = node
        .routes()
        .into_axum_router()
        .merge(fragments.routes().into_axum_router().reset_fallback());
    let server = serve(listener, routes.into());
    (node, server, rpc)
}

fn serve(listener: TcpListener, routes: tonic::service::Routes) -> JoinHandle<()> {
    let server = tonic::transport::Server::builder().add_routes(routes);
    tokio::spawn(async move {
        let stopped = server.serve_with_incoming(TcpListenerStream::new(listener)).await;
        stopped.expect("it serves until it is dropped");
    })
}

mod files {
    use std::{collections::BTreeMap, error::Error, path::Path};

    use goldenscript::{Command, Context};
    use test_each_file::test_each_path;

    use super::{Cluster, Session};

    test_each_path! { in "./query/src/testscripts/ddl" as ddl => run_script }
    test_each_path! { in "./query/src/testscripts/queries" as queries => run_script }

    /// A cluster with three data nodes, and sessions by the prefix of their lines.
    struct Script {
        cluster: Cluster,
        sessions: BTreeMap<String, Session>,
    }

    impl goldenscript::Runner for Script {
        type Command = Command;

        fn run(&mut self, command: &Command, context: &Context) -> Result<String, Box<dyn Error>> {
            let (cluster, prefix) = (&self.cluster, context.prefix.clone().unwrap_or_default());
            let session = self.sessions.entry(prefix).or_insert_with(|| cluster.session());
            Ok(cluster.run(session, &command.name))
        }
    }

    fn run_script(path: &Path) {
        let mut script = Script { cluster: Cluster::start(3), sessions: BTreeMap::new() };
        goldenscript::run(&mut script, path).expect("the script runs as recorded");
    }
}
