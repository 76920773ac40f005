//! Health and metrics of a node over HTTP.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use anyhow::Context;
use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};

use crate::serve::stopping;

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

/// Serves `/health` (200 when the node serves, 503 otherwise) and `/metrics` until told to stop.
pub(crate) async fn serve(
    listener: TcpListener,
    health: Arc<Health>,
    shutdown: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let metrics = recorder()?;
    let router = Router::new()
        .route("/health", get(answer_health))
        .with_state(health)
        .route("/metrics", get(async move || metrics.render()));
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
    let installed = RECORDER
        .get_or_init(|| PrometheusBuilder::new().install_recorder().map_err(|e| e.to_string()));
    installed.clone().map_err(|error| anyhow::anyhow!("start metrics: {error}"))
}
