//! Calls that are made for the rows of a query: `SELECT compress_chunk(c) FROM show_chunks('t') c`.
//!
//! What the calls are given is a query of its own; it is run first, then the calls are made for its rows, and their
//! results take the place of the calls. Where each call is a column by itself, all other columns, the order and the limit
//! belong to the query that is run first, so that no more calls are made than rows come out. Where a call stands within
//! an expression, such as `count(compress_chunk(c))`, the expression is computed over the results afterwards.

use std::{collections::HashMap, ops::ControlFlow, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, UInt64Array},
    compute::{concat, concat_batches, take},
    datatypes::{Field, FieldRef, Schema, SchemaRef},
};
use datafusion::{
    common::ScalarValue,
    sql::sqlparser::ast::{
        Expr, GroupByExpr, Ident, Query, SelectItem, SetExpr, Statement as Ast, TableWithJoins,
        Value, WildcardAdditionalOptions, visit_expressions, visit_expressions_mut,
    },
};

use super::{
    call::{self, Arguments, Tables},
    describe::columns_of,
    names::Names,
    query,
    registry::Name,
};
use crate::{Error, Session, session::Frame};

/// Begins the names of columns between the two queries.
const OWN_PREFIX: &str = "__over_";

/// Calls, and the query that gives their arguments.
#[derive(Clone, Debug)]
pub(crate) struct Over {
    /// Its last columns are the arguments, the others are kept.
    query: Ast,
    /// The calls, in the order of their arguments.
    calls: Vec<RowCall>,
    /// The columns that come out, but for a wildcard: the kept one, or the call, of that number.
    order: Vec<Place>,
}

#[derive(Clone, Debug)]
struct RowCall {
    name: Name,
    parameters: Vec<&'static str>,
    /// Name of the result.
    column: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Kept(usize),
    Called(usize),
    /// Any number of kept columns.
    Wildcard,
}

/// Takes the calls out of the select list of a query that has rows; `table` is under which their results are found.
pub(crate) fn take_over(outer: &mut Query, table: &str) -> Result<Option<Over>, Error> {
    let SetExpr::Select(select) = outer.body.as_ref() else { return Ok(None) };
    if select.from.is_empty() || !select.projection.iter().any(has_call) {
        return Ok(None);
    }
    let grouped = !matches!(&select.group_by, GroupByExpr::Expressions(keys, _) if keys.is_empty());
    let plain = select.projection.iter().all(|item| called(item).is_some() || !has_call(item));
    if grouped || select.having.is_some() || select.distinct.is_some() {
        let name = select.projection.iter().find_map(first_name);
        let name = name.map_or("a function", Name::text);
        return Err(Error::unsupported(format_args!("{name} with GROUP BY, HAVING or DISTINCT")));
    }
    if plain { take_plain(outer, table).map(Some) } else { take_nested(outer, table).map(Some) }
}

/// Each call is a column.
fn take_plain(outer: &mut Query, table: &str) -> Result<Over, Error> {
    let mut inner = outer.clone();
    let (mut calls, mut order) = (Vec::new(), Vec::new());
    if let SetExpr::Select(select) = inner.body.as_mut() {
        let (mut kept, mut arguments) = (Vec::new(), Vec::new());
        for item in std::mem::take(&mut select.projection) {
            let Some((expr, name, alias)) = called(&item) else {
                order.push(match &item {
                    SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..) => Place::Wildcard,
                    _ => Place::Kept(kept.len()),
                });
                kept.push(item);
                continue;
            };
            order.push(Place::Called(calls.len()));
            let column = alias.unwrap_or_else(|| name.text().to_owned());
            calls.push(row_call((expr, name), column, &mut arguments)?);
        }
        select.projection = kept.into_iter().chain(arguments).collect();
    }
    // Columns cannot be told apart by number beside a wildcard: they come in the order of the query, then the calls.
    if order.contains(&Place::Wildcard) {
        order = vec![Place::Wildcard];
        order.extend((0..calls.len()).map(Place::Called));
    }
    *outer = all_of(table)?;
    Ok(Over { query: Ast::Query(Box::new(inner)), calls, order })
}

/// Calls stand within expressions.
fn take_nested(outer: &mut Query, table: &str) -> Result<Over, Error> {
    let mut inner = outer.clone();
    (inner.order_by, inner.limit_clause, inner.fetch) = (None, None, None);
    let (mut calls, mut arguments, mut failed) = (Vec::new(), Vec::new(), None);
    if let SetExpr::Select(select) = outer.body.as_mut() {
        let _ = visit_expressions_mut(&mut select.projection, |expr| {
            let Some(name) = name_of(expr) else { return ControlFlow::Continue(()) };
            let column = format!("{OWN_PREFIX}r{}", calls.len());
            let replaced = Expr::Identifier(Ident::with_quote('"', &column));
            match row_call((expr, name), column, &mut arguments) {
                Ok(call) => calls.push(call),
                Err(error) => {
                    failed = Some(error);
                    return ControlFlow::Break(());
                }
            }
            *expr = replaced;
            ControlFlow::Continue(())
        });
        let relation = call::table_factor(table, table);
        select.from = vec![TableWithJoins { relation, joins: Vec::new() }];
        select.selection = None;
    }
    outer.with = None;
    if let Some(error) = failed {
        return Err(error);
    }
    let kept = keep_columns(outer);
    let order = (0..kept.len()).map(Place::Kept).chain((0..calls.len()).map(Place::Called));
    let order = order.collect();
    if let SetExpr::Select(select) = inner.body.as_mut() {
        select.projection = kept.into_iter().chain(arguments).collect();
    }
    Ok(Over { query: Ast::Query(Box::new(inner)), calls, order })
}

/// Replaces the columns that stand beside calls; gives them as items of the query that is run first.
fn keep_columns(outer: &mut Query) -> Vec<SelectItem> {
    let (mut kept, mut names) = (Vec::new(), Vec::new());
    let mut keep = |expr: &mut Expr| {
        let name = match expr {
            Expr::Identifier(name) => name,
            Expr::CompoundIdentifier(parts) => match parts.last() {
                Some(name) => name,
                None => return ControlFlow::<()>::Continue(()),
            },
            _ => return ControlFlow::Continue(()),
        };
        if !name.value.starts_with(OWN_PREFIX) {
            let alias = Ident::with_quote('"', format!("{OWN_PREFIX}k{}", kept.len()));
            let new = Expr::Identifier(alias.clone());
            let expr = std::mem::replace(expr, new);
            kept.push(SelectItem::ExprWithAlias { expr, alias });
        }
        ControlFlow::Continue(())
    };
    if let SetExpr::Select(select) = outer.body.as_mut() {
        for item in &mut select.projection {
            // Alone, it keeps its name.
            if let SelectItem::UnnamedExpr(expr) = item {
                let name = match expr {
                    Expr::Identifier(name) => Some(name.clone()),
                    Expr::CompoundIdentifier(parts) => parts.last().cloned(),
                    _ => None,
                };
                let name = name.filter(|name| !name.value.starts_with(OWN_PREFIX));
                if let Some(alias) = name {
                    *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
                }
            }
            if let SelectItem::ExprWithAlias { alias, .. } = item {
                names.push(super::parse::fold(alias));
            }
            let _ = visit_expressions_mut(item, &mut keep);
        }
    }
    let _ = visit_expressions_mut(&mut outer.order_by, |expr| match expr {
        Expr::Identifier(name) if names.contains(&super::parse::fold(name)) => {
            ControlFlow::Continue(())
        }
        expr => keep(expr),
    });
    kept
}

/// A call whose arguments are added to a select list.
fn row_call(
    (expr, name): (&Expr, Name),
    column: String,
    list: &mut Vec<SelectItem>,
) -> Result<RowCall, Error> {
    if name.columns().len() != 1 {
        return Err(Error::unsupported(format_args!("{} for the rows of a query", name.text())));
    }
    let mut parameters = Vec::new();
    for (parameter, expr) in call::arguments_of(name, expr)? {
        let alias = Ident::with_quote('"', format!("{OWN_PREFIX}a{}", list.len()));
        list.push(SelectItem::ExprWithAlias { expr, alias });
        parameters.push(parameter);
    }
    Ok(RowCall { name, parameters, column })
}

/// `SELECT * FROM table()`.
fn all_of(table: &str) -> Result<Query, Error> {
    let Ast::Query(mut query) = query::select_of(&[])? else {
        return Err(Error::of("XX000", "a query is none"));
    };
    if let SetExpr::Select(select) = query.body.as_mut() {
        select.projection = vec![SelectItem::Wildcard(WildcardAdditionalOptions::default())];
        let relation = call::table_factor(table, table);
        select.from = vec![TableWithJoins { relation, joins: Vec::new() }];
    }
    Ok(*query)
}

fn name_of(expr: &Expr) -> Option<Name> {
    match expr {
        Expr::Function(function) => Name::of(&function.name),
        _ => None,
    }
}

/// The call that an item of a select list is, with its name and the alias.
fn called(item: &SelectItem) -> Option<(&Expr, Name, Option<String>)> {
    let (expr, alias) = match item {
        SelectItem::UnnamedExpr(expr) => (expr, None),
        SelectItem::ExprWithAlias { expr, alias } => (expr, Some(super::parse::fold(alias))),
        _ => return None,
    };
    Some((expr, name_of(expr)?, alias))
}

fn first_name(item: &SelectItem) -> Option<Name> {
    let found = visit_expressions(item, |expr| match name_of(expr) {
        Some(name) => ControlFlow::Break(name),
        None => ControlFlow::Continue(()),
    });
    found.break_value()
}

fn has_call(item: &SelectItem) -> bool {
    first_name(item).is_some()
}

impl Over {
    /// Makes the calls for all rows.
    pub(crate) async fn run(
        &self,
        session: &mut Session,
        tables: &Tables,
        values: &[ScalarValue],
    ) -> Result<RecordBatch, Error> {
        let frame = session.frame().await?;
        call::register(&frame.ctx, tables.clone());
        let plan = query::plan(&frame.ctx, self.query.clone()).await?;
        let kept = self.kept(&columns_of(&plan));
        let plan = query::bind(plan, values.to_vec())?;
        let found = frame.ctx.execute_logical_plan(plan).await?;
        let schema: SchemaRef = Arc::new(found.schema().as_arrow().clone());
        let rows = concat_batches(&schema, &found.collect().await?)?;
        let mut repeats: Option<Vec<usize>> = None;
        let mut results = Vec::with_capacity(self.calls.len());
        let mut first = kept.len();
        for call in &self.calls {
            let arguments = call.arguments(&rows, first)?;
            first += call.parameters.len();
            let found = call.name.run_rows(session, &frame, arguments).await?;
            let lengths: Vec<usize> = found.iter().map(|array| array.len()).collect();
            if repeats.as_ref().is_some_and(|known| *known != lengths) {
                let name = call.name.text();
                return Err(Error::unsupported(format_args!(
                    "{name} beside others that give rows"
                )));
            }
            repeats = Some(lengths);
            results.push(joined(call, &found)?);
        }
        let repeats = repeats.unwrap_or_default().into_iter().enumerate();
        let rows_again = repeats.flat_map(|(row, count)| std::iter::repeat_n(row as u64, count));
        let again = UInt64Array::from_iter_values(rows_again);
        let kept_arrays = rows.columns().iter().take(kept.len());
        let kept_arrays = kept_arrays.map(|array| take(array, &again, None));
        let kept_arrays: Vec<ArrayRef> = kept_arrays.collect::<Result<_, _>>()?;
        let arrays = self.in_order(&kept_arrays, &results);
        Ok(RecordBatch::try_new(self.schema_of(&kept), arrays)?)
    }

    /// The columns that come out, found out without running anything.
    pub(crate) async fn schema(&self, frame: &Frame) -> Result<SchemaRef, Error> {
        let plan = query::plan(&frame.ctx, self.query.clone()).await?;
        Ok(self.schema_of(&self.kept(&columns_of(&plan))))
    }

    /// Visits the parameters of the statement that stand in the query.
    pub(crate) fn parameters(&self) -> Vec<String> {
        let mut names = Vec::new();
        let _ = visit_expressions(&self.query, |expr| {
            if let Expr::Value(value) = expr
                && let Value::Placeholder(name) = &value.value
            {
                names.push(name.clone());
            }
            ControlFlow::<()>::Continue(())
        });
        names
    }

    /// The columns that are kept, under the names that they have in a result.
    fn kept(&self, schema: &SchemaRef) -> Vec<FieldRef> {
        let arguments: usize = self.calls.iter().map(|call| call.parameters.len()).sum();
        let named = Names::of(&self.query).rename(schema);
        let kept = named.fields().len().saturating_sub(arguments);
        named.fields().iter().take(kept).cloned().collect()
    }

    fn schema_of(&self, kept: &[FieldRef]) -> SchemaRef {
        let calls = self.calls.iter().map(|call| {
            let field = call.name.columns().into_iter().next();
            field.map(|field: Field| Arc::new(field.with_name(&call.column)))
        });
        let calls: Vec<FieldRef> = calls.flatten().collect();
        Arc::new(Schema::new(self.in_order(kept, &calls)))
    }

    fn in_order<T: Clone>(&self, kept: &[T], calls: &[T]) -> Vec<T> {
        let places = self.order.iter().map(|place| match place {
            Place::Kept(at) => kept.get(*at..*at + 1),
            Place::Called(at) => calls.get(*at..*at + 1),
            Place::Wildcard => Some(kept),
        });
        places.flat_map(Option::unwrap_or_default).cloned().collect()
    }
}

impl RowCall {
    /// What it is given in each row; its first argument is that column.
    fn arguments(&self, rows: &RecordBatch, first: usize) -> Result<Vec<Arguments>, Error> {
        let columns = rows.columns().get(first..).unwrap_or_default();
        let row = |row: usize| {
            let pairs = self.parameters.iter().zip(columns);
            let values = pairs.map(|(parameter, column)| {
                ScalarValue::try_from_array(column, row).map(|value| (*parameter, value))
            });
            let values: HashMap<&'static str, ScalarValue> = values.collect::<Result<_, _>>()?;
            Ok(Arguments::new(values))
        };
        (0..rows.num_rows()).map(row).collect()
    }
}

/// What came of all rows as one array.
fn joined(call: &RowCall, found: &[ArrayRef]) -> Result<ArrayRef, Error> {
    if found.is_empty() {
        let column = call.name.columns().into_iter().next();
        let data_type = column.map_or(arrow::datatypes::DataType::Utf8, |f| f.data_type().clone());
        return Ok(arrow::array::new_empty_array(&data_type));
    }
    let arrays: Vec<&dyn arrow::array::Array> = found.iter().map(AsRef::as_ref).collect();
    Ok(concat(&arrays)?)
}
