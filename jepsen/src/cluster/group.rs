//! A control group for one process of ours, below the one that it is in.

use std::path::PathBuf;

use anyhow::Context;

/// Where the controllers are, each with a hierarchy of its own.
const ROOT: &str = "/sys/fs/cgroup";

/// A group with one process in it. It is to be left by [`Group::leave`].
#[derive(Debug)]
pub(crate) struct Group {
    place: PathBuf,
    above: PathBuf,
    pid: u32,
}

impl Group {
    /// Makes a group for a process, which is not in it yet; the reason if that is not possible here.
    pub(crate) fn make(controller: &str, pid: u32) -> Result<Self, String> {
        let own = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let own = own.lines().find_map(|line| {
            let mut words = line.splitn(3, ':').skip(1);
            let of = words.next()?.split(',').any(|name| name == controller);
            of.then(|| words.next().unwrap_or_default().trim_start_matches('/').to_owned())
        });
        let own = own.ok_or_else(|| format!("there is no controller {controller}"))?;
        let above = PathBuf::from(ROOT).join(controller).join(own);
        let place = above.join(format!("htj{pid}"));
        std::fs::create_dir(&place).map_err(|error| format!("no group can be made: {error}"))?;
        Ok(Self { place, above, pid })
    }

    /// Puts the process into it.
    pub(crate) fn enter(&self) -> anyhow::Result<()> {
        self.set("cgroup.procs", &self.pid.to_string())
    }

    /// Writes one of its files.
    pub(crate) fn set(&self, file: &str, value: &str) -> anyhow::Result<()> {
        std::fs::write(self.place.join(file), value)
            .with_context(|| format!("set {file} of a control group to {value}"))
    }

    /// Reads one of its files.
    pub(crate) fn get(&self, file: &str) -> anyhow::Result<String> {
        let text = std::fs::read_to_string(self.place.join(file));
        Ok(text.with_context(|| format!("read {file} of a control group"))?.trim().to_owned())
    }

    /// Puts the process back, when it still runs, and removes the group.
    pub(crate) fn leave(self) -> anyhow::Result<()> {
        // It may have ended.
        std::fs::write(self.above.join("cgroup.procs"), self.pid.to_string()).ok();
        std::fs::remove_dir(&self.place).context("remove a control group")
    }
}
