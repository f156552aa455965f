//! Builders of images for tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use super::request::RequestContext;
use crate::metadata::image::{
    BrokerId, BrokerImage, Endpoint, MetadataImage, NO_LEADER, PartitionImage, Replica, TopicImage,
};

/// Listener that all brokers of [`image`] have.
pub(super) const LISTENER: &str = "INTERNAL";
/// Listener that only even brokers have.
pub(super) const EVEN_LISTENER: &str = "EVEN";

/// Brokers with these ids in service, on `broker-<id>:9092`.
pub(super) fn image<const N: usize>(broker_ids: [BrokerId; N]) -> MetadataImage {
    let mut image = MetadataImage::empty(Uuid::from_u128(0xc1));
    for broker_id in broker_ids {
        let endpoint = |listener: &str, port| Endpoint {
            listener: listener.to_owned(),
            host: format!("broker-{broker_id}"),
            port,
            security_protocol: "PLAINTEXT".to_owned(),
        };
        let mut endpoints = vec![endpoint(LISTENER, 9092)];
        if broker_id % 2 == 0 {
            endpoints.push(endpoint(EVEN_LISTENER, 9094));
        }
        let broker = BrokerImage {
            broker_id,
            broker_epoch: 1,
            volume_uuid: Uuid::from_u128(0x0001),
            raft_node_id: 1,
            address: format!("broker-{broker_id}:9093"),
            endpoints,
            rack: Some(format!("zone-{broker_id}")),
            fenced: false,
            in_controlled_shutdown: false,
            version: "0.1.0".to_owned(),
            min_insync_replicas: 1,
        };
        image.brokers.insert(broker_id, Arc::new(broker));
    }
    image
}

/// Takes a broker out of service.
pub(super) fn fence(image: &mut MetadataImage, broker_id: BrokerId) {
    if let Some(broker) = image.brokers.get_mut(&broker_id) {
        Arc::make_mut(broker).fenced = true;
    }
}

/// Id of the topic that [`add_topic`] makes under `name`.
pub(super) fn id_of(name: &str) -> Uuid {
    Uuid::from_u128(name.bytes().fold(1_u128, |id, byte| id.wrapping_mul(257).wrapping_add(byte.into())))
}

/// Adds a topic with one partition for each leader; [`NO_LEADER`] stands for a partition without one.
pub(super) fn add_topic(image: &mut MetadataImage, name: &str, leaders: &[BrokerId]) -> Uuid {
    let partitions = leaders
        .iter()
        .map(|leader| {
            let replicas: Vec<BrokerId> = if *leader == NO_LEADER { vec![9] } else { vec![*leader] };
            PartitionImage {
                replicas: replicas
                    .iter()
                    .map(|id| Replica { broker_id: *id, volume_uuid: Uuid::nil() })
                    .collect(),
                isr: replicas,
                elr: Vec::new(),
                adding: Vec::new(),
                removing: Vec::new(),
                leader: *leader,
                leader_epoch: 5,
                partition_epoch: 6,
            }
        })
        .collect();
    let topic_id = id_of(name);
    let topic =
        TopicImage { topic_id, name: name.to_owned(), partitions, config: BTreeMap::new(), owner: None };
    image.topics.insert(topic_id, Arc::new(topic));
    image.topic_ids.insert(name.to_owned(), topic_id);
    topic_id
}

/// Sets a configuration key of a topic.
pub(super) fn set_topic_config(image: &mut MetadataImage, name: &str, key: &str, value: &str) {
    if let Some(topic) = image.topics.get_mut(&id_of(name)) {
        Arc::make_mut(topic).config.insert(key.to_owned(), value.to_owned());
    }
}

/// A request of `version` on the listener that all brokers have.
pub(super) fn context(version: i16) -> RequestContext {
    RequestContext { listener: LISTENER.into(), version, client_id: Some("test".into()) }
}
