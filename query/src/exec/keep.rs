//! How much of a node's answer is kept back before rows of it are passed on.
//!
//! As long as none was passed on, another replica can give all of them instead. Rows of scans are told apart (`passed.rs`),
//! so that of them only the beginning is kept back. What a node has made of many rows, such as groups or the first rows of
//! an order, may be another's in other pieces: it is kept until the answer is whole, what is large in a file.

use std::sync::Arc;

use arrow::{
    array::{Array as _, ArrayRef, RecordBatch},
    datatypes::SchemaRef,
};
use datafusion::{
    error::Result,
    execution::{
        TaskContext,
        memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation},
    },
    physical_plan::{
        metrics::{ExecutionPlanMetricsSet, SpillMetrics},
        spill::SpillManager,
    },
};
use futures::{StreamExt, stream, stream::BoxStream};
use hypertide_proto::error::RpcError;

use super::retry::rpc_error;

/// Rows of one node, as they come.
pub(super) type Rows = BoxStream<'static, Result<RecordBatch, RpcError>>;

/// Rows of scans that are kept back, in bytes. Most answers are far smaller.
const BEGINNING_BYTES: usize = 4 << 20;
/// Rows that are kept back in memory, in bytes; more of them go to a file.
const MEMORY_BYTES: usize = 64 << 20;

/// How much is kept back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// The first megabytes.
    Beginning,
    /// All.
    Whole,
}

/// An answer of which nothing was passed on yet.
pub(super) struct Kept {
    /// What was kept back.
    pub(super) rows: Rows,
    /// The rest, if it has not come yet.
    pub(super) rest: Option<Rows>,
}

/// Keeps back the rows of one node.
#[derive(Debug)]
pub(super) struct Keeper {
    keep: Keep,
    rows: Vec<RecordBatch>,
    bytes: usize,
    pool: Arc<dyn MemoryPool>,
    files: SpillManager,
}

impl Keeper {
    pub(super) fn new(
        keep: Keep,
        schema: &SchemaRef,
        context: &TaskContext,
        (metrics, partition): (&ExecutionPlanMetricsSet, usize),
    ) -> Self {
        let pool = Arc::clone(context.memory_pool());
        let metrics = SpillMetrics::new(metrics, partition);
        let files = SpillManager::new(context.runtime_env(), metrics, Arc::clone(schema));
        Self { keep, rows: Vec::new(), bytes: 0, pool, files }
    }

    /// Waits for the rows, or for as many of them as are kept back.
    pub(super) async fn gather(mut self, mut rows: Rows) -> Result<Kept, RpcError> {
        while self.bytes < BEGINNING_BYTES {
            let Some(batch) = rows.next().await.transpose()? else {
                return Ok(Kept { rows: in_memory(self.rows, None), rest: None });
            };
            self.bytes += batch_bytes(&batch);
            self.rows.push(batch);
        }
        match self.keep {
            Keep::Beginning => Ok(Kept { rows: in_memory(self.rows, None), rest: Some(rows) }),
            Keep::Whole => Ok(Kept { rows: self.whole(rows).await?, rest: None }),
        }
    }

    /// Waits for all rows. From here on they count as memory: who takes a part of what all share leaves less to others.
    async fn whole(mut self, mut rest: Rows) -> Result<Rows, RpcError> {
        let consumer = MemoryConsumer::new("rows kept back").with_can_spill(true);
        let memory = consumer.register(&self.pool);
        let mut more = self.bytes;
        while self.bytes < MEMORY_BYTES && memory.try_grow(more).is_ok() {
            let Some(batch) = rest.next().await.transpose()? else {
                return Ok(in_memory(self.rows, Some(memory)));
            };
            more = batch_bytes(&batch);
            self.bytes += more;
            self.rows.push(batch);
        }
        drop(memory);
        let kept = stream::iter(std::mem::take(&mut self.rows)).map(Ok);
        self.through_file(kept.chain(rest).boxed()).await
    }

    /// Writes rows to a file until all have come, and reads them from there.
    async fn through_file(self, mut rows: Rows) -> Result<Rows, RpcError> {
        let failed = |error| rpc_error(&error);
        let mut file = self.files.create_in_progress_file("rows kept back").map_err(failed)?;
        while let Some(batch) = rows.next().await.transpose()? {
            file.append_batch(&batch).map_err(failed)?;
        }
        let Some(file) = file.finish().map_err(failed)? else {
            return Ok(stream::empty().boxed());
        };
        let rows = self.files.read_spill_as_stream(file, None).map_err(failed)?;
        Ok(rows.map(|batch| batch.map_err(|error| rpc_error(&error))).boxed())
    }
}

/// Rows that were kept back. What is counted as memory for them is given back as they are passed on.
fn in_memory(rows: Vec<RecordBatch>, memory: Option<MemoryReservation>) -> Rows {
    let rows = stream::iter(rows).map(move |batch| {
        if let Some(memory) = &memory {
            memory.shrink(batch_bytes(&batch).min(memory.size()));
        }
        Ok(batch)
    });
    rows.boxed()
}

/// What a batch takes; several share the memory of the message that they came in.
fn batch_bytes(batch: &RecordBatch) -> usize {
    let bytes = |column: &ArrayRef| column.to_data().get_slice_memory_size().unwrap_or(0);
    batch.columns().iter().map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{AsArray, Int64Array},
        datatypes::Int64Type,
    };
    use datafusion::execution::{memory_pool::GreedyMemoryPool, runtime_env::RuntimeEnvBuilder};
    use futures::TryStreamExt;

    use super::*;

    const ROWS: i64 = 1000;

    /// So many batches of a thousand numbers, the last of them in the end or an error.
    fn batches(count: i64, end: Option<RpcError>) -> (SchemaRef, Rows) {
        let batch = |number: i64| {
            let values: ArrayRef =
                Arc::new(Int64Array::from_iter_values(number * ROWS..(number + 1) * ROWS));
            RecordBatch::try_from_iter([("n", values)]).expect("one column")
        };
        let rows = (0..count).map(move |number| Ok(batch(number)));
        (batch(0).schema(), stream::iter(rows.chain(end.map(Err))).boxed())
    }

    /// A keeper with so much memory.
    fn keeper(keep: Keep, schema: &SchemaRef, memory: usize) -> (Keeper, ExecutionPlanMetricsSet) {
        let pool = Arc::new(GreedyMemoryPool::new(memory));
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc();
        let context = TaskContext::default().with_runtime(runtime.expect("an environment"));
        let metrics = ExecutionPlanMetricsSet::new();
        (Keeper::new(keep, schema, &context, (&metrics, 0)), metrics)
    }

    async fn numbers(rows: Rows) -> Vec<i64> {
        let batches: Vec<RecordBatch> = rows.try_collect().await.expect("no error");
        let column =
            |batch: &RecordBatch| batch.column(0).as_primitive::<Int64Type>().values().to_vec();
        batches.iter().flat_map(column).collect()
    }

    #[tokio::test]
    async fn what_has_no_room_in_memory_goes_through_a_file() {
        for (memory, through_file) in [(5 << 20, true), (100 << 20, false)] {
            let (schema, rows) = batches(1000, None);
            let (keeper, metrics) = keeper(Keep::Whole, &schema, memory);
            let kept = keeper.gather(rows).await.expect("no error");
            assert!(kept.rest.is_none());
            assert_eq!(numbers(kept.rows).await, (0..1000 * ROWS).collect::<Vec<_>>());
            let spilled = metrics.clone_inner().spilled_rows();
            assert_eq!(spilled, Some(if through_file { 1000 * ROWS as usize } else { 0 }));
        }
    }

    #[tokio::test]
    async fn an_error_in_the_middle_leaves_nothing_passed_on() {
        for memory in [5 << 20, 100 << 20] {
            let error = RpcError::new(hypertide_proto::error::Code::Unavailable, "it broke");
            let (schema, rows) = batches(1000, Some(error.clone()));
            let (keeper, _) = keeper(Keep::Whole, &schema, memory);
            assert_eq!(keeper.gather(rows).await.err(), Some(error));
        }
    }

    #[tokio::test]
    async fn of_a_scan_only_the_beginning_is_kept_back() {
        let (schema, rows) = batches(1000, None);
        let (keeper, metrics) = keeper(Keep::Beginning, &schema, 100 << 20);
        let kept = keeper.gather(rows).await.expect("no error");
        let beginning = numbers(kept.rows).await;
        assert!(beginning.len() * 8 < 2 * BEGINNING_BYTES, "{} rows", beginning.len());
        let rest = numbers(kept.rest.expect("there is more")).await;
        let all: Vec<i64> = beginning.into_iter().chain(rest).collect();
        assert_eq!(all, (0..1000 * ROWS).collect::<Vec<_>>());
        assert_eq!(metrics.clone_inner().spilled_rows(), Some(0));
    }
}
