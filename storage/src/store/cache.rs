//! A bounded memory of extents that were read and verified.
//!
//! Encoded extents are kept, not decoded blocks: the same bytes hold many times the rows, a hit saves the walk through
//! the file, the copy and the checksum, and what is left, decoding, is the work that a scan is made for. An extent is
//! named by file, segment and number, which are never used again, so that nothing has to be invalidated.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

/// The share of the budget that a single extent may take, as a divisor.
const SHARE: usize = 8;
/// What an entry takes beside its bytes.
const ENTRY_BYTES: usize = 128;

/// Names an extent for ever: file, segment, number.
pub(crate) type ExtentName = ([u8; 16], u64, usize);

/// How the cache did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Extents found.
    pub hits: u64,
    /// Extents that had to be read.
    pub misses: u64,
    /// Bytes held.
    pub bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<ExtentName, (Bytes, u64)>,
    /// Names by when they were used last.
    order: BTreeMap<u64, ExtentName>,
    clock: u64,
    stats: CacheStats,
}

/// Extents in memory, the least recently used of which go first.
#[derive(Debug)]
pub(crate) struct ExtentCache {
    limit: usize,
    state: Mutex<State>,
}

impl ExtentCache {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, name: &ExtentName) -> Option<Bytes> {
        let mut state = self.lock();
        state.clock += 1;
        let State { entries, order, clock, stats } = &mut *state;
        let Some((bytes, used)) = entries.get_mut(name) else {
            stats.misses += 1;
            return None;
        };
        stats.hits += 1;
        order.remove(used);
        order.insert(*clock, *name);
        *used = *clock;
        Some(bytes.clone())
    }

    /// Keeps verified bytes. Those too large for the budget are not kept.
    pub(crate) fn put(&self, name: ExtentName, bytes: &Bytes) {
        if size(bytes) > self.limit / SHARE {
            return;
        }
        let mut state = self.lock();
        state.clock += 1;
        let State { entries, order, clock, stats } = &mut *state;
        if let Some((old, used)) = entries.insert(name, (bytes.clone(), *clock)) {
            order.remove(&used);
            stats.bytes -= size(&old);
        }
        order.insert(*clock, name);
        stats.bytes += size(bytes);
        while stats.bytes > self.limit
            && let Some((_, oldest)) = order.pop_first()
        {
            if let Some((gone, _)) = entries.remove(&oldest) {
                stats.bytes -= size(&gone);
            }
        }
    }

    pub(crate) fn stats(&self) -> CacheStats {
        self.lock().stats
    }
}

fn size(bytes: &Bytes) -> usize {
    bytes.len() + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> ExtentName {
        ([7; 16], 1, number)
    }

    #[test]
    fn the_least_recently_used_go_and_the_budget_holds() {
        let cache = ExtentCache::new(8 * (1000 + ENTRY_BYTES));
        for number in 0..8 {
            cache.put(name(number), &Bytes::from(vec![number as u8; 1000]));
        }
        assert!(cache.get(&name(0)).is_some());
        cache.put(name(8), &Bytes::from(vec![8; 1000]));
        assert_eq!(cache.get(&name(1)), None);
        assert_eq!(cache.get(&name(0)), Some(Bytes::from(vec![0; 1000])));
        let stats = cache.stats();
        assert_eq!((stats.hits, stats.misses), (2, 1));
        assert_eq!(stats.bytes, 8 * (1000 + ENTRY_BYTES));
        cache.put(name(0), &Bytes::from(vec![9; 10]));
        assert_eq!(cache.stats().bytes, 7 * (1000 + ENTRY_BYTES) + 10 + ENTRY_BYTES);
        cache.put(name(9), &Bytes::from(vec![0; 2000]));
        assert_eq!(cache.get(&name(9)), None);
        let state = cache.lock();
        assert_eq!(state.order.len(), state.entries.len());
    }
}
