//! Rows on their way in: checked, cut by chunk, encoded once, prepared on every replica, committed by one record.
//!
//! ```text
//! COPY blocks, Flight batches, VALUES
//!   -> check    what the table asks of every row
//!   -> split    the rows of each chunk, as positions
//!   -> gather   put to those of the chunk that came before, until they are a part worth sending; texts as dictionaries
//!   -> encode   Arrow IPC, zstd level 1, on threads that may block, several parts at a time
//!   -> deliver  one prepare a disk, up to eight under way; the data node answers after its journal's fsync
//!   -> propose  one record in the log
//! ```
//!
//! What it costs, in CPU seconds per million rows of the TSBS cpu shape (10 tags, 10 metrics), by `hypertide bench load`:
//! 2,592,000 rows, 4 clients, statements of 50,000 rows, 3 access and 3 data nodes as processes on 2 cores, fsync on,
//! medians of three runs (before the tags were kept as dictionaries in brackets):
//!
//! | | client | access nodes | data nodes | all | rows/s |
//! |---|---|---|---|---|---|
//! | Flight | 0.10 (0.14) | 0.47 (0.70) | 0.33 (0.79) | 0.92 (1.63) | 1,528,000 (937,000) |
//! | COPY | 0.06 (0.06) | 0.77 (1.29) | 0.37 (0.66) | 1.20 (2.01) | 1,158,000 (728,000) |
//!
//! Tried: tags as dictionaries from here to the segment are most of the gain, since plain texts are two thirds of the bytes
//! that are compressed, sent, decompressed, kept in memory and sorted. Of COPY, the rest is a short way for rows without
//! quotes and for numbers and moments of the usual form.

pub(crate) mod assign;
pub(crate) mod cells;
pub(crate) mod check;
pub(crate) mod deliver;
mod gather;
pub(crate) mod send;
pub(crate) mod split;
mod texts;
