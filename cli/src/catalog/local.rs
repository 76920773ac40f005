//! The catalog of a local cluster: which directories there are, and what becomes of the old access nodes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use super::rebuild::Plan;
use crate::{
    cluster::Local,
    endpoints::{Endpoints, Node, Role, make_dir},
    process,
};

/// Name under which the access node's directory is made.
const DRAFT: &str = "rebuilt";

/// A local cluster that is stopped.
#[derive(Debug)]
pub(super) struct LocalPlan {
    local: Local,
    /// The first access node, which is made anew.
    first: Node,
    others: Vec<Node>,
    data: Vec<Node>,
}

impl LocalPlan {
    /// Looks at the directory of a cluster.
    pub(super) fn of(dir: &Path) -> anyhow::Result<Self> {
        let local = Local::open(dir)?;
        let nodes = local.nodes()?;
        if let Some(running) = nodes.iter().find(|node| process::alive(node)) {
            bail!("{} runs: stop the cluster first", running.name);
        }
        let (mut access, data): (Vec<Node>, Vec<Node>) =
            nodes.into_iter().partition(|node| node.role == Role::Access);
        if access.is_empty() {
            bail!("{} has no access node whose address could be taken over", dir.display());
        }
        let first = access.remove(0);
        // One whose directory is gone can be given up by name only.
        let data = data.into_iter().filter(|node| local.dir.join(&node.name).is_dir()).collect();
        Ok(Self { local, first, others: access, data })
    }

    pub(super) fn plan(&self) -> Plan {
        let (_, id) = crate::cluster::parse_name(&self.first.name).unwrap_or((Role::Access, 1));
        Plan {
            data: self.data.iter().map(|node| self.local.dir.join(&node.name)).collect(),
            access: self.access_dirs(),
            to: self.local.dir.join(DRAFT),
            id,
            rpc: self.first.rpc.clone(),
        }
    }

    /// Directories of the old access nodes, as far as they are there.
    fn access_dirs(&self) -> Vec<PathBuf> {
        let all = self.others.iter().chain([&self.first]);
        all.map(|node| self.local.dir.join(&node.name)).filter(|dir| dir.is_dir()).collect()
    }

    /// Lets the new access node take the place of the old ones, whose directories are kept under other names.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        let Self { local, first, others, .. } = self;
        for node in others.iter().chain([&first]) {
            // Also of one that is gone something stays: its number is not given again.
            make_dir(&local.dir.join(&node.name))?;
            let kept = local.retire(&node.name)?;
            say!("the old {} is kept in {}", node.name, kept.display());
        }
        let (from, to) = (local.dir.join(DRAFT), local.dir.join(&first.name));
        Endpoints { nodes: vec![first.clone()] }.write(&from)?;
        fs::rename(&from, &to).with_context(|| format!("rename {}", from.display()))?;
        let mut nodes = local.nodes()?;
        nodes.retain(|node| others.iter().all(|other| other.name != node.name));
        Endpoints { nodes }.write(&local.dir)?;
        say!(
            "{} is made anew: start the cluster with `hypertide cluster start --dir {dir}`, and add access nodes with \
             `hypertide cluster add-access --dir {dir}`",
            first.name,
            dir = local.dir.display()
        );
        Ok(())
    }
}
