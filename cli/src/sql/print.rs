//! Results on the terminal.

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StringArray},
    csv::WriterBuilder,
    datatypes::{DataType, Date32Type, SchemaRef, TimeUnit, TimestampMicrosecondType},
    util::display::{ArrayFormatter, FormatOptions},
};
use comfy_table::CellAlignment;
use serde_json::Value;

use super::Outcome;
use crate::format::{Format, Object, plain_table};

/// How to print results.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printing {
    /// Table, JSON or CSV.
    pub(crate) format: Format,
    /// Whether the time is printed too.
    pub(crate) timing: bool,
}

impl Printing {
    /// Prints what a statement gave.
    pub(crate) fn print(self, outcome: &Outcome) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        match (&outcome.rows, self.format) {
            (Some((schema, batches)), Format::Table) => {
                table(&mut out, schema, &finite(batches, &options())?)?;
            }
            (Some((_, batches)), Format::Json) => json(&mut out, &finite(batches, &options())?)?,
            (Some((_, batches)), Format::Csv) => {
                csv(&mut out, &finite(batches, &FormatOptions::default())?)?;
            }
            (None, Format::Table) if outcome.changed > 0 => {
                writeln!(out, "ok, {} rows", outcome.changed)?;
            }
            (None, Format::Table) => writeln!(out, "ok")?,
            (None, Format::Json | Format::Csv) => {}
        }
        Ok(())
    }
}

/// A duration as people read it.
pub(crate) fn time(elapsed: Duration) -> String {
    format!("time: {:.3} ms", elapsed.as_secs_f64() * 1000.0)
}

fn options() -> FormatOptions<'static> {
    FormatOptions::default()
        .with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.f%:::z"))
        .with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"))
}

/// The batches with times as text in every column that holds `infinity` or `-infinity`, the greatest and least values of
/// their types, which have no place in a calendar.
fn finite(
    batches: &[RecordBatch],
    options: &FormatOptions<'_>,
) -> anyhow::Result<Vec<RecordBatch>> {
    let finite = |batch: &RecordBatch| {
        let columns = batch.columns().iter();
        let named = columns.zip(batch.schema_ref().fields()).map(|(column, field)| {
            let column = finite_column(column, options)?;
            Ok((field.name().clone(), column))
        });
        let columns: Vec<(String, ArrayRef)> = named.collect::<anyhow::Result<_>>()?;
        if columns.is_empty() {
            return Ok(batch.clone());
        }
        let columns = columns.into_iter().map(|(name, column)| (name, column, true));
        Ok(RecordBatch::try_from_iter_with_nullable(columns)?)
    };
    batches.iter().map(finite).collect()
}

fn finite_column(column: &ArrayRef, options: &FormatOptions<'_>) -> anyhow::Result<ArrayRef> {
    let values: Vec<Option<i64>> = match column.data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            column.as_primitive::<TimestampMicrosecondType>().iter().collect()
        }
        DataType::Date32 => {
            let far = |day: i32| match day {
                i32::MAX => i64::MAX,
                i32::MIN => i64::MIN,
                day => day.into(),
            };
            column.as_primitive::<Date32Type>().iter().map(|day| day.map(far)).collect()
        }
        _ => return Ok(Arc::clone(column)),
    };
    if !values.iter().flatten().any(|value| [i64::MAX, i64::MIN].contains(value)) {
        return Ok(Arc::clone(column));
    }
    let formatter = ArrayFormatter::try_new(column, options)?;
    let text = values.into_iter().enumerate().map(|(row, value)| match value {
        None => Ok(None),
        Some(i64::MAX) => Ok(Some("infinity".to_owned())),
        Some(i64::MIN) => Ok(Some("-infinity".to_owned())),
        Some(_) => formatter.value(row).try_to_string().map(Some),
    });
    Ok(Arc::new(text.collect::<Result<StringArray, _>>()?))
}

fn formatters<'a>(
    batch: &'a RecordBatch,
    options: &FormatOptions<'a>,
) -> anyhow::Result<Vec<ArrayFormatter<'a>>> {
    let columns = batch.columns().iter();
    Ok(columns.map(|column| ArrayFormatter::try_new(column, options)).collect::<Result<_, _>>()?)
}

fn table(out: &mut impl Write, schema: &SchemaRef, batches: &[RecordBatch]) -> anyhow::Result<()> {
    let mut table = plain_table();
    table.set_header(schema.fields().iter().map(|field| field.name()));
    let options = options();
    for batch in batches {
        let formatters = formatters(batch, &options)?;
        for row in 0..batch.num_rows() {
            let cells: Result<Vec<String>, _> =
                formatters.iter().map(|column| column.value(row).try_to_string()).collect();
            table.add_row(cells?);
        }
    }
    for (column, field) in table.column_iter_mut().zip(schema.fields()) {
        if field.data_type().is_numeric() {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let noun = if rows == 1 { "row" } else { "rows" };
    writeln!(out, "{}\n({rows} {noun})", table.trim_fmt())?;
    Ok(())
}

fn csv(out: &mut impl Write, batches: &[RecordBatch]) -> anyhow::Result<()> {
    let mut writer = WriterBuilder::new().with_header(true).build(out);
    for batch in batches {
        writer.write(batch)?;
    }
    Ok(())
}

/// One array of objects, a line each, keys in the order of the columns; what JSON has no type for is text.
fn json(out: &mut impl Write, batches: &[RecordBatch]) -> anyhow::Result<()> {
    let options = options();
    let mut separator = "[";
    for batch in batches {
        let formatters = formatters(batch, &options)?;
        let schema = batch.schema();
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        for row in 0..batch.num_rows() {
            let columns = batch.columns().iter().zip(&formatters);
            let values: Vec<Value> = columns
                .map(|(column, formatter)| json_value(column, row, formatter))
                .collect::<anyhow::Result<_>>()?;
            let object = Object { names: &names, values: &values };
            write!(out, "{separator}{}", serde_json::to_string(&object)?)?;
            separator = ",\n";
        }
    }
    writeln!(out, "{}", if separator == "[" { "[]" } else { "]" })?;
    Ok(())
}

fn json_value(
    column: &dyn Array,
    row: usize,
    formatter: &ArrayFormatter<'_>,
) -> anyhow::Result<Value> {
    if column.is_null(row) {
        return Ok(Value::Null);
    }
    let text = formatter.value(row).try_to_string()?;
    let plain = column.data_type().is_integer()
        || column.data_type().is_floating()
        || *column.data_type() == DataType::Boolean;
    // A float that is not finite has no JSON form and stays text.
    let parsed = plain.then(|| serde_json::from_str(&text).ok()).flatten();
    Ok(parsed.unwrap_or(Value::String(text)))
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{BooleanArray, Date32Array, Float64Array, Int64Array, TimestampMicrosecondArray},
        datatypes::{Field, Schema},
    };

    use super::*;

    fn batch() -> RecordBatch {
        let schema = Schema::new(vec![
            Field::new("n", DataType::Int64, true),
            Field::new("x", DataType::Float64, true),
            Field::new("s", DataType::Utf8, true),
            Field::new("b", DataType::Boolean, true),
        ]);
        RecordBatch::try_new(
            Arc::new(schema),
            vec![
                Arc::new(Int64Array::from(vec![Some(1), None])),
                Arc::new(Float64Array::from(vec![1.5, f64::NAN])),
                Arc::new(StringArray::from(vec!["a,\"b", "c"])),
                Arc::new(BooleanArray::from(vec![true, false])),
            ],
        )
        .expect("the columns fit the schema")
    }

    fn printed(print: impl FnOnce(&mut Vec<u8>) -> anyhow::Result<()>) -> String {
        let mut out = Vec::new();
        print(&mut out).expect("it is memory");
        String::from_utf8(out).expect("it is text")
    }

    #[test]
    fn json_keeps_numbers_and_says_the_rest_as_text() {
        let text = printed(|out| json(out, &[batch()]));
        let value: Value = serde_json::from_str(&text).expect("it is JSON");
        let expected = serde_json::json!([
            { "n": 1, "x": 1.5, "s": "a,\"b", "b": true },
            { "n": null, "x": "NaN", "s": "c", "b": false },
        ]);
        assert_eq!(value, expected);
    }

    #[test]
    fn csv_quotes_what_needs_it() {
        let text = printed(|out| csv(out, &[batch()]));
        assert_eq!(text, "n,x,s,b\n1,1.5,\"a,\"\"b\",true\n,NaN,c,false\n");
    }

    #[test]
    fn the_table_counts_its_rows() {
        let batch = batch();
        let text = printed(|out| table(out, &batch.schema(), std::slice::from_ref(&batch)));
        assert!(text.ends_with("(2 rows)\n") && text.contains("a,\"b"), "{text}");
    }

    #[test]
    fn what_lies_beyond_the_calendar_is_shown() {
        let ends = [Some(i64::MAX), Some(i64::MIN), Some(0), None];
        let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(ends.to_vec()));
        let days: ArrayRef =
            Arc::new(Date32Array::from(vec![Some(i32::MAX), Some(i32::MIN), Some(0), None]));
        let batch = RecordBatch::try_from_iter([("t", times), ("d", days)]).expect("two columns");
        let shown = finite(&[batch], &options()).expect("it has a form");
        let text = printed(|out| csv(out, &shown));
        let expected =
            "t,d\ninfinity,infinity\n-infinity,-infinity\n1970-01-01 00:00:00,1970-01-01\n,\n";
        assert_eq!(text, expected);
    }
}
