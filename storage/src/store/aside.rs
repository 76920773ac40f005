//! Putting chunks aside: out of use at once and for good, and still there for whoever wants to look into them.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{PoisonError, atomic::Ordering},
};

use hypertide_proto::ids::{ChunkId, Csn};

use super::{
    ChunkStore,
    disk::{Disk, failed, sync_dir},
    flush,
};
use crate::{Error, tables::Identity};

/// Directory of what is put aside. Only the last of it is kept.
const ASIDE: &str = "aside";

impl ChunkStore {
    /// Forgets all chunks but those that are kept, with everything pending in them, and moves their files to a directory
    /// of the name given; how many there were, and where they are. Scans of them at snapshots before `at` are refused
    /// from now on: they may be meant for what was here. Idempotent. Blocking.
    ///
    /// NOTE: Parts that are pending in a kept chunk stay. Their acknowledgements named the incarnation before and count no
    /// more; a coordinator that goes on prepares them again, and the same bytes are acknowledged under the next one.
    /// Where the chunk is kept since it is whole, none of them can be of a commit that the catalog has in it, since all of
    /// those are applied here: the answer about it removes the part, be it that it was aborted or that its transaction is
    /// long over. Where it is kept for what is left of it, such a part may be of a commit that would be lost without it.
    pub(crate) fn put_aside(
        &self,
        name: &str,
        at: Csn,
        kept: &BTreeSet<ChunkId>,
    ) -> Result<(usize, PathBuf), Error> {
        let inner = &self.inner;
        inner.check_open()?;
        // What is committed and in memory only would be lost with the journal.
        if let Err(error) = self.flush(&[]) {
            tracing::warn!("flush chunks before they are put aside: {error}");
        }
        let _writing = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        inner.check_open()?;
        let noted = |error: &Error| inner.note_failure(error);
        inner.node.raise_horizon(at).inspect_err(noted)?;
        let mut manifests = inner.node.manifests();
        manifests.retain(|chunk, _| !kept.contains(chunk));
        let place = inner.config.dir.join(ASIDE).join(name);
        if !manifests.is_empty() {
            make_place(inner.disk.as_ref(), (&inner.config.dir, &place))?;
        }
        for chunk in manifests.keys() {
            inner.files.put_aside(*chunk, &place)?;
        }
        let removed = inner.node.removals().chunks;
        let gone = manifests.keys().chain(removed.keys().filter(|chunk| !kept.contains(chunk)));
        let gone: Vec<(ChunkId, _)> = gone.map(|chunk| (*chunk, None)).collect();
        inner.node.save_manifests(&gone).inspect_err(noted)?;
        let removed = {
            let mut replicas = inner.replicas();
            let known = replicas.chunks().into_iter().filter(|chunk| !kept.contains(chunk));
            let gone = known.flat_map(|chunk| flush::released(replicas.remove(chunk)));
            let gone = gone.collect();
            // Under the lock: nothing that comes from now on is ahead of it in the queue.
            inner.journal.submit(gone)
        };
        inner.wait_for(removed)?;
        inner.renewed.store(false, Ordering::Release);
        Ok((manifests.len(), place))
    }
}

/// The directory for what was written under an identity, made.
pub(super) fn place(disk: &dyn Disk, dir: &Path, identity: &Identity) -> Result<PathBuf, Error> {
    let name = match &identity.member {
        // What was written under one incarnation lies in one place.
        Some(member) => member.rid.to_string(),
        None => identity.disk.to_string(),
    };
    let place = dir.join(ASIDE).join(name);
    make_place(disk, (dir, &place))?;
    Ok(place)
}

/// Makes the directory durably; what else was put aside before goes.
fn make_place(disk: &dyn Disk, (dir, place): (&Path, &Path)) -> Result<(), Error> {
    let (all, action) = (dir.join(ASIDE), || format!("make {}", place.display()));
    disk.keep_only_dir(&all, place).map_err(failed(action()))?;
    sync_dir(disk, &all)?;
    sync_dir(disk, dir)
}
