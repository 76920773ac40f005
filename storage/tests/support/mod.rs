//! What the tests of the store share: rows, parts, decisions, and what a scan gives.
#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing, unreachable_pub)]

use std::{path::Path, sync::Arc, time::Duration};

use arrow::{
    array::{Array, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray},
    datatypes::SchemaRef,
};
use hypertide_proto::{
    decision::{ChunkLink, Decision, Fate},
    ids::{AccessId, Boot, ChunkId, Csn, Epoch, TableId, TxnId},
    predicate::{Predicate, Term, Test, Value},
    schema::{Column, ColumnType, TableSchema},
};
use hypertide_storage::{
    ChunkSpec, ChunkStore, Error, Part, ScanRequest, StoreConfig, Tombstone, batch,
};

pub mod disk;

/// A time, a device, a reading.
pub type Row = (i64, String, Option<f64>);

pub fn config(dir: &Path) -> StoreConfig {
    StoreConfig {
        flush_age: Duration::from_secs(3600),
        space_reserve_bytes: 0,
        ..StoreConfig::new(dir)
    }
}

pub fn schema() -> SchemaRef {
    let column = |name: &str, column_type| Column::new(name, column_type);
    TableSchema {
        columns: vec![
            column("time", ColumnType::TimestampTz),
            column("device", ColumnType::Text),
            column("reading", ColumnType::Double),
        ],
        keys: Vec::new(),
    }
    .to_arrow()
}

pub fn rows_of(seed: i64, count: i64) -> Vec<Row> {
    let row = |i: i64| {
        let reading = (i % 7 != 0).then_some((seed * 31 + i) as f64 / 10.0);
        (seed * 1_000_000 + i, format!("d{}", (seed + i) % 5), reading)
    };
    (0..count).map(row).collect()
}

pub fn batch_of(rows: &[Row]) -> RecordBatch {
    let time = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.0));
    let device = StringArray::from_iter_values(rows.iter().map(|row| &row.1));
    let reading: Float64Array = rows.iter().map(|row| row.2).collect();
    let columns: Vec<Arc<dyn Array>> =
        vec![Arc::new(time.with_timezone("UTC")), Arc::new(device), Arc::new(reading)];
    RecordBatch::try_new(schema(), columns).unwrap()
}

pub fn txn(seq: u64) -> TxnId {
    TxnId { access: AccessId(1), boot: Boot(1), seq }
}

pub fn spec(chunk: u64) -> ChunkSpec {
    ChunkSpec {
        chunk: ChunkId(chunk),
        table: TableId(1),
        time_column: Some("time".into()),
        order_columns: vec!["device".into()],
        origin: format!("chunk {chunk}").into(),
    }
}

pub fn part(chunk: u64, number: u32, rows: &[Row]) -> Part {
    part_of(chunk, number, batch::encode(&batch_of(rows)).unwrap())
}

/// Rows of a device up to a time, as far as a snapshot has them, that are deleted.
#[derive(Clone, Debug, PartialEq)]
pub struct Gone {
    pub snapshot: u64,
    pub device: String,
    pub until: i64,
}

impl Gone {
    /// Whether a row that came with a commit is among them.
    pub fn takes(&self, csn: u64, row: &Row) -> bool {
        csn <= self.snapshot && row.1 == self.device && row.0 <= self.until
    }

    pub fn tombstone(&self) -> Tombstone {
        let term = |column: &str, test| Term { column: column.to_owned(), test };
        let terms = vec![
            term("device", Test::In(vec![Value::Text(self.device.clone())])),
            term("time", Test::LtEq(Value::Int(self.until.into()))),
        ];
        Tombstone::passing(Csn(self.snapshot), Predicate { terms })
    }
}

/// What a part brings.
#[derive(Clone, Debug)]
pub enum Content {
    Rows(Vec<Row>),
    Delete(Gone),
}

impl Content {
    pub fn rows(&self) -> &[Row] {
        match self {
            Self::Rows(rows) => rows,
            Self::Delete(_) => &[],
        }
    }

    pub fn gone(&self) -> Option<&Gone> {
        match self {
            Self::Rows(_) => None,
            Self::Delete(gone) => Some(gone),
        }
    }

    pub fn part(&self, chunk: u64, number: u32) -> Part {
        match self {
            Self::Rows(rows) => part(chunk, number, rows),
            Self::Delete(gone) => delete(chunk, number, gone),
        }
    }
}

pub fn delete(chunk: u64, number: u32, gone: &Gone) -> Part {
    part_of(chunk, number, gone.tombstone().encode().unwrap())
}

fn part_of(chunk: u64, number: u32, encoded: batch::Encoded) -> Part {
    Part {
        spec: spec(chunk),
        epoch: Epoch(1),
        number,
        rows: encoded.rows,
        hash: encoded.hash,
        payload: encoded.payload,
        decoded_bytes: encoded.decoded_bytes,
    }
}

pub fn commit(seq: u64, csn: u64, links: &[(u64, u64)]) -> Decision {
    let link = |&(chunk, prev)| ChunkLink { chunk: ChunkId(chunk), prev: Csn(prev) };
    let links = links.iter().map(link).collect();
    Decision { txn: txn(seq), fate: Fate::Committed { csn: Csn(csn), links } }
}

pub fn abort(seq: u64) -> Decision {
    Decision { txn: txn(seq), fate: Fate::Aborted }
}

pub fn request(chunk: u64, snapshot: u64) -> ScanRequest {
    ScanRequest {
        chunk: ChunkId(chunk),
        snapshot: Csn(snapshot),
        own: None,
        columns: schema(),
        predicate: Predicate::default(),
    }
}

/// All rows of a scan, sorted.
pub fn read(store: &ChunkStore, request: ScanRequest) -> Result<Vec<Row>, Error> {
    let columns = Arc::clone(&request.columns);
    let mut rows = Vec::new();
    for batch in store.scan(request)? {
        let batch = batch?;
        assert_eq!(batch.schema(), columns, "a batch has the schema asked for");
        assert!(batch.num_rows() <= 8192);
        rows.extend(rows_in(&batch));
    }
    rows.sort_by(|a, b| a.partial_cmp(b).unwrap());
    Ok(rows)
}

pub fn rows_in(batch: &RecordBatch) -> Vec<Row> {
    let time = batch.column(0).as_any().downcast_ref::<TimestampMicrosecondArray>().unwrap();
    let device = batch.column(1).as_any().downcast_ref::<StringArray>().unwrap();
    let reading = batch.column(2).as_any().downcast_ref::<Float64Array>().unwrap();
    let row = |i| {
        let reading = reading.is_valid(i).then(|| reading.value(i));
        (time.value(i), device.value(i).to_owned(), reading)
    };
    (0..batch.num_rows()).map(row).collect()
}

/// A small generator, so that a seed names a run for ever.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
