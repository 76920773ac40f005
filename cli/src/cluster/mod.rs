//! `hypertide cluster`: a local cluster of real processes of this binary.
//!
//! A cluster's directory holds one directory a node, `a1` and on for access nodes, `d1` and on for data nodes. Each
//! node writes where it is reached to its own `endpoints.json`; the cluster's `endpoints.json` is made from those, and
//! nothing else is remembered: a cluster that was stopped, or killed at any point, is started again from its directory.

mod local;
pub(crate) mod ports;
mod signal;
mod start;
mod wait;

use std::path::PathBuf;

pub(crate) use self::{
    local::{Local, parse_name},
    signal::retire,
};

use clap::Subcommand;

use crate::format::Format;

/// The cluster's directory.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Dir {
    /// Directory of the cluster.
    #[arg(long, env = "HYPERTIDE_DIR")]
    dir: PathBuf,
}

/// One node of a cluster.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OneNode {
    /// Name of the node: a1, a2, ..., d1, d2, ...
    #[arg(value_name = "NODE")]
    name: String,
    #[command(flatten)]
    dir: Dir,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Start a cluster and return when SQL is served on every access node; the processes go on.
    ///
    /// A directory that was used before is started again, with the same ports; what runs already is left alone.
    Start(start::Args),
    /// Show the nodes with their state, the leader, its term, chunks and bytes.
    Status {
        #[command(flatten)]
        dir: Dir,
        /// How to print.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Stop every process: first by request, after a while by force.
    Stop(Dir),
    /// Kill a node's process as a crash would (SIGKILL).
    Kill(OneNode),
    /// Freeze a node's process (SIGSTOP).
    Pause(OneNode),
    /// Let a frozen process go on (SIGCONT).
    Resume(OneNode),
    /// Stop a node's process if it runs, and start it again.
    Restart(OneNode),
    /// Add a data node and return when it is up.
    AddData(Dir),
    /// Add an access node and return when it votes.
    AddAccess(Dir),
}

/// Runs the verb.
pub(crate) async fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Start(args) => start::run(args).await,
        Verb::Status { dir, format } => signal::status(&dir.dir, format).await,
        Verb::Stop(dir) => signal::stop(&dir.dir).await,
        Verb::Kill(node) => signal::kill(&node.dir.dir, &node.name).await,
        Verb::Pause(node) => signal::pause(&node.dir.dir, &node.name),
        Verb::Resume(node) => signal::resume(&node.dir.dir, &node.name),
        Verb::Restart(node) => start::restart(&node.dir.dir, &node.name).await,
        Verb::AddData(dir) => start::add_data(&dir.dir).await,
        Verb::AddAccess(dir) => start::add_access(&dir.dir).await,
    }
}
