//! Lets a data node find groups by ids of texts rather than by the texts themselves.
//!
//! It runs on the data node, because only there it is known about how many different texts the chunks hold: the ids of
//! all of them stay in memory until the fragment is done.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use datafusion::{
    arrow::datatypes::DataType,
    common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion},
    error::Result,
    physical_expr::{PhysicalExpr, expressions::Column},
    physical_plan::{
        ExecutionPlan,
        aggregates::{AggregateExec, AggregateMode},
        filter::FilterExec,
        projection::ProjectionExec,
    },
};

use super::useful::{column_below, scan_below, with_scan};
use crate::exec::{ScanLeaf, TextsExec};

/// The plan with groups by ids, of the columns (by position in the scan) that have `few` different texts.
pub(crate) fn group_by_ids(
    plan: Arc<dyn ExecutionPlan>,
    few: &dyn Fn(&ScanLeaf, usize) -> bool,
) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        Ok(match node.downcast_ref::<AggregateExec>() {
            Some(aggregate) => match by_ids(aggregate, few)? {
                Some(by_ids) => Transformed::yes(by_ids),
                None => Transformed::no(node),
            },
            None => Transformed::no(node),
        })
    })
    .data()
}

fn by_ids(
    aggregate: &AggregateExec,
    few: &dyn Fn(&ScanLeaf, usize) -> bool,
) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    use AggregateMode::{Partial, Single, SinglePartitioned};
    let groups = aggregate.group_expr();
    if !matches!(aggregate.mode(), Partial | Single | SinglePartitioned)
        || groups.has_grouping_set()
    {
        return Ok(None);
    }
    let input = aggregate.input();
    let Some(leaf) = scan_below(input, true).map(|scan| scan.leaf()) else { return Ok(None) };
    if leaf.latest.is_some() || leaf.chunks.is_empty() {
        return Ok(None);
    }
    let looked_at = looked_at(aggregate)?;
    let columns: BTreeMap<usize, usize> = groups
        .expr()
        .iter()
        .enumerate()
        .filter_map(|(at, (expr, _))| {
            let column = column_below(input, expr)?;
            let texts = column.column_type.to_arrow() == DataType::Utf8;
            let constant = leaf.constants().any(|name| name == column.name);
            let only_grouped = texts && !constant && !looked_at.contains(&column.name);
            let position = leaf.columns.iter().position(|other| other.name == column.name)?;
            (only_grouped && few(leaf, position)).then_some((at, position))
        })
        .collect();
    if columns.is_empty() {
        return Ok(None);
    }
    let ids: BTreeSet<usize> = columns.values().copied().collect();
    let input = with_scan(input, &|leaf| ScanLeaf { ids: ids.clone(), ..leaf.clone() })?;
    let input_schema = input.schema();
    let by_ids = AggregateExec::try_new(
        *aggregate.mode(),
        groups.clone(),
        aggregate.aggr_expr().to_vec(),
        aggregate.filter_expr().to_vec(),
        input,
        input_schema,
    )?
    .with_limit_options(aggregate.limit_options());
    Ok(Some(Arc::new(TextsExec::new(Arc::new(by_ids), columns, aggregate.schema()))))
}

/// Names of the columns of the scan that something other than plain grouping looks at.
fn looked_at(aggregate: &AggregateExec) -> Result<BTreeSet<String>> {
    let input = aggregate.input();
    let mut names = BTreeSet::new();
    for function in aggregate.aggr_expr() {
        let orders = function.order_bys().iter().map(|by| Arc::clone(&by.expr));
        for expr in function.expressions().into_iter().chain(orders) {
            add_columns(input, &expr, &mut names)?;
        }
    }
    for filter in aggregate.filter_expr().iter().flatten() {
        add_columns(input, filter, &mut names)?;
    }
    let groups = aggregate.group_expr().expr().iter().map(|(expr, _)| expr);
    for expr in groups.filter(|expr| !expr.is::<Column>()) {
        add_columns(input, expr, &mut names)?;
    }
    let mut below = input;
    loop {
        if let Some(projection) = below.downcast_ref::<ProjectionExec>() {
            let made = projection.expr().iter().filter(|made| !made.expr.is::<Column>());
            for made in made {
                add_columns(projection.input(), &made.expr, &mut names)?;
            }
            below = projection.input();
        } else if let Some(filter) = below.downcast_ref::<FilterExec>() {
            add_columns(filter.input(), filter.predicate(), &mut names)?;
            below = filter.input();
        } else {
            return Ok(names);
        }
    }
}

fn add_columns(
    input: &Arc<dyn ExecutionPlan>,
    expr: &Arc<dyn PhysicalExpr>,
    names: &mut BTreeSet<String>,
) -> Result<()> {
    expr.apply(|part| {
        names.extend(column_below(input, part).map(|column| column.name.clone()));
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}
