//! Rows of Arrow batches as DataRow messages.
//!
//! A column's type is looked at once a batch; a row costs one jump a column and nothing is allocated for it.

use std::{fmt, io::Write as _, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Decimal128Array,
        Decimal256Array, Float32Array, Float64Array, Int16Array, Int32Array, Int64Array,
        IntervalMonthDayNanoArray, RecordBatch, StringArray, StringViewArray,
        Time64MicrosecondArray, TimestampMicrosecondArray,
    },
    buffer::OffsetBuffer,
    compute::cast,
    datatypes::{DataType, IntervalUnit, TimeUnit},
};
use datafusion::error::DataFusionError;
use hypertide_proto::schema::NUMERIC_DEFAULT;

use super::{
    frontend::Format,
    types::{Kind, PgType},
};
use crate::{
    Error,
    sql::{
        binary::{EPOCH_DAYS, EPOCH_MICROS},
        text::{TextColumn, TextStyle},
    },
};

/// Length that says NULL.
const NULL: [u8; 4] = (-1_i32).to_be_bytes();
/// Sign of a negative numeric.
const NUMERIC_NEGATIVE: u16 = 0x4000;
/// Most digits of a 256-bit decimal, with room for the zeros of a negative scale.
const DIGITS_MAX: usize = 256;
/// Bytes of a length; that of a message counts them, that of a value does not.
const LENGTH_BYTES: usize = 4;
/// Decimal digits in one digit of a binary numeric.
const GROUP: usize = 4;

/// A batch, ready to be sent row by row.
pub(super) struct Rows {
    columns: Vec<Column>,
    count: usize,
    next: usize,
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row {} of {}", self.next, self.count)
    }
}

impl Rows {
    /// Prepares a batch.
    pub(super) fn new(
        batch: &RecordBatch,
        types: &[(PgType, Format)],
        style: TextStyle,
    ) -> Result<Self, Error> {
        let columns = batch
            .columns()
            .iter()
            .zip(types)
            .map(|(array, (pg_type, format))| match format {
                Format::Text => Ok(Column::Text(TextColumn::new(array, style))),
                Format::Binary => Column::binary(array, *pg_type, style),
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self { columns, count: batch.num_rows(), next: 0 })
    }

    /// Appends the next row as a DataRow message; false when there is none.
    pub(super) fn write_next(&mut self, out: &mut Vec<u8>) -> bool {
        if self.next >= self.count {
            return false;
        }
        out.push(b'D');
        with_length(out, 0, |out| self.write_tuple(out));
        self.next += 1;
        true
    }

    /// Appends the next row as a tuple of the binary COPY; false when there is none.
    pub(super) fn copy_next(&mut self, out: &mut Vec<u8>) -> bool {
        let more = self.next < self.count;
        if more {
            self.write_tuple(out);
            self.next += 1;
        }
        more
    }

    fn write_tuple(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.columns.len() as u16).to_be_bytes());
        for column in &self.columns {
            column.write(self.next, out);
        }
    }
}

/// Appends a length and what `write` appends; the length leaves out `uncounted` bytes of all that.
fn with_length(out: &mut Vec<u8>, uncounted: usize, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&NULL);
    write(out);
    let length = (out.len() - start - uncounted) as u32;
    if let Some(place) = out.get_mut(start..).and_then(|rest| rest.first_chunk_mut()) {
        *place = length.to_be_bytes();
    }
}

enum Column {
    Text(TextColumn),
    Binary(BinaryColumn),
}

impl Column {
    fn binary(array: &ArrayRef, pg_type: PgType, style: TextStyle) -> Result<Self, Error> {
        // The binary form of text is its text, so that it serves for types without counterpart too.
        if pg_type.kind == Kind::Text && !pg_type.array {
            return Ok(Self::Text(TextColumn::new(array, style)));
        }
        BinaryColumn::new(array, pg_type, style).map(Self::Binary)
    }

    fn write(&self, row: usize, out: &mut Vec<u8>) {
        match self {
            Self::Binary(column) => column.write(row, out),
            Self::Text(column) => {
                let start = out.len();
                let mut null = false;
                with_length(out, LENGTH_BYTES, |out| null = !column.write(row, out));
                if null {
                    out.truncate(start);
                    out.extend_from_slice(&NULL);
                }
            }
        }
    }
}

struct BinaryColumn {
    array: ArrayRef,
    values: Values,
}

/// Values in one Arrow type for each PostgreSQL type.
enum Values {
    Bool(BooleanArray),
    Int2(Int16Array),
    Int4(Int32Array),
    Int8(Int64Array),
    Float4(Float32Array),
    Float8(Float64Array),
    /// Scale, and whether zeros at its end do not count.
    Numeric(Decimal128Array, i8, bool),
    WideNumeric(Decimal256Array, i8),
    Text(StringArray),
    TextView(StringViewArray),
    Jsonb(StringArray),
    Uuid(StringArray),
    Bytea(BinaryArray),
    Date(Date32Array),
    Time(Time64MicrosecondArray),
    Timestamp(TimestampMicrosecondArray),
    Interval(IntervalMonthDayNanoArray),
    /// Number of the elements' type, bounds, elements.
    List(u32, OffsetBuffer<i32>, Box<Column>),
}

impl BinaryColumn {
    fn new(array: &ArrayRef, pg_type: PgType, style: TextStyle) -> Result<Self, Error> {
        let wanted = canonical(array.data_type(), pg_type);
        let array = if wanted == *array.data_type() {
            Arc::clone(array)
        } else {
            cast(array, &wanted).map_err(DataFusionError::from)?
        };
        let values = if pg_type.array {
            let list = array.as_list::<i32>();
            let element = pg_type.element();
            let column = Column::binary(list.values(), element, style)?;
            Values::List(element.oid(), list.offsets().clone(), Box::new(column))
        } else {
            Values::new(&array, pg_type.kind)
        };
        Ok(Self { array, values })
    }

    fn write(&self, row: usize, out: &mut Vec<u8>) {
        if self.array.is_null(row) {
            out.extend_from_slice(&NULL);
            return;
        }
        match &self.values {
            Values::Bool(array) => put(&[u8::from(array.value(row))], out),
            Values::Int2(array) => put(&array.value(row).to_be_bytes(), out),
            Values::Int4(array) => put(&array.value(row).to_be_bytes(), out),
            Values::Int8(array) => put(&array.value(row).to_be_bytes(), out),
            Values::Float4(array) => put(&array.value(row).to_be_bytes(), out),
            Values::Float8(array) => put(&array.value(row).to_be_bytes(), out),
            Values::Numeric(array, scale, trim) => {
                let value = array.value(row);
                put_numeric(value < 0, value.unsigned_abs(), (*scale, *trim), out);
            }
            Values::WideNumeric(array, scale) => {
                let value = array.value(row);
                put_numeric(value.is_negative(), value.wrapping_abs(), (*scale, false), out);
            }
            Values::Text(array) => put(array.value(row).as_bytes(), out),
            Values::TextView(array) => put(array.value(row).as_bytes(), out),
            Values::Jsonb(array) => with_length(out, LENGTH_BYTES, |out| {
                out.push(1);
                out.extend_from_slice(array.value(row).as_bytes());
            }),
            Values::Uuid(array) => match uuid::Uuid::try_parse(array.value(row)) {
                Ok(value) => put(value.as_bytes(), out),
                Err(_) => out.extend_from_slice(&NULL),
            },
            Values::Bytea(array) => put(array.value(row), out),
            Values::Date(array) => put(&date(array.value(row)).to_be_bytes(), out),
            Values::Time(array) => put(&array.value(row).to_be_bytes(), out),
            Values::Timestamp(array) => put(&timestamp(array.value(row)).to_be_bytes(), out),
            Values::Interval(array) => {
                let value = array.value(row);
                with_length(out, LENGTH_BYTES, |out| {
                    out.extend_from_slice(&(value.nanoseconds / 1000).to_be_bytes());
                    out.extend_from_slice(&value.days.to_be_bytes());
                    out.extend_from_slice(&value.months.to_be_bytes());
                });
            }
            Values::List(oid, offsets, elements) => {
                let edge = |at: usize| offsets.get(at).map_or(0, |offset| *offset as usize);
                put_list(*oid, edge(row)..edge(row + 1), elements, out);
            }
        }
    }
}

/// The Arrow type in which values of a PostgreSQL type are encoded.
fn canonical(own: &DataType, pg_type: PgType) -> DataType {
    if pg_type.array {
        return match own {
            DataType::LargeList(element) | DataType::FixedSizeList(element, _) => {
                DataType::List(Arc::clone(element))
            }
            own => own.clone(),
        };
    }
    match pg_type.kind {
        Kind::Bool => DataType::Boolean,
        Kind::Int2 => DataType::Int16,
        Kind::Int4 => DataType::Int32,
        Kind::Int8 => DataType::Int64,
        Kind::Float4 => DataType::Float32,
        Kind::Float8 => DataType::Float64,
        Kind::Numeric => match own {
            DataType::Decimal128(..) | DataType::Decimal256(..) => own.clone(),
            DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
                DataType::Decimal128(*precision, *scale)
            }
            DataType::Dictionary(_, value) => canonical(value, pg_type),
            _ => DataType::Decimal128(20, 0),
        },
        Kind::Text | Kind::Varchar if *own == DataType::Utf8View => DataType::Utf8View,
        Kind::Text | Kind::Varchar | Kind::Jsonb | Kind::Uuid => DataType::Utf8,
        Kind::Bytea => DataType::Binary,
        Kind::Date => DataType::Date32,
        Kind::Time => DataType::Time64(TimeUnit::Microsecond),
        Kind::Timestamp | Kind::TimestampTz => match own {
            DataType::Timestamp(_, zone) => {
                DataType::Timestamp(TimeUnit::Microsecond, zone.clone())
            }
            _ => DataType::Timestamp(TimeUnit::Microsecond, None),
        },
        Kind::Interval => DataType::Interval(IntervalUnit::MonthDayNano),
    }
}

impl Values {
    /// The values of an array in its [`canonical`] type.
    fn new(array: &ArrayRef, kind: Kind) -> Self {
        match kind {
            Kind::Bool => Self::Bool(array.as_boolean().clone()),
            Kind::Int2 => Self::Int2(array.as_primitive().clone()),
            Kind::Int4 => Self::Int4(array.as_primitive().clone()),
            Kind::Int8 => Self::Int8(array.as_primitive().clone()),
            Kind::Float4 => Self::Float4(array.as_primitive().clone()),
            Kind::Float8 => Self::Float8(array.as_primitive().clone()),
            Kind::Numeric => match array.data_type() {
                DataType::Decimal256(_, scale) => {
                    Self::WideNumeric(array.as_primitive().clone(), *scale)
                }
                DataType::Decimal128(precision, scale) => {
                    // As in text: a numeric without declared scale shows the digits that count.
                    let trim = (*precision, *scale) == NUMERIC_DEFAULT;
                    Self::Numeric(array.as_primitive().clone(), *scale, trim)
                }
                _ => Self::Numeric(array.as_primitive().clone(), 0, false),
            },
            Kind::Text | Kind::Varchar if *array.data_type() == DataType::Utf8View => {
                Self::TextView(array.as_string_view().clone())
            }
            Kind::Text | Kind::Varchar => Self::Text(array.as_string().clone()),
            Kind::Jsonb => Self::Jsonb(array.as_string().clone()),
            Kind::Uuid => Self::Uuid(array.as_string().clone()),
            Kind::Bytea => Self::Bytea(array.as_binary().clone()),
            Kind::Date => Self::Date(array.as_primitive().clone()),
            Kind::Time => Self::Time(array.as_primitive().clone()),
            Kind::Timestamp | Kind::TimestampTz => Self::Timestamp(array.as_primitive().clone()),
            Kind::Interval => Self::Interval(array.as_primitive().clone()),
        }
    }
}

fn put(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Days since 2000; the ends of the range are the infinities.
fn date(days: i32) -> i32 {
    match days {
        i32::MIN | i32::MAX => days,
        days => days.saturating_sub(EPOCH_DAYS),
    }
}

/// Microseconds since 2000; the ends of the range are the infinities.
fn timestamp(micros: i64) -> i64 {
    match micros {
        i64::MIN | i64::MAX => micros,
        micros => micros.saturating_sub(EPOCH_MICROS),
    }
}

fn put_list(oid: u32, range: std::ops::Range<usize>, elements: &Column, out: &mut Vec<u8>) {
    with_length(out, LENGTH_BYTES, |out| {
        let length = range.len() as u32;
        out.extend_from_slice(&u32::from(length > 0).to_be_bytes());
        // Whether there are NULLs; readers look at each length anyway.
        out.extend_from_slice(&1_u32.to_be_bytes());
        out.extend_from_slice(&oid.to_be_bytes());
        if length > 0 {
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(&1_u32.to_be_bytes());
        }
        for element in range {
            elements.write(element, out);
        }
    });
}

/// Appends a numeric: digits of base 10,000 around the point.
fn put_numeric(
    negative: bool,
    unscaled: impl fmt::Display,
    (scale, trim): (i8, bool),
    out: &mut Vec<u8>,
) {
    // The decimal digits go through a buffer on the stack, so that nothing is allocated.
    let mut buffer = [b'0'; DIGITS_MAX];
    let mut rest = buffer.as_mut_slice();
    // The buffer has room for any 256-bit number.
    let _ = write!(rest, "{unscaled}");
    let free = rest.len();
    let zeros = usize::from(scale.min(0).unsigned_abs());
    let length = (DIGITS_MAX - free + zeros).min(DIGITS_MAX);
    let mut digits = buffer.get(..length).unwrap_or_default();
    let mut scale = usize::try_from(scale).unwrap_or(0);
    while trim && scale > 0 && digits.last() == Some(&b'0') {
        digits = digits.split_last().map_or(digits, |(_, rest)| rest);
        scale -= 1;
    }
    if digits.is_empty() {
        scale = 0;
    }
    let (whole, part) = digits.split_at(digits.len().saturating_sub(scale));
    let mut groups = Groups { values: [0; DIGITS_MAX / GROUP], count: 0 };
    for group in whole.rchunks(GROUP).rev() {
        groups.push(group, 0);
    }
    let weight = groups.count as i32 - 1;
    // Zeros between the point and the first digit are not in `part`.
    let mut zeros = scale - part.len();
    let weight = weight - if groups.count == 0 { (zeros / GROUP) as i32 } else { 0 };
    if groups.count == 0 {
        zeros %= GROUP;
    }
    let (first, part) = part.split_at(part.len().min(if zeros > 0 { GROUP - zeros } else { 0 }));
    if zeros > 0 {
        groups.push(first, GROUP - zeros - first.len());
    }
    for group in part.chunks(GROUP) {
        groups.push(group, GROUP - group.len());
    }
    groups.write(negative, weight, scale, out);
}

/// Digits of a numeric in base 10,000.
struct Groups {
    values: [u16; DIGITS_MAX / GROUP],
    count: usize,
}

impl Groups {
    /// Appends a digit of base 10,000, given as decimal digits with so many zeros after them.
    fn push(&mut self, digits: &[u8], zeros: usize) {
        let digits = digits.iter().copied().chain(std::iter::repeat_n(b'0', zeros));
        let value =
            digits.fold(0, |value, digit| value * 10 + u16::from(digit.saturating_sub(b'0')));
        if let Some(place) = self.values.get_mut(self.count) {
            *place = value;
            self.count += 1;
        }
    }

    /// Appends the numeric without zeros at its ends.
    fn write(&self, negative: bool, mut weight: i32, scale: usize, out: &mut Vec<u8>) {
        let mut values = self.values.get(..self.count).unwrap_or_default();
        while let Some((0, rest)) = values.split_first() {
            values = rest;
            weight -= 1;
        }
        while let Some((0, rest)) = values.split_last() {
            values = rest;
        }
        if values.is_empty() {
            weight = 0;
        }
        let sign = if negative && !values.is_empty() { NUMERIC_NEGATIVE } else { 0 };
        with_length(out, LENGTH_BYTES, |out| {
            for word in [values.len() as u16, weight as u16, sign, scale as u16] {
                out.extend_from_slice(&word.to_be_bytes());
            }
            values.iter().for_each(|value| out.extend_from_slice(&value.to_be_bytes()));
        });
    }
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
