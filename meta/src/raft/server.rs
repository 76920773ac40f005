//! The Raft service: hands openraft the messages that are meant for this node of this cluster.

use std::{io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use hypertide_proto::{
    error::{Code, RpcError},
    ids::{AccessId, ClusterId},
    wire::{
        check_cluster,
        meta::{RaftReply, RaftRequest, raft_server::Raft as RaftRpc},
    },
};
use openraft::Snapshot;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::AsyncWriteExt,
    sync::{Mutex, watch},
};
use tonic::{Request, Response, Status, Streaming};

use super::{
    group::Group,
    network::SnapshotHead,
    snapshot::{SnapshotFile, Snapshots},
    types::{TypeConfig, decode, encode},
};

/// The service of one node. It refuses everything until the node belongs to a group.
#[derive(Debug)]
pub(crate) struct RaftService {
    own: AccessId,
    dir: PathBuf,
    group: watch::Receiver<Option<Arc<Group>>>,
    /// Held while a snapshot comes in: one at a time.
    receiving: Mutex<()>,
}

impl RaftService {
    pub(crate) fn new(
        own: AccessId,
        dir: PathBuf,
        group: watch::Receiver<Option<Arc<Group>>>,
    ) -> Self {
        Self { own, dir, group, receiving: Mutex::new(()) }
    }

    /// The group, when `message` is meant for this node of it.
    fn accept(&self, message: &RaftRequest) -> Result<Arc<Group>, RpcError> {
        let group = self.group.borrow().clone();
        let Some(group) = group else {
            let message = format_args!("access node {} belongs to no cluster yet", self.own);
            return Err(RpcError::new(Code::Unavailable, message));
        };
        check_addressee(message, group.cluster(), self.own)?;
        Ok(group)
    }

    /// Receives the rest of a snapshot into a file.
    async fn receive(
        &self,
        head: &SnapshotHead,
        stream: &mut Streaming<RaftRequest>,
    ) -> Result<SnapshotFile, RpcError> {
        let disk = |error: io::Error| RpcError::new(Code::Internal, error);
        let path = Snapshots::incoming(&self.dir);
        let mut file = tokio::fs::File::create_new(&path).await.map_err(disk)?;
        let mut left = head.bytes;
        while let Some(piece) = stream.message().await? {
            self.accept(&piece)?;
            left = left.checked_sub(piece.body.len() as u64).ok_or_else(|| {
                RpcError::new(Code::Invalid, "the raft snapshot is longer than announced")
            })?;
            file.write_all(&piece.body).await.map_err(disk)?;
        }
        file.flush().await.map_err(disk)?;
        if left > 0 {
            return Err(RpcError::new(Code::Invalid, "the raft snapshot broke off"));
        }
        let opened = SnapshotFile::open(path).map_err(disk)?;
        // Verified before openraft hears of it, since a failed installation ends the node.
        let verified = opened.clone();
        let verified = tokio::task::spawn_blocking(move || verified.load()).await;
        verified.map_err(io::Error::other).flatten().map_err(disk)?;
        Ok(opened)
    }
}

fn check_addressee(
    message: &RaftRequest,
    cluster: ClusterId,
    own: AccessId,
) -> Result<(), RpcError> {
    check_cluster(&message.cluster, cluster)?;
    if message.to == own.0 && message.from != own.0 {
        return Ok(());
    }
    let (from, to) = (AccessId(message.from), AccessId(message.to));
    let message = format_args!("a raft message from {from} to {to} reached access node {own}");
    Err(RpcError::new(Code::WrongNode, message))
}

fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T, RpcError> {
    decode(body).map_err(|error| RpcError::new(Code::Version, error))
}

fn reply<T: Serialize>(result: &T) -> Result<Response<RaftReply>, Status> {
    let body = encode(result).map_err(|error| RpcError::new(Code::Internal, error))?;
    Ok(Response::new(RaftReply { body: body.into() }))
}

#[tonic::async_trait]
impl RaftRpc for RaftService {
    async fn append(&self, request: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        let message = request.into_inner();
        let group = self.accept(&message)?;
        reply(&group.raft().append_entries(read(&message.body)?).await)
    }

    async fn vote(&self, request: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        let message = request.into_inner();
        let group = self.accept(&message)?;
        reply(&group.raft().vote(read(&message.body)?).await)
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<RaftRequest>>,
    ) -> Result<Response<RaftReply>, Status> {
        let Ok(_one) = self.receiving.try_lock() else {
            let message = format_args!("access node {} receives a raft snapshot already", self.own);
            return Err(RpcError::new(Code::Unavailable, message).into());
        };
        let mut stream = request.into_inner();
        let Some(first) = stream.message().await? else {
            return Err(RpcError::new(Code::Invalid, "the raft snapshot has no head").into());
        };
        let group = self.accept(&first)?;
        let head: SnapshotHead = read(&first.body)?;
        let file = self.receive(&head, &mut stream).await?;
        let snapshot = Snapshot::<TypeConfig> { meta: head.meta, snapshot: Box::new(file) };
        reply(&group.raft().install_full_snapshot(head.vote, snapshot).await)
    }
}
