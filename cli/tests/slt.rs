//! Every script of `sql/`, against a cluster of one and of 3 + 3, with push-down on and off: equal answers.

#![allow(clippy::indexing_slicing, reason = "a test may fail by panicking")]

mod cluster;

use std::{fmt, path::PathBuf};

use async_trait::async_trait;
use cluster::{Cluster, connect};
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Runner};
use tokio_postgres::{Client, SimpleQueryMessage};

/// A session, over the simple protocol: every value comes in its text form.
struct Session {
    client: Client,
}

/// An error with its SQLSTATE before the message, for scripts to match.
#[derive(Debug)]
struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

impl From<tokio_postgres::Error> for Refused {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(said) => Self(format!("{}: {}", said.code().code(), said.message())),
            None => Self(error.to_string()),
        }
    }
}

#[async_trait]
impl AsyncDB for Session {
    type Error = Refused;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Refused> {
        let mut rows = Vec::new();
        let mut columns = None;
        let mut changed = 0;
        for message in self.client.simple_query(sql).await? {
            match message {
                SimpleQueryMessage::RowDescription(described) => columns = Some(described.len()),
                SimpleQueryMessage::Row(row) => {
                    columns = Some(row.len());
                    let value = |at| match row.get(at) {
                        None => "NULL".to_owned(),
                        Some("") => "(empty)".to_owned(),
                        Some(text) => text.to_owned(),
                    };
                    rows.push((0..row.len()).map(value).collect());
                }
                SimpleQueryMessage::CommandComplete(count) => changed = count,
                _ => {}
            }
        }
        Ok(match columns {
            Some(columns) => DBOutput::Rows { types: vec![DefaultColumnType::Any; columns], rows },
            None => DBOutput::StatementComplete(changed),
        })
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        "hypertide"
    }
}

fn scripts() -> Vec<PathBuf> {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sql");
    let entries = std::fs::read_dir(directory).expect("the scripts are part of the repository");
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.expect("it can be read").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "slt"));
    paths.sort();
    assert!(!paths.is_empty());
    paths
}

/// Each script drops what it makes, so that one cluster can run all of them, twice.
async fn run_all(cluster: &Cluster) {
    let addresses: Vec<String> =
        cluster.access().iter().map(|node| cluster.endpoint(node, "pg")).collect();
    let mut failures = Vec::new();
    for pushdown in ["on", "off"] {
        for (at, script) in scripts().into_iter().enumerate() {
            // Every access node takes its turn.
            let address = addresses[at % addresses.len()].clone();
            let mut runner = Runner::new(|| async {
                let client = connect(&address).await;
                let set = format!("SET hypertide.enable_pushdown = {pushdown}");
                client.batch_execute(&set).await?;
                client.batch_execute("SET TIME ZONE 'UTC'").await?;
                Ok(Session { client })
            });
            if let Err(error) = runner.run_file_async(&script).await {
                failures.push(format!("push-down {pushdown}: {error}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_on_a_cluster_of_one() {
    run_all(&Cluster::start(1, 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_on_a_cluster_of_three_and_three() {
    run_all(&Cluster::start(3, 3)).await;
}
