//! Continuous load on a cluster: writers that count what was acknowledged, and a reader that checks what it sees.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::{Cluster, LIMIT};

/// Rows of one insert.
const ROWS: u64 = 40;
/// Days and devices that rows are spread over.
const DAYS: u64 = 28;
const DEVICES: u64 = 7;
/// Values of one writer are apart from those of the next by this.
const WRITER_STEP: u64 = 1_000_000_000;

/// What the load has seen, shared by all clients.
#[derive(Debug, Default)]
struct Seen {
    acked: AtomicU64,
    reads: AtomicU64,
    /// The longest statements so far.
    longest_write_ms: AtomicU64,
    longest_read_ms: AtomicU64,
    stop: AtomicBool,
    errors: Mutex<Vec<String>>,
}

/// Clients at work on table `m`.
#[derive(Debug)]
pub(crate) struct Load {
    seen: Arc<Seen>,
    tasks: Vec<JoinHandle<()>>,
}

/// Makes table `m` with two replicas of each chunk.
pub(crate) async fn make_table(client: &Client) {
    client
        .batch_execute("CREATE TABLE m (time timestamptz, device text, v bigint)")
        .await
        .expect("the table can be made");
    let distribute = "SELECT create_distributed_hypertable('m', 'time', 'device', \
                      replication_factor => 2)";
    client.batch_execute(distribute).await.expect("the table can be made");
}

impl Load {
    /// Starts a writer and a reader at each of these access nodes.
    pub(crate) async fn start(cluster: &Cluster, access: &[&str]) -> Self {
        let seen = Arc::new(Seen::default());
        let mut tasks = Vec::new();
        for (number, node) in (0..).zip(access) {
            let client = cluster.connect(node).await;
            tasks.push(tokio::spawn(write(client, number * WRITER_STEP, Arc::clone(&seen))));
            let client = cluster.connect(node).await;
            tasks.push(tokio::spawn(read(client, Arc::clone(&seen))));
        }
        Self { seen, tasks }
    }

    /// Waits until so many more inserts were acknowledged and as many counts were read.
    pub(crate) async fn more(&self, statements: u64) {
        let now = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        let acked = now(&self.seen.acked) + statements * ROWS;
        let reads = now(&self.seen.reads) + statements;
        let deadline = Instant::now() + LIMIT;
        while now(&self.seen.acked) < acked || now(&self.seen.reads) < reads {
            self.check();
            assert!(Instant::now() < deadline, "the load does not go on: {:?}", self.seen);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Fails when a statement has failed.
    pub(crate) fn check(&self) {
        let errors = self.seen.errors.lock().expect("no client panics with it");
        assert!(errors.is_empty(), "statements failed: {errors:?}");
    }

    /// The longest write and read since the last time.
    fn longest(&self) -> (Duration, Duration) {
        let take = |longest: &AtomicU64| Duration::from_millis(longest.swap(0, Ordering::SeqCst));
        (take(&self.seen.longest_write_ms), take(&self.seen.longest_read_ms))
    }

    /// Says what a phase cost the clients, to people who run a test with `--no-capture`.
    pub(crate) fn say(&self, phase: &str, began: Instant) {
        let (write, read) = self.longest();
        let took = began.elapsed();
        eprintln!("{phase}: longest write {write:?}, longest read {read:?}, took {took:?}");
    }

    /// Stops the clients; every row that was acknowledged must be there, once, and no other.
    pub(crate) async fn end(self, client: &Client) {
        self.seen.stop.store(true, Ordering::SeqCst);
        self.check();
        for task in self.tasks {
            task.await.expect("no client panics");
        }
        let acked = self.seen.acked.load(Ordering::SeqCst);
        let count = "SELECT count(*), count(DISTINCT v) FROM m";
        let rows = client.query_one(count, &[]).await.expect("a count");
        let (count, distinct): (i64, i64) = (rows.get(0), rows.get(1));
        let wanted = i64::try_from(acked).expect("it fits");
        assert_eq!((count, distinct), (wanted, wanted), "rows are missing or there twice");
    }
}

impl Seen {
    fn fail(&self, error: &tokio_postgres::Error) {
        let text = error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
        self.errors.lock().expect("no client panics with it").push(text);
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn note(longest: &AtomicU64, began: Instant) {
    let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    longest.fetch_max(ms, Ordering::SeqCst);
}

async fn write(client: Client, first: u64, seen: Arc<Seen>) {
    let mut next = first;
    while !seen.stop.load(Ordering::SeqCst) {
        let row = |n: u64| format!("('2024-01-{:02}', 'd{}', {n})", 1 + n % DAYS, n % DEVICES);
        let rows: Vec<String> = (next..next + ROWS).map(row).collect();
        let insert = format!("INSERT INTO m VALUES {}", rows.join(", "));
        let began = Instant::now();
        match client.batch_execute(&insert).await {
            Ok(()) => {
                seen.acked.fetch_add(ROWS, Ordering::SeqCst);
            }
            Err(error) => return seen.fail(&error),
        }
        note(&seen.longest_write_ms, began);
        next += ROWS;
    }
}

/// Counts: never less than what was acknowledged before the question.
async fn read(client: Client, seen: Arc<Seen>) {
    while !seen.stop.load(Ordering::SeqCst) {
        let (began, acked) = (Instant::now(), seen.acked.load(Ordering::SeqCst));
        match client.query_one("SELECT count(*) FROM m", &[]).await {
            Ok(row) => {
                let count: i64 = row.get(0);
                let acked = i64::try_from(acked).expect("it fits");
                assert!(count >= acked, "{count} rows are seen, {acked} were acknowledged before");
                seen.reads.fetch_add(1, Ordering::SeqCst);
            }
            Err(error) => return seen.fail(&error),
        }
        note(&seen.longest_read_ms, began);
    }
}
