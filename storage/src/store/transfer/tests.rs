//! What a copy leaves when it is wrong, or when its receiver stops in the middle of it.

use std::{
    io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use hypertide_proto::{
    decision::{ChunkLink, Decision, Fate},
    ids::{AccessId, Boot, Epoch, TableId, TxnId},
    predicate::Predicate,
};
use redb::{BackendError, StorageBackend};
use tempfile::TempDir;

use super::*;
use crate::{Disk, FileDisk, Part, ScanRequest, StoreConfig, batch};

mod life;

const CHUNK: ChunkId = ChunkId(5);

fn txn(seq: u64) -> TxnId {
    TxnId { access: AccessId(1), boot: Boot(1), seq }
}

fn spec() -> ChunkSpec {
    ChunkSpec {
        chunk: CHUNK,
        table: TableId(1),
        time_column: Some("time".into()),
        order_columns: Vec::new(),
        origin: Vec::new(),
    }
}

fn rows(seed: i64, count: i64) -> RecordBatch {
    let time: ArrayRef = Arc::new(Int64Array::from_iter_values((0..count).map(|i| seed + i * 3)));
    let value = (0..count).map(|i| (i * seed).wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64) >> 9);
    let value: ArrayRef = Arc::new(Int64Array::from_iter_values(value));
    RecordBatch::try_from_iter([("time", time), ("value", value)]).expect("of one length")
}

fn open(dir: &Path, disk: Arc<dyn Disk>) -> Result<Arc<ChunkStore>, Error> {
    let config = StoreConfig {
        flush_age: std::time::Duration::from_secs(3600),
        space_reserve_bytes: 0,
        ..StoreConfig::new(dir)
    };
    ChunkStore::open_on(config, disk)
}

fn on_files(dir: &Path) -> Arc<ChunkStore> {
    open(dir, Arc::new(FileDisk)).expect("opens")
}

/// Commits rows at `seq * 10`, after the commit `prev`.
fn write(store: &ChunkStore, seq: u64, prev: u64, batch: &RecordBatch) {
    write_part(store, (seq, prev), batch::encode(batch).expect("encodes"));
}

fn prepare(store: &ChunkStore, seq: u64, encoded: batch::Encoded) -> Result<(), Error> {
    let batch::Encoded { rows, hash, payload, decoded_bytes } = encoded;
    let part =
        Part { spec: spec(), epoch: Epoch(1), number: 0, rows, hash, payload, decoded_bytes };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("builds").block_on(store.prepare(txn(seq), vec![part]))
}

fn write_part(store: &ChunkStore, (seq, prev): (u64, u64), encoded: batch::Encoded) {
    prepare(store, seq, encoded).expect("is journaled");
    let links = vec![ChunkLink { chunk: CHUNK, prev: Csn(prev) }];
    let fate = Fate::Committed { csn: Csn(seq * 10), links };
    store.decide(&[Decision { txn: txn(seq), fate }]).expect("is decided");
    // A flush of nothing waits until the decision is durable.
    store.flush(&[ChunkId(0)]).expect("flushes");
}

/// Rows of a snapshot: how many, and a sum over their bits.
fn seen(store: &ChunkStore, snapshot: u64) -> (usize, i64) {
    let request = ScanRequest {
        chunk: CHUNK,
        snapshot: Csn(snapshot),
        own: None,
        columns: rows(0, 0).schema(),
        predicate: Predicate::default(),
    };
    let mut sum = (0, 0i64);
    for batch in store.scan(request).expect("scans") {
        let batch = batch.expect("reads");
        sum.0 += batch.num_rows();
        for column in batch.columns() {
            let column = column.as_any().downcast_ref::<Int64Array>().expect("it is one");
            let fold = |sum: i64, value: i64| sum.wrapping_add(value.wrapping_mul(value | 1));
            sum.1 = column.values().iter().copied().fold(sum.1, fold);
        }
    }
    sum
}

type State = (Option<Point>, Vec<(usize, i64)>);

fn state(store: &ChunkStore) -> State {
    let applied = store.standing(CHUNK).map(|standing| standing.applied);
    (applied, (1..=5).map(|seq| seen(store, seq * 10)).collect())
}

/// A replica with five commits, flushed, merged with later ones or still in memory.
fn source() -> (TempDir, Arc<ChunkStore>) {
    let dir = tempfile::tempdir().expect("makes");
    let store = on_files(dir.path());
    for seq in 1..=5 {
        write(&store, seq, seq * 10 - 10, &rows(seq as i64, 400 * seq as i64));
        if seq % 2 == 0 {
            store.flush(&[]).expect("flushes");
        }
    }
    (dir, store)
}

fn wanted(from: Option<Point>) -> Wanted {
    let from = from.map(|point| (point.csn, point.chain));
    Wanted { chunk: CHUNK, from, to: Csn(0), chain: None }
}

fn pieces(source: &ChunkStore, wanted: Wanted) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let outgoing = source.outgoing(wanted).expect("is there").expect("is applied");
    let kept = |piece| {
        pieces.push(piece);
        Ok(())
    };
    outgoing.send(kept).expect("is sent");
    pieces
}

/// Takes pieces in, as far as it goes.
fn take(target: &ChunkStore, wanted: Wanted, pieces: &[Piece]) -> Result<Option<Installed>, Error> {
    let Some((Piece::Start(start), rest)) = pieces.split_first() else {
        return Err(Error::Invalid("no start".into()));
    };
    let mut incoming = target.incoming(spec(), wanted, start.clone())?;
    for piece in rest {
        if incoming.take(piece.clone())? {
            return incoming.finish();
        }
    }
    Err(Error::Invalid("no end".into()))
}

/// Ways to spoil one piece.
fn spoiled(piece: &Piece) -> Vec<Piece> {
    let flipped = |bytes: &Bytes, at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 0x20;
        Bytes::from(bytes)
    };
    match piece {
        Piece::Start(start) => {
            let mut wrong = [start.clone(), start.clone(), start.clone(), start.clone()];
            wrong[0].to.chain ^= 1;
            wrong[1].to.csn.0 += 1;
            wrong[2].to.rows += 1;
            wrong[3].from.chain ^= 1;
            wrong.map(Piece::Start).to_vec()
        }
        Piece::Commits(commits) => {
            let mut wrong = [(); 5].map(|()| commits.clone());
            wrong[0][0].hash ^= 1;
            wrong[1][0].rows += 1;
            wrong[2][0].txn.seq += 1;
            wrong[3].pop();
            wrong[4].swap(0, 1);
            wrong.map(Piece::Commits).to_vec()
        }
        Piece::Segment(key, bytes) => {
            let other = SegmentKey { segment: key.segment + 1, ..*key };
            let flip = |at| Piece::Segment(*key, flipped(bytes, at));
            vec![Piece::Segment(other, bytes.clone()), flip(3), flip(bytes.len() / 2)]
        }
        Piece::Extent(bytes) => {
            let ats = [0, 30, bytes.len() / 2, bytes.len() - 1];
            let mut wrong: Vec<_> = ats.map(|at| Piece::Extent(flipped(bytes, at))).to_vec();
            wrong.push(Piece::Extent(bytes.slice(..bytes.len() - 1)));
            wrong
        }
        Piece::End(end) => {
            let (fewer, other) = (end.pieces - 1, end.digest ^ 1);
            vec![
                Piece::End(End { pieces: fewer, ..*end }),
                Piece::End(End { digest: other, ..*end }),
            ]
        }
    }
}

#[test]
fn a_copy_that_is_wrong_anywhere_changes_nothing() {
    let (_kept, source) = source();
    let dir = tempfile::tempdir().expect("makes");
    let target = on_files(dir.path());
    write(&target, 1, 0, &rows(1, 400));
    let before = state(&target);
    let mut tried = 0;
    for from in [None, before.0] {
        let wanted = wanted(from);
        let pieces = pieces(&source, wanted);
        assert!(matches!(&pieces[0], Piece::Start(start) if start.whole == from.is_none()));
        let mut copies = Vec::new();
        for (at, piece) in pieces.iter().enumerate() {
            for wrong in spoiled(piece) {
                let mut copy = pieces.clone();
                copy[at] = wrong;
                copies.push(copy);
            }
            let (mut missing, mut twice) = (pieces.clone(), pieces.clone());
            missing.remove(at);
            copies.push(missing);
            twice.insert(at, piece.clone());
            // The end is the end, whatever comes after it.
            copies.extend((at + 1 < pieces.len()).then_some(twice));
        }
        for copy in copies {
            tried += 1;
            let taken = take(&target, wanted, &copy);
            assert!(matches!(taken, Err(Error::Invalid(_))), "{taken:?}");
        }
        assert_eq!(state(&target), before);
        assert!(target.damaged().is_empty());
    }
    assert!(tried > 80, "{tried}");
    let wanted = wanted(before.0);
    let installed = take(&target, wanted, &pieces(&source, wanted)).expect("is right");
    assert!(installed.is_some_and(|installed| !installed.whole));
    assert_eq!(state(&target), state(&source));
}

#[test]
fn a_copy_is_not_taken_by_a_replica_that_moved_on() {
    let (_kept, source) = source();
    let dir = tempfile::tempdir().expect("makes");
    let target = on_files(dir.path());
    write(&target, 1, 0, &rows(1, 400));
    let from = target.standing(CHUNK).map(|standing| standing.applied);
    let (delta, whole) = (pieces(&source, wanted(from)), pieces(&source, wanted(None)));
    for seq in 2..=6 {
        write(&target, seq, seq * 10 - 10, &rows(seq as i64, 400 * seq as i64));
        if seq == 2 {
            target.flush(&[]).expect("flushes");
        }
    }
    // Flushed beyond where the delta begins.
    assert_eq!(take(&target, wanted(from), &delta).expect("is right"), None);
    // What is in memory goes on from where the whole copy ends.
    let before = state(&target);
    assert!(take(&target, wanted(None), &whole).expect("is right").is_some());
    assert_eq!(state(&target), before);
    assert_eq!(target.standing(CHUNK).map(|standing| standing.applied.csn), Some(Csn(60)));
    // Flushed beyond where the whole copy ends.
    target.flush(&[]).expect("flushes");
    assert_eq!(take(&target, wanted(None), &whole).expect("is right"), None);
    assert_eq!(state(&target), before);
}

/// Files of the machine, of which every write fails from the chosen one on.
#[derive(Debug)]
struct Stopping {
    steps: Arc<AtomicU64>,
    stop_at: u64,
}

#[derive(Debug)]
struct StoppingFile {
    file: Box<dyn StorageBackend>,
    steps: Arc<AtomicU64>,
    stop_at: u64,
}

impl StoppingFile {
    fn step(&self) -> io::Result<()> {
        match self.steps.fetch_add(1, Ordering::SeqCst) < self.stop_at {
            true => Ok(()),
            false => Err(io::Error::other("the machine stopped")),
        }
    }
}

impl Disk for Stopping {
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        let (file, steps) = (FileDisk.open(path)?, Arc::clone(&self.steps));
        Ok(Box::new(StoppingFile { file, steps, stop_at: self.stop_at }))
    }

    fn size(&self, path: &Path) -> io::Result<Option<u64>> {
        FileDisk.size(path)
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        FileDisk.make_dir(dir)
    }

    fn keep_only_dir(&self, all: &Path, dir: &Path) -> io::Result<()> {
        FileDisk.keep_only_dir(all, dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        FileDisk.list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        FileDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        FileDisk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        FileDisk.sync_dir(dir)
    }

    fn read_note(&self, path: &Path) -> io::Result<Option<String>> {
        FileDisk.read_note(path)
    }

    fn write_note(&self, path: &Path, text: &str) -> io::Result<()> {
        FileDisk.write_note(path, text)
    }

    fn forget_cached(&self, path: &Path) -> io::Result<()> {
        FileDisk.forget_cached(path)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        FileDisk.free_bytes(dir)
    }

    fn draw_id(&self) -> [u8; 16] {
        FileDisk.draw_id()
    }
}

impl StorageBackend for StoppingFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.step()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.step()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.step()?;
        self.file.write(offset, data)
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("makes");
    for entry in std::fs::read_dir(from).expect("lists") {
        let path = entry.expect("lists").path();
        let to = to.join(path.file_name().expect("it has a name"));
        if path.is_dir() {
            copy_dir(&path, &to);
        } else {
            std::fs::copy(&path, &to).expect("copies");
        }
    }
}

fn unfinished(dir: &Path) -> usize {
    let files = std::fs::read_dir(dir.join("chunks")).expect("lists");
    let left = files.filter(|file| {
        let path = file.as_ref().expect("lists").path();
        path.extension().is_none_or(|extension| extension != "redb")
    });
    left.count()
}

/// Stops a transfer at every write, and looks at what a new start finds.
fn stop_everywhere(prepare: impl Fn(&ChunkStore), from_own: bool) -> (u64, u64) {
    let (_kept, source) = source();
    let base = tempfile::tempdir().expect("makes");
    let before = {
        let store = on_files(base.path());
        prepare(&store);
        state(&store)
    };
    let after = state(&source);
    let wanted = wanted(before.0.filter(|_| from_own));
    let pieces = pieces(&source, wanted);
    // Every write has its turn when that is asked for. The odd stride meets all kinds of them.
    let stride = if std::env::var_os("HYPERTIDE_EVERY_STOP").is_some() { 1 } else { 3 };
    let (mut stop_at, mut stopped, mut taken) = (0, 0, 0);
    loop {
        let dir = tempfile::tempdir().expect("makes");
        copy_dir(base.path(), dir.path());
        let steps = Arc::new(AtomicU64::new(0));
        let disk = Stopping { steps: Arc::clone(&steps), stop_at: u64::MAX };
        // It opens undisturbed.
        drop(open(dir.path(), Arc::new(disk)).expect("opens"));
        let opened = steps.swap(0, Ordering::SeqCst);
        let disk = Stopping { steps: Arc::clone(&steps), stop_at: opened + stop_at };
        let whole = open(dir.path(), Arc::new(disk)).map(|target| {
            let done = take(&target, wanted, &pieces).is_ok_and(|done| done.is_some());
            target.close();
            done
        });
        let store = on_files(dir.path());
        let found = state(&store);
        assert!(found == before || found == after, "stopped at {stop_at}: {found:?}");
        assert_eq!(unfinished(dir.path()), 0, "stopped at {stop_at}");
        assert!(store.damaged().is_empty(), "stopped at {stop_at}: {:?}", store.damaged());
        if matches!(whole, Ok(true)) {
            assert_eq!(found, after, "stopped at {stop_at}");
        }
        if found == before {
            take(&store, wanted, &pieces).expect("is taken at last");
        } else {
            taken += 1;
        }
        write(&store, 6, 50, &rows(6, 10));
        assert_eq!(state(&store).1, after.1, "stopped at {stop_at}");
        assert_eq!(seen(&store, 60).0, after.1[4].0 + 10);
        if steps.load(Ordering::SeqCst) < opened + stop_at {
            println!("stopped at {stopped} of {stop_at} writes");
            return (stopped, taken);
        }
        stopped += 1;
        stop_at += stride;
    }
}

#[test]
fn a_stop_anywhere_in_a_whole_copy_leaves_the_old_or_the_new() {
    let fork = |store: &ChunkStore| {
        write(store, 1, 0, &rows(9, 100));
        store.flush(&[]).expect("flushes");
        write(store, 2, 10, &rows(8, 50));
    };
    let (stops, taken) = stop_everywhere(fork, false);
    assert!(stops > 10 && taken > 1, "{stops} stops, {taken} taken");
}

#[test]
fn a_stop_anywhere_in_a_delta_leaves_the_old_or_the_new() {
    let behind = |store: &ChunkStore| {
        write(store, 1, 0, &rows(1, 400));
        store.flush(&[]).expect("flushes");
        write(store, 2, 10, &rows(2, 800));
    };
    let (stops, taken) = stop_everywhere(behind, true);
    assert!(stops > 10 && taken > 1, "{stops} stops, {taken} taken");
}

#[test]
fn a_file_that_is_named_but_has_no_name_yet_gets_it_at_the_next_start() {
    let (kept, source) = source();
    source.flush(&[]).expect("flushes");
    let expected = state(&source);
    source.close();
    // As after a stop between the manifest and the name: the manifest is of the copy, the name of the file before.
    let path = kept.path().join("chunks/5.redb");
    std::fs::rename(&path, kept.path().join("chunks/5.0f.copy")).expect("renames");
    std::fs::write(&path, b"the file before").expect("writes");
    std::fs::write(kept.path().join("chunks/5.1f.copy"), b"given up").expect("writes");
    let store = on_files(kept.path());
    assert_eq!(state(&store), expected);
    assert_eq!(unfinished(kept.path()), 0);
}
