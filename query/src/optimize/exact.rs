//! Filters that the scan tests by itself, on the columns as they are stored: no filter above it tests them again.
//!
//! What the scan can test is a conjunction of comparisons of a column with constants of its own type. What is left of a
//! filter stays above the scan.

use std::{collections::BTreeSet, sync::Arc};

use datafusion::{
    common::ScalarValue,
    error::Result,
    logical_expr::Operator,
    physical_expr::{
        PhysicalExpr, conjunction,
        expressions::{
            BinaryExpr, Column, InListExpr, IsNotNullExpr, IsNullExpr, Literal, NotExpr,
        },
        split_conjunction,
    },
    physical_plan::{
        ExecutionPlan,
        filter::{FilterExec, FilterExecBuilder},
    },
};
use hypertide_proto::{
    predicate::{Term, Test, Value},
    schema::{self, ColumnType},
};

use crate::{
    exec::{ChunkScanExec, ScanLeaf},
    scalar::value_of,
};

/// The filter over the scan with as much of it in the scan as goes; nothing when none does.
pub(super) fn absorb(
    filter: &FilterExec,
    scan: &ChunkScanExec,
) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let leaf = scan.leaf();
    let (mut terms, mut rest) = (Vec::new(), Vec::new());
    for part in split_conjunction(filter.predicate()) {
        match term_of(part, &leaf.columns) {
            Some(term) => terms.push(term),
            None => rest.push(Arc::clone(part)),
        }
    }
    if terms.is_empty() || leaf.rows_only {
        return Ok(None);
    }
    let tested: BTreeSet<&str> = terms.iter().map(|term| term.column.as_str()).collect();
    let tested = leaf.columns.iter().filter(|column| tested.contains(column.name.as_str()));
    let mut leaf = ScanLeaf { tested: tested.cloned().collect(), ..leaf.clone() };
    let pruning = std::mem::take(&mut leaf.predicate.terms);
    leaf.predicate.terms = terms;
    for term in pruning {
        if !leaf.predicate.terms.contains(&term) {
            leaf.predicate.terms.push(term);
        }
    }
    let projection = filter.projection().as_ref().map(|kept| kept.to_vec());
    if rest.is_empty() {
        return Ok(Some(Arc::new(scan.with_leaf(projected(leaf, projection.as_deref())))));
    }
    let rest = FilterExecBuilder::new(conjunction(rest), Arc::new(scan.with_leaf(leaf)));
    Ok(Some(Arc::new(rest.apply_projection(projection)?.build()?)))
}

/// The scan of only these of its columns.
fn projected(mut leaf: ScanLeaf, kept: Option<&[usize]>) -> ScanLeaf {
    let Some(kept) = kept else { return leaf };
    if kept.is_empty() {
        leaf.rows_only = true;
        leaf.columns.truncate(1);
        return leaf;
    }
    leaf.columns = kept.iter().filter_map(|at| leaf.columns.get(*at)).cloned().collect();
    leaf
}

/// The part of a conjunction as a term, when both say the same of every row.
fn term_of(expr: &Arc<dyn PhysicalExpr>, columns: &[schema::Column]) -> Option<Term> {
    if let Some(binary) = expr.downcast_ref::<BinaryExpr>() {
        return match binary.op() {
            Operator::Or => either(binary, columns),
            op => comparison(binary.left(), *op, binary.right(), columns),
        };
    }
    if let Some(list) = expr.downcast_ref::<InListExpr>() {
        let column = column_of(list.expr(), columns).filter(|_| !list.negated())?;
        // A comparison with NULL lets no row pass.
        let values = list.list().iter().map(|value| match literal(value)? {
            value if value.is_null() => Some(None),
            value => constant(column, value).map(Some),
        });
        let values: Vec<Option<Value>> = values.collect::<Option<_>>()?;
        return Some(term(column, Test::In(values.into_iter().flatten().collect())));
    }
    if let Some(test) = expr.downcast_ref::<IsNullExpr>() {
        return column_of(test.arg(), columns).map(|column| term(column, Test::IsNull));
    }
    if let Some(test) = expr.downcast_ref::<IsNotNullExpr>() {
        return column_of(test.arg(), columns).map(|column| term(column, Test::IsNotNull));
    }
    let (column, value) = match expr.downcast_ref::<NotExpr>() {
        Some(not) => (column_of(not.arg(), columns)?, false),
        None => (column_of(expr, columns)?, true),
    };
    let test = Test::In(vec![Value::Bool(value)]);
    (column.column_type == ColumnType::Boolean).then(|| term(column, test))
}

/// `a = 1 OR a = 2`, which is how short lists arrive.
fn either(binary: &BinaryExpr, columns: &[schema::Column]) -> Option<Term> {
    let (one, other) = (term_of(binary.left(), columns)?, term_of(binary.right(), columns)?);
    match (one.test, other.test) {
        (Test::In(mut values), Test::In(more)) if one.column == other.column => {
            values.extend(more);
            Some(Term { column: one.column, test: Test::In(values) })
        }
        _ => None,
    }
}

fn comparison(
    left: &Arc<dyn PhysicalExpr>,
    op: Operator,
    right: &Arc<dyn PhysicalExpr>,
    columns: &[schema::Column],
) -> Option<Term> {
    let (expr, op, value) = match (literal(left), literal(right)) {
        (None, Some(value)) => (left, op, value),
        (Some(value), None) => (right, op.swap()?, value),
        _ => return None,
    };
    let column = column_of(expr, columns)?;
    let value = constant(column, value)?;
    let test = match op {
        Operator::Lt => Test::Lt(value),
        Operator::LtEq => Test::LtEq(value),
        Operator::Gt => Test::Gt(value),
        Operator::GtEq => Test::GtEq(value),
        Operator::Eq => Test::In(vec![value]),
        _ => return None,
    };
    Some(term(column, test))
}

fn term(column: &schema::Column, test: Test) -> Term {
    Term { column: column.name.clone(), test }
}

fn literal(expr: &Arc<dyn PhysicalExpr>) -> Option<&ScalarValue> {
    expr.downcast_ref::<Literal>().map(Literal::value)
}

fn column_of<'a>(
    expr: &Arc<dyn PhysicalExpr>,
    columns: &'a [schema::Column],
) -> Option<&'a schema::Column> {
    columns.get(expr.downcast_ref::<Column>()?.index())
}

/// A constant of the column's own type. Zero is none among floats: Arrow tells -0 from 0, the store does not.
fn constant(column: &schema::Column, value: &ScalarValue) -> Option<Value> {
    if value.data_type() != column.column_type.to_arrow() {
        return None;
    }
    value_of(value).filter(|value| !matches!(value, Value::Float(float) if *float == 0.0))
}
