//! The part of the page that is drawn: one picture, one axis of time.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
};

use super::{escape, tables::outcome};
use crate::{
    checker::evidence::Evidence,
    history::{Op, Outcome},
    nemesis::plan::{Class, Record, Status},
    results::Results,
};

const WIDTH: f64 = 1220.0;
const LEFT: f64 = 92.0;
const RIGHT: f64 = 16.0;
const RATE_HEIGHT: f64 = 110.0;
const LATENCY_HEIGHT: f64 = 120.0;
const LANE_HEIGHT: f64 = 22.0;
const GAP: f64 = 34.0;
/// Acknowledged operations that are drawn one by one; of more every n-th.
const TICKS_MAX: usize = 5_000;
/// Latencies are drawn from one to a hundred thousand milliseconds.
const DECADES: f64 = 5.0;

/// A curve's class, and which operations it counts.
type Curve = (&'static str, fn(&Op) -> bool);

/// Where things lie.
#[derive(Clone, Copy, Debug)]
struct Frame {
    end_us: u64,
    height: f64,
}

#[expect(clippy::cast_precision_loss, reason = "places in a picture")]
fn float(number: u64) -> f64 {
    number as f64
}

impl Frame {
    fn x(&self, us: u64) -> f64 {
        LEFT + float(us.min(self.end_us)) / float(self.end_us.max(1)) * (WIDTH - LEFT - RIGHT)
    }
}

/// Draws it all.
pub(super) fn figure(page: &mut String, evidence: &Evidence, results: &Results) -> fmt::Result {
    let last = evidence.ops.iter().map(|op| op.end_us).max().unwrap_or(1);
    let mut nodes: Vec<String> =
        evidence.faults.iter().flat_map(|fault| fault.nodes.clone()).collect();
    nodes.extend((1..=evidence.config.access).map(|number| format!("a{number}")));
    nodes.extend((1..=evidence.config.data).map(|number| format!("d{number}")));
    nodes.sort();
    nodes.dedup();
    let lanes = nodes.len() + usize::from(evidence.config.access);
    let height =
        RATE_HEIGHT + LATENCY_HEIGHT + 3.0 * GAP + float(lanes as u64) * LANE_HEIGHT + GAP + 30.0;
    let frame = Frame { end_us: last, height };
    writeln!(
        page,
        "<h2>Timeline</h2><figure><svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\">"
    )?;
    washes(page, frame, &evidence.faults)?;
    axis(page, frame)?;
    let mut y = 20.0;
    rates(page, frame, evidence, y)?;
    y += RATE_HEIGHT + GAP;
    latencies(page, frame, evidence, y)?;
    y += LATENCY_HEIGHT + GAP;
    y = fault_lanes(page, frame, (&nodes, &evidence.faults), y)?;
    y += GAP;
    op_lanes(page, frame, evidence, y)?;
    hits(page, frame, evidence, results)?;
    page.push_str("</svg>");
    legend(page);
    page.push_str("</figure>\n");
    Ok(())
}

const fn class_of(record: &Record) -> &'static str {
    match record.event.kind.class() {
        Class::Process => "process",
        Class::Network => "network",
        Class::Disk => "disk",
        Class::Resources => "resources",
        Class::Clock => "clock",
        Class::Membership => "membership",
    }
}

/// Faults behind everything.
fn washes(page: &mut String, frame: Frame, faults: &[Record]) -> fmt::Result {
    for fault in faults.iter().filter(|fault| fault.status != Status::Skipped) {
        let (x, end) = (frame.x(fault.start_us), frame.x(fault.end_us));
        let (width, height) = ((end - x).max(1.0), frame.height - 40.0);
        write!(
            page,
            "<rect class=\"wash {}\" x=\"{x:.1}\" y=\"8\" width=\"{width:.1}\" height=\"{height:.0}\"/>",
            class_of(fault)
        )?;
    }
    Ok(())
}

fn axis(page: &mut String, frame: Frame) -> fmt::Result {
    let seconds = frame.end_us / 1_000_000;
    let steps = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600];
    let step = steps.into_iter().find(|step| seconds / step <= 14).unwrap_or(7200);
    let bottom = frame.height - 24.0;
    for second in (0..=seconds).step_by(usize::try_from(step).unwrap_or(1)) {
        let x = frame.x(second * 1_000_000);
        write!(
            page,
            "<line class=\"grid\" x1=\"{x:.1}\" y1=\"8\" x2=\"{x:.1}\" y2=\"{bottom:.0}\"/>\
                      <text x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{second} s</text>",
            bottom + 16.0
        )?;
    }
    Ok(())
}

/// Operations a second, by what became of them.
fn rates(page: &mut String, frame: Frame, evidence: &Evidence, y: f64) -> fmt::Result {
    let curves: [Curve; 4] = [
        ("ok", |op| op.outcome == Outcome::Ok && op.action.writes()),
        ("readok", |op| op.outcome == Outcome::Ok && !op.action.writes()),
        ("failed", |op| op.outcome == Outcome::Fail),
        ("unknown", |op| op.outcome == Outcome::Info),
    ];
    let seconds = usize::try_from(frame.end_us / 1_000_000).unwrap_or_default() + 1;
    let mut all: Vec<(&str, Vec<u64>)> = Vec::new();
    for (class, wanted) in curves {
        let mut bins = vec![0_u64; seconds];
        for op in evidence.ops.iter().filter(|op| wanted(op)) {
            let at = usize::try_from(op.end_us / 1_000_000).unwrap_or_default();
            if let Some(bin) = bins.get_mut(at) {
                *bin += 1;
            }
        }
        all.push((class, bins));
    }
    let top = all.iter().flat_map(|(_, bins)| bins).max().copied().unwrap_or(1).max(1);
    write!(
        page,
        "<text class=\"name\" x=\"8\" y=\"{:.0}\">operations/s</text>\
                  <text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{top}</text>\
                  <text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">0</text>",
        y + 14.0,
        LEFT - 6.0,
        y + 30.0,
        LEFT - 6.0,
        y + RATE_HEIGHT
    )?;
    for (class, bins) in all {
        let point = |(at, count): (usize, &u64)| {
            let x = frame.x(at as u64 * 1_000_000 + 500_000);
            format!("{x:.1},{:.1}", y + RATE_HEIGHT * (1.0 - float(*count) / float(top)))
        };
        let points: Vec<String> = bins.iter().enumerate().map(point).collect();
        write!(page, "<polyline class=\"curve {class}\" points=\"{}\"/>", points.join(" "))?;
    }
    Ok(())
}

fn latency_y(us: u64, y: f64) -> f64 {
    let decades = (float(us.max(1000)) / 1000.0).log10().min(DECADES);
    y + LATENCY_HEIGHT * (1.0 - decades / DECADES)
}

/// Every operation as a dot: how long it took.
fn latencies(page: &mut String, frame: Frame, evidence: &Evidence, y: f64) -> fmt::Result {
    write!(page, "<text class=\"name\" x=\"8\" y=\"{:.0}\">latency</text>", y + 14.0)?;
    for (us, word) in [
        (1_000, "1 ms"),
        (10_000, "10 ms"),
        (100_000, "0.1 s"),
        (1_000_000, "1 s"),
        (10_000_000, "10 s"),
    ] {
        let at = latency_y(us, y);
        write!(
            page,
            "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.0}\" y2=\"{at:.1}\"/>\
                      <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{word}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0
        )?;
    }
    let mut paths: BTreeMap<&str, String> = BTreeMap::new();
    for op in sampled(&evidence.ops) {
        let (x, at) = (frame.x(op.end_us), latency_y(op.end_us.saturating_sub(op.start_us), y));
        write!(paths.entry(class(op)).or_default(), "M{x:.1} {at:.1}h1.6")?;
    }
    for (class, path) in paths {
        write!(
            page,
            "<path class=\"{class}\" fill=\"none\" stroke-width=\"1.8\" opacity=\".75\" d=\"{path}\"/>"
        )?;
    }
    Ok(())
}

const fn class(op: &Op) -> &'static str {
    match (op.outcome, op.action.writes()) {
        (Outcome::Ok, true) => "ok",
        (Outcome::Ok, false) => "readok",
        (Outcome::Fail, _) => "failed",
        (Outcome::Info, _) => "unknown",
    }
}

/// All that failed, and of the others so many that a browser can draw them.
fn sampled(ops: &[Op]) -> impl Iterator<Item = &Op> {
    let step = ops.len().div_ceil(TICKS_MAX).max(1);
    ops.iter()
        .enumerate()
        .filter(move |(at, op)| op.outcome != Outcome::Ok || at % step == 0)
        .map(|(_, op)| op)
}

fn lane(page: &mut String, y: f64, name: &str) -> fmt::Result {
    write!(
        page,
        "<rect class=\"lane\" x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.0}\" height=\"{:.0}\" rx=\"4\"/>\
                  <text class=\"name\" x=\"8\" y=\"{:.1}\">{name}</text>",
        y + 2.0,
        WIDTH - LEFT - RIGHT,
        LANE_HEIGHT - 4.0,
        y + 15.0
    )
}

/// Nodes, with the faults that hit them.
fn fault_lanes(
    page: &mut String,
    frame: Frame,
    (nodes, faults): (&[String], &[Record]),
    mut y: f64,
) -> Result<f64, fmt::Error> {
    write!(page, "<text x=\"{LEFT}\" y=\"{:.0}\">faults by node</text>", y - 6.0)?;
    for name in nodes {
        lane(page, y, name)?;
        for fault in faults.iter().filter(|fault| fault.nodes.contains(name)) {
            let (x, end) = (frame.x(fault.start_us), frame.x(fault.end_us));
            let width = (end - x).max(3.0);
            let off = if fault.effective { "" } else { " off" };
            let kind = fault.event.kind.name();
            write!(
                page,
                "<rect class=\"band {}{off}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.0}\" rx=\"3\">\
                          <title>{kind} of {}: {}</title></rect>",
                class_of(fault),
                y + 4.0,
                LANE_HEIGHT - 8.0,
                fault.nodes.join(", "),
                escape(&fault.proof)
            )?;
            if width > 7.0 * float(kind.len() as u64) {
                write!(
                    page,
                    "<text x=\"{:.1}\" y=\"{:.1}\" style=\"fill:#fff;font-size:10px\" pointer-events=\"none\">{kind}</text>",
                    x + 4.0,
                    y + 14.5
                )?;
            }
        }
        y += LANE_HEIGHT;
    }
    Ok(y)
}

/// Access nodes, with the operations that they were asked for.
fn op_lanes(page: &mut String, frame: Frame, evidence: &Evidence, mut y: f64) -> fmt::Result {
    write!(page, "<text x=\"{LEFT}\" y=\"{:.0}\">operations by access node</text>", y - 6.0)?;
    for number in 1..=evidence.config.access {
        let name = format!("a{number}");
        lane(page, y, &name)?;
        let mut good: BTreeMap<&str, String> = BTreeMap::new();
        for op in sampled(&evidence.ops).filter(|op| op.node == name) {
            let x = frame.x(op.start_us);
            if op.outcome == Outcome::Ok {
                write!(
                    good.entry(class(op)).or_default(),
                    "M{x:.1} {:.1}v{:.0}",
                    y + 7.0,
                    LANE_HEIGHT - 14.0
                )?;
                continue;
            }
            let words: String = op.message.chars().take(160).collect();
            write!(
                page,
                "<path class=\"{}\" stroke-width=\"1.4\" d=\"M{x:.1} {:.1}H{:.1}M{x:.1} {:.1}v{:.0}\"><title>{} {} {}: {} {}</title></path>",
                class(op),
                y + LANE_HEIGHT / 2.0,
                frame.x(op.end_us),
                y + 4.0,
                LANE_HEIGHT - 8.0,
                op.action.name(),
                op.id,
                outcome(op.outcome),
                escape(&op.state),
                escape(&words)
            )?;
        }
        for (class, path) in good {
            write!(
                page,
                "<path class=\"{class}\" stroke-width=\".8\" opacity=\".5\" d=\"{path}\"/>"
            )?;
        }
        y += LANE_HEIGHT;
    }
    Ok(())
}

/// Where the first violation is seen.
fn hits(page: &mut String, frame: Frame, evidence: &Evidence, results: &Results) -> fmt::Result {
    let Some(first) = results.violations.first() else { return Ok(()) };
    for (at, op) in evidence.ops.iter().filter(|op| first.ops.contains(&op.id)).enumerate() {
        let x = frame.x(op.start_us);
        let y = 16.0 + 12.0 * float(at as u64 % 4);
        write!(
            page,
            "<line class=\"hit\" x1=\"{x:.1}\" y1=\"8\" x2=\"{x:.1}\" y2=\"{:.0}\"><title>{} {}</title></line>\
                      <text x=\"{:.1}\" y=\"{y:.0}\" style=\"fill:var(--info)\">{} {}</text>",
            frame.height - 24.0,
            first.checker,
            op.id,
            x + 4.0,
            op.action.name(),
            op.id
        )?;
    }
    Ok(())
}

fn legend(page: &mut String) {
    page.push_str("<div class=\"legend\">");
    for (colour, words) in [
        ("ok", "writes acknowledged"),
        ("read", "reads answered"),
        ("fail", "failed for sure"),
        ("info", "outcome unknown"),
        ("process", "faults of processes"),
        ("network", "of networks"),
        ("disk", "of files"),
        ("resources", "of resources"),
        ("clock", "of clocks"),
        ("membership", "of membership"),
    ] {
        page.push_str(&format!("<span><i style=\"background:var(--{colour})\"></i>{words}</span>"));
    }
    page.push_str(
        "<span>pale: without a proven effect · latency is on a logarithmic scale</span></div>",
    );
}
