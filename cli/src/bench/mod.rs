//! `hypertide bench`: generated data in the shape of the TSBS cpu-only workload, and how fast it loads.

mod cpu;
mod gen_csv;
mod ingest;
mod load;

use clap::Subcommand;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Write rows as CSV: a time, a host with its tags, and ten metrics, one row a host every ten seconds.
    Gen(gen_csv::Args),
    /// Make the table when it does not exist, load generated rows, and print rows per second.
    Load(load::Args),
}

/// Runs the verb.
pub(crate) async fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Gen(args) => gen_csv::run(&args),
        Verb::Load(args) => load::run(args).await,
    }
}
