//! What the entries of a frame change in the index.
//!
//! Whether an entry still fits is decided here, by what the index holds at its place in the journal, and so a replay
//! decides the same.

use rocksdb::WriteBatch;

use super::frame::{Cleaned, Entry, Replaced, Run};
use super::index::{Changes, Index, Placed, run_bound};
use super::keys::{self, LogRecord, PlacedRun, Position};
use crate::metadata::image::TopicIdPartition;
use crate::storage::StorageError;
use crate::storage::epochs::EpochCache;

/// The changes of one frame on their way into one batch. What they read is the index before the frame, which is right
/// because no two entries of a frame concern the same records: see [`super::writer`].
pub(super) struct Work<'a> {
    index: &'a Index,
    changes: &'a mut Changes,
    batch: WriteBatch,
    /// Segments whose live bytes have changed.
    touched: Vec<u64>,
}

impl<'a> Work<'a> {
    pub(super) fn new(index: &'a Index, changes: &'a mut Changes) -> Self {
        Self { index, changes, batch: WriteBatch::default(), touched: Vec::new() }
    }

    /// Takes an entry of a frame that lies in `segment`.
    pub(super) fn entry(&mut self, placed: &Placed, segment: u64) -> Result<(), StorageError> {
        let place = |run| PlacedRun { run, segment, position: placed.position };
        match placed.entry {
            Entry::Append(partition, run) => {
                self.put(partition, place(run));
                self.epoch(partition, run);
            }
            Entry::Move(partition, run) => {
                let Some(old) = self.index.run_at_or_before(partition, run.base_offset)? else {
                    return Ok(());
                };
                // Deleted, cut or compacted since it was read: the copy is garbage.
                if old.run != run {
                    return Ok(());
                }
                self.remove(partition, old);
                self.put(partition, place(run));
            }
            Entry::Truncate(partition, end_offset, last) => self.truncate(partition, end_offset, last)?,
            Entry::LogStart(partition, offset) => self.log_start(partition, offset)?,
            Entry::Delete(partition) => self.delete(partition)?,
            Entry::Replace(partition, replaced, run) => {
                self.replace(partition, replaced, run.map(place))?;
            }
            Entry::Clean(partition, cleaned) => self.clean(partition, cleaned)?,
        }
        Ok(())
    }

    fn put(&mut self, partition: TopicIdPartition, placed: PlacedRun) {
        self.add(placed.segment, i64::from(placed.run.length));
        self.batch.put(keys::run(partition, placed.run.base_offset), placed.encode());
    }

    fn remove(&mut self, partition: TopicIdPartition, placed: PlacedRun) {
        self.add(placed.segment, -i64::from(placed.run.length));
        self.batch.delete(keys::run(partition, placed.run.base_offset));
    }

    fn epoch(&mut self, partition: TopicIdPartition, run: Run) {
        let is_new = !self.changes.logs.contains_key(&partition);
        let record = self.changes.logs.entry(partition).or_default();
        let known = record.epochs.last().is_some_and(|last| last.leader_epoch >= run.leader_epoch);
        if is_new || (!known && run.leader_epoch >= 0) {
            let mut epochs = EpochCache::from_entries(std::mem::take(&mut record.epochs));
            epochs.begin(run.leader_epoch, run.base_offset);
            record.epochs = epochs.entries().to_vec();
            self.batch.put(keys::log(partition), record.encode());
        }
    }

    fn truncate(
        &mut self,
        partition: TopicIdPartition,
        end_offset: i64,
        left: Option<Run>,
    ) -> Result<(), StorageError> {
        // Of a run that holds the log start nothing may be left but what lies below it.
        let log_start = self.changes.logs.get(&partition).map_or(0, |record| record.log_start);
        let left = left.filter(|run| run.last_offset >= log_start.min(end_offset));
        let mut cut = Vec::new();
        self.index.runs_from(partition, end_offset, |placed| {
            cut.push(placed);
            true
        })?;
        let mut end = None;
        if let Some(first) = cut.first() {
            end = self.index.run_at_or_before(partition, first.run.base_offset - 1)?;
        }
        let mut end = end.map(|before| before.run.log_end());
        let mut cut_bytes = total(&cut);
        for placed in &cut {
            self.remove(partition, *placed);
            if let Some(run) = left.filter(|run| run.base_offset == placed.run.base_offset) {
                self.put(partition, PlacedRun { run, ..*placed });
                end = Some(run.log_end());
                cut_bytes = cut_bytes.saturating_sub(u64::from(run.length));
            }
        }
        let state = self.index.state(partition)?;
        if state.is_some_and(|state| state.offset > end_offset) {
            self.batch.delete(keys::state(partition));
        }
        let cut_end = cut.last().map_or(0, |last| last.run.log_end());
        self.record(partition, |record, epochs| {
            record.log_start = record.log_start.min(end_offset);
            record.end_without_runs = end_offset;
            // What comes to lie there anew has not been looked at.
            record.first_dirty = record.first_dirty.min(end_offset);
            if end.is_none() && !cut.is_empty() {
                record.delete_horizon_ms = None;
            }
            record.removed_bytes = match end {
                Some(end) => holes(record.removed_bytes, (end, cut_end), cut_bytes),
                None if cut.is_empty() => record.removed_bytes,
                None => 0,
            };
            epochs.truncate_end(end_offset);
        });
        Ok(())
    }

    fn log_start(&mut self, partition: TopicIdPartition, offset: i64) -> Result<(), StorageError> {
        let mut below = Vec::new();
        let mut first = None;
        self.index.runs_from(partition, 0, |placed| {
            let is_below = placed.run.last_offset < offset;
            if is_below {
                below.push(placed);
            } else {
                first = Some(placed.run.log_position);
            }
            is_below
        })?;
        for placed in &below {
            self.remove(partition, *placed);
        }
        self.record(partition, |record, epochs| {
            record.log_start = record.log_start.max(offset);
            record.end_without_runs = record.end_without_runs.max(offset);
            if record.first_dirty <= offset {
                record.delete_horizon_ms = None;
            }
            record.removed_bytes = match (below.first(), first) {
                (None, _) => record.removed_bytes,
                (Some(_), None) => 0,
                (Some(before), Some(first)) => {
                    holes(record.removed_bytes, (before.run.log_position, first), total(&below))
                }
            };
            epochs.truncate_start(offset);
        });
        Ok(())
    }

    fn delete(&mut self, partition: TopicIdPartition) -> Result<(), StorageError> {
        let mut runs = Vec::new();
        self.index.runs_from(partition, 0, |placed| {
            runs.push((placed.segment, placed.run.length));
            true
        })?;
        for (segment, length) in runs {
            self.add(segment, -i64::from(length));
        }
        self.batch.delete_range(keys::run(partition, 0), run_bound(partition));
        self.batch.delete(keys::log(partition));
        self.batch.delete(keys::state(partition));
        self.changes.logs.remove(&partition);
        Ok(())
    }

    /// Puts `new` in the place of runs, if all of them are still what they were. The end of a log never goes.
    fn replace(
        &mut self,
        partition: TopicIdPartition,
        replaced: Replaced,
        new: Option<PlacedRun>,
    ) -> Result<(), StorageError> {
        let (mut old, mut next) = (Vec::new(), None);
        self.index.runs_from(partition, replaced.from, |placed| {
            let is_old = placed.run.base_offset < replaced.until;
            if is_old {
                old.push(placed);
            } else {
                next = Some(placed.run);
            }
            is_old
        })?;
        // Deleted or cut since they were read: what was made of them is garbage.
        if Replaced::of(old.iter().map(|placed| &placed.run)) != Some(replaced) {
            return Ok(());
        }
        let (Some(first), Some(last)) = (old.first(), old.last()) else { return Ok(()) };
        let keeps_end = new.is_some_and(|new| new.run.last_offset == last.run.last_offset);
        if next.is_none() && !keeps_end {
            return Ok(());
        }
        let is_first = self.index.first_run(partition)?.is_some_and(|placed| placed.run == first.run);
        let new_bytes = new.map_or(0, |new| i64::from(new.run.length));
        let old_bytes = total(&old);
        for placed in &old {
            self.remove(partition, *placed);
        }
        if let Some(new) = new {
            self.put(partition, new);
        }
        self.record(partition, |record, _| {
            let start = new.map(|new| new.run).or(next).filter(|_| is_first);
            let moved = start.map_or((0, 0), |start| (first.run.log_position, start.log_position));
            record.removed_bytes = holes(record.removed_bytes, moved, old_bytes).wrapping_sub(new_bytes);
        });
        Ok(())
    }

    fn clean(&mut self, partition: TopicIdPartition, cleaned: Cleaned) -> Result<(), StorageError> {
        let last = self.index.run_at_or_before(partition, cleaned.last.base_offset)?;
        if last.is_none_or(|last| last.run != cleaned.last) {
            return Ok(());
        }
        self.record(partition, |record, _| {
            record.first_dirty = cleaned.first_dirty;
            record.delete_horizon_ms = Some(cleaned.delete_horizon_ms).filter(|horizon| *horizon >= 0);
        });
        Ok(())
    }

    fn record(&mut self, partition: TopicIdPartition, change: impl FnOnce(&mut LogRecord, &mut EpochCache)) {
        let record = self.changes.logs.entry(partition).or_default();
        let mut epochs = EpochCache::from_entries(std::mem::take(&mut record.epochs));
        change(record, &mut epochs);
        record.epochs = epochs.entries().to_vec();
        self.batch.put(keys::log(partition), record.encode());
    }

    fn add(&mut self, segment: u64, bytes: i64) {
        let live = self.changes.live.entry(segment).or_default();
        *live = live.saturating_add_signed(bytes);
        self.touched.push(segment);
    }

    /// Writes all changes in one batch with `position`, which is where the journal stands after the frame.
    pub(super) fn finish(mut self, position: Position) -> Result<(), StorageError> {
        self.touched.sort_unstable();
        self.touched.dedup();
        for segment in self.touched {
            match self.changes.live.get(&segment).copied() {
                Some(live) if live > 0 => self.batch.put(keys::segment(segment), live.to_be_bytes()),
                _ => {
                    self.changes.live.remove(&segment);
                    self.batch.delete(keys::segment(segment));
                }
            }
        }
        self.batch.put(keys::POSITION, position.encode());
        self.changes.position = position;
        self.index.write(self.batch)
    }
}

fn total(runs: &[PlacedRun]) -> u64 {
    runs.iter().map(|placed| u64::from(placed.run.length)).sum()
}

/// Bytes of holes that are left when the log has become shorter at one end by what lies between two positions, and
/// `bytes` have gone.
fn holes(before: i64, span: (u64, u64), bytes: u64) -> i64 {
    before.wrapping_add_unsigned(bytes).wrapping_sub(span.1.wrapping_sub(span.0).cast_signed())
}

#[cfg(test)]
#[path = "changes_test.rs"]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests;
