//! The clients: each does one statement after the other at its access node, and goes to another one when it gets no
//! answer. All are tasks of this process and share its monotonic clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    client::{Client, Failure},
    cluster::{Cluster, Node, Role},
    config::Config,
    history::{Action, Answer, Op, Outcome, Rule},
    workload::{Next, Workload, rows::Source},
};

/// Time for one statement, before the factor for slow machines.
const STATEMENT_SECONDS: u64 = 8;
/// Pause before the next connection after one that was refused.
const RECONNECT_DELAY: Duration = Duration::from_millis(300);
/// Attempts of a statement with a name for retries.
const ATTEMPTS_MAX: u32 = 6;
/// Acknowledged statements with a name that are sent once more all the same, of 100.
const AGAIN_PERCENT: u64 = 20;

/// What the clients share.
#[derive(Debug)]
pub(crate) struct Load {
    cluster: Arc<Cluster>,
    clock: Instant,
    source: Source,
    limit: Duration,
    pause_ms: u64,
    statements: AtomicU64,
    ops: AtomicU64,
    acks: AtomicU64,
    processes: AtomicU64,
    stop: AtomicBool,
    history: mpsc::UnboundedSender<Op>,
}

impl Load {
    /// The clients' common part; operations go to `history` as they end.
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        clock: Instant,
        config: &Config,
        history: mpsc::UnboundedSender<Op>,
    ) -> Self {
        Self {
            cluster,
            clock,
            source: config.source(),
            limit: Duration::from_micros(config.limit_us(STATEMENT_SECONDS)),
            pause_ms: config.pause_ms,
            statements: AtomicU64::new(0),
            ops: AtomicU64::new(0),
            acks: AtomicU64::new(0),
            processes: AtomicU64::new(config.clients),
            stop: AtomicBool::new(false),
            history,
        }
    }

    /// Starts the clients.
    pub(crate) fn start(self: &Arc<Self>, workload: &Workload, clients: u64) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for number in 0..clients {
            let next = Next::new(workload, self.source, number);
            tasks.spawn(Worker::new(Arc::clone(self), next, number).run());
        }
        tasks
    }

    /// Lets the clients end after the statement that they are at.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Statements that were acknowledged so far.
    pub(crate) fn acks(&self) -> u64 {
        self.acks.load(Ordering::SeqCst)
    }

    /// Every key that a statement may have written.
    pub(crate) fn all_keys(&self) -> Vec<u64> {
        let wids = 0..self.statements.load(Ordering::SeqCst);
        let puts = wids.flat_map(|wid| Rule::ALL.map(|rule| self.source.puts(wid, rule)));
        let mut keys: Vec<u64> = puts.flatten().map(|(key, _)| key).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Reads once after everything is healed, at this node; retried until it is answered or `deadline`. Whether it was.
    pub(crate) async fn closing_read(
        &self,
        node: &Node,
        action: Action,
        deadline: Instant,
    ) -> bool {
        loop {
            let start_us = self.now_us();
            let result = match Client::connect(node, self.source, self.limit * 4).await {
                Ok(mut client) => client.run(&action).await,
                Err(failure) => Err(failure),
            };
            let (answered, late) = (result.is_ok(), Instant::now() > deadline);
            self.note(Note { process: u64::MAX, node, start_us, closing: true }, &action, result);
            if answered || late {
                return answered;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn note(&self, note: Note<'_>, action: &Action, result: Result<Answer, Failure>) -> Outcome {
        let (outcome, answer, state, message) = match result {
            Ok(answer) => (Outcome::Ok, answer, String::new(), String::new()),
            Err(failure) => (failure.outcome, Answer::Nothing, failure.state, failure.message),
        };
        let op = Op {
            id: self.ops.fetch_add(1, Ordering::SeqCst),
            process: note.process,
            node: note.node.name.clone(),
            start_us: note.start_us,
            end_us: self.now_us(),
            action: action.clone(),
            outcome,
            answer,
            state,
            message,
            closing: note.closing,
        };
        self.acks.fetch_add(u64::from(outcome == Outcome::Ok), Ordering::SeqCst);
        // The receiver lives as long as the run.
        self.history.send(op).ok();
        outcome
    }
}

#[derive(Clone, Copy)]
struct Note<'a> {
    process: u64,
    node: &'a Node,
    start_us: u64,
    closing: bool,
}

struct Worker {
    load: Arc<Load>,
    next: Next,
    process: u64,
    /// Place of its access node among them.
    node: usize,
    client: Option<Client>,
}

impl Worker {
    fn new(load: Arc<Load>, next: Next, number: u64) -> Self {
        let node = usize::try_from(number).unwrap_or_default();
        Self { load, next, process: number, node, client: None }
    }

    async fn run(mut self) {
        while !self.load.stopped() {
            let wid = self.load.statements.fetch_add(1, Ordering::SeqCst);
            let action = self.next.action(wid);
            match action {
                Action::Insert { named: true, .. } => self.insist(&action).await,
                _ => {
                    self.once(&action).await;
                }
            }
            let pause = self.next.rng().range(0, 2 * self.load.pause_ms + 1);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Sends a statement with a name until it is acknowledged, each time through another access node.
    async fn insist(&mut self, action: &Action) {
        for _ in 0..ATTEMPTS_MAX {
            let outcome = self.once(action).await;
            let again = self.next.rng().chance(AGAIN_PERCENT);
            if outcome == Outcome::Ok && !again {
                return;
            }
            self.move_on();
            if self.load.stopped() {
                return;
            }
        }
    }

    async fn once(&mut self, action: &Action) -> Outcome {
        let load = Arc::clone(&self.load);
        let access: Vec<&Node> = load.cluster.of(Role::Access).collect();
        let Some(node) = access.get(self.node % access.len().max(1)).copied() else {
            return Outcome::Fail;
        };
        let start_us = load.now_us();
        let result = self.attempt(node, action).await;
        let lost = result.as_ref().is_err_and(|failure| failure.lost);
        let note = Note { process: self.process, node, start_us, closing: false };
        let outcome = load.note(note, action, result);
        if outcome == Outcome::Info {
            self.process = load.processes.fetch_add(1, Ordering::SeqCst);
        }
        if lost {
            self.move_on();
        }
        if outcome == Outcome::Fail && lost {
            // Nobody may be there: it is not asked again at once.
            tokio::time::sleep(RECONNECT_DELAY).await;
        }
        outcome
    }

    async fn attempt(&mut self, node: &Node, action: &Action) -> Result<Answer, Failure> {
        if self.client.is_none() {
            self.client = Some(Client::connect(node, self.load.source, self.load.limit).await?);
        }
        match &mut self.client {
            Some(client) => client.run(action).await,
            None => Err(Failure::never("connect", "no connection")),
        }
    }

    /// To the next access node.
    fn move_on(&mut self) {
        self.client = None;
        self.node += 1;
    }
}
