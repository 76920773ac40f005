//! The nodes, the network between them, the clock, and the faults.

use std::collections::{BTreeMap, BTreeSet};

use hypertide_meta::catalog::{Catalog, Changes, Command, Held, HypertableSpec, Outcome, Reject};
use hypertide_proto::{
    ids::{AccessId, Boot, ChunkId, Csn, DiskId, NodeId, Rid, TableId, TxnId},
    schema::{Column, ColumnType, TableSchema},
};

use crate::{data::Data, leader::Leadership, loss::Taking, writes::Write};

pub(crate) const ACCESS: usize = 3;
pub(crate) const DATA: usize = 4;
pub(crate) const TABLE: TableId = TableId(1);
pub(crate) const REPLICAS: u16 = 2;
/// Simulated milliseconds of faults, and of healing after them.
pub(crate) const FAULTS_MS: u64 = 25_000;
const HEALING_MS: u64 = 110_000;
/// Pause between two writes of a client, at most.
const WRITE_PAUSE_MS: u64 = 500;
const WRITES_END_MS: u64 = FAULTS_MS + 5_000;
/// How long it takes until another access node leads.
const ELECTION_MS: u64 = 2_000;

/// Of so many seeds one loses all disks of a chunk together.
pub(crate) const RUINED_EVERY: u64 = 5;

/// A node of either kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum At {
    Access(usize),
    Data(usize),
}

/// Something that happens at its time.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Fault,
    Heal(At),
    Mend(At, At),
    Heartbeat(usize),
    Resolve(usize),
    Register(usize),
    Election,
    Round,
    StartWrite,
    Step(usize),
    Prepare { write: usize, node: usize },
    Ack { write: usize, node: usize, acked: Rid },
    Copy(ChunkId, NodeId),
    Ruin,
    Operate,
    Settle(Taking),
    Accept(Taking, Held, u64),
}

/// What an access node is.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(crate) up: bool,
    pub(crate) boot: Boot,
    pub(crate) seq: u64,
    /// When each data node was heard of last, since when without a pause, and what it reported.
    pub(crate) heard: BTreeMap<NodeId, crate::leader::Heard>,
}

/// Why a proposal has no answer.
#[derive(Debug)]
pub(crate) enum Lost {
    /// It is not in the log.
    NotApplied,
    /// It may be.
    Unknown,
}

/// What happened in a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) acknowledged: u64,
    pub(crate) retried: u64,
    pub(crate) duplicates: u64,
    pub(crate) faults: u64,
    pub(crate) joins: u64,
    pub(crate) shrinks: u64,
    pub(crate) seals: u64,
    pub(crate) resets: u64,
    /// Replicas that a reset left in sync.
    pub(crate) kept: u64,
    /// Chunks that were damaged though only single disks were lost.
    pub(crate) damaged: u64,
    /// Chunks whose disks were lost together.
    pub(crate) ruined: u64,
    /// Losses that an operator accepted, and writes in them.
    pub(crate) accepted: u64,
    pub(crate) lost: u64,
    /// Parts that the node which goes on had to forget.
    pub(crate) forgotten: u64,
    /// Replicas that were made anew, as they held a commit that was given up.
    pub(crate) anew: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.retried += other.retried;
        self.duplicates += other.duplicates;
        self.faults += other.faults;
        self.joins += other.joins;
        self.shrinks += other.shrinks;
        self.seals += other.seals;
        self.resets += other.resets;
        self.kept += other.kept;
        self.damaged += other.damaged;
        self.ruined += other.ruined;
        self.accepted += other.accepted;
        self.lost += other.lost;
        self.forgotten += other.forgotten;
        self.anew += other.anew;
    }
}

/// A rule that a run leaves out, to see that it is missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// The node that goes on keeps what waits there for commits that are lost.
    KeepsWaiting,
    /// A replica that holds a commit that was given up is taken for the beginning of the chunk.
    KeepsLost,
}

pub(crate) struct Cluster {
    pub(crate) bug: Option<Bug>,
    random: u64,
    verbose: bool,
    pub(crate) now: u64,
    numbered: u64,
    queue: BTreeMap<(u64, u64), Event>,
    cuts: BTreeSet<(At, At)>,
    index: u64,
    digest: u64,
    pub(crate) catalog: Catalog,
    pub(crate) access: Vec<Access>,
    pub(crate) data: Vec<Data>,
    pub(crate) leader: Option<usize>,
    pub(crate) leadership: Leadership,
    pub(crate) writes: Vec<Write>,
    /// Disks that are gone, and the in-sync set of each chunk at its last commit, or since when others need not hold it.
    pub(crate) wiped: BTreeSet<Rid>,
    pub(crate) last_in_sync: BTreeMap<ChunkId, Vec<Rid>>,
    pub(crate) totals: Totals,
}

impl Cluster {
    pub(crate) fn new(seed: u64, verbose: bool) -> Self {
        let access = Access { up: true, boot: Boot(0), seq: 0, heard: BTreeMap::new() };
        let mut cluster = Self {
            bug: None,
            random: seed,
            verbose,
            now: 1_000,
            numbered: 0,
            queue: BTreeMap::new(),
            cuts: BTreeSet::new(),
            index: 0,
            digest: 0,
            catalog: Catalog::default(),
            access: vec![access; ACCESS],
            data: (0..DATA).map(Data::new).collect(),
            leader: Some(0),
            leadership: Leadership::default(),
            writes: Vec::new(),
            wiped: BTreeSet::new(),
            last_in_sync: BTreeMap::new(),
            totals: Totals::default(),
        };
        (0..ACCESS).for_each(|node| cluster.start_access(node));
        for node in 0..DATA {
            cluster.register(node);
            cluster.after(node as u64 * 90, Event::Heartbeat(node));
            cluster.after(node as u64 * 110, Event::Resolve(node));
        }
        cluster.make_table();
        cluster.after(0, Event::Round);
        cluster.after(100, Event::StartWrite);
        cluster.after(3_000, Event::Fault);
        cluster.after(0, Event::Operate);
        if seed.is_multiple_of(RUINED_EVERY) {
            let at = 5_000 + cluster.below(10_000);
            cluster.after(at, Event::Ruin);
        }
        cluster
    }

    fn make_table(&mut self) {
        let column = |name: &str, column_type| Column::new(name, column_type);
        let columns = vec![column("time", ColumnType::BigInt), column("city", ColumnType::Text)];
        let spec = HypertableSpec {
            distributed: true,
            time_column: "time".to_owned(),
            interval: 10,
            space: Some(("city".to_owned(), None)),
            replication_factor: REPLICAS,
            data_nodes: None,
            chunk_schema: None,
            chunk_prefix: None,
        };
        let create = Command::CreateTable {
            schema: "public".to_owned(),
            name: "t".to_owned(),
            owner: "ann".to_owned(),
            columns: TableSchema::of(columns),
            if_not_exists: false,
        };
        let cut = Command::CreateHypertable { table: TABLE, spec, if_not_exists: false };
        for command in [create, cut] {
            self.propose_certainly(0, &command).expect("a new cluster").expect("a new table");
        }
    }

    /// Runs to the end and checks.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        while let Some((&(at, number), _)) = self.queue.first_key_value() {
            let event = self.queue.remove(&(at, number)).expect("it was the first");
            if at > FAULTS_MS + HEALING_MS {
                break;
            }
            self.now = at;
            self.happen(event)?;
        }
        self.check_end()
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Fault => self.fault(),
            Event::Heal(at) => self.heal(at),
            Event::Mend(one, other) => {
                self.cuts.remove(&(one, other));
            }
            Event::Heartbeat(node) => self.heartbeat(node),
            Event::Resolve(node) => self.resolve(node),
            Event::Register(node) => self.register(node),
            Event::Election => self.elect(),
            Event::Round => {
                self.round();
                return self.check_always();
            }
            Event::StartWrite => {
                if self.now < WRITES_END_MS {
                    self.start_write();
                    let pause = self.below(WRITE_PAUSE_MS);
                    self.after(pause, Event::StartWrite);
                }
            }
            Event::Step(write) => self.step(write),
            Event::Prepare { write, node } => self.prepare(write, node),
            Event::Ack { write, node, acked } => self.ack(write, node, acked),
            Event::Copy(chunk, node) => self.copy(chunk, node),
            Event::Ruin => self.ruin(),
            Event::Operate => self.operate(),
            Event::Settle(taking) => self.settle(taking),
            Event::Accept(taking, held, rows) => self.accept(taking, held, rows),
        }
        Ok(())
    }

    /// A number below `bound`, the same for the same seed.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    pub(crate) fn after(&mut self, ms: u64, event: Event) {
        self.numbered += 1;
        self.queue.insert((self.now + ms, self.numbered), event);
    }

    /// The way of a message.
    pub(crate) fn delay(&mut self) -> u64 {
        1 + self.below(20)
    }

    pub(crate) fn say(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            eprintln!("{:>7} {}", self.now, text());
        }
    }

    pub(crate) fn connected(&self, one: At, other: At) -> bool {
        self.awake(one)
            && self.awake(other)
            && !self.cuts.contains(&(one.min(other), one.max(other)))
    }

    pub(crate) fn awake(&self, at: At) -> bool {
        match at {
            At::Access(node) => self.access[node].up,
            At::Data(node) => self.data[node].up && !self.data[node].paused,
        }
    }

    /// Whether the leader hears a majority, itself included.
    pub(crate) fn leads(&self, leader: usize) -> bool {
        let hears = |other: &usize| self.connected(At::Access(leader), At::Access(*other));
        (0..ACCESS).filter(hears).count() * 2 > ACCESS
    }

    /// Puts a command into the log from an access node. Now and then the answer is lost.
    pub(crate) fn propose(
        &mut self,
        from: usize,
        command: &Command,
    ) -> Result<Result<Outcome, Reject>, Lost> {
        let answer = self.propose_certainly(from, command)?;
        if self.now < FAULTS_MS && self.below(40) == 0 {
            return Err(Lost::Unknown);
        }
        Ok(answer)
    }

    pub(crate) fn propose_certainly(
        &mut self,
        from: usize,
        command: &Command,
    ) -> Result<Result<Outcome, Reject>, Lost> {
        let leader = self.leader.filter(|leader| {
            self.connected(At::Access(from), At::Access(*leader)) && self.leads(*leader)
        });
        leader.ok_or(Lost::NotApplied)?;
        self.index += 1;
        let csn = Csn::at(self.index, 0);
        let answer = self.catalog.apply(command, csn, self.now, &mut Changes::default());
        self.note(command, &answer);
        Ok(answer)
    }

    fn note(&mut self, command: &Command, answer: &Result<Outcome, Reject>) {
        let line = match answer {
            Ok(outcome) => format!("{command} -> {outcome}"),
            Err(reject) => format!("{command} -> {reject}"),
        };
        for byte in line.bytes() {
            self.digest = self.digest.rotate_left(5) ^ u64::from(byte).wrapping_mul(0x517c_c1b7);
        }
        self.say(|| line);
        match (command, answer) {
            (Command::Shrink { .. }, Ok(Outcome::Changed(chunks))) => {
                self.totals.shrinks += chunks.len() as u64;
            }
            (Command::Seal { .. }, Ok(_)) => self.totals.seals += 1,
            (Command::NodeReset { .. }, Ok(_)) => self.totals.resets += 1,
            (Command::FinishJoin { .. } | Command::Return { .. }, Ok(Outcome::Changed(all))) => {
                self.totals.joins += all.len() as u64;
            }
            (Command::RemoveReplica { chunk, .. }, Ok(_)) => self.note_holders(*chunk),
            (Command::AcceptLoss { .. }, Ok(Outcome::LossAccepted { chunk, loss })) => {
                self.note_loss(*chunk, *loss);
            }
            _ => {}
        }
    }

    /// Those in sync now hold every commit; others need not any more.
    pub(crate) fn note_holders(&mut self, chunk: ChunkId) {
        let Some(row) = self.catalog.chunk(chunk) else { return };
        self.last_in_sync.insert(chunk, row.in_sync.clone());
    }

    /// What the log answered in this run.
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    fn fault(&mut self) {
        if self.now >= FAULTS_MS {
            return;
        }
        self.totals.faults += 1;
        let (kind, lasts) = (self.below(10), 500 + self.below(9_000));
        let data = self.below(DATA as u64) as usize;
        match kind {
            0..=2 => self.stop_data(data, lasts),
            3 if self.may_wipe(data) => {
                self.wiped.extend(self.data[data].rid);
                if self.below(2) == 0 {
                    self.say(|| format!("wipe d{}", data + 1));
                    self.data[data].wipe();
                } else {
                    self.say(|| format!("d{} loses its journal", data + 1));
                    let seed = self.below(u64::MAX);
                    let mut commits = (0..).map(|n: u32| (seed.rotate_left(n * 2) % 4) as usize);
                    self.data[data]
                        .lose_journal(|_| commits.next().map_or(0, |lost| lost.saturating_sub(1)));
                }
                self.stop_data(data, lasts);
            }
            3 | 4 => {
                self.say(|| format!("pause d{}", data + 1));
                self.data[data].paused = true;
                self.after(lasts, Event::Heal(At::Data(data)));
            }
            5 => {
                self.data[data].slow_until = self.now + lasts;
                self.say(|| format!("d{} is slow", data + 1));
            }
            6 | 7 => {
                let any = |number: u64| match number as usize {
                    access if access < ACCESS => At::Access(access),
                    data => At::Data(data - ACCESS),
                };
                let (one, other) = (self.below(7), self.below(7));
                let (one, other) = (any(one.min(other)), any(one.max(other)));
                if one != other {
                    self.say(|| format!("cut {one:?} {other:?}"));
                    self.cuts.insert((one, other));
                    self.after(lasts, Event::Mend(one, other));
                }
            }
            8 => self.stop_access(self.leader.unwrap_or(0), lasts),
            _ => {
                let access = self.below(ACCESS as u64) as usize;
                self.stop_access(access, lasts);
            }
        }
        let pause = 500 + self.below(4_000);
        self.after(pause, Event::Fault);
    }

    /// A disk that alone holds a chunk is not wiped: what it held would be lost, and should be. It may still become the
    /// last one before its loss is noticed.
    fn may_wipe(&self, node: usize) -> bool {
        let whole = |chunk: &hypertide_meta::catalog::Chunk| {
            // Others whose disk is the one that is counted on, and not one that was wiped a moment ago.
            let mut others = chunk.in_sync.iter().filter(|rid| Self::node_of(**rid) != node);
            others.any(|rid| self.runs_as(*rid))
        };
        self.data[node].rid.is_some() && self.catalog.chunks().all(whole)
    }

    /// Whether the node's disk is the one that the catalog has under this number, as far as the node knows.
    pub(crate) fn runs_as(&self, rid: Rid) -> bool {
        let (node, known) = (Self::node_of(rid), self.catalog.data_node(rid.node));
        let disk = Self::disk_id(node, self.data[node].disk);
        self.data[node].rid == Some(rid) && known.is_some_and(|known| known.disk == disk)
    }

    pub(crate) fn stop_data(&mut self, node: usize, lasts: u64) {
        self.say(|| format!("stop d{}", node + 1));
        self.data[node].stop();
        self.after(lasts, Event::Heal(At::Data(node)));
    }

    fn stop_access(&mut self, node: usize, lasts: u64) {
        self.say(|| format!("stop a{}", node + 1));
        self.access[node].up = false;
        self.access[node].heard.clear();
        self.after(lasts, Event::Heal(At::Access(node)));
        self.lose_writes(node);
        if self.leader == Some(node) {
            self.leader = None;
            self.after(ELECTION_MS, Event::Election);
        }
    }

    fn heal(&mut self, at: At) {
        self.say(|| format!("heal {at:?}"));
        match at {
            At::Access(node) if !self.access[node].up => {
                self.access[node].up = true;
                self.access[node].boot = Boot(0);
                self.start_access(node);
            }
            At::Access(_) => {}
            At::Data(node) => {
                self.data[node].paused = false;
                if !self.data[node].up {
                    self.data[node].up = true;
                    self.after(10, Event::Register(node));
                }
            }
        }
    }

    /// Another node leads when the last one is gone or hears no majority.
    fn elect(&mut self) {
        if self.leader.is_some_and(|leader| self.leads(leader)) {
            return;
        }
        let first = self.below(ACCESS as u64) as usize;
        let mut order = (0..ACCESS).map(|step| (first + step) % ACCESS);
        self.leader = order.find(|node| self.access[*node].up && self.leads(*node));
        self.leadership = Leadership::at(self.now);
        self.say(|| format!("leader {:?}", self.leader));
        if self.leader.is_none() {
            self.after(ELECTION_MS / 4, Event::Election);
        }
    }

    /// Gives up a leader that hears no majority; another is elected.
    pub(crate) fn watch_leader(&mut self) {
        if self.leader.is_some_and(|leader| !self.leads(leader)) {
            self.leader = None;
            self.after(ELECTION_MS, Event::Election);
        }
    }

    fn start_access(&mut self, node: usize) {
        let at = || format!("a{}", node + 1);
        let id = AccessId(node as u64 + 1);
        let (rpc, pg, flight, http) = (at(), at(), at(), at());
        let command = Command::RegisterAccess { id, rpc, pg, flight, http };
        match self.propose_certainly(node, &command) {
            Ok(Ok(Outcome::Boot(boot))) => {
                self.access[node].boot = boot;
                self.access[node].seq = 0;
            }
            // No leader yet: it is tried again when it is asked for something.
            _ => self.access[node].boot = Boot(0),
        }
    }

    /// A new transaction of an access node, when it is registered.
    pub(crate) fn begin(&mut self, node: usize) -> Option<TxnId> {
        if self.access[node].boot == Boot(0) {
            self.start_access(node);
        }
        let access = &mut self.access[node];
        access.seq += 1;
        let txn = TxnId { access: AccessId(node as u64 + 1), boot: access.boot, seq: access.seq };
        (access.boot != Boot(0)).then_some(txn)
    }

    pub(crate) fn disk_id(node: usize, disk: u8) -> DiskId {
        let mut id = [0; 16];
        (id[0], id[1]) = (node as u8 + 1, disk);
        DiskId(id)
    }
}
