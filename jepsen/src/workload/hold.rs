//! Counters, some of them added to in blocks that stay open while the replicas of their chunks change.

use super::{Kind, Workload, rows::Times};

/// The workload.
pub(super) const WORKLOAD: Workload = Workload {
    name: "hold",
    about: "UPDATE adds one to counters, also in blocks that stay open for long",
    times: Times::Spread,
    mix: &[(Kind::Hold, 15), (Kind::Count, 45), (Kind::Counters, 40)],
};
