//! The in-sync sets of chunks go to and fro between two data nodes: what only one of them heard of while the other was
//! away must not count once the other has gone on without it, and come back.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{Effect, Nemesis, plan::Event};
use crate::cluster::Node;

/// Times that a node is stopped: each twice.
const TURNS: usize = 4;
/// Of the fault's time, how long a node stays stopped once no chunk counts on it.
const AWAY_PART: u64 = 10;
/// Time for a stopped node to be taken out of all chunks.
const OUT_LIMIT: Duration = Duration::from_secs(20);
/// Time for all chunks to have their replicas again.
const BACK_LIMIT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

impl Nemesis {
    pub(super) async fn swing(&self, event: &Event, nodes: &[&Node]) -> anyhow::Result<Effect> {
        let mut out = 0;
        for node in nodes.iter().cycle().take(TURNS) {
            node.signal(Signal::SIGSTOP)?;
            let left = self.turn(event, node).await;
            // Whatever came of it, the node is not left stopped.
            node.signal(Signal::SIGCONT)?;
            out += usize::from(left?);
            self.back().await?;
        }
        let proof = format!("{out} of {TURNS} times a stopped node was taken out of every chunk");
        Ok(if out == TURNS { Effect::seen(proof) } else { Effect::unseen(proof) })
    }

    /// Waits until no chunk counts on a stopped node, and then some time; whether it came to that.
    async fn turn(&self, event: &Event, node: &Node) -> anyhow::Result<bool> {
        let deadline = Instant::now() + OUT_LIMIT;
        while self.held(&node.name).await.unwrap_or(usize::MAX) > 0 {
            if Instant::now() > deadline {
                return Ok(false);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        tokio::time::sleep(Duration::from_millis(event.for_ms / AWAY_PART)).await;
        Ok(true)
    }

    /// Waits until every chunk has its replicas again.
    async fn back(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + BACK_LIMIT;
        loop {
            let why = match self.cluster.redundant(self.replication).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(why)) => anyhow::anyhow!(why),
                Err(error) => error,
            };
            if Instant::now() > deadline {
                return Err(why.context("the replicas are not back"));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}
