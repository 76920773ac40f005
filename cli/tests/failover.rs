//! A data node is killed under load: with two replicas no statement fails for lack of it, no row is missing, and it
//! catches up when it comes back.

#![allow(clippy::indexing_slicing, reason = "a test may fail by panicking")]

mod cluster;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use cluster::{Cluster, LIMIT};
use tokio_postgres::Client;

const ROWS: u64 = 40;

/// Inserts until told to stop; counts the rows that were acknowledged. The first error ends it.
async fn load(client: Client, first: u64, acked: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    let mut next = first;
    while !stop.load(Ordering::SeqCst) {
        let row = |n: u64| format!("('2024-01-{:02}', 'd{}', {n})", 1 + n % 28, n % 7);
        let rows: Vec<String> = (next..next + ROWS).map(row).collect();
        let insert = format!("INSERT INTO m VALUES {}", rows.join(", "));
        client.batch_execute(&insert).await.expect("an insert succeeds while a node is down");
        acked.fetch_add(ROWS, Ordering::SeqCst);
        next += ROWS;
    }
}

/// Waits until so many more rows were acknowledged.
async fn more(acked: &AtomicU64, rows: u64) {
    let (wanted, deadline) = (acked.load(Ordering::SeqCst) + rows, Instant::now() + LIMIT);
    while acked.load(Ordering::SeqCst) < wanted {
        assert!(Instant::now() < deadline, "writes do not go on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_data_node_is_survived_and_catches_up() {
    let cluster = Cluster::start(1, 3);
    let client = cluster.connect("a1").await;
    client.batch_execute("CREATE TABLE m (time timestamptz, device text, v bigint)").await.unwrap();
    let distribute = "SELECT create_distributed_hypertable('m', 'time', 'device', \
                      replication_factor => 2)";
    client.batch_execute(distribute).await.unwrap();
    let (acked, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut loads = Vec::new();
    for first in [0, 1_000_000_000] {
        let client = cluster.connect("a1").await;
        loads.push(tokio::spawn(load(client, first, Arc::clone(&acked), Arc::clone(&stop))));
    }
    more(&acked, 20 * ROWS).await;
    cluster.verb("kill", &["d1"]);
    more(&acked, 20 * ROWS).await;
    let count = "SELECT count(*), count(DISTINCT v) FROM m";
    let seen = client.query_one(count, &[]).await.expect("reads go on without the node");
    assert_eq!(seen.get::<_, i64>(0), seen.get::<_, i64>(1));
    cluster.verb("restart", &["d1"]);
    more(&acked, 20 * ROWS).await;
    stop.store(true, Ordering::SeqCst);
    for load in loads {
        load.await.expect("no insert failed");
    }
    let rows = client.query_one(count, &[]).await.expect("a count");
    let acked = i64::try_from(acked.load(Ordering::SeqCst)).expect("it fits");
    assert_eq!((rows.get::<_, i64>(0), rows.get::<_, i64>(1)), (acked, acked));
    // Every chunk has two replicas again, and the rows are there without either of the other nodes.
    let short = "SELECT count(*) FROM timescaledb_information.chunks \
                 WHERE array_length(data_nodes, 1) < 2";
    let deadline = Instant::now() + LIMIT;
    while client.query_one(short, &[]).await.expect("a count").get::<_, i64>(0) > 0 {
        assert!(Instant::now() < deadline, "chunks stay without their second replica");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
