//! `hypertide init`: forms the Raft group of new access nodes.

use std::time::{Duration, Instant};

use anyhow::Context;
use hypertide_proto::client::Channels;

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Internal gRPC addresses of every access node, comma-separated.
    #[arg(
        long,
        env = "HYPERTIDE_ACCESS",
        value_name = "ADDR,...",
        value_delimiter = ',',
        required = true
    )]
    access: Vec<String>,
    /// Seconds to wait for the nodes.
    #[arg(long, default_value_t = 30)]
    timeout: u64,
}

/// Forms the group and prints the cluster's identity; a group that these nodes formed before stays as it is.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    for address in &args.access {
        crate::listen::split(address)?;
    }
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    let formed = hypertide_meta::init_cluster(&Channels::default(), &args.access, deadline).await;
    let cluster = formed.context("form the cluster")?;
    say!("cluster {cluster}: {} access nodes", args.access.len());
    Ok(())
}
