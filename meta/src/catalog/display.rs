//! One line of text for each command and outcome.

use std::fmt;

use super::{Chunk, Command, CommitPart, CommitRecord, HypertableSpec, Outcome};

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RegisterAccess { id, rpc, .. } => write!(f, "register access {id} rpc={rpc}"),
            Self::RegisterData { rid, name, disk, rpc, .. } => {
                let rid = rid.map_or_else(|| "new".to_owned(), |rid| rid.to_string());
                write!(f, "register data {rid} name={name} disk={disk} rpc={rpc}")
            }
            Self::CreateTable { schema, name, columns, .. } => {
                write!(f, "create table {schema}.{name} columns={}", columns.columns.len())
            }
            Self::CreateHypertable { table, spec, .. } => {
                write!(f, "create hypertable {table} {spec}")
            }
            Self::DropTables { tables } => write!(f, "drop tables {}", list(tables)),
            Self::TruncateTables { tables } => write!(f, "truncate tables {}", list(tables)),
            Self::EnsureChunks { table, points } => {
                write!(f, "ensure chunks {table} points={}", points.len())
            }
            Self::DropChunks { table, chunks } => {
                write!(f, "drop chunks {table} {}", list(chunks))
            }
            Self::Commit(record) => write!(f, "commit {record}"),
            Self::Abort { txn } => write!(f, "abort {txn}"),
            Self::Progress { rid, applied } => {
                write!(f, "progress {rid}")?;
                applied.iter().try_for_each(|(chunk, csn)| write!(f, " {chunk}={csn}"))
            }
            Self::BlockNewChunks { node, block: true } => write!(f, "block {node}"),
            Self::BlockNewChunks { node, block: false } => write!(f, "allow {node}"),
        }
    }
}

impl fmt::Display for HypertableSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "time={} interval={}", self.time_column, self.interval)?;
        if let Some((column, partitions)) = &self.space {
            write!(f, " space={column}")?;
            partitions.iter().try_for_each(|number| write!(f, " partitions={number}"))?;
        }
        write!(f, " rf={}", self.replication_factor)?;
        self.data_nodes.iter().try_for_each(|nodes| write!(f, " nodes={}", list(nodes)))
    }
}

impl fmt::Display for CommitRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.txn)?;
        if let Some((id, hash)) = &self.write {
            write!(f, " write={id}:{hash:x}")?;
        }
        self.parts.iter().try_for_each(|part| write!(f, " [{part}]"))
    }
}

impl fmt::Display for CommitPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { chunk, epoch, acks, hash, rows, table_version } = self;
        write!(f, "{chunk} {epoch} acks={} hash={hash:x} rows={rows}", list(acks))?;
        write!(f, " v{table_version}")
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => write!(f, "done"),
            Self::Boot(boot) => write!(f, "boot {boot}"),
            Self::Data(node) => node.fmt(f),
            Self::Table(table, true) => table.fmt(f),
            Self::Table(table, false) => write!(f, "existing {table}"),
            Self::Chunks(chunks) => lines(f, chunks),
            Self::Dropped(chunks) => write!(f, "dropped {}", list(chunks)),
            Self::Committed { decision, .. } => decision.fmt(f),
            Self::Duplicate { csn, rows } => write!(f, "duplicate csn={csn} rows={rows}"),
            Self::Aborted => write!(f, "aborted"),
        }
    }
}

/// Values between commas, without spaces; a dash when there are none.
pub(crate) fn list<T: fmt::Display>(values: &[T]) -> String {
    if values.is_empty() {
        return "-".to_owned();
    }
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn lines(f: &mut fmt::Formatter<'_>, chunks: &[Chunk]) -> fmt::Result {
    chunks.iter().enumerate().try_for_each(|(at, chunk)| {
        let end = if at == 0 { "" } else { "\n" };
        write!(f, "{end}{chunk}")
    })
}
