//! `KafkaCluster`: a fleet of brokers that Kafka clients see as one cluster.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{ResourceRequirements, Toleration},
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{DeletionPolicy, properties};

/// What a user asks for.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "millrace.dev",
    version = "v1alpha1",
    kind = "KafkaCluster",
    plural = "kafkaclusters",
    shortname = "kc",
    category = "kafka",
    namespaced,
    status = "KafkaClusterStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "A fleet of Kafka-compatible brokers that clients see as one cluster.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether clients can use the cluster as the spec describes it."
    ),
    printcolumn(
        name = "Brokers",
        type_ = "integer",
        json_path = ".status.readyReplicas",
        description = "Brokers that are registered, not fenced, and whose pod is ready."
    ),
    printcolumn(
        name = "Version",
        type_ = "string",
        json_path = ".status.version",
        description = "Lowest version among the running brokers."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Cluster-Id",
        type_ = "string",
        json_path = ".status.clusterId",
        description = "Kafka's cluster id.",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        description = "Why the cluster is ready, or what it waits for.",
        priority = 1
    ),
    validation = Rule::new("size(self.metadata.name) <= 32 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must have at most 32 characters, start with a letter and contain only lower-case letters, digits and '-', because names of Services are made from it")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.config) || !('default.replication.factor' in self.config) || (self.config['default.replication.factor'].matches('^[0-9]{1,4}$') && int(self.config['default.replication.factor']) <= self.replicas)")
        .message("spec.config: default.replication.factor must be a number and not more than spec.replicas, as each replica needs a broker of its own"),
    validation = Rule::new("!has(self.config) || !('offsets.topic.replication.factor' in self.config) || (self.config['offsets.topic.replication.factor'].matches('^[0-9]{1,4}$') && int(self.config['offsets.topic.replication.factor']) <= self.replicas)")
        .message("spec.config: offsets.topic.replication.factor must be a number and not more than spec.replicas, as each replica needs a broker of its own"),
    validation = Rule::new("!has(self.config) || !('transaction.state.log.replication.factor' in self.config) || (self.config['transaction.state.log.replication.factor'].matches('^[0-9]{1,4}$') && int(self.config['transaction.state.log.replication.factor']) <= self.replicas)")
        .message("spec.config: transaction.state.log.replication.factor must be a number and not more than spec.replicas, as each replica needs a broker of its own"),
    validation = Rule::new("!has(self.config) || !('min.insync.replicas' in self.config) || (self.config['min.insync.replicas'].matches('^[1-9][0-9]{0,3}$') && int(self.config['min.insync.replicas']) <= self.replicas)")
        .message("spec.config: min.insync.replicas must be a number from 1 to spec.replicas, or no record could ever be written"),
    validation = Rule::new("!has(self.config) || !('min.insync.replicas' in self.config) || !('default.replication.factor' in self.config) || !self.config['min.insync.replicas'].matches('^[0-9]{1,4}$') || !self.config['default.replication.factor'].matches('^[0-9]{1,4}$') || int(self.config['min.insync.replicas']) <= int(self.config['default.replication.factor'])")
        .message("spec.config: min.insync.replicas must not be more than default.replication.factor, or no record could ever be written to a topic with defaults"),
    validation = Rule::new("self.listeners.all(l, !has(l.nodePorts) || l.nodePorts.brokers + self.replicas - 1 <= 65535)")
        .message("spec.listeners: nodePorts.brokers plus the number of brokers goes beyond port 65535"),
    validation = Rule::new("self.listeners.all(l, !has(l.nodePorts) || l.nodePorts.bootstrap < l.nodePorts.brokers || l.nodePorts.bootstrap >= l.nodePorts.brokers + self.replicas)")
        .message("spec.listeners: nodePorts.bootstrap lies within the ports of the brokers (nodePorts.brokers, one for each broker)"),
    validation = Rule::new("self.listeners.all(a, !has(a.nodePorts) || self.listeners.all(b, !has(b.nodePorts) || a.name == b.name || ((a.nodePorts.brokers + self.replicas <= b.nodePorts.brokers || b.nodePorts.brokers + self.replicas <= a.nodePorts.brokers) && a.nodePorts.bootstrap != b.nodePorts.bootstrap && (a.nodePorts.bootstrap < b.nodePorts.brokers || a.nodePorts.bootstrap >= b.nodePorts.brokers + self.replicas))))")
        .message("spec.listeners: the node ports of two listeners overlap; each listener takes nodePorts.bootstrap, and one port per broker from nodePorts.brokers on"),
)]
pub struct KafkaClusterSpec {
    /// Number of brokers. Default 3. More adds brokers to the running cluster; nothing restarts. Fewer is
    /// refused (condition Stalled, reason ScaleDownRefused) until brokers can be drained. Topics with default replication
    /// survive the loss of one broker from 3 on. `kubectl scale` works.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 1, max = 500))]
    pub replicas: i32,

    /// The data volume of each broker.
    pub storage: Storage,

    /// Where clients connect. At least one. A listener added later opens on a broker when its pod is started next.
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".into()]),
        validation = Rule::new("self.all(a, self.filter(b, b.port == a.port).size() == 1)")
            .message("two listeners have the same port"),
        validation = Rule::new("self.all(a, self.filter(b, b.name == a.name).size() == 1)")
            .message("two listeners have the same name"),
        validation = Rule::new("oldSelf.all(o, self.exists(n, n.name == o.name))")
            .message("a listener cannot be removed or renamed, as clients may be connected to it; add another listener beside it"),
    )]
    pub listeners: Vec<Listener>,

    /// Broker properties by Kafka's names, for example `min.insync.replicas: "2"`. Values are strings; unset ones
    /// take Kafka's default. What the operator computes (listeners, ids, paths) cannot be set. Brokers read a change
    /// when their pod is started next; the condition ConfigurationCurrent says which ones still have to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "properties")]
    #[x_kube(
        validation = Rule::new("self.all(k, !(k in ['advertised.listeners','broker.id','broker.rack','cluster.id','controller.listener.names','controller.quorum.bootstrap.servers','controller.quorum.voters','health.listener','inter.broker.listener.name','listener.security.protocol.map','listeners','log.dir','log.dirs','node.id','process.roles']) && !k.startsWith('listener.name.'))")
            .message("the operator sets listeners, ids, paths and quorum addresses itself: cluster.id, node.id, broker.id, broker.rack, log.dir, log.dirs, listeners, advertised.listeners, listener.security.protocol.map, inter.broker.listener.name, listener.name.*, controller.*, process.roles and health.listener cannot be set in spec.config"),
        validation = Rule::new("self.all(k, k.matches('^[a-zA-Z][a-zA-Z0-9._-]*$'))")
            .message("a property name starts with a letter and contains only letters, digits, '.', '_' and '-'"),
    )]
    pub config: BTreeMap<String, String>,

    /// What becomes of the data volumes when this KafkaCluster is deleted. `Retain` (default): they stay, and a
    /// KafkaCluster made with the same name takes them up again, with its old cluster id and records. `Delete`: they are
    /// deleted once the brokers have stopped. A change restarts nothing.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,

    /// Container image of the brokers. Default: the image that the operator was installed with. A change takes
    /// effect on a broker when its pod is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// When nodes pull the image. Default: `IfNotPresent`. A change takes effect on a broker when its pod is deleted.
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,

    /// CPU and memory of each broker. Default: requests of 100m CPU and 128Mi memory, no limits. A change takes
    /// effect on a broker when its pod is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,

    /// Labels that a node must have to run brokers. Default: any node. A change takes effect on a broker when its pod
    /// is deleted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,

    /// Taints of nodes that brokers accept. Default: none. A change takes effect on a broker when its pod is deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
}

fn default_replicas() -> i32 {
    3
}

/// The data volume of each broker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)")
        .message("storageClassName cannot be changed, as volumes do not move between storage classes; create another KafkaCluster")
)]
pub struct Storage {
    /// Size of the volume, as a Kubernetes quantity such as `10Gi`. May grow, without a restart, where the storage
    /// class allows expansion; never shrinks. 3 % of it (128 MiB to 768 MiB) are not for records: when the rest is used,
    /// producers get an error that they retry, while reading and deleting go on.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(
        validation = Rule::new("isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))")
            .message("size must be a quantity above zero, such as 10Gi"),
        validation = Rule::new("!isQuantity(self) || !isQuantity(oldSelf) || quantity(self).compareTo(quantity(oldSelf)) >= 0")
            .message("size cannot shrink, as a volume cannot"),
    )]
    pub size: String,

    /// Storage class of the volumes. Default: the default class of the Kubernetes cluster. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

/// A port on which brokers serve Kafka clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.type != 'NodePort' || (has(self.advertisedHost) && has(self.nodePorts))")
        .message("a listener of type NodePort needs advertisedHost (the host name clients reach the nodes by) and nodePorts"),
    validation = Rule::new("self.type == 'NodePort' || (!has(self.advertisedHost) && !has(self.nodePorts))")
        .message("advertisedHost and nodePorts belong to listeners of type NodePort only"),
    validation = Rule::new("self.type == oldSelf.type && self.port == oldSelf.port")
        .message("type and port of a listener cannot be changed, as clients may be connected to it; add another listener beside it"),
)]
pub struct Listener {
    /// Name of the listener, unique in the cluster. Brokers show it in upper case. `fleet` is reserved for
    /// traffic among the brokers. Cannot be changed.
    #[schemars(length(min = 1, max = 15), regex(pattern = "^[a-z][a-z0-9]*$"))]
    #[x_kube(
        validation = Rule::new("self != 'fleet'")
            .message("the listener name 'fleet' is reserved for traffic among the brokers")
    )]
    pub name: String,

    /// Port that each broker listens on, 1024 to 65535, other than 9093 (traffic among the brokers) and 8080 (probes and metrics).
    /// Cannot be changed.
    #[schemars(range(min = 1024, max = 65535))]
    #[x_kube(
        validation = Rule::new("self != 9093 && self != 8080")
            .message("ports 9093 (traffic among the brokers) and 8080 (probes and metrics) are taken")
    )]
    pub port: i32,

    /// Who can reach it. Cannot be changed.
    #[serde(rename = "type")]
    pub type_: ListenerType,

    /// NodePort only: host name or IPv4 address by which clients reach the nodes. Brokers tell it to clients together
    /// with their node port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-zA-Z0-9]([-a-zA-Z0-9.]*[a-zA-Z0-9])?$"))]
    pub advertised_host: Option<String>,

    /// NodePort only: ports on the nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_ports: Option<NodePorts>,
}

/// Who can reach a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ListenerType {
    /// Clients inside the Kubernetes cluster, through the Service `<cluster>-bootstrap` and the pods' own names.
    #[default]
    ClusterLocal,
    /// Clients outside, through a port on every node.
    NodePort,
}

/// Ports on the nodes, in the range that the Kubernetes cluster allows (30000 to 32767 unless configured otherwise).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodePorts {
    /// Port where clients connect first; leads to any broker. A change takes effect at once.
    #[schemars(range(min = 1, max = 65535))]
    pub bootstrap: i32,
    /// Port of broker 0; broker n is on this port plus n. Brokers tell a change to clients after their next restart.
    #[schemars(range(min = 1, max = 65535))]
    pub brokers: i32,
}

/// When nodes pull an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ImagePullPolicy {
    /// At every start of a container.
    Always,
    /// When the node does not have it.
    #[default]
    IfNotPresent,
    /// Not at all; it must be on the node.
    Never,
}

impl ImagePullPolicy {
    /// As Kubernetes spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// What the operator observed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct KafkaClusterStatus {
    /// Generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Conditions: Ready, Reconciling, Stalled, and what stands behind them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// Kafka's cluster id, 22 characters. Chosen once, before the first broker starts; never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,

    /// The metadata quorum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quorum: Option<QuorumStatus>,

    /// Number of brokers that the operator runs now; differs from spec.replicas while a scale-down is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,

    /// Number of brokers that are registered, not fenced, and whose pod is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,

    /// Label selector of the broker pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,

    /// Lowest version among the running brokers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,

    /// Addresses for clients, by listener.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub listeners: Vec<ListenerStatus>,

    /// The brokers, by pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["pod".into()]))]
    pub brokers: Vec<BrokerStatus>,

    /// Certificates of the fleet listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates: Option<CertificateStatus>,
}

/// The metadata quorum, formed once in the life of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuorumStatus {
    /// Pods chosen as the first voters, recorded before the quorum is formed. Later changes of the voters are the
    /// brokers' own business and not shown here.
    #[serde(default)]
    pub initial_voters: Vec<String>,
    /// Whether the quorum has been formed. Once true it stays true, and the operator never forms another.
    #[serde(default)]
    pub formed: bool,
}

/// One broker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BrokerStatus {
    /// Name of its pod.
    pub pod: String,
    /// Kafka broker id, once the metadata quorum has granted one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<i32>,
    /// Whether it is registered, not fenced, and its pod ready.
    pub ready: bool,
    /// Zone of its node, used to spread replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    /// Version of its binary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Address on the fleet listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// Addresses of one listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenerStatus {
    /// Name of the listener.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub type_: ListenerType,
    /// `host:port` to give to clients as `bootstrap.servers`.
    pub bootstrap_address: String,
    /// `host:port` of each broker, as clients are told.
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// Certificates of the fleet listener, which the operator issues and renews without a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertificateStatus {
    /// When the certificate authority expires. Renewed long before, with overlap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_expiry: Option<Time>,
    /// When the first of the leaf certificates expires. Renewed before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaf_expiry: Option<Time>,
}
