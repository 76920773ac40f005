//! The gRPC service of a data node: checks what came, and passes it to the node and its store.

use std::{sync::Arc, time::Duration};

use hypertide_proto::{
    client::MESSAGE_BYTES_MAX,
    decision::Decision,
    error::{Code, RpcError},
    ids::{ChunkId, Epoch, Rid, TableId, TxnId},
    wire::{
        self, required,
        storage::{
            self as messages,
            storage_server::{Storage, StorageServer},
        },
    },
};
use tonic::{Request, Response, Status, service::Routes};

use crate::{ChunkReport, ChunkSpec, DataNode, Error, Membership, Part};

/// Longest that a prepare waits when its sender names no deadline.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(30);

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
        let rid: Rid = required(rid, "rid")?.into();
        if rid != member.rid {
            let own = member.rid;
            let message = format_args!("this data node is {own}, the request is for {rid}");
            return Err(RpcError::new(Code::WrongNode, message).into());
        }
        if !self.node.serving() {
            let message = "this data node has not resolved its pending transactions yet";
            return Err(RpcError::new(Code::Unavailable, message).into());
        }
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
        let messages::DropChunksRequest { cluster, chunks } = request.into_inner();
        self.member(&cluster)?;
        let chunks = ids(chunks);
        self.blocking(move |node| node.store().drop_chunks(&chunks)).await?;
        Ok(Response::new(messages::DropChunksReply {}))
    }

    async fn chunks(
        &self,
        request: Request<messages::ChunksRequest>,
    ) -> Result<Response<messages::ChunksReply>, Status> {
        let messages::ChunksRequest { cluster, chunks } = request.into_inner();
        self.member(&cluster)?;
        let reports = self.node.store().report(&ids(chunks));
        let chunks = reports.into_iter().map(report).collect();
        Ok(Response::new(messages::ChunksReply { chunks }))
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
}

fn ids(chunks: Vec<u64>) -> Vec<ChunkId> {
    chunks.into_iter().map(ChunkId).collect()
}

fn part(part: messages::Part) -> Result<Part, RpcError> {
    let messages::Part { spec, epoch, part, rows, hash, payload, decoded_bytes } = part;
    let spec = required(spec, "part.spec")?;
    let hash: [u8; 16] = hash
        .as_ref()
        .try_into()
        .map_err(|_| RpcError::new(Code::Invalid, "field part.hash does not have 16 bytes"))?;
    let time_column = Some(spec.time_column).filter(|name| !name.is_empty());
    Ok(Part {
        spec: ChunkSpec {
            chunk: ChunkId(spec.chunk),
            table: TableId(spec.table),
            time_column,
            order_columns: spec.order_columns,
        },
        epoch: Epoch(epoch),
        number: part,
        rows,
        hash: u128::from_be_bytes(hash),
        payload,
        decoded_bytes,
    })
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
    }
}
