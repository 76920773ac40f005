//! Results on their way to the client: all at once, or some rows at a time.

use std::{fmt, panic::AssertUnwindSafe, sync::Arc};

use arrow::{array::RecordBatch, datatypes::Schema};
use datafusion::{common::ScalarValue, execution::SendableRecordBatchStream};
use futures::{FutureExt, StreamExt};
use pgwire::messages::{PgWireBackendMessage as Message, data::RowDescription};
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    backend::Writer,
    connection::{Fault, Watch},
    encode::Rows,
    frontend::{Format, PROTOCOL_VIOLATION, Reader},
    types::PgType,
};
use crate::{Error, Prepared, SqlState, sql::text::TextStyle};

/// Batches that wait to be sent.
const BATCHES_AHEAD: usize = 1;

/// A statement with its parameters.
#[derive(Debug)]
pub(super) struct Portal {
    pub(super) statement: Arc<Prepared>,
    pub(super) results: Vec<Format>,
    pub(super) state: PortalState,
}

/// How far it is.
#[derive(Debug)]
pub(super) enum PortalState {
    /// Not run yet.
    Ready(Vec<ScalarValue>),
    /// Some rows were sent, or none.
    Running(Box<Cursor>),
    /// All was sent. A statement that gave rows gives none when it is run on, under this tag; another cannot run again.
    Done(Option<&'static str>),
}

/// Rows, and how far they were sent.
///
/// They are made in a task of their own: while a batch is sent the next is made, and a statement that computes long
/// without a pause can be cancelled all the same. The task ends with the cursor.
pub(super) struct Cursor {
    batches: mpsc::Receiver<Made>,
    _task: JoinSet<()>,
    types: Vec<(PgType, Format)>,
    style: TextStyle,
    rows: Option<Rows>,
    sent: u64,
    tag: &'static str,
    counted: bool,
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} after {} rows", self.tag, self.sent)
    }
}

impl Cursor {
    /// A cursor at the first row. `tag` gets the number of rows when `counted`.
    pub(super) fn new(
        stream: SendableRecordBatchStream,
        types: Vec<(PgType, Format)>,
        style: TextStyle,
        (tag, counted): (&'static str, bool),
    ) -> Self {
        let (sender, batches) = mpsc::channel(BATCHES_AHEAD);
        let mut task = JoinSet::new();
        task.spawn(make(stream, sender));
        Self { batches, _task: task, types, style, rows: None, sent: 0, tag, counted }
    }

    /// Sends up to `most` rows; gives whether they were the last.
    pub(super) async fn send(
        &mut self,
        most: u64,
        (reader, writer): (&mut Reader, &mut Writer),
        watch: &Watch,
    ) -> Result<bool, Fault> {
        self.sent = 0;
        loop {
            while let Some(rows) = &mut self.rows {
                if self.sent == most {
                    return Ok(false);
                }
                if !rows.write_next(writer.buffer()) {
                    self.rows = None;
                    break;
                }
                self.sent += 1;
                if writer.large() {
                    watch.over(reader, writer.flush()).await??;
                }
            }
            match watch.over(reader, self.batches.recv()).await? {
                Some(Made::Batch(batch)) => {
                    self.rows = Some(Rows::new(&batch, &self.types, self.style)?);
                }
                Some(Made::End) => return Ok(true),
                Some(Made::Failed(error)) => return Err(error.into()),
                None => return Err(unexpected_end().into()),
            }
        }
    }

    /// What a portal is once the last row was sent.
    pub(super) fn done(&self) -> PortalState {
        PortalState::Done(self.counted.then_some(self.tag))
    }

    /// The tag of the finished statement; it counts the rows of the last page, as PostgreSQL does.
    pub(super) fn tag(&self) -> String {
        match self.counted {
            true => format!("{} {}", self.tag, self.sent),
            false => self.tag.to_owned(),
        }
    }
}

/// What the task of a cursor says.
enum Made {
    Batch(RecordBatch),
    Failed(Error),
    End,
}

/// Makes rows until their end, an error, or nobody takes them.
async fn make(mut stream: SendableRecordBatchStream, sender: mpsc::Sender<Made>) {
    loop {
        let next = match AssertUnwindSafe(stream.next()).catch_unwind().await {
            Ok(Some(Ok(batch))) => Made::Batch(batch),
            Ok(Some(Err(error))) => Made::Failed(error.into()),
            Ok(None) => Made::End,
            Err(_) => Made::Failed(unexpected_end()),
        };
        let more = matches!(next, Made::Batch(_));
        if sender.send(next).await.is_err() || !more {
            return;
        }
    }
}

fn unexpected_end() -> Error {
    Error::new(SqlState("XX000"), "the query ended unexpectedly")
}

/// The types and formats of a result. `formats` are none, one for all, or one each.
pub(super) fn result_types(
    schema: &Schema,
    formats: &[Format],
) -> Result<Vec<(PgType, Format)>, Error> {
    let count = schema.fields().len();
    if formats.len() > 1 && formats.len() != count {
        let given = formats.len();
        let message =
            format!("bind message has {given} result formats but query has {count} columns");
        return Err(Error::new(PROTOCOL_VIOLATION, message));
    }
    let types = schema.fields().iter().enumerate().map(|(at, field)| {
        let format = if formats.len() == 1 { formats.first() } else { formats.get(at) };
        (PgType::of_field(field), format.copied().unwrap_or(Format::Text))
    });
    Ok(types.collect())
}

/// The description of a result.
pub(super) fn describe(schema: &Schema, types: &[(PgType, Format)]) -> Message {
    let fields = schema.fields().iter().zip(types);
    let fields = fields.map(|(field, (pg_type, format))| pg_type.describe(field.name(), *format));
    Message::RowDescription(RowDescription::new(fields.collect()))
}
