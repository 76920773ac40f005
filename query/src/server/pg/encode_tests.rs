//! Values on the wire, as text and as binary.

use arrow::{
    array::{
        BinaryArray, Decimal256Array, IntervalMonthDayNanoArray, ListArray, StringArray,
        UInt64Array,
    },
    datatypes::{Field, Int32Type, IntervalMonthDayNano, Schema, i256},
};
use hypertide_proto::schema::{Column as TableColumn, ColumnType};
use tokio_postgres::types::{FromSql, Type};

use super::*;

/// The fields of the rows of one column.
fn fields(field: Field, array: ArrayRef, format: Format) -> Vec<Option<Vec<u8>>> {
    let types = [(PgType::of_field(&field), format)];
    let schema = Arc::new(Schema::new(vec![field]));
    let batch = RecordBatch::try_new(schema, vec![array]).unwrap();
    let mut rows = Rows::new(&batch, &types, TextStyle::default()).unwrap();
    let mut found = Vec::new();
    let mut out = Vec::new();
    while rows.write_next(&mut out) {
        let length = u32::from_be_bytes(out[1..5].try_into().unwrap()) as usize;
        assert_eq!((out[0], length, &out[5..7]), (b'D', out.len() - 1, &[0, 1][..]));
        let length = i32::from_be_bytes(out[7..11].try_into().unwrap());
        let value = usize::try_from(length).ok().map(|length| {
            assert_eq!(out.len(), 11 + length);
            out[11..].to_vec()
        });
        found.push(value);
        out.clear();
    }
    found
}

fn binary(field: Field, array: ArrayRef) -> Vec<Option<Vec<u8>>> {
    fields(field, array, Format::Binary)
}

fn field(column_type: ColumnType) -> Field {
    TableColumn::new("x", column_type).to_field()
}

/// The numeric in a binary value, as text.
fn numeric(bytes: &[u8]) -> String {
    let word = |at: usize| u16::from_be_bytes([bytes[2 * at], bytes[2 * at + 1]]);
    let (count, weight, sign, scale) = (word(0), i32::from(word(1) as i16), word(2), word(3));
    assert_eq!(bytes.len(), 8 + 2 * usize::from(count));
    let digit = |at: i32| match usize::try_from(at) {
        Ok(at) if at < usize::from(count) => word(4 + at),
        _ => 0,
    };
    let mut text = if sign == NUMERIC_NEGATIVE { "-".to_owned() } else { String::new() };
    let whole: String = (0..=weight.max(0))
        .map(|at| format!("{:04}", digit(at - weight.max(0) + weight)))
        .collect();
    let whole = whole.trim_start_matches('0');
    text.push_str(if whole.is_empty() { "0" } else { whole });
    if scale > 0 {
        let part: String = (1..=12).map(|at| format!("{:04}", digit(weight + at))).collect();
        text.push('.');
        text.push_str(&part[..usize::from(scale)]);
    }
    text
}

#[test]
fn numerics_are_what_their_text_is() {
    for scale in [0_i8, 1, 2, 3, 4, 5, 7, 10, 20, 37] {
        let values = [
            0_i128,
            1,
            -1,
            9,
            10,
            99,
            100,
            1234,
            9999,
            10_000,
            10_001,
            123_456_789,
            -50_000_000,
            100_000_000,
            99_999_999_999_999_999_999_999_999_999_999_999_999,
        ];
        let array = Decimal128Array::from(values.to_vec());
        let array = array.with_precision_and_scale(38, scale).unwrap();
        let field = Field::new("x", array.data_type().clone(), true);
        let array: ArrayRef = Arc::new(array);
        let texts = fields(field.clone(), Arc::clone(&array), Format::Text);
        for (text, bytes) in texts.iter().zip(binary(field, array)) {
            let text = std::str::from_utf8(text.as_ref().unwrap()).unwrap();
            // A numeric without declared scale has no zeros at its end in either form.
            assert_eq!(numeric(&bytes.unwrap()), text, "scale {scale}");
        }
    }
}

#[test]
fn wide_and_unsigned_numbers_are_numerics() {
    let wide = Decimal256Array::from(vec![
        i256::from_string("123456789012345678901234567890123456789012345").unwrap(),
    ]);
    let wide = wide.with_precision_and_scale(76, 2).unwrap();
    let field = Field::new("x", wide.data_type().clone(), true);
    let bytes = binary(field, Arc::new(wide)).remove(0).unwrap();
    assert_eq!(numeric(&bytes), "1234567890123456789012345678901234567890123.45");
    let unsigned: ArrayRef = Arc::new(UInt64Array::from(vec![u64::MAX]));
    let bytes = binary(Field::new("x", DataType::UInt64, true), unsigned).remove(0).unwrap();
    assert_eq!(numeric(&bytes), "18446744073709551615");
}

#[test]
fn plain_values_have_the_protocols_bytes() {
    let int: ArrayRef = Arc::new(Int32Array::from(vec![Some(-2), None]));
    assert_eq!(binary(field(ColumnType::Integer), int), [Some(vec![255, 255, 255, 254]), None]);
    let float: ArrayRef = Arc::new(Float64Array::from(vec![1.5]));
    let bytes = binary(field(ColumnType::Double), float).remove(0).unwrap();
    assert_eq!(f64::from_sql(&Type::FLOAT8, &bytes).unwrap(), 1.5);
    let uuid = "6f9619ff-8b86-d011-b42d-00c04fc964ff";
    let text: ArrayRef = Arc::new(StringArray::from(vec![uuid]));
    let bytes = binary(field(ColumnType::Uuid), text).remove(0).unwrap();
    assert_eq!(uuid::Uuid::from_slice(&bytes).unwrap().to_string(), uuid);
    let json: ArrayRef = Arc::new(StringArray::from(vec!["{}"]));
    assert_eq!(binary(field(ColumnType::Jsonb), json), [Some(b"\x01{}".to_vec())]);
    let bytes: ArrayRef = Arc::new(BinaryArray::from(vec![&b"\0\xff"[..]]));
    assert_eq!(binary(field(ColumnType::Bytea), bytes), [Some(b"\0\xff".to_vec())]);
}

#[test]
fn times_count_from_2000() {
    let zone: Option<Arc<str>> = Some("UTC".into());
    let times = TimestampMicrosecondArray::from(vec![EPOCH_MICROS + 1, i64::MAX, i64::MIN]);
    let times: ArrayRef = Arc::new(times.with_timezone_opt(zone));
    let found = binary(field(ColumnType::TimestampTz), times);
    let numbers: Vec<i64> = found
        .iter()
        .map(|bytes| i64::from_be_bytes(bytes.as_deref().unwrap().try_into().unwrap()))
        .collect();
    assert_eq!(numbers, [1, i64::MAX, i64::MIN]);
    let dates: ArrayRef = Arc::new(Date32Array::from(vec![EPOCH_DAYS - 1]));
    assert_eq!(binary(field(ColumnType::Date), dates), [Some(vec![255; 4])]);
    let value = IntervalMonthDayNano::new(14, -3, 5_000_000);
    let array: ArrayRef = Arc::new(IntervalMonthDayNanoArray::from(vec![value]));
    let field = Field::new("x", array.data_type().clone(), true);
    assert_eq!(PgType::of_field(&field).oid(), Type::INTERVAL.oid());
    let mut expected = 5000_i64.to_be_bytes().to_vec();
    expected.extend((-3_i32).to_be_bytes());
    expected.extend(14_i32.to_be_bytes());
    assert_eq!(binary(field, array), [Some(expected)]);
}

#[test]
fn lists_are_arrays() {
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![
        Some(vec![Some(7), None]),
        None,
        Some(vec![]),
    ]);
    let field = Field::new("x", lists.data_type().clone(), true);
    assert_eq!(PgType::of_field(&field).oid(), Type::INT4_ARRAY.oid());
    let found = binary(field.clone(), Arc::new(lists.clone()));
    let first = Vec::<Option<i32>>::from_sql(&Type::INT4_ARRAY, found[0].as_deref().unwrap());
    assert_eq!(first.unwrap(), [Some(7), None]);
    assert_eq!(found[1], None);
    let empty = Vec::<i32>::from_sql(&Type::INT4_ARRAY, found[2].as_deref().unwrap());
    assert_eq!(empty.unwrap(), [0_i32; 0]);
    let text = fields(field, Arc::new(lists), Format::Text);
    assert_eq!(text, [Some(b"{7,NULL}".to_vec()), None, Some(b"{}".to_vec())]);
}

#[test]
fn wrong_values_are_errors_and_not_panics() {
    let nested = DataType::new_list(DataType::new_list(DataType::Int32, true), true);
    let pg_type = PgType::of_field(&Field::new("x", nested, true));
    assert_eq!((pg_type.oid(), pg_type.array), (Type::TEXT.oid(), false));
    let text: ArrayRef = Arc::new(StringArray::from(vec!["not a uuid"]));
    assert_eq!(binary(field(ColumnType::Uuid), text), [None]);
}
