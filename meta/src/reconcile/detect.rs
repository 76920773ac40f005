//! When a silent data node is suspected, and when it is given up for now.
//!
//! ```text
//! up --2 s silent--> suspect --3 s silent and a probe unanswered--> down
//! up <--heard of---- suspect          up <--heard of for 1 s------- down
//! ```
//!
//! Reads avoid a suspect at once, which costs nothing when it was wrong. Commits go on without a node only when it
//! answers the leader's question neither: a node whose heartbeats are lost, but which answers, keeps its replicas.

use std::time::Duration;

use crate::catalog::Health;

/// A node that was silent for this long is suspected.
pub const SUSPECT_AFTER: Duration = Duration::from_secs(2);
/// A node that was silent for this long, and does not answer a probe, is down.
pub const DOWN_AFTER: Duration = Duration::from_secs(3);
/// A node that was heard of within this long is not silent.
pub const HEARD_WITHIN: Duration = Duration::from_millis(1_500);
/// A node that was down must be heard of for this long, lest it comes and goes with every heartbeat.
pub const STEADY_AFTER: Duration = Duration::from_secs(1);

/// What is known of a data node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sign {
    /// What it was judged to be before.
    pub health: Health,
    /// Since when nothing was heard of it.
    pub silent: Duration,
    /// How long it has been heard of without a pause.
    pub steady: Duration,
    /// Whether it answered the last probe; `None` when there was none since it fell silent.
    pub answered: Option<bool>,
}

/// What the node is to be taken for now.
#[must_use]
pub fn judge(sign: Sign) -> Health {
    let Sign { health, silent, steady, answered } = sign;
    match health {
        Health::Up if silent >= SUSPECT_AFTER => Health::Suspect,
        Health::Suspect if silent < HEARD_WITHIN => Health::Up,
        Health::Suspect if silent >= DOWN_AFTER && answered == Some(false) => Health::Down,
        Health::Down if silent < HEARD_WITHIN && steady >= STEADY_AFTER => Health::Up,
        same => same,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(health: Health, silent_ms: u64, steady_ms: u64, answered: Option<bool>) -> Health {
        let (silent, steady) = (Duration::from_millis(silent_ms), Duration::from_millis(steady_ms));
        judge(Sign { health, silent, steady, answered })
    }

    #[test]
    fn silence_makes_a_suspect_and_only_an_unanswered_probe_a_dead_node() {
        assert_eq!(after(Health::Up, 1_999, 0, None), Health::Up);
        assert_eq!(after(Health::Up, 2_000, 0, Some(false)), Health::Suspect);
        assert_eq!(after(Health::Suspect, 2_999, 0, Some(false)), Health::Suspect);
        assert_eq!(after(Health::Suspect, 60_000, 0, Some(true)), Health::Suspect);
        assert_eq!(after(Health::Suspect, 60_000, 0, None), Health::Suspect);
        assert_eq!(after(Health::Suspect, 3_000, 0, Some(false)), Health::Down);
        assert_eq!(after(Health::Suspect, 400, 0, Some(false)), Health::Up);
    }

    #[test]
    fn a_dead_node_comes_back_when_it_is_steady() {
        assert_eq!(after(Health::Down, 100, 500, None), Health::Down);
        assert_eq!(after(Health::Down, 100, 1_000, None), Health::Up);
        assert_eq!(after(Health::Down, 5_000, 9_000, Some(false)), Health::Down);
    }
}
