//! `/livez`, `/readyz` and `/metrics` of the operator process.
//!
//! Live: every watch that this process keeps is alive; otherwise a restart is the cure. Ready: the process has reached
//! the API server and either works or stands by. A stand-by is ready: it does what it is there for.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{metrics::Metrics, watches::Freshness};

/// What the endpoints show.
#[derive(Clone, Debug)]
pub struct Health {
    /// Whether watches are alive.
    pub freshness: Freshness,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// Set once the process does its work or stands by, unset when it stops.
    pub ready: Arc<AtomicBool>,
}

impl Health {
    /// Not ready yet.
    pub fn new(freshness: Freshness, metrics: Arc<Metrics>) -> Self {
        Self { freshness, metrics, ready: Arc::default() }
    }

    /// Serves until `stop`. Fails only where `address` cannot be bound.
    pub async fn serve(self, address: SocketAddr, stop: CancellationToken) -> std::io::Result<()> {
        let listener = TcpListener::bind(address).await?;
        axum::serve(listener, self.router()).with_graceful_shutdown(stop.cancelled_owned()).await
    }

    fn router(self) -> Router {
        Router::new()
            .route("/livez", get(live))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(self)
    }
}

async fn live(State(health): State<Health>) -> (StatusCode, String) {
    let stale = health.freshness.stale(Instant::now());
    if stale.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let lines = stale.iter().map(|(resource, age)| {
        format!("the watch of {resource} has not been alive for {} s\n", age.as_secs())
    });
    (StatusCode::SERVICE_UNAVAILABLE, lines.collect())
}

async fn ready(State(health): State<Health>) -> (StatusCode, &'static str) {
    if health.ready.load(Ordering::Acquire) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting or stopping\n")
    }
}

async fn metrics(State(health): State<Health>) -> ([(&'static str, &'static str); 1], String) {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([("content-type", content_type)], health.metrics.render())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use axum::body::Body;
    use hyper::Request;
    use tower::ServiceExt;

    use super::*;

    async fn status(health: &Health, path: &str) -> StatusCode {
        let request = Request::get(path).body(Body::empty()).unwrap();
        health.clone().router().oneshot(request).await.unwrap().status()
    }

    #[tokio::test]
    async fn is_ready_only_when_told_so() {
        let health = Health::new(Freshness::default(), Arc::default());
        assert_eq!(status(&health, "/livez").await, StatusCode::OK);
        assert_eq!(status(&health, "/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
        health.ready.store(true, Ordering::Release);
        assert_eq!(status(&health, "/readyz").await, StatusCode::OK);
        assert_eq!(status(&health, "/metrics").await, StatusCode::OK);
    }
}
