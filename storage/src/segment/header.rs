//! The header of a segment: schema, zone maps, and where each block lies.

use arrow::datatypes::{DataType, SchemaRef};

use super::{
    BLOCK_ROWS, HEADER_BYTES_MAX, Place, SEGMENT_ROWS_MAX, SegmentError, SegmentKey,
    frame::{self, Address, FRAME_BYTES, Fault},
    keys::Keys,
    schema,
    sketch::Sketch,
    stats::Stats,
};
use crate::codec::{self, CodecError, Reader, Shape, put_varint};

/// What the header says of a block.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    /// Without length when the zone map says all that there is.
    pub(super) place: Place,
    pub(super) stats: Stats,
}

/// The header as values.
///
/// - No block is empty or has more than [`BLOCK_ROWS`] rows; together they have at most [`SEGMENT_ROWS_MAX`].
/// - There is an entry for each block of each column, and of the commit numbers after the last column.
/// - Every block lies within its extent, or has no bytes and its zone map is enough; commit numbers have bytes.
/// - There is a sketch for each column.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Header {
    pub(super) schema: SchemaRef,
    /// Rows of each block.
    pub(super) block_rows: Vec<u32>,
    /// Bytes of each extent.
    pub(super) extent_bytes: Vec<u64>,
    /// Where each series begins.
    pub(super) keys: Keys,
    /// By column.
    pub(super) sketches: Vec<Sketch>,
    /// By column, then by block.
    pub(super) columns: Vec<Vec<Entry>>,
}

/// The type that commit numbers count as in zone maps and blocks.
pub(super) const CSN_TYPE: DataType = DataType::Int64;

impl Header {
    /// The header in its frame.
    pub(super) fn to_bytes(&self, key: SegmentKey) -> Result<Vec<u8>, SegmentError> {
        let body = self.body().map_err(|error| SegmentError::Invalid(error.to_string()))?;
        if body.len() > HEADER_BYTES_MAX {
            let what = "columns and blocks are so many that the header of the segment is too large";
            return Err(SegmentError::Invalid(what.to_owned()));
        }
        let squeezed = codec::squeeze(codec::Effort::Fast, &body);
        let body_bytes = body.len() as u32;
        let shape = Shape { squeezed: squeezed.is_some(), body_bytes, ..Shape::default() };
        Ok(frame::wrap(Address::header(key), &shape, &squeezed.unwrap_or(body)))
    }

    /// About what it takes in memory.
    pub(super) fn memory_bytes(&self) -> usize {
        let texts = |entry: &Entry| size_of::<Entry>() + entry.stats.text_bytes();
        let entries: usize = self.columns.iter().flatten().map(texts).sum();
        let fields: usize = self.schema.fields().iter().map(|field| field.size()).sum();
        let lists = self.block_rows.len() * size_of::<u32>() + self.extent_bytes.len() * 8;
        entries + fields + lists + self.keys.memory_bytes() + size_of_val(&*self.sketches)
    }

    fn body(&self) -> Result<Vec<u8>, CodecError> {
        let mut out = Vec::new();
        schema::put(&mut out, &self.schema);
        put_varint(&mut out, self.block_rows.len() as u128);
        self.block_rows.iter().for_each(|rows| put_varint(&mut out, (*rows).into()));
        put_varint(&mut out, self.extent_bytes.len() as u128);
        self.extent_bytes.iter().for_each(|bytes| put_varint(&mut out, (*bytes).into()));
        self.keys.put(&mut out)?;
        self.sketches.iter().for_each(|sketch| sketch.put(&mut out));
        for Entry { place, stats } in self.columns.iter().flatten() {
            put_varint(&mut out, place.len as u128);
            if place.len > 0 {
                put_varint(&mut out, place.extent as u128);
                put_varint(&mut out, place.offset as u128);
            }
            stats.put(&mut out);
        }
        Ok(out)
    }

    /// Opens a frame and checks what lies in it.
    pub(super) fn from_bytes(key: SegmentKey, bytes: &[u8]) -> Result<Self, Fault> {
        let (shape, stored) = frame::unwrap(Address::header(key), bytes)?;
        let body_bytes = shape.body_bytes as usize;
        if body_bytes > HEADER_BYTES_MAX {
            return Err(CodecError::Wrong("the header is larger than a header may be").into());
        }
        let decompressed = match shape.squeezed {
            true => Some(codec::decompress(stored, body_bytes)?),
            false => None,
        };
        let mut reader = Reader::new(decompressed.as_deref().unwrap_or(stored));
        let header = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(header)
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let schema = schema::read(reader)?;
        let block_rows = read_block_rows(reader)?;
        let mut extent_bytes = Vec::new();
        for _ in 0..reader.varint_u64()? {
            extent_bytes.push(reader.varint_u64()?);
        }
        let rows = block_rows.iter().map(|rows| u64::from(*rows)).sum();
        let keys = Keys::read(reader, &schema, rows)?;
        let sketches = schema.fields().iter().map(|_| Sketch::read(reader));
        let sketches = sketches.collect::<Result<_, _>>()?;
        let mut columns = Vec::new();
        let kinds = schema.fields().iter().map(|field| (field.data_type(), field.is_nullable()));
        for (data_type, nullable) in kinds.chain([(&CSN_TYPE, false)]) {
            let mut entries = Vec::new();
            for rows in &block_rows {
                let place = read_place(reader, &extent_bytes)?;
                let stats = Stats::read(reader, data_type, (*rows).into())?;
                if !nullable && stats.zone().nulls > 0 {
                    return Err(CodecError::Wrong("a column that has no nulls has some"));
                }
                entries.push(Entry { place, stats });
            }
            columns.push(entries);
        }
        Ok(Self { schema, block_rows, extent_bytes, keys, sketches, columns })
    }
}

fn read_block_rows(reader: &mut Reader<'_>) -> Result<Vec<u32>, CodecError> {
    const OUT_OF_RANGE: CodecError = CodecError::Wrong("a number of rows is out of range");
    let mut block_rows = Vec::new();
    let mut all = 0;
    for _ in 0..reader.varint_u64()? {
        let rows = reader.varint_u64()?;
        all += rows;
        if rows == 0 || rows > BLOCK_ROWS as u64 || all > SEGMENT_ROWS_MAX as u64 {
            return Err(OUT_OF_RANGE);
        }
        block_rows.push(rows as u32);
    }
    Ok(block_rows)
}

fn read_place(reader: &mut Reader<'_>, extent_bytes: &[u64]) -> Result<Place, CodecError> {
    const OUTSIDE: CodecError = CodecError::Wrong("a block lies outside of its extent");
    let len = reader.varint_u64()?;
    if len == 0 {
        return Ok(Place::default());
    }
    let [extent, offset] = [reader.varint_u64()?, reader.varint_u64()?];
    let number = |number| usize::try_from(number).map_err(|_| OUTSIDE);
    let place = Place { extent: number(extent)?, offset: number(offset)?, len: number(len)? };
    let bytes = extent_bytes.get(place.extent).ok_or(OUTSIDE)?;
    let end = offset.checked_add(len).ok_or(OUTSIDE)?;
    if end > *bytes || place.len < FRAME_BYTES {
        return Err(OUTSIDE);
    }
    Ok(place)
}
