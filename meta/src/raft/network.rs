//! The way to the other access nodes: gRPC messages that hold openraft's own.

use std::{future::Future, io, sync::Arc, time::Duration};

use bytes::Bytes;
use hypertide_proto::{
    client::Channels,
    error::{Code, RpcError},
    ids::{AccessId, ClusterId},
    wire::meta::{RaftReply, RaftRequest},
};
use openraft::{
    BasicNode, ErrorSubject, ErrorVerb, RaftNetwork, RaftNetworkFactory, Snapshot,
    error::{
        Fatal, NetworkError, RPCError, RaftError, RemoteError, ReplicationClosed, StreamingError,
        Unreachable,
    },
    network::{Backoff, RPCOption},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::{mpsc, watch};
use tonic::{Request, Response, Status};

use super::{
    snapshot::SnapshotFile,
    types::{SnapshotMeta, StorageError, TypeConfig, Vote, decode, encode},
};
use crate::node::Image;

/// Bytes of a snapshot that one message carries.
const PIECE_BYTES: usize = 512 << 10;
/// Messages of a snapshot that wait for the network.
const PIECES_MAX: usize = 4;
/// Pause before an unreachable node is tried again.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(200);

type RpcFailure<E = RaftError<u64>> = RPCError<u64, BasicNode, E>;

/// The first message of a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SnapshotHead {
    pub(super) vote: Vote,
    pub(super) meta: SnapshotMeta,
    pub(super) bytes: u64,
}

/// Makes the clients of the other nodes.
#[derive(Clone, Debug)]
pub(super) struct Peers {
    pub(super) cluster: ClusterId,
    pub(super) own: AccessId,
    pub(super) channels: Channels,
    pub(super) images: watch::Receiver<Arc<Image>>,
}

/// The client of one node. Making it does not connect.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    peers: Peers,
    target: AccessId,
    /// Where the node was when the group was formed.
    formed_at: String,
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        Peer { peers: self.clone(), target: AccessId(target), formed_at: node.addr.clone() }
    }
}

impl Peer {
    /// Where the node is now: as it registered last, or as the group was formed.
    fn address(&self) -> String {
        let image = Arc::clone(&self.peers.images.borrow());
        let registered = image.catalog.access_node(self.target);
        registered.map_or_else(|| self.formed_at.clone(), |node| node.rpc.clone())
    }

    fn message(&self, body: impl Into<Bytes>) -> RaftRequest {
        RaftRequest {
            cluster: Bytes::copy_from_slice(&self.peers.cluster.0),
            from: self.peers.own.0,
            to: self.target.0,
            body: body.into(),
        }
    }

    fn request<T: Serialize>(
        &self,
        value: &T,
        within: Duration,
    ) -> io::Result<Request<RaftRequest>> {
        let mut request = Request::new(self.message(encode(value)?));
        request.set_timeout(within);
        Ok(request)
    }

    #[expect(clippy::result_large_err, reason = "the error is openraft's own")]
    fn reply<T: DeserializeOwned>(
        &self,
        answer: Result<Response<RaftReply>, Status>,
    ) -> Result<T, RpcFailure> {
        let body = answer.map_err(|status| unreached(status.into()))?.into_inner().body;
        let result: Result<T, RaftError<u64>> =
            decode(&body).map_err(|error| RPCError::Network(NetworkError::new(&error)))?;
        result.map_err(|error| RPCError::RemoteError(RemoteError::new(self.target.0, error)))
    }
}

/// Nothing came back: a node that is away gets a pause, any other failure is tried again at once.
fn unreached<E: std::error::Error>(error: RpcError) -> RPCError<u64, BasicNode, E> {
    match error.code {
        Code::Unavailable | Code::WrongNode => RPCError::Unreachable(Unreachable::new(&error)),
        _ => RPCError::Network(NetworkError::new(&error)),
    }
}

fn broken(error: &io::Error) -> RpcFailure {
    RPCError::Network(NetworkError::new(error))
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RpcFailure> {
        let request = self.request(&rpc, option.hard_ttl()).map_err(|error| broken(&error))?;
        let mut client = self.peers.channels.raft(&self.address()).map_err(unreached)?;
        self.reply(client.append(request).await)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, RpcFailure> {
        let request = self.request(&rpc, option.hard_ttl()).map_err(|error| broken(&error))?;
        let mut client = self.peers.channels.raft(&self.address()).map_err(unreached)?;
        self.reply(client.vote(request).await)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, Fatal<u64>>> {
        let sending = self.send_snapshot(vote, snapshot, option.hard_ttl());
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = sending => sent,
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(UNREACHABLE_PAUSE))
    }
}

impl Peer {
    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot<TypeConfig>,
        within: Duration,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, Fatal<u64>>> {
        let unread = |error| {
            let subject = ErrorSubject::Snapshot(None);
            StreamingError::from(StorageError::from_io_error(subject, ErrorVerb::Read, error))
        };
        let refused = |error: RpcError| match error.code {
            Code::Unavailable | Code::WrongNode => Unreachable::new(&error).into(),
            _ => StreamingError::Network(NetworkError::new(&error)),
        };
        let bytes = snapshot.snapshot.bytes().map_err(unread)?;
        let head = encode(&SnapshotHead { vote, meta: snapshot.meta, bytes }).map_err(unread)?;
        let (messages, stream) = mpsc::channel(PIECES_MAX);
        let reading = tokio::spawn(self.clone().read_pieces(head, *snapshot.snapshot, messages));
        let mut client = self.peers.channels.raft(&self.address()).map_err(refused)?;
        let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(stream));
        request.set_timeout(within);
        let answer = client.snapshot(request).await;
        // The reader ends with the stream; its failure explains a stream that broke off.
        if let Ok(Err(error)) = reading.await {
            return Err(unread(error));
        }
        let body = answer.map_err(|status| refused(status.into()))?.into_inner().body;
        let result: Result<SnapshotResponse<u64>, Fatal<u64>> =
            decode(&body).map_err(|error| StreamingError::Network(NetworkError::new(&error)))?;
        result.map_err(|error| StreamingError::RemoteError(RemoteError::new(self.target.0, error)))
    }

    async fn read_pieces(
        self,
        head: Vec<u8>,
        file: SnapshotFile,
        messages: mpsc::Sender<RaftRequest>,
    ) -> io::Result<()> {
        if messages.send(self.message(head)).await.is_err() {
            return Ok(());
        }
        let mut offset = 0;
        loop {
            let reading = file.clone();
            let piece = tokio::task::spawn_blocking(move || reading.read_at(offset, PIECE_BYTES));
            let piece = piece.await.map_err(io::Error::other)??;
            offset += piece.len() as u64;
            // The other side hangs up when it wants no more.
            if piece.is_empty() || messages.send(self.message(piece)).await.is_err() {
                return Ok(());
            }
        }
    }
}
