//! Ingest over Arrow Flight SQL.

use std::{sync::Arc, time::Duration};

use arrow::{
    array::{
        ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    },
    error::ArrowError,
};
use arrow_flight::{
    error::FlightError,
    sql::{
        CommandStatementIngest, TableDefinitionOptions, TableExistsOption, TableNotExistOption,
        client::FlightSqlServiceClient,
    },
};
use futures::{StreamExt, stream};
use hypertide_proto::client::Channels;
use tonic::{Code, transport::Channel};

use crate::{
    client::{Failure, float, signed},
    cluster::{FLIGHT, Node},
    history::{Answer, Outcome},
    workload::rows::Row,
};

/// Time after which a stream that is to be broken off is: enough for its first half to arrive.
const CUT_AFTER: Duration = Duration::from_millis(60);
/// Rows of a batch: several batches to a statement.
const BATCH_ROWS: usize = 7;

/// A connection to an access node's Flight SQL endpoint.
#[derive(Debug)]
pub(crate) struct Client {
    flight: FlightSqlServiceClient<Channel>,
}

impl Client {
    /// A client of this node; it connects when it is used.
    pub(crate) fn new(node: &Node) -> anyhow::Result<Self> {
        let channel = Channels::default().get(&node.address(FLIGHT))?;
        Ok(Self { flight: FlightSqlServiceClient::new(channel) })
    }

    /// Ingests the rows.
    pub(crate) async fn ingest(&mut self, rows: &[Row]) -> Result<Answer, Failure> {
        let batches: Result<Vec<RecordBatch>, ArrowError> =
            rows.chunks(BATCH_ROWS).map(batch).collect();
        let batches = batches.map_err(|error| Failure::never("batch", error))?;
        let stream = stream::iter(batches.into_iter().map(Ok));
        let written = self.flight.execute_ingest(command(), stream).await;
        let rows = written.map_err(|error| failure(&error))?;
        Ok(Answer::Written { index: None, rows: u64::try_from(rows).unwrap_or_default() })
    }

    /// Ingests half of the rows and breaks the stream off: nothing of it may ever be seen.
    pub(crate) async fn ingest_cut(&mut self, rows: &[Row]) -> Result<Answer, Failure> {
        let half = rows.get(..rows.len().div_ceil(2)).unwrap_or(rows);
        let batches: Result<Vec<RecordBatch>, ArrowError> =
            half.chunks(BATCH_ROWS).map(batch).collect();
        let batches = batches.map_err(|error| Failure::never("batch", error))?;
        // The stream never ends by itself: to the server an end would be a statement like any other.
        let stream = stream::iter(batches.into_iter().map(Ok)).chain(stream::pending());
        let call = self.flight.execute_ingest(command(), stream);
        let (state, message) = match tokio::time::timeout(CUT_AFTER, call).await {
            Err(_) => ("cut", "the client broke the stream off".to_owned()),
            Ok(Err(error)) => ("cut", format!("the server broke the stream off: {error}")),
            Ok(Ok(rows)) => ("acked", format!("half a stream was acknowledged with {rows} rows")),
        };
        Err(Failure::never(state, message))
    }
}

fn command() -> CommandStatementIngest {
    CommandStatementIngest {
        table_definition_options: Some(TableDefinitionOptions {
            if_not_exist: TableNotExistOption::Fail.into(),
            if_exists: TableExistsOption::Append.into(),
        }),
        table: "m".to_owned(),
        ..CommandStatementIngest::default()
    }
}

fn batch(rows: &[Row]) -> Result<RecordBatch, ArrowError> {
    let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.time_us));
    let columns: [(&str, ArrayRef); 5] = [
        ("time", Arc::new(times.with_timezone("UTC"))),
        (
            "series",
            Arc::new(StringArray::from_iter_values(
                rows.iter().map(|row| format!("s{}", row.series)),
            )),
        ),
        ("uid", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| signed(row.uid))))),
        (
            "value",
            Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| float(row.value)))),
        ),
        ("note", Arc::new(StringArray::from_iter_values(rows.iter().map(Row::note_text)))),
    ];
    RecordBatch::try_from_iter(columns)
}

fn failure(error: &FlightError) -> Failure {
    let FlightError::Tonic(status) = error else {
        return Failure::unknown("flight", error);
    };
    let sure = matches!(
        status.code(),
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::ResourceExhausted
            | Code::Unimplemented
            | Code::OutOfRange
    );
    let state = format!("flight {:?}", status.code());
    let outcome = if sure { Outcome::Fail } else { Outcome::Info };
    Failure { outcome, lost: !sure, ..Failure::unknown(&state, status.message()) }
}
