//! Small builders for tests of decisions.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use super::{ControllerRequest, Decision, Settings, decide};
use crate::metadata::image::{
    BrokerId, BrokerImage, Endpoint, MetadataImage, PartitionImage, Replica, TopicIdPartition,
};
use crate::metadata::records::Record;

/// Uuid of the volume that [`broker`] runs on.
pub(in crate::metadata) fn volume_of(broker_id: BrokerId) -> Uuid {
    Uuid::from_u128(0x1000 + u128::try_from(broker_id).expect("ids are not negative"))
}

pub(in crate::metadata) struct BrokerBuilder(BrokerImage);

pub(in crate::metadata) fn broker(broker_id: BrokerId) -> BrokerBuilder {
    BrokerBuilder(BrokerImage {
        broker_id,
        broker_epoch: 1,
        volume_uuid: volume_of(broker_id),
        raft_node_id: 0x1000 + u64::try_from(broker_id).expect("ids are not negative"),
        address: format!("broker-{broker_id}:9093"),
        endpoints: vec![Endpoint {
            listener: "INTERNAL".to_owned(),
            host: format!("broker-{broker_id}"),
            port: 9092,
            security_protocol: "PLAINTEXT".to_owned(),
        }],
        rack: None,
        fenced: false,
        in_controlled_shutdown: false,
        version: "0.1.0".to_owned(),
        min_insync_replicas: 1,
    })
}

impl BrokerBuilder {
    pub(in crate::metadata) fn rack(mut self, rack: &str) -> Self {
        self.0.rack = Some(rack.to_owned());
        self
    }

    pub(in crate::metadata) fn fenced(mut self) -> Self {
        self.0.fenced = true;
        self
    }

    pub(in crate::metadata) fn stopping(mut self) -> Self {
        self.0.in_controlled_shutdown = true;
        self
    }

    /// On another volume than the one that [`add_topic`] assigns replicas to.
    pub(in crate::metadata) fn on_another_volume(mut self) -> Self {
        self.0.volume_uuid = volume_of(100 + self.0.broker_id);
        self
    }

    pub(in crate::metadata) fn with_min_insync_replicas(mut self, number: i32) -> Self {
        self.0.min_insync_replicas = number;
        self
    }
}

pub(in crate::metadata) fn image<const N: usize>(brokers: [BrokerBuilder; N]) -> MetadataImage {
    let mut image = MetadataImage::empty(Uuid::from_u128(1));
    for BrokerBuilder(broker) in brokers {
        image.next_broker_id = image.next_broker_id.max(broker.broker_id + 1);
        image.brokers.insert(broker.broker_id, Arc::new(broker));
    }
    image.log_index = 10;
    image
}

/// Adds a topic with one partition for each list of replicas; each first replica leads and is in sync alone.
pub(in crate::metadata) fn add_topic(
    image: &mut MetadataImage,
    name: &str,
    replicas: &[Vec<BrokerId>],
) -> Uuid {
    let topic_id = Uuid::from_u128(0x2000 + u128::try_from(image.topics.len()).expect("few topics"));
    let mut records = vec![Record::Topic { topic_id, name: name.to_owned() }];
    for (partition, ids) in (0..).zip(replicas) {
        records.push(Record::Partition {
            partition: TopicIdPartition { topic_id, partition },
            state: PartitionImage {
                replicas: ids
                    .iter()
                    .map(|id| Replica { broker_id: *id, volume_uuid: volume_of(*id) })
                    .collect(),
                isr: vec![ids[0]],
                elr: Vec::new(),
                adding: Vec::new(),
                removing: Vec::new(),
                leader: ids[0],
                leader_epoch: 0,
                partition_epoch: 0,
            },
        });
    }
    for record in &records {
        image.apply(record, 10).expect("the fixture fits");
    }
    topic_id
}

/// Changes the first partition of a topic.
pub(in crate::metadata) fn change_first(
    image: &mut MetadataImage,
    topic_id: Uuid,
    change: impl FnOnce(&mut PartitionImage),
) {
    let topic = image.topics.get_mut(&topic_id).map(Arc::make_mut).expect("the topic is there");
    change(&mut topic.partitions[0]);
}

/// The image after a decision, with what was decided.
pub(in crate::metadata) fn run(
    image: &MetadataImage,
    request: &ControllerRequest,
    settings: &TestSettings,
) -> (MetadataImage, Decision) {
    let decision = decide(image, request, settings, &mut counting_uuids());
    let mut next = image.clone();
    next.log_index += 1;
    for record in &decision.records {
        next.apply(record, next.log_index).expect("decisions fit the image");
    }
    (next, decision)
}

/// Ids that count up.
pub(in crate::metadata) fn counting_uuids() -> impl FnMut() -> Uuid {
    let mut last = 0x9000;
    move || {
        last += 1;
        Uuid::from_u128(last)
    }
}

/// Settings with a few known keys and small defaults.
#[derive(Debug, Default)]
pub(crate) struct TestSettings {
    pub(crate) unclean: bool,
    pub(crate) deletion_disabled: bool,
    pub(crate) written: bool,
}

impl Settings for TestSettings {
    fn default_partitions(&self, _: &MetadataImage) -> i32 {
        4
    }

    fn default_replication_factor(&self, _: &MetadataImage) -> i16 {
        1
    }

    fn topic_deletion_enabled(&self) -> bool {
        !self.deletion_disabled
    }

    fn check_topic_config(&self, key: &str, value: &str) -> Result<(), String> {
        let known = BTreeMap::from([
            ("retention.ms", true),
            ("cleanup.policy", false),
            ("max.message.bytes", true),
            ("min.insync.replicas", true),
            ("unclean.leader.election.enable", false),
        ]);
        match known.get(key) {
            None => Err(format!("unknown topic setting {key}")),
            Some(true) if value.parse::<i64>().is_err() => {
                Err(format!("{key} takes a number, not {value:?}"))
            }
            Some(_) => Ok(()),
        }
    }

    fn check_topic_configs(&self, config: &BTreeMap<String, String>) -> Result<(), String> {
        match config.get("retention.ms").map(String::as_str) {
            Some("13") if config.contains_key("max.message.bytes") => {
                Err("13 does not go with a size".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn check_broker_config(&self, key: &str, _: &str) -> Result<(), String> {
        let dynamic = ["message.max.bytes", "min.insync.replicas"];
        if dynamic.contains(&key) { Ok(()) } else { Err(format!("{key} cannot be changed")) }
    }

    fn is_list(&self, key: &str) -> bool {
        key == "cleanup.policy"
    }

    fn topic_default(&self, _: &MetadataImage, key: &str) -> Option<String> {
        (key == "cleanup.policy").then(|| "delete".to_owned())
    }

    fn unclean_leader_election(&self, image: &MetadataImage, topic_id: Uuid) -> bool {
        let key = "unclean.leader.election.enable";
        self.unclean || image.topics[&topic_id].config.get(key).is_some_and(|value| value == "true")
    }

    fn min_insync_replicas(&self, image: &MetadataImage, topic_id: Uuid, leader: BrokerId) -> usize {
        let key = "min.insync.replicas";
        let of_cluster = || image.broker_configs.get(&None).and_then(|config| config.get(key));
        let set = image.topics[&topic_id].config.get(key).or_else(of_cluster);
        let of_leader = || usize::try_from(image.brokers[&leader].min_insync_replicas).expect("positive");
        set.map_or_else(of_leader, |value| value.parse().expect("a number"))
    }

    fn acknowledges_unsynced(&self, _: &MetadataImage, _: Uuid) -> bool {
        self.written
    }
}
