//! The leader's rounds: judge data nodes, plan, and perform what was planned.
//!
//! A round never waits for a copy: each runs as a task of its own and reports to its state. What a task has begun when this
//! node stops leading it may finish: the catalog takes or refuses each of its steps by the state it finds.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hypertide_proto::{
    error::{Code, RpcError},
    ids::{ChunkId, Csn, NodeId, Rid},
    wire::storage::{CatchUpReply, CatchUpRequest, ChunkSpec, ChunksRequest, LostCommits},
};
use tonic::Request;

use super::{
    detect::{SUSPECT_AFTER, Sign, judge},
    plan::{Action, Reason, Scene, SeenCompression, plan},
    progress::Phase,
    rewrite,
};
use crate::{
    Error,
    catalog::{Chunk, ChunkOrigin, Command, DataNode, Health, Held, Joiner, Loss, Outcome},
    memory::now_ms,
    node::{CatalogWriter, Image, MetaNode},
};

/// Pause between two looks at the heartbeats.
const ROUND: Duration = Duration::from_millis(250);
/// Rounds between two plans, when nothing has changed its health.
const ROUNDS_PER_PLAN: u32 = 2;
/// Rounds between two measurements of which chunks are written to.
const ROUNDS_PER_HEAT: u32 = 8;
/// A chunk without a commit for this long is not hot.
const HOT_FOR: Duration = Duration::from_secs(60);
/// Longest wait for the answer to a probe.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// Longest wait for the log.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest that the bulk of a copy takes; after that it goes on from where it is.
const COPY_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest that a replica may hold up commits while it fetches what it missed since the bulk.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Bulk copies before a join, each fetching what was committed during the one before.
const BULKS: usize = 3;
/// A bulk that fetched less than this leaves little for the join.
const BULK_SMALL_BYTES: u64 = 4 << 20;
/// Log time that is this far behind the leader's clock is moved on, so that no jump is seen after a quiet hour.
const TIME_LAG_MS: u64 = 60_000;

/// What this leader knows besides the catalog.
#[derive(Debug, Default)]
struct Watch {
    /// Since when this node leads.
    leads: Option<Instant>,
    probes: BTreeMap<NodeId, bool>,
    /// Rows of chunks and when they were last seen to grow, with the rows a second.
    heat: BTreeMap<ChunkId, (u64, Instant, u64)>,
    measured: Option<Instant>,
    round: u32,
}

/// Runs until the node is gone.
pub(crate) async fn run(node: Weak<MetaNode>) {
    let mut watch = Watch::default();
    loop {
        tokio::time::sleep(ROUND).await;
        let Some(node) = node.upgrade() else { return };
        if node.member().is_ok_and(|member| member.leader.here()) {
            round(&node, &mut watch).await;
        } else {
            watch = Watch::default();
        }
    }
}

async fn round(node: &Arc<MetaNode>, watch: &mut Watch) {
    let leads = *watch.leads.get_or_insert_with(Instant::now);
    watch.round = watch.round.wrapping_add(1);
    let image = node.image();
    let changed = judge_nodes(node, &image, watch, leads).await;
    if watch.round.is_multiple_of(ROUNDS_PER_HEAT) {
        measure(&image, watch);
        keep_time(node, &image).await;
        run_jobs(node, &image).await;
    }
    if changed || watch.round.is_multiple_of(ROUNDS_PER_PLAN) {
        // Judging may have changed the catalog.
        let image = node.image();
        for action in next_actions(node, &image, watch) {
            perform(node, &image, action).await;
        }
    }
}

/// Judges all data nodes; whether one was judged otherwise than before.
async fn judge_nodes(
    node: &Arc<MetaNode>,
    image: &Image,
    watch: &mut Watch,
    leads: Instant,
) -> bool {
    let nodes: Vec<DataNode> = image.catalog.data_nodes().cloned().collect();
    let silence = |data: &DataNode| {
        if data.health != Health::Up {
            return node.fleet().silence(data.rid, None);
        }
        let (silent, steady) = node.fleet().silence(data.rid, Some(leads));
        // A node that has just registered has not had time for a heartbeat.
        let up_for = Duration::from_millis(now_ms().saturating_sub(data.health_since_ms));
        (silent.min(up_for), steady)
    };
    let silences: Vec<(Duration, Duration)> = nodes.iter().map(silence).collect();
    let probes = nodes.iter().zip(&silences).map(async |(data, (silent, _))| {
        let asks = *silent >= SUSPECT_AFTER && data.health == Health::Suspect;
        if asks { Some((data.id(), probe(node, data).await)) } else { None }
    });
    let probes = futures::future::join_all(probes).await;
    watch.probes = probes.into_iter().flatten().collect();
    let mut changed = false;
    for (data, (silent, steady)) in nodes.iter().zip(silences) {
        let answered = watch.probes.get(&data.id()).copied();
        let health = judge(Sign { health: data.health, silent, steady, answered });
        if health == data.health {
            continue;
        }
        let command = Command::SetHealth { rid: data.rid, health };
        if propose(node, command).await.is_some() {
            changed = true;
            let (name, rid) = (&data.name, data.rid);
            match health {
                Health::Up => tracing::info!("data node {name} ({rid}) is up again"),
                Health::Suspect => tracing::info!(
                    "data node {name} ({rid}) is silent for {} ms: reads avoid it",
                    silent.as_millis()
                ),
                Health::Down => tracing::info!(
                    "data node {name} ({rid}) is silent for {} ms and does not answer: it is down, commits go on without it",
                    silent.as_millis()
                ),
            }
        }
    }
    changed
}

/// Whether a data node answers.
async fn probe(node: &MetaNode, data: &DataNode) -> bool {
    let Some(cluster) = node.cluster() else { return false };
    let Ok(mut client) = node.config().channels.storage(&data.rpc) else { return false };
    // There is no chunk zero: the answer is empty.
    let request = ChunksRequest { cluster: Bytes::copy_from_slice(&cluster.0), chunks: vec![0] };
    let asked = tokio::time::timeout(PROBE_TIMEOUT, client.chunks(request)).await;
    matches!(asked, Ok(Ok(_)))
}

/// Notes which chunks grow.
fn measure(image: &Image, watch: &mut Watch) {
    let now = Instant::now();
    let since = watch.measured.replace(now);
    let Some(since) = since else {
        let rows = image.catalog.chunks().map(|chunk| (chunk.id, (chunk.rows, now, 0)));
        // Nothing is known of before: what was just made is taken for hot, the rest has to show it.
        watch.heat = rows.collect();
        watch.heat.values_mut().for_each(|heat| heat.1 = now.checked_sub(HOT_FOR).unwrap_or(now));
        return;
    };
    let seconds = now.duration_since(since).as_millis().max(1);
    for chunk in image.catalog.chunks() {
        let heat = watch.heat.entry(chunk.id).or_insert((0, now, 0));
        let grown = chunk.rows.saturating_sub(heat.0);
        if grown > 0 {
            let rows = u128::from(grown) * 1000 / seconds;
            // Half of the old value, so that a pause between two batches is not taken for the end.
            let rows = u64::try_from(rows).unwrap_or(u64::MAX) / 2 + heat.2 / 2;
            *heat = (chunk.rows, now, rows.max(1));
        }
    }
    watch.heat.retain(|id, _| image.catalog.chunk(*id).is_some());
}

fn hot(watch: &Watch) -> BTreeMap<ChunkId, u64> {
    let warm = watch.heat.iter().filter(|(_, heat)| heat.2 > 0 && heat.1.elapsed() < HOT_FOR);
    warm.map(|(id, heat)| (*id, heat.2)).collect()
}

/// Moves log time on while nothing else does.
async fn keep_time(node: &MetaNode, image: &Image) {
    let at_ms = now_ms();
    if at_ms.saturating_sub(image.catalog.time_ms()) > TIME_LAG_MS {
        let command = Command::AdvanceTime { access: node.id(), at_ms };
        drop(propose(node, command).await);
    }
}

/// Runs the jobs that are due.
async fn run_jobs(node: &MetaNode, image: &Image) {
    let now = now_ms();
    for job in image.catalog.jobs().filter(|job| job.next_ms <= now) {
        let ran = propose(node, Command::RunJob { job: job.id, at_once: false }).await;
        if let Some(Outcome::Job(job, true)) = ran {
            match &job.error {
                Some(error) => tracing::warn!("{job}: {error}"),
                None => tracing::info!("ran {job}"),
            }
        }
    }
}

fn next_actions(node: &MetaNode, image: &Image, watch: &Watch) -> Vec<Action> {
    let (running, failed, compressing, leaving): (_, BTreeSet<_>, _, _) = {
        let (mut jobs, now) = (node.jobs(), Instant::now());
        jobs.forget_failed(now);
        (jobs.running(), jobs.failed(now), jobs.compressing(now), jobs.leaving())
    };
    let (seen, hot) = (node.fleet().seen(), hot(watch));
    plan(&Scene {
        catalog: &image.catalog,
        seen: &seen,
        running: &running,
        failed: &failed,
        compressing: &compressing,
        leaving: &leaving,
        hot: &hot,
        now_ms: now_ms(),
        dead_after_ms: node.tuning().dead_after_ms,
    })
}

/// Puts a command into the log; `None` when it did not get there or was refused.
async fn propose(node: &MetaNode, command: Command) -> Option<Outcome> {
    let line = command.to_string();
    match node.propose(command, Instant::now() + PROPOSE_TIMEOUT).await {
        Ok((_, Ok(outcome))) => Some(outcome),
        Ok((_, Err(reject))) => {
            tracing::debug!("{line}: {reject}");
            None
        }
        Err(error) => {
            tracing::debug!("{line}: {error}");
            None
        }
    }
}

async fn perform(node: &Arc<MetaNode>, image: &Image, action: Action) {
    match action {
        Action::Shrink { rid, chunks } => {
            let outcome = propose(node, Command::Shrink { rid, chunks }).await;
            log_changed(outcome, |count| format!("commits go on without {rid} in {count} chunks"));
        }
        Action::Return { rid, held } => {
            let outcome = propose(node, Command::Return { rid, held }).await;
            log_changed(outcome, |count| {
                format!("{rid} missed nothing in {count} chunks and is in sync again")
            });
        }
        Action::Remove { chunk, rid, damaged } => {
            node.jobs().left(chunk);
            let outcome = propose(node, Command::RemoveReplica { chunk, rid }).await;
            log_changed(outcome, |_| match damaged {
                true => format!("chunk {chunk} is damaged on {rid}: the replica is rebuilt"),
                false => format!("chunk {chunk} is not needed on {rid} any more"),
            });
        }
        Action::Seal { chunk, epoch } => {
            let outcome = propose(node, Command::Seal { chunk, epoch }).await;
            log_changed(outcome, |_| {
                format!("chunk {chunk} lacks a replica and is sealed: new rows go to a new one")
            });
        }
        Action::Compress { chunk, rid } => {
            node.jobs().begin_rewrite((chunk, rid.node));
            node.spawn(rewrite::run(Arc::clone(node), chunk, rid));
        }
        Action::NoteCompressed { chunk, seen: SeenCompression { csn, bytes } } => {
            let command = Command::SetChunkCompressed { chunk, bytes, csn };
            log_changed(propose(node, command).await, |_| format!("chunk {chunk} is compressed"));
        }
        Action::Done { operation } => {
            if propose(node, Command::CancelOrder { operation: operation.clone() }).await.is_some()
            {
                tracing::info!("operation {operation} is done");
            }
        }
        Action::Join { chunk, target, source, reason } => {
            let Some(row) = image.catalog.chunk(chunk).cloned() else { return };
            node.jobs().begin(chunk, target, source, reason);
            let copying = copy(Arc::clone(node), row, (target, source), reason);
            node.spawn(copying);
        }
    }
}

fn log_changed(outcome: Option<Outcome>, text: impl FnOnce(usize) -> String) {
    if let Some(Outcome::Changed(chunks)) = outcome
        && !chunks.is_empty()
    {
        tracing::info!("{}", text(chunks.len()));
    }
}

/// Brings a replica to a node, from the first byte to its place in the in-sync set.
async fn copy(node: Arc<MetaNode>, chunk: Chunk, (target, source): (Rid, Rid), reason: Reason) {
    let key = (chunk.id, target.node);
    match (Copy { node: &node, target, source }).run(chunk).await {
        Ok(()) => {
            let (bytes, took) = node.jobs().end(key).unwrap_or_default();
            let (id, ms) = (key.0, took.as_millis());
            tracing::info!(
                "{target} is in sync of chunk {id} ({reason:?}): {bytes} bytes from {source} in {ms} ms"
            );
        }
        Err(error) => {
            // Said once; a node that is away makes every try fail.
            let failures = node.jobs().fail(key, error.to_string());
            if failures == 1 {
                tracing::info!("copy chunk {} from {source} to {target}: {error}", key.0);
            }
        }
    }
}

struct Copy<'a> {
    node: &'a MetaNode,
    target: Rid,
    source: Rid,
}

impl Copy<'_> {
    async fn run(&self, chunk: Chunk) -> Result<(), RpcError> {
        if chunk.joining.iter().any(|joiner| joiner.rid == self.target) {
            // Begun by a leader that is gone. Commits must not wait for a whole copy.
            self.change(Command::DropJoin { chunk: chunk.id, rid: self.target }).await?;
        }
        for _ in 0..BULKS {
            let reply = self.catch_up(&chunk, None, COPY_TIMEOUT).await?;
            self.note(&chunk, Phase::Copying, &reply);
            if self.returns(&chunk, &reply).await? {
                return Ok(());
            }
            if reply.bytes < BULK_SMALL_BYTES {
                break;
            }
        }
        let joiner = self.start(&chunk).await?;
        self.note(&chunk, Phase::Joining, &CatchUpReply::default());
        let finished = self.finish(&chunk, joiner).await;
        if finished.is_err() {
            let drop = Command::DropJoin { chunk: chunk.id, rid: self.target };
            self.change(drop).await?;
        }
        finished
    }

    /// Tries to take in the replica as it is: no commit may have come since its last.
    async fn returns(&self, chunk: &Chunk, reply: &CatchUpReply) -> Result<bool, RpcError> {
        let held = held(chunk.id, reply.reached_csn, &reply.reached_chain)?;
        let image = self.node.image();
        if image.catalog.chunk(chunk.id).is_none_or(|now| now.last_csn != held.csn) {
            return Ok(false);
        }
        let command = Command::Return { rid: self.target, held: vec![held] };
        let outcome = self.change(command).await?;
        Ok(outcome == Outcome::Changed(vec![chunk.id]))
    }

    async fn start(&self, chunk: &Chunk) -> Result<Joiner, RpcError> {
        let outcome = self.change(Command::StartJoin { chunk: chunk.id, rid: self.target }).await?;
        let Outcome::Chunks(chunks) = outcome else {
            return Err(RpcError::new(Code::Internal, "the start of a join gave no chunk"));
        };
        let mut joiners = chunks.iter().flat_map(|chunk| &chunk.joining);
        let joiner = joiners.find(|joiner| joiner.rid == self.target).copied();
        joiner.ok_or_else(|| {
            let message = format_args!("{} is in sync of chunk {} already", self.target, chunk.id);
            RpcError::new(Code::Stale, message)
        })
    }

    async fn finish(&self, chunk: &Chunk, joiner: Joiner) -> Result<(), RpcError> {
        let place = Some((joiner.csn, joiner.chain));
        let reply = self.catch_up(chunk, place, JOIN_TIMEOUT).await?;
        self.note(chunk, Phase::Joining, &reply);
        let held = held(chunk.id, reply.applied_csn, &reply.chain)?;
        self.change(Command::FinishJoin { rid: self.target, held }).await?;
        Ok(())
    }

    fn note(&self, chunk: &Chunk, phase: Phase, reply: &CatchUpReply) {
        let key = (chunk.id, self.target.node);
        self.node.jobs().advance(key, phase, reply.bytes, reply.whole);
    }

    /// Lets the target fetch what it lacks, up to a place or all that the source has.
    async fn catch_up(
        &self,
        chunk: &Chunk,
        place: Option<(Csn, u128)>,
        within: Duration,
    ) -> Result<CatchUpReply, RpcError> {
        let image = self.node.image();
        let address = |rid: Rid| {
            let known = image.catalog.data_node(rid.node).filter(|node| node.rid == rid);
            known.map(|node| node.rpc.clone()).ok_or_else(|| {
                RpcError::new(Code::Stale, format_args!("{rid} is not registered any more"))
            })
        };
        let now = image.catalog.chunk(chunk.id);
        let gone = || RpcError::new(Code::NotFound, format_args!("chunk {} is gone", chunk.id));
        let now = now.ok_or_else(gone)?;
        let cluster = self.node.cluster().unwrap_or(hypertide_proto::ids::ClusterId([0; 16]));
        let chain = place.map(|(_, chain)| Bytes::copy_from_slice(&chain.to_be_bytes()));
        let mut request = Request::new(CatchUpRequest {
            cluster: Bytes::copy_from_slice(&cluster.0),
            rid: Some(self.target.into()),
            spec: Some(spec(&image, now)),
            epoch: now.epoch.0,
            source: address(self.source)?,
            source_rid: Some(self.source.into()),
            to_csn: place.map_or(0, |(csn, _)| csn.0),
            chain: chain.unwrap_or_default(),
            deadline_ms: u32::try_from(within.as_millis()).unwrap_or(u32::MAX),
            bytes_per_second: match place {
                // Commits wait for the end of a join: it does not hold back.
                Some(_) => 0,
                None => image.catalog.rebalancing().bytes_per_second,
            },
            lost: now.lost.iter().map(lost_commits).collect(),
        });
        request.set_timeout(within);
        let mut client = self.node.config().channels.storage(&address(self.target)?)?;
        let asked = tokio::time::timeout(within, client.catch_up(request)).await;
        let late = |_| RpcError::new(Code::DeadlineExceeded, "the copy took too long");
        Ok(asked.map_err(late)??.into_inner())
    }

    /// Puts a command into the log.
    async fn change(&self, command: Command) -> Result<Outcome, RpcError> {
        let proposed = self.node.propose(command, Instant::now() + PROPOSE_TIMEOUT).await;
        let (index, answer) = proposed.map_err(|error: Error| RpcError::from(error))?;
        // What is read next must know of it.
        self.node.applied(index, Instant::now() + PROPOSE_TIMEOUT).await?;
        answer.map_err(|reject| RpcError::new(Code::Stale, reject))
    }
}

fn lost_commits(loss: &Loss) -> LostCommits {
    LostCommits { after_csn: loss.after.0, up_to_csn: loss.up_to.0 }
}

/// What a data node must know of a chunk to store it.
fn spec(image: &Image, chunk: &Chunk) -> ChunkSpec {
    let table = image.catalog.table(chunk.table);
    let made = table.and_then(|table| table.hypertable());
    let columns = made.into_iter().flat_map(|made| &made.dimensions);
    let stored =
        |name: &str| table.map_or(name, |table| table.columns.stored_name(name)).to_owned();
    let mut columns = columns.map(|dimension| stored(&dimension.column));
    let time = columns.next();
    ChunkSpec {
        chunk: chunk.id.0,
        table: chunk.table.0,
        time_column: time.unwrap_or_default(),
        order_columns: columns.collect(),
        origin: ChunkOrigin::of(chunk).to_bytes().into(),
    }
}

fn held(chunk: ChunkId, csn: u64, chain: &[u8]) -> Result<Held, RpcError> {
    let chain = match chain {
        // A chunk without a commit.
        [] => 0,
        bytes => u128::from_be_bytes(
            bytes
                .try_into()
                .map_err(|_| RpcError::new(Code::Invalid, "field chain does not have 16 bytes"))?,
        ),
    };
    Ok(Held { chunk, csn: Csn(csn), chain })
}
