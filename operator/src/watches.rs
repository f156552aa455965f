//! Watches of the Kubernetes API: one back-off each, and a clock that shows whether they are alive.
//!
//! A watch that fails is tried again on its own, so a broken one never holds up the others. Whether a watch is alive
//! cannot be seen from its events, as a quiet cluster has none; but each watch request ends after some minutes and is made
//! again, so [`Freshness`] looks at the requests: a resource that was watched, and for which no list or watch has
//! succeeded for [`STALE_AFTER`], is stale, and the process should be restarted.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{Stream, future::BoxFuture};
use hyper::{Method, Request, Response};
use kube::{
    Api, Resource,
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use tower::{Layer, Service};

use crate::metrics::Metrics;

/// A watch request lasts up to 290 s; this allows for a whole one to fail and be tried again with back-off.
pub const STALE_AFTER: Duration = Duration::from_secs(11 * 60);

/// Objects of a kind as they change, with a back-off of their own.
pub fn watch<K>(
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watcher(api, config).default_backoff()
}

/// When each watched resource was last seen alive.
#[derive(Clone, Debug, Default)]
pub struct Freshness {
    seen: Arc<Mutex<BTreeMap<String, Instant>>>,
}

impl Freshness {
    /// Resources whose watch is stale at `now`, with the time since they were seen alive.
    pub fn stale(&self, now: Instant) -> Vec<(String, Duration)> {
        let seen = self.seen.lock().expect("no panic while the lock is held");
        seen.iter()
            .map(|(resource, at)| (resource.clone(), now.saturating_duration_since(*at)))
            .filter(|(_, age)| *age > STALE_AFTER)
            .collect()
    }

    fn saw(&self, resource: &str, now: Instant) {
        let mut seen = self.seen.lock().expect("no panic while the lock is held");
        seen.insert(resource.to_owned(), now);
    }

    /// A request begins: its resource is expected to be alive from now on.
    fn expects(&self, resource: &str, now: Instant) {
        let mut seen = self.seen.lock().expect("no panic while the lock is held");
        seen.entry(resource.to_owned()).or_insert(now);
    }
}

/// Observes every request to the API server, for [`Freshness`] and the metrics.
#[derive(Clone, Debug)]
pub struct Observe {
    /// Where successful watches are noted.
    pub freshness: Freshness,
    /// Where writes are counted.
    pub metrics: Arc<Metrics>,
}

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, observe: self.clone() }
    }
}

/// See [`Observe`].
#[derive(Clone, Debug)]
pub struct Observed<S> {
    inner: S,
    observe: Observe,
}

impl<S, B, R> Service<Request<B>> for Observed<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let watched = watched_resource(request.uri().path(), request.uri().query());
        if let Some((method, resource)) = written_resource(request.method(), request.uri().path()) {
            self.observe.metrics.wrote(method, resource);
        }
        let freshness = self.observe.freshness.clone();
        if let Some(resource) = &watched {
            freshness.expects(resource, Instant::now());
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            if let Some(resource) = watched.filter(|_| answer.status().is_success()) {
                freshness.saw(&resource, Instant::now());
            }
            Ok(answer)
        })
    }
}

/// The resource of a watch request: the last segment of its path.
fn watched_resource(path: &str, query: Option<&str>) -> Option<String> {
    let watching = query?.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1"));
    watching.then(|| path.rsplit('/').next().unwrap_or_default().to_owned())
}

/// Method and resource of a request that changes something, from a closed set.
fn written_resource(method: &Method, path: &str) -> Option<(&'static str, &'static str)> {
    let method = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE]
        .iter()
        .position(|writing| writing == method)
        .map(|at| ["POST", "PUT", "PATCH", "DELETE"][at])?;
    const RESOURCES: [&str; 10] = [
        "kafkaclusters",
        "topics",
        "services",
        "configmaps",
        "serviceaccounts",
        "secrets",
        "persistentvolumeclaims",
        "statefulsets",
        "poddisruptionbudgets",
        "events",
    ];
    let mut segments = path.split('/');
    // The lease is renewed all the time and says nothing about convergence.
    if segments.clone().any(|segment| segment == "leases") {
        return None;
    }
    let resource = segments.find_map(|segment| RESOURCES.into_iter().find(|known| *known == segment));
    Some((method, resource.unwrap_or("other")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_that_does_not_come_back_grows_stale() {
        let freshness = Freshness::default();
        let start = Instant::now();
        freshness.expects("pods", start);
        freshness.saw("topics", start + STALE_AFTER);
        assert!(freshness.stale(start + STALE_AFTER).is_empty());
        let stale = freshness.stale(start + STALE_AFTER + Duration::from_secs(1));
        assert_eq!(stale.into_iter().map(|(resource, _)| resource).collect::<Vec<_>>(), ["pods"]);
    }

    #[test]
    fn only_watch_requests_count_as_watches() {
        let path = "/apis/millrace.dev/v1alpha1/topics";
        assert_eq!(watched_resource(path, Some("&watch=true&timeoutSeconds=290")).as_deref(), Some("topics"));
        assert_eq!(watched_resource(path, Some("&limit=500")), None);
    }

    #[test]
    fn writes_are_counted_by_resource_and_leases_are_left_out() {
        let status = "/apis/millrace.dev/v1alpha1/namespaces/a/kafkaclusters/demo/status";
        assert_eq!(written_resource(&Method::PATCH, status), Some(("PATCH", "kafkaclusters")));
        assert_eq!(written_resource(&Method::GET, status), None);
        let lease = "/apis/coordination.k8s.io/v1/namespaces/a/leases/x";
        assert_eq!(written_resource(&Method::PUT, lease), None);
    }
}
