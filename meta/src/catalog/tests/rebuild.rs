//! The catalog made anew from what data nodes keep, against the catalog that was lost.

use std::collections::BTreeSet;

use hypertide_proto::ids::{AccessId, Boot, ChunkId, Csn, DiskId, Incarnation, NodeId, Rid, TxnId};
use proptest::{collection::vec, prelude::*, strategy::ValueTree};

use super::{
    Kept,
    laws::{draft, finish, founded},
};
use crate::catalog::{
    Catalog, Chunk, ChunkOrigin, ChunkState, Command,
    rebuild::{CatalogRemains, Finding, NodeRemains, Refusal, ReplicaRemains, Terms, rebuild},
};

const NOW_MS: u64 = 1 << 50;

/// What the data nodes of a catalog keep, when each replica has just the commits that the catalog knows it to have.
fn remains(catalog: &Catalog) -> Vec<NodeRemains> {
    let definitions = catalog.definitions();
    let of = |rid: Rid| {
        let held = |chunk: &Chunk| {
            let left = || chunk.left.iter().find(|(other, _)| *other == rid).map(|(_, csn)| *csn);
            let csn = chunk.in_sync.contains(&rid).then_some(chunk.last_csn).or_else(left)?;
            let chain = if csn == chunk.last_csn { chunk.chain } else { u128::from(csn.0) };
            Some(ReplicaRemains {
                chunk: chunk.id,
                origin: ChunkOrigin::of(chunk).to_bytes(),
                csn,
                chain,
                rows: chunk.rows,
                damaged: false,
                compressed: None,
            })
        };
        catalog.chunks().filter_map(held).collect::<Vec<_>>()
    };
    let nodes = catalog.data_nodes().map(|node| NodeRemains {
        rid: node.rid,
        name: node.name.clone(),
        disk: node.disk,
        definitions: Some((7, definitions.clone())),
        chunks: of(node.rid),
    });
    nodes.collect()
}

fn terms() -> Terms {
    Terms { now_ms: NOW_MS, access: AccessId(9), ..Terms::default() }
}

/// A hypertable with two replicas a chunk, on three nodes, and rows.
fn written() -> Kept {
    let drafts = vec(draft(), 100..101);
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..1_000 {
        let tree = drafts.new_tree(&mut runner).expect("there are commands");
        let mut kept = founded();
        for draft in tree.current() {
            let command = finish(&draft, &mut kept);
            command.into_iter().for_each(|command| drop(kept.apply(&command)));
        }
        if kept.catalog.chunks().any(is_twice) {
            return kept;
        }
    }
    panic!("no random catalog has a chunk with rows on two nodes");
}

fn is_twice(chunk: &Chunk) -> bool {
    chunk.in_sync.len() > 1 && chunk.last_csn > Csn(0) && !chunk.slices.is_empty()
}

/// A hypertable's chunk with rows that is in sync on two nodes.
fn twice(catalog: &Catalog) -> Chunk {
    catalog.chunks().find(|chunk| is_twice(chunk)).expect("there is one").clone()
}

fn replica(nodes: &mut [NodeRemains], rid: Rid, chunk: ChunkId) -> &mut ReplicaRemains {
    let node = nodes.iter_mut().find(|node| node.rid == rid).expect("the node is there");
    node.chunks.iter_mut().find(|replica| replica.chunk == chunk).expect("it has the chunk")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What is made anew is sound, has every table and every chunk that has a row, misses no commit, lets no replica be
    /// in sync that does, and closes every transaction that there was.
    #[test]
    fn nothing_is_lost_with_the_access_nodes(drafts in vec(draft(), 1..120)) {
        let mut kept = founded();
        for draft in &drafts {
            let command = finish(draft, &mut kept);
            command.into_iter().for_each(|command| drop(kept.apply(&command)));
        }
        let old = kept.catalog;
        let new = rebuild(&remains(&old), &[], &terms()).expect("all is there").catalog;
        prop_assert!(old.tables().map(|table| table.id).eq(new.tables().map(|table| table.id)));
        for chunk in old.chunks().filter(|chunk| chunk.last_csn > Csn(0)) {
            // Of a damaged one what is left is taken for all there is: nobody is there who knows of more.
            let Some(again) = new.chunk(chunk.id) else {
                prop_assert!(chunk.in_sync.is_empty() && chunk.left.is_empty(), "{chunk} is gone");
                continue;
            };
            prop_assert_eq!(ChunkOrigin::of(chunk), ChunkOrigin::of(again));
            if chunk.state == ChunkState::Damaged {
                continue;
            }
            prop_assert_eq!((chunk.last_csn, chunk.chain), (again.last_csn, again.chain));
            let complete: BTreeSet<Rid> = chunk.in_sync.iter().copied().chain(chunk.complete_left()).collect();
            let in_sync: BTreeSet<Rid> = again.in_sync.iter().copied().collect();
            prop_assert_eq!(in_sync, complete);
        }
        for access in old.access_nodes() {
            let txn = TxnId { access: access.id, boot: Boot(access.boot.0 + 1), seq: 1 };
            prop_assert!(new.fenced(txn), "{} goes on", txn);
        }
        let given = old.chunks().map(|chunk| chunk.id).max().unwrap_or_default();
        let kept_one = new.chunks().any(|chunk| chunk.id == given);
        prop_assert!(!kept_one || new.counters.chunk > given);
    }
}

#[test]
fn the_replica_with_most_commits_counts_and_the_others_catch_up() {
    let old = written().catalog;
    let chunk = twice(&old);
    let mut nodes = remains(&old);
    let (ahead, behind) = (chunk.in_sync[0], chunk.in_sync[1]);
    let further = Csn(chunk.last_csn.0 + 5);
    let replica = replica(&mut nodes, ahead, chunk.id);
    (replica.csn, replica.chain) = (further, 77);
    let rebuilt = rebuild(&nodes, &[], &terms()).expect("all is there");
    let again = rebuilt.catalog.chunk(chunk.id).expect("it is there");
    assert_eq!((again.last_csn, again.chain), (further, 77));
    assert_eq!(again.in_sync, [ahead]);
    assert!(again.left.contains(&(behind, chunk.last_csn)), "{again}");
    let name = old.data_node(behind.node).expect("it is known").name.clone();
    let told = |finding: &Finding| matches!(finding, Finding::Behind(_, node) if *node == name);
    assert!(rebuilt.findings.iter().any(told), "{:?}", rebuilt.findings);
    assert!(rebuilt.index > further.index(), "the log goes on after all that was seen");
}

#[test]
fn damaged_replicas_do_not_count_and_of_two_histories_one_goes() {
    let old = written().catalog;
    let chunk = twice(&old);
    let mut nodes = remains(&old);
    replica(&mut nodes, chunk.in_sync[0], chunk.id).damaged = true;
    let again = rebuild(&nodes, &[], &terms()).expect("all is there").catalog;
    let again = again.chunk(chunk.id).expect("it is there");
    assert!(
        !again.in_sync.contains(&chunk.in_sync[0]) && again.in_sync.contains(&chunk.in_sync[1])
    );

    let mut nodes = remains(&old);
    chunk.in_sync.iter().for_each(|rid| replica(&mut nodes, *rid, chunk.id).damaged = true);
    let rebuilt = rebuild(&nodes, &[], &terms()).expect("all is there");
    let again = rebuilt.catalog.chunk(chunk.id).expect("it is there");
    assert_eq!((again.state, again.last_csn), (ChunkState::Damaged, chunk.last_csn));
    assert!(rebuilt.findings.iter().any(|finding| matches!(finding, Finding::Damaged(_))));

    let mut nodes = remains(&old);
    replica(&mut nodes, chunk.in_sync[0], chunk.id).chain ^= 1;
    let rebuilt = rebuild(&nodes, &[], &terms()).expect("all is there");
    let again = rebuilt.catalog.chunk(chunk.id).expect("it is there");
    assert!(again.in_sync.len() < chunk.in_sync.len() && !again.in_sync.is_empty(), "{again}");
    assert!(rebuilt.findings.iter().any(|finding| matches!(finding, Finding::Differs(..))));
}

#[test]
fn nothing_is_given_up_without_being_told_to() {
    let old = written().catalog;
    let chunk = twice(&old);
    let all = remains(&old);
    let lost = all.last().expect("there are nodes").name.clone();
    let rest = &all[..all.len() - 1];
    assert_eq!(rebuild(rest, &[], &terms()).unwrap_err(), Refusal::Missing(vec![lost.clone()]));
    let without = Terms { without: [lost.clone()].into(), ..terms() };
    let rebuilt = rebuild(rest, &[], &without).expect("it was given up");
    assert!(rebuilt.findings.contains(&Finding::Lost(lost.clone())));
    assert_eq!(rebuild(&all, &[], &without).unwrap_err(), Refusal::NotLost(lost));

    // A table that was made after the copies were, or dropped before.
    let mut nodes = all.clone();
    let strange =
        ChunkOrigin { table: hypertide_proto::ids::TableId(99), ..ChunkOrigin::of(&chunk) };
    for rid in &chunk.in_sync {
        replica(&mut nodes, *rid, chunk.id).origin = strange.to_bytes();
    }
    for node in &mut nodes {
        node.chunks
            .retain(|replica| replica.chunk != chunk.id || chunk.in_sync.contains(&node.rid));
    }
    assert_eq!(rebuild(&nodes, &[], &terms()).unwrap_err(), Refusal::Unknown(vec![chunk.id]));
    let forgetting = Terms { forget_unknown: true, ..terms() };
    let rebuilt = rebuild(&nodes, &[], &forgetting).expect("it was given up");
    assert!(rebuilt.catalog.chunk(chunk.id).is_none());

    let mut nodes = all.clone();
    nodes.iter_mut().for_each(|node| node.definitions = None);
    assert_eq!(rebuild(&nodes, &[], &terms()).unwrap_err(), Refusal::NoDefinitions);
    let mut nodes = all.clone();
    nodes[0].definitions = Some((8, vec![0xc1]));
    assert!(matches!(rebuild(&nodes, &[], &terms()).unwrap_err(), Refusal::Definitions(..)));
    let mut nodes = all.clone();
    nodes.push(all[0].clone());
    assert_eq!(rebuild(&nodes, &[], &terms()).unwrap_err(), Refusal::Twice(all[0].name.clone()));
}

#[test]
fn the_newest_copy_counts_and_disks_say_who_they_are() {
    let mut kept = written();
    let mut nodes = remains(&kept.catalog);
    let more = Command::CreateTable {
        schema: "public".to_owned(),
        name: "later".to_owned(),
        owner: "ann".to_owned(),
        columns: hypertide_proto::schema::TableSchema::default(),
        if_not_exists: false,
    };
    kept.apply(&more).expect("a new name");
    let last = nodes.last_mut().expect("there are nodes");
    last.definitions = Some((8, kept.catalog.definitions()));
    // It registered anew after the copy was made, and so did a node that the copy does not know.
    last.rid.incarnation = Incarnation(50);
    last.disk = DiskId([50; 16]);
    let reset = last.rid;
    let unknown = Rid { node: NodeId(77), incarnation: Incarnation(1) };
    nodes.push(NodeRemains {
        rid: unknown,
        name: "d77".to_owned(),
        disk: DiskId([77; 16]),
        definitions: None,
        chunks: Vec::new(),
    });
    let again = rebuild(&nodes, &[], &terms()).expect("all is there").catalog;
    assert!(again.table_named("public", "later").is_some());
    assert_eq!(again.data_node(reset.node).map(|node| node.rid), Some(reset));
    assert_eq!(again.data_node(unknown.node).map(|node| node.rid), Some(unknown));
}

#[test]
fn chunks_that_are_made_change_no_copy() {
    let mut kept = written();
    let before = kept.catalog.clone();
    let table = twice(&before).table;
    let copy = kept.catalog.definitions();
    let point = |catalog: &Catalog| {
        let taken = catalog.chunks_of(table).map(|chunk| chunk.time().end());
        taken.filter(|end| *end < i64::MAX).max().unwrap_or(0)
    };
    let points = vec![vec![point(&before), 0]];
    let made = kept.apply(&Command::EnsureChunks { table, points }).expect("a chunk is made");
    assert!(matches!(made, crate::catalog::Outcome::Chunks(_)));
    assert!(kept.catalog.chunks().count() > before.chunks().count());
    assert_eq!(kept.catalog.definitions(), copy);
    assert!(!kept.catalog.shares_definitions(&Catalog::default()));
    assert!(before.shares_definitions(&before.clone()));
}

#[test]
fn the_next_chunk_has_a_name_of_its_own() {
    let old = written().catalog;
    let mut nodes = remains(&old);
    let chunk = twice(&old);
    let table = old.table(chunk.table).expect("it is there");
    let made = table.hypertable().expect("its chunk has slices");
    let origin = ChunkOrigin {
        name: format!("{}_{}_chunk", made.chunk_prefix, made.next_chunk + 3),
        ..ChunkOrigin::of(&chunk)
    };
    let all = nodes.iter_mut().flat_map(|node| &mut node.chunks);
    all.filter(|replica| replica.chunk == chunk.id)
        .for_each(|replica| replica.origin = origin.to_bytes());
    let again = rebuild(&nodes, &[], &terms()).expect("all is there").catalog;
    let again = again.table(chunk.table).and_then(|table| table.hypertable());
    assert_eq!(again.map(|again| again.next_chunk), Some(made.next_chunk + 4));
}

#[test]
fn an_access_node_that_is_left_knows_more() {
    let old = written().catalog;
    let chunk = twice(&old);
    let index = chunk.last_csn.index().max(7);
    let known = |catalog: Catalog| CatalogRemains { index: index + 1, catalog };
    // A chunk that was dropped while a node was away does not come back.
    let mut dropped = Kept { catalog: old.clone(), csn: chunk.last_csn, ..Kept::default() };
    let drop = Command::DropChunks { table: chunk.table, chunks: vec![chunk.id] };
    let mut changes = crate::catalog::Changes::default();
    let csn = Csn::at(index + 1, 0);
    dropped.catalog.apply(&drop, csn, 0, &mut changes).expect("it is there");
    let nodes = remains(&old);
    let rebuilt =
        rebuild(&nodes, &[known(dropped.catalog.clone())], &terms()).expect("all is there");
    assert!(rebuilt.catalog.chunk(chunk.id).is_none());
    assert!(rebuilt.findings.contains(&Finding::Dropped(chunk.id)), "{:?}", rebuilt.findings);
    // One that has commits which that node never heard of was made since.
    let mut later = remains(&old);
    for rid in &chunk.in_sync {
        replica(&mut later, *rid, chunk.id).csn = Csn::at(index + 5, 0);
    }
    let rebuilt = rebuild(&later, &[known(dropped.catalog)], &terms()).expect("all is there");
    assert!(rebuilt.catalog.chunk(chunk.id).is_some());
    // What it knows to have been committed and no data node has is told.
    let mut short = remains(&old);
    let held = Csn(chunk.last_csn.0 - 1);
    for node in &mut short {
        let all = node.chunks.iter_mut().filter(|replica| replica.chunk == chunk.id);
        all.for_each(|replica| (replica.csn, replica.chain) = (held, 5));
    }
    let rebuilt = rebuild(&short, &[known(old.clone())], &terms()).expect("all is there");
    let told = |finding: &Finding| matches!(finding, Finding::Short(_, from, to) if (*from, *to) == (held, chunk.last_csn));
    assert!(rebuilt.findings.iter().any(told), "{:?}", rebuilt.findings);
    assert!(rebuilt.catalog.writes.values().all(|write| write.csn <= held));
    let whole = rebuild(&nodes, &[known(old.clone())], &terms()).expect("all is there");
    assert_eq!(whole.catalog.writes, old.writes);
}
