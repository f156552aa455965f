//! The follower's side of replication: one task for each leader fetches all partitions that follow it (L3, L4).
//!
//! Only this task changes the log of a partition that follows: it appends what it was sent, and asks for more when that
//! is durable, so that the leader hears what is safe here. While it is behind, it asks at once and tells of the durable
//! end later: the next records come while the last ones are synced. Where the logs part it cuts its own back to what the
//! leader has, by epochs and never by the high watermark (KIP-101), and asks again.
//!
//! Throttled replicas that are not in sync are left out of calls while their rate is used up (KIP-73).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use millrace_protocol::ErrorCode;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::manager::Inner;
use super::partition::{FollowError, Partition};
use super::registrations::Registrations;
use super::sessions::{BEGIN, WAKE};
use super::waiters::Awaited;
#[cfg(any(test, feature = "historical-bugs"))]
use crate::bugs::{self, Bug};
use crate::metadata::image::{BrokerId, BrokerImage, MetadataImage, TopicIdPartition};
use crate::schema::internal::replica_fetch_answer::FetchedReplica;
use crate::schema::internal::replica_fetch_call::{FollowedPartition, ForgottenPartition};
use crate::schema::internal::{ReplicaFetchAnswer, ReplicaFetchCall};
use crate::storage::{EpochEnd, StorageError};

/// Time that an answer may take beyond the wait that was asked for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after a leader could not be reached, doubling up to the maximum.
const FIRST_BACK_OFF: Duration = Duration::from_millis(20);
const MAX_BACK_OFF: Duration = Duration::from_millis(500);

/// Pause before a partition is asked for again whose leader does not lead it yet, or not any more.
const LEADER_BACK_OFF: Duration = Duration::from_millis(20);

/// Pause before a partition is asked for again after any other trouble.
const TROUBLE_BACK_OFF: Duration = Duration::from_secs(1);

/// Most logs that one task brings in line with the leader's at a time; each blocks a thread.
const MAX_CUTS: usize = 32;

/// The tasks that fetch, by leader.
#[derive(Debug, Default)]
pub(super) struct Fetchers {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    changes: HashMap<BrokerId, Arc<Changes>>,
    leaders: HashMap<TopicIdPartition, BrokerId>,
}

/// What a fetcher is told.
#[derive(Debug, Default)]
struct Changes {
    /// `None` ends following.
    list: Mutex<HashMap<TopicIdPartition, Option<Order>>>,
    changed: Notify,
}

/// A partition to follow, and in which epoch.
#[derive(Debug)]
struct Order {
    partition: Arc<Partition>,
    leader_epoch: i32,
}

impl Changes {
    fn push(&self, id: TopicIdPartition, order: Option<Order>) {
        self.list.lock().insert(id, order);
        self.changed.notify_one();
    }
}

impl Fetchers {
    /// Follows `leader` from now on.
    pub(super) fn follow(
        &self,
        inner: &Arc<Inner>,
        partition: &Arc<Partition>,
        leader: BrokerId,
        leader_epoch: i32,
    ) {
        let id = partition.id();
        let mut state = self.state.lock();
        if let Some(before) = state.leaders.insert(id, leader)
            && before != leader
            && let Some(changes) = state.changes.get(&before)
        {
            changes.push(id, None);
        }
        let changes = state.changes.entry(leader).or_insert_with(|| {
            let changes = Arc::new(Changes::default());
            let fetcher = Fetcher::new(Arc::clone(inner), leader, Arc::clone(&changes));
            let stopping = inner.stopping.clone();
            inner.tasks.spawn(async move {
                stopping.run_until_cancelled(fetcher.run()).await;
            });
            changes
        });
        changes.push(id, Some(Order { partition: Arc::clone(partition), leader_epoch }));
    }

    /// Follows nobody any more.
    pub(super) fn forget(&self, id: TopicIdPartition) {
        let mut state = self.state.lock();
        if let Some(leader) = state.leaders.remove(&id)
            && let Some(changes) = state.changes.get(&leader)
        {
            changes.push(id, None);
        }
    }
}

struct Fetcher {
    inner: Arc<Inner>,
    leader: BrokerId,
    changes: Arc<Changes>,
    following: HashMap<TopicIdPartition, Order>,
    /// Partitions whose position the leader does not know.
    to_name: HashSet<TopicIdPartition>,
    /// Partitions that the leader need not remember any more.
    to_forget: HashSet<TopicIdPartition>,
    /// Partitions that are asked for again later.
    later: Vec<(Instant, TopicIdPartition)>,
    /// Partitions that were named before they were durable up to the end of their logs, and that end. They are named
    /// again when they are.
    unsettled: HashMap<TopicIdPartition, (Arc<Partition>, i64)>,
    session_epoch: i32,
    back_off: Duration,
}

impl Fetcher {
    fn new(inner: Arc<Inner>, leader: BrokerId, changes: Arc<Changes>) -> Self {
        Self {
            inner,
            leader,
            changes,
            following: HashMap::new(),
            to_name: HashSet::new(),
            to_forget: HashSet::new(),
            later: Vec::new(),
            unsettled: HashMap::new(),
            session_epoch: BEGIN,
            back_off: FIRST_BACK_OFF,
        }
    }

    async fn run(mut self) {
        loop {
            self.take_changes();
            if self.following.is_empty() {
                // The leader may forget the session: the next partition begins another.
                self.begin_anew();
                self.changes.changed.notified().await;
                continue;
            }
            let outcome = match self.leader() {
                Some((leader, call)) => {
                    self.leave_out_throttled(call.0);
                    self.exchange(&leader, call).await
                }
                None => Err("the metadata does not know the leader's address".to_owned()),
            };
            match outcome {
                Ok(answer) if answer.error == ErrorCode::None.code() => {
                    self.back_off = FIRST_BACK_OFF;
                    self.session_epoch = self.session_epoch.checked_add(1).unwrap_or(1);
                    self.to_forget.clear();
                    if self.take_answer(answer).await.is_err() {
                        return;
                    }
                }
                Ok(_out_of_step) => self.begin_anew(),
                Err(reason) => {
                    tracing::debug!(leader = self.leader, reason, "cannot fetch from the leader");
                    self.begin_anew();
                    let pause = self.back_off;
                    self.back_off = (pause * 2).min(MAX_BACK_OFF);
                    let _ = tokio::time::timeout(pause, self.changes.changed.notified()).await;
                }
            }
        }
    }

    fn take_changes(&mut self) {
        let changes = std::mem::take(&mut *self.changes.list.lock());
        for (id, order) in changes {
            match order {
                Some(order) => {
                    self.following.insert(id, order);
                    self.to_name.insert(id);
                    self.to_forget.remove(&id);
                }
                None => {
                    self.following.remove(&id);
                    self.to_name.remove(&id);
                    self.to_forget.insert(id);
                }
            }
        }
        let now = Instant::now();
        let due = self.later.extract_if(.., |(at, _)| *at <= now).map(|(_, id)| id);
        self.to_name.extend(due.filter(|id| self.following.contains_key(id)));
    }

    /// The next call begins a session, and names everything.
    fn begin_anew(&mut self) {
        self.session_epoch = BEGIN;
        self.to_name = self.following.keys().copied().collect();
        self.to_forget.clear();
        self.later.clear();
        self.unsettled.clear();
    }

    /// Whom to call, and as whom.
    fn leader(&self) -> Option<(Arc<BrokerImage>, (BrokerId, i64))> {
        let image = self.inner.options.images.borrow();
        let leader = Arc::clone(image.brokers.get(&self.leader)?);
        let own = image.brokers.values().find(|it| it.volume_uuid == self.inner.options.volume_uuid)?;
        Some((leader, (own.broker_id, own.broker_epoch)))
    }

    /// Has throttled replicas wait that are not in sync, while their rate is used up (KIP-73).
    fn leave_out_throttled(&mut self, own_id: BrokerId) {
        let now = Instant::now();
        let Some(wait) = self.inner.follower_quota.lock().wait(now) else { return };
        let image = Arc::clone(&self.inner.options.images.borrow());
        let is_left_out = |id: &TopicIdPartition| {
            let order = self.following.get(id);
            order.is_some_and(|order| is_throttled(&image, &order.partition, own_id))
        };
        let left_out: Vec<TopicIdPartition> = self.to_name.iter().copied().filter(is_left_out).collect();
        for id in left_out {
            self.to_name.remove(&id);
            // The leader would send what it was asked for before.
            self.to_forget.insert(id);
            self.later.push((now + wait, id));
        }
    }

    async fn exchange(
        &mut self,
        leader: &BrokerImage,
        (replica_id, broker_epoch): (BrokerId, i64),
    ) -> Result<ReplicaFetchAnswer, String> {
        let options = &self.inner.options;
        let now = Instant::now();
        let next = self.later.iter().map(|(at, _)| at.saturating_duration_since(now)).min();
        let wait = next.map_or(options.replica_fetch_wait, |next| next.min(options.replica_fetch_wait));
        let mut partitions = Vec::new();
        for id in std::mem::take(&mut self.to_name) {
            let Some(order) = self.following.get(&id) else { continue };
            let named = name(order);
            if named.durable_end < named.fetch_offset {
                self.unsettled.insert(id, (Arc::clone(&order.partition), named.fetch_offset));
            }
            partitions.push(named);
        }
        let call = ReplicaFetchCall {
            replica_id,
            broker_epoch,
            session_epoch: self.session_epoch,
            max_wait_ms: i32::try_from(wait.as_millis()).unwrap_or(i32::MAX),
            max_bytes: options.replica_fetch_bytes,
            partitions,
            forgotten: self
                .to_forget
                .iter()
                .map(|id| ForgottenPartition {
                    topic_id: id.topic_id,
                    partition_id: id.partition,
                    ..ForgottenPartition::default()
                })
                .collect(),
            ..ReplicaFetchCall::default()
        };
        let timeout = wait + ANSWER_TIMEOUT;
        let answer = options.peers.fetch(leader, call, timeout);
        tokio::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => return answer,
            () = self.changes.changed.notified() => {}
            // What came of it is seen when the answer is there.
            _ = durable(self.unsettled.values()), if !self.unsettled.is_empty() => {}
        }
        // There is something to add: the leader need not wait for records.
        let wake =
            ReplicaFetchCall { replica_id, broker_epoch, session_epoch: WAKE, ..ReplicaFetchCall::default() };
        let wake = options.peers.fetch(leader, wake, timeout);
        let (answer, _) = tokio::join!(answer, wake);
        answer
    }

    async fn take_answer(&mut self, answer: ReplicaFetchAnswer) -> Result<(), StoreGone> {
        let earlier = std::mem::take(&mut self.unsettled);
        let (mut appended, mut said) = (Vec::new(), Vec::new());
        let mut may_go_on = false;
        let mut outcomes = Vec::new();
        let (whole, parted): (Vec<_>, Vec<_>) = answer.partitions.into_iter().partition(is_whole);
        for fetched in whole {
            outcomes.extend(self.take_one(fetched).await);
        }
        // Side by side: nobody gets an acknowledgement before the logs are in line, and they share commits.
        let parted = stream::iter(parted).map(|fetched| self.take_one(fetched)).buffer_unordered(MAX_CUTS);
        outcomes.extend(parted.filter_map(std::future::ready).collect::<Vec<_>>().await);
        for Taken { partition, leader_epoch, fetchable_end, told, next } in outcomes {
            let id = partition.id();
            if let Some((high_watermark, log_start)) = told {
                said.push((Arc::clone(&partition), leader_epoch, high_watermark, log_start));
            }
            match next {
                Ok(Next::Nothing) => {}
                Ok(Next::AskAgain) => {
                    self.to_name.insert(id);
                }
                Ok(Next::AskWhenDurable { log_end }) => {
                    self.to_name.insert(id);
                    may_go_on |= log_end < fetchable_end;
                    appended.push((partition, log_end));
                }
                Ok(Next::AskLater(pause)) => self.later.push((Instant::now() + pause, id)),
                Err(FollowError::Stale) => {}
                Err(FollowError::Storage(StorageError::Failed(_) | StorageError::Closed)) => {
                    return Err(StoreGone);
                }
                Err(FollowError::Storage(StorageError::Gone)) => {}
                Err(error) => self.complain(id, &error),
            }
        }
        if !appended.is_empty() {
            // At most what two answers bring is on its way to the disk.
            durable(earlier.values()).await?;
        }
        for (id, (partition, end)) in earlier {
            if self.to_forget.contains(&id) {
                // It is named again when the trouble may be over.
            } else if is_settled(&partition, end)? {
                self.to_name.insert(id);
            } else {
                self.unsettled.insert(id, (partition, end));
            }
        }
        // A log start is said once: it moves there now, or not at all.
        let is_durable_there =
            |partition: &Partition, log_start| partition.log().ends().durable_end >= log_start;
        if !may_go_on
            || !said.iter().all(|(partition, _, _, log_start)| is_durable_there(partition, *log_start))
        {
            durable(&appended).await?;
        }
        for (partition, leader_epoch, high_watermark, log_start) in said {
            let follow = move |it: &Partition| Ok(it.follow_ends(leader_epoch, high_watermark, log_start)?);
            let outcome = if partition.is_behind_log_start(log_start) {
                // The leader waits to hear that it has moved (D1).
                self.to_name.insert(partition.id());
                on_disk(&partition, follow).await
            } else {
                follow(&partition)
            };
            if let Err(error) = outcome {
                self.complain(partition.id(), &error);
            }
        }
        Ok(())
    }

    fn complain(&mut self, id: TopicIdPartition, error: &FollowError) {
        tracing::error!(
            topic_id = %id.topic_id, partition = id.partition, leader = self.leader, %error,
            "cannot follow the leader; trying again"
        );
        self.to_name.remove(&id);
        // The leader would send what it was asked for before.
        self.to_forget.insert(id);
        self.later.push((Instant::now() + TROUBLE_BACK_OFF, id));
    }

    /// Does what the answer says of one partition; `None` if it does not follow any more.
    async fn take_one(&self, fetched: FetchedReplica) -> Option<Taken> {
        let id = TopicIdPartition { topic_id: fetched.topic_id, partition: fetched.partition_id };
        let Order { partition, leader_epoch } = self.following.get(&id)?;
        let fetchable_end = fetched.fetchable_end;
        let told = is_whole(&fetched).then_some((fetched.high_watermark, fetched.log_start));
        let next = self.follow(partition, *leader_epoch, fetched).await;
        Some(Taken {
            partition: Arc::clone(partition),
            leader_epoch: *leader_epoch,
            fetchable_end,
            told,
            next,
        })
    }

    async fn follow(
        &self,
        partition: &Arc<Partition>,
        leader_epoch: i32,
        fetched: FetchedReplica,
    ) -> Result<Next, FollowError> {
        let error = ErrorCode::from_code(fetched.error).unwrap_or(ErrorCode::UnknownServerError);
        match error {
            ErrorCode::None if fetched.diverging_epoch >= 0 => {
                let end = EpochEnd {
                    leader_epoch: fetched.diverging_epoch,
                    end_offset: fetched.diverging_end_offset,
                };
                on_disk(partition, move |it| it.truncate_to(leader_epoch, end)).await?;
                Ok(Next::AskAgain)
            }
            ErrorCode::None => self.append(partition, leader_epoch, &fetched).await,
            ErrorCode::OffsetOutOfRange if partition.is_apart_from(fetched.log_start) => {
                on_disk(partition, move |it| it.start_anew(leader_epoch, fetched.log_start)).await?;
                Ok(Next::AskAgain)
            }
            ErrorCode::NotLeaderOrFollower
            | ErrorCode::FencedLeaderEpoch
            | ErrorCode::UnknownLeaderEpoch
            | ErrorCode::UnknownTopicOrPartition => Ok(Next::AskLater(LEADER_BACK_OFF)),
            error => Err(FollowError::Rejected(format!("the leader answered {error:?}"))),
        }
    }

    /// Takes note of records that came in.
    fn count(&self, partition: &Partition, bytes: usize) {
        let mut quota = self.inner.follower_quota.lock();
        if !quota.is_limited() {
            return;
        }
        let own_id = self.leader().map(|(_, (own_id, _))| own_id);
        let image = Arc::clone(&self.inner.options.images.borrow());
        if own_id.is_some_and(|own_id| is_throttled(&image, partition, own_id)) {
            quota.record(bytes, Instant::now());
        }
    }

    async fn append(
        &self,
        partition: &Arc<Partition>,
        leader_epoch: i32,
        fetched: &FetchedReplica,
    ) -> Result<Next, FollowError> {
        if fetched.records.is_empty() {
            return Ok(Next::Nothing);
        }
        self.count(partition, fetched.records.len());
        let admission = Arc::new(self.inner.options.store.admit(fetched.records.len()).await?);
        let append = || partition.append_fetched(leader_epoch, &fetched.records, &admission);
        let log_end = match append() {
            // The leader's log begins in the middle of a batch, and it shows nothing below that.
            Err(FollowError::Storage(StorageError::NotContiguous { base_offset, log_end }))
                if base_offset < log_end && partition.log().ends().log_start == log_end =>
            {
                on_disk(partition, move |it| it.start_anew(leader_epoch, base_offset)).await?;
                append()?
            }
            appended => appended?,
        };
        Ok(Next::AskWhenDurable { log_end })
    }
}

/// What came of an answer for a partition.
struct Taken {
    partition: Arc<Partition>,
    leader_epoch: i32,
    fetchable_end: i64,
    /// The leader's high watermark and log start, if they count here.
    told: Option<(i64, i64)>,
    next: Result<Next, FollowError>,
}

/// When a partition is asked for again.
enum Next {
    /// When there is something new.
    Nothing,
    AskAgain,
    AskWhenDurable {
        log_end: i64,
    },
    AskLater(Duration),
}

/// The store takes nothing any more; the broker is about to stop.
struct StoreGone;

/// Whether the replica here is throttled, and one that is not in sync.
fn is_throttled(image: &MetadataImage, partition: &Partition, own_id: BrokerId) -> bool {
    let id = partition.id();
    partition.settings().follower_throttled.contains(id.partition, own_id)
        && image.partition(id).is_some_and(|state| !state.isr.contains(&own_id))
}

/// Whether the log here is a beginning of the leader's.
fn is_whole(fetched: &FetchedReplica) -> bool {
    fetched.error == ErrorCode::None.code() && fetched.diverging_epoch < 0
}

/// Where a partition stands. It may have ceased to follow, which this task is about to hear: then its log still is what
/// it says here, or ends with a record of a later epoch than the leader's, who then takes nothing from it.
fn name(Order { partition, leader_epoch }: &Order) -> FollowedPartition {
    let ends = partition.log().ends();
    let durable_end = ends.durable_end;
    #[cfg(any(test, feature = "historical-bugs"))]
    let durable_end = if bugs::has(Bug::AcknowledgesBeforeDurable) { ends.log_end } else { durable_end };
    let (fetch_offset, last_fetched_epoch) = partition.fetch_position_at(ends.log_end);
    FollowedPartition {
        topic_id: partition.id().topic_id,
        partition_id: partition.id().partition,
        leader_epoch: *leader_epoch,
        fetch_offset,
        durable_end,
        log_start: ends.log_start,
        last_fetched_epoch: last_fetched_epoch.unwrap_or(-1),
        ..FollowedPartition::default()
    }
}

/// Whether a log is durable up to `end`, or to its own: one that was cut meanwhile has nothing left to wait for. True
/// also where it does not follow any more: what was on its way to a log that was deleted never becomes durable.
fn is_settled(partition: &Partition, end: i64) -> Result<bool, StoreGone> {
    let ends = partition.log().ends();
    let is_durable = ends.durable_end >= end.min(ends.log_end);
    if !is_durable && partition.watermark().has_failed() {
        return Err(StoreGone);
    }
    Ok(is_durable || partition.role().follows.is_none())
}

async fn on_disk(
    partition: &Arc<Partition>,
    work: impl FnOnce(&Partition) -> Result<(), FollowError> + Send + 'static,
) -> Result<(), FollowError> {
    let partition = Arc::clone(partition);
    match crate::blocking::spawn_blocking(move || work(&partition)).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_cancelled() => Err(FollowError::Stale),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Waits until logs are settled up to the ends given, see [`is_settled`]. Cancel-safe.
async fn durable(ends: impl IntoIterator<Item = &(Arc<Partition>, i64)>) -> Result<(), StoreGone> {
    #[cfg(any(test, feature = "historical-bugs"))]
    if bugs::has(Bug::AcknowledgesBeforeDurable) {
        return Ok(());
    }
    let signal = Arc::new(Notify::new());
    for (partition, end) in ends {
        loop {
            // Registered before it looks, so that nothing happens unnoticed.
            let mut registrations = Registrations::new(&signal, Awaited::Durable);
            registrations.add(partition, *end);
            if is_settled(partition, *end)? {
                break;
            }
            signal.notified().await;
        }
    }
    Ok(())
}
