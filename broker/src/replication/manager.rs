//! All partitions hosted by this broker, and the requests of clients to them.
//!
//! One task follows the metadata image (see `hosting`) and is the only one to open, appoint, dismiss and delete. Requests
//! find their partition in a map and do the rest with it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::ErrorCode;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::fetcher::Fetchers;
use super::leadership::Proposal;
use super::partition::{Partition, storage_code};
use super::peers::Peers;
use super::pending_produce::{PendingItem, PendingProduce};
use super::producer_state::SteadyClock;
use super::proposals::{self, Proposals};
use super::sessions::{FollowerSessions, Host};
use super::throttle::Quota;
use super::validate::{Rejection, ValidatedBatch, validate};
use super::{
    FetchRequestPlan, FetchedPartition, FoundOffset, LeaderHint, OffsetQuery, ProduceOutcome,
    ProducePartition, RequiredAcks, ThrottleRates, TopicSettings, hosting, upkeep,
};
use crate::metadata::image::{MetadataImage, NO_LEADER, TopicIdPartition, TopicImage};
use crate::metrics::durations::Durations;
use crate::schema::internal::{ReplicaFetchAnswer, ReplicaFetchCall};
use crate::storage::{Admission, EpochEnd, LogStore, StoreFailure};

/// Longest wait of a request for a partition that the image gives us and that is still being opened.
const OPENING_WAIT: Duration = Duration::from_secs(2);

/// What the settings of a topic of an image are for its partitions on this broker.
pub type TopicSettingsOf = dyn Fn(&MetadataImage, &TopicImage) -> TopicSettings + Send + Sync;

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
    /// Settings of a topic, as an image has them. Of the image in which its partitions are looked at: a leader must not go
    /// by a later `min.insync.replicas` than by in-sync replicas.
    pub topic_settings: Arc<TopicSettingsOf>,
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
    /// The time by which producers are idle.
    pub steady_clock: SteadyClock,
    /// Whether this broker is in service by the controller's latest word, that is not old, and the controller knew no more
    /// than the metadata up to this log index: else it is likely that others lead.
    pub is_confirmed: Arc<dyn Fn(u64) -> bool + Send + Sync>,
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
    pub(super) partitions: RwLock<HashMap<TopicIdPartition, Hosted>>,
    /// Metadata log index of the last image that was carried out.
    pub(super) applied: watch::Sender<u64>,
    pub(super) stopping: CancellationToken,
    pub(super) tasks: TaskTracker,
    pub(super) checkpointing: Mutex<()>,
    /// Followers that fetch from here.
    pub(super) sessions: FollowerSessions,
    /// Leaders that are fetched from.
    pub(super) fetchers: Fetchers,
    pub(super) proposals: Proposals,
    /// Of throttled replicas here; that of leaders here is with the sessions.
    pub(super) follower_quota: Mutex<Quota>,
}

/// What has become of the log of a partition that is here.
#[derive(Clone, Debug)]
pub(super) enum Hosted {
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
        inner.tasks.spawn(hosting::follow_image(Arc::clone(&inner)));
        inner.tasks.spawn(upkeep::delete_old_segments(Arc::clone(&inner)));
        inner.tasks.spawn(upkeep::make_checkpoints(Arc::clone(&inner)));
        inner.tasks.spawn(proposals::send(Arc::clone(&inner)));
        inner.tasks.spawn(upkeep::watch_followers(Arc::clone(&inner)));
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
                    self.inner.append_one(&partition, batch, acks, admission)
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

    /// Deletes the records of a partition below `offset`, or below the high watermark, and waits until the followers in
    /// service have done so too; answers with the lowest log start (D1). Dropping the future does not take it back.
    ///
    /// # Errors
    /// Those of the protocol; `RequestTimedOut` when it is done here and a follower is not ready after `timeout`.
    pub async fn delete_records(
        &self,
        partition: TopicIdPartition,
        offset: Option<i64>,
        timeout: Duration,
    ) -> Result<i64, ErrorCode> {
        let deadline = Instant::now() + timeout;
        let partition = self.inner.find(partition)?;
        let deleted = {
            let partition = Arc::clone(&partition);
            crate::blocking::spawn_blocking(move || partition.delete_records(offset)).await
        };
        let log_start = deleted.unwrap_or_else(|error| {
            tracing::error!(%error, "deleting records");
            Err(ErrorCode::UnknownServerError)
        })?;
        partition.deleted_everywhere(offset.unwrap_or(log_start), deadline).await
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

    pub(super) fn online(&self) -> Vec<Arc<Partition>> {
        let partitions = self.partitions.read();
        let online = partitions.values().filter_map(|hosted| match hosted {
            Hosted::Online(partition) => Some(Arc::clone(partition)),
            Hosted::Offline => None,
        });
        online.collect()
    }

    /// The partition if it is hosted here; says why if it is not.
    pub(super) fn find(&self, id: TopicIdPartition) -> Result<Arc<Partition>, ErrorCode> {
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

    pub(super) fn hint(&self, id: TopicIdPartition, error: ErrorCode) -> Option<LeaderHint> {
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
    ) -> PendingItem {
        let appended = partition.append(batch, acks, admission);
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
                // Producers give up at that. It may be a later leader that has what is missing here.
                let unsure = error.code() == ErrorCode::OutOfOrderSequenceNumber
                    && !(self.options.is_confirmed)(*self.applied.borrow());
                let code = if unsure { ErrorCode::NotLeaderOrFollower } else { error.code() };
                let outcome = self.refuse(partition.id(), code, Some(error.to_string()));
                PendingItem { outcome: ProduceOutcome { log_start_offset, ..outcome }, waiting: None }
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

/// Runs `work` where blocking is allowed; a panic in it is passed on, since the manager would be blind without. `None` if
/// the process ends before.
pub(super) async fn blocking<T: Send + 'static>(
    inner: &Arc<Inner>,
    work: impl FnOnce(&Arc<Inner>) -> T + Send + 'static,
) -> Option<T> {
    let inner = Arc::clone(inner);
    match crate::blocking::spawn_blocking(move || work(&inner)).await {
        Ok(done) => Some(done),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_cancelled) => None,
    }
}

#[cfg(test)]
#[path = "manager_test.rs"]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests;
