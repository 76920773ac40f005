//! C6: real time. A read that starts after a write was acknowledged, or after another read ended, reads up to at least
//! where that one was; a write that starts after another was acknowledged comes behind it in the log.

use super::{Verdict, evidence::Evidence, violation};
use crate::history::{Answer, Op, Outcome};

/// An operation's place in the log.
#[derive(Clone, Copy, Debug)]
struct Place<'a> {
    op: &'a Op,
    index: u64,
    write: bool,
}

fn place(op: &Op) -> Option<Place<'_>> {
    if op.outcome != Outcome::Ok {
        return None;
    }
    match op.answer {
        Answer::Written { index, .. } => Some(Place { op, index: index?, write: true }),
        ref answer => Some(Place { op, index: answer.at()?, write: false }),
    }
}

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::new("C6", "what starts later reads and commits later");
    let mut starts: Vec<Place<'_>> = evidence.ops.iter().filter_map(place).collect();
    let mut ends = starts.clone();
    starts.sort_by_key(|place| place.op.start_us);
    ends.sort_by_key(|place| place.op.end_us);
    let mut ends = ends.into_iter().peekable();
    // The furthest places of what ended before: of any, and of writes alone.
    let (mut any, mut wrote): (Option<Place<'_>>, Option<Place<'_>>) = (None, None);
    for next in starts {
        while let Some(end) = ends.next_if(|end| end.op.end_us < next.op.start_us) {
            let further = |than: Option<Place<'_>>| than.is_none_or(|than| than.index < end.index);
            if further(any) {
                any = Some(end);
            }
            if end.write && further(wrote) {
                wrote = Some(end);
            }
        }
        let before = if next.write { wrote } else { any };
        let Some(before) = before else { continue };
        let holds = if next.write { before.index < next.index } else { before.index <= next.index };
        verdict.fact(holds, || {
            let what = format!(
                "{} {} ended at {} of the log before {} {} began, which is at {}",
                before.op.action.name(),
                before.op.id,
                before.index,
                next.op.action.name(),
                next.op.id,
                next.index
            );
            violation(what, &[before.op.id, next.op.id])
        });
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::plant::Plant;
    use crate::history::Filter;

    #[test]
    fn a_stale_read_is_found() {
        let mut plant = Plant::default();
        let insert = plant.insert_at(1, (0, 10), Some(7));
        plant.read((5, 20), Filter::default(), Some(6), &[]);
        assert_eq!(plant.verdict("C6").found, 0);
        let read = plant.read((11, 20), Filter::default(), Some(6), &[]);
        assert_eq!(plant.verdict("C6").violations[0].ops, [insert, read]);
    }

    #[test]
    fn reads_that_go_back_are_found() {
        let mut plant = Plant::default();
        plant.read((0, 10), Filter::default(), Some(9), &[]);
        plant.read((20, 30), Filter::default(), Some(9), &[]);
        assert_eq!(plant.verdict("C6").found, 0);
        plant.read((40, 50), Filter::default(), Some(8), &[]);
        assert_eq!(plant.verdict("C6").found, 1);
    }

    #[test]
    fn writes_out_of_order_are_found() {
        let mut plant = Plant::default();
        plant.insert_at(1, (0, 10), Some(9));
        plant.insert_at(2, (20, 30), Some(9));
        assert_eq!(plant.verdict("C6").found, 1);
    }
}
