//! Files that are made beside the one that counts, and take its place when they are whole: copies from other replicas.
//!
//! A new file counts from the moment the manifest names it, before it has the chunk's name: a restart in between gives
//! it that name. One that the manifest does not name goes at the next start.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use hypertide_proto::ids::ChunkId;

use super::{FileLimits, Files, SUFFIX, lock};
use crate::{
    Error,
    store::{
        disk::{Disk, failed, sync_dir},
        file::{ChunkFile, Known},
        identity::NodeFile,
    },
    tables::Manifest,
};

const SUFFIX_NEW: &str = "copy";

/// A file in the making. It is removed on drop, unless it took the place of the chunk's.
#[derive(Debug)]
pub(crate) struct NewFile {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    kept: bool,
}

impl NewFile {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = remove(self.disk.as_ref(), &self.path)
        {
            tracing::warn!("{error}");
        }
    }
}

impl Files {
    pub(crate) fn disk(&self) -> &dyn Disk {
        self.disk.as_ref()
    }

    /// A place for another file of the chunk. Each has a name of its own, so that one that is given up and not gone yet
    /// is in nobody's way.
    pub(crate) fn new_file(&self, chunk: ChunkId) -> NewFile {
        let id = uuid::Uuid::from_bytes(self.disk.draw_id()).simple();
        let path = self.dir.join(format!("{}.{id}.{SUFFIX_NEW}", chunk.0));
        NewFile { disk: Arc::clone(&self.disk), path, kept: false }
    }

    /// Opens a new file, which is durable but for its name, and makes that durable, too.
    pub(crate) fn open_new(
        &self,
        new: &NewFile,
        chunk: ChunkId,
        manifest: Manifest,
    ) -> Result<ChunkFile, Error> {
        sync_dir(self.disk(), &self.dir)?;
        let known = Known { chunk, manifest, limits: self.limits.clone() };
        ChunkFile::open(&self.disk, new.path(), known)
    }

    /// Lets a whole and durable file take the place of the chunk's, from the moment the manifest names it.
    ///
    /// Nobody opens the file of the chunk meanwhile. `publish` tells how far the chunk is flushed now, by which a scan
    /// that has the file before notices.
    pub(crate) fn swap(
        &self,
        node: &NodeFile,
        (chunk, mut new, file): (ChunkId, NewFile, Arc<ChunkFile>),
        publish: impl FnOnce(),
    ) -> Result<(), Error> {
        let slot = self.slot(chunk);
        let mut slot = lock(&slot);
        // IMPORTANT: kept before the manifest is written, which may have reached the disk even when that fails. Only the
        // next start knows which of the two files counts.
        new.kept = true;
        node.save_manifests(&[(chunk, Some(file.manifest()))])?;
        if let Some(old) = slot.as_ref() {
            old.retire(Arc::strong_count(old) > 1);
        }
        let path = self.path(chunk);
        name(self.disk(), &new.path, &path)?;
        file.renamed(&path);
        *slot = Some(file);
        publish();
        Ok(())
    }
}

impl Files {
    /// Moves the file of a chunk to another directory. A scan that reads it goes on.
    pub(crate) fn put_aside(&self, chunk: ChunkId, place: &Path) -> Result<(), Error> {
        self.forget(chunk);
        let path = self.path(chunk);
        let name = path.file_name().unwrap_or_default();
        match self.disk.rename(&path, &place.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(failed(format_args!("put {} aside", path.display()))(error))
            }
            _ => Ok(()),
        }
    }
}

/// Gives a new file the name of the chunk's, durably.
fn name(disk: &dyn Disk, from: &Path, to: &Path) -> Result<(), Error> {
    let renamed = disk.rename(from, to);
    renamed.map_err(failed(format_args!("name {}", to.display())))?;
    to.parent().map_or(Ok(()), |dir| sync_dir(disk, dir))
}

fn remove(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    disk.remove(path).map_err(failed(format_args!("remove {}", path.display())))
}

/// The chunk that a new file is for.
fn chunk_of(path: &Path) -> Option<ChunkId> {
    let (chunk, _) = path.file_stem()?.to_str()?.split_once('.')?;
    (path.extension()? == SUFFIX_NEW).then(|| chunk.parse().ok().map(ChunkId)).flatten()
}

/// Ends what an earlier process was about: a new file that the manifest names takes its place, any other goes.
pub(super) fn settle(
    (disk, limits): (&Arc<dyn Disk>, &FileLimits),
    dir: &Path,
    node: &NodeFile,
) -> Result<(), Error> {
    let listed = disk.list(dir);
    let listed = listed.map_err(failed(format_args!("list directory {}", dir.display())))?;
    for path in listed {
        let Some(chunk) = chunk_of(&path) else { continue };
        let named = node.manifest(chunk).is_some_and(|manifest| {
            let known = Known { chunk, manifest, limits: limits.clone() };
            let opened = ChunkFile::open(disk, &path, known);
            opened.is_ok_and(|file| file.manifest() == manifest)
        });
        if named {
            tracing::info!("the file of chunk {chunk} is a copy from another replica from now on");
            name(disk.as_ref(), &path, &dir.join(format!("{}.{SUFFIX}", chunk.0)))?;
        } else {
            tracing::info!("remove {}, which was not finished", path.display());
            remove(disk.as_ref(), &path)?;
        }
    }
    Ok(())
}
