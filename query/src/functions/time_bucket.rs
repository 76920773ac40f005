//! `time_bucket(width, time [, origin | offset | timezone [, origin [, offset]]])`: the start of the bucket that holds
//! a point of time.
//!
//! Buckets of a fixed width count from Monday 2000-01-03, so that weeks start on Mondays; buckets of months count from
//! 2000-01-01. With a time zone, buckets are those of the local clock there. The result never lies after the point.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, Int64Array, PrimitiveArray},
    compute::cast,
    datatypes::{
        ArrowPrimitiveType, DataType, Int16Type, Int32Type, Int64Type, IntervalMonthDayNano,
        IntervalUnit, TimeUnit,
    },
};
use datafusion::{
    common::{ScalarValue, exec_err, internal_err, plan_err},
    error::Result,
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility},
};
use hypertide_proto::schema::UTC;

use super::calendar::{DAY_MICROS, Zone, add_interval, month_bucket};

/// Monday 2000-01-03, in microseconds since 1970.
const WEEK_ORIGIN: i64 = 946_857_600_000_000;
/// 2000-01-01.
const MONTH_ORIGIN: i64 = 946_684_800_000_000;
const MICROS: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);
const INTERVAL: DataType = DataType::Interval(IntervalUnit::MonthDayNano);

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct TimeBucket {
    signature: Signature,
}

impl TimeBucket {
    /// The function.
    pub(super) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for TimeBucket {
    fn name(&self) -> &str {
        "time_bucket"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types.get(1) {
            Some(point) => Ok(point.clone()),
            None => plan_err!("time_bucket takes a width and a time"),
        }
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let [width, point, rest @ ..] = types else {
            return plan_err!("time_bucket takes a width and a time");
        };
        let mut coerced = if width.is_integer() && point.is_integer() {
            let point = signed(point);
            vec![point.clone(), point]
        } else {
            vec![interval(width)?, time(point)?]
        };
        let point = coerced.last().cloned().unwrap_or(MICROS);
        for given in rest {
            coerced.push(extra(given, &point)?);
        }
        let shape: Vec<Extra> = rest_shape(coerced.get(2..).unwrap_or_default());
        let known = match shape.as_slice() {
            [] | [Extra::Origin | Extra::Offset] => true,
            [Extra::Zone, rest @ ..] => {
                zoned(&point)
                    && matches!(rest, [] | [Extra::Origin] | [Extra::Origin, Extra::Offset])
            }
            _ => false,
        };
        if known { Ok(coerced) } else { plan_err!("no function time_bucket takes these arguments") }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let ScalarFunctionArgs { args, number_rows, return_field, .. } = args;
        let [width, point, rest @ ..] = args.as_slice() else {
            return internal_err!("time_bucket was planned with too few arguments");
        };
        let constant = |value: &ColumnarValue| match value {
            ColumnarValue::Scalar(value) => Some(value.clone()),
            ColumnarValue::Array(_) => None,
        };
        let width_value = constant(width);
        let extras: Option<Vec<ScalarValue>> = rest.iter().map(constant).collect();
        let (Some(width), Some(extras)) = (width_value, extras) else {
            return by_row(&args, number_rows, return_field.data_type());
        };
        if width.is_null() {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from(return_field.data_type())?));
        }
        let scalar = matches!(point, ColumnarValue::Scalar(_));
        let points = point.to_array(if scalar { 1 } else { number_rows })?;
        let buckets = bucket_array(&points, &width, &extras)?;
        if scalar {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&buckets, 0)?));
        }
        Ok(ColumnarValue::Array(buckets))
    }
}

/// What an argument after the time is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extra {
    Origin,
    Offset,
    Zone,
}

fn rest_shape(types: &[DataType]) -> Vec<Extra> {
    let kind = |data_type: &DataType| match data_type {
        DataType::Utf8 => Extra::Zone,
        DataType::Timestamp(..) | DataType::Date32 => Extra::Origin,
        _ => Extra::Offset,
    };
    types.iter().map(kind).collect()
}

/// The type that an argument after the time is brought to.
fn extra(given: &DataType, point: &DataType) -> Result<DataType> {
    Ok(match given {
        DataType::Interval(_) => INTERVAL,
        given if given.is_integer() && point.is_integer() => point.clone(),
        // A bare literal is a time zone where there can be one, and an origin elsewhere.
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 if zoned(point) => DataType::Utf8,
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 | DataType::Null => point.clone(),
        DataType::Timestamp(..) | DataType::Date32 if !point.is_integer() => point.clone(),
        other => return plan_err!("time_bucket does not take an argument of type {other}"),
    })
}

fn zoned(point: &DataType) -> bool {
    matches!(point, DataType::Timestamp(_, Some(_)))
}

fn signed(integer: &DataType) -> DataType {
    match integer {
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => DataType::Int16,
        DataType::Int32 | DataType::UInt16 => DataType::Int32,
        _ => DataType::Int64,
    }
}

fn interval(width: &DataType) -> Result<DataType> {
    match width {
        DataType::Interval(_) | DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => {
            Ok(INTERVAL)
        }
        other => plan_err!("the width of time_bucket is an interval, not {other}"),
    }
}

fn time(point: &DataType) -> Result<DataType> {
    Ok(match point {
        DataType::Timestamp(_, None) => MICROS,
        DataType::Timestamp(_, Some(_)) | DataType::Utf8 | DataType::Utf8View | DataType::Null => {
            DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into()))
        }
        DataType::Date32 | DataType::Date64 => DataType::Date32,
        other => return plan_err!("time_bucket does not take a time of type {other}"),
    })
}

/// Widths that differ by row are rare: each row is computed on its own.
fn by_row(args: &[ColumnarValue], rows: usize, data_type: &DataType) -> Result<ColumnarValue> {
    let mut buckets = Vec::with_capacity(rows);
    for row in 0..rows {
        let value = |arg: &ColumnarValue| match arg {
            ColumnarValue::Scalar(value) => Ok(value.clone()),
            ColumnarValue::Array(array) => ScalarValue::try_from_array(array, row),
        };
        let values = args.iter().map(value).collect::<Result<Vec<_>>>()?;
        let bucket = match values.as_slice() {
            [width, point, extras @ ..] if !width.is_null() => {
                let bucket = bucket_array(&point.to_array()?, width, extras)?;
                ScalarValue::try_from_array(&bucket, 0)?
            }
            _ => ScalarValue::try_from(data_type)?,
        };
        buckets.push(bucket);
    }
    if buckets.is_empty() {
        return Ok(ColumnarValue::Array(arrow::array::new_empty_array(data_type)));
    }
    Ok(ColumnarValue::Array(ScalarValue::iter_to_array(buckets)?))
}

/// The buckets of all points, in their type.
fn bucket_array(
    points: &ArrayRef,
    width: &ScalarValue,
    extras: &[ScalarValue],
) -> Result<ArrayRef> {
    match points.data_type() {
        DataType::Int16 => integers::<Int16Type>(points, width, extras),
        DataType::Int32 => integers::<Int32Type>(points, width, extras),
        DataType::Int64 => integers::<Int64Type>(points, width, extras),
        data_type => {
            let rule = Rule::new(width, extras)?;
            let micros = to_micros(points)?;
            let buckets = rule.apply(&micros)?;
            from_micros(buckets, data_type)
        }
    }
}

fn integers<T: ArrowPrimitiveType>(
    points: &ArrayRef,
    width: &ScalarValue,
    extras: &[ScalarValue],
) -> Result<ArrayRef>
where
    i64: From<T::Native>,
    T::Native: TryFrom<i64>,
{
    let Some(period) = integer(width) else {
        return internal_err!("the width of time_bucket is not an integer");
    };
    let period = positive(period)?;
    let offset = extras.first().and_then(integer).unwrap_or(0);
    let buckets: PrimitiveArray<T> = points.as_primitive::<T>().try_unary(|point| {
        let bucket = fixed(i64::from(point), period, offset)?;
        T::Native::try_from(bucket).or_else(|_| exec_err!("timestamp out of range"))
    })?;
    Ok(Arc::new(buckets))
}

fn integer(value: &ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::Int16(value) => value.map(i64::from),
        ScalarValue::Int32(value) => value.map(i64::from),
        ScalarValue::Int64(value) => *value,
        _ => None,
    }
}

fn positive(period: i64) -> Result<i64> {
    if period > 0 { Ok(period) } else { exec_err!("period must be greater than 0") }
}

/// The start of the bucket of width `period` that holds `point`, counted from `origin`.
fn fixed(point: i64, period: i64, origin: i64) -> Result<i64> {
    let shift = origin.rem_euclid(period);
    let into = point.checked_sub(shift).map(|point| point.rem_euclid(period));
    match into.and_then(|into| point.checked_sub(into)) {
        Some(bucket) => Ok(bucket),
        None => exec_err!("timestamp out of range"),
    }
}

/// How wide buckets are.
#[derive(Clone, Copy, Debug)]
enum Width {
    Micros(i64),
    Months(i32),
}

/// A width with its origin, offset and zone.
#[derive(Debug)]
struct Rule {
    width: Width,
    origin: Option<i64>,
    offset: Option<IntervalMonthDayNano>,
    zone: Option<Zone>,
}

impl Rule {
    fn new(width: &ScalarValue, extras: &[ScalarValue]) -> Result<Self> {
        let ScalarValue::IntervalMonthDayNano(Some(width)) = width else {
            return internal_err!("the width of time_bucket is not an interval");
        };
        let mut rule = Self { width: parse(*width)?, origin: None, offset: None, zone: None };
        for extra in extras {
            match extra {
                ScalarValue::Utf8(Some(zone)) => rule.zone = Some(Zone::named(zone)?),
                ScalarValue::IntervalMonthDayNano(offset) => rule.offset = *offset,
                ScalarValue::TimestampMicrosecond(origin, _) => rule.origin = *origin,
                ScalarValue::Date32(days) => {
                    rule.origin = days.map(|days| i64::from(days) * DAY_MICROS);
                }
                _ => {}
            }
        }
        if let (Some(zone), Some(origin)) = (&rule.zone, rule.origin) {
            rule.origin = Some(zone.to_local(origin)?);
        }
        Ok(rule)
    }

    fn apply(&self, points: &Int64Array) -> Result<Int64Array> {
        if let (Width::Micros(period), None, None) = (self.width, self.offset, &self.zone) {
            // Almost every call: a loop over numbers.
            let origin = self.origin.unwrap_or(WEEK_ORIGIN);
            return points.try_unary(|point| fixed(point, period, origin));
        }
        points.try_unary(|point| self.bucket(point))
    }

    fn bucket(&self, point: i64) -> Result<i64> {
        let mut local = match &self.zone {
            Some(zone) => zone.to_local(point)?,
            None => point,
        };
        if let Some(offset) = self.offset {
            local = add_interval(local, offset, -1)?;
        }
        let mut bucket = match self.width {
            Width::Micros(period) => fixed(local, period, self.origin.unwrap_or(WEEK_ORIGIN))?,
            Width::Months(months) => {
                month_bucket(local, months, self.origin.unwrap_or(MONTH_ORIGIN))?
            }
        };
        if let Some(offset) = self.offset {
            bucket = add_interval(bucket, offset, 1)?;
        }
        match &self.zone {
            Some(zone) => zone.instant_of(bucket, point),
            None => Ok(bucket),
        }
    }
}

fn parse(width: IntervalMonthDayNano) -> Result<Width> {
    let micros = i64::from(width.days) * DAY_MICROS + width.nanoseconds / 1000;
    if width.months == 0 {
        return positive(micros).map(Width::Micros);
    }
    if width.days != 0 || width.nanoseconds != 0 {
        return exec_err!("month intervals cannot have day or time component");
    }
    positive(width.months.into())?;
    Ok(Width::Months(width.months))
}

fn to_micros(points: &ArrayRef) -> Result<Int64Array> {
    if points.data_type() == &DataType::Date32 {
        let days = points.as_primitive::<arrow::datatypes::Date32Type>();
        return Ok(days.unary(|days| i64::from(days) * DAY_MICROS));
    }
    Ok(cast(points, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
}

fn from_micros(buckets: Int64Array, data_type: &DataType) -> Result<ArrayRef> {
    if data_type == &DataType::Date32 {
        let days: PrimitiveArray<arrow::datatypes::Date32Type> =
            buckets.unary(|micros| micros.div_euclid(DAY_MICROS) as i32);
        return Ok(Arc::new(days));
    }
    Ok(cast(&buckets, data_type)?)
}
