//! Rows by COPY and by Flight, some of the streams broken off by the client.

use super::{Kind, Workload, rows::Times};

/// The workload.
pub(super) const WORKLOAD: Workload = Workload {
    name: "stream",
    about: "COPY and Flight ingest, some of them broken off in mid-stream",
    times: Times::Spread,
    mix: &[
        (Kind::Copy, 20),
        (Kind::CopyCut, 10),
        (Kind::Flight, 20),
        (Kind::FlightCut, 10),
        (Kind::Read, 40),
    ],
};
