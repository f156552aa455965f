//! Reading records from the disk: memory for them, and how much the disk is asked for at a time.
//!
//! A disk works through what it was given, so a sync waits behind the reads that were given to it before. Readers of old
//! records could ask for many megabytes at once, and every acknowledgement would wait for them; little at a time keeps a
//! disk as busy. Who comes first is served first, whatever the size.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::executor::block_on;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::buffer::BufferPool;
use super::disk::BLOCK;
use super::segments::Segment;
use super::tail::KEPT_FOR;
use crate::storage::StorageError;

/// Most bytes that the disk is asked for at a time; a single read may have more.
const MAX_BYTES_AT_ONCE: usize = 512 << 10;

/// Most buffers that are kept for later, and most bytes of them.
const BUFFERS: (usize, usize) = (256, 16 << 20);

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Reads {
    pool: Arc<BufferPool>,
    /// A permit for each block.
    room: Arc<Semaphore>,
}

/// The right to read from the disk, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _room: OwnedSemaphorePermit,
}

/// A part of a segment.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) segment: Arc<Segment>,
    /// Position in the segment, bytes.
    pub(super) position: u64,
    /// Bytes.
    pub(super) length: usize,
}

impl Reads {
    pub(super) fn new() -> Self {
        let pool = Arc::new(BufferPool::new(BUFFERS.0, BUFFERS.1));
        Self { pool, room: Arc::new(Semaphore::new(MAX_BYTES_AT_ONCE / BLOCK)) }
    }

    /// Reads one place when its turn comes. Blocks.
    ///
    /// # Errors
    /// The place is not within the segment, or the disk fails.
    pub(super) fn read(&self, place: &Place) -> Result<Bytes, StorageError> {
        self.read_in(&self.turn(place.length), place)
    }

    /// Reads one place at once.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(super) fn read_in(&self, _turn: &Turn, place: &Place) -> Result<Bytes, StorageError> {
        place.segment.read(&self.pool, place.position, place.length)
    }

    /// Waits for the turn of a read of so many bytes.
    pub(super) fn turn(&self, bytes: usize) -> Turn {
        let room = block_on(Arc::clone(&self.room).acquire_many_owned(blocks(bytes)));
        Turn { _room: room.expect("it is never closed") }
    }

    /// The turn of a read of so many bytes, unless it would have to wait.
    pub(super) fn try_turn(&self, bytes: usize) -> Option<Turn> {
        let room = Arc::clone(&self.room).try_acquire_many_owned(blocks(bytes)).ok()?;
        Some(Turn { _room: room })
    }

    /// How many reads of so many bytes would not have to wait.
    pub(super) fn free_turns(&self, bytes: usize) -> usize {
        self.room.available_permits() / blocks(bytes) as usize
    }

    /// Lets go of memory that nobody has needed for a while.
    pub(super) fn release_unused(&self, now: Instant) {
        self.pool.release_unused(now, KEPT_FOR);
    }
}

/// Permits that a read of so many bytes takes: a large one takes all there are.
fn blocks(bytes: usize) -> u32 {
    let blocks = bytes.clamp(1, MAX_BYTES_AT_ONCE).div_ceil(BLOCK);
    u32::try_from(blocks).expect("a part of what may be read at once")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn what_does_not_fit_beside_other_reads_waits_for_them() {
        let reads = Reads::new();
        assert_eq!(reads.free_turns(64 << 10), 8);
        let held = reads.turn(MAX_BYTES_AT_ONCE - BLOCK);
        assert!(reads.try_turn(BLOCK + 1).is_none());
        let last = reads.try_turn(BLOCK).unwrap();
        assert_eq!((reads.free_turns(1), reads.free_turns(64 << 10)), (0, 0));
        thread::scope(|scope| {
            let (sender, entered) = mpsc::channel();
            let reads = &reads;
            scope.spawn(move || sender.send(reads.turn(2 * BLOCK)).unwrap());
            drop(last);
            while reads.free_turns(1) > 0 {
                // It waits, and has what there is.
                thread::yield_now();
            }
            assert!(entered.try_recv().is_err());
            drop(held);
            entered.recv().unwrap();
        });
    }

    #[test]
    fn a_read_of_any_size_gets_its_turn() {
        let reads = Reads::new();
        let all = reads.turn(10 * MAX_BYTES_AT_ONCE);
        assert!(reads.try_turn(0).is_none());
        drop(all);
        assert!(reads.try_turn(0).is_some());
    }
}
