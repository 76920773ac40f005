//! Hypertables: how a table is cut, and the rules for making one.

use std::{collections::BTreeSet, fmt};

use hypertide_proto::{
    ids::{NodeId, TableId},
    partition::PARTITIONS_MAX,
};
use serde::{Deserialize, Serialize};

use super::{
    Catalog, Compression, DataNode, Dimension, HypertableSpec, Outcome, Reject, Rule, Table,
    TableKind, apply::Step, table::check_name,
};
use crate::placement;

/// Schema of chunks' names when none is given.
pub const DEFAULT_CHUNK_SCHEMA: &str = "_timescaledb_internal";

/// Most replicas of a chunk.
const REPLICATION_FACTOR_MAX: u16 = 32_767;
/// Longest prefix of chunks' names, in bytes: the number and the suffix must fit behind it.
const CHUNK_PREFIX_BYTES_MAX: usize = 36;
/// From this replication factor on a commit asks for two replicas in sync, so that each acknowledged row survives the
/// loss of any one disk; below it, availability would end with the first disk.
const FACTOR_OF_TWO_IN_SYNC: u16 = 3;

/// What makes a table a hypertable.
///
/// - Exactly one dimension is of time, and it stands first.
/// - `replication_factor >= 1` and `min_in_sync >= 1`.
/// - `data_nodes` is in order, without doubles, not empty, and names nodes that exist, as do all buckets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hypertable {
    /// Whether it was made as a distributed hypertable; a name only, since all are.
    pub distributed: bool,
    /// Time first, then the hash dimensions; the first of those places chunks.
    pub dimensions: Vec<Dimension>,
    /// Replicas of a new chunk.
    pub replication_factor: u16,
    /// A commit is refused while the in-sync set is smaller.
    pub min_in_sync: u16,
    /// Data nodes it is attached to, in order of their ids.
    pub data_nodes: Vec<NodeId>,
    /// Those of them that it was attached to as they registered, so that attaching one by hand is no error.
    pub attached_unasked: Vec<NodeId>,
    /// Those of them that get no new chunks of it, in order of their ids.
    pub blocked: Vec<NodeId>,
    /// How its chunks are compressed; `None` when they are not.
    pub compression: Option<Compression>,
    /// Schema of the chunks' names.
    pub chunk_schema: String,
    /// Prefix of the chunks' names.
    pub chunk_prefix: String,
    /// Number of the next chunk's name.
    pub next_chunk: u64,
}

impl Hypertable {
    /// The nodes of the bucket of the placing dimension in which `hash` lies; none without a hash dimension.
    pub(crate) fn bucket_nodes(&self, hash: Option<i64>) -> &[NodeId] {
        let placing = self.dimensions.get(1);
        placing.zip(hash).map_or(&[], |(dimension, hash)| dimension.bucket_nodes(hash))
    }
}

impl fmt::Display for Hypertable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.distributed { "distributed" } else { "hypertable" })?;
        write!(f, " rf={} min_in_sync={}", self.replication_factor, self.min_in_sync)?;
        write!(f, " chunks={}.{}_{}", self.chunk_schema, self.chunk_prefix, self.next_chunk)?;
        write!(f, " nodes={}", super::display::list(&self.data_nodes))?;
        if !self.blocked.is_empty() {
            write!(f, " blocked={}", super::display::list(&self.blocked))?;
        }
        self.dimensions.iter().try_for_each(|dimension| write!(f, " {dimension}"))?;
        self.compression.iter().try_for_each(|compression| write!(f, " {compression}"))
    }
}

impl Catalog {
    /// Makes an empty reference table a hypertable. Its empty chunk, if it has one, is dropped.
    pub(crate) fn create_hypertable(
        &mut self,
        id: TableId,
        spec: &HypertableSpec,
        if_not_exists: bool,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let table = self.existing(id)?;
        if table.hypertable().is_some() {
            if if_not_exists {
                return Ok(Outcome::Table(Box::new(table.clone()), false));
            }
            return Err(Reject::AlreadyHypertable(table.name.clone()));
        }
        if self.chunks_of(id).any(|chunk| chunk.rows > 0) {
            return Err(Reject::NotEmpty(table.name.clone()));
        }
        check_dimensions(table, spec)?;
        let nodes = self.assigned(table, spec)?;
        let (chunk_schema, chunk_prefix) = self.chunk_names(table, spec)?;

        let mut table = table.clone();
        let time = table.columns.columns.iter_mut().find(|column| column.name == spec.time_column);
        time.expect("the time column was checked").nullable = false;
        table.version += 1;
        table.oldest = table.version;
        table.kind = TableKind::Hypertable(Hypertable {
            distributed: spec.distributed,
            dimensions: self.new_dimensions(spec, &nodes),
            replication_factor: spec.replication_factor,
            min_in_sync: default_min_in_sync(spec.replication_factor),
            data_nodes: nodes.into_iter().collect::<BTreeSet<_>>().into_iter().collect(),
            attached_unasked: Vec::new(),
            blocked: Vec::new(),
            compression: None,
            chunk_schema,
            chunk_prefix,
            next_chunk: 1,
        });
        table.check_keys()?;
        let empty: Vec<_> = self.chunks_of(id).map(|chunk| chunk.id).collect();
        self.remove_chunks(&empty, step);
        self.put_table(table.clone(), step);
        Ok(Outcome::Table(Box::new(table), true))
    }

    /// The nodes the hypertable is attached to, in order of their names.
    fn assigned(&self, table: &Table, spec: &HypertableSpec) -> Result<Vec<NodeId>, Reject> {
        let mut nodes: Vec<&DataNode> = match &spec.data_nodes {
            None => self.data_nodes.values().collect(),
            Some(names) => {
                let named = |name: &String| {
                    self.data_node_named(name).ok_or_else(|| Reject::UnknownNode(name.clone()))
                };
                names.iter().map(named).collect::<Result<_, _>>()?
            }
        };
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        nodes.dedup_by_key(|node| node.id());
        if nodes.is_empty() {
            return Err(Reject::NoDataNodes(format!(
                "no data nodes can be assigned to hypertable \"{}\"",
                table.name
            )));
        }
        check_factor(&table.name, spec.replication_factor, nodes.len())?;
        Ok(nodes.iter().map(|node| node.id()).collect())
    }

    /// Schema and prefix of the chunks' names, which no other hypertable may share.
    fn chunk_names(
        &self,
        table: &Table,
        spec: &HypertableSpec,
    ) -> Result<(String, String), Reject> {
        let stem = if spec.distributed { "_dist_hyper" } else { "_hyper" };
        let schema = spec.chunk_schema.as_deref().unwrap_or(DEFAULT_CHUNK_SCHEMA);
        let given = spec.chunk_prefix.clone();
        let prefix = given.unwrap_or_else(|| format!("{stem}_{}", table.id.0));
        check_name(schema)?;
        if prefix.is_empty() || prefix.len() > CHUNK_PREFIX_BYTES_MAX {
            return Err(Reject::InvalidSchema(format!(
                "chunk prefix \"{prefix}\" must have 1 to {CHUNK_PREFIX_BYTES_MAX} bytes"
            )));
        }
        let shared =
            |other: &&Hypertable| other.chunk_schema == schema && other.chunk_prefix == prefix;
        if self.tables.values().filter_map(Table::hypertable).any(|other| shared(&other)) {
            return Err(Reject::InvalidSchema(format!(
                "chunk prefix \"{prefix}\" is used by another hypertable"
            )));
        }
        Ok((schema.to_owned(), prefix))
    }

    /// The dimensions of a checked spec, with ids of their own.
    fn new_dimensions(&mut self, spec: &HypertableSpec, nodes: &[NodeId]) -> Vec<Dimension> {
        let time = Rule::Time { interval: spec.interval, now_function: None };
        let hash = spec.space.as_ref().map(|(column, partitions)| {
            let partitions = partitions.unwrap_or_else(|| default_partitions(nodes.len()));
            let buckets = placement::buckets(nodes, partitions, spec.replication_factor);
            (column.clone(), Rule::Hash { buckets })
        });
        let rules = std::iter::once((spec.time_column.clone(), time)).chain(hash);
        let mut dimensions = Vec::new();
        for (column, rule) in rules {
            self.counters.dimension = self.counters.dimension.next();
            dimensions.push(Dimension { id: self.counters.dimension, column, rule });
        }
        dimensions
    }
}

/// Replicas that a commit asks for, unless the table says otherwise.
#[must_use]
pub fn default_min_in_sync(factor: u16) -> u16 {
    if factor >= FACTOR_OF_TWO_IN_SYNC { 2 } else { 1 }
}

/// One partition a node, as users of the reference know it.
fn default_partitions(nodes: usize) -> u16 {
    u16::try_from(nodes).unwrap_or(PARTITIONS_MAX).clamp(1, PARTITIONS_MAX)
}

/// Whether that many nodes can hold that many replicas.
pub(crate) fn check_factor(table: &str, factor: u16, nodes: usize) -> Result<(), Reject> {
    if !(1..=REPLICATION_FACTOR_MAX).contains(&factor) {
        return Err(Reject::InvalidDimension(format!(
            "invalid replication factor {factor}: it must be between 1 and {REPLICATION_FACTOR_MAX}"
        )));
    }
    if usize::from(factor) > nodes {
        let nodes = u16::try_from(nodes).expect("fewer nodes than the factor, which is a u16");
        return Err(Reject::ReplicationFactor { table: table.to_owned(), nodes, factor });
    }
    Ok(())
}

/// Checks columns, interval and number of partitions.
fn check_dimensions(table: &Table, spec: &HypertableSpec) -> Result<(), Reject> {
    let column = |name: &str| {
        table.columns.column(name).ok_or_else(|| Reject::UnknownColumn(name.to_owned()))
    };
    let time = column(&spec.time_column)?;
    if !time.column_type.can_be_time() {
        return Err(Reject::InvalidDimension(format!(
            "column \"{}\" of type {} cannot be a time dimension",
            time.name, time.column_type
        )));
    }
    if spec.interval <= 0 {
        return Err(Reject::InvalidDimension(format!(
            "invalid interval {} of dimension \"{}\": it must be greater than 0",
            spec.interval, time.name
        )));
    }
    let Some((space, partitions)) = &spec.space else { return Ok(()) };
    column(space)?;
    if *space == time.name {
        return Err(Reject::InvalidDimension(format!("column \"{space}\" is already a dimension")));
    }
    if partitions.is_some_and(|number| !(1..=PARTITIONS_MAX).contains(&number)) {
        return Err(Reject::InvalidDimension(format!(
            "invalid number of partitions for dimension \"{space}\": \
             it must be between 1 and {PARTITIONS_MAX}"
        )));
    }
    Ok(())
}
