//! Reads segments: the header once, blocks as they are wanted.

use std::ops::Range;

use arrow::{
    array::{ArrayRef, AsArray},
    datatypes::{DataType, Int64Type, SchemaRef},
};
use hypertide_proto::{
    ids::Csn,
    predicate::{Predicate, Value, Zone},
};

use super::{
    Place, SegmentError, SegmentKey, constant,
    frame::{self, Address, Fault},
    header::{CSN_TYPE, Entry, Header},
    sketch::Sketch,
    stats::Stats,
};
use crate::codec;

/// An opened header: what the segment holds and where.
#[derive(Clone, Debug)]
pub struct Segment {
    key: SegmentKey,
    header: Header,
    /// What is known of each column in all rows; of the commit numbers after the last.
    zones: Vec<Stats>,
    /// First row of each block.
    starts: Vec<u64>,
    rows: u64,
}

impl Segment {
    /// Opens a header, checking all of it.
    pub fn open(key: SegmentKey, header: &[u8]) -> Result<Self, SegmentError> {
        let header = Header::from_bytes(key, header)
            .map_err(|fault| fault.at(key, "the header".to_owned()))?;
        let merge = |entries: &Vec<Entry>| Stats::merge(entries.iter().map(|entry| &entry.stats));
        let zones = header.columns.iter().map(merge).collect();
        let mut rows = 0;
        let mut starts = Vec::with_capacity(header.block_rows.len());
        for block_rows in &header.block_rows {
            starts.push(rows);
            rows += u64::from(*block_rows);
        }
        Ok(Self { key, header, zones, starts, rows })
    }

    /// The name it was opened with.
    #[must_use]
    pub const fn key(&self) -> SegmentKey {
        self.key
    }

    /// About what it takes in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.header.memory_bytes() + self.starts.len() * size_of::<u64>()
    }

    pub(super) const fn header(&self) -> &Header {
        &self.header
    }

    /// Rows in all.
    #[must_use]
    pub const fn rows(&self) -> u64 {
        self.rows
    }

    /// Columns, without the hidden one of commit numbers.
    #[must_use]
    pub const fn schema(&self) -> &SchemaRef {
        &self.header.schema
    }

    /// Least and greatest commit number of its rows; from zero to all when there are no rows.
    #[must_use]
    pub fn csn_range(&self) -> (Csn, Csn) {
        self.zones.last().map_or(ALL_CSNS, csn_range)
    }

    /// Least and greatest commit number of the rows of a block; `None` when there is no such block.
    #[must_use]
    pub fn block_csn_range(&self, block: usize) -> Option<(Csn, Csn)> {
        Some(csn_range(&self.entry(block, self.csn_column())?.stats))
    }

    /// What is known of a column in all rows; `None` when the segment has no such column.
    #[must_use]
    pub fn zone(&self, column: &str) -> Option<Zone<'_>> {
        Some(self.zones.get(self.position(column)?)?.zone())
    }

    /// Exact sum of an integer or decimal column; `None` for other types, and when it passes 128 bits.
    #[must_use]
    pub fn sum(&self, column: &str) -> Option<i128> {
        self.zones.get(self.position(column)?)?.sum()
    }

    /// Least and greatest value of a column in all rows, when they are known as values of rows and not as bounds only;
    /// `None` within for a column that is null in all rows.
    #[must_use]
    pub fn extremes(&self, column: &str) -> Option<(Option<&Value>, Option<&Value>)> {
        let zone = self.zones.get(self.position(column)?).filter(|zone| zone.exact())?;
        let known = zone.edges().0.is_some() || zone.zone().nulls == zone.zone().rows;
        known.then_some(zone.edges())
    }

    /// What is known of the different values of a column.
    pub(crate) fn sketch(&self, column: &str) -> Option<&Sketch> {
        self.header.sketches.get(self.position(column)?)
    }

    /// About how many different values a column has; `None` when the segment has no such column.
    #[must_use]
    pub fn distinct(&self, column: &str) -> Option<u64> {
        self.sketch(column).map(Sketch::estimate)
    }

    /// Names of the columns that its series go by; none when series are too short for an index.
    pub fn key_columns(&self) -> impl Iterator<Item = &str> {
        let fields = self.header.schema.fields();
        let positions = self.header.keys.positions().iter();
        positions.filter_map(|position| fields.get(*position)).map(|field| field.name().as_str())
    }

    /// First rows of its runs of equal keys; empty without an index.
    pub(crate) fn run_starts(&self) -> &[u32] {
        self.header.keys.starts()
    }

    /// The values that the runs of equal keys have in a column; `None` when it is no key column.
    pub(crate) fn run_keys(&self, column: &str) -> Option<ArrayRef> {
        self.header.keys.column(self.position(column)?).map(std::sync::Arc::clone)
    }

    /// Rows of the series that may pass, as ranges in order; `None` when the predicate asks nothing of a key column.
    #[must_use]
    pub fn rows_of_series(&self, predicate: &Predicate) -> Option<Vec<Range<u64>>> {
        self.header.keys.passing(predicate, &self.header.schema, self.rows)
    }

    /// Number of blocks.
    #[must_use]
    pub const fn block_count(&self) -> usize {
        self.header.block_rows.len()
    }

    /// Number of extents, all of which must be there.
    #[must_use]
    pub const fn extent_count(&self) -> usize {
        self.header.extent_bytes.len()
    }

    /// What is known of a column in a block; `None` when the segment has no such column or block.
    #[must_use]
    pub fn block_zone(&self, block: usize, column: &str) -> Option<Zone<'_>> {
        Some(self.entry(block, self.position(column)?)?.stats.zone())
    }

    /// As [`Segment::sum`], of the rows of a block.
    #[must_use]
    pub fn block_sum(&self, block: usize, column: &str) -> Option<i128> {
        self.entry(block, self.position(column)?)?.stats.sum()
    }

    /// Least and greatest value of a column in a block, when they are known as values of rows; `None` when they are not,
    /// and for a block whose rows are all null.
    #[must_use]
    pub fn block_extremes(&self, block: usize, column: &str) -> Option<(&Value, &Value)> {
        let stats = &self.entry(block, self.position(column)?)?.stats;
        let (min, max) = stats.edges();
        min.zip(max).filter(|_| stats.exact())
    }

    /// The rows of a block, as positions in the segment; empty when there is no such block.
    #[must_use]
    pub fn block_rows(&self, block: usize) -> Range<u64> {
        let start = self.starts.get(block).copied().unwrap_or(self.rows);
        let rows = self.header.block_rows.get(block).copied().unwrap_or(0);
        start..start + u64::from(rows)
    }

    /// Where a block of a column lies, the column by its position in the schema. A block whose rows are all equal has
    /// no bytes: its length is zero, and it is decoded from nothing.
    #[must_use]
    pub fn place(&self, block: usize, column: usize) -> Option<Place> {
        let column = Some(column).filter(|column| *column < self.csn_column())?;
        Some(self.entry(block, column)?.place)
    }

    /// Where the commit numbers of a block lie.
    #[must_use]
    pub fn csn_place(&self, block: usize) -> Option<Place> {
        Some(self.entry(block, self.csn_column())?.place)
    }

    /// Decodes a block of a column out of the whole extent that [`Segment::place`] names.
    pub fn decode(
        &self,
        block: usize,
        column: usize,
        extent: &[u8],
    ) -> Result<ArrayRef, SegmentError> {
        let missing = SegmentError::Missing { segment: self.key.segment, block, column };
        let field = self.header.schema.fields().get(column).ok_or(missing)?;
        self.decode_typed(block, column, field.data_type(), extent)
    }

    /// As [`Segment::decode`], as a column of `data_type`: that of the schema, or `Dictionary(Int32, _)` of it.
    pub fn decode_as(
        &self,
        block: usize,
        column: usize,
        data_type: &DataType,
        extent: &[u8],
    ) -> Result<ArrayRef, SegmentError> {
        self.decode_typed(block, column, data_type, extent)
    }

    /// Decodes the commit numbers of a block out of the whole extent that [`Segment::csn_place`] names.
    pub fn decode_csns(&self, block: usize, extent: &[u8]) -> Result<Vec<u64>, SegmentError> {
        let array = self.decode_typed(block, self.csn_column(), &CSN_TYPE, extent)?;
        let csns = array.as_primitive::<Int64Type>();
        Ok(csns.values().iter().map(|csn| csn.cast_unsigned()).collect())
    }

    fn decode_typed(
        &self,
        block: usize,
        column: usize,
        data_type: &DataType,
        extent: &[u8],
    ) -> Result<ArrayRef, SegmentError> {
        let missing = SegmentError::Missing { segment: self.key.segment, block, column };
        let entry = self.entry(block, column).ok_or(missing)?;
        self.decode_entry(entry, Address::block(self.key, column, block), data_type, extent)
            .map_err(|fault| fault.at(self.key, self.place_name(block, column, entry.place)))
    }

    fn decode_entry(
        &self,
        entry: &Entry,
        address: Address,
        data_type: &DataType,
        extent: &[u8],
    ) -> Result<ArrayRef, Fault> {
        let Place { offset, len, .. } = entry.place;
        if len == 0 {
            let what = || Fault::Damaged("the block has no bytes, and no value".to_owned());
            return constant::expand(data_type, &entry.stats).ok_or_else(what);
        }
        let frame = extent.get(offset..).and_then(|rest| rest.get(..len));
        let frame = frame.ok_or_else(|| Fault::Damaged("the extent ends early".to_owned()))?;
        let (shape, stored) = frame::unwrap(address, frame)?;
        let zone = entry.stats.zone();
        if (u64::from(shape.rows), u64::from(shape.nulls)) != (zone.rows, zone.nulls) {
            let what = "the block has other numbers of rows or nulls than the header says";
            return Err(Fault::Damaged(what.to_owned()));
        }
        Ok(codec::decode(data_type, &shape, stored)?)
    }

    fn place_name(&self, block: usize, column: usize, place: Place) -> String {
        let name = match self.header.schema.fields().get(column) {
            Some(field) => format!("column \"{}\"", field.name()),
            None => "commit numbers".to_owned(),
        };
        let Place { extent, offset, .. } = place;
        format!("{name}, block {block}, extent {extent} at offset {offset}")
    }

    fn entry(&self, block: usize, column: usize) -> Option<&Entry> {
        self.header.columns.get(column)?.get(block)
    }

    fn position(&self, column: &str) -> Option<usize> {
        self.header.schema.column_with_name(column).map(|(position, _)| position)
    }

    fn csn_column(&self) -> usize {
        self.header.schema.fields().len()
    }
}

const ALL_CSNS: (Csn, Csn) = (Csn(0), Csn(u64::MAX));

/// What is not known prunes nothing.
fn csn_range(stats: &Stats) -> (Csn, Csn) {
    stats.range().map_or(ALL_CSNS, |(min, max)| (Csn(min), Csn(max)))
}
