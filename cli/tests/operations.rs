//! What operators do to a cluster, or what befalls it, while clients write and read: no statement fails, no row is
//! missing or there twice, and every replica is as it should be in the end.

#![allow(clippy::indexing_slicing, reason = "a test may fail by panicking")]

mod cluster;

use std::time::Instant;

use cluster::{
    Cluster,
    load::{Load, make_table},
    run_ok, text,
};
use hypertide_proto::{
    client::Channels,
    wire::{meta::StatusRequest, storage::FlushRequest},
};
use serde_json::Value;

/// Inserts and counts of each client between two events.
const STATEMENTS: u64 = 10;

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_data_node_is_gone_around_and_catches_up() {
    let cluster = Cluster::start(3, 3);
    let client = cluster.connect("a3").await;
    make_table(&client).await;
    let load = Load::start(&cluster, &["a1", "a2"]).await;
    load.more(STATEMENTS).await;
    load.say("before", Instant::now());
    let began = Instant::now();
    cluster.verb("pause", &["d1"]);
    load.more(STATEMENTS).await;
    cluster.wait_for("d1 down", |status| {
        let nodes = status["nodes"].as_array().expect("it is a list");
        nodes.iter().any(|node| node["name"] == "d1" && node["state"] == "down")
    });
    load.more(STATEMENTS).await;
    load.say("frozen", began);
    let began = Instant::now();
    cluster.verb("resume", &["d1"]);
    load.more(STATEMENTS).await;
    cluster.wait_whole();
    load.say("back", began);
    load.end(&client).await;
    cluster.check_chunks();
    // It is brought up by what it missed, not by whole chunks.
    cluster.say_fetched("d1");
    let log = cluster.log_of("d1");
    assert!(log.contains(": delta of ") && !log.contains(": whole copy of "), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_data_node_is_rebuilt() {
    let cluster = Cluster::start(1, 3);
    let client = cluster.connect("a1").await;
    make_table(&client).await;
    let load = Load::start(&cluster, &["a1", "a1"]).await;
    load.more(STATEMENTS).await;
    let began = Instant::now();
    cluster.verb("kill", &["d2"]);
    std::fs::remove_dir_all(cluster.dir().join("d2")).expect("it can be removed");
    load.more(STATEMENTS).await;
    load.say("wiped", began);
    let began = Instant::now();
    cluster.verb("restart", &["d2"]);
    load.more(STATEMENTS).await;
    cluster.wait_whole();
    load.say("rebuilt", began);
    load.end(&client).await;
    cluster.check_chunks();
    let status = cluster.status();
    let nodes = status["nodes"].as_array().expect("it is a list");
    let wiped = nodes.iter().find(|node| node["name"] == "d2").expect("it is listed");
    assert!(wiped["chunks"].as_u64() > Some(0), "{status}");
    cluster.say_fetched("d2");
}

/// Names of the chunks and their replicas.
fn chunks(cluster: &Cluster) -> Vec<(String, Vec<String>)> {
    let listed = cluster.run(&["chunk", "ls", "--format", "json"]);
    let listed: Vec<Value> = serde_json::from_slice(&listed.stdout).expect("it is a list");
    let chunk = |row: &Value| {
        let replicas = row["replicas"].as_str().expect("they are listed");
        let name = row["chunk"].as_str().expect("it has a name").to_owned();
        (name, replicas.split(',').map(str::to_owned).collect())
    };
    listed.iter().map(chunk).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_move_and_are_copied_under_load() {
    let cluster = Cluster::start(1, 3);
    let client = cluster.connect("a1").await;
    make_table(&client).await;
    let load = Load::start(&cluster, &["a1", "a1"]).await;
    load.more(STATEMENTS).await;
    let dir = cluster.dir().to_str().expect("it is text").to_owned();
    let began = Instant::now();
    let listed = chunks(&cluster);
    for (name, replicas) in listed.iter().take(4) {
        let free =
            ["d1", "d2", "d3"].into_iter().find(|node| !replicas.iter().any(|at| at == node));
        let (from, to) = (replicas[0].as_str(), free.expect("two of three hold it"));
        run_ok(&["chunk", "move", name, "--from", from, "--to", to, "--dir", &dir]);
        let moved = chunks(&cluster);
        let (_, now) = moved.iter().find(|(other, _)| other == name).expect("it is still there");
        assert!(now.iter().any(|at| at == to) && now.iter().all(|at| at != from), "{now:?}");
    }
    load.say("moves", began);
    load.more(STATEMENTS).await;
    let (name, replicas) = chunks(&cluster).swap_remove(0);
    let free = ["d1", "d2", "d3"].into_iter().find(|node| !replicas.iter().any(|at| at == node));
    let (from, to) = (replicas[0].as_str(), free.expect("two of three hold it"));
    let copy = ["chunk", "copy", &name, "--from", from, "--to", to, "--operation", "extra"];
    run_ok(&[&copy[..], &["--dir", &dir]].concat());
    let status = "SELECT desired_num_replicas, num_replicas, cardinality(non_replica_nodes) \
                  FROM timescaledb_experimental.chunk_replication_status WHERE chunk_name = $1";
    let row = client.query_one(status, &[&name]).await.expect("the chunk is listed");
    assert_eq!((row.get::<_, i32>(0), row.get::<_, i32>(1)), (2, 3));
    let order = "SELECT kind, phase FROM hypertide.moves WHERE operation_id = 'extra'";
    let row = client.query_one(order, &[]).await.expect("the order stands");
    assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), ("copy", "done"));
    // Where it is already, and what is no node.
    for (to, code) in [(to, 1), ("d9", 1)] {
        let again = ["chunk", "copy", &name, "--from", from, "--to", to, "--dir", &dir];
        assert_eq!(cluster::run(&again).status.code(), Some(code));
    }
    load.end(&client).await;
    cluster.check_chunks();
}

/// Bytes of the data nodes that take chunks.
fn node_bytes(status: &Value) -> Vec<u64> {
    let nodes = status["nodes"].as_array().expect("it is a list");
    let data = nodes.iter().filter(|node| node["role"] == "data");
    data.map(|node| node["bytes"].as_u64().expect("it is a number")).collect()
}

/// Whether the fullest and the emptiest of `count` data nodes differ by no more than a fifth of the mean.
fn even(status: &Value, count: usize) -> bool {
    let bytes = node_bytes(status);
    let mean = bytes.iter().sum::<u64>() / bytes.len().max(1) as u64;
    let (most, least) = (bytes.iter().max().unwrap_or(&0), bytes.iter().min().unwrap_or(&0));
    bytes.len() == count && *least > 0 && (most - least) * 5 <= mean
}

/// Lets the data nodes write what they hold in memory to segments, which is what is weighed.
async fn flush(cluster: &Cluster) {
    let channels = Channels::default();
    let mut meta = channels.meta(&cluster.endpoint("a1", "rpc")).expect("an address");
    let status = meta.status(StatusRequest::default()).await.expect("it answers").into_inner();
    for node in status.nodes.iter().filter(|node| node.role == "data") {
        let mut client = channels.storage(&node.rpc).expect("an address");
        let request = FlushRequest { cluster: status.cluster.clone(), chunks: Vec::new() };
        client.flush(request).await.expect("it flushes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fourth_node_takes_its_share_and_another_is_removed() {
    let cluster = Cluster::start(1, 3);
    let client = cluster.connect("a1").await;
    // Enough to be worth a move: what is written all the time is small.
    client.batch_execute("CREATE TABLE bulk (n bigint, device text, v double)").await.unwrap();
    let distribute = "SELECT create_distributed_hypertable('bulk', 'n', 'device', \
                      replication_factor => 2, chunk_time_interval => 20000)";
    client.batch_execute(distribute).await.unwrap();
    let fill = "INSERT INTO bulk SELECT i, 'd' || i % 50, random() FROM generate_series(0, 159999) AS s(i)";
    client.batch_execute(fill).await.unwrap();
    flush(&cluster).await;
    make_table(&client).await;
    let load = Load::start(&cluster, &["a1"]).await;
    load.more(STATEMENTS).await;
    let began = Instant::now();
    cluster.verb("add-data", &[]);
    cluster.wait_for("d4 to have its share", |status| even(status, 4));
    load.more(STATEMENTS).await;
    load.say("added", began);
    cluster.say_fetched("d4");
    let began = Instant::now();
    let dir = cluster.dir().to_str().expect("it is text").to_owned();
    run_ok(&["node", "drain", "d2", "--dir", &dir]);
    load.say("drained", began);
    cluster.wait_for("d2 to have removed its chunks", |status| {
        let nodes = status["nodes"].as_array().expect("it is a list");
        nodes.iter().any(|node| node["name"] == "d2" && node["chunks"] == 0)
    });
    let began = Instant::now();
    run_ok(&["node", "remove", "d2", "--dir", &dir]);
    load.more(STATEMENTS).await;
    load.say("removed", began);
    assert!(cluster.endpoints().iter().all(|node| node["name"] != "d2"));
    cluster.wait_whole();
    load.end(&client).await;
    cluster.check_chunks();
    let sum = client
        .query_one("SELECT count(*), CAST(sum(n) AS bigint) FROM bulk", &[])
        .await
        .expect("a sum");
    assert_eq!((sum.get::<_, i64>(0), sum.get::<_, i64>(1)), (160_000, 12_799_920_000));
    let shown = run_ok(&["rebalance", "status", "--format", "json", "--dir", &dir]);
    let shown: Value = serde_json::from_str(&shown).expect("it is JSON");
    assert_eq!(shown["enabled"], true);
    assert!(shown["bytes_copied"].as_u64() > Some(0), "{shown}");
    run_ok(&["rebalance", "pause", "--dir", &dir]);
    let now = client.query_one("SELECT enabled FROM hypertide.rebalancing", &[]).await.unwrap();
    assert!(!now.get::<_, bool>(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn access_nodes_come_and_go() {
    let cluster = Cluster::start(3, 2);
    let client = cluster.connect("a1").await;
    make_table(&client).await;
    let load = Load::start(&cluster, &["a1"]).await;
    load.more(STATEMENTS).await;
    let dir = cluster.dir().to_str().expect("it is text").to_owned();
    let began = Instant::now();
    cluster.verb("add-access", &[]);
    load.say("a4 added", began);
    // What was written before is seen there.
    let there = cluster.connect("a4").await;
    let count = there.query_one("SELECT count(*) FROM m", &[]).await.expect("a count");
    assert!(count.get::<_, i64>(0) > 0);
    drop(there);
    let began = Instant::now();
    cluster.verb("kill", &["a3"]);
    run_ok(&["node", "remove", "a3", "--dir", &dir]);
    load.more(STATEMENTS).await;
    load.say("a3 removed", began);
    let status = cluster.status();
    let nodes = status["nodes"].as_array().expect("it is a list");
    let access = nodes.iter().filter(|node| node["role"] == "access");
    let names: Vec<&str> = access.filter_map(|node| node["name"].as_str()).collect();
    assert_eq!(names, ["a1", "a2", "a4"]);
    // The majority is of the three there are.
    cluster.verb("kill", &["a2"]);
    load.more(STATEMENTS).await;
    load.end(&client).await;
    // Words that name nothing, or the wrong kind, are the caller's mistake.
    for wrong in [["node", "drain", "a1"], ["node", "remove", "d9"]] {
        let output = cluster.run(&wrong);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_check_of_a_corrupted_file_names_chunk_node_and_place() {
    let cluster = Cluster::start(1, 2);
    let client = cluster.connect("a1").await;
    client
        .batch_execute(
            "CREATE TABLE m (time timestamptz NOT NULL, device text NOT NULL, value double precision);
             SELECT create_distributed_hypertable('m', 'time', 'device', number_partitions => 2, replication_factor => 1);
             INSERT INTO m SELECT to_timestamp(1767225600 + i), 'd' || (i % 9), i FROM generate_series(1, 5000) AS g(i);
             ALTER TABLE m SET (timescaledb.compress)",
        )
        .await
        .expect("the table is made");
    let written = "SELECT compress_chunk(c) FROM show_chunks('m') c";
    let written = client.query(written, &[]).await.expect("its rows are written to segments");
    assert_eq!(written.len(), 2, "a chunk on each node");
    cluster.check_chunks();
    cluster.verb("kill", &["d1"]);
    let chunks = std::fs::read_dir(cluster.dir().join("d1/chunks")).expect("d1 has chunks");
    let path = chunks.flatten().next().expect("d1 has a chunk").path();
    let mut bytes = std::fs::read(&path).expect("it can be read");
    // In the last block; the header of its segment, with the zone maps, is in front.
    let at = bytes.windows(4).rposition(|window| window == b"HTsg").expect("it holds a segment");
    bytes[at + 60] ^= 1;
    std::fs::write(&path, bytes).expect("it can be written");
    cluster.verb("restart", &["d1"]);
    cluster.wait_for("d1 up", |status| {
        let nodes = status["nodes"].as_array().expect("it is a list");
        nodes.iter().all(|node| node["state"] == "up")
    });
    let check = |more: &[&str]| {
        let output =
            cluster.run(&[&["chunk", "check", "--checksums", "--format", "json"], more].concat());
        let list: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
        (
            output.status.code(),
            list.as_array().cloned().expect("it is a list"),
            text(&output.stderr),
        )
    };
    let (code, wrong, said) = check(&[]);
    assert_eq!((code, wrong.len()), (Some(1), 1), "{wrong:?} {said}");
    assert!(said.contains("1 of 2 replicas are wrong"), "{said}");
    let row = &wrong[0];
    assert_eq!((&row["node"], &row["verdict"]), (&"d1".into(), &"wrong".into()), "{row}");
    assert!(row["problem"].as_str().is_some_and(|what| what.contains("segment")), "{row}");
    // Every replica is listed on demand, and the other one is as it should be.
    let (code, all, _) = check(&["--all"]);
    let fine = all.iter().filter(|row| row["verdict"] == "ok").count();
    assert_eq!((code, all.len(), fine), (Some(1), 2, 1), "{all:?}");
    let chunk = row["chunk"].as_str().expect("it has a name");
    let (_, named, _) = check(&["--all", chunk]);
    assert_eq!(named.len(), 1, "{named:?}");
    // Nobody is given rows of it. What the zone maps tell is right all the same.
    let counted = client.query_one("SELECT count(*) FROM m", &[]).await.expect("it is counted");
    assert_eq!(counted.get::<_, i64>(0), 5000);
    let refused = client.query("SELECT sum(value) FROM m", &[]).await.expect_err("rows are wrong");
    let refused = refused.as_db_error().expect("the server says so").message().to_owned();
    assert!(refused.contains("[d1]") && refused.contains("chunk"), "{refused}");
}
