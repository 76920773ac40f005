//! Policies: what is done to a hypertable's chunks again and again, without anybody asking.
//!
//! A job is a row. The Raft leader says when one is due; what it does happens where that stands in the log, so that it is
//! done once however many leaders there were. Chunks that a job wants compressed are asked for like by a statement.

use std::fmt;

use hypertide_proto::{
    ids::{ChunkId, JobId, TableId},
    time::DAY_MICROS,
};
use serde::{Deserialize, Serialize};

use super::{Catalog, Chunk, Outcome, Reject, RowKey, apply::Step, compression::hypertable_of};

/// The first id of a job, as in the reference.
const FIRST: u64 = 1000;
/// Chunks that one run asks to be compressed; the rest is for the next.
const COMPRESSED_PER_RUN: usize = 1024;
const MICROS_PER_MS: i64 = 1000;

/// A length of time, of which months and days have no fixed number of microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Months.
    pub months: i32,
    /// Days.
    pub days: i32,
    /// Microseconds.
    pub micros: i64,
}

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// Drops chunks that are wholly older than this.
    Retention {
        /// Age.
        drop_after: Span,
    },
    /// Compresses chunks that are wholly older than this.
    Compression {
        /// Age.
        compress_after: Span,
    },
}

/// How often a job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// From one start to the next, in milliseconds.
    pub every_ms: u64,
    /// Before it does not run: milliseconds since the Unix epoch. `None` for at once.
    pub from_ms: Option<u64>,
}

/// A policy with its schedule, and how it went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Identity; never reused.
    pub id: JobId,
    /// The hypertable.
    pub table: TableId,
    /// User who made it.
    pub owner: String,
    /// What it does.
    pub policy: Policy,
    /// How often.
    pub schedule: Schedule,
    /// When it is due: milliseconds since the Unix epoch.
    pub next_ms: u64,
    /// When it ran last; `None` when it never did.
    pub last_ms: Option<u64>,
    /// When it last ended well.
    pub last_success_ms: Option<u64>,
    /// Why the last run failed; `None` when it did not.
    pub error: Option<String>,
    /// Runs, and those of them that failed.
    pub runs: (u64, u64),
}

impl Span {
    /// The moment that lies so far before another, both in microseconds since the Unix epoch. Months are those of the
    /// calendar: the last day of a shorter month stands for days that it does not have.
    #[must_use]
    pub fn before(self, micros: i64) -> i64 {
        let (day, within) = (micros.div_euclid(DAY_MICROS), micros.rem_euclid(DAY_MICROS));
        let (year, month, date) = civil(day);
        let months = (year * 12 + month - 1).saturating_sub(i64::from(self.months));
        let (year, month) = (months.div_euclid(12), months.rem_euclid(12) + 1);
        let length =
            days_from_civil(year + month / 12, month % 12 + 1, 1) - days_from_civil(year, month, 1);
        let day = days_from_civil(year, month, date.min(length)) - i64::from(self.days);
        day.saturating_mul(DAY_MICROS).saturating_add(within).saturating_sub(self.micros)
    }
}

/// Year, month and day of a number of days since the Unix epoch, by the proleptic Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    // The year was reckoned from March on.
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (year + era * 400 + next, month, day)
}

/// The inverse of [`civil`].
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let month = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { months, days, micros } = self;
        write!(f, "{months}mon {days}d {micros}us")
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, table, policy, schedule, next_ms, runs: (runs, failed), .. } = self;
        match policy {
            Policy::Retention { drop_after } => write!(f, "{id} {table} retention {drop_after}")?,
            Policy::Compression { compress_after } => {
                write!(f, "{id} {table} compression {compress_after}")?;
            }
        }
        write!(f, " every={} next={next_ms} runs={runs} failed={failed}", schedule.every_ms)?;
        self.error.iter().try_for_each(|error| write!(f, " error={error}"))
    }
}

impl Policy {
    /// Whether both are of one kind, of which a hypertable has one.
    fn same_kind(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Retention { .. } => "retention",
            Self::Compression { .. } => "compression",
        }
    }
}

impl Catalog {
    /// All jobs, in order of their ids.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// The job.
    #[must_use]
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// Gives a hypertable a policy; one that it has is an answer if that is asked for.
    pub(crate) fn add_job(
        &mut self,
        (table, owner): (TableId, &str),
        policy: Policy,
        schedule: Schedule,
        if_not_exists: bool,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let row = self.existing(table)?;
        let made = hypertable_of(row)?;
        let of_kind = |job: &&Job| job.table == table && job.policy.same_kind(policy);
        if let Some(known) = self.jobs.values().find(of_kind) {
            if if_not_exists {
                return Ok(Outcome::Job(Box::new(known.clone()), false));
            }
            let (kind, name) = (policy.name(), &row.name);
            return Err(Reject::PolicyExists(format!(
                "{kind} policy already exists for hypertable \"{name}\""
            )));
        }
        if matches!(policy, Policy::Compression { .. }) && made.compression.is_none() {
            let message = format!("compression not enabled on hypertable \"{}\"", row.name);
            return Err(Reject::Compression(message));
        }
        self.counters.job = JobId(self.counters.job.0.max(FIRST - 1) + 1);
        let job = Job {
            id: self.counters.job,
            table,
            owner: owner.to_owned(),
            policy,
            schedule,
            next_ms: schedule.from_ms.unwrap_or(step.at_ms),
            last_ms: None,
            last_success_ms: None,
            error: None,
            runs: (0, 0),
        };
        self.put_job(job.clone(), step);
        Ok(Outcome::Job(Box::new(job), true))
    }

    /// Takes a job away.
    pub(crate) fn remove_job(&mut self, id: JobId, step: &mut Step) -> Result<Outcome, Reject> {
        let job = self.jobs.get(&id).ok_or(Reject::UnknownJob(id))?.clone();
        self.drop_job(id, step);
        Ok(Outcome::Job(Box::new(job), false))
    }

    /// Runs a job that is due, or that somebody wants to be run now.
    pub(crate) fn run_job(
        &mut self,
        id: JobId,
        at_once: bool,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let job = self.jobs.get(&id).ok_or(Reject::UnknownJob(id))?.clone();
        let now = step.at_ms;
        if job.next_ms > now && !at_once {
            return Ok(Outcome::Job(Box::new(job), false));
        }
        let failed = self.perform(&job, step).err().map(|reject| reject.to_string());
        let (runs, failures) = job.runs;
        let every = job.schedule.every_ms.max(1);
        // On the grid of its starts, however late this one is.
        let missed = now.saturating_sub(job.next_ms) / every;
        let next_ms =
            if job.next_ms > now { job.next_ms } else { job.next_ms + (missed + 1) * every };
        let job = Job {
            next_ms,
            last_ms: Some(now),
            last_success_ms: if failed.is_none() { Some(now) } else { job.last_success_ms },
            runs: (runs + 1, failures + u64::from(failed.is_some())),
            error: failed,
            ..job
        };
        self.put_job(job.clone(), step);
        Ok(Outcome::Job(Box::new(job), true))
    }

    fn perform(&mut self, job: &Job, step: &mut Step) -> Result<(), Reject> {
        let now = i64::try_from(step.at_ms).unwrap_or(i64::MAX).saturating_mul(MICROS_PER_MS);
        match job.policy {
            Policy::Retention { drop_after } => {
                let old = self.older(job.table, drop_after.before(now), |_| true);
                self.remove_chunks(&old, step);
            }
            Policy::Compression { compress_after } => {
                let plain = |chunk: &Chunk| {
                    let asked = chunk.asked.and_then(|asked| asked.up_to);
                    asked.is_none_or(|csn| csn < chunk.last_csn)
                };
                let mut old = self.older(job.table, compress_after.before(now), plain);
                old.truncate(COMPRESSED_PER_RUN);
                self.ask_compression(&old, true, step)?;
            }
        }
        Ok(())
    }

    /// Chunks that end before a moment.
    fn older(&self, table: TableId, edge: i64, wanted: fn(&Chunk) -> bool) -> Vec<ChunkId> {
        let chunks = self.chunks_of(table);
        let old = chunks.filter(|chunk| chunk.time().end() <= edge && wanted(chunk));
        old.map(|chunk| chunk.id).collect()
    }

    /// Takes the jobs of a table away.
    pub(crate) fn drop_jobs_of(&mut self, table: TableId, step: &mut Step) {
        let jobs = self.jobs.values().filter(|job| job.table == table).map(|job| job.id);
        let jobs: Vec<JobId> = jobs.collect();
        jobs.into_iter().for_each(|id| self.drop_job(id, step));
    }

    fn put_job(&mut self, job: Job, step: &mut Step) {
        step.changes.touch(RowKey::Job(job.id));
        self.jobs.insert(job.id, job);
    }

    fn drop_job(&mut self, id: JobId, step: &mut Step) {
        if self.jobs.remove(&id).is_some() {
            step.changes.touch(RowKey::Job(id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(year: i64, month: i64, day: i64) -> i64 {
        days_from_civil(year, month, day) * DAY_MICROS
    }

    #[test]
    fn days_and_dates_agree() {
        for day in -800_000..800_000 {
            let (year, month, date) = civil(day);
            assert_eq!(days_from_civil(year, month, date), day);
            assert!((1..=12).contains(&month) && (1..=31).contains(&date));
        }
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(19_782), (2024, 2, 29));
    }

    #[test]
    fn months_are_those_of_the_calendar() {
        let month = Span { months: 1, ..Span::default() };
        assert_eq!(month.before(at(2024, 3, 31)), at(2024, 2, 29));
        assert_eq!(month.before(at(2023, 1, 15)), at(2022, 12, 15));
        assert_eq!(month.before(at(2023, 12, 31)), at(2023, 11, 30));
        let mixed = Span { months: 14, days: 1, micros: 5 };
        assert_eq!(mixed.before(at(2024, 3, 10)), at(2023, 1, 9) - 5);
        let huge = Span { months: i32::MAX, days: i32::MAX, micros: i64::MAX };
        assert!(huge.before(0) < 0);
    }
}
