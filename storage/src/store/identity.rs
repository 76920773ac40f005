//! `node.redb`: whose directory this is, and what its chunk files must at least hold.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hypertide_proto::ids::{ChunkId, DiskId};
use redb::{Database, ReadableDatabase, ReadableTable, TableError};

use super::disk::{Disk, OpenError, OpenOptionsRedb, contain, failed, open_database, sync_dir};
use super::held::Held;
use crate::{
    Error,
    tables::{self, FORMAT, Identity, Manifest},
};

const NAME: &str = "node.redb";
/// Its name until the directory is complete.
const NAME_NEW: &str = "node.redb.new";
const CACHE_BYTES: usize = 4 << 20;

/// The open `node.redb`.
#[derive(Debug)]
pub(crate) struct NodeFile {
    /// `None` after [`NodeFile::close`].
    database: Mutex<Option<Held>>,
    identity: Mutex<Identity>,
    manifest: Mutex<BTreeMap<ChunkId, Manifest>>,
    settled: bool,
}

type Rows = (Option<Identity>, BTreeMap<ChunkId, Manifest>);

impl NodeFile {
    /// Opens the file of `dir`, which keeps every other process out, or makes it.
    ///
    /// A new file gets its name only by [`NodeFile::settle`]: until then the directory holds nothing that counts, and
    /// an interrupted start begins again.
    pub(crate) fn open(disk: &dyn Disk, dir: &Path) -> Result<Self, Error> {
        let known = dir.join(NAME);
        let settled = disk.size(&known).map_err(failed("look for node.redb"))?.is_some();
        let path = dir.join(if settled { NAME } else { NAME_NEW });
        let database = match open(disk, &path) {
            Err(OpenError::Damaged(_)) if !settled => {
                // Nothing but the first write of an identity can be torn in it.
                let removed = disk.remove(&path);
                removed.map_err(failed(format_args!("remove {}", path.display())))?;
                open(disk, &path)
            }
            opened => opened,
        };
        let database = database.map_err(|error| refusal(dir, error))?;
        let read = contain(|| read_all(&database));
        if !matches!(read, Ok(Ok(Ok(_)))) {
            database.distrust();
        }
        let read = read.map_err(|what| refusal(dir, OpenError::Damaged(what)))?;
        let read = read.map_err(failed("read node.redb"))?;
        let (identity, manifest) = read.map_err(|error| refusal(dir, error))?;
        if settled && identity.is_none() {
            return Err(refusal(dir, OpenError::Damaged("it holds no identity".into())));
        }
        let fresh = identity.is_none();
        let identity = identity.unwrap_or_else(|| Identity {
            format: FORMAT,
            disk: DiskId(disk.draw_id()),
            member: None,
            access: Vec::new(),
        });
        let node = Self {
            database: Mutex::new(Some(database)),
            identity: Mutex::new(identity.clone()),
            manifest: Mutex::new(manifest),
            settled,
        };
        if fresh {
            node.save_identity(identity)?;
        }
        Ok(node)
    }

    /// Whether the directory counts: it was made, completely, before this start.
    pub(crate) fn settled(&self) -> bool {
        self.settled
    }

    /// Makes the directory count, after all else in it is there.
    pub(crate) fn settle(&self, disk: &dyn Disk, dir: &Path) -> Result<(), Error> {
        let renamed = disk.rename(&dir.join(NAME_NEW), &dir.join(NAME));
        renamed.map_err(failed("name node.redb"))?;
        sync_dir(disk, dir)
    }

    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, Error>) -> Result<T, Error> {
        let database = lock(&self.database);
        work(database.as_ref().ok_or_else(|| Error::Closed("it was shut down".into()))?)
    }

    /// Lets the directory go, for another process to open.
    pub(crate) fn close(&self) {
        lock(&self.database).take();
    }

    pub(crate) fn identity(&self) -> Identity {
        lock(&self.identity).clone()
    }

    /// Changes the identity, durably.
    pub(crate) fn save_identity(&self, identity: Identity) -> Result<(), Error> {
        let save = |database: &Database| -> Result<(), redb::Error> {
            let txn = database.begin_write()?;
            let body = tables::pack(&identity);
            tables::put(&mut txn.open_table(tables::IDENTITY)?, tables::IDENTITY_KEY, &[&body])?;
            txn.commit()?;
            Ok(())
        };
        self.with(|database| {
            save(database).map_err(failed("save the identity of the data directory"))
        })?;
        *lock(&self.identity) = identity;
        Ok(())
    }

    pub(crate) fn manifest(&self, chunk: ChunkId) -> Option<Manifest> {
        lock(&self.manifest).get(&chunk).copied()
    }

    pub(crate) fn manifests(&self) -> BTreeMap<ChunkId, Manifest> {
        lock(&self.manifest).clone()
    }

    /// Notes, durably, what chunk files hold now; `None` for a file that is to be removed.
    pub(crate) fn save_manifests(&self, rows: &[(ChunkId, Option<Manifest>)]) -> Result<(), Error> {
        let save = |database: &Database| -> Result<(), redb::Error> {
            let txn = database.begin_write()?;
            {
                let mut table = txn.open_table(tables::MANIFEST)?;
                for (chunk, row) in rows {
                    let key = chunk.0.to_be_bytes();
                    match row {
                        Some(row) => tables::put(&mut table, &key, &[&tables::pack(row)])?,
                        None => drop(table.remove(key.as_slice())?),
                    }
                }
            }
            txn.commit()?;
            Ok(())
        };
        self.with(|database| save(database).map_err(failed("save the manifest of chunk files")))?;
        let mut manifest = lock(&self.manifest);
        for (chunk, row) in rows {
            match row {
                Some(row) => drop(manifest.insert(*chunk, *row)),
                None => drop(manifest.remove(chunk)),
            }
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open(disk: &dyn Disk, path: &Path) -> Result<Held, OpenError> {
    // The file is small, and all else is checked against it.
    let options = OpenOptionsRedb { cache_bytes: CACHE_BYTES, verify: true };
    open_database(disk, path, options)
}

/// Why a directory cannot be used, in words.
fn refusal(dir: &Path, error: OpenError) -> Error {
    let shown = dir.display();
    match error {
        OpenError::InUse => {
            Error::Identity(format!("data directory {shown} is in use by another process"))
        }
        OpenError::Newer => Error::Identity(format!(
            "data directory {shown} is of a newer format than this program knows, which is {FORMAT}"
        )),
        OpenError::Damaged(what) => Error::Disk {
            action: format!("open node.redb of data directory {shown}"),
            source: what.into(),
        },
        OpenError::Scarce(error) => {
            Error::Overloaded(format!("open data directory {shown}: {error}"))
        }
        OpenError::Disk(source) => {
            Error::Disk { action: format!("open data directory {shown}"), source }
        }
    }
}

fn read_all(database: &Database) -> Result<Result<Rows, OpenError>, redb::Error> {
    let txn = database.begin_read()?;
    let identity = match txn.open_table(tables::IDENTITY) {
        Ok(table) => table.get(tables::IDENTITY_KEY)?,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Ok((None, BTreeMap::new()))),
        Err(error) => return Err(error.into()),
    };
    let Some(identity) = identity else { return Ok(Ok((None, BTreeMap::new()))) };
    let identity = match read_identity(identity.value()) {
        Ok(identity) => identity,
        Err(broken) => return Ok(Err(broken)),
    };
    let mut manifest = BTreeMap::new();
    match txn.open_table(tables::MANIFEST) {
        Ok(table) => {
            for row in table.iter()? {
                let (key, value) = row?;
                let chunk = key.value().try_into().ok().map(u64::from_be_bytes).map(ChunkId);
                let row = tables::unpack::<Manifest>(key.value(), value.value());
                let Some((chunk, row)) = chunk.zip(row) else {
                    return Ok(Err(OpenError::Damaged("the manifest has wrong bytes".into())));
                };
                manifest.insert(chunk, row);
            }
        }
        Err(TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(Ok((Some(identity), manifest)))
}

fn read_identity(value: &[u8]) -> Result<Identity, OpenError> {
    let wrong = || OpenError::Damaged("the identity has wrong bytes".into());
    let body = tables::unframe(tables::IDENTITY_KEY, value).ok_or_else(wrong)?;
    // A later shape need not be readable beyond its first field.
    if tables::format_of(body).ok_or_else(wrong)? > FORMAT {
        return Err(OpenError::Newer);
    }
    rmp_serde::from_slice(body).map_err(|_| wrong())
}
