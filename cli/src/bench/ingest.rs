//! Rows as record batches, for Flight.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Float64Builder, RecordBatch, StringBuilder, TimestampMicrosecondBuilder},
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
    error::ArrowError,
};

use super::cpu::{Generator, METRICS, TAGS};

/// The table's columns as Arrow has them.
pub(crate) fn schema() -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let mut fields = vec![Field::new("time", time, false)];
    fields.extend(TAGS.iter().map(|tag| Field::new(*tag, DataType::Utf8, true)));
    fields.extend(METRICS.iter().map(|metric| Field::new(*metric, DataType::Float64, true)));
    Arc::new(Schema::new(fields))
}

/// The next rows, at most `rows`; `None` after the last.
pub(crate) fn next_batch(
    generator: &mut Generator,
    schema: &SchemaRef,
    rows: usize,
) -> Result<Option<RecordBatch>, ArrowError> {
    let mut times = TimestampMicrosecondBuilder::with_capacity(rows).with_timezone("UTC");
    let mut tags: [StringBuilder; TAGS.len()] = std::array::from_fn(|_| StringBuilder::new());
    let mut metrics: [Float64Builder; METRICS.len()] =
        std::array::from_fn(|_| Float64Builder::with_capacity(rows));
    let mut count = 0;
    while count < rows
        && let Some(row) = generator.next_row()
    {
        times.append_value(row.time.timestamp_micros());
        for (column, tag) in tags.iter_mut().zip(row.tags) {
            column.append_value(tag);
        }
        for (column, metric) in metrics.iter_mut().zip(row.metrics) {
            column.append_value(metric);
        }
        count += 1;
    }
    if count == 0 {
        return Ok(None);
    }
    let mut columns: Vec<ArrayRef> = vec![Arc::new(times.finish())];
    columns.extend(tags.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef));
    columns.extend(metrics.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef));
    RecordBatch::try_new(Arc::clone(schema), columns).map(Some)
}

#[cfg(test)]
mod tests {
    use super::{super::cpu::Shape, *};

    #[test]
    fn batches_hold_every_row() {
        let mut generator = Generator::new(&Shape { hosts: 3, rows: 25, seed: 1 });
        let schema = schema();
        let mut sizes = Vec::new();
        while let Some(batch) = next_batch(&mut generator, &schema, 10).expect("columns fit") {
            sizes.push(batch.num_rows());
        }
        assert_eq!(sizes, [10, 10, 5]);
    }
}
