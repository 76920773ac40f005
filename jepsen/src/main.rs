//! The fault-injection harness of Hypertide: its command line.
//!
//! The harness drives the binary `hypertide` from outside, by its public endpoints and by process signals only.
//!
//! - [`workload`] says what clients ask for; [`load`] has them ask, through [`client`] and [`flight`]; [`history`] is the
//!   words in which it is recorded.
//! - [`cluster`] starts and ends the processes, each in a network namespace of its own where that is possible.
//! - [`nemesis`] hurts them by a schedule that follows from the seed, and proves that it did.
//! - [`backup`] saves the cluster while it is hurt, and restores it elsewhere.
//! - [`checker`] has the properties, each a pure function of what was recorded; [`results`] and [`timeline`] tell them.
//! - [`run`] puts a run together, [`suite`] many; [`shrink`] looks for fewer faults that do the same.
//! - [`planted`] runs servers with known bugs, which must be found.

#![expect(clippy::print_stdout, reason = "standard output is what the command line answers on")]

mod backup;
mod checker;
mod client;
mod closing;
mod cluster;
mod config;
mod flight;
mod history;
mod load;
mod metrics;
mod nemesis;
mod planted;
mod results;
mod run;
mod seed;
mod shrink;
mod suite;
mod timeline;
mod workload;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};

use config::Config;
use nemesis::plan::{Event, Record, Target};
use results::Results;
use run::Run;

/// Faults, workloads and checkers against real Hypertide processes.
#[derive(Debug, Parser)]
#[command(name = "hypertide-jepsen", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run one workload under a set of faults, and check its history.
    Run(RunArgs),
    /// Run many workloads and sets of faults, one after the other.
    Suite(suite::Args),
    /// Check a recorded run again.
    Check {
        /// Directory of the run.
        run: PathBuf,
    },
    /// Do a recorded run again: the same statements, and the faults that were done then.
    Replay {
        /// Directory of the run.
        run: PathBuf,
        /// Directory for the new run [default: the old one's with `-replay`].
        #[arg(long)]
        dir: Option<PathBuf>,
        /// The binary under test [default: the one of the recorded run].
        #[arg(long)]
        binary: Option<PathBuf>,
    },
    /// Look for fewer faults with which the run fails in the same way.
    Shrink {
        /// Directory of the run.
        run: PathBuf,
        /// Times that the run is done again, at most.
        #[arg(long, default_value_t = 20)]
        attempts: u32,
    },
    /// Show that each planted bug is found by the checker that should find it.
    Planted(planted::Args),
    /// List workloads and kinds of faults.
    List,
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Workload to run; `list` names them.
    #[arg(long, default_value = "mixed")]
    workload: String,
    /// Kinds or groups of faults, comma-separated; none runs a healthy cluster.
    #[arg(long, alias = "faults", value_delimiter = ',', default_value = "none")]
    nemesis: Vec<String>,
    /// Minutes of load.
    #[arg(long)]
    minutes: Option<u64>,
    /// Seconds of load, when not given in minutes.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Seed of operations and faults [default: a random one, which is printed].
    #[arg(long)]
    seed: Option<u64>,
    /// Directory for the run [default: runs/WORKLOAD-FAULTS-SEED].
    #[arg(long)]
    dir: Option<PathBuf>,
    #[command(flatten)]
    shared: SharedArgs,
}

/// What every new run takes.
#[derive(Clone, Debug, clap::Args)]
struct SharedArgs {
    /// The binary under test [default: `hypertide` beside this program].
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Access nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    access: u8,
    /// Data nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=64))]
    data: u8,
    /// Clients at one time.
    #[arg(long, default_value_t = 6)]
    clients: u64,
    /// Mean pause of a client between two statements, in milliseconds.
    #[arg(long, default_value_t = 60)]
    pause_ms: u64,
    /// What limits of time are multiplied with, for a slow machine or a debug build; invariants are not touched.
    #[arg(long, default_value_t = 1.0)]
    slack: f64,
    /// Bug that a binary with planted bugs is to show; the run is to fail then.
    #[arg(long)]
    planted: Option<String>,
    /// Have nodes on loopback addresses, with the link proxy between them, though namespaces could be made.
    #[arg(long)]
    loopback: bool,
    /// Make backups all the time, and in the end restore some of them and compare them with the history.
    #[arg(long)]
    backup: bool,
    /// How much faster than usual faults follow on each other.
    #[arg(long, default_value_t = 1.0)]
    rate: f64,
    /// Keep the nodes' data also after a run without violations.
    #[arg(long)]
    keep: bool,
}

impl SharedArgs {
    fn config(
        &self,
        workload: &str,
        names: &[String],
        options: (u64, u64),
    ) -> anyhow::Result<Config> {
        let found = workload::named(workload);
        let found = found.with_context(|| format!("no workload {workload:?}; see `list`"))?;
        let faults = nemesis::plan::kinds(names);
        let faults = faults
            .map_err(|name| anyhow::anyhow!("no kind or group of faults {name:?}; see `list`"))?;
        if !(self.slack.is_finite() && self.slack >= 1.0) {
            bail!("--slack must be 1 or more");
        }
        if !(self.rate.is_finite() && self.rate > 0.0) {
            bail!("--rate must be over 0");
        }
        let binary = binary(self.binary.as_deref())?;
        let (seed, seconds) = options;
        Ok(Config {
            workload: workload.to_owned(),
            faults,
            seed,
            seconds,
            access: self.access,
            data: self.data,
            clients: self.clients,
            pause_ms: self.pause_ms,
            slack: self.slack,
            version: version(&binary)?,
            binary: binary.to_string_lossy().into_owned(),
            times: found.times,
            planted: self.planted.clone(),
            loopback: self.loopback,
            backup: self.backup,
            rate: self.rate,
        })
    }
}

fn binary(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let beside = || {
        let own = std::env::current_exe().context("find this program")?;
        anyhow::Ok(own.with_file_name("hypertide"))
    };
    let path = given.map_or_else(beside, |path| Ok(path.to_owned()))?;
    path.canonicalize().with_context(|| format!("no binary at {}; say --binary", path.display()))
}

fn version(binary: &Path) -> anyhow::Result<String> {
    let output = Command::new(binary).arg("--version").output();
    let output = output.with_context(|| format!("run {}", binary.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Prints what a run came to; gives whether it was good.
fn report(dir: &Path, results: &Results) -> bool {
    println!("{}", serde_json::to_string_pretty(results).unwrap_or_default());
    let word = if results.valid { "valid" } else { "NOT VALID" };
    eprintln!("{word}: {} (seed {})", dir.display(), results.seed);
    results.valid
}

/// Removes the nodes' data; their logs stay.
fn tidy_up(dir: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(dir.join("nodes")).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            std::fs::remove_dir_all(entry.path()).context("remove a node's data")?;
        }
    }
    Ok(())
}

async fn run_one(args: RunArgs) -> anyhow::Result<bool> {
    let seed = args.seed.unwrap_or_else(rand::random);
    let seconds = args.minutes.map_or(args.seconds, |minutes| minutes * 60);
    let config = args.shared.config(&args.workload, &args.nemesis, (seed, seconds))?;
    let name = format!("{}-{}-{seed}", args.workload, args.nemesis.join("+"));
    let dir = args.dir.unwrap_or_else(|| Path::new("runs").join(name));
    eprintln!(
        "seed {seed}: {} under {} in {}",
        args.workload,
        args.nemesis.join(", "),
        dir.display()
    );
    let results = Run { config, dir: dir.clone(), schedule: None }.execute().await?;
    if results.valid && !args.shared.keep {
        tidy_up(&dir)?;
    }
    Ok(report(&dir, &results))
}

/// The faults of a run that were begun, after as many acknowledgements, on the nodes that they hit, or on whoever leads.
fn done(records: Vec<Record>) -> Vec<Event> {
    let begun = records.into_iter().filter(|record| !record.nodes.is_empty());
    let again = |Record { event, nodes, acks, .. }: Record| {
        let target = match event.target {
            Target::Leader => Target::Leader,
            Target::Nodes(_) => Target::Nodes(nodes),
        };
        Event { target, after_acks: Some(acks), ..event }
    };
    let mut events: Vec<Event> = begun.map(again).collect();
    events.sort_by_key(|event| (event.at_ms, event.id));
    events
}

async fn replay(old: &Path, dir: Option<PathBuf>, with: Option<&Path>) -> anyhow::Result<bool> {
    let evidence = run::read(old)?;
    let mut config = evidence.config;
    if let Some(with) = with {
        let path = binary(Some(with))?;
        config.version = version(&path)?;
        config.binary = path.to_string_lossy().into_owned();
    }
    let name = old.file_name().unwrap_or_default().to_string_lossy();
    let dir = dir.unwrap_or_else(|| old.with_file_name(format!("{name}-replay")));
    let schedule = Some(done(evidence.faults));
    let results = Run { config, dir: dir.clone(), schedule }.execute().await?;
    Ok(report(&dir, &results))
}

fn list() {
    println!("workloads");
    for workload in workload::WORKLOADS {
        println!("  {:<10} {}", workload.name, workload.about);
    }
    println!(
        "\nfaults (groups: process, network, links, disk, corruption, files-io, resources, clocks, membership, everything, none)"
    );
    for kind in nemesis::plan::KINDS {
        println!("  {:<10} {}", kind.name(), kind.about().trim());
    }
}

async fn run_verb(verb: Verb) -> anyhow::Result<bool> {
    match verb {
        Verb::Run(args) => run_one(args).await,
        Verb::Suite(args) => suite::run(args).await,
        Verb::Check { run } => Ok(report(&run, &run::judge(&run)?)),
        Verb::Replay { run, dir, binary } => replay(&run, dir, binary.as_deref()).await,
        Verb::Shrink { run, attempts } => shrink::run(&run, attempts).await,
        Verb::Planted(args) => planted::run(args).await,
        Verb::List => {
            list();
            Ok(true)
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("hypertide-jepsen: start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run_verb(cli.verb)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("hypertide-jepsen: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn faults_are_a_list() {
        let line = "hypertide-jepsen run --workload append --nemesis kill,pause --minutes 2";
        let cli = Cli::try_parse_from(line.split(' ')).expect("it is valid");
        let Verb::Run(args) = cli.verb else { panic!("it is a run") };
        assert_eq!(args.nemesis, ["kill", "pause"]);
        assert_eq!(args.minutes, Some(2));
    }
}
