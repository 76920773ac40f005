//! Clients that write one row a statement, and the coordinators at the access nodes.

use std::collections::BTreeMap;

use hypertide_meta::catalog::{Chunk, Command, CommitPart, CommitRecord, Outcome, Reject};
use hypertide_proto::ids::{ChunkId, Csn, Rid, TxnId, WriteId};

use crate::{
    cluster::{ACCESS, At, Cluster, Event, Lost, TABLE},
    data::Pending,
};

const DEADLINE_MS: u64 = 8_000;
const STEP_MS: u64 = 250;
/// Time slices that are written to.
const SLICES: u64 = 3;
const HASH_END: u64 = 1 << 31;

/// A statement of a client.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) id: WriteId,
    point: Vec<i64>,
    /// The coordinator; `None` when nobody goes on with it.
    at: Option<usize>,
    txn: TxnId,
    chunk: Option<Chunk>,
    acks: BTreeMap<(ChunkId, usize), Rid>,
    deadline: u64,
    /// Whether the client has been told that it is committed.
    acknowledged: bool,
    retries: u8,
    /// Where the log committed it, by whichever transaction.
    pub(crate) commits: Vec<(ChunkId, TxnId, Csn)>,
}

fn hash_of(id: WriteId) -> u128 {
    u128::from_be_bytes(id.0)
}

impl Cluster {
    pub(crate) fn start_write(&mut self) {
        let number = self.writes.len() as u128 + 1;
        let slice = self.below(SLICES) as i64;
        let hash = self.below(HASH_END - 1) as i64;
        let id = WriteId(number.to_be_bytes());
        self.writes.push(Write {
            id,
            point: vec![slice * 10, hash],
            at: None,
            txn: TxnId::default(),
            chunk: None,
            acks: BTreeMap::new(),
            deadline: 0,
            acknowledged: false,
            retries: 0,
            commits: Vec::new(),
        });
        self.send(number as usize - 1);
    }

    /// A client sends the statement to some access node, under the same write id each time.
    fn send(&mut self, write: usize) {
        let access = self.below(ACCESS as u64) as usize;
        let txn = if self.access[access].up { self.begin(access) } else { None };
        let deadline = self.now + DEADLINE_MS;
        let statement = &mut self.writes[write];
        statement.chunk = None;
        statement.acks.clear();
        statement.deadline = deadline;
        match txn {
            Some(txn) => (statement.at, statement.txn) = (Some(access), txn),
            None => statement.at = None,
        }
        // Without an access node the client waits a moment.
        let pause = if txn.is_some() { 0 } else { STEP_MS };
        self.after(pause, Event::Step(write));
    }

    /// The coordinators of a stopped access node are gone.
    pub(crate) fn lose_writes(&mut self, access: usize) {
        for write in self.writes.iter_mut().filter(|write| write.at == Some(access)) {
            write.at = None;
        }
    }

    /// Goes on with a statement: finds its chunk, asks replicas again, proposes, or gives up.
    pub(crate) fn step(&mut self, write: usize) {
        let statement = &self.writes[write];
        if statement.acknowledged {
            return;
        }
        let Some(access) = statement.at.filter(|_| self.now < statement.deadline) else {
            return self.give_up(write);
        };
        if self.writes[write].chunk.is_none() {
            self.find_chunk(write, access);
        }
        self.ask_missing(write, access);
        self.try_commit(write);
        if !self.writes[write].acknowledged {
            self.after(STEP_MS, Event::Step(write));
        }
    }

    /// The client does not know what became of it, and sends it again.
    fn give_up(&mut self, write: usize) {
        if self.writes[write].retries < 20 {
            self.writes[write].retries += 1;
            self.totals.retried += 1;
            // A coordinator that gives up tells the log, if it can; it goes on if it was too late.
            if let Some(access) = self.writes[write].at {
                let txn = self.writes[write].txn;
                let _ = self.propose(access, &Command::Abort { txn });
            }
            self.send(write);
        }
    }

    fn find_chunk(&mut self, write: usize, access: usize) {
        let point = self.writes[write].point.clone();
        if let Some(chunk) = self.catalog.chunk_at(TABLE, &point) {
            self.writes[write].chunk = Some(chunk.clone());
            return;
        }
        let points = vec![point];
        let ensure = Command::EnsureChunks { table: TABLE, points };
        if let Ok(Ok(Outcome::Chunks(chunks))) = self.propose(access, &ensure) {
            self.writes[write].chunk = chunks.into_iter().next();
        }
    }

    fn ask_missing(&mut self, write: usize, access: usize) {
        let statement = &self.writes[write];
        let Some(chunk) = &statement.chunk else { return };
        let missing: Vec<usize> = chunk
            .members()
            .filter(|rid| {
                let node = Self::node_of(*rid);
                statement.acks.get(&(chunk.id, node)) != Some(rid)
            })
            .map(Self::node_of)
            .collect();
        for node in missing {
            if self.connected(At::Access(access), At::Data(node)) {
                let delay = self.delay();
                self.after(delay, Event::Prepare { write, node });
            }
        }
    }

    /// A data node journals the batch and answers.
    pub(crate) fn prepare(&mut self, write: usize, node: usize) {
        let statement = &self.writes[write];
        let (Some(access), Some(chunk)) = (statement.at, statement.chunk.as_ref()) else { return };
        let (txn, id, hash) = (statement.txn, chunk.id, hash_of(statement.id));
        let expected = chunk.members().find(|rid| Self::node_of(*rid) == node);
        let (now, data) = (self.now, &mut self.data[node]);
        let fits = expected.is_some() && data.rid == expected;
        if data.paused {
            // It is taken when the node wakes up.
            return self.after(200, Event::Prepare { write, node });
        }
        if !data.up || !data.serves || !fits {
            return;
        }
        if !data.has_committed(id, txn) {
            let batch = Pending { hash, at: now, epoch: chunk.epoch };
            data.pending.entry((txn, id)).or_insert(batch);
        }
        let slow = if data.slow_until > now { 3_000 } else { 0 };
        let Some(acked) = expected else { return };
        if self.connected(At::Access(access), At::Data(node)) {
            let delay = self.delay() + slow;
            // The answer is for this try of this transaction: a later one has another chunk or number.
            self.after(delay, Event::Ack { write, node, acked });
        }
    }

    pub(crate) fn ack(&mut self, write: usize, node: usize, acked: Rid) {
        let (txn, statement) = (self.writes[write].txn, &self.writes[write]);
        let (Some(_), Some(chunk)) = (statement.at, statement.chunk.as_ref()) else { return };
        let id = chunk.id;
        // Only what the disk holds was acknowledged: the message may be of a try before.
        let data = &self.data[node];
        if data.has_committed(id, txn) || data.pending.contains_key(&(txn, id)) {
            self.writes[write].acks.insert((id, node), acked);
        }
        self.try_commit(write);
    }

    fn try_commit(&mut self, write: usize) {
        let statement = &self.writes[write];
        let (Some(access), Some(chunk)) = (statement.at, statement.chunk.clone()) else { return };
        let acks = statement.acks.iter().filter(|((of, _), _)| *of == chunk.id);
        let acks: Vec<Rid> = acks.map(|(_, rid)| *rid).collect();
        if statement.acknowledged || !chunk.members().all(|rid| acks.contains(&rid)) {
            return;
        }
        let part = CommitPart {
            chunk: chunk.id,
            epoch: chunk.epoch,
            acks,
            hash: hash_of(statement.id),
            rows: 1,
            table_version: 2,
            keyed: false,
        };
        let write_id = Some((statement.id, hash_of(statement.id)));
        let txn = statement.txn;
        let record = CommitRecord { txn, write: write_id, parts: vec![part] };
        match self.propose_noted(access, write, record) {
            Ok(Ok(Outcome::Committed { .. })) => self.acknowledge(write),
            Ok(Ok(Outcome::Duplicate { .. })) => {
                self.totals.duplicates += 1;
                self.acknowledge(write);
            }
            // The log ended it: the client has to send it anew.
            Ok(Ok(Outcome::Aborted) | Err(Reject::Fenced(_))) => self.writes[write].at = None,
            Ok(Err(Reject::Uncovered(now))) => {
                self.writes[write].chunk = Some(*now);
                self.ask_missing(write, access);
            }
            Ok(Err(Reject::ChunkClosed(_))) => self.writes[write].chunk = None,
            // Tried again at the next step.
            Ok(_) | Err(Lost::NotApplied | Lost::Unknown) => {}
        }
    }

    /// Proposes a commit, and notes what the log made of it even when the coordinator does not hear.
    fn propose_noted(
        &mut self,
        access: usize,
        write: usize,
        record: CommitRecord,
    ) -> Result<Result<Outcome, Reject>, Lost> {
        let (txn, chunk) = (record.txn, record.parts[0].chunk);
        let before = self.catalog.fate(txn);
        let answer = self.propose_certainly(access, &Command::Commit(record))?;
        if let Ok(Outcome::Committed { csn, .. }) = &answer
            && before.is_none()
        {
            self.writes[write].commits.push((chunk, txn, *csn));
            self.note_holders(chunk);
        }
        if self.below(30) == 0 { Err(Lost::Unknown) } else { Ok(answer) }
    }

    fn acknowledge(&mut self, write: usize) {
        self.totals.acknowledged += 1;
        self.writes[write].acknowledged = true;
    }

    /// Every acknowledged write was committed once, and is on every replica in sync, or on none if it was given up.
    pub(crate) fn check_writes(&self) -> Result<(), String> {
        for write in &self.writes {
            if write.commits.len() > 1 {
                return Err(format!("write {} was committed twice: {:?}", write.id, write.commits));
            }
            let Some((chunk, txn, csn)) = write.commits.first() else {
                if write.acknowledged {
                    return Err(format!("write {} was acknowledged, never committed", write.id));
                }
                continue;
            };
            let row = self.catalog.chunk(*chunk).ok_or("a chunk is gone")?;
            let wanted = usize::from(!self.gave_up(*chunk, *csn));
            for rid in &row.in_sync {
                let replica = self.data[Self::node_of(*rid)].replicas.get(chunk);
                let times = replica
                    .map_or(0, |all| all.iter().filter(|committed| committed.txn == *txn).count());
                if times != wanted {
                    return Err(format!("write {} is {times} times on {rid} of {row}", write.id));
                }
            }
        }
        Ok(())
    }
}
