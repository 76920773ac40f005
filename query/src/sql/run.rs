//! Runs a statement: one arm a kind.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use datafusion::{
    common::ScalarValue,
    physical_plan::stream::RecordBatchStreamAdapter,
    sql::sqlparser::ast::{DataType as SqlType, Expr, Ident, ObjectType, Statement as Ast},
};

use super::{
    alter_table,
    change::{self, Change},
    copy_from, copy_to, create_table, drop, insert,
    parse::{Statement, fold},
    query,
    set::Set,
    table_options, transaction,
};
use crate::{Error, Prepared, Reply, Session, Settings, settings::Scope};

/// Runs a statement.
pub(crate) async fn run(
    session: &mut Session,
    prepared: &Prepared,
    values: Vec<ScalarValue>,
) -> Result<Reply, Error> {
    match prepared.statement.as_ref() {
        Statement::Empty => Ok(Reply::Empty),
        Statement::Set(set) => run_set(session, set),
        Statement::Reset(name) => {
            match name {
                Some(name) => session.settings.reset(name)?,
                None => session.settings.reset_all(),
            }
            Ok(Reply::Done("RESET".into()))
        }
        Statement::Show(name) => show(session, name.as_deref()),
        Statement::Discard => {
            session.settings.reset_all();
            session.named.clear();
            Ok(Reply::Done("DISCARD ALL".into()))
        }
        Statement::Copy(copy) if copy.from => copy_from::begin(session, copy, &prepared.sql).await,
        Statement::Copy(copy) => copy_to::run(session, copy).await,
        Statement::TableOptions(options) => table_options::run(session, options).await,
        Statement::Sql(ast) => run_sql(session, ast, prepared, values).await,
    }
}

async fn run_sql(
    session: &mut Session,
    ast: &Ast,
    prepared: &Prepared,
    values: Vec<ScalarValue>,
) -> Result<Reply, Error> {
    let done = |tag: &str| Ok(Reply::Done(tag.to_owned()));
    match ast {
        Ast::Query(_) | Ast::Explain { .. } => query::run(session, ast, values).await,
        Ast::Insert(statement) => {
            Box::pin(insert::run(session, statement, &prepared.sql, values)).await
        }
        Ast::Delete(delete) => {
            let change = Change::of_delete(delete)?;
            Box::pin(change::run(session, &change, &prepared.sql, values)).await
        }
        Ast::Update(update) => {
            let change = Change::of_update(update)?;
            Box::pin(change::run(session, &change, &prepared.sql, values)).await
        }
        Ast::StartTransaction { modes, .. } => transaction::begin(session, modes),
        Ast::Commit { chain: false, .. } => transaction::commit(session).await,
        Ast::Rollback { chain: false, savepoint: None } => Ok(transaction::rollback(session).await),
        Ast::Rollback { savepoint: Some(name), .. } => {
            transaction::rollback_to(session, name).await
        }
        Ast::Savepoint { name } => transaction::savepoint(session, name),
        Ast::ReleaseSavepoint { name } => transaction::release(session, name),
        Ast::AlterTable(alter) => alter_table::run(session, alter).await,
        Ast::CreateTable(create) => create_table::run(session, create).await,
        Ast::Drop { object_type: ObjectType::Table, if_exists, names, .. } => {
            drop::drop_tables(session, names, *if_exists).await
        }
        Ast::Truncate(truncate) => drop::truncate(session, truncate).await,
        Ast::CreateIndex(index) => create_table::create_index(session, index).await,
        Ast::CreateExtension(extension) => create_extension(session, &extension.name),
        Ast::Call(function) => super::call::procedure(session, function, &values).await,
        Ast::Analyze(_) => done("ANALYZE"),
        Ast::Vacuum(_) => done("VACUUM"),
        Ast::UNLISTEN { .. } => done("UNLISTEN"),
        Ast::Close { .. } => done("CLOSE CURSOR"),
        Ast::Prepare { name, data_types, statement } => {
            prepare_named(session, name, data_types, &statement.to_string()).await
        }
        Ast::Execute { name: Some(name), parameters, .. } => {
            let name = super::parse::table_name(name)?.1;
            execute_named(session, &name, parameters, values).await
        }
        Ast::Deallocate { name, .. } => deallocate(session, &fold(name)),
        other => Err(unsupported(other)),
    }
}

/// The extensions that scripts for TimescaleDB create are there from the start.
fn create_extension(session: &mut Session, name: &Ident) -> Result<Reply, Error> {
    let name = fold(name);
    if !["timescaledb", "plpgsql"].contains(&name.as_str()) {
        return Err(Error::of("0A000", format_args!("extension \"{name}\" is not available")));
    }
    let message = format_args!("extension \"{name}\" already exists, skipping");
    session.notice("NOTICE", "42710", message);
    Ok(Reply::Done("CREATE EXTENSION".into()))
}

async fn prepare_named(
    session: &mut Session,
    name: &Ident,
    types: &[SqlType],
    text: &str,
) -> Result<Reply, Error> {
    let hints: Vec<_> = types.iter().map(super::types::column_type).map(Result::ok).collect();
    let inner = Box::pin(session.prepare(text, &hints)).await?;
    let name = fold(name);
    if session.named.contains_key(&name) {
        let message = format_args!("prepared statement \"{name}\" already exists");
        return Err(Error::of("42P05", message));
    }
    session.named.insert(name, Arc::new(inner));
    Ok(Reply::Done("PREPARE".into()))
}

fn deallocate(session: &mut Session, name: &str) -> Result<Reply, Error> {
    if name == "all" {
        session.named.clear();
        return Ok(Reply::Done("DEALLOCATE ALL".into()));
    }
    match session.named.remove(name) {
        Some(_) => Ok(Reply::Done("DEALLOCATE".into())),
        None => Err(no_prepared(name)),
    }
}

/// A prepared statement of SQL that is not there.
pub(crate) fn no_prepared(name: &str) -> Error {
    Error::of("26000", format_args!("prepared statement \"{name}\" does not exist"))
}

async fn execute_named(
    session: &mut Session,
    name: &str,
    parameters: &[Expr],
    outer: Vec<ScalarValue>,
) -> Result<Reply, Error> {
    let inner = session.named.get(name).map(Arc::clone).ok_or_else(|| no_prepared(name))?;
    if inner.parameters.len() != parameters.len() {
        let (wanted, found) = (inner.parameters.len(), parameters.len());
        return Err(Error::of(
            "42601",
            format_args!("wrong number of parameters for prepared statement \"{name}\""),
        )
        .with_detail(format_args!("Expected {wanted} parameters but got {found}.")));
    }
    let mut values = Vec::with_capacity(parameters.len());
    if !parameters.is_empty() {
        let frame = session.frame().await?;
        let zone = session.settings.zone();
        let computed = query::evaluate(&frame.ctx, parameters, &outer).await?;
        for (value, wanted) in computed.into_iter().zip(&inner.parameters) {
            values.push(query::assigned(&value, *wanted, zone)?);
        }
    }
    Box::pin(run(session, &inner, values)).await
}

fn run_set(session: &mut Session, set: &Set) -> Result<Reply, Error> {
    match set {
        Set::Nothing => {}
        Set::Snapshot(name) => super::snapshot::import(session, name)?,
        Set::Values(values, scope) => {
            for (name, value) in values {
                check_isolation(session, name, value)?;
                session.settings.set(name, value, *scope)?;
            }
        }
        Set::Value(name, value, scope) => match value {
            Some(value) if name.eq_ignore_ascii_case("transaction_isolation") => {
                check_isolation(session, name, value)?;
                session.settings.set(name, value, Scope::Local)?;
            }
            Some(value) => session.settings.set(name, value, *scope)?,
            None => session.settings.reset(name)?,
        },
    }
    Ok(Reply::Done("SET".into()))
}

/// What a transaction reads by is settled by its first statement that reads.
fn check_isolation(session: &Session, name: &str, value: &str) -> Result<(), Error> {
    let kept = session.settings.get(name).is_some_and(|old| old.eq_ignore_ascii_case(value));
    if session.block.settled_view().is_some()
        && name.eq_ignore_ascii_case("transaction_isolation")
        && !kept
    {
        let message = "SET TRANSACTION ISOLATION LEVEL must be called before any query";
        return Err(Error::of("25001", message));
    }
    Ok(())
}

/// Columns of SHOW.
pub(crate) fn show_schema(name: Option<&str>) -> SchemaRef {
    let text = |name: String| Field::new(name, DataType::Utf8, true);
    let fields = match name {
        Some(name) => vec![text(Settings::shown_name(name))],
        None => ["name", "setting", "description"].map(|name| text(name.to_owned())).to_vec(),
    };
    Arc::new(Schema::new(fields))
}

fn show(session: &Session, name: Option<&str>) -> Result<Reply, Error> {
    let columns: Vec<ArrayRef> = match name {
        Some(name) => vec![Arc::new(StringArray::from(vec![session.settings.show(name)?]))],
        None => {
            let (names, values): (Vec<_>, Vec<_>) = session.settings.all().unzip();
            let empty = vec![""; names.len()];
            vec![
                Arc::new(StringArray::from(names)),
                Arc::new(StringArray::from(values)),
                Arc::new(StringArray::from(empty)),
            ]
        }
    };
    let batch = RecordBatch::try_new(show_schema(name), columns)?;
    Ok(rows(batch, "SHOW", false))
}

/// A reply of one batch.
pub(crate) fn rows(batch: RecordBatch, tag: &'static str, counted: bool) -> Reply {
    let schema = batch.schema();
    let batches = futures::stream::iter([Ok(batch)]);
    let stream = Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&schema), batches));
    Reply::Rows { schema, stream, tag, counted }
}

/// What the parser reads and nothing here does, by the words it begins with.
pub(crate) fn unsupported(statement: &Ast) -> Error {
    match statement {
        Ast::Commit { .. } | Ast::Rollback { .. } => Error::unsupported("AND CHAIN"),
        Ast::Comment { .. } => Error::unsupported("COMMENT ON"),
        other => {
            let text = other.to_string();
            let words: Vec<&str> = text
                .split_whitespace()
                .take_while(|word| {
                    word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
                })
                .take(3)
                .collect();
            Error::unsupported(words.join(" "))
        }
    }
}
