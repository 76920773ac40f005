//! Crashes: `kill -9` of each kind of process while statements come in, and of the leader.
//!
//! A statement is a COPY of a hundred rows over several chunks and nodes. Whatever is killed: after the restart every
//! acknowledged statement is there whole, and of every other one all rows are there or none.

#![allow(clippy::indexing_slicing, reason = "a test may fail by panicking")]

mod cluster;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use cluster::{Cluster, LIMIT, text};
use futures::SinkExt;
use tokio_postgres::{Client, NoTls};

const STATEMENT_ROWS: u64 = 100;
const COPY: &str = "COPY events (time, source, statement, n) FROM STDIN (FORMAT csv)";
/// Statements that must be acknowledged before and after the crash, so that a run that did nothing fails.
const ACKNOWLEDGED_MIN: usize = 5;

fn statement_rows(statement: u64) -> String {
    let row = |n: u64| {
        format!("2026-01-{:02} 00:00:00+00,source {},{statement},{n}\n", 1 + n % 20, n % 16)
    };
    (0..STATEMENT_ROWS).map(row).collect()
}

async fn prepare(cluster: &Cluster) {
    prepare_replicated(cluster, 1).await;
}

async fn prepare_replicated(cluster: &Cluster, replicas: u16) {
    let client = cluster.connect("a1").await;
    let create = "CREATE TABLE events (time timestamptz NOT NULL, source text NOT NULL, statement bigint, n bigint)";
    client.batch_execute(create).await.expect("the table can be made");
    let distribute = format!(
        "SELECT * FROM create_distributed_hypertable('events', 'time', 'source', number_partitions => 4, \
         replication_factor => {replicas})"
    );
    client.batch_execute(&distribute).await.expect("it can be distributed");
}

/// One COPY, which may fail or hang at any point.
async fn copy(client: &Client, statement: u64) -> Result<(), tokio_postgres::Error> {
    let sink = client.copy_in::<_, Bytes>(COPY).await?;
    let mut sink = std::pin::pin!(sink);
    sink.send(Bytes::from(statement_rows(statement))).await?;
    sink.finish().await.map(drop)
}

/// A client that sends statement after statement, over whichever access node answers.
#[derive(Clone, Debug)]
struct Writer {
    addresses: Vec<String>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeSet<u64>>>,
}

impl Writer {
    fn new(cluster: &Cluster) -> Self {
        let addresses = cluster.access().iter().map(|node| cluster.endpoint(node, "pg")).collect();
        Self { addresses, stop: Arc::default(), acknowledged: Arc::default() }
    }

    fn acknowledged(&self) -> BTreeSet<u64> {
        self.acknowledged.lock().expect("no holder panics").clone()
    }

    async fn connect(&self, attempt: usize) -> Option<Client> {
        let address = &self.addresses[attempt % self.addresses.len()];
        let (host, port) = address.rsplit_once(':').expect("it is host:port");
        let settings = format!("host={host} port={port} user=hypertide dbname=hypertide");
        let connected =
            tokio::time::timeout(Duration::from_secs(2), tokio_postgres::connect(&settings, NoTls));
        let (client, connection) = connected.await.ok()?.ok()?;
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Some(client)
    }

    /// Sends statements until told to stop; never one twice, for an unanswered one may still take effect.
    async fn run(self) {
        let mut statement = 0;
        for attempt in 0.. {
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            let Some(client) = self.connect(attempt).await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            while !self.stop.load(Ordering::Acquire) {
                statement += 1;
                let sent = tokio::time::timeout(Duration::from_secs(5), copy(&client, statement));
                match sent.await {
                    Ok(Ok(())) => {
                        self.acknowledged.lock().expect("no holder panics").insert(statement);
                    }
                    Ok(Err(_)) | Err(_) => break,
                }
            }
        }
    }

    /// Waits until so many more statements are acknowledged.
    async fn more(&self, count: usize) {
        let goal = self.acknowledged().len() + count;
        let deadline = Instant::now() + LIMIT;
        while self.acknowledged().len() < goal {
            assert!(Instant::now() < deadline, "statements are no longer acknowledged");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Rows by statement, as this access node sees them.
async fn rows_by_statement(cluster: &Cluster, node: &str) -> BTreeMap<u64, u64> {
    let client = cluster.connect(node).await;
    let sql = "SELECT statement, count(*), count(DISTINCT n) FROM events GROUP BY statement";
    let rows = client.query(sql, &[]).await.expect("every node serves again");
    let mut found = BTreeMap::new();
    for row in rows {
        let number = |at: usize| u64::try_from(row.get::<_, i64>(at)).expect("it is a count");
        assert_eq!(number(1), number(2), "statement {} holds a row twice", number(0));
        found.insert(number(0), number(1));
    }
    found
}

/// What is wrong with the rows found, given which statements were acknowledged.
fn violations(found: &BTreeMap<u64, u64>, acknowledged: &BTreeSet<u64>) -> Vec<String> {
    let lost = acknowledged.iter().filter(|statement| !found.contains_key(statement));
    let lost = lost.map(|statement| format!("statement {statement} was acknowledged and is gone"));
    let torn = found.iter().filter(|(_, rows)| **rows != STATEMENT_ROWS);
    let torn = torn.map(|(statement, rows)| format!("statement {statement} has {rows} rows"));
    lost.chain(torn).collect()
}

async fn check(cluster: &Cluster, acknowledged: &BTreeSet<u64>) {
    assert!(acknowledged.len() >= ACKNOWLEDGED_MIN, "the run did too little to prove anything");
    for node in cluster.access() {
        let found = rows_by_statement(cluster, &node).await;
        assert_eq!(violations(&found, acknowledged), [""; 0], "seen from {node}");
    }
}

#[test]
fn lost_and_torn_statements_are_found() {
    let acknowledged = BTreeSet::from([1, 2]);
    let whole = BTreeMap::from([(1, STATEMENT_ROWS), (2, STATEMENT_ROWS), (3, STATEMENT_ROWS)]);
    assert!(violations(&whole, &acknowledged).is_empty());
    assert_eq!(violations(&BTreeMap::from([(1, STATEMENT_ROWS)]), &acknowledged).len(), 1);
    let torn = BTreeMap::from([(1, STATEMENT_ROWS), (2, STATEMENT_ROWS), (3, 7)]);
    assert_eq!(violations(&torn, &acknowledged).len(), 1);
}

/// Kills `victim` while statements come in, starts it again, and checks every statement.
async fn crash(cluster: &Cluster, victim: &str) {
    let writer = Writer::new(cluster);
    let writing = tokio::spawn(writer.clone().run());
    writer.more(ACKNOWLEDGED_MIN).await;
    tokio::task::block_in_place(|| {
        cluster.verb("kill", &[victim]);
        cluster.verb("restart", &[victim]);
        all_up(cluster);
    });
    writer.more(ACKNOWLEDGED_MIN).await;
    writer.stop.store(true, Ordering::Release);
    writing.await.expect("the writer does not panic");
    check(cluster, &writer.acknowledged()).await;
}

fn all_up(cluster: &Cluster) {
    cluster.wait_for("every node up", |status| {
        let nodes = status["nodes"].as_array().expect("it is a list");
        nodes.iter().all(|node| node["state"] == "up")
    });
}

fn leader(cluster: &Cluster) -> String {
    let status = cluster.wait_for("a leader", |status| status["leader"].is_string());
    status["leader"].as_str().expect("it was a name").to_owned()
}

fn follower(cluster: &Cluster) -> String {
    let leader = leader(cluster);
    cluster.access().into_iter().find(|node| *node != leader).expect("there are three")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_node_is_killed_during_copy() {
    let cluster = Cluster::start(3, 3);
    prepare(&cluster).await;
    crash(&cluster, "d1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_is_killed_during_copy() {
    let cluster = Cluster::start(3, 3);
    prepare(&cluster).await;
    let victim = tokio::task::block_in_place(|| follower(&cluster));
    crash(&cluster, &victim).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_is_killed_during_copy() {
    let cluster = Cluster::start(3, 3);
    prepare(&cluster).await;
    let victim = tokio::task::block_in_place(|| leader(&cluster));
    crash(&cluster, &victim).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_is_frozen_during_copy() {
    let cluster = Cluster::start(3, 3);
    prepare(&cluster).await;
    let victim = tokio::task::block_in_place(|| leader(&cluster));
    let writer = Writer::new(&cluster);
    let writing = tokio::spawn(writer.clone().run());
    writer.more(ACKNOWLEDGED_MIN).await;
    tokio::task::block_in_place(|| cluster.verb("pause", &[&victim]));
    writer.more(ACKNOWLEDGED_MIN).await;
    // It wakes up believing that it leads, and must learn better before it answers: what others acknowledged is there.
    tokio::task::block_in_place(|| cluster.verb("resume", &[&victim]));
    let acknowledged = writer.acknowledged();
    let found = rows_by_statement(&cluster, &victim).await;
    assert_eq!(violations(&found, &acknowledged), [""; 0], "seen from {victim} as it woke up");
    writer.more(ACKNOWLEDGED_MIN).await;
    writer.stop.store(true, Ordering::Release);
    writing.await.expect("the writer does not panic");
    check(&cluster, &writer.acknowledged()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_killed_during_copy() {
    let cluster = Cluster::start(3, 3);
    prepare(&cluster).await;
    let writer = Writer::new(&cluster);
    let writing = tokio::spawn(writer.clone().run());
    writer.more(ACKNOWLEDGED_MIN).await;
    tokio::task::block_in_place(|| {
        for node in ["a1", "a2", "a3", "d1", "d2", "d3"] {
            cluster.verb("kill", &[node]);
        }
    });
    writer.stop.store(true, Ordering::Release);
    writing.await.expect("the writer does not panic");
    tokio::task::block_in_place(|| cluster.verb("start", &[]));
    check(&cluster, &writer.acknowledged()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_access_node_answers_when_the_leader_is_gone() {
    let cluster = Cluster::start(3, 3);
    prepare(&cluster).await;
    let first = cluster.connect("a1").await;
    copy(&first, 1).await.expect("the cluster is whole");
    let old = tokio::task::block_in_place(|| {
        let old = leader(&cluster);
        cluster.verb("kill", &[&old]);
        old
    });
    let other = cluster.access().into_iter().find(|node| *node != old).expect("there are three");
    let client = cluster.connect(&other).await;
    let killed = Instant::now();
    let written = tokio::time::timeout(LIMIT, copy(&client, 2)).await;
    written.expect("a new leader is elected").expect("the statement waits for the new leader");
    let found = rows_by_statement(&cluster, &other).await;
    println!("read and written {:?} after the leader's death", killed.elapsed());
    assert_eq!(found, BTreeMap::from([(1, STATEMENT_ROWS), (2, STATEMENT_ROWS)]));
    let status = tokio::task::block_in_place(|| {
        cluster.wait_for("a new leader", |status| {
            status["leader"].as_str().is_some_and(|leader| leader != old)
        })
    });
    let nodes = status["nodes"].as_array().expect("it is a list");
    let gone = nodes.iter().find(|node| node["name"] == old.as_str()).expect("it is listed");
    assert_eq!(gone["state"], "down");
}

/// Something that happens to the bytes of a file.
type Harm = fn(&mut Vec<u8>);

/// Kills a data node and harms its journal before it starts again.
fn harm_journal(cluster: &Cluster, victim: &str, harm: Harm) -> Vec<u8> {
    cluster.verb("kill", &[victim]);
    let journal = cluster.dir().join(victim).join("journal.redb");
    let mut bytes = std::fs::read(&journal).expect("it has a journal");
    harm(&mut bytes);
    std::fs::write(&journal, &bytes).expect("it can be written");
    cluster.verb("restart", &[victim]);
    all_up(cluster);
    bytes
}

/// Journals that were put aside at a node.
fn journals_aside(cluster: &Cluster, node: &str) -> Vec<Vec<u8>> {
    let aside = std::fs::read_dir(cluster.dir().join(node).join("aside"));
    let places = aside.into_iter().flatten().flatten();
    let files = places.flat_map(|place| std::fs::read_dir(place.path()).into_iter().flatten());
    let journals = files.flatten().map(|file| file.path());
    let journals = journals.filter(|path| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with("journal-"))
    });
    journals.map(|path| std::fs::read(path).expect("it can be read")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_node_whose_journal_is_damaged_is_rebuilt_from_the_others() {
    let cluster = Cluster::start(1, 3);
    prepare_replicated(&cluster, 2).await;
    let harms: [(&str, Harm); 4] = [
        ("d1", |bytes| bytes.truncate(22_641)),
        ("d2", |bytes| bytes[..4096].fill(0x5a)),
        ("d3", |bytes| bytes[4096..].fill(0)),
        ("d1", |bytes| bytes.clear()),
    ];
    let writer = Writer::new(&cluster);
    let writing = tokio::spawn(writer.clone().run());
    for (victim, harm) in harms {
        writer.more(ACKNOWLEDGED_MIN).await;
        let harmed = tokio::task::block_in_place(|| {
            let harmed = harm_journal(&cluster, victim, harm);
            cluster.wait_whole();
            harmed
        });
        assert_eq!(journals_aside(&cluster, victim), [harmed], "what is left is kept");
        assert!(cluster.log_of(victim).contains("the journal in"), "the loss is told");
        writer.more(ACKNOWLEDGED_MIN).await;
    }
    writer.stop.store(true, Ordering::Release);
    writing.await.expect("the writer does not panic");
    check(&cluster, &writer.acknowledged()).await;
    tokio::task::block_in_place(|| {
        cluster.wait_whole();
        cluster.check_chunks();
    });
    assert!(!cluster.log_of("a1").contains("is damaged"), "nothing is");
}

/// Has every row that there is written to the chunks' files.
async fn flush(client: &Client) {
    let set = "ALTER TABLE events SET (timescaledb.compress)";
    client.batch_execute(set).await.expect("it is a hypertable");
    let compress = "SELECT compress_chunk(chunk, true) FROM show_chunks('events') chunk";
    client.query(compress, &[]).await.expect("the cluster is whole");
}

/// Rows whose time is in the condition.
async fn count(client: &Client, condition: &str) -> Result<i64, tokio_postgres::Error> {
    let sql = format!("SELECT count(*) FROM events WHERE {condition}");
    client.query_one(&sql, &[]).await.map(|row| row.get(0))
}

/// The chunk that was written to last, and the node that has it.
async fn last_written(client: &Client) -> (String, String) {
    let sql = "SELECT chunk_name, node_name FROM hypertide.replicas ORDER BY csn DESC LIMIT 1";
    let row = client.query_one(sql, &[]).await.expect("there is a chunk");
    (row.get(0), row.get(1))
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_replica_a_damaged_journal_is_a_loss_that_is_told() {
    let cluster = Cluster::start(1, 2);
    prepare(&cluster).await;
    let client = cluster.connect("a1").await;
    for statement in 1..=3 {
        copy(&client, statement).await.expect("the cluster is whole");
    }
    let status = tokio::task::block_in_place(|| {
        harm_journal(&cluster, "d1", |bytes| bytes.truncate(22_641));
        cluster.wait_for("damaged chunks", |status| status["chunks"]["damaged"].as_u64() > Some(0))
    });
    let damaged = status["chunks"]["damaged"].as_u64().expect("it is a number");
    let log = cluster.log_of("a1");
    let told = log.lines().filter(|line| line.contains(" ERROR ") && line.contains("is damaged"));
    let told: Vec<&str> = told.collect();
    assert_eq!(told.len() as u64, damaged, "{told:?}");
    let name = told[0].split_whitespace().find(|word| word.contains("_dist_hyper_"));
    let name = name.expect("it names the chunk");
    // Nobody counts what is left as if it were all.
    let refused =
        client.query("SELECT count(*) FROM events", &[]).await.expect_err("rows are gone");
    let refused = refused.as_db_error().expect("the server says so");
    assert!(refused.message().contains("has no replica that can be read"), "{refused}");
    assert!(refused.hint().is_some_and(|hint| hint.contains("drop the chunk")), "{refused:?}");
    let check = cluster.run(&["chunk", "check", "--all"]);
    assert!(!check.status.success() && text(&check.stdout).contains(name), "{check:?}");
    // What lies elsewhere is read on, and new rows find a place.
    copy(&client, 4).await.expect("rows are taken in");
}

/// Puts a row into a chunk whose other rows are flushed.
const ONE_MORE: &str = "INSERT INTO events VALUES ('2026-01-02 00:00:00+00', 'source 1', 4, 0)";

/// Writes three statements and flushes them; gives the number of rows.
async fn flush_three(client: &Client) -> i64 {
    for statement in 1..=3 {
        copy(client, statement).await.expect("the cluster is whole");
    }
    flush(client).await;
    count(client, "true").await.expect("the cluster is whole")
}

/// The SQLSTATE that a statement about all rows is refused with, in words that name the way out.
async fn refusal(client: &Client) -> String {
    let refused = count(client, "true").await.expect_err("a row is gone");
    let refused = refused.as_db_error().expect("the server says so");
    let hint = refused.hint().unwrap_or_default();
    assert!(hint.contains("hypertide chunk accept-loss _dist_hyper_"), "{refused:?}");
    refused.code().code().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_replica_a_damaged_journal_loses_only_chunks_with_rows_in_it() {
    let cluster = Cluster::start(1, 2);
    prepare(&cluster).await;
    let client = cluster.connect("a1").await;
    flush_three(&client).await;
    let others = "time >= '2026-01-15'";
    let before = count(&client, others).await.expect("the cluster is whole");
    assert!(before > 0, "there are rows in other chunks");
    client.batch_execute(ONE_MORE).await.expect("the cluster is whole");
    let (chunk, node) = last_written(&client).await;
    tokio::task::block_in_place(|| {
        harm_journal(&cluster, &node, |bytes| bytes.clear());
        cluster.wait_for("a damaged chunk", |status| status["chunks"]["damaged"] == 1)
    });
    let log = cluster.log_of("a1");
    let told = log.lines().filter(|line| line.contains(" ERROR ")).collect::<Vec<_>>();
    assert!(told.len() == 1 && told[0].contains(&chunk), "{told:?}");
    assert_eq!(count(&client, others).await.expect("they are whole"), before);
    assert_eq!(refusal(&client).await, "XX001");
    // The others take rows on the disk of now.
    copy(&client, 5).await.expect("rows are taken in");
    assert!(count(&client, others).await.expect("they are whole") > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_gives_up_what_a_damaged_chunk_lost() {
    let cluster = Cluster::start(1, 2);
    prepare(&cluster).await;
    let client = cluster.connect("a1").await;
    let before = flush_three(&client).await;
    client.batch_execute(ONE_MORE).await.expect("the cluster is whole");
    let (chunk, node) = last_written(&client).await;
    let whole = cluster.run(&["chunk", "accept-loss", &chunk]);
    assert!(!whole.status.success() && text(&whole.stderr).contains("not damaged"), "{whole:?}");
    tokio::task::block_in_place(|| {
        harm_journal(&cluster, &node, |bytes| bytes.clear());
        cluster.wait_for("a damaged chunk", |status| status["chunks"]["damaged"] == 1)
    });
    assert!(cluster.log_of("a1").contains(&format!("hypertide chunk accept-loss {chunk}")));
    let sql =
        "SELECT node_name, state, advice FROM hypertide.replicas WHERE chunk_state = 'damaged'";
    let row = client.query_one(sql, &[]).await.expect("what is left is listed");
    assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), (node.as_str(), "left"));
    assert!(row.get::<_, &str>(2).contains(&chunk));
    let asked = cluster.run(&["chunk", "accept-loss", &chunk]);
    let told = text(&asked.stdout);
    assert!(asked.status.success() && told.contains(&node) && told.contains("--yes"), "{asked:?}");
    assert_eq!(refusal(&client).await, "XX001", "nothing was changed");
    let other = if node == "d1" { "d2" } else { "d1" };
    let wrong = cluster.run(&["chunk", "accept-loss", &chunk, "--node", other, "--yes"]);
    assert!(!wrong.status.success(), "{wrong:?}");
    let done = cluster.run(&["chunk", "accept-loss", &chunk, "--node", &node, "--yes"]);
    assert!(done.status.success() && text(&done.stdout).contains("are lost"), "{done:?}");
    // What was flushed is read, on it goes in a new generation, and it all lasts.
    assert_eq!(count(&client, "true").await.expect("it is read again"), before);
    client.batch_execute(ONE_MORE).await.expect("rows are taken in");
    assert_eq!(count(&client, "true").await.expect("it is read again"), before + 1);
    assert_ne!(last_written(&client).await.0, chunk, "it takes no rows itself");
    tokio::task::block_in_place(|| {
        cluster.verb("kill", &[&node]);
        cluster.verb("restart", &[&node]);
        all_up(&cluster);
        cluster.wait_whole();
        cluster.check_chunks();
    });
    assert_eq!(count(&client, "true").await.expect("it is read again"), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_replicas_are_made_anew_from_the_one_that_is_taken() {
    let cluster = Cluster::start(1, 3);
    prepare_replicated(&cluster, 2).await;
    let client = cluster.connect("a1").await;
    let before = flush_three(&client).await;
    client.batch_execute(ONE_MORE).await.expect("the cluster is whole");
    let (chunk, _) = last_written(&client).await;
    let sql = "SELECT node_name FROM hypertide.replicas WHERE chunk_name = $1";
    let nodes = client.query(sql, &[&chunk]).await.expect("it is listed");
    let nodes: Vec<String> = nodes.iter().map(|row| row.get(0)).collect();
    assert_eq!(nodes.len(), 2);
    tokio::task::block_in_place(|| {
        nodes.iter().for_each(|node| drop(cluster.verb("kill", &[node])));
        for node in &nodes {
            std::fs::write(cluster.dir().join(node).join("journal.redb"), b"")
                .expect("it is there");
        }
        nodes.iter().for_each(|node| drop(cluster.verb("restart", &[node])));
        cluster.wait_for("a damaged chunk", |status| status["chunks"]["damaged"] == 1);
        let done = cluster.run(&["chunk", "accept-loss", &chunk, "--yes"]);
        assert!(done.status.success(), "{done:?}");
        cluster.wait_whole();
        cluster.check_chunks();
    });
    assert_eq!(count(&client, "true").await.expect("it is read again"), before);
}
