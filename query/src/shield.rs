//! Tells who waits for a statement that it began to commit, and must not be dropped any more.
//!
//! A statement is cancelled by dropping its future. Once its commit is on its way to the log, that would leave the client
//! with an error although its rows may be there; from then on the statement ends one way or the other, within the
//! deadline of the commit.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

tokio::task_local! {
    static RAISED: Arc<AtomicBool>;
}

/// Raised when the work under it must not be dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shield(Arc<AtomicBool>);

impl Shield {
    /// Runs work that may raise the shield.
    pub(crate) fn over<F: Future>(&self, work: F) -> impl Future<Output = F::Output> {
        RAISED.scope(Arc::clone(&self.0), work)
    }

    /// Whether the work must not be dropped.
    pub(crate) fn raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Raises the shield of the work that calls it, if it has one.
pub(crate) fn raise() {
    // Without a shield nobody cancels.
    let _ = RAISED.try_with(|raised| raised.store(true, Ordering::Relaxed));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_raises_its_own_shield_only() {
        raise();
        let (one, other) = (Shield::default(), Shield::default());
        other.over(async {}).await;
        one.over(async { raise() }).await;
        assert_eq!((one.raised(), other.raised()), (true, false));
    }
}
