//! Reads segments back as rows with their commit numbers, block by block.

use std::{collections::BTreeMap, sync::Arc};

use arrow::array::{ArrayRef, RecordBatch};
use bytes::Bytes;
use hypertide_proto::ids::ChunkId;

use crate::{
    Error,
    segment::{Place, Segment},
    store::file::{ChunkFile, segment_error},
};

/// Reads blocks of a chunk's segments. The extents of the segment read last stay at hand.
#[derive(Debug)]
pub(super) struct Blocks<'a> {
    file: &'a ChunkFile,
    chunk: ChunkId,
    segment: u64,
    extents: BTreeMap<usize, Bytes>,
}

impl<'a> Blocks<'a> {
    pub(super) fn of(file: &'a ChunkFile, chunk: ChunkId) -> Self {
        Self { file, chunk, segment: 0, extents: BTreeMap::new() }
    }

    /// All columns of a block.
    pub(super) fn rows(&mut self, segment: &Segment, block: usize) -> Result<RecordBatch, Error> {
        let columns = 0..segment.schema().fields().len();
        let columns: Result<Vec<ArrayRef>, Error> =
            columns.map(|column| self.column(segment, block, column)).collect();
        RecordBatch::try_new(Arc::clone(segment.schema()), columns?)
            .map_err(|error| Error::Damaged { chunk: self.chunk, what: error.to_string() })
    }

    /// One column of a block.
    pub(super) fn column(
        &mut self,
        segment: &Segment,
        block: usize,
        column: usize,
    ) -> Result<ArrayRef, Error> {
        let place = segment.place(block, column);
        let extent = self.extent(segment, place)?;
        let array = segment.decode(block, column, &extent);
        array.map_err(|error| segment_error(self.chunk, error))
    }

    /// The commit numbers of a block.
    pub(super) fn csns(&mut self, segment: &Segment, block: usize) -> Result<Vec<u64>, Error> {
        let extent = self.extent(segment, segment.csn_place(block))?;
        let csns = segment.decode_csns(block, &extent);
        csns.map_err(|error| segment_error(self.chunk, error))
    }

    fn extent(&mut self, segment: &Segment, place: Option<Place>) -> Result<Bytes, Error> {
        let id = segment.key().segment;
        let place = place.ok_or_else(|| Error::Damaged {
            chunk: self.chunk,
            what: format!("segment {id} does not say where a block lies"),
        })?;
        if place.len == 0 {
            // A block of one value has no bytes, and lies nowhere.
            return Ok(Bytes::new());
        }
        if self.segment != id {
            self.extents.clear();
            self.segment = id;
        }
        if let Some(bytes) = self.extents.get(&place.extent) {
            return Ok(bytes.clone());
        }
        let bytes = self.file.read_extent(id, place.extent)?;
        self.extents.insert(place.extent, bytes.clone());
        Ok(bytes)
    }
}
