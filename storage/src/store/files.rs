//! The chunk files of a store: which are open, and the bound on their number.

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hypertide_proto::ids::ChunkId;

use super::{
    disk::{Disk, sync_dir},
    file::ChunkFile,
    identity::NodeFile,
};
use crate::{ChunkSpec, Error};

/// Files that stay open when nobody uses them.
const OPEN_MAX: usize = 256;
const SUFFIX: &str = "redb";

type Slot = Arc<Mutex<Option<Arc<ChunkFile>>>>;

/// The chunk files of a store.
#[derive(Debug)]
pub(crate) struct Files {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    slots: Mutex<BTreeMap<ChunkId, Slot>>,
    /// Open files, the one opened first in front.
    open: Mutex<VecDeque<ChunkId>>,
}

impl Files {
    /// The files below `dir`, of which those that the manifest does not name are removed: they never held a row
    /// that counts.
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: PathBuf, node: &NodeFile) -> Result<Self, Error> {
        let action = || format!("list directory {}", dir.display());
        let failed = |error: std::io::Error| Error::Disk { action: action(), source: error.into() };
        std::fs::create_dir_all(&dir).map_err(failed)?;
        for entry in std::fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if chunk_of(&path).is_some_and(|chunk| node.manifest(chunk).is_none()) {
                if !node.settled() {
                    let shown = path.display();
                    let text = format!("{shown} is of a data directory whose node.redb is missing");
                    return Err(Error::Identity(text));
                }
                tracing::info!("remove {}, which no manifest names", path.display());
                std::fs::remove_file(&path).map_err(failed)?;
            }
        }
        let (slots, open) = (Mutex::default(), Mutex::default());
        Ok(Self { disk, dir, slots, open })
    }

    fn path(&self, chunk: ChunkId) -> PathBuf {
        self.dir.join(format!("{}.{SUFFIX}", chunk.0))
    }

    fn slot(&self, chunk: ChunkId) -> Slot {
        Arc::clone(lock(&self.slots).entry(chunk).or_default())
    }

    /// The file of a chunk; `None` when it has none yet.
    pub(crate) fn get(
        &self,
        node: &NodeFile,
        chunk: ChunkId,
    ) -> Result<Option<Arc<ChunkFile>>, Error> {
        let Some(manifest) = node.manifest(chunk) else { return Ok(None) };
        let slot = self.slot(chunk);
        let mut slot = lock(&slot);
        if let Some(file) = slot.as_ref() {
            return Ok(Some(Arc::clone(file)));
        }
        let path = self.path(chunk);
        let file = Arc::new(ChunkFile::open(self.disk.as_ref(), &path, chunk, manifest)?);
        *slot = Some(Arc::clone(&file));
        drop(slot);
        self.opened(chunk);
        Ok(Some(file))
    }

    /// The file of a chunk, made when it has none.
    pub(crate) fn get_or_create(
        &self,
        node: &NodeFile,
        spec: &ChunkSpec,
    ) -> Result<Arc<ChunkFile>, Error> {
        let chunk = spec.chunk;
        if let Some(file) = self.get(node, chunk)? {
            return Ok(file);
        }
        let path = self.path(chunk);
        // What an interrupted creation left has no rows.
        remove_if_there(&path)?;
        let file = Arc::new(ChunkFile::create(self.disk.as_ref(), &path, spec.clone())?);
        sync_dir(&self.dir)?;
        node.save_manifests(&[(chunk, Some(file.manifest()))])?;
        *lock(&self.slot(chunk)) = Some(Arc::clone(&file));
        self.opened(chunk);
        Ok(file)
    }

    /// Notes an open file, and closes others that nobody uses when there are too many.
    fn opened(&self, chunk: ChunkId) {
        let mut open = lock(&self.open);
        open.push_back(chunk);
        for _ in OPEN_MAX..open.len() {
            let Some(oldest) = open.pop_front() else { return };
            let slot = self.slot(oldest);
            let Ok(mut slot) = slot.try_lock() else {
                open.push_back(oldest);
                continue;
            };
            // Closed under the lock of its slot, so that nobody opens it meanwhile.
            if slot.as_ref().is_some_and(|file| Arc::strong_count(file) == 1) {
                *slot = None;
            } else if slot.is_some() {
                open.push_back(oldest);
            }
        }
    }

    /// Removes the file of a chunk. A scan that reads it goes on.
    pub(crate) fn remove(&self, chunk: ChunkId) -> Result<(), Error> {
        let slot = lock(&self.slots).remove(&chunk);
        lock(&self.open).retain(|open| *open != chunk);
        if let Some(slot) = slot {
            lock(&slot).take();
        }
        remove_if_there(&self.path(chunk))
    }

    /// Closes all files that nobody uses.
    pub(crate) fn close(&self) {
        lock(&self.open).clear();
        for slot in lock(&self.slots).values() {
            lock(slot).take();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn chunk_of(path: &Path) -> Option<ChunkId> {
    let stem = path.file_stem()?.to_str()?;
    (path.extension()? == SUFFIX).then(|| stem.parse().ok().map(ChunkId)).flatten()
}

fn remove_if_there(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let action = format!("remove {}", path.display());
            Err(Error::Disk { action, source: error.into() })
        }
        _ => Ok(()),
    }
}
