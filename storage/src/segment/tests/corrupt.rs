//! Bytes that are not what was written: always an error, never other rows, never a panic.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{
    super::frame::{self, Address},
    *,
};
use crate::codec::{self, Shape};

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 += 1;
        (xxh3_64_with_seed(b"dice", self.0) % sides.max(1) as u64) as usize
    }
}

/// Damages bytes in one of the ways that disks do: flipped bits, zeros, a cut, sectors in the wrong place.
fn damage(bytes: &mut Vec<u8>, dice: &mut Dice) {
    let at = dice.roll(bytes.len());
    let end = (at + 1 + dice.roll(64)).min(bytes.len());
    match dice.roll(5) {
        0 => bytes[at] ^= 1 << dice.roll(8),
        1 => bytes[at] = dice.roll(256) as u8,
        2 => bytes[at..end].fill(0),
        3 => bytes.truncate(at),
        _ => {
            let to = dice.roll(bytes.len() - (end - at) + 1);
            let moved = bytes[at..end].to_vec();
            bytes[to..to + moved.len()].copy_from_slice(&moved);
        }
    }
}

/// A small segment with all encodings in it.
fn sample() -> (RecordBatch, Segment, EncodedSegment) {
    let rows = weather(300);
    let noise = (0..300u64).map(|row| f64::from_bits(xxh3_64(&row.to_le_bytes()) >> 2));
    let wide = (0..300).map(|row| (row % 3 != 0).then_some(10i128.pow(30) * row));
    let texts = (0..300).map(|row| Some(format!("{:x}", xxh3_64(&[row as u8]))));
    let columns: [(&str, ArrayRef); 5] = [
        ("noise", Arc::new(Float64Array::from_iter_values(noise))),
        ("wide", Arc::new(arrow::array::Decimal128Array::from_iter(wide))),
        ("texts", Arc::new(StringArray::from_iter(texts))),
        (
            "odd",
            Arc::new(arrow::array::BooleanArray::from_iter((0..300).map(|row| Some(row % 2 == 1)))),
        ),
        ("none", arrow::array::new_null_array(&arrow::datatypes::DataType::Date32, 300)),
    ];
    let names = rows.schema();
    let first = names
        .fields()
        .iter()
        .map(|field| field.name().as_str())
        .zip(rows.columns().iter().cloned());
    let rows = batch(first.chain(columns));
    let (segment, encoded) = round_trip(&rows);
    assert!(encoded.extents.len() == 1 && segment.key_columns().count() == 0);
    (rows, segment, encoded)
}

#[test]
fn a_damaged_header_is_refused() {
    let (_, _, encoded) = sample();
    let mut dice = Dice(0);
    for _ in 0..5000 {
        let mut header = encoded.header.clone();
        damage(&mut header, &mut dice);
        if header != encoded.header {
            assert!(Segment::open(KEY, &header).is_err());
        }
    }
}

#[test]
fn a_damaged_block_is_refused() {
    let (rows, segment, encoded) = sample();
    let columns = rows.num_columns();
    let mut dice = Dice(1 << 32);
    for _ in 0..5000 {
        let mut extent = encoded.extents[0].clone();
        damage(&mut extent, &mut dice);
        for column in 0..=columns {
            let csns = column == columns;
            let place = if csns { segment.csn_place(0) } else { segment.place(0, column) };
            let Place { offset, len, .. } = place.expect("the block is in the directory");
            let whole =
                extent.get(offset..offset + len) == Some(&encoded.extents[0][offset..offset + len]);
            let read = match csns {
                true => segment.decode_csns(0, &extent).map(drop),
                false => segment
                    .decode(0, column, &extent)
                    .map(|back| assert_eq!(&back, rows.column(column))),
            };
            assert_eq!(read.is_ok(), whole, "{read:?}");
        }
    }
}

#[test]
fn damage_names_its_place() {
    let (_, segment, encoded) = sample();
    let mut extent = encoded.extents[0].clone();
    let Place { offset, .. } = segment.place(0, 1).expect("the block is in the directory");
    extent[offset + 70] ^= 1;
    let error = segment.decode(0, 1, &extent).expect_err("it is damaged");
    let place = format!("column \"time\", block 0, extent 0 at offset {offset}");
    assert_eq!(error.to_string(), format!("segment 7, {place}: the checksum does not match"));
    let error = segment.decode_csns(0, &extent[..40]).expect_err("it is cut");
    assert!(error.to_string().contains("commit numbers, block 0, extent 0"), "{error}");
    assert!(error.to_string().ends_with("the extent ends early"), "{error}");
}

#[test]
fn a_block_of_another_place_is_noticed() {
    let rows = weather(2 * BLOCK_ROWS);
    let csns = vec![1; rows.num_rows()];
    let encoded = encode(KEY, &rows, &csns).expect("encodes");
    let segment = Segment::open(KEY, &encoded.header).expect("opens");
    let others = [
        (SegmentKey { segment: 8, ..KEY }, "segment 8 of file 30313233"),
        (SegmentKey { file: *b"another file uid", ..KEY }, "segment 7 of file 616e6f74"),
    ];
    for (key, named) in others {
        let other = encode(key, &rows, &csns).expect("encodes");
        assert_eq!(other.header.len(), encoded.header.len());
        let error = Segment::open(KEY, &other.header).expect_err("it is of another segment");
        assert!(error.to_string().contains(named), "{error}");
        let error = segment.decode(0, 3, &other.extents[0]).expect_err("it is of another segment");
        assert!(matches!(error, SegmentError::Damaged { .. }));
        assert!(error.to_string().contains(named), "{error}");
    }
    // The same column's other block, put where this one should be.
    let (here, there) = (segment.place(0, 3), segment.place(1, 3));
    let (Some(here), Some(there)) = (here, there) else { panic!("both are in the directory") };
    let mut extent = encoded.extents[here.extent].clone();
    let moved = extent[there.offset..there.offset + there.len].to_vec();
    extent[here.offset..here.offset + moved.len()].copy_from_slice(&moved);
    assert!(segment.decode(0, 3, &extent).is_err());
}

#[test]
fn another_version_or_encoding_is_unsupported() {
    let (_, segment, encoded) = sample();
    let reseal = |frame: &mut [u8]| {
        let end = frame.len() - 8;
        let checksum = xxh3_64(&frame[..end]);
        frame[end..].copy_from_slice(&checksum.to_le_bytes());
    };
    let mut header = encoded.header.clone();
    header[4] = 3;
    reseal(&mut header);
    let error = Segment::open(KEY, &header).expect_err("it is newer");
    assert!(matches!(error, SegmentError::Unsupported { .. }));
    assert!(error.to_string().ends_with("the format has version 3, this program reads 2"));
    let Place { offset, len, .. } = segment.place(0, 1).expect("the block is in the directory");
    let mut extent = encoded.extents[0].clone();
    extent[offset + 6] = 200;
    reseal(&mut extent[offset..offset + len]);
    let error = segment.decode(0, 1, &extent).expect_err("it is newer");
    assert!(matches!(error, SegmentError::Unsupported { .. }));
    assert!(error.to_string().ends_with("encoding 200 is not known to this version"), "{error}");
}

/// Damage under a checksum that matches, as no disk makes it: decoders see bytes that may be anything.
#[test]
fn no_bytes_make_a_decoder_panic() {
    let (rows, segment, encoded) = sample();
    let mut dice = Dice(2 << 32);
    for round in 0..4000 {
        let column = round % rows.num_columns();
        let place = segment.place(0, column).expect("the block is in the directory");
        if place.len == 0 {
            continue;
        }
        let frame = &encoded.extents[0][place.offset..place.offset + place.len];
        let (mut shape, stored) =
            frame::unwrap(Address::block(KEY, column, 0), frame).expect("it is whole");
        let mut body = match shape.squeezed {
            true => codec::decompress(stored, shape.body_bytes as usize).expect("it decompresses"),
            false => stored.to_vec(),
        };
        if body.is_empty() {
            continue;
        }
        shape.squeezed = false;
        damage(&mut body, &mut dice);
        shape.body_bytes = body.len() as u32;
        if dice.roll(4) == 0 {
            shape.encoding = dice.roll(10) as u8;
        }
        let data_type = rows.column(column).data_type();
        if let Ok(array) = codec::decode(data_type, &shape, &body) {
            assert_eq!(array.len(), rows.num_rows());
        }
    }
}

#[test]
fn no_bytes_make_a_header_panic() {
    let (_, _, encoded) = sample();
    let body = header_body(KEY, &encoded.header).expect("it is whole");
    let mut dice = Dice(3 << 32);
    for _ in 0..5000 {
        let mut body = body.clone();
        damage(&mut body, &mut dice);
        let header = header_of(KEY, &body);
        if let Ok(segment) = Segment::open(KEY, &header) {
            assert!(read(&segment, &encoded.extents).is_err() || segment.rows() == 300);
        }
    }
}

#[test]
fn no_block_takes_more_than_its_rows_can() {
    let bomb = codec::compress(&vec![0; 32 << 20]).expect("it compresses");
    let int64 = arrow::datatypes::DataType::Int64;
    let utf8 = arrow::datatypes::DataType::Utf8;
    let bomb_bytes = 32 << 20;
    let honest =
        Shape { encoding: 1, squeezed: true, rows: 10, body_bytes: bomb_bytes, ..Shape::default() };
    let error = codec::decode(&int64, &honest, &bomb).expect_err("it is too large");
    assert_eq!(error.to_string(), "the block is larger than a block may be");
    let lying = Shape { body_bytes: 100, ..honest };
    assert!(codec::decode(&int64, &lying, &bomb).is_err());
    let texts = Shape { encoding: 4, value_bytes: u32::MAX, body_bytes: u32::MAX, ..honest };
    assert!(codec::decode(&utf8, &texts, &bomb).is_err());
    // One entry of a mebibyte, and rows that repeat it.
    let entry = "x".repeat(1 << 20);
    let column: ArrayRef = Arc::new(StringArray::from(vec![entry.as_str(); 4]));
    let (shape, stored) = codec::encode(&column, Effort::Fast).expect("it encodes");
    assert_eq!(shape.encoding, 5);
    assert!(codec::decode(&utf8, &shape, &stored).is_ok());
    for value_bytes in [0, 1 << 20, (4 << 20) - 1, (4 << 20) + 1] {
        assert!(codec::decode(&utf8, &Shape { value_bytes, ..shape }, &stored).is_err());
    }
}
