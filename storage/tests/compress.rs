//! Compression as a state of a chunk: the same rows before and after, fewer bytes, and nobody held up.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{path::Path, sync::Arc};

use hypertide_proto::ids::ChunkId;
use hypertide_storage::{
    ChunkReport, ChunkState, ChunkStore, CompressionSpec, Error, OrderBy, StoreConfig,
};

mod support;
use support::*;

const CHUNK: ChunkId = ChunkId(1);

fn by_device() -> CompressionSpec {
    let order_by = vec![OrderBy { column: "time".into(), descending: true, nulls_first: false }];
    CompressionSpec { segment_by: vec!["device".into()], order_by }
}

fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by(|a, b| a.partial_cmp(b).unwrap());
    rows
}

/// Commits `count` rows as transaction and commit `id`, after `prev`.
async fn insert(store: &ChunkStore, id: u64, prev: u64, count: i64) -> Vec<Row> {
    let rows = rows_of(id as i64, count);
    store.prepare(txn(id), vec![part(1, 0, &rows)]).await.unwrap();
    store.decide(&[commit(id, id, &[(1, prev)])]).unwrap();
    rows
}

fn report(store: &ChunkStore) -> ChunkReport {
    store.report(&[CHUNK])[0]
}

/// A chunk of some flushed commits, and all its rows.
async fn filled(dir: &Path) -> (Arc<ChunkStore>, Vec<Row>) {
    let store = ChunkStore::open(config(dir)).unwrap();
    let mut rows = Vec::new();
    for id in 1..=4 {
        rows.extend(insert(&store, id, id - 1, 2_000).await);
        store.flush(&[]).unwrap();
    }
    (store, rows)
}

/// The rows of a scan as they come.
fn in_order(store: &ChunkStore) -> Vec<Row> {
    store.scan(request(1, 999)).unwrap().flat_map(|batch| rows_in(&batch.unwrap())).collect()
}

#[tokio::test]
async fn a_chunk_goes_through_its_states_with_the_same_rows() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut rows) = filled(dir.path()).await;
    let plain = report(&store);
    assert_eq!((plain.state, plain.before_bytes, plain.after_bytes), (ChunkState::Plain, 0, 0));
    let compressed = store.compress(CHUNK, by_device()).unwrap();
    assert_eq!(compressed.state, ChunkState::Compressed);
    assert_eq!(compressed.before_bytes, plain.segment_bytes);
    assert_eq!(compressed.after_bytes, compressed.segment_bytes);
    assert_eq!((compressed.rows, compressed.segments), (plain.rows, 1));
    assert_eq!((compressed.applied_csn, compressed.chain), (plain.applied_csn, plain.chain));
    // Again changes nothing.
    assert_eq!(store.compress(CHUNK, by_device()).unwrap(), compressed);
    let key = |row: &Row| (row.1.clone(), std::cmp::Reverse(row.0));
    let found = in_order(&store);
    assert!(found.is_sorted_by_key(key), "rows lie in the order asked for");
    assert_eq!(sorted(found), sorted(rows.clone()));
    assert_eq!(read(&store, request(1, 2)).unwrap(), sorted(rows[..4_000].to_vec()));

    rows.extend(insert(&store, 5, 4, 100).await);
    assert_eq!(report(&store).state, ChunkState::Partial);
    store.flush(&[]).unwrap();
    let partial = report(&store);
    assert_eq!((partial.state, partial.segments), (ChunkState::Partial, 2));
    assert_eq!(partial.after_bytes, compressed.after_bytes);
    assert_eq!(read(&store, request(1, 999)).unwrap(), sorted(rows.clone()));
    store.close();
    drop(store);

    let store = ChunkStore::open(config(dir.path())).unwrap();
    assert_eq!(report(&store), partial);
    let again = store.compress(CHUNK, by_device()).unwrap();
    assert_eq!((again.state, again.segments, again.rows), (ChunkState::Compressed, 1, 8_100));
    assert!(again.before_bytes > compressed.before_bytes);
    assert!(in_order(&store).is_sorted_by_key(key));
    // Another order is another compression.
    let by_time = store.compress(CHUNK, CompressionSpec::default()).unwrap();
    assert_eq!(by_time.before_bytes, again.before_bytes);
    assert!(in_order(&store).is_sorted_by_key(|row| row.0));
    let plain = store.decompress(CHUNK).unwrap();
    assert_eq!((plain.state, plain.before_bytes, plain.after_bytes), (ChunkState::Plain, 0, 0));
    assert_eq!(store.decompress(CHUNK).unwrap(), plain);
    assert_eq!(read(&store, request(1, 999)).unwrap(), sorted(rows.clone()));
    let checked = store.check(CHUNK).unwrap();
    assert_eq!((checked.rows, checked.faults), (8_100, vec![]));
}

#[tokio::test]
async fn many_rows_are_sorted_in_bands() {
    let dir = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    let mut rows = Vec::new();
    for id in 1..=2u64 {
        rows.extend(insert(&store, id, id - 1, 140_000).await);
        store.flush(&[]).unwrap();
    }
    let report = store.compress(CHUNK, by_device()).unwrap();
    // So many rows are more than a band, and each is a segment of its own.
    assert!(report.segments >= 2, "{report:?}");
    let found = in_order(&store);
    assert!(found.is_sorted_by_key(|row| (row.1.clone(), std::cmp::Reverse(row.0))));
    assert_eq!(sorted(found), sorted(rows));
}

#[tokio::test]
async fn scans_and_writers_go_on_while_a_chunk_is_rewritten() {
    let dir = tempfile::tempdir().unwrap();
    let (store, rows) = filled(dir.path()).await;
    let mut old = store.scan(request(1, 999)).unwrap();
    let first = old.next().unwrap().unwrap().num_rows();
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let reader = std::thread::spawn({
        let (store, done) = (Arc::clone(&store), Arc::clone(&done));
        move || {
            let mut scans = 0;
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                let applied = report(&store).applied_csn.0;
                let found = read(&store, request(1, applied)).unwrap();
                assert_eq!(found.len() as u64, 8_000 + (applied - 4) * 10, "at {applied}");
                scans += 1;
            }
            scans
        }
    });
    let rewriter = std::thread::spawn({
        let store = Arc::clone(&store);
        move || {
            for _ in 0..3 {
                store.compress(CHUNK, by_device()).unwrap();
                store.decompress(CHUNK).unwrap();
            }
        }
    });
    let mut expected = rows;
    for id in 5..=40 {
        expected.extend(insert(&store, id, id - 1, 10).await);
        // A rewrite and a flush never wait for each other but for the switch.
        store.flush(&[]).unwrap();
    }
    rewriter.join().unwrap();
    done.store(true, std::sync::atomic::Ordering::SeqCst);
    assert!(reader.join().unwrap() > 0);
    // The scan from before any of it still has its file.
    assert_eq!(first + old.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 8_000);
    assert_eq!(read(&store, request(1, 999)).unwrap(), sorted(expected));
    assert!(!dir.path().join("chunks/1.redb.new").exists());
}

#[tokio::test]
async fn what_cannot_be_compressed_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    let refused = store.compress(CHUNK, by_device()).unwrap_err();
    assert!(refused.to_string().contains("chunk c1 is not here"), "{refused}");
    let mut twice = by_device();
    twice.segment_by.push("time".into());
    let refused = store.compress(CHUNK, twice).unwrap_err();
    assert!(matches!(&refused, Error::Invalid(what) if what.contains("\"time\" stands twice")));
    // A chunk that only has pending rows is compressed as the empty one that it is.
    store.prepare(txn(1), vec![part(1, 0, &rows_of(1, 10))]).await.unwrap();
    let empty = store.compress(CHUNK, by_device()).unwrap();
    assert_eq!((empty.state, empty.rows, empty.segments), (ChunkState::Compressed, 0, 0));
    store.decide(&[commit(1, 1, &[(1, 0)])]).unwrap();
    assert_eq!(report(&store).state, ChunkState::Partial);
    assert_eq!(store.compress(CHUNK, by_device()).unwrap().state, ChunkState::Compressed);
}

#[tokio::test]
async fn a_draft_that_a_crash_left_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (store, rows) = filled(dir.path()).await;
    store.close();
    drop(store);
    let draft = dir.path().join("chunks/1.redb.new");
    std::fs::copy(dir.path().join("chunks/1.redb"), &draft).unwrap();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    assert!(!draft.exists());
    assert_eq!(read(&store, request(1, 999)).unwrap(), sorted(rows));
}

#[tokio::test]
async fn space_that_merges_leave_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { flush_bytes: 1, ..config(dir.path()) };
    let store = ChunkStore::open(config).unwrap();
    let mut rows = Vec::new();
    let mut random = Random(5);
    for id in 1..=12u64 {
        // Rows that compress badly, so that the file is worth shrinking.
        let noise = |i| (i, format!("{:x}{:x}", random.next(), random.next()), None);
        let noise: Vec<Row> = (0..6_000).map(noise).collect();
        store.prepare(txn(id), vec![part(1, 0, &noise)]).await.unwrap();
        store.decide(&[commit(id, id, &[(1, id - 1)])]).unwrap();
        store.flush(&[]).unwrap();
        rows.extend(noise);
    }
    let size = || std::fs::metadata(dir.path().join("chunks/1.redb")).unwrap().len();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let settled = |report: ChunkReport| report.segments <= 16 && report.recent_rows == 0;
    while !settled(report(&store)) {
        assert!(std::time::Instant::now() < deadline, "{} {:?}", size(), report(&store));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // A flush after the last merge of the background may have let the file grow again; the next merge sees to it.
    store.merge(CHUNK).unwrap();
    assert!(size() <= 2 * report(&store).segment_bytes + (1 << 20), "{}", size());
    assert_eq!(read(&store, request(1, 999)).unwrap(), sorted(rows));
    assert_eq!(store.check(CHUNK).unwrap().faults, vec![]);
}

#[tokio::test]
async fn a_wrong_block_stops_a_rewrite_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = filled(dir.path()).await;
    store.close();
    drop(store);
    let path = dir.path().join("chunks/1.redb");
    let mut bytes = std::fs::read(&path).unwrap();
    // A block of the fourth segment, which a scan at commit 3 does not want.
    let of_last = |at: &usize| {
        bytes[*at..].starts_with(b"HTsg") && bytes[at + 24..at + 32] == 3u64.to_le_bytes()
    };
    let block = |at: &usize| bytes[at + 32..at + 36] != u32::MAX.to_le_bytes();
    let at = (0..bytes.len() - 40).filter(of_last).find(block).unwrap();
    bytes[at + 60] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    let refused = store.compress(CHUNK, by_device()).unwrap_err();
    assert!(matches!(refused, Error::Damaged { .. }), "{refused}");
    assert_eq!(store.damaged(), [CHUNK]);
    assert!(!dir.path().join("chunks/1.redb.new").exists());
    assert_eq!(read(&store, request(1, 3)).unwrap().len(), 6_000);
    assert!(read(&store, request(1, 4)).is_err());
}

#[tokio::test]
async fn compression_takes_the_strong_encodings() {
    let dir = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    let mut random = Random(11);
    // Roots are floats of all bits, which only the slowest encoding finds an order in.
    let mut root = || (random.below(1000) as f64 * 1.1e-3).sqrt();
    let rows: Vec<Row> = (0..60_000).map(|i| (i, "d1".to_owned(), Some(root()))).collect();
    store.prepare(txn(1), vec![part(1, 0, &rows)]).await.unwrap();
    store.decide(&[commit(1, 1, &[(1, 0)])]).unwrap();
    store.flush(&[]).unwrap();
    let plain = report(&store);
    // The order is the one that the rows are in already: only the encodings can make the difference.
    let natural = CompressionSpec { segment_by: vec!["device".into()], order_by: Vec::new() };
    let compressed = store.compress(CHUNK, natural).unwrap();
    assert!(
        compressed.segment_bytes * 100 < plain.segment_bytes * 97,
        "{} of {} bytes",
        compressed.segment_bytes,
        plain.segment_bytes
    );
    assert_eq!(store.decompress(CHUNK).unwrap().segment_bytes, plain.segment_bytes);
    assert_eq!(read(&store, request(1, 9)).unwrap(), sorted(rows));
}
