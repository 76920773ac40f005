//! Saves the cluster again and again while it is hurt, by the real binary, and restores some of it to a fresh cluster.
//!
//! A backup that fails because a node went away is nothing bad: the next is made through another access node. One that
//! the binary calls good must hold what the history says.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::{process::Command, task::JoinHandle};
use tokio_postgres::SimpleQueryRow;

use crate::{
    checker::restore::{Backups, Restored},
    client::rows_answer,
    cluster::{Cluster, FLIGHT, PG, Role, admin::Sql},
    config::Config,
    history::Answer,
    workload::rows::Source,
};

/// Time for one backup or restore.
const LIMIT: Duration = Duration::from_secs(180);
/// Time for the fresh cluster to serve.
const START_LIMIT: Duration = Duration::from_secs(90);
/// Pause between two backups, and after one that could not be made.
const PAUSE: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Backups that are restored: the first, the last, and some between.
const RESTORED_MAX: usize = 4;
/// Failures of backups that are told.
const TOLD_MAX: usize = 20;

/// A backup that the binary called good.
#[derive(Clone, Debug)]
struct Made {
    dir: PathBuf,
    start_us: u64,
    end_us: u64,
}

/// The task that makes backups.
pub(crate) struct Saving {
    cluster: Arc<Cluster>,
    dir: PathBuf,
    clock: Instant,
    stop: Arc<AtomicBool>,
    task: JoinHandle<(Vec<Made>, Backups)>,
}

impl Saving {
    /// Begins to make backups under `dir`.
    pub(crate) fn start(cluster: Arc<Cluster>, dir: &Path, clock: Instant) -> Self {
        let (dir, stop) = (dir.join("backups"), Arc::<AtomicBool>::default());
        let task = tokio::spawn(save(Arc::clone(&cluster), dir.clone(), clock, Arc::clone(&stop)));
        Self { cluster, dir, clock, stop, task }
    }

    /// Lets it end after the backup that it is at.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Ends it, makes one more backup of the healed cluster, and restores some of all.
    pub(crate) async fn end(self, config: &Config) -> anyhow::Result<Backups> {
        self.stop();
        let Self { cluster, dir, clock, task, .. } = self;
        let (mut made, mut backups) = task.await.context("the task that makes backups")?;
        let binary = Path::new(&config.binary);
        let last = make(&cluster, binary, (&dir, backups.made + backups.failed), clock).await;
        match last {
            Ok(last) => {
                backups.made += 1;
                made.push(last);
            }
            // Nothing is wrong with the cluster any more.
            Err(error) => backups.last_failure = format!("{error:#}"),
        }
        let fresh = Fresh::start(binary, &dir).await?;
        let step = made.len().div_ceil(RESTORED_MAX).max(1);
        let last = made.len().saturating_sub(1);
        for (at, made) in made.iter().enumerate() {
            if at % step == 0 || at == last {
                backups.restored.push(fresh.restore(made, config.source()).await?);
            }
        }
        std::fs::remove_dir_all(&dir).context("remove the backups")?;
        Ok(backups)
    }
}

/// The binary under test, as the nodes run it.
fn binary_of(cluster: &Cluster) -> anyhow::Result<PathBuf> {
    let line = cluster.nodes.first().map(|node| &node.line).context("there is no node")?;
    line.first().map(PathBuf::from).context("a node has no program")
}

async fn save(
    cluster: Arc<Cluster>,
    dir: PathBuf,
    clock: Instant,
    stop: Arc<AtomicBool>,
) -> (Vec<Made>, Backups) {
    let (mut made, mut backups) = (Vec::new(), Backups::default());
    while !stop.load(Ordering::SeqCst) {
        let one = async {
            let binary = binary_of(&cluster)?;
            make(&cluster, &binary, (&dir, backups.made + backups.failed), clock).await
        };
        match one.await {
            Ok(one) => {
                backups.made += 1;
                made.push(one);
            }
            Err(error) => {
                backups.failed += 1;
                if backups.failures.len() < TOLD_MAX {
                    backups.failures.push(format!("{error:#}"));
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    (made, backups)
}

/// Makes a backup through one access node, another one each time.
async fn make(
    cluster: &Cluster,
    binary: &Path,
    (dir, number): (&Path, u64),
    clock: Instant,
) -> anyhow::Result<Made> {
    let access: Vec<_> = cluster.of(Role::Access).filter(|node| node.alive()).collect();
    let at = usize::try_from(number).unwrap_or_default() % access.len().max(1);
    let node = access.get(at).context("no access node runs")?;
    let dir = dir.join(number.to_string());
    let micros = || u64::try_from(clock.elapsed().as_micros()).unwrap_or(u64::MAX);
    let start_us = micros();
    let (pg, flight) = (node.address(PG), node.address(FLIGHT));
    let to = dir.to_string_lossy().into_owned();
    let line = ["backup", "create", "--to", &to, "--pg", &pg, "--flight", &flight];
    run(binary, &line).await.with_context(|| format!("through {}", node.name))?;
    Ok(Made { dir, start_us, end_us: micros() })
}

/// Runs the binary to its end; it must succeed.
async fn run(binary: &Path, line: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new(binary);
    command.args(line).kill_on_drop(true).stdin(Stdio::null());
    let output = tokio::time::timeout(LIMIT, command.output()).await;
    let output = output.with_context(|| format!("{} took over {LIMIT:?}", line.join(" ")))??;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// A cluster in one process, which ends with this value.
struct Fresh {
    binary: PathBuf,
    pg: String,
    flight: String,
    _process: tokio::process::Child,
}

impl Fresh {
    async fn start(binary: &Path, dir: &Path) -> anyhow::Result<Self> {
        let dir = dir.join("fresh");
        std::fs::create_dir_all(&dir).context("make the directory of a cluster")?;
        let log = std::fs::File::create(dir.join("log")).context("make a log")?;
        let mut command = Command::new(binary);
        command.args(["dev", "--data", "2", "--base-port", "0", "--dir"]).arg(&dir);
        command.kill_on_drop(true).stdin(Stdio::null());
        command.stdout(log.try_clone().context("share a log")?).stderr(log);
        let process = command.spawn().context("start a cluster")?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Some((pg, flight)) = addresses(&dir)
                && let Ok(sql) = Sql::at(&pg).await
                && sql.run("SELECT 1").await.is_ok()
            {
                return Ok(Self { binary: binary.to_owned(), pg, flight, _process: process });
            }
            if Instant::now() > deadline {
                bail!("the fresh cluster does not come up; its log is in {}", dir.display());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Restores a backup, reads what is there, and makes room for the next.
    async fn restore(&self, made: &Made, source: Source) -> anyhow::Result<Restored> {
        let manifest = std::fs::read(made.dir.join("manifest.json")).context("read a manifest")?;
        let manifest: Value = serde_json::from_slice(&manifest).context("read a manifest")?;
        let snapshot = manifest.pointer("/backup/snapshot").and_then(Value::as_u64);
        let snapshot = snapshot.context("a manifest has no snapshot")?;
        let (start_us, end_us) = (made.start_us, made.end_us);
        let mut restored = Restored { snapshot, start_us, end_us, ..Restored::default() };
        let from = made.dir.to_string_lossy().into_owned();
        let line =
            ["backup", "restore", "--from", &from, "--pg", &self.pg, "--flight", &self.flight];
        if let Err(error) = run(&self.binary, &line).await {
            restored.error = format!("{error:#}");
        }
        let sql = Sql::at(&self.pg).await?;
        let tables =
            "SELECT table_schema, table_name FROM hypertide.definitions WHERE position = 1";
        let tables = sql.run(tables).await?;
        let there = |name: &str| tables.iter().any(|row| row.get(1) == Some(name));
        if restored.error.is_empty() {
            read(&sql, there, source, &mut restored).await?;
        }
        for row in &tables {
            let (schema, name) = (row.get(0).unwrap_or_default(), row.get(1).unwrap_or_default());
            sql.run(&format!("DROP TABLE \"{schema}\".\"{name}\"")).await?;
        }
        Ok(restored)
    }
}

/// The addresses of the one access node, once they are written.
fn addresses(dir: &Path) -> Option<(String, String)> {
    let endpoints: Value =
        serde_json::from_slice(&std::fs::read(dir.join("endpoints.json")).ok()?).ok()?;
    let nodes = endpoints.get("nodes")?.as_array()?;
    let node = nodes.iter().find(|node| node.get("pg").is_some())?;
    let field = |name: &str| node.get(name)?.as_str().map(str::to_owned);
    Some((field("pg")?, field("flight")?))
}

/// Reads what was restored.
async fn read(
    sql: &Sql,
    there: impl Fn(&str) -> bool,
    source: Source,
    restored: &mut Restored,
) -> anyhow::Result<()> {
    let rows = sql.run_within("SELECT 0, time, series, uid, value, note FROM m", LIMIT).await?;
    let cells = |row: &SimpleQueryRow| {
        (0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect::<Vec<_>>()
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    if let Answer::Rows { uids, twice, odd, .. } = rows_answer(&source, &rows) {
        (restored.uids, restored.twice, restored.odd) = (uids, twice, odd);
    }
    for (table, pairs) in [
        ("lists", &mut restored.lists),
        ("accounts", &mut restored.accounts),
        ("counters", &mut restored.counters),
    ] {
        if there(table) {
            let rows = sql.run_within(&format!("SELECT key, value FROM {table}"), LIMIT).await?;
            let number = |row: &SimpleQueryRow, at: usize| row.get(at)?.parse::<i64>().ok();
            let pair = |row| Some((u64::try_from(number(row, 0)?).ok()?, number(row, 1)?));
            pairs.extend(rows.iter().filter_map(pair));
            pairs.sort_unstable();
        }
    }
    Ok(())
}
