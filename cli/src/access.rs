//! `hypertide access`: an access node in this process.

use std::path::PathBuf;

use serde::Deserialize;
use tokio::sync::watch;

use crate::{
    config::{Layer, layered, required},
    process::on_stop_signal,
    serve::{AccessSettings, BoundAccess, SharedSettings},
};

/// Memory for queries when nothing is said.
pub(crate) const MEMORY_MIB_DEFAULT: usize = 1024;

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// TOML file with any of the options below; a flag or a variable stands over it.
    #[arg(long, env = "HYPERTIDE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

impl Args {
    /// Name of the node in the log.
    pub(crate) fn log_name(&self) -> String {
        self.options.id.map_or_else(|| "access".to_owned(), |id| format!("a{id}"))
    }
}

#[derive(Debug, Default, Deserialize, clap::Args)]
#[serde(default, rename_all = "kebab-case")]
struct Options {
    /// Number of the node in its Raft group, from 1; it keeps it for life.
    #[arg(long, env = "HYPERTIDE_ID", value_name = "N")]
    id: Option<u64>,
    /// Directory of the node; made when it does not exist.
    #[arg(long, env = "HYPERTIDE_DIR")]
    dir: Option<PathBuf>,
    /// Address of the PostgreSQL endpoint [default: 127.0.0.1:5440].
    #[arg(long, env = "HYPERTIDE_PG", value_name = "ADDR")]
    pg: Option<String>,
    /// Address of the Flight SQL endpoint [default: 127.0.0.1:5450].
    #[arg(long, env = "HYPERTIDE_FLIGHT", value_name = "ADDR")]
    flight: Option<String>,
    /// Address of the internal gRPC endpoint [default: 127.0.0.1:5460].
    #[arg(long, env = "HYPERTIDE_RPC", value_name = "ADDR")]
    rpc: Option<String>,
    /// Address of the HTTP endpoint, for health and metrics [default: 127.0.0.1:5480].
    #[arg(long, env = "HYPERTIDE_HTTP", value_name = "ADDR")]
    http: Option<String>,
    /// Host under which others reach the node, when it listens on another one.
    #[arg(long, env = "HYPERTIDE_ADVERTISE", value_name = "HOST")]
    advertise: Option<String>,
    /// Memory for queries, in MiB [default: 1024].
    #[arg(long, env = "HYPERTIDE_MEMORY_MIB", value_name = "MIB")]
    memory_mib: Option<usize>,
}

impl Layer for Options {
    fn or(self, file: Self) -> Self {
        Self {
            id: self.id.or(file.id),
            dir: self.dir.or(file.dir),
            pg: self.pg.or(file.pg),
            flight: self.flight.or(file.flight),
            rpc: self.rpc.or(file.rpc),
            http: self.http.or(file.http),
            advertise: self.advertise.or(file.advertise),
            memory_mib: self.memory_mib.or(file.memory_mib),
        }
    }
}

impl Options {
    fn settings(self) -> anyhow::Result<AccessSettings> {
        let or = |given: Option<String>, default: &str| given.unwrap_or_else(|| default.to_owned());
        let id = required(self.id, "id")?;
        if id == 0 {
            return Err(crate::config::usage("id must be 1 or more"));
        }
        Ok(AccessSettings {
            id,
            dir: required(self.dir, "dir")?,
            pg: or(self.pg, "127.0.0.1:5440"),
            flight: or(self.flight, "127.0.0.1:5450"),
            shared: SharedSettings {
                rpc: or(self.rpc, "127.0.0.1:5460"),
                http: or(self.http, "127.0.0.1:5480"),
                advertise: self.advertise,
                memory_bytes: self.memory_mib.unwrap_or(MEMORY_MIB_DEFAULT) << 20,
            },
        })
    }
}

/// Runs the node until SIGTERM, SIGINT or its failure.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let settings = layered(args.options, args.config.as_deref())?.settings()?;
    let node = BoundAccess::bind(settings).await?;
    let (stop, shutdown) = watch::channel(false);
    on_stop_signal(stop)?;
    let outcome = node.run(shutdown, |_| ()).await;
    outcome.inspect_err(|error| tracing::error!("the access node cannot go on: {error:#}"))
}
