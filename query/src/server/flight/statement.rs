//! Statements: planned for their schema, run for their rows or their count.

use std::{sync::Arc, time::Instant};

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    compute::cast,
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use arrow_flight::{encode::FlightDataEncoderBuilder, flight_service_server::FlightService as Rpc};
use datafusion::{
    common::ScalarValue, error::DataFusionError, execution::SendableRecordBatchStream,
};
use futures::{StreamExt, TryStreamExt, stream};
use hypertide_meta::Image;
use tonic::metadata::MetadataMap;

use super::{
    prepared::{self, Handle},
    service::FlightService,
    status::{flight_error, status},
};
use crate::{Engine, Error, Prepared, Reply, Session, SqlState, server::USER};

/// Header that names the write, so that a retried one is applied once.
const WRITE_ID_HEADER: &str = "x-write-id";

/// Header that names an exported snapshot to read by.
const SNAPSHOT_HEADER: &str = "x-snapshot";

/// The stream of a DoGet.
pub(super) type RowStream = <FlightService as Rpc>::DoGetStream;

/// A session for one call, with the settings of its headers.
pub(super) async fn session(engine: &Arc<Engine>, headers: &MetadataMap) -> Result<Session, Error> {
    let mut session = Session::new(Arc::clone(engine), USER);
    if let Some(id) = headers.get(WRITE_ID_HEADER) {
        let id =
            id.to_str().ok().and_then(|id| uuid::Uuid::try_parse(id).ok()).ok_or_else(|| {
                Error::new(SqlState("22023"), format!("the header {WRITE_ID_HEADER} is not a UUID"))
            })?;
        set(&mut session, &format!("SET hypertide.write_id TO '{id}'")).await?;
    }
    if let Some(name) = headers.get(SNAPSHOT_HEADER) {
        let name = name.to_str().ok().filter(|name| name.parse::<u64>().is_ok());
        let name = name.ok_or_else(|| {
            let message = format!("the header {SNAPSHOT_HEADER} is no snapshot identifier");
            Error::new(SqlState("22023"), message)
        })?;
        set(&mut session, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await?;
        set(&mut session, &format!("SET TRANSACTION SNAPSHOT '{name}'")).await?;
    }
    Ok(session)
}

async fn set(session: &mut Session, sql: &str) -> Result<(), Error> {
    let statement = session.prepare(sql, &[]).await?;
    session.execute(&statement, Vec::new()).await?;
    Ok(())
}

/// Plans a statement.
pub(super) async fn plan(session: &mut Session, sql: &str) -> Result<Prepared, Error> {
    session.prepare(sql, &[]).await
}

/// Runs a statement and streams its rows.
pub(super) async fn rows(
    engine: &Arc<Engine>,
    headers: &MetadataMap,
    handle: &Handle,
) -> Result<RowStream, Error> {
    let mut session = session(engine, headers).await?;
    let statement = plan(&mut session, &handle.sql).await?;
    let values = match handle.parameters()? {
        Some(batch) if batch.num_rows() > 1 => {
            let message = "a query takes one row of parameters";
            return Err(Error::new(SqlState("0A000"), message));
        }
        Some(batch) if batch.num_rows() == 1 => prepared::row(&batch, 0, &statement.parameters)?,
        _ => no_values(&statement)?,
    };
    match session.execute(&statement, values).await? {
        Reply::Rows { schema, stream, .. } => Ok(encode_rows(session, &schema, stream)),
        Reply::CopyOut { .. } | Reply::CopyIn(_) => Err(no_copy()),
        Reply::Done(_) | Reply::Empty => Ok(no_rows()),
    }
}

/// The answer of a statement without rows.
pub(super) fn no_rows() -> RowStream {
    encode(Arc::new(Schema::empty()), stream::empty().boxed())
}

/// The values for each run of a statement.
pub(super) fn bound_rows(
    statement: &Prepared,
    parameters: Option<RecordBatch>,
) -> Result<Vec<Vec<ScalarValue>>, Error> {
    match parameters.filter(|batch| batch.num_columns() > 0) {
        Some(batch) => (0..batch.num_rows())
            .map(|row| prepared::row(&batch, row, &statement.parameters))
            .collect(),
        None => Ok(vec![no_values(statement)?]),
    }
}

/// Runs a statement once for each row of values, and gives the number of rows that it changed.
pub(super) async fn whole(
    mut session: Session,
    statement: Prepared,
    rows: Vec<Vec<ScalarValue>>,
) -> Result<i64, Error> {
    // A call that is dropped with its client must not drop a commit on its way.
    let running = tokio::spawn(async move {
        let mut changed = 0_i64;
        for values in rows {
            let reply = session.execute(&statement, values).await?;
            changed = changed.saturating_add(count(&mut session, reply).await?);
        }
        session.close().await;
        Ok(changed)
    });
    running.await.map_err(|error| {
        Error::new(SqlState("XX000"), format!("a statement ended unexpectedly: {error}"))
    })?
}

/// The rows that a reply stands for.
async fn count(session: &mut Session, reply: Reply) -> Result<i64, Error> {
    match reply {
        Reply::Rows { mut stream, .. } => {
            let mut rows = 0;
            while let Some(batch) = stream.try_next().await? {
                rows += batch.num_rows();
            }
            Ok(i64::try_from(rows).unwrap_or(i64::MAX))
        }
        // Tags end in the number of rows, where there is one.
        Reply::Done(tag) => Ok(tag.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)),
        Reply::Empty => Ok(0),
        Reply::CopyIn(copy) => {
            session.abort_copy(copy).await;
            Err(no_copy())
        }
        Reply::CopyOut { .. } => Err(no_copy()),
    }
}

/// No values, for a statement that needs none.
fn no_values(statement: &Prepared) -> Result<Vec<ScalarValue>, Error> {
    if statement.parameters.is_empty() {
        return Ok(Vec::new());
    }
    let message = format!(
        "no parameters were bound, but the statement requires {}",
        statement.parameters.len()
    );
    Err(Error::new(SqlState("08P01"), message))
}

fn no_copy() -> Error {
    let mut error = Error::new(SqlState("0A000"), "COPY is not for Flight SQL");
    error.hint = Some("Use a bulk ingest, or a query.".to_owned());
    error
}

/// The schema in which rows are sent: without views and dictionaries, which not all clients know.
pub(super) fn sent_schema(schema: &SchemaRef) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| {
        let data_type = match super::input::plain_type(field.data_type()) {
            DataType::Utf8View => DataType::Utf8,
            DataType::BinaryView => DataType::Binary,
            other => other.clone(),
        };
        Field::new(field.name(), data_type, true).with_metadata(field.metadata().clone())
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn encode_rows(
    session: Session,
    schema: &SchemaRef,
    stream: SendableRecordBatchStream,
) -> RowStream {
    let sent = sent_schema(schema);
    let target = Arc::clone(&sent);
    let batches = stream.map(move |batch| {
        // The session lives as long as its rows.
        let _ = &session;
        batch.and_then(|batch| fit(&batch, &target)).map_err(Error::from)
    });
    encode(sent, batches.boxed())
}

/// The batch in the schema that was announced.
fn fit(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, DataFusionError> {
    let columns = batch.columns().iter().zip(schema.fields());
    let columns = columns
        .map(|(column, field)| match column.data_type() == field.data_type() {
            true => Ok(Arc::clone(column)),
            false => cast(column, field.data_type()),
        })
        .collect::<Result<_, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

type Batches = stream::BoxStream<'static, Result<RecordBatch, Error>>;

fn encode(schema: SchemaRef, batches: Batches) -> RowStream {
    let encoder =
        FlightDataEncoderBuilder::new().with_schema(schema).build(batches.map_err(flight_error));
    encoder
        .map_err(|error| match error {
            arrow_flight::error::FlightError::Tonic(status) => *status,
            other => status(Error::new(SqlState("XX000"), other)),
        })
        .boxed()
}

/// One batch as the answer of a DoGet.
pub(super) fn encode_one(batch: RecordBatch) -> RowStream {
    encode(batch.schema(), stream::iter([Ok(batch)]).boxed())
}

/// A catalog that holds all that was acknowledged before.
pub(super) async fn image(engine: &Engine) -> Result<Arc<Image>, Error> {
    let deadline = Instant::now() + engine.config.commit_deadline;
    Ok(engine.catalog.barrier(deadline).await?)
}
