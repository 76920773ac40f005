//! The chunk files of a store: which are open, and the bound on their number.

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hypertide_proto::ids::ChunkId;

use super::{
    cache::{CacheStats, ExtentCache},
    disk::{Disk, failed, sync_dir},
    draft::Draft,
    file::{ChunkFile, Known, New},
    identity::NodeFile,
};
use crate::{ChunkSpec, Error, tables::FileHeader};

mod swap;

pub(crate) use swap::NewFile;

const SUFFIX: &str = "redb";
/// The end of the name of a file that is not finished yet.
const SUFFIX_NEW: &str = "redb.new";

type Slot = Arc<Mutex<Option<Arc<ChunkFile>>>>;

/// How much of the chunk files is kept at hand.
#[derive(Debug)]
pub(crate) struct FileLimits {
    /// Files that stay open when nobody uses them.
    pub(crate) open_max: usize,
    /// Extents that were read.
    pub(crate) cache: Arc<ExtentCache>,
}

/// The chunk files of a store.
#[derive(Debug)]
pub(crate) struct Files {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    limits: FileLimits,
    slots: Mutex<BTreeMap<ChunkId, Slot>>,
    /// Open files, the one opened first in front.
    open: Mutex<VecDeque<ChunkId>>,
}

impl Files {
    /// The files below `dir`, of which those that the manifest does not name are removed: they never held a row
    /// that counts.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        node: &NodeFile,
        limits: FileLimits,
    ) -> Result<Self, Error> {
        let action = || format!("list directory {}", dir.display());
        let failed = |error: std::io::Error| Error::Disk { action: action(), source: error.into() };
        disk.make_dir(&dir).map_err(failed)?;
        swap::settle((&disk, &limits), &dir, node)?;
        for path in disk.list(&dir).map_err(failed)? {
            let named = chunk_of(&path, SUFFIX).map(|chunk| node.manifest(chunk).is_some());
            let draft = chunk_of(&path, SUFFIX_NEW).is_some();
            if named == Some(false) && !node.settled() {
                let shown = path.display();
                let text = format!("{shown} is of a data directory whose node.redb is missing");
                return Err(Error::Identity(text));
            }
            if named == Some(false) || draft {
                tracing::info!("remove {}, which no manifest names", path.display());
                disk.remove(&path).map_err(failed)?;
            }
        }
        let (slots, open) = (Mutex::default(), Mutex::default());
        Ok(Self { disk, dir, limits, slots, open })
    }

    fn path(&self, chunk: ChunkId) -> PathBuf {
        self.dir.join(format!("{}.{SUFFIX}", chunk.0))
    }

    fn path_new(&self, chunk: ChunkId) -> PathBuf {
        self.dir.join(format!("{}.{SUFFIX_NEW}", chunk.0))
    }

    fn slot(&self, chunk: ChunkId) -> Slot {
        Arc::clone(lock(&self.slots).entry(chunk).or_default())
    }

    /// The file of a chunk; `None` when it has none yet.
    ///
    /// A file that the manifest is behind, by a write that was cut short before its manifest, is noted at once: a
    /// second such write would otherwise be told from damage no more.
    pub(crate) fn get(
        &self,
        node: &NodeFile,
        chunk: ChunkId,
    ) -> Result<Option<Arc<ChunkFile>>, Error> {
        let Some(manifest) = node.manifest(chunk) else { return Ok(None) };
        let slot = self.slot(chunk);
        let mut slot = lock(&slot);
        if let Some(file) = slot.as_ref().filter(|file| !file.ailing()) {
            return Ok(Some(Arc::clone(file)));
        }
        // One that fails only does so until it is opened anew. Two handles on a file cannot be.
        *slot = None;
        let cache = Arc::clone(&self.limits.cache);
        let known = Known { chunk, manifest, cache };
        let file = Arc::new(ChunkFile::open(self.disk.as_ref(), &self.path(chunk), known)?);
        if file.manifest() != manifest {
            node.save_manifests(&[(chunk, Some(file.manifest()))])?;
        }
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
        self.remove_path(&path)?;
        let new = New { spec: spec.clone(), cache: Arc::clone(&self.limits.cache) };
        let file = Arc::new(ChunkFile::create(self.disk.as_ref(), &path, new)?);
        sync_dir(self.disk.as_ref(), &self.dir)?;
        node.save_manifests(&[(chunk, Some(file.manifest()))])?;
        *lock(&self.slot(chunk)) = Some(Arc::clone(&file));
        self.opened(chunk);
        Ok(file)
    }

    /// Begins a file that is to replace the chunk's.
    pub(crate) fn draft(&self, chunk: ChunkId) -> Result<Draft, Error> {
        let path = self.path_new(chunk);
        self.remove_path(&path)?;
        Draft::create(self.disk.as_ref(), &path, chunk)
    }

    /// Removes what a draft left that was given up.
    pub(crate) fn discard_draft(&self, chunk: ChunkId) -> Result<(), Error> {
        self.remove_path(&self.path_new(chunk))
    }

    /// Puts a draft in the place of the chunk's file, durably. Scans get it after [`Files::switch`].
    ///
    /// It is opened and checked before the name changes hands, so that nothing is lost by a draft that is wrong.
    pub(crate) fn install(
        &self,
        chunk: ChunkId,
        draft: Draft,
        header: &FileHeader,
    ) -> Result<Arc<ChunkFile>, Error> {
        draft.finish(header)?;
        let (new, path) = (self.path_new(chunk), self.path(chunk));
        let cache = Arc::clone(&self.limits.cache);
        let known = Known { chunk, manifest: header.manifest, cache };
        let file = ChunkFile::open(self.disk.as_ref(), &new, known)?;
        let renamed = self.disk.rename(&new, &path);
        renamed.map_err(failed(format_args!("replace the file of chunk {chunk}")))?;
        sync_dir(self.disk.as_ref(), &self.dir)?;
        Ok(Arc::new(file))
    }

    /// Lets everyone have a file that was installed. Who has the one before keeps it.
    pub(crate) fn switch(&self, chunk: ChunkId, file: Arc<ChunkFile>) {
        *lock(&self.slot(chunk)) = Some(file);
    }

    /// Bytes that the file of a chunk takes.
    pub(crate) fn size(&self, chunk: ChunkId) -> Result<u64, Error> {
        let size = self.disk.size(&self.path(chunk));
        let size = size.map_err(failed(format_args!("look for the file of chunk {chunk}")))?;
        Ok(size.unwrap_or(0))
    }

    /// Asks for the bytes of a chunk's file to be read from the medium. What an open handle keeps in memory is let go
    /// of, too, unless somebody uses it.
    pub(crate) fn forget_cached(&self, chunk: ChunkId) {
        let slot = self.slot(chunk);
        let mut slot = lock(&slot);
        slot.take_if(|file| Arc::strong_count(file) == 1);
        drop(slot);
        if let Err(error) = self.disk.forget_cached(&self.path(chunk)) {
            tracing::debug!("read the file of chunk {chunk} afresh: {error}");
        }
    }

    /// Notes an open file, and closes others that nobody uses when there are too many.
    fn opened(&self, chunk: ChunkId) {
        let mut open = lock(&self.open);
        open.retain(|known| *known != chunk);
        open.push_back(chunk);
        for _ in self.limits.open_max..open.len() {
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

    pub(crate) fn cache_stats(&self) -> CacheStats {
        self.limits.cache.stats()
    }

    /// Files that are open, and count.
    pub(crate) fn open_count(&self) -> usize {
        lock(&self.open).len()
    }

    /// Removes the file of a chunk. A scan that reads it goes on.
    pub(crate) fn remove(&self, chunk: ChunkId) -> Result<(), Error> {
        self.forget(chunk);
        self.remove_path(&self.path(chunk))
    }

    fn forget(&self, chunk: ChunkId) {
        let slot = lock(&self.slots).remove(&chunk);
        lock(&self.open).retain(|open| *open != chunk);
        if let Some(slot) = slot {
            lock(&slot).take();
        }
    }

    fn remove_path(&self, path: &Path) -> Result<(), Error> {
        self.disk.remove(path).map_err(failed(format_args!("remove {}", path.display())))
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

fn chunk_of(path: &Path, suffix: &str) -> Option<ChunkId> {
    let (stem, found) = path.file_name()?.to_str()?.split_once('.')?;
    (found == suffix).then(|| stem.parse().ok().map(ChunkId)).flatten()
}
