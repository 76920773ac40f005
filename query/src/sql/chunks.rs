//! `show_chunks` and `drop_chunks`.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arrow::{
    array::{ArrayRef, StringArray},
    datatypes::DataType,
};
use datafusion::common::ScalarValue;
use hypertide_meta::catalog::{Chunk, Command, Hypertable, Outcome, Table, TableKind};
use hypertide_proto::{
    ids::{ChunkId, NodeId},
    schema::ColumnType,
    time::TimeRange,
    wire::storage::DropChunksRequest,
};

use super::{
    call::Arguments,
    civil::{DAY_MICROS, SECOND_MICROS},
    parse::regclass,
    table::find_named,
};
use crate::{Error, Session, session::Frame};

/// Parameters of `show_chunks`, in order.
pub(crate) const SHOW_PARAMETERS: &[&str] =
    &["relation", "older_than", "newer_than", "created_before", "created_after"];
/// Parameters of `drop_chunks`, in order.
pub(crate) const DROP_PARAMETERS: &[&str] =
    &["relation", "older_than", "newer_than", "verbose", "created_before", "created_after"];
/// Time that a data node has to remove files; one that has not removes them later.
const DROP_TIMEOUT: Duration = Duration::from_secs(5);

/// `show_chunks`.
pub(crate) fn show(
    session: &Session,
    frame: &Frame,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    let table = hypertable_of(session, frame, arguments)?;
    let chunks = chosen(session, frame, &table, arguments)?;
    Ok(names(&table, &chunks))
}

/// `drop_chunks`.
pub(crate) async fn drop(
    session: &mut Session,
    frame: &Frame,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    let table = hypertable_of(session, frame, arguments)?;
    let bounds = ["older_than", "newer_than", "created_before", "created_after"];
    if bounds.iter().all(|bound| arguments.get(bound).is_none()) {
        return Err(Error::of("22023", "invalid time range for dropping chunks")
            .with_hint("At least one of older_than, newer_than, created_before and created_after must be given."));
    }
    let chunks = chosen(session, frame, &table, arguments)?;
    if chunks.is_empty() {
        return Ok(names(&table, &[]));
    }
    let ids: Vec<ChunkId> = chunks.iter().map(|chunk| chunk.id).collect();
    let outcome = session.propose(Command::DropChunks { table: table.id, chunks: ids }).await?;
    if let Outcome::Dropped(dropped) = outcome {
        tell_dropped(session, dropped);
    }
    Ok(names(&table, &chunks))
}

/// Tells all data nodes in the background to remove files of chunks that are no more.
pub(crate) fn tell_dropped(session: &Session, chunks: Vec<ChunkId>) {
    let Some(cluster) = session.engine.catalog.cluster() else { return };
    let image = session.engine.catalog.image();
    let nodes: Vec<(NodeId, String)> =
        image.catalog.data_nodes().map(|node| (node.id(), node.rpc.clone())).collect();
    let channels = session.engine.channels.clone();
    tokio::spawn(async move {
        for (node, address) in nodes {
            let request = DropChunksRequest {
                cluster: cluster.0.to_vec().into(),
                chunks: chunks.iter().map(|chunk| chunk.0).collect(),
                csn: image.snapshot().0,
            };
            let Ok(mut client) = channels.linked_storage(&address) else { continue };
            match tokio::time::timeout(DROP_TIMEOUT, client.drop_chunks(request)).await {
                Ok(Ok(_)) => {}
                _ => {
                    tracing::debug!(%node, "a data node did not remove dropped chunks; it will learn of them")
                }
            }
        }
    });
}

fn hypertable_of(
    session: &Session,
    frame: &Frame,
    arguments: &Arguments,
) -> Result<Arc<Table>, Error> {
    let relation = arguments.text("relation")?;
    let relation = relation.ok_or_else(|| Error::of("22023", "relation cannot be NULL"))?;
    let (schema, name) = regclass(&relation)?;
    let path = session.settings.get("search_path").unwrap_or_default();
    let table = find_named(&frame.snapshot.image, schema.as_deref(), &name, path)?;
    match &table.kind {
        TableKind::Hypertable(_) => Ok(table),
        TableKind::Reference => {
            Err(Error::of("TS001", format_args!("table \"{}\" is not a hypertable", table.name)))
        }
    }
}

fn parts(table: &Table) -> Option<&Hypertable> {
    match &table.kind {
        TableKind::Hypertable(hypertable) => Some(hypertable),
        TableKind::Reference => None,
    }
}

/// Names with their schemas, in the order of the chunks.
fn names(table: &Table, chunks: &[Chunk]) -> Vec<ArrayRef> {
    let schema = parts(table).map_or("", |hypertable| hypertable.chunk_schema.as_str());
    let names: StringArray = chunks
        .iter()
        .map(|chunk| Some(format!("{}.{}", quoted(schema), quoted(&chunk.name))))
        .collect();
    vec![Arc::new(names)]
}

/// A name as it must be written in SQL.
pub(crate) fn quoted(name: &str) -> String {
    let plain =
        name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
            && !name.starts_with(|c: char| c.is_ascii_digit());
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// The chunks that the bounds leave, oldest first.
fn chosen(
    session: &Session,
    frame: &Frame,
    table: &Table,
    arguments: &Arguments,
) -> Result<Vec<Chunk>, Error> {
    let by_time = ["older_than", "newer_than"].iter().any(|name| arguments.get(name).is_some());
    let by_age =
        ["created_before", "created_after"].iter().any(|name| arguments.get(name).is_some());
    if by_time && by_age {
        return Err(Error::of(
            "22023",
            "cannot specify older_than or newer_than together with created_before or created_after",
        ));
    }
    let time_column = parts(table)
        .and_then(|hypertable| hypertable.dimensions.first())
        .and_then(|dimension| table.columns.column(&dimension.column));
    let integer = time_column.is_some_and(|column| column.column_type.integer());
    let bound = |name: &str| {
        arguments.get(name).map(|value| point(session, name, value, integer)).transpose()
    };
    let age = |name: &str| {
        arguments.get(name).map(|value| point(session, name, value, false)).transpose()
    };
    let (older, newer) = (bound("older_than")?, bound("newer_than")?);
    let (before, after) = (age("created_before")?, age("created_after")?);
    if let (Some(older), Some(newer)) = (older, newer)
        && newer >= older
    {
        return Err(Error::of("22023", "invalid time range")
            .with_hint("The start of the time range must be before the end."));
    }
    let created =
        |chunk: &Chunk| i64::try_from(chunk.created_ms).unwrap_or(i64::MAX).saturating_mul(1000);
    let mut chunks: Vec<Chunk> = frame
        .snapshot
        .image
        .catalog
        .chunks_of(table.id)
        .filter(|chunk| {
            let slice = chunk.slices.first().copied().unwrap_or(TimeRange::ALL);
            older.is_none_or(|older| slice.end() <= older)
                && newer.is_none_or(|newer| slice.start() >= newer)
                && before.is_none_or(|before| created(chunk) < before)
                && after.is_none_or(|after| created(chunk) >= after)
        })
        .cloned()
        .collect();
    chunks.sort_by_key(|chunk| (chunk.slices.first().map(TimeRange::start), chunk.id));
    Ok(chunks)
}

/// A bound as a point of the time dimension. An interval counts back from now.
fn point(session: &Session, name: &str, value: &ScalarValue, integer: bool) -> Result<i64, Error> {
    let bad = || {
        let found = match value.data_type() {
            DataType::Interval(_) => "interval".to_owned(),
            other => ColumnType::from_arrow(&other)
                .map_or_else(|| other.to_string(), |named| named.to_string()),
        };
        Error::of("22023", format_args!("invalid time argument type \"{found}\" for {name}"))
            .with_hint(
                "Use a value of the type of the time column, or an interval if that is no integer.",
            )
    };
    if integer {
        return match value.cast_to(&DataType::Int64) {
            Ok(ScalarValue::Int64(Some(point))) if value.data_type().is_integer() => Ok(point),
            _ => Err(bad()),
        };
    }
    match value {
        ScalarValue::IntervalMonthDayNano(Some(span)) => {
            Ok(ago(span.months, span.days, span.nanoseconds / 1000))
        }
        ScalarValue::Utf8(Some(text)) => {
            let zone = session.settings.zone();
            if let Ok(moment) = super::datetime::parse_timestamptz(text, zone) {
                return Ok(moment);
            }
            let wanted = DataType::Interval(arrow::datatypes::IntervalUnit::MonthDayNano);
            point(session, name, &value.cast_to(&wanted).map_err(|_| bad())?, false)
        }
        ScalarValue::Date32(Some(days)) => Ok(i64::from(*days).saturating_mul(DAY_MICROS)),
        other => match other
            .cast_to(&DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, None))
        {
            Ok(ScalarValue::TimestampMicrosecond(Some(micros), _))
                if !other.data_type().is_numeric() =>
            {
                Ok(micros)
            }
            _ => Err(bad()),
        },
    }
}

/// The moment that lies so far back.
fn ago(months: i32, days: i32, micros: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_micros()).unwrap_or(i64::MAX);
    let moment = chrono::DateTime::from_timestamp_micros(now);
    let back = chrono::Months::new(months.unsigned_abs());
    let shifted = match months {
        0.. => moment.and_then(|moment| moment.checked_sub_months(back)),
        _ => moment.and_then(|moment| moment.checked_add_months(back)),
    };
    let shifted = shifted.map_or(now, |moment| {
        moment.timestamp() * SECOND_MICROS + i64::from(moment.timestamp_subsec_micros())
    });
    shifted.saturating_sub(i64::from(days) * DAY_MICROS).saturating_sub(micros)
}
