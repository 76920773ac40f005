//! Wrong bytes and wrong directories: told in words, never returned as rows, never a panic.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use hypertide_proto::ids::{ChunkId, Csn};
use hypertide_storage::{ChunkStore, CompressionSpec, Error, Fault, StoreConfig};

mod support;
use support::{
    disk::{Image, Machine},
    *,
};

const ROWS: i64 = 20_000;

/// A directory whose chunk 1 has a segment, and chunk 2 another.
async fn prepared(dir: &Path) {
    let store = ChunkStore::open(config(dir)).unwrap();
    for chunk in [1, 2] {
        let rows = rows_of(chunk as i64, ROWS);
        store.prepare(txn(chunk), vec![part(chunk, 0, &rows)]).await.unwrap();
        store.decide(&[commit(chunk, chunk * 10, &[(chunk, 0)])]).unwrap();
    }
    store.flush(&[]).unwrap();
    store.close();
}

/// Reads chunk 1: its rows, or that they are damaged. Chunk 2 is never concerned.
fn outcome(dir: &Path) -> Result<Vec<Row>, String> {
    let store = ChunkStore::open(config(dir)).unwrap();
    let other = read(&store, request(2, 99)).unwrap();
    assert_eq!(other.len(), ROWS as usize);
    match read(&store, request(1, 99)) {
        Ok(rows) => {
            assert!(store.damaged().is_empty());
            Ok(rows)
        }
        Err(Error::Damaged { chunk, what }) => {
            assert_eq!(chunk, ChunkId(1));
            assert_eq!(store.damaged(), [ChunkId(1)]);
            Err(what)
        }
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn flipped_bits_of_a_chunk_file_never_reach_a_reader() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path()).await;
    let mut expected = rows_of(1, ROWS);
    expected.sort_by(|a, b| a.partial_cmp(b).unwrap());
    let file = dir.path().join("chunks/1.redb");
    let whole = fs::read(&file).unwrap();
    let mut random = Random(7);
    let mut damaged = 0;
    for _ in 0..60 {
        let mut bytes = whole.clone();
        for _ in 0..1 + random.below(8) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << random.below(8);
        }
        fs::write(&file, &bytes).unwrap();
        match outcome(dir.path()) {
            Ok(rows) => assert_eq!(rows, expected),
            Err(_) => damaged += 1,
        }
    }
    assert!(damaged > 10, "only {damaged} of 60 were noticed");
    fs::write(&file, &whole).unwrap();
    assert_eq!(outcome(dir.path()).unwrap(), expected);
}

#[tokio::test]
async fn shortened_emptied_and_missing_files_are_damage() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path()).await;
    let file = dir.path().join("chunks/1.redb");
    let whole = fs::read(&file).unwrap();
    for length in [0, 1, 511, 4096, whole.len() / 2, whole.len() - 4096] {
        fs::write(&file, &whole[..length]).unwrap();
        let what = outcome(dir.path()).unwrap_err();
        assert!(!what.is_empty());
    }
    fs::remove_file(&file).unwrap();
    assert_eq!(outcome(dir.path()).unwrap_err(), "its file is missing or empty");
}

#[tokio::test]
async fn a_file_that_was_rolled_back_or_swapped_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path()).await;
    let file = dir.path().join("chunks/1.redb");
    let old = fs::read(&file).unwrap();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    store.prepare(txn(9), vec![part(1, 0, &rows_of(9, 10))]).await.unwrap();
    store.decide(&[commit(9, 90, &[(1, 10)])]).unwrap();
    store.flush(&[]).unwrap();
    store.close();
    fs::write(&file, &old).unwrap();
    let what = outcome(dir.path()).unwrap_err();
    assert!(what.contains("generation 1, but generation 2 was written"), "{what}");
    fs::copy(dir.path().join("chunks/2.redb"), &file).unwrap();
    let what = outcome(dir.path()).unwrap_err();
    assert!(what.contains("another one than the manifest names"), "{what}");
}

#[tokio::test]
async fn a_damaged_chunk_takes_no_rows_and_others_do() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path()).await;
    fs::write(dir.path().join("chunks/1.redb"), b"").unwrap();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    assert!(read(&store, request(1, 99)).is_err());
    let rows = rows_of(5, 3);
    let refused = store.prepare(txn(5), vec![part(1, 0, &rows)]).await.unwrap_err();
    assert!(matches!(refused, Error::Damaged { .. }), "{refused}");
    store.prepare(txn(6), vec![part(2, 0, &rows)]).await.unwrap();
    store.drop_chunks(&[ChunkId(1)], Csn(100)).unwrap();
    assert!(store.damaged().is_empty());
    // Nobody is served with wrong bytes, and nobody takes the chunk for an empty one.
    assert!(store.removed().is_empty());
    let refused = read(&store, request(1, 99)).unwrap_err();
    assert!(matches!(refused, Error::SnapshotTooOld { .. }), "{refused}");
}

#[tokio::test]
async fn flipped_bits_of_the_journal_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    let rows = rows_of(1, 5000);
    store.prepare(txn(1), vec![part(1, 0, &rows)]).await.unwrap();
    store.close();
    drop(store);
    let payload = part(1, 0, &rows).payload;
    let file = dir.path().join("journal.redb");
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(64).position(|window| *window == payload[100..164]).unwrap();
    bytes[at] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    assert_eq!(store.damaged(), [ChunkId(1)]);
    let refused = read(&store, request(1, 99)).unwrap_err();
    assert!(
        refused.to_string().contains("part 0 of a1b1s1 for chunk c1 has wrong bytes"),
        "{refused}"
    );
}

/// A journal of which nothing can be told any more, in several ways.
#[tokio::test]
async fn a_lost_journal_is_kept_aside_and_the_directory_becomes_another_disk() {
    let dir = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    let rows = rows_of(1, 100);
    store.prepare(txn(1), vec![part(1, 0, &rows)]).await.unwrap();
    store.decide(&[commit(1, 10, &[(1, 0)])]).unwrap();
    store.flush(&[]).unwrap();
    store.prepare(txn(2), vec![part(1, 0, &rows)]).await.unwrap();
    store.prepare(txn(2), vec![part(3, 0, &rows)]).await.unwrap();
    store.decide(&[commit(2, 20, &[(1, 10), (3, 0)])]).unwrap();
    store.close();
    drop(store);
    type Harm = fn(&mut Vec<u8>);
    let harms: [(&str, Harm); 5] = [
        ("its beginning", |bytes| bytes[..4096].fill(0x5a)),
        ("its end", |bytes| bytes.truncate(22_641)),
        ("all but its beginning", |bytes| bytes[4096..].fill(0)),
        ("all", |bytes| bytes.clear()),
        ("every page a little", |bytes| {
            bytes.chunks_mut(4096).for_each(|page| page[0] ^= 0xff);
        }),
    ];
    for (what, harm) in harms {
        let copy = tempfile::tempdir().unwrap();
        for file in ["node.redb", "journal.redb", "chunks/1.redb"] {
            fs::create_dir_all(copy.path().join("chunks")).unwrap();
            fs::copy(dir.path().join(file), copy.path().join(file)).unwrap();
        }
        let journal = copy.path().join("journal.redb");
        let mut bytes = fs::read(&journal).unwrap();
        harm(&mut bytes);
        fs::write(&journal, &bytes).unwrap();
        let store = ChunkStore::open(config(copy.path()));
        let store = store.unwrap_or_else(|error| panic!("{what} is wrong: {error}"));
        // Neither the chunk whose newer rows are gone nor the one of which nothing is left is read as if it were whole.
        for chunk in [1, 3] {
            let refused = read(&store, request(chunk, 99)).unwrap_err();
            assert!(matches!(refused, Error::Identity(_)), "{what} is wrong: {refused}");
        }
        store.close();
        drop(store);
        let aside = fs::read_dir(copy.path().join("aside")).unwrap().next().unwrap().unwrap();
        let kept = fs::read_dir(aside.path()).unwrap().next().unwrap().unwrap();
        assert!(kept.file_name().to_str().unwrap().starts_with("journal-"), "{kept:?}");
        assert_eq!(fs::read(kept.path()).unwrap(), bytes, "{what} is wrong, as evidence");
        // From then on it starts as any other.
        ChunkStore::open(config(copy.path())).unwrap().close();
        assert_eq!(fs::read_dir(aside.path()).unwrap().count(), 1);
    }
}

#[tokio::test]
async fn wrong_directories_are_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path()).await;
    let refusal = |dir: &Path| match ChunkStore::open(config(dir)) {
        Err(Error::Identity(text)) => text,
        other => panic!("{other:?}"),
    };
    let store = ChunkStore::open(config(dir.path())).unwrap();
    assert!(refusal(dir.path()).contains("is in use by another process"));
    drop(store);
    let other = tempfile::tempdir().unwrap();
    prepared(other.path()).await;
    let journal = dir.path().join("journal.redb");
    let own = fs::read(&journal).unwrap();
    fs::copy(other.path().join("journal.redb"), &journal).unwrap();
    assert!(refusal(dir.path()).contains("carries another disk's id"));
    fs::write(&journal, own).unwrap();
    let node = dir.path().join("node.redb");
    let own = fs::read(&node).unwrap();
    fs::remove_file(&node).unwrap();
    assert!(refusal(dir.path()).contains("carries another disk's id"));
    fs::rename(&journal, dir.path().join("journal.kept")).unwrap();
    assert!(refusal(dir.path()).contains("whose node.redb is missing"));
    fs::rename(dir.path().join("journal.kept"), &journal).unwrap();
    fs::remove_file(dir.path().join("node.redb.new")).unwrap();
    fs::write(&node, own).unwrap();
    assert_eq!(outcome(dir.path()).unwrap().len(), ROWS as usize);
}

#[tokio::test]
async fn bad_parts_are_refused_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    let good = part(1, 0, &rows_of(1, 10));
    let mut hash = good.clone();
    hash.hash ^= 1;
    let mut rows = good.clone();
    rows.rows += 1;
    let mut bytes = good.clone();
    bytes.payload = bytes.payload.slice(..bytes.payload.len() - 1);
    bytes.hash = batch_hash(&bytes.payload);
    for bad in [hash, rows, bytes] {
        let refused = store.prepare(txn(1), vec![bad]).await.unwrap_err();
        assert!(matches!(refused, Error::Invalid(_)), "{refused}");
    }
    let twice = vec![good.clone(), good.clone()];
    assert!(store.prepare(txn(1), twice).await.unwrap_err().to_string().contains("stands twice"));
    assert!(store.pending(&[]).is_empty());
    assert_eq!(store.memory_used(), 0);
    store.prepare(txn(1), vec![good]).await.unwrap();
    let other = part(1, 0, &rows_of(2, 10));
    let refused = store.prepare(txn(1), vec![other]).await.unwrap_err();
    assert!(matches!(refused, Error::Conflict { .. }), "{refused}");
}

#[tokio::test]
async fn dropped_chunks_are_gone_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path()).await;
    let at_once = StoreConfig { version_age: std::time::Duration::ZERO, ..config(dir.path()) };
    let store = ChunkStore::open(at_once).unwrap();
    let scan = store.scan(request(1, 99)).unwrap();
    store.prepare(txn(7), vec![part(1, 0, &rows_of(7, 5))]).await.unwrap();
    store.drop_chunks(&[ChunkId(1)], Csn(100)).unwrap();
    store.drop_chunks(&[ChunkId(1)], Csn(120)).unwrap();
    assert!(!dir.path().join("chunks/1.redb").exists());
    // A scan that had begun still reads what it began with.
    assert_eq!(scan.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), ROWS as usize);
    // A prepare that comes late is taken, and goes when its fate is known.
    store.prepare(txn(8), vec![part(1, 0, &rows_of(8, 5))]).await.unwrap();
    store.decide(&[abort(8)]).unwrap();
    store.close();
    let store = ChunkStore::open(config(dir.path())).unwrap();
    assert!(store.pending(&[]).is_empty());
    assert_eq!(store.report(&[]).iter().map(|r| r.chunk).collect::<Vec<_>>(), [ChunkId(2)]);
}

#[tokio::test]
async fn writers_wait_for_memory_and_no_row_is_dropped() {
    const WRITERS: u64 = 8;
    const BATCHES: u64 = 12;
    let dir = tempfile::tempdir().unwrap();
    let size = part(1, 0, &rows_of(1, 1000)).decoded_bytes as usize;
    // Less than all writers bring at once, and a tenth of what they bring in all.
    let memory_bytes = size * (WRITERS as usize + 2) * 9 / 10;
    let config = StoreConfig { memory_bytes, ..config(dir.path()) };
    let store = ChunkStore::open(config).unwrap();
    let most = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let writers = (1..=WRITERS).map(|chunk| {
        let (store, most) = (Arc::clone(&store), Arc::clone(&most));
        tokio::spawn(async move {
            for batch in 1..=BATCHES {
                let id = chunk * 100 + batch;
                let rows = rows_of(id as i64, 1000);
                let sent = || vec![part(chunk, 0, &rows)];
                while let Err(error) = store.prepare(txn(id), sent()).await {
                    assert!(matches!(error, Error::Overloaded(_)), "{error}");
                }
                most.fetch_max(store.memory_used(), std::sync::atomic::Ordering::SeqCst);
                store.decide(&[commit(id, batch, &[(chunk, batch - 1)])]).unwrap();
            }
        })
    });
    for writer in futures::future::join_all(writers).await {
        writer.unwrap();
    }
    let most = most.load(std::sync::atomic::Ordering::SeqCst);
    assert!(most <= memory_bytes, "{most} of {memory_bytes} bytes were in use");
    for chunk in 1..=WRITERS {
        assert_eq!(read(&store, request(chunk, 99)).unwrap().len() as u64, BATCHES * 1000);
    }
}

#[tokio::test]
async fn rows_that_cannot_be_flushed_fill_the_memory_and_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let rows = rows_of(9, 5000);
    let size = part(1, 0, &rows).decoded_bytes as usize;
    let config = StoreConfig { memory_bytes: size * 2, ..config(dir.path()) };
    let store = ChunkStore::open(config).unwrap();
    for id in 1..=2 {
        store.prepare(txn(id), vec![part(1, 0, &rows)]).await.unwrap();
    }
    let refused = store.prepare(txn(3), vec![part(1, 0, &rows)]).await.unwrap_err();
    assert!(matches!(refused, Error::Overloaded(_)), "{refused}");
    assert_eq!(store.pending(&[]).len(), 2);
    store.decide(&[abort(1)]).unwrap();
    store.prepare(txn(3), vec![part(1, 0, &rows)]).await.unwrap();
}

fn batch_hash(payload: &[u8]) -> u128 {
    hypertide_storage::batch::hash(payload)
}

/// What a node that was stopped holds: chunk 1 compressed, 2 of several segments, 3 only in the journal, where there
/// also is a transaction of chunk 2 that is not decided.
struct Populated {
    image: Image,
    rows: BTreeMap<u64, Vec<Row>>,
    pending: Vec<Row>,
}

fn on(machine: &Machine) -> Result<Arc<ChunkStore>, Error> {
    let config = StoreConfig { background: false, ..config(Path::new("/data")) };
    ChunkStore::open_on(config, Arc::new(machine.clone()))
}

async fn populated() -> Populated {
    let machine = Machine::default();
    let store = on(&machine).unwrap();
    let mut rows: BTreeMap<u64, Vec<Row>> = BTreeMap::new();
    for (id, chunk) in (1..).zip([1, 1, 2, 2, 2, 3]) {
        let noise = |i: i64| {
            let device = format!("{:x}", Random((id * 1000 + i) as u64).next());
            (id * 1_000_000 + i, device, Some(i as f64 / 7.0))
        };
        let came: Vec<Row> = (0..600).map(noise).collect();
        let id = id as u64;
        store.prepare(txn(id), vec![part(chunk, 0, &came)]).await.unwrap();
        let prev = store.report(&[ChunkId(chunk)])[0].applied_csn.0;
        store.decide(&[commit(id, id * 10, &[(chunk, prev)])]).unwrap();
        rows.entry(chunk).or_default().extend(came);
        store.flush(&[ChunkId(1), ChunkId(2)]).unwrap();
    }
    store.compress(ChunkId(1), CompressionSpec::default()).unwrap();
    let pending = rows_of(99, 50);
    store.prepare(txn(99), vec![part(2, 0, &pending)]).await.unwrap();
    store.close();
    rows.values_mut().for_each(|rows| rows.sort_by(|a, b| a.partial_cmp(b).unwrap()));
    Populated { image: machine.image(), rows, pending }
}

/// Makes one thing wrong at a random place; gives the files concerned.
fn corrupt(image: &mut Image, random: &mut Random) -> (String, Vec<PathBuf>) {
    let paths = image.paths();
    let path = paths[random.below(paths.len() as u64) as usize].clone();
    let mut bytes = image.bytes(&path).to_vec();
    let at = random.below(bytes.len() as u64) as usize;
    let what = match random.below(8) {
        0..=2 => {
            bytes[at] ^= 1 << random.below(8);
            format!("flip a bit at {at}")
        }
        3..=4 => {
            let end = (at + (1 << random.below(14)) as usize).min(bytes.len());
            bytes[at..end].fill(0);
            format!("zero {at}..{end}")
        }
        5 => {
            bytes.truncate(at);
            format!("truncate to {at}")
        }
        6 => {
            // Two pages of a file change places.
            let pages = bytes.len() / 4096;
            let (one, other) = (random.below(pages as u64), random.below(pages as u64));
            let page = |page: u64| page as usize * 4096..(page as usize + 1) * 4096;
            let (first, second) = (bytes[page(one)].to_vec(), bytes[page(other)].to_vec());
            bytes[page(one)].copy_from_slice(&second);
            bytes[page(other)].copy_from_slice(&first);
            format!("swap pages {one} and {other}")
        }
        _ => {
            let other = &paths[random.below(paths.len() as u64) as usize];
            let theirs = image.bytes(other).to_vec();
            image.set_bytes(other, bytes.clone());
            bytes = theirs;
            let what = format!("swap {} and {}", path.display(), other.display());
            image.set_bytes(&path, bytes);
            return (what, vec![path, other.clone()]);
        }
    };
    image.set_bytes(&path, bytes);
    (format!("{what} of {}", path.display()), vec![path])
}

/// Opens a disk on which something is wrong. Whatever it gives is right; tells whether anything was noticed.
fn survive(image: &Image, whole: &Populated, (what, files): (&str, &[PathBuf])) -> bool {
    let Ok(store) = on(&Machine::new(image.clone())) else { return true };
    let chunk_file = |chunk: u64| PathBuf::from(format!("/data/chunks/{chunk}.redb"));
    let journal = files.iter().any(|file| !file.starts_with("/data/chunks"));
    let mut noticed = !store.damaged().is_empty();
    for (chunk, rows) in &whole.rows {
        let checked = store.check(ChunkId(*chunk)).unwrap();
        let mut request = request(*chunk, 99);
        request.own = Some(txn(99));
        match read(&store, request) {
            Ok(found) => {
                let mut expected = rows.clone();
                if *chunk == 2 {
                    expected.extend(whole.pending.clone());
                    expected.sort_by(|a, b| a.partial_cmp(b).unwrap());
                }
                assert_eq!(found.len(), expected.len(), "{what}: chunk {chunk}");
                assert!(found == expected, "{what}: chunk {chunk} has other rows");
                assert_eq!(checked.faults, [], "{what}: chunk {chunk} is read all the same");
            }
            Err(Error::Damaged { chunk: told, .. }) => {
                assert_eq!(told, ChunkId(*chunk), "{what}");
                assert!(store.damaged().contains(&told), "{what}: chunk {chunk} is not told of");
                let concerned = journal || files.contains(&chunk_file(*chunk));
                assert!(concerned, "{what}: chunk {chunk} suffers for another");
                noticed = true;
            }
            // The journal is lost: the directory counts as empty.
            Err(Error::Identity(_)) if journal => noticed = true,
            Err(error) => panic!("{what}: {error}"),
        }
    }
    noticed
}

async fn corrupt_often(seed: u64, times: usize) {
    let whole = populated().await;
    assert!(!survive(&whole.image, &whole, ("nothing", &[])), "nothing is wrong");
    let mut random = Random(seed);
    let mut noticed = 0;
    for round in 0..times {
        let mut image = whole.image.clone();
        let (what, files) = corrupt(&mut image, &mut random);
        let what = format!("seed {seed}, round {round}: {what}");
        noticed += usize::from(survive(&image, &whole, (&what, &files)));
    }
    // The rest hit bytes that nothing lies in: new files are large for what they hold, and a bit may be zeroed already.
    assert!(noticed * 3 > times, "only {noticed} of {times} were noticed");
    println!("{noticed} of {times} were noticed");
}

#[tokio::test]
async fn corruptions_of_a_node_give_no_wrong_row() {
    corrupt_often(1, 1000).await;
}

#[tokio::test]
async fn more_corruptions_of_a_node_give_no_wrong_row() {
    corrupt_often(2, 1000).await;
}

#[tokio::test]
async fn a_check_names_what_is_wrong_and_where() {
    let whole = populated().await;
    let path = Path::new("/data/chunks/1.redb");
    let mut image = whole.image.clone();
    let mut bytes = image.bytes(path).to_vec();
    // The second block of the file's extents: its frame says which it is.
    let frames: Vec<usize> =
        (0..bytes.len() - 4).filter(|at| bytes[*at..].starts_with(b"HTsg")).collect();
    let frame = frames.iter().copied().find(|at| bytes[at + 32..at + 36] == 2u32.to_le_bytes());
    bytes[frame.unwrap() + 70] ^= 1;
    image.set_bytes(path, bytes);
    let store = on(&Machine::new(image)).unwrap();
    let report = store.check(ChunkId(1)).unwrap();
    let [Fault { segment, column, block, extent, offset, what }] = &report.faults[..] else {
        panic!("{report:?}");
    };
    assert_eq!((column.as_deref(), *block, *extent), (Some("reading"), Some(0), Some(0)));
    assert!(segment.is_some() && offset.is_some());
    assert_eq!(what, "the checksum does not match");
    assert_eq!(store.damaged(), [ChunkId(1)]);
    assert_eq!(store.integrity_stats().faults, 1);
    let refused = read(&store, request(1, 99)).unwrap_err().to_string();
    let place = format!("column \"reading\", block 0, extent 0 at offset {}", offset.unwrap());
    assert!(refused.contains("has wrong bytes") && refused.contains(&place), "{refused}");
    assert_eq!(store.check(ChunkId(2)).unwrap().faults, []);
}

#[tokio::test]
async fn the_scrub_finds_rot_by_itself() {
    let whole = populated().await;
    let machine = Machine::new(whole.image.clone());
    let config = StoreConfig {
        scrub_bytes_per_second: 1 << 30,
        cache_bytes: 0,
        ..config(Path::new("/data"))
    };
    let store = ChunkStore::open_on(config, Arc::new(machine.clone())).unwrap();
    let path = Path::new("/data/chunks/2.redb");
    let mut bytes = whole.image.bytes(path).to_vec();
    let frame = (0..bytes.len() - 4).rfind(|at| bytes[*at..].starts_with(b"HTsg")).unwrap();
    bytes[frame + 60] ^= 1;
    machine.set_bytes(path, bytes);
    let deadline = Instant::now() + Duration::from_secs(60);
    while store.damaged() != [ChunkId(2)] {
        assert!(Instant::now() < deadline, "{:?}", store.integrity_stats());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    while store.integrity_stats().scrubbed_files < 2 {
        assert!(Instant::now() < deadline, "{:?}", store.integrity_stats());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(store.integrity_stats().scrubbed_bytes > 10_000);
}

#[tokio::test]
async fn few_files_stay_open_and_extents_stay_within_their_budget() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { open_files_max: 3, cache_bytes: 100_000, ..config(dir.path()) };
    let store = ChunkStore::open(config).unwrap();
    for chunk in 1..=10 {
        store.prepare(txn(chunk), vec![part(chunk, 0, &rows_of(1, 2000))]).await.unwrap();
        store.decide(&[commit(chunk, chunk, &[(chunk, 0)])]).unwrap();
    }
    store.flush(&[]).unwrap();
    for _ in 0..2 {
        for chunk in 1..=10 {
            assert_eq!(read(&store, request(chunk, 99)).unwrap().len(), 2000);
            assert!(store.open_files() <= 3, "{} files are open", store.open_files());
            assert!(store.cache_stats().bytes <= 100_000);
        }
    }
    assert!(store.cache_stats().hits > 0, "{:?}", store.cache_stats());
    // Who reads keeps a file open whatever the bound.
    let scans: Vec<_> = (1..=10).map(|chunk| store.scan(request(chunk, 99)).unwrap()).collect();
    for scan in scans {
        assert_eq!(scan.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 2000);
    }
}
