//! Brokers as clients of one listener see them.

use crate::metadata::image::{
    BrokerId, BrokerImage, Endpoint, MetadataImage, NO_LEADER, PartitionImage, Replica, TopicIdPartition,
};
use crate::replication::LeaderHint;

/// Brokers in service that have the listener, with its address (M3).
pub(super) fn live_brokers<'a>(
    image: &'a MetadataImage,
    listener: &'a str,
) -> impl Iterator<Item = (&'a BrokerImage, &'a Endpoint)> {
    image.live_brokers().filter_map(move |broker| Some((broker.as_ref(), broker.endpoint(listener)?)))
}

/// Address of one broker in service.
pub(super) fn live_broker<'a>(
    image: &'a MetadataImage,
    broker_id: BrokerId,
    listener: &str,
) -> Option<(&'a BrokerImage, &'a Endpoint)> {
    let broker = image.brokers.get(&broker_id).filter(|broker| !broker.fenced)?;
    Some((broker.as_ref(), broker.endpoint(listener)?))
}

/// A broker to send admin requests to: this one if clients can see it, as every broker serves them (M3).
pub(super) fn controller_id(image: &MetadataImage, own_id: BrokerId, listener: &str) -> BrokerId {
    let own = live_broker(image, own_id, listener).map(|_| own_id);
    own.or_else(|| live_brokers(image, listener).next().map(|(broker, _)| broker.broker_id))
        .unwrap_or(NO_LEADER)
}

/// Replicas of a partition that clients of the listener cannot reach, or whose volume is not what their broker runs on.
pub(super) fn offline_replicas(
    image: &MetadataImage,
    partition: &PartitionImage,
    listener: &str,
) -> Vec<BrokerId> {
    let offline = |replica: &&Replica| match live_broker(image, replica.broker_id, listener) {
        Some((broker, _)) => !replica.volume_uuid.is_nil() && replica.volume_uuid != broker.volume_uuid,
        None => true,
    };
    partition.replicas.iter().filter(offline).map(|replica| replica.broker_id).collect()
}

/// Where to send what came to the wrong broker (KIP-951): what the partition said, or else what the image says.
pub(super) fn leader_hint(
    image: &MetadataImage,
    partition: TopicIdPartition,
    said: Option<LeaderHint>,
) -> Option<LeaderHint> {
    said.or_else(|| {
        let state = image.partition(partition)?;
        Some(LeaderHint { leader_id: state.leader, leader_epoch: state.leader_epoch })
    })
}

/// A port as messages carry it.
pub(super) fn wire_port(endpoint: &Endpoint) -> i32 {
    endpoint.port.into()
}
