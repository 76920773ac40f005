//! Histories made by hand, for showing that each checker finds what it should.

use super::{
    Verdict, check,
    evidence::{Closing, Evidence},
};
use crate::{
    config::Config,
    history::{Action, Answer, Filter, Op, Outcome, Path, runs},
    workload::rows::Times,
};

/// A history in the making.
#[derive(Clone, Debug)]
pub(super) struct Plant {
    pub(super) evidence: Evidence,
}

impl Default for Plant {
    fn default() -> Self {
        let config = Config {
            workload: "insert".into(),
            faults: Vec::new(),
            seed: 7,
            seconds: 10,
            access: 3,
            data: 3,
            clients: 2,
            pause_ms: 10,
            slack: 1.0,
            binary: String::new(),
            version: String::new(),
            times: Times::Spread,
            planted: None,
            loopback: false,
            backup: false,
            rate: 1.0,
        };
        let closing = Closing { restored_us: Some(0), ..Closing::default() };
        Self {
            evidence: Evidence {
                config,
                ops: Vec::new(),
                faults: Vec::new(),
                closing,
                usage: Vec::new(),
            },
        }
    }
}

impl Plant {
    /// Adds an operation and gives its number.
    pub(super) fn op(
        &mut self,
        (start_us, end_us): (u64, u64),
        action: Action,
        outcome: Outcome,
        answer: Answer,
    ) -> u64 {
        let id = self.evidence.ops.len() as u64;
        self.evidence.ops.push(Op {
            id,
            process: id,
            node: "a1".into(),
            start_us,
            end_us,
            action,
            outcome,
            answer,
            state: String::new(),
            message: String::new(),
            closing: false,
        });
        id
    }

    /// An acknowledged statement.
    pub(super) fn insert(&mut self, wid: u64, start: u64, end: u64) -> u64 {
        self.insert_at(wid, (start, end), None)
    }

    /// An acknowledged statement with its place in the log.
    pub(super) fn insert_at(&mut self, wid: u64, times: (u64, u64), index: Option<u64>) -> u64 {
        let rows = self.evidence.config.source().rows(wid).len() as u64;
        let action = Action::Insert { wid, path: Path::Text, named: false };
        self.op(times, action, Outcome::Ok, Answer::Written { index, rows })
    }

    /// A statement that nobody knows the outcome of.
    pub(super) fn unknown_insert(&mut self, wid: u64, start: u64, end: u64) -> u64 {
        let action = Action::Insert { wid, path: Path::Text, named: false };
        self.op((start, end), action, Outcome::Info, Answer::Nothing)
    }

    /// A statement that certainly did not take effect.
    pub(super) fn failed_insert(&mut self, wid: u64, start: u64, end: u64) -> u64 {
        let action = Action::Insert { wid, path: Path::Text, named: false };
        self.op((start, end), action, Outcome::Fail, Answer::Nothing)
    }

    /// Numbers of a statement's rows.
    pub(super) fn uids(&self, wid: u64) -> Vec<u64> {
        self.evidence.config.source().rows(wid).iter().map(|row| row.uid).collect()
    }

    /// A read of one statement's rows that finds what `seen` makes of them.
    pub(super) fn read_of(
        &mut self,
        wid: u64,
        start: u64,
        end: u64,
        seen: impl Fn(&[u64]) -> Vec<u64>,
    ) -> u64 {
        let uids = seen(&self.uids(wid));
        let filter = Filter { wid: Some(wid), ..Filter::default() };
        self.read((start, end), filter, None, &uids)
    }

    /// A read of everything.
    pub(super) fn read_all(&mut self, start: u64, end: u64, uids: &[u64]) -> u64 {
        self.read((start, end), Filter::default(), None, uids)
    }

    /// Any read.
    pub(super) fn read(
        &mut self,
        times: (u64, u64),
        filter: Filter,
        at: Option<u64>,
        uids: &[u64],
    ) -> u64 {
        let answer = Answer::Rows { at, uids: runs(uids), twice: Vec::new(), odd: Vec::new() };
        self.op(times, Action::Read(filter), Outcome::Ok, answer)
    }

    /// What one checker says of it.
    pub(super) fn verdict(&self, name: &str) -> Verdict {
        let verdicts = check(&self.evidence);
        verdicts.into_iter().find(|verdict| verdict.name == name).expect("there is such a checker")
    }
}
