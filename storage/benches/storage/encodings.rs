//! Each encoding, as a column of a segment: encode and decode.

use std::{hint::black_box, sync::Arc, time::Duration};

use arrow::{
    array::{
        ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray,
        TimestampMicrosecondArray,
    },
    datatypes::{Field, Schema},
};
use criterion::{Criterion, Throughput};
use hypertide_storage::segment::{
    BLOCK_ROWS, Effort, EncodeOptions, EncodedSegment, Segment, SegmentKey, encode_with,
};

use crate::cpu::Random;

const KEY: SegmentKey = SegmentKey { file: [7; 16], segment: 1 };
const ROWS: usize = 16 * BLOCK_ROWS;

fn columns() -> Vec<(&'static str, ArrayRef)> {
    let mut random = Random::new(1);
    let mut walk = |decimals: f64| -> ArrayRef {
        let mut at = 50.0f64;
        let steps = (0..ROWS).map(|_| {
            at = (at + random.normal()).clamp(0.0, 100.0);
            (at * decimals).trunc() / decimals
        });
        Arc::new(Float64Array::from_iter_values(steps))
    };
    let (whole, cents, noise) = (walk(1.0), walk(100.0), walk(1e15));
    let mut random = Random::new(2);
    let jitter: Vec<i64> =
        (0..ROWS as i64).map(|row| row * 10_000_000 + (random.normal() * 1000.0) as i64).collect();
    let regular = (0..ROWS as i64).map(|row| 1_451_606_400_000_000 + row * 10_000_000);
    let counter = jitter.iter().scan(0i64, |all, step| {
        *all += step.rem_euclid(1500);
        Some(*all)
    });
    let states = (0..ROWS).map(|row| (row / 700 % 5) as i64);
    let bits: Vec<u64> = (0..ROWS).map(|_| random.next()).collect();
    let tags = bits.iter().map(|bits| format!("rack {}", bits % 100));
    let ids = bits.iter().map(|bits| format!("{bits:016x}"));
    let flags = bits.iter().map(|bits| Some(bits % 10 == 0));
    vec![
        ("time, regular", Arc::new(TimestampMicrosecondArray::from_iter_values(regular))),
        ("time, jitter", Arc::new(TimestampMicrosecondArray::from(jitter.clone()))),
        ("integer, counter", Arc::new(Int64Array::from_iter_values(counter))),
        ("integer, states", Arc::new(Int64Array::from_iter_values(states))),
        ("float, whole walk", whole),
        ("float, two decimals", cents),
        ("float, noise", noise),
        ("text, 100 tags", Arc::new(StringArray::from_iter_values(tags))),
        ("text, all different", Arc::new(StringArray::from_iter_values(ids))),
        ("boolean", Arc::new(flags.collect::<BooleanArray>())),
    ]
}

fn encode(rows: &RecordBatch, effort: Effort) -> EncodedSegment {
    let options = EncodeOptions { effort, keys: &[] };
    encode_with(KEY, rows, &vec![1; ROWS], options).unwrap()
}

fn decode(segment: &Segment, extents: &[Vec<u8>]) {
    for block in 0..segment.block_count() {
        let place = segment.place(block, 0).unwrap();
        black_box(segment.decode(block, 0, &extents[place.extent]).unwrap());
    }
}

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encodings");
    group.sample_size(10).warm_up_time(Duration::from_millis(300));
    group.measurement_time(Duration::from_secs(1)).throughput(Throughput::Elements(ROWS as u64));
    for (name, array) in columns() {
        let field = Field::new("a", array.data_type().clone(), true);
        let rows = RecordBatch::try_new(Arc::new(Schema::new(vec![field])), vec![array]).unwrap();
        for (effort, how) in [(Effort::Fast, "fast"), (Effort::Strong, "strong")] {
            let encoded = encode(&rows, effort);
            let segment = Segment::open(KEY, &encoded.header).unwrap();
            let bytes: usize =
                (0..segment.block_count()).map(|block| segment.place(block, 0).unwrap().len).sum();
            let bits = bytes as f64 * 8.0 / ROWS as f64;
            let label = format!("{name}, {how}, {bits:.2} bits");
            group.bench_function(format!("encode {label}"), |bencher| {
                bencher.iter(|| encode(&rows, effort));
            });
            group.bench_function(format!("decode {label}"), |bencher| {
                bencher.iter(|| decode(&segment, &encoded.extents));
            });
        }
    }
}
