//! The newest part of the journal in memory: what consumers that keep up are served from.
//!
//! The buffers that were written are kept as they are, oldest out first: when there are too many, and when they are old,
//! since whoever keeps up has read them by then, and a broker without load needs no memory. A buffer leaves at the earliest
//! when the index knows its runs: until then they can be found nowhere else.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::buffer::BufferPool;
use super::log::JournalLog;

/// Time after which a frame is let go of.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(10);

/// A written frame.
#[derive(Debug)]
struct Frame {
    sequence: u64,
    written: Instant,
    /// The memory as a whole, to be used again.
    memory: Bytes,
    /// Logs that have a part of it.
    logs: Vec<Weak<JournalLog>>,
    indexed: bool,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct TailCache {
    max_bytes: usize,
    frames: Mutex<Frames>,
}

#[derive(Debug, Default)]
struct Frames {
    frames: VecDeque<Frame>,
    bytes: usize,
}

impl TailCache {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, frames: Mutex::default() }
    }

    /// Takes a written frame. Sequences rise from call to call.
    pub(super) fn push(&self, sequence: u64, memory: Bytes, logs: &[Arc<JournalLog>]) {
        let logs = logs.iter().map(Arc::downgrade).collect();
        let mut frames = self.frames.lock();
        frames.bytes += memory.len();
        frames.frames.push_back(Frame { sequence, written: Instant::now(), memory, logs, indexed: false });
    }

    /// Takes note that the index knows everything up to `sequence`.
    pub(super) fn indexed(&self, sequence: u64) {
        let mut frames = self.frames.lock();
        for frame in frames.frames.iter_mut().rev().skip_while(|frame| frame.sequence > sequence) {
            if frame.indexed {
                break;
            }
            frame.indexed = true;
        }
    }

    /// Lets go of what is too much, or too old.
    pub(super) fn trim(&self, now: Instant, pool: &BufferPool) {
        let evicted: Vec<Frame> = {
            let mut frames = self.frames.lock();
            let mut evicted = Vec::new();
            loop {
                let is_too_much = frames.bytes > self.max_bytes;
                let is_too_old = |frame: &Frame| now.saturating_duration_since(frame.written) >= KEPT_FOR;
                let goes = |frame: &mut Frame| frame.indexed && (is_too_much || is_too_old(frame));
                let Some(frame) = frames.frames.pop_front_if(goes) else { break };
                frames.bytes -= frame.memory.len();
                evicted.push(frame);
            }
            evicted
        };
        for frame in evicted {
            for log in frame.logs.iter().filter_map(Weak::upgrade) {
                log.forget_tail(frame.sequence);
            }
            pool.give_back(frame.memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(max_bytes: usize, frames: u64) -> TailCache {
        let cache = TailCache::new(max_bytes);
        for sequence in 1..=frames {
            cache.push(sequence, Bytes::from(vec![0; 100]), &[]);
        }
        cache
    }

    fn left(cache: &TailCache, now: Instant) -> (Vec<u64>, usize) {
        cache.trim(now, &BufferPool::new(0, 0));
        let frames = cache.frames.lock();
        (frames.frames.iter().map(|frame| frame.sequence).collect(), frames.bytes)
    }

    #[test]
    fn the_oldest_leave_when_there_are_too_many_and_the_index_knows_them() {
        let cache = cache(250, 5);
        assert_eq!(left(&cache, Instant::now()), (vec![1, 2, 3, 4, 5], 500));
        cache.indexed(2);
        assert_eq!(left(&cache, Instant::now()), (vec![3, 4, 5], 300));
        cache.indexed(5);
        assert_eq!(left(&cache, Instant::now()), (vec![4, 5], 200));
    }

    #[test]
    fn old_ones_leave_however_few_there_are() {
        let cache = cache(1_000, 3);
        cache.indexed(2);
        assert_eq!(left(&cache, Instant::now()), (vec![1, 2, 3], 300));
        assert_eq!(left(&cache, Instant::now() + KEPT_FOR), (vec![3], 100), "nobody else knows the third");
        cache.indexed(3);
        assert_eq!(left(&cache, Instant::now() + KEPT_FOR), (vec![], 0));
    }
}
