//! COPY … FROM STDIN: blocks of data are read on threads that may block, cut by chunk and sent to the data nodes while
//! more data comes.

use std::{sync::Arc, time::Instant};

use arrow::array::{ArrayRef, RecordBatch};
use bytes::Bytes;
use hypertide_meta::catalog::Table;
use hypertide_proto::ids::WriteId;
use xxhash_rust::xxh3::Xxh3;

use super::{
    copy_binary::Tuples,
    copy_options::{Copy, Form, Source},
    copy_rows::{Field, Rows},
    ingest::put,
    insert::fill,
    table::{default_of, find},
    text::{TextStyle, write_text},
};
use crate::{
    Error, Reply, Session, Snapshot,
    ingest::send::{Writer, blocking},
    session::Frame,
};

/// Rows that are written at once.
const BATCH_ROWS: usize = 1 << 16;

/// A COPY FROM STDIN that waits for its data. Dropping it gives it up: nothing of it is visible ever.
pub struct CopyIn {
    /// Number of columns that the client sends.
    pub columns: usize,
    /// Whether the format is binary.
    pub binary: bool,
    table: Arc<Table>,
    /// Positions in the table of the columns that the data has.
    positions: Vec<usize>,
    frame: Frame,
    /// The reader; away while it is at work, and for good after an error.
    input: Option<Input>,
    writer: Writer,
    count: u64,
    write_id: Option<WriteId>,
    content: Xxh3,
    deadline: Instant,
}

impl std::fmt::Debug for CopyIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let table = &self.table.name;
        f.debug_struct("CopyIn")
            .field("table", table)
            .field("rows", &self.count)
            .finish_non_exhaustive()
    }
}

/// Reads the data in its form.
#[derive(Debug)]
enum Input {
    Lines(Rows),
    Binary(Tuples),
}

impl Input {
    fn push(&mut self, piece: &[u8]) -> bool {
        match self {
            Self::Lines(rows) => rows.push(piece),
            Self::Binary(tuples) => tuples.push(piece),
        }
    }

    fn read(&mut self, end: bool) -> Result<(), Error> {
        match self {
            Self::Lines(rows) => rows.read(end),
            Self::Binary(tuples) => tuples.read(end),
        }
    }

    fn rows(&self) -> usize {
        match self {
            Self::Lines(rows) => rows.rows(),
            Self::Binary(tuples) => tuples.rows(),
        }
    }

    fn take(&mut self) -> Vec<ArrayRef> {
        match self {
            Self::Lines(rows) => rows.take(),
            Self::Binary(tuples) => tuples.take(),
        }
    }
}

/// Begins a COPY FROM STDIN.
pub(crate) async fn begin(session: &mut Session, copy: &Copy, sql: &str) -> Result<Reply, Error> {
    let Source::Table(name, columns) = &copy.source else {
        return Err(Error::of("42601", "COPY FROM needs a table"));
    };
    let write_id = session.take_write_id()?;
    let frame = session.frame().await?;
    let path = session.settings.get("search_path").unwrap_or_default();
    let table = find(&frame.snapshot.image, name, path)?;
    let mut positions = Vec::with_capacity(columns.len());
    for name in columns {
        let position =
            table.columns.position(name).ok_or_else(|| Error::no_column(name, &table.name))?;
        if positions.contains(&position) {
            return Err(Error::of(
                "42701",
                format_args!("column \"{name}\" specified more than once"),
            ));
        }
        positions.push(position);
    }
    if columns.is_empty() {
        positions.extend(0..table.columns.columns.len());
    }
    let columns = positions.iter().filter_map(|position| table.columns.columns.get(*position));
    let input = match &copy.form {
        Form::Binary => {
            Input::Binary(Tuples::new(&table.name, columns.cloned().collect(), frame.zone))
        }
        Form::Lines(format) => {
            let mut fields = Vec::with_capacity(positions.len());
            for column in columns {
                let default = match format.default.is_some() && default_of(column)?.is_some() {
                    true => text_of(&fill(&frame, column, 1).await?),
                    false => None,
                };
                fields.push(Field { column: column.clone(), default });
            }
            Input::Lines(Rows::new(&table.name, format.clone(), fields, frame.zone)?)
        }
    };
    let mut content = Xxh3::new();
    content.update(sql.as_bytes());
    // Taken last, so that no error above leaves the block without its rows.
    let writer = session.take_writer()?;
    let frame = match table.columns.keys.is_empty() {
        true => frame,
        // Keys are looked for in what the transaction wrote, too.
        false => {
            let snapshot = session.fresh_snapshot().await?;
            session.frame_of(Snapshot { own: Some(writer.txn()), ..snapshot })?
        }
    };
    session.copying = true;
    Ok(Reply::CopyIn(CopyIn {
        columns: positions.len(),
        binary: copy.form == Form::Binary,
        table,
        positions,
        deadline: frame.deadline,
        frame,
        input: Some(input),
        writer,
        count: 0,
        write_id,
        content,
    }))
}

fn text_of(array: &ArrayRef) -> Option<String> {
    let mut out = Vec::new();
    let style = TextStyle::default();
    write_text(array, 0, style, &mut out).then(|| String::from_utf8_lossy(&out).into_owned())
}

impl CopyIn {
    /// Takes the next piece of data, cut anywhere. After an error the copy is over.
    pub async fn data(&mut self, piece: Bytes) -> Result<(), Error> {
        if self.write_id.is_some() {
            self.content.update(&piece);
        }
        let input = self.input.as_mut().ok_or_else(over)?;
        if input.push(&piece) { self.read(false).await } else { Ok(()) }
    }

    /// Reads what is there, and writes it when it is much.
    async fn read(&mut self, end: bool) -> Result<(), Error> {
        let mut input = self.input.take().ok_or_else(over)?;
        let (input, ready) = blocking(move || {
            input.read(end)?;
            let enough = input.rows() >= BATCH_ROWS || (end && input.rows() > 0);
            let ready = enough.then(|| (input.rows(), input.take()));
            Ok((input, ready))
        })
        .await?;
        if let Some((count, columns)) = ready {
            let batch = self.complete(count, columns).await?;
            self.count += count as u64;
            put(&self.frame, &self.table, &mut self.writer, (batch, self.deadline)).await?;
        }
        self.input = Some(input);
        Ok(())
    }

    /// Puts the columns in the table's order and fills the others with their defaults.
    async fn complete(&self, rows: usize, columns: Vec<ArrayRef>) -> Result<RecordBatch, Error> {
        let mut placed: Vec<Option<ArrayRef>> = vec![None; self.table.columns.columns.len()];
        for (position, array) in self.positions.iter().zip(columns) {
            if let Some(place) = placed.get_mut(*position) {
                *place = Some(array);
            }
        }
        let mut complete = Vec::with_capacity(placed.len());
        for (place, column) in placed.into_iter().zip(&self.table.columns.columns) {
            complete.push(match place {
                Some(array) => array,
                None => fill(&self.frame, column, rows).await?,
            });
        }
        Ok(RecordBatch::try_new(self.table.columns.to_arrow(), complete)?)
    }

    /// Reads the rest and ends the writing; gives the number of rows.
    pub(crate) async fn finish(mut self, session: &mut Session) -> Result<u64, Error> {
        self.read(true).await?;
        let tag = self.write_id.map(|id| (id, self.content.digest128()));
        session.end_write(self.writer, self.count, tag).await
    }
}

fn over() -> Error {
    Error::of("57014", "COPY is over after an error")
}
