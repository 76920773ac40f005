//! The catalog made anew from what data nodes keep, when no access node is left.
//!
//! Of each chunk the replicas that hold the most commits are in sync, since an in-sync replica has missed none; the others
//! left, and catch up. What was decided belonged to the access nodes that are gone: their boots are fenced, so that
//! whatever is pending at a data node is undone.
//!
//! An access node that is left of a group without a majority knows more: newer definitions, decisions, which chunks were
//! dropped, and by which ids clients named their writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use hypertide_proto::{
    decision::Decision,
    ids::{AccessId, Boot, ChunkId, Csn, DiskId, Epoch, Rid},
};

use super::{
    Asked, Catalog, Chunk, ChunkOrigin, ChunkState, Compressed, DataNode, Table, TableKind, Tail,
    index::Index,
};

/// Boots, chunk ids and places in the log that the lost access nodes may have given since anything was heard of them.
const BOOTS_UNSEEN: u64 = 1_000;
const CHUNKS_UNSEEN: u64 = 1_000;
const ENTRIES_UNSEEN: u64 = 1_000_000;

/// What is left of a data node.
#[derive(Clone, Debug)]
pub struct NodeRemains {
    /// The node and the incarnation of its disk.
    pub rid: Rid,
    /// Its name.
    pub name: String,
    /// Its disk.
    pub disk: DiskId,
    /// Index of the log and [`Catalog::definitions`] then.
    pub definitions: Option<(u64, Vec<u8>)>,
    /// Its replicas.
    pub chunks: Vec<ReplicaRemains>,
}

/// What is left of a replica.
#[derive(Clone, Debug)]
pub struct ReplicaRemains {
    /// The chunk.
    pub chunk: ChunkId,
    /// [`ChunkOrigin::to_bytes`].
    pub origin: Vec<u8>,
    /// Its last commit.
    pub csn: Csn,
    /// Running hash over its commits.
    pub chain: u128,
    /// Its rows.
    pub rows: u64,
    /// Whether some of its bytes are wrong.
    pub damaged: bool,
    /// What of it is compressed: up to which commit, bytes before and after.
    pub compressed: Option<(Csn, u64, u64)>,
}

/// What an access node knew that is left of a group without a majority.
#[derive(Clone, Debug)]
pub struct CatalogRemains {
    /// The last entry of the log that it had applied.
    pub index: u64,
    /// The catalog then.
    pub catalog: Catalog,
}

impl CatalogRemains {
    /// Transactions of which it knows how they ended.
    pub fn decisions(&self) -> impl Iterator<Item = Decision> {
        let decided = self.catalog.decided.iter();
        decided.map(|(txn, decided)| Decision { txn: *txn, fate: decided.fate.clone() })
    }
}

/// What is to be done about what is missing.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// Log time that the new catalog begins with: milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// The access node that begins.
    pub access: AccessId,
    /// Names of data nodes that are lost, too: what only they held is given up.
    pub without: BTreeSet<String>,
    /// Whether chunks are given up of which nothing says where they belong.
    pub forget_unknown: bool,
}

/// A catalog made anew.
#[derive(Clone, Debug)]
pub struct Rebuilt {
    /// The catalog.
    pub catalog: Catalog,
    /// The entry of the log that it stands for: later than all that data nodes have seen.
    pub index: u64,
    /// What is not as it was.
    pub findings: Vec<Finding>,
}

/// Something that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A replica has fewer commits than another, and will catch up.
    Behind(String, String),
    /// Two replicas differ; this node's is given up.
    Differs(String, String),
    /// No replica of the chunk is whole.
    Damaged(String),
    /// The last commits of the chunk, after one and up to another, are at no data node.
    Short(String, Csn, Csn),
    /// The chunk was dropped before, which a data node had not heard of.
    Dropped(ChunkId),
    /// Nothing says where the chunk belongs; it is given up.
    Unknown(ChunkId),
    /// The data node is lost with what only it held.
    Lost(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Behind(chunk, node) => write!(f, "{node} is behind in {chunk} and will catch up"),
            Self::Differs(chunk, node) => {
                write!(f, "{node} has another history of {chunk}; its replica is given up")
            }
            Self::Damaged(chunk) => write!(f, "no replica of {chunk} is whole"),
            Self::Short(chunk, held, last) => {
                write!(f, "the commits of {chunk} after {held} up to {last} are lost")
            }
            Self::Dropped(chunk) => write!(f, "chunk {chunk} was dropped before"),
            Self::Unknown(chunk) => {
                write!(f, "nothing says where chunk {chunk} belongs; it is given up")
            }
            Self::Lost(node) => write!(f, "data node {node} is lost, with what only it held"),
        }
    }
}

/// Why no catalog was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is nothing to begin with.
    #[error("no data directory has a copy of the catalog's definitions")]
    NoDefinitions,
    /// The copy cannot be read.
    #[error("the copy of the catalog's definitions at {0} cannot be read: {1}")]
    Definitions(String, String),
    /// Two directories are of one node.
    #[error("two data directories are of data node {0}")]
    Twice(String),
    /// Some directories are not there.
    #[error("the directories of data nodes {} are not among those named", .0.join(", "))]
    Missing(Vec<String>),
    /// A node is both there and lost.
    #[error("data node {0} is there, and named as lost")]
    NotLost(String),
    /// There are chunks of which nothing says where they belong.
    #[error("nothing says where {} chunks belong: {}", .0.len(), list(.0))]
    Unknown(Vec<ChunkId>),
    /// The access node's number cannot be given again.
    #[error("access node {0} was removed from the cluster; its number cannot be given again")]
    Retired(AccessId),
    /// What was found contradicts itself.
    #[error("the data directories contradict each other: {0}")]
    Broken(String),
}

fn list(chunks: &[ChunkId]) -> String {
    let shown = chunks.iter().take(10).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if chunks.len() > 10 { format!("{shown}, ...") } else { shown }
}

/// Makes a catalog of what data nodes keep, and of what access nodes knew that are left, if any are.
pub fn rebuild(
    nodes: &[NodeRemains],
    left: &[CatalogRemains],
    terms: &Terms,
) -> Result<Rebuilt, Refusal> {
    let known = left.iter().max_by_key(|left| left.index);
    let (mut catalog, seen) = defined(nodes, known)?;
    let mut findings = take_nodes(&mut catalog, nodes, (&terms.without, terms.now_ms))?;
    fence(&mut catalog, terms.access)?;
    let (mut replicas, unknown) = by_chunk(&catalog, nodes);
    if let Some(known) = known {
        findings.extend(forget_dropped(&mut replicas, known));
    }
    if !unknown.is_empty() && !terms.forget_unknown {
        return Err(Refusal::Unknown(unknown));
    }
    findings.extend(unknown.into_iter().map(Finding::Unknown));
    for (id, (origin, replicas)) in &replicas {
        let mut chunk = chunk_of((*id, origin), replicas, (&catalog, terms.now_ms), &mut findings);
        if let Some(before) = known.and_then(|known| known.catalog.chunk(*id)) {
            (chunk.asked, chunk.lost) = (before.asked, before.lost.clone());
            if before.last_csn > chunk.last_csn {
                let shown = full_name(catalog.tables.get(&chunk.table), &chunk.name);
                findings.push(Finding::Short(shown, chunk.last_csn, before.last_csn));
            }
        }
        number_after(&mut catalog, &chunk);
        let applied = chunk.in_sync.iter().map(|rid| (*rid, chunk.last_csn)).collect();
        catalog.tails.insert(*id, Tail { applied, floor: chunk.last_csn });
        catalog.chunks.insert(*id, chunk);
    }
    seal_all_but_the_last(&mut catalog);
    if let Some(known) = known {
        keep_writes(&mut catalog, known, &findings);
    }
    let last = nodes.iter().flat_map(|node| &node.chunks);
    let last_chunk = last.clone().map(|replica| replica.chunk.0).max().unwrap_or(0);
    let last_entry = last.map(|replica| replica.csn.index()).max().unwrap_or(0).max(seen);
    let last_chunk = last_chunk.max(known.map_or(0, |known| known.catalog.counters.chunk.0));
    catalog.counters.chunk = ChunkId(last_chunk + CHUNKS_UNSEEN);
    catalog.counters.time_ms = terms.now_ms;
    catalog.index = Index::of(&catalog);
    catalog.check().map_err(|broken| Refusal::Broken(broken.to_string()))?;
    Ok(Rebuilt { catalog, index: last_entry + ENTRIES_UNSEEN, findings })
}

/// The newest definitions, and the entry of the log that they are of.
fn defined(
    nodes: &[NodeRemains],
    known: Option<&CatalogRemains>,
) -> Result<(Catalog, u64), Refusal> {
    let copies = nodes.iter().filter_map(|node| Some((node, node.definitions.as_ref()?)));
    let newest = copies.max_by_key(|(_, (index, _))| *index);
    if let Some(known) = known
        && newest.is_none_or(|(_, (index, _))| *index < known.index)
    {
        let own = Catalog::from_definitions(&known.catalog.definitions());
        let own = own.map_err(|error| Refusal::Broken(error.to_string()))?;
        return Ok((own, known.index));
    }
    let (node, (index, body)) = newest.ok_or(Refusal::NoDefinitions)?;
    let catalog = Catalog::from_definitions(body)
        .map_err(|error| Refusal::Definitions(node.name.clone(), error.to_string()))?;
    Ok((catalog, *index))
}

/// The data nodes as their disks say who they are.
fn take_nodes(
    catalog: &mut Catalog,
    nodes: &[NodeRemains],
    (without, now_ms): (&BTreeSet<String>, u64),
) -> Result<Vec<Finding>, Refusal> {
    let mut here = BTreeSet::new();
    for node in nodes {
        if !here.insert(node.rid.node) {
            return Err(Refusal::Twice(node.name.clone()));
        }
        if without.contains(&node.name) {
            return Err(Refusal::NotLost(node.name.clone()));
        }
        let fresh = || DataNode::new((node.rid, node.disk), node.name.clone(), now_ms);
        let row = catalog.data_nodes.entry(node.rid.node).or_insert_with(fresh);
        (row.rid, row.disk) = (node.rid, node.disk);
        catalog.counters.node = catalog.counters.node.max(node.rid.node);
    }
    let away = catalog.data_nodes.values().filter(|node| !here.contains(&node.id()));
    let (lost, missing): (Vec<String>, Vec<String>) =
        away.map(|node| node.name.clone()).partition(|name| without.contains(name));
    if missing.is_empty() {
        Ok(lost.into_iter().map(Finding::Lost).collect())
    } else {
        Err(Refusal::Missing(missing))
    }
}

/// Retires the access nodes but the one that begins, and closes all of their boots.
fn fence(catalog: &mut Catalog, beginning: AccessId) -> Result<(), Refusal> {
    let ids: Vec<AccessId> = catalog.access_nodes.keys().copied().collect();
    for id in ids {
        let Some(node) = catalog.access_nodes.get_mut(&id) else { continue };
        if id == beginning && node.retired {
            return Err(Refusal::Retired(id));
        }
        node.boot = Boot(node.boot.0 + BOOTS_UNSEEN);
        node.retired = id != beginning;
        if node.retired {
            [&mut node.rpc, &mut node.pg, &mut node.flight, &mut node.http]
                .into_iter()
                .for_each(String::clear);
        }
    }
    Ok(())
}

type Replicas<'a> = Vec<(&'a NodeRemains, &'a ReplicaRemains)>;

/// The replicas of each chunk that has a commit, with where it belongs; and chunks of which nothing says that.
fn by_chunk<'a>(
    catalog: &Catalog,
    nodes: &'a [NodeRemains],
) -> (BTreeMap<ChunkId, (ChunkOrigin, Replicas<'a>)>, Vec<ChunkId>) {
    let mut all: BTreeMap<ChunkId, Replicas<'a>> = BTreeMap::new();
    for node in nodes {
        for replica in node.chunks.iter().filter(|replica| replica.csn > Csn(0)) {
            all.entry(replica.chunk).or_default().push((node, replica));
        }
    }
    let (mut known, mut unknown) = (BTreeMap::new(), Vec::new());
    for (id, replicas) in all {
        let origin =
            replicas.iter().find_map(|(_, replica)| ChunkOrigin::from_bytes(&replica.origin));
        let fits = |origin: &ChunkOrigin| {
            let table = catalog.tables.get(&origin.table);
            table.is_some_and(|table| table.arity() == origin.slices.len())
        };
        match origin.filter(fits) {
            Some(origin) => drop(known.insert(id, (origin, replicas))),
            None => unknown.push(id),
        }
    }
    (known, unknown)
}

/// Gives up chunks that an access node no longer had, though it knew of all of their commits.
fn forget_dropped(
    replicas: &mut BTreeMap<ChunkId, (ChunkOrigin, Replicas<'_>)>,
    known: &CatalogRemains,
) -> Vec<Finding> {
    let dropped = |id: &ChunkId, (_, replicas): &(ChunkOrigin, Replicas<'_>)| {
        let seen =
            |(_, replica): &(&NodeRemains, &ReplicaRemains)| replica.csn.index() <= known.index;
        known.catalog.chunk(*id).is_none() && replicas.iter().all(seen)
    };
    let gone: Vec<ChunkId> =
        replicas.iter().filter(|(id, of)| dropped(id, of)).map(|(id, _)| *id).collect();
    replicas.retain(|id, _| !gone.contains(id));
    gone.into_iter().map(Finding::Dropped).collect()
}

/// A chunk of which these replicas are left.
fn chunk_of(
    (id, origin): (ChunkId, &ChunkOrigin),
    replicas: &Replicas<'_>,
    (catalog, now_ms): (&Catalog, u64),
    findings: &mut Vec<Finding>,
) -> Chunk {
    let ChunkOrigin { table, name, slices, generation, created_ms } = origin.clone();
    let whole = || replicas.iter().filter(|(_, replica)| !replica.damaged);
    // Of replicas that differ at the same commit one must go; more of a kind are right more often than fewer.
    let votes = |replica: &ReplicaRemains| {
        let same = |other: &&(&NodeRemains, &ReplicaRemains)| {
            (other.1.csn, other.1.chain) == (replica.csn, replica.chain)
        };
        (replica.csn, whole().filter(same).count())
    };
    let best = whole().map(|(_, replica)| *replica).max_by_key(|replica| votes(replica));
    let shown = full_name(catalog.tables.get(&table), &name);
    let (mut in_sync, mut left) = (Vec::new(), Vec::new());
    for (node, replica) in whole() {
        match best {
            Some(best) if (replica.csn, replica.chain) == (best.csn, best.chain) => {
                in_sync.push(node.rid);
            }
            Some(best) if replica.csn < best.csn => {
                left.push((node.rid, replica.csn));
                findings.push(Finding::Behind(shown.clone(), node.name.clone()));
            }
            _ => findings.push(Finding::Differs(shown.clone(), node.name.clone())),
        }
    }
    if best.is_none() {
        findings.push(Finding::Damaged(shown));
    }
    let last = best.or_else(|| replicas.iter().map(|(_, replica)| *replica).max_by_key(|r| r.csn));
    let compressed = best.and_then(|best| best.compressed).map(|(csn, before, after)| Compressed {
        csn,
        before_bytes: before,
        after_bytes: after,
        at_ms: now_ms,
    });
    Chunk {
        id,
        table,
        name,
        slices,
        generation,
        state: if best.is_some() { ChunkState::Open } else { ChunkState::Damaged },
        epoch: Epoch(0),
        in_sync,
        joining: Vec::new(),
        left,
        last_csn: last.map_or(Csn(0), |last| last.csn),
        chain: last.map_or(0, |last| last.chain),
        rows: last.map_or(0, |last| last.rows),
        lost: Vec::new(),
        created_ms,
        asked: compressed.map(|of| Asked { up_to: Some(of.csn), at_ms: now_ms }),
        compressed,
    }
}

fn full_name(table: Option<&Table>, name: &str) -> String {
    let made = table.and_then(Table::hypertable);
    made.map_or_else(|| name.to_owned(), |made| format!("{}.{name}", made.chunk_schema))
}

/// The next chunk of the table is not named as this one.
fn number_after(catalog: &mut Catalog, chunk: &Chunk) {
    let Some(table) = catalog.tables.get_mut(&chunk.table) else { return };
    let TableKind::Hypertable(made) = &mut table.kind else { return };
    let number = chunk.name.strip_prefix(made.chunk_prefix.as_str());
    let number = number.and_then(|rest| rest.strip_prefix('_')?.strip_suffix("_chunk"));
    if let Some(number) = number.and_then(|number| number.parse::<u64>().ok()) {
        made.next_chunk = made.next_chunk.max(number.saturating_add(1));
    }
}

/// Keeps the ids of writes that are here: of one that is lost the client may send the rows again.
fn keep_writes(catalog: &mut Catalog, known: &CatalogRemains, findings: &[Finding]) {
    let held = findings.iter().filter_map(|finding| match finding {
        Finding::Short(_, held, _) => Some(*held),
        _ => None,
    });
    let all_up_to = held.min().unwrap_or(Csn(u64::MAX));
    let writes = known.catalog.writes.iter().filter(|(_, write)| write.csn <= all_up_to);
    catalog.writes = writes.map(|(id, write)| (*id, write.clone())).collect();
}

/// Of the generations of a box only the last takes rows.
fn seal_all_but_the_last(catalog: &mut Catalog) {
    let mut last = BTreeMap::new();
    for chunk in catalog.chunks.values() {
        let generation = last.entry((chunk.table, chunk.slices.clone())).or_default();
        *generation = chunk.generation.max(*generation);
    }
    let older = catalog.chunks.values().filter(|chunk| {
        let last = last.get(&(chunk.table, chunk.slices.clone()));
        chunk.state == ChunkState::Open && last.is_some_and(|last| chunk.generation < *last)
    });
    let older: Vec<ChunkId> = older.map(|chunk| chunk.id).collect();
    for id in older {
        if let Some(chunk) = catalog.chunks.get_mut(&id) {
            chunk.state = ChunkState::Sealed;
        }
    }
}
