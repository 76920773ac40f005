//! Access nodes that come and go, one at a time: learner first, voter once it has caught up.
//!
//! A new node starts empty, is told by the leader which cluster it belongs to, and takes part in Raft without a vote until
//! it lacks few entries for a while: a voter that lags would stall every commit that needs it. A node that is removed
//! loses its vote, and the catalog retires its id, which fences its transactions and is never given again; one that lost
//! its disk is replaced by a node with another id.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hypertide_proto::{
    error::{Code, RpcError},
    ids::AccessId,
    wire::{
        self,
        meta::{ChangeMemberReply, ChangeMemberRequest, JoinRequest, Member},
        required,
    },
};
use tonic::Request;

use crate::{
    Error,
    catalog::{Command, JUMP_MAX_MS},
    init::ask_identity,
    memory::now_ms,
    node::{CatalogWriter, MetaNode},
    raft::{Formed, Group},
};

/// Entries that a learner may lack when it becomes a voter, and for how long it must lack no more.
const LAG_MAX: u64 = 100;
const LAG_STEADY: Duration = Duration::from_secs(3);
const LAG_PAUSE: Duration = Duration::from_millis(100);
/// A change of voters that is half done for this long is finished by whoever leads then.
const JOINT_MAX: Duration = Duration::from_secs(10);
const KEEP_PAUSE: Duration = Duration::from_secs(1);
/// Rounds between two looks at the clock.
const ROUNDS_PER_CLOCK: u32 = 10;
/// Rounds between two doubts whether this node still belongs to the cluster.
const ROUNDS_PER_DOUBT: u32 = 5;
/// Longest wait for one answer of the node that is added.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest that a change may take when its sender names no deadline.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// What a change of the access nodes came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberChange {
    /// The voters now.
    pub voters: Vec<AccessId>,
    /// What the operator should read.
    pub notice: Option<String>,
}

impl MetaNode {
    /// Adds an empty, running access node to the cluster; returns when it is a voter.
    pub async fn add_access(
        &self,
        id: AccessId,
        rpc: &str,
        deadline: Instant,
    ) -> Result<MemberChange, Error> {
        self.ask_to_change(Member { access: id.0, rpc: rpc.to_owned() }, deadline).await
    }

    /// Removes an access node, dead or alive, from the cluster for good.
    pub async fn remove_access(
        &self,
        id: AccessId,
        deadline: Instant,
    ) -> Result<MemberChange, Error> {
        self.ask_to_change(Member { access: id.0, rpc: String::new() }, deadline).await
    }

    async fn ask_to_change(
        &self,
        member: Member,
        deadline: Instant,
    ) -> Result<MemberChange, Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        let request = ChangeMemberRequest {
            cluster: self.member()?.leader.cluster_bytes(),
            member: Some(member),
            deadline_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
            forwarded: false,
        };
        let ChangeMemberReply { voters, notice } = change(self, request).await?;
        let voters = voters.into_iter().map(AccessId).collect();
        Ok(MemberChange { voters, notice: (!notice.is_empty()).then_some(notice) })
    }
}

/// Changes the access nodes, at the leader.
pub(crate) async fn change(
    node: &MetaNode,
    request: ChangeMemberRequest,
) -> Result<ChangeMemberReply, RpcError> {
    let leader = &node.member()?.leader;
    let within = match request.deadline_ms {
        0 => CHANGE_TIMEOUT,
        ms => Duration::from_millis(ms.into()).min(CHANGE_TIMEOUT),
    };
    if !leader.here() {
        if request.forwarded {
            return Err(RpcError::new(Code::NotLeader, "this access node does not lead"));
        }
        let mut message = Request::new(ChangeMemberRequest { forwarded: true, ..request });
        message.set_timeout(within);
        let mut client = leader.leader_client()?;
        let asked = tokio::time::timeout(within, client.change_member(message));
        let late = |_| RpcError::new(Code::DeadlineExceeded, "the leader did not answer in time");
        return Ok(asked.await.map_err(late)??.into_inner());
    }
    let Member { access, rpc } = required(request.member, "member")?;
    let (id, deadline) = (AccessId(access), Instant::now() + within);
    let Ok(_one) = node.changing().try_lock() else {
        return Err(RpcError::new(Code::Unavailable, "another access node comes or goes just now"));
    };
    let group = leader.group();
    let work = async {
        match rpc.is_empty() {
            true => remove(node, group, id, deadline).await,
            false => add(node, group, (id, &rpc), deadline).await,
        }
    };
    let late =
        |_| RpcError::new(Code::DeadlineExceeded, "the change of access nodes took too long");
    tokio::time::timeout(within, work).await.map_err(late)??;
    let voters = group.voters();
    let notice = match voters.len() {
        even if even.is_multiple_of(2) => format!(
            "{even} access nodes survive the loss of no more of them than {} do: an odd number is better",
            even - 1
        ),
        _ => String::new(),
    };
    Ok(ChangeMemberReply { voters: voters.into_iter().collect(), notice })
}

async fn add(
    node: &MetaNode,
    group: &Group,
    (id, rpc): (AccessId, &str),
    deadline: Instant,
) -> Result<(), RpcError> {
    let mut voters = group.voters();
    if voters.contains(&id.0) {
        return Ok(());
    }
    if node.image().catalog.access_node(id).is_some_and(|known| known.retired) {
        let message = format_args!("access node {id} was removed: give the new one another id");
        return Err(RpcError::new(Code::Invalid, message));
    }
    take_in(node, group, (id, rpc)).await?;
    group.add_learner(id, rpc).await.map_err(unavailable)?;
    tracing::info!("access node {id} at {rpc} catches up");
    let mut since: Option<Instant> = None;
    while since.is_none_or(|since| since.elapsed() < LAG_STEADY) {
        if Instant::now() + LAG_PAUSE >= deadline {
            let message = format_args!("access node {id} does not catch up");
            return Err(RpcError::new(Code::DeadlineExceeded, message));
        }
        tokio::time::sleep(LAG_PAUSE).await;
        let near = group.lag(id).is_some_and(|lag| lag < LAG_MAX);
        since = if near { since.or_else(|| Some(Instant::now())) } else { None };
    }
    voters.insert(id.0);
    group.set_voters(voters).await.map_err(unavailable)?;
    tracing::info!("access node {id} votes");
    Ok(())
}

/// Tells an empty node which cluster it belongs to.
async fn take_in(
    node: &MetaNode,
    group: &Group,
    (id, rpc): (AccessId, &str),
) -> Result<(), RpcError> {
    let channels = &node.config().channels;
    let identity = ask_identity(channels, rpc, 0, ASK_TIMEOUT).await?;
    if identity.access != id.0 {
        let own = AccessId(identity.access);
        let message = format_args!("the access node at {rpc} is {own}, not {id}");
        return Err(RpcError::new(Code::WrongNode, message));
    }
    let image = node.image();
    let members = image.catalog.access_nodes();
    let request = JoinRequest {
        cluster: Bytes::copy_from_slice(&group.cluster().0),
        members: members.map(|at| Member { access: at.id.0, rpc: at.rpc.clone() }).collect(),
    };
    let mut client = channels.meta(rpc)?;
    let asked = tokio::time::timeout(ASK_TIMEOUT, client.join(request)).await;
    let late = |_| RpcError::new(Code::Unavailable, "the new access node did not answer in time");
    asked.map_err(late)??;
    Ok(())
}

async fn remove(
    node: &MetaNode,
    group: &Group,
    id: AccessId,
    deadline: Instant,
) -> Result<(), RpcError> {
    let mut voters = group.voters();
    if voters.remove(&id.0) && voters.is_empty() {
        let message = format_args!("access node {id} is the last one");
        return Err(RpcError::new(Code::Invalid, message));
    }
    // A leader that removes itself cannot say anything after.
    let own = id == node.id();
    if own {
        retire(node, id, deadline).await?;
    }
    if voters != group.voters() {
        group.set_voters(voters).await.map_err(unavailable)?;
    }
    if !own {
        retire(node, id, deadline).await?;
    }
    tracing::info!("access node {id} was removed from the cluster");
    Ok(())
}

async fn retire(node: &MetaNode, id: AccessId, deadline: Instant) -> Result<(), RpcError> {
    let (_, answer) = node.propose(Command::RemoveAccess { id }, deadline).await?;
    answer.map(drop).map_err(|reject| RpcError::new(Code::Invalid, reject))
}

fn unavailable(error: String) -> RpcError {
    RpcError::new(Code::Unavailable, error)
}

/// Answers the message at the node that is added. True when it was taken into the cluster by it.
pub(crate) async fn accept(node: &Arc<MetaNode>, request: JoinRequest) -> Result<bool, RpcError> {
    let cluster = wire::cluster(&request.cluster)?;
    let _forming = node.lock_forming().await;
    if let Some(formed) = node.formed() {
        if formed.cluster != cluster {
            let (own, theirs) = (node.id(), formed.cluster);
            let message = format_args!("access node {own} belongs to cluster {theirs}");
            return Err(RpcError::new(Code::WrongNode, message));
        }
        return Ok(false);
    }
    let members = request.members.into_iter().map(|at| (AccessId(at.access), at.rpc)).collect();
    node.form(Formed { cluster, members, joins: true }).await?;
    Ok(true)
}

/// Finishes changes of voters that were left half done, and tells what the clock shows when log time is far behind.
pub(crate) async fn keep(node: Weak<MetaNode>) {
    let (mut joint, mut round): (Option<Instant>, u32) = (None, 0);
    loop {
        tokio::time::sleep(KEEP_PAUSE).await;
        let Some(node) = node.upgrade() else { return };
        let Ok(member) = node.member() else { continue };
        round = round.wrapping_add(1);
        let group = member.leader.group();
        let target = group.joint().filter(|_| member.leader.here());
        joint = target.as_ref().and(joint.or_else(|| Some(Instant::now())));
        if let Some(voters) = target
            && joint.is_some_and(|since| since.elapsed() >= JOINT_MAX)
        {
            finish_change(group, voters).await;
            joint = None;
        }
        if round.is_multiple_of(ROUNDS_PER_CLOCK) {
            tell_clock(&node).await;
        }
        if round.is_multiple_of(ROUNDS_PER_DOUBT) && was_removed(&node, group).await {
            node.fail(format!("access node {} was removed from the cluster", node.id()));
            return;
        }
    }
}

/// Whether the others say that this node was removed: the log does not reach it any more to tell. Asked only when it
/// has no vote or no leader.
async fn was_removed(node: &MetaNode, group: &Group) -> bool {
    let own = node.id();
    let doubts = !group.voters().contains(&own.0)
        || node.member().is_ok_and(|member| member.leader.view().leader.is_none());
    if !doubts {
        return false;
    }
    let image = node.image();
    let others = image.catalog.access_nodes().filter(|other| other.id != own);
    let asked = others.map(async |other| {
        ask_identity(&node.config().channels, &other.rpc, own.0, ASK_TIMEOUT).await
    });
    let cluster = group.cluster();
    let answers = futures::future::join_all(asked).await;
    let removes = |answer: &wire::meta::IdentityReply| {
        answer.asker_removed && answer.cluster[..] == cluster.0
    };
    answers.iter().flatten().any(removes)
}

async fn finish_change(group: &Group, voters: BTreeSet<u64>) {
    tracing::info!("a change of the voters to {voters:?} was left half done and is finished");
    if let Err(error) = group.set_voters(voters).await {
        tracing::info!("finish the change of the voters: {error}");
    }
}

async fn tell_clock(node: &MetaNode) {
    let (access, at_ms) = (node.id(), now_ms());
    let image = node.image();
    let known = image.catalog.access_node(access).is_some_and(|known| !known.retired);
    if known && at_ms.saturating_sub(image.catalog.time_ms()) > JUMP_MAX_MS {
        let command = Command::AdvanceTime { access, at_ms };
        // Told again in the next round, if it is still needed.
        drop(node.propose(command, Instant::now() + KEEP_PAUSE).await);
    }
}
