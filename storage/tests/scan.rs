//! What a scan gives: exactly the columns asked for, the rows of its snapshot, and never too few after pruning.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{path::Path, sync::Arc, time::Duration};

use arrow::{
    array::{Array, AsArray},
    datatypes::{DataType, Field, Schema},
};
use hypertide_proto::{
    ids::{ChunkId, Csn},
    predicate::{Predicate, Term, Test, Value},
};
use hypertide_storage::{
    ChunkStore, CompressionSpec, Error, OLDER_ROWS_KEY, Scan, ScanRequest, StoreConfig, Top,
};

mod support;
use support::{disk::Machine, *};

const ROWS: i64 = 30_000;

/// Chunk 1 with segments of three commits and a recent one.
async fn filled(dir: &std::path::Path) -> Arc<ChunkStore> {
    let store = ChunkStore::open(config(dir)).unwrap();
    for id in 1..=4u64 {
        store.prepare(txn(id), vec![part(1, 0, &rows_of(id as i64, ROWS))]).await.unwrap();
        store.decide(&[commit(id, id * 10, &[(1, (id - 1) * 10)])]).unwrap();
        if id == 1 || id == 3 {
            store.flush(&[]).unwrap();
        }
    }
    store
}

fn passes(row: &Row, test: &Test, column: &str) -> bool {
    let value = match column {
        "time" => Some(Value::Int(row.0.into())),
        "device" => Some(Value::Text(row.1.clone())),
        _ => row.2.map(Value::Float),
    };
    let ordering = |other: &Value| value.as_ref().and_then(|value| value.compare(other));
    match test {
        Test::Lt(other) => ordering(other).is_some_and(|ordering| ordering.is_lt()),
        Test::LtEq(other) => ordering(other).is_some_and(|ordering| ordering.is_le()),
        Test::Gt(other) => ordering(other).is_some_and(|ordering| ordering.is_gt()),
        Test::GtEq(other) => ordering(other).is_some_and(|ordering| ordering.is_ge()),
        Test::In(others) => others.iter().any(|o| ordering(o).is_some_and(|o| o.is_eq())),
        Test::IsNull => value.is_none(),
        Test::IsNotNull => value.is_some(),
    }
}

#[tokio::test]
async fn exactly_the_rows_that_pass_come_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path()).await;
    let all = read(&store, request(1, 99)).unwrap();
    assert_eq!(all.len(), 4 * ROWS as usize);
    let time = |at: i64| Value::Int(at.into());
    let device = |name: &str| Value::Text(name.into());
    let cases = [
        ("time", Test::Lt(time(1_000_100))),
        ("time", Test::GtEq(time(3_000_000))),
        ("time", Test::In(vec![time(2_000_005)])),
        ("time", Test::In(vec![])),
        ("device", Test::In(vec![device("d1"), device("d3")])),
        ("device", Test::Gt(device("d3"))),
        ("device", Test::LtEq(device("a"))),
        ("reading", Test::IsNull),
        ("reading", Test::Gt(Value::Float(3000.0))),
        ("time", Test::Lt(time(i64::MIN))),
    ];
    let mut skipped = 0;
    for (column, test) in cases {
        let term = Term { column: column.into(), test: test.clone() };
        let predicate = Predicate { terms: vec![term] };
        for snapshot in [99, 25, 10, 5] {
            let request = ScanRequest { predicate: predicate.clone(), ..request(1, snapshot) };
            let mut scan = store.scan(request).unwrap();
            let mut found: Vec<Row> = Vec::new();
            for batch in scan.by_ref() {
                found.extend(rows_in(&batch.unwrap()));
            }
            skipped += scan.stats().segments_skipped + scan.stats().blocks_skipped;
            found.sort_by(|a, b| a.partial_cmp(b).unwrap());
            let visible = |row: &&Row| row.0 / 1_000_000 * 10 <= snapshot as i64;
            let expected: Vec<Row> =
                all.iter().filter(visible).filter(|r| passes(r, &test, column)).cloned().collect();
            assert_eq!(found, expected, "{column} {test:?} at {snapshot}");
        }
    }
    assert!(skipped > 20, "pruning left out {skipped}");
}

#[tokio::test]
async fn only_what_is_needed_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path()).await;
    let bytes = |columns: Vec<&str>, snapshot| {
        let fields: Vec<Field> = columns
            .into_iter()
            .map(|name| schema().field_with_name(name).unwrap().clone())
            .collect();
        let request =
            ScanRequest { columns: Arc::new(Schema::new(fields)), ..request(1, snapshot) };
        let mut scan = store.scan(request).unwrap();
        let rows: usize = scan.by_ref().map(|batch| batch.unwrap().num_rows()).sum();
        assert_eq!(scan.stats().rows, rows as u64);
        (rows, scan.stats().bytes_read)
    };
    let (rows, whole) = bytes(vec!["time", "device", "reading"], 99);
    assert_eq!(rows, 4 * ROWS as usize);
    // Without columns only the number of rows counts: nothing is read where all are visible.
    assert_eq!(bytes(vec![], 99), (4 * ROWS as usize, 0));
    assert!(bytes(vec![], 20).0 == 2 * ROWS as usize);
    assert!(bytes(vec!["device"], 99).1 <= whole);
    assert_eq!(bytes(vec!["time"], 9), (0, 0));
}

#[tokio::test]
async fn columns_come_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path()).await;
    let mut fields: Vec<Field> = schema().fields().iter().map(|f| f.as_ref().clone()).collect();
    fields.reverse();
    fields.push(Field::new("added", DataType::Int32, true));
    let columns = Arc::new(Schema::new(fields));
    let asked = ScanRequest { columns: Arc::clone(&columns), ..request(1, 99) };
    let mut rows = 0;
    for batch in store.scan(asked).unwrap() {
        let batch = batch.unwrap();
        assert_eq!(batch.schema(), columns);
        assert_eq!(batch.column(3).null_count(), batch.num_rows());
        rows += batch.num_rows();
    }
    assert_eq!(rows, 4 * ROWS as usize);
    let wrong = Arc::new(Schema::new(vec![Field::new("device", DataType::Int64, true)]));
    let asked = ScanRequest { columns: wrong, ..request(1, 99) };
    let refused = store.scan(asked).unwrap().next().unwrap().unwrap_err();
    assert!(matches!(&refused, Error::Invalid(what) if what.contains("\"device\"")), "{refused}");
    assert!(read(&store, request(77, 99)).unwrap().is_empty());
}

#[tokio::test]
async fn scans_see_one_moment_while_rows_are_written_and_flushed() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.flush_bytes = 1;
    let store = ChunkStore::open(config).unwrap();
    let reader = std::thread::spawn({
        let store = Arc::clone(&store);
        move || {
            let mut checked = 0;
            loop {
                let applied = store.report(&[]).first().map_or(0, |report| report.applied_csn.0);
                let rows = read(&store, request(1, applied)).unwrap();
                assert_eq!(rows.len() as u64, applied * 50, "at {applied}");
                checked += 1;
                if applied == 150 {
                    return checked;
                }
            }
        }
    });
    for id in 1..=150u64 {
        store.prepare(txn(id), vec![part(1, 0, &rows_of(id as i64, 50))]).await.unwrap();
        store.decide(&[commit(id, id, &[(1, id - 1)])]).unwrap();
    }
    assert!(tokio::task::spawn_blocking(|| reader.join().unwrap()).await.unwrap() > 5);
}

/// A chunk's first segments are read while its file is being made.
#[tokio::test]
async fn a_file_is_opened_once_while_it_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.flush_bytes = 1;
    let store = ChunkStore::open(config).unwrap();
    let last = 100;
    let read_all = |store: Arc<ChunkStore>| {
        move || {
            let mut chunk = 1;
            while chunk <= last {
                let report = store.report(&[ChunkId(chunk)]).pop();
                let rows = read(&store, request(chunk, last)).unwrap().len();
                assert!(rows == 0 || rows == 10, "{rows} rows of chunk {chunk}");
                chunk += u64::from(report.is_some_and(|report| report.segments > 0));
            }
        }
    };
    let readers = [(); 2].map(|()| std::thread::spawn(read_all(Arc::clone(&store))));
    for id in 1..=last {
        store.prepare(txn(id), vec![part(id, 0, &rows_of(id as i64, 10))]).await.unwrap();
        store.decide(&[commit(id, id, &[(id, 0)])]).unwrap();
    }
    let ended = tokio::task::spawn_blocking(|| readers.map(|reader| reader.join().is_ok()));
    assert_eq!(ended.await.unwrap(), [true, true]);
}

/// As [`filled`], with segments whose series have an index, and the recent rows.
async fn series(dir: &std::path::Path) -> (Arc<ChunkStore>, Vec<Row>) {
    let store = ChunkStore::open(config(dir)).unwrap();
    let mut all = Vec::new();
    for id in 1..=3u64 {
        let rows: Vec<Row> = (0..24_000i64)
            .map(|i| (id as i64 * 1_000_000 + i / 4, format!("d{}", i % 4), Some(i as f64 / 8.0)))
            .collect();
        store.prepare(txn(id), vec![part(1, 0, &rows)]).await.unwrap();
        store.decide(&[commit(id, id * 10, &[(1, (id - 1) * 10)])]).unwrap();
        if id < 3 {
            store.flush(&[]).unwrap();
        }
        all.extend(rows);
    }
    (store, all)
}

fn only(column: &str, test: Test) -> Predicate {
    Predicate { terms: vec![Term { column: column.into(), test }] }
}

#[tokio::test]
async fn the_rows_of_one_series_are_read_without_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let (store, all) = series(dir.path()).await;
    let asked = |predicate: Predicate| ScanRequest { predicate, ..request(1, 99) };
    let mut predicate = only("device", Test::In(vec![Value::Text("d2".into())]));
    let mut scan = store.scan(asked(predicate.clone())).unwrap();
    let mut found: Vec<Row> = scan.by_ref().flat_map(|batch| rows_in(&batch.unwrap())).collect();
    found.sort_by(|a, b| a.partial_cmp(b).unwrap());
    let mut expected: Vec<Row> = all.iter().filter(|row| row.1 == "d2").cloned().collect();
    expected.sort_by(|a, b| a.partial_cmp(b).unwrap());
    assert_eq!(found, expected);
    let stats = scan.stats();
    // A series of 6,000 rows is a block of its own; only recent rows are left out one by one.
    assert_eq!((stats.blocks, stats.blocks_skipped, stats.rows_skipped), (8, 6, 18_000));
    assert!(stats.bytes_skipped > 0, "{stats:?}");
    // Of a column that is not asked for nothing is given, and where no row passes nothing else is decoded.
    let odd = Test::In(vec![Value::Float(0.06)]);
    predicate.terms.push(Term { column: "reading".into(), test: odd });
    let columns = Arc::new(Schema::new(vec![schema().field(0).clone()]));
    let mut scan = store.scan(ScanRequest { columns, ..asked(predicate) }).unwrap();
    assert_eq!(scan.by_ref().map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 0);
    let none = only("device", Test::In(vec![Value::Text("d9".into())]));
    let mut scan = store.scan(asked(none)).unwrap();
    assert!(scan.by_ref().all(|batch| batch.unwrap().num_rows() == 0));
    assert_eq!(scan.stats().segments_skipped, 2);
    assert_eq!(scan.stats().bytes_read, 0);
}

#[tokio::test]
async fn the_last_rows_come_first_and_the_rest_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut all) = series(dir.path()).await;
    let top = |descending, rows| Top { column: "time".into(), descending, rows };
    all.sort_by_key(|row| row.0);
    let some = only("device", Test::In(vec![Value::Text("d1".into()), Value::Text("d3".into())]));
    for predicate in [Predicate::default(), some] {
        let passing = |row: &&Row| predicate.terms.is_empty() || row.1 == "d1" || row.1 == "d3";
        let times: Vec<i64> = all.iter().filter(passing).map(|row| row.0).collect();
        for snapshot in [25u64, 99] {
            let visible = |time: &&i64| **time / 1_000_000 * 10 <= snapshot as i64;
            let times: Vec<i64> = times.iter().filter(visible).copied().collect();
            for (descending, rows) in
                [(true, 1), (true, 7), (false, 1), (false, 100), (true, 30_000), (false, 99_999)]
            {
                let asked = ScanRequest { predicate: predicate.clone(), ..request(1, snapshot) };
                let mut scan = store.scan(asked).unwrap().top(&top(descending, rows)).unwrap();
                let found: Vec<i64> =
                    scan.by_ref().flat_map(|b| rows_in(&b.unwrap())).map(|row| row.0).collect();
                let mut expected = times.clone();
                if descending {
                    expected.reverse();
                }
                expected.truncate(rows);
                assert_eq!(found, expected, "{rows} {descending} at {snapshot}");
                if rows == 1 {
                    let stats = scan.stats();
                    assert!(stats.blocks_skipped >= stats.blocks / 2, "{stats:?}");
                }
            }
        }
    }
    let scan = |top: &Top| store.scan(request(1, 99)).unwrap().top(top);
    assert_eq!(scan(&top(true, 0)).unwrap().count(), 0);
    let unordered = Top { column: "device".into(), descending: true, rows: 1 };
    assert!(scan(&unordered).unwrap_err().to_string().contains("gives no order"));
    let absent = Top { column: "absent".into(), descending: true, rows: 1 };
    assert!(scan(&absent).unwrap_err().to_string().contains("must be read with it"));
}

#[tokio::test]
async fn a_limit_ends_a_scan() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = series(dir.path()).await;
    for limit in [0u64, 1, 6000, 6001, 50_000, 71_999, 72_000, 99_999] {
        let mut scan = store.scan(request(1, 99)).unwrap().limit(limit);
        let rows: usize = scan.by_ref().map(|batch| batch.unwrap().num_rows()).sum();
        assert_eq!(rows as u64, limit.min(72_000));
        assert_eq!(scan.stats().rows, limit.min(72_000));
    }
    let mut scan = store.scan(request(1, 99)).unwrap().limit(10);
    assert_eq!(scan.by_ref().count(), 1);
}

#[tokio::test]
async fn texts_come_as_dictionaries_where_that_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (store, all) = series(dir.path()).await;
    let text = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let field = Field::new("device", text, true);
    let columns = Arc::new(Schema::new(vec![field]));
    let predicate = only("device", Test::Gt(Value::Text("d0".into())));
    let asked = ScanRequest { columns: Arc::clone(&columns), predicate, ..request(1, 99) };
    let mut found: Vec<String> = Vec::new();
    for batch in store.scan(asked).unwrap() {
        let batch = batch.unwrap();
        assert_eq!(batch.schema(), columns);
        let plain = arrow::compute::cast(batch.column(0), &DataType::Utf8).unwrap();
        let plain = plain.as_string::<i32>();
        found.extend(plain.iter().map(|device| device.unwrap().to_owned()));
    }
    found.sort();
    let mut expected: Vec<String> = all.into_iter().map(|row| row.1).collect();
    expected.retain(|device| device != "d0");
    expected.sort();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn older_rows_have_the_value_that_the_reader_names() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path()).await;
    let with = |text: &str| {
        let value = [(OLDER_ROWS_KEY.to_owned(), text.to_owned())].into();
        let field = Field::new("added", DataType::Int32, true).with_metadata(value);
        let columns = Arc::new(Schema::new(vec![field]));
        store.scan(ScanRequest { columns, ..request(1, 99) }).unwrap()
    };
    let mut rows = 0;
    for batch in with("42") {
        let batch = batch.unwrap();
        let added = batch.column(0).as_primitive::<arrow::datatypes::Int32Type>();
        assert!(added.iter().all(|value| value == Some(42)));
        rows += added.len();
    }
    assert_eq!(rows, 4 * ROWS as usize);
    let refused = with("many").next().unwrap().unwrap_err();
    assert!(refused.to_string().contains("\"added\""), "{refused}");
}

#[tokio::test]
async fn a_scan_that_finds_nothing_says_so_now_and_then() {
    let dir = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    let rows: Vec<Row> = (0..300_000).map(|i| (i, "d".into(), Some((i % 100) as f64))).collect();
    store.prepare(txn(1), vec![part(1, 0, &rows)]).await.unwrap();
    store.decide(&[commit(1, 10, &[(1, 0)])]).unwrap();
    store.flush(&[]).unwrap();
    let predicate = only("reading", Test::In(vec![Value::Float(50.5)]));
    let mut scan = store.scan(ScanRequest { predicate, ..request(1, 99) }).unwrap();
    let first = scan.next().unwrap().unwrap();
    assert_eq!((first.num_rows(), first.schema()), (0, schema()));
    assert!(scan.stats().blocks_skipped == 0 && scan.stats().rows_skipped < 300_000);
    assert!(scan.by_ref().all(|batch| batch.unwrap().num_rows() == 0));
    assert_eq!(scan.stats().rows_skipped, 300_000);
}

#[tokio::test]
async fn a_summary_is_exact_or_not_given() {
    let dir = tempfile::tempdir().unwrap();
    let (store, all) = series(dir.path()).await;
    let chunk = ChunkId(1);
    // Recent rows, then rows that are newer than the snapshot.
    assert_eq!(store.summary(chunk, Csn(99)).unwrap(), None);
    assert_eq!(store.summary(chunk, Csn(15)).unwrap(), None);
    let stored = store.summary(chunk, Csn(25)).unwrap().expect("all of it is in segments");
    assert_eq!(stored.rows, 48_000);
    store.flush(&[]).unwrap();
    let summary = store.summary(chunk, Csn(99)).unwrap().expect("all of it is in segments");
    assert_eq!(summary.rows, all.len() as u64);
    let column = |name: &str| summary.columns[name].clone();
    let extremes = |min, max| Some(Some((min, max)));
    let time = column("time");
    assert_eq!(time.extremes, extremes(Value::Int(1_000_000), Value::Int(3_005_999)));
    assert!(time.distinct.abs_diff(18_000) < 3_600, "{time:?}");
    let device = column("device");
    assert_eq!(device.extremes, extremes(Value::Text("d0".into()), Value::Text("d3".into())));
    assert_eq!((device.distinct, device.nulls, device.sum), (4, 0, None));
    let reading = column("reading");
    assert_eq!(reading.extremes, extremes(Value::Float(0.0), Value::Float(23_999.0 / 8.0)));
    let none = store.summary(ChunkId(77), Csn(99)).unwrap().expect("nothing is exact");
    assert_eq!((none.rows, none.columns.len()), (0, 0));
}

/// Checks every way to read a chunk from which a delete took rows.
fn check_without(store: &ChunkStore, gone: &Gone, all: &[Row]) {
    let left = |row: &&Row| !gone.takes(row.0 as u64 / 1_000_000 * 10, row);
    let left: Vec<&Row> = all.iter().filter(left).collect();
    assert!(left.len() < all.len());
    // The columns of the delete are neither wanted nor asked about.
    let late = only("reading", Test::GtEq(Value::Float(1_000.0)));
    let columns = Arc::new(Schema::new(vec![schema().field(2).clone()]));
    let asked = ScanRequest { columns, predicate: late, ..request(1, 99) };
    let scan = store.scan(asked).unwrap();
    let count: usize = scan.map(|batch| batch.unwrap().num_rows()).sum();
    let passing = left.iter().filter(|row| row.2.is_some_and(|reading| reading >= 1_000.0));
    assert_eq!(count, passing.count());
    // By series, which have an index.
    for device in ["d1", "d3"] {
        let one = only("device", Test::In(vec![Value::Text(device.into())]));
        let rows = read(store, ScanRequest { predicate: one, ..request(1, 99) }).unwrap();
        assert_eq!(rows.len(), left.iter().filter(|row| row.1 == device).count(), "{device}");
    }
    // In order: the best rows are among those that are gone.
    let mut times: Vec<i64> = left.iter().map(|row| row.0).collect();
    times.sort_unstable();
    for (descending, rows) in [(true, 9), (false, 9), (true, 20_000)] {
        let top = Top { column: "time".into(), descending, rows };
        let scan = store.scan(request(1, 99)).unwrap().top(&top).unwrap();
        let found: Vec<i64> = scan.flat_map(|b| rows_in(&b.unwrap())).map(|row| row.0).collect();
        let mut expected = times.clone();
        if descending {
            expected.reverse();
        }
        expected.truncate(rows);
        assert_eq!(found, expected, "{rows} {descending}");
    }
}

#[tokio::test]
async fn deleted_rows_stay_out_of_every_way_to_read() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        StoreConfig { version_age: Duration::ZERO, background: false, ..config(dir.path()) };
    let store = ChunkStore::open(config).unwrap();
    let mut all = Vec::new();
    for id in 1..=3u64 {
        let rows: Vec<Row> = (0..24_000i64)
            .map(|i| (id as i64 * 1_000_000 + i / 4, format!("d{}", i % 4), Some(i as f64 / 8.0)))
            .collect();
        store.prepare(txn(id), vec![part(1, 0, &rows)]).await.unwrap();
        store.decide(&[commit(id, id * 10, &[(1, (id - 1) * 10)])]).unwrap();
        if id < 3 {
            store.flush(&[]).unwrap();
        }
        all.extend(rows);
    }
    let gone = Gone { snapshot: 30, device: "d3".into(), until: 3_005_999 };
    store.prepare(txn(4), vec![delete(1, 0, &gone)]).await.unwrap();
    // Not before it is committed.
    assert_eq!(read(&store, request(1, 99)).unwrap().len(), all.len());
    store.decide(&[commit(4, 40, &[(1, 30)])]).unwrap();
    // The delete and the last rows in memory, then all in segments, then the rows taken out.
    check_without(&store, &gone, &all);
    assert_eq!(store.summary(ChunkId(1), Csn(99)).unwrap(), None);
    store.flush(&[]).unwrap();
    check_without(&store, &gone, &all);
    assert_eq!(store.summary(ChunkId(1), Csn(99)).unwrap(), None, "the zones know the rows still");
    // The snapshot before the delete has them all.
    assert_eq!(read(&store, request(1, 39)).unwrap().len(), all.len());
    assert_eq!(store.summary(ChunkId(1), Csn(39)).unwrap().map(|found| found.rows), Some(72_000));
    let spec = CompressionSpec { segment_by: vec!["device".into()], ..CompressionSpec::default() };
    store.compress(ChunkId(1), spec).unwrap();
    check_without(&store, &gone, &all);
    let summary = store.summary(ChunkId(1), Csn(99)).unwrap().expect("nothing is left to delete");
    assert_eq!(summary.rows, 54_000);
    let texts = (Value::Text("d0".into()), Value::Text("d2".into()));
    assert_eq!(summary.columns["device"].extremes, Some(Some(texts)));
}

/// A store whose chunks from 1 on have a segment each.
async fn flushed(config: StoreConfig, machine: &Machine, chunks: u64) -> Arc<ChunkStore> {
    let store = ChunkStore::open_on(config, Arc::new(machine.clone())).unwrap();
    for chunk in 1..=chunks {
        store.prepare(txn(chunk), vec![part(chunk, 0, &rows_of(1, 3000))]).await.unwrap();
        store.decide(&[commit(chunk, chunk, &[(chunk, 0)])]).unwrap();
    }
    store.flush(&[]).unwrap();
    store
}

fn quiet() -> StoreConfig {
    StoreConfig { background: false, ..config(Path::new("/data")) }
}

#[tokio::test]
async fn many_chunks_are_read_again_without_opening_a_file() {
    let machine = Machine::default();
    let store = flushed(StoreConfig { open_files_max: 3, ..quiet() }, &machine, 40).await;
    let read_all = || {
        for chunk in 1..=40 {
            assert_eq!(read(&store, request(chunk, 99)).unwrap().len(), 3000);
        }
    };
    read_all();
    assert!(store.open_files() <= 3);
    let (calls, syncs) = (machine.calls(), machine.syncs());
    read_all();
    assert_eq!((machine.calls(), machine.syncs()), (calls, syncs), "nothing is asked of the disk");
    // A file that is opened to be read costs no sync, and is closed without one.
    store.close();
    let config = StoreConfig { open_files_max: 3, cache_bytes: 0, directory_bytes: 0, ..quiet() };
    let store = ChunkStore::open_on(config, Arc::new(machine.clone())).unwrap();
    // Waits for what the journal has to write.
    store.flush(&[]).unwrap();
    let (calls, syncs) = (machine.calls(), machine.syncs());
    for _ in 0..2 {
        for chunk in 1..=40 {
            assert_eq!(read(&store, request(chunk, 99)).unwrap().len(), 3000);
            assert!(store.open_files() <= 3);
        }
    }
    assert!(machine.calls() >= calls + 80, "every file was opened again");
    assert_eq!(machine.syncs(), syncs);
}

#[tokio::test]
async fn a_file_that_was_closed_under_a_scan_is_read_on_whatever_becomes_of_it() {
    let machine = Machine::default();
    let config = StoreConfig { open_files_max: 1, cache_bytes: 0, ..quiet() };
    let store = flushed(config, &machine, 4).await;
    let mut scans: Vec<Scan> =
        (1..=3).map(|chunk| store.scan(request(chunk, 99)).unwrap()).collect();
    assert_eq!(read(&store, request(4, 99)).unwrap().len(), 3000);
    assert_eq!(store.open_files(), 1, "those of the scans are closed");
    store.compress(ChunkId(1), CompressionSpec::default()).unwrap();
    store.drop_chunks(&[ChunkId(2)], Csn(100)).unwrap();
    store.close();
    for scan in &mut scans {
        let rows: usize = scan.map(|batch| batch.unwrap().num_rows()).sum();
        assert_eq!(rows, 3000);
    }
    drop(scans);
    assert_eq!(store.open_files(), 0);
}
