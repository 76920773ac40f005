//! Floats: as scaled integers where they are decimals, as their bits elsewhere.
//!
//! ```text
//! scaled  exponent u8 | exceptions u16 | position u16 an exception | bits u32 or u64 an exception | integers
//! bits    integers
//! cold    what pco made of the floats
//! ```
//!
//! A float is a decimal here when an integer divided by a power of ten gives back exactly its bits; a few that are
//! not, such as NaN, infinities and -0, stand as exceptions. The writer verifies each value by the division that the
//! reader does, so that what it writes is exact.

use super::{
    CodecError,
    bytes::Reader,
    cold,
    ints::{self, Plan},
};

/// The powers of ten that are exact and useful: more digits than these are no decimals but noise.
const POWERS: [f64; 13] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12];
/// One value in so many may be an exception; each takes about ten bytes.
const VALUES_PER_EXCEPTION: usize = 64;
/// Adding this to a float of less than 51 bits leaves it rounded, as an integer, in the low bits of the sum.
const ROUNDER: f64 = (3u64 << 51) as f64;

/// A float of either width.
pub(crate) trait Real: pco::data_types::Number + Copy + Default {
    /// Bytes of the bits.
    const BYTES: usize;
    /// The bits, the upper ones zero.
    fn bits(self) -> u64;
    /// From what [`Real::bits`] gave.
    fn from_bits(bits: u64) -> Self;
    /// As the wider float.
    fn widen(self) -> f64;
    /// The nearest to the wider float.
    fn narrow(value: f64) -> Self;
}

impl Real for f64 {
    const BYTES: usize = 8;

    fn bits(self) -> u64 {
        self.to_bits()
    }

    fn from_bits(bits: u64) -> Self {
        Self::from_bits(bits)
    }

    fn widen(self) -> f64 {
        self
    }

    fn narrow(value: f64) -> Self {
        value
    }
}

impl Real for f32 {
    const BYTES: usize = 4;

    fn bits(self) -> u64 {
        self.to_bits().into()
    }

    fn from_bits(bits: u64) -> Self {
        Self::from_bits(bits as u32)
    }

    fn widen(self) -> f64 {
        self.into()
    }

    fn narrow(value: f64) -> Self {
        value as Self
    }
}

/// What an integer stands for. Writer and reader must compute the same, bit for bit: both call this.
#[inline]
fn unscale<R: Real>(scaled: i64, power: f64) -> R {
    R::narrow(scaled as f64 / power)
}

/// Floats as integers.
#[derive(Debug)]
pub(crate) struct Scaled {
    exponent: u8,
    integers: Vec<i64>,
    /// Positions and bits of the values that are no decimals.
    exceptions: Vec<(u16, u64)>,
}

impl Scaled {
    /// The values scaled by the least power of ten that fits nearly all; `None` when there is none.
    pub(crate) fn new<R: Real>(values: &[R]) -> Option<Self> {
        (0u8..).zip(POWERS).find_map(|(exponent, power)| Self::at(values, exponent, power))
    }

    fn at<R: Real>(values: &[R], exponent: u8, power: f64) -> Option<Self> {
        let exceptions_max = values.len() / VALUES_PER_EXCEPTION + 1;
        let mut exceptions = Vec::new();
        let mut integers: Vec<i64> = Vec::with_capacity(values.len());
        for (position, value) in (0u16..=u16::MAX).zip(values) {
            let rounded = (value.widen() * power + ROUNDER).to_bits();
            let scaled = rounded.wrapping_sub(ROUNDER.to_bits()).cast_signed();
            if unscale::<R>(scaled, power).bits() == value.bits() {
                integers.push(scaled);
                continue;
            }
            if exceptions.len() == exceptions_max {
                return None;
            }
            exceptions.push((position, value.bits()));
            // What stands in the place of an exception matters not; the value before disturbs least.
            integers.push(integers.last().copied().unwrap_or(0));
        }
        let whole = integers.len() == values.len();
        whole.then_some(Self { exponent, integers, exceptions })
    }

    /// How the integers pack best.
    pub(crate) fn plan(&self) -> Plan {
        Plan::best(&self.integers)
    }

    /// Appends the encoded form, whose integers `put` appends; gives what `put` does.
    pub(crate) fn put_with<R: Real>(
        &self,
        out: &mut Vec<u8>,
        put: impl FnOnce(&[i64], &mut Vec<u8>) -> bool,
    ) -> bool {
        out.push(self.exponent);
        out.extend_from_slice(&(self.exceptions.len() as u16).to_le_bytes());
        for (position, _) in &self.exceptions {
            out.extend_from_slice(&position.to_le_bytes());
        }
        for (_, bits) in &self.exceptions {
            out.extend(bits.to_le_bytes().iter().take(R::BYTES));
        }
        put(&self.integers, out)
    }
}

/// Appends what pco makes of floats; false, and nothing, unless all bits come back.
pub(crate) fn put_cold<R: Real>(values: &[R], out: &mut Vec<u8>) -> bool {
    let Some(bytes) = cold::compress_floats(values) else { return false };
    let exact = cold::decompress::<R>(&bytes, values.len()).is_ok_and(|back| {
        back.iter().map(|value| value.bits()).eq(values.iter().map(|value| value.bits()))
    });
    if exact {
        out.extend_from_slice(&bytes);
    }
    exact
}

/// Reads `count` floats that [`put_cold`] wrote, which take all the rest.
pub(crate) fn decode_cold<R: Real>(
    reader: &mut Reader<'_>,
    count: usize,
) -> Result<Vec<R>, CodecError> {
    let bytes = reader.rest();
    cold::decompress(reader.take(bytes.len())?, count)
}

/// Reads `count` floats that [`Scaled`] wrote.
pub(crate) fn decode_scaled<R: Real>(
    reader: &mut Reader<'_>,
    count: usize,
) -> Result<Vec<R>, CodecError> {
    let id = reader.u8()?;
    let unknown = CodecError::Unknown { what: "exponent of floats", id };
    let power = *POWERS.get(usize::from(id)).ok_or(unknown)?;
    let exceptions = usize::from(reader.u16()?);
    let positions = reader.take(exceptions * size_of::<u16>())?.as_chunks::<2>().0;
    let bits = reader.take(exceptions * R::BYTES)?.chunks_exact(R::BYTES);
    let mut values: Vec<R> = match id {
        // A division by one changes nothing but the time.
        0 => ints::decode_as(reader, count, |whole| R::narrow(whole as f64))?,
        _ => ints::decode_as(reader, count, |scaled| unscale(scaled, power))?,
    };
    for (position, bytes) in positions.iter().zip(bits) {
        let value = values
            .get_mut(usize::from(u16::from_le_bytes(*position)))
            .ok_or(CodecError::Wrong("an exception lies beyond the values"))?;
        *value = R::from_bits(bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)));
    }
    Ok(values)
}

/// The bits as integers.
pub(crate) fn to_bits<R: Real>(values: &[R]) -> Vec<i64> {
    values.iter().map(|value| value.bits().cast_signed()).collect()
}

/// Reads `count` floats that lie as their bits.
pub(crate) fn decode_bits<R: Real>(
    reader: &mut Reader<'_>,
    count: usize,
) -> Result<Vec<R>, CodecError> {
    ints::decode_as(reader, count, |bits| R::from_bits(bits.cast_unsigned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::ints::Layout, *};

    fn bits_of<R: Real>(values: &[R]) -> Vec<u64> {
        values.iter().map(|value| value.bits()).collect()
    }

    /// Encodes both ways; tells how many bytes the scaled form took.
    fn round_trip<R: Real>(values: &[R]) -> Option<usize> {
        let mut out = Vec::new();
        Plan::of_values(&to_bits(values)).put(Layout::Bytes, &mut out);
        let back = decode_bits::<R>(&mut Reader::new(&out), values.len()).expect("decodes");
        assert_eq!(bits_of(&back), bits_of(values));
        let mut out = Vec::new();
        if put_cold(values, &mut out) {
            let back = decode_cold::<R>(&mut Reader::new(&out), values.len()).expect("decodes");
            assert_eq!(bits_of(&back), bits_of(values));
        }
        let scaled = Scaled::new(values)?;
        let mut out = Vec::new();
        assert!(scaled.put_with::<R>(&mut out, |values, out| {
            Plan::best(values).put(Layout::Packed, out);
            true
        }));
        let mut reader = Reader::new(&out);
        let back = decode_scaled::<R>(&mut reader, values.len()).expect("decodes");
        assert_eq!(bits_of(&back), bits_of(values));
        assert_eq!(reader.finish(), Ok(()));
        Some(out.len())
    }

    proptest! {
        #[test]
        fn all_bits_survive(bits in proptest::collection::vec(any::<u64>(), 0..200)) {
            round_trip::<f64>(&bits.iter().map(|bits| f64::from_bits(*bits)).collect::<Vec<_>>());
            round_trip::<f32>(&bits.iter().map(|bits| f32::from_bits(*bits as u32)).collect::<Vec<_>>());
        }

        #[test]
        fn decimals_are_scaled(cents in proptest::collection::vec(-1_000_000i32..1_000_000, 1..300)) {
            let doubles: Vec<f64> = cents.iter().map(|cents| f64::from(*cents) / 100.0).collect();
            prop_assert!(round_trip(&doubles).is_some());
            let floats: Vec<f32> = cents.iter().map(|cents| (f64::from(*cents) / 100.0) as f32).collect();
            prop_assert!(round_trip(&floats).is_some());
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>, count in 0usize..300) {
            let _ = decode_scaled::<f64>(&mut Reader::new(&bytes), count);
            let _ = decode_scaled::<f32>(&mut Reader::new(&bytes), count);
            let _ = decode_cold::<f64>(&mut Reader::new(&bytes), count);
        }
    }

    #[test]
    fn values_that_are_no_decimals_are_exceptions() {
        let mut values: Vec<f64> = (0..1000).map(|i| f64::from(i) / 10.0).collect();
        let special = [f64::NAN, -0.0, f64::INFINITY, f64::NEG_INFINITY, f64::MIN_POSITIVE, 1e300];
        for (i, special) in special.into_iter().enumerate() {
            values[i * 100 + 5] = special;
        }
        values[999] = f64::from_bits(0xfff8_dead_beef_0001);
        assert!(round_trip(&values).is_some_and(|bytes| bytes < 300));
        let noise: Vec<f64> = (1..1000).map(|i| f64::from(i).sqrt()).collect();
        assert_eq!(round_trip(&noise), None);
    }
}
