//! Health and metrics of a node over HTTP.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};

use crate::{gauges, serve::stopping};

/// How long the state of a node may take to be read: a stalled disk holds it up.
const GAUGES_TIMEOUT: Duration = Duration::from_secs(5);
/// Upper edges of the buckets that durations are counted in, in seconds.
const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Whether a node serves, for `/health`.
#[derive(Debug)]
pub(crate) struct Health {
    name: String,
    role: &'static str,
    ready: AtomicBool,
}

impl Health {
    /// A node that does not serve yet.
    pub(crate) fn new(name: String, role: &'static str) -> Arc<Self> {
        Arc::new(Self { name, role, ready: AtomicBool::new(false) })
    }

    /// Says whether the node serves.
    pub(crate) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    fn ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }
}

/// Reads the gauges of a node: called before each answer to `/metrics`.
pub(crate) type ReadGauges = Arc<dyn Fn() + Send + Sync>;

/// Serves `/health` (200 when the node serves, 503 otherwise) and `/metrics` until told to stop.
pub(crate) async fn serve(
    listener: TcpListener,
    (health, gauges): (Arc<Health>, ReadGauges),
    shutdown: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let metrics = recorder()?;
    let router = Router::new().route("/health", get(answer_health)).with_state(health).route(
        "/metrics",
        get(async move || {
            // It may take the locks that writers take.
            let read = tokio::task::spawn_blocking(move || gauges());
            match tokio::time::timeout(GAUGES_TIMEOUT, read).await {
                Ok(Ok(())) => Ok(metrics.render()),
                Ok(Err(error)) => Err((StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
                Err(_) => {
                    let message = "the node's state could not be read in time".to_owned();
                    Err((StatusCode::SERVICE_UNAVAILABLE, message))
                }
            }
        }),
    );
    axum::serve(listener, router)
        .with_graceful_shutdown(stopping(shutdown))
        .await
        .context("serve HTTP")
}

async fn answer_health(State(health): State<Arc<Health>>) -> (StatusCode, Json<Value>) {
    let ready = health.ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "name": health.name, "role": health.role, "ready": ready })))
}

/// The process's recorder; the nodes of `dev` share it.
fn recorder() -> anyhow::Result<PrometheusHandle> {
    static RECORDER: OnceLock<Result<PrometheusHandle, String>> = OnceLock::new();
    let install = || {
        let builder = PrometheusBuilder::new().set_buckets(&SECONDS)?;
        let handle = builder.install_recorder()?;
        gauges::describe();
        hypertide_query::describe_metrics();
        Ok(handle)
    };
    let installed = RECORDER.get_or_init(|| install().map_err(|e: BuildError| e.to_string()));
    installed.clone().map_err(|error| anyhow::anyhow!("start metrics: {error}"))
}
