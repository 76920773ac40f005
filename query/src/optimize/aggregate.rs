//! Aggregates: partial ones always, full ones where every group is whole on one node.
//!
//! A group is whole on one node when only one node is read, or when the space column is one of the grouping columns
//! and every bucket is read from one node. The final aggregate then moves into the fragment, and with it all that
//! stands above: HAVING, projections, sorts with a limit.

use std::sync::Arc;

use datafusion::{
    error::Result,
    physical_expr::{PhysicalExpr, expressions::Column},
    physical_plan::{
        ExecutionPlan, Partitioning,
        aggregates::{AggregateExec, AggregateMode},
        coalesce_partitions::CoalescePartitionsExec,
        filter::FilterExec,
        projection::ProjectionExec,
        repartition::RepartitionExec,
    },
};

use super::{
    push::{fragment_below, gathered, on_one_node},
    rows::{can_travel, with_input},
    useful,
};
use crate::{
    exec::{AnswerExec, ChunkScanExec, RemoteFragmentExec, Spread},
    route::buckets_apart,
};

/// Moves an aggregate into the fragment below it.
pub(super) fn push(node: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let Some(aggregate) = node.downcast_ref::<AggregateExec>() else { return Ok(None) };
    if !can_travel(node)? {
        return Ok(None);
    }
    match aggregate.mode() {
        AggregateMode::Partial => push_partial(node, aggregate),
        AggregateMode::Final | AggregateMode::FinalPartitioned => push_final(aggregate),
        AggregateMode::Single | AggregateMode::SinglePartitioned => push_single(aggregate),
        AggregateMode::PartialReduce => Ok(None),
    }
}

fn push_partial(
    node: &Arc<dyn ExecutionPlan>,
    aggregate: &AggregateExec,
) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let Some(fragment) = fragment_below(aggregate.input()) else { return Ok(None) };
    let inner = summarized(fragment, with_input(node, Arc::clone(fragment.inner()))?)?;
    Ok(Some(Arc::new(fragment.with_inner(inner, Spread::Any))))
}

/// The partial aggregate over a scan that knows what it is for.
fn summarized(
    fragment: &RemoteFragmentExec,
    partial: Arc<dyn ExecutionPlan>,
) -> Result<Arc<dyn ExecutionPlan>> {
    if fragment.summaries() { useful::aggregated(&partial) } else { Ok(partial) }
}

/// The final aggregate over the partial one at the top of a fragment.
fn push_final(aggregate: &AggregateExec) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let Some(fragment) = below_exchange(aggregate.input()) else { return Ok(None) };
    // On one node, the exchange below may have moved already.
    let top = match fragment.inner().downcast_ref::<CoalescePartitionsExec>() {
        Some(gather) if gather.fetch().is_none() => gather.input(),
        _ => fragment.inner(),
    };
    let top = top.downcast_ref::<AnswerExec>().map_or(top, AnswerExec::input);
    let partial = top.downcast_ref::<AggregateExec>();
    let Some(partial) = partial.filter(|inner| *inner.mode() == AggregateMode::Partial) else {
        return Ok(None);
    };
    let Some(spread) = whole_groups(partial, fragment) else { return Ok(None) };
    let inner = remade(aggregate, AggregateMode::Final, gathered(fragment.inner()))?;
    Ok(Some(Arc::new(fragment.with_inner(inner, spread))))
}

/// An aggregate in one step, which DataFusion plans when its input has one partition: one node.
fn push_single(aggregate: &AggregateExec) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let Some(fragment) = below_exchange(aggregate.input()) else { return Ok(None) };
    if !on_one_node(fragment) {
        return Ok(None);
    }
    let single = gathered(fragment.inner());
    let inner = if aggregate.aggr_expr().iter().any(|expr| !expr.order_bys().is_empty()) {
        remade(aggregate, AggregateMode::Single, single)?
    } else {
        // In two steps, so that all cores of the node take part.
        let partial = remade(aggregate, AggregateMode::Partial, Arc::clone(fragment.inner()))?;
        let partial = summarized(fragment, partial)?;
        let group_by = aggregate.group_expr().as_final();
        let filters = vec![None; aggregate.filter_expr().len()];
        let last = AggregateExec::try_new(
            AggregateMode::Final,
            group_by,
            aggregate.aggr_expr().to_vec(),
            filters,
            gathered(&partial),
            aggregate.input_schema(),
        )?;
        Arc::new(last.with_limit_options(aggregate.limit_options()))
    };
    Ok(Some(Arc::new(fragment.with_inner(inner, Spread::OneNode))))
}

/// The same aggregate in another mode over another input.
fn remade(
    aggregate: &AggregateExec,
    mode: AggregateMode,
    input: Arc<dyn ExecutionPlan>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let made = AggregateExec::try_new(
        mode,
        aggregate.group_expr().clone(),
        aggregate.aggr_expr().to_vec(),
        aggregate.filter_expr().to_vec(),
        input,
        aggregate.input_schema(),
    )?;
    Ok(Arc::new(made.with_limit_options(aggregate.limit_options())))
}

/// The fragment below an exchange that brings the parts of a group together.
fn below_exchange(input: &Arc<dyn ExecutionPlan>) -> Option<&RemoteFragmentExec> {
    if let Some(coalesce) = input.downcast_ref::<CoalescePartitionsExec>() {
        return (coalesce.fetch().is_none()).then(|| below_exchange(coalesce.input())).flatten();
    }
    if let Some(repartition) = input.downcast_ref::<RepartitionExec>()
        && matches!(repartition.partitioning(), Partitioning::Hash(..))
        && !repartition.preserve_order()
    {
        return below_exchange(repartition.input());
    }
    fragment_below(input)
}

/// How far the fragment may be spread when groups must be whole on a node; `None` when they are not.
fn whole_groups(partial: &AggregateExec, fragment: &RemoteFragmentExec) -> Option<Spread> {
    if on_one_node(fragment) {
        return Some(Spread::OneNode);
    }
    let group_by = partial.group_expr();
    if group_by.has_grouping_set() || !buckets_apart(fragment.fragments()) {
        return None;
    }
    let by_space = group_by.expr().iter().any(|(expr, _)| is_space(expr, partial.input()));
    by_space.then_some(Spread::Buckets)
}

/// Whether an expression over `input` is the space column of the scan below, unchanged.
fn is_space(expr: &Arc<dyn PhysicalExpr>, input: &Arc<dyn ExecutionPlan>) -> bool {
    let Some(column) = expr.downcast_ref::<Column>() else { return false };
    let at = column.index();
    if let Some(scan) = input.downcast_ref::<ChunkScanExec>() {
        let read = scan.leaf().columns.get(at).map(|column| column.name.as_str());
        return read.is_some() && read == scan.leaf().space.as_deref();
    }
    if let Some(projection) = input.downcast_ref::<ProjectionExec>() {
        let below = projection.expr().get(at);
        return below.is_some_and(|below| is_space(&below.expr, projection.input()));
    }
    if let Some(filter) = input.downcast_ref::<FilterExec>() {
        let at = match filter.projection() {
            Some(kept) => kept.get(at).copied(),
            None => Some(at),
        };
        let below = at.map(|at| Arc::new(Column::new("", at)) as Arc<dyn PhysicalExpr>);
        return below.is_some_and(|below| is_space(&below, filter.input()));
    }
    false
}
