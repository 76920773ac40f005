//! Which rows of an array pass a test: the exact side of what zone maps only bound.
//!
//! Comparisons are those of [`Value::compare`], as in SQL: NULL passes nothing but [`Test::IsNull`], NaN is the
//! greatest float, and -0 equals 0. A test of another kind than the column's passes every row, as it does for zones:
//! nothing is ever lost by mistake. Pure.

use std::cmp::Ordering;

use arrow::{
    array::{Array, ArrowNativeTypeOp, ArrowPrimitiveType, AsArray, BooleanArray},
    buffer::BooleanBuffer,
    datatypes::{
        ArrowDictionaryKeyType, ArrowNativeType, BinaryType, ByteArrayType, DataType, Date32Type,
        Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
        TimestampMicrosecondType, UInt16Type, Utf8Type,
    },
};
use hypertide_proto::predicate::{Test, Value, Zone};

/// Which rows pass. No row of the result is null.
pub(crate) fn passing(test: &Test, array: &dyn Array) -> BooleanArray {
    let rows = array.len();
    let present = || match array.logical_nulls() {
        Some(nulls) => nulls.inner().clone(),
        None => BooleanBuffer::new_set(rows),
    };
    let passed = match test {
        Test::IsNull => !&present(),
        Test::IsNotNull => present(),
        _ => match compare(test, array) {
            Some(passed) if array.null_count() == 0 => passed,
            Some(passed) => &passed & &present(),
            None => BooleanBuffer::new_set(rows),
        },
    };
    BooleanArray::new(passed, None)
}

/// Whether all rows of a zone are sure to pass. False when in doubt.
pub(crate) fn all_pass(test: &Test, zone: Zone<'_>) -> bool {
    let edge = |edge: Option<&Value>, value: &Value, asked: fn(Ordering) -> bool| {
        edge.and_then(|edge| edge.compare(value)).is_some_and(asked)
    };
    let whole = zone.nulls == 0;
    match test {
        Test::IsNull => zone.nulls == zone.rows,
        Test::IsNotNull => whole,
        Test::Lt(value) => whole && edge(zone.max, value, Ordering::is_lt),
        Test::LtEq(value) => whole && edge(zone.max, value, Ordering::is_le),
        Test::Gt(value) => whole && edge(zone.min, value, Ordering::is_gt),
        Test::GtEq(value) => whole && edge(zone.min, value, Ordering::is_ge),
        Test::In(values) => {
            let only = |value| {
                edge(zone.min, value, Ordering::is_eq) && edge(zone.max, value, Ordering::is_eq)
            };
            whole && values.iter().any(only)
        }
    }
}

/// Rows that pass a comparison, null ones being anything; `None` when the test is of another kind than the array.
fn compare(test: &Test, array: &dyn Array) -> Option<BooleanBuffer> {
    match array.data_type() {
        DataType::Int16 => integers::<Int16Type>(test, array),
        DataType::Int32 => integers::<Int32Type>(test, array),
        DataType::Int64 => integers::<Int64Type>(test, array),
        DataType::Date32 => integers::<Date32Type>(test, array),
        DataType::Timestamp(..) => integers::<TimestampMicrosecondType>(test, array),
        DataType::Decimal128(..) => integers::<Decimal128Type>(test, array),
        DataType::Float32 => {
            let values = array.as_primitive::<Float32Type>().values();
            floats(test, values.len(), |row| values.get(row).map(|value| f64::from(*value)))
        }
        DataType::Float64 => {
            let values = array.as_primitive::<Float64Type>().values();
            floats(test, values.len(), |row| values.get(row).copied())
        }
        DataType::Utf8 => byte_strings::<Utf8Type>(test, array, |value| match value {
            Value::Text(text) => Some(text.as_bytes()),
            _ => None,
        }),
        DataType::Binary => byte_strings::<BinaryType>(test, array, |value| match value {
            Value::Bytes(bytes) => Some(bytes.as_slice()),
            _ => None,
        }),
        DataType::Boolean => booleans(test, array),
        DataType::Dictionary(key, _) if **key == DataType::Int32 => {
            dictionary::<Int32Type>(test, array)
        }
        DataType::Dictionary(key, _) if **key == DataType::UInt16 => {
            dictionary::<UInt16Type>(test, array)
        }
        _ => None,
    }
}

/// The values that a comparison is with; none for tests of NULL.
fn values_of(test: &Test) -> &[Value] {
    match test {
        Test::Lt(value) | Test::LtEq(value) | Test::Gt(value) | Test::GtEq(value) => {
            std::slice::from_ref(value)
        }
        Test::In(values) => values,
        Test::IsNull | Test::IsNotNull => &[],
    }
}

/// Whether a value that stands so to each of the test's values passes.
fn holds<T>(test: &Test, values: &[T], order: impl Fn(&T) -> Ordering) -> bool {
    let any = |asked: fn(Ordering) -> bool| values.iter().any(|value| asked(order(value)));
    match test {
        Test::Lt(_) => any(Ordering::is_lt),
        Test::LtEq(_) => any(Ordering::is_le),
        Test::Gt(_) => any(Ordering::is_gt),
        Test::GtEq(_) => any(Ordering::is_ge),
        Test::In(_) => any(Ordering::is_eq),
        Test::IsNull | Test::IsNotNull => true,
    }
}

/// A comparison of integers as the least and the greatest that pass; `None` when it is with several.
fn bounds(test: &Test, values: &[i128]) -> Option<(i128, i128)> {
    let [value] = *values else { return None };
    Some(match test {
        // Below the least there is nothing: an empty range.
        Test::Lt(_) => value.checked_sub(1).map_or((1, 0), |max| (i128::MIN, max)),
        Test::LtEq(_) => (i128::MIN, value),
        Test::Gt(_) => value.checked_add(1).map_or((1, 0), |min| (min, i128::MAX)),
        Test::GtEq(_) => (value, i128::MAX),
        Test::In(_) | Test::IsNull | Test::IsNotNull => (value, value),
    })
}

fn integers<T>(test: &Test, array: &dyn Array) -> Option<BooleanBuffer>
where
    T: ArrowPrimitiveType<Native: ArrowNativeTypeOp + Into<i128> + TryFrom<i128> + Ord>,
{
    let integer = |value: &Value| match value {
        Value::Int(value) => Some(*value),
        _ => None,
    };
    let mut asked: Vec<i128> = values_of(test).iter().map(integer).collect::<Option<_>>()?;
    let values: &[T::Native] = array.as_primitive::<T>().values();
    let collect =
        |passes: &dyn Fn(&T::Native) -> bool| values.iter().map(passes).collect::<BooleanBuffer>();
    let Some((min, max)) = bounds(test, &asked) else {
        asked.sort_unstable();
        return Some(collect(&|value| asked.binary_search(&(*value).into()).is_ok()));
    };
    // Bounds beyond the type are its own, or leave nothing.
    let least: i128 = T::Native::MIN_TOTAL_ORDER.into();
    let greatest: i128 = T::Native::MAX_TOTAL_ORDER.into();
    let (min, max) = (min.max(least), max.min(greatest));
    let narrow = |value: i128| T::Native::try_from(value).ok();
    match (min <= max).then(|| narrow(min).zip(narrow(max))).flatten() {
        None => Some(BooleanBuffer::new_unset(values.len())),
        Some((min, max)) => {
            let rows = values.len();
            let passes = |row: usize| values.get(row).is_some_and(|v| *v >= min && *v <= max);
            Some(BooleanBuffer::collect_bool(rows, passes))
        }
    }
}

fn floats(test: &Test, rows: usize, value: impl Fn(usize) -> Option<f64>) -> Option<BooleanBuffer> {
    let float = |value: &Value| match value {
        Value::Float(value) => Some(*value),
        _ => None,
    };
    let asked: Vec<f64> = values_of(test).iter().map(float).collect::<Option<_>>()?;
    let passes = |row| {
        let Some(value) = value(row) else { return false };
        holds(test, &asked, |other| {
            value.partial_cmp(other).unwrap_or_else(|| value.is_nan().cmp(&other.is_nan()))
        })
    };
    Some(BooleanBuffer::collect_bool(rows, passes))
}

fn byte_strings<T: ByteArrayType<Offset = i32>>(
    test: &Test,
    array: &dyn Array,
    bytes: fn(&Value) -> Option<&[u8]>,
) -> Option<BooleanBuffer> {
    let mut asked: Vec<&[u8]> = values_of(test).iter().map(bytes).collect::<Option<_>>()?;
    let array = array.as_bytes::<T>();
    let several = asked.len() > 1;
    asked.sort_unstable();
    let passes = |row: usize| {
        let value: &[u8] = array.value(row).as_ref();
        // Only a list has several, and it may be long.
        if several {
            return asked.binary_search(&value).is_ok();
        }
        holds(test, &asked, |other| value.cmp(other))
    };
    Some(BooleanBuffer::collect_bool(array.len(), passes))
}

fn booleans(test: &Test, array: &dyn Array) -> Option<BooleanBuffer> {
    let boolean = |value: &Value| match value {
        Value::Bool(value) => Some(*value),
        _ => None,
    };
    let asked: Vec<bool> = values_of(test).iter().map(boolean).collect::<Option<_>>()?;
    let array = array.as_boolean();
    let passes = |value: bool| holds(test, &asked, |other| value.cmp(other));
    let (falses, trues) = (passes(false), passes(true));
    let of = |row| if array.value(row) { trues } else { falses };
    Some(BooleanBuffer::collect_bool(array.len(), of))
}

/// Each entry is tested once, whatever the number of rows that have it.
fn dictionary<K: ArrowDictionaryKeyType>(test: &Test, array: &dyn Array) -> Option<BooleanBuffer> {
    let array = array.as_dictionary::<K>();
    let entries = compare(test, array.values().as_ref())?;
    let keys = array.keys().values();
    let passes = |row: usize| {
        let key = keys.get(row).map_or(usize::MAX, |key| key.as_usize());
        // The key of a null row may be anything.
        key < entries.len() && entries.value(key)
    };
    Some(BooleanBuffer::collect_bool(keys.len(), passes))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{array::ArrayRef, compute::cast};
    use proptest::{prelude::*, sample::Index};

    use super::*;
    use crate::samples::{batches, value_of};

    fn test_of(value: Value, pick: u8, other: Option<Value>) -> Test {
        match pick {
            0 => Test::Lt(value),
            1 => Test::LtEq(value),
            2 => Test::Gt(value),
            3 => Test::GtEq(value),
            4 => Test::In(vec![value]),
            _ => Test::In(other.into_iter().chain([value]).collect()),
        }
    }

    /// What a row is worth, by the definition.
    fn expected(test: &Test, value: Option<&Value>) -> bool {
        let order = |other: &Value| value.and_then(|value| value.compare(other));
        match test {
            Test::IsNull => value.is_none(),
            Test::IsNotNull => value.is_some(),
            Test::Lt(other) => order(other).is_some_and(Ordering::is_lt),
            Test::LtEq(other) => order(other).is_some_and(Ordering::is_le),
            Test::Gt(other) => order(other).is_some_and(Ordering::is_gt),
            Test::GtEq(other) => order(other).is_some_and(Ordering::is_ge),
            Test::In(others) => others.iter().any(|o| order(o).is_some_and(Ordering::is_eq)),
        }
    }

    fn values(array: &ArrayRef) -> Vec<Option<Value>> {
        (0..array.len()).map(|row| value_of(&array.slice(row, 1))).collect()
    }

    fn check(test: &Test, array: &ArrayRef) {
        let values = values(array);
        let expected: Vec<bool> =
            values.iter().map(|value| expected(test, value.as_ref())).collect();
        let found: Vec<bool> = passing(test, array).values().iter().collect();
        assert_eq!(found, expected, "{test:?} of {array:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn every_test_of_every_type_is_exact(
            rows in batches(1..30), row: Index, second: Index, pick in 0u8..6,
        ) {
            for array in rows.columns() {
                let values = values(array);
                let (value, other) = (row.get(&values).clone(), second.get(&values).clone());
                check(&Test::IsNull, array);
                check(&Test::IsNotNull, array);
                let Some(value) = value else { continue };
                let test = test_of(value, pick, other);
                check(&test, array);
                if matches!(array.data_type(), DataType::Utf8 | DataType::Binary) {
                    let wanted = DataType::Dictionary(
                        Box::new(DataType::Int32), Box::new(array.data_type().clone()),
                    );
                    let dictionary = cast(array, &wanted).expect("it casts");
                    prop_assert_eq!(passing(&test, &dictionary), passing(&test, array));
                }
            }
        }
    }

    #[test]
    fn bounds_beyond_the_type_hold_or_leave_nothing() {
        let array: ArrayRef = Arc::new(arrow::array::Int16Array::from(vec![i16::MIN, 0, i16::MAX]));
        for value in [i128::MIN, -40_000, -32_768, 32_767, 40_000, i128::MAX] {
            for pick in 0..6 {
                check(&test_of(Value::Int(value), pick, Some(Value::Int(0))), &array);
            }
        }
        check(&Test::In(vec![]), &array);
    }

    #[test]
    fn a_test_of_another_kind_loses_nothing() {
        let array: ArrayRef = Arc::new(arrow::array::Int16Array::from(vec![Some(1), None]));
        let passed = passing(&Test::Lt(Value::Text("a".into())), &array);
        assert_eq!(passed.true_count(), 2);
    }

    #[test]
    fn zones_that_prove_a_test_are_believed_only_without_nulls() {
        let (min, max) = (Value::Int(3), Value::Int(5));
        let zone = Zone { min: Some(&min), max: Some(&max), nulls: 0, rows: 9 };
        let int = Value::Int;
        assert!(all_pass(&Test::Lt(int(6)), zone) && !all_pass(&Test::Lt(int(5)), zone));
        assert!(all_pass(&Test::GtEq(int(3)), zone) && !all_pass(&Test::Gt(int(3)), zone));
        assert!(!all_pass(&Test::In(vec![int(3), int(4), int(5)]), zone));
        let single = Zone { max: Some(&min), ..zone };
        assert!(all_pass(&Test::In(vec![int(9), int(3)]), single));
        let nulls = Zone { nulls: 1, ..zone };
        assert!(!all_pass(&Test::Lt(int(6)), nulls) && !all_pass(&Test::IsNull, nulls));
        assert!(!all_pass(&Test::Lt(Value::Float(6.0)), zone));
        let unknown = Zone { min: None, max: None, ..zone };
        assert!(!all_pass(&Test::Lt(int(6)), unknown) && all_pass(&Test::IsNotNull, unknown));
    }
}
