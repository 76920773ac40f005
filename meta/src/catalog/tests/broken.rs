//! Each invariant, broken once: a check that was never seen failing proves nothing.

use hypertide_proto::{
    decision::Fate,
    ids::{
        AccessId, Boot, ChunkId, Csn, DiskId, Epoch, Generation, NodeId, TableId, TxnId, WriteId,
    },
    schema::{Column, ColumnType, TableSchema},
    time::TimeRange,
};

use super::Kept;
use crate::catalog::{
    Catalog, Changes, Chunk, Command, CommitPart, CommitRecord, HypertableSpec, Joiner, TableKind,
    apply::Step, index::Index,
};

/// Two nodes, a hypertable `t1` with chunks `c1` and `c2`, and one commit in each with a write id.
fn whole() -> Catalog {
    let mut kept = Kept::default();
    let (at, id) = (|| "host:1".to_owned(), AccessId(1));
    let access = Command::RegisterAccess { id, rpc: at(), pg: at(), flight: at(), http: at() };
    let data = |disk| Command::RegisterData {
        rid: None,
        name: String::new(),
        disk: DiskId([disk; 16]),
        rpc: at(),
        http: at(),
    };
    let time = Column::new("time", ColumnType::BigInt);
    let create = Command::CreateTable {
        schema: "public".to_owned(),
        name: "t".to_owned(),
        owner: "ann".to_owned(),
        columns: TableSchema::of(vec![time]),
        if_not_exists: false,
    };
    let spec = HypertableSpec {
        distributed: true,
        time_column: "time".to_owned(),
        interval: 10,
        space: None,
        replication_factor: 2,
        data_nodes: None,
        chunk_schema: None,
        chunk_prefix: None,
    };
    let table = TableId(1);
    let cut = Command::CreateHypertable { table, spec, if_not_exists: false };
    let chunks = Command::EnsureChunks { table, points: vec![vec![0], vec![10]] };
    for command in [access, data(1), data(2), create, cut, chunks] {
        kept.apply(&command).unwrap();
    }
    for number in 1..3 {
        let chunk = kept.catalog.chunk(ChunkId(number)).unwrap();
        let (acks, epoch) = (chunk.in_sync.clone(), Epoch(0));
        let part = CommitPart {
            chunk: chunk.id,
            epoch,
            acks,
            hash: 1,
            rows: 1,
            table_version: 2,
            keyed: false,
        };
        let txn = TxnId { access: AccessId(1), boot: Boot(1), seq: number };
        let write = Some((WriteId([number as u8; 16]), 1));
        kept.apply(&Command::Commit(CommitRecord { txn, write, parts: vec![part] })).unwrap();
    }
    kept.catalog
}

/// Breaks a whole catalog, with an index that follows, and asserts which rule says so.
fn assert_broken(rule: &str, harm: impl FnOnce(&mut Catalog)) {
    let mut catalog = whole();
    harm(&mut catalog);
    catalog.index = Index::of(&catalog);
    assert_eq!(catalog.check().map_err(|broken| broken.rule), Err(rule));
}

fn assert_broken_chunk(rule: &str, harm: impl FnOnce(&mut Chunk)) {
    assert_broken(rule, |catalog| harm(catalog.chunks.get_mut(&ChunkId(2)).unwrap()));
}

#[test]
fn tables_that_break_a_rule_are_found() {
    let rule = "a table has valid columns and dimensions";
    let table = |harm: fn(&mut crate::catalog::Hypertable)| {
        assert_broken(rule, |catalog| {
            let table = catalog.tables.get_mut(&TableId(1)).unwrap();
            let TableKind::Hypertable(made) = &mut table.kind else { panic!("a hypertable") };
            harm(made);
        });
    };
    table(|made| made.dimensions.clear());
    table(|made| made.dimensions.extend(made.dimensions.clone()));
    table(|made| made.dimensions[0].column = "gone".to_owned());
    table(|made| made.replication_factor = 0);
    table(|made| made.min_in_sync = 0);
    table(|made| made.data_nodes.push(NodeId(9)));
    table(|made| made.data_nodes.reverse());
    assert_broken(rule, |catalog| {
        catalog.tables.get_mut(&TableId(1)).unwrap().columns.columns[0].nullable = true;
    });
}

#[test]
fn chunks_that_break_a_rule_are_found() {
    let rule = "a chunk has a box in its table and distinct members";
    assert_broken_chunk(rule, |chunk| chunk.table = TableId(9));
    assert_broken_chunk(rule, |chunk| chunk.slices.clear());
    assert_broken_chunk(rule, |chunk| chunk.in_sync.clear());
    assert_broken_chunk(rule, |chunk| {
        chunk.joining.push(Joiner { rid: chunk.in_sync[0], csn: Csn(0), chain: 0 })
    });
    assert_broken_chunk(rule, |chunk| chunk.in_sync[0].node = NodeId(9));
    assert_broken_chunk(rule, |chunk| chunk.last_csn = Csn(0));
    let boxes = "boxes do not overlap";
    assert_broken_chunk(boxes, |chunk| chunk.slices = vec![TimeRange::new(5, 15).unwrap()]);
    assert_broken_chunk(boxes, |chunk| {
        // A later generation of the same box, while the earlier is open still.
        chunk.slices = vec![TimeRange::new(0, 10).unwrap()];
        chunk.generation = Generation(2);
    });
    assert_broken_chunk("names are unique", |chunk| {
        chunk.name = "_dist_hyper_1_1_chunk".to_owned()
    });
}

#[test]
fn nodes_and_ids_that_break_a_rule_are_found() {
    let alone = "data nodes have a name and a disk of their own";
    let node = |catalog: &mut Catalog| catalog.data_nodes.get_mut(&NodeId(2)).cloned().unwrap();
    assert_broken(alone, |catalog| {
        let (id, mut two) = (NodeId(2), node(catalog));
        two.disk = DiskId([1; 16]);
        catalog.data_nodes.insert(id, two);
    });
    let given = "ids are those that were given";
    assert_broken(given, |catalog| catalog.counters.chunk = ChunkId(1));
    assert_broken(given, |catalog| catalog.counters.table = TableId(0));
    assert_broken(given, |catalog| catalog.counters.node = NodeId(1));
    assert_broken(given, |catalog| catalog.counters.dimension = Default::default());
}

#[test]
fn transactions_that_break_a_rule_are_found() {
    let rule = "decisions agree with chunks";
    let second = TxnId { access: AccessId(1), boot: Boot(1), seq: 2 };
    let harm = |harm: fn(&mut Csn, &mut Csn)| {
        assert_broken(rule, |catalog| {
            let decided = catalog.decided.get_mut(&second).unwrap();
            let Fate::Committed { csn, links } = &mut decided.fate else { panic!("committed") };
            harm(csn, &mut links[0].prev);
        });
    };
    harm(|csn, _| *csn = Csn(7));
    harm(|csn, _| *csn = Csn(99));
    harm(|csn, prev| *prev = *csn);
    assert_broken(rule, |catalog| {
        catalog.tails.entry(ChunkId(2)).or_default().floor = Csn(99);
    });
    assert_broken("a commit has one write id", |catalog| {
        catalog.writes.get_mut(&WriteId([2; 16])).unwrap().csn = Csn(7);
    });
    let runs = "runs of ended transactions are maximal and of living boots";
    let run = |ended: &[(u64, u64, u64)]| {
        assert_broken(runs, |catalog| {
            for (boot, first, last) in ended {
                catalog.ended.insert((AccessId(1), Boot(*boot), *first), *last);
            }
        });
    };
    run(&[(2, 1, 2)]);
    run(&[(1, 5, 4)]);
    run(&[(1, 5, 6), (1, 7, 7)]);
}

#[test]
fn an_index_that_lags_is_found() {
    let mut catalog = whole();
    catalog.chunks.remove(&ChunkId(2));
    let broken = catalog.check().unwrap_err();
    assert_eq!(broken.rule, "the index follows from the rows");
    assert_eq!(whole().check(), Ok(()));
}

/// What a debug build checks after each command finds harm in the rows that it touched.
#[test]
fn touched_rows_are_checked() {
    let mut catalog = whole();
    let mut chunk = catalog.chunk(ChunkId(1)).unwrap().clone();
    chunk.in_sync.clear();
    let mut step = Step { csn: Csn(0), at_ms: 0, changes: Changes::default() };
    catalog.put_chunk(chunk, &mut step);
    assert!(catalog.check_touched(&step.changes).is_err());
    assert_eq!(catalog.check_touched(&Changes::default()), Ok(()));
}
