//! What one partition knows of its idempotent producers (rules I1–I5).
//!
//! Answers whether a batch is new, a repetition of one that is stored, or out of order. Pure: headers and the time go
//! in. The same headers replayed from the log give the same state, so it survives restarts (I5) as a snapshot plus
//! the headers after it.
//!
//! Times are those of a [`SteadyClock`]: if a producer were idle by the time of day, a clock that is set would have it
//! forgotten, and what it repeats would be stored twice. A snapshot therefore has how long each was idle; while a broker
//! is down no time passes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use millrace_protocol::records::BatchHeader;
use tokio::time::Instant;

/// Batches kept for each producer: as many as a producer may have in flight (I1).
const BATCHES_KEPT: usize = 5;

/// Milliseconds since some moment, by a clock that nobody sets.
#[derive(Clone)]
pub struct SteadyClock(Arc<dyn Fn() -> i64 + Send + Sync>);

impl SteadyClock {
    /// That of the machine.
    pub fn of_machine() -> Self {
        let start = Instant::now();
        Self::new(move || i64::try_from(start.elapsed().as_millis()).unwrap_or(i64::MAX))
    }

    /// One that is read with `now_ms`.
    pub fn new(now_ms: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now_ms))
    }

    /// The time.
    pub fn now_ms(&self) -> i64 {
        (self.0)()
    }
}

impl std::fmt::Debug for SteadyClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SteadyClock").field(&self.now_ms()).finish()
    }
}

/// Version 1 had the time of day at which each producer was last used; it is read as if that were now.
const SNAPSHOT_VERSION: u8 = 2;
const WITH_TIME_OF_DAY: u8 = 1;

/// A stored batch of a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredBatch {
    /// Sequence number of its first record.
    pub first_sequence: i32,
    /// Sequence number of its last record.
    pub last_sequence: i32,
    /// Offset of its first record.
    pub base_offset: i64,
    /// Offset of its last record.
    pub last_offset: i64,
    /// Its largest timestamp.
    pub timestamp: i64,
}

/// What to do with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Append it.
    New,
    /// It is stored already: answer as the first time.
    Duplicate(StoredBatch),
}

/// Why a batch is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SequenceError {
    /// A gap or a step back.
    #[error("sequence {found} of producer {producer_id} does not follow {last:?}")]
    OutOfOrder {
        /// The producer.
        producer_id: i64,
        /// First sequence of the batch.
        found: i32,
        /// Last sequence that is stored; `None` where a new epoch has to begin at 0.
        last: Option<i32>,
    },
    /// A newer producer has taken over.
    #[error("epoch {found} of producer {producer_id} is older than {known}")]
    OldEpoch {
        /// The producer.
        producer_id: i64,
        /// Epoch of the batch.
        found: i16,
        /// Latest epoch known.
        known: i16,
    },
}

/// The state of all producers of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProducerStates {
    producers: HashMap<i64, Producer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Producer {
    epoch: i16,
    /// Newest last.
    batches: VecDeque<StoredBatch>,
    last_used_ms: i64,
}

/// How to take back what a batch has changed.
#[derive(Clone, Debug)]
pub struct Undo {
    /// Offset of the batch's first record.
    pub base_offset: i64,
    /// Offset after its last record.
    pub next_offset: i64,
    producer_id: i64,
    what: Undone,
}

#[derive(Clone, Debug)]
enum Undone {
    /// It began an epoch: the producer as it was before, if it was known.
    Epoch(Option<Box<Producer>>),
    /// It was one more: the batch that is not kept any more since.
    Batch(Option<StoredBatch>),
}

/// A snapshot does not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the snapshot of producer states does not decode")]
pub struct SnapshotError;

impl ProducerStates {
    /// Judges a batch that a client wants to append. Batches without a producer id are always new.
    pub fn check(&self, header: &BatchHeader) -> Result<Verdict, SequenceError> {
        let producer_id = header.producer_id;
        let Some(producer) = self.producers.get(&producer_id).filter(|_| header.has_producer_id()) else {
            // I4: a producer that is not known, or no longer, may go on with any sequence.
            return Ok(Verdict::New);
        };
        let found = header.base_sequence;
        if header.producer_epoch < producer.epoch {
            let (found, known) = (header.producer_epoch, producer.epoch);
            return Err(SequenceError::OldEpoch { producer_id, found, known });
        }
        if header.producer_epoch > producer.epoch {
            // I3
            let begins = found == 0 || producer.epoch < 0;
            return if begins {
                Ok(Verdict::New)
            } else {
                Err(SequenceError::OutOfOrder { producer_id, found, last: None })
            };
        }
        // I1
        let last_sequence = header.last_sequence();
        let is_same =
            |stored: &&StoredBatch| stored.first_sequence == found && stored.last_sequence == last_sequence;
        if let Some(stored) = producer.batches.iter().find(is_same) {
            return Ok(Verdict::Duplicate(*stored));
        }
        // I2
        let Some(last) = producer.batches.back().map(|stored| stored.last_sequence) else {
            return Ok(Verdict::New);
        };
        let follows = if last == i32::MAX { found == 0 } else { found == last + 1 };
        if follows {
            Ok(Verdict::New)
        } else {
            Err(SequenceError::OutOfOrder { producer_id, found, last: Some(last) })
        }
    }

    /// Enters a batch that is stored; `header` has its offsets. Returns how to [undo](Self::undo) that, if it changed
    /// more than when the producer was last seen.
    pub fn record(&mut self, header: &BatchHeader, now_ms: i64) -> Option<Undo> {
        if !header.has_producer_id() {
            return None;
        }
        let producer_id = header.producer_id;
        let known = self.producers.get_mut(&producer_id);
        let begins_epoch = known.as_ref().is_none_or(|known| header.producer_epoch > known.epoch);
        let before = known.filter(|_| begins_epoch).map(|known| Box::new(known.clone()));
        let producer = self.producers.entry(producer_id).or_insert_with(|| Producer {
            epoch: header.producer_epoch,
            batches: VecDeque::new(),
            last_used_ms: now_ms,
        });
        producer.last_used_ms = now_ms;
        if begins_epoch {
            producer.epoch = header.producer_epoch;
            producer.batches.clear();
        }
        let (base_offset, next_offset) = (header.base_offset, header.next_offset());
        let undo = |what| Some(Undo { base_offset, next_offset, producer_id, what });
        // Markers have no sequence.
        if header.attributes.is_control() {
            return undo(Undone::Epoch(before)).filter(|_| begins_epoch);
        }
        let is_full = producer.batches.len() == BATCHES_KEPT;
        let oldest = if is_full { producer.batches.pop_front() } else { None };
        producer.batches.push_back(StoredBatch {
            first_sequence: header.base_sequence,
            last_sequence: header.last_sequence(),
            base_offset: header.base_offset,
            last_offset: header.last_offset(),
            timestamp: header.max_timestamp,
        });
        undo(if begins_epoch { Undone::Epoch(before) } else { Undone::Batch(oldest) })
    }

    /// Takes back what [`record`](Self::record) did, the last first. Only when a producer was last seen stays.
    pub fn undo(&mut self, Undo { producer_id, what, .. }: Undo) {
        match what {
            Undone::Epoch(Some(before)) => {
                self.producers.insert(producer_id, *before);
            }
            Undone::Epoch(None) => {
                self.producers.remove(&producer_id);
            }
            Undone::Batch(oldest) => {
                // It may have been idle for so long that it is forgotten.
                if let Some(producer) = self.producers.get_mut(&producer_id) {
                    producer.batches.pop_back();
                    oldest.into_iter().for_each(|oldest| producer.batches.push_front(oldest));
                }
            }
        }
    }

    /// Forgets producers that have been idle for longer than `limit_ms`.
    pub fn expire(&mut self, now_ms: i64, limit_ms: i64) {
        self.producers.retain(|_, producer| now_ms.saturating_sub(producer.last_used_ms) <= limit_ms);
        if self.producers.is_empty() {
            self.producers.shrink_to_fit();
        }
    }

    /// Forgets the batches of all producers, but not their epochs: each goes on with any sequence, as one that is not known
    /// (I4), and those that it has fenced stay fenced.
    pub fn forget_batches(&mut self) {
        self.producers.values_mut().for_each(|producer| producer.batches.clear());
    }

    /// Producer ids, each with the offset of the last record that it has written.
    pub fn last_offsets(&self) -> impl Iterator<Item = (i64, i64)> {
        let last = |producer: &Producer| producer.batches.back().map(|batch| batch.last_offset);
        self.producers.iter().filter_map(move |(id, producer)| last(producer).map(|offset| (*id, offset)))
    }

    /// Number of producers known.
    pub fn len(&self) -> usize {
        self.producers.len()
    }

    /// Whether no producer is known.
    pub fn is_empty(&self) -> bool {
        self.producers.is_empty()
    }

    /// The state as bytes: version, number of producers, and for each its id, epoch, milliseconds that it is idle at `now_ms`,
    /// and batches.
    pub fn encode(&self, now_ms: i64) -> Bytes {
        let mut out = BytesMut::with_capacity(5 + self.producers.len() * 64);
        out.put_u8(SNAPSHOT_VERSION);
        out.put_u32(u32::try_from(self.producers.len()).expect("fewer than four billion producers"));
        for (producer_id, producer) in &self.producers {
            out.put_i64(*producer_id);
            out.put_i16(producer.epoch);
            out.put_i64(now_ms.saturating_sub(producer.last_used_ms));
            out.put_u8(u8::try_from(producer.batches.len()).expect("at most five"));
            for batch in &producer.batches {
                out.put_i32(batch.first_sequence);
                out.put_i32(batch.last_sequence);
                out.put_i64(batch.base_offset);
                out.put_i64(batch.last_offset);
                out.put_i64(batch.timestamp);
            }
        }
        out.freeze()
    }

    /// Reads what [`encode`](Self::encode) has written; producers go on being idle from `now_ms`.
    pub fn decode(bytes: &[u8], now_ms: i64) -> Result<Self, SnapshotError> {
        let mut rest = bytes;
        let states = Self::decode_from(&mut rest, now_ms).map_err(|_| SnapshotError)?;
        states.filter(|_| rest.is_empty()).ok_or(SnapshotError)
    }

    fn decode_from(rest: &mut &[u8], now_ms: i64) -> Result<Option<Self>, bytes::TryGetError> {
        let version = rest.try_get_u8()?;
        if version != SNAPSHOT_VERSION && version != WITH_TIME_OF_DAY {
            return Ok(None);
        }
        let mut states = Self::default();
        for _ in 0..rest.try_get_u32()? {
            let producer_id = rest.try_get_i64()?;
            let epoch = rest.try_get_i16()?;
            let idle_ms = Some(rest.try_get_i64()?).filter(|_| version != WITH_TIME_OF_DAY).unwrap_or(0);
            let last_used_ms = now_ms.saturating_sub(idle_ms.max(0));
            let count = rest.try_get_u8()?;
            if usize::from(count) > BATCHES_KEPT {
                return Ok(None);
            }
            let mut batches = VecDeque::with_capacity(usize::from(count));
            for _ in 0..count {
                batches.push_back(StoredBatch {
                    first_sequence: rest.try_get_i32()?,
                    last_sequence: rest.try_get_i32()?,
                    base_offset: rest.try_get_i64()?,
                    last_offset: rest.try_get_i64()?,
                    timestamp: rest.try_get_i64()?,
                });
            }
            states.producers.insert(producer_id, Producer { epoch, batches, last_used_ms });
        }
        Ok(Some(states))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::batch::samples::producer_batch;

    fn header(epoch: i16, sequence: i32, records: usize, base_offset: i64) -> BatchHeader {
        let batch = producer_batch((7, epoch, sequence), &vec![1_000; records], b"v");
        BatchHeader { base_offset, ..BatchHeader::parse(&batch).unwrap() }
    }

    fn after(batches: &[(i16, i32, usize, i64)]) -> ProducerStates {
        let mut states = ProducerStates::default();
        for (epoch, sequence, records, offset) in batches {
            states.record(&header(*epoch, *sequence, *records, *offset), 0);
        }
        states
    }

    fn duplicate_at(verdict: Verdict) -> Option<i64> {
        match verdict {
            Verdict::New => None,
            Verdict::Duplicate(stored) => Some(stored.base_offset),
        }
    }

    #[test]
    fn each_of_the_last_five_batches_is_recognised_i1() {
        let states = after(&[
            (0, 0, 2, 10),
            (0, 2, 1, 12),
            (0, 3, 1, 13),
            (0, 4, 1, 14),
            (0, 5, 1, 15),
            (0, 6, 1, 16),
        ]);
        for (sequence, offset) in [(2, 12), (3, 13), (4, 14), (5, 15), (6, 16)] {
            assert_eq!(duplicate_at(states.check(&header(0, sequence, 1, 0)).unwrap()), Some(offset));
        }
        assert!(states.check(&header(0, 0, 2, 0)).is_err(), "the sixth last is forgotten");
        assert!(
            states.check(&header(0, 2, 2, 0)).is_err(),
            "the same start with another end is no duplicate"
        );
    }

    #[test]
    fn sequences_follow_each_other_and_wrap_i2() {
        let states = after(&[(0, i32::MAX - 1, 2, 0)]);
        assert_eq!(states.check(&header(0, 0, 1, 0)), Ok(Verdict::New));
        let error = states.check(&header(0, 1, 1, 0)).unwrap_err();
        assert_eq!(error, SequenceError::OutOfOrder { producer_id: 7, found: 1, last: Some(i32::MAX) });
        let wrapped = after(&[(0, i32::MAX, 3, 0)]);
        assert_eq!(wrapped.check(&header(0, 2, 1, 0)), Ok(Verdict::New));
    }

    #[test]
    fn a_new_epoch_begins_at_zero_and_an_old_one_is_refused_i3() {
        let states = after(&[(3, 0, 1, 0)]);
        assert_eq!(states.check(&header(4, 0, 1, 0)), Ok(Verdict::New));
        assert!(matches!(
            states.check(&header(4, 1, 1, 0)),
            Err(SequenceError::OutOfOrder { last: None, .. })
        ));
        assert!(matches!(states.check(&header(2, 1, 1, 0)), Err(SequenceError::OldEpoch { known: 3, .. })));
    }

    #[test]
    fn an_unknown_producer_may_begin_anywhere_i4() {
        assert_eq!(ProducerStates::default().check(&header(5, 1_234, 1, 0)), Ok(Verdict::New));
        let mut states = after(&[(0, 0, 1, 0)]);
        states.expire(24 * 3_600_000 + 1, 24 * 3_600_000);
        assert!(states.is_empty());
        assert_eq!(states.check(&header(0, 99, 1, 0)), Ok(Verdict::New));
    }

    #[test]
    fn a_producer_whose_batches_are_forgotten_goes_on_anywhere_in_its_epoch_i3_i4() {
        let mut states = after(&[(3, 0, 1, 0)]);
        states.forget_batches();
        assert_eq!(states.check(&header(3, 99, 1, 0)), Ok(Verdict::New));
        assert!(states.check(&header(2, 99, 1, 0)).is_err(), "fenced");
        states.record(&header(3, 99, 1, 10), 0);
        assert_eq!(duplicate_at(states.check(&header(3, 99, 1, 0)).unwrap()), Some(10));
        assert!(states.check(&header(3, 101, 1, 0)).is_err());
    }

    #[test]
    fn a_producer_goes_on_being_idle_where_the_snapshot_says_and_not_while_the_broker_is_down() {
        let kept = after(&[(0, 0, 1, 0)]).encode(70);
        let mut states = ProducerStates::decode(&kept, 1_000_000).unwrap();
        states.expire(1_000_030, 100);
        assert_eq!(states.len(), 1, "idle for 70 and 30 ms");
        states.expire(1_000_031, 100);
        assert!(states.is_empty());
    }

    #[test]
    fn a_snapshot_of_an_earlier_version_is_read_and_its_producers_have_just_been_used() {
        let mut kept = after(&[(0, 0, 1, 0)]).encode(1_790_000_000_000).to_vec();
        kept[0] = WITH_TIME_OF_DAY;
        assert_eq!(ProducerStates::decode(&kept, 0), Ok(after(&[(0, 0, 1, 0)])));
    }

    #[test]
    fn a_damaged_snapshot_is_an_error() {
        let whole = after(&[(0, 0, 2, 10), (0, 2, 1, 12)]).encode(0);
        for length in 0..whole.len() {
            assert_eq!(ProducerStates::decode(&whole[..length], 0), Err(SnapshotError));
        }
        let mut longer = whole.to_vec();
        longer.push(0);
        assert_eq!(ProducerStates::decode(&longer, 0), Err(SnapshotError));
    }

    proptest! {
        #[test]
        fn a_snapshot_and_the_rest_replayed_give_the_same_state_i5(
            batches in prop::collection::vec((0_i64..4, 0_i16..3, 0_i32..50, 1_usize..4), 0..40),
            at in 0_usize..40,
        ) {
            let mut whole = ProducerStates::default();
            let mut resumed = ProducerStates::default();
            for (number, (producer_id, epoch, sequence, records)) in batches.iter().enumerate() {
                if number == at {
                    resumed = ProducerStates::decode(&resumed.encode(5), 5).unwrap();
                }
                let offset = i64::try_from(number).unwrap() * 10;
                let header = BatchHeader { producer_id: *producer_id, ..header(*epoch, *sequence, *records, offset) };
                whole.record(&header, 5);
                resumed.record(&header, 5);
            }
            prop_assert_eq!(whole, resumed);
        }
    }
}
