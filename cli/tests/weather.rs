//! The main line, end to end: the weather of two cities, in by COPY, out as pushed-down averages from every access
//! node, equal to what is computed here from the file by hand.

mod cluster;

use std::collections::BTreeMap;

use bytes::Bytes;
use cluster::{Cluster, Observation, observations, weather_csv};
use futures::SinkExt;
use tokio_postgres::{Client, SimpleQueryMessage};

const CREATE: &str = "CREATE TABLE conditions (time timestamptz NOT NULL, location text NOT NULL, \
    temperature double precision, precipitation double precision)";
const DISTRIBUTE: &str = "SELECT * FROM create_distributed_hypertable('conditions', 'time', 'location', \
    number_partitions => 3, chunk_time_interval => INTERVAL '365 days')";
const AVERAGES: &str = "SELECT time_bucket('1 hour', time) AS hour, location, avg(temperature) \
    FROM conditions GROUP BY hour, location ORDER BY hour, location LIMIT 100";
const SEATTLE: &str = "SELECT time_bucket('1 hour', time) AS hour, avg(temperature) \
    FROM conditions WHERE location = 'Seattle' GROUP BY hour ORDER BY hour LIMIT 100";

/// Differences of floating-point sums that stem from their order.
const TOLERANCE: f64 = 1e-9;

async fn copy(
    client: &Client,
    statement: &str,
    data: String,
) -> Result<u64, tokio_postgres::Error> {
    let sink = client.copy_in::<_, Bytes>(statement).await?;
    let mut sink = std::pin::pin!(sink);
    sink.send(Bytes::from(data)).await?;
    sink.finish().await
}

fn as_csv(rows: &[Observation]) -> String {
    let line = |row: &Observation| {
        let Observation { location, date, temperature, precipitation } = row;
        format!("{date},{location},{temperature},{precipitation}\n")
    };
    rows.iter().map(line).collect()
}

async fn load(cluster: &Cluster, rows: &[Observation]) {
    let client = cluster.connect("a1").await;
    client.batch_execute(CREATE).await.expect("the table can be made");
    client.batch_execute(DISTRIBUTE).await.expect("it can be distributed");
    let statement =
        "COPY conditions (time, location, temperature, precipitation) FROM STDIN (FORMAT csv)";
    let copied = copy(&client, statement, as_csv(rows)).await.expect("every row is valid");
    assert_eq!(copied, rows.len() as u64);
}

/// Rows of a query as text; the simple protocol gives every type in its text form.
async fn rows(client: &Client, sql: &str) -> Vec<Vec<String>> {
    let messages = client.simple_query(sql).await.expect("the query is valid");
    let mut rows = Vec::new();
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message {
            let fields = (0..row.len()).map(|at| row.get(at).unwrap_or("NULL").to_owned());
            rows.push(fields.collect());
        }
    }
    rows
}

/// Averages by day and city, or by day alone, in the order the queries ask for.
fn averages(rows: &[Observation], by_city: bool) -> Vec<(Vec<String>, f64)> {
    let mut groups: BTreeMap<Vec<String>, (f64, u32)> = BTreeMap::new();
    for row in rows {
        let mut key = vec![format!("{} 00:00:00+00", row.date)];
        if by_city {
            key.push(row.location.clone());
        }
        let group = groups.entry(key).or_default();
        *group = (group.0 + row.temperature, group.1 + 1);
    }
    let mean = |(key, (sum, count))| (key, sum / f64::from(count));
    groups.into_iter().map(mean).take(100).collect()
}

fn assert_equal(found: &[Vec<String>], expected: &[(Vec<String>, f64)]) {
    assert_eq!(found.len(), expected.len());
    for (found, (key, mean)) in found.iter().zip(expected) {
        let (value, found_key) = found.split_last().expect("a row has columns");
        assert_eq!(found_key, key.as_slice());
        let value: f64 = value.parse().expect("an average is a number");
        assert!((value - mean).abs() < TOLERANCE, "{key:?}: {value} is not {mean}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn averages_are_right_from_every_access_node() {
    let all = observations();
    assert_eq!(all.len(), 2922);
    let cluster = Cluster::start(3, 3);
    load(&cluster, &all).await;
    let seattle: Vec<Observation> =
        all.iter().filter(|row| row.location == "Seattle").cloned().collect();
    for node in cluster.access() {
        let client = cluster.connect(&node).await;
        client.batch_execute("SET TIME ZONE 'UTC'").await.expect("it is a time zone");
        let count =
            rows(&client, "SELECT count(*), count(DISTINCT location) FROM conditions").await;
        assert_eq!(count, [["2922", "2"]]);
        for pushdown in ["on", "off"] {
            let set = format!("SET hypertide.enable_pushdown = {pushdown}");
            client.batch_execute(&set).await.expect("it is a setting");
            assert_equal(&rows(&client, AVERAGES).await, &averages(&all, true));
            assert_equal(&rows(&client, SEATTLE).await, &averages(&seattle, false));
        }
        let total: f64 = all.iter().map(|row| row.precipitation).sum();
        let sum = rows(&client, "SELECT sum(precipitation) FROM conditions").await;
        let sum: f64 = sum[0][0].parse().expect("a sum is a number");
        assert!((sum - total).abs() < 1e-6, "{sum} is not {total}");
    }
    assert_eq!(cluster.complaints(&[]), [""; 0]);
}

/// Names of the data nodes that a plan has a fragment for.
fn nodes_of(plan: &str) -> Vec<String> {
    let names = ["d1", "d2", "d3"];
    let named = |name: &&str| plan.split(|c: char| !c.is_alphanumeric()).any(|word| word == *name);
    names.iter().filter(|name| named(name)).map(|name| (*name).to_owned()).collect()
}

async fn plan(client: &Client, query: &str) -> String {
    let lines = rows(client, &format!("EXPLAIN {query}")).await;
    lines.into_iter().map(|line| line.join(" ")).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn fragments_run_where_the_rows_are() {
    let cluster = Cluster::start(1, 3);
    load(&cluster, &observations()).await;
    let client = cluster.connect("a1").await;
    let two = plan(&client, AVERAGES).await;
    assert_eq!(nodes_of(&two).len(), 2, "one city a node:\n{two}");
    let one = plan(&client, SEATTLE).await;
    assert_eq!(nodes_of(&one).len(), 1, "one city, one node:\n{one}");
    let analyzed = plan(&client, &format!("ANALYZE {SEATTLE}")).await;
    assert!(analyzed.contains("rows"), "{analyzed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_row_is_named_and_nothing_of_its_copy_stays() {
    let cluster = Cluster::start(1, 2);
    let all = observations();
    load(&cluster, &all).await;
    let client = cluster.connect("a1").await;
    let mut data = as_csv(&all[..10]);
    data.push_str("2016-01-01,Seattle,warm,0\n");
    let statement =
        "COPY conditions (time, location, temperature, precipitation) FROM STDIN (FORMAT csv)";
    let error = copy(&client, statement, data).await.expect_err("a row is malformed");
    let said = error.as_db_error().expect("the server said it");
    assert_eq!(said.code().code(), "22P02");
    let place = said.where_().unwrap_or_default();
    assert!(place.contains("line 11") && place.contains("temperature"), "{place}");
    let count = rows(&client, "SELECT count(*) FROM conditions").await;
    assert_eq!(count, [["2922"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_survive_a_stop_and_a_start() {
    let cluster = Cluster::start(1, 2);
    let all = observations();
    load(&cluster, &all).await;
    let before = cluster.endpoints();
    cluster.verb("stop", &[]);
    cluster.verb("start", &[]);
    let addresses = |nodes: &[serde_json::Value]| -> Vec<serde_json::Value> {
        nodes.iter().flat_map(|node| [node["rpc"].clone(), node["pg"].clone()]).collect()
    };
    assert_eq!(addresses(&cluster.endpoints()), addresses(&before), "ports are kept");
    let client = cluster.connect("a1").await;
    client.batch_execute("SET TIME ZONE 'UTC'").await.expect("it is a time zone");
    assert_equal(&rows(&client, AVERAGES).await, &averages(&all, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_loads_through_the_command_line() {
    let cluster = Cluster::start(1, 1);
    let create = "CREATE TABLE weather (location text, date date, precipitation double precision, \
        temp_max double precision, temp_min double precision, wind double precision, weather text)";
    let output = cluster.run(&["sql", "-c", create]);
    assert!(output.status.success(), "{}", cluster::text(&output.stderr));
    let file = weather_csv();
    let file = file.to_str().expect("it is plain");
    let output = cluster.run(&["load", "--table", "weather", "--header", file]);
    assert!(output.status.success(), "{}", cluster::text(&output.stderr));
    assert!(cluster::text(&output.stdout).starts_with("2922 rows"));
    let question =
        "SELECT location, count(*) AS n FROM weather GROUP BY location ORDER BY location";
    let output = cluster.run(&["sql", "--format", "csv", "-c", question]);
    assert_eq!(cluster::text(&output.stdout), "location,n\nNew York,1461\nSeattle,1461\n");
}
