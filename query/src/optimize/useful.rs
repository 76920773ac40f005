//! Tells scans which rows the operators above have a use for: the first in an order, so many, the last of each key, or
//! none of those that zone maps answer.
//!
//! All of it is an offer. A scan that makes no use of it gives more rows, and the operators above, which stay, leave
//! them out.

use std::sync::Arc;

use datafusion::{
    arrow::datatypes::DataType,
    error::Result,
    physical_expr::{
        LexOrdering, PhysicalExpr,
        aggregate::AggregateFunctionExpr,
        expressions::{CastExpr, Column, Literal},
    },
    physical_plan::{
        ExecutionPlan, aggregates::AggregateExec, filter::FilterExec, projection::ProjectionExec,
    },
};
use hypertide_proto::schema::{self, ColumnType};
use hypertide_storage::{Asked, Latest, LatestBy};

use super::rows::with_input;
use crate::exec::{AnswerExec, ChunkScanExec, ScanLeaf, ScanOrder, State};

/// Tells the scan below a sort with a limit which rows come first.
pub(super) fn ordered(
    plan: &Arc<dyn ExecutionPlan>,
    sort: &LexOrdering,
) -> Result<Arc<dyn ExecutionPlan>> {
    let first = sort.first();
    let Some(column) = column_below(plan, &first.expr) else { return Ok(Arc::clone(plan)) };
    let order = ScanOrder { column: column.name.clone(), descending: first.options.descending };
    let numeric = gives_order(column.column_type);
    let column = column.clone();
    with_scan(plan, &|leaf| {
        // Rows in which the column is null come last, or there are none.
        let fits = numeric && (leaf.never_null(&column) || !first.options.nulls_first);
        ScanLeaf { order: fits.then(|| order.clone()), ..leaf.clone() }
    })
}

/// Tells a scan how many rows are of use, unless a filter stands above it.
pub(super) fn bounded(
    plan: &Arc<dyn ExecutionPlan>,
    rows: usize,
) -> Result<Arc<dyn ExecutionPlan>> {
    if scan_below(plan, false).is_none() {
        return Ok(Arc::clone(plan));
    }
    with_scan(plan, &|leaf| ScanLeaf { limit: Some(rows as u64), ..leaf.clone() })
}

/// The partial aggregate over a scan that answers from zone maps, or gives only the last rows of each group, where
/// that is enough.
pub(super) fn aggregated(partial: &Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let Some(aggregate) = partial.downcast_ref::<AggregateExec>() else {
        return Ok(Arc::clone(partial));
    };
    let plain = aggregate.filter_expr().iter().all(Option::is_none)
        && aggregate.aggr_expr().iter().all(|function| !function.is_distinct());
    if !plain || scan_below(aggregate.input(), false).is_none() {
        return Ok(Arc::clone(partial));
    }
    if let Some((asked, states)) = answer(aggregate) {
        let input = with_scan(aggregate.input(), &|leaf| ScanLeaf {
            answer: Some(asked.clone()),
            ..leaf.clone()
        })?;
        return Ok(Arc::new(AnswerExec::new(with_input(partial, input)?, states)));
    }
    let Some(latest) = latest(aggregate) else { return Ok(Arc::clone(partial)) };
    let input = with_scan(aggregate.input(), &|leaf| ScanLeaf {
        latest: Some(latest.clone()),
        ..leaf.clone()
    })?;
    with_input(partial, input)
}

/// What to ask zone maps for an aggregate without groups, and how its state comes from the answer.
fn answer(aggregate: &AggregateExec) -> Option<(Vec<Asked>, Vec<State>)> {
    if !aggregate.group_expr().is_empty() || aggregate.aggr_expr().is_empty() {
        return None;
    }
    let mut asked: Vec<Asked> = Vec::new();
    let mut states = Vec::new();
    for function in aggregate.aggr_expr() {
        states.push(state(function, aggregate.input(), &mut asked)?);
    }
    (states.len() == aggregate.schema().fields().len()).then_some((asked, states))
}

fn state(
    function: &AggregateFunctionExpr,
    input: &Arc<dyn ExecutionPlan>,
    asked: &mut Vec<Asked>,
) -> Option<State> {
    let arguments = function.expressions();
    let [argument] = arguments.as_slice() else { return None };
    if !function.order_bys().is_empty() {
        return None;
    }
    let name = function.fun().name();
    if name == "count" && argument.downcast_ref::<Literal>().is_some_and(|l| !l.value().is_null()) {
        return Some(State::Rows);
    }
    let (argument, sum) = match argument.downcast_ref::<CastExpr>() {
        Some(cast) if name == "sum" && *cast.cast_type() == DataType::Int64 => (cast.expr(), true),
        _ => (argument, name == "sum"),
    };
    let column = column_below(input, argument)?;
    let result = function.field().data_type().clone();
    let own = column.column_type.to_arrow();
    let fits = match name {
        "count" => true,
        "min" | "max" => result == own,
        "sum" => match (&own, &result) {
            (DataType::Decimal128(_, scale), DataType::Decimal128(_, same)) => scale == same,
            (_, DataType::Int64) => column.column_type.integer(),
            _ => false,
        },
        _ => false,
    };
    if !fits {
        return None;
    }
    let known = asked.iter().position(|asked| asked.column == column.name);
    let at = known.unwrap_or_else(|| {
        asked.push(Asked { column: column.name.clone(), extremes: false, sum: false });
        asked.len() - 1
    });
    let entry = asked.get_mut(at)?;
    entry.extremes |= matches!(name, "min" | "max");
    entry.sum |= sum;
    Some(match name {
        "count" => State::Present(at),
        "min" => State::Min(at),
        "max" => State::Max(at),
        _ => State::Sum(at),
    })
}

/// Which rows of each group an aggregate has a use for, when those are the first or the last by time.
fn latest(aggregate: &AggregateExec) -> Option<Latest> {
    let group_by = aggregate.group_expr();
    if group_by.has_grouping_set() {
        return None;
    }
    let input = aggregate.input();
    let keys = group_by.expr().iter().map(|(expr, _)| column_below(input, expr));
    let keys: Vec<&schema::Column> = keys.collect::<Option<_>>()?;
    // Floats may be equal in more than one form.
    if keys.iter().any(|key| matches!(key.column_type, ColumnType::Real | ColumnType::Double)) {
        return None;
    }
    let keys: Vec<String> = keys.into_iter().map(|key| key.name.clone()).collect();
    let time = scan_below(input, false)?.leaf().time.clone();
    let mut by: Option<LatestBy> = None;
    for function in aggregate.aggr_expr() {
        let descending = last_by(function, input, &keys, time.as_deref()?)?;
        let one = LatestBy { column: time.clone()?, descending };
        if by.as_ref().is_some_and(|by| *by != one) {
            return None;
        }
        by = Some(one);
    }
    (by.is_some() || !keys.is_empty()).then_some(Latest { keys, by })
}

/// Whether an aggregate looks only at the last rows by time (true), or at the first (false).
fn last_by(
    function: &AggregateFunctionExpr,
    input: &Arc<dyn ExecutionPlan>,
    keys: &[String],
    time: &str,
) -> Option<bool> {
    let is_time = |expr: &Arc<dyn PhysicalExpr>| {
        column_below(input, expr).is_some_and(|column| column.name == time)
    };
    let arguments = function.expressions();
    match (function.fun().name(), arguments.as_slice()) {
        ("last", [_, at]) => is_time(at).then_some(true),
        ("first", [_, at]) => is_time(at).then_some(false),
        ("max", [at]) => is_time(at).then_some(true),
        ("min", [at]) => is_time(at).then_some(false),
        ("first_value", [_]) if !function.is_reversed() && !function.ignore_nulls() => {
            let is_key = |expr: &Arc<dyn PhysicalExpr>| {
                column_below(input, expr).is_some_and(|column| keys.contains(&column.name))
            };
            let decides = function.order_bys().iter().find(|by| !is_key(&by.expr))?;
            is_time(&decides.expr).then_some(decides.options.descending)
        }
        _ => None,
    }
}

/// The scan at the bottom, below projections, and below filters when those may be there.
pub(super) fn scan_below(plan: &Arc<dyn ExecutionPlan>, filters: bool) -> Option<&ChunkScanExec> {
    if let Some(scan) = plan.downcast_ref::<ChunkScanExec>() {
        return Some(scan);
    }
    if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        return scan_below(projection.input(), filters);
    }
    let filter = plan.downcast_ref::<FilterExec>().filter(|_| filters)?;
    scan_below(filter.input(), filters)
}

/// The column of the scan that an expression is, unchanged.
pub(super) fn column_below<'a>(
    plan: &'a Arc<dyn ExecutionPlan>,
    expr: &Arc<dyn PhysicalExpr>,
) -> Option<&'a schema::Column> {
    column_at(plan, expr.downcast_ref::<Column>()?.index())
}

fn column_at(plan: &Arc<dyn ExecutionPlan>, at: usize) -> Option<&schema::Column> {
    if let Some(scan) = plan.downcast_ref::<ChunkScanExec>() {
        return scan.leaf().columns.get(at).filter(|_| !scan.leaf().rows_only);
    }
    if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        let below = projection.expr().get(at)?.expr.downcast_ref::<Column>()?;
        return column_at(projection.input(), below.index());
    }
    let filter = plan.downcast_ref::<FilterExec>()?;
    let at = match filter.projection() {
        Some(kept) => *kept.get(at)?,
        None => at,
    };
    column_at(filter.input(), at)
}

/// The plan with another scan at the bottom, when there is one.
pub(super) fn with_scan(
    plan: &Arc<dyn ExecutionPlan>,
    change: &dyn Fn(&ScanLeaf) -> ScanLeaf,
) -> Result<Arc<dyn ExecutionPlan>> {
    if let Some(scan) = plan.downcast_ref::<ChunkScanExec>() {
        return Ok(Arc::new(scan.with_leaf(change(scan.leaf()))));
    }
    if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        let below = with_scan(projection.input(), change)?;
        // Made anew: over another input it would keep the types that it had.
        let made = ProjectionExec::try_new(projection.expr().iter().cloned(), below)?;
        return Ok(Arc::new(made));
    }
    match plan.downcast_ref::<FilterExec>() {
        Some(filter) => with_input(plan, with_scan(filter.input(), change)?),
        None => Ok(Arc::clone(plan)),
    }
}

/// Whether the store can read a column of this type in its order.
fn gives_order(column_type: ColumnType) -> bool {
    use ColumnType::{BigInt, Date, Integer, Numeric, SmallInt, Timestamp, TimestampTz};
    matches!(
        column_type,
        SmallInt | Integer | BigInt | Numeric { .. } | Timestamp | TimestampTz | Date
    )
}
