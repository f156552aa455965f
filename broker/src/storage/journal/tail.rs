//! The newest part of the journal in memory: what consumers that keep up are served from.
//!
//! The buffers that were written are kept as they are, oldest out first. A buffer leaves at the earliest when the index
//! knows its runs: until then they can be found nowhere else.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

use super::buffer::BufferPool;
use super::log::JournalLog;

/// A written frame.
#[derive(Debug)]
struct Frame {
    sequence: u64,
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
        frames.frames.push_back(Frame { sequence, memory, logs, indexed: false });
    }

    /// Lets go of what is too much, now that the index knows everything up to `sequence`.
    pub(super) fn indexed(&self, sequence: u64, pool: &BufferPool) {
        let evicted: Vec<Frame> = {
            let mut frames = self.frames.lock();
            for frame in frames.frames.iter_mut().rev().skip_while(|frame| frame.sequence > sequence) {
                if frame.indexed {
                    break;
                }
                frame.indexed = true;
            }
            let mut evicted = Vec::new();
            while frames.bytes > self.max_bytes && frames.frames.front().is_some_and(|frame| frame.indexed) {
                evicted.extend(frames.frames.pop_front());
                frames.bytes -= evicted.last().map_or(0, |frame| frame.memory.len());
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
