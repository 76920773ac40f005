//! One call of a data node: the request, and its answer as record batches.

use std::time::Instant;

use arrow_flight::{FlightData, decode::FlightRecordBatchStream, error::FlightError};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use hypertide_proto::{
    error::{Code, RpcError},
    wire::query::{ExecuteReply, ExecuteRequest, FragmentMetrics},
};
use tonic::{Status, Streaming};

use super::{PLAN_VERSION, keep::Rows, run::Place};
use crate::{context::Statement, route::Fragment};

/// What one node did for a fragment, or for a piece of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeReport {
    /// Bytes that came over the wire.
    pub(crate) bytes: u64,
    /// Time from the request to the last message, in microseconds.
    pub(crate) elapsed_us: u64,
    /// What the node itself reported with its last message.
    pub(crate) node: Option<FragmentMetrics>,
}

impl NodeReport {
    /// What it did for two pieces.
    pub(super) fn and(self, next: Self) -> Self {
        Self {
            bytes: self.bytes + next.bytes,
            elapsed_us: self.elapsed_us + next.elapsed_us,
            node: self.node.zip(next.node).map(|(one, other)| sum(one, other)),
        }
    }
}

fn sum(one: FragmentMetrics, other: FragmentMetrics) -> FragmentMetrics {
    FragmentMetrics {
        rows: one.rows + other.rows,
        elapsed_us: one.elapsed_us + other.elapsed_us,
        chunks: one.chunks + other.chunks,
        segments: one.segments + other.segments,
        segments_skipped: one.segments_skipped + other.segments_skipped,
        blocks_skipped: one.blocks_skipped + other.blocks_skipped,
        bytes_read: one.bytes_read + other.bytes_read,
        plan: one.plan + "\n" + &other.plan,
        chunks_skipped: one.chunks_skipped + other.chunks_skipped,
        blocks: one.blocks + other.blocks,
        bytes_skipped: one.bytes_skipped + other.bytes_skipped,
    }
}

/// Sends a plan to the node of a fragment; gives its rows as they come.
pub(super) async fn send(
    statement: &Statement,
    fragment: &Fragment,
    plan: Bytes,
    place: Place,
) -> Result<Rows, RpcError> {
    let started = Instant::now();
    let deadline = tokio::time::Instant::from_std(statement.deadline);
    let image = &statement.snapshot.image;
    let node = image.catalog.data_node(fragment.node).ok_or_else(|| {
        RpcError::new(Code::NotFound, format_args!("data node {} is gone", fragment.node))
    })?;
    let messages = messages_until(open(statement, &node.rpc, plan, deadline).await?, deadline);
    let mut report = NodeReport::default();
    let data = messages.filter_map(move |message| {
        let data = message.map_err(|status| FlightError::Tonic(Box::new(status))).map(|message| {
            report.bytes += (message.header.len() + message.body.len()) as u64;
            report.elapsed_us = started.elapsed().as_micros() as u64;
            report.node = message.metrics.or(report.node.take());
            place.put(report.clone());
            if message.header.is_empty() && message.body.is_empty() {
                return None;
            }
            let data = FlightData::new();
            Some(data.with_data_header(message.header).with_data_body(message.body))
        });
        futures::future::ready(data.transpose())
    });
    let rows = FlightRecordBatchStream::new_from_flight_data(data.boxed());
    Ok(rows.map(|batch| batch.map_err(flight_error)).boxed())
}

/// Asks a node for the answer to a plan. A node that turns out to be out of reach from here alone is asked once more, the
/// other way: it may have the only replica.
async fn open(
    statement: &Statement,
    address: &str,
    plan: Bytes,
    deadline: tokio::time::Instant,
) -> Result<Streaming<ExecuteReply>, RpcError> {
    let mut client = statement.channels.fragments(address)?;
    let mut ask = async || {
        let asked = client.execute(request(statement, plan.clone())?);
        let answer = tokio::time::timeout_at(deadline, asked).await.map_err(|_| out_of_time())?;
        Ok(answer?.into_inner())
    };
    let direct = !statement.channels.goes_around(address);
    match ask().await {
        Err(_) if direct && statement.channels.goes_around(address) => ask().await,
        answer => answer,
    }
}

fn request(statement: &Statement, plan: Bytes) -> Result<ExecuteRequest, RpcError> {
    let cluster = statement
        .catalog
        .cluster()
        .ok_or_else(|| RpcError::new(Code::Unavailable, "this node belongs to no cluster yet"))?;
    let left = statement.deadline.saturating_duration_since(Instant::now());
    Ok(ExecuteRequest {
        cluster: cluster.0.to_vec().into(),
        snapshot: statement.snapshot.csn.0,
        own_txn: statement.snapshot.own.map(Into::into),
        plan_version: PLAN_VERSION,
        plan,
        access_rpc: statement.catalog.rpc(),
        deadline_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
        trace: statement.trace.clone(),
        settings: statement.settings.clone(),
    })
}

/// The messages, or an error when the next one does not come in time.
fn messages_until(
    messages: Streaming<ExecuteReply>,
    deadline: tokio::time::Instant,
) -> impl Stream<Item = Result<ExecuteReply, Status>> + Send {
    stream::unfold(Some(messages), move |messages| async move {
        let mut messages = messages?;
        match tokio::time::timeout_at(deadline, messages.message()).await {
            Ok(Ok(Some(message))) => Some((Ok(message), Some(messages))),
            Ok(Ok(None)) => None,
            Ok(Err(status)) => Some((Err(status), None)),
            Err(_) => Some((Err(out_of_time().into()), None)),
        }
    })
}

fn out_of_time() -> RpcError {
    RpcError::new(Code::DeadlineExceeded, "the data node did not answer in time")
}

fn flight_error(error: FlightError) -> RpcError {
    match error {
        FlightError::Tonic(status) => RpcError::from(*status),
        other => RpcError::new(Code::Internal, other),
    }
}
