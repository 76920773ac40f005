//! Unique keys: some are written by DO UPDATE, some by DO NOTHING, some by plain INSERT, which refuses the second.

use super::{Kind, Workload, rows::Times};

/// The workload.
pub(super) const WORKLOAD: Workload = Workload {
    name: "keys",
    about: "a table with a unique key: DO UPDATE, DO NOTHING, refusal",
    times: Times::Spread,
    mix: &[(Kind::Put, 55), (Kind::Keys, 45)],
};
