//! The door to Raft for the rest of the crate: no generic type of openraft passes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use hypertide_proto::{
    client::Channels,
    ids::{AccessId, ClusterId},
};
use openraft::{
    BasicNode, Config, SnapshotPolicy,
    error::{CheckIsLeaderError, ClientWriteError, InitializeError, RaftError},
};
use tokio::sync::watch;

use super::{
    directory::Formed,
    log_store::LogStore,
    network::Peers,
    state_machine::StateMachine,
    types::{Proposal, TypeConfig},
    watchdog::Watchdog,
};
use crate::{
    Error,
    node::{Answer, Image, Tuning},
};

type Raft = openraft::Raft<TypeConfig>;

/// What a group is started with.
pub(crate) struct Setup {
    pub(crate) id: AccessId,
    pub(crate) dir: PathBuf,
    pub(crate) formed: Formed,
    pub(crate) log: LogStore,
    pub(crate) images: watch::Sender<Arc<Image>>,
    pub(crate) channels: Channels,
    pub(crate) tuning: Tuning,
}

/// This node's part in its Raft group.
pub(crate) struct Group {
    id: AccessId,
    formed: Formed,
    raft: Raft,
    disk: Arc<Watchdog>,
    /// Tells whether the catalog's file is open.
    open: Box<dyn Fn() -> bool + Send + Sync>,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("id", &self.id).field("formed", &self.formed).finish()
    }
}

/// What this node knows of the group.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) leader: Option<AccessId>,
    pub(crate) term: u64,
    /// The voters, with the addresses they had when the group was formed.
    pub(crate) voters: Vec<(AccessId, String)>,
}

/// Why a proposal has no answer.
#[derive(Debug)]
pub(crate) enum NotWritten {
    /// It is not in the log and never will be.
    NotLeader,
    /// It may be in the log.
    Unknown(String),
}

/// Why there is no read index.
#[derive(Debug)]
pub(crate) enum NotRead {
    /// Another node leads, or none.
    NotLeader,
    /// The leader could not hear from a majority in time.
    NoQuorum(String),
}

impl Group {
    /// Starts taking part.
    pub(crate) async fn start(setup: Setup) -> Result<Self, Error> {
        let Setup { id, dir, formed, log, images, channels, tuning } = setup;
        let storage = |error: &dyn fmt::Display| Error::Storage(format!("start raft: {error}"));
        let peers =
            Peers { cluster: formed.cluster, own: id, channels, images: images.subscribe() };
        let opening = tokio::task::spawn_blocking(move || StateMachine::open(&dir, images));
        let machine = opening.await.map_err(|error| storage(&error))?;
        let machine = machine.map_err(|error| match error.downcast::<Error>() {
            // The directory is in use: nothing is wrong with the disk.
            Ok(error @ Error::Identity(_)) => error,
            Ok(error) => storage(&error),
            Err(error) => storage(&error),
        })?;
        let open = Box::new(machine.open_elsewhere());
        let disk = machine.watchdog();
        let config = raft_config(formed.cluster, &tuning).map_err(|error| storage(&error))?;
        let raft = Raft::new(id.0, Arc::new(config), peers, log, machine).await;
        let raft = raft.map_err(|error| storage(&error))?;
        Ok(Self { id, formed, raft, disk, open })
    }

    /// Writes the first membership, unless the log has one already, or the node joined a group that had one.
    pub(crate) async fn initialize(&self) -> Result<(), Error> {
        if self.formed.joins {
            return Ok(());
        }
        let members = self.formed.members.iter();
        let members: BTreeMap<u64, BasicNode> =
            members.map(|(id, rpc)| (id.0, BasicNode::new(rpc))).collect();
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(Error::Storage(format!("form the raft group: {error}"))),
        }
    }

    pub(crate) fn cluster(&self) -> ClusterId {
        self.formed.cluster
    }

    pub(crate) fn formed(&self) -> &Formed {
        &self.formed
    }

    pub(super) fn raft(&self) -> &Raft {
        &self.raft
    }

    /// Whether this node leads, as far as it knows.
    pub(crate) fn leads(&self) -> bool {
        self.view().leader == Some(self.id)
    }

    pub(crate) fn view(&self) -> View {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let address = |id: u64| membership.get_node(&id).map(|node| node.addr.clone());
        View {
            leader: metrics.current_leader.map(AccessId),
            term: metrics.vote.leader_id().term,
            voters: membership
                .voter_ids()
                .map(|id| (AccessId(id), address(id).unwrap_or_default()))
                .collect(),
        }
    }

    /// Waits until the leader or the voters change, or until `within` has passed.
    pub(crate) async fn changed(&self, within: Duration) {
        let mut metrics = self.raft.server_metrics();
        metrics.mark_unchanged();
        let _timeout = tokio::time::timeout(within, metrics.changed()).await;
    }

    /// Puts a proposal into the log; gives its index and the answers to its commands.
    pub(crate) async fn write(&self, proposal: Proposal) -> Result<(u64, Vec<Answer>), NotWritten> {
        match self.raft.client_write(proposal).await {
            Ok(written) => Ok((written.log_id.index, written.data)),
            // Also sent for an entry that a new leader's log replaced: that one is gone, too.
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                Err(NotWritten::NotLeader)
            }
            Err(error) => Err(NotWritten::Unknown(error.to_string())),
        }
    }

    /// The index that a linearizable read that starts now must have applied.
    pub(crate) async fn read_index(&self) -> Result<(u64, u64), NotRead> {
        match self.raft.get_read_log_id().await {
            Ok((Some(id), _)) => Ok((id.index, id.leader_id.term)),
            Ok((None, _)) | Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(_))) => {
                Err(NotRead::NotLeader)
            }
            Err(error) => Err(NotRead::NoQuorum(error.to_string())),
        }
    }

    /// The voters; while they change, those that are to be.
    pub(crate) fn voters(&self) -> BTreeSet<u64> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        let configs = metrics.membership_config.membership().get_joint_config();
        configs.last().cloned().unwrap_or_default()
    }

    /// The voters that are to be, while a change of them is half done.
    pub(crate) fn joint(&self) -> Option<BTreeSet<u64>> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        match metrics.membership_config.membership().get_joint_config().as_slice() {
            [_, .., last] => Some(last.clone()),
            _ => None,
        }
    }

    /// Lets a node take part without a vote.
    pub(crate) async fn add_learner(&self, id: AccessId, rpc: &str) -> Result<(), String> {
        let added = self.raft.add_learner(id.0, BasicNode::new(rpc), false).await;
        added.map(drop).map_err(|error| error.to_string())
    }

    /// Entries that a node lacks, as the leader knows it.
    pub(crate) fn lag(&self, id: AccessId) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let matched = metrics.replication.as_ref()?.get(&id.0)?.as_ref()?.index;
        Some(metrics.last_log_index.unwrap_or(0).saturating_sub(matched))
    }

    /// Changes the voters, through a state in which the old and the new ones must agree.
    pub(crate) async fn set_voters(&self, voters: BTreeSet<u64>) -> Result<(), String> {
        let changed = self.raft.change_membership(voters, false).await;
        changed.map(drop).map_err(|error| error.to_string())
    }

    /// Waits until Raft has stopped for good, and says why.
    pub(crate) async fn failed(&self) -> String {
        let mut metrics = self.raft.metrics();
        loop {
            if let Err(fatal) = &metrics.borrow_and_update().running_state {
                return fatal.to_string();
            }
            if metrics.changed().await.is_err() {
                return "raft has stopped".to_owned();
            }
        }
    }

    /// How long the catalog's file has been writing.
    pub(crate) fn disk_waiting(&self) -> Option<Duration> {
        self.disk.waiting()
    }

    /// Whether the catalog's file is still open, after Raft was shut down.
    pub(crate) fn catalog_open(&self) -> bool {
        (self.open)()
    }

    /// Stops taking part.
    pub(crate) async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "raft did not stop cleanly");
        }
    }
}

fn raft_config(cluster: ClusterId, tuning: &Tuning) -> Result<Config, Box<openraft::ConfigError>> {
    let config = Config {
        cluster_name: cluster.to_string(),
        heartbeat_interval: tuning.heartbeat_ms,
        election_timeout_min: tuning.heartbeat_ms * 3,
        election_timeout_max: tuning.heartbeat_ms * 9 / 2,
        max_payload_entries: 64,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(tuning.snapshot_entries),
        max_in_snapshot_log_to_keep: tuning.kept_entries,
        replication_lag_threshold: tuning.snapshot_entries + tuning.snapshot_entries / 4,
        install_snapshot_timeout: 60_000,
        ..Config::default()
    };
    config.validate().map_err(Box::new)
}
