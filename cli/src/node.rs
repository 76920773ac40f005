//! `hypertide node`: the nodes of a cluster.

use clap::Subcommand;

use crate::{format::Format, locate::Target, status};

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List the nodes with role, state, process, chunks and bytes.
    Ls {
        #[command(flatten)]
        target: Target,
        /// How to print.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
}

/// Runs the verb.
pub(crate) async fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Ls { target, format } => status::nodes(&target.status().await?).print(format),
    }
}
