//! openraft's own suite on our storage, and power cuts.

pub(super) mod power;

use std::sync::Arc;

use hypertide_proto::ids::AccessId;
use openraft::{
    CommittedLeaderId, EntryPayload,
    testing::{StoreBuilder, Suite},
};
use redb::Durability;
use tempfile::TempDir;
use tokio::sync::watch;

use self::power::{Cut, Recorder};
use super::{
    log_file::LogFile,
    log_store::{LogStore, Write, Writer},
    state_machine::StateMachine,
    types::{Entry, LogId, StorageError, TypeConfig, Vote, encode},
};
use crate::{catalog::Catalog, node::Image};

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError> {
        let dir = TempDir::new().expect("a temporary directory");
        let log = LogStore::open(dir.path(), AccessId(1)).expect("an empty directory opens");
        let image = Image { applied: 0, catalog: Catalog::default() };
        let images = watch::Sender::new(Arc::new(image));
        let machine = StateMachine::open(dir.path(), images).expect("an empty directory opens");
        Ok((dir, log, machine))
    }
}

#[test]
fn openrafts_suite_passes() {
    Suite::test_all(Builder).expect("the suite passes");
}

/// What the log must hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Held {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: Vec<LogId>,
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, 1), index)
}

impl Held {
    fn of(file: &LogFile) -> Self {
        let (purged, last) = file.bounds().expect("readable");
        let entries = file.entries(.., usize::MAX).expect("every entry is whole");
        let entries: Vec<LogId> = entries.into_iter().map(|entry| entry.log_id).collect();
        assert_eq!(last, entries.last().copied().or(purged));
        let holes = entries.windows(2).filter(|pair| pair[0].index + 1 != pair[1].index);
        assert_eq!(holes.count(), 0, "{entries:?}");
        Self { vote: file.meta("vote").expect("readable"), purged, entries }
    }

    /// A step of a node's life: the write, and what must be held after it.
    fn step(&mut self, number: u64) -> Write {
        let term = 1 + number / 7;
        let next = self.entries.last().or(self.purged.as_ref()).map_or(0, |last| last.index + 1);
        match number % 7 {
            0 => {
                let vote = Vote::new(term, number % 3);
                self.vote = Some(vote);
                let body = encode(&vote).expect("a vote");
                Write::Meta { key: "vote", body, durability: Durability::Immediate }
            }
            3 if self.entries.len() > 4 => {
                let since = self.entries.split_off(self.entries.len() - 2)[0].index;
                Write::Truncate { since }
            }
            5 if self.entries.len() > 8 => {
                let upto = self.entries[4];
                self.entries.drain(..=4);
                self.purged = Some(upto);
                Write::Purge { upto }
            }
            6 => {
                let body = encode(&self.entries.last()).expect("a log id");
                Write::Meta { key: "committed", body, durability: Durability::None }
            }
            _ => {
                let ids: Vec<LogId> = (next..next + 3).map(|index| id(term, index)).collect();
                self.entries.extend(&ids);
                let entry = |log_id| Entry { log_id, payload: EntryPayload::Blank };
                let values = ids.into_iter().map(entry);
                let values = values.map(|entry| super::log_file::stored_entry(&entry));
                Write::Append {
                    first: next,
                    values: values.collect::<Result<_, _>>().expect("encoded"),
                }
            }
        }
    }
}

/// Power is cut after every write that redb does, with any of the writes since the last fsync lost: what comes back is
/// what was acknowledged last, or that with the write under way.
#[test]
fn a_power_cut_loses_no_acknowledged_entry_or_vote() {
    let recorder = Recorder::default();
    let file = Arc::new(LogFile::over(recorder.create()).expect("made"));
    let mut writer = Writer::new(Arc::clone(&file)).expect("made");
    recorder.mark();
    let mut held = Held::default();
    let mut history = vec![held.clone()];
    for number in 0..42 {
        writer.perform(held.step(number)).expect("written");
        assert_eq!(Held::of(&file), held, "after step {number}");
        history.push(held.clone());
        recorder.mark();
    }
    let mut cuts = 0;
    recorder.each_cut(1, |Cut { database, marks }| {
        let found = Held::of(&LogFile::over(database).expect("it opens"));
        let under_way = history.get(marks).unwrap_or(&history[marks - 1]);
        let whole = found == history[marks - 1] || found == *under_way;
        assert!(whole, "after {marks} writes: {found:?}, not {:?}", history[marks - 1]);
        cuts += 1;
    });
    assert!(cuts > 300, "only {cuts} cuts");
}

#[test]
fn the_writer_refuses_a_hole_and_everything_after_it() {
    let recorder = Recorder::default();
    let file = Arc::new(LogFile::over(recorder.create()).expect("made"));
    let mut writer = Writer::new(file).expect("made");
    let append = |index| {
        let entry = Entry { log_id: id(1, index), payload: EntryPayload::Blank };
        let value = super::log_file::stored_entry(&entry).expect("encoded");
        Write::Append { first: index, values: vec![value] }
    };
    writer.perform(append(0)).expect("the first entry");
    let hole = writer.perform(append(2)).expect_err("entry 1 is missing").to_string();
    assert_eq!(hole, "entry 2 would leave a hole after entry 0");
    let after = writer.perform(append(1)).expect_err("poisoned").to_string();
    assert!(after.contains("failed before"), "{after}");
}

/// A crash after a received snapshot was published and before its catalog was current: opening does the second half.
#[tokio::test]
async fn a_half_installed_snapshot_is_installed_when_the_node_starts() {
    use openraft::{RaftSnapshotBuilder, storage::RaftStateMachine};
    let image = || watch::Sender::new(Arc::new(Image { applied: 0, catalog: Catalog::default() }));
    let (ahead, behind) = (TempDir::new().expect("made"), TempDir::new().expect("made"));
    let mut machine = StateMachine::open(ahead.path(), image()).expect("empty");
    let blank = |index| Entry { log_id: id(1, index), payload: EntryPayload::Blank };
    machine.apply((0..9).map(blank)).await.expect("applied");
    machine.get_snapshot_builder().await.build_snapshot().await.expect("built");

    drop(StateMachine::open(behind.path(), image()).expect("empty"));
    std::fs::copy(ahead.path().join("snap-1-8.snap"), behind.path().join("snap-1-8.snap"))
        .expect("copied");
    std::fs::write(behind.path().join("catalog.7.redb"), b"left over").expect("written");
    let images = image();
    let mut machine = StateMachine::open(behind.path(), images.clone()).expect("repaired");
    assert_eq!(machine.applied_state().await.expect("known").0, Some(id(1, 8)));
    assert_eq!(images.borrow().applied, 8);
    let current = std::fs::read_to_string(behind.path().join("CURRENT")).expect("a pointer");
    assert!(current.starts_with("catalog.2.redb "), "{current}");
    assert!(!behind.path().join("catalog.7.redb").exists());
    assert!(!behind.path().join("catalog.1.redb").exists());
}

/// A catalog file that came back empty is noticed, whatever redb says.
#[test]
fn a_catalog_that_lost_its_content_is_refused() {
    let dir = TempDir::new().expect("made");
    let image = || watch::Sender::new(Arc::new(Image { applied: 0, catalog: Catalog::default() }));
    drop(StateMachine::open(dir.path(), image()).expect("empty"));
    std::fs::remove_file(dir.path().join("catalog.1.redb")).expect("removed");
    let missing = StateMachine::open(dir.path(), image()).expect_err("missing").to_string();
    assert_eq!(missing, "catalog.1.redb is missing");
    drop(redb::Database::create(dir.path().join("catalog.1.redb")).expect("made"));
    let empty = StateMachine::open(dir.path(), image()).expect_err("empty").to_string();
    assert_eq!(empty, "catalog.1.redb is damaged");
}
