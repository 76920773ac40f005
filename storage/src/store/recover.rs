//! From a directory to a store: whatever was durable when the last process ended, however it ended.
//!
//! 1. `node.redb` is opened first; its lock keeps every other process out.
//! 2. The journal is read whole. It carries the disk's id, so that another one is noticed. One that is lost makes the
//!    directory another disk.
//! 3. What chunk files hold is taken from the manifest. Only files of chunks that are in the journal are opened, and
//!    those that the manifest says so of: only they can be ahead of it, by a flush or by commits from another replica
//!    whose manifest was not written any more. Without the journal, that may be any of them.
//! 4. Parts become pending, those with a decision committed; what the files hold already leaves the journal.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Mutex},
    time::Instant,
};

use hypertide_proto::{
    decision::{ChunkLink, Decision, Fate},
    ids::{ChunkId, DiskId, TxnId},
};

use super::{
    Inner, StoreConfig,
    admit::decode_part,
    aside,
    cache::ExtentCache,
    disk::{Disk, sync_dir},
    file::stored,
    files::{FileLimits, Files},
    handle::OpenFiles,
    identity::NodeFile,
    lock,
    memory::Memory,
    poison::Poison,
    stop::Stop,
};
use crate::{
    Error,
    chunk::{Decided, Replicas},
    compact::Rewriting,
    journal::{Change, Found, LAZY_DELAY, Opened, Recovered},
    tables::{DecisionRow, Identity},
};

/// Opens a store; gives the decisions that its journal had, too.
pub(super) fn open(
    config: StoreConfig,
    disk: Arc<dyn Disk>,
) -> Result<(Inner, Vec<Decision>), Error> {
    make_dir(disk.as_ref(), &config.dir)?;
    let poison = Arc::new(Poison::new(Arc::clone(&disk), &config.dir));
    let marked = poison.marked()?;
    if let Some(reason) = &marked {
        tracing::warn!("the disk failed in an earlier run, all files are verified: {reason}");
        forget_cached(disk.as_ref(), &config.dir);
    }
    let node = NodeFile::open(disk.as_ref(), &config.dir)?;
    let (mut journal, renewed) = open_journal(disk.as_ref(), &config.dir, &node)?;
    let cache = Arc::new(ExtentCache::new(config.cache_bytes));
    let open = OpenFiles::new(config.open_files_max);
    let limits = FileLimits { open, directory: Memory::new(config.directory_bytes), cache };
    let files = Files::open(Arc::clone(&disk), config.dir.join("chunks"), &node, limits)?;
    if !node.settled() {
        node.settle(disk.as_ref(), &config.dir)?;
    }
    let memory = Memory::new(config.memory_bytes);
    let mut replicas = Replicas::default();
    let mut recovered = std::mem::take(&mut journal.recovered);
    let decisions: Vec<Decision> =
        std::mem::take(&mut recovered.decisions).into_iter().map(decision).collect();
    let whole = recovered.damaged.is_empty();
    // Which files are ahead of the manifest, a journal that is lost cannot tell: every one is asked, so that the cluster
    // hears of all that is here.
    let busy = (!renewed).then(|| recovered.parts.iter().map(|(key, ..)| key.chunk).collect());
    restore_files(&mut replicas, &files, &node, busy)?;
    let changes = replay(&mut replicas, (recovered, &decisions), &memory);
    for (chunk, csn) in node.removals().chunks {
        // How long ago that was is not known here: it stays as if it had been now.
        replicas.set_removed(chunk, csn, Instant::now());
    }
    if marked.is_some() {
        audit(&mut replicas, &files, &node)?;
        if whole {
            poison.clear_mark()?;
        }
    }
    if let Err(what) = replicas.check() {
        return Err(Error::Disk { action: "recover the chunks".into(), source: what.into() });
    }
    let replicas = Arc::new(Mutex::new(replicas));
    let lazy_delay = config.background.then_some(LAZY_DELAY);
    let journal = journal.start(Arc::clone(&poison), lazy_delay, {
        let replicas = Arc::clone(&replicas);
        move |txns| lock(&replicas).decisions_durable(&txns)
    })?;
    journal.submit_lazily(changes);
    let inner = Inner {
        config,
        disk,
        node,
        files,
        journal,
        replicas,
        memory,
        poison,
        writing: Mutex::default(),
        rewriting: Rewriting::default(),
        opened: Instant::now(),
        leases: Default::default(),
        stop: Stop::default(),
        counters: Arc::default(),
        renewed: renewed.into(),
        closed: false.into(),
    };
    Ok((inner, decisions))
}

fn decision((txn, row): (TxnId, DecisionRow)) -> Decision {
    let DecisionRow { csn, links } = row;
    let links = links.into_iter().map(|(chunk, prev)| ChunkLink { chunk, prev }).collect();
    Decision { txn, fate: Fate::Committed { csn, links } }
}

/// The journal, and whether it is a new one.
///
/// Of a journal that cannot be read it is unknown which rows it held. What is left of it is kept aside, and the
/// directory goes on as another disk, of which the cluster knows that it holds nothing: nothing here is truncated in
/// silence, and what other replicas have comes from there. The steps may be cut anywhere: a journal that is missing is
/// one that is lost.
fn open_journal(disk: &dyn Disk, dir: &Path, node: &NodeFile) -> Result<(Opened, bool), Error> {
    let identity = node.identity();
    let what = match Opened::read(disk, dir, (identity.disk, node.settled()))? {
        Found::Journal(opened) => return Ok((opened, false)),
        Found::Lost(what) => what,
    };
    let place = aside::place(disk, dir, &identity)?;
    let kept = Opened::put_aside(disk, (dir, &place), identity.disk)?;
    let old = identity.disk;
    let new = DiskId(disk.draw_id());
    node.save_identity(Identity { disk: new, ..identity })?;
    tracing::error!(
        "the journal in {} is lost ({what}): rows in it that no other replica has are gone. What is left of it is {}, \
         and this directory is disk {new} from now on, {old} before",
        dir.display(),
        kept.display()
    );
    Ok((Opened::make(disk, dir, new)?, true))
}

fn make_dir(disk: &dyn Disk, dir: &Path) -> Result<(), Error> {
    disk.make_dir(dir).map_err(|error| Error::Disk {
        action: format!("make data directory {}", dir.display()),
        source: error.into(),
    })?;
    // The directory's own name must last as long as what is in it.
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.map_or(Ok(()), |parent| sync_dir(disk, parent))
}

/// Has the files of a directory read from the medium: the system may hold what never reached it.
fn forget_cached(disk: &dyn Disk, dir: &Path) {
    let files = disk.list(dir).unwrap_or_default();
    for path in files.iter().filter(|path| path.extension().is_some_and(|end| end == "redb")) {
        if let Err(error) = disk.forget_cached(path) {
            tracing::debug!("read {} afresh: {error}", path.display());
        }
    }
}

/// Verifies every chunk file after a failure of the disk, before any of it is served.
fn audit(replicas: &mut Replicas, files: &Files, node: &NodeFile) -> Result<(), Error> {
    for chunk in node.manifests().into_keys() {
        files.forget_cached(chunk);
        let verified = match files.get(node, chunk) {
            Ok(Some(file)) => file.verify(),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        match verified {
            Ok(()) => {}
            Err(Error::Damaged { what, .. }) => {
                tracing::error!("chunk {chunk} is damaged: {what}");
                replicas.mark_damaged(chunk, &what);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Takes in what chunk files hold. `busy` are the chunks that the journal has parts of; `None` when that is not known.
fn restore_files(
    replicas: &mut Replicas,
    files: &Files,
    node: &NodeFile,
    busy: Option<BTreeSet<ChunkId>>,
) -> Result<(), Error> {
    for (chunk, manifest) in node.manifests() {
        replicas.restore(chunk, stored(&manifest));
        let busy = busy.as_ref().is_none_or(|busy| busy.contains(&chunk));
        if !busy && !manifest.ahead {
            continue;
        }
        match files.get(node, chunk) {
            // The manifest has followed the file by now, before the journal's copies of these rows go.
            Ok(Some(file)) => replicas.restore(chunk, stored(&file.manifest())),
            Ok(None) => {}
            Err(Error::Damaged { what, .. }) => {
                tracing::error!("chunk {chunk} is damaged: {what}");
                replicas.mark_damaged(chunk, &what);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Takes in the journal; the changes remove from it what is of no use.
fn replay(
    replicas: &mut Replicas,
    (recovered, decisions): (Recovered, &[Decision]),
    memory: &Arc<Memory>,
) -> Vec<Change> {
    for (key, what) in recovered.damaged {
        tracing::error!("chunk {} is damaged: {what}", key.chunk);
        replicas.lose(key, &what);
    }
    let now = Instant::now();
    for (key, header, payload) in recovered.parts {
        let charge = memory.take(header.decoded_bytes as usize);
        match decode_part(key, &header, &payload, charge) {
            Ok(rows) => replicas.prepare(header.spec, Arc::new(rows), now),
            Err(error) => {
                tracing::error!("journal: {error}");
                replicas.lose(key, &format!("journal: {error}"));
            }
        }
    }
    let mut changes = Vec::new();
    for decision in decisions {
        let kept = match replicas.decide(decision, true, now) {
            Decided::Committed { removed, kept } => {
                changes.extend(removed.into_iter().map(Change::RemovePart));
                kept
            }
            Decided::Unknown | Decided::Aborted { .. } => false,
        };
        if !kept {
            changes.push(Change::RemoveDecision(decision.txn));
        }
    }
    changes
}
