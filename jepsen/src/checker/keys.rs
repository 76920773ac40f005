//! C11: unique keys. At any snapshot a key is there once at most. DO UPDATE leaves the value of the last commit, DO NOTHING
//! that of the first, and without either only one statement ever succeeds with a key; the others are refused with 23505.

use std::collections::BTreeMap;

use super::{Verdict, evidence::Evidence, violation};
use crate::{
    history::{Action, Answer, Op, Outcome, Rule},
    workload::rows::APPENDS_MAX,
};

/// SQLSTATE of a key that is there already.
const DUPLICATE: &str = "23505";

/// A statement that writes keys.
#[derive(Clone, Copy, Debug)]
struct Put<'a> {
    op: &'a Op,
    rule: Rule,
    /// Entry of the log that committed it, when that is known.
    index: Option<u64>,
}

/// Statements by the keys that they write, and by number.
struct Puts<'a> {
    by_key: BTreeMap<u64, Vec<(Put<'a>, u64)>>,
}

impl<'a> Puts<'a> {
    fn of(evidence: &'a Evidence) -> Self {
        let mut by_key: BTreeMap<u64, Vec<(Put<'a>, u64)>> = BTreeMap::new();
        for op in &evidence.ops {
            let Action::Put { wid, rule } = op.action else { continue };
            let index = match op.answer {
                Answer::Written { index, .. } => index,
                _ => None,
            };
            for (key, value) in evidence.config.source().puts(wid, rule) {
                by_key.entry(key).or_default().push((Put { op, rule, index }, value));
            }
        }
        Self { by_key }
    }

    fn of_key(&self, key: u64) -> &[(Put<'a>, u64)] {
        self.by_key.get(&key).map(Vec::as_slice).unwrap_or_default()
    }
}

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::new("C11", "a key is there once, with the value that its rule says");
    let puts = Puts::of(evidence);
    for op in &evidence.ops {
        match (&op.action, &op.answer) {
            (Action::Keys(keys), Answer::Pairs { at, pairs }) => {
                reading(&puts, op, (keys, *at, pairs), &mut verdict);
            }
            (Action::Put { wid, rule }, _) => {
                let keys = evidence.config.source().puts(*wid, *rule);
                statement(&puts, op, (*rule, &keys), &mut verdict);
            }
            _ => {}
        }
    }
    for (key, all) in &puts.by_key {
        let strict = all.iter().filter(|(put, _)| put.rule == Rule::Strict);
        let ok: Vec<u64> = strict
            .filter(|(put, _)| put.op.outcome == Outcome::Ok)
            .map(|(put, _)| put.op.id)
            .collect();
        verdict.fact(ok.len() <= 1, || {
            violation(format_args!("key {key} was taken {} times", ok.len()), &ok)
        });
    }
    verdict
}

/// A refusal for a key needs somebody who wrote it, and is for those only that refuse.
fn statement(puts: &Puts<'_>, op: &Op, (rule, keys): (Rule, &[(u64, u64)]), verdict: &mut Verdict) {
    if op.state != DUPLICATE {
        return;
    }
    let rival = keys.iter().flat_map(|(key, _)| puts.of_key(*key)).any(|(other, _)| {
        let may = other.op.outcome != Outcome::Fail && other.op.start_us <= op.end_us;
        other.op.id != op.id && may
    });
    verdict.fact(rule == Rule::Strict && rival, || {
        violation(format_args!("put {} was refused though no key was there", op.id), &[op.id])
    });
}

fn reading(
    puts: &Puts<'_>,
    read: &Op,
    (keys, at, pairs): (&[u64], Option<u64>, &[(u64, i64)]),
    verdict: &mut Verdict,
) {
    let stray = pairs.iter().find(|(key, _)| !keys.contains(key));
    verdict.fact(stray.is_none(), || {
        violation(format_args!("read {} has key {stray:?}, unasked", read.id), &[read.id])
    });
    for key in keys {
        let values: Vec<i64> =
            pairs.iter().filter(|(other, _)| other == key).map(|(_, value)| *value).collect();
        verdict.fact(values.len() <= 1, || {
            let what = format!("key {key} is in read {} with the values {values:?}", read.id);
            violation(what, &[read.id])
        });
        value(puts.of_key(*key), (read, at), (*key, values.first().copied()), verdict);
    }
}

/// Whether a key has a value that it may have.
fn value(
    all: &[(Put<'_>, u64)],
    (read, at): (&Op, Option<u64>),
    (key, found): (u64, Option<i64>),
    verdict: &mut Verdict,
) {
    let certain = all.iter().find(|(put, _)| {
        let before = put.op.end_us < read.start_us
            || put.index.zip(at).is_some_and(|(index, at)| index <= at);
        put.op.outcome == Outcome::Ok && before
    });
    let Some(found) = found else {
        verdict.fact(certain.is_none(), || {
            let ops: Vec<u64> = certain.map(|(put, _)| put.op.id).into_iter().collect();
            let what = format!("key {key} was acknowledged and is not in read {}", read.id);
            violation(what, &[&ops[..], &[read.id]].concat())
        });
        return;
    };
    let writer = all.iter().find(|(_, value)| u64::try_from(found) == Ok(*value));
    let sound = writer
        .is_some_and(|(put, _)| put.op.outcome != Outcome::Fail && put.op.start_us <= read.end_us);
    verdict.fact(sound, || {
        let by = u64::try_from(found).unwrap_or_default() / APPENDS_MAX;
        let what = format!("key {key} has {found} of statement {by} in read {}", read.id);
        violation(what, &[read.id])
    });
    // Of statements whose place nobody told it cannot be said who came first.
    let place = writer.and_then(|(put, _)| Some((put.index?, put)));
    let (Some((place, writer)), Some(at)) = (place, at) else { return };
    let rival = all.iter().find(|(other, _)| {
        let rules = match other.rule {
            Rule::Upsert => other.index.is_some_and(|index| index > place && index <= at),
            Rule::Ignore | Rule::Strict => other.index.is_some_and(|index| index < place),
        };
        other.op.outcome == Outcome::Ok && rules
    });
    verdict.fact(rival.is_none() && place <= at, || {
        let other = rival.map(|(put, value)| (put.index, *value));
        let what = format!(
            "key {key} has {found}, committed at {place}, in read {} at {at}, though there is {other:?}",
            read.id
        );
        let rival = rival.map(|(put, _)| put.op.id);
        violation(what, &[Some(writer.op.id), rival, Some(read.id)].into_iter().flatten().collect::<Vec<u64>>())
    });
}

#[cfg(test)]
mod tests {
    use super::{super::plant::Plant, *};

    /// Two statements with one key in common, with that key and its two values.
    fn rivals(plant: &Plant, rule: Rule) -> (u64, u64, u64, [i64; 2]) {
        let source = plant.evidence.config.source();
        let key = source.puts(0, rule)[0].0;
        let value = |wid| source.puts(wid, rule).into_iter().find(|(other, _)| *other == key);
        let other = (1..50).find(|wid| value(*wid).is_some()).expect("keys are few");
        let values = [0, other].map(|wid| value(wid).expect("it has the key").1);
        (0, other, key, values.map(|value| i64::try_from(value).expect("small")))
    }

    fn put(plant: &mut Plant, wid: u64, rule: Rule, index: u64) -> u64 {
        let answer = Answer::Written { index: Some(index), rows: 1 };
        plant.op((index * 10, index * 10 + 5), Action::Put { wid, rule }, Outcome::Ok, answer)
    }

    fn read(plant: &mut Plant, key: u64, at: u64, values: &[i64]) {
        let pairs = values.iter().map(|value| (key, *value)).collect();
        let answer = Answer::Pairs { at: Some(at), pairs };
        plant.op((at * 10, at * 10 + 5), Action::Keys(vec![key]), Outcome::Ok, answer);
    }

    #[test]
    fn the_wrong_value_is_found() {
        for (rule, right) in [(Rule::Upsert, 1), (Rule::Ignore, 0)] {
            let mut plant = Plant::default();
            let (one, other, key, values) = rivals(&plant, rule);
            put(&mut plant, one, rule, 3);
            put(&mut plant, other, rule, 5);
            read(&mut plant, key, 4, &[values[0]]);
            read(&mut plant, key, 9, &[values[right]]);
            assert_eq!(plant.verdict("C11").found, 0, "{rule:?}");
            read(&mut plant, key, 9, &[values[1 - right]]);
            assert_eq!(plant.verdict("C11").found, 1, "{rule:?}");
        }
    }

    #[test]
    fn a_key_that_is_there_twice_or_lost_is_found() {
        let mut plant = Plant::default();
        let (one, other, key, values) = rivals(&plant, Rule::Upsert);
        put(&mut plant, one, Rule::Upsert, 3);
        put(&mut plant, other, Rule::Upsert, 5);
        read(&mut plant, key, 9, &[values[1], values[0]]);
        assert_eq!(plant.verdict("C11").found, 1);
        read(&mut plant, key, 9, &[]);
        assert_eq!(plant.verdict("C11").found, 2);
        read(&mut plant, key, 9, &[-4]);
        assert_eq!(plant.verdict("C11").found, 3);
    }

    #[test]
    fn a_strict_key_taken_twice_and_a_refusal_without_reason_are_found() {
        let mut plant = Plant::default();
        let (one, other, ..) = rivals(&plant, Rule::Strict);
        put(&mut plant, one, Rule::Strict, 3);
        assert_eq!(plant.verdict("C11").found, 0);
        let rule = Rule::Strict;
        let refused =
            plant.op((60, 70), Action::Put { wid: other, rule }, Outcome::Fail, Answer::Nothing);
        plant.evidence.ops[refused as usize].state = DUPLICATE.into();
        assert_eq!(plant.verdict("C11").found, 0);
        let mut twice = plant.clone();
        put(&mut twice, other, Rule::Strict, 5);
        assert_eq!(twice.verdict("C11").found, 1);
        plant.evidence.ops.remove(0);
        assert_eq!(plant.verdict("C11").found, 1);
    }
}
