//! A disk in memory that remembers what was asked of it, in order: what a power cut at any moment could have left of
//! it is made from that log. It also errs, on demand.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::Duration,
};

use hypertide_storage::Disk;
use redb::StorageBackend;

use super::Random;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;
/// Longest time that syncs are held.
const HOLD_MAX: Duration = Duration::from_secs(60);

type Bytes = Arc<Vec<u8>>;

/// One change that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    Create { path: PathBuf, file: usize },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
    SyncDir { dir: PathBuf },
    Write { file: usize, offset: usize, data: Bytes },
    SetLen { file: usize, len: usize },
    Sync { file: usize },
}

/// How a change is made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing of it happens.
    Error,
    /// Of a write, half; of all else nothing.
    Short,
    /// There is no room.
    Full,
    /// There is no file handle; only for opening a file, or a directory that is to be synced.
    NoHandle,
}

impl Failure {
    fn error(self) -> io::Error {
        match self {
            Self::Error | Self::Short => io::Error::other("the disk was told to fail"),
            Self::Full => io::ErrorKind::StorageFull.into(),
            Self::NoHandle => io::Error::from_raw_os_error(nix::errno::Errno::EMFILE as i32),
        }
    }
}

/// Files by name, and what is in them.
#[derive(Clone, Debug, Default)]
pub struct Image {
    names: BTreeMap<PathBuf, usize>,
    files: Vec<Bytes>,
}

impl Image {
    /// Bytes that tell this image from others.
    pub fn fingerprint(&self) -> u128 {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for (path, file) in &self.names {
            hash.update(path.as_os_str().as_encoded_bytes());
            hash.update(&self.files[*file]);
        }
        hash.digest128()
    }

    pub fn paths(&self) -> Vec<PathBuf> {
        self.names.keys().cloned().collect()
    }

    pub fn bytes(&self, path: &Path) -> &[u8] {
        &self.files[self.names[path]]
    }

    pub fn set_bytes(&mut self, path: &Path, bytes: Vec<u8>) {
        let file = self.names[path];
        self.files[file] = Arc::new(bytes);
    }

    pub fn remove(&mut self, path: &Path) {
        self.names.remove(path);
    }

    /// Writes the files below a directory of the machine's own, for somebody to look at.
    pub fn dump(&self, dir: &Path) {
        for (path, file) in &self.names {
            let path = dir.join(path.strip_prefix("/").unwrap());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, &**self.files.get(*file).unwrap()).unwrap();
        }
    }
}

#[derive(Debug, Default)]
struct State {
    now: Image,
    log: Vec<Op>,
    /// Calls that change something, failed ones included.
    calls: u64,
    /// The call that fails, how, and whether all after it do, too.
    fail: Option<(u64, Failure, bool)>,
    /// Reads of this file fail.
    unreadable: Option<PathBuf>,
    free_bytes: Option<u64>,
    /// Syncs wait.
    held: bool,
    /// Numbers drawn so far.
    drawn: u64,
}

/// A machine whose disk is a log.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    state: Arc<Mutex<State>>,
    released: Arc<Condvar>,
}

impl Machine {
    pub fn new(image: Image) -> Self {
        let machine = Self::default();
        machine.lock().now = image;
        machine
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What the disk holds now, synced or not.
    pub fn image(&self) -> Image {
        self.lock().now.clone()
    }

    /// Changes so far.
    pub fn log(&self) -> Vec<Op> {
        self.lock().log.clone()
    }

    pub fn log_len(&self) -> usize {
        self.lock().log.len()
    }

    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    pub fn syncs(&self) -> usize {
        self.lock().log.iter().filter(|op| matches!(op, Op::Sync { .. })).count()
    }

    /// Lets the call of this number fail, counted from now, and with `stay` all after it.
    pub fn fail_at(&self, call: u64, failure: Failure, stay: bool) {
        let mut state = self.lock();
        let at = state.calls + call;
        state.fail = Some((at, failure, stay));
    }

    pub fn heal(&self) {
        let mut state = self.lock();
        state.fail = None;
        state.unreadable = None;
        state.free_bytes = None;
    }

    /// Lets syncs wait until the guard is dropped, so that what piles up behind one can be told for certain.
    pub fn hold_syncs(&self) -> HeldSyncs {
        self.lock().held = true;
        HeldSyncs(self.clone())
    }

    pub fn make_unreadable(&self, path: &Path) {
        self.lock().unreadable = Some(path.to_owned());
    }

    pub fn set_free_bytes(&self, free: u64) {
        self.lock().free_bytes = Some(free);
    }

    /// Changes a file behind the back of whoever has it open.
    pub fn set_bytes(&self, path: &Path, bytes: Vec<u8>) {
        self.lock().now.set_bytes(path, bytes);
    }
}

/// Syncs wait while it lives.
#[derive(Debug)]
pub struct HeldSyncs(Machine);

impl Drop for HeldSyncs {
    fn drop(&mut self) {
        self.0.lock().held = false;
        self.0.released.notify_all();
    }
}

impl State {
    /// Counts a call that changes something; how it fails, when it does.
    fn call(&mut self, opening: bool) -> Option<Failure> {
        self.calls += 1;
        let (at, failure, stay) = self.fail?;
        let due = self.calls == at || stay && self.calls > at;
        // What only opening something can meet waits for the next one.
        if failure == Failure::NoHandle {
            let due = opening && self.calls >= at;
            if due && !stay {
                self.fail = None;
            }
            return due.then_some(failure);
        }
        due.then_some(failure)
    }

    fn done(&mut self, op: Op) {
        apply(&mut self.now, &op);
        self.log.push(op);
    }
}

fn apply(image: &mut Image, op: &Op) {
    match op {
        Op::Create { path, file } => {
            image.names.insert(path.clone(), *file);
            while image.files.len() <= *file {
                image.files.push(Arc::default());
            }
        }
        Op::Rename { from, to } => {
            if let Some(file) = image.names.remove(from) {
                image.names.insert(to.clone(), file);
            }
        }
        Op::Remove { path } => drop(image.names.remove(path)),
        Op::Write { file, offset, data } => {
            let bytes = Arc::make_mut(&mut image.files[*file]);
            if bytes.len() < offset + data.len() {
                bytes.resize(offset + data.len(), 0);
            }
            bytes[*offset..offset + data.len()].copy_from_slice(data);
        }
        Op::SetLen { file, len } => Arc::make_mut(&mut image.files[*file]).resize(*len, 0),
        Op::SyncDir { .. } | Op::Sync { .. } => {}
    }
}

impl Disk for Machine {
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        let mut state = self.lock();
        if let Some(failure) = state.call(true) {
            return Err(failure.error());
        }
        let file = match state.now.names.get(path) {
            Some(file) => *file,
            None => {
                let file = state.now.files.len();
                state.now.files.push(Arc::default());
                state.done(Op::Create { path: path.to_owned(), file });
                file
            }
        };
        Ok(Box::new(Open { machine: self.clone(), file }))
    }

    fn size(&self, path: &Path) -> io::Result<Option<u64>> {
        let state = self.lock();
        Ok(state.now.names.get(path).map(|file| state.now.files[*file].len() as u64))
    }

    fn make_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn keep_only_dir(&self, all: &Path, dir: &Path) -> io::Result<()> {
        let other = |path: &&PathBuf| path.starts_with(all) && !path.starts_with(dir);
        let others: Vec<PathBuf> = self.lock().now.names.keys().filter(other).cloned().collect();
        others.iter().try_for_each(|path| self.remove(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let state = self.lock();
        let names = state.now.names.keys();
        Ok(names.filter(|path| path.parent() == Some(dir)).cloned().collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        if let Some(failure) = state.call(false) {
            return Err(failure.error());
        }
        state.done(Op::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        if !state.now.names.contains_key(path) {
            return Ok(());
        }
        if let Some(failure) = state.call(false) {
            return Err(failure.error());
        }
        state.done(Op::Remove { path: path.to_owned() });
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock();
        if let Some(failure) = state.call(true) {
            return Err(failure.error());
        }
        state.done(Op::SyncDir { dir: dir.to_owned() });
        Ok(())
    }

    fn read_note(&self, path: &Path) -> io::Result<Option<String>> {
        let state = self.lock();
        let file = state.now.names.get(path);
        Ok(file.map(|file| String::from_utf8_lossy(&state.now.files[*file]).into_owned()))
    }

    fn write_note(&self, path: &Path, text: &str) -> io::Result<()> {
        let open = self.open(path)?;
        open.set_len(0)?;
        open.write(0, text.as_bytes())?;
        open.sync_data()
    }

    fn forget_cached(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(self.lock().free_bytes.unwrap_or(1 << 40))
    }

    /// The same in every run, and another one after every start: an image that grew out of another has more files.
    fn draw_id(&self) -> [u8; 16] {
        let mut state = self.lock();
        state.drawn += 1;
        let mut random = Random((state.now.files.len() as u64) << 32 | state.drawn);
        let (high, low) = (random.next(), random.next());
        (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
    }
}

/// A file that somebody has open. It stays whatever becomes of its name.
#[derive(Debug)]
struct Open {
    machine: Machine,
    file: usize,
}

impl StorageBackend for Open {
    fn len(&self) -> io::Result<u64> {
        Ok(self.machine.lock().now.files[self.file].len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.machine.lock();
        let unreadable = state.unreadable.as_ref().and_then(|path| state.now.names.get(path));
        if unreadable == Some(&self.file) {
            return Err(io::Error::from_raw_os_error(nix::errno::Errno::EIO as i32));
        }
        let offset = offset as usize;
        let bytes = state.now.files[self.file].get(offset..offset + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.machine.lock();
        match state.call(false) {
            Some(failure) => Err(failure.error()),
            None => {
                state.done(Op::SetLen { file: self.file, len: len as usize });
                Ok(())
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        let state = self.machine.lock();
        let held = self.machine.released.wait_timeout_while(state, HOLD_MAX, |state| state.held);
        let (mut state, held) = held.unwrap();
        assert!(!held.timed_out(), "somebody forgot to let syncs go on");
        match state.call(false) {
            Some(failure) => Err(failure.error()),
            None => {
                state.done(Op::Sync { file: self.file });
                Ok(())
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.machine.lock();
        let (file, offset) = (self.file, offset as usize);
        match state.call(false) {
            Some(Failure::Short) => {
                let data = Arc::new(data[..data.len() / 2].to_vec());
                state.done(Op::Write { file, offset, data });
                Err(Failure::Short.error())
            }
            Some(failure) => Err(failure.error()),
            None => {
                state.done(Op::Write { file, offset, data: Arc::new(data.to_vec()) });
                Ok(())
            }
        }
    }
}

/// Goes through a log, and makes what a power cut after each change may leave.
#[derive(Debug)]
pub struct Cuts<'a> {
    log: &'a [Op],
    at: usize,
    durable: Image,
    /// By file, what was written since its last sync.
    unsynced: BTreeMap<usize, Vec<&'a Op>>,
    /// By directory, what became of its names since its last sync.
    unnamed: BTreeMap<PathBuf, Vec<&'a Op>>,
}

impl<'a> Cuts<'a> {
    /// The cuts of a run that began with `image`.
    pub fn new(image: Image, log: &'a [Op]) -> Self {
        let (unsynced, unnamed) = (BTreeMap::new(), BTreeMap::new());
        Self { log, at: 0, durable: image, unsynced, unnamed }
    }

    /// Lets one more change happen; false when there is none.
    pub fn step(&mut self) -> bool {
        let Some(op) = self.log.get(self.at) else { return false };
        self.at += 1;
        let dir = |path: &Path| path.parent().unwrap().to_owned();
        match op {
            Op::Create { path, file } => {
                while self.durable.files.len() <= *file {
                    self.durable.files.push(Arc::default());
                }
                self.unnamed.entry(dir(path)).or_default().push(op);
            }
            Op::Rename { from, to } => {
                assert_eq!(dir(from), dir(to), "names change within a directory");
                self.unnamed.entry(dir(to)).or_default().push(op);
            }
            Op::Remove { path } => self.unnamed.entry(dir(path)).or_default().push(op),
            Op::SyncDir { dir } => {
                for op in self.unnamed.remove(dir).unwrap_or_default() {
                    apply(&mut self.durable, op);
                }
            }
            Op::Write { file, .. } | Op::SetLen { file, .. } => {
                self.unsynced.entry(*file).or_default().push(op);
            }
            Op::Sync { file } => {
                for op in self.unsynced.remove(file).unwrap_or_default() {
                    apply(&mut self.durable, op);
                }
            }
        }
        true
    }

    /// Changes that happened so far.
    pub fn at(&self) -> usize {
        self.at
    }

    /// What a cut now leaves, by `seed`: of what was not synced nothing, all, the first part, or any sectors.
    pub fn image(&self, seed: u64) -> Image {
        let mut random = Random(seed.wrapping_mul(1_000_003).wrapping_add(self.at as u64));
        let mut image = self.durable.clone();
        for ops in self.unnamed.values() {
            let kept = match seed {
                0 => 0,
                1 => ops.len(),
                _ => random.below(ops.len() as u64 + 1) as usize,
            };
            // A directory keeps the order of its changes.
            ops[..kept].iter().for_each(|op| apply(&mut image, op));
        }
        let live: BTreeSet<usize> = image.names.values().copied().collect();
        for (_, ops) in self.unsynced.iter().filter(|(file, _)| live.contains(file)) {
            match seed {
                0 => {}
                1 => ops.iter().for_each(|op| apply(&mut image, op)),
                _ if random.below(3) == 0 => {
                    let kept = random.below(ops.len() as u64 + 1) as usize;
                    ops[..kept].iter().for_each(|op| apply(&mut image, op));
                }
                _ => spill(&mut image, ops, &mut random),
            }
        }
        image
    }
}

/// Some sectors of what was written, in any order, reach the disk.
fn spill(image: &mut Image, ops: &[&Op], random: &mut Random) {
    let keep_of_eight = 1 + random.below(8);
    for op in ops {
        match op {
            Op::Write { file, offset, data } => {
                let mut from = 0;
                while from < data.len() {
                    // Sectors of the disk, not of the write.
                    let to = (from + SECTOR - (offset + from) % SECTOR).min(data.len());
                    if random.below(8) < keep_of_eight {
                        let piece = Arc::new(data[from..to].to_vec());
                        let op = Op::Write { file: *file, offset: offset + from, data: piece };
                        apply(image, &op);
                    }
                    from = to;
                }
            }
            op => {
                if random.below(2) == 0 {
                    apply(image, op);
                }
            }
        }
    }
}
