//! The statements that make a table again as the catalog has it: columns, keys, dimensions, replicas, compression,
//! policies.
//!
//! What belongs to this cluster only is not among them: ids, the names of nodes, which chunks lie where. A table that is
//! not spread over all data nodes says so in a comment.

use std::collections::BTreeMap;

use hypertide_meta::{
    Image,
    catalog::{
        Chunk, Compression, DEFAULT_CHUNK_SCHEMA, Hypertable, Job, Policy, Rule, Span, Table,
        default_min_in_sync,
    },
};
use hypertide_proto::{
    ids::NodeId,
    schema::{Column, ColumnType, Key},
    time::{DAY_MICROS, TimeRange},
};

use super::{text, zone::Zone};

const SECOND_MICROS: i64 = 1_000_000;
const MICROS_PER_MS: i64 = 1000;
/// Moments of the years 1 to 9999, which have one spelling everywhere.
const PLAIN_MICROS: std::ops::Range<i64> = -62_135_596_800_000_000..253_402_300_800_000_000;

/// A statement, and whether it is to be run when the rows are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Definition {
    /// Text, without a semicolon at its end.
    pub(crate) statement: String,
    /// Whether it acts on rows, or would drop them.
    pub(crate) after_data: bool,
}

/// The statements that make a table again, in their order.
pub(crate) fn definitions(image: &Image, table: &Table) -> Vec<Definition> {
    let early = |statement| Definition { statement, after_data: false };
    let late = |statement| Definition { statement, after_data: true };
    let mut all = vec![early(create_table(table))];
    if let Some(made) = table.hypertable() {
        all.push(early(create_hypertable(image, table, made)));
        if made.min_in_sync != default_min_in_sync(made.replication_factor) {
            let (name, replicas) = (relation(table), made.min_in_sync);
            all.push(early(format!("SELECT set_min_in_sync({name}, {replicas})")));
        }
        all.extend(made.compression.iter().map(|how| early(compression(table, made, how))));
        all.extend(compressed(image, table).into_iter().map(late));
    }
    let jobs = image.catalog.jobs().filter(|job| job.table == table.id);
    all.extend(jobs.map(|job| late(policy(table, job))));
    all
}

/// A name in quotes, whatever it is.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A schema and a name in quotes.
pub(crate) fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quoted(schema), quoted(name))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The table's name as functions take it.
fn relation(table: &Table) -> String {
    literal(&qualified(&table.schema, &table.name))
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(quoted).collect::<Vec<_>>().join(", ")
}

fn create_table(table: &Table) -> String {
    let columns = table.columns.columns.iter().map(|column| {
        let Column { name, column_type, nullable, default, .. } = column;
        let default = default.iter().map(|default| format!(" DEFAULT {default}"));
        let default: String = default.collect();
        let null = if *nullable { "" } else { " NOT NULL" };
        format!("    {} {column_type}{default}{null}", quoted(name))
    });
    let keys = table.columns.keys.iter().map(|key| {
        let Key { name, primary, .. } = key;
        let positions = table.columns.key_positions(key).into_iter();
        let columns = positions.filter_map(|at| table.columns.columns.get(at));
        let kind = if *primary { "PRIMARY KEY" } else { "UNIQUE" };
        let columns = list(columns.map(|column| column.name.as_str()));
        format!("    CONSTRAINT {} {kind} ({columns})", quoted(name))
    });
    let lines = columns.chain(keys).collect::<Vec<_>>().join(",\n");
    format!("CREATE TABLE {} (\n{lines}\n)", qualified(&table.schema, &table.name))
}

fn create_hypertable(image: &Image, table: &Table, made: &Hypertable) -> String {
    let mut arguments = vec![relation(table)];
    for dimension in &made.dimensions {
        let column = literal(&dimension.column);
        match &dimension.rule {
            Rule::Time { interval, .. } => {
                arguments.push(column);
                arguments.push(format!("chunk_time_interval => {}", width(table, made, *interval)));
            }
            Rule::Hash { buckets } => {
                arguments.push(format!("partitioning_column => {column}"));
                arguments.push(format!("number_partitions => {}", buckets.len()));
            }
        }
    }
    let distributed = made.distributed || made.replication_factor != 1;
    if distributed {
        arguments.push(format!("replication_factor => {}", made.replication_factor));
    }
    if made.chunk_schema != DEFAULT_CHUNK_SCHEMA {
        arguments.push(format!("associated_schema_name => {}", literal(&made.chunk_schema)));
    }
    if ![format!("_dist_hyper_{}", table.id.0), format!("_hyper_{}", table.id.0)]
        .contains(&made.chunk_prefix)
    {
        arguments.push(format!("associated_table_prefix => {}", literal(&made.chunk_prefix)));
    }
    let function = if distributed { "create_distributed_hypertable" } else { "create_hypertable" };
    format!("{}SELECT {function}({})", placement(image, made), arguments.join(", "))
}

/// A comment for a table that is not spread over all data nodes, or that gets no new chunks on some.
fn placement(image: &Image, made: &Hypertable) -> String {
    let named = |nodes: &[NodeId]| {
        let nodes = nodes.iter().filter_map(|node| image.catalog.data_node(*node));
        nodes.map(|node| node.name.replace('\n', " ")).collect::<Vec<_>>().join(", ")
    };
    let mut comment = String::new();
    if made.data_nodes.len() < image.catalog.data_nodes().count() {
        comment +=
            &format!("-- It was attached to these data nodes only: {}\n", named(&made.data_nodes));
    }
    if !made.blocked.is_empty() {
        comment += &format!("-- These got no new chunks of it: {}\n", named(&made.blocked));
    }
    comment
}

/// The type of the column of time.
fn time_type(table: &Table, made: &Hypertable) -> Option<ColumnType> {
    let time = made.dimensions.first()?;
    table.columns.column(&time.column).map(|column| column.column_type)
}

/// The width of a slice, as functions take it.
fn width(table: &Table, made: &Hypertable, width: i64) -> String {
    match time_type(table, made).is_some_and(ColumnType::integer) {
        true => width.to_string(),
        false => format!("INTERVAL {}", span(Span { micros: width, ..Span::default() })),
    }
}

/// A length of time as a literal, in units of which each has one length, but for months and days that are said as such.
fn span(Span { months, days, micros }: Span) -> String {
    let mut parts = Vec::new();
    let mut push = |value: i64, unit: &str| {
        if value != 0 {
            parts.push(format!("{value} {unit}"));
        }
    };
    push(months.into(), "months");
    match (days, micros % DAY_MICROS, i32::try_from(micros / DAY_MICROS)) {
        // An interval of whole days is said in days.
        (0, 0, Ok(whole)) => push(whole.into(), "days"),
        _ => {
            push(days.into(), "days");
            push(micros / SECOND_MICROS, "seconds");
            push(micros % SECOND_MICROS, "microseconds");
        }
    }
    match parts.is_empty() {
        true => "'0 seconds'".to_owned(),
        false => format!("'{}'", parts.join(" ")),
    }
}

fn compression(table: &Table, made: &Hypertable, how: &Compression) -> String {
    let mut options = vec!["timescaledb.compress".to_owned()];
    let mut push = |name: &str, value: &str| {
        options.push(format!("timescaledb.compress_{name} = {}", literal(value)));
    };
    if !how.segment_by.is_empty() {
        push("segmentby", &list(how.segment_by.iter().map(String::as_str)));
    }
    if !how.order_by.is_empty() {
        let columns = how.order_by.iter().map(|by| {
            let order = if by.descending { "DESC" } else { "ASC" };
            let nulls = if by.nulls_first { "FIRST" } else { "LAST" };
            format!("{} {order} NULLS {nulls}", quoted(&by.column))
        });
        push("orderby", &columns.collect::<Vec<_>>().join(", "));
    }
    if let Some(interval) = how.chunk_interval {
        let whole = width(table, made, interval);
        push("chunk_time_interval", whole.trim_start_matches("INTERVAL ").trim_matches('\''));
    }
    let name = qualified(&table.schema, &table.name);
    format!("ALTER TABLE {name} SET ({})", options.join(", "))
}

fn policy(table: &Table, job: &Job) -> String {
    let (function, after, age) = match job.policy {
        Policy::Retention { drop_after } => ("add_retention_policy", "drop_after", drop_after),
        Policy::Compression { compress_after } => {
            ("add_compression_policy", "compress_after", compress_after)
        }
    };
    let milliseconds = i64::try_from(job.schedule.every_ms).unwrap_or(i64::MAX);
    let every = Span { micros: milliseconds.saturating_mul(MICROS_PER_MS), ..Span::default() };
    let mut arguments = vec![
        relation(table),
        format!("{after} => INTERVAL {}", span(age)),
        format!("schedule_interval => INTERVAL {}", span(every)),
    ];
    if let Some(from) = job.schedule.from_ms {
        let micros = i64::try_from(from).unwrap_or(i64::MAX).saturating_mul(MICROS_PER_MS);
        arguments.push(format!("initial_start => {}", literal(&moment(micros, true))));
    }
    format!("SELECT {function}({})", arguments.join(", "))
}

fn moment(micros: i64, zoned: bool) -> String {
    let mut shown = Vec::new();
    text::write_timestamp(micros, zoned.then_some(Zone::UTC), &mut shown);
    String::from_utf8_lossy(&shown).into_owned()
}

/// A point of the time dimension as a literal of the column's type; `None` for one that is not written plainly. For
/// dates, of the first day at or after it.
fn point(column_type: ColumnType, point: i64) -> Option<String> {
    if column_type.integer() {
        return Some(point.to_string());
    }
    if !PLAIN_MICROS.contains(&point) {
        return None;
    }
    Some(match column_type {
        ColumnType::TimestampTz => format!("TIMESTAMPTZ '{}'", moment(point, true)),
        ColumnType::Timestamp => format!("TIMESTAMP '{}'", moment(point, false)),
        _ => {
            let days = point.div_euclid(DAY_MICROS) + i64::from(point.rem_euclid(DAY_MICROS) > 0);
            let mut shown = Vec::new();
            text::write_date(i32::try_from(days).ok()?, &mut shown);
            format!("DATE '{}'", String::from_utf8_lossy(&shown))
        }
    })
}

/// The slice of time of a chunk.
fn slice(chunk: &Chunk) -> TimeRange {
    chunk.slices.first().copied().unwrap_or(TimeRange::ALL)
}

/// Conditions of which each row of a table satisfies exactly one, cut where chunks begin: what to read a large table by,
/// part by part. The oldest come first.
pub(crate) fn parts(image: &Image, table: &Table) -> Vec<String> {
    let whole = || vec!["true".to_owned()];
    let Some(made) = table.hypertable() else { return whole() };
    let Some(column) = made.dimensions.first().map(|time| quoted(&time.column)) else {
        return whole();
    };
    let Some(column_type) = time_type(table, made) else { return whole() };
    let mut starts: Vec<i64> =
        image.catalog.chunks_of(table.id).map(|chunk| slice(chunk).start()).collect();
    starts.sort_unstable();
    starts.dedup();
    // Nothing lies before the first chunk.
    let mut edges: Vec<String> =
        starts.iter().skip(1).filter_map(|start| point(column_type, *start)).collect();
    edges.dedup();
    let Some(first) = edges.first() else { return whole() };
    let mut all = vec![format!("{column} < {first}")];
    for pair in edges.array_windows() {
        let [start, end] = pair;
        all.push(format!("{column} >= {start} AND {column} < {end}"));
    }
    all.extend(edges.last().map(|last| format!("{column} >= {last}")));
    all
}

/// Statements that compress the chunks again that are compressed: those within spans of time in which all are.
fn compressed(image: &Image, table: &Table) -> Vec<String> {
    let Some(column_type) = table.hypertable().and_then(|made| time_type(table, made)) else {
        return Vec::new();
    };
    // How many more chunks there are from an edge on: compressed, and plain.
    let mut edges: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
    for chunk in image.catalog.chunks_of(table.id) {
        for (edge, change) in [(slice(chunk).start(), 1), (slice(chunk).end(), -1)] {
            let (compressed, plain) = edges.entry(edge).or_default();
            *(if chunk.compressed.is_some() { compressed } else { plain }) += change;
        }
    }
    let mut spans: Vec<(i64, i64)> = Vec::new();
    let (mut compressed, mut plain) = (0, 0);
    let ends = edges.keys().skip(1).copied();
    for ((start, change), end) in edges.iter().zip(ends) {
        (compressed, plain) = (compressed + change.0, plain + change.1);
        match spans.last_mut() {
            _ if compressed == 0 || plain > 0 => {}
            Some((_, last)) if *last == *start => *last = end,
            _ => spans.push((*start, end)),
        }
    }
    spans.into_iter().map(|span| compress(table, column_type, span)).collect()
}

/// Compresses what lies within a span of time.
fn compress(table: &Table, column_type: ColumnType, (start, end): (i64, i64)) -> String {
    let bound = |name: &str, edge: i64| {
        let kind = match column_type {
            ColumnType::Date => ColumnType::TimestampTz,
            other => other,
        };
        point(kind, edge).map(|edge| format!(", {name} => {edge}")).unwrap_or_default()
    };
    let (newer, older) = (bound("newer_than", start), bound("older_than", end));
    format!(
        "SELECT compress_chunk(chunk, if_not_compressed => true) FROM show_chunks({}{newer}{older}) AS chunk",
        relation(table)
    )
}
