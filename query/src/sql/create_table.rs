//! CREATE TABLE and CREATE INDEX.

use datafusion::sql::sqlparser::ast::{
    ColumnDef, ColumnOption, ColumnOptionDef, CreateIndex, CreateTable, CreateTableOptions, Expr,
    Ident, IndexColumn, NullsDistinctOption, SqlOption, TableConstraint,
};
use hypertide_meta::catalog::{Command, Outcome, Table, TableChange};
use hypertide_proto::schema::{Column, Key, SchemaError, TableSchema};

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
    let keys = keys_of(create, &name)?;
    check_key_columns(&keys, &columns)?;
    for column in &mut columns {
        let mut primary = keys.iter().filter(|key| key.primary);
        column.nullable &= !primary.any(|key| key.columns.contains(&column.name));
    }
    let columns = TableSchema { columns, keys };
    columns.check().map_err(|error| {
        let state = match error {
            SchemaError::DuplicateColumn(_) => "42701",
            SchemaError::TooManyColumns => "54011",
            SchemaError::SecondPrimaryKey => "42P16",
            SchemaError::DuplicateKey(_) => "42710",
            SchemaError::BadKey(_) => "42703",
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

/// The keys that a table is made with.
fn keys_of(create: &CreateTable, table: &str) -> Result<Vec<Key>, Error> {
    let mut keys = Vec::new();
    for definition in &create.columns {
        for ColumnOptionDef { name, option } in &definition.options {
            let primary = match option {
                ColumnOption::PrimaryKey(_) => true,
                ColumnOption::Unique(_) => false,
                _ => continue,
            };
            let columns = vec![fold(&definition.name)];
            keys.push(named_key(table, &keys, (name.as_ref(), primary), columns));
        }
    }
    for constraint in &create.constraints {
        keys.push(key_of(table, &keys, constraint)?);
    }
    Ok(keys)
}

/// Refuses keys of columns that are not there, or that stand twice in one.
fn check_key_columns(keys: &[Key], columns: &[Column]) -> Result<(), Error> {
    for Key { columns: named, primary, .. } in keys {
        for (at, name) in named.iter().enumerate() {
            if columns.iter().all(|column| column.name != *name) {
                let message = format_args!("column \"{name}\" named in key does not exist");
                return Err(Error::of("42703", message));
            }
            if named.iter().take(at).any(|before| before == name) {
                let kind = if *primary { "primary key" } else { "unique" };
                let message = format_args!("column \"{name}\" appears twice in {kind} constraint");
                return Err(Error::of("42701", message));
            }
        }
    }
    Ok(())
}

/// The key that a table constraint says.
pub(super) fn key_of(
    table: &str,
    known: &[Key],
    constraint: &TableConstraint,
) -> Result<Key, Error> {
    let (name, columns, primary) = match constraint {
        TableConstraint::PrimaryKey(key) => (key.name.as_ref(), &key.columns, true),
        TableConstraint::Unique(key) => {
            if matches!(key.nulls_distinct, NullsDistinctOption::NotDistinct) {
                return Err(Error::unsupported("UNIQUE NULLS NOT DISTINCT"));
            }
            (key.name.as_ref(), &key.columns, false)
        }
        other => return Err(constraint_error(&other.to_string())),
    };
    Ok(named_key(table, known, (name, primary), plain_columns(columns)?))
}

/// The columns of a list that has nothing but columns.
pub(super) fn plain_columns(columns: &[IndexColumn]) -> Result<Vec<String>, Error> {
    let column = |column: &IndexColumn| match &column.column.expr {
        Expr::Identifier(name) => Ok(fold(name)),
        other => Err(Error::unsupported(format_args!("a key of the expression {other}"))),
    };
    columns.iter().map(column).collect()
}

/// A key with the name that it was given, or that PostgreSQL would give it.
fn named_key(
    table: &str,
    known: &[Key],
    (name, primary): (Option<&Ident>, bool),
    columns: Vec<String>,
) -> Key {
    let made = || {
        let made = match primary {
            true => format!("{table}_pkey"),
            false => format!("{table}_{}_key", columns.join("_")),
        };
        let free = |name: &String| known.iter().all(|key| key.name != *name);
        let numbered = (1..).map(|number| format!("{made}{number}"));
        std::iter::once(made.clone()).chain(numbered).find(free).unwrap_or(made.clone())
    };
    let name = name.map_or_else(made, fold);
    Key { name, columns, primary }
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
            // Keys are those of the table.
            ColumnOption::PrimaryKey(_) | ColumnOption::Unique(_) => {}
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
    if index.unique {
        return create_unique_index(session, index, &found).await;
    }
    session.notice(
        "NOTICE",
        "00000",
        "CREATE INDEX has no effect: segments are sorted and carry the bounds of every column",
    );
    Ok(Reply::Done("CREATE INDEX".into()))
}

/// CREATE UNIQUE INDEX: a key.
async fn create_unique_index(
    session: &mut Session,
    index: &CreateIndex,
    table: &Table,
) -> Result<Reply, Error> {
    if index.predicate.is_some() {
        return Err(Error::unsupported("a partial unique index"));
    }
    if index.nulls_distinct == Some(false) {
        return Err(Error::unsupported("UNIQUE NULLS NOT DISTINCT"));
    }
    let columns = plain_columns(&index.columns)?;
    let name = match &index.name {
        Some(name) => table_name(name)?.1,
        None => format!("{}_{}_idx", table.name, columns.join("_")),
    };
    if table.columns.keys.iter().any(|key| key.name == name) {
        let message = format!("relation \"{name}\" already exists");
        if !index.if_not_exists {
            return Err(Error::of("42P07", message));
        }
        session.notice("NOTICE", "42P07", format_args!("{message}, skipping"));
    } else {
        let change = TableChange::AddKey { key: Key { name, columns, primary: false } };
        Box::pin(super::alter_table::change(session, table, vec![change])).await?;
    }
    Ok(Reply::Done("CREATE INDEX".into()))
}
