//! C19: what is restored is what was there at the snapshot of the backup: every statement that was committed up to it,
//! whole, and none that was committed after it.
//!
//! The place of a statement in the log tells on which side it lies; where that is not known, time does: what was
//! acknowledged before the backup began is in it, what began after its end is not. Of the rest nobody knows, but all or
//! none of a statement's rows must be there. Compared are measurements, lists, counters and the sum of all accounts;
//! registers and unique keys are compared by the binary only, with what it read.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{
    Verdict,
    facts::{Facts, Retire, Write},
    violation,
};
use crate::{
    history::{Action, Answer, Op, Outcome, numbers},
    workload::rows::{ACCOUNTS, BALANCE, COUNTERS, ROWS_MAX, Row},
};

/// The backups of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Backups {
    /// Those that were made.
    pub(crate) made: u64,
    /// Those that could not be, while faults were done.
    pub(crate) failed: u64,
    /// Why, the first of them.
    pub(crate) failures: Vec<String>,
    /// Why the one after all faults were healed could not be made.
    pub(crate) last_failure: String,
    /// Those that were restored.
    pub(crate) restored: Vec<Restored>,
}

/// What was restored of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Restored {
    /// Entry of the log up to which the backup says that it has everything.
    pub(crate) snapshot: u64,
    /// When it was begun.
    pub(crate) start_us: u64,
    /// When it was made.
    pub(crate) end_us: u64,
    /// Why it could not be restored.
    pub(crate) error: String,
    /// Numbers of measurements that are as they were written: first and how many.
    pub(crate) uids: Vec<(u64, u64)>,
    /// Numbers of measurements that are there more than once.
    pub(crate) twice: Vec<u64>,
    /// Measurements that nobody wrote.
    pub(crate) odd: Vec<String>,
    /// Lists and their values.
    pub(crate) lists: Vec<(u64, i64)>,
    /// Accounts and what they hold.
    pub(crate) accounts: Vec<(u64, i64)>,
    /// Counters.
    pub(crate) counters: Vec<(u64, i64)>,
}

pub(super) fn check(facts: &Facts<'_>) -> Verdict {
    let mut verdict = Verdict::new("C19", "a restored backup is what was there at its snapshot");
    let backups = &facts.evidence.closing.backups;
    let none = facts.evidence.config.backup && backups.made == 0;
    if none || !backups.last_failure.is_empty() {
        let why = &backups.last_failure;
        let what = format!("of the healed cluster no backup could be made: {why}");
        verdict.violate(violation(what, &[]));
    }
    for restored in &backups.restored {
        let Restored { snapshot, error, twice, odd, .. } = restored;
        verdict.fact(error.is_empty(), || {
            let what = format!("the backup at {snapshot} could not be restored: {error}");
            violation(what, &[])
        });
        if !error.is_empty() {
            continue;
        }
        verdict.fact(twice.is_empty() && odd.is_empty(), || {
            let what = format!(
                "restored at {snapshot}: rows {twice:?} are there twice, rows {odd:?} were written by nobody"
            );
            violation(what, &[])
        });
        measurements(facts, restored, &mut verdict);
        lists(facts, restored, &mut verdict);
        sums(facts, restored, &mut verdict);
    }
    verdict
}

impl Restored {
    /// Whether a statement must be in the backup; `None` when nobody knows.
    fn holds(
        &self,
        outcome: Outcome,
        index: Option<u64>,
        times: (u64, Option<u64>),
    ) -> Option<bool> {
        let (start_us, acked_us) = times;
        match (outcome, index) {
            (Outcome::Fail, _) => Some(false),
            (_, Some(index)) => Some(index <= self.snapshot),
            _ if start_us > self.end_us => Some(false),
            _ if acked_us.is_some_and(|acked| acked < self.start_us) => Some(true),
            _ => None,
        }
    }

    /// The same for an operation that is a statement of its own.
    fn holds_op(&self, op: &Op) -> Option<bool> {
        let index = match op.answer {
            Answer::Written { index, .. } => index,
            _ => None,
        };
        let acked_us = (op.outcome == Outcome::Ok).then_some(op.end_us);
        self.holds(op.outcome, index, (op.start_us, acked_us))
    }
}

/// Whether drops of chunks have left a row that was committed; `None` when nobody knows.
fn left(facts: &Facts<'_>, restored: &Restored, (write, row): (&Write, &Row)) -> Option<bool> {
    let hitting =
        |retire: &&Retire| retire.before_us > row.time_us && retire.start_us <= restored.end_us;
    let mut left = Some(true);
    for retire in facts.retires.iter().filter(hitting) {
        // A chunk that a statement made which was under way when the drop began may stay.
        let known = write.acked_us.is_some_and(|acked| acked < retire.start_us);
        match (retire.index, write.index) {
            (Some(drop), _) if drop > restored.snapshot => {}
            (Some(drop), Some(index)) if index > drop => {}
            (None, _) if retire.acked => {}
            (Some(_), Some(_)) if known => return Some(false),
            _ => left = None,
        }
    }
    left
}

fn measurements(facts: &Facts<'_>, restored: &Restored, verdict: &mut Verdict) {
    let at = restored.snapshot;
    let uids: BTreeSet<u64> = numbers(&restored.uids).collect();
    for write in facts.writes.values() {
        let times = (write.start_us, write.acked_us);
        let holds = restored.holds(write.outcome, write.index, times);
        let mut seen = BTreeSet::new();
        for row in &write.rows {
            let there = uids.contains(&row.uid);
            let expected = match (holds, left(facts, restored, (write, row))) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                (None, Some(true)) => {
                    seen.insert(there);
                    None
                }
                (_, None) => None,
            };
            if let Some(expected) = expected {
                verdict.fact(there == expected, || {
                    let word = if there { "is" } else { "is not" };
                    let index = write.index;
                    let what = format!("{row}, committed at {index:?}, {word} restored at {at}");
                    violation(what, &write.ops)
                });
            }
        }
        verdict.fact(seen.len() <= 1, || {
            violation(format!("a part of a statement is restored at {at}"), &write.ops)
        });
    }
    for uid in uids.iter().filter(|uid| !facts.writes.contains_key(&(*uid / ROWS_MAX))) {
        let what = format!("row {uid} is restored at {at} and nobody wrote it");
        verdict.violate(violation(what, &[]));
    }
}

fn lists(facts: &Facts<'_>, restored: &Restored, verdict: &mut Verdict) {
    let at = restored.snapshot;
    let source = facts.evidence.config.source();
    let mut unexplained: BTreeSet<(u64, i64)> = restored.lists.iter().copied().collect();
    verdict.fact(unexplained.len() == restored.lists.len(), || {
        violation(format!("a value of a list is there twice, restored at {at}"), &[])
    });
    let all = unexplained.clone();
    for op in &facts.evidence.ops {
        let Action::Append { wid } = op.action else { continue };
        let pairs = source.appends(wid).into_iter();
        let pairs: Vec<(u64, i64)> =
            pairs.map(|(key, value)| (key, i64::try_from(value).unwrap_or(i64::MAX))).collect();
        let there = pairs.iter().filter(|pair| all.contains(pair)).count();
        let right = match restored.holds_op(op) {
            Some(true) => there == pairs.len(),
            Some(false) => there == 0,
            None => there == 0 || there == pairs.len(),
        };
        unexplained.retain(|pair| !pairs.contains(pair));
        verdict.fact(right, || {
            let (answer, count) = (&op.answer, pairs.len());
            let what =
                format!("{there} of {count} values appended by {answer:?} are restored at {at}");
            violation(what, &[op.id])
        });
    }
    for (key, value) in unexplained {
        let what =
            format!("value {value} of list {key} is restored at {at} and nobody appended it");
        verdict.violate(violation(what, &[]));
    }
}

fn sums(facts: &Facts<'_>, restored: &Restored, verdict: &mut Verdict) {
    let at = restored.snapshot;
    if !restored.accounts.is_empty() {
        let sum: i64 = restored.accounts.iter().map(|(_, value)| value).sum();
        let accounts = restored.accounts.len() as u64;
        let whole = accounts == ACCOUNTS && sum == BALANCE * i64::try_from(ACCOUNTS).unwrap_or(0);
        verdict.fact(whole, || {
            violation(format!("{accounts} accounts with {sum} are restored at {at}"), &[])
        });
    }
    for counter in (0..COUNTERS).filter(|_| !restored.counters.is_empty()) {
        let counts =
            |op: &&Op| matches!(op.action, Action::Count { counter: of, .. } if of == counter);
        let ops = || facts.evidence.ops.iter().filter(counts);
        let of = |wanted| ops().filter(|op| restored.holds_op(op) == wanted).count();
        let (least, unknown) = (of(Some(true)), of(None));
        let found: Vec<i64> = restored
            .counters
            .iter()
            .filter(|(key, _)| *key == counter)
            .map(|pair| pair.1)
            .collect();
        let range = least..=least + unknown;
        let right = match found.as_slice() {
            [value] => usize::try_from(*value).is_ok_and(|value| range.contains(&value)),
            _ => false,
        };
        verdict.fact(right, || {
            let what =
                format!("counter {counter} is restored at {at} as {found:?}, not within {range:?}");
            violation(what, &[])
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{super::plant::Plant, *};
    use crate::{
        history::runs,
        workload::rows::{BASE_US, CHUNK_US},
    };

    /// Statements at 5 and 15 of the log, one of unknown outcome, one that failed, and a backup at 10.
    fn planted() -> Plant {
        let mut plant = Plant::default();
        plant.evidence.config.backup = true;
        plant.insert_at(1, (0, 10), Some(5));
        plant.insert_at(2, (20, 30), Some(15));
        plant.unknown_insert(3, 0, 10);
        plant.failed_insert(4, 0, 10);
        let restored = Restored { snapshot: 10, start_us: 12, end_us: 25, ..Restored::default() };
        plant.evidence.closing.backups =
            Backups { made: 1, restored: vec![restored], ..Backups::default() };
        plant
    }

    fn with(plant: &Plant, uids: &[u64]) -> Verdict {
        let mut plant = plant.clone();
        plant.evidence.closing.backups.restored[0].uids = runs(uids);
        plant.verdict("C19")
    }

    #[test]
    fn what_was_committed_up_to_the_snapshot_passes() {
        let plant = planted();
        let verdict = with(&plant, &plant.uids(1));
        assert!(verdict.checked > 4 && verdict.found == 0, "{verdict:?}");
        // The statement of unknown outcome may be there, too.
        assert_eq!(with(&plant, &[plant.uids(1), plant.uids(3)].concat()).found, 0);
    }

    #[test]
    fn rows_that_are_missing_or_too_many_are_found() {
        let plant = planted();
        let (first, second) = (plant.uids(1), plant.uids(2));
        assert_eq!(with(&plant, &[]).found, first.len() as u64);
        let late = [first.clone(), second.clone()].concat();
        assert_eq!(with(&plant, &late).found, second.len() as u64, "it was committed after");
        assert_eq!(with(&plant, &[&first[..], &plant.uids(4)[..1]].concat()).found, 1, "it failed");
        assert_eq!(
            with(&plant, &[&first[..], &[9 * ROWS_MAX]].concat()).found,
            1,
            "nobody wrote it"
        );
    }

    #[test]
    fn a_part_of_a_statement_is_found() {
        let mut plant = planted();
        let many = (10..40).find(|wid| plant.uids(*wid).len() > 1).expect("most have several");
        plant.unknown_insert(many, 0, 11);
        let (whole, part) = (plant.uids(many), plant.uids(many).len() - 1);
        let with_part = [&plant.uids(1)[..], &whole[..part]].concat();
        assert_eq!(with(&plant, &[plant.uids(1), whole].concat()).found, 0);
        assert_eq!(with(&plant, &with_part).found, 1);
    }

    #[test]
    fn what_was_dropped_before_is_not_restored_and_what_was_dropped_after_is() {
        let before_us = BASE_US + 100 * CHUNK_US;
        for (drop, holds) in [(8, false), (12, true)] {
            let mut plant = planted();
            let answer = Answer::Written { index: Some(drop), rows: 1 };
            plant.op((11, 13), Action::Retire { before_us }, Outcome::Ok, answer);
            let rows = plant.uids(1);
            let (with_rows, without) = (with(&plant, &rows).found, with(&plant, &[]).found);
            assert_eq!((with_rows == 0, without == 0), (holds, !holds), "dropped at {drop}");
        }
    }

    #[test]
    fn a_backup_that_cannot_be_made_or_restored_is_found() {
        let mut plant = planted();
        plant.evidence.closing.backups.restored[0].error = "its checksum is wrong".into();
        assert_eq!(plant.verdict("C19").found, 1);
        plant.evidence.closing.backups = Backups { failed: 3, ..Backups::default() };
        assert_eq!(plant.verdict("C19").found, 1, "none was made");
        plant.evidence.config.backup = false;
        assert_eq!(plant.verdict("C19").found, 0, "none was asked for");
        let mut plant = planted();
        plant.evidence.closing.backups.restored[0].uids = runs(&plant.uids(1));
        plant.evidence.closing.backups.restored[0].twice = vec![64];
        assert_eq!(plant.verdict("C19").found, 1);
    }

    #[test]
    fn lists_counters_and_accounts_are_compared() {
        let mut plant = planted();
        let uids = plant.uids(1);
        let written = |index| Answer::Written { index: Some(index), rows: 1 };
        plant.op((0, 5), Action::Append { wid: 7 }, Outcome::Ok, written(6));
        plant.op((20, 25), Action::Append { wid: 8 }, Outcome::Ok, written(16));
        plant.op(
            (0, 5),
            Action::Count { counter: 0, block: false, held_ms: 0 },
            Outcome::Ok,
            written(7),
        );
        plant.op(
            (0, 5),
            Action::Count { counter: 1, block: true, held_ms: 0 },
            Outcome::Info,
            Answer::Nothing,
        );
        let source = plant.evidence.config.source();
        let values = |wid| {
            let pairs = source.appends(wid).into_iter();
            pairs.map(|(key, value)| (key, value.cast_signed())).collect::<Vec<_>>()
        };
        let whole = Restored {
            lists: values(7),
            counters: vec![(0, 1), (1, 1), (2, 0)],
            accounts: (0..ACCOUNTS).map(|key| (key, BALANCE)).collect(),
            uids: runs(&uids),
            ..plant.evidence.closing.backups.restored[0].clone()
        };
        let found = |restored: Restored| {
            let mut plant = plant.clone();
            plant.evidence.closing.backups.restored = vec![restored];
            plant.verdict("C19").found
        };
        assert_eq!(found(whole.clone()), 0);
        assert_eq!(found(Restored { lists: Vec::new(), ..whole.clone() }), 1);
        assert_eq!(found(Restored { lists: [values(7), values(8)].concat(), ..whole.clone() }), 1);
        assert_eq!(found(Restored { counters: vec![(0, 2), (1, 0), (2, 0)], ..whole.clone() }), 1);
        assert_eq!(found(Restored { counters: vec![(0, 1), (1, 2), (2, 0)], ..whole.clone() }), 1);
        let accounts = (0..ACCOUNTS).map(|key| (key, BALANCE - 1)).collect();
        assert_eq!(found(Restored { accounts, ..whole }), 1);
    }
}
