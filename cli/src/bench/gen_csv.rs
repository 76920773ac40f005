//! The rows as CSV.

use std::io::{self, Read, Write};

use super::cpu::{Generator, METRICS, Row, Shape, TAGS};

/// Room for one row.
const ROW_BYTES: usize = 512;
/// Rows are written out in pieces of about this size.
const PIECE_BYTES: usize = 256 << 10;

/// The rows as text that can be read, a header first.
#[derive(Debug)]
pub(crate) struct CsvRows {
    generator: Generator,
    piece: Vec<u8>,
    read: usize,
}

impl CsvRows {
    /// At the header.
    pub(crate) fn new(shape: &Shape) -> Self {
        let names: Vec<&str> = ["time"].into_iter().chain(TAGS).chain(METRICS).collect();
        let piece = format!("{}\n", names.join(",")).into_bytes();
        Self { generator: Generator::new(shape), piece, read: 0 }
    }

    fn refill(&mut self) -> io::Result<()> {
        self.piece.clear();
        self.read = 0;
        while self.piece.len() < PIECE_BYTES {
            let Some(row) = self.generator.next_row() else { break };
            self.piece.reserve(ROW_BYTES);
            write_row(&mut self.piece, row)?;
        }
        Ok(())
    }
}

/// No tag or metric holds a comma or a quote.
fn write_row(out: &mut Vec<u8>, row: Row<'_>) -> io::Result<()> {
    write!(out, "{}", row.time.format("%Y-%m-%d %H:%M:%S+00"))?;
    for tag in row.tags {
        out.push(b',');
        out.extend_from_slice(tag.as_bytes());
    }
    for metric in row.metrics {
        write!(out, ",{metric}")?;
    }
    out.push(b'\n');
    Ok(())
}

impl Read for CsvRows {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.piece.len() {
            self.refill()?;
        }
        let mut left = self.piece.get(self.read..).unwrap_or_default();
        let count = left.read(buffer)?;
        self.read += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_every_column() {
        let mut text = String::new();
        let shape = Shape { hosts: 7, rows: 5000, seed: 1 };
        CsvRows::new(&shape).read_to_string(&mut text).expect("it is text");
        assert_eq!(text.lines().count(), 5001);
        assert!(text.lines().all(|line| line.split(',').count() == 21));
        assert!(
            text.lines().nth(1).is_some_and(|line| line.starts_with("2016-01-01 00:00:00+00,"))
        );
    }
}
