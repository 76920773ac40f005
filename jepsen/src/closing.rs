//! What is looked at when the load is over and every fault healed.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::{
    checker::evidence::{Closing, Complaint, Replica},
    cluster::{Cluster, Node, Role, STOP_LIMIT},
    config::Config,
    history::{Action, Filter},
    load::Load,
    run::data_names,
    workload::{
        Kind, Workload,
        rows::{BASE_US, CHUNK_US, DAYS, Times},
    },
};

/// Time for every chunk to have its replicas, before the factor for slow machines; the checker has the promised limit.
const RESTORE_SECONDS: u64 = 150;
/// Time for one read of everything.
const READ_LIMIT: Duration = Duration::from_secs(90);
/// The same two for a server with a planted bug: what it has lost will not come back.
const PLANTED_RESTORE_LIMIT: Duration = Duration::from_secs(40);
const PLANTED_READ_LIMIT: Duration = Duration::from_secs(10);
/// Time for the reads of one day, when everything cannot be read.
const DAY_LIMIT: Duration = Duration::from_secs(3);
/// Time for replicas to have the last commits.
const EVEN_LIMIT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(300);
/// Lines of one node's log that are kept.
const COMPLAINTS_MAX: usize = 40;

/// What is looked at, and how long one waits for it.
struct View<'a> {
    cluster: &'a Cluster,
    load: &'a Load,
    config: &'a Config,
    restore_limit: Duration,
    read_limit: Duration,
}

/// Waits until the cluster is whole, reads everything at every access node and without each data node, and compares
/// what the nodes hold. What cannot be done is noted, and every wait ends.
pub(crate) async fn observe(
    cluster: &Cluster,
    load: &Load,
    (config, workload): (&Config, &Workload),
    closing: &mut Closing,
    clock: Instant,
) {
    let (restore_limit, read_limit) = match config.planted {
        None => (Duration::from_micros(config.limit_us(RESTORE_SECONDS)), READ_LIMIT),
        Some(_) => (PLANTED_RESTORE_LIMIT, PLANTED_READ_LIMIT),
    };
    let view = View { cluster, load, config, restore_limit, read_limit };
    closing.loopback = cluster.loopback.clone().unwrap_or_default();
    match view.wait_redundant().await {
        Ok(()) => closing.restored_us = u64::try_from(clock.elapsed().as_micros()).ok(),
        Err(why) => closing.not_restored = why,
    }
    view.read_all(workload).await;
    compare(cluster, closing).await;
    // What has too few replicas as it is cannot be read without one of them.
    if config.replication() > 1 && closing.restored_us.is_some() {
        view.read_without_each(workload, closing).await;
    }
}

impl View<'_> {
    /// Reads everything at every access node.
    async fn read_all(&self, workload: &Workload) {
        for node in self.cluster.of(Role::Access) {
            let everything = Filter::default();
            if !self.read(node, Action::Read(everything)).await {
                self.read_days(node).await;
            }
            self.read(node, Action::Aggregate(everything)).await;
            self.read_changed(node, workload).await;
        }
    }

    /// Reads what the workload changes beside the measurements; whether all of it was answered.
    async fn read_changed(&self, node: &Node, workload: &Workload) -> bool {
        let mut answered = true;
        for (doing, action) in [
            (Kind::Transfer, Action::Balances),
            (Kind::Count, Action::Counters),
            (Kind::Swap, Action::Registers),
            (Kind::Put, Action::Keys(self.load.all_keys())),
        ] {
            if workload.does(doing) {
                answered &= self.read(node, action).await;
            }
        }
        answered
    }

    async fn read(&self, node: &Node, action: Action) -> bool {
        self.load.closing_read(node, action, Instant::now() + self.read_limit).await
    }

    /// Reads day by day: of a chunk that is lost only the rows of its day cannot be read.
    async fn read_days(&self, node: &Node) {
        for day in days(self.config.times) {
            self.load.closing_read(node, Action::Read(day), Instant::now() + DAY_LIMIT).await;
        }
    }

    /// Reads everything with one data node silent after the other: every chunk is read from its other replicas then.
    async fn read_without_each(&self, workload: &Workload, closing: &mut Closing) {
        for name in data_names(self.cluster) {
            let silent = self.cluster.node(&name).and_then(|node| node.signal(Signal::SIGSTOP));
            if let Err(error) = silent {
                closing.missing.push(format!("read without {name}: {error:#}"));
                continue;
            }
            if let Some(node) = self.cluster.of(Role::Access).next()
                && !(self.read(node, Action::Read(Filter::default())).await
                    && self.read_changed(node, workload).await)
            {
                closing.missing.push(format!("not everything could be read without {name}"));
            }
            let woken = self.cluster.node(&name).and_then(|node| node.signal(Signal::SIGCONT));
            if let Err(error) = woken {
                closing.missing.push(format!("wake {name}: {error:#}"));
            }
            // Otherwise the next one would be the last replica of some chunk.
            if let Err(why) = self.wait_redundant().await {
                let what = format!("{name} was silent for a while and did not come back: {why}");
                closing.missing.push(what);
                return;
            }
        }
    }

    async fn wait_redundant(&self) -> Result<(), String> {
        let deadline = Instant::now() + self.restore_limit;
        loop {
            let wanted = usize::from(self.config.replication());
            let why = match self.cluster.redundant(wanted).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(why)) => why,
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() > deadline {
                return Err(why);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

/// The days of a workload's rows, and what lies before and after them.
fn days(times: Times) -> Vec<Filter> {
    let count = match times {
        Times::Spread => DAYS,
        // They lie anywhere.
        Times::Edges => 0,
    };
    let edges = (0..=count).map(|day| BASE_US + i64::try_from(day).unwrap_or(0) * CHUNK_US);
    let edges: Vec<i64> = edges.collect();
    let within = edges.array_windows().map(|[from, to]| (Some(*from), Some(*to)));
    let outside = [(None, edges.first().copied()), (edges.last().copied(), None)];
    within
        .chain(outside)
        .map(|(from_us, to_us)| Filter { from_us, to_us, ..Filter::default() })
        .collect()
}

/// Compares catalogs and replicas; data nodes learn of the last commits a moment later, so until they are equal.
async fn compare(cluster: &Cluster, closing: &mut Closing) {
    let deadline = Instant::now() + EVEN_LIMIT;
    loop {
        let late = Instant::now() > deadline;
        let looked = look(cluster, closing).await;
        let even = looked.is_ok() && {
            let evidence = &*closing;
            let mut chunks = evidence.catalogs.values().flatten();
            chunks.all(|chunk| {
                let held = evidence.replicas.iter().filter(|replica| replica.chunk == chunk.id);
                let mut held = held.filter(|replica| chunk.nodes.contains(&replica.node));
                let first = held.next();
                held.all(|other| {
                    first
                        .is_some_and(|first| (first.csn, &first.chain) == (other.csn, &other.chain))
                })
            })
        };
        match looked {
            _ if even => return,
            Err(error) if late => {
                closing
                    .missing
                    .push(format!("what the nodes hold could not be compared: {error:#}"));
                return;
            }
            _ if late => return,
            _ => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

async fn look(cluster: &Cluster, closing: &mut Closing) -> anyhow::Result<()> {
    closing.catalogs = cluster.catalogs().await?;
    closing.replicas = cluster.replicas(true).await?;
    for seen in cluster.check(false).await? {
        let of =
            |replica: &&mut Replica| (replica.chunk, &replica.node) == (seen.chunk, &seen.node);
        if let Some(replica) = closing.replicas.iter_mut().find(of) {
            replica.visible = seen.rows;
            if seen.whole == Some(false) {
                replica.problem.clone_from(&seen.problem);
            }
        }
    }
    Ok(())
}

/// Asks every node to end, data nodes first; kills those that do not.
pub(crate) async fn end_nodes(cluster: &Cluster, closing: &mut Closing) -> anyhow::Result<()> {
    for role in [Role::Data, Role::Access] {
        for node in cluster.of(role).filter(|node| node.alive()) {
            node.signal(Signal::SIGTERM)?;
        }
        for node in cluster.of(role) {
            if node.gone(STOP_LIMIT).await.is_err() {
                closing.unstoppable.push(node.name.clone());
                node.kill().await?;
            }
        }
    }
    Ok(())
}

/// Looks for panics, errors and signs of damage in the logs.
pub(crate) fn read_logs(cluster: &Cluster, closing: &mut Closing) {
    for node in &cluster.nodes {
        let log = std::fs::read(&node.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let mut kept = 0;
        for line in log.lines() {
            let lower = line.to_ascii_lowercase();
            closing.damage_lines += u64::from(
                ["damaged", "checksum", "corrupt"].iter().any(|word| lower.contains(word)),
            );
            let panicked = line.contains("panicked");
            let bad = panicked || line.contains(" ERROR ") || line.contains(" WARN ");
            if bad && (panicked || kept < COMPLAINTS_MAX) {
                kept += 1;
                let line = line.chars().take(400).collect();
                closing.complaints.push(Complaint { node: node.name.clone(), line });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::rows::Source;

    #[test]
    fn every_row_lies_in_one_day() {
        for times in [Times::Spread, Times::Edges] {
            let days = days(times);
            let source = Source { seed: 3, times };
            for row in (0..200).flat_map(|wid| source.rows(wid)) {
                assert_eq!(days.iter().filter(|day| day.matches(&row)).count(), 1, "{row}");
            }
        }
    }
}
