//! Raft: openraft over redb, the catalog and gRPC. Its generic types end here.
//!
//! A command travels `group` (the door) -> openraft -> `log_store` (one ordered writer, fsynced) -> `network` to the
//! other nodes -> `state_machine`, which applies it to the catalog in memory; the changed rows follow to
//! `catalog.<n>.redb` behind it. `snapshot` makes and takes the files that stand for a purged log.
//!
//! Invariants:
//! - An entry or vote is on disk before anyone hears that it is accepted: log and vote share one file and one writer,
//!   so that no vote can overtake an entry.
//! - The log has no hole.
//! - The log is purged only up to a snapshot, and a snapshot is published only when its state is durable here.
//! - The published snapshot only moves forward.
//! - A refusal of the catalog is an answer; only a failing disk makes an error here, and that ends the node.

mod catalog_file;
mod directory;
mod files;
mod found;
mod group;
mod log_file;
mod log_store;
mod network;
mod server;
mod snapshot;
mod state_machine;
mod survivor;
mod types;
mod watchdog;

#[cfg(test)]
mod tests;

pub(crate) use directory::Formed;
pub use found::{Founder, found};
pub(crate) use group::{Group, NotRead, NotWritten, Setup, View};
pub(crate) use log_store::LogStore;
pub(crate) use server::RaftService;
pub use survivor::survivor;
pub(crate) use types::{Proposal, decode, encode};
pub(crate) use watchdog::Watchdog;
