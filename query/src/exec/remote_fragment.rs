//! Runs a fragment of a plan on the data nodes that hold its chunks: one partition a node.
//!
//! The fragment is the same for all nodes but for the chunks of its leaf. A node that fails before rows of its were
//! passed on is replaced: its chunks are routed to other replicas at the same snapshot, and the reader sees nothing. One
//! that is slow or silent gets a rival there (`hedge.rs`). The first megabytes are kept back for that (`send.rs`); after
//! them a failure ends the statement, because rows passed on cannot be taken back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::pending,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use datafusion::{
    common::{
        DataFusionError, Statistics, internal_datafusion_err,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::PhysicalExpr,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning,
        PlanProperties, ReplaceChildrenOptions,
        coalesce_partitions::CoalescePartitionsExec,
        execution_plan::{Boundedness, EmissionType, SchedulingType},
        metrics::{ExecutionPlanMetricsSet, MetricBuilder, MetricsSet},
        sorts::sort_preserving_merge::SortPreservingMergeExec,
        statistics::StatisticsArgs,
        stream::RecordBatchStreamAdapter,
    },
};
use datafusion_proto::bytes::physical_plan_to_bytes_with_extension_codec;
use futures::{StreamExt, TryStreamExt, stream};
use hypertide_proto::{
    error::{Code, RpcError},
    ids::NodeId,
};

use super::{
    ChunkScanExec, FragmentCodec, ScanPlan,
    hedge::{Slow, slow},
    retry::{other_node_may_do, sql_error},
    send::{NodeReport, Opened, send},
};
use crate::{
    context::Statement,
    route::{Fragment, ScanChunk, buckets_apart, route},
};

/// How far the chunks of a fragment may be spread over nodes without changing its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Spread {
    /// Any node may read any chunk.
    Any,
    /// All chunks of a bucket must be read by one node: groups are complete there.
    Buckets,
    /// All chunks must be read by one node.
    OneNode,
}

impl Spread {
    fn allows(self, fragments: &[Fragment]) -> bool {
        match self {
            Self::Any => true,
            Self::Buckets => fragments.len() <= 1 || buckets_apart(fragments),
            Self::OneNode => fragments.len() <= 1,
        }
    }
}

/// What became of the fragments of a plan, in the order of the fragments; for EXPLAIN ANALYZE.
pub(crate) type Reports = Arc<Mutex<BTreeMap<usize, NodeReport>>>;

/// Runs a fragment on data nodes.
#[derive(Clone, Debug)]
pub(crate) struct RemoteFragmentExec {
    inner: Arc<dyn ExecutionPlan>,
    fragments: Vec<Fragment>,
    names: BTreeMap<NodeId, String>,
    excluded: usize,
    pushdown: bool,
    summaries: bool,
    spread: Spread,
    failed: BTreeSet<NodeId>,
    reports: Reports,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl RemoteFragmentExec {
    /// The bare scan, to be read as the fragments say.
    pub(crate) fn scan(scan: &ChunkScanExec) -> Self {
        let ScanPlan { fragments, names, excluded, pushdown, summaries, .. } = scan.plan().clone();
        // A data node reads with all its cores: a fragment is planned for several partitions.
        let inner: Arc<dyn ExecutionPlan> = Arc::new(scan.with_partitions(2));
        let properties = properties_of(&inner, fragments.len());
        Self {
            inner,
            fragments,
            names,
            excluded,
            pushdown,
            summaries,
            spread: Spread::Any,
            failed: BTreeSet::new(),
            reports: Reports::default(),
            properties,
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }

    /// The same chunks under a larger fragment.
    pub(crate) fn with_inner(&self, inner: Arc<dyn ExecutionPlan>, spread: Spread) -> Self {
        let properties = properties_of(&inner, self.fragments.len());
        let spread = self.spread.max(spread);
        Self { inner, spread, properties, ..self.clone() }
    }

    /// Whether it may be enlarged.
    pub(crate) fn grows(&self) -> bool {
        self.pushdown
    }

    /// Whether its scan may answer from zone maps and leave out what operators above have no use for.
    pub(crate) fn summaries(&self) -> bool {
        self.summaries
    }

    /// The fragment.
    pub(crate) fn inner(&self) -> &Arc<dyn ExecutionPlan> {
        &self.inner
    }

    /// Which node reads which chunks.
    pub(crate) fn fragments(&self) -> &[Fragment] {
        &self.fragments
    }

    /// Name of the node of a fragment.
    pub(crate) fn node_name(&self, node: NodeId) -> &str {
        self.names.get(&node).map_or("?", String::as_str)
    }

    /// What the node of this fragment did, when it ran.
    pub(crate) fn report(&self, partition: usize) -> Option<NodeReport> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).get(&partition).cloned()
    }

    /// The plan for one node, as it travels.
    fn encode(&self, fragment: &Fragment) -> Result<bytes::Bytes> {
        let plan = Arc::clone(&self.inner).transform_up(|node| {
            Ok(match node.downcast_ref::<ChunkScanExec>() {
                Some(scan) => Transformed::yes(Arc::new(scan.of_chunks(&fragment.chunks)) as _),
                None => Transformed::no(node),
            })
        })?;
        physical_plan_to_bytes_with_extension_codec(plan.data, &FragmentCodec)
    }

    /// The fragment of a node on the other replicas of its chunks, as one partition.
    fn elsewhere(&self, failed: &Fragment) -> Option<Arc<dyn ExecutionPlan>> {
        let mut except = self.failed.clone();
        except.insert(failed.node);
        let fragments = route(&failed.chunks, &except).ok()?;
        if !self.spread.allows(&fragments) {
            return None;
        }
        let properties = properties_of(&self.inner, fragments.len());
        let rerouted = Self {
            fragments,
            failed: except,
            reports: Reports::default(),
            properties,
            metrics: ExecutionPlanMetricsSet::new(),
            ..self.clone()
        };
        let ordering = rerouted.properties.output_ordering().cloned();
        let rerouted: Arc<dyn ExecutionPlan> = Arc::new(rerouted);
        Some(match ordering {
            Some(ordering) => Arc::new(SortPreservingMergeExec::new(ordering, rerouted)),
            None => Arc::new(CoalescePartitionsExec::new(rerouted)),
        })
    }

    /// Sends the fragment, and elsewhere, too, when its node fails or is slow before rows of its were passed on.
    async fn run(
        self: Arc<Self>,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let fragment = self
            .fragments
            .get(partition)
            .ok_or_else(|| internal_datafusion_err!("there is no fragment {partition}"))?;
        let statement = Statement::of(context.session_config())?;
        let plan = self.encode(fragment)?;
        let place = Place { reports: Arc::clone(&self.reports), partition };
        let began = Instant::now();
        let mut opening = pin!(send(&statement, fragment, plan, place));
        let may_race =
            statement.hedged && fragment.chunks.iter().all(|chunk| chunk.replicas.len() > 1);
        let slow = async {
            if may_race { slow(&statement, fragment.node).await } else { pending().await }
        };
        let slow = tokio::select! {
            biased;
            opened = &mut opening => {
                statement.pace.answered(began.elapsed());
                return self.passed_on(partition, opened, &context);
            }
            slow = slow => slow,
        };
        if slow == Slow::Silent {
            self.avoid(&statement, fragment.node, &"it does not answer");
        }
        let Some(other) = self.elsewhere(fragment) else {
            return self.passed_on(partition, opening.await, &context);
        };
        tracing::debug!(node = self.node_name(fragment.node), ?slow, "fragment is sent twice");
        let mut rival = pin!(first_of(other, Arc::clone(&context)));
        tokio::select! {
            biased;
            opened = &mut opening => match opened {
                Err(error) if other_node_may_do(&error) => {
                    self.note_failure(&statement, fragment.node, &error);
                    rival.await
                }
                opened => self.passed_on(partition, opened, &context),
            },
            rows = &mut rival => match rows {
                Ok(rows) => Ok(rows),
                // It fared no better there: what the node itself says stands.
                Err(_) => self.passed_on(partition, opening.await, &context),
            },
        }
    }

    /// The rows of a node, or those of other replicas when it failed and they may do better.
    fn passed_on(
        &self,
        partition: usize,
        opened: std::result::Result<Opened, RpcError>,
        context: &Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let Some(fragment) = self.fragments.get(partition) else {
            return Err(internal_datafusion_err!("there is no fragment {partition}"));
        };
        let name = self.node_name(fragment.node).to_owned();
        match opened {
            Ok(Opened { rows }) => {
                let output = MetricBuilder::new(&self.metrics).output_rows(partition);
                let rows = rows.map(move |batch| match batch {
                    Ok(batch) => {
                        output.add(batch.num_rows());
                        Ok(batch)
                    }
                    Err(error) => Err(sql_error(&name, error)),
                });
                Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
            }
            Err(error) if other_node_may_do(&error) => {
                let statement = Statement::of(context.session_config())?;
                self.note_failure(&statement, fragment.node, &error);
                match self.elsewhere(fragment) {
                    Some(plan) => plan.execute(0, Arc::clone(context)),
                    None => Err(sql_error(&name, error)),
                }
            }
            Err(error) => Err(sql_error(&name, error)),
        }
    }

    /// What the failure of a node says about it to other statements.
    fn note_failure(&self, statement: &Statement, node: NodeId, error: &RpcError) {
        // Others read at other snapshots.
        if !matches!(error.code, Code::SnapshotTooOld | Code::Stale) {
            self.avoid(statement, node, error);
        }
    }

    /// Lets statements avoid a node for a while, and says so when that is new.
    fn avoid(&self, statement: &Statement, node: NodeId, why: &dyn fmt::Display) {
        if statement.suspects.add(node) {
            tracing::info!("reads avoid data node {}: {why}", self.node_name(node));
        }
    }
}

/// The rows of a plan of one partition, once the first have come.
async fn first_of(
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
) -> Result<SendableRecordBatchStream> {
    let mut rows = plan.execute(0, context)?;
    let first = rows.next().await.transpose()?;
    let schema = rows.schema();
    let rest = first.is_some().then_some(rows);
    let rows = stream::iter(first.map(Ok)).chain(stream::iter(rest).flatten());
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
}

/// Where the report of a fragment goes.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    reports: Reports,
    partition: usize,
}

impl Place {
    /// Keeps what is known of the fragment now.
    pub(crate) fn put(&self, report: NodeReport) {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.insert(self.partition, report);
    }
}

/// Each node's rows come in the order that the fragment's root has, if it has but one partition.
fn properties_of(inner: &Arc<dyn ExecutionPlan>, nodes: usize) -> Arc<PlanProperties> {
    let mut equivalences = inner.equivalence_properties().clone();
    // What is constant on one node may be another constant on the next.
    equivalences.clear_per_partition_constants();
    if inner.output_partitioning().partition_count() > 1 {
        equivalences.clear_orderings();
    }
    let properties = PlanProperties::new(
        equivalences,
        Partitioning::UnknownPartitioning(nodes.max(1)),
        EmissionType::Incremental,
        Boundedness::Bounded,
    );
    Arc::new(properties.with_scheduling_type(SchedulingType::Cooperative))
}

/// Chunks of all fragments.
pub(crate) fn chunks_read(fragments: &[Fragment]) -> impl Iterator<Item = &ScanChunk> {
    fragments.iter().flat_map(|fragment| &fragment.chunks)
}

impl DisplayAs for RemoteFragmentExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read = chunks_read(&self.fragments).count();
        let nodes: Vec<&str> =
            self.fragments.iter().map(|fragment| self.node_name(fragment.node)).collect();
        write!(f, "RemoteFragmentExec: nodes=[{}], ", nodes.join(", "))?;
        write!(f, "chunks read={read} excluded={}", self.excluded)
    }
}

impl ExecutionPlan for RemoteFragmentExec {
    fn name(&self) -> &'static str {
        "RemoteFragmentExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    /// None: the fragment is not run here.
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let run = Arc::new(self.clone()).run(partition, context);
        let rows = stream::once(run).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn statistics_from_inputs(
        &self,
        _input_stats: &[Arc<Statistics>],
        _args: &StatisticsArgs,
    ) -> Result<Arc<Statistics>, DataFusionError> {
        Ok(Arc::new(Statistics::new_unknown(&self.schema())))
    }
}
