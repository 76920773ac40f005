//! Processes of a local cluster: whether one lives, and signals to it.

use std::{
    fs,
    os::unix::ffi::OsStrExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use tokio::{
    signal::unix::{self, SignalKind},
    sync::watch,
};

use crate::endpoints::Node;

/// Pause between two looks at a process that is to end.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Whether the node's process lives.
///
/// A number alone proves nothing, for the system gives it out again: the process must also run on the node's directory.
/// One that has ended and was not waited for has no command line any more.
pub(crate) fn alive(node: &Node) -> bool {
    let cmdline = fs::read(format!("/proc/{}/cmdline", node.pid));
    cmdline.is_ok_and(|cmdline| runs_on(&cmdline, &node.dir))
}

fn runs_on(cmdline: &[u8], dir: &Path) -> bool {
    let arguments: Vec<&[u8]> = cmdline.split(|byte| *byte == 0).collect();
    let names_dir = |pair: &[&[u8]]| {
        pair.first().is_some_and(|flag| *flag == b"--dir")
            && pair.last().is_some_and(|given| *given == dir.as_os_str().as_bytes())
    };
    arguments.windows(2).any(names_dir)
}

/// Sends a signal to the node's process; false when it does not live.
pub(crate) fn send(node: &Node, signal: Signal) -> anyhow::Result<bool> {
    if !alive(node) {
        return Ok(false);
    }
    let pid = i32::try_from(node.pid).context("the process id is out of range")?;
    match signal::kill(Pid::from_raw(pid), signal) {
        Ok(()) => Ok(true),
        Err(nix::errno::Errno::ESRCH) => Ok(false),
        Err(error) => {
            Err(error).with_context(|| format!("send {signal} to {} (pid {pid})", node.name))
        }
    }
}

/// Waits until the node's process has ended; false when it lives at the deadline.
pub(crate) async fn ended(node: &Node, deadline: Instant) -> bool {
    while alive(node) {
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    true
}

/// Asks the node's process to end, and ends it by force at the deadline.
pub(crate) async fn stop(node: &Node, deadline: Instant) -> anyhow::Result<Stopped> {
    if !send(node, Signal::SIGTERM)? {
        return Ok(Stopped::WasNotRunning);
    }
    // A paused process would not see the request.
    send(node, Signal::SIGCONT)?;
    if ended(node, deadline).await {
        return Ok(Stopped::InOrder);
    }
    kill(node).await?;
    Ok(Stopped::ByForce)
}

/// How a process came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// It did not run.
    WasNotRunning,
    /// It ended when it was asked to.
    InOrder,
    /// It had to be killed.
    ByForce,
}

/// Ends the node's process at once; false when it did not live.
pub(crate) async fn kill(node: &Node) -> anyhow::Result<bool> {
    if !send(node, Signal::SIGKILL)? {
        return Ok(false);
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    if ended(node, deadline).await {
        return Ok(true);
    }
    anyhow::bail!("{} (pid {}) does not end", node.name, node.pid)
}

/// Turns the first SIGTERM or SIGINT into the order to stop; a second one ends the process as usual.
pub(crate) fn on_stop_signal(stop: watch::Sender<bool>) -> anyhow::Result<()> {
    let mut terminate = unix::signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = unix::signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stop.send_replace(true);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(1);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ours_only_on_its_directory() {
        let dir = Path::new("/c/d1");
        assert!(runs_on(b"/bin/hypertide\0data\0--dir\0/c/d1\0--name\0d1\0", dir));
        assert!(!runs_on(b"/bin/hypertide\0data\0--dir\0/c/d10\0", dir));
        assert!(!runs_on(b"/bin/sh\0/c/d1\0", dir));
        assert!(!runs_on(b"", dir));
    }
}
