//! `Topic`: one topic of a KafkaCluster, managed as a Kubernetes object.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::common::{ClusterRef, DeletionPolicy, properties};

/// What a user asks for. Fields that are not set stay unmanaged.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "millrace.dev",
    version = "v1alpha1",
    kind = "Topic",
    plural = "topics",
    shortname = "kt",
    category = "kafka",
    namespaced,
    status = "TopicStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "A topic of a KafkaCluster. To take over a topic that exists already, set the annotation millrace.dev/adopt: \"true\".",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name", description = "KafkaCluster it belongs to."),
    printcolumn(name = "Topic", type_ = "string", json_path = ".status.topicName", description = "Name that Kafka clients use."),
    printcolumn(name = "Partitions", type_ = "integer", json_path = ".status.partitions", description = "Partitions it has."),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.replicas", description = "Replicas of each partition."),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether the topic is as the spec describes it."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        description = "Why the topic is ready, or what it waits for.",
        priority = 1
    ),
    validation = Rule::new("has(self.spec.topicName) || size(self.metadata.name) <= 249")
        .message("metadata.name is longer than the 249 characters of a topic name; set spec.topicName")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.topicName) == has(oldSelf.topicName) && (!has(self.topicName) || self.topicName == oldSelf.topicName)")
        .message("topicName cannot be changed, set or unset later, as Kafka cannot rename topics; create another Topic"),
    validation = Rule::new("!has(self.replicas) || !has(self.config) || !('min.insync.replicas' in self.config) || (self.config['min.insync.replicas'].matches('^[1-9][0-9]{0,3}$') && int(self.config['min.insync.replicas']) <= self.replicas)")
        .message("spec.config: min.insync.replicas must be a number from 1 to spec.replicas, or no record could ever be written"),
)]
pub struct TopicSpec {
    /// The cluster that holds the topic. Cannot be changed.
    #[x_kube(
        validation = Rule::new("self.name == oldSelf.name")
            .message("clusterRef cannot be changed, as a topic does not move between clusters; create another Topic")
    )]
    pub cluster_ref: ClusterRef,

    /// Name that Kafka clients use: up to 249 letters, digits, '.', '_' and '-'. Default: metadata.name. Cannot be
    /// changed, nor set or unset later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 249), regex(pattern = "^[a-zA-Z0-9._-]+$"))]
    #[x_kube(
        validation = Rule::new("self != '.' && self != '..'")
            .message("a topic cannot be named '.' or '..'"),
        validation = Rule::new("!(self in ['__consumer_offsets', '__transaction_state', '__share_group_state', '__cluster_metadata'])")
            .message("this topic belongs to the brokers and cannot be managed as a Topic"),
    )]
    pub topic_name: Option<String>,

    /// Number of partitions, 1 to 10000. Default: the cluster's `num.partitions` when the topic is created, unmanaged after.
    /// May grow: keyed records go to other partitions from then on. Never shrinks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    #[x_kube(
        validation = Rule::new("self >= oldSelf")
            .message("partitions cannot shrink, as the records in them would be lost; create another topic")
    )]
    pub partitions: Option<i32>,

    /// Replicas of each partition, each on a broker of its own. Default: the cluster's `default.replication.factor`
    /// when the topic is created, unmanaged after. Not more than the cluster has brokers. Cannot be changed on an existing topic
    /// yet: such a change is refused with a condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 500))]
    pub replicas: Option<i32>,

    /// Topic properties by Kafka's names, for example `retention.ms: "604800000"`. Values are strings. Keys that are not named
    /// stay as they are; a key that was named and is removed goes back to the cluster's default. Changes take effect at once.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "properties")]
    #[x_kube(
        validation = Rule::new("self.all(k, k.matches('^[a-zA-Z][a-zA-Z0-9._-]*$'))")
            .message("a property name starts with a letter and contains only letters, digits, '.', '_' and '-'"),
    )]
    pub config: BTreeMap<String, String>,

    /// What becomes of the topic and its records when this object is deleted. `Retain` (default): they stay, without an
    /// owner, and another Topic can adopt them. `Delete`: they are deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

impl Topic {
    /// Name of the topic as Kafka clients know it.
    pub fn topic_name(&self) -> &str {
        self.spec.topic_name.as_deref().or(self.metadata.name.as_deref()).unwrap_or_default()
    }
}

/// What the operator observed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TopicStatus {
    /// Generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Conditions: Ready, Reconciling, Stalled, and what stands behind them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// Kafka's topic id, 22 characters; a topic made anew under the same name has another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<String>,

    /// Name that Kafka clients use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_name: Option<String>,

    /// Partitions the topic has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<i32>,

    /// Replicas of each partition; the smallest where they differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,

    /// Partitions that have no leader, and so can be neither read nor written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offline_partitions: Option<i32>,

    /// Partitions with fewer in-sync replicas than assigned ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under_replicated_partitions: Option<i32>,
}
