//! The rows of every statement, as a function of the seed and the statement's number: what was written is never recorded.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    history::Rule,
    seed::{Rng, mix},
};

/// Rows that a statement may have; the number of a row is its statement's times this, and its place in it.
pub(crate) const ROWS_MAX: u64 = 64;
/// Width of a chunk, in microseconds.
pub(crate) const CHUNK_US: i64 = 86_400_000_000;
/// An hour, in microseconds.
pub(crate) const HOUR_US: i64 = 3_600_000_000;
/// Start of the measurements: 2026-01-01, an edge of chunks.
pub(crate) const BASE_US: i64 = 1_767_225_600_000_000;
/// Days that measurements are spread over.
pub(crate) const DAYS: u64 = 6;
/// Series.
pub(crate) const SERIES: u64 = 8;
/// Values that one append statement adds, at most.
pub(crate) const APPENDS_MAX: u64 = 4;
/// Accounts, and what each has at the beginning.
pub(crate) const ACCOUNTS: u64 = 6;
/// What an account has at the beginning.
pub(crate) const BALANCE: i64 = 1_000;
/// Counters.
pub(crate) const COUNTERS: u64 = 3;
/// Registers.
pub(crate) const REGISTERS: u64 = 5;
/// Lists that are appended to at one time.
const LISTS_OPEN: u64 = 5;
/// Append statements after which new lists begin.
const LIST_AGE: u64 = 60;

/// Where the times of a workload's rows lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Times {
    /// Spread over [`DAYS`] days.
    #[default]
    Spread,
    /// At edges of chunks, of daylight saving and of the calendar, and one microsecond beside them.
    Edges,
}

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Its number.
    pub(crate) uid: u64,
    /// Its series.
    pub(crate) series: u32,
    /// Its time.
    pub(crate) time_us: i64,
    /// Its value: whole, so that sums are exact.
    pub(crate) value: i64,
    /// Text that depends on all of it.
    pub(crate) note: u64,
}

impl Row {
    /// The statement that writes it.
    pub(crate) const fn wid(&self) -> u64 {
        self.uid / ROWS_MAX
    }

    /// The text column.
    pub(crate) fn note_text(&self) -> String {
        format!("{:016x}", self.note)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { uid, series, time_us, value, note } = self;
        write!(f, "uid={uid} series=s{series} time={time_us}us value={value} note={note:016x}")
    }
}

/// Instants worth a test: daylight saving, leap days, turns of years and of the epoch, far past and future.
const EDGES_US: [i64; 12] = [
    BASE_US,
    BASE_US + CHUNK_US,
    BASE_US + 2 * CHUNK_US,
    BASE_US + 3 * CHUNK_US,
    // 2026-03-29 01:00 UTC and 2026-10-25 01:00 UTC: clocks change in Europe.
    1_774_746_000_000_000,
    1_792_890_000_000_000,
    // 2024-02-29.
    1_709_164_800_000_000,
    0,
    -CHUNK_US,
    // 1900-01-01.
    -2_208_988_800_000_000,
    // 0001-01-02.
    -62_135_510_400_000_000,
    // 9999-12-31.
    253_402_214_400_000_000,
];

/// What rows are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Source {
    /// The run's seed.
    pub(crate) seed: u64,
    /// Where times lie.
    pub(crate) times: Times,
}

impl Source {
    /// The rows of a statement: 1 to 50, in up to 6 chunks' times.
    pub(crate) fn rows(&self, wid: u64) -> Vec<Row> {
        let mut rng = Rng::new(self.seed, 1_000 + wid);
        let count = match rng.range(0, 10) {
            0 => 1,
            1..=7 => rng.range(2, 13),
            _ => rng.range(13, 51),
        };
        let days = rng.range(1, DAYS + 1);
        let first = rng.range(0, DAYS + 1 - days);
        (0..count).map(|at| self.row(&mut rng, wid * ROWS_MAX + at, (first, days))).collect()
    }

    fn row(&self, rng: &mut Rng, uid: u64, (first, days): (u64, u64)) -> Row {
        let time_us = match self.times {
            Times::Spread => {
                let start = BASE_US + signed(first) * CHUNK_US;
                start + signed(rng.range(0, days)) * CHUNK_US + signed(rng.range(0, 86_400_000_000))
            }
            Times::Edges => {
                let edge = rng.pick(&EDGES_US).copied().unwrap_or(BASE_US);
                edge + signed(rng.range(0, 3)) - 1
            }
        };
        let value = signed(rng.range(0, 2_001)) - 1_000;
        let series = u32::try_from(rng.range(0, SERIES)).unwrap_or_default();
        let note = mix(uid ^ self.seed).wrapping_add(u64::from(series)) ^ unsigned(time_us + value);
        Row { uid, series, time_us, value, note }
    }

    /// The row with this number, if there is one.
    pub(crate) fn row_of(&self, uid: u64) -> Option<Row> {
        self.rows(uid / ROWS_MAX).into_iter().find(|row| row.uid == uid)
    }

    /// Lists and values of an append statement: each list at most once.
    pub(crate) fn appends(&self, wid: u64) -> Vec<(u64, u64)> {
        let mut rng = Rng::new(self.seed, 2_000_000_000 + wid);
        let count = rng.range(1, APPENDS_MAX);
        let mut appends: Vec<(u64, u64)> = Vec::new();
        for at in 0..count {
            let key = list(wid, rng.range(0, LISTS_OPEN));
            if appends.iter().all(|(other, _)| *other != key) {
                appends.push((key, wid * APPENDS_MAX + at));
            }
        }
        appends
    }

    /// Keys and values of a statement about unique keys, each key at most once. What a key is of its rule is told by the
    /// remainder.
    pub(crate) fn puts(&self, wid: u64, rule: Rule) -> Vec<(u64, u64)> {
        let mut rng = Rng::new(self.seed, 3_000_000_000 + wid);
        let count = rng.range(1, APPENDS_MAX);
        let mut puts: Vec<(u64, u64)> = Vec::new();
        for at in 0..count {
            let key = key(list(wid, rng.range(0, LISTS_OPEN)), rule);
            if puts.iter().all(|(other, _)| *other != key) {
                puts.push((key, wid * APPENDS_MAX + at));
            }
        }
        puts
    }

    /// Keys that a reader looks at while statement `wid` is about to come.
    pub(crate) fn keys(&self, wid: u64, rng: &mut Rng) -> Vec<u64> {
        let lists = self.lists(wid, rng);
        let keys = lists.into_iter().flat_map(|place| Rule::ALL.map(|rule| key(place, rule)));
        keys.collect()
    }

    /// From which account, to which, and how much.
    pub(crate) fn transfer(&self, wid: u64) -> (u64, u64, u64) {
        let mut rng = Rng::new(self.seed, 4_000_000_000 + wid);
        let from = rng.range(0, ACCOUNTS);
        let to = (from + rng.range(1, ACCOUNTS)) % ACCOUNTS;
        (from, to, rng.range(1, 10))
    }

    /// Two registers to read, of which the first is written, and its value.
    pub(crate) fn swap(&self, wid: u64) -> (u64, u64, u64) {
        let mut rng = Rng::new(self.seed, 5_000_000_000 + wid);
        let one = rng.range(0, REGISTERS);
        let other = (one + rng.range(1, REGISTERS)) % REGISTERS;
        (one, other, wid + 1)
    }

    /// Lists that a reader looks at while statement `wid` is about to come.
    pub(crate) fn lists(&self, wid: u64, rng: &mut Rng) -> Vec<u64> {
        let count = rng.range(1, 4);
        let mut keys: Vec<u64> = (0..count).map(|_| list(wid, rng.range(0, LISTS_OPEN))).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

const fn key(place: u64, rule: Rule) -> u64 {
    place * 3 + rule as u64
}

const fn list(wid: u64, place: u64) -> u64 {
    wid / LIST_AGE * LISTS_OPEN + place
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

const fn unsigned(number: i64) -> u64 {
    u64::from_le_bytes(number.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_has_the_same_rows_always() {
        for times in [Times::Spread, Times::Edges] {
            let source = Source { seed: 5, times };
            for wid in 0..300 {
                let rows = source.rows(wid);
                assert_eq!(rows, source.rows(wid));
                assert!((1..=50).contains(&rows.len()));
                assert!(rows.iter().all(|row| row.wid() == wid));
                assert_eq!(source.row_of(rows[0].uid), Some(rows[0]));
            }
        }
        let source = Source { seed: 5, times: Times::Spread };
        assert_ne!(source.rows(1), Source { seed: 6, ..source }.rows(1));
        assert_eq!(source.row_of(ROWS_MAX - 1), None);
    }

    #[test]
    fn statements_span_several_chunks() {
        let source = Source { seed: 5, times: Times::Spread };
        let chunks = |wid| {
            let mut days: Vec<i64> =
                source.rows(wid).iter().map(|row| (row.time_us - BASE_US) / CHUNK_US).collect();
            days.sort_unstable();
            days.dedup();
            days.len()
        };
        let spans: Vec<usize> = (0..200).map(chunks).collect();
        assert!(spans.contains(&1) && spans.iter().any(|span| *span >= 5), "{spans:?}");
    }

    #[test]
    fn keys_of_two_rules_are_never_the_same_and_money_moves() {
        let source = Source { seed: 9, times: Times::Spread };
        for wid in 0..300 {
            for rule in Rule::ALL {
                let puts = source.puts(wid, rule);
                assert!(puts.iter().all(|(key, _)| key % 3 == rule as u64));
            }
            let (from, to, amount) = source.transfer(wid);
            assert!(from != to && from < ACCOUNTS && to < ACCOUNTS && amount > 0);
            let (one, other, _) = source.swap(wid);
            assert!(one != other && one < REGISTERS && other < REGISTERS);
        }
    }

    #[test]
    fn appended_values_are_unique_in_their_list() {
        let source = Source { seed: 9, times: Times::Spread };
        let mut all: Vec<(u64, u64)> = (0..500).flat_map(|wid| source.appends(wid)).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
