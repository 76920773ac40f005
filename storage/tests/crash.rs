//! Power cuts: whatever was answered is there after a restart, committed rows exactly once, and nothing panics.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{collections::BTreeMap, path::Path, sync::Arc};

use hypertide_storage::{ChunkStore, Error, StoreConfig};

mod support;
use support::{
    disk::{CuttingDisk, Power},
    *,
};

/// What was promised before the power went.
#[derive(Default)]
struct Promised {
    /// Rows by transaction, of prepares that were acknowledged.
    acknowledged: BTreeMap<u64, Vec<Row>>,
    /// Rows by transaction, of prepares that were sent.
    sent: BTreeMap<u64, Vec<Row>>,
    /// Commit number and its predecessor by transaction, as the log has them.
    log: BTreeMap<u64, (u64, u64)>,
}

const TXNS: u64 = 6;

/// Prepares, decides and flushes until the power goes or all is done.
async fn work(dir: &Path, power: &Arc<Power>, promised: &mut Promised) -> Result<(), Error> {
    let config = config(dir);
    let store = ChunkStore::open_on(config, Arc::new(CuttingDisk(Arc::clone(power))))?;
    let mut last = 0;
    for id in 1..=TXNS {
        let rows = rows_of(id as i64, 30 + id as i64 * 40);
        promised.sent.insert(id, rows.clone());
        store.prepare(txn(id), vec![part(1, 0, &rows)]).await?;
        promised.acknowledged.insert(id, rows);
        if id % 3 != 0 {
            promised.log.insert(id, (id * 10, last));
            store.decide(&[commit(id, id * 10, &[(1, last)])])?;
            last = id * 10;
        }
        if id % 2 == 0 {
            store.flush(&[])?;
        }
    }
    store.close();
    Ok(())
}

/// Reopens after a cut and compares with what was promised.
async fn verify(dir: &Path, promised: &Promised, what: &str) {
    let store = ChunkStore::open(config(dir)).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(store.damaged().is_empty(), "{what}: {:?}", store.damaged());
    // What is pending is asked about, as a data node does it.
    for (txn, _) in store.pending(&[]) {
        match promised.log.get(&txn.seq) {
            Some((csn, prev)) => store.decide(&[commit(txn.seq, *csn, &[(1, *prev)])]).unwrap(),
            None => {
                let request = hypertide_storage::ScanRequest { own: Some(txn), ..request(1, 0) };
                let found = read(&store, request).unwrap();
                let mut expected = promised.sent[&txn.seq].clone();
                expected.sort_by(|a, b| a.partial_cmp(b).unwrap());
                assert_eq!(found, expected, "{what}: pending {txn}");
            }
        }
    }
    let pending: Vec<u64> = store.pending(&[]).iter().map(|(txn, _)| txn.seq).collect();
    for id in promised.acknowledged.keys() {
        let known = promised.log.contains_key(id) || pending.contains(id);
        assert!(known, "{what}: acknowledged transaction {id} is gone");
    }
    for round in 0..2 {
        for snapshot in (0..=TXNS).map(|id| id * 10) {
            let seen = promised.log.iter().filter(|(_, (csn, _))| *csn <= snapshot);
            let mut expected: Vec<Row> =
                seen.flat_map(|(id, _)| promised.sent[id].clone()).collect();
            expected.sort_by(|a, b| a.partial_cmp(b).unwrap());
            let found = read(&store, request(1, snapshot)).unwrap();
            assert_eq!(found.len(), expected.len(), "{what}: round {round} at {snapshot}");
            assert_eq!(found, expected, "{what}: round {round} at {snapshot}");
        }
        store.flush(&[]).unwrap();
        let last = promised.log.values().map(|(csn, _)| *csn).max().unwrap_or(0);
        if last > 0 {
            assert_eq!(store.report(&[])[0].applied_csn.0, last, "{what}");
        }
    }
}

/// Steps of a run that is not cut.
async fn whole_run() -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let power = Power::new(u64::MAX, 0);
    let mut promised = Promised::default();
    work(dir.path(), &power, &mut promised).await.unwrap();
    verify(dir.path(), &promised, "without a cut").await;
    power.steps()
}

#[tokio::test]
async fn a_power_cut_at_any_step_loses_and_doubles_nothing() {
    let steps = whole_run().await;
    assert!(steps > 100, "the run has {steps} steps");
    // Every step with one seed, and a stride of them with others.
    for (seed, stride) in [(1, 1), (2, 9)] {
        for cut_at in (1..=steps).step_by(stride) {
            let dir = tempfile::tempdir().unwrap();
            let power = Power::new(cut_at, seed * 1000 + cut_at);
            let mut promised = Promised::default();
            let ended = work(dir.path(), &power, &mut promised).await;
            power.cut();
            let what = format!("seed {seed}, cut at {cut_at} of {steps} ({ended:?})");
            verify(dir.path(), &promised, &what).await;
        }
    }
}

#[tokio::test]
async fn a_second_cut_during_recovery_is_survived_too() {
    let steps = whole_run().await;
    for cut_at in (20..=steps).step_by(13) {
        let dir = tempfile::tempdir().unwrap();
        let power = Power::new(cut_at, cut_at);
        let mut promised = Promised::default();
        drop(work(dir.path(), &power, &mut promised).await);
        power.cut();
        for again in [3, 9, 17] {
            let power = Power::new(again, cut_at + again);
            let disk = Arc::new(CuttingDisk(Arc::clone(&power)));
            if let Ok(store) = ChunkStore::open_on(config(dir.path()), disk) {
                drop(store.flush(&[]));
                drop(store);
            }
            power.cut();
        }
        verify(dir.path(), &promised, &format!("second cuts after {cut_at}")).await;
    }
}

#[tokio::test]
async fn a_failed_sync_ends_the_store_and_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let rows = rows_of(1, 10);
    drop(ChunkStore::open(config(dir.path())).unwrap());
    let power = Power::new(u64::MAX, 1);
    let disk = Arc::new(CuttingDisk(Arc::clone(&power)));
    let store = ChunkStore::open_on(config(dir.path()), disk).unwrap();
    store.prepare(txn(1), vec![part(1, 0, &rows)]).await.unwrap();
    power.cut();
    let refused = store.prepare(txn(2), vec![part(1, 0, &rows)]).await.unwrap_err();
    assert!(matches!(refused, Error::Closed(_)), "{refused}");
    let failed = store.failed().await;
    assert!(failed.to_string().contains("write of the journal failed"), "{failed}");
    assert!(dir.path().join("io_error").exists());
    drop(store);
    let store = ChunkStore::open(config(dir.path())).unwrap();
    assert!(!dir.path().join("io_error").exists());
    assert!(store.pending(&[]).iter().any(|(pending, _)| *pending == txn(1)));
}

#[tokio::test]
async fn a_full_disk_refuses_rows_and_goes_on_reading() {
    let dir = tempfile::tempdir().unwrap();
    let rows = rows_of(1, 10);
    let store = ChunkStore::open(config(dir.path())).unwrap();
    store.prepare(txn(1), vec![part(1, 0, &rows)]).await.unwrap();
    store.decide(&[commit(1, 10, &[(1, 0)])]).unwrap();
    store.close();
    let config = StoreConfig { space_reserve_bytes: u64::MAX, ..config(dir.path()) };
    let store = ChunkStore::open(config).unwrap();
    let refused = store.prepare(txn(2), vec![part(1, 0, &rows)]).await.unwrap_err();
    assert!(matches!(refused, Error::DiskFull(_)), "{refused}");
    assert_eq!(read(&store, request(1, 10)).unwrap().len(), 10);
}

#[tokio::test]
async fn a_group_of_prepares_costs_one_sync() {
    let dir = tempfile::tempdir().unwrap();
    let power = Power::new(u64::MAX, 1);
    let disk = Arc::new(CuttingDisk(Arc::clone(&power)));
    let store = ChunkStore::open_on(config(dir.path()), disk).unwrap();
    let syncs = || power.syncs.load(std::sync::atomic::Ordering::SeqCst);
    let rows = rows_of(1, 10);
    let before = syncs();
    store.prepare(txn(1), vec![part(1, 0, &rows), part(2, 0, &rows)]).await.unwrap();
    assert_eq!(syncs() - before, 1);
    let before = syncs();
    let prepares = (2..=101).map(|id| store.prepare(txn(id), vec![part(1, 0, &rows)]));
    for prepared in futures::future::join_all(prepares).await {
        prepared.unwrap();
    }
    let groups = syncs() - before;
    assert!(groups < 50, "100 waiting prepares took {groups} syncs");
}
