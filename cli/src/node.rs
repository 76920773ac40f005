//! `hypertide node`: the nodes of a cluster, and how they come and go.
//!
//! Data nodes come by themselves (`hypertide data --access ...`); what is done here is to empty and remove them, and to
//! add, remove and replace access nodes.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Subcommand;
use hypertide_proto::{
    client::Channels,
    wire::meta::{
        ChangeMemberReply, ChangeMemberRequest, IdentityRequest, Member, NodeStatus, StatusReply,
    },
};

use crate::{
    cluster,
    config::usage,
    format::Format,
    locate::Target,
    sql::{Remote, literal},
    status,
};

/// Pause between two looks at a node that is drained.
const LOOK_DELAY: Duration = Duration::from_millis(250);
/// Longest that adding or removing an access node takes.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);
/// Longest wait for an access node that is asked who it is.
const ASK_LIMIT: Duration = Duration::from_secs(5);

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List the nodes with role, state, process, chunks and bytes.
    Ls {
        #[command(flatten)]
        target: Target,
        /// How to print.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Move all chunks of a data node to others; return when it holds none. It stays in the cluster, without new chunks.
    Drain {
        /// Name of the data node.
        #[arg(value_name = "NAME")]
        name: String,
        /// Let the node have chunks again instead.
        #[arg(long, conflicts_with = "no_wait")]
        undo: bool,
        /// Return at once; the cluster goes on by itself.
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        remote: Remote,
    },
    /// Remove a node for good: a data node after it was drained, an access node at once.
    ///
    /// A data node that is dead is removed as well, once its chunks have been made whole elsewhere. The number of a
    /// removed access node is never given again.
    Remove {
        /// Name of the node.
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        remote: Remote,
    },
    /// Take an access node that runs, and belongs to no cluster yet, into this one; return when it votes.
    Add {
        /// Its internal gRPC address.
        #[arg(value_name = "ADDR")]
        address: String,
        #[command(flatten)]
        target: Target,
    },
    /// Replace an access node, dead or alive, by one that runs and belongs to no cluster yet.
    Replace {
        /// Name of the access node to remove.
        #[arg(value_name = "NAME")]
        name: String,
        /// Internal gRPC address of the one that takes its place.
        #[arg(value_name = "ADDR")]
        address: String,
        #[command(flatten)]
        target: Target,
    },
}

/// How long to wait.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Wait {
    /// Seconds to wait for the chunks to have moved.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,
}

impl Wait {
    fn deadline(self) -> Instant {
        Instant::now() + Duration::from_secs(self.timeout)
    }
}

/// Runs the verb.
pub(crate) async fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Ls { target, format } => status::nodes(&target.status().await?).print(format),
        Verb::Drain { name, undo: true, remote, .. } => {
            data_node(&remote.target.status().await?, &name)?;
            set_draining(&remote, &name, false).await?;
            say!("{name} takes chunks again");
            Ok(())
        }
        Verb::Drain { name, no_wait, wait, remote, .. } => {
            data_node(&remote.target.status().await?, &name)?;
            set_draining(&remote, &name, true).await?;
            if no_wait {
                say!("{name} is being drained");
                return Ok(());
            }
            drained(&remote.target, &name, wait.deadline()).await?;
            say!("{name} is drained");
            Ok(())
        }
        Verb::Remove { name, wait, remote } => remove(&remote, &name, wait).await,
        Verb::Add { address, target } => add(&target, &address).await,
        Verb::Replace { name, address, target } => {
            let status = target.status().await?;
            let old = access_node(&status, &name)?.id;
            add(&target, &address).await?;
            change(&target, &status, Member { access: old, rpc: String::new() }).await?;
            say!("{name} was removed");
            retire(&target, &name).await
        }
    }
}

fn find<'a>(status: &'a StatusReply, name: &str) -> anyhow::Result<&'a NodeStatus> {
    let known: Vec<&str> = status.nodes.iter().map(|node| node.name.as_str()).collect();
    let unknown =
        || usage(format_args!("there is no node {name:?}: this cluster has {}", known.join(", ")));
    status.nodes.iter().find(|node| node.name == name).ok_or_else(unknown)
}

fn data_node<'a>(status: &'a StatusReply, name: &str) -> anyhow::Result<&'a NodeStatus> {
    let node = find(status, name)?;
    if node.role != "data" {
        return Err(usage(format_args!("{name} is an access node and holds no chunks")));
    }
    Ok(node)
}

fn access_node<'a>(status: &'a StatusReply, name: &str) -> anyhow::Result<&'a NodeStatus> {
    let node = find(status, name)?;
    if node.role != "access" {
        return Err(usage(format_args!("{name} is a data node, not an access node")));
    }
    Ok(node)
}

async fn set_draining(remote: &Remote, name: &str, draining: bool) -> anyhow::Result<()> {
    let mut client = remote.connect().await?;
    client.run(&format!("SELECT drain_data_node({}, {draining})", literal(name))).await?;
    Ok(())
}

/// Waits until a data node holds no chunk; says on standard error how many are left.
async fn drained(target: &Target, name: &str, deadline: Instant) -> anyhow::Result<()> {
    let mut left = None;
    loop {
        // While the leader changes nobody knows.
        if let Ok(status) = target.status().await
            && !status.leader.is_empty()
        {
            let node = data_node(&status, name)?;
            if node.membership == "drained" {
                return Ok(());
            }
            if left.replace(node.chunks) != Some(node.chunks) {
                eprintln!("{name}: {} chunks are left", node.chunks);
            }
        }
        if Instant::now() + LOOK_DELAY >= deadline {
            let count = left.unwrap_or_default();
            bail!(
                "{name} still has {count} chunks: they go on moving, wait longer or look at hypertide.joins"
            );
        }
        tokio::time::sleep(LOOK_DELAY).await;
    }
}

async fn remove(remote: &Remote, name: &str, wait: Wait) -> anyhow::Result<()> {
    let status = remote.target.status().await?;
    let node = find(&status, name)?;
    if node.role == "access" {
        let member = Member { access: node.id, rpc: String::new() };
        change(&remote.target, &status, member).await?;
    } else {
        set_draining(remote, name, true).await?;
        drained(&remote.target, name, wait.deadline()).await?;
        let mut client = remote.connect().await?;
        let removed = client.run(&format!("SELECT delete_data_node({})", literal(name))).await;
        removed.with_context(|| format!("remove data node {name}"))?;
    }
    say!("{name} was removed");
    retire(&remote.target, name).await
}

/// In a local cluster the node's process is ended, too.
async fn retire(target: &Target, name: &str) -> anyhow::Result<()> {
    match &target.dir {
        Some(dir) => cluster::retire(dir, name).await,
        None => Ok(()),
    }
}

/// Adds the access node at an address.
pub(crate) async fn add(target: &Target, address: &str) -> anyhow::Result<()> {
    let status = target.status().await?;
    let mut client = Channels::default().meta(address)?;
    let asked = tokio::time::timeout(ASK_LIMIT, client.identity(IdentityRequest::default())).await;
    let identity = asked.with_context(|| format!("{address} does not answer"))?;
    let identity = identity.map_err(|error| anyhow::anyhow!("{address}: {}", error.message()))?;
    let identity = identity.into_inner();
    if !identity.cluster.is_empty() && identity.cluster != status.cluster {
        bail!("the access node at {address} belongs to another cluster");
    }
    let member = Member { access: identity.access, rpc: identity.rpc };
    change(target, &status, member).await?;
    say!("a{} is an access node of this cluster", identity.access);
    Ok(())
}

/// Lets the leader add or remove an access node; any access node passes it on.
async fn change(target: &Target, status: &StatusReply, member: Member) -> anyhow::Result<()> {
    let request = ChangeMemberRequest {
        cluster: status.cluster.clone(),
        member: Some(member),
        deadline_ms: u32::try_from(CHANGE_LIMIT.as_millis()).unwrap_or(u32::MAX),
        forwarded: false,
    };
    let ChangeMemberReply { voters, notice } = target.change_member(request, CHANGE_LIMIT).await?;
    let voters: Vec<String> = voters.iter().map(|voter| format!("a{voter}")).collect();
    eprintln!("voters: {}", voters.join(", "));
    if !notice.is_empty() {
        eprintln!("{notice}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UsageError;

    fn status() -> StatusReply {
        let node = |name: &str, role: &str| NodeStatus {
            name: name.to_owned(),
            role: role.to_owned(),
            ..NodeStatus::default()
        };
        let nodes = vec![node("a1", "access"), node("d1", "data")];
        StatusReply { nodes, ..StatusReply::default() }
    }

    #[test]
    fn a_node_of_the_wrong_kind_is_a_mistake_of_the_caller() {
        let status = status();
        assert!(data_node(&status, "d1").is_ok() && access_node(&status, "a1").is_ok());
        for error in [data_node(&status, "a1"), access_node(&status, "d1"), find(&status, "d9")] {
            let error = error.expect_err("it is of another kind");
            assert!(error.downcast_ref::<UsageError>().is_some(), "{error}");
        }
    }
}
