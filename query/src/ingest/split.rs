//! Pure: finds the rows of each chunk in a record batch.
//!
//! The chunk of a row is the slice of its time and the bucket of the hash of each space column. Pruning asks the same
//! questions of a filter ([`crate::prune`]): both must always agree, or rows would be stored where none looks for them.
//!
//! Chunks from before a change of interval or partitions have other edges than the slices and buckets of now, and new
//! ones are cut around them: where there are such edges ([`Edges`]), rows are told apart by them, too.

use std::collections::{BTreeSet, HashMap};

use arrow::{
    array::{Array, AsArray, PrimitiveArray, RecordBatch},
    datatypes::{
        DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type,
        Int64Type, TimestampMicrosecondType, UInt16Type,
    },
};
use hypertide_meta::catalog::{Chunk, Rule, Table, TableKind};
use hypertide_proto::{
    partition::{HashKey, bucket, hash},
    time::DAY_MICROS,
};

use xxhash_rust::xxh3::Xxh3;

use super::check::null_in;
use crate::Error;

/// Chunks of a batch up to which a row's is found by looking at each: most rows lie in few.
const NEAR_GROUPS: usize = 16;

/// Rows that lie in one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// Slice number, buckets, and places between edges: rows of one key lie in one chunk.
    pub(crate) key: Vec<i64>,
    /// A point of the chunk, one coordinate per dimension.
    pub(crate) point: Vec<i64>,
    /// The least and the greatest coordinate of its rows in each dimension.
    extents: Vec<(i64, i64)>,
    /// Positions of the rows in the batch, rising.
    pub(crate) rows: Vec<u32>,
}

impl Group {
    /// Whether all its rows lie in the box of a chunk.
    pub(crate) fn lies_in(&self, chunk: &Chunk) -> bool {
        chunk.slices.len() == self.point.len()
            && chunk.slices.iter().zip(&self.extents).all(|(slice, (least, greatest))| {
                slice.contains(*least) && slice.contains(*greatest)
            })
    }
}

/// Edges of chunks that are no edges of the table's slices and buckets of now, rising, for each dimension.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edges(Vec<Vec<i64>>);

impl Edges {
    /// The edges of all the chunks of a table.
    pub(crate) fn of<'a>(table: &Table, chunks: impl Iterator<Item = &'a Chunk>) -> Self {
        let Some(hypertable) = table.hypertable() else { return Self::default() };
        let mut edges = vec![BTreeSet::new(); hypertable.dimensions.len()];
        for chunk in chunks {
            let sides = hypertable.dimensions.iter().zip(&chunk.slices).zip(&mut edges);
            for ((dimension, slice), edges) in sides {
                let ends = [slice.start(), slice.end()].into_iter();
                edges.extend(ends.filter(|at| {
                    !matches!(*at, i64::MIN | i64::MAX) && dimension.slice(*at).start() != *at
                }));
            }
        }
        Self(edges.into_iter().map(|edges| edges.into_iter().collect()).collect())
    }

    /// Between which edges of a dimension points lie; nothing without edges.
    fn numbers(&self, dimension: usize, points: &[i64]) -> Option<Vec<i64>> {
        let edges = self.0.get(dimension).filter(|edges| !edges.is_empty())?;
        let number = |point: &i64| edges.partition_point(|edge| edge <= point) as i64;
        Some(points.iter().map(number).collect())
    }
}

/// Groups rows, whose columns are exactly the table's, by chunk. Groups come in the order of their first row.
pub(crate) fn split(table: &Table, edges: &Edges, rows: &RecordBatch) -> Result<Vec<Group>, Error> {
    let count = u32::try_from(rows.num_rows());
    let count = count.map_err(|_| Error::of("54000", "too many rows at once"))?;
    if count == 0 {
        return Ok(Vec::new());
    }
    let TableKind::Hypertable(hypertable) = &table.kind else {
        let rows = (0..count).collect();
        return Ok(vec![Group { key: Vec::new(), point: Vec::new(), extents: Vec::new(), rows }]);
    };
    let mut coordinates = Vec::with_capacity(hypertable.dimensions.len());
    let mut keys = Vec::with_capacity(hypertable.dimensions.len());
    for (number, dimension) in hypertable.dimensions.iter().enumerate() {
        let array = rows
            .column_by_name(&dimension.column)
            .ok_or_else(|| Error::no_column(&dimension.column, &table.name))?;
        match &dimension.rule {
            Rule::Time { interval, .. } => {
                let times = times(table, &dimension.column, array.as_ref())?;
                keys.push(slices(&times, (*interval).max(1)));
                keys.extend(edges.numbers(number, &times));
                coordinates.push(times);
            }
            Rule::Hash { buckets } => {
                let hashes = hashes(array.as_ref())?;
                let partitions = u16::try_from(buckets.len()).unwrap_or(u16::MAX).max(1);
                keys.push(hashes.iter().map(|hash| i64::from(bucket(*hash, partitions))).collect());
                keys.extend(edges.numbers(number, &hashes));
                coordinates.push(hashes);
            }
        }
    }
    Ok(group(count, &keys, &coordinates))
}

/// What tells rows apart for those who change them: a hash of each row's time and space. Rows of one key of the table
/// have the same, since a key has all those columns. `None` for a table without any.
pub(crate) fn places(table: &Table, rows: &RecordBatch) -> Result<Option<Vec<u64>>, Error> {
    let TableKind::Hypertable(hypertable) = &table.kind else { return Ok(None) };
    let mut places = vec![Xxh3::new(); rows.num_rows()];
    for dimension in &hypertable.dimensions {
        let array = rows
            .column_by_name(&dimension.column)
            .ok_or_else(|| Error::no_column(&dimension.column, &table.name))?;
        let coordinates = match &dimension.rule {
            Rule::Time { .. } => times(table, &dimension.column, array.as_ref())?,
            Rule::Hash { .. } => hashes(array.as_ref())?,
        };
        for (place, at) in places.iter_mut().zip(coordinates) {
            place.update(&at.to_be_bytes());
        }
    }
    Ok(Some(places.iter().map(Xxh3::digest).collect()))
}

/// The numbers of the slices that times lie in. Times that follow each other are mostly in the same.
fn slices(times: &[i64], interval: i64) -> Vec<i64> {
    let (mut slice, mut start) = (0, 0i64);
    let number = |time: &i64| {
        // An overflow is no distance within the interval.
        if time.checked_sub(start).is_none_or(|after| !(0..interval).contains(&after)) {
            slice = time.div_euclid(interval);
            start = slice.saturating_mul(interval);
        }
        slice
    };
    times.iter().map(number).collect()
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
        // Each entry is hashed once.
        DataType::Dictionary(key, _) if **key == DataType::UInt16 => {
            let array = array.as_dictionary::<UInt16Type>();
            let entries = hashes(array.values().as_ref())?;
            let hash = |key: &u16| entries.get(usize::from(*key)).copied().unwrap_or_default();
            each(array.keys().iter(), hash)
        }
        DataType::Binary => each(array.as_binary::<i32>().iter(), |v| hash(HashKey::Bytes(v))),
        other => return Err(Error::unsupported(format_args!("a space dimension of type {other}"))),
    })
}

/// Rows by equal keys.
fn group(count: u32, keys: &[Vec<i64>], coordinates: &[Vec<i64>]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut numbers: HashMap<Vec<i64>, usize> = HashMap::new();
    let mut key = Vec::with_capacity(keys.len());
    for (row, position) in (0..count).enumerate() {
        fill(&mut key, keys, row);
        let near = groups.iter().take(NEAR_GROUPS).position(|group| group.key == key);
        if let Some(group) =
            near.or_else(|| numbers.get(&key).copied()).and_then(|number| groups.get_mut(number))
        {
            group.rows.push(position);
            for ((least, greatest), column) in group.extents.iter_mut().zip(coordinates) {
                let at = column.get(row).copied().unwrap_or_default();
                (*least, *greatest) = ((*least).min(at), (*greatest).max(at));
            }
            continue;
        }
        let mut point = Vec::with_capacity(coordinates.len());
        fill(&mut point, coordinates, row);
        if groups.len() >= NEAR_GROUPS {
            numbers.insert(key.clone(), groups.len());
        }
        let extents = point.iter().map(|at| (*at, *at)).collect();
        groups.push(Group { key: key.clone(), point, extents, rows: vec![position] });
    }
    groups
}

/// What columns have in a row.
fn fill(out: &mut Vec<i64>, columns: &[Vec<i64>], row: usize) {
    out.clear();
    out.extend(columns.iter().map(|column| column.get(row).copied().unwrap_or_default()));
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
