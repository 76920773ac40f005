//! `raft.redb`: the log, the vote and the identity of one node.
//!
//! | Table | Key | Value |
//! |---|---|---|
//! | `log` | Raft index | entry |
//! | `meta` | `vote`, `committed`, `last_purged`, `identity`, `formed` | what the name says |
//!
//! Every value wears the frame of [`super::files::seal`]. Reading is done from any thread, writing by the one writer
//! of [`super::log_store`] only.

use std::{
    fmt, io,
    ops::RangeBounds,
    sync::{Arc, Weak},
};

use hypertide_proto::ids::AccessId;
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use serde::de::DeserializeOwned;

use super::{
    files::{damaged, disk, name_index, seal, unseal},
    types::{Entry, LogId, decode, encode},
};

const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

pub(super) const VOTE: &str = "vote";
pub(super) const COMMITTED: &str = "committed";
pub(super) const LAST_PURGED: &str = "last_purged";
pub(super) const FORMED: &str = "formed";
const IDENTITY: &str = "identity";

/// The open file.
pub(super) struct LogFile {
    database: Database,
    /// IMPORTANT: the last field: it goes when the database is closed, and not before.
    open: Arc<()>,
}

impl fmt::Debug for LogFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogFile").finish_non_exhaustive()
    }
}

impl LogFile {
    /// Lives as long as the file is open.
    pub(super) fn open(&self) -> Weak<()> {
        Arc::downgrade(&self.open)
    }

    /// Takes an open database, and makes the tables when it is new.
    pub(super) fn over(database: Database) -> io::Result<Self> {
        let file = Self { database, open: Arc::default() };
        file.write(Durability::Immediate, |txn| {
            txn.open_table(LOG).map_err(disk)?;
            txn.open_table(META).map_err(disk)?;
            Ok(())
        })?;
        Ok(file)
    }

    /// Format and owner, or `None` in a file that was just made.
    pub(super) fn identity(&self) -> io::Result<Option<(u32, AccessId)>> {
        self.meta(IDENTITY)
    }

    pub(super) fn set_identity(&self, format: u32, id: AccessId) -> io::Result<()> {
        let body = encode(&(format, id))?;
        self.set_meta(IDENTITY, &body, Durability::Immediate)
    }

    /// The value under a name.
    pub(super) fn meta<T: DeserializeOwned>(&self, key: &str) -> io::Result<Option<T>> {
        let txn = self.database.begin_read().map_err(disk)?;
        let table = txn.open_table(META).map_err(disk)?;
        let Some(value) = table.get(key).map_err(disk)? else { return Ok(None) };
        decode(unseal(name_index(key.as_bytes()), value.value())?).map(Some)
    }

    /// Entries of the range in order of their indexes; stops after the one with which `bytes_max` is passed.
    pub(super) fn entries(
        &self,
        range: impl RangeBounds<u64>,
        bytes_max: usize,
    ) -> io::Result<Vec<Entry>> {
        let txn = self.database.begin_read().map_err(disk)?;
        let table = txn.open_table(LOG).map_err(disk)?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        for row in table.range::<u64>(range).map_err(disk)? {
            let (index, value) = row.map_err(disk)?;
            entries.push(read_entry(index.value(), value.value())?);
            bytes += value.value().len();
            if bytes > bytes_max {
                break;
            }
        }
        Ok(entries)
    }

    /// The last purged log id, and the last log id, which is the former when no entry is left.
    pub(super) fn bounds(&self) -> io::Result<(Option<LogId>, Option<LogId>)> {
        let purged: Option<LogId> = self.meta(LAST_PURGED)?;
        let txn = self.database.begin_read().map_err(disk)?;
        let table = txn.open_table(LOG).map_err(disk)?;
        let last = match table.last().map_err(disk)? {
            Some((index, value)) => Some(read_entry(index.value(), value.value())?.log_id),
            None => purged,
        };
        Ok((purged, last))
    }

    /// Adds entries, whose framed values these are, from index `first` on. What was stored there or after goes.
    pub(super) fn append(&self, first: u64, values: &[Vec<u8>]) -> io::Result<()> {
        self.write(Durability::Immediate, |txn| {
            let mut log = txn.open_table(LOG).map_err(disk)?;
            // openraft truncates before it appends other entries; should it not, no old entry may stay behind the new.
            if log.last().map_err(disk)?.is_some_and(|(last, _)| last.value() >= first) {
                log.retain_in(first.., |_, _| false).map_err(disk)?;
            }
            for (index, value) in (first..).zip(values) {
                log.insert(index, value.as_slice()).map_err(disk)?;
            }
            Ok(())
        })
    }

    /// Removes the entries from index `since` on.
    pub(super) fn truncate(&self, since: u64) -> io::Result<()> {
        self.write(Durability::Immediate, |txn| {
            let mut log = txn.open_table(LOG).map_err(disk)?;
            log.retain_in(since.., |_, _| false).map_err(disk)
        })
    }

    /// Removes the entries up to and with `upto`.
    pub(super) fn purge(&self, upto: LogId) -> io::Result<()> {
        let body = encode(&upto)?;
        self.write(Durability::Immediate, |txn| {
            let mut log = txn.open_table(LOG).map_err(disk)?;
            log.retain_in(..=upto.index, |_, _| false).map_err(disk)?;
            put_meta(txn, LAST_PURGED, &body)
        })
    }

    /// Stores a serialised value under a name.
    pub(super) fn set_meta(&self, key: &str, body: &[u8], how: Durability) -> io::Result<()> {
        self.write(how, |txn| put_meta(txn, key, body))
    }

    fn write(
        &self,
        how: Durability,
        change: impl FnOnce(&WriteTransaction) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut txn = self.database.begin_write().map_err(disk)?;
        txn.set_durability(how).map_err(io::Error::other)?;
        change(&txn)?;
        txn.commit().map_err(disk)
    }
}

/// An entry as it is stored.
pub(super) fn stored_entry(entry: &Entry) -> io::Result<Vec<u8>> {
    Ok(seal(entry.log_id.index, &encode(entry)?))
}

fn read_entry(index: u64, value: &[u8]) -> io::Result<Entry> {
    let wrong = |_| damaged(format_args!("log entry {index}"));
    let entry: Entry = unseal(index, value).and_then(decode).map_err(wrong)?;
    if entry.log_id.index == index {
        Ok(entry)
    } else {
        Err(damaged(format_args!("log entry {index}")))
    }
}

fn put_meta(txn: &WriteTransaction, key: &str, body: &[u8]) -> io::Result<()> {
    let mut meta = txn.open_table(META).map_err(disk)?;
    let value = seal(name_index(key.as_bytes()), body);
    meta.insert(key, value.as_slice()).map_err(disk)?;
    Ok(())
}
