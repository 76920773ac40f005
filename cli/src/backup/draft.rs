//! A backup in the making: a directory of another name until all of it is on disk.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_128;

use super::manifest::{MANIFEST_FILE, Manifest, SCHEMA_FILE, Stored, hex};

/// Directory of the rows.
const DATA_DIR: &str = "data";

/// The directory under its temporary name; it goes with this value unless it was published.
pub(super) struct Draft {
    dir: TempDir,
    target: PathBuf,
}

impl Draft {
    /// Begins a backup that is to be at `target`, where nothing may be, or an empty directory.
    pub(super) fn begin(target: &Path) -> anyhow::Result<Self> {
        match fs::read_dir(target).map(|mut entries| entries.next().is_some()) {
            Ok(false) => {}
            Ok(true) => bail!("{} is not empty", target.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("open {}", target.display())),
        }
        let name =
            target.file_name().with_context(|| format!("{} is no name", target.display()))?;
        let parent = match target.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        let prefix = format!(".{}.partial-", name.to_string_lossy());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent);
        let dir = dir.with_context(|| format!("make a directory in {}", parent.display()))?;
        Ok(Self { dir, target: target.to_owned() })
    }

    /// Where it is for now.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Makes the directory of a table's files; gives its path within the backup.
    pub(super) fn table_dir(&self, number: usize) -> anyhow::Result<String> {
        let path = format!("{DATA_DIR}/{number:04}");
        fs::create_dir_all(self.dir().join(&path)).with_context(|| format!("make {path}"))?;
        Ok(path)
    }

    /// Writes the statements that make the tables again.
    pub(super) fn write_schema(&self, text: &str) -> anyhow::Result<Stored> {
        write(&self.dir().join(SCHEMA_FILE), text.as_bytes())?;
        let (bytes, checksum) = (text.len() as u64, hex(xxh3_128(text.as_bytes())));
        Ok(Stored { path: SCHEMA_FILE.to_owned(), bytes, checksum })
    }

    /// Writes the manifest and gives the backup its name.
    pub(super) fn publish(self, manifest: &Manifest) -> anyhow::Result<()> {
        write(&self.dir().join(MANIFEST_FILE), &manifest.to_bytes()?)?;
        sync_dirs(self.dir())?;
        let Self { dir, target } = self;
        fs::rename(dir.path(), &target).with_context(|| format!("make {}", target.display()))?;
        // It has another name now, and is to stay.
        let _ = dir.keep();
        let parent = target.parent().filter(|parent| *parent != Path::new(""));
        sync(parent.unwrap_or(Path::new(".")))
    }
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let written = File::create(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.with_context(|| format!("write {}", path.display()))
}

/// Makes the entries of a directory and of those in it durable.
fn sync_dirs(dir: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_dirs(&entry.path())?;
        }
    }
    sync(dir)
}

fn sync(dir: &Path) -> anyhow::Result<()> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.with_context(|| format!("sync {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::super::manifest::tests::manifest;
    use super::*;

    #[test]
    fn it_is_there_whole_or_not_at_all() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let target = root.path().join("a/backup");
        let entries = || fs::read_dir(root.path().join("a")).expect("it is there").count();
        drop(Draft::begin(&target).expect("nothing is there"));
        assert_eq!(entries(), 0, "what is not published goes");
        fs::create_dir(&target).expect("it can be made");
        let draft = Draft::begin(&target).expect("it is empty");
        draft.write_schema("").expect("it can be written");
        draft.publish(&manifest()).expect("it can be renamed");
        assert_eq!(entries(), 1);
        assert_eq!(Manifest::read(&target).expect("it is whole"), manifest());
        let error = Draft::begin(&target).err().expect("something is there").to_string();
        assert!(error.ends_with("is not empty"), "{error}");
        fs::write(root.path().join("file"), "").expect("it can be written");
        assert!(Draft::begin(&root.path().join("file")).is_err(), "a file is no directory");
    }
}
