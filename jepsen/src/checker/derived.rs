//! C9: what is computed from rows is what the rows of the snapshot give: counts, sums, extremes, sums by hour. Values are
//! whole numbers, so that sums of doubles are exact.

use std::collections::BTreeMap;

use super::{
    Verdict,
    facts::Facts,
    snapshot::{Bounds, bounds},
    violation,
};
use crate::{
    history::{Action, Answer, Figures, Filter, Op, Outcome},
    workload::rows::{HOUR_US, Row},
};

pub(super) fn check(facts: &Facts<'_>) -> Verdict {
    let mut verdict = Verdict::new("C9", "aggregates are those of the rows at their snapshot");
    let known = statements(&bounds(facts));
    for op in &facts.evidence.ops {
        let (filter, at) = match (&op.action, op.answer.at()) {
            (Action::Aggregate(filter) | Action::Buckets(filter), Some(at)) => (filter, at),
            _ => continue,
        };
        let Some(rows) = rows(facts, &known, filter, (op, at)) else { continue };
        let (holds, wanted) = match &op.answer {
            Answer::Figures { figures, .. } => {
                let wanted = figures_of(&rows);
                (wanted == *figures, format!("{wanted:?}"))
            }
            Answer::Buckets { buckets, .. } => {
                let wanted = buckets_of(&rows);
                (wanted == *buckets, format!("{wanted:?}"))
            }
            _ => continue,
        };
        verdict.fact(holds, || {
            let what = format!(
                "{} {} at {at} gave {:?} and should give {wanted}",
                op.action.name(),
                op.id,
                op.answer
            );
            violation(what, &[op.id])
        });
    }
    verdict
}

/// Bounds by statement, from those of its rows.
fn statements(rows: &BTreeMap<u64, Bounds>) -> BTreeMap<u64, Bounds> {
    let mut statements: BTreeMap<u64, Bounds> = BTreeMap::new();
    for (uid, bounds) in rows {
        let all = statements.entry(uid / crate::workload::rows::ROWS_MAX).or_default();
        all.absent = all.absent.max(bounds.absent);
        all.present = match (all.present, bounds.present) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
    statements
}

/// The rows of a filter at a snapshot, or nothing when that is not certain.
fn rows(
    facts: &Facts<'_>,
    known: &BTreeMap<u64, Bounds>,
    filter: &Filter,
    (op, at): (&Op, u64),
) -> Option<Vec<Row>> {
    let mut rows = Vec::new();
    for row in facts.matching(filter) {
        let write = facts.write_of(row.uid)?;
        if facts.may_be_retired(&row) {
            return None;
        }
        let bounds = known.get(&row.wid()).copied().unwrap_or_default();
        let there = match write.index {
            _ if write.outcome == Outcome::Fail || write.start_us > op.end_us => false,
            Some(index) => index <= at,
            None if bounds.present.is_some_and(|(present, _)| present <= at) => true,
            None if bounds.absent.is_some_and(|(absent, _)| absent >= at) => false,
            None if write.acked_us.is_some_and(|acked| acked < op.start_us) => true,
            None => return None,
        };
        if there {
            rows.push(row);
        }
    }
    Some(rows)
}

fn figures_of(rows: &[Row]) -> Figures {
    let values = || rows.iter().map(|row| row.value);
    Figures {
        count: i64::try_from(rows.len()).unwrap_or(i64::MAX),
        sum: (!rows.is_empty()).then(|| values().sum()),
        min: values().min(),
        max: values().max(),
    }
}

fn buckets_of(rows: &[Row]) -> Vec<(i64, i64, i64)> {
    let mut buckets: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
    for row in rows {
        let (count, sum) = buckets.entry(row.time_us.div_euclid(HOUR_US) * HOUR_US).or_default();
        *count += 1;
        *sum += row.value;
    }
    buckets.into_iter().map(|(start, (count, sum))| (start, count, sum)).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::plant::Plant, *};

    fn aggregate(plant: &mut Plant, at: u64, figures: Figures) {
        let answer = Answer::Figures { at: Some(at), figures };
        plant.op((100, 110), Action::Aggregate(Filter::default()), Outcome::Ok, answer);
    }

    fn planted() -> (Plant, Figures) {
        let mut plant = Plant::default();
        plant.insert_at(1, (0, 10), Some(5));
        plant.insert_at(2, (0, 10), Some(8));
        let figures = figures_of(&plant.evidence.config.source().rows(1));
        (plant, figures)
    }

    #[test]
    fn wrong_figures_are_found() {
        let (mut plant, figures) = planted();
        aggregate(&mut plant, 6, figures);
        assert_eq!((plant.verdict("C9").checked, plant.verdict("C9").found), (1, 0));
        aggregate(&mut plant, 6, Figures { count: figures.count + 1, ..figures });
        aggregate(&mut plant, 6, Figures { sum: None, ..figures });
        // Those of an earlier snapshot.
        aggregate(&mut plant, 8, figures);
        assert_eq!(plant.verdict("C9").found, 3);
    }

    #[test]
    fn wrong_buckets_are_found() {
        let (mut plant, _) = planted();
        let mut buckets = buckets_of(&plant.evidence.config.source().rows(1));
        let mut ask = |buckets: &[(i64, i64, i64)]| {
            let answer = Answer::Buckets { at: Some(7), buckets: buckets.to_vec() };
            plant.op((0, 9), Action::Buckets(Filter::default()), Outcome::Ok, answer);
        };
        ask(&buckets);
        buckets[0].1 += 1;
        ask(&buckets);
        assert_eq!(plant.verdict("C9").found, 1);
    }

    #[test]
    fn what_is_not_certain_is_not_judged() {
        let (mut plant, figures) = planted();
        plant.unknown_insert(3, 0, 10);
        aggregate(&mut plant, 6, figures);
        assert_eq!(plant.verdict("C9").checked, 0);
        plant.read((200, 210), Filter { wid: Some(3), ..Filter::default() }, Some(7), &[]);
        // A read without rows tells its snapshot here: the statement came later, if at all.
        assert_eq!((plant.verdict("C9").checked, plant.verdict("C9").found), (1, 0));
    }
}
