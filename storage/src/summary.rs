//! What zone maps alone say of a chunk: `count`, `min`, `max` and `sum` without reading a block.
//!
//! A summary is exact or it is not given: it needs that every row of every segment is visible, and that no other row
//! is. `first` and `last` by time are a scan with [`crate::Top`] of one row, which reads the blocks that hold it.

use std::{collections::BTreeMap, sync::Arc};

use hypertide_proto::predicate::Value;

use crate::segment::{Segment, Sketch};

/// What a chunk holds, as of a snapshot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChunkSummary {
    /// Rows.
    pub rows: u64,
    /// What is known of each column that some segment has, by name.
    pub columns: BTreeMap<String, ColumnSummary>,
}

/// What is known of a column. Rows that are older than the column count as null.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ColumnSummary {
    /// Rows that are null.
    pub nulls: u64,
    /// Least and greatest value, none when all rows are null; `None` when only bounds are known, as of long texts.
    pub extremes: Option<Option<(Value, Value)>>,
    /// Sum of an integer or decimal column; `None` for other types, and when it passes 128 bits.
    pub sum: Option<i128>,
    /// About how many different values there are, 6 % more or less. For planning, never for an answer.
    pub distinct: u64,
}

/// The summary of the rows of these segments.
pub(crate) fn summarize(segments: &[Arc<Segment>]) -> ChunkSummary {
    let names = segments.iter().flat_map(|segment| segment.schema().fields().iter());
    let names = names.map(|field| field.name().clone());
    let columns = names.map(|name| (name.clone(), summarize_column(segments, &name)));
    ChunkSummary {
        rows: segments.iter().map(|segment| segment.rows()).sum(),
        columns: columns.collect(),
    }
}

fn summarize_column(segments: &[Arc<Segment>], name: &str) -> ColumnSummary {
    let mut sketch = Sketch::default();
    let mut summary = ColumnSummary { extremes: Some(None), sum: Some(0), ..Default::default() };
    for segment in segments {
        let Some(zone) = segment.zone(name) else {
            summary.nulls += segment.rows();
            continue;
        };
        summary.nulls += zone.nulls;
        summary.sum =
            summary.sum.zip(segment.sum(name)).and_then(|(all, sum)| all.checked_add(sum));
        let found = segment.extremes(name).map(|(min, max)| min.cloned().zip(max.cloned()));
        summary.extremes = match (summary.extremes, found) {
            (Some(all), Some(found)) => widen(all, found),
            _ => None,
        };
        if let Some(other) = segment.sketch(name) {
            sketch.merge(other);
        }
    }
    summary.distinct = sketch.estimate();
    summary
}

/// About how many different values a column has in all these segments together.
pub(crate) fn distinct<'a>(segments: impl Iterator<Item = &'a Arc<Segment>>, column: &str) -> u64 {
    let mut sketch = Sketch::default();
    for other in segments.filter_map(|segment| segment.sketch(column)) {
        sketch.merge(other);
    }
    sketch.estimate()
}

type Extremes = Option<(Value, Value)>;

/// Least and greatest of both; `None` when their values do not compare.
fn widen(all: Extremes, found: Extremes) -> Option<Extremes> {
    let (Some((least, greatest)), Some((min, max))) = (&all, &found) else {
        return Some(all.or(found));
    };
    let least = if min.compare(least)?.is_lt() { min } else { least };
    let greatest = if max.compare(greatest)?.is_gt() { max } else { greatest };
    Some(Some((least.clone(), greatest.clone())))
}
