//! `bench load`: how fast generated rows are taken, through COPY or Flight.

use std::{sync::Arc, time::Instant};

use anyhow::Context;
use arrow::array::RecordBatch;
use arrow_flight::error::FlightError;
use clap::ValueEnum;
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
};

use super::{
    cpu::{Generator, Shape, create_table},
    gen_csv::CsvRows,
    ingest,
};
use crate::{
    load::{self, Loaded, Sending, Source},
    sql::{Client, flight_address},
};

/// Rows of one record batch on the wire.
const WIRE_ROWS: usize = 8192;
/// Record batches generated ahead of a client.
const BATCHES_AHEAD: usize = 2;

/// The way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Through {
    /// COPY over the PostgreSQL protocol.
    Copy,
    /// Arrow Flight DoPut.
    Flight,
}

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    shape: Shape,
    /// The way in.
    #[arg(long, value_enum, default_value = "copy")]
    through: Through,
    /// Table, made as a distributed hypertable when it does not exist.
    #[arg(long, default_value = "cpu")]
    table: String,
    #[command(flatten)]
    sending: Sending,
    /// Flight SQL address of an access node [default: what --dir or --access names].
    #[arg(long, env = "HYPERTIDE_FLIGHT", value_name = "ADDR")]
    flight: Option<String>,
}

/// Loads and prints rows per second.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let client = load::connect(&args.sending.address().await?).await?;
    for statement in create_table(&args.table) {
        client.batch_execute(&statement).await.context("make the table")?;
    }
    drop(client);
    let loaded = match args.through {
        Through::Copy => {
            let input = Box::new(CsvRows::new(&args.shape));
            let source = Source { input, header: true, columns: Vec::new(), bytes: None };
            load::load(source, &args.table, &args.sending).await?
        }
        Through::Flight => through_flight(&args).await?,
    };
    println!("{loaded}");
    Ok(())
}

/// One thread generates; each client sends what is one statement: `--batch` rows, or all.
async fn through_flight(args: &Args) -> anyhow::Result<Loaded> {
    let address = flight_address(args.flight.clone(), &args.sending.target).await?;
    let rows = args.sending.batch.map_or(u64::MAX, u64::from);
    let start = Instant::now();
    let (give, statements) = mpsc::channel(usize::from(args.sending.clients));
    let generator = Generator::new(&args.shape);
    tokio::task::spawn_blocking(move || generate(generator, rows, &give));
    let statements = Arc::new(Mutex::new(statements));
    let mut clients = JoinSet::new();
    for _ in 0..args.sending.clients {
        let client = Client::connect(&address).await?;
        clients.spawn(send(client, args.table.clone(), Arc::clone(&statements)));
    }
    let mut acknowledged = 0;
    while let Some(sent) = clients.join_next().await {
        acknowledged += sent.context("a client's task was aborted")??;
    }
    Ok(Loaded { rows: acknowledged, elapsed: start.elapsed() })
}

/// The rows of one statement.
type Batches = mpsc::Receiver<Result<RecordBatch, FlightError>>;

/// Cuts the rows into statements of at most `rows_max`; a closed channel means that the sender gave up.
fn generate(mut generator: Generator, rows_max: u64, give: &mpsc::Sender<Batches>) {
    let schema = ingest::schema();
    let mut next = |left: u64| {
        let rows = usize::try_from(left).map_or(WIRE_ROWS, |left| left.min(WIRE_ROWS));
        ingest::next_batch(&mut generator, &schema, rows).map_err(FlightError::from).transpose()
    };
    // A statement is opened with its first rows, so that none is empty.
    while let Some(first) = next(rows_max) {
        let (pieces, batches) = mpsc::channel(BATCHES_AHEAD);
        if give.blocking_send(batches).is_err() {
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
    statements: Arc<Mutex<mpsc::Receiver<Batches>>>,
) -> anyhow::Result<u64> {
    let mut rows = 0;
    loop {
        let batches = statements.lock().await.recv().await;
        let Some(batches) = batches else { return Ok(rows) };
        let batches = tokio_stream::wrappers::ReceiverStream::new(batches);
        let acknowledged = client.ingest(&table, batches).await?;
        rows += u64::try_from(acknowledged).context("the server gave no row count")?;
    }
}
