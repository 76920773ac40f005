//! `hypertide rebalance`: evening out what data nodes hold.
//!
//! Rebalancing is on from the start and goes by itself; this stops it, starts it again, and shows what it does. Repair
//! and drained nodes do not depend on it, but they share its rate.

use clap::Subcommand;
use hypertide_proto::{
    ids::{NodeId, Rid},
    wire::meta::StatusReply,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    format::{Format, Listing},
    locate::Target,
    sql::Remote,
};

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Let chunks move to even nodes out.
    #[command(visible_alias = "resume")]
    Start {
        /// Most bytes a second that one copy of a chunk takes, also for repair.
        #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(65_536..))]
        rate: Option<u64>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Show how it is set, how even the nodes are, and the copies under way and done last.
    Status {
        #[command(flatten)]
        target: Target,
        /// How to print.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Move no more chunks to even nodes out; what is under way is finished.
    #[command(visible_alias = "pause")]
    Stop {
        #[command(flatten)]
        remote: Remote,
    },
}

/// Runs the verb.
pub(crate) async fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Start { rate, remote } => {
            let rate = rate.map(|rate| format!(", bytes_per_second => {rate}"));
            set(&remote, &format!("enabled => true{}", rate.unwrap_or_default())).await?;
            say!("rebalancing is on");
        }
        Verb::Stop { remote } => {
            set(&remote, "enabled => false").await?;
            say!("rebalancing is off");
        }
        Verb::Status { target, format } => print(&target.status().await?, format)?,
    }
    Ok(())
}

async fn set(remote: &Remote, arguments: &str) -> anyhow::Result<()> {
    remote.connect().await?.run(&format!("SELECT set_rebalancing({arguments})")).await?;
    Ok(())
}

/// What programs read.
#[derive(Serialize)]
struct Report {
    enabled: bool,
    bytes_per_second: u64,
    running: u64,
    copies_done: u64,
    moves_done: u64,
    bytes_copied: u64,
    spread_percent: Option<u64>,
    copies: Listing,
}

fn print(status: &StatusReply, format: Format) -> anyhow::Result<()> {
    let now = status.rebalance.unwrap_or_default();
    let report = Report {
        enabled: now.enabled,
        bytes_per_second: now.bytes_per_second,
        running: now.running,
        copies_done: now.copies_done,
        moves_done: now.moves_done,
        bytes_copied: now.bytes_copied,
        spread_percent: spread(status),
        copies: copies(status),
    };
    match format {
        Format::Json => say!("{}", serde_json::to_string(&report)?),
        Format::Csv => report.copies.print(format)?,
        Format::Table => {
            let state = if report.enabled { "on" } else { "off" };
            let spread =
                report.spread_percent.map(|percent| format!(", nodes differ by {percent} %"));
            say!(
                "rebalancing is {state}, at most {} bytes/s a copy{}",
                report.bytes_per_second,
                spread.unwrap_or_default()
            );
            say!(
                "since the leader leads: {} copies, {} of them moves, {} bytes; {} under way",
                report.copies_done,
                report.moves_done,
                report.bytes_copied,
                report.running
            );
            report.copies.print(format)?;
        }
    }
    Ok(())
}

/// By how many percent of the mean the fullest and the emptiest data node differ, in bytes on disk.
fn spread(status: &StatusReply) -> Option<u64> {
    let takes = status.nodes.iter().filter(|node| {
        node.role == "data" && node.state == "up" && node.membership == "active" && !node.blocked
    });
    let bytes: Vec<u64> = takes.map(|node| node.bytes).collect();
    let mean = bytes.iter().sum::<u64>().checked_div(bytes.len() as u64)?;
    let (most, least) = (bytes.iter().max()?, bytes.iter().min()?);
    ((most - least) * 100).checked_div(mean)
}

fn copies(status: &StatusReply) -> Listing {
    let columns = ["chunk", "source", "target", "reason", "phase", "bytes", "whole", "ms", "error"];
    let mut listing = Listing::new(&columns);
    let name = |rid: Option<hypertide_proto::wire::types::Rid>| -> Value {
        let Some(rid) = rid.map(Rid::from) else { return Value::Null };
        let of =
            |id: NodeId| status.nodes.iter().find(|node| node.role == "data" && node.id == id.0);
        json!(of(rid.node).map_or_else(|| rid.to_string(), |node| node.name.clone()))
    };
    for copy in &status.transfers {
        listing.push(vec![
            json!(copy.chunk),
            name(copy.source),
            name(copy.target),
            json!(copy.reason),
            json!(copy.phase),
            json!(copy.bytes),
            json!(copy.whole),
            json!(copy.elapsed_ms),
            json!(copy.error),
        ]);
    }
    listing
}

#[cfg(test)]
mod tests {
    use hypertide_proto::wire::meta::NodeStatus;

    use super::*;

    #[test]
    fn the_spread_is_of_nodes_that_take_chunks() {
        let node = |bytes: u64, state: &str| NodeStatus {
            role: "data".to_owned(),
            state: state.to_owned(),
            membership: "active".to_owned(),
            bytes,
            ..NodeStatus::default()
        };
        let nodes = vec![node(90, "up"), node(110, "up"), node(5, "down")];
        let status = StatusReply { nodes, ..StatusReply::default() };
        assert_eq!(spread(&status), Some(20));
        assert_eq!(spread(&StatusReply::default()), None);
    }
}
