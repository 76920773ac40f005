//! C12: UPDATE neither loses nor makes anything. All accounts together have the same in every snapshot; a counter says at
//! least what was acknowledged before it was read, and at most what was begun by then.

use super::{Verdict, evidence::Evidence, violation};
use crate::{
    history::{Action, Answer, Op, Outcome},
    workload::rows::{ACCOUNTS, BALANCE, COUNTERS},
};

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::new("C12", "updates neither lose nor make anything");
    for op in &evidence.ops {
        match (&op.action, &op.answer) {
            (Action::Balances, Answer::Pairs { pairs, .. }) => balances(op.id, pairs, &mut verdict),
            (Action::Counters, Answer::Pairs { pairs, .. }) => {
                counters(evidence, op, pairs, &mut verdict);
            }
            (Action::Transfer { .. }, Answer::Written { rows, .. }) => {
                written(op, *rows, 2, &mut verdict);
            }
            (Action::Count { .. }, Answer::Written { rows, .. }) => {
                written(op, *rows, 1, &mut verdict);
            }
            _ => {}
        }
    }
    verdict
}

fn written(op: &Op, rows: u64, wanted: u64, verdict: &mut Verdict) {
    verdict.fact(rows == wanted, || {
        let name = op.action.name();
        violation(format_args!("{name} {} changed {rows} rows, not {wanted}", op.id), &[op.id])
    });
}

fn balances(id: u64, pairs: &[(u64, i64)], verdict: &mut Verdict) {
    let every: Vec<u64> = pairs.iter().map(|(key, _)| *key).collect();
    let wanted: Vec<u64> = (0..ACCOUNTS).collect();
    verdict.fact(every == wanted, || {
        violation(format_args!("read {id} found the accounts {every:?}"), &[id])
    });
    let sum: i64 = pairs.iter().map(|(_, value)| value).sum();
    let whole = BALANCE * i64::try_from(ACCOUNTS).unwrap_or_default();
    verdict.fact(sum == whole, || {
        violation(format_args!("read {id} found {sum} in all accounts, not {whole}"), &[id])
    });
}

fn counters(evidence: &Evidence, read: &Op, pairs: &[(u64, i64)], verdict: &mut Verdict) {
    let every: Vec<u64> = pairs.iter().map(|(key, _)| *key).collect();
    let wanted: Vec<u64> = (0..COUNTERS).collect();
    verdict.fact(every == wanted, || {
        violation(format_args!("read {} found the counters {every:?}", read.id), &[read.id])
    });
    for (key, value) in pairs {
        let of_counter = |op: &&Op| {
            matches!(op.action, Action::Count { counter, .. } if counter == *key)
                && op.outcome != Outcome::Fail
                && op.start_us <= read.end_us
        };
        let (mut least, mut most) = (0_i64, 0_i64);
        for op in evidence.ops.iter().filter(of_counter) {
            most += 1;
            least += i64::from(op.outcome == Outcome::Ok && op.end_us < read.start_us);
        }
        verdict.fact((least..=most).contains(value), || {
            let what = format!(
                "counter {key} says {value} in read {}, after {least} acknowledged and of {most} begun",
                read.id
            );
            violation(what, &[read.id])
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{super::plant::Plant, *};

    fn read(plant: &mut Plant, times: (u64, u64), action: Action, values: &[i64]) {
        let pairs = (0..).zip(values.iter().copied()).collect();
        plant.op(times, action, Outcome::Ok, Answer::Pairs { at: Some(1), pairs });
    }

    #[test]
    fn money_that_is_made_or_lost_is_found() {
        let mut plant = Plant::default();
        read(&mut plant, (0, 1), Action::Balances, &[990, 1010, 1000, 1000, 1000, 1000]);
        assert_eq!(plant.verdict("C12").found, 0);
        read(&mut plant, (0, 1), Action::Balances, &[990, 1000, 1000, 1000, 1000, 1000]);
        assert_eq!(plant.verdict("C12").found, 1);
        read(&mut plant, (0, 1), Action::Balances, &[2000, 1000, 1000, 1000, 1000]);
        assert_eq!(plant.verdict("C12").found, 2, "an account is gone, the sum is right");
        let action = Action::Transfer { wid: 1, block: false };
        plant.op((0, 1), action, Outcome::Ok, Answer::Written { index: None, rows: 1 });
        assert_eq!(plant.verdict("C12").found, 3);
    }

    #[test]
    fn lost_and_doubled_additions_are_found() {
        let mut plant = Plant::default();
        let add = |plant: &mut Plant, times, outcome| {
            let action = Action::Count { counter: 0, block: false, held_ms: 0 };
            let answer = match outcome {
                Outcome::Ok => Answer::Written { index: None, rows: 1 },
                _ => Answer::Nothing,
            };
            plant.op(times, action, outcome, answer);
        };
        add(&mut plant, (0, 10), Outcome::Ok);
        add(&mut plant, (0, 10), Outcome::Info);
        add(&mut plant, (0, 10), Outcome::Fail);
        for value in [1, 2] {
            read(&mut plant, (20, 30), Action::Counters, &[value, 0, 0]);
        }
        assert_eq!(plant.verdict("C12").found, 0);
        read(&mut plant, (20, 30), Action::Counters, &[0, 0, 0]);
        assert_eq!(plant.verdict("C12").found, 1, "lost");
        read(&mut plant, (20, 30), Action::Counters, &[3, 0, 0]);
        assert_eq!(plant.verdict("C12").found, 2, "doubled, or of one that failed");
        read(&mut plant, (20, 30), Action::Counters, &[1, 0]);
        assert_eq!(plant.verdict("C12").found, 3);
    }
}
