//! The parts of the page that are text.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
};

use super::escape;
use crate::{
    checker::evidence::Evidence,
    history::{Op, Outcome},
    nemesis::plan::Status,
    results::{Outages, Results},
};

/// Kinds of failures that are listed.
const FAILURES_MAX: usize = 30;
/// Characters of an operation that are shown.
const OP_CHARACTERS: usize = 600;

/// The figures at the top.
pub(super) fn cards(page: &mut String, results: &Results) -> fmt::Result {
    let ops = results.operations;
    let effective: u64 = results.faults.values().map(|count| count.effective).sum();
    let tried: u64 = results
        .faults
        .values()
        .map(|count| count.installed + count.skipped + count.indeterminate)
        .sum();
    let violations: u64 = results.violation_counts.values().sum();
    let outage = |outages: Outages| match outages.faults {
        0 => "–".to_owned(),
        _ => format!("{:.1} / {:.1} s", seconds(outages.median_ms), seconds(outages.max_ms)),
    };
    let checked: u64 = results.checked.values().sum();
    page.push_str("<div class=\"cards\">");
    for (value, words) in [
        (ops.ok.to_string(), "operations acknowledged".to_owned()),
        (format!("{} / {}", ops.fail, ops.info), "failed for sure / unknown".to_owned()),
        (format!("{effective} of {tried}"), "faults with a proven effect".to_owned()),
        (outage(results.write_outages), "without writes, median / longest".to_owned()),
        (outage(results.read_outages), "without reads, median / longest".to_owned()),
        (violations.to_string(), format!("violations in {checked} facts")),
    ] {
        write!(page, "<div class=\"card\"><b>{value}</b><span>{words}</span></div>")?;
    }
    page.push_str("</div>\n");
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds for display")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

/// The first violation, with the operations that show it.
pub(super) fn first_violation(
    page: &mut String,
    evidence: &Evidence,
    results: &Results,
) -> fmt::Result {
    let Some(first) = results.violations.first() else { return Ok(()) };
    write!(
        page,
        "<h2>First violation</h2><div class=\"card first\"><b>{}</b>{}",
        first.checker,
        escape(&first.what)
    )?;
    if !first.ops.is_empty() {
        page.push_str("<table><tr><th>operation<th>process<th>at<th>from<th>to<th>outcome<th>asked and answered");
        for op in evidence.ops.iter().filter(|op| first.ops.contains(&op.id)) {
            op_row(page, op)?;
        }
        page.push_str("</table>");
    }
    page.push_str("</div>\n");
    Ok(())
}

fn op_row(page: &mut String, op: &Op) -> fmt::Result {
    let words = format!("{:?} → {:?} {} {}", op.action, op.answer, op.state, op.message);
    let words: String = words.chars().take(OP_CHARACTERS).collect();
    let process = if op.closing { "at the end".to_owned() } else { op.process.to_string() };
    write!(
        page,
        "<tr><td class=\"short\">{}<td class=\"short\">{process}<td class=\"short\">{}<td class=\"num\">{:.3} s<td class=\"num\">{:.3} s<td>{}<td><code>{}</code>",
        op.id,
        op.node,
        seconds(op.start_us / 1000),
        seconds(op.end_us / 1000),
        outcome(op.outcome),
        escape(&words)
    )
}

pub(super) const fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ok => "ok",
        Outcome::Fail => "fail",
        Outcome::Info => "info",
    }
}

/// What each checker found.
pub(super) fn checkers(page: &mut String, results: &Results) -> fmt::Result {
    page.push_str("<h2>Properties</h2><div class=\"card\"><table><tr><th>checker<th class=\"num\">facts compared<th class=\"num\">violations<th>first");
    let mut names: Vec<&String> = results.checked.keys().collect();
    names.sort_by_key(|name| name.trim_start_matches('C').parse::<u32>().unwrap_or_default());
    for name in names {
        let checked = results.checked.get(name).copied().unwrap_or_default();
        let found = results.violation_counts.get(name).copied().unwrap_or_default();
        let first = results.violations.iter().find(|violation| violation.checker == *name);
        let first = first.map(|first| escape(&first.what)).unwrap_or_default();
        write!(
            page,
            "<tr><td>{name}<td class=\"num\">{checked}<td class=\"num\">{found}<td>{first}"
        )?;
    }
    page.push_str("</table></div>\n");
    Ok(())
}

/// Every fault.
pub(super) fn faults(page: &mut String, evidence: &Evidence) -> fmt::Result {
    if evidence.faults.is_empty() {
        return Ok(());
    }
    page.push_str("<h2>Faults</h2><div class=\"card\"><table><tr><th>kind<th>nodes<th class=\"num\">from<th class=\"num\">to<th>status<th>proof");
    let mut faults: Vec<_> = evidence.faults.iter().collect();
    faults.sort_by_key(|fault| fault.start_us);
    for fault in faults {
        let status = match (fault.status, fault.effective) {
            (Status::Installed, true) => "effective",
            (Status::Installed, false) => "without effect",
            (Status::Skipped, _) => "skipped",
            (Status::Indeterminate, _) => "indeterminate",
        };
        write!(
            page,
            "<tr><td class=\"short\">{}<td class=\"short\">{}<td class=\"num\">{:.1} s<td class=\"num\">{:.1} s<td class=\"short\">{status}<td>{} {}",
            fault.event.kind.name(),
            fault.nodes.join(" "),
            seconds(fault.start_us / 1000),
            seconds(fault.end_us / 1000),
            escape(&fault.proof),
            escape(&fault.trouble)
        )?;
    }
    page.push_str("</table></div>\n");
    Ok(())
}

/// Failures, by what they said.
pub(super) fn failures(page: &mut String, evidence: &Evidence) -> fmt::Result {
    let mut kinds: BTreeMap<(&str, String), u64> = BTreeMap::new();
    for op in evidence.ops.iter().filter(|op| op.outcome != Outcome::Ok) {
        // Numbers differ from one to the next.
        let words: String = op.message.chars().filter(|c| !c.is_ascii_digit()).take(160).collect();
        *kinds.entry((&op.state, words)).or_default() += 1;
    }
    if kinds.is_empty() {
        return Ok(());
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    page.push_str("<h2>What failed operations said</h2><div class=\"card\"><table><tr><th class=\"num\">times<th>state<th>message");
    for ((state, words), count) in kinds.into_iter().take(FAILURES_MAX) {
        write!(page, "<tr><td class=\"num\">{count}<td>{}<td>{}", escape(state), escape(&words))?;
    }
    page.push_str("</table></div>\n");
    Ok(())
}
