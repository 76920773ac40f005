//! The seam under the store: where database files come from, and how they are opened without trusting them.
//!
//! All that the store does to a file system goes through [`Disk`], so that a test can lose power, err or lie at any of
//! it. What a file's calls answered is kept in its [`Health`], since redb only says that something failed.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use redb::{
    BackendError, Builder, DatabaseError, ReadOnlyDatabase, StorageBackend, backends::FileBackend,
};

use super::{contain::contain, held::Held};
use crate::Error;

/// How long a lack of handles is waited out where nothing else can be done, and the pause between two attempts.
const SCARCITY_PATIENCE: Duration = Duration::from_secs(20);
const SCARCITY_PAUSE: Duration = Duration::from_millis(20);

/// A file system. Names in a directory last only after [`Disk::sync_dir`], bytes of a file after its own sync.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Opens the file, or makes an empty one.
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>>;

    /// Bytes of the file; `None` when there is none.
    fn size(&self, path: &Path) -> io::Result<Option<u64>>;

    /// Makes the directory and those above it.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes a directory below another one, of which nothing else is left.
    fn keep_only_dir(&self, all: &Path, dir: &Path) -> io::Result<()>;

    /// The files in a directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;

    /// Gives a file another name; whoever had that name is gone.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file, if it is there.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// All of a small file; `None` when there is none.
    fn read_note(&self, path: &Path) -> io::Result<Option<String>>;

    /// Writes a small file, durably but for its name.
    fn write_note(&self, path: &Path, text: &str) -> io::Result<()>;

    /// Asks that what is read of the file from now on comes from the medium, where the system can do that.
    fn forget_cached(&self, path: &Path) -> io::Result<()>;

    /// Bytes that may still be written to the file system of this directory.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;

    /// A number that is drawn once and names a file, or a directory, from then on.
    fn draw_id(&self) -> [u8; 16];
}

/// The machine's own file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileDisk;

impl Disk for FileDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(Box::new(FileBackend::new(file).map_err(io::Error::other)?))
    }

    fn size(&self, path: &Path) -> io::Result<Option<u64>> {
        absent_as_none(std::fs::metadata(path).map(|meta| meta.len()))
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(dir)
    }

    fn keep_only_dir(&self, all: &Path, dir: &Path) -> io::Result<()> {
        if !dir.exists() {
            absent_as_none(std::fs::remove_dir_all(all))?;
        }
        std::fs::create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        absent_as_none(std::fs::remove_file(path)).map(|_| ())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn read_note(&self, path: &Path) -> io::Result<Option<String>> {
        absent_as_none(std::fs::read(path)).map(|note| note.map(|bytes| text_of(&bytes)))
    }

    fn write_note(&self, path: &Path, text: &str) -> io::Result<()> {
        std::fs::write(path, text)?;
        File::open(path)?.sync_all()
    }

    fn forget_cached(&self, path: &Path) -> io::Result<()> {
        let file = File::open(path)?;
        let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        nix::fcntl::posix_fadvise(&file, 0, 0, advice)?;
        Ok(())
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = nix::sys::statvfs::statvfs(dir)?;
        Ok(stat.blocks_available() * stat.fragment_size())
    }

    fn draw_id(&self) -> [u8; 16] {
        *uuid::Uuid::new_v4().as_bytes()
    }
}

fn absent_as_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A torn note is still a note.
fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The worst that the calls on an open file have answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ailment {
    /// Nothing but successes.
    None,
    /// A read failed: these bytes are lost, others need not be.
    Unreadable,
    /// A write found no room. What was on disk is still there.
    Full,
    /// A write or a sync failed: nothing says any more what is on disk.
    Broken,
}

/// How an open file is.
#[derive(Debug, Default)]
pub(crate) struct Health(AtomicU8);

impl Health {
    /// The worst so far.
    pub(crate) fn ailment(&self) -> Ailment {
        match self.0.load(Ordering::Acquire) {
            0 => Ailment::None,
            1 => Ailment::Unreadable,
            2 => Ailment::Full,
            _ => Ailment::Broken,
        }
    }

    fn note<T>(&self, result: io::Result<T>, ailment: fn(&io::Error) -> Ailment) -> io::Result<T> {
        if let Err(error) = &result {
            self.0.fetch_max(ailment(error) as u8, Ordering::AcqRel);
        }
        result
    }
}

fn of_read(error: &io::Error) -> Ailment {
    match error.kind() {
        // The file is shorter than it says: its bytes are wrong, the disk is not.
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => Ailment::None,
        _ => Ailment::Unreadable,
    }
}

fn of_write(error: &io::Error) -> Ailment {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Ailment::Full,
        _ => Ailment::Broken,
    }
}

fn of_sync(_: &io::Error) -> Ailment {
    Ailment::Broken
}

/// Whether a failure is a lack of file handles or memory in this process or machine, which passes.
fn is_scarcity(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let scarce = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::EINTR, Errno::EAGAIN];
    let code = error.raw_os_error().map(Errno::from_raw);
    code.is_some_and(|code| scarce.contains(&code)) || error.kind() == io::ErrorKind::OutOfMemory
}

/// Why a database file did not open.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// Another process has it open.
    InUse,
    /// A later version wrote it.
    Newer,
    /// Its bytes are wrong.
    Damaged(String),
    /// There is no file handle or no memory for it now. Nothing was written.
    Scarce(io::Error),
    /// The disk failed.
    Disk(Box<dyn std::error::Error + Send + Sync>),
}

/// How a database file is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenOptionsRedb {
    /// Memory for pages.
    pub(crate) cache_bytes: usize,
    /// Whether all checksums are verified first.
    pub(crate) verify: bool,
}

/// Opens a database file, or makes one. A damaged file is told, whatever redb does on it.
pub(crate) fn open_database(
    disk: &dyn Disk,
    path: &Path,
    options: OpenOptionsRedb,
) -> Result<Held, OpenError> {
    open_watched(disk, path, options, Arc::default())
}

/// [`open_database`], with what its calls answer kept in `health`.
pub(crate) fn open_watched(
    disk: &dyn Disk,
    path: &Path,
    options: OpenOptionsRedb,
    health: Arc<Health>,
) -> Result<Held, OpenError> {
    let backend = watched(disk, path, health)?;
    let open = || {
        Builder::new()
            .set_cache_size(options.cache_bytes)
            .set_check_integrity_on_open(options.verify)
            .create_with_backend(backend)
    };
    contain(open).map_err(OpenError::Damaged)?.map(Held::new).map_err(OpenError::of)
}

/// As [`open_watched`], a file that is there, to read it only; `None` when it must be repaired first. Verifies nothing.
pub(crate) fn open_read_only(
    disk: &dyn Disk,
    path: &Path,
    options: OpenOptionsRedb,
    health: Arc<Health>,
) -> Result<Option<ReadOnlyDatabase>, OpenError> {
    let backend = watched(disk, path, health)?;
    let open = || {
        let mut builder = Builder::new();
        builder.set_cache_size(options.cache_bytes).open_read_only_with_backend(backend)
    };
    match contain(open).map_err(OpenError::Damaged)? {
        Ok(database) => Ok(Some(database)),
        Err(DatabaseError::RepairAborted) => Ok(None),
        Err(error) => Err(OpenError::of(error)),
    }
}

fn watched(disk: &dyn Disk, path: &Path, health: Arc<Health>) -> Result<Watched, OpenError> {
    let inner = disk.open(path).map_err(|error| match is_scarcity(&error) {
        true => OpenError::Scarce(error),
        false => OpenError::Disk(error.into()),
    })?;
    Ok(Watched { inner, health })
}

impl OpenError {
    fn of(error: DatabaseError) -> Self {
        match error {
            DatabaseError::DatabaseAlreadyOpen => Self::InUse,
            DatabaseError::UpgradeRequired(_) | DatabaseError::LockProtocolMismatch => Self::Newer,
            DatabaseError::Storage(redb::StorageError::Io(error)) => match error.kind() {
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                    Self::Damaged(error.to_string())
                }
                _ => Self::Disk(error.into()),
            },
            error => Self::Damaged(error.to_string()),
        }
    }
}

/// Makes the names in a directory durable: redb syncs files, never the directory that names them.
///
/// The directory has to be opened for it. When there is no handle, one is waited for: what is to be synced has been done
/// already and cannot be taken back, and a store that went on without would promise what it does not hold.
pub(crate) fn sync_dir(disk: &dyn Disk, dir: &Path) -> Result<(), Error> {
    let deadline = Instant::now() + SCARCITY_PATIENCE;
    let mut synced = disk.sync_dir(dir);
    while synced.as_ref().is_err_and(is_scarcity) && Instant::now() < deadline {
        std::thread::sleep(SCARCITY_PAUSE);
        synced = disk.sync_dir(dir);
    }
    synced.map_err(failed(format_args!("sync directory {}", dir.display())))
}

/// Turns a failure of the disk or of redb into [`Error::Disk`].
pub(crate) fn failed<E>(action: impl fmt::Display) -> impl FnOnce(E) -> Error
where
    E: Into<redb::Error>,
{
    move |error| Error::Disk { action: action.to_string(), source: Box::new(error.into()) }
}

/// A file whose answers are noted.
#[derive(Debug)]
struct Watched {
    inner: Box<dyn StorageBackend>,
    health: Arc<Health>,
}

impl StorageBackend for Watched {
    fn len(&self) -> io::Result<u64> {
        self.health.note(self.inner.len(), of_read)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.health.note(self.inner.read(offset, out), of_read)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.health.note(self.inner.set_len(len), of_write)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.health.note(self.inner.sync_data(), of_sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.health.note(self.inner.write(offset, data), of_write)
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}
