//! Heartbeats: that the node lives, and how far its chunks are, told to every access node on its own.
//!
//! Chunks that the answers name as dropped, by a command or because the node left their write set, are removed. Not
//! while a part of them is pending: the acknowledgement of it still counts should the replica come back. And not while
//! they are being caught up: the answer may be from before. Such a chunk is reported anew, to be named again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use hypertide_proto::{
    error::{Code, RpcError},
    ids::{ChunkId, Csn},
    wire::meta::{ChunkCompression, ChunkProgress, HeartbeatReply, HeartbeatRequest},
};

use xxhash_rust::xxh3::xxh3_64;

use super::{DataNode, Membership};
use crate::{ChunkReport, ChunkState, tables::Definitions};

const INTERVAL: Duration = Duration::from_millis(500);
/// Shorter than the interval, so that a dead access node holds up nothing.
const TIMEOUT: Duration = Duration::from_millis(400);

/// What an access node has acknowledged.
#[derive(Debug, Default)]
struct Told {
    /// `None` asks for a full report.
    chunks: Option<BTreeMap<ChunkId, ChunkReport>>,
}

/// Sends heartbeats until an access node does not know the disk any more.
pub(super) async fn run(node: &DataNode) {
    let mut told: BTreeMap<String, Told> = BTreeMap::new();
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(member) = node.membership() else { continue };
        let addresses = node.access.addresses();
        told.retain(|address, _| addresses.contains(address));
        for address in addresses {
            told.entry(address).or_default();
        }
        let started = Instant::now();
        let reports = node.store.report(&[]);
        let common = common(node, &member);
        let mut sends = Vec::with_capacity(told.len());
        for (address, told) in &mut told {
            sends.push(beat(node, address, told, (&common, &reports)));
        }
        let replies = join_all(sends).await;
        tracing::trace!("heartbeat took {:?}", started.elapsed());
        // It looked at the catalog as of now: no node that lags says so.
        if replies.iter().any(|reply| matches!(reply, Err(error) if error.code == Code::Stale)) {
            return;
        }
        let kept = take_replies(node, replies.into_iter().flatten().collect()).await;
        for chunks in told.values_mut().filter_map(|told| told.chunks.as_mut()) {
            chunks.retain(|chunk, _| !kept.contains(chunk));
        }
    }
}

/// What every access node is told.
fn common(node: &DataNode, member: &Membership) -> HeartbeatRequest {
    HeartbeatRequest {
        cluster: member.cluster.0.to_vec().into(),
        rid: Some(member.rid.into()),
        disk: node.store.identity().disk.0.to_vec().into(),
        progress: Vec::new(),
        full: false,
        // Zero is what a node reports that cannot even ask: nobody will place a chunk there.
        free_bytes: node.store.free_bytes().unwrap_or(0),
        pid: std::process::id(),
        damaged: node.store.damaged().into_iter().map(|chunk| chunk.0).collect(),
        definitions_hash: node.store.definitions().map_or(0, |kept| xxh3_64(&kept.body)),
    }
}

async fn beat(
    node: &DataNode,
    address: &str,
    told: &mut Told,
    (common, reports): (&HeartbeatRequest, &[ChunkReport]),
) -> Result<HeartbeatReply, RpcError> {
    let known = told.chunks.as_ref();
    let changed =
        |report: &&ChunkReport| known.and_then(|known| known.get(&report.chunk)) != Some(report);
    let request = HeartbeatRequest {
        progress: reports.iter().filter(changed).map(progress).collect(),
        full: known.is_none(),
        ..common.clone()
    };
    let reply = send(node, address, request).await;
    let reply = reply.inspect_err(|error| tracing::debug!("heartbeat to {address}: {error}"))?;
    let now = reports.iter().map(|report| (report.chunk, *report)).collect();
    told.chunks = (!reply.resync).then_some(now);
    Ok(reply)
}

async fn send(
    node: &DataNode,
    address: &str,
    request: HeartbeatRequest,
) -> Result<HeartbeatReply, RpcError> {
    let mut client = node.channels.meta(address)?;
    let mut request = tonic::Request::new(request);
    request.set_timeout(TIMEOUT);
    let reply = tokio::time::timeout(TIMEOUT, client.heartbeat(request)).await;
    let late = |_| tonic::Status::deadline_exceeded("no answer in time");
    Ok(reply.map_err(late)??.into_inner())
}

pub(super) fn progress(report: &ChunkReport) -> ChunkProgress {
    ChunkProgress {
        chunk: report.chunk.0,
        applied_csn: report.applied_csn.0,
        rows: report.rows,
        bytes: report.segment_bytes,
        chain: report.chain.to_be_bytes().to_vec().into(),
        compression: (report.state != ChunkState::Plain).then_some(ChunkCompression {
            csn: report.compressed_csn.0,
            before_bytes: report.before_bytes,
            after_bytes: report.after_bytes,
        }),
    }
}

/// Follows the access nodes, and drops chunks that the catalog dropped; gives those that cannot be dropped yet.
async fn take_replies(node: &DataNode, replies: Vec<HeartbeatReply>) -> Vec<ChunkId> {
    let (mut dropped, mut at) = (BTreeSet::new(), Csn(0));
    for mut reply in replies {
        if let Some(definitions) = reply.definitions.take() {
            keep(node, Definitions { index: definitions.index, body: definitions.body }).await;
        }
        node.access.learn(reply.access.into_iter().map(|member| member.rpc).collect());
        if !reply.dropped.is_empty() {
            at = at.max(Csn(reply.dropped_csn));
        }
        dropped.extend(reply.dropped.into_iter().map(ChunkId));
    }
    dropped.retain(|chunk| !node.store.report(&[*chunk]).is_empty());
    let busy = |chunk: &ChunkId| {
        !node.store.pending(&[*chunk]).is_empty() || node.transfers.lately(*chunk)
    };
    let (kept, removed): (Vec<ChunkId>, Vec<ChunkId>) = dropped.into_iter().partition(busy);
    // An empty list of chunks would name all of them.
    if !removed.is_empty() {
        tracing::info!("remove {} chunks that the catalog dropped here", removed.len());
        let store = Arc::clone(&node.store);
        let work = tokio::task::spawn_blocking(move || store.drop_chunks(&removed, at));
        match work.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("remove dropped chunks: {error}"),
            Err(error) => tracing::warn!("remove dropped chunks: {error}"),
        }
    }
    save_access(node).await;
    kept
}

/// Keeps what the catalog defines, for when no access node is left.
async fn keep(node: &DataNode, definitions: Definitions) {
    let store = Arc::clone(&node.store);
    let kept = tokio::task::spawn_blocking(move || store.save_definitions(definitions)).await;
    if let Err(error) = kept
        .map_err(|error| error.to_string())
        .and_then(|kept| kept.map_err(|error| error.to_string()))
    {
        tracing::warn!("keep a copy of the catalog's definitions: {error}");
    }
}

/// Remembers where the access nodes are, for the next start.
async fn save_access(node: &DataNode) {
    let mut identity = node.store.identity();
    let mut addresses = node.access.addresses();
    addresses.sort_unstable();
    let mut saved = identity.access.clone();
    saved.sort_unstable();
    if saved != addresses {
        identity.access = addresses;
        if let Err(error) = node.save(identity).await {
            tracing::warn!("remember the access nodes: {error}");
        }
    }
}
