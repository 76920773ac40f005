//! `hypertide chunk`: the chunks of a cluster.

use std::collections::BTreeMap;

use anyhow::Context;
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
    sql::{Client, flight_address},
};

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List the chunks with range, replicas, rows and bytes.
    Ls(LsArgs),
}

/// Options of `chunk ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct LsArgs {
    /// Only chunks of this hypertable.
    #[arg(long)]
    table: Option<String>,
    #[command(flatten)]
    target: Target,
    /// Flight SQL address of an access node [default: what --dir or --access names].
    #[arg(long, env = "HYPERTIDE_FLIGHT", value_name = "ADDR")]
    flight: Option<String>,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Runs the verb.
pub(crate) async fn run(verb: Verb) -> anyhow::Result<()> {
    let Verb::Ls(args) = verb;
    let address = flight_address(args.flight, &args.target).await?;
    let mut client = Client::connect(&address).await?;
    let outcome = client.run(&query(args.table.as_deref())).await?;
    let held = held(&args.target).await?;
    let batches = outcome.rows.map(|(_, batches)| batches).unwrap_or_default();
    listing(&batches, &held)?.print(args.format)
}

fn query(table: Option<&str>) -> String {
    let condition =
        table.map(|table| format!("WHERE hypertable_name = '{}'", table.replace('\'', "''")));
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
            if rows(known) <= rows(&report) {
                *known = report;
            }
        }
    }
    Ok(held)
}

fn rows(report: &ChunkReport) -> u64 {
    report.rows
}

fn listing(batches: &[RecordBatch], held: &BTreeMap<u64, ChunkReport>) -> anyhow::Result<Listing> {
    let columns = ["table", "chunk", "range_start", "range_end", "replicas", "rows", "bytes"];
    let mut listing = Listing::new(&columns);
    let options = FormatOptions::default();
    for batch in batches {
        let formatters: Vec<ArrayFormatter<'_>> = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column, &options))
            .collect::<Result<_, _>>()?;
        for row in 0..batch.num_rows() {
            let mut cells: Vec<Value> = formatters
                .iter()
                .map(|column| Ok(json!(column.value(row).try_to_string()?)))
                .collect::<anyhow::Result<_>>()?;
            let chunk = cells.remove(0);
            let chunk = chunk.as_str().and_then(|chunk| chunk.parse().ok());
            let report = held.get(&chunk.context("the view has no chunk id")?);
            cells.push(report.map_or(Value::Null, |report| json!(report.rows)));
            cells.push(report.map_or(Value::Null, |report| json!(report.segment_bytes)));
            listing.push(cells);
        }
    }
    Ok(listing)
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
