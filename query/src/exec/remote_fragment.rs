//! Runs a fragment of a plan on the data nodes that hold its chunks: one partition a node.
//!
//! The fragment is the same for all nodes but for the chunks of its leaf. How it runs, and what happens when a node
//! fails, is in `run.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use datafusion::{
    common::{DataFusionError, Statistics, tree_node::TreeNodeRecursion},
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::PhysicalExpr,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning,
        PlanProperties, ReplaceChildrenOptions,
        coalesce_partitions::CoalescePartitionsExec,
        execution_plan::{Boundedness, EmissionType, SchedulingType},
        metrics::{ExecutionPlanMetricsSet, MetricsSet},
        sorts::sort_preserving_merge::SortPreservingMergeExec,
        statistics::StatisticsArgs,
    },
};
use hypertide_proto::ids::NodeId;

use super::{ChunkScanExec, ScanPlan, hedge::Slow, run::Reports, send::NodeReport};
use crate::route::{Fragment, ScanChunk, buckets_apart, route};

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
    /// Nodes that are not asked again.
    failed: BTreeSet<NodeId>,
    /// Whether it runs beside a node that is late: it gets no such rival itself.
    rival: bool,
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
            rival: false,
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
        self.reports.of(partition)
    }

    /// Where reports go.
    pub(super) fn reports(&self) -> &Reports {
        &self.reports
    }

    /// What is measured.
    pub(super) fn metric_set(&self) -> &ExecutionPlanMetricsSet {
        &self.metrics
    }

    /// Whether it runs beside a node that is late.
    pub(super) fn rival(&self) -> bool {
        self.rival
    }

    /// The fragment of a node on the other replicas of its chunks, as one partition. A node that is only late is asked
    /// again when one of these fails.
    pub(super) fn elsewhere(
        &self,
        fragment: &Fragment,
        why: Slow,
    ) -> Option<Arc<dyn ExecutionPlan>> {
        let mut except = self.failed.clone();
        except.insert(fragment.node);
        let fragments = route(&fragment.chunks, &except).ok()?;
        if !self.spread.allows(&fragments) {
            return None;
        }
        let properties = properties_of(&self.inner, fragments.len());
        let late = why == Slow::Late;
        let rerouted = Self {
            fragments,
            failed: if late { self.failed.clone() } else { except },
            rival: self.rival || late,
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
        Arc::new(self.clone()).run(partition, context)
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
