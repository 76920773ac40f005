//! Policies of retention and compression, and their jobs.
//!
//! The jobs are in the catalog, and the Raft leader runs them; here arguments become commands.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, Int32Array, StringArray},
    datatypes::{DataType, IntervalUnit},
};
use datafusion::common::ScalarValue;
use hypertide_meta::catalog::{Command, Job, Outcome, Policy, Rule, Schedule, Span, Table};
use hypertide_proto::{ids::JobId, time::DAY_MICROS};

use super::{call::Arguments, datetime, parse::regclass, table::find_named, text::write_interval};
use crate::{Error, Session, session::Frame};

/// Parameters of `add_retention_policy`, in order.
pub(crate) const RETENTION_PARAMETERS: &[&str] = &[
    "relation",
    "drop_after",
    "if_not_exists",
    "schedule_interval",
    "initial_start",
    "timezone",
    "drop_created_before",
];
/// Parameters of `add_compression_policy`, in order.
pub(crate) const COMPRESSION_PARAMETERS: &[&str] = &[
    "hypertable",
    "compress_after",
    "if_not_exists",
    "schedule_interval",
    "initial_start",
    "timezone",
    "compress_created_before",
];
/// Parameters of `remove_retention_policy`, in order.
pub(crate) const REMOVE_RETENTION_PARAMETERS: &[&str] = &["relation", "if_exists"];
/// Parameters of `remove_compression_policy`, in order.
pub(crate) const REMOVE_COMPRESSION_PARAMETERS: &[&str] = &["hypertable", "if_exists"];
/// Parameters of `delete_job` and `run_job`.
pub(crate) const JOB_PARAMETERS: &[&str] = &["job_id"];

const DAY_MS: u64 = 24 * 3600 * 1000;
/// Compression looks as often as this, or twice in a slice of time where that is less.
const COMPRESSION_EVERY_MS: u64 = DAY_MS / 2;
/// Days of a month in an interval that is to be one number.
const MONTH_DAYS: i64 = 30;
const MICROS_PER_MS: i64 = 1000;

/// A kind of policy, with the names that its functions have for things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Chunks are dropped.
    Retention,
    /// Chunks are compressed.
    Compression,
}

impl Kind {
    const fn table(self) -> &'static str {
        match self {
            Self::Retention => "relation",
            Self::Compression => "hypertable",
        }
    }

    const fn after(self) -> &'static str {
        match self {
            Self::Retention => "drop_after",
            Self::Compression => "compress_after",
        }
    }

    const fn created(self) -> &'static str {
        match self {
            Self::Retention => "drop_created_before",
            Self::Compression => "compress_created_before",
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Retention => "retention",
            Self::Compression => "compression",
        }
    }

    const fn of(policy: Policy) -> Self {
        match policy {
            Policy::Retention { .. } => Self::Retention,
            Policy::Compression { .. } => Self::Compression,
        }
    }
}

/// `add_retention_policy` and `add_compression_policy`.
pub(crate) async fn add(
    session: &mut Session,
    frame: &Frame,
    arguments: &Arguments,
    kind: Kind,
) -> Result<Vec<ArrayRef>, Error> {
    let table = hypertable(session, frame, arguments, kind)?;
    if arguments.get(kind.created()).is_some() {
        return Err(Error::unsupported(format_args!("the argument {}", kind.created())));
    }
    if time_is_integer(&table) {
        let message = format_args!("integer_now function not set on hypertable \"{}\"", table.name);
        return Err(Error::of("42P17", message)
            .with_hint("Policies by integers are not there; drop and compress chunks by hand."));
    }
    let after = kind.after();
    let after = arguments.get(after).ok_or_else(|| {
        Error::of(
            "22023",
            format_args!("need to specify one of \"{after}\" or \"{}\"", kind.created()),
        )
    })?;
    let after = span(after, kind.after())?;
    let policy = match kind {
        Kind::Retention => Policy::Retention { drop_after: after },
        Kind::Compression => Policy::Compression { compress_after: after },
    };
    let schedule = schedule(session, arguments, (&table, kind))?;
    let command = Command::AddJob {
        table: table.id,
        owner: session.user.clone(),
        policy,
        schedule,
        if_not_exists: arguments.bool("if_not_exists")?.unwrap_or(false),
    };
    let Outcome::Job(job, made) = session.propose(command).await? else {
        return Err(Error::of("XX000", "the catalog gave no job"));
    };
    if !made {
        let (kind, name) = (kind.name(), &table.name);
        let message = format!("{kind} policy already exists for hypertable \"{name}\", skipping");
        let same = job.policy == policy;
        session.notice(if same { "NOTICE" } else { "WARNING" }, "42710", message);
        // As in the reference.
        return Ok(vec![id_array(if same { Some(job.id) } else { None })]);
    }
    Ok(vec![id_array(Some(job.id))])
}

/// `remove_retention_policy` and `remove_compression_policy`; gives whether there was one.
pub(crate) async fn remove(
    session: &mut Session,
    frame: &Frame,
    arguments: &Arguments,
    kind: Kind,
) -> Result<bool, Error> {
    let table = hypertable(session, frame, arguments, kind)?;
    let mut jobs = frame.snapshot.image.catalog.jobs();
    let found = jobs.find(|job| job.table == table.id && Kind::of(job.policy) == kind);
    let Some(job) = found.map(|job| job.id) else {
        let (kind, name) = (kind.name(), &table.name);
        let message = format!("{kind} policy not found for hypertable \"{name}\"");
        if arguments.bool("if_exists")?.unwrap_or(false) {
            session.notice("NOTICE", "42704", format!("{message}, skipping"));
            return Ok(false);
        }
        return Err(Error::of("42704", message));
    };
    session.propose(Command::RemoveJob { job }).await?;
    Ok(true)
}

/// The result of [`remove`] of a function without one.
pub(crate) fn nothing() -> Vec<ArrayRef> {
    vec![Arc::new(StringArray::from(vec![""]))]
}

/// The result of [`remove`] of a function that gives it.
pub(crate) fn flag(value: bool) -> Vec<ArrayRef> {
    vec![Arc::new(BooleanArray::from(vec![value]))]
}

/// `delete_job`.
pub(crate) async fn delete(
    session: &mut Session,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    let job = job_id(arguments)?;
    session.propose(Command::RemoveJob { job }).await?;
    Ok(nothing())
}

/// `run_job`.
pub(crate) async fn run(
    session: &mut Session,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    let job = job_id(arguments)?;
    let ran = session.propose(Command::RunJob { job, at_once: true }).await?;
    if let Outcome::Job(job, _) = ran
        && let Some(error) = &job.error
    {
        return Err(Error::of("55000", format_args!("job {} failed: {error}", job.id.0)));
    }
    Ok(nothing())
}

fn job_id(arguments: &Arguments) -> Result<JobId, Error> {
    let id = arguments.int("job_id")?.and_then(|id| u64::try_from(id).ok());
    id.map(JobId).ok_or_else(|| Error::of("22023", "job ID cannot be NULL"))
}

fn id_array(id: Option<JobId>) -> ArrayRef {
    let id = id.map_or(-1, |id| i32::try_from(id.0).unwrap_or(i32::MAX));
    Arc::new(Int32Array::from(vec![id]))
}

fn hypertable(
    session: &Session,
    frame: &Frame,
    arguments: &Arguments,
    kind: Kind,
) -> Result<Arc<Table>, Error> {
    let relation = arguments.text(kind.table())?;
    let relation = relation.ok_or_else(|| Error::of("22023", "relation cannot be NULL"))?;
    let (schema, name) = regclass(&relation)?;
    let path = session.settings.get("search_path").unwrap_or_default();
    let table = find_named(&frame.snapshot.image, schema.as_deref(), &name, path)?;
    if table.hypertable().is_some() {
        return Ok(table);
    }
    Err(Error::of("TS001", format_args!("table \"{}\" is not a hypertable", table.name)))
}

fn time_is_integer(table: &Table) -> bool {
    let time = table.hypertable().and_then(|made| made.dimensions.first());
    let column = time.and_then(|dimension| table.columns.column(&dimension.column));
    column.is_some_and(|column| column.column_type.integer())
}

/// An interval.
fn span(value: &ScalarValue, name: &str) -> Result<Span, Error> {
    let wanted = DataType::Interval(IntervalUnit::MonthDayNano);
    let known = matches!(value, ScalarValue::Utf8(_) | ScalarValue::IntervalMonthDayNano(_));
    match value.cast_to(&wanted) {
        Ok(ScalarValue::IntervalMonthDayNano(Some(value))) if known => {
            Ok(Span { months: value.months, days: value.days, micros: value.nanoseconds / 1000 })
        }
        _ => Err(Error::of("22023", format_args!("invalid value for parameter {name}"))
            .with_hint("Use an interval, such as INTERVAL '7 days'.")),
    }
}

fn schedule(
    session: &Session,
    arguments: &Arguments,
    (table, kind): (&Table, Kind),
) -> Result<Schedule, Error> {
    let every_ms = match arguments.get("schedule_interval") {
        Some(value) => {
            let Span { months, days, micros } = span(value, "schedule_interval")?;
            let days = i64::from(months) * MONTH_DAYS + i64::from(days);
            let micros = days.saturating_mul(DAY_MICROS).saturating_add(micros);
            let every = u64::try_from(micros / MICROS_PER_MS).ok().filter(|every| *every > 0);
            every.ok_or_else(|| Error::of("22023", "schedule interval must be positive"))?
        }
        None if kind == Kind::Retention => DAY_MS,
        None => COMPRESSION_EVERY_MS.min(slice_ms(table) / 2).max(1),
    };
    let start = match arguments.get("initial_start") {
        None => None,
        Some(value) => Some(moment(session, value)?),
    };
    Ok(Schedule { every_ms, from_ms: start })
}

fn slice_ms(table: &Table) -> u64 {
    let time = table.hypertable().and_then(|made| made.dimensions.first());
    match time.map(|dimension| &dimension.rule) {
        Some(Rule::Time { interval, .. }) => u64::try_from(interval / MICROS_PER_MS).unwrap_or(0),
        _ => 0,
    }
}

/// A moment as milliseconds since the Unix epoch.
fn moment(session: &Session, value: &ScalarValue) -> Result<u64, Error> {
    let micros = match value {
        ScalarValue::Utf8(Some(text)) => datetime::parse_timestamptz(text, session.settings.zone())
            .map_err(|_| Error::of("22007", "invalid value for parameter initial_start"))?,
        other => {
            let wanted = DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, None);
            match other.cast_to(&wanted) {
                Ok(ScalarValue::TimestampMicrosecond(Some(micros), _)) => micros,
                _ => return Err(Error::of("22023", "invalid value for parameter initial_start")),
            }
        }
    };
    Ok(u64::try_from(micros / MICROS_PER_MS).unwrap_or(0))
}

/// The settings of a job as `jobs.config` shows them.
pub(crate) fn config(job: &Job) -> String {
    let (name, Span { months, days, micros }) = match job.policy {
        Policy::Retention { drop_after } => ("drop_after", drop_after),
        Policy::Compression { compress_after } => ("compress_after", compress_after),
    };
    let mut shown = Vec::new();
    write_interval(months.into(), days.into(), micros, &mut shown);
    let shown = String::from_utf8_lossy(&shown);
    format!("{{\"{name}\": \"{shown}\", \"hypertable_id\": {}}}", job.table.0)
}
