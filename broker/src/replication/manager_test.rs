use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use millrace_protocol::RecordBytes;
use millrace_protocol::records::{BatchBuilder, BatchHeader, Compression, NewRecord, RecordBatch};
use tempfile::TempDir;

use super::*;
use crate::metadata::image::{BrokerImage, PartitionImage, Replica};
use crate::replication::FetchPartition;
use crate::replication::partition::FollowError;
use crate::replication::peers::NoPeers;
use crate::replication::producer_state::SteadyClock;
use crate::storage::batch::samples::{batch, batch_at, producer_batch};
use crate::storage::journal::{JournalStore, JournalStoreOptions};
use crate::storage::{LogSettings, StoredLog};

#[path = "following_test.rs"]
mod following_test;
#[path = "hosting_test.rs"]
mod hosting_test;
#[path = "offsets_test.rs"]
mod offsets_test;
#[path = "producers_test.rs"]
mod producers_test;

const VERSION: i16 = 13;
const OURS: i32 = 1;
const OTHER: i32 = 2;
const TIMEOUT: Duration = Duration::from_secs(20);

fn volume_uuid() -> Uuid {
    Uuid::from_u128(0xda7a)
}

fn topic_id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn id(topic: u128, partition: i32) -> TopicIdPartition {
    TopicIdPartition { topic_id: topic_id(topic), partition }
}

/// An image with topics whose partitions have the leaders given.
fn image(log_index: u64, topics: &[(u128, &[i32])]) -> Arc<MetadataImage> {
    image_at_epoch(log_index, 3, topics)
}

fn image_at_epoch(log_index: u64, leader_epoch: i32, topics: &[(u128, &[i32])]) -> Arc<MetadataImage> {
    let mut image = MetadataImage { log_index, ..MetadataImage::empty(Uuid::from_u128(1)) };
    for (number, leaders) in topics {
        let partitions = leaders.iter().map(|leader| PartitionImage {
            replicas: vec![
                Replica { broker_id: OURS, volume_uuid: volume_uuid() },
                Replica { broker_id: OTHER, volume_uuid: Uuid::from_u128(0x07e4) },
            ],
            isr: vec![*leader],
            elr: Vec::new(),
            adding: Vec::new(),
            removing: Vec::new(),
            leader: *leader,
            leader_epoch,
            partition_epoch: leader_epoch,
        });
        let topic = TopicImage {
            topic_id: topic_id(*number),
            name: format!("topic-{number}"),
            partitions: partitions.collect(),
            config: BTreeMap::new(),
            owner: None,
        };
        image.topic_ids.insert(topic.name.clone(), topic.topic_id);
        image.topics.insert(topic.topic_id, Arc::new(topic));
    }
    Arc::new(image)
}

/// A broker without its other parts.
struct Broker {
    manager: ReplicaManager,
    images: watch::Sender<Arc<MetadataImage>>,
    caught_up: watch::Sender<bool>,
    clock: Arc<AtomicI64>,
    steady_clock: Arc<AtomicI64>,
}

impl Broker {
    async fn start(volume: &Path, first: Arc<MetadataImage>) -> Self {
        Self::start_with(volume, first, true, TopicSettings::default()).await
    }

    async fn start_with(
        volume: &Path,
        first: Arc<MetadataImage>,
        caught_up: bool,
        settings: TopicSettings,
    ) -> Self {
        let settings = move |options: &mut ReplicaManagerOptions| {
            options.topic_settings = Arc::new(move |_, _| settings.clone());
        };
        Self::start_as(volume, first, caught_up, settings).await
    }

    async fn start_as(
        volume: &Path,
        first: Arc<MetadataImage>,
        caught_up: bool,
        edit: impl FnOnce(&mut ReplicaManagerOptions),
    ) -> Self {
        let options = JournalStoreOptions {
            reserve_bytes: Some(0),
            segment_bytes: Some(4 << 20),
            ..JournalStoreOptions::default()
        };
        let store = Arc::new(JournalStore::open(volume, volume_uuid(), options).unwrap());
        let log_index = first.log_index;
        let images = watch::Sender::new(first);
        let caught_up = watch::Sender::new(caught_up);
        let clock = Arc::new(AtomicI64::new(1_000_000));
        let time = Arc::clone(&clock);
        let steady_clock = Arc::new(AtomicI64::new(0));
        let passed = Arc::clone(&steady_clock);
        let mut options = ReplicaManagerOptions {
            store,
            volume_uuid: volume_uuid(),
            images: images.subscribe(),
            caught_up: caught_up.subscribe(),
            topic_settings: Arc::new(|_, _| TopicSettings::default()),
            throttle_rates: Arc::new(|_| ThrottleRates::default()),
            peers: Arc::new(NoPeers),
            rack_aware_reads: true,
            replica_lag: Duration::from_secs(30),
            replica_fetch_wait: Duration::from_millis(500),
            replica_fetch_bytes: 1 << 20,
            clock: Arc::new(move || time.load(Ordering::Relaxed)),
            steady_clock: SteadyClock::new(move || passed.load(Ordering::Relaxed)),
            is_confirmed: Arc::new(|_applied_index| true),
            retention_check_interval: Duration::from_secs(3_600),
            checkpoint_interval: Duration::from_secs(3_600),
            produce_times: crate::metrics::durations::Durations::default(),
            producer_id_expiration: Duration::from_secs(24 * 3_600),
        };
        edit(&mut options);
        let manager = ReplicaManager::start(options);
        let broker = Self { manager, images, caught_up, clock, steady_clock };
        broker.applied(log_index).await;
        broker
    }

    async fn applied(&self, log_index: u64) {
        let mut applied = self.manager.applied();
        let reached = applied.wait_for(|applied| *applied >= log_index);
        tokio::time::timeout(TIMEOUT, reached).await.unwrap().unwrap();
        if log_index == 0 {
            tokio::task::yield_now().await;
        }
    }

    async fn publish(&self, image: Arc<MetadataImage>) {
        let log_index = image.log_index;
        self.images.send_replace(image);
        self.applied(log_index).await;
    }

    async fn produce(&self, partition: TopicIdPartition, records: Bytes) -> ProduceOutcome {
        let parts = vec![ProducePartition { partition, records }];
        self.manager.produce(parts, RequiredAcks::All, TIMEOUT, VERSION).await.remove(0)
    }

    async fn fetch(&self, plan: FetchRequestPlan) -> Vec<FetchedPartition> {
        tokio::time::timeout(TIMEOUT, self.manager.fetch(plan)).await.unwrap()
    }

    fn find(&self, partition: TopicIdPartition, timestamp: i64) -> Result<FoundOffset, ErrorCode> {
        let query = OffsetQuery { partition, timestamp, current_leader_epoch: None, read_committed: false };
        self.manager.list_offset(query)
    }

    fn stored(&self) -> Vec<StoredLog> {
        self.manager.stored_logs()
    }
}

fn from_offset(partition: TopicIdPartition, fetch_offset: i64) -> FetchPartition {
    FetchPartition {
        partition,
        current_leader_epoch: None,
        fetch_offset,
        last_fetched_epoch: None,
        max_bytes: 1 << 20,
    }
}

fn plan(partitions: Vec<FetchPartition>) -> FetchRequestPlan {
    FetchRequestPlan {
        max_wait: Duration::ZERO,
        min_bytes: 1,
        max_bytes: 50 << 20,
        read_committed: false,
        may_read_followers: false,
        rack: String::new(),
        partitions,
    }
}

fn base_offsets(fetched: &FetchedPartition) -> Vec<i64> {
    let batches = millrace_protocol::records::batches(fetched.records.clone().into_bytes());
    batches.map(|batch| batch.unwrap().header().base_offset).collect()
}

fn volume() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test]
async fn what_is_produced_is_fetched() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS, OURS])])).await;
    let first = broker.produce(id(1, 0), batch(3, b"a")).await;
    assert_eq!(
        (first.error, first.base_offset, first.log_append_time_ms, first.log_start_offset),
        (ErrorCode::None, 0, -1, 0)
    );
    assert_eq!(broker.produce(id(1, 0), batch(2, b"b")).await.base_offset, 3);
    assert_eq!(broker.produce(id(1, 1), batch(1, b"c")).await.base_offset, 0);
    let fetched = broker.fetch(plan(vec![from_offset(id(1, 0), 0), from_offset(id(1, 1), 0)])).await;
    assert_eq!(base_offsets(&fetched[0]), [0, 3]);
    assert_eq!(
        (fetched[0].high_watermark, fetched[0].last_stable_offset, fetched[0].log_start_offset),
        (5, 5, 0)
    );
    assert_eq!(base_offsets(&fetched[1]), [0]);
    let header = BatchHeader::parse(&fetched[0].records.clone().into_bytes()).unwrap();
    assert_eq!(header.partition_leader_epoch, 3);
    broker.manager.shutdown().await;
}

#[tokio::test]
async fn a_leader_knows_its_traffic_with_producers_consumers_and_followers_in_sync() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS, OTHER])])).await;
    let (led, followed) = (id(1, 0), id(1, 1));
    let [partition, other] = [led, followed].map(|id| broker.manager.partition(id).unwrap());
    let start = tokio::time::Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let records = batch(1, &[7; 10_000]);
    let bytes = records.len() as u64;
    broker.produce(led, records).await;
    let told = broker.manager.serve_load().await.partitions;
    let told: Vec<_> = told.iter().map(|it| (it.partition_id, it.bytes_per_second)).collect();
    assert_eq!(told, [(0, -1)], "it leads for too short a time, and leads no other");
    let about = |traffic: Option<u64>, bytes: u64| traffic.is_some_and(|it| it.abs_diff(bytes) <= bytes / 10);
    assert!(about(partition.traffic(after(10)), bytes / 10));
    assert_eq!(other.traffic(after(10)), None);
    broker.fetch(plan(vec![from_offset(led, 0)])).await;
    // It is not in sync: it is being filled.
    partition.sent_to_follower(OTHER, 1_000_000, start);
    assert!(about(partition.traffic(after(20)), bytes / 10), "as much went out as came in");
    let mut next = MetadataImage::clone(&image_at_epoch(6, 3, &[(1, &[OURS, OTHER])]));
    let topic = Arc::make_mut(next.topics.get_mut(&topic_id(1)).unwrap());
    topic.partitions[0].isr = vec![OURS, OTHER];
    topic.partitions[0].partition_epoch += 1;
    broker.publish(Arc::new(next)).await;
    partition.sent_to_follower(OTHER, 1_000_000, start);
    assert!(partition.traffic(after(30)).is_some_and(|it| it > 30_000));
    broker.manager.shutdown().await;
}

#[tokio::test]
async fn each_partition_of_a_request_stands_for_itself_p1() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS, OURS, OTHER])])).await;
    let parts = vec![
        ProducePartition { partition: id(1, 0), records: Bytes::new() },
        ProducePartition { partition: id(1, 2), records: batch(1, b"v") },
        ProducePartition { partition: id(9, 0), records: batch(1, b"v") },
        ProducePartition { partition: id(1, 1), records: batch(1, b"v") },
    ];
    let outcomes = broker.manager.produce(parts, RequiredAcks::Leader, TIMEOUT, VERSION).await;
    let errors: Vec<_> = outcomes.iter().map(|outcome| outcome.error).collect();
    assert_eq!(
        errors,
        [
            ErrorCode::InvalidRecord,
            ErrorCode::NotLeaderOrFollower,
            ErrorCode::UnknownTopicOrPartition,
            ErrorCode::None
        ]
    );
    assert_eq!(outcomes[1].leader, Some(LeaderHint { leader_id: OTHER, leader_epoch: 3 }), "P13");
    assert_eq!(outcomes[0].base_offset, -1, "P9");
    assert_eq!(outcomes[3].base_offset, 0);
}

#[tokio::test]
async fn acks_0_is_answered_before_anything_is_durable_p10() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    let parts = vec![ProducePartition { partition: id(1, 0), records: batch(1, b"v") }];
    let outcome = broker.manager.produce(parts, RequiredAcks::None, Duration::ZERO, VERSION).await.remove(0);
    assert_eq!(outcome.error, ErrorCode::None);
    let waiting = FetchRequestPlan { max_wait: TIMEOUT, ..plan(vec![from_offset(id(1, 0), 0)]) };
    assert_eq!(base_offsets(&broker.fetch(waiting).await[0]), [0]);
}

#[tokio::test]
async fn too_small_an_isr_refuses_acks_all_only_p11() {
    let volume = volume();
    let settings = TopicSettings { min_insync_replicas: 2, ..TopicSettings::default() };
    let broker = Broker::start_with(volume.path(), image(5, &[(1, &[OURS])]), true, settings).await;
    assert_eq!(broker.produce(id(1, 0), batch(1, b"v")).await.error, ErrorCode::NotEnoughReplicas);
    let parts = vec![ProducePartition { partition: id(1, 0), records: batch(1, b"v") }];
    let outcome = broker.manager.produce(parts, RequiredAcks::Leader, TIMEOUT, VERSION).await.remove(0);
    assert_eq!((outcome.error, outcome.base_offset), (ErrorCode::None, 0));
}

#[tokio::test]
async fn a_produce_that_times_out_keeps_its_records_p11() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    let parts = vec![ProducePartition { partition: id(1, 0), records: batch(1, b"v") }];
    let pending = broker.manager.append(parts, RequiredAcks::All, VERSION).await;
    // Nothing was polled in between, so the writer may or may not be done: both answers are right, the data stays.
    let outcome = pending.outcome(Duration::ZERO).await.remove(0);
    assert!(matches!(outcome.error, ErrorCode::None | ErrorCode::RequestTimedOut));
    let waiting = FetchRequestPlan { max_wait: TIMEOUT, ..plan(vec![from_offset(id(1, 0), 0)]) };
    assert_eq!(base_offsets(&broker.fetch(waiting).await[0]), [0]);
}

#[tokio::test]
async fn log_append_time_is_in_the_response_p9() {
    let volume = volume();
    let settings = TopicSettings {
        timestamp_type: millrace_protocol::records::TimestampType::LogAppendTime,
        ..TopicSettings::default()
    };
    let broker = Broker::start_with(volume.path(), image(5, &[(1, &[OURS])]), true, settings).await;
    broker.clock.store(123_456, Ordering::Relaxed);
    assert_eq!(broker.produce(id(1, 0), batch(1, b"v")).await.log_append_time_ms, 123_456);
}

#[tokio::test]
async fn transactional_records_are_refused() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    let record = NewRecord { timestamp: 1_000, value: Some(b"v"), ..NewRecord::default() };
    let sent = BatchBuilder::new(Compression::None).producer(3, 0, 0).transactional().append(record).build();
    assert_eq!(broker.produce(id(1, 0), sent).await.error, ErrorCode::InvalidTxnState);
}

#[tokio::test]
async fn limits_hold_after_the_first_batch_f1() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS, OURS, OURS])])).await;
    for partition in [1, 2] {
        for _ in 0..3 {
            broker.produce(id(1, partition), batch(1, &[0; 1_000])).await;
        }
    }
    let parts = || (0..3).map(|partition| from_offset(id(1, partition), 0)).collect::<Vec<_>>();
    let counts = |fetched: &[FetchedPartition]| -> Vec<usize> {
        fetched.iter().map(|one| base_offsets(one).len()).collect()
    };
    let tiny = FetchRequestPlan { max_bytes: 10, ..plan(parts()) };
    assert_eq!(counts(&broker.fetch(tiny).await), [0, 1, 0], "one batch of the first partition that has any");
    let some = FetchRequestPlan { max_bytes: 4_600, ..plan(parts()) };
    assert_eq!(counts(&broker.fetch(some).await), [0, 3, 1]);
    let mut narrow = parts();
    narrow.iter_mut().for_each(|part| part.max_bytes = 1);
    assert_eq!(counts(&broker.fetch(plan(narrow)).await), [0, 1, 0]);
}

#[tokio::test]
async fn the_log_end_is_no_error_but_beyond_it_is_f3() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    broker.produce(id(1, 0), batch(3, b"v")).await;
    let fetched = |offset| {
        let plan = plan(vec![from_offset(id(1, 0), offset)]);
        async { broker.fetch(plan).await.remove(0) }
    };
    assert_eq!((fetched(3).await.error, fetched(3).await.records.len()), (ErrorCode::None, 0));
    assert_eq!(fetched(4).await.error, ErrorCode::OffsetOutOfRange);
    assert_eq!(fetched(-1).await.error, ErrorCode::OffsetOutOfRange);
    assert_eq!(fetched(4).await.high_watermark, -1);
}

#[tokio::test]
async fn an_error_answers_at_once_f4() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS, OTHER])])).await;
    let waiting = |partitions| FetchRequestPlan { max_wait: Duration::from_secs(600), ..plan(partitions) };
    let fetched = broker.fetch(waiting(vec![from_offset(id(1, 0), 0), from_offset(id(1, 1), 0)])).await;
    assert_eq!(fetched[1].error, ErrorCode::NotLeaderOrFollower);
    assert_eq!(fetched[1].leader, Some(LeaderHint { leader_id: OTHER, leader_epoch: 3 }));
    assert!(broker.fetch(waiting(Vec::new())).await.is_empty());
}

#[tokio::test]
async fn a_waiting_fetch_wakes_when_the_high_watermark_moves_f5() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS, OURS])])).await;
    let waiting = FetchRequestPlan {
        max_wait: Duration::from_secs(600),
        ..plan(vec![from_offset(id(1, 0), 0), from_offset(id(1, 1), 0)])
    };
    let fetch = tokio::spawn({
        let manager = broker.manager.clone();
        async move { manager.fetch(waiting).await }
    });
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(!fetch.is_finished());
    broker.produce(id(1, 1), batch(1, b"v")).await;
    let fetched = tokio::time::timeout(TIMEOUT, fetch).await.unwrap().unwrap();
    assert_eq!(base_offsets(&fetched[1]), [0]);
    assert_eq!(fetched[1].high_watermark, 1);
}

#[tokio::test]
async fn a_waiting_fetch_collects_min_bytes_f5_f6() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    let size = i32::try_from(batch(1, &[0; 500]).len()).unwrap();
    broker.produce(id(1, 0), batch(1, &[0; 500])).await;
    let waiting = FetchRequestPlan {
        max_wait: Duration::from_secs(600),
        min_bytes: 3 * size,
        ..plan(vec![from_offset(id(1, 0), 0)])
    };
    let fetch = tokio::spawn({
        let manager = broker.manager.clone();
        async move { manager.fetch(waiting).await }
    });
    broker.produce(id(1, 0), batch(1, &[0; 500])).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(!fetch.is_finished(), "two of three");
    broker.produce(id(1, 0), batch(1, &[0; 500])).await;
    let fetched = tokio::time::timeout(TIMEOUT, fetch).await.unwrap().unwrap();
    assert_eq!(base_offsets(&fetched[0]), [0, 1, 2]);
    let cut = FetchRequestPlan {
        max_wait: Duration::from_secs(600),
        min_bytes: i32::MAX,
        max_bytes: size,
        ..plan(vec![from_offset(id(1, 0), 0)])
    };
    assert_eq!(broker.fetch(cut).await[0].records.len(), size as usize, "min bytes are cut to max bytes");
}

#[tokio::test]
async fn a_waiting_fetch_ends_with_its_time_or_its_leader_f5() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    let short =
        FetchRequestPlan { max_wait: Duration::from_millis(40), ..plan(vec![from_offset(id(1, 0), 0)]) };
    let fetched = broker.fetch(short).await;
    assert_eq!((fetched[0].error, fetched[0].records.len()), (ErrorCode::None, 0));
    let long =
        FetchRequestPlan { max_wait: Duration::from_secs(600), ..plan(vec![from_offset(id(1, 0), 0)]) };
    let fetch = tokio::spawn({
        let manager = broker.manager.clone();
        async move { manager.fetch(long).await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    broker.publish(image_at_epoch(6, 4, &[(1, &[OTHER])])).await;
    let fetched = tokio::time::timeout(TIMEOUT, fetch).await.unwrap().unwrap();
    assert_eq!(fetched[0].error, ErrorCode::NotLeaderOrFollower);
}

#[tokio::test]
async fn waiting_requests_leave_nothing_behind() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    for _ in 0..20 {
        let short =
            FetchRequestPlan { max_wait: Duration::from_millis(1), ..plan(vec![from_offset(id(1, 0), 0)]) };
        broker.fetch(short.clone()).await;
        let long = FetchRequestPlan { max_wait: TIMEOUT, ..short };
        let dropped = tokio::time::timeout(Duration::from_millis(1), broker.manager.fetch(long)).await;
        assert!(dropped.is_err());
    }
    assert_eq!(broker.manager.partition(id(1, 0)).unwrap().waiting(), 0);
}

#[tokio::test]
async fn leader_epochs_are_compared_before_leadership_f9() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    let error = |epoch| {
        let part = FetchPartition { current_leader_epoch: epoch, ..from_offset(id(1, 0), 0) };
        let broker = &broker;
        async move { broker.fetch(plan(vec![part])).await[0].error }
    };
    assert_eq!(error(Some(2)).await, ErrorCode::FencedLeaderEpoch);
    assert_eq!(error(Some(3)).await, ErrorCode::None);
    assert_eq!(error(Some(4)).await, ErrorCode::UnknownLeaderEpoch);
    assert_eq!(error(Some(-1)).await, ErrorCode::None, "no epoch, no check");
    broker.publish(image_at_epoch(6, 4, &[(1, &[OTHER])])).await;
    assert_eq!(error(Some(3)).await, ErrorCode::FencedLeaderEpoch);
    assert_eq!(error(Some(4)).await, ErrorCode::NotLeaderOrFollower);
    assert_eq!(error(None).await, ErrorCode::NotLeaderOrFollower);
}

#[tokio::test]
async fn a_parted_log_is_told_from_the_last_fetched_epoch() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    broker.produce(id(1, 0), batch(3, b"v")).await;
    broker.publish(image_at_epoch(6, 5, &[(1, &[OURS])])).await;
    broker.produce(id(1, 0), batch(1, b"v")).await;
    let part = FetchPartition { last_fetched_epoch: Some(3), ..from_offset(id(1, 0), 4) };
    let fetched = broker.fetch(FetchRequestPlan { max_wait: TIMEOUT, ..plan(vec![part]) }).await.remove(0);
    assert_eq!(fetched.diverging_epoch, Some(EpochEnd { leader_epoch: 3, end_offset: 3 }));
    assert_eq!(
        broker.manager.leader_epoch_end(id(1, 0), None, 4),
        Ok(EpochEnd { leader_epoch: 3, end_offset: 3 }),
        "L2"
    );
    assert_eq!(
        broker.manager.leader_epoch_end(id(1, 0), None, 9),
        Ok(EpochEnd { leader_epoch: -1, end_offset: -1 })
    );
}

#[tokio::test]
async fn records_are_deleted_up_to_the_high_watermark_and_not_in_a_compacted_topic_d1() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    for _ in 0..4 {
        broker.produce(id(1, 0), batch(1, b"v")).await;
    }
    assert_eq!(broker.manager.delete_records(id(1, 0), Some(2), TIMEOUT).await, Ok(2));
    assert_eq!(broker.manager.delete_records(id(1, 0), Some(1), TIMEOUT).await, Ok(2), "never moves back");
    assert_eq!(
        broker.manager.delete_records(id(1, 0), Some(5), TIMEOUT).await,
        Err(ErrorCode::OffsetOutOfRange)
    );
    assert_eq!(broker.manager.delete_records(id(1, 0), None, TIMEOUT).await, Ok(4));
    assert_eq!(
        broker.manager.delete_records(id(9, 0), None, TIMEOUT).await,
        Err(ErrorCode::UnknownTopicOrPartition)
    );
    broker.manager.shutdown().await;
    let settings = TopicSettings {
        log: LogSettings { delete_old: false, ..LogSettings::default() },
        ..TopicSettings::default()
    };
    let broker = Broker::start_with(volume.path(), image(6, &[(1, &[OURS])]), true, settings).await;
    assert_eq!(broker.manager.logs()[0].log_start_offset, 4, "it lasts");
    assert_eq!(broker.manager.delete_records(id(1, 0), None, TIMEOUT).await, Err(ErrorCode::PolicyViolation));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_producers_and_readers_see_every_record_once_and_in_order() {
    let volume = volume();
    let settings = TopicSettings { log: LogSettings::default(), ..TopicSettings::default() };
    let broker = Broker::start_with(volume.path(), image(5, &[(1, &[OURS, OURS])]), true, settings).await;
    let producers: Vec<_> = (0..8_i64)
        .map(|number| {
            let manager = broker.manager.clone();
            tokio::spawn(async move {
                let mut offsets = Vec::new();
                for sequence in 0..60 {
                    let partition = id(1, i32::try_from(number % 2).unwrap());
                    let records = producer_batch((number, 0, sequence * 2), &[1_000, 1_000], &[7; 300]);
                    let parts = vec![ProducePartition { partition, records }];
                    let outcome = manager.produce(parts, RequiredAcks::All, TIMEOUT, VERSION).await.remove(0);
                    assert_eq!(outcome.error, ErrorCode::None);
                    offsets.push((partition, outcome.base_offset));
                }
                offsets
            })
        })
        .collect();
    let readers: Vec<_> = (0..2)
        .map(|partition| {
            let manager = broker.manager.clone();
            tokio::spawn(async move {
                let mut next = 0;
                let mut batches = Vec::new();
                while next < 4 * 60 * 2 {
                    let plan = FetchRequestPlan {
                        max_wait: TIMEOUT,
                        ..plan(vec![from_offset(id(1, partition), next)])
                    };
                    let fetched = manager.fetch(plan).await.remove(0);
                    for batch in millrace_protocol::records::batches(fetched.records.into_bytes()) {
                        let batch: RecordBatch = batch.unwrap();
                        batch.verify_crc().unwrap();
                        assert_eq!(batch.header().base_offset, next);
                        next = batch.header().next_offset();
                        assert!(next <= fetched.high_watermark);
                        batches.push((batch.header().producer_id, batch.header().base_sequence));
                    }
                }
                batches
            })
        })
        .collect();
    for producer in producers {
        let offsets = producer.await.unwrap();
        assert!(offsets.is_sorted_by_key(|(_, offset)| *offset));
    }
    for (partition, reader) in (0..).zip(readers) {
        let batches = tokio::time::timeout(TIMEOUT, reader).await.unwrap().unwrap();
        for number in (0..8).filter(|number| number % 2 == partition) {
            let sequences: Vec<_> =
                batches.iter().filter(|(id, _)| *id == number).map(|(_, sequence)| *sequence).collect();
            assert_eq!(sequences, (0..60).map(|sequence| sequence * 2).collect::<Vec<_>>());
        }
    }
    broker.manager.shutdown().await;
}

#[tokio::test]
async fn shutting_down_answers_those_who_wait() {
    let volume = volume();
    let broker = Broker::start(volume.path(), image(5, &[(1, &[OURS])])).await;
    let long =
        FetchRequestPlan { max_wait: Duration::from_secs(600), ..plan(vec![from_offset(id(1, 0), 0)]) };
    let fetch = tokio::spawn({
        let manager = broker.manager.clone();
        async move { manager.fetch(long).await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    broker.manager.shutdown().await;
    let fetched = tokio::time::timeout(TIMEOUT, fetch).await.unwrap().unwrap();
    assert_eq!(fetched[0].error, ErrorCode::NotLeaderOrFollower);
    assert_ne!(broker.produce(id(1, 0), batch(1, b"v")).await.error, ErrorCode::None);
}

/// Prints what ten thousand idle partitions cost; run by hand with `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn ten_thousand_idle_partitions() {
    use std::io::Write as _;
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let volume = volume();
    let leaders = [OURS; 100];
    let topics: Vec<(u128, &[i32])> = (1..101).map(|number| (number, &leaders[..])).collect();
    let before = resident();
    let started = std::time::Instant::now();
    let broker = Broker::start(volume.path(), image(5, &topics)).await;
    writeln!(std::io::stderr(), "opened in {:?}, {} kB", started.elapsed(), resident() - before).unwrap();
    let parts = || {
        let ids = (1..101).flat_map(|topic| (0..100).map(move |partition| id(topic, partition)));
        ids.map(|partition| ProducePartition { partition, records: batch(1, b"v") }).collect()
    };
    let started = std::time::Instant::now();
    broker.manager.produce(parts(), RequiredAcks::All, Duration::from_secs(300), VERSION).await;
    writeln!(std::io::stderr(), "one batch each in {:?}, {} kB", started.elapsed(), resident() - before)
        .unwrap();
    let started = std::time::Instant::now();
    broker.manager.shutdown().await;
    writeln!(std::io::stderr(), "shut down in {:?}", started.elapsed()).unwrap();
    let started = std::time::Instant::now();
    let broker = Broker::start(volume.path(), image(5, &topics)).await;
    writeln!(std::io::stderr(), "opened again in {:?}, {} kB", started.elapsed(), resident() - before)
        .unwrap();
    drop(broker);
}
