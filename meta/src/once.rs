//! Calls that are carried out once, however often the network brings them.
//!
//! What is proposed may be anything, such as a table to be made: a copy of the call that comes late would make the table
//! again after it was dropped. Each call therefore has a name of its own, and a node that leads remembers the names.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long a name is remembered: four times the longest deadline of a proposal. A later copy is taken for a new call.
const REMEMBERED: Duration = Duration::from_secs(120);
/// Names that are remembered at most.
const NAMES_MAX: usize = 1 << 20;

/// The names of the calls that came lately.
#[derive(Debug, Default)]
pub(crate) struct Once {
    names: Mutex<Names>,
}

#[derive(Debug, Default)]
struct Names {
    known: HashSet<u128>,
    by_age: VecDeque<(Instant, u128)>,
}

impl Once {
    /// Notes a call; gives whether it is the first of its name.
    pub(crate) fn first(&self, name: u128, now: Instant) -> bool {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let Names { known, by_age } = &mut *names;
        while let Some((at, old)) = by_age.front()
            && (now.saturating_duration_since(*at) > REMEMBERED || by_age.len() >= NAMES_MAX)
        {
            known.remove(old);
            by_age.pop_front();
        }
        if !known.insert(name) {
            return false;
        }
        by_age.push_back((now, name));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_first_once_while_it_is_remembered() {
        let (once, start) = (Once::default(), Instant::now());
        assert!(once.first(1, start));
        assert!(once.first(2, start));
        assert!(!once.first(1, start + Duration::from_secs(60)));
        assert!(once.first(1, start + Duration::from_secs(180)));
        assert!(!once.first(1, start + Duration::from_secs(180)));
        let names = once.names.lock().expect("whole");
        assert_eq!((names.known.len(), names.by_age.len()), (1, 1));
    }
}
