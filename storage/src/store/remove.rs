//! Removal of chunks that the catalog has no more on this node, because they were dropped or their replica went elsewhere.
//!
//! ```text
//! here --drop_chunks(at)--> removed at a snapshot --version_age and no lease, lack of space, wrong bytes--> unlinked
//!   ^-----take_back-----------/
//! ```
//!
//! Statements whose snapshot is from before may still read what is removed, also after a restart: it is unlinked only
//! when it has been removed for as long as deleted rows are kept. From then on the *horizon* tells a statement of that
//! age that a chunk which is not here may have been: it is refused instead of missing rows in silence. Between two
//! steps of an unlinking the process may end, so that their order matters:
//!
//! 1. The horizon, from which on nobody reads the rest as if it were whole.
//! 2. The parts in the journal: those that came back at a start would be a chunk of which only a part is left.
//! 3. The manifest: a file without it is removed at the next start.
//! 4. The file.

use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use hypertide_proto::ids::{ChunkId, Csn};

use super::{ChunkStore, Inner, flush};
use crate::{Error, ScanRequest, chunk::Presence};

impl ChunkStore {
    /// Removes chunks that the catalog has no more on this node from the snapshot `at` on, durably. Scans at snapshots
    /// from before go on for as long as old versions are kept. Idempotent. Blocking.
    pub fn drop_chunks(&self, chunks: &[ChunkId], at: Csn) -> Result<(), Error> {
        let inner = &self.inner;
        inner.check_open()?;
        let _writing = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let here = {
            let replicas = inner.replicas();
            let here = |chunk: &&ChunkId| replicas.presence(**chunk) == Presence::Here;
            chunks.iter().filter(here).map(|chunk| (*chunk, Some(at))).collect::<Vec<_>>()
        };
        if !here.is_empty() {
            let saved = inner.node.save_removed(&here);
            saved.inspect_err(|error| inner.note_failure(error))?;
            let now = Instant::now();
            let mut replicas = inner.replicas();
            here.iter().for_each(|(chunk, _)| replicas.set_removed(*chunk, at, now));
        }
        inner.unlink_unneeded()
    }

    /// Notes, durably, that the catalog is about to have a replica of the chunk here again. What is left of one that was
    /// removed is its beginning. Blocking.
    pub fn take_back(&self, chunk: ChunkId) -> Result<(), Error> {
        let inner = &self.inner;
        inner.check_open()?;
        if !matches!(inner.replicas().presence(chunk), Presence::Before(_)) {
            return Ok(());
        }
        let _writing = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let saved = inner.node.save_removed(&[(chunk, None)]);
        saved.inspect_err(|error| inner.note_failure(error))?;
        inner.replicas().take_back(chunk);
        Ok(())
    }

    /// Chunks that were removed and are kept for older snapshots.
    #[must_use]
    pub fn removed(&self) -> Vec<ChunkId> {
        self.inner.replicas().removed().into_iter().map(|(chunk, _)| chunk).collect()
    }
}

impl Inner {
    /// Unlinks what was removed and is needed no more. Blocking.
    pub(super) fn unlink_due(&self) -> Result<(), Error> {
        if self.replicas().removed().is_empty() {
            return Ok(());
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.poison.check()?;
        self.unlink_unneeded()
    }

    /// [`Inner::unlink_due`] for one who holds the right to write.
    fn unlink_unneeded(&self) -> Result<(), Error> {
        if self.replicas().removed().is_empty() {
            return Ok(());
        }
        // Rows that come in are worth more than old versions.
        let scarce = self.free_bytes()? < self.config.space_reserve_bytes;
        let now = Instant::now();
        let (age, held) = match scarce {
            true => (Duration::ZERO, Csn(u64::MAX)),
            false => (self.config.version_age, self.leases.oldest(now)),
        };
        let unneeded = self.replicas().unneeded(age, held, now);
        self.unlink(&unneeded)
    }

    /// Unlinks replicas, for one who holds the right to write. Snapshots before those given are not read here any more.
    pub(super) fn unlink(&self, unneeded: &[(ChunkId, Csn)]) -> Result<(), Error> {
        let Some(horizon) = unneeded.iter().map(|(_, csn)| *csn).max() else { return Ok(()) };
        let noted = |error: &Error| self.note_failure(error);
        self.node.raise_horizon(horizon).inspect_err(noted)?;
        for (chunk, _) in unneeded {
            let mut replicas = self.replicas();
            let gone = flush::released(replicas.remove(*chunk)).collect();
            // Under the lock: no part that comes from now on is ahead of it in the queue.
            self.journal.submit_lazily(gone);
        }
        self.journal_now(Vec::new())?;
        let rows: Vec<_> = unneeded.iter().map(|(chunk, _)| (*chunk, None)).collect();
        self.node.save_manifests(&rows).inspect_err(noted)?;
        unneeded.iter().try_for_each(|(chunk, _)| self.files.remove(*chunk))?;
        tracing::info!("unlinked {} chunks that were removed before {horizon}", unneeded.len());
        Ok(())
    }

    /// Refuses a scan that would take a chunk that was removed for one without rows.
    pub(super) fn check_presence(
        &self,
        request: &ScanRequest,
        presence: Presence,
    ) -> Result<(), Error> {
        let ScanRequest { chunk, snapshot, .. } = *request;
        let horizon = self.node.horizon();
        match presence {
            Presence::Here => Ok(()),
            Presence::Absent | Presence::Before(_) if snapshot < horizon => {
                Err(Error::SnapshotTooOld { chunk, horizon, snapshot })
            }
            Presence::Before(csn) if snapshot >= csn => Err(Error::Removed(chunk)),
            Presence::Absent | Presence::Before(_) => Ok(()),
        }
    }
}
