//! C20: the run means something. Faults that were declared were done and had an effect, most statements were answered,
//! and there was something to check: otherwise the run is invalid, not good.

use std::collections::BTreeMap;

use super::{Verdict, clean::expected, evidence::Evidence, violation};
use crate::{
    history::{Action, Outcome},
    nemesis::plan::{Kind, Status},
};

/// Statements of 100 that must have been acknowledged.
const OK_PERCENT: u64 = 60;
/// Statements without which nothing was tried.
const OPS_MIN: u64 = 50;

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::new("C20", "faults had an effect and statements were answered");
    // How often a kind was tried, and how often it had an effect.
    let mut kinds: BTreeMap<Kind, (u64, u64)> = BTreeMap::new();
    // One that was not done says so in the results; that none of all was done is told below.
    for fault in evidence.faults.iter().filter(|fault| fault.status != Status::Skipped) {
        let (tried, effective) = kinds.entry(fault.event.kind).or_default();
        *tried += 1;
        *effective += u64::from(fault.effective);
    }
    for (kind, (tried, effective)) in &kinds {
        verdict.fact(*effective > 0, || {
            violation(
                format_args!("{} was tried {tried} times and never had an effect", kind.name()),
                &[],
            )
        });
    }
    let any =
        evidence.config.faults.is_empty() || kinds.values().any(|(_, effective)| *effective > 0);
    verdict.fact(any, || violation("no fault of the declared kinds had an effect", &[]));
    let asked: Vec<_> =
        evidence.ops.iter().filter(|op| op.outcome == Outcome::Ok || !expected(op)).collect();
    let (all, ok) =
        (asked.len() as u64, asked.iter().filter(|op| op.outcome == Outcome::Ok).count() as u64);
    verdict
        .fact(all >= OPS_MIN, || violation(format_args!("there were only {all} statements"), &[]));
    verdict.fact(ok * 100 >= all * OK_PERCENT, || {
        violation(format_args!("only {ok} of {all} statements were acknowledged"), &[])
    });
    let closing = evidence.ops.iter().any(|op| op.closing && op.outcome == Outcome::Ok);
    let rows = evidence.ops.iter().any(|op| matches!(op.action, Action::Insert { .. }));
    verdict.fact(closing || !rows, || violation("nothing was read when all was over", &[]));
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::plant::Plant;
    use crate::nemesis::plan::{Event, Kind, Record, Status, Target};

    fn planted() -> Plant {
        let mut plant = Plant::default();
        for wid in 0..60 {
            plant.insert(wid, wid, wid + 1);
        }
        let read = plant.read_all(100, 110, &[]);
        plant.evidence.ops[read as usize].closing = true;
        plant
    }

    fn fault(effective: bool) -> Record {
        let target = Target::Nodes(vec!["d1".into()]);
        let event = Event {
            id: 0,
            at_ms: 0,
            for_ms: 0,
            kind: Kind::Kill,
            target,
            salt: 0,
            after_acks: None,
        };
        Record {
            event,
            nodes: vec!["d1".into()],
            status: Status::Installed,
            effective,
            start_us: 0,
            end_us: 1,
            acks: 0,
            proof: String::new(),
            trouble: String::new(),
        }
    }

    #[test]
    fn faults_without_effect_are_found() {
        let mut plant = planted();
        assert_eq!(plant.verdict("C20").found, 0);
        plant.evidence.config.faults.push(Kind::Kill);
        assert_eq!(plant.verdict("C20").found, 1);
        plant.evidence.faults.push(fault(false));
        assert_eq!(plant.verdict("C20").found, 2);
        plant.evidence.faults.push(fault(true));
        assert_eq!(plant.verdict("C20").found, 0);
    }

    #[test]
    fn a_cluster_that_answers_nothing_is_found() {
        let mut plant = planted();
        for wid in 100..160 {
            plant.failed_insert(wid, 0, 1);
        }
        assert_eq!(plant.verdict("C20").found, 1);
    }

    #[test]
    fn a_run_in_which_nothing_was_tried_is_found() {
        assert!(Plant::default().verdict("C20").found > 0);
    }
}
