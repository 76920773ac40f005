//! Groups by texts are found by ids of the texts, and get their texts back when they come out.
//!
//! The store gives texts as dictionaries, one a block. The scan numbers what is in them, with the same numbers in all
//! blocks, chunks and partitions of a fragment; an aggregate above hashes and compares these numbers instead of texts;
//! [`TextsExec`], above the aggregate, turns them back.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use datafusion::{
    arrow::{
        array::{Array, ArrayRef, AsArray, RecordBatch, StringBuilder, UInt32Array},
        datatypes::{Int32Type, SchemaRef, UInt32Type},
    },
    common::{internal_datafusion_err, internal_err, tree_node::TreeNodeRecursion},
    error::{DataFusionError, Result},
    execution::{
        SendableRecordBatchStream, TaskContext,
        memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation},
    },
    physical_expr::{EquivalenceProperties, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning,
        PlanProperties, ReplaceChildrenOptions, stream::RecordBatchStreamAdapter,
    },
};
use futures::StreamExt;

use crate::distinct_texts::DistinctTexts;

/// The ids of the texts of some columns of a scan.
#[derive(Debug)]
pub(super) struct TextIds(BTreeMap<usize, Mutex<Column>>);

/// The different texts of a column, and the memory that is set aside for them.
#[derive(Debug, Default)]
struct Column {
    texts: DistinctTexts,
    memory: Option<MemoryReservation>,
}

/// What the entries of the dictionary that came last are numbered.
#[derive(Debug, Default)]
pub(super) struct Numbered(BTreeMap<usize, (ArrayRef, Vec<u32>)>);

impl TextIds {
    fn column(&self, at: usize) -> Result<MutexGuard<'_, Column>> {
        let column =
            self.0.get(&at).ok_or_else(|| internal_datafusion_err!("column {at} has no ids"))?;
        Ok(column.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The ids of the texts of a column. `last` is what this gave to the same reader before.
    pub(super) fn of(
        &self,
        at: usize,
        texts: &dyn Array,
        last: &mut Numbered,
        pool: &Arc<dyn MemoryPool>,
    ) -> Result<ArrayRef> {
        let texts = texts
            .as_dictionary_opt::<Int32Type>()
            .ok_or_else(|| internal_datafusion_err!("column {at} is no dictionary"))?;
        let values = texts.values();
        let known = last.0.remove(&at).filter(|(known, _)| Arc::ptr_eq(known, values));
        let numbers = match known {
            Some((_, numbers)) => numbers,
            None => self.column(at)?.number(values, pool)?,
        };
        let number = |key: i32| numbers.get(key as usize).copied().unwrap_or_default();
        let keys = texts.keys();
        let ids = keys.values().iter().map(|key| number(*key)).collect::<Vec<u32>>();
        let ids = UInt32Array::try_new(ids.into(), texts.logical_nulls())?;
        last.0.insert(at, (Arc::clone(values), numbers));
        Ok(Arc::new(ids))
    }

    /// The texts that ids of a column stand for.
    fn texts(&self, at: usize, ids: &dyn Array) -> Result<ArrayRef> {
        let ids = ids
            .as_primitive_opt::<UInt32Type>()
            .ok_or_else(|| internal_datafusion_err!("ids of column {at} are no integers"))?;
        let column = self.column(at)?;
        let mut texts = StringBuilder::with_capacity(ids.len(), 0);
        for id in ids {
            match id {
                Some(id) => texts.append_value(column.text(id)?),
                None => texts.append_null(),
            }
        }
        Ok(Arc::new(texts.finish()))
    }
}

impl Column {
    /// The numbers of all entries of a dictionary.
    fn number(&mut self, values: &ArrayRef, pool: &Arc<dyn MemoryPool>) -> Result<Vec<u32>> {
        let values = values
            .as_string_opt::<i32>()
            .ok_or_else(|| internal_datafusion_err!("a dictionary is not of texts"))?;
        if self.texts.bytes().saturating_add(values.value_data().len()) > DistinctTexts::BYTES_MAX {
            let what = "more than 2 GiB of different texts to group by".to_owned();
            return Err(DataFusionError::ResourcesExhausted(what));
        }
        let numbers = values.iter().map(|text| self.texts.number_of(text.unwrap_or(""))).collect();
        let memory = self
            .memory
            .get_or_insert_with(|| MemoryConsumer::new("texts of groups").register(pool));
        memory.try_resize(self.texts.memory())?;
        Ok(numbers)
    }

    fn text(&self, id: u32) -> Result<&str> {
        let text = self.texts.text(id).and_then(|bytes| std::str::from_utf8(bytes).ok());
        text.ok_or_else(|| internal_datafusion_err!("no text has the id {id}"))
    }
}

/// Turns ids back into texts.
#[derive(Clone, Debug)]
pub(crate) struct TextsExec {
    input: Arc<dyn ExecutionPlan>,
    /// Positions of ids, with the column of the scan whose they are.
    columns: BTreeMap<usize, usize>,
    ids: Arc<TextIds>,
    properties: Arc<PlanProperties>,
}

impl TextsExec {
    /// Over an input in which `columns` are ids of the texts of these columns of the scan below; `schema` comes out.
    pub(crate) fn new(
        input: Arc<dyn ExecutionPlan>,
        columns: BTreeMap<usize, usize>,
        schema: SchemaRef,
    ) -> Self {
        let ids = columns.values().map(|column| (*column, Mutex::default())).collect();
        let properties = properties_of(&input, schema);
        Self { input, columns, ids: Arc::new(TextIds(ids)), properties }
    }

    /// What the scan below is to number texts with.
    pub(super) fn ids(&self) -> &Arc<TextIds> {
        &self.ids
    }

    /// The same over another input.
    fn above(&self, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let Ok([input]) = <[_; 1]>::try_from(children) else {
            return internal_err!("texts come from the ids of one input");
        };
        let properties = properties_of(&input, self.schema());
        Ok(Arc::new(Self { input, properties, ..self.clone() }))
    }
}

fn properties_of(input: &Arc<dyn ExecutionPlan>, schema: SchemaRef) -> Arc<PlanProperties> {
    let below = input.properties();
    Arc::new(PlanProperties::new(
        EquivalenceProperties::new(schema),
        Partitioning::UnknownPartitioning(input.output_partitioning().partition_count()),
        below.emission_type,
        below.boundedness,
    ))
}

/// A batch with texts in the place of ids.
fn with_texts(
    batch: &RecordBatch,
    schema: &SchemaRef,
    (columns, ids): (&BTreeMap<usize, usize>, &TextIds),
) -> Result<RecordBatch> {
    let arrays = batch.columns().iter().enumerate().map(|(at, array)| match columns.get(&at) {
        Some(column) => ids.texts(*column, array),
        None => Ok(Arc::clone(array)),
    });
    Ok(RecordBatch::try_new(Arc::clone(schema), arrays.collect::<Result<_>>()?)?)
}

impl DisplayAs for TextsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let schema = self.schema();
        let names = self.columns.keys().filter_map(|at| schema.fields().get(*at));
        let names: Vec<&str> = names.map(|field| field.name().as_str()).collect();
        write!(f, "TextsExec: of ids=[{}]", names.join(", "))
    }
}

impl ExecutionPlan for TextsExec {
    fn name(&self) -> &'static str {
        "TextsExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
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
        let input = self.input.execute(partition, context)?;
        let (schema, columns) = (self.schema(), self.columns.clone());
        let (of, ids) = (Arc::clone(&schema), Arc::clone(&self.ids));
        let batches = input.map(move |batch| with_texts(&batch?, &of, (&columns, &ids)));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }
}
