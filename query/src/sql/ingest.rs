//! Record batches of a client, as Flight sends them: matched by name, cast, and written as one statement.

use std::{collections::HashSet, sync::Arc, time::Instant};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::{cast, concat_batches},
    datatypes::{DataType, FieldRef, Schema},
};
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt as _;
use hypertide_meta::catalog::Table;
use hypertide_proto::schema::{Column, ColumnType};
use hypertide_storage::batch::{DICTIONARY_ENTRIES_MAX, bytes_of, texts_type};
use xxhash_rust::xxh3::Xxh3;

use super::{
    insert::fill,
    keys::{Keyed, Policy},
    table::find_named,
};
use crate::{
    Error, Session,
    ingest::{assign::assign, send::Writer},
    session::Frame,
};

/// Batches of fewer rows are joined with those that follow.
const JOINED_ROWS_MIN: usize = 8192;
/// Bytes from which on batches are not joined any more.
const JOINED_BYTES_MAX: usize = 4 << 20;

/// Appends batches to a table; gives the number of rows.
pub(crate) async fn ingest(
    session: &mut Session,
    schema: &str,
    table: &str,
    mut rows: SendableRecordBatchStream,
) -> Result<u64, Error> {
    let write_id = session.take_write_id()?;
    let mut writer = session.take_writer()?;
    let mut snapshot = session.fresh_snapshot().await?;
    snapshot.own = Some(writer.txn());
    let frame = session.frame_of(snapshot)?;
    let path = session.settings.get("search_path").unwrap_or_default();
    let schema = Some(schema).filter(|schema| !schema.is_empty());
    let table = find_named(&frame.snapshot.image, schema, table, path)?;
    let (mut count, mut content) = (0, Xxh3::new());
    let deadline = session.deadline();
    while let Some(batch) = next_rows(&mut rows).await? {
        let batch = fitted(&frame, &table, &batch).await?;
        if write_id.is_some() {
            content.update(&hypertide_storage::batch::encode(&batch)?.hash.to_be_bytes());
        }
        count += batch.num_rows() as u64;
        put(&frame, &table, &mut writer, (batch, deadline)).await?;
    }
    let tag = write_id.map(|id| (id, content.digest128()));
    session.end_write(writer, count, tag).await
}

/// Writes rows, which nothing may cross.
pub(crate) async fn put(
    frame: &Frame,
    table: &Arc<Table>,
    writer: &mut Writer,
    (rows, deadline): (RecordBatch, Instant),
) -> Result<(), Error> {
    if table.columns.keys.is_empty() {
        return writer.write(table, rows, deadline).await;
    }
    let (policy, values, written) = (&Policy::Refuse, &[], HashSet::new());
    let mut keyed = Keyed { frame, table, policy, values, written };
    Box::pin(keyed.put(writer, rows, deadline)).await.map(|_| ())
}

/// The next rows: small batches are joined, since each costs the same whatever its size.
async fn next_rows(rows: &mut SendableRecordBatchStream) -> Result<Option<RecordBatch>, Error> {
    let Some(first) = rows.try_next().await? else { return Ok(None) };
    let dictionary = |field: &FieldRef| matches!(field.data_type(), DataType::Dictionary(..));
    // Keys of several dictionaries may be too many for the type that the client chose.
    if first.schema_ref().fields().iter().any(dictionary) {
        return Ok(Some(first));
    }
    let (mut count, mut bytes) = (first.num_rows(), bytes_of(&first));
    let mut batches = vec![first];
    while count < JOINED_ROWS_MIN
        && bytes < JOINED_BYTES_MAX
        && let Some(batch) = rows.try_next().await?
    {
        count += batch.num_rows();
        bytes += bytes_of(&batch);
        batches.push(batch);
    }
    match batches.as_slice() {
        [only] => Ok(Some(only.clone())),
        all => Ok(Some(concat_batches(&rows.schema(), all)?)),
    }
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

#[cfg(test)]
mod tests {
    use arrow::{
        array::{Int64Array, StringArray},
        datatypes::{Field, Int64Type},
    };
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
    use futures::stream;

    use super::*;

    fn batch(start: usize, rows: usize, texts: &DataType) -> RecordBatch {
        let numbers = Int64Array::from_iter_values((start..start + rows).map(|at| at as i64));
        let names: ArrayRef = Arc::new(StringArray::from(vec!["a"; rows]));
        let schema = Schema::new(vec![
            Field::new("n", DataType::Int64, true),
            Field::new("t", texts.clone(), true),
        ]);
        let names = cast(&names, texts).expect("there is one text");
        RecordBatch::try_new(Arc::new(schema), vec![Arc::new(numbers), names]).expect("they fit")
    }

    async fn sizes(batches: Vec<RecordBatch>) -> Vec<usize> {
        let schema = batches.first().expect("there are batches").schema();
        let batches = stream::iter(batches.into_iter().map(Ok));
        let mut rows: SendableRecordBatchStream =
            Box::pin(RecordBatchStreamAdapter::new(schema, batches));
        let (mut sizes, mut next) = (Vec::new(), 0);
        while let Some(batch) = next_rows(&mut rows).await.expect("no batch fails") {
            for number in batch.column(0).as_primitive::<Int64Type>().values() {
                assert_eq!(*number, next, "rows stay in order");
                next += 1;
            }
            sizes.push(batch.num_rows());
        }
        sizes
    }

    #[tokio::test]
    async fn small_batches_are_joined() {
        let small = |texts: &DataType| (0..100).map(|at| batch(at * 100, 100, texts)).collect();
        assert_eq!(sizes(small(&DataType::Utf8)).await, [8200, 1800]);
        assert_eq!(sizes(small(&texts_type())).await, [100; 100]);
        let large = vec![batch(0, 9000, &DataType::Utf8), batch(9000, 5, &DataType::Utf8)];
        assert_eq!(sizes(large).await, [9000, 5]);
    }
}
