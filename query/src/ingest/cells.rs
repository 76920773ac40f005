//! The cells of `INSERT … VALUES`: literals and parameters go straight into Arrow builders; only what must be computed
//! is planned, and thousands of rows are so no harder than one.

use arrow::array::ArrayRef;
use datafusion::{
    common::ScalarValue,
    sql::sqlparser::ast::{DataType as SqlType, Expr, UnaryOperator, Value},
};
use hypertide_proto::schema::{Column, ColumnType};

use super::assign::{assign, mismatch};
use crate::{
    Error,
    sql::{value::ValueBuilder, zone::Zone},
};

/// What stands in one place of a VALUES list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cell {
    /// NULL.
    Null,
    /// The keyword DEFAULT.
    Default,
    /// A text, which the column's type reads.
    Text(String),
    /// A number as written, which only number and text columns take.
    Number(String),
    /// A boolean.
    Bool(bool),
    /// The parameter of this number, from 0.
    Parameter(usize),
    /// Something to compute.
    Computed(Box<Expr>),
}

/// Sorts an expression into its kind.
pub(crate) fn cell(expr: &Expr, column: ColumnType) -> Cell {
    match expr {
        Expr::Value(value) => {
            literal(&value.value).unwrap_or_else(|| Cell::Computed(Box::new(expr.clone())))
        }
        Expr::Identifier(name)
            if name.quote_style.is_none() && name.value.eq_ignore_ascii_case("default") =>
        {
            Cell::Default
        }
        Expr::UnaryOp { op: op @ (UnaryOperator::Minus | UnaryOperator::Plus), expr: inner } => {
            match cell(inner, column) {
                Cell::Number(digits) if !digits.starts_with('-') => match op {
                    UnaryOperator::Minus => Cell::Number(format!("-{digits}")),
                    _ => Cell::Number(digits),
                },
                _ => Cell::Computed(Box::new(expr.clone())),
            }
        }
        Expr::Nested(inner) => cell(inner, column),
        // A text of the column's very type is read by it in any case.
        Expr::TypedString(typed) if same_type(&typed.data_type, column) => {
            match literal(&typed.value.value) {
                Some(text @ Cell::Text(_)) => text,
                _ => Cell::Computed(Box::new(expr.clone())),
            }
        }
        Expr::Cast { expr: inner, data_type, .. } if same_type(data_type, column) => {
            match cell(inner, column) {
                text @ (Cell::Text(_) | Cell::Null) => text,
                _ => Cell::Computed(Box::new(expr.clone())),
            }
        }
        _ => Cell::Computed(Box::new(expr.clone())),
    }
}

fn literal(value: &Value) -> Option<Cell> {
    Some(match value {
        Value::Null => Cell::Null,
        Value::Number(digits, _) => Cell::Number(digits.clone()),
        Value::Boolean(value) => Cell::Bool(*value),
        Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text) => {
            Cell::Text(text.clone())
        }
        Value::DollarQuotedString(text) => Cell::Text(text.value.clone()),
        Value::Placeholder(name) => {
            let number: usize = name.strip_prefix('$')?.parse().ok()?;
            Cell::Parameter(number.checked_sub(1)?)
        }
        _ => return None,
    })
}

fn same_type(data_type: &SqlType, column: ColumnType) -> bool {
    crate::sql::types::column_type(data_type).is_ok_and(|named| {
        named == column || matches!((named, column), (ColumnType::Text, ColumnType::Varchar(_)))
    })
}

/// What cells stand for that are no literals.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inputs<'a> {
    /// Values of the statement's parameters.
    pub(crate) parameters: &'a [ScalarValue],
    /// The value of the n-th computed cell of the column.
    pub(crate) computed: &'a [ScalarValue],
    /// The session's time zone.
    pub(crate) zone: Zone,
}

/// Makes the column of these cells.
pub(crate) fn build(
    column: &Column,
    cells: &[Cell],
    inputs: Inputs<'_>,
) -> Result<ArrayRef, Error> {
    if cells.iter().any(|cell| matches!(cell, Cell::Parameter(_) | Cell::Computed(_))) {
        return build_mixed(column, cells, inputs);
    }
    let mut builder = ValueBuilder::new(column.column_type, inputs.zone);
    for cell in cells {
        append(&mut builder, column, cell)?;
    }
    Ok(builder.finish())
}

/// Appends a literal.
fn append(builder: &mut ValueBuilder, column: &Column, cell: &Cell) -> Result<(), Error> {
    use arrow::datatypes::DataType;
    match cell {
        Cell::Text(text) => builder.append_text(text),
        Cell::Number(digits) => match column.column_type {
            ColumnType::SmallInt | ColumnType::Integer | ColumnType::BigInt
                if digits.contains(['.', 'e', 'E']) =>
            {
                builder.append_text(&rounded(digits, column)?)
            }
            ColumnType::Boolean => Err(mismatch(column, &DataType::Int32)),
            ColumnType::Timestamp | ColumnType::TimestampTz | ColumnType::Date => Err(mismatch(
                column,
                if digits.contains('.') { &DataType::Float64 } else { &DataType::Int32 },
            )),
            ColumnType::Jsonb | ColumnType::Uuid | ColumnType::Bytea => {
                Err(mismatch(column, &DataType::Int32))
            }
            _ => builder.append_text(digits),
        },
        Cell::Bool(value) => match column.column_type {
            ColumnType::Boolean | ColumnType::Text | ColumnType::Varchar(_) => {
                builder.append_text(if *value { "true" } else { "false" })
            }
            _ => Err(mismatch(column, &DataType::Boolean)),
        },
        _ => {
            builder.append_null();
            Ok(())
        }
    }
}

/// The whole number nearest to a decimal one; halves go away from zero, as numeric rounds.
fn rounded(digits: &str, column: &Column) -> Result<String, Error> {
    let whole = ColumnType::Numeric { precision: 38, scale: 0 };
    let mut builder = ValueBuilder::new(whole, Zone::UTC);
    builder
        .append_text(digits)
        .map_err(|_| Error::of("22003", format_args!("{} out of range", column.column_type)))?;
    let mut out = Vec::new();
    crate::sql::text::write_text(
        &builder.finish(),
        0,
        crate::sql::text::TextStyle::default(),
        &mut out,
    );
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// Cells of which some are values already: runs of one type are cast at once.
fn build_mixed(column: &Column, cells: &[Cell], inputs: Inputs<'_>) -> Result<ArrayRef, Error> {
    let Inputs { parameters, computed, zone } = inputs;
    let mut computed = computed.iter();
    let mut pieces: Vec<ArrayRef> = Vec::new();
    let mut run: Vec<ScalarValue> = Vec::new();
    let mut literals = ValueBuilder::new(column.column_type, zone);
    let mut pending = 0usize;
    for cell in cells {
        let value = match cell {
            Cell::Parameter(number) => parameters.get(*number).cloned().ok_or_else(|| {
                Error::of("42P02", format_args!("there is no parameter ${}", number + 1))
            })?,
            Cell::Computed(_) => computed
                .next()
                .cloned()
                .ok_or_else(|| Error::of("XX000", "a computed value is missing"))?,
            literal => {
                if !run.is_empty() {
                    pieces.push(assign(&ScalarValue::iter_to_array(run.drain(..))?, column, zone)?);
                }
                append(&mut literals, column, literal)?;
                pending += 1;
                continue;
            }
        };
        if pending > 0 {
            pieces.push(literals.finish());
            pending = 0;
        }
        if run.first().is_some_and(|first| first.data_type() != value.data_type()) {
            pieces.push(assign(&ScalarValue::iter_to_array(run.drain(..))?, column, zone)?);
        }
        run.push(value);
    }
    if pending > 0 {
        pieces.push(literals.finish());
    }
    if !run.is_empty() {
        pieces.push(assign(&ScalarValue::iter_to_array(run)?, column, zone)?);
    }
    let pieces: Vec<&dyn arrow::array::Array> = pieces.iter().map(AsRef::as_ref).collect();
    Ok(arrow::compute::concat(&pieces)?)
}
