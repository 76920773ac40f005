//! Statements that change rows, against a plain list of rows, and against each other.

use std::sync::Arc;

use crate::{Session, sql::scripts::Cluster};

/// A row: time, device, value, note.
type Row = (i64, i64, i64, Option<String>);

/// What a statement does to a row that it hits.
type RowChange = dyn Fn(&mut Row);

/// A small generator, so that a seed names a run for ever.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn int(&mut self, end: u64) -> i64 {
        i64::try_from(self.below(end)).expect("it is small")
    }
}

/// A condition, and what it means.
type Condition = (String, Box<dyn Fn(&Row) -> bool>);

/// The table as it must be.
struct Model {
    rows: Vec<Row>,
    /// What the value is called by now.
    value: String,
}

impl Model {
    fn condition(&self, random: &mut Random) -> Condition {
        let value = &self.value;
        let at = random.int(10);
        match random.below(7) {
            0 => (format!("{value} % 10 = {at}"), Box::new(move |row| row.2 % 10 == at)),
            1 => (format!("device = {at}"), Box::new(move |row| row.1 == at)),
            2 => (format!("time < {}", at * 40), Box::new(move |row| row.0 < at * 40)),
            3 => ("note IS NULL".to_owned(), Box::new(|row| row.3.is_none())),
            4 => (
                format!("device IN ({at}, 3) AND {value} > 50"),
                Box::new(move |row| (row.1 == at || row.1 == 3) && row.2 > 50),
            ),
            5 => (
                format!("length(coalesce(note, '')) = 2 OR {value} = {at}"),
                Box::new(move |row| {
                    row.3.as_ref().is_some_and(|note| note.len() == 2) || row.2 == at
                }),
            ),
            _ => (
                format!("time BETWEEN {} AND {}", at * 30, at * 30 + 20),
                Box::new(move |row| (at * 30..=at * 30 + 20).contains(&row.0)),
            ),
        }
    }

    /// A statement that writes, and the tag that it must give.
    fn step(&mut self, random: &mut Random) -> (String, String) {
        let value = self.value.clone();
        if random.below(5) < 2 {
            let rows: Vec<Row> = (0..1 + random.below(20))
                .map(|_| {
                    let note = (random.below(3) > 0).then(|| format!("n{}", random.below(12)));
                    (random.int(400), random.int(6), random.int(100), note)
                })
                .collect();
            let texts: Vec<String> = rows
                .iter()
                .map(|(time, device, v, note)| {
                    let note = note.as_ref().map_or("NULL".to_owned(), |note| format!("'{note}'"));
                    format!("({time}, {device}, {v}, {note})")
                })
                .collect();
            let tag = format!("INSERT 0 {}", rows.len());
            self.rows.extend(rows);
            let sql =
                format!("INSERT INTO t (time, device, {value}, note) VALUES {}", texts.join(", "));
            return (sql, tag);
        }
        let (condition, passes) = self.condition(random);
        let hit = self.rows.iter().filter(|row| passes(row)).count();
        let by = 1 + random.int(9);
        let (sql, change): (String, Box<RowChange>) = match random.below(6) {
            0 | 1 => {
                self.rows.retain(|row| !passes(row));
                return (format!("DELETE FROM t WHERE {condition}"), format!("DELETE {hit}"));
            }
            2 => (format!("{value} = {value} + {by}"), Box::new(move |row| row.2 += by)),
            3 => (
                format!("time = (time + {}) % 500", by * 70),
                Box::new(move |row| row.0 = (row.0 + by * 70) % 500),
            ),
            4 => (
                format!("device = {by}, note = note || 'x'"),
                Box::new(move |row| {
                    row.1 = by;
                    row.3 = row.3.take().map(|note| note + "x");
                }),
            ),
            _ => (format!("note = 'w{by}'"), Box::new(move |row| row.3 = Some(format!("w{by}")))),
        };
        self.rows.iter_mut().filter(|row| passes(row)).for_each(change);
        (format!("UPDATE t SET {sql} WHERE {condition}"), format!("UPDATE {hit}"))
    }

    fn shown(&self) -> String {
        let mut rows = self.rows.clone();
        rows.sort();
        let line = |(time, device, v, note): &Row| {
            format!("{time}|{device}|{v}|{}", note.as_deref().unwrap_or("NULL"))
        };
        let lines: Vec<String> = rows.iter().map(line).collect();
        lines.join(" ")
    }
}

fn shown(cluster: &Cluster, session: &mut Session, value: &str) -> String {
    let sql = format!(
        "SELECT time, device, {value}, note FROM t ORDER BY time, device, {value}, note NULLS FIRST"
    );
    let text = cluster.run(session, &sql);
    assert!(!text.contains("ERROR"), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    // Between the names of the columns and the tag.
    lines[1..lines.len() - 1].join(" ")
}

/// Runs a statement that must give this tag.
fn must(cluster: &Cluster, session: &mut Session, sql: &str, tag: &str) {
    let said = cluster.run(session, sql);
    assert_eq!(said.trim_end(), tag, "{sql}");
}

fn run_random(seed: u64, steps: usize) {
    let cluster = Cluster::start(3);
    let (mut session, mut other) = (cluster.session(), cluster.session());
    let random = &mut Random(seed);
    let sql = "CREATE TABLE t (time bigint NOT NULL, device int, v bigint, note text)";
    must(&cluster, &mut session, sql, "CREATE TABLE");
    let sql = "SELECT created FROM create_distributed_hypertable('t', 'time', 'device', 2, \
               chunk_time_interval => 100, replication_factor => 2)";
    assert!(cluster.run(&mut session, sql).contains("created\nt\n"));
    let sql = "ALTER TABLE t SET (timescaledb.compress, timescaledb.compress_segmentby = 'device')";
    must(&cluster, &mut session, sql, "ALTER TABLE");
    let mut model = Model { rows: Vec::new(), value: "v".to_owned() };
    for step in 0..steps {
        match random.below(12) {
            0 => cluster.flush(),
            1 => {
                let what = ["compress_chunk(c, true)", "decompress_chunk(c, true)"];
                let what = what[usize::from(random.below(2) == 0)];
                cluster.run(&mut session, &format!("SELECT {what} FROM show_chunks('t') AS c"));
            }
            2 => {
                let value = format!("v{step}");
                let sql = format!("ALTER TABLE t RENAME COLUMN {} TO {value}", model.value);
                must(&cluster, &mut session, &sql, "ALTER TABLE");
                model.value = value;
            }
            3 => {
                let to = if random.below(2) == 0 { "off" } else { "on" };
                cluster.run(&mut session, &format!("SET hypertide.enable_pushdown = {to}"));
            }
            4 | 5 => {
                let before = model.rows.clone();
                must(&cluster, &mut session, "BEGIN", "BEGIN");
                for _ in 0..1 + random.below(4) {
                    let (sql, tag) = model.step(random);
                    must(&cluster, &mut session, &sql, &tag);
                    let seen = shown(&cluster, &mut session, &model.value);
                    assert_eq!(seen, model.shown(), "seed {seed} step {step}: {sql}");
                }
                if random.below(3) == 0 {
                    must(&cluster, &mut session, "ROLLBACK", "ROLLBACK");
                    model.rows = before;
                } else {
                    must(&cluster, &mut session, "COMMIT", "COMMIT");
                }
            }
            _ => {
                let (sql, tag) = model.step(random);
                must(&cluster, &mut session, &sql, &tag);
            }
        }
        let seen = shown(&cluster, &mut other, &model.value);
        assert_eq!(seen, model.shown(), "seed {seed} step {step}");
        let count = cluster.run(&mut other, "SELECT count(*) FROM t");
        assert!(count.contains(&format!("\n{}\n", model.rows.len())), "{count}");
    }
    let checked = cluster.run(&mut other, "SELECT * FROM hypertide_check(checksums => true)");
    assert!(!checked.contains("ERROR") && !checked.contains("damaged"), "{checked}");
}

#[test]
fn random_changes_agree_with_a_list_of_rows() {
    for seed in 1..=3 {
        run_random(seed, 60);
    }
}

#[test]
fn no_update_of_a_counter_is_lost() {
    const SESSIONS: usize = 8;
    const UPDATES: usize = 12;
    let cluster = Arc::new(Cluster::start(3));
    let mut session = cluster.session();
    let sql = "CREATE TABLE t (time bigint NOT NULL, device int, v bigint)";
    must(&cluster, &mut session, sql, "CREATE TABLE");
    let sql = "SELECT created FROM create_distributed_hypertable('t', 'time', 'device', 2, \
               chunk_time_interval => 100, replication_factor => 2)";
    assert!(cluster.run(&mut session, sql).contains("created\nt\n"));
    must(&cluster, &mut session, "INSERT INTO t VALUES (1, 1, 0), (2, 2, 0)", "INSERT 0 2");
    let counting = (0..SESSIONS).map(|number| {
        let (cluster, mut session) = (Arc::clone(&cluster), cluster.session());
        std::thread::spawn(move || {
            let mut lost = 0;
            for turn in 0..UPDATES {
                // Half of them as a block, which has to be run again from outside.
                let block = (number + turn) % 2 == 0;
                loop {
                    let sql = "UPDATE t SET v = v + 1 WHERE time = 1";
                    let mut said = Vec::new();
                    if block {
                        said.push(cluster.run(&mut session, "BEGIN"));
                    }
                    said.push(cluster.run(&mut session, sql));
                    if block {
                        said.push(cluster.run(&mut session, "COMMIT"));
                    }
                    let said = said.concat();
                    if !said.contains("ERROR") {
                        assert!(said.contains("UPDATE 1"), "{said}");
                        break;
                    }
                    assert!(said.contains("ERROR 40001"), "{said}");
                    lost += 1;
                }
            }
            lost
        })
    });
    let counting: Vec<_> = counting.collect();
    let lost: usize = counting.into_iter().map(|thread| thread.join().expect("it counts")).sum();
    println!("{lost} of {} tries lost against others for good", lost + SESSIONS * UPDATES);
    let seen = cluster.run(&mut session, "SELECT time, v FROM t ORDER BY time");
    assert!(seen.contains(&format!("1|{}\n2|0", SESSIONS * UPDATES)), "{seen}");
}

#[test]
fn sessions_that_insert_the_same_keys_agree() {
    const SESSIONS: usize = 6;
    const STATEMENTS: usize = 12;
    let cluster = Arc::new(Cluster::start(3));
    let mut session = cluster.session();
    for table in ["p", "u"] {
        let sql = format!(
            "CREATE TABLE {table} (time bigint, device int, n bigint, PRIMARY KEY (time, device))"
        );
        must(&cluster, &mut session, &sql, "CREATE TABLE");
        let sql = format!(
            "SELECT created FROM create_distributed_hypertable('{table}', 'time', 'device', 2, \
             chunk_time_interval => 4, replication_factor => 2)"
        );
        assert!(cluster.run(&mut session, &sql).contains("created\nt\n"));
    }
    let working = (0..SESSIONS as u64).map(|number| {
        let (cluster, mut session) = (Arc::clone(&cluster), cluster.session());
        std::thread::spawn(move || {
            let (mut inserted, mut upserted) = (0, 0);
            let mut random = Random(number);
            for _ in 0..STATEMENTS {
                let (time, device) = (random.below(8), random.below(2));
                let values = format!("({time}, {device}, 1)");
                let said = cluster.run(&mut session, &format!("INSERT INTO p VALUES {values}"));
                match said.trim_end() {
                    "INSERT 0 1" => inserted += 1,
                    said => assert!(said.contains("23505") || said.contains("40001"), "{said}"),
                }
                let sql = format!(
                    "INSERT INTO u VALUES {values} ON CONFLICT (time, device) \
                     DO UPDATE SET n = u.n + excluded.n"
                );
                let said = cluster.run(&mut session, &sql);
                match said.trim_end() {
                    "INSERT 0 1" => upserted += 1,
                    said => assert!(said.contains("40001"), "{said}"),
                }
            }
            (inserted, upserted)
        })
    });
    let working: Vec<_> = working.collect();
    let (mut inserted, mut upserted) = (0, 0);
    for thread in working {
        let done = thread.join().expect("it goes on");
        (inserted, upserted) = (inserted + done.0, upserted + done.1);
    }
    println!("{inserted} inserted, {upserted} upserted of {}", SESSIONS * STATEMENTS);
    let sql = "SELECT count(*), count(DISTINCT time * 2 + device) FROM p";
    let seen = cluster.run(&mut session, sql);
    assert!(seen.contains(&format!("\n{inserted}|{inserted}\n")), "{inserted}: {seen}");
    let seen = cluster.run(&mut session, "SELECT sum(n) FROM u");
    assert!(seen.contains(&format!("\n{upserted}\n")), "{upserted}: {seen}");
    let sql = "SELECT count(*) - count(DISTINCT time * 2 + device) FROM u";
    assert!(cluster.run(&mut session, sql).contains("\n0\n"));
}
