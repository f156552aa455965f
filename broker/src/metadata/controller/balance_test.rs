//! Marks, and the balancer's moves, against the image.

use std::collections::BTreeSet;
use std::sync::Arc;

use millrace_protocol::messages::AlterPartitionReassignmentsRequest;
use millrace_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use uuid::Uuid;

use super::super::fixtures::{TestSettings, add_topic, broker, change_first, image, run};
use super::super::{ControllerRequest, ControllerResponse};
use super::*;
use crate::metadata::image::MetadataImage;

fn id(topic_id: Uuid, partition: i32) -> TopicIdPartition {
    TopicIdPartition { topic_id, partition }
}

fn move_to(partition: TopicIdPartition, from: &[BrokerId], to: &[BrokerId]) -> ControllerRequest {
    let wanted = PartitionMove { partition, from: from.to_vec(), to: to.to_vec() };
    ControllerRequest::MovePartitions(vec![wanted])
}

fn after(image: &MetadataImage, request: &ControllerRequest) -> MetadataImage {
    run(image, request, &TestSettings::default()).0
}

/// Brokers 0 to 3, and a partition on the first three, all in sync.
fn cluster() -> (MetadataImage, TopicIdPartition) {
    let mut image = image([broker(0), broker(1), broker(2), broker(3)]);
    let topic_id = add_topic(&mut image, "orders", &[vec![0, 1, 2]]);
    change_first(&mut image, topic_id, |state| state.isr = vec![0, 1, 2]);
    (image, id(topic_id, 0))
}

fn draining(broker_id: BrokerId) -> ControllerRequest {
    ControllerRequest::MarkBroker { broker_id, mark: Some(BrokerMark::Draining) }
}

#[test]
fn a_mark_stays_until_it_is_taken_away_and_outlives_a_snapshot() {
    let (before, _) = cluster();
    let marked = after(&before, &draining(1));
    assert_eq!(marked.marks.get(&1), Some(&BrokerMark::Draining));
    let (_, again) = run(&marked, &draining(1), &TestSettings::default());
    assert_eq!((again.records, again.response), (vec![], ControllerResponse::Done));
    let mut restored = MetadataImage::empty(marked.cluster_id);
    for record in marked.to_records() {
        restored.apply(&record, marked.log_index).expect("a snapshot applies");
    }
    assert_eq!((restored.marks, restored.balance), (marked.marks.clone(), marked.balance.clone()));
    let unmarked = after(&marked, &ControllerRequest::MarkBroker { broker_id: 1, mark: None });
    assert_eq!(unmarked.marks.len(), 0);
    let (_, unknown) = run(&before, &draining(9), &TestSettings::default());
    assert!(
        matches!(unknown.response, ControllerResponse::Refused(error) if error.code == code::BROKER_NOT_FOUND)
    );
}

#[test]
fn a_move_begins_once_and_only_from_the_replicas_that_it_was_planned_for() {
    let (before, partition) = cluster();
    let stale = after(&before, &move_to(partition, &[2, 1, 0], &[0, 1, 3]));
    assert_eq!(stale.partition(partition), before.partition(partition));
    let moving = after(&before, &move_to(partition, &[0, 1, 2], &[0, 1, 3]));
    let state = moving.partition(partition).expect("it is there");
    assert_eq!((&state.adding[..], &state.removing[..]), (&[3][..], &[2][..]));
    assert_eq!(moving.balance.moves, BTreeSet::from([partition]));
    let (_, again) = run(&moving, &move_to(partition, &[0, 1, 3], &[0, 2, 3]), &TestSettings::default());
    assert_eq!(again.records, vec![]);
}

#[test]
fn a_new_order_takes_effect_at_once_and_the_first_replica_leads() {
    let (before, partition) = cluster();
    let next = after(&before, &move_to(partition, &[0, 1, 2], &[1, 0, 2]));
    let state = next.partition(partition).expect("it is there");
    assert_eq!((state.leader, state.replica_ids().collect::<Vec<_>>()), (1, vec![1, 0, 2]));
    assert!(!state.is_reassigning() && next.balance.moves.is_empty());
}

#[test]
fn the_end_of_a_drain_takes_its_own_moves_back_and_no_others() {
    let (mut image, first) = cluster();
    let other = add_topic(&mut image, "other", &[vec![1, 0, 2]]);
    change_first(&mut image, other, |state| state.isr = vec![0, 1, 2]);
    let other = id(other, 0);
    let mut image = after(&image, &draining(2));
    image = after(&image, &move_to(first, &[0, 1, 2], &[0, 1, 3]));
    image = after(&image, &move_to(other, &[1, 0, 2], &[1, 3, 2]));
    let ended = after(&image, &ControllerRequest::MarkBroker { broker_id: 2, mark: None });
    let ids = |image: &MetadataImage, partition| -> Vec<BrokerId> {
        image.partition(partition).expect("it is there").target_ids().collect()
    };
    assert_eq!((ids(&ended, first), ids(&ended, other)), (vec![0, 1, 2], vec![1, 3, 2]));
    assert_eq!(ended.balance.moves, BTreeSet::from([other]));
    // A rebalance that is cancelled leaves the drain's. The replicas are those from before; what was to go comes last.
    let cancel = ControllerRequest::SetRebalancing { rebalancing: false, cancel_moves: true };
    let ended = after(&image, &cancel);
    assert_eq!((ids(&ended, first), ids(&ended, other)), (vec![0, 1, 3], vec![1, 2, 0]));
    assert_eq!(ended.balance.moves, BTreeSet::from([first]));
}

#[test]
fn moves_to_a_broker_that_stays_away_are_taken_back_and_those_to_others_go_on() {
    let (mut image, first) = cluster();
    let other = add_topic(&mut image, "other", &[vec![1, 0, 2]]);
    change_first(&mut image, other, |state| state.isr = vec![0, 1, 2]);
    let other = id(other, 0);
    image = after(&image, &move_to(first, &[0, 1, 2], &[0, 1, 3]));
    let take_back = |brokers: &[BrokerId]| ControllerRequest::TakeBackMoves(brokers.to_vec());
    assert_eq!(after(&image, &take_back(&[3])).topics, image.topics, "it is in service");
    Arc::make_mut(image.brokers.get_mut(&3).expect("it is there")).fenced = true;
    assert_eq!(after(&image, &take_back(&[1, 2])).topics, image.topics, "another one");
    let ended = after(&image, &take_back(&[3]));
    let ids: Vec<BrokerId> = ended.partition(first).expect("it is there").target_ids().collect();
    assert_eq!((ids, ended.balance.moves.len()), (vec![0, 1, 2], 0));
    // What has been filled is not thrown away.
    change_first(&mut image, first.topic_id, |state| state.isr = vec![0, 1, 2, 3]);
    image = after(&image, &move_to(other, &[1, 0, 2], &[1, 0, 3]));
    let ended = after(&image, &take_back(&[3]));
    assert_eq!(ended.balance.moves, BTreeSet::from([first]));
}

#[test]
fn a_move_that_somebody_redirects_is_not_the_balancers_any_more() {
    let (before, partition) = cluster();
    let moving = after(&before, &move_to(partition, &[0, 1, 2], &[0, 1, 3]));
    let redirect = ReassignablePartition { replicas: Some(vec![0, 3, 2]), ..Default::default() };
    let topic = ReassignableTopic { name: "orders".into(), partitions: vec![redirect], ..Default::default() };
    let request = AlterPartitionReassignmentsRequest { topics: vec![topic], ..Default::default() };
    let redirected = after(&moving, &ControllerRequest::AlterPartitionReassignments(request));
    assert!(redirected.partition(partition).expect("it is there").is_reassigning());
    assert_eq!(redirected.balance.moves.len(), 0);
    let cancel = ControllerRequest::SetRebalancing { rebalancing: false, cancel_moves: true };
    assert_eq!(after(&redirected, &cancel).partition(partition), redirected.partition(partition));
}

#[test]
fn the_rate_is_kept_with_the_moves_and_forgets_those_that_are_over() {
    let (before, partition) = cluster();
    let mut moving = after(&before, &move_to(partition, &[0, 1, 2], &[0, 1, 3]));
    moving = after(&moving, &ControllerRequest::SetBalanceRate(Some(5)));
    assert_eq!((moving.balance.rate, moving.balance.moves.len()), (Some(5), 1));
    change_first(&mut moving, partition.topic_id, |state| (state.adding, state.removing) = (vec![], vec![]));
    let over = after(&moving, &ControllerRequest::SetBalanceRate(None));
    assert_eq!(over.balance, BalanceImage::default());
}
