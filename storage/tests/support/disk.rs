//! A disk that loses power: until a sync, writes are only remembered; at the chosen step some of them reach the file.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use hypertide_storage::{Disk, FileDisk};
use redb::{StorageBackend, backends::FileBackend};

use super::Random;

const SECTOR: u64 = 512;

/// What all files of a machine share.
#[derive(Debug)]
pub struct Power {
    steps: AtomicU64,
    pub syncs: AtomicU64,
    /// The step at which the power goes.
    cut_at: u64,
    pub off: AtomicBool,
    random: Mutex<u64>,
    files: Mutex<Vec<Arc<Cache>>>,
}

impl Power {
    pub fn new(cut_at: u64, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            steps: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            cut_at,
            off: AtomicBool::new(false),
            random: Mutex::new(seed),
            files: Mutex::default(),
        })
    }

    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::SeqCst)
    }

    fn step(&self) -> io::Result<()> {
        if self.off.load(Ordering::SeqCst) {
            return Err(io::Error::other("the power is off"));
        }
        if self.steps.fetch_add(1, Ordering::SeqCst) + 1 == self.cut_at {
            self.cut();
            return Err(io::Error::other("the power went off"));
        }
        Ok(())
    }

    /// Takes the power: of every file some sectors written since its last sync reach the disk.
    pub fn cut(&self) {
        if self.off.swap(true, Ordering::SeqCst) {
            return;
        }
        let mut seed = self.random.lock().unwrap();
        let mut random = Random(*seed);
        for file in self.files.lock().unwrap().iter() {
            file.spill(&mut random);
        }
        *seed = random.0;
    }
}

/// The page cache of a file.
#[derive(Debug)]
pub struct Cache {
    file: FileBackend,
    state: Mutex<CacheState>,
}

#[derive(Debug)]
struct CacheState {
    len: u64,
    dirty: BTreeMap<u64, Vec<u8>>,
}

impl Cache {
    fn spill(&self, random: &mut Random) {
        let state = self.state.lock().unwrap();
        // A length that was never synced may be kept or lost; with it kept, more can be torn.
        if self.file.len().unwrap() < state.len && random.below(2) == 0 {
            self.file.set_len(state.len).unwrap();
        }
        let len = self.file.len().unwrap();
        let keep_of_eight = random.below(9);
        for (sector, bytes) in &state.dirty {
            let start = sector * SECTOR;
            if start + SECTOR <= len && random.below(8) < keep_of_eight {
                self.file.write(start, bytes).unwrap();
            }
        }
    }
}

#[derive(Debug)]
pub struct CuttingDisk(pub Arc<Power>);

impl Disk for CuttingDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        self.0.step()?;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path)?;
        let file = FileBackend::new(file).unwrap();
        let len = file.len()?;
        let state = Mutex::new(CacheState { len, dirty: BTreeMap::new() });
        let cache = Arc::new(Cache { file, state });
        self.0.files.lock().unwrap().push(Arc::clone(&cache));
        Ok(Box::new(Cutting { cache, power: Arc::clone(&self.0) }))
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        FileDisk.free_bytes(dir)
    }
}

#[derive(Debug)]
struct Cutting {
    cache: Arc<Cache>,
    power: Arc<Power>,
}

impl StorageBackend for Cutting {
    fn len(&self) -> io::Result<u64> {
        Ok(self.cache.state.lock().unwrap().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.power.off.load(Ordering::SeqCst) {
            return Err(io::Error::other("the power is off"));
        }
        let state = self.cache.state.lock().unwrap();
        if offset + out.len() as u64 > state.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let stored = self.cache.file.len()?;
        let there = stored.saturating_sub(offset).min(out.len() as u64) as usize;
        out.fill(0);
        self.cache.file.read(offset, &mut out[..there])?;
        let end = offset + out.len() as u64;
        for (sector, bytes) in state.dirty.range(offset / SECTOR..end.div_ceil(SECTOR)) {
            let start = sector * SECTOR;
            let (from, to) = (start.max(offset), (start + SECTOR).min(end));
            out[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.power.step()?;
        let mut state = self.cache.state.lock().unwrap();
        // Shrinking is made durable at once, which is the harder case for a database.
        if len < state.len {
            state.dirty.split_off(&(len / SECTOR));
            if len < self.cache.file.len()? {
                self.cache.file.set_len(len)?;
            }
        }
        state.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.power.step()?;
        self.power.syncs.fetch_add(1, Ordering::SeqCst);
        let mut state = self.cache.state.lock().unwrap();
        if self.cache.file.len()? != state.len {
            self.cache.file.set_len(state.len)?;
        }
        for (sector, bytes) in std::mem::take(&mut state.dirty) {
            let start = sector * SECTOR;
            let fits = SECTOR.min(state.len - start) as usize;
            self.cache.file.write(start, &bytes[..fits])?;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.power.step()?;
        let end = offset + data.len() as u64;
        for sector in offset / SECTOR..end.div_ceil(SECTOR) {
            let start = sector * SECTOR;
            let (from, to) = (start.max(offset), (start + SECTOR).min(end));
            let known = self.cache.state.lock().unwrap().dirty.get(&sector).cloned();
            let mut bytes = match known {
                Some(bytes) => bytes,
                None => {
                    let mut bytes = vec![0; SECTOR as usize];
                    let stored = self.cache.file.len()?;
                    let there = stored.saturating_sub(start).min(SECTOR) as usize;
                    self.cache.file.read(start, &mut bytes[..there])?;
                    bytes
                }
            };
            bytes[(from - start) as usize..(to - start) as usize]
                .copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize]);
            self.cache.state.lock().unwrap().dirty.insert(sector, bytes);
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        Ok(())
    }
}
