//! Lets functions and casts that look at the clock see the session's, as PostgreSQL does for `timestamptz`.
//!
//! Columns are kept in UTC, and DataFusion computes in the zone of the type. The rule brings a value into the session's
//! zone before such a function and its result back after it, so that types stay what they were. The zone becomes a part
//! of the plan and travels with it.

use datafusion::{
    arrow::datatypes::{DataType, TimeUnit},
    common::{
        DFSchema,
        config::ConfigOptions,
        tree_node::{Transformed, TransformedResult, TreeNode},
    },
    error::Result,
    functions::datetime,
    logical_expr::{Cast, Expr, ExprSchemable, LogicalPlan, expr_rewriter::NamePreserver},
    optimizer::AnalyzerRule,
};
use hypertide_proto::schema::UTC;

use super::literals::input_schema;
use crate::{context::session_zone, sql::zone::Zone};

/// Functions whose second argument is a time that they take apart.
const CLOCK_FUNCTIONS: [&str; 2] = ["date_trunc", "date_part"];

/// The rule.
#[derive(Debug)]
pub(super) struct SeeLocalTime;

impl AnalyzerRule for SeeLocalTime {
    fn analyze(&self, plan: LogicalPlan, config: &ConfigOptions) -> Result<LogicalPlan> {
        if session_zone(config) == Zone::UTC {
            return Ok(plan);
        }
        let Some(zone) = config.execution.time_zone.clone() else { return Ok(plan) };
        let local = DataType::Timestamp(TimeUnit::Microsecond, Some(zone.into()));
        plan.transform_up_with_subqueries(|plan| {
            let schema = input_schema(&plan)?;
            let names = NamePreserver::new(&plan);
            plan.map_expressions(|expr| {
                let name = names.save(&expr);
                let seen = expr.transform_up(|expr| see(expr, &schema, &local))?;
                Ok(seen.update_data(|expr| name.restore(expr)))
            })
        })
        .data()
    }

    fn name(&self) -> &str {
        "see_local_time"
    }
}

fn see(expr: Expr, schema: &DFSchema, local: &DataType) -> Result<Transformed<Expr>> {
    let type_of = |expr: &Expr| expr.get_type(schema);
    match expr {
        Expr::ScalarFunction(mut call) if CLOCK_FUNCTIONS.contains(&call.func.name()) => {
            let time = match call.args.get_mut(1) {
                Some(time) if is_instant(&type_of(time)?) => time,
                _ => return Ok(Transformed::no(Expr::ScalarFunction(call))),
            };
            *time = cast(std::mem::take(time), local);
            let seen = Expr::ScalarFunction(call);
            let instant = is_instant_in(&type_of(&seen)?, local);
            Ok(Transformed::yes(if instant { cast(seen, &utc()) } else { seen }))
        }
        Expr::Cast(Cast { expr: inner, field }) => {
            let (from, to) = (type_of(&inner)?, field.data_type().clone());
            let seen = match (&from, &to) {
                (from, DataType::Date32) if is_instant(from) => {
                    cast(local_clock(*inner, local), &to)
                }
                (from, DataType::Timestamp(_, None)) if is_instant(from) => {
                    cast(local_clock(*inner, local), &to)
                }
                (DataType::Timestamp(_, None) | DataType::Date32, to) if is_instant(to) => {
                    let clock = DataType::Timestamp(TimeUnit::Microsecond, None);
                    cast(cast(cast(*inner, &clock), local), to)
                }
                _ => return Ok(Transformed::no(Expr::Cast(Cast { expr: inner, field }))),
            };
            Ok(Transformed::yes(seen))
        }
        other => Ok(Transformed::no(other)),
    }
}

fn utc() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into()))
}

/// Whether values are points of time, kept in UTC.
fn is_instant(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Timestamp(_, Some(zone)) if zone.as_ref() == UTC)
}

fn is_instant_in(data_type: &DataType, local: &DataType) -> bool {
    match (data_type, local) {
        (DataType::Timestamp(_, a), DataType::Timestamp(_, b)) => a == b,
        _ => false,
    }
}

fn cast(expr: Expr, data_type: &DataType) -> Expr {
    Expr::Cast(Cast::new(Box::new(expr), data_type.clone()))
}

/// What the session's clock shows at a point of time.
fn local_clock(instant: Expr, local: &DataType) -> Expr {
    datetime::expr_fn::to_local_time(vec![cast(instant, local)])
}
