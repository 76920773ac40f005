//! `cluster start`, `restart` and `add-data`: everything that makes processes.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use hypertide_proto::client::Channels;

use super::{
    local::{Launch, Local},
    ports::Ports,
    wait::Starting,
};
use crate::{
    endpoints::{Node, Role},
    locate::Target,
    node, process,
    sql::psql_command,
};

/// Time for a cluster or a node to come up.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Time for a node to stop before it is killed, in a restart.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// Time for a node that was not taken in to say so.
const STRANGER_LIMIT: Duration = Duration::from_secs(2);
/// Sizes of a new cluster.
const ACCESS_DEFAULT: u16 = 3;
const DATA_DEFAULT: u16 = 3;

/// Options of `cluster start`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Access nodes [default: 3].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=9))]
    access: Option<u16>,
    /// Data nodes [default: 3].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    data: Option<u16>,
    /// Directory of the cluster; made when it does not exist.
    #[arg(long, env = "HYPERTIDE_DIR")]
    dir: PathBuf,
    /// PostgreSQL port of the first access node; Flight SQL is at +10, internal gRPC at +20, HTTP at +40, and each
    /// further node at the next port. 0 lets the system choose. A cluster that is started again keeps its ports.
    #[arg(long, env = "HYPERTIDE_BASE_PORT", default_value_t = Ports::BASE_DEFAULT)]
    base_port: u16,
}

/// What a start has to do: nodes to start, and what there will be in the end.
#[derive(Debug)]
struct Plan {
    access: Vec<Launch>,
    data: Vec<Launch>,
}

/// Starts the cluster, or what of it does not run.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let local = Local::open_or_make(&args.dir)?;
    let plan = plan(&args, &local.nodes()?)?;
    let mut starting = Starting::new(&local, START_LIMIT);
    match bring_up(&local, plan, &mut starting).await {
        Ok(()) => starting.done(),
        Err(error) => {
            starting.give_up().await;
            return Err(error);
        }
    }
    announce(&local)
}

/// Decides what to start; what was started before keeps its addresses.
fn plan(args: &Args, known: &[Node]) -> anyhow::Result<Plan> {
    let count = |role| known.iter().filter(|node| node.role == role).count();
    let (access, data) = (count(Role::Access), count(Role::Data));
    // A data node is started after every access node, so one is proof that the group is complete.
    if let Some(wanted) = args.access.filter(|wanted| data > 0 && usize::from(*wanted) != access) {
        bail!("this cluster has {access} access nodes and is not changed to {wanted} by a start");
    }
    let access = match data {
        0 => args.access.unwrap_or(ACCESS_DEFAULT),
        _ => u16::try_from(access).context("too many access nodes")?,
    };
    let data = match data {
        0 => args.data.unwrap_or(DATA_DEFAULT),
        _ => args.data.unwrap_or(0).max(u16::try_from(data).context("too many data nodes")?),
    };
    let ports = Ports { base: args.base_port };
    Ok(Plan {
        access: launches(Role::Access, (access, 0), ports, known)?,
        data: launches(Role::Data, (data, access), ports, known)?,
    })
}

/// The known nodes of a role, under the names they have, and as many more as are wanted.
fn launches(
    role: Role,
    (wanted, first_offset): (u16, u16),
    ports: Ports,
    known: &[Node],
) -> anyhow::Result<Vec<Launch>> {
    let known: Vec<&Node> = known.iter().filter(|node| node.role == role).collect();
    let mut launches: Vec<Launch> =
        known.iter().map(|node| Launch::again(node, Vec::new())).collect();
    let free = (1..=u16::MAX).filter(|number| {
        let name = role.node(*number);
        known.iter().all(|node| node.name != name)
    });
    for number in free.take(usize::from(wanted).saturating_sub(known.len())) {
        launches.push(fresh(role.node(number), first_offset + number - 1, ports)?);
    }
    Ok(launches)
}

fn fresh(name: String, offset: u16, ports: Ports) -> anyhow::Result<Launch> {
    Ok(Launch {
        name,
        pg: ports.pg(offset)?,
        flight: ports.flight(offset)?,
        rpc: ports.rpc(offset)?,
        http: ports.http(offset)?,
        access: Vec::new(),
    })
}

async fn bring_up(local: &Local, plan: Plan, starting: &mut Starting<'_>) -> anyhow::Result<()> {
    for launch in &plan.access {
        start_unless_alive(local, launch, starting)?;
    }
    starting.bound().await?;
    let access = access_addresses(local)?;
    let deadline = starting.deadline;
    let form = async {
        let channels = Channels::default();
        // Nodes come and go: who belongs to a cluster may remember other members than there are by now.
        let formed = match hypertide_meta::cluster_of(&channels, &access, deadline).await {
            Ok(None) => hypertide_meta::init_cluster(&channels, &access, deadline).await.map(Some),
            formed => formed,
        };
        formed.context("form the cluster")
    };
    starting.meanwhile("the access nodes to form a cluster", form).await?;
    for mut launch in plan.data {
        launch.access.clone_from(&access);
        start_unless_alive(local, &launch, starting)?;
    }
    starting.bound().await?;
    local.publish()?;
    starting.served(&local.nodes()?).await
}

fn start_unless_alive(
    local: &Local,
    launch: &Launch,
    starting: &mut Starting<'_>,
) -> anyhow::Result<()> {
    let running = local.started(&launch.name)?.is_some_and(|node| process::alive(&node));
    if !running {
        starting.say(&format!("starting {}", launch.name));
        starting.watch(&launch.name, local.spawn(launch)?);
    }
    Ok(())
}

fn access_addresses(local: &Local) -> anyhow::Result<Vec<String>> {
    let access = local.nodes()?.into_iter().filter(|node| node.role == Role::Access);
    Ok(access.map(|node| node.rpc).collect())
}

/// Stops a node's process if it runs, and starts it again at the same ports.
pub(crate) async fn restart(dir: &Path, name: &str) -> anyhow::Result<()> {
    let local = Local::open(dir)?;
    let node = local.node(name)?;
    process::stop(&node, Instant::now() + STOP_LIMIT).await?;
    let launch = Launch::again(&node, access_addresses(&local)?);
    start_one(&local, &launch).await
}

/// Starts one more data node.
pub(crate) async fn add_data(dir: &Path) -> anyhow::Result<()> {
    let local = Local::open(dir)?;
    let nodes = local.nodes()?;
    let name = local.free_name(Role::Data)?;
    let offset = u16::try_from(nodes.len()).context("too many nodes")?;
    let mut launch = fresh(name, offset, base_of(&nodes))?;
    launch.access = access_addresses(&local)?;
    start_one(&local, &launch).await
}

/// Starts one more access node and takes it into the cluster.
pub(crate) async fn add_access(dir: &Path) -> anyhow::Result<()> {
    let local = Local::open(dir)?;
    let nodes = local.nodes()?;
    let offset = u16::try_from(nodes.len()).context("too many nodes")?;
    let launch = fresh(local.next_access()?, offset, base_of(&nodes))?;
    let target = Target { dir: None, access: access_addresses(&local)? };
    let mut starting = Starting::new(&local, START_LIMIT);
    let up = async {
        starting.say(&format!("starting {}", launch.name));
        starting.watch(&launch.name, local.spawn(&launch)?);
        starting.bound().await?;
        let node = local.node(&launch.name)?;
        let add = node::add(&target, &node.rpc);
        starting.meanwhile("the access node to be taken in", add).await?;
        local.publish()?;
        starting.served(std::slice::from_ref(&node)).await
    };
    match up.await {
        Ok(()) => starting.done(),
        Err(error) => {
            let stranger = is_stranger(&local, &launch.name).await;
            starting.give_up().await;
            if stranger {
                // Left there, it would be taken for a node of the cluster by the next start.
                local.forget(&launch.name)?;
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Whether a node that was started answers, and belongs to no cluster.
async fn is_stranger(local: &Local, name: &str) -> bool {
    let Ok(node) = local.node(name) else { return false };
    let deadline = Instant::now() + STRANGER_LIMIT;
    let cluster = hypertide_meta::cluster_of(&Channels::default(), &[node.rpc], deadline).await;
    matches!(cluster, Ok(None))
}

/// The base that the ports of these nodes follow from, or 0 when they follow from none.
fn base_of(nodes: &[Node]) -> Ports {
    let first = nodes.iter().find_map(|node| node.pg.as_deref());
    let port = first.and_then(|address| crate::listen::split(address).ok()).map(|(_, port)| port);
    let ports = Ports { base: port.unwrap_or(0) };
    let follows = |(node, offset): (&Node, u16)| {
        ports.rpc(offset).is_ok_and(|rpc| rpc == node.rpc)
            && ports.http(offset).is_ok_and(|http| http == node.http)
    };
    if nodes.iter().zip(0..).all(follows) { ports } else { Ports { base: 0 } }
}

async fn start_one(local: &Local, launch: &Launch) -> anyhow::Result<()> {
    let mut starting = Starting::new(local, START_LIMIT);
    let up = async {
        starting.say(&format!("starting {}", launch.name));
        starting.watch(&launch.name, local.spawn(launch)?);
        starting.bound().await?;
        local.publish()?;
        let node = local.node(&launch.name)?;
        starting.served(std::slice::from_ref(&node)).await?;
        anyhow::Ok(node)
    };
    match up.await {
        Ok(node) => {
            starting.done();
            say!("{} is up (pid {})", node.name, node.pid);
            Ok(())
        }
        Err(error) => {
            starting.give_up().await;
            Err(error)
        }
    }
}

/// Says how to reach the cluster.
fn announce(local: &Local) -> anyhow::Result<()> {
    let nodes = local.nodes()?;
    let count = |role| nodes.iter().filter(|node| node.role == role).count();
    let (access, data) = (count(Role::Access), count(Role::Data));
    say!("{access} access nodes and {data} data nodes are up in {}", local.dir.display());
    for node in &nodes {
        if let Some(pg) = &node.pg {
            say!("{}: {}", node.name, psql_command(pg));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(access: Option<u16>, data: Option<u16>) -> Args {
        Args { access, data, dir: PathBuf::new(), base_port: 5440 }
    }

    fn node(name: &str, offset: u16, base: u16) -> Node {
        let role = if name.starts_with('a') { Role::Access } else { Role::Data };
        let ports = Ports { base };
        Node {
            name: name.to_owned(),
            role,
            pid: 1,
            pg: (role == Role::Access).then(|| ports.pg(offset).expect("it fits")),
            flight: (role == Role::Access).then(|| ports.flight(offset).expect("it fits")),
            rpc: ports.rpc(offset).expect("it fits"),
            http: ports.http(offset).expect("it fits"),
            dir: PathBuf::new(),
        }
    }

    fn names(launches: &[Launch]) -> Vec<&str> {
        launches.iter().map(|launch| launch.name.as_str()).collect()
    }

    #[test]
    fn a_new_cluster_has_three_of_each() {
        let plan = plan(&args(None, None), &[]).expect("it is possible");
        assert_eq!(names(&plan.access), ["a1", "a2", "a3"]);
        assert_eq!(names(&plan.data), ["d1", "d2", "d3"]);
        let first = plan.data.first().expect("there are three");
        assert_eq!(first.rpc, "127.0.0.1:5463");
    }

    #[test]
    fn a_cluster_whose_access_nodes_came_and_went_is_started_under_their_names() {
        let known = [node("a1", 0, 7000), node("a4", 4, 7000), node("d1", 1, 7000)];
        let plan = plan(&args(None, Some(3)), &known).expect("it is possible");
        assert_eq!(names(&plan.access), ["a1", "a4"]);
        assert_eq!(names(&plan.data), ["d1", "d2", "d3"]);
    }

    #[test]
    fn a_known_cluster_keeps_its_size_and_ports() {
        let known = [node("a1", 0, 7000), node("d1", 1, 7000), node("d2", 2, 7000)];
        let plan = plan(&args(None, Some(1)), &known).expect("it is possible");
        assert_eq!((names(&plan.access), names(&plan.data)), (vec!["a1"], vec!["d1", "d2"]));
        assert_eq!(plan.data.last().map(|launch| launch.rpc.as_str()), Some("127.0.0.1:7022"));
    }

    #[test]
    fn another_number_of_access_nodes_is_refused() {
        let known = [node("a1", 0, 7000), node("d1", 1, 7000)];
        assert!(plan(&args(Some(3), None), &known).is_err());
    }

    #[test]
    fn a_start_that_stopped_half_way_goes_on() {
        let plan = plan(&args(Some(3), Some(3)), &[node("a1", 0, 7000)]).expect("it is possible");
        assert_eq!(names(&plan.access), ["a1", "a2", "a3"]);
        assert_eq!(plan.access.first().map(|launch| launch.rpc.as_str()), Some("127.0.0.1:7020"));
    }

    #[test]
    fn a_further_node_follows_the_ports_of_the_others() {
        let known = [node("a1", 0, 7000), node("d1", 1, 7000)];
        assert_eq!(base_of(&known), Ports { base: 7000 });
        let other = [node("a1", 0, 7000), node("d1", 1, 8000)];
        assert_eq!(base_of(&other), Ports { base: 0 });
    }
}
