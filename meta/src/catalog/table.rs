//! Tables: hypertables and reference tables.

use std::{collections::BTreeSet, fmt};

use hypertide_proto::{
    ids::{ChunkId, TableId},
    schema::{NAME_BYTES_MAX, SchemaError, TableSchema},
};
use serde::{Deserialize, Serialize};

use super::{Catalog, Hypertable, Outcome, Reject, apply::Step};

/// Schema that tables live in when none is named.
pub const DEFAULT_SCHEMA: &str = "public";

/// A table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Identity; never reused.
    pub id: TableId,
    /// Schema of the name.
    pub schema: String,
    /// Name, unique within the schema.
    pub name: String,
    /// User who made it.
    pub owner: String,
    /// Columns.
    pub columns: TableSchema,
    /// One more at every change of the columns or of the kind.
    pub version: u32,
    /// Rows that were made for this version, or a later one, may be committed.
    pub oldest: u32,
    /// Names under which chunk stores may have values of columns that were dropped.
    pub dropped: Vec<String>,
    /// Whether it is cut into chunks by dimensions.
    pub kind: TableKind,
    /// When it was made: milliseconds since the Unix epoch, by the leader's clock.
    pub created_ms: u64,
}

/// How the rows of a table are spread.
#[expect(clippy::large_enum_variant, reason = "one a table, and nearly every table is cut")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TableKind {
    /// One chunk with a replica on every data node.
    Reference,
    /// Cut by its dimensions.
    Hypertable(Hypertable),
}

impl Table {
    /// What makes it a hypertable; `None` for a reference table.
    #[must_use]
    pub fn hypertable(&self) -> Option<&Hypertable> {
        match &self.kind {
            TableKind::Reference => None,
            TableKind::Hypertable(hypertable) => Some(hypertable),
        }
    }

    pub(crate) fn hypertable_mut(&mut self) -> Option<&mut Hypertable> {
        match &mut self.kind {
            TableKind::Reference => None,
            TableKind::Hypertable(hypertable) => Some(hypertable),
        }
    }

    /// Number of coordinates of its points: one a dimension.
    #[must_use]
    pub fn arity(&self) -> usize {
        self.hypertable().map_or(0, |hypertable| hypertable.dimensions.len())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, schema, name, owner, version, .. } = self;
        write!(f, "table {id} {schema}.{name} v{version} owner={owner}")?;
        match &self.kind {
            TableKind::Reference => write!(f, " reference"),
            TableKind::Hypertable(hypertable) => write!(f, " {hypertable}"),
        }
    }
}

/// A table to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewTable<'a> {
    pub(crate) schema: &'a str,
    pub(crate) name: &'a str,
    pub(crate) owner: &'a str,
    pub(crate) columns: &'a TableSchema,
}

impl Catalog {
    /// Makes a reference table.
    pub(crate) fn create_table(
        &mut self,
        new: NewTable<'_>,
        if_not_exists: bool,
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        if let Some(table) = self.table_named(new.schema, new.name) {
            if if_not_exists {
                return Ok(Outcome::Table(Box::new(table.clone()), false));
            }
            return Err(Reject::TableExists(new.name.to_owned()));
        }
        check_name(new.schema)?;
        check_name(new.name)?;
        new.columns.check().map_err(invalid_schema)?;
        let id = self.counters.table.next();
        self.counters.table = id;
        let table = Table {
            id,
            schema: new.schema.to_owned(),
            name: new.name.to_owned(),
            owner: new.owner.to_owned(),
            columns: new.columns.clone(),
            version: 1,
            oldest: 1,
            dropped: Vec::new(),
            kind: TableKind::Reference,
            created_ms: step.at_ms,
        };
        self.put_table(table.clone(), step);
        Ok(Outcome::Table(Box::new(table), true))
    }

    /// Drops tables with their chunks, all or none.
    pub(crate) fn drop_tables(
        &mut self,
        tables: &[TableId],
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let dropped = self.chunks_of_all(tables)?;
        self.remove_chunks(&dropped, step);
        for id in tables {
            self.drop_jobs_of(*id, step);
            self.remove_table(*id, step);
        }
        Ok(Outcome::Dropped(dropped))
    }

    /// Drops all chunks of tables, all or none.
    pub(crate) fn truncate_tables(
        &mut self,
        tables: &[TableId],
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let dropped = self.chunks_of_all(tables)?;
        self.remove_chunks(&dropped, step);
        Ok(Outcome::Dropped(dropped))
    }

    /// The table, or the refusal that names it.
    pub(crate) fn existing(&self, id: TableId) -> Result<&Table, Reject> {
        self.tables.get(&id).ok_or(Reject::UnknownTable(id))
    }

    fn chunks_of_all(&self, tables: &[TableId]) -> Result<Vec<ChunkId>, Reject> {
        let mut ids = BTreeSet::new();
        for table in tables {
            self.existing(*table)?;
            ids.extend(self.chunks_of(*table).map(|chunk| chunk.id));
        }
        Ok(ids.into_iter().collect())
    }
}

/// Whether a name can be that of a table or a schema.
pub(crate) fn check_name(name: &str) -> Result<(), Reject> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(invalid_schema(SchemaError::BadName(name.to_owned())));
    }
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "is given to map_err")]
pub(crate) fn invalid_schema(error: SchemaError) -> Reject {
    Reject::InvalidSchema(error.to_string())
}
