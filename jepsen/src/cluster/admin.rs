//! What the harness asks the cluster about itself, through its public endpoints.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Context;
use hypertide_proto::wire::{
    meta::{IdentityRequest, StatusReply, StatusRequest},
    storage::{CheckChunkRequest, ChunksRequest},
};
use tokio_postgres::{NoTls, SimpleQueryMessage, SimpleQueryRow};

use super::{Cluster, Node, PG, POLL_INTERVAL, RPC, Role};
use crate::checker::evidence::{CatalogChunk, Replica};

/// Time for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Time for a question.
const ASK_LIMIT: Duration = Duration::from_secs(30);
/// Time for a node to tell its status.
const STATUS_LIMIT: Duration = Duration::from_secs(3);
/// Time to read all of a chunk's file.
const CHECK_LIMIT: Duration = Duration::from_secs(60);
/// Time in which a refused check may be granted.
const REFUSAL_LIMIT: Duration = Duration::from_secs(3);
/// Time to read every file of every replica.
const CHECK_ALL_LIMIT: Duration = Duration::from_secs(60);

/// A connection for questions.
#[derive(Debug)]
pub(crate) struct Sql {
    client: tokio_postgres::Client,
}

impl Sql {
    /// Connects to an access node.
    pub(crate) async fn connect(node: &Node) -> anyhow::Result<Self> {
        let client = connect(node, CONNECT_LIMIT).await;
        Ok(Self { client: client.with_context(|| format!("connect to {}", node.name))? })
    }

    /// Connects to any PostgreSQL endpoint, `host:port`.
    pub(crate) async fn at(address: &str) -> anyhow::Result<Self> {
        let (host, port) = address.rsplit_once(':').context("an address has a port")?;
        let port = port.parse().context("a port is a number")?;
        let client = connect_to(host, port, CONNECT_LIMIT).await;
        Ok(Self { client: client.with_context(|| format!("connect to {address}"))? })
    }

    /// Runs statements and gives the rows of all.
    pub(crate) async fn run(&self, sql: &str) -> anyhow::Result<Vec<SimpleQueryRow>> {
        self.run_within(sql, ASK_LIMIT).await
    }

    /// The same with another limit.
    pub(crate) async fn run_within(
        &self,
        sql: &str,
        limit: Duration,
    ) -> anyhow::Result<Vec<SimpleQueryRow>> {
        let answer = tokio::time::timeout(limit, self.client.simple_query(sql)).await;
        let answer = answer.with_context(|| format!("{sql} took over {limit:?}"))?;
        let messages = answer.map_err(|error| in_words(&error)).with_context(|| sql.to_owned())?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(rows.collect())
    }
}

/// Connects to the PostgreSQL endpoint of a node.
pub(crate) async fn connect(
    node: &Node,
    limit: Duration,
) -> Result<tokio_postgres::Client, anyhow::Error> {
    connect_to(&node.ip.to_string(), PG, limit).await
}

async fn connect_to(
    host: &str,
    port: u16,
    limit: Duration,
) -> Result<tokio_postgres::Client, anyhow::Error> {
    let mut settings = tokio_postgres::Config::new();
    settings.host(host).port(port).user("hypertide").dbname("hypertide");
    let connected = tokio::time::timeout(limit, settings.connect(NoTls)).await;
    let (client, connection) = connected.context("no answer")??;
    tokio::spawn(async move {
        // The client is told of every failure by its own calls.
        connection.await.ok();
    });
    Ok(client)
}

/// The server's words, without the layers around them.
pub(crate) fn in_words(error: &tokio_postgres::Error) -> anyhow::Error {
    match error.as_db_error() {
        Some(error) => anyhow::anyhow!("{}: {}", error.code().code(), error.message()),
        None => anyhow::anyhow!("{error}"),
    }
}

/// A replica as the product's own check saw it.
#[derive(Debug)]
pub(crate) struct Seen {
    /// The chunk's number.
    pub(crate) chunk: u64,
    /// The data node.
    pub(crate) node: String,
    /// Whether all is well with it, if that could be told.
    pub(crate) whole: Option<bool>,
    /// What is not.
    pub(crate) problem: String,
    /// Rows that the check's snapshot sees.
    pub(crate) rows: Option<u64>,
}

/// Whether every replica of the catalog was read; chunks that came since hold nothing that was harmed.
fn all_seen(chunks: &[CatalogChunk], seen: &[Seen]) -> Result<(), String> {
    let newest = seen.iter().map(|seen| seen.chunk).max().unwrap_or_default();
    for chunk in chunks.iter().filter(|chunk| chunk.id <= newest) {
        let read =
            |node: &&String| seen.iter().any(|seen| seen.chunk == chunk.id && seen.node == **node);
        if let Some(node) = chunk.nodes.iter().find(|node| !read(node)) {
            return Err(format!("chunk {} at {node} was not read", chunk.id));
        }
    }
    Ok(())
}

impl Cluster {
    /// The status as one access node knows it.
    pub(crate) async fn status_at(&self, node: &Node) -> anyhow::Result<StatusReply> {
        let mut client = self.channels.meta(&node.address(RPC))?;
        let ask = client.status(StatusRequest { forwarded: false });
        let reply = tokio::time::timeout(STATUS_LIMIT, ask).await.context("no status in time")?;
        Ok(reply?.into_inner())
    }

    /// The status by the first access node that names a leader.
    pub(crate) async fn status(&self) -> anyhow::Result<StatusReply> {
        let mut last = anyhow::anyhow!("there is no access node");
        for node in self.of(Role::Access).filter(|node| node.state().is_some_and(|s| s != 'T')) {
            match self.status_at(node).await {
                Ok(status) if !status.leader.is_empty() => return Ok(status),
                Ok(_) => last = anyhow::anyhow!("{} knows no leader", node.name),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Whether a node answers calls: its listener is open before it can.
    pub(crate) async fn answers(&self, node: &Node) -> bool {
        let address = node.address(RPC);
        let ask = async {
            let (Ok(mut meta), Ok(mut storage)) =
                (self.channels.meta(&address), self.channels.storage(&address))
            else {
                return false;
            };
            let refused = match node.role {
                Role::Access => meta.identity(IdentityRequest::default()).await.err(),
                // Without the cluster's identity it refuses, which is an answer.
                Role::Data => storage.chunks(ChunksRequest::default()).await.err(),
            };
            refused.is_none_or(|status| std::error::Error::source(&status).is_none())
        };
        tokio::time::timeout(STATUS_LIMIT, ask).await.unwrap_or(false)
    }

    /// The name of the leader.
    pub(crate) async fn leader(&self) -> anyhow::Result<String> {
        Ok(self.status().await?.leader)
    }

    /// A connection to any access node that answers.
    pub(crate) async fn sql(&self) -> anyhow::Result<Sql> {
        let mut last = anyhow::anyhow!("there is no access node");
        for node in self.of(Role::Access).filter(|node| node.state().is_some_and(|s| s != 'T')) {
            match Sql::connect(node).await {
                Ok(sql) => return Ok(sql),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The chunks as the catalog has them.
    pub(crate) async fn chunks(&self, sql: &Sql) -> anyhow::Result<Vec<CatalogChunk>> {
        let query = "SELECT chunk_id, chunk_name, hypertable_name, \
                     array_to_string(data_nodes, ',') FROM timescaledb_information.chunks";
        let rows = sql.run(query).await?;
        let chunk = |row: &SimpleQueryRow| {
            let text = |at| row.try_get(at).ok().flatten().unwrap_or_default().to_owned();
            Some(CatalogChunk {
                id: text(0).parse().ok()?,
                name: text(1),
                table: text(2),
                nodes: text(3).split(',').filter(|n| !n.is_empty()).map(str::to_owned).collect(),
            })
        };
        let mut chunks: Vec<CatalogChunk> = rows.iter().filter_map(chunk).collect();
        chunks.sort();
        Ok(chunks)
    }

    /// Whether every chunk has at least `wanted` replicas and no copy is under way; in words if not.
    pub(crate) async fn redundant(&self, wanted: usize) -> anyhow::Result<Result<(), String>> {
        let status = self.status().await?;
        let moving = status.transfers.iter().find(|t| t.phase == "copying" || t.phase == "joining");
        if let Some(transfer) = moving {
            let words = format!("chunk {} is being copied ({})", transfer.chunk, transfer.reason);
            return Ok(Err(words));
        }
        let down =
            status.nodes.iter().find(|node| node.state != "up" && node.membership != "drained");
        if let Some(node) = down {
            return Ok(Err(format!("{} is {}", node.name, node.state)));
        }
        let chunks = self.chunks(&self.sql().await?).await?;
        let short = chunks.iter().find(|chunk| chunk.nodes.len() < wanted);
        Ok(short
            .map_or(Ok(()), |chunk| Err(format!("chunk {} has only {:?}", chunk.id, chunk.nodes))))
    }

    /// Has the product check every replica in sync; with `checksums`, every file is read in full.
    pub(crate) async fn check(&self, checksums: bool) -> anyhow::Result<Vec<Seen>> {
        let check = format!(
            "SELECT chunk_id, node_name, ok, problem, rows \
             FROM hypertide_check(checksums => {checksums})"
        );
        let rows = self.sql().await?.run_within(&check, CHECK_ALL_LIMIT).await?;
        let seen = |row: &SimpleQueryRow| {
            let text = |at| row.try_get(at).ok().flatten().unwrap_or_default().to_owned();
            let chunk = text(0).parse().unwrap_or_default();
            let whole = match text(2).as_str() {
                "t" => Some(true),
                "f" => Some(false),
                _ => None,
            };
            Seen { chunk, node: text(1), whole, problem: text(3), rows: text(4).parse().ok() }
        };
        Ok(rows.iter().map(seen).collect())
    }

    /// Whether every replica is there and whole; in words if not. All bytes of all of them are read, so that what was
    /// harmed is noticed by its node now, and mended from then on.
    pub(crate) async fn whole(&self, wanted: usize) -> anyhow::Result<Result<(), String>> {
        if let Err(why) = self.redundant(wanted).await? {
            return Ok(Err(why));
        }
        let seen = self.check(true).await?;
        if let Some(bad) = seen.iter().find(|seen| seen.whole != Some(true)) {
            return Ok(Err(format!("chunk {} at {}: {}", bad.chunk, bad.node, bad.problem)));
        }
        // A replica that came while the others were read was not read itself.
        let chunks = self.chunks(&self.sql().await?).await?;
        Ok(all_seen(&chunks, &seen))
    }

    /// What every data node holds; with `check`, every file is read in full.
    pub(crate) async fn replicas(&self, check: bool) -> anyhow::Result<Vec<Replica>> {
        let status = self.status().await?;
        let mut found = Vec::new();
        for node in self.of(Role::Data).filter(|node| node.alive()) {
            let mut client = self.channels.storage(&node.address(RPC))?;
            let request = ChunksRequest { cluster: status.cluster.clone(), chunks: Vec::new() };
            let reply = tokio::time::timeout(ASK_LIMIT, client.chunks(request)).await;
            let reply = reply.with_context(|| format!("ask {}", node.name))??.into_inner();
            for report in reply.chunks {
                let faults = match check {
                    true => self.faults(node, &status.cluster, report.chunk).await?,
                    false => Vec::new(),
                };
                found.push(Replica {
                    chunk: report.chunk,
                    node: node.name.clone(),
                    rows: report.rows,
                    visible: None,
                    problem: String::new(),
                    csn: report.applied_csn,
                    chain: report.chain.to_vec(),
                    faults,
                });
            }
        }
        Ok(found)
    }

    /// What is wrong in the file of a replica. A check that is refused, since somebody else has the file at the moment,
    /// is asked for again: only a refusal that stays is one more fault.
    async fn faults(&self, node: &Node, cluster: &[u8], chunk: u64) -> anyhow::Result<Vec<String>> {
        let mut client = self.channels.storage(&node.address(RPC))?;
        let deadline = Instant::now() + REFUSAL_LIMIT;
        loop {
            let request = CheckChunkRequest { cluster: cluster.to_vec().into(), chunk };
            let reply = tokio::time::timeout(CHECK_LIMIT, client.check_chunk(request)).await;
            let reply = reply.with_context(|| format!("check chunk {chunk} at {}", node.name))?;
            match reply {
                Ok(reply) => {
                    let faults = reply.into_inner().faults.into_iter();
                    return Ok(faults.map(|fault| fault.what).collect());
                }
                Err(status) if Instant::now() > deadline => {
                    return Ok(vec![status.message().to_owned()]);
                }
                Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
            }
        }
    }

    /// Chunks of every access node's catalog.
    pub(crate) async fn catalogs(&self) -> anyhow::Result<BTreeMap<String, Vec<CatalogChunk>>> {
        let mut catalogs = BTreeMap::new();
        for node in self.of(Role::Access) {
            let sql = Sql::connect(node).await?;
            catalogs.insert(node.name.clone(), self.chunks(&sql).await?);
        }
        Ok(catalogs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_was_not_read_is_told() {
        let chunk = |id, nodes: &[&str]| CatalogChunk {
            id,
            name: String::new(),
            table: String::new(),
            nodes: nodes.iter().map(|name| (*name).to_owned()).collect(),
        };
        let seen = |chunk, node: &str| Seen {
            chunk,
            node: node.to_owned(),
            whole: Some(true),
            problem: String::new(),
            rows: Some(5),
        };
        let read = [seen(1, "d1"), seen(1, "d2"), seen(3, "d1"), seen(3, "d3")];
        let whole = [chunk(1, &["d1", "d2"]), chunk(3, &["d1", "d3"]), chunk(4, &["d1", "d2"])];
        assert_eq!(all_seen(&whole, &read), Ok(()), "4 came later");
        let moved = [chunk(1, &["d2", "d3"]), chunk(3, &["d1", "d3"])];
        assert_eq!(all_seen(&moved, &read), Err("chunk 1 at d3 was not read".into()));
        assert!(all_seen(&[chunk(2, &["d1"])], &read).is_err());
    }
}
