//! Every invariant of the catalog, one function each.
//!
//! [`Catalog::check`] takes time in proportion to the catalog, and some more for boxes: it is for tests and tools.
//! After each command a debug build checks the tables and chunks that the command touched.

use std::collections::BTreeSet;

use hypertide_proto::{
    decision::Fate,
    ids::{Csn, Rid},
};

use super::{Catalog, Changes, Chunk, ChunkState, Hypertable, RowKey, Rule, Table, index::Index};

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {what}")]
pub struct Broken {
    /// The invariant.
    pub rule: &'static str,
    /// What breaks it.
    pub what: String,
}

type Check = Result<(), Broken>;

impl Catalog {
    /// Checks every invariant.
    pub fn check(&self) -> Check {
        self.tables.values().try_for_each(|table| self.check_table(table))?;
        self.chunks.values().try_for_each(|chunk| self.check_chunk(chunk))?;
        self.check_ids()?;
        self.check_names()?;
        self.check_nodes()?;
        self.check_boxes()?;
        self.check_decisions()?;
        self.check_write_ids()?;
        self.check_runs()?;
        self.check_orders()?;
        self.check_jobs()?;
        self.check_index()
    }

    /// Checks the tables and chunks among the changed rows.
    pub(crate) fn check_touched(&self, changes: &Changes) -> Check {
        changes.keys().try_for_each(|key| match key {
            RowKey::Table(id) => self.tables.get(id).map_or(Ok(()), |row| self.check_table(row)),
            RowKey::Chunk(id) => self.chunks.get(id).map_or(Ok(()), |row| self.check_chunk(row)),
            _ => Ok(()),
        })
    }

    /// The columns are valid, and what makes it a hypertable is.
    fn check_table(&self, table: &Table) -> Check {
        const RULE: &str = "a table has valid columns and dimensions";
        let says = |what: &str| format!("{table}: {what}");
        hold(RULE, table.columns.check().is_ok(), || says("columns"))?;
        let Some(made) = table.hypertable() else { return Ok(()) };
        let of_time = |rule: &Rule| matches!(rule, Rule::Time { interval, .. } if *interval > 0);
        let mut rules = made.dimensions.iter().map(|dimension| &dimension.rule);
        hold(RULE, rules.next().is_some_and(of_time), || says("first dimension"))?;
        hold(RULE, !rules.any(of_time), || says("second dimension of time"))?;
        let time = made.dimensions.first().and_then(|first| table.columns.column(&first.column));
        hold(RULE, time.is_some_and(|column| !column.nullable), || says("time column"))?;
        hold(RULE, made.replication_factor >= 1, || says("replication factor"))?;
        hold(RULE, (1..=made.replication_factor).contains(&made.min_in_sync), || {
            says("min_in_sync")
        })?;
        let known = |made: &Hypertable| {
            let buckets = made.dimensions.iter().flat_map(|dimension| match &dimension.rule {
                Rule::Hash { buckets } => buckets.as_slice(),
                Rule::Time { .. } => &[],
            });
            let mut nodes = buckets.flatten().chain(&made.data_nodes);
            nodes.all(|node| self.data_nodes.contains_key(node))
        };
        hold(RULE, known(made), || says("unknown node"))?;
        hold(RULE, made.data_nodes.is_sorted_by(|a, b| a < b), || says("order of nodes"))?;
        let unasked = made.attached_unasked.iter().all(|node| made.data_nodes.contains(node));
        hold(RULE, unasked, || says("nodes attached unasked"))?;
        let blocked = made.blocked.iter().all(|node| made.data_nodes.contains(node))
            && made.blocked.is_sorted_by(|a, b| a < b);
        hold(RULE, blocked, || says("blocked nodes"))
    }

    /// Its table exists with as many dimensions as it has slices; its members are distinct known nodes, and there is
    /// one in sync unless it is damaged.
    fn check_chunk(&self, chunk: &Chunk) -> Check {
        const RULE: &str = "a chunk has a box in its table and distinct members";
        let says = |what: &str| format!("{chunk}: {what}");
        let table = self.tables.get(&chunk.table);
        hold(RULE, table.is_some(), || says("table"))?;
        let arity = table.map_or(0, Table::arity);
        hold(RULE, chunk.slices.len() == arity, || says("number of slices"))?;
        let damaged = chunk.state == ChunkState::Damaged;
        hold(RULE, damaged == chunk.in_sync.is_empty(), || says("in-sync set"))?;
        let distinct: BTreeSet<_> = chunk.nodes().collect();
        hold(RULE, distinct.len() == chunk.nodes().count(), || says("members"))?;
        let known = chunk.nodes().all(|node| self.data_nodes.contains_key(&node));
        hold(RULE, known, || says("unknown node"))?;
        hold(RULE, (chunk.last_csn == Csn(0)) == (chunk.chain == 0), || says("chain"))?;
        self.check_joining_and_left(chunk)
    }

    /// Who joined or left did so at a commit there was; who left is no longer in sync, and stands once.
    fn check_joining_and_left(&self, chunk: &Chunk) -> Check {
        const RULE: &str = "replicas join and leave a chunk at one of its commits";
        let says = |what: &str| format!("{chunk}: {what}");
        let joined = chunk.joining.iter().map(|joiner| (joiner.csn, joiner.chain));
        let at_end = |csn, chain| csn == chunk.last_csn && chain != chunk.chain;
        let mut wrong = joined.map(|(csn, chain)| csn > chunk.last_csn || at_end(csn, chain));
        hold(RULE, !wrong.any(|wrong| wrong), || says("joining"))?;
        let left: BTreeSet<_> = chunk.left.iter().map(|(rid, _)| rid.node).collect();
        hold(RULE, left.len() == chunk.left.len(), || says("left twice"))?;
        for (rid, csn) in &chunk.left {
            let known = self.data_nodes.get(&rid.node).is_some_and(|node| node.rid == *rid);
            hold(RULE, known && *csn <= chunk.last_csn, || says("left"))?;
            let in_sync = chunk.in_sync.iter().any(|other| other.node == rid.node);
            hold(RULE, !in_sync, || says("left and in sync"))?;
        }
        let current = |rid: Rid| self.data_nodes.get(&rid.node).is_some_and(|node| node.rid == rid);
        hold(RULE, chunk.members().all(current), || says("a disk that is gone"))
    }

    /// An order is for a chunk and nodes that exist, and its operation is its own.
    fn check_jobs(&self) -> Check {
        const RULE: &str = "jobs are of hypertables there are";
        self.jobs.values().try_for_each(|job| {
            let made = self.tables.get(&job.table).and_then(Table::hypertable);
            hold(RULE, made.is_some() && job.id <= self.counters.job, || job.to_string())
        })
    }

    fn check_orders(&self) -> Check {
        const RULE: &str = "orders are for chunks and nodes there are";
        let mut operations = BTreeSet::new();
        for ((chunk, target), order) in &self.orders {
            let mut nodes = order.source.iter().chain([target]);
            let nodes = nodes.all(|node| self.data_nodes.contains_key(node));
            let own = (*chunk, *target) == (order.chunk, order.target);
            let known = self.chunks.contains_key(chunk) && nodes && own;
            hold(RULE, known && operations.insert(&order.operation), || order.to_string())?;
        }
        Ok(())
    }

    /// No id is greater than the last that was given, and each row stands under its own.
    fn check_ids(&self) -> Check {
        const RULE: &str = "ids are those that were given";
        for (id, table) in &self.tables {
            hold(RULE, *id == table.id && *id <= self.counters.table, || id.to_string())?;
            let dimensions = table.hypertable().map_or(&[][..], |made| &made.dimensions);
            for dimension in dimensions {
                let given = dimension.id <= self.counters.dimension;
                hold(RULE, given, || dimension.to_string())?;
            }
        }
        for (id, chunk) in &self.chunks {
            hold(RULE, *id == chunk.id && *id <= self.counters.chunk, || id.to_string())?;
        }
        for (id, node) in &self.data_nodes {
            hold(RULE, *id == node.id() && *id <= self.counters.node, || id.to_string())?;
        }
        Ok(())
    }

    /// Names are unique: of tables within a schema, and of chunks within theirs.
    fn check_names(&self) -> Check {
        const RULE: &str = "names are unique";
        let mut names = BTreeSet::new();
        for table in self.tables.values() {
            hold(RULE, names.insert((&table.schema, &table.name)), || table.to_string())?;
        }
        let mut names = BTreeSet::new();
        for chunk in self.chunks.values() {
            let made = self.tables.get(&chunk.table).and_then(Table::hypertable);
            let schema = made.map_or("", |made| &made.chunk_schema);
            hold(RULE, names.insert((schema, &chunk.name)), || chunk.to_string())?;
        }
        Ok(())
    }

    /// No two data nodes have one name or one disk.
    fn check_nodes(&self) -> Check {
        const RULE: &str = "data nodes have a name and a disk of their own";
        let (mut names, mut disks) = (BTreeSet::new(), BTreeSet::new());
        for node in self.data_nodes.values() {
            let alone = names.insert(&node.name) && disks.insert(node.disk);
            hold(RULE, alone, || node.to_string())?;
        }
        Ok(())
    }

    /// Boxes of one table are disjoint, or the same in different generations of which one at most is open; time
    /// slices are disjoint or the same. Chunks come in order of their boxes, so that only neighbours in time meet.
    fn check_boxes(&self) -> Check {
        const RULE: &str = "boxes do not overlap";
        let mut mates: Vec<&Chunk> = Vec::new();
        for chunk in self.index.corners.iter().filter_map(|corner| self.chunks.get(&corner.3)) {
            let together =
                |other: &&Chunk| other.table == chunk.table && other.time().overlaps(&chunk.time());
            mates.retain(together);
            for other in &mates {
                let says = || format!("{other} and {chunk}");
                hold(RULE, other.time() == chunk.time(), says)?;
                let meet = other.slices.iter().zip(&chunk.slices).all(|(a, b)| a.overlaps(b));
                let open = [other, &chunk].iter().all(|one| one.state == ChunkState::Open);
                let heirs = other.slices == chunk.slices && other.generation != chunk.generation;
                hold(RULE, !meet || (heirs && !open), says)?;
            }
            mates.push(chunk);
        }
        Ok(())
    }

    /// A commit has one transaction; its links stand in order and before it; the chunks there know of it.
    fn check_decisions(&self) -> Check {
        const RULE: &str = "decisions agree with chunks";
        let mut commits = BTreeSet::new();
        for (txn, decided) in &self.decided {
            let Fate::Committed { csn, links } = &decided.fate else { continue };
            let says = || format!("{txn} csn={csn}");
            hold(RULE, commits.insert(*csn), says)?;
            hold(RULE, links.iter().all(|link| link.prev < *csn), says)?;
            hold(RULE, links.is_sorted_by(|a, b| a.chunk < b.chunk), says)?;
            let mut chunks = links.iter().filter_map(|link| self.chunks.get(&link.chunk));
            hold(RULE, chunks.all(|chunk| *csn <= chunk.last_csn), says)?;
        }
        for (id, tail) in &self.tails {
            let chunk = self.chunks.get(id);
            let behind = chunk.is_some_and(|chunk| tail.floor <= chunk.last_csn);
            hold(RULE, behind, || format!("{id} {tail}"))?;
        }
        Ok(())
    }

    /// No two write ids have one commit.
    fn check_write_ids(&self) -> Check {
        const RULE: &str = "a commit has one write id";
        let mut commits = BTreeSet::new();
        for (id, write) in &self.writes {
            hold(RULE, commits.insert(write.csn), || format!("{id} csn={}", write.csn))?;
        }
        Ok(())
    }

    /// Runs of ended transactions are not empty, do not touch, and belong to boots that live.
    fn check_runs(&self) -> Check {
        const RULE: &str = "runs of ended transactions are maximal and of living boots";
        let mut before: Option<(_, _, u64)> = None;
        for ((access, boot, first), last) in &self.ended {
            let says = || format!("{access}{boot} {first}..={last}");
            let lives = self.access_nodes.get(access).is_some_and(|node| node.boot == *boot);
            hold(RULE, first <= last && lives, says)?;
            let apart = before.is_none_or(|(a, b, end)| {
                (a, b) != (access, boot) || end.saturating_add(1) < *first
            });
            hold(RULE, apart, says)?;
            before = Some((access, boot, *last));
        }
        Ok(())
    }

    /// What is kept beside the rows is what follows from them.
    fn check_index(&self) -> Check {
        let rebuilt = Index::of(self);
        hold("the index follows from the rows", rebuilt == self.index, || {
            format!("kept {:?}, rebuilt {rebuilt:?}", self.index)
        })
    }
}

fn hold(rule: &'static str, holds: bool, what: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(Broken { rule, what: what() }) }
}
