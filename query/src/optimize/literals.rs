//! Reads dates and times in text constants as PostgreSQL does, in the session's time zone.
//!
//! Arrow's cast knows fewer forms (`2020-01-01 12:00` is not one of them) and reads a time without a zone as UTC.

use std::sync::Arc;

use datafusion::{
    arrow::datatypes::{DataType, TimeUnit},
    common::{
        DFSchema, ScalarValue,
        config::ConfigOptions,
        tree_node::{Transformed, TransformedResult, TreeNode},
    },
    error::Result,
    logical_expr::{
        Between, Cast, Expr, ExprSchemable, LogicalPlan, expr::InList,
        expr_rewriter::NamePreserver, utils::merge_schema,
    },
    optimizer::AnalyzerRule,
};

use crate::{
    Error,
    context::session_zone,
    sql::{
        datetime::{Fault, parse_date, parse_timestamp, parse_timestamptz},
        zone::Zone,
    },
};

/// The rule. It follows type coercion, which brings constants to the types they are compared with.
#[derive(Debug)]
pub(super) struct ReadLiterals;

impl AnalyzerRule for ReadLiterals {
    fn analyze(&self, plan: LogicalPlan, config: &ConfigOptions) -> Result<LogicalPlan> {
        let zone = session_zone(config);
        plan.transform_up_with_subqueries(|plan| {
            let schema = input_schema(&plan)?;
            let names = NamePreserver::new(&plan);
            plan.map_expressions(|expr| {
                let name = names.save(&expr);
                let read = expr.transform_up(|expr| {
                    read(expr, zone)?.transform_data(|expr| compare_micros(expr, &schema))
                })?;
                Ok(read.update_data(|expr| name.restore(expr)))
            })
        })
        .data()
    }

    fn name(&self) -> &str {
        "read_literals"
    }
}

/// The columns that a plan's expressions may name.
pub(super) fn input_schema(plan: &LogicalPlan) -> Result<DFSchema> {
    let mut schema = merge_schema(&plan.inputs());
    if let LogicalPlan::TableScan(scan) = plan {
        let own = scan.source.schema();
        schema.merge(&DFSchema::try_from_qualified_schema(scan.table_name.clone(), &own)?);
    }
    Ok(schema)
}

/// Compares times as microseconds where type coercion would have all sides as nanoseconds, which end in 2262.
fn compare_micros(mut expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    if !all_widened(sides(&mut expr), schema)? {
        return Ok(Transformed::no(expr));
    }
    for side in sides(&mut expr) {
        if let Expr::Cast(cast) = std::mem::take(side) {
            *side = *cast.expr;
        }
    }
    Ok(Transformed::yes(expr))
}

/// What a comparison compares; nothing for other expressions.
fn sides(expr: &mut Expr) -> Vec<&mut Expr> {
    match expr {
        Expr::BinaryExpr(both) => vec![both.left.as_mut(), both.right.as_mut()],
        Expr::Between(Between { expr, low, high, .. }) => {
            vec![expr.as_mut(), low.as_mut(), high.as_mut()]
        }
        Expr::InList(InList { expr, list, .. }) => {
            std::iter::once(expr.as_mut()).chain(list.iter_mut()).collect()
        }
        _ => Vec::new(),
    }
}

/// Whether all of them are casts to nanoseconds of one type of microseconds.
fn all_widened(sides: Vec<&mut Expr>, schema: &DFSchema) -> Result<bool> {
    let mut widened: Option<DataType> = None;
    for side in sides {
        let Expr::Cast(cast) = side else { return Ok(false) };
        let nanos = matches!(cast.field.data_type(), DataType::Timestamp(TimeUnit::Nanosecond, _));
        let inner = cast.expr.get_type(schema)?;
        let micros = matches!(inner, DataType::Timestamp(TimeUnit::Microsecond, _));
        if !nanos || !micros || widened.as_ref().is_some_and(|known| *known != inner) {
            return Ok(false);
        }
        widened = Some(inner);
    }
    Ok(widened.is_some())
}

fn read(expr: Expr, zone: Zone) -> Result<Transformed<Expr>> {
    let Expr::Cast(cast) = &expr else { return Ok(Transformed::no(expr)) };
    let Expr::Literal(ScalarValue::Utf8(Some(text)), _) = cast.expr.as_ref() else {
        return Ok(Transformed::no(expr));
    };
    let value = match cast.field.data_type() {
        DataType::Timestamp(_, Some(utc)) => parse_timestamptz(text, zone)
            .map(|micros| ScalarValue::TimestampMicrosecond(Some(micros), Some(Arc::clone(utc)))),
        DataType::Timestamp(_, None) => parse_timestamp(text, zone)
            .map(|micros| ScalarValue::TimestampMicrosecond(Some(micros), None)),
        DataType::Date32 => parse_date(text, zone).map(|days| ScalarValue::Date32(Some(days))),
        _ => return Ok(Transformed::no(expr)),
    };
    let value = value.map_err(|fault| refusal(fault, text, cast.field.data_type()))?;
    let same = value.data_type() == *cast.field.data_type();
    let value = Expr::Literal(value, None);
    Ok(Transformed::yes(match same {
        true => value,
        // What it is compared with has another unit.
        false => Expr::Cast(Cast::new_from_field(Box::new(value), Arc::clone(&cast.field))),
    }))
}

fn refusal(fault: Fault, text: &str, data_type: &DataType) -> Error {
    let name = match data_type {
        DataType::Timestamp(_, Some(_)) => "timestamp with time zone",
        DataType::Timestamp(_, None) => "timestamp",
        _ => "date",
    };
    match fault {
        Fault::Syntax => {
            Error::of("22007", format_args!("invalid input syntax for type {name}: \"{text}\""))
        }
        Fault::Range => {
            Error::of("22008", format_args!("date/time field value out of range: \"{text}\""))
        }
        Fault::Zone => Error::of("22023", format_args!("time zone in \"{text}\" not recognized")),
    }
}
