//! Reassignments from their request to their end, by requests to the controller.

use millrace_protocol::messages::alter_partition_reassignments_request::ReassignableTopic;
use millrace_protocol::messages::list_partition_reassignments_request::ListPartitionReassignmentsTopics;

use super::super::fixtures::{
    BrokerBuilder, TestSettings, add_topic, broker, change_first, image, run, volume_of,
};
use super::super::{ControllerRequest, ControllerResponse, IsrChange};
use super::*;

/// Partition 0 of topic `t`, and everything around it.
struct World {
    image: MetadataImage,
    topic_id: Uuid,
    settings: TestSettings,
}

/// Brokers 0 to 5; the partition is on `replicas`, all in sync, led by the first.
fn world(replicas: &[BrokerId]) -> World {
    world_on([broker(0), broker(1), broker(2), broker(3), broker(4), broker(5)], replicas)
}

fn world_on(brokers: [BrokerBuilder; 6], replicas: &[BrokerId]) -> World {
    let mut image = image(brokers);
    let topic_id = add_topic(&mut image, "t", &[replicas.to_vec()]);
    change_first(&mut image, topic_id, |state| state.isr = replicas.to_vec());
    World { image, topic_id, settings: TestSettings::default() }
}

impl World {
    fn ask(&mut self, request: &ControllerRequest) -> ControllerResponse {
        let (next, decision) = run(&self.image, request, &self.settings);
        self.image = next;
        decision.response
    }

    fn state(&self) -> PartitionImage {
        self.image.topics[&self.topic_id].partitions[0].clone()
    }

    fn change(&mut self, change: impl FnOnce(&mut PartitionImage)) {
        change_first(&mut self.image, self.topic_id, change);
    }

    fn alter_with(&mut self, target: Option<&[BrokerId]>, may_resize: bool) -> (i16, Option<String>) {
        let partition = ReassignablePartition {
            partition_index: 0,
            replicas: target.map(<[BrokerId]>::to_vec),
            ..Default::default()
        };
        let topic = ReassignableTopic { name: "t".into(), partitions: vec![partition], ..Default::default() };
        let request = AlterPartitionReassignmentsRequest {
            topics: vec![topic],
            allow_replication_factor_change: may_resize,
            ..Default::default()
        };
        let response = self.ask(&ControllerRequest::AlterPartitionReassignments(request));
        let ControllerResponse::AlterPartitionReassignments(response) = response else {
            panic!("{response:?}")
        };
        assert_eq!(response.error_code, 0);
        let answer = &response.responses[0].partitions[0];
        (answer.error_code, answer.error_message.as_ref().map(ToString::to_string))
    }

    fn reassign(&mut self, target: &[BrokerId]) -> PartitionImage {
        assert_eq!(self.alter_with(Some(target), true), (0, None));
        self.state()
    }

    fn cancel(&mut self) -> (i16, Option<String>) {
        self.alter_with(None, true)
    }

    /// The leader says who is in sync.
    fn in_sync(&mut self, isr: &[BrokerId]) -> PartitionImage {
        let state = self.state();
        let change = IsrChange {
            partition: TopicIdPartition { topic_id: self.topic_id, partition: 0 },
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
            isr: isr.iter().map(|id| (*id, 1)).collect(),
        };
        let request = ControllerRequest::AlterPartitions {
            broker_id: state.leader,
            broker_epoch: 1,
            changes: vec![change],
        };
        let response = self.ask(&request);
        assert_eq!(response, ControllerResponse::PartitionsAltered(vec![ErrorCode::None]));
        self.state()
    }

    fn set_fenced(&mut self, broker_id: BrokerId, fenced: bool) -> PartitionImage {
        let response = self.ask(&ControllerRequest::SetFenced { broker_id, broker_epoch: 1, fenced });
        assert_eq!(response, ControllerResponse::Done);
        self.state()
    }

    fn list(&mut self, asked: Option<(&str, Vec<i32>)>) -> Vec<OngoingTopicReassignment> {
        let topics = asked.map(|(name, partition_indexes)| {
            let name = name.into();
            vec![ListPartitionReassignmentsTopics { name, partition_indexes, ..Default::default() }]
        });
        let request = ListPartitionReassignmentsRequest { topics, ..Default::default() };
        match self.ask(&ControllerRequest::ListPartitionReassignments(request)) {
            ControllerResponse::ListPartitionReassignments(response) => response.topics,
            other => panic!("{other:?}"),
        }
    }
}

fn ids(state: &PartitionImage) -> Vec<BrokerId> {
    state.replica_ids().collect()
}

/// Replicas, added ones, going ones.
type Plan = (Vec<BrokerId>, Vec<BrokerId>, Vec<BrokerId>);

fn plan(state: &PartitionImage) -> Plan {
    (ids(state), state.adding.clone(), state.removing.clone())
}

fn epochs(state: &PartitionImage) -> (i32, i32) {
    (state.leader_epoch, state.partition_epoch)
}

#[test]
fn a_reassignment_brings_replicas_and_takes_nobody_out() {
    let mut world = world(&[0, 1, 2]);
    let state = world.reassign(&[3, 1]);
    assert_eq!(plan(&state), (vec![3, 1, 0, 2], vec![3], vec![0, 2]));
    assert_eq!((state.leader, &state.isr[..], epochs(&state)), (0, &[0, 1, 2][..], (0, 1)));
    assert_eq!(state.replicas[0].volume_uuid, volume_of(3));
}

#[test]
fn it_is_complete_when_every_replica_of_the_target_is_in_sync_and_leadership_goes_to_one_of_them() {
    let mut world = world(&[0, 1, 2]);
    world.reassign(&[3, 4, 5]);
    let state = world.in_sync(&[0, 1, 2, 5]);
    assert_eq!((state.leader, state.isr.len(), state.is_reassigning()), (0, 4, true));
    world.in_sync(&[0, 1, 2, 5, 4]);
    let state = world.in_sync(&[0, 1, 2, 5, 4, 3]);
    assert_eq!(plan(&state), (vec![3, 4, 5], vec![], vec![]));
    assert_eq!((state.leader, &state.isr[..], epochs(&state)), (3, &[5, 4, 3][..], (1, 4)));
}

#[test]
fn a_leader_that_stays_goes_on_in_a_new_epoch() {
    let mut world = world(&[0, 1]);
    let state = world.reassign(&[0]);
    assert_eq!((plan(&state), state.leader), ((vec![0], vec![], vec![]), 0), "nothing to wait for");
    assert_eq!((&state.isr[..], epochs(&state)), (&[0][..], (1, 1)));
}

#[test]
fn adding_replicas_only_leaves_leader_and_epoch_alone() {
    let mut world = world(&[0]);
    assert_eq!(plan(&world.reassign(&[0, 1, 2])), (vec![0, 1, 2], vec![1, 2], vec![]));
    world.in_sync(&[0, 2]);
    let state = world.in_sync(&[0, 2, 1]);
    assert_eq!((plan(&state), epochs(&state)), ((vec![0, 1, 2], vec![], vec![]), (0, 3)));
}

#[test]
fn another_order_is_there_at_once() {
    let mut world = world(&[0, 1, 2]);
    let state = world.reassign(&[2, 0, 1]);
    assert_eq!((plan(&state), state.leader), ((vec![2, 0, 1], vec![], vec![]), 0));
    assert_eq!((&state.isr[..], epochs(&state)), (&[0, 1, 2][..], (0, 1)));
    let before = world.image.clone();
    assert_eq!(world.reassign(&[2, 0, 1]), state);
    assert_eq!(world.image.topics, before.topics, "nothing is written");
}

#[test]
fn a_target_out_of_service_is_waited_for() {
    let mut world = world(&[0, 1]);
    world.reassign(&[2, 3]);
    world.in_sync(&[0, 1, 2]);
    world.set_fenced(2, true);
    let state = world.in_sync(&[0, 1, 3]);
    assert_eq!((state.leader, &state.isr[..], state.is_reassigning()), (0, &[0, 1, 3][..], true));
    assert!(world.set_fenced(2, false).is_reassigning(), "it is not in sync yet");
    assert_eq!(plan(&world.in_sync(&[0, 1, 3, 2])), (vec![2, 3], vec![], vec![]));
}

#[test]
fn the_last_one_in_sync_stays_until_the_target_is_back() {
    let mut world = world(&[0, 1]);
    world.change(|state| state.isr = vec![0]);
    world.set_fenced(0, true);
    let state = world.reassign(&[0]);
    assert_eq!((state.leader, &state.isr[..], state.is_reassigning()), (-1, &[0][..], true));
    let state = world.set_fenced(0, false);
    assert_eq!((state.leader, &state.isr[..], plan(&state)), (0, &[0][..], (vec![0], vec![], vec![])));
}

#[test]
fn a_fenced_leader_is_followed_by_one_in_sync_in_the_middle_of_a_reassignment() {
    let mut world = world(&[0, 1]);
    world.reassign(&[2, 3]);
    world.in_sync(&[0, 1, 3]);
    let state = world.set_fenced(0, true);
    assert_eq!((state.leader, &state.isr[..], state.is_reassigning()), (3, &[1, 3][..], true));
    let state = world.in_sync(&[1, 3, 2]);
    assert_eq!((state.leader, &state.isr[..], plan(&state)), (3, &[3, 2][..], (vec![2, 3], vec![], vec![])));
}

#[test]
fn a_single_replica_is_written_to_while_it_moves_whatever_the_minimum() {
    let mut world = world(&[0]);
    let topic = world.image.topics.get_mut(&world.topic_id).map(std::sync::Arc::make_mut);
    topic.expect("it is there").config.insert("min.insync.replicas".to_owned(), "2".to_owned());
    let state = world.reassign(&[1]);
    assert_eq!((state.replicas.len(), state.effective_min_in_sync(2)), (2, 1));
    let state = world.in_sync(&[0, 1]);
    assert_eq!((state.leader, &state.isr[..], &state.elr[..]), (1, &[1][..], &[][..]));
}

#[test]
fn a_cancellation_takes_away_what_was_brought() {
    let mut world = world(&[0, 1, 2]);
    world.reassign(&[3, 1]);
    world.in_sync(&[0, 1, 2]);
    assert_eq!(world.cancel(), (0, None));
    let state = world.state();
    assert_eq!(plan(&state), (vec![1, 0, 2], vec![], vec![]));
    assert_eq!((state.leader, &state.isr[..], epochs(&state)), (0, &[0, 1, 2][..], (1, 2)));
    let refused = (ErrorCode::NoReassignmentInProgress.code(), "No partition reassignment is in progress.");
    assert_eq!(world.cancel(), (refused.0, Some(refused.1.to_owned())));
}

#[test]
fn a_cancellation_takes_leadership_from_what_was_brought() {
    let mut world = world(&[0, 1]);
    world.reassign(&[2, 3]);
    world.in_sync(&[0, 1, 2]);
    world.set_fenced(0, true);
    assert_eq!(world.state().leader, 2, "the first of the target");
    assert_eq!(world.cancel(), (0, None));
    let state = world.state();
    assert_eq!((state.leader, &state.isr[..], ids(&state)), (1, &[1][..], vec![0, 1]));
}

#[test]
fn a_cancellation_that_leaves_nobody_in_sync_has_to_be_allowed_like_an_unclean_election() {
    let mut world = world(&[0, 1]);
    world.reassign(&[2, 3]);
    world.change(|state| (state.isr, state.leader) = (vec![2], 2));
    let before = world.state();
    let (error, message) = world.cancel();
    assert_eq!(error, ErrorCode::InvalidReplicaAssignment.code());
    assert_eq!(
        message.as_deref(),
        Some(
            "Unable to revert partition assignment for t:0 because it would require an unclean leader election."
        )
    );
    assert_eq!(world.state(), before);
    world.settings.unclean = true;
    assert_eq!(world.cancel(), (0, None));
    let state = world.state();
    assert_eq!((state.leader, &state.isr[..], ids(&state)), (0, &[0][..], vec![0, 1]));
    // Nobody is there who could lead.
    world.reassign(&[2, 3]);
    world.change(|state| (state.isr, state.leader) = (vec![2], 2));
    world.set_fenced(0, true);
    world.set_fenced(1, true);
    assert_eq!(world.cancel().0, ErrorCode::InvalidReplicaAssignment.code());
}

#[test]
fn a_cancellation_finds_who_was_eligible() {
    let mut world = world(&[0, 1]);
    world.reassign(&[2, 3]);
    world.change(|state| (state.isr, state.elr, state.leader) = (vec![2], vec![3, 1], 2));
    assert_eq!(world.cancel(), (0, None));
    let state = world.state();
    assert_eq!(
        (state.leader, &state.isr[..], &state.elr[..], ids(&state)),
        (1, &[1][..], &[][..], vec![0, 1])
    );
}

#[test]
fn another_target_replaces_the_first_and_the_way_back_stays_the_same() {
    let mut world = world(&[0, 1]);
    world.reassign(&[2, 3]);
    world.in_sync(&[0, 1, 2]);
    let state = world.reassign(&[3, 4]);
    assert_eq!(plan(&state), (vec![3, 4, 0, 1, 2], vec![2, 3, 4], vec![0, 1, 2]));
    assert_eq!(state.isr, [0, 1, 2], "2 may be needed until the others are in sync");
    assert_eq!(world.cancel(), (0, None));
    assert_eq!(plan(&world.state()), (vec![0, 1], vec![], vec![]));
}

#[test]
fn the_first_replicas_as_the_target_undo_a_reassignment() {
    let mut world = world(&[0, 1]);
    world.reassign(&[2, 3]);
    let state = world.reassign(&[0, 1]);
    assert_eq!((plan(&state), state.leader), ((vec![0, 1], vec![], vec![]), 0));
}

#[test]
fn an_unclean_election_looks_among_the_replicas_of_before_first() {
    let mut world = world(&[0, 1]);
    world.change(|state| state.isr = vec![0]);
    world.reassign(&[2, 1]);
    world.settings.unclean = true;
    let state = world.set_fenced(0, true);
    assert_eq!((state.leader, &state.isr[..], state.is_reassigning()), (1, &[1][..], true));
}

#[test]
fn an_unclean_leader_that_is_all_of_the_target_ends_the_reassignment() {
    let mut world = world(&[0, 1]);
    world.change(|state| state.isr = vec![0]);
    assert!(world.reassign(&[1]).is_reassigning());
    world.settings.unclean = true;
    let state = world.set_fenced(0, true);
    assert_eq!((state.leader, &state.isr[..], plan(&state)), (1, &[1][..], (vec![1], vec![], vec![])));
}

#[test]
fn what_cannot_be_assigned_is_refused() {
    let mut world = world(&[0, 1]);
    let invalid = ErrorCode::InvalidReplicaAssignment.code();
    let cases: [(&[BrokerId], &str); 3] = [
        (&[], "The manual partition assignment includes an empty replica list."),
        (&[1, 9], "The manual partition assignment includes broker 9, but no such broker is registered."),
        (&[2, 1, 2], "The manual partition assignment includes the broker 2 more than once."),
    ];
    for (target, message) in cases {
        assert_eq!(world.alter_with(Some(target), true), (invalid, Some(message.to_owned())), "{target:?}");
    }
    let resized = ErrorCode::InvalidReplicationFactor.code();
    let message = "The replication factor is changed from 2 to 1".to_owned();
    assert_eq!(world.alter_with(Some(&[2]), false), (resized, Some(message)));
    assert_eq!(world.alter_with(Some(&[2, 3]), false), (0, None));
    assert_eq!(world.alter_with(Some(&[4, 5, 0]), false).0, resized, "the target had two");
    assert_eq!(world.alter_with(Some(&[4, 5]), false), (0, None));
}

#[test]
fn unknown_partitions_are_refused_and_left_out_of_lists() {
    let mut world = world(&[0, 1]);
    world.reassign(&[2, 3]);
    let partition = |partition_index| ReassignablePartition { partition_index, ..Default::default() };
    let topic = |name: &str, index| ReassignableTopic {
        name: name.into(),
        partitions: vec![partition(index)],
        ..Default::default()
    };
    let topics = vec![topic("nothing", 0), topic("t", 1), topic("t", -1)];
    let request = AlterPartitionReassignmentsRequest { topics, ..Default::default() };
    let response = alter(&mut Draft::new(&world.image), &request, &world.settings);
    for topic in &response.responses {
        assert_eq!(topic.partitions[0].error_code, ErrorCode::UnknownTopicOrPartition.code());
    }
    let all = world.list(None);
    assert_eq!(all.len(), 1);
    let one = &all[0].partitions[0];
    assert_eq!((all[0].name.as_str(), one.partition_index), ("t", 0));
    assert_eq!((&one.replicas[..], &one.adding_replicas[..]), (&[2, 3, 0, 1][..], &[2, 3][..]));
    assert_eq!(one.removing_replicas, [0, 1]);
    assert_eq!(world.list(Some(("t", vec![0]))), all);
    for asked in [("t", vec![1, -1]), ("nothing", vec![0]), ("t", vec![])] {
        assert_eq!(world.list(Some(asked)), []);
    }
}
