//! Faults of processes: killed, stopped, ended, one or all.

use nix::sys::signal::Signal;

use super::{Effect, Nemesis, plan::Event, plan::Kind, rest};
use crate::cluster::{Node, STOP_LIMIT};

impl Nemesis {
    pub(super) async fn process(&self, event: &Event, nodes: &[&Node]) -> anyhow::Result<Effect> {
        match event.kind {
            Kind::Pause => self.pause(event, nodes).await,
            Kind::Freeze => self.freeze(event, nodes).await,
            Kind::Power | Kind::PowerAll => self.power(event, nodes).await,
            Kind::SyncError | Kind::WriteError => self.failing(event, nodes).await,
            Kind::Roll => self.roll(nodes).await,
            Kind::Swing => self.swing(event, nodes).await,
            Kind::Terminate => self.stop_and_start(event, nodes, Signal::SIGTERM).await,
            _ => self.stop_and_start(event, nodes, Signal::SIGKILL).await,
        }
    }

    async fn pause(&self, event: &Event, nodes: &[&Node]) -> anyhow::Result<Effect> {
        let mut stopped = 0;
        for node in nodes {
            node.signal(Signal::SIGSTOP)?;
        }
        rest(event).await;
        for node in nodes {
            stopped += usize::from(node.state() == Some('T'));
            node.signal(Signal::SIGCONT)?;
        }
        let proof = format!("{stopped} of {} were stopped until they were woken", nodes.len());
        Ok(if stopped == nodes.len() { Effect::seen(proof) } else { Effect::unseen(proof) })
    }

    async fn stop_and_start(
        &self,
        event: &Event,
        nodes: &[&Node],
        signal: Signal,
    ) -> anyhow::Result<Effect> {
        let before: Vec<Option<u32>> = nodes.iter().map(|node| node.pid()).collect();
        for node in nodes {
            node.signal(signal)?;
        }
        let mut killed = 0;
        for node in nodes {
            if node.gone(STOP_LIMIT).await.is_err() {
                killed += 1;
                node.kill().await?;
            }
        }
        rest(event).await;
        for node in nodes {
            self.revive(node).await?;
        }
        let after: Vec<Option<u32>> = nodes.iter().map(|node| node.pid()).collect();
        let mut proof = format!("{signal}: processes {before:?} ended, {after:?} came");
        if killed > 0 {
            proof += &format!(", {killed} had to be killed after {STOP_LIMIT:?}");
        }
        Ok(if before == after { Effect::unseen(proof) } else { Effect::seen(proof) })
    }

    async fn roll(&self, nodes: &[&Node]) -> anyhow::Result<Effect> {
        let mut slow = Vec::new();
        for node in nodes {
            node.signal(Signal::SIGTERM)?;
            if node.gone(STOP_LIMIT).await.is_err() {
                slow.push(node.name.clone());
                node.kill().await?;
            }
            self.revive(node).await?;
        }
        let proof = format!("{} nodes were restarted; killed for slowness: {slow:?}", nodes.len());
        Ok(Effect::seen(proof))
    }
}
