//! Statements with a name for retries, sent again through other access nodes until one says yes, and sometimes after.

use super::{Kind, Workload, rows::Times};

/// The workload.
pub(super) const WORKLOAD: Workload = Workload {
    name: "retry",
    about: "inserts with a write id, sent again through other access nodes",
    times: Times::Spread,
    mix: &[(Kind::Named, 60), (Kind::Read, 40)],
};
