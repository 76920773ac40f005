//! Replica transfer between data nodes: catching up with the replica of another (the other side is `node/sending.rs`).
//!
//! - A chunk takes in one copy at a time; a request for one that is under way waits for it and finds it done.
//! - At most [`INCOMING_MAX`] copies come in and [`OUTGOING_MAX`] go out at once. One more is refused, and one more that
//!   is to go out waits.
//! - Whoever asked and went away ends the transfer: what was begun is thrown away, and nothing has changed.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hypertide_proto::{
    error::{CODE_KEY, Code, RpcError},
    ids::{ChunkId, Csn, Epoch, Rid},
    wire::storage::{ChunkPoint, FetchPiece, FetchRequest},
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};

use super::DataNode;
use crate::{
    ChunkSpec, Error,
    rpc::pieces,
    store::transfer::{Installed, Piece, Start, Wanted},
    tables::Point,
};

/// Copies that come in at once.
const INCOMING_MAX: usize = 2;
/// Copies that go out at once.
pub(super) const OUTGOING_MAX: usize = 2;
/// Pieces between the network and the disk.
pub(super) const PIECES_QUEUED: usize = 8;
/// How often a replica that moves on by itself while a copy comes in is asked for again.
const ATTEMPTS: usize = 4;
/// Longest that a transfer takes when the request names no deadline.
pub(super) const LIMIT: Duration = Duration::from_secs(600);
/// Chunks whose last transfer is remembered, those of late beside.
const GATES_MAX: usize = 4096;
/// How long a chunk that was caught up is not dropped for an answer to a heartbeat: the catalog takes the replica in
/// only after the copy is there.
const KEPT_AFTER: Duration = Duration::from_secs(30);

/// What is asked of the node that is to hold a replica.
#[derive(Clone, Debug)]
pub(crate) struct CatchUp {
    pub(crate) spec: ChunkSpec,
    pub(crate) epoch: Epoch,
    /// Address of the sender, and the disk that is expected there.
    pub(crate) source: (String, Rid),
    /// A commit to reach at least, zero for all that the sender has.
    pub(crate) to: Csn,
    /// The chain there, when it is known.
    pub(crate) chain: Option<u128>,
    /// `None` for the longest.
    pub(crate) limit: Option<Duration>,
    /// Zero for as fast as it goes.
    pub(crate) bytes_per_second: u64,
    /// Commits that were given up: after the first, up to the second.
    pub(crate) lost: Vec<(Csn, Csn)>,
}

/// How far a replica is afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CaughtUp {
    /// The place at the commit asked for, or the last applied.
    pub(crate) point: Point,
    /// The last applied.
    pub(crate) reached: Point,
    pub(crate) whole: bool,
    pub(crate) bytes: u64,
    pub(crate) commits: u64,
    pub(crate) rows: u64,
}

/// What a data node transferred since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransferStats {
    /// Copies that came in, whole chunks.
    pub whole: u64,
    /// Copies that came in, only the commits that were missed.
    pub deltas: u64,
    /// Copies that failed to come in.
    pub failed: u64,
    /// Bytes that came in.
    pub bytes_in: u64,
    /// Bytes that went out.
    pub bytes_out: u64,
    /// Copies that come in now.
    pub running: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    whole: AtomicU64,
    deltas: AtomicU64,
    failed: AtomicU64,
    bytes_in: AtomicU64,
    pub(super) bytes_out: AtomicU64,
}

/// One transfer at a time, the last epoch that one was asked for, and when.
#[derive(Debug, Default)]
struct Gate {
    turn: tokio::sync::Mutex<()>,
    last: Mutex<(Epoch, Option<Instant>)>,
}

/// The transfers of a node.
#[derive(Debug)]
pub(super) struct Transfers {
    incoming: Semaphore,
    pub(super) outgoing: Arc<Semaphore>,
    gates: Mutex<BTreeMap<ChunkId, Arc<Gate>>>,
    pub(super) counters: Arc<Counters>,
}

impl Default for Transfers {
    fn default() -> Self {
        Self {
            incoming: Semaphore::new(INCOMING_MAX),
            outgoing: Arc::new(Semaphore::new(OUTGOING_MAX)),
            gates: Mutex::default(),
            counters: Arc::default(),
        }
    }
}

impl Transfers {
    fn gate(&self, chunk: ChunkId) -> Arc<Gate> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if gates.len() >= GATES_MAX {
            // Of chunks that nobody asks for any more.
            gates.retain(|_, gate| Arc::strong_count(gate) > 1 || gate.lately());
        }
        Arc::clone(gates.entry(chunk).or_default())
    }

    /// Whether the chunk is caught up here, or was a moment ago.
    pub(super) fn lately(&self, chunk: ChunkId) -> bool {
        self.known(chunk).is_some_and(|gate| gate.lately() || gate.turn.try_lock().is_err())
    }

    /// Whether the chunk is caught up here.
    fn under_way(&self, chunk: ChunkId) -> bool {
        self.known(chunk).is_some_and(|gate| gate.turn.try_lock().is_err())
    }

    fn known(&self, chunk: ChunkId) -> Option<Arc<Gate>> {
        let gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.get(&chunk).map(Arc::clone)
    }

    /// Waits until nothing is sent any more, which still reads files.
    pub(super) async fn ended(&self) {
        // Never closed, so that it cannot fail.
        drop(self.outgoing.acquire_many(OUTGOING_MAX as u32).await);
    }

    fn stats(&self) -> TransferStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { whole, deltas, failed, bytes_in, bytes_out } = self.counters.as_ref();
        TransferStats {
            whole: read(whole),
            deltas: read(deltas),
            failed: read(failed),
            bytes_in: read(bytes_in),
            bytes_out: read(bytes_out),
            running: INCOMING_MAX.saturating_sub(self.incoming.available_permits()) as u64,
        }
    }

    fn count(&self, done: &Result<CaughtUp, RpcError>) {
        let add = |counter: &AtomicU64, n| {
            counter.fetch_add(n, Ordering::Relaxed);
        };
        match done {
            Ok(CaughtUp { whole, bytes, .. }) => {
                add(if *whole { &self.counters.whole } else { &self.counters.deltas }, 1);
                add(&self.counters.bytes_in, *bytes);
            }
            Err(_) => add(&self.counters.failed, 1),
        }
    }
}

impl Gate {
    /// Refuses a request of an epoch that is over.
    fn enter(&self, chunk: ChunkId, epoch: Epoch) -> Result<(), RpcError> {
        let mut last = self.last();
        let known = last.0;
        if epoch < known {
            let message = format_args!("chunk {chunk} is at epoch {known}, request had {epoch}");
            return Err(RpcError::new(Code::Stale, message));
        }
        *last = (epoch, Some(Instant::now()));
        Ok(())
    }

    /// Notes that the transfer of now is over.
    fn leave(&self) {
        self.last().1 = Some(Instant::now());
    }

    fn lately(&self) -> bool {
        self.last().1.is_some_and(|at| at.elapsed() < KEPT_AFTER)
    }

    fn last(&self) -> MutexGuard<'_, (Epoch, Option<Instant>)> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DataNode {
    /// Whether a chunk is caught up here.
    pub(crate) fn copies(&self, chunk: ChunkId) -> bool {
        self.transfers.under_way(chunk)
    }

    /// What was transferred since the start.
    #[must_use]
    pub fn transfers(&self) -> TransferStats {
        self.transfers.stats()
    }

    /// Brings the replica of a chunk up to another node's.
    pub(crate) async fn catch_up(&self, request: CatchUp) -> Result<CaughtUp, RpcError> {
        let started = Instant::now();
        let (chunk, source) = (request.spec.chunk, request.source.1);
        let limit = request.limit.unwrap_or(LIMIT).min(LIMIT);
        let gate = self.transfers.gate(chunk);
        let work = async {
            let _turn = gate.turn.lock().await;
            gate.enter(chunk, request.epoch)?;
            let _slot = self.transfers.incoming.try_acquire().map_err(|_| {
                let message = format_args!("{INCOMING_MAX} other chunks are being copied here");
                RpcError::new(Code::Overloaded, message)
            })?;
            let copied = self.copy_in(&request, started + limit).await;
            gate.leave();
            copied
        };
        let done = tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            let message = format_args!("chunk {chunk} was not caught up within {limit:?}");
            Err(RpcError::new(Code::DeadlineExceeded, message))
        });
        self.transfers.count(&done);
        let seconds = started.elapsed().as_secs_f64();
        match &done {
            Ok(CaughtUp { reached, whole, bytes, commits, rows, .. }) => {
                let kind = if *whole { "whole copy" } else { "delta" };
                let csn = reached.csn;
                tracing::info!(
                    "chunk {chunk} caught up with {source} to {csn}: {kind} of {bytes} bytes, {commits} commits, \
                     {rows} rows in {seconds:.3} s"
                );
            }
            Err(error) => {
                tracing::warn!(
                    "chunk {chunk} did not catch up with {source} in {seconds:.3} s: {error}"
                );
            }
        }
        done
    }

    async fn copy_in(&self, request: &CatchUp, deadline: Instant) -> Result<CaughtUp, RpcError> {
        let chunk = request.spec.chunk;
        let (store, lost) = (Arc::clone(self.store()), request.lost.clone());
        let back = tokio::task::spawn_blocking(move || {
            store.take_back(chunk)?;
            store.give_up(chunk, &lost)
        });
        back.await.map_err(|error| RpcError::new(Code::Internal, error))??;
        let mut sum = CaughtUp::default();
        for _ in 0..ATTEMPTS {
            let standing = self.store().standing(chunk);
            if standing.as_ref().is_some_and(|standing| standing.lost) {
                let message = format_args!(
                    "chunk {chunk} lost a part of a transaction that may still be committed"
                );
                return Err(RpcError::new(Code::Unavailable, message));
            }
            let standing = standing.filter(|standing| !standing.damaged);
            if standing.is_some() && self.has(request).await? {
                return self.reached(request, sum).await;
            }
            let from = standing.map(|standing| standing.applied);
            let from = from.filter(|point| point.csn > Csn(0));
            let wanted = Wanted {
                chunk,
                from: from.map(|point| (point.csn, point.chain)),
                to: request.to,
                chain: request.chain,
            };
            let (bytes, installed) = self.fetch(request, (wanted, from), deadline).await?;
            sum.bytes += bytes;
            if let Some(Installed { whole, received, .. }) = installed {
                sum.whole |= whole && received.rows > 0;
                (sum.commits, sum.rows) = (received.commits, received.rows);
                return self.reached(request, sum).await;
            }
        }
        let message = format_args!("chunk {chunk} moves on by itself, ask again");
        Err(RpcError::new(Code::Stale, message))
    }

    /// Whether the replica has, for certain, what is asked for.
    async fn has(&self, request: &CatchUp) -> Result<bool, RpcError> {
        let here = self.point_at(request).await?;
        let known = |chain| here.is_some_and(|point| point.chain == chain);
        Ok(request.to > Csn(0) && request.chain.is_some_and(known))
    }

    async fn point_at(&self, request: &CatchUp) -> Result<Option<Point>, RpcError> {
        let (store, chunk, to) = (Arc::clone(self.store()), request.spec.chunk, request.to);
        let at = tokio::task::spawn_blocking(move || store.point_at(chunk, to)).await;
        Ok(at.map_err(|error| RpcError::new(Code::Internal, error))??)
    }

    /// Fetches what is wanted and takes it in; `None` when the replica had moved on by then.
    async fn fetch(
        &self,
        request: &CatchUp,
        (wanted, from): (Wanted, Option<Point>),
        deadline: Instant,
    ) -> Result<(u64, Option<Installed>), RpcError> {
        let Some(member) = self.membership() else {
            return Err(RpcError::new(Code::Unavailable, "this data node belongs to no cluster"));
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let asked = FetchRequest {
            cluster: member.cluster.0.to_vec().into(),
            rid: Some(request.source.1.into()),
            chunk: wanted.chunk.0,
            from: from.map(|Point { csn, chain, rows }| ChunkPoint {
                csn: csn.0,
                chain: pieces::hash_bytes(chain),
                rows,
            }),
            to_csn: wanted.to.0,
            chain: wanted.chain.map(pieces::hash_bytes).unwrap_or_default(),
            deadline_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
            bytes_per_second: request.bytes_per_second,
        };
        let mut client = self.channels.storage(&request.source.0)?;
        let mut stream = client.fetch(asked).await.map_err(broken)?.into_inner();
        let Some(Piece::Start(start)) = next_piece(&mut stream).await? else {
            return Err(RpcError::new(Code::Invalid, "a copy begins without its start"));
        };
        let (send, receive) = mpsc::channel(PIECES_QUEUED);
        let taking = self.take_in((request.spec.clone(), wanted, start), receive);
        let mut bytes = 0;
        let passed = loop {
            match next_piece(&mut stream).await {
                Ok(Some(piece)) => {
                    bytes += piece.bytes();
                    // The one who takes it in has failed: it says why.
                    if send.send(piece).await.is_err() {
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        drop(send);
        // Also after a failure: what was begun is to be thrown away before it is told.
        let taken = taking.await.map_err(|error| RpcError::new(Code::Internal, error))?;
        passed?;
        Ok((bytes, taken?))
    }

    fn take_in(
        &self,
        (spec, wanted, start): (ChunkSpec, Wanted, Start),
        mut receive: mpsc::Receiver<Piece>,
    ) -> JoinHandle<Result<Option<Installed>, Error>> {
        let store = Arc::clone(self.store());
        tokio::task::spawn_blocking(move || {
            let chunk = spec.chunk;
            let mut incoming = store.incoming(spec, wanted, start)?;
            while let Some(piece) = receive.blocking_recv() {
                if incoming.take(piece)? {
                    return incoming.finish();
                }
            }
            Err(Error::Rpc(RpcError::new(
                Code::Unavailable,
                format_args!("the copy of chunk {chunk} ended early"),
            )))
        })
    }

    /// What to answer, after all that is to come has come.
    async fn reached(&self, request: &CatchUp, sum: CaughtUp) -> Result<CaughtUp, RpcError> {
        let chunk = request.spec.chunk;
        let reached = self.store().standing(chunk).map(|s| s.applied).unwrap_or_default();
        if reached.csn < request.to {
            let (csn, to) = (reached.csn, request.to);
            let message = format_args!("chunk {chunk} was caught up to {csn} only, not to {to}");
            return Err(RpcError::new(Code::Unavailable, message));
        }
        let (at, to) = (self.point_at(request).await?, request.to);
        let point = if request.to > Csn(0) { at.unwrap_or(reached) } else { reached };
        if let Some(expected) = request.chain
            && point.csn == request.to
            && point.chain != expected
        {
            let found = point.chain;
            let message = format_args!(
                "chunk {chunk} has chain {found:032x} at {to} instead of {expected:032x}"
            );
            return Err(RpcError::new(Code::Damaged, message));
        }
        Ok(CaughtUp { point, reached, ..sum })
    }
}

async fn next_piece(stream: &mut tonic::Streaming<FetchPiece>) -> Result<Option<Piece>, RpcError> {
    stream.message().await.map_err(broken)?.map(pieces::from_wire).transpose()
}

/// What is not an answer of the sender itself says that the connection to it broke.
fn broken(status: tonic::Status) -> RpcError {
    if status.metadata().contains_key(CODE_KEY) {
        return status.into();
    }
    RpcError::new(Code::Unavailable, format_args!("the sender is gone: {}", status.message()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_of_an_epoch_that_is_over_is_refused() {
        let gate = Gate::default();
        assert!(gate.enter(ChunkId(1), Epoch(3)).is_ok());
        assert!(gate.enter(ChunkId(1), Epoch(3)).is_ok());
        let refused = gate.enter(ChunkId(1), Epoch(2)).unwrap_err();
        assert_eq!(refused.message, "chunk c1 is at epoch e3, request had e2");
        assert!(gate.enter(ChunkId(1), Epoch(4)).is_ok());
    }
}
