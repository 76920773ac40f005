//! A chunk's file in the making: a whole copy, written beside the file that counts, in one transaction.

use std::sync::Arc;

use hypertide_proto::ids::ChunkId;
use redb::{Durability, WriteTransaction};

use crate::{
    ChunkSpec, Error,
    segment::SegmentKey,
    store::{
        Inner,
        contain::contain,
        disk::{OpenError, OpenOptionsRedb, open_database},
        file::ChunkFile,
        files::NewFile,
        held::Held,
        history::{self, History},
    },
    tables::{self, Compression, FORMAT, FileHeader, Heritage, Manifest},
};

/// More than for a file that is read: what is written waits in it.
const CACHE_BYTES: usize = 16 << 20;

/// The file in the making. Removed when it is dropped before it is whole.
pub(super) struct Builder {
    inner: Arc<Inner>,
    new: NewFile,
    /// The transaction before the database, which it must not outlive.
    txn: Option<WriteTransaction>,
    database: Option<Held>,
    chunk: ChunkId,
    file: [u8; 16],
    segments: u64,
    bytes: u64,
}

/// A whole file, which does not count yet.
pub(super) struct Built {
    pub(super) new: NewFile,
    pub(super) file: Arc<ChunkFile>,
}

impl Builder {
    pub(super) fn new(inner: &Arc<Inner>, chunk: ChunkId) -> Result<Self, Error> {
        let (new, file) = (inner.files.new_file(chunk), inner.files.disk().draw_id());
        let options = OpenOptionsRedb { cache_bytes: CACHE_BYTES, verify: false };
        let opened = open_database(inner.files.disk(), new.path(), options);
        let database = opened.map_err(|error| {
            let action = format!("make a file for a copy of chunk {chunk}");
            match error {
                OpenError::Scarce(error) => Error::Overloaded(format!("{action}: {error}")),
                OpenError::Disk(source) => Error::Disk { action, source },
                other => Error::Disk { action, source: format!("{other:?}").into() },
            }
        })?;
        let mut txn = database.begin_write().map_err(|error| failed(chunk, error.into()))?;
        let durable = txn.set_durability(Durability::Immediate);
        durable.map_err(|error| failed(chunk, redb::Error::Io(std::io::Error::other(error))))?;
        Ok(Self {
            inner: Arc::clone(inner),
            new,
            txn: Some(txn),
            database: Some(database),
            chunk,
            file,
            segments: 0,
            bytes: 0,
        })
    }

    /// The name of the next segment.
    pub(super) fn next_key(&self) -> SegmentKey {
        SegmentKey { file: self.file, segment: self.segments }
    }

    /// Ends a segment whose extents were put.
    pub(super) fn segment(&mut self, header: &[u8]) -> Result<(), Error> {
        let key = self.segments.to_be_bytes();
        self.put(tables::SEGMENTS, &key, header)?;
        self.segments += 1;
        Ok(())
    }

    /// Writes an extent of the segment that has the next name.
    pub(super) fn extent(&mut self, number: u32, bytes: &[u8]) -> Result<(), Error> {
        self.put(tables::EXTENTS, &tables::extent_key(self.segments, number), bytes)
    }

    fn put(&mut self, table: tables::Definition, key: &[u8], body: &[u8]) -> Result<(), Error> {
        self.bytes += body.len() as u64;
        let chunk = self.chunk;
        let txn = self.txn.as_ref();
        let put = || -> Result<(), redb::Error> {
            let txn = txn.ok_or(redb::Error::DatabaseClosed)?;
            tables::put(&mut txn.open_table(table)?, key, &[body])?;
            Ok(())
        };
        contained(chunk, put)
    }

    /// Makes the file whole and durable, and checks that it opens.
    pub(super) fn finish(
        mut self,
        spec: ChunkSpec,
        history: &History,
        heritage: Heritage,
    ) -> Result<Built, Error> {
        let chunk = self.chunk;
        let Heritage { removed, horizon, deleted, compressed, deletes, compression } = heritage;
        let manifest = Manifest {
            file: self.file,
            generation: 1,
            flushed: history.end(),
            segments: self.segments,
            bytes: self.bytes,
            ahead: false,
            removed,
            horizon,
            deleted,
            deletes: deletes.len() as u64,
            compressed,
        };
        let segment_next = self.segments;
        let compression = compression.map(|(spec, below)| Compression { spec, below });
        let (format, garbage) = (FORMAT, Vec::new());
        let header =
            FileHeader { format, spec, manifest, segment_next, garbage, compression, deletes };
        let (txn, database) = (self.txn.take(), self.database.take());
        let end = || -> Result<(), redb::Error> {
            let txn = txn.ok_or(redb::Error::DatabaseClosed)?;
            txn.open_table(tables::SEGMENTS)?;
            txn.open_table(tables::EXTENTS)?;
            history::append(&mut txn.open_table(tables::COMMITS)?, history)?;
            let mut head = txn.open_table(tables::HEADER)?;
            tables::put(&mut head, tables::HEADER_KEY, &[&tables::pack(&header)])?;
            drop(head);
            txn.commit()?;
            Ok(())
        };
        contained(chunk, end)?;
        drop(database);
        let file = self.inner.files.open_new(&self.new, chunk, manifest);
        let file = file.map_err(|error| match error {
            // The copy is, not the chunk.
            Error::Damaged { what, .. } => Error::Invalid(format!("copy of chunk {chunk}: {what}")),
            error => error,
        })?;
        Ok(Built { new: self.new, file: Arc::new(file) })
    }
}

/// Runs work on the new file, in which nothing can be damaged but by the disk.
fn contained(chunk: ChunkId, work: impl FnOnce() -> Result<(), redb::Error>) -> Result<(), Error> {
    match contain(work) {
        Ok(result) => result.map_err(|error| failed(chunk, error)),
        Err(what) => Err(Error::Disk {
            action: format!("write a copy of chunk {chunk}"),
            source: what.into(),
        }),
    }
}

/// A full disk is no reason to distrust it.
fn failed(chunk: ChunkId, error: redb::Error) -> Error {
    let full = |error: &std::io::Error| {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(error.kind(), StorageFull | QuotaExceeded)
    };
    match error {
        redb::Error::Io(error) if full(&error) => {
            Error::DiskFull(format!("write a copy of chunk {chunk}: {error}"))
        }
        error => {
            Error::Disk { action: format!("write a copy of chunk {chunk}"), source: error.into() }
        }
    }
}
