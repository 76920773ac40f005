//! Keeps the channels of this node informed of the access nodes that pass calls on to data nodes.

use std::{sync::Weak, time::Duration};

use crate::node::{CatalogWriter, MetaNode};

/// Pause between two looks at the catalog.
const INTERVAL: Duration = Duration::from_secs(1);

/// Follows the access nodes of the catalog.
pub(crate) async fn follow(node: Weak<MetaNode>) {
    loop {
        let Some(node) = node.upgrade() else { return };
        let image = node.image();
        let others = image.catalog.access_nodes().filter(|other| other.id != node.id());
        node.config().channels.relay_through(others.map(|other| other.rpc.clone()).collect());
        drop(node);
        tokio::time::sleep(INTERVAL).await;
    }
}
