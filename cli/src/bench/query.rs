//! `bench query`: how long the queries of the TSBS cpu-only workload take, and a few of the kind that dashboards ask.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::index};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::cpu::METRICS;
use crate::{
    format::{Format, Listing},
    load,
    locate::Target,
};

/// Options of the verb.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Queries, by name [default: all].
    #[arg(value_name = "QUERY", value_parser = clap::builder::PossibleValuesParser::new(names()))]
    queries: Vec<String>,
    /// Times that each query is run, with other parameters every time.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Times that each query is run before that and not counted.
    #[arg(long, default_value_t = 2)]
    warmup: u32,
    /// Connections that share the runs.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    clients: u16,
    /// Table with the rows of `bench load`.
    #[arg(long, default_value = "cpu")]
    table: String,
    /// Hosts in the table, as `bench load` was told.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    hosts: u32,
    /// Seed of the parameters: the same seed asks the same.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A statement to send first on each connection, such as a SET; may be repeated.
    #[arg(long, value_name = "SQL")]
    before: Vec<String>,
    /// Print the first statement of each query instead of running it.
    #[arg(long)]
    show: bool,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// PostgreSQL address of an access node [default: what --dir or --access names, or 127.0.0.1:5440].
    #[arg(long, env = "HYPERTIDE_PG", value_name = "ADDR")]
    pg: Option<String>,
    /// Any PostgreSQL server, as `postgres://user:password@host:port/database`.
    #[arg(long, conflicts_with = "pg")]
    url: Option<String>,
    #[command(flatten)]
    target: Target,
}

/// What parameters are drawn from.
struct Source {
    table: String,
    hosts: u32,
    first: DateTime<Utc>,
    last: DateTime<Utc>,
    rng: StdRng,
}

/// A query: its name and its text.
type Query = (&'static str, fn(&mut Source) -> String);

const QUERIES: [Query; 12] = [
    ("single-groupby-1-1-1", |source| source.per_minute(1, 1, 1)),
    ("single-groupby-5-8-1", |source| source.per_minute(5, 8, 1)),
    ("double-groupby-1", |source| source.per_host_and_hour(1)),
    ("double-groupby-5", |source| source.per_host_and_hour(5)),
    ("cpu-max-all-1", |source| source.max_all(1)),
    ("cpu-max-all-8", |source| source.max_all(8)),
    ("high-cpu-1", Source::high_cpu),
    ("lastpoint", |source| {
        format!(
            "SELECT DISTINCT ON (hostname) * FROM {} ORDER BY hostname, time DESC",
            source.table
        )
    }),
    ("groupby-orderby-limit", Source::last_minutes),
    ("latest-10", |source| format!("SELECT * FROM {} ORDER BY time DESC LIMIT 10", source.table)),
    ("distinct-hosts", |source| format!("SELECT DISTINCT hostname FROM {}", source.table)),
    ("count-min-max", |source| {
        format!("SELECT count(*), min(time), max(usage_user) FROM {}", source.table)
    }),
];

fn names() -> Vec<&'static str> {
    QUERIES.iter().map(|(name, _)| *name).collect()
}

impl Source {
    /// A random range of so many hours, as a condition.
    fn hours(&mut self, hours: i64) -> String {
        let width = TimeDelta::hours(hours);
        let room = (self.last - self.first - width).num_seconds().max(0);
        let start = self.first + TimeDelta::seconds(self.rng.random_range(0..=room));
        format!("time >= '{}' AND time < '{}'", stamp(start), stamp(start + width))
    }

    fn hosts(&mut self, count: usize) -> String {
        let all = self.hosts as usize;
        let chosen = index::sample(&mut self.rng, all, count.min(all));
        let names: Vec<String> = chosen.iter().map(|host| format!("'host_{host}'")).collect();
        format!("hostname IN ({})", names.join(", "))
    }

    fn per_minute(&mut self, metrics: usize, hosts: usize, hours: i64) -> String {
        let (hosts, range) = (self.hosts(hosts), self.hours(hours));
        format!(
            "SELECT time_bucket('60 seconds', time) AS minute, {} FROM {} WHERE {hosts} AND {range} \
             GROUP BY minute ORDER BY minute",
            each("max", metrics),
            self.table
        )
    }

    fn per_host_and_hour(&mut self, metrics: usize) -> String {
        let range = self.hours(12);
        format!(
            "SELECT time_bucket('1 hour', time) AS hour, hostname, {} FROM {} WHERE {range} \
             GROUP BY hour, hostname ORDER BY hour, hostname",
            each("avg", metrics),
            self.table
        )
    }

    fn max_all(&mut self, hosts: usize) -> String {
        let (hosts, range) = (self.hosts(hosts), self.hours(8));
        format!(
            "SELECT time_bucket('1 hour', time) AS hour, {} FROM {} WHERE {hosts} AND {range} \
             GROUP BY hour ORDER BY hour",
            each("max", METRICS.len()),
            self.table
        )
    }

    fn high_cpu(&mut self) -> String {
        let (hosts, range) = (self.hosts(1), self.hours(12));
        format!("SELECT * FROM {} WHERE usage_user > 90.0 AND {range} AND {hosts}", self.table)
    }

    fn last_minutes(&mut self) -> String {
        let seconds = (self.last - self.first).num_seconds().max(1);
        let end = self.first + TimeDelta::seconds(self.rng.random_range(seconds / 2..=seconds));
        format!(
            "SELECT time_bucket('60 seconds', time) AS minute, max(usage_user) FROM {} \
             WHERE time < '{}' GROUP BY minute ORDER BY minute DESC LIMIT 5",
            self.table,
            stamp(end)
        )
    }
}

fn stamp(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%S+00").to_string()
}

/// A function of each of the first metrics.
fn each(function: &str, metrics: usize) -> String {
    let all = METRICS.iter().take(metrics);
    all.map(|metric| format!("{function}({metric})")).collect::<Vec<_>>().join(", ")
}

/// Runs the queries one after another and prints how long each took.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let clients = args.connect().await?;
    let (first, last) = range(&clients, &args.table).await?;
    let columns = ["query", "runs", "rows", "min_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms"];
    let mut listing = Listing::new(&columns);
    for (name, text) in QUERIES {
        if !args.queries.is_empty() && !args.queries.iter().any(|wanted| wanted == name) {
            continue;
        }
        // Of the seed and the name alone, so that one query asks the same whichever others are run.
        let named = name
            .bytes()
            .fold(args.seed, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let rng = StdRng::seed_from_u64(named);
        let mut source = Source { table: args.table.clone(), hosts: args.hosts, first, last, rng };
        if args.show {
            say!("{name}: {}", text(&mut source));
            continue;
        }
        let wanted = args.warmup as usize + args.runs as usize;
        let statements: Vec<String> = (0..wanted).map(|_| text(&mut source)).collect();
        let (warm, timed) = statements.split_at(args.warmup as usize);
        measure(&clients, warm).await.with_context(|| format!("run {name}"))?;
        let mut measured = measure(&clients, timed).await.with_context(|| format!("run {name}"))?;
        measured.times.sort();
        let at = |share: f64| millis(percentile(&measured.times, share));
        listing.push(vec![
            json!(name),
            json!(measured.times.len()),
            json!(measured.rows),
            json!(at(0.0)),
            json!(at(0.5)),
            json!(at(0.95)),
            json!(at(0.99)),
            json!(at(1.0)),
        ]);
    }
    if args.show { Ok(()) } else { listing.print(args.format) }
}

impl Args {
    async fn connect(&self) -> anyhow::Result<Vec<Arc<Client>>> {
        let mut clients = Vec::new();
        for _ in 0..self.clients {
            let client = match (&self.url, &self.pg) {
                (Some(url), _) => connect_to(url).await?,
                (None, Some(address)) => load::connect(address).await?,
                (None, None) => load::connect(&self.target.identity().await?.pg).await?,
            };
            for statement in &self.before {
                client.batch_execute(statement).await.with_context(|| statement.clone())?;
            }
            clients.push(Arc::new(client));
        }
        Ok(clients)
    }
}

async fn connect_to(url: &str) -> anyhow::Result<Client> {
    let (client, connection) =
        tokio_postgres::connect(url, NoTls).await.context("connect to the server of --url")?;
    tokio::spawn(async move {
        // The client's own call reports the same error.
        drop(connection.await);
    });
    Ok(client)
}

/// The times between which the table has rows.
async fn range(
    clients: &[Arc<Client>],
    table: &str,
) -> anyhow::Result<(DateTime<Utc>, DateTime<Utc>)> {
    let client = clients.first().context("there is no connection")?;
    let sql = format!(
        "SELECT extract(epoch FROM min(time))::bigint, extract(epoch FROM max(time))::bigint \
         FROM {table}"
    );
    let found = client.simple_query(&sql).await.context("look for the times of the table")?;
    let row = found.into_iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let row = row.context("the server gave no row")?;
    let time = |at| {
        let seconds = row.get(at).and_then(|text| text.parse().ok());
        seconds.and_then(|seconds| DateTime::from_timestamp(seconds, 0))
    };
    let (first, last) = (time(0), time(1));
    ensure!(first.is_some(), "table \"{table}\" has no rows: fill it with bench load");
    Ok((first.unwrap_or_default(), last.unwrap_or_default()))
}

/// What was measured of one query.
#[derive(Default)]
struct Measured {
    times: Vec<Duration>,
    /// Rows of all runs.
    rows: usize,
}

/// Runs statements, dealt out to the clients.
async fn measure(clients: &[Arc<Client>], statements: &[String]) -> anyhow::Result<Measured> {
    let mut tasks = JoinSet::new();
    for (at, client) in clients.iter().enumerate() {
        let client = Arc::clone(client);
        let own: Vec<String> = statements.iter().skip(at).step_by(clients.len()).cloned().collect();
        tasks.spawn(async move {
            let mut measured = Measured::default();
            for statement in own {
                let start = Instant::now();
                let messages = client.simple_query(&statement).await.context(statement)?;
                measured.times.push(start.elapsed());
                let is_row =
                    |message: &&SimpleQueryMessage| matches!(message, SimpleQueryMessage::Row(_));
                measured.rows += messages.iter().filter(is_row).count();
            }
            anyhow::Ok(measured)
        });
    }
    let mut all = Measured::default();
    while let Some(one) = tasks.join_next().await {
        let one = one.context("a client's task was aborted")??;
        all.times.extend(one.times);
        all.rows += one.rows;
    }
    Ok(all)
}

/// The least of sorted times that so large a share of them does not exceed.
fn percentile(sorted: &[Duration], share: f64) -> Duration {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a few runs"
    )]
    let at = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or_default()
}

/// Milliseconds to three places.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times: Vec<Duration> = (1..=20).map(Duration::from_millis).collect();
        let at = |share| percentile(&times, share).as_millis();
        assert_eq!((at(0.0), at(0.5), at(0.95), at(0.99), at(1.0)), (1, 10, 19, 20, 20));
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }

    #[test]
    fn the_same_seed_asks_the_same() {
        let text = |seed| {
            let time = |day: i64| DateTime::from_timestamp(86_400 * day, 0).unwrap_or_default();
            let rng = StdRng::seed_from_u64(seed);
            let mut source =
                Source { table: "cpu".to_owned(), hosts: 10, first: time(0), last: time(3), rng };
            QUERIES.map(|(_, text)| text(&mut source)).join("; ")
        };
        assert_eq!(text(7), text(7));
        assert_ne!(text(7), text(8));
        assert!(text(7).contains("hostname IN ('host_"));
    }
}
