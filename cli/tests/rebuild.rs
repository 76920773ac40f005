//! The catalog made anew from data directories, on real processes: nothing that was acknowledged is missing.

#![allow(clippy::indexing_slicing, reason = "a test may fail by panicking")]

mod cluster;

use std::{
    fs,
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use cluster::{Cluster, LIMIT, text};
use tokio_postgres::Client;

const TABLES: &str = "
    CREATE TABLE m (time timestamptz NOT NULL, device int NOT NULL, value double precision,
                    PRIMARY KEY (time, device));
    SELECT create_distributed_hypertable('m', 'time', 'device', number_partitions => 3,
        chunk_time_interval => interval '1 day', replication_factor => 2);
    CREATE TABLE sites (id int PRIMARY KEY, name text);
    INSERT INTO sites VALUES (1, 'north'), (2, 'south');
    INSERT INTO m SELECT '2026-01-01'::timestamptz + i * interval '1 minute', i % 7, i
        FROM generate_series(1, 5000) AS g(i)";
const CHANGES: &str = "
    ALTER TABLE m SET (timescaledb.compress, timescaledb.compress_segmentby = 'device');
    SELECT compress_chunk(c) FROM show_chunks('m', older_than => '2026-01-03'::timestamptz) c;
    DELETE FROM m WHERE device = 3;
    SELECT add_retention_policy('m', interval '100 years')";

/// Makes tables with rows, some of which are compressed and some deleted.
async fn make_tables(client: &Client) {
    client.batch_execute(TABLES).await.expect("the tables are made");
    // What is compressed must be committed before.
    client.batch_execute(CHANGES).await.expect("rows are changed");
}

/// What the tables of [`TABLES`] hold, and what is defined about them.
async fn content(client: &Client) -> Vec<String> {
    let questions = [
        "SELECT concat(count(*), ' ', sum(value), ' ', min(time), ' ', max(time)) FROM m",
        "SELECT string_agg(concat(id, name), ',' ORDER BY id) FROM sites",
        "SELECT concat(count(*), ' ', count(*) FILTER (WHERE is_compressed)) FROM timescaledb_information.chunks",
        "SELECT concat(job_id, ' ', proc_name, ' ', config) FROM timescaledb_information.jobs",
        "SELECT concat(hypertable_name, ' ', replication_factor) FROM timescaledb_information.hypertables",
    ];
    let mut answers = Vec::new();
    for question in questions {
        let row = client.query_one(question, &[]).await.expect("it is answered");
        answers.push(row.get(0));
    }
    answers
}

fn rebuild(cluster: &Cluster, more: &[&str]) -> Output {
    cluster.run(&[&["catalog", "rebuild"], more].concat())
}

/// Waits until data nodes have a copy of what was defined last: heartbeats bring it.
async fn copies_made(cluster: &Cluster, client: &Client) {
    let marker = "CREATE TABLE marker (n int)";
    client.batch_execute(marker).await.expect("the table can be made");
    let deadline = Instant::now() + LIMIT;
    // node.redb is the only file that definitions are written to; a name stands in it as it is.
    let kept = |node: &str| {
        let bytes = fs::read(cluster.dir().join(node).join("node.redb")).unwrap_or_default();
        bytes.windows(6).any(|window| window == b"marker")
    };
    while !["d1", "d2", "d3"].into_iter().all(kept) {
        assert!(Instant::now() < deadline, "the definitions do not reach the data nodes");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_access_nodes_are_lost_and_the_catalog_is_made_anew() {
    let cluster = Cluster::start(3, 3);
    let client = cluster.connect("a1").await;
    make_tables(&client).await;
    copies_made(&cluster, &client).await;
    let before = content(&client).await;
    drop(client);
    tokio::task::block_in_place(|| {
        let refused = rebuild(&cluster, &[]);
        assert!(!refused.status.success() && text(&refused.stderr).contains("runs: stop"));
        cluster.verb("stop", &[]);
        for node in ["a1", "a2", "a3"] {
            fs::remove_dir_all(cluster.dir().join(node)).expect("it is there");
        }
        let tried = rebuild(&cluster, &["--dry-run"]);
        assert!(tried.status.success(), "{}", text(&tried.stderr));
        assert!(text(&tried.stdout).contains("3 tables"), "{}", text(&tried.stdout));
        assert!(!cluster.dir().join("a1").exists(), "nothing was made");
        let made = rebuild(&cluster, &[]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        cluster.verb("start", &[]);
    });
    let client = cluster.connect("a1").await;
    assert_eq!(content(&client).await, before);
    // It is a cluster like any other: keys hold, chunks are made, nodes are added, and it is started again.
    let twice = "INSERT INTO m VALUES ('2026-01-01 00:01', 1, 0)";
    let refused = client.batch_execute(twice).await.expect_err("the key is taken");
    assert_eq!(refused.code().map(|code| code.code()), Some("23505"));
    let more = "INSERT INTO m VALUES ('2026-01-01', 3, 1), ('2027-01-01', 3, 1); DROP TABLE sites;
                CREATE TABLE sites (id int PRIMARY KEY, name text); INSERT INTO sites VALUES (3, 'east')";
    client.batch_execute(more).await.expect("rows are taken");
    tokio::task::block_in_place(|| {
        cluster.verb("add-access", &[]);
        cluster.verb("add-access", &[]);
        cluster.verb("stop", &[]);
        cluster.verb("start", &[]);
        cluster.wait_whole();
        cluster.check_chunks();
    });
    assert_eq!(cluster.access(), ["a1", "a4", "a5"], "numbers are not given again");
    let client = cluster.connect("a5").await;
    let after = content(&client).await;
    assert_eq!(after[1], "3east");
    assert_ne!(after[0], before[0]);
}

/// Statements that one client sends one after the other, and how many were acknowledged.
async fn write(client: Client, acknowledged: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    for n in 1u64.. {
        let insert = format!(
            "INSERT INTO m SELECT '2026-06-01'::timestamptz + {n} * interval '1 second', d, {n}
             FROM generate_series(1, 9) AS g(d)"
        );
        if stop.load(Ordering::Acquire) || client.batch_execute(&insert).await.is_err() {
            return;
        }
        acknowledged.store(n, Ordering::Release);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_access_node_is_left_to_tell_is_used() {
    let cluster = Cluster::start(3, 3);
    let client = cluster.connect("a1").await;
    make_tables(&client).await;
    let status = tokio::task::block_in_place(|| {
        cluster.wait_for("a leader", |status| status["leader"].is_string())
    });
    let leader = status["leader"].as_str().expect("it was a name").to_owned();
    let (acknowledged, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let writer = cluster.connect(&leader).await;
    let writing = tokio::spawn(write(writer, Arc::clone(&acknowledged), Arc::clone(&stop)));
    let deadline = Instant::now() + LIMIT;
    while acknowledged.load(Ordering::Acquire) < 20 {
        assert!(Instant::now() < deadline, "nothing is acknowledged");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Without the others the leader acknowledges nothing more; then all else dies at once, with decisions under way.
    tokio::task::block_in_place(|| {
        let others = cluster.access().into_iter().filter(|node| *node != leader);
        let others: Vec<String> = others.collect();
        let data = ["d1", "d2", "d3"].map(str::to_owned);
        for node in others.iter().chain([&leader]).chain(&data) {
            cluster.verb("kill", &[node]);
        }
        stop.store(true, Ordering::Release);
        for node in &others {
            fs::remove_dir_all(cluster.dir().join(node)).expect("it is there");
        }
        // A node that is lost as well is given up by name only; of each chunk another one has a replica.
        fs::remove_dir_all(cluster.dir().join("d2")).expect("it is there");
        let refused = rebuild(&cluster, &[]);
        let told = text(&refused.stderr);
        assert!(
            !refused.status.success() && told.contains("d2") && told.contains("--without"),
            "{told}"
        );
        let made = rebuild(&cluster, &["--without", "d2"]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        cluster.verb("start", &[]);
    });
    writing.await.expect("the writer does not panic");
    let client = cluster.connect("a1").await;
    let sql = "SELECT count(DISTINCT value), count(*) FROM m WHERE time >= '2026-06-01' AND value <= $1::float8";
    let acknowledged = acknowledged.load(Ordering::Acquire);
    let row = client.query_one(sql, &[&(acknowledged as f64)]).await.expect("a count");
    let (statements, rows) = (row.get::<_, i64>(0), row.get::<_, i64>(1));
    assert_eq!((statements, rows), (acknowledged as i64, acknowledged as i64 * 9));
    // The data node that was lost comes back as a new disk, and is filled again.
    tokio::task::block_in_place(|| {
        cluster.wait_whole();
        cluster.check_chunks();
    });
}
