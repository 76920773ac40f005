//! Access nodes.

use std::fmt;

use hypertide_proto::ids::{AccessId, Boot};
use serde::{Deserialize, Serialize};

use super::{Catalog, Outcome, Reject, RowKey, apply::Step};

/// An access node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessNode {
    /// Its Raft id.
    pub id: AccessId,
    /// Its latest start; transactions of earlier boots are fenced.
    pub boot: Boot,
    /// Address of its internal gRPC.
    pub rpc: String,
    /// Address of its PostgreSQL endpoint.
    pub pg: String,
    /// Address of its Flight SQL endpoint.
    pub flight: String,
    /// Address of its HTTP endpoint.
    pub http: String,
    /// Whether it was removed from the cluster.
    pub retired: bool,
}

impl fmt::Display for AccessNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, boot, rpc, pg, flight, http, retired } = self;
        if *retired {
            return write!(f, "access {id} boot={boot} retired");
        }
        write!(f, "access {id} boot={boot} rpc={rpc} pg={pg} flight={flight} http={http}")
    }
}

/// Where a starting access node listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endpoints<'a> {
    pub(crate) rpc: &'a str,
    pub(crate) pg: &'a str,
    pub(crate) flight: &'a str,
    pub(crate) http: &'a str,
}

impl Catalog {
    /// Gives a started access node its boot. A command that is applied twice wastes a boot and fences nothing that
    /// lives: the node takes the greatest that it is given.
    pub(crate) fn register_access(
        &mut self,
        id: AccessId,
        at: Endpoints<'_>,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        if self.access_nodes.get(&id).is_some_and(|node| node.retired) {
            return Err(Reject::Identity(format!(
                "access node {id} was removed from this cluster"
            )));
        }
        let boot = self.access_nodes.get(&id).map_or(Boot(0), |node| node.boot).next();
        let node = AccessNode {
            id,
            boot,
            rpc: at.rpc.to_owned(),
            pg: at.pg.to_owned(),
            flight: at.flight.to_owned(),
            http: at.http.to_owned(),
            retired: false,
        };
        // The new boot closes every transaction of the old ones, so that their runs tell nothing more.
        self.forget_ended_before(id, boot, step);
        self.access_nodes.insert(id, node);
        step.changes.touch(RowKey::Access(id));
        Ok(Outcome::Boot(boot))
    }

    /// Retires an access node: its transactions are fenced for good. Its row stays, without addresses, because its id
    /// and boots are never given again.
    pub(crate) fn remove_access(
        &mut self,
        id: AccessId,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let Some(node) = self.access_nodes.get(&id).filter(|node| !node.retired) else {
            return Ok(Outcome::Done);
        };
        let boot = node.boot.next();
        let none = String::new;
        let (rpc, pg, flight, http) = (none(), none(), none(), none());
        self.forget_ended_before(id, boot, step);
        let retired = AccessNode { id, boot, rpc, pg, flight, http, retired: true };
        self.access_nodes.insert(id, retired);
        step.changes.touch(RowKey::Access(id));
        Ok(Outcome::Done)
    }
}
