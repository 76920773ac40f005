//! Verifies what a chunk's file holds, and names what is wrong with it.
//!
//! A check reads the file itself, past every cache of this process. It verifies the frame of each header and extent;
//! a thorough one decodes every block, too. Where an extent is wrong, its blocks are tried one by one, so that the
//! report says which columns are hit.

use std::fmt;

use hypertide_proto::ids::{ChunkId, Csn};

use super::{
    Inner,
    file::{ChunkFile, RawExtent},
};
use crate::{
    Error,
    segment::{Place, Segment},
};

/// Faults that a report names. A file that is wrong in more places is wrong enough.
const FAULTS_MAX: usize = 1000;

/// Wrong bytes in a chunk's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The segment; `None` when the file as a whole is wrong.
    pub segment: Option<u64>,
    /// The column; `None` when no single one is concerned, or for the hidden one of commit numbers.
    pub column: Option<String>,
    /// The block.
    pub block: Option<usize>,
    /// The extent that the block lies in.
    pub extent: Option<usize>,
    /// Where in the extent, in bytes.
    pub offset: Option<usize>,
    /// What is wrong.
    pub what: String,
}

impl Fault {
    fn of_file(what: String) -> Self {
        Self { segment: None, column: None, block: None, extent: None, offset: None, what }
    }

    fn of_segment(segment: u64, what: String) -> Self {
        Self { segment: Some(segment), ..Self::of_file(what) }
    }

    /// Where in its segment it is.
    pub(crate) fn place(&self) -> String {
        let mut words = Vec::new();
        match (&self.column, self.block) {
            (Some(column), _) => words.push(format!("column \"{column}\"")),
            (None, Some(_)) => words.push("commit numbers".to_owned()),
            (None, None) => {}
        }
        let numbers = [("block", self.block), ("extent", self.extent)];
        let numbers = numbers.into_iter().filter_map(|(name, n)| Some(format!("{name} {}", n?)));
        words.extend(numbers);
        let offset = self.offset.map(|offset| format!(" at offset {offset}")).unwrap_or_default();
        format!("{}{offset}", words.join(", "))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(segment) = self.segment else { return f.write_str(&self.what) };
        let place = self.place();
        let comma = if place.is_empty() { "" } else { ", " };
        write!(f, "segment {segment}{comma}{place}: {}", self.what)
    }
}

/// What a check of a chunk found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// The chunk.
    pub chunk: ChunkId,
    /// Segments looked at.
    pub segments: u64,
    /// Blocks decoded.
    pub blocks: u64,
    /// Rows in the segments.
    pub rows: u64,
    /// Encoded bytes verified.
    pub bytes: u64,
    /// Every commit up to this one is in the file.
    pub flushed_csn: Csn,
    /// Running hash over the commits up to it.
    pub chain: u128,
    /// What is wrong; nothing, one hopes.
    pub faults: Vec<Fault>,
}

/// How a file is looked at.
pub(super) struct Pace<'a> {
    /// Whether every block is decoded.
    pub(super) thorough: bool,
    /// Told of bytes as they are read; false ends the check early.
    pub(super) read: &'a mut dyn FnMut(u64) -> bool,
}

/// Verifies the file of a chunk. A fault that it finds is noted as every other.
pub(super) fn check(inner: &Inner, chunk: ChunkId, pace: Pace<'_>) -> Result<CheckReport, Error> {
    let mut report = CheckReport { chunk, ..CheckReport::default() };
    inner.files.forget_cached(chunk);
    match inner.file(chunk) {
        Ok(Some(file)) => check_file(inner, &file, (&mut report, pace))?,
        Ok(None) => {}
        Err(Error::Damaged { what, .. }) => {
            inner.note_damage(&Error::Damaged { chunk, what: what.clone() });
            report.faults.push(Fault::of_file(what));
        }
        Err(error) => return Err(error),
    }
    inner.counters.faults(report.faults.len());
    if let Some(fault) = report.faults.first() {
        let (count, what) = (report.faults.len(), fault.to_string());
        tracing::error!("chunk {chunk} has {count} faults, first: {what}");
        inner.replicas().mark_suspect(chunk, &what);
    }
    Ok(report)
}

fn check_file(
    inner: &Inner,
    file: &ChunkFile,
    (report, pace): (&mut CheckReport, Pace<'_>),
) -> Result<(), Error> {
    let (segments, manifest) = {
        // Under the lock, under which both change.
        let _replicas = inner.replicas();
        (file.segments(), file.manifest())
    };
    if inner.files.size(report.chunk)? == 0 {
        report.faults.push(Fault::of_file("its file is missing or empty".into()));
    }
    report.flushed_csn = manifest.flushed.csn;
    report.chain = manifest.flushed.chain;
    for segment in segments.iter() {
        let id = segment.key().segment;
        if segment.csn_range().1 > manifest.flushed.csn {
            let what = "it holds a commit that was not flushed".to_owned();
            report.faults.push(Fault::of_segment(id, what));
        }
        match file.header_bytes(segment) {
            Ok(bytes) => report.bytes += bytes,
            // A merge took its place meanwhile: its header is gone, though scans still read its extents.
            Err(Error::Damaged { .. }) if !file.has_segment(segment) => continue,
            Err(Error::Damaged { what, .. }) => report.faults.push(Fault::of_segment(id, what)),
            Err(error) => return Err(error),
        }
        for extent in 0..segment.extent_count() {
            let read = check_extent(file, segment, (extent, pace.thorough), report)?;
            report.bytes += read;
            if !(pace.read)(read) || report.faults.len() >= FAULTS_MAX {
                return Ok(());
            }
        }
        report.segments += 1;
        report.rows += segment.rows();
    }
    Ok(())
}

/// Verifies an extent; gives its bytes.
fn check_extent(
    file: &ChunkFile,
    segment: &Segment,
    (extent, thorough): (usize, bool),
    report: &mut CheckReport,
) -> Result<u64, Error> {
    let id = segment.key().segment;
    let whole =
        |what: &str| Fault { extent: Some(extent), ..Fault::of_segment(id, what.to_owned()) };
    let raw = match file.raw_extent(id, extent) {
        Ok(raw) => raw,
        Err(Error::Damaged { what, .. }) => {
            report.faults.push(whole(&what));
            return Ok(0);
        }
        Err(error) => return Err(error),
    };
    match raw {
        RawExtent::Whole(bytes) => {
            if thorough {
                report.blocks += blocks_of_extent(segment, extent).count() as u64;
                report.faults.extend(faults_of_extent(segment, extent, &bytes));
            }
            Ok(bytes.len() as u64)
        }
        RawExtent::Wrong(bytes) => {
            let faults = faults_of_extent(segment, extent, &bytes);
            if faults.is_empty() {
                report.faults.push(whole("its checksum does not match"));
            }
            report.faults.extend(faults);
            Ok(bytes.len() as u64)
        }
        RawExtent::Missing => {
            report.faults.push(whole("it is missing"));
            Ok(0)
        }
    }
}

/// Columns, by position, and blocks that lie in an extent; the commit numbers are the column after the last.
fn blocks_of_extent(
    segment: &Segment,
    extent: usize,
) -> impl Iterator<Item = (usize, usize, Place)> {
    let columns = segment.schema().fields().len();
    let all = (0..=columns).flat_map(|column| (0..segment.block_count()).map(move |b| (column, b)));
    all.filter_map(move |(column, block)| {
        let place = match column == columns {
            true => segment.csn_place(block),
            false => segment.place(block, column),
        };
        place.filter(|place| place.extent == extent).map(|place| (column, block, place))
    })
}

/// Decodes all blocks of an extent that may be wrong, and tells which are.
pub(super) fn faults_of_extent(segment: &Segment, extent: usize, bytes: &[u8]) -> Vec<Fault> {
    let columns = segment.schema().fields();
    let mut faults = Vec::new();
    for (column, block, place) in blocks_of_extent(segment, extent) {
        let name = columns.get(column).map(|field| field.name().clone());
        let decoded = match name {
            Some(_) => segment.decode(block, column, bytes).map(|_| ()),
            None => segment.decode_csns(block, bytes).map(|_| ()),
        };
        if let Err(error) = decoded {
            faults.push(Fault {
                segment: Some(segment.key().segment),
                column: name,
                block: Some(block),
                extent: Some(extent),
                offset: Some(place.offset),
                what: error.what().to_owned(),
            });
        }
    }
    faults
}
