//! Casts a computed column to the type of the table column it is assigned to, by PostgreSQL's assignment casts.
//!
//! Text goes through the type's own reader, so that a literal means the same in INSERT … SELECT and in VALUES.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, ArrowPrimitiveType, AsArray, PrimitiveArray, StringBuilder,
        TimestampMicrosecondArray,
    },
    compute::{CastOptions, cast, cast_with_options},
    datatypes::{DataType, Float32Type, Float64Type, TimeUnit, TimestampMicrosecondType},
};
use hypertide_proto::schema::{Column, ColumnType, UTC};

use crate::{
    Error,
    sql::{
        civil::SECOND_MICROS,
        text::{TextColumn, TextStyle},
        value::ValueBuilder,
        zone::Zone,
    },
};

/// The column's values as its table has them; `zone` is the session's.
pub(crate) fn assign(array: &ArrayRef, column: &Column, zone: Zone) -> Result<ArrayRef, Error> {
    let target = column.column_type.to_arrow();
    let source = plain(array)?;
    if is_text(source.data_type()) {
        return read(&source, column, zone);
    }
    if *source.data_type() == target {
        return Ok(source);
    }
    if is_text(&target) {
        return write(&source, column, zone);
    }
    if !castable(source.data_type(), column.column_type) {
        return Err(mismatch(column, source.data_type()));
    }
    match (source.data_type(), column.column_type) {
        (DataType::Timestamp(..) | DataType::Date32 | DataType::Date64, _) => {
            moments(&source, column, zone)
        }
        (DataType::Float32 | DataType::Float64 | DataType::Float16, wanted) if wanted.integer() => {
            let wide = cast(&source, &DataType::Float64)?;
            let rounded = map::<Float64Type>(&wide, f64::round_ties_even);
            strict(&rounded, column)
        }
        // Arrow would cut digits off; to a scale of none it rounds halves away from zero, as PostgreSQL does.
        (DataType::Decimal128(..) | DataType::Decimal256(..), wanted) if wanted.integer() => {
            strict(&cast(&source, &DataType::Decimal128(38, 0))?, column)
        }
        _ => strict(&source, column),
    }
}

/// The error of a type that cannot be assigned.
pub(crate) fn mismatch(column: &Column, source: &DataType) -> Error {
    let named = ColumnType::from_arrow(source);
    let named = named.map_or_else(|| source.to_string(), |named| named.to_string());
    let Column { name, column_type, .. } = column;
    let message = format_args!(
        "column \"{name}\" is of type {column_type} but expression is of type {named}"
    );
    Error::of("42804", message).with_hint("You will need to rewrite or cast the expression.")
}

/// The values without dictionary or run-length encoding.
fn plain(array: &ArrayRef) -> Result<ArrayRef, Error> {
    Ok(match array.data_type() {
        DataType::Dictionary(_, values) => cast(array, values)?,
        DataType::RunEndEncoded(_, values) => cast(array, values.data_type())?,
        DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            cast(array, &DataType::Binary)?
        }
        DataType::LargeUtf8 | DataType::Utf8View => cast(array, &DataType::Utf8)?,
        _ => Arc::clone(array),
    })
}

const fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8)
}

/// Whether PostgreSQL has an assignment cast between the kinds.
fn castable(source: &DataType, target: ColumnType) -> bool {
    use ColumnType::{
        BigInt, Date, Double, Integer, Numeric, Real, SmallInt, Timestamp, TimestampTz,
    };
    let numeric = source.is_numeric();
    let moment = matches!(source, DataType::Timestamp(..) | DataType::Date32 | DataType::Date64);
    match target {
        _ if matches!(source, DataType::Null) => true,
        SmallInt | Integer | BigInt | Real | Double | Numeric { .. } => numeric,
        Timestamp | TimestampTz | Date => moment,
        _ => false,
    }
}

/// Reads texts as values of the column.
fn read(source: &ArrayRef, column: &Column, zone: Zone) -> Result<ArrayRef, Error> {
    if column.column_type == ColumnType::Text {
        return Ok(Arc::clone(source));
    }
    let mut builder = ValueBuilder::new(column.column_type, zone);
    for text in source.as_string::<i32>() {
        match text {
            Some(text) => builder.append_text(text)?,
            None => builder.append_null(),
        }
    }
    Ok(builder.finish())
}

/// Writes values of any type as text of the column.
fn write(source: &ArrayRef, column: &Column, zone: Zone) -> Result<ArrayRef, Error> {
    if matches!(column.column_type, ColumnType::Uuid | ColumnType::Jsonb)
        && !source.data_type().is_null()
    {
        return Err(mismatch(column, source.data_type()));
    }
    let texts = TextColumn::new(source, TextStyle { zone, bytea_escape: false });
    let mut builder = StringBuilder::new();
    let mut out = Vec::new();
    for row in 0..source.len() {
        out.clear();
        match texts.write(row, &mut out) {
            // A cast of booleans says the whole word.
            true if source.data_type() == &DataType::Boolean => {
                builder.append_value(if out == b"t" { "true" } else { "false" });
            }
            true => builder.append_value(String::from_utf8_lossy(&out)),
            false => builder.append_null(),
        }
    }
    let text: ArrayRef = Arc::new(builder.finish());
    match column.column_type {
        ColumnType::Varchar(_) => read(&text, column, zone),
        _ => Ok(text),
    }
}

/// Casts, with an error where a value does not fit.
fn strict(source: &ArrayRef, column: &Column) -> Result<ArrayRef, Error> {
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let target = column.column_type.to_arrow();
    let result = cast_with_options(source, &target, &options).map_err(|_| overflow(column))?;
    // Arrow makes a float too great for the type infinite.
    if column.column_type == ColumnType::Real && source.data_type() == &DataType::Float64 {
        let wide = source.as_primitive::<Float64Type>().iter().flatten();
        let narrow = result.as_primitive::<Float32Type>().iter().flatten();
        if wide.zip(narrow).any(|(wide, narrow)| wide.is_finite() && narrow.is_infinite()) {
            return Err(overflow(column));
        }
    }
    Ok(result)
}

fn overflow(column: &Column) -> Error {
    match column.column_type {
        ColumnType::Numeric { precision, scale } => {
            Error::of("22003", "numeric field overflow").with_detail(format_args!(
                "A field with precision {precision}, scale {scale} must round to an absolute value less than 10^{}.",
                i32::from(precision) - i32::from(scale)
            ))
        }
        other => Error::of("22003", format_args!("{other} out of range")),
    }
}

/// Casts between timestamps and dates, where clocks of the session's zone show local times.
fn moments(source: &ArrayRef, column: &Column, zone: Zone) -> Result<ArrayRef, Error> {
    let micros =
        |zoned: bool| DataType::Timestamp(TimeUnit::Microsecond, zoned.then(|| UTC.into()));
    let zoned = matches!(source.data_type(), DataType::Timestamp(_, Some(_)));
    let wide = cast_with_options(
        source,
        &micros(zoned),
        &CastOptions { safe: false, ..CastOptions::default() },
    )
    .map_err(|_| Error::of("22008", "timestamp out of range"))?;
    let finite = |value: i64| !matches!(value, i64::MIN | i64::MAX);
    let to_local = |value: i64| match finite(value) {
        true => value.saturating_add(i64::from(zone.offset_at(value)) * SECOND_MICROS),
        false => value,
    };
    let to_utc =
        |value: i64| if finite(value) { zone.to_utc(value).unwrap_or(value) } else { value };
    let values = wide.as_primitive::<TimestampMicrosecondType>();
    Ok(match column.column_type {
        ColumnType::TimestampTz => {
            let array: TimestampMicrosecondArray =
                if zoned { values.clone() } else { values.unary(to_utc) };
            Arc::new(array.with_timezone(UTC))
        }
        ColumnType::Timestamp => {
            let array: TimestampMicrosecondArray =
                if zoned { values.unary(to_local) } else { values.clone() };
            Arc::new(array.with_timezone_opt(None::<Arc<str>>))
        }
        _ => {
            let local: ArrayRef = match zoned {
                true => {
                    let array: TimestampMicrosecondArray = values.unary(to_local);
                    Arc::new(array.with_timezone_opt(None::<Arc<str>>))
                }
                false => wide,
            };
            cast(&local, &DataType::Date32)?
        }
    })
}

fn map<T: ArrowPrimitiveType>(array: &ArrayRef, op: impl Fn(T::Native) -> T::Native) -> ArrayRef {
    let mapped: PrimitiveArray<T> = array.as_primitive::<T>().unary(op);
    Arc::new(mapped)
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        BooleanArray, Date32Array, Decimal128Array, Float64Array, Int64Array, StringArray,
        TimestampNanosecondArray,
    };

    use super::*;
    use crate::sql::text::write_text;

    fn assigned(
        array: impl Array + 'static,
        column_type: ColumnType,
    ) -> Result<Vec<String>, Error> {
        let column = Column::new("x", column_type);
        let zone = Zone::parse("America/New_York").expect("it exists");
        let array: ArrayRef = Arc::new(array);
        let result = assign(&array, &column, zone)?;
        assert_eq!(*result.data_type(), column_type.to_arrow());
        let text = |row| {
            let mut out = Vec::new();
            match write_text(&result, row, TextStyle::default(), &mut out) {
                true => String::from_utf8(out).expect("text is UTF-8"),
                false => "NULL".to_owned(),
            }
        };
        Ok((0..result.len()).map(text).collect())
    }

    #[test]
    fn values_are_cast() {
        let money = ColumnType::Numeric { precision: 10, scale: 2 };
        assert_eq!(
            assigned(Float64Array::from(vec![2.5, 3.5, -0.6]), ColumnType::Integer),
            Ok(vec!["2".into(), "4".into(), "-1".into()])
        );
        assert_eq!(
            assigned(Int64Array::from(vec![Some(7), None]), ColumnType::Text),
            Ok(vec!["7".into(), "NULL".into()])
        );
        assert_eq!(assigned(Int64Array::from(vec![7]), money), Ok(vec!["7.00".into()]));
        assert_eq!(assigned(Float64Array::from(vec![1.239]), money), Ok(vec!["1.24".into()]));
        assert_eq!(
            assigned(BooleanArray::from(vec![true]), ColumnType::Text),
            Ok(vec!["true".into()])
        );
        assert_eq!(
            assigned(StringArray::from(vec!["1.5"]), ColumnType::Double),
            Ok(vec!["1.5".into()])
        );
        let decimal =
            Decimal128Array::from(vec![250]).with_precision_and_scale(5, 2).expect("it fits");
        assert_eq!(assigned(decimal, ColumnType::SmallInt), Ok(vec!["3".into()]));
    }

    #[test]
    fn local_times_are_those_of_the_session() {
        let noon = TimestampNanosecondArray::from(vec![1_325_419_200_000_000_000]); // 2012-01-01 12:00
        assert_eq!(
            assigned(noon.clone(), ColumnType::TimestampTz),
            Ok(vec!["2012-01-01 17:00:00+00".into()])
        );
        assert_eq!(
            assigned(noon.clone().with_timezone("UTC"), ColumnType::Timestamp),
            Ok(vec!["2012-01-01 07:00:00".into()])
        );
        assert_eq!(assigned(noon, ColumnType::Date), Ok(vec!["2012-01-01".into()]));
        assert_eq!(
            assigned(Date32Array::from(vec![15_340]), ColumnType::TimestampTz),
            Ok(vec!["2012-01-01 05:00:00+00".into()])
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let state =
            |result: Result<Vec<String>, Error>| result.expect_err("it does not fit").state.0;
        assert_eq!(state(assigned(Int64Array::from(vec![70_000]), ColumnType::SmallInt)), "22003");
        assert_eq!(state(assigned(Float64Array::from(vec![1e300]), ColumnType::Real)), "22003");
        assert_eq!(state(assigned(Float64Array::from(vec![1e30]), ColumnType::BigInt)), "22003");
        let error =
            assigned(BooleanArray::from(vec![true]), ColumnType::Integer).expect_err("no cast");
        assert_eq!(error.state.0, "42804");
        assert_eq!(
            error.message,
            "column \"x\" is of type integer but expression is of type boolean"
        );
    }
}
