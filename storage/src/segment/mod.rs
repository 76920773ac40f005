//! Segments: the immutable columnar form of rows inside a chunk.
//!
//! A segment is a header and some extents, each a value of the store under it. All numbers are little endian;
//! *varint* is seven bits a byte, lowest first, and *signed* is a varint in zigzag form.
//!
//! ```text
//! frame, around the header and around every block                         (frame.rs)
//!  0  "HTsg"        4
//!  4  version       2    2
//!  6  encoding      1    of the block; 0 around the header
//!  7  compression   1    0 none, 1 zstd
//!  8  file         16    so that a block of another file,
//! 24  segment       8      of another segment,
//! 32  column        4      of another column (the commit numbers are the one after the last)
//! 36  block         4      or of other rows is noticed; both are 2^32-1 around the header
//! 40  rows          4    \ 0 around the header
//! 44  nulls         4    /
//! 48  body bytes    4    after decompression
//! 52  value bytes   4    that the strings of the block take; 0 for other types
//! 56  body               compressed or not
//!  n  checksum      8    xxh3-64 of all before
//!
//! body of the header                                                      (header.rs)
//!     columns: varint; each: name, type, nullable u8, metadata            (schema.rs)
//!     metadata of the schema
//!     blocks: varint; each: rows varint
//!     extents: varint; each: bytes varint
//!     key index: where each series begins                                 (keys.rs)
//!     each column: sketch of its different values                         (sketch.rs)
//!     each column, then the commit numbers; of each block:
//!         bytes varint; unless 0: extent varint | offset varint           where it lies
//!         nulls varint | least value | greatest value | sum | exact u8    (stats.rs)
//!
//! body of a block                                                         (codec/column.rs)
//!     validity bitmap, when some rows are null | values as encoded
//!
//! extent
//!     frames of blocks, one after another, a column's blocks in sequence
//! ```
//!
//! - Rows are as the caller sorted them. A block holds the same rows in every column.
//! - A block has at most [`BLOCK_ROWS`] rows, and fewer where strings are long, so that decoding one is cheap. It ends
//!   where a series does once it is half full, so that the rows of a series lie in few blocks with few others.
//! - A block whose rows are all equal, such as a tag of a series, has no bytes: its zone map holds the value (`constant`).
//! - The header holds all that decides whether a block is read: zone maps never lose a row.
//! - Nothing that lies on disk is believed: every frame is verified whenever it is read, sizes are bounded by what
//!   the rows can take, and whatever is wrong comes out as a [`SegmentError`].
//! - The standard set of the TSBS `cpu` table, 2,592,000 rows of 100 hosts in six chunks, 314 MB as CSV, takes 8.06 MB
//!   so, and 9.07 MB as compressed chunk files with all that is in them (`cargo bench -p hypertide-storage -- sizes`).
//!   Flushing 80,000 rows of it, from batches in memory to the synced file, goes at 53 M values/s; writing sorted rows
//!   alone at 97 M, or 66 M with the strongest encodings. One core of a 2-core EPYC machine with nothing else to do.
//! - Deliberately absent: deletes, versions of rows, indexes of values. A newer encoding is a new number, not a new version.

mod constant;
mod decode;
mod encode;
mod error;
mod frame;
mod header;
mod keys;
mod reframe;
mod schema;
mod sketch;
mod stats;
#[cfg(test)]
mod tests;

pub use decode::Segment;
pub use encode::{EncodeOptions, EncodedSegment, encode, encode_with};
pub use error::SegmentError;
pub(crate) use reframe::Reframe;
pub(crate) use sketch::Sketch;

pub use crate::codec::Effort;

/// The body of a header, out of its frame, for tests that damage it there.
#[cfg(test)]
pub(crate) fn header_body(key: SegmentKey, header: &[u8]) -> Option<Vec<u8>> {
    let (shape, stored) = frame::unwrap(frame::Address::header(key), header).ok()?;
    match shape.squeezed {
        true => crate::codec::decompress(stored, shape.body_bytes as usize).ok(),
        false => Some(stored.to_vec()),
    }
}

/// A frame of a header around a body.
#[cfg(test)]
pub(crate) fn header_of(key: SegmentKey, body: &[u8]) -> Vec<u8> {
    let body_bytes = body.len() as u32;
    let shape = crate::codec::Shape { body_bytes, ..crate::codec::Shape::default() };
    frame::wrap(frame::Address::header(key), &shape, body)
}

/// Most rows of a block.
pub const BLOCK_ROWS: usize = 8192;
/// Most rows of a segment.
pub const SEGMENT_ROWS_MAX: usize = 1 << 20;
/// Blocks are cut so that the strings of a column take no more, unless a single one does.
const BLOCK_VALUE_BYTES: usize = 8 << 20;
/// Extents of large blocks hold up to this, a little less than the run of pages of 256 KiB that the value is stored in,
/// since the page holds its own head and the key, too.
const EXTENT_BYTES: usize = (256 << 10) - 1024;
/// As before, of small blocks, of which a reader of one column would otherwise read many of other columns. It also is
/// what the last extent of a segment may waste.
const EXTENT_BYTES_SMALL: usize = (64 << 10) - 1024;
/// Blocks up to this are small: so many fill an extent well.
const BLOCK_BYTES_SMALL: usize = EXTENT_BYTES_SMALL / 8;
/// Most bytes of the body of a header.
const HEADER_BYTES_MAX: usize = 32 << 20;

const _: () = assert!(SEGMENT_ROWS_MAX.is_multiple_of(BLOCK_ROWS));
const _: () = assert!(SEGMENT_ROWS_MAX <= u32::MAX as usize);
// The positions of exceptions among floats are of 16 bits.
const _: () = assert!(BLOCK_ROWS <= 1 << 16);
const _: () = assert!(BLOCK_VALUE_BYTES <= crate::codec::VALUE_BYTES_MAX);
const _: () = assert!(EXTENT_BYTES > frame::FRAME_BYTES);
const _: () = assert!(HEADER_BYTES_MAX <= u32::MAX as usize);

/// Names a segment for ever. Every frame carries it, so that a block of another file or segment is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentKey {
    /// The file, by the UUID drawn when it was made.
    pub file: [u8; 16],
    /// Number of the segment in the file, never reused.
    pub segment: u64,
}

/// Where a block lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Number of the extent, from 0.
    pub extent: usize,
    /// Offset of the block in the extent, in bytes.
    pub offset: usize,
    /// Bytes of the block with its frame.
    pub len: usize,
}
