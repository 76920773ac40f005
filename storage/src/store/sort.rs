//! Rows of many commits in the order of a segment.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, RecordBatch, UInt32Array, UInt64Array},
    compute::{concat_batches, take, take_record_batch},
    datatypes::SchemaRef,
    error::ArrowError,
    row::{RowConverter, SortField},
};

use crate::{ChunkSpec, chunk::Commit};

/// Rows of one schema with the commit number of each.
#[derive(Debug)]
pub(crate) struct Sorted {
    pub(crate) rows: RecordBatch,
    pub(crate) csns: Vec<u64>,
}

/// The rows of commits, one run for each schema among them.
pub(crate) fn runs(spec: &ChunkSpec, commits: &[Commit]) -> Result<Vec<Sorted>, ArrowError> {
    let mut by_schema: Vec<(SchemaRef, Vec<&RecordBatch>, Vec<u64>)> = Vec::new();
    for commit in commits {
        for batch in commit.parts.iter().flat_map(|rows| &rows.batches) {
            if batch.num_rows() == 0 {
                continue;
            }
            let schema = batch.schema();
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
    let run = |(schema, batches, csns): (SchemaRef, Vec<&RecordBatch>, Vec<u64>)| {
        sort(spec, Sorted { rows: concat_batches(&schema, batches)?, csns })
    };
    by_schema.into_iter().map(run).collect()
}

/// Sorts by the chunk's order columns, then time, then as the rows came.
pub(crate) fn sort(spec: &ChunkSpec, run: Sorted) -> Result<Sorted, ArrowError> {
    let names = spec.order_columns.iter().chain(&spec.time_column);
    let keys: Vec<ArrayRef> =
        names.filter_map(|name| run.rows.column_by_name(name)).map(Arc::clone).collect();
    if keys.is_empty() {
        return Ok(run);
    }
    let fields = keys.iter().map(|key| SortField::new(key.data_type().clone())).collect();
    let converted = RowConverter::new(fields)?.convert_columns(&keys)?;
    let count = u32::try_from(run.rows.num_rows())
        .map_err(|_| ArrowError::ComputeError("more than 2^32 rows to sort at once".into()))?;
    let mut keyed: Vec<_> = converted.iter().zip(0..count).collect();
    if keyed.is_sorted() {
        drop(keyed);
        return Ok(run);
    }
    keyed.sort_unstable();
    let order: UInt32Array = keyed.into_iter().map(|(_, position)| position).collect();
    let rows = take_record_batch(&run.rows, &order)?;
    let csns = take(&UInt64Array::from(run.csns), &order, None)?;
    let csns = csns.as_any().downcast_ref::<UInt64Array>().map(|csns| csns.values().to_vec());
    let csns =
        csns.ok_or_else(|| ArrowError::ComputeError("commit numbers lost their type".into()))?;
    Ok(Sorted { rows, csns })
}
