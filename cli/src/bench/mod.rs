//! `hypertide bench`: generated data in the shape of the TSBS cpu-only workload, how fast it loads, and how
//! fast it is queried.

mod ahead;
mod cpu;
mod gen_csv;
mod generate;
mod ingest;
mod load;
mod query;
mod usage;

use clap::Subcommand;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Write rows as CSV or Arrow: a time, a host with its tags, ten metrics, one row a host every ten seconds.
    Gen(generate::Args),
    /// Make the table when it does not exist, load rows, and print rows per second and what each process spent.
    ///
    /// Rows are generated, or read with --from, before the measured time. With --dir, processor time and peak memory of
    /// the nodes are told, too. COPY works with any server of the PostgreSQL protocol: name it with --pg, make the table
    /// by hand, and say --existing.
    Load(load::Args),
    /// Run a named set of queries over the loaded rows, and print how long each took.
    Query(query::Args),
}

/// Runs the verb.
pub(crate) async fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Gen(args) => generate::run(&args),
        Verb::Load(args) => load::run(args).await,
        Verb::Query(args) => query::run(args).await,
    }
}
