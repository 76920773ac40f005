//! Tables by their names, and the defaults of their columns.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{Expr, ObjectName};
use hypertide_meta::{
    Image,
    catalog::{DEFAULT_SCHEMA, Table},
};
use hypertide_proto::schema::Column;

use super::{insert::expression, parse};
use crate::Error;

/// Finds a table that a statement names; a name without a schema is looked for along the search path.
pub(crate) fn find(image: &Image, name: &ObjectName, path: &str) -> Result<Arc<Table>, Error> {
    let (schema, table) = parse::table_name(name)?;
    find_named(image, schema.as_deref(), &table, path)
}

/// Finds a table by the parts of its name.
pub(crate) fn find_named(
    image: &Image,
    schema: Option<&str>,
    table: &str,
    path: &str,
) -> Result<Arc<Table>, Error> {
    let shown = schema.map_or_else(|| table.to_owned(), |schema| format!("{schema}.{table}"));
    let named = |schema: &str| image.catalog.table_named(schema, table);
    let found = match schema {
        Some(schema) => named(schema),
        None => path
            .split(',')
            .map(|part| part.trim().trim_matches('"'))
            .find_map(named)
            .or_else(|| named(DEFAULT_SCHEMA)),
    };
    found.cloned().map(Arc::new).ok_or_else(|| Error::no_relation(&shown))
}

/// The schema that a new table without one in its name lives in.
pub(crate) fn new_schema(schema: Option<String>) -> String {
    schema.unwrap_or_else(|| DEFAULT_SCHEMA.to_owned())
}

/// The default of a column as an expression.
pub(crate) fn default_of(column: &Column) -> Result<Option<Expr>, Error> {
    column.default.as_deref().map(expression).transpose()
}
