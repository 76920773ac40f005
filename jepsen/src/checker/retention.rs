//! C17: dropped chunks are gone from their drop on, and not before: a read at a snapshot from the drop on shows none of
//! their rows, a read at an earlier one shows all, or fails. What is dropped are the chunks that are there when the drop
//! begins: rows of a statement that was still under way may have made a chunk that the drop did not know of.

use super::{
    Verdict,
    facts::{Facts, Retire},
    violation,
};

pub(super) fn check(facts: &Facts<'_>) -> Verdict {
    let mut verdict = Verdict::new("C17", "dropped rows are gone from their drop on, not before");
    for read in &facts.reads {
        let Some(at) = read.at else { continue };
        for row in facts.matching(&read.filter) {
            if !facts.may_be_retired(&row) {
                continue;
            }
            let Some(write) = facts.write_of(row.uid) else { continue };
            let Some(index) = write.index else { continue };
            let hitting = || facts.retires.iter().filter(|retire| retire.before_us > row.time_us);
            // Drops of unknown place may or may not have come between. One that dropped nothing has no place.
            let crossed = |retire: &Retire| {
                let acked_before = write.acked_us.is_some_and(|acked| acked < retire.start_us);
                !acked_before && retire.index.is_some_and(|drop| drop > index)
            };
            if hitting().any(|retire| !retire.acked || crossed(retire)) {
                continue;
            }
            let drop = hitting()
                .find(|retire| retire.index.is_some_and(|drop| drop > index && drop <= at));
            let there = index <= at && drop.is_none();
            verdict.fact(read.has(row.uid) == there, || {
                let mut ops = vec![read.op.id];
                ops.extend(drop.map(|drop| drop.op));
                let word = if there { "is not" } else { "is" };
                let place = drop.and_then(|drop| drop.index);
                let what = format!("{row}, committed at {index} and dropped at {place:?}, {word} in read {} at {at}", read.op.id);
                violation(what, &ops)
            });
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::plant::Plant;
    use crate::{
        history::{Action, Answer, Filter, Outcome},
        workload::rows::{BASE_US, CHUNK_US, DAYS},
    };

    /// A statement at 5 of the log, and a drop of everything at 10.
    fn planted() -> (Plant, Filter) {
        let mut plant = Plant::default();
        plant.insert_at(1, (0, 10), Some(5));
        let before_us = BASE_US + i64::try_from(DAYS).expect("few") * CHUNK_US;
        let answer = Answer::Written { index: Some(10), rows: 3 };
        plant.op((20, 30), Action::Retire { before_us }, Outcome::Ok, answer);
        (plant, Filter { wid: Some(1), ..Filter::default() })
    }

    #[test]
    fn rows_that_come_back_are_found() {
        let (mut plant, filter) = planted();
        plant.read((40, 50), filter, Some(11), &[]);
        let uids = plant.uids(1);
        plant.read((15, 50), filter, Some(9), &uids);
        let verdict = plant.verdict("C17");
        assert_eq!((verdict.checked, verdict.found), (2 * uids.len() as u64, 0));
        plant.read((60, 70), filter, Some(12), &uids[..1]);
        assert_eq!(plant.verdict("C17").found, 1);
    }

    #[test]
    fn rows_that_go_too_early_are_found() {
        let (mut plant, filter) = planted();
        plant.read((15, 50), filter, Some(9), &[]);
        assert_eq!(plant.verdict("C17").found, plant.uids(1).len() as u64);
    }

    #[test]
    fn rows_under_way_when_the_drop_began_may_stay() {
        let (mut plant, _) = planted();
        plant.insert_at(2, (15, 25), Some(9));
        let filter = Filter { wid: Some(2), ..Filter::default() };
        plant.read((80, 90), filter, Some(13), &plant.uids(2));
        assert_eq!(plant.verdict("C17").found, 0);
    }

    #[test]
    fn rows_written_after_the_drop_stay() {
        let (mut plant, _) = planted();
        plant.insert_at(2, (60, 70), Some(12));
        let filter = Filter { wid: Some(2), ..Filter::default() };
        plant.read((80, 90), filter, Some(13), &plant.uids(2));
        assert_eq!(plant.verdict("C17").found, 0);
        plant.read((80, 90), filter, Some(14), &[]);
        assert!(plant.verdict("C17").found > 0);
    }
}
