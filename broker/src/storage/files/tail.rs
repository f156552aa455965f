//! The newest data of all logs, kept in memory up to a limit for the consumers that keep up.
//!
//! Each log holds its own chunks; this holds their order over all logs and says whose oldest chunk has to go. Chunks
//! of one log leave in the order in which they came, so a log's chunks always reach from some offset to its end.

use std::collections::VecDeque;
use std::sync::Weak;

use parking_lot::Mutex;

use super::log::FileLog;

#[derive(Debug)]
pub(super) struct TailCache {
    limit: usize,
    order: Mutex<Order>,
}

#[derive(Debug, Default)]
struct Order {
    bytes: usize,
    chunks: VecDeque<(Weak<FileLog>, usize)>,
}

impl TailCache {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, order: Mutex::default() }
    }

    /// Whether a chunk of that size is worth keeping: a single one must not push out all others.
    pub(super) fn accepts(&self, bytes: usize) -> bool {
        bytes <= self.limit / 4
    }

    /// Notes that `log` has added a chunk; returns the logs that must drop their oldest chunk, once for each mention.
    pub(super) fn note(&self, log: Weak<FileLog>, bytes: usize) -> Vec<Weak<FileLog>> {
        let mut order = self.order.lock();
        order.bytes += bytes;
        order.chunks.push_back((log, bytes));
        let mut evicted = Vec::new();
        while order.bytes > self.limit {
            let Some((log, bytes)) = order.chunks.pop_front() else { break };
            order.bytes -= bytes;
            evicted.push(log);
        }
        evicted
    }
}
