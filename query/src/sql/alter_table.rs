//! ALTER TABLE: columns and names. Options are in [`super::table_options`].

use arrow::{compute::cast, datatypes::DataType};
use datafusion::{
    common::ScalarValue,
    sql::sqlparser::ast::{
        AlterColumnOperation, AlterTable, AlterTableOperation, ColumnDef, ColumnOption,
        ColumnOptionDef, Expr, Function, Ident, RenameTableNameKind, visit_expressions,
    },
};
use hypertide_meta::catalog::{Command, Table, TableChange};
use hypertide_proto::schema::{Column, Key};

use super::{
    chunks::quoted,
    create_table::{check_default, column, key_of},
    parse::{fold, table_name},
    query, table,
    text::write_text,
};
use crate::{Error, Reply, Session, ingest::assign::assign, session::Frame};

/// Functions that give another value each time, which rows that are there would have to keep apart.
const VOLATILE: [&str; 6] =
    ["random", "gen_random_uuid", "uuid", "uuid_generate_v4", "clock_timestamp", "nextval"];

/// Runs ALTER TABLE: all of it, or nothing.
pub(crate) async fn run(session: &mut Session, alter: &AlterTable) -> Result<Reply, Error> {
    let done = || Ok(Reply::Done("ALTER TABLE".into()));
    let frame = session.frame().await?;
    let path = session.settings.get("search_path").unwrap_or_default();
    let table = match table::find(&frame.snapshot.image, &alter.name, path) {
        Err(error) if alter.if_exists && error.state.0 == "42P01" => {
            session.notice("NOTICE", "00000", format_args!("{}, skipping", error.message));
            return done();
        }
        found => found?,
    };
    let mut changes = Vec::with_capacity(alter.operations.len());
    for operation in &alter.operations {
        changes.extend(changes_of(session, (&frame, &table), operation).await?);
    }
    Box::pin(change(session, &table, changes)).await?;
    done()
}

/// Makes changes, unless rows that are there break a rule that they bring.
pub(super) async fn change(
    session: &mut Session,
    table: &Table,
    changes: Vec<TableChange>,
) -> Result<(), Error> {
    let forbidden = newly_forbidden(table, &changes);
    let added = changes.iter().filter_map(|change| match change {
        TableChange::AddKey { key } => Some(key.clone()),
        _ => None,
    });
    let added: Vec<Key> = added.collect();
    check_rows(session, table, (&forbidden, &added)).await?;
    session.propose(Command::AlterTable { table: table.id, changes }).await?;
    // Rows may have come between the look and the change, after which none can.
    let Err(error) = check_rows(session, table, (&forbidden, &added)).await else { return Ok(()) };
    let drop = |key: &Key| TableChange::DropKey { name: key.name.clone(), if_exists: true };
    let mut changes: Vec<TableChange> = added.iter().map(drop).collect();
    let allow =
        |column: &String| TableChange::SetNullable { column: column.clone(), nullable: true };
    changes.extend(forbidden.iter().map(allow));
    session.propose(Command::AlterTable { table: table.id, changes }).await?;
    Err(error)
}

/// Refuses columns that hold NULL, and keys that are not unique.
async fn check_rows(
    session: &mut Session,
    table: &Table,
    (forbidden, added): (&[String], &[Key]),
) -> Result<(), Error> {
    for column in forbidden {
        check_nulls(session, table, column).await?;
    }
    for key in added {
        check_unique(session, table, key).await?;
    }
    Ok(())
}

/// What an operation changes.
async fn changes_of(
    session: &mut Session,
    (frame, table): (&Frame, &Table),
    operation: &AlterTableOperation,
) -> Result<Vec<TableChange>, Error> {
    Ok(match operation {
        AlterTableOperation::AddColumn {
            if_not_exists, column_def, column_position: None, ..
        } => {
            let column = added(session, (frame, table), column_def).await?;
            let exists = table.columns.column(&column.name).is_some();
            if exists && *if_not_exists {
                let (name, table) = (&column.name, &table.name);
                let message =
                    format!("column \"{name}\" of relation \"{table}\" already exists, skipping");
                session.notice("NOTICE", "42701", message);
            }
            vec![TableChange::AddColumn { column, if_not_exists: *if_not_exists }]
        }
        AlterTableOperation::DropColumn { column_names, if_exists, .. } => {
            for name in column_names.iter().map(fold).filter(|_| *if_exists) {
                if table.columns.column(&name).is_none() {
                    let table = &table.name;
                    let message = format!(
                        "column \"{name}\" of relation \"{table}\" does not exist, skipping"
                    );
                    session.notice("NOTICE", "00000", message);
                }
            }
            let drop = |name| TableChange::DropColumn { column: fold(name), if_exists: *if_exists };
            column_names.iter().map(drop).collect()
        }
        AlterTableOperation::RenameColumn { old_column_name, new_column_name } => {
            vec![TableChange::RenameColumn {
                column: fold(old_column_name),
                to: fold(new_column_name),
            }]
        }
        AlterTableOperation::RenameTable {
            table_name: RenameTableNameKind::To(name) | RenameTableNameKind::As(name),
        } => vec![TableChange::Rename { to: table_name(name)?.1 }],
        AlterTableOperation::AlterColumn { column_name, op } => {
            vec![column_change(session, (frame, table), column_name, op).await?]
        }
        AlterTableOperation::AddConstraint { constraint, .. } => {
            let key = key_of(&table.name, &table.columns.keys, constraint)?;
            if table.columns.keys.iter().any(|known| known.name == key.name) {
                let message = format!("relation \"{}\" already exists", key.name);
                return Err(Error::of("42P07", message));
            }
            vec![TableChange::AddKey { key }]
        }
        AlterTableOperation::DropConstraint { if_exists, name, .. } => {
            vec![TableChange::DropKey { name: fold(name), if_exists: *if_exists }]
        }
        other => return Err(unsupported(&other.to_string())),
    })
}

async fn column_change(
    session: &Session,
    (frame, table): (&Frame, &Table),
    name: &Ident,
    operation: &AlterColumnOperation,
) -> Result<TableChange, Error> {
    let column = fold(name);
    Ok(match operation {
        AlterColumnOperation::SetNotNull => TableChange::SetNullable { column, nullable: false },
        AlterColumnOperation::DropNotNull => TableChange::SetNullable { column, nullable: true },
        AlterColumnOperation::DropDefault => TableChange::SetDefault { column, default: None },
        AlterColumnOperation::SetDefault { value } => {
            let known = table.columns.column(&column);
            let known = known.ok_or_else(|| Error::no_column(&column, &table.name))?;
            let default = Some(value.to_string());
            check_default(session, frame, &Column { default: default.clone(), ..known.clone() })
                .await?;
            TableChange::SetDefault { column, default }
        }
        AlterColumnOperation::SetDataType { .. }
            if table.hypertable().is_some_and(|made| made.compression.is_some()) =>
        {
            let message = "operation not supported on hypertables that have compression enabled";
            return Err(Error::of("0A000", message));
        }
        other => return Err(unsupported(&format!("ALTER COLUMN {other}"))),
    })
}

/// What has no counterpart here, by the words it begins with.
fn unsupported(operation: &str) -> Error {
    let upper = |word: &&str| word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
    let words: Vec<&str> = operation.split_whitespace().take_while(upper).take(3).collect();
    let message = format_args!("operation not supported on distributed hypertable");
    Error::of("0A000", message)
        .with_detail(format_args!("ALTER TABLE … {} is not there.", words.join(" ")))
}

/// A column to be added, with what rows that are there have in it.
async fn added(
    session: &Session,
    (frame, table): (&Frame, &Table),
    definition: &ColumnDef,
) -> Result<Column, Error> {
    for ColumnOptionDef { option, .. } in &definition.options {
        if matches!(option, ColumnOption::PrimaryKey(_) | ColumnOption::Unique(_)) {
            return Err(Error::unsupported("a key in ADD COLUMN")
                .with_hint("Add the column first, and then a constraint."));
        }
    }
    let mut column = column(definition)?;
    let Some(default) = table::default_of(&column)? else { return Ok(column) };
    check_default(session, frame, &column).await?;
    if let Some(name) = volatile(&default) {
        let (column, table) = (&column.name, &table.name);
        let message = format_args!(
            "column \"{column}\" cannot be added to \"{table}\" with a default of {name}(), which \
             differs from row to row"
        );
        return Err(Error::of("0A000", message).with_hint(
            "Add the column without a default, then set the default for rows to come.",
        ));
    }
    let values = query::evaluate(&frame.ctx, &[default], &[]).await?;
    for value in values {
        let value = assign(&value.to_array()?, &column, session.settings.zone())?;
        column.older = as_text(&ScalarValue::try_from_array(&value, 0)?, &column)?;
    }
    Ok(column)
}

/// A value as the text that chunk stores make it from again.
fn as_text(value: &ScalarValue, column: &Column) -> Result<Option<String>, Error> {
    if value.is_null() {
        return Ok(None);
    }
    let kept = |value: &ScalarValue| -> Option<String> {
        let text = cast(&value.to_array().ok()?, &DataType::Utf8).ok()?;
        let again = cast(&text, &column.column_type.to_arrow()).ok()?;
        let again = ScalarValue::try_from_array(&again, 0).ok()?;
        let text = ScalarValue::try_from_array(&text, 0).ok()?;
        (again == *value).then(|| text.try_as_str().flatten().map(str::to_owned))?
    };
    kept(value).map(Some).ok_or_else(|| {
        let message = format_args!(
            "the default of column \"{}\" cannot be kept for the rows that are there",
            column.name
        );
        Error::of("0A000", message)
    })
}

fn volatile(default: &Expr) -> Option<String> {
    let found = visit_expressions(default, |expr| {
        use std::ops::ControlFlow::{Break, Continue};
        let Expr::Function(Function { name, .. }) = expr else { return Continue(()) };
        let name = table_name(name).map_or_else(|_| String::new(), |(_, name)| name);
        if VOLATILE.contains(&name.as_str()) { Break(name) } else { Continue(()) }
    });
    found.break_value()
}

/// Columns of rows that are there in which NULL is forbidden from now on.
fn newly_forbidden(table: &Table, changes: &[TableChange]) -> Vec<String> {
    let forbidden = changes.iter().flat_map(|change| match change {
        TableChange::SetNullable { column, nullable: false } => std::slice::from_ref(column),
        TableChange::AddKey { key } if key.primary => key.columns.as_slice(),
        _ => &[],
    });
    let nullable = |name: &&String| table.columns.column(name).is_some_and(|known| known.nullable);
    forbidden.filter(nullable).cloned().collect()
}

/// Refuses a key of which two rows have the same values.
async fn check_unique(session: &mut Session, table: &Table, key: &Key) -> Result<(), Error> {
    let columns: Vec<String> = key.columns.iter().map(|column| quoted(column)).collect();
    let there: Vec<String> = columns.iter().map(|column| format!("{column} IS NOT NULL")).collect();
    let snapshot = session.fresh_snapshot().await?;
    let frame = session.frame_of(snapshot)?;
    let Some(now) = frame.snapshot.image.catalog.table(table.id) else {
        return Err(Error::no_relation(&table.name));
    };
    for column in &key.columns {
        if now.columns.column(column).is_none() {
            let message = format_args!("column \"{column}\" named in key does not exist");
            return Err(Error::of("42703", message));
        }
    }
    let (schema, name) = (quoted(&now.schema), quoted(&now.name));
    let (columns, there) = (columns.join(", "), there.join(" AND "));
    let sql = format!(
        "SELECT {columns} FROM {schema}.{name} WHERE {there} GROUP BY {columns} \
         HAVING count(*) > 1 LIMIT 1"
    );
    let plan = query::plan(&frame.ctx, query::one_statement(&sql)?).await?;
    let found = frame.ctx.execute_logical_plan(plan).await?.collect().await?;
    let Some(row) = found.iter().find(|batch| batch.num_rows() > 0) else { return Ok(()) };
    let style = session.settings.text_style();
    let values = row.columns().iter().map(|array| {
        let mut out = Vec::new();
        write_text(array, 0, style, &mut out);
        String::from_utf8_lossy(&out).into_owned()
    });
    let (names, values) = (key.columns.join(", "), values.collect::<Vec<_>>().join(", "));
    let message = format_args!("could not create unique index \"{}\"", key.name);
    Err(Error::of("23505", message)
        .with_detail(format_args!("Key ({names})=({values}) is duplicated.")))
}

/// Refuses a column that holds NULL.
async fn check_nulls(session: &mut Session, table: &Table, column: &str) -> Result<(), Error> {
    let image = session.snapshot().await?.image;
    // By its id: the statement may rename it.
    let Some(now) = image.catalog.table(table.id) else {
        return Err(Error::no_relation(&table.name));
    };
    let (schema, name) = (quoted(&now.schema), quoted(&now.name));
    let sql = format!("SELECT 1 FROM {schema}.{name} WHERE {} IS NULL LIMIT 1", quoted(column));
    let ast = query::one_statement(&sql)?;
    let frame = session.frame().await?;
    let plan = query::plan(&frame.ctx, ast).await?;
    let found = frame.ctx.execute_logical_plan(plan).await?.collect().await?;
    if found.iter().all(|batch| batch.num_rows() == 0) {
        return Ok(());
    }
    let table = &now.name;
    let message = format_args!("column \"{column}\" of relation \"{table}\" contains null values");
    Err(Error::of("23502", message))
}
