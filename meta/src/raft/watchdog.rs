//! Notices a disk that does not answer: a leader with a dead disk must not stay leader for ever.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// When the operation under way on a file began.
#[derive(Debug)]
pub(crate) struct Watchdog {
    origin: Instant,
    /// Milliseconds after `origin`, plus one; zero when nothing is under way.
    began: AtomicU64,
}

impl Watchdog {
    pub(crate) fn new() -> Self {
        Self { origin: Instant::now(), began: AtomicU64::new(0) }
    }

    /// Runs an operation that writes to the disk under the watchdog's eyes.
    pub(crate) fn watch<T>(&self, operation: impl FnOnce() -> T) -> T {
        self.began.store(self.now() + 1, Ordering::Release);
        let done = operation();
        self.began.store(0, Ordering::Release);
        done
    }

    /// How long the operation under way has taken so far.
    pub(crate) fn waiting(&self) -> Option<Duration> {
        let began = self.began.load(Ordering::Acquire).checked_sub(1)?;
        Some(Duration::from_millis(self.now().saturating_sub(began)))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_operation_under_way_is_seen() {
        let watchdog = Watchdog::new();
        assert_eq!(watchdog.waiting(), None);
        watchdog.watch(|| assert!(watchdog.waiting().is_some()));
        assert_eq!(watchdog.waiting(), None);
    }
}
