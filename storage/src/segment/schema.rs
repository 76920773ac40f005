//! The schema of a segment as bytes.

use std::{collections::BTreeMap, sync::Arc};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use hypertide_proto::schema::COLUMNS_MAX;

use crate::codec::{CodecError, Reader, put_sized, put_varint};

const INT16: u8 = 1;
const INT32: u8 = 2;
const INT64: u8 = 3;
const FLOAT32: u8 = 4;
const FLOAT64: u8 = 5;
/// Precision and scale follow.
const DECIMAL128: u8 = 6;
const BOOLEAN: u8 = 7;
const UTF8: u8 = 8;
const BINARY: u8 = 9;
/// Microseconds.
const TIMESTAMP: u8 = 10;
/// Microseconds; the time zone follows.
const TIMESTAMP_TZ: u8 = 11;
const DATE32: u8 = 12;

/// Appends a schema whose types [`crate::codec::supports`].
pub(super) fn put(out: &mut Vec<u8>, schema: &Schema) {
    put_varint(out, schema.fields().len() as u128);
    for field in schema.fields() {
        put_sized(out, field.name().as_bytes());
        put_type(out, field.data_type());
        out.push(field.is_nullable().into());
        // Sorted, so that equal schemas are equal bytes.
        put_metadata(out, &field.metadata().iter().collect());
    }
    put_metadata(out, &schema.metadata().iter().collect());
}

fn put_metadata(out: &mut Vec<u8>, metadata: &BTreeMap<&String, &String>) {
    put_varint(out, metadata.len() as u128);
    for (key, value) in metadata {
        put_sized(out, key.as_bytes());
        put_sized(out, value.as_bytes());
    }
}

fn put_type(out: &mut Vec<u8>, data_type: &DataType) {
    match data_type {
        DataType::Int16 => out.push(INT16),
        DataType::Int32 => out.push(INT32),
        DataType::Int64 => out.push(INT64),
        DataType::Float32 => out.push(FLOAT32),
        DataType::Float64 => out.push(FLOAT64),
        DataType::Decimal128(precision, scale) => {
            out.extend_from_slice(&[DECIMAL128, *precision, scale.cast_unsigned()]);
        }
        DataType::Boolean => out.push(BOOLEAN),
        DataType::Utf8 => out.push(UTF8),
        DataType::Binary => out.push(BINARY),
        DataType::Timestamp(_, None) => out.push(TIMESTAMP),
        DataType::Timestamp(_, Some(zone)) => {
            out.push(TIMESTAMP_TZ);
            put_sized(out, zone.as_bytes());
        }
        DataType::Date32 => out.push(DATE32),
        other => debug_assert!(false, "the caller checked the type {other}"),
    }
}

/// Reads what [`put`] wrote.
pub(super) fn read(reader: &mut Reader<'_>) -> Result<SchemaRef, CodecError> {
    let columns = reader.varint_u64()?;
    if columns > COLUMNS_MAX as u64 {
        return Err(CodecError::Wrong("there are more columns than a table can have"));
    }
    let mut fields = Vec::new();
    for _ in 0..columns {
        let name = reader.text()?.to_owned();
        let data_type = read_type(reader)?;
        let nullable = reader.u8()? != 0;
        let metadata = read_metadata(reader)?;
        fields.push(Field::new(name, data_type, nullable).with_metadata(metadata));
    }
    let metadata = read_metadata(reader)?;
    Ok(Arc::new(Schema::new(fields).with_metadata(metadata)))
}

/// Collects into the map that Arrow wants.
fn read_metadata<M: Default + Extend<(String, String)>>(
    reader: &mut Reader<'_>,
) -> Result<M, CodecError> {
    let mut metadata = M::default();
    for _ in 0..reader.varint_u64()? {
        let entry = (reader.text()?.to_owned(), reader.text()?.to_owned());
        metadata.extend([entry]);
    }
    Ok(metadata)
}

fn read_type(reader: &mut Reader<'_>) -> Result<DataType, CodecError> {
    Ok(match reader.u8()? {
        INT16 => DataType::Int16,
        INT32 => DataType::Int32,
        INT64 => DataType::Int64,
        FLOAT32 => DataType::Float32,
        FLOAT64 => DataType::Float64,
        DECIMAL128 => {
            let (precision, scale) = (reader.u8()?, reader.u8()?.cast_signed());
            if !(1..=38).contains(&precision) || i16::from(scale) > i16::from(precision) {
                return Err(CodecError::Wrong("a decimal has a precision or scale out of range"));
            }
            DataType::Decimal128(precision, scale)
        }
        BOOLEAN => DataType::Boolean,
        UTF8 => DataType::Utf8,
        BINARY => DataType::Binary,
        TIMESTAMP => DataType::Timestamp(TimeUnit::Microsecond, None),
        TIMESTAMP_TZ => DataType::Timestamp(TimeUnit::Microsecond, Some(reader.text()?.into())),
        DATE32 => DataType::Date32,
        id => return Err(CodecError::Unknown { what: "column type", id }),
    })
}
