//! Who waits for the ends of several partitions at once.

use std::sync::Arc;

use tokio::sync::Notify;

use super::partition::Partition;
use super::waiters::Awaited;

/// Registrations of one waiting request, taken back when it is over or dropped.
pub(super) struct Registrations<'a> {
    signal: &'a Arc<Notify>,
    awaited: Awaited,
    partitions: Vec<Arc<Partition>>,
}

impl<'a> Registrations<'a> {
    pub(super) fn new(signal: &'a Arc<Notify>, awaited: Awaited) -> Self {
        Self { signal, awaited, partitions: Vec::new() }
    }

    pub(super) fn add(&mut self, partition: &Arc<Partition>, wake_at: i64) {
        partition.register(self.awaited, wake_at, self.signal);
        self.partitions.push(Arc::clone(partition));
    }

    pub(super) fn clear(&mut self) {
        for partition in self.partitions.drain(..) {
            partition.leave(self.awaited, self.signal);
        }
    }
}

impl Drop for Registrations<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}
