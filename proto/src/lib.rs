//! The vocabulary of Hypertide: wire messages and the few value types that several processes share.
//!
//! - [`ids`], [`time`], [`schema`], [`predicate`], [`partition`] and [`decision`] are pure values with their laws.
//! - [`error`] says what an error means to a caller, and is the only mapping to and from gRPC statuses.
//! - [`wire`] holds the generated messages of `proto/*.proto` and their conversion to the value types.
//! - [`client`] holds the channels and the only retry loops.
//!
//! It knows nothing of SQL, of the catalog or of how bytes lie on disk.

pub mod client;
pub mod decision;
pub mod error;
pub mod ids;
pub mod partition;
#[cfg(feature = "planted_bugs")]
pub mod planted;
pub mod predicate;
pub mod schema;
pub mod time;
pub mod wire;
