//! Counts the rows of one replica of a chunk, for checks that compare replicas.

use std::collections::BTreeMap;

use datafusion::{error::Result, physical_plan::ExecutionPlan, prelude::SessionContext};
use futures::TryStreamExt;
use hypertide_meta::{Image, catalog::Chunk};
use hypertide_proto::ids::NodeId;

use super::{ChunkScanExec, RemoteFragmentExec, ScanLeaf, ScanPlan};
use crate::route::{Fragment, ScanChunk};

/// Reads a chunk on this node and no other, and gives the number of rows that the statement's snapshot sees.
pub(crate) async fn count_rows(
    ctx: &SessionContext,
    image: &Image,
    chunk: &Chunk,
    node: NodeId,
) -> Result<u64> {
    let Some(table) = image.catalog.table(chunk.table) else { return Ok(0) };
    let chunks = vec![ScanChunk { replicas: vec![node], ..ScanChunk::new(table, chunk) }];
    let name = image.catalog.data_node(node).map(|known| (node, known.name.clone()));
    let plan = ScanPlan {
        fragments: vec![Fragment { node, chunks }],
        names: name.into_iter().collect::<BTreeMap<_, _>>(),
        ..ScanPlan::default()
    };
    let scan = ChunkScanExec::planned(ScanLeaf::of(table, Some(&[])), plan);
    let mut rows = RemoteFragmentExec::scan(&scan).execute(0, ctx.task_ctx())?;
    let mut sum = 0;
    while let Some(batch) = rows.try_next().await? {
        sum += batch.num_rows() as u64;
    }
    Ok(sum)
}
