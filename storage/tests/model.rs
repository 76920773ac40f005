//! The same random operations on the real store and on a map: what scans give must agree at every snapshot.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{collections::BTreeMap, sync::Arc};

use hypertide_proto::decision::chain_after;
use hypertide_proto::ids::{ChunkId, Csn};
use hypertide_storage::{ChunkStore, StoreConfig, part_hash};

mod support;
use support::*;

const CHUNKS: u64 = 3;

/// What a store must hold.
#[derive(Default)]
struct Model {
    /// Parts by transaction: chunk, number, rows.
    pending: BTreeMap<u64, Vec<(u64, u32, Vec<Row>)>>,
    /// Rows by chunk and commit.
    committed: BTreeMap<u64, BTreeMap<u64, Vec<Row>>>,
    chains: BTreeMap<u64, u128>,
    next_txn: u64,
    next_csn: u64,
}

impl Model {
    fn rows(&self, chunk: u64, snapshot: u64) -> Vec<Row> {
        let commits = self.committed.get(&chunk).into_iter().flat_map(|c| c.range(..=snapshot));
        sorted(commits.flat_map(|(_, rows)| rows.clone()).collect())
    }

    fn last(&self, chunk: u64) -> u64 {
        self.committed.get(&chunk).and_then(|c| c.last_key_value()).map_or(0, |(csn, _)| *csn)
    }
}

fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by(|a, b| a.partial_cmp(b).unwrap());
    rows
}

async fn prepare(store: &ChunkStore, model: &mut Model, random: &mut Random) {
    model.next_txn += 1;
    let id = model.next_txn;
    let mut parts = Vec::new();
    for chunk in 1..=CHUNKS {
        for number in 0..random.below(3) as u32 {
            let count = if random.below(20) == 0 { 9000 } else { 1 + random.below(50) as i64 };
            parts.push((chunk, number, rows_of(id as i64 * 10 + i64::from(number), count)));
        }
    }
    let sent: Vec<_> =
        parts.iter().map(|(chunk, number, rows)| part(*chunk, *number, rows)).collect();
    store.prepare(txn(id), sent.clone()).await.unwrap();
    if random.below(3) == 0 {
        store.prepare(txn(id), sent).await.unwrap(); // A repeat changes nothing.
    }
    if !parts.is_empty() {
        model.pending.insert(id, parts);
    }
}

/// Decides some pending transactions, told in any order.
fn decide(store: &ChunkStore, model: &mut Model, random: &mut Random) {
    let mut decisions = Vec::new();
    let ids: Vec<u64> = model.pending.keys().copied().filter(|_| random.below(2) == 0).collect();
    for id in ids {
        let parts = model.pending.remove(&id).unwrap();
        if random.below(4) == 0 {
            decisions.push(abort(id));
            continue;
        }
        model.next_csn += 1 + random.below(5);
        let csn = model.next_csn;
        let mut links = Vec::new();
        let mut by_chunk: BTreeMap<u64, (Vec<u128>, Vec<Row>)> = BTreeMap::new();
        for (chunk, number, rows) in parts {
            let entry = by_chunk.entry(chunk).or_default();
            entry.0.push(part(chunk, number, &rows).hash);
            entry.1.extend(rows);
        }
        for (chunk, (hashes, rows)) in by_chunk {
            links.push((chunk, model.last(chunk)));
            let chain = model.chains.entry(chunk).or_default();
            *chain = chain_after(*chain, Csn(csn), part_hash(hashes.into_iter()));
            model.committed.entry(chunk).or_default().insert(csn, rows);
        }
        decisions.push(commit(id, csn, &links));
    }
    for at in (1..decisions.len()).rev() {
        decisions.swap(at, random.below(at as u64 + 1) as usize);
    }
    store.decide(&decisions).unwrap();
    store.decide(&decisions).unwrap(); // A repeat changes nothing.
}

fn check(store: &ChunkStore, model: &Model, random: &mut Random) {
    for chunk in 1..=CHUNKS {
        for snapshot in [u64::MAX - 1, random.below(model.next_csn + 2)] {
            let found = read(store, request(chunk, snapshot)).unwrap();
            assert_eq!(found, model.rows(chunk, snapshot), "chunk {chunk} at {snapshot}");
        }
    }
    for (id, parts) in &model.pending {
        for chunk in 1..=CHUNKS {
            let own = parts.iter().filter(|part| part.0 == chunk).flat_map(|part| part.2.clone());
            let mut expected = model.rows(chunk, u64::MAX - 1);
            expected.extend(own);
            let request = hypertide_storage::ScanRequest {
                own: Some(txn(*id)),
                ..request(chunk, u64::MAX - 1)
            };
            assert_eq!(read(store, request).unwrap(), sorted(expected));
        }
    }
    let mut pending: Vec<u64> = store.pending(&[]).iter().map(|(txn, _)| txn.seq).collect();
    pending.sort_unstable();
    assert_eq!(pending, model.pending.keys().copied().collect::<Vec<_>>());
}

fn check_chains(store: &ChunkStore, model: &Model) {
    store.flush(&[]).unwrap();
    for report in store.report(&[]) {
        let chunk = report.chunk.0;
        assert_eq!(report.applied_csn.0, model.last(chunk));
        assert_eq!(report.chain, model.chains.get(&chunk).copied().unwrap_or(0));
        assert_eq!(report.rows, model.rows(chunk, u64::MAX - 1).len() as u64);
        assert_eq!(report.recent_rows, 0);
    }
}

async fn run(seed: u64, steps: usize) {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { flush_bytes: 4096, ..config(dir.path()) };
    let mut store: Arc<ChunkStore> = ChunkStore::open(config.clone()).unwrap();
    let (mut model, mut random) = (Model::default(), Random(seed));
    for _ in 0..steps {
        match random.below(10) {
            0..=3 => prepare(&store, &mut model, &mut random).await,
            4..=6 => decide(&store, &mut model, &mut random),
            7 => store.flush(&[ChunkId(1 + random.below(CHUNKS))]).unwrap(),
            8 => {
                if random.below(2) == 0 {
                    store.close();
                }
                drop(store);
                // A decision that was not durable yet is asked about again, as a data node does it.
                store = ChunkStore::open(config.clone()).unwrap();
            }
            _ => check(&store, &model, &mut random),
        }
    }
    check(&store, &model, &mut random);
    check_chains(&store, &model);
    check(&store, &model, &mut random);
    drop(store);
    let store = ChunkStore::open(config).unwrap();
    check(&store, &model, &mut random);
    check_chains(&store, &model);
}

#[tokio::test]
async fn random_operations_agree_with_the_model() {
    for seed in 0..12 {
        run(seed, 60).await;
    }
}

#[tokio::test]
async fn many_flushes_are_merged_into_few_segments() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { flush_bytes: 1, ..config(dir.path()) };
    let store = ChunkStore::open(config).unwrap();
    let mut expected = Vec::new();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    for id in 1..=30u64 {
        let rows = rows_of(id as i64, 20);
        store.prepare(txn(id), vec![part(1, 0, &rows)]).await.unwrap();
        store.decide(&[commit(id, id, &[(1, id - 1)])]).unwrap();
        expected.extend(rows);
        store.flush(&[]).unwrap();
    }
    let more = rows_of(31, 5);
    store.prepare(txn(31), vec![part(1, 0, &more)]).await.unwrap();
    store.decide(&[commit(31, 31, &[(1, 30)])]).unwrap();
    expected.extend(more);
    let open_scan = store.scan(request(1, 31)).unwrap();
    while store.report(&[])[0].segments > 12 || store.report(&[])[0].recent_rows > 0 {
        assert!(std::time::Instant::now() < deadline, "{:?}", store.report(&[]));
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        assert_eq!(read(&store, request(1, 31)).unwrap().len(), expected.len());
    }
    // A scan that began before the merge reads the segments it began with.
    let old: usize = open_scan.map(|batch| batch.unwrap().num_rows()).sum();
    assert_eq!(old, expected.len());
    assert_eq!(read(&store, request(1, 31)).unwrap(), sorted(expected.clone()));
    assert_eq!(read(&store, request(1, 10)).unwrap(), sorted(expected[..200].to_vec()));
}
