//! C16: failures are clean. No node panics; every refusal has an SQLSTATE of a kind that is meant for clients; no
//! statement fails without a fault being on or just over; a node that is asked to end does; none uses more than it
//! should ([`usage`]).

use super::{Verdict, evidence::Evidence, usage, violation};
use crate::history::{Action, Op, Outcome, Path};

/// Time after a fault in which statements may still fail.
const GRACE_SECONDS: u64 = 10;
/// Of this many statements without a fault one may fail.
const PER_FAILURE: u64 = 1_000;

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::new("C16", "failures are clean");
    for complaint in &evidence.closing.complaints {
        let sound = !complaint.line.contains("panicked")
            && (!evidence.faults.is_empty() || !complaint.line.contains(" ERROR "));
        verdict
            .fact(sound, || violation(format_args!("{}: {}", complaint.node, complaint.line), &[]));
    }
    for node in &evidence.closing.unstoppable {
        verdict.violate(violation(format_args!("{node} did not end when it was asked to"), &[]));
    }
    for op in &evidence.ops {
        verdict.fact(!op.state.starts_with("XX"), || {
            violation(
                format_args!(
                    "{} {} failed with {}: {}",
                    op.action.name(),
                    op.id,
                    op.state,
                    op.message
                ),
                &[op.id],
            )
        });
    }
    quiet_times(evidence, &mut verdict);
    usage::check(evidence, &mut verdict);
    verdict
}

/// Statements in times without a fault.
fn quiet_times(evidence: &Evidence, verdict: &mut Verdict) {
    let grace = evidence.config.limit_us(GRACE_SECONDS);
    let quiet = |op: &&Op| {
        let mut faults = evidence.faults.iter();
        !op.closing
            && faults.all(|fault| op.end_us < fault.start_us || op.start_us > fault.end_us + grace)
    };
    let (mut all, mut failed) = (0, Vec::new());
    for op in evidence.ops.iter().filter(quiet) {
        all += 1;
        if op.outcome != Outcome::Ok && !expected(op) {
            failed.push(op);
        }
    }
    let few = failed.len() as u64 * PER_FAILURE <= all;
    verdict.fact(few, || {
        let ids: Vec<u64> = failed.iter().take(5).map(|op| op.id).collect();
        let first = failed.first().map(|op| format!("{} {}", op.state, op.message));
        let what = format!(
            "{} of {all} statements failed without a fault: {}",
            failed.len(),
            first.unwrap_or_default()
        );
        violation(what, &ids)
    });
}

/// Whether a failure is what was asked for.
pub(super) fn expected(op: &Op) -> bool {
    match op.action {
        Action::Create(_) => op.state == "42P07",
        Action::Drop(_) => op.state == "42P01",
        // Somebody else was at the same rows: to be tried again.
        Action::Put { .. }
        | Action::Transfer { .. }
        | Action::Count { .. }
        | Action::Swap { .. } => {
            matches!(op.state.as_str(), "40001" | "40P01" | "23505")
        }
        Action::Insert { path: Path::Cancelled, .. } => op.state == "57014",
        _ => op.state == "cut",
    }
}

#[cfg(test)]
mod tests {
    use super::super::{evidence::Complaint, plant::Plant};

    #[test]
    fn a_panic_is_found() {
        let mut plant = Plant::default();
        let line = "thread 'main' panicked at src/x.rs".to_owned();
        plant.evidence.closing.complaints.push(Complaint { node: "d1".into(), line });
        assert_eq!(plant.verdict("C16").found, 1);
    }

    #[test]
    fn an_internal_error_is_found() {
        let mut plant = Plant::default();
        for wid in 0..2_000 {
            plant.insert(wid, wid, wid + 1);
        }
        let insert = plant.failed_insert(9_999, 0, 10);
        assert_eq!(plant.verdict("C16").found, 0);
        plant.evidence.ops[insert as usize].state = "XX000".into();
        assert_eq!(plant.verdict("C16").found, 1);
    }

    #[test]
    fn failures_without_a_fault_and_nodes_that_do_not_end_are_found() {
        let mut plant = Plant::default();
        for wid in 0..100 {
            plant.insert(wid, wid, wid + 1);
        }
        plant.failed_insert(101, 0, 10);
        assert_eq!(plant.verdict("C16").found, 1);
        plant.evidence.closing.unstoppable.push("d1".into());
        assert_eq!(plant.verdict("C16").found, 2);
    }
}
