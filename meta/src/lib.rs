//! The replicated catalog of Hypertide, its commit log and placement: what access nodes agree on.
//!
//! A command enters by [`CatalogWriter::propose`]; `commit` groups all that wait into one proposal and passes it to the
//! leader, which takes each call once (`once`); `raft` makes it durable on a majority and applies it to the [`catalog`]
//! everywhere; the answer travels back. A read takes a barrier (`barrier`): the leader says up to where the log counts,
//! the node waits until its own catalog has that much, and reads an [`Image`]. `fleet` remembers what data nodes report,
//! `enter` judges the disk of one that comes, and at the leader [`reconcile`] takes care of data nodes and replicas.
//! `rpc` serves all of it, [`init_cluster`] forms a group out of empty nodes, and `members` adds and removes access nodes.
//! Data nodes are given `definitions` to keep; when a majority of the group is lost for good, [`catalog::rebuild`] makes the
//! catalog anew from those, from the chunks, and from each [`survivor`], and [`found`] puts it into a new directory.
//!
//! Invariants:
//! - The catalog changes only by [`catalog::Catalog::apply`], and a refusal is an answer.
//! - No wait is without a deadline; a timeout after a command was sent is [`Error::Unknown`].
//! - A node that belongs to no cluster never starts Raft by itself.
//!
//! It deliberately lacks: SQL, rows, and any choice that two nodes could make differently.

mod barrier;
pub mod catalog;
mod commit;
mod definitions;
mod enter;
mod error;
mod fleet;
mod init;
mod leader;
mod members;
mod memory;
mod node;
mod once;
mod open;
pub mod placement;
mod raft;
pub mod reconcile;
mod relays;
mod rpc;
mod status;

pub use error::Error;
pub use init::{cluster_of, init_cluster};
pub use members::MemberChange;
pub use memory::MemoryCatalog;
pub use node::{Answer, CatalogWriter, Config, Image, MetaNode, Tuning};
pub use open::OpenTxn;
pub use raft::{Founder, found, survivor};
pub use status::Place;
