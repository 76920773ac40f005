//! Sends the parts and the fate of a transaction to data nodes.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hypertide_proto::{
    decision::Decision,
    error::{Code, RpcError},
    ids::{ChunkId, Rid, TxnId},
    wire::storage::{DecideRequest, Part, PrepareRequest},
};
use tokio::task::JoinSet;

use crate::{Engine, Error};

/// Longest time that one attempt to make parts durable may take. A node that hangs is taken out of the replicas
/// meanwhile, and the next look at the catalog shows it.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time that one attempt to tell a decision may take.
const DECIDE_TIMEOUT: Duration = Duration::from_secs(2);
/// Attempts to tell a decision. A node that missed them all asks for it.
const DECIDE_ATTEMPTS: u32 = 3;

/// What became of parts sent to a disk.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// The disk.
    pub(crate) rid: Rid,
    /// The parts.
    pub(crate) numbers: Vec<(ChunkId, u32)>,
    /// Whether they are durable there.
    pub(crate) outcome: Result<(), Refused>,
}

/// Why parts are not durable on a disk.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Whether another attempt, or another set of replicas, may mend it.
    pub(crate) transient: bool,
    /// Whether another transaction is about to change the same: it passes, or ends in a conflict.
    pub(crate) reserved: bool,
    /// The error for the client when it does not.
    pub(crate) error: Error,
}

/// Parts of a transaction on their way to one disk.
#[derive(Debug)]
pub(crate) struct Shipment {
    /// The transaction.
    pub(crate) txn: TxnId,
    /// The disk.
    pub(crate) rid: Rid,
    /// The parts.
    pub(crate) parts: Vec<Part>,
}

/// Makes parts durable on one disk.
pub(crate) async fn prepare(
    engine: &Engine,
    shipment: Shipment,
    deadline: Instant,
) -> Result<(), Refused> {
    let rid = shipment.rid;
    let deadline = deadline.min(Instant::now() + PREPARE_TIMEOUT);
    let image = engine.catalog.image();
    let node = image.catalog.data_node(rid.node).filter(|node| node.rid == rid);
    let name = node.map_or_else(|| rid.to_string(), |node| node.name.clone());
    let answer = match node {
        Some(node) => send(engine, &node.rpc, request(engine, shipment, deadline), deadline).await,
        None => Err(RpcError::new(Code::Unavailable, "its disk is not registered")),
    };
    answer.map_err(|error| {
        // Only what the rows themselves cause is final; a node that fails may be taken out of the replicas.
        let (code, what) = (error.code, format!("[{name}]: {}", error.message));
        let crossed = matches!(code, Code::Reserved | Code::Contended);
        let transient = !crossed && !matches!(code, Code::Invalid | Code::TooLarge);
        let error = match crossed {
            true => contended(match code {
                Code::Reserved => "Another transaction is about to change the same rows.",
                _ => "Another transaction has changed the same rows.",
            }),
            false => Error { message: what, ..Error::from(error) },
        };
        Refused { transient, reserved: code == Code::Reserved, error }
    })
}

/// The error of a transaction that another one crossed.
pub(crate) fn contended(what: impl std::fmt::Display) -> Error {
    Error::of("40001", "could not serialize access due to concurrent update")
        .with_detail(what)
        .with_hint("The transaction might succeed if retried.")
}

fn request(engine: &Engine, shipment: Shipment, deadline: Instant) -> PrepareRequest {
    let Shipment { txn, rid, parts } = shipment;
    PrepareRequest {
        cluster: engine
            .catalog
            .cluster()
            .map_or_else(Bytes::new, |cluster| cluster.0.to_vec().into()),
        txn: Some(txn.into()),
        rid: Some(rid.into()),
        parts,
        deadline_ms: left(deadline).as_millis().try_into().unwrap_or(u32::MAX),
    }
}

async fn send(
    engine: &Engine,
    address: &str,
    request: PrepareRequest,
    deadline: Instant,
) -> Result<(), RpcError> {
    let rid = request.rid;
    let mut client = engine.channels.linked_storage(address)?;
    let answer = tokio::time::timeout(left(deadline), client.prepare(request)).await;
    let reply = answer
        .map_err(|_| RpcError::new(Code::DeadlineExceeded, "no answer in time"))?
        .map_err(RpcError::from)?
        .into_inner();
    if reply.rid == rid {
        return Ok(());
    }
    Err(RpcError::new(Code::WrongNode, "another disk answered"))
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Tells data nodes what became of a transaction, a few times at most.
pub(crate) async fn decide(engine: Arc<Engine>, disks: BTreeSet<Rid>, decision: Decision) {
    let image = engine.catalog.image();
    let mut telling = JoinSet::new();
    for rid in disks {
        let Some(node) = image.catalog.data_node(rid.node) else { continue };
        let (engine, address, decision) = (Arc::clone(&engine), node.rpc.clone(), decision.clone());
        telling.spawn(async move {
            for attempt in 1..=DECIDE_ATTEMPTS {
                if tell(&engine, &address, &decision).await {
                    return;
                }
                tokio::time::sleep(DECIDE_TIMEOUT / 10 * attempt).await;
            }
            tracing::debug!(%address, txn = %decision.txn, "a data node was not told a decision; it will ask");
        });
    }
    telling.join_all().await;
}

async fn tell(engine: &Engine, address: &str, decision: &Decision) -> bool {
    let Some(cluster) = engine.catalog.cluster() else { return false };
    let request = DecideRequest {
        cluster: cluster.0.to_vec().into(),
        decisions: vec![decision.clone().into()],
    };
    let Ok(mut client) = engine.channels.linked_storage(address) else { return false };
    matches!(tokio::time::timeout(DECIDE_TIMEOUT, client.decide(request)).await, Ok(Ok(_)))
}
