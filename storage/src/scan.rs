//! Snapshot, predicate and projection over one chunk: an iterator of record batches.
//!
//! A scan fixes what it sees when it starts: the recent rows, and the list of segments. A flush or a merge meanwhile
//! changes neither. It reads as little as it can, in this order:
//!
//! ```text
//! segments   left out by zone map, or because none of their series is asked for
//! blocks     left out by zone map, or because they hold no row of a series that is
//! rows       the columns of the predicate are decoded, and the rows that fail it are gone       (scan/blocks.rs)
//! columns    the other columns are decoded, only where rows are left
//! ```
//!
//! - Rows that come out are visible at the snapshot, and pass the predicate as far as their columns have it.
//! - Of the columns wanted, one of type `Dictionary(Int32, _)` comes as it is stored: without a copy of the text a row.
//! - Memory is bounded by a block a column and the extents that they lie in, whatever the size of the chunk.
//! - [`Scan::answer`] takes out the blocks of which zone maps tell all, [`Scan::ordered`] reads the best first while its
//!   reader tells by [`Scan::narrow`] what is still of use (scan/listed.rs), [`Scan::latest`] the last rows of each key
//!   (scan/latest.rs).
//! - [`Scan::top`] gives the last rows first, and ends as soon as no other block can hold a later one (scan/top.rs).
//! - A batch may be empty: a scan that finds nothing for a while says so, so that its reader can end it.
//!
//! Of the TSBS `cpu` table, a chunk of 432,000 rows of 100 hosts (`cargo bench -p hypertide-storage -- scan`; one core
//! of a 2-core EPYC machine with nothing else to do):
//!
//! ```text
//! one column of doubles, warm      719 M values/s
//! the same, cold                   312 M values/s    nothing in memory, ours or the system's; the file is opened, too
//! all 21 columns, warm           1,170 M values/s
//! one series of 100, warm           12 microseconds
//! last row of a series, warm        18 microseconds
//! 420 chunks of 7 rows, warm       0.5 milliseconds  however few files stay open
//! the same, first after a start     32 milliseconds
//! ```

mod blocks;
mod latest;
mod listed;
mod top;

use std::{ops::Range, sync::Arc};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use hypertide_proto::{
    ids::{ChunkId, Csn, TxnId},
    predicate::{Predicate, Term},
    schema::OLDER_ROWS_KEY,
};

pub(crate) use self::blocks::older;
use self::{
    blocks::Blocks,
    latest::Finder,
    top::{Best, Ranked},
};
pub use self::{
    latest::{Latest, LatestBy, Seen},
    listed::{Answer, Asked, ColumnAnswer},
};
use crate::{
    Error,
    chunk::Rows,
    segment::{BLOCK_ROWS, Segment},
    store::file::{ChunkFile, Segments},
    summary::{ChunkSummary, summarize},
    tombstone::Deletes,
};

/// Blocks after which a scan that found nothing gives an empty batch.
const BLOCKS_A_CALL: usize = 32;

/// What a scan reads.
#[derive(Clone, Debug)]
pub struct ScanRequest {
    /// The chunk. One that the node never saw has no rows.
    pub chunk: ChunkId,
    /// Rows are visible when their commit number is at most this.
    pub snapshot: Csn,
    /// Pending rows of this transaction are visible too.
    pub own: Option<TxnId>,
    /// The columns wanted, by name, as the table has them now. A column that older rows lack is null there, or as
    /// [`OLDER_ROWS_KEY`] says.
    pub columns: SchemaRef,
    /// Rows that fail it are left out, but for terms on columns that a segment lacks: those are the reader's.
    pub predicate: Predicate,
}

/// The rows wanted of a scan that orders them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Top {
    /// The column to order by: integers, decimals, timestamps or dates. Null is after all else.
    pub column: String,
    /// Whether the greatest come first.
    pub descending: bool,
    /// How many rows.
    pub rows: usize,
}

/// What a scan did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanStats {
    /// Segments there were.
    pub segments: u64,
    /// Segments left out.
    pub segments_skipped: u64,
    /// Blocks there were in the segments that were not left out.
    pub blocks: u64,
    /// Blocks left out.
    pub blocks_skipped: u64,
    /// Encoded bytes read.
    pub bytes_read: u64,
    /// Encoded bytes of wanted columns that were never decoded, in segments and blocks left out or without a row.
    pub bytes_skipped: u64,
    /// Rows of blocks read, and recent ones, that were left out one by one.
    pub rows_skipped: u64,
    /// Rows given out.
    pub rows: u64,
}

/// The file of a scanned chunk, and the segments that the scan sees.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) file: Arc<ChunkFile>,
    pub(crate) segments: Segments,
    /// Deletes whose rows are still in them.
    pub(crate) deletes: Deletes,
}

/// Told of the damage that a scan meets.
pub(crate) type OnDamage = Box<dyn Fn(&Error) + Send>;

/// Rows of a segment that a scan looks at.
#[derive(Clone, Debug)]
struct Candidate {
    segment: Arc<Segment>,
    /// Ranges of rows of the series asked for, in order; `None` for all.
    series: Option<Arc<Vec<Range<u64>>>>,
}

/// What is left to read.
#[derive(Debug)]
enum Progress {
    /// In the order of the segments and blocks, then the recent rows.
    Forward {
        /// Position of the next segment in the list.
        next: usize,
        /// The segment being read, and its next block.
        current: Option<(Candidate, usize)>,
    },
    /// These blocks, the last first, after the recent rows.
    Listed(Vec<Ranked>),
    /// The best rows first.
    Top(Box<Best>),
}

/// A running scan: an iterator over batches of at most some thousand rows. Dropping it ends it.
pub struct Scan {
    request: ScanRequest,
    segments: Segments,
    blocks: Blocks,
    progress: Progress,
    recent: std::vec::IntoIter<Arc<Rows>>,
    /// The recent rows that are being given out, and the next of their batches and rows.
    current: Option<(Arc<Rows>, usize, usize)>,
    /// Rows that may still be given out.
    left: u64,
    /// Rows that fail one of these are of no use any more.
    narrowed: Vec<Term>,
    /// Finds the rows of use, when only the last of each key are.
    finder: Option<Finder>,
    stats: ScanStats,
    ended: bool,
    on_damage: OnDamage,
}

impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan").field("request", &self.request).field("stats", &self.stats).finish()
    }
}

impl Scan {
    pub(crate) fn new(
        request: ScanRequest,
        source: Option<Source>,
        recent: Vec<Arc<Rows>>,
        on_damage: OnDamage,
    ) -> Self {
        let segments = source.as_ref().map(|source| Arc::clone(&source.segments));
        let segments = segments.unwrap_or_default();
        let stats = ScanStats { segments: segments.len() as u64, ..ScanStats::default() };
        Self {
            blocks: Blocks::new(&request, source),
            request,
            segments,
            progress: Progress::Forward { next: 0, current: None },
            recent: recent.into_iter(),
            current: None,
            left: u64::MAX,
            narrowed: Vec::new(),
            finder: None,
            stats,
            ended: false,
            on_damage,
        }
    }

    /// The same scan, ended after so many rows, whichever come first.
    #[must_use]
    pub fn limit(mut self, rows: u64) -> Self {
        self.left = rows;
        self
    }

    /// The same scan, of only the first rows in an order, and in that order. Memory is bounded by a few times their
    /// number. Fails for a column that cannot be ordered by, or is not among those wanted. To be called before the
    /// first batch is taken.
    pub fn top(mut self, top: &Top) -> Result<Self, Error> {
        self.left = self.left.min(top.rows as u64);
        let mut best = Best::new(self.request.chunk, &self.request.columns, top)?;
        best.look_at(self.blocks_of_interest());
        self.progress = Progress::Top(Box::new(best));
        Ok(self)
    }

    /// What zone maps say of all rows that the scan sees, whatever its predicate; `None` when that would not be exact.
    #[must_use]
    pub fn summary(&self) -> Option<ChunkSummary> {
        let snapshot = self.request.snapshot;
        let recent = self.recent.as_slice().iter().any(|rows| !rows.batches.is_empty());
        let later = self.segments.iter().any(|s| s.rows() > 0 && s.csn_range().1 > snapshot);
        let exact = !recent && !later && !self.blocks.has_deletes();
        exact.then(|| summarize(&self.segments))
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> ScanStats {
        self.stats
    }

    fn advance(&mut self) -> Result<Option<RecordBatch>, Error> {
        match &self.progress {
            Progress::Top(_) => return self.advance_top(),
            Progress::Listed(_) => return self.advance_listed(),
            Progress::Forward { .. } => {}
        }
        for _ in 0..BLOCKS_A_CALL {
            let Some((candidate, block)) = self.next_block() else {
                return self.next_recent();
            };
            if !self.may_hold_narrowed(&candidate, block) {
                continue;
            }
            let place = candidate.at(block);
            let read = self.blocks.read(&place, &self.narrowed, &mut self.stats)?;
            if read.is_some() {
                return Ok(read);
            }
        }
        Ok(Some(RecordBatch::new_empty(Arc::clone(&self.request.columns))))
    }

    /// A segment with the rows of it to look at; `None` when none can be of interest.
    fn candidate(&mut self, segment: Arc<Segment>) -> Option<Candidate> {
        let predicate = &self.request.predicate;
        let visible = segment.csn_range().0 <= self.request.snapshot;
        let series = segment.rows_of_series(predicate).map(Arc::new);
        let any = series.as_ref().is_none_or(|series| !series.is_empty());
        if visible && any && predicate.may_pass(|column| segment.zone(column)) {
            self.stats.blocks += segment.block_count() as u64;
            return Some(Candidate { segment, series });
        }
        self.stats.segments_skipped += 1;
        for block in 0..segment.block_count() {
            self.stats.bytes_skipped += self.blocks.bytes_of(&segment, block);
        }
        None
    }

    /// Whether a block may hold a row of interest. Counts it when not.
    fn may_hold(&mut self, candidate: &Candidate, block: usize) -> bool {
        let Candidate { segment, .. } = candidate;
        let snapshot = self.request.snapshot;
        let visible = segment.block_csn_range(block).is_none_or(|(min, _)| min <= snapshot);
        let predicate = &self.request.predicate;
        let may = visible
            && !candidate.at(block).series.is_empty()
            && predicate.may_pass(|column| segment.block_zone(block, column));
        if !may {
            self.stats.blocks_skipped += 1;
            self.stats.bytes_skipped += self.blocks.bytes_of(segment, block);
        }
        may
    }

    /// The next block that may hold a row of interest.
    fn next_block(&mut self) -> Option<(Candidate, usize)> {
        loop {
            let Progress::Forward { next, current } = &mut self.progress else { return None };
            match current.take() {
                Some((candidate, block)) if block < candidate.segment.block_count() => {
                    *current = Some((candidate.clone(), block + 1));
                    if self.may_hold(&candidate, block) {
                        return Some((candidate, block));
                    }
                }
                _ => {
                    let segment = Arc::clone(self.segments.get(*next)?);
                    *next += 1;
                    self.blocks.leave_segment();
                    let candidate = self.candidate(segment);
                    if let Progress::Forward { current, .. } = &mut self.progress {
                        *current = candidate.map(|candidate| (candidate, 0));
                    }
                }
            }
        }
    }

    /// The next recent rows that pass.
    fn next_recent(&mut self) -> Result<Option<RecordBatch>, Error> {
        while let Some(slice) = self.next_recent_slice() {
            let rows = self.blocks.select(&slice, &self.narrowed, &mut self.stats)?;
            if rows.is_some() {
                return Ok(rows);
            }
        }
        Ok(None)
    }

    fn next_recent_slice(&mut self) -> Option<RecordBatch> {
        loop {
            let Some((rows, batch, row)) = self.current.take() else {
                self.current = Some((self.recent.next()?, 0, 0));
                continue;
            };
            let Some(whole) = rows.batches.get(batch) else { continue };
            let count = BLOCK_ROWS.min(whole.num_rows() - row);
            let slice = whole.slice(row, count);
            let end = row + count == whole.num_rows();
            self.current =
                Some(if end { (rows, batch + 1, 0) } else { (rows, batch, row + count) });
            if count > 0 {
                return Some(slice);
            }
        }
    }

    /// The next of the best rows, which are known only after every block that may hold one was read.
    fn advance_top(&mut self) -> Result<Option<RecordBatch>, Error> {
        for _ in 0..BLOCKS_A_CALL {
            // Recent rows first: they are most often the last ones.
            let slice = self.next_recent_slice();
            let Progress::Top(best) = &mut self.progress else { return Ok(None) };
            let better: Vec<Term> = best.better().into_iter().collect();
            let read = match (slice, best.is_done()) {
                (Some(slice), _) => self.blocks.select(&slice, &better, &mut self.stats)?,
                (None, true) => return best.next_batch(),
                (None, false) => match best.next_block() {
                    Ok((candidate, block)) => {
                        self.blocks.read(&candidate.at(block), &better, &mut self.stats)?
                    }
                    Err(left) => {
                        for (candidate, block) in left {
                            self.stats.blocks_skipped += 1;
                            self.stats.bytes_skipped +=
                                self.blocks.bytes_of(&candidate.segment, block);
                        }
                        None
                    }
                },
            };
            if let Some(rows) = read {
                best.take(rows)?;
            }
        }
        Ok(Some(RecordBatch::new_empty(Arc::clone(&self.request.columns))))
    }

    /// The batch within the rows that may still be given out; `None` after the last.
    fn within_limit(&mut self, batch: RecordBatch) -> Option<RecordBatch> {
        let rows = batch.num_rows() as u64;
        if rows >= self.left {
            self.ended = true;
        }
        if self.left == 0 {
            return None;
        }
        let batch = match usize::try_from(self.left) {
            Ok(left) if left < batch.num_rows() => batch.slice(0, left),
            _ => batch,
        };
        self.left -= batch.num_rows() as u64;
        self.stats.rows += batch.num_rows() as u64;
        Some(batch)
    }
}

impl Candidate {
    fn at(&self, block: usize) -> blocks::Place {
        let rows = self.segment.block_rows(block);
        let series = match &self.series {
            None => blocks::Series::All,
            Some(series) => {
                let from = series.partition_point(|range| range.end <= rows.start);
                let within = series.iter().skip(from).take_while(|range| range.start < rows.end);
                let inside = |range: &Range<u64>| {
                    let start = range.start.max(rows.start) - rows.start;
                    let end = range.end.min(rows.end) - rows.start;
                    start as usize..end as usize
                };
                blocks::Series::Some(within.map(inside).collect())
            }
        };
        blocks::Place { segment: Arc::clone(&self.segment), block, series }
    }
}

impl Iterator for Scan {
    type Item = Result<RecordBatch, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended || self.left == 0 {
            return None;
        }
        match self.advance() {
            Ok(Some(batch)) => self.within_limit(batch).map(Ok),
            Ok(None) => {
                self.ended = true;
                None
            }
            Err(error) => {
                self.ended = true;
                if matches!(error, Error::Damaged { .. }) {
                    (self.on_damage)(&error);
                }
                Some(Err(error))
            }
        }
    }
}
