//! Every way to read against a model: a table whose columns come and go, whose chunk is written, deleted from,
//! compressed, removed and taken back, read at random snapshots with random predicates.
//!
//! The model is a list of rows with what each column held when the row came, and the commit that brought and the one that
//! deleted it. What a scan leaves out, because its reader has no use for it or because zone maps told it, is added to
//! what it gives before the two are compared.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use arrow::{
    array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray},
    datatypes::SchemaRef,
};
use hypertide_proto::{
    ids::{ChunkId, Csn, Epoch},
    predicate::{Predicate, Term, Test, Value},
    schema::{Column, ColumnType, TableSchema},
};
use hypertide_storage::{
    Asked, ChunkStore, CompressionSpec, Error, Latest, LatestBy, OrderBy, Part, Scan, ScanRequest,
    Seen, StoreConfig, Tombstone, Top, batch,
};

mod support;
use support::{Random, abort, commit, config, spec, txn};

const CHUNK: u64 = 1;

/// A row as its table has it now: time, device, and the other columns in their order.
type Shown = (i64, String, Vec<Option<i64>>);

/// A row as it came.
#[derive(Clone, Debug)]
struct Came {
    csn: u64,
    /// The commit that deleted it.
    gone: Option<u64>,
    time: i64,
    device: String,
    values: BTreeMap<String, Option<i64>>,
}

/// The table, and all that was committed.
struct Model {
    random: Random,
    /// Columns beside time and device; what rows have that are older than the column.
    columns: Vec<(String, Option<i64>)>,
    columns_made: u64,
    rows: Vec<Came>,
    csn: u64,
    txn: u64,
    /// The last commit that deleted.
    deleted: u64,
    /// From here on the catalog has the chunk no more; `None` while it has it.
    removed: Option<u64>,
}

fn schema_of(columns: &[(String, Option<i64>)]) -> SchemaRef {
    let mut all =
        vec![Column::new("time", ColumnType::TimestampTz), Column::new("device", ColumnType::Text)];
    all.extend(columns.iter().map(|(name, older)| Column {
        older: older.map(|value| value.to_string()),
        ..Column::new(name, ColumnType::BigInt)
    }));
    TableSchema::of(all).to_arrow()
}

impl Model {
    fn new(seed: u64) -> Self {
        let columns = vec![("a".to_owned(), None)];
        let (rows, random) = (Vec::new(), Random(seed));
        Self { random, columns, columns_made: 0, rows, csn: 0, txn: 0, deleted: 0, removed: None }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random.below(end)
    }

    fn schema(&self) -> SchemaRef {
        schema_of(&self.columns)
    }

    /// Rows at a snapshot that pass a predicate.
    fn shown(&self, snapshot: u64, predicate: &Predicate) -> Vec<Shown> {
        let there = |row: &&Came| row.csn <= snapshot && row.gone.is_none_or(|at| at > snapshot);
        let shown = |row: &Came| {
            let value = |(name, older): &(String, Option<i64>)| match row.values.get(name) {
                Some(value) => *value,
                None => *older,
            };
            (row.time, row.device.clone(), self.columns.iter().map(value).collect())
        };
        let rows = self.rows.iter().filter(there).map(shown);
        let mut rows: Vec<Shown> =
            rows.filter(|row| predicate.terms.iter().all(|term| self.passes(row, term))).collect();
        rows.sort();
        rows
    }

    fn passes(&self, row: &Shown, Term { column, test }: &Term) -> bool {
        let value = match column.as_str() {
            "time" => Some(Value::Int(row.0.into())),
            "device" => Some(Value::Text(row.1.clone())),
            name => {
                let at = self.columns.iter().position(|(known, _)| known == name).unwrap();
                row.2[at].map(|value| Value::Int(value.into()))
            }
        };
        let order = |other: &Value| value.as_ref().and_then(|value| value.compare(other));
        match test {
            Test::IsNull => value.is_none(),
            Test::IsNotNull => value.is_some(),
            Test::Lt(other) => order(other).is_some_and(std::cmp::Ordering::is_lt),
            Test::LtEq(other) => order(other).is_some_and(std::cmp::Ordering::is_le),
            Test::Gt(other) => order(other).is_some_and(std::cmp::Ordering::is_gt),
            Test::GtEq(other) => order(other).is_some_and(std::cmp::Ordering::is_ge),
            Test::In(others) => others.iter().any(|v| order(v).is_some_and(|o| o.is_eq())),
        }
    }

    fn predicate(&mut self) -> Predicate {
        let mut terms = Vec::new();
        let span = self.txn * 1000 + 1000;
        for _ in 0..self.below(3) {
            let name = match self.below(4) {
                0 => "device".to_owned(),
                1 => "time".to_owned(),
                _ => {
                    let at = self.below(self.columns.len() as u64) as usize;
                    self.columns[at].0.clone()
                }
            };
            let value = match name.as_str() {
                "device" => Value::Text(format!("d{}", self.below(5))),
                "time" => Value::Int(self.below(span).into()),
                _ => Value::Int(self.below(400).into()),
            };
            let test = match self.below(7) {
                0 => Test::IsNull,
                1 => Test::IsNotNull,
                2 => Test::Lt(value),
                3 => Test::LtEq(value),
                4 => Test::Gt(value),
                5 => Test::GtEq(value),
                _ => Test::In(vec![value]),
            };
            terms.push(Term { column: name, test });
        }
        Predicate { terms }
    }

    fn part(number: u32, encoded: batch::Encoded) -> Part {
        let batch::Encoded { rows, hash, payload, decoded_bytes } = encoded;
        Part { spec: spec(CHUNK), epoch: Epoch(1), number, rows, hash, payload, decoded_bytes }
    }

    /// Commits, or aborts one time of eight; whether it was committed.
    async fn send(&mut self, store: &ChunkStore, parts: Vec<Part>) -> bool {
        self.txn += 1;
        store.prepare(txn(self.txn), parts).await.unwrap();
        if self.below(8) == 0 {
            store.decide(&[abort(self.txn)]).unwrap();
            return false;
        }
        let prev = self.csn;
        self.csn += 1 + self.below(3);
        store.decide(&[commit(self.txn, self.csn, &[(CHUNK, prev)])]).unwrap();
        true
    }

    async fn insert(&mut self, store: &ChunkStore) {
        let count = if self.below(6) == 0 { 6000 } else { 1 + self.below(300) as i64 };
        let seed = self.txn as i64;
        let device = |i: i64| format!("d{}", (seed + i) % 5);
        let value = |at: usize, i: i64| {
            let value = seed * 7 + i * (at as i64 + 1);
            (value % 11 != 0).then_some(value % 400)
        };
        let time = (0..count).map(|i| seed * 1000 + i % 997);
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(TimestampMicrosecondArray::from_iter_values(time).with_timezone("UTC")),
            Arc::new(StringArray::from_iter_values((0..count).map(device))),
        ];
        for at in 0..self.columns.len() {
            columns.push(Arc::new((0..count).map(|i| value(at, i)).collect::<Int64Array>()));
        }
        let rows = RecordBatch::try_new(self.schema(), columns).unwrap();
        let encoded = batch::encode(&rows).unwrap();
        if self.send(store, vec![Self::part(0, encoded)]).await {
            let names: Vec<String> = self.columns.iter().map(|(name, _)| name.clone()).collect();
            let came = |i: i64| {
                let values = names.iter().enumerate();
                let values = values.map(|(at, name)| (name.clone(), value(at, i)));
                let (time, device) = (seed * 1000 + i % 997, device(i));
                Came { csn: self.csn, gone: None, time, device, values: values.collect() }
            };
            let came: Vec<Came> = (0..count).map(came).collect();
            self.rows.extend(came);
        }
    }

    async fn delete(&mut self, store: &ChunkStore) {
        let snapshot = self.csn;
        let predicate = Predicate {
            terms: vec![
                Term {
                    column: "device".into(),
                    test: Test::In(vec![Value::Text(format!("d{}", self.below(5)))]),
                },
                Term {
                    column: "time".into(),
                    test: Test::Lt(Value::Int(self.below(self.txn * 1000 + 1).into())),
                },
            ],
        };
        let tombstone = Tombstone::passing(Csn(snapshot), predicate.clone());
        if self.send(store, vec![Self::part(0, tombstone.encode().unwrap())]).await {
            let (csn, hit) = (self.csn, self.shown(snapshot, &predicate));
            let hit: BTreeSet<(i64, String)> =
                hit.into_iter().map(|(time, device, _)| (time, device)).collect();
            for row in &mut self.rows {
                let named = hit.contains(&(row.time, row.device.clone()));
                if row.csn <= snapshot && row.gone.is_none() && named {
                    row.gone = Some(csn);
                }
            }
            self.deleted = csn;
        }
    }

    fn alter(&mut self) {
        if self.columns.len() > 1 && self.below(2) == 0 {
            let at = self.below(self.columns.len() as u64) as usize;
            self.columns.remove(at);
        } else if self.columns.len() < 4 {
            self.columns_made += 1;
            let older = (self.below(2) == 0).then(|| self.random.below(400) as i64);
            // No column gets the stored name of another one, also of one that was dropped.
            self.columns.push((format!("b{}", self.columns_made), older));
        }
    }

    fn rewrite(&mut self, store: &ChunkStore) {
        match self.below(4) {
            0 => drop(store.decompress(ChunkId(CHUNK)).unwrap()),
            1 => {
                let name = self.columns[0].0.clone();
                // Only what its rows have can order it.
                let known = self.rows.iter().all(|row| row.values.contains_key(&name));
                let order_by = known.then(|| OrderBy {
                    column: name,
                    descending: self.random.below(2) == 0,
                    nulls_first: self.random.below(2) == 0,
                });
                self.compress(store, &[], order_by);
            }
            _ => self.compress(store, &["device"], None),
        }
    }

    fn compress(&self, store: &ChunkStore, segment_by: &[&str], order_by: Option<OrderBy>) {
        let segment_by = segment_by.iter().map(|name| (*name).to_owned()).collect();
        let spec = CompressionSpec { segment_by, order_by: order_by.into_iter().collect() };
        store.compress(ChunkId(CHUNK), spec).unwrap();
    }

    /// A random scan and all its rows; `None` when the snapshot is too old.
    fn scan(&mut self, store: &ChunkStore, any: bool) -> Option<(Scan, Vec<Shown>, Predicate)> {
        let last = self.removed.map_or(self.csn + 3, |at| at - 1);
        let snapshot = if self.below(2) == 0 { last } else { self.random.below(last + 1) };
        let predicate = if any { Predicate::default() } else { self.predicate() };
        let request = ScanRequest {
            chunk: ChunkId(CHUNK),
            snapshot: Csn(snapshot),
            own: None,
            columns: self.schema(),
            predicate: predicate.clone(),
        };
        match store.scan(request) {
            Ok(scan) => {
                let scan = scan.knowing(self.schema());
                Some((scan, self.shown(snapshot, &predicate), predicate))
            }
            Err(Error::SnapshotTooOld { .. }) => {
                assert!(self.deleted > snapshot, "{snapshot} is not too old");
                None
            }
            Err(error) => panic!("at {snapshot} of {:?}: {error}", self.removed),
        }
    }

    /// Reads in every way; gives how many rows zone maps told.
    fn check(&mut self, store: &ChunkStore) -> u64 {
        if let Some((scan, all, predicate)) = self.scan(store, false) {
            assert_eq!(sorted(rest(scan)), all, "{predicate}");
        }
        if let Some((scan, all, predicate)) = self.scan(store, false) {
            let limit = self.below(all.len() as u64 + 3);
            let found = rest(scan.limit(limit));
            assert_eq!(found.len() as u64, limit.min(all.len() as u64), "{predicate}");
            assert!(contains(&all, &sorted(found)), "{predicate}: rows that are not there");
        }
        self.check_top(store);
        self.check_latest(store);
        self.check_answer(store) + self.check_summary(store)
    }

    fn check_top(&mut self, store: &ChunkStore) {
        let descending = self.below(2) == 0;
        let Some((scan, all, predicate)) = self.scan(store, false) else { return };
        let rows = 1 + self.below(20) as usize;
        let top = Top { column: "time".into(), descending, rows };
        let found: Vec<i64> = rest(scan.top(&top).unwrap()).iter().map(|row| row.0).collect();
        assert_eq!(found, first(all.iter().map(|row| row.0), rows, descending), "{predicate}");
        // The same by a reader that sorts, and tells what it has no use for.
        let Some((scan, all, predicate)) = self.scan(store, false) else { return };
        let mut scan = scan.ordered("time", descending);
        let mut best: Vec<i64> = Vec::new();
        while let Some(batch) = scan.next() {
            best.extend(rows_of(&batch.unwrap()).iter().map(|row| row.0));
            best = first(best.into_iter(), rows, descending);
            if let Some(bar) = best.get(rows - 1) {
                let bar = Value::Int((*bar).into());
                let test = if descending { Test::Gt(bar) } else { Test::Lt(bar) };
                scan.narrow(vec![Term { column: "time".into(), test }]);
            }
        }
        assert_eq!(best, first(all.iter().map(|row| row.0), rows, descending), "{predicate}");
    }

    fn check_latest(&mut self, store: &ChunkStore) {
        let (descending, keyed) = (self.below(2) == 0, self.below(3) > 0);
        let Some((scan, all, predicate)) = self.scan(store, false) else { return };
        let keys = if keyed { vec!["device".to_owned()] } else { Vec::new() };
        let by = Some(LatestBy { column: "time".into(), descending });
        let found = rest(scan.latest(Latest { keys, by }, Arc::new(Seen::default())));
        assert!(contains(&all, &sorted(found.clone())), "{predicate}: rows that are not there");
        let best = |rows: &[Shown]| -> BTreeMap<String, i64> {
            let mut best = BTreeMap::new();
            for (time, device, _) in rows {
                let key = if keyed { device.clone() } else { String::new() };
                let kept = best.entry(key).or_insert(*time);
                *kept = if descending { *time.max(kept) } else { *time.min(kept) };
            }
            best
        };
        assert_eq!(best(&found), best(&all), "{predicate}");
        let winners = |rows: Vec<Shown>| -> Vec<Shown> {
            let best = best(&rows);
            let key = |row: &Shown| if keyed { row.1.clone() } else { String::new() };
            sorted(rows.into_iter().filter(|row| best[&key(row)] == row.0).collect())
        };
        assert_eq!(winners(found), winners(all), "{predicate}");
    }

    fn check_answer(&mut self, store: &ChunkStore) -> u64 {
        let at = self.below(self.columns.len() as u64) as usize;
        let Some((mut scan, all, predicate)) = self.scan(store, false) else { return 0 };
        let column = self.columns[at].0.clone();
        let answer = scan.answer(&[Asked { column, extremes: true, sum: true }]);
        let told = &answer.columns[0];
        let left = rest(scan);
        assert_eq!(answer.rows + left.len() as u64, all.len() as u64, "{predicate}");
        let values = |rows: &[Shown]| -> Vec<i64> { rows.iter().filter_map(|r| r.2[at]).collect() };
        let (all_values, left_values) = (values(&all), values(&left));
        let nulls = (all.len() - all_values.len()) as u64;
        assert_eq!(told.nulls + (left.len() - left_values.len()) as u64, nulls, "{predicate}");
        let sum = |values: &[i64]| values.iter().map(|v| i128::from(*v)).sum::<i128>();
        assert_eq!(told.sum + sum(&left_values), sum(&all_values), "{predicate}");
        let mut edges = left_values;
        for edge in [&told.min, &told.max].into_iter().flatten() {
            let Value::Int(edge) = edge else { panic!("{edge} is no integer") };
            edges.push(i64::try_from(*edge).unwrap());
        }
        assert_eq!(edges.iter().min(), all_values.iter().min(), "{predicate}");
        assert_eq!(edges.iter().max(), all_values.iter().max(), "{predicate}");
        answer.rows
    }

    fn check_summary(&mut self, store: &ChunkStore) -> u64 {
        let Some((scan, all, _)) = self.scan(store, true) else { return 0 };
        let Some(summary) = scan.summary() else { return 0 };
        assert_eq!(summary.rows, all.len() as u64);
        for (at, (name, older)) in self.columns.iter().enumerate() {
            let Some(column) = summary.columns.get(name).filter(|_| older.is_none()) else {
                continue;
            };
            let nulls = all.iter().filter(|row| row.2[at].is_none()).count() as u64;
            assert_eq!(column.nulls, nulls, "{name}");
        }
        summary.rows
    }

    /// Removes the chunk here, or takes it back.
    fn come_or_go(&mut self, store: &ChunkStore) {
        match self.removed.take() {
            Some(_) => store.take_back(ChunkId(CHUNK)).unwrap(),
            None if !store.report(&[ChunkId(CHUNK)]).is_empty() => {
                let at = self.csn + 1;
                store.drop_chunks(&[ChunkId(CHUNK)], Csn(at)).unwrap();
                self.removed = Some(at);
            }
            None => {}
        }
    }
}

fn first(values: impl Iterator<Item = i64>, rows: usize, descending: bool) -> Vec<i64> {
    let mut values: Vec<i64> = values.collect();
    values.sort_unstable();
    if descending {
        values.reverse();
    }
    values.truncate(rows);
    values
}

fn sorted(mut rows: Vec<Shown>) -> Vec<Shown> {
    rows.sort();
    rows
}

/// Whether all of `some` are in `all`, each as often at most; both are sorted.
fn contains(all: &[Shown], some: &[Shown]) -> bool {
    let mut all = all.iter();
    some.iter().all(|row| all.any(|other| other == row))
}

fn rest(scan: Scan) -> Vec<Shown> {
    scan.flat_map(|batch| rows_of(&batch.unwrap())).collect()
}

fn rows_of(batch: &RecordBatch) -> Vec<Shown> {
    let time = batch.column(0).as_any().downcast_ref::<TimestampMicrosecondArray>().unwrap();
    let device = batch.column(1).as_any().downcast_ref::<StringArray>().unwrap();
    let others = batch.columns()[2..].iter();
    let others = others.map(|array| array.as_any().downcast_ref::<Int64Array>().unwrap());
    let others: Vec<&Int64Array> = others.collect();
    let row = |i: usize| {
        let values = others.iter().map(|array| array.is_valid(i).then(|| array.value(i)));
        (time.value(i), device.value(i).to_owned(), values.collect())
    };
    (0..batch.num_rows()).map(row).collect()
}

/// Works and reads; gives how many rows zone maps told.
async fn run(seed: u64, steps: usize) -> u64 {
    println!("seed {seed}");
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        flush_bytes: 1 << 16,
        version_age: Duration::from_secs(3600),
        ..config(dir.path())
    };
    let mut store = ChunkStore::open(config.clone()).unwrap();
    let (mut model, mut told) = (Model::new(seed), 0);
    for _ in 0..steps {
        let here = model.removed.is_none() && !store.report(&[]).is_empty();
        match model.below(16) {
            // The catalog takes no rows for a chunk that it does not have.
            0..=4 if model.removed.is_none() => model.insert(&store).await,
            5..=6 if here => model.delete(&store).await,
            7 if here => model.rewrite(&store),
            8 if here => store.merge(ChunkId(CHUNK)).unwrap(),
            9 => store.flush(&[]).unwrap(),
            10..=11 => model.alter(),
            12 => model.come_or_go(&store),
            13 => {
                store.close();
                drop(store);
                store = ChunkStore::open(config.clone()).unwrap();
            }
            _ => told += model.check(&store),
        }
    }
    store.flush(&[]).unwrap();
    told + model.check(&store)
}

#[tokio::test]
async fn every_way_to_read_agrees_with_the_model() {
    let mut told = 0;
    for seed in 0..10 {
        told += run(seed, 50).await;
    }
    println!("zone maps told {told} rows");
    assert!(told > 10_000, "zone maps told of {told} rows only");
}
