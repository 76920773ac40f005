//! What the leader does by itself about data nodes and replicas.
//!
//! [`detect`] judges data nodes by their heartbeats; [`plan`] compares the catalog with what nodes report and gives
//! actions; `run` performs them and remembers what is under way. The first two are pure. A new leader starts from the
//! catalog and from heartbeats, which every access node gets: nothing else is handed over, and an action that was done
//! before is done again without effect.

mod compression;
pub mod detect;
mod even;
pub mod plan;
mod progress;
mod rewrite;
pub(crate) mod run;
#[cfg(test)]
mod tests;

pub(crate) use progress::Jobs;
pub use rewrite::compress_request;
