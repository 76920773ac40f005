//! Which data nodes a hypertable is spread over: attach, detach, delete, and how many replicas it has.
//!
//! A bucket of the placing dimension keeps its nodes when nodes come and go, but for the least that evens them out
//! ([`placement::rebucket`]). Only new chunks follow; replicas of those there are move by joins.

use std::fmt;

use hypertide_proto::{
    ids::{ChunkId, NodeId, Rid, TableId},
    partition::PARTITIONS_MAX,
};
use serde::{Deserialize, Serialize};

use super::{
    Catalog, Chunk, ChunkState, Hypertable, Outcome, Reject, RowKey, Rule, Table,
    apply::Step,
    compression::hypertable_of,
    hypertable::{check_factor, default_min_in_sync},
};
use crate::placement;

/// Something that an operator should read, though the command was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Whether it says that something is worse than it was, and not only what was done.
    pub warning: bool,
    /// In words.
    pub text: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", if self.warning { "WARNING" } else { "NOTICE" }, self.text)
    }
}

/// What detaching may do beside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detach {
    /// Whether a node that is not attached is an answer instead of a refusal.
    pub if_attached: bool,
    /// Whether chunks may be left with fewer replicas than they should have.
    pub force: bool,
    /// Whether the number of partitions follows that of the nodes.
    pub repartition: bool,
}

/// Notices of a command, in the order they arose.
#[derive(Debug, Default)]
struct Notices(Vec<Notice>);

impl Notices {
    fn notice(&mut self, text: String) {
        self.0.push(Notice { warning: false, text });
    }

    fn warning(&mut self, text: String) {
        self.0.push(Notice { warning: true, text });
    }
}

/// How the nodes of a hypertable change.
struct Spread<'a> {
    table: &'a Table,
    made: &'a Hypertable,
    nodes: Vec<NodeId>,
    repartition: bool,
}

impl Catalog {
    /// Spreads a hypertable over one more node.
    pub(crate) fn attach_data_node(
        &mut self,
        (name, table): (&str, TableId),
        if_not_attached: bool,
        repartition: bool,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let node = self.named_node(name)?.id();
        let table = self.existing(table)?;
        let made = hypertable_of(table)?;
        let (mut notices, mut next) = (Notices::default(), table.clone());
        if made.data_nodes.contains(&node) {
            if !made.attached_unasked.contains(&node) {
                let text = attached_already(name, &table.name);
                if !if_not_attached {
                    return Err(Reject::AlreadyAttached(text));
                }
                notices.notice(format!("{text}, skipping"));
                return Ok(Outcome::Nodes { changed: 0, notices: notices.0 });
            }
            let made = hypertable_mut(&mut next);
            made.attached_unasked.retain(|other| *other != node);
        } else {
            let nodes = made.data_nodes.iter().copied().chain([node]).collect();
            let spread = Spread { table, made, nodes, repartition };
            next = self.spread(&spread, &mut notices);
        }
        self.put_table(next, step);
        Ok(Outcome::Nodes { changed: 1, notices: notices.0 })
    }

    /// Attaches a new node to every hypertable that is attached to all the others there are.
    pub(crate) fn attach_everywhere(&mut self, node: NodeId, others: &[NodeId], step: &mut Step) {
        let everywhere = |table: &&Table| {
            let made = table.hypertable();
            made.is_some_and(|made| others.iter().all(|other| made.data_nodes.contains(other)))
        };
        let tables: Vec<Table> = self.tables.values().filter(everywhere).cloned().collect();
        for table in tables {
            let Some(made) = table.hypertable() else { continue };
            let nodes = made.data_nodes.iter().copied().chain([node]).collect();
            let spread = Spread { table: &table, made, nodes, repartition: true };
            // Nobody asked, so that nobody reads them.
            let mut next = self.spread(&spread, &mut Notices::default());
            hypertable_mut(&mut next).attached_unasked.push(node);
            self.put_table(next, step);
        }
    }

    /// Takes a node off one hypertable or all.
    pub(crate) fn detach_data_node(
        &mut self,
        name: &str,
        table: Option<TableId>,
        how: Detach,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let rid = self.named_node(name)?.rid;
        let mut notices = Notices::default();
        let attached = |table: &&Table| {
            table.hypertable().is_some_and(|made| made.data_nodes.contains(&rid.node))
        };
        let tables: Vec<TableId> = match table {
            None => self.tables.values().filter(attached).map(|table| table.id).collect(),
            Some(id) => {
                let table = self.existing(id)?;
                hypertable_of(table)?;
                if attached(&table) {
                    vec![id]
                } else if how.if_attached {
                    notices.notice(format!("{}, skipping", not_attached(name, &table.name)));
                    Vec::new()
                } else {
                    return Err(Reject::NotAttached(not_attached(name, &table.name)));
                }
            }
        };
        let plans = self.plan_detach((name, rid), &tables, how, &mut notices)?;
        let changed = plans.len() as u64;
        for next in plans {
            self.take_chunks_off(rid, next.id, step);
            self.put_table(next, step);
        }
        Ok(Outcome::Nodes { changed, notices: notices.0 })
    }

    /// Removes a node from the cluster, under the rules of detaching it from every table.
    pub(crate) fn delete_data_node(
        &mut self,
        name: &str,
        if_exists: bool,
        how: Detach,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let mut notices = Notices::default();
        let Some(node) = self.data_node_named(name) else {
            if !if_exists {
                return Err(Reject::UnknownNode(name.to_owned()));
            }
            notices.notice(format!("data node \"{name}\" does not exist, skipping"));
            return Ok(Outcome::Nodes { changed: 0, notices: notices.0 });
        };
        let rid = node.rid;
        let last = |chunk: &&Chunk| chunk.in_sync == [rid];
        if let Some(chunk) = self.chunks.values().find(last) {
            return Err(self.insufficient(chunk.table));
        }
        let attached = |table: &&Table| {
            table.hypertable().is_some_and(|made| made.data_nodes.contains(&rid.node))
        };
        let tables: Vec<TableId> =
            self.tables.values().filter(attached).map(|table| table.id).collect();
        let plans = self.plan_detach((name, rid), &tables, how, &mut notices)?;
        plans.into_iter().for_each(|next| self.put_table(next, step));
        // Also those of reference tables, which never need a node in particular.
        self.forget_disk(rid, step);
        let orders: Vec<(ChunkId, NodeId)> = self.orders_at(rid.node).collect();
        orders.into_iter().for_each(|key| self.remove_order(key, step));
        self.data_nodes.remove(&rid.node);
        step.changes.touch(RowKey::Data(rid.node));
        Ok(Outcome::Nodes { changed: 1, notices: notices.0 })
    }

    /// Checks the rules of detaching for each table; gives the tables as they are to be.
    fn plan_detach(
        &self,
        (name, rid): (&str, Rid),
        tables: &[TableId],
        how: Detach,
        notices: &mut Notices,
    ) -> Result<Vec<Table>, Reject> {
        let mut plans = Vec::new();
        for table in tables.iter().filter_map(|id| self.tables.get(id)) {
            let made = hypertable_of(table)?;
            let left: Vec<NodeId> =
                made.data_nodes.iter().copied().filter(|node| *node != rid.node).collect();
            let holds = |chunk: &&Chunk| {
                // What is left of a damaged chunk may be all there is of it.
                chunk.has_member(rid) || (chunk.state == ChunkState::Damaged && chunk.knows(rid))
            };
            let mut held = self.chunks_of(table.id).filter(holds);
            if self.chunks_of(table.id).any(|chunk| chunk.in_sync == [rid]) || left.is_empty() {
                return Err(self.insufficient(table.id));
            }
            let under_replicated =
                format!("distributed hypertable \"{}\" is under-replicated", table.name);
            if held.next().is_some() {
                if !how.force {
                    return Err(Reject::NodeHoldsData(format!(
                        "data node \"{name}\" still holds data for distributed hypertable \"{}\"",
                        table.name
                    )));
                }
                notices.warning(under_replicated);
            } else if left.len() < usize::from(made.replication_factor) {
                if !how.force {
                    return Err(self.insufficient(table.id));
                }
                notices.warning(under_replicated);
            }
            let spread = Spread { table, made, nodes: left, repartition: how.repartition };
            plans.push(self.spread(&spread, notices));
        }
        Ok(plans)
    }

    fn insufficient(&self, table: TableId) -> Reject {
        let name = self.tables.get(&table).map_or("", |table| &table.name);
        Reject::InsufficientNodes(format!(
            "insufficient number of data nodes for distributed hypertable \"{name}\""
        ))
    }

    fn take_chunks_off(&mut self, rid: Rid, table: TableId, step: &mut Step) {
        let held = |chunk: &&Chunk| chunk.knows(rid);
        let ids: Vec<ChunkId> = self.chunks_of(table).filter(held).map(|chunk| chunk.id).collect();
        for id in ids {
            let removed = self.remove_replica(id, rid, step);
            debug_assert!(removed.is_ok(), "the rules of detaching were checked: {removed:?}");
        }
    }

    /// Sets the number of replicas of new chunks; the leader evens out those there are.
    pub(crate) fn set_replication_factor(
        &mut self,
        table: TableId,
        factor: u16,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let table = self.existing(table)?;
        let made = hypertable_of(table)?;
        check_factor(&table.name, factor, made.data_nodes.len())?;
        let mut notices = Notices::default();
        if self.chunks_of(table.id).any(|chunk| chunk.in_sync.len() < usize::from(factor)) {
            notices.warning(format!("hypertable \"{}\" is under-replicated", table.name));
        }
        let mut next = table.clone();
        let made = hypertable_mut(&mut next);
        // A number that an operator chose stays, unless it can never be reached any more.
        let chosen = made.min_in_sync != default_min_in_sync(made.replication_factor);
        let wanted = if chosen { made.min_in_sync } else { default_min_in_sync(factor) };
        (made.replication_factor, made.min_in_sync) = (factor, wanted.min(factor));
        let nodes = made.data_nodes.clone();
        let made = made.clone();
        let spread = Spread { table: &next, made: &made, nodes, repartition: false };
        let next = self.spread(&spread, &mut Notices::default());
        self.put_table(next, step);
        Ok(Outcome::Nodes { changed: 1, notices: notices.0 })
    }

    /// Sets how many replicas in sync a commit asks for.
    pub(crate) fn set_min_in_sync(
        &mut self,
        table: TableId,
        wanted: u16,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let table = self.existing(table)?;
        let factor = hypertable_of(table)?.replication_factor;
        if !(1..=factor).contains(&wanted) {
            return Err(Reject::InvalidDimension(format!(
                "invalid number of replicas in sync {wanted}: hypertable \"{}\" has {factor}",
                table.name
            )));
        }
        let mut next = table.clone();
        hypertable_mut(&mut next).min_in_sync = wanted;
        self.put_table(next.clone(), step);
        Ok(Outcome::Table(Box::new(next), true))
    }

    /// The table spread over other nodes.
    fn spread(&self, spread: &Spread<'_>, notices: &mut Notices) -> Table {
        let Spread { table, made, nodes, repartition } = spread;
        let mut next = (*table).clone();
        let factor = made.replication_factor;
        let hypertable = hypertable_mut(&mut next);
        hypertable.data_nodes.clone_from(nodes);
        hypertable.data_nodes.sort_unstable();
        hypertable.data_nodes.dedup();
        hypertable.attached_unasked.retain(|node| nodes.contains(node));
        hypertable.blocked.retain(|node| nodes.contains(node));
        let by_name = self.by_name(&hypertable.data_nodes);
        let Some(placing) = hypertable.dimensions.get_mut(1) else { return next };
        let Rule::Hash { buckets } = &mut placing.rule else { return next };
        let (before, wanted) = (buckets.len(), by_name.len().min(usize::from(PARTITIONS_MAX)));
        let grows = by_name.len() > made.data_nodes.len();
        let shrinks = by_name.len() < made.data_nodes.len();
        // More partitions when a node would have none, fewer when there are not enough nodes for all.
        let follows = *repartition && ((grows && before < wanted) || (shrinks && before > wanted));
        let after = if follows { wanted } else { before };
        let (column, name) = (&placing.column, &table.name);
        if after != before {
            let verb = if after > before { "increased" } else { "decreased" };
            notices.notice(format!(
                "the number of partitions in dimension \"{column}\" of hypertable \"{name}\" was {verb} to {after}"
            ));
        } else if grows && before < wanted {
            notices.warning(format!(
                "insufficient number of partitions for dimension \"{column}\" of hypertable \"{name}\""
            ));
        }
        *buckets = placement::rebucket(buckets, &by_name, after, factor);
        next
    }

    /// The nodes in order of their names.
    fn by_name(&self, nodes: &[NodeId]) -> Vec<NodeId> {
        let mut named: Vec<_> = nodes.iter().filter_map(|id| self.data_nodes.get(id)).collect();
        named.sort_by(|one, other| one.name.cmp(&other.name));
        named.iter().map(|node| node.id()).collect()
    }
}

fn hypertable_mut(table: &mut Table) -> &mut Hypertable {
    table.hypertable_mut().expect("the table was seen to be a hypertable")
}

fn attached_already(node: &str, table: &str) -> String {
    format!("data node \"{node}\" is already attached to hypertable \"{table}\"")
}

fn not_attached(node: &str, table: &str) -> String {
    format!("data node \"{node}\" is not attached to hypertable \"{table}\"")
}
