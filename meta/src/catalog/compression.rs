//! How the chunks of a hypertable are compressed, and which are.
//!
//! The catalog says what is wanted and what was done; data nodes do it, each with its own replica.

use std::fmt;

use hypertide_proto::{
    ids::{ChunkId, Csn, TableId},
    schema::Key,
};
use serde::{Deserialize, Serialize};

use super::{Catalog, Chunk, Hypertable, Outcome, Reject, Table, apply::Step};

/// How chunks are compressed.
///
/// - No column stands twice, in either list or in both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compression {
    /// Columns whose equal values lie together.
    pub segment_by: Vec<String>,
    /// Order within a segment; by time, the latest first, when it is empty.
    pub order_by: Vec<OrderBy>,
    /// Width of the time slices that are compressed together, in the unit of the time column.
    pub chunk_interval: Option<i64>,
}

/// One column of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderBy {
    /// The column.
    pub column: String,
    /// Whether the greatest comes first.
    pub descending: bool,
    /// Whether nulls come first.
    pub nulls_first: bool,
}

/// What compressing a chunk gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compressed {
    /// The last commit that is in it; rows of later ones lie beside it.
    pub csn: Csn,
    /// Bytes of one replica before.
    pub before_bytes: u64,
    /// Bytes of one replica after.
    pub after_bytes: u64,
    /// When: milliseconds of log time.
    pub at_ms: u64,
}

/// What was asked of a chunk's compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// All commits up to this one are to be compressed on every replica; `None` for none at all.
    pub up_to: Option<Csn>,
    /// When: milliseconds of log time.
    pub at_ms: u64,
}

impl Compression {
    /// Whether a column takes part in it.
    pub(crate) fn names(&self, column: &str) -> bool {
        let orders = self.order_by.iter().map(|by| &by.column);
        self.segment_by.iter().chain(orders).any(|name| name == column)
    }

    /// Refuses to compress by less than the columns of every key.
    pub(crate) fn check_keys(&self, table: &Table) -> Result<(), Reject> {
        let columns = |key: &Key| table.columns.key_positions(key);
        let positions = table.columns.keys.iter().flat_map(columns);
        let mut names = positions.filter_map(|at| table.columns.columns.get(at));
        let by_time = |name: &str| {
            let made = table.hypertable().filter(|_| self.order_by.is_empty());
            let time = made.and_then(|made| made.dimensions.first());
            time.is_some_and(|time| time.column == name)
        };
        let used = |name: &str| self.names(name) || by_time(name);
        match names.find(|column| !used(&column.name)) {
            None => Ok(()),
            Some(column) => Err(Reject::Compression(format!(
                "column \"{}\" must be used for segmenting or ordering",
                column.name
            ))),
        }
    }

    /// Calls a column otherwise.
    pub(crate) fn rename(&mut self, column: &str, to: &str) {
        let orders = self.order_by.iter_mut().map(|by| &mut by.column);
        for name in self.segment_by.iter_mut().chain(orders).filter(|name| *name == column) {
            to.clone_into(name);
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "compress(segment_by={}", super::display::list(&self.segment_by))?;
        for OrderBy { column, descending, nulls_first } in &self.order_by {
            write!(f, " {column}")?;
            f.write_str(if *descending { " desc" } else { " asc" })?;
            f.write_str(if *nulls_first { " nulls first" } else { "" })?;
        }
        write!(f, ")")
    }
}

impl fmt::Display for Compressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { csn, before_bytes, after_bytes, .. } = self;
        write!(f, "compressed@{csn}={before_bytes}->{after_bytes}")
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.up_to {
            Some(csn) => write!(f, "asked=compressed@{csn}"),
            None => f.write_str("asked=plain"),
        }
    }
}

impl Chunk {
    /// Whether it is to be compressed.
    #[must_use]
    pub fn wants_compression(&self) -> bool {
        self.asked.is_some_and(|asked| asked.up_to.is_some())
    }
}

impl Catalog {
    /// Sets how a hypertable's chunks are compressed. Neither while some are.
    pub(crate) fn set_compression(
        &mut self,
        id: TableId,
        compression: Option<&Compression>,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let table = self.existing(id)?;
        let made = hypertable_of(table)?;
        if made.compression.as_ref() == compression {
            return Ok(Outcome::Table(Box::new(table.clone()), false));
        }
        if self.chunks_of(id).any(Chunk::wants_compression) {
            return Err(Reject::Compression(match compression {
                Some(_) => "cannot change configuration on already compressed chunks".to_owned(),
                None => format!(
                    "cannot disable compression on hypertable \"{}\" with compressed chunks",
                    table.name
                ),
            }));
        }
        if let Some(compression) = compression {
            check_columns(table, compression)?;
            compression.check_keys(table)?;
        }
        let mut table = table.clone();
        if let Some(made) = table.hypertable_mut() {
            made.compression = compression.cloned();
        }
        self.put_table(table.clone(), step);
        Ok(Outcome::Table(Box::new(table), true))
    }

    /// Asks for chunks to be compressed with all that is committed to them, or for none of them to be; all or none.
    ///
    /// What is asked is there for good: whoever can sees to it, on every replica. A chunk that is to be plain counts as
    /// such at once.
    pub(crate) fn ask_compression(
        &mut self,
        ids: &[ChunkId],
        compress: bool,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let mut chunks = Vec::with_capacity(ids.len());
        for id in ids {
            let chunk = self.existing_chunk(*id)?;
            if compress {
                self.check_compressed(chunk)?;
            }
            let asked = Asked { up_to: compress.then_some(chunk.last_csn), at_ms: step.at_ms };
            let compressed = chunk.compressed.filter(|_| compress);
            chunks.push(Chunk { asked: Some(asked), compressed, ..chunk.clone() });
        }
        chunks.iter().for_each(|chunk| self.put_chunk(chunk.clone(), step));
        Ok(Outcome::Chunks(chunks))
    }

    /// Whether the chunks of its table are compressed at all.
    fn check_compressed(&self, chunk: &Chunk) -> Result<(), Reject> {
        let table = self.existing(chunk.table)?;
        if hypertable_of(table)?.compression.is_some() {
            return Ok(());
        }
        Err(Reject::Compression(format!("compression not enabled on \"{}\"", table.name)))
    }

    /// Notes that a chunk was compressed, with its size before and after, as it is still asked to be.
    pub(crate) fn set_chunk_compressed(
        &mut self,
        id: ChunkId,
        (before_bytes, after_bytes): (u64, u64),
        csn: Csn,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let chunk = self.existing_chunk(id)?;
        self.check_compressed(chunk)?;
        if !chunk.wants_compression() {
            let message = format!("chunk \"{}\" is not asked to be compressed", chunk.name);
            return Err(Reject::Compression(message));
        }
        let csn = csn.min(chunk.last_csn);
        let done = Compressed { csn, before_bytes, after_bytes, at_ms: step.at_ms };
        // Who was slow does not take back what another noted.
        if chunk.compressed.is_some_and(|known| known.csn > csn) {
            return Ok(Outcome::Changed(Vec::new()));
        }
        let chunk = Chunk { compressed: Some(done), ..chunk.clone() };
        self.put_chunk(chunk, step);
        Ok(Outcome::Changed(vec![id]))
    }
}

/// What makes a table a hypertable, or the refusal of one that is none.
pub(crate) fn hypertable_of(table: &Table) -> Result<&Hypertable, Reject> {
    table.hypertable().ok_or_else(|| Reject::NotHypertable(table.name.clone()))
}

fn check_columns(table: &Table, compression: &Compression) -> Result<(), Reject> {
    let orders = compression.order_by.iter().map(|order| &order.column);
    let mut seen = Vec::new();
    for column in compression.segment_by.iter().chain(orders) {
        if table.columns.column(column).is_none() {
            return Err(Reject::UnknownColumn(column.clone()));
        }
        if seen.contains(&column) {
            let message = format!("column \"{column}\" stands twice among those to compress by");
            return Err(Reject::Compression(message));
        }
        seen.push(column);
    }
    if compression.chunk_interval.is_some_and(|interval| interval <= 0) {
        let message = "compress_chunk_time_interval must be greater than 0".to_owned();
        return Err(Reject::Compression(message));
    }
    Ok(())
}
