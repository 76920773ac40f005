//! Reads the rows of a block that are wanted: the columns of the predicate first, the others only where rows are left.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, BooleanArray, Int32Array, RecordBatch, RecordBatchOptions, StringArray,
        new_null_array,
    },
    buffer::BooleanBuffer,
    compute::{self, FilterBuilder},
    datatypes::{DataType, Field, SchemaRef},
};
use bytes::Bytes;
use hypertide_proto::{
    ids::{ChunkId, Csn},
    predicate::{Predicate, Term},
};

use super::{OLDER_ROWS_KEY, ScanRequest, ScanStats, Source, latest::Runs};
use crate::{
    Error, batch, exact,
    segment::{self, Segment},
    store::file::{ChunkFile, segment_error},
    tombstone::Deletes,
};

/// Most bytes of extents that stay from one block to the next. A table of many columns reads some again.
const KEPT_BYTES_MAX: usize = 32 << 20;

/// A block, and which of its rows are of the series asked for.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) segment: Arc<Segment>,
    pub(super) block: usize,
    pub(super) series: Series,
}

/// Rows of a block by their series.
#[derive(Clone, Debug)]
pub(super) enum Series {
    /// No series was asked for.
    All,
    /// These ranges, in order.
    Some(Vec<Range<usize>>),
}

impl Series {
    pub(super) const fn is_empty(&self) -> bool {
        matches!(self, Self::Some(ranges) if ranges.is_empty())
    }
}

/// Which rows of a batch are left.
#[derive(Debug)]
struct Selection {
    rows: usize,
    /// `None` for all.
    mask: Option<BooleanBuffer>,
}

impl Selection {
    const fn all(rows: usize) -> Self {
        Self { rows, mask: None }
    }

    fn and(&mut self, mask: &BooleanBuffer) {
        let joined = match self.mask.take() {
            Some(before) => &before & mask,
            None => mask.clone(),
        };
        // A mask that holds nothing back is only work.
        self.mask = (joined.count_set_bits() < self.rows).then_some(joined);
    }

    /// A bit a row: whether it is left.
    fn bits(&self) -> BooleanBuffer {
        self.mask.clone().unwrap_or_else(|| BooleanBuffer::new_set(self.rows))
    }

    fn count(&self) -> usize {
        self.mask.as_ref().map_or(self.rows, BooleanBuffer::count_set_bits)
    }

    /// The rows left of these columns. Neighbours are a slice, which copies nothing.
    fn apply(&self, arrays: Vec<ArrayRef>) -> Result<Vec<ArrayRef>, Error> {
        let Some(mask) = &self.mask else { return Ok(arrays) };
        let mut slices = mask.set_slices();
        if let (Some((start, end)), None) = (slices.next(), slices.next()) {
            return Ok(arrays.iter().map(|array| array.slice(start, end - start)).collect());
        }
        let mask = BooleanArray::new(mask.clone(), None);
        let mut builder = FilterBuilder::new(&mask);
        if arrays.len() > 1 {
            builder = builder.optimize();
        }
        let filter = builder.build();
        let filtered = arrays.iter().map(|array| filter.filter(array)).collect::<Result<_, _>>();
        filtered.map_err(|error| Error::Invalid(format!("leave out rows: {error}")))
    }
}

/// Reads blocks of one chunk.
#[derive(Debug)]
pub(super) struct Blocks {
    chunk: ChunkId,
    snapshot: Csn,
    columns: SchemaRef,
    predicate: Predicate,
    /// Columns of the predicate that a segment may lack.
    known: Option<SchemaRef>,
    file: Option<Arc<ChunkFile>>,
    /// Deletes whose rows may still be in the file.
    deletes: Deletes,
    /// Extents that the last block used, by segment and number.
    extents: BTreeMap<(u64, usize), Bytes>,
    kept_bytes: usize,
}

impl Blocks {
    pub(super) fn new(request: &ScanRequest, source: Option<Source>) -> Self {
        let (file, deletes) = source.map(|source| (source.file, source.deletes)).unzip();
        Self {
            chunk: request.chunk,
            snapshot: request.snapshot,
            columns: Arc::clone(&request.columns),
            predicate: request.predicate.clone(),
            known: None,
            file,
            deletes: deletes.unwrap_or_default(),
            extents: BTreeMap::new(),
            kept_bytes: 0,
        }
    }

    /// Takes in what older rows have in columns of the predicate.
    pub(super) fn know(&mut self, columns: SchemaRef) {
        self.known = Some(columns);
    }

    /// Whether rows of a block may be deleted.
    pub(super) fn may_delete(&self, segment: &Segment, block: usize) -> bool {
        self.deletes.concern_block(segment, block)
    }

    /// Whether rows that lack the column of a term pass it. What is not known loses nothing.
    fn older_pass(&self, term: &Term) -> Result<bool, Error> {
        let known = self.known.as_ref().map(|known| known.field_with_name(&term.column));
        let Some(Ok(field)) = known else { return Ok(true) };
        Ok(exact::passing(&term.test, &older(field, 1)?).value(0))
    }

    /// Whether there are deletes whose rows may still be in the file.
    pub(super) fn has_deletes(&self) -> bool {
        !self.deletes.is_empty()
    }

    /// Lets go of what was kept for the next block.
    pub(super) fn leave_segment(&mut self) {
        self.extents.clear();
        self.kept_bytes = 0;
    }

    /// Encoded bytes of the wanted columns in a block.
    pub(super) fn bytes_of(&self, segment: &Segment, block: usize) -> u64 {
        let len = |field: &Arc<Field>| {
            let (position, _) = segment.schema().column_with_name(field.name())?;
            Some(segment.place(block, position)?.len as u64)
        };
        self.columns.fields().iter().filter_map(len).sum()
    }

    /// The rows of a block that are visible and pass the predicate and `more`; `None` when there are none.
    pub(super) fn read(
        &mut self,
        place: &Place,
        more: &[Term],
        stats: &mut ScanStats,
    ) -> Result<Option<RecordBatch>, Error> {
        let read = self.read_runs(place, more, None, stats);
        #[cfg(feature = "bug_truncate_on_checksum_error")]
        if hypertide_proto::planted::shown("bug_truncate_on_checksum_error")
            && let Err(Error::Damaged { .. }) = read
        {
            return Ok(None);
        }
        read
    }

    /// As [`Blocks::read`], of only the rows of use.
    pub(super) fn read_runs(
        &mut self,
        place: &Place,
        more: &[Term],
        runs: Option<&Runs>,
        stats: &mut ScanStats,
    ) -> Result<Option<RecordBatch>, Error> {
        let Place { segment, block, series } = place;
        let range = segment.block_rows(*block);
        let rows = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut left = Selection::all(rows);
        if let Series::Some(ranges) = series {
            left.and(&mask_of(rows, ranges));
        }
        let before = self.used();
        self.leave_out_invisible(place, &mut left, stats)?;
        let mut decoded = BTreeMap::new();
        self.leave_out_failing(place, more, (&mut left, &mut decoded), stats)?;
        if let Some(runs) = runs.filter(|_| left.count() > 0) {
            let values = self.deciding(place, runs, &mut decoded, stats)?;
            left.and(&runs.of_use(&left.bits(), values.as_ref()));
        }
        stats.rows_skipped += (rows - left.count()) as u64;
        if left.count() == 0 {
            stats.bytes_skipped += self.bytes_of(segment, *block);
            self.forget(&before);
            return Ok(None);
        }
        let columns = Arc::clone(&self.columns);
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(columns.fields().len());
        for field in columns.fields() {
            arrays.push(match segment.schema().column_with_name(field.name()) {
                None => older(field, rows)?,
                Some((position, stored)) => match decoded.get(&position) {
                    Some(array) => Arc::clone(array),
                    None => {
                        let wanted = wanted_type(field, stored.data_type());
                        self.decode(place, (position, wanted), stats)?
                    }
                },
            });
        }
        self.forget(&before);
        let arrays = left.apply(arrays)?;
        assemble(self.chunk, &columns, arrays, left.count()).map(Some)
    }

    /// The rows of a batch in memory, all visible, that pass the predicate and `more`; `None` when there are none.
    pub(super) fn select(
        &self,
        batch: &RecordBatch,
        more: &[Term],
        stats: &mut ScanStats,
    ) -> Result<Option<RecordBatch>, Error> {
        let rows = batch.num_rows();
        let mut left = Selection::all(rows);
        for term in self.predicate.terms.iter().chain(more) {
            match batch.column_by_name(&term.column) {
                Some(array) => left.and(exact::passing(&term.test, array).values()),
                None if !self.older_pass(term)? => left.and(&BooleanBuffer::new_unset(rows)),
                None => {}
            }
        }
        stats.rows_skipped += (rows - left.count()) as u64;
        if left.count() == 0 {
            return Ok(None);
        }
        let arrays = self.columns.fields().iter().map(|field| {
            let found = batch.column_by_name(field.name()).map(Arc::clone);
            found.map_or_else(|| older(field, rows), Ok)
        });
        let arrays = left.apply(arrays.collect::<Result<_, _>>()?)?;
        assemble(self.chunk, &self.columns, arrays, left.count()).map(Some)
    }

    fn leave_out_invisible(
        &mut self,
        place: &Place,
        left: &mut Selection,
        stats: &mut ScanStats,
    ) -> Result<(), Error> {
        let Place { segment, block, .. } = place;
        let snapshot = self.snapshot;
        let concerned = self.deletes.concern_block(segment, *block);
        let all = segment.block_csn_range(*block).is_some_and(|(_, max)| max <= snapshot);
        if all && !concerned {
            return Ok(());
        }
        let extent = self.extent(segment, segment.csn_place(*block), stats)?;
        let csns = segment.decode_csns(*block, &extent);
        let csns = csns.map_err(|error| segment_error(self.chunk, error))?;
        left.and(&csns.iter().map(|csn| *csn <= snapshot.0).collect());
        if concerned {
            let deletes = self.deletes.clone();
            let kept = deletes.kept(&csns, |name| {
                let found = segment.schema().column_with_name(name);
                let Some((position, stored)) = found else { return Ok(None) };
                self.decode(place, (position, stored.data_type().clone()), stats).map(Some)
            })?;
            if let Some(kept) = kept {
                left.and(kept.values());
            }
        }
        Ok(())
    }

    /// Decodes the columns that terms are about, and leaves out the rows that fail one.
    fn leave_out_failing(
        &mut self,
        place: &Place,
        more: &[Term],
        (left, decoded): (&mut Selection, &mut BTreeMap<usize, ArrayRef>),
        stats: &mut ScanStats,
    ) -> Result<(), Error> {
        let Place { segment, block, series } = place;
        let terms: Vec<Term> = self.predicate.terms.iter().chain(more).cloned().collect();
        for term in terms {
            if left.count() == 0 {
                return Ok(());
            }
            let Some((position, stored)) = segment.schema().column_with_name(&term.column) else {
                if !self.older_pass(&term)? {
                    left.and(&BooleanBuffer::new_unset(left.rows));
                }
                continue;
            };
            // The ranges of series are exact.
            let of_key = || segment.key_columns().any(|key| key == term.column);
            let zone = segment.block_zone(*block, &term.column);
            if zone.is_some_and(|zone| exact::all_pass(&term.test, zone))
                || (matches!(series, Series::Some(_)) && of_key())
            {
                continue;
            }
            if let std::collections::btree_map::Entry::Vacant(slot) = decoded.entry(position) {
                let field = self.columns.field_with_name(&term.column).ok();
                let wanted = match field {
                    Some(field) => wanted_type(field, stored.data_type()),
                    // Each text is tested once when it comes as a dictionary.
                    None => as_dictionary(stored.data_type()),
                };
                slot.insert(self.decode(place, (position, wanted), stats)?);
            }
            if let Some(array) = decoded.get(&position) {
                left.and(exact::passing(&term.test, array).values());
            }
        }
        Ok(())
    }

    /// The column that decides among the rows of a key; `None` when none does.
    fn deciding(
        &mut self,
        place: &Place,
        runs: &Runs,
        decoded: &mut BTreeMap<usize, ArrayRef>,
        stats: &mut ScanStats,
    ) -> Result<Option<ArrayRef>, Error> {
        let schema = Arc::clone(place.segment.schema());
        let Some(name) = runs.by() else { return Ok(None) };
        let Some((position, stored)) = schema.column_with_name(name) else {
            let unasked = |_| Error::Invalid(format!("column \"{name}\" orders rows unasked for"));
            let field = self.columns.field_with_name(name).map_err(unasked)?;
            let rows = place.segment.block_rows(place.block);
            return older(field, (rows.end - rows.start) as usize).map(Some);
        };
        if let std::collections::btree_map::Entry::Vacant(slot) = decoded.entry(position) {
            slot.insert(self.decode(place, (position, stored.data_type().clone()), stats)?);
        }
        Ok(decoded.get(&position).map(Arc::clone))
    }

    fn decode(
        &mut self,
        place: &Place,
        (position, wanted): (usize, DataType),
        stats: &mut ScanStats,
    ) -> Result<ArrayRef, Error> {
        let Place { segment, block, .. } = place;
        let extent = self.extent(segment, segment.place(*block, position), stats)?;
        let array = segment.decode_as(*block, position, &wanted, &extent);
        array.map_err(|error| segment_error(self.chunk, error))
    }

    /// The extent that a block lies in; nothing for one without bytes.
    fn extent(
        &mut self,
        segment: &Segment,
        place: Option<segment::Place>,
        stats: &mut ScanStats,
    ) -> Result<Bytes, Error> {
        let number = segment.key().segment;
        let damaged = |what: String| Error::Damaged { chunk: self.chunk, what };
        let missing = || damaged(format!("segment {number} does not say where a block lies"));
        let place = place.ok_or_else(missing)?;
        if place.len == 0 {
            return Ok(Bytes::new());
        }
        let name = (number, place.extent);
        if let Some(bytes) = self.extents.get(&name) {
            return Ok(bytes.clone());
        }
        let file = self.file.as_ref().ok_or_else(missing)?;
        let bytes = file.extent(number, place.extent)?;
        stats.bytes_read += bytes.len() as u64;
        self.kept_bytes += bytes.len();
        self.extents.insert(name, bytes.clone());
        Ok(bytes)
    }

    /// Names of the extents that are there before a block is read.
    fn used(&self) -> Vec<(u64, usize)> {
        self.extents.keys().copied().collect()
    }

    /// Lets go of extents that earlier blocks used, when all together are too many.
    fn forget(&mut self, before: &[(u64, usize)]) {
        for name in before {
            if self.kept_bytes <= KEPT_BYTES_MAX {
                return;
            }
            if let Some(bytes) = self.extents.remove(name) {
                self.kept_bytes -= bytes.len();
            }
        }
        if self.kept_bytes > KEPT_BYTES_MAX {
            self.leave_segment();
        }
    }
}

fn mask_of(rows: usize, ranges: &[Range<usize>]) -> BooleanBuffer {
    let mut bits = arrow::array::BooleanBufferBuilder::new(rows);
    for range in ranges {
        bits.append_n(range.start.saturating_sub(bits.len()), false);
        bits.append_n(range.len(), true);
    }
    bits.append_n(rows.saturating_sub(bits.len()), false);
    bits.finish()
}

/// The type to give: a dictionary of the stored type where that is wanted.
fn wanted_type(field: &Field, stored: &DataType) -> DataType {
    match field.data_type() {
        DataType::Dictionary(key, value) if **key == DataType::Int32 && **value == *stored => {
            field.data_type().clone()
        }
        _ => stored.clone(),
    }
}

fn as_dictionary(stored: &DataType) -> DataType {
    match stored {
        DataType::Utf8 | DataType::Binary => {
            DataType::Dictionary(Box::new(DataType::Int32), Box::new(stored.clone()))
        }
        other => other.clone(),
    }
}

/// What rows have in a column that is younger than they are.
pub(crate) fn older(field: &Field, rows: usize) -> Result<ArrayRef, Error> {
    let Some(text) = field.metadata().get(OLDER_ROWS_KEY) else {
        return Ok(new_null_array(field.data_type(), rows));
    };
    let name = field.name();
    let failed =
        |error| Error::Invalid(format!("column \"{name}\": the value of older rows: {error}"));
    let one = compute::cast(&StringArray::from(vec![text.as_str()]), field.data_type());
    let one = one.map_err(failed)?;
    if one.null_count() > 0 {
        let what = format!("column \"{name}\" cannot hold {text}, the value of older rows");
        return Err(Error::Invalid(what));
    }
    compute::take(&one, &Int32Array::from_value(0, rows), None).map_err(failed)
}

/// A batch of exactly the schema asked for.
fn assemble(
    chunk: ChunkId,
    columns: &SchemaRef,
    mut arrays: Vec<ArrayRef>,
    rows: usize,
) -> Result<RecordBatch, Error> {
    for (field, array) in columns.fields().iter().zip(&mut arrays) {
        let (stored, wanted) = (array.data_type(), field.data_type());
        if stored == wanted {
            continue;
        }
        if *wanted == wanted_type(field, batch::plain_type(stored)) {
            *array = compute::cast(array, wanted)
                .map_err(|error| Error::Invalid(format!("chunk {chunk}: {error}")))?;
            continue;
        }
        let column = field.name();
        return Err(Error::Invalid(format!(
            "chunk {chunk} holds column \"{column}\" as {stored}, and {wanted} was asked for"
        )));
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(columns), arrays, &options)
        .map_err(|error| Error::Invalid(format!("chunk {chunk}: {error}")))
}
