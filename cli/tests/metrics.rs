//! What nodes tell a monitoring system over HTTP.

#![allow(clippy::indexing_slicing, reason = "a test may fail by panicking")]

mod cluster;

use std::{collections::BTreeMap, time::Instant};

use cluster::{Cluster, LIMIT, POLL_INTERVAL, http_get, load::make_table};

/// The measures of a node, by name and labels.
fn measures(cluster: &Cluster, node: &str) -> BTreeMap<String, f64> {
    let answer = http_get(&cluster.endpoint(node, "http"), "/metrics");
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").expect("headers end");
    let mut found = BTreeMap::new();
    for line in body.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        let family = name.split('{').next().expect("a name");
        let family = family.trim_end_matches("_bucket").trim_end_matches("_sum");
        let help = format!("# HELP {} ", family.trim_end_matches("_count"));
        assert!(body.contains(&help), "nobody knows what {name} means");
        found.insert(name.to_owned(), value.parse().expect("a number"));
    }
    found
}

/// Waits until a measure has a value.
fn wait_for(cluster: &Cluster, node: &str, name: &str, wanted: f64) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let found = measures(cluster, node);
        if found.get(name) == Some(&wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "{name} of {node} is not {wanted}: {found:?}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_tell_what_they_do() {
    let cluster = Cluster::start(1, 2);
    let client = cluster.connect("a1").await;
    make_table(&client).await;
    let rows = "INSERT INTO m VALUES ('2026-03-01', 'x', 1), ('2026-03-01', 'y', 2), ('2026-03-02', 'x', 3)";
    client.batch_execute(rows).await.expect("rows are taken");
    client.batch_execute("SELECT sum(v) FROM m").await.expect("rows are read");
    client.batch_execute("SELECT * FROM nowhere").await.expect_err("there is no such table");
    let access = measures(&cluster, "a1");
    assert_eq!(access["hypertide_rows_written_total"], 3.0);
    assert_eq!(access["hypertide_raft_leader{node=\"a1\"}"], 1.0);
    assert_eq!(access["hypertide_sessions"], 1.0);
    assert_eq!(access["hypertide_chunks_under_replicated{node=\"a1\"}"], 0.0);
    assert!(access["hypertide_chunks_total{node=\"a1\"}"] >= 1.0);
    assert!(access["hypertide_statements_total{sqlstate=\"00000\"}"] >= 4.0);
    assert!(access["hypertide_statement_seconds_count"] >= 4.0);
    let mut read = 0.0;
    for node in ["d1", "d2"] {
        wait_for(&cluster, node, &format!("hypertide_rows{{node=\"{node}\"}}"), 3.0);
        wait_for(
            &cluster,
            node,
            &format!("hypertide_pending_transactions{{node=\"{node}\"}}"),
            0.0,
        );
        let data = measures(&cluster, node);
        assert_eq!(data[&format!("hypertide_serving{{node=\"{node}\"}}")], 1.0);
        assert!(data[&format!("hypertide_disk_free_bytes{{node=\"{node}\"}}")] > 0.0);
        read += data.get("hypertide_fragments_total{outcome=\"done\"}").unwrap_or(&0.0);
    }
    assert!(read >= 1.0, "some node ran a fragment");
    drop(client);
    wait_for(&cluster, "a1", "hypertide_sessions", 0.0);
}

/// The rows of a block that nobody will end are pending on the data nodes, until these find out.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_access_node_leaves_nothing_pending() {
    let cluster = Cluster::start(3, 2);
    let client = cluster.connect("a2").await;
    make_table(&client).await;
    let block = "BEGIN; INSERT INTO m SELECT '2026-03-01'::timestamptz, 'x' || i, i \
                 FROM generate_series(1, 100) AS s (i)";
    client.batch_execute(block).await.expect("rows are taken");
    let pending = |node| format!("hypertide_pending_transactions{{node=\"{node}\"}}");
    for node in ["d1", "d2"] {
        wait_for(&cluster, node, &pending(node), 1.0);
    }
    cluster.verb("kill", &["a2"]);
    let killed = Instant::now();
    for node in ["d1", "d2"] {
        wait_for(&cluster, node, &pending(node), 0.0);
    }
    println!("nothing was pending {:.1} s after the kill", killed.elapsed().as_secs_f64());
    let other = cluster.connect("a1").await;
    let rows = other.query_one("SELECT count(*) FROM m", &[]).await.expect("rows are read");
    assert_eq!(rows.get::<_, i64>(0), 0, "the block was never committed");
}
