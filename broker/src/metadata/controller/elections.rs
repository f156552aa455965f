//! Which replica leads a partition (rule L9, so far without ELR).
//!
//! The current leader stays while it may. Otherwise the first assigned replica that is in sync, on a broker in
//! service, and on the volume that held the data when the replica was assigned: a broker that came back with another
//! volume has lost what it acknowledged. Only unclean election, by setting, gives that up.

use uuid::Uuid;

use super::Settings;
use super::draft::Draft;
use crate::metadata::image::{
    BrokerId, BrokerImage, MetadataImage, NO_LEADER, PartitionImage, Replica, TopicIdPartition,
};
use crate::metadata::records::Record;

/// Re-elects every partition that has a replica on `broker_id`, after something about that broker changed.
pub(super) fn reelect_partitions_of(draft: &mut Draft, broker_id: BrokerId, settings: &dyn Settings) {
    let changes: Vec<Record> = draft
        .image()
        .topics
        .values()
        .flat_map(|topic| {
            (0_i32..).zip(&topic.partitions).map(move |(number, state)| (topic.topic_id, number, state))
        })
        .filter(|(_, _, state)| state.replica_ids().any(|id| id == broker_id))
        .filter_map(|(topic_id, partition, state)| {
            let unclean = settings.unclean_leader_election(draft.image(), topic_id);
            let state = elect(draft.image(), state, unclean)?;
            Some(Record::Partition { partition: TopicIdPartition { topic_id, partition }, state })
        })
        .collect();
    for change in changes {
        draft.push(change);
    }
}

/// New state of a partition, or `None` where its leader stays as it is.
fn elect(image: &MetadataImage, state: &PartitionImage, unclean: bool) -> Option<PartitionImage> {
    let current = state.replicas.iter().find(|replica| replica.broker_id == state.leader);
    if current.is_some_and(|replica| holds_its_data(image, replica) && may_lead(image, replica)) {
        return None;
    }
    let clean = state
        .replicas
        .iter()
        .find(|replica| {
            state.isr.contains(&replica.broker_id)
                && may_lead(image, replica)
                && holds_its_data(image, replica)
        })
        .map(|replica| led_by(state, replica.broker_id));
    let elected = clean.or_else(|| {
        let replica = unclean.then(|| state.replicas.iter().find(|replica| may_lead(image, replica)))??;
        let mut state = led_by(state, replica.broker_id);
        state.isr = vec![replica.broker_id];
        adopt_volume(image, &mut state, replica.broker_id);
        Some(state)
    });
    match elected {
        Some(elected) => Some(elected),
        None if state.leader == NO_LEADER => None,
        // A broker that is stopping leads on until another can: a planned stop is no reason for an outage before it.
        None if current.is_some_and(|replica| {
            holds_its_data(image, replica) && broker_of(image, replica).is_some_and(|broker| !broker.fenced)
        }) =>
        {
            None
        }
        None => Some(led_by(state, NO_LEADER)),
    }
}

fn led_by(state: &PartitionImage, leader: BrokerId) -> PartitionImage {
    PartitionImage {
        leader,
        leader_epoch: state.leader_epoch + 1,
        partition_epoch: state.partition_epoch + 1,
        ..state.clone()
    }
}

fn adopt_volume(image: &MetadataImage, state: &mut PartitionImage, broker_id: BrokerId) {
    let volume_uuid = image.brokers.get(&broker_id).map_or(Uuid::nil(), |broker| broker.volume_uuid);
    for replica in state.replicas.iter_mut().filter(|replica| replica.broker_id == broker_id) {
        replica.volume_uuid = volume_uuid;
    }
}

fn broker_of<'a>(image: &'a MetadataImage, replica: &Replica) -> Option<&'a BrokerImage> {
    image.brokers.get(&replica.broker_id).map(AsRef::as_ref)
}

fn holds_its_data(image: &MetadataImage, replica: &Replica) -> bool {
    broker_of(image, replica).is_some_and(|broker| broker.volume_uuid == replica.volume_uuid)
}

fn may_lead(image: &MetadataImage, replica: &Replica) -> bool {
    broker_of(image, replica).is_some_and(BrokerImage::may_lead)
}
