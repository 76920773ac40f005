//! An access node's directory: whose it is, and that nobody else uses it.
//!
//! `NODE` says in text which node and which format the directory is of; `raft.redb` says the same and holds the
//! cluster too. Both must agree: a directory whose log was lost must not come back as an empty voter.

use std::{fs, io, path::Path};

use hypertide_proto::ids::{AccessId, ClusterId};
use redb::{Database, DatabaseError};
use serde::{Deserialize, Serialize};

use super::{
    files::{read_optional, replace_file},
    log_file::LogFile,
};
use crate::Error;

/// The one format of the directory that this program reads and writes.
pub(super) const FORMAT: u32 = 3;
const MARKER: &str = "NODE";
const LOG_FILE: &str = "raft.redb";
/// Memory that redb may use for pages of a file; the catalog itself lies in memory already.
const CACHE_BYTES: usize = 16 << 20;

/// The group that a node was taken into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Formed {
    /// The cluster.
    pub(crate) cluster: ClusterId,
    /// The voters that formed it, or that were there when this node came, with the addresses they had.
    pub(crate) members: Vec<(AccessId, String)>,
    /// Whether it existed before this node belonged to it.
    pub(crate) joins: bool,
}

/// Opens the log of node `id` in `dir`, which is made when it does not exist.
pub(super) fn open_log(dir: &Path, id: AccessId) -> Result<LogFile, Error> {
    let storage = |error: io::Error| Error::Storage(format!("open {}: {error}", dir.display()));
    fs::create_dir_all(dir).map_err(storage)?;
    let marker = read_optional(&dir.join(MARKER)).map_err(storage)?;
    let marked = marker.as_deref().map(|text| parse_marker(dir, text)).transpose()?;
    if let Some((format, owner)) = marked {
        check_format(dir, format)?;
        check_owner(dir, owner, id)?;
    }
    let file = LogFile::over(open_database(dir, LOG_FILE)?).map_err(storage)?;
    match file.identity().map_err(storage)? {
        Some((format, owner)) => {
            check_format(dir, format)?;
            check_owner(dir, owner, id)?;
        }
        None if marked.is_some() => {
            return Err(Error::Identity(format!(
                "the raft log of {id} in directory {} is lost; a voter must not start without it",
                dir.display()
            )));
        }
        None => file.set_identity(FORMAT, id).map_err(storage)?,
    }
    if marked.is_none() {
        let text = format!("format {FORMAT}\nnode {}\n", id.0);
        replace_file(dir, MARKER, text.as_bytes()).map_err(storage)?;
    }
    Ok(file)
}

/// The node that a directory belongs to; `None` when it belongs to none.
pub(super) fn owner(dir: &Path) -> Result<Option<AccessId>, Error> {
    let marker = read_optional(&dir.join(MARKER));
    let marker =
        marker.map_err(|error| Error::Storage(format!("open {}: {error}", dir.display())))?;
    let parsed = marker.as_deref().map(|text| parse_marker(dir, text)).transpose()?;
    Ok(parsed.map(|(_, owner)| owner))
}

/// Opens or makes a redb file. On a thread of its own, because redb may panic on a corrupted file.
pub(super) fn open_database(dir: &Path, name: &str) -> Result<Database, Error> {
    let path = dir.join(name);
    let opening = path.clone();
    let opened =
        std::thread::spawn(move || Database::builder().set_cache_size(CACHE_BYTES).create(opening));
    match opened.join() {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch)) => Err(
            Error::Identity(format!("directory {} is in use by another process", dir.display())),
        ),
        Ok(Err(error)) => Err(Error::Storage(format!("open {}: {error}", path.display()))),
        Err(_) => Err(Error::Storage(format!("file {} is damaged", path.display()))),
    }
}

fn parse_marker(dir: &Path, text: &str) -> Result<(u32, AccessId), Error> {
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map(str::trim)
    };
    let format = field("format").and_then(|value| value.parse().ok());
    let node = field("node").and_then(|value| value.parse().ok());
    // A newer format may say its node otherwise, so that the format alone decides first.
    match (format, node) {
        (Some(format), Some(node)) => Ok((format, AccessId(node))),
        (Some(format), None) => {
            check_format(dir, format)?;
            Err(unreadable(dir))
        }
        _ => Err(unreadable(dir)),
    }
}

fn unreadable(dir: &Path) -> Error {
    Error::Identity(format!("file {MARKER} in directory {} is unreadable", dir.display()))
}

fn check_format(dir: &Path, format: u32) -> Result<(), Error> {
    if format == FORMAT {
        return Ok(());
    }
    Err(Error::Identity(format!(
        "directory {} has format {format}, this program reads format {FORMAT}",
        dir.display()
    )))
}

fn check_owner(dir: &Path, owner: AccessId, id: AccessId) -> Result<(), Error> {
    if owner == id {
        return Ok(());
    }
    Err(Error::Identity(format!(
        "directory {} belongs to node {owner}, not to {id}",
        dir.display()
    )))
}
