//! Copies under way and done, as the leader remembers them: what a plan must leave alone, and what operators see.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use hypertide_proto::{
    ids::{ChunkId, NodeId, Rid},
    wire::meta::{RebalanceStatus, Transfer},
};

use super::plan::Reason;

/// Pause after a first failure, doubled with each further one.
const RETRY_PAUSE_MIN: Duration = Duration::from_secs(1);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Pause after a rewrite, until what its node reports is new.
const REPORT_PAUSE: Duration = Duration::from_secs(3);
/// Pause after a rewrite that failed.
const REWRITE_RETRY_PAUSE: Duration = Duration::from_secs(30);
/// Copies that are done and still shown.
const DONE_SHOWN: usize = 32;

/// What a copy is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The bulk is copied; commits do not need the replica yet.
    Copying,
    /// Commits need the replica, and what it missed in between is fetched.
    Joining,
    /// It is in sync.
    Done,
    /// It failed, and is tried again later.
    Failed,
}

/// One copy.
#[derive(Clone, Debug)]
struct Job {
    target: Rid,
    source: Rid,
    reason: Reason,
    phase: Phase,
    begun: Instant,
    bytes: u64,
    whole: bool,
    failures: u32,
    /// When it may be tried again, and why it failed.
    failed: Option<(Instant, String)>,
}

/// All copies that this leader has begun.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    jobs: BTreeMap<(ChunkId, NodeId), Job>,
    done: VecDeque<Transfer>,
    /// Replicas that are being rewritten, or that failed to be, with when that may be tried again.
    rewrites: BTreeMap<(ChunkId, NodeId), Option<Instant>>,
    /// Replicas in whose place a move has put another.
    leaving: BTreeMap<ChunkId, NodeId>,
    copies_done: u64,
    moves_done: u64,
    bytes_copied: u64,
}

impl Jobs {
    /// Copies under way, with the node that gives.
    pub(crate) fn running(&self) -> BTreeMap<(ChunkId, NodeId), NodeId> {
        let running = self.jobs.iter().filter(|(_, job)| job.failed.is_none());
        running.map(|(key, job)| (*key, job.source.node)).collect()
    }

    /// Copies that failed and are not to be tried again yet.
    pub(crate) fn failed(&self, now: Instant) -> BTreeSet<(ChunkId, NodeId)> {
        let waits = |job: &Job| job.failed.as_ref().is_some_and(|(until, _)| *until > now);
        self.jobs.iter().filter(|(_, job)| waits(job)).map(|(key, _)| *key).collect()
    }

    /// Replicas that are to go now that a move has put another in their place.
    pub(crate) fn leaving(&self) -> BTreeMap<ChunkId, NodeId> {
        self.leaving.clone()
    }

    /// Notes that a replica of the chunk was told to go.
    pub(crate) fn left(&mut self, chunk: ChunkId) {
        self.leaving.remove(&chunk);
    }

    /// Notes the start of a copy.
    pub(crate) fn begin(&mut self, chunk: ChunkId, target: Rid, source: Rid, reason: Reason) {
        let key = (chunk, target.node);
        let failures = self.jobs.get(&key).map_or(0, |job| job.failures);
        let (phase, begun) = (Phase::Copying, Instant::now());
        let job = Job {
            target,
            source,
            reason,
            phase,
            begun,
            bytes: 0,
            whole: false,
            failures,
            failed: None,
        };
        self.jobs.insert(key, job);
    }

    /// Notes how far a copy is.
    pub(crate) fn advance(
        &mut self,
        key: (ChunkId, NodeId),
        phase: Phase,
        bytes: u64,
        whole: bool,
    ) {
        if let Some(job) = self.jobs.get_mut(&key) {
            job.phase = phase;
            job.bytes += bytes;
            job.whole |= whole;
            self.bytes_copied += bytes;
        }
    }

    /// Notes the end of a copy; gives its bytes and how long it took.
    pub(crate) fn end(&mut self, key: (ChunkId, NodeId)) -> Option<(u64, Duration)> {
        let mut job = self.jobs.remove(&key)?;
        job.phase = Phase::Done;
        self.copies_done += 1;
        if job.reason == Reason::Rebalance {
            self.moves_done += 1;
            self.leaving.insert(key.0, job.source.node);
        }
        self.done.push_back(transfer(key.0, &job));
        if self.done.len() > DONE_SHOWN {
            self.done.pop_front();
        }
        Some((job.bytes, job.begun.elapsed()))
    }

    /// Notes that a copy failed; gives how often it has.
    pub(crate) fn fail(&mut self, key: (ChunkId, NodeId), why: String) -> u32 {
        let Some(job) = self.jobs.get_mut(&key) else { return 0 };
        let doubled = RETRY_PAUSE_MIN.saturating_mul(1 << job.failures.min(6));
        job.failures += 1;
        job.phase = Phase::Failed;
        job.failed = Some((Instant::now() + doubled.min(RETRY_PAUSE_MAX), why));
        job.failures
    }

    /// Forgets failures that nobody asks about any more.
    pub(crate) fn forget_failed(&mut self, now: Instant) {
        let old = |job: &Job| {
            job.failed.as_ref().is_some_and(|(until, _)| *until + RETRY_PAUSE_MAX * 2 < now)
        };
        self.jobs.retain(|_, job| !old(job));
    }

    /// Replicas that are being rewritten, and those that are not to be tried again yet: false.
    pub(crate) fn compressing(&mut self, now: Instant) -> BTreeMap<(ChunkId, NodeId), bool> {
        self.rewrites.retain(|_, again| again.is_none_or(|again| again > now));
        self.rewrites.iter().map(|(key, again)| (*key, again.is_none())).collect()
    }

    /// Notes that a replica is being rewritten.
    pub(crate) fn begin_rewrite(&mut self, key: (ChunkId, NodeId)) {
        self.rewrites.insert(key, None);
    }

    /// Notes the end of it. It is not begun again before its node has had time to report what it has now.
    pub(crate) fn end_rewrite(&mut self, key: (ChunkId, NodeId), done: bool) {
        let pause = if done { REPORT_PAUSE } else { REWRITE_RETRY_PAUSE };
        self.rewrites.insert(key, Some(Instant::now() + pause));
    }

    /// What operators see: what is under way, what failed, what was done last.
    pub(crate) fn transfers(&self) -> Vec<Transfer> {
        let jobs = self.jobs.iter().map(|((chunk, _), job)| transfer(*chunk, job));
        jobs.chain(self.done.iter().cloned()).collect()
    }

    /// What operators see of rebalancing, but for how it is set.
    pub(crate) fn totals(&self) -> RebalanceStatus {
        RebalanceStatus {
            copies_done: self.copies_done,
            moves_done: self.moves_done,
            bytes_copied: self.bytes_copied,
            running: self.jobs.values().filter(|job| job.failed.is_none()).count() as u64,
            ..RebalanceStatus::default()
        }
    }
}

fn transfer(chunk: ChunkId, job: &Job) -> Transfer {
    let phase = match job.phase {
        Phase::Copying => "copying",
        Phase::Joining => "joining",
        Phase::Done => "done",
        Phase::Failed => "failed",
    };
    let reason = match job.reason {
        Reason::Return => "return",
        Reason::Repair => "repair",
        Reason::Order => "order",
        Reason::Drain => "drain",
        Reason::Rebalance => "rebalance",
    };
    Transfer {
        chunk: chunk.0,
        source: Some(job.source.into()),
        target: Some(job.target.into()),
        reason: reason.to_owned(),
        phase: phase.to_owned(),
        bytes: job.bytes,
        whole: job.whole,
        elapsed_ms: u64::try_from(job.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        failures: job.failures,
        error: job.failed.as_ref().map(|(_, why)| why.clone()).unwrap_or_default(),
    }
}
