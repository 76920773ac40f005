//! Pure: PostgreSQL's binary forms of values, as parameters and the binary COPY carry them.
//!
//! Each reader takes all bytes of one value: too few or too many are an error (22P03), never a guess. The forms are
//! those of PostgreSQL's send and receive functions.

use std::str;

use bytes::Buf;
use hypertide_proto::schema::ColumnType;

use crate::Error;

/// Microseconds from the Unix epoch to 2000-01-01, from which PostgreSQL counts.
pub(crate) const EPOCH_MICROS: i64 = 946_684_800_000_000;
/// Days from the Unix epoch to 2000-01-01.
pub(crate) const EPOCH_DAYS: i32 = 10_957;
/// What the data of a binary COPY begins with.
pub(crate) const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// Signs of a numeric.
const NUMERIC_POSITIVE: u16 = 0x0000;
/// See [`NUMERIC_POSITIVE`].
const NUMERIC_NEGATIVE: u16 = 0x4000;
/// Most digits of a numeric, and its greatest scale.
pub(crate) const DIGITS_MAX: i32 = 38;

/// The bytes of a value of fixed size.
pub(crate) fn fixed<const N: usize>(value: &[u8], column: ColumnType) -> Result<[u8; N], Error> {
    value.try_into().map_err(|_| incorrect(column))
}

/// Text without zero bytes.
pub(crate) fn text(value: &[u8]) -> Result<&str, Error> {
    let text = str::from_utf8(value).map_err(|error| {
        let bad = value.get(error.valid_up_to()).copied().unwrap_or_default();
        not_utf8(bad)
    })?;
    if text.contains('\0') { Err(not_utf8(0)) } else { Ok(text) }
}

fn not_utf8(byte: u8) -> Error {
    Error::of("22021", format_args!("invalid byte sequence for encoding \"UTF8\": 0x{byte:02x}"))
}

/// The text of a jsonb. The form has a version, and there is one; what was declared as json comes without it.
pub(crate) fn json(value: &[u8]) -> Result<&str, Error> {
    text(value.strip_prefix(&[1]).unwrap_or(value))
}

/// A uuid as text.
pub(crate) fn uuid(value: &[u8]) -> Result<String, Error> {
    let id = uuid::Uuid::from_slice(value).map_err(|_| incorrect(ColumnType::Uuid))?;
    Ok(id.to_string())
}

/// Microseconds since the Unix epoch; the infinities stay.
pub(crate) fn micros(value: &[u8], column: ColumnType) -> Result<i64, Error> {
    match i64::from_be_bytes(fixed(value, column)?) {
        infinite @ (i64::MIN | i64::MAX) => Ok(infinite),
        micros => micros.checked_add(EPOCH_MICROS).ok_or_else(|| out_of_range(column)),
    }
}

/// Days since the Unix epoch; the infinities stay.
pub(crate) fn days(value: &[u8]) -> Result<i32, Error> {
    match i32::from_be_bytes(fixed(value, ColumnType::Date)?) {
        infinite @ (i32::MIN | i32::MAX) => Ok(infinite),
        days => days.checked_add(EPOCH_DAYS).ok_or_else(|| out_of_range(ColumnType::Date)),
    }
}

/// A numeric: the unscaled value, and the number of digits after the point that it was sent with.
pub(crate) fn numeric(mut value: &[u8]) -> Result<(i128, i32), Error> {
    let column = ColumnType::Numeric { precision: DIGITS_MAX as u8, scale: 10 };
    let mut word = || value.try_get_u16().map_err(|_| incorrect(column));
    let (count, weight, sign, scale) = (word()?, word()? as i16, word()?, word()?);
    if !matches!(sign, NUMERIC_POSITIVE | NUMERIC_NEGATIVE) {
        return Err(Error::of("22003", "numeric values that are not finite are not supported"));
    }
    let scale = i32::from(scale);
    if scale > DIGITS_MAX {
        return Err(out_of_range(column));
    }
    let mut unscaled = 0_i128;
    for at in 0..i32::from(count) {
        let digit = word()?;
        if digit > 9_999 {
            return Err(incorrect(column));
        }
        // Digit `at` stands for digit * 10^(4 * (weight - at)); digits beyond the scale do not count.
        let exponent = 4 * (i32::from(weight) - at) + scale;
        let part = shifted(digit, exponent).ok_or_else(|| out_of_range(column))?;
        unscaled = unscaled.checked_add(part).ok_or_else(|| out_of_range(column))?;
    }
    if value.has_remaining() {
        return Err(incorrect(column));
    }
    if unscaled >= 10_i128.pow(DIGITS_MAX as u32) {
        return Err(out_of_range(column));
    }
    Ok((if sign == NUMERIC_NEGATIVE { -unscaled } else { unscaled }, scale))
}

/// `digit * 10^exponent`, or `None` when there is no room for it.
fn shifted(digit: u16, exponent: i32) -> Option<i128> {
    let digit = i128::from(digit);
    match u32::try_from(exponent) {
        _ if digit == 0 => Some(0),
        Ok(exponent) => 10_i128.checked_pow(exponent)?.checked_mul(digit),
        Err(_) => Some(digit / 10_i128.checked_pow(exponent.unsigned_abs()).unwrap_or(i128::MAX)),
    }
}

/// The unscaled value in another scale, rounded half away from zero; `None` when it has more digits than `precision`.
pub(crate) fn rescaled(unscaled: i128, from: i32, precision: u8, scale: i8) -> Option<i128> {
    let shift = i32::from(scale) - from;
    let factor = 10_i128.checked_pow(shift.unsigned_abs());
    let value = match factor {
        Some(factor) if shift >= 0 => unscaled.checked_mul(factor)?,
        Some(factor) => {
            let half = if unscaled < 0 { -(factor / 2) } else { factor / 2 };
            unscaled.checked_add(half)? / factor
        }
        None if shift > 0 && unscaled != 0 => return None,
        None => 0,
    };
    (value.unsigned_abs() < 10_u128.pow(u32::from(precision))).then_some(value)
}

/// The bytes are no value of their type.
pub(crate) fn incorrect(column: ColumnType) -> Error {
    Error::of("22P03", format_args!("incorrect binary data format for type {column}"))
}

/// A value beyond its type's range.
pub(crate) fn out_of_range(column: ColumnType) -> Error {
    Error::of("22003", format_args!("value out of range for type {column}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numerics_keep_their_scale() {
        let numeric = |words: &[u16]| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
            numeric(&bytes)
        };
        assert_eq!(numeric(&[2, 0, 0, 2, 12, 3400]).unwrap(), (1234, 2), "12.34");
        assert_eq!(numeric(&[1, 0xffff, 0x4000, 3, 10]).unwrap(), (-1, 3), "-0.001");
        assert_eq!(numeric(&[1, 2, 0, 0, 5]).unwrap(), (500_000_000, 0), "5e8");
        assert_eq!(numeric(&[0, 0, 0, 1]).unwrap(), (0, 1));
        assert_eq!(numeric(&[0, 0, 0xc000, 0]).unwrap_err().state.0, "22003", "NaN");
        assert_eq!(numeric(&[1, 30, 0, 0, 1]).unwrap_err().state.0, "22003");
        assert_eq!(numeric(&[1, 0, 0, 0, 10_000]).unwrap_err().state.0, "22P03");
        assert_eq!(numeric(&[3, 0, 0, 0, 1]).unwrap_err().state.0, "22P03");
        assert_eq!(numeric(&[0, 0, 0, 0, 1]).unwrap_err().state.0, "22P03", "a digit too many");
    }

    #[test]
    fn scales_change_by_rounding_half_away_from_zero() {
        assert_eq!(rescaled(12345, 3, 10, 2), Some(1235));
        assert_eq!(rescaled(-12345, 3, 10, 2), Some(-1235));
        assert_eq!(rescaled(12, 0, 10, 2), Some(1200));
        assert_eq!(rescaled(999, 1, 2, 0), None, "100 has three digits");
        assert_eq!(rescaled(5, 38, 38, 0), Some(0));
        assert_eq!(rescaled(1, 0, 38, 38), None);
    }

    #[test]
    fn times_count_from_2000() {
        assert_eq!(micros(&[0; 8], ColumnType::Timestamp).unwrap(), EPOCH_MICROS);
        assert_eq!(days(&1_i32.to_be_bytes()).unwrap(), 10_958);
        assert_eq!(days(&i32::MAX.to_be_bytes()).unwrap(), i32::MAX);
        let late = (i64::MAX - 1).to_be_bytes();
        assert_eq!(micros(&late, ColumnType::Timestamp).unwrap_err().state.0, "22003");
        assert_eq!(micros(&[0; 7], ColumnType::Timestamp).unwrap_err().state.0, "22P03");
    }
}
