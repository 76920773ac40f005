//! C3: a statement is there whole or not at all. A read that asks for all rows of a statement finds none or all.

use std::collections::BTreeMap;

use super::{Verdict, facts::Facts, violation};

pub(super) fn check(facts: &Facts<'_>) -> Verdict {
    let mut verdict = Verdict::new("C3", "a statement is there whole or not at all");
    for read in &facts.reads {
        let mut asked: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
        for row in facts.matching(&read.filter) {
            let (all, seen) = asked.entry(row.wid()).or_default();
            *all += 1;
            *seen += usize::from(read.has(row.uid));
        }
        for (wid, (all, seen)) in asked {
            let Some(write) = facts.writes.get(&wid) else { continue };
            // Its rows may lie partly in chunks that were dropped.
            let whole = all == write.rows.len();
            if !whole || write.rows.iter().any(|row| facts.may_be_retired(row)) {
                continue;
            }
            verdict.fact(seen == 0 || seen == all, || {
                let what =
                    format!("read {} has {seen} of {all} rows of statement {wid}", read.op.id);
                violation(what, &[&write.ops[..], &[read.op.id]].concat())
            });
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::plant::Plant;

    /// A statement with several rows.
    fn wide(plant: &Plant) -> u64 {
        (0..50).find(|wid| plant.uids(*wid).len() > 3).expect("most have")
    }

    #[test]
    fn half_a_statement_is_found_even_of_unknown_outcome() {
        let mut plant = Plant::default();
        let wid = wide(&plant);
        plant.unknown_insert(wid, 0, 100);
        plant.read_of(wid, 20, 30, |_| Vec::new());
        plant.read_of(wid, 40, 50, <[u64]>::to_vec);
        assert_eq!(plant.verdict("C3").found, 0);
        plant.read_of(wid, 60, 70, |uids| uids[..2].to_vec());
        assert_eq!(plant.verdict("C3").found, 1);
    }

    #[test]
    fn half_of_each_of_two_is_found_in_a_read_of_everything() {
        let mut plant = Plant::default();
        let (one, two) = (wide(&plant), wide(&plant) + 1);
        plant.insert(one, 0, 10);
        plant.insert(two, 0, 10);
        let mut uids = plant.uids(one);
        uids.pop();
        plant.read_all(20, 30, &uids);
        assert_eq!(plant.verdict("C3").found, 1);
    }

    #[test]
    fn a_read_of_a_part_says_nothing() {
        let mut plant = Plant::default();
        let wid = wide(&plant);
        plant.insert(wid, 0, 10);
        let row = plant.evidence.config.source().rows(wid)[0];
        let filter = crate::history::Filter {
            from_us: Some(row.time_us),
            to_us: Some(row.time_us + 1),
            ..Default::default()
        };
        plant.read((20, 30), filter, None, &[row.uid]);
        assert_eq!(plant.verdict("C3").found, 0);
    }
}
