//! Chunks are compressed on real processes: under load, with a data node away, and across `kill -9` of everything.

#![allow(clippy::indexing_slicing, reason = "a test may fail by panicking")]

mod cluster;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use cluster::{Cluster, LIMIT};
use tokio_postgres::{Client, SimpleQueryMessage};

const ROWS: i64 = 20_000;

/// The rows of a query as texts between bars.
async fn rows(client: &Client, sql: &str) -> Vec<String> {
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    let line = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            let values = (0..row.len()).map(|at| row.get(at).unwrap_or("NULL").to_owned());
            Some(values.collect::<Vec<_>>().join("|"))
        }
        _ => None,
    };
    messages.iter().filter_map(line).collect()
}

async fn one(client: &Client, sql: &str) -> String {
    let found = rows(client, sql).await;
    assert_eq!(found.len(), 1, "{sql}: {found:?}");
    found[0].clone()
}

/// Inserts a row at a time until told to stop; counts those that were acknowledged.
async fn load(client: Client, acked: Arc<AtomicI64>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::SeqCst) {
        let n = acked.load(Ordering::SeqCst) + 1;
        let row = format!("('2026-01-0{} 12:00Z', 'late', {})", 1 + n % 4, ROWS + n);
        client.batch_execute(&format!("INSERT INTO m VALUES {row}")).await.expect("it is inserted");
        acked.store(n, Ordering::SeqCst);
    }
}

/// A line in any log that was not there before.
fn logged(cluster: &Cluster, words: &str) -> usize {
    let lines = |node: String| {
        let log = std::fs::read_to_string(cluster.dir().join(node).join("log")).unwrap_or_default();
        log.lines().filter(|line| line.contains(words)).count()
    };
    cluster.access().into_iter().map(lines).sum()
}

async fn fill(client: &Client) {
    client
        .batch_execute("CREATE TABLE m (time timestamptz, device text, v bigint)")
        .await
        .expect("the statement is answered");
    let distribute = "SELECT create_distributed_hypertable('m', 'time', 'device', \
                      chunk_time_interval => INTERVAL '1 day', replication_factor => 2)";
    client.batch_execute(distribute).await.expect("the statement is answered");
    let insert = format!(
        "INSERT INTO m SELECT to_timestamp(1767225600 + 16 * i), \
         'd' || (i % 10), i FROM generate_series(1, {ROWS}) AS g(i)"
    );
    client.batch_execute(&insert).await.expect("the statement is answered");
    let options = "ALTER TABLE m SET (timescaledb.compress, \
                   timescaledb.compress_segmentby = 'device')";
    client.batch_execute(options).await.expect("the statement is answered");
}

const COUNTED: &str = "SELECT count(*), count(DISTINCT v), sum(v) FROM m WHERE device <> 'late'";
const STATUS: &str =
    "SELECT status, count(*) FROM _timescaledb_catalog.chunk GROUP BY 1 ORDER BY 1";

#[tokio::test(flavor = "multi_thread")]
async fn compressed_chunks_outlive_writers_nodes_and_everything() {
    let cluster = Cluster::start(1, 3);
    let client = cluster.connect("a1").await;
    fill(&client).await;
    let counted = one(&client, COUNTED).await;
    assert_eq!(counted, format!("{ROWS}|{ROWS}|{}", ROWS * (ROWS + 1) / 2));

    // Under load: compressed, compressed again, and undone, while rows come and are read.
    let (acked, stop) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicBool::new(false)));
    let writer = cluster.connect("a1").await;
    let writing = tokio::spawn(load(writer, Arc::clone(&acked), Arc::clone(&stop)));
    for change in ["compress_chunk", "compress_chunk", "decompress_chunk", "compress_chunk"] {
        let before = acked.load(Ordering::SeqCst);
        one(&client, &format!("SELECT count({change}(c, true)) FROM show_chunks('m') c")).await;
        assert_eq!(one(&client, COUNTED).await, counted, "after {change}");
        let late = "SELECT count(*), count(DISTINCT v) FROM m WHERE device = 'late'";
        let late: Vec<i64> =
            one(&client, late).await.split('|').map(|n| n.parse().expect("a number")).collect();
        assert!(late[0] == late[1] && late[0] >= before, "{late:?} of {before} at least");
    }
    stop.store(true, Ordering::SeqCst);
    writing.await.expect("no insert failed");

    // A data node is away; what it missed is made good when it is back.
    one(&client, "SELECT count(decompress_chunk(c, true)) FROM show_chunks('m') c").await;
    cluster.verb("kill", &["d1"]);
    one(&client, "SELECT count(compress_chunk(c, true)) FROM show_chunks('m') c").await;
    let status = rows(&client, STATUS).await;
    assert!(status.len() == 1 && status[0].starts_with("1|"), "{status:?}");
    let before = logged(&cluster, "is compressed on");
    cluster.verb("restart", &["d1"]);
    let deadline = Instant::now() + LIMIT;
    while logged(&cluster, "is compressed on") == before {
        assert!(Instant::now() < deadline, "the replica of the node that was away stays plain");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // Everything at once.
    for node in ["a1", "d1", "d2", "d3"] {
        cluster.verb("kill", &[node]);
    }
    tokio::task::block_in_place(|| cluster.verb("start", &[]));
    let client = cluster.connect("a1").await;
    assert_eq!(one(&client, COUNTED).await, counted);
    let late = one(&client, "SELECT count(DISTINCT v) FROM m WHERE device = 'late'").await;
    assert_eq!(late, acked.load(Ordering::SeqCst).to_string());
    assert_eq!(rows(&client, STATUS).await, status);
    client.batch_execute("INSERT INTO m VALUES ('2026-01-01 00:00Z', 'after', 1)").await.unwrap();
    assert_eq!(
        rows(&client, STATUS).await.len(),
        2,
        "one chunk has rows beside what is compressed"
    );
}
