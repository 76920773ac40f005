//! Money moves between accounts in several chunks; none may be lost or made.

use super::{Kind, Workload, rows::Times};

/// The workload.
pub(super) const WORKLOAD: Workload = Workload {
    name: "bank",
    about: "UPDATE moves money between accounts, checked for its sum",
    times: Times::Spread,
    mix: &[(Kind::Transfer, 45), (Kind::Balances, 55)],
};
