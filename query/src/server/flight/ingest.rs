//! Bulk ingest: record batches appended to a table as one statement, which the client may ask to be made.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::sql::{CommandStatementIngest, TableExistsOption, TableNotExistOption};
use datafusion::execution::SendableRecordBatchStream;
use hypertide_proto::schema::ColumnType;
use tonic::metadata::MetadataMap;

use super::{input::plain_type, statement};
use crate::{
    Engine, Error, Session, SqlState,
    sql::definition::{qualified, quoted},
};

/// Schema of tables whose schema is not named.
const DEFAULT_SCHEMA: &str = "public";

/// Runs an ingest, and gives the number of rows.
pub(super) async fn run(
    engine: &Arc<Engine>,
    headers: &MetadataMap,
    command: CommandStatementIngest,
    rows: SendableRecordBatchStream,
) -> Result<i64, Error> {
    check(&command)?;
    let session = statement::session(engine, headers).await?;
    // A call that is dropped with its client must not drop a commit on its way; before, its stream of rows ends with an
    // error ([`super::upload`]) and so does the statement.
    let running = tokio::spawn(append(session, command, rows));
    let count = running.await.map_err(|error| {
        Error::new(SqlState("XX000"), format!("an ingest ended unexpectedly: {error}"))
    })??;
    Ok(i64::try_from(count).unwrap_or(i64::MAX))
}

fn check(command: &CommandStatementIngest) -> Result<(), Error> {
    if command.temporary {
        return Err(Error::new(SqlState("0A000"), "temporary tables are not supported"));
    }
    if command.transaction_id.as_ref().is_some_and(|id| !id.is_empty()) {
        let message = "transactions over several calls are not supported";
        return Err(Error::new(SqlState("0A000"), message));
    }
    match command.catalog.as_deref() {
        None | Some("" | crate::server::DATABASE) => Ok(()),
        Some(other) => {
            Err(Error::new(SqlState("3D000"), format!("database \"{other}\" does not exist")))
        }
    }
}

async fn append(
    mut session: Session,
    command: CommandStatementIngest,
    rows: SendableRecordBatchStream,
) -> Result<u64, Error> {
    let schema = command.schema.as_deref().filter(|name| !name.is_empty());
    let schema = schema.unwrap_or(DEFAULT_SCHEMA);
    make_table(&mut session, schema, &command, &rows.schema()).await?;
    let count = session.ingest(schema, &command.table, rows).await?;
    session.close().await;
    Ok(count)
}

/// Makes the table or refuses, as the command says for a table that is there and one that is not.
async fn make_table(
    session: &mut Session,
    schema: &str,
    command: &CommandStatementIngest,
    columns: &SchemaRef,
) -> Result<(), Error> {
    let options = command.table_definition_options.unwrap_or_default();
    let image = statement::image(session.engine()).await?;
    let exists = image.catalog.table_named(schema, &command.table).is_some();
    if exists {
        match options.if_exists() {
            // The client did not say: an ingest appends.
            TableExistsOption::Append | TableExistsOption::Unspecified => return Ok(()),
            TableExistsOption::Fail => {
                let message = format!("relation \"{}\" already exists", command.table);
                return Err(Error::new(SqlState("42P07"), message));
            }
            TableExistsOption::Replace => {
                let name = qualified(schema, &command.table);
                run_statement(session, &format!("DROP TABLE {name}")).await?;
            }
        }
    } else if options.if_not_exist() != TableNotExistOption::Create {
        let message = format!("relation \"{}\" does not exist", command.table);
        return Err(Error::new(SqlState("42P01"), message));
    }
    let sql = create_table(schema, &command.table, columns)?;
    run_statement(session, &sql).await
}

async fn run_statement(session: &mut Session, sql: &str) -> Result<(), Error> {
    let statement = session.prepare(sql, &[]).await?;
    session.execute(&statement, Vec::new()).await?;
    Ok(())
}

/// The statement that makes a table for batches of these columns.
fn create_table(schema: &str, table: &str, columns: &Schema) -> Result<String, Error> {
    let columns = columns.fields().iter().map(|field| {
        let plain = field.as_ref().clone().with_data_type(plain_type(field.data_type()).clone());
        let column = ColumnType::of_field(&plain).ok_or_else(|| {
            let (name, data_type) = (field.name(), field.data_type());
            let message = format!(
                "column \"{name}\" has the Arrow type {data_type}, which no SQL type holds"
            );
            Error::new(SqlState("0A000"), message)
        })?;
        let null = if field.is_nullable() { "" } else { " NOT NULL" };
        Ok(format!("{} {column}{null}", quoted(field.name())))
    });
    let columns = columns.collect::<Result<Vec<_>, Error>>()?.join(", ");
    Ok(format!("CREATE TABLE {} ({columns})", qualified(schema, table)))
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, TimeUnit};

    use super::*;

    #[test]
    fn tables_are_made_from_arrow_columns() {
        let time = DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()));
        let place = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        let columns = Schema::new(vec![
            Field::new("time", time, false),
            Field::new("a\"b", place, true),
            Field::new("x", DataType::Float64, true),
        ]);
        assert_eq!(
            create_table("public", "t", &columns).unwrap(),
            "CREATE TABLE \"public\".\"t\" (\"time\" timestamp with time zone NOT NULL, \
             \"a\"\"b\" text, \"x\" double precision)"
        );
        let list = DataType::new_list(DataType::Int32, true);
        let columns = Schema::new(vec![Field::new("l", list, true)]);
        assert_eq!(create_table("public", "t", &columns).unwrap_err().state, SqlState("0A000"));
    }
}
