//! Times at the edges of chunks, of daylight saving, of the epoch and of the calendar, late and out of order.

use super::{Kind, Workload, rows::Times};

/// The workload.
pub(super) const WORKLOAD: Workload = Workload {
    name: "edges",
    about: "timestamps on the edges of chunks, of daylight saving and of the calendar",
    times: Times::Edges,
    mix: &[(Kind::Insert, 45), (Kind::Read, 35), (Kind::Aggregate, 20)],
};
