//! Conditions that a chunk store can test by itself, for deletes of more rows than can be named one by one.

use std::{collections::BTreeMap, sync::Arc};

use datafusion::{common::ScalarValue, physical_plan::ExecutionPlan};
use hypertide_meta::catalog::Chunk;
use hypertide_proto::{ids::ChunkId, predicate::Predicate};
use hypertide_storage::Tombstone;

use super::{matched::Reading, quoted};
use crate::{
    Error,
    exec::{ChunkScanExec, RemoteFragmentExec},
    session::Frame,
    sql::query,
};

/// A condition in the names of the store, and the chunks that may hold rows which meet it.
#[derive(Debug)]
pub(super) struct Exact {
    predicate: Predicate,
    chunks: Vec<ChunkId>,
}

impl Exact {
    /// One tombstone for each chunk.
    pub(super) fn tombstones(self, frame: &Frame) -> Vec<(Chunk, Tombstone)> {
        let image = &frame.snapshot.image;
        let chunks = self.chunks.iter().filter_map(|id| image.catalog.chunk(*id));
        let tombstone = |_: &Chunk| Tombstone::passing(frame.snapshot.csn, self.predicate.clone());
        chunks.map(|chunk| (chunk.clone(), tombstone(chunk))).collect()
    }
}

/// The condition, if every part of it is one of a store; rows are then taken without being read.
///
/// It is what the plan of a query of the same rows leaves to its scan: nothing but the scan may test anything.
pub(super) async fn find(
    frame: &Frame,
    reading: &Reading<'_>,
    values: &[ScalarValue],
) -> Result<Option<Exact>, Error> {
    let image = &frame.snapshot.image;
    if reading.everything() {
        let chunks = image.catalog.chunks_of(reading.table.id).map(|chunk| chunk.id).collect();
        return Ok(Some(Exact { predicate: Predicate::default(), chunks }));
    }
    let all = &reading.table.columns.columns;
    let first = reading.columns().first().and_then(|at| all.get(*at));
    let Some(first) = first else { return Ok(None) };
    let ast = reading.select(&[quoted(&first.name)])?;
    let plan = query::bind(query::plan(&frame.ctx, ast).await?, values.to_vec())?;
    let plan = frame.ctx.state().create_physical_plan(&plan).await?;
    let mut found = Found { scans: Vec::new(), chunks: BTreeMap::new(), other: false };
    found.look(&plan);
    let [leaf] = found.scans.as_slice() else { return Ok(None) };
    let tested = |column: &str| leaf.tested.iter().any(|tested| tested.name == column);
    let older = |column: &str| {
        let column = all.iter().find(|known| known.name == column);
        column.is_none_or(|column| column.older.is_some())
    };
    let exact = leaf.predicate.terms.iter().all(|term| !older(&term.column))
        && leaf.predicate.terms.iter().any(|term| tested(&term.column));
    if found.other || !exact {
        return Ok(None);
    }
    let predicate = leaf.in_store().predicate;
    Ok(Some(Exact { predicate, chunks: found.chunks.into_keys().collect() }))
}

/// What a plan consists of.
struct Found {
    scans: Vec<crate::exec::ScanLeaf>,
    chunks: BTreeMap<ChunkId, ()>,
    /// Whether anything in it may leave out rows beside the scan.
    other: bool,
}

impl Found {
    fn look(&mut self, plan: &Arc<dyn ExecutionPlan>) {
        if let Some(fragment) = plan.downcast_ref::<RemoteFragmentExec>() {
            let chunks = fragment.fragments().iter().flat_map(|fragment| &fragment.chunks);
            self.chunks.extend(chunks.map(|chunk| (chunk.id, ())));
            self.look(fragment.inner());
        } else if let Some(scan) = plan.downcast_ref::<ChunkScanExec>() {
            self.scans.push(scan.leaf().clone());
        } else {
            let harmless =
                ["ProjectionExec", "CoalescePartitionsExec", "RepartitionExec", "CooperativeExec"];
            self.other |= !harmless.contains(&plan.name());
        }
        for child in plan.children() {
            self.look(child);
        }
    }
}
