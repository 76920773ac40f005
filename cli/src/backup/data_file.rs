//! Files of rows: an Arrow IPC stream in one zstd frame.
//!
//! A file is bounded in rows and in bytes before compression. Its checksum is over the bytes on disk; the frame has one
//! of its own, of what is in it.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
    ipc::{reader::StreamReader, writer::StreamWriter},
};
use hypertide_proto::schema::ColumnType;
use hypertide_storage::batch::bytes_of;
use xxhash_rust::xxh3::Xxh3;

use super::{
    content::Content,
    manifest::{Column, DataFile, Stored, hex},
};

/// Rows of a file, after which the next begins; one is restored as one statement.
const ROWS_MAX: u64 = 256 << 10;
/// Bytes of a file before compression, after which the next begins.
const BYTES_MAX: usize = 64 << 20;
/// Of zstd: the level at which it is still faster than what it is given.
const LEVEL: i32 = 3;
/// Read at once to compute a checksum.
const PIECE_BYTES: usize = 256 << 10;

/// The columns of a schema as the manifest has them.
pub(super) fn columns(schema: &Schema) -> anyhow::Result<Vec<Column>> {
    let column = |field: &arrow::datatypes::FieldRef| {
        let (name, data_type) = (field.name().clone(), field.data_type());
        let column_type = ColumnType::of_field(field)
            .with_context(|| format!("column \"{name}\" has no SQL type: {data_type}"))?;
        Ok(Column { name, column_type: column_type.to_string() })
    };
    schema.fields().iter().map(column).collect()
}

/// The rows of one part of a table, written to as many files as they need.
pub(super) struct Writer {
    schema: SchemaRef,
    /// The backup's directory, and the beginning of the files' paths in it; `None` to count and hash only.
    place: Option<(PathBuf, String)>,
    open: Option<Open>,
    done: Written,
}

/// What became of the rows.
#[derive(Clone, Debug, Default)]
pub(super) struct Written {
    pub(super) content: Content,
    pub(super) files: Vec<DataFile>,
}

struct Open {
    path: String,
    rows: u64,
    bytes: usize,
    stream: StreamWriter<zstd::Encoder<'static, Summed<BufWriter<File>>>>,
}

impl Writer {
    pub(super) fn new(schema: SchemaRef, place: Option<(PathBuf, String)>) -> Self {
        Self { schema, place, open: None, done: Written::default() }
    }

    /// Adds rows.
    pub(super) fn add(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        self.done.content.add(batch)?;
        let Some((dir, prefix)) = &self.place else { return Ok(()) };
        let open = match self.open.take() {
            Some(open) => self.open.insert(open),
            None => {
                let path = format!("{prefix}-{:03}.arrow.zst", self.done.files.len() + 1);
                self.open.insert(Open::create(dir, path, &self.schema)?)
            }
        };
        open.rows += batch.num_rows() as u64;
        open.bytes += bytes_of(batch);
        open.stream.write(batch)?;
        if open.rows >= ROWS_MAX || open.bytes >= BYTES_MAX {
            self.close()?;
        }
        Ok(())
    }

    /// Ends the file that is open.
    fn close(&mut self) -> anyhow::Result<()> {
        if let Some(open) = self.open.take() {
            self.done.files.push(open.finish()?);
        }
        Ok(())
    }

    /// Ends it; what was written is on disk.
    pub(super) fn finish(mut self) -> anyhow::Result<Written> {
        self.close()?;
        Ok(self.done)
    }
}

impl Open {
    fn create(dir: &Path, path: String, schema: &Schema) -> anyhow::Result<Self> {
        let file = File::create(dir.join(&path)).with_context(|| format!("make {path}"))?;
        let summed = Summed { inner: BufWriter::new(file), sum: Xxh3::new(), bytes: 0 };
        let mut encoder = zstd::Encoder::new(summed, LEVEL)?;
        encoder.include_checksum(true)?;
        let stream = StreamWriter::try_new(encoder, schema)?;
        Ok(Self { path, rows: 0, bytes: 0, stream })
    }

    fn finish(self) -> anyhow::Result<DataFile> {
        let Self { path, rows, stream, .. } = self;
        let mut summed = stream.into_inner()?.finish()?;
        summed.flush()?;
        summed.inner.get_ref().sync_all().with_context(|| format!("write {path}"))?;
        let checksum = hex(summed.sum.digest128());
        Ok(DataFile { file: Stored { path, bytes: summed.bytes, checksum }, rows })
    }
}

/// Passes bytes on, and counts and sums them up.
struct Summed<W> {
    inner: W,
    sum: Xxh3,
    bytes: u64,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sum.update(bytes.get(..written).unwrap_or(bytes));
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Compares a file with what the manifest says of it.
pub(super) fn check_bytes(dir: &Path, stored: &Stored) -> anyhow::Result<()> {
    let mut file = File::open(dir.join(&stored.path)).context("open it")?;
    let (mut sum, mut bytes, mut piece) = (Xxh3::new(), 0, vec![0; PIECE_BYTES]);
    loop {
        let read = file.read(&mut piece).context("read it")?;
        if read == 0 {
            break;
        }
        sum.update(piece.get(..read).unwrap_or_default());
        bytes += read as u64;
    }
    if bytes != stored.bytes {
        bail!("it has {bytes} bytes, the manifest says {}", stored.bytes);
    }
    let checksum = hex(sum.digest128());
    if checksum != stored.checksum {
        bail!("its checksum is {checksum}, the manifest says {}", stored.checksum);
    }
    Ok(())
}

/// The rows of a file.
pub(super) type Rows = StreamReader<BufReader<zstd::Decoder<'static, BufReader<File>>>>;

/// Opens a file to read its rows.
pub(super) fn open(dir: &Path, path: &str) -> anyhow::Result<Rows> {
    let file = File::open(dir.join(path)).with_context(|| format!("open {path}"))?;
    let decoder = zstd::Decoder::new(file).with_context(|| format!("open {path}"))?;
    let rows = StreamReader::try_new(BufReader::new(decoder), None);
    rows.with_context(|| format!("{path} is no Arrow stream"))
}

/// Reads a file whose bytes are as they were written; its columns must be these.
pub(super) fn read(dir: &Path, file: &DataFile, expected: &[Column]) -> anyhow::Result<Content> {
    let rows = open(dir, &file.file.path)?;
    if columns(&rows.schema())? != expected {
        bail!("its columns are not those of the table");
    }
    let mut content = Content::default();
    for batch in rows {
        content.add(&batch.context("read its rows")?)?;
    }
    if content.rows != file.rows {
        bail!("it has {} rows, the manifest says {}", content.rows, file.rows);
    }
    Ok(content)
}
