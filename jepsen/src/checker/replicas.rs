//! C8: when all is over, every replica that the catalog names is there, and all of a chunk are equal: the same last
//! commit, the same running hash over the commits, the same rows to be seen. The product's own check agrees.
//!
//! Rows that are there and that nobody sees any more, deleted ones, are no matter: each node lets go of them in its own time.

use std::collections::BTreeMap;

use super::{
    Verdict,
    evidence::{Evidence, Replica},
    violation,
};

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::new("C8", "replicas of a chunk are equal in the end");
    let mut held: BTreeMap<(u64, &str), &Replica> = BTreeMap::new();
    for replica in &evidence.closing.replicas {
        held.insert((replica.chunk, &replica.node), replica);
    }
    let catalog = evidence.closing.catalogs.values().next();
    for chunk in catalog.into_iter().flatten() {
        let mut first: Option<&Replica> = None;
        for node in &chunk.nodes {
            let Some(replica) = held.get(&(chunk.id, node.as_str())).copied() else {
                // A chunk without any rows yet has no file.
                let empty = chunk.nodes.iter().all(|node| {
                    held.get(&(chunk.id, node.as_str())).is_none_or(|replica| replica.rows == 0)
                });
                verdict.fact(empty, || {
                    violation(
                        format_args!("{node} is to hold chunk {} and does not", chunk.id),
                        &[],
                    )
                });
                continue;
            };
            let other = first.get_or_insert(replica);
            let same = (other.csn, &other.chain, seen(other))
                == (replica.csn, &replica.chain, seen(replica));
            verdict.fact(same, || {
                let what = format!(
                    "chunk {} has {} rows up to commit {} at {} and {} up to {} at {}; chains {:02x?} and {:02x?}",
                    chunk.id, seen(other), other.csn, other.node, seen(replica), replica.csn,
                    replica.node, other.chain, replica.chain
                );
                violation(what, &[])
            });
            verdict.fact(replica.problem.is_empty(), || {
                violation(format_args!("chunk {} at {node}: {}", chunk.id, replica.problem), &[])
            });
        }
    }
    verdict
}

/// Rows to be seen; all that are there, where nobody counted those.
fn seen(replica: &Replica) -> u64 {
    replica.visible.unwrap_or(replica.rows)
}

#[cfg(test)]
mod tests {
    use super::super::{
        evidence::{CatalogChunk, Replica},
        plant::Plant,
    };

    fn replica(node: &str, rows: u64, csn: u64, chain: u8) -> Replica {
        let (node, chain) = (node.into(), vec![chain]);
        Replica { chunk: 1, node, rows, csn, chain, ..Replica::default() }
    }

    fn plant(replicas: &[Replica]) -> Plant {
        let mut plant = Plant::default();
        let nodes = vec!["d1".into(), "d2".into()];
        let chunk = CatalogChunk { id: 1, name: "c".into(), table: "m".into(), nodes };
        plant.evidence.closing.catalogs.insert("a1".into(), vec![chunk]);
        plant.evidence.closing.replicas = replicas.to_vec();
        plant
    }

    #[test]
    fn replicas_that_differ_are_found() {
        let d1 = replica("d1", 5, 9, 1);
        assert_eq!(plant(&[d1.clone(), replica("d2", 5, 9, 1)]).verdict("C8").found, 0);
        for other in [replica("d2", 4, 9, 1), replica("d2", 5, 8, 1), replica("d2", 5, 9, 2)] {
            assert_eq!(plant(&[d1.clone(), other]).verdict("C8").found, 1);
        }
    }

    #[test]
    fn deleted_rows_that_are_there_still_are_no_matter_and_others_are() {
        let visible =
            |node, rows, visible| Replica { visible: Some(visible), ..replica(node, rows, 9, 1) };
        assert_eq!(plant(&[visible("d1", 5, 4), visible("d2", 9, 4)]).verdict("C8").found, 0);
        assert_eq!(plant(&[visible("d1", 5, 4), visible("d2", 5, 3)]).verdict("C8").found, 1);
    }

    #[test]
    fn what_the_product_itself_finds_is_found() {
        let wrong = Replica { problem: "another history".into(), ..replica("d2", 5, 9, 1) };
        assert_eq!(plant(&[replica("d1", 5, 9, 1), wrong]).verdict("C8").found, 1);
    }

    #[test]
    fn a_replica_that_is_not_there_is_found() {
        assert_eq!(plant(&[replica("d1", 5, 9, 1)]).verdict("C8").found, 1);
        assert_eq!(plant(&[replica("d1", 0, 0, 0)]).verdict("C8").found, 0);
    }
}
