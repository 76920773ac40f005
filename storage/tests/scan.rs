//! What a scan gives: exactly the columns asked for, the rows of its snapshot, and never too few after pruning.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use hypertide_proto::predicate::{Predicate, Term, Test, Value};
use hypertide_storage::{ChunkStore, Error, ScanRequest};

mod support;
use support::*;

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
async fn pruning_never_loses_a_row() {
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
                found.extend(
                    rows_in(&batch.unwrap()).iter().filter(|r| passes(r, &test, column)).cloned(),
                );
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
