//! Data nodes and their disks.

use std::fmt;

use hypertide_proto::{
    ids::{DiskId, Incarnation, NodeId, Rid},
    schema::NAME_BYTES_MAX,
};
use serde::{Deserialize, Serialize};

use super::{Catalog, Outcome, Reject, RowKey, apply::Step};

/// A data node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataNode {
    /// The node and the incarnation of its disk.
    pub rid: Rid,
    /// Name, unique among data nodes.
    pub name: String,
    /// The disk that the incarnation stands for.
    pub disk: DiskId,
    /// Address of its internal gRPC, `host:port`.
    pub rpc: String,
    /// Address of its HTTP endpoint.
    pub http: String,
    /// Whether new chunks are kept off it.
    pub block_new_chunks: bool,
    /// Whether its chunks are to move away.
    pub draining: bool,
    /// Whether an operator took it out of service: it is treated as one that is down.
    pub unavailable: bool,
    /// What the leader's failure detector thinks of it.
    pub health: Health,
    /// Since when: milliseconds of log time.
    pub health_since_ms: u64,
}

impl DataNode {
    /// A node that was up at a log time, and whose addresses are not known yet.
    pub(crate) fn new((rid, disk): (Rid, DiskId), name: String, at_ms: u64) -> Self {
        Self {
            rid,
            name,
            disk,
            rpc: String::new(),
            http: String::new(),
            block_new_chunks: false,
            draining: false,
            unavailable: false,
            health: Health::Up,
            health_since_ms: at_ms,
        }
    }
}

/// What the leader's failure detector thinks of a data node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Health {
    /// It reports.
    Up,
    /// It is silent: reads and new chunks avoid it.
    Suspect,
    /// It is silent and did not answer a probe: commits go on without it.
    Down,
}

/// Whether a data node's chunks are to move away, and whether they have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// It holds chunks.
    Active,
    /// Its chunks move away.
    Draining,
    /// It was drained and holds nothing.
    Drained,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Drained => "drained",
        })
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Down => "down",
        })
    }
}

impl DataNode {
    /// The node's id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.rid.node
    }

    /// Whether new chunks may be placed on it, as far as no single hypertable says otherwise.
    #[must_use]
    pub fn takes_new_chunks(&self) -> bool {
        !self.block_new_chunks && !self.draining && self.serves()
    }

    /// Whether reads should go to it: it reports, and no operator took it out of service.
    #[must_use]
    pub fn serves(&self) -> bool {
        !self.unavailable && self.health == Health::Up
    }
}

impl fmt::Display for DataNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rid, name, disk, rpc, http, .. } = self;
        write!(f, "data {rid} {name} disk={disk} rpc={rpc} http={http}")?;
        f.write_str(if self.block_new_chunks { " blocked" } else { "" })?;
        f.write_str(if self.draining { " draining" } else { "" })?;
        f.write_str(if self.unavailable { " unavailable" } else { "" })?;
        match self.health {
            Health::Up => Ok(()),
            health => write!(f, " {health} since={}", self.health_since_ms),
        }
    }
}

/// What a data node says of itself when it comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival<'a> {
    /// Its name; empty to be given one, or to keep the one it has.
    pub(crate) name: &'a str,
    pub(crate) disk: DiskId,
    pub(crate) rpc: &'a str,
    pub(crate) http: &'a str,
}

impl Catalog {
    /// Takes in a node that has no rid. A disk that is registered is the same node again: the answer to its first
    /// registration was lost.
    ///
    /// A hypertable that is attached to every node there is gets the new one too. Replicas of chunks there are, such as
    /// those of reference tables, follow by joins.
    pub(crate) fn register_new_data(
        &mut self,
        arrival: Arrival<'_>,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let Arrival { name, disk, .. } = arrival;
        if let Some(known) = self.data_nodes.values().find(|node| node.disk == disk) {
            check_name(known, name)?;
            return Ok(self.put_arrival(known.clone(), arrival, step));
        }
        if name.len() > NAME_BYTES_MAX {
            return Err(Reject::Identity(format!(
                "data node name \"{name}\" has more than {NAME_BYTES_MAX} bytes"
            )));
        }
        if let Some(other) = self.data_node_named(name) {
            let (id, theirs) = (other.id(), other.disk);
            return Err(Reject::Identity(format!(
                "data node \"{name}\" is {id} on disk {theirs}, and disk {disk} is not registered"
            )));
        }
        let id = self.counters.node.next();
        let name = if name.is_empty() { self.free_name() } else { name.to_owned() };
        self.counters.node = id;
        let rid = Rid { node: id, incarnation: Incarnation(1) };
        let node = DataNode::new((rid, disk), name, step.at_ms);
        let all: Vec<NodeId> = self.data_nodes.keys().copied().collect();
        let outcome = self.put_arrival(node, arrival, step);
        self.attach_everywhere(id, &all, step);
        Ok(outcome)
    }

    /// Takes back a node that was given this rid before.
    pub(crate) fn register_known_data(
        &mut self,
        rid: Rid,
        arrival: Arrival<'_>,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let Some(known) = self.data_nodes.get(&rid.node) else {
            return Err(Reject::Identity(format!(
                "data node {} is not known to this cluster",
                rid.node
            )));
        };
        let (id, name) = (rid.node, &known.name);
        if known.rid != rid {
            return Err(Reject::Identity(format!(
                "data node {id} \"{name}\" is at incarnation {}, and {} came",
                known.rid.incarnation, rid.incarnation
            )));
        }
        if known.disk != arrival.disk {
            return Err(Reject::Identity(format!(
                "data node {id} \"{name}\" has disk {}, and disk {} came",
                known.disk, arrival.disk
            )));
        }
        check_name(known, arrival.name)?;
        Ok(self.put_arrival(known.clone(), arrival, step))
    }

    fn put_arrival(&mut self, node: DataNode, at: Arrival<'_>, step: &mut Step) -> Outcome {
        // It was down until now, or is heard of for the first time.
        let since = if node.health == Health::Up { node.health_since_ms } else { step.at_ms };
        let (rpc, http) = (at.rpc.to_owned(), at.http.to_owned());
        let node = DataNode { rpc, http, health: Health::Up, health_since_ms: since, ..node };
        step.changes.touch(RowKey::Data(node.id()));
        self.data_nodes.insert(node.id(), node.clone());
        Outcome::Data(node)
    }

    /// The first of `d1`, `d2`, ... that no node has.
    fn free_name(&self) -> String {
        let names = (1u64..).map(|number| format!("d{number}"));
        let mut free = names.filter(|name| self.data_node_named(name).is_none());
        free.next().expect("there are fewer data nodes than numbers")
    }

    /// Notes what the failure detector thinks of a disk.
    pub(crate) fn set_health(
        &mut self,
        rid: Rid,
        health: Health,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let mut node = self.current_node(rid)?.clone();
        if node.health != health {
            (node.health, node.health_since_ms) = (health, step.at_ms);
            self.put_data(node.clone(), step);
        }
        Ok(Outcome::Data(node))
    }

    /// Lets the chunks of a node move away, or stay again.
    pub(crate) fn set_draining(
        &mut self,
        name: &str,
        draining: bool,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let mut node = self.named_node(name)?.clone();
        node.draining = draining;
        self.put_data(node.clone(), step);
        Ok(Outcome::Data(node))
    }

    /// Changes where a node is reached, or takes it out of service and back. At its next start the node says itself
    /// where it is.
    pub(crate) fn alter_data_node(
        &mut self,
        name: &str,
        rpc: Option<&str>,
        available: Option<bool>,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let mut node = self.named_node(name)?.clone();
        node.rpc = rpc.unwrap_or(&node.rpc).to_owned();
        node.unavailable = available.map_or(node.unavailable, |available| !available);
        self.put_data(node.clone(), step);
        Ok(Outcome::Data(node))
    }

    /// Whether a node's chunks are to move away, and whether they have.
    #[must_use]
    pub fn node_state(&self, node: &DataNode) -> NodeState {
        let holds = |(key, _): (&(_, NodeId), &u64)| key.1 == node.id();
        match node.draining {
            false => NodeState::Active,
            true if self.index.replicas.iter().any(holds) => NodeState::Draining,
            true => NodeState::Drained,
        }
    }

    /// The data node of that name, or the refusal that names it.
    pub(crate) fn named_node(&self, name: &str) -> Result<&DataNode, Reject> {
        self.data_node_named(name).ok_or_else(|| Reject::UnknownNode(name.to_owned()))
    }

    pub(crate) fn put_data(&mut self, node: DataNode, step: &mut Step) {
        step.changes.touch(RowKey::Data(node.id()));
        self.data_nodes.insert(node.id(), node);
    }
}

/// Whether a node that comes back has its name, or leaves it open.
fn check_name(known: &DataNode, name: &str) -> Result<(), Reject> {
    if name.is_empty() || name == known.name {
        return Ok(());
    }
    Err(Reject::Identity(format!(
        "disk {} is registered as data node \"{}\", not \"{name}\"",
        known.disk, known.name
    )))
}
