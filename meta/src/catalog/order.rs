//! What operators asked for beside the rules: copies and moves of single chunks, and how rebalancing is done.
//!
//! An order is a row, so that the next leader goes on with it. A move is done when its row is gone; that of a copy stays
//! and keeps the extra replica from being taken for one too many.

use std::fmt;

use hypertide_proto::ids::{ChunkId, NodeId};
use serde::{Deserialize, Serialize};

use super::{Catalog, Outcome, Reject, RowKey, apply::Step};

/// Default of [`Rebalancing::bytes_per_second`].
const BYTES_PER_SECOND: u64 = 100 << 20;

/// A replica that an operator wants on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Name by which it is asked about and cancelled.
    pub operation: String,
    /// The chunk.
    pub chunk: ChunkId,
    /// The node that is to have a replica.
    pub target: NodeId,
    /// The node that is to lose its replica then; `None` for a copy.
    pub source: Option<NodeId>,
    /// When it was given: milliseconds of log time.
    pub at_ms: u64,
}

/// How the leader evens out what data nodes hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebalancing {
    /// Whether chunks are moved to even nodes out. Repair goes on without.
    pub enabled: bool,
    /// Most bytes a second that one copy takes.
    pub bytes_per_second: u64,
}

impl Default for Rebalancing {
    fn default() -> Self {
        Self { enabled: true, bytes_per_second: BYTES_PER_SECOND }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, chunk, target, source, .. } = self;
        match source {
            Some(source) => write!(f, "{operation}: move {chunk} from {source} to {target}"),
            None => write!(f, "{operation}: copy {chunk} to {target}"),
        }
    }
}

impl fmt::Display for Rebalancing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { enabled, bytes_per_second } = self;
        write!(f, "rebalancing enabled={enabled} bytes_per_second={bytes_per_second}")
    }
}

impl Catalog {
    /// Orders a copy or a move of a chunk.
    pub(crate) fn order_copy(&mut self, order: &Order, step: &mut Step) -> Result<Outcome, Reject> {
        let refuse = |message: String| Err(Reject::InvalidMove(message));
        let chunk = self.existing_chunk(order.chunk)?;
        let node = |id: NodeId| {
            self.data_nodes.get(&id).ok_or_else(|| Reject::UnknownNode(id.to_string()))
        };
        let target = node(order.target)?;
        if let Some(source) = order.source {
            let source = node(source)?;
            if source.id() == target.id() {
                return refuse("source and destination data node match".to_owned());
            }
            if !chunk.in_sync.contains(&source.rid) {
                let (chunk, source) = (&chunk.name, &source.name);
                return refuse(format!(
                    "chunk \"{chunk}\" does not exist on source data node \"{source}\""
                ));
            }
        }
        if chunk.in_sync.contains(&target.rid) {
            let (chunk, target) = (&chunk.name, &target.name);
            return refuse(format!(
                "chunk \"{chunk}\" already exists on destination data node \"{target}\""
            ));
        }
        let key = (order.chunk, order.target);
        let same = |other: &&Order| other.operation == order.operation;
        if self.orders.contains_key(&key) || self.orders.values().any(|other| same(&other)) {
            return refuse(format!("operation \"{}\" is under way already", order.operation));
        }
        self.orders.insert(key, Order { at_ms: step.at_ms, ..order.clone() });
        step.changes.touch(RowKey::Order(key.0, key.1));
        Ok(Outcome::Done)
    }

    /// Ends an order: what it has made so far is judged by the rules again.
    pub(crate) fn cancel_order(
        &mut self,
        operation: &str,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let order = self.orders.values().find(|order| order.operation == operation);
        let Some(key) = order.map(|order| (order.chunk, order.target)) else {
            return Err(Reject::InvalidMove(format!("operation \"{operation}\" does not exist")));
        };
        self.remove_order(key, step);
        Ok(Outcome::Changed(vec![key.0]))
    }

    /// Sets how rebalancing is done.
    pub(crate) fn set_rebalancing(
        &mut self,
        wanted: &Rebalancing,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        self.counters.rebalancing = wanted.clone();
        step.changes.touch(RowKey::Counters);
        Ok(Outcome::Done)
    }

    /// Orders of copies and moves, by chunk and target.
    pub fn orders(&self) -> impl Iterator<Item = &Order> {
        self.orders.values()
    }

    /// How rebalancing is done.
    #[must_use]
    pub fn rebalancing(&self) -> &Rebalancing {
        &self.counters.rebalancing
    }

    pub(crate) fn orders_at(&self, node: NodeId) -> impl Iterator<Item = (ChunkId, NodeId)> {
        let at = move |order: &&Order| order.target == node || order.source == Some(node);
        self.orders.values().filter(at).map(|order| (order.chunk, order.target))
    }

    pub(crate) fn remove_order(&mut self, key: (ChunkId, NodeId), step: &mut Step) {
        if self.orders.remove(&key).is_some() {
            step.changes.touch(RowKey::Order(key.0, key.1));
        }
    }
}
