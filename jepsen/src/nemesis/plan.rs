//! Which fault comes when: a function of the seed.

use serde::{Deserialize, Serialize};

use crate::seed::Rng;

/// Before the first fault, in milliseconds: a run begins healthy.
const FIRST_MS: u64 = 2_000;
/// Faults that begin while the one before is still on, of 100.
const OVERLAP_PERCENT: u64 = 30;

macro_rules! kinds {
    ($($(#[doc = $about:literal])+ $name:ident = $text:literal in $class:ident,)+) => {
        /// A kind of fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub(crate) enum Kind {
            $($(#[doc = $about])+ #[serde(rename = $text)] $name,)+
        }

        /// Every kind, with its class.
        pub(crate) const KINDS: &[Kind] = &[$(Kind::$name,)+];

        impl Kind {
            /// Its name on the command line.
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// The class it belongs to.
            pub(crate) const fn class(self) -> Class {
                match self { $(Self::$name => Class::$class,)+ }
            }

            /// What it does.
            pub(crate) const fn about(self) -> &'static str {
                match self { $(Self::$name => concat!($($about),+),)+ }
            }
        }
    };
}

kinds! {
    /// SIGKILL of one node, started again later
    Kill = "kill" in Process,
    /// SIGKILL of every node at once, all started again
    KillAll = "kill-all" in Process,
    /// SIGSTOP of one node, SIGCONT later
    Pause = "pause" in Process,
    /// SIGTERM of one node, started again later
    Terminate = "terminate" in Process,
    /// SIGTERM and start of every node, one after the other
    Roll = "roll" in Process,
    /// one node frozen by its control group, thawed later
    Freeze = "freeze" in Process,
    /// two data nodes stopped in turn, each until no chunk counts on it, and woken until all do again
    Swing = "swing" in Process,
    /// power cut of one node: what was written and not synced is lost in part, sector by sector
    Power = "power" in Process,
    /// power cut of every node at once
    PowerAll = "power-all" in Process,
    /// syncs of one node fail
    SyncError = "sync-error" in Process,
    /// writes to files of one node fail
    WriteError = "write-error" in Process,
    /// one node cut off from every other, not from its clients
    Isolate = "isolate" in Network,
    /// the nodes in two halves that do not hear each other
    Halves = "halves" in Network,
    /// each node hears its neighbours in a ring only
    Ring = "ring" in Network,
    /// one node sends and does not hear
    OneWay = "one-way" in Network,
    /// two nodes cut off from each other
    Pair = "pair" in Network,
    /// access nodes and data nodes cut off from each other, but for one access node
    Roles = "roles" in Network,
    /// one node loses every fifth packet that it gets
    Loss = "loss" in Network,
    /// connections of one node to the others are reset
    Reset = "reset" in Network,
    /// one node gets 16 KB/s from each other at most
    Rate = "rate" in Network,
    /// calls between one node and the others are late, each way
    Delay = "delay" in Network,
    /// calls to one node come twice, the second time late
    Duplicate = "duplicate" in Network,
    /// calls to one node overtake each other
    Reorder = "reorder" in Network,
    /// bits of a stopped data node's files flipped
    Flip = "flip" in Disk,
    /// a stopped data node's file cut short
    Truncate = "truncate" in Disk,
    /// a page of a stopped data node's file zeroed
    Zero = "zero" in Disk,
    /// a stopped data node's directory removed
    Wipe = "wipe" in Disk,
    /// a stopped data node's directory put back as it was some seconds ago
    Stale = "stale" in Disk,
    /// a data node's disk filled to the last byte
    Full = "full" in Disk,
    /// one node gets a tenth of the time, in short turns
    Throttle = "throttle" in Resources,
    /// one node may not open more files than it has open
    Files = "files" in Resources,
    /// every sync of one node takes long
    SyncStall = "sync-stall" in Resources,
    /// one node gets next to no further memory
    Memory = "memory" in Resources,
    /// an access node is full of idle connections
    Crowd = "crowd" in Resources,
    /// the clock of one node is off, by up to an hour
    Clock = "clock" in Clock,
    /// the clock of one node jumps to and fro
    Strobe = "strobe" in Clock,
    /// one more data node comes
    Add = "add" in Membership,
    /// a chunk moves to another data node
    Move = "move" in Membership,
    /// a data node is drained, and later not any more
    Drain = "drain" in Membership,
}

impl Kind {
    /// Whether it is done from between the node and its C library.
    pub(crate) const fn shimmed(self) -> bool {
        matches!(
            self,
            Self::Power
                | Self::PowerAll
                | Self::SyncError
                | Self::SyncStall
                | Self::WriteError
                | Self::Clock
                | Self::Strobe
        )
    }
}

/// Kinds that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Of processes.
    Process,
    /// Between nodes.
    Network,
    /// Of files.
    Disk,
    /// Of what a process may use.
    Resources,
    /// Of what time it is.
    Clock,
    /// Of who takes part.
    Membership,
}

/// Groups of kinds by name.
const GROUPS: [(&str, Class); 6] = [
    ("process", Class::Process),
    ("network", Class::Network),
    ("disk", Class::Disk),
    ("resources", Class::Resources),
    ("clocks", Class::Clock),
    ("membership", Class::Membership),
];

/// What a list on the command line names; an unknown name is given back.
pub(crate) fn kinds(names: &[String]) -> Result<Vec<Kind>, String> {
    let mut found = Vec::new();
    for name in names.iter().map(String::as_str).filter(|name| *name != "none") {
        let group = GROUPS.iter().find(|(group, _)| *group == name).map(|(_, class)| *class);
        let before = found.len();
        found.extend(KINDS.iter().copied().filter(|kind| match name {
            "everything" => true,
            "corruption" => matches!(kind, Kind::Flip | Kind::Truncate | Kind::Zero),
            "links" => matches!(kind, Kind::Delay | Kind::Duplicate | Kind::Reorder),
            "files-io" => kind.shimmed() && kind.class() != Class::Clock,
            _ => kind.name() == name || Some(kind.class()) == group,
        }));
        if found.len() == before {
            return Err(name.to_owned());
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Whom a fault hits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    /// Whoever leads when it comes.
    Leader,
    /// These nodes; the first is the one that the fault is about.
    Nodes(Vec<String>),
}

/// One planned fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// Its number in the schedule.
    pub(crate) id: u64,
    /// When it comes, after the start of the load.
    pub(crate) at_ms: u64,
    /// How long it lasts.
    pub(crate) for_ms: u64,
    /// What it is.
    pub(crate) kind: Kind,
    /// Whom it hits.
    pub(crate) target: Target,
    /// Number that further choices follow from: which file, which bit, which chunk.
    pub(crate) salt: u64,
    /// Acknowledged statements before it, when a run is done again: it waits for as many, and not for the time alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) after_acks: Option<u64>,
}

/// What became of a planned fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The plan.
    pub(crate) event: Event,
    /// Whom it hit.
    pub(crate) nodes: Vec<String>,
    /// Whether it was done.
    pub(crate) status: Status,
    /// Whether it was proved to have had its effect on the system.
    pub(crate) effective: bool,
    /// From the start of the run.
    pub(crate) start_us: u64,
    /// Statements that had been acknowledged when it came.
    #[serde(default)]
    pub(crate) acks: u64,
    /// When it was healed and its nodes ran again.
    pub(crate) end_us: u64,
    /// What was seen of it.
    pub(crate) proof: String,
    /// What did not go back to normal, such as a node that does not start again.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) trouble: String,
}

/// Whether a fault was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// It was.
    Installed,
    /// It was not.
    Skipped,
    /// It may have been, or in part.
    Indeterminate,
}

/// What a schedule is made for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    /// The run's seed.
    pub(crate) seed: u64,
    /// Length of the load in milliseconds; every fault is over before it.
    pub(crate) length_ms: u64,
    /// Names of access nodes.
    pub(crate) access: &'a [String],
    /// Names of data nodes.
    pub(crate) data: &'a [String],
    /// How much faster than usual faults follow on each other.
    pub(crate) rate: f64,
}

/// The schedule for these kinds.
pub(crate) fn plan(frame: Frame<'_>, kinds: &[Kind]) -> Vec<Event> {
    let mut rng = Rng::new(frame.seed, 1);
    let mut events: Vec<Event> = Vec::new();
    let mut at_ms = FIRST_MS;
    let mut added = false;
    while let Some(kind) = rng.pick(kinds).copied() {
        let for_ms = faster(duration(kind, &mut rng), frame.rate);
        if at_ms + for_ms >= frame.length_ms {
            break;
        }
        // One further node comes once a run.
        if !(kind == Kind::Add && added) {
            let target = target(kind, frame, &mut rng);
            let id = events.len() as u64;
            let salt = rng.next();
            events.push(Event { id, at_ms, for_ms, kind, target, salt, after_acks: None });
            added |= kind == Kind::Add;
        }
        let alone = kind.class() == Class::Disk;
        let overlapping = rng.chance(OVERLAP_PERCENT) && !alone;
        at_ms += if overlapping {
            faster(rng.range(300, for_ms.max(301)), frame.rate)
        } else {
            for_ms + faster(rng.range(500, 4_000), frame.rate)
        };
    }
    events
}

/// A time at another rate.
fn faster(ms: u64, rate: f64) -> u64 {
    let time = std::time::Duration::from_millis(ms).div_f64(rate);
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn duration(kind: Kind, rng: &mut Rng) -> u64 {
    match kind.class() {
        _ if kind == Kind::Roll => rng.range(2_000, 5_000),
        _ if kind == Kind::Swing => rng.range(20_000, 40_000),
        _ if kind == Kind::Stale => rng.range(2_000, 10_000),
        Class::Process => rng.range(300, 7_000),
        Class::Network | Class::Resources | Class::Clock => rng.range(1_500, 9_000),
        Class::Disk => rng.range(300, 3_000),
        Class::Membership => rng.range(2_000, 6_000),
    }
}

fn target(kind: Kind, frame: Frame<'_>, rng: &mut Rng) -> Target {
    let everyone = || frame.access.iter().chain(frame.data).cloned().collect::<Vec<String>>();
    let one = |names: &[String], rng: &mut Rng| {
        Target::Nodes(rng.pick(names).cloned().into_iter().collect())
    };
    match kind {
        Kind::Kill
        | Kind::Pause
        | Kind::Terminate
        | Kind::Isolate
        | Kind::OneWay
        | Kind::Loss
        | Kind::Reset
        | Kind::Rate
        | Kind::Delay
        | Kind::Duplicate
        | Kind::Reorder
        | Kind::Freeze
        | Kind::Power
        | Kind::SyncError
        | Kind::SyncStall
        | Kind::WriteError
        | Kind::Memory
        | Kind::Clock
        | Kind::Strobe
        | Kind::Throttle
        | Kind::Files => match rng.range(0, 10) {
            0..3 => Target::Leader,
            3..5 => one(frame.access, rng),
            _ => one(frame.data, rng),
        },
        Kind::Pair | Kind::Halves | Kind::Ring => {
            let mut names = everyone();
            shuffle(&mut names, rng);
            names.truncate(if kind == Kind::Pair { 2 } else { names.len() });
            Target::Nodes(names)
        }
        Kind::Swing => {
            let mut names = frame.data.to_vec();
            shuffle(&mut names, rng);
            names.truncate(2);
            Target::Nodes(names)
        }
        Kind::Roles | Kind::Crowd => one(frame.access, rng),
        Kind::KillAll | Kind::PowerAll | Kind::Roll => Target::Nodes(everyone()),
        Kind::Flip
        | Kind::Truncate
        | Kind::Zero
        | Kind::Wipe
        | Kind::Stale
        | Kind::Full
        | Kind::Add
        | Kind::Move
        | Kind::Drain => one(frame.data, rng),
    }
}

fn shuffle(names: &mut [String], rng: &mut Rng) {
    for at in (1..names.len()).rev() {
        let other = rng.range(0, at as u64 + 1);
        names.swap(at, usize::try_from(other).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(prefix: &str) -> Vec<String> {
        (1..=3).map(|number| format!("{prefix}{number}")).collect()
    }

    fn list(text: &str) -> Vec<String> {
        text.split(',').map(str::to_owned).collect()
    }

    #[test]
    fn names_mean_kinds() {
        assert_eq!(kinds(&list("none")), Ok(vec![]));
        assert_eq!(kinds(&list("pause,kill,kill")), Ok(vec![Kind::Kill, Kind::Pause]));
        assert_eq!(kinds(&list("everything")).expect("it is known").len(), KINDS.len());
        assert_eq!(kinds(&list("kill,krill")), Err("krill".into()));
        assert!(kinds(&list("network")).expect("it is known").contains(&Kind::Ring));
    }

    #[test]
    fn a_schedule_is_a_function_of_the_seed_and_fits() {
        let (access, data) = (names("a"), names("d"));
        for seed in 0..50 {
            let frame = Frame { seed, length_ms: 120_000, access: &access, data: &data, rate: 1.0 };
            let events = plan(frame, KINDS);
            assert_eq!(events, plan(frame, KINDS));
            assert!(events.len() > 5, "seed {seed}: {} faults", events.len());
            assert!(events.iter().all(|event| event.at_ms + event.for_ms < frame.length_ms));
            assert!(events.is_sorted_by_key(|event| event.at_ms));
            let adds = events.iter().filter(|event| event.kind == Kind::Add).count();
            assert!(adds <= 1);
        }
        let frame = Frame { seed: 1, length_ms: 120_000, access: &access, data: &data, rate: 1.0 };
        assert!(plan(frame, &[]).is_empty());
    }

    #[test]
    fn files_of_two_nodes_are_never_touched_at_once() {
        let (access, data) = (names("a"), names("d"));
        let disk = kinds(&list("disk")).expect("it is known");
        let frame = Frame { seed: 4, length_ms: 300_000, access: &access, data: &data, rate: 1.0 };
        let events = plan(frame, &disk);
        let apart = events.iter().zip(events.iter().skip(1));
        assert!(apart.into_iter().all(|(one, next)| one.at_ms + one.for_ms < next.at_ms));
    }
}
