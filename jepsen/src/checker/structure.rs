//! C14: the catalog is well formed when all is over: no chunk without a replica or with two on one node, none on a node
//! that is not there, and every chunk has all its replicas again some time after the last fault.

use super::{Verdict, evidence::Evidence, violation};

/// Time for every chunk to have its replicas again.
const RESTORE_SECONDS: u64 = 120;

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::new("C14", "chunks have their replicas, and again after faults");
    let closing = &evidence.closing;
    for (access, chunks) in &closing.catalogs {
        for chunk in chunks {
            let mut nodes = chunk.nodes.clone();
            nodes.sort();
            nodes.dedup();
            let sound = !nodes.is_empty() && nodes.len() == chunk.nodes.len();
            verdict.fact(sound, || {
                violation(format_args!("{access} has chunk {} at {:?}", chunk.id, chunk.nodes), &[])
            });
        }
    }
    let limit = evidence.config.limit_us(RESTORE_SECONDS);
    let took = closing.restored_us.map(|at| at.saturating_sub(closing.healed_us));
    verdict.fact(took.is_some_and(|took| took <= limit), || {
        let what = match took {
            Some(took) => {
                format!("replicas were restored only {} s after the last fault", took / 1_000_000)
            }
            None => format!("replicas were not restored: {}", closing.not_restored),
        };
        violation(what, &[])
    });
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::{evidence::CatalogChunk, plant::Plant};

    fn plant(nodes: &[&str]) -> Plant {
        let mut plant = Plant::default();
        let nodes = nodes.iter().map(|name| (*name).to_owned()).collect();
        let chunk = CatalogChunk { id: 1, name: "c".into(), table: "m".into(), nodes };
        plant.evidence.closing.catalogs.insert("a1".into(), vec![chunk]);
        plant
    }

    #[test]
    fn a_chunk_without_or_with_one_replica_twice_is_found() {
        assert_eq!(plant(&["d1", "d2"]).verdict("C14").found, 0);
        assert_eq!(plant(&[]).verdict("C14").found, 1);
        assert_eq!(plant(&["d1", "d1"]).verdict("C14").found, 1);
    }

    #[test]
    fn replicas_that_do_not_come_back_are_found() {
        let mut plant = plant(&["d1", "d2"]);
        plant.evidence.closing.restored_us = None;
        assert_eq!(plant.verdict("C14").found, 1);
        plant.evidence.closing.restored_us = Some(500_000_000);
        assert_eq!(plant.verdict("C14").found, 1);
    }
}
