//! Which rows of a node's answer were passed on, so that the rest can come from another replica.
//!
//! Two replicas hold the same rows, each in an order of its own. So every row that was passed on is remembered by 128 bits
//! that its values are hashed to, and as many rows of the same values are left out of what the other replica gives. Rows
//! with different values that are hashed alike would be taken for each other: among a hundred million rows the chance is
//! below one in 10²².

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, UInt32Array, UInt64Array},
    buffer::ScalarBuffer,
    compute::filter_record_batch,
    datatypes::{DataType, Float32Type, Float64Type},
    row::{RowConverter, SortField},
};
use datafusion::{
    common::hash_utils::{QualityRandomState, create_hashes},
    error::Result,
    execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation},
};

/// Bytes that a row which was passed on is remembered by.
const ROW_BYTES: usize = size_of::<u128>();
/// Odd, so that no bit of the columns before is lost when the next is added.
const COLUMN_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
/// Seeds of the two halves of a hash.
const SEEDS: [u64; 2] = [0x6879_7065_7274_6964, 0x7061_7373_6564_6f6e];

/// Rows that were passed on.
#[derive(Debug)]
pub(super) struct PassedOn {
    hashes: Vec<u128>,
    memory: MemoryReservation,
}

impl PassedOn {
    pub(super) fn new(pool: &Arc<dyn MemoryPool>) -> Self {
        let memory = MemoryConsumer::new("rows passed on").register(pool);
        Self { hashes: Vec::new(), memory }
    }

    /// Remembers the rows of a batch. Fails when there is no memory for it.
    pub(super) fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        self.memory.try_grow(batch.num_rows() * ROW_BYTES)?;
        self.hashes.extend(hashes(batch)?);
        Ok(())
    }

    /// What is to be left out of the rows of another replica.
    pub(super) fn into_known(self) -> Known {
        let Self { mut hashes, memory } = self;
        let left = hashes.len();
        hashes.sort_unstable();
        let times = hashes.chunk_by(u128::eq).map(<[u128]>::len).collect();
        hashes.dedup();
        Known { hashes, times, left, _memory: memory }
    }
}

/// Rows that another replica gives, too, and that are known already.
#[derive(Debug)]
pub(super) struct Known {
    /// Different ones, in order.
    hashes: Vec<u128>,
    /// How often each is to be met again.
    times: Vec<usize>,
    left: usize,
    _memory: MemoryReservation,
}

impl Known {
    /// The rows of a batch without those that are known.
    pub(super) fn without(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        let new: BooleanArray =
            hashes(batch)?.into_iter().map(|hash| Some(!self.meet(hash))).collect();
        Ok(filter_record_batch(batch, &new)?)
    }

    /// Whether a row of this hash was still to be met again.
    fn meet(&mut self, hash: u128) -> bool {
        let at = self.hashes.binary_search(&hash);
        let Some(times) = at.ok().and_then(|at| self.times.get_mut(at)) else { return false };
        if *times == 0 {
            return false;
        }
        *times -= 1;
        self.left -= 1;
        true
    }

    /// Rows that were not met again yet. When the other replica has given all of its rows there must be none.
    pub(super) fn left(&self) -> usize {
        self.left
    }
}

/// A hash of every row.
fn hashes(batch: &RecordBatch) -> Result<Vec<u128>> {
    let columns = batch.columns().iter().map(told_apart).collect::<Result<Vec<_>>>()?;
    let [low, high] =
        SEEDS.map(|seed| half(&columns, batch.num_rows(), &QualityRandomState::with_seed(seed)));
    let halves = low?.into_iter().zip(high?);
    Ok(halves.map(|(low, high)| u128::from(high) << 64 | u128::from(low)).collect())
}

/// A column whose values are hashed alike only if they are the same: zero with another sign is another float.
fn told_apart(column: &ArrayRef) -> Result<ArrayRef> {
    Ok(match column.data_type() {
        DataType::Float64 => {
            let floats = column.as_primitive::<Float64Type>();
            let bits = ScalarBuffer::from(floats.values().inner().clone());
            Arc::new(UInt64Array::new(bits, floats.nulls().cloned()))
        }
        DataType::Float32 => {
            let floats = column.as_primitive::<Float32Type>();
            let bits = ScalarBuffer::from(floats.values().inner().clone());
            Arc::new(UInt32Array::new(bits, floats.nulls().cloned()))
        }
        nested if nested.is_nested() => {
            let converter = RowConverter::new(vec![SortField::new(nested.clone())])?;
            let rows = converter.convert_columns(&[Arc::clone(column)])?;
            Arc::new(rows.try_into_binary()?)
        }
        _ => Arc::clone(column),
    })
}

/// Column by column, so that a null is told from the same null in another column.
fn half(columns: &[ArrayRef], rows: usize, state: &QualityRandomState) -> Result<Vec<u64>> {
    let (mut of_rows, mut cells) = (vec![0_u64; rows], vec![0_u64; rows]);
    for column in columns {
        cells.fill(0);
        create_hashes([column], state, &mut cells)?;
        for (row, cell) in of_rows.iter_mut().zip(&cells) {
            *row = row.wrapping_mul(COLUMN_FACTOR).rotate_left(29).wrapping_add(*cell);
        }
    }
    Ok(of_rows)
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{Float64Array, Int64Array, ListArray, RecordBatchOptions, StringArray},
        compute::{concat_batches, take_record_batch},
        datatypes::Schema,
        util::pretty::pretty_format_batches,
    };
    use datafusion::execution::memory_pool::{GreedyMemoryPool, UnboundedMemoryPool};
    use proptest::prelude::*;

    use super::*;

    type Row = (Option<i64>, Option<i64>, Option<String>, u8);

    /// Few different values, so that rows repeat; signs of zero and kinds of NaN count.
    fn batch(rows: &[Row]) -> RecordBatch {
        let floats = [0.0, -0.0, f64::NAN, -f64::NAN, f64::INFINITY];
        let lists = rows.iter().map(|row| Some([Some(floats[usize::from(row.3)])]));
        let lists = ListArray::from_iter_primitive::<Float64Type, _, _>(lists);
        let ints = |of: fn(&Row) -> Option<i64>| rows.iter().map(of).collect::<Int64Array>();
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("a", Arc::new(ints(|row| row.0))),
            ("b", Arc::new(ints(|row| row.1))),
            ("c", Arc::new(rows.iter().map(|row| row.2.clone()).collect::<StringArray>())),
            ("e", Arc::new(lists)),
            (
                "d",
                Arc::new(Float64Array::from_iter_values(
                    rows.iter().map(|row| floats[usize::from(row.3)]),
                )),
            ),
        ];
        RecordBatch::try_from_iter_with_nullable(
            columns.into_iter().map(|(name, column)| (name, column, true)),
        )
        .expect("columns of one length")
    }

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        let int = || prop::option::of(0..3_i64);
        prop::collection::vec((int(), int(), prop::option::of("[ab]{0,2}"), 0..5_u8), 0..60)
    }

    fn pool() -> Arc<dyn MemoryPool> {
        Arc::new(UnboundedMemoryPool::default())
    }

    /// The rows as text, sorted, with the bits of the floats.
    fn sorted(batch: &RecordBatch) -> Vec<String> {
        let text = pretty_format_batches(&[batch.slice(0, batch.num_rows())]).expect("shown");
        let text = text.to_string();
        let floats = batch.column(4).as_primitive::<Float64Type>();
        let lines = text.lines().skip(3).zip(floats.values());
        let mut lines: Vec<String> =
            lines.map(|(line, float)| format!("{line} {:x}", float.to_bits())).collect();
        lines.sort();
        lines
    }

    proptest! {
        #[test]
        fn what_was_passed_on_and_the_rest_are_all_rows(
            rows in rows(),
            at in any::<prop::sample::Index>(),
            order in any::<u64>(),
        ) {
            let all = batch(&rows);
            let passed = at.index(rows.len() + 1);
            let mut known = PassedOn::new(&pool());
            let before = all.slice(0, passed);
            known.add(&before).expect("memory");
            let mut known = known.into_known();
            // Another replica has the same rows in another order and in other batches.
            let mut other: Vec<u64> = (0_u64..rows.len() as u64).collect();
            other.sort_by_key(|row| row.wrapping_mul(order | 1).rotate_left(17));
            let mut got = vec![before];
            for part in other.chunks(7) {
                let part = UInt64Array::from(part.to_vec());
                let part = take_record_batch(&all, &part).expect("rows");
                got.push(known.without(&part).expect("hashed"));
            }
            prop_assert_eq!(known.left(), 0);
            let got = concat_batches(all.schema_ref(), &got).expect("one schema");
            prop_assert_eq!(sorted(&got), sorted(&all));
        }

        #[test]
        fn rows_that_the_other_replica_lacks_are_told(rows in rows()) {
            prop_assume!(!rows.is_empty());
            let all = batch(&rows);
            let mut known = PassedOn::new(&pool());
            known.add(&all).expect("memory");
            let mut known = known.into_known();
            let rest = known.without(&all.slice(1, rows.len() - 1)).expect("hashed");
            prop_assert_eq!((rest.num_rows(), known.left()), (0, 1));
        }
    }

    #[test]
    fn rows_without_columns_are_counted() {
        let empty = |rows| {
            let options = RecordBatchOptions::new().with_row_count(Some(rows));
            RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &options)
                .expect("no columns")
        };
        let mut known = PassedOn::new(&pool());
        known.add(&empty(5)).expect("memory");
        let mut known = known.into_known();
        assert_eq!(known.without(&empty(9)).expect("hashed").num_rows(), 4);
        assert_eq!(known.left(), 0);
    }

    #[test]
    fn what_is_remembered_counts_as_memory() {
        let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(100 * ROW_BYTES));
        let mut known = PassedOn::new(&pool);
        let rows = batch(&vec![(Some(1), None, None, 0); 60]);
        known.add(&rows).expect("memory for sixty");
        assert_eq!(pool.reserved(), 60 * ROW_BYTES);
        known.add(&rows).expect_err("no memory for sixty more");
        drop(known);
        assert_eq!(pool.reserved(), 0);
    }
}
