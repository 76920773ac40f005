//! C15: the cluster comes back by itself. After the last fault is healed writes and reads of every kind that was asked
//! for are answered within seconds, and no node had to be helped.

use super::{Verdict, evidence::Evidence, violation};
use crate::history::{Op, Outcome};

/// Time until a write is acknowledged.
const WRITE_SECONDS: u64 = 10;
/// Time until a read is answered.
const READ_SECONDS: u64 = 5;

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::new("C15", "after the last fault all goes on within seconds");
    let closing = &evidence.closing;
    for (writes, word, seconds) in [(true, "write", WRITE_SECONDS), (false, "read", READ_SECONDS)] {
        let of_kind = |op: &&Op| op.action.writes() == writes && !op.closing;
        if !evidence.ops.iter().any(|op| of_kind(&op)) {
            continue;
        }
        let since = |op: &Op| op.start_us >= closing.healed_us && op.outcome == Outcome::Ok;
        let first =
            evidence.ops.iter().filter(of_kind).filter(|op| since(op)).map(|op| op.end_us).min();
        let took = first.map(|end| end.saturating_sub(closing.healed_us));
        let limit = evidence.config.limit_us(seconds);
        verdict.fact(took.is_some_and(|took| took <= limit), || {
            let took = took.map_or("never".into(), |took| format!("{} ms after", took / 1000));
            violation(
                format_args!("the first {word} after all was healed was answered {took}"),
                &[],
            )
        });
    }
    for fault in &evidence.faults {
        verdict.fact(fault.trouble.is_empty(), || {
            let (kind, nodes) = (fault.event.kind.name(), fault.nodes.join(", "));
            violation(format_args!("after {kind} of {nodes}: {}", fault.trouble), &[])
        });
    }
    for missing in &closing.missing {
        verdict.violate(violation(missing, &[]));
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::plant::Plant;
    use crate::nemesis::plan::{Event, Kind, Record, Status, Target};

    #[test]
    fn writes_and_reads_that_do_not_come_back_are_found() {
        let mut plant = Plant::default();
        plant.evidence.closing.healed_us = 1_000_000;
        plant.insert(1, 0, 10);
        plant.read_all(20, 30, &plant.uids(1));
        assert_eq!(plant.verdict("C15").found, 2);
        plant.insert(2, 1_500_000, 2_000_000);
        assert_eq!(plant.verdict("C15").found, 1);
        plant.read_all(1_500_000, 6_500_000, &[]);
        assert_eq!(plant.verdict("C15").found, 1, "too late");
        plant.read_all(1_500_000, 5_500_000, &[]);
        assert_eq!(plant.verdict("C15").found, 0);
    }

    #[test]
    fn a_node_that_does_not_start_again_is_found() {
        let mut plant = Plant::default();
        let target = Target::Nodes(vec!["d1".into()]);
        let event = Event {
            id: 0,
            at_ms: 0,
            for_ms: 0,
            kind: Kind::Flip,
            target,
            salt: 0,
            after_acks: None,
        };
        plant.evidence.faults.push(Record {
            event,
            nodes: vec!["d1".into()],
            status: Status::Indeterminate,
            effective: true,
            start_us: 0,
            end_us: 1,
            acks: 0,
            proof: String::new(),
            trouble: "d1 ends when it is started".into(),
        });
        assert_eq!(plant.verdict("C15").found, 1);
    }
}
