//! `compress_chunk`, `decompress_chunk`, `recompress_chunk`.
//!
//! What is wanted goes into the catalog first, then every replica in sync is asked to do it, and at last the catalog
//! learns that all did. Should this access node, the statement or a replica be lost in between, the Raft leader brings
//! about what the catalog says is wanted.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use hypertide_meta::{
    catalog::{Chunk, Command, DataNode, Outcome, Table},
    reconcile::compress_request,
};
use hypertide_proto::{
    error::{Code, RpcError},
    ids::{ChunkId, Csn, Rid},
    wire::storage::{ChunkReport, DecompressRequest},
};

use super::{call::Arguments, chunks::quoted, parse::regclass};
use crate::{Engine, Error, Session, block::Rewritten, session::Frame};

/// Parameters of `compress_chunk`, in order; the last is another name of the first.
pub(crate) const COMPRESS_PARAMETERS: &[&str] =
    &["chunk", "if_not_compressed", "uncompressed_chunk"];
/// Parameters of `decompress_chunk`, in order; the last is another name of the first.
pub(crate) const DECOMPRESS_PARAMETERS: &[&str] = &["chunk", "if_compressed", "uncompressed_chunk"];
/// Chunks that a statement has rewritten at once.
const CHUNKS_AT_ONCE: usize = 4;
/// Pause before a replica that failed, or another that took its place, is asked again.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// Bit of a chunk's status: it is compressed.
const STATUS_COMPRESSED: i64 = 1;
/// Bit of a chunk's status: rows came since.
const STATUS_PARTIAL: i64 = 8;

/// Which of the functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// `compress_chunk`.
    Compress,
    /// `decompress_chunk`.
    Decompress,
    /// `recompress_chunk`.
    Recompress,
}

/// The status of a chunk as the reference shows it in bits.
pub(crate) fn status(chunk: &Chunk) -> i64 {
    match (chunk.compressed, chunk.partially_compressed()) {
        (None, _) => 0,
        (Some(_), false) => STATUS_COMPRESSED,
        (Some(_), true) => STATUS_COMPRESSED | STATUS_PARTIAL,
    }
}

/// Runs a function for several chunks; gives the name of each, none where none was given.
pub(crate) async fn run(
    session: &mut Session,
    frame: &Frame,
    change: Change,
    calls: &[Arguments],
) -> Result<Vec<Option<String>>, Error> {
    let by_name = by_name(frame);
    let mut names = Vec::with_capacity(calls.len());
    let mut wanted: Vec<Rewritten> = Vec::new();
    for arguments in calls {
        let Some(text) = arguments.text("chunk")?.or(arguments.text("uncompressed_chunk")?) else {
            names.push(None);
            continue;
        };
        let (schema, name) = regclass(&text)?;
        let found = by_name.get(name.as_str()).into_iter().flatten();
        let mut found = found.filter(|(_, table)| {
            let made = table.hypertable();
            schema.is_none() || made.is_some_and(|m| schema.as_ref() == Some(&m.chunk_schema))
        });
        let missing = || Error::of("42P01", format_args!("chunk \"{text}\" does not exist"));
        let (chunk, table) = found.next().ok_or_else(missing)?;
        let schema = table.hypertable().map_or("", |made| made.chunk_schema.as_str());
        names.push(Some(format!("{}.{}", quoted(schema), quoted(&chunk.name))));
        let before = Rewritten { chunk: chunk.id, compressed: chunk.compressed.is_some() };
        if judge(session, change, (chunk, table), arguments)? && !wanted.contains(&before) {
            wanted.push(before);
        }
    }
    if !wanted.is_empty() {
        let chunks = wanted.iter().map(|before| before.chunk).collect();
        session.block.note_rewritten(wanted);
        settle_all(session, change != Change::Decompress, chunks).await?;
    }
    Ok(names)
}

/// Makes a chunk compressed or not, as it was before a block that is rolled back; nothing when it still is, or is gone.
pub(crate) async fn bring_back(session: &mut Session, before: Rewritten) -> Result<(), Error> {
    let image = session.engine.catalog.image();
    let Some(chunk) = image.catalog.chunk(before.chunk) else { return Ok(()) };
    if chunk.wants_compression() == before.compressed {
        return Ok(());
    }
    settle_all(session, before.compressed, vec![before.chunk]).await
}

/// All chunks of hypertables by their names, which only schemas tell apart.
fn by_name(frame: &Frame) -> HashMap<&str, Vec<(&Chunk, &Table)>> {
    let catalog = &frame.snapshot.image.catalog;
    let mut found: HashMap<&str, Vec<(&Chunk, &Table)>> = HashMap::new();
    for table in catalog.tables().filter(|table| table.hypertable().is_some()) {
        for chunk in catalog.chunks_of(table.id) {
            found.entry(&chunk.name).or_default().push((chunk, table));
        }
    }
    found
}

/// Whether there is something to do; refuses what cannot be done.
fn judge(
    session: &mut Session,
    change: Change,
    (chunk, table): (&Chunk, &Table),
    arguments: &Arguments,
) -> Result<bool, Error> {
    let name = &chunk.name;
    let lenient = match change {
        Change::Decompress => arguments.bool("if_compressed")?,
        _ => arguments.bool("if_not_compressed")?,
    };
    let state = status(chunk);
    let (code, message) = match change {
        Change::Compress | Change::Recompress
            if table.hypertable().is_none_or(|made| made.compression.is_none()) =>
        {
            let message = format_args!("compression not enabled on \"{}\"", table.name);
            return Err(Error::of("0A000", message).with_hint(
                "Enable compression using ALTER TABLE with the timescaledb.compress option.",
            ));
        }
        Change::Compress if state == STATUS_COMPRESSED => {
            ("42710", format!("chunk \"{name}\" is already compressed"))
        }
        // One whose compression was begun, too.
        Change::Decompress if state == 0 && !chunk.wants_compression() => {
            ("42710", format!("chunk \"{name}\" is not compressed"))
        }
        Change::Recompress if state == 0 => {
            ("55000", "call compress_chunk instead of recompress_chunk".to_owned())
        }
        Change::Recompress if state == STATUS_COMPRESSED => {
            ("55000", format!("nothing to recompress in chunk \"{name}\""))
        }
        _ => return Ok(true),
    };
    if lenient != Some(true) {
        return Err(Error::of(code, message));
    }
    session.notice("NOTICE", "00000", message);
    Ok(false)
}

/// Says what is wanted of the chunks and sees to it. The first of several errors is given, after all have ended.
async fn settle_all(
    session: &mut Session,
    compress: bool,
    chunks: Vec<ChunkId>,
) -> Result<(), Error> {
    let asked = session.propose(Command::AskCompression { chunks, compress }).await?;
    let Outcome::Chunks(chunks) = asked else {
        return Err(Error::of("XX000", "the catalog gave no chunks"));
    };
    let deadline = session.deadline();
    let engine = &session.engine;
    let settling = chunks.into_iter().map(|chunk| {
        let settler = Settler { engine: Arc::clone(engine), chunk, deadline };
        settler.run()
    });
    let ended: Vec<Result<u64, Error>> =
        stream::iter(settling).buffered(CHUNKS_AT_ONCE).collect().await;
    for result in ended {
        session.changed_at(result?);
    }
    Ok(())
}

/// Brings all replicas of a chunk to what was asked of it.
struct Settler {
    engine: Arc<Engine>,
    /// As it was when it was asked.
    chunk: Chunk,
    deadline: Instant,
}

impl Settler {
    /// Gives the index of the last change of the catalog, or 0.
    async fn run(self) -> Result<u64, Error> {
        let mut done: BTreeMap<Rid, ChunkReport> = BTreeMap::new();
        // A chunk that nobody ever wrote to is nowhere yet.
        if self.chunk.last_csn > Csn(0) {
            while let Some(error) = self.round(&mut done).await? {
                if Instant::now() + RETRY_DELAY >= self.deadline {
                    return Err(error);
                }
                tokio::time::sleep(RETRY_DELAY).await;
            }
        }
        if !self.chunk.wants_compression() {
            return Ok(0);
        }
        let csn = done.values().map(|report| Csn(report.compressed_csn)).min();
        let report = done.values().next();
        let bytes = report.map_or((0, 0), |report| (report.before_bytes, report.after_bytes));
        let (chunk, csn) = (self.chunk.id, csn.unwrap_or_default());
        let command = Command::SetChunkCompressed { chunk, bytes, csn };
        let deadline = self.deadline.min(Instant::now() + self.engine.config.commit_deadline);
        let (index, answer) = self.engine.catalog.propose(command, deadline).await?;
        answer?;
        self.engine.catalog.applied(index, deadline).await?;
        Ok(index)
    }

    /// Asks all replicas in sync that have not done it; gives an error when some are left.
    async fn round(&self, done: &mut BTreeMap<Rid, ChunkReport>) -> Result<Option<Error>, Error> {
        let image = self.engine.catalog.image();
        let id = self.chunk.id;
        let gone = || Error::of("55000", format_args!("chunk \"{}\" was dropped", self.chunk.name));
        let now = image.catalog.chunk(id).ok_or_else(gone)?;
        if now.asked.map(|asked| asked.up_to) != self.chunk.asked.map(|asked| asked.up_to) {
            let name = &self.chunk.name;
            let message =
                format_args!("chunk \"{name}\" was compressed or decompressed by another");
            return Err(Error::of("40001", message));
        }
        let left = now.in_sync.iter().copied().filter(|rid| !done.contains_key(rid));
        let nodes = left.map(|rid| (rid, image.catalog.data_node(rid.node)));
        let asked = nodes.map(async |(rid, node)| match node.filter(|node| node.rid == rid) {
            Some(node) => (rid, self.ask(now, node).await),
            None => (rid, Err(RpcError::new(Code::Stale, "its disk is not registered any more"))),
        });
        let mut failed = None;
        for (rid, answer) in futures::future::join_all(asked).await {
            match answer {
                Ok(report) => drop(done.insert(rid, report)),
                Err(error) => {
                    let name = image.catalog.data_node(rid.node).map(|node| node.name.clone());
                    let fatal = matches!(error.code, Code::Invalid | Code::DiskFull);
                    let mut error = Error::from(error);
                    error.message = format!("[{}]: {}", name.unwrap_or_default(), error.message);
                    if fatal {
                        return Err(error);
                    }
                    failed = Some(error);
                }
            }
        }
        done.retain(|rid, _| now.in_sync.contains(rid));
        Ok(failed)
    }

    async fn ask(&self, chunk: &Chunk, node: &DataNode) -> Result<ChunkReport, RpcError> {
        let image = self.engine.catalog.image();
        let cluster = self.engine.catalog.cluster();
        let cluster = cluster.map_or_else(Bytes::new, |cluster| Bytes::copy_from_slice(&cluster.0));
        let mut client = self.engine.channels.linked_storage(&node.rpc)?;
        let deadline = tokio::time::Instant::from_std(self.deadline);
        let late = |_| RpcError::new(Code::DeadlineExceeded, "no answer in time");
        let report = match compress_request(&image.catalog, chunk, cluster.clone()) {
            Some(request) => {
                let answer = tokio::time::timeout_at(deadline, client.compress(request)).await;
                answer.map_err(late)??.into_inner().chunk
            }
            None => {
                let request = DecompressRequest { cluster, chunk: chunk.id.0 };
                let answer = tokio::time::timeout_at(deadline, client.decompress(request)).await;
                answer.map_err(late)??.into_inner().chunk
            }
        };
        report.ok_or_else(|| RpcError::new(Code::Invalid, "the answer names no chunk"))
    }
}
