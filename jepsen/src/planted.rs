//! Servers with a planted bug: each must be found, and by the checker that should. A checker that never failed is not
//! trusted.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use crate::{SharedArgs, cluster::command, results::Results, run::Run, tidy_up};

/// A bug, what brings it to light, and who has to see it.
struct Bug {
    /// Its feature.
    name: &'static str,
    workload: &'static str,
    faults: &'static str,
    /// Any of these.
    checkers: &'static [&'static str],
    /// Data nodes, where the number matters.
    data: Option<u8>,
}

const fn bug(
    name: &'static str,
    (workload, faults): (&'static str, &'static str),
    checkers: &'static [&'static str],
) -> Bug {
    Bug { name, workload, faults, checkers, data: None }
}

const BUGS: [Bug; 8] = [
    bug("bug_no_dedupe", ("retry", "none"), &["C4"]),
    bug("bug_reply_before_apply", ("insert", "none"), &["C1", "C6"]),
    bug("bug_visible_per_chunk", ("insert", "none"), &["C3", "C5"]),
    bug("bug_skip_journal_fsync", ("insert", "power-all,power,kill-all"), &["C1"]),
    bug("bug_ignore_joining", ("insert", "move"), &["C1", "C5"]),
    bug("bug_accept_stale_acks", ("insert", "move"), &["C1", "C5"]),
    bug("bug_truncate_on_checksum_error", ("insert", "flip,zero"), &["C1"]),
    // With two data nodes only, so that no third one takes the chunks over.
    Bug { data: Some(2), ..bug("bug_epoch_rule_off", ("hold", "swing"), &["C12"]) },
];

/// What of it to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Bugs, comma-separated [default: all].
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Seconds of load of each attempt.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Seconds of load in which a bug has to be found, over its attempts.
    #[arg(long, default_value_t = 600)]
    within: u64,
    /// Seed of the first attempt; the next ones count on [default: a random one].
    #[arg(long)]
    seed: Option<u64>,
    /// Directory for the runs.
    #[arg(long, default_value = "runs")]
    dir: PathBuf,
    #[command(flatten)]
    shared: SharedArgs,
}

/// What became of a bug.
struct Found {
    attempts: u64,
    took: Duration,
    /// The last attempt.
    results: Results,
    /// The checkers among those that should.
    by: Vec<String>,
}

/// Looks for every bug; whether all were found. Also runs the same binary without any bug shown, which must be valid.
pub(crate) async fn run(args: Args) -> anyhow::Result<bool> {
    if let Some(unknown) = args.only.iter().find(|only| BUGS.iter().all(|bug| bug.name != **only)) {
        bail!("no planted bug {unknown:?}");
    }
    let wanted = |bug: &&Bug| args.only.is_empty() || args.only.iter().any(|only| only == bug.name);
    let mut table = String::from(
        "| Bug | Workload | Faults | Found by | Also hurt | Seed | Attempts | Seconds in all |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    let mut good = true;
    for bug in BUGS.iter().filter(wanted) {
        let found = look_for(bug, &args).await?;
        good &= !found.by.is_empty();
        table += &line(bug, &found);
        println!("{}", line(bug, &found));
    }
    println!("{table}");
    Ok(good)
}

async fn look_for(bug: &Bug, args: &Args) -> anyhow::Result<Found> {
    let first = args.seed.unwrap_or_else(rand::random);
    let start = Instant::now();
    let mut attempts = 0;
    loop {
        let seed = first.wrapping_add(attempts);
        attempts += 1;
        let results = attempt(bug, args, seed).await?;
        let hurt = |checker: &&&str| results.violation_counts.contains_key(**checker);
        let by: Vec<String> =
            bug.checkers.iter().filter(hurt).map(|name| (*name).to_owned()).collect();
        if !by.is_empty() || (attempts + 1) * args.seconds > args.within {
            return Ok(Found { attempts, took: start.elapsed(), results, by });
        }
    }
}

async fn attempt(bug: &Bug, args: &Args, seed: u64) -> anyhow::Result<Results> {
    let faults: Vec<String> = bug.faults.split(',').map(str::to_owned).collect();
    let shared = SharedArgs {
        planted: Some(bug.name.to_owned()),
        data: bug.data.unwrap_or(args.shared.data),
        ..args.shared.clone()
    };
    let config = shared.config(bug.workload, &faults, (seed, args.seconds))?;
    if !holds(&config.binary, bug.name).await {
        bail!("{} was built without {}", config.binary, bug.name);
    }
    let dir = args.dir.join(format!("{}-{seed}", bug.name));
    eprintln!("{}: {} under {}, seed {seed}", bug.name, bug.workload, bug.faults);
    let results = Run { config, dir: dir.clone(), schedule: None }.execute().await;
    let results = results.with_context(|| format!("{}, seed {seed}", bug.name))?;
    if !args.shared.keep {
        tidy_up(&dir)?;
    }
    Ok(results)
}

/// Whether a binary was built with a bug: the name that its switch compares with is in it then.
async fn holds(binary: &str, bug: &str) -> bool {
    command::run(&["grep", "-q", "-a", bug, binary]).await.is_ok()
}

fn line(bug: &Bug, found: &Found) -> String {
    let of = |checker: &String| {
        let count = found.results.violation_counts.get(checker).copied().unwrap_or_default();
        format!("{checker}: {count}")
    };
    let by = match found.by.is_empty() {
        true => "**not found**".to_owned(),
        false => found.by.iter().map(of).collect::<Vec<String>>().join(", "),
    };
    let also = found.results.violation_counts.keys().filter(|name| !found.by.contains(name));
    let also: Vec<String> = also.map(of).collect();
    format!(
        "| `{}` | {} | {} | {by} | {} | {} | {} | {} |\n",
        bug.name,
        bug.workload,
        bug.faults,
        if also.is_empty() { "-".to_owned() } else { also.join(", ") },
        found.results.seed,
        found.attempts,
        found.took.as_secs()
    )
}
