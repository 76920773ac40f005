//! C1: no acknowledged row is lost. A read that starts after an acknowledgement and asks for the row finds it.

use super::{Verdict, facts::Facts, violation};
use crate::history::Outcome;

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
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::plant::Plant;

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
    fn what_may_not_be_there_yet_is_not_missed() {
        let mut plant = Plant::default();
        plant.insert(1, 0, 100);
        plant.read_of(1, 50, 60, |_| Vec::new());
        plant.unknown_insert(2, 0, 10);
        plant.read_of(2, 50, 60, |_| Vec::new());
        assert_eq!(plant.verdict("C1").found, 0);
    }
}
