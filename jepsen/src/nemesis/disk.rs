//! Faults of files of a data node that was killed: damaged, gone, or old; and of a disk without space.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;

use super::{Effect, Nemesis, plan::Event, plan::Kind, rest};
use crate::{
    cluster::{Node, command},
    seed::Rng,
};

/// Time for every chunk to have its other replica, whole, before a file is touched.
const READY_LIMIT: Duration = Duration::from_secs(45);
/// Time for what was damaged to be whole again, before the next fault may come.
const REPAIR_LIMIT: Duration = Duration::from_secs(120);
/// Time in which the cluster may meet the harm by itself, in what it is asked, before all is read.
const NOTICE_TIME: Duration = Duration::from_secs(3);
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Bits flipped at one time.
const BITS: u64 = 8;
/// Size of a page that is zeroed.
const PAGE_BYTES: u64 = 4096;
/// Files smaller than this hold nothing yet.
const FILE_BYTES_MIN: u64 = 8192;

impl Nemesis {
    pub(super) async fn disk(&self, event: &Event, node: &Node) -> anyhow::Result<Effect> {
        if let Err(why) = self.ready().await {
            return Ok(Effect::Skipped(format!("not every chunk had another replica: {why:#}")));
        }
        let effect = match event.kind {
            Kind::Full => self.full(event, node).await?,
            Kind::Stale => self.stale(event, node).await?,
            _ => {
                node.kill().await?;
                let done = damage(event, &node.dir);
                rest(event).await;
                self.revive_or_replace(node, &done).await?;
                done?
            }
        };
        let healed = self.whole_again(event).await;
        if let (Err(error), Effect::Done { .. }) = (healed, &effect) {
            let words =
                format!("{} was not whole again {REPAIR_LIMIT:?} after: {error:#}", node.name);
            anyhow::bail!(super::Down(words));
        }
        Ok(effect)
    }

    /// Starts the node; one that does not bear its files gets an empty disk, as an operator would give it.
    async fn revive_or_replace(
        &self,
        node: &Node,
        done: &anyhow::Result<Effect>,
    ) -> anyhow::Result<()> {
        let Err(error) = self.revive(node).await else { return Ok(()) };
        node.kill().await?;
        empty(&node.dir)?;
        self.revive(node).await?;
        // What is wrong is told either way; the next fault must not hit the only good copy meanwhile.
        tokio::time::sleep(NOTICE_TIME).await;
        self.wait_whole(REPAIR_LIMIT).await.ok();
        let what = match done {
            Ok(Effect::Done { proof, .. }) => proof.as_str(),
            _ => "nothing",
        };
        let words = format!("after {what}: {error:#}; it was given an empty disk");
        anyhow::bail!(super::Down(words))
    }

    /// Waits until what was harmed is whole.
    ///
    /// The harmed bytes may be such that nothing has read yet: the chunk counts as whole until something does, and the
    /// next fault would hit its only good copy. So all bytes of all replicas are read, until nothing is wrong with any.
    async fn whole_again(&self, event: &Event) -> anyhow::Result<()> {
        if event.kind != Kind::Full {
            tokio::time::sleep(NOTICE_TIME).await;
        }
        self.wait_whole(REPAIR_LIMIT).await
    }

    async fn ready(&self) -> anyhow::Result<()> {
        self.wait_whole(READY_LIMIT).await
    }

    async fn wait_whole(&self, limit: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let why = match self.cluster.whole(self.replication).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(why)) => anyhow::anyhow!(why),
                Err(error) => error,
            };
            if Instant::now() > deadline {
                return Err(why);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Puts the directory back as it was some seconds before.
    async fn stale(&self, event: &Event, node: &Node) -> anyhow::Result<Effect> {
        let copy = node.dir.with_extension("stale");
        let (dir, old) = (node.dir.to_string_lossy(), copy.to_string_lossy());
        node.kill().await?;
        command::run(&["cp", "-a", &dir, &old]).await?;
        self.revive(node).await?;
        rest(event).await;
        node.kill().await?;
        empty(&node.dir)?;
        command::run(&["cp", "-a", &format!("{old}/."), &dir]).await?;
        std::fs::remove_dir_all(&copy).context("remove the old copy")?;
        self.revive(node).await?;
        Ok(Effect::seen(format!("the files are {} ms old", event.for_ms)))
    }

    /// Fills the node's own small file system.
    async fn full(&self, event: &Event, node: &Node) -> anyhow::Result<Effect> {
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        let own = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        if !own.into_iter().any(|point| Path::new(point) == node.dir) {
            return Ok(Effect::Skipped("the node has no file system of its own".into()));
        }
        let ballast = node.dir.join("ballast");
        let mut file = File::create(&ballast).context("make the ballast")?;
        let block = vec![0x5a; 64 << 10];
        let mut written = 0_u64;
        let full = loop {
            match file.write(&block) {
                Ok(0) => break true,
                Ok(count) => written += count as u64,
                Err(error) => break error.kind() == std::io::ErrorKind::StorageFull,
            }
        };
        rest(event).await;
        drop(file);
        std::fs::remove_file(&ballast).context("remove the ballast")?;
        // After a write that failed a node may end itself; it is for the operator to start it.
        let ended = !node.alive();
        if ended {
            self.revive(node).await?;
        }
        let proof = format!("{written} bytes were free; the process ended: {ended}");
        Ok(if full { Effect::seen(proof) } else { Effect::unseen(proof) })
    }
}

/// Damages the files of a node that does not run.
fn damage(event: &Event, dir: &Path) -> anyhow::Result<Effect> {
    if event.kind == Kind::Wipe {
        let before = files(dir).len();
        empty(dir)?;
        return Ok(Effect::seen(format!("{before} files removed")));
    }
    let mut rng = Rng::new(event.salt, 2);
    let mut chosen: Vec<PathBuf> = files(&dir.join("chunks"));
    if chosen.is_empty() || rng.chance(25) {
        chosen = vec![dir.join("journal.redb")];
    }
    let path = rng.pick(&chosen).cloned().unwrap_or_default();
    let size = path.metadata().with_context(|| format!("look at {}", path.display()))?.len();
    if size < FILE_BYTES_MIN {
        return Ok(Effect::Skipped(format!("{} has only {size} bytes", path.display())));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut file = OpenOptions::new().read(true).write(true).open(&path).context("open a file")?;
    let proof = match event.kind {
        Kind::Truncate => {
            let left = rng.range(0, size);
            file.set_len(left).context("cut a file short")?;
            format!("{name} cut from {size} to {left} bytes")
        }
        Kind::Zero => {
            let at = rng.range(0, size / PAGE_BYTES) * PAGE_BYTES;
            let page = vec![0; usize::try_from(PAGE_BYTES).unwrap_or_default()];
            let changed = overwrite(&mut file, at, &page)?;
            format!("page at {at} of {name} zeroed, {changed} bytes of it changed")
        }
        _ => {
            let mut places = Vec::new();
            for _ in 0..BITS {
                let at = rng.range(0, size);
                let mut byte = [0];
                file.seek(SeekFrom::Start(at)).context("seek")?;
                file.read_exact(&mut byte).context("read a byte")?;
                let flipped = byte.map(|byte| byte ^ (1 << rng.range(0, 8)));
                overwrite(&mut file, at, &flipped)?;
                places.push(at);
            }
            format!("{BITS} bits of {name} flipped, at {places:?}")
        }
    };
    file.sync_all().context("write the damage out")?;
    Ok(if proof.contains(" 0 bytes of it") { Effect::unseen(proof) } else { Effect::seen(proof) })
}

/// Writes bytes in place; gives how many differ from what was there.
fn overwrite(file: &mut File, at: u64, bytes: &[u8]) -> anyhow::Result<usize> {
    let mut old = vec![0; bytes.len()];
    file.seek(SeekFrom::Start(at)).context("seek")?;
    file.read_exact(&mut old).context("read what is there")?;
    file.seek(SeekFrom::Start(at)).context("seek")?;
    file.write_all(bytes).context("overwrite")?;
    Ok(old.iter().zip(bytes).filter(|(old, new)| old != new).count())
}

/// Every file in a directory, not in those below, in order.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}

/// Removes what is in a directory, which may be a mount.
fn empty(dir: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(dir).context("list a node's directory")? {
        let path = entry?.path();
        match path.is_dir() {
            true => std::fs::remove_dir_all(&path),
            false => std::fs::remove_file(&path),
        }
        .with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::plan::Target, *};

    fn event(kind: Kind, salt: u64) -> Event {
        let target = Target::Nodes(vec!["d1".into()]);
        Event { id: 0, at_ms: 0, for_ms: 0, kind, target, salt, after_acks: None }
    }

    fn node_dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("chunks")).expect("it is new");
        for name in ["journal.redb", "chunks/1.redb"] {
            std::fs::write(dir.path().join(name), vec![0xab; 50_000]).expect("it can be written");
        }
        dir
    }

    fn differing(dir: &Path) -> usize {
        let paths = [dir.join("journal.redb"), dir.join("chunks/1.redb")];
        let bytes = paths.iter().map(|path| std::fs::read(path).unwrap_or_default());
        bytes.map(|bytes| bytes.iter().filter(|byte| **byte != 0xab).count()).sum()
    }

    #[test]
    fn damage_changes_what_it_says() {
        for salt in 0..20 {
            let dir = node_dir();
            let done = damage(&event(Kind::Flip, salt), dir.path()).expect("there are files");
            assert!(matches!(done, Effect::Done { effective: true, .. }), "{done:?}");
            assert!((1..=8).contains(&differing(dir.path())));
            let dir = node_dir();
            damage(&event(Kind::Zero, salt), dir.path()).expect("there are files");
            assert_eq!(differing(dir.path()), 4096);
        }
    }

    #[test]
    fn a_wiped_directory_is_empty_and_there() {
        let dir = node_dir();
        damage(&event(Kind::Wipe, 1), dir.path()).expect("it can be emptied");
        assert_eq!(std::fs::read_dir(dir.path()).expect("it is there").count(), 0);
    }
}
