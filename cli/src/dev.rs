//! `hypertide dev`: a whole cluster in one process, each node with its own ports and directory.

use std::{
    path::PathBuf,
    pin::pin,
    time::{Duration, Instant},
};

use anyhow::Context;
use hypertide_proto::client::Channels;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{
    access::MEMORY_MIB_DEFAULT,
    cluster::ports::Ports,
    endpoints::{Endpoints, make_dir},
    process::on_stop_signal,
    serve::{AccessSettings, BoundAccess, BoundData, DataSettings, SharedSettings, stopping},
};

/// Time for the nodes of a new cluster to find each other.
const FORM_LIMIT: Duration = Duration::from_secs(60);

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Access nodes.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=9))]
    access: u16,
    /// Data nodes.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    data: u16,
    /// Directory; one that was used before is started again [default: a temporary directory].
    #[arg(long, env = "HYPERTIDE_DIR")]
    dir: Option<PathBuf>,
    /// PostgreSQL port of the first access node; the other ports follow from it. 0 takes any that are free.
    #[arg(long, env = "HYPERTIDE_BASE_PORT", default_value_t = Ports::BASE_DEFAULT)]
    base_port: u16,
}

/// Runs the cluster until SIGTERM, SIGINT or the failure of a node.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let temporary = match &args.dir {
        Some(_) => None,
        None => Some(tempfile::tempdir().context("make a temporary directory")?),
    };
    let given = args.dir.as_deref().or(temporary.as_ref().map(|dir| dir.path()));
    let dir = make_dir(given.context("there is no directory to run in")?)?;
    let (stop, shutdown) = watch::channel(false);
    on_stop_signal(stop.clone())?;
    let cluster = Cluster::bind(&args, &dir).await?;
    cluster.run(&dir, stop, shutdown).await
}

/// The nodes, bound and not started yet.
#[derive(Debug)]
struct Cluster {
    access: Vec<BoundAccess>,
    data: Vec<BoundData>,
    endpoints: Endpoints,
}

impl Cluster {
    async fn bind(args: &Args, dir: &std::path::Path) -> anyhow::Result<Self> {
        let ports = Ports { base: args.base_port };
        // One process: what it may use is shared among its nodes.
        let memory_bytes = (MEMORY_MIB_DEFAULT << 20) / usize::from(args.access.max(args.data));
        let shared =
            |rpc: String, http: String| SharedSettings { rpc, http, advertise: None, memory_bytes };
        let (mut access, mut data, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
        for at in 0..args.access {
            let settings = AccessSettings {
                id: u64::from(at) + 1,
                dir: dir.join(format!("a{}", at + 1)),
                pg: ports.pg(at)?,
                flight: ports.flight(at)?,
                shared: shared(ports.rpc(at)?, ports.http(at)?),
            };
            let node = BoundAccess::bind(settings).await?;
            nodes.push(node.endpoint.clone());
            access.push(node);
        }
        let addresses: Vec<String> = nodes.iter().map(|node| node.rpc.clone()).collect();
        for at in 0..args.data {
            let name = format!("d{}", at + 1);
            let offset = args.access + at;
            let settings = DataSettings {
                dir: dir.join(&name),
                name,
                access: addresses.clone(),
                shared: shared(ports.rpc(offset)?, ports.http(offset)?),
            };
            let node = BoundData::bind(settings).await?;
            nodes.push(node.endpoint.clone());
            data.push(node);
        }
        Ok(Self { access, data, endpoints: Endpoints { nodes } })
    }

    /// Runs every node; the first that fails ends all.
    async fn run(
        self,
        dir: &std::path::Path,
        stop: watch::Sender<bool>,
        shutdown: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let Self { access, data, endpoints } = self;
        let addresses: Vec<String> = access.iter().map(|node| node.endpoint.rpc.clone()).collect();
        let mut waiting = access.len() + data.len();
        let (tell, mut served) = mpsc::channel(waiting);
        let mut nodes = JoinSet::new();
        for node in access {
            let tell = tell.clone();
            let shutdown = shutdown.clone();
            nodes.spawn(node.run(shutdown, move |_| tell_served(&tell)));
        }
        for node in data {
            let tell = tell.clone();
            nodes.spawn(node.run(shutdown.clone(), move |_| tell_served(&tell)));
        }
        let mut forming = pin!(form(addresses, shutdown));
        let (mut formed, mut outcome) = (false, Ok(()));
        loop {
            tokio::select! {
                done = &mut forming, if !formed => {
                    formed = true;
                    if let Err(error) = done {
                        outcome = first_error(outcome, error, &stop);
                    }
                }
                Some(()) = served.recv() => {
                    waiting -= 1;
                    if waiting == 0 {
                        endpoints.write(dir)?;
                        announce(&endpoints);
                    }
                }
                ended = nodes.join_next() => match ended {
                    None => return outcome,
                    Some(Ok(Ok(()))) => {}
                    Some(Ok(Err(error))) => outcome = first_error(outcome, error, &stop),
                    Some(Err(error)) => outcome = first_error(outcome, error.into(), &stop),
                }
            }
        }
    }
}

/// One more node serves. Nobody listens any more when the process is about to end.
fn tell_served(tell: &mpsc::Sender<()>) {
    if tell.try_send(()).is_err() {
        tracing::debug!("a node was ready when the process was about to end");
    }
}

/// Keeps the first error and has the other nodes stop.
fn first_error(
    outcome: anyhow::Result<()>,
    error: anyhow::Error,
    stop: &watch::Sender<bool>,
) -> anyhow::Result<()> {
    stop.send_replace(true);
    outcome.and(Err(error))
}

/// Forms the Raft group; one that was formed before stays as it is.
async fn form(access: Vec<String>, shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    let channels = Channels::default();
    let deadline = Instant::now() + FORM_LIMIT;
    tokio::select! {
        formed = hypertide_meta::init_cluster(&channels, &access, deadline) => {
            formed.context("form the cluster").map(drop)
        }
        () = stopping(shutdown) => Ok(()),
    }
}

fn announce(endpoints: &Endpoints) {
    let first = endpoints.nodes.iter().find_map(|node| node.pg.as_deref());
    let command = first.map(crate::sql::psql_command).unwrap_or_default();
    say!("ready: {command}");
}
