//! A client of the Flight SQL endpoint.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use arrow::{
    array::{RecordBatch, UInt32Array},
    compute::take_record_batch,
    datatypes::SchemaRef,
    error::ArrowError,
};
use arrow_flight::{
    FlightInfo,
    error::FlightError,
    flight_service_client::FlightServiceClient,
    sql::{
        CommandGetTables, CommandStatementIngest, TableDefinitionOptions, TableExistsOption,
        TableNotExistOption,
        client::{FlightSqlServiceClient, PreparedStatement},
    },
};
use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use hypertide_proto::client::{Channels, MESSAGE_BYTES_MAX};
use tonic::transport::Channel;

/// What a statement gave.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Columns and rows, when the statement has a result.
    pub(crate) rows: Option<(SchemaRef, Vec<RecordBatch>)>,
    /// Rows that were changed, when it has none.
    pub(crate) changed: i64,
    /// From sending the statement to the last row.
    pub(crate) elapsed: Duration,
}

/// A connection to an access node.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    flight: FlightSqlServiceClient<Channel>,
}

impl Client {
    /// Lets all that follows read by a snapshot that a transaction of this access node exported.
    pub(crate) fn set_snapshot(&mut self, name: &str) {
        self.flight.set_header("x-snapshot", name);
    }

    /// Names the next write: when it is sent again under that name, it is done once.
    pub(crate) fn set_write_id(&mut self, id: uuid::Uuid) {
        self.flight.set_header("x-write-id", id.to_string());
    }

    /// Connects to `host:port`.
    pub(crate) async fn connect(address: &str) -> anyhow::Result<Self> {
        let channel = Channels::default().get(address)?;
        let flight = FlightServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let mut flight = FlightSqlServiceClient::new_from_inner(flight);
        // The first message tells whether anyone is there.
        let shaken = flight.handshake("hypertide", "").await;
        shaken.map_err(in_words).with_context(|| format!("connect to {address}"))?;
        Ok(Self { flight })
    }

    /// Runs one statement and takes in all of its result.
    pub(crate) async fn run(&mut self, sql: &str) -> anyhow::Result<Outcome> {
        let start = Instant::now();
        let prepared = self.flight.prepare(sql.to_owned(), None).await.map_err(in_words)?;
        let mut prepared = prepared;
        let outcome = self.run_prepared(&mut prepared).await;
        let closed = prepared.close().await.map_err(in_words);
        let (rows, changed) = outcome?;
        closed?;
        Ok(Outcome { rows, changed, elapsed: start.elapsed() })
    }

    async fn run_prepared(
        &mut self,
        prepared: &mut PreparedStatement<Channel>,
    ) -> anyhow::Result<(Option<(SchemaRef, Vec<RecordBatch>)>, i64)> {
        let schema = Arc::new(prepared.dataset_schema().map_err(in_words)?.clone());
        if schema.fields().is_empty() {
            let changed = prepared.execute_update().await.map_err(in_words)?;
            return Ok((None, changed));
        }
        let info = prepared.execute().await.map_err(in_words)?;
        let batches = self.fetch(info).await?;
        let schema = batches.first().map_or(schema, RecordBatch::schema);
        Ok((Some((schema, batches)), 0))
    }

    /// All batches behind the tickets of `info`.
    async fn fetch(&mut self, info: FlightInfo) -> anyhow::Result<Vec<RecordBatch>> {
        let mut batches = Vec::new();
        for ticket in info.endpoint.into_iter().filter_map(|endpoint| endpoint.ticket) {
            let stream = self.flight.do_get(ticket).await.map_err(in_words)?;
            let part: Vec<RecordBatch> = stream.try_collect().await.map_err(in_words)?;
            batches.extend(part);
        }
        Ok(batches)
    }

    /// Runs a query and gives its rows as they come.
    pub(crate) async fn query(
        &mut self,
        sql: &str,
    ) -> anyhow::Result<(SchemaRef, BoxStream<'static, anyhow::Result<RecordBatch>>)> {
        let info = self.flight.execute(sql.to_owned(), None).await.map_err(in_words)?;
        let schema = Arc::new(
            info.clone().try_decode_schema().map_err(FlightError::from).map_err(in_words)?,
        );
        let ticket = info.endpoint.into_iter().next().and_then(|endpoint| endpoint.ticket);
        let rows = self.flight.do_get(ticket.context("a query has no rows")?).await;
        Ok((schema, rows.map_err(in_words)?.map_err(in_words).boxed()))
    }

    /// The tables of the database.
    pub(crate) async fn tables(&mut self) -> anyhow::Result<Outcome> {
        let start = Instant::now();
        let info = self.flight.get_tables(CommandGetTables::default()).await.map_err(in_words)?;
        let batches = self.fetch(info).await?;
        let rows = batches.first().map(RecordBatch::schema).map(|schema| (schema, batches));
        Ok(Outcome { rows, changed: 0, elapsed: start.elapsed() })
    }

    /// Appends the batches to a table that exists, of `public` when no schema is named; gives the number of rows. All of
    /// them or none are there after.
    pub(crate) async fn ingest<S>(
        &mut self,
        (schema, table): (Option<&str>, &str),
        batches: S,
    ) -> anyhow::Result<i64>
    where
        S: Stream<Item = Result<RecordBatch, FlightError>> + Send + 'static,
    {
        let command = CommandStatementIngest {
            table_definition_options: Some(TableDefinitionOptions {
                if_not_exist: TableNotExistOption::Fail.into(),
                if_exists: TableExistsOption::Append.into(),
            }),
            table: table.to_owned(),
            schema: schema.map(str::to_owned),
            catalog: None,
            temporary: false,
            transaction_id: None,
            options: std::collections::HashMap::default(),
        };
        self.flight.execute_ingest(command, batches).await.map_err(in_words)
    }
}

/// Whether what failed may well work a moment later: a node is gone, nobody leads, all are busy. The message of a
/// statement that a server refused ends with its SQLSTATE.
pub(crate) fn may_pass(error: &anyhow::Error) -> bool {
    let message = format!("{error:#}");
    let state = message.rsplit_once("(SQLSTATE ").and_then(|(_, state)| state.get(..2));
    let lasting = ["0A", "21", "22", "23", "25", "28", "3D", "3F", "42", "54", "72"];
    state.is_none_or(|class| !lasting.contains(&class))
}

/// A copy of a batch. All columns of one that was read are one buffer, which an encoder would count once a column.
pub(crate) fn unshared(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let rows =
        u32::try_from(batch.num_rows()).map_err(|_| ArrowError::DictionaryKeyOverflowError)?;
    take_record_batch(batch, &UInt32Array::from_iter_values(0..rows))
}

/// What the server said, without the layers it came through.
fn in_words(error: FlightError) -> anyhow::Error {
    match error {
        FlightError::Tonic(status) => status_in_words(&status),
        FlightError::Arrow(ArrowError::IpcError(message)) => anyhow::anyhow!("{message}"),
        FlightError::Arrow(error) => anyhow::anyhow!("{error}"),
        other => anyhow::anyhow!("{other}"),
    }
}

fn status_in_words(status: &tonic::Status) -> anyhow::Error {
    match std::error::Error::source(status) {
        Some(source) if status.code() == tonic::Code::Unavailable => {
            anyhow::anyhow!("{}: {source}", status.message())
        }
        _ => anyhow::anyhow!("{}", status.message()),
    }
}
