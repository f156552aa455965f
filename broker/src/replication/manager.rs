//! All partitions hosted by this broker, and the requests of clients to them.
//!
//! One task follows the metadata image and is the only one to open, appoint, dismiss and delete. Requests find their
//! partition in a map and do the rest with it.
//!
//! When a log is deleted:
//! - Its topic was in the image before and is not in the next one, and this broker has caught up with the metadata
//!   log. Before that, an image may be an old snapshot.
//! - It was found on disk when the broker caught up, a checkpoint has recorded that its partition existed at some
//!   metadata log index, and the image is newer than that. The topic was deleted while the broker was down.
//! - The same two for a partition that is there and has no replica here any more, as a reassignment has ended or was
//!   cancelled: the image names neither this volume nor this broker among its replicas.
//!
//! Anything else on the disk is kept and reported. An image *older* than what the checkpoint has seen means that the
//! metadata log was lost: then every log that it does not know, or has elsewhere, is kept for good, whatever later images
//! say.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::{ErrorCode, RecordBytes};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::fetcher::Fetchers;
use super::leadership::{LeaderAssignment, Member, Proposal};
use super::partition::{Assignment, Bounds, Partition, storage_code};
use super::peers::Peers;
use super::pending_produce::{PendingItem, PendingProduce};
use super::proposals::{self, Proposals};
use super::registrations::Registrations;
use super::sessions::{FollowerSessions, Host};
use super::throttle::Quota;
use super::validate::{Rejection, ValidatedBatch, validate};
use super::{
    FetchPartition, FetchRequestPlan, FetchedPartition, FoundOffset, LeaderHint, OffsetQuery, ProduceOutcome,
    ProducePartition, RequiredAcks, ThrottleRates, TopicSettings,
};
use crate::metadata::image::{
    BrokerId, BrokerImage, MetadataImage, NO_LEADER, PartitionImage, Replica, TopicIdPartition, TopicImage,
};
use crate::metrics::durations::Durations;
use crate::schema::internal::{ReplicaFetchAnswer, ReplicaFetchCall};
#[cfg(test)]
use crate::simulation::bugs::{self, Bug};
use crate::storage::{
    Admission, CheckpointEntry, EpochEnd, LogStore, ReadRange, Reader, StorageError, StoreFailure,
};

/// Longest wait of a request for a partition that the image gives us and that is still being opened.
const OPENING_WAIT: Duration = Duration::from_secs(2);

/// How often it is looked whether a checkpoint is due.
const CHECKPOINT_LOOK: Duration = Duration::from_secs(5);

/// Appended bytes after which a checkpoint is made, whatever the time: what a start after a crash has to read.
const CHECKPOINT_BYTES: u64 = 256 << 20;

/// What a [`ReplicaManager`] needs.
#[derive(Clone)]
pub struct ReplicaManagerOptions {
    /// The logs of this broker's volume.
    pub store: Arc<dyn LogStore>,
    /// The volume. A replica is ours if it was assigned to this volume, whatever broker id it has now.
    pub volume_uuid: Uuid,
    /// The metadata image.
    pub images: watch::Receiver<Arc<MetadataImage>>,
    /// Becomes true once the image contains this broker's latest registration, and stays true. Nothing is led and
    /// nothing deleted before.
    pub caught_up: watch::Receiver<bool>,
    /// Settings of a topic.
    pub topic_settings: Arc<dyn Fn(&TopicImage) -> TopicSettings + Send + Sync>,
    /// How fast replicas are filled that are throttled, as an image has it for this broker.
    pub throttle_rates: Arc<dyn Fn(&MetadataImage) -> ThrottleRates + Send + Sync>,
    /// Leaders on other brokers, and the controller.
    pub peers: Arc<dyn Peers>,
    /// Whether leaders send clients to followers in their rack (`replica.selector.class`).
    pub rack_aware_reads: bool,
    /// Time that a follower may lag before it leaves the in-sync replicas (`replica.lag.time.max.ms`).
    pub replica_lag: Duration,
    /// Longest wait of a follower's fetch for records (`replica.fetch.wait.max.ms`).
    pub replica_fetch_wait: Duration,
    /// Most bytes of the answer to a follower's fetch, but at least one batch (`replica.fetch.response.max.bytes`).
    pub replica_fetch_bytes: i32,
    /// The time in milliseconds since 1970.
    pub clock: Arc<dyn Fn() -> i64 + Send + Sync>,
    /// Time between two looks for old segments (`log.retention.check.interval.ms`).
    pub retention_check_interval: Duration,
    /// Longest time between an append and the checkpoint that covers it.
    pub checkpoint_interval: Duration,
    /// How long clients' produce requests took, for the balancer.
    pub produce_times: Durations,
    /// Idle time after which a producer is forgotten (`producer.id.expiration.ms`).
    pub producer_id_expiration: Duration,
}

impl std::fmt::Debug for ReplicaManagerOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplicaManagerOptions")
            .field("volume_uuid", &self.volume_uuid)
            .finish_non_exhaustive()
    }
}

/// See the module documentation. Clones are the same manager.
#[derive(Clone, Debug)]
pub struct ReplicaManager {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) options: ReplicaManagerOptions,
    partitions: RwLock<HashMap<TopicIdPartition, Hosted>>,
    /// Metadata log index of the last image that was carried out.
    applied: watch::Sender<u64>,
    pub(super) stopping: CancellationToken,
    pub(super) tasks: TaskTracker,
    checkpointing: Mutex<()>,
    /// Followers that fetch from here.
    sessions: FollowerSessions,
    /// Leaders that are fetched from.
    fetchers: Fetchers,
    pub(super) proposals: Proposals,
    /// Of throttled replicas here; that of leaders here is with the sessions.
    pub(super) follower_quota: Mutex<Quota>,
}

#[derive(Clone, Debug)]
enum Hosted {
    Online(Arc<Partition>),
    /// Its log could not be opened; the reason has been reported.
    Offline,
}

/// A log on this broker, as tools and metrics see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostedLog {
    /// Whose log it is.
    pub partition: TopicIdPartition,
    /// Whether this broker leads the partition.
    pub leads: bool,
    /// Whether the log could be opened; the numbers are 0 if not.
    pub online: bool,
    /// Bytes stored.
    pub size: u64,
    /// First offset.
    pub log_start_offset: i64,
    /// First offset that consumers do not see.
    pub high_watermark: i64,
    /// Next offset to be assigned.
    pub log_end_offset: i64,
}

impl ReplicaManager {
    /// Starts the manager on the current runtime. [`shutdown`](Self::shutdown) ends its tasks.
    pub fn start(options: ReplicaManagerOptions) -> Self {
        let inner = Arc::new(Inner {
            options,
            partitions: RwLock::default(),
            applied: watch::Sender::new(0),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
            checkpointing: Mutex::new(()),
            sessions: FollowerSessions::default(),
            fetchers: Fetchers::default(),
            proposals: Proposals::default(),
            follower_quota: Mutex::default(),
        });
        inner.tasks.spawn(follow_image(Arc::clone(&inner)));
        inner.tasks.spawn(delete_old_segments(Arc::clone(&inner)));
        inner.tasks.spawn(make_checkpoints(Arc::clone(&inner)));
        inner.tasks.spawn(proposals::send(Arc::clone(&inner)));
        inner.tasks.spawn(watch_followers(Arc::clone(&inner)));
        inner.tasks.close();
        Self { inner }
    }

    /// Appends to several partitions and waits as `acks` says. Outcomes come in the order of `partitions`.
    ///
    /// Dropping the future does not take appends back.
    pub async fn produce(
        &self,
        partitions: Vec<ProducePartition>,
        acks: RequiredAcks,
        timeout: Duration,
        api_version: i16,
    ) -> Vec<ProduceOutcome> {
        let deadline = Instant::now() + timeout;
        self.append(partitions, acks, api_version)
            .await
            .outcome(deadline.saturating_duration_since(Instant::now()))
            .await
    }

    /// The first half of [`produce`](Self::produce): resolves once all records have their offsets or were refused.
    ///
    /// A connection that pipelines requests awaits this before it begins the next request; that keeps the order, and
    /// the requests share a commit. Resolves on the first poll unless the store's queue is full or a partition is
    /// still being opened.
    pub async fn append(
        &self,
        partitions: Vec<ProducePartition>,
        acks: RequiredAcks,
        api_version: i16,
    ) -> PendingProduce {
        self.inner.wait_for_opening(partitions.iter().map(|part| part.partition)).await;
        let now_ms = (self.inner.options.clock)();
        let mut judged = Vec::with_capacity(partitions.len());
        let mut bytes = 0;
        for part in partitions {
            let batch = self.inner.judge(part, api_version, now_ms);
            bytes += batch.as_ref().map_or(0, |(_, batch)| batch.bytes.len());
            judged.push(batch);
        }
        let admission =
            if bytes > 0 { self.inner.options.store.admit(bytes).await } else { Ok(Admission::new(None)) };
        let admission = admission.map(Arc::new);
        let items = judged
            .into_iter()
            .map(|batch| match (batch, &admission) {
                (Err(outcome), _) => PendingItem { outcome, waiting: None },
                (Ok(_), Err(error)) => {
                    let outcome = ProduceOutcome::failed(storage_code(error), Some(error.to_string()));
                    PendingItem { outcome, waiting: None }
                }
                (Ok((partition, batch)), Ok(admission)) => {
                    self.inner.append_one(&partition, batch, acks, admission, now_ms)
                }
            })
            .collect();
        PendingProduce { acks, items }
    }

    /// Reads from several partitions, waiting for `min_bytes` if need be (F1–F6, F8–F10). Answers come in the order of
    /// the plan. Cancel-safe.
    pub async fn fetch(&self, plan: FetchRequestPlan) -> Vec<FetchedPartition> {
        let deadline = Instant::now() + plan.max_wait;
        self.inner.wait_for_opening(plan.partitions.iter().map(|part| part.partition)).await;
        let plan = Arc::new(plan);
        let min_bytes = u64::try_from(plan.min_bytes.min(plan.max_bytes)).unwrap_or(0);
        let (bounds, fetched) = self.inner.read(&plan).await;
        let bytes: u64 = fetched.iter().map(|one| one.records.len() as u64).sum();
        let failed = |one: &FetchedPartition| {
            !one.error.is_none() || one.diverging_epoch.is_some() || one.preferred_read_replica.is_some()
        };
        // F4
        let answer_now = plan.max_wait.is_zero()
            || plan.partitions.is_empty()
            || bytes >= min_bytes
            || fetched.iter().any(failed);
        if answer_now {
            return fetched;
        }
        let read: Vec<u64> = fetched.iter().map(|one| one.records.len() as u64).collect();
        if self.inner.wait_for_bytes(&plan, &bounds, &read, min_bytes, deadline).await {
            self.inner.read(&plan).await.1
        } else {
            fetched
        }
    }

    pub(super) fn options(&self) -> &ReplicaManagerOptions {
        &self.inner.options
    }

    /// Answers a follower's fetch; waits for something new as long as the call says. Dropping the future ends the wait,
    /// and the follower has to begin another session.
    pub async fn serve_follower(&self, call: ReplicaFetchCall) -> ReplicaFetchAnswer {
        self.inner.sessions.fetch(self.inner.as_ref(), call).await
    }

    /// Answers ListOffsets for one partition; which special values a version has is the caller's to check.
    ///
    /// Searches by time read from the disk. On a runtime with several threads they do not hold up other tasks.
    pub fn list_offset(&self, query: OffsetQuery) -> Result<FoundOffset, ErrorCode> {
        let partition = self.inner.find(query.partition)?;
        let several_threads = || {
            Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread)
        };
        if Partition::needs_disk(query.timestamp) && several_threads() {
            tokio::task::block_in_place(|| partition.find_offset(&query))
        } else {
            partition.find_offset(&query)
        }
    }

    /// Deletes the records of a partition below `offset`, or below the high watermark, and answers with the log start
    /// (D1). It lasts when this resolves. Dropping the future does not take it back.
    pub async fn delete_records(
        &self,
        partition: TopicIdPartition,
        offset: Option<i64>,
    ) -> Result<i64, ErrorCode> {
        let partition = self.inner.find(partition)?;
        let delete = move || partition.delete_records(offset);
        crate::blocking::spawn_blocking(delete).await.unwrap_or_else(|error| {
            tracing::error!(%error, "deleting records");
            Err(ErrorCode::UnknownServerError)
        })
    }

    /// Where a leader epoch ended (L2).
    pub fn leader_epoch_end(
        &self,
        partition: TopicIdPartition,
        current_leader_epoch: Option<i32>,
        leader_epoch: i32,
    ) -> Result<EpochEnd, ErrorCode> {
        self.inner.find(partition)?.epoch_end(current_leader_epoch, leader_epoch)
    }

    /// Partitions that are led here.
    pub(super) fn led(&self) -> impl Iterator<Item = Arc<Partition>> {
        self.inner.online().into_iter().filter(|partition| partition.role().leads)
    }

    /// A partition hosted here, led or not.
    pub fn partition(&self, partition: TopicIdPartition) -> Option<Arc<Partition>> {
        self.inner.online_partition(partition)
    }

    /// All logs opened by this broker, in no order.
    pub fn logs(&self) -> Vec<HostedLog> {
        let partitions = self.inner.partitions.read();
        partitions
            .iter()
            .map(|(id, hosted)| match hosted {
                Hosted::Online(partition) => {
                    let ends = partition.log().ends();
                    HostedLog {
                        partition: *id,
                        leads: partition.role().leads,
                        online: true,
                        size: partition.log().size(),
                        log_start_offset: ends.log_start,
                        high_watermark: partition.high_watermark(),
                        log_end_offset: ends.log_end,
                    }
                }
                Hosted::Offline => HostedLog {
                    partition: *id,
                    leads: false,
                    online: false,
                    size: 0,
                    log_start_offset: 0,
                    high_watermark: 0,
                    log_end_offset: 0,
                },
            })
            .collect()
    }

    /// All partitions whose logs are open, in no order.
    pub fn online(&self) -> Vec<Arc<Partition>> {
        self.inner.online()
    }

    /// Whether this rate is limited here, by the key that sets it.
    #[cfg(test)]
    pub(super) fn is_throttled(&self, key: &str) -> bool {
        match key {
            "leader.replication.throttled.rate" => self.inner.sessions.is_throttled(),
            _ => self.inner.follower_quota.lock().is_limited(),
        }
    }

    /// Logs on the volume, open or not.
    #[cfg(test)]
    pub(crate) fn stored_logs(&self) -> Vec<crate::storage::StoredLog> {
        self.inner.options.store.list()
    }

    /// Bytes stored for one partition, if it is hosted here.
    pub fn log_size(&self, partition: TopicIdPartition) -> Option<u64> {
        self.partition(partition).map(|partition| partition.log().size())
    }

    /// The failure that has stopped the store, once there is one: the broker is not ready from then on.
    pub fn storage_failure(&self) -> watch::Receiver<Option<Arc<StoreFailure>>> {
        self.inner.options.store.failure()
    }

    /// Metadata log index of the last image whose partitions are open and have their leaders.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.inner.applied.subscribe()
    }

    /// Stops: leads nothing any more, makes a checkpoint and closes the store. Waiting requests are answered.
    pub async fn shutdown(&self) {
        self.inner.stopping.cancel();
        self.inner.tasks.wait().await;
        for partition in self.inner.online() {
            partition.retire();
        }
        self.inner.sessions.end();
        let inner = Arc::clone(&self.inner);
        let stop = move || {
            if let Err(error) = inner.checkpoint() {
                tracing::warn!(%error, "no checkpoint at the end; the next start reads more");
            }
            inner.options.store.close();
        };
        if let Err(error) = crate::blocking::spawn_blocking(stop).await {
            tracing::error!(%error, "closing the record store");
        }
    }
}

impl Inner {
    pub(super) fn online_partition(&self, id: TopicIdPartition) -> Option<Arc<Partition>> {
        match self.partitions.read().get(&id) {
            Some(Hosted::Online(partition)) => Some(Arc::clone(partition)),
            Some(Hosted::Offline) | None => None,
        }
    }

    fn online(&self) -> Vec<Arc<Partition>> {
        let partitions = self.partitions.read();
        let online = partitions.values().filter_map(|hosted| match hosted {
            Hosted::Online(partition) => Some(Arc::clone(partition)),
            Hosted::Offline => None,
        });
        online.collect()
    }

    /// The partition if it is hosted here; says why if it is not.
    fn find(&self, id: TopicIdPartition) -> Result<Arc<Partition>, ErrorCode> {
        match self.partitions.read().get(&id) {
            Some(Hosted::Online(partition)) => return Ok(Arc::clone(partition)),
            Some(Hosted::Offline) => return Err(ErrorCode::KafkaStorageError),
            None => {}
        }
        if self.options.images.borrow().partition(id).is_some() {
            Err(ErrorCode::NotLeaderOrFollower)
        } else {
            Err(ErrorCode::UnknownTopicOrPartition)
        }
    }

    /// Whether the image makes this broker lead a partition that is not hosted yet.
    fn is_opening(&self, id: TopicIdPartition) -> bool {
        if self.partitions.read().contains_key(&id) {
            return false;
        }
        let image = self.options.images.borrow();
        image.partition(id).is_some_and(|partition| {
            let leader = partition.replicas.iter().find(|replica| replica.broker_id == partition.leader);
            leader.is_some_and(|replica| replica.volume_uuid == self.options.volume_uuid)
        })
    }

    /// A client that has just created a topic must not be told that nobody leads it.
    async fn wait_for_opening(&self, partitions: impl Iterator<Item = TopicIdPartition>) {
        let opening: Vec<_> = partitions.filter(|id| self.is_opening(*id)).collect();
        if opening.is_empty() || self.stopping.is_cancelled() || !*self.options.caught_up.borrow() {
            return;
        }
        let mut applied = self.applied.subscribe();
        let opened = applied.wait_for(|_| !opening.iter().any(|id| self.is_opening(*id)));
        // Whatever comes of it, the caller looks for itself.
        let _ = tokio::time::timeout(OPENING_WAIT, opened).await;
    }

    fn hint(&self, id: TopicIdPartition, error: ErrorCode) -> Option<LeaderHint> {
        if !matches!(error, ErrorCode::NotLeaderOrFollower | ErrorCode::FencedLeaderEpoch) {
            return None;
        }
        let image = self.options.images.borrow();
        let partition = image.partition(id).filter(|partition| partition.leader != NO_LEADER)?;
        Some(LeaderHint { leader_id: partition.leader, leader_epoch: partition.leader_epoch })
    }

    fn refuse(&self, id: TopicIdPartition, error: ErrorCode, message: Option<String>) -> ProduceOutcome {
        ProduceOutcome { leader: self.hint(id, error), ..ProduceOutcome::failed(error, message) }
    }

    /// Finds the partition and validates the batch; leadership comes first, its check is the cheaper one.
    fn judge(
        &self,
        part: ProducePartition,
        api_version: i16,
        now_ms: i64,
    ) -> Result<(Arc<Partition>, ValidatedBatch), ProduceOutcome> {
        let id = part.partition;
        let partition = self.find(id).map_err(|error| self.refuse(id, error, None))?;
        partition.check_leader(None).map_err(|error| self.refuse(id, error, None))?;
        match validate(part.records, &partition.settings(), api_version, now_ms) {
            Ok(batch) => Ok((partition, batch)),
            Err(Rejection { error, message, record_errors }) => Err(ProduceOutcome {
                record_errors,
                log_start_offset: partition.log().ends().log_start,
                ..self.refuse(id, error, Some(message))
            }),
        }
    }

    fn append_one(
        &self,
        partition: &Arc<Partition>,
        batch: ValidatedBatch,
        acks: RequiredAcks,
        admission: &Arc<Admission>,
        now_ms: i64,
    ) -> PendingItem {
        let appended = partition.append(batch, acks, admission, now_ms);
        let log_start_offset = partition.log().ends().log_start;
        match appended {
            Ok(appended) => PendingItem {
                outcome: ProduceOutcome {
                    base_offset: appended.base_offset,
                    log_append_time_ms: appended.log_append_time_ms,
                    log_start_offset,
                    ..ProduceOutcome::failed(ErrorCode::None, None)
                },
                waiting: (acks != RequiredAcks::None).then(|| (Arc::clone(partition), appended)),
            },
            Err(error) => {
                let outcome = self.refuse(partition.id(), error.code(), Some(error.to_string()));
                PendingItem { outcome: ProduceOutcome { log_start_offset, ..outcome }, waiting: None }
            }
        }
    }

    fn bounds(&self, plan: &FetchRequestPlan) -> Vec<Result<(Arc<Partition>, Bounds), ErrorCode>> {
        let bounds = plan.partitions.iter().map(|part| {
            let partition = self.find(part.partition)?;
            let bounds = partition.bounds(part, plan.may_read_followers)?;
            Ok((partition, bounds))
        });
        bounds.collect()
    }

    /// Reads what there is now: from memory if that suffices, else on a thread that may block.
    async fn read(
        self: &Arc<Self>,
        plan: &Arc<FetchRequestPlan>,
    ) -> (Vec<Result<(Arc<Partition>, Bounds), ErrorCode>>, Vec<FetchedPartition>) {
        let bounds = self.bounds(plan);
        if let Some(fetched) = self.read_within(plan, &bounds, true) {
            return (bounds, fetched);
        }
        let (inner, plan) = (Arc::clone(self), Arc::clone(plan));
        let read = move || {
            let fetched = inner.read_within(&plan, &bounds, false).expect("the disk may be used");
            (bounds, fetched)
        };
        match crate::blocking::spawn_blocking(read).await {
            Ok(done) => done,
            // Only a runtime that is shutting down cancels; nobody will read the answer.
            Err(error) if error.is_cancelled() => (Vec::new(), Vec::new()),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// The follower that a client should read from, if there is a better one than this leader (F13): in its rack, in
    /// sync, and the one with the most.
    fn preferred_read_replica(
        &self,
        plan: &FetchRequestPlan,
        part: &FetchPartition,
        partition: &Partition,
    ) -> Option<BrokerId> {
        if !self.options.rack_aware_reads || plan.rack.is_empty() || !plan.may_read_followers {
            return None;
        }
        let image = self.options.images.borrow();
        let in_rack = |broker_id: BrokerId| {
            let broker = image.brokers.get(&broker_id);
            broker.is_some_and(|broker| !broker.fenced && broker.rack.as_deref() == Some(&plan.rack))
        };
        if image.partition(part.partition).is_none_or(|state| in_rack(state.leader)) {
            return None;
        }
        let followers = partition.readable_followers(part.fetch_offset).into_iter();
        let best = followers.filter(|(broker_id, _)| in_rack(*broker_id)).max_by_key(|(_, end)| *end);
        best.map(|(broker_id, _)| broker_id)
    }

    /// Reads in the order of the plan; `None` if the disk is needed and `memory_only` forbids it.
    fn read_within(
        &self,
        plan: &FetchRequestPlan,
        bounds: &[Result<(Arc<Partition>, Bounds), ErrorCode>],
        memory_only: bool,
    ) -> Option<Vec<FetchedPartition>> {
        let mut left = usize::try_from(plan.max_bytes).unwrap_or(0);
        let mut nothing_yet = true;
        let mut fetched = Vec::with_capacity(bounds.len());
        for (part, bounds) in plan.partitions.iter().zip(bounds) {
            let fail = |error| FetchedPartition::failed(error, self.hint(part.partition, error));
            let (partition, bounds) = match bounds {
                Ok(bounds) => bounds,
                Err(error) => {
                    fetched.push(fail(*error));
                    continue;
                }
            };
            let max_bytes = usize::try_from(part.max_bytes).unwrap_or(0).min(left);
            let until = if plan.read_committed { bounds.last_stable_offset } else { bounds.high_watermark };
            let preferred_read_replica = self.preferred_read_replica(plan, part, partition);
            let skip = bounds.diverging_epoch.is_some()
                || preferred_read_replica.is_some()
                || (max_bytes == 0 && !nothing_yet);
            let records = if skip {
                Ok(RecordBytes::new())
            } else {
                let range = ReadRange {
                    reader: Reader::Consumer,
                    offset: part.fetch_offset,
                    until,
                    max_bytes,
                    at_least_one: nothing_yet,
                };
                partition.read(range, memory_only).transpose()?
            };
            fetched.push(match records {
                Ok(records) => {
                    left = left.saturating_sub(records.len());
                    nothing_yet &= records.is_empty();
                    FetchedPartition {
                        error: ErrorCode::None,
                        high_watermark: bounds.high_watermark,
                        last_stable_offset: bounds.last_stable_offset,
                        log_start_offset: bounds.log_start,
                        records,
                        leader: None,
                        diverging_epoch: bounds.diverging_epoch,
                        preferred_read_replica,
                    }
                }
                Err(error) => fail(error),
            });
        }
        Some(fetched)
    }

    /// Waits until `min_bytes` are there, something has happened to a partition, or the time is over (F5). Returns
    /// whether reading again is worth it.
    async fn wait_for_bytes(
        &self,
        plan: &FetchRequestPlan,
        before: &[Result<(Arc<Partition>, Bounds), ErrorCode>],
        read: &[u64],
        min_bytes: u64,
        deadline: Instant,
    ) -> bool {
        let signal = Arc::new(Notify::new());
        let mut registrations = Registrations::new(&signal, RequiredAcks::All);
        let mut arrived = false;
        loop {
            registrations.clear();
            for (partition, _) in before.iter().flatten() {
                registrations.add(partition, partition.high_watermark() + 1);
            }
            let mut bytes = 0;
            for ((part, before), read) in plan.partitions.iter().zip(before).zip(read) {
                let Ok((partition, before)) = before else { return true };
                let Ok(now) = partition.bounds(part, plan.may_read_followers) else { return true };
                let more = now.visible_bytes.saturating_sub(before.visible_bytes);
                arrived |= more > 0;
                bytes += (read + more).min(u64::try_from(part.max_bytes).unwrap_or(0));
            }
            if bytes >= min_bytes {
                return true;
            }
            if tokio::time::timeout_at(deadline, signal.notified()).await.is_err() {
                return arrived;
            }
        }
    }

    fn set_throttle_rates(&self, image: &MetadataImage) {
        let (rates, now) = ((self.options.throttle_rates)(image), Instant::now());
        self.sessions.set_rate(rates.leader, now);
        self.follower_quota.lock().set_rate(rates.follower, now);
    }

    /// Carries out the difference between two images. Blocks on the disk.
    fn apply(self: &Arc<Self>, before: Option<&MetadataImage>, image: &MetadataImage, caught_up: bool) {
        let none = BTreeMap::new();
        let topics_before = before.map_or(&none, |before| &before.topics);
        // Settings come from broker configurations too, and who may become in sync from the brokers' states.
        let all_changed = before.is_none_or(|before| {
            before.broker_configs != image.broker_configs
                || before.brokers != image.brokers
                || before.balance.throttled() != image.balance.throttled()
        });
        let (mut to_open, mut to_delete) = (Vec::new(), Vec::new());
        for (topic_id, topic) in &image.topics {
            let unchanged = topics_before.get(topic_id).is_some_and(|before| Arc::ptr_eq(before, topic));
            if !unchanged || all_changed {
                self.apply_topic(image, topic, caught_up, &mut to_open, &mut to_delete);
            }
        }
        if caught_up {
            to_delete.into_iter().for_each(|id| self.delete(id));
            for topic in topics_before.values().filter(|topic| !image.topics.contains_key(&topic.topic_id)) {
                self.delete_topic(topic);
            }
        }
        for (id, settings, assignment) in to_open {
            self.open(id, settings, assignment);
        }
    }

    /// Brings the partitions of one topic up to date; those to be opened, or that are hosted here and have no replica
    /// here any more, come last, since that takes longer.
    fn apply_topic(
        self: &Arc<Self>,
        image: &MetadataImage,
        topic: &TopicImage,
        caught_up: bool,
        to_open: &mut Vec<(TopicIdPartition, Arc<TopicSettings>, Assignment)>,
        to_delete: &mut Vec<TopicIdPartition>,
    ) {
        // What this process led in the image of another run, others may lead by now; or it has lost records of that epoch.
        let may_act = caught_up;
        #[cfg(test)]
        let may_act = may_act || bugs::has(Bug::LeadsBeforeRegistered);
        let mut settings: Option<Arc<TopicSettings>> = None;
        for (number, state) in (0..).zip(&topic.partitions) {
            let id = TopicIdPartition { topic_id: topic.topic_id, partition: number };
            let own = state.replicas.iter().find(|replica| replica.volume_uuid == self.options.volume_uuid);
            let hosted = self.partitions.read().get(&id).cloned();
            if own.is_none() {
                if hosted.is_none() {
                    continue;
                }
                if self.is_taken_away(image, state) {
                    to_delete.push(id);
                }
            }
            let settings =
                Arc::clone(settings.get_or_insert_with(|| Arc::new((self.options.topic_settings)(topic))));
            let own = own.filter(|_| may_act);
            let assignment = assignment(image, state, own, settings.min_insync_replicas);
            match hosted {
                Some(Hosted::Online(partition)) => {
                    partition.set_settings(settings);
                    self.assign(&partition, assignment);
                }
                Some(Hosted::Offline) => {}
                None => to_open.push((id, settings, assignment)),
            }
        }
    }

    fn assign(self: &Arc<Self>, partition: &Arc<Partition>, assignment: Assignment) {
        let before = partition.role();
        partition.assign(assignment);
        let role = partition.role();
        match role.follows {
            Some(leader) if before != role => {
                self.fetchers.follow(self, partition, leader, role.leader_epoch);
            }
            Some(_) => {}
            None if before.follows.is_some() => self.fetchers.forget(partition.id()),
            None => {}
        }
        // Somebody may join who could not before.
        let is_alive = |broker_id| self.sessions.is_alive(broker_id, self.options.replica_lag);
        if partition.watermark().propose_expansion(is_alive).is_some() {
            self.proposals.add(partition.id());
        }
    }

    fn open(self: &Arc<Self>, id: TopicIdPartition, settings: Arc<TopicSettings>, assignment: Assignment) {
        let now_ms = (self.options.clock)();
        let lag = self.options.replica_lag;
        let hosted = match Partition::open(self.options.store.as_ref(), id, settings, lag, now_ms) {
            Ok(partition) => {
                let partition = Arc::new(partition);
                self.assign(&partition, assignment);
                Hosted::Online(partition)
            }
            Err(error) => {
                tracing::error!(topic_id = %id.topic_id, partition = id.partition, %error, "partition is offline");
                Hosted::Offline
            }
        };
        self.partitions.write().insert(id, hosted);
    }

    /// Whether the image says for certain that this broker has no replica of the partition.
    fn is_taken_away(&self, image: &MetadataImage, state: &PartitionImage) -> bool {
        let volume_uuid = self.options.volume_uuid;
        let own = image.brokers.values().find(|broker| broker.volume_uuid == volume_uuid);
        own.is_some_and(|own| {
            let elsewhere =
                |replica: &Replica| replica.broker_id != own.broker_id && replica.volume_uuid != volume_uuid;
            state.replicas.iter().all(elsewhere)
        })
    }

    fn delete_topic(&self, topic: &TopicImage) {
        for number in (0..).take(topic.partitions.len()) {
            let id = TopicIdPartition { topic_id: topic.topic_id, partition: number };
            if self.partitions.read().contains_key(&id) {
                self.delete(id);
            }
        }
    }

    fn delete(&self, id: TopicIdPartition) {
        let hosted = self.partitions.write().remove(&id);
        if let Some(Hosted::Online(partition)) = hosted {
            self.fetchers.forget(id);
            partition.retire();
        }
        match self.options.store.delete(id) {
            Ok(()) => tracing::info!(topic_id = %id.topic_id, partition = id.partition, "deleted log"),
            Err(error) => {
                tracing::error!(topic_id = %id.topic_id, partition = id.partition, %error, "log is not deleted");
            }
        }
    }

    /// Looks through what is on the disk once the broker has caught up; see the module documentation.
    fn sweep(&self, image: &MetadataImage) {
        // Opened because an older image knew them.
        let gone: Vec<_> =
            self.partitions.read().keys().copied().filter(|id| image.partition(*id).is_none()).collect();
        gone.into_iter().for_each(|id| self.delete(id));
        let mut disowned = Vec::new();
        for stored in self.options.store.list() {
            let id = stored.partition;
            if image.partition(id).is_some_and(|state| !self.is_taken_away(image, state)) {
                continue;
            }
            match stored.known_at {
                Some(known_at) if known_at < image.log_index => self.delete(id),
                Some(known_at) => {
                    if known_at != u64::MAX {
                        disowned.push(id);
                    }
                    tracing::error!(
                        topic_id = %id.topic_id, partition = id.partition,
                        "kept a log that the metadata does not know, or has elsewhere, although it is older than the \
                         log: metadata may have been lost"
                    );
                }
                None => tracing::warn!(
                    topic_id = %id.topic_id, partition = id.partition,
                    "kept a log of an unknown topic, or one that is elsewhere now; delete its directory to free the space"
                ),
            }
        }
        if disowned.is_empty() {
            return;
        }
        if let Err(error) = self.options.store.disown(&disowned) {
            tracing::error!(%error, "marking logs of unknown topics");
        }
    }

    fn checkpoint(&self) -> Result<(), StorageError> {
        let _one_at_a_time = self.checkpointing.lock();
        let known_at = *self.applied.borrow();
        let entries = self
            .online()
            .into_iter()
            .map(|partition| CheckpointEntry { partition: partition.id(), state: Some(partition.snapshot()) })
            .collect();
        self.options.store.checkpoint(entries, known_at)
    }

    fn retain(&self) {
        let now_ms = (self.options.clock)();
        let idle_ms = i64::try_from(self.options.producer_id_expiration.as_millis()).unwrap_or(i64::MAX);
        for partition in self.online() {
            if self.stopping.is_cancelled() {
                return;
            }
            partition.expire_producers(now_ms, idle_ms);
            let id = partition.id();
            match partition.log().retain(now_ms, partition.high_watermark()) {
                Ok(0) | Err(StorageError::Gone | StorageError::Failed(_) | StorageError::Closed) => {}
                Ok(bytes) => {
                    partition.watermark().tell_followers();
                    tracing::info!(topic_id = %id.topic_id, partition = id.partition, bytes, "deleted old segments");
                }
                Err(error) => {
                    tracing::error!(topic_id = %id.topic_id, partition = id.partition, %error, "deleting old segments");
                }
            }
        }
    }
}

impl Host for Inner {
    fn find(&self, partition: TopicIdPartition) -> Result<Arc<Partition>, ErrorCode> {
        Self::find(self, partition)
    }

    fn propose(&self, partition: TopicIdPartition, _proposal: Proposal) {
        self.proposals.add(partition);
    }
}

/// The part in a partition of the broker that holds replica `own` of it, as the image has it.
fn assignment(
    image: &MetadataImage,
    state: &PartitionImage,
    own: Option<&Replica>,
    min_insync_replicas: usize,
) -> Assignment {
    let leader_epoch = state.leader_epoch;
    let Some(own) = own.filter(|_| state.leader != NO_LEADER) else {
        return Assignment::Idle { leader_epoch };
    };
    if own.broker_id != state.leader {
        return Assignment::Follows { leader: state.leader, leader_epoch };
    }
    let member = |replica: &Replica| {
        let registered = image.brokers.get(&replica.broker_id).map(AsRef::as_ref);
        let eligible = |broker: &BrokerImage| broker.may_lead() && broker.volume_uuid == replica.volume_uuid;
        Member {
            broker_id: replica.broker_id,
            broker_epoch: registered.map_or(-1, |broker| broker.broker_epoch),
            eligible: registered.is_some_and(eligible),
        }
    };
    let others = state.replicas.iter().filter(|replica| replica.broker_id != own.broker_id);
    Assignment::Leads(LeaderAssignment {
        own: member(own),
        leader_epoch,
        partition_epoch: state.partition_epoch,
        isr: state.isr.clone(),
        followers: others.map(member).collect(),
        min_isr: state.effective_min_in_sync(min_insync_replicas),
    })
}

/// Looks for followers that have fallen behind, or could join.
async fn watch_followers(inner: Arc<Inner>) {
    let mut ticks = tokio::time::interval((inner.options.replica_lag / 2).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = inner.stopping.cancelled() => return,
            _ = ticks.tick() => {}
        }
        for partition in inner.online() {
            let watermark = partition.watermark();
            let is_alive = |broker_id| inner.sessions.is_alive(broker_id, inner.options.replica_lag);
            if watermark.propose_expansion(is_alive).or_else(|| watermark.propose_shrinking()).is_some() {
                inner.proposals.add(partition.id());
            }
        }
    }
}

/// Runs `work` where blocking is allowed; a panic in it is passed on, since the manager would be blind without.
async fn blocking(inner: &Arc<Inner>, work: impl FnOnce(&Arc<Inner>) + Send + 'static) {
    let inner = Arc::clone(inner);
    if let Err(error) = crate::blocking::spawn_blocking(move || work(&inner)).await
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

async fn follow_image(inner: Arc<Inner>) {
    let mut images = inner.options.images.clone();
    let mut caught_up_watch = inner.options.caught_up.clone();
    let mut before: Option<Arc<MetadataImage>> = None;
    let mut caught_up = false;
    loop {
        let was_caught_up = caught_up;
        caught_up |= *caught_up_watch.borrow_and_update();
        let image = Arc::clone(&images.borrow_and_update());
        let (next, previous) = (Arc::clone(&image), before.take());
        inner.set_throttle_rates(&image);
        blocking(&inner, move |inner| {
            if caught_up && !was_caught_up {
                // Roles were held back until now, so every topic is looked at again.
                inner.apply(None, &next, caught_up);
                inner.sweep(&next);
            } else {
                inner.apply(previous.as_deref(), &next, caught_up);
            }
        })
        .await;
        inner.applied.send_replace(image.log_index);
        before = Some(image);
        tokio::select! {
            biased;
            () = inner.stopping.cancelled() => return,
            changed = images.changed() => if changed.is_err() { return },
            changed = caught_up_watch.changed(), if !caught_up => if changed.is_err() { return },
        }
    }
}

async fn delete_old_segments(inner: Arc<Inner>) {
    let mut ticks = tokio::time::interval(inner.options.retention_check_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        tokio::select! {
            biased;
            () = inner.stopping.cancelled() => return,
            _ = ticks.tick() => blocking(&inner, |inner| inner.retain()).await,
        }
    }
}

async fn make_checkpoints(inner: Arc<Inner>) {
    let mut ticks = tokio::time::interval(CHECKPOINT_LOOK.min(inner.options.checkpoint_interval));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Instant::now();
    loop {
        tokio::select! {
            biased;
            () = inner.stopping.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let bytes = inner.options.store.bytes_since_checkpoint();
        let due =
            bytes >= CHECKPOINT_BYTES || (bytes > 0 && last.elapsed() >= inner.options.checkpoint_interval);
        let failed = inner.options.store.failure().borrow().is_some();
        if !due || failed {
            continue;
        }
        last = Instant::now();
        blocking(&inner, |inner| {
            if let Err(error) = inner.checkpoint() {
                tracing::error!(%error, "making a checkpoint of the record store");
            }
        })
        .await;
    }
}

#[cfg(test)]
#[path = "manager_test.rs"]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests;
