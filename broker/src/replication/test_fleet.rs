//! Brokers' replicas in one process, for tests. Their controller does what it is told, or is the real one
//! ([`Fleet::start_controlled`]). Links can be cut, and a broker can be left with an old image.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use millrace_protocol::ErrorCode;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::watch;
use uuid::Uuid;

use super::peers::Peers;
use super::producer_state::SteadyClock;
use super::*;
use crate::metadata::controller::fixtures::TestSettings;
use crate::metadata::controller::{ControllerRequest, ControllerResponse, IsrChange, decide};
use crate::metadata::image::{
    BrokerImage, MetadataImage, PartitionImage, Replica, TopicIdPartition, TopicImage,
};
use crate::schema::internal::{
    BrokerLoadAnswer, ReplicaFetchAnswer, ReplicaFetchCall, ReplicaProgressAnswer,
};
use crate::storage::batch::WholeBatches;
use crate::storage::journal::held_disk::HeldDisk;
use crate::storage::journal::{JournalStore, JournalStoreOptions};
use crate::storage::{LogEnds, LogStore as _, ReadRange, Reader};

pub(crate) const TOPIC: Uuid = Uuid::from_u128(0x70);
pub(crate) const ID: TopicIdPartition = TopicIdPartition { topic_id: TOPIC, partition: 0 };
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
const LAG: Duration = Duration::from_millis(400);
const FETCH_WAIT: Duration = Duration::from_millis(100);

pub(crate) fn volume_of(broker_id: BrokerId) -> Uuid {
    Uuid::from_u128(0xda7a_0000 + u128::try_from(broker_id).unwrap())
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) image: Mutex<MetadataImage>,
    /// Whether proposals are decided as a controller would, or just carried out.
    controlled: bool,
    /// Every state of the partition that the controller has made.
    pub(crate) history: Mutex<Vec<PartitionImage>>,
    images: HashMap<BrokerId, watch::Sender<Arc<MetadataImage>>>,
    pub(crate) managers: Mutex<HashMap<BrokerId, ReplicaManager>>,
    /// Brokers that reach nobody and that nobody reaches; their images stay what they are.
    cut_off: Mutex<BTreeSet<BrokerId>>,
    /// How many answers had records for a follower.
    sent: Mutex<HashMap<BrokerId, usize>>,
}

impl Shared {
    fn is_cut_off(&self, broker_id: BrokerId) -> bool {
        self.cut_off.lock().contains(&broker_id)
    }

    /// Changes the partition, and tells every broker that can be told.
    pub(crate) fn change(&self, change: impl FnOnce(&mut PartitionImage)) {
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
    pub(crate) fn edit(&self, edit: impl FnOnce(&mut MetadataImage)) {
        let image = {
            let mut image = self.image.lock();
            image.log_index += 1;
            edit(&mut image);
            Arc::new(image.clone())
        };
        self.images.values().for_each(|sender| drop(sender.send_replace(Arc::clone(&image))));
    }

    /// The controller decides, and everyone that can be told hears of it.
    pub(crate) fn ask(&self, request: &ControllerRequest) -> ControllerResponse {
        let (image, response) = {
            let mut image = self.image.lock();
            let decision = decide(&image, request, &TestSettings::default(), &mut Uuid::new_v4);
            if decision.records.is_empty() {
                return decision.response;
            }
            image.log_index += 1;
            let log_index = image.log_index;
            decision.records.iter().for_each(|record| image.apply(record, log_index).unwrap());
            self.history.lock().push(image.partition(ID).unwrap().clone());
            (Arc::new(image.clone()), decision.response)
        };
        for (_, sender) in self.images.iter().filter(|(broker_id, _)| !self.is_cut_off(**broker_id)) {
            sender.send_if_modified(|known| {
                let newer = known.log_index < image.log_index;
                if newer {
                    *known = Arc::clone(&image);
                }
                newer
            });
        }
        response
    }

    pub(crate) fn state(&self) -> PartitionImage {
        self.image.lock().partition(ID).unwrap().clone()
    }
}

/// Those that the image has for all brokers.
fn throttle_rates(image: &MetadataImage) -> ThrottleRates {
    let rate = |key: &str| {
        let config = image.broker_configs.get(&None);
        config.and_then(|config| config.get(key)).map_or(u64::MAX, |rate| rate.parse().unwrap())
    };
    ThrottleRates {
        leader: rate("leader.replication.throttled.rate"),
        follower: rate("follower.replication.throttled.rate"),
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
            if answer.partitions.iter().any(|it| !it.records.is_empty()) {
                *shared.sent.lock().entry(own).or_default() += 1;
            }
            if gone() { Err("no way back".to_owned()) } else { Ok(answer) }
        }
        .boxed()
    }

    fn progress(
        &self,
        leader: &BrokerImage,
        _timeout: Duration,
    ) -> BoxFuture<'static, Result<ReplicaProgressAnswer, String>> {
        let manager = self.shared.managers.lock().get(&leader.broker_id).cloned();
        let is_gone = self.shared.is_cut_off(leader.broker_id);
        async move {
            match manager.filter(|_| !is_gone) {
                Some(manager) => Ok(manager.serve_progress().await),
                None => Err("no way".to_owned()),
            }
        }
        .boxed()
    }

    fn load(
        &self,
        broker: &BrokerImage,
        _timeout: Duration,
    ) -> BoxFuture<'static, Result<BrokerLoadAnswer, String>> {
        let manager = self.shared.managers.lock().get(&broker.broker_id).cloned();
        let is_gone = self.shared.is_cut_off(broker.broker_id);
        async move {
            match manager.filter(|_| !is_gone) {
                Some(manager) => Ok(manager.serve_load().await),
                None => Err("no way".to_owned()),
            }
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
        if self.shared.controlled {
            let broker_epoch = self.shared.image.lock().brokers[&self.own].broker_epoch;
            let request = ControllerRequest::AlterPartitions { broker_id: self.own, broker_epoch, changes };
            let response = self.shared.ask(&request);
            let ControllerResponse::PartitionsAltered(errors) = response else { panic!("{response:?}") };
            return futures::future::ready(Ok(errors)).boxed();
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

pub(crate) struct Fleet {
    pub(crate) shared: Arc<Shared>,
    volumes: HashMap<BrokerId, TempDir>,
    disks: Mutex<HashMap<BrokerId, HeldDisk>>,
    stores: Mutex<HashMap<BrokerId, Arc<JournalStore>>>,
    settings: TopicSettings,
    fetch_wait: Duration,
}

impl Fleet {
    /// Brokers 1 to 3 with one partition, which 1 leads, and all in sync.
    pub(crate) async fn start(settings: TopicSettings) -> Self {
        Self::start_with(settings, 3, 3, false, FETCH_WAIT).await
    }

    /// The same, where calls of followers wait for ever when there is nothing for them, and nobody leaves the in-sync
    /// replicas.
    pub(crate) async fn start_patient(settings: TopicSettings) -> Self {
        Self::start_with(settings, 3, 3, false, 2 * DEADLINE).await
    }

    fn is_patient(&self) -> bool {
        self.fetch_wait > DEADLINE
    }

    /// The partition on the first brokers, with the real controller and some brokers more.
    pub(crate) async fn start_controlled(
        settings: TopicSettings,
        brokers: BrokerId,
        replicas: BrokerId,
    ) -> Self {
        Self::start_with(settings, brokers, replicas, true, FETCH_WAIT).await
    }

    async fn start_with(
        settings: TopicSettings,
        brokers: BrokerId,
        replicas: BrokerId,
        controlled: bool,
        fetch_wait: Duration,
    ) -> Self {
        let mut image = MetadataImage { log_index: 10, ..MetadataImage::empty(Uuid::from_u128(1)) };
        for broker_id in 1..=brokers {
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
            replicas: (1..=replicas).map(replica).collect(),
            isr: (1..=replicas).collect(),
            elr: Vec::new(),
            adding: Vec::new(),
            removing: Vec::new(),
            leader: 1,
            leader_epoch: 0,
            partition_epoch: 0,
        };
        let topic = TopicImage {
            topic_id: TOPIC,
            name: "topic".to_owned(),
            partitions: vec![partition],
            config: BTreeMap::from([(
                "min.insync.replicas".to_owned(),
                settings.min_insync_replicas.to_string(),
            )]),
            owner: None,
        };
        image.topic_ids.insert(topic.name.clone(), TOPIC);
        image.topics.insert(TOPIC, Arc::new(topic));
        let sender = |broker_id| (broker_id, watch::Sender::new(Arc::new(image.clone())));
        let images = (1..=brokers).map(sender).collect();
        let shared = Arc::new(Shared {
            image: Mutex::new(image),
            controlled,
            history: Mutex::default(),
            images,
            managers: Mutex::default(),
            cut_off: Mutex::default(),
            sent: Mutex::default(),
        });
        let volumes = (1..=brokers).map(|broker_id| (broker_id, tempfile::tempdir().unwrap())).collect();
        let fleet =
            Self { shared, volumes, disks: Mutex::default(), stores: Mutex::default(), settings, fetch_wait };
        (1..=brokers).for_each(|broker_id| fleet.start_broker(broker_id));
        for broker_id in 1..=replicas {
            fleet.until(broker_id, |_| true).await;
        }
        fleet
    }

    pub(crate) fn start_broker(&self, broker_id: BrokerId) {
        let disk = HeldDisk::default();
        self.disks.lock().insert(broker_id, disk.clone());
        let options = JournalStoreOptions {
            disk: Arc::new(disk),
            // One that says that it is full has less.
            reserve_bytes: Some(1),
            segment_bytes: Some(4 << 20),
            ..JournalStoreOptions::default()
        };
        let volume = self.volumes[&broker_id].path();
        let store = Arc::new(JournalStore::open(volume, volume_of(broker_id), options).unwrap());
        self.stores.lock().insert(broker_id, Arc::clone(&store));
        let settings = self.settings.clone();
        let (_, caught_up) = watch::channel(true);
        let manager = ReplicaManager::start(ReplicaManagerOptions {
            store,
            volume_uuid: volume_of(broker_id),
            images: self.shared.images[&broker_id].subscribe(),
            caught_up,
            topic_settings: Arc::new(move |_, _| settings.clone()),
            throttle_rates: Arc::new(throttle_rates),
            peers: Arc::new(View { own: broker_id, shared: Arc::clone(&self.shared) }),
            rack_aware_reads: true,
            // Nobody is to leave the in-sync replicas because the machine is busy.
            replica_lag: if self.shared.controlled || self.is_patient() { DEADLINE } else { LAG },
            replica_fetch_wait: self.fetch_wait,
            replica_fetch_bytes: 1 << 20,
            clock: Arc::new(|| 1_000_000),
            steady_clock: SteadyClock::new(|| 0),
            is_confirmed: Arc::new(|_applied_index| true),
            retention_check_interval: Duration::from_secs(3_600),
            checkpoint_interval: Duration::from_secs(3_600),
            produce_times: crate::metrics::durations::Durations::default(),
            producer_id_expiration: Duration::from_secs(3_600),
        });
        self.shared.managers.lock().insert(broker_id, manager);
    }

    /// Ends a broker as a crash does, without another checkpoint; what was durable stays.
    pub(crate) async fn kill(&self, broker_id: BrokerId) {
        let store = Arc::clone(&self.stores.lock()[&broker_id]);
        tokio::task::spawn_blocking(move || store.close()).await.unwrap();
        self.manager(broker_id).shutdown().await;
    }

    /// The disk of the broker that was started last.
    pub(crate) fn disk(&self, broker_id: BrokerId) -> HeldDisk {
        self.disks.lock()[&broker_id].clone()
    }

    /// How many answers with records a broker was sent.
    pub(crate) fn sent(&self, broker_id: BrokerId) -> usize {
        self.shared.sent.lock().get(&broker_id).copied().unwrap_or_default()
    }

    pub(crate) fn manager(&self, broker_id: BrokerId) -> ReplicaManager {
        self.shared.managers.lock()[&broker_id].clone()
    }

    pub(crate) fn partition(&self, broker_id: BrokerId) -> Arc<Partition> {
        self.manager(broker_id).partition(ID).unwrap()
    }

    pub(crate) fn cut_off(&self, broker_id: BrokerId) {
        self.shared.cut_off.lock().insert(broker_id);
    }

    /// Ends [`cut_off`](Self::cut_off); the broker gets the present image.
    pub(crate) fn reconnect(&self, broker_id: BrokerId) {
        self.shared.cut_off.lock().remove(&broker_id);
        self.shared.images[&broker_id].send_replace(Arc::new(self.shared.image.lock().clone()));
    }

    /// Sets a rate of all brokers.
    pub(crate) fn set_rate(&self, key: &str, rate: u64) {
        self.shared.edit(|image| {
            image.broker_configs.entry(None).or_default().insert(key.to_owned(), rate.to_string());
        });
    }

    pub(crate) fn set_racks(&self, racks: &[(BrokerId, &str)]) {
        self.shared.edit(|image| {
            for (broker_id, rack) in racks {
                Arc::make_mut(image.brokers.get_mut(broker_id).unwrap()).rack = Some((*rack).to_owned());
            }
        });
    }

    pub(crate) fn elect(&self, leader: BrokerId, isr: &[BrokerId]) {
        self.shared.change(|state| {
            state.leader = leader;
            state.leader_epoch += 1;
            state.isr = isr.to_vec();
        });
    }

    pub(crate) async fn wait(&self, what: &str, mut condition: impl FnMut() -> bool) {
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

    pub(crate) async fn until(&self, broker_id: BrokerId, condition: impl Fn(&Partition) -> bool) {
        let holds = || self.manager(broker_id).partition(ID).is_some_and(|it| condition(&it));
        self.wait(&format!("condition of broker {broker_id}"), holds).await;
    }

    pub(crate) async fn until_isr(&self, mut isr: Vec<BrokerId>) {
        isr.sort_unstable();
        let same = || {
            let mut now = self.shared.state().isr;
            now.sort_unstable();
            now == isr
        };
        self.wait(&format!("in-sync replicas {isr:?}"), same).await;
    }

    pub(crate) fn ends(&self, broker_id: BrokerId) -> LogEnds {
        self.partition(broker_id).log().ends()
    }

    pub(crate) async fn produce_with(
        &self,
        broker_id: BrokerId,
        records: Bytes,
        acks: RequiredAcks,
    ) -> ProduceOutcome {
        let parts = vec![ProducePartition { partition: ID, records }];
        self.manager(broker_id).produce(parts, acks, DEADLINE, 13).await.remove(0)
    }

    pub(crate) async fn produce(&self, broker_id: BrokerId, records: Bytes) -> i64 {
        let outcome = self.produce_with(broker_id, records, RequiredAcks::All).await;
        assert_eq!(outcome.error, ErrorCode::None, "{:?}", outcome.error_message);
        outcome.base_offset
    }

    /// Batches of a broker's log with their bytes.
    pub(crate) fn stored(&self, broker_id: BrokerId) -> Vec<(i64, Bytes)> {
        let log = Arc::clone(self.partition(broker_id).log());
        let mut offset = log.ends().log_start;
        let mut found = Vec::new();
        loop {
            let range = ReadRange {
                reader: Reader::Consumer,
                offset,
                until: i64::MAX,
                max_bytes: 1 << 20,
                at_least_one: true,
            };
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

    pub(crate) async fn until_equal(&self, brokers: &[BrokerId]) {
        let end = self.ends(brokers[0]).durable_end;
        for broker_id in brokers {
            self.until(*broker_id, |it| it.log().ends().durable_end == end).await;
            assert_eq!(self.stored(*broker_id), self.stored(brokers[0]), "broker {broker_id}");
        }
    }
}
