//! Rows of a view, put together value by value.

use std::sync::Arc;

use arrow::{
    array::{ListBuilder, RecordBatch, StringBuilder, new_empty_array},
    datatypes::{DataType, Field, IntervalMonthDayNano, IntervalUnit, Schema, TimeUnit},
};
use datafusion::{
    catalog::TableProvider, common::ScalarValue, datasource::MemTable, error::Result,
};
use hypertide_proto::schema::UTC;

/// The type of a view's column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Int,
    BigInt,
    Bool,
    TimestampTz,
    Interval,
    Texts,
}

impl Kind {
    fn data_type(self) -> DataType {
        match self {
            Self::Text => DataType::Utf8,
            Self::Int => DataType::Int32,
            Self::BigInt => DataType::Int64,
            Self::Bool => DataType::Boolean,
            Self::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into())),
            Self::Interval => DataType::Interval(IntervalUnit::MonthDayNano),
            Self::Texts => DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true))),
        }
    }
}

/// A value of a view; NULL of the column's type when there is none.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Text(String),
    Int(i64),
    Bool(bool),
    /// Microseconds since the Unix epoch.
    TimestampTz(i64),
    /// Microseconds.
    Interval(i64),
    Texts(Vec<String>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// The columns and rows of a view.
#[derive(Debug)]
pub(super) struct Rows {
    columns: &'static [(&'static str, Kind)],
    rows: Vec<Vec<Value>>,
}

impl Rows {
    pub(super) fn new(columns: &'static [(&'static str, Kind)]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row, whose values are in the order of the columns.
    pub(super) fn push<const N: usize>(&mut self, row: [Value; N]) {
        debug_assert_eq!(row.len(), self.columns.len(), "a row has a value for each column");
        self.rows.push(row.into());
    }

    pub(super) fn into_table(self) -> Result<Arc<dyn TableProvider>> {
        let fields =
            self.columns.iter().map(|(name, kind)| Field::new(*name, kind.data_type(), true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let mut arrays = Vec::with_capacity(self.columns.len());
        for (at, (_, kind)) in self.columns.iter().enumerate() {
            let values = self.rows.iter().map(|row| scalar(*kind, row.get(at)));
            let values: Vec<ScalarValue> = values.collect::<Result<_>>()?;
            arrays.push(match values.is_empty() {
                true => new_empty_array(&kind.data_type()),
                false => ScalarValue::iter_to_array(values)?,
            });
        }
        let batch = RecordBatch::try_new(Arc::clone(&schema), arrays)?;
        Ok(Arc::new(MemTable::try_new(schema, vec![vec![batch]])?))
    }
}

fn scalar(kind: Kind, value: Option<&Value>) -> Result<ScalarValue> {
    Ok(match (kind, value) {
        (Kind::Text, Some(Value::Text(text))) => ScalarValue::Utf8(Some(text.clone())),
        (Kind::Int, Some(Value::Int(value))) => ScalarValue::Int32(i32::try_from(*value).ok()),
        (Kind::BigInt, Some(Value::Int(value))) => ScalarValue::Int64(Some(*value)),
        (Kind::Bool, Some(Value::Bool(value))) => ScalarValue::Boolean(Some(*value)),
        (Kind::TimestampTz, Some(Value::TimestampTz(micros))) => {
            ScalarValue::TimestampMicrosecond(Some(*micros), Some(UTC.into()))
        }
        (Kind::Interval, Some(Value::Interval(micros))) => {
            let day = hypertide_proto::time::DAY_MICROS;
            let days = i32::try_from(micros / day).unwrap_or(i32::MAX);
            let value = IntervalMonthDayNano::new(0, days, micros % day * 1000);
            ScalarValue::IntervalMonthDayNano(Some(value))
        }
        (Kind::Texts, Some(Value::Texts(texts))) => {
            let mut builder = ListBuilder::new(StringBuilder::new());
            builder.append_value(texts.iter().map(Some));
            ScalarValue::List(Arc::new(builder.finish()))
        }
        (kind, _) => ScalarValue::try_new_null(&kind.data_type())?,
    })
}
