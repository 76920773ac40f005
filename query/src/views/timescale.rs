//! `timescaledb_information`: hypertables, chunks, dimensions, data nodes.

use hypertide_meta::{
    Image,
    catalog::{Chunk, Hypertable, Rule, Table, TableKind},
};
use hypertide_proto::{schema::Column, time::TimeRange};

use super::rows::{
    Kind::{BigInt, Bool, Int, Interval, Text, Texts, TimestampTz},
    Rows, Value,
};

pub(super) fn hypertables_of(image: &Image) -> impl Iterator<Item = (&Table, &Hypertable)> {
    image.catalog.tables().filter_map(|table| match &table.kind {
        TableKind::Hypertable(hypertable) => Some((table, hypertable)),
        TableKind::Reference => None,
    })
}

pub(super) fn node_names(
    image: &Image,
    nodes: impl Iterator<Item = hypertide_proto::ids::NodeId>,
) -> Value {
    let mut names: Vec<String> = nodes
        .filter_map(|node| image.catalog.data_node(node))
        .map(|node| node.name.clone())
        .collect();
    names.sort();
    names.dedup();
    Value::Texts(names)
}

/// `timescaledb_information.hypertables`.
pub(super) fn hypertables(image: &Image) -> Rows {
    let mut rows = Rows::new(&[
        ("hypertable_schema", Text),
        ("hypertable_name", Text),
        ("owner", Text),
        ("num_dimensions", Int),
        ("num_chunks", BigInt),
        ("compression_enabled", Bool),
        ("is_distributed", Bool),
        ("replication_factor", Int),
        ("data_nodes", Texts),
        ("tablespaces", Texts),
    ]);
    for (table, hypertable) in hypertables_of(image) {
        rows.push([
            table.schema.as_str().into(),
            table.name.as_str().into(),
            table.owner.as_str().into(),
            hypertable.dimensions.len().into(),
            image.catalog.chunks_of(table.id).count().into(),
            hypertable.compression.is_some().into(),
            hypertable.distributed.into(),
            Value::Int(hypertable.replication_factor.into()),
            node_names(image, hypertable.data_nodes.iter().copied()),
            Value::Null,
        ]);
    }
    rows
}

/// The column of the time dimension.
fn time_column<'a>(table: &'a Table, hypertable: &Hypertable) -> Option<&'a Column> {
    let dimension = hypertable.dimensions.first()?;
    table.columns.column(&dimension.column)
}

/// Edges of a slice of time, as a timestamp or as an integer.
fn edge(column: Option<&Column>, edge: i64, integer: bool) -> Value {
    let is_integer = column.is_some_and(|column| column.column_type.integer());
    match is_integer == integer {
        true if integer => Value::Int(edge),
        true => Value::TimestampTz(edge),
        false => Value::Null,
    }
}

/// `timescaledb_information.chunks`.
pub(super) fn chunks(image: &Image) -> Rows {
    let mut rows = Rows::new(&[
        ("hypertable_schema", Text),
        ("hypertable_name", Text),
        ("chunk_schema", Text),
        ("chunk_name", Text),
        ("primary_dimension", Text),
        ("primary_dimension_type", Text),
        ("range_start", TimestampTz),
        ("range_end", TimestampTz),
        ("range_start_integer", BigInt),
        ("range_end_integer", BigInt),
        ("is_compressed", Bool),
        ("chunk_tablespace", Text),
        ("data_nodes", Texts),
        ("chunk_creation_time", TimestampTz),
        // Not in the reference: what data nodes call the chunk.
        ("chunk_id", BigInt),
    ]);
    for (table, hypertable) in hypertables_of(image) {
        let time = time_column(table, hypertable);
        for chunk in image.catalog.chunks_of(table.id) {
            let slice = chunk.slices.first().copied().unwrap_or(TimeRange::ALL);
            rows.push([
                table.schema.as_str().into(),
                table.name.as_str().into(),
                hypertable.chunk_schema.as_str().into(),
                chunk.name.as_str().into(),
                time.map(|column| column.name.clone()).into(),
                time.map(|column| column.column_type.to_string()).into(),
                edge(time, slice.start(), false),
                edge(time, slice.end(), false),
                edge(time, slice.start(), true),
                edge(time, slice.end(), true),
                chunk.compressed.is_some().into(),
                Value::Null,
                node_names(image, replicas(chunk)),
                Value::TimestampTz(i64::try_from(chunk.created_ms).unwrap_or_default() * 1000),
                Value::Int(i64::try_from(chunk.id.0).unwrap_or(i64::MAX)),
            ]);
        }
    }
    rows
}

fn replicas(chunk: &Chunk) -> impl Iterator<Item = hypertide_proto::ids::NodeId> {
    chunk.members().map(|rid| rid.node)
}

/// `timescaledb_information.compression_settings`: a row a column that chunks are segmented or ordered by.
pub(super) fn compression_settings(image: &Image) -> Rows {
    let mut rows = Rows::new(&[
        ("hypertable_schema", Text),
        ("hypertable_name", Text),
        ("attname", Text),
        ("segmentby_column_index", Int),
        ("orderby_column_index", Int),
        ("orderby_asc", Bool),
        ("orderby_nullsfirst", Bool),
    ]);
    for (table, hypertable) in hypertables_of(image) {
        let Some(compression) = &hypertable.compression else { continue };
        let mut push = |column: &str, rest: [Value; 4]| {
            let [segment, order, ascending, nulls_first] = rest;
            let (schema, name) = (table.schema.as_str().into(), table.name.as_str().into());
            rows.push([schema, name, column.into(), segment, order, ascending, nulls_first]);
        };
        for (at, column) in compression.segment_by.iter().enumerate() {
            push(column, [(at + 1).into(), Value::Null, Value::Null, Value::Null]);
        }
        for (at, by) in compression.order_by.iter().enumerate() {
            let (ascending, nulls_first) = ((!by.descending).into(), by.nulls_first.into());
            push(&by.column, [Value::Null, (at + 1).into(), ascending, nulls_first]);
        }
    }
    rows
}

/// `_timescaledb_catalog.chunk`, of which users read the status: 1 compressed, 8 rows came since.
pub(super) fn chunk_catalog(image: &Image) -> Rows {
    let mut rows = Rows::new(&[
        ("id", Int),
        ("hypertable_id", Int),
        ("schema_name", Text),
        ("table_name", Text),
        ("compressed_chunk_id", Int),
        ("dropped", Bool),
        ("status", Int),
        ("osm_chunk", Bool),
        ("creation_time", TimestampTz),
    ]);
    let number = |id: u64| Value::Int(i64::try_from(id).unwrap_or(i64::MAX));
    for (table, hypertable) in hypertables_of(image) {
        for chunk in image.catalog.chunks_of(table.id) {
            rows.push([
                number(chunk.id.0),
                number(table.id.0),
                hypertable.chunk_schema.as_str().into(),
                chunk.name.as_str().into(),
                Value::Null,
                false.into(),
                Value::Int(crate::sql::compression::status(chunk)),
                false.into(),
                Value::TimestampTz(i64::try_from(chunk.created_ms).unwrap_or_default() * 1000),
            ]);
        }
    }
    rows
}

/// `timescaledb_information.dimensions`.
pub(super) fn dimensions(image: &Image) -> Rows {
    let mut rows = Rows::new(&[
        ("hypertable_schema", Text),
        ("hypertable_name", Text),
        ("dimension_number", BigInt),
        ("column_name", Text),
        ("column_type", Text),
        ("dimension_type", Text),
        ("time_interval", Interval),
        ("integer_interval", BigInt),
        ("integer_now_func", Text),
        ("num_partitions", Int),
    ]);
    for (table, hypertable) in hypertables_of(image) {
        for (at, dimension) in hypertable.dimensions.iter().enumerate() {
            let column = table.columns.column(&dimension.column);
            let integer = column.is_some_and(|column| column.column_type.integer());
            let (kind, interval, now, partitions) = match &dimension.rule {
                Rule::Time { interval, now_function } => {
                    ("Time", Some(*interval), now_function.clone(), None)
                }
                Rule::Hash { buckets } => ("Space", None, None, Some(buckets.len())),
            };
            rows.push([
                table.schema.as_str().into(),
                table.name.as_str().into(),
                (at + 1).into(),
                dimension.column.as_str().into(),
                column.map(|column| column.column_type.to_string()).into(),
                kind.into(),
                interval.filter(|_| !integer).map(Value::Interval).into(),
                interval.filter(|_| integer).map(Value::Int).into(),
                now.into(),
                partitions.into(),
            ]);
        }
    }
    rows
}

/// `timescaledb_information.data_nodes`.
pub(super) fn data_nodes(image: &Image) -> Rows {
    let mut rows = Rows::new(&[("node_name", Text), ("owner", Text), ("options", Texts)]);
    for node in image.catalog.data_nodes() {
        let (host, port) = node.rpc.rsplit_once(':').unwrap_or((&node.rpc, ""));
        let options = vec![
            format!("host={host}"),
            format!("port={port}"),
            format!("dbname={}", crate::session::DATABASE),
        ];
        rows.push([node.name.as_str().into(), crate::server::USER.into(), Value::Texts(options)]);
    }
    rows
}
