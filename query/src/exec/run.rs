//! How a fragment runs on one data node, and on others when that fails.
//!
//! A node that fails is replaced: its chunks are routed to other replicas at the same snapshot, and the reader sees
//! nothing. One that is slow or silent before rows of its were passed on gets a rival there (`hedge.rs`). What was passed
//! on is not passed on again: an answer is kept back until it is whole (`keep.rs`), or, where it is rows of a scan, each
//! that was passed on is remembered (`passed.rs`). So that this takes little memory, many rows are asked for in pieces.

use std::{
    collections::BTreeMap,
    fmt,
    future::pending,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use datafusion::{
    common::{
        internal_datafusion_err,
        tree_node::{Transformed, TreeNode},
    },
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_plan::{
        ExecutionPlan,
        coalesce_partitions::CoalescePartitionsExec,
        filter::FilterExec,
        metrics::{Count, MetricBuilder},
        projection::ProjectionExec,
        sorts::{sort::SortExec, sort_preserving_merge::SortPreservingMergeExec},
        stream::RecordBatchStreamAdapter,
    },
};
use datafusion_proto::bytes::physical_plan_to_bytes_with_extension_codec;
use futures::{StreamExt, TryStreamExt, stream};
use hypertide_proto::{
    error::{Code, RpcError},
    ids::NodeId,
};

use super::{
    ChunkScanExec, FragmentCodec, RemoteFragmentExec,
    hedge::{Slow, silent, slow},
    keep::{Keep, Keeper, Kept, Rows},
    passed::{Known, PassedOn},
    retry::{other_node_may_do, sql_error},
    send::{NodeReport, send},
};
use crate::{
    context::Statement,
    route::{Fragment, ScanChunk},
};

/// Rows of a scan that are asked for at a time, as far as chunks can be told apart.
const PIECE_ROWS: u64 = 4 << 20;

/// What a fragment gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gives {
    /// Rows of the scan, each by itself, in no order.
    Rows,
    /// Rows of the scan in an order.
    Sorted,
    /// What was made of many rows, or only some of them.
    Made,
}

/// What a plan gives. Of all replicas of the same chunks it is the same rows, unless it is made of many.
fn given_by(plan: &Arc<dyn ExecutionPlan>) -> Gives {
    if let Some(scan) = plan.downcast_ref::<ChunkScanExec>() {
        return if scan.leaf().gives_all() { Gives::Rows } else { Gives::Made };
    }
    if plan.fetch().is_some() {
        return Gives::Made;
    }
    let children = plan.children();
    let [input] = children.as_slice() else { return Gives::Made };
    let sorts = plan.is::<SortExec>() || plan.is::<SortPreservingMergeExec>();
    let passes = plan.is::<FilterExec>()
        || plan.is::<ProjectionExec>()
        || plan.is::<CoalescePartitionsExec>();
    match given_by(input) {
        Gives::Rows | Gives::Sorted if sorts => Gives::Sorted,
        given if passes => given,
        _ => Gives::Made,
    }
}

/// A part of a fragment that is asked for by itself, with its place among the fragments and pieces.
#[derive(Clone, Debug)]
struct Piece {
    fragment: Fragment,
    gives: Gives,
    partition: usize,
    number: usize,
}

impl Piece {
    /// Whether each of its chunks may be read elsewhere.
    fn replicated(&self) -> bool {
        self.fragment.chunks.iter().all(|chunk| chunk.replicas.len() > 1)
    }
}

/// Groups of chunks that hold about so many rows each; at least one chunk a group.
fn groups(chunks: &[ScanChunk], rows: u64) -> Vec<Vec<ScanChunk>> {
    let mut groups: Vec<Vec<ScanChunk>> = Vec::new();
    let mut held = u64::MAX;
    for chunk in chunks {
        held = held.saturating_add(chunk.rows);
        if held > rows {
            groups.push(Vec::new());
            held = chunk.rows;
        }
        if let Some(group) = groups.last_mut() {
            group.push(chunk.clone());
        }
    }
    groups
}

impl RemoteFragmentExec {
    /// Runs a node's part, piece after piece.
    pub(super) fn run(
        self: Arc<Self>,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let schema = self.schema();
        let pieces = self.pieces(partition)?;
        let rows = stream::iter(pieces).then(move |piece| {
            let (fragment, context) = (Arc::clone(&self), Arc::clone(&context));
            fragment.run_piece(piece, context)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows.try_flatten())))
    }

    fn pieces(&self, partition: usize) -> Result<Vec<Piece>> {
        let whole = self
            .fragments()
            .get(partition)
            .ok_or_else(|| internal_datafusion_err!("there is no fragment {partition}"))?;
        let gives = given_by(self.inner());
        let groups = match gives {
            Gives::Rows => groups(&whole.chunks, PIECE_ROWS),
            Gives::Sorted | Gives::Made => vec![whole.chunks.clone()],
        };
        let piece = |(number, chunks)| {
            let fragment = Fragment { node: whole.node, chunks };
            Piece { fragment, gives, partition, number }
        };
        Ok(groups.into_iter().enumerate().map(piece).collect())
    }

    /// Sends a piece, and elsewhere, too, when its node fails or is slow before rows of its were passed on.
    async fn run_piece(
        self: Arc<Self>,
        piece: Piece,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let statement = Statement::of(context.session_config())?;
        let node = piece.fragment.node;
        let plan = self.encode(&piece.fragment)?;
        let began = Instant::now();
        let mut opening = pin!(self.ask(&statement, &piece, plan, &context));
        let may_race = statement.hedged && piece.replicated();
        let slow = async {
            match (may_race, self.rival()) {
                (false, _) => pending().await,
                (true, false) => slow(&statement, node).await,
                (true, true) => silent(&statement, node).await,
            }
        };
        let slow = tokio::select! {
            biased;
            kept = &mut opening => {
                statement.pace.answered(began.elapsed());
                return self.pass_on(&piece, kept, &context);
            }
            slow = slow => slow,
        };
        if slow == Slow::Silent {
            self.avoid(&statement, node, &"it does not answer");
        }
        let Some(other) = self.elsewhere(&piece.fragment, slow) else {
            return self.pass_on(&piece, opening.await, &context);
        };
        tracing::debug!(node = self.node_name(node), ?slow, "fragment is sent twice");
        let mut rival = pin!(first_of(other, Arc::clone(&context)));
        tokio::select! {
            biased;
            kept = &mut opening => match kept {
                Err(error) if other_node_may_do(&error) => {
                    self.note_failure(&statement, node, &error);
                    rival.await
                }
                kept => self.pass_on(&piece, kept, &context),
            },
            rows = &mut rival => match rows {
                Ok(rows) => Ok(rows),
                // It fared no better there: what the node itself says stands.
                Err(_) => self.pass_on(&piece, opening.await, &context),
            },
        }
    }

    /// The plan for one node, as it travels.
    fn encode(&self, fragment: &Fragment) -> Result<bytes::Bytes> {
        let plan = Arc::clone(self.inner()).transform_up(|node| {
            Ok(match node.downcast_ref::<ChunkScanExec>() {
                Some(scan) => Transformed::yes(Arc::new(scan.of_chunks(&fragment.chunks)) as _),
                None => Transformed::no(node),
            })
        })?;
        physical_plan_to_bytes_with_extension_codec(plan.data, &FragmentCodec)
    }

    /// Asks the node, and keeps back as much of its answer as must be.
    async fn ask(
        &self,
        statement: &Statement,
        piece: &Piece,
        plan: bytes::Bytes,
        context: &TaskContext,
    ) -> Result<Kept, RpcError> {
        let place = Place { reports: self.reports().clone(), at: (piece.partition, piece.number) };
        let rows = send(statement, &piece.fragment, plan, place).await?;
        let keep = match piece.gives {
            Gives::Made if piece.replicated() => Keep::Whole,
            Gives::Made | Gives::Rows | Gives::Sorted => Keep::Beginning,
        };
        let metrics = (self.metric_set(), piece.partition);
        Keeper::new(keep, &self.schema(), context, metrics).gather(rows).await
    }

    /// The rows of a node, or those of other replicas when it failed and they may do better.
    fn pass_on(
        self: &Arc<Self>,
        piece: &Piece,
        kept: Result<Kept, RpcError>,
        context: &Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let (schema, statement) = (self.schema(), Statement::of(context.session_config())?);
        let Kept { rows, rest } = match kept {
            Ok(kept) => kept,
            Err(error) => return self.replace(piece, error, &statement, context),
        };
        let output = MetricBuilder::new(self.metric_set()).output_rows(piece.partition);
        let resumes = rest.is_some() && piece.gives != Gives::Made && piece.replicated();
        let passed = resumes.then(|| PassedOn::new(context.memory_pool()));
        let rows = rows.chain(stream::iter(rest).flatten()).boxed();
        let from = Source::Node { rows, passed };
        let passing = Passing {
            fragment: Arc::clone(self),
            piece: piece.clone(),
            statement,
            context: Arc::clone(context),
            output,
            from,
        };
        let rows = stream::try_unfold(passing, |mut passing| async move {
            Ok(passing.next().await?.map(|batch| (batch, passing)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }

    /// The rows of other replicas in place of those of a node that failed; its error when that is of no use.
    fn replace(
        &self,
        piece: &Piece,
        error: RpcError,
        statement: &Statement,
        context: &Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let node = piece.fragment.node;
        if other_node_may_do(&error) {
            self.note_failure(statement, node, &error);
            if let Some(plan) = self.elsewhere(&piece.fragment, Slow::Silent) {
                return plan.execute(0, Arc::clone(context));
            }
        }
        Err(sql_error(self.node_name(node), error))
    }

    /// What the failure of a node says about it to other statements.
    fn note_failure(&self, statement: &Statement, node: NodeId, error: &RpcError) {
        // Others read at other snapshots.
        if !matches!(error.code, Code::SnapshotTooOld | Code::Stale) {
            self.avoid(statement, node, error);
        }
    }

    /// Lets statements avoid a node for a while, and says so when that is new.
    fn avoid(&self, statement: &Statement, node: NodeId, why: &dyn fmt::Display) {
        if statement.suspects.add(node) {
            tracing::info!("reads avoid data node {}: {why}", self.node_name(node));
        }
    }
}

/// An answer on its way to the operator above.
struct Passing {
    fragment: Arc<RemoteFragmentExec>,
    piece: Piece,
    statement: Arc<Statement>,
    context: Arc<TaskContext>,
    output: Count,
    from: Source,
}

/// Where rows come from.
enum Source {
    /// The node that was asked.
    Node {
        rows: Rows,
        /// What came of it so far, if another replica may give the rest.
        passed: Option<PassedOn>,
    },
    /// Other replicas, after it failed.
    Elsewhere { rows: SendableRecordBatchStream, known: Known },
}

impl Passing {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        let batch = match &mut self.from {
            Source::Elsewhere { rows, known } => {
                next_unknown(rows, known, self.fragment.node_name(self.piece.fragment.node)).await
            }
            Source::Node { .. } => match self.next_of_node().await {
                Some(Ok(batch)) => Ok(Some(self.remember(batch)?)),
                None => Ok(None),
                Some(Err(error)) => self.resume(error).await,
            },
        };
        if let Ok(Some(batch)) = &batch {
            self.output.add(batch.num_rows());
        }
        batch
    }

    /// The next rows of the node; an error, too, when it falls silent and others can be asked.
    async fn next_of_node(&mut self) -> Option<Result<RecordBatch, RpcError>> {
        let Source::Node { rows, passed } = &mut self.from else { return None };
        if passed.is_none() {
            return rows.next().await;
        }
        tokio::select! {
            biased;
            next = rows.next() => next,
            _ = silent(&self.statement, self.piece.fragment.node) => {
                Some(Err(RpcError::new(Code::Unavailable, "it does not answer any more")))
            }
        }
    }

    /// Remembers rows that are passed on, as long as there is memory for it.
    fn remember(&mut self, batch: RecordBatch) -> Result<RecordBatch> {
        if let Source::Node { passed, .. } = &mut self.from
            && let Some(rows) = passed
            && let Err(error) = rows.add(&batch)
        {
            tracing::info!("rows passed on are not remembered any more: {error}");
            *passed = None;
        }
        Ok(batch)
    }

    /// Goes on elsewhere after the node failed.
    async fn resume(&mut self, error: RpcError) -> Result<Option<RecordBatch>> {
        let Source::Node { passed, .. } = &mut self.from else { return Ok(None) };
        let Some(passed) = passed.take() else {
            let name = self.fragment.node_name(self.piece.fragment.node);
            return Err(sql_error(name, error));
        };
        let (piece, statement) = (&self.piece, &self.statement);
        let mut rows = self.fragment.replace(piece, error, statement, &self.context)?;
        let mut known = passed.into_known();
        let name = self.fragment.node_name(piece.fragment.node);
        let next = next_unknown(&mut rows, &mut known, name).await;
        self.from = Source::Elsewhere { rows, known };
        next
    }
}

/// The next rows that were not passed on yet. In the end all that `node` gave must have been met again.
async fn next_unknown(
    rows: &mut SendableRecordBatchStream,
    known: &mut Known,
    node: &str,
) -> Result<Option<RecordBatch>> {
    while let Some(batch) = rows.next().await.transpose()? {
        let batch = known.without(&batch)?;
        if batch.num_rows() > 0 {
            return Ok(Some(batch));
        }
    }
    match known.left() {
        0 => Ok(None),
        left => {
            let message = format_args!("other replicas lack {left} of the rows that it gave");
            Err(sql_error(node, RpcError::new(Code::Damaged, message)))
        }
    }
}

/// The rows of a plan of one partition, once the first have come.
async fn first_of(
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
) -> Result<SendableRecordBatchStream> {
    let mut rows = plan.execute(0, context)?;
    let first = rows.next().await.transpose()?;
    let schema: SchemaRef = rows.schema();
    let rest = first.is_some().then_some(rows);
    let rows = stream::iter(first.map(Ok)).chain(stream::iter(rest).flatten());
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
}

/// What became of the pieces of a plan, by fragment and piece; for EXPLAIN ANALYZE.
#[derive(Clone, Debug, Default)]
pub(super) struct Reports(Arc<Mutex<BTreeMap<(usize, usize), NodeReport>>>);

impl Reports {
    /// What is known of a fragment now.
    pub(super) fn of(&self, partition: usize) -> Option<NodeReport> {
        let reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pieces = reports.range((partition, 0)..=(partition, usize::MAX));
        pieces.map(|(_, report)| report.clone()).reduce(NodeReport::and)
    }
}

/// Where the report of a piece goes.
#[derive(Clone, Debug)]
pub(super) struct Place {
    reports: Reports,
    at: (usize, usize),
}

impl Place {
    /// Keeps what is known of the piece now.
    pub(super) fn put(&self, report: NodeReport) {
        let mut reports = self.reports.0.lock().unwrap_or_else(PoisonError::into_inner);
        reports.insert(self.at, report);
    }
}

#[cfg(test)]
mod tests {
    use hypertide_proto::ids::ChunkId;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_are_all_chunks_in_their_order(
            rows in prop::collection::vec(0..100_u64, 0..30),
            most in 1..200_u64,
        ) {
            let chunk = |(id, rows): (usize, &u64)| ScanChunk {
                id: ChunkId(id as u64),
                time: None,
                bucket: None,
                replicas: vec![NodeId(1)],
                rows: *rows,
            };
            let chunks: Vec<ScanChunk> = rows.iter().enumerate().map(chunk).collect();
            let groups = groups(&chunks, most);
            prop_assert_eq!(groups.concat(), chunks);
            let held = |group: &[ScanChunk]| group.iter().map(|chunk| chunk.rows).sum::<u64>();
            for (at, group) in groups.iter().enumerate() {
                prop_assert!(!group.is_empty());
                prop_assert!(held(group) <= most || group.len() == 1);
                if let Some(next) = groups.get(at + 1).and_then(|next| next.first()) {
                    prop_assert!(held(group) + next.rows > most, "it would have had room");
                }
            }
        }
    }
}
