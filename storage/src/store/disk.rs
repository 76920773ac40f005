//! The seam under the store: where database files come from, and how they are opened without trusting them.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io,
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use redb::{BackendError, Builder, Database, DatabaseError, StorageBackend, backends::FileBackend};

use crate::Error;

/// Where the bytes of database files lie. Tests hand in one that loses power, errs or lies.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Opens the file, or makes an empty one.
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>>;

    /// Bytes that may still be written to the file system of this directory.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
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

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = nix::sys::statvfs::statvfs(dir)?;
        Ok(stat.blocks_available() * stat.fragment_size())
    }
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
) -> Result<Database, OpenError> {
    let backend = disk.open(path).map_err(|error| OpenError::Disk(error.into()))?;
    let open = || {
        Builder::new()
            .set_cache_size(options.cache_bytes)
            .set_check_integrity_on_open(options.verify)
            .create_with_backend(Boxed(backend))
    };
    match contain(open) {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(DatabaseError::DatabaseAlreadyOpen)) => Err(OpenError::InUse),
        Ok(Err(DatabaseError::UpgradeRequired(_) | DatabaseError::LockProtocolMismatch)) => {
            Err(OpenError::Newer)
        }
        Ok(Err(DatabaseError::Storage(redb::StorageError::Io(error)))) => match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                Err(OpenError::Damaged(error.to_string()))
            }
            _ => Err(OpenError::Disk(error.into())),
        },
        Ok(Err(error)) => Err(OpenError::Damaged(error.to_string())),
        Err(panic) => Err(OpenError::Damaged(panic)),
    }
}

/// Runs `work` on bytes that may be damaged: a panic of the database becomes the text of it.
pub(crate) fn contain<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        format!("the database file is inconsistent: {}", text.unwrap_or("no reason given"))
    })
}

/// Makes the names in a directory durable: redb syncs files, never the directory that names them.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), Error> {
    let sync = || File::open(dir)?.sync_all();
    sync().map_err(failed(format_args!("sync directory {}", dir.display())))
}

/// Turns a failure of the disk or of redb into [`Error::Disk`].
pub(crate) fn failed<E>(action: impl fmt::Display) -> impl FnOnce(E) -> Error
where
    E: Into<redb::Error>,
{
    move |error| Error::Disk { action: action.to_string(), source: Box::new(error.into()) }
}

/// A backend whose type is known at run time only.
#[derive(Debug)]
struct Boxed(Box<dyn StorageBackend>);

impl StorageBackend for Boxed {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}
