//! `hypertide backup`: the tables of a cluster at one snapshot, as files, and back.
//!
//! ```text
//! cluster --[snapshot: one exported snapshot, read part by part]--> [draft: DIR under a temporary name] --rename--> DIR
//! DIR --[verify: every byte, offline]--> [restore: schema, rows, the rest] --> cluster, read back and compared
//! ```
//!
//! - What is read is one snapshot, whatever is written meanwhile: [`snapshot`] has an access node export it, and every
//!   stream reads by it. Data nodes keep what it sees as long as it is in use.
//! - DIR is there whole or not at all. [`manifest`] names every file in it with its size and checksum, and of every table
//!   the number of rows and a hash of its content ([`content`]) that does not depend on their order.
//! - Nothing is restored over what is there, and nothing that differs from the manifest is called restored.
//!
//! Not in a backup: users' sessions and settings, the names and addresses of nodes, which chunk lies where, what the
//! cluster knows of its jobs' past runs.

mod content;
mod create;
mod data_file;
mod draft;
mod manifest;
mod read;
mod restore;
mod snapshot;
mod verify;

use clap::Subcommand;

use crate::locate::Target;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Write the tables of a running cluster to a new directory, all at one snapshot, while it is written to.
    ///
    /// The directory appears under its name when all of it is on disk; one that was killed leaves a hidden directory beside
    /// it, `.NAME.partial-...`, which can be removed. It holds `manifest.json`, `schema.sql`, which makes
    /// the tables again, and the rows as zstd-compressed Arrow streams.
    ///
    /// The cluster keeps the snapshot while the backup runs: rows, chunks and tables that are deleted, dropped or changed
    /// meanwhile stay readable for it as they were, however long it takes, and data nodes may come and go. It ends with an
    /// error, and is to be run again, when the access node that it talks to goes away, or when a data node runs out of room
    /// and lets go of what is old ("snapshot too old").
    Create(create::Args),
    /// Read every byte of a backup, without a cluster, and compare checksums, counts and hashes.
    Verify(verify::Args),
    /// Make the tables of a backup again in a running cluster, load their rows, read them back and compare.
    ///
    /// The backup is verified first. A table of that name in the cluster ends it before anything is changed. A restore
    /// that was broken off leaves tables with some of their rows, which it names: drop them and run it again.
    /// Compression and policies come last, so that a retention policy drops old rows only once they were compared.
    Restore(restore::Args),
}

/// Runs the verb.
pub(crate) async fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Create(args) => create::run(args).await,
        Verb::Verify(args) => verify::run(&args).await,
        Verb::Restore(args) => restore::run(args).await,
    }
}

/// Options of where the cluster is, and how it is reached. All of a backup goes through one access node, which holds its
/// snapshot.
#[derive(Clone, Debug, clap::Args)]
struct Place {
    #[command(flatten)]
    target: Target,
    /// PostgreSQL address of an access node, with --flight [default: what --dir or --access names].
    #[arg(long, env = "HYPERTIDE_PG", value_name = "ADDR", requires = "flight")]
    pg: Option<String>,
    /// Flight SQL address of the same access node.
    #[arg(long, env = "HYPERTIDE_FLIGHT", value_name = "ADDR", requires = "pg")]
    flight: Option<String>,
    /// Connections that read or load rows.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    clients: u16,
}

/// The addresses of an access node.
struct Access {
    pg: String,
    flight: String,
}

impl Place {
    /// An access node that answers, or the one that was named.
    async fn access(&self) -> anyhow::Result<Access> {
        if let (Some(pg), Some(flight)) = (&self.pg, &self.flight) {
            return Ok(Access { pg: pg.clone(), flight: flight.clone() });
        }
        let node = self.target.identity().await?;
        Ok(Access { pg: node.pg, flight: node.flight })
    }
}

/// A bar that counts rows for people who watch.
fn bar(what: &'static str) -> indicatif::ProgressBar {
    let bar = indicatif::ProgressBar::no_length().with_prefix(what);
    let template = "{prefix} {human_pos} rows, {per_sec}, {elapsed}";
    match indicatif::ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
