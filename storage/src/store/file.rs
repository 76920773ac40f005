//! A chunk's redb file: its header, its segments, and the extents that their blocks lie in.
//!
//! - A file counts from the moment the manifest names it; rows go in only after that.
//! - Each write is one transaction that raises the generation, so that a file behind the manifest was rolled back.
//! - Segments that a merge replaced keep their extents until no scan reads them.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use hypertide_proto::ids::ChunkId;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, StorageError};

use super::disk::{Disk, OpenError, OpenOptionsRedb, contain, failed, open_database};
use crate::{
    ChunkSpec, Error,
    chunk::Stored,
    segment::{EncodedSegment, Segment, SegmentError, SegmentKey},
    tables::{self, FORMAT, FileHeader, Manifest, Point},
};

const CACHE_BYTES: usize = 4 << 20;

/// Segments of a chunk as they were at one moment.
pub(crate) type Segments = Arc<Vec<Arc<Segment>>>;

/// What a write changes.
#[derive(Debug)]
pub(crate) struct Write {
    /// How far the chunk is flushed afterwards.
    pub(crate) flushed: Point,
    /// New segments, encoded for the numbers from [`ChunkFile::next_key`] on.
    pub(crate) added: Vec<EncodedSegment>,
    /// Segments that these replace.
    pub(crate) replaced: Vec<u64>,
}

/// A write that is durable, and not seen by scans yet.
#[derive(Debug)]
pub(crate) struct Written {
    header: FileHeader,
    segments: Segments,
    garbage: Vec<Arc<Segment>>,
}

impl Written {
    pub(crate) fn manifest(&self) -> Manifest {
        self.header.manifest
    }

    pub(crate) fn stored(&self) -> Stored {
        stored(&self.header.manifest)
    }
}

/// What the file holds, as the chunk's state counts it.
pub(crate) fn stored(manifest: &Manifest) -> Stored {
    let Manifest { flushed, segments, bytes, .. } = *manifest;
    Stored { flushed, segments, bytes }
}

#[derive(Debug)]
struct State {
    header: FileHeader,
    segments: Segments,
    /// Replaced segments of this process, which scans may hold.
    garbage: Vec<Arc<Segment>>,
}

/// An open chunk file.
#[derive(Debug)]
pub(crate) struct ChunkFile {
    chunk: ChunkId,
    database: Database,
    state: Mutex<State>,
}

impl ChunkFile {
    /// Makes the file of a chunk, which must not be there.
    pub(crate) fn create(disk: &dyn Disk, path: &Path, spec: ChunkSpec) -> Result<Self, Error> {
        let chunk = spec.chunk;
        let database = open(disk, path, chunk)?;
        let manifest = Manifest {
            file: *uuid::Uuid::new_v4().as_bytes(),
            generation: 0,
            flushed: Point::default(),
            segments: 0,
            bytes: 0,
        };
        let header =
            FileHeader { format: FORMAT, spec, manifest, segment_next: 0, garbage: Vec::new() };
        let write = || -> Result<(), redb::Error> {
            let txn = database.begin_write()?;
            let body = tables::pack(&header);
            tables::put(&mut txn.open_table(tables::HEADER)?, tables::HEADER_KEY, &[&body])?;
            txn.open_table(tables::SEGMENTS)?;
            txn.open_table(tables::EXTENTS)?;
            txn.commit()?;
            Ok(())
        };
        write().map_err(failed(format_args!("make the file of chunk {chunk}")))?;
        let state = State { header, segments: Arc::default(), garbage: Vec::new() };
        Ok(Self { chunk, database, state: Mutex::new(state) })
    }

    /// Opens the file of a chunk and checks it against what the manifest says of it.
    pub(crate) fn open(
        disk: &dyn Disk,
        path: &Path,
        chunk: ChunkId,
        manifest: Manifest,
    ) -> Result<Self, Error> {
        let damaged = |what: String| Error::Damaged { chunk, what };
        if std::fs::metadata(path).map_or(0, |meta| meta.len()) == 0 {
            return Err(damaged("its file is missing or empty".into()));
        }
        let database = open(disk, path, chunk)?;
        let (header, segments) = contain(|| load(&database, chunk)).map_err(damaged)??;
        let (found, known) = (header.manifest, manifest);
        if found.file != known.file || header.spec.chunk != chunk {
            return Err(damaged("its file is another one than the manifest names".into()));
        }
        if found.generation < known.generation || found.flushed.csn < known.flushed.csn {
            let (found, known) = (found.generation, known.generation);
            return Err(damaged(format!(
                "its file is of generation {found}, but generation {known} was written"
            )));
        }
        let rows: u64 = segments.iter().map(|segment| segment.rows()).sum();
        if rows != found.flushed.rows || segments.len() as u64 != found.segments {
            let expected = found.flushed.rows;
            return Err(damaged(format!("its segments hold {rows} rows instead of {expected}")));
        }
        let state = State { header, segments: Arc::new(segments), garbage: Vec::new() };
        Ok(Self { chunk, database, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The segments that count.
    pub(crate) fn segments(&self) -> Segments {
        Arc::clone(&self.lock().segments)
    }

    pub(crate) fn manifest(&self) -> Manifest {
        self.lock().header.manifest
    }

    pub(crate) fn spec(&self) -> ChunkSpec {
        self.lock().header.spec.clone()
    }

    /// The name of the `offset`-th segment that is written next.
    pub(crate) fn next_key(&self, offset: usize) -> SegmentKey {
        let state = self.lock();
        let segment = state.header.segment_next + offset as u64;
        SegmentKey { file: state.header.manifest.file, segment }
    }

    /// Writes segments, durably. Scans see them after [`ChunkFile::publish`]. One writer at a time.
    pub(crate) fn write(&self, spec: ChunkSpec, write: Write) -> Result<Written, Error> {
        let (mut header, segments, held) = {
            let state = self.lock();
            let held: Vec<Arc<Segment>> = state.garbage.iter().map(Arc::clone).collect();
            (state.header.clone(), Arc::clone(&state.segments), held)
        };
        let added = self.open_added(&write)?;
        let gone = |segment: &&Arc<Segment>| write.replaced.contains(&segment.key().segment);
        let replaced: Vec<_> = segments.iter().filter(gone).map(Arc::clone).collect();
        let kept = segments.iter().filter(|segment| !gone(segment)).map(Arc::clone);
        let segments: Segments = Arc::new(kept.chain(added).collect());
        // `held` itself is one more count beside the state's; a scan would be the third.
        let busy: Vec<u64> = held
            .iter()
            .filter(|segment| Arc::strong_count(segment) > 2)
            .map(|segment| segment.key().segment)
            .collect();
        let dead: Vec<(u64, u32)> =
            header.garbage.iter().filter(|(id, _)| !busy.contains(id)).copied().collect();
        header.garbage.retain(|(id, _)| busy.contains(id));
        header.garbage.extend(replaced.iter().map(|segment| garbage_of(segment)));
        let bytes_of = |encoded: &EncodedSegment| {
            encoded.header.len() + encoded.extents.iter().map(Vec::len).sum::<usize>()
        };
        let added_bytes: usize = write.added.iter().map(bytes_of).sum();
        header.spec = spec;
        header.segment_next += write.added.len() as u64;
        header.manifest.generation += 1;
        header.manifest.flushed = write.flushed;
        header.manifest.segments = segments.len() as u64;
        header.manifest.bytes = if write.replaced.is_empty() {
            header.manifest.bytes + added_bytes as u64
        } else {
            self.bytes_without(&write.replaced)? + added_bytes as u64
        };
        self.commit(&header, &write, &dead)?;
        let busy = held.into_iter().filter(|segment| busy.contains(&segment.key().segment));
        let garbage = busy.chain(replaced).collect();
        Ok(Written { header, segments, garbage })
    }

    /// Lets scans see a write.
    pub(crate) fn publish(&self, written: Written) {
        let Written { header, segments, garbage } = written;
        *self.lock() = State { header, segments, garbage };
    }

    fn open_added(&self, write: &Write) -> Result<Vec<Arc<Segment>>, Error> {
        let open = |(offset, encoded): (usize, &EncodedSegment)| {
            Segment::open(self.next_key(offset), &encoded.header).map(Arc::new)
        };
        let opened: Result<Vec<_>, _> = write.added.iter().enumerate().map(open).collect();
        opened.map_err(|error| segment_error(self.chunk, error))
    }

    fn commit(&self, header: &FileHeader, write: &Write, dead: &[(u64, u32)]) -> Result<(), Error> {
        let first = header.segment_next - write.added.len() as u64;
        let run = || -> Result<(), redb::Error> {
            let mut txn = self.database.begin_write()?;
            txn.set_durability(Durability::Immediate)?;
            {
                let mut segments = txn.open_table(tables::SEGMENTS)?;
                let mut extents = txn.open_table(tables::EXTENTS)?;
                for (segment, encoded) in (first..).zip(&write.added) {
                    tables::put(&mut segments, &segment.to_be_bytes(), &[&encoded.header])?;
                    for (number, extent) in (0..).zip(&encoded.extents) {
                        tables::put(&mut extents, &tables::extent_key(segment, number), &[extent])?;
                    }
                }
                for segment in &write.replaced {
                    segments.remove(segment.to_be_bytes().as_slice())?;
                }
                for (segment, count) in dead {
                    for number in 0..*count {
                        extents.remove(tables::extent_key(*segment, number).as_slice())?;
                    }
                }
                let mut head = txn.open_table(tables::HEADER)?;
                tables::put(&mut head, tables::HEADER_KEY, &[&tables::pack(header)])?;
            }
            txn.commit()?;
            Ok(())
        };
        self.contained("write", run)
    }

    /// Encoded bytes of the segments but these.
    fn bytes_without(&self, replaced: &[u64]) -> Result<u64, Error> {
        let kept = self.segments();
        let kept = kept.iter().filter(|segment| !replaced.contains(&segment.key().segment));
        let kept: Vec<(u64, u32)> = kept.map(|segment| garbage_of(segment)).collect();
        self.contained("measure", || {
            let txn = self.database.begin_read()?;
            let (segments, extents) =
                (txn.open_table(tables::SEGMENTS)?, txn.open_table(tables::EXTENTS)?);
            let mut bytes = 0;
            for (segment, count) in kept {
                let header = segments.get(segment.to_be_bytes().as_slice())?;
                bytes += header.map_or(0, |row| row.value().len());
                for number in 0..count {
                    let extent = extents.get(tables::extent_key(segment, number).as_slice())?;
                    bytes += extent.map_or(0, |row| row.value().len());
                }
            }
            Ok(bytes as u64)
        })
    }

    /// Reads an extent of a segment and verifies it.
    pub(crate) fn extent(&self, segment: u64, extent: usize) -> Result<Bytes, Error> {
        let number = u32::try_from(extent).unwrap_or(u32::MAX);
        let key = tables::extent_key(segment, number);
        let found = self.contained("read", || {
            let txn = self.database.begin_read()?;
            let row = txn.open_table(tables::EXTENTS)?.get(key.as_slice())?;
            Ok(row.map(|row| tables::unframe(&key, row.value()).map(Bytes::copy_from_slice)))
        })?;
        let what = match found {
            Some(Some(bytes)) => return Ok(bytes),
            Some(None) => "has wrong bytes",
            None => "is missing",
        };
        let what = format!("segment {segment}, extent {extent} {what}");
        Err(Error::Damaged { chunk: self.chunk, what })
    }

    /// Runs work on the database; bytes that make redb stumble are damage, all else is the disk's.
    fn contained<T>(
        &self,
        verb: &str,
        work: impl FnOnce() -> Result<T, redb::Error>,
    ) -> Result<T, Error> {
        let chunk = self.chunk;
        match contain(work) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) if is_damage(&error) => {
                Err(Error::Damaged { chunk, what: error.to_string() })
            }
            Ok(Err(error)) => Err(failed(format_args!("{verb} the file of chunk {chunk}"))(error)),
            Err(what) => Err(Error::Damaged { chunk, what }),
        }
    }
}

fn garbage_of(segment: &Segment) -> (u64, u32) {
    (segment.key().segment, u32::try_from(segment.extent_count()).unwrap_or(u32::MAX))
}

/// Whether redb says that bytes are wrong, and not that the disk failed.
fn is_damage(error: &redb::Error) -> bool {
    match error {
        redb::Error::Io(error) => matches!(
            error.kind(),
            std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidData
        ),
        redb::Error::Corrupted(_)
        | redb::Error::TableDoesNotExist(_)
        | redb::Error::TableTypeMismatch { .. } => true,
        _ => false,
    }
}

/// What is wrong with a segment, as an error of its chunk.
pub(crate) fn segment_error(chunk: ChunkId, error: SegmentError) -> Error {
    match error {
        SegmentError::Invalid(what) => Error::Invalid(format!("chunk {chunk}: {what}")),
        error => Error::Damaged { chunk, what: error.to_string() },
    }
}

fn open(disk: &dyn Disk, path: &Path, chunk: ChunkId) -> Result<Database, Error> {
    let options = OpenOptionsRedb { cache_bytes: CACHE_BYTES, verify: false };
    let action = || format!("open the file of chunk {chunk}");
    open_database(disk, path, options).map_err(|error| match error {
        OpenError::Damaged(what) => Error::Damaged { chunk, what },
        OpenError::Newer => Error::Damaged { chunk, what: "its file is of a newer format".into() },
        OpenError::InUse => Error::Disk { action: action(), source: "it is in use".into() },
        OpenError::Disk(source) => Error::Disk { action: action(), source },
    })
}

fn load(database: &Database, chunk: ChunkId) -> Result<(FileHeader, Vec<Arc<Segment>>), Error> {
    let damaged = |what: &str| Error::Damaged { chunk, what: what.to_owned() };
    let disk = |error: redb::Error| match is_damage(&error) {
        true => Error::Damaged { chunk, what: error.to_string() },
        false => failed(format_args!("read the file of chunk {chunk}"))(error),
    };
    let storage = |error: StorageError| disk(error.into());
    let txn = database.begin_read().map_err(|error| disk(error.into()))?;
    let table = txn.open_table(tables::HEADER).map_err(|error| disk(error.into()))?;
    let row = table.get(tables::HEADER_KEY).map_err(storage)?;
    let row = row.ok_or_else(|| damaged("its file has no header"))?;
    let body = tables::unframe(tables::HEADER_KEY, row.value());
    let body = body.ok_or_else(|| damaged("the header of its file has wrong bytes"))?;
    if tables::format_of(body) != Some(FORMAT) {
        return Err(damaged("its file is of another format"));
    }
    let header: FileHeader = rmp_serde::from_slice(body)
        .map_err(|_| damaged("the header of its file has wrong bytes"))?;
    let mut segments = Vec::new();
    let table = txn.open_table(tables::SEGMENTS).map_err(|error| disk(error.into()))?;
    for row in table.iter().map_err(storage)? {
        let (key, value) = row.map_err(storage)?;
        let id = key.value().try_into().ok().map(u64::from_be_bytes);
        let body = tables::unframe(key.value(), value.value());
        let (segment, body) =
            id.zip(body).ok_or_else(|| damaged("the header of a segment has wrong bytes"))?;
        let key = SegmentKey { file: header.manifest.file, segment };
        let opened = Segment::open(key, body).map_err(|error| segment_error(chunk, error))?;
        segments.push(Arc::new(opened));
    }
    Ok((header, segments))
}
