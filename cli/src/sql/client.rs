//! A client of the Flight SQL endpoint.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use arrow::{array::RecordBatch, datatypes::SchemaRef, error::ArrowError};
use arrow_flight::{
    FlightInfo,
    error::FlightError,
    sql::{
        CommandGetTables, CommandStatementIngest, TableDefinitionOptions, TableExistsOption,
        TableNotExistOption,
        client::{FlightSqlServiceClient, PreparedStatement},
    },
};
use futures::{Stream, TryStreamExt};
use hypertide_proto::client::Channels;
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
    /// Connects to `host:port`.
    pub(crate) async fn connect(address: &str) -> anyhow::Result<Self> {
        let channel = Channels::default().get(address)?;
        let mut flight = FlightSqlServiceClient::new(channel);
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

    /// The tables of the database.
    pub(crate) async fn tables(&mut self) -> anyhow::Result<Outcome> {
        let start = Instant::now();
        let info = self.flight.get_tables(CommandGetTables::default()).await.map_err(in_words)?;
        let batches = self.fetch(info).await?;
        let rows = batches.first().map(RecordBatch::schema).map(|schema| (schema, batches));
        Ok(Outcome { rows, changed: 0, elapsed: start.elapsed() })
    }

    /// Appends the batches to a table that exists; gives the number of rows. All of them or none are there after.
    pub(crate) async fn ingest<S>(&mut self, table: &str, batches: S) -> anyhow::Result<i64>
    where
        S: Stream<Item = Result<RecordBatch, FlightError>> + Send + 'static,
    {
        let command = CommandStatementIngest {
            table_definition_options: Some(TableDefinitionOptions {
                if_not_exist: TableNotExistOption::Fail.into(),
                if_exists: TableExistsOption::Append.into(),
            }),
            table: table.to_owned(),
            schema: None,
            catalog: None,
            temporary: false,
            transaction_id: None,
            options: std::collections::HashMap::default(),
        };
        self.flight.execute_ingest(command, batches).await.map_err(in_words)
    }
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
