//! Group commit: all commands that wait become one proposal, at the leader one log entry.
//!
//! ```text
//! propose --unit--> queue --group of units--> leader here: one entry of the log
//!                                             leader elsewhere: one Propose call to it
//! ```
//!
//! A unit is the commands of one caller and stays together. While some groups are under way, later units gather, so that
//! the busier the log, the larger its entries. A unit that is known not to be in the log is tried again until its
//! deadline; one of unknown fate only when applying it twice is the same as once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use hypertide_proto::{
    error::{CODE_KEY, Code, RpcError},
    ids::Csn,
    wire::meta::{ProposeReply, ProposeRequest},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tonic::{Request, Status};

use crate::{
    Error,
    catalog::Command,
    leader::Leader,
    memory::now_ms,
    node::Answer,
    raft::{NotWritten, Proposal, decode, encode},
};

/// Units that may wait; a proposer waits for a place until its deadline.
const UNITS_MAX: usize = 16_384;
/// Bytes of commands in one group, unless one unit is larger.
const GROUP_BYTES: usize = 1 << 20;
/// Commands in one group.
const GROUP_COMMANDS: usize = 8_192;
/// Groups under way: one in the leader's fsync, one on its way to the followers, one to be ready.
const GROUPS_UNDER_WAY: usize = 3;
/// Pause before a unit that did not reach the log is tried again, unless the leader changes before.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Longest wait for the leader's answer to one group.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(10);

const _: () = assert!(GROUP_COMMANDS as u64 <= Csn::POSITION_MAX);

/// Commands that one message or caller may put into the log together.
pub(crate) const UNIT_COMMANDS_MAX: usize = GROUP_COMMANDS;

/// The index of the entry, and one answer a command.
type Written = (u64, Vec<Answer>);

/// Why a unit has no answers.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// It is not in the log and never will be.
    NotApplied(String),
    /// It may be in the log.
    Unknown(String),
}

/// How far a unit has come: how often it may still be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Proposed here.
    Local,
    /// Came from a node that did not know the leader: may be passed on to it.
    Passed,
    /// Came from a node that took this one for the leader.
    Final,
}

/// Whether a unit was taken from the queue or given up before: only one of the two can happen.
#[derive(Debug, Default)]
struct Taken(AtomicU8);

impl Taken {
    const WAITING: u8 = 0;
    const TAKEN: u8 = 1;

    fn take(&self) -> bool {
        let exchange = self.0.compare_exchange(
            Self::WAITING,
            Self::TAKEN,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        exchange.is_ok()
    }
}

struct Unit {
    commands: Vec<Command>,
    bytes: usize,
    origin: Origin,
    deadline: Instant,
    taken: Arc<Taken>,
    answer: oneshot::Sender<Result<Written, Failure>>,
}

/// Where commands enter.
#[derive(Clone, Debug)]
pub(crate) struct Committer {
    units: mpsc::Sender<Unit>,
    leader: Arc<Leader>,
}

impl Committer {
    /// Starts grouping; it ends with the last handle.
    pub(crate) fn start(leader: Arc<Leader>) -> Self {
        let (units, queue) = mpsc::channel(UNITS_MAX);
        tokio::spawn(run(queue, Arc::clone(&leader)));
        Self { units, leader }
    }

    /// Puts one command into the log.
    pub(crate) async fn propose(
        &self,
        command: Command,
        deadline: Instant,
    ) -> Result<(u64, Answer), Error> {
        let mut unknown: Option<String> = None;
        loop {
            let last = match self.submit(vec![command.clone()], Origin::Local, deadline).await {
                Ok((index, answers)) => match answers.into_iter().next() {
                    Some(answer) => return Ok((index, answer)),
                    None => return Err(Error::Unknown("the leader gave no answer".to_owned())),
                },
                Err(Failure::NotApplied(reason)) => reason,
                Err(Failure::Unknown(reason)) if !repeatable(&command) => {
                    return Err(Error::Unknown(reason));
                }
                Err(Failure::Unknown(reason)) => unknown.insert(reason).clone(),
            };
            if Instant::now() + RETRY_PAUSE >= deadline {
                return Err(match unknown {
                    Some(reason) => Error::Unknown(reason),
                    None => Error::Unavailable(last),
                });
            }
            self.leader.changed(RETRY_PAUSE).await;
        }
    }

    /// Puts commands into the log together, or says why not; tries once.
    pub(crate) async fn submit(
        &self,
        commands: Vec<Command>,
        origin: Origin,
        deadline: Instant,
    ) -> Result<Written, Failure> {
        let late = || Failure::NotApplied("the deadline passed before the log took it".to_owned());
        let stopped = || Failure::Unknown("this access node stops".to_owned());
        let bytes = commands.iter().map(command_bytes).sum();
        let (answer, written) = oneshot::channel();
        let taken = Arc::new(Taken::default());
        let unit = Unit { commands, bytes, origin, deadline, taken: Arc::clone(&taken), answer };
        let until = tokio::time::Instant::from_std(deadline);
        match tokio::time::timeout_at(until, self.units.send(unit)).await {
            Err(_) => return Err(late()),
            Ok(Err(_)) => return Err(Failure::NotApplied("this access node stops".to_owned())),
            Ok(Ok(())) => {}
        }
        match tokio::time::timeout_at(until, written).await {
            Ok(answered) => answered.map_err(|_| stopped())?,
            Err(_) if taken.take() => Err(late()),
            Err(_) => Err(Failure::Unknown("no answer from the log in time".to_owned())),
        }
    }
}

/// Whether applying the command twice gives what applying it once gives.
fn repeatable(command: &Command) -> bool {
    matches!(
        command,
        Command::Commit(_)
            | Command::Abort { .. }
            | Command::EnsureChunks { .. }
            | Command::Progress { .. }
            | Command::BlockNewChunks(_)
    )
}

/// About how large a command is in the log.
fn command_bytes(command: &Command) -> usize {
    const SMALL: usize = 256;
    match command {
        Command::Commit(record) => SMALL + record.parts.len() * SMALL,
        Command::EnsureChunks { points, .. } => {
            SMALL + points.iter().map(|point| 8 + 9 * point.len()).sum::<usize>()
        }
        Command::Progress { applied, .. } => SMALL + 18 * applied.len(),
        Command::DropChunks { chunks, .. } => SMALL + 9 * chunks.len(),
        Command::CreateTable { columns, .. } => SMALL + SMALL * columns.columns.len(),
        _ => SMALL,
    }
}

async fn run(mut queue: mpsc::Receiver<Unit>, leader: Arc<Leader>) {
    let under_way = Arc::new(Semaphore::new(GROUPS_UNDER_WAY));
    // A unit that did not fit into the group before.
    let mut next: Option<Unit> = None;
    loop {
        // First the permit, then the units: more of them gather while all groups are under way.
        let Ok(permit) = Arc::clone(&under_way).acquire_owned().await else { return };
        let first = match next.take() {
            Some(unit) => unit,
            None => match queue.recv().await {
                Some(unit) => unit,
                None => return,
            },
        };
        let mut size = (first.bytes, first.commands.len());
        let mut group = vec![first];
        while let Ok(unit) = queue.try_recv() {
            size = (size.0 + unit.bytes, size.1 + unit.commands.len());
            if size.0 > GROUP_BYTES || size.1 > GROUP_COMMANDS {
                next = Some(unit);
                break;
            }
            group.push(unit);
        }
        group.retain(|unit| unit.taken.take());
        if !group.is_empty() {
            tokio::spawn(run_group(group, Arc::clone(&leader), permit));
        }
    }
}

/// Brings one group into the log and answers its units.
async fn run_group(group: Vec<Unit>, leader: Arc<Leader>, _permit: OwnedSemaphorePermit) {
    if leader.here() {
        let written = write(&group, &leader).await;
        return answer(group, written);
    }
    let known = leader.known();
    let (onward, stuck): (Vec<Unit>, Vec<Unit>) = group
        .into_iter()
        .partition(|unit| unit.origin == Origin::Local || (unit.origin == Origin::Passed && known));
    answer(stuck, Err(Failure::NotApplied("this access node does not lead".to_owned())));
    if !onward.is_empty() {
        let written = forward(&onward, &leader).await;
        answer(onward, written);
    }
}

async fn write(group: &[Unit], leader: &Leader) -> Result<Written, Failure> {
    let commands = group.iter().flat_map(|unit| unit.commands.iter().cloned()).collect();
    let proposal = Proposal { time_ms: now_ms(), commands };
    leader.group().write(proposal).await.map_err(|error| match error {
        NotWritten::NotLeader => Failure::NotApplied("this access node does not lead".to_owned()),
        NotWritten::Unknown(reason) => Failure::Unknown(reason),
    })
}

/// Passes a group on to the leader. When none is known, to some other node, which may know.
async fn forward(group: &[Unit], leader: &Leader) -> Result<Written, Failure> {
    let not_applied = |error: &dyn std::fmt::Display| Failure::NotApplied(error.to_string());
    let (target, mut client) = leader.client().map_err(|error| not_applied(&error))?;
    let latest = group.iter().map(|unit| unit.deadline).max().unwrap_or_else(Instant::now);
    let within = latest.saturating_duration_since(Instant::now()).min(FORWARD_TIMEOUT);
    let commands = group.iter().flat_map(|unit| &unit.commands);
    let commands: Result<Vec<Bytes>, _> =
        commands.map(|command| encode(command).map(Bytes::from)).collect();
    let mut request = Request::new(ProposeRequest {
        cluster: leader.cluster_bytes(),
        commands: commands.map_err(|error| not_applied(&error))?,
        deadline_ms: u32::try_from(within.as_millis()).unwrap_or(u32::MAX),
        forwarded: leader.view().leader == Some(target),
        name: Bytes::copy_from_slice(&rand::random::<u128>().to_le_bytes()),
    });
    request.set_timeout(within);
    let sent = client.propose(request);
    tokio::pin!(sent);
    loop {
        tokio::select! {
            answer = &mut sent => return match answer {
                Ok(reply) => read_reply(group, reply.into_inner()),
                Err(status) => Err(failure(status)),
            },
            // A leader that was stopped, or cut off, may never answer, but another comes after it.
            () = leader.changed(FORWARD_TIMEOUT) => {
                if leader.view().leader.is_some_and(|now| now != target) {
                    let reason = format!("the leader changed while {target} was asked");
                    return Err(Failure::Unknown(reason));
                }
            }
        }
    }
}

fn read_reply(group: &[Unit], reply: ProposeReply) -> Result<Written, Failure> {
    let unreadable =
        |error: std::io::Error| Failure::Unknown(format!("unreadable answer: {error}"));
    let answers: Result<Vec<Answer>, _> =
        reply.answers.iter().map(|answer| decode(answer)).collect();
    let answers = answers.map_err(unreadable)?;
    let wanted: usize = group.iter().map(|unit| unit.commands.len()).sum();
    if answers.len() == wanted {
        return Ok((reply.index, answers));
    }
    Err(Failure::Unknown(format!("{} answers to {wanted} commands", answers.len())))
}

/// What the status of a call says about its effect.
fn failure(status: Status) -> Failure {
    let connected = !caused_by_connecting(&status);
    // Only our own answers carry a code of ours; without one the call may have been carried out.
    let answered = status.metadata().contains_key(CODE_KEY);
    let error = RpcError::from(status);
    let refused = answered
        && matches!(
            error.code,
            Code::NotLeader
                | Code::Unavailable
                | Code::Overloaded
                | Code::WrongNode
                | Code::Invalid
                | Code::TooLarge
                | Code::Version
        );
    if refused || !connected {
        Failure::NotApplied(error.message)
    } else {
        Failure::Unknown(error.message)
    }
}

fn caused_by_connecting(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Hands every unit its part.
fn answer(group: Vec<Unit>, written: Result<Written, Failure>) {
    let (index, mut answers) = match written {
        Ok((index, answers)) => (index, answers.into_iter()),
        Err(failure) => {
            for unit in group {
                // Who does not wait any more needs no answer.
                let _ = unit.answer.send(Err(failure.clone()));
            }
            return;
        }
    };
    for unit in group {
        let own: Vec<Answer> = answers.by_ref().take(unit.commands.len()).collect();
        let _ = unit.answer.send(Ok((index, own)));
    }
}
