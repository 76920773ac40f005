//! `generate_series` over times: the list of its values, which the statement unnests.
//!
//! DataFusion's own table function takes constants of nanoseconds only. Here bounds and step are expressions like others,
//! so that they may be `now()`, read in the session's zone, or a parameter. As in PostgreSQL each value comes from the one
//! before, so that the ends of months stay where February put them, and months and days are those of the session's zone.

use std::sync::Arc;

use arrow::{
    array::{AsArray, ListArray, PrimitiveArray, TimestampMicrosecondArray},
    buffer::OffsetBuffer,
    datatypes::{
        DataType, Field, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit, TimeUnit,
        TimestampMicrosecondType,
    },
};
use datafusion::{
    common::{DataFusionError, plan_err},
    error::Result,
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility},
};
use hypertide_proto::schema::UTC;

use super::calendar::{DAY_MICROS, add_interval};
use crate::{Error, sql::zone::Zone};

/// Name of the function.
pub(crate) const TIME_SERIES: &str = "hypertide_time_series";
/// Most values of one series: they are in memory all at once.
const VALUES_MAX: usize = 1 << 26;
const SECOND_MICROS: i64 = 1_000_000;
/// Days of a month, where intervals are compared.
const MONTH_DAYS: i64 = 30;

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct TimeSeries {
    signature: Signature,
}

impl TimeSeries {
    pub(super) fn new() -> Self {
        // Not immutable: a plan is not to hold all values as a constant.
        Self { signature: Signature::user_defined(Volatility::Volatile) }
    }
}

impl ScalarUDFImpl for TimeSeries {
    fn name(&self) -> &str {
        TIME_SERIES
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let Some(time) = types.first() else {
            return plan_err!("generate_series takes two times and an interval");
        };
        Ok(DataType::List(Arc::new(Field::new_list_field(time.clone(), true))))
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let [start, end, _] = types else {
            return plan_err!("generate_series takes two times and an interval");
        };
        let plain = |time: &DataType| matches!(time, DataType::Timestamp(_, None));
        let unknown =
            |time: &DataType| matches!(time, DataType::Utf8 | DataType::Utf8View | DataType::Null);
        for time in [start, end] {
            if !unknown(time) && !matches!(time, DataType::Timestamp(..) | DataType::Date32) {
                return plan_err!("generate_series with an interval does not take {time}");
            }
        }
        // With a date or a text beside it the other bound decides; PostgreSQL prefers times with a zone.
        let local =
            (plain(start) && (plain(end) || unknown(end))) || (plain(end) && unknown(start));
        let zone = (!local).then(|| UTC.into());
        let time = DataType::Timestamp(TimeUnit::Microsecond, zone);
        Ok(vec![time.clone(), time, DataType::Interval(IntervalUnit::MonthDayNano)])
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let [start, end, step] = arrays.as_slice() else {
            return plan_err!("generate_series takes two times and an interval");
        };
        let time = start.data_type();
        let zone = match time {
            DataType::Timestamp(_, Some(_)) => {
                let zone = args.config_options.execution.time_zone.as_deref();
                zone.and_then(Zone::parse).unwrap_or(Zone::UTC)
            }
            _ => Zone::UTC,
        };
        let starts = start.as_primitive::<TimestampMicrosecondType>();
        let ends = end.as_primitive::<TimestampMicrosecondType>();
        let steps: &PrimitiveArray<IntervalMonthDayNanoType> = step.as_primitive();
        let (mut values, mut lengths) = (Vec::new(), Vec::with_capacity(starts.len()));
        for row in starts.iter().zip(ends).zip(steps) {
            let before = values.len();
            // As in PostgreSQL there is no row where an argument is null.
            if let ((Some(start), Some(end)), Some(step)) = row {
                extend(&mut values, (start, end), step, zone)?;
            }
            lengths.push(values.len() - before);
        }
        let values = TimestampMicrosecondArray::from(values).with_data_type(time.clone());
        let item = Arc::new(Field::new_list_field(time.clone(), true));
        let offsets = OffsetBuffer::from_lengths(lengths);
        let lists = ListArray::try_new(item, offsets, Arc::new(values), None)?;
        Ok(ColumnarValue::Array(Arc::new(lists)))
    }
}

/// Adds the values from `start` on that do not lie beyond `end`.
fn extend(
    values: &mut Vec<i64>,
    (start, end): (i64, i64),
    step: IntervalMonthDayNano,
    zone: Zone,
) -> Result<()> {
    let days = i64::from(step.months) * MONTH_DAYS + i64::from(step.days);
    let span = i128::from(days) * i128::from(DAY_MICROS) + i128::from(step.nanoseconds / 1000);
    if span == 0 {
        return Err(refused("22023", "step size cannot equal zero"));
    }
    let mut value = start;
    while if span > 0 { value <= end } else { value >= end } {
        if values.len() == VALUES_MAX {
            let message = format!("generate_series gives more than {VALUES_MAX} values");
            return Err(refused("54000", &message));
        }
        values.push(value);
        value = later(value, step, zone)?;
    }
    Ok(())
}

/// The instant an interval later, by the clock and the calendar of a zone.
fn later(instant: i64, step: IntervalMonthDayNano, zone: Zone) -> Result<i64> {
    let time = step.nanoseconds / 1000;
    let mut moved = instant;
    if step.months != 0 || step.days != 0 {
        let offset = i64::from(zone.offset_at(instant)) * SECOND_MICROS;
        let calendar = IntervalMonthDayNano { nanoseconds: 0, ..step };
        let local = add_interval(instant + offset, calendar, 1)?;
        moved = zone.to_utc(local).unwrap_or(local - offset);
    }
    moved.checked_add(time).ok_or_else(|| refused("22008", "timestamp out of range"))
}

fn refused(state: &'static str, message: &str) -> DataFusionError {
    DataFusionError::External(Box::new(Error::of(state, message)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::datetime::parse_timestamptz;

    fn at(text: &str, zone: Zone) -> i64 {
        parse_timestamptz(text, zone).expect("a time")
    }

    fn series(bounds: (&str, &str), step: (i32, i32, i64), zone: &str) -> Vec<i64> {
        let zone = Zone::parse(zone).expect("a zone");
        let step = IntervalMonthDayNano::new(step.0, step.1, step.2 * 1_000_000_000);
        let mut values = Vec::new();
        let bounds = (at(bounds.0, zone), at(bounds.1, zone));
        extend(&mut values, bounds, step, zone).expect("a series");
        values
    }

    #[test]
    fn days_are_those_of_the_zone() {
        let zone = Zone::parse("Europe/Berlin").expect("a zone");
        // The clock goes forward on the 29th: that day has 23 hours.
        let days = series(("2026-03-28", "2026-03-31"), (0, 1, 0), "Europe/Berlin");
        let expected = ["2026-03-28", "2026-03-29", "2026-03-30", "2026-03-31"];
        assert_eq!(days, expected.map(|day| at(day, zone)));
        let hours = series(("2026-03-29", "2026-03-30"), (0, 0, 3600), "Europe/Berlin");
        assert_eq!(hours.len(), 24, "23 hours later it is the next day");
    }

    #[test]
    fn ends_of_months_stay_where_february_put_them() {
        let months = series(("2026-01-31", "2026-04-30"), (1, 0, 0), "UTC");
        let expected = ["2026-01-31", "2026-02-28", "2026-03-28", "2026-04-28"];
        assert_eq!(months, expected.map(|day| at(day, Zone::UTC)));
    }

    #[test]
    fn a_step_back_goes_down() {
        let down = series(("2026-01-02", "2026-01-01"), (0, 0, -43_200), "UTC");
        let expected = ["2026-01-02", "2026-01-01 12:00", "2026-01-01"];
        assert_eq!(down, expected.map(|day| at(day, Zone::UTC)));
        assert!(series(("2026-01-02", "2026-01-01"), (0, 1, 0), "UTC").is_empty());
    }

    #[test]
    fn too_many_values_are_refused() {
        let second = IntervalMonthDayNano::new(0, 0, 1000);
        let error = extend(&mut Vec::new(), (0, i64::MAX), second, Zone::UTC).expect_err("many");
        assert!(error.to_string().contains("more than"), "{error}");
        let nothing = IntervalMonthDayNano::new(1, -30, 0);
        let error = extend(&mut Vec::new(), (0, 1), nothing, Zone::UTC).expect_err("no step");
        assert!(error.to_string().contains("cannot equal zero"), "{error}");
    }
}
