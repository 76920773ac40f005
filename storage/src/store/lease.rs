//! Snapshots that are leased: what they see is kept beyond the age of old versions.
//!
//! An access node at which somebody reads by one snapshot for long renews its lease all the time; who does not, lets go
//! of it. Leases are in memory only. A node that was restarted counts the age of what it holds from its start on, which
//! is longer than anybody waits before the next renewal. Scarce room ends what leases hold, like all that is old.

use std::{
    collections::BTreeMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use hypertide_proto::ids::Csn;

use super::{ChunkStore, lock};

/// Longest lease: one that was asked for by mistake must not fill the disk.
const LEASE_MAX: Duration = Duration::from_secs(10 * 60);
/// Most leases; beyond, those that end first go.
const LEASES_MAX: usize = 1024;

/// Snapshots with the moments at which their leases end.
#[derive(Debug, Default)]
pub(crate) struct Leases(Mutex<BTreeMap<Csn, Instant>>);

impl Leases {
    /// Holds a snapshot until a moment, or for as long as it is held already.
    fn hold(&self, snapshot: Csn, (now, until): (Instant, Instant)) {
        let mut leases = lock(&self.0);
        leases.retain(|_, end| *end > now);
        let end = leases.entry(snapshot).or_insert(until);
        *end = until.max(*end);
        if leases.len() > LEASES_MAX
            && let Some((first, _)) = leases.iter().min_by_key(|(_, end)| **end)
        {
            let first = *first;
            leases.remove(&first);
        }
    }

    /// The oldest snapshot that is held; the latest there can be when none is.
    pub(crate) fn oldest(&self, now: Instant) -> Csn {
        let leases = lock(&self.0);
        let held = leases.iter().find(|(_, end)| **end > now);
        held.map_or(Csn(u64::MAX), |(snapshot, _)| *snapshot)
    }
}

impl ChunkStore {
    /// Keeps what a snapshot sees for a while, as far as it is still here and there is room.
    pub fn hold_snapshot(&self, snapshot: Csn, lease: Duration) {
        let now = Instant::now();
        self.inner.leases.hold(snapshot, (now, now + lease.min(LEASE_MAX)));
    }

    /// The oldest snapshot that somebody holds.
    #[must_use]
    pub fn held_snapshot(&self) -> Option<Csn> {
        Some(self.inner.leases.oldest(Instant::now())).filter(|oldest| *oldest < Csn(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_lease_that_runs_counts() {
        let (leases, now) = (Leases::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(leases.oldest(now), Csn(u64::MAX));
        leases.hold(Csn(7), (now, at(10)));
        leases.hold(Csn(5), (now, at(5)));
        // A renewal that comes late takes nothing back.
        leases.hold(Csn(7), (now, at(1)));
        assert_eq!(leases.oldest(at(4)), Csn(5));
        assert_eq!(leases.oldest(at(5)), Csn(7));
        assert_eq!(leases.oldest(at(10)), Csn(u64::MAX));
    }

    #[test]
    fn there_are_not_too_many() {
        let (leases, now) = (Leases::default(), Instant::now());
        for number in 0..2 * LEASES_MAX as u64 {
            leases.hold(Csn(number), (now, now + Duration::from_secs(number + 1)));
        }
        assert_eq!(lock(&leases.0).len(), LEASES_MAX);
        assert_eq!(leases.oldest(now), Csn(LEASES_MAX as u64));
    }
}
