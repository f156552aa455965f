//! What several kinds share.

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// API group of all kinds.
pub const GROUP: &str = "millrace.dev";
/// The one version served so far.
pub const VERSION: &str = "v1alpha1";

/// Listener name that the operator keeps for traffic among the brokers.
pub const FLEET_LISTENER: &str = "fleet";
/// Port of the fleet listener on every broker.
pub const FLEET_PORT: u16 = 9093;
/// Port of probes and metrics on every broker, plain HTTP.
pub const HEALTH_PORT: u16 = 8080;

/// Broker properties that the operator computes; `spec.config` may not name them.
///
/// The CEL rule on `spec.config` repeats this list, as CEL cannot refer to it; a test compares the two.
pub const MANAGED_KEYS: [&str; 15] = [
    "advertised.listeners",
    "broker.id",
    "broker.rack",
    "cluster.id",
    "controller.listener.names",
    "controller.quorum.bootstrap.servers",
    "controller.quorum.voters",
    "health.listener",
    "inter.broker.listener.name",
    "listener.security.protocol.map",
    "listeners",
    "log.dir",
    "log.dirs",
    "node.id",
    "process.roles",
];
/// Prefixes of broker properties that the operator computes.
pub const MANAGED_PREFIXES: [&str; 1] = ["listener.name."];

/// What happens to the data when the object is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// The data stays and can be adopted again: a pruned manifest destroys nothing.
    #[default]
    Retain,
    /// The data is deleted with the object.
    Delete,
}

/// The KafkaCluster an object belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRef {
    /// Name of a KafkaCluster in the same namespace.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// Schema of a map of Kafka properties.
///
/// Written by hand because the values need bounds of their own: one line each (they end up in a properties file), and
/// a length that keeps the cost of CEL rules over them within the API server's budget.
pub(crate) fn properties(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 128,
        "additionalProperties": { "type": "string", "maxLength": 1024, "pattern": "^[^\\r\\n]*$" },
    })
}
