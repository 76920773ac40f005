//! Has a data node rewrite its replica of a chunk as the catalog asks for.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hypertide_proto::{
    error::{Code, RpcError},
    ids::{ChunkId, ClusterId, Rid},
    wire::storage::{CompressRequest, DecompressRequest, OrderBy},
};

use crate::{
    catalog::{Catalog, Chunk, Compression},
    node::{CatalogWriter, MetaNode},
};

/// Longest that the rewriting of one replica is waited for.
const REWRITE_TIMEOUT: Duration = Duration::from_secs(3600);

/// Rewrites, and notes how that ended.
pub(super) async fn run(node: Arc<MetaNode>, chunk: ChunkId, rid: Rid) {
    let done = tokio::time::timeout(REWRITE_TIMEOUT, ask(&node, chunk, rid)).await;
    let late = |_| RpcError::new(Code::DeadlineExceeded, "it took too long");
    let done = done.map_err(late).and_then(|done| done);
    node.jobs().end_rewrite((chunk, rid.node), done.is_ok());
    match done {
        Ok(what) => tracing::info!("chunk {chunk} is {what} on {rid}"),
        Err(error) => tracing::info!("rewrite chunk {chunk} on {rid}: {error}"),
    }
}

/// Asks for what the catalog wants by now; gives what the replica is then.
async fn ask(node: &MetaNode, id: ChunkId, rid: Rid) -> Result<&'static str, RpcError> {
    let image = node.image();
    let gone = |what: String| RpcError::new(Code::Stale, what);
    let data = image.catalog.data_node(rid.node).filter(|data| data.rid == rid);
    let data = data.ok_or_else(|| gone(format!("{rid} is not registered any more")))?;
    let chunk = image.catalog.chunk(id).ok_or_else(|| gone(format!("chunk {id} is gone")))?;
    let cluster = node.cluster().unwrap_or(ClusterId([0; 16]));
    let cluster = Bytes::copy_from_slice(&cluster.0);
    let mut client = node.config().channels.storage(&data.rpc)?;
    match compress_request(&image.catalog, chunk, cluster.clone()) {
        Some(request) => {
            client.compress(request).await?;
            Ok("compressed")
        }
        None => {
            client.decompress(DecompressRequest { cluster, chunk: id.0 }).await?;
            Ok("decompressed")
        }
    }
}

/// What a data node must be asked so that its replica is compressed as is wanted; `None` when it is to be plain.
#[must_use]
pub fn compress_request(
    catalog: &Catalog,
    chunk: &Chunk,
    cluster: Bytes,
) -> Option<CompressRequest> {
    let to_csn = chunk.asked?.up_to?;
    let table = catalog.table(chunk.table)?;
    let Compression { segment_by, order_by, .. } = table.hypertable()?.compression.as_ref()?;
    let stored = |name: &str| table.columns.stored_name(name).to_owned();
    let order_by = order_by.iter().map(|by| OrderBy {
        column: stored(&by.column),
        descending: by.descending,
        nulls_first: by.nulls_first,
    });
    Some(CompressRequest {
        cluster,
        chunk: chunk.id.0,
        segment_by: segment_by.iter().map(|name| stored(name)).collect(),
        order_by: order_by.collect(),
        to_csn: to_csn.0,
    })
}
