//! `timescaledb_information.jobs` and `job_stats`.

use hypertide_meta::{
    Image,
    catalog::{Job, Policy},
};

use super::rows::{
    Kind::{BigInt, Bool, Int, Interval, Text, TimestampTz},
    Rows, Value,
};

/// Schema and name of what a job runs in the reference, and what the job is called.
fn names(job: &Job) -> (Value, Value, Value) {
    let (function, title) = match job.policy {
        Policy::Retention { .. } => ("policy_retention", "Retention Policy"),
        Policy::Compression { .. } => ("policy_compression", "Compression Policy"),
    };
    let title = format!("{title} [{}]", job.id.0);
    ("_timescaledb_functions".into(), function.into(), title.into())
}

fn moment(ms: u64) -> Value {
    Value::TimestampTz(i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1000))
}

fn number(value: u64) -> Value {
    Value::Int(i64::try_from(value).unwrap_or(i64::MAX))
}

/// Schema and name of a job's hypertable.
fn table_of(image: &Image, job: &Job) -> (Value, Value) {
    let table = image.catalog.table(job.table);
    let named = |name: fn(&hypertide_meta::catalog::Table) -> &str| table.map(name).into();
    (named(|table| table.schema.as_str()), named(|table| table.name.as_str()))
}

/// `timescaledb_information.jobs`.
pub(super) fn jobs(image: &Image) -> Rows {
    let mut rows = Rows::new(&[
        ("job_id", Int),
        ("application_name", Text),
        ("schedule_interval", Interval),
        ("max_runtime", Interval),
        ("max_retries", Int),
        ("retry_period", Interval),
        ("proc_schema", Text),
        ("proc_name", Text),
        ("owner", Text),
        ("scheduled", Bool),
        ("fixed_schedule", Bool),
        ("config", Text),
        ("next_start", TimestampTz),
        ("initial_start", TimestampTz),
        ("hypertable_schema", Text),
        ("hypertable_name", Text),
        ("check_schema", Text),
        ("check_name", Text),
    ]);
    for job in image.catalog.jobs() {
        let (schema, function, title) = names(job);
        let (table_schema, table) = table_of(image, job);
        let every = i64::try_from(job.schedule.every_ms).unwrap_or(i64::MAX).saturating_mul(1000);
        rows.push([
            number(job.id.0),
            title,
            Value::Interval(every),
            Value::Interval(0),
            Value::Int(-1),
            Value::Interval(every),
            schema.clone(),
            function.clone(),
            job.owner.as_str().into(),
            true.into(),
            true.into(),
            crate::sql::policy::config(job).into(),
            moment(job.next_ms),
            job.schedule.from_ms.map(moment).into(),
            table_schema,
            table,
            schema,
            check_of(function),
        ]);
    }
    rows
}

fn check_of(function: Value) -> Value {
    match function {
        Value::Text(name) => Value::Text(format!("{name}_check")),
        other => other,
    }
}

/// `timescaledb_information.job_stats`.
pub(super) fn job_stats(image: &Image) -> Rows {
    let mut rows = Rows::new(&[
        ("hypertable_schema", Text),
        ("hypertable_name", Text),
        ("job_id", Int),
        ("last_run_started_at", TimestampTz),
        ("last_successful_finish", TimestampTz),
        ("last_run_status", Text),
        ("job_status", Text),
        ("last_run_duration", Interval),
        ("next_start", TimestampTz),
        ("total_runs", BigInt),
        ("total_successes", BigInt),
        ("total_failures", BigInt),
    ]);
    for job in image.catalog.jobs() {
        let (table_schema, table) = table_of(image, job);
        let (runs, failures) = job.runs;
        let status = if job.error.is_some() { "Failed" } else { "Success" };
        rows.push([
            table_schema,
            table,
            number(job.id.0),
            job.last_ms.map(moment).into(),
            job.last_success_ms.map(moment).into(),
            job.last_ms.map(|_| status).into(),
            "Scheduled".into(),
            job.last_ms.map(|_| Value::Interval(0)).into(),
            moment(job.next_ms),
            number(runs),
            number(runs - failures),
            number(failures),
        ]);
    }
    rows
}
