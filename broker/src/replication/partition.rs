//! One partition hosted here: who leads it, what it takes from clients or from its leader, and what it shows.
//!
//! The mutex is held for the few steps that must not interleave (check sequences, take the next offset, queue the
//! batch) and never across a wait. Offsets therefore follow the order in which appends got the mutex, and the log
//! gets them in that order.

mod followers;
mod following;
mod offsets;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::records::{BatchError, BatchHeader};
use millrace_protocol::{ErrorCode, RecordBytes};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::kept_state::KeptState;
use super::leadership::LeaderAssignment;
use super::producer_state::{ProducerStates, SequenceError, SteadyClock, Verdict};
use super::producer_undo::UndoLog;
use super::registrations::Registrations;
use super::sessions::FollowerSignal;
use super::traffic::Traffic;
use super::validate::ValidatedBatch;
use super::waiters::{Awaited, Waiters};
use super::watermark::Watermark;
use super::{FetchPartition, RequiredAcks, TopicSettings};
#[cfg(any(test, feature = "historical-bugs"))]
use crate::bugs::{self, Bug};
use crate::metadata::image::{BrokerId, TopicIdPartition};
use crate::storage::{
    Admission, AppendBatch, EpochEnd, LogEnds, LogListener, LogStore, PartitionLog, ReadRange, Reader,
    StateSnapshot, StorageError,
};

/// Snapshots of the producers' state that are kept in memory: a log that is truncated goes back to one of them.
const SNAPSHOTS_KEPT: usize = 2;

/// This broker's part in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assignment {
    /// It leads.
    Leads(LeaderAssignment),
    /// It follows.
    Follows {
        /// Who leads.
        leader: BrokerId,
        /// In which epoch.
        leader_epoch: i32,
    },
    /// Nobody leads, or this broker has no part in it now.
    Idle {
        /// Epoch of the image.
        leader_epoch: i32,
    },
}

/// The part that this broker plays at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role {
    /// Leader epoch of the image.
    pub leader_epoch: i32,
    /// Whether this broker leads in that epoch.
    pub leads: bool,
    /// Whom it follows in that epoch.
    pub follows: Option<BrokerId>,
}

impl Assignment {
    fn role(&self) -> Role {
        let (leader_epoch, leads, follows) = match self {
            Self::Leads(assignment) => (assignment.leader_epoch, true, None),
            Self::Follows { leader, leader_epoch } => (*leader_epoch, false, Some(*leader)),
            Self::Idle { leader_epoch } => (*leader_epoch, false, None),
        };
        Role { leader_epoch, leads, follows }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct Partition {
    id: TopicIdPartition,
    log: Arc<dyn PartitionLog>,
    watermark: Arc<Watermark>,
    /// What this broker carries as its leader.
    traffic: Traffic,
    /// By which producers are idle.
    steady_clock: SteadyClock,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    role: Role,
    /// While it leads: first epoch since which nobody else has led. An epoch that follows directly on one in which this
    /// broker led is such a one; it begins when a replica is taken away.
    led_since: i32,
    settings: Arc<TopicSettings>,
    producers: ProducerStates,
    /// For batches that may be cut off again.
    undo_log: UndoLog,
    /// States of the producers at earlier log ends, oldest first.
    snapshots: VecDeque<StateSnapshot>,
}

/// A batch that has its offsets and is on its way to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Offset of the first record.
    pub base_offset: i64,
    /// Offset of the last record.
    pub last_offset: i64,
    /// The broker's time in the records, or -1 (P9).
    pub log_append_time_ms: i64,
    /// Epoch in which it was appended.
    pub leader_epoch: i32,
}

/// Why a batch was not appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Another broker leads, or none.
    #[error("this broker does not lead the partition")]
    NotLeader,
    /// Too few replicas are in sync for acks=all (P11).
    #[error("{isr_len} replicas are in sync and min.insync.replicas is {min}")]
    NotEnoughReplicas {
        /// Members of the in-sync set.
        isr_len: usize,
        /// The setting.
        min: usize,
    },
    /// The producer's sequence is broken.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    /// There are no transactions yet.
    #[error("this broker does not take transactional records")]
    Transactional,
    /// The log did not take it.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl AppendError {
    /// The client's error.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotLeader => ErrorCode::NotLeaderOrFollower,
            Self::NotEnoughReplicas { .. } => ErrorCode::NotEnoughReplicas,
            Self::Sequence(SequenceError::OutOfOrder { .. }) => ErrorCode::OutOfOrderSequenceNumber,
            Self::Sequence(SequenceError::OldEpoch { .. }) => ErrorCode::InvalidProducerEpoch,
            Self::Transactional => ErrorCode::InvalidTxnState,
            Self::Storage(error) => storage_code(error),
        }
    }
}

/// Why records of the leader were not taken, or the log was not brought in line with it.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The leader or its epoch has changed since they were asked for.
    #[error("the leader has changed")]
    Stale,
    /// What the leader sent is damaged, or does not belong here.
    #[error("the leader sent records that cannot be taken: {0}")]
    Rejected(String),
    /// The log did not take it.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// What a follower needs to know before it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowerView {
    /// First offset.
    pub log_start: i64,
    /// End of what can be fetched; what lies above the durable end is on its way to the disk here.
    pub fetchable_end: i64,
    /// High watermark.
    pub high_watermark: i64,
    /// Where the follower's log parts from this one.
    pub diverging_epoch: Option<EpochEnd>,
}

/// The client's error for one of the store.
pub fn storage_code(error: &StorageError) -> ErrorCode {
    match error {
        StorageError::OffsetOutOfRange { .. } => ErrorCode::OffsetOutOfRange,
        // Deleted while the request was under way.
        StorageError::Gone => ErrorCode::UnknownTopicOrPartition,
        StorageError::TooLarge { .. } => ErrorCode::RecordListTooLarge,
        StorageError::Failed(_)
        | StorageError::Closed
        | StorageError::Full { .. }
        | StorageError::NotContiguous { .. }
        | StorageError::Io { .. } => ErrorCode::KafkaStorageError,
        // As Kafka answers when it finds a batch header damaged: consumers report it, instead of trying for ever.
        StorageError::Damaged { .. } => ErrorCode::CorruptMessage,
    }
}

/// How far an append has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// On its way.
    Pending,
    /// As durable as was asked for.
    Done,
    /// It will not be, or nobody here can tell.
    Failed(ErrorCode),
}

/// What a fetch may see, taken before it reads (F8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// First offset.
    pub log_start: i64,
    /// First offset that is not shown.
    pub high_watermark: i64,
    /// First offset that is not shown to readers of committed records.
    pub last_stable_offset: i64,
    /// Counter of bytes that became visible.
    pub visible_bytes: u64,
    /// Where the client's log parts from this one.
    pub diverging_epoch: Option<EpochEnd>,
}

impl Partition {
    /// Opens the partition's log and brings the producers' state up to its end. Blocks on the disk.
    ///
    /// The partition neither leads nor follows before [`assign`](Self::assign). `lag` is `replica.lag.time.max.ms`.
    pub fn open(
        store: &dyn LogStore,
        id: TopicIdPartition,
        settings: Arc<TopicSettings>,
        lag: Duration,
        steady_clock: SteadyClock,
    ) -> Result<Self, StorageError> {
        let now_ms = steady_clock.now_ms();
        let watermark = Arc::new(Watermark::new(id, lag));
        let listener: Arc<dyn LogListener> = Arc::clone(&watermark) as Arc<dyn LogListener>;
        let opened = store.open(id, settings.log, Arc::downgrade(&listener))?;
        let ends = opened.log.ends();
        let kept = opened.state.as_ref().and_then(|state| KeptState::decode(&state.bytes, now_ms).ok());
        watermark.opened(&ends, kept.and_then(|kept| kept.high_watermark));
        let snapshots: VecDeque<_> = opened.state.into_iter().collect();
        let (producers, undo_log) = producers_at(id, opened.log.as_ref(), &snapshots, ends.log_end, now_ms)?;
        let role = Role { leader_epoch: -1, leads: false, follows: None };
        let state = Mutex::new(State { role, led_since: -1, settings, producers, undo_log, snapshots });
        Ok(Self {
            id,
            log: opened.log,
            watermark,
            traffic: Traffic::new(Instant::now()),
            steady_clock,
            state,
        })
    }

    /// Topic id and number.
    pub fn id(&self) -> TopicIdPartition {
        self.id
    }

    /// The log.
    pub fn log(&self) -> &Arc<dyn PartitionLog> {
        &self.log
    }

    /// This broker's part in the partition.
    pub fn role(&self) -> Role {
        self.state.lock().role
    }

    /// Takes the part that the image says. Becoming leader enters the epoch in the log (L1); anything else than going
    /// on in the same epoch wakes whoever waits.
    pub fn assign(&self, assignment: Assignment) {
        let role = assignment.role();
        let before = {
            let mut state = self.state.lock();
            let before = std::mem::replace(&mut state.role, role);
            let goes_on = before.leads && role.leader_epoch <= before.leader_epoch.saturating_add(1);
            if !goes_on {
                state.led_since = role.leader_epoch;
            }
            match assignment {
                Assignment::Leads(assignment) => {
                    if before != role {
                        self.log.begin_epoch(role.leader_epoch);
                    }
                    if !goes_on {
                        self.traffic.restart(Instant::now());
                    }
                    self.watermark.lead(assignment, self.log.ends().log_end);
                }
                Assignment::Follows { .. } if before == role => {}
                Assignment::Follows { .. } => {
                    #[cfg(any(test, feature = "historical-bugs"))]
                    if bugs::has(Bug::TruncatesToHighWatermark) {
                        // Fails for a log whose beginning was not replicated yet.
                        let _ = self.log.truncate(self.high_watermark());
                    }
                    self.watermark.follow();
                }
                Assignment::Idle { .. } => self.watermark.idle(),
            }
            before
        };
        if before != role {
            self.watermark.wake_all();
        }
    }

    /// Gives up leading or following; whoever waits is told.
    pub fn retire(&self) {
        self.assign(Assignment::Idle { leader_epoch: self.role().leader_epoch });
    }

    /// Replaces the settings.
    pub fn set_settings(&self, settings: Arc<TopicSettings>) {
        self.log.set_settings(settings.log);
        self.state.lock().settings = settings;
    }

    /// The settings.
    pub fn settings(&self) -> Arc<TopicSettings> {
        Arc::clone(&self.state.lock().settings)
    }

    /// Gives a batch its offsets and queues it. A repetition of a stored batch gets the offsets of the first (I1).
    pub fn append(
        &self,
        batch: ValidatedBatch,
        acks: RequiredAcks,
        admission: &Arc<Admission>,
    ) -> Result<Appended, AppendError> {
        let mut state = self.state.lock();
        let role = state.role;
        if !role.leads {
            return Err(AppendError::NotLeader);
        }
        if acks == RequiredAcks::All
            && let Some((isr_len, min)) = self.too_few_in_sync()
        {
            return Err(AppendError::NotEnoughReplicas { isr_len, min });
        }
        if batch.header.attributes.is_transactional() {
            return Err(AppendError::Transactional);
        }
        if let Verdict::Duplicate(stored) = state.producers.check(&batch.header)? {
            return Ok(Appended {
                base_offset: stored.base_offset,
                last_offset: stored.last_offset,
                log_append_time_ms: stored.timestamp,
                leader_epoch: role.leader_epoch,
            });
        }
        let header = BatchHeader {
            base_offset: self.log.ends().log_end,
            partition_leader_epoch: role.leader_epoch,
            ..batch.header
        };
        let bytes = batch.bytes.len();
        self.log.append(AppendBatch { bytes: batch.bytes, header }, Arc::clone(admission))?;
        self.record(&mut state, &header);
        self.watermark.appended(header.next_offset());
        drop(state);
        self.traffic.add(bytes);
        // They need not wait until it is durable here.
        self.watermark.tell_followers();
        Ok(Appended {
            base_offset: header.base_offset,
            last_offset: header.last_offset(),
            log_append_time_ms: batch.log_append_time_ms.unwrap_or(-1),
            leader_epoch: role.leader_epoch,
        })
    }

    /// Enters a batch that was appended into the producers' state.
    fn record(&self, state: &mut State, header: &BatchHeader) {
        if let Some(undo) = state.producers.record(header, self.steady_clock.now_ms()) {
            state.undo_log.push(undo, || self.high_watermark());
        }
    }

    /// Number of in-sync replicas and how many there must be, if there are fewer.
    fn too_few_in_sync(&self) -> Option<(usize, usize)> {
        let counts = self.watermark.leadership(|leadership| (leadership.isr_len(), leadership.min_isr()));
        counts.filter(|(isr_len, min)| isr_len < min)
    }

    /// How far an append has come that waits for `acks` (P11).
    pub fn progress(&self, appended: &Appended, acks: RequiredAcks) -> Progress {
        let end = match acks {
            RequiredAcks::All => self.watermark.visible().high_watermark,
            RequiredAcks::Leader | RequiredAcks::None => self.log.ends().durable_end,
        };
        // After it: whoever still leads has led when that was the end, so that it is not one that another leader's records
        // have reached, in the place of this append.
        let (role, led_since) = {
            let state = self.state.lock();
            (state.role, state.led_since)
        };
        if !role.leads || appended.leader_epoch < led_since {
            return Progress::Failed(ErrorCode::NotLeaderOrFollower);
        }
        if end > appended.last_offset {
            return if acks == RequiredAcks::All && self.too_few_in_sync().is_some() {
                Progress::Failed(ErrorCode::NotEnoughReplicasAfterAppend)
            } else {
                Progress::Done
            };
        }
        if self.watermark.has_failed() {
            return Progress::Failed(ErrorCode::KafkaStorageError);
        }
        Progress::Pending
    }

    /// First offset that consumers do not see: everything below is durable on all in-sync replicas (L5).
    pub fn high_watermark(&self) -> i64 {
        self.watermark.visible().high_watermark
    }

    /// Checks that the client and this broker agree on who leads (F9).
    pub fn check_leader(&self, current_leader_epoch: Option<i32>) -> Result<(), ErrorCode> {
        let role = self.role();
        match current_leader_epoch.filter(|epoch| *epoch >= 0) {
            Some(epoch) if epoch < role.leader_epoch => Err(ErrorCode::FencedLeaderEpoch),
            Some(epoch) if epoch > role.leader_epoch => Err(ErrorCode::UnknownLeaderEpoch),
            _ if !role.leads => Err(ErrorCode::NotLeaderOrFollower),
            _ => Ok(()),
        }
    }

    /// What `fetch` may see (F3, F8, F9). A follower shows what is below its own high watermark to clients that know
    /// about followers.
    pub fn bounds(&self, fetch: &FetchPartition, may_read_followers: bool) -> Result<Bounds, ErrorCode> {
        let FetchPartition { current_leader_epoch, fetch_offset, last_fetched_epoch, .. } = *fetch;
        match self.check_leader(current_leader_epoch) {
            Err(ErrorCode::NotLeaderOrFollower) if may_read_followers && self.role().follows.is_some() => {}
            checked => checked?,
        }
        // Before the log's ends: the log start must not be seen above the high watermark.
        let visible = self.watermark.visible();
        let LogEnds { log_start, log_end, .. } = self.log.ends();
        let diverging_epoch = self.diverges(fetch_offset, last_fetched_epoch)?;
        if diverging_epoch.is_none() && !(log_start..=log_end).contains(&fetch_offset) {
            return Err(ErrorCode::OffsetOutOfRange);
        }
        Ok(Bounds {
            log_start,
            high_watermark: visible.high_watermark,
            // Without transactions everything below the high watermark is stable.
            last_stable_offset: visible.high_watermark,
            visible_bytes: visible.bytes,
            diverging_epoch,
        })
    }

    /// Where a log that ends at `fetch_offset` with a record of `last_fetched_epoch` parts from this one (L3).
    fn diverges(
        &self,
        fetch_offset: i64,
        last_fetched_epoch: Option<i32>,
    ) -> Result<Option<EpochEnd>, ErrorCode> {
        let Some(epoch) = last_fetched_epoch.filter(|epoch| *epoch >= 0) else { return Ok(None) };
        let end = self.log.epoch_end(epoch).ok_or(ErrorCode::OffsetOutOfRange)?;
        Ok((end.end_offset < fetch_offset || end.leader_epoch < epoch).then_some(end))
    }

    /// Reads whole batches; `None` if that needs the disk and `memory_only` forbids it.
    pub fn read(&self, range: ReadRange, memory_only: bool) -> Result<Option<RecordBytes>, ErrorCode> {
        let read = if memory_only { self.log.read_memory(range) } else { self.log.read(range).map(Some) };
        let read = read.map_err(|error| self.report(&error))?;
        if let Some(records) = read.as_ref().filter(|_| range.reader == Reader::Consumer) {
            self.traffic.add(records.len());
        }
        Ok(read)
    }

    /// Deletes what lies below `offset`, or below the high watermark (D1). Blocks on the disk.
    pub fn delete_records(&self, offset: Option<i64>) -> Result<i64, ErrorCode> {
        self.check_leader(None)?;
        if !self.settings().log.delete_old {
            return Err(ErrorCode::PolicyViolation);
        }
        let high_watermark = self.high_watermark();
        let offset = offset.unwrap_or(high_watermark);
        if offset > high_watermark {
            return Err(ErrorCode::OffsetOutOfRange);
        }
        self.log.set_log_start(offset).map_err(|error| self.report(&error))?;
        // A follower that led without knowing would show what was deleted.
        self.watermark.tell_followers();
        Ok(self.log.ends().log_start)
    }

    /// Waits until all replicas that are in service have deleted what lies below `offset`, and returns the lowest log
    /// start (D1). Cancel-safe.
    ///
    /// # Errors
    /// They have not by the deadline, or this broker does not lead any more.
    pub(super) async fn deleted_everywhere(
        self: &Arc<Self>,
        offset: i64,
        deadline: Instant,
    ) -> Result<i64, ErrorCode> {
        let signal = Arc::new(Notify::new());
        let mut registrations = Registrations::new(&signal, Awaited::Deleted);
        loop {
            // Registered before it looks, so that nothing happens unnoticed.
            registrations.clear();
            registrations.add(self, offset);
            let log_start = self.log.ends().log_start;
            let low_watermark = self.watermark.leadership(|leadership| leadership.low_watermark(log_start));
            let low_watermark = low_watermark.ok_or(ErrorCode::NotLeaderOrFollower)?;
            if low_watermark >= offset {
                return Ok(low_watermark);
            }
            if tokio::time::timeout_at(deadline, signal.notified()).await.is_err() {
                return Err(ErrorCode::RequestTimedOut);
            }
        }
    }

    /// Where a leader epoch ended (L2): `(-1, -1)` if it is above all known ones.
    pub fn epoch_end(
        &self,
        current_leader_epoch: Option<i32>,
        leader_epoch: i32,
    ) -> Result<EpochEnd, ErrorCode> {
        self.check_leader(current_leader_epoch)?;
        let unknown = EpochEnd { leader_epoch: -1, end_offset: -1 };
        Ok(self.log.epoch_end(leader_epoch).unwrap_or(unknown))
    }

    fn waiters(&self, awaited: Awaited) -> &Waiters {
        match awaited {
            Awaited::Visible => &self.watermark.visible,
            Awaited::Durable => &self.watermark.durable,
            Awaited::Deleted => &self.watermark.deleted,
        }
    }

    /// Has `signal` notified when what is awaited reaches `wake_at`, or anything else happens.
    pub(super) fn register(&self, awaited: Awaited, wake_at: i64, signal: &Arc<Notify>) {
        self.waiters(awaited).register(wake_at, signal);
    }

    /// Takes registrations back.
    pub(super) fn leave(&self, awaited: Awaited, signal: &Arc<Notify>) {
        self.waiters(awaited).leave(signal);
    }

    /// Number of registrations.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.watermark.visible.len() + self.watermark.durable.len()
    }

    /// The high watermark and the producers' state, to be kept in a checkpoint: the state there if possible, as the log is
    /// not cut below it.
    pub fn snapshot(&self) -> StateSnapshot {
        let high_watermark = self.high_watermark();
        let mut state = self.state.lock();
        state.undo_log.forget_committed(high_watermark);
        // Under the lock no append comes between the two.
        let log_end = self.log.ends().log_end;
        let (producers, offset) = state.undo_log.committed(&state.producers, high_watermark, log_end);
        let bytes = KeptState::encode(high_watermark, &producers, self.steady_clock.now_ms());
        let snapshot = StateSnapshot { offset, bytes };
        if state.snapshots.back().is_none_or(|last| last.offset != snapshot.offset) {
            state.snapshots.push_back(snapshot.clone());
        }
        if state.snapshots.len() > SNAPSHOTS_KEPT {
            state.snapshots.pop_front();
        }
        snapshot
    }

    /// Followers' sessions, replica lag and proposals.
    pub(super) fn watermark(&self) -> &Watermark {
        &self.watermark
    }

    /// Has `signal` marked when there is something new for followers.
    pub(super) fn add_follower(&self, signal: &Arc<FollowerSignal>) {
        self.watermark.add_follower(signal);
    }

    /// Takes [`add_follower`](Self::add_follower) back.
    pub(super) fn remove_follower(&self, signal: &Arc<FollowerSignal>) {
        self.watermark.remove_follower(signal);
    }

    /// Offset of the last record of each producer that is known.
    pub fn last_offsets_of_producers(&self) -> HashMap<i64, i64> {
        self.state.lock().producers.last_offsets().collect()
    }

    /// Forgets producers idle for longer than `limit_ms`.
    pub fn expire_producers(&self, limit_ms: i64) {
        self.state.lock().producers.expire(self.steady_clock.now_ms(), limit_ms);
    }

    fn report(&self, error: &StorageError) -> ErrorCode {
        let code = storage_code(error);
        if code == ErrorCode::KafkaStorageError {
            tracing::error!(topic_id = %self.id.topic_id, partition = self.id.partition, %error, "reading a log");
        }
        code
    }

    fn report_batch(&self, error: &BatchError) -> ErrorCode {
        tracing::error!(topic_id = %self.id.topic_id, partition = self.id.partition, %error, "reading a stored batch");
        ErrorCode::KafkaStorageError
    }
}

/// The producers' state at `end`, from the latest snapshot before it and the batches since, and how to take those back.
/// Those that have written since the snapshot have just been used. Where batches between the two were deleted, nobody knows
/// what those before them were followed by.
/// Blocks on the disk.
fn producers_at(
    id: TopicIdPartition,
    log: &dyn PartitionLog,
    snapshots: &VecDeque<StateSnapshot>,
    end: i64,
    now_ms: i64,
) -> Result<(ProducerStates, UndoLog), StorageError> {
    let snapshot = snapshots.iter().rev().find(|snapshot| snapshot.offset <= end);
    let decoded = snapshot.map(|snapshot| (KeptState::decode(&snapshot.bytes, now_ms), snapshot.offset));
    let (mut producers, from) = match decoded {
        Some((Ok(kept), offset)) => (kept.producers, offset),
        Some((Err(error), _)) => {
            // The batches themselves are the truth; they are merely slower to read.
            tracing::error!(topic_id = %id.topic_id, partition = id.partition, %error, "replaying the whole log");
            (ProducerStates::default(), 0)
        }
        None => (ProducerStates::default(), 0),
    };
    let log_start = log.ends().log_start;
    if from < log_start {
        producers.forget_batches();
    }
    let from = from.max(log_start);
    let mut undo_log = UndoLog::new(from);
    log.replay(from, &mut |header: &BatchHeader| {
        if let Some(undo) = producers.record(header, now_ms) {
            undo_log.push(undo, || from);
        }
    })?;
    Ok((producers, undo_log))
}
