//! Raft snapshots: files that stand for a purged log.
//!
//! ```text
//! snap-<term>-<index>.snap
//! head   magic 8 | format u32 | meta bytes u32 | rows u64 | body bytes u64 | xxh3-128 of meta and body 16 | xxh3-64 of
//!        the head before it 8; numbers are little-endian
//! meta   openraft's meta, MessagePack
//! body   per row: key bytes u32 | value bytes u32 | key | value, in order of the keys
//! ```
//!
//! A file is written under a name that ends in `.tmp`, fsynced and renamed, so that a name without it is whole. The
//! published snapshot only moves forward: a build that took longer than the installation of a newer one is thrown away.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{
    files::{damaged, sync_dir},
    types::{SnapshotMeta, decode, encode},
};
use crate::catalog::Catalog;

const MAGIC: [u8; 8] = *b"HYTSNAP1";
const FORMAT: u32 = 1;
const HEAD_BYTES: usize = 56;
const HEAD_SUM_OFFSET: usize = HEAD_BYTES - 8;
/// No meta, key or value is larger; a greater length is damage.
const PIECE_BYTES_MAX: u32 = 1 << 30;

/// An open snapshot file. It stays readable when its name is removed by a newer one.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFile {
    path: PathBuf,
    file: Arc<File>,
}

impl SnapshotFile {
    /// Opens a file.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let file = Arc::new(File::open(&path)?);
        Ok(Self { path, file })
    }

    pub(super) fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Up to `length` bytes from `offset` on.
    pub(super) fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; length];
        let read = self.file.read_at(&mut bytes, offset)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// Reads the whole file and verifies it.
    pub(super) fn load(&self) -> io::Result<(SnapshotMeta, Catalog)> {
        read_snapshot(&self.path, &self.file)
    }
}

/// The snapshots of one directory.
#[derive(Debug)]
pub(super) struct Snapshots {
    dir: PathBuf,
    current: Mutex<Option<(SnapshotMeta, SnapshotFile)>>,
}

impl Snapshots {
    /// Finds the newest whole snapshot and removes all other files of snapshots.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let mut newest: Option<(SnapshotMeta, SnapshotFile)> = None;
        let mut others = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !name.starts_with("snap-") {
                continue;
            }
            match name.ends_with(".snap").then(|| read_meta(&path)) {
                Some(Ok((meta, file))) => {
                    let newer =
                        newest.as_ref().is_none_or(|(old, _)| old.last_log_id < meta.last_log_id);
                    let other =
                        if newer { newest.replace((meta, file)) } else { Some((meta, file)) };
                    others.extend(other.map(|(_, file)| file.path));
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, file = name, "removing an unreadable raft snapshot");
                    others.push(path);
                }
                None => others.push(path),
            }
        }
        for path in others {
            fs::remove_file(path)?;
        }
        Ok(Self { dir: dir.to_owned(), current: Mutex::new(newest) })
    }

    /// The published snapshot.
    pub(super) fn current(&self) -> Option<(SnapshotMeta, SnapshotFile)> {
        self.lock().clone()
    }

    /// Writes a snapshot of the catalog under a temporary name.
    pub(super) fn write(&self, meta: &SnapshotMeta, catalog: &Catalog) -> io::Result<PathBuf> {
        let path = self.dir.join(format!("{}-{:016x}.tmp", stem(meta), rand::random::<u64>()));
        write_snapshot(&path, meta, catalog)?;
        Ok(path)
    }

    /// A name to receive a snapshot under.
    pub(super) fn incoming(dir: &Path) -> PathBuf {
        dir.join(format!("snap-{:016x}.tmp", rand::random::<u64>()))
    }

    /// A file with the content of `snapshot` that may be published here: the received file itself when it lies in this
    /// directory under a temporary name, or else a copy.
    pub(super) fn adopt(&self, snapshot: &SnapshotFile) -> io::Result<PathBuf> {
        let received = snapshot.path.extension().is_some_and(|end| end == "tmp");
        if received && snapshot.path.parent() == Some(&self.dir) {
            File::open(&snapshot.path)?.sync_all()?;
            return Ok(snapshot.path.clone());
        }
        let path = Self::incoming(&self.dir);
        let mut file = File::create(&path)?;
        io::copy(&mut File::open(&snapshot.path)?, &mut file)?;
        file.sync_all()?;
        Ok(path)
    }

    /// Publishes a written and fsynced file, unless a snapshot as new is published already; gives the published one.
    ///
    /// IMPORTANT: this is the only place where the published snapshot changes.
    pub(super) fn commit_snapshot(
        &self,
        meta: SnapshotMeta,
        written: &Path,
    ) -> io::Result<(SnapshotMeta, SnapshotFile)> {
        let mut current = self.lock();
        if let Some(published) =
            current.as_ref().filter(|old| old.0.last_log_id >= meta.last_log_id)
        {
            fs::remove_file(written)?;
            return Ok(published.clone());
        }
        let path = self.dir.join(format!("{}.snap", stem(&meta)));
        fs::rename(written, &path)?;
        sync_dir(&self.dir)?;
        let published = (meta, SnapshotFile::open(path)?);
        let old = current.replace(published.clone());
        if let Some((_, file)) = old {
            fs::remove_file(file.path)?;
        }
        Ok(published)
    }

    fn lock(&self) -> MutexGuard<'_, Option<(SnapshotMeta, SnapshotFile)>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Name of a snapshot, without what says whether it is whole.
fn stem(meta: &SnapshotMeta) -> String {
    format!("snap-{}", meta.snapshot_id)
}

/// Writes through a hash.
struct Hashed<W> {
    inner: W,
    hash: Xxh3,
    bytes: u64,
}

impl<W: Write> Hashed<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.inner.write_all(bytes)
    }
}

fn write_snapshot(path: &Path, meta: &SnapshotMeta, catalog: &Catalog) -> io::Result<()> {
    let mut out =
        Hashed { inner: BufWriter::new(File::create(path)?), hash: Xxh3::new(), bytes: 0 };
    out.inner.write_all(&[0; HEAD_BYTES])?;
    let meta = encode(meta)?;
    out.put(&meta)?;
    let mut rows = 0u64;
    for (key, value) in catalog.rows() {
        out.put(&length(&key)?.to_le_bytes())?;
        out.put(&length(&value)?.to_le_bytes())?;
        out.put(&key)?;
        out.put(&value)?;
        rows += 1;
    }
    let mut head = Vec::with_capacity(HEAD_BYTES);
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&FORMAT.to_le_bytes());
    head.extend_from_slice(&length(&meta)?.to_le_bytes());
    head.extend_from_slice(&rows.to_le_bytes());
    head.extend_from_slice(&(out.bytes - meta.len() as u64).to_le_bytes());
    head.extend_from_slice(&out.hash.digest128().to_le_bytes());
    head.extend_from_slice(&xxh3_64(&head).to_le_bytes());
    let mut file = out.inner.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&head)?;
    file.sync_all()
}

fn length(bytes: &[u8]) -> io::Result<u32> {
    let length = u32::try_from(bytes.len()).ok().filter(|length| *length <= PIECE_BYTES_MAX);
    length.ok_or_else(|| io::Error::other("a catalog row is larger than a raft snapshot can hold"))
}

/// What the head says.
struct Head {
    meta_bytes: u32,
    rows: u64,
    body_bytes: u64,
    hash: u128,
}

fn read_head(path: &Path, mut input: impl Read) -> io::Result<Head> {
    let wrong = || damaged(path.display());
    let mut head = [0; HEAD_BYTES];
    input.read_exact(&mut head)?;
    let (signed, sum) = head.split_last_chunk::<8>().ok_or_else(wrong)?;
    debug_assert_eq!(signed.len(), HEAD_SUM_OFFSET);
    if u64::from_le_bytes(*sum) != xxh3_64(signed) {
        return Err(wrong());
    }
    let mut rest = signed;
    let mut bytes = |count: usize| {
        let (field, after) = rest.split_at_checked(count)?;
        rest = after;
        Some(field)
    };
    let mut fields = || {
        let magic = bytes(8)?;
        let format = u32::from_le_bytes(bytes(4)?.try_into().ok()?);
        let meta_bytes = u32::from_le_bytes(bytes(4)?.try_into().ok()?);
        let rows = u64::from_le_bytes(bytes(8)?.try_into().ok()?);
        let body_bytes = u64::from_le_bytes(bytes(8)?.try_into().ok()?);
        let hash = u128::from_le_bytes(bytes(16)?.try_into().ok()?);
        let ours = magic == MAGIC && format == FORMAT && meta_bytes <= PIECE_BYTES_MAX;
        ours.then_some(Head { meta_bytes, rows, body_bytes, hash })
    };
    fields().ok_or_else(wrong)
}

/// Reads through a hash.
struct Checked<R> {
    inner: R,
    hash: Xxh3,
    left: u64,
}

impl<R: Read> Checked<R> {
    fn take(&mut self, path: &Path, count: u32) -> io::Result<Vec<u8>> {
        if count > PIECE_BYTES_MAX || u64::from(count) > self.left {
            return Err(damaged(path.display()));
        }
        let mut bytes = vec![0; count as usize];
        self.inner.read_exact(&mut bytes)?;
        self.hash.update(&bytes);
        self.left -= u64::from(count);
        Ok(bytes)
    }

    fn number(&mut self, path: &Path) -> io::Result<u32> {
        let bytes = self.take(path, 4)?;
        let bytes = bytes.first_chunk().ok_or_else(|| damaged(path.display()))?;
        Ok(u32::from_le_bytes(*bytes))
    }
}

fn read_snapshot(path: &Path, file: &File) -> io::Result<(SnapshotMeta, Catalog)> {
    let mut input = BufReader::new(file);
    input.seek(SeekFrom::Start(0))?;
    let head = read_head(path, &mut input)?;
    let left = head.body_bytes.saturating_add(u64::from(head.meta_bytes));
    let mut input = Checked { inner: input, hash: Xxh3::new(), left };
    let meta = input.take(path, head.meta_bytes)?;
    let mut rows = Vec::new();
    for _ in 0..head.rows {
        let (key, value) = (input.number(path)?, input.number(path)?);
        rows.push((input.take(path, key)?, input.take(path, value)?));
    }
    if input.left != 0 || input.hash.digest128() != head.hash {
        return Err(damaged(path.display()));
    }
    let catalog = Catalog::from_rows(rows)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok((decode(&meta)?, catalog))
}

/// The meta of a whole file.
fn read_meta(path: &Path) -> io::Result<(SnapshotMeta, SnapshotFile)> {
    let file = SnapshotFile::open(path.to_owned())?;
    let (meta, _) = file.load()?;
    Ok((meta, file))
}

#[cfg(test)]
mod tests {
    use hypertide_proto::{ids::Csn, schema::TableSchema};
    use openraft::{CommittedLeaderId, LogId};
    use tempfile::TempDir;

    use super::*;
    use crate::catalog::{Changes, Command};

    fn meta(index: u64) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: Some(LogId::new(CommittedLeaderId::new(1, 1), index)),
            snapshot_id: format!("1-{index}"),
            ..SnapshotMeta::default()
        }
    }

    fn catalog(tables: u64) -> Catalog {
        let mut catalog = Catalog::default();
        for number in 1..=tables {
            let command = Command::CreateTable {
                schema: "public".to_owned(),
                name: format!("t{number}"),
                owner: "tester".to_owned(),
                columns: TableSchema::default(),
                if_not_exists: false,
            };
            let made = catalog.apply(&command, Csn::at(number, 0), 1, &mut Changes::default());
            made.expect("a new name");
        }
        catalog
    }

    fn names(dir: &Path) -> Vec<String> {
        let files = fs::read_dir(dir).expect("a directory");
        let mut names: Vec<String> = files
            .map(|file| file.expect("readable").file_name().into_string().expect("a name"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_stale_build_does_not_replace_a_newer_snapshot() {
        let dir = TempDir::new().expect("a directory");
        let snapshots = Snapshots::open(dir.path()).expect("empty");
        let stale = snapshots.write(&meta(5), &catalog(5)).expect("written");
        let newer = snapshots.write(&meta(9), &catalog(9)).expect("written");
        snapshots.commit_snapshot(meta(9), &newer).expect("published");
        let (published, _) = snapshots.commit_snapshot(meta(5), &stale).expect("thrown away");
        assert_eq!(published, meta(9));
        assert_eq!(names(dir.path()), ["snap-1-9.snap"]);
        let (found, file) = snapshots.current().expect("published");
        assert_eq!(found, meta(9));
        assert_eq!(file.load().expect("whole"), (meta(9), catalog(9)));
    }

    #[test]
    fn opening_keeps_the_newest_whole_snapshot_only() {
        let dir = TempDir::new().expect("a directory");
        for index in [3, 7, 8] {
            let path = dir.path().join(format!("snap-1-{index}.snap"));
            write_snapshot(&path, &meta(index), &catalog(index)).expect("written");
        }
        let torn = dir.path().join("snap-1-8.snap");
        let bytes = fs::read(&torn).expect("readable");
        fs::write(&torn, &bytes[..bytes.len() - 1]).expect("written");
        fs::write(dir.path().join("snap-0123.tmp"), b"half").expect("written");
        let snapshots = Snapshots::open(dir.path()).expect("opened");
        assert_eq!(snapshots.current().expect("the one before").0, meta(7));
        assert_eq!(names(dir.path()), ["snap-1-7.snap"]);
    }

    #[test]
    fn every_flipped_bit_and_every_missing_end_is_noticed() {
        let dir = TempDir::new().expect("a directory");
        let path = dir.path().join("snap");
        write_snapshot(&path, &meta(3), &catalog(3)).expect("written");
        let bytes = fs::read(&path).expect("readable");
        let load = |bytes: &[u8]| {
            fs::write(&path, bytes).expect("written");
            SnapshotFile::open(path.clone()).expect("there").load()
        };
        assert!(load(&bytes).is_ok());
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(load(&bad).is_err(), "byte {at}");
            assert!(load(&bytes[..at]).is_err(), "length {at}");
        }
    }
}
