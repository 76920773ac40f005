//! The same random operations on the real store and on a map: what scans give must agree at every snapshot.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout)]

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use hypertide_proto::decision::chain_after;
use hypertide_proto::ids::{ChunkId, Csn};
use hypertide_storage::{
    ChunkState, ChunkStore, CompressionSpec, Error, OrderBy, Part, ScanRequest, StoreConfig,
    part_hash,
};

mod support;
use support::*;

const CHUNKS: u64 = 3;
/// Every commit there will ever be.
const ALL: u64 = u64::MAX - 1;

/// What a store must hold.
#[derive(Default)]
struct Model {
    /// Parts by transaction: chunk, number, rows or a delete.
    pending: BTreeMap<u64, Vec<(u64, u32, Content)>>,
    /// What came, by chunk and commit.
    committed: BTreeMap<u64, BTreeMap<u64, Vec<Content>>>,
    chains: BTreeMap<u64, u128>,
    compressed: BTreeMap<u64, bool>,
    next_txn: u64,
    next_csn: u64,
}

impl Model {
    /// Rows of a chunk at a snapshot; with the deletes of one who sees his own.
    fn rows(&self, chunk: u64, snapshot: u64, own: &[Gone]) -> Vec<Row> {
        let commits = self.committed.get(&chunk).into_iter().flat_map(|c| c.range(..=snapshot));
        let parts = commits.flat_map(|(csn, parts)| parts.iter().map(move |part| (*csn, part)));
        let parts: Vec<(u64, &Content)> = parts.collect();
        let deletes: Vec<&Gone> =
            parts.iter().filter_map(|(_, part)| part.gone()).chain(own).collect();
        let rows = parts.iter().flat_map(|(csn, part)| part.rows().iter().map(|row| (*csn, row)));
        let left = rows.filter(|(csn, row)| !deletes.iter().any(|gone| gone.takes(*csn, row)));
        sorted(left.map(|(_, row)| row.clone()).collect())
    }

    fn last(&self, chunk: u64) -> u64 {
        self.committed.get(&chunk).and_then(|c| c.last_key_value()).map_or(0, |(csn, _)| *csn)
    }

    /// The last commit that deleted from a chunk.
    fn last_delete(&self, chunk: u64) -> u64 {
        let deletes = |parts: &Vec<Content>| parts.iter().any(|part| part.gone().is_some());
        let commits = self.committed.get(&chunk).into_iter().flatten();
        commits.filter(|(_, parts)| deletes(parts)).map(|(csn, _)| *csn).max().unwrap_or(0)
    }

    fn delete_pending(&self, chunk: u64) -> bool {
        let mut parts = self.pending.values().flatten();
        parts.any(|part| part.0 == chunk && part.2.gone().is_some())
    }
}

fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by(|a, b| a.partial_cmp(b).unwrap());
    rows
}

fn encoded(parts: &[(u64, u32, Content)]) -> Vec<Part> {
    parts.iter().map(|(chunk, number, content)| content.part(*chunk, *number)).collect()
}

async fn prepare(store: &ChunkStore, model: &mut Model, random: &mut Random) {
    model.next_txn += 1;
    let id = model.next_txn;
    let mut parts = Vec::new();
    for chunk in 1..=CHUNKS {
        for number in 0..random.below(3) as u32 {
            let count = if random.below(20) == 0 { 9000 } else { 1 + random.below(50) as i64 };
            let rows = rows_of(id as i64 * 10 + i64::from(number), count);
            parts.push((chunk, number, Content::Rows(rows)));
        }
    }
    let sent = encoded(&parts);
    store.prepare(txn(id), sent.clone()).await.unwrap();
    if random.below(3) == 0 {
        store.prepare(txn(id), sent).await.unwrap(); // A repeat changes nothing.
    }
    if !parts.is_empty() {
        model.pending.insert(id, parts);
    }
}

/// Deletes from a chunk and brings rows in one transaction, as an update does. Refused when it crosses another.
async fn delete(store: &ChunkStore, model: &mut Model, random: &mut Random) {
    model.next_txn += 1;
    let (id, chunk) = (model.next_txn, 1 + random.below(CHUNKS));
    let gone = Gone {
        snapshot: model.next_csn - random.below(model.next_csn / 4 + 1),
        device: format!("d{}", random.below(5)),
        until: random.below(model.next_txn * 12) as i64 * 1_000_000,
    };
    let crosses = model.delete_pending(chunk) || model.last_delete(chunk) > gone.snapshot;
    let rows = Content::Rows(rows_of(id as i64 * 10, 4));
    let parts = vec![(chunk, 0, Content::Delete(gone)), (chunk, 1, rows)];
    match store.prepare(txn(id), encoded(&parts)).await {
        Ok(()) => {
            assert!(!crosses, "two deletes from chunk {chunk} cross");
            model.pending.insert(id, parts);
        }
        Err(Error::Contended { .. } | Error::Reserved { .. }) => {
            assert!(crosses, "a delete from chunk {chunk} is refused without a reason");
        }
        Err(error) => panic!("{error}"),
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
        let mut by_chunk: BTreeMap<u64, (Vec<u128>, Vec<Content>)> = BTreeMap::new();
        for (chunk, number, content) in parts {
            let entry = by_chunk.entry(chunk).or_default();
            entry.0.push(content.part(chunk, number).hash);
            entry.1.push(content);
        }
        for (chunk, (hashes, contents)) in by_chunk {
            links.push((chunk, model.last(chunk)));
            let chain = model.chains.entry(chunk).or_default();
            *chain = chain_after(*chain, Csn(csn), part_hash(hashes.into_iter()));
            model.committed.entry(chunk).or_default().insert(csn, contents);
        }
        decisions.push(commit(id, csn, &links));
    }
    for at in (1..decisions.len()).rev() {
        decisions.swap(at, random.below(at as u64 + 1) as usize);
    }
    store.decide(&decisions).unwrap();
    store.decide(&decisions).unwrap(); // A repeat changes nothing.
}

fn rewrite(store: &ChunkStore, model: &mut Model, random: &mut Random) {
    let chunk = 1 + random.below(CHUNKS);
    if store.report(&[ChunkId(chunk)]).is_empty() {
        return;
    }
    let compress = random.below(3) > 0;
    let report = if compress {
        let descending = random.below(2) == 0;
        let time = OrderBy { column: "time".into(), descending, nulls_first: false };
        let spec = CompressionSpec { segment_by: vec!["device".into()], order_by: vec![time] };
        store.compress(ChunkId(chunk), spec).unwrap()
    } else {
        store.decompress(ChunkId(chunk)).unwrap()
    };
    // Commits whose predecessor is not known here yet cannot be in it.
    let states = match (compress, report.recent_rows) {
        (true, 0) => [ChunkState::Compressed],
        (true, _) => [ChunkState::Partial],
        (false, _) => [ChunkState::Plain],
    };
    assert!(states.contains(&report.state), "{report:?}");
    model.compressed.insert(chunk, compress);
}

/// What a scan gives, if the store still has the snapshot; it may lack only those before a delete.
fn found(store: &ChunkStore, model: &Model, request: ScanRequest) -> Option<Vec<Row>> {
    let (chunk, snapshot) = (request.chunk.0, request.snapshot.0);
    match read(store, request) {
        Err(Error::SnapshotTooOld { .. }) => {
            assert!(model.last_delete(chunk) > snapshot, "chunk {chunk} at {snapshot}");
            None
        }
        found => Some(found.unwrap()),
    }
}

fn check(store: &ChunkStore, model: &Model, random: &mut Random) {
    for chunk in 1..=CHUNKS {
        for snapshot in [ALL, random.below(model.next_csn + 2)] {
            if let Some(found) = found(store, model, request(chunk, snapshot)) {
                assert_eq!(found, model.rows(chunk, snapshot, &[]), "chunk {chunk} at {snapshot}");
            }
        }
        let compressed = model.compressed.get(&chunk).copied().unwrap_or(false);
        if let Some(report) = store.report(&[ChunkId(chunk)]).first() {
            assert_eq!(report.state != ChunkState::Plain, compressed, "{report:?}");
        }
    }
    for (id, parts) in &model.pending {
        for chunk in 1..=CHUNKS {
            let own: Vec<&Content> =
                parts.iter().filter(|part| part.0 == chunk).map(|part| &part.2).collect();
            let gone: Vec<Gone> = own.iter().filter_map(|part| part.gone()).cloned().collect();
            let mut expected = model.rows(chunk, ALL, &gone);
            expected.extend(own.iter().flat_map(|part| part.rows().to_vec()));
            let request = ScanRequest { own: Some(txn(*id)), ..request(chunk, ALL) };
            assert_eq!(found(store, model, request), Some(sorted(expected)), "own of {id}");
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
        assert_eq!(report.recent_rows, 0);
        // Rows that were deleted count until they are gone.
        let commits = model.committed.get(&chunk).into_iter().flatten();
        let came: usize = commits.flat_map(|(_, parts)| parts).map(|p| p.rows().len()).sum();
        let left = model.rows(chunk, ALL, &[]).len();
        assert!((left..=came).contains(&(report.rows as usize)), "{report:?}: {left} of {came}");
        let checked = store.check(report.chunk).unwrap();
        assert_eq!((checked.faults, checked.chain), (vec![], report.chain));
    }
}

async fn run(seed: u64, steps: usize) {
    println!("seed {seed}");
    let dir = tempfile::tempdir().unwrap();
    // With some seeds deleted rows go as soon as they can, with others never.
    let version_age = Duration::from_secs(3600 * (seed % 2));
    let config = StoreConfig { flush_bytes: 4096, version_age, ..config(dir.path()) };
    let mut store: Arc<ChunkStore> = ChunkStore::open(config.clone()).unwrap();
    let (mut model, mut random) = (Model::default(), Random(seed));
    for _ in 0..steps {
        match random.below(14) {
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
            9 => rewrite(&store, &mut model, &mut random),
            10..=11 => delete(&store, &mut model, &mut random).await,
            12 => store.merge(ChunkId(1 + random.below(CHUNKS))).unwrap(),
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
    if version_age.is_zero() {
        for report in store.report(&[]) {
            let report = store.compress(report.chunk, CompressionSpec::default()).unwrap();
            let left = model.rows(report.chunk.0, ALL, &[]).len();
            assert_eq!(report.rows as usize, left, "deleted rows are gone: {report:?}");
        }
    }
}

#[tokio::test]
async fn random_operations_agree_with_the_model() {
    for seed in 0..8 {
        run(seed, 60).await;
    }
}

#[tokio::test]
async fn deleted_rows_go_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { version_age: Duration::ZERO, ..config(dir.path()) };
    let store = ChunkStore::open(config).unwrap();
    let rows = rows_of(1, 500);
    store.prepare(txn(1), vec![part(1, 0, &rows)]).await.unwrap();
    store.decide(&[commit(1, 1, &[(1, 0)])]).unwrap();
    store.flush(&[]).unwrap();
    let gone = Gone { snapshot: 1, device: "d1".into(), until: i64::MAX };
    store.prepare(txn(2), vec![delete_part(&gone)]).await.unwrap();
    assert_eq!(read(&store, request(1, 9)).unwrap().len(), 500, "it is not decided yet");
    store.decide(&[commit(2, 2, &[(1, 1)])]).unwrap();
    assert_eq!(read(&store, request(1, 2)).unwrap().len(), 400);
    assert_eq!(read(&store, request(1, 1)).unwrap().len(), 500, "the snapshot before it stays");
    store.flush(&[]).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while store.report(&[])[0].rows > 400 {
        assert!(Instant::now() < deadline, "{:?}", store.report(&[]));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(read(&store, request(1, 2)).unwrap().len(), 400);
    let refused = read(&store, request(1, 1)).unwrap_err();
    let told = "chunk c1 can be read from commit 2 on, not at 1";
    assert_eq!(refused.to_string(), told);
    let chunk = store.check(ChunkId(1)).unwrap();
    assert_eq!((chunk.rows, chunk.faults), (400, vec![]));
}

fn delete_part(gone: &Gone) -> Part {
    support::delete(1, 0, gone)
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
