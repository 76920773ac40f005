//! Properties that a history must have: each a pure function of the evidence, in a file of its own.
//!
//! The names are those of the specification of the proof. Not here: what C7 can see from outside is the
//! catalog of every access node.

mod acked;
mod atomic;
mod catalog;
mod clean;
mod conservation;
mod corruption;
mod coverage;
mod ddl;
mod derived;
pub(crate) mod evidence;
mod facts;
mod isolation;
mod keys;
mod liveness;
mod once;
mod phantom;
#[cfg(test)]
mod plant;
mod realtime;
mod registers;
mod replicas;
pub(crate) mod restore;
mod retention;
mod snapshot;
mod structure;
mod usage;

use serde::{Deserialize, Serialize};

use evidence::Evidence;
use facts::Facts;

/// Violations of one property that are told one by one; the others are counted.
const TOLD_MAX: usize = 20;

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Violation {
    /// What, with the numbers of what it concerns.
    pub(crate) what: String,
    /// Operations that show it.
    pub(crate) ops: Vec<u64>,
}

/// What a checker found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    /// `C1`.
    pub(crate) name: String,
    /// The property in a few words.
    pub(crate) about: String,
    /// Facts that were compared: with none of them nothing was shown.
    pub(crate) checked: u64,
    /// How many violations there are.
    pub(crate) found: u64,
    /// The first of them.
    pub(crate) violations: Vec<Violation>,
}

impl Verdict {
    fn new(name: &str, about: &str) -> Self {
        Self { name: name.to_owned(), about: about.to_owned(), ..Self::default() }
    }

    /// Counts one fact, and notes a violation when it does not hold.
    fn fact(&mut self, holds: bool, violation: impl FnOnce() -> Violation) {
        self.checked += 1;
        if !holds {
            self.violate(violation());
        }
    }

    fn violate(&mut self, violation: Violation) {
        self.found += 1;
        if self.violations.len() < TOLD_MAX {
            self.violations.push(violation);
        }
    }
}

/// A violation that these operations show.
fn violation(what: impl ToString, ops: &[u64]) -> Violation {
    Violation { what: what.to_string(), ops: ops.to_vec() }
}

/// Checks everything.
pub(crate) fn check(evidence: &Evidence) -> Vec<Verdict> {
    let facts = Facts::of(evidence);
    vec![
        acked::check(&facts),
        phantom::check(&facts),
        atomic::check(&facts),
        once::check(&facts),
        snapshot::check(&facts),
        realtime::check(evidence),
        catalog::check(evidence),
        replicas::check(evidence),
        derived::check(&facts),
        isolation::check(evidence),
        registers::check(evidence),
        keys::check(evidence),
        conservation::check(evidence),
        ddl::check(evidence),
        structure::check(evidence),
        liveness::check(evidence),
        clean::check(evidence),
        retention::check(&facts),
        corruption::check(evidence),
        restore::check(&facts),
        coverage::check(evidence),
    ]
}
