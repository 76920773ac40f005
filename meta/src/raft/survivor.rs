//! What the directory of an access node knows, that is left of a group which lost its majority.

use std::{io, path::Path};

use hypertide_proto::ids::{ClusterId, Csn};
use openraft::EntryPayload;

use super::{
    catalog_file::{CURRENT, CatalogFile},
    directory::{Formed, open_log, owner},
    log_file::FORMED,
    watchdog::Watchdog,
};
use crate::{
    Error,
    catalog::{Changes, rebuild::CatalogRemains},
};

/// Log entries that are read at once.
const READ_BYTES: usize = 16 << 20;

/// Reads a directory whose process does not run: its cluster, and the catalog as of the last entry of its log.
///
/// Of the last entries nobody is left who could say whether they counted. Those that did were acknowledged, and those
/// that did not have no answer yet: all are taken.
pub fn survivor(dir: &Path) -> Result<(ClusterId, CatalogRemains), Error> {
    let storage = |error: io::Error| Error::Storage(format!("read {}: {error}", dir.display()));
    let strange = || {
        Error::Identity(format!("{} is no directory of an access node of a cluster", dir.display()))
    };
    let id = owner(dir)?.ok_or_else(strange)?;
    if !dir.join(CURRENT).exists() {
        return Err(strange());
    }
    let log = open_log(dir, id)?;
    let formed: Formed = log.meta(FORMED).map_err(storage)?.ok_or_else(strange)?;
    let file = CatalogFile::open(dir, Watchdog::new().into()).map_err(storage)?;
    let (mut catalog, applied) = file.load().map_err(storage)?;
    let mut index = applied.last.map_or(0, |id| id.index);
    loop {
        let entries = log.entries(index + 1.., READ_BYTES).map_err(storage)?;
        if entries.first().is_none_or(|entry| entry.log_id.index != index + 1) {
            return Ok((formed.cluster, CatalogRemains { index, catalog }));
        }
        for entry in entries {
            index = entry.log_id.index;
            let EntryPayload::Normal(proposal) = entry.payload else { continue };
            for (position, command) in (0..).zip(&proposal.commands) {
                let csn = Csn::at(index, position);
                // A refusal is an answer, here as when it was given.
                drop(catalog.apply(command, csn, proposal.time_ms, &mut Changes::default()));
            }
        }
    }
}
