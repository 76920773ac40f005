//! Filters and projections: they look at one row, so that it does not matter where.
//!
//! Volatile functions stay: `random()` would be drawn on other nodes, and again after a failover. So does what has its
//! value from elsewhere in the plan, such as a scalar subquery, or from the catalog: it is not known where the fragment
//! runs.

use std::sync::Arc;

use datafusion::{
    common::tree_node::{TreeNode, TreeNodeRecursion},
    error::Result,
    physical_expr::{
        ScalarFunctionExpr, expressions::DynamicFilterPhysicalExpr,
        scalar_subquery::ScalarSubqueryExpr,
    },
    physical_expr_common::physical_expr::is_volatile,
    physical_plan::{
        ExecutionPlan, ReplaceChildrenOptions, execution_plan::ChildrenPropertiesMode,
        filter::FilterExec, projection::ProjectionExec,
    },
};

use super::{exact, push::fragment_below};
use crate::exec::{ChunkScanExec, Spread};

/// Moves a filter or a projection into the fragment below it.
pub(super) fn push(node: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let Some(input) = input_of(node) else { return Ok(None) };
    let Some(fragment) = fragment_below(input) else { return Ok(None) };
    if !can_travel(node)? {
        return Ok(None);
    }
    if let Some(filter) = node.downcast_ref::<FilterExec>()
        && let Some(scan) = fragment.inner().downcast_ref::<ChunkScanExec>()
        && let Some(inner) = exact::absorb(filter, scan)?
    {
        return Ok(Some(Arc::new(fragment.with_inner(inner, Spread::Any))));
    }
    let inner = with_input(node, Arc::clone(fragment.inner()))?;
    Ok(Some(Arc::new(fragment.with_inner(inner, Spread::Any))))
}

fn input_of(node: &Arc<dyn ExecutionPlan>) -> Option<&Arc<dyn ExecutionPlan>> {
    if let Some(filter) = node.downcast_ref::<FilterExec>() {
        // A filter that stops after some rows gives as many on every node.
        return filter.fetch().is_none().then(|| filter.input());
    }
    node.downcast_ref::<ProjectionExec>().map(ProjectionExec::input)
}

/// Whether every expression of the operator itself means the same on a data node.
pub(super) fn can_travel(node: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    let mut travels = true;
    node.apply_expressions(&mut |root| {
        travels &= !is_volatile(root);
        root.apply(|part| {
            let function = part.downcast_ref::<ScalarFunctionExpr>().map(ScalarFunctionExpr::fun);
            let bound = function.is_some_and(crate::pg_catalog::reads_catalog)
                || part.downcast_ref::<ScalarSubqueryExpr>().is_some()
                || part.downcast_ref::<DynamicFilterPhysicalExpr>().is_some();
            travels &= !bound;
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(travels)
}

/// The operator over another input.
pub(super) fn with_input(
    node: &Arc<dyn ExecutionPlan>,
    input: Arc<dyn ExecutionPlan>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
    Arc::clone(node).replace_children(vec![input], options)
}
