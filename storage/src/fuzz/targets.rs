//! What is fed, and which law each reader keeps.

use std::{path::Path, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, RecordBatch},
    datatypes::{DataType, TimeUnit},
};
use hypertide_proto::{
    ids::{ChunkId, Csn},
    predicate::Predicate,
};
use proptest::{strategy::ValueTree, test_runner::TestRunner};

use super::Target;
use crate::{
    ChunkStore, ScanRequest, StoreConfig, batch,
    codec::{self, Effort, Shape},
    samples,
    segment::{self, EncodeOptions, Segment, SegmentKey},
    tables::{self, PartHeader, PartKey},
};

/// Most rows that a fuzzed block claims: what it takes grows with them.
const ROWS_MAX: u32 = 8192;
const KEY: SegmentKey = SegmentKey { file: *b"a file to fuzz..", segment: 3 };

fn types() -> Vec<DataType> {
    let utc = Some("UTC".into());
    let text = Box::new(DataType::Utf8);
    vec![
        DataType::Int16,
        DataType::Int32,
        DataType::Int64,
        DataType::Float32,
        DataType::Float64,
        DataType::Decimal128(38, 10),
        DataType::Boolean,
        DataType::Utf8,
        DataType::Binary,
        DataType::Timestamp(TimeUnit::Microsecond, utc),
        DataType::Date32,
        DataType::Dictionary(Box::new(DataType::Int32), text),
    ]
}

/// Batches of every type, the same every time.
fn sample_batches() -> Vec<RecordBatch> {
    let mut runner = TestRunner::deterministic();
    let sizes = [1usize, 7, 40, 300].into_iter();
    sizes.map(|rows| sample(&mut runner, rows)).collect()
}

fn sample(runner: &mut TestRunner, rows: usize) -> RecordBatch {
    use proptest::strategy::Strategy;
    let tree = samples::batches(rows..rows + 1).new_tree(runner);
    tree.expect("the strategy gives a batch").current()
}

/// Type, shape and body of a block: nothing of it checked by a checksum, as no disk gives it.
///
/// Law: what decodes is as long as it claims to be, and comes back when it is encoded again.
pub(super) fn blocks() -> Target {
    let mut seeds = Vec::new();
    for (column, array) in sample_batches().iter().flat_map(|batch| batch.columns()).enumerate() {
        for effort in [Effort::Fast, Effort::Strong] {
            let (shape, stored) = codec::encode(array, effort).expect("it encodes");
            let data_type = types().iter().position(|known| known == array.data_type());
            let data_type = data_type.unwrap_or(9) as u8;
            let body = match shape.squeezed && column % 2 == 0 {
                true => codec::decompress(&stored, shape.body_bytes as usize).expect("it is whole"),
                false => stored,
            };
            let squeezed = shape.squeezed && column % 2 == 1;
            let mut seed = vec![data_type, shape.encoding, squeezed.into()];
            for number in [shape.rows, shape.nulls, shape.body_bytes, shape.value_bytes] {
                seed.extend_from_slice(&number.to_le_bytes());
            }
            seed.extend_from_slice(&body);
            seeds.push(seed);
        }
    }
    Target { name: "blocks", seeds, run: Box::new(run_block) }
}

fn run_block(input: &[u8]) -> String {
    let Some((head, body)) = input.split_first_chunk::<19>() else { return "short".into() };
    let number =
        |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let types = types();
    let data_type = &types[usize::from(head[0]) % types.len()];
    let squeezed = head[2] & 1 == 1;
    let shape = Shape {
        encoding: head[1],
        squeezed,
        rows: number(3) % (ROWS_MAX + 1),
        nulls: number(7),
        // As long as it is, mostly, so that the inner checks are reached.
        body_bytes: if squeezed { number(11) % (1 << 20) } else { body.len() as u32 },
        value_bytes: number(15) % (1 << 20),
    };
    match codec::decode(data_type, &shape, body) {
        Ok(array) => {
            assert_eq!(array.len(), shape.rows as usize);
            assert_eq!(array.null_count(), shape.nulls as usize);
            check_again(&array);
            format!("{data_type} {} {squeezed} {}", shape.encoding, shape.nulls > 0)
        }
        // Numbers in messages would make each its own.
        Err(error) => {
            format!("{data_type} {}: {}", shape.encoding.min(9), worded(&error.to_string()))
        }
    }
}

/// What was decoded is sound: it encodes, and comes back.
fn check_again(array: &ArrayRef) {
    if matches!(array.data_type(), DataType::Dictionary(..)) {
        let plain = arrow::compute::cast(array, &DataType::Utf8).expect("a dictionary casts");
        return check_again(&plain);
    }
    let (shape, stored) = codec::encode(array, Effort::Fast).expect("it encodes again");
    let back = codec::decode(array.data_type(), &shape, &stored).expect("it decodes again");
    assert_eq!(back.len(), array.len());
    assert_eq!(back.nulls(), array.nulls().filter(|nulls| nulls.null_count() > 0));
    // Compared by text, in which NaN equals NaN.
    if array.len() < 64 {
        assert_eq!(format!("{back:?}"), format!("{array:?}"));
    }
}

/// The body of a segment's header, under a checksum that fits.
///
/// Law: a header that opens has blocks that decode or are refused.
pub(super) fn headers() -> Target {
    let keys = ["boolean".to_owned(), "text".to_owned()];
    let options = EncodeOptions { effort: Effort::Fast, keys: &keys };
    let encode = |rows: RecordBatch| {
        let csns: Vec<u64> = (0..rows.num_rows() as u64).collect();
        let encoded = segment::encode_with(KEY, &rows, &csns, options).expect("it encodes");
        (segment::header_body(KEY, &encoded.header).expect("it is whole"), encoded.extents)
    };
    let encoded: Vec<(Vec<u8>, Vec<Vec<u8>>)> = sample_batches().into_iter().map(encode).collect();
    let seeds = encoded.iter().map(|(body, _)| body.clone()).collect();
    let extents: Vec<Vec<u8>> = encoded.into_iter().flat_map(|(_, extents)| extents).collect();
    let run = move |input: &[u8]| {
        let segment = match Segment::open(KEY, &segment::header_of(KEY, input)) {
            Ok(segment) => segment,
            Err(error) => return worded(&error.to_string()),
        };
        let mut decoded = 0;
        for block in 0..segment.block_count().min(4) {
            let rows = segment.block_rows(block);
            for column in 0..segment.schema().fields().len().min(32) {
                for extent in &extents {
                    if let Ok(array) = segment.decode(block, column, extent) {
                        assert_eq!(array.len() as u64, rows.end - rows.start);
                        decoded += 1;
                    }
                }
            }
        }
        let _ = (segment.rows_of_series(&Predicate::default()), segment.csn_range());
        format!("opened, some decoded: {}", decoded > 0)
    };
    Target { name: "headers", seeds, run: Box::new(run) }
}

/// The Arrow stream of a payload, under compression that fits.
///
/// Law: what decodes travels again unchanged.
pub(super) fn payloads() -> Target {
    let stream = |rows: &RecordBatch| {
        let encoded = batch::encode(rows).expect("it encodes");
        codec::decompress(&encoded.payload, encoded.decoded_bytes as usize).expect("it is whole")
    };
    let seeds = sample_batches().iter().take(3).map(stream).collect();
    let run = |input: &[u8]| {
        let payload = codec::compress(input).expect("it compresses");
        match batch::decode(&payload, input.len() as u32) {
            Ok(batches) => {
                for rows in &batches {
                    let again = batch::encode(rows).expect("what came may be sent on");
                    let back = batch::decode(&again.payload, again.decoded_bytes);
                    assert_eq!(back.expect("it decodes").len(), 1);
                }
                format!("{} batches", batches.len())
            }
            Err(error) => worded(&error.to_string()),
        }
    };
    Target { name: "payloads", seeds, run: Box::new(run) }
}

/// Keys and values of the journal, and the other rows of redb.
///
/// Law: none panics, and keys that are taken are the bytes that they were read from.
pub(super) fn journal_rows() -> Target {
    let part = PartHeader {
        spec: crate::ChunkSpec {
            chunk: ChunkId(1),
            table: hypertide_proto::ids::TableId(2),
            time_column: Some("time".into()),
            order_columns: vec!["device".into()],
            origin: b"origin".to_vec(),
        },
        epoch: hypertide_proto::ids::Epoch(3),
        rows: 4,
        hash: 5,
        decoded_bytes: 6,
    };
    let body = tables::pack(&part);
    let value = [(body.len() as u32).to_be_bytes().as_slice(), &body, b"payload"].concat();
    let seeds = vec![value, body, vec![0; 36], vec![1; 24]];
    let run = |input: &[u8]| {
        let key = PartKey::from_bytes(input);
        assert!(key.is_none_or(|key| key.to_bytes() == input));
        let txn = tables::txn_from_bytes(input);
        assert!(txn.is_none_or(|txn| tables::txn_bytes(txn) == input));
        let part = tables::split_part(input);
        let framed = tables::unframe(b"key", input).is_some();
        let format = tables::format_of(input);
        format!(
            "{} {} {} {framed} {}",
            key.is_some(),
            txn.is_some(),
            part.is_some(),
            format.is_some()
        )
    };
    Target { name: "journal_rows", seeds, run: Box::new(run) }
}

/// A journal on disk, of which some bytes are others.
///
/// Law: the store opens with rows that were written, or says what is wrong.
pub(super) fn journals() -> Target {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let home = tempfile::tempdir_in(&parent).expect("a directory can be made");
    let written = write_journal(home.path());
    let journal = std::fs::read(home.path().join("journal.redb")).expect("it is there");
    // An input is a list of changes: position, then what to put there.
    let seeds = vec![vec![0, 0, 0, 0, 1], vec![0, 16, 0, 0, 255, 0, 32, 0, 0, 128], vec![7; 50]];
    let run = move |input: &[u8]| {
        let mut changed = journal.clone();
        for change in input.as_chunks::<5>().0 {
            let [a, b, c, d, byte] = *change;
            let at = u32::from_le_bytes([a, b, c, d]) as usize % changed.len();
            changed[at] ^= byte;
        }
        let directory = tempfile::tempdir_in(&parent).expect("a directory can be made");
        copy(home.path(), directory.path());
        std::fs::write(directory.path().join("journal.redb"), changed).expect("it can be written");
        let store = match ChunkStore::open(config(directory.path())) {
            Ok(store) => store,
            Err(error) => return kind(&error.to_string()),
        };
        let rows = match read(&store) {
            Ok(rows) => rows,
            Err(error) => return kind(&error),
        };
        assert!(rows.iter().all(|row| written.contains(row)), "a row that nobody wrote");
        format!("{} rows", rows.len())
    };
    Target { name: "journals", seeds, run: Box::new(run) }
}

/// The start of a message, without numbers and names, which are different every time.
fn worded(message: &str) -> String {
    let mut words = String::new();
    for (at, part) in message.split('"').enumerate() {
        words.extend(part.chars().filter(|c| at % 2 == 0 && !c.is_ascii_digit()));
    }
    words.chars().take(80).collect()
}

/// As [`worded`], of a message that may name a directory.
fn kind(message: &str) -> String {
    worded(&message.split("journal.redb").last().unwrap_or_default().replace('/', " "))
}

fn config(directory: &Path) -> StoreConfig {
    StoreConfig { space_reserve_bytes: 0, ..StoreConfig::new(directory) }
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("it can be listed") {
        let path = entry.expect("it can be listed").path();
        let to = to.join(path.file_name().expect("it has a name"));
        if path.is_dir() {
            std::fs::create_dir(&to).expect("it can be made");
            copy(&path, &to);
        } else {
            std::fs::copy(&path, &to).expect("it can be copied");
        }
    }
}

/// Fills the journal of a store with committed and pending rows; gives the rows.
fn write_journal(directory: &Path) -> Vec<i64> {
    use hypertide_proto::{
        decision::{ChunkLink, Decision, Fate},
        ids::{AccessId, Boot, Epoch, TableId, TxnId},
    };
    let store = ChunkStore::open(config(directory)).expect("it opens");
    let mut written = Vec::new();
    for seq in 1..=6u64 {
        let values: Vec<i64> = (0..20).map(|row| seq as i64 * 1000 + row).collect();
        let column: ArrayRef = Arc::new(arrow::array::Int64Array::from(values.clone()));
        let encoded = batch::encode(&samples::batch([("bigint", column)].into_iter()));
        let encoded = encoded.expect("it encodes");
        let spec = crate::ChunkSpec {
            chunk: ChunkId(1),
            table: TableId(1),
            time_column: None,
            order_columns: Vec::new(),
            origin: Vec::new(),
        };
        let part = crate::Part {
            spec,
            epoch: Epoch(1),
            number: 0,
            rows: encoded.rows,
            hash: encoded.hash,
            payload: encoded.payload,
            decoded_bytes: encoded.decoded_bytes,
        };
        let txn = TxnId { access: AccessId(1), boot: Boot(1), seq };
        futures::executor::block_on(async {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
            runtime.block_on(store.prepare(txn, vec![part])).expect("it is taken in");
        });
        if seq < 6 {
            let links = vec![ChunkLink { chunk: ChunkId(1), prev: Csn(seq - 1) }];
            let fate = Fate::Committed { csn: Csn(seq), links };
            store.decide(&[Decision { txn, fate }]).expect("it is decided");
            written.extend(values);
        }
    }
    store.close();
    written
}

fn read(store: &ChunkStore) -> Result<Vec<i64>, String> {
    use arrow::{array::AsArray, datatypes::Int64Type};
    let column: ArrayRef = Arc::new(arrow::array::Int64Array::from(vec![0]));
    let columns = samples::batch([("bigint", column)].into_iter()).schema();
    let request = ScanRequest {
        chunk: ChunkId(1),
        snapshot: Csn(99),
        own: None,
        columns,
        predicate: Predicate::default(),
    };
    let scan = store.scan(request).map_err(|error| error.to_string())?;
    let mut rows = Vec::new();
    for batch in scan {
        let batch = batch.map_err(|error| error.to_string())?;
        rows.extend(batch.column(0).as_primitive::<Int64Type>().values().iter().copied());
    }
    Ok(rows)
}
