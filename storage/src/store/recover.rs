//! From a directory to a store: whatever was durable when the last process ended, however it ended.
//!
//! 1. `node.redb` is opened first; its lock keeps every other process out.
//! 2. The journal is read whole. It carries the disk's id, so that a lost one is noticed.
//! 3. What chunk files hold is taken from the manifest. Only files of chunks that are in the journal are opened: only
//!    those can be ahead of the manifest, by a flush whose manifest was not written any more.
//! 4. Parts become pending, those with a decision committed; what the files hold already leaves the journal.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex},
    time::Instant,
};

use hypertide_proto::{
    decision::{ChunkLink, Decision, Fate},
    ids::{ChunkId, TxnId},
};

use super::{
    Inner, StoreConfig, decode_part,
    disk::{Disk, sync_dir},
    file::stored,
    files::Files,
    flush::Stop,
    identity::NodeFile,
    lock,
    memory::Memory,
    poison::Poison,
};
use crate::{
    Error,
    chunk::{Decided, Replicas},
    journal::{Change, OpenJournal, Opened, Recovered},
    tables::DecisionRow,
};

/// Opens a store.
pub(super) fn open(config: StoreConfig, disk: Arc<dyn Disk>) -> Result<Inner, Error> {
    make_dir(&config.dir)?;
    let poison = Arc::new(Poison::new(&config.dir));
    let node = NodeFile::open(disk.as_ref(), &config.dir)?;
    let marked = poison.marked();
    if let Some(reason) = &marked {
        tracing::warn!("the disk failed in an earlier run, its files are verified: {reason}");
    }
    let identity = node.identity();
    let how = OpenJournal { settled: node.settled(), verify: marked.is_some() };
    let mut journal = Opened::read(disk.as_ref(), &config.dir, identity.disk, how)?;
    let files = Files::open(Arc::clone(&disk), config.dir.join("chunks"), &node)?;
    if !node.settled() {
        node.settle(&config.dir)?;
    }
    let memory = Memory::new(config.memory_bytes);
    let mut replicas = Replicas::default();
    let recovered = std::mem::take(&mut journal.recovered);
    let whole = recovered.damaged.is_empty();
    restore_files(&mut replicas, &files, (&node, &recovered))?;
    let changes = replay(&mut replicas, recovered, &memory);
    if marked.is_some() && whole {
        poison.clear_mark()?;
    }
    if let Err(what) = replicas.check() {
        return Err(Error::Disk { action: "recover the chunks".into(), source: what.into() });
    }
    let replicas = Arc::new(Mutex::new(replicas));
    let journal = journal.start(Arc::clone(&poison), {
        let replicas = Arc::clone(&replicas);
        move |txns| lock(&replicas).decisions_durable(&txns)
    })?;
    journal.submit_lazily(changes);
    Ok(Inner {
        config,
        disk,
        node,
        files,
        journal,
        replicas,
        memory,
        poison,
        writing: Mutex::default(),
        stop: Stop::default(),
        closed: false.into(),
    })
}

fn make_dir(dir: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(dir).map_err(|error| Error::Disk {
        action: format!("make data directory {}", dir.display()),
        source: error.into(),
    })?;
    // The directory's own name must last as long as what is in it.
    dir.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), sync_dir)
}

/// Takes in what chunk files hold.
fn restore_files(
    replicas: &mut Replicas,
    files: &Files,
    (node, recovered): (&NodeFile, &Recovered),
) -> Result<(), Error> {
    let busy: BTreeSet<ChunkId> = recovered.parts.iter().map(|(key, ..)| key.chunk).collect();
    let mut moved = Vec::new();
    for (chunk, manifest) in node.manifests() {
        replicas.restore(chunk, stored(&manifest));
        if !busy.contains(&chunk) {
            continue;
        }
        match files.get(node, chunk) {
            Ok(Some(file)) if file.manifest() != manifest => {
                replicas.restore(chunk, stored(&file.manifest()));
                moved.push((chunk, Some(file.manifest())));
            }
            Ok(_) => {}
            Err(Error::Damaged { what, .. }) => {
                tracing::error!("chunk {chunk} is damaged: {what}");
                replicas.mark_damaged(chunk, &what);
            }
            Err(error) => return Err(error),
        }
    }
    if moved.is_empty() {
        return Ok(());
    }
    // Before the journal's copies of these rows go, as after every flush.
    node.save_manifests(&moved)
}

/// Takes in the journal; the changes remove from it what is of no use.
fn replay(replicas: &mut Replicas, recovered: Recovered, memory: &Arc<Memory>) -> Vec<Change> {
    for (chunk, what) in recovered.damaged {
        tracing::error!("chunk {chunk} is damaged: {what}");
        replicas.mark_damaged(chunk, &what);
    }
    let now = Instant::now();
    for (key, header, payload) in recovered.parts {
        let charge = memory.take(header.decoded_bytes as usize);
        match decode_part(key, &header, &payload, charge) {
            Ok(rows) => replicas.prepare(header.spec, Arc::new(rows), now),
            Err(error) => {
                tracing::error!("journal: {error}");
                replicas.mark_damaged(key.chunk, &format!("journal: {error}"));
            }
        }
    }
    let mut changes = Vec::new();
    let decisions: BTreeMap<TxnId, DecisionRow> = recovered.decisions.into_iter().collect();
    for (txn, DecisionRow { csn, links }) in decisions {
        let links = links.into_iter().map(|(chunk, prev)| ChunkLink { chunk, prev }).collect();
        let decision = Decision { txn, fate: Fate::Committed { csn, links } };
        let kept = match replicas.decide(&decision, true, now) {
            Decided::Committed { removed, kept } => {
                changes.extend(removed.into_iter().map(Change::RemovePart));
                kept
            }
            Decided::Unknown | Decided::Aborted { .. } => false,
        };
        if !kept {
            changes.push(Change::RemoveDecision(txn));
        }
    }
    changes
}
