//! Lists: one statement appends to several, in several chunks; one statement reads several.

use super::{Kind, Workload, rows::Times};

/// The workload.
pub(super) const WORKLOAD: Workload = Workload {
    name: "append",
    about: "list-append over lists in different chunks, checked for isolation",
    times: Times::Spread,
    mix: &[(Kind::Append, 50), (Kind::Lists, 50)],
};
