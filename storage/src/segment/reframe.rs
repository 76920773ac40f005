//! Gives a segment another name: what a copy of it in another file needs, without decoding a value.
//!
//! Only the frames change, not what lies in them nor where. Every frame is verified on the way, and an extent must
//! consist of the blocks that the header names and of nothing else: what comes from another node is not believed.

use std::collections::BTreeMap;

use super::{
    Place, Segment, SegmentError, SegmentKey,
    frame::{self, Address, Fault},
};

/// A segment on its way to another name.
#[derive(Debug)]
pub(crate) struct Reframe {
    segment: Segment,
    to: SegmentKey,
    /// The blocks of each extent, in order of their offsets, by column and number.
    blocks: BTreeMap<usize, Vec<(Place, usize, usize)>>,
}

impl Reframe {
    /// Opens the header that came under the name `from`.
    pub(crate) fn open(
        from: SegmentKey,
        to: SegmentKey,
        header: &[u8],
    ) -> Result<Self, SegmentError> {
        let segment = Segment::open(from, header)?;
        let mut blocks: BTreeMap<usize, Vec<(Place, usize, usize)>> = BTreeMap::new();
        for (column, entries) in segment.header().columns.iter().enumerate() {
            // A block of one value has no bytes: the header says it all.
            let stored = entries.iter().enumerate().filter(|(_, entry)| entry.place.len > 0);
            for (block, entry) in stored {
                blocks.entry(entry.place.extent).or_default().push((entry.place, column, block));
            }
        }
        blocks.values_mut().for_each(|blocks| blocks.sort_unstable());
        Ok(Self { segment, to, blocks })
    }

    /// The segment under its old name.
    pub(crate) fn segment(&self) -> &Segment {
        &self.segment
    }

    /// The header under the new name.
    pub(crate) fn header(&self) -> Result<Vec<u8>, SegmentError> {
        self.segment.header().to_bytes(self.to)
    }

    /// An extent under the new name.
    pub(crate) fn extent(&self, extent: usize, bytes: &[u8]) -> Result<Vec<u8>, SegmentError> {
        self.rewrite(extent, bytes).map_err(|fault| {
            let place = format!("extent {extent} of {} bytes", bytes.len());
            fault.at(self.segment.key(), place)
        })
    }

    fn rewrite(&self, extent: usize, bytes: &[u8]) -> Result<Vec<u8>, Fault> {
        let damaged = |what: &str| Fault::Damaged(what.to_owned());
        let blocks = self.blocks.get(&extent).map(Vec::as_slice).unwrap_or_default();
        let mut out = Vec::with_capacity(bytes.len());
        for (place, column, block) in blocks {
            if place.offset != out.len() {
                return Err(damaged("the blocks of the extent do not follow each other"));
            }
            let frame = bytes.get(place.offset..).and_then(|rest| rest.get(..place.len));
            let frame = frame.ok_or_else(|| damaged("the extent ends early"))?;
            let old = Address::block(self.segment.key(), *column, *block);
            let (shape, body) = frame::unwrap(old, frame)?;
            out.extend(frame::wrap(Address::block(self.to, *column, *block), &shape, body));
        }
        if out.len() == bytes.len() { Ok(out) } else { Err(damaged("the extent ends late")) }
    }
}

impl Segment {
    /// The header in its frame, as it was opened.
    pub(crate) fn header_bytes(&self) -> Result<Vec<u8>, SegmentError> {
        self.header().to_bytes(self.key())
    }

    /// Bytes of all extents.
    pub(crate) fn encoded_bytes(&self) -> u64 {
        self.header().extent_bytes.iter().sum()
    }
}
