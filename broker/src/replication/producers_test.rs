//! What is known of producers.

use std::sync::atomic::AtomicU64;

use super::*;

#[tokio::test]
async fn a_repeated_batch_gets_its_first_offset_even_after_a_restart_i1_i5() {
    let volume = volume();
    let sent = |sequence| producer_batch((7, 0, sequence), &[1_000, 1_000], b"v");
    for clean in [true, false] {
        let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
        let first = broker.produce(id(1, 0), sent(0)).await;
        assert_eq!((first.error, first.base_offset), (ErrorCode::None, 0));
        let second = broker.produce(id(1, 0), sent(2)).await;
        assert_eq!((second.error, second.base_offset), (ErrorCode::None, 2));
        assert_eq!(broker.produce(id(1, 0), sent(8)).await.error, ErrorCode::OutOfOrderSequenceNumber, "I2");
        assert_eq!(
            broker.manager.partition(id(1, 0)).unwrap().high_watermark(),
            4,
            "nothing was appended twice"
        );
        if clean {
            broker.manager.shutdown().await;
        } else {
            broker.manager.inner.options.store.close();
        }
    }
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    assert_eq!(broker.produce(id(1, 0), sent(2)).await.base_offset, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_is_forgotten_once_it_has_been_idle_for_longer_than_its_expiration_i4() {
    let volume = volume();
    let broker = Broker::start_as(volume.path(), image(5, &[(1, &[OURS])]), true, |options| {
        options.retention_check_interval = Duration::from_millis(5);
        options.producer_id_expiration = Duration::from_secs(60);
    })
    .await;
    let sent = |producer, sequence| producer_batch((producer, 0, sequence), &[1_000], b"v");
    assert_eq!(broker.produce(id(1, 0), sent(7, 0)).await.error, ErrorCode::None);
    broker.steady_clock.store(1, Ordering::Relaxed);
    assert_eq!(broker.produce(id(1, 0), sent(8, 0)).await.error, ErrorCode::None);
    let gap = broker.produce(id(1, 0), sent(7, 5)).await;
    assert_eq!(gap.error, ErrorCode::OutOfOrderSequenceNumber, "it is known");
    let partition = broker.manager.partition(id(1, 0)).unwrap();
    broker.steady_clock.store(60_001, Ordering::Relaxed);
    let forgotten = async {
        while partition.last_offsets_of_producers().contains_key(&7) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, forgotten).await.unwrap();
    assert_eq!(partition.last_offsets_of_producers(), HashMap::from([(8, 1)]), "idle for just as long");
    assert_eq!(broker.produce(id(1, 0), sent(7, 5)).await.base_offset, 2, "as one that was never here");
    broker.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_of_day_that_is_set_has_no_producer_forgotten_i1_i4() {
    let volume = volume();
    let broker = Broker::start_as(volume.path(), image(5, &[(1, &[OURS])]), true, |options| {
        options.retention_check_interval = Duration::from_millis(5);
        options.producer_id_expiration = Duration::from_secs(60);
    })
    .await;
    let sent = |producer| producer_batch((producer, 0, 0), &[1_000], b"v");
    assert_eq!(broker.produce(id(1, 0), sent(7)).await.base_offset, 0);
    broker.steady_clock.store(1, Ordering::Relaxed);
    assert_eq!(broker.produce(id(1, 0), sent(8)).await.base_offset, 1);
    broker.clock.fetch_add(99_552_000, Ordering::Relaxed);
    broker.steady_clock.store(60_001, Ordering::Relaxed);
    let partition = broker.manager.partition(id(1, 0)).unwrap();
    let looked = async {
        while partition.last_offsets_of_producers().contains_key(&7) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, looked).await.unwrap();
    assert_eq!(broker.produce(id(1, 0), sent(8)).await.base_offset, 1, "a repetition");
    broker.manager.shutdown().await;
}

#[tokio::test]
async fn a_leader_that_the_controller_may_have_replaced_judges_no_gap_as_a_later_one_may_have_what_is_missing_i2()
 {
    let volume = volume();
    let controller_knows = Arc::new(AtomicU64::new(5));
    let told = Arc::clone(&controller_knows);
    let broker = Broker::start_as(volume.path(), image(5, &[(1, &[OURS])]), true, |options| {
        options.is_confirmed = Arc::new(move |applied_index| applied_index >= told.load(Ordering::Relaxed));
    })
    .await;
    let sent = |sequence| producer_batch((7, 0, sequence), &[1_000], b"v");
    assert_eq!(broker.produce(id(1, 0), sent(0)).await.error, ErrorCode::None);
    assert_eq!(broker.produce(id(1, 0), sent(5)).await.error, ErrorCode::OutOfOrderSequenceNumber);
    controller_knows.store(6, Ordering::Relaxed);
    assert_eq!(broker.produce(id(1, 0), sent(5)).await.error, ErrorCode::NotLeaderOrFollower);
    assert_eq!(broker.produce(id(1, 0), sent(1)).await.error, ErrorCode::None, "what follows is taken");
    broker.manager.shutdown().await;
}

#[tokio::test]
async fn a_producer_goes_on_after_a_crash_although_what_it_wrote_since_the_checkpoint_was_deleted_i4_i5() {
    let volume = volume();
    let sent = |sequence| producer_batch((7, 0, sequence), &[1_000, 1_000], b"v");
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    assert_eq!(broker.produce(id(1, 0), sent(0)).await.base_offset, 0);
    broker.manager.inner.checkpoint().unwrap();
    assert_eq!(broker.produce(id(1, 0), sent(2)).await.base_offset, 2);
    assert_eq!(broker.manager.delete_records(id(1, 0), None, TIMEOUT).await, Ok(4));
    broker.manager.inner.options.store.close();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    let next = broker.produce(id(1, 0), sent(4)).await;
    assert_eq!((next.error, next.base_offset), (ErrorCode::None, 4));
    assert_eq!(broker.produce(id(1, 0), sent(4)).await.base_offset, 4, "known again");
    assert_eq!(broker.produce(id(1, 0), sent(8)).await.error, ErrorCode::OutOfOrderSequenceNumber);
}
