//! SQL on access nodes and fragments on data nodes: the only crate that knows DataFusion.

mod block;
mod catalog;
mod context;
mod distinct_texts;
mod engine;
mod error;
mod exec;
mod fragment;
mod functions;
mod ingest;
mod measures;
mod optimize;
mod pg_catalog;
mod prune;
mod reply;
mod route;
mod scalar;
pub mod server;
mod session;
mod settings;
mod shield;
mod sql;
mod turns;
mod views;

pub use engine::{Engine, EngineConfig};
pub use error::{Error, SqlState};
pub use fragment::FragmentService;
pub use measures::describe_metrics;
pub use reply::{CopyLines, CopyOut, Notice, Reply};
pub use session::{Prepared, Session, Snapshot, TransactionStatus};
pub use settings::Settings;
pub use sql::copy_from::CopyIn;
