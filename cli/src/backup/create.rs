//! `hypertide backup create`.

use std::{fmt::Write as _, path::PathBuf, sync::Arc, time::Instant};

use indicatif::{HumanBytes, HumanCount};

use super::{
    Place,
    draft::Draft,
    manifest::{Manifest, Schema, Table as Listed, hex},
    read::{self, Files, read},
    snapshot::{Snapshot, Table},
};

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory to make; there must be nothing at its place, or an empty directory.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Only this table, as NAME or SCHEMA.NAME; may be given several times [default: all].
    #[arg(long, value_name = "TABLE")]
    table: Vec<String>,
    #[command(flatten)]
    cluster: Place,
}

/// Makes the backup.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let start = Instant::now();
    let draft = Draft::begin(&args.to)?;
    let snapshot = Arc::new(Snapshot::open(&args.cluster).await?);
    let tables = snapshot.tables(&args.table).await?;
    let (text, statements_before_rows) = schema_text(&snapshot, &tables);
    let file = draft.write_schema(&text)?;
    let schema = Schema { file, statements_before_rows };
    let mut manifest = Manifest::new(snapshot.cluster.clone(), snapshot.index, schema);
    let files: Vec<Files> = (1..=tables.len())
        .map(|number| Ok((draft.dir().to_owned(), draft.table_dir(number)?)))
        .collect::<anyhow::Result<_>>()?;
    let bar = super::bar("read");
    let read_rows = read(&snapshot, &tables, &files, (args.cluster.clients, &bar)).await?;
    bar.finish_and_clear();
    let total = read::total(&read_rows);
    for (table, rows) in tables.iter().zip(read_rows) {
        manifest.tables.push(Listed {
            schema: table.schema.clone(),
            name: table.name.clone(),
            columns: rows.columns,
            rows: rows.written.content.rows,
            hash: hex(rows.written.content.hash),
            files: rows.written.files,
        });
    }
    let files = manifest.tables.iter().flat_map(|table| &table.files);
    let bytes: u64 = files.map(|file| file.file.bytes).sum();
    draft.publish(&manifest)?;
    say!(
        "{} tables, {} rows, {} at snapshot {} in {:.1} s: {}",
        tables.len(),
        HumanCount(total.rows),
        HumanBytes(bytes),
        snapshot.index,
        start.elapsed().as_secs_f64(),
        args.to.display()
    );
    Ok(())
}

/// The text of `schema.sql`, and how many statements of it come before the rows.
fn schema_text(snapshot: &Snapshot, tables: &[Table]) -> (String, usize) {
    let mut text = format!(
        "-- Hypertide backup: cluster {} at snapshot {}.\n",
        snapshot.cluster, snapshot.index
    );
    let mut before = 0;
    for table in tables {
        let _ = writeln!(text, "\n-- Table {}", in_line(&table.shown()));
        for statement in &table.before_rows {
            let _ = writeln!(text, "{statement};");
            before += 1;
        }
    }
    text.push_str(
        "\n-- When the rows are there: what is compressed, and what is done again and again.\n",
    );
    for statement in tables.iter().flat_map(|table| &table.after_rows) {
        let _ = writeln!(text, "{statement};");
    }
    (text, before)
}

/// A name for a comment, which ends with its line.
fn in_line(name: &str) -> String {
    name.replace(char::is_control, " ")
}
