//! Arrow Flight SQL over gRPC.
//!
//! ```text
//! GetFlightInfo(query)      plans: schema, and a ticket that holds the statement   DoGet(ticket)  runs and streams it
//! GetFlightInfo(other)      runs what has no rows, such as CREATE TABLE            DoGet(ticket)  no rows
//! CreatePreparedStatement   a handle that holds the statement                      DoPut(bind)    a handle with parameters
//! DoPut(ingest | update)    pulls batches as they are taken, answers with the number of rows
//! ```
//!
//! Tickets and handles hold all that is needed, so that nothing is kept between calls and any access node serves them.
//! Each call is a session of its own that commits by itself.
//!
//! Invariants:
//! - What clients send is validated: sizes, row counts, and no compressed bodies, whose claimed lengths cannot be trusted.
//! - Batches are pulled: no more than one of a client's messages waits here.
//!
//! Lacks: transactions over several calls, Substrait, TLS and passwords.

mod ingest;
mod input;
mod listen;
mod metadata;
mod prepared;
mod service;
mod statement;
mod status;
mod upload;

pub use listen::serve_flight;
