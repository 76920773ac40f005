//! Faults: what they do, and the proof that they did it.
//!
//! [`plan`] says which comes when. Each runs as a task of its own: it waits for its nodes, does its work, proves it,
//! waits, heals it, and waits until its nodes run again. Faults of files run alone, and only while every chunk has all
//! its replicas and every byte of them was read and is right: a cluster that is left without any good copy has nothing
//! to keep its promise with.

mod clock;
mod crowd;
mod disk;
mod files;
mod freeze;
mod membership;
mod network;
pub(crate) mod plan;
mod power;
mod process;
mod resources;
mod swing;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tokio::sync::{MutexGuard, RwLock};

use crate::cluster::{Cluster, Node, command, net::Rules};
use plan::{Class, Event, Kind, Record, Status, Target};

/// Time for a node to serve again after it was started.
const REVIVE_LIMIT: Duration = Duration::from_secs(60);
/// Longest that a fault waits for a node that is under another one.
const BUSY_LIMIT: Duration = Duration::from_secs(20);
/// Pause between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Longest that a fault waits until faults of files are over, or that those wait for the others.
const GATE_LIMIT: Duration = Duration::from_secs(60);

/// What a fault came to.
#[derive(Debug)]
enum Effect {
    /// Done, with what was seen of it.
    Done {
        /// Whether it had an effect.
        effective: bool,
        /// What was seen.
        proof: String,
    },
    /// Not done, and why.
    Skipped(String),
}

impl Effect {
    fn seen(proof: impl ToString) -> Self {
        Self::Done { effective: true, proof: proof.to_string() }
    }

    fn unseen(proof: impl ToString) -> Self {
        Self::Done { effective: false, proof: proof.to_string() }
    }
}

/// The hand that does it.
#[derive(Debug)]
pub(crate) struct Nemesis {
    cluster: Arc<Cluster>,
    /// Start of the run.
    clock: Instant,
    /// Replicas that every chunk is to have.
    replication: usize,
    /// Held for writing by faults of files, by the others for reading.
    gate: RwLock<()>,
}

impl Nemesis {
    /// A nemesis of this cluster.
    pub(crate) const fn new(cluster: Arc<Cluster>, clock: Instant, replication: usize) -> Self {
        Self { cluster, clock, replication, gate: RwLock::const_new(()) }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Does one fault from beginning to end; it is time for it.
    pub(crate) async fn run(&self, event: Event, acks: u64) -> Record {
        let mut record = Record {
            nodes: Vec::new(),
            status: Status::Skipped,
            effective: false,
            start_us: self.now_us(),
            end_us: 0,
            acks,
            proof: String::new(),
            trouble: String::new(),
            event,
        };
        let alone = record.event.kind.class() == Class::Disk;
        let waited = tokio::time::timeout(GATE_LIMIT, async {
            match alone {
                true => (Some(self.gate.write().await), None),
                false => (None, Some(self.gate.read().await)),
            }
        });
        let Ok(_held) = waited.await else {
            record.proof = "other faults were not over in time".into();
            record.end_us = self.now_us();
            return record;
        };
        record.start_us = self.now_us();
        match self.targets(&record.event.target).await {
            Ok(nodes) => {
                record.nodes = nodes.iter().map(|node| node.name.clone()).collect();
                self.apply(&mut record, &nodes).await;
            }
            Err(error) => record.proof = format!("{error:#}"),
        }
        record.end_us = self.now_us();
        record
    }

    async fn targets(&self, target: &Target) -> anyhow::Result<Vec<&Node>> {
        match target {
            Target::Leader => Ok(vec![self.cluster.node(&self.cluster.leader().await?)?]),
            Target::Nodes(names) => names.iter().map(|name| self.cluster.node(name)).collect(),
        }
    }

    async fn apply(&self, record: &mut Record, nodes: &[&Node]) {
        let event = &record.event;
        let Some(first) = nodes.first().copied() else {
            record.proof = "no node to hit".into();
            return;
        };
        // Whoever does something to a process has it for itself.
        let exclusive =
            !matches!(event.kind.class(), Class::Network | Class::Membership | Class::Clock);
        let mut held: Vec<MutexGuard<'_, ()>> = Vec::new();
        for node in nodes.iter().filter(|_| exclusive) {
            // Faults that need several nodes ask for them in one order.
            let Ok(guard) = tokio::time::timeout(BUSY_LIMIT, node.busy.lock()).await else {
                record.proof = format!("{} is under another fault", node.name);
                return;
            };
            held.push(guard);
        }
        record.start_us = self.now_us();
        if exclusive && let Some(dead) = nodes.iter().find(|node| !node.alive()) {
            record.proof = format!("{} does not run", dead.name);
            return;
        }
        let effect = match event.kind.class() {
            Class::Process => self.process(event, nodes).await,
            Class::Network => self.network(event, first, nodes).await,
            Class::Clock => self.clock(event, first).await,
            Class::Disk => self.disk(event, first).await,
            Class::Resources => self.resources(event, first).await,
            Class::Membership => self.membership(event, first).await,
        };
        match effect {
            Ok(Effect::Done { effective, proof }) => {
                (record.status, record.effective, record.proof) =
                    (Status::Installed, effective, proof);
            }
            Ok(Effect::Skipped(why)) => record.proof = why,
            Err(error) => {
                record.status = Status::Indeterminate;
                record.proof = format!("{error:#}");
                if error.is::<Down>() {
                    record.trouble = format!("{error:#}");
                }
            }
        }
    }

    /// Starts a node and waits until it answers.
    async fn revive(&self, node: &Node) -> anyhow::Result<()> {
        node.start()?;
        self.cluster.tell_pids();
        let deadline = Instant::now() + REVIVE_LIMIT;
        while !self.cluster.answers(node).await {
            if !node.alive() {
                bail!(Down(format!("{} ends when it is started: {}", node.name, last_words(node))));
            }
            if Instant::now() > deadline {
                bail!(Down(format!(
                    "{} does not answer {REVIVE_LIMIT:?} after its start",
                    node.name
                )));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Ends whatever is still on: wakes and starts every node of `names`, and takes every packet filter back. Gives what
    /// could not be ended.
    pub(crate) async fn heal(&self, names: &[String]) -> Vec<String> {
        let mut troubles = Vec::new();
        for node in &self.cluster.nodes {
            if let Err(error) = self.heal_node(node, names.contains(&node.name)).await {
                troubles.push(format!("heal {}: {error:#}", node.name));
            }
        }
        *self.cluster.rules.lock().await = Rules::default();
        if let Some(links) = &self.cluster.links {
            links.clear_all();
        }
        troubles
    }

    async fn heal_node(&self, node: &Node, runs: bool) -> anyhow::Result<()> {
        if let Some(namespace) = &node.namespace
            && crate::cluster::net::filter_possible().await.is_ok()
        {
            command::run(&["ip", "netns", "exec", namespace, "nft", "flush", "ruleset"])
                .await
                .context("take packet filters back")?;
        }
        if let Ok(board) = node.board() {
            board.calm().context("end faults of files and clocks")?;
        }
        if node.alive() {
            node.signal(nix::sys::signal::Signal::SIGCONT)
        } else if runs {
            self.revive(node).await
        } else {
            Ok(())
        }
    }
}

/// A node does not come back.
#[derive(Debug)]
struct Down(String);

impl std::fmt::Display for Down {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Down {}

fn last_words(node: &Node) -> String {
    let log = std::fs::read(&node.log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let mut last: Vec<&str> = log.lines().rev().take(3).collect();
    last.reverse();
    last.join(" / ")
}

async fn rest(event: &Event) {
    tokio::time::sleep(Duration::from_millis(event.for_ms)).await;
}

/// Whether the kinds need the link proxy.
pub(crate) fn needs_links(kinds: &[Kind]) -> bool {
    kinds.iter().any(|kind| matches!(kind, Kind::Delay | Kind::Duplicate | Kind::Reorder))
}

/// Whether the kinds need the shim; in it, whether power is cut.
pub(crate) fn needs_shim(kinds: &[Kind]) -> Option<bool> {
    let cut = kinds.iter().any(|kind| matches!(kind, Kind::Power | Kind::PowerAll));
    kinds.iter().any(|kind| kind.shimmed()).then_some(cut)
}

/// Whether the kinds need a file system of their own for each data node.
pub(crate) fn needs_small_disks(kinds: &[Kind]) -> bool {
    kinds.contains(&Kind::Full)
}
