//! The cluster's metadata as of one position of the Raft log.
//!
//! Answers every question about brokers, topics, partitions and configuration without asking anyone. An image never
//! changes; the state machine makes the next one from it and a list of records, and publishes that. Nobody else
//! makes one. Topics are shared between images, so that the next image costs what changed and one map of pointers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use uuid::Uuid;

/// Kafka's broker id; also called node id on the wire.
pub type BrokerId = i32;

/// A partition that has no leader says so with this broker id.
pub const NO_LEADER: BrokerId = -1;

/// One partition of one topic, by the topic's id: a topic made anew under an old name is another topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicIdPartition {
    /// Topic id.
    pub topic_id: Uuid,
    /// Partition number, from 0.
    pub partition: i32,
}

/// Where one broker listens for one listener name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Listener name, upper case.
    pub listener: String,
    /// Advertised host name or address.
    pub host: String,
    /// Advertised port.
    pub port: u16,
    /// `PLAINTEXT` or `SSL`.
    pub security_protocol: String,
}

/// A broker as it last registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerImage {
    /// Kafka broker id.
    pub broker_id: BrokerId,
    /// Raft log index of the registration: a broker that registers again gets a higher one (KIP-631).
    pub broker_epoch: i64,
    /// The data volume that the broker runs on. Another uuid means that what it led before is gone.
    pub volume_uuid: Uuid,
    /// Raft node id, derived from the volume.
    pub raft_node_id: u64,
    /// `host:port` of the internal listener.
    pub address: String,
    /// Client listeners.
    pub endpoints: Vec<Endpoint>,
    /// Rack for placement.
    pub rack: Option<String>,
    /// A fenced broker leads nothing and is not shown to clients.
    pub fenced: bool,
    /// The broker has asked to stop: it gets no new leadership, and keeps what it has until that has moved.
    pub in_controlled_shutdown: bool,
    /// Version of its binary.
    pub version: String,
    /// `min.insync.replicas` of its configuration file: what it goes by while it leads a partition for which neither the
    /// topic nor the cluster says anything else. Told with every registration.
    pub min_insync_replicas: i32,
}

impl BrokerImage {
    /// Whether the controller may make this broker a leader.
    pub fn may_lead(&self) -> bool {
        !self.fenced && !self.in_controlled_shutdown
    }

    /// Endpoint of `listener`, if the broker has that listener.
    pub fn endpoint(&self, listener: &str) -> Option<&Endpoint> {
        self.endpoints.iter().find(|endpoint| endpoint.listener == listener)
    }
}

/// What somebody wants of a broker that is to get no more replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerMark {
    /// New partitions and moves leave it out; what it has stays.
    Cordoned,
    /// As cordoned, and every replica that it has is moved to other brokers.
    Draining,
}

/// What the balancer has been asked for and has under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BalanceImage {
    /// Whether somebody has asked for replicas and leaders to be spread evenly, and that is not done yet.
    pub rebalancing: bool,
    /// Bytes per second at which each leader fills the replicas that the balancer's moves bring; `None` is no limit.
    pub rate: Option<u64>,
    /// Partitions that the balancer has begun to move. Those whose reassignment is over stay until the next change.
    pub moves: BTreeSet<TopicIdPartition>,
}

impl BalanceImage {
    /// Partitions whose replicas are filled at the balancer's rate, if there is one.
    pub fn throttled(&self) -> Option<&BTreeSet<TopicIdPartition>> {
        self.rate.map(|_| &self.moves)
    }
}

/// The broker that a lost volume belonged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetiredNode {
    /// Broker, which has registered with another volume since.
    pub broker_id: BrokerId,
    /// The lost volume.
    pub volume_uuid: Uuid,
}

/// One replica of a partition: a broker, and the volume on it that holds the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Broker that the replica is assigned to.
    pub broker_id: BrokerId,
    /// Volume that holds the replica's data: the broker's when the replica was assigned, and from then on while it is in
    /// sync or eligible; one that is neither moves with its broker to another volume. Nil until the broker was seen.
    pub volume_uuid: Uuid,
}

/// State of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionImage {
    /// Assigned replicas; the first one is the preferred leader. During a reassignment those that are to stay come first,
    /// in their order, then those that are to go.
    pub replicas: Vec<Replica>,
    /// Replicas that a reassignment under way has brought, and that go again if it is cancelled (KIP-455). A subset of
    /// `replicas`.
    pub adding: Vec<BrokerId>,
    /// Replicas that go when the reassignment under way is complete. A subset of `replicas`; one that an earlier target
    /// of the same reassignment had brought is in `adding` too.
    pub removing: Vec<BrokerId>,
    /// In-sync replicas, a subset of `replicas`.
    pub isr: Vec<BrokerId>,
    /// Replicas that left the in-sync ones when these fell below `min.insync.replicas`, and that still hold everything
    /// below the high watermark, since it has not moved from then on (KIP-966). Disjoint from `isr`.
    pub elr: Vec<BrokerId>,
    /// Leading broker, or [`NO_LEADER`].
    pub leader: BrokerId,
    /// Rises with every change of the leader, and when a replica is taken away.
    pub leader_epoch: i32,
    /// Rises with every change of this state.
    pub partition_epoch: i32,
}

impl PartitionImage {
    /// Replicas' broker ids in assignment order.
    pub fn replica_ids(&self) -> impl Iterator<Item = BrokerId> + '_ {
        self.replicas.iter().map(|replica| replica.broker_id)
    }

    /// Whether a reassignment is under way.
    pub fn is_reassigning(&self) -> bool {
        !self.adding.is_empty() || !self.removing.is_empty()
    }

    /// Replicas once the reassignment under way is complete, in assignment order; all of them without one.
    pub fn target_ids(&self) -> impl Iterator<Item = BrokerId> + '_ {
        self.replica_ids().filter(|id| !self.removing.contains(id))
    }

    /// Replicas from before the reassignment under way; all of them without one.
    pub fn original_ids(&self) -> impl Iterator<Item = BrokerId> + '_ {
        self.replica_ids().filter(|id| !self.adding.contains(id))
    }

    /// In-sync replicas below which nothing becomes committed, where `min.insync.replicas` is `configured`: never more
    /// than there are replicas, and replicas that are being added do not count until they are there. A partition with a
    /// single replica is written to while it moves, whatever the setting.
    pub fn effective_min_in_sync(&self, configured: usize) -> usize {
        configured.min(self.original_ids().count())
    }
}

/// The Kubernetes object that manages a topic, and what it manages of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicOwnerImage {
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// Uid of the object; decides ownership.
    pub uid: String,
    /// Configuration keys that the object has set; these are reset when it no longer names them.
    pub managed_keys: BTreeSet<String>,
}

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicImage {
    /// Topic id; never reused.
    pub topic_id: Uuid,
    /// Topic name.
    pub name: String,
    /// Partitions by number.
    pub partitions: Vec<PartitionImage>,
    /// Dynamic configuration of the topic.
    pub config: BTreeMap<String, String>,
    /// Managing object, if any.
    pub owner: Option<TopicOwnerImage>,
}

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataImage {
    /// Cluster id.
    pub cluster_id: Uuid,
    /// Raft log index of the last record applied; 0 before the first.
    pub log_index: u64,
    /// Term of that log entry.
    pub term: u64,
    /// Registered brokers.
    pub brokers: BTreeMap<BrokerId, Arc<BrokerImage>>,
    /// Topics by id.
    pub topics: BTreeMap<Uuid, Arc<TopicImage>>,
    /// Topic ids by name; always the same topics as `topics`.
    pub topic_ids: BTreeMap<String, Uuid>,
    /// Dynamic configuration of brokers: by broker id, `None` for the cluster-wide default.
    pub broker_configs: BTreeMap<Option<BrokerId>, BTreeMap<String, String>>,
    /// First producer id that has not been handed out.
    pub next_producer_id: i64,
    /// First broker id that was never granted.
    pub next_broker_id: BrokerId,
    /// Brokers that get no more replicas.
    pub marks: BTreeMap<BrokerId, BrokerMark>,
    /// The balancer's state.
    pub balance: BalanceImage,
    /// Raft nodes whose volumes were lost, by node id. None may be a member of the quorum again: it has forgotten what
    /// it voted for.
    pub retired_nodes: BTreeMap<u64, RetiredNode>,
}

impl MetadataImage {
    /// An image in which nothing has happened yet.
    pub fn empty(cluster_id: Uuid) -> Self {
        Self {
            cluster_id,
            log_index: 0,
            term: 0,
            brokers: BTreeMap::new(),
            topics: BTreeMap::new(),
            topic_ids: BTreeMap::new(),
            broker_configs: BTreeMap::new(),
            next_producer_id: 0,
            next_broker_id: 0,
            marks: BTreeMap::new(),
            balance: BalanceImage::default(),
            retired_nodes: BTreeMap::new(),
        }
    }

    /// Topic of that name.
    pub fn topic_by_name(&self, name: &str) -> Option<&Arc<TopicImage>> {
        self.topic_ids.get(name).and_then(|topic_id| self.topics.get(topic_id))
    }

    /// Every partition, with its id.
    pub fn partitions(&self) -> impl Iterator<Item = (TopicIdPartition, &PartitionImage)> {
        self.topics.values().flat_map(|topic| {
            let id = |partition| TopicIdPartition { topic_id: topic.topic_id, partition };
            (0_i32..).zip(&topic.partitions).map(move |(number, state)| (id(number), state))
        })
    }

    /// State of one partition.
    pub fn partition(&self, partition: TopicIdPartition) -> Option<&PartitionImage> {
        let number = usize::try_from(partition.partition).ok()?;
        self.topics.get(&partition.topic_id)?.partitions.get(number)
    }

    /// The broker that runs on this Raft node.
    pub fn broker_of_node(&self, node_id: u64) -> Option<&Arc<BrokerImage>> {
        self.brokers.values().find(|broker| broker.raft_node_id == node_id)
    }

    /// Partitions that the balancer is moving right now.
    pub fn balancer_moves(&self) -> impl Iterator<Item = TopicIdPartition> + '_ {
        let is_moving =
            |id: &TopicIdPartition| self.partition(*id).is_some_and(PartitionImage::is_reassigning);
        self.balance.moves.iter().copied().filter(is_moving)
    }

    /// Whether new replicas may be placed on a broker: it is in service, and nobody has marked it.
    pub fn takes_replicas(&self, broker: &BrokerImage) -> bool {
        broker.may_lead() && !self.marks.contains_key(&broker.broker_id)
    }

    /// Brokers that clients may see, by id.
    pub fn live_brokers(&self) -> impl Iterator<Item = &Arc<BrokerImage>> {
        self.brokers.values().filter(|broker| !broker.fenced)
    }
}
