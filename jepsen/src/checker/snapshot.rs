//! C5: what a read finds is a function of its snapshot alone. A row is there exactly from the entry of the log that
//! committed it on, at every access node and from every replica; equal questions at one snapshot have equal answers.

use std::collections::BTreeMap;

use super::{
    Verdict,
    facts::{Facts, Reading},
    violation,
};
use crate::history::Filter;

/// Between which entries of the log a row came to be, as reads show it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bounds {
    /// The last snapshot without it, and the read.
    pub(super) absent: Option<(u64, u64)>,
    /// The first snapshot with it, and the read.
    pub(super) present: Option<(u64, u64)>,
}

/// The bounds of every row that anyone asked for.
pub(super) fn bounds(facts: &Facts<'_>) -> BTreeMap<u64, Bounds> {
    let mut all: BTreeMap<u64, Bounds> = BTreeMap::new();
    for read in &facts.reads {
        let Some(at) = read.at else { continue };
        for row in facts.matching(&read.filter) {
            if facts.may_be_retired(&row) {
                continue;
            }
            let bounds = all.entry(row.uid).or_default();
            let seen = (at, read.op.id);
            if read.has(row.uid) {
                bounds.present = Some(bounds.present.map_or(seen, |first| first.min(seen)));
            } else {
                bounds.absent = Some(bounds.absent.map_or(seen, |last| last.max(seen)));
            }
        }
    }
    all
}

pub(super) fn check(facts: &Facts<'_>) -> Verdict {
    let mut verdict = Verdict::new("C5", "what is read depends on the snapshot alone");
    for (uid, Bounds { absent, present }) in bounds(facts) {
        if let (Some((absent, before)), Some((present, after))) = (absent, present) {
            verdict.fact(absent < present, || {
                let what = format!("row {uid} is there at {present} (read {after}) and not at {absent} (read {before})");
                violation(what, &[after, before])
            });
        }
        let write = facts.write_of(uid);
        let Some((write, index)) = write.and_then(|write| Some((write, write.index?))) else {
            continue;
        };
        for (read, holds, word) in [
            absent.map(|(at, read)| (read, at < index, "is not there")),
            present.map(|(at, read)| (read, at >= index, "is there")),
        ]
        .into_iter()
        .flatten()
        {
            verdict.fact(holds, || {
                let what = format!("row {uid} was committed at {index} and {word} in read {read}");
                violation(what, &[&write.ops[..], &[read]].concat())
            });
        }
    }
    same_answers(facts, &mut verdict);
    verdict
}

fn same_answers(facts: &Facts<'_>, verdict: &mut Verdict) {
    let mut first: BTreeMap<(u64, Filter), &Reading<'_>> = BTreeMap::new();
    for read in &facts.reads {
        let Some(at) = read.at else { continue };
        let earlier = *first.entry((at, read.filter)).or_insert(read);
        if earlier.op.id != read.op.id {
            let ops = [earlier.op.id, read.op.id];
            verdict.fact(earlier.uids == read.uids, || {
                violation(
                    format_args!("reads {} and {} differ at snapshot {at}", ops[0], ops[1]),
                    &ops,
                )
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::plant::Plant, *};

    fn read(plant: &mut Plant, wid: u64, at: u64, there: bool) -> u64 {
        let uids = if there { plant.uids(wid) } else { Vec::new() };
        let filter = Filter { wid: Some(wid), ..Filter::default() };
        plant.read((0, 1000), filter, Some(at), &uids)
    }

    #[test]
    fn rows_that_come_and_go_are_found() {
        let mut plant = Plant::default();
        plant.unknown_insert(1, 0, 10);
        read(&mut plant, 1, 5, false);
        read(&mut plant, 1, 9, true);
        assert_eq!(plant.verdict("C5").found, 0);
        read(&mut plant, 1, 12, false);
        assert_eq!(plant.verdict("C5").found, plant.uids(1).len() as u64);
    }

    #[test]
    fn rows_on_the_wrong_side_of_their_commit_are_found() {
        let mut plant = Plant::default();
        plant.insert_at(1, (0, 10), Some(20));
        read(&mut plant, 1, 19, false);
        read(&mut plant, 1, 20, true);
        assert_eq!(plant.verdict("C5").found, 0);
        let mut early = plant.clone();
        read(&mut early, 1, 18, true);
        assert!(early.verdict("C5").found > 0);
        read(&mut plant, 1, 21, false);
        assert!(plant.verdict("C5").found > 0);
    }

    #[test]
    fn two_answers_at_one_snapshot_are_found() {
        let mut plant = Plant::default();
        plant.insert(1, 0, 10);
        let one = read(&mut plant, 1, 30, true);
        let filter = Filter { wid: Some(1), ..Filter::default() };
        let uids = plant.uids(1);
        let two = plant.read((0, 9), filter, Some(30), &uids[1..]);
        let found = plant.verdict("C5").violations;
        assert!(found.iter().any(|violation| violation.ops == [one, two]), "{found:?}");
    }
}
