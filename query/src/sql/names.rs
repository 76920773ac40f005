//! Names of result columns as PostgreSQL gives them: a computed column without an alias is called after its outermost
//! function or cast, or `?column?`, where DataFusion shows the whole expression.
//!
//! Columns are renamed at the very end, so that no alias takes part in planning.

use std::sync::Arc;

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    datatypes::{Field, Schema, SchemaRef},
};
use datafusion::{
    execution::SendableRecordBatchStream,
    physical_plan::stream::RecordBatchStreamAdapter,
    sql::sqlparser::ast::{
        DataType as SqlType, Expr, ObjectName, Query, SelectItem, SetExpr, Statement as Ast, Value,
    },
};
use futures::StreamExt as _;

use super::{parse::fold, types::column_type};
use hypertide_proto::schema::ColumnType;

/// What a column without a name of its own is called.
const UNNAMED: &str = "?column?";

/// How the columns of a result are to be called.
#[derive(Debug)]
pub(crate) struct Names(Vec<Name>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    /// As it is.
    Kept,
    /// Like this.
    Given(String),
    /// Any number of columns, as they are.
    Wildcard,
}

impl Names {
    /// The names of a statement's columns.
    pub(crate) fn of(ast: &Ast) -> Self {
        match ast {
            Ast::Query(query) => Self(of_query(query)),
            _ => Self(Vec::new()),
        }
    }

    /// The names of the columns of a list.
    pub(crate) fn of_items(items: &[SelectItem]) -> Self {
        Self(items.iter().map(of_item).collect())
    }

    /// The schema with these names.
    pub(crate) fn rename(&self, schema: &SchemaRef) -> SchemaRef {
        let is_wildcard = |name: &&Name| **name == Name::Wildcard;
        let (wildcards, total) = (self.0.iter().filter(is_wildcard).count(), schema.fields().len());
        let single = self.0.len() - wildcards;
        // With two wildcards nobody can say which column is whose.
        if wildcards > 1 || single > total || (wildcards == 0 && single != total) {
            return Arc::clone(schema);
        }
        let names = self.0.iter().flat_map(|name| match name {
            Name::Wildcard => vec![Name::Kept; total - single],
            name => vec![name.clone()],
        });
        let fields = schema.fields().iter().zip(names).map(|(field, name)| match name {
            Name::Given(name) => Arc::new(Field::clone(field).with_name(name)),
            _ => Arc::clone(field),
        });
        Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone()))
    }

    /// The rows with these names.
    pub(crate) fn rename_stream(
        &self,
        rows: SendableRecordBatchStream,
    ) -> SendableRecordBatchStream {
        let schema = self.rename(&rows.schema());
        if schema == rows.schema() {
            return rows;
        }
        let named = Arc::clone(&schema);
        let rows = rows.map(move |batch| {
            let batch = batch?;
            let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
            let schema = with_types(&named, &batch);
            Ok(RecordBatch::try_new_with_options(schema, batch.columns().to_vec(), &options)?)
        });
        Box::pin(RecordBatchStreamAdapter::new(schema, rows))
    }
}

/// The schema, with nullability as the batch has it: plans say it more strictly than rows keep it.
fn with_types(schema: &SchemaRef, batch: &RecordBatch) -> SchemaRef {
    let own = batch.schema();
    let same =
        schema.fields().iter().zip(own.fields()).all(|(a, b)| a.data_type() == b.data_type());
    if same {
        return Arc::clone(schema);
    }
    let fields = schema
        .fields()
        .iter()
        .zip(own.fields())
        .map(|(named, own)| Field::clone(own).with_name(named.name()));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn of_query(query: &Query) -> Vec<Name> {
    let mut body = query.body.as_ref();
    loop {
        match body {
            SetExpr::Select(select) => return select.projection.iter().map(of_item).collect(),
            SetExpr::Query(query) => return of_query(query),
            SetExpr::SetOperation { left, .. } => body = left,
            _ => return Vec::new(),
        }
    }
}

fn of_item(item: &SelectItem) -> Name {
    match item {
        SelectItem::UnnamedExpr(expr) => {
            of_expr(expr).unwrap_or_else(|| Name::Given(UNNAMED.to_owned()))
        }
        SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..) => Name::Wildcard,
        _ => Name::Kept,
    }
}

/// The name that an expression gives its column; `None` when it has none to give.
fn of_expr(expr: &Expr) -> Option<Name> {
    let given = |name: &str| Some(Name::Given(name.to_owned()));
    match expr {
        Expr::Identifier(_) | Expr::CompoundIdentifier(_) => Some(Name::Kept),
        Expr::Function(function) => given(&last(&function.name)),
        Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => of_expr(inner),
        Expr::Cast { expr: inner, data_type, .. } => match of_expr(inner) {
            // A column keeps its name through a cast, but DataFusion may have changed it.
            Some(Name::Kept) => column_of(inner).map(Name::Given),
            Some(Name::Given(name)) if !matches!(inner.as_ref(), Expr::Value(_)) => {
                Some(Name::Given(name))
            }
            _ => Some(Name::Given(type_name(data_type))),
        },
        Expr::TypedString(typed) => Some(Name::Given(type_name(&typed.data_type))),
        Expr::Case { else_result: Some(inner), .. } if column_of(inner).is_some() => {
            column_of(inner).map(Name::Given)
        }
        Expr::Case { .. } => given("case"),
        Expr::Extract { .. } => given("extract"),
        Expr::Position { .. } => given("position"),
        Expr::Substring { .. } => given("substring"),
        Expr::Trim { .. } => given("btrim"),
        Expr::Overlay { .. } => given("overlay"),
        Expr::Ceil { .. } => given("ceil"),
        Expr::Floor { .. } => given("floor"),
        Expr::Exists { .. } => given("exists"),
        Expr::Array(_) => given("array"),
        Expr::Interval(_) => given("interval"),
        Expr::AtTimeZone { .. } => given("timezone"),
        Expr::Subquery(query) => match of_query(query).into_iter().next() {
            Some(Name::Given(name)) => Some(Name::Given(name)),
            _ => match query.body.as_ref() {
                SetExpr::Select(select) => select.projection.first().and_then(|item| match item {
                    SelectItem::ExprWithAlias { alias, .. } => Some(Name::Given(fold(alias))),
                    SelectItem::UnnamedExpr(inner) => column_of(inner).map(Name::Given),
                    _ => None,
                }),
                _ => None,
            },
        },
        Expr::Value(value) if matches!(value.value, Value::Boolean(_)) => given("bool"),
        _ => None,
    }
}

fn column_of(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Identifier(name) => Some(fold(name)),
        Expr::CompoundIdentifier(names) => names.last().map(fold),
        Expr::Nested(inner) => column_of(inner),
        _ => None,
    }
}

fn last(name: &ObjectName) -> String {
    let part = name.0.last().and_then(|part| part.as_ident());
    part.map_or_else(|| UNNAMED.to_owned(), fold)
}

/// A type by the name of PostgreSQL's catalog.
fn type_name(data_type: &SqlType) -> String {
    let name = match column_type(data_type) {
        Ok(ColumnType::SmallInt) => "int2",
        Ok(ColumnType::Integer) => "int4",
        Ok(ColumnType::BigInt) => "int8",
        Ok(ColumnType::Real) => "float4",
        Ok(ColumnType::Double) => "float8",
        Ok(ColumnType::Numeric { .. }) => "numeric",
        Ok(ColumnType::Boolean) => "bool",
        Ok(ColumnType::Text) => "text",
        Ok(ColumnType::Varchar(_)) => "varchar",
        Ok(ColumnType::Timestamp) => "timestamp",
        Ok(ColumnType::TimestampTz) => "timestamptz",
        Ok(ColumnType::Date) => "date",
        Ok(ColumnType::Jsonb) => "jsonb",
        Ok(ColumnType::Uuid) => "uuid",
        Ok(ColumnType::Bytea) => "bytea",
        Err(_) => return data_type.to_string().to_ascii_lowercase(),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::DataType;

    use super::*;
    use crate::sql::parse::{Statement, parse};

    #[test]
    fn columns_are_called_as_in_postgresql() {
        for (sql, names) in [
            (
                "SELECT count(*), 1, 'x', a + 1, true",
                &["count", "?column?", "?column?", "?column?", "bool"][..],
            ),
            (
                "SELECT a::int, '1'::int, DATE '2020-01-01', (SELECT max(b) FROM t)",
                &["a", "int4", "date", "max"],
            ),
            (
                "SELECT CASE WHEN a THEN 1 END, EXTRACT(year FROM a), a AS b",
                &["case", "extract", "k"],
            ),
            ("SELECT x.*, count(*) FROM x", &["k", "k", "count"]),
            ("SELECT pg_catalog.lower(a) UNION SELECT b", &["lower"]),
            ("SELECT x.*, y.*, 1 FROM x, y", &["k", "k", "k"]),
        ] {
            let Ok(Statement::Sql(ast)) = parse(sql) else { panic!("{sql}") };
            let fields: Vec<Field> =
                names.iter().map(|_| Field::new("k", DataType::Int32, true)).collect();
            let renamed = Names::of(&ast).rename(&Arc::new(Schema::new(fields)));
            let found: Vec<&str> =
                renamed.fields().iter().map(|field| field.name().as_str()).collect();
            assert_eq!(found, names, "{sql}");
        }
    }
}
