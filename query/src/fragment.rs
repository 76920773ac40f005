//! The data node's side of a fragment: decode the plan, bind its scan to the chunk store, run it, stream the rows.
//!
//! Plans run on threads of their own, so that decoding and adding up never starve heartbeats and commits, and scans on
//! the blocking threads of that pool. Before a plan starts, transactions that are pending in its chunks are resolved at
//! the requesting access node, whose catalog is at least as new as the snapshot: what is still open there can only be
//! committed after the snapshot and is invisible.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use arrow_flight::encode::FlightDataEncoderBuilder;
use datafusion::{
    error::DataFusionError,
    execution::{
        SessionState, TaskContext, memory_pool::FairSpillPool, runtime_env::RuntimeEnvBuilder,
    },
    physical_plan::{ExecutionPlan, execute_stream},
};
use datafusion_proto::bytes::physical_plan_from_bytes_with_extension_codec;
use futures::{Stream, StreamExt, TryStreamExt};
use hypertide_proto::{
    client::{Channels, MESSAGE_BYTES_MAX},
    decision::Decision,
    error::{Code, RpcError},
    ids::{ChunkId, Csn, TxnId},
    wire::{
        check_cluster,
        meta::{PendingTxn, ResolveRequest},
        query::{
            ExecuteReply, ExecuteRequest, FragmentMetrics,
            fragments_server::{Fragments, FragmentsServer},
        },
    },
};
use hypertide_storage::{ChunkStore, DataNode};
use tokio::{runtime::Runtime, sync::mpsc, task::AbortHandle};
use tonic::{Request, Response, Status};

use crate::{
    Error, context,
    exec::{
        Binding, FragmentCodec, PLAN_VERSION, ScanLeaf, ScanTotals, bind, plan_lines, rpc_error,
    },
    measures,
    optimize::group_by_ids,
};

/// Messages that a fragment may be ahead of its reader.
const MESSAGES_AHEAD: usize = 8;
/// Rows are split so that a message is about this large at most.
const MESSAGE_BYTES: usize = 4 << 20;
/// Different texts of a column, in the chunks that a fragment reads, up to which groups are found by ids of the texts:
/// they stay in memory while the fragment runs.
const GROUP_TEXTS_MAX: u64 = 1 << 17;

/// The service that runs fragments on a data node.
#[derive(Clone)]
pub struct FragmentService {
    inner: Arc<Inner>,
}

struct Inner {
    node: Arc<DataNode>,
    channels: Channels,
    template: SessionState,
    pool: Pool,
    cores: usize,
}

impl fmt::Debug for FragmentService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FragmentService").finish_non_exhaustive()
    }
}

/// Threads that run plans. A runtime must not be dropped on a thread of another, so that it is let go in the
/// background.
struct Pool(Option<Runtime>);

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// What a request asks for, checked and decoded.
struct Job {
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
    totals: Arc<ScanTotals>,
    chunks: usize,
    deadline: Instant,
}

impl FragmentService {
    /// The service over a node's chunk store; plans together use at most `memory_bytes`.
    pub fn new(
        node: Arc<DataNode>,
        channels: Channels,
        memory_bytes: usize,
    ) -> Result<Self, Error> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let pool = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(cores)
            .thread_name("fragment")
            .enable_all()
            .build()
            .map_err(DataFusionError::IoError)?;
        let memory = Arc::new(FairSpillPool::new(memory_bytes));
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(memory).build_arc()?;
        let template = context::template(runtime)?;
        let inner = Inner { node, channels, template, pool: Pool(Some(pool)), cores };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The routes to serve on the node's rpc address.
    #[must_use]
    pub fn routes(&self) -> tonic::service::Routes {
        let server = FragmentsServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        tonic::service::Routes::new(server)
    }
}

impl Inner {
    /// Checks a request and makes its plan ready to run.
    async fn accept(&self, request: ExecuteRequest) -> Result<Job, RpcError> {
        let membership = self.node.membership().filter(|_| self.node.serving());
        let membership = membership
            .ok_or_else(|| RpcError::new(Code::Unavailable, "the data node does not serve yet"))?;
        check_cluster(&request.cluster, membership.cluster)?;
        if request.plan_version != PLAN_VERSION {
            let message = format_args!(
                "this node runs plans of version {PLAN_VERSION}, the fragment is of version {}",
                request.plan_version
            );
            return Err(RpcError::new(Code::Version, message));
        }
        let deadline = Instant::now() + Duration::from_millis(request.deadline_ms.into());
        let context = context::fragment_context(&self.template, &request.settings)
            .map_err(|error| rpc_error(&error))?;
        let plan =
            physical_plan_from_bytes_with_extension_codec(&request.plan, &context, &FragmentCodec)
                .map_err(|error| RpcError::new(Code::Invalid, format_args!("plan: {error}")))?;
        let own = request.own_txn.map(TxnId::from);
        let totals = Arc::new(ScanTotals::default());
        let binding = Binding {
            store: Arc::clone(self.node.store()),
            snapshot: Csn(request.snapshot),
            own,
            totals: Arc::clone(&totals),
        };
        let plan = self.grouped_by_ids(plan).await?;
        let (plan, chunks) =
            bind(&plan, &binding, self.cores).map_err(|error| rpc_error(&error))?;
        self.resolve(&chunks, &request, deadline).await?;
        Ok(Job { plan, context, totals, chunks: chunks.len(), deadline })
    }

    /// The plan with groups by ids of texts where there are few different ones. Headers of chunk files may be read for it.
    async fn grouped_by_ids(
        &self,
        plan: Arc<dyn ExecutionPlan>,
    ) -> Result<Arc<dyn ExecutionPlan>, RpcError> {
        let store = Arc::clone(self.node.store());
        let few = move |leaf: &ScanLeaf, at: usize| few_texts(&store, leaf, at);
        let grouped = tokio::task::spawn_blocking(move || group_by_ids(plan, &few)).await;
        let grouped = grouped.map_err(|error| RpcError::new(Code::Internal, error))?;
        grouped.map_err(|error| rpc_error(&error))
    }

    /// Learns what became of the transactions that are pending in these chunks.
    async fn resolve(
        &self,
        chunks: &[ChunkId],
        request: &ExecuteRequest,
        deadline: Instant,
    ) -> Result<(), RpcError> {
        if chunks.is_empty() {
            return Ok(());
        }
        let own = request.own_txn.map(TxnId::from);
        let pending: Vec<PendingTxn> = self
            .node
            .store()
            .pending(chunks)
            .into_iter()
            .filter(|(txn, _)| Some(*txn) != own)
            .map(|(txn, age)| PendingTxn {
                txn: Some(txn.into()),
                age_ms: u32::try_from(age.as_millis()).unwrap_or(u32::MAX),
            })
            .collect();
        if pending.is_empty() {
            return Ok(());
        }
        let mut meta = self.channels.meta(&request.access_rpc)?;
        let question = ResolveRequest { cluster: request.cluster.clone(), pending };
        let deadline = tokio::time::Instant::from_std(deadline);
        let answer = tokio::time::timeout_at(deadline, meta.resolve(question)).await;
        let answer = answer.map_err(|_| out_of_time())??.into_inner();
        let decisions = answer.decisions.into_iter().map(Decision::try_from);
        let decisions: Vec<Decision> = decisions.collect::<Result<_, _>>()?;
        Ok(self.node.store().decide(&decisions)?)
    }

    /// Runs the plan and sends its rows; the last message carries what was done, too.
    async fn run(
        job: Job,
        output: &mpsc::Sender<Result<ExecuteReply, Status>>,
    ) -> Result<(), RpcError> {
        let started = Instant::now();
        let rows = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let counter = Arc::clone(&rows);
        let stream = execute_stream(Arc::clone(&job.plan), Arc::clone(&job.context))
            .map_err(|error| rpc_error(&error))?;
        let schema = stream.schema();
        let batches = stream
            .inspect_ok(move |batch| {
                let rows = batch.num_rows() as u64;
                counter.fetch_add(rows, std::sync::atomic::Ordering::Relaxed);
            })
            .map_err(|error| Status::from(rpc_error(&error)).into());
        let mut messages = FlightDataEncoderBuilder::new()
            .with_schema(schema)
            .with_max_flight_data_size(MESSAGE_BYTES)
            .build(batches);
        // The last message is held back until the metrics are known: a reader that has enough with it reads no other.
        let mut held: Option<ExecuteReply> = None;
        while let Some(message) = messages.next().await {
            let message = message.map_err(encode_error)?;
            let reply = ExecuteReply {
                header: message.data_header,
                body: message.data_body,
                metrics: None,
            };
            if let Some(before) = held.replace(reply)
                && output.send(Ok(before)).await.is_err()
            {
                return Ok(());
            }
        }
        let totals = job.totals.now();
        let done = FragmentMetrics {
            rows: rows.load(std::sync::atomic::Ordering::Relaxed),
            elapsed_us: started.elapsed().as_micros() as u64,
            chunks: job.chunks as u64,
            chunks_skipped: (job.chunks as u64).saturating_sub(job.totals.chunks_opened()),
            segments: totals.segments,
            segments_skipped: totals.segments_skipped,
            blocks: totals.blocks,
            blocks_skipped: totals.blocks_skipped,
            bytes_read: totals.bytes_read,
            bytes_skipped: totals.bytes_skipped,
            plan: plan_lines(job.plan.as_ref()),
        };
        measures::fragment_done(started.elapsed(), done.rows, done.bytes_read);
        let last = ExecuteReply { metrics: Some(done), ..held.unwrap_or_default() };
        // A reader that left does not want it.
        let _ = output.send(Ok(last)).await;
        Ok(())
    }
}

fn out_of_time() -> RpcError {
    RpcError::new(Code::DeadlineExceeded, "the fragment did not end in time")
}

fn encode_error(error: arrow_flight::error::FlightError) -> RpcError {
    match error {
        arrow_flight::error::FlightError::Tonic(status) => RpcError::from(*status),
        other => RpcError::new(Code::Internal, other),
    }
}

/// Whether a column of a scan has few different texts. A chunk that cannot be asked is found damaged by the scan.
fn few_texts(store: &ChunkStore, leaf: &ScanLeaf, at: usize) -> bool {
    let chunks: Vec<ChunkId> = leaf.chunks.iter().map(|chunk| chunk.id).collect();
    let Some(column) = leaf.columns.get(at) else { return false };
    let name = leaf.stored.get(&column.name).unwrap_or(&column.name);
    store.distinct(&chunks, name).is_ok_and(|texts| texts <= GROUP_TEXTS_MAX)
}

#[tonic::async_trait]
impl Fragments for FragmentService {
    type ExecuteStream = Replies;

    async fn execute(
        &self,
        request: Request<ExecuteRequest>,
    ) -> Result<Response<Self::ExecuteStream>, Status> {
        let job = self.inner.accept(request.into_inner()).await?;
        let (output, replies) = mpsc::channel(MESSAGES_AHEAD);
        let Some(pool) = &self.inner.pool.0 else {
            return Err(RpcError::new(Code::Unavailable, "the data node is stopping").into());
        };
        let deadline = tokio::time::Instant::from_std(job.deadline);
        let task = pool.spawn(async move {
            let run = tokio::time::timeout_at(deadline, Inner::run(job, &output));
            if let Err(error) = run.await.unwrap_or_else(|_| Err(out_of_time())) {
                measures::fragment_failed();
                // A reader that left does not want it.
                let _ = output.send(Err(error.into())).await;
            }
        });
        Ok(Response::new(Replies { replies, task: task.abort_handle() }))
    }
}

/// The messages of a running fragment; dropping them ends it.
#[derive(Debug)]
pub struct Replies {
    replies: mpsc::Receiver<Result<ExecuteReply, Status>>,
    task: AbortHandle,
}

impl Stream for Replies {
    type Item = Result<ExecuteReply, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.replies.poll_recv(cx)
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        self.task.abort();
    }
}
