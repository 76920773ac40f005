//! A directory for the first access node of a cluster whose catalog was made anew.
//!
//! The catalog lies in it as a raft snapshot that stands for all of the log before, with the node as the only voter: it
//! starts as any node does whose log was purged. Others join it.

use std::{collections::BTreeMap, fs, io, path::Path};

use hypertide_proto::ids::{AccessId, ClusterId};
use openraft::{BasicNode, CommittedLeaderId};
use redb::Durability;

use super::{
    directory::{Formed, open_log},
    files::sync_dir,
    log_file::FORMED,
    snapshot::Snapshots,
    types::{LogId, Membership, SnapshotMeta, encode},
};
use crate::{Error, catalog::rebuild::Rebuilt};

/// The node that begins, where others reach it, and the cluster.
#[derive(Clone, Debug)]
pub struct Founder {
    /// Its number.
    pub id: AccessId,
    /// Address of its internal gRPC, `host:port`.
    pub rpc: String,
    /// The cluster: another one than before, so that an access node of that one, should it come back, reaches nobody.
    pub cluster: ClusterId,
}

/// Makes the directory, which must not be there, whole or not at all.
pub fn found(dir: &Path, founder: &Founder, rebuilt: &Rebuilt) -> Result<(), Error> {
    let storage = |error: io::Error| Error::Storage(format!("make {}: {error}", dir.display()));
    let name = dir.file_name().ok_or_else(|| storage(io::ErrorKind::InvalidInput.into()))?;
    if dir.exists() {
        return Err(Error::Identity(format!("directory {} is there already", dir.display())));
    }
    let mut draft = name.to_owned();
    draft.push(".new");
    let draft = dir.with_file_name(draft);
    match fs::remove_dir_all(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(storage(error)),
        _ => {}
    }
    fill(&draft, founder, rebuilt)?;
    fs::rename(&draft, dir).map_err(storage)?;
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    sync_dir(parent.unwrap_or(Path::new("."))).map_err(storage)
}

fn fill(dir: &Path, founder: &Founder, rebuilt: &Rebuilt) -> Result<(), Error> {
    let storage = |error: io::Error| Error::Storage(format!("fill {}: {error}", dir.display()));
    let Founder { id, rpc, cluster } = founder.clone();
    let log = open_log(dir, id)?;
    let last = LogId::new(CommittedLeaderId::new(1, id.0), rebuilt.index);
    let voter = BTreeMap::from([(id.0, BasicNode::new(&rpc))]);
    let membership = openraft::Membership::new(vec![[id.0].into()], voter);
    let meta = SnapshotMeta {
        last_log_id: Some(last),
        last_membership: Membership::new(Some(last), membership),
        snapshot_id: format!("{}-{}", last.leader_id.term, last.index),
    };
    let snapshots = Snapshots::open(dir).map_err(storage)?;
    let written = snapshots.write(&meta, &rebuilt.catalog).map_err(storage)?;
    snapshots.commit_snapshot(meta, &written).map_err(storage)?;
    log.purge(last).map_err(storage)?;
    // Last: without it the directory belongs to no group.
    let formed = Formed { cluster, members: vec![(id, rpc)], joins: true };
    let body = encode(&formed).map_err(storage)?;
    log.set_meta(FORMED, &body, Durability::Immediate).map_err(storage)
}
