//! `hypertide catalog rebuild`: from data directories to the directory of an access node.
//!
//! 1. All directories are opened, which keeps their processes out; those of data nodes are told what others know of
//!    transactions.
//! 2. The catalog is made in memory; nothing was changed so far but what a start of the data nodes changes.
//! 3. The access node's directory is made, whole.
//! 4. The data directories become those of the new cluster, one after the other. Cut short here, it is done again: a
//!    directory tells by its cluster that it was moved already.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use hypertide_meta::{
    Founder,
    catalog::rebuild::{
        CatalogRemains, NodeRemains, Rebuilt, Refusal, ReplicaRemains, Terms, rebuild,
    },
    found, survivor,
};
use hypertide_proto::{
    decision::Decision,
    ids::{AccessId, ClusterId},
};
use hypertide_storage::{ChunkState, Remains};
use xxhash_rust::xxh3::Xxh3;

use super::{Args, local::LocalPlan};

/// What is made, of what.
#[derive(Debug)]
pub(super) struct Plan {
    /// Directories of data nodes.
    pub(super) data: Vec<PathBuf>,
    /// Directories of access nodes that are left.
    pub(super) access: Vec<PathBuf>,
    /// Directory of the access node, its number and its address.
    pub(super) to: PathBuf,
    pub(super) id: u64,
    pub(super) rpc: String,
}

/// Makes the catalog anew. Blocking.
pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let local = args.dir.as_deref().map(LocalPlan::of).transpose()?;
    let plan = match &local {
        Some(local) => local.plan(),
        None => given(&args)?,
    };
    let remains = open(&plan.data)?;
    let cluster = next_cluster(&remains)?;
    let left = match &local {
        Some(_) => readable(&plan.access, &cluster),
        None => plan.access.iter().map(|dir| left(dir, &cluster)).collect::<anyhow::Result<_>>()?,
    };
    let undecided = share_decisions(&remains, &left)?;
    let nodes = remains.iter().map(node_remains).collect::<anyhow::Result<Vec<_>>>()?;
    let terms = Terms {
        now_ms: now_ms()?,
        access: AccessId(plan.id),
        without: args.without.iter().cloned().collect(),
        forget_unknown: args.forget_unknown,
    };
    let rebuilt = rebuild(&nodes, &left, &terms).map_err(advise)?;
    tell(&rebuilt, undecided);
    if args.dry_run {
        return Ok(());
    }
    if plan.to.exists() {
        bail!(
            "{} is there already; remove it when it was left by a run that failed",
            plan.to.display()
        );
    }
    let founder = Founder { id: AccessId(plan.id), rpc: plan.rpc.clone(), cluster };
    found(&plan.to, &founder, &rebuilt).context("make the access node")?;
    for data in &remains {
        let adopted = data.adopt(cluster, vec![plan.rpc.clone()]);
        adopted.with_context(|| format!("move {} into the new cluster", data.dir().display()))?;
    }
    drop(remains);
    match local {
        Some(local) => local.finish(),
        None => {
            say!(
                "cluster {cluster}: start the access node with --id {} --dir {} and the address {}, then the data \
                 nodes, and add further access nodes with `hypertide node add`",
                plan.id,
                plan.to.display(),
                plan.rpc
            );
            Ok(())
        }
    }
}

fn given(args: &Args) -> anyhow::Result<Plan> {
    let missing = "give --to, --id and --rpc with --data";
    let rpc = args.rpc.clone().context(missing)?;
    crate::listen::split(&rpc)?;
    Ok(Plan {
        data: args.data.clone(),
        access: args.access.clone(),
        to: args.to.clone().context(missing)?,
        id: args.id.context(missing)?,
        rpc,
    })
}

fn open(dirs: &[PathBuf]) -> anyhow::Result<Vec<Remains>> {
    let open = |dir: &PathBuf| {
        Remains::open(dir).with_context(|| format!("open the data directory {}", dir.display()))
    };
    dirs.iter().map(open).collect()
}

/// The cluster that the directories are moved into. It follows from the one that they are of, so that those which a run
/// before has moved already are told from strangers.
fn next_cluster(remains: &[Remains]) -> anyhow::Result<ClusterId> {
    let clusters: BTreeSet<ClusterId> = remains.iter().map(Remains::cluster).collect();
    let old = match clusters.iter().collect::<Vec<_>>().as_slice() {
        [] => bail!("no data directory was named"),
        [old] => **old,
        [one, other] if after(one) == **other => **one,
        [one, other] if after(other) == **one => **other,
        _ => bail!("the data directories are of different clusters: {}", list(&clusters)),
    };
    Ok(after(&old))
}

fn after(cluster: &ClusterId) -> ClusterId {
    let mut hash = Xxh3::new();
    hash.update(&cluster.0);
    hash.update(b"rebuilt");
    ClusterId(hash.digest128().to_be_bytes())
}

fn list(clusters: &BTreeSet<ClusterId>) -> String {
    clusters.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Tells every directory what the others know of transactions; gives how many are still open in any.
fn share_decisions(remains: &[Remains], left: &[CatalogRemains]) -> anyhow::Result<usize> {
    let of_data = remains.iter().flat_map(Remains::decisions).cloned();
    let known: Vec<Decision> =
        of_data.chain(left.iter().flat_map(CatalogRemains::decisions)).collect();
    for data in remains {
        data.learn(&known).with_context(|| format!("decide in {}", data.dir().display()))?;
    }
    let open: BTreeSet<_> = remains.iter().flat_map(Remains::undecided).collect();
    Ok(open.len())
}

/// What an access node knew.
fn left(dir: &Path, next: &ClusterId) -> anyhow::Result<CatalogRemains> {
    let read = survivor(dir).with_context(|| format!("read the access node in {}", dir.display()));
    let (cluster, left) = read?;
    if after(&cluster) != *next {
        bail!("the access node in {} is of another cluster, {cluster}", dir.display());
    }
    Ok(left)
}

/// What those of these access nodes knew whose directories can be read; the others are named.
fn readable(dirs: &[PathBuf], next: &ClusterId) -> Vec<CatalogRemains> {
    let read = dirs.iter().filter_map(|dir| {
        left(dir, next).inspect_err(|error| say!("an access node is of no use: {error:#}")).ok()
    });
    read.collect()
}

fn node_remains(remains: &Remains) -> anyhow::Result<NodeRemains> {
    let (rid, name, disk) = remains.node();
    let replicas = remains.replicas();
    let replicas = replicas.with_context(|| format!("read {}", remains.dir().display()))?;
    let chunks = replicas.into_iter().map(|replica| {
        let report = replica.report;
        let compressed = report.state != ChunkState::Plain;
        ReplicaRemains {
            chunk: report.chunk,
            origin: replica.origin,
            csn: report.applied_csn,
            chain: report.chain,
            rows: replica.rows,
            damaged: replica.damaged,
            compressed: compressed.then_some((
                report.compressed_csn,
                report.before_bytes,
                report.after_bytes,
            )),
        }
    });
    Ok(NodeRemains {
        rid,
        name: name.to_owned(),
        disk,
        definitions: remains.definitions().map(|(index, body)| (index, body.to_vec())),
        chunks: chunks.collect(),
    })
}

fn now_ms() -> anyhow::Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    u64::try_from(now.as_millis()).context("the clock is far ahead")
}

/// Adds to a refusal what the operator can do about it.
fn advise(refusal: Refusal) -> anyhow::Error {
    let advice = match &refusal {
        Refusal::Missing(_) => ": name them, or give them up with --without NAME",
        Refusal::Unknown(_) => ": give them up with --forget-unknown",
        _ => "",
    };
    anyhow::anyhow!("{refusal}{advice}")
}

fn tell(rebuilt: &Rebuilt, undecided: usize) {
    let catalog = &rebuilt.catalog;
    let rows: u64 = catalog.chunks().map(|chunk| chunk.rows).sum();
    say!(
        "{} tables, {} chunks with {rows} rows committed, {} data nodes",
        catalog.tables().count(),
        catalog.chunks().count(),
        catalog.data_nodes().count()
    );
    for finding in &rebuilt.findings {
        say!("{finding}");
    }
    if undecided > 0 {
        say!("{undecided} transactions of which nothing says how they ended are undone");
    }
}
