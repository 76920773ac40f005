//! The cluster under test: real processes of the binary, each in a network namespace of its own where that is possible,
//! on loopback addresses of the run's own where it is not.

pub(crate) mod admin;
pub(crate) mod command;
pub(crate) mod leftover;
pub(crate) mod net;
mod node;

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use hypertide_proto::client::Channels;

use net::{Net, Rules};
pub(crate) use node::{Node, Role};

/// Ports, the same on every node.
pub(crate) const PG: u16 = 5440;
/// Flight SQL.
pub(crate) const FLIGHT: u16 = 5450;
/// Internal gRPC.
pub(crate) const RPC: u16 = 5460;
/// Health and metrics.
pub(crate) const HTTP: u16 = 5480;

/// Memory for queries of a node, in MiB.
const MEMORY_MIB: &str = "256";
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
        let loopback = Net::possible().await.err();
        let net = if loopback.is_none() { Some(Net::make().await?) } else { None };
        let mut cluster = Self {
            nodes: Vec::new(),
            channels: Channels::default(),
            rules: tokio::sync::Mutex::default(),
            loopback,
            net,
            dir: dir.to_owned(),
        };
        for number in 1..=wish.access {
            cluster.add(format!("a{number}"), Role::Access, number, &place).await?;
        }
        for number in 1..=wish.data + wish.spare {
            cluster.add(format!("d{number}"), Role::Data, 100 + number, &place).await?;
        }
        Ok(cluster)
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
        for node in &mut self.nodes {
            std::fs::create_dir_all(&node.dir).context("make a node's directory")?;
            node.line = line(&binary, node, &access);
        }
        if let Some(mib) = wish.disk_mib {
            self.mount_disks(mib).await?;
        }
        let deadline = Instant::now() + START_LIMIT;
        for node in self.of(Role::Access) {
            node.start()?;
        }
        command::run(&[&binary, "init", "--access", &access]).await.context("form the group")?;
        for node in self.of(Role::Data).take(wish.data.into()) {
            node.start()?;
        }
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
        self.of(role).map(|node| node.address(RPC)).collect()
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

fn line(binary: &str, node: &Node, access: &str) -> Vec<String> {
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
    say(&["--dir", &dir, "--rpc", &rpc, "--http", &http, "--memory-mib", MEMORY_MIB]);
    line
}

/// Loopback addresses differ between runs: several may go on at once.
fn loopback_address(last: u8) -> Ipv4Addr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 1 + high % 250, low, last)
}
