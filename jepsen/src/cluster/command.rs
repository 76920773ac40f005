//! Short commands of the system, bounded in time.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, bail};
use tokio::{io::AsyncWriteExt, process::Command};

/// Time for one command.
const LIMIT: Duration = Duration::from_secs(15);

/// Runs a command to its end and gives what it printed; it must succeed.
pub(crate) async fn run(line: &[&str]) -> anyhow::Result<String> {
    run_with(line, "").await
}

/// The same, with text on its standard input.
pub(crate) async fn run_with(line: &[&str], input: &str) -> anyhow::Result<String> {
    let (program, arguments) = line.split_first().context("an empty command")?;
    let mut command = Command::new(program);
    command.args(arguments).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("run {program}"))?;
    let mut pipe = child.stdin.take().context("the command has no input")?;
    let work = async {
        pipe.write_all(input.as_bytes()).await.ok();
        drop(pipe);
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(LIMIT, work).await;
    let output = output.with_context(|| format!("{} took over {LIMIT:?}", line.join(" ")))??;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}: {}", line.join(" "), output.status, words.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
