//! The cluster under test: real processes of the binary, each in a network namespace of its own where that is possible,
//! on loopback addresses of the run's own where it is not.

pub(crate) mod admin;
pub(crate) mod command;
pub(crate) mod group;
pub(crate) mod leftover;
pub(crate) mod links;
pub(crate) mod net;
mod node;
pub(crate) mod shim;

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use hypertide_proto::client::Channels;

use links::{End, Links};
use net::{Net, Rules};
pub(crate) use node::{Node, Role};
use shim::Board;

use crate::config::MEMORY_MIB;

/// Ports, the same on every node.
pub(crate) const PG: u16 = 5440;
/// Flight SQL.
pub(crate) const FLIGHT: u16 = 5450;
/// Internal gRPC.
pub(crate) const RPC: u16 = 5460;
/// Health and metrics.
pub(crate) const HTTP: u16 = 5480;

/// Time for the cluster to come up.
const START_LIMIT: Duration = Duration::from_secs(90);
/// Time for a node that was asked to stop.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Pause between two looks.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// What to start.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    /// The binary.
    pub(crate) binary: PathBuf,
    /// Access nodes.
    pub(crate) access: u8,
    /// Data nodes.
    pub(crate) data: u8,
    /// Further data nodes that get a place and are not started.
    pub(crate) spare: u8,
    /// Size of the file system of each data node, in MiB, when it gets one of its own.
    pub(crate) disk_mib: Option<u32>,
    /// What the environment of every node holds beside the harness's own.
    pub(crate) environment: Vec<(String, String)>,
    /// Whether nodes are on loopback addresses though namespaces could be made.
    pub(crate) loopback: bool,
    /// Whether calls between nodes go through the link proxy. On loopback they always do.
    pub(crate) links: bool,
    /// Whether nodes load the shim for faults of files and clocks; in it, whether for power cuts.
    pub(crate) shim: Option<bool>,
}

/// The cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// Its nodes; access nodes first.
    pub(crate) nodes: Vec<Node>,
    /// Channels to them.
    pub(crate) channels: Channels,
    /// Packet filters in force.
    pub(crate) rules: tokio::sync::Mutex<Rules>,
    /// Why there are no namespaces, when there are none.
    pub(crate) loopback: Option<String>,
    /// The link proxy, when calls go through it.
    pub(crate) links: Option<Links>,
    net: Option<Net>,
    dir: PathBuf,
}

impl Cluster {
    /// Starts the cluster in `dir/nodes` and waits until it serves.
    pub(crate) async fn start(wish: &Wish, dir: &Path) -> anyhow::Result<Self> {
        let mut cluster = Self::lay_out(wish, dir).await?;
        let started = cluster.bring_up(wish).await;
        if let Err(error) = started {
            cluster.remove().await.context("remove the cluster that did not start")?;
            return Err(error);
        }
        Ok(cluster)
    }

    async fn lay_out(wish: &Wish, dir: &Path) -> anyhow::Result<Self> {
        let place = dir.join("nodes");
        std::fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
        let loopback = match wish.loopback {
            true => Some("it was asked for".to_owned()),
            false => Net::possible().await.err(),
        };
        let net = if loopback.is_none() { Some(Net::make().await?) } else { None };
        let mut cluster = Self {
            nodes: Vec::new(),
            channels: Channels::default(),
            rules: tokio::sync::Mutex::default(),
            loopback,
            links: None,
            net,
            dir: dir.to_owned(),
        };
        for number in 1..=wish.access {
            cluster.add(format!("a{number}"), Role::Access, number, &place).await?;
        }
        for number in 1..=wish.data + wish.spare {
            cluster.add(format!("d{number}"), Role::Data, 100 + number, &place).await?;
        }
        if wish.links || cluster.loopback.is_some() {
            cluster.links = Some(cluster.link().await?);
        }
        Ok(cluster)
    }

    /// Puts the link proxy between the nodes.
    async fn link(&self) -> anyhow::Result<Links> {
        let mut ends = Vec::new();
        for node in &self.nodes {
            let [a, b, c, last] = node.ip.octets();
            let shadow = Ipv4Addr::new(a, b, c, shadow(last));
            if let Some(net) = &self.net {
                net.alias(shadow).await?;
            }
            ends.push(End { name: node.name.clone(), real: node.ip, shadow });
        }
        Links::start(ends).await
    }

    /// The address that others know a node by.
    pub(crate) fn known_ip(&self, node: &Node) -> Ipv4Addr {
        let links = self.links.as_ref();
        links.and_then(|links| links.shadow(&node.name)).unwrap_or(node.ip)
    }

    /// Tells the link proxy whose process is whose. To be called whenever one has started.
    pub(crate) fn tell_pids(&self) {
        if let Some(links) = &self.links {
            let pids = self.nodes.iter().filter_map(|node| Some((node.name.clone(), node.pid()?)));
            links.tell_pids(pids.collect());
        }
    }

    async fn add(
        &mut self,
        name: String,
        role: Role,
        last: u8,
        place: &Path,
    ) -> anyhow::Result<()> {
        let ip = match &self.net {
            Some(net) => net.ip(last),
            None => loopback_address(last),
        };
        let mut node = Node::new(name, role, ip, place);
        if let Some(net) = &self.net {
            node.namespace = Some(net.attach(&node.name, ip).await?);
        }
        self.nodes.push(node);
        Ok(())
    }

    async fn bring_up(&mut self, wish: &Wish) -> anyhow::Result<()> {
        let binary = wish.binary.to_string_lossy().into_owned();
        let access = self.rpc_of(Role::Access).join(",");
        let library = match wish.shim {
            Some(_) => shim::compile(&self.dir).await,
            None => Err("the run has no such faults".to_owned()),
        };
        let known: Vec<Ipv4Addr> = self.nodes.iter().map(|node| self.known_ip(node)).collect();
        for (node, known) in self.nodes.iter_mut().zip(known) {
            std::fs::create_dir_all(&node.dir).context("make a node's directory")?;
            node.line = line(&binary, node, (&access, known));
            node.environment.clone_from(&wish.environment);
            node.board = match &library {
                Err(why) => Err(why.clone()),
                Ok(library) => {
                    let path = node.dir.with_extension("board");
                    let of_node = (node.dir.as_path(), path.as_path());
                    let shim = shim::environment((library, &wish.binary), of_node);
                    node.environment.extend(shim);
                    Ok(Board::make(&path, wish.shim == Some(true))?)
                }
            };
        }
        if let Some(mib) = wish.disk_mib {
            self.mount_disks(mib).await?;
        }
        let deadline = Instant::now() + START_LIMIT;
        for node in self.of(Role::Access) {
            node.start()?;
        }
        self.tell_pids();
        command::run(&[&binary, "init", "--access", &access]).await.context("form the group")?;
        for node in self.of(Role::Data).take(wish.data.into()) {
            node.start()?;
        }
        self.tell_pids();
        self.wait_served(wish.data.into(), deadline).await
    }

    async fn mount_disks(&self, mib: u32) -> anyhow::Result<()> {
        if !is_root() {
            return Ok(());
        }
        let size = format!("size={mib}m");
        for node in self.of(Role::Data) {
            let dir = node.dir.to_string_lossy();
            command::run(&["mount", "-t", "tmpfs", "-o", &size, "tmpfs", &dir]).await?;
        }
        Ok(())
    }

    async fn wait_served(&self, data: usize, deadline: Instant) -> anyhow::Result<()> {
        for node in self.of(Role::Access) {
            while let Err(error) = self.up_at(node, data).await {
                if Instant::now() > deadline {
                    return Err(error.context("the cluster does not come up"));
                }
                if let Some(dead) = self.nodes.iter().find(|node| node.died()) {
                    bail!("{} ended; its log is {}", dead.name, dead.log.display());
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
        Ok(())
    }

    async fn up_at(&self, node: &Node, data: usize) -> anyhow::Result<()> {
        let status = self.status_at(node).await?;
        let up = status.nodes.iter().filter(|node| node.role == "data" && node.state == "up");
        if up.count() < data {
            bail!("not every data node is up");
        }
        let client = admin::Sql::connect(node).await?;
        client.run("SELECT 1").await?;
        Ok(())
    }

    /// The nodes of a role.
    pub(crate) fn of(&self, role: Role) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(move |node| node.role == role)
    }

    /// The node of this name.
    pub(crate) fn node(&self, name: &str) -> anyhow::Result<&Node> {
        let node = self.nodes.iter().find(|node| node.name == name);
        node.with_context(|| format!("there is no node {name}"))
    }

    fn rpc_of(&self, role: Role) -> Vec<String> {
        self.of(role).map(|node| format!("{}:{RPC}", self.known_ip(node))).collect()
    }

    /// Ends every process and removes namespaces and mounts; directories and logs stay.
    pub(crate) async fn remove(&self) -> anyhow::Result<()> {
        for node in &self.nodes {
            node.kill().await?;
        }
        if let Some(net) = &self.net {
            net.remove().await?;
        }
        leftover::clear(&self.dir).await
    }
}

/// Whether this process may do everything: its own entry in `/proc` belongs to its user.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|entry| entry.uid() == 0)
}

/// The last part of the address that stands for a node whose own ends with `last`: those of access nodes are from 1 on,
/// those of data nodes from 101 on.
const fn shadow(last: u8) -> u8 {
    if last < 100 { last + 20 } else { last + 70 }
}

fn line(binary: &str, node: &Node, (access, known): (&str, Ipv4Addr)) -> Vec<String> {
    let dir = node.dir.to_string_lossy().into_owned();
    let (rpc, http) = (node.address(RPC), node.address(HTTP));
    let mut line: Vec<String> = Vec::new();
    let mut say = |words: &[&str]| line.extend(words.iter().map(|word| (*word).to_owned()));
    match node.role {
        Role::Access => {
            let id = node.name.trim_start_matches('a');
            say(&[binary, "access", "--id", id, "--pg", &node.address(PG)]);
            say(&["--flight", &node.address(FLIGHT)]);
        }
        Role::Data => say(&[binary, "data", "--name", &node.name, "--access", access]),
    }
    say(&["--dir", &dir, "--rpc", &rpc, "--http", &http, "--memory-mib", &MEMORY_MIB.to_string()]);
    if known != node.ip {
        say(&["--advertise", &known.to_string()]);
    }
    line
}

/// Loopback addresses differ between runs: several may go on at once.
fn loopback_address(last: u8) -> Ipv4Addr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 1 + high % 250, low, last)
}
