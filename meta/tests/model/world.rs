//! Data nodes, as sets of batches on disks, and the coordinators of two transactions.

use std::collections::BTreeSet;

use hypertide_meta::catalog::{
    Catalog, Changes, Chunk, ChunkState, Command, CommitPart, CommitRecord, Held, HypertableSpec,
    Outcome, Reject,
};
use hypertide_proto::{
    decision::{Fate, chain_after},
    ids::{AccessId, Boot, ChunkId, Csn, DiskId, Epoch, NodeId, Rid, TableId, TxnId, WriteId},
    schema::{Column, ColumnType, TableSchema},
};
use xxhash_rust::xxh3::xxh3_128;

const NODES: usize = 3;
const TXNS: usize = 2;
/// Generations of the one box.
const CHUNKS: usize = 2;
const TABLE: TableId = TableId(1);
const ORDERS: [[usize; NODES]; 6] =
    [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/// What a transaction does to the one key there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Appends a row; there is no key.
    Append,
    /// Puts a row by a rule that every replica applies in order of commits.
    Upsert,
    /// Reserves the key and puts a row: it must have seen what was committed before.
    Keyed,
    /// Reserves the key and puts no row: it also goes to a chunk that is sealed.
    Delete,
}

impl Class {
    fn reserves(self) -> bool {
        matches!(self, Self::Keyed | Self::Delete)
    }
}

/// A rule that is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A commit does not need the joining replicas.
    JoiningNotNeeded,
    /// An acknowledgement names the node, and not its disk.
    AcksWithoutIncarnation,
    /// The coordinator's own list of members decides whether all have acknowledged.
    CoordinatorTrusted,
    /// A replica says at once that it holds what it is to catch up with.
    FinishWithoutProof,
    /// A replica says that it missed nothing.
    ReturnWithoutProof,
    /// Any node is copied from, and what comes is taken for whole.
    CatchUpFromAnyone,
    /// A wiped disk goes on under the old incarnation.
    WipeUnnoticed,
    /// A disk that lost commits says that it holds the last one of every chunk.
    KeptWithoutProof,
    /// A node that is told to remove a replica removes batches that wait for their decision, too.
    RemovalDropsPending,
    /// A record of an earlier boot is taken.
    BootNotChecked,
    /// A data node reserves no keys.
    NoReservation,
    /// Acknowledgements of different epochs count together.
    EpochsNotCompared,
    /// An upsert is taken where the key is reserved.
    UpsertsIgnoreReservations,
    /// A row with a key goes to a generation that its snapshot does not know, on the word of that snapshot.
    GenerationUnseen,
    /// The write id of a record is lost.
    WriteForgotten,
}

/// How often something may happen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) changes: u8,
    pub(crate) wipes: u8,
    pub(crate) fences: u8,
}

/// What a run is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) classes: [Class; TXNS],
    /// Whether the two transactions are one write, sent twice.
    pub(crate) one_write: bool,
    pub(crate) seals: bool,
    /// Whether a disk that loses something may still hold the rest.
    pub(crate) keeps: bool,
    pub(crate) limits: Limits,
    pub(crate) bug: Option<Bug>,
}

impl Setting {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
}

/// A data node's disk.
#[derive(Clone, Copy, Debug, Default)]
struct Disk {
    /// One more whenever it loses anything.
    number: u8,
    /// Per chunk, a bit for each transaction whose batch it holds, pending or committed.
    batches: [u8; CHUNKS],
}

/// A transaction as its coordinator sees it.
#[derive(Clone, Copy, Debug, Default)]
struct Txn {
    chunk: Option<ChunkId>,
    epoch: Epoch,
    /// By node, the disk that has acknowledged the batch for the chunk.
    acks: [Option<Rid>; NODES],
    /// The transactions that were committed when it began.
    snapshot: u8,
    /// The members when it last looked.
    view: u8,
}

/// All but the catalog.
#[derive(Clone, Debug)]
pub(crate) struct World {
    disks: [Disk; NODES],
    txns: [Txn; TXNS],
    /// Commits in their order, with the disks that were in sync of the chunk then.
    log: Vec<(ChunkId, usize, Vec<Rid>)>,
    changes: u8,
    wipes: u8,
    fences: u8,
}

type Next = (String, Catalog, World);

fn bit(index: usize) -> u8 {
    1 << index
}

fn at(chunk: ChunkId) -> usize {
    chunk.0 as usize - 1
}

fn txn_id(txn: usize) -> TxnId {
    TxnId { access: AccessId(1), boot: Boot(1), seq: txn as u64 + 1 }
}

fn node_id(node: usize) -> NodeId {
    NodeId(node as u64 + 1)
}

fn node_of(rid: Rid) -> usize {
    rid.node.0 as usize - 1
}

fn disk_id(node: usize, number: u8) -> DiskId {
    let mut id = [0; 16];
    (id[0], id[1]) = (node as u8 + 1, number);
    DiskId(id)
}

fn batch_hash(txn: usize) -> u128 {
    txn as u128 + 77
}

fn register_access() -> Command {
    let at = || "host:1".to_owned();
    Command::RegisterAccess { id: AccessId(1), rpc: at(), pg: at(), flight: at(), http: at() }
}

impl World {
    /// Three data nodes, a table whose chunk has replicas on the first two, and nothing begun.
    pub(crate) fn founded() -> (Catalog, Self) {
        let mut catalog = Catalog::default();
        let mut commands = vec![register_access()];
        for node in 0..NODES {
            let (disk, name) = (disk_id(node, 0), String::new());
            let (rpc, http) = (String::new(), String::new());
            commands.push(Command::RegisterData { rid: None, name, disk, rpc, http });
        }
        let time = Column::new("time", ColumnType::BigInt);
        commands.push(Command::CreateTable {
            schema: "public".to_owned(),
            name: "t".to_owned(),
            owner: "ann".to_owned(),
            columns: TableSchema::of(vec![time]),
            if_not_exists: false,
        });
        let spec = HypertableSpec {
            distributed: true,
            time_column: "time".to_owned(),
            interval: 10,
            space: None,
            replication_factor: 2,
            data_nodes: None,
            chunk_schema: None,
            chunk_prefix: None,
        };
        commands.push(Command::CreateHypertable { table: TABLE, spec, if_not_exists: false });
        commands.push(Command::EnsureChunks { table: TABLE, points: vec![vec![0]] });
        for command in &commands {
            catalog.apply(command, Csn(0), 1, &mut Changes::default()).expect("a new cluster");
        }
        let (disks, txns) = ([Disk::default(); NODES], [Txn::default(); TXNS]);
        (catalog, Self { disks, txns, log: Vec::new(), changes: 0, wipes: 0, fences: 0 })
    }

    /// A number that two states share only when they differ by the names of nodes at most.
    pub(crate) fn key(&self, catalog: &Catalog, setting: Setting) -> u128 {
        let fates = std::array::from_fn(|txn| fate(catalog, txn));
        let keys = ORDERS.iter().map(|order| self.key_in(catalog, order, fates, setting));
        keys.min().expect("there are orders")
    }

    /// What tells the state from others, with nodes in another order. Left out is what follows from the rest, such as most
    /// rows of the catalog, and what no step or check looks at any more: epochs where no keyed commit compares them, the
    /// acknowledgements of a transaction that is decided, who was in sync at any but the last commit.
    fn key_in(
        &self,
        catalog: &Catalog,
        order: &[usize; NODES],
        fates: [End; TXNS],
        setting: Setting,
    ) -> u128 {
        let keyed = setting.classes.iter().any(|class| class.reserves());
        let mut bytes = Vec::with_capacity(128);
        bytes.extend([self.changes, self.wipes, self.fences]);
        for node in *order {
            let Disk { number, batches } = self.disks[node];
            let registered = catalog.data_node(node_id(node)).expect("nodes stay");
            bytes.extend([number, registered.disk.0[1], registered.rid.incarnation.0 as u8]);
            bytes.extend(batches);
        }
        for (txn, end) in self.txns.iter().zip(fates) {
            bytes.push(end as u8);
            if keyed {
                bytes.push(txn.snapshot);
            }
            if end == End::Open || setting.has(Bug::BootNotChecked) {
                bytes.push(txn.chunk.map_or(0, |chunk| chunk.0 as u8));
                if keyed {
                    bytes.push(txn.epoch.0 as u8);
                }
                for node in *order {
                    bytes.push(txn.acks[node].map_or(0, |rid| rid.incarnation.0 as u8));
                    let trusted = setting.has(Bug::CoordinatorTrusted);
                    bytes.push(if trusted { (txn.view >> node) & 1 } else { 0 });
                }
            }
        }
        bytes.extend(self.log.iter().flat_map(|(chunk, txn, _)| [chunk.0 as u8, *txn as u8]));
        for chunk in catalog.chunks() {
            bytes.extend([77, chunk.state as u8, chunk.last_csn.0 as u8]);
            if keyed {
                bytes.push(chunk.epoch.0 as u8);
            }
            let last = self.log.iter().rev().find(|commit| commit.0 == chunk.id);
            let last = last.map_or(&[][..], |commit| &commit.2);
            for node in *order {
                bytes.push(incarnation_in(last.iter(), node));
                bytes.push(incarnation_in(chunk.in_sync.iter(), node));
                let joiner = chunk.joining.iter().find(|joiner| node_of(joiner.rid) == node);
                bytes.push(joiner.map_or(99, |joiner| joiner.csn.0 as u8));
                let left = chunk.left.iter().find(|(rid, _)| node_of(*rid) == node);
                bytes.push(left.map_or(99, |(_, csn)| csn.0 as u8));
            }
        }
        xxh3_128(&bytes)
    }

    /// Every step that can be taken.
    pub(crate) fn successors(&self, catalog: &Catalog, setting: Setting) -> Vec<Next> {
        let mut next = Vec::new();
        for txn in 0..TXNS {
            self.coordinate(catalog, setting, txn, &mut next);
        }
        if self.changes < setting.limits.changes {
            for chunk in catalog.chunks() {
                self.change(catalog, setting, chunk, &mut next);
            }
            self.reset(catalog, setting, &mut next);
        }
        for chunk in catalog.chunks() {
            self.copy(catalog, setting, chunk, &mut next);
        }
        if self.wipes < setting.limits.wipes {
            for node in 0..NODES {
                self.wipe(catalog, setting, node, &mut next);
            }
        }
        if self.fences < setting.limits.fences {
            let world = Self { fences: self.fences + 1, ..self.clone() };
            world.push(catalog, &register_access(), &mut next);
        }
        for (_, catalog, world) in &mut next {
            world.forget_aborted(catalog, setting);
        }
        next
    }

    /// Adds the state after a command, unless it is refused.
    fn push(self, catalog: &Catalog, command: &Command, next: &mut Vec<Next>) {
        if let Ok((catalog, _)) = self.apply(catalog, command) {
            next.push((command.to_string(), catalog, self));
        }
    }

    fn apply(&self, catalog: &Catalog, command: &Command) -> Result<(Catalog, Outcome), Reject> {
        let mut catalog = catalog.clone();
        // Commits are numbered without gaps, so that ways of different length end in one state.
        let csn = Csn(self.log.len() as u64 + 1);
        let damaged = |catalog: &Catalog| {
            catalog.chunks().filter(|chunk| chunk.state == ChunkState::Damaged).count()
        };
        let before = damaged(&catalog);
        let outcome = catalog.apply(command, csn, 1, &mut Changes::default())?;
        let resets = matches!(command, Command::NodeReset { .. });
        assert!(resets || damaged(&catalog) <= before, "I3: {command} took the last disk");
        Ok((catalog, outcome))
    }

    /// What the coordinator of an undecided transaction can do, and how data nodes learn that it was aborted.
    fn coordinate(&self, catalog: &Catalog, setting: Setting, number: usize, next: &mut Vec<Next>) {
        match fate(catalog, number) {
            End::Open => {}
            // A zombie does not hear that it was fenced.
            End::Aborted if setting.classes[number] == Class::Append => {}
            End::Aborted => self.drop_batches(number, catalog, next),
            End::Committed => return,
        }
        let txn = self.txns[number];
        let deletes = setting.classes[number] == Class::Delete;
        let takes = |chunk: &&Chunk| {
            chunk.state == ChunkState::Open || (deletes && chunk.state == ChunkState::Sealed)
        };
        let open = |id: ChunkId| catalog.chunk(id).filter(takes);
        let Some(chunk) = txn.chunk.and_then(open) else {
            // Two appends differ by their names only: the first begins first.
            let alike = setting.classes == [Class::Append; TXNS] && !setting.one_write;
            if number == 0 || !alike || self.txns[0].chunk.is_some() {
                self.begin(catalog, setting, number, next);
            }
            return;
        };
        if setting.classes[number].reserves() && txn.epoch != chunk.epoch {
            let mut world = self.clone();
            world.look(number, chunk);
            world.txns[number].acks = [None; NODES];
            next.push((format!("t{number} asks again"), catalog.clone(), world));
        }
        let open = fate(catalog, number) == End::Open;
        for rid in chunk.members().filter(|_| open) {
            if self.may_prepare(catalog, setting, (number, chunk.id), rid) {
                let (mut world, node) = (self.clone(), node_of(rid));
                world.disks[node].batches[at(chunk.id)] |= bit(number);
                world.txns[number].acks[node] = Some(rid);
                next.push((format!("t{number} on {rid}"), catalog.clone(), world));
            }
        }
        self.commit(catalog, setting, (number, chunk), next);
        // A coordinator that gives up an append is like one that never goes on.
        if fate(catalog, number) == End::Open && setting.classes[number] != Class::Append {
            let abort = Command::Abort { txn: txn_id(number) };
            self.clone().push(catalog, &abort, next);
        }
    }

    /// Finds the open chunk of the box, or lets the catalog make its next generation.
    fn begin(&self, catalog: &Catalog, setting: Setting, number: usize, next: &mut Vec<Next>) {
        if fate(catalog, number) != End::Open {
            return;
        }
        let ensure = Command::EnsureChunks { table: TABLE, points: vec![vec![0]] };
        let Ok((catalog, Outcome::Chunks(chunks))) = self.apply(catalog, &ensure) else { return };
        let chunk = &chunks[0];
        if at(chunk.id) >= CHUNKS {
            return;
        }
        let mut world = self.clone();
        // The statement of a transaction with keys looks at them again before it writes to another generation.
        let again = setting.classes[number].reserves() && !setting.has(Bug::GenerationUnseen);
        if world.txns[number].chunk.is_none() || again {
            world.txns[number].snapshot = world.committed();
        }
        world.txns[number].chunk = Some(chunk.id);
        world.txns[number].acks = [None; NODES];
        world.look(number, chunk);
        next.push((format!("t{number} begins in {}", chunk.id), catalog, world));
    }

    fn look(&mut self, number: usize, chunk: &Chunk) {
        let members = chunk.members().map(|rid| bit(node_of(rid)));
        self.txns[number].view = members.fold(0, |view, bit| view | bit);
        self.txns[number].epoch = chunk.epoch;
    }

    /// A bit for each transaction that is committed.
    fn committed(&self) -> u8 {
        self.log.iter().fold(0, |mask, (_, txn, _)| mask | bit(*txn))
    }

    /// Whether the node runs on the disk that is registered.
    fn registered(&self, catalog: &Catalog, node: usize) -> bool {
        let disk = disk_id(node, self.disks[node].number);
        catalog.data_node(node_id(node)).is_some_and(|known| known.disk == disk)
    }

    /// Whether a data node takes a batch.
    fn may_prepare(
        &self,
        catalog: &Catalog,
        setting: Setting,
        (number, chunk): (usize, ChunkId),
        rid: Rid,
    ) -> bool {
        let (txn, node) = (&self.txns[number], node_of(rid));
        let class = setting.classes[number];
        if !self.registered(catalog, node) || txn.acks[node] == Some(rid) {
            return false;
        }
        if class.reserves() && catalog.chunk(chunk).is_none_or(|at| at.epoch != txn.epoch) {
            return false;
        }
        let there = |other: &usize| {
            *other != number && self.disks[node].batches[at(chunk)] & bit(*other) != 0
        };
        !(0..TXNS).filter(there).any(|other| {
            let (theirs, end) = (setting.classes[other], fate(catalog, other));
            let reserved =
                end == End::Open || (end == End::Committed && txn.snapshot & bit(other) == 0);
            match (class, theirs) {
                (Class::Keyed | Class::Delete, Class::Keyed | Class::Delete | Class::Upsert) => {
                    reserved && !setting.has(Bug::NoReservation)
                }
                (Class::Upsert, Class::Keyed | Class::Delete) => {
                    end == End::Open && !setting.has(Bug::UpsertsIgnoreReservations)
                }
                _ => false,
            }
        })
    }

    /// Proposes the record, with the acknowledgements there are.
    fn commit(
        &self,
        catalog: &Catalog,
        setting: Setting,
        (number, chunk): (usize, &Chunk),
        next: &mut Vec<Next>,
    ) {
        let txn = &self.txns[number];
        let mut acks: Vec<Rid> = txn.acks.iter().flatten().copied().collect();
        if setting.has(Bug::JoiningNotNeeded) {
            acks.extend(chunk.joining.iter().map(|joiner| joiner.rid));
        }
        if setting.has(Bug::AcksWithoutIncarnation) {
            let of_nodes = chunk.members().filter(|rid| txn.acks[node_of(*rid)].is_some());
            acks.extend(of_nodes);
        }
        if setting.has(Bug::CoordinatorTrusted) {
            acks.extend(chunk.members().filter(|rid| txn.view & bit(node_of(*rid)) == 0));
        }
        let keyed = setting.classes[number].reserves();
        let fenced = fate(catalog, number) == End::Aborted;
        let boot = if fenced && setting.has(Bug::BootNotChecked) { Boot(2) } else { Boot(1) };
        let forgotten = setting.has(Bug::WriteForgotten) && number == 1;
        let record = CommitRecord {
            txn: TxnId { boot, ..txn_id(number) },
            write: (setting.one_write && !forgotten).then_some((WriteId([1; 16]), 5)),
            parts: vec![CommitPart {
                chunk: chunk.id,
                epoch: txn.epoch,
                acks,
                hash: batch_hash(number),
                rows: u64::from(setting.classes[number] != Class::Delete),
                table_version: 2,
                keyed: keyed && !setting.has(Bug::EpochsNotCompared),
            }],
        };
        let command = Command::Commit(record);
        match self.apply(catalog, &command) {
            Ok((catalog, Outcome::Committed { .. })) => {
                let mut world = self.clone();
                world.log.push((chunk.id, number, chunk.in_sync.clone()));
                next.push((command.to_string(), catalog, world));
            }
            Ok((catalog, Outcome::Duplicate { .. })) => {
                next.push((command.to_string(), catalog, self.clone()));
            }
            _ => {}
        }
    }

    /// Data nodes drop the batches of an append that was aborted, at once: nothing waits for them, and to hold them longer
    /// could only hide a loss.
    fn forget_aborted(&mut self, catalog: &Catalog, setting: Setting) {
        for number in 0..TXNS {
            if setting.classes[number] == Class::Append && fate(catalog, number) == End::Aborted {
                let batches = self.disks.iter_mut().flat_map(|disk| &mut disk.batches);
                batches.for_each(|held| *held &= !bit(number));
            }
        }
    }

    /// Data nodes learn that a transaction was aborted, one by one: until then its reservations stand.
    fn drop_batches(&self, number: usize, catalog: &Catalog, next: &mut Vec<Next>) {
        for node in 0..NODES {
            if self.disks[node].batches.iter().any(|held| held & bit(number) != 0) {
                let mut world = self.clone();
                world.disks[node].batches.iter_mut().for_each(|held| *held &= !bit(number));
                let label = format!("{} learns that t{number} was aborted", node_id(node));
                next.push((label, catalog.clone(), world));
            }
        }
    }

    /// What the leader may do with the replicas of a chunk.
    fn change(&self, catalog: &Catalog, setting: Setting, chunk: &Chunk, next: &mut Vec<Next>) {
        let id = chunk.id;
        let changed = || Self { changes: self.changes + 1, ..self.clone() };
        for node in 0..NODES {
            let rid = catalog.data_node(node_id(node)).expect("nodes stay").rid;
            let member = chunk.members().any(|other| other == rid);
            let mut commands = Vec::new();
            if member {
                commands.push(Command::Shrink { rid, chunks: vec![id] });
                commands.push(Command::RemoveReplica { chunk: id, rid });
            } else if self.registered(catalog, node) {
                commands.push(Command::StartJoin { chunk: id, rid });
                let end = self.end(id, node);
                let lies = setting.has(Bug::ReturnWithoutProof);
                let claimed = Held { chunk: id, csn: chunk.last_csn, chain: chunk.chain };
                let held = if lies { claimed } else { end };
                commands.push(Command::Return { rid, held: vec![held] });
            }
            for command in commands {
                if let Ok((after, _)) = self.apply(catalog, &command)
                    && after.chunk(id) != catalog.chunk(id)
                {
                    next.push((command.to_string(), after, changed()));
                }
            }
        }
        if setting.seals && chunk.state == ChunkState::Open && at(id) + 1 < CHUNKS {
            let seal = Command::Seal { chunk: id, epoch: chunk.epoch };
            changed().push(catalog, &seal, next);
        }
    }

    /// A disk loses all it had; or its journal, with the batches that are not committed and the last commits of some chunk
    /// beside; or it is turned back, so that it lacks the last commits and still has the batches.
    fn wipe(&self, catalog: &Catalog, setting: Setting, node: usize, next: &mut Vec<Next>) {
        let mut left: BTreeSet<[u8; CHUNKS]> = BTreeSet::from([[0; CHUNKS]]);
        if setting.keeps {
            let held = self.disks[node].batches;
            let committed = self.committed();
            for whole in [held.map(|held| held & committed), held] {
                left.insert(whole);
                for (index, txn, _) in self.log.iter().rev() {
                    let mut less = whole;
                    less[at(*index)] &= !bit(*txn);
                    left.insert(less);
                }
            }
        }
        for batches in left {
            let mut world = self.clone();
            world.wipes += 1;
            let number = world.disks[node].number + u8::from(!setting.has(Bug::WipeUnnoticed));
            world.disks[node] = Disk { number, batches };
            next.push((format!("wipe {} to {batches:?}", node_id(node)), catalog.clone(), world));
        }
    }

    /// Nodes with another disk than the one that is registered come back, with the proof of what is on it, and put aside
    /// what is not counted as theirs.
    fn reset(&self, catalog: &Catalog, setting: Setting, next: &mut Vec<Next>) {
        for node in (0..NODES).filter(|node| !self.registered(catalog, *node)) {
            let rid = catalog.data_node(node_id(node)).expect("nodes stay").rid;
            let disk = disk_id(node, self.disks[node].number);
            let lies = setting.has(Bug::KeptWithoutProof);
            let claimed = |chunk: &Chunk| match lies {
                true => Held { chunk: chunk.id, csn: chunk.last_csn, chain: chunk.chain },
                false => self.end(chunk.id, node),
            };
            let held = catalog.chunks().map(claimed).collect();
            let command = Command::NodeReset { rid, disk, held };
            let Ok((after, Outcome::Data(data))) = self.apply(catalog, &command) else { continue };
            let mut world = Self { changes: self.changes + 1, ..self.clone() };
            for chunk in after.chunks() {
                if chunk.in_sync.contains(&data.rid) {
                    // The disk that was in sync is this one.
                    let log = world.log.iter_mut().filter(|commit| commit.0 == chunk.id);
                    let known = log.flat_map(|commit| &mut commit.2).filter(|known| **known == rid);
                    known.for_each(|known| *known = data.rid);
                } else if chunk.left.iter().all(|(left, _)| *left != data.rid) {
                    world.disks[node].batches[at(chunk.id)] = 0;
                }
            }
            next.push((command.to_string(), after, world));
        }
    }

    /// Catching up, its end, and the removal of a replica that nobody asks for.
    fn copy(&self, catalog: &Catalog, setting: Setting, chunk: &Chunk, next: &mut Vec<Next>) {
        let commits = self.commits(chunk.id);
        for joiner in &chunk.joining {
            let node = node_of(joiner.rid);
            if !self.registered(catalog, node) {
                continue;
            }
            for source in (0..NODES).filter(|source| *source != node) {
                let theirs = self.disks[source].batches[at(chunk.id)];
                let mut in_sync = chunk.in_sync.iter();
                let member =
                    in_sync.any(|rid| node_of(*rid) == source) && self.registered(catalog, source);
                let own = self.disks[node].batches[at(chunk.id)];
                let copied = own | (theirs & commits.iter().fold(0, |all, txn| all | bit(*txn)));
                if (member || setting.has(Bug::CatchUpFromAnyone)) && copied != own {
                    let mut world = self.clone();
                    world.disks[node].batches[at(chunk.id)] = copied;
                    let label = format!("{} catches up from {}", joiner.rid, node_id(source));
                    next.push((label, catalog.clone(), world));
                }
            }
            let claimed = Held { chunk: chunk.id, csn: joiner.csn, chain: joiner.chain };
            let lies = setting.has(Bug::FinishWithoutProof)
                || (setting.has(Bug::CatchUpFromAnyone) && self.copied_something(chunk.id, node));
            let held = if lies { claimed } else { self.up_to(chunk.id, node, joiner.csn) };
            self.clone().push(catalog, &Command::FinishJoin { rid: joiner.rid, held }, next);
        }
        self.remove(catalog, setting, chunk, next);
    }

    /// Whether the node holds any commit of the chunk.
    fn copied_something(&self, chunk: ChunkId, node: usize) -> bool {
        let held = self.disks[node].batches[at(chunk)];
        self.commits(chunk).iter().any(|txn| held & bit(*txn) != 0)
    }

    /// A node removes a replica that the catalog does not list, but never a batch that may still be committed.
    fn remove(&self, catalog: &Catalog, setting: Setting, chunk: &Chunk, next: &mut Vec<Next>) {
        for node in 0..NODES {
            let held = self.disks[node].batches[at(chunk.id)];
            let listed = chunk.members().chain(chunk.left.iter().map(|(rid, _)| *rid));
            let pending = |txn: &usize| held & bit(*txn) != 0 && fate(catalog, *txn) == End::Open;
            let waits = (0..TXNS).any(|txn| pending(&txn));
            if held == 0 || listed.into_iter().any(|rid| node_of(rid) == node) {
                continue;
            }
            if !waits || setting.has(Bug::RemovalDropsPending) {
                let mut world = self.clone();
                world.disks[node].batches[at(chunk.id)] = 0;
                let label = format!("{} removes {}", node_id(node), chunk.id);
                next.push((label, catalog.clone(), world));
            }
        }
    }

    /// The transactions committed in a chunk, in order.
    fn commits(&self, chunk: ChunkId) -> Vec<usize> {
        self.log.iter().filter(|commit| commit.0 == chunk).map(|commit| commit.1).collect()
    }

    /// The place in the chunk's commits up to which the node's disk holds all, at most up to `last`.
    fn up_to(&self, chunk: ChunkId, node: usize, last: Csn) -> Held {
        let mut held = Held { chunk, csn: Csn(0), chain: 0 };
        let own = self.disks[node].batches[at(chunk)];
        for (index, (of, txn, _)) in self.log.iter().enumerate() {
            let csn = Csn(index as u64 + 1);
            if *of != chunk {
                continue;
            }
            if csn > last || own & bit(*txn) == 0 {
                break;
            }
            (held.csn, held.chain) = (csn, chain_after(held.chain, csn, batch_hash(*txn)));
        }
        held
    }

    fn end(&self, chunk: ChunkId, node: usize) -> Held {
        self.up_to(chunk, node, Csn(u64::MAX))
    }

    /// Every invariant.
    pub(crate) fn check(&self, catalog: &Catalog, setting: Setting) -> Result<(), String> {
        for chunk in catalog.chunks() {
            let all = self.commits(chunk.id).iter().fold(0, |all, txn| all | bit(*txn));
            for rid in &chunk.in_sync {
                let node = node_of(*rid);
                let held = self.disks[node].batches[at(chunk.id)];
                if self.registered(catalog, node) && all & !held != 0 {
                    return Err(format!("I1: {rid} is in sync of {} and lacks a commit", chunk.id));
                }
            }
            self.check_survival(catalog, chunk, all)?;
            let log = self.log.iter().enumerate().filter(|(_, commit)| commit.0 == chunk.id);
            let chain = log.fold(0, |chain, (index, commit)| {
                chain_after(chain, Csn(index as u64 + 1), batch_hash(commit.1))
            });
            if chain != chunk.chain {
                return Err(format!("I8: the chain of {} is not that of its commits", chunk.id));
            }
        }
        self.check_keys(setting)?;
        if setting.one_write && self.log.len() > 1 {
            return Err("I6: one write was committed twice".to_owned());
        }
        Ok(())
    }

    /// While a disk lives that was in sync at the last commit, some such disk holds every commit, and the chunk is not
    /// given up unless none of them is known to.
    fn check_survival(&self, catalog: &Catalog, chunk: &Chunk, all: u8) -> Result<(), String> {
        let last = self.log.iter().rev().find(|commit| commit.0 == chunk.id);
        let Some((_, _, in_sync)) = last else { return Ok(()) };
        let alive = |rid: &&Rid| {
            let node = node_of(**rid);
            let same = catalog.data_node(rid.node).is_some_and(|known| known.rid == **rid);
            same && self.registered(catalog, node)
        };
        let living: Vec<&Rid> = in_sync.iter().filter(alive).collect();
        let whole = |rid: &&&Rid| {
            let held = self.disks[node_of(***rid)].batches[at(chunk.id)];
            all & !held == 0
        };
        let removed = |rid: &&Rid| {
            !chunk.in_sync.contains(rid) && chunk.left.iter().all(|(left, _)| left != *rid)
        };
        if living.iter().all(removed) || living.iter().any(|rid| whole(&rid)) {
            return Ok(());
        }
        Err(format!("I3: {} lost commits although {living:?} live", chunk.id))
    }

    /// No keyed commit goes over one that its snapshot missed.
    fn check_keys(&self, setting: Setting) -> Result<(), String> {
        for (index, (chunk, txn, _)) in self.log.iter().enumerate() {
            if !setting.classes[*txn].reserves() {
                continue;
            }
            // A key is unique over all generations of its box; a delete looks at the rows of one.
            let puts = |txn: usize| setting.classes[txn] == Class::Keyed;
            let missed = self.log.iter().take(index).find(|before| {
                (before.0 == *chunk || (puts(*txn) && puts(before.1)))
                    && setting.classes[before.1] != Class::Append
                    && self.txns[*txn].snapshot & bit(before.1) == 0
            });
            if let Some((_, before, _)) = missed {
                return Err(format!("I5: t{txn} was committed over t{before}, which it never saw"));
            }
        }
        Ok(())
    }
}

/// How a transaction stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    Aborted,
    Committed,
}

fn fate(catalog: &Catalog, txn: usize) -> End {
    match catalog.fate(txn_id(txn)).map(|decision| decision.fate) {
        None => End::Open,
        Some(Fate::Aborted) => End::Aborted,
        Some(Fate::Committed { .. }) => End::Committed,
    }
}

fn incarnation_in<'a>(mut rids: impl Iterator<Item = &'a Rid>, node: usize) -> u8 {
    rids.find(|rid| node_of(**rid) == node).map_or(0, |rid| rid.incarnation.0 as u8)
}
