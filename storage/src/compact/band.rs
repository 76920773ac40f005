//! Cuts the rows of many segments into bands of their future order, each small enough to be sorted in memory.
//!
//! ```text
//! segments of one schema      a  [..........]   b  [......]   c  [...........]
//! least and greatest key of every block, and a sample of the keys between
//! splitters                        |           |            |
//! band                       0     1           2            3
//! ```
//!
//! A band holds the rows from its splitter up to the next one, so that rows of one key lie in one band. A block is
//! decoded once for each band it touches: with rows in about the same order as before, once or twice.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, RecordBatch, UInt64Array},
    compute::{filter, filter_record_batch},
    datatypes::SchemaRef,
    error::ArrowError,
    row::{OwnedRow, RowConverter, Rows},
};
use hypertide_proto::ids::ChunkId;

use super::read::Blocks;
use crate::{
    Error,
    segment::Segment,
    store::{
        file::ChunkFile,
        order::OrderBy,
        sort::{Sorted, Unsorted, keys, sort},
    },
    tombstone::Deletes,
};

/// Every so many rows, one is taken into the sample that splitters are chosen from.
const SAMPLE: usize = 64;

/// What becomes of the rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    /// The order they get.
    pub(super) order: &'a [OrderBy],
    /// Rows that these take are left out.
    pub(super) deletes: &'a Deletes,
    /// Rows of a band, about.
    pub(super) band_rows: u64,
}

/// Segments of one schema that become rows of one order.
#[derive(Debug)]
pub(super) struct Bands<'a> {
    file: &'a ChunkFile,
    chunk: ChunkId,
    target: Target<'a>,
    segments: Vec<Arc<Segment>>,
    schema: SchemaRef,
    /// First key of each band but the first.
    splitters: Vec<OwnedRow>,
    /// First and last band that each block of each segment touches.
    touched: Vec<Vec<(usize, usize)>>,
}

impl<'a> Bands<'a> {
    /// Chooses the bands of these segments, which have one schema.
    pub(super) fn plan(
        (file, chunk): (&'a ChunkFile, ChunkId),
        segments: Vec<Arc<Segment>>,
        target: Target<'a>,
    ) -> Result<Option<Self>, Error> {
        let Some(schema) = segments.first().map(|segment| Arc::clone(segment.schema())) else {
            return Ok(None);
        };
        let rows: u64 = segments.iter().map(|segment| segment.rows()).sum();
        let count = usize::try_from(rows.div_ceil(target.band_rows.max(1))).unwrap_or(usize::MAX);
        let touched = segments.iter().map(|segment| vec![(0, 0); segment.block_count()]).collect();
        let mut bands =
            Self { file, chunk, target, segments, schema, splitters: Vec::new(), touched };
        if count > 1 {
            bands.split(count)?;
        }
        Ok(Some(bands))
    }

    pub(super) fn count(&self) -> usize {
        self.splitters.len() + 1
    }

    /// Reads the keys of all rows once, chooses the splitters, and notes where each block lies among them.
    fn split(&mut self, count: usize) -> Result<(), Error> {
        let mut converter = None;
        let mut sample: Vec<OwnedRow> = Vec::new();
        let mut edges: Vec<Vec<Option<(OwnedRow, OwnedRow)>>> = Vec::new();
        let mut blocks = Blocks::of(self.file, self.chunk);
        for segment in &self.segments {
            let mut edges_here = Vec::with_capacity(segment.block_count());
            for block in 0..segment.block_count() {
                let rows = self.keys_of_block(&mut blocks, &mut converter, (segment, block))?;
                let Some(rows) = rows else { return Ok(()) };
                sample.extend(rows.iter().step_by(SAMPLE).map(|row| row.owned()));
                let edge = rows.iter().min().zip(rows.iter().max());
                edges_here.push(edge.map(|(min, max)| (min.owned(), max.owned())));
            }
            edges.push(edges_here);
        }
        sample.sort_unstable();
        let step = sample.len().div_ceil(count).max(1);
        let mut splitters: Vec<OwnedRow> = sample.into_iter().skip(step).step_by(step).collect();
        splitters.dedup();
        let band = |key: &OwnedRow| splitters.partition_point(|splitter| splitter <= key);
        let touched = |edge: &Option<(OwnedRow, OwnedRow)>| match edge {
            Some((min, max)) => (band(min), band(max)),
            None => (0, 0),
        };
        self.touched = edges.iter().map(|edges| edges.iter().map(touched).collect()).collect();
        self.splitters = splitters;
        Ok(())
    }

    /// The keys of a block; `None` when the rows have none of the columns of the order.
    fn keys_of_block(
        &self,
        blocks: &mut Blocks<'_>,
        converter: &mut Option<RowConverter>,
        (segment, block): (&Segment, usize),
    ) -> Result<Option<Rows>, Error> {
        let names: Vec<usize> = self
            .target
            .order
            .iter()
            .filter_map(|by| self.schema.column_with_name(&by.column))
            .map(|(position, _)| position)
            .collect();
        if names.is_empty() {
            return Ok(None);
        }
        let columns: Result<Vec<ArrayRef>, Error> =
            names.iter().map(|column| blocks.column(segment, block, *column)).collect();
        let projected = self.schema.project(&names).map_err(|error| self.failed(&error))?;
        let batch = RecordBatch::try_new(Arc::new(projected), columns?);
        let batch = batch.map_err(|error| self.failed(&error))?;
        self.keys_of(&batch, converter).map(Some).map_err(|error| self.failed(&error))
    }

    fn keys_of(
        &self,
        batch: &RecordBatch,
        converter: &mut Option<RowConverter>,
    ) -> Result<Rows, ArrowError> {
        let (fields, columns) = keys(self.target.order, batch);
        let converter = match converter {
            Some(converter) => converter,
            None => converter.insert(RowConverter::new(fields)?),
        };
        converter.convert_columns(&columns)
    }

    /// The rows of a band, sorted.
    pub(super) fn read(&self, band: usize) -> Result<Sorted, Error> {
        let (mut batches, mut csns) = (Vec::new(), Vec::new());
        let mut blocks = Blocks::of(self.file, self.chunk);
        let mut converter = None;
        for (segment, touched) in self.segments.iter().zip(&self.touched) {
            for (block, (first, last)) in touched.iter().enumerate() {
                if !(*first..=*last).contains(&band) {
                    continue;
                }
                let rows = blocks.rows(segment, block)?;
                let block_csns = blocks.csns(segment, block)?;
                let (rows, block_csns) = self.undeleted(segment, rows, block_csns)?;
                if first == last {
                    batches.push(rows);
                    csns.extend(block_csns);
                    continue;
                }
                let within = self.within(band, &rows, &mut converter);
                let kept = within.and_then(|within| keep(&rows, block_csns, &within));
                let (rows, kept_csns) = kept.map_err(|error| self.failed(&error))?;
                batches.push(rows);
                csns.extend(kept_csns);
            }
        }
        let run = Unsorted { schema: Arc::clone(&self.schema), batches, csns };
        sort(self.target.order, run).map_err(|error| self.failed(&error))
    }

    /// The rows that no delete takes.
    fn undeleted(
        &self,
        segment: &Segment,
        mut rows: RecordBatch,
        mut csns: Vec<u64>,
    ) -> Result<(RecordBatch, Vec<u64>), Error> {
        let deletes = self.target.deletes;
        if deletes.concern(segment) {
            let column = |name: &str| Ok(rows.column_by_name(name).map(Arc::clone));
            if let Some(kept) = deletes.kept(&csns, column)? {
                (rows, csns) = keep(&rows, csns, &kept).map_err(|error| self.failed(&error))?;
            }
        }
        Ok((rows, csns))
    }

    /// Which rows lie in the band.
    fn within(
        &self,
        band: usize,
        rows: &RecordBatch,
        converter: &mut Option<RowConverter>,
    ) -> Result<BooleanArray, ArrowError> {
        let keys = self.keys_of(rows, converter)?;
        let from = band.checked_sub(1).and_then(|before| self.splitters.get(before));
        let to = self.splitters.get(band);
        let inside =
            |key| from.is_none_or(|from| key >= from.row()) && to.is_none_or(|to| key < to.row());
        Ok(keys.iter().map(|key| Some(inside(key))).collect())
    }

    fn failed(&self, error: &ArrowError) -> Error {
        Error::Invalid(format!("sort the rows of chunk {}: {error}", self.chunk))
    }
}

/// The rows that a mask lets through, with their commit numbers.
fn keep(
    rows: &RecordBatch,
    csns: Vec<u64>,
    mask: &BooleanArray,
) -> Result<(RecordBatch, Vec<u64>), ArrowError> {
    let rows = filter_record_batch(rows, mask)?;
    let csns = filter(&UInt64Array::from(csns), mask)?;
    let csns = csns.as_any().downcast_ref::<UInt64Array>().map(|csns| csns.values().to_vec());
    let csns =
        csns.ok_or_else(|| ArrowError::ComputeError("commit numbers lost their type".into()))?;
    Ok((rows, csns))
}
