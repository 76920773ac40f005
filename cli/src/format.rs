//! Listings as a table for people, or as JSON or CSV for programs.

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::{Serialize, Serializer};
use serde_json::Value;

/// How a listing is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns.
    #[default]
    Table,
    /// One JSON array of objects.
    Json,
    /// Comma-separated values with a header.
    Csv,
}

/// A listing: named columns and rows of as many values each.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    columns: Vec<&'static str>,
    rows: Vec<Vec<Value>>,
}

impl Listing {
    /// An empty listing of these columns.
    pub(crate) fn new(columns: &[&'static str]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row, one value a column.
    pub(crate) fn push(&mut self, row: Vec<Value>) {
        debug_assert_eq!(row.len(), self.columns.len(), "a row has one value per column");
        self.rows.push(row);
    }

    /// Writes the listing to standard output.
    pub(crate) fn print(&self, format: Format) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        match format {
            Format::Table => writeln!(out, "{}", self.table().trim_fmt())?,
            Format::Json => writeln!(out, "{}", serde_json::to_string(self)?)?,
            Format::Csv => self.write_csv(&mut out)?,
        }
        Ok(())
    }

    fn table(&self) -> Table {
        let mut table = plain_table();
        table.set_header(&self.columns);
        for row in &self.rows {
            table.add_row(row.iter().map(text));
        }
        for (at, column) in table.column_iter_mut().enumerate() {
            let numeric = self.rows.iter().any(|row| row.get(at).is_some_and(Value::is_number));
            if numeric {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }

    fn write_csv(&self, out: &mut impl Write) -> anyhow::Result<()> {
        let mut writer = csv::Writer::from_writer(out);
        writer.write_record(&self.columns)?;
        for row in &self.rows {
            writer.write_record(row.iter().map(text))?;
        }
        writer.flush()?;
        Ok(())
    }
}

/// One array of objects, each with its keys in the order of the columns.
impl Serialize for Listing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let names = self.columns.as_slice();
        serializer.collect_seq(self.rows.iter().map(|values| Object { names, values }))
    }
}

/// A JSON object with its keys in the order of `names`.
#[derive(Debug)]
pub(crate) struct Object<'a, N> {
    /// Keys.
    pub(crate) names: &'a [N],
    /// One value a key.
    pub(crate) values: &'a [Value],
}

impl<N: Serialize> Serialize for Object<'_, N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.names.iter().zip(self.values))
    }
}

/// A line below the header and bars between columns: comfy-table's nineteen places for characters.
const PRESET: &str = "     -+ |          ";

/// An empty table as psql draws it.
pub(crate) fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_preset(PRESET);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// A value without the quotes of JSON; null is empty.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing() -> Listing {
        let mut listing = Listing::new(&["name", "chunks", "nodes"]);
        listing.push(vec!["a, b".into(), 7.into(), Value::Array(vec!["d1".into(), "d2".into()])]);
        listing.push(vec!["c".into(), Value::Null, Value::Array(vec![])]);
        listing
    }

    #[test]
    fn csv_quotes_what_holds_commas() {
        let mut out = Vec::new();
        listing().write_csv(&mut out).expect("it is memory");
        let text = String::from_utf8(out).expect("it is text");
        assert_eq!(text, "name,chunks,nodes\n\"a, b\",7,\"d1,d2\"\nc,,\n");
    }

    #[test]
    fn json_keeps_types_and_order() {
        let json = serde_json::to_string(&listing()).expect("it is plain");
        let expected = r#"[{"name":"a, b","chunks":7,"nodes":["d1","d2"]},{"name":"c","chunks":null,"nodes":[]}]"#;
        assert_eq!(json, expected);
    }

    #[test]
    fn the_table_has_every_cell() {
        let table = listing().table().to_string();
        assert!(table.contains("a, b") && table.contains("d1,d2") && table.contains("name"));
    }
}
