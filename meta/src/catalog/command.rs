//! What the log may say, and what the catalog answers.

use hypertide_proto::{
    decision::Decision,
    ids::{AccessId, Boot, ChunkId, Csn, DiskId, Epoch, JobId, Rid, TableId, TxnId, WriteId},
    schema::TableSchema,
    time::TimeRange,
};
use serde::{Deserialize, Serialize};

use super::{
    Block, Chunk, Compression, DataNode, Detach, Health, Held, Job, Loss, Notice, Order, Policy,
    Rebalancing, Schedule, Table, TableChange,
};

/// A change of the catalog. Deterministic: it holds all that applying it needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// An access node started: gives it a boot and fences its earlier transactions.
    RegisterAccess {
        /// Its Raft id.
        id: AccessId,
        /// Address of its internal gRPC.
        rpc: String,
        /// Address of its PostgreSQL endpoint.
        pg: String,
        /// Address of its Flight SQL endpoint.
        flight: String,
        /// Address of its HTTP endpoint.
        http: String,
    },
    /// A data node enters, or comes back. Without a rid it is new; with one, disk and name must be those known.
    RegisterData {
        /// What it was given before; `None` when it is new, or never had an answer.
        rid: Option<Rid>,
        /// Its name; empty for the next free one, or for the one it has.
        name: String,
        /// Its disk.
        disk: DiskId,
        /// Address of its internal gRPC.
        rpc: String,
        /// Address of its HTTP endpoint.
        http: String,
    },
    /// Makes a reference table.
    CreateTable {
        /// Schema of the name.
        schema: String,
        /// Name, unique within the schema.
        name: String,
        /// User who makes it.
        owner: String,
        /// Columns.
        columns: TableSchema,
        /// Whether a table of that name is an answer instead of a refusal.
        if_not_exists: bool,
    },
    /// Makes an empty reference table a hypertable.
    CreateHypertable {
        /// The table.
        table: TableId,
        /// How it is to be cut.
        spec: HypertableSpec,
        /// Whether a hypertable is an answer instead of a refusal.
        if_not_exists: bool,
    },
    /// Changes a table: all of the changes in their order, or none.
    AlterTable {
        /// The table.
        table: TableId,
        /// The changes.
        changes: Vec<TableChange>,
    },
    /// Drops tables with their chunks, all or none.
    DropTables {
        /// The tables.
        tables: Vec<TableId>,
    },
    /// Empties tables: drops all their chunks.
    TruncateTables {
        /// The tables.
        tables: Vec<TableId>,
    },
    /// Finds or makes the chunks that hold these points, one coordinate per dimension (time value, then hash values).
    /// For a reference table: the one point without coordinates.
    EnsureChunks {
        /// The table.
        table: TableId,
        /// The points.
        points: Vec<Vec<i64>>,
    },
    /// Drops chunks of a table.
    DropChunks {
        /// The table.
        table: TableId,
        /// The chunks; those that are gone or another table's are left out.
        chunks: Vec<ChunkId>,
    },
    /// Commits a transaction whose parts are durable on the acknowledging replicas.
    Commit(CommitRecord),
    /// Ends a transaction without effect, unless it was committed before.
    Abort {
        /// The transaction.
        txn: TxnId,
    },
    /// A data node has made every commit of these chunks up to the given one durable as committed.
    Progress {
        /// The node, with its disk.
        rid: Rid,
        /// Chunks, and the last commit of each that is durable there with all before it.
        applied: Vec<(ChunkId, Csn)>,
    },
    /// Takes new chunks off a node or gives them back.
    BlockNewChunks(Block),
    /// What the leader's failure detector thinks of a data node.
    SetHealth {
        /// Its disk.
        rid: Rid,
        /// The opinion.
        health: Health,
    },
    /// The disk of a data node is new, wiped, rolled back or suspect: it gets the next incarnation, and nothing that
    /// the one before held counts any more but what is proven to be there.
    NodeReset {
        /// The disk that is registered.
        rid: Rid,
        /// The disk that is there now; the same when only its content is suspect.
        disk: DiskId,
        /// What it holds now of chunks that the one before was in sync of.
        held: Vec<Held>,
    },
    /// Takes a replica out of the write set of chunks, wherever another one in sync is left.
    Shrink {
        /// The replica's disk.
        rid: Rid,
        /// The chunks.
        chunks: Vec<ChunkId>,
    },
    /// Takes replicas back that hold every commit of their chunks.
    Return {
        /// The replicas' disk.
        rid: Rid,
        /// What it holds.
        held: Vec<Held>,
    },
    /// Lets a replica take part in every commit from here on.
    StartJoin {
        /// The chunk.
        chunk: ChunkId,
        /// The replica's disk.
        rid: Rid,
    },
    /// Gives up a join.
    DropJoin {
        /// The chunk.
        chunk: ChunkId,
        /// The replica's disk.
        rid: Rid,
    },
    /// Counts a joining replica as in sync, by the proof that it holds what came before it joined.
    FinishJoin {
        /// The replica's disk.
        rid: Rid,
        /// What it holds: the place where it joined, or the chunk's last commit.
        held: Held,
    },
    /// Takes a replica off a chunk for good, unless it is the last in sync.
    RemoveReplica {
        /// The chunk.
        chunk: ChunkId,
        /// The replica's disk.
        rid: Rid,
    },
    /// Takes what a replica holds of a damaged chunk for all there is of it, and gives up what it lacks.
    AcceptLoss {
        /// The replica's disk, one of those that left the chunk.
        rid: Rid,
        /// What it holds, and will hold until it hears more.
        held: Held,
        /// Rows among it.
        rows: u64,
    },
    /// Closes an open chunk; the next row of its box makes a new generation.
    Seal {
        /// The chunk.
        chunk: ChunkId,
        /// The epoch it is thought to be at.
        epoch: Epoch,
    },
    /// Lets the chunks of a data node move away, or stay again.
    SetDraining {
        /// Name of the node.
        node: String,
        /// Whether they are to move away.
        draining: bool,
    },
    /// Changes where a data node is reached, or takes it out of service and back.
    AlterDataNode {
        /// Name of the node.
        node: String,
        /// Address of its internal gRPC; `None` to leave it.
        rpc: Option<String>,
        /// Whether it is in service; `None` to leave it.
        available: Option<bool>,
    },
    /// Spreads a hypertable over one more data node.
    AttachDataNode {
        /// Name of the node.
        node: String,
        /// The hypertable.
        table: TableId,
        /// Whether an attached node is an answer instead of a refusal.
        if_not_attached: bool,
        /// Whether there are to be as many partitions as nodes at least.
        repartition: bool,
    },
    /// Takes a data node off a hypertable, or off all.
    DetachDataNode {
        /// Name of the node.
        node: String,
        /// The hypertable; `None` for all.
        table: Option<TableId>,
        /// What may be done beside.
        how: Detach,
    },
    /// Removes a data node from the cluster.
    DeleteDataNode {
        /// Name of the node.
        node: String,
        /// Whether an unknown node is an answer instead of a refusal.
        if_exists: bool,
        /// What may be done beside.
        how: Detach,
    },
    /// Sets the number of replicas of a hypertable's chunks.
    SetReplicationFactor {
        /// The hypertable.
        table: TableId,
        /// Replicas of a chunk.
        factor: u16,
    },
    /// Sets how many replicas in sync a commit to a hypertable asks for.
    SetMinInSync {
        /// The hypertable.
        table: TableId,
        /// Replicas in sync.
        replicas: u16,
    },
    /// Sets how a hypertable's chunks are compressed.
    SetCompression {
        /// The hypertable.
        table: TableId,
        /// How; `None` for not at all.
        compression: Option<Compression>,
    },
    /// Asks for chunks to be compressed as they are now, or for them to be plain.
    AskCompression {
        /// The chunks.
        chunks: Vec<ChunkId>,
        /// Whether they are to be compressed.
        compress: bool,
    },
    /// Notes that a chunk was compressed on its replicas.
    SetChunkCompressed {
        /// The chunk.
        chunk: ChunkId,
        /// Bytes of one replica before and after.
        bytes: (u64, u64),
        /// The last commit that is compressed on all.
        csn: Csn,
    },
    /// Gives a hypertable a policy.
    AddJob {
        /// The hypertable.
        table: TableId,
        /// User who makes it.
        owner: String,
        /// What is to be done.
        policy: Policy,
        /// How often.
        schedule: Schedule,
        /// Whether a policy of that kind is an answer instead of a refusal.
        if_not_exists: bool,
    },
    /// Takes a job away.
    RemoveJob {
        /// The job.
        job: JobId,
    },
    /// Runs a job.
    RunJob {
        /// The job.
        job: JobId,
        /// Whether also before it is due.
        at_once: bool,
    },
    /// Orders a copy or a move of one chunk.
    OrderCopy(Order),
    /// Ends an order.
    CancelOrder {
        /// Its name.
        operation: String,
    },
    /// Sets how the leader evens out what data nodes hold.
    SetRebalancing(Rebalancing),
    /// What an access node's clock shows, told when log time is far behind it.
    AdvanceTime {
        /// The access node.
        access: AccessId,
        /// Milliseconds since the Unix epoch.
        at_ms: u64,
    },
    /// An access node is gone for good: its transactions are fenced and it counts no more.
    RemoveAccess {
        /// Its Raft id.
        id: AccessId,
    },
}

/// How a table is to be cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HypertableSpec {
    /// Made by `create_distributed_hypertable`, or with a replication factor.
    pub distributed: bool,
    /// Column of time.
    pub time_column: String,
    /// Width of a time slice, positive.
    pub interval: i64,
    /// Column and number of partitions of the space dimension; without a number, that of the data nodes.
    pub space: Option<(String, Option<u16>)>,
    /// Replicas of a chunk.
    pub replication_factor: u16,
    /// Names of data nodes; `None` for all.
    pub data_nodes: Option<Vec<String>>,
    /// Schema of the chunks' names; the default is `_timescaledb_internal`.
    pub chunk_schema: Option<String>,
    /// Prefix of the chunks' names; the default is `_dist_hyper_<id>` or `_hyper_<id>`.
    pub chunk_prefix: Option<String>,
}

/// What a transaction changes and who holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitRecord {
    /// The transaction.
    pub txn: TxnId,
    /// Name under which a retry is recognised, with the hash of what was written.
    pub write: Option<(WriteId, u128)>,
    /// One per chunk, in order of chunk ids.
    pub parts: Vec<CommitPart>,
}

/// The part of a transaction that lies in one chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitPart {
    /// The chunk.
    pub chunk: ChunkId,
    /// The epoch that the acknowledgements were collected in.
    pub epoch: Epoch,
    /// Replicas that hold every batch of the part durably.
    pub acks: Vec<Rid>,
    /// xxh3-128 over the hashes of the batches, in their order.
    pub hash: u128,
    /// Rows.
    pub rows: u64,
    /// Version of the table's columns that the rows were made for.
    pub table_version: u32,
    /// Whether keys were reserved for it (class K): all acknowledgements must be of the chunk's epoch of now.
    pub keyed: bool,
}

/// What applying a command gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Nothing to tell, or nothing to do.
    Done,
    /// The boot of a started access node.
    Boot(Boot),
    /// A data node as it is registered now.
    Data(DataNode),
    /// A table as it is now; `false` when it was there before.
    Table(Box<Table>, bool),
    /// The chunks asked for, in the order of the points.
    Chunks(Vec<Chunk>),
    /// Ids of chunks that exist no more.
    Dropped(Vec<ChunkId>),
    /// The transaction was committed, now or before.
    Committed {
        /// Its commit number.
        csn: Csn,
        /// The decision, as data nodes learn it.
        decision: Decision,
    },
    /// The write id was seen before: the stored commit and its rows; this transaction is aborted.
    Duplicate {
        /// Commit number of the first.
        csn: Csn,
        /// Rows that it wrote.
        rows: u64,
    },
    /// The transaction was aborted, now or before.
    Aborted,
    /// The chunks whose replicas or state the command changed.
    Changed(Vec<ChunkId>),
    /// What was given up of a damaged chunk.
    LossAccepted {
        /// The chunk.
        chunk: ChunkId,
        /// The commits.
        loss: Loss,
    },
    /// A job as it is now; whether it was made, or ran.
    Job(Box<Job>, bool),
    /// Data nodes were attached, detached or deleted.
    Nodes {
        /// Hypertables, or nodes, that changed.
        changed: u64,
        /// What the operator should read.
        notices: Vec<Notice>,
    },
}

/// A deterministic refusal; the catalog is as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Reject {
    /// The table does not exist.
    #[error("table {0} does not exist")]
    UnknownTable(TableId),
    /// The column does not exist.
    #[error("column \"{0}\" does not exist")]
    UnknownColumn(String),
    /// The data node does not exist.
    #[error("data node \"{0}\" does not exist")]
    UnknownNode(String),
    /// The name is taken.
    #[error("relation \"{0}\" already exists")]
    TableExists(String),
    /// It is a hypertable.
    #[error("table \"{0}\" is already a hypertable")]
    AlreadyHypertable(String),
    /// It has rows.
    #[error("table \"{0}\" is not empty")]
    NotEmpty(String),
    /// A column has a type that the dimension cannot have, or stands in two, or a number is out of range; or points or
    /// parts are not as the dimensions and chunks ask for.
    #[error("{0}")]
    InvalidDimension(String),
    /// A key without a column that the table is cut by.
    #[error("cannot create a unique index without the column \"{0}\" (used in partitioning)")]
    KeyWithout(String),
    /// A key that is not there.
    #[error("{0}")]
    UnknownKey(String),
    /// The columns break a rule.
    #[error("{0}")]
    InvalidSchema(String),
    /// No node can take the hypertable or a chunk.
    #[error("{0}")]
    NoDataNodes(String),
    /// More replicas than nodes.
    #[error("replication factor too large for hypertable \"{table}\"")]
    ReplicationFactor {
        /// Name of the table.
        table: String,
        /// Data nodes it is attached to.
        nodes: u16,
        /// Replicas asked for.
        factor: u16,
    },
    /// The access node started again since, or is not known, or the transaction ended so long ago that how is forgotten.
    #[error("transaction {0} is closed: its access node started again, or it ended long ago")]
    Fenced(TxnId),
    /// The acknowledgements do not cover the replicas of now: prepare on the missing ones and propose again.
    #[error("chunk {} changed since it was prepared", .0.id)]
    Uncovered(Box<Chunk>),
    /// The chunk was dropped, sealed, or is damaged.
    #[error("chunk {0} takes no rows any more")]
    ChunkClosed(ChunkId),
    /// Fewer replicas in sync than the hypertable asks for.
    #[error("chunk {chunk} has {in_sync} replicas in sync, its table asks for {wanted}")]
    TooFewInSync {
        /// The chunk.
        chunk: ChunkId,
        /// Replicas in sync.
        in_sync: u16,
        /// Replicas in sync that the table asks for.
        wanted: u16,
    },
    /// A column of that name is there.
    #[error("column \"{column}\" of relation \"{table}\" already exists")]
    ColumnExists {
        /// Name of the table.
        table: String,
        /// Name of the column.
        column: String,
    },
    /// No column of that name is there.
    #[error("column \"{column}\" of relation \"{table}\" does not exist")]
    NoColumn {
        /// Name of the table.
        table: String,
        /// Name of the column.
        column: String,
    },
    /// Rows that are there would have NULL where it is forbidden.
    #[error("column \"{column}\" of relation \"{table}\" contains null values")]
    NullValues {
        /// Name of the table.
        table: String,
        /// Name of the column.
        column: String,
    },
    /// The table cannot be changed so.
    #[error("{0}")]
    NotSupported(String),
    /// The columns changed since the rows were made.
    #[error("the columns of table {0} changed since the statement began")]
    StaleSchema(TableId),
    /// The same write id came with other rows.
    #[error("write id {0} was used before with other rows")]
    WriteIdReused(WriteId),
    /// The data node's disk, name or id is not the one that is registered.
    #[error("{0}")]
    Identity(String),
    /// The chunk does not exist.
    #[error("chunk {0} does not exist")]
    UnknownChunk(ChunkId),
    /// The chunk's replicas changed since.
    #[error("chunk {chunk} is at epoch {current}, the request had {given}")]
    StaleEpoch {
        /// The chunk.
        chunk: ChunkId,
        /// Its epoch.
        current: Epoch,
        /// The epoch in the request.
        given: Epoch,
    },
    /// The replica is not what the command takes it for, or does not prove what it must.
    #[error("{0}")]
    Replica(String),
    /// No other replica of the chunk is in sync.
    #[error("chunk {0} has no other replica in sync")]
    LastReplica(ChunkId),
    /// It is a reference table.
    #[error("table \"{0}\" is not a hypertable")]
    NotHypertable(String),
    /// The data node is attached to the hypertable.
    #[error("{0}")]
    AlreadyAttached(String),
    /// The data node is not attached to the hypertable.
    #[error("{0}")]
    NotAttached(String),
    /// The data node holds replicas of the hypertable.
    #[error("{0}")]
    NodeHoldsData(String),
    /// Rows would be lost, or there would be fewer nodes than replicas.
    #[error("{0}")]
    InsufficientNodes(String),
    /// The chunk cannot be copied or moved so, or the operation is unknown.
    #[error("{0}")]
    InvalidMove(String),
    /// The chunks cannot be compressed so.
    #[error("{0}")]
    Compression(String),
    /// The job does not exist.
    #[error("job {} not found", .0.0)]
    UnknownJob(JobId),
    /// The hypertable has a policy of that kind.
    #[error("{0}")]
    PolicyExists(String),
    /// The slices of a chunk would overlap another's.
    #[error("slice {0} overlaps a chunk")]
    Overlap(TimeRange),
}
