//! All of it at once.

use super::{Kind, Workload, rows::Times};

/// The workload.
pub(super) const WORKLOAD: Workload = Workload {
    name: "mixed",
    about: "inserts by every way, retries, lists, aggregates and tables that come and go",
    times: Times::Spread,
    mix: &[
        (Kind::Insert, 20),
        (Kind::Named, 8),
        (Kind::Copy, 4),
        (Kind::CopyCut, 2),
        (Kind::Flight, 4),
        (Kind::FlightCut, 2),
        (Kind::Read, 25),
        (Kind::Aggregate, 6),
        (Kind::Buckets, 4),
        (Kind::Append, 10),
        (Kind::Lists, 10),
        (Kind::Create, 1),
        (Kind::Drop, 1),
        (Kind::Probe, 3),
    ],
};
