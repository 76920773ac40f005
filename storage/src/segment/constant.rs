//! Blocks whose rows are all equal, or all null: their zone map holds the value, and they have no bytes of their own.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, ArrowPrimitiveType, AsArray, BinaryArray, BooleanArray, DictionaryArray,
        Int32Array, PrimitiveArray, StringArray, new_null_array,
    },
    buffer::BooleanBuffer,
    datatypes::{
        DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type,
        Int64Type, TimestampMicrosecondType,
    },
};
use hypertide_proto::predicate::Value;

use super::stats::Stats;

/// Whether the rows of an array are so equal that its zone map is enough to make it again, bit for bit.
pub(super) fn is_constant(array: &dyn Array, stats: &Stats) -> bool {
    if array.null_count() == array.len() {
        return true;
    }
    if array.null_count() > 0 || !stats.exact() {
        return false;
    }
    match stats.edges() {
        // Equal floats may have other bits: zeros have signs, and a NaN may be any of many.
        (Some(Value::Float(min)), Some(Value::Float(max))) => match array.data_type() {
            DataType::Float32 => min == max && one_pattern::<Float32Type>(array, f32::to_bits),
            _ => min == max && one_pattern::<Float64Type>(array, f64::to_bits),
        },
        (Some(min), Some(max)) => min == max,
        _ => false,
    }
}

fn one_pattern<T: Patterned>(array: &dyn Array, bits: fn(T::Native) -> T::Bits) -> bool {
    let values: &[T::Native] = array.as_primitive::<T>().values();
    values.array_windows().all(|[one, other]| bits(*one) == bits(*other))
}

/// A float type whose bits can be compared.
trait Patterned: ArrowPrimitiveType {
    type Bits: Eq;
}

impl Patterned for Float32Type {
    type Bits = u32;
}

impl Patterned for Float64Type {
    type Bits = u64;
}

/// The array that [`is_constant`] was asked about, of `data_type` or a dictionary of it; `None` when the zone map does
/// not fit.
pub(super) fn expand(data_type: &DataType, stats: &Stats) -> Option<ArrayRef> {
    let zone = stats.zone();
    let rows = usize::try_from(zone.rows).ok()?;
    if zone.nulls == zone.rows {
        return Some(new_null_array(data_type, rows));
    }
    if zone.nulls > 0 || zone.min != zone.max {
        return None;
    }
    if let DataType::Dictionary(key, value) = data_type {
        let one = Stats::single(zone.min?.clone());
        let keys = Int32Array::from_value(0, rows);
        let array = DictionaryArray::try_new(keys, expand(value, &one)?).ok()?;
        return (**key == DataType::Int32).then(|| Arc::new(array) as ArrayRef);
    }
    match zone.min? {
        Value::Int(value) => expand_integer(data_type, *value, rows),
        Value::Float(value) => match data_type {
            DataType::Float32 => Some(repeat::<Float32Type>(*value as f32, rows)),
            DataType::Float64 => Some(repeat::<Float64Type>(*value, rows)),
            _ => None,
        },
        Value::Text(value) => (*data_type == DataType::Utf8)
            .then(|| Arc::new(StringArray::new_repeated(value, rows)) as ArrayRef),
        Value::Bytes(value) => (*data_type == DataType::Binary)
            .then(|| Arc::new(BinaryArray::new_repeated(value, rows)) as ArrayRef),
        Value::Bool(value) => {
            let bits =
                if *value { BooleanBuffer::new_set(rows) } else { BooleanBuffer::new_unset(rows) };
            (*data_type == DataType::Boolean)
                .then(|| Arc::new(BooleanArray::new(bits, None)) as ArrayRef)
        }
    }
}

fn repeat<T: ArrowPrimitiveType>(value: T::Native, rows: usize) -> ArrayRef {
    Arc::new(PrimitiveArray::<T>::from_value(value, rows))
}

fn expand_integer(data_type: &DataType, value: i128, rows: usize) -> Option<ArrayRef> {
    Some(match data_type {
        DataType::Int16 => repeat::<Int16Type>(value.try_into().ok()?, rows),
        DataType::Int32 => repeat::<Int32Type>(value.try_into().ok()?, rows),
        DataType::Int64 => repeat::<Int64Type>(value.try_into().ok()?, rows),
        DataType::Date32 => repeat::<Date32Type>(value.try_into().ok()?, rows),
        DataType::Timestamp(_, zone) => {
            let value = value.try_into().ok()?;
            let array = PrimitiveArray::<TimestampMicrosecondType>::from_value(value, rows);
            Arc::new(array.with_timezone_opt(zone.clone()))
        }
        DataType::Decimal128(precision, scale) => {
            let array = PrimitiveArray::<Decimal128Type>::from_value(value, rows);
            Arc::new(array.with_precision_and_scale(*precision, *scale).ok()?)
        }
        _ => return None,
    })
}
