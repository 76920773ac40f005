//! One process of the cluster under test.

use std::{
    fs::{File, OpenOptions},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::shim::Board;
use crate::checker::evidence::Usage;
use anyhow::{Context, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Pause between two looks at a process.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Time for a killed process to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Catalog and SQL.
    Access,
    /// Chunks.
    Data,
}

/// A node: its place, and its process when it has one.
#[derive(Debug)]
pub(crate) struct Node {
    /// `a1`, `d2`.
    pub(crate) name: String,
    /// What it does.
    pub(crate) role: Role,
    /// Its address, in its namespace or on loopback.
    pub(crate) ip: Ipv4Addr,
    /// Its network namespace, when it has one.
    pub(crate) namespace: Option<String>,
    /// Its data.
    pub(crate) dir: PathBuf,
    /// Its log.
    pub(crate) log: PathBuf,
    /// Program and arguments.
    pub(crate) line: Vec<String>,
    /// What its environment holds beside the harness's own.
    pub(crate) environment: Vec<(String, String)>,
    /// The switchboard of the shim that it loads, or why it loads none.
    pub(crate) board: Result<Board, String>,
    /// Held by whoever does something to the node.
    pub(crate) busy: tokio::sync::Mutex<()>,
    child: Mutex<Option<Child>>,
}

impl Node {
    /// A node that does not run yet.
    pub(crate) fn new(name: String, role: Role, ip: Ipv4Addr, place: &Path) -> Self {
        Self {
            role,
            ip,
            namespace: None,
            dir: place.join(&name),
            log: place.join(format!("{name}.log")),
            line: Vec::new(),
            environment: Vec::new(),
            board: Err("the run has no such faults".to_owned()),
            busy: tokio::sync::Mutex::new(()),
            child: Mutex::new(None),
            name,
        }
    }

    /// `ip:port` of an endpoint.
    pub(crate) fn address(&self, port: u16) -> String {
        format!("{}:{port}", self.ip)
    }

    /// Starts the process; its output is appended to the log.
    pub(crate) fn start(&self) -> anyhow::Result<()> {
        if self.alive() {
            bail!("{} runs already", self.name);
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("open {}", self.log.display()))?;
        let mut command = self.command(log)?;
        let child = command.spawn().with_context(|| format!("start {}", self.name))?;
        let pid = child.id().to_string();
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        std::fs::write(self.log.with_extension("pid"), pid).context("note the process id")
    }

    fn command(&self, log: File) -> anyhow::Result<Command> {
        let (program, arguments) = self.line.split_first().context("the node has no command")?;
        let mut command = match &self.namespace {
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace, program]);
                command
            }
            None => Command::new(program),
        };
        command.args(arguments);
        // What the user's shell holds must not reach the cluster.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("HYPERTIDE_") {
                command.env_remove(name);
            }
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Ok(board) = &self.board {
            board.ready_for_start()?;
        }
        let out = log.try_clone().context("share the log")?;
        command.stdin(Stdio::null()).stdout(out).stderr(log);
        Ok(command)
    }

    /// Id of the process, when it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let child = child.as_mut()?;
        matches!(child.try_wait(), Ok(None)).then(|| child.id())
    }

    /// Whether the process runs; a stopped one does.
    pub(crate) fn alive(&self) -> bool {
        self.pid().is_some()
    }

    /// Whether it was started and has ended.
    pub(crate) fn died(&self) -> bool {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).is_some() && !self.alive()
    }

    /// The switchboard for faults of its files and clock; why there is none.
    pub(crate) fn board(&self) -> Result<&Board, String> {
        self.board.as_ref().map_err(Clone::clone)
    }

    /// Sends a signal to the process.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid().with_context(|| format!("{} does not run", self.name))?;
        let pid = Pid::from_raw(i32::try_from(pid).context("process id")?);
        kill(pid, signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// Kills the process and waits until it is gone.
    pub(crate) async fn kill(&self) -> anyhow::Result<()> {
        if self.alive() {
            self.signal(Signal::SIGKILL)?;
        }
        self.gone(KILL_LIMIT).await
    }

    /// Waits until the process is gone.
    pub(crate) async fn gone(&self, limit: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        while self.alive() {
            if Instant::now() > deadline {
                bail!("{} does not end within {limit:?}", self.name);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// The state letter of the process in `/proc`, such as `T` of a stopped one.
    pub(crate) fn state(&self) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()?)).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    }

    /// What the process uses, when it runs.
    pub(crate) fn usage(&self, at_us: u64) -> Option<Usage> {
        let pid = self.pid()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let rss_kib = resident.split_whitespace().next()?.parse().ok()?;
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
        Some(Usage { node: self.name.clone(), at_us, pid: pid.into(), rss_kib, files })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(child) = child {
            // It may be gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
