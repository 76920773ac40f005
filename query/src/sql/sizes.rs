//! Sizes of hypertables and chunks, and what compression did to them.
//!
//! Data nodes are asked. A size is what files take on disk, with the space that is free in them; rows that are not in
//! a file yet count nothing. One that does not answer is left out of sizes, with a warning: a part of the answer is better
//! than none. What compression did there is taken from the catalog then, which knows it of one replica a chunk.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use arrow::{
    array::{ArrayRef, Int64Array, StringArray},
    datatypes::{DataType, Field},
};
use hypertide_meta::{
    Image,
    catalog::{Chunk, Table},
};
use hypertide_proto::{
    ids::{ChunkId, NodeId, Rid},
    wire::storage::{ChunkReport, ChunkState, ChunksRequest},
};

use super::{call::Arguments, parse::regclass, table::find_named};
use crate::{Error, Session, session::Frame};

/// Parameters of all of them.
pub(crate) const PARAMETERS: &[&str] = &["hypertable"];
/// Parameters of `approximate_row_count`.
pub(crate) const COUNT_PARAMETERS: &[&str] = &["relation"];
/// Longest wait for the answer of a data node.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// What a size is made of in PostgreSQL. Here all of it is the table's.
const PARTS: [&str; 4] = ["table_bytes", "index_bytes", "toast_bytes", "total_bytes"];

fn text(name: &str) -> Field {
    Field::new(name, DataType::Utf8, true)
}

fn number(name: &str) -> Field {
    Field::new(name, DataType::Int64, true)
}

fn parts(prefix: &str) -> Vec<Field> {
    PARTS.iter().map(|part| number(&format!("{prefix}{part}"))).collect()
}

/// Columns of `hypertable_detailed_size`.
pub(crate) fn detailed_columns() -> Vec<Field> {
    [parts(""), vec![text("node_name")]].concat()
}

/// Columns of `chunks_detailed_size`.
pub(crate) fn chunks_columns() -> Vec<Field> {
    [vec![text("chunk_schema"), text("chunk_name")], detailed_columns()].concat()
}

/// Columns of `chunk_compression_stats`.
pub(crate) fn chunk_stats_columns() -> Vec<Field> {
    let chunk = vec![text("chunk_schema"), text("chunk_name"), text("compression_status")];
    [chunk, stats_parts()].concat()
}

/// Columns of `hypertable_compression_stats`.
pub(crate) fn stats_columns() -> Vec<Field> {
    [vec![number("total_chunks"), number("number_compressed_chunks")], stats_parts()].concat()
}

fn stats_parts() -> Vec<Field> {
    let (before, after) = (parts("before_compression_"), parts("after_compression_"));
    [before, after, vec![text("node_name")]].concat()
}

/// `hypertable_size`: bytes of all replicas.
pub(crate) async fn hypertable_size(
    session: &mut Session,
    frame: &Frame,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    let Some(table) = table_of(session, frame, arguments, "hypertable")? else {
        return Ok(vec![Arc::new(Int64Array::from(vec![None::<i64>]))]);
    };
    let sizes = ask(session, frame, &table).await?;
    let total = sizes.values().map(|report| report.file_bytes).sum();
    Ok(vec![Arc::new(Int64Array::from(vec![signed(total)]))])
}

/// `hypertable_detailed_size`: a row a data node, and one without a name for the access nodes, which hold no rows.
pub(crate) async fn hypertable_detailed_size(
    session: &mut Session,
    frame: &Frame,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    let table = hypertable(session, frame, arguments)?;
    let sizes = ask(session, frame, &table).await?;
    let mut by_node: BTreeMap<NodeId, u64> = attached(&table).map(|node| (node, 0)).collect();
    for ((_, rid), report) in &sizes {
        *by_node.entry(rid.node).or_default() += report.file_bytes;
    }
    let names = node_names(frame);
    let rows = by_node.iter().map(|(node, bytes)| (*bytes, names.get(node).cloned()));
    let (bytes, names): (Vec<u64>, Vec<Option<String>>) =
        rows.chain(std::iter::once((0, None))).unzip();
    Ok([size_arrays(&bytes), vec![texts(names)]].concat())
}

/// `chunks_detailed_size`: a row a replica.
pub(crate) async fn chunks_detailed_size(
    session: &mut Session,
    frame: &Frame,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    let table = hypertable(session, frame, arguments)?;
    let sizes = ask(session, frame, &table).await?;
    let names = node_names(frame);
    let catalog = &frame.snapshot.image.catalog;
    let chunk_name = |id: &ChunkId| catalog.chunk(*id).map(|chunk| chunk.name.clone());
    let bytes: Vec<u64> = sizes.values().map(|report| report.file_bytes).collect();
    let chunks = sizes.keys().map(|(id, _)| chunk_name(id)).collect();
    let nodes = sizes.keys().map(|(_, rid)| names.get(&rid.node).cloned()).collect();
    let schemas = sizes.keys().map(|_| chunk_schema(&table)).collect();
    let head = vec![texts(schemas), texts(chunks)];
    Ok([head, size_arrays(&bytes), vec![texts(nodes)]].concat())
}

/// `approximate_row_count`: rows committed, of every chunk once.
pub(crate) fn approximate_row_count(
    session: &Session,
    frame: &Frame,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    let table = table_of(session, frame, arguments, "relation")?;
    let rows = table.map(|table| {
        let chunks = frame.snapshot.image.catalog.chunks_of(table.id);
        signed(chunks.map(|chunk| chunk.rows).sum())
    });
    Ok(vec![Arc::new(Int64Array::from(vec![rows]))])
}

/// `chunk_compression_stats`: a row a replica.
pub(crate) async fn chunk_compression_stats(
    session: &mut Session,
    frame: &Frame,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    let table = hypertable(session, frame, arguments)?;
    let found = ask(session, frame, &table).await?;
    let names = node_names(frame);
    let chunks = frame.snapshot.image.catalog.chunks_of(table.id);
    let replicas = chunks.flat_map(|chunk| chunk.in_sync.iter().map(move |rid| (chunk, *rid)));
    let (mut head, mut bytes, mut nodes) = ((Vec::new(), Vec::new()), Vec::new(), Vec::new());
    for (chunk, rid) in replicas {
        let done = compressed(chunk, found.get(&(chunk.id, rid)));
        let status = if done.is_some() { "Compressed" } else { "Uncompressed" };
        head.0.push(Some(chunk.name.clone()));
        head.1.push(Some(status.to_owned()));
        bytes.push(done);
        nodes.push(names.get(&rid.node).cloned());
    }
    let schemas = texts(nodes.iter().map(|_| chunk_schema(&table)).collect());
    let head = vec![schemas, texts(head.0), texts(head.1)];
    Ok([head, stats_arrays(&bytes), vec![texts(nodes)]].concat())
}

/// What compression did to a replica: bytes before and after. As the replica says, or of the chunk as the catalog has it.
fn compressed(chunk: &Chunk, replica: Option<&ChunkReport>) -> Option<(u64, u64)> {
    match replica {
        Some(report) if report.state() == ChunkState::Plain => None,
        Some(report) => Some((report.before_bytes, report.after_bytes)),
        None => chunk.compressed.map(|done| (done.before_bytes, done.after_bytes)),
    }
}

/// Chunks of a node, those of them that are compressed, and their bytes before and after.
type NodeChunks = (u64, u64, Option<(u64, u64)>);

/// `hypertable_compression_stats`: a row a data node that holds chunks.
pub(crate) async fn hypertable_compression_stats(
    session: &mut Session,
    frame: &Frame,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    let table = hypertable(session, frame, arguments)?;
    let found = ask(session, frame, &table).await?;
    let mut by_node: BTreeMap<NodeId, NodeChunks> = BTreeMap::new();
    for chunk in frame.snapshot.image.catalog.chunks_of(table.id) {
        for rid in &chunk.in_sync {
            let (chunks, count, bytes) = by_node.entry(rid.node).or_default();
            *chunks += 1;
            if let Some(done) = compressed(chunk, found.get(&(chunk.id, *rid))) {
                *count += 1;
                let (before, after) = bytes.get_or_insert((0, 0));
                *before += done.0;
                *after += done.1;
            }
        }
    }
    let names = node_names(frame);
    let head = vec![
        numbers(by_node.values().map(|(chunks, ..)| Some(signed(*chunks))).collect()),
        numbers(by_node.values().map(|(_, compressed, _)| Some(signed(*compressed))).collect()),
    ];
    let bytes: Vec<Option<(u64, u64)>> = by_node.values().map(|(.., bytes)| *bytes).collect();
    let nodes = texts(by_node.keys().map(|node| names.get(node).cloned()).collect());
    Ok([head, stats_arrays(&bytes), vec![nodes]].concat())
}

/// The table that an argument names, none for NULL.
fn table_of(
    session: &Session,
    frame: &Frame,
    arguments: &Arguments,
    parameter: &str,
) -> Result<Option<Arc<Table>>, Error> {
    let Some(relation) = arguments.text(parameter)? else { return Ok(None) };
    let (schema, name) = regclass(&relation)?;
    let path = session.settings.get("search_path").unwrap_or_default();
    find_named(&frame.snapshot.image, schema.as_deref(), &name, path).map(Some)
}

fn hypertable(
    session: &Session,
    frame: &Frame,
    arguments: &Arguments,
) -> Result<Arc<Table>, Error> {
    let table = table_of(session, frame, arguments, "hypertable")?;
    let table = table.ok_or_else(|| Error::of("22023", "hypertable cannot be NULL"))?;
    if table.hypertable().is_some() {
        return Ok(table);
    }
    Err(Error::of("TS001", format_args!("table \"{}\" is not a hypertable", table.name)))
}

/// What each replica of a table's chunks takes, by the chunk and the disk.
async fn ask(
    session: &mut Session,
    frame: &Frame,
    table: &Table,
) -> Result<BTreeMap<(ChunkId, Rid), ChunkReport>, Error> {
    let image: &Image = &frame.snapshot.image;
    let mut by_disk: BTreeMap<Rid, Vec<u64>> = BTreeMap::new();
    for chunk in image.catalog.chunks_of(table.id) {
        for rid in chunk.members() {
            by_disk.entry(rid).or_default().push(chunk.id.0);
        }
    }
    let cluster = session.engine.catalog.cluster();
    let cluster: bytes::Bytes =
        cluster.map_or_else(Default::default, |cluster| cluster.0.to_vec().into());
    let channels = &session.engine.channels;
    let asked = by_disk.into_iter().map(async |(rid, chunks)| {
        let node = image.catalog.data_node(rid.node).filter(|node| node.rid == rid);
        let mut client = channels.linked_storage(&node?.rpc).ok()?;
        let request = ChunksRequest { cluster: cluster.clone(), chunks };
        let answer = tokio::time::timeout(ASK_TIMEOUT, client.chunks(request)).await;
        Some((rid, answer.ok()?.ok()?.into_inner().chunks))
    });
    let asked: Vec<_> = asked.collect();
    let count = asked.len();
    let answers: Vec<_> = futures::future::join_all(asked).await.into_iter().flatten().collect();
    if answers.len() < count {
        let message = format!(
            "{} of {count} data nodes did not answer: their sizes are left out",
            count - answers.len()
        );
        session.notice("WARNING", "01000", message);
    }
    let replicas = answers.into_iter().flat_map(|(rid, reports)| {
        reports.into_iter().map(move |report| ((ChunkId(report.chunk), rid), report))
    });
    Ok(replicas.collect())
}

fn attached(table: &Table) -> impl Iterator<Item = NodeId> {
    table.hypertable().into_iter().flat_map(|made| made.data_nodes.iter().copied())
}

fn node_names(frame: &Frame) -> BTreeMap<NodeId, String> {
    let nodes = frame.snapshot.image.catalog.data_nodes();
    nodes.map(|node| (node.id(), node.name.clone())).collect()
}

fn chunk_schema(table: &Table) -> Option<String> {
    table.hypertable().map(|made| made.chunk_schema.clone())
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn numbers(values: Vec<Option<i64>>) -> ArrayRef {
    Arc::new(Int64Array::from(values))
}

fn texts(values: Vec<Option<String>>) -> ArrayRef {
    Arc::new(StringArray::from(values))
}

/// Sizes in the columns of [`PARTS`].
fn size_arrays(bytes: &[u64]) -> Vec<ArrayRef> {
    let all = numbers(bytes.iter().map(|bytes| Some(signed(*bytes))).collect());
    let none = numbers(vec![Some(0); bytes.len()]);
    vec![Arc::clone(&all), Arc::clone(&none), none, all]
}

/// Sizes before and after, twice in the columns of [`PARTS`].
fn stats_arrays(bytes: &[Option<(u64, u64)>]) -> Vec<ArrayRef> {
    let none = numbers(bytes.iter().map(|bytes| bytes.map(|_| 0)).collect());
    let side = |of: fn((u64, u64)) -> u64| {
        let all = numbers(bytes.iter().map(|bytes| bytes.map(|bytes| signed(of(bytes)))).collect());
        [Arc::clone(&all), Arc::clone(&none), Arc::clone(&none), all]
    };
    [side(|bytes| bytes.0), side(|bytes| bytes.1)].concat()
}
