//! Which replica leads a partition, and who stays in sync when brokers go (rule L9, so far without ELR).
//!
//! The current leader stays while it may. Otherwise the first assigned replica that is in sync, on a broker in
//! service, and on the volume that held the data when the replica was assigned: a broker that came back with another
//! volume has lost what it acknowledged. Only unclean election, by setting, gives that up.
//!
//! Replicas on brokers that are fenced, stopping or on another volume leave the in-sync replicas with the election, so
//! that writes do not wait for them. The last ones stay whatever becomes of them: without ELR they are all that tells
//! who has every record.

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

/// New state of a partition, or `None` where it stays as it is.
fn elect(image: &MetadataImage, state: &PartitionImage, unclean: bool) -> Option<PartitionImage> {
    let can_lead = |replica: &&Replica| may_lead(image, replica) && holds_its_data(image, replica);
    let isr = remaining_isr(image, state);
    let current = state.replicas.iter().find(|replica| replica.broker_id == state.leader);
    let clean = || {
        let mut in_sync = state.replicas.iter().filter(|replica| isr.contains(&replica.broker_id));
        in_sync.find(can_lead).map(|replica| replica.broker_id)
    };
    let unclean = || {
        let mut replicas = state.replicas.iter().filter(|_| unclean);
        replicas.find(|replica| may_lead(image, replica)).map(|replica| replica.broker_id)
    };
    // A broker that is stopping leads on until another can: a planned stop is no reason for an outage before it.
    let stopping = || {
        let in_service = |replica: &&Replica| broker_of(image, replica).is_some_and(|broker| !broker.fenced);
        let leader = current.filter(|replica| holds_its_data(image, replica)).filter(in_service);
        leader.map(|replica| replica.broker_id)
    };
    let safe = current.filter(can_lead).map(|replica| replica.broker_id).or_else(clean).or_else(stopping);
    if let Some(leader) = safe {
        return changed(state, leader, isr);
    }
    if let Some(leader) = unclean() {
        let mut state = changed(state, leader, vec![leader])?;
        adopt_volume(image, &mut state, leader);
        return Some(state);
    }
    changed(state, NO_LEADER, isr)
}

/// In-sync replicas that stay; all of them if none could.
fn remaining_isr(image: &MetadataImage, state: &PartitionImage) -> Vec<BrokerId> {
    let stays = |replica: &&Replica| may_lead(image, replica) && holds_its_data(image, replica);
    let staying: Vec<BrokerId> =
        state.replicas.iter().filter(stays).map(|replica| replica.broker_id).collect();
    let isr: Vec<BrokerId> = state.isr.iter().copied().filter(|id| staying.contains(id)).collect();
    if isr.is_empty() { state.isr.clone() } else { isr }
}

/// The state with this leader and these in-sync replicas; `None` if that is what it is.
fn changed(state: &PartitionImage, leader: BrokerId, isr: Vec<BrokerId>) -> Option<PartitionImage> {
    let leader_changes = leader != state.leader;
    (leader_changes || isr != state.isr).then(|| PartitionImage {
        leader,
        isr,
        leader_epoch: state.leader_epoch + i32::from(leader_changes),
        partition_epoch: state.partition_epoch + 1,
        replicas: state.replicas.clone(),
        elr: state.elr.clone(),
    })
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

#[cfg(test)]
mod tests {
    use super::super::fixtures::{add_topic, broker, image, volume_of};
    use super::*;

    fn state(image: &mut MetadataImage, replicas: &[BrokerId], isr: &[BrokerId]) -> PartitionImage {
        let topic_id = add_topic(image, "t", &[replicas.to_vec()]);
        let state = image.topics[&topic_id].partitions[0].clone();
        PartitionImage { isr: isr.to_vec(), ..state }
    }

    fn outcome(state: &PartitionImage) -> (BrokerId, Vec<BrokerId>, i32, i32) {
        (state.leader, state.isr.clone(), state.leader_epoch, state.partition_epoch)
    }

    #[test]
    fn the_first_assigned_replica_in_sync_follows_a_fenced_leader() {
        let mut image = image([broker(0).fenced(), broker(1), broker(2)]);
        let state = state(&mut image, &[0, 2, 1], &[1, 0, 2]);
        let elected = elect(&image, &state, false).expect("the leader is fenced");
        assert_eq!(outcome(&elected), (2, vec![1, 2], 1, 1));
    }

    #[test]
    fn a_fenced_follower_leaves_the_isr_and_the_leader_keeps_its_epoch() {
        let mut image = image([broker(0), broker(1).fenced(), broker(2)]);
        let state = state(&mut image, &[0, 1, 2], &[0, 1, 2]);
        let elected = elect(&image, &state, false).expect("a follower is fenced");
        assert_eq!(outcome(&elected), (0, vec![0, 2], 0, 1));
        assert_eq!(elect(&image, &elected, false), None, "once is enough");
    }

    #[test]
    fn the_last_in_sync_replica_stays_when_it_is_fenced() {
        let mut image = image([broker(0).fenced(), broker(1)]);
        let state = state(&mut image, &[0, 1], &[0]);
        let elected = elect(&image, &state, false).expect("the leader is fenced");
        assert_eq!(outcome(&elected), (NO_LEADER, vec![0], 1, 1));
    }

    #[test]
    fn a_stopping_broker_hands_over_to_a_replica_in_sync_and_leaves_the_isr() {
        let mut image = image([broker(0), broker(1)]);
        let state = state(&mut image, &[0, 1], &[0, 1]);
        let stopping = image.brokers.get_mut(&0).map(std::sync::Arc::make_mut).expect("it is there");
        stopping.in_controlled_shutdown = true;
        let elected = elect(&image, &state, false).expect("the leader stops");
        assert_eq!(outcome(&elected), (1, vec![1], 1, 1));
    }

    #[test]
    fn a_stopping_broker_leads_on_rather_than_one_that_is_not_in_sync() {
        let mut image = image([broker(0), broker(1)]);
        let state = state(&mut image, &[0, 1], &[0]);
        let stopping = image.brokers.get_mut(&0).map(std::sync::Arc::make_mut).expect("it is there");
        stopping.in_controlled_shutdown = true;
        assert_eq!(elect(&image, &state, true), None);
    }

    #[test]
    fn a_broker_on_another_volume_is_not_in_sync_any_more() {
        let mut image = image([broker(0), broker(1)]);
        let state = state(&mut image, &[0, 1], &[0, 1]);
        let broker = image.brokers.get_mut(&0).map(std::sync::Arc::make_mut).expect("it is there");
        broker.volume_uuid = volume_of(7);
        let elected = elect(&image, &state, true).expect("the leader has lost its data");
        assert_eq!(outcome(&elected), (1, vec![1], 1, 1));
    }

    #[test]
    fn unclean_election_is_the_last_resort_and_leaves_one_in_sync() {
        let mut image = image([broker(0).fenced(), broker(1), broker(2)]);
        let state = state(&mut image, &[0, 1, 2], &[0]);
        let elected = elect(&image, &state, true).expect("the leader is fenced");
        assert_eq!(outcome(&elected), (1, vec![1], 1, 1));
    }
}
