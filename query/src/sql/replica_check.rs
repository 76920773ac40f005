//! `hypertide_check`: compares the replicas of chunks with each other and with the catalog, all at one snapshot.
//!
//! Of each replica in sync it takes the running hash over its commits up to the chunk's last one at the snapshot, which
//! equals the catalog's only if the same commits came in the same order with the same bytes; the rows that those commits
//! brought; and, by a scan, the rows that the snapshot sees. With `checksums` every stored block is read and decoded.
//!
//! What could not be looked at is NULL in column `ok`: it is not known to be wrong.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{
    array::{ArrayRef, BooleanArray, Int64Array, StringArray},
    datatypes::{DataType, Field},
};
use datafusion::prelude::SessionContext;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use hypertide_meta::{
    Image,
    catalog::{Chunk, ChunkState, Table},
};
use hypertide_proto::{
    error::{Code, RpcError},
    ids::{ChunkId, NodeId, Rid},
    wire::storage::{CheckChunkRequest, PointFound, PointWanted, PointsRequest},
};

use super::{
    accept_loss::advice, call::Arguments, move_chunk::find_chunk, parse::regclass,
    table::find_named,
};
use crate::{Engine, Error, Session, exec::count_rows, session::Frame};

/// Parameters, in order.
pub(crate) const PARAMETERS: &[&str] = &["relation", "checksums"];
/// Longest wait for a replica to have applied what was committed before the check.
const APPLY_TIMEOUT: Duration = Duration::from_secs(10);
const APPLY_PAUSE: Duration = Duration::from_millis(50);
/// Longest wait for one answer that costs the node little.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for reading and decoding all of one replica.
const READ_TIMEOUT: Duration = Duration::from_secs(300);
/// SQLSTATE of what is read from wrong bytes.
const DATA_CORRUPTED: &str = "XX001";
/// Nodes that are visited at once, and replicas of one node that are read at once.
const NODES_AT_ONCE: usize = 8;
const READS_AT_ONCE: usize = 2;

/// Columns: one row a replica.
pub(crate) fn columns() -> Vec<Field> {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let number = |name: &str| Field::new(name, DataType::Int64, true);
    vec![
        text("hypertable_schema"),
        text("hypertable_name"),
        text("chunk_name"),
        number("chunk_id"),
        text("node_name"),
        number("csn"),
        number("rows"),
        Field::new("ok", DataType::Boolean, true),
        text("problem"),
    ]
}

/// Runs the check.
pub(crate) async fn run(
    session: &mut Session,
    frame: &Frame,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    if frame.snapshot.own.is_some() {
        let message = "hypertide_check cannot run in a transaction that has written";
        return Err(Error::of("25001", message));
    }
    let chunks = chosen(session, frame, arguments)?;
    let checksums = arguments.bool("checksums")?.unwrap_or(false);
    let mut by_node: BTreeMap<NodeId, Vec<ChunkId>> = BTreeMap::new();
    for (_, chunk) in &chunks {
        for rid in &chunk.in_sync {
            by_node.entry(rid.node).or_default().push(chunk.id);
        }
    }
    let visits = by_node.into_iter().map(|(node, chunks)| {
        let visit = Visit {
            engine: Arc::clone(&session.engine),
            image: Arc::clone(&frame.snapshot.image),
            ctx: frame.ctx.clone(),
            deadline: frame.deadline,
            node,
            checksums,
        };
        async move { (node, Arc::new(visit).look(chunks).await) }.boxed()
    });
    let visits: Vec<BoxFuture<'static, _>> = visits.collect();
    let visited: BTreeMap<NodeId, BTreeMap<ChunkId, Seen>> =
        stream::iter(visits).buffer_unordered(NODES_AT_ONCE).collect().await;
    // A replica that was taken off its chunk meanwhile owes nothing any more.
    let now = session.engine.catalog.barrier(session.commit_deadline()).await?;
    let mut rows = Vec::new();
    for (table, chunk) in &chunks {
        let Some(after) = now.catalog.chunk(chunk.id) else { continue };
        let mut judged = judge(frame, (table, chunk), &visited);
        judged.retain(|row| row.rid.is_none_or(|rid| after.in_sync.contains(&rid)));
        rows.extend(judged);
    }
    Ok(arrays(&rows))
}

/// The chunks of a relation, the chunk that it is, or all there are.
fn chosen<'a>(
    session: &Session,
    frame: &'a Frame,
    arguments: &Arguments,
) -> Result<Vec<(&'a Table, &'a Chunk)>, Error> {
    let image = &frame.snapshot.image;
    let catalog = &image.catalog;
    let all = |table: &'a Table| catalog.chunks_of(table.id).map(move |chunk| (table, chunk));
    let Some(relation) = arguments.text("relation")? else {
        return Ok(catalog.tables().flat_map(all).collect());
    };
    let (schema, name) = regclass(&relation)?;
    let path = session.settings.get("search_path").unwrap_or_default();
    if let Ok(found) = find_named(image, schema.as_deref(), &name, path) {
        return Ok(catalog.table(found.id).into_iter().flat_map(all).collect());
    }
    let chunk = find_chunk(frame, &relation).map_err(|_| Error::no_relation(&relation))?;
    let table = catalog.table(chunk.table).ok_or_else(|| Error::no_relation(&relation))?;
    Ok(vec![(table, chunk)])
}

/// What was found of a replica.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Rows that the snapshot sees.
    rows: Option<u64>,
    /// What is wrong with it.
    wrong: Option<String>,
    /// Why it could not be looked at.
    unknown: Option<String>,
}

/// A look at the replicas of one node.
struct Visit {
    engine: Arc<Engine>,
    image: Arc<Image>,
    ctx: SessionContext,
    deadline: Instant,
    node: NodeId,
    checksums: bool,
}

impl Visit {
    async fn look(self: Arc<Self>, chunks: Vec<ChunkId>) -> BTreeMap<ChunkId, Seen> {
        let mut points = match self.points(&chunks).await {
            Ok(points) => points,
            Err(error) => {
                let unknown = Some(error.message);
                let seen = Seen { unknown, ..Seen::default() };
                return chunks.into_iter().map(|id| (id, seen.clone())).collect();
            }
        };
        let looks = chunks.into_iter().map(|id| {
            let (visit, point) = (Arc::clone(&self), points.remove(&id));
            async move { (id, visit.replica(id, point).await) }.boxed()
        });
        let looks: Vec<BoxFuture<'static, _>> = looks.collect();
        stream::iter(looks).buffer_unordered(READS_AT_ONCE).collect().await
    }

    /// Where the replicas stood at the last commit of their chunks. Those that are told late are waited for.
    async fn points(&self, chunks: &[ChunkId]) -> Result<BTreeMap<ChunkId, PointFound>, RpcError> {
        let last = |id: &ChunkId| self.image.catalog.chunk(*id).map_or(0, |chunk| chunk.last_csn.0);
        let deadline = Instant::now() + APPLY_TIMEOUT;
        let mut found: BTreeMap<ChunkId, PointFound> = BTreeMap::new();
        let mut missing = chunks.to_vec();
        while !missing.is_empty() {
            let wanted = missing.iter().map(|id| PointWanted { chunk: id.0, csn: last(id) });
            for point in self.ask(wanted.collect()).await? {
                found.insert(ChunkId(point.chunk), point);
            }
            let late =
                |id: &ChunkId| found.get(id).is_none_or(|point| point.applied_csn < last(id));
            missing.retain(late);
            if Instant::now() + APPLY_PAUSE >= deadline {
                break;
            }
            if !missing.is_empty() {
                tokio::time::sleep(APPLY_PAUSE).await;
            }
        }
        Ok(found)
    }

    async fn ask(&self, wanted: Vec<PointWanted>) -> Result<Vec<PointFound>, RpcError> {
        let (mut client, cluster) = self.client()?;
        let rid = self.image.catalog.data_node(self.node).map(|node| node.rid.into());
        let request = PointsRequest { cluster, rid, wanted };
        let asked = tokio::time::timeout(ASK_TIMEOUT, client.points(request)).await;
        Ok(asked.map_err(|_| silent())??.into_inner().found)
    }

    async fn replica(&self, id: ChunkId, point: Option<PointFound>) -> Seen {
        let mut seen = Seen::default();
        let Some(chunk) = self.image.catalog.chunk(id) else { return seen };
        match &point {
            None => seen.unknown = Some("the node did not tell of it".to_owned()),
            Some(point) => compare(chunk, point, &mut seen),
        }
        if seen.wrong.is_some() {
            return seen;
        }
        let limit = READ_TIMEOUT.min(self.deadline.saturating_duration_since(Instant::now()));
        let counted = count_rows(&self.ctx, &self.image, chunk, self.node);
        match tokio::time::timeout(limit, counted).await {
            Ok(Ok(rows)) => seen.rows = Some(rows),
            Ok(Err(error)) => note(&mut seen, Error::from(error)),
            Err(_) => seen.unknown = Some("reading it took too long".to_owned()),
        }
        if self.checksums && chunk.last_csn.0 > 0 {
            self.read_all(chunk, &mut seen, limit).await;
        }
        seen
    }

    /// Lets the node read and decode all that it stores of the chunk.
    async fn read_all(&self, chunk: &Chunk, seen: &mut Seen, limit: Duration) {
        let work = async {
            let (mut client, cluster) = self.client()?;
            let request = CheckChunkRequest { cluster, chunk: chunk.id.0 };
            let asked = tokio::time::timeout(limit, client.check_chunk(request)).await;
            Ok::<_, RpcError>(asked.map_err(|_| silent())??.into_inner().faults)
        };
        match work.await {
            Err(error) => seen.unknown = Some(error.message),
            Ok(faults) => {
                let Some(first) = faults.first() else { return };
                let segment = first.segment.map(|number| format!(" (segment {number})"));
                seen.wrong = Some(format!(
                    "{} faults in its file, first: {}{}",
                    faults.len(),
                    first.what,
                    segment.unwrap_or_default()
                ));
            }
        }
    }

    fn client(&self) -> Result<(StorageClient, bytes::Bytes), RpcError> {
        let gone = || RpcError::new(Code::Unavailable, "the node is gone");
        let node = self.image.catalog.data_node(self.node).ok_or_else(gone)?;
        let cluster = self.engine.catalog.cluster().ok_or_else(gone)?;
        let client = self.engine.channels.linked_storage(&node.rpc)?;
        Ok((client, cluster.0.to_vec().into()))
    }
}

type StorageClient =
    hypertide_proto::wire::storage::storage_client::StorageClient<hypertide_proto::client::Link>;

fn silent() -> RpcError {
    RpcError::new(Code::Unavailable, "the node does not answer")
}

/// A replica that says itself that it is damaged is wrong; one that cannot be read is not known.
fn note(seen: &mut Seen, error: Error) {
    let damaged = error.state.0 == DATA_CORRUPTED;
    let place = if damaged { &mut seen.wrong } else { &mut seen.unknown };
    *place = Some(error.message);
}

/// Compares what a replica says of its commits with the catalog.
fn compare(chunk: &Chunk, found: &PointFound, seen: &mut Seen) {
    let csn = chunk.last_csn.0;
    if !found.held && csn > 0 {
        seen.wrong = Some("the node does not hold it".to_owned());
    } else if found.applied_csn < csn {
        seen.wrong = Some(format!("it stands at commit {}, not at {csn}", found.applied_csn));
    } else if let Some(point) = &found.point {
        let chain = chunk.chain.to_be_bytes();
        let known = if csn == 0 { point.rows == 0 } else { point.chain == chain.as_slice() };
        if !known {
            seen.wrong = Some(format!("its history up to commit {csn} is another one"));
        } else if point.rows != chunk.rows {
            let (rows, wanted) = (point.rows, chunk.rows);
            seen.wrong = Some(format!("its commits brought {rows} rows, not {wanted}"));
        }
    } else {
        seen.unknown = Some(format!("its history at commit {csn} is not kept any more"));
    }
}

/// A row of the result.
struct Row<'a> {
    table: &'a Table,
    chunk: &'a Chunk,
    rid: Option<Rid>,
    node: Option<String>,
    seen: Seen,
}

/// The rows of a chunk: its replicas, and what only shows when they are compared.
fn judge<'a>(
    frame: &Frame,
    (table, chunk): (&'a Table, &'a Chunk),
    visited: &BTreeMap<NodeId, BTreeMap<ChunkId, Seen>>,
) -> Vec<Row<'a>> {
    if chunk.state == ChunkState::Damaged || chunk.in_sync.is_empty() {
        let wrong = Some(format!("no replica is complete any more. {}", advice(chunk)));
        let seen = Seen { wrong, ..Seen::default() };
        return vec![Row { table, chunk, rid: None, node: None, seen }];
    }
    let catalog = &frame.snapshot.image.catalog;
    let row = |rid: Rid| {
        let node = rid.node;
        let seen = visited.get(&node).and_then(|seen| seen.get(&chunk.id)).cloned();
        let name = catalog.data_node(node).map_or_else(|| node.to_string(), |at| at.name.clone());
        Row { table, chunk, rid: Some(rid), node: Some(name), seen: seen.unwrap_or_default() }
    };
    let mut rows: Vec<Row<'a>> = chunk.in_sync.iter().map(|rid| row(*rid)).collect();
    let counts: Vec<(String, u64)> =
        rows.iter().filter_map(|row| Some((row.node.clone()?, row.seen.rows?))).collect();
    let differ = counts.iter().any(|(_, rows)| Some(*rows) != counts.first().map(|first| first.1));
    for row in rows.iter_mut().filter(|row| row.seen.wrong.is_none()) {
        if differ {
            let counts = counts.iter().map(|(node, rows)| format!("{rows} on {node}"));
            let counts: Vec<String> = counts.collect();
            row.seen.wrong = Some(format!("replicas have different rows: {}", counts.join(", ")));
        } else if row.seen.rows.is_some_and(|rows| rows > chunk.rows) {
            let rows = row.seen.rows.unwrap_or_default();
            row.seen.wrong = Some(format!("it has {rows} rows of {} committed", chunk.rows));
        }
    }
    rows
}

fn arrays(rows: &[Row<'_>]) -> Vec<ArrayRef> {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let text = |of: fn(&Row<'_>) -> Option<String>| -> ArrayRef {
        Arc::new(rows.iter().map(of).collect::<StringArray>())
    };
    let ok = |seen: &Seen| match (&seen.wrong, &seen.unknown) {
        (Some(_), _) => Some(false),
        (None, Some(_)) => None,
        (None, None) => Some(true),
    };
    vec![
        text(|row| Some(row.table.schema.clone())),
        text(|row| Some(row.table.name.clone())),
        text(|row| Some(row.chunk.name.clone())),
        Arc::new(rows.iter().map(|row| Some(number(row.chunk.id.0))).collect::<Int64Array>()),
        text(|row| row.node.clone()),
        Arc::new(rows.iter().map(|row| Some(number(row.chunk.last_csn.0))).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|row| row.seen.rows.map(number)).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|row| ok(&row.seen)).collect::<BooleanArray>()),
        text(|row| row.seen.wrong.clone().or_else(|| row.seen.unknown.clone())),
    ]
}
