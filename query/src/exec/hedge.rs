//! When a fragment is sent to another replica, too, while its node has not answered.
//!
//! - *Late*: it takes longer than nineteen of twenty did, and there is something left of the share of fragments that may
//!   be sent twice.
//! - *Silent*: the node does not answer a trivial question either, twice in a row. A frozen process keeps its
//!   connections, so that nothing else tells; the leader takes longer to be sure.
//!
//! Neither is held against the node's answer: whichever comes first is taken, and the other is dropped, which ends its
//! work. Both read the same snapshot.

use std::time::{Duration, Instant};

use hypertide_proto::{ids::NodeId, wire::storage::ChunksRequest};

use crate::context::Statement;

/// A node that has not answered for this long is asked whether it is there.
const PROBE_AFTER: Duration = Duration::from_millis(400);
/// How long it has to say so.
const PROBE_TIMEOUT: Duration = Duration::from_millis(400);
/// Questions in a row that go unanswered before the node is taken for silent.
const PROBES: u32 = 2;
/// Pause between two questions to a node that answers: it works, and is not to be disturbed.
const PROBE_PAUSE: Duration = Duration::from_secs(1);

/// Why a fragment is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slow {
    /// It takes long.
    Late,
    /// Its node does not answer at all, or has failed.
    Silent,
}

/// Resolves when a fragment should be sent to another replica, too. It may never.
pub(super) async fn slow(statement: &Statement, node: NodeId) -> Slow {
    let silent = silent(statement, node);
    let late = async {
        match statement.pace.patience() {
            Some(patience) => tokio::time::sleep(patience).await,
            None => std::future::pending().await,
        }
        if !statement.pace.take() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        silent = silent => silent,
        () = late => Slow::Late,
    }
}

/// Resolves when the node leaves [`PROBES`] questions in a row unanswered.
pub(super) async fn silent(statement: &Statement, node: NodeId) -> Slow {
    tokio::time::sleep(PROBE_AFTER).await;
    let mut unanswered = 0;
    while unanswered < PROBES {
        let asked = Instant::now();
        match answers(statement, node).await {
            true => {
                unanswered = 0;
                tokio::time::sleep(PROBE_PAUSE).await;
            }
            false => {
                unanswered += 1;
                // A refusal comes at once, and is no reason to ask again at once.
                tokio::time::sleep(PROBE_TIMEOUT.saturating_sub(asked.elapsed())).await;
            }
        }
    }
    Slow::Silent
}

/// Whether the node answers a question that costs it nothing.
async fn answers(statement: &Statement, node: NodeId) -> bool {
    let image = &statement.snapshot.image;
    let (Some(node), Some(cluster)) = (image.catalog.data_node(node), statement.catalog.cluster())
    else {
        return false;
    };
    let Ok(mut client) = statement.channels.linked_storage(&node.rpc) else { return false };
    // There is no chunk zero: the answer is empty.
    let request = ChunksRequest { cluster: cluster.0.to_vec().into(), chunks: vec![0] };
    let asked = tokio::time::timeout(PROBE_TIMEOUT, client.chunks(request));
    matches!(asked.await, Ok(Ok(_)))
}
