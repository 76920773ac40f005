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
    let (shape, body) = codec::encode(&array, Effort::Fast).expect("it encodes");
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
         4854736702000100303132333435363738396162636465660700000000000000010000000200\
         000003000000010000001b000000000000000501000080ffffffffffff100001800180000000\
         00000000000000233cad366bf005f9",
    );
    pin(
        Arc::new(Int32Array::from(vec![Some(1), None, Some(i32::MIN)])),
        "\
         4854736702000100303132333435363738396162636465660700000000000000010000000200\
         00000300000001000000210000000000000005010000000080ffffffff200001000080010000\
         80000000000000000000000000754167ad81bdc93b",
    );
    pin(
        Arc::new(Int64Array::from(vec![Some(1), None, Some(i64::MIN)])),
        "\
         4854736702000101303132333435363738396162636465660700000000000000010000000200\
         000003000000010000002d0000000000000028b52ffd202ddd00006805010080400080000000\
         0000000500200018b742d84b76197003b6073679e45b9995",
    );
    pin(
        Arc::new(small),
        "\
         4854736702000200303132333435363738396162636465660700000000000000010000000200\
         0000030000000100000014000000000000000502010002000000c07f00007d00000000000000\
         efbd81f8ca5c8099",
    );
    pin(
        Arc::new(Float64Array::from(floats.to_vec())),
        "\
         4854736702000200303132333435363738396162636465660700000000000000010000000200\
         000003000000010000001800000000000000050201000200000000000000f87f00007d000000\
         000000003c4862ab7df55052",
    );
    pin(
        Arc::new(numeric.with_precision_and_scale(12, 3).expect("it is in range")),
        "\
         4854736702000100303132333435363738396162636465660700000000000000010000000200\
         000003000000010000001b00000000000000050100ffffffffffffffff0e003ab00e0c000000\
         00000000000000848fdc02c39a3608",
    );
    pin(
        Arc::new(wide.with_precision_and_scale(38, 10).expect("it is in range")),
        "\
         4854736702000701303132333435363738396162636465660700000000000000010000000200\
         000003000000010000004f0000000000000028b52ffd204f9d01004402050100ff2400d19c2c\
         9f1ccdc9f2c900400001000040eaed744600000000000000000000050060801582456d00f094\
         012226b26582a4cbda89",
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
         4854736702000600303132333435363738396162636465660700000000000000010000000200\
         00000300000001000000020000000000000005017d23b0adee1c8d4a",
    );
    pin(
        Arc::new(StringArray::from(texts.to_vec())),
        "\
         4854736702000400303132333435363738396162636465660700000000000000010000000200\
         000003000000010000001e000000070000000501000000000000000000030007000000000000\
         00000053656174746c659f9ac9f14b84599f",
    );
    pin(
        Arc::new(BinaryArray::from(texts.map(|text| text.map(str::as_bytes)).to_vec())),
        "\
         4854736702000400303132333435363738396162636465660700000000000000010000000200\
         000003000000010000001e000000070000000501000000000000000000030007000000000000\
         00000053656174746c659f9ac9f14b84599f",
    );
    pin(
        Arc::new(instants()),
        "\
         4854736702000100303132333435363738396162636465660700000000000000010000000200\
         0000030000000100000029000000000000000501000000000000000000330000c097cf2ed204\
         00be7c769126000000000000000000000000000000a0e1d03d8a3de5eb",
    );
    pin(
        Arc::new(instants().with_timezone("UTC")),
        "\
         4854736702000100303132333435363738396162636465660700000000000000010000000200\
         0000030000000100000029000000000000000501000000000000000000330000c097cf2ed204\
         00be7c769126000000000000000000000000000000a0e1d03d8a3de5eb",
    );
    pin(
        Arc::new(Date32Array::from(vec![Some(15_706), None, Some(-1)])),
        "\
         4854736702000100303132333435363738396162636465660700000000000000010000000200\
         000003000000010000001b00000000000000050100ffffffffffffffff0e005bfd560f000000\
         0000000000000022e9ae63afc5b4cd",
    );
    pin(
        new_null_array(&arrow::datatypes::DataType::Int32, 3),
        "\
         4854736702000000303132333435363738396162636465660700000000000000010000000200\
         0000030000000300000000000000000000001bfaf5179e2d5126",
    );
}

/// Encodings that need more rows to be worth it.
#[test]
fn every_encoding_has_its_bytes() {
    use arrow::array::*;
    let rows = 0..40i64;
    let regular = rows.clone().map(|row| 1_356_998_400_000_000 + 3_600_000_000 * row);
    let runs = rows.clone().map(|row| row / 9 * 7919 % 13);
    let squares = rows.clone().map(|row| row * row * row);
    let cents = rows.clone().map(|row| (row * row % 100) as f64 / 100.0);
    let roots = (0..4).map(|row| f64::from(row + 2).sqrt());
    let cities = rows.map(|row| Some(if row < 20 { "New York" } else { "Seattle" }));
    pin(
        Arc::new(TimestampMicrosecondArray::from_iter_values(regular)),
        "\
         4854736702000100303132333435363738396162636465660700000000000000010000000200\
         0000280000000000000012000000000000000001001c04f92dd2040000a493d6000000005abf\
         0b81978a8b0e",
    );
    pin(
        Arc::new(Int64Array::from_iter_values(runs)),
        "\
         4854736702000100303132333435363738396162636465660700000000000000010000000200\
         0000280000000000000022000000000000000201000000000000000004010014000000004000\
         000000040000004000000000040042380287a43d90e3",
    );
    pin(
        Arc::new(Int64Array::from_iter_values(squares)),
        "\
         4854736702000100303132333435363738396162636465660700000000000000010000000200\
         000028000000000000004c0000000000000001020500000000000000f5ffffffffffffff0600\
         0000000000000800000000060c12181e242a30363c42484e545a60666c72787e848a90969ca2\
         a8aeb4bac0c6ccd2d8de0000000000000000bc68d95c93d7d41b",
    );
    pin(
        Arc::new(Float64Array::from_iter_values(cents)),
        "\
         4854736702000200303132333435363738396162636465660700000000000000010000000200\
         000028000000000000003a0000000000000002000001000000000000000000070080002101c9\
         9062c028a0c22a8233b82ca60748513bcc0cb3434d017a982c2e032eb22a0000000000000000\
         79aebd9d01a34cea",
    );
    pin(
        Arc::new(Float64Array::from_iter_values(roots)),
        "\
         4854736702000300303132333435363738396162636465660700000000000000010000000200\
         000004000000000000003600000000000000020008cd3b7f669ea0f63f07000400dd33db0004\
         0010c4b8000400d98018000400819935000400dc61d9000400155f4200040005090bf7f2f92d\
         df696afb",
    );
    pin(
        Arc::new(StringArray::from_iter(cities)),
        "\
         4854736702000500303132333435363738396162636465660700000000000000010000000200\
         00002800000000000000470000002c0100000200000000010900000000000000ffffffffffff\
         ffff4e657720596f726b53656174746c650300020000000001ffffffffffffffff0100000000\
         000000000013000000000000004d43a9667deb3507",
    );
}

/// Encodings that hold what zstd or pco made, which may be other bytes some day.
#[test]
fn bytes_of_other_compressors_are_read() {
    use arrow::array::*;
    // About normal: the sum of three dice.
    let dice =
        |row: i64| (0..3).map(|die| (row * 7919 + die * 104_729) * 31 % 101 % 5).sum::<i64>();
    let walk = (0..300).scan(0, |at, row| {
        *at += dice(row) - 6;
        Some(*at)
    });
    let jumps = (0..40i64).map(|row| if row % 8 == 0 { row << 40 } else { row % 2 });
    let islands = (0..300i64).map(|row| dice(row) % 4 * 1_000_000_007 + dice(row * 3) % 3);
    pin_reading(
        &(Arc::new(Int64Array::from_iter_values(walk)) as ArrayRef),
        "\
         4854736702000100303132333435363738396162636465660700000000000000010000000200\
         00002c01000000000000ae000000000000000100eaffffffffffffff0404040a0200ea8dddd8\
         aeeccaceda9bcdc76bcb986aa8686884679a945aba978bca8aacc86bbbb68cba979ba7689a84\
         27875426645357734678722787644886465773165650aecba8aca8689ac86bcbc79ddbcaceea\
         acded88dedca9ddb9bacc86b9a946a876458975789a64999946aa8868a965789832787542664\
         24244023565016765347a8688aa64999946a9875798546786205653204423135000000000000\
         000065ab923a9402535b",
    );
    pin_reading(
        &(Arc::new(Int64Array::from_iter_values(jumps)) as ArrayRef),
        "\
         4854736702000100303132333435363738396162636465660700000000000000010000000200\
         000028000000000000004a0000000000000004004770636f210300050a040104270000002500\
         e00000000000000080010100000000800000d80237a504b8c954010000000040150000000000\
         5501000000006015000000000057010016eef14360aa118c",
    );
    pin_reading(
        &(Arc::new(Int64Array::from_iter_values(islands)) as ArrayRef),
        "\
         4854736702000101303132333435363738396162636465660700000000000000010000000200\
         00002c01000000000000e30200000000000028b52ffd60e301a5110054200200040008017628\
         b52ffd00006d03005406f198f778f721102192128f7889766006122122f2889f6996672f6221\
         2210f198e778e771002182129ff8796650f602161202188f798f771f02112229f18897680766\
         201122228ff8996679f622162202118f798e771e07102228f1899f6706652f602121800100a5\
         6814a2015c9d0200e40300000110010001000000001000111111001001110010000001100100\
         11110100010010000000011011111011001011000800d1f000f72ac106dc03860d8a0470600b\
         c001545d020052861014c0251dc061fbdfb523deffff2ed7bd2a6ed3c2a57c426a25cdf849b1\
         7c065e8b02fe52eb40337ea4588e19784551c085855847234f480d25cdbfa2a85c585e471354\
         8007fc6fc67d55a1b3bb55d5150a184801fd40866bd178ca749d06e6a686fe325c51349e64ba\
         0e1a98c2d4d08925e058241fc8146bd14f616a9d58e6581453550200140350aa500a50000500\
         a000a50aaa00055000000050aaa50aa00005000000055a0aa50aa50a50aaa0000a00a50a0a00\
         68b800ef941003bc039101117017680f1e33c42a0ff83f684786ffff8f5cf3ea5af413295355\
         020052461013c0251dc06dfebf0be457558673b6bf6bd0600a06fcbf5219afca58fcb3faecc2\
         ac147b428addd0784aad9b06666b86fd52ac30349ea4d60d1a9845cdb083856039244f4809dd\
         d0cfa2a63b586639140100a56814a211005810c00d2c39c02004ce0a824509720a0d8670c890\
         851d300eb9593e0ac310082bd421799aef3bc6260359bb7e5d78f81ace94",
    );
}

/// As before, of floats.
#[test]
fn floats_of_other_compressors_are_read() {
    let steps = (0..64).map(|row| f64::from(row % 8 + 2).sqrt() * 1e-7);
    let plain = (0..64).map(|row| f64::from(row + 2).sqrt());
    pin_reading(
        &(Arc::new(Float64Array::from_iter_values(steps)) as ArrayRef),
        "\
         4854736702000301303132333435363738396162636465660700000000000000010000000200\
         00004000000000000000bb0000000000000028b52ffd20bb35030044050200087454a06733fb\
         823e07011728b52ffd0000750000400092d44eb78d00020100dd59b88f5ac8e2df002ff31ce2\
         b1d6006d9833c99353008c14bfdefd2a00c244dc0774c6002604070b0d0e10110100dd59b806\
         00c033c033c033c033c033e5633e0175ecd8c7945becb0",
    );
    pin_reading(
        &(Arc::new(Float64Array::from_iter_values(plain)) as ArrayRef),
        "\
         4854736702000800303132333435363738396162636465660700000000000000010000000200\
         000040000000000000006b0100000000000070636f21030006100401063f000010670400c3e3\
         b1a8f359b6fe8fb65d5e1000000000005ea278484700000000c08ed2803975370000003803cd\
         3b7f669ea0f6bfdd10d981dc15050079a2ce95a833ffffd99e21ee4966feffb357c76a62d103\
         001925cf7c2d02faffb4aaa464582608009cde4fdbebe5c4dea54faef8611e1e000000000000\
         00e29b1d0b024cb4aac218f50680b76e5f1f160048467ccb4a00e0aeadd0f70000ff5b499902\
         00000000000000000cf8b3c3c8732e055652cbe769c99e014635aa9c538747f0063a336b626f\
         747cf272fb500d82a0c70ab69a7d397064fa76510d36a2ea9125f382834a4e61e9461e08a4f0\
         77220f41c761e16cb41f3473c00210ca39c0043f0430533c0000000088d691177d7a5f579d0f\
         9f41ea719b5b816bf9d43433081aecdab0245c88c226d247107ed2c634d902f12e51f97cd813\
         33009b14742a089627833d2c81e96860a720f0a7070000005874f88ac134a9ba00d708548b02\
         00932eaffd82203af1",
    );
}

#[test]
fn the_header_has_its_bytes() {
    let rows = weather(40);
    let csns: Vec<u64> = (1..=40).collect();
    let keys = ["location".to_owned()];
    let options = EncodeOptions { effort: Effort::Fast, keys: &keys };
    let encoded = encode_with(KEY, &rows, &csns, options).expect("it encodes");
    let hex = "\
         4854736702000001303132333435363738396162636465660700000000000000ffffffffffff\
         ffff0000000000000000410500000000000028b52ffd604104cd0b0052cf3030706b321cfc01\
         687bf94328fd57452005595174add5a66bdb8c40b3ffa8fd15fc4f90f13a8c1fee50a0836c23\
         7b4b9902bc81e58de30b073068e19c85bef005068556529169c11be8f3a1d17171b1813e1e23\
         1bd7c5e999217cc224f6d3739b2c2b27fd19f92c9f953dcb36baac65edf66aff889d2c49de79\
         2f87796f720e1496e6e1a0c2594203f04a41e5db0621104e99f2ec8c3288c099e5202a4e4612\
         398bf326cb6d2af704025c45bde6369d97e024a867b94d67828094321aea4d111a8cd40265a8\
         a159942429a894a603e00219aaad0e12c02082a487a15225d14505e555a8f71c34da8e906686\
         70475bba0021f40bd9b41123eb9008e86662b16580bb6fa6079c60afff6db746c55118c40034\
         22aaafc95a05ebbe8b4a7beaa5c9acc9c6d3503962c4f84478262c1b1cc976909d81c49023b9\
         74c66502abc0321cde4bc2cae1ff680d5aea6f9e305619f06229642ea434cd6648a2d40a9288\
         0b96e9fb1b9284f399678f81940cba86d1e8631d4b14474035ce7400f941583cc2";
    // zstd may squeeze in other ways some day; what it squeezes may not change.
    let body = |header: &[u8]| {
        let (shape, body) = frame::unwrap(Address::header(KEY), header).expect(WHAT_TO_DO);
        codec::decompress(body, shape.body_bytes as usize).expect(WHAT_TO_DO)
    };
    assert_eq!(to_hex(&body(&encoded.header)), to_hex(&body(&from_hex(hex))), "{WHAT_TO_DO}");
    let segment = Segment::open(KEY, &from_hex(hex)).expect(WHAT_TO_DO);
    assert_eq!(read(&segment, &encoded.extents).expect(WHAT_TO_DO), (rows, csns));
}
