//! Reads tables at a snapshot, part by part on several connections, into files or for their hash alone.
//!
//! A part that fails in the middle, because a data node went away, is read again at the same snapshot.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use arrow::array::RecordBatch;
use futures::TryStreamExt;
use indicatif::ProgressBar;
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    content::Content,
    data_file::{Writer, Written, columns},
    manifest::Column,
    snapshot::{Snapshot, Table},
};
use crate::sql::{Client, may_pass};

/// How long a part is tried again after it failed first, and the pause before it is.
const RETRY_LIMIT: Duration = Duration::from_secs(60);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Batches read ahead of the one who hashes, compresses and writes them.
const BATCHES_AHEAD: usize = 4;

/// Where the files of a table go: the backup's directory, and that of the table in it.
pub(super) type Files = (PathBuf, String);

/// What was read of a table.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    pub(super) columns: Vec<Column>,
    pub(super) written: Written,
}

/// One thing to read.
#[derive(Debug)]
struct Part {
    /// Which table, and which part of it.
    table: usize,
    number: usize,
    name: String,
    sql: String,
    files: Option<Files>,
}

/// Reads all of the tables; with files to write, into those.
pub(super) async fn read(
    snapshot: &Arc<Snapshot>,
    tables: &[Table],
    files: &[Files],
    (clients, bar): (u16, &ProgressBar),
) -> anyhow::Result<Vec<Rows>> {
    let queue = Arc::new(Mutex::new(parts(tables, files)));
    let mut workers = JoinSet::new();
    for _ in 0..clients {
        workers.spawn(work(Arc::clone(snapshot), Arc::clone(&queue), bar.clone()));
    }
    let mut read = Vec::new();
    while let Some(done) = workers.join_next().await {
        read.extend(done.context("a connection's task was aborted")??);
    }
    read.sort_by_key(|(part, _, _)| (part.table, part.number));
    let mut tables = vec![Rows::default(); tables.len()];
    for (part, columns, written) in read {
        let Some(table) = tables.get_mut(part.table) else { continue };
        if part.number > 0 && table.columns != columns {
            bail!("the parts of table {} have different columns", part.name);
        }
        table.columns = columns;
        table.written.content.merge(written.content);
        table.written.files.extend(written.files);
    }
    Ok(tables)
}

fn parts(tables: &[Table], files: &[Files]) -> VecDeque<Part> {
    let mut all = VecDeque::new();
    for (number, table) in tables.iter().enumerate() {
        let whole = ["true".to_owned()];
        let conditions = if table.parts.is_empty() { &whole[..] } else { table.parts.as_slice() };
        for (at, condition) in conditions.iter().enumerate() {
            let files = files.get(number).map(|(dir, path)| {
                // Six digits: there may be as many parts as a table has slices of time.
                (dir.clone(), format!("{path}/{:06}", at + 1))
            });
            let sql = format!("SELECT * FROM {} WHERE {condition}", table.quoted());
            all.push_back(Part { table: number, number: at, name: table.shown(), sql, files });
        }
    }
    all
}

type Done = (Part, Vec<Column>, Written);

async fn work(
    snapshot: Arc<Snapshot>,
    queue: Arc<Mutex<VecDeque<Part>>>,
    bar: ProgressBar,
) -> anyhow::Result<Vec<Done>> {
    let (mut done, mut client) = (Vec::new(), None);
    loop {
        let part = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(part) = part else { return Ok(done) };
        let (columns, written) = persist(&snapshot, &mut client, &part).await?;
        bar.inc(written.content.rows);
        done.push((part, columns, written));
    }
}

/// Reads a part, again and again while that may help.
async fn persist(
    snapshot: &Snapshot,
    client: &mut Option<Client>,
    part: &Part,
) -> anyhow::Result<(Vec<Column>, Written)> {
    let mut first_failure = None;
    loop {
        let connected = match client.take() {
            Some(client) => Ok(client),
            None => snapshot.client().await,
        };
        let read = match connected {
            Ok(connected) => once(client.insert(connected), part).await,
            Err(error) => Err(error),
        };
        let Err(error) = read else { return read };
        *client = None;
        snapshot.check_held()?;
        let since = first_failure.get_or_insert_with(Instant::now).elapsed();
        if !may_pass(&error) || since > RETRY_LIMIT {
            return Err(error.context(format!("read table {}", part.name)));
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn once(client: &mut Client, part: &Part) -> anyhow::Result<(Vec<Column>, Written)> {
    let (schema, mut rows) = client.query(&part.sql).await?;
    let names = columns(&schema)?;
    let writer = Writer::new(schema, part.files.clone());
    let (give, take) = mpsc::channel(BATCHES_AHEAD);
    let writing = tokio::task::spawn_blocking(move || write(writer, take));
    let sent: anyhow::Result<()> = async {
        while let Some(batch) = rows.try_next().await? {
            // A writer that failed takes nothing more; it says why.
            if give.send(batch).await.is_err() {
                break;
            }
        }
        Ok(())
    }
    .await;
    drop(give);
    let written = writing.await.context("the writer ended unexpectedly")?;
    sent?;
    Ok((names, written?))
}

fn write(mut writer: Writer, mut batches: mpsc::Receiver<RecordBatch>) -> anyhow::Result<Written> {
    while let Some(batch) = batches.blocking_recv() {
        writer.add(&batch)?;
    }
    writer.finish()
}

/// What all parts together hold.
pub(super) fn total(rows: &[Rows]) -> Content {
    let mut total = Content::default();
    rows.iter().for_each(|table| total.merge(table.written.content));
    total
}
