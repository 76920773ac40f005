//! zstd, where it helps.
//!
//! Decompression is bounded: the caller says how large the result is and nothing beyond that is ever allocated or
//! written. A whole frame goes into one buffer, so that no window is allocated either; the limit on it guards the
//! one case left, a context that streams.

use std::cell::RefCell;

use zstd::{
    bulk::{Compressor, Decompressor},
    zstd_safe::CParameter,
};

use super::CodecError;

/// How much time there is to compress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effort {
    /// Little: rows on their way, and rows that will be written again soon.
    #[default]
    Fast,
    /// Much: rows that rarely change any more.
    Strong,
}

/// The level that is about as fast to write as no compression is to store.
const LEVEL_FAST: i32 = 1;
/// The level above which blocks of some kilobytes hardly get smaller.
const LEVEL_STRONG: i32 = 9;
/// Shortest match in planes: shorter ones are chance there, and cost more than the codes that they replace.
const PLANE_MATCH_MIN: u32 = 7;
/// Largest window, as a power of two, that a frame may ask for.
const WINDOW_LOG_MAX: u32 = 23;
/// What is squeezed is to be smaller than this share of the original, in percent: reading it costs time.
const SHARE_PERCENT_MAX: usize = 85;
/// As before, of planes, which are read fast in any case.
const PLANE_SHARE_PERCENT_MAX: usize = 95;

/// A context, made when it is first needed: contexts are large and slow to make.
type Kept<T> = RefCell<Option<T>>;

thread_local! {
    static FAST: Kept<Compressor<'static>> = const { RefCell::new(None) };
    static STRONG: Kept<Compressor<'static>> = const { RefCell::new(None) };
    static PLANES: Kept<Compressor<'static>> = const { RefCell::new(None) };
    static DECOMPRESSOR: Kept<Decompressor<'static>> = const { RefCell::new(None) };
}

/// Compresses fast. zstd fails here only when memory does.
pub(crate) fn compress(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    FAST.with_borrow_mut(|slot| compress_in(slot, || Compressor::new(LEVEL_FAST), bytes))
}

fn compress_in(
    slot: &mut Option<Compressor<'static>>,
    make: impl FnOnce() -> std::io::Result<Compressor<'static>>,
    bytes: &[u8],
) -> std::io::Result<Vec<u8>> {
    let compressor = match slot {
        Some(compressor) => compressor,
        None => slot.insert(make()?),
    };
    compressor.compress(bytes)
}

/// Compresses when the result is worth it.
pub(crate) fn squeeze(effort: Effort, bytes: &[u8]) -> Option<Vec<u8>> {
    let fast = compress(bytes).ok()?;
    let squeezed = match effort {
        Effort::Fast => fast,
        Effort::Strong => {
            let make = || Compressor::new(LEVEL_STRONG);
            let strong = STRONG.with_borrow_mut(|slot| compress_in(slot, make, bytes)).ok()?;
            // Of texts that are nearly noise, the matches that are searched for longest cost more than they save.
            if strong.len() < fast.len() { strong } else { fast }
        }
    };
    worth(squeezed, bytes, SHARE_PERCENT_MAX)
}

/// As [`squeeze`], of a plane of numbers. More effort gains next to nothing there.
pub(crate) fn squeeze_plane(bytes: &[u8]) -> Option<Vec<u8>> {
    let make = || {
        let mut compressor = Compressor::new(LEVEL_FAST)?;
        compressor.set_parameter(CParameter::MinMatch(PLANE_MATCH_MIN))?;
        // The reader knows the size.
        compressor.set_parameter(CParameter::ContentSizeFlag(false))?;
        Ok(compressor)
    };
    let squeezed = PLANES.with_borrow_mut(|slot| compress_in(slot, make, bytes));
    worth(squeezed.ok()?, bytes, PLANE_SHARE_PERCENT_MAX)
}

fn worth(squeezed: Vec<u8>, bytes: &[u8], percent: usize) -> Option<Vec<u8>> {
    (squeezed.len() * 100 < bytes.len() * percent).then_some(squeezed)
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
        let squeezed = squeeze(Effort::Strong, &bytes).expect("repetitive bytes get smaller");
        assert_eq!(decompress(&squeezed, bytes.len()).as_ref(), Ok(&bytes));
        assert!(decompress(&squeezed, bytes.len() - 1).is_err());
        assert!(decompress(&squeezed, bytes.len() + 1).is_err());
        assert!(decompress(&squeezed[..squeezed.len() - 1], bytes.len()).is_err());
        assert!(decompress(&bytes, 100).is_err());
        let plane = squeeze_plane(&bytes).expect("repetitive bytes get smaller");
        assert_eq!(decompress(&plane, bytes.len()).as_ref(), Ok(&bytes));
        assert!(decompress(&plane, bytes.len() - 1).is_err());
        assert!(decompress(&plane, bytes.len() + 1).is_err());
    }

    #[test]
    fn more_effort_never_takes_more() {
        let digest = |i: u64| format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&i.to_le_bytes()));
        let digests: String = (0..8192).map(digest).collect();
        let [fast, strong] = [Effort::Fast, Effort::Strong].map(|effort| {
            squeeze(effort, digests.as_bytes()).expect("half of the bits are always the same").len()
        });
        assert!(strong <= fast, "{strong} and {fast}");
    }

    #[test]
    fn what_does_not_get_smaller_stays() {
        let noise: Vec<u8> = (0..1000u64)
            .flat_map(|i| xxhash_rust::xxh3::xxh3_64(&i.to_le_bytes()).to_le_bytes())
            .collect();
        assert_eq!(squeeze(Effort::Fast, &noise), None);
        assert_eq!(squeeze_plane(&noise), None);
    }
}
