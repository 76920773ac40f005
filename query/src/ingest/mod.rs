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
//! What it costs, in CPU seconds per million rows of the TSBS cpu shape (10 tags, 10 metrics), by `hypertide bench
//! load`: 2,592,000 rows, 4 clients, statements of 50,000 rows, 3 access and 3 data nodes as processes on 2 cores with
//! nothing else to do, fsync on, medians of three runs, of two with two replicas (before the tags were kept as
//! dictionaries in brackets, two runs and one):
//!
//! | | client | access nodes | data nodes | all | rows/s | with two replicas |
//! |---|---|---|---|---|---|---|
//! | Flight | 0.12 (0.14) | 0.50 (0.70) | 0.34 (0.79) | 0.98 (1.63) | 1,968,000 (937,000) | 1,425,000 |
//! | COPY | 0.05 (0.06) | 0.73 (1.29) | 0.34 (0.66) | 1.12 (2.01) | 1,688,000 (728,000) | 1,323,000 |
//!
//! PostgreSQL 15 on the same machine, by the same COPY into one table with the two indexes that TimescaleDB makes:
//! 267,000 and 255,000 rows/s.
//!
//! By stage, from a profile: on access nodes zstd 0.13, texts to dictionaries with the comparing 0.08, copies 0.03,
//! the kernel's network and memory 0.05, the log 0.02, and of COPY alone the parsing 0.26; on data nodes the flush
//! to segments 0.20, zstd 0.05, the journal 0.03. A load of 20,000,000 rows by Flight, flushes included, took
//! 1,447,000 rows/s at 1.01; the data nodes' memory peaked at 207, 285 and 588 MiB, of a budget of 1 GiB for rows in
//! memory. With a budget of 128 MiB (12,000,000 rows, on a busier machine) it was 935,000 rows/s at 1.17, and 171 to
//! 190 MiB.
//!
//! Tried: tags as dictionaries from here to the segment are most of the gain, since plain texts are two thirds of
//! the bytes that are compressed, sent, decompressed, kept in memory and sorted. Of COPY, the rest is a short way
//! for rows without quotes and for numbers and moments of the usual form. jemalloc, mimalloc and a fixed threshold
//! for mmap instead of glibc's defaults: 1.12, 1.14 and 1.34 in place of 1.08.

pub(crate) mod assign;
pub(crate) mod batches;
pub(crate) mod cells;
pub(crate) mod check;
pub(crate) mod deliver;
mod gather;
pub(crate) mod send;
pub(crate) mod split;
mod texts;
