//! C7, as far as it is seen from outside: when all is over, every access node has the same catalog.

use super::{Verdict, evidence::Evidence, violation};

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::new("C7", "every access node has the same catalog in the end");
    let mut catalogs = evidence.closing.catalogs.iter();
    let Some((first, chunks)) = catalogs.next() else { return verdict };
    for (name, others) in catalogs {
        verdict.fact(chunks == others, || {
            let differing = chunks.iter().zip(others).find(|(one, other)| one != other);
            let sizes = (chunks.len(), others.len());
            violation(
                format_args!("{first} and {name} differ: {differing:?}, {sizes:?} chunks"),
                &[],
            )
        });
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::{evidence::CatalogChunk, plant::Plant};

    #[test]
    fn catalogs_that_differ_are_found() {
        let chunk = |nodes: &[&str]| CatalogChunk {
            id: 1,
            name: "c".into(),
            table: "m".into(),
            nodes: nodes.iter().map(|name| (*name).to_owned()).collect(),
        };
        let mut plant = Plant::default();
        let catalogs = &mut plant.evidence.closing.catalogs;
        catalogs.insert("a1".into(), vec![chunk(&["d1", "d2"])]);
        catalogs.insert("a2".into(), vec![chunk(&["d1", "d2"])]);
        assert_eq!((plant.verdict("C7").checked, plant.verdict("C7").found), (1, 0));
        let catalogs = &mut plant.evidence.closing.catalogs;
        catalogs.insert("a3".into(), vec![chunk(&["d1", "d3"])]);
        catalogs.insert("a4".into(), Vec::new());
        assert_eq!(plant.verdict("C7").found, 2);
    }
}
