//! A data node is killed under load: with two replicas no statement fails for lack of it, no row is missing, and it
//! catches up when it comes back, by what it missed.

#![allow(clippy::indexing_slicing, reason = "a test may fail by panicking")]

mod cluster;

use std::time::Instant;

use cluster::{
    Cluster,
    load::{Load, make_table},
};

/// Inserts and counts between two events.
const STATEMENTS: u64 = 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_data_node_is_survived_and_catches_up() {
    let cluster = Cluster::start(1, 3);
    let client = cluster.connect("a1").await;
    make_table(&client).await;
    let load = Load::start(&cluster, &["a1", "a1"]).await;
    load.more(STATEMENTS).await;
    let began = Instant::now();
    cluster.verb("kill", &["d1"]);
    load.more(STATEMENTS).await;
    load.say("killed", began);
    let began = Instant::now();
    cluster.verb("restart", &["d1"]);
    load.more(STATEMENTS).await;
    cluster.wait_whole();
    load.say("back", began);
    load.end(&client).await;
    // The rows are there without either of the other nodes, and d1 got them by what it missed.
    cluster.check_chunks();
    cluster.say_fetched("d1");
    let log = cluster.log_of("d1");
    assert!(log.contains(": delta of ") && !log.contains(": whole copy of "), "{log}");
}
