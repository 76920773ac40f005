//! Wrong bytes and wrong directories: told in words, never returned as rows, never a panic.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{fs, path::Path, sync::Arc};

use hypertide_proto::ids::ChunkId;
use hypertide_storage::{ChunkStore, Error};

mod support;
use support::*;

const ROWS: i64 = 20_000;

/// A directory whose chunk 1 has a segment, and chunk 2 another.
async fn prepared(dir: &Path) {
    let store = ChunkStore::open(config(dir)).unwrap();
    for chunk in [1, 2] {
        let rows = rows_of(chunk as i64, ROWS);
        store.prepare(txn(chunk), vec![part(chunk, 0, &rows)]).await.unwrap();
        store.decide(&[commit(chunk, chunk * 10, &[(chunk, 0)])]).unwrap();
    }
    store.flush(&[]).unwrap();
    store.close();
}

/// Reads chunk 1: its rows, or that they are damaged. Chunk 2 is never concerned.
fn outcome(dir: &Path) -> Result<Vec<Row>, String> {
    let store = ChunkStore::open(config(dir)).unwrap();
    let other = read(&store, request(2, 99)).unwrap();
    assert_eq!(other.len(), ROWS as usize);
    match read(&store, request(1, 99)) {
        Ok(rows) => {
            assert!(store.damaged().is_empty());
            Ok(rows)
        }
        Err(Error::Damaged { chunk, what }) => {
            assert_eq!(chunk, ChunkId(1));
            assert_eq!(store.damaged(), [ChunkId(1)]);
            Err(what)
        }
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn flipped_bits_of_a_chunk_file_never_reach_a_reader() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path()).await;
    let mut expected = rows_of(1, ROWS);
    expected.sort_by(|a, b| a.partial_cmp(b).unwrap());
    let file = dir.path().join("chunks/1.redb");
    let whole = fs::read(&file).unwrap();
    let mut random = Random(7);
    let mut damaged = 0;
    for _ in 0..60 {
        let mut bytes = whole.clone();
        for _ in 0..1 + random.below(8) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << random.below(8);
        }
        fs::write(&file, &bytes).unwrap();
        match outcome(dir.path()) {
            Ok(rows) => assert_eq!(rows, expected),
            Err(_) => damaged += 1,
        }
    }
    assert!(damaged > 10, "only {damaged} of 60 were noticed");
    fs::write(&file, &whole).unwrap();
    assert_eq!(outcome(dir.path()).unwrap(), expected);
}

#[tokio::test]
async fn shortened_emptied_and_missing_files_are_damage() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path()).await;
    let file = dir.path().join("chunks/1.redb");
    let whole = fs::read(&file).unwrap();
    for length in [0, 1, 511, 4096, whole.len() / 2, whole.len() - 4096] {
        fs::write(&file, &whole[..length]).unwrap();
        let what = outcome(dir.path()).unwrap_err();
        assert!(!what.is_empty());
    }
    fs::remove_file(&file).unwrap();
    assert_eq!(outcome(dir.path()).unwrap_err(), "its file is missing or empty");
}

#[tokio::test]
async fn a_file_that_was_rolled_back_or_swapped_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path()).await;
    let file = dir.path().join("chunks/1.redb");
    let old = fs::read(&file).unwrap();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    store.prepare(txn(9), vec![part(1, 0, &rows_of(9, 10))]).await.unwrap();
    store.decide(&[commit(9, 90, &[(1, 10)])]).unwrap();
    store.flush(&[]).unwrap();
    store.close();
    fs::write(&file, &old).unwrap();
    let what = outcome(dir.path()).unwrap_err();
    assert!(what.contains("generation 1, but generation 2 was written"), "{what}");
    fs::copy(dir.path().join("chunks/2.redb"), &file).unwrap();
    let what = outcome(dir.path()).unwrap_err();
    assert!(what.contains("another one than the manifest names"), "{what}");
}

#[tokio::test]
async fn a_damaged_chunk_takes_no_rows_and_others_do() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path()).await;
    fs::write(dir.path().join("chunks/1.redb"), b"").unwrap();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    assert!(read(&store, request(1, 99)).is_err());
    let rows = rows_of(5, 3);
    let refused = store.prepare(txn(5), vec![part(1, 0, &rows)]).await.unwrap_err();
    assert!(matches!(refused, Error::Damaged { .. }), "{refused}");
    store.prepare(txn(6), vec![part(2, 0, &rows)]).await.unwrap();
    store.drop_chunks(&[ChunkId(1)]).unwrap();
    assert!(store.damaged().is_empty());
    assert!(read(&store, request(1, 99)).unwrap().is_empty());
}

#[tokio::test]
async fn flipped_bits_of_the_journal_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    let rows = rows_of(1, 5000);
    store.prepare(txn(1), vec![part(1, 0, &rows)]).await.unwrap();
    store.close();
    drop(store);
    let payload = part(1, 0, &rows).payload;
    let file = dir.path().join("journal.redb");
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(64).position(|window| *window == payload[100..164]).unwrap();
    bytes[at] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    assert_eq!(store.damaged(), [ChunkId(1)]);
    let refused = read(&store, request(1, 99)).unwrap_err();
    assert!(
        refused.to_string().contains("part 0 of a1b1s1 for chunk c1 has wrong bytes"),
        "{refused}"
    );
}

#[tokio::test]
async fn wrong_directories_are_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path()).await;
    let refusal = |dir: &Path| match ChunkStore::open(config(dir)) {
        Err(Error::Identity(text)) => text,
        other => panic!("{other:?}"),
    };
    let store = ChunkStore::open(config(dir.path())).unwrap();
    assert!(refusal(dir.path()).contains("is in use by another process"));
    drop(store);
    let other = tempfile::tempdir().unwrap();
    prepared(other.path()).await;
    let journal = dir.path().join("journal.redb");
    let own = fs::read(&journal).unwrap();
    fs::copy(other.path().join("journal.redb"), &journal).unwrap();
    assert!(refusal(dir.path()).contains("carries another disk's id"));
    fs::remove_file(&journal).unwrap();
    assert!(refusal(dir.path()).contains("the file is missing or empty"));
    fs::write(&journal, own).unwrap();
    let node = dir.path().join("node.redb");
    let own = fs::read(&node).unwrap();
    fs::remove_file(&node).unwrap();
    assert!(refusal(dir.path()).contains("carries another disk's id"));
    fs::rename(&journal, dir.path().join("journal.kept")).unwrap();
    assert!(refusal(dir.path()).contains("whose node.redb is missing"));
    fs::rename(dir.path().join("journal.kept"), &journal).unwrap();
    fs::remove_file(dir.path().join("node.redb.new")).unwrap();
    fs::write(&node, own).unwrap();
    assert_eq!(outcome(dir.path()).unwrap().len(), ROWS as usize);
}

#[tokio::test]
async fn bad_parts_are_refused_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    let good = part(1, 0, &rows_of(1, 10));
    let mut hash = good.clone();
    hash.hash ^= 1;
    let mut rows = good.clone();
    rows.rows += 1;
    let mut bytes = good.clone();
    bytes.payload = bytes.payload.slice(..bytes.payload.len() - 1);
    bytes.hash = batch_hash(&bytes.payload);
    for bad in [hash, rows, bytes] {
        let refused = store.prepare(txn(1), vec![bad]).await.unwrap_err();
        assert!(matches!(refused, Error::Invalid(_)), "{refused}");
    }
    let twice = vec![good.clone(), good.clone()];
    assert!(store.prepare(txn(1), twice).await.unwrap_err().to_string().contains("stands twice"));
    assert!(store.pending(&[]).is_empty());
    assert_eq!(store.memory_used(), 0);
    store.prepare(txn(1), vec![good]).await.unwrap();
    let other = part(1, 0, &rows_of(2, 10));
    let refused = store.prepare(txn(1), vec![other]).await.unwrap_err();
    assert!(matches!(refused, Error::Conflict { .. }), "{refused}");
}

#[tokio::test]
async fn dropped_chunks_are_gone_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path()).await;
    let store = ChunkStore::open(config(dir.path())).unwrap();
    let scan = store.scan(request(1, 99)).unwrap();
    store.prepare(txn(7), vec![part(1, 0, &rows_of(7, 5))]).await.unwrap();
    store.drop_chunks(&[ChunkId(1)]).unwrap();
    store.drop_chunks(&[ChunkId(1)]).unwrap();
    assert!(!dir.path().join("chunks/1.redb").exists());
    // A scan that had begun still reads what it began with.
    assert_eq!(scan.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), ROWS as usize);
    // A prepare that comes late is taken, and goes when its fate is known.
    store.prepare(txn(8), vec![part(1, 0, &rows_of(8, 5))]).await.unwrap();
    store.decide(&[abort(8)]).unwrap();
    store.close();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    assert!(store.pending(&[]).is_empty());
    assert_eq!(store.report(&[]).iter().map(|r| r.chunk).collect::<Vec<_>>(), [ChunkId(2)]);
}

#[tokio::test]
async fn memory_is_bounded_and_writers_go_on_after_a_flush() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    let size = part(1, 0, &rows_of(1, 5000)).decoded_bytes as usize;
    config.memory_bytes = size * 3;
    let store = Arc::new(ChunkStore::open(config).unwrap());
    for id in 1..=12u64 {
        store.prepare(txn(id), vec![part(1, 0, &rows_of(id as i64, 5000))]).await.unwrap();
        store.decide(&[commit(id, id, &[(1, id - 1)])]).unwrap();
        assert!(store.memory_used() <= size * 4);
    }
    assert_eq!(read(&store, request(1, 12)).unwrap().len(), 60_000);
    // Pending rows cannot be flushed: then a writer is told.
    for id in 20..=23u64 {
        let prepared = store.prepare(txn(id), vec![part(1, 0, &rows_of(9, 5000))]).await;
        if let Err(error) = prepared {
            assert!(matches!(error, Error::Overloaded(_)), "{error}");
            return;
        }
    }
    panic!("more rows are in memory than may be");
}

fn batch_hash(payload: &[u8]) -> u128 {
    hypertide_storage::batch::hash(payload)
}
