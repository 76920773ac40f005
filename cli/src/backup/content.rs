//! What a table holds, as a number of rows and a hash that does not depend on their order.
//!
//! A row is hashed by xxh3-128 over its values in the order of the columns, and the hashes of all rows are added up
//! modulo 2^128, so that rows that are there twice count twice. A value is one byte 0 when it is null, else one byte 1 and
//! its bytes: numbers, timestamps and dates little-endian as Arrow has them, floats bit by bit, a boolean as one byte,
//! texts and bytes after their length as 8 bytes little-endian.

use anyhow::{Context, bail};
use arrow::{
    array::{Array, ArrayData, AsArray, BinaryArray, BooleanArray, RecordBatch, StringArray},
    datatypes::DataType,
};
use xxhash_rust::xxh3::xxh3_128;

/// Rows that were counted and hashed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// How many.
    pub(super) rows: u64,
    /// The sum of their hashes.
    pub(super) hash: u128,
}

impl Content {
    /// Takes in rows.
    pub(super) fn add(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        let data: Vec<ArrayData> = batch.columns().iter().map(|column| column.to_data()).collect();
        let columns = batch.columns().iter().zip(&data);
        let columns: Vec<Values<'_>> =
            columns.map(|(array, data)| Values::of(array, data)).collect::<Result<_, _>>()?;
        let mut row = Vec::new();
        for at in 0..batch.num_rows() {
            row.clear();
            for values in &columns {
                values.write(at, &mut row);
            }
            self.hash = self.hash.wrapping_add(xxh3_128(&row));
        }
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    /// Takes in what another has.
    pub(super) fn merge(&mut self, other: Self) {
        self.rows += other.rows;
        self.hash = self.hash.wrapping_add(other.hash);
    }
}

/// The values of a column.
struct Values<'a> {
    array: &'a dyn Array,
    cells: Cells<'a>,
}

enum Cells<'a> {
    /// All of so many bytes.
    Fixed(&'a [u8], usize),
    Booleans(&'a BooleanArray),
    Texts(&'a StringArray),
    Bytes(&'a BinaryArray),
}

impl<'a> Values<'a> {
    fn of(array: &'a dyn Array, data: &'a ArrayData) -> anyhow::Result<Self> {
        let cells = match array.data_type() {
            DataType::Boolean => Cells::Booleans(array.as_boolean()),
            DataType::Utf8 => Cells::Texts(array.as_string()),
            DataType::Binary => Cells::Bytes(array.as_binary()),
            other => {
                let Some(width) = other.primitive_width() else {
                    bail!("values of the Arrow type {other} are not known to backups");
                };
                let buffer = data.buffers().first().context("a column has no values")?;
                let start = data.offset() * width;
                let bytes = buffer.as_slice().get(start..start + data.len() * width);
                Cells::Fixed(bytes.context("a column is shorter than its rows")?, width)
            }
        };
        Ok(Self { array, cells })
    }

    /// Appends the bytes of a value.
    fn write(&self, row: usize, out: &mut Vec<u8>) {
        if self.array.is_null(row) {
            return out.push(0);
        }
        out.push(1);
        let sized = |bytes: &[u8], out: &mut Vec<u8>| {
            out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            out.extend_from_slice(bytes);
        };
        match &self.cells {
            Cells::Fixed(bytes, width) => {
                out.extend_from_slice(bytes.chunks_exact(*width).nth(row).unwrap_or_default());
            }
            Cells::Booleans(values) => out.push(values.value(row).into()),
            Cells::Texts(values) => sized(values.value(row).as_bytes(), out),
            Cells::Bytes(values) => sized(values.value(row), out),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{ArrayRef, Decimal128Array, Float64Array, Int16Array, UInt32Array},
        compute::take_record_batch,
    };

    use super::*;

    fn batch() -> RecordBatch {
        let floats = [Some(0.0), Some(-0.0), Some(f64::NAN), None, Some(f64::INFINITY)];
        let texts = [Some("a"), Some(""), None, Some("äß"), Some("a")];
        let bytes: [Option<&[u8]>; 5] = [Some(b"\0"), None, Some(b""), Some(b"\xff"), Some(b"x")];
        let columns: [(&str, ArrayRef); 6] = [
            ("float", Arc::new(Float64Array::from(floats.to_vec()))),
            ("text", Arc::new(StringArray::from(texts.to_vec()))),
            ("bytes", Arc::new(BinaryArray::from(bytes.to_vec()))),
            ("small", Arc::new(Int16Array::from(vec![Some(-1), None, Some(2), Some(3), Some(4)]))),
            ("flag", Arc::new(BooleanArray::from(vec![Some(true), Some(false), None, None, None]))),
            ("number", Arc::new(Decimal128Array::from(vec![1, -2, i128::MAX, 0, 5]))),
        ];
        RecordBatch::try_from_iter(columns).expect("they are as long")
    }

    fn of(batches: &[RecordBatch]) -> Content {
        let mut content = Content::default();
        batches.iter().for_each(|batch| content.add(batch).expect("the types are known"));
        content
    }

    #[test]
    fn the_order_of_rows_and_their_batches_do_not_matter() {
        let all = batch();
        let whole = of(std::slice::from_ref(&all));
        assert_eq!(whole.rows, 5);
        let turned = UInt32Array::from(vec![4, 2, 0, 3, 1]);
        let turned = take_record_batch(&all, &turned).expect("they are rows of it");
        assert_eq!(of(&[turned]), whole);
        assert_eq!(of(&[all.slice(3, 2), all.slice(0, 3)]), whole);
        let mut merged = of(&[all.slice(0, 1)]);
        merged.merge(of(&[all.slice(1, 4)]));
        assert_eq!(merged, whole);
    }

    #[test]
    fn every_value_and_every_row_counts() {
        let all = batch();
        let rows: Vec<u128> = (0..5).map(|row| of(&[all.slice(row, 1)]).hash).collect();
        let different: std::collections::BTreeSet<&u128> = rows.iter().collect();
        assert_eq!(different.len(), 5, "zero is not its negative, null is not an empty text");
        assert_ne!(of(&[all.slice(0, 2)]).hash, of(&[all.slice(0, 1), all.slice(0, 1)]).hash);
        // What is null is not looked at beyond that.
        let pair = |first: Option<&str>, second: Option<&str>| {
            let column = |text| Arc::new(StringArray::from(vec![text])) as ArrayRef;
            let batch = [("a", column(first)), ("b", column(second))];
            of(&[RecordBatch::try_from_iter(batch).expect("they are as long")]).hash
        };
        assert_ne!(pair(Some("ab"), Some("c")), pair(Some("a"), Some("bc")));
        assert_ne!(pair(None, Some("")), pair(Some(""), None));
    }

    /// Backups hold these hashes: a new way of hashing is a new format.
    #[test]
    fn the_hash_is_pinned() {
        assert_eq!(format!("{:032x}", of(&[batch()]).hash), "fb21f37912ba00401e2723bc32dba6a2");
    }
}
