//! A cluster is backed up while it is written to, and restored to another: what is there then is what was committed up to
//! the snapshot, value by value.

#![allow(clippy::indexing_slicing, reason = "a test may fail by panicking")]

mod cluster;

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use cluster::{Cluster, run, run_ok, text};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

/// Every type, names that need quotes, all that can be said of a hypertable.
const SCHEMA: &str = r#"
    CREATE TABLE "Odd Schema"."Ta""ble" (time timestamptz NOT NULL, "Dev ""x" text DEFAULT 'it''s',
        a smallint, b int DEFAULT 5, c bigint, d real, e double precision, f numeric, g numeric(12,3),
        h boolean, i varchar(20), j timestamp, k date, l jsonb, m uuid, n bytea, PRIMARY KEY (time, "Dev ""x"));
    SELECT create_distributed_hypertable('"Odd Schema"."Ta""ble"', 'time', 'Dev "x', 4,
        chunk_time_interval => INTERVAL '1 day', replication_factor => 2);
    SELECT set_min_in_sync('"Odd Schema"."Ta""ble"', 2);
    ALTER TABLE "Odd Schema"."Ta""ble" SET (timescaledb.compress, timescaledb.compress_segmentby = '"Dev ""x"');
    SELECT add_retention_policy('"Odd Schema"."Ta""ble"', drop_after => INTERVAL '100 years');
    CREATE TABLE writes (n bigint NOT NULL, writer int, v double precision);
    SELECT create_distributed_hypertable('writes', 'n', 'writer', 2, chunk_time_interval => 20, replication_factor => 2);
    CREATE TABLE plain (id int PRIMARY KEY, "name" text);
    INSERT INTO plain VALUES (1, 'one'), (2, NULL);
"#;
const ROWS: &str = r#"
    INSERT INTO "Odd Schema"."Ta""ble" VALUES
    ('2026-01-01 00:00Z', 'a', 1, 2, 3, 'NaN', '-0', 1.5, -2.25, true, 'äöü', 'infinity', '2020-02-02',
        '{"b": 1,  "a": [1,2]}', '0f0f0f0f-1111-2222-3333-444444444444', '\x00ff'),
    ('2026-01-02 00:00Z', 'b', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    ('2026-01-03 00:00Z', '', -32768, -2147483648, -9223372036854775808, '-Infinity', 'Infinity',
        -1234567890123.0123456789, 999999999.999, false, '', '-infinity', 'infinity', 'null',
        '00000000-0000-0000-0000-000000000000', ''),
    ('2300-01-01 00:00Z', 'end', 32767, 2147483647, 9223372036854775807, '-0', 'NaN', 0, 0, true, 'x',
        '0001-01-01 00:00 BC', '-infinity', '[]', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '\xdeadbeef');
    SELECT compress_chunk(c) FROM show_chunks('"Odd Schema"."Ta""ble"', older_than => TIMESTAMPTZ '2026-01-02 00:00Z') c;
"#;
/// Writers, each with numbers of its own.
const WRITERS: i32 = 2;

/// A row that came, or went when `gone`, with the entry of the log that did it.
#[derive(Clone, Copy, Debug)]
struct Change {
    row: i64,
    gone: bool,
    entry: i64,
}

/// Clients that write until they are told to stop.
struct Writing {
    changes: Arc<Mutex<Vec<Change>>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Writing {
    async fn start(cluster: &Cluster) -> Self {
        let (changes, stop) = (Arc::<Mutex<Vec<Change>>>::default(), Arc::<AtomicBool>::default());
        let mut tasks = Vec::new();
        for writer in 0..WRITERS {
            let client = cluster.connect("a1").await;
            let (changes, stop) = (Arc::clone(&changes), Arc::clone(&stop));
            tasks.push(tokio::spawn(async move {
                for number in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let row = number * i64::from(WRITERS) + i64::from(writer);
                    let insert =
                        format!("INSERT INTO writes VALUES ({row}, {writer}, {row} / 2.0)");
                    note(&client, &changes, (&insert, row, false)).await;
                    if number % 3 == 2 {
                        let delete =
                            format!("DELETE FROM writes WHERE n = {row} AND writer = {writer}");
                        note(&client, &changes, (&delete, row, true)).await;
                    }
                }
            }));
        }
        Self { changes, stop, tasks }
    }

    async fn more(&self, count: usize) {
        let wanted = self.changes.lock().expect("no task panicked").len() + count;
        let deadline = std::time::Instant::now() + cluster::LIMIT;
        while self.changes.lock().expect("no task panicked").len() < wanted {
            assert!(std::time::Instant::now() < deadline, "the writers do not get on");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    async fn end(self) -> Vec<Change> {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.expect("a writer does not fail");
        }
        self.changes.lock().expect("no task panicked").clone()
    }
}

async fn note(client: &Client, changes: &Mutex<Vec<Change>>, (sql, row, gone): (&str, i64, bool)) {
    assert_eq!(client.execute(sql, &[]).await.expect("it is written"), 1, "{sql}");
    let last = client.query_one("SELECT hypertide_last_commit()", &[]).await.expect("it is known");
    changes.lock().expect("no task panicked").push(Change { row, gone, entry: last.get(0) });
}

/// The rows of `writes` up to an entry of the log.
fn state_at(changes: &[Change], entry: i64) -> BTreeSet<i64> {
    let mut before: Vec<&Change> = changes.iter().filter(|change| change.entry <= entry).collect();
    before.sort_by_key(|change| change.entry);
    let mut rows = BTreeSet::new();
    for change in before {
        let known = if change.gone { rows.remove(&change.row) } else { rows.insert(change.row) };
        assert!(known, "{change:?}");
    }
    rows
}

fn manifest(dir: &Path) -> Value {
    let text = std::fs::read(dir.join("manifest.json")).expect("it is there");
    let manifest: Value = serde_json::from_slice(&text).expect("it is JSON");
    manifest["backup"].clone()
}

/// What the manifest says of the tables, without their files.
fn tables(dir: &Path) -> Vec<Value> {
    let mut tables = manifest(dir)["tables"].as_array().expect("it is a list").clone();
    tables.iter_mut().for_each(|table| table["files"] = Value::Null);
    tables
}

/// The statements of `schema.sql`, without the line that names the cluster.
fn schema(dir: &Path) -> String {
    let text = std::fs::read_to_string(dir.join("schema.sql")).expect("it is there");
    text.split_once('\n').expect("it has lines").1.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_up_to_the_snapshot_is_restored() {
    let (source, target) = (Cluster::start(1, 3), Cluster::start(1, 2));
    let client = source.connect("a1").await;
    client.batch_execute(SCHEMA).await.expect("the tables can be made");
    client.batch_execute(ROWS).await.expect("the rows can be written");
    let root = tempfile::tempdir().expect("a temporary directory");
    let (first, second) = (root.path().join("first"), root.path().join("second"));
    let (first_name, second_name) = (first.to_str().unwrap(), second.to_str().unwrap());
    let (from, to) = (source.dir().to_str().unwrap(), target.dir().to_str().unwrap());

    let writing = Writing::start(&source).await;
    writing.more(120).await;
    let said = run_ok(&["backup", "create", "--to", first_name, "--dir", from]);
    assert!(said.contains("3 tables"), "{said}");
    writing.more(30).await;
    let changes = writing.end().await;
    run_ok(&["backup", "verify", first_name]);
    let snapshot = manifest(&first)["snapshot"].as_i64().expect("it is a number");
    let expected = state_at(&changes, snapshot);
    let late = changes.iter().filter(|change| change.entry > snapshot).count();
    assert!(expected.len() > 50 && late >= 30, "{} rows, {late} changes after", expected.len());

    run_ok(&["backup", "restore", "--from", first_name, "--dir", to]);
    let restored = target.connect("a1").await;
    let rows = restored.query("SELECT n FROM writes", &[]).await.expect("they can be read");
    let found: BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(rows.len(), found.len(), "no row is there twice");
    assert_eq!(found, expected);

    // What is saved of the other cluster is the same.
    run_ok(&["backup", "create", "--to", second_name, "--dir", to]);
    assert_eq!(tables(&second), tables(&first));
    assert_eq!(schema(&second), schema(&first));
    let compressed = "SELECT count(*) FROM timescaledb_information.chunks WHERE is_compressed";
    assert_eq!(restored.query_one(compressed, &[]).await.unwrap().get::<_, i64>(0), 1);
    assert_eq!(source.complaints(&[]), Vec::<String>::new());
    assert_eq!(target.complaints(&[]), Vec::<String>::new());
    refuses(&first, (&source, &target)).await;
}

/// What is not restored: over tables that are there, and what is damaged.
async fn refuses(backup: &Path, (source, target): (&Cluster, &Cluster)) {
    let name = backup.to_str().expect("it is text");
    let refused = |arguments: &[&str], cluster: &Cluster, expected: &str| {
        let output = cluster.run(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(expected), "{said}");
    };
    let restore = ["backup", "restore", "--from", name];
    refused(
        &restore,
        target,
        "exist already, nothing was changed: Odd Schema.Ta\"ble, public.plain",
    );
    refused(&["backup", "create", "--to", name], source, "is not empty");
    refused(&["backup", "create", "--to", "x", "--table", "nope"], source, "no table \"nope\"");
    assert!(!Path::new("x").exists());
    let short = backup.join("short.sql");
    std::fs::write(&short, "SELECT 1;").expect("it can be written");
    let edited = [&restore[..], &["--schema", short.to_str().expect("it is text")]].concat();
    refused(&edited, target, "the schema has 1 statements, that of the backup ");
    let manifest = manifest(backup);
    let file = manifest["tables"][0]["files"][0]["path"].as_str().expect("it has files");
    let mut bytes = std::fs::read(backup.join(file)).expect("it is there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(backup.join(file), bytes).expect("it can be written");
    let verified = run(&["backup", "verify", name]);
    assert_eq!(verified.status.code(), Some(1));
    assert!(text(&verified.stderr).contains(file), "{}", text(&verified.stderr));
    let client = target.connect("a1").await;
    let drop = r#"DROP TABLE "Odd Schema"."Ta""ble", writes, plain"#;
    client.batch_execute(drop).await.expect("they can be dropped");
    refused(&restore, target, "is damaged");
    let left = client.query_one("SELECT count(*) FROM hypertide.definitions", &[]).await;
    let left = left.expect("they can be counted");
    assert_eq!(left.get::<_, i64>(0), 0, "nothing was changed");
}
