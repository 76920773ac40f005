//! The running sessions of this access node, and the keys by which they are cancelled.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
};

use rand::RngCore;
use tokio_util::sync::CancellationToken;

/// Most sessions at a time.
const SESSIONS_MAX: usize = 500;
/// Bytes of a key of protocol 3.2; 3.0 has room for 4.
const KEY_BYTES: usize = 32;

/// The running sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    last: AtomicI32,
    running: Mutex<HashMap<i32, Entry>>,
}

#[derive(Debug)]
struct Entry {
    key: Vec<u8>,
    statement: CancellationToken,
}

/// One running session; leaves the list when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    sessions: Arc<Sessions>,
    pid: i32,
    key: Vec<u8>,
}

impl Sessions {
    /// Takes a seat, or `None` when all are taken.
    pub(super) fn enter(self: &Arc<Self>, short_key: bool) -> Option<Seat> {
        let mut key = vec![0; if short_key { 4 } else { KEY_BYTES }];
        rand::rng().fill_bytes(&mut key);
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.len() >= SESSIONS_MAX {
            return None;
        }
        let pid = loop {
            let pid = self.last.fetch_add(1, Ordering::Relaxed).wrapping_add(1) & i32::MAX;
            if pid != 0 && !running.contains_key(&pid) {
                break pid;
            }
        };
        running.insert(pid, Entry { key: key.clone(), statement: CancellationToken::new() });
        drop(running);
        Some(Seat { sessions: Arc::clone(self), pid, key })
    }

    /// Cancels the running statement of a session. A wrong key does nothing, and says nothing.
    pub(super) fn cancel(&self, pid: i32, key: &[u8]) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = running.get(&pid)
            && same(&entry.key, key)
        {
            entry.statement.cancel();
        }
    }
}

/// Compares in a time that does not tell where keys differ.
fn same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

impl Seat {
    /// Number of the session.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Secret of the session.
    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }

    /// Begins a statement: cancel requests that came before do not count.
    pub(super) fn arm(&self) -> CancellationToken {
        let token = CancellationToken::new();
        let mut running = self.sessions.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = running.get_mut(&self.pid) {
            entry.statement = token.clone();
        }
        token
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut running = self.sessions.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.remove(&self.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_key_cancels_only_the_running_statement() {
        let sessions = Arc::new(Sessions::default());
        let seat = sessions.enter(true).unwrap();
        let other = sessions.enter(false).unwrap();
        sessions.cancel(seat.pid(), seat.key());
        let statement = seat.arm();
        assert!(!statement.is_cancelled(), "the request came before the statement");
        sessions.cancel(seat.pid(), other.key());
        sessions.cancel(other.pid(), seat.key());
        assert!(!statement.is_cancelled());
        sessions.cancel(seat.pid(), seat.key());
        assert!(statement.is_cancelled());
    }

    #[test]
    fn seats_are_bounded_and_come_back() {
        let sessions = Arc::new(Sessions::default());
        let mut seats: Vec<Seat> = (0..500).map(|_| sessions.enter(true).unwrap()).collect();
        assert!(sessions.enter(true).is_none());
        seats.pop();
        assert!(sessions.enter(true).is_some());
    }
}
