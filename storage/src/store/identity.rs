//! `node.redb`: whose directory this is, what its chunk files must at least hold, and which of them are on their way out.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hypertide_proto::ids::{ChunkId, Csn, DiskId};
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, TableError, WriteTransaction,
};
use serde::de::DeserializeOwned;

use super::held::Held;
use super::{
    contain::contain,
    disk::{Disk, OpenError, OpenOptionsRedb, failed, open_database, sync_dir},
};
use crate::{
    Error,
    tables::{self, Definitions, FORMAT, Identity, Manifest},
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
    removals: Mutex<Removals>,
    definitions: Mutex<Option<Definitions>>,
    settled: bool,
}

/// Chunks that the catalog has no more on this node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Removals {
    /// Those that are kept for older snapshots, and the snapshot from which on the catalog has them no more.
    pub(crate) chunks: BTreeMap<ChunkId, Csn>,
    /// Before this snapshot, chunks that are not here may have been.
    pub(crate) horizon: Csn,
}

#[derive(Default)]
struct Rows {
    identity: Option<Identity>,
    manifest: BTreeMap<ChunkId, Manifest>,
    removals: Removals,
    definitions: Option<Definitions>,
}

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
        let read = read.map_err(|error| refusal(dir, error))?;
        let Rows { identity, manifest, removals, definitions } = read;
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
            removals: Mutex::new(removals),
            definitions: Mutex::new(definitions),
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

    /// Writes, durably.
    fn write(
        &self,
        action: &str,
        work: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), Error> {
        let write = |database: &Database| -> Result<(), redb::Error> {
            let txn = database.begin_write()?;
            work(&txn)?;
            txn.commit()?;
            Ok(())
        };
        self.with(|database| write(database).map_err(failed(action)))
    }

    /// Changes the identity, durably.
    pub(crate) fn save_identity(&self, identity: Identity) -> Result<(), Error> {
        self.write("save the identity of the data directory", |txn| {
            let body = tables::pack(&identity);
            tables::put(&mut txn.open_table(tables::IDENTITY)?, tables::IDENTITY_KEY, &[&body])?;
            Ok(())
        })?;
        *lock(&self.identity) = identity;
        Ok(())
    }

    pub(crate) fn definitions(&self) -> Option<Definitions> {
        lock(&self.definitions).clone()
    }

    /// Keeps other definitions, durably, unless those that are here are newer.
    pub(crate) fn save_definitions(&self, definitions: Definitions) -> Result<(), Error> {
        let mut kept = lock(&self.definitions);
        if kept.as_ref().is_some_and(|kept| kept.index > definitions.index) {
            return Ok(());
        }
        self.write("save the definitions of the catalog", |txn| {
            let pieces: [&[u8]; 2] = [&definitions.head(), &definitions.body];
            tables::put(&mut txn.open_table(tables::IDENTITY)?, tables::DEFINITIONS_KEY, &pieces)?;
            Ok(())
        })?;
        *kept = Some(definitions);
        Ok(())
    }

    pub(crate) fn manifest(&self, chunk: ChunkId) -> Option<Manifest> {
        lock(&self.manifest).get(&chunk).copied()
    }

    pub(crate) fn manifests(&self) -> BTreeMap<ChunkId, Manifest> {
        lock(&self.manifest).clone()
    }

    /// Notes, durably, what chunk files hold now; `None` for a file that is to be removed, and its chunk with it.
    pub(crate) fn save_manifests(&self, rows: &[(ChunkId, Option<Manifest>)]) -> Result<(), Error> {
        self.write("save the manifest of chunk files", |txn| {
            let mut table = txn.open_table(tables::MANIFEST)?;
            let mut removed = txn.open_table(tables::REMOVED)?;
            for (chunk, row) in rows {
                let key = chunk.0.to_be_bytes();
                match row {
                    Some(row) => tables::put(&mut table, &key, &[&tables::pack(row)])?,
                    None => {
                        table.remove(key.as_slice())?;
                        removed.remove(key.as_slice())?;
                    }
                }
            }
            Ok(())
        })?;
        let (mut manifest, mut removals) = (lock(&self.manifest), lock(&self.removals));
        for (chunk, row) in rows {
            match row {
                Some(row) => drop(manifest.insert(*chunk, *row)),
                None => {
                    manifest.remove(chunk);
                    removals.chunks.remove(chunk);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn removals(&self) -> Removals {
        lock(&self.removals).clone()
    }

    /// Before this snapshot, chunks that are not here may have been.
    pub(crate) fn horizon(&self) -> Csn {
        lock(&self.removals).horizon
    }

    /// Notes, durably, that the catalog has these chunks no more from a snapshot on; `None` for one that it has again.
    pub(crate) fn save_removed(&self, rows: &[(ChunkId, Option<Csn>)]) -> Result<(), Error> {
        self.write("save which chunks were removed", |txn| {
            let mut table = txn.open_table(tables::REMOVED)?;
            for (chunk, csn) in rows {
                let key = chunk.0.to_be_bytes();
                match csn {
                    Some(csn) => tables::put(&mut table, &key, &[&tables::pack(csn)])?,
                    None => drop(table.remove(key.as_slice())?),
                }
            }
            Ok(())
        })?;
        let mut removals = lock(&self.removals);
        for (chunk, csn) in rows {
            match csn {
                Some(csn) => drop(removals.chunks.insert(*chunk, *csn)),
                None => drop(removals.chunks.remove(chunk)),
            }
        }
        Ok(())
    }

    /// Notes, durably, that chunks which are not here may have been before this snapshot. It never goes back.
    pub(crate) fn raise_horizon(&self, horizon: Csn) -> Result<(), Error> {
        if horizon <= self.horizon() {
            return Ok(());
        }
        self.write("save from which snapshot on chunks can be read", |txn| {
            let body = tables::pack(&horizon);
            tables::put(&mut txn.open_table(tables::IDENTITY)?, tables::HORIZON_KEY, &[&body])?;
            Ok(())
        })?;
        lock(&self.removals).horizon = horizon;
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
    let table = match txn.open_table(tables::IDENTITY) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Ok(Rows::default())),
        Err(error) => return Err(error.into()),
    };
    let Some(identity) = table.get(tables::IDENTITY_KEY)? else {
        return Ok(Ok(Rows::default()));
    };
    let identity = match read_identity(identity.value()) {
        Ok(identity) => identity,
        Err(broken) => return Ok(Err(broken)),
    };
    let wrong = |what: &str| Ok(Err(OpenError::Damaged(format!("{what} has wrong bytes"))));
    let horizon = match table.get(tables::HORIZON_KEY)? {
        Some(row) => tables::unpack(tables::HORIZON_KEY, row.value()),
        None => Some(Csn(0)),
    };
    let Some(horizon) = horizon else { return wrong("the horizon") };
    let definitions = match table.get(tables::DEFINITIONS_KEY)? {
        Some(row) => match tables::unframe(tables::DEFINITIONS_KEY, row.value())
            .and_then(Definitions::from_body)
        {
            Some(definitions) => Some(definitions),
            None => return wrong("the copy of the definitions"),
        },
        None => None,
    };
    let Some(manifest) = read_chunks(&txn, tables::MANIFEST)? else {
        return wrong("the manifest");
    };
    let Some(chunks) = read_chunks(&txn, tables::REMOVED)? else {
        return wrong("the list of removed chunks");
    };
    let removals = Removals { chunks, horizon };
    Ok(Ok(Rows { identity: Some(identity), manifest, removals, definitions }))
}

/// The rows of a table by chunk; `None` when one has wrong bytes.
fn read_chunks<T: DeserializeOwned>(
    txn: &ReadTransaction,
    table: tables::Definition,
) -> Result<Option<BTreeMap<ChunkId, T>>, redb::Error> {
    let table = match txn.open_table(table) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Some(BTreeMap::new())),
        Err(error) => return Err(error.into()),
    };
    let mut rows = BTreeMap::new();
    for row in table.iter()? {
        let (key, value) = row?;
        let chunk = key.value().try_into().ok().map(u64::from_be_bytes).map(ChunkId);
        let row = tables::unpack::<T>(key.value(), value.value());
        let Some((chunk, row)) = chunk.zip(row) else { return Ok(None) };
        rows.insert(chunk, row);
    }
    Ok(Some(rows))
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
