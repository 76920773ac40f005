//! The rows: hosts whose metrics walk at random between 0 and 100, the same for the same seed.

use chrono::{DateTime, TimeDelta, Utc};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// Tags of a host, all text, the host's name first.
pub(crate) const TAGS: [&str; 10] = [
    "hostname",
    "region",
    "datacenter",
    "rack",
    "os",
    "arch",
    "team",
    "service",
    "service_version",
    "service_environment",
];

/// Metrics of a host, all double precision.
pub(crate) const METRICS: [&str; 10] = [
    "usage_user",
    "usage_system",
    "usage_idle",
    "usage_nice",
    "usage_iowait",
    "usage_irq",
    "usage_softirq",
    "usage_steal",
    "usage_guest",
    "usage_guest_nice",
];

/// Time between two rows of a host.
const STEP: TimeDelta = TimeDelta::seconds(10);
/// 2016-01-01 00:00:00 UTC.
const START_SECONDS: i64 = 1_451_606_400;

const REGIONS: [&str; 4] = ["eu-central-1", "us-west-2", "us-east-1", "ap-southeast-1"];
const SYSTEMS: [&str; 3] = ["Ubuntu16.04LTS", "Ubuntu16.10", "Ubuntu15.10"];
const ARCHITECTURES: [&str; 2] = ["x64", "x86"];
const TEAMS: [&str; 4] = ["SF", "NYC", "LON", "CHI"];
const ENVIRONMENTS: [&str; 3] = ["production", "staging", "test"];

/// What to generate.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Shape {
    /// Hosts.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) hosts: u32,
    /// Rows in total.
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) rows: u64,
    /// Seed: the same seed gives the same rows.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

/// A host with its present metrics.
#[derive(Clone, Debug)]
struct Host {
    tags: [String; TAGS.len()],
    metrics: [f64; METRICS.len()],
}

impl Host {
    fn new(number: u32, rng: &mut StdRng) -> Self {
        let mut choose = |choices: &[&str]| {
            choices.choose(rng).map(|choice| (*choice).to_owned()).unwrap_or_default()
        };
        let region = choose(&REGIONS);
        let datacenter = format!("{region}{}", choose(&["a", "b", "c"]));
        let (os, arch) = (choose(&SYSTEMS), choose(&ARCHITECTURES));
        let (team, environment) = (choose(&TEAMS), choose(&ENVIRONMENTS));
        let mut below = |limit: u32| rng.random_range(0..limit).to_string();
        let tags = [
            format!("host_{number}"),
            region,
            datacenter,
            below(100),
            os,
            arch,
            team,
            below(20),
            below(2),
            environment,
        ];
        Self { tags, metrics: std::array::from_fn(|_| f64::from(rng.random_range(0..=100_u32))) }
    }

    /// A step of each metric, of normal size about one, kept within the bounds.
    fn walk(&mut self, rng: &mut StdRng) {
        for metric in &mut self.metrics {
            // The sum of twelve uniform numbers is close to normal.
            let normal = (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
            *metric = (*metric + normal).clamp(0.0, 100.0);
        }
    }
}

/// One row, borrowed from the generator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    /// When.
    pub(crate) time: DateTime<Utc>,
    /// Tags in the order of [`TAGS`].
    pub(crate) tags: &'a [String; TAGS.len()],
    /// Metrics in the order of [`METRICS`], whole numbers as in the original.
    pub(crate) metrics: [f64; METRICS.len()],
}

/// All rows, in the order of time.
#[derive(Clone, Debug)]
pub(crate) struct Generator {
    rng: StdRng,
    hosts: Vec<Host>,
    next: usize,
    time: DateTime<Utc>,
    left: u64,
}

impl Generator {
    /// A generator at its first row.
    pub(crate) fn new(shape: &Shape) -> Self {
        let mut rng = StdRng::seed_from_u64(shape.seed);
        let hosts = (0..shape.hosts).map(|number| Host::new(number, &mut rng)).collect();
        let time = DateTime::from_timestamp(START_SECONDS, 0).unwrap_or_default();
        Self { rng, hosts, next: 0, time, left: shape.rows }
    }

    /// The next row; `None` after the last.
    pub(crate) fn next_row(&mut self) -> Option<Row<'_>> {
        self.left = self.left.checked_sub(1)?;
        if self.next == self.hosts.len() {
            self.next = 0;
            self.time += STEP;
        }
        let host = self.hosts.get_mut(self.next)?;
        self.next += 1;
        host.walk(&mut self.rng);
        Some(Row { time: self.time, tags: &host.tags, metrics: host.metrics.map(f64::trunc) })
    }
}

/// Statements that make the table, as one that has this many replicas when a number is given.
pub(crate) fn create_table(table: &str, replicas: Option<u8>) -> [String; 2] {
    let tags: Vec<String> = TAGS.iter().map(|tag| format!("{tag} text")).collect();
    let metrics: Vec<String> =
        METRICS.iter().map(|metric| format!("{metric} double precision")).collect();
    let create = format!(
        "CREATE TABLE IF NOT EXISTS {table} (time timestamptz NOT NULL, {}, {})",
        tags.join(", "),
        metrics.join(", ")
    );
    let replicas =
        replicas.map_or_else(String::new, |count| format!(", replication_factor => {count}"));
    let distribute = format!(
        "SELECT * FROM create_distributed_hypertable('{table}', 'time', 'hostname', \
         chunk_time_interval => INTERVAL '12 hours', if_not_exists => true{replicas})"
    );
    [create, distribute]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(shape: &Shape) -> Vec<String> {
        let mut generator = Generator::new(shape);
        let mut rows = Vec::new();
        while let Some(row) = generator.next_row() {
            rows.push(format!("{row:?}"));
        }
        rows
    }

    #[test]
    fn the_same_seed_gives_the_same_rows() {
        let shape = Shape { hosts: 3, rows: 10, seed: 7 };
        assert_eq!(rows(&shape).len(), 10);
        assert_eq!(rows(&shape), rows(&shape));
        assert_ne!(rows(&shape), rows(&Shape { seed: 8, ..shape }));
    }

    #[test]
    fn hosts_take_turns_and_metrics_stay_in_bounds() {
        let mut generator = Generator::new(&Shape { hosts: 2, rows: 1000, seed: 1 });
        let mut last = None;
        for at in 0..1000 {
            let row = generator.next_row().expect("there are a thousand");
            assert_eq!(row.tags[0], format!("host_{}", at % 2));
            assert!(row.metrics.iter().all(|metric| (0.0..=100.0).contains(metric)));
            let step = row.time - last.unwrap_or(row.time);
            assert_eq!(step, if at > 0 && at % 2 == 0 { STEP } else { TimeDelta::zero() });
            last = Some(row.time);
        }
        assert!(generator.next_row().is_none());
    }
}
