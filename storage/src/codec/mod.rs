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
//! As columns of a segment, blocks of 8,192 values, ordinary effort (`cargo bench -p hypertide-storage -- code`; one
//! core of a 2-core EPYC machine with nothing else to do):
//!
//! ```text
//!                                bits a value   encode M/s   decode M/s
//! time, regular                       0.08         141         2,800
//! time, jitter                       13.43          63         1,310
//! integer, counter                   11.21          70         1,380
//! integer, 5 states                   0.12         193         7,660
//! double, walk of whole numbers       2.30          70           885
//! double, walk of two decimals        9.69          60           652
//! double, noise                      53.11          34           955
//! text, 100 tags at random            7.92          44           239
//! text, 64 random bits in hex        65.10          39           145
//! boolean, one in ten                 0.64         308         4,030
//! ```
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
