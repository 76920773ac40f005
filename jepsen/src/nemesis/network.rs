//! Faults between nodes: packets that vanish, are reset or held back, where the receiver's filter says so; and calls that
//! are late, come twice or overtake each other, by the link proxy. Without filters the link proxy does all of it, with
//! calls instead of packets. Clients are outside: they reach every node, also one that nobody else reaches.

use super::{Effect, Nemesis, plan::Event, plan::Kind, rest};
use crate::cluster::{
    Node, Role,
    links::{LinkRule, Links, Trouble},
    net::{Rule, Verdict, filter_possible},
};

impl Nemesis {
    pub(super) async fn network(
        &self,
        event: &Event,
        first: &Node,
        nodes: &[&Node],
    ) -> anyhow::Result<Effect> {
        let pairs = self.pairs(event.kind, first, nodes);
        let count = pairs.len();
        let for_calls = matches!(event.kind, Kind::Delay | Kind::Duplicate | Kind::Reorder);
        if for_calls || self.cluster.loopback.is_some() {
            return match &self.cluster.links {
                Some(links) => Ok(through(links, event, pairs).await),
                None => Ok(Effect::Skipped("the run has no link proxy".into())),
            };
        }
        if let Err(error) = filter_possible().await {
            return Ok(Effect::Skipped(format!("{error:#}")));
        }
        let verdict = match event.kind {
            Kind::Loss => Verdict::Lose,
            Kind::Reset => Verdict::Reset,
            Kind::Rate => Verdict::Rate,
            _ => Verdict::Drop,
        };
        let rules = pairs.into_iter().filter_map(|(from, to)| {
            let namespace = to.namespace.clone()?;
            let source = (from.ip, self.cluster.known_ip(from));
            Some(Rule { namespace, source, verdict })
        });
        let rules: Vec<Rule> = rules.collect();
        self.cluster.rules.lock().await.set(event.id, rules).await?;
        rest(event).await;
        let caught = self.cluster.rules.lock().await.clear(event.id).await?;
        let proof = format!("{count} rules caught {caught} packets");
        Ok(if caught > 0 { Effect::seen(proof) } else { Effect::unseen(proof) })
    }

    /// Between whom: from whom and to whom.
    fn pairs<'a>(&'a self, kind: Kind, first: &Node, nodes: &[&Node]) -> Vec<(&'a Node, &'a Node)> {
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
            Kind::Isolate | Kind::Delay => one(from) || one(to),
            Kind::OneWay | Kind::Loss | Kind::Rate | Kind::Reset => one(to),
            Kind::Duplicate | Kind::Reorder => one(to),
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
        pairs.retain(hit);
        pairs
    }
}

/// Has the link proxy do it.
async fn through(links: &Links, event: &Event, pairs: Vec<(&Node, &Node)>) -> Effect {
    let trouble = match event.kind {
        Kind::Loss => Trouble::Lose,
        Kind::Reset => Trouble::Reset,
        Kind::Rate => Trouble::Rate,
        Kind::Delay => Trouble::Delay,
        Kind::Duplicate => Trouble::Duplicate,
        Kind::Reorder => Trouble::Reorder,
        _ => Trouble::Cut,
    };
    let rule = |(from, to): (&Node, &Node)| LinkRule {
        from: from.name.clone(),
        to: to.name.clone(),
        trouble,
        salt: event.salt,
    };
    let rules: Vec<LinkRule> = pairs.into_iter().map(rule).collect();
    let count = rules.len();
    links.set(event.id, rules);
    rest(event).await;
    let met = links.clear(event.id);
    let proof = format!("{count} directions of links in trouble, met {met} times");
    if met > 0 { Effect::seen(proof) } else { Effect::unseen(proof) }
}
