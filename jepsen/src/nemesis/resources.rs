//! Faults of what a process may use: the processor's time, open files.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{Effect, Nemesis, plan::Event, plan::Kind, rest};
use crate::{
    checker::evidence::Usage,
    cluster::{Node, command, group::Group},
};

/// A turn of a throttled process: it runs, then it waits.
const RUN: Duration = Duration::from_millis(15);
const WAIT: Duration = Duration::from_millis(135);
/// Memory beyond what a process has that it may still get.
const MEMORY_BYTES: u64 = 256 << 10;

impl Nemesis {
    pub(super) async fn resources(&self, event: &Event, node: &Node) -> anyhow::Result<Effect> {
        match event.kind {
            Kind::Files => self.files(event, node).await,
            Kind::Memory => self.memory(event, node).await,
            Kind::SyncStall => self.stalling(event, node).await,
            Kind::Crowd => self.crowd(event, node).await,
            _ => self.throttle(event, node).await,
        }
    }

    /// Stops and wakes the process in short turns.
    async fn throttle(&self, event: &Event, node: &Node) -> anyhow::Result<Effect> {
        let deadline = Instant::now() + Duration::from_millis(event.for_ms);
        let mut turns = 0;
        while Instant::now() < deadline && node.alive() {
            node.signal(Signal::SIGSTOP)?;
            tokio::time::sleep(WAIT).await;
            turns += u32::from(node.state() == Some('T'));
            node.signal(Signal::SIGCONT)?;
            tokio::time::sleep(RUN).await;
        }
        let proof = format!("stopped {turns} times for {WAIT:?} of {:?}", WAIT + RUN);
        Ok(if turns > 0 { Effect::seen(proof) } else { Effect::unseen(proof) })
    }

    /// Gives the process next to no further memory: the kernel ends it when it needs some and there is none.
    async fn memory(&self, event: &Event, node: &Node) -> anyhow::Result<Effect> {
        let Some(pid) = node.pid() else {
            return Ok(Effect::Skipped(format!("{} does not run", node.name)));
        };
        let group = match Group::make("memory", pid) {
            Ok(group) => group,
            Err(why) => return Ok(Effect::Skipped(why)),
        };
        let starved = async {
            group.set("memory.limit_in_bytes", &MEMORY_BYTES.to_string())?;
            group.enter()?;
            rest(event).await;
            group.get("memory.failcnt")
        }
        .await;
        let ended = !node.alive();
        // Whatever came of it, the node is not left without.
        group.leave()?;
        if ended {
            self.revive(node).await?;
        }
        let failed: u64 = starved?.parse().unwrap_or_default();
        let proof = format!("{failed} times there was no memory; the process ended: {ended}");
        Ok(if ended || failed > 0 { Effect::seen(proof) } else { Effect::unseen(proof) })
    }

    /// Limits the process to the files that it has open.
    async fn files(&self, event: &Event, node: &Node) -> anyhow::Result<Effect> {
        let Some(Usage { pid, files: open, .. }) = node.usage(0) else {
            return Ok(Effect::Skipped(format!("{} does not run", node.name)));
        };
        let pid = format!("--pid={pid}");
        let get = ["prlimit", &pid, "--nofile", "--noheadings", "--output=SOFT"];
        let Ok(usual) = command::run(&get).await else {
            return Ok(Effect::Skipped("prlimit cannot be used".into()));
        };
        let set = |limit: &str| format!("--nofile={}:", limit.trim());
        command::run(&["prlimit", &pid, &set(&open.to_string())]).await?;
        let now = command::run(&get).await?;
        rest(event).await;
        // A node that could not do without may have ended itself; it is for the operator to start it.
        let ended = !node.alive();
        if ended {
            self.revive(node).await?;
        } else {
            command::run(&["prlimit", &pid, &set(&usual)]).await?;
        }
        let usual = usual.trim();
        let proof = format!("{open} files at most, instead of {usual}; the process ended: {ended}");
        let limited = now.trim() == open.to_string();
        Ok(if limited { Effect::seen(proof) } else { Effect::unseen(proof) })
    }
}
