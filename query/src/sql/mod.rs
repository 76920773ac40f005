//! Statements and forms of SQL that DataFusion has no plan for.
//!
//! A text is cut ([`split`]), read ([`parse`]), described ([`describe`]) and run ([`run`]): there is one file a kind of
//! statement below that. The files from [`civil`] to [`zone`] know PostgreSQL's values as text, both ways; [`binary`]
//! knows their bytes.

pub(crate) mod accept_loss;
pub(crate) mod again;
pub(crate) mod alter_table;
pub(crate) mod binary;
pub(crate) mod call;
pub(crate) mod call_over;
pub(crate) mod change;
pub(crate) mod chunks;
pub(crate) mod civil;
pub(crate) mod compression;
pub(crate) mod copy_binary;
pub(crate) mod copy_from;
pub(crate) mod copy_options;
pub(crate) mod copy_rows;
pub(crate) mod copy_to;
pub(crate) mod create_table;
pub(crate) mod data_node;
pub(crate) mod datetime;
pub(crate) mod definition;
pub(crate) mod describe;
pub(crate) mod drop;
mod fast;
pub(crate) mod health;
pub(crate) mod hypertable;
pub(crate) mod ingest;
pub(crate) mod insert;
pub(crate) mod keys;
pub(crate) mod membership;
pub(crate) mod move_chunk;
pub(crate) mod names;
pub(crate) mod parse;
pub(crate) mod policy;
pub(crate) mod query;
pub(crate) mod registry;
pub(crate) mod replica_check;
pub(crate) mod run;
#[cfg(test)]
mod scripts;
pub(crate) mod session_functions;
pub(crate) mod set;
pub(crate) mod sizes;
pub(crate) mod snapshot;
pub(crate) mod split;
pub(crate) mod table;
pub(crate) mod table_options;
pub(crate) mod text;
pub(crate) mod transaction;
pub(crate) mod types;
pub(crate) mod value;
pub(crate) mod zone;
