//! One run from beginning to end: a cluster, clients, faults, the reads at the end, the verdict.

use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    backup::Saving,
    checker::evidence::{Closing, Evidence},
    client, closing,
    cluster::{Cluster, Role, Wish, leftover},
    config::Config,
    history::Op,
    load::Load,
    metrics,
    nemesis::{
        self, Nemesis,
        plan::{Event, Frame, Kind, Record, plan},
    },
    results::Results,
    timeline,
    workload::{self, Workload},
};

/// Load after the last fault, in seconds: long enough to see writes and reads come back.
const RECOVERY_SECONDS: u64 = 12;
/// Time in which nobody asks anything, when all was looked at: what clients had open is closed by then.
const IDLE_TIME: Duration = Duration::from_secs(6);
/// Time for the faults to be over after the load's time is over.
const FAULTS_LIMIT: Duration = Duration::from_secs(300);
/// How often acknowledgements are counted while a fault waits for them.
const ACKS_INTERVAL: Duration = Duration::from_millis(10);
/// Time for a client to end.
const CLIENTS_LIMIT: Duration = Duration::from_secs(120);

/// Environment variable by which a binary with planted bugs is told which one to show.
const PLANTED_VARIABLE: &str = "HYPERTIDE_PLANTED_BUG";
/// Size of a data node's own file system, where one is to be filled: more than the half GiB that a node keeps free.
const SMALL_DISK_MIB: u32 = 768;

/// What is to be run.
#[derive(Debug)]
pub(crate) struct Run {
    /// The run.
    pub(crate) config: Config,
    /// Its directory.
    pub(crate) dir: PathBuf,
    /// The schedule to do instead of the seed's.
    pub(crate) schedule: Option<Vec<Event>>,
}

impl Run {
    /// Runs it all and gives the verdict, which is in the directory too.
    pub(crate) async fn execute(self) -> anyhow::Result<Results> {
        let workload = workload::named(&self.config.workload);
        let workload = workload.with_context(|| format!("no workload {}", self.config.workload))?;
        let dir = fresh(&self.dir)?;
        leftover::sweep().await.context("remove what killed runs left")?;
        let note = leftover::Note::write(&dir)?;
        write_json(&dir.join("config.json"), &self.config)?;
        let cluster = Arc::new(Cluster::start(&self.wish(), &dir).await?);
        let worked = tokio::select! {
            worked = self.work(&cluster, workload, &dir) => worked,
            () = interrupted() => Err(anyhow::anyhow!("interrupted")),
        };
        cluster.remove().await.context("remove the cluster")?;
        drop(note);
        worked?;
        judge(&dir)
    }

    fn wish(&self) -> Wish {
        let planted = self.config.planted.iter();
        let planted = planted.map(|bug| (PLANTED_VARIABLE.to_owned(), bug.clone()));
        Wish {
            binary: PathBuf::from(&self.config.binary),
            access: self.config.access,
            data: self.config.data,
            spare: u8::from(self.config.faults.contains(&Kind::Add)),
            disk_mib: nemesis::needs_small_disks(&self.config.faults).then_some(SMALL_DISK_MIB),
            environment: planted.collect(),
            loopback: self.config.loopback,
            links: nemesis::needs_links(&self.config.faults),
            shim: nemesis::needs_shim(&self.config.faults),
        }
    }

    async fn work(
        &self,
        cluster: &Arc<Cluster>,
        workload: Workload,
        dir: &Path,
    ) -> anyhow::Result<()> {
        self.make_tables(cluster, &workload).await.context("make the tables")?;
        let clock = Instant::now();
        let (sender, receiver) = mpsc::unbounded_channel();
        let writer = tokio::spawn(write_lines(dir.join("history.jsonl"), receiver));
        let (faults, records) = mpsc::unbounded_channel();
        let scheduler = tokio::spawn(write_lines(dir.join("schedule.jsonl"), records));
        let load = Arc::new(Load::new(Arc::clone(cluster), clock, &self.config, sender));
        let sampling =
            tokio::spawn(metrics::sample(Arc::clone(cluster), clock, dir.join("metrics.csv")));
        let mut clients = load.start(&workload, self.config.clients);
        let saving = self.config.backup.then(|| Saving::start(Arc::clone(cluster), dir, clock));
        let started: Vec<String> = cluster
            .nodes
            .iter()
            .filter(|node| node.alive())
            .map(|node| node.name.clone())
            .collect();
        let replication = usize::from(self.config.replication());
        let nemesis = Arc::new(Nemesis::new(Arc::clone(cluster), clock, replication));
        // Whatever does not go as it should from here on is a part of the verdict, not the end of the run.
        let mut missing = Vec::new();
        let over = self.faults((&nemesis, &load), &started, faults).await;
        missing.extend(over.err().map(|error| format!("{error:#}")));
        missing.extend(nemesis.heal(&started).await);
        let micros = || u64::try_from(clock.elapsed().as_micros()).unwrap_or(u64::MAX);
        let healed_us = micros();
        tokio::time::sleep(Duration::from_secs(RECOVERY_SECONDS)).await;
        load.stop();
        saving.iter().for_each(Saving::stop);
        missing.extend(wait_all(&mut clients).await.err().map(|error| format!("{error:#}")));
        let stopped_us = micros();
        let mut closing = Closing { healed_us, stopped_us, missing, ..Closing::default() };
        closing::observe(cluster, &load, (&self.config, &workload), &mut closing, clock).await;
        if let Some(saving) = saving {
            match saving.end(&self.config).await {
                Ok(backups) => closing.backups = backups,
                Err(error) => closing.missing.push(format!("restore the backups: {error:#}")),
            }
        }
        closing.idle_us = Some(micros());
        tokio::time::sleep(IDLE_TIME).await;
        sampling.abort();
        let ended = closing::end_nodes(cluster, &mut closing).await;
        closing.missing.extend(ended.err().map(|error| format!("{error:#}")));
        closing::read_logs(cluster, &mut closing);
        write_json(&dir.join("closing.json"), &closing)?;
        drop(load);
        writer.await.context("write the history")??;
        drop(nemesis);
        scheduler.await.context("write the schedule")?
    }

    /// Makes the tables that the workload asks for, with what is in them from the beginning.
    async fn make_tables(&self, cluster: &Cluster, workload: &Workload) -> anyhow::Result<()> {
        use workload::{
            Kind as Doing,
            rows::{ACCOUNTS, BALANCE, COUNTERS, REGISTERS},
        };
        let sql = cluster.sql().await?;
        let replication = self.config.replication();
        let make = async |table: &str, columns: &str, space: &str| {
            sql.run(&format!("CREATE TABLE {table} (time timestamptz NOT NULL, {columns})"))
                .await?;
            sql.run(&format!(
                "SELECT create_distributed_hypertable('{table}', 'time', '{space}', \
                 chunk_time_interval => INTERVAL '1 day', replication_factor => {replication})"
            ))
            .await
        };
        make("m", "series text, uid bigint, value double precision, note text", "series").await?;
        if workload.does(Doing::Squeeze) {
            let sorted =
                "timescaledb.compress_segmentby = 'series', timescaledb.compress_orderby = 'time'";
            sql.run(&format!("ALTER TABLE m SET (timescaledb.compress, {sorted})")).await?;
        }
        make("lists", "key bigint, value bigint", "key").await?;
        if workload.does(Doing::Put) {
            let columns = "key bigint NOT NULL, value bigint, PRIMARY KEY (time, key)";
            make("keyed", columns, "key").await?;
        }
        for (doing, table, count, value) in [
            (Doing::Transfer, "accounts", ACCOUNTS, BALANCE),
            (Doing::Count, "counters", COUNTERS, 0),
            (Doing::Swap, "registers", REGISTERS, 0),
        ] {
            if workload.does(doing) {
                make(table, "key bigint, value bigint", "key").await?;
                let row = |key| format!("({}, {key}, {value})", client::updates::day(4, key));
                let rows: Vec<String> = (0..count).map(row).collect();
                sql.run(&format!("INSERT INTO {table} VALUES {}", rows.join(", "))).await?;
            }
        }
        Ok(())
    }

    /// Does every fault at its time; returns when all are over, or when they had time enough to be.
    async fn faults(
        &self,
        (nemesis, load): (&Arc<Nemesis>, &Arc<Load>),
        names: &[String],
        records: mpsc::UnboundedSender<Record>,
    ) -> anyhow::Result<()> {
        let start = Instant::now();
        let (access, data): (Vec<String>, Vec<String>) =
            names.iter().cloned().partition(|name| name.starts_with('a'));
        let length = Duration::from_secs(self.config.seconds);
        let length_ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        let frame = Frame {
            seed: self.config.seed,
            length_ms,
            access: &access,
            data: &data,
            rate: self.config.rate,
        };
        let events = self.schedule.clone().unwrap_or_else(|| plan(frame, &self.config.faults));
        let mut tasks = JoinSet::new();
        for event in events {
            wait_for(&event, start, load).await;
            let (nemesis, records, acks) = (Arc::clone(nemesis), records.clone(), load.acks());
            tasks.spawn(async move {
                let record = nemesis.run(event, acks).await;
                let Record { event, nodes, status, effective, proof, .. } = &record;
                eprintln!(
                    "fault {:>3} {:<10} {:<12} {status:?}{}: {proof}",
                    event.id,
                    event.kind.name(),
                    nodes.join(","),
                    if *effective { ", effective" } else { "" }
                );
                // The writer lives as long as the run.
                records.send(record).ok();
            });
        }
        tokio::time::sleep_until((start + length).into()).await;
        let over = tokio::time::timeout(FAULTS_LIMIT, async {
            while let Some(done) = tasks.join_next().await {
                done.context("a fault's task")?;
            }
            anyhow::Ok(())
        });
        over.await.context("the faults are not over in time")?
    }
}

/// Waits until a fault is due: at its time, or, when it was done before, after as many acknowledged statements as then,
/// and at twice the time at the latest.
async fn wait_for(event: &Event, start: Instant, load: &Load) {
    let at = Duration::from_millis(event.at_ms);
    let Some(acks) = event.after_acks else {
        return tokio::time::sleep_until((start + at).into()).await;
    };
    while load.acks() < acks && start.elapsed() < at * 2 {
        tokio::time::sleep(ACKS_INTERVAL).await;
    }
}

async fn wait_all(clients: &mut JoinSet<()>) -> anyhow::Result<()> {
    let all = tokio::time::timeout(CLIENTS_LIMIT, async {
        while let Some(done) = clients.join_next().await {
            done.context("a client's task")?;
        }
        anyhow::Ok(())
    });
    all.await.context("a client does not end")?
}

async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Makes the directory of a run; one with a run in it is not overwritten.
fn fresh(dir: &Path) -> anyhow::Result<PathBuf> {
    if dir.join("config.json").exists() {
        bail!("{} holds a run already", dir.display());
    }
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    dir.canonicalize().with_context(|| format!("resolve {}", dir.display()))
}

/// Checks a run that is over, and writes its results and its timeline.
pub(crate) fn judge(dir: &Path) -> anyhow::Result<Results> {
    let evidence = read(dir)?;
    let results = Results::of(&evidence);
    write_json(&dir.join("results.json"), &results)?;
    let page = timeline::page(&evidence, &results);
    std::fs::write(dir.join("timeline.html"), page).context("write the timeline")?;
    Ok(results)
}

/// The evidence of a run that is over.
pub(crate) fn read(dir: &Path) -> anyhow::Result<Evidence> {
    let mut ops: Vec<Op> = read_lines(&dir.join("history.jsonl"))?;
    ops.sort_by_key(|op| (op.end_us, op.id));
    Ok(Evidence {
        config: read_json(&dir.join("config.json"))?,
        ops,
        faults: read_lines(&dir.join("schedule.jsonl"))?,
        closing: read_json(&dir.join("closing.json"))?,
        usage: metrics::read(&dir.join("metrics.csv"))?,
    })
}

/// Reads a JSON file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not as written", path.display()))
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> anyhow::Result<()> {
    let text = serde_json::to_vec_pretty(value).context("serialise")?;
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn read_lines<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Vec<T>> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut values = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line.with_context(|| format!("read {}", path.display()))?;
        let value = serde_json::from_str(&line);
        values.push(value.with_context(|| format!("{} line {}", path.display(), number + 1))?);
    }
    Ok(values)
}

async fn write_lines<T: Serialize + Send + 'static>(
    path: PathBuf,
    mut values: mpsc::UnboundedReceiver<T>,
) -> anyhow::Result<()> {
    let file = File::create(&path).with_context(|| format!("make {}", path.display()))?;
    let mut file = BufWriter::new(file);
    while let Some(value) = values.recv().await {
        serde_json::to_writer(&mut file, &value).context("serialise")?;
        file.write_all(b"\n").with_context(|| format!("write {}", path.display()))?;
    }
    file.flush().with_context(|| format!("write {}", path.display()))
}

/// The nodes that hold chunks.
pub(crate) fn data_names(cluster: &Cluster) -> Vec<String> {
    cluster.of(Role::Data).filter(|node| node.alive()).map(|node| node.name.clone()).collect()
}
