//! Statements that outlive one message: prepared before, read through a portal, cancelled while they run.

use super::{Kind, Workload, rows::Times};

/// The workload.
pub(super) const WORKLOAD: Workload = Workload {
    name: "session",
    about: "statements prepared before, portals read in pages, statements cancelled",
    times: Times::Spread,
    mix: &[
        (Kind::Prepared, 30),
        (Kind::Cancelled, 15),
        (Kind::Insert, 5),
        (Kind::Paged, 35),
        (Kind::Read, 15),
    ],
};
