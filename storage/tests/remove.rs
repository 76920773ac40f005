//! Chunks that the catalog has no more on the node: read by those whose snapshot is from before, refused to all others,
//! unlinked in time, and never taken for chunks without rows.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, unreachable_pub)]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use hypertide_proto::ids::{ChunkId, Csn};
use hypertide_storage::{ChunkStore, Error, StoreConfig};

mod support;

use support::{disk::Machine, *};

const PATIENCE: Duration = Duration::from_secs(60);
/// From here on the catalog has the chunks no more.
const AT: Csn = Csn(30);

/// A store with a chunk of which some rows are in segments and some are not, and one without rows.
async fn filled(config: StoreConfig) -> Arc<ChunkStore> {
    let store = ChunkStore::open(config).unwrap();
    store.prepare(txn(1), vec![part(1, 0, &rows_of(1, 100))]).await.unwrap();
    store.decide(&[commit(1, 10, &[(1, 0)])]).unwrap();
    store.flush(&[]).unwrap();
    store.prepare(txn(2), vec![part(1, 0, &rows_of(2, 50))]).await.unwrap();
    store.decide(&[commit(2, 20, &[(1, 10)])]).unwrap();
    store.prepare(txn(3), vec![part(2, 0, &rows_of(3, 5))]).await.unwrap();
    store.decide(&[abort(3)]).unwrap();
    store
}

fn count(store: &ChunkStore, chunk: u64, snapshot: u64) -> Result<usize, Error> {
    read(store, request(chunk, snapshot)).map(|rows| rows.len())
}

fn assert_kept(store: &ChunkStore) {
    assert_eq!(store.removed(), [ChunkId(1), ChunkId(2)]);
    assert!(store.report(&[]).is_empty(), "the cluster is not told of them");
    assert_eq!(count(store, 1, 29).unwrap(), 150);
    assert_eq!(count(store, 1, 19).unwrap(), 100);
    assert_eq!(count(store, 2, 29).unwrap(), 0);
    for (chunk, snapshot) in [(1, 30), (2, 30), (1, 99)] {
        let refused = count(store, chunk, snapshot).unwrap_err();
        assert!(matches!(refused, Error::Removed(id) if id.0 == chunk), "{refused}");
    }
    // Of a chunk that never was here nothing is known, and nothing has to be.
    assert_eq!(count(store, 3, 29).unwrap(), 0);
}

fn assert_unlinked(store: &ChunkStore, dir: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while !store.removed().is_empty() || dir.join("chunks/1.redb").exists() {
        assert!(Instant::now() < deadline, "they are not unlinked");
        std::thread::sleep(Duration::from_millis(5));
    }
    for (chunk, snapshot) in [(1, 29), (1, 19), (2, 29), (3, 29)] {
        let refused = count(store, chunk, snapshot).unwrap_err();
        assert!(matches!(refused, Error::SnapshotTooOld { horizon: AT, .. }), "{refused}");
    }
    // Who has seen the removal does not ask for these. Others may be new, and without rows yet.
    assert_eq!(count(store, 3, 30).unwrap(), 0);
}

#[tokio::test]
async fn what_was_removed_is_read_by_older_snapshots_until_its_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(config(dir.path())).await;
    store.drop_chunks(&[ChunkId(1), ChunkId(2), ChunkId(7)], AT).unwrap();
    assert_kept(&store);
    // What is told again, or as of a later moment, changes nothing.
    store.drop_chunks(&[ChunkId(1)], Csn(70)).unwrap();
    assert_kept(&store);
    store.flush(&[]).unwrap();
    assert_kept(&store);
    store.close();
    // A restart within the time.
    let store = ChunkStore::open(config(dir.path())).unwrap();
    assert_kept(&store);
    store.close();
    let soon = StoreConfig { version_age: Duration::from_millis(1), ..config(dir.path()) };
    let store = ChunkStore::open(soon.clone()).unwrap();
    assert_unlinked(&store, dir.path());
    // What is new is written and read as ever.
    store.prepare(txn(9), vec![part(4, 0, &rows_of(4, 7))]).await.unwrap();
    store.decide(&[commit(9, 40, &[(4, 0)])]).unwrap();
    assert_eq!(count(&store, 4, 40).unwrap(), 7);
    assert_eq!(count(&store, 4, 29).unwrap(), 0);
    store.close();
    let store = ChunkStore::open(soon).unwrap();
    assert_unlinked(&store, dir.path());
    assert_eq!(count(&store, 4, 40).unwrap(), 7);
}

#[tokio::test]
async fn a_commit_from_before_the_removal_that_is_heard_of_later_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(config(dir.path())).await;
    store.prepare(txn(4), vec![part(1, 0, &rows_of(4, 9))]).await.unwrap();
    store.prepare(txn(5), vec![part(1, 0, &rows_of(5, 9))]).await.unwrap();
    store.drop_chunks(&[ChunkId(1)], AT).unwrap();
    assert_eq!(store.pending(&[]).len(), 2);
    store.decide(&[commit(4, 25, &[(1, 20)]), abort(5)]).unwrap();
    assert_eq!(count(&store, 1, 29).unwrap(), 159);
    store.close();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    assert!(store.pending(&[]).is_empty());
    assert_eq!(count(&store, 1, 29).unwrap(), 159);
    assert_eq!(count(&store, 1, 24).unwrap(), 150);
}

#[tokio::test]
async fn what_was_removed_makes_room_when_there_is_little() {
    let machine = Machine::default();
    let dir = Path::new("/data");
    let quiet = StoreConfig { background: false, space_reserve_bytes: 1 << 30, ..config(dir) };
    let store = ChunkStore::open_on(quiet.clone(), Arc::new(machine.clone())).unwrap();
    for chunk in [1, 2] {
        store.prepare(txn(chunk), vec![part(chunk, 0, &rows_of(1, 10))]).await.unwrap();
        store.decide(&[commit(chunk, chunk * 10, &[(chunk, 0)])]).unwrap();
    }
    store.flush(&[]).unwrap();
    store.drop_chunks(&[ChunkId(1)], Csn(25)).unwrap();
    assert_eq!(store.removed(), [ChunkId(1)]);
    assert_eq!(count(&store, 1, 24).unwrap(), 10);
    machine.set_free_bytes(1 << 29);
    store.drop_chunks(&[], Csn(26)).unwrap();
    assert_eq!(store.removed(), []);
    assert!(!machine.image().paths().contains(&"/data/chunks/1.redb".into()));
    let refused = count(&store, 1, 24).unwrap_err();
    assert!(matches!(refused, Error::SnapshotTooOld { .. }), "{refused}");
    assert_eq!(count(&store, 2, 24).unwrap(), 10, "others are read at that snapshot, too");
}
