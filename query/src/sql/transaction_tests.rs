//! What the statements of a block read by, beside other sessions.

use crate::{Session, sql::scripts::Cluster};

struct Beside {
    cluster: Cluster,
    block: Session,
    other: Session,
}

impl Beside {
    /// A table of two rows in two chunks, and two sessions.
    fn start() -> Self {
        let cluster = Cluster::start(3);
        let (block, other) = (cluster.session(), cluster.session());
        let mut beside = Self { cluster, block, other };
        beside.other("CREATE TABLE t (time bigint NOT NULL, device int, v int)");
        let sql = "SELECT created FROM create_distributed_hypertable('t', 'time', 'device', 2, \
                   chunk_time_interval => 100)";
        assert!(beside.other(sql).contains("created\nt\n"));
        beside.other("INSERT INTO t VALUES (1, 1, 10), (201, 2, 20)");
        beside
    }

    fn block(&mut self, sql: &str) -> String {
        self.cluster.run(&mut self.block, sql)
    }

    fn other(&mut self, sql: &str) -> String {
        let answer = self.cluster.run(&mut self.other, sql);
        assert!(!answer.contains("ERROR"), "{sql}: {answer}");
        answer
    }

    fn sums(&mut self) -> [String; 2] {
        let sql = "SELECT sum(v), count(*), hypertide_snapshot() FROM t";
        let sums = |answer: String| {
            let row = answer.lines().nth(1).unwrap_or_default();
            row.rsplit_once('|').map(|(row, _)| row.to_owned()).unwrap_or(answer)
        };
        [sums(self.block(sql)), sums(self.other(sql))]
    }
}

#[test]
fn repeatable_read_sees_one_snapshot_and_its_own_rows() {
    let mut beside = Beside::start();
    beside.block("BEGIN ISOLATION LEVEL REPEATABLE READ");
    assert!(beside.block("SHOW transaction_isolation").contains("repeatable read"));
    // The snapshot is that of the first statement that reads.
    beside.other("INSERT INTO t VALUES (2, 1, 1)");
    let first = beside.block("SELECT hypertide_snapshot()");
    beside.other("INSERT INTO t VALUES (3, 1, 100), (301, 2, 1000)");
    beside.other("DELETE FROM t WHERE time = 201");
    assert_eq!(beside.sums(), ["31|3", "1111|4"]);
    assert!(beside.block("INSERT INTO t VALUES (401, 3, 7), (4, 1, 8)").contains("INSERT 0 2"));
    assert_eq!(beside.sums(), ["46|5", "1111|4"]);
    assert_eq!(beside.block("SELECT hypertide_snapshot()"), first);
    let refused = beside.block("SET TRANSACTION ISOLATION LEVEL READ COMMITTED");
    assert!(refused.contains("ERROR 25001"), "{refused}");
    beside.block("ROLLBACK");
    assert!(beside.block("SHOW transaction_isolation").contains("read committed"));
    assert_eq!(beside.sums(), ["1111|4", "1111|4"]);
}

#[test]
fn read_committed_sees_what_was_committed_meanwhile() {
    let mut beside = Beside::start();
    beside.block("BEGIN");
    assert_eq!(beside.sums(), ["30|2", "30|2"]);
    beside.other("INSERT INTO t VALUES (2, 1, 1)");
    assert_eq!(beside.sums(), ["31|3", "31|3"]);
    beside.block("COMMIT");
}

#[test]
fn repeatable_read_changes_nothing_that_others_changed() {
    let mut beside = Beside::start();
    beside.block("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ");
    for (rival, change) in [
        ("UPDATE t SET v = v + 1 WHERE device = 1", "UPDATE t SET v = v + 1 WHERE time = 1"),
        ("UPDATE t SET v = v + 1 WHERE device = 1", "DELETE FROM t WHERE v < 15"),
    ] {
        beside.block("BEGIN");
        let [before, _] = beside.sums();
        beside.other(rival);
        assert_eq!(beside.sums()[0], before);
        let refused = beside.block(change);
        assert!(refused.contains("ERROR 40001"), "{change}: {refused}");
        beside.block("ROLLBACK");
    }
    assert_eq!(beside.sums(), ["32|2", "32|2"]);
    // What nobody else changed can be changed.
    beside.block("BEGIN");
    beside.sums();
    beside.other("UPDATE t SET v = 0 WHERE device = 1");
    assert!(beside.block("UPDATE t SET v = v + 5 WHERE device = 2").contains("UPDATE 1"));
    assert!(beside.block("COMMIT").contains("COMMIT"));
    assert_eq!(beside.sums(), ["25|2", "25|2"]);
}

#[test]
fn repeatable_read_says_when_a_chunk_of_its_snapshot_went() {
    let mut beside = Beside::start();
    beside.block("BEGIN ISOLATION LEVEL REPEATABLE READ");
    assert_eq!(beside.sums(), ["30|2", "30|2"]);
    beside.other("SELECT drop_chunks('t', older_than => 100)");
    let refused = beside.block("SELECT sum(v) FROM t");
    assert!(refused.contains("ERROR 72000: snapshot too old: chunk"), "{refused}");
    beside.block("ROLLBACK");
    assert_eq!(beside.sums(), ["20|1", "20|1"]);
}

#[test]
fn a_transaction_that_only_reads_has_the_chunks_of_its_snapshot() {
    let mut beside = Beside::start();
    beside.block("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
    assert_eq!(beside.sums(), ["30|2", "30|2"]);
    beside.other("SELECT drop_chunks('t', older_than => 100)");
    beside.other("INSERT INTO t VALUES (2, 1, 5)");
    assert_eq!(beside.sums(), ["30|2", "25|2"]);
    assert!(beside.block("SELECT v FROM t WHERE time < 100").contains("v\n10\nSELECT 1"));
    beside.block("COMMIT");
    assert_eq!(beside.sums(), ["25|2", "25|2"]);
}

#[test]
fn a_transaction_that_only_reads_has_the_tables_of_its_snapshot() {
    let mut beside = Beside::start();
    beside.block("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
    assert_eq!(beside.sums(), ["30|2", "30|2"]);
    beside.other("ALTER TABLE t RENAME COLUMN v TO w");
    beside.other("ALTER TABLE t DROP COLUMN w");
    beside.other("ALTER TABLE t ADD COLUMN v bigint DEFAULT 7");
    let rows = "time|device|v\n1|1|10\n201|2|20\nSELECT 2\n";
    assert_eq!(beside.block("SELECT * FROM t ORDER BY time"), rows);
    beside.other("TRUNCATE t");
    assert_eq!(beside.block("SELECT * FROM t ORDER BY time"), rows);
    beside.other("DROP TABLE t");
    beside.other("CREATE TABLE t (x text)");
    assert_eq!(beside.block("SELECT * FROM t ORDER BY time"), rows);
    assert!(beside.block("SELECT sum(v), count(*) FROM t WHERE time > 100").contains("\n20|1\n"));
    beside.block("COMMIT");
    assert_eq!(beside.block("SELECT * FROM t"), "x\nSELECT 0\n");
}

#[test]
fn exported_snapshots_are_read_by_others_while_they_live() {
    let mut beside = Beside::start();
    let refused = beside.block("SELECT pg_export_snapshot()");
    assert!(refused.contains("ERROR 25001"), "{refused}");
    beside.block("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
    let exported = beside.block("SELECT pg_export_snapshot()");
    let name = exported.lines().nth(1).expect("it has a row").to_owned();
    assert_eq!(beside.block("SELECT hypertide_snapshot()").lines().nth(1), Some(name.as_str()));
    beside.other("INSERT INTO t VALUES (3, 1, 100), (301, 2, 1000)");
    let mut third = beside.cluster.session();
    let mut third = |sql: &str| beside.cluster.run(&mut third, sql);
    let import = format!("SET TRANSACTION SNAPSHOT '{name}'");
    assert!(third(&import).contains("ERROR 22023"), "it is for blocks");
    for (begin, before, state) in [
        ("BEGIN", "SELECT 1", "22023"),
        ("BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT 1", "25001"),
    ] {
        third(begin);
        third(before);
        let refused = third(&import);
        assert!(refused.contains(&format!("ERROR {state}")), "{begin}: {refused}");
        third("ROLLBACK");
    }
    third("BEGIN ISOLATION LEVEL REPEATABLE READ");
    assert!(third("SET TRANSACTION SNAPSHOT '1'").contains("ERROR 22023: invalid snapshot"));
    third("ROLLBACK");
    third("BEGIN ISOLATION LEVEL REPEATABLE READ");
    assert_eq!(third(&import), "SET\n");
    assert!(third("SELECT sum(v) FROM t").contains("\n30\n"));
    third("COMMIT");
    assert!(third("SELECT sum(v) FROM t").contains("\n1130\n"));
    beside.cluster.run(&mut beside.block, "COMMIT");
    third("BEGIN ISOLATION LEVEL REPEATABLE READ");
    assert!(third(&import).contains("ERROR 22023: invalid snapshot"), "it went with its block");
}

#[test]
fn serializable_is_refused_and_not_something_weaker() {
    let mut beside = Beside::start();
    for sql in [
        "BEGIN ISOLATION LEVEL SERIALIZABLE",
        "SET default_transaction_isolation = 'serializable'",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    ] {
        let refused = beside.block(sql);
        assert!(
            refused.contains("ERROR 0A000") && refused.contains("REPEATABLE READ"),
            "{refused}"
        );
        assert!(beside.block("SELECT 1").contains("SELECT 1"));
    }
}
