//! The journal: what must survive before it is a segment. One writer, group commit.
//!
//! Whatever is queued while a group is being synced becomes the next group: one redb transaction, one fsync, then all
//! who wait are answered. Changes nobody waits for (decisions, removals) ride with the next group, or go alone after a
//! delay.
//!
//! - Changes reach the disk in the order they were submitted.
//! - Nobody is told of a success before the fsync of its group returned.
//! - After the first failure nothing is written any more: the store is poisoned until the process has started anew.
//!
//! The queue has no limit of its own: parts in it are charged to the store's memory budget, and every other change is
//! about a part that was.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hypertide_proto::ids::{DiskId, TxnId};
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageError,
    TableError,
};
use tokio::sync::oneshot;

use crate::{
    Error,
    store::{
        contain::contain,
        disk::{
            Disk, Health, OpenError, OpenOptionsRedb, failed, open_database, open_watched, sync_dir,
        },
        handle::is_damage,
        held::Held,
        poison::Poison,
    },
    tables::{self, DecisionRow, PartHeader, PartKey},
};

const NAME: &str = "journal.redb";
/// Its name until it is whole.
const NAME_NEW: &str = "journal.redb.new";
/// How long a change that nobody waits for may stay in memory.
pub(crate) const LAZY_DELAY: Duration = Duration::from_millis(25);
/// Payload bytes after which a group is closed, so that the first of a burst does not wait for the last.
const GROUP_BYTES_MAX: usize = 32 << 20;
const CACHE_BYTES: usize = 16 << 20;

/// One change of the journal.
#[derive(Debug)]
pub(crate) enum Change {
    /// A part came.
    PutPart(PartKey, Box<PartHeader>, Bytes),
    /// A part was aborted, or is in a segment.
    RemovePart(PartKey),
    /// A transaction was committed.
    PutDecision(TxnId, DecisionRow),
    /// No part of the transaction is here any more.
    RemoveDecision(TxnId),
}

impl Change {
    fn bytes(&self) -> usize {
        match self {
            Self::PutPart(_, _, payload) => payload.len(),
            _ => 0,
        }
    }
}

/// What the journal held when it was opened.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    pub(crate) parts: Vec<(PartKey, PartHeader, Bytes)>,
    pub(crate) decisions: Vec<(TxnId, DecisionRow)>,
    /// Parts that have wrong bytes, and what is wrong.
    pub(crate) damaged: Vec<(PartKey, String)>,
}

#[derive(Debug)]
struct Entry {
    changes: Vec<Change>,
    done: Option<oneshot::Sender<()>>,
}

#[derive(Debug, Default)]
struct Queue {
    entries: VecDeque<Entry>,
    /// When the oldest entry that nobody waits for came; `None` without one.
    lazy_since: Option<Instant>,
    waited_for: usize,
    closed: bool,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    poison: Arc<Poison>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The journal of a data node.
#[derive(Debug)]
pub(crate) struct Journal {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// A journal that was opened and read, whose writer does not run yet.
#[derive(Debug)]
pub(crate) struct Opened {
    database: Held,
    pub(crate) recovered: Recovered,
}

/// What was found where a journal should be.
#[derive(Debug)]
pub(crate) enum Found {
    /// A journal. Parts of it may have wrong bytes, and say so.
    Journal(Opened),
    /// Nothing that tells which rows it held, and why.
    Lost(String),
}

impl Opened {
    /// Opens the journal of `disk_id` in `dir` and reads all of it.
    ///
    /// Only a directory that is not `settled`, which was never made completely, may lack one.
    pub(crate) fn read(
        disk: &dyn Disk,
        dir: &Path,
        (disk_id, settled): (DiskId, bool),
    ) -> Result<Found, Error> {
        let path = dir.join(NAME);
        let shown = path.display();
        let size = disk.size(&path).map_err(failed(format_args!("look for {shown}")))?;
        if size.is_none() && !settled {
            return Self::make(disk, dir, disk_id).map(Found::Journal);
        }
        if size.unwrap_or(0) == 0 {
            return Ok(Found::Lost("the file is missing or empty".into()));
        }
        let health = Arc::default();
        let (database, wrong) = match open_verified(disk, &path, &health) {
            Ok(opened) => opened,
            Err(OpenError::Damaged(what)) => return Ok(Found::Lost(what)),
            Err(error) => return Err(refusal(&path, error)),
        };
        let read = contain(|| read_all(&database, disk_id));
        if !matches!(read, Ok(Ok(Read::All(_)))) {
            database.distrust();
        }
        let recovered = match read {
            Ok(Ok(Read::All(recovered))) => recovered,
            Ok(Ok(Read::Unsigned)) => {
                return Ok(Found::Lost("it does not say whose it is".into()));
            }
            Ok(Ok(Read::Foreign)) => {
                return Err(Error::Identity(format!(
                    "{shown} is not the journal of this data directory: it carries another disk's id"
                )));
            }
            Ok(Err(error)) if is_damage(&error, health.ailment()) => {
                return Ok(Found::Lost(error.to_string()));
            }
            Ok(Err(error)) => return Err(failed(format_args!("read {shown}"))(error)),
            Err(what) => return Ok(Found::Lost(what)),
        };
        if let Some(wrong) = wrong.filter(|_| recovered.damaged.is_empty()) {
            // No row is wrong, so that it is unknown which rows are missing.
            database.distrust();
            return Ok(Found::Lost(wrong));
        }
        Ok(Found::Journal(Self { database, recovered }))
    }

    /// Makes the journal of a disk, where there is none.
    pub(crate) fn make(disk: &dyn Disk, dir: &Path, disk_id: DiskId) -> Result<Self, Error> {
        Ok(Self { database: make(disk, dir, disk_id)?, recovered: Recovered::default() })
    }

    /// Moves what is left of a disk's journal to another directory, for whoever wants to look into it; where it is then.
    pub(crate) fn put_aside(
        disk: &dyn Disk,
        (dir, place): (&Path, &Path),
        disk_id: DiskId,
    ) -> Result<PathBuf, Error> {
        let (path, kept) = (dir.join(NAME), place.join(format!("journal-{disk_id}.redb")));
        let shown = path.display();
        let size = disk.size(&path).map_err(failed(format_args!("look for {shown}")))?;
        if size.is_some() {
            let moved = disk.rename(&path, &kept);
            moved.map_err(failed(format_args!("put {shown} aside")))?;
            sync_dir(disk, place)?;
            sync_dir(disk, dir)?;
        }
        Ok(kept)
    }

    /// Starts the writer. `durable` is told of the transactions whose decisions are on disk now.
    ///
    /// Changes that nobody waits for go alone after `lazy_delay`; without one they wait for the next group, or the end,
    /// so that only the order of calls decides what a group holds.
    pub(crate) fn start(
        self,
        poison: Arc<Poison>,
        lazy_delay: Option<Duration>,
        durable: impl Fn(Vec<TxnId>) + Send + 'static,
    ) -> Result<Journal, Error> {
        let shared = Arc::new(Shared { queue: Mutex::default(), wake: Condvar::new(), poison });
        let writer = Writer { shared: Arc::clone(&shared), database: self.database, lazy_delay };
        let thread = std::thread::Builder::new().name("journal".into());
        let thread = thread.spawn(move || writer.run(durable));
        let thread = thread.map_err(|error| Error::Disk {
            action: "start the journal".into(),
            source: error.into(),
        })?;
        Ok(Journal { shared, writer: Mutex::new(Some(thread)) })
    }
}

impl Journal {
    /// Queues changes; the receiver hears when they are durable, and is dropped when they never will be.
    pub(crate) fn submit(&self, changes: Vec<Change>) -> oneshot::Receiver<()> {
        let (done, heard) = oneshot::channel();
        self.push(Entry { changes, done: Some(done) });
        heard
    }

    /// Queues changes that nobody waits for.
    pub(crate) fn submit_lazily(&self, changes: Vec<Change>) {
        if !changes.is_empty() {
            self.push(Entry { changes, done: None });
        }
    }

    fn push(&self, entry: Entry) {
        let mut queue = self.shared.lock();
        if queue.closed || self.shared.poison.reason().is_some() {
            return; // Dropping the sender tells the one who waits.
        }
        match &entry.done {
            Some(_) => queue.waited_for += 1,
            None => drop(queue.lazy_since.get_or_insert_with(Instant::now)),
        }
        queue.entries.push_back(entry);
        self.shared.wake.notify_one();
    }

    /// Writes what is queued, then ends the writer.
    pub(crate) fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_one();
        let thread = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the journal's writer panicked");
        }
    }
}

struct Writer {
    shared: Arc<Shared>,
    database: Held,
    lazy_delay: Option<Duration>,
}

impl Writer {
    fn run(self, durable: impl Fn(Vec<TxnId>)) {
        while let Some(group) = self.next_group() {
            let written = contain(|| write(&self.database, &group));
            let failure = match written {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(panic) => Some(panic),
            };
            if let Some(failure) = failure {
                self.shared.poison.set(format!("write of the journal failed: {failure}"));
                self.shared.lock().entries.clear();
                return;
            }
            let decided = group.iter().flat_map(|entry| &entry.changes).filter_map(|change| {
                if let Change::PutDecision(txn, _) = change { Some(*txn) } else { None }
            });
            let decided: Vec<TxnId> = decided.collect();
            if !decided.is_empty() {
                durable(decided);
            }
            for done in group.into_iter().filter_map(|entry| entry.done) {
                // The one who waited may have gone: its part is durable all the same.
                let _ = done.send(());
            }
        }
    }

    /// Waits for a group; `None` when the journal is closed and all is written.
    fn next_group(&self) -> Option<Vec<Entry>> {
        let mut queue = self.shared.lock();
        loop {
            if queue.waited_for > 0 || queue.closed {
                break;
            }
            let lazy_for = queue.lazy_since.map(|since| since.elapsed());
            queue = match lazy_for.zip(self.lazy_delay) {
                Some((age, delay)) if age >= delay => break,
                Some((age, delay)) => {
                    let waited = self.shared.wake.wait_timeout(queue, delay - age);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner),
            };
        }
        let mut bytes = 0;
        let mut group = Vec::new();
        while bytes < GROUP_BYTES_MAX
            && let Some(entry) = queue.entries.pop_front()
        {
            bytes += entry.changes.iter().map(Change::bytes).sum::<usize>();
            queue.waited_for -= usize::from(entry.done.is_some());
            group.push(entry);
        }
        if queue.entries.is_empty() {
            queue.lazy_since = None;
        }
        (!group.is_empty()).then_some(group)
    }
}

fn write(database: &Database, group: &[Entry]) -> Result<(), redb::Error> {
    let mut txn = database.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    #[cfg(feature = "bug_skip_journal_fsync")]
    if hypertide_proto::planted::shown("bug_skip_journal_fsync") {
        txn.set_durability(Durability::None)?;
    }
    {
        let mut parts = txn.open_table(tables::PARTS)?;
        let mut decisions = txn.open_table(tables::DECISIONS)?;
        for change in group.iter().flat_map(|entry| &entry.changes) {
            match change {
                Change::PutPart(key, header, payload) => {
                    let header = tables::pack(header);
                    let length = u32::try_from(header.len()).map_err(std::io::Error::other)?;
                    let pieces = [&length.to_be_bytes(), header.as_slice(), payload];
                    tables::put(&mut parts, &key.to_bytes(), &pieces)?;
                }
                Change::RemovePart(key) => drop(parts.remove(key.to_bytes().as_slice())?),
                Change::PutDecision(txn, row) => {
                    tables::put(&mut decisions, &tables::txn_bytes(*txn), &[&tables::pack(row)])?;
                }
                Change::RemoveDecision(txn) => {
                    drop(decisions.remove(tables::txn_bytes(*txn).as_slice())?);
                }
            }
        }
    }
    txn.commit()?;
    Ok(())
}

/// Opens a journal with all its checksums verified, as it will be read whole anyway. Where they are wrong it is opened
/// nevertheless, together with what is wrong: its rows carry checksums of their own, and tell which chunks are hit.
fn open_verified(
    disk: &dyn Disk,
    path: &Path,
    health: &Arc<Health>,
) -> Result<(Held, Option<String>), OpenError> {
    let open = |verify| {
        let options = OpenOptionsRedb { cache_bytes: CACHE_BYTES, verify };
        open_watched(disk, path, options, Arc::clone(health))
    };
    match open(true) {
        Ok(database) => Ok((database, None)),
        Err(OpenError::Damaged(what)) => {
            tracing::error!("{}: {what}", path.display());
            open(false).map(|database| (database, Some(what)))
        }
        Err(error) => Err(error),
    }
}

/// Makes the journal of a disk. It gets its name when it is whole.
fn make(disk: &dyn Disk, dir: &Path, disk_id: DiskId) -> Result<Held, Error> {
    let (path, new) = (dir.join(NAME), dir.join(NAME_NEW));
    disk.remove(&new).map_err(failed("remove an unfinished journal"))?;
    let options = OpenOptionsRedb { cache_bytes: CACHE_BYTES, verify: false };
    let database = open_database(disk, &new, options).map_err(|error| refusal(&new, error))?;
    let stamp = || -> Result<(), redb::Error> {
        let txn = database.begin_write()?;
        let (key, body) = (tables::IDENTITY_KEY, &disk_id.0);
        tables::put(&mut txn.open_table(tables::IDENTITY)?, key, &[body])?;
        txn.commit()?;
        Ok(())
    };
    stamp().map_err(failed("make the journal"))?;
    disk.rename(&new, &path).map_err(failed("name the journal"))?;
    sync_dir(disk, dir)?;
    Ok(database)
}

/// Why a journal cannot be used, in words.
fn refusal(path: &Path, error: OpenError) -> Error {
    let shown = path.display();
    match error {
        OpenError::InUse => Error::Identity(format!("{shown} is in use by another process")),
        OpenError::Newer => Error::Identity(format!("{shown} is of a newer format")),
        OpenError::Damaged(what) => {
            Error::Disk { action: format!("open {shown}"), source: what.into() }
        }
        OpenError::Scarce(error) => Error::Overloaded(format!("open {shown}: {error}")),
        OpenError::Disk(source) => Error::Disk { action: format!("open {shown}"), source },
    }
}

/// What a journal turned out to be.
enum Read {
    All(Recovered),
    /// Another disk's.
    Foreign,
    /// Its name has wrong bytes.
    Unsigned,
}

/// All records.
fn read_all(database: &Database, disk: DiskId) -> Result<Read, redb::Error> {
    let txn = database.begin_read()?;
    let identity = match txn.open_table(tables::IDENTITY) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Read::Unsigned),
        Err(error) => return Err(error.into()),
    };
    let stamped = identity.get(tables::IDENTITY_KEY)?;
    let stamped = stamped.as_ref();
    let stamped = stamped.and_then(|row| tables::unframe(tables::IDENTITY_KEY, row.value()));
    match stamped {
        None => return Ok(Read::Unsigned),
        Some(stamped) if *stamped != disk.0 => return Ok(Read::Foreign),
        Some(_) => {}
    }
    let mut recovered = Recovered::default();
    match txn.open_table(tables::PARTS) {
        Ok(parts) => {
            let mut rows = 0;
            for row in parts.iter()? {
                let (key, value) = row?;
                recovered.take_part(key.value(), value.value());
                rows += 1;
            }
            if rows != parts.len()? {
                return Err(StorageError::Corrupted("the journal lacks parts".into()).into());
            }
        }
        Err(TableError::TableDoesNotExist(_)) => return Ok(Read::All(recovered)),
        Err(error) => return Err(error.into()),
    }
    for row in txn.open_table(tables::DECISIONS)?.iter()? {
        let (key, value) = row?;
        let decision = tables::unpack::<DecisionRow>(key.value(), value.value());
        match tables::txn_from_bytes(key.value()).zip(decision) {
            Some(decision) => recovered.decisions.push(decision),
            // The transaction is pending again, and asked about again.
            None => tracing::warn!("a decision in the journal has wrong bytes"),
        }
    }
    Ok(Read::All(recovered))
}

impl Recovered {
    fn take_part(&mut self, key_bytes: &[u8], value: &[u8]) {
        let Some(key) = PartKey::from_bytes(key_bytes) else {
            tracing::error!("the journal has a key of {} bytes", key_bytes.len());
            return;
        };
        match tables::unframe(key_bytes, value).and_then(tables::split_part) {
            Some((header, payload)) => {
                self.parts.push((key, header, Bytes::copy_from_slice(payload)));
            }
            None => {
                let what = format!("journal: {key} has wrong bytes");
                self.damaged.push((key, what));
            }
        }
    }
}
