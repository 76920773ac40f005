//! A commit whose answer gets lost: the writer says it was committed, aborted, or that nobody knows, and never the wrong
//! one of these.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use hypertide_meta::{Answer, CatalogWriter, Error as MetaError, Image, MemoryCatalog};
use hypertide_proto::{client::Channels, ids::ClusterId, wire::meta::StatusReply};

use super::*;
use crate::EngineConfig;

/// A catalog whose first answers get lost.
#[derive(Debug)]
struct Lossy {
    inner: MemoryCatalog,
    /// Proposals whose answer gets lost before one is answered.
    lost: AtomicUsize,
    /// Whether those are applied all the same.
    applied: bool,
}

#[async_trait]
impl CatalogWriter for Lossy {
    fn cluster(&self) -> Option<ClusterId> {
        self.inner.cluster()
    }

    fn image(&self) -> Arc<Image> {
        self.inner.image()
    }

    async fn barrier(&self, deadline: Instant) -> Result<Arc<Image>, MetaError> {
        self.inner.barrier(deadline).await
    }

    async fn applied(&self, index: u64, deadline: Instant) -> Result<Arc<Image>, MetaError> {
        self.inner.applied(index, deadline).await
    }

    async fn propose(
        &self,
        command: Command,
        deadline: Instant,
    ) -> Result<(u64, Answer), MetaError> {
        let take = |lost: usize| lost.checked_sub(1);
        if self.lost.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_err() {
            return self.inner.propose(command, deadline).await;
        }
        if self.applied {
            self.inner.propose(command, deadline).await?.1.ok();
        }
        Err(MetaError::Unknown("the answer got lost".into()))
    }

    fn begin(&self) -> OpenTxn {
        self.inner.begin()
    }

    fn rpc(&self) -> String {
        self.inner.rpc()
    }

    async fn status(&self) -> StatusReply {
        self.inner.status().await
    }
}

/// Commits a transaction without rows under a write id, with time for `lost + 1` proposals at most.
async fn commit(lost: usize, applied: bool, patience: Duration) -> Result<Committed, Error> {
    let inner = MemoryCatalog::default();
    let catalog = Arc::new(Lossy { inner, lost: AtomicUsize::new(lost), applied });
    let engine = Engine::new(catalog, Channels::default(), EngineConfig::default());
    let writer = Writer::new(&engine.expect("an engine"));
    writer.commit(Some((WriteId([1; 16]), 7)), Instant::now() + patience).await
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again() {
    for applied in [true, false] {
        let committed = commit(1, applied, Duration::from_secs(60)).await;
        assert!(matches!(committed, Ok(Committed::Now(_))), "{committed:?}");
    }
}

/// The entry that an acknowledgement names is the one that reads see the rows from, not the one of a later attempt.
#[tokio::test]
async fn a_commit_is_told_where_it_took_effect_first() {
    let index = async |lost, applied, patience| match commit(lost, applied, patience).await {
        Ok(Committed::Now(index)) => index,
        other => panic!("{other:?}"),
    };
    let patience = Duration::from_secs(60);
    let first = index(0, false, patience).await;
    assert_eq!(index(1, true, patience).await, first, "proposed again");
    assert_eq!(index(1, true, Duration::ZERO).await, first, "settled by an abort");
}

#[tokio::test]
async fn an_abort_settles_what_is_unknown() {
    // There is no time to propose again, but the abort is answered.
    let committed = commit(1, true, Duration::ZERO).await;
    assert!(matches!(committed, Ok(Committed::Now(_))), "{committed:?}");
    let aborted = commit(1, false, Duration::ZERO).await.expect_err("it was not applied");
    assert_eq!(aborted.state.0, "57P03", "{aborted}");
}

#[tokio::test]
async fn what_nobody_answers_stays_unknown() {
    for applied in [true, false] {
        let unknown = commit(usize::MAX, applied, Duration::ZERO).await.expect_err("no answer");
        assert_eq!(unknown.state.0, "08007", "{unknown}");
    }
}
