//! Reads that a drop of chunks overtakes: they see all that their snapshot has, or read again, and never miss rows in
//! silence.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt;
use hypertide_storage::CompressionSpec;

use super::cluster::{Answer, Cluster};
use crate::{
    Error, Reply, Session,
    session::Frame,
    sql::{again::Again, query},
};

const DAYS: i64 = 4;
const ROWS: &str = "SELECT to_timestamp(d.value * 86400 + s.value * 100), 'l' || (s.value % 7), s.value / 2.0, s.value \
     FROM generate_series(0, 3) AS d, generate_series(1, 200) AS s";
const COUNT: &str =
    "SELECT count(*), count(DISTINCT location), min(time), sum(humidity) FROM conditions";
const WALK: &str = "SELECT time, location FROM conditions WHERE humidity > 0";

async fn filled(version_age: Duration, replicas: u16) -> Cluster {
    let cluster = Cluster::start_keeping(2, version_age).await;
    cluster.create_conditions(2, replicas).await;
    cluster.insert("conditions", ROWS).await;
    cluster
}

async fn run(session: &mut Session, sql: &str) -> Result<Vec<String>, Error> {
    let prepared = session.prepare(sql, &[]).await?;
    match session.execute(&prepared, Vec::new()).await? {
        Reply::Rows { stream, .. } => lines(stream).await,
        other => panic!("{sql} gives {other:?}"),
    }
}

async fn lines(stream: SendableRecordBatchStream) -> Result<Vec<String>, Error> {
    let rows = stream.try_collect().await?;
    let plan = Arc::new(datafusion::physical_plan::empty::EmptyExec::new(Arc::new(
        arrow::datatypes::Schema::empty(),
    )));
    Ok(Answer { plan, rows }.sorted())
}

/// Reads in the frame of a statement that has begun; `again` as a statement does that may read again.
async fn read_in(
    session: &Session,
    frame: &Frame,
    sql: &str,
    again: bool,
) -> Result<Vec<String>, Error> {
    let ast = query::one_statement(sql)?;
    let guard = Again::new(session, frame, (&ast, &[]));
    let plan = query::plan(&frame.ctx, ast).await?;
    let mut stream = frame.ctx.execute_logical_plan(plan).await?.execute_stream().await?;
    if again {
        stream = guard.guard(stream);
    }
    lines(stream).await
}

/// Drops the chunks of all days but the last, and waits until the data nodes know.
async fn drop_days(cluster: &Cluster, kept: bool) {
    let mut other = Session::new(Arc::clone(&cluster.engine), "hypertide");
    let stores = || cluster.data.values().map(|data| data.node.store());
    let before: usize = stores().map(|store| store.report(&[]).len()).sum();
    let sql = format!("SELECT drop_chunks('conditions', to_timestamp({}))", (DAYS - 1) * 86_400);
    let dropped = run(&mut other, &sql).await.expect("they are dropped");
    assert_eq!(dropped.len(), 6, "two chunks a day");
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let here: usize = stores().map(|store| store.report(&[]).len()).sum();
        let removed: usize = stores().map(|store| store.removed().len()).sum();
        let all = before - before / DAYS as usize;
        if here == before - all && removed == if kept { all } else { 0 } {
            return;
        }
        assert!(Instant::now() < deadline, "{here} of {before} are here, {removed} removed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_a_drop_overtakes_sees_all_rows_also_after_a_restart() {
    for replicas in [1, 2] {
        let mut cluster = filled(Duration::from_secs(3600), replicas).await;
        let mut session = Session::new(Arc::clone(&cluster.engine), "hypertide");
        let expected = [
            run(&mut session, COUNT).await.expect("it is counted"),
            run(&mut session, WALK).await.expect("it is read"),
        ];
        assert_eq!(expected[1].len(), 800);
        let frame = session.frame().await.expect("a snapshot");
        drop_days(&cluster, true).await;
        for _ in 0..2 {
            for (sql, expected) in [COUNT, WALK].into_iter().zip(&expected) {
                let found = read_in(&session, &frame, sql, false).await.expect("it is read");
                assert_eq!(&found, expected, "{sql} with {replicas} replicas");
            }
            let fresh = run(&mut session, WALK).await.expect("it is read");
            assert_eq!(fresh.len(), 200);
            for name in ["d1", "d2"] {
                cluster.restart(name).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_comes_after_the_chunks_are_unlinked_reads_again() {
    let cluster = filled(Duration::ZERO, 1).await;
    let mut session = Session::new(Arc::clone(&cluster.engine), "hypertide");
    let frame = session.frame().await.expect("a snapshot");
    drop_days(&cluster, false).await;
    let refused = read_in(&session, &frame, WALK, false).await.expect_err("the rows are gone");
    assert_eq!(refused.state.0, "72000", "{refused}");
    let found = read_in(&session, &frame, WALK, true).await.expect("it reads again");
    assert_eq!(found.len(), 200);
    let counted = read_in(&session, &frame, COUNT, true).await.expect("it reads again");
    assert_eq!(counted, run(&mut session, COUNT).await.expect("it is counted"));
}

/// Waits until every data node holds a snapshot.
async fn wait_held(cluster: &Cluster) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while cluster.data.values().any(|data| data.node.store().held_snapshot().is_none()) {
        assert!(Instant::now() < deadline, "a data node does not hold the snapshot");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_snapshot_keeps_what_would_be_gone_at_once() {
    let cluster = filled(Duration::ZERO, 1).await;
    let session = || Session::new(Arc::clone(&cluster.engine), "hypertide");
    let (mut holder, mut reader, mut other) = (session(), session(), session());
    let set = async |session: &mut Session, sql: &str| {
        let prepared = session.prepare(sql, &[]).await.expect("it can be planned");
        session.execute(&prepared, Vec::new()).await.expect(sql);
    };
    set(&mut holder, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await;
    let sql = "SELECT pg_export_snapshot() AS name, hypertide_snapshot() AS at";
    let exported = run(&mut holder, sql).await.expect("it is exported");
    let name: String = exported[0].chars().take_while(char::is_ascii_digit).collect();
    let expected = run(&mut holder, WALK).await.expect("it is read");
    assert_eq!(expected.len(), 800);
    wait_held(&cluster).await;
    set(&mut other, "DELETE FROM conditions WHERE humidity < 100").await;
    for data in cluster.data.values() {
        let store = data.node.store();
        store.flush(&[]).expect("it is written");
        for report in store.report(&[]) {
            store.compress(report.chunk, CompressionSpec::default()).expect("it is rewritten");
        }
    }
    drop_days(&cluster, true).await;
    set(&mut other, "DROP TABLE conditions").await;
    set(&mut reader, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await;
    set(&mut reader, &format!("SET TRANSACTION SNAPSHOT '{name}'")).await;
    for session in [&mut holder, &mut reader] {
        assert_eq!(run(session, WALK).await.expect("it is read"), expected);
    }
    assert!(run(&mut other, WALK).await.is_err());
}
