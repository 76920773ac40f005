//! Scans that know their blocks before they read the first: in an order, or without those that zone maps answer.

use std::{cmp::Ordering, sync::Arc};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use hypertide_proto::predicate::{Term, Value};
use serde::{Deserialize, Serialize};

use super::{
    BLOCKS_A_CALL, Candidate, Progress, Scan,
    latest::{Finder, Use},
    top,
};
use crate::{Error, exact, segment::Segment};

/// What zone maps are to tell of a column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The column.
    pub column: String,
    /// Its least and greatest value.
    pub extremes: bool,
    /// Its sum.
    pub sum: bool,
}

/// What zone maps told of some rows of a scan.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The rows.
    pub rows: u64,
    /// Of the columns asked about, in that order.
    pub columns: Vec<ColumnAnswer>,
}

/// What zone maps told of a column.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ColumnAnswer {
    /// Rows that are null.
    pub nulls: u64,
    /// Least value; none when all rows are null, or when it was not asked for.
    pub min: Option<Value>,
    /// Greatest value, likewise.
    pub max: Option<Value>,
    /// Sum; zero when it was not asked for.
    pub sum: i128,
}

impl Scan {
    /// The same scan, block after block from the one that may hold the first row in the order of a column. Recent rows
    /// come before all. Rows are in no order: the reader sorts them, and tells by [`Scan::narrow`] which are of no use
    /// any more. To be called before the first batch is taken.
    #[must_use]
    pub fn ordered(mut self, column: &str, descending: bool) -> Self {
        let blocks = self.blocks_of_interest();
        self.progress = Progress::Listed(top::ranked(blocks, column, descending));
        self
    }

    /// From now on leaves out rows that fail one of these terms, and does not read blocks that hold no other. What was
    /// said before is forgotten.
    pub fn narrow(&mut self, terms: Vec<Term>) {
        self.narrowed = terms;
    }

    /// What the scan knows of columns that the predicate is about and older segments lack, so that the predicate is
    /// exact there, too: their type, and what older rows have in them.
    #[must_use]
    pub fn knowing(mut self, columns: SchemaRef) -> Self {
        self.blocks.know(columns);
        self
    }

    /// Takes the blocks out of the scan of which zone maps tell all that is asked, and gives what they tell. A block
    /// is among them when all its rows are visible and pass the predicate, none is deleted, and all that is asked of its
    /// columns is known exactly. To be called before the first batch is taken.
    pub fn answer(&mut self, asked: &[Asked]) -> Answer {
        let columns = vec![ColumnAnswer::default(); asked.len()];
        let mut answer = Answer { rows: 0, columns };
        let mut left = Vec::new();
        for (candidate, block) in self.blocks_of_interest() {
            let segment = &candidate.segment;
            let told = if self.passes_whole(segment, block) {
                asked.iter().map(|asked| told(segment, block, asked)).collect::<Option<Vec<_>>>()
            } else {
                None
            };
            match told.and_then(|told| answer.with(told)) {
                Some(wider) => {
                    let rows = segment.block_rows(block);
                    answer = Answer { rows: answer.rows + rows.end - rows.start, ..wider };
                    self.pass_over(segment, block);
                }
                None => left.push((None, candidate, block)),
            }
        }
        // The next is the last.
        left.reverse();
        self.progress = Progress::Listed(left);
        answer
    }

    /// Whether all rows of a block are visible, there and passing.
    fn passes_whole(&self, segment: &Segment, block: usize) -> bool {
        let snapshot = self.request.snapshot;
        let visible = segment.block_csn_range(block).is_some_and(|(_, max)| max <= snapshot);
        let passes = |term: &Term| {
            let zone = segment.block_zone(block, &term.column);
            zone.is_some_and(|zone| exact::all_pass(&term.test, zone))
        };
        visible
            && !self.blocks.may_delete(segment, block)
            && self.request.predicate.terms.iter().all(passes)
    }

    /// All blocks that may hold a row of interest.
    pub(super) fn blocks_of_interest(&mut self) -> Vec<(Candidate, usize)> {
        let segments: Vec<Arc<Segment>> = self.segments.iter().map(Arc::clone).collect();
        let mut found = Vec::new();
        for segment in segments {
            let Some(candidate) = self.candidate(segment) else { continue };
            for block in 0..candidate.segment.block_count() {
                if self.may_hold(&candidate, block) {
                    found.push((candidate.clone(), block));
                }
            }
        }
        found
    }

    /// The same scan, which knows its blocks and reads them in their order.
    pub(super) fn listed(mut self) -> Self {
        let blocks = self.blocks_of_interest().into_iter().rev();
        self.progress =
            Progress::Listed(blocks.map(|(candidate, block)| (None, candidate, block)).collect());
        self
    }

    /// The next rows of a scan that knows its blocks.
    pub(super) fn advance_listed(&mut self) -> Result<Option<RecordBatch>, Error> {
        for _ in 0..BLOCKS_A_CALL {
            let read = match self.next_recent_slice() {
                Some(slice) => {
                    let rows = self.blocks.select(&slice, &self.narrowed, &mut self.stats)?;
                    self.of_use(rows)?
                }
                None => {
                    let Progress::Listed(blocks) = &mut self.progress else { return Ok(None) };
                    let Some((_, candidate, block)) = blocks.pop() else { return Ok(None) };
                    self.read_listed(&candidate, block)?
                }
            };
            if read.is_some() {
                return Ok(read);
            }
        }
        Ok(Some(RecordBatch::new_empty(Arc::clone(&self.request.columns))))
    }

    fn read_listed(
        &mut self,
        candidate: &Candidate,
        block: usize,
    ) -> Result<Option<RecordBatch>, Error> {
        if !self.may_hold_narrowed(candidate, block) {
            return Ok(None);
        }
        let place = candidate.at(block);
        let use_of = match &mut self.finder {
            Some(finder) => finder.use_of(candidate, block)?,
            None => return self.blocks.read(&place, &self.narrowed, &mut self.stats),
        };
        match use_of {
            Use::None => {
                self.pass_over(&candidate.segment, block);
                Ok(None)
            }
            Use::Runs(runs) => {
                self.blocks.read_runs(&place, &self.narrowed, Some(&runs), &mut self.stats)
            }
            Use::Unknown => {
                let rows = self.blocks.read(&place, &self.narrowed, &mut self.stats)?;
                self.of_use(rows)
            }
        }
    }

    /// Of rows of any keys those that are of use.
    fn of_use(&self, rows: Option<RecordBatch>) -> Result<Option<RecordBatch>, Error> {
        match (rows, &self.finder) {
            (Some(rows), Some(finder)) => Finder::select(finder, rows),
            (rows, _) => Ok(rows),
        }
    }

    /// Counts a block that is not read.
    fn pass_over(&mut self, segment: &Segment, block: usize) {
        self.stats.blocks_skipped += 1;
        self.stats.bytes_skipped += self.blocks.bytes_of(segment, block);
    }

    /// Whether a block may hold a row that is still of use. Counts it when not.
    pub(super) fn may_hold_narrowed(&mut self, candidate: &Candidate, block: usize) -> bool {
        let segment = &candidate.segment;
        let passes = |term: &Term| {
            let zone = segment.block_zone(block, &term.column);
            zone.is_none_or(|zone| term.test.may_pass(zone))
        };
        let may = self.narrowed.iter().all(passes);
        if !may {
            self.pass_over(segment, block);
        }
        may
    }
}

/// What the zone map of a block tells; `None` when it does not tell all.
fn told(segment: &Segment, block: usize, asked: &Asked) -> Option<ColumnAnswer> {
    let zone = segment.block_zone(block, &asked.column)?;
    let mut told = ColumnAnswer { nulls: zone.nulls, ..ColumnAnswer::default() };
    if asked.extremes && zone.nulls < zone.rows {
        let (min, max) = segment.block_extremes(block, &asked.column)?;
        if [min, max].into_iter().any(is_ambiguous) {
            return None;
        }
        told.min = Some(min.clone());
        told.max = Some(max.clone());
    }
    if asked.sum {
        told.sum = segment.block_sum(block, &asked.column)?;
    }
    Some(told)
}

/// Whether a value stands for others that are equal to it and look different.
fn is_ambiguous(value: &Value) -> bool {
    matches!(value, Value::Float(float) if float.is_nan() || *float == 0.0)
}

impl Answer {
    /// With what is told of more rows; `None` when both do not go together.
    fn with(&self, told: Vec<ColumnAnswer>) -> Option<Self> {
        let columns = self.columns.iter().zip(told).map(|(all, more)| all.with(more));
        Some(Self { rows: self.rows, columns: columns.collect::<Option<_>>()? })
    }

    /// With what is told of another part of the rows; `None` when a sum passes 128 bits.
    #[must_use]
    pub fn and(self, other: Self) -> Option<Self> {
        if self.columns.is_empty() {
            return Some(Self { rows: self.rows + other.rows, ..other });
        }
        if other.columns.is_empty() {
            return Some(Self { rows: self.rows + other.rows, ..self });
        }
        let rows = self.rows + other.rows;
        Some(Self { rows, ..self.with(other.columns)? })
    }
}

impl ColumnAnswer {
    fn with(&self, more: Self) -> Option<Self> {
        Some(Self {
            nulls: self.nulls + more.nulls,
            min: edge(self.min.as_ref(), more.min, Ordering::is_lt)?,
            max: edge(self.max.as_ref(), more.max, Ordering::is_gt)?,
            sum: self.sum.checked_add(more.sum)?,
        })
    }
}

/// The one of two values that wins; `None` when they do not compare.
fn edge(
    one: Option<&Value>,
    other: Option<Value>,
    wins: fn(Ordering) -> bool,
) -> Option<Option<Value>> {
    let (Some(one), Some(candidate)) = (one, &other) else {
        return Some(one.cloned().or(other));
    };
    let other_wins = wins(candidate.compare(one)?);
    Some(if other_wins { other } else { Some(one.clone()) })
}
