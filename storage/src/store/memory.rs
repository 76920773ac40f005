//! How many bytes of rows are in memory, and the waiting of those who would bring more.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

/// The memory budget of a store.
#[derive(Debug)]
pub(crate) struct Memory {
    limit: usize,
    used: AtomicUsize,
    waiting: AtomicUsize,
    freed: Notify,
}

/// Bytes taken from a budget, given back on drop.
#[derive(Debug, Default)]
pub(crate) struct Charge {
    bytes: usize,
    memory: Option<Arc<Memory>>,
}

impl Memory {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        let (used, waiting) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { limit, used, waiting, freed: Notify::new() })
    }

    /// Takes bytes whether they fit or not, for rows that are durable already.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Charge {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        Charge { bytes, memory: Some(Arc::clone(self)) }
    }

    /// Takes bytes as soon as they fit; `None` when they did not in time. A first charge always fits.
    pub(crate) async fn wait(self: &Arc<Self>, bytes: usize, patience: Duration) -> Option<Charge> {
        let taken = async {
            loop {
                let freed = self.freed.notified();
                let fits = |used: usize| {
                    (used == 0 || used.saturating_add(bytes) <= self.limit).then(|| used + bytes)
                };
                if self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok() {
                    return;
                }
                let _waiter = Waiter::of(self);
                freed.await;
            }
        };
        tokio::time::timeout(patience, taken).await.ok()?;
        Some(Charge { bytes, memory: Some(Arc::clone(self)) })
    }

    pub(crate) const fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether writers wait, or soon will.
    pub(crate) fn scarce(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0 || self.used() > self.limit / 2
    }
}

impl Charge {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Moves `bytes` of this charge, or all of it, into one of its own.
    pub(crate) fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { bytes, memory: self.memory.as_ref().map(Arc::clone) }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(memory) = &self.memory
            && self.bytes > 0
        {
            memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
            memory.freed.notify_waiters();
        }
    }
}

/// Counts one who waits, however the wait ends.
struct Waiter<'a>(&'a Memory);

impl<'a> Waiter<'a> {
    fn of(memory: &'a Memory) -> Self {
        memory.waiting.fetch_add(1, Ordering::Relaxed);
        Self(memory)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn charges_wait_for_room_and_give_it_back() {
        let memory = Memory::new(100);
        let patience = Duration::from_secs(10);
        let large = memory.wait(500, patience).await.expect("the first always fits");
        assert!(memory.scarce());
        assert!(memory.wait(1, Duration::from_millis(1)).await.is_none());
        let waiting = tokio::spawn({
            let memory = Arc::clone(&memory);
            async move { memory.wait(60, patience).await }
        });
        drop(large);
        let mut charge = waiting.await.expect("it does not panic").expect("there is room now");
        let part = charge.split(20);
        assert_eq!((charge.bytes(), part.bytes(), memory.used()), (40, 20, 60));
        drop(charge);
        assert_eq!(memory.used(), 20);
        drop(part);
        assert_eq!(memory.used(), 0);
    }
}
