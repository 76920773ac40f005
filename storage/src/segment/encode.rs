//! Writes segments.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{Array, AsArray, Int64Array, RecordBatch},
    datatypes::{BinaryType, DataType, Utf8Type},
};
use hypertide_proto::schema::COLUMNS_MAX;

use super::{
    BLOCK_BYTES_SMALL, BLOCK_ROWS, BLOCK_VALUE_BYTES, EXTENT_BYTES, EXTENT_BYTES_SMALL, Effort,
    Place, SEGMENT_ROWS_MAX, SegmentError, SegmentKey,
    constant::is_constant,
    frame::{self, Address},
    header::{Entry, Header},
    keys::Keys,
    sketch::Sketch,
    stats::Stats,
};
use crate::codec::{self, CodecError};

/// A segment as bytes: a header, and extents that blocks lie in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedSegment {
    /// Schema, zone maps and block directory.
    pub header: Vec<u8>,
    /// Blocks, packed. Each is just under 64 or 256 KiB, or holds a single larger block.
    pub extents: Vec<Vec<u8>>,
}

/// How a segment is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct EncodeOptions<'a> {
    /// How much time there is to make it small.
    pub effort: Effort,
    /// Columns that the rows are sorted by before time: the names of a series. Others than the schema has count not.
    pub keys: &'a [String],
}

/// [`encode_with`] in a hurry, and without keys.
pub fn encode(
    key: SegmentKey,
    rows: &RecordBatch,
    csns: &[u64],
) -> Result<EncodedSegment, SegmentError> {
    encode_with(key, rows, csns, EncodeOptions::default())
}

/// Encodes rows, which the caller has sorted, with the commit number of each as a hidden column.
///
/// The same rows always give the same bytes. Fails only for rows that no segment can hold: too many, a type that is
/// not one of `hypertide_proto::schema`, or a single value of more than 256 MiB.
pub fn encode_with(
    key: SegmentKey,
    rows: &RecordBatch,
    csns: &[u64],
    options: EncodeOptions<'_>,
) -> Result<EncodedSegment, SegmentError> {
    check(rows, csns)?;
    let effort = options.effort;
    let keys = Keys::of(rows, options.keys);
    let blocks = cut(rows, &keys);
    let mut extents = Extents::default();
    let mut columns = Vec::with_capacity(rows.num_columns() + 1);
    let mut sketches = Vec::with_capacity(rows.num_columns());
    for (column, (array, field)) in rows.columns().iter().zip(rows.schema().fields()).enumerate() {
        let mut entries = Vec::with_capacity(blocks.len());
        let mut sketch = Sketch::default();
        for (block, range) in blocks.iter().enumerate() {
            let array = array.slice(range.start, range.len());
            let stats = Stats::of(&array);
            sketch.add(&array);
            let place = if is_constant(&array, &stats) {
                Place::default()
            } else {
                let address = Address::block(key, column, block);
                put_block(&mut extents, address, &array, effort)
                    .map_err(|error| invalid(field.name(), &error))?
            };
            entries.push(Entry { place, stats });
        }
        columns.push(entries);
        sketches.push(sketch);
    }
    let mut entries = Vec::with_capacity(blocks.len());
    for (block, range) in blocks.iter().enumerate() {
        let csns = csns.get(range.clone()).unwrap_or_default();
        let array = Int64Array::from_iter_values(csns.iter().map(|csn| csn.cast_signed()));
        let address = Address::block(key, rows.num_columns(), block);
        let place = put_block(&mut extents, address, &array, effort)
            .map_err(|error| invalid("commit number", &error))?;
        entries.push(Entry { place, stats: Stats::of_csns(csns) });
    }
    columns.push(entries);
    let header = Header {
        schema: rows.schema(),
        block_rows: blocks.iter().map(|range| range.len() as u32).collect(),
        extent_bytes: extents.all.iter().map(|extent| extent.len() as u64).collect(),
        keys,
        sketches,
        columns,
    };
    Ok(EncodedSegment { header: header.to_bytes(key)?, extents: extents.all })
}

fn invalid(column: &str, error: &CodecError) -> SegmentError {
    SegmentError::Invalid(format!("column \"{column}\": {error}"))
}

fn check(rows: &RecordBatch, csns: &[u64]) -> Result<(), SegmentError> {
    let count = rows.num_rows();
    if count > SEGMENT_ROWS_MAX {
        let what = format!("a segment has at most {SEGMENT_ROWS_MAX} rows, not {count}");
        return Err(SegmentError::Invalid(what));
    }
    if rows.num_columns() > COLUMNS_MAX {
        let columns = rows.num_columns();
        let what = format!("a segment has at most {COLUMNS_MAX} columns, not {columns}");
        return Err(SegmentError::Invalid(what));
    }
    if csns.len() != count {
        let what = format!("there are {} commit numbers for {count} rows", csns.len());
        return Err(SegmentError::Invalid(what));
    }
    for field in rows.schema_ref().fields() {
        if !codec::supports(field.data_type()) {
            let (name, data_type) = (field.name(), field.data_type());
            let what = format!("column \"{name}\": a segment cannot hold the type {data_type}");
            return Err(SegmentError::Invalid(what));
        }
    }
    Ok(())
}

/// Cuts the rows into blocks: where a series ends, once a block is half full, and sooner where strings are long.
fn cut(rows: &RecordBatch, keys: &Keys) -> Vec<Range<usize>> {
    let mut blocks = Vec::new();
    let mut start = 0;
    while start < rows.num_rows() {
        let end = (start + BLOCK_ROWS).min(rows.num_rows());
        let series = keys.starts().partition_point(|begin| *begin as usize <= end);
        let begin = series.checked_sub(1).and_then(|last| keys.starts().get(last));
        let end = match begin.map(|begin| *begin as usize) {
            Some(begin) if end < rows.num_rows() && begin >= start + BLOCK_ROWS / 2 => begin,
            _ => end,
        };
        let ends = rows.columns().iter().map(|array| cut_strings(array, start, end));
        let end = ends.min().unwrap_or(end);
        blocks.push(start..end);
        start = end;
    }
    blocks
}

/// The end of the longest run of rows whose strings fit a block; at least one row.
fn cut_strings(array: &Arc<dyn Array>, start: usize, end: usize) -> usize {
    let offsets = match array.data_type() {
        DataType::Utf8 => array.as_bytes::<Utf8Type>().value_offsets(),
        DataType::Binary => array.as_bytes::<BinaryType>().value_offsets(),
        _ => return end,
    };
    let first = offsets.get(start).copied().unwrap_or_default();
    let ends = offsets.get(start + 1..=end).unwrap_or_default();
    let fitting = ends.partition_point(|end| (end - first) as usize <= BLOCK_VALUE_BYTES);
    start + fitting.max(1)
}

fn put_block(
    extents: &mut Extents,
    address: Address,
    array: &dyn Array,
    effort: Effort,
) -> Result<Place, CodecError> {
    let (shape, body) = codec::encode(array, effort)?;
    Ok(extents.put(frame::wrap(address, &shape, &body)))
}

/// Packs blocks into extents, small ones apart from large ones.
#[derive(Debug, Default)]
struct Extents {
    all: Vec<Vec<u8>>,
    /// How much each may hold.
    capacities: Vec<usize>,
}

impl Extents {
    /// Extents that may still be filled. More would fill them better, and scatter the blocks of a column.
    const OPEN: usize = 4;

    fn put(&mut self, frame: Vec<u8>) -> Place {
        let len = frame.len();
        let capacity = if len <= BLOCK_BYTES_SMALL { EXTENT_BYTES_SMALL } else { EXTENT_BYTES };
        let first_open = self.all.len().saturating_sub(Self::OPEN);
        let mut open = self.all.iter_mut().zip(&self.capacities).enumerate().skip(first_open);
        let fits = |(_, (extent, of)): &(usize, (&mut Vec<u8>, &usize))| {
            **of == capacity && extent.len() + len <= capacity
        };
        if let Some((extent, (bytes, _))) = open.find(fits) {
            let offset = bytes.len();
            bytes.extend_from_slice(&frame);
            return Place { extent, offset, len };
        }
        self.all.push(frame);
        self.capacities.push(capacity);
        Place { extent: self.all.len() - 1, offset: 0, len }
    }
}
