//! Changes of who takes part and of what lies where, while everything goes on.

use std::time::{Duration, Instant};

use anyhow::Context;

use super::{Effect, Nemesis, plan::Event, plan::Kind, rest};
use crate::{
    cluster::{Node, Role},
    seed::Rng,
};

/// Time for a further node to be up.
const UP_LIMIT: Duration = Duration::from_secs(30);
/// Time for a chunk to move.
const MOVE_LIMIT: Duration = Duration::from_secs(45);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

impl Nemesis {
    pub(super) async fn membership(&self, event: &Event, node: &Node) -> anyhow::Result<Effect> {
        match event.kind {
            Kind::Add => self.add().await,
            Kind::Move => self.move_chunk(event).await,
            _ => self.drain(event, node).await,
        }
    }

    async fn add(&self) -> anyhow::Result<Effect> {
        let Some(spare) =
            self.cluster.of(Role::Data).find(|node| node.pid().is_none() && !node.died())
        else {
            return Ok(Effect::Skipped("there is no place for a further node".into()));
        };
        self.revive(spare).await?;
        let deadline = Instant::now() + UP_LIMIT;
        loop {
            let status = self.cluster.status().await;
            let nodes = status.map(|status| status.nodes).unwrap_or_default();
            if nodes.iter().any(|node| node.name == spare.name && node.state == "up") {
                break;
            }
            if Instant::now() > deadline {
                return Ok(Effect::unseen(format!("{} is not up after {UP_LIMIT:?}", spare.name)));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        let sql = self.cluster.sql().await?;
        let attach = format!("SELECT attach_data_node('{}', 'm')", spare.name);
        sql.run(&attach).await.context("attach the further node")?;
        Ok(Effect::seen(format!("{} is up and attached", spare.name)))
    }

    async fn move_chunk(&self, event: &Event) -> anyhow::Result<Effect> {
        let sql = self.cluster.sql().await?;
        let chunks = self.cluster.chunks(&sql).await?;
        let mut rng = Rng::new(event.salt, 1);
        let Some(chunk) = rng.pick(&chunks) else {
            return Ok(Effect::Skipped("there is no chunk yet".into()));
        };
        let status = self.cluster.status().await?;
        let free: Vec<&String> = status
            .nodes
            .iter()
            .filter(|node| node.role == "data" && node.state == "up")
            .map(|node| &node.name)
            .filter(|name| !chunk.nodes.contains(name))
            .collect();
        let (Some(source), Some(target)) = (rng.pick(&chunk.nodes), rng.pick(&free)) else {
            return Ok(Effect::Skipped("no node is free of the chunk".into()));
        };
        let call = format!(
            "CALL timescaledb_experimental.move_chunk('_timescaledb_internal.{}', '{source}', '{target}')",
            chunk.name
        );
        match sql.run_within(&call, MOVE_LIMIT).await {
            Ok(_) => Ok(Effect::seen(format!("{} went from {source} to {target}", chunk.name))),
            Err(error) => Ok(Effect::unseen(format!("{error:#}"))),
        }
    }

    async fn drain(&self, event: &Event, node: &Node) -> anyhow::Result<Effect> {
        let name = &node.name;
        let held = self.held(name).await?;
        let sql = self.cluster.sql().await?;
        sql.run(&format!("SELECT drain_data_node('{name}')")).await?;
        rest(event).await;
        let left = self.held(name).await;
        let sql = self.cluster.sql().await?;
        sql.run(&format!("SELECT drain_data_node('{name}', false)")).await?;
        let left = left?;
        let proof = format!("{name} held {held} chunks before and {left} after");
        Ok(if left < held { Effect::seen(proof) } else { Effect::unseen(proof) })
    }

    /// Chunks that count on a node.
    pub(super) async fn held(&self, name: &String) -> anyhow::Result<usize> {
        let chunks = self.cluster.chunks(&self.cluster.sql().await?).await?;
        Ok(chunks.iter().filter(|chunk| chunk.nodes.contains(name)).count())
    }
}
