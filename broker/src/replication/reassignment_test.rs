//! Five brokers' replicas in one process, with the real controller: partitions move while they are written to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millrace_protocol::ErrorCode;
use millrace_protocol::messages::AlterPartitionReassignmentsRequest;
use millrace_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};

use super::test_fleet::{DEADLINE, Fleet, ID};
use super::*;
use crate::metadata::controller::{ControllerRequest, ControllerResponse};
use crate::metadata::image::PartitionImage;
use crate::storage::batch::samples::batch;

async fn fleet() -> Fleet {
    let settings = TopicSettings { min_insync_replicas: 2, ..TopicSettings::default() };
    Fleet::start_controlled(settings, 5, 3).await
}

/// To these brokers, or back.
fn alter(fleet: &Fleet, target: Option<&[BrokerId]>) -> ErrorCode {
    let partition = ReassignablePartition {
        partition_index: 0,
        replicas: target.map(<[BrokerId]>::to_vec),
        ..Default::default()
    };
    let topic = ReassignableTopic { name: "topic".into(), partitions: vec![partition], ..Default::default() };
    let request = AlterPartitionReassignmentsRequest { topics: vec![topic], ..Default::default() };
    match fleet.shared.ask(&ControllerRequest::AlterPartitionReassignments(request)) {
        ControllerResponse::AlterPartitionReassignments(response) => {
            ErrorCode::from_code(response.responses[0].partitions[0].error_code).unwrap()
        }
        other => panic!("{other:?}"),
    }
}

async fn until_moved(fleet: &Fleet, target: &[BrokerId]) {
    let moved = || {
        let state = fleet.shared.state();
        !state.is_reassigning() && state.replica_ids().eq(target.iter().copied())
    };
    fleet.wait(&format!("on brokers {target:?}"), moved).await;
}

async fn until_no_log(fleet: &Fleet, brokers: &[BrokerId]) {
    for broker_id in brokers {
        let gone = || stored(fleet, *broker_id) == 0 && fleet.manager(*broker_id).partition(ID).is_none();
        fleet.wait(&format!("no log on broker {broker_id}"), gone).await;
    }
}

/// Logs on the volume of a broker.
fn stored(fleet: &Fleet, broker_id: BrokerId) -> usize {
    fleet.manager(broker_id).stored_logs().len()
}

/// Appends with acks=all, as a client that goes where the leader is; returns the offset. Only the errors that tell a
/// client to look for the leader are tolerated.
async fn produce(fleet: &Fleet) -> i64 {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let leader = fleet.shared.state().leader;
        let outcome = fleet.produce_with(leader, batch(1, b"value"), RequiredAcks::All).await;
        match outcome.error {
            ErrorCode::None => return outcome.base_offset,
            ErrorCode::NotLeaderOrFollower | ErrorCode::UnknownTopicOrPartition => {
                assert!(tokio::time::Instant::now() < deadline, "nobody takes it");
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            error => panic!("{error:?}: {:?}", outcome.error_message),
        }
    }
}

/// A client that writes until it is told to stop; returns the offsets of its records.
fn writer(fleet: &Arc<Fleet>) -> (Arc<AtomicBool>, tokio::task::JoinHandle<Vec<i64>>) {
    let stop = Arc::new(AtomicBool::new(false));
    let (told, fleet) = (Arc::clone(&stop), Arc::clone(fleet));
    let task = tokio::spawn(async move {
        let mut offsets = Vec::new();
        while !told.load(Ordering::Relaxed) {
            offsets.push(produce(&fleet).await);
        }
        offsets
    });
    (stop, task)
}

fn smallest_isr(fleet: &Fleet) -> usize {
    fleet.shared.history.lock().iter().map(|state| state.isr.len()).min().unwrap()
}

fn leaders(states: &[PartitionImage]) -> Vec<BrokerId> {
    let mut leaders: Vec<BrokerId> = states.iter().map(|state| state.leader).collect();
    leaders.dedup();
    leaders
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_moves_to_other_brokers_while_it_is_written_to() {
    let fleet = Arc::new(fleet().await);
    for _ in 0..50 {
        produce(&fleet).await;
    }
    let (stop, writing) = writer(&fleet);
    for target in [[4, 5, 2], [3, 1, 4], [1, 2, 3]] {
        assert_eq!(alter(&fleet, Some(&target)), ErrorCode::None);
        until_moved(&fleet, &target).await;
        let others: Vec<BrokerId> = (1..=5).filter(|id| !target.contains(id)).collect();
        until_no_log(&fleet, &others).await;
    }
    stop.store(true, Ordering::Relaxed);
    let offsets = writing.await.unwrap();
    assert!(offsets.is_sorted(), "each comes after the one before");
    fleet.until_isr(vec![1, 2, 3]).await;
    fleet.until_equal(&[1, 2, 3]).await;
    // A record may be there twice whose answer was that the leader has moved: this client does not number its records.
    assert!(fleet.stored(1).len() >= 50 + offsets.len());
    assert!(smallest_isr(&fleet) >= 3, "{:?}", fleet.shared.history.lock());
    assert_eq!(leaders(&fleet.shared.history.lock()), [1, 4, 1], "4 is in both targets after 1 went");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stays_acknowledges_what_it_had_before_the_epoch_of_the_smaller_assignment() {
    let fleet = fleet().await;
    fleet.cut_off(2);
    let parts = vec![ProducePartition { partition: ID, records: batch(1, b"value") }];
    let pending = fleet.manager(1).append(parts, RequiredAcks::All, 13).await;
    fleet.until(3, |it| it.log().ends().durable_end == 1).await;
    // 2 has not got it, and is not asked any more.
    assert_eq!(alter(&fleet, Some(&[1, 3])), ErrorCode::None);
    assert_eq!((fleet.shared.state().leader, fleet.shared.state().leader_epoch), (1, 1));
    assert_eq!(pending.outcome(DEADLINE).await.remove(0).error, ErrorCode::None);
    fleet.reconnect(2);
    until_no_log(&fleet, &[2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_brought_begins_at_the_leaders_log_start() {
    let fleet = fleet().await;
    for _ in 0..6 {
        fleet.produce(1, batch(10, b"value")).await;
    }
    assert_eq!(fleet.manager(1).delete_records(ID, Some(25), DEADLINE).await, Ok(25));
    assert_eq!(alter(&fleet, Some(&[1, 2, 3, 4])), ErrorCode::None);
    until_moved(&fleet, &[1, 2, 3, 4]).await;
    fleet.until(4, |it| it.log().ends().log_start == 25).await;
    fleet.until_equal(&[1, 4]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_reassignment_leaves_nothing_behind() {
    let fleet = fleet().await;
    for _ in 0..5 {
        fleet.produce(1, batch(1, b"value")).await;
    }
    // 5 is not there, so that the reassignment cannot come to its end.
    fleet.cut_off(5);
    assert_eq!(alter(&fleet, Some(&[4, 5])), ErrorCode::None);
    fleet.until_isr(vec![1, 2, 3, 4]).await;
    fleet.produce(1, batch(1, b"value")).await;
    assert_eq!(alter(&fleet, None), ErrorCode::None);
    assert_eq!(alter(&fleet, None), ErrorCode::NoReassignmentInProgress);
    until_moved(&fleet, &[1, 2, 3]).await;
    fleet.reconnect(5);
    until_no_log(&fleet, &[4, 5]).await;
    assert_eq!(fleet.produce(1, batch(1, b"value")).await, 6);
    fleet.until_equal(&[1, 2, 3]).await;
    assert!(smallest_isr(&fleet) >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_comes_back_before_its_broker_has_heard_of_its_going_keeps_its_log() {
    let fleet = fleet().await;
    for _ in 0..5 {
        fleet.produce(1, batch(1, b"value")).await;
    }
    fleet.cut_off(3);
    assert_eq!(alter(&fleet, Some(&[1, 2])), ErrorCode::None);
    for _ in 0..5 {
        fleet.produce(1, batch(1, b"value")).await;
    }
    assert_eq!(alter(&fleet, Some(&[1, 2, 3])), ErrorCode::None);
    assert_eq!(stored(&fleet, 3), 1);
    fleet.reconnect(3);
    until_moved(&fleet, &[1, 2, 3]).await;
    fleet.until_isr(vec![1, 2, 3]).await;
    fleet.until_equal(&[1, 2, 3]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_was_down_when_its_replica_went_deletes_the_log_when_it_is_back() {
    let fleet = fleet().await;
    fleet.produce(1, batch(1, b"value")).await;
    fleet.until_equal(&[1, 2, 3]).await;
    fleet.manager(3).shutdown().await;
    fleet.shared.managers.lock().remove(&3);
    assert_eq!(alter(&fleet, Some(&[1, 2])), ErrorCode::None);
    fleet.start_broker(3);
    until_no_log(&fleet, &[3]).await;
}

/// While throttled replicas get nothing, those in sync get everything, and clients do not notice.
async fn is_filled_only_when_its_rate_allows_it(settings: TopicSettings, key: &str) {
    let fleet = Fleet::start_controlled(settings, 4, 3).await;
    fleet.produce(1, batch(1, &[7; 10_000])).await;
    fleet.set_rate(key, 0);
    for broker_id in 1..=4 {
        fleet.wait("the rate to be known", || fleet.manager(broker_id).is_throttled(key)).await;
    }
    assert_eq!(alter(&fleet, Some(&[1, 2, 3, 4])), ErrorCode::None);
    fleet.until(4, |it| it.role().follows == Some(1)).await;
    for _ in 0..20 {
        fleet.produce(1, batch(1, &[7; 10_000])).await;
    }
    assert_eq!(fleet.ends(4).log_end, 0);
    assert_eq!(fleet.shared.state().isr, [1, 2, 3]);
    // Any broker can say how far it is.
    for broker_id in 1..=4 {
        let Progress { replicas, silent } = fleet.manager(broker_id).progress().await;
        let done: Vec<_> = replicas.iter().map(|it| (it.broker_id, it.bytes_done > 200_000)).collect();
        assert_eq!((done, silent.len()), (vec![(2, true), (3, true), (4, false)], 0));
        let fourth = &replicas[2];
        assert_eq!((fourth.bytes_done, fourth.bytes_per_second), (0, 0));
        assert_eq!(fourth.bytes_left, fleet.partition(1).log().size());
    }
    // Enough for some batches a second at first.
    fleet.set_rate(key, 50_000);
    fleet.until(4, |it| it.log().ends().log_end > 0).await;
    fleet.set_rate(key, u64::MAX);
    until_moved(&fleet, &[1, 2, 3, 4]).await;
    fleet.until_equal(&[1, 4]).await;
    assert!(smallest_isr(&fleet) >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_leader_fills_replicas_that_are_not_in_sync_only_when_its_rate_allows_it() {
    let leader_throttled = ThrottledReplicas::Listed(vec![(0, 1)]);
    let settings = TopicSettings { leader_throttled, ..TopicSettings::default() };
    is_filled_only_when_its_rate_allows_it(settings, "leader.replication.throttled.rate").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_below_what_producers_write_fills_replicas_all_the_same() {
    let settings = TopicSettings { leader_throttled: ThrottledReplicas::All, ..TopicSettings::default() };
    let fleet = Fleet::start_controlled(settings, 4, 3).await;
    let key = "leader.replication.throttled.rate";
    fleet.set_rate(key, 10_000);
    fleet.wait("the rate to be known", || fleet.manager(1).is_throttled(key)).await;
    // Two followers in sync get what the rate allows in two minutes.
    for _ in 0..60 {
        fleet.produce(1, batch(1, &[7; 10_000])).await;
    }
    assert_eq!(alter(&fleet, Some(&[1, 2, 3, 4])), ErrorCode::None);
    fleet.until(4, |it| it.log().ends().log_end > 0).await;
    assert!(fleet.ends(4).log_end < 30, "at its rate");
    fleet.set_rate(key, u64::MAX);
    until_moved(&fleet, &[1, 2, 3, 4]).await;
    fleet.until_equal(&[1, 4]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_follower_that_is_not_in_sync_fetches_only_when_its_rate_allows_it() {
    let follower_throttled = ThrottledReplicas::All;
    let settings = TopicSettings { follower_throttled, ..TopicSettings::default() };
    is_filled_only_when_its_rate_allows_it(settings, "follower.replication.throttled.rate").await;
}
