//! Faults of what a process may use: the processor's time, open files.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{Effect, Nemesis, plan::Event, plan::Kind, rest};
use crate::cluster::{Node, command};

/// A turn of a throttled process: it runs, then it waits.
const RUN: Duration = Duration::from_millis(15);
const WAIT: Duration = Duration::from_millis(135);

impl Nemesis {
    pub(super) async fn resources(&self, event: &Event, node: &Node) -> anyhow::Result<Effect> {
        match event.kind {
            Kind::Files => self.files(event, node).await,
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

    /// Limits the process to the files that it has open.
    async fn files(&self, event: &Event, node: &Node) -> anyhow::Result<Effect> {
        let Some((pid, (_, open))) = node.pid().zip(node.usage()) else {
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
        if node.alive() {
            command::run(&["prlimit", &pid, &set(&usual)]).await?;
        }
        let proof = format!("{open} files at most, instead of {}", usual.trim());
        let limited = now.trim() == open.to_string();
        Ok(if limited { Effect::seen(proof) } else { Effect::unseen(proof) })
    }
}
