//! A cluster in this process, for tests: one access node's catalog and some data nodes, each with its own gRPC server
//! on a port that the system chose, and directories that vanish with it.
//!
//! Rows are written past the SQL layer. Data nodes are never told of commits: the first scan has to ask.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use arrow::{
    array::{Array, RecordBatch, UInt64Array},
    compute::{cast, take_record_batch},
};
use datafusion::{
    common::ScalarValue,
    physical_plan::{ExecutionPlan, collect},
    prelude::SessionContext,
};
use futures::{StreamExt, stream, stream::BoxStream};
use hypertide_meta::{
    Config, MetaNode, Tuning,
    catalog::{
        Chunk, ChunkOrigin, Command, CommitPart, CommitRecord, HypertableSpec, Outcome, Rule,
        Table, TableKind,
    },
    init_cluster,
};
use hypertide_proto::{
    client::{Channels, MESSAGE_BYTES_MAX},
    ids::{AccessId, TxnId},
    partition::hash,
    schema::{Column, ColumnType, TableSchema},
    time::DAY_MICROS,
    wire::query::{
        ExecuteReply, ExecuteRequest,
        fragments_server::{Fragments, FragmentsServer},
    },
};
use hypertide_storage::{
    ChunkSpec, DataNode, NodeConfig, Part, StoreConfig,
    batch::{Encoded, encode},
    part_hash,
};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, service::Routes};

use crate::{
    Engine, EngineConfig, FragmentService, Snapshot,
    context::{Choices, chosen_context},
    exec::explain_lines,
    prune::hash_key,
};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// What happens to an answer of a data node after some messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It goes on.
    None,
    /// The connection breaks.
    Break { after: usize },
    /// Nothing more comes.
    Silence { after: usize },
    /// It begins late.
    Late { by: Duration },
}

/// Runs fragments, with trouble.
#[derive(Clone)]
struct Troubled {
    fragments: FragmentService,
    trouble: Arc<Mutex<Trouble>>,
}

#[tonic::async_trait]
impl Fragments for Troubled {
    type ExecuteStream = BoxStream<'static, Result<ExecuteReply, Status>>;

    async fn execute(
        &self,
        request: Request<ExecuteRequest>,
    ) -> Result<Response<Self::ExecuteStream>, Status> {
        let replies = self.fragments.execute(request).await?.into_inner();
        let trouble = *self.trouble.lock().expect("nobody panicked");
        let replies = match trouble {
            Trouble::None => replies.boxed(),
            Trouble::Break { after } => {
                let broken = stream::iter([Err(Status::unavailable("it broke"))]);
                replies.take(after).chain(broken).boxed()
            }
            Trouble::Late { by } => {
                let late = stream::once(async move {
                    tokio::time::sleep(by).await;
                    replies
                });
                late.flatten().boxed()
            }
            Trouble::Silence { after } => replies.take(after).chain(stream::pending()).boxed(),
        };
        Ok(Response::new(replies))
    }
}

/// A data node with its server.
pub(super) struct Data {
    pub(super) node: Arc<DataNode>,
    trouble: Arc<Mutex<Trouble>>,
    rpc: String,
    server: JoinHandle<()>,
    hang_up: oneshot::Sender<()>,
}

impl Data {
    /// What its next answers meet.
    pub(super) fn trouble(&self, trouble: Trouble) {
        *self.trouble.lock().expect("nobody panicked") = trouble;
    }

    /// Hangs up on everyone and answers no more.
    pub(super) fn kill(&self) {
        self.server.abort();
    }
}

/// The cluster.
pub(super) struct Cluster {
    pub(super) engine: Arc<Engine>,
    pub(super) data: BTreeMap<String, Data>,
    access: String,
    version_age: Duration,
    /// Whether data nodes serve more than fragments. Without that they do not answer when they are asked whether they
    /// are there, so that one can fall silent.
    ordered: bool,
    dir: TempDir,
}

async fn bind() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    (listener, address)
}

/// Serves until it is told to hang up.
fn serve(listener: TcpListener, routes: Routes) -> (JoinHandle<()>, oneshot::Sender<()>) {
    let (hang_up, told) = oneshot::channel();
    let server = tokio::spawn(async move {
        let server = tonic::transport::Server::builder().add_routes(routes);
        let told = async {
            if told.await.is_err() {
                // Nobody is left to tell it: it serves as long as the test.
                std::future::pending::<()>().await;
            }
        };
        let incoming = TcpListenerStream::new(listener);
        server.serve_with_incoming_shutdown(incoming, told).await.expect("it serves");
    });
    (server, hang_up)
}

impl Cluster {
    /// A cluster of data nodes `d1` to `dN`.
    pub(super) async fn start(nodes: usize) -> Self {
        Self::start_with(nodes, Duration::from_secs(60), false).await
    }

    /// As [`Cluster::start`]; data nodes keep old versions for so long, and take orders about chunks, too.
    pub(super) async fn start_keeping(nodes: usize, version_age: Duration) -> Self {
        Self::start_with(nodes, version_age, true).await
    }

    async fn start_with(nodes: usize, version_age: Duration, ordered: bool) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let channels = Channels::default();
        let (listener, access) = bind().await;
        let none = || "127.0.0.1:1".to_owned();
        let config = Config {
            id: AccessId(1),
            dir: dir.path().join("a1"),
            rpc: access.clone(),
            pg: none(),
            flight: none(),
            http: none(),
            channels: channels.clone(),
        };
        let meta = MetaNode::start_tuned(config, Tuning::default()).await.expect("it starts");
        drop(serve(listener, meta.routes()));
        init_cluster(&channels, std::slice::from_ref(&access), soon()).await.expect("it forms");
        tokio::time::timeout(PATIENCE, meta.ready()).await.expect("soon").expect("ready");
        let engine = Engine::new(meta, channels, EngineConfig::default()).expect("it is made");
        let mut cluster = Self { engine, data: BTreeMap::new(), access, version_age, ordered, dir };
        for number in 1..=nodes {
            cluster.start_data(&format!("d{number}"), bind().await).await;
        }
        cluster
    }

    async fn start_data(&mut self, name: &str, place: (TcpListener, String)) {
        let (listener, rpc) = place;
        let channels = self.engine.channels.clone();
        let dir = self.dir.path().join(name);
        let version_age = self.version_age;
        let config = NodeConfig {
            store: StoreConfig { space_reserve_bytes: 0, version_age, ..StoreConfig::new(dir) },
            name: name.to_owned(),
            access: vec![self.access.clone()],
            rpc: rpc.clone(),
            http: "127.0.0.1:1".to_owned(),
            channels: channels.clone(),
        };
        let node = DataNode::start(config).await.expect("it starts");
        let fragments = FragmentService::new(Arc::clone(&node), channels, 256 << 20);
        let fragments = fragments.expect("it is made");
        let trouble = Arc::new(Mutex::new(Trouble::None));
        let troubled = Troubled { fragments, trouble: Arc::clone(&trouble) };
        let service = FragmentsServer::new(troubled)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let mut routes = Routes::new(service);
        if self.ordered {
            let fragments = routes.into_axum_router().reset_fallback();
            routes = node.routes().into_axum_router().merge(fragments).into();
        }
        let (server, hang_up) = serve(listener, routes);
        tokio::time::timeout(PATIENCE, node.ready()).await.expect("soon").expect("ready");
        self.data.insert(name.to_owned(), Data { node, trouble, rpc, server, hang_up });
    }

    /// Stops a data node and starts it anew, where it was.
    pub(super) async fn restart(&mut self, name: &str) {
        let Data { node, rpc, server, hang_up, .. } = self.data.remove(name).expect("it runs");
        hang_up.send(()).expect("it listens");
        // Connections from before would lead to the node that was.
        tokio::time::timeout(PATIENCE, server).await.expect("soon").expect("it does not panic");
        node.shutdown().await;
        drop(node);
        let listener = TcpListener::bind(&rpc).await.expect("the port is free again");
        self.start_data(name, (listener, rpc)).await;
    }

    async fn propose(&self, command: Command) -> Outcome {
        let (index, answer) =
            self.engine.catalog.propose(command, soon()).await.expect("the log takes it");
        self.engine.catalog.applied(index, soon()).await.expect("it is applied");
        answer.expect("the catalog takes it")
    }

    /// Makes `name` from columns such as `time timestamptz`; a hypertable when `spec` says how.
    pub(super) async fn create(
        &self,
        name: &str,
        columns: &[(&str, ColumnType)],
        spec: Option<HypertableSpec>,
    ) {
        let columns = columns.iter().map(|(name, column_type)| Column::new(name, *column_type));
        let create = Command::CreateTable {
            schema: "public".to_owned(),
            name: name.to_owned(),
            owner: "hypertide".to_owned(),
            columns: TableSchema::of(columns.collect()),
            if_not_exists: false,
        };
        let Outcome::Table(table, _) = self.propose(create).await else { panic!("no table") };
        if let Some(spec) = spec {
            let table = table.id;
            self.propose(Command::CreateHypertable { table, spec, if_not_exists: false }).await;
        }
    }

    /// Makes `conditions(time, location, temperature, humidity)` with slices of a day and so many partitions.
    pub(super) async fn create_conditions(&self, partitions: u16, replicas: u16) {
        let columns = [
            ("time", ColumnType::TimestampTz),
            ("location", ColumnType::Text),
            ("temperature", ColumnType::Double),
            ("humidity", ColumnType::Integer),
        ];
        let space = Some(("location".to_owned(), Some(partitions)));
        self.create("conditions", &columns, Some(spec("time", DAY_MICROS, space, replicas))).await;
    }

    /// Commits the rows of a query to a table; its columns are taken in their order.
    pub(super) async fn insert(&self, table: &str, query: &str) {
        let image = self.engine.catalog.barrier(soon()).await.expect("a barrier");
        let table = image.catalog.table_named("public", table).expect("it exists").clone();
        let plain = SessionContext::new().sql(query).await.expect("it is planned");
        let batches = plain.collect().await.expect("it runs");
        let txn = self.engine.catalog.begin().id();
        let schema = table.columns.to_arrow();
        let mut parts: BTreeMap<u64, (Chunk, Vec<Encoded>)> = BTreeMap::new();
        for batch in batches {
            let columns = batch.columns().iter().zip(schema.fields());
            let columns = columns.map(|(c, field)| cast(c, field.data_type()).expect("it fits"));
            let batch = RecordBatch::try_new(Arc::clone(&schema), columns.collect());
            let batch = batch.expect("the columns are the table's");
            for (chunk, rows) in self.split(&table, &batch).await {
                let entry = parts.entry(chunk.id.0).or_insert((chunk, Vec::new()));
                entry.1.push(encode(&rows).expect("it is encoded"));
            }
        }
        self.commit(&table, txn, parts.into_values().collect()).await;
    }

    async fn split(&self, table: &Table, batch: &RecordBatch) -> Vec<(Chunk, RecordBatch)> {
        let mut rows: BTreeMap<Vec<i64>, Vec<u64>> = BTreeMap::new();
        for row in 0..batch.num_rows() {
            let point = point(table, batch, row);
            rows.entry(point).or_default().push(row as u64);
        }
        let points: Vec<Vec<i64>> = rows.keys().cloned().collect();
        let command = Command::EnsureChunks { table: table.id, points };
        let Outcome::Chunks(chunks) = self.propose(command).await else { panic!("no chunks") };
        let mut whole: BTreeMap<u64, (Chunk, Vec<u64>)> = BTreeMap::new();
        for (chunk, rows) in chunks.into_iter().zip(rows.into_values()) {
            whole.entry(chunk.id.0).or_insert((chunk, Vec::new())).1.extend(rows);
        }
        let taken = |(chunk, rows): (Chunk, Vec<u64>)| {
            let rows = take_record_batch(batch, &UInt64Array::from(rows)).expect("they exist");
            (chunk, rows)
        };
        whole.into_values().map(taken).collect()
    }

    async fn commit(&self, table: &Table, txn: TxnId, parts: Vec<(Chunk, Vec<Encoded>)>) {
        let mut record = CommitRecord { txn, write: None, parts: Vec::new() };
        for (chunk, encoded) in parts {
            let hashes: Vec<u128> = encoded.iter().map(|part| part.hash).collect();
            record.parts.push(CommitPart {
                chunk: chunk.id,
                epoch: chunk.epoch,
                acks: chunk.in_sync.clone(),
                hash: part_hash(hashes.into_iter()),
                rows: encoded.iter().map(|part| u64::from(part.rows)).sum(),
                table_version: table.version,
                keyed: false,
            });
            self.prepare(table, txn, &chunk, encoded).await;
        }
        self.propose(Command::Commit(record)).await;
    }

    async fn prepare(&self, table: &Table, txn: TxnId, chunk: &Chunk, encoded: Vec<Encoded>) {
        let (mut time_column, mut order_columns) = (None, Vec::new());
        if let TableKind::Hypertable(hypertable) = &table.kind {
            let mut columns = hypertable.dimensions.iter().map(|d| d.column.clone());
            time_column = columns.next();
            order_columns.extend(columns);
        }
        let origin = ChunkOrigin::of(chunk).to_bytes();
        let spec =
            ChunkSpec { chunk: chunk.id, table: table.id, time_column, order_columns, origin };
        let part = |(number, encoded): (usize, Encoded)| Part {
            spec: spec.clone(),
            epoch: chunk.epoch,
            number: number as u32,
            rows: encoded.rows,
            hash: encoded.hash,
            payload: encoded.payload,
            decoded_bytes: encoded.decoded_bytes,
        };
        let parts: Vec<Part> = encoded.into_iter().enumerate().map(part).collect();
        let image = self.engine.catalog.image();
        for rid in &chunk.in_sync {
            let name = &image.catalog.data_node(rid.node).expect("it is registered").name;
            let node = &self.data.get(name).expect("it runs").node;
            node.store().prepare(txn, parts.clone()).await.expect("it is journaled");
        }
    }

    /// Writes what the data nodes hold in memory to segments.
    pub(super) fn flush(&self) {
        for data in self.data.values() {
            data.node.store().flush(&[]).expect("it flushes");
        }
    }

    /// A session that reads all that is committed now.
    pub(super) async fn session(&self, pushdown: bool, summaries: bool) -> SessionContext {
        let image = self.engine.catalog.barrier(soon()).await.expect("a barrier");
        let snapshot =
            Snapshot { csn: image.snapshot(), image, own: None, view: None, dropped_too: false };
        let choices = Choices { zone: "UTC", pushdown, hedged: true, summaries };
        let session = chosen_context(&self.engine, choices, &snapshot, soon()).expect("a session");
        // Plans are compared as text: they must not depend on the machine.
        let state = session.state_ref();
        state.write().config_mut().options_mut().execution.target_partitions = 2;
        session
    }

    /// Plans and runs a query; gives the plan that ran and its rows.
    pub(super) async fn query(&self, sql: &str, pushdown: bool) -> Result<Answer, String> {
        self.query_as(sql, pushdown, pushdown).await
    }

    /// As [`Cluster::query`], with answers from zone maps or without.
    pub(super) async fn query_as(
        &self,
        sql: &str,
        pushdown: bool,
        summaries: bool,
    ) -> Result<Answer, String> {
        let session = self.session(pushdown, summaries).await;
        let frame = session.sql(sql).await.map_err(|error| error.strip_backtrace())?;
        let context = Arc::new(frame.task_ctx());
        let plan = frame.create_physical_plan().await.map_err(|error| error.strip_backtrace())?;
        let rows = collect(Arc::clone(&plan), context).await;
        Ok(Answer { plan, rows: rows.map_err(|error| error.strip_backtrace())? })
    }
}

/// How a test cuts a table.
pub(super) fn spec(
    time: &str,
    interval: i64,
    space: Option<(String, Option<u16>)>,
    replicas: u16,
) -> HypertableSpec {
    HypertableSpec {
        distributed: true,
        time_column: time.to_owned(),
        interval,
        space,
        replication_factor: replicas,
        data_nodes: None,
        chunk_schema: None,
        chunk_prefix: None,
    }
}

/// The coordinates of a row.
pub(super) fn point(table: &Table, batch: &RecordBatch, row: usize) -> Vec<i64> {
    let TableKind::Hypertable(hypertable) = &table.kind else { return Vec::new() };
    let coordinate = |dimension: &hypertide_meta::catalog::Dimension| {
        let array = batch.column_by_name(&dimension.column).expect("it has the column");
        let value = ScalarValue::try_from_array(array, row).expect("it has the row");
        match (&dimension.rule, &value) {
            (Rule::Hash { .. }, value) => {
                hash(hash_key(value).unwrap_or(hypertide_proto::partition::HashKey::Null))
            }
            (Rule::Time { .. }, ScalarValue::TimestampMicrosecond(Some(time), _)) => *time,
            (Rule::Time { .. }, ScalarValue::Date32(Some(days))) => i64::from(*days) * DAY_MICROS,
            (Rule::Time { .. }, ScalarValue::Int64(Some(time))) => *time,
            (Rule::Time { .. }, other) => panic!("{other} is no time"),
        }
    };
    hypertable.dimensions.iter().map(coordinate).collect()
}

/// A plan that ran and what it gave.
pub(super) struct Answer {
    pub(super) plan: Arc<dyn ExecutionPlan>,
    pub(super) rows: Vec<RecordBatch>,
}

impl Answer {
    /// The plan as EXPLAIN shows it.
    pub(super) fn explain(&self) -> String {
        explain_lines(self.plan.as_ref(), false, false).join("\n")
    }

    /// The rows as text, in their order; floats to nine digits, since sums depend on the order of addition.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for batch in &self.rows {
            for row in 0..batch.num_rows() {
                let cell = |array: &Arc<dyn Array>| match ScalarValue::try_from_array(array, row)
                    .expect("a cell")
                {
                    ScalarValue::Float64(Some(value)) => format!("{value:.9}"),
                    value if value.is_null() => "NULL".to_owned(),
                    value => arrow::util::display::array_value_to_string(
                        &value.to_array().expect("one cell"),
                        0,
                    )
                    .expect("it is shown"),
                };
                let cells: Vec<String> = batch.columns().iter().map(cell).collect();
                lines.push(cells.join(" | "));
            }
        }
        lines
    }

    /// The rows in an order of their own.
    pub(super) fn sorted(&self) -> Vec<String> {
        let mut lines = self.lines();
        lines.sort();
        lines
    }
}
