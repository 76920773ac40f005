//! Keeping new chunks off data nodes: off one for every hypertable, or for single ones.
//!
//! Buckets keep their nodes meanwhile, and a blocked one is passed over: when it is allowed again, all is as before.

use std::fmt;

use hypertide_proto::ids::{NodeId, TableId};
use serde::{Deserialize, Serialize};

use super::{
    Catalog, DataNode, Hypertable, Notice, Outcome, Reject, Table, apply::Step,
    compression::hypertable_of,
};

/// Which new chunks a data node is to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// The node.
    pub node: NodeId,
    /// The hypertable whose chunks are meant; `None` for all of them.
    pub table: Option<TableId>,
    /// Whether it is to get none; otherwise it gets them again.
    pub block: bool,
    /// Whether fewer nodes than replicas may be left.
    pub force: bool,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, table, block, force } = self;
        write!(f, "{} {node}", if *block { "block" } else { "allow" })?;
        table.iter().try_for_each(|table| write!(f, " {table}"))?;
        f.write_str(if *force { " force" } else { "" })
    }
}

impl Catalog {
    /// Whether new chunks of the hypertable may be placed on the node.
    #[must_use]
    pub fn takes_chunks_of(&self, made: &Hypertable, node: &DataNode) -> bool {
        let id = node.id();
        node.takes_new_chunks() && made.data_nodes.contains(&id) && !made.blocked.contains(&id)
    }

    /// Takes new chunks off a node, or gives them back. The outcome counts the hypertables for which that is new.
    pub(crate) fn block_new_chunks(
        &mut self,
        wish: Block,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let unknown = || Reject::UnknownNode(wish.node.to_string());
        let node = self.data_nodes.get(&wish.node).ok_or_else(unknown)?.clone();
        let tables = self.meant(&node, wish.table)?;
        let mut notices = Vec::new();
        let blocked =
            |made: &Hypertable| node.block_new_chunks || made.blocked.contains(&wish.node);
        let changed = tables
            .iter()
            .filter_map(Table::hypertable)
            .filter(|made| blocked(made) != wish.block)
            .count() as u64;
        if wish.block {
            self.check_block(&tables, wish, &mut notices)?;
        }
        let whole = wish.table.is_none();
        // A node that is blocked as a whole, and not for this table, is blocked for each of the others.
        let spread = node.block_new_chunks && !whole && !wish.block;
        if whole || spread {
            let block_new_chunks = whole && wish.block;
            self.put_data(DataNode { block_new_chunks, ..node }, step);
        }
        let all: Vec<Table> = self.attached_to(wish.node).cloned().collect();
        for mut table in all {
            let meant = whole || wish.table == Some(table.id);
            let Some(made) = table.hypertable_mut() else { continue };
            let before = made.blocked.clone();
            made.blocked.retain(|other| *other != wish.node || !meant);
            if (meant && wish.block && !whole) || (!meant && spread) {
                made.blocked.push(wish.node);
                made.blocked.sort_unstable();
                made.blocked.dedup();
            }
            if made.blocked != before {
                self.put_table(table, step);
            }
        }
        Ok(Outcome::Nodes { changed, notices })
    }

    fn attached_to(&self, node: NodeId) -> impl Iterator<Item = &Table> {
        let attached = move |made: &Hypertable| made.data_nodes.contains(&node);
        self.tables.values().filter(move |table| table.hypertable().is_some_and(attached))
    }

    /// The hypertables that are meant: one that the node is attached to, or all of them.
    fn meant(&self, node: &DataNode, table: Option<TableId>) -> Result<Vec<Table>, Reject> {
        let Some(id) = table else { return Ok(self.attached_to(node.id()).cloned().collect()) };
        let table = self.existing(id)?;
        if !hypertable_of(table)?.data_nodes.contains(&node.id()) {
            return Err(Reject::NotAttached(format!(
                "data node \"{}\" is not attached to hypertable \"{}\"",
                node.name, table.name
            )));
        }
        Ok(vec![table.clone()])
    }

    /// As many nodes as replicas must be left for each hypertable, unless less is asked for.
    fn check_block(
        &self,
        tables: &[Table],
        wish: Block,
        notices: &mut Vec<Notice>,
    ) -> Result<(), Reject> {
        for table in tables {
            let made = hypertable_of(table)?;
            let free = |id: &&NodeId| {
                let node = self.data_nodes.get(*id);
                let whole = node.is_some_and(|node| node.block_new_chunks);
                **id != wish.node && !whole && !made.blocked.contains(id)
            };
            if made.data_nodes.iter().filter(free).count() >= usize::from(made.replication_factor) {
                continue;
            }
            let text = format!(
                "insufficient number of data nodes for distributed hypertable \"{}\"",
                table.name
            );
            if !wish.force {
                return Err(Reject::InsufficientNodes(text));
            }
            notices.push(Notice { warning: true, text });
        }
        Ok(())
    }
}
