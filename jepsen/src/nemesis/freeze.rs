//! A node that the kernel's freezer stops: unlike a signal, the process cannot see it.

use super::{Effect, Nemesis, plan::Event, rest};
use crate::cluster::{Node, group::Group};

impl Nemesis {
    pub(super) async fn freeze(&self, event: &Event, nodes: &[&Node]) -> anyhow::Result<Effect> {
        let Some((node, pid)) = nodes.first().and_then(|node| Some((node, node.pid()?))) else {
            return Ok(Effect::Skipped("the node does not run".into()));
        };
        let group = match Group::make("freezer", pid) {
            Ok(group) => group,
            Err(why) => return Ok(Effect::Skipped(why)),
        };
        let frozen = async {
            group.enter()?;
            group.set("freezer.state", "FROZEN")?;
            rest(event).await;
            group.get("freezer.state")
        }
        .await;
        // Whatever came of it, the node is not left frozen.
        group.set("freezer.state", "THAWED")?;
        group.leave()?;
        let state = frozen?;
        let proof = format!("{} was {state} until it was thawed", node.name);
        Ok(if state == "FROZEN" { Effect::seen(proof) } else { Effect::unseen(proof) })
    }
}
