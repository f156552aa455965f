//! Three brokers' replicas in one process: what is acknowledged, who is in sync, and what becomes of parted logs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_protocol::ErrorCode;
use millrace_protocol::records::BatchHeader;

use super::test_fleet::{DEADLINE, Fleet, ID};
use super::*;
use crate::metadata::image::NO_LEADER;
use crate::storage::batch::WholeBatches;
use crate::storage::batch::samples::{batch, producer_batch};

fn settings() -> TopicSettings {
    TopicSettings { min_insync_replicas: 1, ..TopicSettings::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_acks_all_acknowledges_is_durable_on_every_replica_in_sync() {
    let fleet = Fleet::start(settings()).await;
    for number in 0..20 {
        let offset = fleet.produce(1, batch(3, b"value")).await;
        assert_eq!(offset, number * 3);
        for broker_id in 1..=3 {
            assert!(fleet.ends(broker_id).durable_end >= offset + 3, "broker {broker_id}");
        }
    }
    fleet.until_equal(&[1, 2, 3]).await;
    for broker_id in 2..=3 {
        fleet.until(broker_id, |it| it.high_watermark() == 60).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_all_waits_for_a_replica_in_sync_until_it_is_not_any_more_l6_l7() {
    let fleet = Fleet::start(settings()).await;
    fleet.produce(1, batch(1, b"first")).await;
    fleet.cut_off(3);
    let parts = vec![ProducePartition { partition: ID, records: batch(1, b"second") }];
    let pending = fleet.manager(1).append(parts, RequiredAcks::All, 13).await;
    fleet.until(2, |it| it.log().ends().durable_end == 2).await;
    assert_eq!(fleet.partition(1).high_watermark(), 1, "3 does not have it");
    let outcome = pending.outcome(DEADLINE).await.remove(0);
    assert_eq!(outcome.error, ErrorCode::None);
    fleet.until_isr(vec![1, 2]).await;
    assert_eq!(fleet.ends(3).durable_end, 1);
    fleet.reconnect(3);
    fleet.until_isr(vec![1, 2, 3]).await;
    fleet.until_equal(&[1, 2, 3]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_whose_volume_is_full_is_sent_records_once_a_second_until_there_is_space() {
    let fleet = Fleet::start(settings()).await;
    fleet.disk(3).set_full(true);
    fleet.produce(1, batch(1, b"in sync without the third")).await;
    fleet.until_isr(vec![1, 2]).await;
    let (began, before) = (Instant::now(), fleet.sent(3));
    for _ in 0..50 {
        fleet.produce(1, batch(1, b"value")).await;
    }
    let (sent, seconds) = (fleet.sent(3) - before, began.elapsed().as_secs());
    assert!(sent as u64 <= 1 + seconds, "{sent} answers with records in {seconds} s");
    assert_eq!(fleet.ends(3).log_end, 0);
    fleet.disk(3).set_full(false);
    fleet.until_isr(vec![1, 2, 3]).await;
    fleet.until_equal(&[1, 2, 3]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_leads_has_all_that_was_acknowledged_and_the_old_leader_drops_the_rest_l3() {
    let fleet = Fleet::start(settings()).await;
    for _ in 0..5 {
        fleet.produce(1, batch(2, b"acknowledged")).await;
    }
    fleet.cut_off(1);
    // Nobody else ever sees these.
    let lonely = vec![ProducePartition { partition: ID, records: batch(4, b"lost") }];
    let lonely = fleet.manager(1).append(lonely, RequiredAcks::All, 13).await;
    fleet.until(1, |it| it.log().ends().durable_end == 14).await;
    fleet.elect(2, &[2, 3]);
    fleet.until(2, |it| it.role().leads).await;
    assert_eq!(fleet.produce(2, batch(1, b"of the next leader")).await, 10);
    assert_eq!(fleet.partition(1).high_watermark(), 10, "the old leader cannot have more acknowledged");
    fleet.reconnect(1);
    assert_eq!(lonely.outcome(DEADLINE).await.remove(0).error, ErrorCode::NotLeaderOrFollower);
    fleet.until_isr(vec![1, 2, 3]).await;
    fleet.until_equal(&[2, 1, 3]).await;
    assert_eq!(fleet.stored(1).len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repetition_at_the_next_leader_is_known_as_one_i5() {
    let fleet = Fleet::start(settings()).await;
    let sent = |sequence| producer_batch((7, 0, sequence), &[1_000, 1_000], b"v");
    assert_eq!(fleet.produce(1, sent(0)).await, 0);
    assert_eq!(fleet.produce(1, sent(2)).await, 2);
    fleet.cut_off(1);
    // The old leader takes one that gets lost, and forgets it again when it follows.
    let lost = fleet.produce_with(1, sent(4), RequiredAcks::Leader).await;
    assert_eq!((lost.error, lost.base_offset), (ErrorCode::None, 4));
    fleet.elect(2, &[2, 3]);
    fleet.until(2, |it| it.role().leads).await;
    assert_eq!(fleet.produce(2, sent(2)).await, 2, "known from the old leader");
    fleet.reconnect(1);
    fleet.until_isr(vec![1, 2, 3]).await;
    fleet.elect(1, &[1, 2, 3]);
    fleet.until(1, |it| it.role().leads).await;
    assert_eq!(fleet.produce(1, sent(4)).await, 4, "not known any more, so it is stored");
    assert_eq!(fleet.produce(1, sent(4)).await, 4);
    fleet.until_equal(&[1, 2, 3]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_begins_anew_knows_nothing_of_producers_from_before_i5() {
    let fleet = Fleet::start(settings()).await;
    let sent = |sequence| producer_batch((7, 0, sequence), &[1_000, 1_000], b"v");
    assert_eq!(fleet.produce(1, sent(0)).await, 0);
    fleet.until(3, |it| it.log().ends().durable_end == 2).await;
    fleet.cut_off(3);
    assert_eq!(fleet.produce(1, sent(2)).await, 2);
    assert_eq!(fleet.produce(1, sent(4)).await, 4);
    fleet.until_isr(vec![1, 2]).await;
    let deleted = fleet.manager(1).delete_records(ID, None, Duration::from_millis(50)).await;
    assert_eq!((deleted, fleet.ends(1).log_start), (Err(ErrorCode::RequestTimedOut), 6));
    fleet.reconnect(3);
    fleet.until_isr(vec![1, 2, 3]).await;
    fleet.elect(3, &[1, 2, 3]);
    fleet.until(3, |it| it.role().leads).await;
    assert_eq!(fleet.produce(3, sent(6)).await, 6, "what lies between is deleted, and was there");
    assert_eq!(fleet.produce(3, sent(6)).await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_follower_follows_a_leader_that_was_elected_uncleanly_and_has_less() {
    let fleet = Fleet::start(settings()).await;
    fleet.produce(1, batch(5, b"value")).await;
    fleet.until(3, |it| it.log().ends().durable_end == 5).await;
    fleet.cut_off(3);
    fleet.produce(1, batch(5, b"value")).await;
    fleet.until_isr(vec![1, 2]).await;
    let deleted = fleet.manager(1).delete_records(ID, None, Duration::from_millis(50)).await;
    assert_eq!(deleted, Err(ErrorCode::RequestTimedOut));
    fleet.until(2, |it| it.log().ends().log_start == 10).await;
    fleet.cut_off(1);
    fleet.reconnect(3);
    fleet.elect(3, &[3]);
    fleet.until(3, |it| it.role().leads).await;
    fleet.until_isr(vec![2, 3]).await;
    assert_eq!(fleet.produce(3, batch(1, b"next")).await, 5);
    fleet.until_equal(&[3, 2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_is_read_after_a_restart_below_min_isr() {
    let fleet = Fleet::start(TopicSettings { min_insync_replicas: 2, ..settings() }).await;
    fleet.produce(1, batch(3, b"committed")).await;
    fleet.cut_off(2);
    fleet.cut_off(3);
    let alone = fleet.produce_with(1, batch(1, b"on the leader"), RequiredAcks::Leader).await;
    assert_eq!((alone.error, alone.base_offset), (ErrorCode::None, 3));
    fleet.until_isr(vec![1]).await;
    fleet.manager(1).shutdown().await;
    fleet.elect(1, &[1]);
    fleet.start_broker(1);
    fleet.until(1, |it| it.role().leads).await;
    let read = fleet.manager(1).fetch(plan(0, "")).await.remove(0);
    assert_eq!((read.error, read.high_watermark), (ErrorCode::None, 3));
    assert_eq!(WholeBatches::new(&read.records.into_bytes()).count(), 1);
    let latest =
        OffsetQuery { partition: ID, timestamp: -1, current_leader_epoch: None, read_committed: false };
    let latest = fleet.manager(1).list_offset(latest);
    assert_eq!(latest, Err(ErrorCode::OffsetNotAvailable), "whether there is more, nobody knows (L8)");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_has_the_producers_as_of_the_high_watermark_since_the_rest_may_be_cut_off_i5() {
    let fleet = Fleet::start(settings()).await;
    let sent = |sequence| producer_batch((7, 0, sequence), &[1_000, 1_000], b"v");
    assert_eq!(fleet.produce(1, sent(0)).await, 0);
    fleet.cut_off(1);
    let lost = fleet.produce_with(1, sent(2), RequiredAcks::Leader).await;
    assert_eq!((lost.error, lost.base_offset), (ErrorCode::None, 2));
    let snapshot = fleet.partition(1).snapshot();
    assert_eq!((snapshot.offset, fleet.ends(1).log_end), (2, 4));
    let kept = kept_state::KeptState::decode(&snapshot.bytes, 0).unwrap();
    assert_eq!(kept.high_watermark, Some(2));
    assert_eq!(kept.producers.last_offsets().collect::<Vec<_>>(), [(7, 1)]);

    // It is stopped in order, and has to cut its log when it comes back.
    fleet.manager(1).shutdown().await;
    fleet.elect(2, &[2, 3]);
    fleet.until(2, |it| it.role().leads).await;
    assert_eq!(fleet.produce(2, batch(1, b"of the next leader")).await, 2);
    fleet.start_broker(1);
    fleet.reconnect(1);
    fleet.until_isr(vec![1, 2, 3]).await;
    fleet.elect(1, &[1, 2, 3]);
    fleet.until(1, |it| it.role().leads).await;
    assert_eq!(fleet.produce(1, sent(0)).await, 0, "known from before it was stopped");
    assert_eq!(fleet.produce(1, sent(2)).await, 3, "cut off, so it is stored");
    fleet.until_equal(&[1, 2, 3]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn below_min_isr_nothing_becomes_visible_l5_p11() {
    let fleet = Fleet::start(TopicSettings { min_insync_replicas: 2, ..settings() }).await;
    fleet.produce(1, batch(1, b"two more have it")).await;
    fleet.cut_off(2);
    fleet.cut_off(3);
    let parts = vec![ProducePartition { partition: ID, records: batch(1, b"nobody has it") }];
    let pending = fleet.manager(1).append(parts, RequiredAcks::All, 13).await;
    fleet.until_isr(vec![1]).await;
    fleet.until(1, |it| it.watermark().leadership(|leads| leads.isr_len()) == Some(1)).await;
    let refused = fleet.produce_with(1, batch(1, b"refused"), RequiredAcks::All).await;
    assert_eq!(refused.error, ErrorCode::NotEnoughReplicas);
    let alone = fleet.produce_with(1, batch(1, b"on the leader"), RequiredAcks::Leader).await;
    assert_eq!((alone.error, alone.base_offset), (ErrorCode::None, 2));
    assert_eq!(fleet.partition(1).high_watermark(), 1);
    fleet.reconnect(2);
    fleet.until_isr(vec![1, 2]).await;
    assert_eq!(pending.outcome(DEADLINE).await.remove(0).error, ErrorCode::None, "there are enough again");
    fleet.until(1, |it| it.high_watermark() == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_whose_replicas_have_left_before_the_answer_are_not_acknowledged_p11() {
    let fleet = Fleet::start(TopicSettings { min_insync_replicas: 2, ..settings() }).await;
    let parts = vec![ProducePartition { partition: ID, records: batch(1, b"all three had it") }];
    let pending = fleet.manager(1).append(parts, RequiredAcks::All, 13).await;
    fleet.until(1, |it| it.high_watermark() == 1).await;
    fleet.cut_off(2);
    fleet.cut_off(3);
    // What the others do not have makes them leave.
    let alone = fleet.produce_with(1, batch(1, b"on the leader"), RequiredAcks::Leader).await;
    assert_eq!((alone.error, alone.base_offset), (ErrorCode::None, 1));
    fleet.until(1, |it| it.watermark().leadership(|leads| leads.isr_len()) == Some(1)).await;
    let outcome = pending.outcome(DEADLINE).await.remove(0);
    assert_eq!(outcome.error, ErrorCode::NotEnoughReplicasAfterAppend);
    assert_eq!(fleet.partition(1).high_watermark(), 1, "consumers see it all the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_behind_the_leaders_log_start_begins_there() {
    let fleet = Fleet::start(settings()).await;
    fleet.cut_off(3);
    for _ in 0..4 {
        fleet.produce(1, batch(10, b"value")).await;
    }
    fleet.until_isr(vec![1, 2]).await;
    // In the middle of a batch. The third does not answer, and is still taken to be there.
    let deleted = fleet.manager(1).delete_records(ID, Some(25), Duration::from_millis(50)).await;
    assert_eq!(deleted, Err(ErrorCode::RequestTimedOut));
    assert_eq!(fleet.ends(1).log_start, 25);
    fleet.until(2, |it| it.log().ends().log_start == 25).await;
    fleet.reconnect(3);
    fleet.until_isr(vec![1, 2, 3]).await;
    fleet.until(3, |it| it.log().ends().log_start == 25).await;
    assert_eq!(fleet.stored(3), fleet.stored(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_deleted_on_all_replicas_in_service_when_the_answer_comes_d1() {
    let fleet = Fleet::start(settings()).await;
    for _ in 0..4 {
        fleet.produce(1, batch(10, b"value")).await;
    }
    fleet.cut_off(3);
    let manager = fleet.manager(1);
    let delete = tokio::spawn(async move { manager.delete_records(ID, Some(25), DEADLINE).await });
    fleet.until(2, |it| it.log().ends().log_start == 25).await;
    assert_eq!(fleet.ends(1).log_start, 25);
    assert!(!delete.is_finished(), "3 has not heard of it");
    fleet.reconnect(3);
    assert_eq!(delete.await.unwrap(), Ok(25));
    let starts: Vec<_> = (1..=3).map(|broker_id| fleet.ends(broker_id).log_start).collect();
    assert_eq!(starts, [25, 25, 25]);
    assert_eq!(fleet.manager(1).delete_records(ID, None, DEADLINE).await, Ok(40));
    let starts: Vec<_> = (1..=3).map(|broker_id| fleet.ends(broker_id).log_start).collect();
    assert_eq!(starts, [40, 40, 40]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_replica_that_goes_out_of_service_d1() {
    let fleet = Fleet::start(settings()).await;
    fleet.produce(1, batch(10, b"value")).await;
    fleet.cut_off(3);
    let manager = fleet.manager(1);
    let delete = tokio::spawn(async move { manager.delete_records(ID, Some(5), DEADLINE).await });
    fleet.until(2, |it| it.log().ends().log_start == 5).await;
    assert!(!delete.is_finished());
    fleet.shared.edit(|image| Arc::make_mut(image.brokers.get_mut(&3).unwrap()).fenced = true);
    assert_eq!(delete.await.unwrap(), Ok(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_not_told_before_it_is_as_far_as_consumers_have_been_l8() {
    let fleet = Fleet::start(settings()).await;
    fleet.produce(1, batch(7, b"seen")).await;
    fleet.until(2, |it| it.log().ends().durable_end == 7).await;
    // After a crash 2 does not know the high watermark, and nobody who is in sync can tell how far it is.
    fleet.kill(2).await;
    fleet.cut_off(1);
    fleet.cut_off(3);
    fleet.elect(2, &[2, 3]);
    fleet.start_broker(2);
    fleet.until(2, |it| it.role().leads).await;
    let latest =
        OffsetQuery { partition: ID, timestamp: -1, current_leader_epoch: None, read_committed: false };
    assert_eq!(fleet.manager(2).list_offset(latest.clone()), Err(ErrorCode::OffsetNotAvailable));
    fleet.until_isr(vec![2]).await;
    fleet.until(2, |it| it.high_watermark() == 7).await;
    assert_eq!(fleet.manager(2).list_offset(latest).unwrap().offset, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_come_back_after_a_restart_of_all() {
    let fleet = Fleet::start(settings()).await;
    for _ in 0..5 {
        fleet.produce(1, batch(2, b"value")).await;
    }
    for broker_id in 1..=3 {
        fleet.manager(broker_id).shutdown().await;
    }
    fleet.shared.managers.lock().clear();
    fleet.elect(NO_LEADER, &[1, 2, 3]);
    (1..=3).for_each(|broker_id| fleet.start_broker(broker_id));
    fleet.elect(3, &[1, 2, 3]);
    fleet.until(3, |it| it.role().leads && it.high_watermark() == 10).await;
    assert_eq!(fleet.produce(3, batch(1, b"next")).await, 10);
    fleet.until_equal(&[1, 2, 3]).await;
    let header = BatchHeader::parse(&fleet.stored(1)[5].1).unwrap();
    assert_eq!(header.partition_leader_epoch, 2);
}

fn plan(offset: i64, rack: &str) -> FetchRequestPlan {
    FetchRequestPlan {
        max_wait: Duration::ZERO,
        min_bytes: 1,
        max_bytes: 1 << 20,
        read_committed: false,
        may_read_followers: true,
        rack: rack.to_owned(),
        partitions: vec![FetchPartition {
            partition: ID,
            current_leader_epoch: None,
            fetch_offset: offset,
            last_fetched_epoch: None,
            max_bytes: 1 << 20,
        }],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_sent_to_a_follower_in_their_rack_and_read_there_what_is_committed_f13() {
    let fleet = Fleet::start(settings()).await;
    fleet.set_racks(&[(1, "a"), (2, "b"), (3, "c")]);
    fleet.produce(1, batch(4, b"value")).await;
    let fetch = async |broker_id, plan| fleet.manager(broker_id).fetch(plan).await.remove(0);
    let sent = fetch(1, plan(0, "c")).await;
    assert_eq!((sent.error, sent.preferred_read_replica), (ErrorCode::None, Some(3)));
    assert!(sent.records.is_empty());
    for rack in ["a", "nowhere", ""] {
        let served = fetch(1, plan(0, rack)).await;
        assert_eq!((served.preferred_read_replica, served.records.is_empty()), (None, false), "{rack:?}");
    }
    fleet.until(3, |it| it.high_watermark() == 4).await;
    let read = fetch(3, plan(0, "c")).await;
    assert_eq!((read.error, read.high_watermark, read.preferred_read_replica), (ErrorCode::None, 4, None));
    assert!(!read.records.is_empty());
    let old = FetchRequestPlan { may_read_followers: false, ..plan(0, "c") };
    assert_eq!(fetch(3, old).await.error, ErrorCode::NotLeaderOrFollower);
    // A follower that has fallen out of the in-sync replicas is not named.
    fleet.cut_off(3);
    fleet.produce(1, batch(1, b"next")).await;
    fleet.until(1, |it| it.watermark().leadership(|leads| leads.isr_len()) == Some(2)).await;
    assert_eq!(fetch(1, plan(0, "c")).await.preferred_read_replica, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_shows_nothing_above_its_own_high_watermark_f13() {
    // With all three needed, the high watermark stands still whether 3 counts as in sync or not.
    let fleet = Fleet::start(TopicSettings { min_insync_replicas: 3, ..settings() }).await;
    fleet.produce(1, batch(1, b"committed")).await;
    fleet.until(2, |it| it.high_watermark() == 1).await;
    fleet.cut_off(3);
    let parts = vec![ProducePartition { partition: ID, records: batch(1, b"not yet") }];
    let _pending = fleet.manager(1).append(parts, RequiredAcks::All, 13).await;
    fleet.until(2, |it| it.log().ends().durable_end == 2).await;
    let read = fleet.manager(2).fetch(plan(1, "")).await.remove(0);
    assert_eq!((read.error, read.high_watermark), (ErrorCode::None, 1));
    assert!(read.records.is_empty(), "it has the record and must not show it");
}
