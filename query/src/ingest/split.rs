//! Pure: cuts a record batch into the rows of each chunk.
//!
//! The chunk of a row is the slice of its time and the bucket of the hash of each space column. Pruning asks the same
//! questions of a filter ([`crate::prune`]): both must always agree, or rows would be stored where none looks for them.

use std::collections::HashMap;

use arrow::{
    array::{Array, AsArray, PrimitiveArray, RecordBatch, UInt32Array},
    compute::take_record_batch,
    datatypes::{
        DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type,
        Int64Type, TimestampMicrosecondType,
    },
};
use hypertide_meta::catalog::{Rule, Table, TableKind};
use hypertide_proto::{
    partition::{HashKey, bucket, hash},
    time::DAY_MICROS,
};

use super::check::null_in;
use crate::Error;

/// Rows that lie in one chunk.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// Slice number and buckets: equal for rows of one chunk, and only for them.
    pub(crate) key: Vec<i64>,
    /// A point of the chunk, one coordinate per dimension.
    pub(crate) point: Vec<i64>,
    /// The rows, in the order they came.
    pub(crate) rows: RecordBatch,
}

/// Cuts rows, whose columns are exactly the table's, by chunk. Groups come in the order of their first row.
pub(crate) fn split(table: &Table, rows: &RecordBatch) -> Result<Vec<Group>, Error> {
    if rows.num_rows() == 0 {
        return Ok(Vec::new());
    }
    let TableKind::Hypertable(hypertable) = &table.kind else {
        return Ok(vec![Group { key: Vec::new(), point: Vec::new(), rows: rows.clone() }]);
    };
    let mut coordinates = Vec::with_capacity(hypertable.dimensions.len());
    let mut keys = Vec::with_capacity(hypertable.dimensions.len());
    for dimension in &hypertable.dimensions {
        let array = rows
            .column_by_name(&dimension.column)
            .ok_or_else(|| Error::no_column(&dimension.column, &table.name))?;
        match &dimension.rule {
            Rule::Time { interval, .. } => {
                let times = times(table, &dimension.column, array.as_ref())?;
                keys.push(times.iter().map(|time| time.div_euclid((*interval).max(1))).collect());
                coordinates.push(times);
            }
            Rule::Hash { buckets } => {
                let hashes = hashes(array.as_ref())?;
                let partitions = u16::try_from(buckets.len()).unwrap_or(u16::MAX).max(1);
                keys.push(hashes.iter().map(|hash| i64::from(bucket(*hash, partitions))).collect());
                coordinates.push(hashes);
            }
        }
    }
    group(rows, &keys, &coordinates)
}

/// The points of a time column; NULL and infinity are none.
fn times(table: &Table, column: &str, array: &dyn Array) -> Result<Vec<i64>, Error> {
    if array.null_count() > 0 {
        return Err(null_in(table, column));
    }
    let infinite = || {
        let message =
            format_args!("value of column \"{column}\" is out of range: infinity lies in no chunk");
        Error::of("22008", message)
    };
    match array.data_type() {
        DataType::Timestamp(..) => {
            let values = array.as_primitive::<TimestampMicrosecondType>().values();
            if values.iter().any(|value| matches!(*value, i64::MIN | i64::MAX)) {
                return Err(infinite());
            }
            Ok(values.to_vec())
        }
        DataType::Date32 => {
            let day = |day: &i32| {
                let finite = !matches!(*day, i32::MIN | i32::MAX);
                let micros = i64::from(*day).checked_mul(DAY_MICROS);
                micros.filter(|_| finite).ok_or_else(infinite)
            };
            array.as_primitive::<Date32Type>().values().iter().map(day).collect()
        }
        DataType::Int16 => {
            Ok(array.as_primitive::<Int16Type>().values().iter().map(|v| (*v).into()).collect())
        }
        DataType::Int32 => {
            Ok(array.as_primitive::<Int32Type>().values().iter().map(|v| (*v).into()).collect())
        }
        DataType::Int64 => Ok(array.as_primitive::<Int64Type>().values().to_vec()),
        other => {
            Err(Error::of("42804", format_args!("column \"{column}\" of type {other} is no time")))
        }
    }
}

/// The hashes of a space column.
fn hashes(array: &dyn Array) -> Result<Vec<i64>, Error> {
    fn each<T, A: Iterator<Item = Option<T>>>(values: A, key: impl Fn(&T) -> i64) -> Vec<i64> {
        let null = hash(HashKey::Null);
        values.map(|value| value.map_or(null, |value| key(&value))).collect()
    }
    let int = |value: i64| hash(HashKey::Int(value.into()));
    Ok(match array.data_type() {
        DataType::Int16 => each(array.as_primitive::<Int16Type>().iter(), |v| int((*v).into())),
        DataType::Int32 => each(array.as_primitive::<Int32Type>().iter(), |v| int((*v).into())),
        DataType::Int64 => each(array.as_primitive::<Int64Type>().iter(), |v| int(*v)),
        DataType::Date32 => each(array.as_primitive::<Date32Type>().iter(), |v| int((*v).into())),
        DataType::Timestamp(..) => {
            let array: &PrimitiveArray<TimestampMicrosecondType> = array.as_primitive();
            each(array.iter(), |v| int(*v))
        }
        DataType::Float32 => {
            each(array.as_primitive::<Float32Type>().iter(), |v| hash(HashKey::Float((*v).into())))
        }
        DataType::Float64 => {
            each(array.as_primitive::<Float64Type>().iter(), |v| hash(HashKey::Float(*v)))
        }
        DataType::Decimal128(..) => {
            each(array.as_primitive::<Decimal128Type>().iter(), |v| hash(HashKey::Int(*v)))
        }
        DataType::Boolean => each(array.as_boolean().iter(), |v| hash(HashKey::Bool(*v))),
        DataType::Utf8 => each(array.as_string::<i32>().iter(), |v| hash(HashKey::Text(v))),
        DataType::Binary => each(array.as_binary::<i32>().iter(), |v| hash(HashKey::Bytes(v))),
        other => return Err(Error::unsupported(format_args!("a space dimension of type {other}"))),
    })
}

/// Rows by equal keys.
fn group(
    rows: &RecordBatch,
    keys: &[Vec<i64>],
    coordinates: &[Vec<i64>],
) -> Result<Vec<Group>, Error> {
    let at = |columns: &[Vec<i64>], row: usize| -> Vec<i64> {
        columns.iter().map(|column| column.get(row).copied().unwrap_or_default()).collect()
    };
    let mut numbers: HashMap<Vec<i64>, usize> = HashMap::new();
    let mut members: Vec<(Vec<i64>, usize, Vec<u32>)> = Vec::new();
    let (mut last, mut current) = (0usize, None::<usize>);
    for row in 0..rows.num_rows() {
        let same =
            current.is_some() && keys.iter().all(|column| column.get(row) == column.get(last));
        let number = match current {
            Some(number) if same => number,
            _ => {
                let key = at(keys, row);
                *numbers.entry(key.clone()).or_insert_with(|| {
                    members.push((key, row, Vec::new()));
                    members.len() - 1
                })
            }
        };
        (last, current) = (row, Some(number));
        if let Some((.., indices)) = members.get_mut(number) {
            indices
                .push(u32::try_from(row).map_err(|_| Error::of("54000", "too many rows at once"))?);
        }
    }
    members
        .into_iter()
        .map(|(key, first, indices)| {
            let point = at(coordinates, first);
            Ok(Group { key, point, rows: pick(rows, indices)? })
        })
        .collect()
}

/// The rows at these indices, which rise: without a copy when they follow each other.
fn pick(rows: &RecordBatch, indices: Vec<u32>) -> Result<RecordBatch, Error> {
    match (indices.first(), indices.last()) {
        (Some(first), Some(last)) if (last - first) as usize + 1 == indices.len() => {
            Ok(rows.slice(*first as usize, indices.len()))
        }
        _ => Ok(take_record_batch(rows, &UInt32Array::from(indices))?),
    }
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
