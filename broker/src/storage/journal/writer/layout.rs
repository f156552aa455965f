//! Which batches become which runs of a frame.

use std::sync::Arc;

use bytes::Bytes;

use super::super::frame::{MAX_ENTRY_LEN, Run};
use super::super::log::JournalLog;
use super::RUN_BYTES;
use crate::storage::AppendBatch;

/// Bytes of batches on their way into a frame.
pub(super) struct Piece<'a> {
    pub(super) bytes: &'a Bytes,
    /// The batch whose base offset and epoch are to be written in.
    pub(super) stamp: Option<&'a AppendBatch>,
}

/// A frame of appends before it is written.
#[derive(Default)]
pub(super) struct Layout<'a> {
    pub(super) runs: Vec<PlannedRun<'a>>,
    pub(super) bytes: usize,
}

pub(super) struct PlannedRun<'a> {
    pub(super) log: &'a Arc<JournalLog>,
    pub(super) batches: Vec<&'a AppendBatch>,
    bytes: usize,
}

impl<'a> Layout<'a> {
    /// Whether the batch becomes part of the last run.
    fn continues(&self, log: &JournalLog, batch: &AppendBatch) -> bool {
        let epoch = batch.header.partition_leader_epoch;
        self.runs
            .last()
            .is_some_and(|run| run.log.id() == log.id() && run.epoch() == epoch && run.bytes < RUN_BYTES)
    }

    /// Bytes by which the batch makes the frame longer.
    pub(super) fn cost(&self, log: &JournalLog, batch: &AppendBatch) -> usize {
        batch.bytes.len() + if self.continues(log, batch) { 0 } else { MAX_ENTRY_LEN }
    }

    pub(super) fn push(&mut self, log: &'a Arc<JournalLog>, batch: &'a AppendBatch) {
        self.bytes += self.cost(log, batch);
        if !self.continues(log, batch) {
            self.runs.push(PlannedRun { log, batches: Vec::new(), bytes: 0 });
        }
        if let Some(last) = self.runs.last_mut() {
            last.bytes += batch.bytes.len();
            last.batches.push(batch);
        }
    }
}

impl PlannedRun<'_> {
    fn epoch(&self) -> i32 {
        self.batches.first().map_or(-1, |batch| batch.header.partition_leader_epoch)
    }

    /// The run, without what depends on the runs before it.
    pub(super) fn run(&self, now_ms: i64) -> Run {
        let header = |batch: Option<&&AppendBatch>| batch.map(|batch| batch.header);
        let timestamps = self.batches.iter().map(|batch| batch.header.max_timestamp);
        Run {
            base_offset: header(self.batches.first()).map_or(0, |first| first.base_offset),
            last_offset: header(self.batches.last()).map_or(0, |last| last.last_offset()),
            max_timestamp: timestamps.max().unwrap_or(-1),
            running_max_timestamp: -1,
            written_ms: now_ms,
            log_position: 0,
            leader_epoch: self.epoch(),
            length: u32::try_from(self.bytes).expect("a run is no longer than a frame"),
        }
    }
}
