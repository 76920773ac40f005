//! `hypertide`: nodes, replicas, copies under way, ordered moves, rebalancing; and `chunk_replication_status`.

use std::collections::BTreeSet;

use hypertide_meta::{
    Image,
    catalog::{Chunk, ChunkState, Order, Table},
};
use hypertide_proto::{
    ids::{ChunkId, NodeId, Rid},
    wire::meta::{NodeStatus, StatusReply, Transfer},
};

use super::{
    rows::{
        Kind::{BigInt, Bool, Int, Text, Texts, TimestampTz},
        Rows, Value,
    },
    timescale::{hypertables_of, node_names},
};
use crate::sql::accept_loss::advice;

/// `timescaledb_experimental.chunk_replication_status`.
pub(super) fn chunk_replication_status(image: &Image) -> Rows {
    let mut rows = Rows::new(&[
        ("hypertable_schema", Text),
        ("hypertable_name", Text),
        ("chunk_schema", Text),
        ("chunk_name", Text),
        ("desired_num_replicas", Int),
        ("num_replicas", Int),
        ("replica_nodes", Texts),
        ("non_replica_nodes", Texts),
    ]);
    for (table, made) in hypertables_of(image) {
        for chunk in image.catalog.chunks_of(table.id) {
            let holds = |node: &NodeId| chunk.in_sync.iter().any(|rid| rid.node == *node);
            let others = made.data_nodes.iter().copied().filter(|node| !holds(node));
            rows.push([
                table.schema.as_str().into(),
                table.name.as_str().into(),
                made.chunk_schema.as_str().into(),
                chunk.name.as_str().into(),
                Value::Int(made.replication_factor.into()),
                chunk.in_sync.len().into(),
                node_names(image, chunk.in_sync.iter().map(|rid| rid.node)),
                node_names(image, others),
            ]);
        }
    }
    rows
}

/// `hypertide.replicas`: every copy of a chunk that the catalog knows of, also of reference tables.
pub(super) fn replicas(image: &Image, status: &StatusReply) -> Rows {
    let mut rows = Rows::new(&[
        ("hypertable_schema", Text),
        ("hypertable_name", Text),
        ("chunk_name", Text),
        ("chunk_id", BigInt),
        ("chunk_state", Text),
        ("epoch", BigInt),
        ("node_name", Text),
        ("incarnation", BigInt),
        // In-sync, joining, left (out of the write set, may come back), or damaged.
        ("state", Text),
        // Every commit up to this one is there for certain, and whether that is the last one.
        ("csn", BigInt),
        ("complete", Bool),
        // What a damaged chunk waits for.
        ("advice", Text),
    ]);
    let wrong: BTreeSet<(u64, Rid)> = status
        .damaged
        .iter()
        .filter_map(|replica| Some((replica.chunk, replica.rid?.into())))
        .collect();
    for table in image.catalog.tables() {
        for chunk in image.catalog.chunks_of(table.id) {
            for (rid, state, csn) in copies(chunk) {
                let damaged = wrong.contains(&(chunk.id.0, rid));
                rows.push([
                    table.schema.as_str().into(),
                    table.name.as_str().into(),
                    chunk.name.as_str().into(),
                    chunk.id.0.into(),
                    chunk.state.to_string().into(),
                    chunk.epoch.0.into(),
                    node_name(image, rid.node),
                    rid.incarnation.0.into(),
                    if damaged { "damaged" } else { state }.into(),
                    csn.into(),
                    (!damaged && csn == chunk.last_csn.0).into(),
                    (chunk.state == ChunkState::Damaged).then(|| advice(chunk)).into(),
                ]);
            }
        }
    }
    rows
}

/// The replicas of a chunk, how they stand, and up to which commit they are complete.
fn copies(chunk: &Chunk) -> Vec<(Rid, &'static str, u64)> {
    let in_sync = chunk.in_sync.iter().map(|rid| (*rid, "in-sync", chunk.last_csn.0));
    let joining = chunk.joining.iter().map(|joiner| (joiner.rid, "joining", joiner.csn.0));
    let left = chunk.left.iter().map(|(rid, csn)| (*rid, "left", csn.0));
    in_sync.chain(joining).chain(left).collect()
}

/// `hypertide.joins`: copies that the leader makes, made a moment ago, or will try again.
pub(super) fn joins(image: &Image, status: &StatusReply) -> Rows {
    let mut rows = Rows::new(&[
        ("hypertable_schema", Text),
        ("hypertable_name", Text),
        ("chunk_name", Text),
        ("chunk_id", BigInt),
        ("source_node", Text),
        ("target_node", Text),
        // Return, repair, order, drain or rebalance.
        ("reason", Text),
        // Copying, joining, done or failed.
        ("phase", Text),
        ("bytes", BigInt),
        ("whole", Bool),
        ("elapsed_ms", BigInt),
        ("failures", Int),
        ("error", Text),
    ]);
    for transfer in &status.transfers {
        let of = owner(image, ChunkId(transfer.chunk));
        rows.push([
            of.map(|(table, _)| table.schema.clone()).into(),
            of.map(|(table, _)| table.name.clone()).into(),
            of.map(|(_, chunk)| chunk.name.clone()).into(),
            transfer.chunk.into(),
            end(image, transfer.source),
            end(image, transfer.target),
            transfer.reason.as_str().into(),
            transfer.phase.as_str().into(),
            transfer.bytes.into(),
            transfer.whole.into(),
            transfer.elapsed_ms.into(),
            u64::from(transfer.failures).into(),
            Some(transfer.error.as_str()).filter(|error| !error.is_empty()).into(),
        ]);
    }
    rows
}

/// `hypertide.moves`: copies and moves that operators ordered and that are not done.
pub(super) fn moves(image: &Image, status: &StatusReply) -> Rows {
    let mut rows = Rows::new(&[
        ("operation_id", Text),
        ("kind", Text),
        ("chunk_name", Text),
        ("chunk_id", BigInt),
        ("source_node", Text),
        ("destination_node", Text),
        ("ordered_at", TimestampTz),
        // Waiting, copying, joining, failed, done.
        ("phase", Text),
        ("bytes", BigInt),
        ("error", Text),
    ]);
    for order in image.catalog.orders() {
        let transfer = status.transfers.iter().rev().find(|transfer| carries(transfer, order));
        let copied = image
            .catalog
            .chunk(order.chunk)
            .is_some_and(|chunk| chunk.in_sync.iter().any(|rid| rid.node == order.target));
        let phase = match transfer {
            _ if copied => "done",
            Some(transfer) => &transfer.phase,
            None => "waiting",
        };
        rows.push([
            order.operation.as_str().into(),
            if order.source.is_some() { "move" } else { "copy" }.into(),
            owner(image, order.chunk).map(|(_, chunk)| chunk.name.clone()).into(),
            order.chunk.0.into(),
            order.source.map(|node| node_name(image, node)).unwrap_or(Value::Null),
            node_name(image, order.target),
            Value::TimestampTz(i64::try_from(order.at_ms).unwrap_or_default() * 1000),
            phase.into(),
            transfer.map_or(0, |transfer| transfer.bytes).into(),
            transfer.map(|transfer| transfer.error.as_str()).filter(|text| !text.is_empty()).into(),
        ]);
    }
    rows
}

fn carries(transfer: &Transfer, order: &Order) -> bool {
    let target = transfer.target.map(Rid::from).map(|rid| rid.node);
    transfer.chunk == order.chunk.0 && target == Some(order.target)
}

/// `hypertide.rebalancing`: one row. Sums are counted since the leader leads.
pub(super) fn rebalancing(_image: &Image, status: &StatusReply) -> Rows {
    let mut rows = Rows::new(&[
        ("enabled", Bool),
        ("bytes_per_second", BigInt),
        ("running", BigInt),
        ("copies_done", BigInt),
        ("moves_done", BigInt),
        ("bytes_copied", BigInt),
    ]);
    let now = status.rebalance.unwrap_or_default();
    rows.push([
        now.enabled.into(),
        now.bytes_per_second.into(),
        now.running.into(),
        now.copies_done.into(),
        now.moves_done.into(),
        now.bytes_copied.into(),
    ]);
    rows
}

/// `hypertide.nodes`: access nodes and data nodes.
pub(super) fn nodes(_image: &Image, status: &StatusReply) -> Rows {
    let mut rows = Rows::new(&[
        ("node_name", Text),
        ("role", Text),
        ("state", Text),
        // Voter; active, draining or drained.
        ("membership", Text),
        ("leader", Bool),
        ("chunks", BigInt),
        ("bytes", BigInt),
        ("rows", BigInt),
        ("free_bytes", BigInt),
        ("new_chunks_blocked", Bool),
        ("incarnation", BigInt),
        ("rpc", Text),
    ]);
    for node in &status.nodes {
        let data = node.role == "data";
        let of_data = |value: u64| if data { value.into() } else { Value::Null };
        let NodeStatus { name, role, state, membership, .. } = node;
        rows.push([
            name.as_str().into(),
            role.as_str().into(),
            state.as_str().into(),
            membership.as_str().into(),
            if data { Value::Null } else { (*name == status.leader).into() },
            of_data(node.chunks),
            of_data(node.bytes),
            of_data(node.rows),
            of_data(node.free_bytes),
            if data { node.blocked.into() } else { Value::Null },
            of_data(node.incarnation),
            node.rpc.as_str().into(),
        ]);
    }
    rows
}

fn owner(image: &Image, id: ChunkId) -> Option<(&Table, &Chunk)> {
    let chunk = image.catalog.chunk(id)?;
    Some((image.catalog.table(chunk.table)?, chunk))
}

fn end(image: &Image, rid: Option<hypertide_proto::wire::types::Rid>) -> Value {
    rid.map_or(Value::Null, |rid| node_name(image, Rid::from(rid).node))
}

/// Name of a node, or its number when it is gone.
fn node_name(image: &Image, node: NodeId) -> Value {
    let known = image.catalog.data_node(node);
    known.map_or_else(|| node.to_string(), |node| node.name.clone()).into()
}
