//! `bench gen`: rows into a file or a pipe.

use std::{
    fs::File,
    io::{self, Write},
    path::PathBuf,
};

use anyhow::Context;
use arrow::{error::ArrowError, ipc::writer::StreamWriter};
use clap::ValueEnum;

use super::{
    cpu::{Generator, Shape},
    gen_csv::CsvRows,
    ingest,
};

/// Rows of one record batch.
const BATCH_ROWS: usize = 65_536;

/// The form of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Text with a header.
    Csv,
    /// An Arrow IPC stream of record batches.
    Arrow,
}

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    shape: Shape,
    /// The form of the rows.
    #[arg(long, value_enum, default_value = "csv")]
    form: Form,
    /// The file [default: standard output].
    #[arg(long, short)]
    output: Option<PathBuf>,
}

/// Writes the rows.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let written = match &args.output {
        None => write(args, io::stdout().lock()),
        Some(path) => {
            let file = File::create(path).with_context(|| format!("make {}", path.display()))?;
            write(args, io::BufWriter::new(file))
        }
    };
    match written {
        // The reader has all it wanted.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("write the rows"),
    }
}

fn write(args: &Args, mut out: impl Write) -> io::Result<()> {
    match args.form {
        Form::Csv => drop(io::copy(&mut CsvRows::new(&args.shape), &mut out)?),
        Form::Arrow => write_arrow(&args.shape, &mut out).map_err(|error| match error {
            ArrowError::IoError(_, error) => error,
            other => io::Error::other(other),
        })?,
    }
    out.flush()
}

fn write_arrow(shape: &Shape, out: &mut impl Write) -> Result<(), ArrowError> {
    let (mut generator, schema) = (Generator::new(shape), ingest::schema());
    let mut writer = StreamWriter::try_new(out, &schema)?;
    while let Some(batch) = ingest::next_batch(&mut generator, &schema, BATCH_ROWS)? {
        writer.write(&batch)?;
    }
    writer.finish()
}

#[cfg(test)]
mod tests {
    use arrow::ipc::reader::StreamReader;

    use super::*;

    #[test]
    fn both_forms_hold_every_row() {
        let args =
            |form| Args { shape: Shape { hosts: 3, rows: 70_000, seed: 1 }, form, output: None };
        let mut text = Vec::new();
        write(&args(Form::Csv), &mut text).expect("memory takes all");
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 70_001);
        let mut stream = Vec::new();
        write(&args(Form::Arrow), &mut stream).expect("memory takes all");
        let batches = StreamReader::try_new(stream.as_slice(), None).expect("it is a stream");
        let rows: usize = batches.map(|batch| batch.expect("it is whole").num_rows()).sum();
        assert_eq!(rows, 70_000);
    }
}
