//! Compacting a log: see [`crate::storage::compaction`] for the rules.
//!
//! What is left of some runs that follow each other becomes a new run, which an entry of the journal puts in their
//! place; where nothing goes, nothing is written. The entries take effect one by one, from the start of the log to its
//! end, each if its runs are still what they were: what was cut or deleted meanwhile stays so. When all of them have
//! taken effect, another entry moves the first dirty offset. A crash in between costs the work, and nothing else. A pass
//! ends when the end of the log is cut off: what it knows of the keys is not true any more.

use bytes::{Bytes, BytesMut};
use millrace_protocol::records::{BatchError, RecordBatch};

use super::super::frame::{Cleaned, Entry, Replaced, Run};
use super::super::keys::PlacedRun;
use super::super::space::Purpose;
use super::super::writer::{Command, RUN_BYTES};
use super::read::timestamp_of;
use super::{JournalLog, left_between};
use crate::storage::batch::{StoredBatchError, parse_whole};
use crate::storage::compaction::rule::{Left, Rule, note_keys};
use crate::storage::compaction::{CompactionJob, CompactionReport, CompactionSettings, Dirt, KeyMap};
use crate::storage::{LogEnds, StorageError};

/// Most bytes on their way to the writer at once.
const SEND_BYTES: usize = 4 << 20;

/// Most runs, and bytes of them, that become one. Runs of a few batches each are joined even if all records stay.
const MAX_JOINED_RUNS: usize = 4_096;
const MAX_JOINED_BYTES: u64 = 8 << 20;
const WORTH_JOINING: usize = 8;

/// What may be compacted now.
#[derive(Clone, Copy, Debug)]
struct Range {
    first_dirty: i64,
    /// Offset after the last run that may be touched (C1).
    end: i64,
    delete_horizon_ms: Option<i64>,
}

impl JournalLog {
    /// See [`PartitionLog::dirt`](crate::storage::PartitionLog::dirt).
    pub(super) fn look_at_dirt(&self, until: i64, now_ms: i64) -> Result<Dirt, StorageError> {
        let (settings, log_start, first_byte, removed_bytes, size) = {
            let state = self.state.lock();
            (state.settings.compaction, state.log_start, state.first_byte, state.removed_bytes, state.size())
        };
        let Some(settings) = settings else { return Ok(Dirt::default()) };
        let record = self.shared.index.log(self.partition)?.unwrap_or_default();
        let mut dirt = Dirt { delete_horizon_ms: record.delete_horizon_ms, ..Dirt::default() };
        let mut first_dirty_byte = None;
        self.dirty_runs(record.first_dirty.max(log_start), until, now_ms, &settings, |run| {
            first_dirty_byte.get_or_insert(run.log_position);
            dirt.dirty_bytes += u64::from(run.length);
            let newest = age_of(run);
            dirt.oldest_dirty_ms = Some(dirt.oldest_dirty_ms.map_or(newest, |oldest| oldest.min(newest)));
        })?;
        // What was removed was removed below the first dirty offset.
        dirt.clean_bytes =
            first_dirty_byte.map_or(size, |byte| left_between(first_byte, byte, removed_bytes));
        Ok(dirt)
    }

    /// See [`PartitionLog::compact`](crate::storage::PartitionLog::compact).
    pub(super) fn compact_by(&self, job: &CompactionJob<'_>) -> Result<CompactionReport, StorageError> {
        let mut report = CompactionReport::default();
        let Some(_alone) = self.compacting.try_lock() else {
            return Ok(CompactionReport { interrupted: true, ..report });
        };
        self.settle()?;
        loop {
            let (settings, ends, cuts) = {
                let state = self.state.lock();
                (state.settings.compaction, state.ends(), state.cuts)
            };
            let Some(settings) = settings else { return Ok(report) };
            let range = self.compactable(job, &settings, &ends)?;
            report.first_dirty = range.first_dirty;
            let expired = range.delete_horizon_ms.is_some_and(|horizon| horizon <= job.now_ms);
            let again = report.passes > 0;
            if range.end <= range.first_dirty && (!expired || again) {
                return Ok(report);
            }
            report.passes += 1;
            let mut pass = Pass { log: self, job, report: &mut report, cuts, horizon: None };
            let Some(end) = pass.run(range, &settings, ends.log_start)? else {
                report.interrupted = true;
                return Ok(report);
            };
            report.first_dirty = end;
            if end >= range.end {
                return Ok(report);
            }
        }
    }

    fn compactable(
        &self,
        job: &CompactionJob<'_>,
        settings: &CompactionSettings,
        ends: &LogEnds,
    ) -> Result<Range, StorageError> {
        let record = self.shared.index.log(self.partition)?.unwrap_or_default();
        let first_dirty = record.first_dirty.max(ends.log_start);
        let mut end = first_dirty;
        self.dirty_runs(first_dirty, job.until, job.now_ms, settings, |run| end = run.next_offset())?;
        Ok(Range { first_dirty, end, delete_horizon_ms: record.delete_horizon_ms })
    }

    /// Shows the dirty runs that may be compacted (C1).
    fn dirty_runs(
        &self,
        first_dirty: i64,
        until: i64,
        now_ms: i64,
        settings: &CompactionSettings,
        mut visit: impl FnMut(&Run),
    ) -> Result<(), StorageError> {
        self.shared.index.runs_from(self.partition, first_dirty, |placed| {
            let run = &placed.run;
            let too_young =
                settings.min_lag_ms > 0 && age_of(run) > now_ms.saturating_sub(settings.min_lag_ms);
            let may = run.next_offset() <= until && !too_young;
            if may {
                visit(run);
            }
            may
        })
    }
}

/// The time that counts for the age of a run.
fn age_of(run: &Run) -> i64 {
    if run.max_timestamp < 0 { run.written_ms } else { run.max_timestamp }
}

/// One way through a log.
struct Pass<'a, 'b> {
    log: &'a JournalLog,
    job: &'a CompactionJob<'b>,
    report: &'a mut CompactionReport,
    /// How often the end of the log had been cut off when it began.
    cuts: u64,
    /// First of the delete horizons in what is left.
    horizon: Option<i64>,
}

/// Runs on their way to become one.
#[derive(Default)]
struct Group {
    old: Vec<Run>,
    old_bytes: u64,
    left: Vec<Bytes>,
    left_bytes: usize,
    /// Offsets of what is left, and its largest timestamp.
    first: Option<i64>,
    last: i64,
    max_timestamp: i64,
    changed: bool,
}

/// What is to be put in the place of some runs.
struct Piece {
    replaced: Replaced,
    new: Option<Run>,
    bytes: Bytes,
}

impl Pass<'_, '_> {
    /// Returns the first offset that is dirty afterwards; `None` if the pass was interrupted.
    fn run(
        &mut self,
        range: Range,
        settings: &CompactionSettings,
        log_start: i64,
    ) -> Result<Option<i64>, StorageError> {
        let Some((keys, end)) = self.keys(range)? else { return Ok(None) };
        let rule = Rule {
            keys: &keys,
            log_start,
            first_dirty: range.first_dirty,
            end,
            now_ms: self.job.now_ms,
            delete_retention_ms: settings.delete_retention_ms,
            producers: self.job.producers,
            aborted: self.job.aborted,
        };
        if !self.rewrite(&rule)? {
            return Ok(None);
        }
        let _changing = self.log.changing()?;
        if self.is_cut() {
            return Ok(None);
        }
        let index = &self.log.shared.index;
        let Some(last) = index.run_at_or_before(self.log.partition, end - 1)? else { return Ok(None) };
        let cleaned =
            Cleaned { last: last.run, first_dirty: end, delete_horizon_ms: self.horizon.unwrap_or(-1) };
        self.log.shared.change(Entry::Clean(self.log.partition, cleaned))?;
        let taken = index.log(self.log.partition)?.is_some_and(|record| record.first_dirty == end);
        Ok(taken.then_some(end))
    }

    /// The keys of the dirty part, and the offset up to which they are all there; `None` if it is to end now.
    fn keys(&mut self, range: Range) -> Result<Option<(KeyMap, i64)>, StorageError> {
        let offsets = u64::try_from(range.end - range.first_dirty).unwrap_or_default();
        let mut keys = KeyMap::new(self.job.key_map_bytes, offsets);
        let mut end = range.end.max(range.first_dirty);
        let mut stopped = false;
        self.log.visit_runs(range.first_dirty, range.end, |placed, bytes| {
            stopped = !self.read(bytes.len() as u64);
            if stopped {
                return Ok(false);
            }
            let mut full = None;
            self.batches(placed, &bytes, |batch| {
                if full.is_none() {
                    full = note_keys(&batch, range.first_dirty, self.job.aborted, &mut keys)?;
                }
                Ok(())
            })?;
            end = full.unwrap_or(end);
            Ok(full.is_none())
        })?;
        Ok((!stopped).then_some((keys, end)))
    }

    /// Writes anew what the rule leaves of the log up to its end; false if it is to end now.
    fn rewrite(&mut self, rule: &Rule<'_>) -> Result<bool, StorageError> {
        let target = RUN_BYTES.min(self.log.shared.max_batch_bytes() / 4);
        let (mut group, mut pieces, mut on) = (Group::default(), Vec::new(), true);
        self.log.visit_runs(rule.log_start, rule.end, |placed, bytes| {
            on = self.read(bytes.len() as u64);
            if !on {
                return Ok(false);
            }
            let run = self.left_of(rule, placed, &bytes)?;
            if !group.takes(&run, target) {
                pieces.extend(std::mem::take(&mut group).into_piece());
                on = self.send_some(&mut pieces, SEND_BYTES)?;
            }
            group.join(run);
            Ok(on)
        })?;
        if !on {
            return Ok(false);
        }
        pieces.extend(group.into_piece());
        self.send_some(&mut pieces, 0)
    }

    /// What is left of one run.
    fn left_of(&mut self, rule: &Rule<'_>, placed: PlacedRun, bytes: &Bytes) -> Result<Group, StorageError> {
        let mut group =
            Group { old: vec![placed.run], old_bytes: u64::from(placed.run.length), ..Group::default() };
        group.max_timestamp = -1;
        let (mut removed, mut horizon) = (0, self.horizon);
        self.batches(placed, bytes, |batch| {
            let verdict = rule.judge(&batch)?;
            removed += verdict.removed;
            if let Some(due) = verdict.delete_horizon_ms {
                horizon = Some(horizon.map_or(due, |first| first.min(due)));
            }
            group.changed |= verdict.left != Left::Whole;
            let left = match verdict.left {
                Left::Whole => batch,
                Left::Part(left) => left,
                Left::Nothing => return Ok(()),
            };
            let header = left.header();
            group.first.get_or_insert(header.base_offset);
            group.last = header.last_offset();
            group.max_timestamp = group.max_timestamp.max(timestamp_of(header));
            group.left_bytes += left.bytes().len();
            group.left.push(left.bytes().clone());
            Ok(())
        })?;
        self.horizon = horizon;
        self.report.removed_records += removed;
        let limit = self.log.shared.max_batch_bytes();
        if group.left_bytes > limit {
            return Err(StorageError::TooLarge { size: group.left_bytes, limit });
        }
        Ok(group)
    }

    /// Shows the batches of a run, each with its checksum verified.
    fn batches(
        &self,
        placed: PlacedRun,
        bytes: &Bytes,
        mut visit: impl FnMut(RecordBatch) -> Result<(), BatchError>,
    ) -> Result<(), StorageError> {
        let mut position = 0;
        while position < bytes.len() {
            let damaged = |error: &StoredBatchError| self.log.damaged(placed, position, error);
            let header = parse_whole(&bytes[position..]).map_err(|error| damaged(&error))?;
            let mut rest = bytes.slice(position..);
            let batch = RecordBatch::split_from(&mut rest).map_err(|error| damaged(&error.into()))?;
            visit(batch).map_err(|error| damaged(&error.into()))?;
            position += header.size_in_bytes();
        }
        Ok(())
    }

    /// Sends the pieces once they have more than `limit` bytes; false if the pass is to end now.
    fn send_some(&mut self, pieces: &mut Vec<Piece>, limit: usize) -> Result<bool, StorageError> {
        let bytes: usize = pieces.iter().map(|piece| piece.bytes.len()).sum();
        if pieces.is_empty() || (bytes < limit && pieces.len() < MAX_JOINED_RUNS) {
            return Ok(true);
        }
        let written = bytes as u64;
        if !self.job.pace.wait(written) {
            return Ok(false);
        }
        let (log, shared) = (self.log, &self.log.shared);
        shared.space.take(written, Purpose::Compaction, || shared.segments.free_bytes())?;
        let pieces = std::mem::take(pieces);
        let entry = |piece: &Piece| Entry::Replace(log.partition, piece.replaced, piece.new);
        let sent = pieces.iter().map(|piece| (entry(piece), piece.bytes.clone())).collect();
        let _changing = log.changing()?;
        if self.is_cut() {
            return Ok(false);
        }
        shared.ask(|reply| Command::Replace { pieces: sent, reply })?;
        self.report.written_bytes += written;
        let first = shared.index.first_run(log.partition)?.map(|placed| placed.run);
        let removed_bytes = log.removed_bytes()?;
        {
            let mut state = log.state.lock();
            let before = state.size();
            if let Some(last) = pieces.last() {
                state.forget_below(last.replaced.until);
            }
            state.removed_bytes = removed_bytes;
            state.first_byte = first.map_or(state.first_byte, |first| first.log_position);
            self.report.removed_bytes += before.saturating_sub(state.size());
        }
        for piece in &pieces {
            if !self.has_taken(piece)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the end of the log has been cut off since the pass began: later records of keys may be gone in favour of
    /// which it was to remove others. The caller holds the lock for changes.
    fn is_cut(&self) -> bool {
        self.log.state.lock().cuts != self.cuts
    }

    /// Whether a piece is in its place.
    fn has_taken(&self, piece: &Piece) -> Result<bool, StorageError> {
        let mut found = None;
        self.log.shared.index.runs_from(self.log.partition, piece.replaced.from, |placed| {
            found = (placed.run.base_offset < piece.replaced.until).then_some(placed.run);
            false
        })?;
        Ok(found == piece.new)
    }

    fn read(&mut self, bytes: u64) -> bool {
        self.report.read_bytes += bytes;
        self.job.pace.wait(bytes)
    }
}

impl Group {
    /// Whether `run` may join.
    fn takes(&self, run: &Self, target: usize) -> bool {
        let epoch = |group: &Self| group.old.first().map(|run| run.leader_epoch);
        self.old.is_empty()
            || (epoch(self) == epoch(run)
                && self.left_bytes + run.left_bytes <= target
                && self.old.len() < MAX_JOINED_RUNS
                && self.old_bytes + run.old_bytes <= MAX_JOINED_BYTES)
    }

    fn join(&mut self, run: Self) {
        if self.old.is_empty() {
            *self = run;
            return;
        }
        self.old.extend(run.old);
        self.old_bytes += run.old_bytes;
        self.left.extend(run.left);
        self.left_bytes += run.left_bytes;
        if let Some(first) = run.first {
            self.first.get_or_insert(first);
            self.last = run.last;
        }
        self.max_timestamp = self.max_timestamp.max(run.max_timestamp);
        self.changed |= run.changed;
    }

    /// What is to be written; `None` if everything may stay as it is.
    fn into_piece(self) -> Option<Piece> {
        if !self.changed && self.old.len() < WORTH_JOINING {
            return None;
        }
        let replaced = Replaced::of(&self.old)?;
        let last = *self.old.last()?;
        let mut bytes = BytesMut::with_capacity(self.left_bytes);
        self.left.iter().for_each(|batch| bytes.extend_from_slice(batch));
        let length = u32::try_from(bytes.len()).expect("checked against the size of a segment");
        let new = self.first.map(|base_offset| Run {
            base_offset,
            last_offset: self.last,
            max_timestamp: self.max_timestamp,
            log_position: last.log_end().wrapping_sub(u64::from(length)),
            length,
            // The rest is that of the last: the running maximum of all of them, and the youngest age.
            ..last
        });
        Some(Piece { replaced, new, bytes: bytes.freeze() })
    }
}
