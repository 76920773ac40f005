//! What is counted of statements and fragments, for the metrics of a node.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::Error;

const STATEMENTS: &str = "hypertide_statements_total";
const STATEMENT_SECONDS: &str = "hypertide_statement_seconds";
const SESSIONS: &str = "hypertide_sessions";
const ROWS_WRITTEN: &str = "hypertide_rows_written_total";
const FRAGMENTS: &str = "hypertide_fragments_total";
const FRAGMENT_SECONDS: &str = "hypertide_fragment_seconds";
const FRAGMENT_ROWS: &str = "hypertide_fragment_rows_total";
const FRAGMENT_BYTES: &str = "hypertide_fragment_read_bytes_total";
/// SQLSTATE of success.
const SUCCESS: &str = "00000";

/// Tells the recorder of the process what the measures mean.
pub fn describe_metrics() {
    describe_counter!(STATEMENTS, "Statements that ended, by SQLSTATE");
    describe_histogram!(
        STATEMENT_SECONDS,
        "Time until a statement was done or gave its first rows"
    );
    describe_gauge!(SESSIONS, "Sessions, over PostgreSQL and Flight SQL");
    describe_counter!(ROWS_WRITTEN, "Rows that statements committed");
    describe_counter!(FRAGMENTS, "Fragments that ended on this data node, by outcome");
    describe_histogram!(FRAGMENT_SECONDS, "Time that a fragment ran");
    describe_counter!(FRAGMENT_ROWS, "Rows that fragments gave");
    describe_counter!(FRAGMENT_BYTES, "Encoded bytes that fragments read");
}

/// A statement has ended, or begins to give rows.
pub(crate) fn statement<T>(took: Duration, outcome: &Result<T, Error>) {
    let state = outcome.as_ref().map_or_else(|error| error.state.0, |_| SUCCESS);
    counter!(STATEMENTS, "sqlstate" => state).increment(1);
    histogram!(STATEMENT_SECONDS).record(took);
}

/// Rows were committed.
pub(crate) fn rows_written(rows: u64) {
    counter!(ROWS_WRITTEN).increment(rows);
}

/// A fragment has ended well.
pub(crate) fn fragment_done(took: Duration, rows: u64, bytes: u64) {
    counter!(FRAGMENTS, "outcome" => "done").increment(1);
    histogram!(FRAGMENT_SECONDS).record(took);
    counter!(FRAGMENT_ROWS).increment(rows);
    counter!(FRAGMENT_BYTES).increment(bytes);
}

/// A fragment has failed.
pub(crate) fn fragment_failed() {
    counter!(FRAGMENTS, "outcome" => "failed").increment(1);
}

/// A session that is counted while this lives.
#[derive(Debug)]
pub(crate) struct CountedSession;

impl CountedSession {
    pub(crate) fn new() -> Self {
        gauge!(SESSIONS).increment(1);
        Self
    }
}

impl Drop for CountedSession {
    fn drop(&mut self) {
        gauge!(SESSIONS).decrement(1);
    }
}
