//! The frame around the header and around every block: what it is, whose it is, and whether it is whole.

use super::{SegmentError, SegmentKey};
use crate::codec::Shape;

const MAGIC: [u8; 4] = *b"HTsg";
/// Version of the format. Raise it when bytes get another meaning; once one was released, keep reading it.
pub(super) const VERSION: u16 = 2;

const MAGIC_OFFSET: usize = 0;
const VERSION_OFFSET: usize = MAGIC_OFFSET + MAGIC.len();
const ENCODING_OFFSET: usize = VERSION_OFFSET + size_of::<u16>();
const SQUEEZED_OFFSET: usize = ENCODING_OFFSET + size_of::<u8>();
const FILE_OFFSET: usize = SQUEEZED_OFFSET + size_of::<u8>();
const SEGMENT_OFFSET: usize = FILE_OFFSET + 16;
const COLUMN_OFFSET: usize = SEGMENT_OFFSET + size_of::<u64>();
const BLOCK_OFFSET: usize = COLUMN_OFFSET + size_of::<u32>();
const ROWS_OFFSET: usize = BLOCK_OFFSET + size_of::<u32>();
const NULLS_OFFSET: usize = ROWS_OFFSET + size_of::<u32>();
const BODY_BYTES_OFFSET: usize = NULLS_OFFSET + size_of::<u32>();
const VALUE_BYTES_OFFSET: usize = BODY_BYTES_OFFSET + size_of::<u32>();
const HEAD_BYTES: usize = VALUE_BYTES_OFFSET + size_of::<u32>();
const CHECKSUM_BYTES: usize = size_of::<u64>();
/// Bytes of a frame besides the body.
pub(super) const FRAME_BYTES: usize = HEAD_BYTES + CHECKSUM_BYTES;

const _: () = assert!(HEAD_BYTES == 56);
const _: () = assert!(FRAME_BYTES == 64);

/// Stands for column and block in the frame of the header.
const HEADER: u32 = u32::MAX;

/// What a frame is around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// The segment.
    pub(super) key: SegmentKey,
    column: u32,
    block: u32,
}

impl Address {
    /// The header of a segment.
    pub(super) const fn header(key: SegmentKey) -> Self {
        Self { key, column: HEADER, block: HEADER }
    }

    /// A block; the commit numbers are the column after the last.
    pub(super) const fn block(key: SegmentKey, column: usize, block: usize) -> Self {
        Self { key, column: column as u32, block: block as u32 }
    }
}

/// Puts a frame around a body.
pub(super) fn wrap(address: Address, shape: &Shape, body: &[u8]) -> Vec<u8> {
    let Address { key, column, block } = address;
    let mut out = Vec::with_capacity(FRAME_BYTES + body.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.push(shape.encoding);
    out.push(shape.squeezed.into());
    out.extend_from_slice(&key.file);
    out.extend_from_slice(&key.segment.to_le_bytes());
    for number in [column, block, shape.rows, shape.nulls, shape.body_bytes, shape.value_bytes] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    debug_assert_eq!(out.len(), HEAD_BYTES);
    out.extend_from_slice(body);
    let checksum = xxhash_rust::xxh3::xxh3_64(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

/// Why a frame is refused.
#[derive(Debug)]
pub(super) enum Fault {
    /// Not what was written there.
    Damaged(String),
    /// Written by a newer version.
    Unsupported(String),
}

impl Fault {
    /// The error of the segment, which names the place.
    pub(super) fn at(self, key: SegmentKey, place: String) -> SegmentError {
        let segment = key.segment;
        match self {
            Self::Damaged(what) => SegmentError::Damaged { segment, place, what },
            Self::Unsupported(what) => SegmentError::Unsupported { segment, place, what },
        }
    }
}

impl From<crate::codec::CodecError> for Fault {
    fn from(error: crate::codec::CodecError) -> Self {
        match error {
            crate::codec::CodecError::Unknown { .. } => Self::Unsupported(error.to_string()),
            _ => Self::Damaged(error.to_string()),
        }
    }
}

/// Checks a frame against what ought to be there; gives its shape and its body.
///
/// Magic and checksum are where they are in every version, so that damage is never taken for another version.
pub(super) fn unwrap(address: Address, frame: &[u8]) -> Result<(Shape, &[u8]), Fault> {
    let damaged = |what: &str| Fault::Damaged(what.to_owned());
    let short = || damaged("the frame is too short");
    let (checked, checksum) = frame.split_last_chunk::<CHECKSUM_BYTES>().ok_or_else(short)?;
    let (head, body) = checked.split_first_chunk::<HEAD_BYTES>().ok_or_else(short)?;
    if head.first_chunk() != Some(&MAGIC) {
        return Err(damaged("the frame does not begin as one"));
    }
    if xxhash_rust::xxh3::xxh3_64(checked) != u64::from_le_bytes(*checksum) {
        return Err(damaged("the checksum does not match"));
    }
    let version = u16::from_le_bytes(field(head, VERSION_OFFSET));
    if version != VERSION {
        let what = format!("the format has version {version}, this program reads {VERSION}");
        return Err(Fault::Unsupported(what));
    }
    let [encoding] = field(head, ENCODING_OFFSET);
    let [squeezed] = field(head, SQUEEZED_OFFSET);
    if squeezed > 1 {
        return Err(Fault::Unsupported(format!("compression {squeezed} is not known")));
    }
    let number = |offset| u32::from_le_bytes(field(head, offset));
    let found = Address {
        key: SegmentKey {
            file: field(head, FILE_OFFSET),
            segment: u64::from_le_bytes(field(head, SEGMENT_OFFSET)),
        },
        column: number(COLUMN_OFFSET),
        block: number(BLOCK_OFFSET),
    };
    if found != address {
        return Err(Fault::Damaged(format!("here lies {found}")));
    }
    let shape = Shape {
        encoding,
        squeezed: squeezed == 1,
        rows: number(ROWS_OFFSET),
        nulls: number(NULLS_OFFSET),
        body_bytes: number(BODY_BYTES_OFFSET),
        value_bytes: number(VALUE_BYTES_OFFSET),
    };
    Ok((shape, body))
}

/// A field of the head, all of which lie in it.
fn field<const N: usize>(head: &[u8; HEAD_BYTES], offset: usize) -> [u8; N] {
    let field = head.get(offset..).and_then(|rest| rest.first_chunk());
    *field.expect("the offsets are constants below the size of the head")
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { key, column, block } = self;
        match *column {
            HEADER => write!(f, "the header")?,
            _ => write!(f, "column {column}, block {block}")?,
        }
        write!(f, " of segment {} of file ", key.segment)?;
        key.file.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
