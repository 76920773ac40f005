//! Puts what zone maps tell beside what a partial aggregate without groups finds in the rest of the rows.
//!
//! The scan below takes the blocks out of which zone maps tell all that the aggregate asks, and leaves the answers here.
//! They come out as further partial states, one a chunk, after those of the aggregate.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use datafusion::{
    arrow::{
        array::{ArrayRef, RecordBatch},
        datatypes::{DataType, SchemaRef},
    },
    common::{ScalarValue, internal_err, tree_node::TreeNodeRecursion},
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::PhysicalExpr,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions,
        metrics::{ExecutionPlanMetricsSet, MetricBuilder, MetricsSet},
        stream::RecordBatchStreamAdapter,
    },
};
use futures::{StreamExt, TryStreamExt, stream};
use hypertide_proto::predicate::Value;
use hypertide_storage::{Answer, ColumnAnswer};
use serde::{Deserialize, Serialize};

use crate::scalar::scalar_of;

/// How a column of a partial state comes from an answer; columns by their position among those asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum State {
    /// Rows.
    Rows,
    /// Rows in which a column is not null.
    Present(usize),
    /// Least value.
    Min(usize),
    /// Greatest value.
    Max(usize),
    /// Sum.
    Sum(usize),
}

/// What zone maps told, by the partition that asked.
#[derive(Debug, Default)]
pub(super) struct Answers(Mutex<Vec<(usize, Answer)>>);

impl Answers {
    /// Keeps what was told to a partition.
    pub(super) fn add(&self, partition: usize, answer: Answer) {
        if answer.rows > 0 {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push((partition, answer));
        }
    }

    fn take(&self, partition: usize) -> Vec<Answer> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (own, others) = kept.drain(..).partition(|(of, _)| *of == partition);
        *kept = others;
        let own: Vec<(usize, Answer)> = own;
        own.into_iter().map(|(_, answer)| answer).collect()
    }
}

/// The operator.
#[derive(Clone, Debug)]
pub(crate) struct AnswerExec {
    input: Arc<dyn ExecutionPlan>,
    states: Vec<State>,
    answers: Arc<Answers>,
    metrics: ExecutionPlanMetricsSet,
}

impl AnswerExec {
    /// Over a partial aggregate whose state has these columns.
    pub(crate) fn new(input: Arc<dyn ExecutionPlan>, states: Vec<State>) -> Self {
        let metrics = ExecutionPlanMetricsSet::new();
        Self { input, states, answers: Arc::default(), metrics }
    }

    /// The partial aggregate.
    pub(crate) fn input(&self) -> &Arc<dyn ExecutionPlan> {
        &self.input
    }

    /// How the state comes from an answer.
    pub(crate) fn states(&self) -> &[State] {
        &self.states
    }

    /// Where the scan below is to leave answers.
    pub(super) fn answers(&self) -> &Arc<Answers> {
        &self.answers
    }

    /// The same over another input.
    fn above(&self, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match <[_; 1]>::try_from(children) {
            Ok([input]) => Ok(Arc::new(Self { input, ..self.clone() })),
            Err(_) => internal_err!("answers stand over one aggregate"),
        }
    }
}

/// Partial states of a schema.
fn states_of(schema: &SchemaRef, states: &[State], answers: &[Answer]) -> Result<RecordBatch> {
    if answers.is_empty() {
        return Ok(RecordBatch::new_empty(Arc::clone(schema)));
    }
    let columns = schema.fields().iter().zip(states).map(|(field, state)| -> Result<ArrayRef> {
        let values = answers.iter().map(|answer| state_of(*state, answer, field.data_type()));
        ScalarValue::iter_to_array(values.collect::<Result<Vec<_>>>()?)
    });
    Ok(RecordBatch::try_new(Arc::clone(schema), columns.collect::<Result<_>>()?)?)
}

fn state_of(state: State, answer: &Answer, data_type: &DataType) -> Result<ScalarValue> {
    let nothing = ColumnAnswer::default();
    let column = |at: usize| answer.columns.get(at).unwrap_or(&nothing);
    let present = |at: usize| answer.rows - column(at).nulls;
    let value = match state {
        State::Rows => Some(Value::Int(answer.rows.into())),
        State::Present(at) => Some(Value::Int(present(at).into())),
        State::Min(at) => column(at).min.clone(),
        State::Max(at) => column(at).max.clone(),
        State::Sum(at) => (present(at) > 0).then(|| Value::Int(column(at).sum)),
    };
    let Some(value) = value else { return ScalarValue::try_from(data_type) };
    let value = match (value, data_type) {
        // Sums of integers wrap around, as they do when they are added up row by row.
        (Value::Int(sum), DataType::Int64) => Value::Int((sum as i64).into()),
        (value, _) => value,
    };
    match scalar_of(&value, data_type) {
        Some(scalar) => Ok(scalar),
        None => internal_err!("a zone map holds {value}, and a state of {data_type} is wanted"),
    }
}

impl DisplayAs for AnswerExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AnswerExec: from zone maps where they tell all")
    }
}

impl ExecutionPlan for AnswerExec {
    fn name(&self) -> &'static str {
        "AnswerExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.above(children)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.above(children)
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let schema = self.schema();
        let found = self.input.execute(partition, context)?;
        let (answers, states) = (Arc::clone(&self.answers), self.states.clone());
        let of = Arc::clone(&schema);
        let output = MetricBuilder::new(&self.metrics).output_rows(partition);
        // The scan is done only when the aggregate is.
        let told = stream::once(async move {
            let answers = answers.take(partition);
            output.add(answers.len());
            states_of(&of, &states, &answers)
        });
        let told = told.try_filter(|states| futures::future::ready(states.num_rows() > 0));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, found.chain(told))))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}
