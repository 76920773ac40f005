//! Sorts and limits: every node sorts its rows and gives no more than the statement can use; the access node merges
//! and cuts once more. With one node there is nothing to merge, and all of it moves.

use std::sync::Arc;

use datafusion::{
    error::Result,
    physical_expr_common::physical_expr::is_volatile,
    physical_plan::{
        ExecutionPlan, ExecutionPlanProperties,
        coalesce_partitions::CoalescePartitionsExec,
        limit::{GlobalLimitExec, LocalLimitExec},
        sorts::{sort::SortExec, sort_preserving_merge::SortPreservingMergeExec},
    },
};

use super::{
    push::{fragment_below, gathered, on_one_node},
    useful,
};
use crate::exec::{RemoteFragmentExec, Spread};

/// Moves a sort, a merge, or a limit into the fragment below it, as far as it can.
pub(super) fn push(node: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    if let Some(sort) = node.downcast_ref::<SortExec>() {
        return push_sort(sort);
    }
    if let Some(merge) = node.downcast_ref::<SortPreservingMergeExec>() {
        return fragment_below(merge.input())
            .filter(|fragment| on_one_node(fragment) && in_order(fragment, merge))
            .map(|fragment| limited(fragment, 0, merge.fetch()))
            .transpose();
    }
    if let Some(gather) = node.downcast_ref::<CoalescePartitionsExec>() {
        let Some(fragment) = fragment_below(gather.input()) else { return Ok(None) };
        if on_one_node(fragment) {
            return limited(fragment, 0, gather.fetch()).map(Some);
        }
        let Some(fetch) = gather.fetch().filter(|fetch| !cut_already(fragment, *fetch)) else {
            return Ok(None);
        };
        let below = limited(fragment, 0, Some(fetch))?;
        return Ok(Some(Arc::new(CoalescePartitionsExec::new(below).with_fetch(Some(fetch)))));
    }
    if let Some(limit) = node.downcast_ref::<GlobalLimitExec>() {
        return fragment_below(limit.input())
            .filter(|fragment| on_one_node(fragment))
            .map(|fragment| limited(fragment, limit.skip(), limit.fetch()))
            .transpose();
    }
    if let Some(limit) = node.downcast_ref::<LocalLimitExec>() {
        let fragment = fragment_below(limit.input());
        return fragment.map(|fragment| limited(fragment, 0, Some(limit.fetch()))).transpose();
    }
    Ok(None)
}

/// Sorts on the nodes; the access node merges their runs.
fn push_sort(sort: &SortExec) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let input = match sort.input().downcast_ref::<CoalescePartitionsExec>() {
        Some(gather) if gather.fetch().is_none() => gather.input(),
        _ => sort.input(),
    };
    let Some(fragment) = fragment_below(input) else { return Ok(None) };
    // Not by `can_travel`: a sort with a limit owns a dynamic filter, which the one on the node makes anew.
    if sort.expr().iter().any(|by| is_volatile(&by.expr)) {
        return Ok(None);
    }
    let parts = fragment.inner().output_partitioning().partition_count();
    let input = match fragment.summaries() && sort.fetch().is_some() {
        true => useful::ordered(fragment.inner(), sort.expr())?,
        false => Arc::clone(fragment.inner()),
    };
    let sorted: Arc<dyn ExecutionPlan> = Arc::new(
        SortExec::new(sort.expr().clone(), input)
            .with_fetch(sort.fetch())
            .with_preserve_partitioning(parts > 1),
    );
    let inner: Arc<dyn ExecutionPlan> = if parts > 1 {
        let merged = SortPreservingMergeExec::new(sort.expr().clone(), sorted);
        Arc::new(merged.with_fetch(sort.fetch()))
    } else {
        sorted
    };
    let spread = if on_one_node(fragment) { Spread::OneNode } else { Spread::Any };
    let pushed: Arc<dyn ExecutionPlan> = Arc::new(fragment.with_inner(inner, spread));
    if sort.preserve_partitioning() || on_one_node(fragment) {
        return Ok(Some(pushed));
    }
    let merged = SortPreservingMergeExec::new(sort.expr().clone(), pushed);
    Ok(Some(Arc::new(merged.with_fetch(sort.fetch()))))
}

/// Whether the one node gives its rows in the order that a merge keeps.
fn in_order(fragment: &RemoteFragmentExec, merge: &SortPreservingMergeExec) -> bool {
    let properties = ExecutionPlan::properties(fragment);
    properties.eq_properties.ordering_satisfy(merge.expr().clone()).unwrap_or(false)
}

/// The fragment cut on every node, in its order.
///
/// A fragment on one node must stay there: cut at two places it would give too many rows.
fn limited(
    fragment: &RemoteFragmentExec,
    skip: usize,
    fetch: Option<usize>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let inner = match fetch {
        Some(fetch) if fragment.summaries() => {
            useful::bounded(fragment.inner(), skip.saturating_add(fetch))?
        }
        _ => Arc::clone(fragment.inner()),
    };
    let whole = gathered(&inner);
    let inner: Arc<dyn ExecutionPlan> = match (skip, fetch) {
        (0, None) => whole,
        (0, Some(fetch)) if cut_already(fragment, fetch) => whole,
        _ => Arc::new(GlobalLimitExec::new(whole, skip, fetch)),
    };
    let spread = if on_one_node(fragment) { Spread::OneNode } else { Spread::Any };
    Ok(Arc::new(fragment.with_inner(inner, spread)))
}

/// Whether every node gives at most so many rows anyway.
fn cut_already(fragment: &RemoteFragmentExec, fetch: usize) -> bool {
    let inner = fragment.inner();
    let single = inner.output_partitioning().partition_count() == 1;
    single && inner.fetch().is_some_and(|known| known <= fetch)
}
