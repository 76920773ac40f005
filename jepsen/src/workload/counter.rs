//! Counters that every client adds one to.

use super::{Kind, Workload, rows::Times};

/// The workload.
pub(super) const WORKLOAD: Workload = Workload {
    name: "counter",
    about: "UPDATE adds one to counters, checked for lost updates",
    times: Times::Spread,
    mix: &[(Kind::Count, 55), (Kind::Counters, 45)],
};
