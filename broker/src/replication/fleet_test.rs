//! Three brokers' replicas in one process, with a controller that does what it is told. Links can be cut, and a broker
//! can be left with an old image.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use millrace_protocol::ErrorCode;
use millrace_protocol::records::BatchHeader;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::watch;
use uuid::Uuid;

use super::peers::Peers;
use super::*;
use crate::metadata::controller::IsrChange;
use crate::metadata::image::{
    BrokerImage, MetadataImage, NO_LEADER, PartitionImage, Replica, TopicIdPartition, TopicImage,
};
use crate::schema::internal::{ReplicaFetchAnswer, ReplicaFetchCall};
use crate::storage::batch::WholeBatches;
use crate::storage::batch::samples::{batch, producer_batch};
use crate::storage::journal::{JournalStore, JournalStoreOptions};
use crate::storage::{LogEnds, ReadRange};

const TOPIC: Uuid = Uuid::from_u128(0x70);
const ID: TopicIdPartition = TopicIdPartition { topic_id: TOPIC, partition: 0 };
const DEADLINE: Duration = Duration::from_secs(20);
const LAG: Duration = Duration::from_millis(400);

fn volume_of(broker_id: BrokerId) -> Uuid {
    Uuid::from_u128(0xda7a_0000 + u128::try_from(broker_id).unwrap())
}

#[derive(Debug)]
struct Shared {
    image: Mutex<MetadataImage>,
    images: HashMap<BrokerId, watch::Sender<Arc<MetadataImage>>>,
    managers: Mutex<HashMap<BrokerId, ReplicaManager>>,
    /// Brokers that reach nobody and that nobody reaches; their images stay what they are.
    cut_off: Mutex<BTreeSet<BrokerId>>,
}

impl Shared {
    fn is_cut_off(&self, broker_id: BrokerId) -> bool {
        self.cut_off.lock().contains(&broker_id)
    }

    /// Changes the partition, and tells every broker that can be told.
    fn change(&self, change: impl FnOnce(&mut PartitionImage)) {
        let image = {
            let mut image = self.image.lock();
            image.log_index += 1;
            let topic = Arc::make_mut(image.topics.get_mut(&TOPIC).unwrap());
            change(&mut topic.partitions[0]);
            topic.partitions[0].partition_epoch += 1;
            Arc::new(image.clone())
        };
        for (broker_id, sender) in self.images.iter().filter(|(broker_id, _)| !self.is_cut_off(**broker_id)) {
            tracing::debug!(broker_id, "image");
            sender.send_replace(Arc::clone(&image));
        }
    }

    /// Changes the image, and tells everyone.
    fn edit(&self, edit: impl FnOnce(&mut MetadataImage)) {
        let image = {
            let mut image = self.image.lock();
            image.log_index += 1;
            edit(&mut image);
            Arc::new(image.clone())
        };
        self.images.values().for_each(|sender| drop(sender.send_replace(Arc::clone(&image))));
    }

    fn state(&self) -> PartitionImage {
        self.image.lock().partition(ID).unwrap().clone()
    }
}

/// The fleet as one broker sees it.
#[derive(Debug)]
struct View {
    own: BrokerId,
    shared: Arc<Shared>,
}

impl Peers for View {
    fn fetch(
        &self,
        leader: &BrokerImage,
        call: ReplicaFetchCall,
        _timeout: Duration,
    ) -> BoxFuture<'static, Result<ReplicaFetchAnswer, String>> {
        let (own, leader, shared) = (self.own, leader.broker_id, Arc::clone(&self.shared));
        async move {
            let gone = || shared.is_cut_off(own) || shared.is_cut_off(leader);
            let manager = shared.managers.lock().get(&leader).cloned();
            let Some(manager) = manager.filter(|_| !gone()) else { return Err("no way".to_owned()) };
            let answer = manager.serve_follower(call).await;
            if gone() { Err("no way back".to_owned()) } else { Ok(answer) }
        }
        .boxed()
    }

    fn alter_partitions(
        &self,
        changes: Vec<IsrChange>,
    ) -> BoxFuture<'static, Result<Vec<ErrorCode>, String>> {
        if self.shared.is_cut_off(self.own) {
            return futures::future::ready(Err("no way".to_owned())).boxed();
        }
        let judge = |change: &IsrChange| {
            let now = self.shared.state();
            if (change.leader_epoch, change.partition_epoch) != (now.leader_epoch, now.partition_epoch) {
                return ErrorCode::InvalidUpdateVersion;
            }
            self.shared.change(|state| state.isr = change.isr.iter().map(|(id, _)| *id).collect());
            ErrorCode::None
        };
        futures::future::ready(Ok(changes.iter().map(judge).collect())).boxed()
    }
}

struct Fleet {
    shared: Arc<Shared>,
    volumes: HashMap<BrokerId, TempDir>,
    settings: TopicSettings,
}

impl Fleet {
    /// Brokers 1 to 3 with one partition, which 1 leads, and all in sync.
    async fn start(settings: TopicSettings) -> Self {
        let mut image = MetadataImage { log_index: 10, ..MetadataImage::empty(Uuid::from_u128(1)) };
        for broker_id in 1..=3 {
            let broker = BrokerImage {
                broker_id,
                broker_epoch: i64::from(broker_id),
                volume_uuid: volume_of(broker_id),
                raft_node_id: u64::try_from(broker_id).unwrap(),
                address: String::new(),
                endpoints: Vec::new(),
                rack: None,
                fenced: false,
                in_controlled_shutdown: false,
                version: String::new(),
                min_insync_replicas: 1,
            };
            image.brokers.insert(broker_id, Arc::new(broker));
        }
        let replica = |broker_id| Replica { broker_id, volume_uuid: volume_of(broker_id) };
        let partition = PartitionImage {
            replicas: (1..=3).map(replica).collect(),
            isr: vec![1, 2, 3],
            elr: Vec::new(),
            leader: 1,
            leader_epoch: 0,
            partition_epoch: 0,
        };
        let topic = TopicImage {
            topic_id: TOPIC,
            name: "topic".to_owned(),
            partitions: vec![partition],
            config: BTreeMap::new(),
            owner: None,
        };
        image.topic_ids.insert(topic.name.clone(), TOPIC);
        image.topics.insert(TOPIC, Arc::new(topic));
        let sender = |broker_id| (broker_id, watch::Sender::new(Arc::new(image.clone())));
        let images = (1..=3).map(sender).collect();
        let shared = Arc::new(Shared {
            image: Mutex::new(image),
            images,
            managers: Mutex::default(),
            cut_off: Mutex::default(),
        });
        let volumes = (1..=3).map(|broker_id| (broker_id, tempfile::tempdir().unwrap())).collect();
        let fleet = Self { shared, volumes, settings };
        (1..=3).for_each(|broker_id| fleet.start_broker(broker_id));
        for broker_id in 1..=3 {
            fleet.until(broker_id, |_| true).await;
        }
        fleet
    }

    fn start_broker(&self, broker_id: BrokerId) {
        let options = JournalStoreOptions {
            reserve_bytes: Some(0),
            segment_bytes: Some(4 << 20),
            ..JournalStoreOptions::default()
        };
        let volume = self.volumes[&broker_id].path();
        let store = JournalStore::open(volume, volume_of(broker_id), options).unwrap();
        let settings = self.settings.clone();
        let (_, caught_up) = watch::channel(true);
        let manager = ReplicaManager::start(ReplicaManagerOptions {
            store: Arc::new(store),
            volume_uuid: volume_of(broker_id),
            images: self.shared.images[&broker_id].subscribe(),
            caught_up,
            topic_settings: Arc::new(move |_| settings.clone()),
            peers: Arc::new(View { own: broker_id, shared: Arc::clone(&self.shared) }),
            rack_aware_reads: true,
            replica_lag: LAG,
            replica_fetch_wait: Duration::from_millis(100),
            replica_fetch_bytes: 1 << 20,
            clock: Arc::new(|| 1_000_000),
            retention_check_interval: Duration::from_secs(3_600),
            checkpoint_interval: Duration::from_secs(3_600),
            producer_id_expiration: Duration::from_secs(3_600),
        });
        self.shared.managers.lock().insert(broker_id, manager);
    }

    fn manager(&self, broker_id: BrokerId) -> ReplicaManager {
        self.shared.managers.lock()[&broker_id].clone()
    }

    fn partition(&self, broker_id: BrokerId) -> Arc<Partition> {
        self.manager(broker_id).partition(ID).unwrap()
    }

    fn cut_off(&self, broker_id: BrokerId) {
        self.shared.cut_off.lock().insert(broker_id);
    }

    /// Ends [`cut_off`](Self::cut_off); the broker gets the present image.
    fn reconnect(&self, broker_id: BrokerId) {
        self.shared.cut_off.lock().remove(&broker_id);
        self.shared.images[&broker_id].send_replace(Arc::new(self.shared.image.lock().clone()));
    }

    fn set_racks(&self, racks: &[(BrokerId, &str)]) {
        self.shared.edit(|image| {
            for (broker_id, rack) in racks {
                Arc::make_mut(image.brokers.get_mut(broker_id).unwrap()).rack = Some((*rack).to_owned());
            }
        });
    }

    fn elect(&self, leader: BrokerId, isr: &[BrokerId]) {
        self.shared.change(|state| {
            state.leader = leader;
            state.leader_epoch += 1;
            state.isr = isr.to_vec();
        });
    }

    async fn wait(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let looks = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        assert!(
            tokio::time::timeout(DEADLINE, looks).await.is_ok(),
            "never: {what}; {:?}",
            self.shared.state()
        );
    }

    async fn until(&self, broker_id: BrokerId, condition: impl Fn(&Partition) -> bool) {
        let holds = || self.manager(broker_id).partition(ID).is_some_and(|it| condition(&it));
        self.wait(&format!("condition of broker {broker_id}"), holds).await;
    }

    async fn until_isr(&self, mut isr: Vec<BrokerId>) {
        isr.sort_unstable();
        let same = || {
            let mut now = self.shared.state().isr;
            now.sort_unstable();
            now == isr
        };
        self.wait(&format!("in-sync replicas {isr:?}"), same).await;
    }

    fn ends(&self, broker_id: BrokerId) -> LogEnds {
        self.partition(broker_id).log().ends()
    }

    async fn produce_with(&self, broker_id: BrokerId, records: Bytes, acks: RequiredAcks) -> ProduceOutcome {
        let parts = vec![ProducePartition { partition: ID, records }];
        self.manager(broker_id).produce(parts, acks, DEADLINE, 13).await.remove(0)
    }

    async fn produce(&self, broker_id: BrokerId, records: Bytes) -> i64 {
        let outcome = self.produce_with(broker_id, records, RequiredAcks::All).await;
        assert_eq!(outcome.error, ErrorCode::None, "{:?}", outcome.error_message);
        outcome.base_offset
    }

    /// Batches of a broker's log with their bytes.
    fn stored(&self, broker_id: BrokerId) -> Vec<(i64, Bytes)> {
        let log = Arc::clone(self.partition(broker_id).log());
        let mut offset = log.ends().log_start;
        let mut found = Vec::new();
        loop {
            let range = ReadRange { offset, until: i64::MAX, max_bytes: 1 << 20, at_least_one: true };
            let bytes = log.read(range).unwrap().into_bytes();
            if bytes.is_empty() {
                return found;
            }
            for (at, header) in WholeBatches::new(&bytes) {
                found.push((header.base_offset, bytes.slice(at..at + header.size_in_bytes())));
                offset = header.next_offset();
            }
        }
    }

    async fn until_equal(&self, brokers: &[BrokerId]) {
        let end = self.ends(brokers[0]).durable_end;
        for broker_id in brokers {
            self.until(*broker_id, |it| it.log().ends().durable_end == end).await;
            assert_eq!(self.stored(*broker_id), self.stored(brokers[0]), "broker {broker_id}");
        }
    }
}

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
async fn a_follower_behind_the_leaders_log_start_begins_there() {
    let fleet = Fleet::start(settings()).await;
    fleet.cut_off(3);
    for _ in 0..4 {
        fleet.produce(1, batch(10, b"value")).await;
    }
    fleet.until_isr(vec![1, 2]).await;
    // In the middle of a batch.
    assert_eq!(fleet.manager(1).delete_records(ID, Some(25)).await, Ok(25));
    fleet.until(2, |it| it.log().ends().log_start == 25).await;
    fleet.reconnect(3);
    fleet.until_isr(vec![1, 2, 3]).await;
    fleet.until(3, |it| it.log().ends().log_start == 25).await;
    assert_eq!(fleet.stored(3), fleet.stored(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_not_told_before_it_is_as_far_as_consumers_have_been_l8() {
    let fleet = Fleet::start(settings()).await;
    fleet.produce(1, batch(7, b"seen")).await;
    fleet.until(2, |it| it.log().ends().durable_end == 7).await;
    // After a restart 2 does not know the high watermark, and nobody who is in sync can tell how far it is.
    fleet.manager(2).shutdown().await;
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
