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
}

impl DataNode {
    /// The node's id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.rid.node
    }

    /// Whether new chunks may be placed on it.
    #[must_use]
    pub fn takes_new_chunks(&self) -> bool {
        !self.block_new_chunks && !self.draining
    }
}

impl fmt::Display for DataNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rid, name, disk, rpc, http, block_new_chunks, draining } = self;
        write!(f, "data {rid} {name} disk={disk} rpc={rpc} http={http}")?;
        f.write_str(if *block_new_chunks { " blocked" } else { "" })?;
        f.write_str(if *draining { " draining" } else { "" })
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
    /// NOTE: a new node gets no bucket of the hypertables there are, and no replica of existing reference chunks:
    /// attaching and joining are commands of their own.
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
        let node = DataNode {
            rid: Rid { node: id, incarnation: Incarnation(1) },
            name,
            disk,
            rpc: String::new(),
            http: String::new(),
            block_new_chunks: false,
            draining: false,
        };
        Ok(self.put_arrival(node, arrival, step))
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

    /// Takes new chunks off a node, or gives them back.
    pub(crate) fn block_new_chunks(
        &mut self,
        id: NodeId,
        block: bool,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let Some(node) = self.data_nodes.get_mut(&id) else {
            return Err(Reject::UnknownNode(id.to_string()));
        };
        node.block_new_chunks = block;
        step.changes.touch(RowKey::Data(id));
        Ok(Outcome::Data(node.clone()))
    }

    fn put_arrival(&mut self, node: DataNode, at: Arrival<'_>, step: &mut Step) -> Outcome {
        let node = DataNode { rpc: at.rpc.to_owned(), http: at.http.to_owned(), ..node };
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

    /// Whether `rid` is a disk that is registered now.
    pub(crate) fn current(&self, rid: Rid) -> bool {
        self.data_nodes.get(&rid.node).is_some_and(|node| node.rid == rid)
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
