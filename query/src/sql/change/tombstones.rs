//! From rows to the tombstones that take them, one or more for each chunk.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array},
    compute::take_record_batch,
    datatypes::{DataType, Date32Type, Schema},
    row::{RowConverter, SortField},
};
use hypertide_meta::catalog::{Chunk, Table};
use hypertide_proto::{
    ids::ChunkId,
    predicate::{Predicate, Term, Test, Value},
    schema::Column,
};
use hypertide_storage::{Listed, TOMBSTONE_BYTES_MAX, Tombstone, batch::bytes_of};

use super::matched::Matched;
use crate::{
    Error,
    ingest::{
        send::blocking,
        split::{Edges, places, split},
    },
    scalar::value_of,
    session::Frame,
};

/// Places of one chunk that are reserved one by one; with more, the whole chunk is.
const PLACES_MAX: usize = 8192;
/// Rows that one tombstone names.
const NAMED_MAX: usize = 16_384;
/// Bytes of their values, about.
const NAMED_BYTES_MAX: usize = TOMBSTONE_BYTES_MAX / 4;
/// Different values of a column by which a tombstone says where its rows lie.
const VALUES_MAX: usize = 16;

/// Tombstones that take rows, which are of the snapshot of the frame.
pub(crate) async fn taking(
    frame: &Frame,
    table: &Arc<Table>,
    rows: &Matched,
) -> Result<Vec<(Chunk, Tombstone)>, Error> {
    let (image, csn) = (Arc::clone(&frame.snapshot.image), frame.snapshot.csn);
    let (of, batches) = (Arc::clone(table), rows.batches.clone());
    let columns = rows.by.clone();
    let place = |position: &usize| rows.columns.iter().position(|at| at == position);
    let places_of: Vec<usize> = columns.iter().filter_map(place).collect();
    blocking(move || {
        let edges = Edges::of(&of, image.catalog.chunks_of(of.id));
        let mut chunks: BTreeMap<ChunkId, (Chunk, Taking)> = BTreeMap::new();
        for batch in &batches {
            let batch = batch.project(&places_of)?;
            let all = places(&of, &batch)?;
            for group in split(&of, &edges, &batch)? {
                let positions = UInt32Array::from(group.rows.clone());
                let part = take_record_batch(&batch, &positions)?;
                let touched = all.as_ref().map(|all| {
                    let at = |row: &u32| all.get(*row as usize).copied();
                    group.rows.iter().filter_map(at).collect::<Vec<u64>>()
                });
                for chunk in image.catalog.chunks_at(of.id, &group.point) {
                    let (_, taking) = chunks
                        .entry(chunk.id)
                        .or_insert_with(|| (chunk.clone(), Taking::default()));
                    taking.add(part.clone(), touched.as_deref());
                }
            }
        }
        let mut tombstones = Vec::new();
        for (chunk, taking) in chunks.into_values() {
            for tombstone in taking.tombstones(&of, &columns, csn)? {
                tombstones.push((chunk.clone(), tombstone));
            }
        }
        Ok(tombstones)
    })
    .await
}

/// Tombstones that reserve the places of rows which are about to be written to these chunks.
pub(crate) fn reserving(
    frame: &Frame,
    table: &Table,
    rows: &RecordBatch,
    chunks: Vec<(Chunk, Vec<u32>)>,
) -> Result<Vec<(Chunk, Tombstone)>, Error> {
    let all = places(table, rows)?;
    let csn = frame.snapshot.csn;
    let reserving = |(chunk, positions): (Chunk, Vec<u32>)| {
        let touched = all.as_ref().map(|all| {
            positions.iter().filter_map(|row| all.get(*row as usize).copied()).collect()
        });
        (chunk, Tombstone::reserving(csn, bounded(touched)))
    };
    Ok(chunks.into_iter().map(reserving).collect())
}

/// The different places in order; nothing for too many.
fn bounded(touched: Option<BTreeSet<u64>>) -> Option<Vec<u64>> {
    let touched = touched.filter(|touched| touched.len() <= PLACES_MAX)?;
    Some(touched.into_iter().collect())
}

/// Rows of one chunk that are to be taken.
#[derive(Debug, Default)]
struct Taking {
    parts: Vec<RecordBatch>,
    touched: BTreeSet<u64>,
    /// Whether the whole chunk is reserved.
    whole: bool,
}

impl Taking {
    fn add(&mut self, part: RecordBatch, touched: Option<&[u64]>) {
        self.parts.push(part);
        match touched {
            Some(touched) => self.touched.extend(touched),
            None => self.whole = true,
        }
    }

    fn tombstones(
        self,
        table: &Table,
        columns: &[usize],
        snapshot: hypertide_proto::ids::Csn,
    ) -> Result<Vec<Tombstone>, Error> {
        let known: Vec<&Column> =
            columns.iter().filter_map(|at| table.columns.columns.get(*at)).collect();
        let mut touched = bounded(Some(self.touched).filter(|_| !self.whole));
        let mut tombstones = Vec::new();
        for rows in different(&self.parts)? {
            let predicate = bounds(table, &known, &rows)?;
            let stored = known.iter().map(|column| column.to_stored_field()).collect::<Vec<_>>();
            let stored =
                RecordBatch::try_new(Arc::new(Schema::new(stored)), rows.columns().to_vec())?;
            let listed = Some(Listed::of(&stored)?);
            tombstones.push(Tombstone { snapshot, touched: touched.clone(), predicate, listed });
            // The first one reserves for all.
            touched = touched.map(|_| Vec::new());
        }
        Ok(tombstones)
    }
}

/// The different rows of batches of one schema, at most so many together as one tombstone names.
fn different(parts: &[RecordBatch]) -> Result<Vec<RecordBatch>, Error> {
    let Some(schema) = parts.first().map(RecordBatch::schema) else { return Ok(Vec::new()) };
    let fields = schema.fields().iter();
    let fields = fields.map(|field| SortField::new(field.data_type().clone())).collect();
    let converter = RowConverter::new(fields)?;
    let mut seen: BTreeSet<Box<[u8]>> = BTreeSet::new();
    let mut kept = Vec::new();
    for part in parts {
        let rows = converter.convert_columns(part.columns())?;
        let fresh = rows.iter().enumerate().filter_map(|(at, row)| {
            seen.insert(row.as_ref().into()).then_some(u32::try_from(at).unwrap_or(u32::MAX))
        });
        let fresh: Vec<u32> = fresh.collect();
        kept.push(take_record_batch(part, &UInt32Array::from(fresh))?);
    }
    let whole = arrow::compute::concat_batches(&schema, &kept)?;
    let row_bytes = bytes_of(&whole) / whole.num_rows().max(1) + 1;
    let most = (NAMED_BYTES_MAX / row_bytes).clamp(1, NAMED_MAX);
    let starts = (0..whole.num_rows()).step_by(most);
    Ok(starts.map(|start| whole.slice(start, most.min(whole.num_rows() - start))).collect())
}

/// Where rows lie, in the columns that every row of the table has had from the start.
fn bounds(table: &Table, columns: &[&Column], rows: &RecordBatch) -> Result<Predicate, Error> {
    let Some(hypertable) = table.hypertable() else { return Ok(Predicate::default()) };
    let mut terms = Vec::new();
    for dimension in &hypertable.dimensions {
        let mut all = columns.iter().zip(rows.columns());
        let found = all.find(|(column, _)| column.name == dimension.column);
        let Some((column, array)) = found else { continue };
        let name = || column.stored_name().to_owned();
        if let Some(values) = few(array)? {
            terms.push(Term { column: name(), test: Test::In(values) });
        } else if let Some((least, greatest)) = extremes(array) {
            terms.push(Term { column: name(), test: Test::GtEq(least) });
            terms.push(Term { column: name(), test: Test::LtEq(greatest) });
        }
    }
    Ok(Predicate { terms })
}

/// The different values of a column when they are few; `None` with a NULL, or with floats, among them.
fn few(array: &ArrayRef) -> Result<Option<Vec<Value>>, Error> {
    let plain = array.null_count() == 0 && !array.data_type().is_floating();
    if !plain {
        return Ok(None);
    }
    let mut values: Vec<Value> = Vec::new();
    for row in 0..array.len() {
        let value = datafusion::common::ScalarValue::try_from_array(array, row)?;
        let Some(value) = value_of(&value) else { return Ok(None) };
        if !values.contains(&value) {
            values.push(value);
        }
        if values.len() > VALUES_MAX {
            return Ok(None);
        }
    }
    Ok(Some(values))
}

/// The least and the greatest of a column of integers or times without NULL.
fn extremes(array: &ArrayRef) -> Option<(Value, Value)> {
    if array.null_count() > 0 {
        return None;
    }
    let int = |value: i64| Value::Int(value.into());
    let wide = match array.data_type() {
        DataType::Date32 => {
            let days = array.as_primitive::<Date32Type>().values();
            let (least, greatest) = (days.iter().min()?, days.iter().max()?);
            return Some((int((*least).into()), int((*greatest).into())));
        }
        DataType::Timestamp(..) | DataType::Int16 | DataType::Int32 | DataType::Int64 => {
            arrow::compute::cast(array, &DataType::Int64).ok()?
        }
        _ => return None,
    };
    let values = wide.as_primitive::<arrow::datatypes::Int64Type>().values();
    Some((int(*values.iter().min()?), int(*values.iter().max()?)))
}
