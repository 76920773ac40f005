//! Read barriers: up to which index a read that starts now must have applied.
//!
//! One question is under way at a time, for all who waited when it began. Who comes later waits for the next: the answer
//! under way may be older than what was acknowledged before the later one came.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hypertide_proto::{
    error::{Code, RpcError},
    wire::meta::ReadBarrierRequest,
};
use tokio::sync::{mpsc, oneshot};
use tonic::Request;

use crate::{Error, leader::Leader, raft::NotRead};

/// Readers that may wait; a reader waits for a place until its deadline.
const READERS_MAX: usize = 16_384;
/// Pause before the leader is asked again, unless it changes before.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Longest wait for one answer of the leader.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// Index and term of a barrier, or why there is none yet.
type Barred = Result<(u64, u64), RpcError>;
type Reader = oneshot::Sender<Barred>;

/// Asks one question at a time on behalf of many.
#[derive(Clone, Debug)]
struct Shared {
    readers: mpsc::Sender<Reader>,
}

impl Shared {
    /// Starts asking with `ask`; it ends with the last handle.
    fn start<F>(ask: impl Fn() -> F + Send + 'static) -> Self
    where
        F: Future<Output = Barred> + Send,
    {
        let (readers, mut queue) = mpsc::channel::<Reader>(READERS_MAX);
        tokio::spawn(async move {
            while let Some(first) = queue.recv().await {
                let mut waiting = vec![first];
                while let Ok(reader) = queue.try_recv() {
                    waiting.push(reader);
                }
                let barred = ask().await;
                for reader in waiting {
                    // Who does not wait any more needs no answer.
                    let _ = reader.send(barred.clone());
                }
            }
        });
        Self { readers }
    }

    async fn ask(&self) -> Barred {
        let stopped = || RpcError::new(Code::Unavailable, "this access node stops");
        let (reader, barred) = oneshot::channel();
        self.readers.send(reader).await.map_err(|_| stopped())?;
        barred.await.map_err(|_| stopped())?
    }
}

/// The barriers of one node.
#[derive(Clone, Debug)]
pub(crate) struct Barrier {
    leader: Arc<Leader>,
    /// Answers when this node leads.
    leading: Shared,
    /// Asks whichever node leads.
    any: Shared,
}

impl Barrier {
    pub(crate) fn start(leader: Arc<Leader>) -> Self {
        let own = Arc::clone(&leader);
        let leading = Shared::start(move || read_index(Arc::clone(&own)));
        let (other, asked) = (Arc::clone(&leader), leading.clone());
        let any = Shared::start(move || ask_leader(Arc::clone(&other), asked.clone()));
        Self { leader, leading, any }
    }

    /// The index and term, if this node leads.
    pub(crate) async fn leading(&self) -> Barred {
        self.leading.ask().await
    }

    /// The index that a read that starts now must have applied.
    pub(crate) async fn index(&self, deadline: Instant) -> Result<u64, Error> {
        let until = tokio::time::Instant::from_std(deadline);
        let mut last = RpcError::new(Code::Unavailable, "no answer in time");
        loop {
            match tokio::time::timeout_at(until, self.any.ask()).await {
                Ok(Ok((index, _))) => return Ok(index),
                Ok(Err(error)) => last = error,
                Err(_) => return Err(Error::Unavailable(last.message)),
            }
            if Instant::now() + RETRY_PAUSE >= deadline {
                return Err(Error::Unavailable(last.message));
            }
            self.leader.changed(RETRY_PAUSE).await;
        }
    }
}

async fn read_index(leader: Arc<Leader>) -> Barred {
    leader.group().read_index().await.map_err(|error| match error {
        NotRead::NotLeader => RpcError::new(Code::NotLeader, "this access node does not lead"),
        NotRead::NoQuorum(reason) => RpcError::new(Code::Unavailable, reason),
    })
}

async fn ask_leader(leader: Arc<Leader>, leading: Shared) -> Barred {
    if leader.here() {
        return leading.ask().await;
    }
    let mut client = leader.leader_client()?;
    let mut request = Request::new(ReadBarrierRequest { cluster: leader.cluster_bytes() });
    request.set_timeout(ASK_TIMEOUT);
    let asked = tokio::time::timeout(ASK_TIMEOUT, client.read_barrier(request)).await;
    let late = |_| RpcError::new(Code::Unavailable, "the leader did not answer in time");
    let reply = asked.map_err(late)??.into_inner();
    Ok((reply.index, reply.term))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    /// A reader that comes while a question is under way never gets its answer, and all who wait share the next.
    #[tokio::test]
    async fn late_readers_share_the_next_question() {
        let (asked, gate) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
        let (count, open) = (Arc::clone(&asked), Arc::clone(&gate));
        let shared = Shared::start(move || {
            let (count, open) = (Arc::clone(&count), Arc::clone(&open));
            async move {
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                open.acquire().await.expect("never closed").forget();
                Ok((number, 0))
            }
        });
        let ask = |shared: &Shared| {
            let shared = shared.clone();
            tokio::spawn(async move { shared.ask().await.expect("answered").0 })
        };
        let first = ask(&shared);
        while asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let late: Vec<_> = (0..10).map(|_| ask(&shared)).collect();
        while shared.readers.capacity() != READERS_MAX - 10 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(2);
        assert_eq!(first.await.expect("no panic"), 1);
        for reader in late {
            assert_eq!(reader.await.expect("no panic"), 2);
        }
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }
}
