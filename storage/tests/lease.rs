//! Snapshots that are held: neither deleted rows nor removed chunks go that they see, however short old versions are
//! kept otherwise.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, unreachable_pub)]

use std::{path::Path, sync::Arc, time::Duration};

use hypertide_proto::ids::{ChunkId, Csn};
use hypertide_storage::{ChunkStore, CompressionSpec, Error, StoreConfig};

mod support;

use support::{disk::Machine, *};

const LEASE: Duration = Duration::from_secs(300);

/// Keeps nothing that is old.
fn at_once(dir: &Path) -> StoreConfig {
    StoreConfig { version_age: Duration::ZERO, background: false, ..config(dir) }
}

async fn filled(store: &ChunkStore) {
    store.prepare(txn(1), vec![part(1, 0, &rows_of(1, 100))]).await.unwrap();
    store.decide(&[commit(1, 10, &[(1, 0)])]).unwrap();
    store.flush(&[]).unwrap();
}

fn count(store: &ChunkStore, snapshot: u64) -> Result<usize, Error> {
    read(store, request(1, snapshot)).map(|rows| rows.len())
}

#[tokio::test]
async fn rows_that_were_deleted_stay_for_a_held_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(at_once(dir.path())).unwrap();
    filled(&store).await;
    store.hold_snapshot(Csn(19), LEASE);
    assert_eq!(store.held_snapshot(), Some(Csn(19)));
    let device = rows_of(1, 1)[0].1.clone();
    let gone = Gone { snapshot: 10, device, until: i64::MAX };
    store.prepare(txn(2), vec![delete(1, 0, &gone)]).await.unwrap();
    store.decide(&[commit(2, 20, &[(1, 10)])]).unwrap();
    store.flush(&[]).unwrap();
    let left = count(&store, 20).unwrap();
    assert!(left < 100);
    for _ in 0..2 {
        store.compress(ChunkId(1), CompressionSpec::default()).unwrap();
        assert_eq!((count(&store, 19).unwrap(), count(&store, 20).unwrap()), (100, left));
        // A later one sees the delete and needs no more than that.
        store.hold_snapshot(Csn(30), LEASE);
    }
    store.close();
    // Nobody renews it.
    let store = ChunkStore::open(at_once(dir.path())).unwrap();
    assert_eq!(store.held_snapshot(), None);
    store.compress(ChunkId(1), CompressionSpec::default()).unwrap();
    assert!(matches!(count(&store, 19).unwrap_err(), Error::SnapshotTooOld { .. }));
    assert_eq!(count(&store, 20).unwrap(), left);
}

#[tokio::test]
async fn chunks_that_were_removed_stay_for_a_held_snapshot_while_there_is_room() {
    let machine = Machine::default();
    let config = StoreConfig { space_reserve_bytes: 1 << 30, ..at_once(Path::new("/data")) };
    let store = ChunkStore::open_on(config, Arc::new(machine.clone())).unwrap();
    filled(&store).await;
    store.hold_snapshot(Csn(29), LEASE);
    store.drop_chunks(&[ChunkId(1)], Csn(30)).unwrap();
    assert_eq!(store.removed(), [ChunkId(1)]);
    assert_eq!(count(&store, 29).unwrap(), 100);
    // Rows that come in are worth more.
    machine.set_free_bytes(1 << 29);
    store.drop_chunks(&[], Csn(31)).unwrap();
    assert_eq!(store.removed(), []);
    assert!(matches!(count(&store, 29).unwrap_err(), Error::SnapshotTooOld { .. }));
}

#[tokio::test]
async fn a_snapshot_that_has_a_removal_holds_nothing_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(at_once(dir.path())).unwrap();
    filled(&store).await;
    store.hold_snapshot(Csn(30), LEASE);
    store.drop_chunks(&[ChunkId(1)], Csn(30)).unwrap();
    assert_eq!(store.removed(), []);
}
