//! Offsets by time (ListOffsets).

use super::*;

/// What a lookup finds: offset and timestamp.
fn found(broker: &Broker, timestamp: i64) -> Result<(i64, i64), ErrorCode> {
    broker.find(id(1, 0), timestamp).map(|found| (found.offset, found.timestamp))
}

fn move_log_start(broker: &Broker, log_start: i64) {
    let partition = broker.manager.partition(id(1, 0)).unwrap();
    tokio::task::block_in_place(|| partition.log().set_log_start(log_start)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn special_and_real_timestamps_are_answered_o1_o2_o3() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    assert_eq!(broker.find(id(1, 0), -1).unwrap().offset, 0);
    assert_eq!(broker.find(id(1, 0), -3).unwrap().offset, -1, "an empty log has no largest timestamp");
    broker.produce(id(1, 0), batch_at(&[100, 300, 200], b"v")).await;
    broker.produce(id(1, 0), batch_at(&[50, 300], b"v")).await;
    let found = |timestamp| found(&broker, timestamp);
    assert_eq!(found(-1), Ok((5, -1)));
    assert_eq!(found(-2), Ok((0, -1)));
    assert_eq!(found(-3), Ok((1, 300)), "the first record with it, not the end of its batch");
    assert_eq!(found(-4), Ok((0, -1)));
    assert_eq!(found(-5), Ok((-1, -1)));
    assert_eq!(found(0), Ok((0, 100)));
    assert_eq!(found(101), Ok((1, 300)), "log order");
    assert_eq!(found(301), Ok((-1, -1)));
    move_log_start(&broker, 2);
    assert_eq!(found(201), Ok((4, 300)), "a record below the log start does not count");
    assert_eq!(found(150), Ok((2, 200)));
    assert_eq!(found(-2), Ok((2, -1)));
    assert_eq!(broker.find(id(2, 0), -1), Err(ErrorCode::UnknownTopicOrPartition));
    assert_eq!(broker.find(id(1, 0), -1).unwrap().leader_epoch, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_timestamp_is_that_of_a_record_that_is_left_o3() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    broker.produce(id(1, 0), batch_at(&[900, 100, 150], b"v")).await;
    broker.produce(id(1, 0), batch_at(&[500], b"v")).await;
    broker.produce(id(1, 0), batch_at(&[400], b"v")).await;
    assert_eq!(found(&broker, -3), Ok((0, 900)));
    move_log_start(&broker, 1);
    assert_eq!(found(&broker, -3), Ok((3, 500)), "the batch that the log start cuts has smaller ones left");
    broker.produce(id(1, 0), batch_at(&[100], b"v")).await;
    assert_eq!(found(&broker, -3), Ok((3, 500)));
    broker.manager.shutdown().await;

    let volume = self::volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    broker.produce(id(1, 0), batch_at(&[900, 500, 100], b"v")).await;
    broker.produce(id(1, 0), batch_at(&[500], b"v")).await;
    move_log_start(&broker, 1);
    assert_eq!(found(&broker, -3), Ok((1, 500)), "of two records the first");
    broker.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_above_the_high_watermark_is_found_by_time_o2_o3() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    broker.produce(id(1, 0), batch_at(&[200, 300], b"v")).await;
    let mut next = MetadataImage::clone(&image(6, &[(1, &[OURS])]));
    let topic = Arc::make_mut(next.topics.get_mut(&topic_id(1)).unwrap());
    topic.partitions[0].isr = vec![OURS, OTHER];
    topic.partitions[0].partition_epoch += 1;
    broker.publish(Arc::new(next)).await;
    let parts = vec![ProducePartition { partition: id(1, 0), records: batch_at(&[900], b"v") }];
    let outcome = broker.manager.produce(parts, RequiredAcks::Leader, TIMEOUT, VERSION).await.remove(0);
    assert_eq!((outcome.error, outcome.base_offset), (ErrorCode::None, 2), "the leader alone has it");
    assert_eq!(found(&broker, -1), Ok((2, -1)));
    assert_eq!(found(&broker, -3), Ok((1, 300)));
    assert_eq!(found(&broker, 301), Ok((-1, -1)));
    broker.manager.shutdown().await;
}

#[tokio::test]
async fn a_damaged_batch_is_an_error_of_a_lookup_and_not_a_time_without_records() {
    for timestamp in [300, -3] {
        let volume = volume();
        let settings = TopicSettings { log: LogSettings::default(), ..TopicSettings::default() };
        let first = image(5, &[(1, &[OURS])]);
        let broker = Broker::start_with(volume.path(), Arc::clone(&first), true, settings.clone()).await;
        broker.produce(id(1, 0), batch_at(&[100, 300], b"a value that is damaged")).await;
        assert_eq!(found(&broker, timestamp), Ok((1, 300)));
        broker.manager.shutdown().await;
        damage(volume.path(), b"a value that is damaged");
        let broker = Broker::start_with(volume.path(), first, true, settings).await;
        assert_eq!(found(&broker, timestamp), Err(ErrorCode::KafkaStorageError), "{timestamp}");
        broker.manager.shutdown().await;
    }
}

/// Changes the last byte of every place where `value` lies in the journal.
fn damage(volume: &Path, value: &[u8]) {
    let mut damaged = 0;
    for file in std::fs::read_dir(volume.join("journal")).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let places: Vec<_> = bytes.windows(value.len()).enumerate().filter(|(_, it)| *it == value).collect();
        let places: Vec<_> = places.into_iter().map(|(at, _)| at + value.len() - 1).collect();
        damaged += places.len();
        places.into_iter().for_each(|at| bytes[at] ^= 1);
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(damaged > 0, "the value was not found");
}
