//! Power cuts: the node ends at once, and of what it wrote since the last sync of each file any part is gone.

use std::time::Duration;

use super::{Effect, Nemesis, plan::Event, rest};
use crate::cluster::{Node, shim::Word};

/// Time for a node to be gone after the order.
const CUT_LIMIT: Duration = Duration::from_secs(10);

impl Nemesis {
    pub(super) async fn power(&self, event: &Event, nodes: &[&Node]) -> anyhow::Result<Effect> {
        for node in nodes {
            match node.board() {
                Ok(board) if board.loaded()? => {}
                Ok(_) => return Ok(Effect::Skipped(format!("{} has not loaded it", node.name))),
                Err(why) => return Ok(Effect::Skipped(why)),
            }
        }
        let before = sectors(nodes)?;
        for (place, node) in nodes.iter().enumerate() {
            if let Ok(board) = node.board() {
                board.set(Word::Seed, event.salt.wrapping_add(place as u64))?;
                board.set(Word::Cut, 1)?;
            }
        }
        let mut cut = 0;
        for node in nodes {
            cut += usize::from(node.gone(CUT_LIMIT).await.is_ok());
            node.kill().await?;
        }
        let after = sectors(nodes)?;
        rest(event).await;
        for node in nodes {
            self.revive(node).await?;
        }
        let (lost, kept) = (after.0 - before.0, after.1 - before.1);
        let proof = format!(
            "{cut} of {} without power, {lost} unsynced sectors lost, {kept} kept",
            nodes.len()
        );
        Ok(if cut == nodes.len() { Effect::seen(proof) } else { Effect::unseen(proof) })
    }
}

/// Sectors that power cuts took and left so far.
fn sectors(nodes: &[&Node]) -> anyhow::Result<(u64, u64)> {
    let mut sum = (0, 0);
    for board in nodes.iter().filter_map(|node| node.board().ok()) {
        sum.0 += board.get(Word::SectorsLost)?;
        sum.1 += board.get(Word::SectorsKept)?;
    }
    Ok(sum)
}
