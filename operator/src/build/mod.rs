//! The objects that make up a cluster, as pure functions of a [`ValidatedCluster`].
//!
//! One file per kind. No client, no clock, no randomness: the same input gives the same object, byte for byte, which is
//! what lets [`crate::apply`] skip writes. Names and labels come from this module alone.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::{OPERATOR, controller::kafka_cluster::validate::ValidatedCluster};

pub mod config_map;
pub mod pod_disruption_budget;
pub mod secret;
pub mod service;
pub mod service_account;
pub mod stateful_set;

/// Annotation of volume claims: the cluster whose records the volume holds.
pub const CLUSTER_ID_ANNOTATION: &str = "millrace.dev/cluster-id";
/// Label by which Kubernetes tools know what made an object.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Label with the name of the KafkaCluster.
pub const INSTANCE_LABEL: &str = "app.kubernetes.io/instance";
/// Label with the part that an object plays.
pub const COMPONENT_LABEL: &str = "app.kubernetes.io/component";
/// Name of the data volume of a broker, and first part of the names of its claims.
pub const DATA_VOLUME: &str = "data";

const NAME_LABEL: &str = "app.kubernetes.io/name";
const PART_OF_LABEL: &str = "app.kubernetes.io/part-of";

/// Names of everything that belongs to one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Names {
    /// Name of the KafkaCluster.
    pub cluster: String,
    /// Its namespace.
    pub namespace: String,
}

impl Names {
    /// Names for the KafkaCluster `cluster` in `namespace`.
    pub fn new(namespace: impl Into<String>, cluster: impl Into<String>) -> Self {
        Self { cluster: cluster.into(), namespace: namespace.into() }
    }

    /// StatefulSet, ServiceAccount and PodDisruptionBudget of the brokers.
    pub fn broker_set(&self) -> String {
        format!("{}-broker", self.cluster)
    }

    /// Pod with the given ordinal.
    pub fn pod(&self, ordinal: i32) -> String {
        format!("{}-broker-{ordinal}", self.cluster)
    }

    /// Ordinal of one of our pods.
    pub fn pod_ordinal(&self, pod: &str) -> Option<i32> {
        pod.strip_prefix(&self.broker_set())?.strip_prefix('-')?.parse().ok()
    }

    /// Volume claim of the pod with the given ordinal.
    pub fn claim(&self, ordinal: i32) -> String {
        format!("{DATA_VOLUME}-{}", self.pod(ordinal))
    }

    /// Ordinal of the pod that a volume claim of ours belongs to.
    pub fn claim_ordinal(&self, claim: &str) -> Option<i32> {
        self.pod_ordinal(claim.strip_prefix(DATA_VOLUME)?.strip_prefix('-')?)
    }

    /// Headless Service that gives each broker its host name.
    pub fn headless(&self) -> String {
        format!("{}-brokers", self.cluster)
    }

    /// Service for clients inside the Kubernetes cluster.
    pub fn bootstrap(&self) -> String {
        format!("{}-bootstrap", self.cluster)
    }

    /// Service of a node port listener that leads to any broker.
    pub fn listener_bootstrap(&self, listener: &str) -> String {
        format!("{}-{listener}-bootstrap", self.cluster)
    }

    /// Service of a node port listener that leads to one broker.
    pub fn listener_broker(&self, listener: &str, ordinal: i32) -> String {
        format!("{}-broker-{ordinal}-{listener}", self.cluster)
    }

    /// ConfigMap with the properties of every broker.
    pub fn config_map(&self) -> String {
        format!("{}-broker-config", self.cluster)
    }

    /// Secret with the certificate authority of the fleet listener.
    pub fn authority_secret(&self) -> String {
        format!("{}-ca", self.cluster)
    }

    /// Secret with the certificate of the brokers.
    pub fn broker_secret(&self) -> String {
        format!("{}-broker-tls", self.cluster)
    }

    /// Secret with the operator's own client certificate.
    pub fn operator_secret(&self) -> String {
        format!("{}-operator-tls", self.cluster)
    }

    /// Host name of a broker inside the Kubernetes cluster.
    pub fn pod_host(&self, ordinal: i32) -> String {
        format!("{}.{}.{}.svc", self.pod(ordinal), self.headless(), self.namespace)
    }

    /// Host name of a Service of ours.
    pub fn service_host(&self, service: &str) -> String {
        format!("{service}.{}.svc", self.namespace)
    }

    /// Labels that never change, for selectors and volume claim templates.
    pub fn selector(&self) -> BTreeMap<String, String> {
        labels([(NAME_LABEL, "millrace"), (INSTANCE_LABEL, &self.cluster), (COMPONENT_LABEL, "broker")])
    }

    /// [`Names::selector`] in the form of a query.
    pub fn selector_query(&self) -> String {
        self.selector().iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
    }

    /// Labels of every object.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut all = self.selector();
        all.extend(labels([(MANAGED_BY_LABEL, OPERATOR), (PART_OF_LABEL, "millrace")]));
        all
    }
}

fn labels<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// Hash of `text` (FNV-1a) that stays the same in every version of the operator: a new version must not look like a change.
pub fn stable_hash(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// Metadata of an object that goes away with the KafkaCluster.
fn metadata(cluster: &ValidatedCluster, name: String) -> ObjectMeta {
    owned_metadata(&cluster.names, &cluster.owner, name)
}

fn owned_metadata(names: &Names, owner: &OwnerReference, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(names.namespace.clone()),
        labels: Some(names.labels()),
        owner_references: Some(vec![owner.clone()]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinals_are_read_back_from_names_of_this_cluster_only() {
        let names = Names::new("ns", "demo");
        assert_eq!(names.pod_ordinal(&names.pod(12)), Some(12));
        assert_eq!(names.claim_ordinal(&names.claim(3)), Some(3));
        assert_eq!(names.pod_ordinal("demo2-broker-1"), None);
        assert_eq!(names.claim_ordinal("data-other-broker-1"), None);
    }

    #[test]
    fn hash_is_the_published_fnv_1a() {
        assert_eq!(stable_hash(""), "cbf29ce484222325");
        assert_eq!(stable_hash("foobar"), "85944171f73967e8");
    }

    #[test]
    fn names_stay_within_63_characters_for_the_longest_cluster_and_listener() {
        let names = Names::new("ns", "c".repeat(32));
        for name in [names.listener_broker(&"l".repeat(15), 499), names.listener_bootstrap(&"l".repeat(15))] {
            assert!(name.len() <= 63, "{name}");
        }
    }
}
