//! The PostgreSQL protocol over a real cluster: statements that come together are one transaction, and COPY speaks
//! binary both ways.

#![allow(clippy::indexing_slicing, reason = "a test may fail by panicking")]

mod cluster;

use std::{
    pin::pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cluster::Cluster;
use futures::{SinkExt, TryStreamExt};
use tokio_postgres::{
    Client, SimpleQueryMessage,
    binary_copy::{BinaryCopyInWriter, BinaryCopyOutStream},
    types::Type,
};

const DDL: &str = "CREATE TABLE m (time timestamptz NOT NULL, device text, value double precision, \
                   label varchar(8), n bigint, ok boolean, id uuid, raw bytea)";

async fn table(client: &Client) {
    client.batch_execute(DDL).await.expect("a table");
    let distribute = "SELECT create_distributed_hypertable('m', 'time', 'device')";
    client.simple_query(distribute).await.expect("a hypertable");
}

async fn count(client: &Client) -> i64 {
    client.query_one("SELECT count(*) FROM m", &[]).await.expect("a count").get(0)
}

fn state(error: &tokio_postgres::Error) -> String {
    error.code().map(|code| code.code().to_owned()).unwrap_or_default()
}

/// The tags of a simple query's statements, as numbers of rows.
fn changed(messages: &[SimpleQueryMessage]) -> Vec<u64> {
    let done = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::CommandComplete(rows) => Some(*rows),
        _ => None,
    });
    done.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_of_one_query_are_one_transaction() {
    let cluster = Cluster::start(1, 2);
    let (client, other) = (cluster.connect("a1").await, cluster.connect("a1").await);
    table(&client).await;
    let both = "INSERT INTO m (time, n) VALUES ('2024-01-01', 1), ('2025-01-01', 2); \
                INSERT INTO m (time, n) VALUES ('2024-01-02', 3); SELECT count(*) FROM m";
    let messages = client.simple_query(both).await.expect("all three");
    assert_eq!(changed(&messages), [2, 1, 1]);
    assert_eq!(count(&other).await, 3);

    let half = "INSERT INTO m (time, n) VALUES ('2024-01-03', 4); SELECT 1/0; SELECT 2";
    let error = client.simple_query(half).await.expect_err("a division by zero");
    assert_eq!(state(&error), "22012");
    assert_eq!(count(&client).await, 3, "the first statement went with the second");

    let explicit = "INSERT INTO m (time, n) VALUES ('2024-01-04', 5); BEGIN; \
                    INSERT INTO m (time, n) VALUES ('2024-01-05', 6)";
    client.simple_query(explicit).await.expect("a block that stays open");
    assert_eq!(count(&other).await, 3, "what came before BEGIN belongs to the block");
    client.simple_query("ROLLBACK").await.expect("its end");
    assert_eq!(count(&other).await, 3);

    let ended = "INSERT INTO m (time, n) VALUES ('2024-01-06', 7); COMMIT; SELECT 1/0";
    client.simple_query(ended).await.expect_err("a division by zero");
    assert_eq!(count(&other).await, 4, "COMMIT ends what came together before it");

    let named = "SET hypertide.write_id = '8b1f0c1e-5a51-4a5e-9f0b-0b4f1a1c2d3e'; \
                 INSERT INTO m (time, n) VALUES ('2024-01-07', 8)";
    for _ in 0..2 {
        client.simple_query(named).await.expect("a write with a name");
    }
    assert_eq!(count(&other).await, 5, "the second was the retry of the first");
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_speaks_binary_both_ways() {
    let cluster = Cluster::start(1, 2);
    let client = cluster.connect("a1").await;
    table(&client).await;
    let types = [
        Type::TIMESTAMPTZ,
        Type::TEXT,
        Type::FLOAT8,
        Type::VARCHAR,
        Type::INT8,
        Type::BOOL,
        Type::UUID,
        Type::BYTEA,
    ];
    let sink = client.copy_in("COPY m FROM STDIN (FORMAT binary)").await.expect("a copy");
    let mut writer = pin!(BinaryCopyInWriter::new(sink, &types));
    let start = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    for n in 0..20_000_i64 {
        let time: SystemTime = start + Duration::from_secs(n as u64 * 60);
        let id = format!("00000000-0000-4000-8000-{n:012}");
        let label = (n % 3 != 0).then(|| format!("l{}", n % 7));
        let raw = n.to_be_bytes().to_vec();
        let row: [&(dyn tokio_postgres::types::ToSql + Sync); 8] = [
            &time,
            &format!("d{}", n % 10),
            &(n as f64 / 4.0),
            &label,
            &n,
            &(n % 2 == 0),
            &uuid::Uuid::parse_str(&id).expect("a uuid"),
            &raw,
        ];
        writer.as_mut().write(&row).await.expect("a tuple");
    }
    assert_eq!(writer.finish().await.expect("the end"), 20_000);
    let sums = "SELECT count(*), sum(n)::bigint, sum(value), count(label), min(time), \
                count(*) FILTER (WHERE ok) FROM m";
    let row = client.query_one(sums, &[]).await.expect("sums");
    assert_eq!(row.get::<_, i64>(0), 20_000);
    assert_eq!(row.get::<_, i64>(1), 199_990_000);
    assert_eq!(row.get::<_, f64>(2), 49_997_500.0);
    assert_eq!(row.get::<_, i64>(3), 13_333);
    assert_eq!(row.get::<_, SystemTime>(4), start);
    assert_eq!(row.get::<_, i64>(5), 10_000);

    let query = "COPY (SELECT * FROM m ORDER BY n) TO STDOUT (FORMAT binary)";
    let stream = client.copy_out(query).await.expect("a copy");
    let rows: Vec<_> =
        BinaryCopyOutStream::new(stream, &types).try_collect().await.expect("tuples");
    assert_eq!(rows.len(), 20_000);
    for (n, row) in rows.iter().enumerate() {
        assert_eq!(row.get::<i64>(4), n as i64);
        assert_eq!(row.get::<f64>(2), n as f64 / 4.0);
        assert_eq!(row.get::<Option<&str>>(3).is_none(), n % 3 == 0);
        assert_eq!(row.get::<uuid::Uuid>(6).as_u128() & 0xffff, decimal_as_hex(n) & 0xffff);
        assert_eq!(row.get::<&[u8]>(7), n.to_be_bytes());
    }
}

/// The digits of a number, read as hexadecimal ones.
fn decimal_as_hex(n: usize) -> u128 {
    u128::from_str_radix(&n.to_string(), 16).expect("digits")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_binary_copy_leaves_no_row() {
    let cluster = Cluster::start(1, 2);
    let client = cluster.connect("a1").await;
    table(&client).await;
    let copy = "COPY m (time, n) FROM STDIN (FORMAT binary)";
    let mut data = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    for length in [8_u8, 7] {
        data.extend_from_slice(&[0, 2, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, length]);
        data.extend(std::iter::repeat_n(1, length.into()));
    }
    let mut sink = pin!(client.copy_in(copy).await.expect("a copy"));
    sink.send(bytes::Bytes::from(data)).await.expect("data is taken");
    let error = sink.as_mut().finish().await.expect_err("a bigint of seven bytes");
    let told = error.as_db_error().expect("from the server");
    assert_eq!((told.code().code(), told.where_()), ("22P03", Some("COPY m, line 2, column n")));
    assert_eq!(count(&client).await, 0);
    let wrong = client.batch_execute("COPY m FROM STDIN (FORMAT binary, HEADER)").await;
    assert_eq!(state(&wrong.expect_err("an option of text")), "42601");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_portal_is_read_in_pages() {
    let cluster = Cluster::start(1, 2);
    let (mut client, other) = (cluster.connect("a1").await, cluster.connect("a1").await);
    table(&client).await;
    let insert = "INSERT INTO m (time, n, value) VALUES \
                  ('2024-01-01', 1, 631), ('2025-01-01', 2, 0.5), ('2026-01-01', 3, 1e20)";
    client.batch_execute(insert).await.expect("rows");
    let block = client.transaction().await.expect("a block");
    let sql = "SELECT n, value::text, time::text FROM m ORDER BY n";
    let portal = block.bind(sql, &[]).await.expect("a portal");
    other.batch_execute("DELETE FROM m WHERE n = 3").await.expect("a delete meanwhile");
    let mut pages: Vec<Vec<(i64, String, String)>> = Vec::new();
    for _ in 0..4 {
        let page = block.query_portal(&portal, 2).await.expect("a page");
        pages.push(page.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect());
    }
    let row = |n, value: &str, year| (n, value.to_owned(), format!("{year}-01-01 00:00:00+00"));
    // What is read after the end is empty, as often as it is asked for.
    let after = [row(1, "631", 2024), row(2, "0.5", 2025)];
    assert_eq!(pages, [&after[..], &[], &[], &[]]);
    block.commit().await.expect("its end");
}
