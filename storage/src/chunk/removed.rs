//! Replicas that the catalog has no more on this node, by a drop or because they went to another node: kept for the
//! snapshots from before, until none of those can be read any more.

use std::time::{Duration, Instant};

use hypertide_proto::ids::{ChunkId, Csn};

use super::{Replica, Replicas};

/// Since when a replica is one that the catalog has no more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Removed {
    /// From this snapshot on, at the latest, the catalog has it no more.
    csn: Csn,
    /// When that was heard, or the node started.
    since: Instant,
}

/// Whether a replica is here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Presence {
    /// Nothing of it: it has no rows yet, or it was removed long ago.
    #[default]
    Absent,
    /// It is here.
    Here,
    /// It is here for snapshots before this one.
    Before(Csn),
}

impl Replica {
    pub(super) fn presence(&self) -> Presence {
        self.removed.map_or(Presence::Here, |removed| Presence::Before(removed.csn))
    }
}

impl Replicas {
    /// Whether a replica of the chunk is here.
    pub(crate) fn presence(&self, chunk: ChunkId) -> Presence {
        self.chunks.get(&chunk).map_or(Presence::Absent, Replica::presence)
    }

    /// Notes that the catalog has a replica no more from a snapshot on.
    pub(crate) fn set_removed(&mut self, chunk: ChunkId, csn: Csn, since: Instant) {
        let replica = self.chunks.entry(chunk).or_default();
        replica.removed.get_or_insert(Removed { csn, since });
    }

    /// Notes that the catalog is about to have it again.
    pub(crate) fn take_back(&mut self, chunk: ChunkId) {
        if let Some(replica) = self.chunks.get_mut(&chunk) {
            replica.removed = None;
        }
    }

    /// Replicas that were removed, with their snapshots.
    pub(crate) fn removed(&self) -> Vec<(ChunkId, Csn)> {
        let removed = self.chunks.iter();
        removed.filter_map(|(chunk, replica)| Some((*chunk, replica.removed?.csn))).collect()
    }

    /// Those of them that nobody needs any more: for at least `age` nobody had a reason to read them, and `held`, the
    /// oldest snapshot that somebody reads by, has them no more; or nobody can read them.
    pub(crate) fn unneeded(&self, age: Duration, held: Csn, now: Instant) -> Vec<(ChunkId, Csn)> {
        let over = |replica: &Replica, removed: Removed| {
            let old = now.saturating_duration_since(removed.since) >= age;
            replica.wrong() || (old && removed.csn <= held)
        };
        let removed = self.chunks.iter().filter_map(|(chunk, replica)| {
            let removed = replica.removed.filter(|removed| over(replica, *removed))?;
            Some((*chunk, removed.csn))
        });
        removed.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: ChunkId = ChunkId(1);
    /// No snapshot is held.
    const NONE: Csn = Csn(u64::MAX);

    #[test]
    fn a_removed_replica_is_kept_for_older_snapshots_and_reported_no_more() {
        let (mut replicas, now) = (Replicas::default(), Instant::now());
        assert_eq!(replicas.presence(CHUNK), Presence::Absent);
        replicas.restore(CHUNK, super::super::Stored::default());
        assert_eq!(replicas.presence(CHUNK), Presence::Here);
        replicas.set_removed(CHUNK, Csn(7), now);
        // What is heard later says no more than that.
        replicas.set_removed(CHUNK, Csn(9), now + Duration::from_secs(1));
        assert_eq!(replicas.presence(CHUNK), Presence::Before(Csn(7)));
        assert!(replicas.report(&[]).is_empty() && replicas.report(&[CHUNK]).is_empty());
        let age = Duration::from_secs(60);
        assert!(replicas.unneeded(age, NONE, now + age / 2).is_empty());
        assert_eq!(replicas.unneeded(age, NONE, now + age), [(CHUNK, Csn(7))]);
        assert!(replicas.unneeded(age, Csn(6), now + age).is_empty(), "a snapshot before is held");
        assert_eq!(replicas.unneeded(age, Csn(7), now + age), [(CHUNK, Csn(7))]);
        replicas.take_back(CHUNK);
        assert_eq!(replicas.presence(CHUNK), Presence::Here);
        assert_eq!(replicas.report(&[]).len(), 1);
        assert!(
            replicas.removed().is_empty() && replicas.unneeded(age, NONE, now + age).is_empty()
        );
    }

    #[test]
    fn nobody_needs_a_removed_replica_with_wrong_bytes() {
        let (mut replicas, now) = (Replicas::default(), Instant::now());
        replicas.mark_damaged(CHUNK, "wrong bytes");
        assert_eq!(replicas.damaged(), [CHUNK]);
        replicas.set_removed(CHUNK, Csn(7), now);
        assert!(replicas.damaged().is_empty(), "the catalog knows");
        assert_eq!(replicas.unneeded(Duration::from_secs(60), Csn(0), now), [(CHUNK, Csn(7))]);
    }
}
