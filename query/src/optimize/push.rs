//! Enlarges fragments, from the scans upwards, by every operator that commutes with bringing rows together.

use std::sync::Arc;

use datafusion::{
    common::{
        config::ConfigOptions,
        tree_node::{Transformed, TransformedResult, TreeNode},
    },
    error::Result,
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{
        ExecutionPlan, ExecutionPlanProperties, Partitioning,
        coalesce_partitions::CoalescePartitionsExec, repartition::RepartitionExec,
        sorts::sort_preserving_merge::SortPreservingMergeExec,
    },
};

use super::{aggregate, order, rows};
use crate::exec::RemoteFragmentExec;

/// What one step gives for a node: the plan that replaces it, or nothing when it does not apply.
type Step = fn(&Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>>;

/// The steps, tried in this order at every node. At most one applies to a node, so that the order is only that of
/// reading: what works on rows, on groups, on all that a node has.
const STEPS: [Step; 3] = [rows::push, aggregate::push, order::push];

/// The rule. A node whose input is a fragment moves into it when a step says so; what stays at the access node ends
/// the fragment, because its parent has no fragment below it any more.
#[derive(Debug)]
pub(super) struct PushWork;

impl PhysicalOptimizerRule for PushWork {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            for step in STEPS {
                if let Some(pushed) = step(&node)? {
                    return Ok(Transformed::yes(pushed));
                }
            }
            Ok(Transformed::no(node))
        })
        .data()
    }

    fn name(&self) -> &str {
        "push_work_to_data_nodes"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The fragment that feeds a node, seen through a repartitioning that only spreads rows over cores here.
pub(super) fn fragment_below(input: &Arc<dyn ExecutionPlan>) -> Option<&RemoteFragmentExec> {
    if let Some(repartition) = input.downcast_ref::<RepartitionExec>()
        && matches!(repartition.partitioning(), Partitioning::RoundRobinBatch(_))
        && !repartition.preserve_order()
    {
        return fragment_below(repartition.input());
    }
    input.downcast_ref::<RemoteFragmentExec>().filter(|fragment| fragment.grows())
}

/// Whether all rows of a fragment come from one node, so that anything may run there.
pub(super) fn on_one_node(fragment: &RemoteFragmentExec) -> bool {
    fragment.fragments().len() == 1
}

/// All partitions of a node's part of a fragment as one, in their order if they have one.
pub(super) fn gathered(inner: &Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    if inner.output_partitioning().partition_count() == 1 {
        return Arc::clone(inner);
    }
    match inner.output_ordering() {
        Some(order) => Arc::new(SortPreservingMergeExec::new(order.clone(), Arc::clone(inner))),
        None => Arc::new(CoalescePartitionsExec::new(Arc::clone(inner))),
    }
}
