//! Pure: DataFusion's constants to the values that zone maps and predicates hold, and back.

use datafusion::{arrow::datatypes::DataType, common::ScalarValue};
use hypertide_proto::predicate::Value;

/// The constant as zone maps hold it; `None` for NULL and for types that columns do not have.
pub(crate) fn value_of(value: &ScalarValue) -> Option<Value> {
    Some(match value {
        ScalarValue::Int16(Some(value)) => Value::Int((*value).into()),
        ScalarValue::Int32(Some(value)) => Value::Int((*value).into()),
        ScalarValue::Int64(Some(value)) => Value::Int((*value).into()),
        ScalarValue::Utf8(Some(value)) => Value::Text(value.clone()),
        ScalarValue::Boolean(Some(value)) => Value::Bool(*value),
        ScalarValue::Binary(Some(value)) => Value::Bytes(value.clone()),
        ScalarValue::Float64(Some(value)) => Value::Float(*value),
        ScalarValue::Float32(Some(value)) => Value::Float(f64::from(*value)),
        ScalarValue::Date32(Some(value)) => Value::Int((*value).into()),
        ScalarValue::TimestampMicrosecond(Some(value), _) => Value::Int((*value).into()),
        ScalarValue::Decimal128(Some(value), ..) => Value::Int(*value),
        _ => return None,
    })
}

/// The value as a constant of a column's type; `None` when it is of another kind.
pub(crate) fn scalar_of(value: &Value, data_type: &DataType) -> Option<ScalarValue> {
    Some(match (value, data_type) {
        (Value::Int(value), DataType::Int16) => ScalarValue::Int16(Some((*value).try_into().ok()?)),
        (Value::Int(value), DataType::Int32) => ScalarValue::Int32(Some((*value).try_into().ok()?)),
        (Value::Int(value), DataType::Int64) => ScalarValue::Int64(Some((*value).try_into().ok()?)),
        (Value::Int(value), DataType::Date32) => {
            ScalarValue::Date32(Some((*value).try_into().ok()?))
        }
        (Value::Int(value), DataType::Timestamp(_, zone)) => {
            ScalarValue::TimestampMicrosecond(Some((*value).try_into().ok()?), zone.clone())
        }
        (Value::Int(value), DataType::Decimal128(precision, scale)) => {
            ScalarValue::Decimal128(Some(*value), *precision, *scale)
        }
        (Value::Float(value), DataType::Float32) => ScalarValue::Float32(Some(*value as f32)),
        (Value::Float(value), DataType::Float64) => ScalarValue::Float64(Some(*value)),
        (Value::Text(value), DataType::Utf8) => ScalarValue::Utf8(Some(value.clone())),
        (Value::Bytes(value), DataType::Binary) => ScalarValue::Binary(Some(value.clone())),
        (Value::Bool(value), DataType::Boolean) => ScalarValue::Boolean(Some(*value)),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use hypertide_proto::schema::ColumnType;

    use super::*;

    #[test]
    fn values_of_every_type_come_back() {
        let text = Value::Text("a".to_owned());
        let samples = [
            (ColumnType::SmallInt, Value::Int(-7)),
            (ColumnType::Integer, Value::Int(7)),
            (ColumnType::BigInt, Value::Int(i64::MIN.into())),
            (ColumnType::Real, Value::Float(1.5)),
            (ColumnType::Double, Value::Float(0.1)),
            (ColumnType::Numeric { precision: 12, scale: 3 }, Value::Int(12_345)),
            (ColumnType::Text, text.clone()),
            (ColumnType::Boolean, Value::Bool(true)),
            (ColumnType::TimestampTz, Value::Int(1)),
            (ColumnType::Timestamp, Value::Int(-1)),
            (ColumnType::Date, Value::Int(3)),
            (ColumnType::Bytea, Value::Bytes(vec![1, 2])),
        ];
        for (column_type, value) in samples {
            let data_type = column_type.to_arrow();
            let scalar = scalar_of(&value, &data_type).expect("the kind fits");
            assert_eq!(scalar.data_type(), data_type);
            assert_eq!(value_of(&scalar), Some(value));
        }
        assert_eq!(scalar_of(&text, &DataType::Int64), None);
        assert_eq!(scalar_of(&Value::Int(1 << 40), &DataType::Int32), None);
        assert_eq!(value_of(&ScalarValue::Int64(None)), None);
    }
}
