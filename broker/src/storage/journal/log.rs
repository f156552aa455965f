//! One partition's log: its pointers, its newest runs in memory, and reading.
//!
//! Everything below the durable end that is not in memory is in the index; what the index does not know yet is in
//! memory. A reader looks there first and needs no more than its own lock.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use millrace_protocol::RecordBytes;
use millrace_protocol::records::BatchHeader;
use parking_lot::Mutex;

use super::Shared;
use super::frame::{Entry, Run};
use super::keys::PlacedRun;
use super::writer::{Command, Written};
use crate::metadata::image::TopicIdPartition;
use crate::storage::batch::{StoredBatchError, WholeBatches, check_layout, check_sums};
use crate::storage::{
    Admission, AppendBatch, Durability, EpochCache, EpochEnd, LogEnds, LogListener, LogSettings,
    PartitionLog, ReadRange, StorageError,
};

/// Most bytes that one read from the disk returns, whatever was asked for.
const MAX_COLD_READ: usize = 8 << 20;

/// Tries to find a run that moves to another place while it is being looked up.
const PLACE_TRIES: usize = 8;

/// See the module documentation.
pub(super) struct JournalLog {
    id: u64,
    partition: TopicIdPartition,
    shared: Arc<Shared>,
    listener: Weak<dyn LogListener>,
    this: Weak<Self>,
    state: Mutex<State>,
}

/// A log as the index knows it.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) log_start: i64,
    pub(super) end: i64,
    pub(super) epochs: EpochCache,
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
    /// The newest runs, oldest first; without a gap, and up to the durable end if there are any.
    tail: VecDeque<Chunk>,
    /// Largest timestamp and bytes up to the last run that the writer has placed.
    running_max_timestamp: i64,
    placed_bytes: u64,
    /// Position in the log of the first byte that is left, and after the last that is durable.
    first_byte: u64,
    end_byte: u64,
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
        let end_byte = found.last.map_or(0, |last| last.log_position + u64::from(last.length));
        let state = State {
            settings,
            log_start: found.log_start,
            durable_end: found.end,
            log_end: found.end,
            durable_bytes: 0,
            epochs: found.epochs,
            tail: VecDeque::new(),
            running_max_timestamp: found.last.map_or(-1, |last| last.running_max_timestamp),
            placed_bytes: end_byte,
            first_byte: found.first.map_or(end_byte, |first| first.log_position),
            end_byte,
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

    pub(super) fn mark_gone(&self) {
        let mut state = self.state.lock();
        state.gone = true;
        state.tail.clear();
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
        state.placed_bytes += u64::from(run.length);
        Run { running_max_timestamp: state.running_max_timestamp, log_position, ..run }
    }

    /// For the writer: `runs` are as durable as the log asks for.
    pub(super) fn publish(&self, runs: Vec<Written>) {
        let (durable_end, durable_bytes) = {
            let mut state = self.state.lock();
            if state.gone {
                return;
            }
            for Written { run, bytes, sequence } in runs {
                state.durable_end = run.next_offset();
                state.durable_bytes += u64::from(run.length);
                state.end_byte = run.log_position + u64::from(run.length);
                state.tail.push_back(Chunk { run, bytes, sequence });
            }
            (state.durable_end, state.durable_bytes)
        };
        if let Some(listener) = self.listener.upgrade() {
            listener.durable_end_moved(durable_end, durable_bytes);
        }
    }

    /// Lets go of runs in memory up to the frame with this sequence.
    pub(super) fn forget_tail(&self, sequence: u64) {
        let mut state = self.state.lock();
        while state.tail.front().is_some_and(|chunk| chunk.sequence <= sequence) {
            state.tail.pop_front();
        }
    }

    fn change(&self, entry: Entry) -> Result<(), StorageError> {
        self.shared.ask(|reply| Command::Change { entry, reply })
    }

    /// Waits until the index knows everything that was appended.
    fn settle(&self) -> Result<(), StorageError> {
        self.shared.ask(|reply| Command::Sync { reply })
    }

    /// Cuts off everything from `end` on; `left` is what is left of a run that holds it.
    fn cut(&self, end: i64, left: Option<Run>) -> Result<LogEnds, StorageError> {
        self.change(Entry::Truncate(self.partition, end, left))?;
        let last = self.shared.index.last_run(self.partition)?.map(|placed| placed.run);
        let ends = {
            let mut state = self.state.lock();
            state.cut(end, last);
            state.ends()
        };
        self.tell(&ends);
        Ok(ends)
    }

    fn tell(&self, ends: &LogEnds) {
        if let Some(listener) = self.listener.upgrade() {
            listener.durable_end_moved(ends.durable_end, ends.durable_bytes);
        }
    }

    /// The bytes of a run, wherever it is now; `None` if it is gone.
    fn run_bytes(&self, placed: PlacedRun) -> Result<Option<Bytes>, StorageError> {
        Ok(self.runs_bytes(&[placed])?.map(|(bytes, _)| bytes))
    }

    /// The bytes of the first of some runs, and of those after it that follow it on the disk, in one read; and how many
    /// runs that are. `None` if the first is gone.
    ///
    /// They are laid out as the index says, or it is an error for the first run and the end for those after it. Their
    /// checksums are left to whoever reads them, as in Kafka.
    fn runs_bytes(&self, runs: &[PlacedRun]) -> Result<Option<(Bytes, usize)>, StorageError> {
        let Some(first) = runs.first() else { return Ok(None) };
        if let Some(segment) = self.shared.segments.get(first.segment) {
            let adjacent = |pair: &&[PlacedRun]| {
                pair[0].segment == pair[1].segment && pair[0].end_position() == u64::from(pair[1].position)
            };
            let count = 1 + runs.windows(2).take_while(adjacent).count();
            let length = runs[..count].iter().map(|placed| placed.run.length as usize).sum();
            let mut bytes = segment.read(u64::from(first.position), length)?;
            let (mut checked, mut good) = (0, 0);
            for placed in &runs[..count] {
                let end = checked + placed.run.length as usize;
                match self.check(*placed, &bytes[checked..end]) {
                    Ok(()) => (checked, good) = (end, good + 1),
                    Err(error) if good == 0 => return Err(error),
                    Err(_reported_by_the_next_read) => break,
                }
            }
            bytes.truncate(checked);
            return Ok(Some((bytes, good)));
        }
        // Moved since it was looked up, or deleted.
        let mut placed = *first;
        for _ in 0..PLACE_TRIES {
            match self.shared.index.run_at_or_before(self.partition, placed.run.base_offset)? {
                Some(found) if found.run.base_offset == placed.run.base_offset => placed = found,
                _ => return Ok(None),
            }
            if let Some(segment) = self.shared.segments.get(placed.segment) {
                let bytes = segment.read(u64::from(placed.position), placed.run.length as usize)?;
                self.check(placed, &bytes)?;
                return Ok(Some((bytes, 1)));
            }
        }
        Err(StorageError::Damaged {
            path: self.shared.segments.directory().to_path_buf(),
            position: u64::from(placed.position),
            problem: format!(
                "segment {}, which holds records of {:?}, is not there",
                placed.segment, self.partition
            ),
        })
    }

    fn check(&self, placed: PlacedRun, bytes: &[u8]) -> Result<(), StorageError> {
        let Run { base_offset, last_offset, leader_epoch, .. } = placed.run;
        check_layout(bytes, base_offset, last_offset, leader_epoch)
            .map_err(|(position, error)| self.damaged(placed, position, &error))
    }

    fn damaged(&self, placed: PlacedRun, position: usize, error: &StoredBatchError) -> StorageError {
        let segment = self.shared.segments.get(placed.segment);
        let path = segment
            .map_or_else(|| self.shared.segments.directory().to_path_buf(), |it| it.path().to_path_buf());
        let position = u64::from(placed.position) + position as u64;
        let problem =
            format!("records of {:?} from offset {}: {error}", self.partition, placed.run.base_offset);
        StorageError::Damaged { path, position, problem }
    }

    /// What the index knows of a range, and whether it knows anything in it, however large.
    fn read_cold(&self, range: ReadRange) -> Result<(RecordBytes, bool), StorageError> {
        let mut left = ReadRange { max_bytes: range.max_bytes.min(MAX_COLD_READ), ..range };
        let mut runs = Vec::new();
        let mut planned = 0;
        self.shared.index.runs_from(self.partition, range.offset, |placed| {
            if placed.run.base_offset >= range.until || (planned > 0 && planned >= left.max_bytes) {
                return false;
            }
            planned += placed.run.length as usize;
            runs.push(placed);
            true
        })?;
        let mut parts = Vec::new();
        let mut rest = runs.as_slice();
        loop {
            let (bytes, count) = match self.runs_bytes(rest) {
                Ok(Some(found)) => found,
                Ok(None) => break,
                Err(error) if parts.is_empty() => return Err(error),
                // What comes before it is good; whoever goes on behind that gets the error.
                Err(_reported_by_the_next_read) => break,
            };
            rest = &rest[count..];
            let part = pick(&bytes, left);
            let whole_rest = part.end == bytes.len();
            if !part.is_empty() {
                left.max_bytes = left.max_bytes.saturating_sub(part.len());
                left.at_least_one = false;
                parts.push(bytes.slice(part));
            }
            if !whole_rest {
                break;
            }
        }
        Ok((parts.into(), !runs.is_empty()))
    }

    /// The first batch of a run that `matches`.
    fn batch_in(
        &self,
        placed: PlacedRun,
        matches: impl Fn(&BatchHeader) -> bool,
    ) -> Result<Option<Bytes>, StorageError> {
        Ok(self.run_bytes(placed)?.and_then(|bytes| first_batch(&bytes, matches)))
    }

    /// Runs that are in memory, with their bytes.
    fn chunks(&self) -> Vec<(Run, Bytes)> {
        self.state.lock().tail.iter().map(|chunk| (chunk.run, chunk.bytes.clone())).collect()
    }

    /// Where the log ends if everything from `offset` on is cut off, and what is left of the run that is cut.
    fn find_cut(&self, offset: i64) -> Result<(i64, Option<Run>), StorageError> {
        let index = &self.shared.index;
        let Some(placed) = index.run_at_or_before(self.partition, offset)? else { return Ok((offset, None)) };
        if placed.run.last_offset < offset {
            // The same, unless there is a gap.
            return Ok((placed.run.next_offset(), None));
        }
        let bytes = self.run_bytes(placed)?.ok_or(StorageError::Gone)?;
        let (mut length, mut max_timestamp, mut end) = (0, -1, placed.run.base_offset);
        for (position, header) in WholeBatches::new(&bytes) {
            if header.last_offset() >= offset {
                break;
            }
            length = position + header.size_in_bytes();
            max_timestamp = max_timestamp.max(header.max_timestamp);
            end = header.next_offset();
        }
        if length == 0 {
            return Ok((end, None));
        }
        let before = index.run_at_or_before(self.partition, placed.run.base_offset - 1)?;
        let running = before.map_or(-1, |before| before.run.running_max_timestamp).max(max_timestamp);
        let left = Run {
            last_offset: end - 1,
            max_timestamp,
            running_max_timestamp: running,
            length: u32::try_from(length).expect("shorter than the run"),
            ..placed.run
        };
        Ok((end, Some(left)))
    }
}

impl PartitionLog for JournalLog {
    fn append(&self, batch: AppendBatch, admission: Arc<Admission>) -> Result<(), StorageError> {
        let mut state = self.state.lock();
        if state.gone {
            return Err(StorageError::Gone);
        }
        let header = batch.header;
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
        let size = batch.bytes.len() as u64;
        if self.shared.queue.push(Command::Append { log, batch, admission }).is_err() {
            return Err(self.shared.why_closed());
        }
        state.epochs.begin(header.partition_leader_epoch, header.base_offset);
        state.log_end = header.next_offset();
        self.shared.appended_bytes.fetch_add(size, Ordering::Relaxed);
        Ok(())
    }

    fn ends(&self) -> LogEnds {
        self.state.lock().ends()
    }

    fn read_memory(&self, range: ReadRange) -> Result<Option<RecordBytes>, StorageError> {
        let state = self.state.lock();
        let Some(range) = state.bounded(range)? else { return Ok(Some(RecordBytes::new())) };
        Ok(state.read_tail(range))
    }

    fn read(&self, range: ReadRange) -> Result<RecordBytes, StorageError> {
        if let Some(bytes) = self.read_memory(range)? {
            return Ok(bytes);
        }
        let (bounded, in_memory) = {
            let state = self.state.lock();
            let Some(bounded) = state.bounded(range)? else { return Ok(RecordBytes::new()) };
            (bounded, state.tail.front().map(|chunk| chunk.run.base_offset))
        };
        let (bytes, found) = self.read_cold(bounded)?;
        // A gap before what was in memory only: nothing below that is missing in the index. Nothing in `bytes` is no
        // proof of a gap, as the first batch may be larger than what was asked for.
        if let Some(offset) = in_memory.filter(|offset| !found && *offset < bounded.until) {
            let rest = ReadRange { offset, ..bounded };
            let in_memory = self.state.lock().read_tail(rest);
            return in_memory.map_or_else(|| self.read_cold(rest).map(|(bytes, _)| bytes), Ok);
        }
        if bytes.is_empty() && bounded.at_least_one {
            // Retention may have taken it while it was being read: then the offset is out of range now.
            self.state.lock().bounded(range)?;
        }
        Ok(bytes)
    }

    fn truncate(&self, offset: i64) -> Result<LogEnds, StorageError> {
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
        self.settle()?;
        let ends = self.cut(self.ends().log_start.min(offset), None)?;
        if offset == ends.log_end {
            return Ok(ends);
        }
        self.change(Entry::LogStart(self.partition, offset))?;
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
        let ends = self.ends();
        if log_start > ends.durable_end {
            return Err(out_of_range(log_start, &ends));
        }
        if log_start <= ends.log_start {
            return Ok(());
        }
        // Durable first: a log start that readers have seen must not move back.
        self.change(Entry::LogStart(self.partition, log_start))?;
        let first = self.shared.index.first_run(self.partition)?.map(|placed| placed.run);
        self.state.lock().move_log_start(log_start, first);
        Ok(())
    }

    fn batch_by_time(&self, timestamp: i64, from: i64) -> Result<Option<Bytes>, StorageError> {
        let matches =
            |header: &BatchHeader| header.max_timestamp >= timestamp && header.last_offset() >= from;
        // In memory first: what leaves it while the index is searched is in the index.
        let chunks = self.chunks();
        let mut next = from;
        while let Some(placed) = self.shared.index.run_by_time(self.partition, timestamp, next)? {
            if let Some(batch) = self.batch_in(placed, matches)? {
                return Ok(Some(batch));
            }
            next = placed.run.next_offset();
        }
        let in_memory = chunks.iter().filter(|(run, _)| run.max_timestamp >= timestamp);
        Ok(in_memory.filter_map(|(_, bytes)| first_batch(bytes, matches)).next())
    }

    fn batch_with_max_timestamp(&self) -> Result<Option<Bytes>, StorageError> {
        let log_start = self.ends().log_start;
        let chunks = self.chunks();
        let counts = |header: &BatchHeader| header.last_offset() >= log_start;
        // The first run may begin below the log start: what its batches hold has to be looked at.
        let mut best: Option<(i64, Bytes)> = None;
        let mut candidate: Option<PlacedRun> = None;
        let mut cut: Option<PlacedRun> = None;
        self.shared.index.runs_from(self.partition, log_start, |placed| {
            if placed.run.base_offset < log_start {
                cut = Some(placed);
            } else if candidate.is_none_or(|best| placed.run.max_timestamp > best.run.max_timestamp) {
                candidate = Some(placed);
            }
            true
        })?;
        if let Some(bytes) = cut.map(|placed| self.run_bytes(placed)).transpose()?.flatten() {
            best = best_batch(best, &bytes, counts);
        }
        if let Some(placed) = candidate
            && best.as_ref().is_none_or(|(timestamp, _)| placed.run.max_timestamp > *timestamp)
            && let Some(bytes) = self.run_bytes(placed)?
        {
            best = best_batch(best, &bytes, counts);
        }
        for (_, bytes) in &chunks {
            best = best_batch(best, bytes, counts);
        }
        Ok(best.map(|(_, batch)| batch))
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
        let ends = self.ends();
        if from >= ends.durable_end {
            return Ok(());
        }
        self.settle()?;
        let mut runs = Vec::new();
        self.shared.index.runs_from(self.partition, from.max(ends.log_start), |placed| {
            runs.push(placed);
            true
        })?;
        for placed in runs {
            let Some(bytes) = self.run_bytes(placed)? else { continue };
            check_sums(&bytes).map_err(|(position, error)| self.damaged(placed, position, &error))?;
            WholeBatches::new(&bytes)
                .filter(|(_, header)| header.last_offset() >= from)
                .for_each(|(_, header)| visit(&header));
        }
        Ok(())
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
        let end = run.log_position + if whole { u64::from(run.length) } else { 0 };
        Ok(end.saturating_sub(state.first_byte).min(state.size()))
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
        self.end_byte.saturating_sub(self.first_byte)
    }

    fn cut(&mut self, end: i64, last: Option<Run>) {
        self.durable_end = end;
        self.log_end = end;
        self.log_start = self.log_start.min(end);
        self.epochs.truncate_end(end);
        // A run that was cut is read from the disk.
        while self.tail.back().is_some_and(|chunk| chunk.run.last_offset >= end) {
            self.tail.pop_back();
        }
        if self.tail.back().is_some_and(|chunk| chunk.run.next_offset() != end) {
            self.tail.clear();
        }
        self.end_byte = last.map_or(self.first_byte, |last| last.log_position + u64::from(last.length));
        self.first_byte = self.first_byte.min(self.end_byte);
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

    /// `range` with the durable end as bound; `None` if nothing can lie in it.
    fn bounded(&self, range: ReadRange) -> Result<Option<ReadRange>, StorageError> {
        if self.gone {
            return Err(StorageError::Gone);
        }
        if range.offset < self.log_start || range.offset > self.log_end {
            return Err(out_of_range(range.offset, &self.ends()));
        }
        let until = range.until.min(self.durable_end);
        Ok((range.offset < until).then_some(ReadRange { until, ..range }))
    }

    /// Reads from memory; `None` if the offset is older than what is there.
    fn read_tail(&self, range: ReadRange) -> Option<RecordBytes> {
        if self.tail.front()?.run.base_offset > range.offset {
            return None;
        }
        let first = self.tail.partition_point(|chunk| chunk.run.last_offset < range.offset);
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
                break;
            }
        }
        Some(parts.into())
    }
}

fn first_batch(bytes: &Bytes, matches: impl Fn(&BatchHeader) -> bool) -> Option<Bytes> {
    WholeBatches::new(bytes)
        .find(|(_, header)| matches(header))
        .map(|(position, header)| bytes.slice(position..position + header.size_in_bytes()))
}

/// The better of `best` and the first batch with the largest timestamp in `bytes` that `counts`.
fn best_batch(
    best: Option<(i64, Bytes)>,
    bytes: &Bytes,
    counts: impl Fn(&BatchHeader) -> bool,
) -> Option<(i64, Bytes)> {
    WholeBatches::new(bytes).filter(|(_, header)| counts(header)).fold(best, |best, (position, header)| {
        if best.as_ref().is_some_and(|(timestamp, _)| *timestamp >= header.max_timestamp) {
            return best;
        }
        Some((header.max_timestamp, bytes.slice(position..position + header.size_in_bytes())))
    })
}

/// The whole batches of `bytes` that `range` asks for.
fn pick(bytes: &[u8], range: ReadRange) -> Range<usize> {
    let mut start = None;
    let mut end = 0;
    for (position, header) in WholeBatches::new(bytes) {
        if header.last_offset() < range.offset {
            continue;
        }
        if header.base_offset >= range.until {
            break;
        }
        let from = *start.get_or_insert(position);
        let next = position + header.size_in_bytes();
        let fits = next - from <= range.max_bytes || (from == position && range.at_least_one);
        if !fits {
            break;
        }
        end = next;
    }
    let start = start.unwrap_or(0);
    start..end.max(start)
}

fn out_of_range(offset: i64, ends: &LogEnds) -> StorageError {
    StorageError::OffsetOutOfRange { offset, log_start: ends.log_start, log_end: ends.log_end }
}
