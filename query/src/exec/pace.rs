//! How fast data nodes answer, as an access node sees it, and how many fragments may be sent twice for it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Answers that are remembered.
const ANSWERS_KEPT: usize = 256;
/// Answers below which nothing is known.
const ANSWERS_MIN: usize = 32;
/// No fragment is sent twice before that, however fast the others were.
const PATIENCE_MIN: Duration = Duration::from_millis(50);
/// Fragments that earn the sending of one more: one in twenty may be sent twice.
const FRAGMENTS_PER_HEDGE: u32 = 20;
/// Fragments sent twice in a row, at most.
const HEDGES_MAX: u32 = 4;

/// Shared by all statements of an access node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pace {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// How long the last fragments took to answer, oldest first.
    answers: VecDeque<Duration>,
    /// Fragments that were sent and not yet used up by one that was sent twice.
    earned: u32,
}

impl Pace {
    /// Notes how long a fragment took to answer.
    pub(crate) fn answered(&self, took: Duration) {
        let mut state = self.lock();
        if state.answers.len() == ANSWERS_KEPT {
            state.answers.pop_front();
        }
        state.answers.push_back(took);
        state.earned = (state.earned + 1).min(FRAGMENTS_PER_HEDGE * HEDGES_MAX);
    }

    /// How long nineteen of twenty fragments take at most; `None` while too few have answered.
    pub(crate) fn patience(&self) -> Option<Duration> {
        let mut answers: Vec<Duration> = self.lock().answers.iter().copied().collect();
        if answers.len() < ANSWERS_MIN {
            return None;
        }
        let at = answers.len() * 19 / 20;
        let (_, patience, _) = answers.select_nth_unstable(at);
        Some((*patience).max(PATIENCE_MIN))
    }

    /// Whether a fragment may be sent twice now, which uses up what was earned.
    pub(crate) fn take(&self) -> bool {
        let mut state = self.lock();
        let left = state.earned.checked_sub(FRAGMENTS_PER_HEDGE);
        state.earned = left.unwrap_or(state.earned);
        left.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_what_nineteen_of_twenty_take() {
        let pace = Pace::default();
        for ms in 0..31 {
            pace.answered(Duration::from_millis(ms));
        }
        assert_eq!(pace.patience(), None);
        pace.answered(Duration::from_millis(1));
        assert_eq!(pace.patience(), Some(PATIENCE_MIN), "all were fast");
        for ms in 1..=400 {
            pace.answered(Duration::from_millis(ms));
        }
        // The last 256 took 145 to 400 ms.
        assert_eq!(pace.patience(), Some(Duration::from_millis(388)));
    }

    #[test]
    fn one_fragment_in_twenty_is_sent_twice() {
        let pace = Pace::default();
        let mut sent_twice = 0;
        for _ in 0..1_000 {
            pace.answered(Duration::ZERO);
            sent_twice += u32::from(pace.take());
        }
        assert_eq!(sent_twice, 50);
        for _ in 0..1_000 {
            pace.answered(Duration::ZERO);
        }
        let in_a_row = (0..100).filter(|_| pace.take()).count();
        assert_eq!(in_a_row, HEDGES_MAX as usize, "what was earned does not pile up");
    }
}
