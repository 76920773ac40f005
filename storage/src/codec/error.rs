//! What can be wrong with encoded values.

/// Why encoded values cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CodecError {
    /// The bytes end early.
    #[error("the bytes end early")]
    Short,
    /// A number that a newer version gave a meaning to.
    #[error("{what} {id} is not known to this version")]
    Unknown {
        /// What it numbers.
        what: &'static str,
        /// The number.
        id: u8,
    },
    /// The bytes contradict themselves.
    #[error("{0}")]
    Wrong(&'static str),
}
