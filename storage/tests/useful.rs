//! What a scan leaves out because its reader has no use for it, or because zone maps tell it: with what it still gives,
//! the answer is that of all rows.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{collections::BTreeMap, sync::Arc};

use hypertide_proto::predicate::{Predicate, Term, Test, Value};
use hypertide_storage::{
    Asked, ChunkStore, CompressionSpec, Latest, LatestBy, Scan, ScanRequest, Seen,
};

mod support;
use support::*;

const ROWS: i64 = 30_000;

/// Chunk 1: two flushed commits, a delete of rows of the first, and a recent one.
async fn filled(dir: &std::path::Path) -> Arc<ChunkStore> {
    let store = ChunkStore::open(config(dir)).unwrap();
    for id in 1..=2u64 {
        store.prepare(txn(id), vec![part(1, 0, &rows_of(id as i64, ROWS))]).await.unwrap();
        store.decide(&[commit(id, id * 10, &[(1, (id - 1) * 10)])]).unwrap();
        store.flush(&[]).unwrap();
    }
    let gone = Gone { snapshot: 20, device: "d1".into(), until: 1_010_000 };
    store.prepare(txn(3), vec![delete(1, 0, &gone)]).await.unwrap();
    store.decide(&[commit(3, 30, &[(1, 20)])]).unwrap();
    store.prepare(txn(4), vec![part(1, 0, &rows_of(4, 100))]).await.unwrap();
    store.decide(&[commit(4, 40, &[(1, 30)])]).unwrap();
    store
}

fn term(column: &str, test: Test) -> Term {
    Term { column: column.into(), test }
}

fn predicates() -> Vec<Predicate> {
    let time = |at: i64| Value::Int(at.into());
    let device = |name: &str| Test::In(vec![Value::Text(name.into())]);
    let lists = [
        vec![],
        vec![term("time", Test::GtEq(time(1_000_000)))],
        vec![term("time", Test::GtEq(time(1_012_345))), term("time", Test::Lt(time(2_020_001)))],
        vec![term("device", device("d3"))],
        vec![term("device", device("d1")), term("time", Test::Lt(time(2_000_000)))],
        vec![term("reading", Test::IsNull)],
        vec![term("reading", Test::Gt(Value::Float(3000.0)))],
        vec![term("time", Test::Gt(time(9_000_000)))],
    ];
    lists.into_iter().map(|terms| Predicate { terms }).collect()
}

fn rest(scan: &mut Scan) -> Vec<Row> {
    scan.flat_map(|batch| rows_in(&batch.unwrap())).collect()
}

/// Each kind of chunk, each predicate, each snapshot.
async fn each(mut check: impl FnMut(&ChunkStore, &ScanRequest, Vec<Row>)) {
    for compressed in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let store = filled(dir.path()).await;
        if compressed {
            let segment_by = vec!["device".to_owned()];
            let spec = CompressionSpec { segment_by, order_by: vec![] };
            store.compress(hypertide_proto::ids::ChunkId(1), spec).unwrap();
            store.prepare(txn(5), vec![part(1, 0, &rows_of(5, 50))]).await.unwrap();
            store.decide(&[commit(5, 50, &[(1, 40)])]).unwrap();
        }
        for predicate in predicates() {
            for snapshot in [99, 40, 30, 20, 10, 5] {
                let asked = ScanRequest { predicate: predicate.clone(), ..request(1, snapshot) };
                // What has no snapshot as old any more is not asked for.
                let Ok(all) = read(&store, asked.clone()) else { continue };
                check(&store, &asked, all);
            }
        }
    }
}

#[tokio::test]
async fn answers_and_the_rest_are_all_rows() {
    let mut told = 0;
    each(|store, request, all| {
        let asked = [
            Asked { column: "time".into(), extremes: true, sum: false },
            Asked { column: "reading".into(), extremes: true, sum: false },
            Asked { column: "device".into(), extremes: false, sum: false },
        ];
        let mut scan = store.scan(request.clone()).unwrap();
        let answer = scan.answer(&asked);
        told += answer.rows;
        let rest = rest(&mut scan);
        assert_eq!(answer.rows + rest.len() as u64, all.len() as u64, "{request:?}");
        let (min, max) = (&answer.columns[0].min, &answer.columns[0].max);
        let times = |rows: &[Row]| -> Vec<i64> { rows.iter().map(|row| row.0).collect() };
        let mut found = times(&rest);
        for edge in [min, max] {
            if let Some(Value::Int(edge)) = edge {
                found.push(*edge as i64);
            }
        }
        assert_eq!(found.iter().min(), times(&all).iter().min());
        assert_eq!(found.iter().max(), times(&all).iter().max());
        let nulls = |rows: &[Row]| rows.iter().filter(|row| row.2.is_none()).count() as u64;
        assert_eq!(answer.columns[1].nulls + nulls(&rest), nulls(&all));
    })
    .await;
    assert!(told > 100_000, "zone maps told of {told} rows");
}

#[tokio::test]
async fn the_last_rows_of_each_device_come_out() {
    let mut skipped = 0;
    each(|store, request, all| {
        for descending in [true, false] {
            for keys in [vec!["device".to_owned()], vec![]] {
                let by = Some(LatestBy { column: "time".into(), descending });
                let latest = Latest { keys: keys.clone(), by };
                let scan = store.scan(request.clone()).unwrap();
                let mut scan = scan.latest(latest, Arc::new(Seen::default()));
                let found = best(&rest(&mut scan), &keys, descending);
                assert_eq!(found, best(&all, &keys, descending), "{request:?}");
                skipped += scan.stats().blocks_skipped;
            }
        }
        let latest = Latest { keys: vec!["device".into()], by: None };
        let scan = store.scan(request.clone()).unwrap();
        let mut found: Vec<String> = rest(&mut scan.latest(latest, Arc::new(Seen::default())))
            .into_iter()
            .map(|row| row.1)
            .collect();
        let mut devices: Vec<String> = all.into_iter().map(|row| row.1).collect();
        for names in [&mut found, &mut devices] {
            names.sort();
            names.dedup();
        }
        assert_eq!(found, devices, "{request:?}");
    })
    .await;
    assert!(skipped > 50, "{skipped} blocks were skipped");
}

/// All rows at the best time of each key.
fn best(rows: &[Row], keys: &[String], descending: bool) -> BTreeMap<String, Vec<Row>> {
    let mut best: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for row in rows {
        let key = if keys.is_empty() { String::new() } else { row.1.clone() };
        let kept = best.entry(key).or_default();
        let order = kept.first().map(|kept| row.0.cmp(&kept.0));
        match order.map(|order| if descending { order } else { order.reverse() }) {
            Some(order) if order.is_lt() => {}
            Some(order) if order.is_eq() => kept.push(row.clone()),
            _ => *kept = vec![row.clone()],
        }
    }
    best.values_mut().for_each(|rows| rows.sort_by(|a, b| a.partial_cmp(b).unwrap()));
    best
}

#[tokio::test]
async fn a_reader_that_tells_its_bar_gets_the_first_rows() {
    let mut skipped = 0;
    each(|store, request, all| {
        for descending in [true, false] {
            let wanted = 10;
            let mut scan = store.scan(request.clone()).unwrap().ordered("time", descending);
            let mut found: Vec<i64> = Vec::new();
            while let Some(batch) = scan.next() {
                found.extend(rows_in(&batch.unwrap()).iter().map(|row| row.0));
                found.sort_unstable();
                if descending {
                    found.reverse();
                }
                found.truncate(wanted);
                if let Some(bar) = found.get(wanted - 1) {
                    let bar = Value::Int((*bar).into());
                    let test = if descending { Test::Gt(bar) } else { Test::Lt(bar) };
                    scan.narrow(vec![term("time", test)]);
                }
            }
            let mut times: Vec<i64> = all.iter().map(|row| row.0).collect();
            times.sort_unstable();
            if descending {
                times.reverse();
            }
            times.truncate(wanted);
            assert_eq!(found, times, "{request:?}");
            skipped += scan.stats().blocks_skipped;
        }
    })
    .await;
    assert!(skipped > 100, "{skipped} blocks were skipped");
}
