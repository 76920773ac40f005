//! Rows of many commits in the order of a segment.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, RecordBatch, UInt32Array, UInt64Array},
    compute::{SortOptions, cast, concat, take, take_record_batch},
    datatypes::{DataType, Schema, SchemaRef},
    error::ArrowError,
    row::{RowConverter, SortField},
};

use super::{
    order::{OrderBy, natural},
    texts::{join_texts, series_order},
};
use crate::{ChunkSpec, batch::plain_schema, chunk::Commit};

/// Rows of one schema with the commit number of each.
#[derive(Debug)]
pub(crate) struct Sorted {
    pub(crate) rows: RecordBatch,
    pub(crate) csns: Vec<u64>,
}

/// The columns of an order in a batch, and how each sorts.
pub(crate) fn keys(order: &[OrderBy], rows: &RecordBatch) -> (Vec<SortField>, Vec<ArrayRef>) {
    let key = |by: &OrderBy| {
        let array = rows.column_by_name(&by.column)?;
        let options = SortOptions { descending: by.descending, nulls_first: by.nulls_first };
        let field = SortField::new_with_options(array.data_type().clone(), options);
        Some((field, Arc::clone(array)))
    };
    order.iter().filter_map(key).unzip()
}

/// The rows of commits, one run for each schema among them, whatever dictionaries their texts have.
pub(crate) fn runs(spec: &ChunkSpec, commits: &[Commit]) -> Result<Vec<Sorted>, ArrowError> {
    let mut by_schema: Vec<(SchemaRef, Vec<&RecordBatch>, Vec<u64>)> = Vec::new();
    for commit in commits {
        for batch in commit.parts.iter().flat_map(|rows| &rows.batches) {
            if batch.num_rows() == 0 {
                continue;
            }
            let schema = plain_schema(batch.schema_ref());
            let found = by_schema.iter().position(|(known, ..)| *known == schema);
            let at = found.unwrap_or_else(|| {
                by_schema.push((schema, Vec::new(), Vec::new()));
                by_schema.len() - 1
            });
            let Some((_, batches, csns)) = by_schema.get_mut(at) else { continue };
            batches.push(batch);
            csns.extend(std::iter::repeat_n(commit.csn.0, batch.num_rows()));
        }
    }
    let order = natural(spec);
    let run = |(schema, batches, csns): (SchemaRef, Vec<&RecordBatch>, Vec<u64>)| {
        let sorted = sort(&order, Sorted { rows: join(&schema, &batches)?, csns })?;
        Ok(Sorted { rows: plain(&schema, &sorted.rows)?, csns: sorted.csns })
    };
    by_schema.into_iter().map(run).collect()
}

/// All rows one after another. Texts come as one dictionary when any of them had one.
fn join(schema: &SchemaRef, batches: &[&RecordBatch]) -> Result<RecordBatch, ArrowError> {
    let mut fields = Vec::with_capacity(schema.fields().len());
    let mut columns = Vec::with_capacity(schema.fields().len());
    for (position, field) in schema.fields().iter().enumerate() {
        let arrays: Vec<&dyn Array> =
            batches.iter().map(|batch| batch.column(position).as_ref()).collect();
        let dictionary = |array: &&dyn Array| matches!(array.data_type(), DataType::Dictionary(..));
        let column: ArrayRef = match arrays.iter().any(dictionary) {
            true => Arc::new(join_texts(&arrays)?),
            false => concat(&arrays)?,
        };
        fields.push(field.as_ref().clone().with_data_type(column.data_type().clone()));
        columns.push(column);
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// The rows without dictionaries.
fn plain(schema: &SchemaRef, rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let columns = schema.fields().iter().zip(rows.columns()).map(|(field, column)| {
        match column.data_type() == field.data_type() {
            true => Ok(Arc::clone(column)),
            false => cast(column, field.data_type()),
        }
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect::<Result<_, _>>()?)
}

/// Sorts by an order, then as the rows came. Columns that the rows lack do not count.
pub(crate) fn sort(order: &[OrderBy], run: Sorted) -> Result<Sorted, ArrowError> {
    let (fields, keys) = keys(order, &run.rows);
    if keys.is_empty() {
        return Ok(run);
    }
    if let [series, time] = order
        && let [names, times] = keys.as_slice()
        && !series.descending
        && series.nulls_first
        && !time.descending
        && let Some(positions) = series_order(names, times)
    {
        return taken(run, positions);
    }
    let converted = RowConverter::new(fields)?.convert_columns(&keys)?;
    let count = u32::try_from(run.rows.num_rows())
        .map_err(|_| ArrowError::ComputeError("more than 2^32 rows to sort at once".into()))?;
    let mut keyed: Vec<_> = converted.iter().zip(0..count).collect();
    if keyed.is_sorted() {
        drop(keyed);
        return Ok(run);
    }
    keyed.sort_unstable();
    taken(run, keyed.into_iter().map(|(_, position)| position).collect())
}

/// The rows at these positions.
fn taken(run: Sorted, positions: Vec<u32>) -> Result<Sorted, ArrowError> {
    if positions.is_sorted() {
        return Ok(run);
    }
    let order = UInt32Array::from(positions);
    let rows = take_record_batch(&run.rows, &order)?;
    let csns = take(&UInt64Array::from(run.csns), &order, None)?;
    let csns = csns.as_any().downcast_ref::<UInt64Array>().map(|csns| csns.values().to_vec());
    let csns =
        csns.ok_or_else(|| ArrowError::ComputeError("commit numbers lost their type".into()))?;
    Ok(Sorted { rows, csns })
}
