//! What a run leaves behind when it is killed, and its removal at the next start.
//!
//! Every run notes its directory under its process id. A note whose process is gone names processes to end and file
//! systems to unmount: only those that lie in, or were started for, that directory.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::Context;

use super::{command::run, net};

/// A run's note, removed with it.
#[derive(Debug)]
pub(crate) struct Note(PathBuf);

impl Note {
    /// Notes that this process runs in `dir`.
    pub(crate) fn write(dir: &Path) -> anyhow::Result<Self> {
        let notes = notes();
        std::fs::create_dir_all(&notes).with_context(|| format!("make {}", notes.display()))?;
        let path = notes.join(std::process::id().to_string());
        let born = born(std::process::id()).context("find out when this process began")?;
        let text = format!("{born}\n{}", dir.display());
        std::fs::write(&path, text).context("note the run")?;
        Ok(Self(path))
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Every user has a place of its own: nobody can end another one's processes.
fn notes() -> PathBuf {
    let user = std::fs::metadata("/proc/self").map_or(0, |own| own.uid());
    std::env::temp_dir().join(format!("hypertide-jepsen-runs-{user}"))
}

/// When a process began, in ticks since the machine did.
fn born(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// Whether a run goes on: its process is there, and no other one under its number.
fn alive(pid: u32) -> bool {
    let note = std::fs::read_to_string(notes().join(pid.to_string())).unwrap_or_default();
    let noted = note.lines().next().and_then(|line| line.parse::<u64>().ok());
    born(pid).is_some_and(|born| noted.is_none_or(|noted| noted == born))
}

/// Removes what killed runs left.
pub(crate) async fn sweep() -> anyhow::Result<()> {
    for entry in std::fs::read_dir(notes()).into_iter().flatten().flatten() {
        let owner: Option<u32> = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if owner.is_none_or(alive) {
            continue;
        }
        let note = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let dir = PathBuf::from(note.lines().nth(1).unwrap_or_default());
        if dir.is_absolute() {
            clear(&dir).await?;
        }
        std::fs::remove_file(entry.path()).context("remove the note of a killed run")?;
    }
    if super::is_root() && run(&["ip", "-V"]).await.is_ok() {
        net::sweep(alive).await?;
    }
    Ok(())
}

/// Ends the processes of a run and unmounts its file systems.
pub(crate) async fn clear(dir: &Path) -> anyhow::Result<()> {
    let text = dir.to_string_lossy();
    for entry in std::fs::read_dir(dir.join("nodes")).into_iter().flatten().flatten() {
        if entry.path().extension().is_none_or(|extension| extension != "pid") {
            continue;
        }
        let pid = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        // Its number may belong to another process by now.
        if String::from_utf8_lossy(&line).contains(&*text) {
            run(&["kill", "-KILL", pid.trim()]).await.ok();
        }
    }
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for point in points.filter(|point| Path::new(point).starts_with(dir)) {
        run(&["umount", "-l", point]).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_under_its_number() {
        let own = std::process::id();
        assert!(born(own) > Some(0));
        assert!(alive(own));
        assert!(!alive(u32::MAX));
    }
}
