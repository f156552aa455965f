//! Which logs a broker opens, and which it deletes or keeps.

use super::*;
use crate::storage::CHECKPOINT_BYTES;

#[tokio::test]
async fn nothing_is_led_before_the_broker_has_caught_up() {
    let volume = volume();
    let broker =
        Broker::start_with(volume.path(), image(5, &[(1, &[OURS])]), false, TopicSettings::default()).await;
    assert_eq!(broker.produce(id(1, 0), batch(1, b"v")).await.error, ErrorCode::NotLeaderOrFollower);
    broker.caught_up.send_replace(true);
    broker.publish(image(6, &[(1, &[OURS])])).await;
    assert_eq!(broker.produce(id(1, 0), batch(1, b"v")).await.error, ErrorCode::None);
}

#[tokio::test]
async fn a_replica_on_another_volume_is_not_ours() {
    let volume = volume();
    let mut other = (*image(5, &[(1, &[OURS])])).clone();
    let topic = Arc::make_mut(other.topics.get_mut(&topic_id(1)).unwrap());
    topic.partitions[0].replicas[0].volume_uuid = Uuid::from_u128(0xdead);
    let broker = Broker::start(volume.path(), Arc::new(other)).await;
    assert_eq!(broker.produce(id(1, 0), batch(1, b"v")).await.error, ErrorCode::NotLeaderOrFollower);
    assert!(broker.manager.logs().is_empty());
}

#[tokio::test]
async fn a_topic_just_created_is_waited_for() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[])).await;
    // The image is there, and the manager has not looked at it yet.
    broker.images.send_replace(image(6, &[(1, &[OURS])]));
    assert_eq!(broker.produce(id(1, 0), batch(1, b"v")).await.error, ErrorCode::None);
}

#[tokio::test]
async fn leadership_comes_back_with_its_records() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    broker.produce(id(1, 0), batch(1, b"v")).await;
    broker.publish(image_at_epoch(6, 4, &[(1, &[OTHER])])).await;
    assert_eq!(broker.produce(id(1, 0), batch(1, b"v")).await.error, ErrorCode::NotLeaderOrFollower);
    broker.publish(image_at_epoch(7, 5, &[(1, &[OURS])])).await;
    assert_eq!(broker.produce(id(1, 0), batch(1, b"v")).await.base_offset, 1);
}

#[tokio::test]
async fn logs_of_a_deleted_topic_are_deleted() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS]), (2, &[OURS])])).await;
    broker.produce(id(1, 0), batch(1, b"v")).await;
    broker.produce(id(2, 0), batch(1, b"v")).await;
    broker.publish(image(6, &[(2, &[OURS])])).await;
    assert_eq!(broker.stored().iter().map(|log| log.partition).collect::<Vec<_>>(), [id(2, 0)]);
    assert_eq!(broker.produce(id(1, 0), batch(1, b"v")).await.error, ErrorCode::UnknownTopicOrPartition);
    assert_eq!(broker.produce(id(2, 0), batch(1, b"v")).await.error, ErrorCode::None);
}

#[tokio::test]
async fn a_log_whose_topic_was_deleted_while_the_broker_was_down_goes_once_it_has_caught_up() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    broker.produce(id(1, 0), batch(1, b"v")).await;
    broker.manager.shutdown().await;
    let broker = Broker::start_with(volume.path(), image(3, &[]), false, TopicSettings::default()).await;
    assert_eq!(broker.stored().len(), 1, "an old image decides nothing");
    broker.publish(image(9, &[])).await;
    assert_eq!(broker.stored().len(), 1, "not caught up");
    broker.caught_up.send_replace(true);
    broker.publish(image(10, &[])).await;
    assert!(broker.stored().is_empty());
}

#[tokio::test]
async fn logs_that_lost_metadata_does_not_know_are_kept_for_good() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(500, &[(1, &[OURS])])).await;
    broker.produce(id(1, 0), batch(1, b"v")).await;
    broker.manager.shutdown().await;
    // A new quorum under the old cluster id counts from the start again.
    for log_index in [20, 900] {
        let broker = Broker::start(volume.path(), image(log_index, &[])).await;
        assert_eq!(broker.stored().len(), 1, "at {log_index}");
        broker.manager.shutdown().await;
    }
}

/// An image in which this broker is registered, and partition 0 of topic 1 is on another one.
fn image_elsewhere(log_index: u64) -> Arc<MetadataImage> {
    let mut image = (*image(log_index, &[(1, &[OTHER])])).clone();
    let topic = Arc::make_mut(image.topics.get_mut(&topic_id(1)).unwrap());
    topic.partitions[0].replicas.remove(0);
    let own = BrokerImage {
        broker_id: OURS,
        broker_epoch: 1,
        volume_uuid: volume_uuid(),
        raft_node_id: 1,
        address: String::new(),
        endpoints: Vec::new(),
        rack: None,
        fenced: false,
        in_controlled_shutdown: false,
        version: String::new(),
        min_insync_replicas: 1,
    };
    image.brokers.insert(OURS, Arc::new(own));
    Arc::new(image)
}

#[tokio::test]
async fn the_log_of_a_replica_that_was_taken_away_is_deleted() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    broker.produce(id(1, 0), batch(1, b"v")).await;
    broker.publish(image_elsewhere(6)).await;
    assert!(broker.stored().is_empty() && broker.manager.logs().is_empty());
    let outcome = broker.produce(id(1, 0), batch(1, b"v")).await;
    let hint = outcome.leader.map(|leader| leader.leader_id);
    assert_eq!((outcome.error, hint), (ErrorCode::NotLeaderOrFollower, Some(OTHER)));
    broker.publish(image_at_epoch(7, 4, &[(1, &[OURS])])).await;
    assert_eq!(broker.produce(id(1, 0), batch(1, b"v")).await.base_offset, 0, "it begins anew");
}

#[tokio::test]
async fn a_log_is_kept_where_the_image_is_not_certain_that_the_replica_was_taken_away() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    broker.produce(id(1, 0), batch(1, b"v")).await;
    let mut unregistered = (*image_elsewhere(6)).clone();
    unregistered.brokers.clear();
    broker.publish(Arc::new(unregistered)).await;
    assert_eq!(broker.stored().len(), 1, "this broker is not known");
    let mut on_another_volume = (*image_elsewhere(7)).clone();
    let topic = Arc::make_mut(on_another_volume.topics.get_mut(&topic_id(1)).unwrap());
    topic.partitions[0].replicas.push(Replica { broker_id: OURS, volume_uuid: Uuid::from_u128(0xdead) });
    broker.publish(Arc::new(on_another_volume)).await;
    assert_eq!(broker.stored().len(), 1, "the replica was on another volume of this broker");
    broker.publish(image_elsewhere(8)).await;
    assert!(broker.stored().is_empty());
}

#[tokio::test]
async fn the_log_of_a_replica_that_was_taken_away_while_the_broker_was_down_goes_once_it_has_caught_up() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    broker.produce(id(1, 0), batch(1, b"v")).await;
    broker.manager.shutdown().await;
    for (first, opened) in [(image_elsewhere(3), 0), (image(3, &[(1, &[OURS])]), 1)] {
        let broker = Broker::start_with(volume.path(), first, false, TopicSettings::default()).await;
        broker.publish(image_elsewhere(9)).await;
        assert_eq!((broker.stored().len(), broker.manager.logs().len()), (1, opened), "not caught up");
        broker.manager.shutdown().await;
    }
    let broker =
        Broker::start_with(volume.path(), image_elsewhere(10), false, TopicSettings::default()).await;
    broker.caught_up.send_replace(true);
    broker.publish(image_elsewhere(11)).await;
    assert!(broker.stored().is_empty());
}

#[tokio::test]
async fn a_log_that_lost_metadata_has_elsewhere_is_kept_for_good() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(500, &[(1, &[OURS])])).await;
    broker.produce(id(1, 0), batch(1, b"v")).await;
    broker.manager.shutdown().await;
    for log_index in [20, 900] {
        let broker = Broker::start(volume.path(), image_elsewhere(log_index)).await;
        assert_eq!(broker.stored().len(), 1, "at {log_index}");
        broker.manager.shutdown().await;
    }
}

#[tokio::test]
async fn a_damaged_log_takes_its_partition_offline_and_no_other() {
    let volume = volume();
    let both = image(5, &[(1, &[OURS, OURS])]);
    let broker = Broker::start(volume.path(), Arc::clone(&both)).await;
    for (partition, value) in [(0, b"damaged"), (1, b"healthy")] {
        for _ in 0..3 {
            broker.produce(id(1, partition), batch(1, value)).await;
        }
    }
    broker.manager.inner.options.store.close();
    for file in std::fs::read_dir(volume.path().join("journal")).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(7).position(|window| window == b"damaged") {
            bytes[at] = b'D';
        }
        std::fs::write(&path, bytes).unwrap();
    }
    let broker = Broker::start(volume.path(), both).await;
    assert_eq!(broker.produce(id(1, 0), batch(1, b"v")).await.error, ErrorCode::KafkaStorageError);
    assert_eq!(broker.produce(id(1, 1), batch(1, b"v")).await.base_offset, 3);
    let mut logs = broker.manager.logs();
    logs.sort_by_key(|log| log.partition);
    assert_eq!(logs.iter().map(|log| log.online).collect::<Vec<_>>(), [false, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_made_as_soon_as_many_bytes_are_appended() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(1, &[(1, &[OURS])])).await;
    let records = batch(1, &vec![7; 1_000_000]);
    let on_disk = records.len().next_multiple_of(4_096) as u64;
    for _ in 0..CHECKPOINT_BYTES / on_disk {
        assert_eq!(broker.produce(id(1, 0), records.clone()).await.error, ErrorCode::None);
    }
    assert_eq!(broker.stored()[0].known_at, None);
    assert_eq!(broker.produce(id(1, 0), records.clone()).await.error, ErrorCode::None);
    let deadline = Instant::now() + TIMEOUT;
    while broker.stored()[0].known_at.is_none() {
        assert!(Instant::now() < deadline, "no checkpoint");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    broker.manager.shutdown().await;
}
