//! Decided transactions and write ids.

use std::{collections::BTreeMap, fmt};

use hypertide_proto::{
    decision::{Decision, Fate},
    ids::{Csn, Rid, TxnId},
};
use serde::{Deserialize, Serialize};

use super::Catalog;

/// What was decided about a transaction, kept until every replica has it durably.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// How it ended.
    pub fate: Fate,
    /// When: milliseconds of log time.
    pub at_ms: u64,
}

/// A write id that was applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// Its commit.
    pub csn: Csn,
    /// Rows it wrote.
    pub rows: u64,
    /// Hash of what it wrote.
    pub hash: u128,
    /// When: milliseconds of log time.
    pub at_ms: u64,
}

/// How far the replicas of a chunk have its commits durably.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// The last report of each member, and of those that left complete; one without a report has nothing.
    pub applied: BTreeMap<Rid, Csn>,
    /// Each of them had every commit up to this one. Never less than before, even when a member joins with less: it
    /// takes what came before from another replica, committed, and asks for no decision about it.
    pub floor: Csn,
}

impl fmt::Display for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tail floor={}", self.floor)?;
        self.applied.iter().try_for_each(|(rid, csn)| write!(f, " {rid}={csn}"))
    }
}

impl Catalog {
    /// How a transaction ended; `None` while it may still be committed.
    ///
    /// A transaction without a decision of its own is as good as aborted once it is closed, since no commit of it is
    /// accepted any more. That answers truly a replica that holds a pending batch of it: had the transaction
    /// been committed and forgotten since, every member of its chunks, and every replica that may be one again without a
    /// copy, would have reported the commit durable before, and would hold the batch as committed, not as pending.
    ///
    /// NOTE: a replica that left its chunk and missed commits may hold such a batch as pending, and lose it by the answer.
    /// It gets the commit back with all the others it lacks when it joins: its own place in the chunk's commits is
    /// before this one, since places are taken in order.
    #[must_use]
    pub fn fate(&self, txn: TxnId) -> Option<Decision> {
        if let Some(decided) = self.decided.get(&txn) {
            return Some(Decision { txn, fate: decided.fate.clone() });
        }
        (self.fenced(txn) || self.has_ended(txn)).then_some(Decision { txn, fate: Fate::Aborted })
    }

    /// Whether the access node started again since the transaction began.
    pub(crate) fn fenced(&self, txn: TxnId) -> bool {
        self.access_nodes.get(&txn.access).is_some_and(|node| txn.boot < node.boot)
    }

    /// Whether the transaction is of a boot that runs now.
    pub(crate) fn live(&self, txn: TxnId) -> bool {
        self.access_nodes.get(&txn.access).is_some_and(|node| txn.boot == node.boot)
    }
}
