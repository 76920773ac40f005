//! C18: damaged files are mended. When all is over no file of any replica has anything wrong in it. That no wrong row was
//! read meanwhile is part of C1 and C2.

use super::{Verdict, evidence::Evidence, violation};

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::new("C18", "damaged files are found and mended");
    for replica in &evidence.closing.replicas {
        verdict.fact(replica.faults.is_empty(), || {
            let what = format!(
                "chunk {} at {} is damaged: {:?}",
                replica.chunk, replica.node, replica.faults
            );
            violation(what, &[])
        });
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::{evidence::Replica, plant::Plant};

    #[test]
    fn damage_that_stays_is_found() {
        let mut plant = Plant::default();
        for (chunk, faults) in
            [(1, vec![]), (2, vec!["bad checksum".to_owned()]), (3, vec!["cut short".to_owned()])]
        {
            let replica = Replica { chunk, node: "d1".into(), faults, ..Replica::default() };
            plant.evidence.closing.replicas.push(replica);
        }
        let verdict = plant.verdict("C18");
        assert_eq!((verdict.checked, verdict.found), (3, 2));
    }
}
