//! The rows that a statement changes, as it reads them.

use std::{collections::BTreeSet, ops::ControlFlow, sync::Arc};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    compute::cast,
    datatypes::{Int64Type, Schema},
};
use datafusion::{
    common::ScalarValue,
    sql::sqlparser::ast::{
        Expr, SetExpr, Statement as Ast, TableFactor, TableWithJoins, visit_expressions,
    },
};
use futures::TryStreamExt as _;
use hypertide_meta::catalog::Table;
use hypertide_storage::batch::bytes_of;

use super::{Change, check_volatile, positions, quoted};
use crate::{Error, session::Frame, sql::query};

/// Rows, and their bytes, that one statement may name.
const ROWS_MAX: usize = 500_000;
const BYTES_MAX: usize = 128 << 20;

/// What a statement has to read.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    pub(super) table: &'a Arc<Table>,
    factor: TableFactor,
    selection: Option<Expr>,
    /// Positions of the columns that are read.
    columns: Vec<usize>,
    /// Those of them that rows are told by.
    by: Vec<usize>,
    /// Further expressions.
    computed: Vec<Expr>,
    returning: bool,
}

/// Rows of a table, and the columns that they are told by.
#[derive(Debug)]
pub(crate) struct Matched {
    pub(super) batches: Vec<RecordBatch>,
    /// Positions in the table of their first columns; others may follow.
    pub(super) columns: Vec<usize>,
    /// Those of them that the rows are told by.
    pub(super) by: Vec<usize>,
    /// Whether these are all.
    pub(super) complete: bool,
}

impl<'a> Reading<'a> {
    pub(super) fn of(change: &Change, table: &'a Arc<Table>) -> Result<Self, Error> {
        check_volatile(change.selection.as_ref(), change.name())?;
        let all = table.columns.columns.len();
        let whole = change.sets.is_some() || change.returning.is_some();
        let by = named(table, change.selection.as_ref()).unwrap_or_else(|| (0..all).collect());
        let columns = if whole { (0..all).collect() } else { by.clone() };
        let computed = positions(table, change.sets.as_deref().unwrap_or_default())?;
        Ok(Self {
            table,
            factor: change.factor.clone(),
            selection: change.selection.clone(),
            columns,
            by,
            computed: computed.into_iter().map(|(_, expr)| expr).collect(),
            returning: change.returning.is_some(),
        })
    }

    /// Whether it is about all rows, and does not return them.
    pub(super) fn everything(&self) -> bool {
        self.selection.is_none() && !self.returning
    }

    /// The query of the rows.
    pub(super) fn query(&self) -> Result<Ast, Error> {
        let all = &self.table.columns.columns;
        let columns = self.columns.iter().filter_map(|at| all.get(*at));
        let columns = columns.map(|column| quoted(&column.name));
        let expressions: Vec<Expr> = columns.chain(self.computed.iter().cloned()).collect();
        self.select(&expressions)
    }

    /// A query of expressions over the rows.
    pub(super) fn select(&self, expressions: &[Expr]) -> Result<Ast, Error> {
        let mut ast = query::select_of(expressions)?;
        if let Ast::Query(query) = &mut ast
            && let SetExpr::Select(select) = query.body.as_mut()
        {
            let relation = self.factor.clone();
            select.from = vec![TableWithJoins { relation, joins: Vec::new() }];
            select.selection = self.selection.clone();
        }
        Ok(ast)
    }

    /// Positions of the columns that are read.
    pub(super) fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// Reads the rows, as far as they may be named.
    pub(super) async fn rows(
        &self,
        frame: &Frame,
        values: &[ScalarValue],
    ) -> Result<Matched, Error> {
        let plan = query::bind(query::plan(&frame.ctx, self.query()?).await?, values.to_vec())?;
        let mut stream = frame.ctx.execute_logical_plan(plan).await?.execute_stream().await?;
        let (columns, by) = (self.columns.clone(), self.by.clone());
        let mut matched = Matched { batches: Vec::new(), columns, by, complete: true };
        let (mut rows, mut bytes) = (0, 0);
        while let Some(batch) = stream.try_next().await? {
            (rows, bytes) = (rows + batch.num_rows(), bytes + bytes_of(&batch));
            if rows > ROWS_MAX || bytes > BYTES_MAX {
                matched.complete = false;
                return Ok(matched);
            }
            if batch.num_rows() > 0 {
                matched.batches.push(in_types_of(self.table, &self.columns, &batch)?);
            }
        }
        Ok(matched)
    }

    /// How many rows there are.
    pub(super) async fn count(&self, frame: &Frame, values: &[ScalarValue]) -> Result<u64, Error> {
        let all = super::super::insert::expression("count(*)")?;
        let plan = query::plan(&frame.ctx, self.select(&[all])?).await?;
        let plan = query::bind(plan, values.to_vec())?;
        let batches = frame.ctx.execute_logical_plan(plan).await?.collect().await?;
        let counts = batches.iter().filter_map(|batch| batch.columns().first());
        let counts = counts.filter_map(|array| array.as_primitive_opt::<Int64Type>());
        Ok(counts.flat_map(|array| array.iter().flatten()).sum::<i64>().unsigned_abs())
    }
}

impl Matched {
    /// Rows that have exactly the table's columns, by those at these positions.
    pub(crate) fn by(rows: &RecordBatch, by: Vec<usize>) -> Result<Self, Error> {
        let batches = vec![rows.project(&by)?];
        Ok(Self { batches, columns: by.clone(), by, complete: true })
    }

    pub(super) fn count(&self) -> u64 {
        self.batches.iter().map(|batch| batch.num_rows() as u64).sum()
    }

    /// The same, if these are all rows.
    pub(super) fn within_limit(self, what: &str) -> Result<Self, Error> {
        if self.complete { Ok(self) } else { Err(too_many(what)) }
    }
}

/// The error of a statement that would have to name too many rows.
pub(super) fn too_many(what: &str) -> Error {
    let megabytes = BYTES_MAX >> 20;
    let message = format_args!(
        "{what} of more than {ROWS_MAX} rows, or {megabytes} MiB of them, in one statement"
    );
    Error::of("54000", message)
        .with_hint("Change the rows in several statements, such as one for each day.")
}

/// The rows with the columns that they are told by first, in the types of the table and under its names.
fn in_types_of(
    table: &Table,
    columns: &[usize],
    batch: &RecordBatch,
) -> Result<RecordBatch, Error> {
    let mut fields = Vec::with_capacity(batch.num_columns());
    let mut arrays = Vec::with_capacity(batch.num_columns());
    let known = columns.iter().filter_map(|at| table.columns.columns.get(*at));
    for (column, array) in known.zip(batch.columns()) {
        let field = column.to_field();
        let array = match array.data_type() == field.data_type() {
            true => Arc::clone(array),
            false => cast(array, field.data_type())?,
        };
        fields.push(field);
        arrays.push(array);
    }
    let schema = batch.schema();
    for (field, array) in schema.fields().iter().zip(batch.columns()).skip(columns.len()) {
        fields.push(field.as_ref().clone().with_nullable(true));
        arrays.push(Arc::clone(array));
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
}

/// The columns that a condition names and those that rows are placed by, rising; `None` when it cannot be told.
fn named(table: &Table, selection: Option<&Expr>) -> Option<Vec<usize>> {
    let mut columns = BTreeSet::new();
    if let Some(hypertable) = table.hypertable() {
        for dimension in &hypertable.dimensions {
            columns.insert(table.columns.position(&dimension.column)?);
        }
    }
    let Some(selection) = selection else { return Some(columns.into_iter().collect()) };
    let told = visit_expressions(selection, |expr| {
        let name = match expr {
            Expr::Identifier(name) => Some(name),
            Expr::CompoundIdentifier(names) => names.last(),
            Expr::Subquery(_) | Expr::InSubquery { .. } | Expr::Exists { .. } => {
                return ControlFlow::Break(());
            }
            Expr::AnyOp { .. } | Expr::AllOp { .. } | Expr::Wildcard(_) => {
                return ControlFlow::Break(());
            }
            _ => None,
        };
        let position = name.map(|name| table.columns.position(&super::super::parse::fold(name)));
        match position {
            // A name that is no column's is for the planner to refuse, or to know.
            Some(None) => ControlFlow::Break(()),
            Some(Some(position)) => {
                columns.insert(position);
                ControlFlow::Continue(())
            }
            None => ControlFlow::Continue(()),
        }
    });
    match told {
        ControlFlow::Continue(()) if !columns.is_empty() => Some(columns.into_iter().collect()),
        _ => None,
    }
}
