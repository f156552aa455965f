//! Batches of a log that are queued for the writer: followers read them before they are durable.

use std::collections::VecDeque;

use bytes::Bytes;
use millrace_protocol::records::HEADER_LEN;

use crate::storage::batch::stamp;
use crate::storage::{AppendBatch, ReadRange};

/// Batches for which memory is kept while none is queued.
const KEPT: usize = 32;

/// The batches between the durable end and the log end, in order. The queue holds the same bytes, and the admissions
/// that account for them, until the log forgets them here.
#[derive(Debug, Default)]
pub(super) struct QueuedBatches {
    batches: VecDeque<AppendBatch>,
}

impl QueuedBatches {
    pub(super) fn push(&mut self, batch: AppendBatch) {
        self.batches.push_back(batch);
    }

    /// Forgets what has become durable.
    pub(super) fn forget_below(&mut self, durable_end: i64) {
        while self.batches.front().is_some_and(|batch| batch.header.last_offset() < durable_end) {
            self.batches.pop_front();
        }
        if self.batches.is_empty() && self.batches.capacity() > KEPT {
            self.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        self.batches = VecDeque::new();
    }

    /// Adds to `parts` what `range` asks for, as it is going to be stored. Only headers are copied.
    pub(super) fn read(&self, range: ReadRange, parts: &mut Vec<Bytes>) {
        let first = self.batches.partition_point(|batch| batch.header.last_offset() < range.offset);
        let (mut left, mut at_least_one) = (range.max_bytes, range.at_least_one);
        for AppendBatch { bytes, header } in self.batches.range(first..) {
            if header.base_offset >= range.until || (bytes.len() > left && !at_least_one) {
                break;
            }
            (left, at_least_one) = (left.saturating_sub(bytes.len()), false);
            let (head, records) = bytes.split_at(HEADER_LEN.min(bytes.len()));
            let mut head = head.to_vec();
            stamp(&mut head, header.base_offset, header.partition_leader_epoch);
            parts.push(head.into());
            parts.push(bytes.slice_ref(records));
        }
    }
}
