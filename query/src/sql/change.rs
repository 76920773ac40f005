//! UPDATE and DELETE: statements that look at rows, at their snapshot, and change those.
//!
//! The rows are read by a query like any other, as far as what is computed from them. Tombstones then name them to the
//! chunks that they lie in, by the values that the statement looked at, and the rows that an UPDATE makes of them are
//! written like those of an INSERT: to whatever chunks they belong in now. One record commits both. See `PROTOCOL.md`
//! section 3.7.
//!
//! Of two transactions that change the same rows the first that commits wins. The statement of the other one runs again
//! at a new snapshot, a few times, if it is the first of its transaction that writes; else it fails with 40001.

mod exact;
pub(crate) mod matched;
#[cfg(test)]
mod tests;
pub(crate) mod tombstones;

use std::{sync::Arc, time::Duration};

use arrow::{
    array::{ArrayRef, RecordBatch},
    compute::concat_batches,
};
use datafusion::{
    common::ScalarValue,
    sql::sqlparser::ast::{
        Assignment, AssignmentTarget, Delete, Expr, FromTable, Ident, SelectItem, TableFactor,
        TableWithJoins, Update,
    },
};
use hypertide_meta::catalog::Table;
use hypertide_proto::{
    ids::TableId,
    schema::{Column, ColumnType},
};

use self::matched::Reading;
use super::{
    describe::{Description, columns_of, parameters, types_of},
    insert::{content_hash, returning, returning_plan},
    keys,
    names::Names,
    query,
    table::{default_of, find},
};
use crate::{
    Error, Reply, Session,
    ingest::{
        assign::assign,
        cells::{Cell, cell},
        check::check_rows,
        send::{WriteTag, Writer},
    },
    session::Frame,
    turns::Turn,
};

/// How often a statement that lost against another runs again.
const RETRIES: u32 = 5;
/// Longest pause before the first of those; the next ones are longer.
const RETRY_PAUSE_MS: u64 = 10;

/// A statement that changes rows.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// The table as the statement names it.
    factor: TableFactor,
    /// What an UPDATE sets; `None` for a DELETE.
    sets: Option<Vec<(Ident, Expr)>>,
    selection: Option<Expr>,
    returning: Option<Vec<SelectItem>>,
}

impl Change {
    /// What a DELETE says.
    pub(crate) fn of_delete(delete: &Delete) -> Result<Self, Error> {
        let Delete { tables, from, using, selection, returning, order_by, limit, .. } = delete;
        if using.is_some() || !tables.is_empty() {
            return Err(Error::unsupported("DELETE … USING"));
        }
        if !order_by.is_empty() || limit.is_some() {
            return Err(Error::of("42601", "DELETE has no ORDER BY and no LIMIT"));
        }
        let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = from;
        let [from] = from.as_slice() else {
            return Err(Error::unsupported("DELETE from several tables"));
        };
        let (selection, returning) = (selection.clone(), returning.clone());
        Ok(Self { factor: factor(from, "DELETE")?, sets: None, selection, returning })
    }

    /// What an UPDATE says.
    pub(crate) fn of_update(update: &Update) -> Result<Self, Error> {
        let Update { table, assignments, from, selection, returning, order_by, limit, .. } = update;
        if from.is_some() {
            return Err(Error::unsupported("UPDATE … FROM"));
        }
        if !order_by.is_empty() || limit.is_some() {
            return Err(Error::of("42601", "UPDATE has no ORDER BY and no LIMIT"));
        }
        let sets = Some(pairs(assignments)?);
        let (selection, returning) = (selection.clone(), returning.clone());
        Ok(Self { factor: factor(table, "UPDATE")?, sets, selection, returning })
    }

    fn name(&self) -> &'static str {
        if self.sets.is_some() { "UPDATE" } else { "DELETE" }
    }

    fn table(&self, frame: &Frame, path: &str) -> Result<Arc<Table>, Error> {
        match &self.factor {
            TableFactor::Table { name, .. } => find(&frame.snapshot.image, name, path),
            _ => Err(Error::unsupported(format_args!("{} of a query", self.name()))),
        }
    }
}

/// The one table that a statement names.
fn factor(from: &TableWithJoins, what: &str) -> Result<TableFactor, Error> {
    match (&from.relation, from.joins.is_empty()) {
        (factor @ TableFactor::Table { args: None, .. }, true) => Ok(factor.clone()),
        (TableFactor::Table { .. }, false) => {
            Err(Error::unsupported(format_args!("{what} of a join")))
        }
        _ => Err(Error::unsupported(format_args!("{what} of anything but a table"))),
    }
}

/// Each column that is set, with what it is set to.
pub(crate) fn pairs(assignments: &[Assignment]) -> Result<Vec<(Ident, Expr)>, Error> {
    let column = |name: &datafusion::sql::sqlparser::ast::ObjectName| {
        let part = name.0.last().and_then(|part| part.as_ident()).cloned();
        part.filter(|_| name.0.len() == 1)
            .ok_or_else(|| Error::of("42601", format_args!("cannot set {name}")))
    };
    let mut sets = Vec::with_capacity(assignments.len());
    for Assignment { target, value } in assignments {
        match (target, value) {
            (AssignmentTarget::ColumnName(name), value) => {
                sets.push((column(name)?, value.clone()));
            }
            (AssignmentTarget::Tuple(names), Expr::Tuple(values)) => {
                if names.len() != values.len() {
                    let message = "number of columns does not match number of values";
                    return Err(Error::of("42601", message));
                }
                for (name, value) in names.iter().zip(values) {
                    sets.push((column(name)?, value.clone()));
                }
            }
            (AssignmentTarget::Tuple(_), _) => {
                return Err(Error::unsupported("a list of columns set to a query"));
            }
        }
    }
    Ok(sets)
}

/// What an UPDATE sets: positions of columns, and expressions of their new values.
pub(crate) fn positions(
    table: &Table,
    sets: &[(Ident, Expr)],
) -> Result<Vec<(usize, Expr)>, Error> {
    let mut found: Vec<(usize, Expr)> = Vec::with_capacity(sets.len());
    for (ident, expr) in sets {
        let name = super::parse::fold(ident);
        let position = table.columns.position(&name);
        let position = position.ok_or_else(|| Error::no_column(&name, &table.name))?;
        if found.iter().any(|(known, _)| *known == position) {
            let message = format_args!("multiple assignments to same column \"{name}\"");
            return Err(Error::of("42601", message));
        }
        let Some(column) = table.columns.columns.get(position) else { continue };
        let expr = match cell(expr, column.column_type) {
            Cell::Default => match default_of(column)? {
                Some(default) => default,
                None => null(),
            },
            _ => expr.clone(),
        };
        found.push((position, expr));
    }
    Ok(found)
}

fn null() -> Expr {
    Expr::Value(datafusion::sql::sqlparser::ast::Value::Null.with_empty_span())
}

/// Runs an UPDATE or a DELETE.
pub(crate) async fn run(
    session: &mut Session,
    change: &Change,
    sql: &str,
    values: Vec<ScalarValue>,
) -> Result<Reply, Error> {
    let write_id = session.take_write_id()?;
    let tag: Option<WriteTag> = write_id.map(|id| (id, content_hash(sql, &values)));
    let table = {
        let snapshot = session.fresh_snapshot().await?;
        let frame = session.frame_of(snapshot)?;
        let path = session.settings.get("search_path").unwrap_or_default();
        change.table(&frame, path)?.id
    };
    let mut attempts = Attempts::begin(session, table).await;
    loop {
        match Box::pin(once(session, change, &values, tag)).await {
            Err(error) if attempts.again(session, &error).await => {}
            result => return result,
        }
    }
}

/// How often a statement has run that may lose against another, which changes the same.
pub(crate) struct Attempts {
    table: TableId,
    /// Whether nothing else was written or read in its transaction that has to stay: only then it may run again.
    first: bool,
    retries: u32,
    turn: Option<Turn>,
}

impl Attempts {
    /// Before the first run.
    pub(crate) async fn begin(session: &Session, table: TableId) -> Self {
        let first = session.block.writer().is_none() && !session.repeats_reads();
        let turn = if first { session.engine.turns.join(table).await } else { None };
        Self { table, first, retries: 0, turn }
    }

    /// After an error: whether to run again, once it is the statement's turn.
    pub(crate) async fn again(&mut self, session: &mut Session, error: &Error) -> bool {
        let lost = matches!(error.state.0, "40001" | "72000");
        if !lost || !self.first || self.retries == RETRIES {
            return false;
        }
        // What it wrote is not to be seen by the next run.
        drop(session.block.take_writer());
        self.retries += 1;
        if self.turn.is_none() {
            self.turn = Some(session.engine.turns.wait(self.table).await);
        }
        let random = uuid::Uuid::new_v4().as_u64_pair().0;
        let pause = random % (RETRY_PAUSE_MS << self.retries);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        true
    }
}

async fn once(
    session: &mut Session,
    change: &Change,
    values: &[ScalarValue],
    tag: Option<WriteTag>,
) -> Result<Reply, Error> {
    let mut writer = session.take_writer()?;
    let deadline = session.deadline();
    let mut snapshot = session.fresh_snapshot().await?;
    snapshot.own = Some(writer.txn());
    let frame = session.frame_of(snapshot)?;
    let path = session.settings.get("search_path").unwrap_or_default();
    let table = change.table(&frame, path)?;
    let reading = Reading::of(change, &table)?;
    let (count, rows) = match &change.sets {
        None => delete(&frame, (&table, &reading), values, (&mut writer, deadline)).await?,
        Some(sets) => {
            let sets = positions(&table, sets)?;
            let old = reading.rows(&frame, values).await?.within_limit(change.name())?;
            let new = changed(&frame, &table, &sets, &old.batches)?;
            let mut tombstones = tombstones::taking(&frame, &table, &old).await?;
            if keys::sets_key(&table, &sets) {
                let new = concat_batches(&table.columns.to_arrow(), &new)?;
                check_rows(&table, &new)?;
                let none = RecordBatch::new_empty(new.schema());
                let gone = whole_rows(&table, &old.batches)?;
                keys::check_free(&frame, &table, (&gone, &none), &new).await?;
                let rows = (&new, deadline);
                tombstones.extend(keys::free_places(&frame, &table, &mut writer, rows).await?);
            }
            writer.reserve(&table, tombstones, deadline).await?;
            for rows in &new {
                writer.write(&table, rows.clone(), deadline).await?;
            }
            (old.count(), new)
        }
    };
    let count = session.end_write(writer, count, tag).await?;
    let name = change.name();
    match &change.returning {
        Some(items) => returning(&frame, &table, (items, name), rows).await,
        None => Ok(Reply::Done(format!("{name} {count}"))),
    }
}

/// Deletes; gives the number of rows, and the rows themselves where the statement returns them.
async fn delete(
    frame: &Frame,
    (table, reading): (&Arc<Table>, &Reading<'_>),
    values: &[ScalarValue],
    (writer, deadline): (&mut Writer, std::time::Instant),
) -> Result<(u64, Vec<RecordBatch>), Error> {
    if !reading.everything() {
        let old = reading.rows(frame, values).await?;
        if old.complete {
            let (count, rows) = (old.count(), old.batches.clone());
            let tombstones = tombstones::taking(frame, table, &old).await?;
            writer.reserve(table, tombstones, deadline).await?;
            return Ok((count, rows));
        }
    }
    // More than can be named one by one: the condition itself says which.
    let Some(exact) = exact::find(frame, reading, values).await? else {
        return Err(matched::too_many("DELETE"));
    };
    let count = reading.count(frame, values).await?;
    writer.reserve(table, exact.tombstones(frame), deadline).await?;
    Ok((count, Vec::new()))
}

/// Rows without what was computed of them.
fn whole_rows(table: &Table, rows: &[RecordBatch]) -> Result<Vec<RecordBatch>, Error> {
    let columns: Vec<usize> = (0..table.columns.columns.len()).collect();
    Ok(rows.iter().map(|batch| batch.project(&columns)).collect::<Result<_, _>>()?)
}

/// The rows as an UPDATE leaves them. Of those read, the values that are set follow the columns of the table.
fn changed(
    frame: &Frame,
    table: &Table,
    sets: &[(usize, Expr)],
    old: &[RecordBatch],
) -> Result<Vec<RecordBatch>, Error> {
    let all = &table.columns.columns;
    let new = old.iter().map(|batch| {
        let mut columns: Vec<ArrayRef> = batch.columns().iter().take(all.len()).cloned().collect();
        for ((position, _), values) in sets.iter().zip(batch.columns().iter().skip(all.len())) {
            let (Some(column), Some(place)) = (all.get(*position), columns.get_mut(*position))
            else {
                continue;
            };
            *place = assign(values, column, frame.zone)?;
        }
        Ok(RecordBatch::try_new(table.columns.to_arrow(), columns)?)
    });
    new.collect()
}

/// Parameters and RETURNING columns of an UPDATE or a DELETE.
pub(crate) async fn describe(
    frame: &Frame,
    change: &Change,
    hints: &[Option<ColumnType>],
) -> Result<Description, Error> {
    let table = change.table(frame, "")?;
    let reading = Reading::of(change, &table)?;
    let plan = query::plan(&frame.ctx, reading.query()?).await?;
    let mut types = types_of(&plan)?;
    // A parameter that a column is set to is of the column's type.
    for (position, expr) in positions(&table, change.sets.as_deref().unwrap_or_default())? {
        let column: Option<&Column> = table.columns.columns.get(position);
        if let Some(column) = column
            && let Cell::Parameter(number) = cell(&expr, column.column_type)
        {
            types.insert(number, Some(column.column_type));
        }
    }
    let columns = match &change.returning {
        Some(items) => {
            let plan = returning_plan(frame, &table, items, Vec::new()).await?;
            Some(Names::of_items(items).rename(&columns_of(&plan)))
        }
        None => None,
    };
    Ok((parameters(types, hints)?, columns))
}

/// Refuses what would mean another thing on each look at a row.
fn check_volatile(selection: Option<&Expr>, what: &str) -> Result<(), Error> {
    let text = selection.map(ToString::to_string).unwrap_or_default().to_ascii_lowercase();
    match ["random(", "uuid(", "clock_timestamp("].iter().any(|name| text.contains(name)) {
        true => Err(Error::unsupported(format_args!("{what} with a volatile function in WHERE"))),
        false => Ok(()),
    }
}

/// The names of the columns of a table, as they stand in a query.
fn quoted(name: &str) -> Expr {
    Expr::Identifier(Ident::with_quote('"', name))
}
