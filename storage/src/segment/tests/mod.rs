//! What holds for segments as a whole.

mod corrupt;
mod pinned;

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryArray, Float64Array, Int64Array, RecordBatch,
        RecordBatchOptions, StringArray, TimestampMicrosecondArray,
    },
    compute::{concat_batches, filter_record_batch},
    datatypes::{Field, Float64Type, Int64Type, Schema},
};
use hypertide_proto::{
    ids::Csn,
    predicate::{Predicate, Term, Test, Value},
};
use proptest::{prelude::*, sample::Index};

use super::*;
use crate::samples::{batch, batches};

const KEY: SegmentKey = SegmentKey { file: *b"0123456789abcdef", segment: 7 };

/// Decodes all of a segment.
fn read(segment: &Segment, extents: &[Vec<u8>]) -> Result<(RecordBatch, Vec<u64>), SegmentError> {
    let mut batches = Vec::new();
    let mut csns = Vec::new();
    for block in 0..segment.block_count() {
        let columns = (0..segment.schema().fields().len()).map(|column| {
            let place = segment.place(block, column).expect("the block is in the directory");
            segment.decode(block, column, &extents[place.extent])
        });
        let columns: Vec<ArrayRef> = columns.collect::<Result<_, _>>()?;
        let rows = segment.block_rows(block);
        let count = Some((rows.end - rows.start) as usize);
        let options = RecordBatchOptions::new().with_row_count(count);
        let schema = Arc::clone(segment.schema());
        let batch = RecordBatch::try_new_with_options(schema, columns, &options);
        let batch = batch.expect("the columns have the rows of the block");
        batches.push(batch);
        let place = segment.csn_place(block).expect("the block is in the directory");
        csns.extend(segment.decode_csns(block, &extents[place.extent])?);
    }
    Ok((concat_batches(segment.schema(), &batches).expect("one schema"), csns))
}

/// Encodes, opens, decodes and compares.
fn round_trip(rows: &RecordBatch) -> (Segment, EncodedSegment) {
    let csns: Vec<u64> = (0..rows.num_rows() as u64).map(|row| (row % 3) << 16 | 5).collect();
    let encoded = encode(KEY, rows, &csns).expect("encodes");
    let segment = Segment::open(KEY, &encoded.header).expect("opens");
    assert_eq!(segment.rows(), rows.num_rows() as u64);
    assert_eq!(segment.schema(), &rows.schema());
    assert_eq!(segment.extent_count(), encoded.extents.len());
    let (back, csns_back) = read(&segment, &encoded.extents).expect("decodes");
    assert_eq!(&back, rows);
    assert_eq!(csns_back, csns);
    (segment, encoded)
}

/// Whether two arrays have the same bits, so that every NaN and both zeros count as different.
fn same_floats(a: &RecordBatch, b: &RecordBatch) -> bool {
    let bits = |rows: &RecordBatch| -> Vec<Option<u64>> {
        let column = rows.column_by_name("double precision").expect("it has one");
        column.as_primitive::<Float64Type>().iter().map(|value| value.map(f64::to_bits)).collect()
    };
    bits(a) == bits(b)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rows_of_every_type_survive(rows in batches(0..60)) {
        let (segment, encoded) = round_trip(&rows);
        let (back, _) = read(&segment, &encoded.extents)?;
        prop_assert!(same_floats(&back, &rows));
    }

    #[test]
    fn a_slice_is_as_good_as_a_whole(rows in batches(20..40), start in 0usize..20, len in 0usize..20) {
        round_trip(&rows.slice(start, len.min(rows.num_rows() - start)));
    }

    #[test]
    fn equal_rows_are_equal_bytes(rows in batches(0..30)) {
        prop_assert_eq!(round_trip(&rows).1, round_trip(&rows).1);
    }

    /// The law of pruning: a zone is left out only when none of its rows passes.
    #[test]
    fn zones_never_lose_a_row(rows in batches(1..40), column: Index, row: Index, pick in 0usize..7) {
        let (segment, _) = round_trip(&rows);
        let column = column.index(rows.num_columns());
        let name = rows.schema().field(column).name().clone();
        let single = rows.slice(row.index(rows.num_rows()), 1);
        let zone = segment.zone(&name).expect("the column is there");
        prop_assert_eq!(zone.nulls, rows.column(column).null_count() as u64);
        // Tests that the row picked passes, made from its own value.
        let test = match value_of(single.column(column)) {
            None => Test::IsNull,
            Some(value) => match pick {
                0 => Test::LtEq(value),
                1 => Test::GtEq(value),
                2 => Test::In(vec![value]),
                _ => Test::IsNotNull,
            },
        };
        prop_assert!(test.may_pass(zone), "{test:?} {zone:?}");
        prop_assert!(test.may_pass(segment.block_zone(0, &name).expect("the block is there")));
    }
}

/// The only value of an array, untouched by what zone maps do to values.
fn value_of(array: &ArrayRef) -> Option<Value> {
    use arrow::datatypes::{DataType, Decimal128Type, Float32Type};
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

/// Rows like those of a real table: sorted by city and time, one a minute.
fn weather(rows: usize) -> RecordBatch {
    let half = rows / 2;
    let city = |row| if row < half { "New York" } else { "Seattle" };
    let minute = |row: usize| (row % half.max(1)) as i64;
    let start = 1_356_998_400_000_000;
    let time = (0..rows).map(|row| start + minute(row) * 60_000_000);
    let cities = (0..rows).map(|row| Some(city(row)));
    let temperature =
        (0..rows).map(|row| (row % 7 != 3).then_some(((row * 37) % 400) as f64 / 10.0));
    batch(
        [
            ("location", Arc::new(cities.collect::<StringArray>()) as ArrayRef),
            ("time", Arc::new(TimestampMicrosecondArray::from_iter_values(time))),
            ("temperature", Arc::new(temperature.collect::<Float64Array>())),
            ("number", Arc::new(Int64Array::from_iter_values(0..rows as i64))),
        ]
        .into_iter(),
    )
}

#[test]
fn many_rows_are_many_blocks() {
    let rows = weather(3 * BLOCK_ROWS + 10);
    let (segment, encoded) = round_trip(&rows);
    assert_eq!(segment.block_count(), 4);
    assert_eq!(segment.block_rows(1), 8192..16384);
    assert_eq!(segment.block_rows(3), 24576..24586);
    assert_eq!(segment.block_rows(4), 24586..24586);
    let bytes: usize = encoded.extents.iter().map(Vec::len).sum();
    assert!(bytes * 15 < rows.num_rows() * 40, "{bytes} bytes");
    let before = |number| Predicate {
        terms: vec![Term { column: "number".into(), test: Test::Lt(Value::Int(number)) }],
    };
    let passing = |number| -> Vec<usize> {
        let predicate = before(number);
        (0..4)
            .filter(|block| predicate.may_pass(|column| segment.block_zone(*block, column)))
            .collect()
    };
    assert_eq!(passing(0), [0usize; 0]);
    assert_eq!(passing(8192), [0]);
    assert_eq!(passing(8193), [0, 1]);
    assert!(!before(0).may_pass(|column| segment.zone(column)));
    assert!(before(0).may_pass(|_| segment.zone("absent")));
}

#[test]
fn sums_and_commit_numbers_are_exact() {
    let rows = weather(BLOCK_ROWS + 10);
    let (segment, _) = round_trip(&rows);
    let all = rows.num_rows() as i128;
    assert_eq!(segment.sum("number"), Some(all * (all - 1) / 2));
    assert_eq!(segment.block_sum(1, "number"), Some((8192..all).sum()));
    assert_eq!(segment.sum("temperature"), None);
    assert_eq!(segment.sum("time"), None);
    assert_eq!(segment.csn_range(), (Csn(5), Csn(2 << 16 | 5)));
    assert_eq!(segment.block_csn_range(1), Some((Csn(5), Csn(2 << 16 | 5))));
    assert_eq!(segment.block_csn_range(2), None);
    let extremes = Int64Array::from(vec![i64::MAX; 5]);
    let (segment, _) = round_trip(&batch([("bigint", Arc::new(extremes) as ArrayRef)].into_iter()));
    assert_eq!(segment.sum("bigint"), Some(5 * i128::from(i64::MAX)));
}

#[test]
fn commit_numbers_of_all_bits_survive() {
    let rows = weather(4);
    let csns = [u64::MAX, 0, u64::MAX - 1, 1 << 63];
    let encoded = encode(KEY, &rows, &csns).expect("encodes");
    let segment = Segment::open(KEY, &encoded.header).expect("opens");
    assert_eq!(segment.csn_range(), (Csn(0), Csn(u64::MAX)));
    assert_eq!(read(&segment, &encoded.extents).expect("decodes").1, csns);
}

#[test]
fn huge_strings_have_blocks_of_their_own() {
    let huge = "x".repeat(20 << 20);
    let texts = [Some(huge.as_str()), None, Some(""), Some("small"), Some(huge.as_str())];
    let binary = BinaryArray::from_iter(texts.iter().map(|text| text.map(str::as_bytes)));
    let columns: [(&str, ArrayRef); 2] =
        [("text", Arc::new(StringArray::from_iter(texts))), ("bytea", Arc::new(binary))];
    let (segment, encoded) = round_trip(&batch(columns.into_iter()));
    assert_eq!(segment.block_count(), 3);
    assert_eq!(segment.block_rows(0), 0..1);
    let zone = segment.zone("text").expect("the column is there");
    assert_eq!(zone.min, Some(&Value::Text(String::new())));
    assert!(matches!(zone.max, Some(Value::Text(max)) if max.len() <= 64 && *max > huge));
    assert!(encoded.extents.iter().all(|extent| extent.len() <= EXTENT_BYTES));
}

#[test]
fn extents_are_just_under_a_run_of_pages() {
    let noise = |row: u64| xxhash_rust::xxh3::xxh3_64(&row.to_le_bytes()).cast_signed();
    let column =
        |from: u64| Arc::new(Int64Array::from_iter_values((from..from + 70_000).map(noise)));
    let rows = batch([("a", column(0) as ArrayRef), ("b", column(1 << 20))].into_iter());
    let (_, encoded) = round_trip(&rows);
    let sizes: Vec<usize> = encoded.extents.iter().map(Vec::len).collect();
    assert!(sizes.iter().all(|size| *size <= EXTENT_BYTES));
    let full = sizes.iter().filter(|size| **size > EXTENT_BYTES * 3 / 4).count();
    assert!(full + 1 >= sizes.len(), "{sizes:?}");
}

#[test]
fn a_segment_of_nothing_is_one() {
    let (segment, encoded) = round_trip(&weather(0));
    assert_eq!((segment.rows(), segment.block_count()), (0, 0));
    assert_eq!(encoded.extents.len(), 0);
    let rows = weather(5);
    let none = rows.project(&[]).expect("it projects");
    assert_eq!(round_trip(&none).0.rows(), 5);
}

#[test]
fn metadata_of_schema_and_fields_survives() {
    let pair = |key: &str| [(key.to_owned(), "Größe".to_owned())].into();
    let field = Field::new("a", arrow::datatypes::DataType::Int64, false).with_metadata(pair("b"));
    let schema = Schema::new(vec![field]).with_metadata(pair("c"));
    let column: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    round_trip(&RecordBatch::try_new(Arc::new(schema), vec![column]).expect("they fit"));
}

#[test]
fn rows_that_no_segment_can_hold_are_refused() {
    let rows = weather(3);
    let refused = |result: Result<EncodedSegment, SegmentError>| match result {
        Err(SegmentError::Invalid(what)) => what,
        other => panic!("{other:?}"),
    };
    let what = refused(encode(KEY, &rows, &[1, 2]));
    assert_eq!(what, "there are 2 commit numbers for 3 rows");
    let column: ArrayRef = Arc::new(arrow::array::UInt8Array::from(vec![1]));
    let what = refused(encode(KEY, &batch([("tiny", column)].into_iter()), &[1]));
    assert_eq!(what, "column \"tiny\": a segment cannot hold the type UInt8");
    let many = Int64Array::from(vec![0; SEGMENT_ROWS_MAX + 1]);
    let rows = batch([("a", Arc::new(many) as ArrayRef)].into_iter());
    assert!(refused(encode(KEY, &rows, &[])).contains("at most 1048576 rows"));
}

#[test]
fn what_a_segment_lacks_is_missing() {
    let (segment, encoded) = round_trip(&weather(10));
    assert_eq!(segment.place(0, 4), None);
    assert_eq!(segment.place(1, 0), None);
    let missing = |block, column| SegmentError::Missing { segment: 7, block, column };
    assert_eq!(segment.decode(0, 4, &encoded.extents[0]).err(), Some(missing(0, 4)));
    assert_eq!(segment.decode(1, 0, &encoded.extents[0]).err(), Some(missing(1, 0)));
    assert_eq!(segment.decode_csns(1, &encoded.extents[0]).err(), Some(missing(1, 4)));
}

#[test]
fn rows_with_and_without_nulls_lie_side_by_side() {
    // The bitmap of a slice that does not begin at a byte.
    let rows = weather(3 * BLOCK_ROWS);
    let odd =
        arrow::array::BooleanArray::from_iter((0..rows.num_rows()).map(|row| Some(row % 5 != 0)));
    let rows = filter_record_batch(&rows, &odd).expect("it filters");
    round_trip(&rows.slice(3, rows.num_rows() - 7));
}
