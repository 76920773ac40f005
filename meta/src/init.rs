//! Forming a cluster out of empty access nodes, once.
//!
//! Every member gets the same message, writes the cluster into its directory and starts Raft with the same first
//! membership, so that any majority of them can go on when the rest is slow. Sent again, the message changes nothing.
//!
//! An empty node that a member's catalog knows already is one that lost its disk: it must not come back as a voter, since
//! it has forgotten votes and entries that it acknowledged.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hypertide_proto::{
    client::Channels,
    error::{Code, Retry, RpcError},
    ids::{AccessId, ClusterId},
    wire::{
        self,
        meta::{IdentityReply, IdentityRequest, InitReply, InitRequest, Member},
    },
};
use tonic::Request;

use crate::{Error, node::MetaNode, raft::Formed};

/// Longest wait for one answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Forms a cluster of the access nodes at these addresses, or finishes forming it; gives its id.
///
/// Nodes that form this very cluster already are left as they are.
pub async fn init_cluster(
    channels: &Channels,
    addresses: &[String],
    deadline: Instant,
) -> Result<ClusterId, Error> {
    let mut members = BTreeMap::new();
    let mut clusters = BTreeSet::new();
    let mut order = Vec::new();
    for address in addresses {
        let identity = identity_of(channels, address, deadline).await?;
        let id = AccessId(identity.access);
        if members.insert(id, identity.rpc).is_some() {
            return Err(Error::Identity(format!("two addresses lead to access node {id}")));
        }
        if !identity.cluster.is_empty() {
            clusters.insert(wire::cluster(&identity.cluster)?);
        }
        order.push((identity.cluster.is_empty(), address));
    }
    if members.is_empty() {
        return Err(Error::Identity("no access node was named".to_owned()));
    }
    let cluster = match clusters.len() {
        0 => ClusterId(rand::random()),
        1 => clusters.into_iter().next().unwrap_or(ClusterId([0; 16])),
        _ => {
            return Err(Error::Identity(format!(
                "the nodes are of different clusters: {}",
                list(&clusters)
            )));
        }
    };
    // Members first: they know whom the cluster consists of.
    order.sort();
    let mut formed = false;
    for (_, address) in order {
        formed |= send_init(channels, address, &init_request(cluster, &members), deadline).await?;
    }
    tracing::info!(%cluster, formed, "every node belongs to the cluster");
    Ok(cluster)
}

/// The cluster that all of these access nodes belong to; `None` when one belongs to none, or to another.
pub async fn cluster_of(
    channels: &Channels,
    addresses: &[String],
    deadline: Instant,
) -> Result<Option<ClusterId>, Error> {
    let mut found = BTreeSet::new();
    for address in addresses {
        let identity = identity_of(channels, address, deadline).await?;
        if identity.cluster.is_empty() {
            return Ok(None);
        }
        found.insert(wire::cluster(&identity.cluster)?);
    }
    Ok(if found.len() == 1 { found.pop_first() } else { None })
}

fn list<T: std::fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(", ")
}

fn init_request(cluster: ClusterId, members: &BTreeMap<AccessId, String>) -> InitRequest {
    let member = |(id, rpc): (&AccessId, &String)| Member { access: id.0, rpc: rpc.clone() };
    InitRequest {
        cluster: Bytes::copy_from_slice(&cluster.0),
        members: members.iter().map(member).collect(),
    }
}

/// Asks a node who it is, until it answers or the deadline passes: it may be starting.
async fn identity_of(
    channels: &Channels,
    address: &str,
    deadline: Instant,
) -> Result<IdentityReply, Error> {
    retry(address, deadline, async |within| ask_identity(channels, address, 0, within).await).await
}

/// Asks a node who it is, once.
pub(crate) async fn ask_identity(
    channels: &Channels,
    address: &str,
    asker: u64,
    within: Duration,
) -> Result<IdentityReply, RpcError> {
    let mut client = channels.meta(address)?;
    let asked = tokio::time::timeout(within, client.identity(IdentityRequest { asker })).await;
    let late = |_| RpcError::new(Code::Unavailable, "no answer in time");
    Ok(asked.map_err(late)??.into_inner())
}

async fn send_init(
    channels: &Channels,
    address: &str,
    request: &InitRequest,
    deadline: Instant,
) -> Result<bool, Error> {
    let reply: InitReply = retry(address, deadline, async |within| {
        let mut client = channels.meta(address)?;
        let mut message = Request::new(request.clone());
        message.set_timeout(within);
        Ok(client.init(message).await?.into_inner())
    })
    .await?;
    Ok(reply.formed)
}

/// Repeats a question that is safe to repeat until it is answered or the deadline passes.
async fn retry<T>(
    address: &str,
    deadline: Instant,
    ask: impl AsyncFn(Duration) -> Result<T, RpcError>,
) -> Result<T, Error> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let error = match ask(left.min(ASK_TIMEOUT)).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let hopeless = error.retry() == Retry::Never && error.code != Code::DeadlineExceeded;
        if hopeless {
            return Err(error.into());
        }
        if Instant::now() + RETRY_PAUSE >= deadline {
            return Err(Error::Unavailable(format!("access node at {address}: {error}")));
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Answers the message at a node. True when it was taken into the cluster by it.
pub(crate) async fn accept(node: &Arc<MetaNode>, request: InitRequest) -> Result<bool, RpcError> {
    let cluster = wire::cluster(&request.cluster)?;
    let members: BTreeMap<AccessId, String> =
        request.members.into_iter().map(|member| (AccessId(member.access), member.rpc)).collect();
    let refuse = |code, message: String| Err(RpcError::new(code, message));
    let own = node.id();
    if !members.contains_key(&own) {
        let message =
            format!("access node {own} is not among the members {}", list(members.keys()));
        return refuse(Code::Invalid, message);
    }
    let _forming = node.lock_forming().await;
    if let Some(formed) = node.formed() {
        if formed.cluster != cluster {
            let message = format!("access node {own} belongs to cluster {}", formed.cluster);
            return refuse(Code::WrongNode, message);
        }
        let known: BTreeSet<AccessId> = formed.members.iter().map(|member| member.0).collect();
        if !known.iter().eq(members.keys()) {
            let message = format!("cluster {cluster} consists of {}", list(known));
            return refuse(Code::Invalid, message);
        }
        if node.member().is_err() {
            // It was taken in, and failed to start.
            node.form(formed).await?;
        }
        return Ok(false);
    }
    if let Some(witness) = remembered_by(node, cluster, &members).await {
        let message = format!(
            "access node {own} was part of cluster {cluster} before, as {witness} remembers, and lost its directory; \
             it must not vote again under the same id"
        );
        return refuse(Code::WrongNode, message);
    }
    let members = members.into_iter().collect();
    let formed = Formed { cluster, members, joins: false };
    match node.form(formed).await {
        Ok(()) => Ok(true),
        Err(error) => refuse(Code::Internal, error.to_string()),
    }
}

/// A member of the cluster whose catalog knows this node already.
async fn remembered_by(
    node: &MetaNode,
    cluster: ClusterId,
    members: &BTreeMap<AccessId, String>,
) -> Option<AccessId> {
    let own = node.id();
    let others = members.iter().filter(|(id, _)| **id != own);
    let asked = others.map(async |(id, rpc)| {
        let answer = ask_identity(&node.config().channels, rpc, own.0, ASK_TIMEOUT).await.ok()?;
        (answer.knows_asker && answer.cluster[..] == cluster.0).then_some(*id)
    });
    futures::future::join_all(asked).await.into_iter().flatten().next()
}
