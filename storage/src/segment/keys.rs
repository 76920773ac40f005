//! The key index: where each series begins, so that its rows are found without decoding those of others.
//!
//! Rows come sorted by their key columns, and so in runs of equal keys. The index holds the keys of each run and its
//! first row, as blocks inside the header. Nothing depends on the order: runs are what lies side by side, in whatever
//! order it came.
//!
//! ```text
//! key columns: varint; each: its position varint
//! with any: runs: varint | first rows of the runs | keys of the runs, a column each
//! each of these: encoding u8 | squeezed u8 | nulls, body bytes, value bytes: varint | bytes: varint | bytes
//! ```

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, UInt32Array},
    compute,
    datatypes::{DataType, Int64Type, SchemaRef},
};
use hypertide_proto::predicate::{Predicate, Term};

use crate::{
    codec::{self, CodecError, Effort, Reader, Shape, put_sized, put_varint},
    exact,
};

/// An index is kept when runs have so many rows on average: shorter ones gain little, and cost much.
const RUN_ROWS_MIN: usize = 8;
/// Most bytes of memory that the keys take.
const KEYS_BYTES_MAX: usize = 4 << 20;

/// Runs of equal keys. The first begins at row 0, each at a row beyond the one before.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Keys {
    /// Positions of the key columns.
    positions: Vec<usize>,
    /// First row of each run.
    starts: Vec<u32>,
    /// Keys of the runs, a column each.
    columns: Vec<ArrayRef>,
}

impl Keys {
    /// The index over these columns; an empty one when runs are short.
    pub(super) fn of(rows: &RecordBatch, names: &[String]) -> Self {
        let schema = rows.schema_ref();
        let mut positions: Vec<usize> = Vec::with_capacity(names.len());
        for position in names.iter().filter_map(|name| schema.index_of(name).ok()) {
            if !positions.contains(&position) {
                positions.push(position);
            }
        }
        let keys: Vec<ArrayRef> =
            positions.iter().filter_map(|at| rows.columns().get(*at)).map(Arc::clone).collect();
        if keys.is_empty() || rows.num_rows() == 0 {
            return Self::default();
        }
        let Ok(runs) = compute::partition(&keys) else { return Self::default() };
        let starts: Vec<u32> = runs.ranges().iter().map(|run| run.start as u32).collect();
        if starts.len() > rows.num_rows() / RUN_ROWS_MIN + 1 {
            return Self::default();
        }
        let first = UInt32Array::from(starts.clone());
        let columns: Result<Vec<ArrayRef>, _> =
            keys.iter().map(|key| compute::take(key, &first, None)).collect();
        let columns = columns.unwrap_or_default();
        let bytes: usize = columns.iter().map(|keys| keys.get_array_memory_size()).sum();
        if columns.is_empty() || bytes > KEYS_BYTES_MAX {
            return Self::default();
        }
        Self { positions, starts, columns }
    }

    /// About what it takes in memory.
    pub(super) fn memory_bytes(&self) -> usize {
        let keys: usize = self.columns.iter().map(|keys| keys.get_array_memory_size()).sum();
        keys + size_of_val(&*self.starts)
    }

    /// First rows of the runs; empty without an index.
    pub(super) fn starts(&self) -> &[u32] {
        &self.starts
    }

    /// Positions of the key columns; empty without an index.
    pub(super) fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// Keys of the runs in the column at that position of the schema.
    pub(super) fn column(&self, position: usize) -> Option<&ArrayRef> {
        let at = self.positions.iter().position(|key| *key == position)?;
        self.columns.get(at)
    }

    /// The rows whose keys pass, as ranges in order, out of `rows` in all; `None` when no term is about a key.
    pub(super) fn passing(
        &self,
        predicate: &Predicate,
        schema: &SchemaRef,
        rows: u64,
    ) -> Option<Vec<Range<u64>>> {
        let of_key = |term: &Term| {
            let position = schema.index_of(&term.column).ok()?;
            let at = self.positions.iter().position(|key| *key == position)?;
            Some(exact::passing(&term.test, self.columns.get(at)?))
        };
        let masks: Vec<BooleanArray> = predicate.terms.iter().filter_map(of_key).collect();
        if masks.is_empty() {
            return None;
        }
        let ends = self.starts.iter().skip(1).map(|start| u64::from(*start)).chain([rows]);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (run, (start, end)) in self.starts.iter().zip(ends).enumerate() {
            if !masks.iter().all(|mask| run < mask.len() && mask.value(run)) {
                continue;
            }
            let start = u64::from(*start);
            match ranges.last_mut().filter(|last| last.end == start) {
                Some(last) => last.end = end,
                None => ranges.push(start..end),
            }
        }
        Some(ranges)
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        put_varint(out, self.positions.len() as u128);
        self.positions.iter().for_each(|position| put_varint(out, *position as u128));
        if self.positions.is_empty() {
            return Ok(());
        }
        put_varint(out, self.starts.len() as u128);
        let starts = Int64Array::from_iter_values(self.starts.iter().copied().map(i64::from));
        put_array(out, &starts)?;
        self.columns.iter().try_for_each(|keys| put_array(out, keys))
    }

    /// Reads what [`Keys::put`] wrote, of a segment of `rows`.
    pub(super) fn read(
        reader: &mut Reader<'_>,
        schema: &SchemaRef,
        rows: u64,
    ) -> Result<Self, CodecError> {
        const OUT_OF_RANGE: CodecError = CodecError::Wrong("a key column is not in the schema");
        let mut positions = Vec::new();
        let mut types = Vec::new();
        for _ in 0..reader.varint_u64()? {
            let position = usize::try_from(reader.varint_u64()?).map_err(|_| OUT_OF_RANGE)?;
            let field = schema.fields().get(position).ok_or(OUT_OF_RANGE)?;
            if positions.contains(&position) {
                return Err(CodecError::Wrong("a key column stands twice"));
            }
            positions.push(position);
            types.push(field.data_type());
        }
        if positions.is_empty() {
            return Ok(Self::default());
        }
        let runs = reader.varint_u64()?;
        if runs > rows {
            return Err(CodecError::Wrong("there are more runs of keys than rows"));
        }
        let starts = read_array(reader, &DataType::Int64, runs)?;
        let starts: Option<Vec<u32>> = starts
            .as_primitive::<Int64Type>()
            .iter()
            .map(|start| u32::try_from(start?).ok())
            .collect();
        let ascending = |starts: &Vec<u32>| {
            starts.first().is_none_or(|first| *first == 0)
                && starts.array_windows().all(|[one, other]| one < other)
                && starts.last().is_none_or(|last| u64::from(*last) < rows)
        };
        let starts = starts.filter(ascending);
        let starts = starts.ok_or(CodecError::Wrong("runs of keys do not follow each other"))?;
        let columns = types.into_iter().map(|data_type| read_array(reader, data_type, runs));
        Ok(Self { positions, starts, columns: columns.collect::<Result<_, _>>()? })
    }
}

fn put_array(out: &mut Vec<u8>, array: &dyn Array) -> Result<(), CodecError> {
    let (shape, stored) = codec::encode(array, Effort::Fast)?;
    out.extend_from_slice(&[shape.encoding, shape.squeezed.into()]);
    for number in [shape.nulls, shape.body_bytes, shape.value_bytes] {
        put_varint(out, number.into());
    }
    put_sized(out, &stored);
    Ok(())
}

fn read_array(
    reader: &mut Reader<'_>,
    data_type: &DataType,
    rows: u64,
) -> Result<ArrayRef, CodecError> {
    const TOO_LARGE: CodecError = CodecError::Wrong("the keys are larger than keys may be");
    let encoding = reader.u8()?;
    let squeezed = reader.u8()? != 0;
    let mut number = || u32::try_from(reader.varint_u64()?).map_err(|_| TOO_LARGE);
    let (nulls, body_bytes, value_bytes) = (number()?, number()?, number()?);
    if value_bytes as usize > KEYS_BYTES_MAX {
        return Err(TOO_LARGE);
    }
    let rows = u32::try_from(rows).map_err(|_| TOO_LARGE)?;
    let shape = Shape { encoding, squeezed, rows, nulls, body_bytes, value_bytes };
    codec::decode(data_type, &shape, reader.sized()?)
}
