//! Applies entries to the catalog, publishes its images, and makes and takes raft snapshots.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hypertide_proto::ids::Csn;
use openraft::{
    EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder, Snapshot,
    storage::RaftStateMachine,
};
use tokio::{sync::watch, task::JoinHandle};

use super::{
    catalog_file::{Applied, CatalogFile},
    snapshot::{SnapshotFile, Snapshots},
    types::{Entry, LogId, Membership, Proposal, SnapshotMeta, StorageError, TypeConfig},
    watchdog::Watchdog,
};
use crate::{
    catalog::{Catalog, Changes},
    node::{Answer, Image},
};

/// The rows that changed are written when the last time is this long or this many entries ago, whichever comes first.
const CHECKPOINT_AGE: Duration = Duration::from_secs(1);
const CHECKPOINT_ENTRIES: usize = 5_000;
/// Entries that may be applied while rows are being written; then applying waits for the disk.
const BEHIND_ENTRIES_MAX: usize = 50_000;

/// The catalog in memory, and what of it is not in its file yet.
#[derive(Debug)]
struct Machine {
    catalog: Catalog,
    applied: Applied,
    file: Arc<CatalogFile>,
    changes: Changes,
    entries: usize,
    checkpoint: Instant,
}

/// The catalog with its file. Applying needs the memory only; the disk follows.
#[derive(Debug)]
struct Store {
    machine: Mutex<Machine>,
    /// Held while the file is written, so that writes are in order; says why it cannot be written any more.
    ///
    /// IMPORTANT: taken before `machine`, never while that is held.
    writing: Mutex<Option<String>>,
    snapshots: Snapshots,
    /// IMPORTANT: the last field: it goes when the catalog's file is closed, and not before.
    open: Arc<()>,
}

/// The catalog as openraft sees it.
#[derive(Debug)]
pub(super) struct StateMachine {
    dir: PathBuf,
    store: Arc<Store>,
    images: watch::Sender<Arc<Image>>,
    disk: Arc<Watchdog>,
    /// The checkpoint under way.
    checkpoint: Option<JoinHandle<io::Result<()>>>,
}

impl StateMachine {
    /// Opens the catalog in a directory and publishes its image.
    pub(super) fn open(dir: &Path, images: watch::Sender<Arc<Image>>) -> io::Result<Self> {
        let snapshots = Snapshots::open(dir)?;
        let disk = Arc::new(Watchdog::new());
        let file = CatalogFile::open(dir, Arc::clone(&disk))?;
        let (catalog, applied) = file.load()?;
        let machine = Machine {
            catalog,
            applied,
            file: Arc::new(file),
            changes: Changes::default(),
            entries: 0,
            checkpoint: Instant::now(),
        };
        // A crash between publishing a received snapshot and switching to its catalog: do the second half again.
        let newer = |meta: &SnapshotMeta| meta.last_log_id > machine.applied.last;
        let half_installed = snapshots.current().filter(|(meta, _)| newer(meta));
        let (machine, writing) = (Mutex::new(machine), Mutex::new(None));
        let store = Store { machine, writing, snapshots, open: Arc::default() };
        if let Some((meta, file)) = half_installed {
            store.install(&meta, &file)?;
        }
        images.send_replace(store.machine().image());
        let store = Arc::new(store);
        Ok(Self { dir: dir.to_owned(), store, images, disk, checkpoint: None })
    }

    /// Tells whether the catalog is still in use, when openraft may have let go of it.
    pub(super) fn open_elsewhere(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let open = Arc::downgrade(&self.store.open);
        move || open.strong_count() > 0
    }

    /// Sees how long writes to the catalog's file take.
    pub(super) fn watchdog(&self) -> Arc<Watchdog> {
        Arc::clone(&self.disk)
    }

    /// Starts a checkpoint when one is due, and reports the failure of the last.
    async fn checkpoint(&mut self) -> io::Result<()> {
        let entries = {
            let machine = self.store.machine();
            let due = machine.entries >= CHECKPOINT_ENTRIES
                || machine.checkpoint.elapsed() >= CHECKPOINT_AGE;
            if !due {
                return Ok(());
            }
            machine.entries
        };
        if let Some(last) = &mut self.checkpoint {
            if !last.is_finished() && entries < BEHIND_ENTRIES_MAX {
                return Ok(());
            }
            last.await.map_err(io::Error::other)??;
        }
        let store = Arc::clone(&self.store);
        self.checkpoint = Some(tokio::task::spawn_blocking(move || store.write()));
        Ok(())
    }
}

impl Store {
    fn machine(&self) -> MutexGuard<'_, Machine> {
        // A panic while applying ends the node through the error of its task; who comes later only reads.
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes all that is applied durable.
    fn write(&self) -> io::Result<()> {
        let mut failed = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = &*failed {
            return Err(io::Error::other(format!("the catalog's file failed before: {failure}")));
        }
        let (file, catalog, changes, applied) = self.machine().take_changes();
        let written = file.store(&catalog, &changes, &applied);
        if let Err(error) = &written {
            *failed = Some(error.to_string());
        }
        written
    }

    /// Replaces the catalog by that of a snapshot.
    fn install(&self, meta: &SnapshotMeta, snapshot: &SnapshotFile) -> io::Result<()> {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, catalog) = snapshot.load()?;
        let applied = Applied { last: meta.last_log_id, membership: meta.last_membership.clone() };
        let old = Arc::clone(&self.machine().file);
        let file = Arc::new(old.replaced_by(&catalog, &applied)?);
        *self.machine() = Machine {
            catalog,
            applied,
            file,
            changes: Changes::default(),
            entries: 0,
            checkpoint: Instant::now(),
        };
        Ok(())
    }
}

impl Machine {
    fn image(&self) -> Arc<Image> {
        let applied = self.applied.last.map_or(0, |id| id.index);
        Arc::new(Image { applied, catalog: self.catalog.clone() })
    }

    fn take_changes(&mut self) -> (Arc<CatalogFile>, Catalog, Changes, Applied) {
        self.checkpoint = Instant::now();
        self.entries = 0;
        let changes = std::mem::take(&mut self.changes);
        (Arc::clone(&self.file), self.catalog.clone(), changes, self.applied.clone())
    }

    fn apply(&mut self, entries: Vec<Entry>) -> Vec<Vec<Answer>> {
        self.entries += entries.len();
        let mut answers = Vec::with_capacity(entries.len());
        for entry in entries {
            answers.push(match entry.payload {
                EntryPayload::Blank => Vec::new(),
                EntryPayload::Normal(proposal) => {
                    let changes = &mut self.changes;
                    apply_proposal(&mut self.catalog, entry.log_id, &proposal, changes)
                }
                EntryPayload::Membership(membership) => {
                    self.applied.membership = Membership::new(Some(entry.log_id), membership);
                    Vec::new()
                }
            });
            self.applied.last = Some(entry.log_id);
        }
        answers
    }
}

fn apply_proposal(
    catalog: &mut Catalog,
    at: LogId,
    proposal: &Proposal,
    changes: &mut Changes,
) -> Vec<Answer> {
    let commands = (0..).zip(&proposal.commands);
    commands
        .map(|(position, command)| {
            catalog.apply(command, Csn::at(at.index, position), proposal.time_ms, changes)
        })
        .collect()
}

fn failed(subject: ErrorSubject<u64>, verb: ErrorVerb) -> impl FnOnce(io::Error) -> StorageError {
    move |error| StorageError::from_io_error(subject, verb, error)
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), StorageError> {
        let machine = self.store.machine();
        Ok((machine.applied.last, machine.applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Vec<Answer>>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let store = Arc::clone(&self.store);
        let work = move || {
            let mut machine = store.machine();
            let answers = machine.apply(entries);
            (answers, machine.image())
        };
        let applied = tokio::task::spawn_blocking(work).await.map_err(io::Error::other);
        let failed = || failed(ErrorSubject::StateMachine, ErrorVerb::Write);
        let (answers, image) = applied.map_err(failed())?;
        self.checkpoint().await.map_err(failed())?;
        // Before the answers go out: who has an answer may count on the image here.
        self.images.send_replace(image);
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let machine = self.store.machine();
        Builder {
            catalog: machine.catalog.clone(),
            applied: machine.applied.clone(),
            store: Arc::clone(&self.store),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotFile>, StorageError> {
        let path = Snapshots::incoming(&self.dir);
        let made = std::fs::File::create_new(&path).and_then(|_| SnapshotFile::open(path));
        made.map(Box::new).map_err(failed(ErrorSubject::Snapshot(None), ErrorVerb::Write))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<SnapshotFile>,
    ) -> Result<(), StorageError> {
        let (meta, store) = (meta.clone(), Arc::clone(&self.store));
        let installing = tokio::task::spawn_blocking(move || {
            let written = store.snapshots.adopt(&snapshot)?;
            let (meta, file) = store.snapshots.commit_snapshot(meta, &written)?;
            store.install(&meta, &file)?;
            Ok(store.machine().image())
        });
        let installed = installing.await.map_err(io::Error::other).flatten();
        let image = installed.map_err(failed(ErrorSubject::Snapshot(None), ErrorVerb::Write))?;
        self.images.send_replace(image);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let current = self.store.snapshots.current();
        Ok(current.map(|(meta, file)| Snapshot { meta, snapshot: Box::new(file) }))
    }
}

/// Builds a snapshot from a catalog that applying does not change any more.
#[derive(Clone, Debug)]
pub(super) struct Builder {
    catalog: Catalog,
    applied: Applied,
    store: Arc<Store>,
}

impl Builder {
    fn build(self) -> io::Result<(SnapshotMeta, SnapshotFile)> {
        let Applied { last, membership } = self.applied;
        let (term, index) = last.map_or((0, 0), |id| (id.leader_id.term, id.index));
        let meta = SnapshotMeta {
            last_log_id: last,
            last_membership: membership,
            snapshot_id: format!("{term}-{index}"),
        };
        let written = self.store.snapshots.write(&meta, &self.catalog)?;
        // IMPORTANT: openraft purges the log up to a published snapshot, so that what it holds must be durable in the
        // catalog's file before.
        self.store.write()?;
        self.store.snapshots.commit_snapshot(meta, &written)
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let builder = self.clone();
        let built = tokio::task::spawn_blocking(move || builder.build()).await;
        let built = built.map_err(io::Error::other).flatten();
        let (meta, file) = built.map_err(failed(ErrorSubject::Snapshot(None), ErrorVerb::Write))?;
        Ok(Snapshot { meta, snapshot: Box::new(file) })
    }
}
