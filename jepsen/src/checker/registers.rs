//! C10, of transaction blocks that read two registers and write one of them: snapshot isolation, and no transaction reads
//! a state that is older than what had ended before it began (crate `adya`, registers that are read and written).

use std::fmt::Write as _;

use adya::{History, Opts, Valid, Workload};

use super::{Verdict, evidence::Evidence, violation};
use crate::history::{Action, Answer, Op, Outcome};

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let about = "transaction blocks over registers are snapshots in real time";
    let mut verdict = Verdict::new("C10r", about);
    let ops: Vec<&Op> = evidence
        .ops
        .iter()
        .filter(|op| matches!(op.action, Action::Swap { .. } | Action::Registers))
        .collect();
    if ops.is_empty() {
        return verdict;
    }
    let text = history(evidence, &ops);
    let history = match History::from_json(&text) {
        Ok(history) => history,
        Err(error) => {
            verdict.violate(violation(format_args!("the history cannot be judged: {error}"), &[]));
            return verdict;
        }
    };
    let options = Opts { models: vec!["strong-snapshot-isolation".into()], ..Opts::default() };
    let report = adya::check(&history, Workload::RwRegister, &options);
    verdict.checked = ops.iter().filter(|op| op.outcome == Outcome::Ok).count() as u64;
    if report.valid == Valid::False {
        for anomaly in report.anomalies.values().flatten() {
            let ops: Vec<u64> = anomaly.ops.iter().map(|index| index / 2).collect();
            let what = format!("{}: {}", anomaly.kind, anomaly.explanation);
            verdict.violate(violation(what, &ops));
        }
        if verdict.found == 0 {
            verdict.violate(violation("not snapshot isolation", &[]));
        }
    }
    verdict
}

/// An invocation and a completion an operation, in order of time, with twice the operation's numbers.
fn history(evidence: &Evidence, ops: &[&Op]) -> String {
    let mut lines: Vec<(u64, bool, String)> = Vec::new();
    for op in ops {
        let kind = match op.outcome {
            Outcome::Ok => "ok",
            Outcome::Fail => "fail",
            Outcome::Info => "info",
        };
        let (asked, answered) = micro(evidence, op);
        let line = |index, kind, time, value| {
            format!(
                r#"{{"index":{index},"type":"{kind}","process":{},"time":{},"value":[{value}]}}"#,
                op.process.min(1 << 40),
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

/// What was asked and answered, as reads and writes. The value at the beginning is none.
fn micro(evidence: &Evidence, op: &Op) -> (String, String) {
    let (mut asked, mut answered) = (String::new(), String::new());
    let say = |text: &mut String, word: std::fmt::Arguments<'_>| {
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a string does not fail.
        let _ = write!(text, "{comma}{word}");
    };
    let found = match &op.answer {
        Answer::Pairs { pairs, .. } => pairs.as_slice(),
        Answer::Swapped { read, .. } => read.as_slice(),
        _ => &[],
    };
    for (key, value) in found {
        say(&mut asked, format_args!(r#"["r",{key},null]"#));
        match value {
            0 => say(&mut answered, format_args!(r#"["r",{key},null]"#)),
            value => say(&mut answered, format_args!(r#"["r",{key},{value}]"#)),
        }
    }
    if let Action::Swap { wid } = op.action {
        let (key, _, value) = evidence.config.source().swap(wid);
        say(&mut asked, format_args!(r#"["w",{key},{value}]"#));
        say(&mut answered, format_args!(r#"["w",{key},{value}]"#));
    }
    (asked, answered)
}

#[cfg(test)]
mod tests {
    use super::{super::plant::Plant, *};

    /// Two transactions that write one register, with the register and their values.
    fn rivals(plant: &Plant) -> (u64, u64, u64, [i64; 2]) {
        let source = plant.evidence.config.source();
        let (key, _, value) = source.swap(0);
        let other = (1..50).find(|wid| source.swap(*wid).0 == key).expect("registers are few");
        let values = [value, source.swap(other).2];
        (0, other, key, values.map(|value| i64::try_from(value).expect("small")))
    }

    fn swap(plant: &mut Plant, wid: u64, times: (u64, u64), read: &[(u64, i64)]) {
        let answer = Answer::Swapped { index: None, read: read.to_vec() };
        plant.op(times, Action::Swap { wid }, Outcome::Ok, answer);
    }

    #[test]
    fn transactions_that_see_each_other_in_turn_pass() {
        let mut plant = Plant::default();
        let (one, other, key, values) = rivals(&plant);
        swap(&mut plant, one, (0, 10), &[(key, 0)]);
        swap(&mut plant, other, (20, 30), &[(key, values[0])]);
        let verdict = plant.verdict("C10r");
        assert_eq!((verdict.checked, verdict.found), (2, 0), "{:?}", verdict.violations);
    }

    #[test]
    fn a_lost_update_is_found() {
        let mut plant = Plant::default();
        let (one, other, key, values) = rivals(&plant);
        swap(&mut plant, one, (0, 100), &[(key, 0)]);
        swap(&mut plant, other, (0, 100), &[(key, 0)]);
        let answer = Answer::Pairs { at: None, pairs: vec![(key, values[1])] };
        plant.op((200, 210), Action::Registers, Outcome::Ok, answer);
        assert!(plant.verdict("C10r").found > 0);
    }

    #[test]
    fn a_read_of_what_failed_is_found() {
        let mut plant = Plant::default();
        let (one, _, key, values) = rivals(&plant);
        plant.op((0, 10), Action::Swap { wid: one }, Outcome::Fail, Answer::Nothing);
        let answer = Answer::Pairs { at: None, pairs: vec![(key, values[0])] };
        plant.op((20, 30), Action::Registers, Outcome::Ok, answer);
        assert!(plant.verdict("C10r").found > 0);
    }
}
