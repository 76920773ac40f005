//! Values of parameters, in text and in PostgreSQL's binary forms.

use bytes::{Buf, Bytes};
use datafusion::common::ScalarValue;
use hypertide_proto::schema::{ColumnType, UTC};

use super::{
    encode::{EPOCH_DAYS, EPOCH_MICROS},
    frontend::{Bind, Format, PROTOCOL_VIOLATION},
};
use crate::{
    Error, SqlState,
    sql::{value::ValueBuilder, zone::Zone},
};

/// SQLSTATE of bytes that are no value of their type.
const INVALID_BINARY: SqlState = SqlState("22P03");
/// SQLSTATE of a number out of its type's range.
const OUT_OF_RANGE: SqlState = SqlState("22003");
/// Signs of a binary numeric.
const NUMERIC_POSITIVE: u16 = 0x0000;
/// See [`NUMERIC_POSITIVE`].
const NUMERIC_NEGATIVE: u16 = 0x4000;
/// Most digits of a numeric, and its greatest scale.
const DIGITS_MAX: i32 = 38;

/// Decodes the values of a Bind; their number is checked already.
pub(super) fn decode(
    bind: &Bind,
    types: &[ColumnType],
    zone: Zone,
) -> Result<Vec<ScalarValue>, Error> {
    let (given, wanted) = (bind.formats.len(), types.len());
    if given > 1 && given != wanted {
        let message = format!("bind message has {given} parameter formats but {wanted} parameters");
        return Err(Error::new(PROTOCOL_VIOLATION, message));
    }
    let values = bind.values.iter().zip(types).enumerate();
    values
        .map(|(at, (value, column))| {
            let format = if given == 1 { bind.formats.first() } else { bind.formats.get(at) };
            let Some(value) = value else { return null(*column) };
            let decoded = match format.copied().unwrap_or(Format::Text) {
                Format::Text => text(value, *column, zone),
                Format::Binary => binary(value.clone(), *column),
            };
            decoded.map_err(|mut error| {
                error.context = Some(format!("unnamed portal parameter ${}", at + 1));
                error
            })
        })
        .collect()
}

fn null(column: ColumnType) -> Result<ScalarValue, Error> {
    Ok(ScalarValue::try_from(&column.to_arrow())?)
}

fn utf8(value: &[u8]) -> Result<&str, Error> {
    let text = std::str::from_utf8(value).ok().filter(|text| !text.contains('\0'));
    text.ok_or_else(|| Error::new(SqlState("22021"), "invalid byte sequence for encoding \"UTF8\""))
}

fn text(value: &[u8], column: ColumnType, zone: Zone) -> Result<ScalarValue, Error> {
    let mut builder = ValueBuilder::new(column, zone);
    builder.append_text(utf8(value)?)?;
    Ok(ScalarValue::try_from_array(&builder.finish(), 0)?)
}

fn binary(mut value: Bytes, column: ColumnType) -> Result<ScalarValue, Error> {
    let bad = |_| incorrect(column);
    let decoded = match column {
        ColumnType::Boolean => ScalarValue::Boolean(Some(value.try_get_u8().map_err(bad)? != 0)),
        ColumnType::SmallInt => ScalarValue::Int16(Some(value.try_get_i16().map_err(bad)?)),
        ColumnType::Integer => ScalarValue::Int32(Some(value.try_get_i32().map_err(bad)?)),
        ColumnType::BigInt => ScalarValue::Int64(Some(value.try_get_i64().map_err(bad)?)),
        ColumnType::Real => ScalarValue::Float32(Some(value.try_get_f32().map_err(bad)?)),
        ColumnType::Double => ScalarValue::Float64(Some(value.try_get_f64().map_err(bad)?)),
        ColumnType::Numeric { .. } => numeric(&mut value)?,
        ColumnType::Timestamp => {
            ScalarValue::TimestampMicrosecond(Some(micros(&mut value, column)?), None)
        }
        ColumnType::TimestampTz => {
            let micros = micros(&mut value, column)?;
            ScalarValue::TimestampMicrosecond(Some(micros), Some(UTC.into()))
        }
        ColumnType::Date => {
            let days = value.try_get_i32().map_err(bad)?;
            ScalarValue::Date32(Some(match days {
                i32::MIN | i32::MAX => days,
                days => days.checked_add(EPOCH_DAYS).ok_or_else(|| out_of_range(column))?,
            }))
        }
        ColumnType::Bytea => ScalarValue::Binary(Some(value.split_off(0).into())),
        ColumnType::Uuid => {
            let id = uuid::Uuid::from_slice(&value).map_err(|_| incorrect(column))?;
            value.clear();
            ScalarValue::Utf8(Some(id.to_string()))
        }
        ColumnType::Jsonb => {
            // The form has a version, and there is one. Parameters declared as json come without it.
            if value.first() == Some(&1) {
                value.advance(1);
            }
            string(&mut value)?
        }
        ColumnType::Text | ColumnType::Varchar(_) => string(&mut value)?,
    };
    if value.has_remaining() { Err(incorrect(column)) } else { Ok(decoded) }
}

fn string(value: &mut Bytes) -> Result<ScalarValue, Error> {
    let text = utf8(value)?.to_owned();
    value.clear();
    Ok(ScalarValue::Utf8(Some(text)))
}

/// Microseconds since the Unix epoch; the infinities stay.
fn micros(value: &mut Bytes, column: ColumnType) -> Result<i64, Error> {
    match value.try_get_i64().map_err(|_| incorrect(column))? {
        infinite @ (i64::MIN | i64::MAX) => Ok(infinite),
        micros => micros.checked_add(EPOCH_MICROS).ok_or_else(|| out_of_range(column)),
    }
}

/// A numeric with as many digits after the point as it was sent with.
fn numeric(value: &mut Bytes) -> Result<ScalarValue, Error> {
    let column = ColumnType::Numeric { precision: 38, scale: 10 };
    let mut word = || value.try_get_u16().map_err(|_| incorrect(column));
    let (count, weight, sign, scale) = (word()?, word()? as i16, word()?, word()?);
    if !matches!(sign, NUMERIC_POSITIVE | NUMERIC_NEGATIVE) {
        let message = "numeric parameters that are not finite are not supported";
        return Err(Error::new(OUT_OF_RANGE, message));
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
    if unscaled >= 10_i128.pow(DIGITS_MAX as u32) {
        return Err(out_of_range(column));
    }
    let unscaled = if sign == NUMERIC_NEGATIVE { -unscaled } else { unscaled };
    Ok(ScalarValue::Decimal128(Some(unscaled), DIGITS_MAX as u8, scale as i8))
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

fn incorrect(column: ColumnType) -> Error {
    let message = format!("incorrect binary data format for type {column}");
    Error::new(INVALID_BINARY, message)
}

fn out_of_range(column: ColumnType) -> Error {
    Error::new(OUT_OF_RANGE, format!("value out of range for type {column}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_binary(bytes: &[u8], column: ColumnType) -> Result<ScalarValue, Error> {
        binary(Bytes::copy_from_slice(bytes), column)
    }

    const NUMERIC: ColumnType = ColumnType::Numeric { precision: 38, scale: 10 };

    #[test]
    fn binary_values_are_read() {
        use ColumnType::{Boolean, Bytea, Date, Integer, Jsonb, Text, Timestamp, Uuid};
        let cases: [(&[u8], ColumnType, ScalarValue); 8] = [
            (&[1], Boolean, ScalarValue::Boolean(Some(true))),
            (&[0xff, 0xff, 0xff, 0xfe], Integer, ScalarValue::Int32(Some(-2))),
            (b"ab", Text, ScalarValue::Utf8(Some("ab".into()))),
            (b"\x01{}", Jsonb, ScalarValue::Utf8(Some("{}".into()))),
            (&[9, 8], Bytea, ScalarValue::Binary(Some(vec![9, 8]))),
            (&[0, 0, 0, 1], Date, ScalarValue::Date32(Some(10_958))),
            (
                &[0; 8],
                Timestamp,
                ScalarValue::TimestampMicrosecond(Some(946_684_800_000_000), None),
            ),
            (
                &[0; 16],
                Uuid,
                ScalarValue::Utf8(Some("00000000-0000-0000-0000-000000000000".into())),
            ),
        ];
        for (bytes, column, value) in cases {
            assert_eq!(from_binary(bytes, column), Ok(value), "{column}");
        }
    }

    #[test]
    fn numerics_keep_their_scale() {
        let numeric = |words: &[u16]| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
            from_binary(&bytes, NUMERIC)
        };
        let decimal = |value, scale| Ok(ScalarValue::Decimal128(Some(value), 38, scale));
        assert_eq!(numeric(&[2, 0, 0, 2, 12, 3400]), decimal(1234, 2), "12.34");
        assert_eq!(numeric(&[1, 0xffff, 0x4000, 3, 10]), decimal(-1, 3), "-0.001");
        assert_eq!(numeric(&[1, 2, 0, 0, 5]), decimal(500_000_000, 0), "5e8");
        assert_eq!(numeric(&[0, 0, 0, 1]), decimal(0, 1));
        assert_eq!(numeric(&[0, 0, 0xc000, 0]).unwrap_err().state, OUT_OF_RANGE, "NaN");
        assert_eq!(numeric(&[1, 30, 0, 0, 1]).unwrap_err().state, OUT_OF_RANGE);
        assert_eq!(numeric(&[1, 0, 0, 0, 10_000]).unwrap_err().state, INVALID_BINARY);
        assert_eq!(numeric(&[3, 0, 0, 0, 1]).unwrap_err().state, INVALID_BINARY);
    }

    #[test]
    fn wrong_lengths_are_refused() {
        for column in [ColumnType::Integer, ColumnType::Double, ColumnType::Uuid, NUMERIC] {
            for length in [0, 1, 3, 5, 7, 9, 15, 17] {
                let state = from_binary(&vec![0; length], column).unwrap_err().state;
                assert_eq!(state, INVALID_BINARY, "{length} bytes of {column}");
            }
        }
        assert_eq!(from_binary(b"\xff", ColumnType::Text).unwrap_err().state.0, "22021");
        let end = i64::MAX - 1;
        let late = from_binary(&end.to_be_bytes(), ColumnType::Timestamp);
        assert_eq!(late.unwrap_err().state, OUT_OF_RANGE);
    }

    #[test]
    fn text_values_are_read_in_the_zone_of_the_session() {
        let bind = Bind {
            portal: String::new(),
            statement: String::new(),
            formats: Vec::new(),
            values: vec![Some(Bytes::from_static(b"2000-01-01 00:00")), None],
            results: Vec::new(),
        };
        let zone = Zone::parse("Europe/Berlin").unwrap();
        let types = [ColumnType::TimestampTz, ColumnType::Integer];
        let values = decode(&bind, &types, zone).unwrap();
        let time = ScalarValue::TimestampMicrosecond(Some(946_681_200_000_000), Some(UTC.into()));
        assert_eq!(values, [time, ScalarValue::Int32(None)]);
        let bad = Bind { values: vec![Some(Bytes::from_static(b"x")), None], ..bind };
        let error = decode(&bad, &[ColumnType::Integer, ColumnType::Integer], zone).unwrap_err();
        assert_eq!(error.state.0, "22P02");
    }
}
