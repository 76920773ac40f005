//! Statements of many rows over many series and chunks, and reads of all kinds.

use super::{Kind, Workload, rows::Times};

/// The workload.
pub(super) const WORKLOAD: Workload = Workload {
    name: "insert",
    about: "multi-row inserts over series and chunks, reads by time, series and statement",
    times: Times::Spread,
    mix: &[(Kind::Insert, 50), (Kind::Read, 50)],
};
