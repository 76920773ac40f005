//! Snapshot, predicate and projection over one chunk: an iterator of record batches.
//!
//! A scan fixes what it sees when it starts: the recent rows, and the list of segments. A flush or a merge meanwhile
//! changes neither. Segments and blocks that cannot hold a visible row that passes the predicate are left out; of the
//! others only the extents that hold wanted columns are read, when their turn comes. Recent rows are not pruned.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, new_null_array},
    compute::filter_record_batch,
    datatypes::{DataType, SchemaRef},
};
use bytes::Bytes;
use hypertide_proto::{
    ids::{ChunkId, Csn, TxnId},
    predicate::Predicate,
};

use crate::{
    Error,
    chunk::Rows,
    segment::{BLOCK_ROWS, Place, Segment},
    store::file::{ChunkFile, Segments, segment_error},
};

/// What a scan reads.
#[derive(Clone, Debug)]
pub struct ScanRequest {
    /// The chunk. One that the node never saw has no rows.
    pub chunk: ChunkId,
    /// Rows are visible when their commit number is at most this.
    pub snapshot: Csn,
    /// Pending rows of this transaction are visible too.
    pub own: Option<TxnId>,
    /// The columns wanted, by name, as the table has them now. A column that older rows lack is null there.
    pub columns: SchemaRef,
    /// What may be left out; rows that fail it may still come.
    pub predicate: Predicate,
}

/// What a scan did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanStats {
    /// Segments there were.
    pub segments: u64,
    /// Segments left out by their zone map.
    pub segments_skipped: u64,
    /// Blocks left out by their zone map.
    pub blocks_skipped: u64,
    /// Encoded bytes read.
    pub bytes_read: u64,
    /// Rows given out.
    pub rows: u64,
}

/// The file of a scanned chunk, and the segments that the scan sees.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) file: Arc<ChunkFile>,
    pub(crate) segments: Segments,
}

/// Told of the damage that a scan meets.
pub(crate) type OnDamage = Box<dyn Fn(&Error) + Send>;

/// A running scan: an iterator over batches of at most some thousand rows. Dropping it ends it.
pub struct Scan {
    request: ScanRequest,
    source: Option<Source>,
    /// Position of the next block: segment in the list, block in the segment.
    next: (usize, usize),
    /// Extents of the current segment that the last block used.
    extents: BTreeMap<usize, Bytes>,
    recent: std::vec::IntoIter<Arc<Rows>>,
    /// The recent rows that are being given out, and the next of their batches and rows.
    current: Option<(Arc<Rows>, usize, usize)>,
    stats: ScanStats,
    failed: bool,
    on_damage: OnDamage,
}

impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan").field("request", &self.request).field("stats", &self.stats).finish()
    }
}

impl Scan {
    pub(crate) fn new(
        request: ScanRequest,
        source: Option<Source>,
        recent: Vec<Arc<Rows>>,
        on_damage: OnDamage,
    ) -> Self {
        let segments = source.as_ref().map_or(0, |source| source.segments.len() as u64);
        Self {
            request,
            source,
            next: (0, 0),
            extents: BTreeMap::new(),
            recent: recent.into_iter(),
            current: None,
            stats: ScanStats { segments, ..ScanStats::default() },
            failed: false,
            on_damage,
        }
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> ScanStats {
        self.stats
    }

    fn advance(&mut self) -> Result<Option<RecordBatch>, Error> {
        while let Some((segment, block)) = self.next_block() {
            let batch = self.read_block(&segment, block)?;
            if batch.num_rows() > 0 {
                return Ok(Some(batch));
            }
        }
        self.next_recent()
    }

    /// The next block that may hold a row of interest.
    fn next_block(&mut self) -> Option<(Arc<Segment>, usize)> {
        let source = self.source.as_ref()?;
        let (predicate, snapshot) = (&self.request.predicate, self.request.snapshot);
        while let Some(segment) = source.segments.get(self.next.0) {
            if self.next.1 == 0 {
                self.extents.clear();
                let visible = segment.csn_range().0 <= snapshot;
                if !visible || !predicate.may_pass(|column| segment.zone(column)) {
                    self.stats.segments_skipped += 1;
                    self.next.0 += 1;
                    continue;
                }
            }
            while self.next.1 < segment.block_count() {
                let block = self.next.1;
                self.next.1 += 1;
                let visible = segment.block_csn_range(block).is_none_or(|(min, _)| min <= snapshot);
                if visible && predicate.may_pass(|column| segment.block_zone(block, column)) {
                    return Some((Arc::clone(segment), block));
                }
                self.stats.blocks_skipped += 1;
            }
            self.next = (self.next.0 + 1, 0);
        }
        self.extents.clear();
        None
    }

    fn read_block(&mut self, segment: &Segment, block: usize) -> Result<RecordBatch, Error> {
        let chunk = self.request.chunk;
        let range = segment.block_rows(block);
        let rows = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut used = Vec::new();
        let columns = Arc::clone(&self.request.columns);
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(columns.fields().len());
        for field in columns.fields() {
            let found = segment.schema().column_with_name(field.name());
            let Some((position, _)) = found else {
                arrays.push(new_null_array(field.data_type(), rows));
                continue;
            };
            let place = segment.place(block, position);
            let extent = self.extent(segment, place, &mut used)?;
            let array = segment.decode(block, position, &extent);
            arrays.push(array.map_err(|error| segment_error(chunk, error))?);
        }
        let visible = self.visible(segment, block, &mut used)?;
        self.extents.retain(|extent, _| used.contains(extent));
        let batch = assemble(chunk, &columns, arrays, rows)?;
        match visible {
            None => Ok(batch),
            Some(visible) => filter_record_batch(&batch, &visible)
                .map_err(|error| Error::Damaged { chunk, what: error.to_string() }),
        }
    }

    /// Which rows of a block are visible; `None` when all are.
    fn visible(
        &mut self,
        segment: &Segment,
        block: usize,
        used: &mut Vec<usize>,
    ) -> Result<Option<BooleanArray>, Error> {
        let snapshot = self.request.snapshot;
        if segment.block_csn_range(block).is_some_and(|(_, max)| max <= snapshot) {
            return Ok(None);
        }
        let extent = self.extent(segment, segment.csn_place(block), used)?;
        let csns = segment.decode_csns(block, &extent);
        let csns = csns.map_err(|error| segment_error(self.request.chunk, error))?;
        Ok(Some(csns.into_iter().map(|csn| Some(csn <= snapshot.0)).collect()))
    }

    fn extent(
        &mut self,
        segment: &Segment,
        place: Option<Place>,
        used: &mut Vec<usize>,
    ) -> Result<Bytes, Error> {
        let number = segment.key().segment;
        let place = place.ok_or_else(|| Error::Damaged {
            chunk: self.request.chunk,
            what: format!("segment {number} does not say where a block lies"),
        })?;
        used.push(place.extent);
        if let Some(bytes) = self.extents.get(&place.extent) {
            return Ok(bytes.clone());
        }
        let source = self.source.as_ref().expect("only a scan with a file reads extents");
        let bytes = source.file.extent(number, place.extent)?;
        self.stats.bytes_read += bytes.len() as u64;
        self.extents.insert(place.extent, bytes.clone());
        Ok(bytes)
    }

    fn next_recent(&mut self) -> Result<Option<RecordBatch>, Error> {
        loop {
            let Some((rows, batch, row)) = self.current.take() else {
                let Some(rows) = self.recent.next() else { return Ok(None) };
                self.current = Some((rows, 0, 0));
                continue;
            };
            let Some(whole) = rows.batches.get(batch) else { continue };
            let count = BLOCK_ROWS.min(whole.num_rows() - row);
            let slice = whole.slice(row, count);
            let end = row + count == whole.num_rows();
            self.current =
                Some(if end { (rows, batch + 1, 0) } else { (rows, batch, row + count) });
            if count > 0 {
                return project(self.request.chunk, &self.request.columns, &slice).map(Some);
            }
        }
    }
}

impl Iterator for Scan {
    type Item = Result<RecordBatch, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let advanced = self.advance();
        match &advanced {
            Ok(Some(batch)) => self.stats.rows += batch.num_rows() as u64,
            Ok(None) => {}
            Err(error) => {
                self.failed = true;
                if matches!(error, Error::Damaged { .. }) {
                    (self.on_damage)(error);
                }
            }
        }
        advanced.transpose()
    }
}

/// The wanted columns of a batch; null where it lacks one.
fn project(chunk: ChunkId, columns: &SchemaRef, batch: &RecordBatch) -> Result<RecordBatch, Error> {
    let rows = batch.num_rows();
    let arrays = columns.fields().iter().map(|field| {
        let found = batch.column_by_name(field.name()).map(Arc::clone);
        found.unwrap_or_else(|| new_null_array(field.data_type(), rows))
    });
    assemble(chunk, columns, arrays.collect(), rows)
}

/// A batch of exactly the schema asked for.
fn assemble(
    chunk: ChunkId,
    columns: &SchemaRef,
    arrays: Vec<ArrayRef>,
    rows: usize,
) -> Result<RecordBatch, Error> {
    for (field, array) in columns.fields().iter().zip(&arrays) {
        if array.data_type() != field.data_type() {
            let wrong: [&DataType; 2] = [array.data_type(), field.data_type()];
            let [stored, wanted] = wrong;
            let column = field.name();
            return Err(Error::Invalid(format!(
                "chunk {chunk} holds column \"{column}\" as {stored}, and {wanted} was asked for"
            )));
        }
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(columns), arrays, &options)
        .map_err(|error| Error::Invalid(format!("chunk {chunk}: {error}")))
}
