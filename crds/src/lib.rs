//! What users write: the kinds of `millrace.dev/v1alpha1` as Rust types, and the YAML made from them.
//!
//! One module per kind. Whatever can be checked without a cluster is checked here, in the schema: ranges, patterns
//! and CEL rules, so that a bad manifest is refused by `kubectl apply` with a message for its author. Doc comments
//! are the user manual (`kubectl explain`): meaning, unit, default, what a change causes.
//!
//! Leaves out what needs a client or a broker to know; that is the operator's `validate` and the broker's own refusal.
//! The kinds grow by addition: a field keeps its name and meaning, and a rule may only become weaker.

#![expect(unreachable_pub, reason = "KubeSchema repeats each type, with its `pub`, inside a function")]

mod cluster;
mod common;
pub mod condition;
mod topic;
mod yaml;

#[cfg(test)]
mod rules_test;

pub use cluster::{
    BrokerStatus, CertificateStatus, ImagePullPolicy, KafkaCluster, KafkaClusterSpec, KafkaClusterStatus,
    Listener, ListenerStatus, ListenerType, NodePorts, QuorumStatus, Storage,
};
pub use common::{
    ClusterRef, DeletionPolicy, FLEET_LISTENER, FLEET_PORT, GROUP, HEALTH_PORT, MANAGED_KEYS,
    MANAGED_PREFIXES, VERSION,
};
pub use topic::{Topic, TopicSpec, TopicStatus};
pub use yaml::{REGENERATE, generated_files};
