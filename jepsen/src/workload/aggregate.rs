//! Counts, sums, extremes and time_bucket, each at one snapshot, while rows come in.

use super::{Kind, Workload, rows::Times};

/// The workload.
pub(super) const WORKLOAD: Workload = Workload {
    name: "aggregate",
    about: "aggregates and time_bucket at one snapshot, while rows come in",
    times: Times::Spread,
    mix: &[(Kind::Insert, 45), (Kind::Read, 10), (Kind::Aggregate, 25), (Kind::Buckets, 20)],
};
