//! What a statement gives its client.

use arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;

use crate::{Error, SqlState, sql::copy_from::CopyIn};

/// A message beside the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// `NOTICE` or `WARNING`.
    pub severity: &'static str,
    /// SQLSTATE.
    pub state: SqlState,
    /// What it says.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}

/// What a statement gives.
#[expect(clippy::large_enum_variant, reason = "one lives at a time, and is moved once")]
pub enum Reply {
    /// Rows; the tag's count is appended when all are sent.
    Rows {
        /// Columns.
        schema: SchemaRef,
        /// Batches.
        stream: SendableRecordBatchStream,
        /// `SELECT`, `INSERT 0`, `SHOW`, `EXPLAIN`.
        tag: &'static str,
        /// Whether the row count follows the tag.
        counted: bool,
    },
    /// No rows, such as `CREATE TABLE` or `INSERT 0 5`.
    Done(String),
    /// Nothing at all: the text held no statement.
    Empty,
    /// The client is to send rows.
    CopyIn(CopyIn),
    /// Rows for the client in a format of COPY.
    CopyOut {
        /// Number of columns.
        columns: usize,
        /// The rows.
        rows: CopyOut,
    },
}

/// The rows of a COPY TO STDOUT.
pub enum CopyOut {
    /// Lines of text, ready to send.
    Lines {
        /// The line before all rows, if there is one.
        header: Option<Vec<u8>>,
        /// Rows.
        rows: futures::stream::BoxStream<'static, Result<CopyLines, Error>>,
    },
    /// Rows that are to be sent as tuples of binary values.
    Binary(SendableRecordBatchStream),
}

/// Rows of a COPY as lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyLines {
    /// The lines with their ends.
    pub text: Vec<u8>,
    /// Where each row ends; a value may hold line ends itself.
    pub ends: Vec<usize>,
}

impl CopyLines {
    /// Each row with its line end.
    pub fn rows(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| self.text.get(start..*end).unwrap_or_default())
    }
}

impl std::fmt::Debug for CopyOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Lines { .. } => "Lines",
            Self::Binary(_) => "Binary",
        })
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rows { .. } => "Rows",
            Self::Done(_) => "Done",
            Self::Empty => "Empty",
            Self::CopyIn(_) => "CopyIn",
            Self::CopyOut { .. } => "CopyOut",
        })
    }
}
