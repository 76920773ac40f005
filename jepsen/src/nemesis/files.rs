//! Files that fail: syncs and writes that answer with an error, syncs that take long.

use std::time::{Duration, Instant};

use super::{Effect, Nemesis, plan::Event, plan::Kind, rest};
use crate::{
    cluster::{Node, shim::Board, shim::Word},
    seed::Rng,
};

/// Longest time that the error is waited for, and that the node takes to end after it.
const NOTICE_LIMIT: Duration = Duration::from_secs(8);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How long every sync of a stalled disk takes, in milliseconds.
const STALL_MS: (u64, u64) = (50, 3_000);

impl Nemesis {
    /// Has syncs or writes fail until the node has noticed. A node may end itself then; it is for the operator to start it.
    pub(super) async fn failing(&self, event: &Event, nodes: &[&Node]) -> anyhow::Result<Effect> {
        let Some(node) = nodes.first() else { return Ok(Effect::Skipped("no node".into())) };
        let board = match loaded(node)? {
            Ok(board) => board,
            Err(why) => return Ok(Effect::Skipped(why)),
        };
        let (order, count) = match event.kind {
            Kind::SyncError => (Word::SyncError, Word::SyncsFailed),
            _ => (Word::WriteError, Word::WritesFailed),
        };
        let before = board.get(count)?;
        board.set(order, 1)?;
        let deadline = Instant::now() + NOTICE_LIMIT;
        while node.alive() && Instant::now() < deadline {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        board.set(order, 0)?;
        let (failed, ended) = (board.get(count)? - before, !node.alive());
        rest(event).await;
        if !node.alive() {
            self.revive(node).await?;
        }
        let proof = format!("{failed} calls failed; the process ended: {ended}");
        Ok(if failed > 0 { Effect::seen(proof) } else { Effect::unseen(proof) })
    }

    /// Has every sync take longer.
    pub(super) async fn stalling(&self, event: &Event, node: &Node) -> anyhow::Result<Effect> {
        let board = match loaded(node)? {
            Ok(board) => board,
            Err(why) => return Ok(Effect::Skipped(why)),
        };
        let stall = Rng::new(event.salt, 3).range(STALL_MS.0, STALL_MS.1);
        let before = board.get(Word::SyncsStalled)?;
        board.set(Word::SyncStallMs, stall)?;
        rest(event).await;
        board.set(Word::SyncStallMs, 0)?;
        let stalled = board.get(Word::SyncsStalled)? - before;
        let ended = !node.alive();
        if ended {
            self.revive(node).await?;
        }
        let proof = format!("{stalled} syncs took {stall} ms longer; the process ended: {ended}");
        Ok(if stalled > 0 { Effect::seen(proof) } else { Effect::unseen(proof) })
    }
}

/// The switchboard of a node that has loaded the shim.
pub(super) fn loaded(node: &Node) -> anyhow::Result<Result<&Board, String>> {
    Ok(match node.board() {
        Ok(board) if board.loaded()? => Ok(board),
        Ok(_) => Err(format!("{} has not loaded the shim", node.name)),
        Err(why) => Err(why),
    })
}
