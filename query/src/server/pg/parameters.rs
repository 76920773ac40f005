//! Values of parameters, in text and in PostgreSQL's binary forms.

use datafusion::common::ScalarValue;
use hypertide_proto::schema::{ColumnType, UTC};

use super::frontend::{Bind, Format, PROTOCOL_VIOLATION};
use crate::{
    Error,
    sql::{binary, value::ValueBuilder, zone::Zone},
};

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
                Format::Binary => from_binary(value, *column),
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

fn text(value: &[u8], column: ColumnType, zone: Zone) -> Result<ScalarValue, Error> {
    let mut builder = ValueBuilder::new(column, zone);
    builder.append_text(binary::text(value)?)?;
    Ok(ScalarValue::try_from_array(&builder.finish(), 0)?)
}

fn from_binary(value: &[u8], column: ColumnType) -> Result<ScalarValue, Error> {
    Ok(match column {
        ColumnType::Boolean => {
            let [byte] = binary::fixed(value, column)?;
            ScalarValue::Boolean(Some(byte != 0))
        }
        ColumnType::SmallInt => {
            ScalarValue::Int16(Some(i16::from_be_bytes(binary::fixed(value, column)?)))
        }
        ColumnType::Integer => {
            ScalarValue::Int32(Some(i32::from_be_bytes(binary::fixed(value, column)?)))
        }
        ColumnType::BigInt => {
            ScalarValue::Int64(Some(i64::from_be_bytes(binary::fixed(value, column)?)))
        }
        ColumnType::Real => {
            ScalarValue::Float32(Some(f32::from_be_bytes(binary::fixed(value, column)?)))
        }
        ColumnType::Double => {
            ScalarValue::Float64(Some(f64::from_be_bytes(binary::fixed(value, column)?)))
        }
        // With as many digits after the point as it was sent with.
        ColumnType::Numeric { .. } => {
            let (unscaled, scale) = binary::numeric(value)?;
            ScalarValue::Decimal128(Some(unscaled), binary::DIGITS_MAX as u8, scale as i8)
        }
        ColumnType::Timestamp => {
            ScalarValue::TimestampMicrosecond(Some(binary::micros(value, column)?), None)
        }
        ColumnType::TimestampTz => {
            let micros = binary::micros(value, column)?;
            ScalarValue::TimestampMicrosecond(Some(micros), Some(UTC.into()))
        }
        ColumnType::Date => ScalarValue::Date32(Some(binary::days(value)?)),
        ColumnType::Bytea => ScalarValue::Binary(Some(value.to_vec())),
        ColumnType::Uuid => ScalarValue::Utf8(Some(binary::uuid(value)?)),
        ColumnType::Jsonb => ScalarValue::Utf8(Some(binary::json(value)?.to_owned())),
        ColumnType::Text | ColumnType::Varchar(_) => {
            ScalarValue::Utf8(Some(binary::text(value)?.to_owned()))
        }
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

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
    fn wrong_lengths_are_refused() {
        let numeric = ColumnType::Numeric { precision: 38, scale: 10 };
        for column in [ColumnType::Integer, ColumnType::Double, ColumnType::Uuid, numeric] {
            for length in [0, 1, 3, 5, 7, 9, 15, 17] {
                let state = from_binary(&vec![0; length], column).unwrap_err().state;
                assert_eq!(state.0, "22P03", "{length} bytes of {column}");
            }
        }
        assert_eq!(from_binary(b"\xff", ColumnType::Text).unwrap_err().state.0, "22021");
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
