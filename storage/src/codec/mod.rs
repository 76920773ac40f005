//! Column encodings before zstd; bytes in, bytes out.
//!
//! [`mod@column`] chooses among the encodings of a block by measured size; the others are the encodings:
//!
//! - [`ints`]: constant, repeated, delta, delta of delta; bit-packed by [`bits`], in planes, or cold. All others build
//!   on it.
//! - [`floats`]: as scaled integers where they are decimals, else as their bits, or cold.
//! - [`strings`]: plain or as a dictionary.
//! - [`cold`]: pco, for what rarely changes.
//! - [`mod@squeeze`]: zstd, bounded.
//!
//! Every decoder takes bytes that may be anything: it returns an error, never panics, and allocates in proportion to
//! what its caller allows. Nulls never reach an encoding: the value before stands in their place.

mod bits;
mod bytes;
mod cold;
mod column;
mod error;
mod floats;
mod ints;
mod squeeze;
mod strings;

pub(crate) use bytes::{Reader, put_sized, put_varint, put_varint_signed};
pub(crate) use column::{Shape, VALUE_BYTES_MAX, decode, encode, supports};
pub(crate) use error::CodecError;
pub use squeeze::Effort;
pub(crate) use squeeze::{compress, decompress, squeeze};
