//! Many runs, one after the other.

use std::path::PathBuf;

use anyhow::Context;

use crate::{SharedArgs, results::Results, run::Run, tidy_up};

/// The scenario in which backups are made.
const BACKUP: &str = "backup";
/// Workloads and faults of the scenarios.
const SCENARIOS: [(&str, &str, &str); 18] = [
    ("none", "mixed", "none"),
    ("kill", "mixed", "kill,kill-all,terminate,roll,power,power-all"),
    ("pause", "retry", "pause,freeze,throttle,memory,crowd"),
    ("partition", "mixed", "network"),
    ("lists", "append", "kill,pause,network"),
    ("disk", "insert", "files-io,full,files,throttle,kill"),
    ("corruption", "aggregate", "corruption,kill"),
    ("wipe", "stream", "wipe,stale,kill"),
    ("members", "retire", "membership,kill"),
    ("clocks", "retry", "clocks,kill,pause"),
    ("squeeze", "squeeze", "move,kill,pause"),
    ("sessions", "session", "kill,pause,reset"),
    ("keys", "keys", "kill,pause,network"),
    ("bank", "bank", "kill,pause,network"),
    ("counter", "counter", "kill,pause,network"),
    ("registers", "registers", "kill,pause,network"),
    (BACKUP, "mixed", "kill,pause,network"),
    ("everything", "mixed", "everything"),
];

/// The scenarios of a short suite: they need no privileges.
const SHORT: [&str; 2] = ["none", "kill"];

/// What of it to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Scenarios, comma-separated [default: all].
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Two scenarios that need no privileges.
    #[arg(long, conflicts_with = "only")]
    short: bool,
    /// Seconds of load of each run.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Seeds, comma-separated; each scenario runs with each [default: a random one].
    #[arg(long, value_delimiter = ',')]
    seed: Vec<u64>,
    /// Directory for the runs.
    #[arg(long, default_value = "runs")]
    dir: PathBuf,
    #[command(flatten)]
    shared: SharedArgs,
}

/// Runs the scenarios; whether all were good. What failed keeps its directory in full.
pub(crate) async fn run(mut args: Args) -> anyhow::Result<bool> {
    if args.seed.is_empty() {
        args.seed.push(rand::random());
    }
    if args.short {
        args.only = SHORT.map(str::to_owned).to_vec();
    }
    let known = |name: &String| SCENARIOS.iter().any(|(scenario, ..)| scenario == name);
    if let Some(unknown) = args.only.iter().find(|name| !known(name)) {
        anyhow::bail!("no scenario {unknown:?}");
    }
    let mut good = true;
    let mut table = String::from(
        "scenario      seed                  valid  ok/fail/info         faults effective  violations\n",
    );
    for (scenario, workload, faults) in SCENARIOS {
        if !args.only.is_empty() && args.only.iter().all(|name| name != scenario) {
            continue;
        }
        for seed in args.seed.clone() {
            let names: Vec<String> = faults.split(',').map(str::to_owned).collect();
            let mut config = args.shared.config(workload, &names, (seed, args.seconds))?;
            config.backup |= scenario == BACKUP;
            let dir = args.dir.join(format!("{scenario}-{seed}"));
            eprintln!(
                "scenario {scenario}: {workload} under {faults}, seed {seed}, in {}",
                dir.display()
            );
            let results = Run { config, dir: dir.clone(), schedule: None }.execute().await;
            let results = results.with_context(|| format!("scenario {scenario}, seed {seed}"))?;
            if results.valid && !args.shared.keep {
                tidy_up(&dir)?;
            }
            good &= results.valid;
            table += &line(scenario, &results);
        }
    }
    println!("{table}");
    Ok(good)
}

fn line(scenario: &str, results: &Results) -> String {
    let effective: u64 = results.faults.values().map(|count| count.effective).sum();
    let done: u64 = results.faults.values().map(|count| count.installed).sum();
    let ops = results.operations;
    let ops = format!("{}/{}/{}", ops.ok, ops.fail, ops.info);
    format!(
        "{scenario:<13} {:<21} {:<6} {ops:<20} {:<17} {:?}\n",
        results.seed,
        results.valid,
        format!("{effective} of {done}"),
        results.violation_counts
    )
}
