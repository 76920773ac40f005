//! The functions that change or list what the catalog holds: their names, parameters and columns, and who runs them.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, StringArray},
    datatypes::{DataType, Field},
};
use datafusion::sql::sqlparser::ast::ObjectName;

use super::{
    accept_loss,
    call::{Arguments, set_config},
    chunks,
    compression::{self, Change},
    data_node, health, hypertable, membership, move_chunk, parse,
    policy::{self, Kind},
    replica_check, sizes,
};
use crate::{Error, Session, session::Frame};

/// Schemas in which the functions are found, beside no schema at all.
const SCHEMAS: [&str; 5] =
    ["public", "pg_catalog", "timescaledb_experimental", "_timescaledb_functions", "hypertide"];

/// A function of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    CreateHypertable,
    CreateDistributedHypertable,
    AddDataNode,
    AttachDataNode,
    DetachDataNode,
    DeleteDataNode,
    AlterDataNode,
    BlockNewChunks,
    AllowNewChunks,
    DrainDataNode,
    SetReplicationFactor,
    SetMinInSync,
    CopyChunk,
    MoveChunk,
    CleanupCopyChunkOperation,
    ShowChunks,
    DropChunks,
    CompressChunk,
    DecompressChunk,
    RecompressChunk,
    HypertableSize,
    HypertableDetailedSize,
    ChunksDetailedSize,
    ApproximateRowCount,
    ChunkCompressionStats,
    HypertableCompressionStats,
    AddRetentionPolicy,
    RemoveRetentionPolicy,
    AddCompressionPolicy,
    RemoveCompressionPolicy,
    DeleteJob,
    RunJob,
    SetConfig,
    SetRebalancing,
    HypertideCheck,
    AcceptLoss,
    Health,
}

/// What a call of a function must look like, and what its rows do.
struct Signature {
    text: &'static str,
    name: Name,
    parameters: &'static [&'static str],
    columns: fn() -> Vec<Field>,
}

/// A result of one column, named like the function.
const NO_COLUMNS: fn() -> Vec<Field> = Vec::new;

const FUNCTIONS: [Signature; 37] = {
    use Name::{
        AcceptLoss, AddCompressionPolicy, AddDataNode, AddRetentionPolicy, AllowNewChunks,
        AlterDataNode, ApproximateRowCount, AttachDataNode, BlockNewChunks, ChunkCompressionStats,
        ChunksDetailedSize, CleanupCopyChunkOperation, CompressChunk, CopyChunk,
        CreateDistributedHypertable, CreateHypertable, DecompressChunk, DeleteDataNode, DeleteJob,
        DetachDataNode, DrainDataNode, DropChunks, Health, HypertableCompressionStats,
        HypertableDetailedSize, HypertableSize, HypertideCheck, MoveChunk, RecompressChunk,
        RemoveCompressionPolicy, RemoveRetentionPolicy, RunJob, SetConfig, SetMinInSync,
        SetRebalancing, SetReplicationFactor, ShowChunks,
    };
    const fn function(
        text: &'static str,
        name: Name,
        parameters: &'static [&'static str],
        columns: fn() -> Vec<Field>,
    ) -> Signature {
        Signature { text, name, parameters, columns }
    }
    [
        function(
            "create_hypertable",
            CreateHypertable,
            hypertable::PARAMETERS,
            hypertable::columns,
        ),
        function(
            "create_distributed_hypertable",
            CreateDistributedHypertable,
            hypertable::PARAMETERS,
            hypertable::columns,
        ),
        function("add_data_node", AddDataNode, data_node::PARAMETERS, data_node::columns),
        function(
            "attach_data_node",
            AttachDataNode,
            membership::ATTACH_PARAMETERS,
            membership::attach_columns,
        ),
        function("detach_data_node", DetachDataNode, membership::DETACH_PARAMETERS, NO_COLUMNS),
        function("delete_data_node", DeleteDataNode, membership::DELETE_PARAMETERS, NO_COLUMNS),
        function(
            "alter_data_node",
            AlterDataNode,
            membership::ALTER_PARAMETERS,
            membership::alter_columns,
        ),
        function("block_new_chunks", BlockNewChunks, membership::BLOCK_PARAMETERS, NO_COLUMNS),
        function("allow_new_chunks", AllowNewChunks, membership::ALLOW_PARAMETERS, NO_COLUMNS),
        function(
            "set_replication_factor",
            SetReplicationFactor,
            membership::FACTOR_PARAMETERS,
            NO_COLUMNS,
        ),
        function("drain_data_node", DrainDataNode, membership::DRAIN_PARAMETERS, NO_COLUMNS),
        function("set_min_in_sync", SetMinInSync, membership::MIN_PARAMETERS, NO_COLUMNS),
        function("copy_chunk", CopyChunk, move_chunk::PARAMETERS, NO_COLUMNS),
        function("move_chunk", MoveChunk, move_chunk::PARAMETERS, NO_COLUMNS),
        function(
            "cleanup_copy_chunk_operation",
            CleanupCopyChunkOperation,
            move_chunk::CLEANUP_PARAMETERS,
            NO_COLUMNS,
        ),
        function("show_chunks", ShowChunks, chunks::SHOW_PARAMETERS, NO_COLUMNS),
        function("drop_chunks", DropChunks, chunks::DROP_PARAMETERS, NO_COLUMNS),
        function("compress_chunk", CompressChunk, compression::COMPRESS_PARAMETERS, NO_COLUMNS),
        function(
            "decompress_chunk",
            DecompressChunk,
            compression::DECOMPRESS_PARAMETERS,
            NO_COLUMNS,
        ),
        function("recompress_chunk", RecompressChunk, compression::COMPRESS_PARAMETERS, NO_COLUMNS),
        function(
            "set_rebalancing",
            SetRebalancing,
            membership::REBALANCING_PARAMETERS,
            membership::rebalancing_columns,
        ),
        function(
            "hypertide_check",
            HypertideCheck,
            replica_check::PARAMETERS,
            replica_check::columns,
        ),
        function(
            "hypertide_accept_loss",
            AcceptLoss,
            accept_loss::PARAMETERS,
            accept_loss::columns,
        ),
        function("health", Health, &[], health::columns),
        function("hypertable_size", HypertableSize, sizes::PARAMETERS, NO_COLUMNS),
        function(
            "hypertable_detailed_size",
            HypertableDetailedSize,
            sizes::PARAMETERS,
            sizes::detailed_columns,
        ),
        function(
            "chunks_detailed_size",
            ChunksDetailedSize,
            sizes::PARAMETERS,
            sizes::chunks_columns,
        ),
        function("approximate_row_count", ApproximateRowCount, sizes::COUNT_PARAMETERS, NO_COLUMNS),
        function(
            "chunk_compression_stats",
            ChunkCompressionStats,
            sizes::PARAMETERS,
            sizes::chunk_stats_columns,
        ),
        function(
            "hypertable_compression_stats",
            HypertableCompressionStats,
            sizes::PARAMETERS,
            sizes::stats_columns,
        ),
        function(
            "add_retention_policy",
            AddRetentionPolicy,
            policy::RETENTION_PARAMETERS,
            NO_COLUMNS,
        ),
        function(
            "remove_retention_policy",
            RemoveRetentionPolicy,
            policy::REMOVE_RETENTION_PARAMETERS,
            NO_COLUMNS,
        ),
        function(
            "add_compression_policy",
            AddCompressionPolicy,
            policy::COMPRESSION_PARAMETERS,
            NO_COLUMNS,
        ),
        function(
            "remove_compression_policy",
            RemoveCompressionPolicy,
            policy::REMOVE_COMPRESSION_PARAMETERS,
            NO_COLUMNS,
        ),
        function("delete_job", DeleteJob, policy::JOB_PARAMETERS, NO_COLUMNS),
        function("run_job", RunJob, policy::JOB_PARAMETERS, NO_COLUMNS),
        function("set_config", SetConfig, &["setting_name", "new_value", "is_local"], NO_COLUMNS),
    ]
};

impl Name {
    /// The function that a call names, if it is one of these.
    pub(crate) fn of(name: &ObjectName) -> Option<Self> {
        let (schema, name) = parse::table_name(name).ok()?;
        let own = schema.is_none_or(|schema| SCHEMAS.contains(&schema.as_str()));
        FUNCTIONS.iter().find(|known| own && known.text == name).map(|known| known.name)
    }

    fn signature(self) -> &'static Signature {
        let mut known = FUNCTIONS.iter();
        known.find(|known| known.name == self).expect("every name is in the table")
    }

    /// As SQL writes it.
    pub(crate) fn text(self) -> &'static str {
        self.signature().text
    }

    /// Names of its parameters, in order.
    pub(crate) fn parameters(self) -> &'static [&'static str] {
        self.signature().parameters
    }

    /// Columns of its rows.
    pub(crate) fn columns(self) -> Vec<Field> {
        let columns = (self.signature().columns)();
        if !columns.is_empty() {
            return columns;
        }
        let data_type = match self {
            Self::DetachDataNode
            | Self::BlockNewChunks
            | Self::AllowNewChunks
            | Self::AddRetentionPolicy
            | Self::AddCompressionPolicy => DataType::Int32,
            Self::DeleteDataNode | Self::DrainDataNode | Self::RemoveCompressionPolicy => {
                DataType::Boolean
            }
            Self::HypertableSize | Self::ApproximateRowCount => DataType::Int64,
            _ => DataType::Utf8,
        };
        vec![Field::new(self.text(), data_type, true)]
    }

    /// Runs it for each of several rows; gives what came of each.
    pub(crate) async fn run_rows(
        self,
        session: &mut Session,
        frame: &Frame,
        rows: Vec<Arguments>,
    ) -> Result<Vec<ArrayRef>, Error> {
        let change = match self {
            Self::CompressChunk => Change::Compress,
            Self::DecompressChunk => Change::Decompress,
            Self::RecompressChunk => Change::Recompress,
            _ => {
                let mut results = Vec::with_capacity(rows.len());
                for arguments in rows {
                    results.extend(Box::pin(self.run(session, frame, arguments)).await?);
                }
                return Ok(results);
            }
        };
        let names = compression::run(session, frame, change, &rows).await?;
        let one = |name| Arc::new(StringArray::from(vec![name])) as ArrayRef;
        Ok(names.into_iter().map(one).collect())
    }

    /// Runs it.
    pub(crate) async fn run(
        self,
        session: &mut Session,
        frame: &Frame,
        arguments: Arguments,
    ) -> Result<Vec<ArrayRef>, Error> {
        match self {
            Self::CreateHypertable => hypertable::create(session, frame, arguments, false).await,
            Self::CreateDistributedHypertable => {
                hypertable::create(session, frame, arguments, true).await
            }
            Self::AddDataNode => data_node::add(session, frame, &arguments).await,
            Self::AttachDataNode => membership::attach(session, frame, &arguments).await,
            Self::DetachDataNode => membership::detach(session, frame, &arguments).await,
            Self::DeleteDataNode => membership::delete(session, frame, &arguments).await,
            Self::AlterDataNode => membership::alter(session, frame, &arguments).await,
            Self::BlockNewChunks => membership::block(session, frame, &arguments, true).await,
            Self::AllowNewChunks => membership::block(session, frame, &arguments, false).await,
            Self::SetReplicationFactor => {
                membership::set_replication_factor(session, frame, &arguments).await
            }
            Self::DrainDataNode => membership::drain(session, frame, &arguments).await,
            Self::SetMinInSync => membership::set_min_in_sync(session, frame, &arguments).await,
            Self::CopyChunk => move_chunk::order(session, frame, &arguments, false).await,
            Self::MoveChunk => move_chunk::order(session, frame, &arguments, true).await,
            Self::AcceptLoss => accept_loss::run(session, frame, &arguments).await,
            Self::CleanupCopyChunkOperation => move_chunk::cleanup(session, &arguments).await,
            Self::ShowChunks => chunks::show(session, frame, &arguments),
            Self::DropChunks => chunks::drop(session, frame, &arguments).await,
            Self::CompressChunk | Self::DecompressChunk | Self::RecompressChunk => {
                Box::pin(self.run_rows(session, frame, vec![arguments])).await
            }
            Self::HypertableSize => sizes::hypertable_size(session, frame, &arguments).await,
            Self::HypertableDetailedSize => {
                sizes::hypertable_detailed_size(session, frame, &arguments).await
            }
            Self::ChunksDetailedSize => {
                sizes::chunks_detailed_size(session, frame, &arguments).await
            }
            Self::ApproximateRowCount => sizes::approximate_row_count(session, frame, &arguments),
            Self::ChunkCompressionStats => {
                sizes::chunk_compression_stats(session, frame, &arguments).await
            }
            Self::HypertableCompressionStats => {
                sizes::hypertable_compression_stats(session, frame, &arguments).await
            }
            Self::AddRetentionPolicy => {
                policy::add(session, frame, &arguments, Kind::Retention).await
            }
            Self::AddCompressionPolicy => {
                policy::add(session, frame, &arguments, Kind::Compression).await
            }
            Self::RemoveRetentionPolicy => {
                policy::remove(session, frame, &arguments, Kind::Retention).await?;
                Ok(policy::nothing())
            }
            Self::RemoveCompressionPolicy => {
                let had = policy::remove(session, frame, &arguments, Kind::Compression).await?;
                Ok(policy::flag(had))
            }
            Self::DeleteJob => policy::delete(session, &arguments).await,
            Self::RunJob => policy::run(session, &arguments).await,
            Self::SetConfig => set_config(session, &arguments),
            Self::SetRebalancing => membership::set_rebalancing(session, frame, &arguments).await,
            Self::HypertideCheck => replica_check::run(session, frame, &arguments).await,
            Self::Health => Ok(health::rows(frame)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_is_found_under_its_name() {
        for known in &FUNCTIONS {
            let name = ObjectName::from(vec![known.text.into()]);
            assert_eq!(Name::of(&name), Some(known.name));
            assert_eq!(known.name.text(), known.text);
            assert!(!known.name.columns().is_empty());
        }
        assert_eq!(Name::of(&ObjectName::from(vec!["other".into(), "show_chunks".into()])), None);
    }
}
