//! Scans and flushes of a chunk store on the disk that holds the temporary directory.

use std::{
    fs::File,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::datatypes::{Schema, SchemaRef};
use criterion::{BatchSize, Criterion, Throughput};
use hypertide_proto::{
    decision::{ChunkLink, Decision, Fate},
    ids::{AccessId, Boot, ChunkId, Csn, Epoch, TableId, TxnId},
    predicate::{Predicate, Term, Test, Value},
};
use hypertide_storage::{ChunkSpec, ChunkStore, Part, Scan, ScanRequest, StoreConfig, Top, batch};

use crate::{
    cpu::{self, Rows, VALUES},
    sizes,
};

const HOSTS: usize = 100;
/// A chunk of twelve hours.
const ROWS: usize = HOSTS * 4320;
/// Rows that are flushed at once.
const FLUSH_ROWS: usize = 80_000;
const BATCH_ROWS: usize = 10_000;

fn config(dir: &Path) -> StoreConfig {
    StoreConfig {
        flush_age: Duration::from_secs(3600),
        flush_bytes: 1 << 30,
        memory_bytes: 2 << 30,
        space_reserve_bytes: 0,
        ..StoreConfig::new(dir)
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

/// Brings rows into the store, a transaction a batch.
fn load(store: &ChunkStore, rows: usize) {
    let mut source = Rows::new(HOSTS, 1);
    block_on(async {
        for seq in 1..=(rows / BATCH_ROWS) as u64 {
            let encoded = batch::encode(&source.batch(BATCH_ROWS)).unwrap();
            let txn = TxnId { access: AccessId(1), boot: Boot(1), seq };
            let part = Part {
                spec: ChunkSpec {
                    chunk: ChunkId(1),
                    table: TableId(1),
                    time_column: Some("time".into()),
                    order_columns: vec!["hostname".into()],
                },
                epoch: Epoch(1),
                number: 0,
                rows: encoded.rows,
                hash: encoded.hash,
                payload: encoded.payload,
                decoded_bytes: encoded.decoded_bytes,
            };
            store.prepare(txn, vec![part]).await.unwrap();
            let links = vec![ChunkLink { chunk: ChunkId(1), prev: Csn(seq - 1) }];
            let fate = Fate::Committed { csn: Csn(seq), links };
            store.decide(&[Decision { txn, fate }]).unwrap();
        }
    });
}

fn columns(names: &[&str]) -> SchemaRef {
    let schema = cpu::schema();
    let field = |name: &&str| schema.field_with_name(name).unwrap().clone();
    Arc::new(Schema::new(names.iter().map(field).collect::<Vec<_>>()))
}

fn scan(store: &ChunkStore, columns: &SchemaRef, terms: Vec<Term>) -> Scan {
    let request = ScanRequest {
        chunk: ChunkId(1),
        snapshot: Csn(u64::MAX),
        own: None,
        columns: Arc::clone(columns),
        predicate: Predicate { terms },
    };
    store.scan(request).unwrap()
}

fn count(scan: Scan) -> usize {
    scan.map(|batch| batch.unwrap().num_rows()).sum()
}

/// Takes the pages of all files below a directory out of the system's memory.
fn drop_pages(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            drop_pages(&path);
            continue;
        }
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        let all = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        nix::fcntl::posix_fadvise(&file, 0, 0, all).unwrap();
    }
}

pub fn bench(criterion: &mut Criterion) {
    scans(criterion);
    flushes(criterion);
    rewrites(criterion);
}

fn scans(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    load(&store, ROWS);
    store.flush(&[]).unwrap();
    let metric = columns(&["usage_user"]);
    let mut group = criterion.benchmark_group("scan");
    group.sample_size(20).measurement_time(Duration::from_secs(3));
    group.throughput(Throughput::Elements(ROWS as u64));
    group.bench_function("one float column, warm", |bencher| {
        bencher.iter(|| assert_eq!(count(scan(&store, &metric, Vec::new())), ROWS));
    });
    let all = cpu::schema();
    group.throughput(Throughput::Elements((ROWS * VALUES) as u64));
    group.bench_function("all columns, warm", |bencher| {
        bencher.iter(|| assert_eq!(count(scan(&store, &all, Vec::new())), ROWS));
    });
    group.throughput(Throughput::Elements(1));
    let host =
        || Term { column: "hostname".into(), test: Test::In(vec![Value::Text("host_42".into())]) };
    group.bench_function("one series of 100, one column, warm", |bencher| {
        bencher.iter(|| assert_eq!(count(scan(&store, &metric, vec![host()])), ROWS / HOSTS));
    });
    let last = columns(&["time", "usage_user"]);
    let top = Top { column: "time".into(), descending: true, rows: 1 };
    group.bench_function("last row of a series, warm", |bencher| {
        bencher.iter(|| {
            assert_eq!(count(scan(&store, &last, vec![host()]).top(&top).unwrap()), 1);
        });
    });
    drop(store);
    group.sample_size(10).throughput(Throughput::Elements(ROWS as u64));
    group.bench_function("one float column, cold", |bencher| {
        let open = || {
            drop_pages(dir.path());
            ChunkStore::open(config(dir.path())).unwrap()
        };
        bencher.iter_batched(
            open,
            |store| {
                assert_eq!(count(scan(&store, &metric, Vec::new())), ROWS);
                store
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn flushes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("flush");
    group.sample_size(10).measurement_time(Duration::from_secs(8));
    group.throughput(Throughput::Elements((FLUSH_ROWS * VALUES) as u64));
    group.bench_function("80,000 rows to disk", |bencher| {
        bencher.iter_custom(|times| {
            let mut all = Duration::ZERO;
            for _ in 0..times {
                let dir = tempfile::tempdir().unwrap();
                let store = ChunkStore::open(config(dir.path())).unwrap();
                load(&store, FLUSH_ROWS);
                let start = Instant::now();
                store.flush(&[]).unwrap();
                all += start.elapsed();
            }
            all
        });
    });
    group.finish();
}

fn rewrites(criterion: &mut Criterion) {
    use hypertide_storage::segment::Effort;
    let rows = Rows::new(HOSTS, 1).batch(ROWS);
    let (rows, csns) = sizes::by_host(&rows, HOSTS);
    let mut group = criterion.benchmark_group("encode sorted rows");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    group.throughput(Throughput::Elements((ROWS * VALUES) as u64));
    for (effort, name) in [(Effort::Fast, "fast"), (Effort::Strong, "strong")] {
        group.bench_function(name, |bencher| bencher.iter(|| sizes::encode(&rows, &csns, effort)));
    }
    group.finish();
}
