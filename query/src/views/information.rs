//! `information_schema`: tables, columns, constraints, schemata.

use std::collections::BTreeSet;

use hypertide_meta::{
    Image,
    catalog::{DEFAULT_SCHEMA, Table},
};
use hypertide_proto::schema::{Column, ColumnType, Key};

use super::rows::{
    Kind::{Int, Text},
    Rows, Value,
};
use crate::session::DATABASE;

/// `information_schema.schemata`.
pub(super) fn schemata(image: &Image) -> Rows {
    let mut rows =
        Rows::new(&[("catalog_name", Text), ("schema_name", Text), ("schema_owner", Text)]);
    let mut names: BTreeSet<&str> =
        image.catalog.tables().map(|table| table.schema.as_str()).collect();
    names.extend([DEFAULT_SCHEMA, "pg_catalog"]);
    names.extend(super::SCHEMAS.iter().map(|(name, _)| *name));
    for name in names {
        rows.push([DATABASE.into(), name.into(), crate::server::USER.into()]);
    }
    rows
}

/// `information_schema.tables`.
pub(super) fn tables(image: &Image) -> Rows {
    let mut rows = Rows::new(&[
        ("table_catalog", Text),
        ("table_schema", Text),
        ("table_name", Text),
        ("table_type", Text),
        ("is_insertable_into", Text),
        ("is_typed", Text),
    ]);
    for table in image.catalog.tables() {
        rows.push([
            DATABASE.into(),
            table.schema.as_str().into(),
            table.name.as_str().into(),
            "BASE TABLE".into(),
            "YES".into(),
            "NO".into(),
        ]);
    }
    rows
}

/// `information_schema.columns`.
pub(super) fn columns(image: &Image) -> Rows {
    let mut rows = Rows::new(&[
        ("table_catalog", Text),
        ("table_schema", Text),
        ("table_name", Text),
        ("column_name", Text),
        ("ordinal_position", Int),
        ("column_default", Text),
        ("is_nullable", Text),
        ("data_type", Text),
        ("character_maximum_length", Int),
        ("numeric_precision", Int),
        ("numeric_scale", Int),
        ("datetime_precision", Int),
        ("udt_name", Text),
    ]);
    for table in image.catalog.tables() {
        for (at, column) in table.columns.columns.iter().enumerate() {
            let (length, precision, scale, fraction) = sizes(column);
            let shown = column.column_type.to_string();
            let shown = shown.split('(').next().unwrap_or_default();
            rows.push([
                DATABASE.into(),
                table.schema.as_str().into(),
                table.name.as_str().into(),
                column.name.as_str().into(),
                (at + 1).into(),
                column.default.clone().into(),
                if column.nullable { "YES" } else { "NO" }.into(),
                shown.into(),
                length.into(),
                precision.into(),
                scale.into(),
                fraction.into(),
                short_name(column.column_type).into(),
            ]);
        }
    }
    rows
}

/// `information_schema.table_constraints`. A NOT NULL is told of in `columns` alone.
pub(super) fn table_constraints(image: &Image) -> Rows {
    let mut rows = Rows::new(&[
        ("constraint_catalog", Text),
        ("constraint_schema", Text),
        ("constraint_name", Text),
        ("table_catalog", Text),
        ("table_schema", Text),
        ("table_name", Text),
        ("constraint_type", Text),
        ("is_deferrable", Text),
        ("initially_deferred", Text),
        ("enforced", Text),
        ("nulls_distinct", Text),
    ]);
    for (table, key) in keys(image) {
        let [first, second, third] = constraint(table, key);
        rows.push([
            first,
            second,
            third,
            DATABASE.into(),
            table.schema.as_str().into(),
            table.name.as_str().into(),
            if key.primary { "PRIMARY KEY" } else { "UNIQUE" }.into(),
            "NO".into(),
            "NO".into(),
            "YES".into(),
            if key.primary { Value::Null } else { "YES".into() },
        ]);
    }
    rows
}

/// `information_schema.key_column_usage`.
pub(super) fn key_column_usage(image: &Image) -> Rows {
    let mut rows = Rows::new(&[
        ("constraint_catalog", Text),
        ("constraint_schema", Text),
        ("constraint_name", Text),
        ("table_catalog", Text),
        ("table_schema", Text),
        ("table_name", Text),
        ("column_name", Text),
        ("ordinal_position", Int),
        ("position_in_unique_constraint", Int),
    ]);
    for (table, key) in keys(image) {
        let positions = table.columns.key_positions(key);
        let columns = positions.iter().filter_map(|at| table.columns.columns.get(*at));
        for (at, column) in columns.enumerate() {
            let [first, second, third] = constraint(table, key);
            rows.push([
                first,
                second,
                third,
                DATABASE.into(),
                table.schema.as_str().into(),
                table.name.as_str().into(),
                column.name.as_str().into(),
                (at + 1).into(),
                Value::Null,
            ]);
        }
    }
    rows
}

fn keys(image: &Image) -> impl Iterator<Item = (&Table, &Key)> {
    image.catalog.tables().flat_map(|table| table.columns.keys.iter().map(move |key| (table, key)))
}

/// Catalog, schema and name of a constraint.
fn constraint(table: &Table, key: &Key) -> [Value; 3] {
    [DATABASE.into(), table.schema.as_str().into(), key.name.as_str().into()]
}

type Size = Option<Value>;

/// Length, precision, scale, digits of a second.
fn sizes(column: &Column) -> (Size, Size, Size, Size) {
    let some = |value: i64| Some(Value::Int(value));
    match column.column_type {
        ColumnType::SmallInt => (None, some(16), some(0), None),
        ColumnType::Integer => (None, some(32), some(0), None),
        ColumnType::BigInt => (None, some(64), some(0), None),
        ColumnType::Real => (None, some(24), None, None),
        ColumnType::Double => (None, some(53), None, None),
        ColumnType::Numeric { precision, scale } => {
            (None, some(precision.into()), some(scale.into()), None)
        }
        ColumnType::Varchar(length) => (some(length.into()), None, None, None),
        ColumnType::Timestamp | ColumnType::TimestampTz => (None, None, None, some(6)),
        ColumnType::Date => (None, None, None, some(0)),
        _ => (None, None, None, None),
    }
}

fn short_name(column_type: ColumnType) -> &'static str {
    match column_type {
        ColumnType::SmallInt => "int2",
        ColumnType::Integer => "int4",
        ColumnType::BigInt => "int8",
        ColumnType::Real => "float4",
        ColumnType::Double => "float8",
        ColumnType::Numeric { .. } => "numeric",
        ColumnType::Boolean => "bool",
        ColumnType::Text => "text",
        ColumnType::Varchar(_) => "varchar",
        ColumnType::Timestamp => "timestamp",
        ColumnType::TimestampTz => "timestamptz",
        ColumnType::Date => "date",
        ColumnType::Jsonb => "jsonb",
        ColumnType::Uuid => "uuid",
        ColumnType::Bytea => "bytea",
    }
}
