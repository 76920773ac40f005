//! `copy_chunk` and `move_chunk`: orders that the Raft leader carries out, and that the statement waits for.
//!
//! The order is in the catalog, so that it goes on when this access node is lost, or the statement is cancelled.
//! `cleanup_copy_chunk_operation` takes it back.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::array::{ArrayRef, StringArray};
use hypertide_meta::catalog::{Chunk, Command, DataNode, Order};
use hypertide_proto::ids::{ChunkId, NodeId};

use super::{call::Arguments, parse::regclass};
use crate::{Error, Session, session::Frame};

/// Parameters of both, in order.
pub(crate) const PARAMETERS: &[&str] =
    &["chunk", "source_node", "destination_node", "operation_id"];
/// Parameters of `cleanup_copy_chunk_operation`.
pub(crate) const CLEANUP_PARAMETERS: &[&str] = &["operation_id"];
/// Pause between two looks whether the replica is where it should be.
const LOOK_DELAY: Duration = Duration::from_millis(100);

/// Orders the copy, or the move, and waits until it is done.
pub(crate) async fn order(
    session: &mut Session,
    frame: &Frame,
    arguments: &Arguments,
    moves: bool,
) -> Result<Vec<ArrayRef>, Error> {
    let what = if moves { "move_chunk" } else { "copy_chunk" };
    if session.block.is_explicit() {
        return Err(Error::of(
            "25001",
            format_args!("{what} cannot run inside a transaction block"),
        ));
    }
    let chunk = chunk_of(frame, arguments)?;
    let source = node_of(frame, arguments, "source_node")?;
    let target = node_of(frame, arguments, "destination_node")?;
    if source.id() == target.id() {
        return Err(Error::of("42710", "source and destination data node match"));
    }
    if !chunk.in_sync.contains(&source.rid) {
        let (chunk, node) = (&chunk.name, &source.name);
        let message =
            format_args!("chunk \"{chunk}\" does not exist on source data node \"{node}\"");
        return Err(Error::of("42704", message));
    }
    let operation = match arguments.text("operation_id")? {
        Some(operation) => checked(operation)?,
        None => format!("ts_copy_{}_{}_{}", chunk.id.0, target.id().0, frame.snapshot.csn.0),
    };
    let order = Order {
        operation: operation.clone(),
        chunk: chunk.id,
        target: target.id(),
        source: moves.then(|| source.id()),
        at_ms: 0,
    };
    let (chunk, target, source) = (chunk.id, target.id(), order.source);
    session.propose(Command::OrderCopy(order)).await?;
    wait(session, &operation, (chunk, target, source)).await?;
    Ok(vec![Arc::new(StringArray::from(vec![operation]))])
}

/// Takes an order back.
pub(crate) async fn cleanup(
    session: &mut Session,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    let operation = arguments.text("operation_id")?;
    let operation =
        operation.ok_or_else(|| Error::of("22023", "invalid chunk copy operation id"))?;
    session.propose(Command::CancelOrder { operation }).await?;
    Ok(vec![Arc::new(StringArray::from(vec![""]))])
}

/// Waits until the replica is in sync at its target, and gone from its source.
async fn wait(
    session: &mut Session,
    operation: &str,
    (chunk, target, source): (ChunkId, NodeId, Option<NodeId>),
) -> Result<(), Error> {
    let deadline = session.deadline();
    loop {
        // While the leader changes nobody knows; the order stands.
        if let Ok(image) = session.engine.catalog.barrier(session.commit_deadline()).await {
            let Some(now) = image.catalog.chunk(chunk) else {
                return Err(Error::of("55000", "the chunk was dropped meanwhile"));
            };
            let at = |node: NodeId| now.in_sync.iter().any(|rid| rid.node == node);
            if at(target) && !source.is_some_and(at) {
                session.changed_at(image.applied);
                return Ok(());
            }
            if image.catalog.orders().all(|order| order.operation != operation) {
                return Err(Error::of("57014", "the operation was taken back meanwhile"));
            }
        }
        if Instant::now() + LOOK_DELAY >= deadline {
            let message = "the chunk is still on its way: the order stands";
            return Err(Error::of("57014", message));
        }
        tokio::time::sleep(LOOK_DELAY).await;
    }
}

fn chunk_of<'a>(frame: &'a Frame, arguments: &Arguments) -> Result<&'a Chunk, Error> {
    let text = arguments.text("chunk")?.ok_or_else(|| Error::of("22023", "invalid chunk"))?;
    find_chunk(frame, &text)
}

/// The chunk that a text names, with or without its schema.
pub(crate) fn find_chunk<'a>(frame: &'a Frame, text: &str) -> Result<&'a Chunk, Error> {
    let (schema, name) = regclass(text)?;
    let catalog = &frame.snapshot.image.catalog;
    let found = catalog.tables().filter_map(|table| table.hypertable().map(|made| (table, made)));
    let mut found = found
        .filter(|(_, made)| schema.as_ref().is_none_or(|schema| *schema == made.chunk_schema))
        .flat_map(|(table, _)| catalog.chunks_of(table.id))
        .filter(|chunk| chunk.name == name);
    found.next().ok_or_else(|| Error::of("42P01", format_args!("chunk \"{text}\" does not exist")))
}

fn node_of<'a>(
    frame: &'a Frame,
    arguments: &Arguments,
    parameter: &str,
) -> Result<&'a DataNode, Error> {
    let name = arguments.text(parameter)?;
    let name = name.ok_or_else(|| Error::of("22023", "invalid source or destination node"))?;
    let node = frame.snapshot.image.catalog.data_node_named(&name);
    node.ok_or_else(|| Error::of("42704", format_args!("data node \"{name}\" does not exist")))
}

fn checked(operation: String) -> Result<String, Error> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if !operation.is_empty() && operation.len() < 64 && operation.bytes().all(plain) {
        return Ok(operation);
    }
    let message = format_args!("operation_id argument \"{operation}\" contains invalid characters");
    Err(Error::of("22023", message)
        .with_hint("Use lower case letters, digits and underscores, 63 at most."))
}
