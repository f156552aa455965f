//! One partition's log: what is known of it in memory, and reading.
//!
//! The state describes durable data only, apart from the log end and the leader epochs, which include appends on
//! their way. The writer is the only one to change files; it tells this what it has done.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use bytes::{Bytes, BytesMut};
use millrace_protocol::records::BatchHeader;
use parking_lot::Mutex;

use super::Shared;
use super::checkpoint::{Entry, SegmentMark};
use super::recovery::Recovered;
use super::segment::{HeaderWalk, Segment, SparseIndex, extend_index, file_name, read_exact, read_failed};
use super::writer::Command;
use crate::metadata::image::TopicIdPartition;
use crate::storage::batch::WholeBatches;
use crate::storage::{
    Admission, AppendBatch, EpochCache, EpochEnd, LogEnds, LogListener, LogSettings, PartitionLog, ReadRange,
    StorageError,
};

/// Tries to store an index that a busy writer keeps outrunning.
const INDEX_TRIES: usize = 4;

/// A piece of a segment that the writer has written: consecutive batches.
#[derive(Debug)]
pub(super) struct Run {
    /// Base offset of the segment.
    pub(super) base_offset: i64,
    /// Whether the segment was begun for this run.
    pub(super) is_new: bool,
    /// Position of the run in the segment.
    pub(super) position: u64,
    pub(super) began_ms: i64,
    pub(super) bytes: Bytes,
    /// Positions in the segment and headers.
    pub(super) batches: Vec<(u64, BatchHeader)>,
}

/// Where a log is to be cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Base offset of the segment that becomes the last.
    pub(super) segment: i64,
    /// Size that it gets.
    pub(super) position: u64,
    /// Largest timestamp before that.
    pub(super) max_timestamp: i64,
    /// Log end afterwards.
    pub(super) end_offset: i64,
}

pub(super) struct FileLog {
    id: u64,
    partition: TopicIdPartition,
    directory: PathBuf,
    shared: Arc<Shared>,
    listener: Weak<dyn LogListener>,
    this: Weak<FileLog>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    settings: LogSettings,
    log_start: i64,
    durable_end: i64,
    log_end: i64,
    durable_bytes: u64,
    /// In order; the last one is appended to. None while nothing was ever written.
    segments: Vec<Segment>,
    epochs: EpochCache,
    tail: VecDeque<Chunk>,
    synced: SyncMark,
    gone: bool,
}

/// Newest data, kept in memory. Chunks follow each other without a gap, up to the durable end.
#[derive(Debug)]
struct Chunk {
    base_offset: i64,
    end_offset: i64,
    bytes: Bytes,
}

/// Everything before this has been synced.
#[derive(Clone, Copy, Debug, Default)]
struct SyncMark {
    segment: i64,
    size: u64,
    end_offset: i64,
}

/// A segment as it was when the lock was last held.
#[derive(Clone, Copy, Debug)]
struct SegmentView {
    base_offset: i64,
    size: u64,
    max_timestamp: i64,
}

impl std::fmt::Debug for FileLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileLog").field("partition", &self.partition).finish_non_exhaustive()
    }
}

impl FileLog {
    pub(super) fn new(
        shared: Arc<Shared>,
        partition: TopicIdPartition,
        directory: PathBuf,
        settings: LogSettings,
        recovered: Recovered,
        listener: Weak<dyn LogListener>,
    ) -> Arc<Self> {
        let synced = recovered.segments.last().map_or_else(SyncMark::default, |last| SyncMark {
            segment: last.base_offset,
            size: last.size,
            end_offset: recovered.end_offset,
        });
        let state = State {
            settings,
            log_start: recovered.log_start,
            durable_end: recovered.end_offset,
            log_end: recovered.end_offset,
            durable_bytes: 0,
            segments: recovered.segments,
            epochs: recovered.epochs,
            tail: VecDeque::new(),
            synced,
            gone: false,
        };
        let id = shared.next_log.fetch_add(1, Ordering::Relaxed);
        Arc::new_cyclic(|this| Self {
            id,
            partition,
            directory,
            shared,
            listener,
            this: Weak::clone(this),
            state: Mutex::new(state),
        })
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn settings(&self) -> LogSettings {
        self.state.lock().settings
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

    pub(super) fn durable_end(&self) -> i64 {
        self.state.lock().durable_end
    }

    /// For the writer: an empty run at the end of the last segment.
    pub(super) fn active_run(&self) -> Option<Run> {
        let state = self.state.lock();
        state.segments.last().map(|active| Run {
            base_offset: active.base_offset,
            is_new: false,
            position: active.size,
            began_ms: active.began_ms,
            bytes: Bytes::new(),
            batches: Vec::new(),
        })
    }

    /// For the writer: `runs` have been written and, unless the log's durability asks for less, synced.
    pub(super) fn publish(&self, runs: Vec<Run>, synced: bool) {
        let mut cached = Vec::new();
        let durable_end = {
            let mut state = self.state.lock();
            for run in runs {
                state.add(&run);
                if let (false, Some((_, first))) = (run.bytes.is_empty(), run.batches.first()) {
                    if self.shared.tail.accepts(run.bytes.len()) {
                        cached.push(run.bytes.len());
                        let (base_offset, end_offset) = (first.base_offset, state.durable_end);
                        state.tail.push_back(Chunk { base_offset, end_offset, bytes: run.bytes });
                    } else {
                        state.tail.clear();
                    }
                }
            }
            if synced {
                state.mark_synced();
            }
            state.durable_end
        };
        for bytes in cached {
            for log in self.shared.tail.note(Weak::clone(&self.this), bytes) {
                if let Some(log) = log.upgrade() {
                    log.state.lock().tail.pop_front();
                }
            }
        }
        if let Some(listener) = self.listener.upgrade() {
            listener.durable_end_moved(durable_end);
        }
    }

    /// For the writer: what has been published is synced now.
    pub(super) fn mark_synced(&self) {
        self.state.lock().mark_synced();
    }

    /// For the writer: base offsets of the segments after the one at `base_offset`.
    pub(super) fn segments_after(&self, base_offset: i64) -> Vec<i64> {
        let state = self.state.lock();
        state.segments.iter().map(|segment| segment.base_offset).filter(|base| *base > base_offset).collect()
    }

    /// For the writer: the files have been cut.
    pub(super) fn cut(&self, cut: &Cut) -> LogEnds {
        let ends = self.cut_state(cut);
        if let Some(listener) = self.listener.upgrade() {
            listener.durable_end_moved(ends.durable_end);
        }
        ends
    }

    fn cut_state(&self, cut: &Cut) -> LogEnds {
        let mut state = self.state.lock();
        state.segments.retain(|segment| segment.base_offset <= cut.segment);
        if let Some(last) = state.segments.last_mut() {
            last.size = cut.position;
            last.max_timestamp = cut.max_timestamp;
            last.index = None;
        }
        state.tail.clear();
        state.durable_end = cut.end_offset;
        state.log_end = cut.end_offset;
        state.log_start = state.log_start.min(cut.end_offset);
        state.epochs.truncate_end(cut.end_offset);
        state.mark_synced();
        state.ends()
    }

    /// For the writer: whether retention wants even the last segment.
    pub(super) fn active_is_due(&self, now_ms: i64, until: i64) -> bool {
        let state = self.state.lock();
        let has_data = state.segments.last().is_some_and(|active| active.size > 0);
        has_data && state.due_segments(now_ms, until) == state.segments.len()
    }

    /// For the writer: takes out the segments that retention wants, except the last. Returns base offsets and sizes.
    pub(super) fn take_due_segments(&self, now_ms: i64, until: i64) -> Vec<(i64, u64)> {
        let mut state = self.state.lock();
        let due = state.due_segments(now_ms, until).min(state.segments.len().saturating_sub(1));
        let removed =
            state.segments.drain(..due).map(|segment| (segment.base_offset, segment.size)).collect();
        if let Some(first) = state.segments.first() {
            let log_start = state.log_start.max(first.base_offset);
            state.move_log_start(log_start);
        }
        removed
    }

    /// What the checkpoint may say of this log; `None` while it has no files.
    pub(super) fn checkpoint_entry(&self) -> Option<Entry> {
        let state = self.state.lock();
        if state.segments.is_empty() || state.gone {
            return None;
        }
        let synced = state.synced;
        let segments = state.segments.iter().filter(|segment| segment.base_offset <= synced.segment);
        Some(Entry {
            known_at: None,
            log_start: state.log_start,
            end_offset: synced.end_offset,
            segments: segments
                .map(|segment| SegmentMark {
                    base_offset: segment.base_offset,
                    size: if segment.base_offset == synced.segment { synced.size } else { segment.size },
                    max_timestamp: segment.max_timestamp,
                })
                .collect(),
            epochs: state
                .epochs
                .entries()
                .iter()
                .filter(|epoch| epoch.start_offset < synced.end_offset)
                .copied()
                .collect(),
            state: None,
        })
    }

    /// Replaces this log's entry in the checkpoint file, if it has one or `or_insert` says so.
    fn rewrite_checkpoint(
        &self,
        or_insert: bool,
        change: impl FnOnce(&mut Entry),
    ) -> Result<(), StorageError> {
        let mut current = self.shared.checkpoint.lock();
        let mut entry = match current.entries.get(&self.partition) {
            Some(entry) => entry.clone(),
            None if or_insert => match self.checkpoint_entry() {
                Some(entry) => entry,
                None => return Ok(()),
            },
            None => return Ok(()),
        };
        change(&mut entry);
        let mut next = current.entries.clone();
        next.insert(self.partition, entry);
        current.replace(next, &self.shared.directory, self.shared.disk.as_ref())
    }

    fn file(&self, base_offset: i64) -> Result<(Arc<File>, PathBuf), StorageError> {
        let path = self.directory.join(file_name(base_offset));
        match self.shared.handles.get((self.id, base_offset), &path) {
            Ok(file) => Ok((file, path)),
            Err(source) => Err(read_failed(&path, source)),
        }
    }

    /// Calls `look` with the index of a segment, which is built if there is none.
    fn with_index<T>(&self, base_offset: i64, look: impl Fn(&SparseIndex) -> T) -> Result<T, StorageError> {
        let mut built = SparseIndex::default();
        let mut covered = 0;
        for _ in 0..INDEX_TRIES {
            let size = {
                let mut state = self.state.lock();
                let Some(segment) = state.segment_mut(base_offset) else { return Err(StorageError::Gone) };
                if let Some(index) = &segment.index {
                    return Ok(look(index));
                }
                if covered > 0 && covered == segment.size {
                    return Ok(look(segment.index.insert(built)));
                }
                segment.size
            };
            if size == 0 {
                break;
            }
            let (file, path) = self.file(base_offset)?;
            extend_index(&mut built, &file, &path, covered, size)?;
            covered = size;
        }
        Ok(look(&built))
    }

    /// Reads from files what `range`, which lies within the bounds, asks for.
    fn read_files(&self, range: ReadRange) -> Result<Bytes, StorageError> {
        let segments = self.state.lock().views_from(range.offset);
        for segment in segments {
            let position = self.with_index(segment.base_offset, |index| index.before_offset(range.offset))?;
            let (file, path) = self.file(segment.base_offset)?;
            let mut walk = HeaderWalk::new(&file, &path, position, segment.size);
            let found = loop {
                match walk.next()? {
                    Some((position, header)) if header.last_offset() >= range.offset => {
                        break Some((position, header));
                    }
                    Some(_) => {}
                    None => break None,
                }
            };
            let Some((position, first)) = found else { continue };
            if first.base_offset >= range.until {
                return Ok(Bytes::new());
            }
            let left = usize::try_from(segment.size - position).unwrap_or(usize::MAX);
            let length = if first.size_in_bytes() <= range.max_bytes {
                range.max_bytes.min(left)
            } else if range.at_least_one {
                first.size_in_bytes()
            } else {
                return Ok(Bytes::new());
            };
            let bytes = Bytes::from(read_exact(&file, &path, position, length)?);
            let part = pick(&bytes, range);
            return Ok(bytes.slice(part));
        }
        Ok(Bytes::new())
    }

    fn batch_at(&self, segment: i64, position: u64, header: &BatchHeader) -> Result<Bytes, StorageError> {
        let (file, path) = self.file(segment)?;
        read_exact(&file, &path, position, header.size_in_bytes()).map(Bytes::from)
    }

    /// Finds where the log has to be cut so that no batch holds `offset` or later ones.
    fn find_cut(&self, offset: i64) -> Result<Option<Cut>, StorageError> {
        let segments = self.state.lock().views_from(offset);
        for segment in segments {
            let (file, path) = self.file(segment.base_offset)?;
            let mut walk = HeaderWalk::new(&file, &path, 0, segment.size);
            let mut max_timestamp = -1;
            while let Some((position, header)) = walk.next()? {
                if header.last_offset() >= offset {
                    let end_offset = header.base_offset;
                    return Ok(Some(Cut {
                        segment: segment.base_offset,
                        position,
                        max_timestamp,
                        end_offset,
                    }));
                }
                max_timestamp = max_timestamp.max(header.max_timestamp);
            }
        }
        Ok(None)
    }
}

impl PartitionLog for FileLog {
    fn append(&self, batch: AppendBatch, admission: Arc<Admission>) -> Result<(), StorageError> {
        let mut state = self.state.lock();
        if state.gone {
            return Err(StorageError::Gone);
        }
        let header = batch.header;
        if header.base_offset != state.log_end {
            return Err(StorageError::NotContiguous {
                base_offset: header.base_offset,
                log_end: state.log_end,
            });
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

    fn read_memory(&self, range: ReadRange) -> Result<Option<Bytes>, StorageError> {
        let state = self.state.lock();
        let Some(range) = state.bounded(range)? else { return Ok(Some(Bytes::new())) };
        Ok(state.read_tail(range))
    }

    fn read(&self, range: ReadRange) -> Result<Bytes, StorageError> {
        if let Some(bytes) = self.read_memory(range)? {
            return Ok(bytes);
        }
        let Some(bounded) = self.state.lock().bounded(range)? else { return Ok(Bytes::new()) };
        match self.read_files(bounded) {
            Ok(bytes) => Ok(bytes),
            // Retention may have taken the segment while it was being read: then the offset is out of range now.
            Err(error) => {
                self.state.lock().bounded(range)?;
                Err(error)
            }
        }
    }

    fn truncate(&self, offset: i64) -> Result<LogEnds, StorageError> {
        self.shared.ask(|reply| Command::Sync { reply })?;
        let ends = self.ends();
        if offset >= ends.log_end {
            return Ok(ends);
        }
        if offset < ends.log_start {
            return Err(out_of_range(offset, &ends));
        }
        let Some(cut) = self.find_cut(offset)? else { return Ok(ends) };
        self.rewrite_checkpoint(false, |entry| cut_entry(entry, &cut))?;
        let log = self.this.upgrade().ok_or(StorageError::Gone)?;
        self.shared.ask(|reply| Command::Truncate { log, cut, reply })
    }

    fn set_log_start(&self, log_start: i64) -> Result<(), StorageError> {
        let ends = self.ends();
        if log_start > ends.durable_end {
            return Err(out_of_range(log_start, &ends));
        }
        if log_start <= ends.log_start {
            return Ok(());
        }
        self.shared.ask(|reply| Command::Sync { reply })?;
        // Durable first: a log start that readers have seen must not move back.
        self.rewrite_checkpoint(true, |entry| entry.log_start = log_start)?;
        let mut state = self.state.lock();
        if log_start > state.log_start {
            state.move_log_start(log_start);
        }
        Ok(())
    }

    fn batch_by_time(&self, timestamp: i64, from: i64) -> Result<Option<Bytes>, StorageError> {
        let segments = self.state.lock().views_from(from);
        for segment in segments.into_iter().filter(|segment| segment.max_timestamp >= timestamp) {
            let position = self.with_index(segment.base_offset, |index| {
                index.before_timestamp(timestamp).max(index.before_offset(from))
            })?;
            let (file, path) = self.file(segment.base_offset)?;
            let mut walk = HeaderWalk::new(&file, &path, position, segment.size);
            while let Some((position, header)) = walk.next()? {
                if header.max_timestamp >= timestamp && header.last_offset() >= from {
                    return self.batch_at(segment.base_offset, position, &header).map(Some);
                }
            }
        }
        Ok(None)
    }

    fn batch_with_max_timestamp(&self) -> Result<Option<Bytes>, StorageError> {
        let (log_start, segments) = {
            let state = self.state.lock();
            (state.log_start, state.views_from(state.log_start))
        };
        let mut best: Option<(SegmentView, u64, BatchHeader)> = None;
        for segment in segments {
            let best_timestamp = best.map_or(-1, |(_, _, header)| header.max_timestamp);
            if segment.max_timestamp <= best_timestamp {
                continue;
            }
            // Batches below the log start do not count, and the segment's own maximum may be one of them.
            let cut = log_start > segment.base_offset;
            let position = self.with_index(segment.base_offset, |index| {
                if cut {
                    index.before_offset(log_start)
                } else {
                    index.before_timestamp(segment.max_timestamp)
                }
            })?;
            let (file, path) = self.file(segment.base_offset)?;
            let mut walk = HeaderWalk::new(&file, &path, position, segment.size);
            while let Some((position, header)) = walk.next()? {
                let best_timestamp = best.map_or(-1, |(_, _, header)| header.max_timestamp);
                if header.last_offset() >= log_start && header.max_timestamp > best_timestamp {
                    best = Some((segment, position, header));
                }
                if header.max_timestamp == segment.max_timestamp && !cut {
                    break;
                }
            }
        }
        best.map(|(segment, position, header)| self.batch_at(segment.base_offset, position, &header))
            .transpose()
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
        let segments = {
            let state = self.state.lock();
            if from >= state.durable_end {
                return Ok(());
            }
            state.views_from(from)
        };
        for segment in segments {
            let position = self.with_index(segment.base_offset, |index| index.before_offset(from))?;
            let (file, path) = self.file(segment.base_offset)?;
            let mut walk = HeaderWalk::new(&file, &path, position, segment.size);
            while let Some((_, header)) = walk.next()? {
                if header.last_offset() >= from {
                    visit(&header);
                }
            }
        }
        Ok(())
    }

    fn set_settings(&self, settings: LogSettings) {
        self.state.lock().settings = settings;
    }

    fn retain(&self, now_ms: i64, until: i64) -> Result<u64, StorageError> {
        if self.state.lock().due_segments(now_ms, until) == 0 {
            return Ok(0);
        }
        let log = self.this.upgrade().ok_or(StorageError::Gone)?;
        let removed = self.shared.ask(|reply| Command::Retain { log, now_ms, until, reply })?;
        let mut freed = 0;
        // Oldest first: a crash in between leaves a log without a gap.
        for (path, size) in removed {
            match fs::remove_file(&path) {
                Ok(()) => freed += size,
                Err(source) => return Err(StorageError::Io { doing: "deleting", path, source }),
            }
        }
        Ok(freed)
    }

    fn size(&self) -> u64 {
        self.state.lock().size()
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
        self.segments.iter().map(|segment| segment.size).sum()
    }

    fn segment_mut(&mut self, base_offset: i64) -> Option<&mut Segment> {
        self.segments.iter_mut().find(|segment| segment.base_offset == base_offset)
    }

    /// Segments that can hold `offset` and later ones.
    fn views_from(&self, offset: i64) -> Vec<SegmentView> {
        let after = self.segments.partition_point(|segment| segment.base_offset <= offset);
        self.segments[after.saturating_sub(1)..]
            .iter()
            .map(|segment| SegmentView {
                base_offset: segment.base_offset,
                size: segment.size,
                max_timestamp: segment.max_timestamp,
            })
            .collect()
    }

    fn add(&mut self, run: &Run) {
        if run.is_new {
            self.segments.push(Segment::empty(run.base_offset, run.began_ms));
        }
        let segment = self.segments.last_mut().expect("a run belongs to the last segment");
        segment.size = run.position + run.bytes.len() as u64;
        for (position, header) in &run.batches {
            segment.max_timestamp = segment.max_timestamp.max(header.max_timestamp);
            if let Some(index) = &mut segment.index {
                index.note(*position, header);
            }
        }
        if let Some((_, last)) = run.batches.last() {
            self.durable_end = last.next_offset();
        }
        self.durable_bytes += run.bytes.len() as u64;
    }

    fn mark_synced(&mut self) {
        if let Some(last) = self.segments.last() {
            self.synced =
                SyncMark { segment: last.base_offset, size: last.size, end_offset: self.durable_end };
        }
    }

    fn move_log_start(&mut self, log_start: i64) {
        self.log_start = log_start;
        self.epochs.truncate_start(log_start);
        while self.tail.front().is_some_and(|chunk| chunk.end_offset <= log_start) {
            self.tail.pop_front();
        }
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
    fn read_tail(&self, range: ReadRange) -> Option<Bytes> {
        if self.tail.front()?.base_offset > range.offset {
            return None;
        }
        let first = self.tail.partition_point(|chunk| chunk.end_offset <= range.offset);
        let mut parts: Vec<Bytes> = Vec::new();
        let mut left = range;
        for chunk in self.tail.range(first..) {
            let part = pick(&chunk.bytes, left);
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
        match parts.len() {
            0 => Some(Bytes::new()),
            1 => parts.pop(),
            _ => {
                let mut joined = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
                parts.iter().for_each(|part| joined.extend_from_slice(part));
                Some(joined.freeze())
            }
        }
    }

    /// Number of segments at the start that are to be deleted (R1, R2), never past `until`.
    fn due_segments(&self, now_ms: i64, until: i64) -> usize {
        let settings = &self.settings;
        let mut size = self.size();
        let mut due = 0;
        for (at, segment) in self.segments.iter().enumerate() {
            let end = self.segments.get(at + 1).map_or(self.durable_end, |next| next.base_offset);
            if end > until {
                break;
            }
            let below_start = end <= self.log_start && at + 1 < self.segments.len();
            let newest = if segment.max_timestamp < 0 { segment.written_ms } else { segment.max_timestamp };
            let too_old = settings.retention_ms.is_some_and(|limit| now_ms.saturating_sub(newest) > limit);
            let too_much = settings
                .retention_bytes
                .is_some_and(|limit| segment.size > 0 && size.saturating_sub(segment.size) >= limit);
            if !below_start && !(settings.delete_old && (too_old || too_much)) {
                break;
            }
            size -= segment.size;
            due += 1;
        }
        // An empty log has nothing to delete.
        let only_empty =
            due == self.segments.len() && self.segments.last().is_some_and(|last| last.size == 0);
        if only_empty { due - 1 } else { due }
    }
}

/// The whole batches of `bytes` that `range` asks for.
fn pick(bytes: &[u8], range: ReadRange) -> Range<usize> {
    let mut start = None;
    let mut end = 0;
    // What is cut off at the end of a read is simply not part of it.
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

/// Takes from a checkpoint entry what a cut takes from the log.
fn cut_entry(entry: &mut Entry, cut: &Cut) {
    entry.log_start = entry.log_start.min(cut.end_offset);
    let reaches = |mark: &SegmentMark| {
        mark.base_offset > cut.segment || (mark.base_offset == cut.segment && mark.size > cut.position)
    };
    if !entry.segments.iter().any(reaches) {
        return;
    }
    entry.segments.retain(|mark| mark.base_offset <= cut.segment);
    if let Some(last) = entry.segments.last_mut().filter(|mark| mark.base_offset == cut.segment) {
        last.size = cut.position;
        last.max_timestamp = cut.max_timestamp;
    }
    entry.end_offset = cut.end_offset;
    entry.epochs.retain(|epoch| epoch.start_offset < cut.end_offset);
    entry.state = entry.state.take().filter(|state| state.offset <= cut.end_offset);
}

fn out_of_range(offset: i64, ends: &LogEnds) -> StorageError {
    StorageError::OffsetOutOfRange { offset, log_start: ends.log_start, log_end: ends.log_end }
}
