//! The sender's side of a transfer: waits until it has what is wanted, and sends it no faster than it may.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use hypertide_proto::{
    error::{Code, RpcError},
    wire::storage::FetchPiece,
};
use tokio::sync::{mpsc, watch};

use super::{
    DataNode,
    transfers::{Counters, LIMIT, OUTGOING_MAX, PIECES_QUEUED},
};
use crate::{
    ChunkStore, Error,
    rpc::pieces,
    store::transfer::{Outgoing, Wanted},
};

/// How long the sender waits for a commit that it has not applied yet.
const BEHIND_LIMIT: Duration = Duration::from_secs(10);
const BEHIND_POLL: Duration = Duration::from_millis(20);
/// Longest sleep of a paced sender, after which it looks whether somebody still listens.
const PACE_MAX: Duration = Duration::from_millis(200);

impl DataNode {
    /// Begins to send what another node wants; the pieces come through the receiver.
    pub(crate) async fn send_out(
        &self,
        wanted: Wanted,
        limit: Duration,
        bytes_per_second: u64,
    ) -> Result<mpsc::Receiver<Result<FetchPiece, tonic::Status>>, RpcError> {
        let deadline = Instant::now() + if limit.is_zero() { LIMIT } else { limit.min(LIMIT) };
        let slot = Arc::clone(&self.transfers.outgoing).acquire_owned();
        let slot = tokio::time::timeout_at(deadline.into(), slot).await;
        let slot = slot.map_err(|_| {
            let message = format_args!("{OUTGOING_MAX} other chunks are being copied from here");
            RpcError::new(Code::Overloaded, message)
        })?;
        let slot = slot.map_err(|error| RpcError::new(Code::Internal, error))?;
        let outgoing = self.prepare_out(wanted, deadline).await?;
        let (send, receive) = mpsc::channel(PIECES_QUEUED);
        let counters = Arc::clone(&self.transfers.counters);
        let (pace, stop) = (Pace::new(bytes_per_second), self.stop.subscribe());
        let out = Out { send, deadline, pace, counters, stop };
        tokio::task::spawn_blocking(move || {
            out.run(outgoing);
            drop(slot);
        });
        Ok(receive)
    }

    /// Waits until what is wanted is applied here.
    async fn prepare_out(&self, wanted: Wanted, deadline: Instant) -> Result<Outgoing, RpcError> {
        let deadline = deadline.min(Instant::now() + BEHIND_LIMIT);
        loop {
            let store: Arc<ChunkStore> = Arc::clone(self.store());
            let prepared = tokio::task::spawn_blocking(move || store.outgoing(wanted)).await;
            let prepared = prepared.map_err(|error| RpcError::new(Code::Internal, error))?;
            if let Some(outgoing) = prepared? {
                return Ok(outgoing);
            }
            if Instant::now() + BEHIND_POLL >= deadline {
                let chunk = wanted.chunk;
                let here = self.store().standing(chunk).map(|s| s.applied.csn).unwrap_or_default();
                let message = format_args!("chunk {chunk} is applied to {here} only");
                return Err(RpcError::new(Code::Unavailable, message));
            }
            tokio::time::sleep(BEHIND_POLL).await;
        }
    }
}

/// Where pieces go out.
struct Out {
    send: mpsc::Sender<Result<FetchPiece, tonic::Status>>,
    deadline: Instant,
    pace: Pace,
    counters: Arc<Counters>,
    stop: watch::Receiver<bool>,
}

impl Out {
    /// Sends all. Blocking.
    fn run(mut self, outgoing: Outgoing) {
        let sent = outgoing.send(|piece| {
            let bytes = piece.bytes();
            self.put(Ok(pieces::to_wire(piece)))?;
            self.counters.bytes_out.fetch_add(bytes, Ordering::Relaxed);
            self.pace(bytes)
        });
        if let Err(error) = sent
            && !self.send.is_closed()
        {
            tracing::debug!("send a copy: {error}");
            // If not even the error gets through, the end of the stream tells it.
            let _ = self.put(Err(RpcError::from(error).into()));
        }
    }

    fn put(&self, piece: Result<FetchPiece, tonic::Status>) -> Result<(), Error> {
        if *self.stop.borrow() {
            return Err(gone("this data node shuts down"));
        }
        let handle = tokio::runtime::Handle::current();
        let sent = tokio::time::timeout_at(self.deadline.into(), self.send.send(piece));
        match handle.block_on(sent) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(gone("the receiver of a copy is gone")),
            Err(_) => Err(gone("the copy was not taken in time")),
        }
    }

    /// Waits while more was sent than the time allows.
    fn pace(&mut self, bytes: u64) -> Result<(), Error> {
        self.pace.sent += bytes;
        loop {
            let pause = self.pace.pause(Instant::now());
            let over = self.send.is_closed() || *self.stop.borrow();
            if pause.is_zero() || over || Instant::now() >= self.deadline {
                return Ok(());
            }
            std::thread::sleep(pause.min(PACE_MAX));
        }
    }
}

fn gone(why: &str) -> Error {
    Error::Rpc(RpcError::new(Code::Cancelled, why))
}

/// Spreads bytes over time.
#[derive(Debug)]
struct Pace {
    /// Zero for as fast as it goes.
    bytes_per_second: u64,
    sent: u64,
    since: Instant,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, sent: 0, since: Instant::now() }
    }

    /// How long to wait, so that what was sent by then is not more than the rate allows.
    fn pause(&self, now: Instant) -> Duration {
        if self.bytes_per_second == 0 {
            return Duration::ZERO;
        }
        let nanos = u128::from(self.sent) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let due = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        due.saturating_sub(now.saturating_duration_since(self.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_spreads_bytes_over_time() {
        let mut pace = Pace::new(1000);
        pace.sent = 2500;
        let at = |seconds| pace.since + Duration::from_secs(seconds);
        assert_eq!(pace.pause(at(0)), Duration::from_millis(2500));
        assert_eq!(pace.pause(at(2)), Duration::from_millis(500));
        assert_eq!(pace.pause(at(3)), Duration::ZERO);
        assert_eq!(Pace { bytes_per_second: 0, ..pace }.pause(Instant::now()), Duration::ZERO);
    }
}
