//! C10: isolation of statements that append to and read several lists, by the cycles that Adya and Elle define
//! (crate `adya`): strict serializability.
//!
//! A list in the table is a set: SQL does not tell in which order its values were committed. The order is taken from the
//! log: of values whose place in it is known, that; of others, the first snapshot that has them. Any cluster that keeps
//! its promise has an order that agrees with this: no read tells the two apart, and an append without a known place is
//! given no end in time either.

use std::{collections::BTreeMap, fmt::Write as _};

use adya::{History, Opts, Valid, Workload};

use super::{Verdict, evidence::Evidence, violation};
use crate::history::{Action, Answer, Op, Outcome};

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::new("C10", "appends and reads of lists are strictly serializable");
    let lists: Vec<&Op> = evidence
        .ops
        .iter()
        .filter(|op| matches!(op.action, Action::Append { .. } | Action::Lists(_)))
        .collect();
    if lists.is_empty() {
        return verdict;
    }
    let text = history(evidence, &lists);
    let history = match History::from_json(&text) {
        Ok(history) => history,
        Err(error) => {
            verdict.violate(violation(format_args!("the history cannot be judged: {error}"), &[]));
            return verdict;
        }
    };
    let options = Opts { models: vec!["strict-serializable".into()], ..Opts::default() };
    let report = adya::check(&history, Workload::ListAppend, &options);
    verdict.checked = lists.iter().filter(|op| op.outcome == Outcome::Ok).count() as u64;
    let reads = lists.iter().any(|op| matches!(op.answer, Answer::Lists { .. }));
    if report.valid == Valid::False || (report.valid == Valid::Unknown && reads) {
        for anomaly in report.anomalies.values().flatten() {
            let ops: Vec<u64> = anomaly.ops.iter().map(|index| index / 2).collect();
            verdict.violate(violation(
                format_args!("{}: {}", anomaly.kind, anomaly.explanation),
                &ops,
            ));
        }
        if report.valid == Valid::False && verdict.found == 0 {
            verdict.violate(violation("not strictly serializable", &[]));
        }
    }
    verdict
}

/// Where values came to be: the entry of the log, or the first snapshot that has them.
fn places(evidence: &Evidence, lists: &[&Op]) -> BTreeMap<u64, u64> {
    let source = evidence.config.source();
    let mut places: BTreeMap<u64, u64> = BTreeMap::new();
    for op in lists {
        if let Answer::Lists { at: Some(at), lists } = &op.answer {
            for value in lists.iter().flat_map(|(_, values)| values) {
                let place = places.entry(*value).or_insert(*at);
                *place = (*place).min(*at);
            }
        }
    }
    for op in lists {
        if let (Action::Append { wid }, Answer::Written { index: Some(index), .. }) =
            (&op.action, &op.answer)
        {
            places.extend(source.appends(*wid).into_iter().map(|(_, value)| (value, *index)));
        }
    }
    places
}

/// The history as `adya` reads it: an invocation and a completion an operation, in order of time. The numbers are twice
/// the operation's, so that they are found again.
fn history(evidence: &Evidence, lists: &[&Op]) -> String {
    let places = places(evidence, lists);
    let mut lines: Vec<(u64, bool, String)> = Vec::new();
    for op in lists {
        let (asked, answered) = micro(evidence, op, &places);
        let kind = match op.outcome {
            // Its place was guessed from reads, which may be later than what began after it.
            Outcome::Ok if unplaced(op) => "info",
            Outcome::Ok => "ok",
            Outcome::Fail => "fail",
            Outcome::Info => "info",
        };
        let line = |index, kind, time, value| {
            format!(
                r#"{{"index":{index},"type":"{kind}","process":{},"time":{},"value":[{value}]}}"#,
                process(op),
                time * 1000
            )
        };
        lines.push((op.start_us, true, line(op.id * 2, "invoke", op.start_us, asked)));
        lines.push((op.end_us, false, line(op.id * 2 + 1, kind, op.end_us, answered)));
    }
    // What ends at the very moment at which another begins did not end before it.
    lines.sort_by_key(|(time, begins, _)| (*time, !*begins));
    lines.into_iter().map(|(.., line)| line + "\n").collect()
}

/// Whether it is an append whose place in the log nobody told.
const fn unplaced(op: &Op) -> bool {
    matches!(op.action, Action::Append { .. })
        && !matches!(op.answer, Answer::Written { index: Some(_), .. })
}

/// Reads at the end all come from one process that does them one after the other.
fn process(op: &Op) -> u64 {
    op.process.min(1 << 40)
}

fn micro(evidence: &Evidence, op: &Op, places: &BTreeMap<u64, u64>) -> (String, String) {
    let (mut asked, mut answered) = (String::new(), String::new());
    let say = |text: &mut String, word: std::fmt::Arguments<'_>| {
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a string does not fail.
        let _ = write!(text, "{comma}{word}");
    };
    match (&op.action, &op.answer) {
        (Action::Append { wid }, _) => {
            for (key, value) in evidence.config.source().appends(*wid) {
                say(&mut asked, format_args!(r#"["append",{key},{value}]"#));
            }
            answered.clone_from(&asked);
        }
        (Action::Lists(keys), answer) => {
            for key in keys {
                say(&mut asked, format_args!(r#"["r",{key},null]"#));
            }
            answered.clone_from(&asked);
            if let Answer::Lists { lists, .. } = answer {
                answered.clear();
                for (key, values) in lists {
                    let mut values = values.clone();
                    values.sort_by_key(|value| (places.get(value).copied(), *value));
                    say(&mut answered, format_args!(r#"["r",{key},{values:?}]"#));
                }
            }
        }
        _ => {}
    }
    (asked, answered)
}

#[cfg(test)]
mod tests {
    use super::{super::plant::Plant, *};

    /// Two statements that append to one list, and that list.
    fn rivals(plant: &Plant) -> (u64, u64, u64) {
        let source = plant.evidence.config.source();
        let first = source.appends(0)[0].0;
        let other = (1..50).find(|wid| source.appends(*wid).iter().any(|(key, _)| *key == first));
        (0, other.expect("lists are few"), first)
    }

    fn append(plant: &mut Plant, wid: u64, times: (u64, u64), index: Option<u64>) {
        let answer = Answer::Written { index, rows: 1 };
        plant.op(times, Action::Append { wid }, Outcome::Ok, answer);
    }

    fn read(plant: &mut Plant, times: (u64, u64), at: u64, lists: &[(u64, &[u64])]) {
        let keys = lists.iter().map(|(key, _)| *key).collect();
        let lists = lists.iter().map(|(key, values)| (*key, values.to_vec())).collect();
        plant.op(times, Action::Lists(keys), Outcome::Ok, Answer::Lists { at: Some(at), lists });
    }

    fn value(plant: &Plant, wid: u64, key: u64) -> u64 {
        let appends = plant.evidence.config.source().appends(wid);
        appends.into_iter().find(|(other, _)| *other == key).expect("it appends to it").1
    }

    #[test]
    fn a_good_history_passes_also_with_unknown_places() {
        let mut plant = Plant::default();
        let (one, two, key) = rivals(&plant);
        append(&mut plant, one, (0, 10), Some(3));
        append(&mut plant, two, (20, 30), None);
        let (a, b) = (value(&plant, one, key), value(&plant, two, key));
        read(&mut plant, (12, 15), 4, &[(key, &[a])]);
        read(&mut plant, (40, 50), 9, &[(key, &[a, b])]);
        let verdict = plant.verdict("C10");
        assert_eq!((verdict.checked, verdict.found), (4, 0), "{:?}", verdict.violations);
    }

    #[test]
    fn a_stale_read_is_found() {
        let mut plant = Plant::default();
        let (one, two, key) = rivals(&plant);
        append(&mut plant, one, (0, 10), Some(3));
        append(&mut plant, two, (20, 30), Some(5));
        let (a, b) = (value(&plant, one, key), value(&plant, two, key));
        read(&mut plant, (40, 50), 4, &[(key, &[a])]);
        read(&mut plant, (60, 70), 9, &[(key, &[a, b])]);
        assert!(plant.verdict("C10").found > 0);
    }

    #[test]
    fn readers_that_see_two_appends_in_different_order_are_found() {
        let mut plant = Plant::default();
        let (one, two, key) = rivals(&plant);
        append(&mut plant, one, (0, 100), Some(3));
        append(&mut plant, two, (0, 100), Some(5));
        let (a, b) = (value(&plant, one, key), value(&plant, two, key));
        read(&mut plant, (20, 30), 4, &[(key, &[a])]);
        read(&mut plant, (20, 30), 4, &[(key, &[b])]);
        assert!(plant.verdict("C10").found > 0);
    }

    #[test]
    fn an_aborted_read_is_found() {
        let mut plant = Plant::default();
        let (one, _, key) = rivals(&plant);
        plant.op((0, 10), Action::Append { wid: one }, Outcome::Fail, Answer::Nothing);
        let a = value(&plant, one, key);
        read(&mut plant, (20, 30), 4, &[(key, &[a])]);
        assert!(plant.verdict("C10").found > 0);
    }
}
