//! Who changes the rows of a table next, among the sessions of one access node.
//!
//! Transactions that change the same rows refuse each other at the data nodes. A statement that lost, and may be run
//! again, waits here for its turn; as long as somebody does, others of the table queue up behind. So of many sessions
//! that change one row each gets on, one after the other, where all at once would mostly lose.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use hypertide_proto::ids::TableId;
use tokio::sync::{Mutex as Queue, OwnedMutexGuard};

/// The turns of all tables.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns(Arc<Mutex<BTreeMap<TableId, Arc<Queue<()>>>>>);

/// The right to change rows, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _guard: OwnedMutexGuard<()>,
}

impl Turns {
    /// Waits for the turn of a statement that lost.
    pub(crate) async fn wait(&self, table: TableId) -> Turn {
        let queue = {
            let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            queues.retain(|_, queue| Arc::strong_count(queue) > 1);
            Arc::clone(queues.entry(table).or_default())
        };
        Turn { _guard: queue.lock_owned().await }
    }

    /// Waits for the turn if others do, and goes ahead without one if not.
    pub(crate) async fn join(&self, table: TableId) -> Option<Turn> {
        let waited_for = {
            let queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            queues.get(&table).is_some_and(|queue| Arc::strong_count(queue) > 1)
        };
        match waited_for {
            true => Some(self.wait(table).await),
            false => None,
        }
    }
}
