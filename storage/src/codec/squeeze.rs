//! zstd, where it helps.
//!
//! Decompression is bounded: the caller says how large the result is and nothing beyond that is ever allocated or
//! written. A whole frame goes into one buffer, so that no window is allocated either; the limit on it guards the
//! one case left, a context that streams.

use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};

use super::CodecError;

/// The level that is about as fast to write as no compression is to store.
const LEVEL: i32 = 1;
/// Largest window, as a power of two, that a frame may ask for.
const WINDOW_LOG_MAX: u32 = 23;
/// What is squeezed is to be smaller than this share of the original, in percent: reading it costs time.
const SHARE_PERCENT_MAX: usize = 95;

thread_local! {
    /// Contexts are large and slow to make; each thread keeps its own.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Compresses. zstd fails here only when memory does.
pub(crate) fn compress(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|slot| {
        let compressor = match slot {
            Some(compressor) => compressor,
            None => slot.insert(Compressor::new(LEVEL)?),
        };
        compressor.compress(bytes)
    })
}

/// Compresses when the result is worth it.
pub(crate) fn squeeze(bytes: &[u8]) -> Option<Vec<u8>> {
    let squeezed = compress(bytes).ok()?;
    (squeezed.len() * 100 < bytes.len() * SHARE_PERCENT_MAX).then_some(squeezed)
}

/// Decompresses to exactly `size` bytes, which the caller bounds.
pub(crate) fn decompress(bytes: &[u8], size: usize) -> Result<Vec<u8>, CodecError> {
    const FAILED: CodecError = CodecError::Wrong("zstd cannot decompress the bytes");
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => {
                let mut fresh = Decompressor::new().map_err(|_| FAILED)?;
                fresh.window_log_max(WINDOW_LOG_MAX).map_err(|_| FAILED)?;
                slot.insert(fresh)
            }
        };
        let mut out = Vec::with_capacity(size);
        decompressor.decompress_to_buffer(bytes, &mut out).map_err(|_| FAILED)?;
        if out.len() != size {
            return Err(CodecError::Wrong("the bytes decompress to another size than they should"));
        }
        Ok(out)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_and_the_size_binds() {
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i / 7 % 50) as u8).collect();
        let squeezed = squeeze(&bytes).expect("repetitive bytes get smaller");
        assert_eq!(decompress(&squeezed, bytes.len()).as_ref(), Ok(&bytes));
        assert!(decompress(&squeezed, bytes.len() - 1).is_err());
        assert!(decompress(&squeezed, bytes.len() + 1).is_err());
        assert!(decompress(&squeezed[..squeezed.len() - 1], bytes.len()).is_err());
        assert!(decompress(&bytes, 100).is_err());
    }

    #[test]
    fn what_does_not_get_smaller_stays() {
        let noise: Vec<u8> = (0..1000u64)
            .flat_map(|i| xxhash_rust::xxh3::xxh3_64(&i.to_le_bytes()).to_le_bytes())
            .collect();
        assert_eq!(squeeze(&noise), None);
    }
}
