//! The statements of one client, one after the other.

use super::{
    Kind, Workload,
    rows::{BASE_US, CHUNK_US, COUNTERS, DAYS, HOUR_US, SERIES, Source},
};
use crate::{
    history::{Action, Filter, Path, Rule},
    seed::Rng,
};

/// Names of tables that come and go.
const TABLES: u64 = 4;
/// Days that are dropped at most; the others stay.
const RETIRED_DAYS_MAX: u64 = 3;
/// Statements back that a read by statement looks, to catch them in flight.
const RECENT: u64 = 12;
/// How long a block stays open, in milliseconds: long enough for the replicas of a chunk to leave it and come back one
/// after the other, and not so long that somebody ends it for being idle.
const HELD_MS: (u64, u64) = (12_000, 26_000);
/// Statements that may have been begun while reads of everything are still made: later they would be all there is.
const WHOLE_READS_UNTIL: u64 = 2_000;

/// The stream of one client's statements.
#[derive(Clone, Debug)]
pub(crate) struct Next {
    source: Source,
    mix: &'static [(Kind, u64)],
    rng: Rng,
}

impl Next {
    /// The statements of a client.
    pub(crate) fn new(workload: &Workload, source: Source, client: u64) -> Self {
        Self { source, mix: workload.mix, rng: Rng::new(source.seed, 10 + client) }
    }

    /// The client's random numbers, for pauses and choices beside the statements.
    pub(crate) fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// The next statement. `wid` is its number if it writes rows: so many were begun before it.
    pub(crate) fn action(&mut self, wid: u64) -> Action {
        let insert = |path, named| Action::Insert { wid, path, named };
        match self.kind() {
            Kind::Insert if self.rng.chance(50) => insert(Path::Text, false),
            Kind::Insert => insert(Path::Bound, false),
            Kind::Named => insert(Path::Text, true),
            Kind::Copy => insert(Path::Copy, false),
            Kind::CopyCut => insert(Path::CopyCut, false),
            Kind::Flight => insert(Path::Flight, false),
            Kind::FlightCut => insert(Path::FlightCut, false),
            Kind::Read => Action::Read(self.filter(wid)),
            Kind::Aggregate => Action::Aggregate(self.window()),
            Kind::Buckets => Action::Buckets(self.window()),
            Kind::Retire => {
                let days = self.rng.range(1, RETIRED_DAYS_MAX + 1);
                Action::Retire { before_us: BASE_US + signed(days) * CHUNK_US }
            }
            Kind::Append => Action::Append { wid },
            Kind::Lists => Action::Lists(self.source.lists(wid, &mut self.rng)),
            Kind::Create => Action::Create(self.table()),
            Kind::Drop => Action::Drop(self.table()),
            Kind::Probe => Action::Probe(self.table()),
            Kind::Prepared => insert(Path::Prepared, false),
            Kind::Cancelled => insert(Path::Cancelled, false),
            Kind::Paged => Action::Paged(self.filter(wid)),
            Kind::Put => {
                let rule = self.rng.pick(&Rule::ALL).copied().unwrap_or(Rule::Upsert);
                Action::Put { wid, rule }
            }
            Kind::Keys => Action::Keys(self.source.keys(wid, &mut self.rng)),
            Kind::Transfer => Action::Transfer { wid, block: self.rng.chance(50) },
            Kind::Balances => Action::Balances,
            Kind::Count => {
                let counter = self.rng.range(0, COUNTERS);
                Action::Count { counter, block: self.rng.chance(50), held_ms: 0 }
            }
            Kind::Hold => {
                let counter = self.rng.range(0, COUNTERS);
                let held_ms = self.rng.range(HELD_MS.0, HELD_MS.1);
                Action::Count { counter, block: true, held_ms }
            }
            Kind::Counters => Action::Counters,
            Kind::Swap => Action::Swap { wid },
            Kind::Registers => Action::Registers,
            Kind::Squeeze => Action::Squeeze { salt: self.rng.next(), undo: self.rng.chance(40) },
        }
    }

    fn kind(&mut self) -> Kind {
        let whole: u64 = self.mix.iter().map(|(_, weight)| weight).sum();
        let mut left = self.rng.range(0, whole);
        for (kind, weight) in self.mix {
            if left < *weight {
                return *kind;
            }
            left -= weight;
        }
        Kind::Read
    }

    fn table(&mut self) -> String {
        format!("t{}", self.rng.range(0, TABLES))
    }

    fn filter(&mut self, wid: u64) -> Filter {
        match self.rng.range(0, 20) {
            0..10 => {
                let back = self.rng.range(0, RECENT);
                Filter { wid: Some(wid.saturating_sub(back)), ..Filter::default() }
            }
            10..14 => self.window(),
            14..19 => {
                let series = u32::try_from(self.rng.range(0, SERIES)).ok();
                Filter { series, ..self.window() }
            }
            _ if wid < WHOLE_READS_UNTIL => Filter::default(),
            _ => self.window(),
        }
    }

    /// Some hours of the measurements, across edges of chunks too.
    fn window(&mut self) -> Filter {
        if self.source.times == super::rows::Times::Edges && self.rng.chance(50) {
            return Filter::default();
        }
        let start = BASE_US + signed(self.rng.range(0, DAYS * 24)) * HOUR_US;
        let end = start + signed(self.rng.range(1, 13)) * HOUR_US;
        Filter { from_us: Some(start), to_us: Some(end), ..Filter::default() }
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{super::WORKLOADS, *};

    #[test]
    fn a_client_does_the_same_again() {
        for workload in WORKLOADS {
            let source = Source { seed: 3, times: workload.times };
            let stream = |client| {
                let mut next = Next::new(&workload, source, client);
                (0..200).map(|wid| next.action(wid)).collect::<Vec<Action>>()
            };
            assert_eq!(stream(1), stream(1));
            assert_ne!(stream(1), stream(2));
            let writes = stream(1).iter().filter(|action| action.writes()).count();
            assert!((20..180).contains(&writes), "{}: {writes} of 200 write", workload.name);
        }
    }
}
