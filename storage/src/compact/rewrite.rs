//! Writes the file of a chunk anew: to compress it, to undo that, or to give back the space that merges left.
//!
//! The long part, reading, sorting and encoding, holds up nobody: flushes go on into the file that is there. The
//! switch takes the writer's turn, copies what was flushed meanwhile, and renames. Scans that began before read on in
//! the file they hold.

use std::{
    collections::BTreeSet,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use arrow::datatypes::SchemaRef;
use hypertide_proto::{
    error::{Code, RpcError},
    ids::{ChunkId, Csn},
};

use super::{
    band::{Bands, Target},
    plan::VALUE_BYTES,
};
use crate::{
    CompressionSpec, Error,
    segment::{Effort, EncodeOptions, SEGMENT_ROWS_MAX, Segment, SegmentKey},
    store::{
        Inner,
        contain::contain,
        draft::Draft,
        file::{ChunkFile, Segments, stored},
        flush::{FLUSH_RESERVE_BYTES, encode_run, save_manifest},
        order::natural,
    },
    tables::{Compressed, Compression, FileHeader, Manifest},
    tombstone::{Delete, Deletes},
};

/// Rows that are sorted at once at most; a band of them takes this times the width of a row, about twice.
const BAND_ROWS_MAX: u64 = 1 << 18;
/// Decoded bytes of a band, from which its rows are reckoned where rows are wide.
const BAND_BYTES_MAX: u64 = 64 << 20;
/// A file is written anew when it is larger than its segments by this factor,
const WASTE_FACTOR: u64 = 2;
/// and by this many bytes beyond it.
const WASTE_BYTES_MIN: u64 = 1 << 20;

/// How long one who wants to rewrite a chunk waits for another who does.
const TURN_PATIENCE: Duration = Duration::from_secs(60);

/// What a chunk is written anew for.
#[derive(Clone, Debug)]
pub(crate) enum Goal {
    /// One run in the order asked for, with the strongest encodings.
    Compress(CompressionSpec),
    /// The natural order again, with the ordinary encodings.
    Decompress,
    /// The segments as they are, in a file without holes.
    Shrink,
    /// As it is, compressed or not, but without the rows that were deleted.
    Purge,
}

/// The chunks that are being written anew or merged, one at a time each.
#[derive(Debug, Default)]
pub(crate) struct Rewriting {
    chunks: Mutex<BTreeSet<ChunkId>>,
    ended: Condvar,
}

/// The right to rewrite a chunk's segments.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    all: &'a Rewriting,
    chunk: ChunkId,
}

impl Rewriting {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<ChunkId>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the turn of a chunk; `None` when another has it.
    pub(crate) fn begin(&self, chunk: ChunkId) -> Option<Turn<'_>> {
        let fresh = self.lock().insert(chunk);
        // Only now: dropping a turn gives it back.
        fresh.then(|| Turn { all: self, chunk })
    }

    /// Takes the turn of a chunk when whoever has it is done; `None` when that takes too long.
    fn wait(&self, chunk: ChunkId, patience: Duration) -> Option<Turn<'_>> {
        let busy = |chunks: &mut BTreeSet<ChunkId>| chunks.contains(&chunk);
        let waited = self.ended.wait_timeout_while(self.lock(), patience, busy);
        let (mut chunks, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return None;
        }
        chunks.insert(chunk);
        drop(chunks);
        Some(Turn { all: self, chunk })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.all.lock().remove(&self.chunk);
        self.all.ended.notify_all();
    }
}

/// Writes the file of a chunk anew. What is asked for already is not done again.
pub(crate) fn rewrite(inner: &Inner, chunk: ChunkId, goal: Goal) -> Result<(), Error> {
    inner.poison.check()?;
    let busy = || Error::Overloaded(format!("chunk {chunk} is being rewritten"));
    let _turn = inner.rewriting.wait(chunk, TURN_PATIENCE).ok_or_else(busy)?;
    if let Some(what) = inner.replicas().wrong(chunk) {
        return Err(Error::Damaged { chunk, what: what.to_owned() });
    }
    let done = contain(|| run(inner, chunk, goal));
    let done = done.unwrap_or_else(|what| Err(Error::Damaged { chunk, what }));
    if done.is_err()
        && let Err(error) = inner.files.discard_draft(chunk)
    {
        tracing::warn!("after a rewrite of chunk {chunk} that failed: {error}");
    }
    done.inspect_err(|error| inner.note_failed_rewrite(error))
}

/// Gives back the space that replaced segments left in a chunk's file, when it is much.
pub(crate) fn shrink_wasteful(inner: &Inner, chunk: ChunkId) -> Result<(), Error> {
    let Some(file) = inner.file(chunk)? else { return Ok(()) };
    let used = file.manifest().bytes;
    if inner.files.size(chunk)? <= used * WASTE_FACTOR + WASTE_BYTES_MIN {
        return Ok(());
    }
    drop(file);
    rewrite(inner, chunk, Goal::Shrink)
}

fn run(inner: &Inner, chunk: ChunkId, goal: Goal) -> Result<(), Error> {
    let file = open(inner, chunk)?;
    let purge = file.manifest().deletes > 0 && file.deletes_up_to(aged_up_to(inner, chunk));
    if !purge && settled(&file, &goal) {
        return Ok(());
    }
    let goal = match (goal, file.header().compression) {
        (Goal::Purge, Some(Compression { spec, .. })) => Goal::Compress(spec),
        (Goal::Purge, None) => Goal::Decompress,
        (goal, _) => goal,
    };
    inner.check_free(FLUSH_RESERVE_BYTES + file.manifest().bytes)?;
    let work = Work::begin(inner, (chunk, file), goal);
    let mut draft = inner.files.draft(chunk)?;
    let rows = work.fill(&mut draft)?;
    work.finish(draft, rows)
}

/// The commit up to which deletes are so old that nobody reads from before them, also by a lease.
fn aged_up_to(inner: &Inner, chunk: ChunkId) -> Csn {
    let aged = inner.replicas().deletes_aged(chunk, inner.config.version_age, inner.times());
    aged.min(inner.leases.oldest(Instant::now()))
}

fn open(inner: &Inner, chunk: ChunkId) -> Result<Arc<ChunkFile>, Error> {
    if let Some(file) = inner.file(chunk)? {
        return Ok(file);
    }
    // A chunk without rows is compressed as soon as it is said to be.
    let spec = inner.replicas().spec(chunk).ok_or_else(|| {
        Error::Rpc(RpcError::new(Code::NotFound, format_args!("chunk {chunk} is not here")))
    })?;
    inner.files.get_or_create(&inner.node, &spec)
}

/// Whether the file is already as the goal wants it.
fn settled(file: &ChunkFile, goal: &Goal) -> bool {
    let FileHeader { manifest, compression, .. } = file.header();
    let rows = manifest.flushed.rows - manifest.removed;
    match goal {
        Goal::Compress(spec) => {
            let known = compression.is_some_and(|known| known.spec == *spec);
            known && manifest.compressed.is_some_and(|compressed| compressed.rows == rows)
        }
        Goal::Decompress => compression.is_none(),
        Goal::Shrink => false,
        Goal::Purge => true,
    }
}

/// A rewrite under way.
struct Work<'a> {
    inner: &'a Inner,
    chunk: ChunkId,
    file: Arc<ChunkFile>,
    goal: Goal,
    /// What is rewritten. Flushes add to the file, and nobody else takes from it.
    segments: Segments,
    /// The first number of the new segments, and the one after the last.
    numbers: (u64, u64),
    /// The last commit in them.
    csn: Csn,
    /// Deletes whose rows are left out.
    deletes: Vec<Delete>,
}

impl<'a> Work<'a> {
    fn begin(inner: &'a Inner, (chunk, file): (ChunkId, Arc<ChunkFile>), goal: Goal) -> Self {
        let _writing = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let segments = file.segments();
        let count = match goal {
            Goal::Shrink => 0,
            _ => segments.iter().map(numbers_for).sum(),
        };
        let first = file.reserve(count);
        // Only now, when no other deletes come in whose age was not asked for.
        let until = aged_up_to(inner, chunk);
        let aged = |delete: &Delete| !matches!(goal, Goal::Shrink) && delete.csn <= until;
        let deletes = file.header().deletes.into_iter().filter(aged).collect();
        let numbers = (first, first + count);
        let csn = file.manifest().flushed.csn;
        Self { inner, chunk, file, goal, segments, numbers, csn, deletes }
    }

    /// Writes the segments; gives the number of rows in them.
    fn fill(&self, draft: &mut Draft) -> Result<u64, Error> {
        if let Goal::Shrink = self.goal {
            for segment in self.segments.iter() {
                draft.add(segment.key().segment, &self.file.encoded(segment)?)?;
            }
            return Ok(self.segments.iter().map(|segment| segment.rows()).sum());
        }
        let spec = self.file.header().spec;
        let (order, how) = match &self.goal {
            Goal::Compress(compression) => {
                let how = EncodeOptions { effort: Effort::Strong, keys: &compression.segment_by };
                (compression.order(&spec), how)
            }
            _ => {
                let how = EncodeOptions { effort: Effort::Fast, keys: &spec.order_columns };
                (natural(&spec), how)
            }
        };
        let deletes = self.deletes.iter().map(|delete| delete.tombstone.clone());
        let deletes = Deletes::of(deletes.collect());
        let (mut next, mut rows) = (self.numbers.0, 0);
        for segments in by_schema(&self.segments) {
            let band_rows = segments.iter().map(band_rows).min().unwrap_or(BAND_ROWS_MAX);
            let target = Target { order: &order, deletes: &deletes, band_rows };
            let place = (self.file.as_ref(), self.chunk);
            let Some(bands) = Bands::plan(place, segments, target)? else { continue };
            for band in 0..bands.count() {
                let sorted = bands.read(band)?;
                rows += sorted.csns.len() as u64;
                let name = SegmentKey { file: self.file.manifest().file, segment: next };
                for encoded in encode_run(self.chunk, name, sorted, how)? {
                    draft.add(next, &encoded)?;
                    next += 1;
                }
                self.inner.check_open()?;
            }
        }
        assert!(next <= self.numbers.1, "as many numbers were set aside as segments may come");
        Ok(rows)
    }

    /// Adds what came meanwhile, and puts the draft in the file's place.
    fn finish(self, mut draft: Draft, rows: u64) -> Result<(), Error> {
        let Self { inner, chunk, ref file, .. } = self;
        let _writing = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        inner.check_open()?;
        match inner.node.manifest(chunk) {
            Some(manifest) if manifest.file == file.manifest().file => {}
            Some(_) => {
                let what = format!("chunk {chunk} was replaced by a copy while it was rewritten");
                return Err(Error::Overloaded(what));
            }
            None => {
                let gone = format_args!("chunk {chunk} was dropped");
                return Err(Error::Rpc(RpcError::new(Code::NotFound, gone)));
            }
        }
        let rewritten = (draft.bytes(), rows);
        let known: BTreeSet<u64> = self.segments.iter().map(|s| s.key().segment).collect();
        for segment in file.segments().iter().filter(|s| !known.contains(&s.key().segment)) {
            draft.add(segment.key().segment, &file.encoded(segment)?)?;
        }
        draft.copy_others(file)?;
        let header = self.header(&draft, rewritten);
        let replaced = inner.files.install(chunk, draft, &header)?;
        {
            let mut replicas = inner.replicas();
            inner.files.switch(chunk, replaced);
            replicas.rewritten(chunk, stored(&header.manifest));
        }
        save_manifest(inner, chunk, header.manifest)
    }

    /// The header of the new file, whose rewritten segments have so many bytes and rows.
    fn header(&self, draft: &Draft, (bytes, rows): (u64, u64)) -> FileHeader {
        let header = self.file.header();
        let read: u64 = self.segments.iter().map(|segment| segment.rows()).sum();
        let before = self.before(&header.manifest);
        let compressed = Compressed { csn: self.csn, rows, before, after: bytes };
        let (compression, compressed) = match &self.goal {
            Goal::Compress(spec) => {
                let compression = Compression { spec: spec.clone(), below: self.numbers.1 };
                (Some(compression), Some(compressed))
            }
            Goal::Shrink => (header.compression, header.manifest.compressed),
            Goal::Decompress | Goal::Purge => (None, None),
        };
        let gone: BTreeSet<Csn> = self.deletes.iter().map(|delete| delete.csn).collect();
        let deletes: Vec<Delete> =
            header.deletes.into_iter().filter(|delete| !gone.contains(&delete.csn)).collect();
        let manifest = Manifest {
            generation: header.manifest.generation + 1,
            segments: draft.segments(),
            bytes: draft.bytes(),
            removed: header.manifest.removed + (read - rows),
            horizon: gone.last().copied().unwrap_or(header.manifest.horizon),
            deletes: deletes.len() as u64,
            compressed,
            ..header.manifest
        };
        FileHeader { manifest, compression, deletes, garbage: Vec::new(), ..header }
    }

    /// What the rewritten rows took before they were ever compressed.
    fn before(&self, manifest: &Manifest) -> u64 {
        let sizes = self.segments.iter().map(|segment| self.file.segment_bytes(segment));
        let all = sizes.sum::<Result<u64, Error>>().unwrap_or(manifest.bytes);
        match manifest.compressed {
            Some(Compressed { before, after, .. }) => before + all.saturating_sub(after),
            None => all,
        }
    }
}

/// Numbers that the rows of a segment may need: each band and each schema may begin another segment.
fn numbers_for(segment: &Arc<Segment>) -> u64 {
    let bands = segment.rows().div_ceil(band_rows(segment));
    2 * bands + segment.rows() / SEGMENT_ROWS_MAX as u64 + 2
}

/// Rows of a band, so that it is not too large where rows are wide.
fn band_rows(segment: &Arc<Segment>) -> u64 {
    let width = (segment.schema().fields().len() as u64 + 1) * VALUE_BYTES;
    (BAND_BYTES_MAX / width).clamp(1, BAND_ROWS_MAX)
}

/// Segments of one schema together, each group in order of number.
fn by_schema(segments: &[Arc<Segment>]) -> Vec<Vec<Arc<Segment>>> {
    let mut groups: Vec<(SchemaRef, Vec<Arc<Segment>>)> = Vec::new();
    for segment in segments {
        match groups.iter_mut().find(|(schema, _)| schema == segment.schema()) {
            Some((_, group)) => group.push(Arc::clone(segment)),
            None => groups.push((Arc::clone(segment.schema()), vec![Arc::clone(segment)])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_has_one_turn() {
        let rewriting = Rewriting::default();
        let chunk = ChunkId(1);
        let turn = rewriting.begin(chunk).expect("nobody has it");
        assert!(rewriting.begin(chunk).is_none());
        assert!(rewriting.begin(chunk).is_none(), "asking takes it from nobody");
        assert!(rewriting.begin(ChunkId(2)).is_some());
        assert!(rewriting.wait(chunk, Duration::ZERO).is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| rewriting.wait(chunk, Duration::from_secs(60)).is_some());
            drop(turn);
            assert!(waiting.join().expect("it does not panic"));
        });
        assert!(rewriting.begin(chunk).is_some());
    }
}
