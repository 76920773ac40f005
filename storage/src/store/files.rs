//! The chunk files of a store: what is known of them, which are open, and the bounds on both.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hypertide_proto::ids::ChunkId;

use super::{
    cache::{CacheStats, ExtentCache},
    disk::{Disk, failed, sync_dir},
    draft::Draft,
    file::{ChunkFile, Known, New},
    handle::OpenFiles,
    identity::NodeFile,
    memory::Memory,
};
use crate::{ChunkSpec, Error, tables::FileHeader};

mod swap;

pub(crate) use swap::NewFile;

const SUFFIX: &str = "redb";
/// The end of the name of a file that is not finished yet.
const SUFFIX_NEW: &str = "redb.new";

type Slot = Arc<Mutex<Option<Arc<ChunkFile>>>>;

/// How much of the chunk files is kept at hand.
#[derive(Clone, Debug)]
pub(crate) struct FileLimits {
    /// Files that are open.
    pub(crate) open: Arc<OpenFiles>,
    /// Headers of segments. Those of files that are in use stay, whatever they take.
    pub(crate) directory: Arc<Memory>,
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
        Ok(Self { disk, dir, limits, slots: Mutex::default() })
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
    pub(crate) fn get(
        &self,
        node: &NodeFile,
        chunk: ChunkId,
    ) -> Result<Option<Arc<ChunkFile>>, Error> {
        if node.manifest(chunk).is_none() {
            return Ok(None);
        }
        let slot = self.slot(chunk);
        let file = self.get_in(&mut lock(&slot), node, chunk)?;
        self.trim();
        Ok(file)
    }

    /// The file of a chunk, made when it has none.
    pub(crate) fn get_or_create(
        &self,
        node: &NodeFile,
        spec: &ChunkSpec,
    ) -> Result<Arc<ChunkFile>, Error> {
        let slot = self.slot(spec.chunk);
        // IMPORTANT: held until the new file is in its slot. Whoever finds it in the manifest before would open it once
        // more, and two handles on a file cannot be.
        let mut slot = lock(&slot);
        if let Some(file) = self.get_in(&mut slot, node, spec.chunk)? {
            drop(slot);
            self.trim();
            return Ok(file);
        }
        let file = self.create(node, spec)?;
        *slot = Some(Arc::clone(&file));
        Ok(file)
    }

    /// The file of the chunk whose slot this is.
    ///
    /// A file that the manifest is behind, by a write that was cut short before its manifest, is noted at once: a
    /// second such write would otherwise be told from damage no more.
    fn get_in(
        &self,
        slot: &mut Option<Arc<ChunkFile>>,
        node: &NodeFile,
        chunk: ChunkId,
    ) -> Result<Option<Arc<ChunkFile>>, Error> {
        let Some(manifest) = node.manifest(chunk) else { return Ok(None) };
        if let Some(file) = slot.as_ref().filter(|file| !file.ailing()) {
            file.touch();
            return Ok(Some(Arc::clone(file)));
        }
        // One that fails only does so until it is opened anew. Two handles on a file cannot be.
        *slot = None;
        let known = Known { chunk, manifest, limits: self.limits.clone() };
        let file = Arc::new(ChunkFile::open(&self.disk, &self.path(chunk), known)?);
        if file.manifest() != manifest {
            node.save_manifests(&[(chunk, Some(file.manifest()))])?;
        }
        *slot = Some(Arc::clone(&file));
        Ok(Some(file))
    }

    /// Makes the file of a chunk, and lets the manifest name it.
    fn create(&self, node: &NodeFile, spec: &ChunkSpec) -> Result<Arc<ChunkFile>, Error> {
        let chunk = spec.chunk;
        let path = self.path(chunk);
        // What an interrupted creation left has no rows.
        self.remove_path(&path)?;
        let new = New { spec: spec.clone(), limits: self.limits.clone() };
        let file = Arc::new(ChunkFile::create(&self.disk, &path, new)?);
        sync_dir(self.disk.as_ref(), &self.dir)?;
        node.save_manifests(&[(chunk, Some(file.manifest()))])?;
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
        let known = Known { chunk, manifest: header.manifest, limits: self.limits.clone() };
        let file = ChunkFile::open(&self.disk, &new, known)?;
        // Who begins to read it from now on until the switch may still read on.
        if let Some(old) = lock(&self.slot(chunk)).as_ref() {
            old.retire(true);
        }
        let renamed = self.disk.rename(&new, &path);
        renamed.map_err(failed(format_args!("replace the file of chunk {chunk}")))?;
        file.renamed(&path);
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

    /// Forgets what is known of files that nobody uses, the one wanted last at the end, while that takes too much.
    fn trim(&self) {
        let directory = &self.limits.directory;
        if directory.used() <= directory.limit() {
            return;
        }
        let slots: Vec<Slot> = lock(&self.slots).values().map(Arc::clone).collect();
        let used = |slot: Slot| {
            let file = slot.try_lock().ok()?.as_ref().map(|file| file.used())?;
            Some((file, slot))
        };
        let mut idle: Vec<(u64, Slot)> = slots.into_iter().filter_map(used).collect();
        idle.sort_by_key(|(used, _)| *used);
        for (_, slot) in idle {
            if directory.used() <= directory.limit() / 8 * 7 {
                return;
            }
            if let Ok(mut slot) = slot.try_lock() {
                // Closed under the lock of its slot, so that nobody opens it meanwhile.
                slot.take_if(|file| Arc::strong_count(file) == 1);
            }
        }
    }

    pub(crate) fn cache_stats(&self) -> CacheStats {
        self.limits.cache.stats()
    }

    /// Files that are open, and count.
    pub(crate) fn open_count(&self) -> usize {
        self.limits.open.count()
    }

    /// Removes the file of a chunk. A scan that reads it goes on.
    pub(crate) fn remove(&self, chunk: ChunkId) -> Result<(), Error> {
        self.forget(chunk);
        self.remove_path(&self.path(chunk))
    }

    /// Lets go of the file of a chunk, before it loses its name.
    fn forget(&self, chunk: ChunkId) {
        let slot = lock(&self.slots).remove(&chunk);
        if let Some(file) = slot.and_then(|slot| lock(&slot).take()) {
            file.retire(Arc::strong_count(&file) > 1);
        }
    }

    fn remove_path(&self, path: &Path) -> Result<(), Error> {
        self.disk.remove(path).map_err(failed(format_args!("remove {}", path.display())))
    }

    /// Closes all files that nobody uses.
    pub(crate) fn close(&self) {
        for slot in lock(&self.slots).values() {
            if let Some(file) = lock(slot).take() {
                file.retire(Arc::strong_count(&file) > 1);
            }
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
