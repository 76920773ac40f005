//! The rules of a table that every row must keep before it goes anywhere.

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{DataType, Date32Type, TimestampMicrosecondType},
};
use hypertide_meta::catalog::{Rule, Table, TableKind};
use hypertide_proto::schema::{Column, ColumnType};

use crate::{
    Error,
    sql::{
        civil::{DATE_END, DATE_MIN},
        datetime, value,
    },
};

/// Checks rows that have exactly the table's columns.
pub(crate) fn check_rows(table: &Table, rows: &RecordBatch) -> Result<(), Error> {
    for (column, array) in table.columns.columns.iter().zip(rows.columns()) {
        if array.null_count() > 0 && (!column.nullable || is_time(table, &column.name)) {
            return Err(null_in(table, &column.name));
        }
        check_values(column, array.as_ref())?;
    }
    Ok(())
}

fn is_time(table: &Table, column: &str) -> bool {
    let TableKind::Hypertable(hypertable) = &table.kind else { return false };
    let rule = |rule: &Rule| matches!(rule, Rule::Time { .. });
    hypertable
        .dimensions
        .iter()
        .any(|dimension| rule(&dimension.rule) && dimension.column == column)
}

/// The error of a NULL where none may be.
pub(crate) fn null_in(table: &Table, column: &str) -> Error {
    if is_time(table, column) {
        let message =
            format_args!("null value in column \"{column}\" violates not-null constraint");
        return Error::of("23502", message)
            .with_hint("Columns used for time partitioning cannot be NULL.");
    }
    let name = &table.name;
    let message = format_args!(
        "null value in column \"{column}\" of relation \"{name}\" violates not-null constraint"
    );
    Error::of("23502", message)
}

/// What a type asks beyond its Arrow type.
fn check_values(column: &Column, array: &dyn Array) -> Result<(), Error> {
    match (column.column_type, array.data_type()) {
        (ColumnType::Varchar(length), DataType::Utf8) => {
            let array = array.as_string::<i32>();
            // No value is longer than all of them together.
            if array.value_data().len() > length as usize {
                for text in array.iter().flatten() {
                    value::fit(text, length)?;
                }
            }
        }
        (ColumnType::Timestamp | ColumnType::TimestampTz, DataType::Timestamp(..)) => {
            let array = array.as_primitive::<TimestampMicrosecondType>();
            for micros in
                array.iter().flatten().filter(|micros| !matches!(*micros, i64::MIN | i64::MAX))
            {
                datetime::in_range(micros)
                    .map_err(|_| Error::of("22008", "timestamp out of range"))?;
            }
        }
        (ColumnType::Date, DataType::Date32) => {
            let in_range = |days: i32| {
                (DATE_MIN..DATE_END).contains(&days) || matches!(days, i32::MIN | i32::MAX)
            };
            if !array.as_primitive::<Date32Type>().iter().flatten().all(in_range) {
                return Err(Error::of("22008", "date out of range"));
            }
        }
        _ => {}
    }
    Ok(())
}
