//! Data nodes that fail in the middle of an answer of which much was passed on.

use std::time::Duration;

use hypertide_proto::schema::ColumnType;

use super::cluster::{Cluster, Trouble, spec};

/// Messages after which a node fails: the schema, and more bytes of rows than are kept back of a scan.
const MESSAGES: usize = 3;

/// Rows that are each there twice, of 30 kB, in three chunks of two replicas.
async fn filled(nodes: usize) -> Cluster {
    let cluster = Cluster::start(nodes).await;
    let columns = [("n", ColumnType::BigInt), ("v", ColumnType::Text)];
    cluster.create("steps", &columns, Some(spec("n", 300, None, 2))).await;
    let rows = "SELECT i / 2, repeat('x', 30000 + CAST(i / 2 AS INT) % 7) \
                FROM generate_series(0, 1799) AS s (i)";
    cluster.insert("steps", rows).await;
    cluster
}

/// Runs a query while all is well, and then with trouble at one node after the other.
async fn unnoticed(cluster: &Cluster, query: &str, trouble: Trouble) {
    let before = cluster.query(query, true).await.expect("all is well").sorted();
    for (name, data) in &cluster.data {
        data.trouble(trouble);
        let answer = cluster.query(query, true).await.expect("other replicas go on");
        data.trouble(Trouble::None);
        assert!(
            answer.sorted() == before,
            "{query} is not what it was after {trouble:?} at {name}"
        );
        let node = data.node.membership().expect("it is a member").rid.node;
        assert!(cluster.engine.suspects.now().contains(&node), "{query}: {name} was not asked");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_on_elsewhere_when_a_connection_breaks() {
    let cluster = filled(3).await;
    unnoticed(&cluster, "SELECT n, v FROM steps", Trouble::Break { after: MESSAGES }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_in_an_order_go_on_elsewhere() {
    let cluster = filled(3).await;
    let query = "SELECT v, n + 1 AS m FROM steps WHERE n % 10 > 0 ORDER BY m DESC";
    let before = cluster.query(query, true).await.expect("all is well").lines();
    let data = cluster.data.get("d1").expect("it runs");
    data.trouble(Trouble::Break { after: MESSAGES });
    let answer = cluster.query(query, true).await.expect("other replicas go on");
    assert!(answer.lines() == before, "the order is another");
    let suspects = cluster.engine.suspects.now();
    assert_eq!(suspects.len(), 1, "d1 was asked, and failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_of_rows_is_had_whole_from_another_replica() {
    let cluster = filled(3).await;
    let query = "SELECT n, v, count(*) FROM steps GROUP BY n, v";
    unnoticed(&cluster, query, Trouble::Break { after: MESSAGES }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_on_elsewhere_when_a_node_falls_silent() {
    let cluster = filled(3).await;
    unnoticed(&cluster, "SELECT n, v FROM steps", Trouble::Silence { after: MESSAGES }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_only_late_is_asked_when_its_rival_fails() {
    let cluster = filled(2).await;
    let query = "SELECT n, v FROM steps ORDER BY n";
    let before = cluster.query(query, true).await.expect("all is well").lines();
    for _ in 0..100 {
        cluster.engine.pace.answered(Duration::from_millis(1));
    }
    cluster.data["d1"].trouble(Trouble::Late { by: Duration::from_millis(900) });
    cluster.data["d2"].trouble(Trouble::Break { after: MESSAGES });
    let answer = cluster.query(query, true).await.expect("d1 has all of it");
    assert!(answer.lines() == before, "it is not what it was");
}
