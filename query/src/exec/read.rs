//! Runs a scan on a data node: chunk after chunk, as little of each as the operators above have a use for.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    datatypes::SchemaRef,
};
use datafusion::{
    error::{DataFusionError, Result},
    execution::memory_pool::MemoryPool,
    physical_plan::metrics::Count,
};
use hypertide_proto::{
    error::RpcError,
    ids::{Csn, TxnId},
    predicate::Term,
};
use hypertide_storage::{ChunkStore, Scan, ScanRequest, ScanStats, Seen};
use tokio::sync::mpsc;

use super::{
    bind::Above,
    leaf::{LeafChunk, ScanLeaf},
    texts::Numbered,
};

/// What the scans of a fragment did, summed up while they run.
#[derive(Debug, Default)]
pub(crate) struct ScanTotals {
    chunks_opened: AtomicU64,
    segments: AtomicU64,
    segments_skipped: AtomicU64,
    blocks: AtomicU64,
    blocks_skipped: AtomicU64,
    bytes_read: AtomicU64,
    bytes_skipped: AtomicU64,
}

impl ScanTotals {
    /// Adds what a scan did since it had done `before`.
    fn add(&self, before: ScanStats, now: ScanStats) {
        let counts = [
            (&self.segments, now.segments - before.segments),
            (&self.segments_skipped, now.segments_skipped - before.segments_skipped),
            (&self.blocks, now.blocks - before.blocks),
            (&self.blocks_skipped, now.blocks_skipped - before.blocks_skipped),
            (&self.bytes_read, now.bytes_read - before.bytes_read),
            (&self.bytes_skipped, now.bytes_skipped - before.bytes_skipped),
        ];
        for (total, more) in counts {
            total.fetch_add(more, Ordering::Relaxed);
        }
    }

    /// The sums now; rows are not kept.
    pub(crate) fn now(&self) -> ScanStats {
        ScanStats {
            segments: self.segments.load(Ordering::Relaxed),
            segments_skipped: self.segments_skipped.load(Ordering::Relaxed),
            blocks: self.blocks.load(Ordering::Relaxed),
            blocks_skipped: self.blocks_skipped.load(Ordering::Relaxed),
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            bytes_skipped: self.bytes_skipped.load(Ordering::Relaxed),
            ..ScanStats::default()
        }
    }

    /// Chunks that were opened. The others of a fragment were skipped, whether or not a scan came to ask for them: the
    /// operator above may have enough rows before.
    pub(crate) fn chunks_opened(&self) -> u64 {
        self.chunks_opened.load(Ordering::Relaxed)
    }
}

/// What a data node adds to the scans of a fragment so that they can run.
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

/// What the partitions of one scan share.
#[derive(Debug)]
pub(crate) struct Bound {
    binding: Binding,
    /// Position of the next chunk that no partition took yet.
    next: AtomicUsize,
    /// Rows given out.
    given: AtomicU64,
    /// What operators above share with it.
    above: Above,
    /// The best row of each key.
    seen: Arc<Seen>,
}

impl Bound {
    pub(super) fn new(binding: Binding, above: Above) -> Self {
        let (next, given) = (AtomicUsize::new(0), AtomicU64::new(0));
        Self { binding, next, given, above, seen: Arc::default() }
    }
}

/// One partition of a running scan. Partitions take the chunks one by one in their order, so that all of them work until
/// the end.
#[derive(Debug)]
pub(super) struct Reader {
    leaf: ScanLeaf,
    bound: Arc<Bound>,
    partition: usize,
    /// The columns that come out.
    schema: SchemaRef,
    rows: Count,
    /// The chunk that is being read.
    scan: Option<Scan>,
    /// Ids of the texts that came last.
    numbered: Numbered,
    pool: Arc<dyn MemoryPool>,
}

impl Reader {
    pub(super) fn new(
        (leaf, bound): (ScanLeaf, Arc<Bound>),
        partition: usize,
        (schema, rows): (SchemaRef, Count),
        pool: &Arc<dyn MemoryPool>,
    ) -> Self {
        let (scan, numbered, pool) = (None, Numbered::default(), Arc::clone(pool));
        Self { leaf, bound, partition, schema, rows, scan, numbered, pool }
    }

    /// Whether what is of use depends on what was made of the rows before: then none is to be read ahead.
    pub(super) fn waits(&self) -> bool {
        self.bound.above.bar.is_some() && self.leaf.order.is_some()
    }

    /// Reads all and sends it, until nobody reads on.
    pub(super) fn send(mut self, output: &mpsc::Sender<Result<RecordBatch>>) -> Result<()> {
        while let Some(batch) = self.next_batch(&|| output.is_closed())? {
            if output.blocking_send(Ok(batch)).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// The next rows; `None` when there are no more, or `left` says that nobody wants them.
    pub(super) fn next_batch(&mut self, left: &dyn Fn() -> bool) -> Result<Option<RecordBatch>> {
        loop {
            let wanted = self.wanted();
            let Some(mut scan) = self.scan.take().filter(|_| wanted > 0) else {
                match self.next_chunk()? {
                    Some(chunk) => self.scan = Some(self.open(chunk)?),
                    None => return Ok(None),
                }
                continue;
            };
            if self.bound.above.bar.is_some() {
                scan.narrow(self.useful()?);
            }
            let before = scan.stats();
            let batch = scan.next();
            self.bound.binding.totals.add(before, scan.stats());
            let Some(batch) = batch else { continue };
            self.scan = Some(scan);
            let batch = batch.map_err(store_error)?;
            if batch.num_rows() == 0 {
                // So that a reader that left is noticed.
                if left() {
                    return Ok(None);
                }
                continue;
            }
            let rows = usize::try_from(wanted).unwrap_or(usize::MAX).min(batch.num_rows());
            self.bound.given.fetch_add(rows as u64, Ordering::Relaxed);
            self.rows.add(rows);
            return self.fit(batch.slice(0, rows)).map(Some);
        }
    }

    /// The next chunk that may hold rows of use.
    fn next_chunk(&self) -> Result<Option<LeafChunk>> {
        loop {
            let at = self.bound.next.fetch_add(1, Ordering::Relaxed);
            let Some(chunk) = self.leaf.chunks.get(at).copied() else { return Ok(None) };
            if self.wanted() > 0 && self.leaf.may_hold(chunk, &self.useful()?) {
                return Ok(Some(chunk));
            }
        }
    }

    /// The scan of a chunk, told all that is known to be of no use.
    fn open(&self, chunk: LeafChunk) -> Result<Scan> {
        let binding = &self.bound.binding;
        binding.totals.chunks_opened.fetch_add(1, Ordering::Relaxed);
        let request = ScanRequest {
            chunk: chunk.id,
            snapshot: binding.snapshot,
            own: binding.own,
            columns: self.leaf.read_schema(),
            predicate: self.leaf.predicate.clone(),
        };
        let scan = binding.store.scan(request).map_err(store_error)?;
        let mut scan = scan.knowing(self.leaf.tested_schema());
        if let Some(latest) = &self.leaf.latest {
            scan = scan.latest(latest.clone(), Arc::clone(&self.bound.seen));
        } else if let Some(order) = &self.leaf.order {
            scan = scan.ordered(&order.column, order.descending);
        } else if let (Some(asked), Some(answers)) = (&self.leaf.answer, &self.bound.above.answers)
        {
            answers.add(self.partition, scan.answer(asked));
        }
        binding.totals.add(ScanStats::default(), scan.stats());
        Ok(scan)
    }

    /// The batch with the columns that come out.
    fn fit(&mut self, batch: RecordBatch) -> Result<RecordBatch> {
        let schema = &self.schema;
        if schema.fields().is_empty() {
            let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
            return Ok(RecordBatch::try_new_with_options(
                Arc::clone(schema),
                Vec::new(),
                &options,
            )?);
        }
        let mut columns = batch.columns().to_vec();
        if let Some(ids) = &self.bound.above.ids {
            for at in &self.leaf.ids {
                if let Some(column) = columns.get_mut(*at) {
                    *column = ids.of(*at, column, &mut self.numbered, &self.pool)?;
                }
            }
        } else if batch.schema_ref() == schema {
            return Ok(batch);
        }
        Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
    }

    /// Rows that are still of use, as far as their number is known.
    fn wanted(&self) -> u64 {
        match self.leaf.limit {
            Some(limit) => limit.saturating_sub(self.bound.given.load(Ordering::Relaxed)),
            None => u64::MAX,
        }
    }

    /// What rows must pass to be of use to the sort above.
    fn useful(&self) -> Result<Vec<Term>> {
        match (&self.bound.above.bar, &self.leaf.order) {
            (Some(bar), Some(order)) => bar.terms(order),
            _ => Ok(Vec::new()),
        }
    }
}

fn store_error(error: hypertide_storage::Error) -> DataFusionError {
    DataFusionError::External(Box::new(RpcError::from(error)))
}
