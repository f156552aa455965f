//! Probes and metrics over plain HTTP, for Kubernetes and Prometheus.
//!
//! `/livez` fails once something is broken that only a restart can repair. `/startupz` fails until every component has
//! been ready once. `/readyz` fails while any component is not ready. Bodies say what is missing, one line each.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// How the parts of this broker are. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Health {
    state: Arc<Mutex<HealthState>>,
}

#[derive(Debug, Default)]
struct HealthState {
    /// What keeps a component from being ready; `None` when it is.
    components: BTreeMap<&'static str, Option<String>>,
    /// Every component has been ready at the same time once.
    started: bool,
    /// The first failure that only a restart can repair.
    failure: Option<String>,
}

impl Health {
    /// None of these components is ready yet.
    pub fn new<const N: usize>(components: [&'static str; N]) -> Self {
        let health = Self::default();
        health.state.lock().components =
            components.into_iter().map(|component| (component, Some("not started yet".to_owned()))).collect();
        health
    }

    /// The component does its work.
    pub fn ready(&self, component: &'static str) {
        self.set(component, None);
    }

    /// The component cannot do its work for now.
    pub fn not_ready(&self, component: &'static str, reason: impl Into<String>) {
        self.set(component, Some(reason.into()));
    }

    /// Something is broken for good. The first reason is kept.
    pub fn fail(&self, component: &'static str, reason: impl Into<String>) {
        let mut state = self.state.lock();
        state.failure.get_or_insert_with(|| format!("{component}: {}", reason.into()));
    }

    /// Whether everything is ready.
    pub fn is_ready(&self) -> bool {
        self.readiness().is_ok()
    }

    fn set(&self, component: &'static str, blocker: Option<String>) {
        let mut state = self.state.lock();
        state.components.insert(component, blocker);
        state.started |= state.components.values().all(Option::is_none);
    }

    fn liveness(&self) -> Result<(), String> {
        self.state.lock().failure.clone().map_or(Ok(()), Err)
    }

    fn startup(&self) -> Result<(), String> {
        let state = self.state.lock();
        if state.started { Ok(()) } else { Err(state.blockers()) }
    }

    fn readiness(&self) -> Result<(), String> {
        let state = self.state.lock();
        let blockers = state.blockers();
        if blockers.is_empty() { Ok(()) } else { Err(blockers) }
    }
}

impl HealthState {
    /// What is missing, one line each.
    fn blockers(&self) -> String {
        let mut text = String::new();
        if let Some(failure) = &self.failure {
            let _ = writeln!(text, "{failure}");
        }
        for (component, blocker) in &self.components {
            if let Some(blocker) = blocker {
                let _ = writeln!(text, "{component}: {blocker}");
            }
        }
        text
    }
}

/// Serves until `stop`; requests in hand are finished.
pub async fn serve(
    listener: TcpListener,
    health: Health,
    metrics: Metrics,
    stop: CancellationToken,
) -> io::Result<()> {
    axum::serve(listener, router(health, metrics)).with_graceful_shutdown(stop.cancelled_owned()).await
}

fn router(health: Health, metrics: Metrics) -> Router {
    Router::new()
        .route("/livez", get(|State(health): State<Health>| async move { probe(health.liveness()) }))
        .route("/readyz", get(|State(health): State<Health>| async move { probe(health.readiness()) }))
        .route("/startupz", get(|State(health): State<Health>| async move { probe(health.startup()) }))
        .route("/metrics", get(move || async move { metrics_response(&metrics) }))
        .with_state(health)
}

fn probe(state: Result<(), String>) -> (StatusCode, String) {
    match state {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason),
    }
}

fn metrics_response(metrics: &Metrics) -> impl IntoResponse + use<> {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], metrics.text())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    async fn get(health: &Health, path: &str) -> (u16, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router(health.clone(), Metrics::new()).oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn is_alive_and_says_what_it_waits_for_while_it_starts() {
        let health = Health::new(["metadata", "listeners"]);
        assert_eq!(get(&health, "/livez").await, (200, "ok\n".to_owned()));
        let (status, body) = get(&health, "/startupz").await;
        assert_eq!((status, body.as_str()), (503, "listeners: not started yet\nmetadata: not started yet\n"));
        health.ready("metadata");
        assert_eq!(get(&health, "/readyz").await, (503, "listeners: not started yet\n".to_owned()));
        health.ready("listeners");
        assert_eq!(get(&health, "/startupz").await.0, 200);
        assert_eq!(get(&health, "/readyz").await.0, 200);
    }

    #[tokio::test]
    async fn stays_started_when_it_is_not_ready_for_a_while() {
        let health = Health::new(["metadata"]);
        health.ready("metadata");
        health.not_ready("metadata", "no leader");
        assert_eq!(get(&health, "/readyz").await, (503, "metadata: no leader\n".to_owned()));
        assert_eq!(get(&health, "/startupz").await.0, 200);
        assert_eq!(get(&health, "/livez").await.0, 200);
    }

    #[tokio::test]
    async fn broken_storage_asks_for_a_restart_and_keeps_the_first_reason() {
        let health = Health::new([]);
        health.fail("storage", "no space");
        health.fail("storage", "closed");
        health.ready("storage");
        assert_eq!(get(&health, "/livez").await, (503, "storage: no space".to_owned()));
        assert_eq!(get(&health, "/readyz").await, (503, "storage: no space\n".to_owned()));
    }

    #[tokio::test]
    async fn serves_metrics() {
        let (status, body) = get(&Health::default(), "/metrics").await;
        assert_eq!(status, 200);
        assert!(body.ends_with("# EOF\n"), "{body}");
    }
}
