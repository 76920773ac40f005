//! Bit packing: numbers of one width, side by side, the lowest bits first.

use super::CodecError;

/// Zero bytes to leave after packed numbers, since [`unpack`] reads a whole word at each.
pub(crate) const SLACK_BYTES: usize = 8;
/// Widest packing below a whole word: seven bits of shift and this fit in one word.
const WIDTH_MAX: u32 = 56;
/// The width of a whole word.
const WORD: u32 = u64::BITS;

const _: () = assert!(WIDTH_MAX + 7 < WORD);
const _: () = assert!(SLACK_BYTES >= size_of::<u64>());

/// The width to pack numbers up to `greatest` with.
pub(crate) const fn width_of(greatest: u64) -> u32 {
    let width = WORD - greatest.leading_zeros();
    if width > WIDTH_MAX { WORD } else { width }
}

/// Bytes that `count` numbers of `width` take, without the slack.
pub(crate) const fn packed_bytes(count: usize, width: u32) -> usize {
    (count * width as usize).div_ceil(8)
}

/// Appends numbers, none wider than `width`. The slack is for the caller to append after the last.
pub(crate) fn pack(values: impl Iterator<Item = u64>, width: u32, out: &mut Vec<u8>) {
    if width == 0 {
        return;
    }
    let (mut word, mut filled) = (0u64, 0u32);
    for value in values {
        word |= value << filled;
        filled += width;
        if filled >= WORD {
            out.extend_from_slice(&word.to_le_bytes());
            filled -= WORD;
            // What did not fit; nothing of it when the word ended with the number.
            word = if filled == 0 { 0 } else { value >> (width - filled) };
        }
    }
    out.extend(word.to_le_bytes().iter().take(filled.div_ceil(8) as usize));
}

/// Reads numbers of `width` that [`pack`] wrote, out of bytes that have the slack after them.
pub(crate) fn unpack(input: &[u8], width: u32, out: &mut [u64]) -> Result<(), CodecError> {
    if input.len() < packed_bytes(out.len(), width) + SLACK_BYTES {
        return Err(CodecError::Short);
    }
    match width {
        0 => out.fill(0),
        WORD => {
            for (slot, bytes) in out.iter_mut().zip(input.as_chunks::<8>().0) {
                *slot = u64::from_le_bytes(*bytes);
            }
        }
        1..=WIDTH_MAX => unpack_narrow(input, width as usize, out),
        _ => return Err(CodecError::Wrong("a packed width is out of range")),
    }
    Ok(())
}

/// Numbers unpacked at once: as many of any width take whole bytes.
const GROUP: usize = 8;

/// Calls the function of a width, each compiled with offsets and shifts that are constants.
macro_rules! by_width {
    ($width:expr, $input:expr, $out:expr; $($known:literal)*) => {
        match $width {
            $($known => unpack_groups::<$known>($input, $out),)*
            _ => {}
        }
    };
}

fn unpack_narrow(input: &[u8], width: usize, out: &mut [u64]) {
    by_width!(width, input, out;
        1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28
        29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56);
}

/// Unpacks numbers of a width known when this is compiled, a group of them from each `WIDTH` bytes.
#[expect(clippy::indexing_slicing, reason = "unpack checked the length; a check a number is slow")]
fn unpack_groups<const WIDTH: usize>(input: &[u8], out: &mut [u64]) {
    let mask = (1u64 << WIDTH) - 1;
    let number = |bytes: &[u8], at: usize| {
        let bit = at * WIDTH;
        let word = bytes[bit / 8..bit / 8 + 8].first_chunk().copied();
        (word.map_or(0, u64::from_le_bytes) >> (bit % 8)) & mask
    };
    let (groups, rest) = out.as_chunks_mut::<GROUP>();
    let mut start = 0;
    for group in groups {
        let bytes = &input[start..start + WIDTH + SLACK_BYTES];
        for (at, slot) in group.iter_mut().enumerate() {
            *slot = number(bytes, at);
        }
        start += WIDTH;
    }
    for (at, slot) in rest.iter_mut().enumerate() {
        *slot = number(&input[start..], at);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_survive(bits in 0u32..=64, values in proptest::collection::vec(any::<u64>(), 0..300)) {
            let cut = |value: u64| if bits == 64 { value } else { value & ((1 << bits) - 1) };
            let values: Vec<u64> = values.into_iter().map(cut).collect();
            let width = width_of(values.iter().copied().max().unwrap_or(0));
            let mut packed = Vec::new();
            pack(values.iter().copied(), width, &mut packed);
            prop_assert_eq!(packed.len(), packed_bytes(values.len(), width));
            packed.extend([0; SLACK_BYTES]);
            let mut back = vec![0; values.len()];
            unpack(&packed, width, &mut back)?;
            prop_assert_eq!(back, values);
        }
    }

    #[test]
    fn what_is_too_short_or_too_wide_is_refused() {
        let mut out = [0; 16];
        assert_eq!(unpack(&[0; 16 + 7], 8, &mut out), Err(CodecError::Short));
        assert!(unpack(&[0; 200], 57, &mut out).is_err());
        assert!(unpack(&[0; 2000], 255, &mut out).is_err());
    }
}
