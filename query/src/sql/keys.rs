//! Rows of tables with unique keys: no two of them have the same values in the columns of a key.
//!
//! Every key has the columns that the table is cut by, so that rows of one key lie in one place. Rows are compared with
//! those that the snapshot has and that the transaction wrote itself; then their places are reserved, which fails if
//! anybody changed one since the snapshot or is about to; then they are written. So a key that was free when it was
//! looked for is free when the transaction commits. NULL differs from NULL, except that a primary key has none.
//!
//! Rows of a box lie in all its generations, and are looked for in all; only the last one can get another. A generation
//! that the snapshot does not know may hold rows that it does not know, either: the statement looks again.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use arrow::{
    array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array, UInt64Array},
    compute::{cast, concat_batches, take_record_batch},
    datatypes::{DataType, Field, Schema},
    row::{RowConverter, SortField},
};
use datafusion::{
    common::{Column as Named, ScalarValue, TableReference},
    datasource::MemTable,
    logical_expr::{Expr as Logical, lit},
    sql::sqlparser::ast::{
        Expr, Ident, SetExpr, Statement as Ast, TableWithJoins, visit_expressions_mut,
    },
};
use futures::TryStreamExt as _;
use hypertide_meta::catalog::{Chunk, Table};
use hypertide_proto::{ids::Generation, schema::Key};
use hypertide_storage::Tombstone;

use super::{
    call,
    change::{
        matched::Matched,
        tombstones::{reserving, taking},
    },
    query,
    text::{TextStyle, write_text},
};
use crate::{
    Error,
    ingest::{check::check_rows, deliver::contended, send::Writer},
    session::Frame,
};

/// Different values of a column up to which rows are looked for by each.
const VALUES_MAX: usize = 64;
/// Rows that one batch may be compared with.
const EXISTING_ROWS_MAX: usize = 2_000_000;
/// What the rows of ON CONFLICT are called while it is computed what becomes of them.
const CROSSED: &str = "__crossed";
/// What stands before the name of a column of `excluded` there.
const EXCLUDED: &str = "excluded.";
const NUMBER: &str = "__number";

/// What becomes of a row whose key is taken.
#[derive(Clone, Debug)]
pub(crate) enum Policy {
    /// The statement fails.
    Refuse,
    /// It is left out, if the key is one of these.
    Skip(Vec<usize>),
    /// The row that has the key is changed.
    Update(Box<Update>),
}

/// DO UPDATE.
#[derive(Clone, Debug)]
pub(crate) struct Update {
    /// The key, by its position.
    pub(crate) key: usize,
    /// Columns, by their positions, and what they are set to.
    pub(crate) sets: Vec<(usize, Expr)>,
    pub(crate) selection: Option<Expr>,
    /// What the statement calls the table.
    pub(crate) alias: String,
}

/// Writes the rows of one statement to a table with keys.
pub(crate) struct Keyed<'a> {
    pub(crate) frame: &'a Frame,
    pub(crate) table: &'a Arc<Table>,
    pub(crate) policy: &'a Policy,
    /// Values of the statement's parameters.
    pub(crate) values: &'a [ScalarValue],
    /// Keys of rows that the statement wrote and must not write again.
    pub(crate) written: HashSet<Box<[u8]>>,
}

/// The values of a key in rows; `None` where one is NULL.
type Values = Vec<Option<Box<[u8]>>>;

/// What becomes of the rows of a batch.
#[derive(Debug, Default)]
struct Fates {
    inserted: Vec<u32>,
    /// Old rows, with the new row that crosses each.
    updated: Vec<(u32, u32)>,
}

impl Keyed<'_> {
    /// Writes rows that have exactly the table's columns; gives those that are in the table now because of them.
    pub(crate) async fn put(
        &mut self,
        writer: &mut Writer,
        rows: RecordBatch,
        deadline: Instant,
    ) -> Result<RecordBatch, Error> {
        let rows = plain(self.table, &rows)?;
        check_rows(self.table, &rows)?;
        // What the transaction wrote before is looked at like what is there.
        writer.flush(deadline).await?;
        let old = existing(self.frame, self.table, &rows).await?;
        let fates = self.fates(&rows, &old)?;
        let inserted = take_record_batch(&rows, &UInt32Array::from(fates.inserted))?;
        let (gone, changed) = self.changed(&old, &rows, &fates.updated).await?;
        if let Policy::Update(update) = self.policy
            && sets_key(self.table, &update.sets)
            && changed.num_rows() > 0
        {
            let beside = (std::slice::from_ref(&gone), &inserted);
            check_free(self.frame, self.table, beside, &changed).await?;
        }
        let written = concat_batches(&rows.schema(), [&inserted, &changed])?;
        let mut tombstones = match self.policy {
            Policy::Update(update) if gone.num_rows() > 0 => {
                let key = self.table.columns.keys.get(update.key);
                let by = key.map(|key| self.table.columns.key_positions(key)).unwrap_or_default();
                taking(self.frame, self.table, &Matched::by(&gone, by)?).await?
            }
            _ => Vec::new(),
        };
        tombstones.extend(free_places(self.frame, self.table, writer, (&written, deadline)).await?);
        writer.reserve(self.table, tombstones, deadline).await?;
        writer.write(self.table, written.clone(), deadline).await?;
        Ok(written)
    }

    /// What becomes of each row.
    fn fates(&mut self, rows: &RecordBatch, old: &RecordBatch) -> Result<Fates, Error> {
        let keys = &self.table.columns.keys;
        let mut new: Vec<Values> = Vec::with_capacity(keys.len());
        let mut taken: Vec<HashMap<Box<[u8]>, Option<u32>>> = Vec::with_capacity(keys.len());
        for key in keys {
            new.push(values_of(self.table, key, rows)?);
            let values = values_of(self.table, key, old)?.into_iter().zip(0..);
            taken.push(values.filter_map(|(value, at)| Some((value?, Some(at)))).collect());
        }
        let mut fates = Fates::default();
        for row in 0..rows.num_rows() {
            let value = |key: usize| new.get(key).and_then(|values| values.get(row)?.as_deref());
            let crossed: Vec<(usize, Option<u32>)> = (0..keys.len())
                .filter_map(|key| Some((key, *taken.get(key)?.get(value(key)?)?)))
                .collect();
            let number = u32::try_from(row).unwrap_or(u32::MAX);
            match self.fate(&crossed, value)? {
                Some(Fate::Skip) => {}
                Some(Fate::Update(old)) => fates.updated.push((old, number)),
                Some(Fate::Refuse(key)) => {
                    let key = keys.get(key);
                    let error = |key| duplicate(self.frame, self.table, key, (rows, row));
                    return Err(key.map_or_else(|| Error::of("XX000", "a key is gone"), error));
                }
                None => {
                    fates.inserted.push(number);
                    for (key, taken) in taken.iter_mut().enumerate() {
                        taken.extend(value(key).map(|value| (Box::from(value), None)));
                    }
                }
            }
        }
        Ok(fates)
    }

    /// What becomes of a row that crosses others, by the key and the row that has it; an insert when nothing does.
    fn fate<'v>(
        &mut self,
        crossed: &[(usize, Option<u32>)],
        value: impl Fn(usize) -> Option<&'v [u8]>,
    ) -> Result<Option<Fate>, Error> {
        let refused = |arbiter: &dyn Fn(usize) -> bool| {
            let other = crossed.iter().find(|(key, _)| !arbiter(*key));
            other.map(|(key, _)| Fate::Refuse(*key))
        };
        Ok(match self.policy {
            Policy::Refuse => refused(&|_| false),
            Policy::Skip(keys) => match crossed.iter().any(|(key, _)| keys.contains(key)) {
                true => Some(Fate::Skip),
                false => refused(&|_| false),
            },
            Policy::Update(update) => {
                let by_key = crossed.iter().find(|(key, _)| *key == update.key);
                let again = value(update.key).is_some_and(|value| self.written.contains(value));
                if by_key.is_some() && again {
                    let message = "ON CONFLICT DO UPDATE command cannot affect row a second time";
                    return Err(Error::of("21000", message).with_hint(
                        "Ensure that no rows proposed for insertion within the same command have \
                         duplicate constrained values.",
                    ));
                }
                let refused = refused(&|key| key == update.key && by_key.is_some());
                if refused.is_none() || by_key.is_some() {
                    self.written.extend(value(update.key).map(Box::from));
                }
                match by_key {
                    Some((_, Some(old))) => Some(Fate::Update(*old)),
                    _ => refused,
                }
            }
        })
    }

    /// Of rows that are crossed by others those that change, before and after.
    async fn changed(
        &self,
        old: &RecordBatch,
        new: &RecordBatch,
        pairs: &[(u32, u32)],
    ) -> Result<(RecordBatch, RecordBatch), Error> {
        let none = || RecordBatch::new_empty(new.schema());
        let Policy::Update(update) = self.policy else { return Ok((none(), none())) };
        if pairs.is_empty() {
            return Ok((none(), none()));
        }
        let (olds, news): (Vec<u32>, Vec<u32>) = pairs.iter().copied().unzip();
        let old = take_record_batch(old, &UInt32Array::from(olds))?;
        let new = take_record_batch(new, &UInt32Array::from(news))?;
        let crossed = crossed(self.table, &old, &new)?;
        let plan = update_plan(self.frame, update, crossed).await?;
        let plan = query::bind(plan, self.values.to_vec())?;
        let results = self.frame.ctx.execute_logical_plan(plan).await?.collect().await?;
        let Some(schema) = results.first().map(RecordBatch::schema) else {
            return Ok((none(), none()));
        };
        let results = concat_batches(&schema, &results)?;
        let numbers = cast(results.column(0), &DataType::UInt32)?;
        let numbers = arrow::array::AsArray::as_primitive::<arrow::datatypes::UInt32Type>(&numbers);
        let old = take_record_batch(&old, numbers)?;
        let mut columns: Vec<ArrayRef> = old.columns().to_vec();
        for ((position, _), values) in update.sets.iter().zip(results.columns().iter().skip(1)) {
            let column = self.table.columns.columns.get(*position);
            if let (Some(column), Some(place)) = (column, columns.get_mut(*position)) {
                *place = crate::ingest::assign::assign(values, column, self.frame.zone)?;
            }
        }
        let changed = RecordBatch::try_new(new.schema(), columns)?;
        Ok((old, changed))
    }
}

/// What becomes of a row whose key is taken.
enum Fate {
    Skip,
    Update(u32),
    /// By the key.
    Refuse(usize),
}

/// Old and new rows side by side, numbered.
fn crossed(table: &Table, old: &RecordBatch, new: &RecordBatch) -> Result<RecordBatch, Error> {
    let all = &table.columns.columns;
    let mut fields = vec![Field::new(NUMBER, DataType::UInt64, false)];
    fields.extend(all.iter().map(|column| column.to_field()));
    let excluded = |column: &hypertide_proto::schema::Column| {
        column.to_field().with_name(format!("{EXCLUDED}{}", column.name))
    };
    fields.extend(all.iter().map(excluded));
    let numbers: ArrayRef = Arc::new(UInt64Array::from_iter_values(0..old.num_rows() as u64));
    let columns = std::iter::once(numbers);
    let columns = columns.chain(old.columns().iter().cloned()).chain(new.columns().iter().cloned());
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.collect())?)
}

/// The plan of what DO UPDATE makes of rows: the number of each that changes, and what its columns are set to.
async fn update_plan(
    frame: &Frame,
    update: &Update,
    crossed: RecordBatch,
) -> Result<datafusion::logical_expr::LogicalPlan, Error> {
    let memory = MemTable::try_new(crossed.schema(), vec![vec![crossed]])?;
    call::register(&frame.ctx, vec![(CROSSED.to_owned(), Arc::new(memory))]);
    let number = Expr::Identifier(Ident::with_quote('"', NUMBER));
    let sets = update.sets.iter().map(|(_, expr)| of_crossed(expr));
    let expressions: Vec<Expr> = std::iter::once(number).chain(sets).collect();
    let mut ast = query::select_of(&expressions)?;
    if let Ast::Query(query) = &mut ast
        && let SetExpr::Select(select) = query.body.as_mut()
    {
        let relation = call::table_factor(CROSSED, &update.alias);
        select.from = vec![TableWithJoins { relation, joins: Vec::new() }];
        select.selection = update.selection.as_ref().map(of_crossed);
    }
    query::plan(&frame.ctx, ast).await
}

/// The plan of a DO UPDATE without rows, for its parameters.
pub(crate) async fn empty_update_plan(
    frame: &Frame,
    table: &Table,
    update: &Update,
) -> Result<datafusion::logical_expr::LogicalPlan, Error> {
    let none = RecordBatch::new_empty(table.columns.to_arrow());
    update_plan(frame, update, crossed(table, &none, &none)?).await
}

/// An expression with the columns of `excluded` under the names that they have beside those of the table.
fn of_crossed(expr: &Expr) -> Expr {
    let mut expr = expr.clone();
    let _ = visit_expressions_mut(&mut expr, |expr| {
        if let Expr::CompoundIdentifier(names) = expr
            && let [table, column] = names.as_slice()
            && super::parse::fold(table) == "excluded"
        {
            let name = format!("{EXCLUDED}{}", super::parse::fold(column));
            *expr = Expr::Identifier(Ident::with_quote('"', name));
        }
        std::ops::ControlFlow::<()>::Continue(())
    });
    expr
}

/// Whether any column that is set is one of a key.
pub(crate) fn sets_key(table: &Table, sets: &[(usize, Expr)]) -> bool {
    let stored = |position: &usize| Some(table.columns.columns.get(*position)?.stored_name());
    let of_key = |name: &str| {
        let mut keys = table.columns.keys.iter();
        keys.any(|key| key.columns.iter().any(|column| column == name))
    };
    sets.iter().filter_map(|(position, _)| stored(position)).any(of_key)
}

/// Refuses rows whose keys others have, or one another; `gone` are rows that they replace, `beside` others that are
/// written with them.
pub(crate) async fn check_free(
    frame: &Frame,
    table: &Table,
    (gone, beside): (&[RecordBatch], &RecordBatch),
    rows: &RecordBatch,
) -> Result<(), Error> {
    let there = existing(frame, table, rows).await?;
    for key in &table.columns.keys {
        let mut taken: HashSet<Box<[u8]>> =
            values_of(table, key, &there)?.into_iter().flatten().collect();
        for gone in gone {
            for value in values_of(table, key, gone)?.into_iter().flatten() {
                taken.remove(&value);
            }
        }
        taken.extend(values_of(table, key, beside)?.into_iter().flatten());
        for (row, value) in values_of(table, key, rows)?.into_iter().enumerate() {
            if value.is_some_and(|value| !taken.insert(value)) {
                return Err(duplicate(frame, table, key, (rows, row)));
            }
        }
    }
    Ok(())
}

/// Tombstones that reserve the places of rows that are about to be written.
pub(crate) async fn free_places(
    frame: &Frame,
    table: &Arc<Table>,
    writer: &mut Writer,
    (rows, deadline): (&RecordBatch, Instant),
) -> Result<Vec<(Chunk, Tombstone)>, Error> {
    if rows.num_rows() == 0 {
        return Ok(Vec::new());
    }
    let chunks = writer.chunks_for(table, rows, deadline).await?;
    for (chunk, _) in &chunks {
        let known = frame.snapshot.image.catalog.chunk(chunk.id).is_some();
        if !known && chunk.generation > Generation(1) {
            return Err(contended(format_args!("chunk {} is a new generation", chunk.id)));
        }
    }
    reserving(frame, table, rows, chunks)
}

/// The error of a key that is taken.
fn duplicate(frame: &Frame, table: &Table, key: &Key, (rows, row): (&RecordBatch, usize)) -> Error {
    let style = TextStyle { zone: frame.zone, ..TextStyle::default() };
    let text = |position: &usize| {
        let mut out = Vec::new();
        let there = rows.columns().get(*position);
        match there.is_some_and(|array| write_text(array, row, style, &mut out)) {
            true => String::from_utf8_lossy(&out).into_owned(),
            false => "null".to_owned(),
        }
    };
    let positions = table.columns.key_positions(key);
    let names = positions.iter().filter_map(|at| table.columns.columns.get(*at));
    let names: Vec<&str> = names.map(|column| column.name.as_str()).collect();
    let values: Vec<String> = positions.iter().map(text).collect();
    let name = &key.name;
    let message = format_args!("duplicate key value violates unique constraint \"{name}\"");
    let (names, values) = (names.join(", "), values.join(", "));
    Error::of("23505", message)
        .with_detail(format_args!("Key ({names})=({values}) already exists."))
}

/// The rows in the types of the table: without dictionaries.
fn plain(table: &Table, rows: &RecordBatch) -> Result<RecordBatch, Error> {
    let schema = table.columns.to_arrow();
    let columns = rows.columns().iter().zip(schema.fields());
    let columns = columns
        .map(|(array, field)| match array.data_type() == field.data_type() {
            true => Ok(Arc::clone(array)),
            false => cast(array, field.data_type()),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    Ok(RecordBatch::try_new_with_options(schema, columns, &options)?)
}

/// The values of a key in rows that have exactly the table's columns.
fn values_of(table: &Table, key: &Key, rows: &RecordBatch) -> Result<Values, Error> {
    let positions = table.columns.key_positions(key);
    let arrays: Vec<ArrayRef> =
        positions.iter().filter_map(|at| rows.columns().get(*at)).cloned().collect();
    let fields = arrays.iter().map(|array| SortField::new(array.data_type().clone())).collect();
    let converted = RowConverter::new(fields)?.convert_columns(&arrays)?;
    let value = |(at, row): (usize, arrow::row::Row<'_>)| {
        let null = arrays.iter().any(|array| array.is_null(at));
        (!null).then(|| Box::from(row.as_ref()))
    };
    Ok(converted.iter().enumerate().map(value).collect())
}

/// The rows that are there and have a key of these.
async fn existing(frame: &Frame, table: &Table, rows: &RecordBatch) -> Result<RecordBatch, Error> {
    let schema = table.columns.to_arrow();
    if rows.num_rows() == 0 {
        return Ok(RecordBatch::new_empty(schema));
    }
    let mut filter: Option<Logical> = None;
    let mut wanted = Vec::with_capacity(table.columns.keys.len());
    for key in &table.columns.keys {
        let found = values_of(table, key, rows)?.into_iter().flatten();
        wanted.push(found.collect::<HashSet<Box<[u8]>>>());
        let near = near(table, key, rows)?;
        filter = Some(match filter {
            Some(filter) => filter.or(near),
            None => near,
        });
    }
    let name = TableReference::partial(table.schema.clone(), table.name.clone());
    let found = frame.ctx.table(name).await?.filter(filter.unwrap_or_else(|| lit(true)))?;
    let mut stream = found.execute_stream().await?;
    let (mut kept, mut count) = (Vec::new(), 0);
    while let Some(batch) = stream.try_next().await? {
        let batch = plain(table, &batch)?;
        let mut alike = vec![false; batch.num_rows()];
        for (key, wanted) in table.columns.keys.iter().zip(&wanted) {
            let values = values_of(table, key, &batch)?;
            for (alike, value) in alike.iter_mut().zip(values) {
                *alike |= value.is_some_and(|value| wanted.contains(&value));
            }
        }
        let positions = (0..).zip(alike).filter_map(|(at, alike)| alike.then_some(at));
        let positions: Vec<u32> = positions.collect();
        count += positions.len();
        if count > EXISTING_ROWS_MAX {
            let what = "a statement whose rows have too many keys that are taken";
            return Err(Error::of("54000", what));
        }
        if !positions.is_empty() {
            kept.push(take_record_batch(&batch, &UInt32Array::from(positions))?);
        }
    }
    Ok(concat_batches(&schema, &kept)?)
}

/// A condition that all rows with the keys of these meet, and that scans can make use of.
fn near(table: &Table, key: &Key, rows: &RecordBatch) -> Result<Logical, Error> {
    let mut all = lit(true);
    for position in table.columns.key_positions(key) {
        let (Some(column), Some(array)) =
            (table.columns.columns.get(position), rows.columns().get(position))
        else {
            continue;
        };
        let named = || Logical::Column(Named::from_name(column.name.clone()));
        let (mut values, mut least, mut greatest): (Vec<ScalarValue>, _, _) =
            (Vec::new(), None::<ScalarValue>, None::<ScalarValue>);
        let mut seen = HashSet::new();
        for row in 0..array.len() {
            let value = ScalarValue::try_from_array(array, row)?;
            if value.is_null() {
                continue;
            }
            if least.as_ref().is_none_or(|least| value < *least) {
                least = Some(value.clone());
            }
            if greatest.as_ref().is_none_or(|greatest| value > *greatest) {
                greatest = Some(value.clone());
            }
            if seen.len() <= VALUES_MAX && seen.insert(value.clone()) {
                values.push(value);
            }
        }
        let float = array.data_type().is_floating();
        let term = match (least, greatest) {
            _ if float => continue,
            (Some(_), Some(_)) if seen.len() <= VALUES_MAX => {
                named().in_list(values.into_iter().map(lit).collect(), false)
            }
            (Some(least), Some(greatest)) => named().between(lit(least), lit(greatest)),
            // Only NULL: no row has such a key.
            _ => lit(false),
        };
        all = all.and(term);
    }
    Ok(all)
}
