//! Tables that are made, dropped and looked for, by several clients at once, beside inserts.

use super::{Kind, Workload, rows::Times};

/// The workload.
pub(super) const WORKLOAD: Workload = Workload {
    name: "ddl",
    about: "tables created, dropped and looked for at several access nodes",
    times: Times::Spread,
    mix: &[
        (Kind::Create, 25),
        (Kind::Drop, 25),
        (Kind::Probe, 30),
        (Kind::Insert, 10),
        (Kind::Read, 10),
    ],
};
