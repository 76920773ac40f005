//! The receiver's side: collects and verifies the pieces, and takes them in when all are there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use hypertide_proto::ids::{ChunkId, Csn};

use super::{
    DELTA_BYTES_MAX, Digest, End, History, Inner, Piece, Start, Wanted,
    build::{Builder, Built},
};
use crate::{
    ChunkSpec, Error,
    chunk::Arrival,
    segment::{EncodedSegment, Reframe, SegmentKey},
    store::{file::Write, flush, memory::Charge},
    tables::{Manifest, Point},
};

/// Encoded bytes of one segment that are held until the last of them came.
const SEGMENT_EXTENTS_MAX: usize = 1 << 20;

/// A copy on its way in.
pub(crate) struct Incoming {
    inner: Arc<Inner>,
    wanted: Wanted,
    spec: ChunkSpec,
    start: Start,
    history: History,
    digest: Digest,
    segment: Option<Half>,
    sink: Sink,
    received: Received,
}

/// How much came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) bytes: u64,
    pub(crate) commits: u64,
    pub(crate) rows: u64,
}

/// What a transfer did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Installed {
    pub(crate) whole: bool,
    pub(crate) received: Received,
    /// Where what came ends.
    pub(crate) to: Point,
}

/// A segment of which some extents came.
struct Half {
    from: SegmentKey,
    header: Bytes,
    reframe: Reframe,
    extents: Vec<Bytes>,
    count: usize,
}

enum Sink {
    /// Segments under their sender's names, and the room they take.
    Delta(Vec<(SegmentKey, Bytes, Vec<Bytes>)>, Vec<Charge>),
    Whole(Box<Builder>),
}

impl Incoming {
    pub(super) fn new(
        inner: Arc<Inner>,
        (spec, wanted): (ChunkSpec, Wanted),
        start: Start,
    ) -> Result<Self, Error> {
        let chunk = wanted.chunk;
        if start.chunk != chunk {
            let other = start.chunk;
            return Err(Error::Invalid(format!("chunk {other} was sent instead of {chunk}")));
        }
        let reserve = inner.config.space_reserve_bytes.saturating_add(start.bytes);
        inner.check_free(reserve)?;
        let from = (start.from.csn, start.from.chain);
        if !start.whole && wanted.from != Some(from) {
            let csn = start.from.csn;
            let what = format!("chunk {chunk}: what follows {csn} was sent, which was not asked");
            return Err(Error::Invalid(what));
        }
        let sink = match start.whole {
            true => Sink::Whole(Box::new(Builder::new(&inner, chunk).inspect_err(|error| {
                inner.note_failure(error);
            })?)),
            false => Sink::Delta(Vec::new(), Vec::new()),
        };
        let mut digest = Digest::default();
        digest.add(&Piece::Start(start.clone()));
        let history = History::at(start.from);
        let (segment, received) = (None, Received::default());
        Ok(Self { inner, wanted, spec, start, history, digest, segment, sink, received })
    }

    fn invalid(&self, what: &str) -> Error {
        Error::Invalid(format!("copy of chunk {}: {what}", self.wanted.chunk))
    }

    /// Takes a piece in. True when it was the last.
    pub(crate) fn take(&mut self, piece: Piece) -> Result<bool, Error> {
        self.received.bytes += piece.bytes();
        if let Piece::End(end) = piece {
            self.check_end(end)?;
            return Ok(true);
        }
        self.digest.add(&piece);
        match piece {
            Piece::Commits(commits) => {
                self.received.commits += commits.len() as u64;
                self.history.extend(commits);
            }
            Piece::Segment(key, header) => self.begin_segment(key, header)?,
            Piece::Extent(bytes) => self.add_extent(bytes)?,
            Piece::Start(_) | Piece::End(_) => return Err(self.invalid("it starts twice")),
        }
        Ok(false)
    }

    fn begin_segment(&mut self, from: SegmentKey, header: Bytes) -> Result<(), Error> {
        if self.segment.is_some() {
            return Err(self.invalid("a segment begins before the one before ended"));
        }
        let to = match &self.sink {
            Sink::Delta(..) => from,
            Sink::Whole(builder) => builder.next_key(),
        };
        let reframe = Reframe::open(from, to, &header);
        let reframe = reframe.map_err(|error| wrong_bytes(self.wanted.chunk, &error))?;
        let count = reframe.segment().extent_count();
        if count > SEGMENT_EXTENTS_MAX {
            return Err(self.invalid("a segment has too many extents"));
        }
        self.received.rows += reframe.segment().rows();
        self.hold(header.len())?;
        self.segment = Some(Half { from, header, reframe, extents: Vec::new(), count });
        self.end_segment()
    }

    fn add_extent(&mut self, bytes: Bytes) -> Result<(), Error> {
        let Some(half) = &mut self.segment else {
            return Err(self.invalid("an extent belongs to no segment"));
        };
        let number = half.extents.len();
        let renamed = half.reframe.extent(number, &bytes);
        let renamed = renamed.map_err(|error| wrong_bytes(self.wanted.chunk, &error))?;
        let held = bytes.len();
        match &mut self.sink {
            Sink::Delta(..) => half.extents.push(bytes),
            Sink::Whole(builder) => {
                half.extents.push(Bytes::new());
                let number = u32::try_from(number).unwrap_or(u32::MAX);
                let put = builder.extent(number, &renamed);
                put.inspect_err(|error| self.inner.note_failure(error))?;
            }
        }
        self.hold(held)?;
        self.end_segment()
    }

    /// Counts what a delta holds in memory.
    fn hold(&mut self, bytes: usize) -> Result<(), Error> {
        let Sink::Delta(_, charges) = &mut self.sink else { return Ok(()) };
        charges.push(self.inner.memory.take(bytes));
        if self.received.bytes > 2 * DELTA_BYTES_MAX {
            return Err(self.invalid("the commits missed are too many to be sent one by one"));
        }
        Ok(())
    }

    fn end_segment(&mut self) -> Result<(), Error> {
        let Some(half) = self.segment.take_if(|half| half.extents.len() == half.count) else {
            return Ok(());
        };
        match &mut self.sink {
            Sink::Delta(segments, _) => segments.push((half.from, half.header, half.extents)),
            Sink::Whole(builder) => {
                let header = half.reframe.header();
                let header = header.map_err(|error| wrong_bytes(self.wanted.chunk, &error))?;
                let put = builder.segment(&header);
                put.inspect_err(|error| self.inner.note_failure(error))?;
            }
        }
        Ok(())
    }

    fn damaged(&self, what: &str) -> Error {
        wrong_bytes(self.wanted.chunk, &what)
    }

    fn check_end(&self, end: End) -> Result<(), Error> {
        if self.segment.is_some() || end != self.digest.end() {
            return Err(self.damaged("the digest over all of it does not match"));
        }
        if !self.history.in_order() || self.history.end() != self.start.to {
            return Err(self.damaged("its commits do not lead to where it ends"));
        }
        let Wanted { to, chain, .. } = self.wanted;
        if let (Some(point), Some(chain)) = (self.history.point_at(to), chain)
            && point.chain != chain
        {
            return Err(self.damaged(&format!("its chain at {to} is not the catalog's")));
        }
        Ok(())
    }

    /// Takes in what came, durably; `None` when the replica has moved on meanwhile. Call it after the last piece.
    pub(crate) fn finish(self) -> Result<Option<Installed>, Error> {
        let Self { inner, spec, start, history, sink, received, .. } = self;
        let noted = |error: &Error| inner.note_failure(error);
        let installed = Installed { whole: start.whole, received, to: start.to };
        if start.to.csn == Csn(0) || (!start.whole && history.commits().is_empty()) {
            return Ok(Some(installed)); // There is nothing that is not here.
        }
        let txns = history.commits().iter().map(|commit| commit.txn).collect();
        let arriving = Arriving { inner: &inner, spec, start: &start, txns };
        let taken = match sink {
            Sink::Whole(builder) => {
                let built = builder.finish(arriving.spec.clone(), &history, start.heritage.clone());
                let built = built.inspect_err(noted)?;
                arriving.take_file(built)
            }
            Sink::Delta(segments, charges) => {
                let taken = arriving.take_segments(segments, &history);
                drop(charges);
                taken
            }
        };
        Ok(taken.inspect_err(noted)?.then_some(installed))
    }
}

/// What is needed to take a copy in.
struct Arriving<'a> {
    inner: &'a Inner,
    spec: ChunkSpec,
    start: &'a Start,
    txns: BTreeSet<hypertide_proto::ids::TxnId>,
}

impl Arriving<'_> {
    /// Lets the file take the place of the chunk's. False when the replica has got further meanwhile.
    fn take_file(self, built: Built) -> Result<bool, Error> {
        let Self { inner, spec, start, txns } = self;
        let chunk = spec.chunk;
        let _writing = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        inner.poison.check()?;
        // What is applied and not flushed goes on from the copy; what is flushed changes only under this lock.
        let flushed = inner.replicas().standing(chunk).map(|standing| standing.stored.flushed);
        if flushed.is_some_and(|flushed| flushed.csn > start.to.csn) {
            return Ok(false);
        }
        let stored = crate::store::file::stored(&built.file.manifest());
        let at = Instant::now();
        let arrival = Arrival { spec, stored, whole: true, txns, at };
        inner.files.swap(&inner.node, (chunk, built.new, built.file), || {
            let mut replicas = inner.replicas();
            let released = replicas.arrived(chunk, arrival);
            inner.journal.submit_lazily(flush::released(released).collect());
        })?;
        Ok(true)
    }

    /// Adds the segments to the chunk's file. False when the replica is not where they continue any more.
    fn take_segments(
        self,
        segments: Vec<(SegmentKey, Bytes, Vec<Bytes>)>,
        history: &History,
    ) -> Result<bool, Error> {
        let Self { inner, spec, start, txns } = self;
        let chunk = spec.chunk;
        let _writing = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        inner.poison.check()?;
        // All that is applied must be in the file before what follows it.
        let plan = inner.replicas().plan_flush(chunk);
        if let Some(plan) = plan.filter(|plan| plan.to == start.from) {
            flush::write_plan(inner, chunk, plan)?;
        }
        let standing = inner.replicas().standing(chunk);
        let here = |point: Point| (point.csn, point.chain) == (start.from.csn, start.from.chain);
        if !standing.is_some_and(|standing| here(standing.stored.flushed) && !standing.damaged) {
            return Ok(false);
        }
        let file = match inner.file(chunk)? {
            Some(file) => file,
            None => inner.files.get_or_create(&inner.node, &spec)?,
        };
        let mut added = Vec::with_capacity(segments.len());
        let mut rows = BTreeMap::new();
        for (from, header, extents) in segments {
            let to = file.next_key(added.len());
            let segment = renamed((from, to), &header, &extents, &mut rows);
            added.push(segment.map_err(|error| wrong_bytes(chunk, &error))?);
        }
        let missing = history
            .commits()
            .iter()
            .any(|commit| rows.get(&commit.csn.0).copied().unwrap_or(0) != commit.rows);
        let all: u64 = rows.values().sum();
        if missing || all != start.to.rows.saturating_sub(start.from.rows) {
            let what = format!("copy of chunk {chunk}: it has other rows than its commits");
            return Err(Error::Invalid(what));
        }
        let deletes = start.heritage.deletes.clone();
        let commits = history.commits().to_vec();
        let reserved = start.heritage.deleted;
        let write = Write { added, deletes, reserved, commits, ..Write::to(start.to) };
        // A restart cannot tell from the journal that the file is ahead of its manifest, as after a flush.
        flush::save_manifest(inner, chunk, Manifest { ahead: true, ..file.manifest() })?;
        let written = file.write(spec.clone(), write)?;
        let (manifest, stored) = (written.manifest(), written.stored());
        let released = {
            let mut replicas = inner.replicas();
            file.publish(written);
            let at = Instant::now();
            let arrival = Arrival { spec, stored, whole: false, txns, at };
            replicas.arrived(chunk, arrival)
        };
        flush::save_manifest(inner, chunk, manifest)?;
        inner.journal.submit_lazily(flush::released(released).collect());
        Ok(true)
    }
}

/// What came is wrong; what is here is not.
fn wrong_bytes(chunk: ChunkId, what: &dyn std::fmt::Display) -> Error {
    Error::Invalid(format!("copy of chunk {chunk}: it has wrong bytes: {what}"))
}

/// A segment under another name; counts its rows by commit.
fn renamed(
    (from, to): (SegmentKey, SegmentKey),
    header: &[u8],
    extents: &[Bytes],
    rows: &mut BTreeMap<u64, u64>,
) -> Result<EncodedSegment, crate::segment::SegmentError> {
    let reframe = Reframe::open(from, to, header)?;
    let segment = reframe.segment();
    for block in 0..segment.block_count() {
        let place = segment.csn_place(block).unwrap_or_default();
        let extent = extents.get(place.extent).map(Bytes::as_ref).unwrap_or_default();
        for csn in segment.decode_csns(block, extent)? {
            *rows.entry(csn).or_default() += 1;
        }
    }
    let extents = extents.iter().enumerate();
    let extents = extents.map(|(number, bytes)| reframe.extent(number, bytes));
    Ok(EncodedSegment { header: reframe.header()?, extents: extents.collect::<Result<_, _>>()? })
}
