//! Reads values of columns from text, into Arrow builders: COPY, literals of INSERT, and text cast to a column's type.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, Float32Builder,
        Float64Builder, Int16Builder, Int32Builder, Int64Builder, StringBuilder,
        TimestampMicrosecondBuilder,
    },
    datatypes::DataType,
};
use hypertide_proto::schema::{ColumnType, UTC};

use super::{
    binary,
    datetime::{self, Fault},
    fast,
    zone::Zone,
};
use crate::Error;

/// Builds a column of a table from texts.
#[derive(Debug)]
pub(crate) struct ValueBuilder {
    column_type: ColumnType,
    zone: Zone,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Int16(Int16Builder),
    Int32(Int32Builder),
    Int64(Int64Builder),
    Float32(Float32Builder),
    Float64(Float64Builder),
    Decimal(Decimal128Builder),
    Bool(BooleanBuilder),
    Text(StringBuilder),
    Timestamp(TimestampMicrosecondBuilder),
    Date(Date32Builder),
    Bytes(BinaryBuilder),
}

impl ValueBuilder {
    /// A builder of values of that type; timestamps without a zone are in `zone`.
    pub(crate) fn new(column_type: ColumnType, zone: Zone) -> Self {
        let values = match column_type {
            ColumnType::SmallInt => Values::Int16(Int16Builder::new()),
            ColumnType::Integer => Values::Int32(Int32Builder::new()),
            ColumnType::BigInt => Values::Int64(Int64Builder::new()),
            ColumnType::Real => Values::Float32(Float32Builder::new()),
            ColumnType::Double => Values::Float64(Float64Builder::new()),
            ColumnType::Numeric { precision, scale } => {
                let data_type = DataType::Decimal128(precision, scale);
                Values::Decimal(Decimal128Builder::new().with_data_type(data_type))
            }
            ColumnType::Boolean => Values::Bool(BooleanBuilder::new()),
            ColumnType::Text | ColumnType::Varchar(_) | ColumnType::Jsonb | ColumnType::Uuid => {
                Values::Text(StringBuilder::new())
            }
            ColumnType::Timestamp => Values::Timestamp(TimestampMicrosecondBuilder::new()),
            ColumnType::TimestampTz => {
                Values::Timestamp(TimestampMicrosecondBuilder::new().with_timezone(UTC))
            }
            ColumnType::Date => Values::Date(Date32Builder::new()),
            ColumnType::Bytea => Values::Bytes(BinaryBuilder::new()),
        };
        Self { column_type, zone, values }
    }

    /// Appends NULL.
    pub(crate) fn append_null(&mut self) {
        match &mut self.values {
            Values::Int16(builder) => builder.append_null(),
            Values::Int32(builder) => builder.append_null(),
            Values::Int64(builder) => builder.append_null(),
            Values::Float32(builder) => builder.append_null(),
            Values::Float64(builder) => builder.append_null(),
            Values::Decimal(builder) => builder.append_null(),
            Values::Bool(builder) => builder.append_null(),
            Values::Text(builder) => builder.append_null(),
            Values::Timestamp(builder) => builder.append_null(),
            Values::Date(builder) => builder.append_null(),
            Values::Bytes(builder) => builder.append_null(),
        }
    }

    /// Appends the value that a text means; after an error nothing is appended.
    pub(crate) fn append_text(&mut self, text: &str) -> Result<(), Error> {
        let (column_type, zone) = (self.column_type, self.zone);
        match &mut self.values {
            Values::Int16(builder) => {
                let value = parse_int(text, column_type)?;
                builder
                    .append_value(value.try_into().map_err(|_| out_of_range(text, column_type))?);
            }
            Values::Int32(builder) => {
                let value = parse_int(text, column_type)?;
                builder
                    .append_value(value.try_into().map_err(|_| out_of_range(text, column_type))?);
            }
            Values::Int64(builder) => builder.append_value(parse_int(text, column_type)?),
            Values::Float32(builder) => {
                let value: f32 = text.trim().parse().map_err(|_| malformed(text, column_type))?;
                builder.append_value(finite(value.into(), text, column_type).map(|_| value)?);
            }
            Values::Float64(builder) => {
                let value = match fast::float(text) {
                    Some(value) => value,
                    None => {
                        let value = text.trim().parse();
                        finite(value.map_err(|_| malformed(text, column_type))?, text, column_type)?
                    }
                };
                builder.append_value(value);
            }
            Values::Decimal(builder) => builder.append_value(parse_numeric(text, column_type)?),
            Values::Bool(builder) => {
                let value = crate::settings::parse_bool(text);
                builder.append_value(value.ok_or_else(|| malformed(text, column_type))?);
            }
            Values::Text(builder) => match column_type {
                ColumnType::Varchar(length) => builder.append_value(fit(text, length)?),
                ColumnType::Uuid => builder.append_value(parse_uuid(text)?),
                ColumnType::Jsonb => builder.append_value(check_json(text)?),
                _ => builder.append_value(text),
            },
            Values::Timestamp(builder) => {
                let parsed = match column_type {
                    ColumnType::Timestamp => datetime::parse_timestamp(text, zone),
                    _ => datetime::parse_timestamptz(text, zone),
                };
                builder.append_value(parsed.map_err(|fault| date_fault(fault, text, column_type))?);
            }
            Values::Date(builder) => {
                let parsed = datetime::parse_date(text, zone);
                builder.append_value(parsed.map_err(|fault| date_fault(fault, text, column_type))?);
            }
            Values::Bytes(builder) => builder.append_value(parse_bytea(text)?),
        }
        Ok(())
    }

    /// Appends the value that its binary form means; after an error nothing is appended.
    pub(crate) fn append_binary(&mut self, value: &[u8]) -> Result<(), Error> {
        let column = self.column_type;
        match &mut self.values {
            Values::Int16(builder) => {
                builder.append_value(i16::from_be_bytes(binary::fixed(value, column)?));
            }
            Values::Int32(builder) => {
                builder.append_value(i32::from_be_bytes(binary::fixed(value, column)?));
            }
            Values::Int64(builder) => {
                builder.append_value(i64::from_be_bytes(binary::fixed(value, column)?));
            }
            Values::Float32(builder) => {
                builder.append_value(f32::from_be_bytes(binary::fixed(value, column)?));
            }
            Values::Float64(builder) => {
                builder.append_value(f64::from_be_bytes(binary::fixed(value, column)?));
            }
            Values::Decimal(builder) => builder.append_value(binary_numeric(value, column)?),
            Values::Bool(builder) => {
                let [byte] = binary::fixed(value, column)?;
                builder.append_value(byte != 0);
            }
            Values::Text(builder) => match column {
                ColumnType::Varchar(length) => {
                    builder.append_value(fit(binary::text(value)?, length)?);
                }
                ColumnType::Uuid => builder.append_value(binary::uuid(value)?),
                ColumnType::Jsonb => builder.append_value(check_json(binary::json(value)?)?),
                _ => builder.append_value(binary::text(value)?),
            },
            Values::Timestamp(builder) => builder.append_value(binary::micros(value, column)?),
            Values::Date(builder) => builder.append_value(binary::days(value)?),
            Values::Bytes(builder) => builder.append_value(value),
        }
        Ok(())
    }

    /// The column; the builder starts anew.
    pub(crate) fn finish(&mut self) -> ArrayRef {
        match &mut self.values {
            Values::Int16(builder) => Arc::new(builder.finish()),
            Values::Int32(builder) => Arc::new(builder.finish()),
            Values::Int64(builder) => Arc::new(builder.finish()),
            Values::Float32(builder) => Arc::new(builder.finish()),
            Values::Float64(builder) => Arc::new(builder.finish()),
            Values::Decimal(builder) => Arc::new(builder.finish()),
            Values::Bool(builder) => Arc::new(builder.finish()),
            Values::Text(builder) => Arc::new(builder.finish()),
            Values::Timestamp(builder) => Arc::new(builder.finish()),
            Values::Date(builder) => Arc::new(builder.finish()),
            Values::Bytes(builder) => Arc::new(builder.finish()),
        }
    }
}

/// The column type's name in messages, without its arguments as in PostgreSQL.
fn type_name(column_type: ColumnType) -> String {
    let name = column_type.to_string();
    name.split('(').next().unwrap_or_default().to_owned()
}

fn malformed(text: &str, column_type: ColumnType) -> Error {
    let name = type_name(column_type);
    Error::of("22P02", format_args!("invalid input syntax for type {name}: \"{text}\""))
}

fn out_of_range(text: &str, column_type: ColumnType) -> Error {
    let name = type_name(column_type);
    match column_type {
        ColumnType::Real | ColumnType::Double => {
            Error::of("22003", format_args!("\"{text}\" is out of range for type {name}"))
        }
        _ => Error::of("22003", format_args!("value \"{text}\" is out of range for type {name}")),
    }
}

fn date_fault(fault: Fault, text: &str, column_type: ColumnType) -> Error {
    let name = type_name(column_type);
    match fault {
        Fault::Syntax => {
            Error::of("22007", format_args!("invalid input syntax for type {name}: \"{text}\""))
        }
        Fault::Range => {
            Error::of("22008", format_args!("date/time field value out of range: \"{text}\""))
        }
        Fault::Zone => {
            let zone = text.rsplit(' ').next().unwrap_or(text);
            Error::of("22023", format_args!("time zone \"{zone}\" not recognized"))
        }
    }
}

fn parse_int(text: &str, column_type: ColumnType) -> Result<i64, Error> {
    let trimmed = text.trim();
    trimmed.parse().map_err(|_| {
        let digits = trimmed.strip_prefix(['-', '+']).unwrap_or(trimmed);
        let number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if number { out_of_range(text, column_type) } else { malformed(text, column_type) }
    })
}

/// Refuses a number whose text is finite and whose value is not.
fn finite(value: f64, text: &str, column_type: ColumnType) -> Result<f64, Error> {
    if value.is_infinite() && text.bytes().any(|byte| byte.is_ascii_digit()) {
        return Err(out_of_range(text, column_type));
    }
    Ok(value)
}

/// The unscaled number in the column's scale, from the binary form.
fn binary_numeric(value: &[u8], column_type: ColumnType) -> Result<i128, Error> {
    let ColumnType::Numeric { precision, scale } = column_type else {
        return Err(binary::incorrect(column_type));
    };
    let (unscaled, own) = binary::numeric(value)?;
    binary::rescaled(unscaled, own, precision, scale)
        .ok_or_else(|| numeric_overflow(precision, scale))
}

fn numeric_overflow(precision: u8, scale: i8) -> Error {
    let digits = i32::from(precision) - i32::from(scale);
    Error::of("22003", "numeric field overflow").with_detail(format_args!(
        "A field with precision {precision}, scale {scale} must round to an absolute value less than 10^{digits}."
    ))
}

/// The unscaled number in the column's scale, rounded half away from zero.
fn parse_numeric(text: &str, column_type: ColumnType) -> Result<i128, Error> {
    let ColumnType::Numeric { precision, scale } = column_type else {
        return Err(malformed(text, column_type));
    };
    let trimmed = text.trim();
    let bad = || malformed(text, column_type);
    if ["nan", "infinity", "-infinity", "inf", "-inf"]
        .iter()
        .any(|word| trimmed.eq_ignore_ascii_case(word))
    {
        return Err(Error::unsupported(format_args!("numeric value \"{trimmed}\"")));
    }
    let (mantissa, exponent) = match trimmed.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().map_err(|_| bad())?),
        None => (trimmed, 0),
    };
    let (negative, digits) = match mantissa.strip_prefix(['-', '+']) {
        Some(digits) => (mantissa.starts_with('-'), digits),
        None => (false, mantissa),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let all = || whole.bytes().chain(part.bytes());
    if whole.len() + part.len() == 0 || !all().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    // Digits that count, from the first to the last place of the scale; the one after it rounds.
    let point = i64::try_from(whole.len()).map_err(|_| bad())? + i64::from(exponent);
    let kept = point + i64::from(scale);
    let overflow = || numeric_overflow(precision, scale);
    let limit = 10i128.pow(u32::from(precision));
    let mut value = 0i128;
    let mut digits = all();
    for _ in 0..kept.max(0) {
        let digit = digits.next().unwrap_or(b'0');
        value = value * 10 + i128::from(digit - b'0');
        if value >= limit {
            return Err(overflow());
        }
        if value == 0 && digits.size_hint().1 == Some(0) {
            break;
        }
    }
    if kept >= 0 && digits.next().is_some_and(|digit| digit >= b'5') {
        value += 1;
    }
    if value >= limit {
        return Err(overflow());
    }
    Ok(if negative { -value } else { value })
}

/// The text if it has at most so many characters, without spaces that are too many.
pub(crate) fn fit(text: &str, length: u32) -> Result<&str, Error> {
    let length = length as usize;
    if text.len() <= length {
        return Ok(text);
    }
    match text.char_indices().nth(length) {
        None => Ok(text),
        Some((at, _)) => {
            let (head, tail) = text.split_at(at);
            if tail.bytes().all(|byte| byte == b' ') {
                return Ok(head);
            }
            let message = format_args!("value too long for type character varying({length})");
            Err(Error::of("22001", message))
        }
    }
}

fn parse_uuid(text: &str) -> Result<String, Error> {
    let parsed = uuid::Uuid::parse_str(text.trim());
    parsed.map(|uuid| uuid.to_string()).map_err(|_| malformed(text, ColumnType::Uuid))
}

/// The text, if it is JSON.
pub(crate) fn check_json(text: &str) -> Result<&str, Error> {
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| {
        Error::of("22P02", "invalid input syntax for type json").with_detail(error)
    })?;
    Ok(text.trim())
}

fn parse_bytea(text: &str) -> Result<Vec<u8>, Error> {
    let bad = |what: &str| {
        Error::of("22P02", format_args!("invalid input syntax for type bytea: {what}"))
    };
    if let Some(digits) = text.strip_prefix("\\x") {
        let digits: Vec<u8> = digits.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        return hex::decode(digits).map_err(|error| bad(&error.to_string()));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        if let Some(after) = rest.strip_prefix(b"\\") {
            bytes.push(b'\\');
            rest = after;
            continue;
        }
        let (octal, after) =
            rest.split_first_chunk::<3>().ok_or_else(|| bad("a lone backslash"))?;
        if !octal.iter().all(|digit| (b'0'..=b'7').contains(digit)) {
            return Err(bad("a lone backslash"));
        }
        let value = octal.iter().fold(0u32, |sum, digit| sum * 8 + u32::from(digit - b'0'));
        bytes.push(u8::try_from(value).map_err(|_| bad("an octal number above 377"))?);
        rest = after;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::text::{TextStyle, write_text};

    fn round(column_type: ColumnType, text: &str) -> Result<String, (String, String)> {
        let mut builder = ValueBuilder::new(column_type, Zone::UTC);
        builder.append_text(text).map_err(|error| (error.state.0.to_owned(), error.message))?;
        let mut out = Vec::new();
        assert!(write_text(&builder.finish(), 0, TextStyle::default(), &mut out));
        Ok(String::from_utf8(out).expect("text is UTF-8"))
    }

    #[test]
    fn values_are_read_and_written() {
        let money = ColumnType::Numeric { precision: 6, scale: 2 };
        for (column_type, text, written) in [
            (ColumnType::SmallInt, " -7 ", "-7"),
            (ColumnType::BigInt, "9223372036854775807", "9223372036854775807"),
            (ColumnType::Double, "1e-300", "1e-300"),
            (ColumnType::Double, "-infinity", "-Infinity"),
            (ColumnType::Real, "NaN", "NaN"),
            (money, "12.345", "12.35"),
            (money, "-0.005", "-0.01"),
            (money, "1.2e3", "1200.00"),
            (money, "12e-3", "0.01"),
            (money, ".5", "0.50"),
            (money, "0.0000000001", "0.00"),
            (ColumnType::Numeric { precision: 38, scale: 10 }, "1.5", "1.5"),
            (ColumnType::Boolean, "yes", "t"),
            (ColumnType::Varchar(3), "äöü  ", "äöü"),
            (
                ColumnType::Uuid,
                "{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11}",
                "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            ),
            (ColumnType::Jsonb, " {\"a\": [1, 2]} ", "{\"a\": [1, 2]}"),
            (ColumnType::Bytea, "\\xDEad", "\\xdead"),
            (ColumnType::Bytea, "a\\\\\\001", "\\x615c01"),
            (ColumnType::Date, "2012-02-29", "2012-02-29"),
            (ColumnType::TimestampTz, "2012-01-01 00:00:00-08", "2012-01-01 08:00:00+00"),
        ] {
            assert_eq!(round(column_type, text), Ok(written.to_owned()), "{column_type} {text}");
        }
    }

    #[test]
    fn faults_have_their_class() {
        let money = ColumnType::Numeric { precision: 4, scale: 2 };
        for (column_type, text, state) in [
            (ColumnType::Integer, "x", "22P02"),
            (ColumnType::Integer, "", "22P02"),
            (ColumnType::Integer, "2147483648", "22003"),
            (ColumnType::Double, "1e400", "22003"),
            (ColumnType::Double, "1,5", "22P02"),
            (money, "99.995", "22003"),
            (money, "1e400", "22003"),
            (money, "1.2.3", "22P02"),
            (ColumnType::Boolean, "maybe", "22P02"),
            (ColumnType::Varchar(2), "abc", "22001"),
            (ColumnType::Uuid, "a0", "22P02"),
            (ColumnType::Jsonb, "{", "22P02"),
            (ColumnType::Bytea, "\\xf", "22P02"),
            (ColumnType::Bytea, "\\9", "22P02"),
            (ColumnType::Date, "x", "22007"),
            (ColumnType::TimestampTz, "2012-13-01", "22008"),
        ] {
            let (found, message) = round(column_type, text).expect_err(text);
            assert_eq!(found, state, "{column_type} {text:?}: {message}");
        }
        let (_, message) = round(ColumnType::Integer, "x").expect_err("no number");
        assert_eq!(message, "invalid input syntax for type integer: \"x\"");
    }
}
