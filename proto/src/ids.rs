//! Names of things, each a type of its own, so that one cannot stand where another is meant.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Declares identifiers around a `u64`, with the letter that `Display` puts before the number.
macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident, $letter:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($letter, "{}"), self.0)
            }
        }

        impl $name {
            /// The one after this.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }
    )*};
}

ids! {
    /// A table: a hypertable or a reference table. Never reused.
    TableId, "t";
    /// A dimension of a hypertable. Never reused.
    DimensionId, "dim";
    /// A chunk. Never reused.
    ChunkId, "c";
    /// A data node. Never reused.
    NodeId, "n";
    /// An access node, as given by `--id`; also its Raft id.
    AccessId, "a";
    /// A policy that runs again and again; never reused.
    JobId, "j";
    /// The n-th start of an access node; a later boot fences the transactions of an earlier one.
    Boot, "b";
    /// The number of a data node's disk; a new, wiped or suspect disk has a new one.
    Incarnation, "i";
    /// A chunk's fencing number, one more at every removal and every start of a join.
    Epoch, "e";
    /// The n-th chunk of one and the same box.
    Generation, "g";
    /// Commit number: the position of a commit record in the Raft log. Zero is before every commit.
    Csn, "";
}

impl Csn {
    const POSITION_BITS: u32 = 16;
    /// Most commands that one Raft entry may hold, so that positions fit their bits.
    pub const POSITION_MAX: u64 = (1 << Self::POSITION_BITS) - 1;

    /// The commit number of the `position`-th command of the entry at `index`.
    #[must_use]
    pub const fn at(index: u64, position: u64) -> Self {
        assert!(position <= Self::POSITION_MAX);
        Self(index << Self::POSITION_BITS | position)
    }

    /// The snapshot that sees everything up to and with the entry at `index`.
    #[must_use]
    pub const fn snapshot(index: u64) -> Self {
        Self::at(index, Self::POSITION_MAX)
    }

    /// The Raft index this commit number lies in.
    #[must_use]
    pub const fn index(self) -> u64 {
        self.0 >> Self::POSITION_BITS
    }
}

/// A data node's disk. Acknowledgements name it, so that a disk that came back empty cannot speak for the old one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Rid {
    /// The node.
    pub node: NodeId,
    /// Which disk of that node.
    pub incarnation: Incarnation,
}

impl fmt::Display for Rid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.node, self.incarnation)
    }
}

/// A transaction. Unique for ever, because a boot is never given twice.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct TxnId {
    /// The access node that coordinates it.
    pub access: AccessId,
    /// The boot of that access node.
    pub boot: Boot,
    /// Counter within the boot.
    pub seq: u64,
}

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}s{}", self.access, self.boot, self.seq)
    }
}

/// Declares identifiers of sixteen random bytes, shown as hexadecimal digits.
macro_rules! uuids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl $name {
            /// The identifier in `bytes`, or `None` when they are not sixteen.
            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }
    )*};
}

uuids! {
    /// A cluster, drawn once by `hypertide init`.
    ClusterId;
    /// A data node's disk, drawn when its directory is made.
    DiskId;
    /// Names a write for ever: the same write sent again is applied once.
    WriteId;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csn_orders_by_index_then_position() {
        assert!(Csn::at(1, 7) < Csn::at(2, 0));
        assert!(Csn::at(2, 0) < Csn::at(2, 1));
        assert!(Csn::snapshot(2) >= Csn::at(2, Csn::POSITION_MAX));
        assert!(Csn::snapshot(2) < Csn::at(3, 0));
        assert_eq!(Csn::at(5, 9).index(), 5);
    }

    #[test]
    fn names_are_short() {
        let txn = TxnId { access: AccessId(1), boot: Boot(2), seq: 3 };
        assert_eq!(txn.to_string(), "a1b2s3");
        let rid = Rid { node: NodeId(4), incarnation: Incarnation(1) };
        assert_eq!(rid.to_string(), "n4i1");
        assert_eq!(ClusterId([0xab; 16]).to_string(), "ab".repeat(16));
        assert_eq!(WriteId::from_slice(&[1, 2]), None);
    }
}
