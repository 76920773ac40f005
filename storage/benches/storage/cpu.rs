//! Rows of the shape of the TSBS `cpu` table: 10 tags, 10 metrics that walk at random, a row a host every 10 seconds.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray},
    datatypes::SchemaRef,
};
use hypertide_proto::schema::{Column, ColumnType, TableSchema};

pub const TAGS: usize = 10;
pub const METRICS: usize = 10;
/// Values a row, with its time.
pub const VALUES: usize = 1 + TAGS + METRICS;
/// Rows of the standard set: 100 hosts for three days, or 4,000 for an hour and three quarters.
pub const STANDARD_ROWS: usize = 2_592_000;
/// 2016-01-01 00:00:00 UTC, in microseconds.
const START: i64 = 1_451_606_400_000_000;
const STEP: i64 = 10_000_000;

const TAG_NAMES: [&str; TAGS] = [
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
const METRIC_NAMES: [&str; METRICS] = [
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

/// A small generator, the same for the same seed for ever.
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// About normal: the sum of twelve uniform numbers.
    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }

    fn choose<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[(self.next() % choices.len() as u64) as usize]
    }
}

struct Host {
    tags: [String; TAGS],
    metrics: [f64; METRICS],
}

/// Rows in the order of time.
pub struct Rows {
    random: Random,
    hosts: Vec<Host>,
    next: usize,
    time: i64,
}

impl Rows {
    pub fn new(hosts: usize, seed: u64) -> Self {
        let mut random = Random(seed);
        let host = |number| {
            let region =
                random.choose(&["eu-central-1", "us-west-2", "us-east-1", "ap-southeast-1"]);
            let tags = [
                format!("host_{number}"),
                region.to_owned(),
                format!("{region}{}", random.choose(&["a", "b", "c"])),
                (random.next() % 100).to_string(),
                random.choose(&["Ubuntu16.04LTS", "Ubuntu16.10", "Ubuntu15.10"]).to_owned(),
                random.choose(&["x64", "x86"]).to_owned(),
                random.choose(&["SF", "NYC", "LON", "CHI"]).to_owned(),
                (random.next() % 20).to_string(),
                (random.next() % 2).to_string(),
                random.choose(&["production", "staging", "test"]).to_owned(),
            ];
            Host { tags, metrics: std::array::from_fn(|_| (random.next() % 101) as f64) }
        };
        let hosts = (0..hosts).map(host).collect();
        Self { random, hosts, next: 0, time: START }
    }

    /// The next rows, as they would come in.
    pub fn batch(&mut self, rows: usize) -> RecordBatch {
        let mut time = Vec::with_capacity(rows);
        let mut hosts = Vec::with_capacity(rows);
        let mut metrics: [Vec<f64>; METRICS] = std::array::from_fn(|_| Vec::with_capacity(rows));
        for _ in 0..rows {
            if self.next == self.hosts.len() {
                self.next = 0;
                self.time += STEP;
            }
            let host = &mut self.hosts[self.next];
            for (metric, column) in host.metrics.iter_mut().zip(&mut metrics) {
                *metric = (*metric + self.random.normal()).clamp(0.0, 100.0);
                column.push(metric.trunc());
            }
            time.push(self.time);
            hosts.push(self.next);
            self.next += 1;
        }
        let time = TimestampMicrosecondArray::from(time).with_timezone("UTC");
        let mut columns: Vec<ArrayRef> = vec![Arc::new(time)];
        for tag in 0..TAGS {
            let texts = hosts.iter().map(|host: &usize| &self.hosts[*host].tags[tag]);
            columns.push(Arc::new(StringArray::from_iter_values(texts)));
        }
        columns.extend(metrics.map(|metric| Arc::new(Float64Array::from(metric)) as ArrayRef));
        RecordBatch::try_new(schema(), columns).expect("the columns fit")
    }
}

/// The table's columns.
pub fn schema() -> SchemaRef {
    let column = |name: &str, column_type| Column::new(name, column_type);
    let time = [column("time", ColumnType::TimestampTz)].into_iter();
    let tags = TAG_NAMES.map(|name| column(name, ColumnType::Text));
    let metrics = METRIC_NAMES.map(|name| column(name, ColumnType::Double));
    TableSchema::of(time.chain(tags).chain(metrics).collect()).to_arrow()
}
