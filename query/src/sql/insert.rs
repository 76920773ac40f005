//! INSERT … VALUES, INSERT … SELECT, DEFAULT VALUES, and RETURNING.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array},
    datatypes::SchemaRef,
};
use datafusion::{
    common::ScalarValue,
    datasource::MemTable,
    sql::sqlparser::ast::{
        ConflictTarget, Expr, Insert, OnConflict, OnConflictAction, OnInsert, Query, SelectItem,
        SetExpr, Statement as Ast, TableObject, TableWithJoins, Values,
    },
};
use futures::TryStreamExt as _;
use hypertide_meta::catalog::Table;
use hypertide_proto::schema::{Column, ColumnType, Key};
use xxhash_rust::xxh3::xxh3_128;

use super::{
    call,
    change::{self, Attempts},
    describe::{Description, columns_of, parameters, types_of},
    keys::{Keyed, Policy, Update, empty_update_plan},
    names::Names,
    parse::{fold, table_name},
    query,
    table::{default_of, find},
};
use crate::{
    Error, Reply, Session, Snapshot,
    ingest::{
        assign::assign,
        batches::Batches,
        cells::{Cell, Inputs, build, cell},
        send::{WriteTag, Writer},
    },
    session::Frame,
};

/// Rows that RETURNING may give: they are kept until the commit.
const RETURNED_ROWS_MAX: u64 = 1_000_000;

/// Where an INSERT goes, and what it says of each column.
struct Target {
    table: Arc<Table>,
    /// Positions of the named columns, or of all.
    columns: Vec<usize>,
}

impl Target {
    fn new(frame: &Frame, insert: &Insert, path: &str) -> Result<Self, Error> {
        let TableObject::TableName(name) = &insert.table else {
            return Err(Error::unsupported("INSERT into a function or a query"));
        };
        let table = find(&frame.snapshot.image, name, path)?;
        let mut columns = Vec::new();
        for name in &insert.columns {
            let (_, name) = table_name(name)?;
            let position = table.columns.position(&name);
            let position = position.ok_or_else(|| Error::no_column(&name, &table.name))?;
            if columns.contains(&position) {
                return Err(Error::of(
                    "42701",
                    format_args!("column \"{name}\" specified more than once"),
                ));
            }
            columns.push(position);
        }
        if insert.columns.is_empty() {
            columns.extend(0..table.columns.columns.len());
        }
        Ok(Self { table, columns })
    }

    fn column(&self, number: usize) -> Option<&Column> {
        self.columns.get(number).and_then(|position| self.table.columns.columns.get(*position))
    }

    fn check_width(&self, width: usize, listed: bool) -> Result<(), Error> {
        if width > self.columns.len() {
            return Err(Error::of("42601", "INSERT has more expressions than target columns"));
        }
        if width < self.columns.len() && listed {
            return Err(Error::of("42601", "INSERT has more target columns than expressions"));
        }
        Ok(())
    }
}

/// Runs an INSERT.
pub(crate) async fn run(
    session: &mut Session,
    insert: &Insert,
    sql: &str,
    values: Vec<ScalarValue>,
) -> Result<Reply, Error> {
    let write_id = session.take_write_id()?;
    let tag: Option<WriteTag> = write_id.map(|id| (id, content_hash(sql, &values)));
    let snapshot = session.snapshot().await?;
    let frame = session.frame_of(snapshot)?;
    let path = session.settings.get("search_path").unwrap_or_default();
    let target = Target::new(&frame, insert, path)?;
    let policy = policy_of(insert, &target.table)?;
    if policy.is_none() {
        return Box::pin(once(session, insert, (&values, tag), None)).await;
    }
    // Rows with keys may be crossed by others: then it runs again.
    let mut attempts = Attempts::begin(session, target.table.id).await;
    loop {
        match Box::pin(once(session, insert, (&values, tag), policy.as_ref())).await {
            Err(error) if attempts.again(session, &error).await => {}
            result => return result,
        }
    }
}

/// What becomes of rows whose keys are taken; nothing for a table without keys.
fn policy_of(insert: &Insert, table: &Table) -> Result<Option<Policy>, Error> {
    let alias = insert.table_alias.as_ref().map(|alias| fold(&alias.alias));
    let alias = alias.unwrap_or_else(|| table.name.clone());
    match &insert.on {
        None if table.columns.keys.is_empty() => Ok(None),
        None => Ok(Some(Policy::Refuse)),
        Some(OnInsert::OnConflict(conflict)) => on_conflict(table, conflict, alias).map(Some),
        Some(_) => Err(Error::unsupported("ON DUPLICATE KEY UPDATE")),
    }
}

/// What ON CONFLICT says.
fn on_conflict(table: &Table, conflict: &OnConflict, alias: String) -> Result<Policy, Error> {
    let keys = &table.columns.keys;
    let arbiter = match &conflict.conflict_target {
        None => None,
        Some(ConflictTarget::Columns(columns)) => {
            let mut named = BTreeSet::new();
            for column in columns {
                let name = fold(column);
                let known = table.columns.column(&name);
                let known = known.ok_or_else(|| Error::no_column(&name, &table.name))?;
                named.insert(known.stored_name().to_owned());
            }
            let same = |key: &Key| key.columns.iter().cloned().collect::<BTreeSet<_>>() == named;
            let message = "there is no unique or exclusion constraint matching the ON CONFLICT \
                           specification";
            let found = keys.iter().position(same);
            Some(found.ok_or_else(|| Error::of("42P10", message))?)
        }
        Some(ConflictTarget::OnConstraint(name)) => {
            let (_, name) = table_name(name)?;
            let found = keys.iter().position(|key| key.name == name);
            let table = &table.name;
            let message =
                format_args!("constraint \"{name}\" for table \"{table}\" does not exist");
            Some(found.ok_or_else(|| Error::of("42704", message))?)
        }
    };
    match (&conflict.action, arbiter) {
        (OnConflictAction::DoNothing, None) => Ok(Policy::Skip((0..keys.len()).collect())),
        (OnConflictAction::DoNothing, Some(key)) => Ok(Policy::Skip(vec![key])),
        (OnConflictAction::DoUpdate(_), None) => Err(Error::of(
            "42601",
            "ON CONFLICT DO UPDATE requires inference specification or constraint name",
        )
        .with_hint("For example, ON CONFLICT (column_name).")),
        (OnConflictAction::DoUpdate(update), Some(key)) => {
            let sets = change::positions(table, &change::pairs(&update.assignments)?)?;
            let selection = update.selection.clone();
            Ok(Policy::Update(Box::new(Update { key, sets, selection, alias })))
        }
    }
}

/// Where the rows of a statement go.
struct Sink<'a> {
    writer: Writer,
    deadline: Instant,
    table: &'a Arc<Table>,
    keyed: Option<Keyed<'a>>,
    /// Rows for RETURNING.
    kept: Option<Vec<RecordBatch>>,
    rows: u64,
}

impl Sink<'_> {
    async fn put(&mut self, rows: RecordBatch) -> Result<(), Error> {
        let rows = match &mut self.keyed {
            Some(keyed) => Box::pin(keyed.put(&mut self.writer, rows, self.deadline)).await?,
            None => {
                self.writer.write(self.table, rows.clone(), self.deadline).await?;
                rows
            }
        };
        self.rows += rows.num_rows() as u64;
        if let Some(kept) = &mut self.kept {
            kept.push(rows);
            if self.rows > RETURNED_ROWS_MAX {
                let message = format_args!("RETURNING gives at most {RETURNED_ROWS_MAX} rows");
                return Err(Error::of("54000", message));
            }
        }
        Ok(())
    }
}

async fn once(
    session: &mut Session,
    insert: &Insert,
    (values, tag): (&[ScalarValue], Option<WriteTag>),
    policy: Option<&Policy>,
) -> Result<Reply, Error> {
    let writer = session.take_writer()?;
    let deadline = session.deadline();
    let snapshot = {
        let snapshot = match policy {
            Some(_) => session.fresh_snapshot().await?,
            None => session.snapshot().await?,
        };
        Snapshot { own: Some(writer.txn()), ..snapshot }
    };
    let frame = session.frame_of(snapshot)?;
    let path = session.settings.get("search_path").unwrap_or_default();
    let target = Target::new(&frame, insert, path)?;
    let table = &target.table;
    let keyed = policy.map(|policy| Keyed {
        frame: &frame,
        table,
        policy,
        values,
        written: HashSet::new(),
    });
    let kept = insert.returning.as_ref().map(|_| Vec::new());
    let mut sink = Sink { writer, deadline, table, keyed, kept, rows: 0 };
    match insert.source.as_deref().map(|query| (query, values_of(query))) {
        None => {
            sink.put(complete(&frame, &target, 1, Vec::new()).await?).await?;
        }
        Some((_, Some(list))) => {
            let list = (list, !insert.columns.is_empty());
            sink.put(values_batch(&frame, &target, list, values).await?).await?;
        }
        Some((query, None)) => {
            let ast = Ast::Query(Box::new(query.clone()));
            query::check(&ast)?;
            let plan = query::bind(query::plan(&frame.ctx, ast).await?, values.to_vec())?;
            target.check_width(plan.schema().fields().len(), !insert.columns.is_empty())?;
            let mut stream = frame.ctx.execute_logical_plan(plan).await?.execute_stream().await?;
            let mut batches = Batches::new(stream.schema());
            while let Some(batch) = stream.try_next().await? {
                if let Some(rows) = batches.add(batch)? {
                    sink.put(selected(&frame, &target, &rows).await?).await?;
                }
            }
            if let Some(rows) = batches.finish()? {
                sink.put(selected(&frame, &target, &rows).await?).await?;
            }
        }
    }
    let Sink { writer, kept, rows, .. } = sink;
    let count = session.end_write(writer, rows, tag).await?;
    match &insert.returning {
        Some(items) => {
            let kept = kept.unwrap_or_default();
            returning(&frame, &target.table, (items, "INSERT 0"), kept).await
        }
        None => Ok(Reply::Done(format!("INSERT 0 {count}"))),
    }
}

/// What the client sent, so that a retry is known by it.
pub(crate) fn content_hash(sql: &str, values: &[ScalarValue]) -> u128 {
    let mut content = sql.as_bytes().to_vec();
    for value in values {
        content.extend_from_slice(format!("\0{value:?}").as_bytes());
    }
    xxh3_128(&content)
}

/// The list of a query that is nothing but VALUES.
fn values_of(query: &Query) -> Option<&Values> {
    let plain = query.with.is_none()
        && query.order_by.is_none()
        && query.limit_clause.is_none()
        && query.fetch.is_none();
    match query.body.as_ref() {
        SetExpr::Values(values) if plain => Some(values),
        _ => None,
    }
}

/// The rows of a VALUES list, with all columns of the table.
async fn values_batch(
    frame: &Frame,
    target: &Target,
    (list, listed): (&Values, bool),
    values: &[ScalarValue],
) -> Result<RecordBatch, Error> {
    let width = list.rows.first().map_or(0, |row| row.len());
    target.check_width(width, listed)?;
    if list.rows.iter().any(|row| row.len() != width) {
        return Err(Error::of("42601", "VALUES lists must all be the same length"));
    }
    let mut columns = Vec::with_capacity(width);
    for number in 0..width {
        let Some(column) = target.column(number) else { continue };
        let default = default_of(column)?;
        let mut computed = Vec::new();
        let cells = list.rows.iter().filter_map(|row| row.get(number)).map(|expr| {
            let found = match (cell(expr, column.column_type), &default) {
                (Cell::Default, Some(default)) => Cell::Computed(Box::new(default.clone())),
                (Cell::Default, None) => Cell::Null,
                (found, _) => found,
            };
            if let Cell::Computed(expr) = &found {
                computed.push(expr.as_ref().clone());
            }
            found
        });
        let cells: Vec<Cell> = cells.collect();
        let computed = match computed.is_empty() {
            true => Vec::new(),
            false => query::evaluate(&frame.ctx, &computed, values).await?,
        };
        let inputs = Inputs { parameters: values, computed: &computed, zone: frame.zone };
        columns.push(build(column, &cells, inputs)?);
    }
    complete(frame, target, list.rows.len(), columns).await
}

/// The rows that a query gives, with all columns of the table.
async fn selected(
    frame: &Frame,
    target: &Target,
    rows: &RecordBatch,
) -> Result<RecordBatch, Error> {
    let mut columns = Vec::with_capacity(rows.num_columns());
    for (number, array) in rows.columns().iter().enumerate() {
        let Some(column) = target.column(number) else { continue };
        columns.push(assign(array, column, frame.zone)?);
    }
    complete(frame, target, rows.num_rows(), columns).await
}

/// Puts given columns in the table's order and fills the others with their defaults.
async fn complete(
    frame: &Frame,
    target: &Target,
    rows: usize,
    given: Vec<ArrayRef>,
) -> Result<RecordBatch, Error> {
    let mut placed: HashMap<usize, ArrayRef> = target.columns.iter().copied().zip(given).collect();
    let mut columns = Vec::with_capacity(target.table.columns.columns.len());
    for (position, column) in target.table.columns.columns.iter().enumerate() {
        let array = match placed.remove(&position) {
            Some(array) => array,
            None => fill(frame, column, rows).await?,
        };
        columns.push(array);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(target.table.columns.to_arrow(), columns, &options)?)
}

/// A column of defaults. One that gives another value each time is computed for each row.
pub(crate) async fn fill(frame: &Frame, column: &Column, rows: usize) -> Result<ArrayRef, Error> {
    let Some(default) = default_of(column)? else {
        return Ok(new_null_array(&column.column_type.to_arrow(), rows));
    };
    if rows == 0 {
        return Ok(arrow::array::new_empty_array(&column.column_type.to_arrow()));
    }
    let text = default.to_string().to_ascii_lowercase();
    let volatile = ["random", "uuid"].iter().any(|name| text.contains(name));
    let array = match volatile {
        false => {
            let value = query::evaluate(&frame.ctx, std::slice::from_ref(&default), &[]).await?;
            let value = value.into_iter().next().unwrap_or(ScalarValue::Null);
            value.to_array_of_size(rows)?
        }
        true => {
            let values = query::evaluate(&frame.ctx, &vec![default; rows], &[]).await?;
            ScalarValue::iter_to_array(values)?
        }
    };
    assign(&array, column, frame.zone)
}

/// The rows that RETURNING gives: its expressions over what was inserted, changed or deleted.
pub(crate) async fn returning(
    frame: &Frame,
    table: &Table,
    (items, tag): (&[SelectItem], &'static str),
    rows: Vec<RecordBatch>,
) -> Result<Reply, Error> {
    let plan = returning_plan(frame, table, items, rows).await?;
    let stream = frame.ctx.execute_logical_plan(plan).await?.execute_stream().await?;
    let stream = Names::of_items(items).rename_stream(stream);
    Ok(Reply::Rows { schema: stream.schema(), stream, tag, counted: true })
}

pub(crate) async fn returning_plan(
    frame: &Frame,
    table: &Table,
    items: &[SelectItem],
    rows: Vec<RecordBatch>,
) -> Result<datafusion::logical_expr::LogicalPlan, Error> {
    const INSERTED: &str = "__inserted";
    let schema: SchemaRef = table.columns.to_arrow();
    let memory = MemTable::try_new(schema, vec![rows])?;
    call::register(&frame.ctx, vec![(INSERTED.to_owned(), Arc::new(memory))]);
    let mut ast = query::select_of(&[])?;
    if let Ast::Query(query) = &mut ast
        && let SetExpr::Select(select) = query.body.as_mut()
    {
        select.projection = items.to_vec();
        select.from = vec![TableWithJoins {
            relation: call::table_factor(INSERTED, &table.name),
            joins: Vec::new(),
        }];
    }
    query::plan(&frame.ctx, ast).await
}

/// Parameters and RETURNING columns of an INSERT.
pub(crate) async fn describe(
    frame: &Frame,
    insert: &Insert,
    hints: &[Option<ColumnType>],
) -> Result<Description, Error> {
    let target = Target::new(frame, insert, "")?;
    let mut types: HashMap<usize, Option<ColumnType>> = HashMap::new();
    match insert.source.as_deref().map(|query| (query, values_of(query))) {
        Some((_, Some(list))) => {
            let mut computed = Vec::new();
            for row in &list.rows {
                for (number, expr) in row.iter().enumerate() {
                    let Some(column) = target.column(number) else { continue };
                    match cell(expr, column.column_type) {
                        Cell::Parameter(number) => {
                            types.entry(number).or_insert(Some(column.column_type));
                        }
                        Cell::Computed(expr) => computed.push(*expr),
                        _ => {}
                    }
                }
            }
            if !computed.is_empty() && computed.iter().any(|expr| expr.to_string().contains('$')) {
                let plan = query::plan(&frame.ctx, query::select_of(&computed)?).await?;
                for (number, found) in types_of(&plan)? {
                    types.entry(number).or_insert(found);
                }
            }
        }
        Some((query, None)) => {
            let plan = query::plan(&frame.ctx, Ast::Query(Box::new(query.clone()))).await?;
            types = types_of(&plan)?;
        }
        None => {}
    }
    if let Some(Policy::Update(update)) = policy_of(insert, &target.table)? {
        let plan = Box::pin(empty_update_plan(frame, &target.table, &update)).await?;
        for (number, found) in types_of(&plan)? {
            types.entry(number).or_insert(found);
        }
        for (position, expr) in &update.sets {
            if let Some(column) = target.table.columns.columns.get(*position)
                && let Cell::Parameter(number) = cell(expr, column.column_type)
            {
                types.insert(number, Some(column.column_type));
            }
        }
    }
    let columns = match &insert.returning {
        Some(items) => {
            let plan = returning_plan(frame, &target.table, items, Vec::new()).await?;
            Some(Names::of_items(items).rename(&columns_of(&plan)))
        }
        None => None,
    };
    Ok((parameters(types, hints)?, columns))
}

/// An expression that a text holds.
pub(crate) fn expression(text: &str) -> Result<Expr, Error> {
    let mut parser = super::parse::parser(text)?;
    parser.parse_expr().map_err(|error| Error::syntax(&error, text))
}
