//! Transaction blocks that read two registers and write one of them, checked for isolation.

use super::{Kind, Workload, rows::Times};

/// The workload.
pub(super) const WORKLOAD: Workload = Workload {
    name: "registers",
    about: "transaction blocks over registers, checked for snapshot isolation",
    times: Times::Spread,
    mix: &[(Kind::Swap, 60), (Kind::Registers, 40)],
};
