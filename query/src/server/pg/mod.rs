//! The PostgreSQL protocol, version 3.0 and 3.2.
//!
//! ```text
//! listener -> startup -> connection (one task) -> simple | extended | copy -> Session
//!                |                                    |
//!              cancel: keys of the running sessions   rows -> encode -> output buffer
//! ```
//!
//! pgwire encodes what the server says beside rows. Its decoders read past the end of a lying message and panic, and turn
//! bytes that are not UTF-8 into replacement characters, so that [`frontend`] reads what clients say; and its handlers
//! collect portals in a way of their own, so that the loop here is explicit.
//!
//! Invariants:
//! - Memory of a connection is bounded: one message, a bounded read-ahead, one output buffer, one batch of rows.
//! - A statement ends when its client cancels it, goes away, or its time is over; one that began to commit does not.
//! - After an error of the extended protocol all is skipped until Sync; ReadyForQuery follows each Query and Sync once.
//! - A panic ends its own connection only.
//!
//! Lacks: TLS and passwords (answered `N` and trusted), function calls, replication, and implicit transactions over several
//! statements: each statement outside of a block commits on its own.

mod backend;
mod cancel;
mod connection;
mod copy;
mod encode;
mod extended;
mod frontend;
mod listen;
mod parameters;
mod portal;
mod report;
mod simple;
mod startup;
mod types;

pub use listen::serve_pg;

#[cfg(test)]
mod tests;
