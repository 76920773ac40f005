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
    datatypes::{Field, Float64Type, Schema},
};
use hypertide_proto::{
    ids::Csn,
    predicate::{Predicate, Term, Test, Value},
};
use proptest::{prelude::*, sample::Index};

use super::*;
use crate::samples::{batch, batches, value_of};

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

/// Encodes, opens, decodes and compares, with much effort, too.
fn round_trip(rows: &RecordBatch) -> (Segment, EncodedSegment) {
    let keys: Vec<String> = ["boolean", "text", "location"].map(str::to_owned).to_vec();
    round_trip_with(rows, EncodeOptions { effort: Effort::Strong, keys: &keys });
    round_trip_with(rows, EncodeOptions::default())
}

fn round_trip_with(rows: &RecordBatch, options: EncodeOptions<'_>) -> (Segment, EncodedSegment) {
    let csns: Vec<u64> = (0..rows.num_rows() as u64).map(|row| (row % 3) << 16 | 5).collect();
    let encoded = encode_with(KEY, rows, &csns, options).expect("encodes");
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

/// The segment under another name, by [`Reframe`].
fn reframe(encoded: &EncodedSegment, to: SegmentKey) -> Result<EncodedSegment, SegmentError> {
    let reframe = Reframe::open(KEY, to, &encoded.header)?;
    let extents = encoded.extents.iter().enumerate();
    let extents = extents.map(|(number, bytes)| reframe.extent(number, bytes));
    Ok(EncodedSegment { header: reframe.header()?, extents: extents.collect::<Result<_, _>>()? })
}

#[test]
fn an_extent_that_is_not_as_the_header_says_gets_no_new_name() {
    let rows = batch_of_numbers(20_000);
    let csns = vec![5; rows.num_rows()];
    let encoded = encode(KEY, &rows, &csns).expect("encodes");
    let to = SegmentKey { file: [9; 16], segment: 1 };
    let extent = &encoded.extents[0];
    let mut wrong = vec![extent[..extent.len() - 1].to_vec(), [extent.as_slice(), &[0]].concat()];
    wrong.extend((0..64).map(|at| {
        let mut flipped = extent.clone();
        let at = at * (extent.len() - 1) / 63;
        flipped[at] ^= 0x10;
        flipped
    }));
    let reframe = Reframe::open(KEY, to, &encoded.header).expect("opens");
    assert!(reframe.extent(0, extent).is_ok());
    for bytes in wrong {
        assert!(matches!(reframe.extent(0, &bytes), Err(SegmentError::Damaged { .. })));
    }
    assert!(Reframe::open(to, KEY, &encoded.header).is_err());
}

fn batch_of_numbers(count: i64) -> RecordBatch {
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values((0..count).map(|i| i * 7)));
    let names: ArrayRef =
        Arc::new(StringArray::from_iter_values((0..count).map(|i| format!("n{}", i % 10))));
    RecordBatch::try_from_iter([("number", numbers), ("name", names)]).expect("of one length")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_new_name_changes_no_row(rows in batches(0..60)) {
        let (_, encoded) = round_trip(&rows);
        let to = SegmentKey { file: [9; 16], segment: 1 };
        let renamed = reframe(&encoded, to)?;
        let csns: Vec<u64> = (0..rows.num_rows() as u64).map(|row| (row % 3) << 16 | 5).collect();
        prop_assert_eq!(&renamed, &encode(to, &rows, &csns)?);
    }

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
    fn texts_come_as_dictionaries_too(rows in batches(1..60)) {
        use arrow::datatypes::DataType::{Binary, Dictionary, Int32, Utf8};
        let (segment, encoded) = round_trip(&rows);
        for (column, array) in rows.columns().iter().enumerate() {
            if !matches!(array.data_type(), Utf8 | Binary) {
                continue;
            }
            let wanted = Dictionary(Box::new(Int32), Box::new(array.data_type().clone()));
            let place = segment.place(0, column).expect("the block is in the directory");
            let extent = &encoded.extents[place.extent];
            let dictionary = segment.decode_as(0, column, &wanted, extent)?;
            let back = arrow::compute::cast(&dictionary, array.data_type()).expect("it casts");
            prop_assert_eq!(&back, array);
        }
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

/// Rows of series of these lengths, in order, one a second.
fn series(lengths: &[usize]) -> RecordBatch {
    let of = lengths.iter().enumerate().flat_map(|(host, rows)| vec![host; *rows]);
    let of: Vec<usize> = of.collect();
    let hosts: StringArray = of.iter().map(|host| Some(format!("host_{host}"))).collect();
    let racks: Int64Array = of.iter().map(|host| (host % 3 > 0).then_some(*host as i64)).collect();
    let seconds = lengths.iter().flat_map(|rows| 0..*rows as i64);
    let time = TimestampMicrosecondArray::from_iter_values(seconds.map(|s| s * 1_000_000));
    let columns: [(&str, ArrayRef); 3] =
        [("location", Arc::new(hosts)), ("rack", Arc::new(racks)), ("time", Arc::new(time))];
    batch(columns.into_iter())
}

fn ask(column: &str, test: Test) -> Predicate {
    Predicate { terms: vec![Term { column: column.into(), test }] }
}

#[test]
fn the_rows_of_a_series_are_known_without_a_block() {
    let rows = series(&[5000, 5000, 100, 10_000, 30]);
    let keys = ["location", "rack", "absent", "location"].map(str::to_owned);
    let options = EncodeOptions { effort: Effort::Fast, keys: &keys };
    let (segment, encoded) = round_trip_with(&rows, options);
    assert_eq!(segment.key_columns().collect::<Vec<_>>(), ["location", "rack"]);
    // A block ends where a series does, once it is half full.
    let blocks: Vec<_> = (0..segment.block_count()).map(|b| segment.block_rows(b)).collect();
    assert_eq!(blocks, [0..5000, 5000..10_100, 10_100..18_292, 18_292..20_130]);
    let host = |name: &str| Value::Text(name.into());
    let found = |predicate: &Predicate| {
        let ranges = segment.rows_of_series(predicate)?.into_iter();
        Some(ranges.map(|range| (range.start, range.end)).collect::<Vec<_>>())
    };
    assert_eq!(found(&ask("time", Test::Lt(Value::Int(0)))), None);
    let one = ask("location", Test::In(vec![host("host_3")]));
    assert_eq!(found(&one), Some(vec![(10_100, 20_100)]));
    let two = ask("location", Test::In(vec![host("host_2"), host("host_0"), host("no")]));
    assert_eq!(found(&two), Some(vec![(0, 5000), (10_000, 10_100)]));
    let neighbours = ask("location", Test::Lt(host("host_2")));
    assert_eq!(found(&neighbours), Some(vec![(0, 10_000)]));
    assert_eq!(found(&ask("rack", Test::IsNull)), Some(vec![(0, 5000), (10_100, 20_100)]));
    let mut both = two;
    both.terms.push(Term { column: "rack".into(), test: Test::IsNotNull });
    assert_eq!(found(&both), Some(vec![(10_000, 10_100)]));
    assert_eq!(found(&ask("location", Test::In(vec![]))), Some(vec![]));
    // Tags of a block of one series have no bytes.
    assert_eq!(segment.place(0, 0), Some(Place::default()));
    assert!(segment.place(1, 0).is_some_and(|place| place.len > 0));
    assert_eq!(read(&segment, &encoded.extents).expect("decodes").0, rows);
}

#[test]
fn short_series_have_no_index() {
    let keys = ["location".to_owned()];
    let options = EncodeOptions { effort: Effort::Fast, keys: &keys };
    let (segment, _) = round_trip_with(&series(&[4; 100]), options);
    assert_eq!(segment.key_columns().count(), 0);
    let asked = ask("location", Test::IsNull);
    assert_eq!(segment.rows_of_series(&asked), None);
}

#[test]
fn equal_rows_need_no_bytes_and_keep_their_bits() {
    use arrow::array::*;
    let repeat = |value: f64| Arc::new(Float64Array::from_value(value, 100)) as ArrayRef;
    let zeros: Float64Array =
        (0..100).map(|row| Some(if row == 50 { -0.0 } else { 0.0 })).collect();
    let columns: [(&str, ArrayRef, bool); 12] = [
        ("a", Arc::new(Int16Array::from_value(-7, 100)), true),
        ("b", Arc::new(Date32Array::from_value(i32::MIN, 100)), true),
        ("c", Arc::new(Float32Array::from_value(0.1, 100)), true),
        ("d", repeat(-0.0), true),
        ("e", repeat(f64::INFINITY), true),
        ("f", repeat(f64::NAN), false),
        ("g", Arc::new(zeros), false),
        ("h", Arc::new(StringArray::new_repeated("x".repeat(64), 100)), true),
        ("i", Arc::new(StringArray::new_repeated("x".repeat(65), 100)), false),
        ("j", Arc::new(BooleanArray::from(vec![false; 100])), true),
        ("k", new_null_array(&arrow::datatypes::DataType::Binary, 100), true),
        ("l", Arc::new(Int64Array::from_iter((0..100).map(|row| (row > 0).then_some(1)))), false),
    ];
    let inline: Vec<bool> = columns.iter().map(|(.., inline)| *inline).collect();
    let rows = batch(columns.into_iter().map(|(name, array, _)| (name, array)));
    let (segment, encoded) = round_trip(&rows);
    let place = |column| segment.place(0, column).expect("the block is in the directory");
    let found: Vec<bool> = (0..rows.num_columns()).map(|column| place(column).len == 0).collect();
    assert_eq!(found, inline);
    for column in 3..7 {
        let back = segment.decode(0, column, &encoded.extents[0]).expect("decodes");
        let bits = |array: &ArrayRef| -> Vec<u64> {
            array.as_primitive::<Float64Type>().values().iter().map(|v| v.to_bits()).collect()
        };
        assert_eq!(bits(&back), bits(rows.column(column)));
    }
}

#[test]
fn what_is_known_of_all_rows_is_exact_or_said_not_to_be() {
    let long = "y".repeat(100);
    let texts = StringArray::from(vec![Some("b"), None, Some("a"), Some("c")]);
    let longs = StringArray::from(vec![Some("b"), None, Some(long.as_str()), Some("c")]);
    let columns: [(&str, ArrayRef); 2] = [("text", Arc::new(texts)), ("long", Arc::new(longs))];
    let (segment, _) = round_trip(&batch(columns.into_iter()));
    let text = |text: &str| Value::Text(text.into());
    assert_eq!(segment.extremes("text"), Some((Some(&text("a")), Some(&text("c")))));
    assert_eq!(segment.extremes("long"), None);
    assert_eq!(segment.extremes("absent"), None);
    assert_eq!((segment.distinct("text"), segment.distinct("absent")), (Some(3), None));
    let (segment, _) = round_trip(&weather(3 * BLOCK_ROWS));
    let edge = |value: i128| Value::Int(value);
    assert_eq!(segment.extremes("number"), Some((Some(&edge(0)), Some(&edge(24_575)))));
    let near = |column: &str, expected: u64| {
        let estimate = segment.distinct(column).expect("it has the column");
        assert!(estimate.abs_diff(expected) * 5 <= expected, "{estimate} of {expected}");
    };
    near("number", 24_576);
    near("temperature", 400);
    near("location", 2);
}

#[test]
fn much_effort_makes_less() {
    let noise = |row: u64| xxhash_rust::xxh3::xxh3_64(&row.to_le_bytes());
    let values = (0..3 * BLOCK_ROWS as u64).map(|row| (noise(row) % 1000) as f64 * 1.1e-3);
    let roots = Float64Array::from_iter_values(values.map(f64::sqrt));
    let texts: StringArray = (0..3 * BLOCK_ROWS as u64)
        .map(|row| Some(format!("a longer text {}", noise(row) % 4000)))
        .collect();
    let columns: [(&str, ArrayRef); 2] = [("a", Arc::new(roots)), ("b", Arc::new(texts))];
    let rows = batch(columns.into_iter());
    let bytes = |effort| -> usize {
        let (_, encoded) = round_trip_with(&rows, EncodeOptions { effort, keys: &[] });
        encoded.extents.iter().map(Vec::len).sum()
    };
    let (fast, strong) = (bytes(Effort::Fast), bytes(Effort::Strong));
    assert!(strong * 100 < fast * 95, "{strong} of {fast}");
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
    let rows = batch(columns.into_iter());
    let (segment, encoded) = round_trip_with(&rows, EncodeOptions::default());
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
    // The last one need not be, and that of the small blocks of commit numbers is of the other size.
    assert!(full + 2 >= sizes.len(), "{sizes:?}");
    let small = sizes.iter().filter(|size| **size <= EXTENT_BYTES_SMALL).count();
    assert_eq!(small, 1, "{sizes:?}");
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
