//! Rows that a delete names by their values.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use arrow::{array::RecordBatch, datatypes::FieldRef};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{columns_of, converter, plain};
use crate::{Error, batch};

/// Rows that are named by their values in some columns, as chunk stores have those; the default is none.
#[derive(Clone, Default)]
pub struct Listed {
    rows: u32,
    /// A payload of rows, as [`crate::batch`] encodes them; empty without a row.
    payload: Bytes,
    decoded_bytes: u32,
    /// The same, decoded at its first use.
    values: Arc<OnceLock<Values>>,
}

/// Named rows in the form in which they are compared.
#[derive(Debug, Default)]
pub(super) struct Values {
    pub(super) columns: Vec<FieldRef>,
    pub(super) rows: Vec<Box<[u8]>>,
}

/// How it is stored.
#[derive(Deserialize, Serialize)]
struct Stored {
    rows: u32,
    decoded_bytes: u32,
    payload: Blob,
}

/// Bytes that are written as such, and not as a list of numbers.
struct Blob(Bytes);

impl Listed {
    /// Names the rows of a batch whose columns are called as chunk stores have them.
    pub fn of(batch: &RecordBatch) -> Result<Self, Error> {
        if batch.num_rows() == 0 {
            return Ok(Self::default());
        }
        let encoded = batch::encode(batch)?;
        let (rows, decoded_bytes) = (encoded.rows, encoded.decoded_bytes);
        Ok(Self { rows, decoded_bytes, payload: encoded.payload, values: Arc::default() })
    }

    /// How many rows are named.
    #[must_use]
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Bytes of the values after decompression.
    pub(super) fn decoded_bytes(&self) -> u32 {
        self.decoded_bytes
    }

    /// The rows in the form in which they are compared.
    pub(super) fn values(&self) -> Result<&Values, Error> {
        if let Some(values) = self.values.get() {
            return Ok(values);
        }
        let mut values = Values::default();
        if self.rows > 0 {
            for batch in batch::decode(&self.payload, self.decoded_bytes)? {
                let columns = columns_of(batch.schema_ref().fields());
                let arrays: Result<Vec<_>, Error> = batch.columns().iter().map(plain).collect();
                let rows = converter(&columns)?.convert_columns(&arrays?);
                let rows = rows.map_err(|error| {
                    Error::Invalid(format!("columns that rows cannot be named by: {error}"))
                })?;
                values.rows.extend(rows.iter().map(|row| Box::from(row.as_ref())));
                values.columns = columns;
            }
        }
        if values.rows.len() != self.rows as usize || (self.rows > 0 && values.columns.is_empty()) {
            let (found, said) = (values.rows.len(), self.rows);
            let what = format!("a delete names {found} rows instead of {said}");
            return Err(Error::Invalid(what));
        }
        Ok(self.values.get_or_init(|| values))
    }
}

impl fmt::Debug for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listed").field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl PartialEq for Listed {
    fn eq(&self, other: &Self) -> bool {
        self.rows == other.rows && self.payload == other.payload
    }
}

impl Serialize for Listed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { rows, decoded_bytes, ref payload, .. } = *self;
        Stored { rows, decoded_bytes, payload: Blob(payload.clone()) }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Stored { rows, decoded_bytes, payload } = Stored::deserialize(deserializer)?;
        Ok(Self { rows, decoded_bytes, payload: payload.0, values: Arc::default() })
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Blob;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(Bytes::copy_from_slice(bytes)))
            }

            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes.into()))
            }
        }

        deserializer.deserialize_byte_buf(Visitor)
    }
}
