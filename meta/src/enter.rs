//! Whether a data node that comes still has the disk that the catalog counts on.
//!
//! A node says which disk it has and what of every chunk is durable there. Its disk is another one, or was turned back to
//! an earlier state, when it misses anything that it reported durable before. Then it gets a new incarnation, before it
//! may acknowledge or serve anything: what the old one promised is gone, but for the chunks of which the disk proves to
//! hold every commit. Those it keeps; the node is told which, and puts all others aside.
//!
//! A node that did not hear the answer says again what it said, under the incarnation that it knows. It is reset once
//! more, by what its disk holds then, and is told of that: whichever answer it follows, it keeps what the catalog counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use hypertide_proto::{
    error::{Code, RpcError},
    ids::{ChunkId, Csn, DiskId, Rid},
    wire::meta::RegisterRequest,
};

use crate::{
    catalog::{Catalog, Chunk, ChunkState, Command, DataNode, Held, Outcome},
    fleet::seen_chunk,
    node::{CatalogWriter, MetaNode},
    reconcile::plan::SeenChunk,
};

/// How long an access node must have listened before it takes silence for absence.
const LISTENED_MIN: Duration = Duration::from_secs(3);

/// The rid to register a node with: its own, or the one that its disk is given because the old one is not there any more.
pub(crate) async fn admit(
    node: &MetaNode,
    (rid, disk): (Option<Rid>, DiskId),
    request: &RegisterRequest,
    deadline: Instant,
) -> Result<Option<Rid>, RpcError> {
    let image = node.barrier(deadline).await?;
    let Some(known) = claimed(&image.catalog, rid, &request.name) else { return Ok(rid) };
    let rid_known = known.rid;
    let held = reported(request);
    let why = match rid {
        // The answer to its first registration was lost.
        None if known.disk == disk => return Ok(None),
        None => "its disk is new",
        Some(rid) if rid != rid_known => "its disk was replaced before",
        Some(_) if known.disk != disk => "its disk is another one",
        Some(rid) => match missing(&image.catalog, rid, &held) {
            None => return Ok(Some(rid)),
            Some(_) => "its disk was turned back",
        },
    };
    // Two processes under one name would take the replicas from each other.
    let other_disk = known.disk != disk || rid != Some(rid_known);
    if other_disk && (node.fleet().hears(rid_known) || node.age() < LISTENED_MIN) {
        let name = &known.name;
        let message = format_args!("data node \"{name}\" ({rid_known}) was heard of a moment ago");
        return Err(RpcError::new(Code::Unavailable, message));
    }
    let proof = match rid {
        Some(_) => proof(&image.catalog, rid_known, &sound(request)),
        // Who does not know which node it was has no business to answer for it.
        None => Vec::new(),
    };
    let reset = Command::NodeReset { rid: rid_known, disk, held: proof };
    let (index, answer) = node.propose(reset, deadline).await?;
    let after = node.applied(index, deadline).await?;
    match answer {
        Ok(Outcome::Data(data)) => {
            let (name, new) = (&data.name, data.rid);
            let count = after.catalog.chunks().filter(|chunk| chunk.in_sync.contains(&new)).count();
            tracing::warn!(
                "data node {name} is {new} now, {rid_known} before: {why}; it keeps {count} chunks, of which it \
                 holds every commit"
            );
            for chunk in lost(&after.catalog, &image.catalog, rid_known) {
                tell_damaged(chunk, name, held.get(&chunk.id).copied().unwrap_or_default().csn);
            }
            Ok(Some(new))
        }
        other => Err(RpcError::new(Code::Unavailable, format_args!("not reset: {other:?}"))),
    }
}

/// Names a chunk of which nobody has every commit any more, and what can be done.
fn tell_damaged(chunk: &Chunk, name: &str, held: Csn) {
    let Chunk { id, name: chunk_name, last_csn, .. } = chunk;
    let way = match chunk.left.is_empty() {
        true => "for good, since nothing of it is left that is of use".to_owned(),
        false => format!("until `hypertide chunk accept-loss {chunk_name}` takes what there is"),
    };
    tracing::error!(
        "chunk {chunk_name} ({id}) is damaged: no replica has all of its commits up to {last_csn}, and {name} has \
         those up to {held}; it is refused to readers {way}"
    );
}

/// Of the chunks that a disk told of at its registration, those that it is to keep under its new incarnation: the catalog
/// counts it in sync of them, or nobody has more of them than it may.
pub(crate) fn kept(catalog: &Catalog, rid: Rid, request: &RegisterRequest) -> Vec<ChunkId> {
    let counted = |held: &Held| {
        catalog.chunk(held.chunk).is_some_and(|chunk| {
            let left = chunk.left.contains(&(rid, held.csn));
            left || (chunk.in_sync.contains(&rid) && chunk.ends_at(held))
        })
    };
    held(&sound(request)).filter(counted).map(|held| held.chunk).collect()
}

fn reported(request: &RegisterRequest) -> BTreeMap<ChunkId, SeenChunk> {
    request.progress.iter().map(|at| (ChunkId(at.chunk), seen_chunk(at))).collect()
}

/// What a disk told of, but for chunks with wrong bytes.
fn sound(request: &RegisterRequest) -> BTreeMap<ChunkId, SeenChunk> {
    let damaged: BTreeSet<ChunkId> = request.damaged.iter().copied().map(ChunkId).collect();
    let mut held = reported(request);
    held.retain(|chunk, _| !damaged.contains(chunk));
    held
}

/// What a disk holds of the chunks that it is known to have a replica of, where that is all of it, or may be all that
/// anybody has. A commit that comes in between makes it a claim that fails.
fn proof(catalog: &Catalog, rid: Rid, held: &BTreeMap<ChunkId, SeenChunk>) -> Vec<Held> {
    let of_use = |held: &Held| {
        catalog.chunk(held.chunk).is_some_and(|chunk| {
            let last = chunk.in_sync == [rid] || chunk.state == ChunkState::Damaged;
            chunk.knows(rid) && (last || chunk.ends_at(held))
        })
    };
    self::held(held).filter(of_use).collect()
}

fn held(seen: &BTreeMap<ChunkId, SeenChunk>) -> impl Iterator<Item = Held> {
    seen.iter().map(|(chunk, at)| Held { chunk: *chunk, csn: at.csn, chain: at.chain })
}

/// Chunks that nobody holds now that a disk is gone.
fn lost<'a>(after: &'a Catalog, before: &'a Catalog, rid: Rid) -> impl Iterator<Item = &'a Chunk> {
    let held = move |id| before.chunk(id).is_some_and(|chunk| chunk.has_member(rid));
    let damaged = after.chunks().filter(|chunk| chunk.state == ChunkState::Damaged);
    damaged.filter(move |chunk| held(chunk.id) && chunk.last_csn > Csn(0))
}

/// The node that a newcomer says to be: by its rid, or by its name.
fn claimed<'a>(catalog: &'a Catalog, rid: Option<Rid>, name: &str) -> Option<&'a DataNode> {
    match rid {
        Some(rid) => catalog.data_node(rid.node),
        None => catalog.data_node_named(name),
    }
}

/// A chunk of which the disk misses a commit that it reported durable, or has another history.
fn missing(catalog: &Catalog, rid: Rid, held: &BTreeMap<ChunkId, SeenChunk>) -> Option<ChunkId> {
    let lost = |chunk: &&crate::catalog::Chunk| {
        let reported = catalog.applied(chunk.id, rid).unwrap_or_default();
        let at = held.get(&chunk.id).copied().unwrap_or_default();
        let differs = at.csn == chunk.last_csn && at.chain != chunk.chain;
        chunk.has_member(rid) && (at.csn < reported || differs)
    };
    catalog.chunks().find(lost).map(|chunk| chunk.id)
}

#[cfg(test)]
mod tests {
    use hypertide_proto::{
        ids::{AccessId, Boot, Epoch, TableId, TxnId},
        wire::meta::ChunkProgress,
    };

    use super::*;
    use crate::catalog::{Changes, CommitPart, CommitRecord};

    /// A reference table with a chunk on one node, and two commits that the node reported.
    fn reported() -> (Catalog, Rid) {
        let at = || "host:1".to_owned();
        let disk = DiskId([1; 16]);
        let id = AccessId(1);
        let mut catalog = Catalog::default();
        let mut commands = vec![
            Command::RegisterAccess { id, rpc: at(), pg: at(), flight: at(), http: at() },
            Command::RegisterData { rid: None, name: String::new(), disk, rpc: at(), http: at() },
            Command::CreateTable {
                schema: "public".to_owned(),
                name: "t".to_owned(),
                owner: "ann".to_owned(),
                columns: hypertide_proto::schema::TableSchema::default(),
                if_not_exists: false,
            },
            Command::EnsureChunks { table: TableId(1), points: vec![Vec::new()] },
        ];
        let rid = Rid {
            node: hypertide_proto::ids::NodeId(1),
            incarnation: hypertide_proto::ids::Incarnation(1),
        };
        for seq in 1..3 {
            let part = CommitPart {
                chunk: ChunkId(1),
                epoch: Epoch(0),
                acks: vec![rid],
                hash: 5,
                rows: 1,
                table_version: 1,
                keyed: false,
            };
            let txn = TxnId { access: id, boot: Boot(1), seq };
            commands.push(Command::Commit(CommitRecord { txn, write: None, parts: vec![part] }));
        }
        commands.push(Command::Progress { rid, applied: vec![(ChunkId(1), Csn(6))] });
        for (csn, command) in (1..).zip(&commands) {
            let csn = Csn(csn);
            catalog.apply(command, csn, 1, &mut Changes::default()).expect("it applies");
        }
        (catalog, rid)
    }

    #[test]
    fn a_disk_proves_what_it_holds_but_for_wrong_bytes() {
        let (mut catalog, rid) = reported();
        let chunk = catalog.chunk(ChunkId(1)).expect("made").clone();
        let request = |csn, chain: u128, damaged| {
            let chain = chain.to_be_bytes().to_vec().into();
            let at = ChunkProgress { chunk: 1, applied_csn: csn, chain, ..Default::default() };
            let strange = ChunkProgress { chunk: 9, ..at.clone() };
            RegisterRequest { progress: vec![at, strange], damaged, ..Default::default() }
        };
        let whole = request(6, chunk.chain, vec![]);
        let proven = |request: &RegisterRequest| proof(&catalog, rid, &sound(request));
        assert_eq!(proven(&whole), [Held { chunk: chunk.id, csn: Csn(6), chain: chunk.chain }]);
        assert_eq!(proven(&request(5, 7, vec![])).len(), 1, "nobody else holds more");
        assert_eq!(proven(&request(6, chunk.chain, vec![1])), []);
        let (held, disk) = (proven(&whole), DiskId([2; 16]));
        let reset = Command::NodeReset { rid, disk, held };
        catalog.apply(&reset, Csn(7), 1, &mut Changes::default()).expect("it applies");
        let next = Rid { incarnation: rid.incarnation.next(), ..rid };
        assert_eq!(kept(&catalog, next, &whole), [chunk.id]);
        assert_eq!(kept(&catalog, next, &request(6, chunk.chain, vec![1])), []);
        assert_eq!(kept(&catalog, next, &request(5, 7, vec![])), [], "it is not what was proven");
        assert_eq!(kept(&catalog, rid, &whole), []);
    }

    #[test]
    fn a_disk_that_was_turned_back_is_told_by_what_it_reported() {
        let (catalog, rid) = reported();
        let chunk = catalog.chunk(ChunkId(1)).expect("made").clone();
        let holds = |csn: u64, chain: u128| {
            let at = SeenChunk { csn: Csn(csn), chain, ..SeenChunk::default() };
            missing(&catalog, rid, &BTreeMap::from([(chunk.id, at)]))
        };
        assert_eq!(holds(6, chunk.chain), None);
        assert_eq!(holds(5, 77), Some(chunk.id), "behind what it reported");
        assert_eq!(holds(6, 77), Some(chunk.id), "another history");
        assert_eq!(missing(&catalog, rid, &BTreeMap::new()), Some(chunk.id), "the chunk is gone");
        assert_eq!(claimed(&catalog, None, "d1").map(|node| node.rid), Some(rid));
        assert_eq!(claimed(&catalog, None, "d2"), None);
        assert_eq!(claimed(&catalog, Some(rid), "").map(|node| node.rid), Some(rid));
    }
}
