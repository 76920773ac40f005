//! C4: exactly once. No row comes twice, also after retries, and an acknowledgement names all rows of its statement.

use super::{Verdict, facts::Facts, violation};
use crate::history::{Action, Answer};

pub(super) fn check(facts: &Facts<'_>) -> Verdict {
    let mut verdict = Verdict::new("C4", "every row is there once, also after retries");
    for read in &facts.reads {
        let id = read.op.id;
        verdict.fact(read.twice.is_empty(), || {
            let mut ops: Vec<u64> = read
                .twice
                .iter()
                .filter_map(|uid| facts.write_of(*uid))
                .flat_map(|w| w.ops.clone())
                .collect();
            ops.dedup();
            ops.push(id);
            violation(format_args!("read {id} has rows {:?} more than once", read.twice), &ops)
        });
    }
    for op in &facts.evidence.ops {
        if let (Action::Insert { wid, .. }, Answer::Written { rows, .. }) = (&op.action, &op.answer)
        {
            let wanted = facts.writes.get(wid).map_or(0, |write| write.rows.len() as u64);
            verdict.fact(*rows == wanted, || {
                let what =
                    format!("statement {wid} has {wanted} rows and was acknowledged with {rows}");
                violation(what, &[op.id])
            });
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::plant::Plant;
    use crate::history::Answer;

    #[test]
    fn a_row_that_comes_twice_is_found() {
        let mut plant = Plant::default();
        plant.insert(1, 0, 10);
        let again = plant.insert(1, 20, 30);
        let read = plant.read_all(40, 50, &plant.uids(1));
        assert_eq!(plant.verdict("C4").found, 0);
        let uid = plant.uids(1)[0];
        if let Answer::Rows { twice, .. } = &mut plant.evidence.ops[read as usize].answer {
            twice.push(uid);
        }
        let verdict = plant.verdict("C4");
        assert_eq!((verdict.found, &verdict.violations[0].ops), (1, &vec![0, again, read]));
    }

    #[test]
    fn acknowledgements_of_too_few_or_too_many_rows_are_found() {
        let mut plant = Plant::default();
        for (wid, off) in [(1, 1), (2, u64::MAX)] {
            let insert = plant.insert(wid, 0, 10);
            if let Answer::Written { rows, .. } = &mut plant.evidence.ops[insert as usize].answer {
                *rows = rows.wrapping_add(off);
            }
        }
        assert_eq!(plant.verdict("C4").found, 2);
    }
}
