//! SQL functions of our own, one a file. Access nodes and data nodes register the same.

mod calendar;
mod first_last;
mod interval;
mod now;
mod product;
#[cfg(test)]
mod tests;
mod time_bucket;
mod time_series;
mod to_text;

use std::sync::Arc;

use datafusion::{
    error::Result,
    execution::SessionState,
    logical_expr::{AggregateUDF, ScalarUDF, registry::FunctionRegistry},
};
use first_last::{End, FirstLast};
use interval::{IntervalArithmetic, Scale, ScaleInterval};
use product::Product;
pub(crate) use time_series::TIME_SERIES;
pub(crate) use to_text::{as_text, differs_as_text, to_text};

/// Adds them to a state that holds DataFusion's own, and replaces those of the same name.
pub(crate) fn register(state: &mut SessionState) -> Result<()> {
    let scalars = [
        ScalarUDF::from(now::Now::new()),
        ScalarUDF::from(time_bucket::TimeBucket::new()),
        ScalarUDF::from(time_series::TimeSeries::new()),
        ScalarUDF::from(Product::version()),
        ScalarUDF::from(Product::current_database()),
        ScalarUDF::from(ScaleInterval::new(Scale::Times)),
        ScalarUDF::from(ScaleInterval::new(Scale::Over)),
    ];
    for function in scalars {
        state.register_udf(function.into())?;
    }
    state.register_udf(to_text())?;
    for end in [End::First, End::Last] {
        state.register_udaf(AggregateUDF::from(FirstLast::new(end)).into())?;
    }
    state.register_expr_planner(Arc::new(IntervalArithmetic::new()))
}
