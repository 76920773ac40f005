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
use hypertide_storage::{
    ChunkSpec, ChunkStore, CompressionSpec, OrderBy, Part, Scan, ScanRequest, StoreConfig, Top,
    batch,
};

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

/// Brings rows into the store's chunk 1.
fn load(store: &ChunkStore, rows: usize) {
    load_chunk(store, 1, (&mut Rows::new(HOSTS, 1), rows));
}

/// Brings rows into a chunk, a transaction a batch.
fn load_chunk(store: &ChunkStore, chunk: u64, (source, rows): (&mut Rows, usize)) {
    block_on(async {
        for seq in 1..=rows.div_ceil(BATCH_ROWS) as u64 {
            let left = rows - (seq as usize - 1) * BATCH_ROWS;
            let encoded = batch::encode(&source.batch(left.min(BATCH_ROWS))).unwrap();
            let txn = TxnId { access: AccessId(1), boot: Boot(chunk), seq };
            let part = Part {
                spec: ChunkSpec {
                    chunk: ChunkId(chunk),
                    table: TableId(1),
                    time_column: Some("time".into()),
                    order_columns: vec!["hostname".into()],
                    origin: Default::default(),
                },
                epoch: Epoch(1),
                number: 0,
                rows: encoded.rows,
                hash: encoded.hash,
                payload: encoded.payload,
                decoded_bytes: encoded.decoded_bytes,
            };
            store.prepare(txn, vec![part]).await.unwrap();
            let links = vec![ChunkLink { chunk: ChunkId(chunk), prev: Csn(seq - 1) }];
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
    scan_chunk(store, 1, (columns, terms))
}

fn scan_chunk(store: &ChunkStore, chunk: u64, (columns, terms): (&SchemaRef, Vec<Term>)) -> Scan {
    let request = ScanRequest {
        chunk: ChunkId(chunk),
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
    many_chunks(criterion);
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

/// The same column of many small chunks, as a query over years of weeks reads it.
fn many_chunks(criterion: &mut Criterion) {
    const CHUNKS: u64 = 420;
    const CHUNK_ROWS: usize = 7;
    let dir = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    let mut rows = Rows::new(1, 1);
    (1..=CHUNKS).for_each(|chunk| load_chunk(&store, chunk, (&mut rows, CHUNK_ROWS)));
    let metric = columns(&["usage_user"]);
    let all = |store: &ChunkStore| {
        let rows = (1..=CHUNKS).map(|chunk| count(scan_chunk(store, chunk, (&metric, Vec::new()))));
        assert_eq!(rows.sum::<usize>(), CHUNKS as usize * CHUNK_ROWS);
    };
    let mut group = criterion.benchmark_group("scan of 420 chunks of 7 rows");
    group.sample_size(10).measurement_time(Duration::from_secs(2));
    group.throughput(Throughput::Elements(CHUNKS));
    group.bench_function("recent", |bencher| bencher.iter(|| all(&store)));
    store.flush(&[]).unwrap();
    group.bench_function("warm", |bencher| bencher.iter(|| all(&store)));
    drop(store);
    group.bench_function("first after a start", |bencher| {
        let open = || ChunkStore::open(config(dir.path())).unwrap();
        bencher.iter_batched(
            open,
            |store| {
                all(&store);
                store
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// What the standard set takes on disk: its chunk files, with all that is in them.
pub fn print_disk() {
    let dir = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    let mut rows = Rows::new(HOSTS, 1);
    let time = OrderBy { column: "time".into(), descending: true, nulls_first: true };
    let spec = CompressionSpec { segment_by: vec!["hostname".into()], order_by: vec![time] };
    let (mut flushing, mut compressing) = (Duration::ZERO, Duration::ZERO);
    for chunk in 1..=(cpu::STANDARD_ROWS / ROWS) as u64 {
        load_chunk(&store, chunk, (&mut rows, ROWS));
        let start = Instant::now();
        store.flush(&[]).unwrap();
        flushing += start.elapsed();
        let start = Instant::now();
        store.compress(ChunkId(chunk), spec.clone()).unwrap();
        compressing += start.elapsed();
    }
    let encoded: u64 = store.report(&[]).iter().map(|report| report.segment_bytes).sum();
    drop(store);
    let files = std::fs::read_dir(dir.path().join("chunks")).unwrap();
    let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    let rate = |time: Duration| (cpu::STANDARD_ROWS * VALUES) as f64 / time.as_secs_f64() / 1e6;
    println!(
        "{} rows of {HOSTS} hosts, compressed: {:.2} MB in chunk files, {:.2} MB of it encoded; flushed at {:.1} M \
         values/s, compressed at {:.1} M",
        cpu::STANDARD_ROWS,
        bytes as f64 / 1e6,
        encoded as f64 / 1e6,
        rate(flushing),
        rate(compressing),
    );
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
