//! Pure: chunks and their replicas to one fragment a data node.
//!
//! - Every chunk is read from exactly one of its replicas in sync.
//! - All chunks of a bucket are read from one node whenever one holds them all, so that a group that contains the
//!   space column lies on one node.
//! - The choice depends on the chunks alone, so that equal statements read equal nodes, and spreads them evenly.

use std::collections::{BTreeMap, BTreeSet};

use hypertide_meta::catalog::{Chunk, Rule, Table, TableKind};
use hypertide_proto::{
    ids::{ChunkId, NodeId},
    time::TimeRange,
};

/// A chunk to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ScanChunk {
    /// The chunk.
    pub(crate) id: ChunkId,
    /// Its slice of time; `None` for a reference table.
    pub(crate) time: Option<TimeRange>,
    /// Its slice of the first hash dimension; `None` without such a dimension.
    pub(crate) bucket: Option<TimeRange>,
    /// Nodes that hold a replica in sync.
    pub(crate) replicas: Vec<NodeId>,
    /// Rows that were committed to it, as of the catalog.
    pub(crate) rows: u64,
}

impl ScanChunk {
    /// How a chunk of this table is read.
    pub(crate) fn new(table: &Table, chunk: &Chunk) -> Self {
        let bucket = match &table.kind {
            TableKind::Hypertable(hypertable) => hypertable
                .dimensions
                .iter()
                .position(|dimension| matches!(dimension.rule, Rule::Hash { .. }))
                .and_then(|at| chunk.slices.get(at).copied()),
            TableKind::Reference => None,
        };
        let time = match &table.kind {
            // The first dimension is time.
            TableKind::Hypertable(_) => chunk.slices.first().copied(),
            TableKind::Reference => None,
        };
        let replicas = chunk.in_sync.iter().map(|rid| rid.node).collect();
        Self { id: chunk.id, time, bucket, replicas, rows: chunk.rows }
    }
}

/// The chunks that one data node reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    /// The node.
    pub(crate) node: NodeId,
    /// Its chunks, in order of their ids.
    pub(crate) chunks: Vec<ScanChunk>,
}

/// A chunk that no allowed node holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("chunk {0} has no replica that can be read")]
pub(crate) struct Unreadable(pub(crate) ChunkId);

/// Chooses a replica for each chunk, without the nodes in `except`.
pub(crate) fn route(
    chunks: &[ScanChunk],
    except: &BTreeSet<NodeId>,
) -> Result<Vec<Fragment>, Unreadable> {
    let mut buckets: BTreeMap<Option<TimeRange>, Vec<&ScanChunk>> = BTreeMap::new();
    for chunk in chunks {
        buckets.entry(chunk.bucket).or_default().push(chunk);
    }
    let mut load: BTreeMap<NodeId, Vec<ScanChunk>> = BTreeMap::new();
    for (bucket, members) in buckets {
        let common = common_replicas(&members, except);
        match least_loaded(&common, &load).filter(|_| bucket.is_some()) {
            Some(node) => load.entry(node).or_default().extend(members.into_iter().cloned()),
            None => {
                for chunk in members {
                    let allowed = common_replicas(&[chunk], except);
                    let node = least_loaded(&allowed, &load).ok_or(Unreadable(chunk.id))?;
                    load.entry(node).or_default().push(chunk.clone());
                }
            }
        }
    }
    let fragment = |(node, mut chunks): (NodeId, Vec<ScanChunk>)| {
        chunks.sort_by_key(|chunk| chunk.id);
        Fragment { node, chunks }
    };
    Ok(load.into_iter().map(fragment).collect())
}

/// Nodes, in order, that hold all of these chunks.
fn common_replicas(chunks: &[&ScanChunk], except: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let allowed = |chunk: &ScanChunk| -> BTreeSet<NodeId> {
        chunk.replicas.iter().filter(|node| !except.contains(node)).copied().collect()
    };
    let sets = chunks.iter().map(|chunk| allowed(chunk));
    sets.reduce(|a, b| a.intersection(&b).copied().collect()).unwrap_or_default()
}

/// The node with the fewest chunks so far, the first of equals.
fn least_loaded(
    nodes: &BTreeSet<NodeId>,
    load: &BTreeMap<NodeId, Vec<ScanChunk>>,
) -> Option<NodeId> {
    nodes.iter().copied().min_by_key(|node| load.get(node).map_or(0, Vec::len))
}

/// Whether no value of the space column can lie on two nodes.
pub(crate) fn buckets_apart(fragments: &[Fragment]) -> bool {
    let mut slices: Vec<(TimeRange, NodeId)> = Vec::new();
    for fragment in fragments {
        for chunk in &fragment.chunks {
            let Some(bucket) = chunk.bucket else { return false };
            slices.push((bucket, fragment.node));
        }
    }
    slices.sort();
    slices.dedup();
    // Sorted by start: the furthest end so far tells whether the next slice overlaps one of another node.
    let mut reach: BTreeMap<NodeId, i64> = BTreeMap::new();
    for (slice, node) in slices {
        if reach.iter().any(|(other, end)| *other != node && *end > slice.start()) {
            return false;
        }
        let end = reach.entry(node).or_insert(i64::MIN);
        *end = slice.end().max(*end);
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunk(id: u64, bucket: Option<(i64, i64)>, replicas: &[u64]) -> ScanChunk {
        ScanChunk {
            id: ChunkId(id),
            time: None,
            bucket: bucket.and_then(|(start, end)| TimeRange::new(start, end)),
            replicas: replicas.iter().map(|node| NodeId(*node)).collect(),
            rows: 1,
        }
    }

    fn chunks() -> impl Strategy<Value = Vec<ScanChunk>> {
        let one = (0..4i64, prop::collection::btree_set(1..5u64, 1..4));
        prop::collection::vec(one, 0..20).prop_map(|list| {
            let number = list.into_iter().enumerate();
            number
                .map(|(id, (bucket, nodes))| {
                    let nodes: Vec<u64> = nodes.into_iter().collect();
                    chunk(id as u64, Some((bucket * 10, bucket * 10 + 10)), &nodes)
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn every_chunk_is_read_once_from_a_replica(chunks in chunks()) {
            let fragments = route(&chunks, &BTreeSet::new()).expect("each has a replica");
            let mut read: Vec<ChunkId> = Vec::new();
            for fragment in &fragments {
                for chunk in &fragment.chunks {
                    prop_assert!(chunk.replicas.contains(&fragment.node));
                    read.push(chunk.id);
                }
            }
            read.sort();
            prop_assert_eq!(read, chunks.iter().map(|chunk| chunk.id).collect::<Vec<_>>());
        }

        #[test]
        fn buckets_with_a_common_node_are_read_from_one(chunks in chunks()) {
            let mut chunks = chunks;
            for chunk in &mut chunks {
                chunk.replicas.push(NodeId(9));
            }
            let fragments = route(&chunks, &BTreeSet::new()).expect("each has a replica");
            prop_assert!(buckets_apart(&fragments));
        }

        #[test]
        fn nodes_left_out_read_nothing(chunks in chunks()) {
            let except = BTreeSet::from([NodeId(1)]);
            match route(&chunks, &except) {
                Ok(fragments) => prop_assert!(fragments.iter().all(|f| f.node != NodeId(1))),
                Err(Unreadable(id)) => {
                    let chunk = chunks.iter().find(|chunk| chunk.id == id).expect("it is known");
                    prop_assert_eq!(&chunk.replicas, &vec![NodeId(1)]);
                }
            }
        }
    }

    #[test]
    fn buckets_are_spread() {
        let all = [1, 2, 3];
        let chunks: Vec<_> =
            (0..3).map(|i| chunk(i, Some((i as i64 * 10, i as i64 * 10 + 10)), &all)).collect();
        let fragments = route(&chunks, &BTreeSet::new()).expect("each has a replica");
        assert_eq!(fragments.len(), 3);
        assert!(buckets_apart(&fragments));
    }

    #[test]
    fn one_bucket_on_two_nodes_is_seen() {
        let chunks = [chunk(1, Some((0, 10)), &[1]), chunk(2, Some((0, 10)), &[2])];
        let fragments = route(&chunks, &BTreeSet::new()).expect("each has a replica");
        assert!(!buckets_apart(&fragments));
        // After the number of partitions changed, slices of another width overlap old ones.
        let chunks = [chunk(1, Some((0, 20)), &[1]), chunk(2, Some((10, 20)), &[2])];
        let fragments = route(&chunks, &BTreeSet::new()).expect("each has a replica");
        assert!(!buckets_apart(&fragments));
        let chunks = [chunk(1, None, &[1]), chunk(2, None, &[2])];
        let fragments = route(&chunks, &BTreeSet::new()).expect("each has a replica");
        assert!(!buckets_apart(&fragments));
    }
}
