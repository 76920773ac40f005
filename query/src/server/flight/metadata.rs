//! What there is: catalogs, schemas, tables, and facts about the server.

use std::{collections::BTreeSet, sync::LazyLock};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use arrow_flight::sql::{
    CommandGetCatalogs, CommandGetDbSchemas, CommandGetSqlInfo, CommandGetTableTypes,
    CommandGetTables, SqlInfo, SqlNullOrdering, SqlSupportedCaseSensitivity,
    SqlSupportedTransaction,
    metadata::{SqlInfoData, SqlInfoDataBuilder},
};
use hypertide_meta::Image;

use crate::{Error, SqlState, server::DATABASE};

/// Kinds of tables.
const TABLE: &str = "TABLE";
const VIEW: &str = "VIEW";
/// Schemas that are always there.
const SCHEMAS: [&str; 4] =
    ["information_schema", "pg_catalog", "public", "timescaledb_information"];

/// Facts about the server.
static SQL_INFO: LazyLock<SqlInfoData> = LazyLock::new(|| {
    let mut facts = SqlInfoDataBuilder::new();
    facts.append(SqlInfo::FlightSqlServerName, "Hypertide");
    facts.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    facts.append(SqlInfo::FlightSqlServerArrowVersion, arrow::ARROW_VERSION);
    facts.append(SqlInfo::FlightSqlServerReadOnly, false);
    facts.append(SqlInfo::FlightSqlServerSql, true);
    facts.append(SqlInfo::FlightSqlServerSubstrait, false);
    facts.append(SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::None as i32);
    facts.append(SqlInfo::FlightSqlServerCancel, false);
    facts.append(SqlInfo::FlightSqlServerBulkIngestion, true);
    facts.append(SqlInfo::FlightSqlServerIngestTransactionsSupported, false);
    facts.append(SqlInfo::SqlDdlCatalog, false);
    facts.append(SqlInfo::SqlDdlTable, true);
    facts.append(
        SqlInfo::SqlIdentifierCase,
        SqlSupportedCaseSensitivity::SqlCaseSensitivityLowercase as i32,
    );
    facts.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    facts.append(
        SqlInfo::SqlQuotedIdentifierCase,
        SqlSupportedCaseSensitivity::SqlCaseSensitivityCaseInsensitive as i32,
    );
    facts.append(SqlInfo::SqlAllTablesAreSelectable, true);
    facts.append(SqlInfo::SqlNullOrdering, SqlNullOrdering::SqlNullsSortedHigh as i32);
    facts.build().expect("the facts have the types that their union has")
});

fn metadata(error: impl std::fmt::Display) -> Error {
    Error::new(SqlState("XX000"), format!("metadata: {error}"))
}

/// The schema of an answer about the server.
pub(super) fn sql_info_schema() -> SchemaRef {
    SqlInfoDataBuilder::schema().clone().into()
}

/// Facts about the server; all when none is named.
pub(super) fn sql_info(query: CommandGetSqlInfo) -> Result<RecordBatch, Error> {
    query.into_builder(&SQL_INFO).build().map_err(metadata)
}

/// The only catalog.
pub(super) fn catalogs(query: CommandGetCatalogs) -> Result<RecordBatch, Error> {
    let mut catalogs = query.into_builder();
    catalogs.append(DATABASE);
    catalogs.build().map_err(metadata)
}

/// The schemas that match.
pub(super) fn schemas(query: CommandGetDbSchemas, image: &Image) -> Result<RecordBatch, Error> {
    let tables = image.catalog.tables().map(|table| table.schema.as_str());
    let names: BTreeSet<&str> = SCHEMAS.into_iter().chain(tables).collect();
    let mut schemas = query.into_builder();
    for name in names {
        schemas.append(DATABASE, name);
    }
    schemas.build().map_err(metadata)
}

/// The tables that match.
pub(super) fn tables(query: CommandGetTables, image: &Image) -> Result<RecordBatch, Error> {
    let mut tables = query.into_builder();
    for table in image.catalog.tables() {
        let schema = table.columns.to_arrow();
        let (place, name) = (&table.schema, &table.name);
        tables.append(DATABASE, place, name, TABLE, &schema).map_err(metadata)?;
    }
    tables.build().map_err(metadata)
}

/// The kinds of tables.
pub(super) fn table_types(query: CommandGetTableTypes) -> Result<RecordBatch, Error> {
    let mut types = query.into_builder();
    types.append(TABLE);
    types.append(VIEW);
    types.build().map_err(metadata)
}

/// An answer about primary keys, of which there are none.
pub(super) fn primary_keys() -> RecordBatch {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let fields = vec![
        text("catalog_name"),
        text("db_schema_name"),
        Field::new("table_name", DataType::Utf8, false),
        Field::new("column_name", DataType::Utf8, false),
        Field::new("key_sequence", DataType::Int32, false),
        text("key_name"),
    ];
    RecordBatch::new_empty(SchemaRef::new(Schema::new(fields)))
}

/// An answer about foreign keys, of which there are none.
pub(super) fn foreign_keys() -> RecordBatch {
    let text = |name: &str, nullable| Field::new(name, DataType::Utf8, nullable);
    let mut fields = Vec::new();
    for side in ["pk", "fk"] {
        fields.push(text(&format!("{side}_catalog_name"), true));
        fields.push(text(&format!("{side}_db_schema_name"), true));
        fields.push(text(&format!("{side}_table_name"), false));
        fields.push(text(&format!("{side}_column_name"), false));
    }
    fields.push(Field::new("key_sequence", DataType::Int32, false));
    fields.push(text("fk_key_name", true));
    fields.push(text("pk_key_name", true));
    fields.push(Field::new("update_rule", DataType::UInt8, false));
    fields.push(Field::new("delete_rule", DataType::UInt8, false));
    RecordBatch::new_empty(SchemaRef::new(Schema::new(fields)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_found_by_number() {
        let all = sql_info(CommandGetSqlInfo { info: Vec::new() }).unwrap();
        assert!(all.num_rows() > 10);
        let one = CommandGetSqlInfo { info: vec![SqlInfo::FlightSqlServerName as u32] };
        assert_eq!(sql_info(one).unwrap().num_rows(), 1);
    }

    #[test]
    fn there_is_one_catalog_and_two_kinds_of_tables() {
        assert_eq!(catalogs(CommandGetCatalogs {}).unwrap().num_rows(), 1);
        assert_eq!(table_types(CommandGetTableTypes {}).unwrap().num_rows(), 2);
        assert_eq!(primary_keys().num_columns(), 6);
        assert_eq!(foreign_keys().num_columns(), 13);
    }
}
