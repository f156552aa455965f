//! Proposals that are accepted, and those that are not.

use uuid::Uuid;

use super::super::ControllerRequest;
use super::super::fixtures::{TestSettings, add_topic, broker, change_first, image, run, volume_of};
use super::*;
use crate::metadata::image::TopicIdPartition;

const BROKER_EPOCH: i64 = 1;

/// Broker 0 leads a partition of brokers 0, 1, 2 in leader epoch 5 and partition epoch 7; 0 and 1 are in sync.
fn led_by_0(change: impl FnOnce(&mut MetadataImage)) -> (MetadataImage, TopicIdPartition) {
    let mut image = image([broker(0), broker(1), broker(2), broker(3)]);
    let topic_id = add_topic(&mut image, "t", &[vec![0, 1, 2]]);
    change_first(&mut image, topic_id, |state| {
        (state.isr, state.leader_epoch, state.partition_epoch) = (vec![1, 0], 5, 7);
    });
    change(&mut image);
    (image, TopicIdPartition { topic_id, partition: 0 })
}

fn proposal(partition: TopicIdPartition, isr: &[BrokerId]) -> IsrChange {
    let isr = isr.iter().map(|id| (*id, BROKER_EPOCH)).collect();
    IsrChange { partition, leader_epoch: 5, partition_epoch: 7, isr }
}

fn propose(
    image: &MetadataImage,
    broker_id: BrokerId,
    change: IsrChange,
) -> (ErrorCode, Option<PartitionImage>) {
    propose_all(image, broker_id, BROKER_EPOCH, vec![change])
}

fn propose_all(
    image: &MetadataImage,
    broker_id: BrokerId,
    broker_epoch: i64,
    changes: Vec<IsrChange>,
) -> (ErrorCode, Option<PartitionImage>) {
    let partition = changes[0].partition;
    let request = ControllerRequest::AlterPartitions { broker_id, broker_epoch, changes };
    let (next, decision) = run(image, &request, &TestSettings::default());
    let ControllerResponse::PartitionsAltered(errors) = decision.response else {
        panic!("{:?}", decision.response)
    };
    let changed = (!decision.records.is_empty()).then(|| next.partition(partition).cloned());
    (errors[0], changed.flatten())
}

fn set_broker(
    image: &mut MetadataImage,
    id: BrokerId,
    change: impl FnOnce(&mut crate::metadata::image::BrokerImage),
) {
    change(image.brokers.get_mut(&id).map(std::sync::Arc::make_mut).expect("it is there"));
}

#[test]
fn the_leader_of_the_state_as_it_is_changes_the_isr_and_stays_leader() {
    let (image, partition) = led_by_0(|_| {});
    let (error, state) = propose(&image, 0, proposal(partition, &[0, 2, 1]));
    let state = state.expect("a record");
    assert_eq!(error, ErrorCode::None);
    assert_eq!((state.isr, state.leader, state.leader_epoch), (vec![1, 0, 2], 0, 5));
    assert_eq!(state.partition_epoch, 8);
    let (error, state) = propose(&image, 0, proposal(partition, &[0]));
    assert_eq!((error, state.map(|state| state.isr)), (ErrorCode::None, Some(vec![0])));
}

#[test]
fn what_is_in_effect_already_is_confirmed_without_a_record() {
    let (image, partition) = led_by_0(|_| {});
    assert_eq!(propose(&image, 0, proposal(partition, &[0, 1])), (ErrorCode::None, None));
    let earlier = IsrChange { partition_epoch: 6, ..proposal(partition, &[1, 0]) };
    assert_eq!(propose(&image, 0, earlier), (ErrorCode::None, None), "the answer to the first one was lost");
}

#[test]
fn epochs_other_than_the_current_ones_are_refused() {
    let (image, partition) = led_by_0(|_| {});
    let with = |leader_epoch, partition_epoch| {
        let change = IsrChange { leader_epoch, partition_epoch, ..proposal(partition, &[0, 1, 2]) };
        propose(&image, 0, change)
    };
    assert_eq!(with(4, 7), (ErrorCode::FencedLeaderEpoch, None));
    assert_eq!(with(6, 7), (ErrorCode::NotController, None));
    assert_eq!(with(5, 6), (ErrorCode::InvalidUpdateVersion, None));
    assert_eq!(with(5, 8), (ErrorCode::NotController, None));
}

#[test]
fn only_the_registration_that_leads_may_propose() {
    let (image, partition) = led_by_0(|_| {});
    let change = || proposal(partition, &[0, 1, 2]);
    assert_eq!(propose(&image, 1, change()), (ErrorCode::InvalidRequest, None));
    assert_eq!(propose_all(&image, 0, 2, vec![change()]), (ErrorCode::StaleBrokerEpoch, None));
    assert_eq!(propose_all(&image, 9, 1, vec![change()]), (ErrorCode::StaleBrokerEpoch, None));
}

#[test]
fn partitions_that_do_not_exist_are_unknown() {
    let (image, partition) = led_by_0(|_| {});
    let other_topic = TopicIdPartition { topic_id: Uuid::from_u128(9), ..partition };
    let other_number = TopicIdPartition { partition: 1, ..partition };
    assert_eq!(propose(&image, 0, proposal(other_topic, &[0])), (ErrorCode::UnknownTopicId, None));
    assert_eq!(propose(&image, 0, proposal(other_number, &[0])), (ErrorCode::UnknownTopicOrPartition, None));
}

#[test]
fn the_isr_holds_the_leader_and_assigned_replicas_once_each() {
    let (image, partition) = led_by_0(|_| {});
    for isr in [&[][..], &[1, 2], &[0, 1, 3], &[0, 1, 1]] {
        let refused = propose(&image, 0, proposal(partition, isr));
        assert_eq!(refused, (ErrorCode::InvalidRequest, None), "{isr:?}");
    }
}

#[test]
fn l7_a_replica_that_is_fenced_stopping_registered_anew_or_on_another_volume_does_not_join() {
    let changes: [fn(&mut crate::metadata::image::BrokerImage); 4] = [
        |broker| broker.fenced = true,
        |broker| broker.in_controlled_shutdown = true,
        |broker| broker.broker_epoch = 2,
        |broker| broker.volume_uuid = volume_of(100),
    ];
    for change in changes {
        let (image, partition) = led_by_0(|image| set_broker(image, 2, change));
        let refused = propose(&image, 0, proposal(partition, &[0, 1, 2]));
        assert_eq!(refused, (ErrorCode::IneligibleReplica, None), "{:?}", image.brokers[&2]);
    }
    let (image, partition) = led_by_0(|image| drop(image.brokers.remove(&2)));
    let refused = propose(&image, 0, proposal(partition, &[0, 1, 2]));
    assert_eq!(refused, (ErrorCode::IneligibleReplica, None));
}

#[test]
fn each_change_is_decided_by_itself() {
    let (image, partition) = led_by_0(|_| {});
    let good = proposal(partition, &[0, 1, 2]);
    let bad = proposal(TopicIdPartition { partition: 9, ..partition }, &[0]);
    let changes = vec![bad, good.clone(), good];
    let request = ControllerRequest::AlterPartitions { broker_id: 0, broker_epoch: 1, changes };
    let (next, decision) = run(&image, &request, &TestSettings::default());
    let expected = vec![ErrorCode::UnknownTopicOrPartition, ErrorCode::None, ErrorCode::None];
    assert_eq!(decision.response, ControllerResponse::PartitionsAltered(expected));
    assert_eq!((decision.records.len(), next.partition(partition).map(|s| s.partition_epoch)), (1, Some(8)));
}

#[test]
fn l9_whom_a_leader_drops_below_the_minimum_is_eligible() {
    let (image, partition) = led_by_0(|image| {
        let minimum = ("min.insync.replicas".to_owned(), "2".to_owned());
        let topic = image.topics.values_mut().next().map(std::sync::Arc::make_mut).expect("one topic");
        topic.config.extend([minimum]);
    });
    let (_, state) = propose(&image, 0, proposal(partition, &[0]));
    assert_eq!(state.map(|state| (state.isr, state.elr)), Some((vec![0], vec![1])));
}

#[test]
fn a_stopping_leader_hands_over_to_the_first_that_joins() {
    let (image, partition) = led_by_0(|image| {
        set_broker(image, 0, |broker| broker.in_controlled_shutdown = true);
        let topic_id = image.topic_ids["t"];
        change_first(image, topic_id, |state| state.isr = vec![0]);
    });
    let (error, state) = propose(&image, 0, proposal(partition, &[0, 2]));
    let state = state.map(|state| (state.leader, state.leader_epoch, state.isr));
    assert_eq!((error, state), (ErrorCode::None, Some((2, 6, vec![2]))));
}
