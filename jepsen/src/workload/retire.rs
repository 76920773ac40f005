//! Old chunks are dropped while others are written and read.

use super::{Kind, Workload, rows::Times};

/// The workload.
pub(super) const WORKLOAD: Workload = Workload {
    name: "retire",
    about: "drop_chunks of old days while rows come in and are read",
    times: Times::Spread,
    mix: &[(Kind::Insert, 50), (Kind::Read, 46), (Kind::Retire, 4)],
};
