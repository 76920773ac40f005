//! CREATE TABLE and CREATE INDEX.

use datafusion::sql::sqlparser::ast::{
    ColumnDef, ColumnOption, CreateIndex, CreateTable, CreateTableOptions, SqlOption,
};
use hypertide_meta::catalog::{Command, Outcome};
use hypertide_proto::schema::{Column, TableSchema};

use super::{
    parse::{fold, table_name},
    query, table, types,
};
use crate::{Error, Reply, Session, ingest::assign::assign, session::Frame};

/// Runs CREATE TABLE.
pub(crate) async fn run(session: &mut Session, create: &CreateTable) -> Result<Reply, Error> {
    check(create)?;
    let (schema, name) = table_name(&create.name)?;
    let schema = table::new_schema(schema);
    if ["pg_catalog", "information_schema", "timescaledb_information"].contains(&schema.as_str()) {
        return Err(Error::of("42501", format_args!("permission denied for schema {schema}")));
    }
    let mut columns = Vec::with_capacity(create.columns.len());
    for definition in &create.columns {
        columns.push(column(definition)?);
    }
    let columns = TableSchema { columns };
    columns.check().map_err(|error| {
        let state = match error {
            hypertide_proto::schema::SchemaError::DuplicateColumn(_) => "42701",
            hypertide_proto::schema::SchemaError::TooManyColumns => "54011",
            _ => "42602",
        };
        Error::of(state, error)
    })?;
    let frame = session.frame().await?;
    for column in columns.columns.iter().filter(|column| column.default.is_some()) {
        check_default(session, &frame, column).await?;
    }
    let command = Command::CreateTable {
        schema,
        name: name.clone(),
        owner: session.user.clone(),
        columns,
        if_not_exists: create.if_not_exists,
    };
    if let Outcome::Table(_, false) = session.propose(command).await? {
        session.notice(
            "NOTICE",
            "42P07",
            format_args!("relation \"{name}\" already exists, skipping"),
        );
    }
    Ok(Reply::Done("CREATE TABLE".into()))
}

/// Names what PostgreSQL has and this does not.
fn check(create: &CreateTable) -> Result<(), Error> {
    let refused = [
        (create.or_replace, "CREATE OR REPLACE TABLE"),
        (create.temporary, "CREATE TEMPORARY TABLE"),
        (create.external, "CREATE EXTERNAL TABLE"),
        (create.query.is_some(), "CREATE TABLE AS"),
        (create.like.is_some(), "CREATE TABLE LIKE"),
        (create.inherits.is_some(), "INHERITS"),
        (
            create.partition_by.is_some() || create.partition_of.is_some(),
            "PARTITION BY; use create_hypertable, which",
        ),
        (create.on_commit.is_some(), "ON COMMIT"),
    ];
    if let Some((_, what)) = refused.iter().find(|(found, _)| *found) {
        return Err(Error::unsupported(what));
    }
    if let Some(constraint) = create.constraints.first() {
        return Err(constraint_error(&constraint.to_string()));
    }
    match &create.table_options {
        CreateTableOptions::None => Ok(()),
        CreateTableOptions::With(options)
        | CreateTableOptions::Options(options)
        | CreateTableOptions::Plain(options)
        | CreateTableOptions::TableProperties(options) => match options.first() {
            None => Ok(()),
            Some(option) => {
                let name = match option {
                    SqlOption::KeyValue { key, .. } | SqlOption::Ident(key) => key.value.clone(),
                    other => other.to_string(),
                };
                Err(Error::of("22023", format_args!("unrecognized parameter \"{name}\""))
                    .with_hint("Use create_distributed_hypertable after CREATE TABLE."))
            }
        },
    }
}

fn constraint_error(text: &str) -> Error {
    let text = text.to_ascii_uppercase();
    let known = ["PRIMARY KEY", "UNIQUE", "FOREIGN KEY", "REFERENCES", "CHECK", "EXCLUDE"];
    let what =
        known.iter().find(|word| text.contains(*word)).copied().unwrap_or("a table constraint");
    Error::of("0A000", format_args!("{what} is not supported yet"))
}

pub(super) fn column(definition: &ColumnDef) -> Result<Column, Error> {
    let mut column =
        Column::new(&fold(&definition.name), types::column_type(&definition.data_type)?);
    for option in &definition.options {
        match &option.option {
            ColumnOption::Null => {}
            ColumnOption::NotNull => column.nullable = false,
            ColumnOption::Default(expr) => column.default = Some(expr.to_string()),
            ColumnOption::Generated { .. } | ColumnOption::Identity(_) => {
                return Err(Error::of("0A000", "GENERATED is not supported yet"));
            }
            ColumnOption::Collation(name) => {
                let name = name.to_string();
                if !["\"C\"", "\"POSIX\"", "\"default\""].contains(&name.as_str()) {
                    return Err(Error::unsupported(format_args!("collation {name}")));
                }
            }
            other => return Err(constraint_error(&other.to_string())),
        }
    }
    Ok(column)
}

/// A default must be an expression that can be computed and assigned.
pub(super) async fn check_default(
    session: &Session,
    frame: &Frame,
    column: &Column,
) -> Result<(), Error> {
    let Some(default) = table::default_of(column)? else { return Ok(()) };
    let values = query::evaluate(&frame.ctx, &[default], &[]).await.map_err(|error| match error
        .state
        .0
    {
        "42703" => Error::of("0A000", "cannot use column reference in DEFAULT expression"),
        _ => error,
    })?;
    for value in values {
        assign(&value.to_array()?, column, session.settings.zone())?;
    }
    Ok(())
}

/// CREATE INDEX: every column has zone maps already, so that there is nothing to make.
pub(crate) async fn create_index(
    session: &mut Session,
    index: &CreateIndex,
) -> Result<Reply, Error> {
    if index.unique {
        return Err(Error::of("0A000", "UNIQUE is not supported yet"));
    }
    let snapshot = session.snapshot().await?;
    let path = session.settings.get("search_path").unwrap_or_default();
    let found = table::find(&snapshot.image, &index.table_name, path)?;
    for column in &index.columns {
        if let datafusion::sql::sqlparser::ast::Expr::Identifier(name) = &column.column.expr
            && found.columns.column(&fold(name)).is_none()
        {
            return Err(Error::of(
                "42703",
                format_args!("column \"{}\" does not exist", fold(name)),
            ));
        }
    }
    session.notice(
        "NOTICE",
        "00000",
        "CREATE INDEX has no effect: segments are sorted and carry the bounds of every column",
    );
    Ok(Reply::Done("CREATE INDEX".into()))
}
