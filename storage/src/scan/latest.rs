//! The last rows of each key: what `DISTINCT`, `DISTINCT ON` and `last(value, time)` need, without reading the others.
//!
//! All scans that share a [`Seen`] tell each other the best row of each key so far. A segment's key index says which
//! keys a block holds: runs whose best possible row is worse than one already seen are passed over, and a block of only
//! such runs is not read. Where there is no index, all rows come out.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use arrow::{
    array::{Array, ArrayRef, BooleanArray, BooleanBufferBuilder, RecordBatch},
    buffer::BooleanBuffer,
    compute::filter_record_batch,
    row::{RowConverter, SortField},
};
use hypertide_proto::predicate::Value;
use serde::{Deserialize, Serialize};

use super::{Candidate, Scan, top::number};
use crate::{Error, segment::Segment};

/// Which rows of a scan are of use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latest {
    /// Rows that are equal in these columns have the same key. Without any, all rows have.
    pub keys: Vec<String>,
    /// The rows of a key that are of use: all that are the first in this order. Without it, any one.
    pub by: Option<LatestBy>,
}

/// The order among the rows of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatestBy {
    /// Integers, decimals, timestamps or dates. Rows in which it is null are of no use.
    pub column: String,
    /// Whether the greatest come first.
    pub descending: bool,
}

impl fmt::Display for Latest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.keys.join(", ");
        match &self.by {
            None => write!(f, "any of each ({keys})"),
            Some(LatestBy { column, descending: true }) => {
                write!(f, "last of each ({keys}) by {column}")
            }
            Some(LatestBy { column, descending: false }) => {
                write!(f, "first of each ({keys}) by {column}")
            }
        }
    }
}

/// The best row of each key so far, of all scans that share it.
#[derive(Debug, Default)]
pub struct Seen(Mutex<BTreeMap<Vec<u8>, i128>>);

impl Seen {
    /// The best of a key so far, with this one.
    fn offer(&self, key: &[u8], value: i128, descending: bool) -> i128 {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.get_mut(key) {
            Some(best) => {
                *best = if descending { value.max(*best) } else { value.min(*best) };
                *best
            }
            None => {
                seen.insert(key.to_vec(), value);
                value
            }
        }
    }

    /// Whether a key is seen for the first time.
    fn first(&self, key: &[u8]) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(key.to_vec(), 0).is_none()
    }

    /// Whether a row of a key may be of use, when the best that it may be is `bound`.
    fn may_win(&self, key: &[u8], by: Option<&LatestBy>, bound: Option<i128>) -> bool {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (seen.get(key), by, bound) {
            (None, ..) => true,
            (Some(_), None, _) => false,
            (Some(_), Some(_), None) => true,
            (Some(best), Some(by), Some(bound)) => {
                if by.descending {
                    bound >= *best
                } else {
                    bound <= *best
                }
            }
        }
    }
}

/// Keys as bytes that are equal when the keys are.
type KeyBytes = Arc<Vec<Vec<u8>>>;

/// A scan's part in finding the best rows.
#[derive(Debug)]
pub(super) struct Finder {
    latest: Latest,
    seen: Arc<Seen>,
    /// The keys of the runs of each segment met, by its number; `None` for one without an index of them.
    runs: BTreeMap<u64, Option<KeyBytes>>,
}

/// The runs of a block that may hold rows of use.
#[derive(Debug)]
pub(super) struct Runs {
    by: Option<LatestBy>,
    seen: Arc<Seen>,
    keys: KeyBytes,
    /// Rows of the block, and which run they are of.
    runs: Vec<(Range<usize>, usize)>,
}

/// What a block may be good for.
#[derive(Debug)]
pub(super) enum Use {
    /// Nothing.
    None,
    /// These runs.
    Runs(Runs),
    /// Not known: rows are to be looked at one by one.
    Unknown,
}

impl Scan {
    /// The same scan, of only the rows that are of use. Those worse than what `seen` knows are not; more than the best
    /// may come out. To be called before the first batch is taken.
    #[must_use]
    pub fn latest(mut self, latest: Latest, seen: Arc<Seen>) -> Self {
        self = match &latest.by {
            Some(LatestBy { column, descending }) => self.ordered(column, *descending),
            None => self.listed(),
        };
        self.finder = Some(Finder { latest, seen, runs: BTreeMap::new() });
        self
    }
}

impl Finder {
    /// What a block may be good for.
    pub(super) fn use_of(&mut self, candidate: &Candidate, block: usize) -> Result<Use, Error> {
        let segment = &candidate.segment;
        let keys = match self.runs.entry(segment.key().segment) {
            Entry::Occupied(known) => known.get().clone(),
            Entry::Vacant(new) => new.insert(run_keys(segment, &self.latest.keys)?).clone(),
        };
        let Some(keys) = keys else { return Ok(Use::Unknown) };
        let by = self.latest.by.as_ref();
        let bound = by.and_then(|by| bound(segment, block, by));
        let rows = segment.block_rows(block);
        let may_win = |(_, run): &(Range<usize>, usize)| {
            keys.get(*run).is_none_or(|key| self.seen.may_win(key, by, bound))
        };
        let runs: Vec<_> = runs_within(segment, &rows, keys.len()).filter(may_win).collect();
        if runs.is_empty() {
            return Ok(Use::None);
        }
        Ok(Use::Runs(Runs { by: by.cloned(), seen: Arc::clone(&self.seen), keys, runs }))
    }

    /// Of rows of any keys those that are of use. With key columns all may be: to compare them row by row is the
    /// reader's work anyway.
    pub(super) fn select(&self, rows: RecordBatch) -> Result<Option<RecordBatch>, Error> {
        let Some(by) = self.latest.by.as_ref().filter(|_| self.latest.keys.is_empty()) else {
            return Ok(Some(rows));
        };
        let values = rows.column_by_name(&by.column).ok_or_else(|| {
            Error::Invalid(format!("the last rows by \"{}\" are read with it", by.column))
        })?;
        let numbers = (0..rows.num_rows()).filter_map(|row| number(values, row));
        let best = if by.descending { numbers.max() } else { numbers.min() };
        let Some(best) = best else { return Ok(None) };
        if self.seen.offer(&[], best, by.descending) != best {
            return Ok(None);
        }
        let kept =
            BooleanBuffer::collect_bool(rows.num_rows(), |row| number(values, row) == Some(best));
        let kept = filter_record_batch(&rows, &BooleanArray::new(kept, None));
        kept.map(Some).map_err(|error| Error::Invalid(format!("find the last rows: {error}")))
    }
}

impl Runs {
    /// Name of the column that decides among the rows of a key.
    pub(super) fn by(&self) -> Option<&str> {
        self.by.as_ref().map(|by| by.column.as_str())
    }

    /// Of the rows left those that are of use; `values` are those of the column that decides.
    pub(super) fn of_use(&self, left: &BooleanBuffer, values: Option<&ArrayRef>) -> BooleanBuffer {
        let mut kept = BooleanBufferBuilder::new(left.len());
        kept.append_n(left.len(), false);
        for (range, run) in &self.runs {
            let Some(key) = self.keys.get(*run) else { continue };
            let mut rows = range.clone().filter(|row| left.value(*row));
            let (Some(values), Some(by)) = (values, &self.by) else {
                if let Some(first) = rows.next()
                    && self.seen.first(key)
                {
                    kept.set_bit(first, true);
                }
                continue;
            };
            let numbers = rows.clone().filter_map(|row| number(values, row));
            let best = if by.descending { numbers.max() } else { numbers.min() };
            let Some(best) = best else { continue };
            if self.seen.offer(key, best, by.descending) == best {
                rows.filter(|row| number(values, *row) == Some(best))
                    .for_each(|row| kept.set_bit(row, true));
            }
        }
        kept.finish()
    }
}

/// The best value that a block may hold.
fn bound(segment: &Segment, block: usize, by: &LatestBy) -> Option<i128> {
    let zone = segment.block_zone(block, &by.column)?;
    match if by.descending { zone.max } else { zone.min } {
        Some(Value::Int(bound)) => Some(*bound),
        _ => None,
    }
}

/// The runs of a segment within these of its rows, as rows from the first of them.
fn runs_within(
    segment: &Segment,
    rows: &Range<u64>,
    runs: usize,
) -> impl Iterator<Item = (Range<usize>, usize)> {
    let starts = segment.run_starts();
    // One segment without key columns that are asked for is one run.
    let start_of = move |run: usize| match run {
        0 => 0,
        run => starts.get(run).copied().map_or(u64::MAX, u64::from),
    };
    let first = if runs == 1 {
        0
    } else {
        starts.partition_point(|start| u64::from(*start) <= rows.start).saturating_sub(1)
    };
    let (from, to) = (rows.start, rows.end);
    (first..runs).take_while(move |run| start_of(*run) < to).map(move |run| {
        let next = if run + 1 == runs { to } else { start_of(run + 1) };
        let (start, end) = (start_of(run).max(from) - from, next.min(to) - from);
        (start as usize..end as usize, run)
    })
}

/// The keys of the runs of a segment; `None` when its index is not of all these columns.
fn run_keys(segment: &Segment, names: &[String]) -> Result<Option<KeyBytes>, Error> {
    if names.is_empty() {
        return Ok(Some(Arc::new(vec![Vec::new()])));
    }
    let columns: Option<Vec<ArrayRef>> = names.iter().map(|name| segment.run_keys(name)).collect();
    let Some(columns) = columns else { return Ok(None) };
    key_bytes(&columns).map(|keys| Some(Arc::new(keys)))
}

fn key_bytes(columns: &[ArrayRef]) -> Result<Vec<Vec<u8>>, Error> {
    let fields = columns.iter().map(|column| SortField::new(column.data_type().clone()));
    let convert = |fields: Vec<SortField>| RowConverter::new(fields)?.convert_columns(columns);
    let keys = convert(fields.collect())
        .map_err(|error| Error::Invalid(format!("compare keys: {error}")))?;
    Ok(keys.iter().map(|key| key.as_ref().to_vec()).collect())
}
