//! The standard set on disk.

use std::time::Instant;

use arrow::{
    array::{RecordBatch, UInt32Array},
    compute::take_record_batch,
};
use hypertide_storage::segment::{
    Effort, EncodeOptions, EncodedSegment, SEGMENT_ROWS_MAX, Segment, SegmentKey, encode_with,
};

use crate::cpu::{Rows, STANDARD_ROWS, VALUES};

/// Rows of a statement, which share a commit number.
const BATCH_ROWS: usize = 10_000;
/// Rows that a host has in a chunk of twelve hours.
const CHUNK_STEPS: usize = 4320;

/// Rows in the order of host and time, with their commit numbers.
pub fn by_host(rows: &RecordBatch, hosts: usize) -> (RecordBatch, Vec<u64>) {
    let count = rows.num_rows();
    let order: Vec<u32> =
        (0..hosts).flat_map(|host| (host..count).step_by(hosts)).map(|row| row as u32).collect();
    let csns = order.iter().map(|row| u64::from(*row) / BATCH_ROWS as u64 + 1).collect();
    (take_record_batch(rows, &UInt32Array::from(order)).unwrap(), csns)
}

pub fn encode(rows: &RecordBatch, csns: &[u64], effort: Effort) -> Vec<EncodedSegment> {
    let keys = ["hostname".to_owned()];
    let mut start = 0;
    let mut encoded = Vec::new();
    for csns in csns.chunks(SEGMENT_ROWS_MAX) {
        let key = SegmentKey { file: [7; 16], segment: encoded.len() as u64 };
        let options = EncodeOptions { effort, keys: &keys };
        encoded.push(encode_with(key, &rows.slice(start, csns.len()), csns, options).unwrap());
        start += csns.len();
    }
    encoded
}

pub fn print() {
    for hosts in [100usize, 4000] {
        let mut rows = Rows::new(hosts, 1);
        let mut chunks = Vec::new();
        let mut left = STANDARD_ROWS;
        while left > 0 {
            let count = left.min(hosts * CHUNK_STEPS);
            chunks.push(by_host(&rows.batch(count), hosts));
            left -= count;
        }
        for effort in [Effort::Fast, Effort::Strong] {
            let start = Instant::now();
            let encoded: Vec<EncodedSegment> =
                chunks.iter().flat_map(|(rows, csns)| encode(rows, csns, effort)).collect();
            let seconds = start.elapsed().as_secs_f64();
            let headers: usize = encoded.iter().map(|segment| segment.header.len()).sum();
            let extents: usize =
                encoded.iter().flat_map(|segment| &segment.extents).map(Vec::len).sum();
            println!(
                "{STANDARD_ROWS} rows of {hosts} hosts, {} chunks, {effort:?}: {:.2} MB, of which \
                 headers {:.2} MB; encoded at {:.1} M values/s",
                chunks.len(),
                (headers + extents) as f64 / 1e6,
                headers as f64 / 1e6,
                (STANDARD_ROWS * VALUES) as f64 / seconds / 1e6,
            );
            print_columns(&encoded);
        }
    }
}

/// Bytes of each column.
fn print_columns(encoded: &[EncodedSegment]) {
    let open = |(number, encoded): (usize, &EncodedSegment)| {
        let key = SegmentKey { file: [7; 16], segment: number as u64 % 3 };
        Segment::open(key, &encoded.header).ok()
    };
    let segments: Vec<Segment> = encoded.iter().enumerate().filter_map(open).collect();
    let Some(first) = segments.first() else { return };
    for (column, field) in first.schema().fields().iter().enumerate() {
        let of = |segment: &Segment| -> usize {
            (0..segment.block_count()).map(|b| segment.place(b, column).unwrap().len).sum()
        };
        let bytes: usize = segments.iter().map(of).sum();
        println!("    {:<20} {:>9}", field.name(), bytes);
    }
    let csns = |segment: &Segment| -> usize {
        (0..segment.block_count()).map(|block| segment.csn_place(block).unwrap().len).sum()
    };
    println!("    {:<20} {:>9}", "commit numbers", segments.iter().map(csns).sum::<usize>());
}
