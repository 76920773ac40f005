//! Rows of one chunk gathered from the batches of a statement until they are a part worth sending. Pure.
//!
//! What clients send is small (a block of COPY, a message of Flight) and is cut by chunk besides: what is left of it for
//! each chunk is put together again, so that a part costs its messages, its row in the journal and its headers once.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, RecordBatch, UInt32Array},
    compute::{concat, take},
    datatypes::{DataType, Schema, SchemaRef},
    error::ArrowError,
};
use hypertide_storage::batch::{DICTIONARY_ENTRIES_MAX, bytes_of, plain_type};

use super::texts::Texts;

/// Rows of a part take about so many bytes at most, as they came.
const PART_BYTES: usize = 8 << 20;
/// Rows of a part: its texts have 16-bit keys.
const PART_ROWS: usize = 64 << 10;

const _: () = assert!(PART_ROWS <= DICTIONARY_ENTRIES_MAX);

/// Rows of one chunk that are not sent yet.
#[derive(Debug)]
pub(super) struct Gather {
    /// The table's, without dictionaries.
    schema: SchemaRef,
    columns: Vec<Column>,
    rows: usize,
    bytes: usize,
}

#[derive(Debug)]
enum Column {
    Texts(Texts),
    Others(Vec<ArrayRef>),
}

impl Gather {
    /// Nothing, of a table of this schema.
    pub(super) fn new(schema: SchemaRef) -> Self {
        let columns = columns(&schema);
        Self { schema, columns, rows: 0, bytes: 0 }
    }

    /// Takes the rows at these positions, which rise; gives the parts that are complete.
    pub(super) fn add(
        &mut self,
        batch: &RecordBatch,
        mut rows: &[u32],
    ) -> Result<Vec<RecordBatch>, ArrowError> {
        let mut parts = Vec::new();
        let row_bytes = row_bytes(batch);
        while !rows.is_empty() {
            let left = PART_BYTES.saturating_sub(self.bytes) / row_bytes;
            let left = left.min(PART_ROWS - self.rows).min(rows.len());
            // A row that is larger than a part is one of its own.
            let left = if self.rows == 0 { left.max(1) } else { left };
            if left == 0 {
                parts.extend(self.finish()?);
                continue;
            }
            let (fitting, rest) = rows.split_at(left);
            for (column, array) in self.columns.iter_mut().zip(batch.columns()) {
                match column {
                    Column::Texts(texts) => texts.add(array, fitting)?,
                    Column::Others(pieces) => pieces.push(pick(array, fitting)?),
                }
            }
            self.rows += left;
            self.bytes += left * row_bytes;
            rows = rest;
        }
        Ok(parts)
    }

    /// Bytes that the rows take which wait, about.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// What was taken and is not in a part yet; `None` when that is nothing.
    pub(super) fn finish(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        if self.rows == 0 {
            return Ok(None);
        }
        (self.rows, self.bytes) = (0, 0);
        let gathered = std::mem::replace(&mut self.columns, columns(&self.schema));
        let mut arrays = Vec::with_capacity(gathered.len());
        let mut fields = Vec::with_capacity(gathered.len());
        for (column, field) in gathered.into_iter().zip(self.schema.fields()) {
            let array = match column {
                Column::Texts(mut texts) => texts.finish()?,
                Column::Others(pieces) => {
                    concat(&pieces.iter().map(AsRef::as_ref).collect::<Vec<&dyn Array>>())?
                }
            };
            fields.push(field.as_ref().clone().with_data_type(array.data_type().clone()));
            arrays.push(array);
        }
        RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map(Some)
    }
}

fn columns(schema: &SchemaRef) -> Vec<Column> {
    let column = |field: &Arc<arrow::datatypes::Field>| match plain_type(field.data_type()) {
        DataType::Utf8 => Column::Texts(Texts::new()),
        _ => Column::Others(Vec::new()),
    };
    schema.fields().iter().map(column).collect()
}

/// Bytes that a row of a batch takes, on average.
fn row_bytes(batch: &RecordBatch) -> usize {
    (bytes_of(batch) / batch.num_rows().max(1)).max(1)
}

/// The values at these positions, which rise: without a copy when they follow each other.
fn pick(array: &ArrayRef, rows: &[u32]) -> Result<ArrayRef, ArrowError> {
    match (rows.first(), rows.last()) {
        (Some(first), Some(last)) if (last - first) as usize + 1 == rows.len() => {
            Ok(array.slice(*first as usize, rows.len()))
        }
        _ => take(array, &UInt32Array::from(rows.to_vec()), None),
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{AsArray, Float64Array, StringArray},
        compute::cast,
        datatypes::{Field, Float64Type},
    };

    use super::*;

    fn batch(rows: std::ops::Range<usize>, text: impl Fn(usize) -> String) -> RecordBatch {
        let names: StringArray = rows.clone().map(|row| Some(text(row))).collect();
        let values: Float64Array = rows.map(|row| Some(row as f64)).collect();
        let schema = Schema::new(vec![
            Field::new("name", DataType::Utf8, true),
            Field::new("value", DataType::Float64, true),
        ]);
        let columns: Vec<ArrayRef> = vec![Arc::new(names), Arc::new(values)];
        RecordBatch::try_new(Arc::new(schema), columns).expect("the columns fit")
    }

    fn values(parts: &[RecordBatch]) -> Vec<usize> {
        let each = |part: &RecordBatch| {
            let values = part.column(1).as_primitive::<Float64Type>().values().to_vec();
            let names = cast(part.column(0), &DataType::Utf8).expect("they are texts");
            let names: Vec<String> =
                names.as_string::<i32>().iter().flatten().map(str::to_owned).collect();
            for (name, value) in names.iter().zip(&values) {
                assert!(name.starts_with(&format!("{}/", *value as usize % 10)), "{name} {value}");
            }
            values
        };
        parts.iter().flat_map(each).map(|value| value as usize).collect()
    }

    #[test]
    fn small_pieces_become_one_part() {
        let all = batch(0..100, |row| format!("{}/", row % 10));
        let mut gather = Gather::new(all.schema());
        for start in (0..100).step_by(10) {
            let odd: Vec<u32> = (0..10).filter(|row| row % 2 == 1).collect();
            let parts = gather.add(&all.slice(start, 10), &odd).expect("it fits");
            assert!(parts.is_empty());
        }
        let part = gather.finish().expect("it fits").expect("there are rows");
        assert_eq!(values(&[part]), (0..100).filter(|row| row % 2 == 1).collect::<Vec<_>>());
        assert!(gather.finish().expect("it fits").is_none());
    }

    #[test]
    fn parts_are_bounded_in_rows_and_bytes() {
        for (rows, width) in [(3 * PART_ROWS / 2, 1), (30, PART_BYTES / 4)] {
            let all = batch(0..rows, |row| format!("{}/{}", row % 10, "x".repeat(width)));
            let mut gather = Gather::new(all.schema());
            let positions: Vec<u32> = (0..rows as u32).collect();
            let mut parts = gather.add(&all, &positions).expect("it fits");
            parts.extend(gather.finish().expect("it fits"));
            assert!(parts.len() > 1);
            for part in &parts {
                assert!(part.num_rows() <= PART_ROWS);
                assert!(part.num_rows() * width <= PART_BYTES);
            }
            assert_eq!(values(&parts), (0..rows).collect::<Vec<_>>());
        }
    }
}
