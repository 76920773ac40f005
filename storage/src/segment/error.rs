//! What can be wrong with a segment.

/// Why a segment cannot be written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// Stored bytes are not what was written.
    #[error("segment {segment}, {place}: {what}")]
    Damaged {
        /// Number of the segment in its file.
        segment: u64,
        /// The header, or column, block, extent and offset.
        place: String,
        /// What is wrong there.
        what: String,
    },
    /// The bytes are whole, but of a version or an encoding that this program does not know.
    #[error("segment {segment}, {place}: {what}")]
    Unsupported {
        /// Number of the segment in its file.
        segment: u64,
        /// The header, or column, block, extent and offset.
        place: String,
        /// What is not known.
        what: String,
    },
    /// The rows cannot be written as a segment.
    #[error("{0}")]
    Invalid(String),
    /// The caller asked for a block or a column that the segment does not have.
    #[error("segment {segment} has no block {block} of column {column}")]
    Missing {
        /// Number of the segment in its file.
        segment: u64,
        /// The block asked for.
        block: usize,
        /// The column asked for.
        column: usize,
    },
}

impl SegmentError {
    /// What is wrong, without where.
    pub(crate) fn what(&self) -> &str {
        match self {
            Self::Damaged { what, .. } | Self::Unsupported { what, .. } | Self::Invalid(what) => {
                what
            }
            Self::Missing { .. } => "the segment has no such block",
        }
    }
}
