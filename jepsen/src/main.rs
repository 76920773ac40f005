//! The fault-injection harness of Hypertide: its command line.
//!
//! The harness drives the binary `hypertide` from outside, by its public endpoints and by process signals only. What it
//! is to do is not built yet: every verb says so and fails, so that nobody takes its silence for a passed run.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// Faults, workloads and checkers against real Hypertide processes.
#[derive(Debug, Parser)]
#[command(name = "hypertide-jepsen", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run one workload under one set of faults and check its history.
    Run(RunArgs),
    /// Run every workload under every set of faults that a time budget allows.
    Suite {
        /// Seconds for all runs together.
        #[arg(long, default_value_t = 3600)]
        seconds: u64,
        #[command(flatten)]
        shared: SharedArgs,
    },
    /// Check a recorded history again.
    Check {
        /// Directory of the run.
        run: PathBuf,
    },
    /// Run a recorded schedule of operations and faults again.
    Replay {
        /// Directory of the run.
        run: PathBuf,
    },
    /// Find a smaller schedule that fails in the same way.
    Shrink {
        /// Directory of the run.
        run: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Workload to run.
    #[arg(long)]
    workload: String,
    /// Kinds of faults, comma-separated; none runs a healthy cluster.
    #[arg(long, value_delimiter = ',')]
    faults: Vec<String>,
    /// Seconds of load.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    #[command(flatten)]
    shared: SharedArgs,
}

#[derive(Debug, clap::Args)]
struct SharedArgs {
    /// The binary under test.
    #[arg(long, default_value = "hypertide")]
    binary: PathBuf,
    /// Seed of operations and faults [default: a random one, which is printed].
    #[arg(long)]
    seed: Option<u64>,
    /// Access nodes.
    #[arg(long, default_value_t = 3)]
    access: u16,
    /// Data nodes.
    #[arg(long, default_value_t = 3)]
    data: u16,
    /// Directory for the run: history, logs, results.json.
    #[arg(long)]
    dir: PathBuf,
}

impl Verb {
    const fn name(&self) -> &'static str {
        match self {
            Self::Run(_) => "run",
            Self::Suite { .. } => "suite",
            Self::Check { .. } => "check",
            Self::Replay { .. } => "replay",
            Self::Shrink { .. } => "shrink",
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    eprintln!("hypertide-jepsen: {}: the harness is not built yet", cli.verb.name());
    ExitCode::FAILURE
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
        let line = "hypertide-jepsen run --workload append --faults kill,pause --dir /tmp/x";
        let cli = Cli::try_parse_from(line.split(' ')).expect("it is valid");
        let Verb::Run(args) = cli.verb else { panic!("it is a run") };
        assert_eq!(args.faults, ["kill", "pause"]);
    }
}
