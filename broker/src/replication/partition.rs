//! One partition hosted here: who leads it, what it takes and what it shows.
//!
//! The mutex is held for the few steps that must not interleave (check sequences, take the next offset, queue the
//! batch) and never across a wait. Offsets therefore follow the order in which appends got the mutex, and the log
//! gets them in that order.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use millrace_protocol::records::{BatchError, BatchHeader, RecordBatch};
use millrace_protocol::{ErrorCode, RecordBytes};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::producer_state::{ProducerStates, SequenceError, Verdict};
use super::validate::ValidatedBatch;
use super::waiters::Waiters;
use super::{FoundOffset, OffsetQuery, RequiredAcks, TopicSettings};
use crate::metadata::image::TopicIdPartition;
use crate::storage::{
    Admission, AppendBatch, EpochEnd, LogEnds, LogListener, LogStore, PartitionLog, ReadRange, StateSnapshot,
    StorageError,
};

/// Special timestamps of ListOffsets (O1).
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;
const LATEST_TIERED: i64 = -5;

/// Most bytes that the records of a stored batch may decompress to when they are searched.
const MAX_SEARCHED_BYTES: usize = 256 << 20;

/// This broker's part in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role {
    /// Leader epoch of the image.
    pub leader_epoch: i32,
    /// Whether this broker leads in that epoch.
    pub leads: bool,
    /// Members of the in-sync set.
    pub isr_len: usize,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Partition {
    id: TopicIdPartition,
    log: Arc<dyn PartitionLog>,
    events: Arc<Events>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    role: Role,
    settings: Arc<TopicSettings>,
    producers: ProducerStates,
}

/// What the log tells; apart from the partition, because the log is opened first.
#[derive(Debug, Default)]
struct Events {
    waiters: Waiters,
    failed: AtomicBool,
}

impl LogListener for Events {
    fn durable_end_moved(&self, durable_end: i64) {
        self.waiters.advance(durable_end);
    }

    fn store_failed(&self) {
        self.failed.store(true, Ordering::Release);
        self.waiters.wake_all();
    }
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
        | StorageError::Damaged { .. }
        | StorageError::Io { .. } => ErrorCode::KafkaStorageError,
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
    /// The partition leads nothing before [`set_role`](Self::set_role).
    pub fn open(
        store: &dyn LogStore,
        id: TopicIdPartition,
        settings: Arc<TopicSettings>,
        now_ms: i64,
    ) -> Result<Self, StorageError> {
        let events = Arc::new(Events::default());
        let listener: Arc<dyn LogListener> = Arc::clone(&events) as Arc<dyn LogListener>;
        let opened = store.open(id, settings.log, Arc::downgrade(&listener))?;
        let (mut producers, from) = match opened.state {
            Some(StateSnapshot { offset, bytes }) => match ProducerStates::decode(&bytes) {
                Ok(producers) => (producers, offset),
                Err(error) => {
                    // The batches themselves are the truth; they are merely slower to read.
                    tracing::error!(topic_id = %id.topic_id, partition = id.partition, %error, "replaying the whole log");
                    (ProducerStates::default(), 0)
                }
            },
            None => (ProducerStates::default(), 0),
        };
        let from = from.max(opened.log.ends().log_start);
        opened.log.replay(from, &mut |header: &BatchHeader| producers.record(header, now_ms))?;
        let role = Role { leader_epoch: -1, leads: false, isr_len: 0 };
        Ok(Self { id, log: opened.log, events, state: Mutex::new(State { role, settings, producers }) })
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
    pub fn set_role(&self, role: Role) {
        let before = {
            let mut state = self.state.lock();
            let before = std::mem::replace(&mut state.role, role);
            if role.leads {
                self.log.begin_epoch(role.leader_epoch);
            }
            before
        };
        if before != role {
            self.events.waiters.wake_all();
        }
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
        now_ms: i64,
    ) -> Result<Appended, AppendError> {
        let mut state = self.state.lock();
        let role = state.role;
        if !role.leads {
            return Err(AppendError::NotLeader);
        }
        let min = state.settings.min_insync_replicas;
        if acks == RequiredAcks::All && role.isr_len < min {
            return Err(AppendError::NotEnoughReplicas { isr_len: role.isr_len, min });
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
        self.log.append(AppendBatch { bytes: batch.bytes, header }, Arc::clone(admission))?;
        state.producers.record(&header, now_ms);
        Ok(Appended {
            base_offset: header.base_offset,
            last_offset: header.last_offset(),
            log_append_time_ms: batch.log_append_time_ms.unwrap_or(-1),
            leader_epoch: role.leader_epoch,
        })
    }

    /// How far an append has come that waits for `acks`.
    pub fn progress(&self, appended: &Appended, acks: RequiredAcks) -> Progress {
        if self.log.ends().durable_end > appended.last_offset {
            let (role, min) = {
                let state = self.state.lock();
                (state.role, state.settings.min_insync_replicas)
            };
            return if acks == RequiredAcks::All && role.leads && role.isr_len < min {
                Progress::Failed(ErrorCode::NotEnoughReplicasAfterAppend)
            } else {
                Progress::Done
            };
        }
        if self.events.failed.load(Ordering::Acquire) {
            return Progress::Failed(ErrorCode::KafkaStorageError);
        }
        let role = self.role();
        if role.leads && role.leader_epoch == appended.leader_epoch {
            Progress::Pending
        } else {
            Progress::Failed(ErrorCode::NotLeaderOrFollower)
        }
    }

    /// First offset that consumers do not see. With the leader as the only replica, its durable end.
    pub fn high_watermark(&self) -> i64 {
        self.log.ends().durable_end
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

    /// What a fetch from `fetch_offset` may see (F3, F8, F9).
    pub fn bounds(
        &self,
        current_leader_epoch: Option<i32>,
        fetch_offset: i64,
        last_fetched_epoch: Option<i32>,
    ) -> Result<Bounds, ErrorCode> {
        self.check_leader(current_leader_epoch)?;
        let LogEnds { log_start, durable_end, log_end, durable_bytes } = self.log.ends();
        let diverging_epoch = match last_fetched_epoch.filter(|epoch| *epoch >= 0) {
            None => None,
            Some(epoch) => {
                let end = self.log.epoch_end(epoch).ok_or(ErrorCode::OffsetOutOfRange)?;
                (end.end_offset < fetch_offset || end.leader_epoch < epoch).then_some(end)
            }
        };
        if diverging_epoch.is_none() && !(log_start..=log_end).contains(&fetch_offset) {
            return Err(ErrorCode::OffsetOutOfRange);
        }
        Ok(Bounds {
            log_start,
            high_watermark: durable_end,
            // Without transactions everything below the high watermark is stable.
            last_stable_offset: durable_end,
            visible_bytes: durable_bytes,
            diverging_epoch,
        })
    }

    /// Reads whole batches; `None` if that needs the disk and `memory_only` forbids it.
    pub fn read(&self, range: ReadRange, memory_only: bool) -> Result<Option<RecordBytes>, ErrorCode> {
        let read = if memory_only { self.log.read_memory(range) } else { self.log.read(range).map(Some) };
        read.map_err(|error| self.report(&error))
    }

    /// Whether [`find_offset`](Self::find_offset) reads from disk for this timestamp.
    pub fn needs_disk(timestamp: i64) -> bool {
        !matches!(timestamp, LATEST | EARLIEST | EARLIEST_LOCAL | LATEST_TIERED)
    }

    /// Answers ListOffsets (O1–O3). Blocks on the disk where [`needs_disk`](Self::needs_disk) says so.
    pub fn find_offset(&self, query: &OffsetQuery) -> Result<FoundOffset, ErrorCode> {
        self.check_leader(query.current_leader_epoch)?;
        let ends = self.log.ends();
        let at = |offset| FoundOffset {
            offset,
            timestamp: -1,
            leader_epoch: self.log.epoch_at(offset).or_else(|| self.log.latest_epoch()).unwrap_or(-1),
        };
        let nothing = FoundOffset { offset: -1, timestamp: -1, leader_epoch: -1 };
        let search = |timestamp| self.search_time(timestamp, &ends).map_err(|error| self.report(&error));
        match query.timestamp {
            LATEST => Ok(FoundOffset { leader_epoch: self.role().leader_epoch, ..at(ends.durable_end) }),
            EARLIEST | EARLIEST_LOCAL => Ok(at(ends.log_start)),
            LATEST_TIERED => Ok(nothing),
            MAX_TIMESTAMP => {
                let batch = self.log.batch_with_max_timestamp().map_err(|error| self.report(&error))?;
                let Some(batch) = batch else { return Ok(nothing) };
                Ok(record_with_max_timestamp(batch, ends.log_start)
                    .map_err(|error| self.report_batch(&error))?
                    .unwrap_or(nothing))
            }
            timestamp if timestamp >= 0 => Ok(search(timestamp)?.unwrap_or(nothing)),
            _ => Err(ErrorCode::UnsupportedVersion),
        }
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
        Ok(self.log.ends().log_start)
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

    /// Has `signal` notified when the durable end reaches `wake_at` or anything else happens.
    pub fn register(&self, wake_at: i64, signal: &Arc<Notify>) {
        self.events.waiters.register(wake_at, signal);
    }

    /// Takes registrations back.
    pub fn leave(&self, signal: &Arc<Notify>) {
        self.events.waiters.leave(signal);
    }

    /// Number of registrations.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.events.waiters.len()
    }

    /// The producers' state, to be kept in a checkpoint.
    pub fn snapshot(&self) -> StateSnapshot {
        let state = self.state.lock();
        // Under the lock no append comes between the two.
        StateSnapshot { offset: self.log.ends().log_end, bytes: state.producers.encode() }
    }

    /// Offset of the last record of each producer that is known.
    pub fn last_offsets_of_producers(&self) -> HashMap<i64, i64> {
        self.state.lock().producers.last_offsets().collect()
    }

    /// Forgets producers idle for longer than `limit_ms`.
    pub fn expire_producers(&self, now_ms: i64, limit_ms: i64) {
        self.state.lock().producers.expire(now_ms, limit_ms);
    }

    fn search_time(&self, timestamp: i64, ends: &LogEnds) -> Result<Option<FoundOffset>, StorageError> {
        let mut from = ends.log_start;
        // A batch's largest timestamp may belong to a record below the log start; then the next batch is looked at.
        while let Some(batch) = self.log.batch_by_time(timestamp, from)? {
            let (found, next_offset) = match first_record_at(batch, timestamp, ends.log_start) {
                Ok(found) => found,
                Err(error) => {
                    self.report_batch(&error);
                    return Ok(None);
                }
            };
            if found.is_some() {
                return Ok(found.filter(|found| found.offset < ends.durable_end));
            }
            from = next_offset;
        }
        Ok(None)
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

/// The first record in `batch` at or after both bounds (O2), and the offset after the batch.
fn first_record_at(
    mut batch: Bytes,
    timestamp: i64,
    log_start: i64,
) -> Result<(Option<FoundOffset>, i64), BatchError> {
    let batch = RecordBatch::split_from(&mut batch)?;
    let leader_epoch = batch.header().partition_leader_epoch;
    for record in batch.decompress(MAX_SEARCHED_BYTES)?.records() {
        let record = record?;
        if record.timestamp >= timestamp && record.offset >= log_start {
            let found = FoundOffset { offset: record.offset, timestamp: record.timestamp, leader_epoch };
            return Ok((Some(found), batch.header().next_offset()));
        }
    }
    Ok((None, batch.header().next_offset()))
}

/// The first record in `batch` that has the largest timestamp (O3).
fn record_with_max_timestamp(mut batch: Bytes, log_start: i64) -> Result<Option<FoundOffset>, BatchError> {
    let batch = RecordBatch::split_from(&mut batch)?;
    let leader_epoch = batch.header().partition_leader_epoch;
    let mut best: Option<FoundOffset> = None;
    for record in batch.decompress(MAX_SEARCHED_BYTES)?.records() {
        let record = record?;
        let later = best.is_none_or(|best| record.timestamp > best.timestamp);
        if later && record.offset >= log_start {
            best = Some(FoundOffset { offset: record.offset, timestamp: record.timestamp, leader_epoch });
        }
    }
    Ok(best)
}
