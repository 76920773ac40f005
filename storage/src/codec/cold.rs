//! Numbers as pco has them: the smallest form, and the slowest, for rows that rarely change any more.
//!
//! pco finds bins in numbers, or in their deltas, and codes which bin each is in near the entropy. Its bytes are
//! self-contained; the number of values is the caller's, and must be met exactly.

use pco::{
    ChunkConfig, DeltaSpec, ModeSpec,
    data_types::Number,
    standalone::{simple_compress, simple_decompress_into},
};

use super::CodecError;

/// pco's own default: higher levels take much longer and save next to nothing on blocks of some thousand values.
const LEVEL: usize = 8;

/// Compresses integers that pack best after neighbours were subtracted `order` times.
pub(crate) fn compress_integers(values: &[i64], order: usize) -> Option<Vec<u8>> {
    let delta = match order {
        0 => DeltaSpec::NoOp,
        order => DeltaSpec::TryConsecutive(order),
    };
    let config = ChunkConfig::default()
        .with_compression_level(LEVEL)
        .with_mode_spec(ModeSpec::Classic)
        .with_delta_spec(delta);
    compress(values, &config)
}

/// Compresses floats, whose mode pco finds itself. The caller verifies that all bits come back.
pub(crate) fn compress_floats<T: Number>(values: &[T]) -> Option<Vec<u8>> {
    compress(values, &ChunkConfig::default().with_compression_level(LEVEL))
}

fn compress<T: Number>(values: &[T], config: &ChunkConfig) -> Option<Vec<u8>> {
    if values.is_empty() {
        return None;
    }
    simple_compress(values, config).ok()
}

/// Decompresses exactly `count` integers, which the caller bounds.
pub(crate) fn decompress_integers(bytes: &[u8], count: usize) -> Result<Vec<i64>, CodecError> {
    decompress(bytes, count)
}

/// As [`decompress_integers`], of any numbers.
pub(crate) fn decompress<T: Number + Copy + Default>(
    bytes: &[u8],
    count: usize,
) -> Result<Vec<T>, CodecError> {
    const FAILED: CodecError = CodecError::Wrong("pco cannot decompress the numbers");
    let mut values = vec![T::default(); count];
    let progress = simple_decompress_into(bytes, &mut values).map_err(|_| FAILED)?;
    if progress.n_processed != count || !progress.finished {
        return Err(CodecError::Wrong("pco has another number of values than it should"));
    }
    Ok(values)
}
