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
//! | [`session`] | statements prepared before, portals read a few rows at a time, statements cancelled |
//! | [`squeeze`] | chunks are compressed and decompressed, under load |
//! | [`keys`] | unique keys: DO UPDATE, DO NOTHING, and refusal |
//! | [`bank`] | UPDATE moves money between accounts |
//! | [`counter`] | UPDATE adds one |
//! | [`hold`] | the same in blocks that stay open for long |
//! | [`registers`] | transaction blocks that read two registers and write one |
//! | [`mixed`] | all that needs neither keys nor UPDATE |

mod aggregate;
mod append;
mod bank;
mod counter;
mod ddl;
mod edges;
mod hold;
mod insert;
mod keys;
mod mixed;
mod next;
mod registers;
mod retire;
mod retry;
pub(crate) mod rows;
mod session;
mod squeeze;
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
    /// INSERT by a statement prepared before.
    Prepared,
    /// INSERT that is cancelled.
    Cancelled,
    /// Rows, a few at a time.
    Paged,
    /// Rows under unique keys.
    Put,
    /// Read of keys.
    Keys,
    /// Money from account to account.
    Transfer,
    /// Read of accounts.
    Balances,
    /// One more.
    Count,
    /// One more, in a block that stays open for a while.
    Hold,
    /// Read of counters.
    Counters,
    /// Read and write of registers in one transaction.
    Swap,
    /// Read of registers.
    Registers,
    /// Compression of a chunk, and its end.
    Squeeze,
}

impl Workload {
    /// Whether its clients ever do this.
    pub(crate) fn does(&self, kind: Kind) -> bool {
        self.mix.iter().any(|(other, _)| *other == kind)
    }
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
pub(crate) const WORKLOADS: [Workload; 16] = [
    insert::WORKLOAD,
    retry::WORKLOAD,
    append::WORKLOAD,
    edges::WORKLOAD,
    aggregate::WORKLOAD,
    retire::WORKLOAD,
    ddl::WORKLOAD,
    stream::WORKLOAD,
    session::WORKLOAD,
    squeeze::WORKLOAD,
    keys::WORKLOAD,
    bank::WORKLOAD,
    counter::WORKLOAD,
    hold::WORKLOAD,
    registers::WORKLOAD,
    mixed::WORKLOAD,
];

/// The workload of this name.
pub(crate) fn named(name: &str) -> Option<Workload> {
    WORKLOADS.into_iter().find(|workload| workload.name == name)
}
