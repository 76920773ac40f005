//! `hypertide data`: a data node in this process.

use std::path::PathBuf;

use serde::Deserialize;
use tokio::sync::watch;

use crate::{
    access::MEMORY_MIB_DEFAULT,
    config::{Layer, layered, required},
    process::on_stop_signal,
    serve::{BoundData, DataSettings, SharedSettings},
};

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
        self.options.name.clone().unwrap_or_else(|| "data".to_owned())
    }
}

#[derive(Debug, Default, Deserialize, clap::Args)]
#[serde(default, rename_all = "kebab-case")]
struct Options {
    /// Directory of the node; made when it does not exist.
    #[arg(long, env = "HYPERTIDE_DIR")]
    dir: Option<PathBuf>,
    /// Internal gRPC addresses of access nodes, comma-separated; without any the node waits until
    /// `SELECT add_data_node(...)` takes it into a cluster.
    #[arg(long, env = "HYPERTIDE_ACCESS", value_name = "ADDR,...", value_delimiter = ',')]
    access: Option<Vec<String>>,
    /// Name wanted in the cluster [default: the next free of d1, d2, ...].
    #[arg(long, env = "HYPERTIDE_NAME")]
    name: Option<String>,
    /// Address of the internal gRPC endpoint [default: 127.0.0.1:5460].
    #[arg(long, env = "HYPERTIDE_RPC", value_name = "ADDR")]
    rpc: Option<String>,
    /// Address of the HTTP endpoint, for health and metrics [default: 127.0.0.1:5480].
    #[arg(long, env = "HYPERTIDE_HTTP", value_name = "ADDR")]
    http: Option<String>,
    /// Host under which others reach the node, when it listens on another one.
    #[arg(long, env = "HYPERTIDE_ADVERTISE", value_name = "HOST")]
    advertise: Option<String>,
    /// Memory for fragments of queries, and as much again for rows that are not flushed yet, in MiB [default: 1024].
    #[arg(long, env = "HYPERTIDE_MEMORY_MIB", value_name = "MIB")]
    memory_mib: Option<usize>,
}

impl Layer for Options {
    fn or(self, file: Self) -> Self {
        Self {
            dir: self.dir.or(file.dir),
            access: self.access.or(file.access),
            name: self.name.or(file.name),
            rpc: self.rpc.or(file.rpc),
            http: self.http.or(file.http),
            advertise: self.advertise.or(file.advertise),
            memory_mib: self.memory_mib.or(file.memory_mib),
        }
    }
}

impl Options {
    fn settings(self) -> anyhow::Result<DataSettings> {
        let or = |given: Option<String>, default: &str| given.unwrap_or_else(|| default.to_owned());
        Ok(DataSettings {
            dir: required(self.dir, "dir")?,
            name: self.name.unwrap_or_default(),
            access: self.access.unwrap_or_default(),
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
    let node = BoundData::bind(settings).await?;
    let (stop, shutdown) = watch::channel(false);
    on_stop_signal(stop)?;
    let outcome = node.run(shutdown, |_| ()).await;
    outcome.inspect_err(|error| tracing::error!("the data node cannot go on: {error:#}"))
}
