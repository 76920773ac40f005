//! A plan as EXPLAIN shows it: one operator a line, indented under what it feeds, and under every
//! [`RemoteFragmentExec`] the data nodes it runs on and the fragment that they run.

use std::fmt;

use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan};

use super::{RemoteFragmentExec, send::NodeReport};

/// Spaces of one level.
const INDENT: usize = 2;

/// The lines of a plan. `analyze` adds what was measured while it ran; `verbose` the metrics of every operator.
pub(crate) fn explain_lines(plan: &dyn ExecutionPlan, analyze: bool, verbose: bool) -> Vec<String> {
    let mut lines = Lines { analyze, verbose, lines: Vec::new() };
    lines.add(plan, 0);
    lines.lines
}

/// The lines of a fragment with its metrics, for the access node to show.
pub(crate) fn plan_lines(plan: &dyn ExecutionPlan) -> String {
    explain_lines(plan, true, true).join("\n")
}

struct Lines {
    analyze: bool,
    verbose: bool,
    lines: Vec<String>,
}

impl Lines {
    fn add(&mut self, plan: &dyn ExecutionPlan, depth: usize) {
        let mut line = format!("{:width$}{}", "", Shown(plan), width = depth * INDENT);
        if self.analyze {
            line.push_str(&self.metrics(plan));
        }
        self.lines.push(line);
        if let Some(remote) = plan.downcast_ref::<RemoteFragmentExec>() {
            self.add_remote(remote, depth + 1);
        }
        for child in plan.children() {
            self.add(child.as_ref(), depth + 1);
        }
    }

    fn metrics(&self, plan: &dyn ExecutionPlan) -> String {
        let Some(metrics) = plan.metrics() else { return String::new() };
        let metrics = metrics.aggregate_by_name().sorted_for_display().timestamps_removed();
        if self.verbose {
            return format!(", metrics=[{metrics}]");
        }
        let rows = metrics.output_rows().map(|rows| format!("rows={rows}"));
        let time = metrics.elapsed_compute().filter(|nanos| *nanos > 0);
        let time = time.map(|nanos| format!("time={:.3} ms", nanos as f64 / 1e6));
        let parts: Vec<String> = rows.into_iter().chain(time).collect();
        if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(" ")) }
    }

    fn add_remote(&mut self, remote: &RemoteFragmentExec, depth: usize) {
        let indent = " ".repeat(depth * INDENT);
        for (partition, fragment) in remote.fragments().iter().enumerate() {
            let name = remote.node_name(fragment.node);
            let mut line = format!("{indent}node={name} chunks={}", fragment.chunks.len());
            if self.verbose {
                let ids: Vec<String> =
                    fragment.chunks.iter().map(|chunk| chunk.id.to_string()).collect();
                line.push_str(&format!(" [{}]", ids.join(", ")));
            }
            let report = if self.analyze { remote.report(partition) } else { None };
            if let Some(report) = &report {
                line.push_str(&measured(report));
            }
            let node = report.as_ref().and_then(|report| report.node.as_ref());
            self.lines.push(line);
            if self.verbose
                && let Some(node) = node
            {
                let inner = node.plan.lines().map(|line| format!("{indent}  {line}"));
                self.lines.extend(inner);
            }
        }
        self.lines.push(format!("{indent}fragment:"));
        let mut fragment = Self { analyze: false, verbose: self.verbose, lines: Vec::new() };
        fragment.add(remote.inner().as_ref(), depth + 1);
        self.lines.append(&mut fragment.lines);
    }
}

/// What was measured of a node's part.
fn measured(report: &NodeReport) -> String {
    let NodeReport { bytes, elapsed_us, node } = report;
    let time = *elapsed_us as f64 / 1e3;
    let Some(node) = node else {
        // The statement had enough rows before the node was done.
        return format!(" bytes={bytes} time={time:.3} ms (stopped early)");
    };
    format!(
        " rows={} bytes={bytes} time={time:.3} ms (on node {:.3} ms) chunks skipped={} segments={} \
         skipped={} blocks={} skipped={} read={} bytes skipped={}",
        node.rows,
        node.elapsed_us as f64 / 1e3,
        node.chunks_skipped,
        node.segments,
        node.segments_skipped,
        node.blocks,
        node.blocks_skipped,
        node.bytes_read,
        node.bytes_skipped,
    )
}

/// One operator.
struct Shown<'a>(&'a dyn ExecutionPlan);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        DisplayAs::fmt_as(self.0, DisplayFormatType::Default, f)
    }
}
