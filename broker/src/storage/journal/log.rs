//! One partition's log: its pointers, its newest runs in memory, and reading.
//!
//! Everything below the durable end that is not in memory is in the index; what the index does not know yet is in
//! memory. A reader looks there first and needs no more than its own lock. What lies above the durable end is with the
//! writer, and shown to replicas.

mod compact;
mod queued;
mod read;

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use millrace_protocol::RecordBytes;
use millrace_protocol::records::BatchHeader;
use parking_lot::{Mutex, MutexGuard};

use super::Shared;
use super::frame::{Entry, Run};
use super::writer::{Command, Written};
use crate::metadata::image::TopicIdPartition;
use crate::storage::{
    Admission, AppendBatch, CompactionJob, CompactionReport, Dirt, Durability, EpochCache, EpochEnd, LogEnds,
    LogListener, LogSettings, PartitionLog, ReadRange, StorageError, Wakes,
};

use queued::QueuedBatches;
use read::pick;

/// See the module documentation.
pub(super) struct JournalLog {
    id: u64,
    partition: TopicIdPartition,
    shared: Arc<Shared>,
    listener: Weak<dyn LogListener>,
    this: Weak<Self>,
    state: Mutex<State>,
    /// Held while something is cut, deleted or replaced and the state learns what that has left.
    changing: Mutex<()>,
    /// Held while the log is compacted.
    compacting: Mutex<()>,
}

/// A log as the index knows it.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) log_start: i64,
    pub(super) end: i64,
    pub(super) epochs: EpochCache,
    pub(super) removed_bytes: i64,
    pub(super) first: Option<Run>,
    pub(super) last: Option<Run>,
}

#[derive(Debug)]
struct State {
    settings: LogSettings,
    log_start: i64,
    durable_end: i64,
    log_end: i64,
    durable_bytes: u64,
    epochs: EpochCache,
    /// The newest runs, oldest first, with none left out, and up to the durable end if there are any.
    tail: VecDeque<Chunk>,
    queued: QueuedBatches,
    /// Largest timestamp and bytes up to the last run that the writer has placed.
    running_max_timestamp: i64,
    placed_bytes: u64,
    /// Position in the log of the first byte that is left, and after the last that is durable.
    first_byte: u64,
    end_byte: u64,
    /// Bytes between the two that compaction has removed.
    removed_bytes: i64,
    /// How often the end was cut off.
    cuts: u64,
    gone: bool,
}

/// A run in memory.
#[derive(Debug)]
struct Chunk {
    run: Run,
    bytes: Bytes,
    sequence: u64,
}

impl fmt::Debug for JournalLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournalLog").field("partition", &self.partition).finish_non_exhaustive()
    }
}

impl JournalLog {
    pub(super) fn new(
        shared: Arc<Shared>,
        partition: TopicIdPartition,
        settings: LogSettings,
        found: Found,
        listener: Weak<dyn LogListener>,
    ) -> Arc<Self> {
        let end_byte = found.last.map_or(0, |last| last.log_end());
        let state = State {
            settings,
            log_start: found.log_start,
            durable_end: found.end,
            log_end: found.end,
            durable_bytes: 0,
            epochs: found.epochs,
            tail: VecDeque::new(),
            queued: QueuedBatches::default(),
            running_max_timestamp: found.last.map_or(-1, |last| last.running_max_timestamp),
            placed_bytes: end_byte,
            first_byte: found.first.map_or(end_byte, |first| first.log_position),
            end_byte,
            removed_bytes: found.removed_bytes,
            cuts: 0,
            gone: false,
        };
        let id = shared.next_log.fetch_add(1, Ordering::Relaxed);
        Arc::new_cyclic(|this| Self {
            id,
            partition,
            shared,
            listener,
            this: Weak::clone(this),
            state: Mutex::new(state),
            changing: Mutex::default(),
            compacting: Mutex::default(),
        })
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn partition(&self) -> TopicIdPartition {
        self.partition
    }

    pub(super) fn durability(&self) -> Durability {
        self.state.lock().settings.durability
    }

    pub(super) fn is_gone(&self) -> bool {
        self.state.lock().gone
    }

    /// The log is about to be deleted. Waits for a change that is under way, so that its entry comes before that.
    pub(super) fn mark_gone(&self) {
        let _changing = self.changing.lock();
        let mut state = self.state.lock();
        state.gone = true;
        state.tail.clear();
        state.queued.clear();
    }

    pub(super) fn tell_failed(&self) {
        if let Some(listener) = self.listener.upgrade() {
            listener.store_failed();
        }
    }

    /// For the writer: `run` with what follows from the runs before it.
    pub(super) fn place(&self, run: Run) -> Run {
        let mut state = self.state.lock();
        state.running_max_timestamp = state.running_max_timestamp.max(run.max_timestamp);
        let log_position = state.placed_bytes;
        state.placed_bytes = state.placed_bytes.wrapping_add(u64::from(run.length));
        Run { running_max_timestamp: state.running_max_timestamp, log_position, ..run }
    }

    /// For the writer: `runs` are as durable as the log asks for. Returns who waited for them.
    pub(super) fn publish(&self, runs: Vec<Written>) -> Wakes {
        let (durable_end, durable_bytes) = {
            let mut state = self.state.lock();
            if state.gone {
                return Wakes::default();
            }
            for Written { run, bytes, sequence } in runs {
                state.durable_end = run.next_offset();
                state.durable_bytes += u64::from(run.length);
                state.end_byte = run.log_end();
                state.tail.push_back(Chunk { run, bytes, sequence });
            }
            let durable_end = state.durable_end;
            // In one step with the runs: a replica finds every batch in one of the two.
            state.queued.forget_below(durable_end);
            (state.durable_end, state.durable_bytes)
        };
        let listener = self.listener.upgrade();
        listener.map(|it| it.durable_end_moved(durable_end, durable_bytes)).unwrap_or_default()
    }

    /// Lets go of runs in memory up to the frame with this sequence.
    pub(super) fn forget_tail(&self, sequence: u64) {
        let mut state = self.state.lock();
        while state.tail.front().is_some_and(|chunk| chunk.sequence <= sequence) {
            state.tail.pop_front();
        }
    }

    /// Bytes that compaction has removed, as the index counts them.
    fn removed_bytes(&self) -> Result<i64, StorageError> {
        Ok(self.shared.index.log(self.partition)?.map_or(0, |record| record.removed_bytes))
    }

    /// Waits until the index knows everything that was appended.
    fn settle(&self) -> Result<(), StorageError> {
        self.shared.ask(|reply| Command::Sync { reply })
    }

    /// Cuts off everything from `end` on; `left` is what is left of a run that holds it.
    fn cut(&self, end: i64, left: Option<Run>) -> Result<LogEnds, StorageError> {
        self.shared.change(Entry::Truncate(self.partition, end, left))?;
        let last = self.shared.index.last_run(self.partition)?.map(|placed| placed.run);
        let removed_bytes = self.removed_bytes()?;
        let ends = {
            let mut state = self.state.lock();
            state.cut(end, last);
            state.removed_bytes = removed_bytes;
            state.ends()
        };
        self.tell(&ends);
        Ok(ends)
    }

    /// For a change: nobody else makes one while this is held, and the log is still there.
    fn changing(&self) -> Result<MutexGuard<'_, ()>, StorageError> {
        let changing = self.changing.lock();
        if self.state.lock().gone { Err(StorageError::Gone) } else { Ok(changing) }
    }

    fn tell(&self, ends: &LogEnds) {
        if let Some(listener) = self.listener.upgrade() {
            listener.durable_end_moved(ends.durable_end, ends.durable_bytes).wake();
        }
    }
}

impl PartitionLog for JournalLog {
    fn append(&self, batch: AppendBatch, admission: Arc<Admission>) -> Result<(), StorageError> {
        let mut state = self.state.lock();
        if state.gone {
            return Err(StorageError::Gone);
        }
        let header = batch.header;
        // What a follower is sent of a compacted log has gaps.
        if header.base_offset < state.log_end {
            return Err(StorageError::NotContiguous {
                base_offset: header.base_offset,
                log_end: state.log_end,
            });
        }
        let limit = self.shared.max_batch_bytes();
        if batch.bytes.len() > limit {
            return Err(StorageError::TooLarge { size: batch.bytes.len(), limit });
        }
        let Some(log) = self.this.upgrade() else { return Err(StorageError::Gone) };
        if self.shared.queue.push(Command::Append { log, batch: batch.clone(), admission }).is_err() {
            return Err(self.shared.why_closed());
        }
        // Under the lock that publishing takes too: the writer may be through with it already.
        state.queued.push(batch);
        state.epochs.begin(header.partition_leader_epoch, header.base_offset);
        state.log_end = header.next_offset();
        Ok(())
    }

    fn ends(&self) -> LogEnds {
        self.state.lock().ends()
    }

    fn read_memory(&self, range: ReadRange) -> Result<Option<RecordBytes>, StorageError> {
        let bounded = {
            let state = self.state.lock();
            let Some(bounded) = state.bounded(range)? else { return Ok(Some(RecordBytes::new())) };
            if let Some(records) = state.read_tail(bounded) {
                return Ok(Some(records));
            }
            bounded
        };
        Ok(self.read_ahead_of(bounded))
    }

    fn read(&self, range: ReadRange) -> Result<RecordBytes, StorageError> {
        self.read_range(range)
    }

    fn truncate(&self, offset: i64) -> Result<LogEnds, StorageError> {
        let _changing = self.changing()?;
        self.settle()?;
        let ends = self.ends();
        if offset >= ends.log_end {
            return Ok(ends);
        }
        if offset < ends.log_start {
            return Err(out_of_range(offset, &ends));
        }
        let (end, left) = self.find_cut(offset)?;
        self.cut(end, left)
    }

    fn start_anew(&self, offset: i64) -> Result<LogEnds, StorageError> {
        let _changing = self.changing()?;
        self.settle()?;
        let ends = self.cut(self.ends().log_start.min(offset), None)?;
        if offset == ends.log_end {
            return Ok(ends);
        }
        self.shared.change(Entry::LogStart(self.partition, offset))?;
        let ends = {
            let mut state = self.state.lock();
            (state.durable_end, state.log_end) = (offset, offset);
            state.move_log_start(offset, None);
            state.ends()
        };
        self.tell(&ends);
        Ok(ends)
    }

    fn set_log_start(&self, log_start: i64) -> Result<(), StorageError> {
        let _changing = self.changing()?;
        let ends = self.ends();
        if log_start > ends.durable_end {
            return Err(out_of_range(log_start, &ends));
        }
        if log_start <= ends.log_start {
            return Ok(());
        }
        // Durable first: a log start that readers have seen must not move back.
        self.shared.change(Entry::LogStart(self.partition, log_start))?;
        let first = self.shared.index.first_run(self.partition)?.map(|placed| placed.run);
        let removed_bytes = self.removed_bytes()?;
        let mut state = self.state.lock();
        state.move_log_start(log_start, first);
        state.removed_bytes = removed_bytes;
        Ok(())
    }

    fn batch_by_time(&self, timestamp: i64, from: i64) -> Result<Option<Bytes>, StorageError> {
        self.find_by_time(timestamp, from)
    }

    fn batch_with_max_timestamp(&self, offsets: Range<i64>) -> Result<Option<Bytes>, StorageError> {
        self.find_max_timestamp(&offsets)
    }

    fn begin_epoch(&self, leader_epoch: i32) {
        let mut state = self.state.lock();
        let log_end = state.log_end;
        state.epochs.begin(leader_epoch, log_end);
    }

    fn epoch_end(&self, leader_epoch: i32) -> Option<EpochEnd> {
        let state = self.state.lock();
        state.epochs.end_of(leader_epoch, state.log_end)
    }

    fn epoch_at(&self, offset: i64) -> Option<i32> {
        self.state.lock().epochs.epoch_at(offset)
    }

    fn latest_epoch(&self) -> Option<i32> {
        self.state.lock().epochs.latest()
    }

    fn replay(&self, from: i64, visit: &mut dyn FnMut(&BatchHeader)) -> Result<(), StorageError> {
        self.replay_from(from, visit)
    }

    fn set_settings(&self, settings: LogSettings) {
        self.state.lock().settings = settings;
    }

    fn retain(&self, now_ms: i64, until: i64) -> Result<u64, StorageError> {
        let (settings, log_start, size) = {
            let state = self.state.lock();
            (state.settings, state.log_start, state.size())
        };
        let limited = settings.retention_ms.is_some() || settings.retention_bytes.is_some();
        if !settings.delete_old || !limited || size == 0 {
            return Ok(0);
        }
        self.settle()?;
        let mut new_start = log_start;
        let mut left = size;
        self.shared.index.runs_from(self.partition, 0, |placed| {
            let run = placed.run;
            let newest = if run.max_timestamp < 0 { run.written_ms } else { run.max_timestamp };
            let too_old = settings.retention_ms.is_some_and(|limit| now_ms.saturating_sub(newest) > limit);
            let rest = left.saturating_sub(u64::from(run.length));
            let too_much = settings.retention_bytes.is_some_and(|limit| rest >= limit);
            let due = run.next_offset() <= until && (too_old || too_much);
            if due {
                new_start = run.next_offset();
                left = rest;
            }
            due
        })?;
        self.set_log_start(new_start)?;
        Ok(size - left)
    }

    fn size(&self) -> u64 {
        self.state.lock().size()
    }

    fn dirt(&self, until: i64, now_ms: i64) -> Result<Dirt, StorageError> {
        self.look_at_dirt(until, now_ms)
    }

    fn compact(&self, job: &CompactionJob<'_>) -> Result<CompactionReport, StorageError> {
        self.compact_by(job)
    }

    fn size_below(&self, offset: i64) -> Result<u64, StorageError> {
        {
            let state = self.state.lock();
            if offset <= state.log_start {
                return Ok(0);
            }
            if offset >= state.durable_end {
                return Ok(state.size());
            }
        }
        self.settle()?;
        let placed = self.shared.index.run_at_or_before(self.partition, offset)?;
        let state = self.state.lock();
        let Some(run) = placed.map(|placed| placed.run) else { return Ok(0) };
        let whole = run.next_offset() <= offset;
        let end = if whole { run.log_end() } else { run.log_position };
        Ok(left_between(state.first_byte, end, state.removed_bytes).min(state.size()))
    }
}

impl State {
    fn ends(&self) -> LogEnds {
        LogEnds {
            log_start: self.log_start,
            durable_end: self.durable_end,
            log_end: self.log_end,
            durable_bytes: self.durable_bytes,
        }
    }

    fn size(&self) -> u64 {
        left_between(self.first_byte, self.end_byte, self.removed_bytes)
    }

    fn cut(&mut self, end: i64, last: Option<Run>) {
        self.cuts += 1;
        self.durable_end = end;
        self.log_end = end;
        self.log_start = self.log_start.min(end);
        self.queued.clear();
        self.epochs.truncate_end(end);
        // A run that was cut is read from the disk.
        while self.tail.back().is_some_and(|chunk| chunk.run.last_offset >= end) {
            self.tail.pop_back();
        }
        if self.tail.back().is_some_and(|chunk| chunk.run.next_offset() != end) {
            self.tail.clear();
        }
        self.end_byte = last.map_or(self.first_byte, |last| last.log_end());
        self.placed_bytes = self.end_byte;
        self.running_max_timestamp = last.map_or(-1, |last| last.running_max_timestamp);
    }

    fn move_log_start(&mut self, log_start: i64, first: Option<Run>) {
        if log_start <= self.log_start {
            return;
        }
        self.log_start = log_start;
        self.epochs.truncate_start(log_start);
        while self.tail.front().is_some_and(|chunk| chunk.run.last_offset < log_start) {
            self.tail.pop_front();
        }
        let in_memory = self.tail.front().map(|chunk| chunk.run);
        self.first_byte = first.or(in_memory).map_or(self.end_byte, |first| first.log_position);
    }

    /// `range` with what the reader may see as bound; `None` if nothing can lie in it.
    fn bounded(&self, range: ReadRange) -> Result<Option<ReadRange>, StorageError> {
        if self.gone {
            return Err(StorageError::Gone);
        }
        if range.offset < self.log_start || range.offset > self.log_end {
            return Err(out_of_range(range.offset, &self.ends()));
        }
        let until = range.until.min(self.ends().readable_end(range.reader));
        Ok((range.offset < until).then_some(ReadRange { until, ..range }))
    }

    /// Offset from which on records are in memory: what the disk has of them need not be read.
    fn memory_from(&self) -> i64 {
        self.tail.front().map_or(self.durable_end, |oldest| oldest.run.base_offset)
    }

    /// Reads from memory; `None` if the offset is older than what is there.
    fn read_tail(&self, range: ReadRange) -> Option<RecordBytes> {
        if range.offset < self.memory_from() {
            return None;
        }
        let first = self.tail.partition_point(|chunk| chunk.run.last_offset < range.offset);
        Some(self.read_tail_from(first, range))
    }

    /// Reads from memory, from the run with this number on, and what is queued behind the last one.
    fn read_tail_from(&self, first: usize, range: ReadRange) -> RecordBytes {
        let mut parts: Vec<Bytes> = Vec::new();
        let mut left = range;
        for chunk in self.tail.range(first..) {
            let run = &chunk.run;
            let all = run.base_offset >= left.offset
                && run.last_offset < left.until
                && chunk.bytes.len() <= left.max_bytes;
            let part = if all { 0..chunk.bytes.len() } else { pick(&chunk.bytes, left) };
            let whole_rest = part.end == chunk.bytes.len();
            if !part.is_empty() {
                left.max_bytes = left.max_bytes.saturating_sub(part.len());
                left.at_least_one = false;
                parts.push(chunk.bytes.slice(part));
            }
            if !whole_rest {
                return parts.into();
            }
        }
        self.queued.read(left, &mut parts);
        parts.into()
    }

    /// Lets go of runs in memory below `offset`, which are in the index.
    fn forget_below(&mut self, offset: i64) {
        while self.tail.front().is_some_and(|chunk| chunk.run.base_offset < offset) {
            self.tail.pop_front();
        }
    }
}

/// Bytes between two positions in a log, without those that compaction has removed.
fn left_between(start: u64, end: u64, removed_bytes: i64) -> u64 {
    let left = end.wrapping_sub(start).cast_signed().wrapping_sub(removed_bytes);
    u64::try_from(left).unwrap_or_default()
}

fn out_of_range(offset: i64, ends: &LogEnds) -> StorageError {
    StorageError::OffsetOutOfRange { offset, log_start: ends.log_start, log_end: ends.log_end }
}
