//! HTTP for machines: `/metrics`, `/livez` (200 while the process runs), `/readyz` (200 when recovered and not
//! draining, else 503). Overload changes neither probe.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use super::metrics::Metrics;
use super::readiness::{Phase, Readiness};
use crate::admission::{Budgets, Outflow};
use crate::broker::api::Broker;

/// How long a scrape waits for the broker's figures.
const STATS_WAIT: Duration = Duration::from_secs(2);
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What is shown.
#[derive(Clone, Debug)]
pub struct Sources {
    pub broker: Broker,
    pub budgets: Budgets,
    pub outflow: Outflow,
    pub metrics: Metrics,
    pub readiness: Readiness,
}

/// The routes.
pub fn router(sources: Sources) -> Router {
    Router::new()
        .route("/metrics", get(show_metrics))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(sources)
}

async fn show_metrics(State(sources): State<Sources>) -> impl IntoResponse {
    let stats = tokio::time::timeout(STATS_WAIT, sources.broker.server_stats()).await;
    let stats = stats.ok().and_then(Result::ok);
    (
        [(header::CONTENT_TYPE, PROMETHEUS_TEXT)],
        sources.metrics.render(stats, &sources.budgets, &sources.outflow),
    )
}

async fn ready(State(sources): State<Sources>) -> impl IntoResponse {
    match sources.readiness.phase() {
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        Phase::Ready => (StatusCode::OK, "ready\n"),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    }
}
