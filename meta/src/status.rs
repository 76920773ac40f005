//! The cluster as the leader sees it: who is up, and what data nodes hold.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use hypertide_proto::{
    ids::{AccessId, ChunkId, Rid},
    wire::meta::{
        ChunkCounts, DamagedReplica, NodeStatus, RebalanceStatus, StatusReply, StatusRequest,
    },
};
use tonic::Request;

use crate::{
    catalog::Health,
    init::ask_identity,
    node::{CatalogWriter, Image, MetaNode},
};

/// Longest wait for an access node to say that it is up.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// Longest wait for the leader's view.
const LEADER_TIMEOUT: Duration = Duration::from_millis(1_500);

const UP: &str = "up";
const DOWN: &str = "down";
const JOINING: &str = "joining";

/// Where an access node stands in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Whether it leads, as far as it knows.
    pub leads: bool,
    /// Raft term.
    pub term: u64,
    /// Last entry of the log that its catalog has.
    pub applied: u64,
}

impl MetaNode {
    /// Where it stands in its group; `None` before it is in one.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        let leader = &self.member().ok()?.leader;
        Some(Place {
            leads: leader.here(),
            term: leader.view().term,
            applied: self.image().applied,
        })
    }
}

/// The leader's view, or this node's own when the leader does not answer.
pub(crate) async fn ask(node: &MetaNode) -> StatusReply {
    if let Some(reply) = ask_leader(node).await {
        return reply;
    }
    own(node).await
}

async fn ask_leader(node: &MetaNode) -> Option<StatusReply> {
    let member = node.member().ok().filter(|member| !member.leader.here())?;
    let mut client = member.leader.leader_client().ok()?;
    let mut request = Request::new(StatusRequest { forwarded: true });
    request.set_timeout(LEADER_TIMEOUT);
    let asked = tokio::time::timeout(LEADER_TIMEOUT, client.status(request)).await;
    Some(asked.ok()?.ok()?.into_inner())
}

/// What this node knows itself.
pub(crate) async fn own(node: &MetaNode) -> StatusReply {
    let image = node.image();
    let Ok(member) = node.member() else {
        let nodes = vec![access_status(node, &image, (node.id(), node.rpc()), JOINING).await];
        return StatusReply { nodes, ..StatusReply::default() };
    };
    let view = member.leader.view();
    let voters = view.voters.iter().map(async |voter| {
        let at = (voter.0, member.leader.address(voter));
        access_status(node, &image, at, UP).await
    });
    let mut nodes = futures::future::join_all(voters).await;
    nodes.extend(data_nodes(node, &image));
    let (transfers, totals) = {
        let jobs = node.jobs();
        (jobs.transfers(), jobs.totals())
    };
    let damaged = damaged(node, &image);
    StatusReply {
        cluster: Bytes::copy_from_slice(&member.leader.group().cluster().0),
        leader: view.leader.map(|id| id.to_string()).unwrap_or_default(),
        term: view.term,
        applied: image.applied,
        nodes,
        transfers,
        rebalance: Some(RebalanceStatus {
            enabled: image.catalog.rebalancing().enabled,
            bytes_per_second: image.catalog.rebalancing().bytes_per_second,
            ..totals
        }),
        chunks: Some(counts(&image, &damaged)),
        damaged,
    }
}

/// Replicas that count and were reported to have wrong bytes.
fn damaged(node: &MetaNode, image: &Image) -> Vec<DamagedReplica> {
    let counts = |id: &ChunkId, rid: Rid| {
        image.catalog.chunk(*id).is_some_and(|chunk| chunk.has_member(rid))
    };
    let reported = node.fleet().damaged();
    let members = reported.into_iter().filter(|(id, rid)| counts(id, *rid));
    members.map(|(id, rid)| DamagedReplica { chunk: id.0, rid: Some(rid.into()) }).collect()
}

fn counts(image: &Image, damaged: &[DamagedReplica]) -> ChunkCounts {
    let wrong: BTreeSet<u64> = damaged.iter().map(|replica| replica.chunk).collect();
    let sum = image.catalog.standings(|chunk| wrong.contains(&chunk.0));
    ChunkCounts {
        total: sum.total,
        in_sync: sum.in_sync,
        under_replicated: sum.under_replicated,
        joining: sum.joining,
        damaged: sum.damaged,
        unavailable: sum.unavailable,
    }
}

/// Asks an access node whether it is up. `state` is what an answer means.
async fn access_status(
    node: &MetaNode,
    image: &Image,
    (id, rpc): (AccessId, String),
    state: &str,
) -> NodeStatus {
    let registered = image.catalog.access_node(id).cloned();
    let answer = if id == node.id() {
        Some(std::process::id())
    } else {
        let asked = ask_identity(&node.config().channels, &rpc, 0, PROBE_TIMEOUT).await.ok();
        asked.filter(|answer| answer.access == id.0).map(|answer| answer.pid)
    };
    let state = match (&answer, &registered) {
        (None, _) => DOWN,
        (Some(_), None) => JOINING,
        (Some(_), Some(_)) => state,
    };
    let (pg, flight, http) =
        registered.map(|node| (node.pg, node.flight, node.http)).unwrap_or_default();
    NodeStatus {
        name: id.to_string(),
        role: "access".to_owned(),
        state: state.to_owned(),
        pid: answer.unwrap_or_default(),
        rpc,
        pg,
        flight,
        http,
        id: id.0,
        membership: "voter".to_owned(),
        ..NodeStatus::default()
    }
}

fn data_nodes(node: &MetaNode, image: &Image) -> Vec<NodeStatus> {
    let status = |data: &crate::catalog::DataNode| {
        let heard = node.fleet().summary(data.rid);
        let state = match data.health {
            Health::Up if data.unavailable => DOWN.to_owned(),
            health => health.to_string(),
        };
        NodeStatus {
            name: data.name.clone(),
            role: "data".to_owned(),
            state,
            pid: heard.pid,
            // A node that is away still counts with what the catalog has placed on it.
            chunks: if heard.up { heard.chunks } else { placed(image, data.rid) },
            bytes: heard.bytes,
            rows: heard.rows,
            rpc: data.rpc.clone(),
            http: data.http.clone(),
            id: data.id().0,
            membership: image.catalog.node_state(data).to_string(),
            incarnation: data.rid.incarnation.0,
            free_bytes: heard.free_bytes,
            blocked: data.block_new_chunks,
            ..NodeStatus::default()
        }
    };
    image.catalog.data_nodes().map(status).collect()
}

fn placed(image: &Image, rid: Rid) -> u64 {
    let chunks = image.catalog.tables().flat_map(|table| image.catalog.chunks_of(table.id));
    chunks.filter(|chunk| chunk.in_sync.contains(&rid)).count() as u64
}
