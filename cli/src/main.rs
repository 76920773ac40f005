//! The binary `hypertide`: one verb a file, over the crates that do the work.
//!
//! - Servers: [`access`], [`data`] and [`dev`] compose what [`serve`] binds and runs; [`mod@relay`] passes calls on.
//! - Local clusters of real processes: [`cluster`], over [`process`] and [`endpoints`].
//! - Clients: [`sql`], [`load`], [`backup`], [`mod@bench`], and what operators do: [`node`], [`chunk`], [`rebalance`],
//!   [`catalog`].
//! - [`config`] layers flags over the environment over a file; [`mod@format`] prints every listing.
//!
//! It decides nothing about data: no byte of a row is interpreted here, save by the load
//! generator and by the hash of a backup.

#[macro_use]
mod output;

mod access;
mod backup;
mod bench;
mod catalog;
mod chunk;
mod cluster;
mod config;
mod data;
mod dev;
mod endpoints;
mod format;
mod gauges;
mod http;
mod init;
mod listen;
mod load;
mod locate;
mod logging;
mod node;
mod process;
mod rebalance;
mod relay;
mod serve;
mod sql;
mod status;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::UsageError;

/// Stack of a runtime thread: planning recurses once per level of an expression.
const THREAD_STACK_BYTES: usize = 8 << 20;

/// Hypertide: a distributed time-series SQL database.
#[derive(Debug, Parser)]
#[command(name = "hypertide", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a whole cluster in this process, for development.
    Dev(dev::Args),
    /// Run an access node: SQL endpoints and a member of the Raft group that holds the catalog.
    Access(access::Args),
    /// Run a data node: a chunk store that access nodes write to and read from.
    Data(data::Args),
    /// Form the Raft group of new access nodes, once in the life of a cluster.
    Init(init::Args),
    /// Start, watch and stop a local cluster of real processes.
    #[command(subcommand)]
    Cluster(cluster::Verb),
    /// List, drain and remove nodes of a cluster, and add access nodes.
    #[command(subcommand)]
    Node(node::Verb),
    /// List, move, copy and check the chunks of a cluster.
    #[command(subcommand)]
    Chunk(chunk::Verb),
    /// Even out what data nodes hold: start, watch, stop.
    #[command(subcommand)]
    Rebalance(rebalance::Verb),
    /// Run SQL over Flight SQL: one command, a script from standard input, or a shell.
    Sql(sql::Args),
    /// Load a CSV file into a table through COPY.
    Load(load::Args),
    /// Save the tables of a cluster to files at one snapshot, verify them, and restore them.
    #[command(subcommand)]
    Backup(backup::Verb),
    /// Make the catalog anew from the directories of the data nodes, when the access nodes are lost.
    #[command(subcommand)]
    Catalog(catalog::Verb),
    /// Generate load and measure.
    #[command(subcommand)]
    Bench(bench::Verb),
}

impl Verb {
    /// The name that stands before each line of the log; `None` for verbs that do not log by default.
    fn log_name(&self) -> Option<String> {
        match self {
            Self::Dev(_) => Some("dev".to_owned()),
            Self::Access(args) => Some(args.log_name()),
            Self::Data(args) => Some(args.log_name()),
            _ => None,
        }
    }

    async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Dev(args) => dev::run(args).await,
            Self::Access(args) => access::run(args).await,
            Self::Data(args) => data::run(args).await,
            Self::Init(args) => init::run(args).await,
            Self::Cluster(verb) => cluster::run(verb).await,
            Self::Node(verb) => node::run(verb).await,
            Self::Chunk(verb) => chunk::run(verb).await,
            Self::Rebalance(verb) => rebalance::run(verb).await,
            Self::Sql(args) => sql::run(args).await,
            Self::Load(args) => load::run(args).await,
            Self::Backup(verb) => backup::run(verb).await,
            Self::Catalog(verb) => catalog::run(verb).await,
            Self::Bench(verb) => bench::run(verb).await,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Directories hold users' data: nobody else may read them. Set before any thread is started.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    logging::install(cli.verb.log_name());
    hypertide_storage::quiet_contained_panics();
    match execute(cli.verb) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of the output has seen enough: `hypertide sql -c ... | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hypertide: {error:#}");
            let usage = error.downcast_ref::<UsageError>().is_some();
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

fn execute(verb: Verb) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_stack_size(THREAD_STACK_BYTES)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(verb.run());
    // A thread that still reads a terminal or a file must not hold up the exit.
    runtime.shutdown_background();
    outcome
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |io: &std::io::Error| io.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().filter_map(|cause| cause.downcast_ref()).any(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
