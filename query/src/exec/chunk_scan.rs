//! The leaf of every plan: rows of chunks of one table.
//!
//! At the access node it is *planned*: it knows which chunks and which replicas. At a data node it is *bound* to the
//! chunk store, and only there does it run.

use std::{collections::BTreeMap, fmt, sync::Arc};

use datafusion::{
    common::{
        Statistics, internal_err, runtime::SpawnedTask, stats::Precision,
        tree_node::TreeNodeRecursion,
    },
    error::{DataFusionError, Result},
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{
        AcrossPartitions, ConstExpr, EquivalenceProperties, PhysicalExpr, expressions::Column,
    },
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
        ReplaceChildrenOptions,
        execution_plan::{Boundedness, EmissionType, SchedulingType},
        metrics::{ExecutionPlanMetricsSet, MetricBuilder, MetricsSet},
        statistics::StatisticsArgs,
        stream::{RecordBatchReceiverStreamBuilder, RecordBatchStreamAdapter},
    },
};
use futures::stream;
use hypertide_proto::ids::NodeId;

use super::{
    leaf::ScanLeaf,
    read::{Bound, Reader},
};
use crate::route::{Fragment, ScanChunk};

/// Batches that a scan may be ahead of its reader.
const BATCHES_AHEAD: usize = 8;

/// What the access node knows of a scan beside its leaf.
#[derive(Clone, Debug, Default)]
pub(crate) struct ScanPlan {
    /// Which node reads which chunks.
    pub(crate) fragments: Vec<Fragment>,
    /// Names of the data nodes.
    pub(crate) names: BTreeMap<NodeId, String>,
    /// How many chunks the filters excluded.
    pub(crate) excluded: usize,
    /// Rows that the chunks hold, as of the catalog.
    pub(crate) rows: u64,
    /// Whether operators above the scan may run where it does.
    pub(crate) pushdown: bool,
    /// Whether the scan may answer from zone maps and leave out rows that an operator above has no use for.
    pub(crate) summaries: bool,
}

/// Reads rows of chunks of one table.
#[derive(Clone, Debug)]
pub(crate) struct ChunkScanExec {
    leaf: ScanLeaf,
    plan: ScanPlan,
    bound: Option<Arc<Bound>>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

/// Columns that have one value in all rows that pass. Sorts are planned over filters that tell so, and rely on it when
/// the filter has gone into the scan.
fn equivalences_of(leaf: &ScanLeaf) -> EquivalenceProperties {
    let schema = leaf.schema();
    let constants: Vec<ConstExpr> = leaf
        .constants()
        .filter_map(|name| Some((name, schema.index_of(name).ok()?)))
        .map(|(name, at)| {
            let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(name, at));
            ConstExpr::new(column, AcrossPartitions::Uniform(None))
        })
        .collect();
    let mut equivalences = EquivalenceProperties::new(Arc::clone(&schema));
    match equivalences.add_constants(constants) {
        Ok(()) => equivalences,
        Err(_) => EquivalenceProperties::new(schema),
    }
}

impl ChunkScanExec {
    /// A scan as the access node plans it: one partition a data node.
    pub(crate) fn planned(leaf: ScanLeaf, plan: ScanPlan) -> Self {
        let nodes = plan.fragments.len();
        Self::new(leaf, plan, nodes)
    }

    /// A scan as it came over the wire.
    pub(crate) fn received(leaf: ScanLeaf, partitions: usize) -> Self {
        Self::new(leaf, ScanPlan::default(), partitions)
    }

    fn new(leaf: ScanLeaf, plan: ScanPlan, partitions: usize) -> Self {
        let properties = Self::properties_of(&leaf, partitions);
        let metrics = ExecutionPlanMetricsSet::new();
        Self { leaf, plan, bound: None, properties, metrics }
    }

    fn properties_of(leaf: &ScanLeaf, partitions: usize) -> Arc<PlanProperties> {
        let properties = PlanProperties::new(
            equivalences_of(leaf),
            Partitioning::UnknownPartitioning(partitions.max(1)),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        // Batches come through a channel, which yields to other tasks.
        Arc::new(properties.with_scheduling_type(SchedulingType::Cooperative))
    }

    /// The same scan with so many partitions.
    pub(crate) fn with_partitions(&self, partitions: usize) -> Self {
        Self::new(self.leaf.clone(), self.plan.clone(), partitions)
    }

    /// The same scan, of these chunks only.
    pub(crate) fn of_chunks(&self, chunks: &[ScanChunk]) -> Self {
        let leaf = self.leaf.of_chunks(chunks);
        Self::new(leaf, self.plan.clone(), self.properties.partitioning.partition_count())
    }

    /// The same scan, asked for something else.
    pub(crate) fn with_leaf(&self, leaf: ScanLeaf) -> Self {
        Self::new(leaf, self.plan.clone(), self.properties.partitioning.partition_count())
    }

    /// The same scan bound to a store, with at most `cores` partitions.
    pub(crate) fn bind(&self, bound: Bound, cores: usize) -> Self {
        let partitions = self.leaf.useful_partitions().clamp(1, cores.max(1));
        let bound = Some(Arc::new(bound));
        Self { bound, ..Self::new(self.leaf.clone(), self.plan.clone(), partitions) }
    }

    /// What travels.
    pub(crate) fn leaf(&self) -> &ScanLeaf {
        &self.leaf
    }

    /// What the access node knows of it.
    pub(crate) fn plan(&self) -> &ScanPlan {
        &self.plan
    }
}

impl DisplayAs for ChunkScanExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkScanExec: {}", self.leaf)?;
        if self.leaf.chunks.is_empty() {
            write!(f, ", chunks read=0 excluded={}", self.plan.excluded)?;
        }
        Ok(())
    }
}

impl ExecutionPlan for ChunkScanExec {
    fn name(&self) -> &'static str {
        "ChunkScanExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

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
        let schema = self.schema();
        let mut channel = RecordBatchReceiverStreamBuilder::new(Arc::clone(&schema), BATCHES_AHEAD);
        if self.leaf.chunks.is_empty() {
            return Ok(channel.build());
        }
        let Some(bound) = self.bound.clone() else {
            return internal_err!("a scan of chunks runs on data nodes only");
        };
        let rows = MetricBuilder::new(&self.metrics).output_rows(partition);
        let what = (self.leaf.in_store(), bound);
        let reader =
            Reader::new(what, partition, (Arc::clone(&schema), rows), context.memory_pool());
        if reader.waits() {
            let batches = stream::try_unfold(reader, |mut reader| async move {
                let read = SpawnedTask::spawn_blocking(move || {
                    let batch = reader.next_batch(&|| false)?;
                    Ok::<_, DataFusionError>(batch.map(|batch| (batch, reader)))
                });
                read.join()
                    .await
                    .map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))?
            });
            return Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)));
        }
        let output = channel.tx();
        channel.spawn_blocking(move || reader.send(&output));
        Ok(channel.build())
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn statistics_from_inputs(
        &self,
        _input_stats: &[Arc<Statistics>],
        _args: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(&self.schema());
        if self.bound.is_none() {
            // The catalog counts commits, not what this snapshot sees.
            statistics.num_rows = Precision::Inexact(self.plan.rows as usize);
        }
        Ok(Arc::new(statistics))
    }
}
