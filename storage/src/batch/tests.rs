//! Payloads survive the way, and whatever else arrives is refused in words.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Int64Array, StringArray, UInt64Array, new_null_array},
    compute::cast,
    datatypes::{DataType, Field, Schema},
    ipc::CompressionType,
};
use proptest::{prelude::*, sample::Index};

use super::*;
use crate::samples::{batch, batches};

fn stream_of(batch: &RecordBatch) -> Vec<u8> {
    write(batch, 0).expect("it encodes")
}

/// The same rows, with texts as dictionaries.
fn with_dictionaries(batch: &RecordBatch) -> RecordBatch {
    let columns = batch.columns().iter().map(|column| match column.data_type() {
        DataType::Utf8 => cast(column, &texts_type()).expect("there are few texts"),
        _ => Arc::clone(column),
    });
    let columns: Vec<ArrayRef> = columns.collect();
    let fields =
        batch.schema_ref().fields().iter().zip(&columns).map(|(field, column)| {
            field.as_ref().clone().with_data_type(column.data_type().clone())
        });
    let schema = Schema::new(fields.collect::<Vec<_>>());
    RecordBatch::try_new(Arc::new(schema), columns).expect("the columns fit")
}

fn small() -> RecordBatch {
    let columns: [(&str, ArrayRef); 2] = [
        ("bigint", Arc::new(Int64Array::from(vec![Some(1), None, Some(3)]))),
        ("text", Arc::new(StringArray::from(vec![Some("a"), Some("Größe"), None]))),
    ];
    batch(columns.into_iter())
}

/// Decodes a stream as if it had come as a payload.
fn decode_stream(stream: &[u8]) -> Result<Vec<RecordBatch>, Error> {
    let payload = codec::compress(stream).expect("it compresses");
    decode(&payload, stream.len() as u32)
}

fn refusal(result: Result<Vec<RecordBatch>, Error>) -> String {
    match result {
        Err(Error::Invalid(what)) => what,
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rows_of_every_type_survive(rows in batches(0..40)) {
        let encoded = encode(&rows)?;
        prop_assert_eq!(encoded.rows as usize, rows.num_rows());
        prop_assert_eq!(encoded.hash, hash(&encoded.payload));
        let back = decode(&encoded.payload, encoded.decoded_bytes)?;
        prop_assert_eq!(&back, &[rows]);
        prop_assert_eq!(encode(&back[0])?.payload, encoded.payload);
    }

    #[test]
    fn dictionaries_survive_and_are_plain_texts_to_others(rows in batches(0..40)) {
        let rows = with_dictionaries(&rows);
        prop_assert_ne!(&plain_schema(rows.schema_ref()), rows.schema_ref());
        let encoded = encode(&rows)?;
        let back = decode(&encoded.payload, encoded.decoded_bytes)?;
        prop_assert_eq!(back.len(), 1);
        let plain = plain_schema(rows.schema_ref());
        for (position, field) in plain.fields().iter().enumerate() {
            let [sent, came] = [&rows, &back[0]].map(|rows| {
                cast(rows.column(position), field.data_type()).expect("texts are texts")
            });
            prop_assert_eq!(&sent, &came);
        }
    }

    #[test]
    fn a_slice_travels_without_the_rest(rows in batches(20..40), start in 0usize..20) {
        let part = rows.slice(start, 3.min(rows.num_rows() - start));
        let encoded = encode(&part)?;
        prop_assert_eq!(decode(&encoded.payload, encoded.decoded_bytes)?, [part]);
    }

    #[test]
    fn damaged_payloads_never_panic(rows in batches(0..20), at: Index, bit in 0u8..8, cut: bool) {
        let encoded = encode(&rows)?;
        let mut payload = encoded.payload.to_vec();
        let at = at.index(payload.len());
        if cut {
            payload.truncate(at);
            prop_assert!(decode(&payload, encoded.decoded_bytes).is_err());
        } else {
            payload[at] ^= 1 << bit;
            let _ = decode(&payload, encoded.decoded_bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Damage under the compression, which no checksum hides from Arrow.
    #[test]
    fn damaged_streams_never_panic(
        rows in batches(0..4),
        damage in proptest::collection::vec((any::<Index>(), any::<u8>()), 1..4),
        cut: Option<Index>,
        dictionaries: bool,
    ) {
        let rows = if dictionaries { with_dictionaries(&rows) } else { rows };
        let mut stream = stream_of(&rows);
        for (at, byte) in damage {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        if let Some(cut) = cut {
            stream.truncate(cut.index(stream.len()));
        }
        if let Ok(back) = decode_stream(&stream) {
            // What passes is sound: Arrow would panic here on offsets or texts that are not.
            let rows: usize = back.iter().map(RecordBatch::num_rows).sum();
            prop_assert!(rows <= ROWS_MAX);
            let _ = format!("{back:?}");
        }
    }
}

#[test]
fn every_byte_of_a_stream_may_be_anything() {
    let numbers = arrow::array::Decimal128Array::from(vec![Some(7), None, Some(-1)]);
    let flags = arrow::array::BooleanArray::from(vec![Some(true), None, Some(false)]);
    let columns: [(&str, ArrayRef); 2] = [("n", Arc::new(numbers)), ("f", Arc::new(flags))];
    let texts = stream_of(&with_dictionaries(&small()));
    for stream in [stream_of(&small()), stream_of(&batch(columns.into_iter())), texts] {
        every_byte_may_be_anything(&stream);
    }
}

#[test]
fn batches_of_one_payload_may_share_a_dictionary() {
    let rows = with_dictionaries(&small());
    let halves = [rows.slice(0, 1), rows.slice(1, 2)];
    let mut writer = StreamWriter::try_new(Vec::new(), rows.schema_ref()).expect("it encodes");
    halves.iter().for_each(|half| writer.write(half).expect("it encodes"));
    let stream = writer.into_inner().expect("it encodes");
    let dictionaries = stream.windows(6).filter(|bytes| *bytes == "Größ".as_bytes()).count();
    assert_eq!(dictionaries, 1);
    assert_eq!(decode_stream(&stream).expect("it is whole"), halves);
}

#[test]
fn dictionaries_that_no_sender_makes_are_refused() {
    let texts = StringArray::from(vec![Some("a"), None]);
    let keys = arrow::array::UInt16Array::from(vec![0, 1]);
    let nulls = arrow::array::DictionaryArray::new(keys, Arc::new(texts));
    let columns: [(&str, ArrayRef); 1] = [("text", Arc::new(nulls))];
    let stream = stream_of(&batch(columns.into_iter()));
    assert!(refusal(decode_stream(&stream)).contains("an entry that is null"));
    let wide = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let wide = cast(&StringArray::from(vec!["a"]), &wide).expect("it is one text");
    let stream = stream_of(&batch([("text", wide)].into_iter()));
    assert!(refusal(decode_stream(&stream)).contains("a type that no table has"));
}

fn every_byte_may_be_anything(stream: &[u8]) {
    for at in 0..stream.len() {
        for byte in [0, 1, 2, 4, 8, 0x7f, 0x80, 0xff] {
            let mut damaged = stream.to_vec();
            damaged[at] = byte;
            if let Ok(back) = ipc::read(damaged.into(), ROWS_MAX) {
                let _ = format!("{back:?}");
            }
        }
        assert!(ipc::read(stream[..at].to_vec().into(), ROWS_MAX).is_err());
    }
}

#[test]
fn sizes_bind() {
    let encoded = encode(&small()).expect("it encodes");
    let (payload, bytes) = (&encoded.payload, encoded.decoded_bytes);
    for other in [0, bytes - 1, bytes + 1] {
        assert!(refusal(decode(payload, other)).contains("cannot decompress rows"));
    }
    let what = refusal(decode(payload, u32::MAX));
    assert_eq!(what, "a payload of 4294967295 bytes is larger than 268435456");
    let bomb = codec::compress(&vec![0; 32 << 20]).expect("it compresses");
    assert!(refusal(decode(&bomb, 1000)).contains("cannot decompress rows"));
    let mut longer = stream_of(&small());
    longer.push(0);
    assert!(refusal(decode_stream(&longer)).ends_with("1 bytes follow the end"));
}

#[test]
fn rows_are_bounded() {
    let many = batch([("bigint", new_null_array(&DataType::Int64, ROWS_MAX + 1))].into_iter());
    let error = encode(&many).expect_err("they are too many");
    assert_eq!(error.to_string(), "a batch of 16777217 rows is larger than 16777216");
    let stream = stream_of(&small());
    assert!(ipc::read(stream.clone().into(), 3).is_ok());
    assert_eq!(ipc::read(stream.into(), 2), Err("3 rows are out of range".to_owned()));
}

#[test]
fn several_batches_of_one_schema_are_a_payload() {
    let mut writer = StreamWriter::try_new(Vec::new(), small().schema_ref()).expect("it opens");
    writer.write(&small()).expect("it writes");
    writer.write(&small().slice(1, 2)).expect("it writes");
    let stream = writer.into_inner().expect("it ends");
    let back = decode_stream(&stream).expect("it decodes");
    assert_eq!(back, [small(), small().slice(1, 2)]);
}

#[test]
fn compressed_bodies_and_foreign_types_are_refused() {
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::ZSTD));
    if let Ok(options) = options {
        let writer = StreamWriter::try_new_with_options(Vec::new(), small().schema_ref(), options);
        let mut writer = writer.expect("it opens");
        // Without the codec compiled in, the writer itself refuses; so much the better.
        if writer.write(&small()).is_ok() {
            let stream = writer.into_inner().expect("it ends");
            assert!(refusal(decode_stream(&stream)).ends_with("is compressed"));
        }
    }
    let unsigned: ArrayRef = Arc::new(UInt64Array::from(vec![1]));
    let views: ArrayRef = Arc::new(arrow::array::StringViewArray::from(vec!["a"]));
    let keys = arrow::array::Int32Array::from(vec![0]);
    let values: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
    let dictionary: ArrayRef =
        Arc::new(arrow::array::DictionaryArray::new(keys, Arc::clone(&values)));
    let item = Arc::new(Field::new("item", DataType::Utf8, true));
    let list = arrow::array::ListArray::new(
        item,
        arrow::buffer::OffsetBuffer::from_lengths([1]),
        values,
        None,
    );
    for column in [unsigned, views, dictionary, Arc::new(list)] {
        let rows = batch([("odd", column)].into_iter());
        let error = encode(&rows).expect_err("no table has the type");
        assert!(
            error.to_string().starts_with("column \"odd\": rows cannot have the type"),
            "{error}"
        );
        let what = refusal(decode_stream(&stream_of(&rows)));
        assert_eq!(what, "cannot decode rows: column \"odd\" has a type that no table has");
    }
}

#[test]
fn rows_without_columns_are_counted() {
    let none = small().project(&[]).expect("it projects");
    let encoded = encode(&none).expect("it encodes");
    let back = decode(&encoded.payload, encoded.decoded_bytes).expect("it decodes");
    assert_eq!(back[0].num_rows(), 3);
    let schema = Arc::new(Schema::empty());
    assert_eq!(back[0].schema(), schema);
}

#[test]
fn a_huge_string_travels() {
    let huge = "x".repeat(20 << 20);
    let column: ArrayRef = Arc::new(StringArray::from(vec![huge.as_str()]));
    let rows = batch([("text", column)].into_iter());
    let encoded = encode(&rows).expect("it encodes");
    assert!(encoded.payload.len() < 1 << 20);
    let back = decode(&encoded.payload, encoded.decoded_bytes).expect("it decodes");
    assert_eq!(back, [rows]);
}
