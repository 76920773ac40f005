//! `hypertide load`: a CSV file into a table through COPY, on one connection or on several.
//!
//! One thread reads records and packs them into batches; each connection takes the next batch and sends it as one COPY
//! of its own, which is all there or not at all. Without `--batch` the whole file is one COPY.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use bytes::Bytes;
use csv::{ByteRecord, ReaderBuilder, WriterBuilder};
use futures::SinkExt;
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
};
use tokio_postgres::NoTls;

use crate::{config::usage, locate::Target};

/// Bytes sent as one message of a COPY.
const PIECE_BYTES: usize = 64 << 10;
/// Batches read ahead per connection.
const BATCHES_AHEAD: usize = 2;

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Table to load into.
    #[arg(long)]
    pub(crate) table: String,
    /// The first record names the columns.
    #[arg(long)]
    pub(crate) header: bool,
    /// Columns of the file, comma-separated [default: the header's, or all columns of the table].
    #[arg(long, value_delimiter = ',')]
    pub(crate) columns: Vec<String>,
    #[command(flatten)]
    pub(crate) sending: Sending,
    /// The file; `-` or none reads standard input.
    pub(crate) file: Option<PathBuf>,
}

/// How rows are sent.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Sending {
    /// PostgreSQL address of an access node [default: what --dir or --access names, or 127.0.0.1:5440].
    #[arg(long, env = "HYPERTIDE_PG", value_name = "ADDR")]
    pub(crate) pg: Option<String>,
    #[command(flatten)]
    pub(crate) target: Target,
    /// Connections.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) clients: u16,
    /// Rows per COPY; without it all rows are one COPY, which several connections cannot share.
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch: Option<u32>,
}

impl Sending {
    /// The PostgreSQL address to talk to.
    pub(crate) async fn address(&self) -> anyhow::Result<String> {
        match &self.pg {
            Some(address) => Ok(address.clone()),
            None => Ok(self.target.identity().await?.pg),
        }
    }
}

/// Loads the file and says how long it took.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let file = args.file.as_deref().filter(|path| *path != Path::new("-"));
    let (input, bytes): (Box<dyn Read + Send>, Option<u64>) = match file {
        None => (Box::new(io::stdin()), None),
        Some(path) => {
            let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
            let bytes = file.metadata().ok().map(|metadata| metadata.len());
            (Box::new(file), bytes)
        }
    };
    let source = Source { input, header: args.header, columns: args.columns, bytes };
    let loaded = load(source, &args.table, &args.sending).await?;
    say!("{loaded}");
    Ok(())
}

/// CSV to load.
pub(crate) struct Source {
    /// The text.
    pub(crate) input: Box<dyn Read + Send>,
    /// Whether the first record names the columns.
    pub(crate) header: bool,
    /// Columns; empty takes the header's or the table's.
    pub(crate) columns: Vec<String>,
    /// Size, when it is known.
    pub(crate) bytes: Option<u64>,
}

/// What was loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loaded {
    /// Rows that were acknowledged.
    pub(crate) rows: u64,
    /// From the first byte to the last acknowledgement.
    pub(crate) elapsed: Duration,
}

impl Loaded {
    /// How fast it was.
    #[expect(clippy::cast_precision_loss, reason = "it is for people to read")]
    pub(crate) fn rows_per_second(&self) -> f64 {
        self.rows as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

impl std::fmt::Display for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (seconds, rate) = (self.elapsed.as_secs_f64(), self.rows_per_second());
        write!(f, "{} rows in {seconds:.3} s, {rate:.0} rows/s", self.rows)
    }
}

/// Loads all of `source`; the first error ends it, and batches acknowledged before stay.
pub(crate) async fn load(
    mut source: Source,
    table: &str,
    sending: &Sending,
) -> anyhow::Result<Loaded> {
    check_clients(sending)?;
    let start = Instant::now();
    let bar = progress(source.bytes);
    source.input = Box::new(bar.wrap_read(source.input));
    let table = table.to_owned();
    let taken = sending.clone();
    let reading = tokio::task::spawn_blocking(move || read_batches(source, &table, &taken));
    let (batches, statement) = reading.await.context("the reader ended unexpectedly")??;
    let rows = send_all(batches, &statement, sending, &bar).await?;
    bar.finish_and_clear();
    Ok(Loaded { rows, elapsed: start.elapsed() })
}

/// Refuses several clients with nothing to share among them.
pub(crate) fn check_clients(sending: &Sending) -> anyhow::Result<()> {
    if sending.batch.is_none() && sending.clients > 1 {
        return Err(usage("several clients need --batch: one COPY goes over one connection"));
    }
    Ok(())
}

/// Sends batches over all connections; gives the rows that were acknowledged.
pub(crate) async fn send_all(
    batches: Batches,
    statement: &str,
    sending: &Sending,
    bar: &ProgressBar,
) -> anyhow::Result<u64> {
    let address = sending.address().await?;
    let batches = Arc::new(Mutex::new(batches));
    let mut clients = JoinSet::new();
    for _ in 0..sending.clients {
        let client = connect(&address).await?;
        clients.spawn(send(client, statement.to_owned(), Arc::clone(&batches), bar.clone()));
    }
    let mut rows = 0;
    while let Some(sent) = clients.join_next().await {
        match sent.context("a connection's task was aborted")? {
            Ok(sent) => rows += sent,
            Err(error) if rows > 0 => {
                return Err(error.context(format!("{rows} rows were loaded before")));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(rows)
}

fn progress(bytes: Option<u64>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(bytes, ProgressDrawTarget::stderr());
    let template = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {msg} {eta}";
    if let (Some(_), Ok(style)) = (bytes, ProgressStyle::with_template(template)) {
        bar.set_style(style);
    }
    bar
}

/// Connects as the user of local clusters.
pub(crate) async fn connect(address: &str) -> anyhow::Result<tokio_postgres::Client> {
    let (host, port) = crate::listen::split(address)?;
    let mut config = tokio_postgres::Config::new();
    config.host(host.trim_matches(['[', ']'])).port(port).user("hypertide").dbname("hypertide");
    config.application_name("hypertide load").connect_timeout(Duration::from_secs(10));
    let connected = config.connect(NoTls).await;
    let (client, connection) = connected.with_context(|| format!("connect to {address}"))?;
    tokio::spawn(async move {
        // The client's own call reports the same error.
        drop(connection.await);
    });
    Ok(client)
}

/// A COPY's data: pieces of CSV, and whether more of the same COPY follow.
type Batch = mpsc::Receiver<Bytes>;
/// All COPYs of a load.
pub(crate) type Batches = mpsc::Receiver<anyhow::Result<Batch>>;

/// Reads the header and starts reading the rest; gives the batches and the statement that each is sent with.
pub(crate) fn read_batches(
    mut source: Source,
    table: &str,
    sending: &Sending,
) -> anyhow::Result<(Batches, String)> {
    let mut reader =
        ReaderBuilder::new().has_headers(false).flexible(true).from_reader(source.input);
    let mut columns = std::mem::take(&mut source.columns);
    if source.header {
        let mut header = ByteRecord::new();
        if !reader.read_byte_record(&mut header).context("read the header")? {
            bail!("the input is empty");
        }
        if columns.is_empty() {
            let names = header.iter().map(|name| String::from_utf8_lossy(name).trim().to_owned());
            columns = names.collect();
        }
    }
    let statement = copy_statement(table, &columns);
    let (give, batches) = mpsc::channel(BATCHES_AHEAD * usize::from(sending.clients));
    let rows = sending.batch.map_or(u64::MAX, u64::from);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = cut(&mut reader, rows, &give) {
            drop(give.blocking_send(Err(error)));
        }
    });
    Ok((batches, statement))
}

/// Cuts the records into batches of `rows`, each a channel of pieces. A closed channel means that the sender gave up.
fn cut(
    reader: &mut csv::Reader<Box<dyn Read + Send>>,
    rows: u64,
    give: &mpsc::Sender<anyhow::Result<Batch>>,
) -> anyhow::Result<()> {
    let mut record = ByteRecord::new();
    let mut more = reader.read_byte_record(&mut record).context("read the input")?;
    while more {
        let (pieces, batch) = mpsc::channel(BATCHES_AHEAD);
        if give.blocking_send(Ok(batch)).is_err() {
            return Ok(());
        }
        let mut writer = piece_writer();
        for _ in 0..rows {
            writer.write_byte_record(&record)?;
            more = reader.read_byte_record(&mut record).context("read the input")?;
            if writer.get_ref().len() >= PIECE_BYTES || !more {
                let full = std::mem::replace(&mut writer, piece_writer());
                if pieces.blocking_send(full.into_inner()?.into()).is_err() {
                    return Ok(());
                }
            }
            if !more {
                return Ok(());
            }
        }
        drop(pieces.blocking_send(writer.into_inner()?.into()));
    }
    Ok(())
}

fn piece_writer() -> csv::Writer<Vec<u8>> {
    WriterBuilder::new().flexible(true).from_writer(Vec::with_capacity(PIECE_BYTES * 2))
}

fn copy_statement(table: &str, columns: &[String]) -> String {
    let table: Vec<String> = table.split('.').map(quoted).collect();
    let table = table.join(".");
    if columns.is_empty() {
        return format!("COPY {table} FROM STDIN (FORMAT csv)");
    }
    let columns: Vec<String> = columns.iter().map(|name| quoted(name)).collect();
    format!("COPY {table} ({}) FROM STDIN (FORMAT csv)", columns.join(", "))
}

/// An identifier as it is written.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Sends batches until there are none; gives the rows that were acknowledged.
async fn send(
    client: tokio_postgres::Client,
    statement: String,
    batches: Arc<Mutex<Batches>>,
    bar: ProgressBar,
) -> anyhow::Result<u64> {
    let mut rows = 0;
    loop {
        let batch = batches.lock().await.recv().await;
        let Some(batch) = batch else { return Ok(rows) };
        let mut batch = batch?;
        let sink = client.copy_in(&statement).await.map_err(in_words)?;
        let mut sink = std::pin::pin!(sink);
        while let Some(piece) = batch.recv().await {
            sink.send(piece).await.map_err(in_words)?;
        }
        let acknowledged = sink.finish().await.map_err(in_words)?;
        rows += acknowledged;
        bar.set_message(format!("{} rows", HumanCount(rows)));
    }
}

/// The server's message with its context, when the server said something.
fn in_words(error: tokio_postgres::Error) -> anyhow::Error {
    match error.as_db_error() {
        Some(said) => match said.where_() {
            Some(place) => anyhow::anyhow!("{} ({place})", said.message()),
            None => anyhow::anyhow!("{}", said.message()),
        },
        None => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted() {
        let columns = ["time".to_owned(), "a\"b".to_owned()];
        assert_eq!(
            copy_statement("public.t", &columns),
            "COPY \"public\".\"t\" (\"time\", \"a\"\"b\") FROM STDIN (FORMAT csv)"
        );
        assert_eq!(copy_statement("t", &[]), "COPY \"t\" FROM STDIN (FORMAT csv)");
    }

    fn batches(text: &'static str, rows: u64) -> Vec<String> {
        let input: Box<dyn Read + Send> = Box::new(text.as_bytes());
        let mut reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(input);
        let (give, mut batches) = mpsc::channel(16);
        let reading = std::thread::spawn(move || cut(&mut reader, rows, &give));
        let mut texts = Vec::new();
        while let Some(batch) = batches.blocking_recv() {
            let mut batch = batch.expect("the input is valid");
            let mut text = Vec::new();
            while let Some(piece) = batch.blocking_recv() {
                text.extend_from_slice(&piece);
            }
            texts.push(String::from_utf8(text).expect("it is text"));
        }
        reading.join().expect("no panic").expect("the input is valid");
        texts
    }

    #[test]
    fn batches_are_cut_between_records() {
        assert_eq!(batches("1,a\n2,\"b\nc\"\n3,d\n", 2), ["1,a\n2,\"b\nc\"\n", "3,d\n"]);
        assert_eq!(batches("1\n2\n", 2), ["1\n2\n"]);
        assert_eq!(batches("1\n2\n", u64::MAX), ["1\n2\n"]);
        assert_eq!(batches("", 2), [""; 0]);
    }
}
