//! One client's connection to one access node: turns an [`Action`] into a statement and its reply into an answer.
//!
//! The rules for outcomes: a statement that the server refused with an SQLSTATE did not take effect, unless the state
//! says that nobody knows (class 08), the node was stopping (57P01, 57P02), or it is an internal error; no reply in time
//! and a lost connection mean that nobody knows.

mod sessions;
pub(crate) mod updates;

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use chrono::DateTime;
use futures::SinkExt;
use tokio_postgres::{
    Client as Pg, SimpleQueryMessage, SimpleQueryRow,
    types::{ToSql, Type},
};

use crate::{
    cluster::{Node, admin},
    flight,
    history::{Action, Answer, Figures, Filter, Outcome, Path, runs},
    workload::rows::{Row, Source},
};

/// Time for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(4);

/// A failed operation.
#[derive(Debug)]
pub(crate) struct Failure {
    /// [`Outcome::Fail`] or [`Outcome::Info`].
    pub(crate) outcome: Outcome,
    /// SQLSTATE or class.
    pub(crate) state: String,
    /// In words.
    pub(crate) message: String,
    /// Whether the connection is of no more use.
    pub(crate) lost: bool,
}

impl Failure {
    /// Nobody knows: no reply, or none in time.
    pub(crate) fn unknown(state: &str, message: impl ToString) -> Self {
        let (state, message) = (state.to_owned(), message.to_string());
        Self { outcome: Outcome::Info, state, message, lost: true }
    }

    /// It did not take effect: it was never asked for.
    pub(crate) fn never(state: &str, message: impl ToString) -> Self {
        Self { outcome: Outcome::Fail, ..Self::unknown(state, message) }
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(server) = error.as_db_error() else {
            return Self::unknown("lost", error);
        };
        let state = server.code().code();
        let unsure = state.starts_with("08")
            || matches!(state, "57P01" | "57P02")
            || state.starts_with("XX");
        Self {
            outcome: if unsure { Outcome::Info } else { Outcome::Fail },
            state: state.to_owned(),
            message: server.message().to_owned(),
            lost: matches!(state, "57P01" | "57P02" | "XX000"),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Client {
    pg: Pg,
    flight: flight::Client,
    /// The INSERT of one row, once it was needed.
    prepared: Option<tokio_postgres::Statement>,
    source: Source,
    limit: Duration,
}

impl Client {
    /// Connects to an access node. Statements are given up after `limit`.
    pub(crate) async fn connect(
        node: &Node,
        source: Source,
        limit: Duration,
    ) -> Result<Self, Failure> {
        let pg = admin::connect(node, CONNECT_LIMIT).await;
        let pg = pg.map_err(|error| Failure::never("connect", format_args!("{error:#}")))?;
        let set = format!("SET statement_timeout = {}", limit.as_millis() * 3 / 4);
        match tokio::time::timeout(CONNECT_LIMIT, pg.batch_execute(&set)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Failure::never("connect", error)),
            Err(_) => return Err(Failure::never("connect", "no answer")),
        }
        let flight = flight::Client::new(node).map_err(|error| Failure::never("connect", error))?;
        Ok(Self { pg, flight, prepared: None, source, limit })
    }

    /// Does what is asked, within the limit.
    pub(crate) async fn run(&mut self, action: &Action) -> Result<Answer, Failure> {
        let (limit, writes) = (self.limit + action.held(), action.writes());
        match tokio::time::timeout(limit, self.attempt(action)).await {
            Ok(result) => result,
            Err(_) => {
                let late = Failure::unknown("late", format_args!("no answer within {limit:?}"));
                // What changes nothing has certainly not changed anything.
                let outcome = if writes { Outcome::Info } else { Outcome::Fail };
                Err(Failure { outcome, ..late })
            }
        }
    }

    async fn attempt(&mut self, action: &Action) -> Result<Answer, Failure> {
        match action {
            Action::Insert { wid, path, named } => self.insert(*wid, *path, *named).await,
            Action::Read(filter) => self.read(filter).await,
            Action::Aggregate(filter) => self.aggregate(filter).await,
            Action::Buckets(filter) => self.buckets(filter).await,
            Action::Retire { before_us } => self.retire(*before_us).await,
            Action::Append { wid } => self.append(*wid).await,
            Action::Lists(keys) => self.lists(keys).await,
            Action::Create(name) => {
                let columns = "(time timestamptz NOT NULL, n bigint)";
                self.pg.batch_execute(&format!("CREATE TABLE {name} {columns}")).await?;
                Ok(Answer::Nothing)
            }
            Action::Drop(name) => {
                self.pg.batch_execute(&format!("DROP TABLE {name}")).await?;
                Ok(Answer::Nothing)
            }
            Action::Probe(name) => {
                let query = format!(
                    "SELECT count(*) FROM information_schema.tables WHERE table_name = '{name}'"
                );
                let rows = self.query(&query).await?;
                let count = rows.first().and_then(|row| number(row, 0));
                Ok(Answer::Exists(count.is_some_and(|count| count > 0)))
            }
            Action::Paged(filter) => self.read_paged(filter).await,
            Action::Put { wid, rule } => self.put(*wid, *rule).await,
            Action::Keys(keys) => self.keys(keys).await,
            Action::Transfer { wid, block } => self.transfer(*wid, *block).await,
            Action::Balances => self.pairs("accounts", "value", "key >= 0").await,
            Action::Count { counter, block, held_ms } => {
                self.count(*counter, *block, Duration::from_millis(*held_ms)).await
            }
            Action::Counters => self.pairs("counters", "value", "key >= 0").await,
            Action::Swap { wid } => self.swap(*wid).await,
            Action::Registers => self.pairs("registers", "value", "key >= 0").await,
            Action::Squeeze { salt, undo } => self.squeeze(*salt, *undo).await,
        }
    }

    async fn insert(&mut self, wid: u64, path: Path, named: bool) -> Result<Answer, Failure> {
        let rows = self.source.rows(wid);
        if named {
            let set = format!("SET hypertide.write_id = '{}'", write_id(self.source.seed, wid));
            // Not the statement itself: it certainly did not take effect when this fails.
            let set = self.pg.batch_execute(&set).await;
            set.map_err(|error| Failure { outcome: Outcome::Fail, ..error.into() })?;
        }
        let written = match path {
            Path::Text => self.changed(&insert_text(&rows)).await?,
            Path::Prepared => self.insert_prepared(&rows).await?,
            Path::Cancelled => self.insert_cancelled(&insert_text(&rows), wid).await?,
            Path::Bound => self.insert_bound(&rows).await?,
            Path::Copy | Path::CopyCut => self.copy(&rows, path == Path::CopyCut).await?,
            Path::Flight => return self.flight.ingest(&rows).await,
            Path::FlightCut => return self.flight.ingest_cut(&rows).await,
        };
        // The same statement may have been committed by an earlier attempt: where, nobody says.
        let index = if named { None } else { self.last_commit().await };
        Ok(Answer::Written { index, rows: written })
    }

    async fn insert_bound(&self, rows: &[Row]) -> Result<u64, Failure> {
        const COLUMNS: usize = 5;
        let mut places = Vec::new();
        let mut values: Vec<Box<dyn ToSql + Sync + Send>> = Vec::new();
        let mut types = Vec::new();
        for (at, row) in rows.iter().enumerate() {
            let place = |column: usize| format!("${}", at * COLUMNS + column);
            let list: Vec<String> = (1..=COLUMNS).map(place).collect();
            places.push(format!("({})", list.join(", ")));
            values.push(Box::new(system_time(row.time_us)));
            values.push(Box::new(format!("s{}", row.series)));
            values.push(Box::new(signed(row.uid)));
            values.push(Box::new(float(row.value)));
            values.push(Box::new(row.note_text()));
            types.extend([Type::TIMESTAMPTZ, Type::TEXT, Type::INT8, Type::FLOAT8, Type::TEXT]);
        }
        let sql = format!("INSERT INTO m VALUES {}", places.join(", "));
        let prepared = self.pg.prepare_typed(&sql, &types).await;
        // Nothing is changed by preparing.
        let prepared =
            prepared.map_err(|error| Failure { outcome: Outcome::Fail, ..error.into() })?;
        let values: Vec<&(dyn ToSql + Sync)> =
            values.iter().map(|value| &**value as &(dyn ToSql + Sync)).collect();
        Ok(self.pg.execute(&prepared, &values).await?)
    }

    /// COPY; broken off before its end it must leave nothing, whatever was sent.
    async fn copy(&self, rows: &[Row], cut: bool) -> Result<u64, Failure> {
        let not_yet =
            |error: tokio_postgres::Error| Failure { outcome: Outcome::Fail, ..error.into() };
        let sink = self.pg.copy_in::<_, Bytes>("COPY m FROM STDIN").await.map_err(not_yet)?;
        let mut sink = std::pin::pin!(sink);
        let sent = if cut { rows.len().div_ceil(2) } else { rows.len() };
        for row in rows.iter().take(sent) {
            let line = format!(
                "{}\ts{}\t{}\t{}\t{}\n",
                time_text(row.time_us),
                row.series,
                row.uid,
                row.value,
                row.note_text()
            );
            let mut bytes = BytesMut::new();
            bytes.put_slice(line.as_bytes());
            sink.send(bytes.freeze()).await.map_err(not_yet)?;
        }
        if cut {
            // The sink is dropped: the client says CopyFail.
            return Err(Failure::never("cut", "the client broke the COPY off"));
        }
        Ok(sink.finish().await?)
    }

    /// The answer of a statement that changed so many rows. Without any the last commit is an earlier one's.
    async fn written(&self, rows: u64) -> Answer {
        let index = if rows == 0 { None } else { self.last_commit().await };
        Answer::Written { index, rows }
    }

    /// Where the session's last commit lies, if the node still says so.
    async fn last_commit(&self) -> Option<u64> {
        let rows = self.query("SELECT hypertide_last_commit()").await.ok()?;
        number(rows.first()?, 0).filter(|index| *index > 0).and_then(|index| index.try_into().ok())
    }

    async fn read(&self, filter: &Filter) -> Result<Answer, Failure> {
        let sql = format!(
            "SELECT hypertide_snapshot(), time, series, uid, value, note FROM m{}",
            condition(filter)
        );
        let rows = self.query(&sql).await?;
        let cells = |row: &SimpleQueryRow| {
            (0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect::<Vec<_>>()
        };
        Ok(rows_answer(&self.source, &rows.iter().map(cells).collect::<Vec<_>>()))
    }

    async fn aggregate(&self, filter: &Filter) -> Result<Answer, Failure> {
        let sql = format!(
            "SELECT hypertide_snapshot(), count(*), sum(value), min(value), max(value) FROM m{}",
            condition(filter)
        );
        let rows = self.query(&sql).await?;
        let row = rows.first().ok_or_else(|| Failure::never("empty", "no row of figures"))?;
        let figure = |at| row.get(at).and_then(whole);
        let figures = Figures {
            count: number(row, 1).unwrap_or(-1),
            sum: figure(2),
            min: figure(3),
            max: figure(4),
        };
        Ok(Answer::Figures { at: index(row), figures })
    }

    async fn buckets(&self, filter: &Filter) -> Result<Answer, Failure> {
        let sql = format!(
            "SELECT hypertide_snapshot(), time_bucket('1 hour', time) AS hour, count(*), \
             sum(value) FROM m{} GROUP BY hour ORDER BY hour",
            condition(filter)
        );
        let rows = self.query(&sql).await?;
        let bucket = |row: &SimpleQueryRow| {
            Some((micros(row.get(1)?)?, number(row, 2)?, whole(row.get(3)?)?))
        };
        let buckets: Option<Vec<(i64, i64, i64)>> = rows.iter().map(bucket).collect();
        let buckets = buckets.ok_or_else(|| Failure::never("text", "a bucket is not readable"))?;
        Ok(Answer::Buckets { at: rows.first().and_then(index), buckets })
    }

    async fn retire(&self, before_us: i64) -> Result<Answer, Failure> {
        let sql = format!(
            "SELECT drop_chunks('m', older_than => timestamptz '{}')",
            time_text(before_us)
        );
        let dropped = self.query(&sql).await?.len() as u64;
        Ok(self.written(dropped).await)
    }

    async fn append(&self, wid: u64) -> Result<Answer, Failure> {
        let value = |(key, value): (u64, u64)| {
            // Lists lie in different chunks: a day each.
            let day = 1 + key % 27;
            format!("('2026-02-{day:02}', {key}, {value})")
        };
        let values: Vec<String> = self.source.appends(wid).into_iter().map(value).collect();
        let sql = format!("INSERT INTO lists VALUES {}", values.join(", "));
        let rows = self.changed(&sql).await?;
        Ok(self.written(rows).await)
    }

    async fn lists(&self, keys: &[u64]) -> Result<Answer, Failure> {
        let names: Vec<String> = keys.iter().map(u64::to_string).collect();
        // The row of the count makes sure that the snapshot is told even when there are no values.
        let sql = format!(
            "SELECT hypertide_snapshot(), key, value FROM lists WHERE key IN ({}) \
             UNION ALL SELECT hypertide_snapshot(), -1, count(*) FROM lists WHERE key = -1",
            names.join(", ")
        );
        let rows = self.query(&sql).await?;
        let mut lists: Vec<(u64, Vec<u64>)> = keys.iter().map(|key| (*key, Vec::new())).collect();
        for row in &rows {
            let (key, value) = (number(row, 1), number(row, 2));
            let list = lists.iter_mut().find(|(wanted, _)| key == Some(signed(*wanted)));
            let value = value.and_then(|value| u64::try_from(value).ok());
            if let (Some((_, list)), Some(value)) = (list, value) {
                list.push(value);
            }
        }
        for (_, list) in &mut lists {
            list.sort_unstable();
        }
        Ok(Answer::Lists { at: rows.first().and_then(index), lists })
    }

    async fn query(&self, sql: &str) -> Result<Vec<SimpleQueryRow>, Failure> {
        let messages = self.pg.simple_query(sql).await?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(rows.collect())
    }

    async fn changed(&self, sql: &str) -> Result<u64, Failure> {
        let messages = self.pg.simple_query(sql).await?;
        let counts = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::CommandComplete(rows) => Some(rows),
            _ => None,
        });
        Ok(counts.sum())
    }
}

/// The name of a statement for retries.
fn write_id(seed: u64, wid: u64) -> String {
    let (high, low) = (crate::seed::mix(seed ^ 0x77), crate::seed::mix(seed).wrapping_add(wid));
    let hex = format!("{high:016x}{low:016x}");
    let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default().to_owned();
    [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-")
}

/// The text of an INSERT of rows.
fn insert_text(rows: &[Row]) -> String {
    let values: Vec<String> = rows.iter().map(literals).collect();
    format!("INSERT INTO m VALUES {}", values.join(", "))
}

/// What a read of rows came to. The cells of a row are snapshot, time, series, number, value and note.
pub(crate) fn rows_answer(source: &Source, rows: &[Vec<Option<String>>]) -> Answer {
    let first = rows.first().and_then(|row| row.first()).cloned().flatten();
    let (mut uids, mut odd) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        match recognise(source, row) {
            Some(uid) => uids.push(uid),
            None => odd.push(words(row)),
        }
    }
    uids.sort_unstable();
    let pairs = uids.iter().zip(uids.iter().skip(1));
    let twice: Vec<u64> = pairs.filter(|(a, b)| a == b).map(|(a, _)| *a).collect();
    uids.dedup();
    let at = first.and_then(|at| at.parse().ok());
    Answer::Rows { at, uids: runs(&uids), twice, odd }
}

/// The number of a row that is just as it was written.
fn recognise(source: &Source, row: &[Option<String>]) -> Option<u64> {
    let cell = |at: usize| row.get(at)?.as_deref();
    let uid = cell(3)?.parse().ok()?;
    let written = source.row_of(uid)?;
    let same = micros(cell(1)?)? == written.time_us
        && cell(2)? == format!("s{}", written.series)
        && whole(cell(4)?)? == written.value
        && cell(5)? == written.note_text();
    same.then_some(uid)
}

fn literals(row: &Row) -> String {
    let Row { uid, series, time_us, value, .. } = row;
    format!("('{}', 's{series}', {uid}, {value}, '{}')", time_text(*time_us), row.note_text())
}

fn condition(filter: &Filter) -> String {
    let mut parts = Vec::new();
    if let Some(from) = filter.from_us {
        parts.push(format!("time >= '{}'", time_text(from)));
    }
    if let Some(to) = filter.to_us {
        parts.push(format!("time < '{}'", time_text(to)));
    }
    if let Some(series) = filter.series {
        parts.push(format!("series = 's{series}'"));
    }
    if let Some(wid) = filter.wid {
        let first = wid * crate::workload::rows::ROWS_MAX;
        parts.push(format!("uid >= {first} AND uid < {}", first + crate::workload::rows::ROWS_MAX));
    }
    if parts.is_empty() { String::new() } else { format!(" WHERE {}", parts.join(" AND ")) }
}

/// A time as PostgreSQL reads it, in UTC.
pub(crate) fn time_text(time_us: i64) -> String {
    let time = DateTime::from_timestamp_micros(time_us).unwrap_or_default();
    time.format("%Y-%m-%d %H:%M:%S%.6f+00").to_string()
}

/// Microseconds of a time as PostgreSQL writes it in UTC.
fn micros(text: &str) -> Option<i64> {
    let time = DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%#z").ok()?;
    Some(time.timestamp_micros())
}

fn system_time(time_us: i64) -> std::time::SystemTime {
    let offset = Duration::from_micros(time_us.unsigned_abs());
    match time_us < 0 {
        true => std::time::UNIX_EPOCH - offset,
        false => std::time::UNIX_EPOCH + offset,
    }
}

fn number(row: &SimpleQueryRow, at: usize) -> Option<i64> {
    row.try_get(at).ok()??.parse().ok()
}

fn index(row: &SimpleQueryRow) -> Option<u64> {
    number(row, 0)?.try_into().ok()
}

/// A double that is a whole number.
fn whole(text: &str) -> Option<i64> {
    let text = text.strip_suffix(".0").unwrap_or(text);
    text.parse().ok()
}

#[expect(clippy::cast_precision_loss, reason = "values are small whole numbers")]
pub(crate) fn float(value: i64) -> f64 {
    value as f64
}

pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn words(row: &[Option<String>]) -> String {
    let cells = row.iter().map(|cell| cell.as_deref().unwrap_or("NULL"));
    cells.collect::<Vec<&str>>().join("|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_and_read() {
        for time in [0, -1, 1_767_225_600_000_001, -62_135_510_400_000_001] {
            assert_eq!(micros(&time_text(time)), Some(time), "{}", time_text(time));
        }
        assert_eq!(micros("2026-01-01 00:00:00.5+00"), Some(1_767_225_600_500_000));
        assert_eq!(micros("yesterday"), None);
    }

    #[test]
    fn write_ids_are_of_the_seed_and_the_statement() {
        let ids = [write_id(1, 2), write_id(1, 3), write_id(2, 2)];
        assert!(ids.iter().all(|id| id.len() == 36), "{ids:?}");
        assert!(ids[0] != ids[1] && ids[0] != ids[2]);
        assert_eq!(write_id(1, 2), ids[0]);
    }
}
