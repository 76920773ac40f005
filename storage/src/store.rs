//! The chunk store: one door to all chunks of a data node.
//!
//! ```text
//! prepare --> journal.redb --> memory (pending) --decide--> memory (committed) --flush--> chunks/<id>.redb
//!                                    \---------------- scan ---------------/---------------/
//! ```
//!
//! What is in memory is a value, [`crate::chunk::Replicas`], behind one lock that is never held while the disk works.
//! Files and rows change hands under it, so that a scan sees every row exactly once.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use arrow::datatypes::Schema;
use bytes::Bytes;
use hypertide_proto::{
    decision::{Decision, Fate},
    error::{Code, RpcError},
    ids::{ChunkId, Csn, Epoch, TableId, TxnId},
    predicate::Predicate,
};
use serde::{Deserialize, Serialize};

use crate::{
    ChunkSummary, CompressionSpec, Error, Scan, ScanRequest,
    chunk::{Decided, Presence, Replicas, Rows, without_own},
    compact::{self, Goal},
    journal::{Change, Journal},
    scan::Source,
    summary::distinct,
    tables::{DecisionRow, Definitions, FileHeader, Identity, Point},
    tombstone::Deletes,
};

mod admit;
mod aside;
pub(crate) mod cache;
pub(crate) mod check;
mod config;
pub(crate) mod contain;
pub(crate) mod disk;
pub(crate) mod draft;
pub(crate) mod file;
pub(crate) mod files;
pub(crate) mod flush;
pub(crate) mod handle;
pub(crate) mod held;
pub(crate) mod history;
pub(crate) mod identity;
mod lease;
pub(crate) mod memory;
pub(crate) mod order;
pub(crate) mod poison;
mod recover;
mod remove;
pub(crate) mod scrub;
mod settle;
pub(crate) mod sort;
mod stop;
mod texts;
pub(crate) mod transfer;

use admit::decode_parts;
use cache::CacheStats;
use check::{CheckReport, Pace};
pub use config::StoreConfig;
use disk::{Disk, FileDisk};
use file::{ChunkFile, stored};
use files::Files;
use identity::NodeFile;
use memory::{Charge, Memory};
use poison::Poison;
use scrub::{Counters, IntegrityStats};
use stop::Stop;

/// How long a writer waits for memory.
const MEMORY_PATIENCE: Duration = Duration::from_secs(5);
/// Deletes of a chunk that may wait until their rows are gone. Each costs every scan.
const DELETES_MAX: u64 = 4096;
/// How long a scan waits until a chunk's file and what is known of it agree, and how often it looks.
const SCAN_PATIENCE: Duration = Duration::from_secs(10);
const SCAN_PAUSE: Duration = Duration::from_micros(100);
/// Payloads up to this size are decoded where they are, larger ones on a thread that may block.
const DECODE_INLINE_BYTES: u32 = 64 << 10;

/// What a data node must know of a chunk to store its rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkSpec {
    /// The chunk.
    pub chunk: ChunkId,
    /// Its table.
    pub table: TableId,
    /// Name of the time column; `None` for a reference table.
    pub time_column: Option<String>,
    /// Columns that rows are sorted by before time.
    pub order_columns: Vec<String>,
    /// Where it belongs, in the catalog's own form: kept for when the catalog is lost.
    pub origin: Vec<u8>,
}

/// Rows of one transaction for one chunk, encoded by [`crate::batch`], or a delete, encoded by [`crate::Tombstone::encode`].
#[derive(Clone, Debug)]
pub struct Part {
    /// The chunk.
    pub spec: ChunkSpec,
    /// The epoch that the sender knows.
    pub epoch: Epoch,
    /// Number within transaction and chunk, from 0.
    pub number: u32,
    /// Rows.
    pub rows: u32,
    /// xxh3-128 of the payload.
    pub hash: u128,
    /// zstd-compressed Arrow IPC stream, or an encoded tombstone.
    pub payload: Bytes,
    /// Size of the payload after decompression.
    pub decoded_bytes: u32,
}

/// How a chunk stands to compression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChunkState {
    /// It is not compressed.
    #[default]
    Plain,
    /// All of it is compressed.
    Compressed,
    /// It is compressed but for rows that came since.
    Partial,
}

/// What the store holds of a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkReport {
    /// The chunk.
    pub chunk: ChunkId,
    /// Committed rows, without those that a rewrite found deleted.
    pub rows: u64,
    /// How it stands to compression.
    pub state: ChunkState,
    /// All rows up to this commit are compressed; 0 when none need be.
    pub compressed_csn: Csn,
    /// Encoded bytes that its compressed rows took before.
    pub before_bytes: u64,
    /// Encoded bytes that these take now.
    pub after_bytes: u64,
    /// Encoded bytes of its segments.
    pub segment_bytes: u64,
    /// Segments.
    pub segments: u64,
    /// Committed rows that are not in a segment yet.
    pub recent_rows: u64,
    /// Every commit up to this one is durable as committed.
    pub applied_csn: Csn,
    /// Running hash over the commits up to `applied_csn`.
    pub chain: u128,
}

/// All but the background thread, which shares it.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: StoreConfig,
    disk: Arc<dyn Disk>,
    pub(crate) node: NodeFile,
    pub(crate) files: Files,
    journal: Journal,
    replicas: Arc<Mutex<Replicas>>,
    memory: Arc<Memory>,
    pub(crate) poison: Arc<Poison>,
    /// Held by the one who writes to chunk files.
    pub(crate) writing: Mutex<()>,
    pub(crate) rewriting: compact::Rewriting,
    opened: Instant,
    /// Snapshots whose versions are kept however old they are.
    pub(crate) leases: lease::Leases,
    stop: Stop,
    pub(crate) counters: Arc<Counters>,
    /// The journal was lost: rows are missing, and nobody may read the rest as if it were whole.
    renewed: AtomicBool,
    closed: AtomicBool,
}

/// The chunk store of a data node.
#[derive(Debug)]
pub struct ChunkStore {
    inner: Arc<Inner>,
    background: Mutex<Vec<JoinHandle<()>>>,
}

impl ChunkStore {
    /// Opens the directory, or makes it, and brings back all that was durable.
    pub fn open(config: StoreConfig) -> Result<Arc<Self>, Error> {
        Self::open_on(config, Arc::new(FileDisk))
    }

    /// [`ChunkStore::open`] on a disk of the caller's.
    pub fn open_on(config: StoreConfig, disk: Arc<dyn Disk>) -> Result<Arc<Self>, Error> {
        let (store, _) = Self::open_with_decisions(config, disk)?;
        Ok(Arc::new(store))
    }

    /// As [`ChunkStore::open_on`]; gives the decisions that its journal had, too.
    pub(crate) fn open_with_decisions(
        config: StoreConfig,
        disk: Arc<dyn Disk>,
    ) -> Result<(Self, Vec<Decision>), Error> {
        let (inner, decisions) = recover::open(config, disk)?;
        let store = Self { inner: Arc::new(inner), background: Mutex::default() };
        if store.inner.config.background {
            store.start("flush", flush::run_background)?;
            store.start("scrub", scrub::run_background)?;
        }
        Ok((store, decisions))
    }

    fn start(&self, name: &str, run: fn(&Inner)) -> Result<(), Error> {
        let inner = Arc::clone(&self.inner);
        let thread = std::thread::Builder::new().name(name.into());
        let thread = thread
            .spawn(move || run(&inner))
            .map_err(|error| Error::Overloaded(format!("start the {name} thread: {error}")))?;
        lock(&self.background).push(thread);
        Ok(())
    }

    /// Journals the parts; resolves after they are durable. Idempotent by (transaction, chunk, number).
    pub async fn prepare(&self, txn: TxnId, parts: Vec<Part>) -> Result<(), Error> {
        let inner = &self.inner;
        inner.check_open()?;
        inner.check_free(inner.config.space_reserve_bytes)?;
        let bytes = parts.iter().map(|part| part.decoded_bytes as usize).sum();
        let charge = inner.memory.wait(bytes, MEMORY_PATIENCE).await;
        let charge = charge.ok_or_else(|| {
            let limit = inner.config.memory_bytes;
            Error::Overloaded(format!(
                "the rows in memory leave no room for {bytes} of {limit} bytes"
            ))
        })?;
        let large = parts.iter().any(|part| part.decoded_bytes > DECODE_INLINE_BYTES);
        let decoded = if large {
            let work = tokio::task::spawn_blocking(move || decode_parts(txn, parts, charge));
            work.await.map_err(|error| Error::Invalid(format!("decode rows: {error}")))?
        } else {
            decode_parts(txn, parts, charge)
        };
        let durable = inner.admit(decoded?)?;
        durable.await.map_err(|_| inner.ended())
    }

    /// Takes in what the log decided; unknown transactions are ignored. Visible to scans when it returns.
    pub fn decide(&self, decisions: &[Decision]) -> Result<(), Error> {
        self.inner.check_open()?;
        let now = Instant::now();
        let mut replicas = self.inner.replicas();
        let mut changes = Vec::new();
        for decision in decisions {
            journal_changes(decision, replicas.decide(decision, false, now), &mut changes);
        }
        debug_assert_eq!(replicas.check(), Ok(()));
        // Under the lock, so that the journal has the changes of a part in the order they happened.
        self.inner.journal.submit_lazily(changes);
        Ok(())
    }

    /// As [`ChunkStore::decide`]; durable when it returns. Blocking.
    pub(crate) fn decide_durably(&self, decisions: &[Decision]) -> Result<(), Error> {
        self.decide(decisions)?;
        self.inner.journal_now(Vec::new())
    }

    /// Transactions with pending rows in any of these chunks (all chunks when empty), with the age of each.
    #[must_use]
    pub fn pending(&self, chunks: &[ChunkId]) -> Vec<(TxnId, Duration)> {
        self.inner.replicas().pending(chunks, Instant::now())
    }

    /// Starts a scan. Blocking work: call it and iterate on a thread that may block.
    pub fn scan(&self, request: ScanRequest) -> Result<Scan, Error> {
        let inner = &self.inner;
        #[cfg(feature = "bug_visible_per_chunk")]
        let request = match hypertide_proto::planted::shown("bug_visible_per_chunk") {
            true => ScanRequest { snapshot: Csn(u64::MAX), ..request },
            false => request,
        };
        let chunk = request.chunk;
        let deadline = Instant::now() + SCAN_PATIENCE;
        if inner.renewed.load(Ordering::Acquire) {
            let what = "the journal of this disk was lost, and the cluster does not know it yet";
            return Err(Error::Identity(what.into()));
        }
        loop {
            inner.check_open()?;
            if let Some(what) = inner.replicas().damage(chunk) {
                return Err(Error::Damaged { chunk, what: what.to_owned() });
            }
            let file = inner.file(chunk);
            let file = file.inspect_err(|error| inner.note_damage(error))?;
            let (view, source, deletes) = {
                let replicas = inner.replicas();
                let view = replicas.view(chunk, request.snapshot, request.own);
                let flushed = file.as_ref().map_or(Point::default(), |f| f.manifest().flushed);
                if flushed != view.stored.flushed {
                    // The first flush makes the file, a rewrite puts another in its place, or the chunk is dropped.
                    drop(replicas);
                    if Instant::now() > deadline {
                        let what = format!("chunk {chunk} changes hands all the time");
                        return Err(Error::Overloaded(what));
                    }
                    std::thread::sleep(SCAN_PAUSE);
                    continue;
                }
                let snapshot = request.snapshot;
                let mut deletes = view.deletes.clone();
                let stored = file.as_ref().map(|file| file.deletes(snapshot));
                deletes.extend(stored.into_iter().flatten());
                let deletes = Deletes::of(deletes);
                let source = file.map(|file| Source {
                    segments: file.segments(),
                    file,
                    deletes: deletes.clone(),
                });
                (view, source, deletes)
            };
            inner.check_presence(&request, view.presence)?;
            if view.stored.horizon > request.snapshot {
                let (horizon, snapshot) = (view.stored.horizon, request.snapshot);
                return Err(Error::SnapshotTooOld { chunk, horizon, snapshot });
            }
            let recent = undeleted(view.recent, &deletes)?;
            let (replicas, counters) = (Arc::clone(&inner.replicas), Arc::clone(&inner.counters));
            let on_damage = move |error: &Error| {
                tracing::error!("scan: {error}");
                counters.damaged_read();
                lock(&replicas).mark_suspect(chunk, &error.to_string());
            };
            return Ok(Scan::new(request, source, recent, Box::new(on_damage)));
        }
    }

    /// What a chunk holds at a snapshot, from zone maps alone; `None` when that would not be exact: rows that are not
    /// in a segment, or are newer than the snapshot. Blocking when the chunk's file is not open.
    pub fn summary(&self, chunk: ChunkId, snapshot: Csn) -> Result<Option<ChunkSummary>, Error> {
        let scan = self.scan(ScanRequest {
            chunk,
            snapshot,
            own: None,
            columns: Arc::new(Schema::empty()),
            predicate: Predicate::default(),
        })?;
        Ok(scan.summary())
    }

    /// About how many different values a column has in all these chunks together, of the rows in segments. For planning,
    /// never for an answer. Blocking when a chunk's file is not open.
    pub fn distinct(&self, chunks: &[ChunkId], column: &str) -> Result<u64, Error> {
        self.inner.check_open()?;
        let files = chunks.iter().filter_map(|chunk| self.inner.file(*chunk).transpose());
        let segments = files.map(|file| file.map(|file| file.segments()));
        let segments = segments.collect::<Result<Vec<_>, _>>()?;
        Ok(distinct(segments.iter().flat_map(|all| all.iter()), column))
    }

    /// Writes committed rows of these chunks (all when empty) to segments. Blocking.
    pub fn flush(&self, chunks: &[ChunkId]) -> Result<(), Error> {
        self.inner.check_open()?;
        // Only commits whose decision is durable can be flushed: what was queued before comes first.
        self.inner.journal_now(Vec::new())?;
        let due = self.inner.replicas().due(0, Duration::ZERO, Instant::now());
        for chunk in due.into_iter().filter(|c| chunks.is_empty() || chunks.contains(c)) {
            flush::flush_chunk(&self.inner, chunk)?;
        }
        Ok(())
    }

    /// Merges small segments of a chunk and gives back the space they took, where that is due. Blocking.
    ///
    /// The background does so by itself.
    pub fn merge(&self, chunk: ChunkId) -> Result<(), Error> {
        self.inner.check_open()?;
        compact::run(&self.inner, chunk)?;
        compact::shrink_wasteful(&self.inner, chunk)
    }

    /// Writes all of a chunk as one run in the order asked for, with the strongest encodings. Blocking.
    ///
    /// What came since an earlier compression is merged in; a chunk that is compressed so already stays as it is.
    /// Rows that come later are not compressed, and make the chunk [`ChunkState::Partial`]. Scans go on meanwhile.
    pub fn compress(&self, chunk: ChunkId, spec: CompressionSpec) -> Result<ChunkReport, Error> {
        spec.check()?;
        self.rewrite(chunk, Goal::Compress(spec))
    }

    /// Undoes a compression. Blocking. A chunk that is not compressed stays as it is.
    pub fn decompress(&self, chunk: ChunkId) -> Result<ChunkReport, Error> {
        self.rewrite(chunk, Goal::Decompress)
    }

    fn rewrite(&self, chunk: ChunkId, goal: Goal) -> Result<ChunkReport, Error> {
        let gone = || {
            let gone = format_args!("chunk {chunk} was dropped");
            Error::Rpc(RpcError::new(Code::NotFound, gone))
        };
        if matches!(self.inner.replicas().presence(chunk), Presence::Before(_)) {
            return Err(gone());
        }
        self.flush(&[chunk])?;
        compact::rewrite(&self.inner, chunk, goal)?;
        let report = self.inner.replicas().report(&[chunk]).first().copied();
        report.ok_or_else(gone)
    }

    /// Reads all of a chunk's file and decodes every block. Blocking. What it finds is noted as damage.
    pub fn check(&self, chunk: ChunkId) -> Result<CheckReport, Error> {
        let inner = &self.inner;
        inner.check_open()?;
        let mut go_on = |_| !inner.stop.stopped();
        check::check(inner, chunk, Pace { thorough: true, read: &mut go_on })
    }

    /// What was found wrong, and how much was looked at.
    #[must_use]
    pub fn integrity_stats(&self) -> IntegrityStats {
        self.inner.counters.stats()
    }

    /// Chunk files that are open.
    #[must_use]
    pub fn open_files(&self) -> usize {
        self.inner.files.open_count()
    }

    /// How the memory for extents does.
    #[must_use]
    pub fn cache_stats(&self) -> CacheStats {
        self.inner.files.cache_stats()
    }

    /// What it holds of these chunks (all when empty).
    #[must_use]
    pub fn report(&self, chunks: &[ChunkId]) -> Vec<ChunkReport> {
        self.inner.replicas().report(chunks)
    }

    /// Bytes that the file of a chunk takes on disk; none when it has no file yet.
    pub fn file_bytes(&self, chunk: ChunkId) -> Result<u64, Error> {
        self.inner.check_open()?;
        self.inner.files.size(chunk)
    }

    /// Chunks of which stored bytes were found wrong.
    #[must_use]
    pub fn damaged(&self) -> Vec<ChunkId> {
        self.inner.replicas().damaged()
    }

    /// Free bytes of the disk.
    pub fn free_bytes(&self) -> Result<u64, Error> {
        self.inner.free_bytes()
    }

    /// Bytes of rows in memory.
    #[must_use]
    pub fn memory_used(&self) -> usize {
        self.inner.memory.used()
    }

    /// Resolves only when the disk has failed and the process must end.
    pub async fn failed(&self) -> Error {
        self.inner.poison.wait().await
    }

    pub(crate) fn identity(&self) -> Identity {
        self.inner.node.identity()
    }

    /// The head of a chunk's file; `None` when it has none yet.
    pub(crate) fn file_header(&self, chunk: ChunkId) -> Result<Option<FileHeader>, Error> {
        Ok(self.inner.file(chunk)?.map(|file| file.header()))
    }

    pub(crate) fn definitions(&self) -> Option<Definitions> {
        self.inner.node.definitions()
    }

    pub(crate) fn save_definitions(&self, definitions: Definitions) -> Result<(), Error> {
        let saved = self.inner.node.save_definitions(definitions);
        saved.inspect_err(|error| self.inner.note_failure(error))
    }

    pub(crate) fn save_identity(&self, identity: Identity) -> Result<(), Error> {
        let saved = self.inner.node.save_identity(identity);
        saved.inspect_err(|error| self.inner.note_failure(error))
    }

    /// Flushes nothing, stops the background work, and closes the files. What was durable stays so.
    pub fn close(&self) {
        self.inner.closed.store(true, Ordering::Release);
        self.inner.stop.stop();
        let threads = std::mem::take(&mut *lock(&self.background));
        for thread in threads {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            if thread.join().is_err() {
                tracing::error!("the {name} thread panicked");
            }
        }
        self.inner.journal.close();
        let _writing = self.inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.inner.files.close();
        self.inner.node.close();
    }
}

impl Drop for ChunkStore {
    fn drop(&mut self) {
        self.close();
    }
}

impl Inner {
    pub(crate) fn replicas(&self) -> MutexGuard<'_, Replicas> {
        lock(&self.replicas)
    }

    pub(crate) fn check_open(&self) -> Result<(), Error> {
        self.poison.check()?;
        if self.closed.load(Ordering::Acquire) { Err(self.ended()) } else { Ok(()) }
    }

    /// The file of a chunk; `None` when it has none yet.
    pub(crate) fn file(&self, chunk: ChunkId) -> Result<Option<Arc<ChunkFile>>, Error> {
        let file = self.files.get(&self.node, chunk)?;
        if let Some(ahead) = file.as_ref().and_then(|file| file.take_ahead()) {
            self.replicas().recount(chunk, stored(&ahead));
        }
        Ok(file)
    }

    /// Journals changes, and all that were queued before, durably. Blocking.
    fn journal_now(&self, changes: Vec<Change>) -> Result<(), Error> {
        self.wait_for(self.journal.submit(changes))
    }

    /// Waits until the journal says that something is durable. Blocking.
    fn wait_for(&self, durable: tokio::sync::oneshot::Receiver<()>) -> Result<(), Error> {
        // Unconstrained: on a thread of a runtime the wait would otherwise end only when its task yields.
        let durable = tokio::task::unconstrained(durable);
        futures::executor::block_on(durable).map_err(|_| self.ended())
    }

    /// When the store was opened, and now.
    pub(crate) fn times(&self) -> (Instant, Instant) {
        (self.opened, Instant::now())
    }

    /// Why nothing works any more.
    fn ended(&self) -> Error {
        Error::Closed(self.poison.reason().unwrap_or("it was shut down").to_owned())
    }

    fn free_bytes(&self) -> Result<u64, Error> {
        let dir = &self.config.dir;
        let free = self.disk.free_bytes(dir);
        free.map_err(|error| Error::Disk {
            action: format!("measure free space of {}", dir.display()),
            source: error.into(),
        })
    }

    /// Refuses work that needs space when less than `reserve` bytes are free.
    pub(crate) fn check_free(&self, reserve: u64) -> Result<(), Error> {
        let free = self.free_bytes()?;
        if free >= reserve {
            return Ok(());
        }
        let dir = self.config.dir.display();
        Err(Error::DiskFull(format!(
            "{dir} has {free} bytes left, less than the reserve of {reserve}"
        )))
    }

    /// Marks what a failed write says: a damaged chunk, or a disk that cannot be trusted any more.
    pub(crate) fn note_failure(&self, error: &Error) {
        if let Error::Disk { .. } = error {
            self.poison.set(error.to_string());
        }
        self.note_damage(error);
    }

    /// As [`Inner::note_failure`], of one who only read what was wrong: the rest of the chunk may still be read.
    pub(crate) fn note_failed_rewrite(&self, error: &Error) {
        match error {
            Error::Damaged { chunk, what } => {
                tracing::error!("{error}");
                self.counters.damaged_read();
                self.replicas().mark_suspect(*chunk, what);
            }
            error => self.note_failure(error),
        }
    }

    pub(crate) fn note_damage(&self, error: &Error) {
        if let Error::Damaged { chunk, what } = error {
            tracing::error!("{error}");
            self.counters.damaged_read();
            self.replicas().mark_damaged(*chunk, what);
        }
    }
}

/// Recent rows without those that were deleted. Without deletes nothing is copied.
fn undeleted(recent: Vec<(Csn, Arc<Rows>)>, deletes: &Deletes) -> Result<Vec<Arc<Rows>>, Error> {
    if deletes.is_empty() {
        return Ok(recent.into_iter().map(|(_, rows)| rows).collect());
    }
    let own = recent.partition_point(|(csn, _)| *csn < Csn(u64::MAX));
    let (committed, own) = recent.split_at(own);
    let left = committed.iter().map(|(csn, rows)| {
        let batches = deletes.leave(rows.batches.clone(), *csn)?;
        let Rows { key, epoch, hash, .. } = **rows;
        let (tombstone, charge) = (None, Charge::default());
        Ok(Arc::new(Rows { key, epoch, hash, batches, tombstone, charge }))
    });
    let mut left = left.collect::<Result<Vec<_>, Error>>()?;
    left.extend(without_own(own.iter().map(|(_, rows)| Arc::clone(rows)).collect())?);
    Ok(left)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the journal must do about a decision.
fn journal_changes(decision: &Decision, decided: Decided, changes: &mut Vec<Change>) {
    let removed = match decided {
        Decided::Unknown => return,
        Decided::Aborted { removed } => removed,
        Decided::Committed { removed, kept } => {
            if let (true, Fate::Committed { csn, links }) = (kept, &decision.fate) {
                let links = links.iter().map(|link| (link.chunk, link.prev)).collect();
                changes.push(Change::PutDecision(decision.txn, DecisionRow { csn: *csn, links }));
            }
            removed
        }
    };
    changes.extend(removed.into_iter().map(Change::RemovePart));
}
