//! Rows are changed by several clients while a data node is killed and comes back: each acknowledged change is there
//! once, and all replicas agree.

#![allow(clippy::indexing_slicing, reason = "a test may fail by panicking")]

mod cluster;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use cluster::Cluster;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

/// Rows of the table; each client changes those of the others, too.
const ROWS: i64 = 8;
/// Changes between two events.
const CHANGES: u64 = 12;

/// What clients have done.
#[derive(Debug, Default)]
struct Done {
    updated: AtomicU64,
    upserted: AtomicU64,
    lost: AtomicU64,
    stop: AtomicBool,
}

/// Adds one to a row of each table again and again.
async fn change(client: Client, done: Arc<Done>, start: i64) {
    let mut row = start;
    while !done.stop.load(Ordering::SeqCst) {
        row = (row + 3) % ROWS;
        let update = format!("UPDATE c SET n = n + 1 WHERE device = {row}");
        let upsert = format!(
            "INSERT INTO k VALUES ({row}, {row}, 1) ON CONFLICT (time, device) DO UPDATE SET n = k.n + excluded.n"
        );
        for (sql, counter) in [(update, &done.updated), (upsert, &done.upserted)] {
            match client.execute(sql.as_str(), &[]).await {
                Ok(rows) => {
                    assert_eq!(rows, 1, "{sql}");
                    counter.fetch_add(1, Ordering::SeqCst);
                }
                // It lost against the other client for good, and has had no effect.
                Err(error) if error.code().is_some_and(|code| code.code() == "40001") => {
                    done.lost.fetch_add(1, Ordering::SeqCst);
                }
                Err(error) => panic!("{sql}: {error:?}"),
            }
        }
    }
}

async fn more(done: &Done) {
    let now = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    let (updated, upserted) = (now(&done.updated) + CHANGES, now(&done.upserted) + CHANGES);
    let deadline = std::time::Instant::now() + cluster::LIMIT;
    while now(&done.updated) < updated || now(&done.upserted) < upserted {
        assert!(std::time::Instant::now() < deadline, "the changes do not go on: {done:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

async fn number(client: &Client, sql: &str) -> u64 {
    let row = client.query_one(sql, &[]).await.expect("it can be read");
    let number: i64 = row.get(0);
    number.unsigned_abs()
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_survive_a_killed_data_node() {
    let cluster = Cluster::start(3, 3);
    let client = cluster.connect("a1").await;
    let make = "CREATE TABLE c (time bigint NOT NULL, device int, n bigint);
        CREATE TABLE k (time bigint, device int, n bigint, PRIMARY KEY (time, device));
        SELECT create_distributed_hypertable('c', 'time', 'device', 3, chunk_time_interval => 1000, replication_factor => 2);
        SELECT create_distributed_hypertable('k', 'time', 'device', 3, chunk_time_interval => 1000, replication_factor => 2);";
    client.batch_execute(make).await.expect("the tables can be made");
    let values: Vec<String> = (0..ROWS).map(|row| format!("({row}, {row}, 0)")).collect();
    let insert = format!("INSERT INTO c VALUES {}", values.join(", "));
    client.batch_execute(&insert).await.expect("rows come in");
    let done = Arc::new(Done::default());
    let mut clients: Vec<JoinHandle<()>> = Vec::new();
    for (start, node) in (0..).zip(["a1", "a2", "a3", "a1"]) {
        let client = cluster.connect(node).await;
        clients.push(tokio::spawn(change(client, Arc::clone(&done), start)));
    }
    more(&done).await;
    cluster.verb("kill", &["d1"]);
    more(&done).await;
    cluster.verb("restart", &["d1"]);
    more(&done).await;
    cluster.wait_whole();
    more(&done).await;
    done.stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.expect("no statement failed");
    }
    eprintln!("{done:?}");
    let updated = done.updated.load(Ordering::SeqCst);
    let upserted = done.upserted.load(Ordering::SeqCst);
    assert_eq!(number(&client, "SELECT sum(n)::bigint FROM c").await, updated);
    assert_eq!(number(&client, "SELECT sum(n)::bigint FROM k").await, upserted);
    assert_eq!(number(&client, "SELECT count(*) FROM k").await, ROWS.unsigned_abs());
    let gone = client.execute("DELETE FROM c WHERE device % 2 = 0", &[]).await;
    assert_eq!(gone.expect("it deletes"), 4);
    cluster.check_chunks();
    // Whoever answers now has all of it.
    cluster.verb("kill", &["d2"]);
    assert_eq!(number(&client, "SELECT count(*) FROM c").await, 4);
    assert_eq!(number(&client, "SELECT sum(n)::bigint FROM k").await, upserted);
}
