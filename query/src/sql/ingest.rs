//! Record batches of a client, as Flight sends them: matched by name, cast, and written as one statement.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Schema},
};
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt as _;
use hypertide_meta::catalog::Table;
use hypertide_proto::schema::{Column, ColumnType};
use hypertide_storage::batch::{DICTIONARY_ENTRIES_MAX, texts_type};
use xxhash_rust::xxh3::Xxh3;

use super::{insert::fill, table::find_named};
use crate::{Error, Session, ingest::assign::assign, session::Frame};

/// Appends batches to a table; gives the number of rows.
pub(crate) async fn ingest(
    session: &mut Session,
    schema: &str,
    table: &str,
    mut rows: SendableRecordBatchStream,
) -> Result<u64, Error> {
    let write_id = session.take_write_id()?;
    let mut writer = session.take_writer()?;
    let frame = session.frame().await?;
    let path = session.settings.get("search_path").unwrap_or_default();
    let schema = Some(schema).filter(|schema| !schema.is_empty());
    let table = find_named(&frame.snapshot.image, schema, table, path)?;
    let (mut count, mut content) = (0, Xxh3::new());
    let deadline = session.deadline();
    while let Some(batch) = rows.try_next().await? {
        let batch = fitted(&frame, &table, &batch).await?;
        if write_id.is_some() {
            content.update(&hypertide_storage::batch::encode(&batch)?.hash.to_be_bytes());
        }
        count += batch.num_rows() as u64;
        writer.write(&table, batch, deadline).await?;
    }
    let tag = write_id.map(|id| (id, content.digest128()));
    session.end_write(writer, count, tag).await
}

/// A batch with exactly the table's columns.
async fn fitted(
    frame: &Frame,
    table: &Arc<Table>,
    batch: &RecordBatch,
) -> Result<RecordBatch, Error> {
    let schema = batch.schema();
    for field in schema.fields() {
        if table.columns.column(field.name()).is_none() {
            return Err(Error::no_column(field.name(), &table.name));
        }
    }
    let mut columns = Vec::with_capacity(table.columns.columns.len());
    for column in &table.columns.columns {
        columns.push(match batch.column_by_name(&column.name) {
            Some(array) => match texts(array, column)? {
                Some(texts) => texts,
                None => assign(array, column, frame.zone)?,
            },
            None => fill(frame, column, batch.num_rows()).await?,
        });
    }
    let schema = table.columns.to_arrow();
    let fields = schema.fields().iter().zip(&columns);
    let fields = fields
        .map(|(field, array)| field.as_ref().clone().with_data_type(array.data_type().clone()));
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields.collect::<Vec<_>>())), columns)?)
}

/// A dictionary of texts for a column of texts, which goes on as one; `None` for all others.
fn texts(array: &ArrayRef, column: &Column) -> Result<Option<ArrayRef>, Error> {
    let Some(dictionary) = array.as_any_dictionary_opt() else { return Ok(None) };
    let entries = dictionary.values();
    let fits = column.column_type == ColumnType::Text
        && *entries.data_type() == DataType::Utf8
        && entries.null_count() == 0
        && entries.len() <= DICTIONARY_ENTRIES_MAX;
    Ok(if fits { Some(cast(array, &texts_type())?) } else { None })
}
