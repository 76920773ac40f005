//! What a scan reads: the part of it that travels to data nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use arrow::datatypes::{DataType, Schema, SchemaRef};
use hypertide_meta::catalog::{Rule, Table, TableKind};
use hypertide_proto::{
    ids::{ChunkId, TableId},
    predicate::{Predicate, Term, Test, Value, Zone},
    schema::{Column, ColumnType},
    time::TimeRange,
};
use hypertide_storage::{Asked, Latest, LatestBy};
use serde::{Deserialize, Serialize};

use crate::route::ScanChunk;

/// So many rows are read by one partition.
const FEW_ROWS: u64 = 8192;

/// A chunk to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeafChunk {
    /// The chunk.
    pub(crate) id: ChunkId,
    /// Its slice of time; `None` for a reference table.
    pub(crate) time: Option<TimeRange>,
}

/// The column whose first rows in an order are wanted first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ScanOrder {
    /// Integers, decimals, timestamps or dates.
    pub(crate) column: String,
    /// Whether the greatest come first.
    pub(crate) descending: bool,
}

/// What a scan reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ScanLeaf {
    /// The table.
    pub(crate) table: TableId,
    /// Its name, for people.
    pub(crate) name: String,
    /// Its time column, in which no row is null.
    pub(crate) time: Option<String>,
    /// Its space column, on which groups may be complete on one node.
    pub(crate) space: Option<String>,
    /// Columns to read, in order.
    pub(crate) columns: Vec<Column>,
    /// Columns of the table that chunk stores have under another name, with that.
    pub(crate) stored: BTreeMap<String, String>,
    /// Positions of texts that come out as ids, for a [`super::TextsExec`] above to turn back. A data node sets it.
    #[serde(skip)]
    pub(crate) ids: BTreeSet<usize>,
    /// Whether only the number of rows is wanted: the columns are read and then dropped.
    pub(crate) rows_only: bool,
    /// Rows that fail it may be left out.
    pub(crate) predicate: Predicate,
    /// Columns of terms that no filter above the scan tests again: of these terms every row is tested.
    pub(crate) tested: Vec<Column>,
    /// The rows that are wanted first, to be read so that the others need not be.
    pub(crate) order: Option<ScanOrder>,
    /// How many rows are of use, whichever they are.
    pub(crate) limit: Option<u64>,
    /// What zone maps are to tell of rows, which then do not come out.
    pub(crate) answer: Option<Vec<Asked>>,
    /// Of which rows only the last of each key are of use.
    pub(crate) latest: Option<Latest>,
    /// The chunks.
    pub(crate) chunks: Vec<LeafChunk>,
}

impl ScanLeaf {
    /// A scan of these columns (all without a projection) and, as yet, of no chunk.
    pub(crate) fn of(table: &Table, projection: Option<&[usize]>) -> Self {
        let all = &table.columns.columns;
        let mut columns: Vec<Column> = match projection {
            Some(wanted) => wanted.iter().filter_map(|at| all.get(*at)).cloned().collect(),
            None => all.clone(),
        };
        let rows_only = columns.is_empty();
        let (mut time, mut space) = (None, None);
        if let TableKind::Hypertable(hypertable) = &table.kind {
            for dimension in hypertable.dimensions.iter().rev() {
                let of_rule = match dimension.rule {
                    Rule::Time { .. } => &mut time,
                    Rule::Hash { .. } => &mut space,
                };
                *of_rule = Some(dimension.column.clone());
            }
        }
        if rows_only {
            let counted = time.as_deref().and_then(|time| table.columns.column(time));
            columns.extend(counted.or(all.first()).cloned());
        }
        let renamed = all.iter().filter(|column| column.stored.is_some());
        let stored = renamed.map(|column| (column.name.clone(), column.stored_name().to_owned()));
        Self {
            table: table.id,
            name: table.name.clone(),
            time,
            space,
            columns,
            stored: stored.collect(),
            ids: BTreeSet::new(),
            rows_only,
            predicate: Predicate::default(),
            tested: Vec::new(),
            order: None,
            limit: None,
            answer: None,
            latest: None,
            chunks: Vec::new(),
        }
    }

    /// The same scan, of these chunks only, those first that hold what is wanted first.
    pub(crate) fn of_chunks(&self, chunks: &[ScanChunk]) -> Self {
        let mut chunks: Vec<LeafChunk> =
            chunks.iter().map(|chunk| LeafChunk { id: chunk.id, time: chunk.time }).collect();
        let descending = match (&self.order, &self.latest) {
            (Some(order), _) => Some(order.descending),
            (None, Some(latest)) => latest.by.as_ref().map(|by| by.descending),
            (None, None) => None,
        };
        if let Some(descending) = descending {
            chunks.sort_by_key(|chunk| chunk.time.map_or(i64::MIN, |time| time.start()));
            if descending {
                chunks.reverse();
            }
        }
        Self { chunks, ..self.clone() }
    }

    /// Whether it gives all rows that pass, whatever operators above have a use for.
    pub(super) fn gives_all(&self) -> bool {
        self.limit.is_none()
            && self.order.is_none()
            && self.answer.is_none()
            && self.latest.is_none()
    }

    /// How many chunks it is of use to read at a time: with an order only those that may hold the first rows, and one
    /// for a few rows.
    pub(super) fn useful_partitions(&self) -> usize {
        if self.limit.is_some_and(|rows| rows <= FEW_ROWS) {
            return 1;
        }
        let ordered = self.order.is_some() || self.latest.as_ref().is_some_and(|l| l.by.is_some());
        let first = self.chunks.first().map(|chunk| chunk.time);
        let alike = |chunk: &&LeafChunk| !ordered || Some(chunk.time) == first;
        self.chunks.iter().take_while(alike).count()
    }

    /// Whether no row is null in a column.
    pub(crate) fn never_null(&self, column: &Column) -> bool {
        !column.nullable || self.time.as_ref() == Some(&column.name)
    }

    /// Whether a chunk may hold a row that passes these terms, by its slice of time alone.
    pub(crate) fn may_hold(&self, chunk: LeafChunk, terms: &[Term]) -> bool {
        let (Some(time), Some(slice)) = (&self.time, chunk.time) else { return true };
        let column = self.columns.iter().find(|column| column.name == *time);
        // Slices of dates are in microseconds, their values in days.
        if column.is_none_or(|column| column.column_type == ColumnType::Date) {
            return true;
        }
        let last = if slice.end() == i64::MAX { i64::MAX } else { slice.end() - 1 };
        let (min, max) = (Value::Int(slice.start().into()), Value::Int(last.into()));
        let zone = Zone { min: Some(&min), max: Some(&max), nulls: 0, rows: 1 };
        terms.iter().all(|term| term.column != *time || term.test.may_pass(zone))
    }

    /// The same scan in the names that chunk stores have columns under.
    pub(crate) fn in_store(&self) -> Self {
        if self.stored.is_empty() {
            return self.clone();
        }
        let name = |name: &String| self.stored.get(name).unwrap_or(name).clone();
        let column = |column: &Column| Column { name: name(&column.name), ..column.clone() };
        let term = |term: &Term| Term { column: name(&term.column), ..term.clone() };
        let asked = |asked: &Asked| Asked { column: name(&asked.column), ..asked.clone() };
        let by = |by: &LatestBy| LatestBy { column: name(&by.column), ..by.clone() };
        let latest = |latest: &Latest| Latest {
            keys: latest.keys.iter().map(name).collect(),
            by: latest.by.as_ref().map(by),
        };
        let order = |order: &ScanOrder| ScanOrder { column: name(&order.column), ..order.clone() };
        Self {
            time: self.time.as_ref().map(name),
            columns: self.columns.iter().map(column).collect(),
            predicate: Predicate { terms: self.predicate.terms.iter().map(term).collect() },
            tested: self.tested.iter().map(column).collect(),
            order: self.order.as_ref().map(order),
            answer: self.answer.as_ref().map(|all| all.iter().map(asked).collect()),
            latest: self.latest.as_ref().map(latest),
            ..self.clone()
        }
    }

    /// The columns that the store is asked for: those that come out as ids, as dictionaries.
    pub(super) fn read_schema(&self) -> SchemaRef {
        self.schema_with_ids_as(|texts| {
            DataType::Dictionary(Box::new(DataType::Int32), Box::new(texts.clone()))
        })
    }

    fn schema_with_ids_as(&self, id: impl Fn(&DataType) -> DataType) -> SchemaRef {
        let fields = self.columns.iter().enumerate().map(|(at, column)| {
            let field = column.to_field();
            match self.ids.contains(&at) {
                true => field.clone().with_data_type(id(field.data_type())),
                false => field,
            }
        });
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    /// The columns that every row has the same value in.
    pub(crate) fn constants(&self) -> impl Iterator<Item = &str> {
        let tested = |term: &&Term| self.tested.iter().any(|column| column.name == term.column);
        let one = |term: &&Term| matches!(&term.test, Test::In(values) if values.len() == 1);
        self.predicate.terms.iter().filter(tested).filter(one).map(|term| term.column.as_str())
    }

    /// The columns that the predicate is exact for.
    pub(super) fn tested_schema(&self) -> SchemaRef {
        Arc::new(Schema::new(self.tested.iter().map(Column::to_field).collect::<Vec<_>>()))
    }

    /// The columns that come out.
    pub(super) fn schema(&self) -> SchemaRef {
        if self.rows_only {
            return Arc::new(Schema::empty());
        }
        self.schema_with_ids_as(|_| DataType::UInt32)
    }
}

impl fmt::Display for ScanLeaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = |(at, column): (usize, &Column)| match self.ids.contains(&at) {
            true => format!("{} (id)", column.name),
            false => column.name.clone(),
        };
        let columns: Vec<String> = match self.rows_only {
            true => Vec::new(),
            false => self.columns.iter().enumerate().map(named).collect(),
        };
        write!(f, "table={}, columns=[{}]", self.name, columns.join(", "))?;
        let exact = |term: &&Term| self.tested.iter().any(|column| column.name == term.column);
        let shown = |terms: Vec<&Term>| {
            terms.into_iter().map(Term::to_string).collect::<Vec<_>>().join(" and ")
        };
        let (filter, prune): (Vec<&Term>, Vec<&Term>) =
            self.predicate.terms.iter().partition(exact);
        if !filter.is_empty() {
            write!(f, ", filter={}", shown(filter))?;
        }
        if !prune.is_empty() {
            write!(f, ", prune={}", shown(prune))?;
        }
        if let Some(ScanOrder { column, descending }) = &self.order {
            write!(f, ", order={column}{}", if *descending { " desc" } else { "" })?;
        }
        if let Some(limit) = self.limit {
            write!(f, ", limit={limit}")?;
        }
        if let Some(latest) = &self.latest {
            write!(f, ", {latest}")?;
        }
        Ok(())
    }
}
