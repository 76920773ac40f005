//! Batches of a query put together until they are worth a step of their own. Pure.
//!
//! A join may give batches of a few rows each, and to write a batch has costs that do not depend on its rows: a look at
//! what is there for rows with keys, a part for each chunk.

use arrow::{array::RecordBatch, compute::concat_batches, datatypes::SchemaRef, error::ArrowError};
use hypertide_storage::batch::bytes_of;

/// Rows and bytes from which on a batch goes on as it is.
const ROWS: usize = 32 << 10;
const BYTES: usize = 8 << 20;

/// Batches that wait for others.
#[derive(Debug)]
pub(crate) struct Batches {
    schema: SchemaRef,
    waiting: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
}

impl Batches {
    /// None, of this schema.
    pub(crate) fn new(schema: SchemaRef) -> Self {
        Self { schema, waiting: Vec::new(), rows: 0, bytes: 0 }
    }

    /// Takes a batch; gives all that wait once they are enough.
    pub(crate) fn add(&mut self, batch: RecordBatch) -> Result<Option<RecordBatch>, ArrowError> {
        self.rows += batch.num_rows();
        self.bytes += bytes_of(&batch);
        self.waiting.push(batch);
        if self.rows < ROWS && self.bytes < BYTES { Ok(None) } else { self.finish() }
    }

    /// All that wait; `None` when that is nothing.
    pub(crate) fn finish(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        let waiting = std::mem::take(&mut self.waiting);
        match waiting.as_slice() {
            _ if rows == 0 => Ok(None),
            [one] => Ok(Some(one.clone())),
            several => concat_batches(&self.schema, several).map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray};

    use super::*;

    fn batch(from: i64, rows: usize, text: usize) -> RecordBatch {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(from..from + rows as i64));
        let texts = (0..rows).map(|_| "x".repeat(text));
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
        RecordBatch::try_from_iter([("n", numbers), ("t", texts)]).expect("it fits")
    }

    fn numbers(batches: &[RecordBatch]) -> Vec<i64> {
        let of = |batch: &RecordBatch| {
            batch.column(0).as_primitive::<arrow::datatypes::Int64Type>().values().to_vec()
        };
        batches.iter().flat_map(of).collect()
    }

    #[test]
    fn small_batches_become_few_and_no_row_is_lost_or_moved() {
        let mut batches = Batches::new(batch(0, 0, 0).schema());
        let mut given = Vec::new();
        for number in 0..5_000 {
            given.extend(batches.add(batch(number * 20, 20, 1)).expect("it fits"));
        }
        given.extend(batches.finish().expect("it fits"));
        assert_eq!(given.len(), 4);
        assert!(numbers(&given).into_iter().eq(0..100_000));
        assert!(batches.finish().expect("it is empty").is_none());
    }

    #[test]
    fn wide_rows_do_not_wait_for_many() {
        let mut batches = Batches::new(batch(0, 0, 0).schema());
        assert!(batches.add(batch(0, 10, 1 << 10)).expect("it fits").is_none());
        let given = batches.add(batch(10, 10, 1 << 20)).expect("it fits").expect("it is enough");
        assert_eq!(given.num_rows(), 20);
        assert!(batches.add(batch(20, 0, 0)).expect("it fits").is_none());
        assert!(batches.finish().expect("it fits").is_none(), "no rows are nothing to write");
    }
}
