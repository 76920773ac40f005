//! Values as PostgreSQL writes them in text: results in text format and COPY TO.
//!
//! A [`TextColumn`] is made once a batch and column, so that rows are written without asking for the type again.
//! Types that have a wider sibling with the same text are cast to it then, with arrow's kernels.

use std::{fmt, io::Write as _, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Decimal128Array,
        Decimal256Array, DurationMicrosecondArray, Float32Array, Float64Array, Int32Array,
        Int64Array, IntervalDayTimeArray, IntervalMonthDayNanoArray, IntervalYearMonthArray,
        LargeStringArray, StringArray, StringViewArray, Time64MicrosecondArray,
        TimestampMicrosecondArray, UInt64Array,
    },
    buffer::OffsetBuffer,
    compute::cast,
    datatypes::{DataType, Field, IntervalUnit, TimeUnit},
    util::display::array_value_to_string,
};
use hypertide_proto::schema::NUMERIC_DEFAULT;

use super::{
    civil::{self, DAY_MICROS, SECOND_MICROS},
    zone::Zone,
};

const NANOS_OF_MICRO: i64 = 1000;
/// Floats are written with an exponent from these powers of ten on, and below the least.
const FLOAT_EXPONENT_MIN: f64 = 1e-4;
const FLOAT32_EXPONENT_MAX: f32 = 1e6;
const FLOAT64_EXPONENT_MAX: f64 = 1e15;

/// Settings that the text of values depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TextStyle {
    /// `timezone`.
    pub(crate) zone: Zone,
    /// `bytea_output = escape` in place of `hex`.
    pub(crate) bytea_escape: bool,
}

impl Default for TextStyle {
    fn default() -> Self {
        Self { zone: Zone::UTC, bytea_escape: false }
    }
}

/// A column of a batch, ready to be written row by row.
pub(crate) struct TextColumn {
    array: ArrayRef,
    values: Values,
}

/// Its values with the type that they have, so that a row costs one jump.
enum Values {
    Null,
    Bool(BooleanArray),
    Int32(Int32Array),
    Int64(Int64Array),
    UInt64(UInt64Array),
    Float32(Float32Array),
    Float64(Float64Array),
    Decimal128(Decimal128Array, i8, bool),
    Decimal256(Decimal256Array, i8),
    Utf8(StringArray),
    LargeUtf8(LargeStringArray),
    Utf8View(StringViewArray),
    Binary(BinaryArray, bool),
    Date(Date32Array),
    Time(Time64MicrosecondArray),
    /// With a zone for `timestamptz`.
    Timestamp(TimestampMicrosecondArray, Option<Zone>),
    YearMonth(IntervalYearMonthArray),
    DayTime(IntervalDayTimeArray),
    MonthDayNano(IntervalMonthDayNanoArray),
    Duration(DurationMicrosecondArray),
    List(OffsetBuffer<i32>, Box<TextColumn>),
    Record(Vec<TextColumn>),
    /// Whatever has no counterpart in PostgreSQL: arrow's text.
    Other,
}

impl fmt::Debug for TextColumn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TextColumn").field(self.array.data_type()).finish()
    }
}

impl TextColumn {
    /// Prepares a column.
    pub(crate) fn new(array: &ArrayRef, style: TextStyle) -> Self {
        let array = match wider(array.data_type()).map(|wider| cast(array, &wider)) {
            Some(Ok(wider)) => wider,
            _ => Arc::clone(array),
        };
        let values = Values::new(&array, style);
        Self { array, values }
    }

    /// Writes a row's value; writes nothing and gives false when it is NULL.
    pub(crate) fn write(&self, row: usize, out: &mut Vec<u8>) -> bool {
        if self.array.is_null(row) {
            return false;
        }
        match &self.values {
            Values::Null => return false,
            Values::Bool(array) => out.push(if array.value(row) { b't' } else { b'f' }),
            Values::Int32(array) => write_int(array.value(row).into(), out),
            Values::Int64(array) => write_int(array.value(row), out),
            Values::UInt64(array) => write_display(array.value(row), out),
            Values::Float32(array) => write_float32(array.value(row), out),
            Values::Float64(array) => write_float64(array.value(row), out),
            Values::Decimal128(array, scale, trim) => {
                write_decimal(&array.value(row).to_string(), *scale, *trim, out);
            }
            Values::Decimal256(array, scale) => {
                write_decimal(&array.value(row).to_string(), *scale, false, out);
            }
            Values::Utf8(array) => out.extend_from_slice(array.value(row).as_bytes()),
            Values::LargeUtf8(array) => out.extend_from_slice(array.value(row).as_bytes()),
            Values::Utf8View(array) => out.extend_from_slice(array.value(row).as_bytes()),
            Values::Binary(array, escape) => write_bytes(array.value(row), *escape, out),
            Values::Date(array) => write_date(array.value(row), out),
            Values::Time(array) => write_time(array.value(row), out),
            Values::Timestamp(array, zone) => write_timestamp(array.value(row), *zone, out),
            Values::YearMonth(array) => write_interval(array.value(row).into(), 0, 0, out),
            Values::DayTime(array) => {
                let value = array.value(row);
                write_interval(0, value.days.into(), i64::from(value.milliseconds) * 1000, out);
            }
            Values::MonthDayNano(array) => {
                let value = array.value(row);
                let micros = value.nanoseconds / NANOS_OF_MICRO;
                write_interval(value.months.into(), value.days.into(), micros, out);
            }
            Values::Duration(array) => {
                let micros = array.value(row);
                write_interval(0, micros / DAY_MICROS, micros % DAY_MICROS, out);
            }
            Values::List(offsets, elements) => write_list(offsets, elements, row, out),
            Values::Record(fields) => write_record(fields, row, out),
            Values::Other => match array_value_to_string(&self.array, row) {
                Ok(text) => out.extend_from_slice(text.as_bytes()),
                Err(_) => return false,
            },
        }
        true
    }
}

/// Writes one value of a column; false when it is NULL. For whole columns, [`TextColumn`] is faster.
pub(crate) fn write_text(
    array: &ArrayRef,
    row: usize,
    style: TextStyle,
    out: &mut Vec<u8>,
) -> bool {
    TextColumn::new(array, style).write(row, out)
}

/// The type that values are cast to before they are written, if not their own.
fn wider(data_type: &DataType) -> Option<DataType> {
    Some(match data_type {
        DataType::Int8 | DataType::Int16 | DataType::UInt8 | DataType::UInt16 => DataType::Int32,
        DataType::UInt32 => DataType::Int64,
        DataType::Float16 => DataType::Float32,
        DataType::Date64 => DataType::Date32,
        DataType::Time32(_) | DataType::Time64(TimeUnit::Nanosecond) => {
            DataType::Time64(TimeUnit::Microsecond)
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => return None,
        DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
        DataType::Duration(TimeUnit::Microsecond) => return None,
        DataType::Duration(_) => DataType::Duration(TimeUnit::Microsecond),
        DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            DataType::Binary
        }
        DataType::LargeList(field) | DataType::FixedSizeList(field, _) => {
            DataType::List(Arc::clone(field))
        }
        DataType::Dictionary(_, values) => wider(values).unwrap_or_else(|| values.as_ref().clone()),
        DataType::RunEndEncoded(_, values) => {
            wider(values.data_type()).unwrap_or_else(|| Field::data_type(values).clone())
        }
        _ => return None,
    })
}

impl Values {
    fn new(array: &ArrayRef, style: TextStyle) -> Self {
        match array.data_type() {
            DataType::Null => Self::Null,
            DataType::Boolean => Self::Bool(array.as_boolean().clone()),
            DataType::Int32 => Self::Int32(array.as_primitive().clone()),
            DataType::Int64 => Self::Int64(array.as_primitive().clone()),
            DataType::UInt64 => Self::UInt64(array.as_primitive().clone()),
            DataType::Float32 => Self::Float32(array.as_primitive().clone()),
            DataType::Float64 => Self::Float64(array.as_primitive().clone()),
            DataType::Decimal128(precision, scale) => {
                // A numeric without declared scale shows the digits that count.
                let trim = (*precision, *scale) == NUMERIC_DEFAULT;
                Self::Decimal128(array.as_primitive().clone(), *scale, trim)
            }
            DataType::Decimal256(_, scale) => {
                Self::Decimal256(array.as_primitive().clone(), *scale)
            }
            DataType::Utf8 => Self::Utf8(array.as_string().clone()),
            DataType::LargeUtf8 => Self::LargeUtf8(array.as_string().clone()),
            DataType::Utf8View => Self::Utf8View(array.as_string_view().clone()),
            DataType::Binary => Self::Binary(array.as_binary().clone(), style.bytea_escape),
            DataType::Date32 => Self::Date(array.as_primitive().clone()),
            DataType::Time64(TimeUnit::Microsecond) => Self::Time(array.as_primitive().clone()),
            DataType::Timestamp(TimeUnit::Microsecond, zone) => {
                Self::Timestamp(array.as_primitive().clone(), zone.as_ref().map(|_| style.zone))
            }
            DataType::Interval(IntervalUnit::YearMonth) => {
                Self::YearMonth(array.as_primitive().clone())
            }
            DataType::Interval(IntervalUnit::DayTime) => {
                Self::DayTime(array.as_primitive().clone())
            }
            DataType::Interval(IntervalUnit::MonthDayNano) => {
                Self::MonthDayNano(array.as_primitive().clone())
            }
            DataType::Duration(TimeUnit::Microsecond) => {
                Self::Duration(array.as_primitive().clone())
            }
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                let elements = Box::new(TextColumn::new(list.values(), style));
                Self::List(list.offsets().clone(), elements)
            }
            DataType::Struct(_) => {
                let fields = array.as_struct().columns().iter();
                Self::Record(fields.map(|column| TextColumn::new(column, style)).collect())
            }
            _ => Self::Other,
        }
    }
}

fn write_display(value: impl fmt::Display, out: &mut Vec<u8>) {
    // Writing to a vector cannot fail.
    let _ = write!(out, "{value}");
}

/// Writes a number in decimal digits.
pub(crate) fn write_int(value: i64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut rest = value.unsigned_abs();
    let mut length = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        length += 1;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(digits.split_at(digits.len() - length).1);
}

/// Writes a number with leading zeros up to `width` digits.
fn write_padded(value: i64, width: usize, out: &mut Vec<u8>) {
    let mut power = 10i64.pow(width.saturating_sub(1) as u32);
    while power > 1 && value < power {
        out.push(b'0');
        power /= 10;
    }
    write_int(value, out);
}

fn write_float32(value: f32, out: &mut Vec<u8>) {
    let size = value.abs();
    let plain = (FLOAT_EXPONENT_MIN as f32..FLOAT32_EXPONENT_MAX).contains(&size) || size == 0.0;
    match plain {
        true => write_display(value, out),
        false if value.is_finite() => write_exponent(&format!("{value:e}"), out),
        false => write_special(value.into(), out),
    }
}

/// Writes a float with as few digits as give it back exactly.
pub(crate) fn write_float64(value: f64, out: &mut Vec<u8>) {
    let size = value.abs();
    let plain = (FLOAT_EXPONENT_MIN..FLOAT64_EXPONENT_MAX).contains(&size) || size == 0.0;
    match plain {
        true => write_display(value, out),
        false if value.is_finite() => write_exponent(&format!("{value:e}"), out),
        false => write_special(value, out),
    }
}

fn write_special(value: f64, out: &mut Vec<u8>) {
    out.extend_from_slice(match value {
        value if value.is_nan() => b"NaN",
        value if value > 0.0 => b"Infinity",
        _ => b"-Infinity",
    });
}

/// Turns `1.5e-7` into `1.5e-07`: a sign and at least two digits.
fn write_exponent(text: &str, out: &mut Vec<u8>) {
    let (digits, exponent) = text.split_once('e').unwrap_or((text, "0"));
    out.extend_from_slice(digits.as_bytes());
    let (sign, exponent) = exponent.strip_prefix('-').map_or(("e+", exponent), |rest| ("e-", rest));
    out.extend_from_slice(sign.as_bytes());
    if exponent.len() < 2 {
        out.push(b'0');
    }
    out.extend_from_slice(exponent.as_bytes());
}

/// Writes the point into an unscaled number, and leaves zeros at its end out when `trim`.
fn write_decimal(unscaled: &str, scale: i8, trim: bool, out: &mut Vec<u8>) {
    let (sign, digits) = unscaled.strip_prefix('-').map_or(("", unscaled), |rest| ("-", rest));
    out.extend_from_slice(sign.as_bytes());
    let Ok(scale) = usize::try_from(scale) else {
        out.extend_from_slice(digits.as_bytes());
        let zeros = if digits == "0" { 0 } else { usize::from(scale.unsigned_abs()) };
        out.resize(out.len() + zeros, b'0');
        return;
    };
    let (whole, part) = digits.split_at(digits.len().saturating_sub(scale));
    out.extend_from_slice(if whole.is_empty() { b"0" } else { whole.as_bytes() });
    let zeros = scale - part.len();
    let part = if trim { part.trim_end_matches('0') } else { part };
    if scale == 0 || (trim && part.is_empty()) {
        return;
    }
    out.push(b'.');
    out.resize(out.len() + zeros, b'0');
    out.extend_from_slice(part.as_bytes());
}

fn write_bytes(bytes: &[u8], escape: bool, out: &mut Vec<u8>) {
    const HEX: [u8; 16] = *b"0123456789abcdef";
    if escape {
        for byte in bytes {
            match byte {
                b'\\' => out.extend_from_slice(b"\\\\"),
                0x20..=0x7e => out.push(*byte),
                _ => {
                    let octal = [byte >> 6, byte >> 3 & 7, byte & 7].map(|digit| b'0' + digit);
                    out.push(b'\\');
                    out.extend_from_slice(&octal);
                }
            }
        }
        return;
    }
    out.extend_from_slice(b"\\x");
    let digit = |half: u8| HEX.get(usize::from(half)).copied().unwrap_or(b'0');
    out.extend(bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
}

/// Writes the date of a day; gives whether it lies before year 1, which the caller says at the end.
fn write_day(days: i64, out: &mut Vec<u8>) -> bool {
    let (year, month, day) = civil::from_days(days);
    let before = year <= 0;
    write_padded(if before { 1 - year } else { year }, 4, out);
    out.push(b'-');
    write_padded(month.into(), 2, out);
    out.push(b'-');
    write_padded(day.into(), 2, out);
    before
}

/// Writes a date, given as days since the Unix epoch.
pub(crate) fn write_date(days: i32, out: &mut Vec<u8>) {
    match days {
        i32::MAX => out.extend_from_slice(b"infinity"),
        i32::MIN => out.extend_from_slice(b"-infinity"),
        days => {
            if write_day(days.into(), out) {
                out.extend_from_slice(b" BC");
            }
        }
    }
}

/// Writes the time of a day, given as microseconds since midnight.
fn write_time(micros: i64, out: &mut Vec<u8>) {
    let seconds = micros / SECOND_MICROS;
    write_padded(seconds / 3600, 2, out);
    out.push(b':');
    write_padded(seconds / 60 % 60, 2, out);
    out.push(b':');
    write_padded(seconds % 60, 2, out);
    write_fraction(micros % SECOND_MICROS, out);
}

/// Writes microseconds as the fraction of a second, without zeros at its end.
fn write_fraction(micros: i64, out: &mut Vec<u8>) {
    if micros == 0 {
        return;
    }
    out.push(b'.');
    write_padded(micros, 6, out);
    while out.last() == Some(&b'0') {
        out.pop();
    }
}

/// Writes a timestamp, given as microseconds since the Unix epoch; with a zone, as its clocks show it.
pub(crate) fn write_timestamp(micros: i64, zone: Option<Zone>, out: &mut Vec<u8>) {
    match micros {
        i64::MAX => return out.extend_from_slice(b"infinity"),
        i64::MIN => return out.extend_from_slice(b"-infinity"),
        _ => {}
    }
    let offset = zone.map_or(0, |zone| zone.offset_at(micros));
    let local = micros.saturating_add(i64::from(offset) * SECOND_MICROS);
    let before = write_day(local.div_euclid(DAY_MICROS), out);
    out.push(b' ');
    write_time(local.rem_euclid(DAY_MICROS), out);
    if zone.is_some() {
        write_offset(offset, out);
    }
    if before {
        out.extend_from_slice(b" BC");
    }
}

/// Writes `+00`, `+05:30`, `-04:56:02`.
fn write_offset(offset: i32, out: &mut Vec<u8>) {
    out.push(if offset < 0 { b'-' } else { b'+' });
    let seconds = i64::from(offset.abs());
    write_padded(seconds / 3600, 2, out);
    if seconds % 3600 != 0 {
        out.push(b':');
        write_padded(seconds / 60 % 60, 2, out);
    }
    if seconds % 60 != 0 {
        out.push(b':');
        write_padded(seconds % 60, 2, out);
    }
}

/// Writes an interval in the style `postgres`: `1 year 2 mons -3 days +04:05:06`.
pub(crate) fn write_interval(months: i64, days: i64, micros: i64, out: &mut Vec<u8>) {
    let start = out.len();
    let mut negative = false;
    for (value, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if value == 0 {
            continue;
        }
        if out.len() > start {
            out.push(b' ');
        }
        // A positive field after a negative one says its sign.
        if negative && value > 0 {
            out.push(b'+');
        }
        negative = value < 0;
        write_int(value, out);
        out.push(b' ');
        out.extend_from_slice(unit.as_bytes());
        if value != 1 {
            out.push(b's');
        }
    }
    if micros == 0 && out.len() > start {
        return;
    }
    if out.len() > start {
        out.push(b' ');
    }
    match micros {
        ..0 => out.push(b'-'),
        _ if negative => out.push(b'+'),
        _ => {}
    }
    write_time(micros.saturating_abs(), out);
}

fn write_list(offsets: &OffsetBuffer<i32>, elements: &TextColumn, row: usize, out: &mut Vec<u8>) {
    let nested = matches!(elements.values, Values::List(..));
    let edge = |at: usize| offsets.get(at).map_or(0, |offset| *offset as usize);
    let range = edge(row)..edge(row + 1);
    out.push(b'{');
    let first = range.start;
    for element in range {
        if element > first {
            out.push(b',');
        }
        let start = out.len();
        if !elements.write(element, out) {
            out.extend_from_slice(b"NULL");
        } else if !nested {
            quote(start, out, array_needs_quotes, |_| b'\\');
        }
    }
    out.push(b'}');
}

fn array_needs_quotes(text: &[u8]) -> bool {
    text.is_empty()
        || text.eq_ignore_ascii_case(b"null")
        || text
            .iter()
            .any(|byte| matches!(byte, b'{' | b'}' | b',' | b'"' | b'\\') || is_space(*byte))
}

fn write_record(fields: &[TextColumn], row: usize, out: &mut Vec<u8>) {
    out.push(b'(');
    for (at, field) in fields.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        let start = out.len();
        if field.write(row, out) {
            quote(start, out, record_needs_quotes, |byte| byte);
        }
    }
    out.push(b')');
}

fn record_needs_quotes(text: &[u8]) -> bool {
    text.is_empty()
        || text
            .iter()
            .any(|byte| matches!(byte, b'(' | b')' | b',' | b'"' | b'\\') || is_space(*byte))
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// Puts what was written since `start` into quotes if needed, with `escape_of` before quotes and backslashes in it.
fn quote(start: usize, out: &mut Vec<u8>, needed: fn(&[u8]) -> bool, escape_of: fn(u8) -> u8) {
    let text = out.split_off(start);
    if !needed(&text) {
        out.extend_from_slice(&text);
        return;
    }
    out.push(b'"');
    for byte in text {
        if matches!(byte, b'"' | b'\\') {
            out.push(escape_of(byte));
        }
        out.push(byte);
    }
    out.push(b'"');
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
