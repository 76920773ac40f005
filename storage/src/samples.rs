//! Rows for tests: every column type, with nulls and the values that break things.

use std::{collections::HashMap, fmt, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Decimal128Array,
        Float32Array, Float64Array, Int16Array, Int32Array, Int64Array, RecordBatch, StringArray,
        TimestampMicrosecondArray,
    },
    datatypes::{DataType, Decimal128Type, Field, Float32Type, Float64Type, Int64Type, Schema},
};
use hypertide_proto::{
    predicate::Value,
    schema::{SQL_TYPE_KEY, UTC},
};
use proptest::{collection::vec, option, prelude::*};

/// Columns of one type and of any values.
type Columns = BoxedStrategy<ArrayRef>;

/// Columns of `rows` values: all present, some null, or all null.
fn columns_of<T: fmt::Debug + Clone + 'static>(
    rows: usize,
    value: impl Strategy<Value = T> + 'static,
    build: fn(Vec<Option<T>>) -> ArrayRef,
) -> Columns {
    let value = value.boxed();
    let present = prop_oneof![Just(0.9999), Just(0.7), Just(0.0001)];
    let values =
        present.prop_flat_map(move |present| vec(option::weighted(present, value.clone()), rows));
    values.prop_map(build).boxed()
}

fn integers() -> impl Strategy<Value = i64> {
    prop_oneof![any::<i64>(), -9i64..10, Just(i64::MIN), Just(i64::MAX)]
}

fn doubles() -> impl Strategy<Value = f64> {
    let special = [0.0, -0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, 5e-324];
    prop_oneof![
        6 => (-10_000i32..10_000).prop_map(|cents| f64::from(cents) / 100.0),
        1 => proptest::sample::select(special.to_vec()),
        1 => any::<u64>().prop_map(f64::from_bits),
    ]
}

fn texts() -> impl Strategy<Value = String> {
    let few = ["", "Seattle", "New York", "\u{10ffff}"].map(str::to_owned);
    prop_oneof![proptest::sample::select(few.to_vec()), "\\PC{0,12}", "[a-z]{60,90}"]
}

fn decimals() -> impl Strategy<Value = i128> {
    let limit = 10i128.pow(38) - 1;
    prop_oneof![-1000i128..1000, -limit..=limit, Just(limit), Just(-limit)]
}

/// Columns of every type, under the name of their SQL type.
fn types(rows: usize) -> Vec<(&'static str, Columns)> {
    let floats = doubles().prop_map(|value| value as f32);
    let bytes = vec(any::<u8>(), 0..80);
    vec![
        ("smallint", columns_of(rows, any::<i16>(), |values| Arc::new(Int16Array::from(values)))),
        ("integer", columns_of(rows, any::<i32>(), |values| Arc::new(Int32Array::from(values)))),
        ("bigint", columns_of(rows, integers(), |values| Arc::new(Int64Array::from(values)))),
        ("real", columns_of(rows, floats, |values| Arc::new(Float32Array::from(values)))),
        (
            "double precision",
            columns_of(rows, doubles(), |values| Arc::new(Float64Array::from(values))),
        ),
        (
            "numeric",
            columns_of(rows, decimals(), |values| {
                let array = Decimal128Array::from(values).with_precision_and_scale(38, 10);
                Arc::new(array.expect("the values have 38 digits"))
            }),
        ),
        ("boolean", columns_of(rows, any::<bool>(), |values| Arc::new(BooleanArray::from(values)))),
        ("text", columns_of(rows, texts(), |values| Arc::new(StringArray::from(values)))),
        (
            "timestamp without time zone",
            columns_of(rows, integers(), |values| {
                Arc::new(TimestampMicrosecondArray::from(values))
            }),
        ),
        (
            "timestamp with time zone",
            columns_of(rows, integers(), |values| {
                Arc::new(TimestampMicrosecondArray::from(values).with_timezone(UTC))
            }),
        ),
        ("date", columns_of(rows, any::<i32>(), |values| Arc::new(Date32Array::from(values)))),
        (
            "bytea",
            columns_of(rows, bytes, |values| Arc::new(values.into_iter().collect::<BinaryArray>())),
        ),
    ]
}

/// Batches with a column of every type.
pub(crate) fn batches(rows: std::ops::Range<usize>) -> impl Strategy<Value = RecordBatch> {
    rows.prop_flat_map(|rows| {
        let (names, columns): (Vec<_>, Vec<_>) = types(rows).into_iter().unzip();
        columns.prop_map(move |columns| batch(names.iter().copied().zip(columns)))
    })
}

/// A batch of named columns, whose names also stand for their SQL types.
pub(crate) fn batch<'a>(columns: impl Iterator<Item = (&'a str, ArrayRef)>) -> RecordBatch {
    let (fields, columns): (Vec<_>, Vec<_>) = columns
        .map(|(name, array)| {
            let metadata = HashMap::from([(SQL_TYPE_KEY.to_owned(), name.to_owned())]);
            let field = Field::new(name, array.data_type().clone(), true);
            (field.with_metadata(metadata), array)
        })
        .unzip();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("the columns fit")
}

/// The only value of an array, untouched by what zone maps do to values.
pub(crate) fn value_of(array: &ArrayRef) -> Option<Value> {
    if array.is_null(0) {
        return None;
    }
    Some(match array.data_type() {
        DataType::Float32 => Value::Float(array.as_primitive::<Float32Type>().value(0).into()),
        DataType::Float64 => Value::Float(array.as_primitive::<Float64Type>().value(0)),
        DataType::Utf8 => Value::Text(array.as_string::<i32>().value(0).to_owned()),
        DataType::Binary => Value::Bytes(array.as_binary::<i32>().value(0).to_vec()),
        DataType::Boolean => Value::Bool(array.as_boolean().value(0)),
        DataType::Decimal128(..) => Value::Int(array.as_primitive::<Decimal128Type>().value(0)),
        _ => {
            let cast = arrow::compute::cast(array, &DataType::Int64).expect("it is an integer");
            Value::Int(cast.as_primitive::<Int64Type>().value(0).into())
        }
    })
}
