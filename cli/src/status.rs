//! The state of a cluster's nodes as listings.

use hypertide_proto::wire::meta::{ChunkCounts, NodeStatus, StatusReply};
use serde::Serialize;
use serde_json::{Value, json};

use crate::format::{Format, Listing};

/// Columns of a node for programs: the contract of `cluster status` and `node ls`.
const NODE_COLUMNS: [&str; 6] = ["name", "role", "state", "pid", "chunks", "bytes"];

/// The nodes, one a row.
pub(crate) fn nodes(status: &StatusReply) -> Listing {
    let mut listing = Listing::new(&NODE_COLUMNS);
    for node in in_order(status) {
        listing.push(node_row(node));
    }
    listing
}

/// Access nodes first, then by the numbers in their names.
fn in_order(status: &StatusReply) -> Vec<&NodeStatus> {
    let mut nodes: Vec<&NodeStatus> = status.nodes.iter().collect();
    nodes.sort_by_key(|node| (&node.role, node.name.len(), &node.name));
    nodes
}

fn node_row(node: &NodeStatus) -> Vec<Value> {
    let NodeStatus { name, role, state, .. } = node;
    vec![
        json!(name),
        json!(role),
        json!(state),
        json!(node.pid),
        json!(node.chunks),
        json!(node.bytes),
    ]
}

/// Prints the cluster with its leader and term.
pub(crate) fn print(status: &StatusReply, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => say!("{}", serde_json::to_string(&Report::new(status))?),
        Format::Csv => wide(status).print(format)?,
        Format::Table => {
            wide(status).print(format)?;
            say!("{}", sentence(&status.chunks.unwrap_or_default()));
        }
    }
    Ok(())
}

/// The contract of `cluster status`; the leader is null when there is none.
#[derive(Serialize)]
struct Report<'a> {
    leader: Option<&'a str>,
    term: u64,
    nodes: Listing,
    chunks: Chunks,
}

/// How many chunks are how well replicated.
#[derive(Serialize)]
struct Chunks {
    total: u64,
    in_sync: u64,
    under_replicated: u64,
    joining: u64,
    damaged: u64,
    unavailable: u64,
}

impl<'a> Report<'a> {
    fn new(status: &'a StatusReply) -> Self {
        let leader = Some(status.leader.as_str()).filter(|leader| !leader.is_empty());
        let counts = status.chunks.unwrap_or_default();
        let chunks = Chunks {
            total: counts.total,
            in_sync: counts.in_sync,
            under_replicated: counts.under_replicated,
            joining: counts.joining,
            damaged: counts.damaged,
            unavailable: counts.unavailable,
        };
        Self { leader, term: status.term, nodes: nodes(status), chunks }
    }
}

/// The counts of chunks for people.
fn sentence(counts: &ChunkCounts) -> String {
    let ChunkCounts { total, in_sync, under_replicated, joining, damaged, unavailable } = counts;
    format!(
        "chunks: {total}, in sync {in_sync}, under-replicated {under_replicated}, joining {joining}, \
         damaged {damaged}, unavailable {unavailable}"
    )
}

/// The nodes with what only people read.
fn wide(status: &StatusReply) -> Listing {
    let columns =
        ["name", "role", "state", "leader", "term", "pid", "chunks", "rows", "bytes", "rpc"];
    let mut listing = Listing::new(&columns);
    for node in in_order(status) {
        let leads = !status.leader.is_empty() && node.name == status.leader;
        let access = node.role == "access";
        listing.push(vec![
            json!(node.name),
            json!(node.role),
            json!(node.state),
            json!(if leads { "*" } else { "" }),
            if access { json!(status.term) } else { Value::Null },
            json!(node.pid),
            json!(node.chunks),
            json!(node.rows),
            json!(node.bytes),
            json!(node.rpc),
        ]);
    }
    listing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> StatusReply {
        let node = NodeStatus {
            name: "d1".to_owned(),
            role: "data".to_owned(),
            state: "up".to_owned(),
            pid: 1236,
            chunks: 18,
            bytes: 10_485_760,
            rows: 5,
            ..NodeStatus::default()
        };
        let chunks = ChunkCounts {
            total: 9,
            in_sync: 8,
            under_replicated: 1,
            joining: 1,
            ..Default::default()
        };
        let chunks = Some(chunks);
        StatusReply {
            leader: "a1".to_owned(),
            term: 3,
            nodes: vec![node],
            chunks,
            ..Default::default()
        }
    }

    #[test]
    fn the_json_is_the_contract() {
        let node =
            r#"{"name":"d1","role":"data","state":"up","pid":1236,"chunks":18,"bytes":10485760}"#;
        let chunks = r#"{"total":9,"in_sync":8,"under_replicated":1,"joining":1,"damaged":0,"unavailable":0}"#;
        let expected = format!(r#"{{"leader":"a1","term":3,"nodes":[{node}],"chunks":{chunks}}}"#);
        let report = serde_json::to_string(&Report::new(&status())).expect("it is plain");
        assert_eq!(report, expected);
    }

    #[test]
    fn no_leader_is_null() {
        let leaderless = StatusReply { leader: String::new(), ..status() };
        assert_eq!(Report::new(&leaderless).leader, None);
    }
}
