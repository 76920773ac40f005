//! A snapshot of a cluster that several connections read by.
//!
//! A transaction on one connection exports it and stays open; it goes with this value.

use anyhow::{Context, bail};

use super::Place;
use crate::{load, sql::Client};

/// An exported snapshot and where it is read.
pub(super) struct Snapshot {
    /// The connection whose transaction holds it.
    holder: tokio_postgres::Client,
    flight: String,
    name: String,
    /// Entry of the log up to which it reads.
    pub(super) index: u64,
    /// The cluster, in hexadecimal.
    pub(super) cluster: String,
}

/// A table as of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) schema: String,
    pub(super) name: String,
    /// Never given to another table.
    pub(super) id: i64,
    /// Statements that make it again, before there are rows and after.
    pub(super) before_rows: Vec<String>,
    pub(super) after_rows: Vec<String>,
    /// Conditions of which each row satisfies one.
    pub(super) parts: Vec<String>,
}

impl Table {
    /// Its name as people write it.
    pub(super) fn shown(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Its name as SQL has it.
    pub(super) fn quoted(&self) -> String {
        qualified(&self.schema, &self.name)
    }

    /// Whether it is meant by a name that a user gave.
    fn is_called(&self, name: &str) -> bool {
        let public = self.schema == "public" && self.name == name;
        public || self.shown() == name || self.quoted() == name
    }
}

/// A schema and a name in quotes.
pub(super) fn qualified(schema: &str, name: &str) -> String {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    format!("{}.{}", quoted(schema), quoted(name))
}

impl Snapshot {
    /// Has an access node export what is committed now.
    pub(super) async fn open(place: &Place) -> anyhow::Result<Self> {
        let access = place.access().await?;
        let holder = load::connect(&access.pg).await?;
        // It says nothing while others read.
        let patient = "SET idle_in_transaction_session_timeout = 0";
        holder.batch_execute(patient).await.context("set a timeout")?;
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        holder.batch_execute(begin).await.context("begin a transaction")?;
        let sql = "SELECT pg_export_snapshot(), hypertide_snapshot(), hypertide_cluster()";
        let row = holder.query_one(sql, &[]).await;
        let row = row.map_err(in_words).context("export a snapshot")?;
        let name = row.try_get(0).context("the snapshot has no name")?;
        let index: i64 = row.try_get(1).context("the snapshot has no place")?;
        let index = u64::try_from(index).context("the snapshot has no place")?;
        let cluster = row.try_get(2).context("the cluster has no name")?;
        Ok(Self { holder, flight: access.flight, name, index, cluster })
    }

    /// A connection that reads by it.
    pub(super) async fn client(&self) -> anyhow::Result<Client> {
        let mut client = Client::connect(&self.flight).await?;
        client.set_snapshot(&self.name);
        Ok(client)
    }

    /// Fails when the transaction that holds it has ended: the access node is gone.
    pub(super) fn check_held(&self) -> anyhow::Result<()> {
        match self.holder.is_closed() {
            false => Ok(()),
            true => bail!("the access node that held the snapshot is gone; run it again"),
        }
    }

    /// The tables of these names as of the snapshot, all without names; how they are made, and how to read them.
    pub(super) async fn tables(&self, names: &[String]) -> anyhow::Result<Vec<Table>> {
        let mut tables = definitions(&self.holder).await?;
        if !names.is_empty() {
            for name in names {
                if !tables.iter().any(|table| table.is_called(name)) {
                    bail!("there is no table \"{name}\"");
                }
            }
            tables.retain(|table| names.iter().any(|name| table.is_called(name)));
        }
        let sql = "SELECT table_schema, table_name, condition FROM hypertide.parts \
                   ORDER BY table_schema, table_name, position";
        for row in self.holder.query(sql, &[]).await.map_err(in_words)? {
            let (schema, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            let of = tables.iter_mut().find(|table| table.schema == schema && table.name == name);
            if let Some(table) = of {
                table.parts.push(row.try_get(2)?);
            }
        }
        Ok(tables)
    }
}

/// How all tables are made, as of what the connection reads by.
pub(super) async fn definitions(client: &tokio_postgres::Client) -> anyhow::Result<Vec<Table>> {
    let sql = "SELECT table_schema, table_name, table_id, statement, after_data \
               FROM hypertide.definitions ORDER BY table_schema, table_name, position";
    let mut tables: Vec<Table> = Vec::new();
    for row in client.query(sql, &[]).await.map_err(in_words).context("list the tables")? {
        let (schema, name, id): (String, String, i64) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        if tables.last().is_none_or(|last| last.id != id) {
            let (before_rows, after_rows, parts) = (Vec::new(), Vec::new(), Vec::new());
            tables.push(Table { schema, name, id, before_rows, after_rows, parts });
        }
        let Some(table) = tables.last_mut() else { continue };
        let (statement, after): (String, bool) = (row.try_get(3)?, row.try_get(4)?);
        if after { &mut table.after_rows } else { &mut table.before_rows }.push(statement);
    }
    Ok(tables)
}

/// What the server said, where it said something.
pub(super) fn in_words(error: tokio_postgres::Error) -> anyhow::Error {
    match error.as_db_error() {
        Some(said) => anyhow::anyhow!("{} (SQLSTATE {})", said.message(), said.code().code()),
        None if error.is_closed() => anyhow::anyhow!("the access node is gone; run it again"),
        None => error.into(),
    }
}
