//! Zone maps, early ends and last rows against reading it all: random queries over flushed, deleted and recent rows give
//! the same with push-down and summaries, without summaries, and without both.

use std::sync::Arc;

use datafusion::{
    common::tree_node::{TreeNode, TreeNodeRecursion},
    physical_plan::{ExecutionPlan, execution_plan::collect_partitioned},
};
use hypertide_proto::{schema::ColumnType, time::DAY_MICROS};
use proptest::{
    prelude::*,
    sample::select,
    test_runner::{Config, TestRng, TestRunner},
};
use tokio::runtime::Runtime;

use super::cluster::{Cluster, spec};
use crate::exec::{RemoteFragmentExec, explain_lines};

const CASES: u32 = 160;

/// Rows from one moment on, a minute apart: nulls, extremes, zeros and values that are not numbers among them.
fn rows(from: i64, count: i64) -> String {
    format!(
        "SELECT to_timestamp({from} + (i / 3) * 60), \
         CASE i % 5 WHEN 0 THEN NULL WHEN 1 THEN 'a' ELSE 'host_' || (i % 5) END, \
         CASE WHEN i % 11 = 0 THEN NULL ELSE CAST((i * 37) % 101 - 50 AS INT) END, \
         CASE i % 97 WHEN 0 THEN CAST('NaN' AS DOUBLE) WHEN 1 THEN 0.0 WHEN 2 THEN -0.0 \
         ELSE CAST((i * 13) % 1000 AS DOUBLE) / 7 END, \
         CASE i % 7 WHEN 0 THEN NULL ELSE 'note ' || (i % 13) END, \
         i % 3 = 0, CAST(i * 1000003 AS BIGINT) \
         FROM generate_series(0, {count} - 1) AS s (i)"
    )
}

async fn filled() -> Cluster {
    let cluster = Cluster::start(2).await;
    let columns = [
        ("time", ColumnType::TimestampTz),
        ("host", ColumnType::Text),
        ("usage", ColumnType::Integer),
        ("level", ColumnType::Double),
        ("note", ColumnType::Text),
        ("up", ColumnType::Boolean),
        ("total", ColumnType::BigInt),
    ];
    let space = Some(("host".to_owned(), Some(3)));
    cluster.create("cpu", &columns, Some(spec("time", DAY_MICROS, space, 1))).await;
    for day in 0..4 {
        cluster.insert("cpu", &rows(86_400 * (100 + day) + 7200, 3000)).await;
        // Nobody told the data nodes of the commit: a read makes them ask.
        cluster.query("SELECT * FROM cpu", false).await.expect("it reads");
        cluster.flush();
    }
    cluster.insert("cpu", &rows(86_400 * 102 + 50_000, 300)).await;
    cluster
}

fn conditions() -> impl Strategy<Value = String> {
    let time = || (0..4 * 24 * 60i64).prop_map(|m| format!("to_timestamp({})", 8_640_000 + m * 60));
    let op = || select(vec!["<", "<=", ">", ">=", "="]);
    let one = prop_oneof![
        3 => (op(), time()).prop_map(|(op, at)| format!("time {op} {at}")),
        2 => select(vec![
            "host = 'host_2'", "host IN ('host_3', 'a', 'none')", "host IS NULL", "host IS NOT NULL",
            "host <> 'a'", "host > 'a'",
        ]).prop_map(str::to_owned),
        2 => (op(), -60..60i32).prop_map(|(op, value)| format!("usage {op} {value}")),
        1 => (-60..60i32, 0..40i32).prop_map(|(low, width)| {
            format!("usage BETWEEN {low} AND {}", low + width)
        }),
        1 => select(vec![
            "level > 100", "level = 0", "level < 0.5", "level >= 142.0", "up", "NOT up",
            "usage IS NULL", "usage + 1 > 20", "note = 'note 3'", "note LIKE '%1%'", "total < 9000027",
            "usage = 3 OR usage = 5", "usage NOT IN (3, 4)", "time > to_timestamp(8640000)", "false",
        ]).prop_map(str::to_owned),
    ];
    prop::collection::vec(one, 0..3).prop_map(|all| match all.is_empty() {
        true => String::new(),
        false => format!(" WHERE {}", all.join(" AND ")),
    })
}

fn queries() -> impl Strategy<Value = String> {
    let aggregates = || {
        select(vec![
            "count(*)",
            "count(host)",
            "count(usage)",
            "min(usage)",
            "max(usage)",
            "sum(usage)",
            "sum(total)",
            "min(time)",
            "max(time)",
            "min(note)",
            "max(host)",
            "min(level)",
            "max(level)",
            "max(up)",
            "count(level)",
            "sum(usage) FILTER (WHERE up)",
            "count(DISTINCT host)",
            "last(usage, time)",
            "first(note, time)",
            "avg(usage)",
        ])
    };
    let all = "time, host, usage, note, total";
    prop_oneof![
        4 => (prop::collection::btree_set(aggregates(), 1..4), conditions()).prop_map(|(list, condition)| {
            // No column stands twice.
            let list: Vec<&str> = list.into_iter().collect();
            format!("SELECT {} FROM cpu{condition}", list.join(", "))
        }),
        1 => conditions().prop_map(|condition| {
            format!("SELECT last(usage, time), last(note, time), max(time) FROM cpu{condition}")
        }),
        1 => conditions().prop_map(|condition| {
            format!("SELECT first(usage, time), first(total, time) FROM cpu{condition}")
        }),
        2 => (select(vec!["host", "host, up", "up", "note, host", "usage"]), conditions())
            .prop_map(|(keys, condition)| format!("SELECT DISTINCT {keys} FROM cpu{condition}")),
        2 => (select(vec!["last(usage, time), max(time)", "first(total, time)", "max(time)"]),
            select(vec!["host", "host, up", "usage"]), conditions())
            .prop_map(|(list, keys, condition)| {
                format!("SELECT {keys}, {list} FROM cpu{condition} GROUP BY {keys}")
            }),
        2 => (select(vec!["DESC", "ASC"]), conditions()).prop_map(|(direction, condition)| {
            format!("SELECT DISTINCT ON (host) host, time, total FROM cpu{condition} \
                     ORDER BY host, time {direction}, total")
        }),
        4 => (select(vec!["time DESC", "time", "time DESC NULLS LAST", "total", "usage DESC NULLS LAST",
                "usage NULLS FIRST", "time DESC, usage", "usage, time DESC"]),
            1..40usize, conditions())
            .prop_map(move |(order, limit, condition)| {
                format!("SELECT {all} FROM cpu{condition} ORDER BY {order}, total, time LIMIT {limit}")
            }),
        1 => (1..40usize, conditions()).prop_map(|(limit, condition)| {
            format!("SELECT count(*) FROM (SELECT time FROM cpu{condition} LIMIT {limit}) AS few")
        }),
        1 => (select(vec!["host", "note"]), conditions()).prop_map(|(key, condition)| {
            format!("SELECT {key}, count(*), sum(usage), min(time) FROM cpu{condition} GROUP BY {key}")
        }),
    ]
}

#[test]
fn what_is_left_out_changes_no_answer() {
    let runtime = Runtime::new().expect("a runtime");
    let cluster = runtime.block_on(filled());
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let checked = runner.run(&queries(), |sql| {
        let answer = |pushdown, summaries| {
            let answer = runtime.block_on(cluster.query_as(&sql, pushdown, summaries));
            answer.map(|answer| (answer.sorted(), answer.explain()))
        };
        let (all, _) = answer(false, false).map_err(TestCaseError::fail)?;
        for (pushdown, summaries) in [(true, false), (true, true)] {
            let (found, plan) = answer(pushdown, summaries).map_err(TestCaseError::fail)?;
            prop_assert_eq!(&found, &all, "{} with summaries {}\n{}", sql, summaries, plan);
        }
        Ok(())
    });
    if let Err(error) = checked {
        panic!("{error}");
    }
}

#[test]
fn scans_end_early_and_say_so() {
    let runtime = Runtime::new().expect("a runtime");
    let cluster = runtime.block_on(filled());
    let run = |sql: &str| runtime.block_on(cluster.query(sql, true)).expect("it runs").plan;
    let report = |plan: &dyn ExecutionPlan| {
        let lines = explain_lines(plan, true, false);
        let nodes = lines.into_iter().filter(|line| line.contains("node=d"));
        let number = |line: &str, name: &str| -> u64 {
            let rest = line.split_once(name).map(|(_, rest)| rest).expect("it is there");
            let digits = rest.chars().take_while(char::is_ascii_digit).collect::<String>();
            digits.parse().expect("a number")
        };
        let nodes: Vec<String> = nodes.collect();
        let sum = |name: &str| nodes.iter().map(|line| number(line, name)).sum::<u64>();
        (sum("chunks="), sum("chunks skipped="), sum("read="))
    };
    // The chunks of the last of four days hold enough, and those of the first: no other is opened.
    for order in ["time DESC", "time"] {
        let sql = format!("SELECT time, total FROM cpu ORDER BY {order} LIMIT 5");
        let (chunks, skipped, _) = report(run(&sql).as_ref());
        assert_eq!(skipped, chunks - chunks / 4, "{sql}");
    }
    // Above the fragments, the first five rows end both, and neither node says what it read.
    let plan = run("SELECT time FROM cpu LIMIT 5");
    let (fragments, context) = runtime.block_on(async {
        let session = cluster.session(true, true).await;
        let mut fragments = Vec::new();
        plan.apply(|node| {
            fragments.extend(node.is::<RemoteFragmentExec>().then(|| Arc::clone(node)));
            Ok(TreeNodeRecursion::Continue)
        })
        .expect("it is walked");
        (fragments, session.task_ctx())
    });
    let [fragments] = &fragments[..] else { panic!("one scan is pushed down") };
    runtime.block_on(collect_partitioned(Arc::clone(fragments), context)).expect("it runs");
    let (chunks, skipped, _) = report(fragments.as_ref());
    assert!(skipped > 0 && skipped < chunks, "{skipped} of {chunks}");
    // Recent rows aside, zone maps say it all.
    let (_, _, read) = report(run("SELECT count(*), min(time), sum(total) FROM cpu").as_ref());
    assert_eq!(read, 0);
}

#[test]
fn groups_of_texts_are_found_by_ids() {
    let runtime = Runtime::new().expect("a runtime");
    let cluster = runtime.block_on(filled());
    let by_ids = |sql: &str| {
        let answer = runtime.block_on(cluster.query(sql, true)).expect("it runs");
        let lines = explain_lines(answer.plan.as_ref(), true, true).join("\n");
        let pulled = runtime.block_on(cluster.query(sql, false)).expect("it runs");
        assert_eq!(answer.sorted(), pulled.sorted(), "{sql}");
        let found: Vec<String> = lines
            .lines()
            .filter_map(|line| Some(line.split_once("of ids=[")?.1.split_once(']')?.0.to_owned()))
            .collect();
        found.first().cloned().unwrap_or_default()
    };
    for (sql, columns) in [
        ("SELECT host, sum(usage) FROM cpu GROUP BY host", "host"),
        ("SELECT host, note, up, avg(level) FROM cpu GROUP BY up, note, host", "note, host"),
        ("SELECT host, count(*) FROM cpu WHERE usage > 3 OR up GROUP BY host", "host"),
        ("SELECT note, sum(usage) FROM cpu WHERE NOT up GROUP BY note LIMIT 100", "note"),
        ("SELECT DISTINCT note, host FROM cpu WHERE level * 2 > 7", "note, host"),
        // One row of each group is enough.
        ("SELECT count(DISTINCT note) FROM cpu WHERE NOT up", ""),
        // What looks at the texts themselves needs them.
        ("SELECT host, max(note), count(*) FROM cpu GROUP BY host, note", "host"),
        ("SELECT host, count(host), sum(usage) FROM cpu GROUP BY host", ""),
        ("SELECT host, sum(usage) FROM cpu WHERE host LIKE '%_1' GROUP BY host", ""),
        ("SELECT host, host || note AS h, sum(usage) FROM cpu GROUP BY 1, 2", ""),
        ("SELECT host, sum(usage) FROM cpu WHERE host = 'host_2' GROUP BY host", ""),
        ("SELECT host, note, sum(usage) FROM cpu GROUP BY ROLLUP (host, note)", ""),
    ] {
        assert_eq!(by_ids(sql), columns, "{sql}");
    }
}
