//! A table of the image as DataFusion sees it: columns, and a scan of the chunks that the filters leave.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use async_trait::async_trait;
use datafusion::{
    arrow::datatypes::SchemaRef,
    catalog::{Session, TableProvider},
    error::{DataFusionError, Result},
    logical_expr::{Expr, TableProviderFilterPushDown, TableType},
    physical_plan::ExecutionPlan,
};
use hypertide_meta::{
    Image,
    catalog::{Chunk, ChunkState, Table},
};
use hypertide_proto::{
    error::{Code, RpcError},
    ids::NodeId,
};

use crate::{
    Error, Snapshot,
    context::Statement,
    exec::{ChunkScanExec, ScanLeaf, ScanPlan},
    prune,
    route::{Fragment, ScanChunk, route},
    sql::accept_loss::advice,
};

/// A hypertable or a reference table.
#[derive(Debug)]
pub(crate) struct ImageTable {
    image: Arc<Image>,
    table: Table,
    schema: SchemaRef,
}

impl ImageTable {
    /// The table, whose rows are where the image says.
    pub(crate) fn new(image: Arc<Image>, table: Table) -> Self {
        let schema = table.columns.to_arrow();
        Self { image, table, schema }
    }

    /// Which node reads what, if possible without the nodes that failed lately, here or by what the leader thinks.
    fn route(&self, chunks: &[ScanChunk], statement: &Statement) -> Result<Vec<Fragment>> {
        let mut avoided = statement.suspects.now();
        let silent = self.image.catalog.data_nodes().filter(|node| !node.serves());
        avoided.extend(silent.map(|node| node.id()));
        route(chunks, &avoided).or_else(|_| route(chunks, &BTreeSet::new())).map_err(|error| {
            let message = format_args!("table \"{}\": {error}", self.table.name);
            let chunk = self.image.catalog.chunk(error.0);
            match chunk.filter(|chunk| chunk.state == ChunkState::Damaged) {
                // No node that comes back changes that by itself.
                Some(chunk) => Error::of("XX001", message).with_hint(advice(chunk)).into(),
                None => {
                    DataFusionError::External(Box::new(RpcError::new(Code::Unavailable, message)))
                }
            }
        })
    }

    /// Chunks that the snapshot had and that were dropped since. Without them rows would be missing: who may not read
    /// them is refused.
    fn dropped<'a>(&self, snapshot: &'a Snapshot) -> Result<Vec<&'a Chunk>> {
        let before = snapshot.view.iter().flat_map(|view| view.catalog.chunks_of(self.table.id));
        let gone = before.filter(|chunk| self.image.catalog.chunk(chunk.id).is_none());
        let gone: Vec<&Chunk> = gone.collect();
        match gone.first().filter(|_| !snapshot.dropped_too) {
            None => Ok(gone),
            Some(first) => {
                let (table, chunk) = (&self.table.name, first.id);
                let what = format_args!(
                    "snapshot too old: chunk {chunk} of table \"{table}\" was dropped meanwhile"
                );
                let error = RpcError::new(Code::SnapshotTooOld, what);
                Err(DataFusionError::External(Box::new(error)))
            }
        }
    }

    fn names(&self) -> BTreeMap<NodeId, String> {
        self.image.catalog.data_nodes().map(|node| (node.id(), node.name.clone())).collect()
    }
}

#[async_trait]
impl TableProvider for ImageTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// Every filter comes to the scan, which leaves out chunks and blocks by it, and stays above the scan, too: only
    /// there is it exact.
    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let statement = Statement::of(session.config())?;
        let dropped = self.dropped(&statement.snapshot)?;
        let all = || self.image.catalog.chunks_of(self.table.id).chain(dropped.iter().copied());
        let kept = prune::prune(&self.table, filters, all());
        let excluded = all().count() - kept.len();
        let leaf = ScanLeaf {
            predicate: prune::predicate(&self.table, filters),
            ..ScanLeaf::of(&self.table, projection.map(Vec::as_slice))
        };
        let rows = kept.iter().map(|chunk| chunk.rows).sum();
        let chunks: Vec<ScanChunk> =
            kept.into_iter().map(|chunk| ScanChunk::new(&self.table, chunk)).collect();
        let leaf = leaf.of_chunks(&chunks);
        let fragments = self.route(&chunks, &statement)?;
        let plan = ScanPlan {
            fragments,
            names: self.names(),
            excluded,
            rows,
            pushdown: statement.pushdown,
            summaries: statement.summaries,
        };
        Ok(Arc::new(ChunkScanExec::planned(leaf, plan)))
    }
}
