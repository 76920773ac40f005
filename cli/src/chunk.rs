//! `hypertide chunk`: the chunks of a cluster and their replicas.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use arrow::{
    array::RecordBatch,
    util::display::{ArrayFormatter, FormatOptions},
};
use clap::Subcommand;
use hypertide_proto::{
    client::Channels,
    wire::storage::{ChunkReport, ChunksRequest},
};
use serde_json::{Value, json};

use crate::{
    format::{Format, Listing},
    locate::Target,
    sql::{Remote, literal},
};

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List the chunks with range, replicas, rows and bytes.
    Ls(LsArgs),
    /// Move a replica of a chunk from one data node to another; return when it has moved. Reads and writes go on.
    Move(MoveArgs),
    /// Copy a chunk to one more data node; return when the copy is in sync. Reads and writes go on.
    Copy(MoveArgs),
    /// Compare the replicas of chunks with each other and with the catalog, at one snapshot.
    ///
    /// Ends with 1 when something is wrong or could not be looked at.
    Check(CheckArgs),
    /// Go on with what one data node holds of a damaged chunk, and give up the commits that no node has any more.
    ///
    /// Without --yes it says what would be lost, and changes nothing.
    AcceptLoss(LossArgs),
}

/// Options of `chunk ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct LsArgs {
    /// Only chunks of this hypertable.
    #[arg(long)]
    table: Option<String>,
    #[command(flatten)]
    remote: Remote,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Options of `chunk move` and `chunk copy`.
#[derive(Debug, clap::Args)]
pub(crate) struct MoveArgs {
    /// The chunk, as `chunk ls` names it.
    #[arg(value_name = "CHUNK")]
    chunk: String,
    /// Name of a data node that has a replica; a move takes it from there.
    #[arg(long, value_name = "NODE")]
    from: String,
    /// Name of the data node that is to have one.
    #[arg(long, value_name = "NODE")]
    to: String,
    /// Name under which the operation is seen and can be taken back.
    #[arg(long, value_name = "ID")]
    operation: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

/// Options of `chunk check`.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// A chunk or a table [default: all].
    #[arg(value_name = "RELATION")]
    relation: Option<String>,
    /// Read and decode all that is stored, too.
    #[arg(long)]
    checksums: bool,
    /// List also the replicas that are as they should be.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    remote: Remote,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Options of `chunk accept-loss`.
#[derive(Debug, clap::Args)]
pub(crate) struct LossArgs {
    /// The chunk, as `chunk check` names it.
    #[arg(value_name = "CHUNK")]
    chunk: String,
    /// Name of the data node whose replica is to be taken [default: the one that holds most].
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Do it.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    remote: Remote,
}

/// Runs the verb.
pub(crate) async fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Ls(args) => ls(args).await,
        Verb::Move(args) => order("move_chunk", args).await,
        Verb::Copy(args) => order("copy_chunk", args).await,
        Verb::Check(args) => check(args).await,
        Verb::AcceptLoss(args) => accept_loss(args).await,
    }
}

async fn ls(args: LsArgs) -> anyhow::Result<()> {
    let batches = rows(&args.remote, &query(args.table.as_deref())).await?;
    let held = held(&args.remote.target).await?;
    listing(&batches, &held)?.print(args.format)
}

async fn rows(remote: &Remote, sql: &str) -> anyhow::Result<Vec<RecordBatch>> {
    let outcome = remote.connect().await?.run(sql).await?;
    Ok(outcome.rows.map(|(_, batches)| batches).unwrap_or_default())
}

/// Orders a copy or a move and waits for it.
async fn order(function: &str, args: MoveArgs) -> anyhow::Result<()> {
    let MoveArgs { chunk, from, to, operation, remote } = args;
    let operation = operation.map(|operation| format!(", operation_id => {}", literal(&operation)));
    let sql = format!(
        "SELECT timescaledb_experimental.{function}(chunk => {}, source_node => {}, \
         destination_node => {}{})",
        literal(&chunk),
        literal(&from),
        literal(&to),
        operation.unwrap_or_default()
    );
    rows(&remote, &sql).await?;
    say!("{chunk} is on {to}");
    Ok(())
}

/// Says what is lost of a damaged chunk, and gives it up when that is asked for.
async fn accept_loss(args: LossArgs) -> anyhow::Result<()> {
    let node = args.node.as_deref().map_or_else(|| "NULL".to_owned(), literal);
    let (chunk, dry) = (literal(&args.chunk), !args.yes);
    let sql = format!(
        "SELECT chunk_name, node_name, lost_after, lost_up_to \
         FROM hypertide_accept_loss({chunk}, {node}, {dry})"
    );
    for cells in cells(&rows(&args.remote, &sql).await?)? {
        let [chunk, node, after, up_to] = cells.as_slice() else {
            bail!("the server gave {} columns", cells.len());
        };
        if args.yes {
            say!(
                "{chunk} goes on with what {node} holds: commits after {after} up to {up_to} are lost"
            );
        } else {
            say!(
                "{chunk} would go on with what {node} holds: commits after {after} up to {up_to} would be lost"
            );
            say!("nothing was changed; --yes does it");
        }
    }
    Ok(())
}

/// Prints what `hypertide_check` finds.
async fn check(args: CheckArgs) -> anyhow::Result<()> {
    let relation = args.relation.as_deref().map_or_else(|| "NULL".to_owned(), literal);
    let sql = format!(
        "SELECT hypertable_name, chunk_name, node_name, rows, \
         CASE WHEN ok THEN 'ok' WHEN ok IS NULL THEN 'unknown' ELSE 'wrong' END, \
         coalesce(problem, '') FROM hypertide_check({relation}, {}) ORDER BY 1, 2, 3",
        args.checksums
    );
    let batches = rows(&args.remote, &sql).await?;
    let mut listing = Listing::new(&["table", "chunk", "node", "rows", "verdict", "problem"]);
    let (mut checked, mut bad) = (0, 0);
    for cells in cells(&batches)? {
        let fine = cells.get(4).is_some_and(|verdict| verdict == "ok");
        checked += 1;
        bad += u64::from(!fine);
        if args.all || !fine {
            listing.push(cells.into_iter().map(Value::String).collect());
        }
    }
    listing.print(args.format)?;
    if bad > 0 {
        bail!("{bad} of {checked} replicas are wrong or could not be looked at");
    }
    eprintln!("{checked} replicas are as they should be");
    Ok(())
}

fn query(table: Option<&str>) -> String {
    let condition = table.map(|table| format!("WHERE hypertable_name = {}", literal(table)));
    format!(
        "SELECT chunk_id, hypertable_name, chunk_name, \
         coalesce(CAST(range_start AS text), CAST(range_start_integer AS text)), \
         coalesce(CAST(range_end AS text), CAST(range_end_integer AS text)), \
         array_to_string(data_nodes, ',') \
         FROM timescaledb_information.chunks {} ORDER BY hypertable_name, range_start, chunk_name",
        condition.unwrap_or_default()
    )
}

/// What the data nodes hold, by chunk: the replica that holds most rows, for one that lags has fewer.
async fn held(target: &Target) -> anyhow::Result<BTreeMap<u64, ChunkReport>> {
    let status = target.status().await?;
    let channels = Channels::default();
    let mut held = BTreeMap::new();
    for node in status.nodes.iter().filter(|node| node.role == "data" && node.state == "up") {
        let request = ChunksRequest { cluster: status.cluster.clone(), chunks: Vec::new() };
        let answer = channels.storage(&node.rpc)?.chunks(request).await;
        let chunks = match answer {
            Ok(reply) => reply.into_inner().chunks,
            Err(status) => {
                // Its replicas are missing from the figures, not from the list.
                tracing::error!("{} does not answer: {}", node.name, status.message());
                continue;
            }
        };
        for report in chunks {
            let known: &mut ChunkReport = held.entry(report.chunk).or_default();
            if known.rows <= report.rows {
                *known = report;
            }
        }
    }
    Ok(held)
}

fn listing(batches: &[RecordBatch], held: &BTreeMap<u64, ChunkReport>) -> anyhow::Result<Listing> {
    let columns = ["table", "chunk", "range_start", "range_end", "replicas", "rows", "bytes"];
    let mut listing = Listing::new(&columns);
    for cells in cells(batches)? {
        let mut cells = cells.into_iter();
        let chunk = cells.next().and_then(|chunk| chunk.parse().ok());
        let report = held.get(&chunk.context("the view has no chunk id")?);
        let mut row: Vec<Value> = cells.map(Value::String).collect();
        row.push(report.map_or(Value::Null, |report| json!(report.rows)));
        row.push(report.map_or(Value::Null, |report| json!(report.segment_bytes)));
        listing.push(row);
    }
    Ok(listing)
}

/// The values of all rows as text.
fn cells(batches: &[RecordBatch]) -> anyhow::Result<Vec<Vec<String>>> {
    let options = FormatOptions::default();
    let mut rows = Vec::new();
    for batch in batches {
        let formatters: Vec<ArrayFormatter<'_>> = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column, &options))
            .collect::<Result<_, _>>()?;
        for row in 0..batch.num_rows() {
            let cells = formatters.iter().map(|column| column.value(row).try_to_string());
            rows.push(cells.collect::<Result<Vec<String>, _>>()?);
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_name_cannot_leave_its_quotes() {
        assert!(query(Some("a'b")).contains("'a''b'"));
        assert!(!query(None).contains("WHERE"));
    }
}
