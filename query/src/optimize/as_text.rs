//! Lets casts to text write values as PostgreSQL does, where arrow's cast writes them otherwise.

use arrow::datatypes::DataType;
use datafusion::{
    common::{
        DFSchema,
        config::ConfigOptions,
        tree_node::{Transformed, TransformedResult, TreeNode},
    },
    error::Result,
    logical_expr::{Cast, Expr, ExprSchemable, LogicalPlan, TryCast, expr_rewriter::NamePreserver},
    optimizer::AnalyzerRule,
};

use super::literals::input_schema;
use crate::functions::{differs_as_text, to_text};

/// The rule. It follows type coercion, whose casts for `||` and the like are to text, too.
#[derive(Debug)]
pub(super) struct WriteAsText;

impl AnalyzerRule for WriteAsText {
    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|plan| {
            let schema = input_schema(&plan)?;
            let names = NamePreserver::new(&plan);
            plan.map_expressions(|expr| {
                let name = names.save(&expr);
                let written = expr.transform_up(|expr| write(expr, &schema))?;
                Ok(written.update_data(|expr| name.restore(expr)))
            })
        })
        .data()
    }

    fn name(&self) -> &str {
        "write_as_text"
    }
}

fn write(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let (Expr::Cast(Cast { expr: inner, field }) | Expr::TryCast(TryCast { expr: inner, field })) =
        &expr
    else {
        return Ok(Transformed::no(expr));
    };
    let target = field.data_type();
    let text = matches!(target, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    if !text || !differs_as_text(&inner.get_type(schema)?) {
        return Ok(Transformed::no(expr));
    }
    let written = to_text().call(vec![inner.as_ref().clone()]);
    Ok(Transformed::yes(written.cast_to(target, schema)?))
}
