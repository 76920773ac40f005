//! From recent rows to segments: the flush, and the thread that does it in the background, with all else that is due.
//!
//! The order is what makes a restart at any point neither lose nor double a row: segments into the chunk's file with
//! how far it is flushed (one transaction), then the manifest, then the journal's rows go. A commit that is both in
//! the file and in the journal is known by its number, and dropped from the journal.

use std::{
    collections::BTreeMap,
    sync::PoisonError,
    time::{Duration, Instant},
};

use hypertide_proto::ids::ChunkId;

use super::{
    Inner,
    contain::contain,
    file::{ChunkFile, Write, segment_error},
    sort::{Sorted, runs},
};
use crate::{
    Error, StoreConfig,
    chunk::{Commit, FlushPlan, Released, last_reserved},
    compact::{self, Goal},
    journal::Change,
    segment::{Effort, EncodeOptions, EncodedSegment, SEGMENT_ROWS_MAX, SegmentKey, encode_with},
    tables::Manifest,
};

/// How often the background looks whether something is due.
const TICK: Duration = Duration::from_millis(200);
/// The same when memory is scarce.
const TICK_SCARCE: Duration = Duration::from_millis(20);
/// Pause before a chunk whose flush failed is tried again.
const FAILED_PAUSE: Duration = Duration::from_secs(10);
/// Free bytes below which not even a flush writes.
pub(crate) const FLUSH_RESERVE_BYTES: u64 = 64 << 20;

/// Flushes and merges what is due until told to stop.
pub(super) fn run_background(inner: &Inner) {
    let mut paused: BTreeMap<ChunkId, Instant> = BTreeMap::new();
    // Chunks of which no segments qualify for a merge, with their number then.
    let mut merged: BTreeMap<ChunkId, u64> = BTreeMap::new();
    while inner.stop.wait(if inner.memory.scarce() { TICK_SCARCE } else { TICK })
        && inner.poison.reason().is_none()
    {
        let now = Instant::now();
        paused.retain(|_, until| *until > now);
        let StoreConfig { flush_bytes, flush_age, .. } = inner.config;
        let due = inner.replicas().due(flush_bytes, flush_age, now);
        let mut work = |chunk, run: &dyn Fn() -> Result<(), Error>| {
            if inner.stop.stopped() || paused.contains_key(&chunk) {
                return;
            }
            if let Err(error) = run() {
                tracing::warn!("background work on chunk {chunk}: {error}");
                paused.insert(chunk, now + FAILED_PAUSE);
            }
        };
        for chunk in due {
            work(chunk, &|| flush_chunk(inner, chunk));
        }
        // When memory is scarce, the chunks that take most of it go before their time.
        let early =
            if inner.memory.scarce() { inner.replicas().due(0, flush_age, now) } else { vec![] };
        for chunk in early {
            if inner.memory.scarce() {
                work(chunk, &|| flush_chunk(inner, chunk));
            }
        }
        if let Err(error) = inner.unlink_due() {
            tracing::warn!("unlink removed chunks: {error}");
        }
        let held = inner.leases.oldest(now);
        let age = inner.config.version_age;
        let purged = inner.replicas().with_deletes(age, held, (inner.opened, now));
        for chunk in purged {
            work(chunk, &|| compact::rewrite(inner, chunk, Goal::Purge));
        }
        let crowded = inner.replicas().crowded(compact::SEGMENTS_MAX as u64);
        merged.retain(|chunk, _| crowded.contains_key(chunk));
        for (chunk, segments) in crowded {
            if merged.get(&chunk) != Some(&segments) {
                work(chunk, &|| {
                    compact::run(inner, chunk)?;
                    compact::shrink_wasteful(inner, chunk)
                });
                let after = inner.replicas().report(&[chunk]).first().map(|report| report.segments);
                if after == Some(segments) {
                    merged.insert(chunk, segments);
                }
            }
        }
    }
}

/// Writes the applied commits of a chunk to segments.
pub(super) fn flush_chunk(inner: &Inner, chunk: ChunkId) -> Result<(), Error> {
    let _writing = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
    inner.poison.check()?;
    let Some(plan) = inner.replicas().plan_flush(chunk) else { return Ok(()) };
    inner.check_free(FLUSH_RESERVE_BYTES)?;
    let flushed = contain(|| write_plan(inner, chunk, plan));
    let flushed = flushed.unwrap_or_else(|what| Err(Error::Damaged { chunk, what }));
    flushed.inspect_err(|error| inner.note_failure(error))
}

/// [`flush_chunk`] for one who holds the right to write.
pub(super) fn write_plan(inner: &Inner, chunk: ChunkId, plan: FlushPlan) -> Result<(), Error> {
    let FlushPlan { spec, commits, to } = plan;
    let deletes = commits.iter().flat_map(Commit::deletes).collect();
    let reserved = last_reserved(&commits);
    let rows = commits.iter().map(Commit::row).collect();
    let sorted = runs(&spec, &commits)
        .map_err(|error| Error::Invalid(format!("sort rows of chunk {chunk}: {error}")))?;
    drop(commits);
    let file = match inner.file(chunk)? {
        Some(file) => file,
        None => inner.files.get_or_create(&inner.node, &spec)?,
    };
    let added = encode_runs(&file, chunk, sorted)?;
    let write = Write { added, deletes, reserved, commits: rows, ..Write::to(to) };
    let written = file.write(spec, write)?;
    let (manifest, stored) = (written.manifest(), written.stored());
    let released = {
        // A scan takes the recent rows and the segments under this lock: it sees the rows in one of them.
        let mut replicas = inner.replicas();
        file.publish(written);
        replicas.flushed(chunk, stored)
    };
    save_manifest(inner, chunk, manifest)?;
    inner.journal.submit_lazily(self::released(released).collect());
    Ok(())
}

/// Notes what a chunk's file holds; a failure is the disk's, and final.
pub(crate) fn save_manifest(
    inner: &Inner,
    chunk: ChunkId,
    manifest: Manifest,
) -> Result<(), Error> {
    inner.node.save_manifests(&[(chunk, Some(manifest))])
}

/// Encodes runs as the segments that the file would get next.
pub(crate) fn encode_runs(
    file: &ChunkFile,
    chunk: ChunkId,
    runs: Vec<Sorted>,
) -> Result<Vec<EncodedSegment>, Error> {
    let spec = file.header().spec;
    let mut encoded = Vec::new();
    let how = EncodeOptions { effort: Effort::Fast, keys: &spec.order_columns };
    for run in runs {
        let first = file.next_key(encoded.len());
        encoded.extend(encode_run(chunk, first, run, how)?);
    }
    Ok(encoded)
}

/// Encodes a run as the segments from `first` on.
pub(crate) fn encode_run(
    chunk: ChunkId,
    first: SegmentKey,
    Sorted { rows, csns }: Sorted,
    how: EncodeOptions<'_>,
) -> Result<Vec<EncodedSegment>, Error> {
    let (mut start, mut key) = (0, first);
    let mut encoded = Vec::new();
    for csns in csns.chunks(SEGMENT_ROWS_MAX) {
        let rows = rows.slice(start, csns.len());
        start += csns.len();
        let segment = encode_with(key, &rows, csns, how);
        encoded.push(segment.map_err(|error| segment_error(chunk, error))?);
        key.segment += 1;
    }
    Ok(encoded)
}

/// How the journal lets go of rows that are of no use any more.
pub(super) fn released(released: Released) -> impl Iterator<Item = Change> {
    let parts = released.parts.into_iter().map(Change::RemovePart);
    parts.chain(released.decisions.into_iter().map(Change::RemoveDecision))
}
