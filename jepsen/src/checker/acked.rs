//! C1: no acknowledged row is lost. A read that starts after an acknowledgement and asks for the row finds it. A row that
//! cannot be read when all is over is lost, too, though the server says so instead of leaving it out.

use std::collections::BTreeMap;

use super::{Verdict, facts::Facts, violation};
use crate::history::{Action, Filter, Op, Outcome};

pub(super) fn check(facts: &Facts<'_>) -> Verdict {
    let mut verdict = Verdict::new("C1", "no acknowledged row is lost");
    for read in &facts.reads {
        for row in facts.matching(&read.filter) {
            let Some(write) = facts.write_of(row.uid) else { continue };
            let acked = write.acked_us.filter(|_| write.outcome == Outcome::Ok);
            let before = acked.is_some_and(|acked| acked < read.op.start_us);
            if !before || facts.may_be_retired(&row) {
                continue;
            }
            verdict.fact(read.has(row.uid), || {
                let ops = [&write.ops[..], &[read.op.id]].concat();
                violation(
                    format_args!("{row} was acknowledged and is not in the read {}", read.op.id),
                    &ops,
                )
            });
        }
    }
    unreadable(facts, &mut verdict);
    verdict
}

/// What no read at the end found at an access node where reads failed.
fn unreadable(facts: &Facts<'_>, verdict: &mut Verdict) {
    let mut failed: BTreeMap<&str, &Op> = BTreeMap::new();
    let mut answered: BTreeMap<&str, Vec<Filter>> = BTreeMap::new();
    for op in facts.evidence.ops.iter().filter(|op| op.closing) {
        match op.action {
            Action::Read(filter) if op.outcome == Outcome::Ok => {
                answered.entry(&op.node).or_default().push(filter);
            }
            Action::Read(_) => drop(failed.insert(&op.node, op)),
            _ => {}
        }
    }
    for (node, op) in failed {
        let answered = answered.get(node).map(Vec::as_slice).unwrap_or_default();
        for write in facts.writes.values().filter(|write| write.outcome == Outcome::Ok) {
            for row in write.rows.iter().filter(|row| !facts.may_be_retired(row)) {
                verdict.fact(answered.iter().any(|filter| filter.matches(row)), || {
                    let what = format!(
                        "{row} was acknowledged and cannot be read at {node} in the end: {} {}",
                        op.state, op.message
                    );
                    violation(what, &[&write.ops[..], &[op.id]].concat())
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::plant::Plant, *};
    use crate::history::{Answer, runs};

    #[test]
    fn a_lost_row_is_found() {
        let mut plant = Plant::default();
        let insert = plant.insert(1, 0, 10);
        plant.read_of(1, 20, 30, |uids| uids.to_vec());
        assert_eq!(plant.verdict("C1").found, 0);
        assert!(plant.verdict("C1").checked > 1);
        let read = plant.read_of(1, 40, 50, |uids| uids[1..].to_vec());
        let verdict = plant.verdict("C1");
        assert_eq!(verdict.found, 1);
        assert_eq!(verdict.violations[0].ops, [insert, read]);
    }

    #[test]
    fn a_table_that_is_empty_again_is_found() {
        let mut plant = Plant::default();
        for wid in 0..5 {
            plant.insert(wid, wid * 10, wid * 10 + 5);
        }
        plant.read_all(100, 110, &[]);
        assert!(plant.verdict("C1").found >= 5);
    }

    #[test]
    fn rows_that_cannot_be_read_in_the_end_are_found() {
        let mut plant = Plant::default();
        for wid in 0..3 {
            plant.insert(wid, wid, wid + 10);
        }
        let of = |wid| Filter { wid: Some(wid), ..Filter::default() };
        let end = |plant: &mut Plant, filter, answer: Option<Vec<u64>>| {
            let (outcome, answer) = match &answer {
                Some(uids) => {
                    let answer =
                        Answer::Rows { at: None, uids: runs(uids), twice: vec![], odd: vec![] };
                    (Outcome::Ok, answer)
                }
                None => (Outcome::Fail, Answer::Nothing),
            };
            let id = plant.op((100, 110), Action::Read(filter), outcome, answer);
            plant.evidence.ops[id as usize].closing = true;
        };
        end(&mut plant, Filter::default(), None);
        let count = |plant: &Plant, wid| plant.uids(wid).len() as u64;
        let all: u64 = (0..3).map(|wid| count(&plant, wid)).sum();
        assert_eq!(plant.verdict("C1").found, all);
        let uids = plant.uids(1);
        end(&mut plant, of(1), Some(uids));
        end(&mut plant, of(2), None);
        assert_eq!(plant.verdict("C1").found, all - count(&plant, 1));
        // A later attempt is answered: nothing is lost.
        let uids = (0..3).flat_map(|wid| plant.uids(wid)).collect();
        end(&mut plant, Filter::default(), Some(uids));
        assert_eq!(plant.verdict("C1").found, 0);
    }

    #[test]
    fn what_may_not_be_there_yet_is_not_missed() {
        let mut plant = Plant::default();
        plant.insert(1, 0, 100);
        plant.read_of(1, 50, 60, |_| Vec::new());
        plant.unknown_insert(2, 0, 10);
        plant.read_of(2, 50, 60, |_| Vec::new());
        assert_eq!(plant.verdict("C1").found, 0);
    }
}
