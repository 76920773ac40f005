//! Where the leader is, and how to reach it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use hypertide_proto::{
    client::Channels,
    error::{Code, RpcError},
    ids::AccessId,
    wire::meta::meta_client::MetaClient,
};
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::{
    node::Image,
    raft::{Group, View},
};

/// The leader as this node sees it.
#[derive(Debug)]
pub(crate) struct Leader {
    own: AccessId,
    group: Arc<Group>,
    channels: Channels,
    images: watch::Receiver<Arc<Image>>,
    /// Which other node was asked last when no leader was known.
    asked: AtomicUsize,
}

impl Leader {
    pub(crate) fn new(
        own: AccessId,
        group: Arc<Group>,
        channels: Channels,
        images: watch::Receiver<Arc<Image>>,
    ) -> Self {
        Self { own, group, channels, images, asked: AtomicUsize::new(0) }
    }

    pub(crate) fn group(&self) -> &Group {
        &self.group
    }

    pub(crate) fn view(&self) -> View {
        self.group.view()
    }

    /// Whether this node leads, as far as it knows.
    pub(crate) fn here(&self) -> bool {
        self.group.leads()
    }

    /// Whether any node is known to lead.
    pub(crate) fn known(&self) -> bool {
        self.view().leader.is_some()
    }

    /// Waits until the leader changes, or until `within` has passed.
    pub(crate) async fn changed(&self, within: Duration) {
        self.group.changed(within).await;
    }

    /// The cluster as messages name it.
    pub(crate) fn cluster_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(&self.group.cluster().0)
    }

    /// Where a voter is now: as it registered last, or as the group was formed.
    pub(crate) fn address(&self, voter: &(AccessId, String)) -> String {
        let image = Arc::clone(&self.images.borrow());
        let registered = image.catalog.access_node(voter.0);
        registered.map_or_else(|| voter.1.clone(), |node| node.rpc.clone())
    }

    /// A client of the leader; when none is known, of the other voters in turn.
    pub(crate) fn client(&self) -> Result<(AccessId, MetaClient<Channel>), RpcError> {
        let view = self.view();
        let others = || view.voters.iter().filter(|voter| voter.0 != self.own);
        let leading = others().find(|voter| Some(voter.0) == view.leader);
        let in_turn = || {
            let turn = self.asked.fetch_add(1, Ordering::Relaxed);
            others().nth(turn.checked_rem(others().count())?)
        };
        let Some(voter) = leading.or_else(in_turn) else {
            return Err(RpcError::new(Code::Unavailable, "no access node leads yet"));
        };
        Ok((voter.0, self.channels.meta(&self.address(voter))?))
    }

    /// A client of the leader, if another node leads.
    pub(crate) fn leader_client(&self) -> Result<MetaClient<Channel>, RpcError> {
        if !self.known() {
            return Err(RpcError::new(Code::Unavailable, "no access node leads yet"));
        }
        self.client().map(|(_, client)| client)
    }
}
