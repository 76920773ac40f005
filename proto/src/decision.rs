//! What the log decided about a transaction, as data nodes learn it.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::ids::{ChunkId, Csn, TxnId};

/// The place of a commit in the sequence of one chunk's commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkLink {
    /// The chunk.
    pub chunk: ChunkId,
    /// The chunk's commit before this one, zero when there was none. Lets a replica see a gap.
    pub prev: Csn,
}

/// How a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// It never took effect and never will.
    Aborted,
    /// It took effect at `csn`.
    Committed {
        /// Its commit number.
        csn: Csn,
        /// Its chunks, in order of their ids.
        links: Vec<ChunkLink>,
    },
}

/// A transaction and how it ended. Final: no transaction is ever decided twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The transaction.
    pub txn: TxnId,
    /// How it ended.
    pub fate: Fate,
}

/// The running hash over a chunk's commits after one more, of a part with this hash.
///
/// The catalog and every replica compute it, so that equal chains mean the same batches in the same order: xxh3-128
/// over the three numbers, each in little-endian bytes. A chain begins at zero.
#[must_use]
pub fn chain_after(chain: u128, csn: Csn, hash: u128) -> u128 {
    let mut bytes = [0; 40];
    let (head, tail) = bytes.split_at_mut(16);
    head.copy_from_slice(&chain.to_le_bytes());
    let (middle, tail) = tail.split_at_mut(8);
    middle.copy_from_slice(&csn.0.to_le_bytes());
    tail.copy_from_slice(&hash.to_le_bytes());
    xxh3_128(&bytes)
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.fate {
            Fate::Aborted => write!(f, "{} aborted", self.txn),
            Fate::Committed { csn, links } => {
                write!(f, "{} committed csn={csn}", self.txn)?;
                links.iter().try_for_each(|link| write!(f, " {}<-{}", link.chunk, link.prev))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_is_pinned_and_tells_order() {
        // Replicas on disk hold chains: if this fails, restore the hash.
        let first = chain_after(0, Csn(1), 7);
        assert_eq!(format!("{first:032x}"), "47027d66401132ea120933b83e5d3a4b");
        let (ab, ba) = (
            chain_after(chain_after(0, Csn(1), 7), Csn(2), 8),
            chain_after(chain_after(0, Csn(1), 8), Csn(2), 7),
        );
        assert_ne!(ab, ba);
    }
}
