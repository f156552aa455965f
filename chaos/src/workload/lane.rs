//! One idempotent producer's way to one partition: which batch goes next, and what an answer means.
//!
//! Keeps to what Kafka's producer does (its Sender and TransactionManager): at most five batches in flight; after an
//! error or a lost connection the same batches go out again, with the same producer id, epoch and sequences, in
//! order and one at a time, and nothing new before they are settled. A sequence out of order is the harmless shadow of
//! an earlier failure unless everything before it was acknowledged: then the broker has lost or reordered something.
//! Holds no connection and no clock.

use std::collections::VecDeque;

use millrace_protocol::ErrorCode;

/// Batches that Kafka's producer has in flight to a partition, and that brokers remember (I1).
const MAX_IN_FLIGHT: usize = 5;

/// A batch: records of consecutive numbers, under consecutive sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Number of its first record.
    pub first_number: u64,
    /// Its records.
    pub count: u16,
    /// Sequence of its first record.
    pub base_sequence: i32,
    /// Milliseconds since 1970 when it was made.
    pub timestamp: i64,
}

/// What an answer meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// The batch is stored at this offset.
    Acknowledged {
        /// The batch.
        batch: Batch,
        /// Offset of its first record; `None` if the broker did not know it any more.
        base_offset: Option<i64>,
        /// Whether it was sent only once, so that whoever answered also stored it.
        at_once: bool,
    },
    /// It is to be sent again.
    Again,
}

/// Answers that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The batch.
    pub batch: Batch,
    /// What the broker said.
    pub error: ErrorCode,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    batch: Batch,
    in_flight: bool,
    attempts: u32,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Lane {
    next_number: u64,
    next_sequence: i32,
    /// What is not acknowledged, in order.
    pending: VecDeque<Pending>,
    /// Sequences of what is in flight, as sent; brokers answer in order.
    in_flight: VecDeque<i32>,
    recovering: bool,
}

impl Lane {
    /// The batch to send now, if one is due to be sent again.
    pub fn next_again(&mut self) -> Option<Batch> {
        if self.in_flight.is_empty() && self.pending.is_empty() {
            self.recovering = false;
        }
        if !self.recovering || !self.in_flight.is_empty() {
            return None;
        }
        let first = self.pending.front_mut()?;
        Some(send(first, &mut self.in_flight))
    }

    /// Whether a new batch may be sent now.
    pub fn has_room(&self) -> bool {
        !self.recovering && self.pending.len() < MAX_IN_FLIGHT
    }

    /// A new batch of `count` records, to be sent now. Only when there [is room](Self::has_room).
    pub fn next_new(&mut self, count: u16, timestamp: i64) -> Batch {
        let batch =
            Batch { first_number: self.next_number, count, base_sequence: self.next_sequence, timestamp };
        self.next_number += u64::from(count);
        // After the largest sequence comes 0 (I2).
        self.next_sequence = self
            .next_sequence
            .checked_add(i32::from(count))
            .unwrap_or_else(|| self.next_sequence.wrapping_add(i32::from(count)).wrapping_sub(i32::MIN));
        self.pending.push_back(Pending { batch, in_flight: false, attempts: 0 });
        let last = self.pending.back_mut().expect("one was just added");
        send(last, &mut self.in_flight)
    }

    /// Whether an answer is to come.
    pub fn is_waiting(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Whether everything is acknowledged.
    pub fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    /// Number of records made so far.
    pub fn made(&self) -> u64 {
        self.next_number
    }

    /// Records that are not acknowledged.
    pub fn unacknowledged(&self) -> u64 {
        self.pending.iter().map(|pending| u64::from(pending.batch.count)).sum()
    }

    /// Takes the next answer.
    ///
    /// # Errors
    /// No broker that keeps its promises gives this answer.
    ///
    /// # Panics
    /// Nothing is in flight.
    pub fn answered(&mut self, error: ErrorCode, base_offset: i64) -> Result<Answered, Refused> {
        let sequence = self.in_flight.pop_front().expect("an answer has a request");
        let place = self.pending.iter().position(|pending| pending.batch.base_sequence == sequence);
        let place = place.expect("what is in flight is pending");
        let Pending { batch, attempts, .. } = self.pending[place];
        match error {
            ErrorCode::None | ErrorCode::DuplicateSequenceNumber => {
                self.pending.remove(place);
                let base_offset = (error == ErrorCode::None && base_offset >= 0).then_some(base_offset);
                Ok(Answered::Acknowledged { batch, base_offset, at_once: attempts == 1 })
            }
            ErrorCode::OutOfOrderSequenceNumber if place > 0 => Ok(self.again(place)),
            // Retriable in Kafka too; here no byte is ever changed on its way.
            ErrorCode::CorruptMessage => Err(Refused { batch, error }),
            error if error.is_retriable() => Ok(self.again(place)),
            error => Err(Refused { batch, error }),
        }
    }

    fn again(&mut self, place: usize) -> Answered {
        self.pending[place].in_flight = false;
        self.recovering = true;
        Answered::Again
    }

    /// The connection is gone: what became of the batches in flight is unknown.
    pub fn disconnected(&mut self) {
        self.in_flight.clear();
        self.pending.iter_mut().for_each(|pending| pending.in_flight = false);
        self.recovering = !self.pending.is_empty();
    }
}

fn send(pending: &mut Pending, in_flight: &mut VecDeque<i32>) -> Batch {
    pending.in_flight = true;
    pending.attempts += 1;
    in_flight.push_back(pending.batch.base_sequence);
    pending.batch
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    fn lane_with(batches: u16) -> Lane {
        let mut lane = Lane::default();
        for _ in 0..batches {
            assert!(lane.has_room());
            lane.next_new(2, 0);
        }
        lane
    }

    fn sequence_of(answered: Answered) -> i32 {
        match answered {
            Answered::Acknowledged { batch, .. } => batch.base_sequence,
            Answered::Again => panic!("it is to be sent again"),
        }
    }

    #[test]
    fn at_most_five_batches_are_in_flight() {
        let mut lane = lane_with(5);
        assert!(!lane.has_room());
        lane.answered(ErrorCode::None, 0).unwrap();
        assert!(lane.has_room());
    }

    #[test]
    fn after_an_error_the_same_batches_go_again_in_order_one_at_a_time_before_anything_new() {
        let mut lane = lane_with(3);
        assert_eq!(lane.answered(ErrorCode::NotLeaderOrFollower, -1), Ok(Answered::Again));
        assert_eq!(lane.next_again(), None, "others are in flight still");
        assert_eq!(lane.answered(ErrorCode::OutOfOrderSequenceNumber, -1), Ok(Answered::Again));
        assert_eq!(lane.answered(ErrorCode::OutOfOrderSequenceNumber, -1), Ok(Answered::Again));
        for sequence in [0, 2, 4] {
            assert!(!lane.has_room());
            assert_eq!(lane.next_again().unwrap().base_sequence, sequence);
            assert_eq!(lane.next_again(), None);
            let answered = lane.answered(ErrorCode::None, i64::from(sequence)).unwrap();
            assert!(matches!(answered, Answered::Acknowledged { at_once: false, .. }));
            assert_eq!(sequence_of(answered), sequence);
        }
        assert!(lane.is_settled() && lane.next_again().is_none() && lane.has_room());
    }

    #[test]
    fn a_sequence_out_of_order_is_refused_when_all_before_it_is_acknowledged() {
        let mut lane = lane_with(2);
        lane.answered(ErrorCode::None, 0).unwrap();
        let refused = lane.answered(ErrorCode::OutOfOrderSequenceNumber, -1).unwrap_err();
        assert_eq!((refused.batch.base_sequence, refused.batch.first_number), (2, 2));
    }

    #[test]
    fn a_duplicate_is_success_at_an_unknown_offset() {
        let mut lane = lane_with(1);
        lane.disconnected();
        lane.next_again().unwrap();
        let answered = lane.answered(ErrorCode::DuplicateSequenceNumber, -1).unwrap();
        assert!(matches!(answered, Answered::Acknowledged { base_offset: None, .. }));
    }

    #[test]
    fn a_lost_connection_leaves_everything_to_be_sent_again() {
        let mut lane = lane_with(4);
        lane.answered(ErrorCode::None, 0).unwrap();
        lane.disconnected();
        assert_eq!((lane.is_waiting(), lane.unacknowledged(), lane.made()), (false, 6, 8));
        assert_eq!(lane.next_again().unwrap().base_sequence, 2);
        lane.disconnected();
        assert_eq!(lane.next_again().unwrap().base_sequence, 2);
    }

    #[test]
    fn errors_that_no_retry_helps_are_refused() {
        for error in [ErrorCode::InvalidProducerEpoch, ErrorCode::InvalidRecord, ErrorCode::CorruptMessage] {
            assert_eq!(lane_with(1).answered(error, -1).unwrap_err().error, error);
        }
    }

    #[test]
    fn sequences_begin_again_at_zero_after_the_largest() {
        let mut lane = Lane { next_sequence: i32::MAX - 1, ..Lane::default() };
        assert_eq!(lane.next_new(2, 0).base_sequence, i32::MAX - 1);
        assert_eq!(lane.next_new(1, 0).base_sequence, 0);
    }
}
