//! `cluster status`, `stop`, `kill`, `pause` and `resume`: what asks or signals processes that run.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::bail;
use futures::future::join_all;
use hypertide_proto::wire::meta::{NodeStatus, StatusReply};
use nix::sys::signal::Signal;

use super::local::Local;
use crate::{
    endpoints::{Node, Role},
    format::Format,
    locate::Target,
    process::{self, Stopped},
    status,
};

/// Time for processes to end by themselves.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// Prints the nodes; an error when no access node answers, after printing what can be seen from here.
pub(crate) async fn status(dir: &Path, format: Format) -> anyhow::Result<()> {
    let nodes = match Local::open(dir) {
        Ok(local) => local.nodes()?,
        // `dev` has one process and one list for all of its nodes.
        Err(_) => Vec::new(),
    };
    let target = Target { dir: Some(dir.to_owned()), access: rpc_of(&nodes) };
    let asked = target.status().await;
    let seen = match &asked {
        Ok(reply) => merge(reply.clone(), &nodes),
        Err(_) => merge(StatusReply::default(), &nodes),
    };
    if asked.is_ok() || !nodes.is_empty() {
        status::print(&seen, format)?;
    }
    asked.map(drop)
}

fn rpc_of(nodes: &[Node]) -> Vec<String> {
    let access = nodes.iter().filter(|node| node.role == Role::Access);
    access.map(|node| node.rpc.clone()).collect()
}

/// What the cluster says, mended by what is known of the processes: one that is gone is down at once, not only after
/// the cluster missed its heartbeats, and leads no longer.
fn merge(mut reply: StatusReply, nodes: &[Node]) -> StatusReply {
    for node in nodes {
        let lives = process::alive(node);
        match reply.nodes.iter_mut().find(|seen| seen.name == node.name) {
            Some(seen) => {
                seen.pid = node.pid;
                if !lives {
                    "down".clone_into(&mut seen.state);
                    if reply.leader == node.name {
                        reply.leader.clear();
                    }
                }
            }
            None => reply.nodes.push(NodeStatus {
                name: node.name.clone(),
                role: node.role.name().to_owned(),
                state: if lives { "joining" } else { "down" }.to_owned(),
                pid: node.pid,
                rpc: node.rpc.clone(),
                ..NodeStatus::default()
            }),
        }
    }
    reply
}

/// Stops every process of the cluster.
pub(crate) async fn stop(dir: &Path) -> anyhow::Result<()> {
    let local = Local::open(dir)?;
    // Data nodes first: what they still have to ask is answered by access nodes.
    let (access, data): (Vec<Node>, Vec<Node>) =
        local.nodes()?.into_iter().partition(|node| node.role == Role::Access);
    for nodes in [data, access] {
        let deadline = Instant::now() + STOP_LIMIT;
        let stopped = join_all(nodes.iter().map(|node| process::stop(node, deadline))).await;
        for (node, stopped) in nodes.iter().zip(stopped) {
            say!("{}: {}", node.name, describe(stopped?));
        }
    }
    Ok(())
}

/// Ends the process of a node that was removed from the cluster, if this is its directory, and sets the node's own
/// directory aside.
pub(crate) async fn retire(dir: &Path, name: &str) -> anyhow::Result<()> {
    let Ok(local) = Local::open(dir) else { return Ok(()) };
    let Some(node) = local.nodes()?.into_iter().find(|node| node.name == name) else {
        return Ok(());
    };
    process::stop(&node, Instant::now() + STOP_LIMIT).await?;
    let kept = local.retire(name)?;
    say!("its directory is kept as {}", kept.display());
    Ok(())
}

fn describe(stopped: Stopped) -> &'static str {
    match stopped {
        Stopped::WasNotRunning => "was not running",
        Stopped::InOrder => "stopped",
        Stopped::ByForce => "did not stop and was killed",
    }
}

/// Kills a node's process.
pub(crate) async fn kill(dir: &Path, name: &str) -> anyhow::Result<()> {
    let node = Local::open(dir)?.node(name)?;
    report(process::kill(&node).await?, &node, "killed")
}

/// Freezes a node's process.
pub(crate) fn pause(dir: &Path, name: &str) -> anyhow::Result<()> {
    let node = Local::open(dir)?.node(name)?;
    report(process::send(&node, Signal::SIGSTOP)?, &node, "paused")
}

/// Lets a frozen process go on.
pub(crate) fn resume(dir: &Path, name: &str) -> anyhow::Result<()> {
    let node = Local::open(dir)?.node(name)?;
    report(process::send(&node, Signal::SIGCONT)?, &node, "resumed")
}

fn report(done: bool, node: &Node, what: &str) -> anyhow::Result<()> {
    if !done {
        bail!("{} is not running", node.name);
    }
    say!("{} is {what} (pid {})", node.name, node.pid);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_whose_process_is_gone_is_down() {
        let gone = Node {
            name: "d1".to_owned(),
            role: Role::Data,
            pid: u32::MAX,
            pg: None,
            flight: None,
            rpc: String::new(),
            http: String::new(),
            dir: "/nowhere".into(),
        };
        let up = NodeStatus { name: "d1".into(), state: "up".into(), ..NodeStatus::default() };
        let reply = StatusReply { leader: "d1".into(), nodes: vec![up], ..StatusReply::default() };
        let merged = merge(reply, std::slice::from_ref(&gone));
        assert_eq!(merged.nodes.first().map(|node| node.state.as_str()), Some("down"));
        assert_eq!(merged.leader, "");
        let unseen = merge(StatusReply::default(), &[gone]);
        assert_eq!(unseen.nodes.first().map(|node| node.state.as_str()), Some("down"));
    }
}
