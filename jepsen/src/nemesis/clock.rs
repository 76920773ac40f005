//! Clocks that are off, for a while or to and fro. Only the time of day: what measures durations is left alone, as it is
//! by those who set clocks.

use std::time::{Duration, Instant};

use super::{Effect, Nemesis, files::loaded, plan::Event, plan::Kind, rest};
use crate::{
    cluster::{Node, shim::Word},
    seed::Rng,
};

/// Offsets, in milliseconds.
const OFFSETS_MS: [u64; 3] = [200, 5_000, 3_600_000];
/// Time between two jumps of a clock that goes to and fro.
const STROBE_INTERVAL: Duration = Duration::from_millis(100);

impl Nemesis {
    pub(super) async fn clock(&self, event: &Event, node: &Node) -> anyhow::Result<Effect> {
        let board = match loaded(node)? {
            Ok(board) => board,
            Err(why) => return Ok(Effect::Skipped(why)),
        };
        let mut rng = Rng::new(event.salt, 4);
        let offset_us = rng.pick(&OFFSETS_MS).copied().unwrap_or_default() * 1000;
        // In two's complement, which is what the shim reads.
        let offset = if rng.chance(50) { offset_us } else { offset_us.wrapping_neg() };
        let before = board.get(Word::ClockReads)?;
        if event.kind == Kind::Strobe {
            let deadline = Instant::now() + Duration::from_millis(event.for_ms);
            while Instant::now() < deadline {
                board.set(Word::ClockUs, offset)?;
                tokio::time::sleep(STROBE_INTERVAL).await;
                board.set(Word::ClockUs, 0)?;
                tokio::time::sleep(STROBE_INTERVAL).await;
            }
        } else {
            board.set(Word::ClockUs, offset)?;
            rest(event).await;
            board.set(Word::ClockUs, 0)?;
        }
        let reads = board.get(Word::ClockReads)? - before;
        let sign = if offset == offset_us { '+' } else { '-' };
        let proof = format!("{reads} looks at a clock that was {sign}{} ms off", offset_us / 1000);
        Ok(if reads > 0 { Effect::seen(proof) } else { Effect::unseen(proof) })
    }
}
