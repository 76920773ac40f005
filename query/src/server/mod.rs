//! The endpoints of an access node: the PostgreSQL protocol and Arrow Flight SQL.
//!
//! Both are thin: a connection owns one [`Session`](crate::Session) and turns messages into its calls.

mod flight;
mod pg;

pub use flight::serve_flight;
pub use pg::serve_pg;

/// Name of the only database.
pub(crate) const DATABASE: &str = "hypertide";
/// Name of the only role.
pub(crate) const USER: &str = "hypertide";
