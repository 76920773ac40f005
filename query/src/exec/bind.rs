//! Makes a plan that came over the wire ready to run: its scans get the store, and what operators above tell them.

use std::{collections::BTreeSet, sync::Arc};

use datafusion::{
    error::Result,
    physical_plan::{
        ExecutionPlan, ReplaceChildrenOptions, execution_plan::ChildrenPropertiesMode,
        sorts::sort::SortExec,
    },
};
use hypertide_proto::ids::ChunkId;

use super::{
    AnswerExec, Binding, ChunkScanExec, TextsExec, answer::Answers, bar::Bar, read::Bound,
    texts::TextIds,
};

/// Binds the scans of a plan to the store, with at most `cores` partitions each, and gives the chunks they read.
pub(crate) fn bind(
    plan: &Arc<dyn ExecutionPlan>,
    binding: &Binding,
    cores: usize,
) -> Result<(Arc<dyn ExecutionPlan>, Vec<ChunkId>)> {
    let mut binder = Binder { binding, cores, chunks: BTreeSet::new() };
    let bound = binder.bind(plan, Above::default())?;
    Ok((bound, binder.chunks.into_iter().collect()))
}

/// What operators above a scan share with it. Whether the scan makes use of it, the access node decided.
#[derive(Clone, Debug, Default)]
pub(super) struct Above {
    /// Rows of use to a sort.
    pub(super) bar: Option<Bar>,
    /// Where answers from zone maps go.
    pub(super) answers: Option<Arc<Answers>>,
    /// What texts are numbered with.
    pub(super) ids: Option<Arc<TextIds>>,
}

struct Binder<'a> {
    binding: &'a Binding,
    cores: usize,
    chunks: BTreeSet<ChunkId>,
}

impl Binder<'_> {
    fn bind(
        &mut self,
        node: &Arc<dyn ExecutionPlan>,
        mut above: Above,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if let Some(scan) = node.downcast_ref::<ChunkScanExec>() {
            self.chunks.extend(scan.leaf().chunks.iter().map(|chunk| chunk.id));
            let bound = Bound::new(self.binding.clone(), above);
            return Ok(Arc::new(scan.bind(bound, self.cores)));
        }
        if let Some(sort) = node.downcast_ref::<SortExec>() {
            // A sort without a limit has a use for every row.
            above.bar = Bar::of(sort);
        }
        if let Some(answer) = node.downcast_ref::<AnswerExec>() {
            above.answers = Some(Arc::clone(answer.answers()));
        }
        if let Some(texts) = node.downcast_ref::<TextsExec>() {
            above.ids = Some(Arc::clone(texts.ids()));
        }
        let children = node.children();
        let above = if children.len() == 1 { above } else { Above::default() };
        let children = children.into_iter().map(|child| self.bind(child, above.clone()));
        let children = children.collect::<Result<Vec<_>>>()?;
        if children.is_empty() {
            return Ok(Arc::clone(node));
        }
        let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
        Arc::clone(node).replace_children(children, options)
    }
}
