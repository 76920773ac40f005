//! Nodes that come later: a data node that waits to be taken in from SQL, one added by the command line, and `dev`.

#![allow(clippy::indexing_slicing, reason = "a test may fail by panicking")]

mod cluster;

use cluster::{Cluster, LIMIT, Process, connect, http_get, run, run_ok, text, wait_for_file};

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_data_node_is_taken_in_from_sql() {
    let cluster = Cluster::start(1, 1);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().to_str().expect("it is plain");
    let any = "127.0.0.1:0";
    let line = ["data", "--dir", path, "--rpc", any, "--http", any];
    let mut waiting = Process::start(&line, &dir.path().join("log"));
    let endpoints = wait_for_file(&dir.path().join("endpoints.json"), |text| text.contains("rpc"));
    let endpoints: serde_json::Value = serde_json::from_str(&endpoints).expect("it is JSON");
    let rpc = endpoints["nodes"][0]["rpc"].as_str().expect("it has an address");
    let (host, port) = rpc.rsplit_once(':').expect("it is host:port");
    let client = cluster.connect("a1").await;
    let add = format!(
        "SELECT node_name, node_created FROM add_data_node('d7', host => '{host}', port => {port})"
    );
    let row = client.query_one(&add, &[]).await.expect("the node waits to be taken in");
    assert_eq!((row.get::<_, &str>(0), row.get::<_, bool>(1)), ("d7", true));
    tokio::task::block_in_place(|| {
        cluster.wait_for("d7 up", |status| {
            let nodes = status["nodes"].as_array().expect("it is a list");
            nodes.iter().any(|node| node["name"] == "d7" && node["state"] == "up")
        })
    });
    let error = client.query_one(&add, &[]).await.expect_err("the name is taken");
    assert!(error.as_db_error().is_some_and(|said| said.message().contains("d7")), "{error}");
    assert!(waiting.alive());
    assert_eq!(waiting.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_node_is_added_and_takes_new_chunks() {
    let cluster = Cluster::start(1, 1);
    cluster.verb("add-data", &[]);
    assert_eq!(cluster.endpoints().len(), 3);
    let client = cluster.connect("a1").await;
    for statement in [
        "CREATE TABLE t (time timestamptz NOT NULL, source text NOT NULL)",
        "SELECT * FROM create_distributed_hypertable('t', 'time', 'source', number_partitions => 2)",
        "INSERT INTO t SELECT '2026-01-01'::timestamptz, 'source ' || value FROM generate_series(1, 32) AS s(value)",
    ] {
        client.batch_execute(statement).await.expect(statement);
    }
    let status = cluster.status();
    let nodes = status["nodes"].as_array().expect("it is a list");
    let data: Vec<_> = nodes.iter().filter(|node| node["role"] == "data").collect();
    assert_eq!(data.len(), 2);
    let output = cluster.run(&["node", "ls", "--format", "json"]);
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!(listed.as_array().map(Vec::len), Some(3));
    let output = cluster.run(&["chunk", "ls", "--table", "t", "--format", "json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let chunks: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    let chunks = chunks.as_array().expect("it is a list");
    assert_eq!(chunks.len(), 2);
    let rows: u64 = chunks.iter().filter_map(|chunk| chunk["rows"].as_u64()).sum();
    assert_eq!(rows, 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_are_started_by_hand() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let any = "127.0.0.1:0";
    let start = |name: &str, line: &[&str]| {
        let own = dir.path().join(name);
        let own = own.to_str().expect("it is plain").to_owned();
        let line = [line, &["--dir", &own, "--rpc", any, "--http", any]].concat();
        let process = Process::start(&line, &dir.path().join(format!("{name}.log")));
        let file = dir.path().join(name).join("endpoints.json");
        let endpoints = wait_for_file(&file, |text| text.contains("rpc"));
        let endpoints: serde_json::Value = serde_json::from_str(&endpoints).expect("it is JSON");
        (process, endpoints["nodes"][0].clone())
    };
    let field = |node: &serde_json::Value, name: &str| {
        node[name].as_str().expect("it has this endpoint").to_owned()
    };
    let (access, a1) = start("a1", &["access", "--id", "1", "--pg", any, "--flight", any]);
    let (rpc, http) = (field(&a1, "rpc"), field(&a1, "http"));
    assert!(http_get(&http, "/health").starts_with("HTTP/1.0 503"), "it belongs to no cluster yet");
    let first = run_ok(&["init", "--access", &rpc]);
    assert_eq!(run_ok(&["init", "--access", &rpc]), first, "a cluster is formed once");
    let (data, d1) = start("d1", &["data", "--access", &rpc]);
    for address in [http, field(&d1, "http")] {
        let deadline = std::time::Instant::now() + LIMIT;
        while !http_get(&address, "/health").starts_with("HTTP/1.0 200") {
            assert!(std::time::Instant::now() < deadline, "{address} does not serve");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert!(http_get(&address, "/metrics").starts_with("HTTP/1.0 200"));
    }
    let client = connect(&field(&a1, "pg")).await;
    client.batch_execute("CREATE TABLE t (n integer)").await.expect("SQL is served");
    let listed = run_ok(&["node", "ls", "--access", &rpc, "--format", "csv"]);
    assert!(listed.contains("a1,access,up,") && listed.contains("d1,data,up,"), "{listed}");
    drop(client);
    assert_eq!((data.terminate(), access.terminate()), (Some(0), Some(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_serves_and_is_started_again_on_its_directory() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let data = dir.path().join("data");
    let path = data.to_str().expect("it is plain");
    let log = dir.path().join("log");
    let line = ["dev", "--access", "1", "--data", "2", "--dir", path, "--base-port", "0"];
    for statement in ["CREATE TABLE t (one integer)", "INSERT INTO t VALUES (2)"] {
        let process = Process::start(&line, &log);
        let ready = wait_for_file(&log, |log| log.contains("ready: psql "));
        assert!(ready.contains("-U hypertide hypertide"), "{ready}");
        let endpoints = std::fs::read(data.join("endpoints.json")).expect("it was written");
        let endpoints: serde_json::Value = serde_json::from_slice(&endpoints).expect("it is JSON");
        assert_eq!(endpoints["nodes"].as_array().map(Vec::len), Some(3));
        let address = endpoints["nodes"][0]["pg"].as_str().expect("it has an address");
        let client = connect(address).await;
        client.batch_execute(statement).await.expect(statement);
        let output =
            run(&["sql", "--dir", path, "--format", "csv", "-c", "SELECT count(*) AS n FROM t"]);
        assert!(text(&output.stdout).starts_with("n\n"), "{}", text(&output.stderr));
        drop(client);
        assert_eq!(process.terminate(), Some(0));
    }
}
