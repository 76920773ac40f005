//! A chunk's redb file: its header, its segments, and the extents that their blocks lie in.
//!
//! - A file counts from the moment the manifest names it; rows go in only after that.
//! - Each write is one transaction that raises the generation, so that a file behind the manifest was rolled back.
//! - Segments that a merge replaced keep their extents until no scan reads them.
//! - A file that is made anew (`draft.rs`) keeps the identity, and takes the next generation: whichever of the two
//!   bears the name after a crash, it holds the same rows.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use hypertide_proto::ids::{ChunkId, Csn};
use redb::{Durability, ReadTransaction, ReadableTable, TableHandle, WriteTransaction};

use super::{
    disk::Disk,
    files::FileLimits,
    handle::Handle,
    history::{self, History},
    memory::Charge,
};
use crate::{
    ChunkSpec, Error, Tombstone,
    chunk::Stored,
    segment::{EncodedSegment, Segment, SegmentError, SegmentKey},
    tables::{self, CommitRow, FORMAT, FileHeader, Manifest, Point},
    tombstone::Delete,
};

/// Wrong blocks that a message names.
const FAULTS_SHOWN: usize = 3;

/// Keys and framed values of a table.
pub(super) type RawRows = Vec<(Vec<u8>, Vec<u8>)>;

/// An extent as it lies in a file.
#[derive(Debug)]
pub(crate) enum RawExtent {
    /// Its checksum fits.
    Whole(Bytes),
    /// Its checksum does not.
    Wrong(Bytes),
    /// There is none of that name.
    Missing,
}

/// A chunk file that is to be made.
#[derive(Debug)]
pub(crate) struct New {
    pub(crate) spec: ChunkSpec,
    pub(crate) limits: FileLimits,
}

/// A chunk file that is to be opened.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) chunk: ChunkId,
    pub(crate) manifest: Manifest,
    pub(crate) limits: FileLimits,
}

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
    /// Deletes among the commits by which it is flushed further.
    pub(crate) deletes: Vec<Delete>,
    /// The last of those commits that reserved something, as every delete does.
    pub(crate) reserved: Csn,
    /// The commits by which it is flushed further.
    pub(crate) commits: Vec<CommitRow>,
}

impl Write {
    /// A write that changes nothing but, perhaps, how far the chunk is flushed.
    pub(crate) fn to(flushed: Point) -> Self {
        let (added, replaced) = (Vec::new(), Vec::new());
        Self {
            flushed,
            added,
            replaced,
            deletes: Vec::new(),
            reserved: Csn(0),
            commits: Vec::new(),
        }
    }
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
    let Manifest { flushed, segments, bytes, removed, horizon, deleted, deletes, .. } = *manifest;
    let Manifest { compressed, .. } = *manifest;
    Stored { flushed, segments, bytes, removed, horizon, deleted, deletes, compressed }
}

#[derive(Debug)]
struct State {
    header: FileHeader,
    segments: Segments,
    /// Replaced segments of this process, which scans may hold.
    garbage: Vec<Arc<Segment>>,
    /// What the headers of the segments take, for as long as they are here.
    _directory: Charge,
}

impl State {
    fn new(header: FileHeader, segments: Segments, limits: &FileLimits) -> Self {
        let _directory = limits.directory.take(directory_bytes(&segments));
        Self { header, segments, garbage: Vec::new(), _directory }
    }
}

/// A chunk file: what it holds, and the way to its bytes.
#[derive(Debug)]
pub(crate) struct ChunkFile {
    chunk: ChunkId,
    handle: Arc<Handle>,
    limits: FileLimits,
    state: Mutex<State>,
    /// The file was ahead of the manifest when it was opened, and nobody was told yet.
    ahead: AtomicBool,
    /// When somebody asked for it last.
    used: AtomicU64,
}

impl ChunkFile {
    /// Makes the file of a chunk, which must not be there.
    pub(crate) fn create(disk: &Arc<dyn Disk>, path: &Path, new: New) -> Result<Self, Error> {
        let New { spec, limits } = new;
        let chunk = spec.chunk;
        let manifest = Manifest {
            file: disk.draw_id(),
            generation: 0,
            flushed: Point::default(),
            segments: 0,
            bytes: 0,
            ahead: false,
            removed: 0,
            horizon: Csn::default(),
            deleted: Csn::default(),
            deletes: 0,
            compressed: None,
        };
        let header = FileHeader {
            format: FORMAT,
            spec,
            manifest,
            segment_next: 0,
            garbage: Vec::new(),
            compression: None,
            deletes: Vec::new(),
        };
        let handle = Handle::new(disk, &limits.open, (chunk, path));
        handle.create()?;
        handle.write(|database| {
            let txn = database.begin_write()?;
            let body = tables::pack(&header);
            tables::put(&mut txn.open_table(tables::HEADER)?, tables::HEADER_KEY, &[&body])?;
            txn.open_table(tables::SEGMENTS)?;
            txn.open_table(tables::EXTENTS)?;
            txn.open_table(tables::COMMITS)?;
            txn.commit()?;
            Ok(())
        })?;
        Ok(Self::of(handle, (header, Vec::new()), (limits, false)))
    }

    fn of(
        handle: Arc<Handle>,
        (header, segments): (FileHeader, Vec<Arc<Segment>>),
        (limits, ahead): (FileLimits, bool),
    ) -> Self {
        let chunk = header.spec.chunk;
        let state = Mutex::new(State::new(header, Arc::new(segments), &limits));
        let used = AtomicU64::new(limits.open.tick());
        Self { chunk, handle, limits, state, ahead: AtomicBool::new(ahead), used }
    }

    /// Reads what the file of a chunk holds, and checks it against what the manifest says of it.
    pub(crate) fn open(disk: &Arc<dyn Disk>, path: &Path, known: Known) -> Result<Self, Error> {
        let Known { chunk, manifest, limits } = known;
        let damaged = |what: String| Error::Damaged { chunk, what };
        let handle = Handle::new(disk, &limits.open, (chunk, path));
        let (header, segments) = handle.read(|txn| load(txn, chunk))??;
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
        if Some(rows) != found.flushed.rows.checked_sub(found.removed)
            || segments.len() as u64 != found.segments
        {
            let (all, removed) = (found.flushed.rows, found.removed);
            return Err(damaged(format!(
                "its segments hold {rows} rows instead of {all} without {removed}"
            )));
        }
        Ok(Self::of(handle, (header, segments), (limits, found != known)))
    }

    /// Whether an operation on the disk failed in a way that only opening the file anew can end.
    pub(crate) fn ailing(&self) -> bool {
        self.handle.ailing()
    }

    /// Notes that somebody wants it.
    pub(crate) fn touch(&self) {
        self.used.store(self.limits.open.tick(), Ordering::Relaxed);
    }

    /// When somebody wanted it last.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The file has another name from now on.
    pub(crate) fn renamed(&self, path: &Path) {
        self.handle.renamed(path);
    }

    /// The file is about to lose its name; with `read_on`, somebody else still reads it.
    pub(crate) fn retire(&self, read_on: bool) {
        self.handle.retire(read_on);
    }

    /// What the file holds, once, when the manifest was behind it.
    pub(crate) fn take_ahead(&self) -> Option<Manifest> {
        self.ahead.swap(false, Ordering::AcqRel).then(|| self.manifest())
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

    /// Deletes that its segments still hold rows of, up to a commit.
    pub(crate) fn deletes(&self, snapshot: Csn) -> Vec<Tombstone> {
        let state = self.lock();
        let known = state.header.deletes.iter().filter(|delete| delete.csn <= snapshot);
        known.map(|delete| delete.tombstone.clone()).collect()
    }

    /// Whether one of them was committed up to there.
    pub(crate) fn deletes_up_to(&self, csn: Csn) -> bool {
        self.lock().header.deletes.iter().any(|delete| delete.csn <= csn)
    }

    pub(crate) fn header(&self) -> FileHeader {
        self.lock().header.clone()
    }

    /// Sets the next `count` numbers of segments aside, for a file that is to replace this one; gives the first.
    ///
    /// Only by the one who may write to the file: a write under way would give the same numbers.
    pub(crate) fn reserve(&self, count: u64) -> u64 {
        let mut state = self.lock();
        let first = state.header.segment_next;
        state.header.segment_next += count;
        first
    }

    /// The commits after `from` up to and with `to`; `None` when they are not all kept. It may begin earlier.
    pub(crate) fn history(&self, from: Csn, to: Point) -> Result<Option<History>, Error> {
        self.handle.read(|txn| history::read(&txn.open_table(tables::COMMITS)?, (from, to)))
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
        let added_bytes: u64 = write.added.iter().map(encoded_bytes).sum();
        let mut commits = History::at(header.manifest.flushed);
        commits.extend(write.commits.iter().copied());
        header.spec = spec;
        header.segment_next += write.added.len() as u64;
        header.manifest.generation += 1;
        header.manifest.flushed = write.flushed;
        header.deletes.extend(write.deletes.iter().cloned());
        header.manifest.deletes = header.deletes.len() as u64;
        header.manifest.deleted = header.manifest.deleted.max(write.reserved);
        header.manifest.segments = segments.len() as u64;
        header.manifest.bytes = if write.replaced.is_empty() {
            header.manifest.bytes + added_bytes
        } else {
            self.bytes_without(&write.replaced)? + added_bytes
        };
        self.commit(&header, (&write, &commits), &dead)?;
        let busy = held.into_iter().filter(|segment| busy.contains(&segment.key().segment));
        let garbage = busy.chain(replaced).collect();
        Ok(Written { header, segments, garbage })
    }

    /// Lets scans see a write.
    pub(crate) fn publish(&self, written: Written) {
        let Written { header, segments, garbage } = written;
        let state = State::new(header, segments, &self.limits);
        *self.lock() = State { garbage, ..state };
    }

    fn open_added(&self, write: &Write) -> Result<Vec<Arc<Segment>>, Error> {
        let open = |(offset, encoded): (usize, &EncodedSegment)| {
            Segment::open(self.next_key(offset), &encoded.header).map(Arc::new)
        };
        let opened: Result<Vec<_>, _> = write.added.iter().enumerate().map(open).collect();
        opened.map_err(|error| segment_error(self.chunk, error))
    }

    fn commit(
        &self,
        header: &FileHeader,
        (write, commits): (&Write, &History),
        dead: &[(u64, u32)],
    ) -> Result<(), Error> {
        let first = header.segment_next - write.added.len() as u64;
        self.handle.write(|database| {
            let mut txn = database.begin_write()?;
            txn.set_durability(Durability::Immediate)?;
            {
                for (segment, encoded) in (first..).zip(&write.added) {
                    put_segment(&txn, segment, encoded)?;
                }
                let mut segments = txn.open_table(tables::SEGMENTS)?;
                let mut extents = txn.open_table(tables::EXTENTS)?;
                for segment in &write.replaced {
                    segments.remove(segment.to_be_bytes().as_slice())?;
                }
                for (segment, count) in dead {
                    for number in 0..*count {
                        extents.remove(tables::extent_key(*segment, number).as_slice())?;
                    }
                }
                if !commits.commits().is_empty() {
                    history::append(&mut txn.open_table(tables::COMMITS)?, commits)?;
                }
                let mut head = txn.open_table(tables::HEADER)?;
                tables::put(&mut head, tables::HEADER_KEY, &[&tables::pack(header)])?;
            }
            txn.commit()?;
            Ok(())
        })
    }

    /// Encoded bytes of the segments but these.
    fn bytes_without(&self, replaced: &[u64]) -> Result<u64, Error> {
        let kept = self.segments();
        let kept = kept.iter().filter(|segment| !replaced.contains(&segment.key().segment));
        kept.map(|segment| self.segment_bytes(segment)).sum()
    }

    /// Encoded bytes of a segment.
    pub(crate) fn segment_bytes(&self, segment: &Segment) -> Result<u64, Error> {
        let (id, count) = garbage_of(segment);
        self.handle.read(|txn| {
            let (segments, extents) =
                (txn.open_table(tables::SEGMENTS)?, txn.open_table(tables::EXTENTS)?);
            let header = segments.get(id.to_be_bytes().as_slice())?;
            let mut bytes = header.map_or(0, |row| tables::body_of(row.value()).len());
            for number in 0..count {
                let extent = extents.get(tables::extent_key(id, number).as_slice())?;
                bytes += extent.map_or(0, |row| tables::body_of(row.value()).len());
            }
            Ok(bytes as u64)
        })
    }

    /// A segment as it was written, verified.
    pub(crate) fn encoded(&self, segment: &Segment) -> Result<EncodedSegment, Error> {
        let id = segment.key().segment;
        let header = self.header_of(segment)?;
        let extents = (0..segment.extent_count()).map(|extent| {
            // Past the cache: nobody will want these again under this file.
            self.read_extent(id, extent).map(|bytes| bytes.to_vec())
        });
        Ok(EncodedSegment { header, extents: extents.collect::<Result<_, Error>>()? })
    }

    /// The header of a segment as it was written, verified.
    fn header_of(&self, segment: &Segment) -> Result<Vec<u8>, Error> {
        let (id, key) = (segment.key().segment, segment.key().segment.to_be_bytes());
        let header = self.handle.read(|txn| {
            let row = txn.open_table(tables::SEGMENTS)?.get(key.as_slice())?;
            Ok(row.and_then(|row| tables::unframe(&key, row.value()).map(<[u8]>::to_vec)))
        })?;
        let what = || format!("segment {id}: its header is missing or has wrong bytes");
        header.ok_or_else(|| Error::Damaged { chunk: self.chunk, what: what() })
    }

    /// Whether a segment is still one of the file's.
    pub(crate) fn has_segment(&self, segment: &Segment) -> bool {
        self.segments().iter().any(|other| other.key() == segment.key())
    }

    /// Verifies the header of a segment; gives its bytes.
    pub(crate) fn header_bytes(&self, segment: &Segment) -> Result<u64, Error> {
        let header = self.header_of(segment)?;
        let opened = Segment::open(segment.key(), &header);
        opened.map_err(|error| segment_error(self.chunk, error))?;
        Ok(header.len() as u64)
    }

    /// Verifies every header and every extent.
    pub(crate) fn verify(&self) -> Result<(), Error> {
        for segment in self.segments().iter() {
            self.header_bytes(segment)?;
            for extent in 0..segment.extent_count() {
                self.read_extent(segment.key().segment, extent)?;
            }
        }
        Ok(())
    }

    /// The rows of all tables but `without`, as they lie in the file.
    pub(super) fn tables(&self, without: &[&str]) -> Result<Vec<(String, RawRows)>, Error> {
        self.handle.read(|txn| {
            let mut tables = Vec::new();
            for handle in txn.list_tables()?.filter(|handle| !without.contains(&handle.name())) {
                let mut rows = RawRows::new();
                for row in txn.open_table(tables::definition(handle.name()))?.iter()? {
                    let (key, value) = row?;
                    rows.push((key.value().to_vec(), value.value().to_vec()));
                }
                tables.push((handle.name().to_owned(), rows));
            }
            Ok(tables)
        })
    }

    /// An extent of a segment, verified.
    pub(crate) fn extent(&self, segment: u64, extent: usize) -> Result<Bytes, Error> {
        let name = (self.lock().header.manifest.file, segment, extent);
        if let Some(bytes) = self.limits.cache.get(&name) {
            return Ok(bytes);
        }
        let bytes = self.read_extent(segment, extent)?;
        self.limits.cache.put(name, &bytes);
        Ok(bytes)
    }

    /// Reads an extent from the file and verifies it.
    pub(crate) fn read_extent(&self, segment: u64, extent: usize) -> Result<Bytes, Error> {
        let what = match self.raw_extent(segment, extent)? {
            RawExtent::Whole(bytes) => return Ok(bytes),
            RawExtent::Wrong(bytes) => {
                let blocks = self.wrong_blocks(segment, extent, &bytes);
                format!("has wrong bytes{blocks}")
            }
            RawExtent::Missing => "is missing".to_owned(),
        };
        let what = format!("segment {segment}, extent {extent} {what}");
        Err(Error::Damaged { chunk: self.chunk, what })
    }

    /// An extent as it lies in the file, right or wrong.
    pub(crate) fn raw_extent(&self, segment: u64, extent: usize) -> Result<RawExtent, Error> {
        let number = u32::try_from(extent).unwrap_or(u32::MAX);
        let key = tables::extent_key(segment, number);
        self.handle.read(|txn| {
            let row = txn.open_table(tables::EXTENTS)?.get(key.as_slice())?;
            Ok(row.map_or(RawExtent::Missing, |row| match tables::unframe(&key, row.value()) {
                Some(bytes) => RawExtent::Whole(Bytes::copy_from_slice(bytes)),
                None => RawExtent::Wrong(Bytes::copy_from_slice(tables::body_of(row.value()))),
            }))
        })
    }

    /// Names the blocks of a wrong extent that are wrong themselves.
    fn wrong_blocks(&self, segment: u64, extent: usize, bytes: &[u8]) -> String {
        let segments = self.segments();
        let Some(segment) = segments.iter().find(|known| known.key().segment == segment) else {
            return String::new();
        };
        let faults = super::check::faults_of_extent(segment, extent, bytes);
        let shown = faults.iter().take(FAULTS_SHOWN).map(|fault| format!("; {}", fault.place()));
        shown.collect()
    }
}

impl Drop for ChunkFile {
    /// The handle is closed now, though those who look for files to close may hold on to it for a moment longer: whoever
    /// has this file no more may open it anew.
    fn drop(&mut self) {
        self.handle.end();
    }
}

/// Encoded bytes of a segment that was not written yet.
pub(super) fn encoded_bytes(encoded: &EncodedSegment) -> u64 {
    (encoded.header.len() + encoded.extents.iter().map(Vec::len).sum::<usize>()) as u64
}

/// Puts a segment into the tables of a chunk's file.
pub(super) fn put_segment(
    txn: &WriteTransaction,
    segment: u64,
    encoded: &EncodedSegment,
) -> Result<(), redb::Error> {
    let mut segments = txn.open_table(tables::SEGMENTS)?;
    tables::put(&mut segments, &segment.to_be_bytes(), &[&encoded.header])?;
    let mut extents = txn.open_table(tables::EXTENTS)?;
    for (number, extent) in (0..).zip(&encoded.extents) {
        tables::put(&mut extents, &tables::extent_key(segment, number), &[extent])?;
    }
    Ok(())
}

fn garbage_of(segment: &Segment) -> (u64, u32) {
    (segment.key().segment, u32::try_from(segment.extent_count()).unwrap_or(u32::MAX))
}

/// What is wrong with a segment, as an error of its chunk.
pub(crate) fn segment_error(chunk: ChunkId, error: SegmentError) -> Error {
    match error {
        SegmentError::Invalid(what) => Error::Invalid(format!("chunk {chunk}: {what}")),
        error => Error::Damaged { chunk, what: error.to_string() },
    }
}

/// What the headers of segments take in memory.
fn directory_bytes(segments: &Segments) -> usize {
    segments.iter().map(|segment| segment.memory_bytes()).sum()
}

type Loaded = (FileHeader, Vec<Arc<Segment>>);

/// The header of a file, and those of its segments.
fn load(txn: &ReadTransaction, chunk: ChunkId) -> Result<Result<Loaded, Error>, redb::Error> {
    let damaged = |what: &str| Ok(Err(Error::Damaged { chunk, what: what.to_owned() }));
    let table = txn.open_table(tables::HEADER)?;
    let Some(row) = table.get(tables::HEADER_KEY)? else {
        return damaged("its file has no header");
    };
    let wrong = "the header of its file has wrong bytes";
    let Some(body) = tables::unframe(tables::HEADER_KEY, row.value()) else {
        return damaged(wrong);
    };
    if tables::format_of(body) != Some(FORMAT) {
        return damaged("its file is of another format");
    }
    let Ok(header) = rmp_serde::from_slice::<FileHeader>(body) else { return damaged(wrong) };
    let mut segments = Vec::new();
    for row in txn.open_table(tables::SEGMENTS)?.iter()? {
        let (key, value) = row?;
        let id = key.value().try_into().ok().map(u64::from_be_bytes);
        let body = tables::unframe(key.value(), value.value());
        let Some((segment, body)) = id.zip(body) else {
            return damaged("the header of a segment has wrong bytes");
        };
        let key = SegmentKey { file: header.manifest.file, segment };
        match Segment::open(key, body) {
            Ok(segment) => segments.push(Arc::new(segment)),
            Err(error) => return Ok(Err(segment_error(chunk, error))),
        }
    }
    Ok(Ok((header, segments)))
}
