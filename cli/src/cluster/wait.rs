//! Waiting for the processes of a local cluster.

use std::{
    process::Child,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::local::Local;
use crate::{
    endpoints::Node,
    locate::Target,
    process::{self, Stopped},
};

/// Pause between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long a node may take to say whether it is healthy.
const HEALTH_LIMIT: Duration = Duration::from_secs(2);
/// How long a process may take to end when the start is given up.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Processes that were started and must not die while the cluster comes up.
#[derive(Debug)]
pub(crate) struct Starting<'a> {
    local: &'a Local,
    /// When to give up.
    pub(crate) deadline: Instant,
    bar: ProgressBar,
    children: Vec<(String, Child)>,
}

impl<'a> Starting<'a> {
    /// Nothing started yet.
    pub(crate) fn new(local: &'a Local, limit: Duration) -> Self {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { local, deadline: Instant::now() + limit, bar, children: Vec::new() }
    }

    /// Watches over a process.
    pub(crate) fn watch(&mut self, name: &str, child: Child) {
        self.children.push((name.to_owned(), child));
    }

    /// Says on a terminal what goes on.
    pub(crate) fn say(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    /// An error when a process has ended or the time is up.
    fn check(&mut self, waiting_for: &str) -> anyhow::Result<()> {
        for (name, child) in &mut self.children {
            if let Some(status) = child.try_wait().with_context(|| format!("watch {name}"))? {
                let tail = self.local.log_tail(name);
                bail!("{name} ended with {status}; the end of its log:\n{tail}");
            }
        }
        if Instant::now() >= self.deadline {
            let tails = self.children.iter().map(|(name, _)| {
                format!("the end of the log of {name}:\n{}", self.local.log_tail(name))
            });
            bail!("gave up waiting for {waiting_for}\n{}", tails.collect::<Vec<_>>().join("\n"));
        }
        Ok(())
    }

    /// Polls until `done` gives a value, the time is up or a process has ended.
    async fn until<T>(
        &mut self,
        waiting_for: &str,
        mut done: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        self.say(&format!("waiting for {waiting_for}"));
        loop {
            if let Some(value) = done().await? {
                return Ok(value);
            }
            self.check(waiting_for)?;
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until every process watched over has bound its ports.
    pub(crate) async fn bound(&mut self) -> anyhow::Result<()> {
        let local = self.local;
        let expected: Vec<(String, u32)> =
            self.children.iter().map(|(name, child)| (name.clone(), child.id())).collect();
        self.until("every process to bind its ports", async || {
            for (name, pid) in &expected {
                if local.started(name)?.is_none_or(|node| node.pid != *pid) {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await
    }

    /// Runs `work` while watching over the processes.
    pub(crate) async fn meanwhile<T>(
        &mut self,
        waiting_for: &str,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let watch = self.until(waiting_for, async || Ok(None::<T>));
        tokio::select! {
            outcome = work => outcome,
            failed = watch => failed,
        }
    }

    /// Waits until these nodes serve and the cluster counts every one of them as up.
    pub(crate) async fn served(&mut self, nodes: &[Node]) -> anyhow::Result<()> {
        for node in nodes {
            let waiting_for = format!("{} to serve", node.name);
            self.until(&waiting_for, async || Ok(healthy(&node.http).await.then_some(()))).await?;
        }
        let access = self.local.nodes()?.into_iter().filter(|node| node.pg.is_some());
        let target = Target { dir: None, access: access.map(|node| node.rpc).collect() };
        self.until("the cluster to count every node as up", async || {
            let Ok(status) = target.status().await else { return Ok(None) };
            let up = |node: &Node| {
                status.nodes.iter().any(|seen| seen.name == node.name && seen.state == "up")
            };
            Ok((!status.leader.is_empty() && nodes.iter().all(up)).then_some(()))
        })
        .await
    }

    /// Stops what was started here.
    pub(crate) async fn give_up(mut self) {
        let deadline = Instant::now() + STOP_LIMIT;
        for (name, child) in &mut self.children {
            let stopped = match self.local.started(name) {
                Ok(Some(node)) if node.pid == child.id() => process::stop(&node, deadline).await,
                _ => child.kill().map(|()| Stopped::ByForce).map_err(Into::into),
            };
            if let Err(error) = stopped {
                tracing::error!("stop {name}: {error:#}");
            }
            if let Err(error) = child.wait() {
                tracing::error!("wait for {name}: {error}");
            }
        }
        self.bar.finish_and_clear();
    }

    /// Lets the processes go on by themselves.
    pub(crate) fn done(self) {
        self.bar.finish_and_clear();
    }
}

/// Whether the node at this HTTP address says that it serves.
async fn healthy(address: &str) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").await?;
        let mut status_line = [0; "HTTP/1.0 200".len()];
        stream.read_exact(&mut status_line).await?;
        std::io::Result::Ok(status_line.ends_with(b" 200"))
    };
    timeout(HEALTH_LIMIT, ask).await.is_ok_and(|answer| answer.unwrap_or(false))
}
