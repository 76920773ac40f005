//! Text of values against what PostgreSQL prints.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, DictionaryArray,
        DurationMicrosecondArray, Float32Array, Float64Array, Int16Array, Int32Array, Int64Array,
        IntervalMonthDayNanoArray, ListArray, StringArray, StructArray, Time64NanosecondArray,
        TimestampMicrosecondArray, TimestampSecondArray,
    },
    datatypes::{Field, Int32Type, IntervalMonthDayNano},
};

use super::*;

fn all(array: impl Array + 'static, style: TextStyle) -> Vec<String> {
    let array: ArrayRef = Arc::new(array);
    let column = TextColumn::new(&array, style);
    let text = |row| {
        let mut out = Vec::new();
        match column.write(row, &mut out) {
            true => String::from_utf8(out).expect("text is UTF-8"),
            false => "NULL".to_owned(),
        }
    };
    (0..array.len()).map(text).collect()
}

fn plain(array: impl Array + 'static) -> Vec<String> {
    all(array, TextStyle::default())
}

#[test]
fn numbers() {
    assert_eq!(plain(Int16Array::from(vec![Some(-7), None])), ["-7", "NULL"]);
    assert_eq!(
        plain(Int64Array::from(vec![0, i64::MIN, i64::MAX])),
        ["0", "-9223372036854775808", "9223372036854775807"]
    );
    let floats = vec![0.0, -0.0, 3.0, 20.5, 1e14, 1e15, 1e20, 1.5e-7, 0.0001, 0.1 + 0.2, 1.0 / 3.0];
    assert_eq!(
        plain(Float64Array::from(floats)),
        [
            "0",
            "-0",
            "3",
            "20.5",
            "100000000000000",
            "1e+15",
            "1e+20",
            "1.5e-07",
            "0.0001",
            "0.30000000000000004",
            "0.3333333333333333"
        ]
    );
    let special = vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, 5e-324];
    assert_eq!(
        plain(Float64Array::from(special)),
        ["NaN", "Infinity", "-Infinity", "1.7976931348623157e+308", "5e-324"]
    );
    assert_eq!(
        plain(Float32Array::from(vec![1.1, 123_456.0, 1_234_567.0, 1e-5])),
        ["1.1", "123456", "1.234567e+06", "1e-05"]
    );
    assert_eq!(plain(BooleanArray::from(vec![true, false])), ["t", "f"]);
}

#[test]
fn decimals() {
    let array = |values: Vec<i128>, precision, scale| {
        Decimal128Array::from(values).with_precision_and_scale(precision, scale).expect("it fits")
    };
    assert_eq!(
        plain(array(vec![12_345, -5, 0, -12_300], 10, 2)),
        ["123.45", "-0.05", "0.00", "-123.00"]
    );
    assert_eq!(plain(array(vec![7, -7], 5, 0)), ["7", "-7"]);
    assert_eq!(
        plain(array(vec![15_000_000_000, 20_000_000_000, 1, -10_500_000_000], 38, 10)),
        ["1.5", "2", "0.0000000001", "-1.05"]
    );
}

#[test]
fn dates_and_times() {
    assert_eq!(
        plain(Date32Array::from(vec![0, 15_340, -719_163, i32::MAX])),
        ["1970-01-01", "2012-01-01", "0001-12-31 BC", "infinity"]
    );
    let noon = 1_325_376_000_000_000;
    let stamps = TimestampMicrosecondArray::from(vec![noon, noon + 120_000, -1, i64::MIN]);
    assert_eq!(
        plain(stamps.clone()),
        [
            "2012-01-01 00:00:00",
            "2012-01-01 00:00:00.12",
            "1969-12-31 23:59:59.999999",
            "-infinity"
        ]
    );
    assert_eq!(plain(stamps.clone().with_timezone("UTC"))[0], "2012-01-01 00:00:00+00");
    let style =
        TextStyle { zone: Zone::parse("Asia/Kolkata").expect("it exists"), ..TextStyle::default() };
    assert_eq!(all(stamps.clone().with_timezone("UTC"), style)[0], "2012-01-01 05:30:00+05:30");
    let style = TextStyle { zone: Zone::parse("America/New_York").expect("it exists"), ..style };
    let old = TimestampMicrosecondArray::from(vec![-3_000_000_000 * SECOND_MICROS]);
    assert_eq!(all(old.with_timezone("UTC"), style), ["1874-12-07 13:43:58-04:56:02"]);
    let seconds = TimestampSecondArray::from(vec![86_400]);
    assert_eq!(plain(seconds), ["1970-01-02 00:00:00"]);
    assert_eq!(plain(Time64NanosecondArray::from(vec![3_723_000_001_000])), ["01:02:03.000001"]);
}

#[test]
fn intervals() {
    let value = IntervalMonthDayNano::new;
    let hour = 3_600_000_000_000;
    assert_eq!(
        plain(IntervalMonthDayNanoArray::from(vec![
            value(0, 0, hour),
            value(1, 0, 0),
            value(14, 3, 4 * hour),
            value(-1, 3, 0),
            value(0, -1, hour),
            value(0, 1, -hour),
            value(0, 0, 0),
            value(0, 0, -500_000_000),
        ])),
        [
            "01:00:00",
            "1 mon",
            "1 year 2 mons 3 days 04:00:00",
            "-1 mons +3 days",
            "-1 days +01:00:00",
            "1 day -01:00:00",
            "00:00:00",
            "-00:00:00.5"
        ]
    );
    let day = DAY_MICROS;
    assert_eq!(
        plain(DurationMicrosecondArray::from(vec![day + 3_600_000_000, -2 * day])),
        ["1 day 01:00:00", "-2 days"]
    );
}

#[test]
fn bytes() {
    let array = BinaryArray::from(vec![b"a\\\x00\xff".as_slice()]);
    assert_eq!(plain(array.clone()), ["\\x615c00ff"]);
    let style = TextStyle { bytea_escape: true, ..TextStyle::default() };
    assert_eq!(all(array, style), ["a\\\\\\000\\377"]);
}

#[test]
fn nested_values() {
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![
        Some(vec![Some(1), None, Some(3)]),
        None,
        Some(vec![]),
    ]);
    assert_eq!(plain(list), ["{1,NULL,3}", "NULL", "{}"]);
    let mut builder = arrow::array::ListBuilder::new(arrow::array::StringBuilder::new());
    builder.append_value(["a b", "c\"d", "", "null", "plain", "e\\f"].map(Some));
    assert_eq!(plain(builder.finish()), [r#"{"a b","c\"d","","null",plain,"e\\f"}"#]);
    let record = StructArray::from(vec![
        (
            Arc::new(Field::new("a", arrow::datatypes::DataType::Int32, true)),
            Arc::new(Int32Array::from(vec![1])) as ArrayRef,
        ),
        (
            Arc::new(Field::new("b", arrow::datatypes::DataType::Utf8, true)),
            Arc::new(StringArray::from(vec!["x\"y"])) as ArrayRef,
        ),
    ]);
    assert_eq!(plain(record), [r#"(1,"x""y")"#]);
    let words: DictionaryArray<Int32Type> = vec!["x", "y", "x"].into_iter().collect();
    assert_eq!(plain(words), ["x", "y", "x"]);
}
