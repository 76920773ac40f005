//! `hypertide_accept_loss`: an operator takes what one data node holds of a damaged chunk for all there is of it.
//!
//! The node is asked where its replica ends, then told to stay there (nothing of what it waits for can come any more), and
//! the catalog makes that the end of the chunk. A dry run ends after the question.

use std::{sync::Arc, time::Duration};

use arrow::{
    array::{ArrayRef, BooleanArray, Int64Array, StringArray},
    datatypes::{DataType, Field},
};
use hypertide_meta::catalog::{Chunk, ChunkState, Command, DataNode, Held, Loss, Outcome};
use hypertide_proto::{
    error::{Code, RpcError},
    ids::{ChunkId, Csn},
    wire::storage::{ChunkPoint, PointWanted, PointsRequest, SettleRequest},
};

use super::{call::Arguments, move_chunk::find_chunk, parse::regclass};
use crate::{Engine, Error, Session, session::Frame};

/// Parameters, in order.
pub(crate) const PARAMETERS: &[&str] = &["chunk", "node_name", "dry_run"];
/// Longest wait for one answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a replica to write what it has to its file.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// What a damaged chunk waits for, in the words of whoever can do it.
pub(crate) fn advice(chunk: &Chunk) -> String {
    if chunk.left.is_empty() {
        return "No data node holds anything of it that is of use: drop the chunk.".to_owned();
    }
    format!(
        "Bring back a disk that holds all of it, or give up what is lost: hypertide chunk accept-loss {}",
        chunk.name
    )
}

/// Columns: one row.
pub(crate) fn columns() -> Vec<Field> {
    vec![
        Field::new("chunk_name", DataType::Utf8, true),
        Field::new("node_name", DataType::Utf8, true),
        // Commits after the first number, up to and with the second, are lost.
        Field::new("lost_after", DataType::Int64, true),
        Field::new("lost_up_to", DataType::Int64, true),
        Field::new("accepted", DataType::Boolean, true),
    ]
}

/// Decides, or says what would be lost.
pub(crate) async fn run(
    session: &mut Session,
    frame: &Frame,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    if session.block.is_explicit() {
        let message = "hypertide_accept_loss cannot run inside a transaction block";
        return Err(Error::of("25001", message));
    }
    let name = arguments.text("chunk")?.ok_or_else(|| Error::of("22023", "invalid chunk"))?;
    let id = find(frame, &name)?;
    let dry = arguments.bool("dry_run")?.unwrap_or(false);
    let wanted = arguments.text("node_name")?;
    // What was decided meanwhile counts.
    let image = session.engine.catalog.barrier(session.commit_deadline()).await?;
    let gone = || Error::of("42P01", format_args!("chunk \"{name}\" was dropped meanwhile"));
    let chunk = image.catalog.chunk(id).ok_or_else(gone)?;
    if chunk.state != ChunkState::Damaged {
        let message = format_args!("chunk \"{}\" is {}, not damaged", chunk.name, chunk.state);
        return Err(Error::of("55000", message));
    }
    let holders = chunk.left.iter().filter_map(|(rid, _)| {
        let node = image.catalog.data_node(rid.node).filter(|node| node.rid == *rid)?;
        wanted.as_ref().is_none_or(|wanted| *wanted == node.name).then_some(node)
    });
    let (node, end) = longest(&session.engine, chunk, holders.collect()).await?;
    let up_to = chunk.last_csn;
    if dry {
        return Ok(row(chunk, node, Loss { after: end, up_to }, false));
    }
    if chunk.joining.iter().any(|joiner| joiner.rid == node.rid) {
        // Its copy could end between the next two steps, and the replica count as whole without what it forgets.
        session.propose(Command::DropJoin { chunk: id, rid: node.rid }).await?;
    }
    let point = settle(&session.engine, chunk, node).await.map_err(|error| {
        let (chunk, node) = (&chunk.name, &node.name);
        Error::of("55000", format_args!("data node \"{node}\" does not settle chunk \"{chunk}\""))
            .with_detail(error)
    })?;
    let rows = point.rows;
    let held = held(chunk.id, &point)?;
    let outcome = session.propose(Command::AcceptLoss { rid: node.rid, held, rows }).await?;
    let Outcome::LossAccepted { loss, .. } = outcome else {
        return Err(Error::of("XX000", format_args!("accepting a loss gave {outcome:?}")));
    };
    tracing::warn!(
        "chunk {} ({id}) goes on with what {} holds of it: commits after {} up to {} are given up",
        chunk.name,
        node.name,
        loss.after,
        loss.up_to
    );
    Ok(row(chunk, node, loss, true))
}

/// The chunk of that name, also that of a reference table.
fn find(frame: &Frame, text: &str) -> Result<ChunkId, Error> {
    let (_, name) = regclass(text)?;
    let catalog = &frame.snapshot.image.catalog;
    let plain = |chunk: &&Chunk| {
        let table = catalog.table(chunk.table);
        chunk.name == name && table.is_some_and(|table| table.hypertable().is_none())
    };
    match catalog.chunks().find(plain) {
        Some(chunk) => Ok(chunk.id),
        None => find_chunk(frame, text).map(|chunk| chunk.id),
    }
}

/// The node that holds most of a chunk, and up to which commit.
async fn longest<'a>(
    engine: &Engine,
    chunk: &Chunk,
    nodes: Vec<&'a DataNode>,
) -> Result<(&'a DataNode, Csn), Error> {
    let (mut best, mut silent) = (None, Vec::new());
    for node in nodes {
        match applied(engine, chunk.id, node).await {
            Ok(Some(csn)) if best.is_none_or(|(_, most)| csn > most) => best = Some((node, csn)),
            Ok(_) => {}
            Err(error) => silent.push(format!("{}: {error}", node.name)),
        }
    }
    best.ok_or_else(|| {
        let message = format_args!(
            "no data node that answers holds anything of chunk \"{}\" to go on with",
            chunk.name
        );
        let error = Error::of("55000", message);
        if silent.is_empty() { error } else { error.with_detail(silent.join("; ")) }
    })
}

/// The last commit that a node has applied of a chunk; `None` when it does not hold it.
async fn applied(
    engine: &Engine,
    chunk: ChunkId,
    node: &DataNode,
) -> Result<Option<Csn>, RpcError> {
    let request = PointsRequest {
        cluster: cluster(engine)?,
        rid: Some(node.rid.into()),
        wanted: vec![PointWanted { chunk: chunk.0, csn: 0 }],
    };
    let mut client = engine.channels.storage(&node.rpc)?;
    let reply = tokio::time::timeout(ASK_TIMEOUT, client.points(request)).await;
    let found = reply.map_err(|_| silent())??.into_inner().found;
    Ok(found.first().filter(|found| found.held).map(|found| Csn(found.applied_csn)))
}

async fn settle(engine: &Engine, chunk: &Chunk, node: &DataNode) -> Result<ChunkPoint, RpcError> {
    let (cluster, rid) = (cluster(engine)?, Some(node.rid.into()));
    let mut client = engine.channels.storage(&node.rpc)?;
    let request = SettleRequest { cluster, rid, chunk: chunk.id.0, epoch: chunk.epoch.0 };
    let reply = tokio::time::timeout(SETTLE_TIMEOUT, client.settle(request)).await;
    let point = reply.map_err(|_| silent())??.into_inner().point;
    point.ok_or_else(|| RpcError::new(Code::NotFound, "it holds nothing of the chunk any more"))
}

fn cluster(engine: &Engine) -> Result<bytes::Bytes, RpcError> {
    let gone = || RpcError::new(Code::Unavailable, "this access node belongs to no cluster yet");
    Ok(engine.catalog.cluster().ok_or_else(gone)?.0.to_vec().into())
}

fn silent() -> RpcError {
    RpcError::new(Code::DeadlineExceeded, "it does not answer in time")
}

fn held(chunk: ChunkId, point: &ChunkPoint) -> Result<Held, Error> {
    let chain = point.chain.as_ref().try_into().map(u128::from_be_bytes);
    let chain = chain.map_err(|_| Error::of("XX000", "a running hash does not have 16 bytes"))?;
    Ok(Held { chunk, csn: Csn(point.csn), chain })
}

fn row(chunk: &Chunk, node: &DataNode, loss: Loss, accepted: bool) -> Vec<ArrayRef> {
    let number = |csn: Csn| -> ArrayRef {
        Arc::new(Int64Array::from(vec![i64::try_from(csn.0).unwrap_or(i64::MAX)]))
    };
    vec![
        Arc::new(StringArray::from(vec![chunk.name.as_str()])),
        Arc::new(StringArray::from(vec![node.name.as_str()])),
        number(loss.after),
        number(loss.up_to),
        Arc::new(BooleanArray::from(vec![accepted])),
    ]
}
