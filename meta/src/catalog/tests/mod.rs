//! Tests of the catalog as a whole: scripts ([`script`] and [`replicas`]), laws over random commands ([`laws`]), the catalog made anew ([`rebuild`]), and catalogs that
//! [`Catalog::check`] must refuse ([`broken`]).

mod alter;
mod broken;
mod laws;
mod rebuild;
mod replicas;
mod script;

use std::collections::BTreeMap;

use hypertide_proto::ids::Csn;

use super::{Catalog, Changes, Command, Outcome, Reject};

/// A catalog with its durable rows, kept as a state machine keeps them: only changed rows are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Kept {
    catalog: Catalog,
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    csn: Csn,
    at_ms: u64,
}

impl Kept {
    /// Turns the clocks of all access nodes, who then agree on the time however far it jumps.
    fn turn_clocks(&mut self, at_ms: u64) {
        self.at_ms = at_ms;
        let nodes: Vec<_> = self.catalog.access_nodes().map(|node| node.id).collect();
        for access in nodes {
            let mut changes = Changes::default();
            let command = Command::AdvanceTime { access, at_ms };
            let answer = self.catalog.apply(&command, self.csn, at_ms, &mut changes);
            assert_eq!(answer, Ok(Outcome::Done));
            self.write(&changes);
        }
    }

    /// Applies a command at the next commit number, and asserts every invariant and the durable form.
    fn apply(&mut self, command: &Command) -> Result<Outcome, Reject> {
        let before = self.catalog.clone();
        let mut changes = Changes::default();
        self.csn = self.csn.next();
        let answer = self.catalog.apply(command, self.csn, self.at_ms, &mut changes);
        if answer.is_err() {
            assert_eq!(self.catalog, before, "a reject of {command} changed the catalog");
            assert!(changes.is_empty(), "a reject of {command} changed rows");
        }
        self.write(&changes);
        self.assert_sound(command);
        answer
    }

    fn write(&mut self, changes: &Changes) {
        for key in changes.keys() {
            match self.catalog.row(key) {
                Some(value) => drop(self.rows.insert(key.to_bytes(), value)),
                None => drop(self.rows.remove(&key.to_bytes())),
            }
        }
    }

    fn assert_sound(&self, after: &Command) {
        self.catalog.check().unwrap_or_else(|broken| panic!("after {after}: {broken}"));
        let restored = Catalog::from_rows(&self.rows).unwrap();
        assert_eq!(restored, self.catalog, "after {after}: restored from its rows");
        // An unborn catalog has a row of counters that no command has written.
        if !self.rows.is_empty() {
            assert!(self.catalog.rows().eq(self.rows.clone()), "after {after}: rows in order");
        }
    }
}
