//! The history of the table of measurements, put in order: statements, readings and drops.

use std::collections::BTreeMap;

use super::evidence::Evidence;
use crate::{
    history::{Action, Answer, Filter, Op, Outcome, Path, numbers},
    workload::rows::{ROWS_MAX, Row},
};

/// A statement that writes rows, over all its attempts.
#[derive(Clone, Debug)]
pub(super) struct Write {
    /// Ok when any attempt was, else info when any was.
    pub(super) outcome: Outcome,
    /// When the first attempt was sent.
    pub(super) start_us: u64,
    /// When the first acknowledgement came.
    pub(super) acked_us: Option<u64>,
    /// Entry of the log that committed it, when that is known.
    pub(super) index: Option<u64>,
    /// Its rows.
    pub(super) rows: Vec<Row>,
    /// Its attempts.
    pub(super) ops: Vec<u64>,
    /// Whether each attempt was cut off in mid-stream and yet acknowledged.
    pub(super) acked_though_cut: bool,
}

/// An answered read of rows.
#[derive(Clone, Debug)]
pub(super) struct Reading<'a> {
    /// The operation.
    pub(super) op: &'a Op,
    /// What was asked.
    pub(super) filter: Filter,
    /// Up to where was read.
    pub(super) at: Option<u64>,
    /// Numbers of the rows, ascending.
    pub(super) uids: Vec<u64>,
    /// Numbers that came more than once.
    pub(super) twice: &'a [u64],
    /// Rows that nobody wrote.
    pub(super) odd: &'a [String],
}

impl Reading<'_> {
    /// Whether the row was there.
    pub(super) fn has(&self, uid: u64) -> bool {
        self.uids.binary_search(&uid).is_ok()
    }
}

/// A drop of old chunks that did or may have taken effect.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retire {
    /// The operation.
    pub(super) op: u64,
    /// Whether it was acknowledged and its place is known, or it had nothing to drop.
    pub(super) acked: bool,
    /// Entry of the log, when it is known; there is none when there was nothing to drop.
    pub(super) index: Option<u64>,
    /// Rows before this time.
    pub(super) before_us: i64,
    /// When it began.
    pub(super) start_us: u64,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    /// The evidence.
    pub(super) evidence: &'a Evidence,
    /// Statements by number.
    pub(super) writes: BTreeMap<u64, Write>,
    /// Answered reads.
    pub(super) reads: Vec<Reading<'a>>,
    /// Drops.
    pub(super) retires: Vec<Retire>,
    /// Rows before this time may have been dropped.
    pub(super) retired_us: i64,
    /// All rows that anyone tried to write, by time.
    by_time: Vec<(i64, Row)>,
}

impl<'a> Facts<'a> {
    /// The facts of a history.
    pub(super) fn of(evidence: &'a Evidence) -> Self {
        let mut facts = Self {
            evidence,
            writes: BTreeMap::new(),
            reads: Vec::new(),
            retires: Vec::new(),
            retired_us: i64::MIN,
            by_time: Vec::new(),
        };
        for op in &evidence.ops {
            facts.take(op);
        }
        let rows = facts.writes.values().flat_map(|write| &write.rows);
        facts.by_time = rows.map(|row| (row.time_us, *row)).collect();
        facts.by_time.sort_unstable_by_key(|(time, row)| (*time, row.uid));
        facts
    }

    fn take(&mut self, op: &'a Op) {
        match &op.action {
            Action::Insert { wid, path, .. } => self.take_write(op, *wid, *path),
            Action::Read(filter) | Action::Paged(filter) => {
                if let Answer::Rows { at, uids, twice, odd } = &op.answer {
                    let uids = numbers(uids).collect();
                    let reading = Reading { op, filter: *filter, at: *at, uids, twice, odd };
                    self.reads.push(reading);
                }
            }
            Action::Retire { before_us } if op.outcome != Outcome::Fail => {
                let (index, dropped) = match op.answer {
                    Answer::Written { index, rows } => (index, rows > 0),
                    _ => (None, true),
                };
                let acked = op.outcome == Outcome::Ok && (index.is_some() || !dropped);
                let (before_us, start_us) = (*before_us, op.start_us);
                self.retires.push(Retire { op: op.id, acked, index, before_us, start_us });
                self.retired_us = self.retired_us.max(before_us);
            }
            _ => {}
        }
    }

    fn take_write(&mut self, op: &Op, wid: u64, path: Path) {
        let source = self.evidence.config.source();
        let write = self.writes.entry(wid).or_insert_with(|| Write {
            outcome: Outcome::Fail,
            start_us: op.start_us,
            acked_us: None,
            index: None,
            rows: source.rows(wid),
            ops: Vec::new(),
            acked_though_cut: false,
        });
        write.ops.push(op.id);
        write.start_us = write.start_us.min(op.start_us);
        write.acked_though_cut |= op.state == "acked";
        match (op.outcome, write.outcome) {
            (Outcome::Ok, _) => {
                write.outcome = Outcome::Ok;
                write.acked_us = Some(write.acked_us.unwrap_or(op.end_us).min(op.end_us));
                if let Answer::Written { index: Some(index), .. } = op.answer {
                    write.index = Some(index);
                }
            }
            (Outcome::Info, Outcome::Fail) => write.outcome = Outcome::Info,
            _ => {}
        }
        // A stream that the client broke off writes half of its rows at most: any of them is one too many.
        debug_assert!(!matches!(path, Path::CopyCut) || op.outcome != Outcome::Ok);
    }

    /// Rows that someone tried to write and that satisfy a filter.
    pub(super) fn matching(&self, filter: &Filter) -> Vec<Row> {
        if let Some(wid) = filter.wid {
            let rows = self.writes.get(&wid).map(|write| write.rows.as_slice());
            let rows = rows.unwrap_or_default().iter();
            return rows.filter(|row| filter.matches(row)).copied().collect();
        }
        let start =
            filter.from_us.map_or(0, |from| self.by_time.partition_point(|(time, _)| *time < from));
        let end = filter
            .to_us
            .map_or(self.by_time.len(), |to| self.by_time.partition_point(|(time, _)| *time < to));
        let rows = self.by_time.get(start..end).unwrap_or_default().iter().map(|(_, row)| *row);
        rows.filter(|row| filter.matches(row)).collect()
    }

    /// The statement of a row.
    pub(super) fn write_of(&self, uid: u64) -> Option<&Write> {
        self.writes.get(&(uid / ROWS_MAX))
    }

    /// Whether a row may have been dropped with its chunk.
    pub(super) const fn may_be_retired(&self, row: &Row) -> bool {
        row.time_us < self.retired_us
    }
}
