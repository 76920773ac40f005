//! C2: nothing is read that was not written. Every row is one of an acknowledged statement, or of one whose outcome is
//! not known, that had begun; it equals what was written byte for byte; and it is one that was asked for.

use super::{Verdict, facts::Facts, violation};
use crate::history::Outcome;

pub(super) fn check(facts: &Facts<'_>) -> Verdict {
    let mut verdict = Verdict::new("C2", "nothing is read that was not written");
    let source = facts.evidence.config.source();
    for read in &facts.reads {
        let id = read.op.id;
        for odd in read.odd {
            verdict.fact(false, || {
                violation(format_args!("read {id} has a row that nobody wrote: {odd}"), &[id])
            });
        }
        for uid in &read.uids {
            let asked = source.row_of(*uid).is_some_and(|row| read.filter.matches(&row));
            verdict.fact(asked, || {
                violation(format_args!("read {id} has row {uid}, which it did not ask for"), &[id])
            });
            let write = facts.write_of(*uid);
            let may = write.is_some_and(|write| {
                write.outcome != Outcome::Fail && write.start_us <= read.op.end_us
            });
            verdict.fact(may, || {
                let ops = write.map(|write| write.ops.clone()).unwrap_or_default();
                let what = match write.map(|write| write.outcome) {
                    None => "of a statement that was never sent",
                    Some(Outcome::Fail) => "of a statement that failed",
                    Some(_) => "from the future",
                };
                violation(format_args!("read {id} has row {uid} {what}"), &[ops, vec![id]].concat())
            });
        }
    }
    for write in facts.writes.values().filter(|write| write.acked_though_cut) {
        let what = "a stream that the client broke off was acknowledged";
        verdict.violate(violation(what, &write.ops));
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::plant::Plant;
    use crate::history::Answer;

    #[test]
    fn a_row_of_a_failed_statement_is_found() {
        let mut plant = Plant::default();
        let insert = plant.failed_insert(1, 0, 10);
        let uid = plant.uids(1)[0];
        let read = plant.read_all(20, 30, &[uid]);
        let verdict = plant.verdict("C2");
        assert_eq!((verdict.found, &verdict.violations[0].ops), (1, &vec![insert, read]));
    }

    #[test]
    fn a_changed_row_and_one_of_nobody_are_found() {
        let mut plant = Plant::default();
        plant.insert(1, 0, 10);
        let read = plant.read_all(20, 30, &plant.uids(1));
        assert_eq!(plant.verdict("C2").found, 0);
        if let Answer::Rows { odd, .. } = &mut plant.evidence.ops[read as usize].answer {
            odd.push("2026|s1|64|5|beef".into());
        }
        plant.read_all(40, 50, &[900 * 64]);
        assert_eq!(plant.verdict("C2").found, 2);
    }

    #[test]
    fn a_row_before_its_statement_and_one_not_asked_for_are_found() {
        let mut plant = Plant::default();
        plant.insert(1, 50, 60);
        plant.insert(2, 0, 5);
        plant.read_all(20, 30, &plant.uids(1)[..1]);
        let other = plant.uids(2)[0];
        plant.read_of(1, 70, 80, |uids| [uids, &[other]].concat());
        assert_eq!(plant.verdict("C2").found, 2);
    }

    #[test]
    fn rows_of_unknown_statements_may_be_there() {
        let mut plant = Plant::default();
        plant.unknown_insert(1, 0, 10);
        plant.read_all(20, 30, &plant.uids(1));
        assert_eq!(plant.verdict("C2").found, 0);
    }
}
