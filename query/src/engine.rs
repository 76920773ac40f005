//! What all SQL sessions of an access node share.

use std::{sync::Arc, time::Duration};

use datafusion::execution::{
    SessionState,
    memory_pool::FairSpillPool,
    runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
};
use hypertide_meta::CatalogWriter;
use hypertide_proto::client::Channels;

use crate::{
    Error, context,
    exec::{Pace, Suspects},
    sql::snapshot::Exports,
    turns::Turns,
};

/// Limits of an access node's sessions.
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    /// Memory that all queries together may use before they spill or fail.
    pub memory_bytes: usize,
    /// Longest time that a read barrier, a prepare or a commit may take.
    pub commit_deadline: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { memory_bytes: 2 << 30, commit_deadline: Duration::from_secs(30) }
    }
}

/// What all SQL sessions of an access node share.
#[derive(Clone, Debug)]
pub struct Engine {
    /// The catalog's door.
    pub catalog: Arc<dyn CatalogWriter>,
    /// Channels to data nodes.
    pub channels: Channels,
    /// Memory and disk that queries share.
    pub runtime: Arc<RuntimeEnv>,
    /// Limits.
    pub config: EngineConfig,
    /// Functions, rules and configuration that every statement shares.
    pub(crate) template: SessionState,
    /// Data nodes that failed lately.
    pub(crate) suspects: Suspects,
    /// How fast data nodes answer.
    pub(crate) pace: Pace,
    /// Who changes the rows of a table next.
    pub(crate) turns: Turns,
    /// Snapshots that several sessions read by.
    pub(crate) exports: Exports,
}

impl Engine {
    /// An engine over this catalog.
    pub fn new(
        catalog: Arc<dyn CatalogWriter>,
        channels: Channels,
        config: EngineConfig,
    ) -> Result<Arc<Self>, Error> {
        let pool = Arc::new(FairSpillPool::new(config.memory_bytes));
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc()?;
        let template = context::template(Arc::clone(&runtime))?;
        let (suspects, pace, turns) = (Suspects::default(), Pace::default(), Turns::default());
        let exports = Exports::default();
        Ok(Arc::new(Self {
            catalog,
            channels,
            runtime,
            config,
            template,
            suspects,
            pace,
            turns,
            exports,
        }))
    }
}
