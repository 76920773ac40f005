//! What the processes of a local cluster, and this one, spend on a load: processor time and memory, from `/proc`.

use std::{fmt, fs, path::Path};

use comfy_table::{Table, presets::NOTHING};

use crate::endpoints::Endpoints;

/// The unit of `/proc/PID/stat`: a hundredth of a second on every architecture that Linux has today.
const TICKS_PER_SECOND: f64 = 100.0;
const KIB_PER_MIB: f64 = 1024.0;

/// A process that is watched.
#[derive(Debug)]
struct Process {
    name: String,
    pid: u32,
    /// Seconds of processor time that it had used at the start.
    before: f64,
}

/// The processes that take part in a load, as they were at its start.
#[derive(Debug)]
pub(crate) struct Watch {
    processes: Vec<Process>,
}

/// What a process spent.
#[derive(Debug)]
struct Spent {
    name: String,
    seconds: f64,
    peak_mib: f64,
}

/// What each process spent on so many rows.
#[derive(Debug)]
pub(crate) struct Usage {
    spent: Vec<Spent>,
    million_rows: f64,
}

impl Watch {
    /// Watches this process, and those of the local cluster in `dir` when there is one.
    pub(crate) fn start(dir: Option<&Path>) -> anyhow::Result<Self> {
        let nodes = dir.map(Endpoints::read).transpose()?.flatten().unwrap_or_default().nodes;
        let mut named = vec![("client".to_owned(), std::process::id())];
        for node in nodes {
            // All nodes of `dev` are one process.
            match named.iter_mut().find(|(_, pid)| *pid == node.pid) {
                Some((name, _)) => *name = format!("{name}+{}", node.name),
                None => named.push((node.name, node.pid)),
            }
        }
        let process = |(name, pid)| Some(Process { name, pid, before: cpu_seconds(pid)? });
        Ok(Self { processes: named.into_iter().filter_map(process).collect() })
    }

    /// What each process spent since. One that ended meanwhile is left out.
    pub(crate) fn finish(self, rows: u64) -> Usage {
        let spent = self.processes.into_iter().filter_map(|Process { name, pid, before }| {
            Some(Spent { name, seconds: cpu_seconds(pid)? - before, peak_mib: peak_mib(pid)? })
        });
        #[expect(clippy::cast_precision_loss, reason = "it is for people to read")]
        let million_rows = (rows as f64 / 1e6).max(f64::MIN_POSITIVE);
        Usage { spent: spent.collect(), million_rows }
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_preset(NOTHING);
        table.set_header(["process", "cpu s", "cpu s per million rows", "peak rss MiB"]);
        let all: f64 = self.spent.iter().map(|spent| spent.seconds).sum();
        for Spent { name, seconds, peak_mib } in &self.spent {
            let cells = [
                name.clone(),
                format!("{seconds:.2}"),
                format!("{:.3}", seconds / self.million_rows),
                format!("{peak_mib:.0}"),
            ];
            table.add_row(cells);
        }
        let each = format!("{:.3}", all / self.million_rows);
        table.add_row(["all".to_owned(), format!("{all:.2}"), each, String::new()]);
        write!(f, "{table}")
    }
}

/// Processor time of all threads of a process, also of those that ended.
fn cpu_seconds(pid: u32) -> Option<f64> {
    ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn ticks(stat: &str) -> Option<f64> {
    // The second field is the command in parentheses, which may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

/// The most memory that a process ever held.
fn peak_mib(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib / KIB_PER_MIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(3.0));
        assert_eq!(ticks("7 (a) S 1"), None);
    }

    #[test]
    fn this_process_is_watched() {
        let watch = Watch::start(None).expect("there is no cluster to read of");
        let usage = watch.finish(1_000_000).to_string();
        assert!(usage.contains("client") && usage.contains("all"), "{usage}");
    }
}
