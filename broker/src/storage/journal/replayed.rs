//! Headers of the batches that a start has seen, for logs that are opened after it.
//!
//! Replaying the journal reads and checks everything that was written since the index was last made durable. What
//! producers' state is replayed from is nearly the same: without this it would be read once more, log by log. What is
//! not found here is read from the disk.

use std::collections::HashMap;

use millrace_protocol::records::BatchHeader;

use super::frame::Run;
use super::index::Placed;
use super::keys::PlacedRun;
use crate::metadata::image::TopicIdPartition;
use crate::storage::batch::WholeBatches;

/// Most memory for headers, bytes.
const MAX_BYTES: usize = 32 << 20;

/// Headers of one log's batches by the segment and position of their run, which name the same bytes for good.
#[derive(Debug, Default)]
pub(super) struct Headers(HashMap<(u64, u32), Box<[BatchHeader]>>);

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Replayed {
    logs: HashMap<TopicIdPartition, Headers>,
    /// Bytes of memory that are left.
    room: usize,
}

impl Default for Replayed {
    fn default() -> Self {
        Self { logs: HashMap::new(), room: MAX_BYTES }
    }
}

impl Replayed {
    /// Notes the batches of an entry that lies in `segment`; `bytes` are what the frame holds of it.
    pub(super) fn note(&mut self, segment: u64, placed: &Placed, bytes: &[u8]) {
        if placed.entry.run().is_none() {
            return;
        }
        let headers: Box<[BatchHeader]> = WholeBatches::new(bytes).map(|(_, header)| header).collect();
        let whole: usize = headers.iter().map(BatchHeader::size_in_bytes).sum();
        let takes = size_of_val(&*headers) + 2 * size_of::<((u64, u32), Box<[BatchHeader]>)>();
        // Whoever reads what is not whole says what is wrong with it.
        if whole == bytes.len() && takes <= self.room {
            self.room -= takes;
            let log = self.logs.entry(placed.entry.partition()).or_default();
            log.0.insert((segment, placed.position), headers);
        }
    }

    /// What was noted of a log, once.
    pub(super) fn take(&mut self, partition: TopicIdPartition) -> Headers {
        self.logs.remove(&partition).unwrap_or_default()
    }
}

impl Headers {
    /// Headers of the batches in a run that the index has, of which the end may have been cut since; `None` if they were
    /// not noted.
    pub(super) fn of(&self, placed: &PlacedRun) -> Option<&[BatchHeader]> {
        let Run { base_offset, last_offset, .. } = placed.run;
        let noted = self.0.get(&(placed.segment, placed.position))?;
        let count = noted.iter().take_while(|header| header.last_offset() <= last_offset).count();
        let headers = &noted[..count];
        let is_it =
            headers.first()?.base_offset == base_offset && headers.last()?.last_offset() == last_offset;
        is_it.then_some(headers)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;
    use crate::storage::batch::samples::batch;
    use crate::storage::conformance::partition;
    use crate::storage::journal::frame::Entry;

    fn placed(number: i32, position: u32, bytes: &[u8]) -> (Placed, PlacedRun) {
        let run = Run {
            base_offset: 0,
            last_offset: 1,
            max_timestamp: -1,
            running_max_timestamp: -1,
            written_ms: 0,
            log_position: 0,
            leader_epoch: 0,
            length: u32::try_from(bytes.len()).unwrap(),
        };
        (
            Placed { entry: Entry::Append(partition(number), run), position },
            PlacedRun { run, segment: 7, position },
        )
    }

    #[test]
    fn a_run_is_told_by_its_place_and_its_offsets() {
        let bytes = batch(2, b"value");
        let (entry, run) = placed(0, 100, &bytes);
        let mut replayed = Replayed::default();
        replayed.note(7, &entry, &bytes);
        let headers = replayed.take(partition(0));
        assert_eq!(headers.of(&run).unwrap().len(), 1);
        assert!(headers.of(&PlacedRun { position: 101, ..run }).is_none());
        assert!(headers.of(&PlacedRun { segment: 8, ..run }).is_none());
        for run in [
            Run { base_offset: 1, ..run.run },
            Run { last_offset: 0, ..run.run },
            Run { last_offset: 2, ..run.run },
        ] {
            assert!(headers.of(&PlacedRun { run, segment: 7, position: 100 }).is_none(), "{run:?}");
        }
        assert!(replayed.take(partition(0)).of(&run).is_none(), "it was taken");
    }

    #[test]
    fn no_more_is_noted_than_there_is_room_for_and_nothing_that_is_cut_off() {
        let bytes = batch(2, b"value");
        let mut replayed = Replayed::default();
        replayed.note(7, &placed(1, 0, &bytes).0, &bytes[..bytes.len() - 1]);
        let mut noted = 0;
        while replayed.room > 1_000 {
            replayed.note(7, &placed(0, noted, &bytes).0, &bytes);
            noted += 1;
        }
        assert!((10_000..1_000_000).contains(&noted), "{noted}");
        let last = noted + 20;
        (noted..=last).for_each(|position| replayed.note(7, &placed(0, position, &bytes).0, &bytes));
        let headers = replayed.take(partition(0));
        assert!(headers.of(&placed(0, noted - 1, &bytes).1).is_some());
        assert!(headers.of(&placed(0, last, &bytes).1).is_none());
        assert!(replayed.take(partition(1)).of(&placed(1, 0, &bytes).1).is_none());
    }
}
