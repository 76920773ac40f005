//! What is looked at when the load is over and every fault healed.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::{
    checker::evidence::{Closing, Complaint},
    cluster::{Cluster, Role, STOP_LIMIT},
    config::Config,
    history::{Action, Filter},
    load::Load,
    run::data_names,
    workload::{Kind, Workload},
};

/// Time for every chunk to have its replicas, before the factor for slow machines; the checker has the promised limit.
const RESTORE_SECONDS: u64 = 150;
/// The same for a server with a planted bug.
const PLANTED_LIMIT: Duration = Duration::from_secs(40);
/// Time for one read of everything.
const READ_LIMIT: Duration = Duration::from_secs(90);
/// Time for replicas to have the last commits.
const EVEN_LIMIT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(300);
/// Lines of one node's log that are kept.
const COMPLAINTS_MAX: usize = 40;

/// Waits until the cluster is whole, reads everything at every access node and without each data node, and compares
/// what the nodes hold. What cannot be done is noted.
pub(crate) async fn observe(
    cluster: &Cluster,
    load: &Load,
    (config, workload): (&Config, &Workload),
    closing: &mut Closing,
    clock: Instant,
) {
    closing.loopback = cluster.loopback.clone().unwrap_or_default();
    restore(cluster, config, closing, clock).await;
    let everything = [Filter::default()];
    for node in cluster.of(Role::Access) {
        for filter in everything {
            let deadline = Instant::now() + READ_LIMIT;
            load.closing_read(node, Action::Read(filter), deadline).await;
            load.closing_read(node, Action::Aggregate(filter), deadline).await;
        }
        for (doing, action) in [
            (Kind::Transfer, Action::Balances),
            (Kind::Count, Action::Counters),
            (Kind::Swap, Action::Registers),
            (Kind::Put, Action::Keys(load.all_keys())),
        ] {
            if workload.does(doing) {
                load.closing_read(node, action, Instant::now() + READ_LIMIT).await;
            }
        }
    }
    compare(cluster, closing).await;
    // With one data node silent every chunk is read from its other replicas.
    for name in data_names(cluster).iter().filter(|_| config.replication() > 1) {
        let silent = cluster.node(name).and_then(|node| node.signal(Signal::SIGSTOP));
        if let Err(error) = silent {
            closing.missing.push(format!("read without {name}: {error:#}"));
            continue;
        }
        if let Some(node) = cluster.of(Role::Access).next() {
            let deadline = Instant::now() + READ_LIMIT;
            load.closing_read(node, Action::Read(Filter::default()), deadline).await;
        }
        let woken = cluster.node(name).and_then(|node| node.signal(Signal::SIGCONT));
        if let Err(error) = woken {
            closing.missing.push(format!("wake {name}: {error:#}"));
        }
        // Otherwise the next one would be the last replica of some chunk.
        wait_redundant(cluster, config).await.err().into_iter().for_each(|why| {
            closing
                .missing
                .push(format!("{name} was silent for a while and did not come back: {why}"));
        });
    }
}

async fn restore(cluster: &Cluster, config: &Config, closing: &mut Closing, clock: Instant) {
    match wait_redundant(cluster, config).await {
        Ok(()) => closing.restored_us = u64::try_from(clock.elapsed().as_micros()).ok(),
        Err(why) => closing.not_restored = why,
    }
}

async fn wait_redundant(cluster: &Cluster, config: &Config) -> Result<(), String> {
    let limit = match &config.planted {
        None => Duration::from_micros(config.limit_us(RESTORE_SECONDS)),
        // What such a server has lost will not come back.
        Some(_) => PLANTED_LIMIT,
    };
    let deadline = Instant::now() + limit;
    loop {
        let why = match cluster.redundant(usize::from(config.replication())).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(why)) => why,
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() > deadline {
            return Err(why);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Compares catalogs and replicas; data nodes learn of the last commits a moment later, so until they are equal.
async fn compare(cluster: &Cluster, closing: &mut Closing) {
    let deadline = Instant::now() + EVEN_LIMIT;
    loop {
        let late = Instant::now() > deadline;
        let looked = look(cluster, closing).await;
        let even = looked.is_ok() && {
            let evidence = &*closing;
            let mut chunks = evidence.catalogs.values().flatten();
            chunks.all(|chunk| {
                let held = evidence.replicas.iter().filter(|replica| replica.chunk == chunk.id);
                let mut held = held.filter(|replica| chunk.nodes.contains(&replica.node));
                let first = held.next();
                held.all(|other| {
                    first
                        .is_some_and(|first| (first.csn, &first.chain) == (other.csn, &other.chain))
                })
            })
        };
        match looked {
            _ if even => return,
            Err(error) if late => {
                closing
                    .missing
                    .push(format!("what the nodes hold could not be compared: {error:#}"));
                return;
            }
            _ if late => return,
            _ => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

async fn look(cluster: &Cluster, closing: &mut Closing) -> anyhow::Result<()> {
    closing.catalogs = cluster.catalogs().await?;
    closing.replicas = cluster.replicas(true).await?;
    Ok(())
}

/// Asks every node to end, data nodes first; kills those that do not.
pub(crate) async fn end_nodes(cluster: &Cluster, closing: &mut Closing) -> anyhow::Result<()> {
    for role in [Role::Data, Role::Access] {
        for node in cluster.of(role).filter(|node| node.alive()) {
            node.signal(Signal::SIGTERM)?;
        }
        for node in cluster.of(role) {
            if node.gone(STOP_LIMIT).await.is_err() {
                closing.unstoppable.push(node.name.clone());
                node.kill().await?;
            }
        }
    }
    Ok(())
}

/// Looks for panics, errors and signs of damage in the logs.
pub(crate) fn read_logs(cluster: &Cluster, closing: &mut Closing) {
    for node in &cluster.nodes {
        let log = std::fs::read(&node.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let mut kept = 0;
        for line in log.lines() {
            let lower = line.to_ascii_lowercase();
            closing.damage_lines += u64::from(
                ["damaged", "checksum", "corrupt"].iter().any(|word| lower.contains(word)),
            );
            let panicked = line.contains("panicked");
            let bad = panicked || line.contains(" ERROR ") || line.contains(" WARN ");
            if bad && (panicked || kept < COMPLAINTS_MAX) {
                kept += 1;
                let line = line.chars().take(400).collect();
                closing.complaints.push(Complaint { node: node.name.clone(), line });
            }
        }
    }
}
