//! The commits of a chunk one by one, as far back as they are kept: what a replica that missed some is brought up by.
//!
//! A flush forgets the parts of a commit; its number, transaction, hash and count of rows stay in the chunk's file, in
//! rows of up to [`ROW_COMMITS`], of which the last [`ROWS_KEPT`] are kept. The rows follow each other without a gap
//! and end where the chunk is flushed to; whoever cannot continue them begins anew.

use std::ops::Bound::{Excluded, Included, Unbounded};

use hypertide_proto::ids::Csn;
use redb::{ReadableTable, Table};

use crate::tables::{self, CommitRow, HistoryRow, Point};

/// Most commits of a row, all of which are written again when one is added.
const ROW_COMMITS: usize = 512;
/// Rows kept of a chunk.
const ROWS_KEPT: usize = 64;

/// Commits that follow each other, from a place on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct History {
    start: Point,
    commits: Vec<CommitRow>,
}

impl History {
    /// No commit after `start`.
    pub(crate) fn at(start: Point) -> Self {
        Self { start, commits: Vec::new() }
    }

    /// Where it begins.
    pub(crate) fn start(&self) -> Point {
        self.start
    }

    /// Its commits.
    pub(crate) fn commits(&self) -> &[CommitRow] {
        &self.commits
    }

    /// Where it ends.
    pub(crate) fn end(&self) -> Point {
        self.commits.iter().fold(self.start, Point::after)
    }

    /// Adds commits, which must come after those that are here.
    pub(crate) fn extend(&mut self, commits: impl IntoIterator<Item = CommitRow>) {
        self.commits.extend(commits);
    }

    /// The place at a commit; `None` when it does not name one.
    pub(crate) fn point_at(&self, csn: Csn) -> Option<Point> {
        let mut point = self.start;
        let mut commits = self.commits.iter();
        while point.csn < csn {
            point = point.after(commits.next()?);
        }
        (point.csn == csn).then_some(point)
    }

    /// What follows a place; `None` when the place is not on it.
    pub(crate) fn after(&self, place: (Csn, u128)) -> Option<Self> {
        let start = self.point_at(place.0)?;
        let commits = self.commits.iter().filter(|commit| commit.csn > start.csn).copied();
        (start.chain == place.1).then(|| Self { start, commits: commits.collect() })
    }

    /// Whether commit numbers rise.
    pub(crate) fn in_order(&self) -> bool {
        let csns = std::iter::once(self.start.csn).chain(self.commits.iter().map(|c| c.csn));
        csns.collect::<Vec<_>>().array_windows().all(|[one, next]| one < next)
    }
}

/// Appends commits to the table of a file; what is there and does not end where they begin goes.
pub(crate) fn append(
    table: &mut Table<'_, &'static [u8], &'static [u8]>,
    history: &History,
) -> Result<(), redb::Error> {
    let mut rest = history.commits.as_slice();
    let last = last_row(table)?;
    let continued = |row: &HistoryRow| {
        let end = row.commits.iter().fold(row.start, Point::after);
        (end.csn, end.chain) == (history.start.csn, history.start.chain)
    };
    let mut row = match last.filter(continued) {
        Some(row) => row,
        None => {
            table.retain(|_, _| false)?;
            HistoryRow { start: history.start, commits: Vec::new() }
        }
    };
    while !rest.is_empty() {
        if row.commits.len() >= ROW_COMMITS {
            let start = row.commits.iter().fold(row.start, Point::after);
            row = HistoryRow { start, commits: Vec::new() };
        }
        let room = ROW_COMMITS - row.commits.len();
        let (now, later) = rest.split_at(room.min(rest.len()));
        row.commits.extend_from_slice(now);
        rest = later;
        let first = row.commits.first().map_or(Csn(0), |commit| commit.csn);
        tables::put(table, &first.0.to_be_bytes(), &[&tables::pack(&row)])?;
    }
    let mut count = 0;
    for row in table.iter()? {
        row?;
        count += 1;
    }
    for _ in ROWS_KEPT..count {
        table.pop_first()?;
    }
    Ok(())
}

fn last_row(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
) -> Result<Option<HistoryRow>, redb::Error> {
    let Some((key, value)) = table.last()? else { return Ok(None) };
    Ok(tables::unpack(key.value(), value.value()))
}

/// The commits after `from` up to and with `to`, and those before as far as their row has them; `None` when they are
/// not all there. Wrong bytes are as good as none: the rows of the chunk do not depend on them.
pub(crate) fn read(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    (from, to): (Csn, Point),
) -> Result<Option<History>, redb::Error> {
    // The row whose first commit is the last one not after `from` holds it, or ends right there.
    let key = from.0.to_be_bytes();
    let before = table.range::<&[u8]>((Unbounded, Included(key.as_slice())))?.next_back();
    let before = before.transpose()?.map(|(key, _)| key.value().to_vec());
    let range = match &before {
        Some(key) => (Included(key.as_slice()), Unbounded),
        None => (Excluded(key.as_slice()), Unbounded),
    };
    let mut history: Option<History> = None;
    for row in table.range::<&[u8]>(range)? {
        let (key, value) = row?;
        let Some(row) = tables::unpack::<HistoryRow>(key.value(), value.value()) else {
            return Ok(None);
        };
        let known = history.get_or_insert_with(|| History::at(row.start));
        known.extend(row.commits.into_iter().filter(|commit| commit.csn <= to.csn));
    }
    let whole = |history: &History| {
        let end = history.end();
        history.in_order() && (end.csn, end.chain) == (to.csn, to.chain)
    };
    Ok(history.filter(whole))
}

#[cfg(test)]
mod tests {
    use hypertide_proto::ids::{AccessId, Boot, TxnId};
    use redb::{Database, ReadableDatabase, backends::InMemoryBackend};

    use super::*;

    fn commit(csn: u64) -> CommitRow {
        let txn = TxnId { access: AccessId(1), boot: Boot(1), seq: csn };
        CommitRow { csn: Csn(csn), txn, hash: u128::from(csn) * 3, rows: csn % 5 }
    }

    fn history(start: Point, csns: impl Iterator<Item = u64>) -> History {
        let mut history = History::at(start);
        history.extend(csns.map(commit));
        history
    }

    fn database() -> Database {
        let backend = InMemoryBackend::new();
        Database::builder().create_with_backend(backend).expect("it is in memory")
    }

    fn add(database: &Database, history: &History) {
        let txn = database.begin_write().expect("begins");
        append(&mut txn.open_table(tables::COMMITS).expect("opens"), history).expect("appends");
        txn.commit().expect("commits");
    }

    fn find(database: &Database, from: u64, to: Point) -> Option<History> {
        let txn = database.begin_read().expect("begins");
        let table = txn.open_table(tables::COMMITS).expect("opens");
        read(&table, (Csn(from), to)).expect("reads")
    }

    #[test]
    fn what_was_appended_is_found_from_every_place() {
        let database = database();
        let whole = history(Point::default(), (1..=1300).map(|n| n * 10));
        let mut start = Point::default();
        for csns in [1..=3, 4..=700, 701..=701, 702..=1300] {
            let piece = history(start, csns.map(|n: u64| n * 10));
            add(&database, &piece);
            start = piece.end();
        }
        assert_eq!(start, whole.end());
        for n in [0, 1, 2, 511, 512, 513, 1023, 1024, 1025, 1299, 1300] {
            let place = whole.point_at(Csn(n * 10)).expect("it names a commit");
            let found = find(&database, n * 10, whole.end()).expect("it is kept");
            let found = found.after((place.csn, place.chain)).expect("it is on it");
            assert_eq!((found.start(), found.end()), (place, whole.end()), "from {n}");
            assert_eq!(found.commits().len(), 1300 - n as usize);
            assert_eq!(found.after((place.csn, place.chain + 1)), None);
        }
        assert_eq!(whole.point_at(Csn(15)), None);
        assert_eq!(whole.point_at(Csn(13_010)), None);
    }

    #[test]
    fn only_the_last_rows_are_kept() {
        let database = database();
        let count = (ROWS_KEPT * ROW_COMMITS + 10) as u64;
        let whole = history(Point::default(), 1..=count);
        add(&database, &whole);
        let found = find(&database, 0, whole.end()).expect("the end is there");
        assert_eq!(found.after((Csn(0), 0)), None, "the beginning is not");
        let place = whole.point_at(Csn(ROW_COMMITS as u64)).expect("it names a commit");
        let found = find(&database, place.csn.0, whole.end()).expect("the end is there");
        assert!(found.after((place.csn, place.chain)).is_some());
    }

    #[test]
    fn what_cannot_be_continued_begins_anew() {
        let database = database();
        add(&database, &history(Point::default(), 1..=5));
        let other = Point { csn: Csn(9), chain: 77, rows: 3 };
        let later = history(other, 10..=12);
        add(&database, &later);
        assert_eq!(find(&database, 9, later.end()), Some(later.clone()));
        assert_eq!(find(&database, 5, later.end()).and_then(|h| h.after((Csn(5), 0))), None);
        // An end that the rows do not lead to is told from one that they do.
        let wrong = Point { chain: 1, ..later.end() };
        assert_eq!(find(&database, 9, wrong), None);
    }
}
