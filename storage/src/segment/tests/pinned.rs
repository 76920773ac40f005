//! The bytes of the format, frozen.

use super::{
    super::frame::{self, Address},
    *,
};
use crate::codec;

const WHAT_TO_DO: &str = "the bytes of a segment changed, and segments on disk no longer read as \
    they were written: undo the change, or raise VERSION in segment/frame.rs, keep reading the \
    version before, and pin the new bytes beside the old ones";

const WRITTEN_IN_ANOTHER_WAY: &str = "the same rows are now written as other bytes; those on disk \
    still read: if that was meant, keep reading the old bytes with `pin_reading` and pin the new";

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().as_chunks::<2>().0.iter();
    let byte = |digits: &[u8; 2]| {
        let text = std::str::from_utf8(digits).expect("they are digits");
        u8::from_str_radix(text, 16).expect("they are digits")
    };
    digits.map(byte).collect()
}

/// A block of the column in its frame gives these bytes, and these bytes give the column.
fn pin(array: ArrayRef, hex: &str) {
    pin_reading(&array, hex);
    let (shape, body) = codec::encode(&array).expect("it encodes");
    let bytes = frame::wrap(Address::block(KEY, 1, 2), &shape, &body);
    assert_eq!(to_hex(&bytes), hex, "{}: {WRITTEN_IN_ANOTHER_WAY}", array.data_type());
}

/// These bytes give the column. For squeezed blocks, which zstd may squeeze in other ways some day.
fn pin_reading(array: &ArrayRef, hex: &str) {
    let bytes = from_hex(hex);
    let data_type = array.data_type();
    let (shape, stored) = frame::unwrap(Address::block(KEY, 1, 2), &bytes).expect(WHAT_TO_DO);
    let back = codec::decode(data_type, &shape, stored).expect(WHAT_TO_DO);
    assert_eq!(&back, array, "{data_type}: {WHAT_TO_DO}");
}

/// Three rows, one of them null, of every type of number.
#[test]
fn every_number_has_its_bytes() {
    use arrow::array::*;
    let floats = [Some(1.25), None, Some(f64::NAN)];
    let numeric = Decimal128Array::from(vec![Some(12345), None, Some(-1)]);
    let wide = Decimal128Array::from(vec![Some(10i128.pow(30)), None, Some(-1)]);
    let small: Float32Array = floats.iter().map(|value| value.map(|value| value as f32)).collect();
    pin(
        Arc::new(Int16Array::from(vec![Some(1), None, Some(i16::MIN)])),
        "\
         4854736701000100303132333435363738396162636465660700000000000000010000000200\
         000003000000010000000a00000000000000050200020202ff0000ffa0d59105a4621558",
    );
    pin(
        Arc::new(Int32Array::from(vec![Some(1), None, Some(i32::MIN)])),
        "\
         4854736701000100303132333435363738396162636465660700000000000000010000000200\
         000003000000010000001000000000000000050200040202ff0000ff0000ff0000ff68526670\
         0c901841",
    );
    pin(
        Arc::new(Int64Array::from(vec![Some(1), None, Some(i64::MIN)])),
        "\
         4854736701000101303132333435363738396162636465660700000000000000010000000200\
         000003000000010000001c0000000000000028b52ffd201c7d000048050200080202ff000001\
         0026ee08032ccf21e815f2ad",
    );
    pin(
        Arc::new(small),
        "\
         4854736701000200303132333435363738396162636465660700000000000000010000000200\
         0000030000000100000014000000000000000502010002000000c07f00007d00000000000000\
         075e8eb5d9fbb2d0",
    );
    pin(
        Arc::new(Float64Array::from(floats.to_vec())),
        "\
         4854736701000200303132333435363738396162636465660700000000000000010000000200\
         000003000000010000001800000000000000050201000200000000000000f87f00007d000000\
         00000000fc8c01dae7c0d4ea",
    );
    pin(
        Arc::new(numeric.with_precision_and_scale(12, 3).expect("it is in range")),
        "\
         4854736701000100303132333435363738396162636465660700000000000000010000000200\
         000003000000010000000a000000000000000502000272720160600035a0d085c12d41a1",
    );
    pin(
        Arc::new(wide.with_precision_and_scale(38, 10).expect("it is in range")),
        "\
         4854736701000700303132333435363738396162636465660700000000000000010000000200\
         000003000000010000002e0000000000000005020005a0a0013939005959003e3e0019190002\
         0008000001000000000000808000d4d400dbdb00e9e9008c8c002e010b1f4b7f270f",
    );
}

/// As before, of all other types.
#[test]
fn every_other_type_has_its_bytes() {
    use arrow::array::*;
    let texts = [Some("Seattle"), None, Some("")];
    let instants =
        || TimestampMicrosecondArray::from(vec![Some(1_356_998_400_000_000), None, Some(0)]);
    let bools = BooleanArray::from(vec![Some(true), None, Some(false)]);
    pin(
        Arc::new(bools),
        "\
         4854736701000600303132333435363738396162636465660700000000000000010000000200\
         00000300000001000000020000000000000005013c20275cdd5bb9dd",
    );
    pin(
        Arc::new(StringArray::from(texts.to_vec())),
        "\
         4854736701000400303132333435363738396162636465660700000000000000010000000200\
         000003000000010000001e000000070000000501000000000000000000030007000000000000\
         00000053656174746c654d75ab1503349e8f",
    );
    pin(
        Arc::new(BinaryArray::from(texts.map(|text| text.map(str::as_bytes)).to_vec())),
        "\
         4854736701000400303132333435363738396162636465660700000000000000010000000200\
         000003000000010000001e000000070000000501000000000000000000030007000000000000\
         00000053656174746c654d75ab1503349e8f",
    );
    pin(
        Arc::new(instants()),
        "\
         4854736701000100303132333435363738396162636465660700000000000000010000000200\
         000003000000010000001900000000000000050200070000008080002f2f009f9f005d5d00a4\
         a40009090001da6c2b771351c1",
    );
    pin(
        Arc::new(instants().with_timezone("UTC")),
        "\
         4854736701000100303132333435363738396162636465660700000000000000010000000200\
         000003000000010000001900000000000000050200070000008080002f2f009f9f005d5d00a4\
         a40009090001da6c2b771351c1",
    );
    pin(
        Arc::new(Date32Array::from(vec![Some(15_706), None, Some(-1)])),
        "\
         4854736701000100303132333435363738396162636465660700000000000000010000000200\
         000003000000010000000a0000000000000005020002b4b4017a7a00fdd72549a4dbcf7e",
    );
    pin(
        new_null_array(&arrow::datatypes::DataType::Int32, 3),
        "\
         4854736701000000303132333435363738396162636465660700000000000000010000000200\
         000003000000030000000000000000000000d73c58cb892c5bbb",
    );
}

/// Encodings that need more rows to be worth it.
#[test]
fn every_encoding_has_its_bytes() {
    use arrow::array::*;
    let rows = 0..40i64;
    let regular = rows.clone().map(|row| 1_356_998_400_000_000 + 3_600_000_000 * row);
    let walk = rows.clone().map(|row| row * row % 7 + row);
    let jumps = rows.clone().map(|row| if row % 8 == 0 { row << 40 } else { row % 2 });
    let squares = rows.clone().map(|row| row * row * row);
    let cents = rows.clone().map(|row| (row * row % 100) as f64 / 100.0);
    let roots = (0..4).map(|row| f64::from(row + 2).sqrt());
    let cities = rows.map(|row| Some(if row < 20 { "New York" } else { "Seattle" }));
    pin(
        Arc::new(TimestampMicrosecondArray::from_iter_values(regular)),
        "\
         4854736701000100303132333435363738396162636465660700000000000000010000000200\
         0000280000000000000012000000000000000001001c04f92dd2040000a493d600000000e556\
         a028d5bf67f3",
    );
    let walk: ArrayRef = Arc::new(Int64Array::from_iter_values(walk));
    pin_reading(
        &walk,
        "\
         4854736701000101303132333435363738396162636465660700000000000000010000000200\
         00002800000000000000330000000000000028b52ffd2033ad0000680201feff010404080102\
         06030002002af8608008bce6a75d36bae353",
    );
    pin(
        Arc::new(Int64Array::from_iter_values(squares)),
        "\
         4854736701000100303132333435363738396162636465660700000000000000010000000200\
         000028000000000000004c0000000000000001020500000000000000f5ffffffffffffff0600\
         0000000000000800000000060c12181e242a30363c42484e545a60666c72787e848a90969ca2\
         a8aeb4bac0c6ccd2d8de0000000000000000e548260ed61cd98f",
    );
    pin(
        Arc::new(Float64Array::from_iter_values(cents)),
        "\
         4854736701000200303132333435363738396162636465660700000000000000010000000200\
         000028000000000000002e00000000000000020000020001000208122032486280a2002a588a\
         c03270b2307a0052a83a9832983aa852007a30b27032c08a582a8cf58523301bc155",
    );
    pin(
        Arc::new(Float64Array::from_iter_values(roots)),
        "\
         4854736701000300303132333435363738396162636465660700000000000000010000000200\
         0000040000000000000023000000000000000200089a540050779900e9feb0002fccd000373c\
         f500ef416c00c6edf700037f7f808036eb27ec1ec6eadb",
    );
    pin(
        Arc::new(StringArray::from_iter(cities)),
        "\
         4854736701000500303132333435363738396162636465660700000000000000010000000200\
         000028000000000000003e0000002c0100000200000000010900000000000000ffffffffffff\
         ffff4e657720596f726b53656174746c650100000000000000000001000000f0ffff00000000\
         0000000037f0a1c4a9cb15f5",
    );
    let jumps: ArrayRef = Arc::new(Int64Array::from_iter_values(jumps));
    pin_reading(
        &jumps,
        "\
         4854736701000101303132333435363738396162636465660700000000000000010000000200\
         00002800000000000000f30000000000000028b52ffd20f31501009802000600021000200030\
         004000000000000000050060603030189004a8a0d26901593179b7b5b01095",
    );
}

#[test]
fn the_header_has_its_bytes() {
    let rows = weather(3);
    let encoded = encode(KEY, &rows, &[1, 2, 3]).expect("it encodes");
    let hex = "\
         4854736701000001303132333435363738396162636465660700000000000000ffffffffffff\
         ffff0000000000000000ed0000000000000028b52ffd20edfd040092c8202a9045e9bf7e11f8\
         b728c9440d070802b645da8010b237342c6d9b661960911844350c34cbbbfbefbd650a77bbf6\
         cedadc6ddbef9d45f913865a6bad96f5f5c662fe0650d10464aa6aaf903f3fdd9019022669e4\
         384c78f1d8e5cf2ecbf68cf2634e900b309d1a5296263761c0337663896a0447625396284961\
         f741516c08899ed7020900b8ccc7528a6766919a39282e306abe4e210c350bae4d2784aec83d\
         759da87d";
    // zstd may squeeze in other ways some day; what it squeezes may not change.
    let body = |header: &[u8]| {
        let (shape, body) = frame::unwrap(Address::header(KEY), header).expect(WHAT_TO_DO);
        codec::decompress(body, shape.body_bytes as usize).expect(WHAT_TO_DO)
    };
    assert_eq!(to_hex(&body(&encoded.header)), to_hex(&body(&from_hex(hex))), "{WHAT_TO_DO}");
    let segment = Segment::open(KEY, &from_hex(hex)).expect(WHAT_TO_DO);
    assert_eq!(read(&segment, &encoded.extents).expect(WHAT_TO_DO), (rows, vec![1, 2, 3]));
}
