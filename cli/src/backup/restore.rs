//! `hypertide backup restore`.
//!
//! Each file is one statement with a name of its own, so that one whose answer was lost is sent again and its rows are
//! there once.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use arrow_flight::error::FlightError;
use indicatif::{HumanCount, ProgressBar};
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    Place, data_file,
    manifest::{DataFile, Manifest, SCHEMA_FILE, Table},
    read::read,
    snapshot::{Snapshot, Table as Source, definitions, qualified},
    verify::{difference, verify},
};
use crate::{
    load,
    sql::{Client, may_pass, statements, unshared},
};

/// How long a file is sent again after it failed first, and the pause before it is.
const RETRY_LIMIT: Duration = Duration::from_secs(120);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Batches read ahead of what is sent.
const BATCHES_AHEAD: usize = 2;

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory of the backup.
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// Make the tables by this file: a copy of the backup's schema.sql with as many statements, of which some were edited,
    /// for example to have fewer replicas. Names and columns must stay.
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    #[command(flatten)]
    cluster: Place,
}

/// Restores the backup.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let start = Instant::now();
    let manifest = verify(&args.from).await?;
    let (before, after) = schema(&args, &manifest)?;
    check_absent(&args.cluster, &manifest).await?;
    if let Err(error) = fill(&args, &manifest, (&before, &after)).await {
        let names = manifest.tables.iter().map(|table| qualified(&table.schema, &table.name));
        let names = names.collect::<Vec<_>>().join(", ");
        return Err(error.context(format!(
            "the restore was broken off; before it is run again: DROP TABLE IF EXISTS {names}"
        )));
    }
    let rows = manifest.tables.iter().map(|table| table.rows).sum();
    say!(
        "{} tables, {} rows of snapshot {} restored and compared in {:.1} s",
        manifest.tables.len(),
        HumanCount(rows),
        manifest.snapshot,
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Refuses to restore over tables that are there.
async fn check_absent(place: &Place, manifest: &Manifest) -> anyhow::Result<()> {
    let client = load::connect(&place.access().await?.pg).await?;
    let there = definitions(&client).await?;
    let taken = manifest.tables.iter().filter(|table| {
        there.iter().any(|other| other.schema == table.schema && other.name == table.name)
    });
    let taken: Vec<String> = taken.map(Table::shown).collect();
    if !taken.is_empty() {
        bail!("these tables exist already, nothing was changed: {}", taken.join(", "));
    }
    Ok(())
}

/// The statements that make the tables: before there are rows, and after.
fn schema(args: &Args, manifest: &Manifest) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let saved = args.from.join(SCHEMA_FILE);
    let read = |path: &Path| {
        let text = std::fs::read_to_string(path);
        let text = text.with_context(|| format!("read {}", path.display()))?;
        anyhow::Ok(statements(&text).map(str::to_owned).collect::<Vec<_>>())
    };
    let (expected, mut before) =
        (read(&saved)?.len(), read(args.schema.as_ref().unwrap_or(&saved))?);
    if before.len() != expected {
        bail!("the schema has {} statements, that of the backup {expected}", before.len());
    }
    let after = before.split_off(manifest.schema.statements_before_rows.min(expected));
    Ok((before, after))
}

/// Makes the tables, loads and compares their rows, and does what comes after.
async fn fill(
    args: &Args,
    manifest: &Manifest,
    (before, after): (&[String], &[String]),
) -> anyhow::Result<()> {
    let mut client = Client::connect(&args.cluster.access().await?.flight).await?;
    execute(&mut client, before).await?;
    let bar = super::bar("loaded");
    load_rows(args, manifest, &bar).await?;
    bar.finish_and_clear();
    compare(args, manifest).await?;
    execute(&mut client, after).await
}

async fn execute(client: &mut Client, statements: &[String]) -> anyhow::Result<()> {
    for statement in statements {
        client.run(statement).await.with_context(|| statement.clone())?;
    }
    Ok(())
}

/// A file to load.
struct Piece {
    table: (String, String),
    file: DataFile,
    /// Names the statement.
    write: uuid::Uuid,
}

async fn load_rows(args: &Args, manifest: &Manifest, bar: &ProgressBar) -> anyhow::Result<()> {
    let mut queue = VecDeque::new();
    for table in &manifest.tables {
        let name = (table.schema.clone(), table.name.clone());
        queue.extend(table.files.iter().map(|file| Piece {
            table: name.clone(),
            file: file.clone(),
            write: uuid::Uuid::new_v4(),
        }));
    }
    let queue = Arc::new(Mutex::new(queue));
    let mut workers = JoinSet::new();
    for _ in 0..args.cluster.clients {
        let (dir, place) = (args.from.clone(), args.cluster.clone());
        workers.spawn(work((dir, place), Arc::clone(&queue), bar.clone()));
    }
    while let Some(done) = workers.join_next().await {
        done.context("a connection's task was aborted")??;
    }
    Ok(())
}

async fn work(
    (dir, place): (PathBuf, Place),
    queue: Arc<Mutex<VecDeque<Piece>>>,
    bar: ProgressBar,
) -> anyhow::Result<()> {
    let mut client = None;
    loop {
        let piece = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(piece) = piece else { return Ok(()) };
        persist(&dir, &place, &mut client, &piece).await?;
        bar.inc(piece.file.rows);
    }
}

/// Loads a file, again and again while that may help: under its name it is loaded once.
async fn persist(
    dir: &Path,
    place: &Place,
    client: &mut Option<Client>,
    piece: &Piece,
) -> anyhow::Result<()> {
    let mut first_failure = None;
    loop {
        let Err(error) = once(dir, place, client, piece).await else { return Ok(()) };
        *client = None;
        let since = first_failure.get_or_insert_with(Instant::now).elapsed();
        if !may_pass(&error) || since > RETRY_LIMIT {
            return Err(error.context(format!("load {}", piece.file.file.path)));
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn once(
    dir: &Path,
    place: &Place,
    client: &mut Option<Client>,
    piece: &Piece,
) -> anyhow::Result<()> {
    let client = match client.take() {
        Some(known) => client.insert(known),
        None => client.insert(Client::connect(&place.access().await?.flight).await?),
    };
    client.set_write_id(piece.write);
    let (give, batches) = mpsc::channel(BATCHES_AHEAD);
    let rows = data_file::open(dir, &piece.file.file.path)?;
    let reading = tokio::task::spawn_blocking(move || {
        for batch in rows {
            let batch = batch.and_then(|batch| unshared(&batch)).map_err(FlightError::from);
            if give.blocking_send(batch).is_err() {
                break;
            }
        }
    });
    let batches = tokio_stream::wrappers::ReceiverStream::new(batches);
    let (schema, table) = &piece.table;
    let loaded = client.ingest((Some(schema), table), batches).await?;
    reading.await.context("the reader ended unexpectedly")?;
    let (loaded, rows) = (u64::try_from(loaded).unwrap_or(0), piece.file.rows);
    if loaded != rows {
        bail!("{loaded} of {rows} rows were taken");
    }
    Ok(())
}

/// Reads all tables back at one snapshot and compares them with the manifest.
async fn compare(args: &Args, manifest: &Manifest) -> anyhow::Result<()> {
    let snapshot = Arc::new(Snapshot::open(&args.cluster).await?);
    let all = snapshot.tables(&[]).await?;
    let of = |table: &Table| {
        let found = all.iter().find(|one| one.schema == table.schema && one.name == table.name);
        found.cloned().with_context(|| format!("table {} is gone", table.shown()))
    };
    let tables: Vec<Source> = manifest.tables.iter().map(of).collect::<Result<_, _>>()?;
    let bar = super::bar("compared");
    let found = read(&snapshot, &tables, &[], (args.cluster.clients, &bar)).await?;
    bar.finish_and_clear();
    let mut differ = Vec::new();
    for (table, found) in manifest.tables.iter().zip(found) {
        if table.columns != found.columns {
            differ.push(format!(
                "table {}: its columns are not those of the manifest",
                table.shown()
            ));
        } else if !table.agrees(found.written.content) {
            differ.push(difference(table, found.written.content));
        }
    }
    match differ.is_empty() {
        true => Ok(()),
        false => bail!("what is there now is not what was saved: {}", differ.join("; ")),
    }
}
