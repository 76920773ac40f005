//! Replicas on their way from one data node to another.
//!
//! The one that lacks commits says where it stands; the other sends the commits that follow, or, when the place is not
//! on its history or too long ago, all that it has. On both ways the same pieces travel:
//!
//! ```text
//! start       which chunk, whole or not, from which place to which
//! commits     number, transaction, hash and rows of each, in order: what continues the chain
//! segment     header; then its extents. A whole chunk's are sent as they lie on disk, without decoding; of a delta
//! extent      those that hold newer and older rows are encoded anew, without the older
//! end         count of the pieces, and a digest over all of them
//! ```
//!
//! - What arrives is verified piece by piece (the frames of headers and blocks), as a whole (the digest), and against
//!   the chain of the sender and of the catalog. Before all of it is right, nothing of the receiver's replica changes.
//! - A delta goes into the chunk's file in one transaction. A whole copy is a file of its own, which takes the place of
//!   the chunk's file when the manifest names it; a restart in between ends what was begun (`store/files.rs`).
//! - Deletes travel with the start. Where the sender has taken out rows that the receiver may still have, all is sent.
//! - What is applied is never taken back: a copy that ends before it is refused. Pending parts stay, and commits that
//!   came in while the copy was under way go on from its end.

use std::sync::Arc;

use bytes::Bytes;
use hypertide_proto::ids::{ChunkId, Csn};
use serde::Serialize;
use xxhash_rust::xxh3::Xxh3;

use super::{ChunkStore, Inner, history::History};
use crate::{
    ChunkSpec, Error,
    chunk::Standing,
    segment::SegmentKey,
    tables::{self, CommitRow, Heritage, Point},
};

mod build;
mod incoming;
mod outgoing;
#[cfg(test)]
mod tests;

pub(crate) use incoming::{Incoming, Installed};
pub(crate) use outgoing::Outgoing;

/// Commits in one piece.
const PIECE_COMMITS: usize = 4096;
/// A delta of more encoded bytes than this is not collected in memory: the whole chunk is sent instead.
const DELTA_BYTES_MAX: u64 = 128 << 20;

/// One message of a transfer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Piece {
    Start(Start),
    Commits(Vec<CommitRow>),
    Segment(SegmentKey, Bytes),
    Extent(Bytes),
    End(End),
}

/// What is going to be sent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Start {
    pub(crate) whole: bool,
    pub(crate) chunk: ChunkId,
    /// Where the commits begin. A whole chunk has rows from before, too.
    pub(crate) from: Point,
    pub(crate) to: Point,
    /// About how many encoded bytes follow.
    pub(crate) bytes: u64,
    /// Of a delta only the deletes among its commits.
    pub(crate) heritage: Heritage,
}

/// That all was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// Pieces before this one.
    pub(crate) pieces: u64,
    /// [`Digest`] over them.
    pub(crate) digest: u128,
}

impl Piece {
    /// Bytes that it takes on the wire, about.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = match self {
            Self::Start(_) | Self::End(_) => 64,
            Self::Commits(commits) => commits.len() * size_of::<CommitRow>(),
            Self::Segment(_, bytes) | Self::Extent(bytes) => bytes.len(),
        };
        bytes as u64
    }
}

/// Running hash over pieces.
#[derive(Default)]
struct Digest {
    pieces: u64,
    hash: Xxh3,
}

impl Digest {
    fn add(&mut self, piece: &Piece) {
        self.pieces += 1;
        let mut put = |kind: u8, head: &[u8], body: &[u8]| {
            self.hash.update(&[kind]);
            self.hash.update(&(head.len() as u64 + body.len() as u64).to_be_bytes());
            self.hash.update(head);
            self.hash.update(body);
        };
        match piece {
            Piece::Start(start) => put(0, &[], &tables::pack(start)),
            Piece::Commits(commits) => put(1, &[], &tables::pack(commits)),
            Piece::Segment(key, header) => {
                let name = [key.file.as_slice(), &key.segment.to_be_bytes()].concat();
                put(2, &name, header);
            }
            Piece::Extent(blocks) => put(3, &[], blocks),
            Piece::End(_) => {}
        }
    }

    fn end(&self) -> End {
        End { pieces: self.pieces, digest: self.hash.digest128() }
    }
}

/// What is asked of the sender.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) chunk: ChunkId,
    /// Number and chain where the receiver stands; `None` when nothing of its replica can be continued.
    pub(crate) from: Option<(Csn, u128)>,
    /// A commit to reach at least.
    pub(crate) to: Csn,
    /// The chain at `to`, when it is known.
    pub(crate) chain: Option<u128>,
}

impl ChunkStore {
    /// How the replica of a chunk stands; `None` when nothing of it is here.
    pub(crate) fn standing(&self, chunk: ChunkId) -> Option<Standing> {
        self.inner.replicas().standing(chunk)
    }

    /// The place at a commit of the chunk; `None` when it is not applied, or no longer known. Blocking.
    pub(crate) fn point_at(&self, chunk: ChunkId, csn: Csn) -> Result<Option<Point>, Error> {
        let inner = &self.inner;
        inner.check_open()?;
        let Some(standing) = inner.replicas().standing(chunk) else { return Ok(None) };
        if standing.applied.csn == csn {
            return Ok(Some(standing.applied));
        }
        Ok(inner.history(chunk, &standing, csn)?.and_then(|history| history.point_at(csn)))
    }

    /// Prepares what a replica wants; `None` when what it wants is not applied here yet. Blocking.
    pub(crate) fn outgoing(&self, wanted: Wanted) -> Result<Option<Outgoing>, Error> {
        self.inner.check_open()?;
        outgoing::prepare(&self.inner, wanted)
    }

    /// Takes in what another replica sends for `wanted`, the chunk of this description. Blocking.
    pub(crate) fn incoming(
        &self,
        spec: ChunkSpec,
        wanted: Wanted,
        start: Start,
    ) -> Result<Incoming, Error> {
        self.inner.check_open()?;
        Incoming::new(Arc::clone(&self.inner), (spec, wanted), start)
    }
}

impl Inner {
    /// The commits after `from` up to the last applied, or as many of them as are known.
    fn history(
        &self,
        chunk: ChunkId,
        standing: &Standing,
        from: Csn,
    ) -> Result<Option<History>, Error> {
        let flushed = standing.stored.flushed;
        let stored = match self.file(chunk)? {
            Some(file) if flushed.csn > Csn(0) => file.history(from, flushed)?,
            _ => None,
        };
        let mut history = stored.unwrap_or_else(|| History::at(flushed));
        history.extend(standing.recent.iter().map(crate::chunk::Commit::row));
        let end = history.end();
        let (known, found) = ((standing.applied.csn, standing.applied.chain), (end.csn, end.chain));
        Ok((known == found).then_some(history))
    }
}
