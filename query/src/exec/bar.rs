//! What a sort with a limit has learned of the rows that are still of use to it.

use std::sync::Arc;

use datafusion::{
    error::Result,
    logical_expr::Operator,
    physical_expr::{
        PhysicalExpr,
        expressions::{BinaryExpr, DynamicFilterPhysicalExpr, Literal},
    },
    physical_plan::{ExecutionPlan, sorts::sort::SortExec},
};
use hypertide_proto::predicate::{Term, Test};

use super::leaf::ScanOrder;
use crate::scalar::value_of;

/// The filter of a sort with a limit, which becomes narrower while the sort sees rows. All its partitions share it.
#[derive(Clone, Debug)]
pub(super) struct Bar(Arc<dyn PhysicalExpr>);

impl Bar {
    /// The bar of a sort; `None` for one without a limit.
    pub(super) fn of(sort: &SortExec) -> Option<Self> {
        sort.fetch()?;
        let filter = sort.dynamic_expressions_produced().into_iter().next()?;
        filter.downcast_ref::<DynamicFilterPhysicalExpr>().is_some().then_some(Self(filter))
    }

    /// What rows must pass to be of use, as far as it is about the column that the sort begins with.
    pub(super) fn terms(&self, order: &ScanOrder) -> Result<Vec<Term>> {
        let Some(filter) = self.0.downcast_ref::<DynamicFilterPhysicalExpr>() else {
            return Ok(Vec::new());
        };
        let current = filter.current()?;
        let (found, alone) = (threshold(&current), is_comparison(&current));
        let Some(value) = found.and_then(|literal| value_of(literal.value())) else {
            return Ok(Vec::new());
        };
        // With more columns in the order, equal values may still be of use.
        let test = match (order.descending, alone) {
            (true, true) => Test::Gt(value),
            (true, false) => Test::GtEq(value),
            (false, true) => Test::Lt(value),
            (false, false) => Test::LtEq(value),
        };
        Ok(vec![Term { column: order.column.clone(), test }])
    }
}

/// The constant of the first comparison in `c1 OR (c1 equal AND c2) OR …`, where `c1` may be `IS NULL OR comparison`.
fn threshold(expr: &Arc<dyn PhysicalExpr>) -> Option<&Literal> {
    let binary = expr.downcast_ref::<BinaryExpr>()?;
    match binary.op() {
        Operator::Or => threshold(binary.left()).or_else(|| threshold(binary.right())),
        Operator::Lt | Operator::Gt => binary.right().downcast_ref::<Literal>(),
        _ => None,
    }
}

/// Whether there is but one comparison, so that equal values are of no use.
fn is_comparison(expr: &Arc<dyn PhysicalExpr>) -> bool {
    let binary = expr.downcast_ref::<BinaryExpr>();
    binary.is_some_and(|binary| matches!(binary.op(), Operator::Lt | Operator::Gt))
}
