//! The end of a store whose disk failed: after a failed fsync nothing that is in memory can be trusted to be on disk,
//! not even by writing it again, so that only a new start, which reads the disk, may go on.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use tokio::sync::Notify;

use super::disk::Disk;
use crate::Error;

const MARKER: &str = "io_error";

/// Why the store ended, once it did.
#[derive(Debug)]
pub(crate) struct Poison {
    disk: Arc<dyn Disk>,
    marker: PathBuf,
    reason: OnceLock<String>,
    notify: Notify,
}

impl Poison {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: &Path) -> Self {
        let (marker, notify) = (dir.join(MARKER), Notify::new());
        Self { disk, marker, reason: OnceLock::new(), notify }
    }

    /// Ends the store; the first reason stays.
    pub(crate) fn set(&self, reason: String) {
        if self.reason.set(reason.clone()).is_ok() {
            tracing::error!("{reason}");
            // The marker tells the next start to distrust the disk. It may fail as the disk just did.
            let noted = self.disk.write_note(&self.marker, &reason);
            let dir = self.marker.parent().unwrap_or(Path::new(""));
            if let Err(error) = noted.and_then(|()| self.disk.sync_dir(dir)) {
                tracing::error!("mark the data directory as suspect: {error}");
            }
            self.notify.notify_waiters();
        }
    }

    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }

    /// Refuses work on an ended store.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.reason().map_or(Ok(()), |reason| Err(Error::Closed(reason.to_owned())))
    }

    /// Resolves when the store has ended, and never before.
    pub(crate) async fn wait(&self) -> Error {
        loop {
            let notified = self.notify.notified();
            if let Err(error) = self.check() {
                return error;
            }
            notified.await;
        }
    }

    /// What an earlier process wrote when its disk failed.
    pub(crate) fn marked(&self) -> Result<Option<String>, Error> {
        self.disk.read_note(&self.marker).map_err(|error| Error::Disk {
            action: "look for the mark of an earlier disk failure".into(),
            source: error.into(),
        })
    }

    /// Forgets the mark of an earlier process, after the disk was verified.
    pub(crate) fn clear_mark(&self) -> Result<(), Error> {
        self.disk.remove(&self.marker).map_err(|error| Error::Disk {
            action: "remove the mark of an earlier disk failure".into(),
            source: error.into(),
        })
    }
}
