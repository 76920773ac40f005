//! Rows of many commits in the order of a segment.
//!
//! Rows are told apart by an integer each, where their key columns leave room in one: integers and timestamps as their
//! distance from the least, texts as their rank among the different ones. Those integers, with the position of the row
//! in their lowest bits, sort many times faster than rows of bytes do, and need no comparison of texts. Where they have no
//! room, or a column is of another type, arrow's row format decides. Texts that came with dictionaries keep them up to the
//! end, as one for all.
//!
//! Columns are put together and into order one after another, so that no more than one of them is there twice.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, ArrowPrimitiveType, AsArray, RecordBatch, RecordBatchOptions, UInt32Array,
        new_empty_array,
    },
    compute::{SortOptions, cast, concat, take},
    datatypes::{
        BinaryType, ByteArrayType, DataType, Date32Type, FieldRef, Int16Type, Int32Type, Int64Type,
        SchemaRef, TimestampMicrosecondType, Utf8Type,
    },
    error::ArrowError,
    row::{RowConverter, SortField},
};

use super::{
    order::{OrderBy, natural},
    texts::join_texts,
};
use crate::{ChunkSpec, batch::plain_schema, chunk::Commit};

/// Different texts of a key column, beyond which ranks cost more than they save.
const RANKS_MAX: usize = 1 << 16;

/// Rows of one schema with the commit number of each.
#[derive(Debug)]
pub(crate) struct Sorted {
    pub(crate) rows: RecordBatch,
    pub(crate) csns: Vec<u64>,
}

/// Rows of one schema, as they came.
#[derive(Debug)]
pub(crate) struct Unsorted {
    /// As they are to be: without dictionaries, which the texts of the batches may have.
    pub(crate) schema: SchemaRef,
    pub(crate) batches: Vec<RecordBatch>,
    /// Commit number of each row.
    pub(crate) csns: Vec<u64>,
}

/// A column of the order, put together, and how it sorts.
#[derive(Debug)]
struct Key {
    array: ArrayRef,
    options: SortOptions,
}

/// The columns of an order in a batch, and how each sorts.
pub(crate) fn keys(order: &[OrderBy], rows: &RecordBatch) -> (Vec<SortField>, Vec<ArrayRef>) {
    let key = |by: &OrderBy| {
        let array = rows.column_by_name(&by.column)?;
        let field = SortField::new_with_options(array.data_type().clone(), options(by));
        Some((field, Arc::clone(array)))
    };
    order.iter().filter_map(key).unzip()
}

const fn options(by: &OrderBy) -> SortOptions {
    SortOptions { descending: by.descending, nulls_first: by.nulls_first }
}

/// The rows of commits, one run for each schema among them, whatever dictionaries their texts have.
pub(crate) fn runs(spec: &ChunkSpec, commits: &[Commit]) -> Result<Vec<Sorted>, ArrowError> {
    let mut by_schema: Vec<Unsorted> = Vec::new();
    for commit in commits {
        for batch in commit.parts.iter().flat_map(|rows| &rows.batches) {
            if batch.num_rows() == 0 {
                continue;
            }
            let schema = plain_schema(batch.schema_ref());
            let found = by_schema.iter().position(|known| known.schema == schema);
            let at = found.unwrap_or_else(|| {
                by_schema.push(Unsorted { schema, batches: Vec::new(), csns: Vec::new() });
                by_schema.len() - 1
            });
            let Some(Unsorted { batches, csns, .. }) = by_schema.get_mut(at) else { continue };
            batches.push(batch.clone());
            csns.extend(std::iter::repeat_n(commit.csn.0, batch.num_rows()));
        }
    }
    let order = natural(spec);
    by_schema.into_iter().map(|run| sort(&order, run)).collect()
}

/// Sorts by an order, then as the rows came. Columns that the rows lack do not count.
pub(crate) fn sort(order: &[OrderBy], run: Unsorted) -> Result<Sorted, ArrowError> {
    let Unsorted { schema, batches, csns } = run;
    let whole = |position: usize| whole(&batches, position);
    let mut keys = Vec::with_capacity(order.len());
    for by in order {
        if let Some((position, _)) = schema.column_with_name(&by.column) {
            keys.push(Key { array: whole(position)?, options: options(by) });
        }
    }
    let positions = match csns.len() {
        0 => None,
        rows => positions(&keys, rows)?,
    };
    drop(keys);
    let column = |(position, field): (usize, &FieldRef)| -> Result<ArrayRef, ArrowError> {
        if batches.is_empty() {
            return Ok(new_empty_array(field.data_type()));
        }
        let column = match &positions {
            Some(positions) => take(&whole(position)?, positions, None)?,
            None => whole(position)?,
        };
        match column.data_type() == field.data_type() {
            true => Ok(column),
            false => cast(&column, field.data_type()),
        }
    };
    let columns = schema.fields().iter().enumerate().map(column).collect::<Result<_, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(csns.len()));
    let rows = RecordBatch::try_new_with_options(schema, columns, &options)?;
    let csn = |position: &u32| csns.get(*position as usize).copied().unwrap_or_default();
    let csns = match &positions {
        Some(positions) => positions.values().iter().map(csn).collect(),
        None => csns,
    };
    Ok(Sorted { rows, csns })
}

/// A column of all batches, one after another. Texts come as one dictionary when any of them had one.
fn whole(batches: &[RecordBatch], position: usize) -> Result<ArrayRef, ArrowError> {
    let arrays: Vec<&dyn Array> = batches
        .iter()
        .filter_map(|batch| batch.columns().get(position))
        .map(AsRef::as_ref)
        .collect();
    if arrays.iter().any(|array| matches!(array.data_type(), DataType::Dictionary(..))) {
        return Ok(Arc::new(join_texts(&arrays)?));
    }
    match arrays.as_slice() {
        [one] => Ok(one.slice(0, one.len())),
        arrays => concat(arrays),
    }
}

/// Where each row of the order lies now; `None` when the rows are in order.
fn positions(keys: &[Key], rows: usize) -> Result<Option<UInt32Array>, ArrowError> {
    if keys.is_empty() {
        return Ok(None);
    }
    let count = u32::try_from(rows)
        .map_err(|_| ArrowError::ComputeError("more than 2^32 rows to sort at once".into()))?;
    if let Some(numbered) = Numbered::of(keys, rows) {
        return Ok(numbered.positions());
    }
    let field = |key: &Key| SortField::new_with_options(key.array.data_type().clone(), key.options);
    let converter = RowConverter::new(keys.iter().map(field).collect())?;
    let arrays: Vec<ArrayRef> = keys.iter().map(|key| Arc::clone(&key.array)).collect();
    let converted = converter.convert_columns(&arrays)?;
    let mut keyed: Vec<_> = converted.iter().zip(0..count).collect();
    if keyed.is_sorted() {
        return Ok(None);
    }
    keyed.sort_unstable();
    Ok(Some(keyed.into_iter().map(|(_, position)| position).collect()))
}

/// A number for each row, greater ones later in the order.
#[derive(Debug)]
struct Numbered {
    numbers: Vec<u64>,
    /// Bits that they take.
    bits: u32,
}

impl Numbered {
    /// The numbers of rows; `None` when the keys have no room in them.
    fn of(keys: &[Key], rows: usize) -> Option<Self> {
        let mut all = Self { numbers: vec![0; rows], bits: 0 };
        for key in keys {
            let ranks = Self::of_column(key)?;
            all.bits += ranks.bits;
            if all.bits > u64::BITS {
                return None;
            }
            // A shift by all bits is none that there is; then nothing was there before.
            for (number, rank) in all.numbers.iter_mut().zip(ranks.numbers) {
                *number = number.checked_shl(ranks.bits).unwrap_or(0) | rank;
            }
        }
        Some(all)
    }

    fn of_column(key: &Key) -> Option<Self> {
        let array = key.array.as_ref();
        match array.data_type() {
            DataType::Int16 => Self::of_integers::<Int16Type>(key),
            DataType::Int32 => Self::of_integers::<Int32Type>(key),
            DataType::Int64 => Self::of_integers::<Int64Type>(key),
            DataType::Date32 => Self::of_integers::<Date32Type>(key),
            DataType::Timestamp(..) => Self::of_integers::<TimestampMicrosecondType>(key),
            DataType::Dictionary(..) => Self::of_dictionary(key),
            DataType::Utf8 => Self::of_texts::<Utf8Type>(key),
            DataType::Binary => Self::of_texts::<BinaryType>(key),
            _ => None,
        }
    }

    fn of_integers<T: ArrowPrimitiveType<Native: Into<i64>>>(key: &Key) -> Option<Self> {
        let array = key.array.as_primitive_opt::<T>()?;
        let present = array.iter().flatten().map(Into::into);
        let (min, max) = present
            .fold((i64::MAX, i64::MIN), |(min, max), value: i64| (min.min(value), max.max(value)));
        let span = if min > max { 0 } else { max.abs_diff(min) };
        let rank = |value: T::Native| value.into().wrapping_sub(min).cast_unsigned();
        // Without nulls no value is looked at for one.
        match array.null_count() {
            0 => Self::spread(array.values().iter().map(|value| Some(rank(*value))), span, key),
            _ => Self::spread(array.iter().map(|value| value.map(rank)), span, key),
        }
    }

    /// Texts of a dictionary, of which each stands in it once.
    fn of_dictionary(key: &Key) -> Option<Self> {
        let array = key.array.as_dictionary_opt::<Int32Type>()?;
        let texts = array.values().as_string_opt::<i32>()?;
        let mut sorted: Vec<usize> = (0..texts.len()).collect();
        sorted.sort_unstable_by_key(|at| texts.value(*at));
        let mut ranks = vec![0u64; texts.len()];
        for (rank, at) in (0..).zip(sorted) {
            *ranks.get_mut(at)? = rank;
        }
        let rank = |id: i32| ranks.get(id as usize).copied().unwrap_or_default();
        let greatest = (ranks.len() as u64).saturating_sub(1);
        Self::spread(array.keys().iter().map(|id| id.map(rank)), greatest, key)
    }

    fn of_texts<T: ByteArrayType>(key: &Key) -> Option<Self> {
        let array = key.array.as_bytes_opt::<T>()?;
        let mut ids: HashMap<&[u8], u32> = HashMap::new();
        let mut last: Option<(&[u8], u32)> = None;
        let mut of_rows: Vec<Option<u32>> = Vec::with_capacity(array.len());
        for text in array.iter() {
            let Some(text) = text.map(AsRef::as_ref) else {
                of_rows.push(None);
                continue;
            };
            // Neighbours are often equal.
            let id = match last {
                Some((before, id)) if before == text => id,
                _ => {
                    let next = ids.len() as u32;
                    *ids.entry(text).or_insert(next)
                }
            };
            if ids.len() > RANKS_MAX {
                return None;
            }
            last = Some((text, id));
            of_rows.push(Some(id));
        }
        let mut texts: Vec<(&[u8], u32)> = ids.into_iter().collect();
        texts.sort_unstable();
        let mut ranks = vec![0u64; texts.len()];
        for (rank, (_, id)) in (0..).zip(&texts) {
            if let Some(slot) = ranks.get_mut(*id as usize) {
                *slot = rank;
            }
        }
        let rank = |id: u32| ranks.get(id as usize).copied().unwrap_or_default();
        let greatest = (ranks.len() as u64).saturating_sub(1);
        Self::spread(of_rows.into_iter().map(|id| id.map(rank)), greatest, key)
    }

    /// Numbers from ranks, none above `greatest`, in the order asked for; nulls get one of their own.
    fn spread(ranks: impl Iterator<Item = Option<u64>>, greatest: u64, key: &Key) -> Option<Self> {
        let SortOptions { descending, nulls_first } = key.options;
        let nulls = u64::from(key.array.null_count() > 0);
        let last = greatest.checked_add(nulls)?;
        let first = if nulls_first { nulls } else { 0 };
        let null = if nulls_first { 0 } else { last };
        let number = |rank: Option<u64>| match rank {
            Some(rank) if descending => first + (greatest - rank),
            Some(rank) => first + rank,
            None => null,
        };
        let numbers = ranks.map(number).collect();
        Some(Self { numbers, bits: u64::BITS - last.leading_zeros() })
    }

    /// Where each row of the order lies now; `None` when the rows are in order.
    fn positions(self) -> Option<UInt32Array> {
        let Self { numbers, bits } = self;
        if numbers.is_sorted() {
            return None;
        }
        let row_bits = usize::BITS - numbers.len().leading_zeros();
        if bits + row_bits <= u64::BITS {
            let with_row = |(row, number): (u64, &u64)| number << row_bits | row;
            let mut keyed: Vec<u64> = (0..).zip(&numbers).map(with_row).collect();
            keyed.sort_unstable();
            let mask = (1u64 << row_bits) - 1;
            return Some(keyed.into_iter().map(|keyed| (keyed & mask) as u32).collect());
        }
        let mut keyed: Vec<(u64, u32)> = numbers.into_iter().zip(0..).collect();
        keyed.sort_unstable();
        Some(keyed.into_iter().map(|(_, row)| row).collect())
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{BooleanArray, Int64Array, StringArray},
        datatypes::{Field, Schema},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::batch::texts_type;

    type Rows = Vec<(Option<i64>, Option<String>, Option<bool>)>;

    fn batch(rows: &Rows) -> RecordBatch {
        let numbers: Int64Array = rows.iter().map(|row| row.0).collect();
        let texts: StringArray = rows.iter().map(|row| row.1.clone()).collect();
        let flags: BooleanArray = rows.iter().map(|row| row.2).collect();
        let field =
            |name: &str, array: &dyn Array| Field::new(name, array.data_type().clone(), true);
        let fields = vec![field("n", &numbers), field("t", &texts), field("f", &flags)];
        let columns: Vec<ArrayRef> = vec![Arc::new(numbers), Arc::new(texts), Arc::new(flags)];
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("they fit")
    }

    fn by(column: &str, (descending, nulls_first): (bool, bool)) -> OrderBy {
        OrderBy { column: column.into(), descending, nulls_first }
    }

    /// Every other batch has its texts as a dictionary when `dictionaries` says so.
    fn unsorted(rows: &[Rows], dictionaries: bool) -> Unsorted {
        let mut batches: Vec<RecordBatch> = rows.iter().map(batch).collect();
        for batch in batches.iter_mut().step_by(2).filter(|_| dictionaries) {
            let mut columns = batch.columns().to_vec();
            columns[1] = cast(&columns[1], &texts_type()).expect("there are few");
            let names = ["n", "t", "f"].into_iter();
            *batch = RecordBatch::try_from_iter(names.zip(columns)).expect("they fit");
        }
        let count: usize = rows.iter().map(Vec::len).sum();
        let schema = batch(&Rows::new()).schema();
        Unsorted { schema, batches, csns: (0..count as u64).collect() }
    }

    /// The commit numbers, which are the positions before, in the order of arrow's own.
    fn expected(order: &[OrderBy], run: &Unsorted) -> Vec<u64> {
        let plain = run.batches.iter().map(|batch| {
            let columns = batch.columns().iter().zip(run.schema.fields());
            let columns = columns.map(|(column, field)| cast(column, field.data_type()));
            let columns = columns.collect::<Result<_, _>>().expect("they can");
            RecordBatch::try_new(Arc::clone(&run.schema), columns).expect("they fit")
        });
        let batches: Vec<RecordBatch> = plain.collect();
        let rows = arrow::compute::concat_batches(&run.schema, &batches).expect("one schema");
        let (fields, columns) = keys(order, &rows);
        let converter = RowConverter::new(fields).expect("sortable types");
        let converted = converter.convert_columns(&columns).expect("the columns fit");
        let mut keyed: Vec<_> = converted.iter().zip(0u64..).collect();
        keyed.sort();
        keyed.into_iter().map(|(_, position)| position).collect()
    }

    fn rows() -> impl Strategy<Value = Rows> {
        let number = prop_oneof![
            4 => (-5i64..5).prop_map(Some),
            1 => any::<i64>().prop_map(Some),
            1 => Just(None),
            1 => Just(Some(i64::MIN)),
            1 => Just(Some(i64::MAX)),
        ];
        let text = prop_oneof![4 => "[ab]{0,2}".prop_map(Some), 1 => Just(None)];
        proptest::collection::vec((number, text, any::<Option<bool>>()), 0..60)
    }

    proptest! {
        #[test]
        fn every_order_is_that_of_arrow(
            rows in proptest::collection::vec(rows(), 1..4),
            number: (bool, bool),
            text: (bool, bool),
            flag: Option<(bool, bool)>,
            text_first: bool,
            dictionaries: bool,
        ) {
            let mut order = vec![by("n", number), by("t", text), by("none", text)];
            if text_first {
                order.swap(0, 1);
            }
            order.extend(flag.map(|flag| by("f", flag)));
            let run = unsorted(&rows, dictionaries);
            let (expected, all) = (expected(&order, &run), batch(&rows.concat()));
            let sorted = sort(&order, run).expect("sorts");
            prop_assert_eq!(&sorted.csns, &expected);
            let positions: UInt32Array = expected.iter().map(|at| *at as u32).collect();
            let taken = arrow::compute::take_record_batch(&all, &positions).expect("takes");
            prop_assert_eq!(sorted.rows, taken);
        }
    }

    #[test]
    fn small_keys_are_numbered_and_large_ones_are_not() {
        let numbered = |rows: &Rows, order: &[OrderBy]| {
            let (_, columns) = keys(order, &batch(rows));
            let keys: Vec<Key> = columns
                .into_iter()
                .zip(order)
                .map(|(array, by)| Key { array, options: options(by) })
                .collect();
            Numbered::of(&keys, rows.len()).map(|numbered| numbered.bits)
        };
        let row = |number, text: &str| (Some(number), Some(text.to_owned()), None);
        let order = [by("t", (false, true)), by("n", (false, true))];
        let near = vec![row(1_000_000, "b"), row(1_000_255, "a"), row(1_000_001, "c")];
        assert_eq!(numbered(&near, &order), Some(2 + 8));
        let far = vec![row(i64::MIN, "b"), row(i64::MAX, "a")];
        assert_eq!(numbered(&far, &order), None);
        assert_eq!(numbered(&far, &order[1..]), Some(64));
        assert_eq!(numbered(&near, &[by("f", (false, true))]), None, "booleans are not");
    }
}
