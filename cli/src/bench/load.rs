//! `bench load`: how fast rows are taken, through COPY or Flight.
//!
//! Measured is the server and what it takes to send: rows are generated, or read from a file, cut into statements and
//! held in memory before the clock starts. It runs from the first connection to the last acknowledgement. What a client
//! does within it: COPY frames CSV text into messages; Flight encodes record batches as Arrow IPC.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, bail};
use arrow::{array::RecordBatch, ipc::reader::StreamReader};
use arrow_flight::error::FlightError;
use clap::ValueEnum;
use indicatif::ProgressBar;
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
};

use super::{
    ahead::take_ahead,
    cpu::{Generator, METRICS, Shape, create_table},
    gen_csv::CsvRows,
    ingest,
    usage::Watch,
};
use crate::{
    load::{self, Loaded, Sending, Source},
    sql::{Client, flight_address, unshared},
};

/// Rows of one record batch on the wire.
const WIRE_ROWS: usize = 8192;
/// Record batches made ahead of a client that has to wait for them.
const BATCHES_AHEAD: usize = 2;

/// The way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Through {
    /// COPY over the PostgreSQL protocol, from CSV text.
    Copy,
    /// Arrow Flight DoPut, from record batches.
    Flight,
}

/// When rows are generated or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Made {
    /// All of them before the measured time: they must fit in memory, 130 (COPY) or 220 (Flight) bytes a row.
    Before,
    /// Within the measured time, on the same machine as the client: any number of rows.
    During,
}

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    shape: Shape,
    /// Load this file instead, as `bench gen` makes it: CSV with a header for COPY, an Arrow stream for Flight.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["hosts", "rows", "seed"])]
    from: Option<PathBuf>,
    /// When rows are generated or read.
    #[arg(long, value_enum, default_value = "before")]
    made: Made,
    /// The way in.
    #[arg(long, value_enum, default_value = "copy")]
    through: Through,
    /// Table, made as a distributed hypertable when it does not exist.
    #[arg(long, default_value = "cpu")]
    table: String,
    /// Replicas of each chunk, when the table is made.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..))]
    replication_factor: Option<u8>,
    /// The table exists on a server that is no Hypertide: create nothing.
    #[arg(long)]
    existing: bool,
    #[command(flatten)]
    sending: Sending,
    /// Flight SQL address of an access node [default: what --dir or --access names].
    #[arg(long, env = "HYPERTIDE_FLIGHT", value_name = "ADDR")]
    flight: Option<String>,
}

/// Loads, and prints how fast it was and what each process spent on it.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    if !args.existing {
        let client = load::connect(&args.sending.address().await?).await?;
        for statement in create_table(&args.table, args.replication_factor) {
            client.batch_execute(&statement).await.context("make the table")?;
        }
    }
    let (loaded, watch) = match args.through {
        Through::Copy => through_copy(&args).await?,
        Through::Flight => through_flight(&args).await?,
    };
    say!("{loaded}, {}", metrics_per_second(&loaded));
    say!("{}", measured(&args));
    say!("{}", watch.finish(loaded.rows));
    Ok(())
}

fn metrics_per_second(loaded: &Loaded) -> String {
    format!("{:.0} metrics/s", loaded.rows_per_second() * METRICS.len() as f64)
}

fn measured(args: &Args) -> &'static str {
    match (args.made, args.through) {
        (Made::Before, Through::Copy) => {
            "measured: connecting, sending CSV text from memory, all of the server until its last acknowledgement"
        }
        (Made::Before, Through::Flight) => {
            "measured: connecting, encoding and sending record batches from memory, all of the server until its last \
             acknowledgement"
        }
        (Made::During, _) => {
            "measured: making the rows, sending them, all of the server until its last acknowledgement"
        }
    }
}

async fn through_copy(args: &Args) -> anyhow::Result<(Loaded, Watch)> {
    load::check_clients(&args.sending)?;
    let input: Box<dyn Read + Send> = match &args.from {
        None => Box::new(CsvRows::new(&args.shape)),
        Some(path) => Box::new(open(path)?),
    };
    let source = Source { input, header: true, columns: Vec::new(), bytes: None };
    let (mut statements, statement) = load::read_batches(source, &args.table, &args.sending)?;
    if args.made == Made::Before {
        statements = take_ahead(statements).await?;
    }
    let watch = Watch::start(args.sending.target.dir.as_deref())?;
    let start = Instant::now();
    let rows =
        load::send_all(statements, &statement, &args.sending, &ProgressBar::hidden()).await?;
    Ok((Loaded { rows, elapsed: start.elapsed() }, watch))
}

/// Each client sends what is one statement: `--batch` rows, or all.
async fn through_flight(args: &Args) -> anyhow::Result<(Loaded, Watch)> {
    let address = flight_address(args.flight.clone(), &args.sending.target).await?;
    let rows = args.sending.batch.map_or(u64::MAX, u64::from);
    let (give, mut statements) = mpsc::channel(usize::from(args.sending.clients));
    let next = source(args)?;
    tokio::task::spawn_blocking(move || cut(next, rows, &give));
    if args.made == Made::Before {
        statements = take_ahead(statements).await?;
    }
    let watch = Watch::start(args.sending.target.dir.as_deref())?;
    let start = Instant::now();
    let statements = Arc::new(Mutex::new(statements));
    let mut clients = JoinSet::new();
    for _ in 0..args.sending.clients {
        let client = Client::connect(&address).await?;
        clients.spawn(send(client, args.table.clone(), Arc::clone(&statements)));
    }
    let mut rows = 0;
    while let Some(sent) = clients.join_next().await {
        rows += sent.context("a client's task was aborted")??;
    }
    Ok((Loaded { rows, elapsed: start.elapsed() }, watch))
}

fn open(path: &Path) -> anyhow::Result<BufReader<File>> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    Ok(BufReader::new(file))
}

/// Gives the next rows, at most so many; `None` after the last.
type NextRows = Box<dyn FnMut(usize) -> Option<Result<RecordBatch, FlightError>> + Send>;

fn source(args: &Args) -> anyhow::Result<NextRows> {
    let Some(path) = &args.from else {
        let (mut generator, schema) = (Generator::new(&args.shape), ingest::schema());
        let next = move |rows| {
            let batch = ingest::next_batch(&mut generator, &schema, rows);
            batch.map_err(FlightError::from).transpose()
        };
        return Ok(Box::new(next));
    };
    let mut reader = StreamReader::try_new(open(path)?, None)
        .with_context(|| format!("{} is no Arrow stream", path.display()))?;
    if reader.schema().fields().is_empty() {
        bail!("{} has no columns", path.display());
    }
    let mut left: Option<RecordBatch> = None;
    Ok(Box::new(move |rows| {
        let batch = loop {
            match left.take().map_or_else(|| reader.next(), |batch| Some(Ok(batch)))? {
                Ok(batch) if batch.num_rows() == 0 => {}
                Ok(batch) => break batch,
                Err(error) => return Some(Err(error.into())),
            }
        };
        let count = rows.min(batch.num_rows());
        if count < batch.num_rows() {
            left = Some(batch.slice(count, batch.num_rows() - count));
        }
        Some(unshared(&batch.slice(0, count)).map_err(FlightError::from))
    }))
}

/// The rows of one statement.
type Batches = mpsc::Receiver<Result<RecordBatch, FlightError>>;

/// Cuts the rows into statements of at most `rows_max`; a closed channel means that the sender gave up.
fn cut(mut next: NextRows, rows_max: u64, give: &mpsc::Sender<anyhow::Result<Batches>>) {
    let mut next =
        |left: u64| next(usize::try_from(left).map_or(WIRE_ROWS, |left| left.min(WIRE_ROWS)));
    // A statement is opened with its first rows, so that none is empty.
    while let Some(first) = next(rows_max) {
        let (pieces, batches) = mpsc::channel(BATCHES_AHEAD);
        if give.blocking_send(Ok(batches)).is_err() {
            return;
        }
        let mut left = rows_max;
        let mut batch = Some(first);
        while let Some(rows) = batch {
            left = left.saturating_sub(rows.as_ref().map_or(left, |rows| rows.num_rows() as u64));
            if pieces.blocking_send(rows).is_err() {
                return;
            }
            batch = if left > 0 { next(left) } else { None };
        }
    }
}

async fn send(
    mut client: Client,
    table: String,
    statements: Arc<Mutex<mpsc::Receiver<anyhow::Result<Batches>>>>,
) -> anyhow::Result<u64> {
    let mut rows = 0;
    loop {
        let batches = statements.lock().await.recv().await;
        let Some(batches) = batches else { return Ok(rows) };
        let batches = tokio_stream::wrappers::ReceiverStream::new(batches?);
        let acknowledged = client.ingest((None, &table), batches).await?;
        rows += u64::try_from(acknowledged).context("the server gave no row count")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_hold_the_rows_asked_for() {
        let shape = Shape { hosts: 3, rows: 20_000, seed: 1 };
        let (mut generator, schema) = (Generator::new(&shape), ingest::schema());
        let next: NextRows = Box::new(move |rows| {
            let batch = ingest::next_batch(&mut generator, &schema, rows);
            batch.map_err(FlightError::from).transpose()
        });
        let (give, mut statements) = mpsc::channel(8);
        let cutting = std::thread::spawn(move || cut(next, 9000, &give));
        let mut sizes = Vec::new();
        while let Some(statement) = statements.blocking_recv() {
            let (mut statement, mut rows) = (statement.expect("none failed"), Vec::new());
            while let Some(batch) = statement.blocking_recv() {
                rows.push(batch.expect("none failed").num_rows());
            }
            sizes.push(rows);
        }
        cutting.join().expect("no panic");
        assert_eq!(sizes, [vec![8192, 808], vec![8192, 808], vec![2000]]);
    }
}
