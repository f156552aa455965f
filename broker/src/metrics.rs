//! Every metric of the broker: name, unit and meaning, in one place.
//!
//! Labels come from small closed sets: API names, Kafka's error names, listener names, reasons spelled out here.

pub mod durations;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::{ApiKey, ErrorCode};
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use durations::Durations;

/// All metrics. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    requests: Family<ApiLabels, Counter>,
    request_time: Family<ApiLabels, Histogram, fn() -> Histogram>,
    response_errors: Family<ErrorLabels, Counter>,
    received: Family<ListenerLabels, Counter>,
    sent: Family<ListenerLabels, Counter>,
    connections: Family<ListenerLabels, Gauge>,
    accepted: Family<ListenerLabels, Counter>,
    refused: Family<ReasonLabels, Counter>,
    closed: Family<ReasonLabels, Counter>,
    cleaner: CleanerMetrics,
    produce_times: Durations,
}

/// What the compaction of logs counts with.
#[derive(Clone, Debug, Default)]
pub struct CleanerMetrics {
    /// Logs that cannot be compacted.
    pub uncleanable_logs: Gauge,
    /// Age in seconds of the oldest record that could be compacted and is not, over all logs.
    pub max_dirty_lag_seconds: Gauge,
    /// Bytes read.
    pub read: Counter,
    /// Bytes written.
    pub written: Counter,
    /// Bytes by which logs have become smaller.
    pub removed: Counter,
}

impl CleanerMetrics {
    fn register(&self, registry: &mut Registry) {
        let Self { uncleanable_logs, max_dirty_lag_seconds, read, written, removed } = self;
        registry.register(
            "log_cleaner_uncleanable_logs",
            "Logs that cannot be compacted before a restart, because of damaged records",
            uncleanable_logs.clone(),
        );
        registry.register_with_unit(
            "log_cleaner_max_dirty_lag",
            "Age of the oldest record that could be compacted and is not",
            Unit::Seconds,
            max_dirty_lag_seconds.clone(),
        );
        registry.register_with_unit("log_cleaner_read", "Read by compactions", Unit::Bytes, read.clone());
        registry.register_with_unit(
            "log_cleaner_written",
            "Written by compactions",
            Unit::Bytes,
            written.clone(),
        );
        registry.register_with_unit(
            "log_cleaner_removed",
            "Bytes by which compactions have made logs smaller",
            Unit::Bytes,
            removed.clone(),
        );
    }
}

/// What one listener's connections count with, looked up once for all of them.
#[derive(Clone, Debug)]
pub struct ListenerMetrics {
    /// Bytes of requests.
    pub received: Counter,
    /// Bytes of responses.
    pub sent: Counter,
    /// Connections that are open.
    pub connections: Gauge,
    /// Connections ever accepted.
    pub accepted: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ApiLabels {
    api: Api,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    api: Api,
    error: KafkaError,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabels {
    listener: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Api(ApiKey);

impl EncodeLabelValue for Api {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.0.name().encode(encoder)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct KafkaError(ErrorCode);

impl EncodeLabelValue for KafkaError {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.0.name().encode(encoder)
    }
}

impl Metrics {
    /// Registers everything.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("millrace_broker");
        // 50 µs to 13 s: from an answer out of memory to a controller that is being elected.
        let request_time: Family<ApiLabels, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(50e-6, 4.0, 10)));
        let (requests, response_errors) = (Family::default(), Family::default());
        let (received, sent) = (Family::default(), Family::default());
        let (connections, accepted) = (Family::default(), Family::default());
        let (refused, closed) = (Family::default(), Family::default());
        registry.register("requests", "Requests of clients that were answered", requests.clone());
        registry.register_with_unit(
            "request_time",
            "Time from a whole request to its whole answer, waiting included",
            Unit::Seconds,
            request_time.clone(),
        );
        registry.register(
            "response_errors",
            "Error codes in answers, one for each part",
            response_errors.clone(),
        );
        registry.register_with_unit("received", "Requests of clients", Unit::Bytes, received.clone());
        registry.register_with_unit("sent", "Answers to clients", Unit::Bytes, sent.clone());
        registry.register("connections", "Client connections that are open", connections.clone());
        registry.register("connections_accepted", "Client connections that came in", accepted.clone());
        registry.register("connections_refused", "Client connections over a limit", refused.clone());
        registry.register("connections_closed", "Client connections that this side ended", closed.clone());
        let cleaner = CleanerMetrics::default();
        cleaner.register(&mut registry);
        Self {
            registry: Arc::new(registry),
            requests,
            request_time,
            response_errors,
            received,
            sent,
            connections,
            accepted,
            refused,
            closed,
            cleaner,
            produce_times: Durations::default(),
        }
    }

    /// A request was answered, or needed no answer.
    pub fn request(&self, key: ApiKey, time: Duration) {
        let labels = ApiLabels { api: Api(key) };
        self.requests.get_or_create(&labels).inc();
        self.request_time.get_or_create(&labels).observe(time.as_secs_f64());
        if key == ApiKey::Produce {
            self.produce_times.observe(time);
        }
    }

    /// Times of all produce requests, in finer classes than those that are shown.
    pub fn produce_times(&self) -> Durations {
        self.produce_times.clone()
    }

    /// An answer holds an error.
    pub fn response_error(&self, key: ApiKey, error: ErrorCode) {
        self.response_errors.get_or_create(&ErrorLabels { api: Api(key), error: KafkaError(error) }).inc();
    }

    /// What connections of `listener` count with.
    pub fn listener(&self, listener: &str) -> ListenerMetrics {
        let labels = ListenerLabels { listener: listener.to_owned() };
        ListenerMetrics {
            received: self.received.get_or_create(&labels).clone(),
            sent: self.sent.get_or_create(&labels).clone(),
            connections: self.connections.get_or_create(&labels).clone(),
            accepted: self.accepted.get_or_create(&labels).clone(),
        }
    }

    /// What the compaction of logs counts with.
    pub fn cleaner(&self) -> CleanerMetrics {
        self.cleaner.clone()
    }

    /// A connection was over a limit.
    pub fn connection_refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// This side has ended a connection.
    pub fn connection_closed(&self, reason: &'static str) {
        self.closed.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Everything in the text format of OpenMetrics.
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing into a string does not fail");
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_api_and_error() {
        let metrics = Metrics::new();
        metrics.request(ApiKey::Metadata, Duration::from_millis(1));
        metrics.request(ApiKey::Metadata, Duration::from_millis(1));
        metrics.response_error(ApiKey::Produce, ErrorCode::NotLeaderOrFollower);
        let listener = metrics.listener("INTERNAL");
        listener.received.inc_by(10);
        metrics.listener("INTERNAL").received.inc_by(5);
        let text = metrics.text();
        assert!(text.contains("millrace_broker_requests_total{api=\"Metadata\"} 2"), "{text}");
        let error =
            "millrace_broker_response_errors_total{api=\"Produce\",error=\"NOT_LEADER_OR_FOLLOWER\"} 1";
        assert!(text.contains(error), "{text}");
        assert!(text.contains("millrace_broker_received_bytes_total{listener=\"INTERNAL\"} 15"), "{text}");
    }
}
