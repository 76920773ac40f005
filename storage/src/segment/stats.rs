//! Zone maps: what is known of a column in a run of rows.

use std::cmp::Ordering;

use arrow::{
    array::{Array, ArrowPrimitiveType, AsArray},
    compute,
    datatypes::{
        DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type,
        Int64Type, TimestampMicrosecondType,
    },
};
use hypertide_proto::predicate::{Value, Zone};

use crate::codec::{CodecError, Reader, put_sized, put_varint, put_varint_signed};

/// Longest text or byte string that a zone map holds; longer ones are shortened to a bound.
const BOUND_BYTES_MAX: usize = 64;
/// Bytes that even a bound above has at most: its last character may be longer than the one that it stands for.
const BOUND_BYTES_LIMIT: usize = BOUND_BYTES_MAX + 4;

const NONE: u8 = 0;
const INT: u8 = 1;
const FLOAT: u8 = 2;
const TEXT: u8 = 3;
const BYTES: u8 = 4;
const BOOL: u8 = 5;

/// A zone map that owns its values.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Stats {
    rows: u64,
    nulls: u64,
    /// At most the least value.
    min: Option<Value>,
    /// At least the greatest value.
    max: Option<Value>,
    /// Exact sum of integers and decimals.
    sum: Option<i128>,
    /// Whether least and greatest are values of rows, and not bounds only.
    exact: bool,
}

impl Stats {
    /// What is to be known of an array.
    pub(super) fn of(array: &dyn Array) -> Self {
        let (rows, nulls) = (array.len() as u64, array.null_count() as u64);
        let mut exact = true;
        let (min, max, sum) = match array.data_type() {
            DataType::Int16 => integers::<Int16Type>(array),
            DataType::Int32 => integers::<Int32Type>(array),
            DataType::Int64 => integers::<Int64Type>(array),
            DataType::Decimal128(..) => integers::<Decimal128Type>(array),
            DataType::Date32 => without_sum(integers::<Date32Type>(array)),
            DataType::Timestamp(..) => without_sum(integers::<TimestampMicrosecondType>(array)),
            DataType::Float32 => floats(array.as_primitive::<Float32Type>().iter().map(widen)),
            DataType::Float64 => floats(array.as_primitive::<Float64Type>().iter()),
            DataType::Utf8 => texts(array, &mut exact),
            DataType::Binary => byte_strings(array, &mut exact),
            DataType::Boolean => {
                let (min, max) = edges(array.as_boolean().iter().flatten(), bool::cmp);
                (min.map(Value::Bool), max.map(Value::Bool), None)
            }
            _ => (None, None, None),
        };
        Self { rows, nulls, min, max, sum, exact }
    }

    /// Of a single row, which is not null.
    pub(super) fn single(value: Value) -> Self {
        let (min, max) = (Some(value.clone()), Some(value));
        Self { rows: 1, nulls: 0, min, max, sum: None, exact: true }
    }

    /// Commit numbers, which are unsigned.
    pub(super) fn of_csns(csns: &[u64]) -> Self {
        let (min, max) = edges(csns.iter().copied(), u64::cmp);
        let value = |csn| Value::Int(i128::from(csn));
        let rows = csns.len() as u64;
        Self { rows, nulls: 0, min: min.map(value), max: max.map(value), sum: None, exact: true }
    }

    /// What is known of several runs together.
    pub(super) fn merge<'a>(all: impl Iterator<Item = &'a Self> + Clone) -> Self {
        let known = all.clone().filter(|stats| stats.nulls < stats.rows);
        let mins: Option<Vec<&Value>> = known.clone().map(|stats| stats.min.as_ref()).collect();
        let maxs: Option<Vec<&Value>> = known.map(|stats| stats.max.as_ref()).collect();
        let order = |a: &&Value, b: &&Value| a.compare(b).unwrap_or(Ordering::Equal);
        Self {
            rows: all.clone().map(|stats| stats.rows).sum(),
            nulls: all.clone().map(|stats| stats.nulls).sum(),
            min: mins.and_then(|mins| mins.into_iter().min_by(order).cloned()),
            max: maxs.and_then(|maxs| maxs.into_iter().max_by(order).cloned()),
            exact: all.clone().all(|stats| stats.exact),
            sum: all.map(|stats| stats.sum).try_fold(0i128, |all, sum| all.checked_add(sum?)),
        }
    }

    /// Bytes that its edges take beside it.
    pub(super) fn text_bytes(&self) -> usize {
        let bytes = |value: &Option<Value>| match value {
            Some(Value::Text(text)) => text.len(),
            Some(Value::Bytes(bytes)) => bytes.len(),
            _ => 0,
        };
        bytes(&self.min) + bytes(&self.max)
    }

    /// As predicates look at it.
    pub(super) const fn zone(&self) -> Zone<'_> {
        let Self { rows, nulls, min, max, .. } = self;
        Zone { min: min.as_ref(), max: max.as_ref(), nulls: *nulls, rows: *rows }
    }

    /// Least and greatest.
    pub(super) const fn edges(&self) -> (Option<&Value>, Option<&Value>) {
        (self.min.as_ref(), self.max.as_ref())
    }

    /// Whether [`Stats::edges`] are values of rows.
    pub(super) const fn exact(&self) -> bool {
        self.exact
    }

    pub(super) const fn sum(&self) -> Option<i128> {
        self.sum
    }

    /// Least and greatest, when both are numbers of at most 64 bits without sign.
    pub(super) fn range(&self) -> Option<(u64, u64)> {
        match (&self.min, &self.max) {
            (Some(Value::Int(min)), Some(Value::Int(max))) => {
                Some((u64::try_from(*min).ok()?, u64::try_from(*max).ok()?))
            }
            _ => None,
        }
    }

    /// Appends all but the number of rows.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.nulls.into());
        put_value(out, self.min.as_ref());
        put_value(out, self.max.as_ref());
        put_value(out, self.sum.map(Value::Int).as_ref());
        out.push(self.exact.into());
    }

    /// Reads what [`Stats::put`] wrote, for a column of that type.
    pub(super) fn read(
        reader: &mut Reader<'_>,
        data_type: &DataType,
        rows: u64,
    ) -> Result<Self, CodecError> {
        let nulls = reader.varint_u64()?;
        if nulls > rows {
            return Err(CodecError::Wrong("more rows are null than there are"));
        }
        let tag = tag_of(data_type);
        let min = read_value(reader, tag)?;
        let max = read_value(reader, tag)?;
        let sum = match read_value(reader, INT)? {
            Some(Value::Int(sum)) => Some(sum),
            _ => None,
        };
        let exact = reader.u8()? != 0;
        let too_long = |value: &Value| match value {
            Value::Text(text) => text.len() > BOUND_BYTES_LIMIT,
            Value::Bytes(bytes) => bytes.len() > BOUND_BYTES_LIMIT,
            _ => false,
        };
        if [&min, &max].into_iter().flatten().any(too_long) {
            return Err(CodecError::Wrong("a bound is longer than bounds are"));
        }
        Ok(Self { rows, nulls, min, max, sum, exact })
    }
}

type Found = (Option<Value>, Option<Value>, Option<i128>);

fn integers<T>(array: &dyn Array) -> Found
where
    T: ArrowPrimitiveType<Native: Into<i128> + arrow::datatypes::ArrowNativeTypeOp>,
{
    let array = array.as_primitive::<T>();
    let value = |value: T::Native| Value::Int(value.into());
    let (min, max) = (compute::min(array), compute::max(array));
    let add = |all: i128, value: T::Native| all.checked_add(value.into());
    let sum = match array.null_count() {
        0 => array.values().iter().copied().try_fold(0, add),
        _ => array.iter().flatten().try_fold(0, add),
    };
    (min.map(value), max.map(value), sum)
}

fn without_sum((min, max, _): Found) -> Found {
    (min, max, None)
}

fn widen(value: Option<f32>) -> Option<f64> {
    value.map(f64::from)
}

fn floats(values: impl Iterator<Item = Option<f64>>) -> Found {
    // The order of the predicate, in which NaN is the greatest, without a value a row.
    let order = |a: &f64, b: &f64| a.partial_cmp(b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()));
    let (min, max) = edges(values.flatten(), order);
    (min.map(Value::Float), max.map(Value::Float), None)
}

fn texts(array: &dyn Array, exact: &mut bool) -> Found {
    let (min, max) = edges(array.as_string::<i32>().iter().flatten(), <&str>::cmp);
    *exact = [min, max].iter().flatten().all(|text| text.len() <= BOUND_BYTES_MAX);
    let min = min.map(|min| Value::Text(text_prefix(min).to_owned()));
    (min, max.and_then(text_above).map(Value::Text), None)
}

fn byte_strings(array: &dyn Array, exact: &mut bool) -> Found {
    let (min, max) = edges(array.as_binary::<i32>().iter().flatten(), <&[u8]>::cmp);
    *exact = [min, max].iter().flatten().all(|bytes| bytes.len() <= BOUND_BYTES_MAX);
    let prefix = |bytes: &[u8]| bytes.iter().take(BOUND_BYTES_MAX).copied().collect();
    (min.map(prefix).map(Value::Bytes), max.and_then(bytes_above).map(Value::Bytes), None)
}

/// Least and greatest in an order.
fn edges<T: Copy>(
    mut values: impl Iterator<Item = T>,
    order: impl Fn(&T, &T) -> Ordering,
) -> (Option<T>, Option<T>) {
    let Some(first) = values.next() else { return (None, None) };
    let (mut min, mut max) = (first, first);
    for value in values {
        if order(&value, &min).is_lt() {
            min = value;
        } else if order(&value, &max).is_gt() {
            max = value;
        }
    }
    (Some(min), Some(max))
}

/// A prefix of at most [`BOUND_BYTES_MAX`]; a prefix is never greater than the whole.
fn text_prefix(text: &str) -> &str {
    text.get(..text.floor_char_boundary(BOUND_BYTES_MAX)).unwrap_or(text)
}

/// A short text that is not less: the text itself, or a prefix whose last character is the next one; `None` when
/// there is no next one.
fn text_above(text: &str) -> Option<String> {
    let mut prefix = text_prefix(text).to_owned();
    if prefix.len() == text.len() {
        return Some(prefix);
    }
    while let Some(last) = prefix.pop() {
        // Surrogates are no characters: the one after U+D7FF is U+E000.
        if let Some(next) = (last..=char::MAX).nth(1) {
            prefix.push(next);
            return Some(prefix);
        }
    }
    None
}

/// As [`text_above`], of bytes.
fn bytes_above(bytes: &[u8]) -> Option<Vec<u8>> {
    if bytes.len() <= BOUND_BYTES_MAX {
        return Some(bytes.to_vec());
    }
    let mut prefix: Vec<u8> = bytes.iter().take(BOUND_BYTES_MAX).copied().collect();
    while let Some(last) = prefix.pop() {
        if let Some(next) = last.checked_add(1) {
            prefix.push(next);
            return Some(prefix);
        }
    }
    None
}

const fn tag_of(data_type: &DataType) -> u8 {
    match data_type {
        DataType::Float32 | DataType::Float64 => FLOAT,
        DataType::Utf8 => TEXT,
        DataType::Binary => BYTES,
        DataType::Boolean => BOOL,
        _ => INT,
    }
}

fn put_value(out: &mut Vec<u8>, value: Option<&Value>) {
    match value {
        None => out.push(NONE),
        Some(Value::Int(value)) => {
            out.push(INT);
            put_varint_signed(out, *value);
        }
        Some(Value::Float(value)) => {
            out.push(FLOAT);
            out.extend_from_slice(&value.to_bits().to_le_bytes());
        }
        Some(Value::Text(value)) => {
            out.push(TEXT);
            put_sized(out, value.as_bytes());
        }
        Some(Value::Bytes(value)) => {
            out.push(BYTES);
            put_sized(out, value);
        }
        Some(Value::Bool(value)) => out.extend_from_slice(&[BOOL, (*value).into()]),
    }
}

/// Reads a value that is absent or of the kind `wanted`.
fn read_value(reader: &mut Reader<'_>, wanted: u8) -> Result<Option<Value>, CodecError> {
    let tag = reader.u8()?;
    if tag != NONE && tag != wanted {
        return Err(CodecError::Wrong("a bound is not of the column's type"));
    }
    Ok(Some(match tag {
        INT => Value::Int(reader.varint_signed()?),
        FLOAT => Value::Float(f64::from_bits(reader.u64()?)),
        TEXT => Value::Text(reader.text()?.to_owned()),
        BYTES => Value::Bytes(reader.sized()?.to_vec()),
        BOOL => Value::Bool(reader.u8()? != 0),
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bounds_of_texts_hold(head in "[a-z\u{7fe}-\u{803}\u{d7fe}-\u{e001}\u{10fffe}-\u{10ffff}]{0,80}") {
            let below = text_prefix(&head);
            prop_assert!(below <= head.as_str() && below.len() <= BOUND_BYTES_MAX);
            if let Some(above) = text_above(&head) {
                prop_assert!(above >= head && above.len() <= BOUND_BYTES_LIMIT);
            }
        }

        #[test]
        fn bounds_of_bytes_hold(bytes in proptest::collection::vec(250u8..=255, 0..80)) {
            if let Some(above) = bytes_above(&bytes) {
                prop_assert!(above >= bytes);
            }
        }
    }

    #[test]
    fn a_text_without_a_next_has_no_bound() {
        assert_eq!(text_above(&char::MAX.to_string().repeat(50)), None);
        assert_eq!(bytes_above(&[0xff; 65]), None);
        assert_eq!(text_above(&format!("a{}", char::MAX.to_string().repeat(50))), Some("b".into()));
    }

    #[test]
    fn merging_keeps_what_is_known_of_all() {
        let run = |rows, nulls, min: Option<i128>, max: Option<i128>| Stats {
            rows,
            nulls,
            min: min.map(Value::Int),
            max: max.map(Value::Int),
            sum: Some(1),
            exact: true,
        };
        let all =
            [run(5, 0, Some(3), Some(9)), run(5, 5, None, None), run(5, 1, Some(-2), Some(4))];
        let merged = Stats { sum: Some(3), ..run(15, 6, Some(-2), Some(9)) };
        assert_eq!(Stats::merge(all.iter()), merged);
        let unknown = [run(5, 0, Some(3), Some(9)), run(5, 0, Some(1), None)];
        assert_eq!(Stats::merge(unknown.iter()).max, None);
        assert_eq!(Stats::merge(unknown.iter()).min, Some(Value::Int(1)));
    }
}
