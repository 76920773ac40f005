//! The sender's side: one consistent picture of a replica, read piece by piece.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use arrow::{
    array::{BooleanArray, RecordBatch},
    compute::{concat_batches, filter_record_batch},
};
use bytes::Bytes;
use hypertide_proto::ids::{ChunkId, Csn};

use super::{DELTA_BYTES_MAX, Digest, History, Inner, PIECE_COMMITS, Piece, Start, Wanted};
use crate::{
    ChunkSpec, Error,
    chunk::{Commit, Standing, last_reserved},
    scan::Source,
    segment::{Place, SEGMENT_ROWS_MAX, Segment, SegmentKey, encode},
    store::{
        file::{ChunkFile, segment_error},
        sort::{Sorted, runs},
    },
    tables::{Compression, FileHeader, Heritage, Point},
    tombstone::Deletes,
};

/// How often it is looked whether a chunk's file and what is known of it agree.
const PICTURE_PAUSE: Duration = Duration::from_micros(100);

/// A replica as it was at one moment, to be sent.
#[derive(Debug)]
pub(crate) struct Outgoing {
    chunk: ChunkId,
    /// Known when there are recent rows.
    spec: Option<ChunkSpec>,
    start: Start,
    history: History,
    source: Option<Source>,
    recent: Vec<Commit>,
    /// File in the names of segments that exist on the way only.
    passing: [u8; 16],
    passed: u64,
    inner: Arc<Inner>,
}

/// Takes the picture; `None` when what is wanted is not applied yet.
pub(super) fn prepare(inner: &Arc<Inner>, wanted: Wanted) -> Result<Option<Outgoing>, Error> {
    let (standing, source, header) = picture(inner, wanted.chunk)?;
    let applied = standing.applied;
    let least = wanted.from.map_or(wanted.to, |(csn, _)| csn.max(wanted.to));
    if applied.csn < least {
        return Ok(None);
    }
    let mut oldest = wanted.from.map_or(Csn(0), |(csn, _)| csn);
    if wanted.to > Csn(0) {
        oldest = oldest.min(wanted.to);
    }
    let history = inner.history(wanted.chunk, &standing, oldest)?;
    // Without its commits the rows can be sent all the same, only never a part of them.
    let history = history.unwrap_or_else(|| History::at(applied));
    check_chain(wanted, &history)?;
    let delta = wanted.from.filter(|(csn, _)| *csn > Csn(0)).and_then(|from| history.after(from));
    let delta =
        delta.filter(|delta| delta_bytes(source.as_ref(), delta.start().csn) <= DELTA_BYTES_MAX);
    // Rows that the receiver still has may have been taken out here since.
    let horizon = header.as_ref().map_or(Csn(0), |header| header.manifest.horizon);
    let delta = delta.filter(|delta| horizon <= delta.start().csn);
    let whole = delta.is_none();
    let history = delta.unwrap_or(history);
    let start_at = if whole { Csn(0) } else { history.start().csn };
    let recent: Vec<Commit> =
        standing.recent.into_iter().filter(|commit| commit.csn > start_at).collect();
    let heritage = heritage(header, &recent, (whole, source.as_ref()), start_at);
    let start = Start {
        whole,
        chunk: wanted.chunk,
        from: history.start(),
        to: applied,
        bytes: delta_bytes(source.as_ref(), start_at),
        heritage,
    };
    Ok(Some(Outgoing {
        chunk: wanted.chunk,
        spec: standing.spec,
        start,
        history,
        source,
        recent,
        passing: inner.files.disk().draw_id(),
        passed: 0,
        inner: Arc::clone(inner),
    }))
}

/// What the receiver is to know beside commits and segments.
fn heritage(
    header: Option<FileHeader>,
    recent: &[Commit],
    (whole, source): (bool, Option<&Source>),
    from: Csn,
) -> Heritage {
    let reserved = last_reserved(recent);
    let recent = recent.iter().flat_map(Commit::deletes);
    let mut heritage = Heritage::default();
    if let Some(FileHeader { manifest, compression, deletes, .. }) = header {
        heritage.deletes = deletes.into_iter().filter(|delete| delete.csn > from).collect();
        heritage.deleted = manifest.deleted;
        if whole {
            heritage.removed = manifest.removed;
            heritage.horizon = manifest.horizon;
            heritage.compressed = manifest.compressed;
            heritage.compression = compression.map(|Compression { spec, below }| {
                let segments = source.iter().flat_map(|source| source.segments.iter());
                let compressed = segments.filter(|segment| segment.key().segment < below);
                (spec, compressed.count() as u64)
            });
        }
    }
    heritage.deleted = heritage.deleted.max(reserved);
    heritage.deletes.extend(recent);
    heritage
}

/// A replica in memory, the segments that go with it, and the header of its file.
type Picture = (Standing, Option<Source>, Option<FileHeader>);

fn picture(inner: &Inner, chunk: ChunkId) -> Result<Picture, Error> {
    loop {
        inner.check_open()?;
        if let Some(what) = inner.replicas().damage(chunk) {
            return Err(Error::Damaged { chunk, what: what.to_owned() });
        }
        let file = inner.file(chunk);
        let file = file.inspect_err(|error| inner.note_damage(error))?;
        let replicas = inner.replicas();
        // Of a chunk without a commit nothing need be here, and there is nothing to send.
        let standing = replicas.standing(chunk).unwrap_or_default();
        let flushed = file.as_ref().map_or(Point::default(), |file| file.manifest().flushed);
        if flushed != standing.stored.flushed {
            // A first flush or a rewrite has changed files in between.
            drop(replicas);
            std::thread::sleep(PICTURE_PAUSE);
            inner.check_open()?;
            continue;
        }
        let header = file.as_ref().map(|file| file.header());
        let source = file.map(|file| Source {
            segments: file.segments(),
            file,
            deletes: Deletes::default(),
        });
        drop(replicas);
        if standing.damaged {
            let what = "wrong bytes were found in it, it is no source for another replica";
            return Err(Error::Damaged { chunk, what: what.to_owned() });
        }
        return Ok((standing, source, header));
    }
}

/// Refuses to send a replica that is not what the catalog says it is.
fn check_chain(wanted: Wanted, history: &History) -> Result<(), Error> {
    let Some(expected) = wanted.chain else { return Ok(()) };
    match history.point_at(wanted.to) {
        Some(point) if point.chain != expected => {
            let (csn, found) = (wanted.to, point.chain);
            let what = format!("its chain at {csn} is {found:032x} instead of {expected:032x}");
            Err(Error::Damaged { chunk: wanted.chunk, what })
        }
        _ => Ok(()),
    }
}

/// About how many bytes of segments hold rows after `from`.
fn delta_bytes(source: Option<&Source>, from: Csn) -> u64 {
    let segments = source.iter().flat_map(|source| source.segments.iter());
    segments
        .map(|segment| {
            let blocks = segment.block_count() as u64;
            let newer = newer_blocks(segment, from).count() as u64;
            (segment.encoded_bytes() * newer).checked_div(blocks).unwrap_or(0)
        })
        .sum()
}

fn newer_blocks(segment: &Segment, from: Csn) -> impl Iterator<Item = usize> {
    let newer = move |block: &usize| {
        segment.block_csn_range(*block).is_none_or(|(_, greatest)| greatest > from)
    };
    (0..segment.block_count()).filter(newer)
}

impl Outgoing {
    /// Sends all pieces, in order, until `put` fails.
    pub(crate) fn send(
        mut self,
        mut put: impl FnMut(Piece) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let inner = Arc::clone(&self.inner);
        let mut digest = Digest::default();
        let sent = self.send_all(&mut |piece| {
            digest.add(&piece);
            put(piece)
        });
        sent.inspect_err(|error| {
            if let Error::Damaged { chunk, what } = error {
                tracing::error!("send chunk to another replica: {error}");
                inner.replicas().mark_suspect(*chunk, what);
            }
        })?;
        put(Piece::End(digest.end()))
    }

    fn send_all(&mut self, put: &mut dyn FnMut(Piece) -> Result<(), Error>) -> Result<(), Error> {
        put(Piece::Start(self.start.clone()))?;
        for commits in self.history.commits().chunks(PIECE_COMMITS) {
            put(Piece::Commits(commits.to_vec()))?;
        }
        let from = if self.start.whole { Csn(0) } else { self.start.from.csn };
        if let Some(Source { file, segments, .. }) = self.source.take() {
            for segment in segments.iter() {
                let (least, greatest) = segment.csn_range();
                if least > from || self.start.whole {
                    self.send_as_is(&file, segment, put)?;
                } else if greatest > from {
                    let newer = self.newer_rows(&file, segment, from)?;
                    self.send_rows(newer, put)?;
                }
            }
        }
        let Some(spec) = self.spec.take() else { return Ok(()) };
        let sorted = runs(&spec, &std::mem::take(&mut self.recent));
        let sorted = sorted.map_err(|error| {
            Error::Invalid(format!("sort rows of chunk {}: {error}", self.chunk))
        })?;
        sorted.into_iter().try_for_each(|run| self.send_rows(Some(run), put))
    }

    fn send_as_is(
        &self,
        file: &ChunkFile,
        segment: &Segment,
        put: &mut dyn FnMut(Piece) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let header = segment.header_bytes().map_err(|error| segment_error(self.chunk, error))?;
        put(Piece::Segment(segment.key(), header.into()))?;
        for extent in 0..segment.extent_count() {
            put(Piece::Extent(file.extent(segment.key().segment, extent)?))?;
        }
        Ok(())
    }

    /// The rows of a segment after `from`.
    fn newer_rows(
        &self,
        file: &ChunkFile,
        segment: &Segment,
        from: Csn,
    ) -> Result<Option<Sorted>, Error> {
        let damaged = |what: String| Error::Damaged { chunk: self.chunk, what };
        let (mut batches, mut csns) = (Vec::new(), Vec::new());
        let mut reader = Reader { file, chunk: self.chunk, segment, held: BTreeMap::new() };
        for block in newer_blocks(segment, from) {
            let (batch, all) = reader.read(block)?;
            let newer: BooleanArray = all.iter().map(|csn| Some(*csn > from.0)).collect();
            let batch = filter_record_batch(&batch, &newer);
            batches.push(batch.map_err(|error| damaged(error.to_string()))?);
            csns.extend(all.into_iter().filter(|csn| *csn > from.0));
        }
        let rows = concat_batches(segment.schema(), &batches);
        let rows = rows.map_err(|error| damaged(error.to_string()))?;
        Ok((rows.num_rows() > 0).then_some(Sorted { rows, csns }))
    }

    /// Sends rows as segments that exist on the way only.
    fn send_rows(
        &mut self,
        rows: Option<Sorted>,
        put: &mut dyn FnMut(Piece) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Some(Sorted { rows, csns }) = rows else { return Ok(()) };
        let mut start = 0;
        for csns in csns.chunks(SEGMENT_ROWS_MAX) {
            let key = SegmentKey { file: self.passing, segment: self.passed };
            self.passed += 1;
            let encoded = encode(key, &rows.slice(start, csns.len()), csns);
            let encoded = encoded.map_err(|error| segment_error(self.chunk, error))?;
            start += csns.len();
            put(Piece::Segment(key, encoded.header.into()))?;
            for extent in encoded.extents {
                put(Piece::Extent(extent.into()))?;
            }
        }
        Ok(())
    }
}

/// Reads whole blocks of a segment, one after another.
struct Reader<'a> {
    file: &'a ChunkFile,
    chunk: ChunkId,
    segment: &'a Segment,
    /// Extents that the last block used, which the next one mostly uses, too.
    held: BTreeMap<usize, Bytes>,
}

impl Reader<'_> {
    /// All rows of a block, with their commit numbers.
    fn read(&mut self, block: usize) -> Result<(RecordBatch, Vec<u64>), Error> {
        let (segment, chunk) = (self.segment, self.chunk);
        let wrong = |error| segment_error(chunk, error);
        let mut used = BTreeSet::new();
        let mut columns = Vec::with_capacity(segment.schema().fields().len());
        for column in 0..segment.schema().fields().len() {
            let extent = self.extent(block, segment.place(block, column), &mut used)?;
            columns.push(segment.decode(block, column, &extent).map_err(wrong)?);
        }
        let extent = self.extent(block, segment.csn_place(block), &mut used)?;
        let csns = segment.decode_csns(block, &extent).map_err(wrong)?;
        self.held.retain(|extent, _| used.contains(extent));
        let batch = RecordBatch::try_new(Arc::clone(segment.schema()), columns);
        let batch = batch.map_err(|error| Error::Damaged { chunk, what: error.to_string() })?;
        Ok((batch, csns))
    }

    fn extent(
        &mut self,
        block: usize,
        place: Option<Place>,
        used: &mut BTreeSet<usize>,
    ) -> Result<Bytes, Error> {
        let id = self.segment.key().segment;
        let Some(Place { extent, len, .. }) = place else {
            let what = format!("segment {id} does not say where block {block} lies");
            return Err(Error::Damaged { chunk: self.chunk, what });
        };
        if len == 0 {
            return Ok(Bytes::new());
        }
        used.insert(extent);
        if let Some(bytes) = self.held.get(&extent) {
            return Ok(bytes.clone());
        }
        let bytes = self.file.extent(id, extent)?;
        self.held.insert(extent, bytes.clone());
        Ok(bytes)
    }
}
