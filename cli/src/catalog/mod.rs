//! `hypertide catalog`: the catalog when no access node is left.

mod local;
mod rebuild;

use std::path::PathBuf;

use clap::Subcommand;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make the catalog anew from the directories of the data nodes, when a majority of the access nodes is lost for good.
    ///
    /// All processes must be stopped. The data directories are moved into a new cluster, of which one access node is
    /// made; more are added to it as to any other. Data nodes keep a copy of the definitions of tables, nodes and jobs
    /// that is up to half a second old, and with each chunk where it belongs. What was committed and is known so to no
    /// data node any more is undone: statements of the last moments before the end.
    Rebuild(Args),
}

/// Options of `catalog rebuild`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory of a local cluster, as `cluster start` made it: its first access node is made anew, with its address. What
    /// is left of its access nodes is read, too, and kept under other names.
    #[arg(long, required_unless_present = "data", conflicts_with_all = ["data", "access", "to", "id", "rpc"])]
    dir: Option<PathBuf>,
    /// Directory of a data node; give all there are, each with its own flag.
    #[arg(long, value_name = "DIR", requires_all = ["to", "id", "rpc"])]
    data: Vec<PathBuf>,
    /// Directory of an access node of the old cluster that is left, though it has no majority; each with its own flag.
    /// It knows newer definitions, and how transactions ended of which data nodes do not know that.
    #[arg(long, value_name = "DIR", requires = "data")]
    access: Vec<PathBuf>,
    /// Directory of the new access node, which must not be there yet.
    #[arg(long, value_name = "DIR", requires = "data")]
    to: Option<PathBuf>,
    /// Number of the new access node, from 1. Numbers that were given before are not given again, but for this one.
    #[arg(long, value_name = "N", requires = "data", value_parser = clap::value_parser!(u64).range(1..))]
    id: Option<u64>,
    /// Address of its internal gRPC endpoint, as others reach it.
    #[arg(long, value_name = "ADDR", requires = "data")]
    rpc: Option<String>,
    /// Name of a data node that is lost, too: what only it held is given up. Once for each.
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
    /// Give up chunks of which nothing says where they belong, such as those of tables that were dropped.
    #[arg(long)]
    forget_unknown: bool,
    /// Say what would be made, and make nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Runs the verb.
pub(crate) async fn run(verb: Verb) -> anyhow::Result<()> {
    let Verb::Rebuild(args) = verb;
    tokio::task::spawn_blocking(move || rebuild::run(args)).await?
}
