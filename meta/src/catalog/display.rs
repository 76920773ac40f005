//! One line of text for each command and outcome.

use std::fmt;

use super::{Chunk, Command, CommitPart, CommitRecord, Held, HypertableSpec, Outcome};

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
            Self::AlterTable { table, changes } => {
                write!(f, "alter {table}")?;
                changes.iter().try_for_each(|change| write!(f, " [{change}]"))
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
            Self::BlockNewChunks(block) => block.fmt(f),
            Self::SetHealth { rid, health } => write!(f, "health {rid} {health}"),
            Self::NodeReset { rid, disk, held } => {
                write!(f, "reset {rid} disk={disk} {}", list(held))
            }
            Self::Shrink { rid, chunks } => write!(f, "shrink {rid} {}", list(chunks)),
            Self::Return { rid, held } => write!(f, "return {rid} {}", list(held)),
            Self::StartJoin { chunk, rid } => write!(f, "start join {chunk} {rid}"),
            Self::DropJoin { chunk, rid } => write!(f, "drop join {chunk} {rid}"),
            Self::FinishJoin { rid, held } => write!(f, "finish join {rid} {held}"),
            Self::RemoveReplica { chunk, rid } => write!(f, "remove replica {chunk} {rid}"),
            Self::AcceptLoss { rid, held, rows } => {
                write!(f, "accept loss {rid} {held} rows={rows}")
            }
            Self::Seal { chunk, epoch } => write!(f, "seal {chunk} {epoch}"),
            other => other.fmt_wish(f),
        }
    }
}

impl Command {
    /// What operators and jobs ask for.
    fn fmt_wish(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetDraining { node, draining: true } => write!(f, "drain {node}"),
            Self::SetDraining { node, draining: false } => write!(f, "undrain {node}"),
            Self::AlterDataNode { node, rpc, available } => {
                write!(f, "alter {node}")?;
                rpc.iter().try_for_each(|rpc| write!(f, " rpc={rpc}"))?;
                available.iter().try_for_each(|available| write!(f, " available={available}"))
            }
            Self::AttachDataNode { node, table, .. } => write!(f, "attach {node} {table}"),
            Self::DetachDataNode { node, table, how } => {
                let table = table.map_or_else(|| "all".to_owned(), |table| table.to_string());
                write!(f, "detach {node} {table} force={}", how.force)
            }
            Self::DeleteDataNode { node, how, .. } => {
                write!(f, "delete {node} force={}", how.force)
            }
            Self::SetReplicationFactor { table, factor } => write!(f, "factor {table} {factor}"),
            Self::SetMinInSync { table, replicas } => write!(f, "min in sync {table} {replicas}"),
            Self::SetCompression { table, compression: Some(how) } => {
                write!(f, "set compression {table} {how}")
            }
            Self::SetCompression { table, .. } => write!(f, "set compression {table} none"),
            Self::AskCompression { chunks, compress: true } => {
                write!(f, "compress {}", list(chunks))
            }
            Self::AskCompression { chunks, .. } => write!(f, "decompress {}", list(chunks)),
            Self::SetChunkCompressed { chunk, bytes: (before, after), csn } => {
                write!(f, "compressed {chunk}@{csn} {before}->{after}")
            }
            Self::AddJob { table, policy, schedule, .. } => {
                write!(f, "add job {table} {policy:?} every={}", schedule.every_ms)
            }
            Self::RemoveJob { job } => write!(f, "remove job {job}"),
            Self::RunJob { job, at_once } => write!(f, "run job {job} at_once={at_once}"),
            Self::OrderCopy(order) => write!(f, "order {order}"),
            Self::CancelOrder { operation } => write!(f, "cancel {operation}"),
            Self::SetRebalancing(wanted) => write!(f, "set {wanted}"),
            Self::AdvanceTime { access, at_ms } => write!(f, "clock {access} {at_ms}"),
            Self::RemoveAccess { id } => write!(f, "remove access {id}"),
            // The rest has its line in `Display`.
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { chunk, csn, chain } = self;
        write!(f, "{chunk}@{csn}:{chain:x}")
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
        let Self { chunk, epoch, acks, hash, rows, table_version, keyed } = self;
        write!(f, "{chunk} {epoch} acks={} hash={hash:x} rows={rows}", list(acks))?;
        write!(f, " v{table_version}{}", if *keyed { " keyed" } else { "" })
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
            Self::Changed(chunks) => write!(f, "changed {}", list(chunks)),
            Self::LossAccepted { chunk, loss } => write!(f, "lost {chunk} {loss}"),
            Self::Job(job, true) => job.fmt(f),
            Self::Job(job, false) => write!(f, "existing {job}"),
            Self::Nodes { changed, notices } => {
                write!(f, "changed {changed}")?;
                notices.iter().try_for_each(|notice| write!(f, "\n{notice}"))
            }
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
