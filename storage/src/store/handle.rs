//! The database of a chunk's file: opened when it is needed, closed when others need the room.
//!
//! What is known of a file, its header and those of its segments, stays in memory without it being open, and most
//! extents that are read come from the cache: many chunks can be scanned without a file handle each.
//!
//! - To read, a file is opened read-only: that writes nothing, and waits for no sync. Only one that was not closed well
//!   is opened for writing, which repairs it.
//! - The first write opens it anew, for writing. That one syncs when it is opened, and again when it is closed.
//! - A file that is replaced or removed has no name any more by which it could be opened again. It is *retired* before:
//!   whoever still reads it gets it opened, once more, and then it stays open until the last reader is gone.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use hypertide_proto::ids::ChunkId;
use redb::{Database, ReadOnlyDatabase, ReadTransaction, ReadableDatabase};

use super::{
    contain::contain,
    disk::{
        Ailment, Disk, Health, OpenError, OpenOptionsRedb, failed, open_read_only, open_watched,
    },
    held::Held,
};
use crate::Error;

/// redb's own memory for pages. Small, since extents that were read are kept in the store's cache.
const CACHE_BYTES: usize = 1 << 20;
/// The same of a file that is only read, of which many are open: enough for the pages that lead to its values.
const READ_CACHE_BYTES: usize = 256 << 10;

/// The open databases of a store, and the bound on their number.
#[derive(Debug)]
pub(crate) struct OpenFiles {
    /// Files that stay open when nobody uses them.
    limit: usize,
    count: AtomicUsize,
    clock: AtomicU64,
    handles: Mutex<Vec<Weak<Handle>>>,
}

impl OpenFiles {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        let (count, clock) = (AtomicUsize::new(0), AtomicU64::new(0));
        Arc::new(Self { limit, count, clock, handles: Mutex::default() })
    }

    /// Files that are open.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// A number for now, higher than those before.
    pub(crate) fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes an open file, and closes those that were used least recently while there are too many.
    fn opened(&self, handle: &Arc<Handle>) {
        let mut idle: Vec<Arc<Handle>> = {
            let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
            handles
                .retain(|known| known.strong_count() > 0 && !known.ptr_eq(&Arc::downgrade(handle)));
            let others = handles.iter().filter_map(Weak::upgrade).collect();
            handles.push(Arc::downgrade(handle));
            others
        };
        if self.count() <= self.limit {
            return;
        }
        idle.sort_by_key(|handle| handle.used.load(Ordering::Relaxed));
        // Outside of the lock: to close one that was written to takes syncs.
        for handle in idle {
            if self.count() <= self.limit {
                return;
            }
            handle.close();
        }
    }
}

/// How a database is open.
enum Open {
    Reading(ReadOnlyDatabase),
    Writing(Held),
}

#[derive(Default)]
struct State {
    open: Option<Open>,
    path: PathBuf,
    /// The name is another file's, or nobody's.
    retired: bool,
}

/// The database of a chunk's file.
pub(crate) struct Handle {
    chunk: ChunkId,
    disk: Arc<dyn Disk>,
    files: Arc<OpenFiles>,
    health: Arc<Health>,
    state: RwLock<State>,
    /// When it was used last.
    used: AtomicU64,
    /// redb met wrong bytes, after which it refuses all else, right or wrong, until the file is opened anew.
    stumbled: AtomicBool,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("chunk", &self.chunk).finish_non_exhaustive()
    }
}

impl Handle {
    /// A file that is there, and is opened when somebody needs it.
    pub(crate) fn new(
        disk: &Arc<dyn Disk>,
        files: &Arc<OpenFiles>,
        (chunk, path): (ChunkId, &Path),
    ) -> Arc<Self> {
        Arc::new(Self {
            chunk,
            disk: Arc::clone(disk),
            files: Arc::clone(files),
            health: Arc::default(),
            state: RwLock::new(State { path: path.to_owned(), ..State::default() }),
            used: AtomicU64::new(0),
            stumbled: AtomicBool::new(false),
        })
    }

    /// Makes the file, which must not be there.
    pub(crate) fn create(self: &Arc<Self>) -> Result<(), Error> {
        let mut state = self.state_mut();
        let held = open(self.disk.as_ref(), &state.path, (self.chunk, &self.health))?;
        self.put(&mut state, Open::Writing(held));
        drop(state);
        self.files.opened(self);
        Ok(())
    }

    /// Whether an operation on the disk failed in a way that only opening the file anew can end.
    pub(crate) fn ailing(&self) -> bool {
        self.health.ailment() != Ailment::None
    }

    /// The file has another name from now on.
    pub(crate) fn renamed(&self, path: &Path) {
        path.clone_into(&mut self.state_mut().path);
    }

    /// Gives up the name. With `read_on`, somebody still reads the file and is to go on: it is opened now, while it has
    /// the name; when that fails, he gets an error, never another file's bytes.
    pub(crate) fn retire(self: &Arc<Self>, read_on: bool) {
        if read_on && let Err(error) = self.open(false) {
            tracing::debug!("{error}");
        }
        self.state_mut().retired = true;
    }

    /// Reads, from the state that the last write left.
    pub(crate) fn read<T>(
        self: &Arc<Self>,
        work: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, Error> {
        let state = self.open(false)?;
        self.contained("read", || match &state.open {
            Some(Open::Reading(database)) => work(&database.begin_read()?),
            Some(Open::Writing(database)) => work(&database.begin_read()?),
            None => Err(redb::Error::DatabaseClosed),
        })
    }

    /// Writes.
    pub(crate) fn write<T>(
        self: &Arc<Self>,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, Error> {
        let state = self.open(true)?;
        self.contained("write", || match &state.open {
            Some(Open::Writing(database)) => work(database),
            _ => Err(redb::Error::DatabaseClosed),
        })
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database, opened if it is not; it stays so as long as the guard lives.
    fn open(self: &Arc<Self>, to_write: bool) -> Result<RwLockReadGuard<'_, State>, Error> {
        self.used.store(self.files.tick(), Ordering::Relaxed);
        let enough = |state: &State| match &state.open {
            Some(_) if !state.retired && self.stumbled.load(Ordering::Acquire) => false,
            Some(Open::Writing(_)) => true,
            Some(Open::Reading(_)) => !to_write,
            None => false,
        };
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        if enough(&state) {
            return Ok(state);
        }
        drop(state);
        let mut state = self.state_mut();
        if !enough(&state) {
            self.open_anew(&mut state, to_write)?;
        }
        let state = RwLockWriteGuard::downgrade(state);
        self.files.opened(self);
        Ok(state)
    }

    fn open_anew(&self, state: &mut State, to_write: bool) -> Result<(), Error> {
        let chunk = self.chunk;
        if state.retired {
            let what = format!("the file of chunk {chunk} was replaced or removed");
            return Err(Error::Overloaded(what));
        }
        // Two handles on a file cannot be.
        self.let_go(state);
        let size = self.disk.size(&state.path);
        let size = size.map_err(failed(format_args!("look for the file of chunk {chunk}")))?;
        if size.unwrap_or(0) == 0 {
            return Err(Error::Damaged { chunk, what: "its file is missing or empty".into() });
        }
        let (disk, watched) = (self.disk.as_ref(), (chunk, &self.health));
        let reading = if to_write { None } else { open_to_read(disk, &state.path, watched)? };
        let open = match reading {
            Some(reading) => Open::Reading(reading),
            None => Open::Writing(open(disk, &state.path, watched)?),
        };
        self.put(state, open);
        Ok(())
    }

    fn put(&self, state: &mut State, open: Open) {
        self.stumbled.store(false, Ordering::Release);
        self.files.count.fetch_add(1, Ordering::Relaxed);
        state.open = Some(open);
    }

    fn let_go(&self, state: &mut State) {
        let Some(open) = state.open.take() else { return };
        self.files.count.fetch_sub(1, Ordering::Relaxed);
        if let Open::Writing(held) = &open
            && self.stumbled.load(Ordering::Acquire)
        {
            held.distrust();
        }
        if let Err(what) = contain(|| drop(open)) {
            tracing::warn!("close the file of chunk {}: {what}", self.chunk);
        }
    }

    /// Closes the file, unless somebody is reading or writing right now, or it could not be opened again.
    fn close(&self) {
        let Ok(mut state) = self.state.try_write() else { return };
        if !state.retired {
            self.let_go(&mut state);
        }
    }

    /// Closes the file for good, once whoever reads, writes or closes it right now has ended.
    pub(crate) fn end(&self) {
        let mut state = self.state_mut();
        self.let_go(&mut state);
        state.retired = true;
    }

    /// Runs work on the database; bytes that make redb stumble are damage, all else is the disk's.
    fn contained<T>(
        &self,
        verb: &str,
        work: impl FnOnce() -> Result<T, redb::Error>,
    ) -> Result<T, Error> {
        let chunk = self.chunk;
        let what = match contain(work) {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) if is_damage(&error, self.health.ailment()) => error.to_string(),
            Ok(Err(error)) => {
                let action = format!("{verb} the file of chunk {chunk}");
                return Err(failure(chunk, (action, error), self.health.ailment()));
            }
            Err(what) => what,
        };
        self.stumbled.store(true, Ordering::Release);
        Err(Error::Damaged { chunk, what })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a failed operation means, by what the disk answered.
pub(super) fn failure(
    chunk: ChunkId,
    (action, error): (String, redb::Error),
    ailment: Ailment,
) -> Error {
    match ailment {
        Ailment::Unreadable => {
            Error::Damaged { chunk, what: format!("the disk cannot read its file: {error}") }
        }
        Ailment::Full => Error::DiskFull(format!("{action}: {error}")),
        Ailment::None | Ailment::Broken => failed(action)(error),
    }
}

/// Whether redb says that bytes are wrong, and not that the disk failed.
pub(crate) fn is_damage(error: &redb::Error, ailment: Ailment) -> bool {
    match error {
        // What failed before, while no call on the disk did, was to read beyond the end of the file.
        redb::Error::PreviousIo => ailment == Ailment::None,
        redb::Error::Io(error) => matches!(
            error.kind(),
            std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidData
        ),
        // The definitions of tables lie in the file, too.
        redb::Error::Corrupted(_)
        | redb::Error::TableDoesNotExist(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TableIsNotMultimap(_)
        | redb::Error::TypeDefinitionChanged { .. } => true,
        _ => false,
    }
}

const OPTIONS: OpenOptionsRedb = OpenOptionsRedb { cache_bytes: CACHE_BYTES, verify: false };

/// Opens the file of a chunk for writing, or makes it.
pub(super) fn open(
    disk: &dyn Disk,
    path: &Path,
    (chunk, health): (ChunkId, &Arc<Health>),
) -> Result<Held, Error> {
    let opened = open_watched(disk, path, OPTIONS, Arc::clone(health));
    opened.map_err(|error| refusal((chunk, health), error))
}

/// Opens the file of a chunk to read it; `None` when it must be repaired first.
fn open_to_read(
    disk: &dyn Disk,
    path: &Path,
    (chunk, health): (ChunkId, &Arc<Health>),
) -> Result<Option<ReadOnlyDatabase>, Error> {
    let options = OpenOptionsRedb { cache_bytes: READ_CACHE_BYTES, ..OPTIONS };
    let opened = open_read_only(disk, path, options, Arc::clone(health));
    opened.map_err(|error| refusal((chunk, health), error))
}

fn refusal((chunk, health): (ChunkId, &Arc<Health>), error: OpenError) -> Error {
    let action = || format!("open the file of chunk {chunk}");
    match error {
        OpenError::Damaged(what) => Error::Damaged { chunk, what },
        OpenError::Newer => Error::Damaged { chunk, what: "its file is of a newer format".into() },
        // By a scan that still holds a handle which failed.
        OpenError::InUse => Error::Overloaded(format!("{}: it is in use", action())),
        OpenError::Scarce(error) => Error::Overloaded(format!("{}: {error}", action())),
        OpenError::Disk(source) => match health.ailment() {
            Ailment::Unreadable => {
                Error::Damaged { chunk, what: format!("the disk cannot read its file: {source}") }
            }
            Ailment::Full => Error::DiskFull(format!("{}: {source}", action())),
            Ailment::None | Ailment::Broken => Error::Disk { action: action(), source },
        },
    }
}
