//! What clients do: which statements, in which proportion. Pure: a client's stream of statements is a function of the
//! seed, of its number and of how many statements were begun.
//!
//! | Name | What it is |
//! |---|---|
//! | [`insert`] | statements of 1 to 50 rows in up to 6 days, many series; reads by time, series, statement |
//! | [`retry`] | the same with a name for retries, sent again through other access nodes |
//! | [`append`] | lists that one statement appends to at once, and that one statement reads at once |
//! | [`edges`] | times at the edges of chunks and of the calendar |
//! | [`aggregate`] | counts, sums and `time_bucket` at one snapshot |
//! | [`retire`] | old chunks are dropped, under load |
//! | [`ddl`] | tables that come and go |
//! | [`stream`] | COPY and Flight ingest, some of them broken off in mid-stream |
//! | [`mixed`] | all of it |

mod aggregate;
mod append;
mod ddl;
mod edges;
mod insert;
mod mixed;
mod next;
mod retire;
mod retry;
pub(crate) mod rows;
mod stream;

use rows::Times;

pub(crate) use next::Next;

/// A kind of statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// INSERT by either protocol.
    Insert,
    /// INSERT with a name for retries.
    Named,
    /// COPY, whole.
    Copy,
    /// COPY, broken off.
    CopyCut,
    /// Flight ingest, whole.
    Flight,
    /// Flight ingest, broken off.
    FlightCut,
    /// Rows.
    Read,
    /// Count, sum, extremes.
    Aggregate,
    /// By hour.
    Buckets,
    /// Drop of old chunks.
    Retire,
    /// Append to lists.
    Append,
    /// Read of lists.
    Lists,
    /// Tables come.
    Create,
    /// Tables go.
    Drop,
    /// Tables are looked for.
    Probe,
}

/// A workload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    /// Its name.
    pub(crate) name: &'static str,
    /// What it is, in a few words.
    pub(crate) about: &'static str,
    /// Where the times of its rows lie.
    pub(crate) times: Times,
    /// Statements and how often, in proportion.
    pub(crate) mix: &'static [(Kind, u64)],
}

/// Every workload.
pub(crate) const WORKLOADS: [Workload; 9] = [
    insert::WORKLOAD,
    retry::WORKLOAD,
    append::WORKLOAD,
    edges::WORKLOAD,
    aggregate::WORKLOAD,
    retire::WORKLOAD,
    ddl::WORKLOAD,
    stream::WORKLOAD,
    mixed::WORKLOAD,
];

/// The workload of this name.
pub(crate) fn named(name: &str) -> Option<Workload> {
    WORKLOADS.into_iter().find(|workload| workload.name == name)
}
