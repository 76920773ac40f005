//! Power cuts and failing calls: whatever was answered is there after a restart, committed rows exactly once, and
//! nothing panics.
//!
//! A run's every change to its disk is logged. After each of them a power cut may have left nothing, all, or any part
//! of what was not synced: those disks are made, the store is opened on them, and compared with what it had promised
//! until then. A failure names its seed, cut and way of losing in a command that meets exactly it again: a run asks the
//! same of its disk whenever it is repeated. `HYPERTIDE_CRASH_KEEP` names a directory that such a disk is copied to.
//!
//! Every cut is tried, which makes 21,000 different disks or more in each run of the tests, also in CI: some 110 seconds
//! of one core without optimisation, 25 with. One in eight is cut again while it recovers. `HYPERTIDE_CRASH_STRIDE=20`
//! tries one cut in so many.
//!
//! These were planted, one at a time, and found, each by its first seed: a journal and chunk files that are not synced,
//! a directory that is not synced after a file was made or replaced, and a dropped chunk whose file goes before its
//! manifest.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, unreachable_pub)]

use std::{
    collections::BTreeSet,
    fmt,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

use hypertide_proto::ids::{ChunkId, Csn};
use hypertide_storage::{ChunkStore, Disk, Error, StoreConfig};

mod support;
#[path = "support/work.rs"]
mod work;

use support::{
    disk::{Cuts, Failure, Image, Machine},
    *,
};
use work::{Depth, Promises, Work, open, quiet, verify};

const STEPS: usize = 40;
/// Tests that share the seeds, so that they run side by side.
const TESTS: usize = 10;
/// Different disks that each of them tries at least, which makes 21,000.
const STATES_MIN: usize = 2_100;

/// The state to meet again, as a failure named it.
const REPLAY: &str = "HYPERTIDE_CRASH_REPLAY";
/// Set by the test that shows that a failure is met again: nothing of what is done to directories lasts.
const PLANT: &str = "HYPERTIDE_CRASH_PLANT";

/// What is done with a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trial {
    Recover(Depth),
    /// The recovery is cut, too.
    CutAgain,
}

/// Names a state and what is done with it, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    seed: u64,
    cut: usize,
    way: u64,
    trial: Trial,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trial = match self.trial {
            Trial::Recover(Depth::Deep) => "deep",
            Trial::Recover(_) => "plain",
            Trial::CutAgain => "again",
        };
        write!(f, "{}:{}:{}:{trial}", self.seed, self.cut, self.way)
    }
}

impl Case {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(':');
        let (seed, cut) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let way = words.next()?.parse().ok()?;
        let trial = match words.next()? {
            "deep" => Trial::Recover(Depth::Deep),
            "plain" => Trial::Recover(Depth::Plain),
            "again" => Trial::CutAgain,
            _ => return None,
        };
        Some(Self { seed, cut, way, trial })
    }

    /// The only case that is wanted; `None` for all of them.
    fn wanted() -> Option<Self> {
        let text = std::env::var(REPLAY).ok()?;
        Some(Self::parse(&text).unwrap_or_else(|| panic!("{REPLAY}={text} names no state")))
    }

    /// Tries it, and says how to do that again when it fails.
    fn run(self, image: &Image, promises: &Promises) {
        named(&self.to_string(), image, || match self.trial {
            Trial::Recover(depth) => drop(verify(image, promises, self.cut, depth)),
            Trial::CutAgain => self.cut_again(image, promises),
        });
    }

    fn cut_again(self, image: &Image, promises: &Promises) {
        let log = verify(image, promises, self.cut, Depth::Plain).log();
        let mut random = Random(self.cut as u64);
        let mut cuts = Cuts::new(image.clone(), &log);
        let until = random.below(log.len() as u64 + 1);
        while (cuts.at() as u64) < until && cuts.step() {}
        let way = random.below(6);
        let image = cuts.image(way);
        println!("cut {self} again after {until} of {}, way {way}: {}", log.len(), shown(&image));
        verify(&image, promises, self.cut, Depth::Again);
    }
}

fn shown(image: &Image) -> String {
    format!("{:032x}", image.fingerprint())
}

/// Runs `check`, and names the state that it failed on.
fn named<T>(what: &str, image: &Image, check: impl FnOnce() -> T) -> T {
    match std::panic::catch_unwind(AssertUnwindSafe(check)) {
        Ok(value) => value,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            println!("failed: {what} on {}: {}", shown(image), text.unwrap_or("no reason given"));
            if let Some(case) = Case::parse(what) {
                let test = (case.seed - 1) % TESTS as u64 + 1;
                println!(
                    "again: {REPLAY}={case} cargo test -p hypertide-storage --test crash cuts_of_runs_from_{test} -- --exact --nocapture"
                );
            }
            if let Ok(dir) = std::env::var("HYPERTIDE_CRASH_KEEP") {
                image.dump(Path::new(&dir));
            }
            std::panic::resume_unwind(panic)
        }
    }
}

/// Of the cuts of a run, one of so many is tried.
fn stride() -> usize {
    std::env::var("HYPERTIDE_CRASH_STRIDE").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

async fn worked(seed: u64) -> (Vec<disk::Op>, Promises) {
    let mut work = Work::new(Machine::default(), seed).unwrap();
    work.run(STEPS).await.unwrap();
    work.store.close();
    let mut log = work.machine.log();
    if std::env::var(PLANT).is_ok() {
        let forget = |op: &mut disk::Op| {
            if let disk::Op::SyncDir { dir } = op {
                *dir = PathBuf::from("/elsewhere");
            }
        };
        log.iter_mut().for_each(forget);
    }
    (log, work.promises)
}

/// Tries the cuts of a run with each of these ways of losing; gives the number of different states.
async fn cut_everywhere(seed: u64, ways: std::ops::Range<u64>) -> usize {
    let (log, promises) = worked(seed).await;
    let mut states = BTreeSet::new();
    let mut cuts = Cuts::new(Image::default(), &log);
    while cuts.step() {
        if !(cuts.at() as u64 + seed).is_multiple_of(stride() as u64) {
            continue;
        }
        let at = cuts.at();
        for way in ways.clone() {
            let image = cuts.image(way);
            if !states.insert((image.fingerprint(), promises.count(at))) {
                continue;
            }
            let depth = if states.len() % 16 == 0 { Depth::Deep } else { Depth::Plain };
            let case = Case { seed, cut: at, way, trial: Trial::Recover(depth) };
            case.run(&image, &promises);
            if states.len() % 8 == 0 {
                Case { trial: Trial::CutAgain, ..case }.run(&image, &promises);
            }
        }
    }
    println!("seed {seed}: {} changes, {} states", log.len(), states.len());
    states.len()
}

/// Meets a state again.
async fn replay(case: Case) {
    let (log, promises) = worked(case.seed).await;
    let mut cuts = Cuts::new(Image::default(), &log);
    while cuts.at() < case.cut && cuts.step() {}
    assert_eq!(cuts.at(), case.cut, "seed {} makes {} changes", case.seed, log.len());
    let image = cuts.image(case.way);
    println!("meet {case} again: {}", shown(&image));
    case.run(&image, &promises);
}

/// Tries the cuts of runs, from this seed on, until there were enough different disks.
async fn cut_runs(first: u64) {
    if let Some(case) = Case::wanted() {
        return replay(case).await;
    }
    let mut states = 0;
    for seed in (first..).step_by(TESTS) {
        states += cut_everywhere(seed, 0..6).await;
        if states * stride() >= STATES_MIN {
            return;
        }
    }
}

macro_rules! cuts {
    ($($name:ident: $first:literal)*) => {$(
        #[tokio::test]
        async fn $name() {
            cut_runs($first).await;
        }
    )*};
}

cuts! {
    cuts_of_runs_from_1: 1
    cuts_of_runs_from_2: 2
    cuts_of_runs_from_3: 3
    cuts_of_runs_from_4: 4
    cuts_of_runs_from_5: 5
    cuts_of_runs_from_6: 6
    cuts_of_runs_from_7: 7
    cuts_of_runs_from_8: 8
    cuts_of_runs_from_9: 9
    cuts_of_runs_from_10: 10
}

#[tokio::test]
async fn a_run_asks_the_same_of_its_disk_whenever_it_is_repeated() {
    for seed in [1, 5, 12] {
        let ((one, _), (other, _)) = (worked(seed).await, worked(seed).await);
        let differs = one.iter().zip(&other).position(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed} differs at a change of {}", one.len());
        assert_eq!(one.len(), other.len(), "seed {seed}");
        let last = |log: &[disk::Op]| {
            let mut cuts = Cuts::new(Image::default(), log);
            while cuts.step() {}
            cuts.image(1).fingerprint()
        };
        assert_eq!(last(&one), last(&other), "seed {seed}");
    }
}

/// Runs a test of this file on a store whose disk forgets what becomes of directories.
fn run_planted(test: &str, replayed: Option<&str>) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(PLANT, "directories");
    match replayed {
        Some(case) => command.env(REPLAY, case),
        None => command.env_remove(REPLAY),
    };
    command.output().unwrap()
}

#[test]
fn a_failure_names_a_command_that_meets_it_again() {
    let found = run_planted("cuts_of_runs_from_2", None);
    assert!(!found.status.success(), "what was planted is not found");
    let text = String::from_utf8(found.stdout).unwrap();
    let line = |start: &str, text: &str| {
        let line = text.lines().find(|line| line.starts_with(start));
        line.unwrap_or_else(|| panic!("no line begins with {start}: {text}")).to_owned()
    };
    let (failed, again) = (line("failed: ", &text), line("again: ", &text));
    let mut words = again.split(' ').skip(1);
    let case = words.next().unwrap().strip_prefix(REPLAY).unwrap().strip_prefix('=').unwrap();
    let test = words.find(|word| word.starts_with("cuts_of_")).unwrap();
    let met = run_planted(test, Some(case));
    assert!(!met.status.success(), "{again} meets nothing");
    // The same bytes, and the same complaint.
    assert_eq!(line("failed: ", &String::from_utf8(met.stdout).unwrap()), failed);
    // The state itself is to blame, and not the way to it.
    let mended = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(REPLAY, case)
        .output();
    assert!(mended.unwrap().status.success(), "it fails without what was planted, too");
}

/// Works on a disk that fails at a call, and then tries what a kill and what a power cut leave.
async fn fail_once(seed: u64, call: u64, failure: Failure, stay: bool) {
    let what = format!("seed {seed}, {failure:?} at call {call}, stay {stay}");
    let machine = Machine::default();
    let Ok(mut work) = Work::new(machine.clone(), seed) else { panic!("{what}: the first start") };
    machine.fail_at(call, failure, stay);
    let ended = work.run(STEPS).await;
    if let Err(error) = &ended {
        let told = matches!(
            error,
            Error::Closed(_) | Error::Disk { .. } | Error::DiskFull(_) | Error::Overloaded(_)
        );
        assert!(told, "{what}: {error}");
    }
    work.store.close();
    let (log, promises) = (machine.log(), work.promises);
    drop(work.store);
    machine.heal();
    let killed = machine.image();
    named(&what, &killed, || verify(&killed, &promises, log.len(), Depth::Plain));
    let mut cuts = Cuts::new(Image::default(), &log);
    while cuts.step() {}
    for way in 0..3 {
        let image = cuts.image(way);
        let what = format!("{what}, then a cut, way {way}");
        named(&what, &image, || verify(&image, &promises, log.len(), Depth::Plain));
    }
}

#[tokio::test]
async fn a_call_that_fails_loses_nothing() {
    let seed = 9;
    let (log, _) = worked(seed).await;
    for (round, failure) in (0..).zip([Failure::Error, Failure::Short, Failure::Full]) {
        for call in (1 + round * 5..log.len() as u64).step_by(61) {
            fail_once(seed, call, failure, call % 2 == 0).await;
        }
    }
}

#[tokio::test]
async fn a_failed_sync_ends_the_store_and_all_files_are_verified_at_the_next_start() {
    let machine = Machine::default();
    let mut work = Work::new(machine.clone(), 1).unwrap();
    work.run(20).await.unwrap();
    let store = work.store;
    let rows = rows_of(1, 10);
    store.prepare(txn(999), vec![part(98, 0, &rows)]).await.unwrap();
    store.decide(&[commit(999, 999, &[(98, 0)])]).unwrap();
    store.flush(&[ChunkId(98)]).unwrap();
    // The next call is a write of the journal.
    machine.fail_at(1, Failure::Error, true);
    let refused = store.prepare(txn(1000), vec![part(99, 0, &rows)]).await.unwrap_err();
    assert!(matches!(refused, Error::Closed(_)), "{refused}");
    let failed = store.failed().await;
    assert!(failed.to_string().contains("write of the journal failed"), "{failed}");
    machine.heal();
    drop(store);
    // The note could not be written: the disk failed for it, too.
    let mut image = machine.image();
    assert!(!image.paths().contains(&"/data/io_error".into()));
    let store = open(&machine).unwrap();
    store.close();
    Disk::write_note(&machine, Path::new("/data/io_error"), "the disk failed").unwrap();
    let store = open(&machine).unwrap();
    assert_eq!(store.damaged(), []);
    store.close();
    assert!(!machine.image().paths().contains(&"/data/io_error".into()), "the mark is gone");
    // With the mark, a wrong byte is found before anybody reads it.
    let chunk = Path::new("/data/chunks/98.redb");
    let mut bytes = image.bytes(chunk).to_vec();
    let at = bytes.windows(4).rposition(|window| window == b"HTsg").unwrap();
    bytes[at + 60] ^= 1;
    image.set_bytes(chunk, bytes);
    let machine = Machine::new(image);
    Disk::write_note(&machine, Path::new("/data/io_error"), "the disk failed").unwrap();
    let store = open(&machine).unwrap();
    assert_eq!(store.damaged(), [ChunkId(98)]);
}

#[tokio::test]
async fn a_failed_write_leaves_its_mark() {
    let machine = Machine::default();
    let store = open(&machine).unwrap();
    machine.fail_at(1, Failure::Error, false);
    let rows = rows_of(1, 10);
    store.prepare(txn(1), vec![part(1, 0, &rows)]).await.unwrap_err();
    assert!(machine.image().paths().contains(&"/data/io_error".into()));
    drop(store);
    let store = open(&machine).unwrap();
    store.prepare(txn(1), vec![part(1, 0, &rows)]).await.unwrap();
    assert!(!machine.image().paths().contains(&"/data/io_error".into()));
}

#[tokio::test]
async fn a_lack_of_file_handles_passes() {
    let machine = Machine::default();
    let store = open(&machine).unwrap();
    let rows = rows_of(1, 10);
    store.prepare(txn(1), vec![part(1, 0, &rows)]).await.unwrap();
    store.decide(&[commit(1, 1, &[(1, 0)])]).unwrap();
    // The journal is open; the chunk's file is to be made.
    machine.fail_at(1, Failure::NoHandle, true);
    let refused = store.flush(&[]).unwrap_err();
    assert!(matches!(refused, Error::Overloaded(_)), "{refused}");
    assert_eq!(read(&store, request(1, 1)).unwrap().len(), 10);
    store.prepare(txn(2), vec![part(1, 0, &rows)]).await.unwrap();
    machine.heal();
    store.flush(&[]).unwrap();
    assert_eq!(store.report(&[])[0].recent_rows, 0);
    assert_eq!(read(&store, request(1, 1)).unwrap().len(), 10);
}

#[tokio::test]
async fn a_lack_of_file_handles_at_any_moment_of_a_flush_does_not_end_the_store() {
    const CALLS: u64 = 40;
    let rows = rows_of(1, 10);
    for call in 1..CALLS {
        let machine = Machine::default();
        let store = open(&machine).unwrap();
        store.prepare(txn(1), vec![part(1, 0, &rows)]).await.unwrap();
        store.decide(&[commit(1, 1, &[(1, 0)])]).unwrap();
        machine.fail_at(call, Failure::NoHandle, false);
        if let Err(refused) = store.flush(&[]) {
            assert!(matches!(refused, Error::Overloaded(_)), "call {call}: {refused}");
        }
        machine.heal();
        store.flush(&[]).unwrap();
        assert_eq!(store.report(&[])[0].recent_rows, 0, "call {call}");
        assert_eq!(read(&store, request(1, 1)).unwrap().len(), 10, "call {call}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_damage_and_is_opened_anew() {
    let machine = Machine::default();
    let config = StoreConfig { cache_bytes: 0, ..quiet() };
    let store = ChunkStore::open_on(config, Arc::new(machine.clone())).unwrap();
    // More than the database keeps in memory of a file.
    let noise = |i: i64| (i, format!("{:x}", Random(i as u64).next()), None);
    let rows: Vec<Row> = (0..100_000).map(noise).collect();
    store.prepare(txn(1), vec![part(1, 0, &rows)]).await.unwrap();
    store.decide(&[commit(1, 1, &[(1, 0)])]).unwrap();
    store.flush(&[]).unwrap();
    machine.make_unreadable(Path::new("/data/chunks/1.redb"));
    let refused = read(&store, request(1, 1)).unwrap_err();
    assert!(matches!(refused, Error::Damaged { .. }), "{refused}");
    assert_eq!(store.damaged(), [ChunkId(1)]);
    machine.heal();
    assert_eq!(read(&store, request(1, 1)).unwrap().len(), rows.len());
    assert!(store.integrity_stats().damaged_reads > 0);
}

#[tokio::test]
async fn a_full_disk_refuses_rows_and_goes_on_reading_and_flushing() {
    let machine = Machine::default();
    let config = StoreConfig { space_reserve_bytes: 1 << 30, ..quiet() };
    let store = ChunkStore::open_on(config, Arc::new(machine.clone())).unwrap();
    let rows = rows_of(1, 10);
    store.prepare(txn(1), vec![part(1, 0, &rows)]).await.unwrap();
    store.decide(&[commit(1, 10, &[(1, 0)])]).unwrap();
    machine.set_free_bytes(1 << 29);
    let refused = store.prepare(txn(2), vec![part(1, 0, &rows)]).await.unwrap_err();
    assert!(matches!(refused, Error::DiskFull(_)), "{refused}");
    assert!(refused.to_string().contains("less than the reserve"), "{refused}");
    assert_eq!(read(&store, request(1, 10)).unwrap().len(), 10);
    store.flush(&[]).unwrap();
    assert_eq!(store.report(&[])[0].recent_rows, 0);
    assert_eq!(read(&store, request(1, 10)).unwrap().len(), 10);
    // Dropping makes room.
    store.drop_chunks(&[ChunkId(1)], Csn(11)).unwrap();
    assert_eq!(store.removed(), [], "room is worth more than what was");
    machine.heal();
    store.prepare(txn(2), vec![part(2, 0, &rows)]).await.unwrap();
}

#[tokio::test]
async fn a_group_of_prepares_costs_one_sync() {
    let machine = Machine::default();
    let store = open(&machine).unwrap();
    let rows = rows_of(1, 10);
    let before = machine.syncs();
    store.prepare(txn(1), vec![part(1, 0, &rows), part(2, 0, &rows)]).await.unwrap();
    assert_eq!(machine.syncs() - before, 1);
    // A file that grows is synced once more: here, and not under the group. It grows by twice of what does not fit.
    let noise = |i: i64| (i, format!("{:x}", Random(i as u64).next()), None);
    let large: Vec<Row> = (0..40_000).map(noise).collect();
    store.prepare(txn(500), vec![part(3, 0, &large)]).await.unwrap();
    let before = machine.syncs();
    let held = machine.hold_syncs();
    let prepares = (2..=101).map(|id| store.prepare(txn(id), vec![part(1, 0, &rows)]));
    // Unconstrained, so that one poll queues every one of them.
    let all = tokio::task::unconstrained(futures::future::join_all(prepares));
    let mut all = std::pin::pin!(all);
    assert!(futures::poll!(&mut all).is_pending(), "nothing is durable before a sync");
    drop(held);
    for prepared in all.await {
        prepared.unwrap();
    }
    // One for those that the writer took at once, one for all that came while it was at it.
    let groups = machine.syncs() - before;
    assert!(groups <= 2, "100 waiting prepares took {groups} syncs");
}
