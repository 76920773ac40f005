//! The part of C16 about what nodes use: memory stays under a limit and does not go on growing, and what was opened for
//! the load is closed when it is over.
//!
//! - Resident memory of a process is never more than what the configuration gives to queries and [`OTHER_MIB`].
//! - A process that runs long enough undisturbed does not go on growing by more than [`GROWTH_MIB_MAX`] a minute once it is
//!   warm: the medians of the quarters of that time are compared, and a step from one quarter to the next, such as a
//!   snapshot of the catalog makes, is none that goes on.
//! - When nobody asks any more, a process has at most [`FILES_MORE_MAX`] descriptors more than the node had at the
//!   beginning, beside one for the file of each chunk that it holds.

use std::collections::BTreeMap;

use super::{
    Verdict,
    evidence::{Evidence, Usage},
    violation,
};
use crate::config::MEMORY_MIB;

/// Memory beside that for queries, in MiB: the program, caches, rows that are not in files yet.
const OTHER_MIB: u64 = 256;
/// Growth of a warm process from each quarter of its time to the next, in MiB a minute.
const GROWTH_MIB_MAX: f64 = 4.0;
/// Time that a process takes to get warm.
const WARM_SECONDS: u64 = 120;
/// Least time of a warm process from which anything follows.
const STEADY_SECONDS_MIN: u64 = 180;
/// Descriptors more than at the beginning.
const FILES_MORE_MAX: u64 = 16;
/// Samples of which the beginning is the least.
const FIRST_SAMPLES: usize = 3;

pub(super) fn check(evidence: &Evidence, verdict: &mut Verdict) {
    let mut by_node: BTreeMap<&str, Vec<&Usage>> = BTreeMap::new();
    for usage in &evidence.usage {
        by_node.entry(&usage.node).or_default().push(usage);
    }
    for (node, samples) in by_node {
        resident(node, &samples, verdict);
        let load = samples.iter().filter(|sample| sample.at_us <= evidence.closing.stopped_us);
        let load: Vec<&Usage> = load.copied().collect();
        for process in load.chunk_by(|one, next| one.pid == next.pid) {
            growth(node, process, verdict);
        }
        files(evidence, (node, &samples), verdict);
    }
}

fn resident(node: &str, samples: &[&Usage], verdict: &mut Verdict) {
    let limit = MEMORY_MIB + OTHER_MIB;
    let most = samples.iter().map(|sample| sample.rss_kib).max().unwrap_or_default() / 1024;
    verdict.fact(most <= limit, || {
        violation(format_args!("{node} had {most} MiB of memory, the limit is {limit}"), &[])
    });
}

fn growth(node: &str, process: &[&Usage], verdict: &mut Verdict) {
    let Some(start) = process.first().map(|sample| sample.at_us + WARM_SECONDS * 1_000_000) else {
        return;
    };
    let warm: Vec<&Usage> =
        process.iter().filter(|sample| sample.at_us >= start).copied().collect();
    let (Some(first), Some(last)) = (warm.first(), warm.last()) else { return };
    let seconds = (last.at_us - first.at_us) / 1_000_000;
    if seconds < STEADY_SECONDS_MIN {
        return;
    }
    let quarter = |number: u64| {
        let at = |edge: u64| first.at_us + (last.at_us - first.at_us) * edge / 4;
        let within = |sample: &&&Usage| (at(number)..=at(number + 1)).contains(&sample.at_us);
        median(warm.iter().filter(within).map(|sample| sample.rss_kib).collect())
    };
    let medians = [0, 1, 2, 3].map(quarter);
    let minutes = seconds as f64 / 4.0 / 60.0;
    let grown = medians.array_windows().map(|[before, after]| *after as f64 - *before as f64);
    let least = grown.fold(f64::INFINITY, f64::min) / 1024.0 / minutes;
    verdict.fact(least <= GROWTH_MIB_MAX, || {
        let what = format!(
            "{node} went on growing by {least:.1} MiB a minute or more for {seconds} s, from {} to {} MiB",
            medians[0] / 1024,
            medians[3] / 1024
        );
        violation(what, &[])
    });
}

fn files(evidence: &Evidence, (node, samples): (&str, &[&Usage]), verdict: &mut Verdict) {
    let Some(idle_us) = evidence.closing.idle_us else { return };
    let first = samples.iter().take(FIRST_SAMPLES).map(|sample| sample.files).min();
    let idle = samples.iter().filter(|sample| sample.at_us >= idle_us);
    let idle: Vec<u64> = idle.map(|sample| sample.files).collect();
    let (Some(first), false) = (first, idle.is_empty()) else { return };
    let end = median(idle);
    let replicas = evidence.closing.replicas.iter();
    let held = replicas.filter(|replica| replica.node == node).count() as u64;
    let limit = first + held + FILES_MORE_MAX;
    verdict.fact(end <= limit, || {
        let what = format!(
            "{node} has {end} descriptors when all is over, {first} at the beginning, {held} chunks"
        );
        violation(what, &[])
    });
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{evidence::Replica, plant::Plant},
        *,
    };

    const MIB: u64 = 1024;

    /// Ten minutes of one node of which `of` tells the process, the memory in KiB and the descriptors at a second.
    fn plant(of: impl Fn(u64) -> (u64, u64, u64)) -> Plant {
        let mut plant = Plant::default();
        plant.evidence.closing.stopped_us = 600_000_000;
        plant.evidence.closing.idle_us = Some(610_000_000);
        plant.evidence.usage = (0..620)
            .map(|second| {
                let (pid, rss_kib, files) = of(second);
                Usage { node: "d1".into(), at_us: second * 1_000_000, pid, rss_kib, files }
            })
            .collect();
        plant
    }

    #[test]
    fn a_node_that_uses_little_is_good() {
        // It gets warm quickly, and has more open while it is asked.
        let memory = |second: u64| (100 + second.min(100)) * MIB;
        let plant = plant(|second| (1, memory(second), if second < 605 { 90 } else { 30 }));
        let verdict = plant.verdict("C16");
        assert_eq!((verdict.found, verdict.checked), (0, 3 + 1), "and one of quiet times");
    }

    #[test]
    fn too_much_memory_is_found() {
        let plant = plant(|second| (1, if second == 300 { 513 * MIB } else { 100 * MIB }, 20));
        assert_eq!(plant.verdict("C16").found, 1);
    }

    #[test]
    fn memory_that_grows_is_found_unless_the_process_ends_in_time() {
        let leak = |second: u64| 100 * MIB + second * MIB / 8;
        assert_eq!(plant(|second| (1, leak(second), 20)).verdict("C16").found, 1);
        let slow = |second: u64| 100 * MIB + second * MIB / 20;
        assert_eq!(plant(|second| (1, slow(second), 20)).verdict("C16").found, 0);
        let step = |second: u64| if second < 350 { 100 * MIB } else { 200 * MIB };
        assert_eq!(plant(|second| (1, step(second), 20)).verdict("C16").found, 0);
        // Of processes of four minutes nothing follows.
        let often = |second: u64| (second / 240, leak(second % 240), 20);
        assert_eq!(plant(often).verdict("C16").found, 0);
    }

    #[test]
    fn descriptors_that_stay_open_are_found_and_chunks_may_have_theirs() {
        let mut plant = plant(|second| (1, 100 * MIB, 20 + second / 10));
        plant.evidence.closing.replicas = (0..46)
            .map(|chunk| Replica { chunk, node: "d1".into(), ..Replica::default() })
            .collect();
        assert_eq!(plant.verdict("C16").found, 0);
        plant.evidence.closing.replicas.truncate(40);
        assert_eq!(plant.verdict("C16").found, 1);
        // The chunks of others are no excuse.
        for replica in &mut plant.evidence.closing.replicas {
            replica.node = "d2".into();
        }
        assert_eq!(plant.verdict("C16").found, 1);
        plant.evidence.closing.idle_us = None;
        assert_eq!(plant.verdict("C16").found, 0, "nobody knows");
    }
}
