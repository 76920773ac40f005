//! Plans and answers over real data nodes: the golden scripts under `src/testscripts/plans`, and what happens when a
//! node is gone.
//!
//! Every query of a script runs with push-down on and off, and both must give the same rows. `> SELECT` shows rows,
//! `> EXPLAIN SELECT` the plan, `> INSERT INTO t SELECT` commits rows.

mod cluster;
mod failing;
mod removed;
mod summaries;

use std::path::Path;

use goldenscript::{Command as Line, Context};
use hypertide_proto::{schema::ColumnType, time::DAY_MICROS};
use test_each_file::test_each_path;
use tokio::runtime::Runtime;

use cluster::{Answer, Cluster, spec};

test_each_path! { in "./query/src/testscripts/plans" as golden => run_script }

fn run_script(path: &Path) {
    let runtime = Runtime::new().expect("a runtime");
    let cluster = runtime.block_on(Cluster::start(3));
    goldenscript::run(&mut Script { runtime, cluster }, path).unwrap();
}

struct Script {
    runtime: Runtime,
    cluster: Cluster,
}

type Output = Result<String, Box<dyn std::error::Error>>;

impl goldenscript::Runner for Script {
    type Command = Line;

    fn run(&mut self, line: &Line, _context: &Context) -> Output {
        let sql = line.name.as_str();
        if let Some((table, query)) =
            sql.strip_prefix("INSERT INTO ").and_then(|s| s.split_once(' '))
        {
            self.runtime.block_on(self.cluster.insert(table, query));
            return Ok(String::new());
        }
        match sql {
            "conditions" => self.runtime.block_on(self.cluster.create_conditions(3, 1)),
            "replicated" => self.runtime.block_on(self.cluster.create_conditions(6, 3)),
            "plain" => self.runtime.block_on(plain_tables(&self.cluster)),
            sql => {
                let (explain, query) = match sql.strip_prefix("EXPLAIN ") {
                    Some(query) => (true, query),
                    None => (false, sql),
                };
                let answer = self.runtime.block_on(both(&self.cluster, query))?;
                let lines = if explain { answer.explain() } else { answer.lines().join("\n") };
                return Ok(lines);
            }
        }
        Ok(String::new())
    }
}

/// A hypertable without a space column, one of integers, and a reference table.
async fn plain_tables(cluster: &Cluster) {
    let columns = [("at", ColumnType::Timestamp), ("device", ColumnType::Integer)];
    cluster.create("events", &columns, Some(spec("at", DAY_MICROS, None, 1))).await;
    let columns = [("n", ColumnType::BigInt), ("v", ColumnType::Text)];
    cluster.create("steps", &columns, Some(spec("n", 10, None, 1))).await;
    let columns = [("city", ColumnType::Text), ("state", ColumnType::Text)];
    cluster.create("cities", &columns, None).await;
}

/// The answer with push-down, after it was found equal to that without.
async fn both(cluster: &Cluster, sql: &str) -> Result<Answer, String> {
    let pushed = cluster.query(sql, true).await?;
    let pulled = cluster.query(sql, false).await?;
    if sql.contains("LIMIT") && !sql.contains("ORDER BY") {
        // Any rows will do.
        assert_eq!(pushed.lines().len(), pulled.lines().len(), "{sql}");
    } else {
        assert_eq!(pushed.sorted(), pulled.sorted(), "{sql}");
    }
    Ok(pushed)
}

const ROWS: &str = "SELECT to_timestamp(86400 * 100 + i * 1800), \
                    CASE i % 4 WHEN 0 THEN 'Seattle' WHEN 1 THEN 'New York' WHEN 2 THEN 'Berlin' \
                    ELSE NULL END, CAST(i % 37 AS DOUBLE) / 3, i % 5 FROM generate_series(0, 383) AS s (i)";

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_is_replaced_by_other_replicas() {
    let cluster = Cluster::start(3).await;
    cluster.create_conditions(4, 2).await;
    cluster.insert("conditions", ROWS).await;
    let queries = [
        "SELECT count(*), sum(humidity) FROM conditions",
        "SELECT location, count(*), max(temperature) FROM conditions GROUP BY location",
        "SELECT time, location FROM conditions WHERE location = 'Seattle' ORDER BY time LIMIT 7",
        "SELECT time, humidity FROM conditions ORDER BY time DESC, humidity LIMIT 9",
    ];
    let mut before = Vec::new();
    for query in queries {
        before.push(both(&cluster, query).await.expect("it runs").sorted());
    }
    let dead = cluster.data.get("d2").expect("it runs");
    dead.kill();
    dead.node.shutdown().await;
    for (query, before) in queries.into_iter().zip(before) {
        let after = cluster.query(query, true).await.expect("other replicas answer");
        assert_eq!(after.sorted(), before, "{query}");
        let suspects = cluster.engine.suspects.now();
        assert_eq!(suspects.len(), 1, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_another_replica_the_error_names_the_node() {
    let cluster = Cluster::start(1).await;
    cluster.create_conditions(1, 1).await;
    cluster.insert("conditions", ROWS).await;
    let dead = cluster.data.get("d1").expect("it runs");
    dead.kill();
    dead.node.shutdown().await;
    let error = cluster.query("SELECT count(*) FROM conditions", true).await.err();
    let error = error.expect("the only replica is gone");
    assert!(error.contains("[d1]"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_a_statement_do_not_depend_on_where_it_runs() {
    let cluster = Cluster::start(2).await;
    cluster.create_conditions(2, 1).await;
    cluster.insert("conditions", ROWS).await;
    let sql = "SELECT 10 / humidity FROM conditions";
    let pushed = cluster.query(sql, true).await.err().expect("it divides by zero");
    let pulled = cluster.query(sql, false).await.err().expect("it divides by zero");
    assert!(pushed.contains("Divide by zero"), "{pushed}");
    assert_eq!(pushed, pulled);
}

#[tokio::test(flavor = "multi_thread")]
async fn now_excludes_chunks() {
    let cluster = Cluster::start(2).await;
    cluster.create_conditions(2, 1).await;
    let rows = "SELECT to_timestamp(extract(epoch FROM now()) - 86400 * i), 'Seattle', 1.0, 1 \
                FROM generate_series(0, 9) AS s (i)";
    cluster.insert("conditions", rows).await;
    let sql = "SELECT count(*) FROM conditions WHERE time > now() - INTERVAL '36 hours'";
    let answer = both(&cluster, sql).await.expect("it runs");
    assert_eq!(answer.lines(), ["2"]);
    let plan = answer.explain();
    // 36 hours reach into two days, or into three with today.
    let read = ["chunks read=2 excluded=8", "chunks read=3 excluded=7"];
    assert!(read.iter().any(|read| plan.contains(read)), "{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn analyze_shows_each_node() {
    let cluster = Cluster::start(2).await;
    cluster.create_conditions(2, 1).await;
    cluster.insert("conditions", ROWS).await;
    let answer = cluster.query("SELECT * FROM conditions", true).await.expect("it runs");
    let lines = crate::exec::explain_lines(answer.plan.as_ref(), true, false);
    let nodes: Vec<&String> = lines.iter().filter(|line| line.contains("node=d")).collect();
    assert_eq!(nodes.len(), 2, "{lines:#?}");
    let rows = |line: &str| -> u64 {
        let at = line.split(" rows=").nth(1).and_then(|rest| rest.split(' ').next());
        at.and_then(|rows| rows.parse().ok()).expect("it has rows")
    };
    assert_eq!(nodes.iter().map(|line| rows(line)).sum::<u64>(), 384);
    assert!(nodes.iter().all(|line| line.contains(" bytes=") && line.contains(" ms")));
    let verbose = crate::exec::explain_lines(answer.plan.as_ref(), true, true).join("\n");
    assert!(verbose.contains("ChunkScanExec"), "{verbose}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wide_values_are_split_into_messages() {
    let cluster = Cluster::start(1).await;
    let columns = [("n", ColumnType::BigInt), ("v", ColumnType::Text)];
    cluster.create("steps", &columns, Some(spec("n", 1000, None, 1))).await;
    let rows = "SELECT i, repeat('x', 30000) FROM generate_series(1, 900) AS s (i)";
    cluster.insert("steps", rows).await;
    let answer = both(&cluster, "SELECT n, v FROM steps").await.expect("it runs");
    assert_eq!(answer.rows.iter().map(arrow::array::RecordBatch::num_rows).sum::<usize>(), 900);
}
