//! The gRPC service of a data node: checks what came, and passes it to the node and its store.

use std::{sync::Arc, time::Duration};

use hypertide_proto::{
    client::MESSAGE_BYTES_MAX,
    decision::Decision,
    error::{Code, RpcError},
    ids::{ChunkId, Csn, Epoch, Rid, TableId, TxnId},
    wire::{
        self, required,
        storage::{
            self as messages,
            storage_server::{Storage, StorageServer},
        },
        types,
    },
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, service::Routes};

use crate::{
    ChunkReport, ChunkSpec, ChunkState, CompressionSpec, DataNode, Error, Fault, Membership,
    OrderBy, Part,
    node::transfers::{CatchUp, CaughtUp},
    store::transfer::Wanted,
    tables::Point,
};

pub(crate) mod pieces;

/// Longest that a prepare waits when its sender names no deadline.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for the decision of a commit that the log has, and the pause between two looks.
const DECISION_PATIENCE: Duration = Duration::from_secs(5);
const DECISION_PAUSE: Duration = Duration::from_millis(10);

/// The services of a node.
pub(crate) fn routes(node: Arc<DataNode>) -> Routes {
    let server = StorageServer::new(Service { node })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    Routes::new(server)
}

struct Service {
    node: Arc<DataNode>,
}

impl Service {
    /// The node's own place, if the request is for its cluster.
    fn member(&self, cluster: &[u8]) -> Result<Membership, RpcError> {
        let member = self.node.membership().ok_or_else(|| {
            RpcError::new(Code::Unavailable, "this data node belongs to no cluster yet")
        })?;
        wire::check_cluster(cluster, member.cluster)?;
        Ok(member)
    }

    /// The disk that a request names, if it is this node's and serves.
    fn addressed(&self, member: &Membership, rid: Option<types::Rid>) -> Result<Rid, RpcError> {
        let rid: Rid = required(rid, "rid")?.into();
        if rid != member.rid {
            let own = member.rid;
            let message = format_args!("this data node is {own}, the request is for {rid}");
            return Err(RpcError::new(Code::WrongNode, message));
        }
        if !self.node.serving() {
            let message = "this data node has not resolved its pending transactions yet";
            return Err(RpcError::new(Code::Unavailable, message));
        }
        Ok(rid)
    }

    /// Waits until a commit of a chunk, and all before it, are known to be decided here.
    async fn applied(&self, chunk: ChunkId, csn: Csn) -> Result<(), RpcError> {
        let deadline = tokio::time::Instant::now() + DECISION_PATIENCE;
        loop {
            let report = self.node.store().report(&[chunk]).first().copied();
            let applied = report.map_or(Csn(0), |report| report.applied_csn);
            if applied >= csn {
                return Ok(());
            }
            if tokio::time::Instant::now() + DECISION_PAUSE > deadline {
                let message =
                    format_args!("chunk {chunk} has commit {applied} here, {csn} is asked for");
                return Err(RpcError::new(Code::Unavailable, message));
            }
            tokio::time::sleep(DECISION_PAUSE).await;
        }
    }

    /// Runs work that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&DataNode) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, RpcError> {
        let node = Arc::clone(&self.node);
        match tokio::task::spawn_blocking(move || work(&node)).await {
            Ok(result) => Ok(result?),
            Err(error) => Err(RpcError::new(Code::Internal, error)),
        }
    }
}

#[tonic::async_trait]
impl Storage for Service {
    async fn prepare(
        &self,
        request: Request<messages::PrepareRequest>,
    ) -> Result<Response<messages::PrepareReply>, Status> {
        let messages::PrepareRequest { cluster, txn, rid, parts, deadline_ms } =
            request.into_inner();
        let member = self.member(&cluster)?;
        let txn: TxnId = required(txn, "txn")?.into();
        let rid = self.addressed(&member, rid)?;
        let parts: Result<Vec<Part>, RpcError> = parts.into_iter().map(part).collect();
        let limit = match deadline_ms {
            0 => PREPARE_TIMEOUT,
            limit => Duration::from_millis(limit.into()).min(PREPARE_TIMEOUT),
        };
        let prepared = tokio::time::timeout(limit, self.node.store().prepare(txn, parts?)).await;
        let prepared = prepared.map_err(|_| {
            let message = format_args!("{txn} was not journaled within {limit:?}");
            RpcError::new(Code::DeadlineExceeded, message)
        })?;
        prepared.map_err(RpcError::from)?;
        Ok(Response::new(messages::PrepareReply { rid: Some(rid.into()) }))
    }

    async fn decide(
        &self,
        request: Request<messages::DecideRequest>,
    ) -> Result<Response<messages::DecideReply>, Status> {
        let messages::DecideRequest { cluster, decisions } = request.into_inner();
        self.member(&cluster)?;
        let decisions: Result<Vec<Decision>, RpcError> =
            decisions.into_iter().map(Decision::try_from).collect();
        self.node.store().decide(&decisions?).map_err(RpcError::from)?;
        Ok(Response::new(messages::DecideReply {}))
    }

    async fn adopt(
        &self,
        request: Request<messages::AdoptRequest>,
    ) -> Result<Response<messages::AdoptReply>, Status> {
        let messages::AdoptRequest { cluster, name, access } = request.into_inner();
        let (adopted, rid) = self.node.adopt(wire::cluster(&cluster)?, name, access).await?;
        Ok(Response::new(messages::AdoptReply { adopted, rid: Some(rid.into()) }))
    }

    async fn drop_chunks(
        &self,
        request: Request<messages::DropChunksRequest>,
    ) -> Result<Response<messages::DropChunksReply>, Status> {
        let messages::DropChunksRequest { cluster, chunks, csn } = request.into_inner();
        self.member(&cluster)?;
        if csn == 0 {
            return Err(RpcError::new(Code::Invalid, "field csn is zero").into());
        }
        let chunks = ids(chunks);
        self.blocking(move |node| node.store().drop_chunks(&chunks, Csn(csn))).await?;
        Ok(Response::new(messages::DropChunksReply {}))
    }

    async fn hold_snapshot(
        &self,
        request: Request<messages::HoldSnapshotRequest>,
    ) -> Result<Response<messages::HoldSnapshotReply>, Status> {
        let messages::HoldSnapshotRequest { cluster, csn, lease_ms } = request.into_inner();
        self.member(&cluster)?;
        self.node.store().hold_snapshot(Csn(csn), Duration::from_millis(lease_ms.into()));
        Ok(Response::new(messages::HoldSnapshotReply {}))
    }

    async fn chunks(
        &self,
        request: Request<messages::ChunksRequest>,
    ) -> Result<Response<messages::ChunksReply>, Status> {
        let messages::ChunksRequest { cluster, chunks } = request.into_inner();
        self.member(&cluster)?;
        let chunks = ids(chunks);
        let chunks = self.blocking(move |node| {
            let sized = node.store().report(&chunks).into_iter().map(|of| sized(node, of));
            sized.collect::<Result<_, _>>()
        });
        Ok(Response::new(messages::ChunksReply { chunks: chunks.await? }))
    }

    async fn flush(
        &self,
        request: Request<messages::FlushRequest>,
    ) -> Result<Response<messages::FlushReply>, Status> {
        let messages::FlushRequest { cluster, chunks } = request.into_inner();
        self.member(&cluster)?;
        let chunks = ids(chunks);
        self.blocking(move |node| node.store().flush(&chunks)).await?;
        Ok(Response::new(messages::FlushReply {}))
    }

    async fn compress(
        &self,
        request: Request<messages::CompressRequest>,
    ) -> Result<Response<messages::CompressReply>, Status> {
        let messages::CompressRequest { cluster, chunk, segment_by, order_by, to_csn } =
            request.into_inner();
        self.member(&cluster)?;
        self.applied(ChunkId(chunk), Csn(to_csn)).await?;
        let order_by = order_by.into_iter().map(order).collect();
        let spec = CompressionSpec { segment_by, order_by };
        let work = self.blocking(move |node| node.store().compress(ChunkId(chunk), spec));
        let chunk = Some(report(work.await?));
        Ok(Response::new(messages::CompressReply { chunk }))
    }

    async fn decompress(
        &self,
        request: Request<messages::DecompressRequest>,
    ) -> Result<Response<messages::DecompressReply>, Status> {
        let messages::DecompressRequest { cluster, chunk } = request.into_inner();
        self.member(&cluster)?;
        let work = self.blocking(move |node| node.store().decompress(ChunkId(chunk)));
        let chunk = Some(report(work.await?));
        Ok(Response::new(messages::DecompressReply { chunk }))
    }

    async fn check_chunk(
        &self,
        request: Request<messages::CheckChunkRequest>,
    ) -> Result<Response<messages::CheckChunkReply>, Status> {
        let messages::CheckChunkRequest { cluster, chunk } = request.into_inner();
        self.member(&cluster)?;
        let found = self.blocking(move |node| node.store().check(ChunkId(chunk))).await?;
        Ok(Response::new(messages::CheckChunkReply {
            segments: found.segments,
            blocks: found.blocks,
            rows: found.rows,
            bytes: found.bytes,
            flushed_csn: found.flushed_csn.0,
            chain: found.chain.to_be_bytes().to_vec().into(),
            faults: found.faults.into_iter().map(fault).collect(),
        }))
    }

    async fn points(
        &self,
        request: Request<messages::PointsRequest>,
    ) -> Result<Response<messages::PointsReply>, Status> {
        let messages::PointsRequest { cluster, rid, wanted } = request.into_inner();
        let member = self.member(&cluster)?;
        self.addressed(&member, rid)?;
        let found = self.blocking(move |node| {
            let places = wanted.into_iter().map(|at| (ChunkId(at.chunk), Csn(at.csn)));
            places.map(|(chunk, csn)| point_found(node, chunk, csn)).collect::<Result<_, _>>()
        });
        Ok(Response::new(messages::PointsReply { found: found.await? }))
    }

    async fn settle(
        &self,
        request: Request<messages::SettleRequest>,
    ) -> Result<Response<messages::SettleReply>, Status> {
        let messages::SettleRequest { cluster, rid, chunk, epoch } = request.into_inner();
        let member = self.member(&cluster)?;
        self.addressed(&member, rid)?;
        let (chunk, epoch) = (ChunkId(chunk), Epoch(epoch));
        if self.node.copies(chunk) {
            let message = "the chunk is being copied to this node, which may change what it holds";
            return Err(RpcError::new(Code::Unavailable, message).into());
        }
        let point = self.blocking(move |node| node.store().settle(chunk, epoch)).await?;
        Ok(Response::new(messages::SettleReply { point: point.map(pieces::wire_point) }))
    }

    async fn catch_up(
        &self,
        request: Request<messages::CatchUpRequest>,
    ) -> Result<Response<messages::CatchUpReply>, Status> {
        let request = request.into_inner();
        let member = self.member(&request.cluster)?;
        let rid = self.addressed(&member, request.rid)?;
        let done = self.node.catch_up(catch_up(request)?).await?;
        let CaughtUp { point, reached, whole, bytes, commits, rows } = done;
        Ok(Response::new(messages::CatchUpReply {
            rid: Some(rid.into()),
            applied_csn: point.csn.0,
            chain: pieces::hash_bytes(point.chain),
            bytes,
            whole,
            reached_csn: reached.csn.0,
            reached_chain: pieces::hash_bytes(reached.chain),
            commits,
            rows,
        }))
    }

    type FetchStream = ReceiverStream<Result<messages::FetchPiece, Status>>;

    async fn fetch(
        &self,
        request: Request<messages::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let request = request.into_inner();
        let member = self.member(&request.cluster)?;
        self.addressed(&member, request.rid)?;
        let from = match request.from {
            Some(point) => Some((Csn(point.csn), pieces::hash(&point.chain, "from.chain")?)),
            None => None,
        };
        let wanted = Wanted {
            chunk: ChunkId(request.chunk),
            from,
            to: Csn(request.to_csn),
            chain: pieces::optional_hash(&request.chain, "chain")?,
        };
        let limit = Duration::from_millis(request.deadline_ms.into());
        let out = self.node.send_out(wanted, limit, request.bytes_per_second).await?;
        Ok(Response::new(ReceiverStream::new(out)))
    }
}

/// Where the replica of a chunk stood at a commit. One without a commit need not be there.
fn point_found(node: &DataNode, chunk: ChunkId, csn: Csn) -> Result<messages::PointFound, Error> {
    let standing = node.store().standing(chunk);
    let point = match csn {
        Csn(0) => Some(Point::default()),
        csn => node.store().point_at(chunk, csn)?,
    };
    Ok(messages::PointFound {
        chunk: chunk.0,
        held: standing.is_some(),
        applied_csn: standing.map_or(0, |standing| standing.applied.csn.0),
        point: point.map(pieces::wire_point),
    })
}

fn order(by: messages::OrderBy) -> OrderBy {
    let messages::OrderBy { column, descending, nulls_first } = by;
    OrderBy { column, descending, nulls_first }
}

fn fault(fault: Fault) -> messages::Fault {
    let Fault { segment, column, block, extent, offset, what } = fault;
    let number = |number: Option<usize>| number.map(|number| number as u64);
    messages::Fault {
        segment,
        column,
        block: number(block),
        extent: number(extent),
        offset: number(offset),
        what,
    }
}

fn catch_up(request: messages::CatchUpRequest) -> Result<CatchUp, RpcError> {
    let limit = Some(request.deadline_ms).filter(|limit| *limit > 0);
    Ok(CatchUp {
        spec: spec(required(request.spec, "spec")?),
        epoch: Epoch(request.epoch),
        source: (request.source, required(request.source_rid, "source_rid")?.into()),
        to: Csn(request.to_csn),
        chain: pieces::optional_hash(&request.chain, "chain")?,
        limit: limit.map(|limit| Duration::from_millis(limit.into())),
        bytes_per_second: request.bytes_per_second,
        lost: request.lost.iter().map(|at| (Csn(at.after_csn), Csn(at.up_to_csn))).collect(),
    })
}

fn ids(chunks: Vec<u64>) -> Vec<ChunkId> {
    chunks.into_iter().map(ChunkId).collect()
}

fn part(part: messages::Part) -> Result<Part, RpcError> {
    let messages::Part { spec, epoch, part, rows, hash, payload, decoded_bytes } = part;
    let spec = self::spec(required(spec, "part.spec")?);
    let hash = pieces::hash(&hash, "part.hash")?;
    Ok(Part { spec, epoch: Epoch(epoch), number: part, rows, hash, payload, decoded_bytes })
}

fn spec(spec: messages::ChunkSpec) -> ChunkSpec {
    ChunkSpec {
        chunk: ChunkId(spec.chunk),
        table: TableId(spec.table),
        time_column: Some(spec.time_column).filter(|name| !name.is_empty()),
        order_columns: spec.order_columns,
        origin: spec.origin.into(),
    }
}

/// A report together with what the chunk's file takes.
fn sized(node: &DataNode, of: ChunkReport) -> Result<messages::ChunkReport, Error> {
    let file_bytes = node.store().file_bytes(of.chunk)?;
    Ok(messages::ChunkReport { file_bytes, ..report(of) })
}

fn report(report: ChunkReport) -> messages::ChunkReport {
    messages::ChunkReport {
        chunk: report.chunk.0,
        rows: report.rows,
        segment_bytes: report.segment_bytes,
        segments: report.segments,
        recent_rows: report.recent_rows,
        applied_csn: report.applied_csn.0,
        chain: report.chain.to_be_bytes().to_vec().into(),
        state: match report.state {
            ChunkState::Plain => messages::ChunkState::Plain,
            ChunkState::Compressed => messages::ChunkState::Compressed,
            ChunkState::Partial => messages::ChunkState::Partial,
        }
        .into(),
        compressed_csn: report.compressed_csn.0,
        before_bytes: report.before_bytes,
        after_bytes: report.after_bytes,
        file_bytes: 0,
    }
}
