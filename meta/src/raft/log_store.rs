//! The log as openraft sees it: reads go to the file, writes through one ordered writer thread.

use std::{fmt::Debug, io, ops::RangeBounds, path::Path, sync::Arc, thread};

use hypertide_proto::ids::AccessId;
use openraft::{
    ErrorSubject, ErrorVerb, LogState, OptionalSend, RaftLogReader,
    storage::{LogFlushed, RaftLogStorage},
};
use redb::Durability;
use tokio::sync::{mpsc, oneshot};

use super::{
    directory::{Formed, open_log},
    log_file::{COMMITTED, FORMED, LogFile, VOTE, stored_entry},
    types::{Entry, LogId, StorageError, TypeConfig, Vote, encode},
    watchdog::Watchdog,
};
use crate::Error;

/// Writes that may wait for the writer; openraft itself waits for each, so that few ever do.
const WRITES_MAX: usize = 64;
/// Bytes of entries that one message to a follower holds, unless the first is larger.
const MESSAGE_BYTES: usize = 4 << 20;

/// A change of the file.
pub(super) enum Write {
    Append { first: u64, values: Vec<Vec<u8>> },
    Truncate { since: u64 },
    Purge { upto: LogId },
    Meta { key: &'static str, body: Vec<u8>, durability: Durability },
}

/// A change and who waits for it.
struct Job {
    write: Write,
    done: oneshot::Sender<io::Result<()>>,
}

/// The log of one node. Clones share the file and its writer; both end with the last of them.
#[derive(Clone, Debug)]
pub(crate) struct LogStore {
    file: Arc<LogFile>,
    jobs: mpsc::Sender<Job>,
    watchdog: Arc<Watchdog>,
}

impl LogStore {
    /// Opens the log of node `id` in its directory.
    pub(crate) fn open(dir: &Path, id: AccessId) -> Result<Self, Error> {
        let file = open_log(dir, id)?;
        Self::over(file).map_err(|error| Error::Storage(format!("open the raft log: {error}")))
    }

    /// Starts the writer of an open file.
    pub(super) fn over(file: LogFile) -> io::Result<Self> {
        let file = Arc::new(file);
        let (jobs, queue) = mpsc::channel(WRITES_MAX);
        let watchdog = Arc::new(Watchdog::new());
        let writer = Writer::new(Arc::clone(&file))?;
        let watched = Arc::clone(&watchdog);
        thread::Builder::new().name("raft-log".to_owned()).spawn(|| writer.run(queue, watched))?;
        Ok(Self { file, jobs, watchdog })
    }

    /// The group that the node was taken into.
    pub(crate) fn formed(&self) -> io::Result<Option<Formed>> {
        self.file.meta(FORMED)
    }

    /// Takes the node into a group.
    pub(crate) async fn set_formed(&self, formed: &Formed) -> io::Result<()> {
        let body = encode(formed)?;
        self.write(Write::Meta { key: FORMED, body, durability: Durability::Immediate }).await
    }

    pub(crate) fn watchdog(&self) -> Arc<Watchdog> {
        Arc::clone(&self.watchdog)
    }

    /// Tells whether the file is still open after this handle is gone.
    pub(crate) fn open_elsewhere(self) -> impl Fn() -> bool {
        let file = self.file.open();
        drop(self);
        move || file.strong_count() > 0
    }

    async fn write(&self, write: Write) -> io::Result<()> {
        let stopped = || io::Error::other("the raft log's writer has stopped");
        let (done, answer) = oneshot::channel();
        self.jobs.send(Job { write, done }).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

/// The one thread that writes to the file, in the order it is told.
pub(super) struct Writer {
    file: Arc<LogFile>,
    /// Index of the last entry, present or purged.
    last: Option<u64>,
    /// Why nothing is written any more.
    failed: Option<String>,
}

impl Writer {
    pub(super) fn new(file: Arc<LogFile>) -> io::Result<Self> {
        let last = file.bounds()?.1.map(|id| id.index);
        Ok(Self { file, last, failed: None })
    }

    fn run(mut self, mut queue: mpsc::Receiver<Job>, watchdog: Arc<Watchdog>) {
        while let Some(Job { write, done }) = queue.blocking_recv() {
            let result = watchdog.watch(|| self.perform(write));
            // Who does not wait any more needs no answer.
            let _ = done.send(result);
        }
    }

    /// Does one write. After a failure nothing is written any more: what the disk holds is unknown then.
    pub(super) fn perform(&mut self, write: Write) -> io::Result<()> {
        if let Some(failure) = &self.failed {
            return Err(io::Error::other(format!("the raft log failed before: {failure}")));
        }
        let result = self.apply(write);
        if let Err(error) = &result {
            self.failed = Some(error.to_string());
        }
        result
    }

    fn apply(&mut self, write: Write) -> io::Result<()> {
        match write {
            Write::Append { first, values } => {
                if let Some(last) = self.last.filter(|last| last + 1 < first) {
                    let message = format!("entry {first} would leave a hole after entry {last}");
                    return Err(io::Error::other(message));
                }
                self.file.append(first, &values)?;
                self.last = (first + values.len() as u64).checked_sub(1);
            }
            Write::Truncate { since } => {
                self.file.truncate(since)?;
                self.last = self.file.bounds()?.1.map(|id| id.index);
            }
            Write::Purge { upto } => {
                self.file.purge(upto)?;
                self.last = self.last.max(Some(upto.index));
            }
            Write::Meta { key, body, durability } => self.file.set_meta(key, &body, durability)?,
        }
        Ok(())
    }
}

/// An error of the log as openraft wants it; every one ends the node.
fn failed(subject: ErrorSubject<u64>, verb: ErrorVerb) -> impl FnOnce(io::Error) -> StorageError {
    move |error| StorageError::from_io_error(subject, verb, error)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let entries = self.file.entries(range, usize::MAX);
        entries.map_err(failed(ErrorSubject::Logs, ErrorVerb::Read))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        let entries = self.file.entries(start..end, MESSAGE_BYTES);
        entries.map_err(failed(ErrorSubject::Logs, ErrorVerb::Read))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let bounds = self.file.bounds();
        let (last_purged_log_id, last_log_id) =
            bounds.map_err(failed(ErrorSubject::Logs, ErrorVerb::Read))?;
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let error = failed(ErrorSubject::Vote, ErrorVerb::Write);
        let body = match encode(vote) {
            Ok(body) => body,
            Err(bad) => return Err(error(bad)),
        };
        let write = Write::Meta { key: VOTE, body, durability: Durability::Immediate };
        self.write(write).await.map_err(error)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.file.meta(VOTE).map_err(failed(ErrorSubject::Vote, ErrorVerb::Read))
    }

    /// Not durable by itself: it rides on the next append. An old value only means that less is applied at a restart.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let error = failed(ErrorSubject::Store, ErrorVerb::Write);
        let body = match encode(&committed) {
            Ok(body) => body,
            Err(bad) => return Err(error(bad)),
        };
        let write = Write::Meta { key: COMMITTED, body, durability: Durability::None };
        self.write(write).await.map_err(error)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let committed: io::Result<Option<Option<LogId>>> = self.file.meta(COMMITTED);
        let committed = committed.map_err(failed(ErrorSubject::Store, ErrorVerb::Read))?;
        Ok(committed.flatten())
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let error = failed(ErrorSubject::Logs, ErrorVerb::Write);
        let entries: Vec<Entry> = entries.into_iter().collect();
        let result = match entries.first().map(|entry| entry.log_id.index) {
            None => Ok(()),
            Some(first) => match entries.iter().map(stored_entry).collect() {
                Ok(values) => self.write(Write::Append { first, values }).await,
                Err(bad) => Err(bad),
            },
        };
        // IMPORTANT: the callback comes after the fsync, never before.
        match result {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(bad) => {
                callback.log_io_completed(Err(io::Error::other(bad.to_string())));
                Err(error(bad))
            }
        }
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let write = Write::Truncate { since: log_id.index };
        self.write(write).await.map_err(failed(ErrorSubject::Logs, ErrorVerb::Delete))
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let write = Write::Purge { upto: log_id };
        self.write(write).await.map_err(failed(ErrorSubject::Logs, ErrorVerb::Delete))
    }
}
