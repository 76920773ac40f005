//! Intervals times and over numbers, which DataFusion's `*` and `/` do not know: `i * INTERVAL '10 seconds'`.
//!
//! As in PostgreSQL's `interval_mul`, fractions of a month go on as days of a month of 30, fractions of a day as hours
//! of a day of 24, and what is left is rounded to microseconds.

use std::sync::Arc;

use datafusion::{
    arrow::{
        array::{Array, ArrayRef, AsArray, IntervalMonthDayNanoArray},
        compute::cast,
        datatypes::{
            DataType, Float64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit,
        },
    },
    common::{DFSchema, exec_err},
    error::{DataFusionError, Result},
    logical_expr::{
        ColumnarValue, Expr, ExprSchemable, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
        Signature, Volatility,
        planner::{ExprPlanner, PlannerResult, RawBinaryExpr},
        sqlparser::ast::BinaryOperator,
    },
};

const DAYS_PER_MONTH: f64 = 30.0;
const MICROS_PER_DAY: f64 = 86_400e6;
const NANOS_PER_MICRO: i64 = 1000;
const INTERVAL: DataType = DataType::Interval(IntervalUnit::MonthDayNano);

/// What a number does to an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scale {
    /// Makes it so many times as long.
    Times,
    /// Divides it.
    Over,
}

/// An interval times or over a number.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct ScaleInterval {
    scale: Scale,
    signature: Signature,
}

impl ScaleInterval {
    /// The function; its arguments are the interval and a double.
    pub(super) fn new(scale: Scale) -> Self {
        let arguments = vec![INTERVAL, DataType::Float64];
        Self { scale, signature: Signature::exact(arguments, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for ScaleInterval {
    fn name(&self) -> &str {
        match self.scale {
            Scale::Times => "interval_mul",
            Scale::Over => "interval_div",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(INTERVAL)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let [intervals, numbers] = arrays.as_slice() else {
            return exec_err!("{} takes an interval and a number", self.name());
        };
        let intervals = cast(intervals, &INTERVAL)?;
        let intervals = intervals.as_primitive::<IntervalMonthDayNanoType>();
        let numbers = numbers.as_primitive::<Float64Type>();
        let scaled = intervals.iter().zip(numbers.iter()).map(|(interval, number)| {
            let (Some(interval), Some(number)) = (interval, number) else { return Ok(None) };
            scaled(interval, number, self.scale).map(Some)
        });
        let scaled: IntervalMonthDayNanoArray = scaled.collect::<Result<_>>()?;
        let scaled: ArrayRef = Arc::new(scaled);
        let alone = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        match alone && scaled.len() == 1 {
            true => Ok(ColumnarValue::Scalar(datafusion::common::ScalarValue::try_from_array(
                &scaled, 0,
            )?)),
            false => Ok(ColumnarValue::Array(scaled)),
        }
    }
}

/// One interval times or over a number.
fn scaled(
    interval: IntervalMonthDayNano,
    number: f64,
    scale: Scale,
) -> Result<IntervalMonthDayNano> {
    if scale == Scale::Over && number == 0.0 {
        return exec_err!("division by zero");
    }
    let of = |part: f64| match scale {
        Scale::Times => part * number,
        Scale::Over => part / number,
    };
    let months = of(interval.months.into());
    let days = of(interval.days.into());
    let micros = of((interval.nanoseconds / NANOS_PER_MICRO) as f64);
    // Rounded as seconds are, so that the third of a month is ten days and not a little less.
    let month_days = ((months.fract() * DAYS_PER_MONTH) * 1e6).round() / 1e6;
    let day_micros = ((days.fract() + month_days.fract()) * MICROS_PER_DAY).round();
    let whole_days = days.trunc() + month_days.trunc() + (day_micros / MICROS_PER_DAY).trunc();
    let micros = (micros + day_micros % MICROS_PER_DAY).round();
    let range = || DataFusionError::Execution("interval out of range".to_owned());
    let whole = |value: f64| -> Result<i32> {
        let fits = (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&value);
        if fits { Ok(value as i32) } else { Err(range()) }
    };
    let limit = (i64::MAX / NANOS_PER_MICRO) as f64;
    // Not a number is in no range.
    if !(-limit..=limit).contains(&micros) {
        return Err(range());
    }
    Ok(IntervalMonthDayNano {
        months: whole(months.trunc())?,
        days: whole(whole_days)?,
        nanoseconds: micros as i64 * NANOS_PER_MICRO,
    })
}

/// Plans `*` and `/` of an interval and a number as calls of the functions.
#[derive(Debug)]
pub(super) struct IntervalArithmetic {
    times: Arc<ScalarUDF>,
    over: Arc<ScalarUDF>,
}

impl IntervalArithmetic {
    /// A planner.
    pub(super) fn new() -> Self {
        let function = |scale| Arc::new(ScalarUDF::from(ScaleInterval::new(scale)));
        Self { times: function(Scale::Times), over: function(Scale::Over) }
    }
}

impl ExprPlanner for IntervalArithmetic {
    fn plan_binary_op(
        &self,
        expr: RawBinaryExpr,
        schema: &DFSchema,
    ) -> Result<PlannerResult<RawBinaryExpr>> {
        let function = match expr.op {
            BinaryOperator::Multiply => &self.times,
            BinaryOperator::Divide => &self.over,
            _ => return Ok(PlannerResult::Original(expr)),
        };
        // A parameter has no type yet, and an expression that has none fails elsewhere with the better message.
        let types = (expr.left.get_type(schema), expr.right.get_type(schema));
        let (Ok(left), Ok(right)) = types else { return Ok(PlannerResult::Original(expr)) };
        let is_interval = |kind: &DataType| matches!(kind, DataType::Interval(_));
        let RawBinaryExpr { op, left: one, right: other } = expr;
        let (interval, number) = match (is_interval(&left), is_interval(&right)) {
            (true, false) if right.is_numeric() => (one, other),
            (false, true) if left.is_numeric() && op == BinaryOperator::Multiply => (other, one),
            _ => {
                return Ok(PlannerResult::Original(RawBinaryExpr { op, left: one, right: other }));
            }
        };
        let interval = interval.cast_to(&INTERVAL, schema)?;
        let number = number.cast_to(&DataType::Float64, schema)?;
        let call = Expr::ScalarFunction(datafusion::logical_expr::expr::ScalarFunction::new_udf(
            Arc::clone(function),
            vec![interval, number],
        ));
        Ok(PlannerResult::Planned(call))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(months: i32, days: i32, micros: i64) -> IntervalMonthDayNano {
        IntervalMonthDayNano { months, days, nanoseconds: micros * NANOS_PER_MICRO }
    }

    /// The answers are PostgreSQL's.
    #[test]
    fn fractions_go_on_to_smaller_units() {
        let hour = 3_600_000_000;
        for (from, number, scale, wanted) in [
            (interval(0, 0, 10_000_000), 7.0, Scale::Times, interval(0, 0, 70_000_000)),
            (interval(1, 0, 0), 1.5, Scale::Times, interval(1, 15, 0)),
            (interval(0, 1, 0), 0.5, Scale::Times, interval(0, 0, 12 * hour)),
            (interval(1, 0, 0), 3.0, Scale::Over, interval(0, 10, 0)),
            (interval(0, 1, 0), -1.5, Scale::Times, interval(0, -1, -12 * hour)),
            (interval(0, 0, 1), 2.0, Scale::Over, interval(0, 0, 1)),
            (interval(12, 0, hour), 0.0, Scale::Times, interval(0, 0, 0)),
        ] {
            assert_eq!(scaled(from, number, scale).expect("it fits"), wanted, "{from:?} {number}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (number, scale) in [
            (1e12, Scale::Times),
            (f64::NAN, Scale::Times),
            (f64::INFINITY, Scale::Times),
            (0.0, Scale::Over),
        ] {
            scaled(interval(1, 1, 1), number, scale).expect_err("it does not fit");
        }
    }
}
