//! Handles of prepared statements: the statement and the parameters bound to it, so that no server need remember them.

use arrow::{
    array::RecordBatch,
    compute::concat_batches,
    datatypes::{Field, Schema, SchemaRef},
    ipc::{
        reader::StreamReader,
        writer::{IpcWriteOptions, StreamWriter},
    },
};
use arrow_flight::{IpcMessage, SchemaAsIpc};
use bytes::Bytes;
use datafusion::{common::ScalarValue, execution::SendableRecordBatchStream};
use futures::TryStreamExt;
use hypertide_proto::schema::ColumnType;
use prost::Message;

use crate::{Error, Prepared, SqlState};

/// Most bytes of bound parameters: they travel with every use of the handle.
const PARAMETER_BYTES_MAX: usize = 8 << 20;

/// SQLSTATE of a handle that none of ours made.
const UNKNOWN_STATEMENT: SqlState = SqlState("26000");

/// What a handle holds.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Handle {
    /// Text of the statement.
    #[prost(string, tag = "1")]
    pub(super) sql: String,
    /// Bound parameters as an Arrow IPC stream; empty when there are none.
    #[prost(bytes = "bytes", tag = "2")]
    parameters: Bytes,
}

impl Handle {
    /// A handle of a statement without parameters.
    pub(super) fn new(sql: String) -> Self {
        Self { sql, parameters: Bytes::new() }
    }

    /// Reads a handle.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Error> {
        Self::decode(bytes).ok().filter(|handle| !handle.sql.is_empty()).ok_or_else(|| {
            Error::new(UNKNOWN_STATEMENT, "the handle is not that of a prepared statement")
        })
    }

    /// The handle as clients hold it.
    pub(super) fn bytes(&self) -> Bytes {
        self.encode_to_vec().into()
    }

    /// Binds parameters in place of those bound before.
    pub(super) fn bind(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        let mut bytes = Vec::new();
        let mut writer = StreamWriter::try_new(&mut bytes, &batch.schema()).map_err(arrow)?;
        writer.write(batch).and_then(|()| writer.finish()).map_err(arrow)?;
        drop(writer);
        if bytes.len() > PARAMETER_BYTES_MAX {
            let message = format!("bound parameters exceed {PARAMETER_BYTES_MAX} bytes");
            return Err(Error::new(SqlState("54000"), message));
        }
        self.parameters = bytes.into();
        Ok(())
    }

    /// The bound parameters.
    pub(super) fn parameters(&self) -> Result<Option<RecordBatch>, Error> {
        if self.parameters.is_empty() {
            return Ok(None);
        }
        let reader = StreamReader::try_new(self.parameters.as_ref(), None).map_err(arrow)?;
        let schema = reader.schema();
        let batches = reader.collect::<Result<Vec<_>, _>>().map_err(arrow)?;
        concat_batches(&schema, &batches).map(Some).map_err(arrow)
    }
}

fn arrow(error: arrow::error::ArrowError) -> Error {
    Error::new(SqlState("22P03"), format!("parameters: {error}"))
}

/// All parameters that a client sends, as one batch.
pub(super) async fn collect(rows: SendableRecordBatchStream) -> Result<RecordBatch, Error> {
    let schema = rows.schema();
    let batches = rows
        .try_fold((Vec::new(), 0), |(mut batches, bytes), batch: RecordBatch| async move {
            let bytes = bytes + batch.get_array_memory_size();
            batches.push(batch);
            if bytes > 2 * PARAMETER_BYTES_MAX {
                let message = format!("bound parameters exceed {PARAMETER_BYTES_MAX} bytes");
                let error = Error::new(SqlState("54000"), message);
                return Err(datafusion::error::DataFusionError::External(Box::new(error)));
            }
            Ok((batches, bytes))
        })
        .await?;
    concat_batches(&schema, &batches.0).map_err(arrow)
}

/// The values of one row of parameters, in the types of the statement.
pub(super) fn row(
    batch: &RecordBatch,
    row: usize,
    types: &[ColumnType],
) -> Result<Vec<ScalarValue>, Error> {
    let (given, wanted) = (batch.num_columns(), types.len());
    if given != wanted {
        let message = format!("{given} parameters were bound, but the statement requires {wanted}");
        return Err(Error::new(SqlState("08P01"), message));
    }
    let columns = batch.columns().iter().zip(types);
    columns
        .map(|(array, column)| {
            let value = ScalarValue::try_from_array(array, row)?;
            Ok(value.cast_to(&column.to_arrow())?)
        })
        .collect()
}

/// The schema of a statement's parameters.
pub(super) fn parameter_schema(statement: &Prepared) -> Schema {
    let fields = statement.parameters.iter().enumerate();
    let fields =
        fields.map(|(at, column)| Field::new(format!("${}", at + 1), column.to_arrow(), true));
    Schema::new(fields.collect::<Vec<_>>())
}

/// A schema as Flight SQL carries it.
pub(super) fn schema_bytes(schema: &Schema) -> Result<Bytes, Error> {
    let options = IpcWriteOptions::default();
    let message = IpcMessage::try_from(SchemaAsIpc::new(schema, &options));
    message.map(|IpcMessage(bytes)| bytes).map_err(arrow)
}

/// The schema of a statement's result; none for statements without rows.
pub(super) fn result_schema(statement: &Prepared) -> SchemaRef {
    statement
        .columns
        .as_ref()
        .map_or_else(|| SchemaRef::new(Schema::empty()), super::statement::sent_schema)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use arrow::{array::Int64Array, datatypes::DataType};

    fn batch() -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)]));
        RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from(vec![5, 6]))]).unwrap()
    }

    #[test]
    fn handles_hold_statement_and_parameters() {
        let mut handle = Handle::new("select $1".to_owned());
        assert_eq!(Handle::read(&handle.bytes()).unwrap().parameters().unwrap(), None);
        handle.bind(&batch()).unwrap();
        let read = Handle::read(&handle.bytes()).unwrap();
        assert_eq!(read.sql, "select $1");
        assert_eq!(read.parameters().unwrap(), Some(batch()));
        assert_eq!(Handle::read(b"\xff\xff").unwrap_err().state, UNKNOWN_STATEMENT);
        assert_eq!(Handle::read(b"").unwrap_err().state, UNKNOWN_STATEMENT);
    }

    #[test]
    fn values_take_the_statements_types() {
        let types = [ColumnType::Integer];
        assert_eq!(row(&batch(), 1, &types).unwrap(), [ScalarValue::Int32(Some(6))]);
        assert!(row(&batch(), 0, &[]).is_err());
    }
}
