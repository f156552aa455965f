//! Names of all metrics, with unit and meaning. Labels come from small closed sets.

use std::time::Duration;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// A kind that is reconciled.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReconcileLabels {
    kind: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    method: &'static str,
    resource: &'static str,
}

/// The operator's metrics. Cheap to share behind an `Arc`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconciles: Family<ReconcileLabels, Counter>,
    durations: Family<KindLabels, Histogram, fn() -> Histogram>,
    malformed: Family<KindLabels, Counter>,
    writes: Family<WriteLabels, Counter>,
    events: Counter,
    leader: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics, at zero.
    pub fn new() -> Self {
        let buckets: fn() -> Histogram = || Histogram::new([0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0]);
        let mut registry = Registry::with_prefix("millrace_operator");
        let metrics = Self {
            reconciles: Family::default(),
            durations: Family::new_with_constructor(buckets),
            malformed: Family::default(),
            writes: Family::default(),
            events: Counter::default(),
            leader: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register(
            "reconciles",
            "Passes over one object, by kind and result",
            metrics.reconciles.clone(),
        );
        registry.register_with_unit(
            "reconcile_duration",
            "Time of one pass over one object",
            Unit::Seconds,
            metrics.durations.clone(),
        );
        registry.register("malformed_objects", "Objects that could not be read", metrics.malformed.clone());
        registry.register(
            "api_writes",
            "Writes to the Kubernetes API, leases left out; stands still while everything is converged",
            metrics.writes.clone(),
        );
        registry.register("events", "Kubernetes Events published", metrics.events.clone());
        registry.register("leader", "1 while this process holds the lease", metrics.leader.clone());
        Self { registry, ..metrics }
    }

    /// One pass is over.
    pub fn reconciled(&self, kind: &'static str, failed: bool, duration: Duration) {
        let result = if failed { "error" } else { "ok" };
        self.reconciles.get_or_create(&ReconcileLabels { kind, result }).inc();
        self.durations.get_or_create(&KindLabels { kind }).observe(duration.as_secs_f64());
    }

    /// An object could not be read.
    pub fn malformed(&self, kind: &'static str) {
        self.malformed.get_or_create(&KindLabels { kind }).inc();
    }

    /// A request that changes something went out.
    pub fn wrote(&self, method: &'static str, resource: &'static str) {
        self.writes.get_or_create(&WriteLabels { method, resource }).inc();
    }

    /// An Event was published.
    pub fn published(&self) {
        self.events.inc();
    }

    /// Whether this process leads.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// The metrics in the text format of Prometheus.
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a String cannot fail");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_what_was_counted() {
        let metrics = Metrics::new();
        metrics.reconciled("KafkaCluster", false, Duration::from_millis(3));
        metrics.wrote("PATCH", "services");
        let text = metrics.render();
        assert!(
            text.contains(r#"millrace_operator_reconciles_total{kind="KafkaCluster",result="ok"} 1"#),
            "{text}"
        );
        assert!(
            text.contains(r#"millrace_operator_api_writes_total{method="PATCH",resource="services"} 1"#),
            "{text}"
        );
    }
}
