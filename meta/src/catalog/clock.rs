//! Log time: milliseconds by the leaders' clocks, never less than before, and not led astray by one that jumps.
//!
//! Retention and the life of write ids run on log time, so that a clock that is an hour ahead for a moment must not
//! take it along: it could never come back. A step of more than [`JUMP_MAX_MS`] is not taken from a leader alone. After a
//! stop of the whole cluster it is right all the same; then the access nodes say what their clocks show, and log time
//! follows as soon as a majority of them is within one step of each other.

use hypertide_proto::ids::AccessId;

use super::{Catalog, Outcome, Reject, apply::Step};

/// The longest step of log time that one clock is believed, in milliseconds.
pub const JUMP_MAX_MS: u64 = 5 * 60 * 1000;

impl Catalog {
    /// The log time of a command that the leader gives this time of its clock.
    pub(crate) fn believed(&self, at_ms: u64) -> u64 {
        let now = self.counters.time_ms;
        let jumps = now > 0 && at_ms > now.saturating_add(JUMP_MAX_MS);
        if jumps { now } else { at_ms.max(now) }
    }

    /// Takes in what an access node's clock shows.
    pub(crate) fn advance_time(
        &mut self,
        access: AccessId,
        at_ms: u64,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        if self.access_nodes().all(|node| node.id != access) {
            let message = format!("access node {access} is not known to this cluster");
            return Err(Reject::Identity(message));
        }
        let living = self.access_nodes().count();
        let clocks = &mut self.counters.clocks;
        clocks.retain(|other, _| self.access_nodes.get(other).is_some_and(|node| !node.retired));
        clocks.insert(access, at_ms);
        let near = |other: &u64| other.abs_diff(at_ms) <= JUMP_MAX_MS;
        let agreeing: Vec<u64> = clocks.values().copied().filter(near).collect();
        if agreeing.len() * 2 <= living {
            return Ok(Outcome::Done);
        }
        // The least of those that agree: none of them runs behind it.
        let agreed = agreeing.into_iter().min().unwrap_or_default();
        step.at_ms = step.at_ms.max(agreed);
        clocks.clear();
        Ok(Outcome::Done)
    }
}
