//! Data nodes that failed a moment ago: statements avoid them while another replica can be read, so that a dead node
//! costs one statement a failed call and not every one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hypertide_proto::ids::NodeId;

/// How long a failed node is avoided.
const AVOIDED_FOR: Duration = Duration::from_secs(3);

/// The nodes, shared by all statements of an access node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Suspects {
    failed: Arc<Mutex<BTreeMap<NodeId, Instant>>>,
}

impl Suspects {
    /// Notes that a node failed now; whether it was not avoided until now.
    pub(crate) fn add(&self, node: NodeId) -> bool {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let before = failed.insert(node, Instant::now());
        before.is_none_or(|at| at.elapsed() >= AVOIDED_FOR)
    }

    /// The nodes to avoid now.
    pub(crate) fn now(&self) -> BTreeSet<NodeId> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|_, at| at.elapsed() < AVOIDED_FOR);
        failed.keys().copied().collect()
    }
}
