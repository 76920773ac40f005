//! Every redb table: name, key, value, who writes, who reads.
//!
//! | file | table | key | value | written by | read by |
//! |---|---|---|---|---|---|
//! | `node.redb` | `identity` | `"identity"` | [`Identity`] | opening, registration | opening |
//! | `node.redb` | `identity` | `"horizon"` | [`Csn`]: before it, chunks that are not here may have been | unlinking | opening |
//! | `node.redb` | `identity` | `"definitions"` | index u64, [`Definitions`]: what it keeps of the catalog | heartbeats | making the catalog anew |
//! | `node.redb` | `manifest` | chunk | [`Manifest`] | creation, flush, merge, rewrite, drop of a chunk file | opening |
//! | `node.redb` | `removed` | chunk | [`Csn`]: from it on, the catalog has it no more | removal, return, unlinking | opening |
//! | `journal.redb` | `parts` | transaction, chunk, number | [`PartHeader`], payload | prepare, flush, abort | opening |
//! | `journal.redb` | `decisions` | transaction | [`DecisionRow`] | decide, flush | opening |
//! | `chunks/<id>.redb` | `header` | `"header"` | [`FileHeader`] | creation, flush, merge, rewrite | opening of the file |
//! | `chunks/<id>.redb` | `segments` | segment | segment header with its zone maps | flush, merge | opening of the file |
//! | `chunks/<id>.redb` | `extents` | segment, extent | column blocks | flush, merge | scan |
//! | `chunks/<id>.redb` | `commits` | first commit of the row | [`HistoryRow`] | flush | replica transfer |
//!
//! Keys are big-endian numbers side by side, so that they sort as the numbers do. Every value is framed: the
//! xxh3-128 of key and body, 16 bytes big-endian, then the body. redb verifies nothing on read, and a frame also
//! notices a page that belongs to another key. Small bodies are MessagePack.

use std::fmt;

use bytes::Bytes;
use hypertide_proto::{
    decision::chain_after,
    ids::{AccessId, Boot, ChunkId, ClusterId, Csn, DiskId, Epoch, Rid, TxnId},
};
use redb::{StorageError, Table, TableDefinition};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use xxhash_rust::xxh3::Xxh3;

use crate::{ChunkSpec, CompressionSpec, tombstone::Delete};

/// All tables have bytes for keys and framed bytes for values.
pub(crate) type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// Shape of all that the store writes; another number is another shape.
pub(crate) const FORMAT: u32 = 4;

pub(crate) const IDENTITY: Definition = TableDefinition::new("identity");
pub(crate) const IDENTITY_KEY: &[u8] = b"identity";
pub(crate) const HORIZON_KEY: &[u8] = b"horizon";
pub(crate) const DEFINITIONS_KEY: &[u8] = b"definitions";
pub(crate) const MANIFEST: Definition = TableDefinition::new("manifest");
pub(crate) const REMOVED: Definition = TableDefinition::new("removed");
pub(crate) const PARTS: Definition = TableDefinition::new("parts");
pub(crate) const DECISIONS: Definition = TableDefinition::new("decisions");
pub(crate) const HEADER: Definition = TableDefinition::new("header");
pub(crate) const HEADER_KEY: &[u8] = b"header";
pub(crate) const SEGMENTS: Definition = TableDefinition::new("segments");
pub(crate) const EXTENTS: Definition = TableDefinition::new("extents");
pub(crate) const COMMITS: Definition = TableDefinition::new("commits");

/// The definition of a table by its name.
pub(crate) const fn definition(name: &str) -> TableDefinition<'_, &'static [u8], &'static [u8]> {
    TableDefinition::new(name)
}

const HASH_BYTES: usize = size_of::<u128>();
const TXN_BYTES: usize = 3 * size_of::<u64>();
const PART_BYTES: usize = TXN_BYTES + size_of::<u64>() + size_of::<u32>();

/// Who owns a data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// [`FORMAT`] of the one who made the directory. First, so that every later shape can be told by it.
    pub(crate) format: u32,
    /// Drawn when the directory was made.
    pub(crate) disk: DiskId,
    /// The cluster it belongs to, its number there, its name; `None` before registration.
    pub(crate) member: Option<Member>,
    /// Addresses of access nodes known last.
    pub(crate) access: Vec<String>,
}

/// Place of a data directory in a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) cluster: ClusterId,
    pub(crate) rid: Rid,
    pub(crate) name: String,
}

/// The tables, nodes and jobs of the catalog, in a form that only access nodes read: from them and the chunks here the
/// catalog can be made anew when no access node is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Definitions {
    /// Index of the log up to which they were so.
    pub(crate) index: u64,
    /// The catalog's own form.
    pub(crate) body: Bytes,
}

/// What is known of a chunk's file outside of it. A file that is behind this was rolled back or emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Drawn when the file was made.
    pub(crate) file: [u8; 16],
    /// One more at every write to the file.
    pub(crate) generation: u64,
    /// What the file holds.
    pub(crate) flushed: Point,
    /// Segments in it.
    pub(crate) segments: u64,
    /// Encoded bytes in it.
    pub(crate) bytes: u64,
    /// The file may be further than this says, by commits that the journal does not have. Never in the file itself.
    pub(crate) ahead: bool,
    /// Rows of `flushed` that are not in its segments any more, because they were deleted.
    pub(crate) removed: u64,
    /// The last commit whose deletes took rows out of the segments. Older snapshots cannot be read any more.
    pub(crate) horizon: Csn,
    /// The last commit in it that deleted.
    pub(crate) deleted: Csn,
    /// Deletes in its header.
    pub(crate) deletes: u64,
    /// What of it is compressed.
    pub(crate) compressed: Option<Compressed>,
}

/// What the compression of a chunk did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Compressed {
    /// The last commit of which all rows are in compressed segments, with all before it.
    pub(crate) csn: Csn,
    /// Rows in compressed segments.
    pub(crate) rows: u64,
    /// Encoded bytes that these took before.
    pub(crate) before: u64,
    /// Encoded bytes that they take now.
    pub(crate) after: u64,
}

/// How a chunk is compressed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Compression {
    /// As it was asked for.
    pub(crate) spec: CompressionSpec,
    /// Segments with smaller numbers are compressed, those that came since are not.
    pub(crate) below: u64,
}

/// What a chunk's file knows beside its commits and segments, and a copy of it takes over.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Heritage {
    /// As in [`Manifest`].
    pub(crate) removed: u64,
    pub(crate) horizon: Csn,
    pub(crate) deleted: Csn,
    pub(crate) compressed: Option<Compressed>,
    /// As in [`FileHeader`].
    pub(crate) deletes: Vec<Delete>,
    /// How the first so many segments are compressed.
    pub(crate) compression: Option<(CompressionSpec, u64)>,
}

/// A place in the sequence of a chunk's commits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Point {
    /// The last commit.
    pub(crate) csn: Csn,
    /// Running hash over the commits up to it.
    pub(crate) chain: u128,
    /// Rows of the commits up to it.
    pub(crate) rows: u64,
}

/// Head of a chunk's file: enough to rebuild the catalog's entry from the file alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct FileHeader {
    pub(crate) format: u32,
    pub(crate) spec: ChunkSpec,
    pub(crate) manifest: Manifest,
    /// Number for the next segment.
    pub(crate) segment_next: u64,
    /// Segments that were merged into others, with their number of extents: those may still be read by a scan.
    pub(crate) garbage: Vec<(u64, u32)>,
    /// `None` for a chunk that is not compressed.
    pub(crate) compression: Option<Compression>,
    /// Deletes that its segments still hold rows of.
    pub(crate) deletes: Vec<Delete>,
}

/// All of a part but its payload, which follows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartHeader {
    pub(crate) spec: ChunkSpec,
    pub(crate) epoch: Epoch,
    pub(crate) rows: u32,
    pub(crate) hash: u128,
    pub(crate) decoded_bytes: u32,
}

/// A commit that the log decided. Aborted transactions leave no row: their parts are removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DecisionRow {
    pub(crate) csn: Csn,
    /// Chunk and its commit before this one.
    pub(crate) links: Vec<(ChunkId, Csn)>,
}

/// What is remembered of a commit after its rows are in segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CommitRow {
    pub(crate) csn: Csn,
    pub(crate) txn: TxnId,
    /// [`crate::part_hash`] of its parts in the chunk.
    pub(crate) hash: u128,
    /// Rows in the chunk.
    pub(crate) rows: u64,
}

/// Commits of a chunk that follow each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HistoryRow {
    /// Where they begin: the commit before the first, and the chain there.
    pub(crate) start: Point,
    pub(crate) commits: Vec<CommitRow>,
}

/// Names a part for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PartKey {
    pub(crate) txn: TxnId,
    pub(crate) chunk: ChunkId,
    pub(crate) number: u32,
}

impl Definitions {
    /// The head of the row's body, which the definitions follow.
    pub(crate) fn head(&self) -> [u8; 8] {
        self.index.to_be_bytes()
    }

    pub(crate) fn from_body(body: &[u8]) -> Option<Self> {
        let (head, body) = body.split_first_chunk::<8>()?;
        Some(Self { index: u64::from_be_bytes(*head), body: Bytes::copy_from_slice(body) })
    }
}

impl Point {
    /// The place after one more commit.
    pub(crate) fn after(self, commit: &CommitRow) -> Self {
        Self {
            csn: commit.csn,
            chain: chain_after(self.chain, commit.csn, commit.hash),
            rows: self.rows.saturating_add(commit.rows),
        }
    }
}

impl fmt::Display for PartKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "part {} of {} for chunk {}", self.number, self.txn, self.chunk)
    }
}

impl PartKey {
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = txn_bytes(self.txn);
        bytes.extend_from_slice(&self.chunk.0.to_be_bytes());
        bytes.extend_from_slice(&self.number.to_be_bytes());
        debug_assert_eq!(bytes.len(), PART_BYTES);
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (txn, rest) = bytes.split_at_checked(TXN_BYTES)?;
        let (chunk, number) = rest.split_at_checked(size_of::<u64>())?;
        Some(Self {
            txn: txn_from_bytes(txn)?,
            chunk: ChunkId(u64::from_be_bytes(chunk.try_into().ok()?)),
            number: u32::from_be_bytes(number.try_into().ok()?),
        })
    }
}

pub(crate) fn txn_bytes(txn: TxnId) -> Vec<u8> {
    [txn.access.0, txn.boot.0, txn.seq].iter().flat_map(|part| part.to_be_bytes()).collect()
}

pub(crate) fn txn_from_bytes(bytes: &[u8]) -> Option<TxnId> {
    let (numbers, rest) = bytes.as_chunks::<8>();
    let [access, boot, seq] = <[[u8; 8]; 3]>::try_from(numbers).ok()?.map(u64::from_be_bytes);
    rest.is_empty().then_some(TxnId { access: AccessId(access), boot: Boot(boot), seq })
}

pub(crate) fn extent_key(segment: u64, extent: u32) -> [u8; 12] {
    let mut key = [0; 12];
    let (head, tail) = key.split_at_mut(size_of::<u64>());
    head.copy_from_slice(&segment.to_be_bytes());
    tail.copy_from_slice(&extent.to_be_bytes());
    key
}

/// Puts the pieces, one after the other, as the framed value of `key`.
pub(crate) fn put(
    table: &mut Table<'_, &'static [u8], &'static [u8]>,
    key: &[u8],
    pieces: &[&[u8]],
) -> Result<(), StorageError> {
    let length: usize = pieces.iter().map(|piece| piece.len()).sum();
    let mut space = table.insert_reserve(key, HASH_BYTES + length)?;
    let (head, mut rest) = space.as_mut().split_at_mut(HASH_BYTES);
    let mut hash = Xxh3::new();
    hash.update(key);
    for piece in pieces {
        hash.update(piece);
        let (here, after) = rest.split_at_mut(piece.len());
        here.copy_from_slice(piece);
        rest = after;
    }
    head.copy_from_slice(&hash.digest128().to_be_bytes());
    Ok(())
}

/// The body of a framed value; `None` when key and bytes do not fit its checksum.
pub(crate) fn unframe<'a>(key: &[u8], value: &'a [u8]) -> Option<&'a [u8]> {
    let (head, body) = value.split_at_checked(HASH_BYTES)?;
    let mut hash = Xxh3::new();
    hash.update(key);
    hash.update(body);
    (head == hash.digest128().to_be_bytes()).then_some(body)
}

/// The body of a framed value that may be wrong.
pub(crate) fn body_of(value: &[u8]) -> &[u8] {
    value.get(HASH_BYTES..).unwrap_or_default()
}

/// MessagePack of a row.
pub(crate) fn pack<T: Serialize>(row: &T) -> Vec<u8> {
    rmp_serde::to_vec(row).expect("rows are plain values, which always serialise into memory")
}

/// The row in the framed value of `key`.
pub(crate) fn unpack<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Option<T> {
    rmp_serde::from_slice(unframe(key, value)?).ok()
}

/// The first field of a packed row, which is its format wherever a row has one.
pub(crate) fn format_of(body: &[u8]) -> Option<u32> {
    // MessagePack: one byte for an array of up to fifteen fields, then the first of them.
    let (_, mut fields) = body.split_first()?;
    u32::deserialize(&mut rmp_serde::Deserializer::new(&mut fields)).ok()
}

/// The body of a part: length of its header, header, payload.
pub(crate) fn split_part(body: &[u8]) -> Option<(PartHeader, &[u8])> {
    let (length, rest) = body.split_at_checked(size_of::<u32>())?;
    let length = u32::from_be_bytes(length.try_into().ok()?);
    let (header, payload) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    Some((rmp_serde::from_slice(header).ok()?, payload))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_survive_and_sort(access: u64, boot: u64, seq: u64, chunk: u64, number: u32, other: u64) {
            let txn = TxnId { access: AccessId(access), boot: Boot(boot), seq };
            let key = PartKey { txn, chunk: ChunkId(chunk), number };
            prop_assert_eq!(PartKey::from_bytes(&key.to_bytes()), Some(key));
            let next = PartKey { chunk: ChunkId(other), ..key };
            prop_assert_eq!(key.cmp(&next), key.to_bytes().cmp(&next.to_bytes()));
        }
    }

    #[test]
    fn a_frame_notices_another_key_and_any_flipped_bit() {
        let mut hash = Xxh3::new();
        hash.update(b"key");
        hash.update(b"body");
        let value = [hash.digest128().to_be_bytes().as_slice(), b"body"].concat();
        assert_eq!(unframe(b"key", &value), Some(b"body".as_slice()));
        assert_eq!(unframe(b"kez", &value), None);
        for bit in 0..value.len() * 8 {
            let mut bad = value.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unframe(b"key", &bad), None, "bit {bit}");
        }
        assert_eq!(unframe(b"key", &value[..10]), None);
    }

    #[test]
    fn the_format_is_readable_without_the_rest() {
        let mut body = pack(&(FORMAT + 1, "another shape"));
        assert_eq!(format_of(&body), Some(FORMAT + 1));
        body.truncate(2);
        assert_eq!(format_of(&body), Some(FORMAT + 1));
        assert_eq!(format_of(&[]), None);
    }

    #[test]
    fn short_keys_and_parts_are_refused() {
        assert_eq!(PartKey::from_bytes(&[0; 35]), None);
        assert_eq!(PartKey::from_bytes(&[0; 37]), None);
        assert_eq!(txn_from_bytes(&[0; 25]), None);
        assert_eq!(split_part(&[0, 0, 1, 0, 7]), None);
    }
}
