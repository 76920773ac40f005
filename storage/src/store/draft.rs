//! A chunk's file made anew, beside the one that it is to replace.
//!
//! ```text
//! 7.redb.new   segments, transaction by transaction --> header --> closed --> opened and checked
//! 7.redb       <-- renamed over it, the directory synced --> manifest
//! ```
//!
//! Until it is renamed it is nothing but space, and removed at the next start. It keeps the identity of the file it
//! replaces, so that segments are copied as they are, and uses only numbers of segments that were set aside for it.

use std::{path::Path, sync::Arc};

use hypertide_proto::ids::ChunkId;
use redb::{Durability, TableHandle, WriteTransaction};

use super::{
    contain::contain,
    disk::{Disk, Health},
    file::{ChunkFile, encoded_bytes, put_segment},
    handle::{failure, open},
    held::Held,
};
use crate::{
    Error,
    segment::EncodedSegment,
    tables::{self, FileHeader},
};

/// A file that does not count yet.
#[derive(Debug)]
pub(crate) struct Draft {
    chunk: ChunkId,
    database: Held,
    health: Arc<Health>,
    segments: u64,
    bytes: u64,
}

impl Draft {
    /// Begins a file at `path`, where nothing is that counts.
    pub(super) fn create(disk: &dyn Disk, path: &Path, chunk: ChunkId) -> Result<Self, Error> {
        let health = Arc::default();
        let database = open(disk, path, (chunk, &health))?;
        let draft = Self { chunk, database, health, segments: 0, bytes: 0 };
        draft.write(|txn| {
            txn.open_table(tables::SEGMENTS)?;
            txn.open_table(tables::EXTENTS)?;
            Ok(())
        })?;
        Ok(draft)
    }

    /// Segments added so far.
    pub(crate) fn segments(&self) -> u64 {
        self.segments
    }

    /// Encoded bytes added so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds a segment, which was encoded under this number.
    pub(crate) fn add(&mut self, segment: u64, encoded: &EncodedSegment) -> Result<(), Error> {
        self.write(|txn| put_segment(txn, segment, encoded))?;
        self.segments += 1;
        self.bytes += encoded_bytes(encoded);
        Ok(())
    }

    /// Copies the rows of all tables but those that the draft fills by itself.
    pub(crate) fn copy_others(&self, file: &ChunkFile) -> Result<(), Error> {
        let own = [tables::HEADER.name(), tables::SEGMENTS.name(), tables::EXTENTS.name()];
        let others = file.tables(&own)?;
        if others.is_empty() {
            return Ok(());
        }
        self.write(|txn| {
            for (name, rows) in &others {
                let mut table = txn.open_table(tables::definition(name))?;
                for (key, value) in rows {
                    // Framed already, under the same key.
                    table.insert(key.as_slice(), value.as_slice())?;
                }
            }
            Ok(())
        })
    }

    /// Writes the header, moves all to the front, and closes the file, which gives back the space that is left.
    pub(super) fn finish(self, header: &FileHeader) -> Result<(), Error> {
        self.write(|txn| {
            let body = tables::pack(header);
            tables::put(&mut txn.open_table(tables::HEADER)?, tables::HEADER_KEY, &[&body])?;
            Ok(())
        })?;
        let Self { chunk, mut database, health, .. } = self;
        let compacted = contain(|| database.compact());
        let compacted = compacted.map_err(|what| Error::Damaged { chunk, what })?;
        compacted.map_err(|error| {
            let action = format!("pack the new file of chunk {chunk}");
            failure(chunk, (action, error), health.ailment())
        })?;
        let closed = database.close().map_err(|what| Error::Damaged { chunk, what })?;
        closed.map_err(|error| {
            let action = format!("close the new file of chunk {chunk}");
            failure(chunk, (action, error.into()), health.ailment())
        })
    }

    fn write(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), Error> {
        let run = || -> Result<(), redb::Error> {
            let mut txn = self.database.begin_write()?;
            txn.set_durability(Durability::Immediate)?;
            work(&txn)?;
            txn.commit()?;
            Ok(())
        };
        let chunk = self.chunk;
        let done = contain(run).map_err(|what| Error::Damaged { chunk, what })?;
        done.map_err(|error| {
            let action = format!("write the new file of chunk {chunk}");
            failure(chunk, (action, error), self.health.ailment())
        })
    }
}
