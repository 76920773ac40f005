//! What a run came to: `results.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    checker::{self, Verdict, evidence::Evidence},
    history::{Op, Outcome},
    nemesis::plan::{Class, Record, Status},
};

/// Time after a fault in which its outage is looked for, in microseconds.
const AFTERMATH_US: u64 = 10_000_000;

/// Faults of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FaultCount {
    /// Done.
    pub(crate) installed: u64,
    /// Done, and proved to have had an effect.
    pub(crate) effective: u64,
    /// Not done.
    pub(crate) skipped: u64,
    /// Done, or in part, or not: nobody knows.
    pub(crate) indeterminate: u64,
}

/// Operations by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OpCount {
    /// Acknowledged.
    pub(crate) ok: u64,
    /// Certainly without effect.
    pub(crate) fail: u64,
    /// Nobody knows.
    pub(crate) info: u64,
}

/// The longest times without an answer around each fault, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outages {
    /// Faults that are counted.
    pub(crate) faults: u64,
    /// Half are shorter.
    pub(crate) median_ms: u64,
    /// 99 of 100 are shorter.
    pub(crate) p99_ms: u64,
    /// The longest.
    pub(crate) max_ms: u64,
}

/// A violation, with the checker that found it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    /// `C1`.
    pub(crate) checker: String,
    /// What.
    pub(crate) what: String,
    /// Operations that show it.
    pub(crate) ops: Vec<u64>,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    /// Whether every property held and the run means something.
    pub(crate) valid: bool,
    /// The seed.
    pub(crate) seed: u64,
    /// The workload.
    pub(crate) workload: String,
    /// Where the nodes were: `namespaces`, or `loopback` and why.
    pub(crate) network: String,
    /// Seconds of load.
    pub(crate) seconds: u64,
    /// By kind of fault.
    pub(crate) faults: BTreeMap<String, FaultCount>,
    /// By outcome.
    pub(crate) operations: OpCount,
    /// The same by kind of operation.
    pub(crate) by_action: BTreeMap<String, OpCount>,
    /// Times without an acknowledged write, around faults of processes and networks.
    pub(crate) write_outages: Outages,
    /// Times without an answered read.
    pub(crate) read_outages: Outages,
    /// How many facts each checker compared.
    pub(crate) checked: BTreeMap<String, u64>,
    /// What must not be, the first of each checker.
    pub(crate) violations: Vec<Found>,
    /// How many there are by checker.
    pub(crate) violation_counts: BTreeMap<String, u64>,
    /// Lines of logs that speak of damage found.
    pub(crate) damage_lines: u64,
}

impl Results {
    /// Judges a run.
    pub(crate) fn of(evidence: &Evidence) -> Self {
        let verdicts = checker::check(evidence);
        let found = |verdict: &Verdict| {
            let checker = verdict.name.clone();
            let all = verdict.violations.iter();
            all.map(|violation| Found {
                checker: checker.clone(),
                what: violation.what.clone(),
                ops: violation.ops.clone(),
            })
            .collect::<Vec<Found>>()
        };
        let network = match evidence.closing.loopback.as_str() {
            "" => "namespaces".to_owned(),
            why => format!("loopback: {why}"),
        };
        Self {
            valid: verdicts.iter().all(|verdict| verdict.found == 0),
            seed: evidence.config.seed,
            workload: evidence.config.workload.clone(),
            network,
            seconds: evidence.config.seconds,
            faults: count_faults(&evidence.faults),
            operations: count(evidence.ops.iter()),
            by_action: by_action(&evidence.ops),
            write_outages: outages(evidence, true),
            read_outages: outages(evidence, false),
            checked: verdicts.iter().map(|v| (v.name.clone(), v.checked)).collect(),
            violations: verdicts.iter().flat_map(found).collect(),
            violation_counts: verdicts
                .iter()
                .filter(|verdict| verdict.found > 0)
                .map(|verdict| (verdict.name.clone(), verdict.found))
                .collect(),
            damage_lines: evidence.closing.damage_lines,
        }
    }
}

fn count_faults(records: &[Record]) -> BTreeMap<String, FaultCount> {
    let mut counts: BTreeMap<String, FaultCount> = BTreeMap::new();
    for record in records {
        let count = counts.entry(record.event.kind.name().to_owned()).or_default();
        match record.status {
            Status::Installed => count.installed += 1,
            Status::Skipped => count.skipped += 1,
            Status::Indeterminate => count.indeterminate += 1,
        }
        count.effective += u64::from(record.effective);
    }
    counts
}

fn count<'a>(ops: impl Iterator<Item = &'a Op>) -> OpCount {
    let mut count = OpCount::default();
    for op in ops {
        match op.outcome {
            Outcome::Ok => count.ok += 1,
            Outcome::Fail => count.fail += 1,
            Outcome::Info => count.info += 1,
        }
    }
    count
}

fn by_action(ops: &[Op]) -> BTreeMap<String, OpCount> {
    let mut names: Vec<&str> = ops.iter().map(|op| op.action.name()).collect();
    names.sort_unstable();
    names.dedup();
    let of = |name: &str| count(ops.iter().filter(|op| op.action.name() == name));
    names.into_iter().map(|name| (name.to_owned(), of(name))).collect()
}

/// The longest time between two answers in a row, around each fault of processes or networks.
fn outages(evidence: &Evidence, writes: bool) -> Outages {
    let wanted =
        |op: &&Op| op.outcome == Outcome::Ok && op.action.writes() == writes && !op.closing;
    let mut ends: Vec<u64> = evidence.ops.iter().filter(wanted).map(|op| op.end_us).collect();
    ends.sort_unstable();
    let mut gaps: Vec<u64> = Vec::new();
    let counted = |record: &&Record| {
        record.effective && matches!(record.event.kind.class(), Class::Process | Class::Network)
    };
    for record in evidence.faults.iter().filter(counted) {
        let end = (record.end_us + AFTERMATH_US).min(evidence.closing.stopped_us);
        let first = ends.partition_point(|at| *at < record.start_us).saturating_sub(1);
        let last = (ends.partition_point(|at| *at < end) + 1).min(ends.len());
        let around = ends.get(first..last).unwrap_or_default();
        let gap = around.iter().zip(around.iter().skip(1)).map(|(one, next)| next - one).max();
        gaps.extend(gap);
    }
    gaps.sort_unstable();
    let at = |percent: usize| {
        let place = (gaps.len().saturating_sub(1) * percent).div_ceil(100);
        gaps.get(place).copied().unwrap_or_default() / 1000
    };
    Outages { faults: gaps.len() as u64, median_ms: at(50), p99_ms: at(99), max_ms: at(100) }
}
