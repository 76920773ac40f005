//! Chunks are compressed and decompressed while rows come in and are read. Moves come from the faults.

use super::{Kind, Workload, rows::Times};

/// The workload.
pub(super) const WORKLOAD: Workload = Workload {
    name: "squeeze",
    about: "compress_chunk and decompress_chunk while rows come in and are read",
    times: Times::Spread,
    mix: &[(Kind::Insert, 42), (Kind::Read, 35), (Kind::Aggregate, 10), (Kind::Squeeze, 13)],
};
