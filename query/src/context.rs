//! The DataFusion session of one statement.
//!
//! Making one must cost well under a millisecond, so that all that does not depend on the statement (functions, rules,
//! the configuration) is made once an engine and cloned: the clones share every function and rule.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Instant};

use datafusion::{
    common::{
        config::{ConfigOptions, Dialect},
        internal_datafusion_err,
    },
    execution::{
        SessionState, SessionStateBuilder, TaskContext, context::SessionContext,
        runtime_env::RuntimeEnv,
    },
    logical_expr::registry::FunctionRegistry,
    prelude::SessionConfig,
};
use hypertide_meta::CatalogWriter;
use hypertide_proto::client::Channels;
use uuid::Uuid;

use crate::{
    Engine, Error, Settings, Snapshot,
    catalog::{CATALOG, ImageCatalog, ImageCatalogs, SqlTypes},
    exec::{Pace, Suspects},
    functions, optimize,
    sql::zone::Zone,
};

/// Rows of a batch between operators.
const BATCH_ROWS: usize = 8192;
/// Name of the setting that holds the session's time zone.
pub(crate) const TIME_ZONE: &str = "timezone";
/// Name of the setting that turns the pushing of work to data nodes off.
pub(crate) const PUSHDOWN: &str = "hypertide.enable_pushdown";
/// Name of the setting that turns the sending of slow fragments to another replica off.
const HEDGED: &str = "hypertide.enable_hedged_reads";
/// Name of the setting that turns answers from zone maps, and scans that stop early, off.
pub(crate) const SUMMARIES: &str = "hypertide.enable_summaries";

/// What the execution nodes of a statement must know; an extension of its configuration.
#[derive(Clone)]
pub(crate) struct Statement {
    /// The catalog's door.
    pub(crate) catalog: Arc<dyn CatalogWriter>,
    /// Channels to data nodes.
    pub(crate) channels: Channels,
    /// Data nodes that failed lately.
    pub(crate) suspects: Suspects,
    /// How fast data nodes answer.
    pub(crate) pace: Pace,
    /// Whether slow fragments are sent to another replica, too.
    pub(crate) hedged: bool,
    /// What it reads.
    pub(crate) snapshot: Snapshot,
    /// When it must have ended.
    pub(crate) deadline: Instant,
    /// Settings that evaluation depends on: they travel with every fragment.
    pub(crate) settings: BTreeMap<String, String>,
    /// Whether filters, aggregates and so on may run on data nodes.
    pub(crate) pushdown: bool,
    /// Whether scans may answer from zone maps and leave out rows that are of no use.
    pub(crate) summaries: bool,
    /// Names the statement in the logs of all nodes.
    pub(crate) trace: String,
}

impl fmt::Debug for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Statement").field("trace", &self.trace).finish_non_exhaustive()
    }
}

impl Statement {
    /// What the session put into the configuration of this statement.
    pub(crate) fn of(config: &SessionConfig) -> datafusion::error::Result<Arc<Self>> {
        config
            .get_extension::<Self>()
            .ok_or_else(|| internal_datafusion_err!("the session has no statement"))
    }
}

/// What of a session's settings plans depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choices<'a> {
    /// Time zone.
    pub(crate) zone: &'a str,
    /// Whether work may be pushed to data nodes.
    pub(crate) pushdown: bool,
    /// Whether slow fragments are sent to another replica, too.
    pub(crate) hedged: bool,
    /// Whether scans may answer from zone maps and leave out rows that are of no use.
    pub(crate) summaries: bool,
}

impl<'a> Choices<'a> {
    fn of(settings: &'a Settings) -> Self {
        let zone = settings.get(TIME_ZONE).unwrap_or("UTC");
        let on = |name: &str| settings.get(name).is_none_or(|value| !is_off(value));
        let (hedged, summaries) = (on(HEDGED), on(SUMMARIES));
        Self { zone, pushdown: on(PUSHDOWN), hedged, summaries }
    }
}

/// A session for one statement that reads `snapshot` and must end before `deadline`.
pub(crate) fn session_context(
    engine: &Engine,
    settings: &Settings,
    snapshot: &Snapshot,
    deadline: Instant,
) -> Result<SessionContext, Error> {
    chosen_context(engine, Choices::of(settings), snapshot, deadline)
}

/// The session with what was chosen.
pub(crate) fn chosen_context(
    engine: &Engine,
    choices: Choices<'_>,
    snapshot: &Snapshot,
    deadline: Instant,
) -> Result<SessionContext, Error> {
    let Choices { zone, pushdown, hedged, summaries } = choices;
    let statement = Statement {
        catalog: Arc::clone(&engine.catalog),
        channels: engine.channels.clone(),
        suspects: engine.suspects.clone(),
        pace: engine.pace.clone(),
        hedged,
        snapshot: snapshot.clone(),
        deadline,
        settings: BTreeMap::from([(TIME_ZONE.to_owned(), zone.to_owned())]),
        pushdown,
        summaries,
        trace: Uuid::new_v4().simple().to_string(),
    };
    let mut state = engine.template.clone();
    state.config_mut().set_extension(Arc::new(statement));
    set_zone(&mut state, zone)?;
    let tables = ImageCatalog::new(snapshot);
    state.register_catalog_list(Arc::new(ImageCatalogs::new(Arc::new(tables))));
    Ok(SessionContext::new_with_state(state))
}

/// Whether a boolean setting is off, in any of the spellings that PostgreSQL takes.
fn is_off(value: &str) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "off" | "false" | "no" | "0" | "f" | "n")
}

/// What a data node runs a fragment in: the functions of the access node, under the statement's settings.
pub(crate) fn fragment_context(
    template: &SessionState,
    settings: &BTreeMap<String, String>,
) -> datafusion::error::Result<Arc<TaskContext>> {
    let mut state = template.clone();
    if let Some(zone) = settings.get(TIME_ZONE) {
        set_zone(&mut state, zone)?;
    }
    Ok(state.task_ctx())
}

/// The state that every statement's is cloned from.
pub(crate) fn template(runtime: Arc<RuntimeEnv>) -> datafusion::error::Result<SessionState> {
    let mut state = SessionStateBuilder::new_with_default_features()
        .with_config(configuration())
        .with_runtime_env(runtime)
        .with_physical_optimizer_rules(optimize::physical_rules())
        .with_type_planner(Arc::new(SqlTypes))
        .build();
    for rule in optimize::analyzer_rules() {
        state.add_analyzer_rule(rule);
    }
    functions::register(&mut state)?;
    Ok(state)
}

fn configuration() -> SessionConfig {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut config = SessionConfig::new()
        .with_target_partitions(cores)
        .with_batch_size(BATCH_ROWS)
        .with_information_schema(false)
        .with_create_default_catalog_and_schema(false)
        .with_default_catalog_and_schema(CATALOG, hypertide_meta::catalog::DEFAULT_SCHEMA);
    let options = config.options_mut();
    options.sql_parser.dialect = Dialect::PostgreSQL;
    // Columns are Utf8 in segments and on the wire; views would be copied at every border.
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.time_zone = Some("UTC".to_owned());
    // A dynamic filter lives in one process: its producer and its consumer may end up in two.
    options.optimizer.enable_dynamic_filter_pushdown = false;
    options.optimizer.enable_topk_dynamic_filter_pushdown = false;
    options.optimizer.enable_join_dynamic_filter_pushdown = false;
    options.optimizer.enable_aggregate_dynamic_filter_pushdown = false;
    config
}

/// The time zone of the statement's session.
pub(crate) fn session_zone(config: &ConfigOptions) -> Zone {
    config.execution.time_zone.as_deref().and_then(Zone::parse).unwrap_or(Zone::UTC)
}

/// Sets the time zone, and gives the functions that keep a copy of it a new one.
pub(crate) fn set_zone(state: &mut SessionState, zone: &str) -> datafusion::error::Result<()> {
    if state.config_options().execution.time_zone.as_deref() == Some(zone) {
        return Ok(());
    }
    state.config_mut().options_mut().execution.time_zone = Some(zone.to_owned());
    let options = Arc::clone(state.config_options());
    let fresh: Vec<_> = state
        .scalar_functions()
        .values()
        .filter_map(|function| function.inner().with_updated_config(&options))
        .collect();
    for function in fresh {
        state.register_udf(Arc::new(function))?;
    }
    Ok(())
}
