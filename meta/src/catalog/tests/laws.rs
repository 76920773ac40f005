//! Laws over random commands: invariants hold, rows tell all, and equal logs give equal catalogs.

use std::collections::{BTreeMap, BTreeSet};

use hypertide_proto::{
    decision::Fate,
    ids::{
        AccessId, Boot, ChunkId, Csn, DiskId, Epoch, Incarnation, NodeId, Rid, TableId, TxnId,
        WriteId,
    },
    partition::HASH_END,
    schema::{Column, ColumnType, TableSchema},
    time::TimeRange,
};
use proptest::{collection::vec, option, prelude::*};

use super::Kept;
use crate::{
    catalog::{
        Block, Changes, Command, CommitPart, CommitRecord, DataNode, Detach, Held, HypertableSpec,
        Order, Outcome, Rule, TableKind, apply::Step, retention::SETTLED_KEPT_MS,
    },
    placement,
};

/// A command whose acknowledgements and versions are filled in when it is applied: random ones would all be refused.
#[derive(Clone, Debug)]
pub(super) enum Draft {
    Whole(Command),
    Commit {
        txn: TxnId,
        chunks: Vec<u64>,
        write: Option<u8>,
        lazy: bool,
    },
    /// A node reports every chunk it has.
    CatchUp(u64),
    /// A replica comes or goes, in one of several ways, by chunk and node.
    Replica(u8, u64, u64),
    /// Log time goes on.
    Wait(u64),
}

fn column(name: &str, column_type: ColumnType) -> Column {
    Column::new(name, column_type)
}

fn new_table(name: &str, if_not_exists: bool) -> Command {
    let columns = vec![column("time", ColumnType::BigInt), column("city", ColumnType::Text)];
    Command::CreateTable {
        schema: "public".to_owned(),
        name: name.to_owned(),
        owner: "ann".to_owned(),
        columns: TableSchema::of(columns),
        if_not_exists,
    }
}

fn spec(interval: i64, partitions: Option<Option<u16>>, factor: u16) -> HypertableSpec {
    HypertableSpec {
        distributed: true,
        time_column: "time".to_owned(),
        interval,
        space: partitions.map(|number| ("city".to_owned(), number)),
        replication_factor: factor,
        data_nodes: None,
        chunk_schema: None,
        chunk_prefix: None,
    }
}

/// Makes a hypertable with two replicas of each chunk.
fn hypertable(kept: &mut Kept, interval: i64, partitions: Option<u16>) -> TableId {
    let Ok(Outcome::Table(table, true)) = kept.apply(&new_table("big", false)) else {
        panic!("a new table");
    };
    let spec = spec(interval, Some(partitions), 2);
    kept.apply(&Command::CreateHypertable { table: table.id, spec, if_not_exists: false }).unwrap();
    table.id
}

fn txn() -> impl Strategy<Value = TxnId> {
    (1u64..3, 1u64..4, 1u64..30).prop_map(|(access, boot, seq)| TxnId {
        access: AccessId(access),
        boot: Boot(boot),
        seq,
    })
}

fn table() -> impl Strategy<Value = TableId> {
    (1u64..5).prop_map(TableId)
}

fn point() -> impl Strategy<Value = Vec<i64>> {
    // Mostly two coordinates; the other arities are refused, or are those of other tables.
    let times = prop_oneof![6 => 0i64..60, 1 => Just(i64::MIN), 1 => Just(i64::MAX)];
    (times, 0..HASH_END, 0usize..10).prop_map(|(time, hash, arity)| match arity {
        0 => vec![],
        1..4 => vec![time],
        _ => vec![time, hash],
    })
}

fn nodes() -> impl Strategy<Value = Command> {
    let access = (1u64..3).prop_map(|id| {
        let at = || "host:1".to_owned();
        Command::RegisterAccess { id: AccessId(id), rpc: at(), pg: at(), flight: at(), http: at() }
    });
    let data = (option::of(1u64..5), 1u8..5).prop_map(|(node, disk)| Command::RegisterData {
        rid: node.map(|node| Rid { node: NodeId(node), incarnation: Incarnation(1) }),
        name: String::new(),
        disk: DiskId([disk; 16]),
        rpc: format!("host:{disk}"),
        http: String::new(),
    });
    let disk = (1u64..5, 1u64..3, 5u8..99);
    let reset = disk.prop_map(|(node, incarnation, disk)| Command::NodeReset {
        rid: Rid { node: NodeId(node), incarnation: Incarnation(incarnation) },
        disk: DiskId([disk; 16]),
        held: Vec::new(),
    });
    let block = (1u64..5, option::of(table()), any::<bool>(), any::<bool>());
    let block = block.prop_map(|(node, table, block, force)| {
        Command::BlockNewChunks(Block { node: NodeId(node), table, block, force })
    });
    prop_oneof![2 => access, 8 => data, 4 => block, 1 => reset, 3 => spreading()]
}

fn spreading() -> impl Strategy<Value = Command> {
    let name = || (1u64..5).prop_map(|number| format!("d{number}"));
    let attach = (name(), table(), any::<bool>()).prop_map(|(node, table, repartition)| {
        Command::AttachDataNode { node, table, if_not_attached: false, repartition }
    });
    let how = || {
        (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
            |(force, repartition, if_attached)| Detach { if_attached, force, repartition },
        )
    };
    let detach = (name(), option::of(table()), how())
        .prop_map(|(node, table, how)| Command::DetachDataNode { node, table, how });
    let delete = (name(), how()).prop_map(|(node, how)| Command::DeleteDataNode {
        node,
        if_exists: false,
        how,
    });
    let factor = (table(), 1u16..4)
        .prop_map(|(table, factor)| Command::SetReplicationFactor { table, factor });
    let order = (1u64..16, 1u64..5, option::of(1u64..5)).prop_map(|(chunk, target, source)| {
        Command::OrderCopy(Order {
            operation: format!("copy_{chunk}_{target}"),
            chunk: ChunkId(chunk),
            target: NodeId(target),
            source: source.map(NodeId),
            at_ms: 0,
        })
    });
    prop_oneof![3 => attach, 2 => detach, 1 => delete, 2 => factor, 2 => order]
}

fn tables() -> impl Strategy<Value = Command> {
    let create =
        ("[a-c]", any::<bool>()).prop_map(|(name, if_not_exists)| new_table(&name, if_not_exists));
    let shape = (1i64..40, option::of(option::of(1u16..6)), 1u16..4);
    let cut = (table(), shape).prop_map(|(table, (interval, partitions, factor))| {
        let spec = spec(interval, partitions, factor);
        Command::CreateHypertable { table, spec, if_not_exists: false }
    });
    let drop = vec(table(), 1..3).prop_map(|tables| Command::DropTables { tables });
    let truncate = vec(table(), 1..3).prop_map(|tables| Command::TruncateTables { tables });
    prop_oneof![6 => create, 6 => cut, 1 => drop, 1 => truncate]
}

pub(super) fn draft() -> impl Strategy<Value = Draft> {
    let chunks = (table(), vec(point(), 1..6))
        .prop_map(|(table, points)| Command::EnsureChunks { table, points });
    let dropped = (table(), vec((1u64..30).prop_map(ChunkId), 1..4))
        .prop_map(|(table, chunks)| Command::DropChunks { table, chunks });
    let abort = txn().prop_map(|txn| Command::Abort { txn });
    let whole = prop_oneof![
        3 => nodes(), 3 => tables(), 6 => chunks, 1 => dropped, 2 => abort,
    ];
    let parts = vec(1u64..20, 0..4);
    let commit = (txn(), parts, option::weighted(0.3, 0u8..8), proptest::bool::weighted(0.1))
        .prop_map(|(txn, chunks, write, lazy)| Draft::Commit { txn, chunks, write, lazy });
    prop_oneof![
        6 => whole.prop_map(Draft::Whole),
        6 => commit,
        3 => (1u64..5).prop_map(Draft::CatchUp),
        8 => (0u8..12, 1u64..16, 1u64..5).prop_map(|(way, chunk, node)| Draft::Replica(way, chunk, node)),
        1 => (0..SETTLED_KEPT_MS).prop_map(Draft::Wait),
    ]
}

/// The command of a draft in this catalog.
pub(super) fn finish(draft: &Draft, kept: &mut Kept) -> Option<Command> {
    let catalog = &kept.catalog;
    Some(match draft {
        Draft::Whole(command) => command.clone(),
        Draft::Wait(ms) => {
            kept.at_ms += ms;
            return None;
        }
        Draft::Replica(way, chunk, node) => return replica(*way, ChunkId(*chunk), *node, kept),
        Draft::CatchUp(node) => {
            let rid = catalog.data_node(NodeId(*node))?.rid;
            let chunks = catalog.chunks.values().map(|chunk| (chunk.id, chunk.last_csn));
            Command::Progress { rid, applied: chunks.collect() }
        }
        Draft::Commit { txn, chunks, write, lazy } => {
            let part = |id: &u64| {
                let chunk = catalog.chunk(ChunkId(*id))?;
                let acks = chunk.members().skip(usize::from(*lazy)).collect();
                let table_version = catalog.table(chunk.table)?.version;
                let (epoch, hash) = (Epoch(0), u128::from(*id));
                let keyed = *lazy && id.is_multiple_of(2);
                Some(CommitPart {
                    chunk: chunk.id,
                    epoch,
                    acks,
                    hash,
                    rows: 1,
                    table_version,
                    keyed,
                })
            };
            let parts: BTreeMap<_, _> = chunks.iter().map(|id| (*id, part(id))).collect();
            let parts = parts.into_values().flatten().collect();
            let write = write.map(|id| (WriteId([id / 2; 16]), u128::from(id % 2)));
            Command::Commit(CommitRecord { txn: *txn, write, parts })
        }
    })
}

/// A change of a chunk's replicas, with the proof that a replica would have.
fn replica(way: u8, id: ChunkId, node: u64, kept: &Kept) -> Option<Command> {
    let chunk = kept.catalog.chunk(id)?;
    let &DataNode { rid, disk, .. } = kept.catalog.data_node(NodeId(node))?;
    let end = Held { chunk: id, csn: chunk.last_csn, chain: chunk.chain };
    let joiner = chunk.joining.iter().find(|joiner| joiner.rid == rid);
    let start = joiner.map(|at| Held { chunk: id, csn: at.csn, chain: at.chain });
    Some(match way {
        0 | 1 => Command::Shrink { rid, chunks: vec![id] },
        2 => Command::Return { rid, held: vec![end] },
        3 | 4 => Command::StartJoin { chunk: id, rid },
        5 => Command::FinishJoin { rid, held: start.unwrap_or(end) },
        6 => Command::DropJoin { chunk: id, rid },
        7 => Command::RemoveReplica { chunk: id, rid },
        8 => Command::NodeReset { rid, disk, held: vec![end] },
        // It lost its last commit.
        9 => {
            let csn = Csn(end.csn.0.saturating_sub(1));
            Command::NodeReset { rid, disk, held: vec![Held { csn, ..end }] }
        }
        10 => {
            let csn = chunk.left.iter().find(|left| left.0 == rid)?.1;
            Command::AcceptLoss { rid, held: Held { csn, ..end }, rows: 1 }
        }
        _ => Command::Seal { chunk: id, epoch: chunk.epoch },
    })
}

/// A cluster of two access nodes and three data nodes, so that random commands find something to work on.
pub(super) fn founded() -> Kept {
    let mut kept = Kept::default();
    for id in 1..3 {
        let at = || "host:1".to_owned();
        let (rpc, pg, flight, http) = (at(), at(), at(), at());
        let access = Command::RegisterAccess { id: AccessId(id), rpc, pg, flight, http };
        kept.apply(&access).unwrap();
    }
    for disk in 1..4 {
        let (name, rpc, http) = (String::new(), String::new(), String::new());
        let data = Command::RegisterData { rid: None, name, disk: DiskId([disk; 16]), rpc, http };
        kept.apply(&data).unwrap();
    }
    kept
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// [`Kept::apply`] asserts the invariants, that a reject changes nothing, and that the rows tell all.
    #[test]
    fn random_commands_keep_the_catalog_sound(drafts in vec(draft(), 1..120)) {
        let mut kept = founded();
        let (mut ends, mut log) = (BTreeMap::<TxnId, Option<Csn>>::new(), Vec::new());
        for draft in &drafts {
            let Some(command) = finish(draft, &mut kept) else { continue };
            let answer = kept.apply(&command);
            if let (Command::Commit(CommitRecord { txn, .. }) | Command::Abort { txn }, Ok(outcome)) =
                (&command, &answer)
            {
                // No transaction ends twice, however long ago its decision was forgotten.
                let fenced = kept.catalog.fenced(*txn);
                let first = ends.get(txn).copied();
                match outcome {
                    Outcome::Committed { csn, .. } => {
                        prop_assert!(first.is_none_or(|end| end == Some(*csn)), "{} twice", txn);
                        ends.insert(*txn, Some(*csn));
                    }
                    // To abort a fenced transaction whose commit is forgotten is answered, and tells nothing.
                    Outcome::Aborted => {
                        let told = first.is_none_or(|end| end.is_none()) || fenced;
                        prop_assert!(told, "{} aborted after its commit", txn);
                        ends.entry(*txn).or_insert(None);
                    }
                    // Tells of the write, whichever transaction it was.
                    _ => drop(ends.entry(*txn).or_insert(None)),
                }
            }
            log.push((command, kept.csn, kept.at_ms, answer));
        }
        // The same log gives the same answers, catalog and rows, and time does not go back with a leader's clock.
        let mut again = founded();
        for (command, csn, at_ms, answer) in &log {
            (again.csn, again.at_ms) = (Csn(csn.0 - 1), *at_ms);
            prop_assert_eq!(&again.apply(command), answer);
        }
        prop_assert_eq!(again.catalog, kept.catalog);
        prop_assert_eq!(again.rows, kept.rows);
    }

    /// Whatever became of the interval and the number of partitions, new boxes are cut at old ones, and each holds
    /// its point. No command changes the rules yet, so that they are changed by hand.
    #[test]
    fn boxes_are_cut_where_the_rules_changed(
        changes in vec((1i64..30, 1u16..7, vec((-50i64..50, 0..HASH_END), 1..8)), 1..6),
    ) {
        let mut kept = founded();
        let table = hypertable(&mut kept, 10, Some(4));
        for (width, partitions, points) in changes {
            let mut row = kept.catalog.table(table).unwrap().clone();
            let TableKind::Hypertable(made) = &mut row.kind else { panic!("a hypertable") };
            made.dimensions[0].rule = Rule::Time { interval: width, now_function: None };
            let buckets = placement::buckets(&[NodeId(1), NodeId(2)], partitions, 1);
            made.dimensions[1].rule = Rule::Hash { buckets };
            let mut step = Step { csn: Csn(0), at_ms: 0, changes: Changes::default() };
            kept.catalog.put_table(row, &mut step);
            kept.write(&step.changes);
            let points: Vec<_> = points.iter().map(|(time, hash)| vec![*time, *hash]).collect();
            let ensure = Command::EnsureChunks { table, points: points.clone() };
            let Ok(Outcome::Chunks(chunks)) = kept.apply(&ensure) else { panic!("chunks") };
            for (point, chunk) in points.iter().zip(chunks) {
                prop_assert!(chunk.holds(point), "{} holds {:?}", chunk, point);
                prop_assert_eq!(kept.catalog.chunk_at(table, point), Some(&chunk));
            }
            let range = TimeRange::new(-7, 13).unwrap();
            let by_index: BTreeSet<_> =
                kept.catalog.chunks_overlapping(table, &range).map(|chunk| chunk.id).collect();
            let all = kept.catalog.chunks_of(table).filter(|chunk| chunk.time().overlaps(&range));
            prop_assert_eq!(by_index, all.map(|chunk| chunk.id).collect::<BTreeSet<_>>());
        }
    }

    /// Every commit that a chunk retains is answered, and every one a member may still ask for is retained.
    #[test]
    fn a_member_never_misses_a_decision(drafts in vec(draft(), 1..120)) {
        let mut kept = founded();
        let mut commits: Vec<(TxnId, Csn, Vec<ChunkId>)> = Vec::new();
        // Commits that a replica took from another one, all members then having reported what was before.
        let mut refetched: BTreeSet<(ChunkId, Csn)> = BTreeSet::new();
        for draft in &drafts {
            let Some(command) = finish(draft, &mut kept) else { continue };
            if let Command::FinishJoin { held, .. } = &command {
                refetched.extend(commits.iter().map(|(_, csn, _)| (held.chunk, *csn)).filter(|at| at.1 <= held.csn));
            }
            if let Command::AcceptLoss { held, .. } = &command {
                // What is given up is asked for no more.
                refetched.extend(commits.iter().map(|(_, csn, _)| (held.chunk, *csn)));
            }
            if let Command::Return { held, .. } = &command {
                let all = held.iter().flat_map(|held| commits.iter().map(|(_, csn, _)| (held.chunk, *csn)));
                refetched.extend(all);
            }
            if let Ok(Outcome::Committed { csn, decision }) = kept.apply(&command)
                && let Fate::Committed { links, .. } = decision.fate
            {
                commits.push((decision.txn, csn, links.iter().map(|link| link.chunk).collect()));
            }
            for (txn, csn, chunks) in &commits {
                let behind = chunks.iter().filter_map(|id| kept.catalog.chunk(*id)).any(|chunk| {
                    let tail = kept.catalog.tails.get(&chunk.id);
                    let applied = |rid| tail.and_then(|tail| tail.applied.get(&rid)).copied();
                    // Joiners get from another replica what was before they joined.
                    let joined = |rid| chunk.joining.iter().any(|at| at.rid == rid && *csn <= at.csn);
                    let mut learners = chunk.members().chain(chunk.complete_left());
                    learners.any(|rid| applied(rid).unwrap_or_default() < *csn && !joined(rid))
                        && !refetched.contains(&(chunk.id, *csn))
                });
                if behind {
                    let fate = kept.catalog.fate(*txn).map(|decision| decision.fate);
                    let told = matches!(fate, Some(Fate::Committed { csn: told, .. }) if told == *csn);
                    prop_assert!(told, "{} csn={}", txn, csn);
                }
            }
        }
    }
}

#[test]
fn a_stopped_clock_and_one_set_back_do_not_turn_log_time_back() {
    let mut kept = founded();
    kept.at_ms = 5_000;
    kept.apply(&Command::Abort { txn: TxnId::default() }).unwrap_err();
    assert_eq!(kept.catalog.time_ms(), 0, "a reject changes nothing");
    let block = Block { node: NodeId(1), table: None, block: true, force: true };
    let register = Command::BlockNewChunks(block);
    kept.apply(&register).unwrap();
    kept.at_ms = 1_000;
    kept.apply(&register).unwrap();
    assert_eq!(kept.catalog.time_ms(), 5_000);
}

/// A hypertable of many chunks answers points and ranges by its index.
#[test]
fn many_chunks_are_found_by_point_and_range() {
    const SLICES: i64 = 4_000;
    let mut kept = founded();
    let table = hypertable(&mut kept, 10, Some(4));
    let (mut catalog, mut csn, mut changes) = (kept.catalog, kept.csn, Changes::default());
    let hashes = [0, HASH_END / 4 + 1, HASH_END / 2 + 1, HASH_END - 1];
    for first in (0..SLICES).step_by(1_000) {
        let times = first..first + 1_000;
        let points = times.flat_map(|slice| hashes.map(|hash| vec![slice * 10, hash])).collect();
        csn = csn.next();
        let ensure = Command::EnsureChunks { table, points };
        catalog.apply(&ensure, csn, 0, &mut changes).unwrap();
    }
    assert_eq!(catalog.chunks.len(), 16_000);
    for slice in 0..SLICES {
        let chunk = catalog.chunk_at(table, &[slice * 10 + 9, hashes[2]]).unwrap();
        assert_eq!(chunk.time().start(), slice * 10);
        assert!(chunk.slices[1].contains(hashes[2]));
    }
    let range = TimeRange::new(55, 81).unwrap();
    let starts: Vec<i64> =
        catalog.chunks_overlapping(table, &range).map(|chunk| chunk.time().start()).collect();
    assert_eq!(starts, [[50; 4], [60; 4], [70; 4], [80; 4]].concat());
    assert_eq!(catalog.chunk_at(table, &[SLICES * 10, 0]), None);
    let held: Vec<u64> = (1..4).map(|id| catalog.index.replicas[&(table, NodeId(id))]).collect();
    assert_eq!(held, [12_000, 12_000, 8_000], "four buckets on three nodes, two replicas each");
}
