//! The first rows in an order, from as few blocks as possible.
//!
//! Blocks are read from the one with the best bound to the one with the worst. Once as many rows are known as are
//! wanted, the last of them is the bar: rows of further blocks must be better, which is one more term for them, and
//! the first block whose bound is not better ends it all.

use std::{cmp::Ordering, collections::VecDeque, sync::Arc};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    compute::{self, SortOptions, concat_batches, take_record_batch},
    datatypes::{
        DataType, Date32Type, Decimal128Type, Int16Type, Int32Type, Int64Type, SchemaRef,
        TimestampMicrosecondType,
    },
    error::ArrowError,
};
use hypertide_proto::{
    ids::ChunkId,
    predicate::{Term, Test, Value},
};

use super::{Candidate, Top};
use crate::{Error, segment::BLOCK_ROWS};

/// A block, and the best value that it may hold; `None` for one of which nothing is known.
pub(super) type Ranked = (Option<i128>, Candidate, usize);

/// The best rows so far, and the blocks that may hold better ones.
#[derive(Debug)]
pub(super) struct Best {
    chunk: ChunkId,
    top: Top,
    columns: SchemaRef,
    /// Position of the column to order by.
    position: usize,
    /// The next block is the last.
    blocks: Vec<Ranked>,
    /// Rows found, in any order.
    found: Vec<RecordBatch>,
    found_rows: usize,
    /// The worst of as many rows as are wanted.
    bar: Option<i128>,
    /// What is to be given out, once all is known.
    sorted: Option<VecDeque<RecordBatch>>,
}

impl Best {
    /// The best rows of these blocks. The column to order by must be among the columns.
    pub(super) fn new(chunk: ChunkId, columns: &SchemaRef, top: &Top) -> Result<Self, Error> {
        let Some((position, field)) = columns.column_with_name(&top.column) else {
            let what = format!("rows ordered by column \"{}\" must be read with it", top.column);
            return Err(Error::Invalid(what));
        };
        if !orders(field.data_type()) {
            let (name, data_type) = (field.name(), field.data_type());
            let what = format!("column \"{name}\" of type {data_type} gives no order to scan in");
            return Err(Error::Invalid(what));
        }
        Ok(Self {
            chunk,
            top: top.clone(),
            columns: Arc::clone(columns),
            position,
            blocks: Vec::new(),
            found: Vec::new(),
            found_rows: 0,
            bar: None,
            sorted: None,
        })
    }

    /// Takes in the blocks that may hold a row of interest.
    pub(super) fn look_at(&mut self, blocks: Vec<(Candidate, usize)>) {
        self.blocks = ranked(blocks, &self.top.column, self.top.descending);
    }

    /// What further rows must pass to be of use; `None` as long as any are.
    pub(super) fn better(&self) -> Option<Term> {
        let bar = Value::Int(self.bar?);
        let test = if self.top.descending { Test::Gt(bar) } else { Test::Lt(bar) };
        Some(Term { column: self.top.column.clone(), test })
    }

    /// Whether all is known.
    pub(super) const fn is_done(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The block that may hold the best rows. When none may hold a better one than there are: the blocks that are of
    /// no use any more.
    pub(super) fn next_block(&mut self) -> Result<(Candidate, usize), Vec<(Candidate, usize)>> {
        let useful = |bound: &Option<i128>| match (bound, self.bar) {
            (Some(bound), Some(bar)) => order(self.top.descending, *bound, bar).is_lt(),
            _ => true,
        };
        match self.blocks.pop_if(|(bound, ..)| useful(bound)) {
            Some((_, candidate, block)) => Ok((candidate, block)),
            None => {
                let left = std::mem::take(&mut self.blocks).into_iter();
                Err(left.map(|(_, candidate, block)| (candidate, block)).collect())
            }
        }
    }

    /// Adds rows.
    pub(super) fn take(&mut self, rows: RecordBatch) -> Result<(), Error> {
        self.found_rows += rows.num_rows();
        self.found.push(rows);
        let enough = self.found_rows >= self.top.rows;
        if enough
            && (self.bar.is_none() || self.found_rows >= self.top.rows.saturating_add(BLOCK_ROWS))
        {
            self.keep_best().map_err(|error| self.failed(&error))?;
        }
        Ok(())
    }

    /// Sorts what was found and forgets all but the best.
    fn keep_best(&mut self) -> Result<(), ArrowError> {
        let all = concat_batches(&self.columns, &self.found)?;
        let options = SortOptions { descending: self.top.descending, nulls_first: false };
        let keys = Arc::clone(all.column(self.position));
        let best = compute::sort_to_indices(&keys, Some(options), Some(self.top.rows))?;
        let best = take_record_batch(&all, &best)?;
        self.found_rows = best.num_rows();
        self.bar = match self.found_rows {
            rows if rows > 0 && rows == self.top.rows => {
                number(best.column(self.position), rows - 1)
            }
            _ => None,
        };
        self.found = vec![best];
        Ok(())
    }

    /// The next of the best rows, in their order.
    pub(super) fn next_batch(&mut self) -> Result<Option<RecordBatch>, Error> {
        if self.sorted.is_none() {
            self.keep_best().map_err(|error| self.failed(&error))?;
            let slices = self.found.iter().flat_map(|rows| {
                let starts = (0..rows.num_rows()).step_by(BLOCK_ROWS);
                starts.map(|start| rows.slice(start, BLOCK_ROWS.min(rows.num_rows() - start)))
            });
            self.sorted = Some(slices.collect());
            self.found.clear();
        }
        Ok(self.sorted.as_mut().and_then(VecDeque::pop_front))
    }

    fn failed(&self, error: &ArrowError) -> Error {
        let chunk = self.chunk;
        Error::Invalid(format!("order rows of chunk {chunk}: {error}"))
    }
}

/// Blocks by the best value that they may hold of a column. The next is the last: unknown bounds, then the best.
pub(super) fn ranked(
    blocks: Vec<(Candidate, usize)>,
    column: &str,
    descending: bool,
) -> Vec<Ranked> {
    let ranked = blocks.into_iter().map(|(candidate, block)| {
        let zone = candidate.segment.block_zone(block, column);
        let edge = zone.and_then(|zone| if descending { zone.max } else { zone.min });
        let bound = match edge {
            Some(Value::Int(bound)) => Some(*bound),
            _ => None,
        };
        (bound, candidate, block)
    });
    let mut ranked: Vec<Ranked> = ranked.collect();
    ranked.sort_by(|(one, ..), (other, ..)| match (one, other) {
        (Some(one), Some(other)) => order(descending, *other, *one),
        (one, other) => one.is_none().cmp(&other.is_none()),
    });
    ranked
}

/// The better first.
fn order(descending: bool, one: i128, other: i128) -> Ordering {
    if descending { other.cmp(&one) } else { one.cmp(&other) }
}

const fn orders(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::Date32
            | DataType::Timestamp(..)
            | DataType::Decimal128(..)
    )
}

/// A value of a column that [`orders`]; `None` for null.
pub(super) fn number(array: &dyn Array, row: usize) -> Option<i128> {
    if array.is_null(row) {
        return None;
    }
    Some(match array.data_type() {
        DataType::Int16 => array.as_primitive::<Int16Type>().value(row).into(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::Date32 => array.as_primitive::<Date32Type>().value(row).into(),
        DataType::Timestamp(..) => {
            array.as_primitive::<TimestampMicrosecondType>().value(row).into()
        }
        DataType::Decimal128(..) => array.as_primitive::<Decimal128Type>().value(row),
        _ => return None,
    })
}
