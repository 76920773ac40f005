//! The leaf of every plan: rows of chunks of one table.
//!
//! At the access node it is *planned*: it knows which chunks and which replicas. At a data node it is *bound* to the
//! chunk store, and only there does it run.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    datatypes::{Schema, SchemaRef},
};
use datafusion::{
    common::{Statistics, internal_err, stats::Precision, tree_node::TreeNodeRecursion},
    error::{DataFusionError, Result},
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{EquivalenceProperties, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
        ReplaceChildrenOptions,
        execution_plan::{Boundedness, EmissionType, SchedulingType},
        metrics::{ExecutionPlanMetricsSet, MetricBuilder, MetricsSet},
        statistics::StatisticsArgs,
        stream::RecordBatchReceiverStreamBuilder,
    },
};
use hypertide_meta::catalog::{Rule, Table, TableKind};
use hypertide_proto::{
    error::RpcError,
    ids::{ChunkId, Csn, NodeId, TableId, TxnId},
    predicate::{Predicate, Term},
    schema::Column,
};
use hypertide_storage::{ChunkStore, ScanRequest, ScanStats};
use serde::{Deserialize, Serialize};

use crate::route::{Fragment, ScanChunk};

/// Batches that a scan may be ahead of its reader.
const BATCHES_AHEAD: usize = 8;

/// What a scan reads: the part of it that travels to data nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ScanLeaf {
    /// The table.
    pub(crate) table: TableId,
    /// Its name, for people.
    pub(crate) name: String,
    /// Its space column, on which groups may be complete on one node.
    pub(crate) space: Option<String>,
    /// Columns to read, in order.
    pub(crate) columns: Vec<Column>,
    /// Columns of the table that chunk stores have under another name, with that.
    pub(crate) stored: BTreeMap<String, String>,
    /// Whether only the number of rows is wanted: the columns are read and then dropped.
    pub(crate) rows_only: bool,
    /// Rows that fail it may be left out.
    pub(crate) predicate: Predicate,
    /// The chunks.
    pub(crate) chunks: Vec<ChunkId>,
}

impl ScanLeaf {
    /// A scan of these columns (all without a projection) and, as yet, of no chunk.
    pub(crate) fn of(table: &Table, projection: Option<&[usize]>) -> Self {
        let all = &table.columns.columns;
        let mut columns: Vec<Column> = match projection {
            Some(wanted) => wanted.iter().filter_map(|at| all.get(*at)).cloned().collect(),
            None => all.clone(),
        };
        let rows_only = columns.is_empty();
        let (mut time, mut space) = (None, None);
        if let TableKind::Hypertable(hypertable) = &table.kind {
            for dimension in hypertable.dimensions.iter().rev() {
                let of_rule = match dimension.rule {
                    Rule::Time { .. } => &mut time,
                    Rule::Hash { .. } => &mut space,
                };
                *of_rule = Some(dimension.column.clone());
            }
        }
        if rows_only {
            let counted = time.as_deref().and_then(|time| table.columns.column(time));
            columns.extend(counted.or(all.first()).cloned());
        }
        let renamed = all.iter().filter(|column| column.stored.is_some());
        let stored = renamed.map(|column| (column.name.clone(), column.stored_name().to_owned()));
        Self {
            table: table.id,
            name: table.name.clone(),
            space,
            columns,
            stored: stored.collect(),
            rows_only,
            predicate: Predicate::default(),
            chunks: Vec::new(),
        }
    }

    /// The same scan in the names that chunk stores have columns under.
    fn in_store(&self) -> Self {
        if self.stored.is_empty() {
            return self.clone();
        }
        let name = |name: &String| self.stored.get(name).unwrap_or(name).clone();
        let column = |column: &Column| Column { name: name(&column.name), ..column.clone() };
        let term = |term: &Term| Term { column: name(&term.column), ..term.clone() };
        Self {
            columns: self.columns.iter().map(column).collect(),
            predicate: Predicate { terms: self.predicate.terms.iter().map(term).collect() },
            ..self.clone()
        }
    }

    /// The columns that the store is asked for.
    fn read_schema(&self) -> SchemaRef {
        Arc::new(Schema::new(self.columns.iter().map(Column::to_field).collect::<Vec<_>>()))
    }

    /// The columns that come out.
    fn schema(&self) -> SchemaRef {
        if self.rows_only { Arc::new(Schema::empty()) } else { self.read_schema() }
    }
}

/// What the scans of a fragment did, summed up while they run.
#[derive(Debug, Default)]
pub(crate) struct ScanTotals {
    segments: AtomicU64,
    segments_skipped: AtomicU64,
    blocks_skipped: AtomicU64,
    bytes_read: AtomicU64,
}

impl ScanTotals {
    fn add(&self, stats: ScanStats) {
        self.segments.fetch_add(stats.segments, Ordering::Relaxed);
        self.segments_skipped.fetch_add(stats.segments_skipped, Ordering::Relaxed);
        self.blocks_skipped.fetch_add(stats.blocks_skipped, Ordering::Relaxed);
        self.bytes_read.fetch_add(stats.bytes_read, Ordering::Relaxed);
    }

    /// The sums now; `rows` is not kept.
    pub(crate) fn now(&self) -> ScanStats {
        ScanStats {
            segments: self.segments.load(Ordering::Relaxed),
            segments_skipped: self.segments_skipped.load(Ordering::Relaxed),
            blocks_skipped: self.blocks_skipped.load(Ordering::Relaxed),
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            ..ScanStats::default()
        }
    }
}

/// What a data node adds to a scan so that it can run.
#[derive(Clone, Debug)]
pub(crate) struct Binding {
    /// The chunk store.
    pub(crate) store: Arc<ChunkStore>,
    /// Rows are visible when their commit number is at most this.
    pub(crate) snapshot: Csn,
    /// Pending rows of this transaction are visible too.
    pub(crate) own: Option<TxnId>,
    /// Where to count what was read.
    pub(crate) totals: Arc<ScanTotals>,
}

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
}

/// Reads rows of chunks of one table.
#[derive(Clone, Debug)]
pub(crate) struct ChunkScanExec {
    leaf: ScanLeaf,
    plan: ScanPlan,
    bound: Option<Binding>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
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
            EquivalenceProperties::new(leaf.schema()),
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
        let leaf =
            ScanLeaf { chunks: chunks.iter().map(|chunk| chunk.id).collect(), ..self.leaf.clone() };
        Self::new(leaf, self.plan.clone(), self.properties.partitioning.partition_count())
    }

    /// The same scan bound to a store, with at most `cores` partitions.
    pub(crate) fn bind(&self, binding: Binding, cores: usize) -> Self {
        let partitions = self.leaf.chunks.len().clamp(1, cores.max(1));
        let bound = Some(binding);
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
        let columns: Vec<&str> = if self.leaf.rows_only {
            Vec::new()
        } else {
            self.leaf.columns.iter().map(|column| column.name.as_str()).collect()
        };
        write!(f, "ChunkScanExec: table={}, columns=[{}]", self.leaf.name, columns.join(", "))?;
        if !self.leaf.predicate.terms.is_empty() {
            write!(f, ", prune={}", self.leaf.predicate)?;
        }
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
        _context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let schema = self.schema();
        let mut stream = RecordBatchReceiverStreamBuilder::new(Arc::clone(&schema), BATCHES_AHEAD);
        if self.leaf.chunks.is_empty() {
            return Ok(stream.build());
        }
        let Some(binding) = self.bound.clone() else {
            return internal_err!("a scan of chunks runs on data nodes only");
        };
        // Chunks are dealt out in turn, so that neighbours in time are read at the same time.
        let partitions = self.properties.partitioning.partition_count();
        let dealt = self.leaf.chunks.iter().copied().skip(partition).step_by(partitions);
        let leaf = self.leaf.in_store();
        let requests = dealt.map(|chunk| ScanRequest {
            chunk,
            snapshot: binding.snapshot,
            own: binding.own,
            columns: leaf.read_schema(),
            predicate: leaf.predicate.clone(),
        });
        let requests: Vec<ScanRequest> = requests.collect();
        let rows = MetricBuilder::new(&self.metrics).output_rows(partition);
        let output = stream.tx();
        stream.spawn_blocking(move || {
            for request in requests {
                let mut scan = binding.store.scan(request).map_err(store_error)?;
                for batch in scan.by_ref() {
                    let batch = fit(batch.map_err(store_error)?, &schema)?;
                    rows.add(batch.num_rows());
                    if output.blocking_send(Ok(batch)).is_err() {
                        // Nobody reads any more.
                        return Ok(());
                    }
                }
                binding.totals.add(scan.stats());
            }
            Ok(())
        });
        Ok(stream.build())
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

/// The batch with the columns that come out.
fn fit(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    if schema.fields().is_empty() {
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        return Ok(RecordBatch::try_new_with_options(Arc::clone(schema), Vec::new(), &options)?);
    }
    if batch.schema_ref() == schema {
        return Ok(batch);
    }
    Ok(RecordBatch::try_new(Arc::clone(schema), batch.columns().to_vec())?)
}

fn store_error(error: hypertide_storage::Error) -> DataFusionError {
    DataFusionError::External(Box::new(RpcError::from(error)))
}
