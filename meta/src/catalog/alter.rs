//! Changes of a table's columns and name.
//!
//! A column keeps the name under which chunk stores have it for as long as it lives, whatever it is called, and no other
//! column of the table ever gets that name: so rows of any age are read right, and those of a dropped column stay gone.
//! Rows that were made for older columns may therefore be committed after a change, unless it forbids what was allowed.

use std::fmt;

use hypertide_proto::{
    ids::TableId,
    schema::{Column, Key},
};
use serde::{Deserialize, Serialize};

use super::{
    Catalog, Dimension, Outcome, Reject, Rule, Table,
    apply::Step,
    table::{check_name, invalid_schema},
};

/// A change of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TableChange {
    /// Adds a column at the end. Rows that are there have its [`Column::older`] in it.
    AddColumn {
        /// The column.
        column: Column,
        /// Whether a column of that name is an answer instead of a refusal.
        if_not_exists: bool,
    },
    /// Drops a column for good.
    DropColumn {
        /// Its name.
        column: String,
        /// Whether its absence is an answer instead of a refusal.
        if_exists: bool,
    },
    /// Renames a column.
    RenameColumn {
        /// Its name.
        column: String,
        /// Its new name.
        to: String,
    },
    /// Renames the table.
    Rename {
        /// Its new name.
        to: String,
    },
    /// Sets the default of rows to come.
    SetDefault {
        /// The column.
        column: String,
        /// SQL text of the expression; `None` for NULL.
        default: Option<String>,
    },
    /// Adds a key. Who adds it sees to the rows that are there.
    AddKey {
        /// The key, its columns by their names.
        key: Key,
    },
    /// Drops a key.
    DropKey {
        /// Its name.
        name: String,
        /// Whether its absence is an answer instead of a refusal.
        if_exists: bool,
    },
    /// Sets whether NULL is allowed. Who forbids it sees to the rows that are there.
    SetNullable {
        /// The column.
        column: String,
        /// Whether it is allowed.
        nullable: bool,
    },
}

impl fmt::Display for TableChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddColumn { column, .. } => {
                write!(f, "add {} {}", column.name, column.column_type)
            }
            Self::DropColumn { column, .. } => write!(f, "drop {column}"),
            Self::RenameColumn { column, to } => write!(f, "rename {column} to {to}"),
            Self::Rename { to } => write!(f, "rename to {to}"),
            Self::SetDefault { column, default: Some(text) } => {
                write!(f, "default {column} {text}")
            }
            Self::SetDefault { column, .. } => write!(f, "default {column} none"),
            Self::AddKey { key } => write!(f, "add key {}", key.name),
            Self::DropKey { name, .. } => write!(f, "drop key {name}"),
            Self::SetNullable { column, nullable } => write!(f, "nullable {column} {nullable}"),
        }
    }
}

impl Catalog {
    /// Changes a table: all of the changes in their order, or none.
    pub(crate) fn alter_table(
        &mut self,
        id: TableId,
        changes: &[TableChange],
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let before = self.existing(id)?;
        let mut table = Table { version: before.version + 1, ..before.clone() };
        for change in changes {
            self.change_table(&mut table, change)?;
        }
        table.columns.check().map_err(invalid_schema)?;
        let same = Table { version: before.version, ..table.clone() } == *before;
        if same {
            return Ok(Outcome::Table(Box::new(before.clone()), false));
        }
        self.put_table(table.clone(), step);
        Ok(Outcome::Table(Box::new(table), true))
    }

    fn change_table(&self, table: &mut Table, change: &TableChange) -> Result<(), Reject> {
        match change {
            TableChange::AddColumn { column, if_not_exists } => {
                if table.columns.column(&column.name).is_some() && *if_not_exists {
                    return Ok(());
                }
                let empty = self.chunks_of(table.id).all(|chunk| chunk.rows == 0);
                table.add_column(column, empty)
            }
            TableChange::DropColumn { column, if_exists } => {
                if table.columns.column(column).is_none() && *if_exists {
                    return Ok(());
                }
                table.drop_column(column)
            }
            TableChange::RenameColumn { column, to } => table.rename_column(column, to),
            TableChange::Rename { to } => {
                check_name(to)?;
                if self.table_named(&table.schema, to).is_some() {
                    return Err(Reject::TableExists(to.clone()));
                }
                table.name.clone_from(to);
                Ok(())
            }
            TableChange::SetDefault { column, default } => {
                table.column_mut(column)?.default.clone_from(default);
                Ok(())
            }
            TableChange::AddKey { key } => table.add_key(key),
            TableChange::DropKey { name, if_exists } => {
                if *if_exists || table.columns.keys.iter().any(|key| key.name == *name) {
                    table.columns.keys.retain(|key| key.name != *name);
                    return Ok(());
                }
                let table = &table.name;
                let what = format!("constraint \"{name}\" of relation \"{table}\" does not exist");
                Err(Reject::UnknownKey(what))
            }
            TableChange::SetNullable { column, nullable } => table.set_nullable(column, *nullable),
        }
    }
}

impl Table {
    fn column_mut(&mut self, name: &str) -> Result<&mut Column, Reject> {
        let missing = no_column(name, &self.name);
        let found = self.columns.columns.iter_mut().find(|column| column.name == name);
        found.ok_or(missing)
    }

    fn add_column(&mut self, column: &Column, empty: bool) -> Result<(), Reject> {
        let name = &column.name;
        self.check_new_column(name)?;
        if !empty && !column.nullable && column.older.is_none() {
            return Err(Reject::NullValues { table: self.name.clone(), column: name.clone() });
        }
        let stored = self.unused_stored_name(name);
        let older = column.older.clone();
        self.columns.columns.push(Column { stored, older, ..column.clone() });
        Ok(())
    }

    /// The name for chunk stores, if it cannot be the column's own.
    fn unused_stored_name(&self, name: &str) -> Option<String> {
        let used = |wanted: &str| {
            let mut live = self.columns.columns.iter();
            live.any(|column| column.stored_name() == wanted)
                || self.dropped.iter().any(|dropped| dropped == wanted)
        };
        if !used(name) {
            return None;
        }
        let mut other = format!("{name}#{}", self.version);
        while used(&other) {
            other.push('#');
        }
        Some(other)
    }

    fn check_new_column(&self, name: &str) -> Result<(), Reject> {
        check_name(name)?;
        if self.columns.column(name).is_none() {
            return Ok(());
        }
        Err(Reject::ColumnExists { table: self.name.clone(), column: name.to_owned() })
    }

    fn drop_column(&mut self, name: &str) -> Result<(), Reject> {
        let stored = self.column_mut(name)?.stored_name().to_owned();
        if let Some(made) = self.hypertable() {
            if made.dimensions.iter().any(|dimension| dimension.column == name) {
                let what = format!("cannot drop column \"{name}\" named in partition key");
                return Err(Reject::NotSupported(what));
            }
            if made.compression.as_ref().is_some_and(|how| how.names(name)) {
                let what = "cannot drop orderby or segmentby column from a hypertable with \
                            compression enabled";
                return Err(Reject::NotSupported(what.to_owned()));
            }
        }
        if self.columns.columns.len() == 1 {
            let what = format!("cannot drop the last column of table \"{}\"", self.name);
            return Err(Reject::NotSupported(what));
        }
        self.columns.columns.retain(|column| column.name != name);
        self.columns.keys.retain(|key| !key.columns.contains(&stored));
        self.dropped.push(stored);
        Ok(())
    }

    fn add_key(&mut self, key: &Key) -> Result<(), Reject> {
        let mut stored = Vec::with_capacity(key.columns.len());
        for name in &key.columns {
            let column = self.column_mut(name)?;
            stored.push(column.stored_name().to_owned());
            if key.primary {
                column.nullable = false;
            }
        }
        self.columns.keys.push(Key { columns: stored, ..key.clone() });
        self.check_keys()?;
        // Rows that were made without a look at it may have what others have.
        self.oldest = self.version;
        Ok(())
    }

    /// Refuses a key that lacks a column which the table is cut by: rows with the same values would lie in several chunks.
    pub(crate) fn check_keys(&self) -> Result<(), Reject> {
        let Some(made) = self.hypertable() else { return Ok(()) };
        for Dimension { column, .. } in &made.dimensions {
            if !self.columns.keys.iter().all(|key| self.columns.in_key(key, column)) {
                return Err(Reject::KeyWithout(column.clone()));
            }
        }
        match &made.compression {
            Some(compression) => compression.check_keys(self),
            None => Ok(()),
        }
    }

    fn rename_column(&mut self, name: &str, to: &str) -> Result<(), Reject> {
        self.column_mut(name)?;
        self.check_new_column(to)?;
        let column = self.column_mut(name)?;
        let stored = column.stored_name().to_owned();
        to.clone_into(&mut column.name);
        column.stored = (stored != to).then_some(stored);
        if let Some(made) = self.hypertable_mut() {
            for dimension in made.dimensions.iter_mut().filter(|dim| dim.column == name) {
                to.clone_into(&mut dimension.column);
            }
            if let Some(how) = &mut made.compression {
                how.rename(name, to);
            }
        }
        Ok(())
    }

    fn set_nullable(&mut self, name: &str, nullable: bool) -> Result<(), Reject> {
        let of_time = self.hypertable().is_some_and(|made| {
            let mut dimensions = made.dimensions.iter();
            dimensions.any(|dim| dim.column == name && matches!(dim.rule, Rule::Time { .. }))
        });
        if of_time && nullable {
            let what = "cannot drop not-null constraint from a time-partitioned column";
            return Err(Reject::NotSupported(what.to_owned()));
        }
        let mut keys = self.columns.keys.iter().filter(|key| key.primary);
        if nullable && keys.any(|key| self.columns.in_key(key, name)) {
            return Err(invalid(format!("column \"{name}\" is in a primary key")));
        }
        let column = self.column_mut(name)?;
        if column.nullable && !nullable {
            column.nullable = false;
            // Rows that were checked by the rule of before may hold nulls.
            self.oldest = self.version;
        } else {
            column.nullable = nullable;
        }
        Ok(())
    }
}

fn invalid(what: String) -> Reject {
    Reject::InvalidSchema(what)
}

fn no_column(column: &str, table: &str) -> Reject {
    Reject::NoColumn { table: table.to_owned(), column: column.to_owned() }
}
