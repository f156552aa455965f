//! Types of the management API: HTTP/1.1 and JSON on the brokers' internal listener.
//!
//! The operator and the command line speak it; every broker answers, and forwards to the controller what only the
//! controller can decide. Paths start with [`API_PREFIX`]; a breaking change gets a new prefix beside the old one.
//! Field names are camelCase on the wire. Unknown fields are ignored, so that either side may be newer.

pub mod kafka_uuid;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// First path segment of every request, and the version of this API.
pub const API_PREFIX: &str = "/v1";

/// What a broker says about itself without asking anyone: `GET /v1/identity`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Cluster the volume was formatted for, in Kafka's 22-character form.
    pub cluster_id: String,
    /// Random uuid of the data volume, made when it was formatted.
    pub volume_uuid: String,
    /// Raft node id derived from the volume; decimal text, as JSON numbers lose precision beyond 2^53.
    pub raft_node_id: String,
    /// Kafka broker id, once the quorum has granted one.
    pub broker_id: Option<i32>,
    /// `host:port` of the internal listener, as other brokers reach it.
    pub address: String,
    /// Version of the broker binary.
    pub version: String,
    /// Whether this broker's Raft node belongs to a formed quorum.
    pub member_of_quorum: bool,
}

/// The metadata that a broker has, in short: `GET /v1/local/metadata`.
///
/// Brokers at the same position in the log have the same checksum; if two have not, one of them is defective.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalMetadata {
    /// Index of the last entry of the metadata log that is in it; 0 before the first.
    pub log_index: u64,
    /// CRC-32C of everything else in it.
    pub checksum: u32,
}

/// One voter of a quorum to be formed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Voter {
    /// See [`Identity::raft_node_id`].
    pub raft_node_id: String,
    /// See [`Identity::address`].
    pub address: String,
}

/// Forms the metadata quorum, once in the life of a cluster: `POST /v1/quorum/bootstrap`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BootstrapQuorum {
    /// Must equal the cluster id on the volume of the broker that is asked.
    pub cluster_id: String,
    /// All first voters; the broker that is asked must be among them.
    pub voters: Vec<Voter>,
}

/// The fleet as the metadata quorum sees it: `GET /v1/cluster`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterView {
    /// See [`Identity::cluster_id`].
    pub cluster_id: String,
    /// Broker that leads the metadata quorum, if it has registered.
    pub controller_id: Option<i32>,
    /// All registered brokers, by id.
    pub brokers: Vec<BrokerView>,
    /// Raft voters and learners.
    pub quorum: QuorumView,
    /// Number of topics, internal ones included.
    pub topic_count: u64,
    /// Number of partitions of all topics.
    pub partition_count: u64,
    /// Partitions without a leader.
    pub offline_partition_count: u64,
}

/// One registered broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerView {
    /// Kafka broker id.
    pub broker_id: i32,
    /// See [`Identity::volume_uuid`].
    pub volume_uuid: String,
    /// See [`Identity::raft_node_id`].
    pub raft_node_id: String,
    /// `host:port` of its internal listener.
    pub address: String,
    /// Version of its binary.
    pub version: String,
    /// Rack used for placement, if known.
    pub rack: Option<String>,
    /// A fenced broker leads nothing and is not shown to clients.
    pub fenced: bool,
    /// Number of partitions it leads.
    pub leader_count: u64,
    /// Number of replicas assigned to it.
    pub replica_count: u64,
}

/// Members of the metadata quorum, by Raft node id in decimal text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QuorumView {
    /// Raft node id of the leader.
    pub leader: Option<String>,
    /// Members that vote; while they are being changed, the old and the new ones.
    pub voters: BTreeSet<String>,
    /// Whether they are being changed: until that is done, majorities of the old and of the new ones must agree.
    #[serde(default)]
    pub changing: bool,
    /// Members that only follow the log.
    pub learners: BTreeSet<String>,
}

/// Reassignments under way, and how far they are: `GET /v1/reassignments`.
///
/// Leaders know how far their followers are; the broker that answers asks them all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReassignmentsView {
    /// Partitions under reassignment, by topic name and number.
    pub partitions: Vec<ReassignmentView>,
    /// Bytes that replicas being filled have already, as far as they are known.
    pub bytes_done: u64,
    /// Bytes that they do not have yet, as far as that is known.
    pub bytes_left: u64,
    /// Bytes per second that they are sent, over the last ten seconds.
    pub bytes_per_second: u64,
    /// Milliseconds until the last of them has everything at this rate; `None` while one stands still or is not known.
    pub eta_ms: Option<u64>,
    /// Leaders that did not answer, by broker id.
    pub silent_leaders: Vec<i32>,
}

/// One partition under reassignment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReassignmentView {
    /// Kafka topic name.
    pub topic: String,
    /// Partition number.
    pub partition: i32,
    /// Leading broker, if there is one.
    pub leader: Option<i32>,
    /// All replicas: those of the target first, then those that go.
    pub replicas: Vec<i32>,
    /// Replicas that the reassignment has brought.
    pub adding: Vec<i32>,
    /// Replicas that go when it is complete.
    pub removing: Vec<i32>,
    /// In-sync replicas.
    pub in_sync: Vec<i32>,
    /// Replicas of the target that were brought or are not in sync.
    pub filling: Vec<FillingReplica>,
}

/// A replica that is being filled. What its leader has not told is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FillingReplica {
    /// Broker.
    pub broker_id: i32,
    /// Whether it is in sync already.
    pub in_sync: bool,
    /// Bytes of the leader's log that are on its disk.
    pub bytes_done: Option<u64>,
    /// Bytes that are not.
    pub bytes_left: Option<u64>,
    /// Bytes per second that it was sent, over the last ten seconds.
    pub bytes_per_second: Option<u64>,
    /// Milliseconds until it has everything at this rate; `None` while it stands still.
    pub eta_ms: Option<u64>,
}

/// Body of `POST /v1/brokers/{id}/drain` and of `POST /v1/rebalance`; it may be left out. The answer is a [`PlanView`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartBalancing {
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// What the balancer would do, or has begun to do, as things stand. Later plans go by how things are then.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanView {
    /// Whether it is being done; `false` after a dry run.
    pub begun: bool,
    /// Moves, first to last. Some are under way at a time.
    pub moves: Vec<MoveView>,
    /// Bytes to be copied, as far as sizes are known.
    pub bytes: u64,
    /// Partitions that cannot leave draining brokers.
    pub blockers: Vec<DrainBlocker>,
    /// Brokers in service that did not tell the sizes of the partitions that they lead. While there are any, brokers are
    /// emptied and not levelled.
    pub silent_brokers: Vec<i32>,
}

/// One partition's move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MoveView {
    /// Kafka topic name.
    pub topic: String,
    /// Partition number.
    pub partition: i32,
    /// Replicas now, the preferred leader first.
    pub from: Vec<i32>,
    /// Replicas then, the preferred leader first. The same in another order: only leadership moves.
    pub to: Vec<i32>,
    /// Bytes to be copied, all replicas together.
    pub bytes: u64,
    /// `Drain`, or what is levelled by it: `Replicas`, `Bytes`, `Leaders`.
    pub reason: String,
}

/// Why a partition cannot leave a draining broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainBlocker {
    /// The draining broker.
    pub broker_id: i32,
    /// Kafka topic name.
    pub topic: String,
    /// Partition number.
    pub partition: i32,
    /// `TooFewBrokers`, `TooFewRacks`, `NoLeader` or `OutOfService`.
    pub reason: String,
    /// What is wrong and what to do, for people.
    pub message: String,
}

/// How far a broker is from being empty: `GET /v1/brokers/{id}/drain`. `POST` there has it emptied, and new partitions
/// left to others, until `DELETE` ends both and takes moves under way back. `POST` and `DELETE /v1/brokers/{id}/cordon` are
/// the same without moving what is there; the later of the two counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainView {
    /// The broker.
    pub broker_id: i32,
    /// Whether it is being emptied, or kept empty.
    pub draining: bool,
    /// Whether it gets no new replicas; always so while it is draining.
    pub cordoned: bool,
    /// Whether no replica is assigned to it any more. It deletes their logs within moments.
    pub empty: bool,
    /// Replicas that are assigned to it.
    pub replicas_left: u64,
    /// Partitions that it leads.
    pub leaders_left: u64,
    /// Moves under way that take a replica from it.
    pub moves_under_way: u64,
    /// Bytes to be copied before it is empty, as far as they are known.
    pub bytes_left: u64,
    /// Bytes per second that all replicas under reassignment are sent, over the last ten seconds.
    pub bytes_per_second: u64,
    /// Bytes per second at which each leader fills the balancer's moves at most; `None` while there are none.
    pub rate_limit: Option<u64>,
    /// Milliseconds until it is empty at this rate; `None` while nothing is sent.
    pub eta_ms: Option<u64>,
    /// Partitions that cannot leave it as things stand.
    pub blockers: Vec<DrainBlocker>,
    /// See [`PlanView::silent_brokers`].
    pub silent_brokers: Vec<i32>,
}

/// How far a rebalance is, and how even brokers are: `GET /v1/rebalance`. `POST` there begins one, which ends by itself;
/// `DELETE` ends it and takes moves under way back, those of drains left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RebalanceView {
    /// Whether one was asked for and is not done.
    pub rebalancing: bool,
    /// Partitions that the balancer is moving, for drains too.
    pub moves_under_way: u64,
    /// Further moves that are planned.
    pub moves_left: u64,
    /// Bytes to be copied, as far as they are known.
    pub bytes_left: u64,
    /// See [`DrainView::bytes_per_second`].
    pub bytes_per_second: u64,
    /// See [`DrainView::rate_limit`].
    pub rate_limit: Option<u64>,
    /// Milliseconds until it is done at this rate; `None` while nothing is sent.
    pub eta_ms: Option<u64>,
    /// What each broker carries.
    pub brokers: Vec<BrokerLoadView>,
    /// See [`PlanView::silent_brokers`].
    pub silent_brokers: Vec<i32>,
}

/// What one broker carries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerLoadView {
    /// Broker.
    pub broker_id: i32,
    /// Replicas assigned to it.
    pub replicas: u64,
    /// Their bytes, as their leaders know them.
    pub bytes: u64,
    /// Partitions that it leads.
    pub leaders: u64,
    /// Bytes per second that it takes in and gives out as their leader, over the last minute or so; partitions that it
    /// leads for less than ten seconds are not counted.
    #[serde(default)]
    pub leader_bytes_per_second: u64,
}

/// Tells the controller where a broker runs: `PUT /v1/brokers/{id}/rack`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetRack {
    /// New rack; `None` clears it.
    pub rack: Option<String>,
}

/// The Kubernetes object that manages a topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicOwner {
    /// Namespace of the Topic object.
    pub namespace: String,
    /// Name of the Topic object.
    pub name: String,
    /// Uid of the Topic object; ownership is decided by it.
    pub uid: String,
}

/// Brings a topic to the wanted state, creating it when absent: `PUT /v1/topics/{name}`.
///
/// Unset fields stay unmanaged: they take the cluster's default when the topic is created and are left alone after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApplyTopic {
    /// Who asks. A topic owned by another uid is refused with [`code::OWNED_BY_ANOTHER`].
    pub owner: TopicOwner,
    /// Wanted number of partitions; never fewer than there are.
    pub partitions: Option<i32>,
    /// Wanted replicas per partition.
    pub replicas: Option<i16>,
    /// Topic configuration to set. Keys set through an earlier apply and absent now are reset; others are left alone.
    #[serde(default)]
    pub config: BTreeMap<String, String>,
    /// Take over a topic that exists and has no owner.
    #[serde(default)]
    pub adopt: bool,
}

/// Answer to [`ApplyTopic`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApplyTopicResult {
    /// Whether anything was written to the metadata log.
    pub changed: bool,
    /// The topic as it is now.
    pub topic: TopicView,
}

/// A topic as the metadata image has it: `GET /v1/topics/{name}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicView {
    /// Kafka topic name.
    pub name: String,
    /// Topic id in Kafka's 22-character form.
    pub topic_id: String,
    /// Managing object, if any.
    pub owner: Option<TopicOwner>,
    /// Number of partitions.
    pub partitions: i32,
    /// Replicas per partition; the smallest where they differ. Of partitions under reassignment, those of the target.
    pub replicas: i16,
    /// Partitions without a leader.
    pub offline_partitions: i32,
    /// Partitions with fewer in-sync replicas than assigned ones, replicas that are being added not counted.
    pub under_replicated_partitions: i32,
    /// Dynamic topic configuration.
    pub config: BTreeMap<String, String>,
}

/// Gives a topic up without deleting it: `POST /v1/topics/{name}/release`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReleaseTopic {
    /// Uid of the object that owns the topic so far.
    pub owner_uid: String,
}

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiError {
    /// One of the constants in [`code`].
    pub code: String,
    /// What was wrong and what to do, for people.
    pub message: String,
}

/// Values of [`ApiError::code`]; CamelCase, so that they serve as condition reasons too.
pub mod code {
    /// The request names another cluster than the volume belongs to.
    pub const CLUSTER_ID_MISMATCH: &str = "ClusterIdMismatch";
    /// The broker that was asked to form a quorum is not one of its voters.
    pub const NOT_A_VOTER: &str = "NotAVoter";
    /// The broker belongs to a quorum with other voters already.
    pub const ALREADY_MEMBER: &str = "AlreadyMember";
    /// The quorum has no leader, or it cannot be reached; try again.
    pub const QUORUM_UNAVAILABLE: &str = "QuorumUnavailable";
    /// No such topic.
    pub const TOPIC_NOT_FOUND: &str = "TopicNotFound";
    /// Another object manages the topic.
    pub const OWNED_BY_ANOTHER: &str = "OwnedByAnother";
    /// The topic exists without an owner and adoption was not asked for.
    pub const NOT_ADOPTED: &str = "NotAdopted";
    /// Fewer partitions were asked for than exist.
    pub const PARTITIONS_SHRINK: &str = "PartitionsShrink";
    /// More replicas than brokers, or a change of replicas that is not supported.
    pub const INVALID_REPLICATION_FACTOR: &str = "InvalidReplicationFactor";
    /// An unknown configuration key or a value that it does not take.
    pub const INVALID_CONFIG: &str = "InvalidConfig";
    /// The topic name is not a legal one.
    pub const INVALID_TOPIC_NAME: &str = "InvalidTopicName";
    /// A broker may not register as it asked.
    pub const REGISTRATION_REFUSED: &str = "RegistrationRefused";
    /// No such broker.
    pub const BROKER_NOT_FOUND: &str = "BrokerNotFound";
    /// The request could not be read.
    pub const BAD_REQUEST: &str = "BadRequest";
}
