//! A store at work on a disk that remembers, and what it promised while it worked.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use hypertide_proto::{
    decision::Decision,
    ids::{ChunkId, Csn},
};
use hypertide_storage::{
    ChunkState, ChunkStore, CompressionSpec, Error, OrderBy, ScanRequest, StoreConfig,
};

use crate::support::{
    Content, Gone, Random, Row, abort, commit, config,
    disk::{Image, Machine},
    read, request, rows_of, txn,
};

/// A place in the log of a disk.
type Position = usize;

/// What a transaction brought: chunk, number of the part, rows or a delete.
pub type Parts = Vec<(u64, u32, Content)>;

/// How a transaction ended, as the log of the cluster has it.
#[derive(Clone, Debug)]
pub struct Ended {
    pub at: Position,
    pub decision: Decision,
    /// `None` when it was aborted.
    pub csn: Option<u64>,
}

/// Something that was asked for, and whether it was answered.
#[derive(Clone, Debug)]
pub struct Asked<T> {
    pub what: T,
    pub from: Position,
    pub answered: Option<Position>,
}

/// All that was promised, and when.
#[derive(Clone, Debug, Default)]
pub struct Promises {
    pub sent: BTreeMap<u64, (Position, Parts)>,
    pub acknowledged: BTreeMap<u64, Position>,
    pub ended: BTreeMap<u64, Ended>,
    /// With the snapshot from which on they are not asked for.
    pub dropped: BTreeMap<u64, Asked<u64>>,
    /// Compressions and their undoings, by chunk.
    pub states: BTreeMap<u64, Vec<Asked<ChunkState>>>,
    /// How long old versions are kept.
    pub version_age: Duration,
    next_txn: u64,
    next_csn: u64,
    last: BTreeMap<u64, u64>,
}

impl Promises {
    /// How many of them stand at a position.
    pub fn count(&self, at: Position) -> usize {
        let acknowledged = self.acknowledged.values().filter(|from| **from <= at).count();
        let ended = self.ended.values().filter(|ended| ended.at <= at).count();
        let dropped = self.dropped.values().filter(|asked| asked.answered <= Some(at)).count();
        acknowledged + ended + dropped
    }

    /// Rows of a chunk that are visible at a snapshot, by what the log said at a position.
    fn rows(&self, chunk: u64, snapshot: u64, at: Position) -> Vec<Row> {
        let visible =
            |ended: &&Ended| ended.at <= at && ended.csn.is_some_and(|csn| csn <= snapshot);
        let txns = self.ended.iter().filter(|(_, ended)| visible(ended));
        let parts = txns.flat_map(|(id, ended)| {
            let csn = ended.csn.unwrap_or_default();
            self.sent[id].1.iter().filter(|part| part.0 == chunk).map(move |part| (csn, &part.2))
        });
        let parts: Vec<(u64, &Content)> = parts.collect();
        let deletes: Vec<&Gone> = parts.iter().filter_map(|(_, content)| content.gone()).collect();
        let rows = parts.iter().flat_map(|(csn, part)| part.rows().iter().map(|row| (*csn, row)));
        let left = rows.filter(|(csn, row)| !deletes.iter().any(|gone| gone.takes(*csn, row)));
        sorted(left.map(|(_, row)| row.clone()).collect())
    }

    /// Whether a chunk that a snapshot has may have been unlinked.
    fn unlinked_after(&self, snapshot: u64, at: Position) -> bool {
        let mut dropped = self.dropped.values().filter(|asked| asked.from <= at);
        self.version_age.is_zero() && dropped.any(|asked| asked.what > snapshot)
    }

    /// Whether a delete after the snapshot may have taken rows for good.
    fn may_be_too_old(&self, chunk: u64, snapshot: u64, at: Position) -> bool {
        self.ended.iter().any(|(id, ended)| {
            let deletes = |part: &(u64, u32, Content)| part.0 == chunk && part.2.gone().is_some();
            ended.at <= at
                && ended.csn.is_some_and(|csn| csn > snapshot)
                && self.sent[id].1.iter().any(deletes)
        })
    }
}

pub fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by(|a, b| a.partial_cmp(b).unwrap());
    rows
}

/// Nothing happens by itself, so that a seed names a run.
pub fn quiet() -> StoreConfig {
    let version_age = Duration::ZERO;
    StoreConfig { background: false, version_age, ..config(Path::new("/data")) }
}

pub fn open(machine: &Machine) -> Result<Arc<ChunkStore>, Error> {
    open_keeping(machine, Duration::ZERO)
}

fn open_keeping(machine: &Machine, version_age: Duration) -> Result<Arc<ChunkStore>, Error> {
    ChunkStore::open_on(StoreConfig { version_age, ..quiet() }, Arc::new(machine.clone()))
}

/// A store, its disk, and what it promised.
pub struct Work {
    pub machine: Machine,
    pub store: Arc<ChunkStore>,
    pub promises: Promises,
    random: Random,
    chunks: Vec<u64>,
}

impl Work {
    pub fn new(machine: Machine, seed: u64) -> Result<Self, Error> {
        // One in three keeps what was removed for longer than it runs.
        let version_age = Duration::from_secs(if seed.is_multiple_of(3) { 3600 } else { 0 });
        let store = open_keeping(&machine, version_age)?;
        let promises = Promises { version_age, ..Promises::default() };
        let random = Random(seed);
        Ok(Self { machine, store, promises, random, chunks: vec![1, 2] })
    }

    /// Works for so many steps.
    pub async fn run(&mut self, steps: usize) -> Result<(), Error> {
        for _ in 0..steps {
            self.step().await?;
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<(), Error> {
        let chunk = self.chunks[self.random.below(self.chunks.len() as u64) as usize];
        match self.random.below(28) {
            0..=7 => self.prepare().await,
            8..=12 => self.decide(),
            13..=17 => self.store.flush(&[ChunkId(chunk)]),
            18 => self.trickle(chunk).await,
            19..=20 => self.compress(chunk),
            21 => self.rewrite(chunk, ChunkState::Plain, |store| store.decompress(ChunkId(chunk))),
            22 => self.reopen(),
            23..=25 => self.delete(chunk).await,
            // No chunk has this number: what the journal has not written yet becomes durable, and that is all.
            26 => self.store.flush(&[ChunkId(0)]),
            _ => self.drop_one(chunk),
        }
    }

    fn compress(&mut self, chunk: u64) -> Result<(), Error> {
        let time = OrderBy {
            column: "time".into(),
            descending: self.random.below(2) == 0,
            nulls_first: false,
        };
        let spec = CompressionSpec { segment_by: vec!["device".into()], order_by: vec![time] };
        self.rewrite(chunk, ChunkState::Compressed, |store| store.compress(ChunkId(chunk), spec))
    }

    fn rewrite<T>(
        &mut self,
        chunk: u64,
        what: ChunkState,
        run: impl FnOnce(&ChunkStore) -> Result<T, Error>,
    ) -> Result<(), Error> {
        if self.store.report(&[ChunkId(chunk)]).is_empty() {
            return Ok(());
        }
        let states = self.promises.states.entry(chunk).or_default();
        let from = self.machine.log_len();
        states.push(Asked { what, from, answered: None });
        run(&self.store)?;
        states.last_mut().unwrap().answered = Some(self.machine.log_len());
        Ok(())
    }

    /// Many small flushes, and a merge of what they left.
    async fn trickle(&mut self, chunk: u64) -> Result<(), Error> {
        for _ in 0..10 {
            let count = 1 + self.random.below(5) as i64;
            let rows = |id: u64| vec![(chunk, 0, Content::Rows(rows_of(id as i64, count)))];
            let id = self.send(rows).await?;
            self.end(id, true)?;
            self.store.flush(&[ChunkId(chunk)])?;
        }
        self.store.merge(ChunkId(chunk))
    }

    async fn prepare(&mut self) -> Result<(), Error> {
        let mut shares = Vec::new();
        for chunk in self.chunks.clone() {
            for number in 0..self.random.below(3) as u32 {
                shares.push((chunk, number, 1 + self.random.below(60) as i64));
            }
        }
        if shares.is_empty() {
            return Ok(());
        }
        let rows = |id: u64, number: u32, count| {
            Content::Rows(rows_of(id as i64 * 10 + i64::from(number), count))
        };
        self.send(|id| shares.iter().map(|&(c, n, count)| (c, n, rows(id, n, count))).collect())
            .await?;
        Ok(())
    }

    /// Deletes some rows and, in the same transaction, brings others, as an update does.
    async fn delete(&mut self, chunk: u64) -> Result<(), Error> {
        let gone = Gone {
            snapshot: self.promises.next_csn,
            device: format!("d{}", self.random.below(5)),
            until: self.random.below(self.promises.next_txn * 10 + 1) as i64 * 1_000_000,
        };
        let rows = |id: u64| Content::Rows(rows_of(id as i64 * 10, 3));
        let sent = self.send(|id| vec![(chunk, 0, Content::Delete(gone)), (chunk, 1, rows(id))]);
        match sent.await {
            // Another delete is under way: the transaction ends, as the one who sent it would have it.
            Err(Error::Contended { .. } | Error::Reserved { .. }) => {
                self.end(self.promises.next_txn, false)
            }
            sent => sent.map(|_| ()),
        }
    }

    async fn send(&mut self, parts: impl FnOnce(u64) -> Parts) -> Result<u64, Error> {
        self.promises.next_txn += 1;
        let id = self.promises.next_txn;
        let parts = parts(id);
        let sent =
            parts.iter().map(|(chunk, number, content)| content.part(*chunk, *number)).collect();
        self.promises.sent.insert(id, (self.machine.log_len(), parts));
        self.store.prepare(txn(id), sent).await?;
        self.promises.acknowledged.insert(id, self.machine.log_len());
        Ok(id)
    }

    fn decide(&mut self) -> Result<(), Error> {
        let open: Vec<u64> = self.promises.acknowledged.keys().copied().collect();
        for id in open {
            if !self.promises.ended.contains_key(&id) && self.random.below(2) == 0 {
                let committed = self.random.below(5) > 0;
                self.end(id, committed)?;
            }
        }
        Ok(())
    }

    fn end(&mut self, id: u64, committed: bool) -> Result<(), Error> {
        let at = self.machine.log_len();
        let ended = if committed {
            self.promises.next_csn += 1 + self.random.below(3);
            let csn = self.promises.next_csn;
            let mut chunks: Vec<u64> = self.promises.sent[&id].1.iter().map(|p| p.0).collect();
            chunks.dedup();
            let prev = |chunk: &u64| (*chunk, self.promises.last.get(chunk).copied().unwrap_or(0));
            let links: Vec<(u64, u64)> = chunks.iter().map(prev).collect();
            self.promises.last.extend(chunks.iter().map(|chunk| (*chunk, csn)));
            Ended { at, decision: commit(id, csn, &links), csn: Some(csn) }
        } else {
            Ended { at, decision: abort(id), csn: None }
        };
        let decision = ended.decision.clone();
        self.promises.ended.insert(id, ended);
        self.store.decide(&[decision])
    }

    fn reopen(&mut self) -> Result<(), Error> {
        self.store.close();
        self.store = open_keeping(&self.machine, self.promises.version_age)?;
        // What is pending is asked about, as a data node does it.
        for (txn, _) in self.store.pending(&[]) {
            if let Some(ended) = self.promises.ended.get(&txn.seq) {
                self.store.decide(std::slice::from_ref(&ended.decision))?;
            }
        }
        Ok(())
    }

    /// Drops a chunk, of whose place another takes.
    fn drop_one(&mut self, chunk: u64) -> Result<(), Error> {
        // What is under way must end first, as the catalog has it.
        let open: Vec<u64> = self.promises.acknowledged.keys().copied().collect();
        for id in
            open.into_iter().filter(|id| !self.promises.ended.contains_key(id)).collect::<Vec<_>>()
        {
            self.end(id, true)?;
        }
        let next = self.chunks.iter().max().unwrap() + 1;
        self.chunks.retain(|known| *known != chunk);
        self.chunks.push(next);
        let (from, what) = (self.machine.log_len(), self.promises.next_csn + 1);
        self.promises.dropped.insert(chunk, Asked { what, from, answered: None });
        self.store.drop_chunks(&[ChunkId(chunk)], Csn(what))?;
        let answered = Some(self.machine.log_len());
        self.promises.dropped.insert(chunk, Asked { what, from, answered });
        Ok(())
    }
}

/// How much of a recovered store is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// That it opens and holds what was promised.
    Plain,
    /// That it also goes on working, and holds it after another start.
    Deep,
    /// As [`Depth::Plain`], after a recovery that itself went on working before it was cut.
    Again,
}

/// Opens what a cut left, and compares it with what was promised before it. Gives the disk, used by the recovery.
pub fn verify(image: &Image, promises: &Promises, at: Position, depth: Depth) -> Machine {
    let machine = Machine::new(image.clone());
    let store = open_keeping(&machine, promises.version_age);
    let store = store.unwrap_or_else(|error| panic!("it does not open: {error}"));
    assert_eq!(store.damaged(), [], "something is damaged");
    check_pending(&store, promises, at);
    check_rows(&store, promises, at);
    if depth != Depth::Again {
        check_states(&store, promises, at);
    }
    if depth == Depth::Deep {
        store.flush(&[]).unwrap();
        for report in store.report(&[]) {
            assert_eq!(store.check(report.chunk).unwrap().faults, [], "a check finds faults");
            if promises.dropped.contains_key(&report.chunk.0) {
                continue;
            }
            store.merge(report.chunk).unwrap();
            let report = store.compress(report.chunk, CompressionSpec::default()).unwrap();
            let rows = promises.rows(report.chunk.0, u64::MAX - 1, at).len() as u64;
            let exact = report.rows == rows;
            // Deleted rows stay as long as old versions do.
            let right = exact || report.rows > rows && !promises.version_age.is_zero();
            assert!(right && report.recent_rows == 0, "{report:?} instead of {rows} rows");
        }
        check_rows(&store, promises, at);
        store.close();
        drop(store);
        let store = open_keeping(&machine, promises.version_age).unwrap();
        assert_eq!(store.damaged(), [], "something is damaged after another start");
        check_rows(&store, promises, at);
    }
    machine
}

/// What was acknowledged and is not decided is there, whole, and nothing else is pending.
fn check_pending(store: &ChunkStore, promises: &Promises, at: Position) {
    let pending: Vec<u64> = store.pending(&[]).iter().map(|(txn, _)| txn.seq).collect();
    for id in &pending {
        match promises.ended.get(id).filter(|ended| ended.at <= at) {
            Some(ended) => store.decide(std::slice::from_ref(&ended.decision)).unwrap(),
            None => check_own(store, promises, (*id, at)),
        }
    }
    let known = |id: &u64| promises.ended.get(id).is_some_and(|ended| ended.at <= at);
    for (id, from) in &promises.acknowledged {
        let gone = promises.sent[id].1.iter().all(|part| promises.dropped.contains_key(&part.0));
        assert!(
            *from > at || known(id) || pending.contains(id) || gone,
            "acknowledged transaction {id} is gone"
        );
    }
}

/// A pending transaction is there with all of its rows.
fn check_own(store: &ChunkStore, promises: &Promises, (id, at): (u64, Position)) {
    let (sent, parts) = &promises.sent[&id];
    assert!(*sent <= at, "transaction {id} is pending before it was sent");
    for chunk in parts.iter().map(|part| part.0) {
        if promises.dropped.contains_key(&chunk) {
            continue;
        }
        let own = parts.iter().filter(|part| part.0 == chunk);
        let own = own.flat_map(|part| part.2.rows().to_vec());
        let request = ScanRequest { own: Some(txn(id)), ..request(chunk, 0) };
        match read(store, request) {
            Err(Error::SnapshotTooOld { .. }) => {
                let old = promises.may_be_too_old(chunk, 0, at) || promises.unlinked_after(0, at);
                assert!(old, "chunk {chunk} refuses snapshot 0");
            }
            found => assert_eq!(found.unwrap(), sorted(own.collect()), "own rows of {id}"),
        }
    }
}

/// Scans give what the log decided, at every snapshot that is tried.
fn check_rows(store: &ChunkStore, promises: &Promises, at: Position) {
    let csns = promises.ended.values().filter(|ended| ended.at <= at).filter_map(|e| e.csn);
    let last = csns.max().unwrap_or(0);
    let chunks: Vec<u64> =
        promises.sent.values().flat_map(|(_, parts)| parts.iter().map(|part| part.0)).collect();
    for chunk in 1..=chunks.into_iter().max().unwrap_or(0) {
        let dropped = promises.dropped.get(&chunk).filter(|asked| asked.from <= at);
        if let Some(dropped) = dropped {
            check_dropped(store, promises, (chunk, at), dropped);
            continue;
        }
        for snapshot in [u64::MAX - 1, last / 2] {
            let expected = promises.rows(chunk, snapshot, at);
            let found = match read(store, request(chunk, snapshot)) {
                Err(Error::SnapshotTooOld { .. }) => {
                    let old = promises.may_be_too_old(chunk, snapshot, at);
                    // Of a chunk without rows nobody knows any more that it is not one of those unlinked.
                    let unknown = expected.is_empty() && promises.unlinked_after(snapshot, at);
                    assert!(old || unknown, "chunk {chunk} refuses snapshot {snapshot}");
                    continue;
                }
                found => found.unwrap(),
            };
            assert_eq!(found.len(), expected.len(), "chunk {chunk} at {snapshot}");
            assert_eq!(found, expected, "chunk {chunk} at {snapshot}");
        }
    }
}

/// A chunk that was dropped is read whole, or not at all, by those who may ask for it.
fn check_dropped(
    store: &ChunkStore,
    promises: &Promises,
    (chunk, at): (u64, Position),
    dropped: &Asked<u64>,
) {
    let answered = dropped.answered.is_some_and(|answered| answered <= at);
    if answered {
        assert_eq!(store.report(&[ChunkId(chunk)]), [], "chunk {chunk} was dropped");
        let kept = store.removed().contains(&ChunkId(chunk));
        let known = promises
            .sent
            .values()
            .any(|(sent, parts)| *sent <= dropped.from && parts.iter().any(|part| part.0 == chunk));
        // What never held a row that counts may have left no trace.
        let keeps = !promises.version_age.is_zero() && known;
        assert!(!kept || !promises.version_age.is_zero(), "chunk {chunk} is still kept");
        let rows = promises.rows(chunk, dropped.what - 1, at);
        assert!(kept || !keeps || rows.is_empty(), "chunk {chunk} is not kept");
    }
    for snapshot in [dropped.what - 1, dropped.what / 2] {
        match read(store, request(chunk, snapshot)) {
            Ok(found) => {
                assert_eq!(found, promises.rows(chunk, snapshot, at), "dropped chunk {chunk}");
            }
            Err(Error::SnapshotTooOld { .. }) => {
                let old = promises.may_be_too_old(chunk, snapshot, at);
                let gone = promises.version_age.is_zero();
                assert!(old || gone, "dropped chunk {chunk} refuses snapshot {snapshot}");
            }
            Err(error) => panic!("dropped chunk {chunk} at {snapshot}: {error}"),
        }
    }
}

/// A chunk is compressed when the last that was asked was answered, and nothing was asked since.
fn check_states(store: &ChunkStore, promises: &Promises, at: Position) {
    for (chunk, asked) in &promises.states {
        if promises.dropped.contains_key(chunk) {
            continue;
        }
        let Some(last) = asked.iter().rfind(|asked| asked.from <= at) else { continue };
        if last.answered.is_none_or(|answered| answered > at) {
            continue;
        }
        // A rewrite that crashed before its manifest is noticed when the file is next opened.
        drop(read(store, request(*chunk, 0)));
        let state = store.report(&[ChunkId(*chunk)])[0].state;
        let compressed = state != ChunkState::Plain;
        assert_eq!(compressed, last.what != ChunkState::Plain, "chunk {chunk} is {state:?}");
    }
}
