//! The durable form of the catalog: one row a noun, with keys whose bytes order as the nouns do.
//!
//! ```text
//! key    tag u8 | ids, each u64 big-endian (write ids: 16 bytes)
//! value  MessagePack of the noun, a map by field names, so that a field with a default may be added
//! ```

use std::collections::BTreeSet;

use hypertide_proto::ids::{AccessId, Boot, ChunkId, JobId, NodeId, TableId, TxnId, WriteId};
use imbl::OrdMap;
use serde::{Serialize, de::DeserializeOwned};

use super::{Catalog, index::Index};

/// Names one row. The order of the variants and of their fields is that of the key bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowKey {
    /// Log time and the ids last given.
    Counters,
    /// A [`super::Table`].
    Table(TableId),
    /// A [`super::Chunk`].
    Chunk(ChunkId),
    /// The [`super::Tail`] of a chunk.
    Tail(ChunkId),
    /// A [`super::DataNode`].
    Data(NodeId),
    /// An [`super::AccessNode`].
    Access(AccessId),
    /// A run of sequence numbers of transactions that ended and were forgotten, by its first.
    Ended(AccessId, Boot, u64),
    /// A [`super::Decided`] transaction.
    Decided(TxnId),
    /// A [`super::Write`].
    Write(WriteId),
    /// A [`super::Order`], by its chunk and target.
    Order(ChunkId, NodeId),
    /// A [`super::Job`].
    Job(JobId),
}

const COUNTERS: u8 = 1;
const TABLE: u8 = 2;
const CHUNK: u8 = 3;
const TAIL: u8 = 4;
const DATA: u8 = 5;
const ACCESS: u8 = 6;
const ENDED: u8 = 7;
const DECIDED: u8 = 8;
const WRITE: u8 = 9;
const ORDER: u8 = 10;
const JOB: u8 = 11;

/// A row that does not read as one of the catalog's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("catalog row {key}: {reason}")]
pub struct RowError {
    /// The key in hexadecimal digits.
    pub key: String,
    /// What is wrong.
    pub reason: String,
}

impl RowKey {
    /// The key's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Counters => vec![COUNTERS],
            Self::Table(id) => key(TABLE, &[id.0]),
            Self::Chunk(id) => key(CHUNK, &[id.0]),
            Self::Tail(id) => key(TAIL, &[id.0]),
            Self::Data(id) => key(DATA, &[id.0]),
            Self::Access(id) => key(ACCESS, &[id.0]),
            Self::Ended(id, boot, first) => key(ENDED, &[id.0, boot.0, *first]),
            Self::Decided(txn) => key(DECIDED, &[txn.access.0, txn.boot.0, txn.seq]),
            Self::Write(id) => [&[WRITE], id.0.as_slice()].concat(),
            Self::Order(chunk, node) => key(ORDER, &[chunk.0, node.0]),
            Self::Job(id) => key(JOB, &[id.0]),
        }
    }

    /// The key with these bytes; `None` when there is none.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (tag, rest) = bytes.split_first()?;
        if *tag == WRITE {
            return WriteId::from_slice(rest).map(Self::Write);
        }
        let (numbers, []) = rest.as_chunks::<8>() else { return None };
        let numbers: Vec<u64> = numbers.iter().map(|number| u64::from_be_bytes(*number)).collect();
        Some(match (*tag, numbers.as_slice()) {
            (COUNTERS, []) => Self::Counters,
            (TABLE, [id]) => Self::Table(TableId(*id)),
            (CHUNK, [id]) => Self::Chunk(ChunkId(*id)),
            (TAIL, [id]) => Self::Tail(ChunkId(*id)),
            (DATA, [id]) => Self::Data(NodeId(*id)),
            (ACCESS, [id]) => Self::Access(AccessId(*id)),
            (ORDER, [chunk, node]) => Self::Order(ChunkId(*chunk), NodeId(*node)),
            (JOB, [id]) => Self::Job(JobId(*id)),
            (ENDED, [id, boot, first]) => Self::Ended(AccessId(*id), Boot(*boot), *first),
            (DECIDED, [id, boot, seq]) => {
                Self::Decided(TxnId { access: AccessId(*id), boot: Boot(*boot), seq: *seq })
            }
            _ => return None,
        })
    }
}

/// Rows of the catalog's durable form that applied commands changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    keys: BTreeSet<RowKey>,
}

impl Changes {
    /// The keys of the changed rows, in order: [`Catalog::row`] gives what each holds now, nothing when it is gone.
    pub fn keys(&self) -> impl Iterator<Item = &RowKey> {
        self.keys.iter()
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Notes that a row was written or removed.
    pub(crate) fn touch(&mut self, key: RowKey) {
        self.keys.insert(key);
    }

    /// Adds what another command changed.
    pub(crate) fn merge(&mut self, other: Self) {
        self.keys.extend(other.keys);
    }
}

impl Catalog {
    /// The value of a row as it is now; `None` when there is no such row.
    #[must_use]
    pub fn row(&self, key: &RowKey) -> Option<Vec<u8>> {
        match key {
            RowKey::Counters => Some(encode(&self.counters)),
            RowKey::Table(id) => self.tables.get(id).map(encode),
            RowKey::Chunk(id) => self.chunks.get(id).map(encode),
            RowKey::Tail(id) => self.tails.get(id).map(encode),
            RowKey::Data(id) => self.data_nodes.get(id).map(encode),
            RowKey::Access(id) => self.access_nodes.get(id).map(encode),
            RowKey::Ended(id, boot, first) => self.ended.get(&(*id, *boot, *first)).map(encode),
            RowKey::Decided(txn) => self.decided.get(txn).map(encode),
            RowKey::Write(id) => self.writes.get(id).map(encode),
            RowKey::Order(chunk, node) => self.orders.get(&(*chunk, *node)).map(encode),
            RowKey::Job(id) => self.jobs.get(id).map(encode),
        }
    }

    /// The keys of all rows, in order.
    pub fn row_keys(&self) -> impl Iterator<Item = RowKey> {
        std::iter::once(RowKey::Counters)
            .chain(self.tables.keys().map(|id| RowKey::Table(*id)))
            .chain(self.chunks.keys().map(|id| RowKey::Chunk(*id)))
            .chain(self.tails.keys().map(|id| RowKey::Tail(*id)))
            .chain(self.data_nodes.keys().map(|id| RowKey::Data(*id)))
            .chain(self.access_nodes.keys().map(|id| RowKey::Access(*id)))
            .chain(self.ended.keys().map(|(id, boot, first)| RowKey::Ended(*id, *boot, *first)))
            .chain(self.decided.keys().map(|txn| RowKey::Decided(*txn)))
            .chain(self.writes.keys().map(|id| RowKey::Write(*id)))
            .chain(self.orders.keys().map(|(chunk, node)| RowKey::Order(*chunk, *node)))
            .chain(self.jobs.keys().map(|id| RowKey::Job(*id)))
    }

    /// All rows as key and value bytes, in order of their keys.
    pub fn rows(&self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        self.row_keys().filter_map(|key| Some((key.to_bytes(), self.row(&key)?)))
    }

    /// The catalog that has these rows, in any order.
    pub fn from_rows<K, V>(rows: impl IntoIterator<Item = (K, V)>) -> Result<Self, RowError>
    where
        K: AsRef<[u8]>,
        V: AsRef<[u8]>,
    {
        let mut catalog = Self::default();
        for (key, value) in rows {
            catalog.put_row(key.as_ref(), value.as_ref())?;
        }
        catalog.index = Index::of(&catalog);
        Ok(catalog)
    }

    /// Puts one row into its map, without the index.
    fn put_row(&mut self, bytes: &[u8], value: &[u8]) -> Result<(), RowError> {
        let broken = |reason: String| RowError {
            key: bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            reason,
        };
        let key = RowKey::from_bytes(bytes).ok_or_else(|| broken("unknown key".to_owned()))?;
        let put = match key {
            RowKey::Counters => decode(value).map(|row| self.counters = row),
            RowKey::Table(id) => put(&mut self.tables, id, value),
            RowKey::Chunk(id) => put(&mut self.chunks, id, value),
            RowKey::Tail(id) => put(&mut self.tails, id, value),
            RowKey::Data(id) => put(&mut self.data_nodes, id, value),
            RowKey::Access(id) => put(&mut self.access_nodes, id, value),
            RowKey::Ended(id, boot, first) => put(&mut self.ended, (id, boot, first), value),
            RowKey::Decided(txn) => put(&mut self.decided, txn, value),
            RowKey::Write(id) => put(&mut self.writes, id, value),
            RowKey::Order(chunk, node) => put(&mut self.orders, (chunk, node), value),
            RowKey::Job(id) => put(&mut self.jobs, id, value),
        };
        put.map_err(|error| broken(error.to_string()))
    }
}

fn key(tag: u8, numbers: &[u64]) -> Vec<u8> {
    let numbers = numbers.iter().flat_map(|number| number.to_be_bytes());
    std::iter::once(tag).chain(numbers).collect()
}

fn put<K: Ord + Clone, V: DeserializeOwned + Clone>(
    map: &mut OrdMap<K, V>,
    key: K,
    value: &[u8],
) -> Result<(), rmp_serde::decode::Error> {
    map.insert(key, decode(value)?);
    Ok(())
}

pub(super) fn encode<T: Serialize>(row: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(row).expect("catalog rows hold nothing that MessagePack cannot say")
}

pub(super) fn decode<T: DeserializeOwned>(value: &[u8]) -> Result<T, rmp_serde::decode::Error> {
    rmp_serde::from_slice(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_key() -> impl Strategy<Value = RowKey> {
        let id = 0u64..300;
        (0u8..11, id.clone(), id.clone(), id).prop_map(|(kind, a, b, c)| match kind {
            0 => RowKey::Counters,
            1 => RowKey::Table(TableId(a)),
            2 => RowKey::Chunk(ChunkId(a)),
            3 => RowKey::Tail(ChunkId(a)),
            4 => RowKey::Data(NodeId(a)),
            5 => RowKey::Access(AccessId(a)),
            6 => RowKey::Ended(AccessId(a), Boot(b), c),
            7 => RowKey::Decided(TxnId { access: AccessId(a), boot: Boot(b), seq: c }),
            8 => RowKey::Order(ChunkId(a), NodeId(b)),
            9 => RowKey::Job(JobId(a)),
            _ => RowKey::Write(WriteId([a as u8; 16])),
        })
    }

    proptest! {
        #[test]
        fn key_bytes_order_as_keys_and_come_back(one in any_key(), other in any_key()) {
            prop_assert_eq!(RowKey::from_bytes(&one.to_bytes()), Some(one));
            prop_assert_eq!(one.cmp(&other), one.to_bytes().cmp(&other.to_bytes()));
        }

        #[test]
        fn foreign_rows_are_refused_not_panicked_over(key: Vec<u8>, value: Vec<u8>) {
            let read = Catalog::from_rows([(key.clone(), value)]);
            if RowKey::from_bytes(&key).is_none() {
                prop_assert!(read.is_err());
            }
        }
    }
}
