//! The pieces of a transfer on the wire.

use hypertide_proto::{
    error::{Code, RpcError},
    ids::{ChunkId, Csn},
    wire::{
        required,
        storage::{self as messages, fetch_piece::Piece as Wire},
    },
};

use crate::{
    segment::SegmentKey,
    store::transfer::{End, Piece, Start},
    tables::{self, CommitRow, Point},
};

/// A hash of sixteen bytes.
pub(crate) fn hash(bytes: &[u8], field: &str) -> Result<u128, RpcError> {
    let bytes: Result<[u8; 16], _> = bytes.try_into();
    let wrong =
        |_| RpcError::new(Code::Invalid, format_args!("field {field} does not have 16 bytes"));
    bytes.map(u128::from_be_bytes).map_err(wrong)
}

/// A hash that may be missing.
pub(crate) fn optional_hash(bytes: &[u8], field: &str) -> Result<Option<u128>, RpcError> {
    if bytes.is_empty() { Ok(None) } else { hash(bytes, field).map(Some) }
}

pub(crate) fn hash_bytes(hash: u128) -> bytes::Bytes {
    hash.to_be_bytes().to_vec().into()
}

pub(crate) fn wire_point(point: Point) -> messages::ChunkPoint {
    let Point { csn, chain, rows } = point;
    messages::ChunkPoint { csn: csn.0, chain: hash_bytes(chain), rows }
}

fn point(point: Option<messages::ChunkPoint>, field: &str) -> Result<Point, RpcError> {
    let messages::ChunkPoint { csn, chain, rows } = required(point, field)?;
    Ok(Point { csn: Csn(csn), chain: hash(&chain, field)?, rows })
}

fn wire_commit(commit: CommitRow) -> messages::FetchCommit {
    let CommitRow { csn, txn, hash, rows } = commit;
    messages::FetchCommit { csn: csn.0, txn: Some(txn.into()), hash: hash_bytes(hash), rows }
}

fn commit(commit: messages::FetchCommit) -> Result<CommitRow, RpcError> {
    let txn = required(commit.txn, "commit.txn")?.into();
    let hash = hash(&commit.hash, "commit.hash")?;
    Ok(CommitRow { csn: Csn(commit.csn), txn, hash, rows: commit.rows })
}

pub(crate) fn to_wire(piece: Piece) -> messages::FetchPiece {
    let piece = match piece {
        Piece::Start(Start { whole, chunk, from, to, bytes, heritage }) => {
            let (from, to) = (Some(wire_point(from)), Some(wire_point(to)));
            let heritage = tables::pack(&heritage).into();
            Wire::Start(messages::FetchStart { whole, chunk: chunk.0, from, to, bytes, heritage })
        }
        Piece::Commits(commits) => {
            let commits = commits.into_iter().map(wire_commit).collect();
            Wire::Commits(messages::FetchCommits { commits })
        }
        Piece::Segment(SegmentKey { file, segment }, header) => {
            Wire::Segment(messages::FetchSegment { file: file.to_vec().into(), segment, header })
        }
        Piece::Extent(blocks) => Wire::Extent(messages::FetchExtent { blocks }),
        Piece::End(End { pieces, digest }) => {
            Wire::End(messages::FetchEnd { pieces, digest: hash_bytes(digest) })
        }
    };
    messages::FetchPiece { piece: Some(piece) }
}

pub(crate) fn from_wire(piece: messages::FetchPiece) -> Result<Piece, RpcError> {
    Ok(match required(piece.piece, "piece")? {
        Wire::Start(messages::FetchStart { whole, chunk, from, to, bytes, heritage }) => {
            let heritage = rmp_serde::from_slice(&heritage).map_err(|error| {
                RpcError::new(Code::Invalid, format_args!("field start.heritage: {error}"))
            })?;
            let (from, to) = (point(from, "start.from")?, point(to, "start.to")?);
            Piece::Start(Start { whole, chunk: ChunkId(chunk), from, to, bytes, heritage })
        }
        Wire::Commits(messages::FetchCommits { commits }) => {
            Piece::Commits(commits.into_iter().map(commit).collect::<Result<_, _>>()?)
        }
        Wire::Segment(messages::FetchSegment { file, segment, header }) => {
            let file = hash(&file, "segment.file")?.to_be_bytes();
            Piece::Segment(SegmentKey { file, segment }, header)
        }
        Wire::Extent(messages::FetchExtent { blocks }) => Piece::Extent(blocks),
        Wire::End(messages::FetchEnd { pieces, digest }) => {
            Piece::End(End { pieces, digest: hash(&digest, "end.digest")? })
        }
    })
}

#[cfg(test)]
mod tests {
    use hypertide_proto::ids::{AccessId, Boot, TxnId};

    use super::*;
    use crate::tables::Heritage;

    #[test]
    fn pieces_survive_the_wire() {
        let point = |csn| Point { csn: Csn(csn), chain: u128::MAX - u128::from(csn), rows: csn };
        let txn = TxnId { access: AccessId(1), boot: Boot(2), seq: 3 };
        let chunk = ChunkId(5);
        let heritage = Heritage { removed: 8, horizon: Csn(2), ..Heritage::default() };
        let (from, to) = (point(1), point(9));
        let pieces = [
            Piece::Start(Start { whole: true, chunk, from, to, bytes: 7, heritage }),
            Piece::Commits(vec![CommitRow { csn: Csn(4), txn, hash: 77, rows: 6 }]),
            Piece::Segment(SegmentKey { file: *b"0123456789abcdef", segment: 3 }, "head".into()),
            Piece::Extent("blocks".into()),
            Piece::End(End { pieces: 4, digest: 99 }),
        ];
        for piece in pieces {
            assert_eq!(from_wire(to_wire(piece.clone())), Ok(piece));
        }
        assert!(from_wire(messages::FetchPiece::default()).is_err());
        assert!(hash(&[1; 15], "x").is_err());
    }
}
