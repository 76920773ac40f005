//! What clients asked the cluster to do, and what came back: the words of the history.
//!
//! One [`Op`] is one statement. Its outcome is [`Outcome::Ok`] when it was acknowledged, [`Outcome::Fail`] when it
//! certainly did not take effect, and [`Outcome::Info`] when nobody knows. A client whose operation ended as `Info` goes
//! on under a new process number. Times are microseconds on the harness's one monotonic clock, from the start of the
//! run. Rows that were read are recorded by number when they are just what was written, so that histories stay small,
//! and in full when they are not.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::workload::rows::Row;

/// One statement, from its being sent to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Op {
    /// Position in the history.
    pub(crate) id: u64,
    /// The process that did it: a client, until an outcome was not known.
    pub(crate) process: u64,
    /// The access node that was asked.
    pub(crate) node: String,
    /// When it was sent.
    pub(crate) start_us: u64,
    /// When its outcome was known.
    pub(crate) end_us: u64,
    /// What was asked.
    pub(crate) action: Action,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// What came back.
    #[serde(default, skip_serializing_if = "Answer::is_nothing")]
    pub(crate) answer: Answer,
    /// SQLSTATE or class of the failure.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) state: String,
    /// What the failure said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) message: String,
    /// Part of the reads at the end, after every fault was healed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) closing: bool,
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// It was acknowledged.
    Ok,
    /// It certainly did not take effect.
    Fail,
    /// It may have taken effect, or may yet.
    Info,
}

/// How rows travel to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Path {
    /// INSERT with literals, by the simple protocol.
    Text,
    /// INSERT with parameters, by the extended protocol.
    Bound,
    /// COPY in text.
    Copy,
    /// COPY that the client breaks off before its end.
    CopyCut,
    /// Flight SQL ingest.
    Flight,
    /// Flight SQL ingest that the client breaks off before its end.
    FlightCut,
    /// INSERT by a statement that was prepared before, for as long as the connection lasts.
    Prepared,
    /// INSERT that the client asks to be cancelled while it runs.
    Cancelled,
}

/// What a statement does with a key that is there already. Every key is only ever written by one rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Rule {
    /// It takes its place: DO UPDATE.
    Upsert,
    /// It leaves it: DO NOTHING.
    Ignore,
    /// It is refused.
    Strict,
}

impl Rule {
    /// Every rule.
    pub(crate) const ALL: [Self; 3] = [Self::Upsert, Self::Ignore, Self::Strict];
}

/// Which rows a read asks for: all conditions together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Filter {
    /// Not before this time, in microseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) from_us: Option<i64>,
    /// Before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) to_us: Option<i64>,
    /// Only this series.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) series: Option<u32>,
    /// Only rows of this statement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) wid: Option<u64>,
}

impl Filter {
    /// Whether a row satisfies it.
    pub(crate) fn matches(&self, row: &Row) -> bool {
        self.from_us.is_none_or(|from| row.time_us >= from)
            && self.to_us.is_none_or(|to| row.time_us < to)
            && self.series.is_none_or(|series| row.series == series)
            && self.wid.is_none_or(|wid| row.wid() == wid)
    }
}

/// What is asked of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Action {
    /// The rows of statement `wid` into the table of measurements.
    Insert {
        /// Number of the statement: its rows follow from it.
        wid: u64,
        /// How they travel.
        path: Path,
        /// Whether the statement has a name for retries; the same for every attempt.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        named: bool,
    },
    /// Rows.
    Read(Filter),
    /// Rows, by a portal that gives a few at a time.
    Paged(Filter),
    /// Count, sum and extremes.
    Aggregate(Filter),
    /// Count and sum by hour.
    Buckets(Filter),
    /// Drops the chunks that end at or before this time.
    Retire {
        /// In microseconds since 1970; an edge of chunks.
        before_us: i64,
    },
    /// Appends of statement `wid` to lists.
    Append {
        /// Number of the statement: keys and values follow from it.
        wid: u64,
    },
    /// Several lists at once.
    Lists(Vec<u64>),
    /// Makes a table.
    Create(String),
    /// Drops a table.
    Drop(String),
    /// Asks whether a table is there.
    Probe(String),
    /// Keys and values of statement `wid` into the table with a unique key.
    Put {
        /// Number of the statement: keys and values follow from it.
        wid: u64,
        /// What becomes of keys that are there.
        rule: Rule,
    },
    /// Several keys at once.
    Keys(Vec<u64>),
    /// Money from one account to another.
    Transfer {
        /// Number of the statement: accounts and amount follow from it.
        wid: u64,
        /// By two statements in a transaction block, instead of one statement.
        block: bool,
    },
    /// All accounts at once.
    Balances,
    /// One more.
    Count {
        /// The counter.
        counter: u64,
        /// In a transaction block.
        block: bool,
        /// How long that stays open before its COMMIT, in milliseconds.
        #[serde(default, skip_serializing_if = "is_zero")]
        held_ms: u64,
    },
    /// All counters at once.
    Counters,
    /// Reads two registers and writes one of them, in one transaction block.
    Swap {
        /// Number of the statement: registers and the value follow from it.
        wid: u64,
    },
    /// All registers at once.
    Registers,
    /// Compresses a chunk, or undoes it.
    Squeeze {
        /// What the choice of the chunk follows from.
        salt: u64,
        /// Whether it is undone.
        undo: bool,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Action {
    /// Whether it changes anything.
    pub(crate) const fn writes(&self) -> bool {
        !matches!(
            self,
            Self::Read(_)
                | Self::Paged(_)
                | Self::Aggregate(_)
                | Self::Buckets(_)
                | Self::Lists(_)
                | Self::Probe(_)
                | Self::Keys(_)
                | Self::Balances
                | Self::Counters
                | Self::Registers
        )
    }

    /// How long it waits by itself.
    pub(crate) const fn held(&self) -> Duration {
        match self {
            Self::Count { held_ms, .. } => Duration::from_millis(*held_ms),
            _ => Duration::ZERO,
        }
    }

    /// One word for it.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Insert { .. } => "insert",
            Self::Read(_) => "read",
            Self::Aggregate(_) => "aggregate",
            Self::Buckets(_) => "buckets",
            Self::Retire { .. } => "retire",
            Self::Append { .. } => "append",
            Self::Lists(_) => "lists",
            Self::Create(_) => "create",
            Self::Drop(_) => "drop",
            Self::Probe(_) => "probe",
            Self::Paged(_) => "paged",
            Self::Put { .. } => "put",
            Self::Keys(_) => "keys",
            Self::Transfer { .. } => "transfer",
            Self::Balances => "balances",
            Self::Count { .. } => "count",
            Self::Counters => "counters",
            Self::Swap { .. } => "swap",
            Self::Registers => "registers",
            Self::Squeeze { .. } => "squeeze",
        }
    }
}

/// Count, sum and extremes of the values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// Rows.
    pub(crate) count: i64,
    /// Of no rows there is none.
    pub(crate) sum: Option<i64>,
    /// Smallest value.
    pub(crate) min: Option<i64>,
    /// Largest value.
    pub(crate) max: Option<i64>,
}

/// What came back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// Nothing that is looked at.
    #[default]
    Nothing,
    /// A write.
    Written {
        /// Entry of the log that committed it, when it is known.
        index: Option<u64>,
        /// Rows that the cluster says it wrote.
        rows: u64,
    },
    /// Rows.
    Rows {
        /// Entry of the log up to which was read; none of no rows.
        at: Option<u64>,
        /// Numbers of rows that are as they were written: first and how many.
        uids: Vec<(u64, u64)>,
        /// Numbers of rows that came more than once.
        twice: Vec<u64>,
        /// Rows that nobody wrote.
        odd: Vec<String>,
    },
    /// Count, sum and extremes.
    Figures {
        /// Entry of the log up to which was read.
        at: Option<u64>,
        /// The figures.
        figures: Figures,
    },
    /// Count and sum by hour.
    Buckets {
        /// Entry of the log up to which was read.
        at: Option<u64>,
        /// Start of the hour in microseconds, count, sum; ascending.
        buckets: Vec<(i64, i64, i64)>,
    },
    /// Lists: key and values.
    Lists {
        /// Entry of the log up to which was read.
        at: Option<u64>,
        /// Every list asked for, even one without values.
        lists: Vec<(u64, Vec<u64>)>,
    },
    /// Whether it is there.
    Exists(bool),
    /// Keys, accounts, counters or registers, each with its value.
    Pairs {
        /// Entry of the log up to which was read.
        at: Option<u64>,
        /// In order.
        pairs: Vec<(u64, i64)>,
    },
    /// A transaction that read and then wrote.
    Swapped {
        /// Entry of the log that committed it, when it is known.
        index: Option<u64>,
        /// What it read.
        read: Vec<(u64, i64)>,
    },
}

impl Answer {
    const fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing)
    }

    /// Up to where was read.
    pub(crate) const fn at(&self) -> Option<u64> {
        match self {
            Self::Rows { at, .. }
            | Self::Figures { at, .. }
            | Self::Buckets { at, .. }
            | Self::Lists { at, .. }
            | Self::Pairs { at, .. } => *at,
            Self::Nothing | Self::Written { .. } | Self::Swapped { .. } | Self::Exists(_) => None,
        }
    }
}

/// Numbers as runs: first and how many. They must ascend.
pub(crate) fn runs(uids: &[u64]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for uid in uids {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == *uid => *count += 1,
            _ => runs.push((*uid, 1)),
        }
    }
    runs
}

/// The numbers of runs.
pub(crate) fn numbers(runs: &[(u64, u64)]) -> impl Iterator<Item = u64> {
    runs.iter().flat_map(|(first, count)| *first..first.saturating_add(*count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_hold_the_numbers() {
        let uids = [1, 2, 3, 7, 9, 10];
        assert_eq!(runs(&uids), [(1, 3), (7, 1), (9, 2)]);
        assert_eq!(numbers(&runs(&uids)).collect::<Vec<_>>(), uids);
    }

    #[test]
    fn a_line_of_history_is_read_back() {
        let op = Op {
            id: 4,
            process: 2,
            node: "a1".into(),
            start_us: 10,
            end_us: 20,
            action: Action::Read(Filter { wid: Some(3), ..Filter::default() }),
            outcome: Outcome::Ok,
            answer: Answer::Rows {
                at: Some(9),
                uids: vec![(1, 2)],
                twice: vec![],
                odd: vec!["x".into()],
            },
            state: String::new(),
            message: String::new(),
            closing: true,
        };
        let line = serde_json::to_string(&op).expect("it is plain data");
        assert_eq!(serde_json::from_str::<Op>(&line).expect("it was written so"), op);
        assert!(!line.contains("message"), "{line}");
    }
}
