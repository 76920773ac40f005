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
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hypertide_proto::{
    decision::{Decision, Fate},
    ids::{ChunkId, Csn, Epoch, TableId, TxnId},
};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Scan, ScanRequest, batch,
    chunk::{Admission, Decided, Replicas, Rows},
    journal::{Change, Journal},
    scan::Source,
    tables::{DecisionRow, Identity, PartHeader, PartKey},
};

pub(crate) mod disk;
pub(crate) mod file;
pub(crate) mod files;
pub(crate) mod flush;
pub(crate) mod identity;
pub(crate) mod memory;
pub(crate) mod poison;
mod recover;
pub(crate) mod sort;

use disk::{Disk, FileDisk};
use files::Files;
use identity::NodeFile;
use memory::{Charge, Memory};
use poison::Poison;

/// How long a writer waits for memory.
const MEMORY_PATIENCE: Duration = Duration::from_secs(5);
/// Payloads up to this size are decoded where they are, larger ones on a thread that may block.
const DECODE_INLINE_BYTES: u32 = 64 << 10;

/// Limits and locations of a store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Its directory: `node.redb`, `journal.redb`, `chunks/<id>.redb`.
    pub dir: PathBuf,
    /// Committed rows of a chunk are flushed when they take this many bytes in memory.
    pub flush_bytes: usize,
    /// Committed rows are flushed when they are this old.
    pub flush_age: Duration,
    /// Decoded and encoded rows in memory, over which writers wait.
    pub memory_bytes: usize,
    /// Free bytes of the disk below which nothing more is taken in. Reads and flushes go on.
    pub space_reserve_bytes: u64,
}

impl StoreConfig {
    /// The usual limits in `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            flush_bytes: 16 << 20,
            flush_age: Duration::from_secs(60),
            memory_bytes: 256 << 20,
            space_reserve_bytes: 512 << 20,
        }
    }
}

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
}

/// Rows of one transaction for one chunk, encoded by [`crate::batch`].
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
    /// zstd-compressed Arrow IPC stream.
    pub payload: Bytes,
    /// Size of the payload after decompression.
    pub decoded_bytes: u32,
}

/// What the store holds of a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkReport {
    /// The chunk.
    pub chunk: ChunkId,
    /// Committed rows.
    pub rows: u64,
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
    stop: flush::Stop,
    closed: AtomicBool,
}

/// The chunk store of a data node.
#[derive(Debug)]
pub struct ChunkStore {
    inner: Arc<Inner>,
    background: Mutex<Option<JoinHandle<()>>>,
}

impl ChunkStore {
    /// Opens the directory, or makes it, and brings back all that was durable.
    pub fn open(config: StoreConfig) -> Result<Arc<Self>, Error> {
        Self::open_on(config, Arc::new(FileDisk))
    }

    /// [`ChunkStore::open`] on a disk of the caller's.
    pub fn open_on(config: StoreConfig, disk: Arc<dyn Disk>) -> Result<Arc<Self>, Error> {
        let inner = Arc::new(recover::open(config, disk)?);
        let thread = std::thread::Builder::new().name("flush".into()).spawn({
            let inner = Arc::clone(&inner);
            move || flush::run_background(&inner)
        });
        let thread = thread.map_err(|error| Error::Disk {
            action: "start the flush thread".into(),
            source: error.into(),
        })?;
        Ok(Arc::new(Self { inner, background: Mutex::new(Some(thread)) }))
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

    /// Transactions with pending rows in any of these chunks (all chunks when empty), with the age of each.
    #[must_use]
    pub fn pending(&self, chunks: &[ChunkId]) -> Vec<(TxnId, Duration)> {
        self.inner.replicas().pending(chunks, Instant::now())
    }

    /// Starts a scan. Blocking work: call it and iterate on a thread that may block.
    pub fn scan(&self, request: ScanRequest) -> Result<Scan, Error> {
        let inner = &self.inner;
        inner.check_open()?;
        let chunk = request.chunk;
        loop {
            if let Some(what) = inner.replicas().damage(chunk) {
                return Err(Error::Damaged { chunk, what: what.to_owned() });
            }
            let file = inner.files.get(&inner.node, chunk);
            let file = file.inspect_err(|error| inner.note_damage(error))?;
            let (view, source) = {
                let replicas = inner.replicas();
                let view = replicas.view(chunk, request.snapshot, request.own);
                (view, file.map(|file| Source { segments: file.segments(), file }))
            };
            if source.is_none() && view.stored.segments > 0 {
                continue; // The first flush happened in between: its file is there now.
            }
            let replicas = Arc::clone(&inner.replicas);
            let on_damage = move |error: &Error| {
                tracing::error!("scan: {error}");
                lock(&replicas).mark_suspect(chunk, &error.to_string());
            };
            return Ok(Scan::new(request, source, view.recent, Box::new(on_damage)));
        }
    }

    /// Writes committed rows of these chunks (all when empty) to segments. Blocking.
    pub fn flush(&self, chunks: &[ChunkId]) -> Result<(), Error> {
        self.inner.check_open()?;
        // Only commits whose decision is durable can be flushed: what was queued before comes first.
        futures::executor::block_on(self.inner.journal.submit(Vec::new()))
            .map_err(|_| self.inner.ended())?;
        let due = self.inner.replicas().due(0, Duration::ZERO, Instant::now());
        for chunk in due.into_iter().filter(|c| chunks.is_empty() || chunks.contains(c)) {
            flush::flush_chunk(&self.inner, chunk)?;
        }
        Ok(())
    }

    /// Removes chunks and their files. Idempotent.
    pub fn drop_chunks(&self, chunks: &[ChunkId]) -> Result<(), Error> {
        let inner = &self.inner;
        inner.check_open()?;
        let _writing = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut named = Vec::new();
        for chunk in chunks {
            let mut replicas = inner.replicas();
            let released = replicas.remove(*chunk);
            flush::release(inner, released);
            drop(replicas);
            if inner.node.manifest(*chunk).is_some() {
                named.push((*chunk, None));
            }
        }
        if !named.is_empty() {
            // Manifest first: a file without it is removed at the next start.
            let saved = inner.node.save_manifests(&named);
            saved.inspect_err(|error| inner.note_failure(error))?;
        }
        chunks.iter().try_for_each(|chunk| inner.files.remove(*chunk))
    }

    /// What it holds of these chunks (all when empty).
    #[must_use]
    pub fn report(&self, chunks: &[ChunkId]) -> Vec<ChunkReport> {
        self.inner.replicas().report(chunks)
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

    pub(crate) fn save_identity(&self, identity: Identity) -> Result<(), Error> {
        let saved = self.inner.node.save_identity(identity);
        saved.inspect_err(|error| self.inner.note_failure(error))
    }

    /// Flushes nothing, stops the background work, and closes the files. What was durable stays so.
    pub fn close(&self) {
        self.inner.closed.store(true, Ordering::Release);
        self.inner.stop.stop();
        let thread = lock(&self.background).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the flush thread panicked");
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

    fn check_open(&self) -> Result<(), Error> {
        self.poison.check()?;
        if self.closed.load(Ordering::Acquire) { Err(self.ended()) } else { Ok(()) }
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

    fn note_damage(&self, error: &Error) {
        if let Error::Damaged { chunk, what } = error {
            tracing::error!("{error}");
            self.replicas().mark_damaged(*chunk, what);
        }
    }

    /// Takes in decoded parts and queues them; the receiver hears when they are durable.
    fn admit(&self, parts: Vec<Decoded>) -> Result<tokio::sync::oneshot::Receiver<()>, Error> {
        let mut replicas = self.replicas();
        let mut fresh = Vec::new();
        for part in parts {
            let key = part.rows.key;
            if let Some(what) = replicas.damage(key.chunk) {
                return Err(Error::Damaged { chunk: key.chunk, what: what.to_owned() });
            }
            match replicas.admit(key, part.rows.hash) {
                Admission::New => fresh.push(part),
                Admission::Known => {}
                Admission::Conflict => {
                    let PartKey { txn, chunk, number } = key;
                    return Err(Error::Conflict { txn, chunk, number });
                }
            }
        }
        let now = Instant::now();
        let mut changes = Vec::with_capacity(fresh.len());
        for Decoded { rows, header, payload } in fresh {
            let key = rows.key;
            replicas.prepare(header.spec.clone(), Arc::new(rows), now);
            changes.push(Change::PutPart(key, Box::new(header), payload));
        }
        // Also without a change: a part that came before may still be on its way to the disk, ahead in the queue.
        Ok(self.journal.submit(changes))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A part whose payload was checked.
struct Decoded {
    rows: Rows,
    header: PartHeader,
    payload: Bytes,
}

fn decode_parts(txn: TxnId, parts: Vec<Part>, mut charge: Charge) -> Result<Vec<Decoded>, Error> {
    let decode = |part: Part| {
        let Part { spec, epoch, number, rows, hash, payload, decoded_bytes } = part;
        let key = PartKey { txn, chunk: spec.chunk, number };
        if xxhash_rust::xxh3::xxh3_128(&payload) != hash {
            return Err(Error::Invalid(format!("{key}: the payload does not have the hash given")));
        }
        let header = PartHeader { spec, epoch, rows, hash, decoded_bytes };
        let rows = decode_part(key, &header, &payload, charge.split(decoded_bytes as usize))?;
        Ok(Decoded { rows, header, payload })
    };
    let decoded: Result<Vec<Decoded>, Error> = parts.into_iter().map(decode).collect();
    let decoded = decoded?;
    let mut keys: Vec<PartKey> = decoded.iter().map(|part| part.rows.key).collect();
    keys.sort_unstable();
    match keys.array_windows().find(|[one, other]| one == other) {
        Some([key, _]) => Err(Error::Invalid(format!("{key} stands twice in one request"))),
        None => Ok(decoded),
    }
}

/// Decodes the payload of a part that its header describes.
fn decode_part(
    key: PartKey,
    header: &PartHeader,
    payload: &[u8],
    charge: Charge,
) -> Result<Rows, Error> {
    let batches = batch::decode(payload, header.decoded_bytes)?;
    let rows: usize = batches.iter().map(|batch| batch.num_rows()).sum();
    if rows != header.rows as usize {
        let said = header.rows;
        return Err(Error::Invalid(format!("{key} holds {rows} rows instead of {said}")));
    }
    Ok(Rows { key, hash: header.hash, batches, charge })
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
