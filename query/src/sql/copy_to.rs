//! COPY … TO STDOUT.

use std::sync::Arc;

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use datafusion::sql::sqlparser::ast::{
    Expr, Ident, ObjectName, SelectItem, SetExpr, Statement as Ast,
};
use futures::{StreamExt as _, TryStreamExt as _};

use super::{
    again::Again,
    copy_options::{Copy, Form, Format, Header, Source},
    query,
    table::find,
    text::{TextColumn, TextStyle},
};
use crate::{CopyLines, CopyOut, Error, Reply, Session, session::Frame};

/// Runs COPY … TO STDOUT.
pub(crate) async fn run(session: &mut Session, copy: &Copy) -> Result<Reply, Error> {
    let frame = session.frame().await?;
    let ast = match &copy.source {
        Source::Query(query) => Ast::Query(query.clone()),
        Source::Table(name, columns) => of_table(session, &frame, name, columns)?,
    };
    query::check(&ast)?;
    let again = Again::new(session, &frame, (&ast, &[]));
    let plan = query::bind(query::plan(&frame.ctx, ast).await?, Vec::new())?;
    let rows = frame.ctx.execute_logical_plan(plan).await?.execute_stream().await?;
    let rows = again.guard(rows);
    let schema = rows.schema();
    let columns = schema.fields().len();
    let Form::Lines(format) = &copy.form else {
        return Ok(Reply::CopyOut { columns, rows: CopyOut::Binary(rows) });
    };
    for name in format.force_quote.iter().filter(|name| *name != "*") {
        if schema.column_with_name(name).is_none() {
            return Err(Error::of("42703", format_args!("column \"{name}\" does not exist")));
        }
    }
    let style = session.settings.text_style();
    let lines = Arc::new(Lines::new(format.clone(), &schema, style));
    let header = lines.header(&schema);
    let rows = rows.map_err(Error::from).map(move |batch| Ok(lines.encode(&batch?))).boxed();
    Ok(Reply::CopyOut { columns, rows: CopyOut::Lines { header, rows } })
}

/// The query that gives the columns of a table.
fn of_table(
    session: &Session,
    frame: &Frame,
    name: &ObjectName,
    columns: &[String],
) -> Result<Ast, Error> {
    let path = session.settings.get("search_path").unwrap_or_default();
    let table = find(&frame.snapshot.image, name, path)?;
    if let Some(unknown) = columns.iter().find(|column| table.columns.column(column).is_none()) {
        return Err(Error::no_column(unknown, &table.name));
    }
    let all: Vec<String> = table.columns.columns.iter().map(|column| column.name.clone()).collect();
    let columns = if columns.is_empty() { &all } else { columns };
    let mut ast = query::select_of(&[])?;
    if let Ast::Query(query) = &mut ast
        && let SetExpr::Select(select) = query.body.as_mut()
    {
        let item =
            |name: &String| SelectItem::UnnamedExpr(Expr::Identifier(Ident::with_quote('"', name)));
        select.projection = columns.iter().map(item).collect();
        let mut relation = super::call::table_factor("", &table.name);
        if let datafusion::sql::sqlparser::ast::TableFactor::Table { name, args, .. } =
            &mut relation
        {
            *name = ObjectName::from(vec![
                Ident::with_quote('"', &table.schema),
                Ident::with_quote('"', &table.name),
            ]);
            *args = None;
        }
        select.from =
            vec![datafusion::sql::sqlparser::ast::TableWithJoins { relation, joins: Vec::new() }];
    }
    Ok(ast)
}

/// Encodes rows as lines.
struct Lines {
    format: Format,
    style: TextStyle,
    /// Whether a column's values always stand in quotes.
    forced: Vec<bool>,
}

impl Lines {
    fn new(format: Format, schema: &SchemaRef, style: TextStyle) -> Self {
        let all = format.force_quote.iter().any(|name| name == "*");
        let forced =
            schema.fields().iter().map(|field| all || format.force_quote.contains(field.name()));
        Self { forced: forced.collect(), style, format }
    }

    fn header(&self, schema: &SchemaRef) -> Option<Vec<u8>> {
        if self.format.header == Header::None {
            return None;
        }
        let mut out = Vec::new();
        for (at, field) in schema.fields().iter().enumerate() {
            if at > 0 {
                out.push(self.format.delimiter);
            }
            self.value(field.name().as_bytes(), false, schema.fields().len() == 1, &mut out);
        }
        out.push(b'\n');
        Some(out)
    }

    fn encode(&self, batch: &RecordBatch) -> CopyLines {
        let columns: Vec<TextColumn> =
            batch.columns().iter().map(|column| TextColumn::new(column, self.style)).collect();
        let single = columns.len() == 1;
        let mut ends = Vec::with_capacity(batch.num_rows());
        let (mut out, mut value) = (Vec::with_capacity(batch.num_rows() * 64), Vec::new());
        for row in 0..batch.num_rows() {
            for (at, (column, forced)) in columns.iter().zip(&self.forced).enumerate() {
                if at > 0 {
                    out.push(self.format.delimiter);
                }
                value.clear();
                match column.write(row, &mut value) {
                    true => self.value(&value, *forced, single, &mut out),
                    false => out.extend_from_slice(self.format.null.as_bytes()),
                }
            }
            out.push(b'\n');
            ends.push(out.len());
        }
        CopyLines { text: out, ends }
    }

    fn value(&self, value: &[u8], forced: bool, single: bool, out: &mut Vec<u8>) {
        if self.format.csv {
            self.csv(value, forced, single, out);
        } else {
            self.text(value, out);
        }
    }

    fn csv(&self, value: &[u8], forced: bool, single: bool, out: &mut Vec<u8>) {
        let Format { delimiter, quote, escape, null, .. } = &self.format;
        let special =
            |byte: &u8| byte == delimiter || byte == quote || matches!(byte, b'\n' | b'\r');
        let quoted = forced
            || value == null.as_bytes()
            || (single && value == b"\\.")
            || value.iter().any(special);
        if !quoted {
            return out.extend_from_slice(value);
        }
        out.push(*quote);
        for byte in value {
            if byte == quote || byte == escape {
                out.push(*escape);
            }
            out.push(*byte);
        }
        out.push(*quote);
    }

    fn text(&self, value: &[u8], out: &mut Vec<u8>) {
        for byte in value {
            let escaped = match byte {
                b'\\' => b'\\',
                0x08 => b'b',
                0x0c => b'f',
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                0x0b => b'v',
                byte if *byte == self.format.delimiter => *byte,
                byte => {
                    out.push(*byte);
                    continue;
                }
            };
            out.extend_from_slice(&[b'\\', escaped]);
        }
    }
}
