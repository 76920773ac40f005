//! The calls of Flight SQL, each handed to its file.

use std::sync::Arc;

use arrow::datatypes::Schema;
use arrow_flight::{
    Action, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest, HandshakeResponse,
    Ticket,
    flight_service_server::FlightService as Rpc,
    sql::{
        ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest,
        ActionCreatePreparedStatementResult, CommandGetCatalogs, CommandGetCrossReference,
        CommandGetDbSchemas, CommandGetExportedKeys, CommandGetImportedKeys, CommandGetPrimaryKeys,
        CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables, CommandPreparedStatementQuery,
        CommandPreparedStatementUpdate, CommandStatementIngest, CommandStatementQuery,
        CommandStatementUpdate, DoPutPreparedStatementResult, ProstMessageExt, SqlInfo,
        TicketStatementQuery,
        server::{FlightSqlService, PeekableFlightDataStream},
    },
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use prost::Message;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataValue};

use super::{
    ingest, input, metadata,
    prepared::{self, Handle},
    statement::{self, RowStream},
    status::status,
};
use crate::{Engine, Error, SqlState};

type HandshakeStream = <FlightService as Rpc>::HandshakeStream;

/// The service: what all calls share.
#[derive(Clone, Debug)]
pub(super) struct FlightService {
    engine: Arc<Engine>,
}

impl FlightService {
    /// A service over this engine.
    pub(super) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }

    /// The answer to a question for a result: its schema, found by planning the statement.
    ///
    /// A statement without rows runs here: clients need not fetch what has no columns, and some that do, do it after
    /// they went on. Its ticket stands for an empty result.
    async fn planned(
        &self,
        handle: &Handle,
        ticket: Bytes,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let engine = &self.engine;
        let mut session = statement::session(engine, request.metadata()).await.map_err(status)?;
        let planned = statement::plan(&mut session, &handle.sql).await.map_err(status)?;
        let schema = prepared::result_schema(&planned);
        if planned.columns.is_some() {
            return info(&schema, ticket, request);
        }
        let rows = statement::bound_rows(&planned, handle.parameters().map_err(status)?);
        let changed = statement::whole(session, planned, rows.map_err(status)?).await;
        let changed = changed.map_err(status)?;
        tracing::debug!(changed, "a statement without rows ran");
        let done = TicketStatementQuery { statement_handle: Bytes::new() };
        info(&schema, done.as_any().encode_to_vec().into(), request)
    }

    async fn update(
        &self,
        handle: &Handle,
        request: Request<PeekableFlightDataStream>,
        bound: bool,
    ) -> Result<i64, Error> {
        let mut session = statement::session(&self.engine, request.metadata()).await?;
        let planned = statement::plan(&mut session, &handle.sql).await?;
        let sent = if bound { input::batches(request.into_inner()).await? } else { None };
        let parameters = match sent {
            Some(rows) => Some(prepared::collect(rows).await?),
            None => handle.parameters()?,
        };
        let rows = statement::bound_rows(&planned, parameters)?;
        statement::whole(session, planned, rows).await
    }

    async fn bound(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<Bytes, Error> {
        let mut handle = Handle::read(&query.prepared_statement_handle)?;
        if let Some(rows) = input::batches(request.into_inner()).await? {
            handle.bind(&prepared::collect(rows).await?)?;
        }
        Ok(handle.bytes())
    }

    async fn prepare(
        &self,
        query: ActionCreatePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Error> {
        no_transaction(query.transaction_id.as_ref())?;
        let mut session = statement::session(&self.engine, request.metadata()).await?;
        let planned = statement::plan(&mut session, &query.query).await?;
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: Handle::new(query.query).bytes(),
            dataset_schema: prepared::schema_bytes(&prepared::result_schema(&planned))?,
            parameter_schema: prepared::schema_bytes(&prepared::parameter_schema(&planned))?,
        })
    }

    async fn image(&self) -> Result<Arc<hypertide_meta::Image>, Status> {
        statement::image(&self.engine).await.map_err(status)
    }
}

/// The answer to a question for a result: one endpoint, which is where the question was asked.
fn info(
    schema: &Schema,
    ticket: Bytes,
    request: Request<FlightDescriptor>,
) -> Result<Response<FlightInfo>, Status> {
    let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket));
    let info = FlightInfo::new().try_with_schema(schema).map_err(|error| {
        status(Error::new(SqlState("XX000"), format!("encode a schema: {error}")))
    })?;
    let info = info.with_endpoint(endpoint).with_descriptor(request.into_inner());
    Ok(Response::new(info))
}

/// The answer to a question for metadata, whose ticket is the question.
fn command_info(
    schema: &Schema,
    command: &impl ProstMessageExt,
    request: Request<FlightDescriptor>,
) -> Result<Response<FlightInfo>, Status> {
    info(schema, command.as_any().encode_to_vec().into(), request)
}

fn no_transaction(id: Option<&Bytes>) -> Result<(), Error> {
    match id {
        Some(id) if !id.is_empty() => {
            Err(Error::new(SqlState("0A000"), "transactions over several calls are not supported"))
        }
        _ => Ok(()),
    }
}

fn one(batch: Result<arrow::array::RecordBatch, Error>) -> Result<Response<RowStream>, Status> {
    batch.map(|batch| Response::new(statement::encode_one(batch))).map_err(status)
}

#[tonic::async_trait]
impl FlightSqlService for FlightService {
    type FlightService = Self;

    /// Anybody is let in; the token is there for clients that insist on one.
    async fn do_handshake(
        &self,
        _request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<HandshakeStream>, Status> {
        let token = uuid::Uuid::new_v4().simple().to_string();
        let answer = HandshakeResponse { protocol_version: 0, payload: token.clone().into() };
        let answers: HandshakeStream = stream::iter([Ok(answer)]).boxed();
        let mut response = Response::new(answers);
        let bearer = MetadataValue::try_from(format!("Bearer {token}"));
        let bearer = bearer.map_err(|_| Status::internal("make a token"))?;
        response.metadata_mut().insert("authorization", bearer);
        Ok(response)
    }

    async fn get_flight_info_statement(
        &self,
        query: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        no_transaction(query.transaction_id.as_ref()).map_err(status)?;
        let handle = Handle::new(query.query);
        let ticket = TicketStatementQuery { statement_handle: handle.bytes() };
        let ticket = ticket.as_any().encode_to_vec().into();
        self.planned(&handle, ticket, request).await
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let handle = Handle::read(&query.prepared_statement_handle).map_err(status)?;
        let ticket = query.as_any().encode_to_vec().into();
        self.planned(&handle, ticket, request).await
    }

    async fn do_get_statement(
        &self,
        ticket: TicketStatementQuery,
        request: Request<Ticket>,
    ) -> Result<Response<RowStream>, Status> {
        if ticket.statement_handle.is_empty() {
            return Ok(Response::new(statement::no_rows()));
        }
        let handle = Handle::read(&ticket.statement_handle).map_err(status)?;
        let rows = statement::rows(&self.engine, request.metadata(), &handle).await;
        rows.map(Response::new).map_err(status)
    }

    async fn do_get_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<Ticket>,
    ) -> Result<Response<RowStream>, Status> {
        let handle = Handle::read(&query.prepared_statement_handle).map_err(status)?;
        let rows = statement::rows(&self.engine, request.metadata(), &handle).await;
        rows.map(Response::new).map_err(status)
    }

    async fn do_put_statement_update(
        &self,
        command: CommandStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        no_transaction(command.transaction_id.as_ref()).map_err(status)?;
        self.update(&Handle::new(command.query), request, false).await.map_err(status)
    }

    async fn do_put_statement_ingest(
        &self,
        command: CommandStatementIngest,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        let headers = request.metadata().clone();
        let rows = input::batches(request.into_inner()).await.map_err(status)?;
        let rows = rows.ok_or_else(|| {
            status(Error::new(SqlState("08P01"), "an ingest needs a schema and batches"))
        })?;
        ingest::run(&self.engine, &headers, command, rows).await.map_err(status)
    }

    async fn do_put_prepared_statement_query(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let handle = self.bound(query, request).await.map_err(status)?;
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) })
    }

    async fn do_put_prepared_statement_update(
        &self,
        query: CommandPreparedStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        let handle = Handle::read(&query.prepared_statement_handle).map_err(status)?;
        self.update(&handle, request, true).await.map_err(status)
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        self.prepare(query, request).await.map_err(status)
    }

    /// Nothing is kept of a prepared statement, so that there is nothing to close.
    async fn do_action_close_prepared_statement(
        &self,
        _query: ActionClosePreparedStatementRequest,
        _request: Request<Action>,
    ) -> Result<(), Status> {
        Ok(())
    }

    async fn get_flight_info_catalogs(
        &self,
        query: CommandGetCatalogs,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        command_info(&query.into_builder().schema(), &query, request)
    }

    async fn get_flight_info_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        command_info(&query.clone().into_builder().schema(), &query, request)
    }

    async fn get_flight_info_tables(
        &self,
        query: CommandGetTables,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        command_info(&query.clone().into_builder().schema(), &query, request)
    }

    async fn get_flight_info_table_types(
        &self,
        query: CommandGetTableTypes,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        command_info(&query.into_builder().schema(), &query, request)
    }

    async fn get_flight_info_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        command_info(&metadata::sql_info_schema(), &query, request)
    }

    async fn get_flight_info_primary_keys(
        &self,
        query: CommandGetPrimaryKeys,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        command_info(&metadata::primary_keys().schema(), &query, request)
    }

    async fn get_flight_info_exported_keys(
        &self,
        query: CommandGetExportedKeys,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        command_info(&metadata::foreign_keys().schema(), &query, request)
    }

    async fn get_flight_info_imported_keys(
        &self,
        query: CommandGetImportedKeys,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        command_info(&metadata::foreign_keys().schema(), &query, request)
    }

    async fn get_flight_info_cross_reference(
        &self,
        query: CommandGetCrossReference,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        command_info(&metadata::foreign_keys().schema(), &query, request)
    }

    async fn do_get_catalogs(
        &self,
        query: CommandGetCatalogs,
        _request: Request<Ticket>,
    ) -> Result<Response<RowStream>, Status> {
        one(metadata::catalogs(query))
    }

    async fn do_get_schemas(
        &self,
        query: CommandGetDbSchemas,
        _request: Request<Ticket>,
    ) -> Result<Response<RowStream>, Status> {
        one(metadata::schemas(query, &*self.image().await?))
    }

    async fn do_get_tables(
        &self,
        query: CommandGetTables,
        _request: Request<Ticket>,
    ) -> Result<Response<RowStream>, Status> {
        one(metadata::tables(query, &*self.image().await?))
    }

    async fn do_get_table_types(
        &self,
        query: CommandGetTableTypes,
        _request: Request<Ticket>,
    ) -> Result<Response<RowStream>, Status> {
        one(metadata::table_types(query))
    }

    async fn do_get_sql_info(
        &self,
        query: CommandGetSqlInfo,
        _request: Request<Ticket>,
    ) -> Result<Response<RowStream>, Status> {
        one(metadata::sql_info(query))
    }

    async fn do_get_primary_keys(
        &self,
        _query: CommandGetPrimaryKeys,
        _request: Request<Ticket>,
    ) -> Result<Response<RowStream>, Status> {
        one(Ok(metadata::primary_keys()))
    }

    async fn do_get_exported_keys(
        &self,
        _query: CommandGetExportedKeys,
        _request: Request<Ticket>,
    ) -> Result<Response<RowStream>, Status> {
        one(Ok(metadata::foreign_keys()))
    }

    async fn do_get_imported_keys(
        &self,
        _query: CommandGetImportedKeys,
        _request: Request<Ticket>,
    ) -> Result<Response<RowStream>, Status> {
        one(Ok(metadata::foreign_keys()))
    }

    async fn do_get_cross_reference(
        &self,
        _query: CommandGetCrossReference,
        _request: Request<Ticket>,
    ) -> Result<Response<RowStream>, Status> {
        one(Ok(metadata::foreign_keys()))
    }

    async fn register_sql_info(&self, _id: i32, _result: &SqlInfo) {}
}
