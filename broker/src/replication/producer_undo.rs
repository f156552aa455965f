//! What the newest batches of a partition have changed in its producers' state, so that cutting them off needs no look at
//! the log: a follower that has to cut its log keeps all acks=all producers of the partition waiting meanwhile.
//!
//! Batches below the high watermark are never cut off (L3), so there is little to remember. For the same reason a snapshot
//! is that of the state there: of a later one nothing could be made when the log is cut below it.

use std::borrow::Cow;
use std::collections::VecDeque;

use super::producer_state::{ProducerStates, Undo};

/// Most batches that are remembered for a partition; beyond, the log itself has to be read.
const MAX_KEPT: usize = 500;

/// Number of batches up to which nobody looks whether they are committed.
const FEW: usize = 16;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct UndoLog {
    /// Oldest first.
    changes: VecDeque<Undo>,
    /// Nothing is missing of batches that begin at this offset or later.
    complete_from: i64,
    /// Number of changes at which it is looked which of them are still needed.
    look_at: usize,
}

impl UndoLog {
    /// For the state of a log that ends at `log_end`.
    pub(super) fn new(log_end: i64) -> Self {
        Self { changes: VecDeque::new(), complete_from: log_end, look_at: FEW }
    }

    /// Remembers a change; what is below the high watermark, which is asked for now and then, is forgotten.
    pub(super) fn push(&mut self, undo: Undo, high_watermark: impl FnOnce() -> i64) {
        self.changes.push_back(undo);
        if self.changes.len() < self.look_at {
            return;
        }
        self.forget_committed(high_watermark());
    }

    /// Forgets what is below the high watermark, or too much.
    pub(super) fn forget_committed(&mut self, high_watermark: i64) {
        let committed = self.changes.partition_point(|undo| undo.next_offset <= high_watermark);
        let dropped = committed.max(self.changes.len().saturating_sub(MAX_KEPT));
        if let Some(last) = self.changes.drain(..dropped).next_back() {
            self.complete_from = self.complete_from.max(last.next_offset);
        }
        self.look_at = FEW.max(2 * self.changes.len());
        self.changes.shrink_to(self.look_at);
    }

    /// What `producers` were at the high watermark, or as close to it as is remembered; and the offset of that.
    pub(super) fn committed<'a>(
        &self,
        producers: &'a ProducerStates,
        high_watermark: i64,
        log_end: i64,
    ) -> (Cow<'a, ProducerStates>, i64) {
        let offset = self.complete_from.max(high_watermark).min(log_end);
        let mut producers = Cow::Borrowed(producers);
        let later = self.changes.iter().rev().take_while(|undo| undo.base_offset >= offset);
        later.for_each(|undo| producers.to_mut().undo(undo.clone()));
        (producers, offset)
    }

    /// Brings `producers` to what they were when the log ended at `log_end`; false, with nothing changed, if too much is
    /// cut off for that.
    pub(super) fn cut(&mut self, producers: &mut ProducerStates, log_end: i64) -> bool {
        if log_end < self.complete_from {
            return false;
        }
        while let Some(undo) = self.changes.pop_back_if(|undo| undo.base_offset >= log_end) {
            producers.undo(undo);
        }
        true
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use millrace_protocol::records::BatchHeader;
    use proptest::prelude::*;

    use super::*;
    use crate::storage::batch::samples::producer_batch;

    /// Batch `number`: two records, at twice that offset.
    fn header(number: i64, producer_id: i64, epoch: i16, sequence: i32) -> BatchHeader {
        let batch = producer_batch((producer_id, epoch, sequence), &[1_000; 2], b"v");
        BatchHeader { base_offset: 2 * number, ..BatchHeader::parse(&batch).unwrap() }
    }

    fn state_after(headers: &[BatchHeader]) -> ProducerStates {
        let mut producers = ProducerStates::default();
        headers.iter().for_each(|header| drop(producers.record(header, 5)));
        producers
    }

    proptest! {
        #[test]
        fn cutting_a_log_gives_the_state_of_what_is_left_or_says_that_too_much_is_cut(
            batches in prop::collection::vec((-1_i64..3, 0_i16..3, 0_i32..50), 1..120),
            committed in 0_usize..120,
            cuts in prop::collection::vec(0_usize..120, 1..4),
        ) {
            let headers: Vec<_> = (0_i64..)
                .zip(&batches)
                .map(|(number, (id, epoch, sequence))| header(number, *id, *epoch, *sequence))
                .collect();
            let committed = 2 * i64::try_from(committed).unwrap();
            let (mut producers, mut undo_log) = (ProducerStates::default(), UndoLog::new(0));
            let mut left = Vec::new();
            let mut next = headers.iter();
            for cut in cuts {
                for header in next.by_ref().take(40) {
                    // What is cut off is written again, with other offsets.
                    let base_offset = 2 * i64::try_from(left.len()).unwrap();
                    let header = BatchHeader { base_offset, ..*header };
                    if let Some(undo) = producers.record(&header, 5) {
                        undo_log.push(undo, || committed.min(base_offset));
                    }
                    left.push(header);
                }
                let kept = cut.min(left.len());
                let log_end = 2 * i64::try_from(kept).unwrap();
                let before = producers.clone();
                let (at, offset) = undo_log.committed(&producers, log_end, 2 * i64::try_from(left.len()).unwrap());
                prop_assert!(offset == log_end || log_end < committed);
                prop_assert_eq!(at.as_ref(), &state_after(&left[..usize::try_from(offset / 2).unwrap()]));
                if undo_log.cut(&mut producers, log_end) {
                    left.truncate(kept);
                    prop_assert_eq!(&producers, &state_after(&left));
                } else {
                    prop_assert!(log_end < committed, "what is not committed can be cut off");
                    prop_assert_eq!(&producers, &before);
                }
            }
        }
    }

    #[test]
    fn what_is_committed_or_too_much_is_forgotten() {
        let (mut producers, mut undo_log) = (ProducerStates::default(), UndoLog::new(0));
        for number in 0..5_000 {
            let undo = producers.record(&header(number, 7, 0, 0), 5).unwrap();
            undo_log.push(undo, || 2 * number - 6);
            assert!(undo_log.changes.len() <= FEW);
        }
        for number in 5_000..9_000 {
            let undo = producers.record(&header(number, 7, 0, 0), 5).unwrap();
            undo_log.push(undo, || 0);
            assert!(undo_log.changes.len() <= 2 * MAX_KEPT);
        }
        assert!(!undo_log.cut(&mut producers, 10_000));
        assert!(undo_log.cut(&mut producers, 2 * (9_000 - 400)));
        undo_log.forget_committed(i64::MAX);
        assert!(undo_log.changes.capacity() <= 2 * FEW);
    }
}
