//! Followers that are ahead of their leader's disk: what is committed, and what becomes of records that the leader loses.

use tokio::time::Instant;

use super::test_fleet::{DEADLINE, Fleet, ID};
use super::*;
use crate::storage::batch::samples::batch;
use crate::storage::conformance::Held as _;

fn settings() -> TopicSettings {
    TopicSettings { min_insync_replicas: 1, ..TopicSettings::default() }
}

async fn append(fleet: &Fleet, value: &[u8]) -> PendingProduce {
    let parts = vec![ProducePartition { partition: ID, records: batch(2, value) }];
    fleet.manager(1).append(parts, RequiredAcks::All, 13).await
}

/// Waits until broker 1 knows that its followers have everything below `end` durable.
async fn until_followers_have(fleet: &Fleet, end: i64) {
    let all = |it: &Partition| {
        let positions = it.watermark().leadership(|leads| leads.positions(Instant::now()));
        positions.is_some_and(|all| all.iter().all(|position| position.durable_end == Some(end)))
    };
    fleet.until(1, all).await;
}

fn knows_durable_end(leader: &Partition, (broker_id, end): (i32, i64)) -> bool {
    let positions = leader.watermark().leadership(|leads| leads.positions(Instant::now()));
    positions.is_some_and(|all| all.iter().any(|it| (it.broker_id, it.durable_end) == (broker_id, Some(end))))
}

fn from(offset: i64) -> FetchRequestPlan {
    FetchRequestPlan {
        max_wait: Duration::ZERO,
        min_bytes: 1,
        max_bytes: 1 << 20,
        read_committed: false,
        may_read_followers: true,
        rack: String::new(),
        partitions: vec![FetchPartition {
            partition: ID,
            current_leader_epoch: None,
            fetch_offset: offset,
            last_fetched_epoch: None,
            max_bytes: 1 << 20,
        }],
    }
}

/// Broker 1 has two records that its followers have durable and it has not; they are lost when its power goes.
async fn leader_loses_what_followers_have() -> Fleet {
    let fleet = Fleet::start(settings()).await;
    fleet.produce(1, batch(2, b"kept")).await;
    let held = fleet.disk(1).hold();
    let pending = append(&fleet, b"lost by 1").await;
    until_followers_have(&fleet, 4).await;
    Box::new(held).lose_power();
    let outcome = pending.outcome(DEADLINE).await.remove(0);
    assert_eq!(outcome.error, ErrorCode::KafkaStorageError);
    fleet.manager(1).shutdown().await;
    fleet
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_have_records_durable_before_their_leader_and_the_high_watermark_waits_for_it_l5() {
    let fleet = Fleet::start(settings()).await;
    fleet.produce(1, batch(2, b"first")).await;
    let held = fleet.disk(1).hold();
    let pending = append(&fleet, b"second").await;
    until_followers_have(&fleet, 4).await;
    let ends = fleet.ends(1);
    assert_eq!((ends.durable_end, ends.log_end), (2, 4));
    for broker_id in 1..=3 {
        assert_eq!(fleet.partition(broker_id).high_watermark(), 2, "broker {broker_id}");
        let read = fleet.manager(broker_id).fetch(from(2)).await.remove(0);
        assert_eq!((read.error, read.records.is_empty()), (ErrorCode::None, true), "broker {broker_id}");
    }
    // They keep up with the log, whatever the leader's disk does.
    assert_eq!(fleet.partition(1).watermark().propose_shrinking(), None);
    drop(held);
    let outcome = pending.outcome(DEADLINE).await.remove(0);
    assert_eq!((outcome.error, outcome.base_offset), (ErrorCode::None, 2));
    for broker_id in 1..=3 {
        fleet.until(broker_id, |it| it.high_watermark() == 4).await;
    }
    fleet.until_equal(&[1, 2, 3]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_leader_lost_comes_back_from_a_follower_that_leads_next() {
    let fleet = leader_loses_what_followers_have().await;
    fleet.elect(2, &[2, 3]);
    fleet.start_broker(1);
    fleet.until_isr(vec![1, 2, 3]).await;
    assert_eq!(fleet.produce(2, batch(1, b"next")).await, 4);
    fleet.until_equal(&[2, 1, 3]).await;
    assert_eq!(fleet.stored(1).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_drop_what_a_leader_lost_that_leads_again_l3() {
    let fleet = leader_loses_what_followers_have().await;
    fleet.cut_off(2);
    fleet.cut_off(3);
    fleet.elect(1, &[1, 2, 3]);
    fleet.start_broker(1);
    fleet.until(1, |it| it.role().leads).await;
    // Its log goes past where theirs end, so that offsets alone do not tell.
    let mut others = Vec::new();
    for value in [b"other 1", b"other 2", b"other 3"] {
        others.push(append(&fleet, value).await);
    }
    fleet.until(1, |it| it.log().ends().durable_end == 8).await;
    assert_eq!((fleet.ends(2).durable_end, fleet.ends(3).durable_end), (4, 4));
    fleet.reconnect(2);
    fleet.reconnect(3);
    for other in others {
        assert_eq!(other.outcome(DEADLINE).await.remove(0).error, ErrorCode::None);
    }
    fleet.until_equal(&[1, 2, 3]).await;
    assert_eq!(fleet.stored(2).len(), 4);
}

/// Three batches that do not fit into one answer, of two records each.
async fn append_more_than_an_answer(fleet: &Fleet) {
    for value in [b"1", b"2", b"3"] {
        let parts = vec![ProducePartition { partition: ID, records: batch(2, &value.repeat(300 << 10)) }];
        let outcome = fleet.manager(1).append(parts, RequiredAcks::Leader, 13).await.outcome(DEADLINE).await;
        assert_eq!(outcome[0].error, ErrorCode::None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_is_behind_gets_more_while_it_syncs_and_counts_with_what_is_durable_there_l5() {
    let fleet = Fleet::start(settings()).await;
    fleet.cut_off(3);
    append_more_than_an_answer(&fleet).await;
    let held = fleet.disk(3).hold();
    fleet.reconnect(3);
    // One answer has room for one batch.
    fleet.until(3, |it| it.log().ends().log_end == 4).await;
    assert_eq!(fleet.ends(3).durable_end, 0);
    assert!(knows_durable_end(&fleet.partition(1), (3, 0)));
    let lagging = fleet.partition(1).watermark().leadership(|leads| leads.is_in_sync(3));
    assert!(lagging == Some(false) || fleet.partition(1).high_watermark() == 0);
    drop(held);
    fleet.until_isr(vec![1, 2, 3]).await;
    fleet.until(1, |it| it.high_watermark() == 6).await;
    fleet.until_equal(&[1, 2, 3]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_tells_at_once_when_it_has_become_durable_though_the_leader_has_nothing_for_it() {
    let fleet = Fleet::start_patient(settings()).await;
    fleet.produce(1, batch(2, b"first")).await;
    let held = fleet.disk(1).hold();
    let _lost_with_its_leader = append(&fleet, b"second").await;
    until_followers_have(&fleet, 4).await;
    // It has everything, but not on its disk.
    fleet.elect(2, &[1, 2, 3]);
    fleet.until(2, |it| knows_durable_end(it, (1, 2))).await;
    assert_eq!(fleet.partition(2).high_watermark(), 2);
    drop(held);
    fleet.until(2, |it| it.high_watermark() == 4).await;
}
