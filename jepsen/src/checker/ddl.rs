//! C13: tables come and go linearizably, each by itself: there is an order of the statements that agrees with time and
//! in which each finds the table as its answer says (Wing and Gong's search, with a memory of what was tried).
//!
//! A refusal is an answer too: "already exists" says that the table was there. A statement of unknown outcome may take
//! effect at any time after it was sent, or never.

use std::collections::{BTreeMap, BTreeSet};

use super::{Verdict, evidence::Evidence, violation};
use crate::history::{Action, Answer, Op, Outcome};

/// SQLSTATE of a table that is there already.
const EXISTS: &str = "42P07";
/// SQLSTATE of a table that is not there.
const MISSING: &str = "42P01";

/// States of the search after which it is given up.
const STATES_MAX: usize = 300_000;

/// What a statement does to one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Finds it so, and changes nothing.
    Finds(bool),
    /// Makes it so; it was not so before.
    Makes(bool),
}

/// A statement: when it was sent and when its answer came, which may be never.
#[derive(Clone, Copy, Debug)]
struct Call {
    id: u64,
    step: Step,
    start_us: u64,
    end_us: u64,
    /// Whether it certainly took effect.
    sure: bool,
}

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::new("C13", "tables come and go linearizably");
    let mut by_table: BTreeMap<&str, Vec<Call>> = BTreeMap::new();
    for op in &evidence.ops {
        if let Some((table, call)) = call(op) {
            by_table.entry(table).or_default().push(call);
        }
    }
    for (table, mut calls) in by_table {
        calls.sort_by_key(|call| (call.start_us, call.id));
        let found = linearize(&calls);
        if let Found::Order = found {
            verdict.checked += calls.len() as u64;
        }
        if let Found::Stuck(stuck) = found {
            verdict.checked += calls.len() as u64;
            let what =
                format!("no order of the statements about table {table} explains their answers");
            verdict.violate(violation(what, &stuck));
        }
    }
    verdict
}

fn call(op: &Op) -> Option<(&str, Call)> {
    let of = |step, sure| {
        let end_us = if sure { op.end_us } else { u64::MAX };
        Call { id: op.id, step, start_us: op.start_us, end_us, sure }
    };
    match (&op.action, op.outcome, op.state.as_str()) {
        (Action::Create(table), Outcome::Ok, _) => Some((table, of(Step::Makes(true), true))),
        (Action::Create(table), Outcome::Fail, EXISTS) => {
            Some((table, of(Step::Finds(true), true)))
        }
        (Action::Create(table), Outcome::Info, _) => Some((table, of(Step::Makes(true), false))),
        (Action::Drop(table), Outcome::Ok, _) => Some((table, of(Step::Makes(false), true))),
        (Action::Drop(table), Outcome::Fail, MISSING) => {
            Some((table, of(Step::Finds(false), true)))
        }
        (Action::Drop(table), Outcome::Info, _) => Some((table, of(Step::Makes(false), false))),
        (Action::Probe(table), Outcome::Ok, _) => match op.answer {
            Answer::Exists(there) => Some((table, of(Step::Finds(there), true))),
            _ => None,
        },
        _ => None,
    }
}

/// What a search came to.
#[derive(Debug)]
enum Found {
    /// There is an order.
    Order,
    /// There is none; the calls at which the search got furthest.
    Stuck(Vec<u64>),
    /// It was given up: nothing was shown.
    TooMany,
}

/// Looks for an order, from a table that is not there.
///
/// A state is the number of leading calls that are all done, those done beyond them, and whether the table is there.
fn linearize(calls: &[Call]) -> Found {
    let mut tried: BTreeSet<(usize, BTreeSet<usize>, bool)> = BTreeSet::new();
    let mut open = vec![(0, BTreeSet::new(), false)];
    let mut furthest = (0, Vec::new());
    while let Some(state) = open.pop() {
        if !tried.insert(state.clone()) {
            continue;
        }
        if tried.len() > STATES_MAX {
            return Found::TooMany;
        }
        let (done, beyond, there) = state;
        let left = || calls.iter().enumerate().skip(done).filter(|(at, _)| !beyond.contains(at));
        if left().all(|(_, call)| !call.sure) {
            return Found::Order;
        }
        if done >= furthest.0 {
            furthest = (done, left().take(4).map(|(_, call)| call.id).collect());
        }
        // Whatever comes next must have been sent before anything left was answered.
        let horizon = left().map(|(_, call)| call.end_us).min().unwrap_or(u64::MAX);
        let mut next: Vec<(usize, &Call)> =
            left().take_while(|(_, call)| call.start_us <= horizon).collect();
        // The last is tried first: of what surely happened what was answered first, then what may have.
        next.sort_by_key(|(_, call)| std::cmp::Reverse((!call.sure, call.end_us)));
        for (at, call) in next {
            let after = match call.step {
                Step::Finds(found) if found == there => there,
                Step::Makes(made) if made != there => made,
                _ => continue,
            };
            let mut beyond = beyond.clone();
            beyond.insert(at);
            let mut done = done;
            while beyond.remove(&done) {
                done += 1;
            }
            open.push((done, beyond, after));
        }
    }
    Found::Stuck(furthest.1)
}

#[cfg(test)]
mod tests {
    use super::super::plant::Plant;
    use crate::history::{Action, Answer, Outcome};

    fn create(plant: &mut Plant, times: (u64, u64), outcome: Outcome) -> u64 {
        plant.op(times, Action::Create("t".into()), outcome, Answer::Nothing)
    }

    fn drop(plant: &mut Plant, times: (u64, u64), outcome: Outcome) -> u64 {
        plant.op(times, Action::Drop("t".into()), outcome, Answer::Nothing)
    }

    fn probe(plant: &mut Plant, times: (u64, u64), there: bool) -> u64 {
        plant.op(times, Action::Probe("t".into()), Outcome::Ok, Answer::Exists(there))
    }

    #[test]
    fn two_creations_without_a_drop_are_found() {
        let mut plant = Plant::default();
        create(&mut plant, (0, 10), Outcome::Ok);
        drop(&mut plant, (20, 30), Outcome::Ok);
        create(&mut plant, (40, 50), Outcome::Ok);
        assert_eq!((plant.verdict("C13").checked, plant.verdict("C13").found), (3, 0));
        create(&mut plant, (60, 70), Outcome::Ok);
        assert_eq!(plant.verdict("C13").found, 1);
    }

    #[test]
    fn a_table_that_is_not_seen_is_found() {
        let mut plant = Plant::default();
        create(&mut plant, (0, 10), Outcome::Ok);
        probe(&mut plant, (5, 12), false);
        assert_eq!(plant.verdict("C13").found, 0);
        probe(&mut plant, (11, 20), false);
        assert_eq!(plant.verdict("C13").found, 1);
    }

    #[test]
    fn a_refusal_that_lies_is_found() {
        let mut plant = Plant::default();
        let refused = create(&mut plant, (0, 10), Outcome::Fail);
        plant.evidence.ops[refused as usize].state = "42P07".into();
        assert_eq!(plant.verdict("C13").found, 1);
        // It is the truth when someone may have made it meanwhile.
        create(&mut plant, (5, 6), Outcome::Info);
        assert_eq!(plant.verdict("C13").found, 0);
    }

    #[test]
    fn unknown_statements_may_take_effect_late_and_once() {
        let mut plant = Plant::default();
        create(&mut plant, (0, 10), Outcome::Info);
        probe(&mut plant, (20, 30), false);
        probe(&mut plant, (40, 50), true);
        assert_eq!(plant.verdict("C13").found, 0);
        drop(&mut plant, (60, 70), Outcome::Ok);
        probe(&mut plant, (80, 90), true);
        assert_eq!(plant.verdict("C13").found, 1);
    }
}
