//! Faults between nodes: packets that vanish, are reset or held back, where the receiver's filter says so. Clients are
//! outside: they reach every node, also one that nobody else reaches.

use super::{Effect, Nemesis, plan::Event, plan::Kind, rest};
use crate::cluster::{
    Node, Role,
    net::{Rule, Verdict, filter_possible},
};

impl Nemesis {
    pub(super) async fn network(
        &self,
        event: &Event,
        first: &Node,
        nodes: &[&Node],
    ) -> anyhow::Result<Effect> {
        if let Some(why) = &self.cluster.loopback {
            return Ok(Effect::Skipped(format!("no network namespaces: {why}")));
        }
        if let Err(error) = filter_possible().await {
            return Ok(Effect::Skipped(format!("{error:#}")));
        }
        let rules = self.rules(event.kind, first, nodes);
        let count = rules.len();
        self.cluster.rules.lock().await.set(event.id, rules).await?;
        rest(event).await;
        let caught = self.cluster.rules.lock().await.clear(event.id).await?;
        let proof = format!("{count} rules caught {caught} packets");
        Ok(if caught > 0 { Effect::seen(proof) } else { Effect::unseen(proof) })
    }

    /// Who does what with whose packets.
    fn rules(&self, kind: Kind, first: &Node, nodes: &[&Node]) -> Vec<Rule> {
        let everyone: Vec<&Node> = self.cluster.nodes.iter().filter(|node| node.alive()).collect();
        let mut pairs: Vec<(&Node, &Node)> = Vec::new();
        for to in &everyone {
            pairs.extend(
                everyone.iter().filter(|from| from.name != to.name).map(|from| (*from, *to)),
            );
        }
        let at = |node: &Node| nodes.iter().position(|other| other.name == node.name);
        let one = |node: &Node| node.name == first.name;
        let hit = |(from, to): &(&Node, &Node)| match kind {
            Kind::Isolate => one(from) || one(to),
            Kind::OneWay | Kind::Loss | Kind::Rate | Kind::Reset => one(to),
            Kind::Pair => at(from).is_some() && at(to).is_some(),
            Kind::Halves => match (at(from), at(to)) {
                (Some(from), Some(to)) => (from < nodes.len() / 2) != (to < nodes.len() / 2),
                _ => false,
            },
            Kind::Ring => match (at(from), at(to)) {
                (Some(from), Some(to)) => {
                    let apart = from.abs_diff(to);
                    apart.min(nodes.len() - apart) > 1
                }
                _ => false,
            },
            Kind::Roles => {
                let spared = one(from) || one(to);
                !spared && (from.role == Role::Access) != (to.role == Role::Access)
            }
            _ => false,
        };
        let verdict = match kind {
            Kind::Loss => Verdict::Lose,
            Kind::Reset => Verdict::Reset,
            Kind::Rate => Verdict::Rate,
            _ => Verdict::Drop,
        };
        let rules = pairs.into_iter().filter(hit).filter_map(|(from, to)| {
            let namespace = to.namespace.clone()?;
            Some(Rule { namespace, source: from.ip, verdict })
        });
        rules.collect()
    }
}
