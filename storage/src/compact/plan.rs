//! Which segments of a chunk are merged: a run of neighbours of one schema, so that each row is rewritten seldom.

use arrow::datatypes::SchemaRef;

/// Segments of a chunk that are left alone.
pub(crate) const SEGMENTS_MAX: usize = 8;
/// Rows above which a segment is not rewritten any more.
const ROWS_MAX: u64 = 1 << 19;
/// Decoded bytes above which it is not, either: a merge holds about twice as many in memory.
const BYTES_MAX: u64 = 96 << 20;
/// What a row of a column takes when decoded, about.
pub(super) const VALUE_BYTES: u64 = 16;
/// Most segments merged at once, which bounds memory.
const MERGE_MAX: usize = 16;

/// What the choice depends on.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) segment: u64,
    pub(crate) rows: u64,
    pub(crate) schema: SchemaRef,
}

/// The segments to merge into one, empty when there are few. Candidates are in the order of their numbers.
///
/// A run qualifies when none of it holds more than half of its rows: each merge then at least doubles the segment that
/// a row lies in, so that a row is rewritten about as often as the logarithm of the chunk's size, and about as many
/// segments stay. Of the runs that qualify, the one with the fewest rows a segment is taken, the longest of equals.
pub(crate) fn plan(candidates: &[Candidate]) -> Vec<u64> {
    if candidates.len() <= SEGMENTS_MAX {
        return Vec::new();
    }
    let mut best: Option<(u64, &[Candidate])> = None;
    for length in 2..=MERGE_MAX.min(candidates.len()) {
        for run in candidates.windows(length) {
            let rows: u64 = run.iter().map(|candidate| candidate.rows).sum();
            let cost = rows / length as u64;
            if qualifies(run, rows) && best.as_ref().is_none_or(|(least, _)| cost <= *least) {
                best = Some((cost, run));
            }
        }
    }
    let chosen = best.map(|(_, run)| run).unwrap_or_default();
    chosen.iter().map(|candidate| candidate.segment).collect()
}

fn qualifies(run: &[Candidate], rows: u64) -> bool {
    let one_schema = run.array_windows().all(|[one, other]| one.schema == other.schema);
    let balanced = run.iter().all(|candidate| candidate.rows * 2 <= rows);
    one_schema && balanced && rows <= rows_max(run)
}

/// Rows of the largest segment that comes of a merge: fewer where rows are wide.
fn rows_max(run: &[Candidate]) -> u64 {
    let columns = run.iter().map(|candidate| candidate.schema.fields().len()).max();
    // The commit numbers are a column, too.
    let width = (columns.unwrap_or(0) as u64 + 1) * VALUE_BYTES;
    ROWS_MAX.min(BYTES_MAX / width)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    fn candidates(rows: &[u64]) -> Vec<Candidate> {
        let schema = Arc::new(Schema::empty());
        let candidate = |(segment, rows): (u64, &u64)| Candidate {
            segment,
            rows: *rows,
            schema: Arc::clone(&schema),
        };
        (0..).zip(rows).map(candidate).collect()
    }

    #[test]
    fn few_segments_are_left_alone() {
        assert!(plan(&candidates(&[10; SEGMENTS_MAX])).is_empty());
    }

    #[test]
    fn the_smallest_neighbours_are_merged() {
        let large = 400_000;
        let rows = [large, large, 5, 5, 5, large, large, large, large, large];
        assert_eq!(plan(&candidates(&rows)), [2, 3, 4]);
        assert_eq!(plan(&candidates(&[10; 9])).len(), 9);
    }

    #[test]
    fn large_segments_and_other_schemas_are_not_touched() {
        assert!(plan(&candidates(&[ROWS_MAX; 20])).is_empty());
        let mut mixed = candidates(&[10; 9]);
        let other = Arc::new(Schema::new(vec![Field::new("x", DataType::Int64, true)]));
        mixed.iter_mut().step_by(2).for_each(|odd| odd.schema = Arc::clone(&other));
        assert!(plan(&mixed).is_empty());
    }

    #[test]
    fn wide_rows_are_merged_to_fewer() {
        let fields: Vec<Field> =
            (0..99).map(|i| Field::new(format!("c{i}"), DataType::Int64, true)).collect();
        let wide = Arc::new(Schema::new(fields));
        let rows_max = BYTES_MAX / (100 * VALUE_BYTES);
        let mut candidates = candidates(&[rows_max / 4; 9]);
        candidates.iter_mut().for_each(|candidate| candidate.schema = Arc::clone(&wide));
        assert_eq!(plan(&candidates).len(), 4);
        candidates.iter_mut().for_each(|candidate| candidate.rows = rows_max / 2 + 1);
        assert!(plan(&candidates).is_empty());
    }

    #[test]
    fn repeated_merging_keeps_the_number_small_and_the_work_bounded() {
        let mut segments: Vec<u64> = Vec::new();
        let mut rewritten = 0;
        for rows in std::iter::repeat_n(1000, 1000) {
            segments.push(rows);
            let chosen = plan(&candidates(&segments));
            if let (Some(first), Some(last)) = (chosen.first(), chosen.last()) {
                let range = *first as usize..=*last as usize;
                let rows: u64 = segments[range.clone()].iter().sum();
                rewritten += rows;
                segments.splice(range, [rows]);
            }
        }
        assert!(segments.len() <= 2 * SEGMENTS_MAX, "{segments:?}");
        assert!(rewritten < 10 * 1_000_000, "{rewritten}");
    }
}
