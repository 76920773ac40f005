//! Writes one transaction: chunks are found or made, rows are encoded once and prepared on every replica, and one
//! record commits them.
//!
//! Rows are taken in while earlier ones are still being encoded and on their way, so many at a time that memory stays
//! bounded. Those of a chunk are gathered to parts of a size worth sending. Encoded parts are kept until the end: when the
//! replicas of a chunk change in between, the missing ones are sent again. A writer that is dropped before it has ended
//! aborts its transaction in the background.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::array::RecordBatch;
use hypertide_meta::{
    OpenTxn,
    catalog::{Chunk, ChunkOrigin, Command, Outcome, Rule, Table, TableKind},
};
use hypertide_proto::{
    decision::{Decision, Fate},
    ids::{ChunkId, Epoch, Rid, TableId, TxnId, WriteId},
};
use hypertide_storage::batch::{Encoded, encode};
use tokio::task::{JoinHandle, JoinSet};

use super::{
    check::check_rows,
    deliver::{Delivery, Shipment, contended, decide, prepare},
    gather::Gather,
    split::{Edges, Group, split},
};
use crate::{Engine, Error};

mod acked;
mod commit;
mod reserve;

use acked::Acked;

/// Encoded bytes that a transaction keeps for sending them again.
const KEPT_BYTES_MAX: usize = 256 << 20;
/// Deliveries of one transaction that may be under way.
const DELIVERIES_MAX: usize = 8;
/// Parts of one transaction that may be encoded at a time.
const ENCODINGS_MAX: usize = 4;
/// Rows that wait for others of their chunk take about so many bytes at most.
const GATHERED_BYTES_MAX: usize = 32 << 20;
/// Time after which a delivery that does not end is looked at again.
const LOOK_DELAY: Duration = Duration::from_millis(100);
/// Time that others have to let go of what they reserved, and the pause between two looks.
const RESERVED_PATIENCE: Duration = Duration::from_secs(1);
const RESERVED_DELAY: Duration = Duration::from_millis(4);
/// Pause before a delivery or a proposal is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// Name under which a write is recognised, and the hash of what it writes.
pub(crate) type WriteTag = (WriteId, u128);

/// How a commit ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Committed {
    /// It took effect in the log's entry of this index.
    Now(u64),
    /// Its write id was seen before, with so many rows.
    Before(u64),
    /// It had no rows.
    Empty,
}

/// One chunk's part of the transaction.
#[derive(Clone, Debug)]
struct Share {
    chunk: Chunk,
    table: Arc<Table>,
    parts: Vec<Arc<Encoded>>,
    rows: u64,
    /// With a tombstone among the parts, the epoch in which all must acknowledge it.
    keyed: Option<Epoch>,
    /// Parts that each disk has durably.
    acks: BTreeMap<Rid, Acked>,
}

impl Share {
    /// Disks that hold every part.
    fn covered(&self) -> Vec<Rid> {
        let count = self.count();
        let whole = self.acks.iter().filter(|(_, acked)| acked.whole(count));
        whole.map(|(rid, _)| *rid).collect()
    }

    /// Parts; [`Writer::keep`] lets there be no more than have a number.
    fn count(&self) -> u32 {
        u32::try_from(self.parts.len()).unwrap_or(u32::MAX)
    }

    /// Disks whose acknowledgement the commit needs.
    fn needed(&self) -> impl Iterator<Item = Rid> {
        self.chunk.write_set()
    }
}

/// Which replicas are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Members {
    /// All whose acknowledgement is needed.
    All,
    /// The first in sync: whoever reserves something asks it before the others, so that of two who want the same one
    /// gets it from all.
    First,
}

impl Members {
    fn of(self, share: &Share) -> impl Iterator<Item = Rid> {
        let count = if self == Self::All { usize::MAX } else { 1 };
        share.needed().take(count)
    }
}

/// The table and the key of a group: what its chunk is found by.
type Place = (TableId, Vec<i64>);

/// Rows that wait for others of their chunk.
type Gathers = BTreeMap<Place, Gather>;

/// What a writer took until some moment, shared with it.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    shares: BTreeMap<ChunkId, Share>,
    found: HashMap<Place, ChunkId>,
    edges: HashMap<TableId, Arc<Edges>>,
    kept_bytes: usize,
}

/// A part on its way to be encoded; nothing comes of no rows.
type Encoding = JoinHandle<Result<Option<Encoded>, Error>>;

/// Writes one transaction.
#[derive(Debug)]
pub(crate) struct Writer {
    engine: Arc<Engine>,
    txn: OpenTxn,
    shares: BTreeMap<ChunkId, Share>,
    found: HashMap<Place, ChunkId>,
    /// Edges of older chunks of each table, as its first rows met them.
    edges: HashMap<TableId, Arc<Edges>>,
    gathers: Gathers,
    /// Parts that are being encoded, in the order of their numbers.
    encoding: VecDeque<(Place, Encoding)>,
    under_way: JoinSet<Delivery>,
    failed: Option<Error>,
    kept_bytes: usize,
    /// A chunk that was closed before the commit.
    closed: Option<ChunkId>,
    /// Whether a commit was sent whose answer got lost.
    unsure: bool,
    /// Since when others hold what this reserves.
    held_up: Option<Instant>,
    ended: bool,
}

impl Writer {
    /// A writer of a new transaction.
    pub(crate) fn new(engine: &Arc<Engine>) -> Self {
        Self {
            engine: Arc::clone(engine),
            txn: engine.catalog.begin(),
            shares: BTreeMap::new(),
            found: HashMap::new(),
            edges: HashMap::new(),
            gathers: Gathers::new(),
            encoding: VecDeque::new(),
            under_way: JoinSet::new(),
            failed: None,
            kept_bytes: 0,
            closed: None,
            unsure: false,
            held_up: None,
            ended: false,
        }
    }

    /// All that it took up to the last [`Writer::flush`], to begin [`Writer::again`] from.
    pub(crate) fn kept(&self) -> Kept {
        let share = |share: &Share| Share {
            chunk: share.chunk.clone(),
            table: Arc::clone(&share.table),
            parts: share.parts.clone(),
            rows: share.rows,
            keyed: share.keyed,
            acks: BTreeMap::new(),
        };
        Kept {
            shares: self.shares.iter().map(|(id, one)| (*id, share(one))).collect(),
            found: self.found.clone(),
            edges: self.edges.clone(),
            kept_bytes: self.kept_bytes,
        }
    }

    /// A writer of a new transaction that took what another had kept. Nothing of it is sent yet.
    pub(crate) fn again(engine: &Arc<Engine>, kept: &Kept) -> Self {
        let mut writer = Self::new(engine);
        let Kept { shares, found, edges, kept_bytes } = kept.clone();
        (writer.shares, writer.found, writer.kept_bytes) = (shares, found, kept_bytes);
        writer.edges = edges;
        writer.renew_epochs();
        writer
    }

    /// The transaction.
    pub(crate) fn txn(&self) -> TxnId {
        self.txn.id()
    }

    /// Takes rows whose columns are exactly the table's.
    pub(crate) async fn write(
        &mut self,
        table: &Arc<Table>,
        rows: RecordBatch,
        deadline: Instant,
    ) -> Result<(), Error> {
        // The statement may take long; each of its steps may not.
        let deadline = deadline.min(Instant::now() + self.engine.config.commit_deadline);
        let (cut, edges) = (Arc::clone(table), self.edges(table));
        let mut gathers = std::mem::take(&mut self.gathers);
        let (gathers, groups, parts) = blocking(move || {
            check_rows(&cut, &rows)?;
            let groups = split(&cut, &edges, &rows)?;
            let parts = gather(&mut gathers, &cut, &rows, &groups)?;
            Ok((gathers, groups, parts))
        })
        .await?;
        self.gathers = gathers;
        self.find_chunks(table, &groups, deadline).await?;
        for (place, rows) in parts {
            self.encode(place, move || Ok(Some(encode(&rows)?)));
        }
        self.send_encoded(ENCODINGS_MAX, deadline).await
    }

    /// Edges of the table's chunks that rows must be told apart by.
    fn edges(&mut self, table: &Table) -> Arc<Edges> {
        let edges = self.edges.entry(table.id).or_insert_with(|| {
            let image = self.engine.catalog.image();
            Arc::new(Edges::of(table, image.catalog.chunks_of(table.id)))
        });
        Arc::clone(edges)
    }

    /// Starts to encode a part.
    fn encode(
        &mut self,
        place: Place,
        work: impl FnOnce() -> Result<Option<Encoded>, Error> + Send + 'static,
    ) {
        self.encoding.push_back((place, tokio::task::spawn_blocking(work)));
    }

    /// Sends what is encoded, and waits while more than so many parts are not.
    async fn send_encoded(&mut self, most: usize, deadline: Instant) -> Result<(), Error> {
        let mut fresh: BTreeMap<ChunkId, Vec<u32>> = BTreeMap::new();
        while let Some((_, work)) = self.encoding.front()
            && (self.encoding.len() > most || work.is_finished())
            && let Some((place, work)) = self.encoding.pop_front()
        {
            let part = work.await.map_err(|error| Error::of("XX000", error))??;
            if let Some(part) = part {
                let (chunk, number) = self.keep(&place, part)?;
                fresh.entry(chunk).or_default().push(number);
            }
        }
        self.send_fresh(fresh, deadline).await
    }

    /// Waits until all that was taken is durable everywhere, so that the transaction itself can read it.
    pub(crate) async fn flush(&mut self, deadline: Instant) -> Result<(), Error> {
        for (place, mut gather) in std::mem::take(&mut self.gathers) {
            self.encode(place, move || match gather.finish()? {
                Some(rows) => Ok(Some(encode(&rows)?)),
                None => Ok(None),
            });
        }
        self.send_encoded(0, deadline).await?;
        self.land().await;
        self.cover(Members::All, deadline).await
    }

    /// Makes sure that every group has its chunk, in which all its rows lie.
    async fn find_chunks(
        &mut self,
        table: &Arc<Table>,
        groups: &[Group],
        deadline: Instant,
    ) -> Result<(), Error> {
        let mut missing = Vec::new();
        let image = self.engine.catalog.image();
        for group in groups {
            let key = (table.id, group.key.clone());
            if self.found.contains_key(&key) {
                continue;
            }
            match image.catalog.chunk_at(table.id, &group.point) {
                Some(chunk) => self.take(table, key, chunk.clone()),
                None => missing.push(group),
            }
        }
        if !missing.is_empty() {
            self.make_chunks(table, &missing, deadline).await?;
        }
        self.check_places(table, groups)
    }

    /// Makes the chunks that groups are without.
    async fn make_chunks(
        &mut self,
        table: &Arc<Table>,
        missing: &[&Group],
        deadline: Instant,
    ) -> Result<(), Error> {
        let points = missing.iter().map(|group| group.point.clone()).collect();
        let command = Command::EnsureChunks { table: table.id, points };
        let (_, answer) = self.engine.catalog.propose(command, deadline).await?;
        let Outcome::Chunks(chunks) = answer? else {
            return Err(Error::of("XX000", "the catalog gave no chunks"));
        };
        for (group, chunk) in missing.iter().zip(chunks) {
            self.take(table, (table.id, group.key.clone()), chunk);
        }
        Ok(())
    }

    /// Refuses rows that do not lie in the box of the chunk that was found for them: somebody changed the interval or
    /// the partitions while the statement ran, and a read that looks for them by time or place would miss them.
    fn check_places(&self, table: &Table, groups: &[Group]) -> Result<(), Error> {
        let place = |group: &Group| {
            let chunk = self.found.get(&(table.id, group.key.clone()))?;
            self.shares.get(chunk).map(|share| &share.chunk)
        };
        let astray = |group: &&Group| !place(group).is_some_and(|chunk| group.lies_in(chunk));
        match groups.iter().find(astray) {
            None => Ok(()),
            Some(_) if table.hypertable().is_none() => Ok(()),
            Some(_) => Err(Error::of(
                "40001",
                format_args!("the chunks of table \"{}\" were cut otherwise meanwhile", table.name),
            )
            .with_hint("Run the statement again.")),
        }
    }

    fn take(&mut self, table: &Arc<Table>, key: Place, chunk: Chunk) {
        self.found.insert(key, chunk.id);
        self.shares.entry(chunk.id).or_insert_with(|| Share {
            chunk,
            table: Arc::clone(table),
            parts: Vec::new(),
            rows: 0,
            keyed: None,
            acks: BTreeMap::new(),
        });
    }

    /// Counts the bytes of a part that is to be kept.
    fn keep_bytes(&mut self, part: &Encoded) -> Result<(), Error> {
        self.kept_bytes += part.payload.len();
        if self.kept_bytes <= KEPT_BYTES_MAX {
            return Ok(());
        }
        let limit = KEPT_BYTES_MAX >> 20;
        let message =
            format_args!("transaction too large: its rows take more than {limit} MiB compressed");
        Err(Error::of("53200", message).with_hint("Write the rows in several transactions."))
    }

    /// Keeps an encoded part, and gives its number.
    fn keep(&mut self, key: &Place, part: Encoded) -> Result<(ChunkId, u32), Error> {
        self.keep_bytes(&part)?;
        let share = self.found.get(key).and_then(|chunk| self.shares.get_mut(chunk));
        let share = share.ok_or_else(|| Error::of("XX000", "rows without a chunk"))?;
        share.rows += u64::from(part.rows);
        share.parts.push(Arc::new(part));
        let number = u32::try_from(share.parts.len() - 1)
            .map_err(|_| Error::of("54000", "transaction has too many parts"))?;
        Ok((share.chunk.id, number))
    }

    /// Sends new parts to every replica, one delivery a disk, and waits while too many are under way.
    async fn send_fresh(
        &mut self,
        fresh: BTreeMap<ChunkId, Vec<u32>>,
        deadline: Instant,
    ) -> Result<(), Error> {
        let mut by_disk: BTreeMap<Rid, Vec<(ChunkId, u32)>> = BTreeMap::new();
        for (chunk, numbers) in fresh {
            let Some(share) = self.shares.get(&chunk) else { continue };
            for rid in share.needed() {
                by_disk
                    .entry(rid)
                    .or_default()
                    .extend(numbers.iter().map(|number| (chunk, *number)));
            }
        }
        for (rid, parts) in by_disk {
            while self.under_way.len() >= DELIVERIES_MAX {
                self.join_one().await;
            }
            self.send(rid, parts, deadline);
        }
        // A refusal that no other attempt can mend ends the statement at once.
        self.failed.take().map_or(Ok(()), Err)
    }

    fn send(&mut self, rid: Rid, numbers: Vec<(ChunkId, u32)>, deadline: Instant) {
        let parts = numbers
            .iter()
            .filter_map(|(chunk, number)| {
                let share = self.shares.get(chunk)?;
                let part = share.parts.get(*number as usize)?;
                Some(wire_part(share, *number, part))
            })
            .collect();
        let (engine, txn) = (Arc::clone(&self.engine), self.txn.id());
        self.under_way.spawn(async move {
            let outcome = prepare(&engine, Shipment { txn, rid, parts }, deadline).await;
            Delivery { rid, numbers, outcome }
        });
    }

    /// Waits for a delivery and takes note of it.
    async fn join_one(&mut self) {
        match self.under_way.join_next().await {
            Some(Ok(Delivery { rid, numbers, outcome: Ok(()) })) => {
                for (chunk, number) in numbers {
                    if let Some(share) = self.shares.get_mut(&chunk) {
                        share.acks.entry(rid).or_default().insert(number);
                    }
                }
            }
            // What may be mended is tried again when everything must be covered.
            Some(Ok(Delivery { outcome: Err(error), .. })) if error.transient => {}
            Some(Ok(Delivery { outcome: Err(error), .. })) if error.reserved => {
                let since = *self.held_up.get_or_insert_with(Instant::now);
                if since.elapsed() > RESERVED_PATIENCE {
                    self.failed.get_or_insert(error.error);
                }
            }
            Some(Ok(Delivery { outcome: Err(error), .. })) => {
                self.failed.get_or_insert(error.error);
            }
            Some(Err(error)) => {
                self.failed.get_or_insert(Error::of("XX000", error));
            }
            None => {}
        }
    }

    /// Waits for what is under way, but for deliveries that nobody needs any more: a node that hangs is taken out of the
    /// replicas meanwhile, long before its connection breaks.
    async fn land(&mut self) {
        while !self.under_way.is_empty() && !self.missing(Members::All).is_empty() {
            if tokio::time::timeout(LOOK_DELAY, self.join_one()).await.is_err() {
                self.refresh();
            }
        }
    }

    /// Sends what replicas still lack until none lacks anything.
    async fn cover(&mut self, members: Members, deadline: Instant) -> Result<(), Error> {
        self.held_up = None;
        loop {
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            self.refresh();
            self.check_epochs()?;
            let missing = self.missing(members);
            if missing.is_empty() {
                return Ok(());
            }
            let before = missing.clone();
            for (rid, parts) in missing {
                self.send(rid, parts, deadline);
            }
            self.land().await;
            if self.missing(members) != before {
                continue;
            }
            if self.held_up.is_some() {
                tokio::time::sleep(RESERVED_DELAY).await;
                continue;
            }
            if Instant::now() + RETRY_DELAY >= deadline {
                let names: Vec<String> = before.keys().map(|rid| self.node_name(*rid)).collect();
                let message =
                    format_args!("data node {} did not take the rows in time", names.join(", "));
                return Err(Error::of("57P03", message));
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    fn node_name(&self, rid: Rid) -> String {
        let image = self.engine.catalog.image();
        image.catalog.data_node(rid.node).map_or_else(|| rid.to_string(), |node| node.name.clone())
    }

    /// Parts that these of the replicas of now lack.
    fn missing(&self, members: Members) -> BTreeMap<Rid, Vec<(ChunkId, u32)>> {
        let mut missing: BTreeMap<Rid, Vec<(ChunkId, u32)>> = BTreeMap::new();
        let none = Acked::default();
        for (id, share) in &self.shares {
            for rid in members.of(share) {
                let acked = share.acks.get(&rid).unwrap_or(&none);
                let mut lacks = acked.lacking(share.count()).map(|number| (*id, number)).peekable();
                if lacks.peek().is_some() {
                    missing.entry(rid).or_default().extend(lacks);
                }
            }
        }
        missing
    }

    /// Takes over what the catalog here says of the chunks by now.
    fn refresh(&mut self) {
        let image = self.engine.catalog.image();
        for (id, share) in &mut self.shares {
            if let Some(chunk) =
                image.catalog.chunk(*id).filter(|chunk| chunk.epoch >= share.chunk.epoch)
            {
                share.chunk = chunk.clone();
            }
        }
    }

    fn learn(&mut self, chunk: Chunk) {
        if let Some(share) = self.shares.get_mut(&chunk.id) {
            share.chunk = chunk;
        }
    }

    /// Tells the data nodes in the background what became of the transaction.
    fn tell(&self, decision: Decision) -> JoinHandle<()> {
        let disks: BTreeSet<Rid> = self
            .shares
            .values()
            .flat_map(|share| share.acks.keys().copied().chain(share.needed()))
            .collect();
        tokio::spawn(decide(Arc::clone(&self.engine), disks, decision))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.ended || self.shares.is_empty() {
            return;
        }
        self.under_way.abort_all();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (engine, txn) = (Arc::clone(&self.engine), self.txn.id());
        let disks: BTreeSet<Rid> = self
            .shares
            .values()
            .flat_map(|share| share.acks.keys().copied().chain(share.needed()))
            .collect();
        runtime.spawn(async move {
            let deadline = Instant::now() + engine.config.commit_deadline;
            let answer = engine.catalog.propose(Command::Abort { txn }, deadline).await;
            // The log decides: a commit without an answer may have come before.
            let fate = match answer {
                Ok((_, Ok(Outcome::Committed { decision, .. }))) => decision.fate,
                Ok((_, Ok(_))) => Fate::Aborted,
                Ok((_, Err(reject))) => return tracing::warn!(%txn, %reject, "abort refused"),
                Err(error) => return tracing::warn!(%txn, %error, "abort without an answer"),
            };
            decide(engine, disks, Decision { txn, fate }).await;
        });
    }
}

/// The message of a part.
fn wire_part(share: &Share, number: u32, part: &Encoded) -> hypertide_proto::wire::storage::Part {
    let mut spec = hypertide_proto::wire::storage::ChunkSpec {
        chunk: share.chunk.id.0,
        table: share.table.id.0,
        origin: ChunkOrigin::of(&share.chunk).to_bytes().into(),
        ..Default::default()
    };
    let stored = |name: &str| share.table.columns.stored_name(name).to_owned();
    if let TableKind::Hypertable(hypertable) = &share.table.kind {
        for dimension in &hypertable.dimensions {
            match dimension.rule {
                Rule::Time { .. } => spec.time_column = stored(&dimension.column),
                Rule::Hash { .. } => spec.order_columns.push(stored(&dimension.column)),
            }
        }
    }
    hypertide_proto::wire::storage::Part {
        spec: Some(spec),
        epoch: share.chunk.epoch.0,
        part: number,
        rows: part.rows,
        hash: part.hash.to_be_bytes().to_vec().into(),
        payload: part.payload.clone(),
        decoded_bytes: part.decoded_bytes,
    }
}

/// Puts rows to those that wait; gives the parts that are complete, and all when too much would wait.
fn gather(
    gathers: &mut Gathers,
    table: &Table,
    rows: &RecordBatch,
    groups: &[Group],
) -> Result<Vec<(Place, RecordBatch)>, Error> {
    let mut parts = Vec::new();
    for Group { key, rows: positions, .. } in groups {
        let place = (table.id, key.clone());
        let gather = gathers.entry(place.clone());
        let gather = gather.or_insert_with(|| Gather::new(table.columns.to_stored()));
        let complete = gather.add(rows, positions)?;
        parts.extend(complete.into_iter().map(|rows| (place.clone(), rows)));
    }
    if gathers.values().map(Gather::bytes).sum::<usize>() > GATHERED_BYTES_MAX {
        for (place, mut gather) in std::mem::take(gathers) {
            parts.extend(gather.finish()?.map(|rows| (place, rows)));
        }
    }
    Ok(parts)
}

/// Runs work that takes a while on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::of("XX000", error)),
    }
}

#[cfg(test)]
#[path = "send_tests.rs"]
mod tests;
