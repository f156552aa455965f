//! Keys and values of the index. Numbers are big-endian, so that the order of keys is the order of what they name.
//!
//! | prefix | key | value | life |
//! |---|---|---|---|
//! | `b` | – | how often the store has been started, u64 | replaced at each start |
//! | `c` | – | journal position at the last orderly end | deleted by the next start |
//! | `f` | – | format version u8, uuid of the volume | written once |
//! | `j` | – | journal position that the index covers: segment, end in it, sequence | with every change |
//! | `l` | topic id, partition | log: start, end, when last known to exist, how far compacted, leader epochs | updated, deleted with the log |
//! | `r` | topic id, partition, base offset | run and its place | written once, replaced when moved, deleted with its records |
//! | `s` | topic id, partition | state of the log's owner: offset and bytes | replaced at checkpoints, deleted with the log |
//! | `u` | segment | bytes of runs that live in the segment, u64 | updated, deleted when none is left |
//!
//! The prefixes are never used for anything else. Values of `l`, `r` and `s` begin with a version byte.

use bytes::{Buf, BufMut, Bytes};
use uuid::Uuid;

use super::frame::Run;
use crate::metadata::image::TopicIdPartition;
use crate::storage::StateSnapshot;
use crate::storage::epochs::EpochStart;

pub(super) const FORMAT: &[u8] = b"f";
pub(super) const STARTS: &[u8] = b"b";
pub(super) const CLEAN_END: &[u8] = b"c";
pub(super) const POSITION: &[u8] = b"j";
pub(super) const LOGS: u8 = b'l';
const RUNS: u8 = b'r';
const STATES: u8 = b's';
pub(super) const SEGMENTS: u8 = b'u';

const VERSION: u8 = 1;

fn partition_key(prefix: u8, partition: TopicIdPartition) -> Vec<u8> {
    let mut key = Vec::with_capacity(29);
    key.put_u8(prefix);
    key.put_slice(partition.topic_id.as_bytes());
    key.put_i32(partition.partition);
    key
}

pub(super) fn log(partition: TopicIdPartition) -> Vec<u8> {
    partition_key(LOGS, partition)
}

pub(super) fn state(partition: TopicIdPartition) -> Vec<u8> {
    partition_key(STATES, partition)
}

/// Key of the run that begins at `base_offset`, which is not negative.
pub(super) fn run(partition: TopicIdPartition, base_offset: i64) -> Vec<u8> {
    let mut key = partition_key(RUNS, partition);
    key.put_i64(base_offset);
    key
}

pub(super) fn segment(segment: u64) -> Vec<u8> {
    let mut key = vec![SEGMENTS];
    key.put_u64(segment);
    key
}

pub(super) fn decode_segment(mut key: &[u8]) -> Option<u64> {
    key.try_get_u8().ok()?;
    key.try_get_u64().ok().filter(|_| key.is_empty())
}

pub(super) fn decode_log(mut key: &[u8]) -> Option<TopicIdPartition> {
    key.try_get_u8().ok()?;
    let mut topic_id = [0; 16];
    key.try_copy_to_slice(&mut topic_id).ok()?;
    let partition = key.try_get_i32().ok()?;
    key.is_empty().then_some(TopicIdPartition { topic_id: Uuid::from_bytes(topic_id), partition })
}

/// First value: which format the index has and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    pub(super) volume: Uuid,
}

impl Format {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.put_slice(self.volume.as_bytes());
        out
    }

    pub(super) fn decode(mut from: &[u8]) -> Option<Self> {
        if from.try_get_u8().ok()? != VERSION {
            return None;
        }
        Some(Self { volume: Uuid::from_slice(from).ok()? })
    }
}

/// How much of the journal the index covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    /// Segment of the last frame; 0 before the first frame of the volume.
    pub(super) segment: u64,
    /// Where the next frame of that segment begins.
    pub(super) end: u64,
    /// Sequence of the last frame.
    pub(super) sequence: u64,
}

impl Position {
    pub(super) fn encode(self) -> [u8; 24] {
        let mut out = [0; 24];
        let mut rest = &mut out[..];
        rest.put_u64(self.segment);
        rest.put_u64(self.end);
        rest.put_u64(self.sequence);
        out
    }

    pub(super) fn decode(mut from: &[u8]) -> Option<Self> {
        let (segment, end) = (from.try_get_u64().ok()?, from.try_get_u64().ok()?);
        let sequence = from.try_get_u64().ok()?;
        from.is_empty().then_some(Self { segment, end, sequence })
    }
}

/// What is known of a log beside its runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LogRecord {
    pub(super) log_start: i64,
    /// Log end when there is no run; a log that has runs ends with the last of them.
    pub(super) end_without_runs: i64,
    /// Metadata log index at which the partition was last known to exist.
    pub(super) known_at: Option<u64>,
    /// First offset that is not compacted.
    pub(super) first_dirty: i64,
    /// First of the delete horizons below that, ms since 1970.
    pub(super) delete_horizon_ms: Option<i64>,
    /// Bytes that compaction has removed between the first run and the last: by so much the positions of the two
    /// in the log are farther apart than what is left. Less than nothing where batches have become longer.
    pub(super) removed_bytes: i64,
    pub(super) epochs: Vec<EpochStart>,
}

impl LogRecord {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(56 + self.epochs.len() * 12);
        out.put_u8(VERSION);
        out.put_i64(self.log_start);
        out.put_i64(self.end_without_runs);
        out.put_u8(u8::from(self.known_at.is_some()));
        out.put_u64(self.known_at.unwrap_or_default());
        out.put_i64(self.first_dirty);
        out.put_i64(self.delete_horizon_ms.unwrap_or(-1));
        out.put_i64(self.removed_bytes);
        for epoch in &self.epochs {
            out.put_i32(epoch.leader_epoch);
            out.put_i64(epoch.start_offset);
        }
        out
    }

    pub(super) fn decode(mut from: &[u8]) -> Option<Self> {
        if from.try_get_u8().ok()? != VERSION {
            return None;
        }
        let (log_start, end_without_runs) = (from.try_get_i64().ok()?, from.try_get_i64().ok()?);
        let known = from.try_get_u8().ok()? != 0;
        let known_at = from.try_get_u64().ok()?;
        let (first_dirty, horizon) = (from.try_get_i64().ok()?, from.try_get_i64().ok()?);
        let removed_bytes = from.try_get_i64().ok()?;
        let mut epochs = Vec::new();
        while !from.is_empty() {
            epochs.push(EpochStart {
                leader_epoch: from.try_get_i32().ok()?,
                start_offset: from.try_get_i64().ok()?,
            });
        }
        Some(Self {
            log_start,
            end_without_runs,
            known_at: known.then_some(known_at),
            first_dirty,
            delete_horizon_ms: (horizon >= 0).then_some(horizon),
            removed_bytes,
            epochs,
        })
    }
}

/// A run and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PlacedRun {
    pub(super) run: Run,
    /// See [`super::frame::FrameHeader::segment`].
    pub(super) segment: u64,
    /// Position of its first byte in the segment.
    pub(super) position: u32,
}

impl PlacedRun {
    /// Position after its last byte.
    pub(super) fn end_position(&self) -> u64 {
        u64::from(self.position) + u64::from(self.run.length)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(13 + Run::LEN);
        out.put_u8(VERSION);
        out.put_u64(self.segment);
        out.put_u32(self.position);
        self.run.encode(&mut out);
        out
    }

    pub(super) fn decode(mut from: &[u8]) -> Option<Self> {
        if from.try_get_u8().ok()? != VERSION {
            return None;
        }
        let (segment, position) = (from.try_get_u64().ok()?, from.try_get_u32().ok()?);
        let run = Run::decode(&mut from)?;
        from.is_empty().then_some(Self { run, segment, position })
    }
}

pub(super) fn encode_state(state: &StateSnapshot) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.put_i64(state.offset);
    out.put_slice(&state.bytes);
    out
}

pub(super) fn decode_state(mut from: &[u8]) -> Option<StateSnapshot> {
    if from.try_get_u8().ok()? != VERSION {
        return None;
    }
    Some(StateSnapshot { offset: from.try_get_i64().ok()?, bytes: Bytes::copy_from_slice(from) })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn partition(id: u128, partition: i32) -> TopicIdPartition {
        TopicIdPartition { topic_id: Uuid::from_u128(id), partition }
    }

    proptest! {
        #[test]
        fn keys_of_runs_are_in_the_order_of_logs_and_offsets(
            a in (any::<u128>(), 0..i32::MAX, 0..i64::MAX),
            b in (any::<u128>(), 0..i32::MAX, 0..i64::MAX),
        ) {
            let key = |(id, number, offset)| run(partition(id, number), offset);
            prop_assert_eq!(a.cmp(&b), key(a).cmp(&key(b)));
        }

        #[test]
        fn any_value_is_refused_or_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = Format::decode(&bytes);
            let _ = Position::decode(&bytes);
            let _ = LogRecord::decode(&bytes);
            let _ = PlacedRun::decode(&bytes);
            let _ = decode_state(&bytes);
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let record = LogRecord {
            log_start: 4,
            end_without_runs: 9,
            known_at: Some(7),
            first_dirty: 6,
            delete_horizon_ms: Some(1_000),
            removed_bytes: 300,
            epochs: vec![EpochStart { leader_epoch: 1, start_offset: 4 }],
        };
        assert_eq!(LogRecord::decode(&record.encode()).unwrap(), record);
        let position = Position { segment: 3, end: 8_192, sequence: 12 };
        assert_eq!(Position::decode(&position.encode()).unwrap(), position);
        let run = Run::decode(&mut [1; Run::LEN].as_slice()).unwrap();
        let placed = PlacedRun { run, segment: 5, position: 80 };
        assert_eq!(PlacedRun::decode(&placed.encode()).unwrap(), placed);
        let state = StateSnapshot { offset: 3, bytes: Bytes::from_static(b"producers") };
        assert_eq!(decode_state(&encode_state(&state)).unwrap(), state);
        assert_eq!(decode_log(&log(partition(4, 2))).unwrap(), partition(4, 2));
        assert_eq!(decode_segment(&segment(77)).unwrap(), 77);
    }

    #[test]
    fn a_later_version_is_not_taken_for_this_one() {
        let mut record = LogRecord::default().encode();
        record[0] = 2;
        assert_eq!(LogRecord::decode(&record), None);
    }
}
